"""Writes docs/cli.md from the command line itself: commands, flags, values, defaults and their meaning."""

from pathlib import Path

from penstock.cli import app

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
HEADER = """# Command line

This page is generated: run `make docs` after a change of `penstock/cli.py`. A test compares it with a fresh one.

- In every flag `_` and `-` are the same: `--max_samples=5` is `--max-samples=5`.
- `--json` prints exactly one JSON object on stdout. Progress, log lines and errors go to stderr.
- Exit codes: 0 done within the failure budget; 1 rows failed beyond it, nothing was done where something was asked, or
  a check found a fault; 2 misuse (a wrong flag, a missing path, a missing package); 130 and 143 after SIGINT and SIGTERM.

"""


def render() -> str:
    """The whole page."""
    commands = app.generate_docs(output_format="markdown", recursive=True, heading_level=2)
    return HEADER + "\n".join(line.rstrip() for line in commands.strip().splitlines()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="ascii")
