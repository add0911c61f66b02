"""The documents: every block runs or says why not, every link leads somewhere, generated pages are fresh.

Python blocks of a page run one after another in one namespace; bash blocks run between them, all in one temporary
folder. The folder holds the files of `MATERIAL` that the page names. A fence says ```python or ```bash, or
```python no-run: REASON; there is no third way.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import penstock
from penstock import errors
from penstock.cli import main
from penstock.testing import make_sa1b_tar
from tests.readers.test_coco_panoptic import write_coco_panoptic
from tests.refine_data import write_scenes

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "cli.md"
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "bash", "text", "json", "toml"}
SMALL = {"picture_size": 64, "feature_size": 8, "channels": 4, "edge_sizes": (64,), "map_sizes": (64, 32)}

FENCE = re.compile(r"^```(.*)$")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"--[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    """Of its first line of code, from 1."""
    language: str
    info: str
    """What the fence says behind the language."""
    code: str

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.language in ("python", "bash") and not self.info

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def original_set(target: Path) -> None:
    """A v1 directory as the original converter leaves it: XYWH boxes, no marker, empty masks, no ledger."""
    import json

    import numpy as np

    make_sa1b_tar(target.with_suffix(".tar"), 2)
    code = main(["convert", "sa1b-tar", "--tar-path", str(target.with_suffix(".tar")), "--output-dir", str(target),
                 "--layout", "v1", "--workers", "0", "--quiet"])  # fmt: skip
    assert code == 0
    shutil.rmtree(target / ".penstock")
    config = json.loads((target / "config.json").read_text())
    for name in ("bbox_format", "bbox_frame", "derived_fields"):
        del config[name]
    (target / "config.json").write_text(json.dumps(config, indent=2))
    boxes = np.fromfile(target / "bboxes.bin", np.float32).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    boxes.tofile(target / "bboxes.bin")
    (target / "masks.bin").write_bytes(bytes((target / "masks.bin").stat().st_size))


def damaged_tar(target: Path) -> None:
    """Three small samples, the second with a picture cut in half."""

    def cut(number: int, pair: dict[str, bytes]) -> dict[str, bytes]:
        return {n: v[: len(v) // 2] if number == 1 and n.endswith(".jpg") else v for n, v in pair.items()}

    make_sa1b_tar(target, 3, mutate=cut, **SMALL)


MATERIAL: dict[str, Callable[[Path], object]] = {
    "shard.tar": lambda path: make_sa1b_tar(path, 4),
    "more.tar": lambda path: make_sa1b_tar(path, 2, start=4),
    "small.tar": lambda path: make_sa1b_tar(path, 8, **SMALL),
    "bad.tar": damaged_tar,
    "original_set": original_set,
    "coco_small": write_coco_panoptic,
    "scenes_small": lambda path: write_scenes(path, {"scene001": 2, "scene002": 1}),
}
"""What the pages' commands are run on: a name in a page -> what makes it."""


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened = number, fence[1].strip()
        elif fence and opened is not None:
            language, _, info = opened[1].partition(" ")
            code = "\n".join(lines[opened[0] : number - 1]) + "\n"
            found.append(Block(page, opened[0] + 1, language, info.strip(), code))
            opened = None
    assert opened is None, f"{page}: a fence is not closed"
    return found


RUNNING = [page for page in PAGES if page != READMES[1] and any(block.runs for block in blocks_of(page))]
"""Pages with blocks to run. The second README has those of the first: `test_readmes_agree`."""


def headings_of(page: Path) -> list[str]:
    """The headings of a page, without those in blocks."""
    inside, found = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        if not inside and re.match(r"#+ ", line):
            found.append(line.lstrip("#").strip())
    return found


def anchor_of(heading: str) -> str:
    """The anchor that a heading gets on a page of rendered Markdown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def ids(page: Path) -> str:
    """The page's name in test ids."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=ids)
