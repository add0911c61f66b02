"""The original's five passes of greedy matching, by one table of overlaps instead of loops over pairs of frames."""

import numpy as np

from penstock.refining.overlap import contingency, label_counts
from penstock.refining.proposals import taken
from penstock.refining.settings import RefineSettings
from penstock.refining.types import LOW, MATCHED, MERGED, Assignment, Objects, Proposals

SAMPLES = 100
"""Boundary pixels of a fragment, at an even stride, whose distance tells how near it lies."""

REACH = 5.0
"""Pixels at which a fragment counts as not adjacent any more."""

_Pixels = tuple[int, int, np.ndarray]
"""Left, top and (h, w) bool of a mask within a box."""


def assign_seed(objects: Objects, proposals: Proposals, settings: RefineSettings) -> Assignment:
    """Gives proposals to objects as the original did; T is `settings.iou_threshold`, cover the share of the object covered.

    1. All pairs of an IoU of at least T, the highest first.
    2. Each object left takes the best 0.6 IoU + 0.4 cover with IoU >= max(0.1, 0.3 T) and cover >= 0.3: a poor fit.
    3. Each object left takes, with IoU > 0.05, the largest cover, if that is at least 0.2: a poor fit.
    4. Each object left: of the proposals with IoU > 0.01, at least two, in order of cover, neighbours of 2, 3 or 4 in that
       order whose union has the best IoU, if that is at least max(0.2, 0.5 T): merged.
    5. Each object that has a mask: other proposals with IoU > 0.05, in order of 0.7 IoU + 0.3 adjacency, are joined to it if
       that raises the IoU of the union by more than 0.01: merged. Adjacency is 1 - d / `REACH`, at least 0; d is the mean
       distance from boundary pixels of the fragment to the nearest one of the mask before this pass.

    Objects go in order of their numbers, ties to the lower number, then to the earlier proposal. Two things differ: no
    proposal is used twice, in any pass (the original could merge one fragment into two objects in pass 5), and boundaries are
    sampled at an even stride, not at random. Ids that were prompted for play no part. Nothing is cut.

    Args:
        objects: K.
        proposals: N, of a frame of the same size.
        settings: `iou_threshold`.

    Returns:
        The proposals as they are, and whose they are. `how`: MATCHED, with LOW from passes 2 and 3, with MERGED from 4 and
        5; FALLBACK for what no pass gave a mask.

    Raises:
        BadData: proposals of a frame of another size.
    """
    passes = _Passes(objects, proposals, settings.iou_threshold)
    passes.best_pairs()
    for number in passes.unmatched():
        passes.good_cover(number)
    for number in passes.unmatched():
        passes.any_cover(number)
    for number in passes.unmatched():
        passes.merge(number)
    missing = passes.missing_pixels()
    for number in range(1, len(objects) + 1):
        passes.absorb(number, missing[:, number])
    return Assignment(proposals=proposals, numbers=passes.numbers, how=passes.how)


