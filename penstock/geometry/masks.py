"""Masks: what a binary mask is, and resizing, by area and to the nearest pixel."""

import numpy as np

from penstock.errors import BadData

MAX_SIDE = 32_766
"""OpenCV's limit for a side."""

MAX_MASK_PIXELS = 1 << 26
"""A mask that says it is larger is refused before memory is taken: as for pictures."""


def binary_mask(mask: np.ndarray) -> np.ndarray:
    """The mask as uint8, if it is one; 255 for "set", soft masks and id maps are refused, never rounded.

    Args:
        mask: (H, W) bool, or numbers that are all 0 or 1.

    Returns:
        (H, W) uint8, 0 or 1; shares memory with the argument where the type allows it.

    Raises:
        BadData: not two-dimensional, without pixels, of more than `MAX_MASK_PIXELS`, or with other values.
    """
    if mask.ndim != 2 or not 0 < mask.size <= MAX_MASK_PIXELS:
        raise BadData(f"mask: expected (H, W) of 1..{MAX_MASK_PIXELS} pixels, got shape {mask.shape}")
    if mask.dtype == np.bool_:
        return mask.view(np.uint8)
    if mask.dtype.kind in "iu":
        is_binary = bool(mask.min() >= 0 and mask.max() <= 1)
    else:
        is_binary = mask.dtype.kind == "f" and bool(((mask == 0) | (mask == 1)).all())
    if not is_binary:
        found = f"{mask.min()}..{mask.max()}" if mask.dtype.kind in "iuf" else "no numbers"
        raise BadData(f"mask: expected bool, or only 0 and 1, got {mask.dtype} with {found}; compare it with 0 first")
    return mask.astype(np.uint8, copy=False)


def nearest(values: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Ids or a mask stretched to another size: each pixel has the value of the one that its centre falls in, reckoned in
    whole numbers (Pillow's NEAREST but for ties).

    Args:
        values: (H, W) of any type.
        size_hw: height and width wanted.

    Returns:
        (h, w) of the same type; the argument itself where the size is the same.
    """
    if values.shape == tuple(size_hw):
        return values
    rows, columns = (
        (2 * np.arange(wanted) + 1) * found // (2 * wanted) for wanted, found in zip(size_hw, values.shape, strict=True)
    )
    stretched: np.ndarray = values[rows[:, None], columns]
    return stretched


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
    from penstock.geometry.opencv import cv2

    cover = cv2.resize(np.ascontiguousarray(mask, np.float32), size_hw[::-1], interpolation=cv2.INTER_AREA)
    small = (cover > 0.5).astype(np.uint8)
    if not small.any() and cover.max() > 0:
        small.flat[int(cover.argmax())] = 1
    return small
