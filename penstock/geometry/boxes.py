"""Boxes: XYWH, XYXY, SA-1B's one-less, Open Images' unit corners; faults, clipping, the box of a mask.

Everywhere a pixel in column x covers x..x+1, so that a box of one pixel has width 1, and right and bottom edges are
exclusive. Floats keep their type; integers become int64, so that no small type can overflow.
"""

import numpy as np

from penstock.errors import BadData


def xywh_to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    """Left, top, width, height to left, top, right, bottom.

    Args:
        boxes_xywh: (..., 4) numbers in pixels; right and bottom edges are exclusive: right = left + width.

    Returns:
        (..., 4) in the same frame; floats of the same type, or int64.
    """
    boxes = _wide(boxes_xywh)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """The inverse of `xywh_to_xyxy`: (..., 4), same types and frame."""
    boxes = _wide(boxes_xyxy)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def one_less_to_xywh(boxes_one_less: np.ndarray) -> np.ndarray:
    """The boxes of SA-1B's JSON to XYWH.

    SA-1B (and what its mask generator writes) gives the last column minus the first and the last row minus the first,
    one less than the number of columns and rows that COCO gives.

    Args:
        boxes_one_less: (..., 4) numbers in pixels: left, top, last column - left, last row - top.

    Returns:
        (..., 4) XYWH in the same frame; floats of the same type, or int64.
    """
    boxes = _wide(boxes_one_less)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] + 1], axis=-1)


def xywh_to_one_less(boxes_xywh: np.ndarray) -> np.ndarray:
    """The inverse of `one_less_to_xywh`: (..., 4), same types and frame.

    Raises:
        BadData: a width or a height is below 1 or NaN: a box without pixels has no last column.
    """
    boxes = _wide(boxes_xywh)
    if not (boxes[..., 2:] >= 1).all():
        least = boxes[..., 2:].min()
        raise BadData(f"one-less boxes: expected widths and heights of 1 and more, got {least}; drop empty boxes first")
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - 1], axis=-1)


def unit_xxyy_to_xywh(corners: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Corners as the CSV files of Open Images give them to XYWH in pixels.

    Args:
        corners: (..., 4) XMin, XMax, YMin, YMax (in this order) in 0..1 of the picture's width and height.
        size_hw: height and width of the picture.

    Returns:
        (..., 4) float32 XYWH in pixels of the picture; not clipped. Whole pixels that went through float64 come back
        exactly.
    """
    x0, x1, y0, y1 = np.moveaxis(np.asarray(corners, np.float64), -1, 0)
    height, width = size_hw
    boxes = np.stack([x0 * width, y0 * height, x1 * width - x0 * width, y1 * height - y0 * height], axis=-1)
    return boxes.astype(np.float32)


def xywh_to_unit_xxyy(boxes_xywh: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The inverse of `unit_xxyy_to_xywh`: (..., 4) XYWH in pixels to (..., 4) float64 XMin, XMax, YMin, YMax.

    Raises:
        ValueError: a side of `size_hw` is not positive.
    """
    _positive(size_hw, "size_hw")
    x0, y0, x1, y1 = np.moveaxis(xywh_to_xyxy(np.asarray(boxes_xywh, np.float64)), -1, 0)
    height, width = size_hw
    return np.stack([x0 / width, x1 / width, y0 / height, y1 / height], axis=-1)


def scale_boxes(boxes_xyxy: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> np.ndarray:
    """Boxes of a picture that was stretched to another size (no padding, sides scaled independently).

    Args:
        boxes_xyxy: (..., 4) in pixels of a picture of `from_hw`.
        from_hw: height and width of the frame that the boxes are in; both positive.
        to_hw: height and width of the frame wanted.

    Returns:
        (..., 4) float32 XYXY in pixels of a picture of `to_hw`; not clipped.

    Raises:
        ValueError: a side of `from_hw` is not positive.
    """
    _positive(from_hw, "from_hw")
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    scaled: np.ndarray = np.asarray(boxes_xyxy, np.float64) * np.array([x, y, x, y])
    return scaled.astype(np.float32)


def clip_boxes_xywh(boxes_xywh: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The part of each box that lies inside the picture.

    Args:
        boxes_xywh: (..., 4) in pixels; widths and heights of 0 and more.
        size_hw: height and width of the picture.

    Returns:
        (..., 4) XYWH in the same frame; floats of the same type, or int64. A box wholly outside gets width or height 0
        at the border; NaN stays NaN.
    """
    corners = xywh_to_xyxy(boxes_xywh)
    height, width = size_hw
    return xyxy_to_xywh(np.clip(corners, 0, np.array([width, height, width, height], corners.dtype)))


def box_faults(
    boxes_xywh: np.ndarray, size_hw: tuple[int, int] | None = None, *, whole: bool = False
) -> dict[int, str]:
    """What is wrong with which box.

    Args:
        boxes_xywh: (N, 4) numbers in pixels.
        size_hw: height and width of the picture, or None where it is not known: then no box is outside.
        whole: also a box that reaches over the border is a fault. Trackers' boxes may, the boxes of masks may not.

    Returns:
        Row to reason, for the faulty boxes only, in order: "not finite (...)", "empty (...)", "outside the picture
        (...)" where nothing of it lies inside, "across the border (...)".
    """
    boxes = np.asarray(boxes_xywh, np.float64).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1)
    empty = finite & ~(boxes[:, 2:] > 0).all(axis=1)
    checks = [(~finite, "not finite"), (empty, "empty")]
    if size_hw is not None:
        limits = np.array(size_hw[::-1], np.float64)
        with np.errstate(invalid="ignore"):  # infinite sides: not finite, found above
            starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        checks.append((finite & ~empty & ((starts >= limits) | (ends <= 0)).any(axis=1), "outside the picture"))
        if whole:
            checks.append((((starts < 0) | (ends > limits)).any(axis=1), "across the border"))
    faults: dict[int, str] = {}
    frame = f" in a picture of {size_hw[0]} x {size_hw[1]} (height x width)" if size_hw else ""
    for is_faulty, reason in checks:
        for row in np.flatnonzero(is_faulty).tolist():
            numbers = ", ".join(f"{number:g}" for number in boxes[row])
            faults.setdefault(row, f"{reason} (left, top, width, height = {numbers}{frame})")
    return dict(sorted(faults.items()))


def box_fault(box_xywh: np.ndarray, size_hw: tuple[int, int] | None = None, *, whole: bool = False) -> str:
    """What is wrong with one box, (4, ) numbers; "" where nothing is. Otherwise as `box_faults`."""
    return box_faults(np.asarray(box_xywh).reshape(1, 4), size_hw, whole=whole).get(0, "")


def mask_box(mask: np.ndarray) -> np.ndarray:
    """The tight box of a mask, as COCO counts: width = last column - first column + 1.

    Args:
        mask: (H, W) numbers or bool; what is not 0 belongs to the object.

    Returns:
        (4, ) float32 XYWH in pixels of the mask; zeros for an empty mask.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return np.zeros(4, np.float32)
    x0, x1, y0, y1 = columns[0], columns[-1], rows[0], rows[-1]
    return np.array([x0, y0, x1 - x0 + 1, y1 - y0 + 1], np.float32)


def _wide(boxes: np.ndarray) -> np.ndarray:
    numbers = np.asarray(boxes)
    return numbers.astype(np.int64) if numbers.dtype.kind in "iub" else numbers


def _positive(size_hw: tuple[int, int], name: str) -> None:
    if min(size_hw) <= 0:
        raise ValueError(f"{name}: expected positive sides, got {size_hw}")
