"""Runs of equal values in flat arrays: a map has far fewer of them than pixels, and they are found eight pixels at a time."""

import numpy as np


def positions(mask: np.ndarray) -> np.ndarray:
    """np.flatnonzero, several times as fast where little is set: words of eight pixels with nothing in them are skipped.

    Args:
        mask: bool of any shape, C order.

    Returns:
        (n,) int64, rising: flat positions of what is set.
    """
    flat = mask.reshape(-1)
    end = len(flat) & ~7
    words = flat[:end].view(np.uint64)
    found = np.flatnonzero(words != 0)
    inner = np.flatnonzero(words[found].view(np.bool_))
    inside: np.ndarray = found[inner >> 3] * 8 + (inner & 7)
    rest = np.flatnonzero(flat[end:])
    return np.concatenate([inside, rest + end]) if len(rest) else inside


def run_starts(values: np.ndarray, extra: np.ndarray | slice) -> np.ndarray:
    """Where runs of equal values begin.

    Args:
        values: (M,) whole numbers, M at least 1.
        extra: positions at which a run begins in any case: indices, or a slice of all.

    Returns:
        (R,) int64, rising, from 0 on.
    """
    begins = np.empty(len(values), np.bool_)
    begins[0] = True
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    begins[extra] = True
    return positions(begins)


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs of a map, which may go on in the next row.

    Args:
        labels: (H, W) whole numbers, at least one pixel.

    Returns:
        (R,) their values, of the map's type, and (R,) int64 lengths: `np.repeat(values, lengths)` is the map, flat.
    """
    flat = labels.reshape(-1)
    starts = run_starts(flat, np.s_[:1])
    return flat[starts], np.diff(starts, append=flat.size)
