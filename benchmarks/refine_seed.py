"""The original's matching of id maps and masks, written plainly: a loop over all pairs of frames. What is it compared with
`penstock.refining.seed_passes`, which gives the same assignment?

    OMP_NUM_THREADS=1 python benchmarks/refine_seed.py
    OMP_NUM_THREADS=1 python benchmarks/refine_seed.py --size 1080x1440 --objects 64 --masks 150 --repeats 3

Passes and thresholds are the original's. Two things are as in penstock, so that results can be compared: boundaries are
sampled at an even stride and not at random, and no mask is used twice.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, field

import numpy as np

from penstock.refining.labels import parse
from penstock.refining.overlap import contingency
from penstock.refining.proposals import from_masks
from penstock.refining.seed_passes import assign_seed
from penstock.refining.settings import RefineSettings


@dataclass
class Match:
    """How one id found its mask."""

    masks: list[int] = field(default_factory=list)
    """Rows of the masks that make it up; none for a fallback."""
    low: bool = False
    merged: bool = False


def iou_of(left: np.ndarray, right: np.ndarray) -> float:
    """Of two (H, W) bool masks."""
    shared = int(np.logical_and(left, right).sum())
    return shared / int(np.logical_or(left, right).sum())


def cover_of(mask: np.ndarray, target: np.ndarray) -> float:
    """Share of the target that the mask covers; (H, W) bool both."""
    return int(np.logical_and(mask, target).sum()) / int(target.sum())


def boundary_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of pixels with one of the four neighbours outside the (H, W) bool mask, in reading order."""
    found = []
    for row, column in np.argwhere(mask).tolist():
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]) or not mask[y, x]:
                found.append((row, column))
                break
    return found


def adjacency_of(fragment: np.ndarray, mask: np.ndarray) -> float:
    """1 where the two (H, W) bool masks touch, 0 from a mean distance of 5 pixels on."""
    pixels, targets = boundary_of(fragment), boundary_of(mask)
    sampled = pixels[:: math.ceil(len(pixels) / 100)]
    nearest = [math.sqrt(min((y - v) ** 2 + (x - u) ** 2 for v, u in targets)) for y, x in sampled]
    return max(0.0, 1.0 - float(np.mean(nearest)) / 5.0)


def pair_loops(ids: np.ndarray, masks: list[np.ndarray], threshold: float = 0.3) -> dict[int, Match]:
    """Matches masks to ids in five passes.

    Args:
        ids: (H, W) whole numbers, those above 0 valid.
        masks: (H, W) bool each, none empty.
        threshold: T of the passes.

    Returns:
        A match for each valid id.
    """
    targets = {int(one): ids == one for one in np.unique(ids) if one > 0}
    matches = {one: Match() for one in targets}
    used: set[int] = set()
    iou = {(row, one): iou_of(mask, target) for row, mask in enumerate(masks) for one, target in targets.items()}
    cover = {(row, one): cover_of(mask, target) for row, mask in enumerate(masks) for one, target in targets.items()}

    pairs = sorted((-value, one, row) for (row, one), value in iou.items() if value >= threshold and value > 0)
    for _, one, row in pairs:
        if row not in used and not matches[one].masks:
            matches[one].masks.append(row)
            used.add(row)

    for one in targets:
        if not matches[one].masks:
            best, best_score = None, -1.0
            for row in range(len(masks)):
                score = 0.6 * iou[row, one] + 0.4 * cover[row, one]
                fits = iou[row, one] >= max(0.1, 0.3 * threshold) and cover[row, one] >= 0.3
                if row not in used and fits and score > best_score:
                    best, best_score = row, score
            if best is not None:
                matches[one] = Match([best], low=True)
                used.add(best)

    for one in targets:
        if not matches[one].masks:
            best, best_cover = None, 0.0
            for row in range(len(masks)):
                if row not in used and iou[row, one] > 0.05 and cover[row, one] > best_cover:
                    best, best_cover = row, cover[row, one]
            if best is not None and best_cover >= 0.2:
                matches[one] = Match([best], low=True)
                used.add(best)

    for one, target in targets.items():
        if not matches[one].masks:
            free = [row for row in range(len(masks)) if row not in used and iou[row, one] > 0.01]
            free.sort(key=lambda row: -cover[row, one])
            windows = [free[start : start + size] for size in (2, 3, 4) for start in range(len(free) - size + 1)]
            unions = [
                (iou_of(np.logical_or.reduce([masks[row] for row in window]), target), window) for window in windows
            ]
            nothing: tuple[float, list[int]] = (0.0, [])
            value, window = max(unions, key=lambda fit: fit[0], default=nothing)
            if window and value >= max(0.2, 0.5 * threshold):
                matches[one] = Match(window, merged=True)
                used.update(window)

    for one, target in targets.items():
        match = matches[one]
        if match.masks:
            free = [row for row in range(len(masks)) if row not in used and iou[row, one] > 0.05]
            union = np.logical_or.reduce([masks[row] for row in match.masks])
            rank = {row: 0.7 * iou[row, one] + 0.3 * adjacency_of(masks[row], union) for row in free}
            for row in sorted(free, key=lambda row: -rank[row]):
                joined = np.logical_or(union, masks[row])
                if iou_of(joined, target) > iou_of(union, target) + 0.01:
                    union = joined
                    match.masks.append(row)
                    match.merged = True
                    used.add(row)
    return matches


