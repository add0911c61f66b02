"""How many pixels proposals and objects share: counted in the boxes, by runs, for all pairs at once."""

import numpy as np

from penstock.errors import BadData
from penstock.refining.types import Objects, Proposals


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

    In the box of a mask labels count from 1, and pixels outside the mask are 0; of the runs of equal numbers, which are far
    fewer than pixels, one weighted bincount adds up the lengths.

    Args:
        labels: (H, W) unsigned whole numbers, 0..count - 1.
        count: number of labels.
        proposals: N, within the map.

    Returns:
        (N, count) int64.
    """
    narrow = labels.astype(np.min_scalar_type(count))  # a byte halves the work
    narrow += 1
    room = max((mask.size for mask in proposals.masks), default=0)
    masked, begins = np.empty(room, narrow.dtype), np.zeros(room + 8 & ~7, np.bool_)
    counts = np.empty((len(proposals), count), np.int64)
    for row, ((x, y, width, height), mask) in enumerate(zip(proposals.boxes.tolist(), proposals.masks, strict=True)):
        inside = narrow[y : y + height, x : x + width]
        within = masked[: mask.size]
        np.multiply(inside, mask.view(np.uint8), out=within.reshape(height, width))
        starts = _run_starts(within, begins)
        lengths = np.empty(len(starts))
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1] = mask.size - starts[-1]
        counts[row] = np.bincount(within[starts], weights=lengths, minlength=count + 1)[1:]
    return counts


def _run_starts(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin: (R,) int64, from 0 on; `begins` is (>= M rounded up to eights,) bool of scratch.

    Runs are rare, so that whole words without a beginning are skipped, eight pixels at a time.
    """
    begins[0] = True
    np.not_equal(values[1:], values[:-1], out=begins[1 : len(values)])
    end = len(values) + 7 & ~7
    begins[len(values) : end] = False
    words = begins[:end].view(np.uint64)
    found = np.flatnonzero(words != 0)
    inner = np.flatnonzero(words[found].view(np.bool_))
    starts: np.ndarray = found[inner >> 3] * 8 + (inner & 7)
    return starts
