"""Masks: resizing by area."""

import numpy as np

from penstock.errors import BadData, MissingExtra

try:
    import cv2
except ImportError as error:
    raise MissingExtra("opencv-python-headless", "images", "resizing masks") from error

MAX_SIDE = 32_766
"""OpenCV's limit for a side."""


def resize_mask(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The mask stretched to another size: a cell is set where more than half of its area is covered.

    Averaging is OpenCV's INTER_AREA on float32; where the mask grows, that is linear interpolation. An object too small
    to cover half of any cell keeps the cell that it covers most (the first in reading order), so that a mask that is
    not empty never becomes empty.

    Args:
        mask: (H, W) of 0 and 1, bool, or floats in 0..1.
        size_hw: height and width wanted.

    Returns:
        (h, w) uint8, 0 or 1.

    Raises:
        BadData: the mask is not two-dimensional, has no pixels, or a side above `MAX_SIDE`.
    """
    if mask.ndim != 2 or not 0 < min(mask.shape) <= max(mask.shape) <= MAX_SIDE:
        raise BadData(f"mask: expected (H, W) with sides of 1..{MAX_SIDE}, got shape {mask.shape}")
    cover = cv2.resize(np.ascontiguousarray(mask, np.float32), size_hw[::-1], interpolation=cv2.INTER_AREA)
    small = (cover > 0.5).astype(np.uint8)
    if not small.any() and cover.max() > 0:
        small.flat[int(cover.argmax())] = 1
    return small