def cells(rng: np.random.Generator, size_hw: tuple[int, int], count: int) -> np.ndarray:
    """(H, W) int64 ids 1..count: the cell of the nearest of random points, with a rough boundary."""
    height, width = size_hw
    ys, xs = rng.integers(0, height, count), rng.integers(0, width, count)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    rows += 6 * np.sin(columns / 11)
    columns += 6 * np.sin(rows / 13)
    nearest, ids = np.full(size_hw, np.inf, np.float32), np.zeros(size_hw, np.int64)
    for number, (y, x) in enumerate(zip(ys, xs, strict=True), 1):
        distance = np.hypot(rows - y, columns - x)
        ids[distance < nearest] = number
        np.minimum(nearest, distance, out=nearest)
    return ids


def made_frame(size_hw: tuple[int, int], objects: int, masks: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """An id map, and masks of three grains as a model of segments would give: objects a few pixels off, larger and smaller
    things that cross them."""
    rng = np.random.default_rng(seed)
    ids = cells(rng, size_hw, objects)
    exact = np.roll(ids, (3, 4), (0, 1))
    found = [exact == one for one in range(1, objects + 1)]
    for count in (max(2, objects // 3), masks):
        grain = cells(rng, size_hw, count)
        found += [grain == one for one in range(1, count + 1)]
    return ids, [mask for mask in found if mask.any()][:masks]


def main() -> None:
    """Prints seconds of both, and whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1080x1440", help="height x width")
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--masks", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=20, help="of penstock's; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    ids, masks = made_frame((height, width), options.objects, options.masks, options.seed)

    start = time.perf_counter()
    plain = pair_loops(ids, masks)
    plain_s = time.perf_counter() - start
    proposals = from_masks((height, width), masks)
    times: dict[str, list[float]] = {"parse": [], "contingency": [], "assign_seed": []}
    for _ in range(options.repeats):
        marks = [time.perf_counter()]
        objects = parse(ids)
        marks.append(time.perf_counter())
        contingency(objects, proposals)
        marks.append(time.perf_counter())
        assignment = assign_seed(objects, proposals, RefineSettings(matcher="overlap", profile="seed"))
        marks.append(time.perf_counter())
        for name, begin, end in zip(times, marks, marks[1:], strict=False):
            times[name].append(end - begin)
    rows = {one: np.flatnonzero(assignment.numbers == number) for number, one in enumerate(objects.ids.tolist(), 1)}
    ms = {name: 1000 * float(np.median(values)) for name, values in times.items()}
    print(json.dumps({
        "size": options.size, "objects": len(objects), "masks": len(proposals),
        "pixels in boxes, in frames": round(float(proposals.boxes[:, 2:].astype(float).prod(1).sum() / ids.size), 2),
        "pair loops, s": round(plain_s, 3), "penstock, ms": {name: round(value, 2) for name, value in ms.items()},
        "times faster": round(1000 * plain_s / (ms["parse"] + ms["assign_seed"]), 1),
        "same assignment": all(sorted(match.masks) == rows[one].tolist() for one, match in plain.items()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
