"""Crops of segments as a picture model is fed them: the background blended with grey, a tight box, padding.

Formulas as the first embedding cache had them: outside the mask picture * bg_alpha + 0.5 * (1 - bg_alpha) of 0..1, and int()
of `pad_ratio` times the box's sides on each side, cut at the borders. Blending one pixel needs no other one, so that a
crop may be blended after it is cut; and there are 256 values, so that a table gives the same bytes.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from penstock.errors import BadData
from penstock.geometry.boxes import mask_box

LEGACY_SIDE = 640
"""The recipe `legacy-640` stretches pictures and masks to a square of so many pixels."""


@dataclass(frozen=True)
class SegmentCrop:
    """What is cut out for one segment."""

    pixels: np.ndarray
    """(h, w, 3) uint8 RGB, contiguous, not blended."""
    inside: np.ndarray
    """(h, w) uint8: 1 where the segment is."""
    box_xywh: np.ndarray
    """(4,) float32, the tight box of the mask in pixels of the picture, before padding."""
    area: int
    """Pixels of the mask."""


def padded_window(box_xywh: np.ndarray, pad_ratio: float, picture_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a crop.

    Args:
        box_xywh: (4, ) whole numbers, a box inside the picture.
        pad_ratio: of the box's height above and below, of its width left and right; truncated to whole pixels, so that a
            box of fewer than 1 / pad_ratio pixels gets none.
        picture_hw: height and width of the picture, where the crop ends.
    """
    left, top, width, height = (int(number) for number in box_xywh)
    rows, columns = int(pad_ratio * height), int(pad_ratio * width)
    return (
        slice(max(0, top - rows), min(picture_hw[0], top + height + rows)),
        slice(max(0, left - columns), min(picture_hw[1], left + width + columns)),
    )


def cut_segment(picture: np.ndarray, mask: np.ndarray, pad_ratio: float) -> SegmentCrop:
    """The crop of one segment, not yet blended.

    Args:
        picture: (H, W, 3) uint8 RGB.
        mask: (H, W) bool or uint8 of 0 and 1.
        pad_ratio: see `padded_window`.

    Raises:
        BadData: the mask is empty, or not of the picture's size.
    """
    if mask.shape != picture.shape[:2]:
        raise BadData(f"segment: the mask is {mask.shape}, the picture {picture.shape[:2]} (height, width)")
    box = mask_box(mask)
    if not box[2]:
        raise BadData(f"segment: its mask of {mask.shape[0]} x {mask.shape[1]} (height x width) is empty")
    window = padded_window(box, pad_ratio, mask.shape)
    inside = np.ascontiguousarray(mask[window]).view(np.uint8)
    return SegmentCrop(np.ascontiguousarray(picture[window]), inside, box, int(np.count_nonzero(inside)))


def blend_table(bg_alpha: float) -> np.ndarray:
    """(256, ) uint8: what a value outside the mask becomes. Equal to `blend` of it."""
    values = np.arange(256, dtype=np.uint8)
    return _outside(values, bg_alpha)


def blend(pixels: np.ndarray, inside: np.ndarray, bg_alpha: float) -> np.ndarray:
    """Mid-grey over what is outside a mask, in float32 of 0..1, then times 255 and truncated.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        inside: (h, w) bool or uint8; what is not 0 stays as it is.
        bg_alpha: share of the picture that is left outside, 0..1; the rest is grey 0.5.

    Returns:
        (h, w, 3) uint8.
    """
    blended: np.ndarray = np.where(inside[..., None] != 0, pixels, _outside(pixels, bg_alpha))
    return blended


def reference_crop(picture: np.ndarray, mask: np.ndarray, *, bg_alpha: float, pad_ratio: float) -> Image.Image:
    """The crop of a segment, the slow way: the whole picture is blended, then cut.

    Args:
        picture: (H, W, 3) uint8 RGB.
        mask: (H, W) bool or uint8.
        bg_alpha: see `blend`.
        pad_ratio: see `padded_window`.

    Raises:
        BadData: as `cut_segment`.
    """
    crop = cut_segment(picture, mask, pad_ratio)
    rows, columns = padded_window(crop.box_xywh, pad_ratio, mask.shape)
    whole = Image.fromarray(blend(picture, mask, bg_alpha))
    return whole.crop((columns.start, rows.start, columns.stop, rows.stop))


def squash_picture(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (640, 640, 3) uint8, bilinear and antialiased, aspect not kept."""
    size = (LEGACY_SIDE, LEGACY_SIDE)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def squash_ids(ids: np.ndarray) -> np.ndarray:
    """(H, W) ids or mask to (640, 640) of the same type: the pixel at floor(i * H / 640), as torch's mode "nearest"."""
    rows, columns = (np.arange(LEGACY_SIDE) * side // LEGACY_SIDE for side in ids.shape)
    squashed: np.ndarray = ids[rows[:, None], columns]
    return squashed


def _outside(values: np.ndarray, bg_alpha: float) -> np.ndarray:
    alpha, grey = np.float32(bg_alpha), np.float32(0.5 * (1 - bg_alpha))
    mixed: np.ndarray = (values.astype(np.float32) / np.float32(255) * alpha + grey) * np.float32(255)
    return mixed.astype(np.uint8)
