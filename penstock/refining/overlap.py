"""How many pixels proposals and objects share: counted in the boxes, by runs, for all pairs at once."""

from collections.abc import Iterator

import numpy as np

from penstock.errors import BadData
from penstock.refining.runs import run_starts
from penstock.refining.types import Objects, Proposals

BATCH = 1 << 19
"""Pixels of boxes that are looked at together: they stay in the cache of a core."""


def contingency(objects: Objects, proposals: Proposals) -> np.ndarray:
    """Pixels of each proposal on each label.

    Returns:
        (N, K + 1) int64; column 0 counts pixels of no object. A row sums to the proposal's area.

    Raises:
        BadData: proposals of a frame of another size.
    """
    if proposals.size_hw != objects.size_hw:
        raise BadData(f"proposals: expected a frame of {objects.size_hw} (height, width), got {proposals.size_hw}")
    return label_counts(objects.labels, len(objects) + 1, proposals)


def label_counts(labels: np.ndarray, count: int, proposals: Proposals) -> np.ndarray:
    """Pixels of each proposal on each label, of a map of the proposals' frame.

    In the box of a mask labels count from 1, and pixels outside the mask are 0. Boxes are laid one after the other; of the
    runs of equal numbers, which are far fewer than pixels, one weighted bincount adds up the lengths.

    Args:
        labels: (H, W) unsigned whole numbers, 0..count - 1.
        count: number of labels.
        proposals: N, within the map.

    Returns:
        (N, count) int64.
    """
    narrow = labels.astype(np.min_scalar_type(count))  # a byte halves the work
    narrow += 1
    counts = np.empty((len(proposals), count), np.int64)
    sizes = np.array([mask.size for mask in proposals.masks], np.int64)
    room = np.empty(0, narrow.dtype)
    for first, last in _batches(sizes.tolist()):
        masks, ends = proposals.masks[first:last], sizes[first:last].cumsum()
        begins = ends - sizes[first:last]
        if len(room) < ends[-1]:
            room = np.empty(max(BATCH, ends[-1]), narrow.dtype)
        laid = room[: ends[-1]]
        for start, (x, y, width, height), mask in zip(
            begins.tolist(), proposals.boxes[first:last].tolist(), masks, strict=True
        ):
            within = laid[start : start + mask.size].reshape(height, width)
            np.multiply(narrow[y : y + height, x : x + width], mask.view(np.uint8), out=within)
        starts = run_starts(laid, begins)
        lengths = np.diff(starts, append=len(laid))
        rows = np.repeat(
            np.arange(len(masks)) * (count + 1), np.diff(np.searchsorted(starts, begins), append=len(starts))
        )
        table = np.bincount(rows + laid[starts], weights=lengths, minlength=len(masks) * (count + 1))
        counts[first:last] = table.reshape(len(masks), count + 1)[:, 1:]
    return counts


def _batches(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """First and end of neighbours that have at most `BATCH` pixels together; of a larger one alone."""
    first = pixels = 0
    for row, size in enumerate(sizes):
        if row > first and pixels + size > BATCH:
            yield first, row
            first, pixels = row, 0
        pixels += size
    if first < len(sizes):
        yield first, len(sizes)
