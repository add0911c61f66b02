"""Masks as Florence-2 says them: polygons of bins, each side of the picture cut into 1,000 of them.

Bins are as transformers' `Florence2PostProcessor` has them: floor(x * 1000 / width), and back to the middle of the bin.
"""

from collections.abc import Sequence

import numpy as np

from penstock.geometry.boxes import mask_box
from penstock.geometry.polygons import mask_to_polygons, polygons_to_mask

BINS = 1000
_TOLERANCES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Of an outline that is too long, in bins: a coarse one is within so much of it."""


def mask_bins(mask: np.ndarray, limit: int) -> list[list[int]]:
    """The polygons of a mask, the largest first.

    Below 200 pixels a side, and where the limit leaves every corner, `bins_mask` gives the mask back exactly. An outline
    too long becomes coarser step by step (Douglas and Peucker 1973); if that is not enough, the smallest parts go.

    Args:
        mask: (H, W) of 0 and 1.
        limit: of numbers and separators together, 8 or more.

    Returns:
        `[x0, y0, x1, y1, ...]` of 0..999 for each part; at least one where the mask is not empty.

    Raises:
        BadData: it is no binary mask.
        MissingExtra: OpenCV is not installed, and an outline is too long.
    """
    scale = BINS / np.array(mask.shape[::-1], np.float64)
    outlines = [np.array(each).reshape(-1, 2) * scale for each in mask_to_polygons(mask)]
    if not outlines:
        return []
    found = _quantised(outlines)
    for tolerance in _TOLERANCES:
        if _length(found) <= limit:
            break
        found = _quantised([_coarser(outline, tolerance) for outline in outlines])
    found.sort(key=_area, reverse=True)
    while len(found) > 1 and _length(found) > limit:
        found.pop()
    if found and _length(found) <= limit:
        return found
    left, top, right, bottom = box_bins(mask)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    return [[left, top, right, top, right, bottom, left, bottom]]


def bins_mask(polygons: Sequence[Sequence[int]], size_hw: tuple[int, int]) -> np.ndarray:
    """The pixels inside any of the polygons.

    Args:
        polygons: of bins, each of three or more points.
        size_hw: height and width of the picture.

    Returns:
        (H, W) uint8, 0 or 1.

    Raises:
        MissingExtra: pycocotools is not installed.
    """
    if not polygons:
        return np.zeros(size_hw, np.uint8)
    scale = np.array(size_hw[::-1], np.float64) / BINS
    outlines = [((np.array(each).reshape(-1, 2) + 0.5) * scale).ravel().tolist() for each in polygons]
    return polygons_to_mask(outlines, size_hw)


def box_bins(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom bin of the box of a mask (H, W) that is not empty."""
    left, top, width, height = mask_box(mask).tolist()
    corners = np.array([[left, top], [left + width, top + height]]) * BINS / np.array(mask.shape[::-1])
    first, second, third, fourth = _bins(corners).ravel().tolist()
    return first, second, third, fourth


def _bins(points: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(points + 1e-9), 0, BINS - 1).astype(np.int64)


def _quantised(outlines: Sequence[np.ndarray]) -> list[list[int]]:
    """Points that became one are one; what has fewer than three then is no part."""
    found = []
    for outline in outlines:
        points = _bins(outline)
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        if len(points) >= 3:
            found.append(points.ravel().tolist())
    return found


def _coarser(outline: np.ndarray, tolerance: float) -> np.ndarray:
    from penstock.geometry.opencv import cv2

    points: np.ndarray = cv2.approxPolyDP(outline.astype(np.float32)[:, None], tolerance, True)[:, 0]
    return points


def _length(polygons: Sequence[Sequence[int]]) -> int:
    return sum(map(len, polygons)) + len(polygons) - 1


def _area(polygon: Sequence[int]) -> float:
    points = np.array(polygon, np.float64).reshape(-1, 2)
    following = np.roll(points, -1, axis=0)
    return float(abs((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()))
