"""The mixed loader: what a position of the plan costs, saving and resuming at 10^9 samples, bad rows.

    python benchmarks/mix.py                                # about three minutes
    python benchmarks/mix.py --rounds 3 --samples 1000      # shorter

One core plans and loads. Each figure is the median of the rounds. For the cost of bad rows a mixture of JPEG files (`--side`)
is loaded sample by sample beside one with bad rows: one file in a hundred cut in half, the same known from a list, and one
mask in a hundred empty, which is found once the picture is decoded. Both take the same positions, one right after the other,
so that other programs of the machine slow them alike; what is given is the median of the ratios and its 95 % interval, apart
for samples with a bad row and without. Files lie in a temporary folder, in the page cache.
"""

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

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
FILES = 300


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
    """JPEG files with a mask each; that of some rows is empty."""

    schema = Schema([IMAGE, MASK])

    def __init__(self, paths: Sequence[Path], side: int, *, empty: Sequence[int] = ()) -> None:
        self.paths, self.side, self.empty, self.keys = paths, side, empty, [path.name for path in paths]
        self.mask = np.zeros((side, side), np.uint8)
        self.mask[side // 4 : side // 2, side // 4 : side // 2] = 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        image = decode_picture(self.paths[index].read_bytes())
        return {"image": image, "mask": np.zeros_like(self.mask) if index in self.empty else self.mask}

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


def one_by_one(source: Pictures, quarantine: Path | None = None) -> Iterator[Mapping[str, Any]]:
    """Batches of one sample, each made when it is asked for."""
    mixed = Mixed([MixPart(name="pictures", source=source)], views=Views(size=source.side))
    return iter(MixLoader(mixed, batch_size=1, threads=1, prefetch=1, epochs=None, budget=None, quarantine=quarantine))


def paired(samples: int, sound: Pictures, faulty: Pictures, quarantine: Path) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a faulty source against those of a sound one at the same position, taken one right after the other.

    Returns:
        (N, 2) time taken by the faulty one per time by the sound one, by the clock and of the processor; (N,) whether a
        row was bad.
    """
    feeds = one_by_one(sound), one_by_one(faulty, quarantine)
    ratios, is_bad = np.empty((samples, 2)), np.empty(samples, bool)
    for number in range(-20, samples):  # the first ones warm memory
        taken = np.empty((2, 2))
        for place in (0, 1) if number % 2 else (1, 0):
            begin = np.array([time.perf_counter(), time.process_time()])
            batch = next(feeds[place])
            taken[place] = np.array([time.perf_counter(), time.process_time()]) - begin
            if place and number >= 0:
                is_bad[number] = int(batch["attempt"][0]) > 0
        if number >= 0:
            ratios[number] = taken[1] / taken[0]
    return ratios, is_bad


def spread(ratios: np.ndarray) -> np.ndarray:
    """(3,) median of some ratios, less one, and the ends of its 95 % interval, by their ranks."""
    ranked = np.sort(ratios) - 1
    low = max(0, int((len(ranked) - 1.96 * len(ranked) ** 0.5) / 2))
    return np.array([np.median(ranked), ranked[low], ranked[-1 - low]])


def percent(figure: np.ndarray, digits: int = 1) -> str:
    """What `spread` gives, as text."""
    middle, low, high = (f"{one:+.{digits}%}" for one in figure.tolist())
    return f"{middle} ({low} .. {high})"


def substitution(samples: int, side: int) -> list[tuple[str, str]]:
    """What one bad file in a hundred costs."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        clean, cut = [], []
        for number in range(FILES):
            noise = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            content = encode_jpeg(noise, quality=90)
            clean.append(Path(folder) / f"{number}.jpg")
            clean[-1].write_bytes(content)
            cut.append(clean[-1])
            if number % 100 == 50:
                cut[-1] = Path(folder) / f"{number}-cut.jpg"
                cut[-1].write_bytes(content[: len(content) // 2])
        sound, empty = Pictures(clean, side), Pictures(clean, side, empty=range(50, FILES, 100))
        lines = []
        for title, faulty, known in (
            ("cut in half", Pictures(cut, side), "a"),
            ("cut in half, known from the run before", Pictures(cut, side), "a"),
            ("with an empty mask", empty, "b"),
        ):
            ratios, is_bad = paired(samples, sound, faulty, Path(folder) / known)
            for number, clock in enumerate(("by the clock", "of the processor")):
                bad, good = spread(ratios[is_bad, number]), spread(ratios[~is_bad, number])
                lines += [
                    (f"{title}: time of the {is_bad.sum()} samples with a bad row, {clock}", percent(bad)),
                    (f"the same of the other {(~is_bad).sum()} samples", percent(good)),
                    (f"so {is_bad.mean():.2%} bad rows cost", percent(is_bad.mean() * bad, digits=2)),
                ]
    return lines


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=6000, help="pairs of each kind, for the cost of bad rows")
    parser.add_argument("--side", type=int, default=512, help="pixels of the pictures")
    options = parser.parse_args()
    if options.samples < FILES:
        parser.error(f"--samples: expected {FILES}, an epoch, or more, got {options.samples}")
    print("| what | figure |\n| --- | --- |")
    for measure in (plans, resumes, lambda _: substitution(options.samples, options.side)):
        for title, figure in measure(options.rounds):
            print(f"| {title} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
