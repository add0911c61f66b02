"""Do the colours of a picture speak for a new map, where it differs from the coarse one?"""

import math

import numpy as np

from penstock.geometry.opencv import cv2

LINES = 350
"""Colours are looked at in so many rows and columns along the diagonal, or in all of a smaller picture."""

CELLS = 12
"""Along the longer side: in each cell an object has colours of its own, those of the cells around it included."""

TABLE = 1 << 15
"""Cells of all objects together, about: with many objects there are fewer cells."""

LEAST_SEEN = 8
"""Samples that both maps give to an object; with fewer its colours are not known."""

PRIOR = 10.0
"""Samples' weight of the object's colours in the whole picture, beside those around a cell."""

LEAST_VARIANCE = 4.0
"""Of a CIELAB channel in 0..255: noise."""

FIT_LIMIT = 9.0
"""Squared deviations beyond which a channel fits no worse."""

UNDECIDED = 0.1
"""A pixel votes if one of its two objects explains its colour better by more than so much, in units of log-likelihood."""


def votes(image: np.ndarray, before: np.ndarray, after: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What the pixels that an object gained and lost say to that: those whose colour is more like their new owner's nearby
    vote for it, those whose colour is more like their old owner's against it.

    The colours of an owner (an object, or what has none) are a Gaussian of CIELAB, known from the pixels that both maps
    give to it, around a cell of a coarse grid; a pixel of which one owner's are not known does not vote.

    Args:
        image: (H, W, 3) uint8 RGB.
        before: (H, W) uint8 or uint16, the coarse map, 0..count.
        after: the new map, likewise.
        count: K, of objects.

    Returns:
        (K,) float32 -1..1: votes for less votes against, over the samples gained and lost, 0 where there are none; and
        (K,) int64: those samples.
    """
    step = max(1, int(math.hypot(*before.shape)) // LINES)
    sparse = np.ascontiguousarray(image[::step, ::step])
    lab = cv2.cvtColor(sparse, cv2.COLOR_RGB2LAB).reshape(-1, 3).T.astype(np.float32)
    old, new = before[::step, ::step].ravel(), after[::step, ::step].ravel()
    changed = np.flatnonzero(old != new)
    if not len(changed):
        return np.zeros(count, np.float32), np.zeros(count, np.int64)
    places, grid = _places((sparse.shape[0], sparse.shape[1]), count)
    owners = old.astype(np.int64)
    owners[changed] = count + 1
    mean, variance, is_known = _colours(lab, owners * (grid[0] * grid[1]) + places, (count + 1, *grid))
    old, new, places, lab = old[changed], new[changed], places[changed], lab[:, changed]

    def misfit(owners: np.ndarray) -> np.ndarray:
        cells = owners.astype(np.int64) * (grid[0] * grid[1]) + places
        spread = variance[:, cells]
        off = np.minimum((lab - mean[:, cells]) ** 2 / spread, FIT_LIMIT) + np.log(spread)
        half: np.ndarray = off.sum(axis=0) / 2
        return half

    better = misfit(old) - misfit(new)
    cast = np.sign(better) * (np.abs(better) > UNDECIDED) * (is_known[old] & is_known[new])
    sums, pixels = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    for side in (old, new):
        sums += np.bincount(side, cast, minlength=count + 1)
        pixels += np.bincount(side, minlength=count + 1)
    return (sums / np.maximum(pixels, 1))[1:].astype(np.float32), pixels[1:]


def _places(size_hw: tuple[int, int], count: int) -> tuple[np.ndarray, tuple[int, int]]:
    """(H * W,) int64 cell of each sample, and the rows and columns of the grid of cells."""
    cells = min(CELLS, max(1, math.isqrt(TABLE // (count + 1))))
    side = -(-max(size_hw) // cells)
    rows, columns = (np.arange(length) // side for length in size_hw)
    grid = int(rows[-1]) + 1, int(columns[-1]) + 1
    return (rows[:, None] * grid[1] + columns).ravel(), grid


def _colours(
    lab: np.ndarray, keys: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance (3, owners * cells) float32, and (owners,) bool which are known, from (3, P) samples.

    Args:
        lab: the samples.
        keys: (P,) owner and cell of each; those beyond the table are not looked at.
        shape: owners, rows and columns of cells.
    """
    size = shape[0] * shape[1] * shape[2]
    moments = [np.bincount(keys, weights, minlength=size)[:size] for weights in (None, *lab, *(lab * lab))]
    table = np.stack(moments).reshape(7, *shape)
    whole = table.sum(axis=(2, 3), keepdims=True)
    padded = np.pad(table, ((0, 0), (0, 0), (1, 1), (1, 1)))
    padded = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    near = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    near = near + PRIOR * whole / np.maximum(whole[:1], 1)
    mean, squares = (near[part] / np.maximum(near[0], 1) for part in (slice(1, 4), slice(4, 7)))
    variance = np.maximum(squares - mean * mean, 0) + LEAST_VARIANCE
    is_known = whole[0, :, 0, 0] >= LEAST_SEEN
    return mean.reshape(3, -1).astype(np.float32), variance.reshape(3, -1).astype(np.float32), is_known
