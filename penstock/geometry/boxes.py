"""Boxes: XYWH and XYXY, and from one picture size to another."""

import numpy as np


def xywh_to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    """Left, top, width, height to left, top, right, bottom.

    Args:
        boxes_xywh: (..., 4) numbers in pixels; right and bottom edges are exclusive: right = left + width.

    Returns:
        (..., 4) of the same type, in the same frame.
    """
    boxes = np.asarray(boxes_xywh)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """The inverse of `xywh_to_xyxy`: (..., 4), same type and frame."""
    boxes = np.asarray(boxes_xyxy)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


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
    if min(from_hw) <= 0:
        raise ValueError(f"from_hw: expected positive sides, got {from_hw}")
    y, x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    scaled: np.ndarray = np.asarray(boxes_xyxy, np.float64) * np.array([x, y, x, y])
    return scaled.astype(np.float32)
