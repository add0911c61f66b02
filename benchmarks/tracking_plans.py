"""Tracking plans a second over ten million frames of annotations, beside a sampler that parses them for every sample.

    python benchmarks/tracking_plans.py                    # about a minute, 1 GB of memory, 0.3 GB of disk
    python benchmarks/tracking_plans.py --sequences 1000   # smaller

A plan is what a sampler decides before any picture is read: source, sequence, template and search frames. The annotations
are made up: sequences of 1,000 frames, nine frames in ten visible in runs. penstock opens them from an index on disk, as its
readers do. The other sampler does what those of the trackers do for each sample: parse the text files of one LaSOT-like
sequence (1,000 boxes, two lists of flags; all in the page cache), list the visible frames in the range, choose; seed
000's sampler parses a second time for the history. Both on one core, in one run, in turn; the median of the rounds.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from penstock.readers.files import Files
from penstock.readers.tracks import Track, Tracks
from penstock.source import Problem
from penstock.track_tables import track_table
from penstock.tracking import Tracking

FRAMES = 1000
ROUNDS = 5
STEPS = 200_000
PARSED = 200
"""Sequences written as text files."""


class MadeUp(Tracks):
    """Sequences out of a generator, in the place of files."""

    name = "made-up"
    layout = "any folder"

    def __init__(self, root: Path, sequences: int) -> None:
        self.sequences = sequences
        super().__init__(root, options={"sequences": sequences})

    def fault(self, files: Files) -> str:
        """Nothing is wrong with any folder."""
        return ""

    def _stamps(self) -> list[object]:
        return []

    def _picture(self, folder: str, number: int) -> str:
        return f"{folder}/{number:08d}.jpg"

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        rng = np.random.default_rng(0)
        for number in range(self.sequences):
            yield Track(
                video=f"{number}",
                name=f"cat-{number}",
                category="cat",
                folder=f"cat/cat-{number}/img",
                numbers=np.arange(1, FRAMES + 1),
                boxes=boxes_of(rng),
                absent=absent_of(rng),
            )


class ParsingSampler:
    """Causal, one template and one search frame, as the trackers' samplers: everything from the files, each time."""

    def __init__(self, folders: list[Path], *, max_gap: int = 200, parses: int = 1) -> None:
        self.folders = folders
        self.max_gap = max_gap
        self.parses = parses

    def plan(self) -> tuple[Path, int, int]:
        """Sequence, template frame, search frame."""
        visible = np.zeros(0, bool)
        while visible.sum() <= 4 or len(visible) < 20:
            folder = random.choice(self.folders)
            for _ in range(self.parses):
                visible = parse(folder)
        grown = 0
        while True:
            base = random.choice([place for place in range(len(visible) - 1) if visible[place]])
            stop = min(base + self.max_gap + grown, len(visible))
            if members := [place for place in range(base + 1, stop) if visible[place]]:
                return folder, base, random.choice(members)
            grown += 5


def parse(folder: Path) -> np.ndarray:
    """(N,) bool: visible, from the three files of a sequence."""
    boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",", dtype=np.float32)
    hidden = [np.loadtxt(folder / name, delimiter=",") for name in ("full_occlusion.txt", "out_of_view.txt")]
    return (boxes[:, 2] > 0) & (boxes[:, 3] > 0) & (hidden[0] == 0) & (hidden[1] == 0)


def boxes_of(rng: np.random.Generator) -> np.ndarray:
    """A walk through 1280 x 720: (1000, 4) XYWH."""
    corner = np.abs(np.cumsum(rng.normal(0, 4, (FRAMES, 2)), axis=0)) % (1180, 620)
    return np.hstack([corner, rng.uniform(20, 100, (FRAMES, 2))]).round(2)


def absent_of(rng: np.random.Generator) -> np.ndarray:
    """(1000,) bool: hidden in five runs of 20 frames."""
    absent = np.zeros(FRAMES, bool)
    for start in rng.integers(0, FRAMES, 5):
        absent[start : start + 20] = True
    return absent


def write_texts(root: Path) -> list[Path]:
    """Folders of sequences as LaSOT has them, without pictures."""
    rng, folders = np.random.default_rng(0), []
    for number in range(PARSED):
        folder = root / f"cat-{number}"
        folder.mkdir()
        np.savetxt(folder / "groundtruth.txt", boxes_of(rng), delimiter=",", fmt="%.2f")
        (folder / "full_occlusion.txt").write_text(",".join(str(int(is_so)) for is_so in absent_of(rng)))
        (folder / "out_of_view.txt").write_text(",".join(["0"] * FRAMES))
        folders.append(folder)
    return folders


def seconds(work: object, *given: object) -> float:
    """Time of one call."""
    start = time.perf_counter()
    work(*given)  # type: ignore[operator]
    return time.perf_counter() - start


def with_histories(tracking: Tracking, start: int, stop: int) -> None:
    """Plans, and their histories, a chunk at a time as a loader would."""
    for first in range(start, stop, 1000):
        tracking.histories(tracking.draws(first, min(first + 1000, stop)))


def measured(tracking: Tracking, folders: list[Path]) -> dict[str, float]:
    """Plans a second of each way."""
    once, twice = ParsingSampler(folders), ParsingSampler(folders, parses=2)
    rates: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        steps = (number * STEPS, (number + 1) * STEPS)
        times = {
            "penstock, `draws` (plans in columns)": STEPS / seconds(tracking.draws, *steps),
            "penstock, `draws` and `histories` of 50 + 1 steps": STEPS / seconds(with_histories, tracking, *steps),
            "penstock, `draw(step)` one by one, with history": 1000
            / seconds(lambda: [*map(tracking.draw, range(1000))]),
            "parsing sampler": 300 / seconds(lambda: [once.plan() for _ in range(300)]),
            "parsing sampler, parsed again for the history": 150 / seconds(lambda: [twice.plan() for _ in range(150)]),
        }
        for name, rate in times.items():
            rates.setdefault(name, []).append(rate)
    return {name: median(found) for name, found in rates.items()}


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description="tracking plans a second")
    parser.add_argument("--sequences", type=int, default=10_000, help="of 1,000 frames each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["PENSTOCK_CACHE_DIR"] = str(root / "cache")
        built = seconds(MadeUp, root, options.sequences)
        start = time.perf_counter()
        source = MadeUp(root, options.sequences)
        table = track_table(source)
        tracking = Tracking([table])
        opened = time.perf_counter() - start
        (root / "texts").mkdir()
        rates = measured(tracking, write_texts(root / "texts"))
        index = next((root / "cache" / "index").glob("*.idx")).stat().st_size
        frames = len(source)
    slowest = rates["parsing sampler"]
    print(f"{frames:,} frames in {options.sequences:,} sequences\n")
    print("| sampler | plans/s | times the parsing sampler |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / slowest:,.1f} |")
    print("\n| what | figure |\n| --- | --- |")
    print(f"| index built from tracks in memory, once | {built:.1f} s |")
    print(f"| opened from the index, sampler ready | {opened:.2f} s |")
    print(f"| index on disk, mapped | {index / frames:.1f} bytes a frame |")
    print(
        f"| visible and valid of the table | {(table.visible.nbytes + table.valid.nbytes) / frames:.1f} bytes a frame |"
    )
    print(f"| sampler beside the table | {tracking.nbytes / frames:.1f} bytes a frame |")


if __name__ == "__main__":
    main()
