"""Square crops around a box: where they lie, what is padding, their pixels, and the maps of boxes into them.

Coordinates are continuous: a pixel in column x covers x..x+1. A crop of side s from (x, y), resized to S pixels, then maps
a point p to (p - (x, y)) * S / s, and that is exactly what OpenCV's resize does to pixels, whose centres it aligns as
(i + 0.5) * S / s - 0.5. Trackers of the STARK family map boxes by another formula; see `fed_boxes`.
"""

import math
from dataclasses import dataclass

import numpy as np

from penstock.geometry.opencv import cv2

MAX_SIDE = 1 << 14
"""Largest side of a crop in pixels of the picture. A box that asks for a larger one is taken for a wrong box."""

_BEYOND = 1 << 40


@dataclass(frozen=True)
class CropWindow:
    """A square of a picture, in whole pixels, that is resized to `size`. It may reach over the picture's borders."""

    x: int
    """Left column; may be negative."""
    y: int
    """Top row; may be negative."""
    side: int
    """Pixels of the picture on each side. 0: the box that it was made for is too small."""
    size: int
    """Pixels of the crop on each side."""

    @property
    def box(self) -> np.ndarray:
        """(4, ) float64 XYWH in pixels of the picture."""
        return np.array([self.x, self.y, self.side, self.side], np.float64)

    @property
    def scale(self) -> float:
        """Pixels of the crop per pixel of the picture."""
        return self.size / self.side


def crop_window(box_xywh: np.ndarray, *, factor: float, size: int) -> CropWindow:
    """The square around the centre of a box whose side is ceil(sqrt(w * h) * factor), on whole pixels.

    Args:
        box_xywh: (4, ) finite numbers in pixels of the picture; widths and heights of 0 and more.
        factor: side of the square over side of a square with the box's area.
        size: pixels of the crop on each side.

    Returns:
        Its window. The side is 0 where w * h is 0, and more than `MAX_SIDE` where it is: the caller refuses both.
    """
    x, y, width, height = (float(number) for number in box_xywh)
    side = math.ceil(min(math.sqrt(width * height) * factor, _BEYOND))
    return CropWindow(round(x + 0.5 * width - 0.5 * side), round(y + 0.5 * height - 0.5 * side), side, size)


def crop_affine(window: CropWindow, *, mirrored_width: int | None = None, flip: bool = False) -> np.ndarray:
    """The map of points of the picture to points of the crop.

    Args:
        window: the crop; in the mirrored picture where there is one.
        mirrored_width: width of the picture if it was mirrored before the crop was taken.
        flip: whether the crop was mirrored after it was taken.

    Returns:
        (2, 3) float64: crop point = matrix @ (x, y, 1), from the picture as the source has it.
    """
    scale = window.scale
    affine = np.array([[scale, 0, -window.x * scale], [0, scale, -window.y * scale]], np.float64)
    if mirrored_width is not None:
        affine[0] = [-scale, 0, (mirrored_width - window.x) * scale]
    if flip:
        affine[0] = [-affine[0, 0], 0, window.size - affine[0, 2]]
    return affine