class _Passes:
    """What is given to whom so far. `number` is that of an object; a proposal is free while its number is 0."""

    def __init__(self, objects: Objects, proposals: Proposals, threshold: float) -> None:
        table = contingency(objects, proposals)
        self.objects, self.proposals, self.threshold = objects, proposals, threshold
        shared = table[:, 1:]
        self.iou = shared / (table.sum(axis=1)[:, None] + objects.areas - shared)
        self.cover = shared / objects.areas
        self.numbers = np.zeros(len(proposals), np.int32)
        self.how = np.zeros(len(objects), np.uint8)

    def unmatched(self) -> list[int]:
        """Numbers of the objects that have nothing."""
        return [int(place) + 1 for place in np.flatnonzero(self.how == 0)]

    def best_pairs(self) -> None:
        """Pass 1."""
        rows, places = np.nonzero((self.iou >= self.threshold) & (self.iou > 0))
        for at in np.lexsort((rows, places, -self.iou[rows, places])):
            if not self.numbers[rows[at]] and not self.how[places[at]]:
                self._give([int(rows[at])], int(places[at]) + 1, MATCHED)

    def good_cover(self, number: int) -> None:
        """Pass 2."""
        iou, cover = self.iou[:, number - 1], self.cover[:, number - 1]
        fits = (self.numbers == 0) & (iou >= max(0.1, 0.3 * self.threshold)) & (cover >= 0.3)
        if fits.any():
            self._give([int(np.where(fits, 0.6 * iou + 0.4 * cover, -1).argmax())], number, MATCHED | LOW)

    def any_cover(self, number: int) -> None:
        """Pass 3."""
        cover = np.where((self.numbers == 0) & (self.iou[:, number - 1] > 0.05), self.cover[:, number - 1], 0)
        if len(cover) and cover.max() >= 0.2:
            self._give([int(cover.argmax())], number, MATCHED | LOW)

    def merge(self, number: int) -> None:
        """Pass 4."""
        free = np.flatnonzero((self.numbers == 0) & (self.iou[:, number - 1] > 0.01))
        order = free[np.argsort(-self.cover[free, number - 1], kind="stable")].tolist()
        best, chosen = max(0.2, 0.5 * self.threshold), list[int]()
        for size in (2, 3, 4):
            for start in range(len(order) - size + 1):
                rows = order[start : start + size]
                iou = self._fit(self._union(rows), number)
                if iou > best or (iou == best and not chosen):
                    best, chosen = iou, rows
        if chosen:
            self._give(chosen, number, MATCHED | MERGED)

    def missing_pixels(self) -> np.ndarray:
        """(N, K + 1) int64: pixels of each free proposal on those of each object that its mask lacks; 0 for one not free."""
        labels = self.objects.labels.copy()
        for number in np.flatnonzero(self.how) + 1:
            left, top, pixels = self._union(np.flatnonzero(self.numbers == number).tolist())
            here = labels[top : top + pixels.shape[0], left : left + pixels.shape[1]]
            here[pixels & (here == number)] = 0
        free = np.flatnonzero(self.numbers == 0)
        counts = np.zeros((len(self.proposals), len(self.objects) + 1), np.int64)
        counts[free] = label_counts(labels, counts.shape[1], taken(self.proposals, free))
        return counts

    def absorb(self, number: int, missing: np.ndarray) -> None:
        """Pass 5. To raise the IoU by 0.01 a fragment must bring 0.01 of the union in pixels that the mask lacks: others, of
        which there are many, are left out before their boundaries are looked at."""
        rows = np.flatnonzero(self.numbers == number).tolist()
        free = np.flatnonzero((self.numbers == 0) & (self.iou[:, number - 1] > 0.05))
        free = free[missing[free] > 0.0099 * self.objects.areas[number - 1]]
        if not rows or not len(free):
            return
        mask = self._union(rows)
        iou = self._fit(mask, number)
        if len(free) > 1:
            boundary = _boundary(mask)
            adjacency = np.array([_adjacency(_boundary(self._union([row])), boundary) for row in free.tolist()])
            free = free[np.argsort(-(0.7 * self.iou[free, number - 1] + 0.3 * adjacency), kind="stable")]
        for row in free.tolist():
            joined = self._fit(self._union([*rows, row]), number)
            if joined > iou + 0.01:
                rows, iou = [*rows, row], joined
                self._give([row], number, MERGED)

    def _give(self, rows: list[int], number: int, how: int) -> None:
        self.numbers[rows] = number
        self.how[number - 1] |= how

    def _union(self, rows: list[int]) -> _Pixels:
        """Not to be changed: of one proposal it is its mask."""
        boxes = self.proposals.boxes[rows]
        left, top = boxes[:, :2].min(axis=0).tolist()
        if len(rows) == 1:
            return left, top, self.proposals.masks[rows[0]]
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
        whole = np.zeros((bottom - top, right - left), np.bool_)
        for row, (x, y, width, height) in zip(rows, boxes.tolist(), strict=True):
            whole[y - top : y - top + height, x - left : x - left + width] |= self.proposals.masks[row]
        return left, top, whole

    def _fit(self, mask: _Pixels, number: int) -> float:
        """IoU of a mask with an object."""
        left, top, pixels = mask
        inside = self.objects.labels[top : top + pixels.shape[0], left : left + pixels.shape[1]] == number
        shared = np.count_nonzero(inside & pixels)
        area: int = self.objects.areas[number - 1]
        return float(shared / (np.count_nonzero(pixels) + area - shared))


def _boundary(mask: _Pixels) -> np.ndarray:
    """Pixels with one of the four neighbours outside the mask: (B, 2) int64 rows and columns of the frame, reading order."""
    left, top, pixels = mask
    inner = np.zeros_like(pixels)
    np.logical_and(pixels[:-2, 1:-1], pixels[2:, 1:-1], out=inner[1:-1, 1:-1])
    inner[1:-1, 1:-1] &= pixels[1:-1, :-2]
    inner[1:-1, 1:-1] &= pixels[1:-1, 2:]
    rows, columns = np.divmod(np.flatnonzero(pixels & ~inner), pixels.shape[1])
    return np.stack([rows + top, columns + left], axis=-1)


def _adjacency(fragment: np.ndarray, boundary: np.ndarray) -> float:
    """1 where they touch, 0 from a mean distance of `REACH` on."""
    sampled = fragment[:: -(-len(fragment) // SAMPLES)].astype(np.float64)  # whole numbers: sums below are exact
    targets = boundary.astype(np.float64)
    squares = (targets**2).sum(axis=1) - 2 * sampled @ targets.T
    nearest = np.sqrt(squares.min(axis=1) + (sampled**2).sum(axis=1))
    return max(0.0, 1.0 - float(nearest.mean()) / REACH)
