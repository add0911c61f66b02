"""The mixed loader: what a position of the plan costs, saving and resuming at 10^9 samples, bad rows.

    python benchmarks/mix.py                 # about two minutes
    python benchmarks/mix.py --rounds 3      # shorter

One core plans; two threads load. Each figure is the median of the rounds. For the cost of bad rows a mixture of pictures in
JPEG files (`--side`) is loaded whole, clean and with one file in a hundred cut in half, in turn; what is given is the ratio
within a round, by the clock, and by the processor's time, which other programs of the machine disturb less. Files lie in a
temporary folder, in the page cache.
"""

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from penstock.geometry.images import decode_picture, encode_jpeg
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.readers.fields import IMAGE, MASK
from penstock.samplers import Mix, Part
from penstock.schema import Record, Schema
from penstock.source import Lookup

BILLION = 10**9
FILES = 1200


class Blank:
    """A billion rows that are one picture: nothing but the loader itself costs anything."""

    schema = Schema([IMAGE, MASK])

    def __init__(self, rows: int) -> None:
        self.keys: Sequence[str] = Lookup(rows, lambda row: f"row{row}")
        self.image, self.mask = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.image, "mask": self.mask}

    def digest(self) -> str:
        """Of nothing."""
        return "blank"


class Pictures:
    """JPEG files with a mask each."""

    schema = Schema([IMAGE, MASK])

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.paths, self.keys = paths, [path.name for path in paths]
        self.mask = np.zeros((side, side), np.uint8)
        self.mask[side // 4 : side // 2, side // 4 : side // 2] = 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        return {"image": decode_picture(self.paths[index].read_bytes()), "mask": self.mask}

    def digest(self) -> str:
        """Of the names."""
        return str(len(self.paths))


def plan_microseconds(mixture: Mix, start: int, count: int) -> float:
    """Per position, in order."""
    begin = time.perf_counter()
    for first in range(start, start + count, 16_384):
        mixture.draw(first, first + 16_384)
    return (time.perf_counter() - begin) / count * 1e6


def dual_loop(scale: int) -> list[Part]:
    """The four datasets of the dual loop, so many times larger."""
    sizes = {"sav": 735_577, "sa1b": 51_328, "refcoco": 16_994, "openimages": 2_686_666}
    return [Part(name=name, num_rows=rows * scale) for name, rows in sizes.items()]


def plans(rounds: int) -> list[tuple[str, str]]:
    """Cost of the plan, and its memory."""
    lines = []
    billion = [Part(name=f"s{n}", num_rows=BILLION // 4, weight=n + 1) for n in range(4)]
    for title, mixture in (
        ("plan, the dual loop's 3,490,565 samples concatenated", Mix(dual_loop(1))),
        ("plan, 10^9 samples concatenated", Mix(dual_loop(287))),
        ("plan, 10^9 samples, weights 1:2:3:4", Mix(billion)),
    ):
        cost = median(plan_microseconds(mixture, mixture.num_rows // 2 + n * 10**6, 49 * 16_384) for n in range(rounds))
        lines.append((title, f"{cost:.2f} us a position"))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    mixture = Mix(dual_loop(287))
    mixture.draw(BILLION // 2, BILLION // 2 + 64)
    lines.append(("memory of that plan", f"{(tracemalloc.get_traced_memory()[0] - before) / 1e6:.1f} MB"))
    tracemalloc.stop()
    return lines


def resumes(rounds: int) -> list[tuple[str, str]]:
    """State, and the first batch at 10^9 samples."""
    mixed = Mixed(
        [MixPart(name=name, source=Blank(BILLION // 4)) for name in ("sav", "sa1b", "refcoco", "openimages")],
        views=Views(size=8),
    )
    first, saved = [], []
    state = {**MixLoader(mixed, batch_size=64).state_dict(), "next_position": 64 * 12_345_678}
    for _ in range(rounds):
        fresh = Mixed(mixed.parts, views=Views(size=8))
        begin = time.perf_counter()
        loader = MixLoader(fresh, batch_size=64)
        loader.load_state_dict(state)
        next(iter(loader))
        first.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        loader.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        saved.append(time.perf_counter() - begin)
    return [
        ("state of 4 sources, as JSON", f"{len(json.dumps(state))} bytes"),
        ("state saved and loaded", f"{median(saved) * 1e3:.2f} ms"),
        ("first batch of 64 after a resume at position 790,123,392 of 10^9", f"{median(first) * 1e3:.0f} ms"),
    ]


def cost(paths: Sequence[Path], side: int) -> tuple[float, float]:
    """Seconds of a sample over one epoch: by the clock, and of the processor over all threads."""
    loader = MixLoader(
        Mixed([MixPart(name="pictures", source=Pictures(paths, side))], views=Views(size=side)), batch_size=16, threads=2,
        budget=None,
    )  # fmt: skip
    feed = iter(loader)
    next(feed)
    begin = np.array([time.perf_counter(), time.process_time()])
    steps = sum(1 for _ in feed)
    clock, processor = (np.array([time.perf_counter(), time.process_time()]) - begin) / (steps * 16)
    return float(clock), float(processor)


def substitution(rounds: int, side: int) -> list[tuple[str, str]]:
    """What one bad file in a hundred costs."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        clean, damaged = [], []
        for number in range(FILES):
            noise = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            content = encode_jpeg(noise, quality=90)
            clean.append(Path(folder) / f"{number}.jpg")
            clean[-1].write_bytes(content)
            damaged.append(clean[-1])
            if number % 100 == 50:
                damaged[-1] = Path(folder) / f"{number}-cut.jpg"
                damaged[-1].write_bytes(content[: len(content) // 2])
        cost(clean, side)
        ratios, clocks = [], []
        for number in range(2 * rounds):
            order = (clean, damaged) if number % 2 else (damaged, clean)
            found = {id(paths): cost(paths, side) for paths in order}
            ratios.append(np.array(found[id(clean)]) / found[id(damaged)])
            clocks.append(found[id(clean)][0])
    wall, processor = (float(one) - 1 for one in np.median(ratios, axis=0))
    return [
        (f"{side} x {side} JPEG files, 2 threads", f"{1 / median(clocks):.0f} samples/s"),
        ("1 % of them cut in half: samples a second against none", f"{wall:+.1%}"),
        ("the same, a second of the processor", f"{processor:+.1%}"),
    ]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=512, help="pixels of the pictures")
    options = parser.parse_args()
    print("| what | figure |\n| --- | --- |")
    for measure in (plans, resumes, lambda rounds: substitution(rounds, options.side)):
        for title, figure in measure(options.rounds):
            print(f"| {title} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