def map_boxes(boxes_xywh: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Boxes through an affine without rotation, as `crop_affine` gives it.

    Args:
        boxes_xywh: (..., 4) numbers in pixels of the picture.
        affine: (2, 3) float64 with zeros off the diagonal; a negative scale mirrors.

    Returns:
        (..., 4) float64 XYWH in pixels of the crop, not clipped; NaN stays NaN.
    """
    boxes = np.asarray(boxes_xywh, np.float64)
    scales, shifts = affine[[0, 1], [0, 1]], affine[:, 2]
    starts = boxes[..., :2] * scales + shifts
    sizes = boxes[..., 2:] * scales
    return np.concatenate([np.where(scales < 0, starts + sizes, starts), np.abs(sizes)], axis=-1)


def mirror_boxes(boxes_xywh: np.ndarray, width: float) -> np.ndarray:
    """Boxes of a picture that is mirrored left to right.

    Args:
        boxes_xywh: (..., 4) numbers in pixels of the picture.
        width: of the picture, in the same unit.

    Returns:
        (..., 4) float64 XYWH in the mirrored picture: left = width - right. NaN stays NaN. Mirrored twice they are back,
        up to rounding.
    """
    boxes = np.array(boxes_xywh, np.float64)
    boxes[..., 0] = width - boxes[..., 0] - boxes[..., 2]
    return boxes


def fed_boxes(boxes_xywh: np.ndarray, around_xywh: np.ndarray, window: CropWindow) -> np.ndarray:
    """Boxes in a crop by the formula that STARK, OSTrack and their kin train with.

    The centre of `around_xywh` is put at (size - 1) / 2, as if pixels were counted from their centres and the window were
    not rounded to whole pixels. So each corner lies within (1 + scale) / 2 pixels of the crop from where the exact map
    (`crop_affine`) puts it.

    Args:
        boxes_xywh: (..., 4) numbers in pixels of the picture that the window lies in.
        around_xywh: (4, ) the box that the window was made for, in the same frame.
        window: the crop.

    Returns:
        (..., 4) float64 XYWH in units of the crop's side; not clipped.
    """
    boxes = np.asarray(boxes_xywh, np.float64)
    around = np.asarray(around_xywh, np.float64)
    offset = boxes[..., :2] + 0.5 * boxes[..., 2:] - (around[:2] + 0.5 * around[2:])
    sizes = boxes[..., 2:] * window.scale
    centers = (window.size - 1) / 2 + offset * window.scale
    return np.concatenate([centers - 0.5 * sizes, sizes], axis=-1) / window.size


def jitter_box(
    box_xywh: np.ndarray, *, growth: np.ndarray, offset: np.ndarray, scale_jitter: float, center_jitter: float
) -> np.ndarray:
    """A box near a box: size * exp(growth * scale_jitter), centre + offset * sqrt(new area) * center_jitter.

    Args:
        box_xywh: (4, ) numbers in pixels.
        growth: (2, ) standard normal numbers.
        offset: (2, ) numbers in -0.5..0.5.
        scale_jitter: 0 keeps the size.
        center_jitter: 0 keeps the centre.

    Returns:
        (4, ) float64 XYWH in the same frame.
    """
    box = np.asarray(box_xywh, np.float64)
    sizes = box[2:] * np.exp(growth * scale_jitter)
    centers = box[:2] + 0.5 * box[2:] + offset * (math.sqrt(float(sizes[0]) * float(sizes[1])) * center_jitter)
    return np.concatenate([centers - 0.5 * sizes, sizes])


def crop_padding(window: CropWindow, picture_hw: tuple[int, int]) -> np.ndarray:
    """Where a crop shows something outside the picture.

    Args:
        window: the crop, of side 1 and more.
        picture_hw: height and width of the picture.

    Returns:
        (size, size) bool: True where any of the pixels that the resize mixes lies outside.
    """
    height, width = picture_hw
    rows = _padded(window.y, height, side=window.side, size=window.size)
    columns = _padded(window.x, width, side=window.side, size=window.size)
    padding: np.ndarray = rows[:, None] | columns[None, :]
    return padding


def cut_crop(picture: np.ndarray, window: CropWindow, *, mirrored: bool = False, gray: bool = False) -> np.ndarray:
    """The pixels of a crop: black outside the picture, resized by OpenCV's INTER_LINEAR; exact where side is size.

    Args:
        picture: (H, W, 3) uint8 RGB.
        window: the crop, of side 1..`MAX_SIDE`; in the mirrored picture with `mirrored`.
        mirrored: whether to mirror the picture left to right first.
        gray: whether to take the colours away first, as OpenCV's RGB to gray does.

    Returns:
        (size, size, 3) uint8 RGB, contiguous, not shared with the picture.
    """
    part = _inside(picture, window, mirrored=mirrored)
    if gray and part.size:
        part = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
    crop: np.ndarray = _resized(_padded_out(part, window), window.size)
    if crop.ndim == 2:
        crop = np.asarray(cv2.cvtColor(crop, cv2.COLOR_GRAY2RGB))
    return crop


def cut_mask(mask: np.ndarray, window: CropWindow, *, mirrored: bool = False) -> np.ndarray:
    """The part of a mask that a crop shows, resized as its picture and cut at half.

    Args:
        mask: (H, W) numbers or bool; what is not 0 belongs to the object.
        window: the crop, of side 1..`MAX_SIDE`; in the mirrored mask with `mirrored`.
        mirrored: whether to mirror the mask left to right first.

    Returns:
        (size, size) uint8, 0 or 1; 0 outside the picture.
    """
    part = _inside(mask.view(np.uint8) if mask.dtype == bool else mask, window, mirrored=mirrored) != 0
    if not part.any():
        return np.zeros((window.size, window.size), np.uint8)
    shares = _resized(_padded_out(part * np.uint8(255), window), window.size)
    return (shares >= 128).astype(np.uint8)


def mirror_pixels(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 mirrored left to right: a contiguous copy."""
    return np.asarray(cv2.flip(pixels, 1))


def brighten(pixels: np.ndarray, factor: float) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 times a factor of 0 and more, rounded and clipped to 0..255: a copy."""
    table = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table))


def _padded(start: int, length: int, *, side: int, size: int) -> np.ndarray:
    """(size, ) bool along one axis. In whole numbers: pixel u mixes the two around ((2 u + 1) side - size) / (2 size)."""
    if start >= length or start + side <= 0:
        return np.ones(size, bool)
    first, rest = np.divmod((2 * np.arange(size, dtype=np.int64) + 1) * side - size, 2 * size)
    last = np.clip(first + (rest > 0), 0, side - 1) + start
    first = np.clip(first, 0, side - 1) + start
    padded: np.ndarray = (first < 0) | (last >= length)
    return padded


def _inside(picture: np.ndarray, window: CropWindow, *, mirrored: bool = False) -> np.ndarray:
    """The part of a picture that lies in the window: a view, or a copy if mirrored."""
    rows = slice(max(window.y, 0), max(window.y + window.side, 0))
    if not mirrored:
        return picture[rows, max(window.x, 0) : max(window.x + window.side, 0)]
    end = picture.shape[1] - window.x
    part = picture[rows, max(end - window.side, 0) : max(end, 0)]
    return mirror_pixels(part) if part.size else part


def _padded_out(part: np.ndarray, window: CropWindow) -> np.ndarray:
    """What lies inside, in its place on black. Black pages that the resize does not look at are never touched."""
    if part.shape[:2] == (window.side, window.side):
        return part
    canvas = np.zeros((window.side, window.side, *part.shape[2:]), part.dtype)
    if part.size:
        top, left = max(-window.y, 0), max(-window.x, 0)
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def _resized(region: np.ndarray, size: int) -> np.ndarray:
    if region.shape[:2] == (size, size):
        return np.array(region)
    resized: np.ndarray = cv2.resize(region, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized
