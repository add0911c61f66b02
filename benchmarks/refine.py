"""How long does the host take to refine one frame, the model left out? And beside it the original's loops over pairs.

    python benchmarks/refine.py
    python benchmarks/refine.py --objects 64 --proposals 150 --repeats 20 --seed-repeats 1 --json result.json

A drawn picture of 1440 x 1080, its true map, a coarse map (shifted, stair-steps, holes, an unlabelled region), and proposals
as crops: most objects as one mask, the larger ones in pieces, some masks that belong to nobody. One thread; warm calls;
freed memory is kept, as in a worker (`penstock.refining.frame.keep_memory`).
On a busy machine compare the times of the processor.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from refine_seed import pair_loops

from penstock.readers.pth import save_id_map
from penstock.refining import frame as whole
from penstock.refining.decide import paint, repaint, unions, without_proposal
from penstock.refining.gate import gate
from penstock.refining.labels import parse
from penstock.refining.matching import assign
from penstock.refining.proposals import from_masks
from penstock.refining.residual import explain, fill_gaps, restore, segment_majority, survive
from penstock.refining.seed_passes import assign_seed
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import histogram, trust
from penstock.refining.types import Frame, Proposals

SIZE_HW = (1080, 1440)
T = TypeVar("T")


def true_map(objects: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) int64: cells around random points with wavy sides, some ten times as large as others."""
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]].astype(np.float32)
    wave = 12 * np.sin(columns / 37) + 12 * np.cos(rows / 29)
    best, labels = np.full(SIZE_HW, np.inf, np.float32), np.zeros(SIZE_HW, np.int64)
    for number in range(1, objects + 1):
        row, column, weight = rng.uniform(0, SIZE_HW[0]), rng.uniform(0, SIZE_HW[1]), rng.uniform(0.4, 1.6)
        distance = np.hypot(rows - row + wave, columns - column - wave) * weight
        labels[distance < best] = 7 * number
        np.minimum(best, distance, out=best)
    return labels


def picture(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: a colour per object, blurred a little, with noise."""
    colours = rng.integers(20, 235, (int(labels.max()) + 1, 3))
    smooth = cv2.GaussianBlur(colours[labels].astype(np.float32), (0, 0), 1)
    noisy: np.ndarray = (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    return noisy


def spoiled(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) int64: shifted by 4 pixels, steps of 4, 60 holes, one region without labels."""
    coarse = np.roll(labels, (3, -4), (0, 1))[::4, ::4].repeat(4, 0).repeat(4, 1)
    for _ in range(60):
        row, column = rng.integers(0, SIZE_HW[0] - 40), rng.integers(0, SIZE_HW[1] - 40)
        coarse[row : row + rng.integers(4, 40), column : column + rng.integers(4, 40)] = 0
    coarse[:200, :240] = 0
    return coarse


def drawn_proposals(labels: np.ndarray, count: int, rng: np.random.Generator) -> Proposals:
    """Every object of the truth, the largest in pieces; then discs that belong to nobody, up to `count`."""
    numbers, areas = np.unique(labels, return_counts=True)
    masks: list[np.ndarray] = []
    columns = np.arange(SIZE_HW[1])
    pieces = {int(number): 4 for number in numbers[np.argsort(-areas)][: (count - len(numbers)) // 5]}
    for number in numbers.tolist():
        mask = labels == number
        cuts = np.quantile(columns[mask.any(axis=0)], np.linspace(0, 1, pieces.get(number, 1) + 1))
        for left, right in pairwise(cuts):
            masks.append(mask & (columns >= left) & (columns <= right))
    rows = np.arange(SIZE_HW[0])[:, None]
    while len(masks) < count:
        row, column, radius = rng.uniform(0, SIZE_HW[0]), rng.uniform(0, SIZE_HW[1]), rng.uniform(20, 120)
        masks.append((rows - row) ** 2 + (columns - column) ** 2 < radius**2)
    return from_masks(SIZE_HW, masks[:count], scores=rng.uniform(0.7, 1, count), stability=rng.uniform(0.6, 1, count))


def clocks() -> np.ndarray:
    """Milliseconds: time, and processor time of this thread."""
    return 1e3 * np.array([time.perf_counter(), time.thread_time()])


def steps(ids: np.ndarray, image: np.ndarray, proposals: Proposals, settings: RefineSettings) -> dict[str, np.ndarray]:
    """Milliseconds of each step of one frame, elapsed and of the processor, from the id map to the bytes of its file; the
    steps of `decide_frame`."""
    times: dict[str, np.ndarray] = {}

    def timed(name: str, call: Callable[[], T]) -> T:
        begin = clocks()
        found = call()
        times[name] = times.get(name, np.zeros(2)) + clocks() - begin
        return found

    objects = timed("parse", lambda: parse(ids))
    zones = timed("trust", lambda: trust(objects, settings))
    assignment = timed("contingency, assign", lambda: assign(objects, proposals, settings, zones=zones))
    claims = timed("paint", lambda: unions(assignment))
    coarse = without_proposal(assignment)
    labels = timed("paint", lambda: paint(objects, claims, zones, coarse))
    decided = timed("gate", lambda: gate(image, (objects, zones), assignment, labels, settings))
    kept = ~decided.accepted
    if (kept & ~coarse).any():
        timed("gate", lambda: repaint(objects, claims, zones, (coarse, kept), labels))
    given = {
        "restored": timed("residual", lambda: restore(zones, labels)),
        "segment": timed("residual", lambda: segment_majority(assignment, labels, settings)),
        "nearest": timed("residual", lambda: fill_gaps(labels, settings)),
    }
    areas = timed("residual", lambda: histogram(labels, len(objects))[1:])
    timed("residual", lambda: survive((objects, zones), labels, areas, settings))
    timed("reasons, confidence", lambda: explain((objects, zones), labels, assignment.how, kept, given))
    refined = timed("ids", lambda: whole.ids_of(objects, labels))
    timed("write", lambda: save_id_map(refined, "uint16"))
    times["sum"] = np.sum([*times.values()], axis=0)
    return times


def beside_the_seed(frame: Frame, proposals: Proposals, repeats: int, ours: float) -> dict[str, object]:
    """The original's loops over pairs of full masks, as it runs them for each frame, beside `ours` and beside the same five
    passes by counts; whether the two assign the same."""
    objects, (height, width) = frame.objects, frame.objects.size_hw
    masks = [np.zeros((height, width), bool) for _ in proposals.masks]
    for whole_mask, (x, y, across, down), mask in zip(masks, proposals.boxes.tolist(), proposals.masks, strict=True):
        whole_mask[y : y + down, x : x + across] = mask
    settings = RefineSettings(profile="seed", matcher="overlap")
    loops, passes = [], []
    for _ in range(repeats):
        begin = clocks()
        matches = pair_loops(whole.ids_of(objects, objects.labels), masks, settings.iou_threshold)
        loops.append(float((clocks() - begin)[1]))
        begin = clocks()
        assignment = assign_seed(objects, proposals, settings)
        passes.append(float((clocks() - begin)[1]))
    expected = [[*np.flatnonzero(assignment.numbers == number)] for number in range(1, len(objects) + 1)]
    is_same = expected == [sorted(matches[int(one)].masks) for one in objects.ids]
    print(
        f"\nthe original's pair loops, matching alone: {min(loops):,.0f} ms of the processor, {min(loops) / ours:,.0f} x the sum"
    )
    print(f"the same passes by counts: {min(passes):.1f} ms; same assignment: {'yes' if is_same else 'NO'}")
    return {"pair loops": loops, "seed passes": passes, "same": is_same}


def main() -> None:
    """Draws the frame, times every step, then the original's loops in the same process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--proposals", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed-repeats", type=int, default=1, help="0 leaves the original's loops out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    whole.keep_memory()
    rng = np.random.default_rng(0)
    truth = true_map(options.objects, rng)
    image, ids = picture(truth, rng), spoiled(truth, rng)
    proposals = drawn_proposals(truth, options.proposals, rng)
    settings = RefineSettings(matcher="overlap")
    frame = Frame(key="drawn/frame", image=image, objects=parse(ids))
    refined = whole.decide_frame(frame, proposals, settings)
    before, after = (float((one == truth).mean()) for one in (ids, refined.ids))
    print(f"{SIZE_HW[1]} x {SIZE_HW[0]}, {len(frame.objects)} ids, {len(proposals)} proposals: {refined.counts}")
    print(f"pixels as in the truth: {before:.4f} before, {after:.4f} after\n")
    runs = [steps(ids, image, proposals, settings) for _ in range(options.repeats + 1)][1:]
    rows = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    print("| step | median ms | least ms | least ms of the processor |\n| --- | --- | --- | --- |")
    for name, values in rows.items():
        print(f"| {name} | {np.median(values[:, 0]):.2f} | {values[:, 0].min():.2f} | {values[:, 1].min():.2f} |")
    result: dict[str, object] = {name: values.tolist() for name, values in rows.items()}
    if options.seed_repeats:
        result |= beside_the_seed(frame, proposals, options.seed_repeats, float(rows["sum"][:, 1].min()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
