"""From a tracking dataset to saved sequences and their report. Run: python examples/02_sequence.py [FOLDER]"""

import sys
import tempfile
from pathlib import Path

from penstock import open_source
from penstock.cli import main
from penstock.saved import Saved

SEQUENCES = 12


def run(folder: Path) -> None:
    """Samples of a real video, saved twice the same, checked, reported, read back."""
    tracks, output = Path(__file__).parent / "tracks", folder / "sequences"
    source = open_source(f"lasot:{tracks}")
    print(
        f"1. {len(source)} real frames of {tracks.name}, {int(source.column('visible').sum())} of them with the target"
    )

    print("2. penstock sequence save, verify, sequence report")
    save = f"sequence save --num-sequences {SEQUENCES} --max-gap 10 --min-interval 8 --future-steps 4 --pictures both"
    more = ["--image-format", "png", "--seed", "1", "--timestamp", "20260101_000000", "--quiet"]
    steps = [
        [*save.split(), *more, "--source", f"lasot:{tracks}", "--output", str(output)],
        ["verify", str(output), "--quiet"],
        ["sequence", "report", str(output)],
    ]
    for step in steps:
        code = main(step)
        if code:
            sys.exit(code)

    saved = Saved(output)
    record = saved[0]
    shapes = ", ".join(f"{name} {record[name].shape}" for name in ("template_images", "search_images", "search_anno"))
    print(f"3. Saved(...)[0] is what the sampler drew: {shapes}")
    print(f"Look at {output / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        target.mkdir(parents=True, exist_ok=True)
        run(target)
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name))
