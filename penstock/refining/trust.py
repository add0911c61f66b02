"""How far a coarse map is trusted: the depth of each pixel below its object's boundary, and the core of every object."""

import math
from dataclasses import dataclass

import numpy as np

from penstock.geometry.opencv import cv2
from penstock.refining.runs import runs
from penstock.refining.settings import RefineSettings
from penstock.refining.types import Objects

DEEPEST = 4
"""Depth of a pixel that lies further from the boundary than the band is wide."""

CORE_SHARE = 0.1
"""The core of an object is its deepest level that still holds this share of it."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Where the coarse map of one frame is sure of itself."""

    band: int
    """Pixels on each side of a boundary that are uncertain."""
    depth: np.ndarray
    """(H, W) uint8 0..4: 0 beside another label, then more than 1 pixel, a quarter, half, the whole band away from one
    (the longer of the distances in x and y). The frame's border is no boundary."""
    core: np.ndarray
    """(H, W) number of the object whose core the pixel lies in, 0 for none; of the type of the labels."""
    core_areas: np.ndarray
    """(K,) int64, pixels, at least 1: an object thinner than the band has a core too, down to the object itself."""


def trust(objects: Objects, settings: RefineSettings) -> Trust:
    """Depths and cores of a coarse map.

    Args:
        objects: the coarse map.
        settings: `band_share`.

    Returns:
        What can be trusted; the core of an object is its deepest level of at least `CORE_SHARE` of its pixels.
    """
    band = band_width(objects.size_hw, settings)
    depth = _depths(objects.labels, band)
    core = objects.labels * (depth == DEEPEST).view(np.uint8)
    core_areas = histogram(core, len(objects))[1:]
    for index in np.flatnonzero(core_areas < CORE_SHARE * objects.areas):
        x, y, width, height = objects.boxes[index].tolist()
        here = np.s_[y : y + height, x : x + width]
        deep = depth[here] + 1
        deep *= (objects.labels[here] == index + 1).view(np.uint8)
        for level in range(DEEPEST - 1, -1, -1):
            is_core = deep > level
            core_areas[index] = np.count_nonzero(is_core)
            if core_areas[index] >= CORE_SHARE * objects.areas[index]:
                break
        core[here] |= is_core.view(np.uint8) * core.dtype.type(index + 1)  # nothing or its number lies there
    return Trust(band=band, depth=depth, core=core, core_areas=core_areas)


def band_width(size_hw: tuple[int, int], settings: RefineSettings) -> int:
    """Pixels of the uncertain band on each side of a boundary, at least 1."""
    return max(1, round(settings.band_share * math.hypot(*size_hw)))


def histogram(labels: np.ndarray, count: int) -> np.ndarray:
    """Pixels of each label.

    Args:
        labels: (H, W) uint8 or uint16, none above `count`.
        count: K.

    Returns:
        (K + 1,) int64.
    """
    values, lengths = runs(labels)
    return np.bincount(values, weights=lengths, minlength=count + 1).astype(np.int64)


def look_up(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[labels], faster.

    Args:
        labels: (H, W) uint8 or uint16.
        table: (K + 1,), of any type; K is the largest label there may be.

    Returns:
        (H, W) of the table's type.
    """
    if len(table) > 256 or table.dtype not in (np.uint8, np.uint16, np.int32):
        return table.take(labels)
    full = np.zeros(256, table.dtype)
    full[: len(table)] = table
    found: np.ndarray = cv2.LUT(labels.astype(np.uint8, copy=False), full)
    return found


def _depths(labels: np.ndarray, band: int) -> np.ndarray:
    """(H, W) uint8: `Trust.depth`."""
    width = labels.shape[1]
    flat = labels.reshape(-1)
    inner: np.ndarray = np.ones(labels.shape, np.uint8)
    pixels = inner.reshape(-1)
    across = (flat[1:] == flat[:-1]).view(np.uint8)
    across[width - 1 :: width] = 1  # from the end of a row to the next one's beginning
    down = (flat[width:] == flat[:-width]).view(np.uint8)
    pixels[1:] = across
    pixels[:-1] &= across
    pixels[width:] &= down
    pixels[:-width] &= down
    depth: np.ndarray = inner.copy()
    reached = 1
    for distance in (math.ceil(band / 4), math.ceil(band / 2), band):
        side = 2 * max(0, distance - reached) + 1
        inner = cv2.erode(inner, np.ones((side, side), np.uint8))
        depth += inner
        reached = max(reached, distance)
    return depth