def test_every_block_has_a_language_and_runs_or_says_why_not(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block.where}: a fence of {block.language!r}; expected {LANGUAGES}"
        reason = block.info.removeprefix("no-run: ")
        assert not block.info or (reason != block.info and len(reason) > 10), f"{block.where}: {block.info!r}"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """Puts a file of `MATERIAL` into a folder; it is made once."""
    store = tmp_path_factory.mktemp("material")

    def put(name: str, folder: Path) -> None:
        if not (store / name).exists():
            MATERIAL[name](store / name)
        if (store / name).is_dir():
            shutil.copytree(store / name, folder / name)
            if (store / name).with_suffix(".tar").exists():  # what it was made from
                shutil.copy((store / name).with_suffix(".tar"), folder)
        else:
            shutil.copy(store / name, folder / name)

    return put


@pytest.mark.parametrize("page", RUNNING, ids=ids)
def test_every_block_runs(
    page: Path,
    material: Callable[[str, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "".join(block.code for block in blocks_of(page) if block.runs)
    for name in MATERIAL:
        if name in text:
            material(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("docs_page")  # a module, so that classes of a page can be pickled
    monkeypatch.setitem(sys.modules, "docs_page", module)
    for block in blocks_of(page):
        if not block.runs:
            continue
        if block.language == "bash":
            run_bash(block, tmp_path)
        else:
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            exec(code, module.__dict__)


def run_bash(block: Block, folder: Path) -> None:
    """Runs a block as a script that stops at the first command that fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{block.where}: exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "compat" / "README.md"], ids=ids)
def test_every_relative_link_resolves(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        known = [anchor_of(heading) for heading in headings_of(file)] if file.is_file() and file.suffix == ".md" else []
        if not file.exists() or (anchor and anchor not in known):
            broken.append(target)
    assert not broken


def test_every_error_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    classes = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert classes
    assert [name for name in classes if f"`{name}`" not in page] == []


def test_cli_page_is_fresh() -> None:
    render = runpy.run_path(str(ROOT / "scripts" / "cli_reference.py"))["render"]
    assert GENERATED.read_text(encoding="ascii") == render(), "run `make docs`"


def flags_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that `--help` of a command shows."""
    main([*command, "--help"])
    return set(FLAG.findall(capsys.readouterr().out)) - {"--help", "--version"}


@pytest.mark.parametrize("command", ["convert sa1b-tar", "info", "verify", "repair"])
def test_every_flag_is_in_the_cli_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(command.split(), capsys)
    assert flags
    section = GENERATED.read_text().partition(f"# penstock {command}\n")[2].partition("\n##")[0]
    assert sorted(flag for flag in flags if f"`{flag}" not in section and f", {flag}" not in section) == []


def test_distill_page_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "distill.md").read_text()
    flags = flags_of(["convert", "sa1b-tar"], capsys)
    negatives = {flag for flag in flags if flag.startswith("--empty-")}
    assert sorted(flag for flag in flags - negatives if f"`{flag}" not in page) == []


def test_refine_page_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "refine.md").read_text()
    assert sorted(flag for flag in flags_of(["refine"], capsys) if f"`{flag}" not in page) == []


def test_every_public_name_is_in_the_documents() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page != GENERATED)
    assert [name for name in penstock.__all__ if name not in text] == []


def test_every_field_of_v1_is_in_the_format_page() -> None:
    from penstock.store.v1_schema import V1_SCHEMA

    page = (ROOT / "docs" / "format.md").read_text()
    assert [name for name in V1_SCHEMA if name not in page] == []


def test_readmes_agree() -> None:
    english, chinese = READMES
    assert len(headings_of(english)) == len(headings_of(chinese))
    fences = [[(block.language, block.info, block.code) for block in blocks_of(page)] for page in READMES]
    assert fences[0] == fences[1]
    tables = [page.read_text(encoding="utf-8").count("\n|") for page in READMES]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("page", READMES, ids=ids)
def test_commands_of_the_readme_are_make_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "".join(block.code for block in blocks_of(page))))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.zh-CN.md"], ids=ids)
def test_page_is_ascii(page: Path) -> None:
    strange = [number for number, line in enumerate(page.read_text("utf-8").splitlines(), 1) if not line.isascii()]
    assert not strange


def test_a_reader_of_an_invented_layout_is_under_60_lines() -> None:
    (block,) = (one for one in blocks_of(ROOT / "docs" / "extending.md") if "(Reader):" in one.code)
    assert block.runs
    assert len(block.code.splitlines()) < 60
