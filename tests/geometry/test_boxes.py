"""Boxes: formats and frames."""

import numpy as np
import pytest

from penstock.geometry.boxes import scale_boxes, xywh_to_xyxy, xyxy_to_xywh


def test_xywh_to_xyxy_adds_the_size() -> None:
    np.testing.assert_array_equal(xywh_to_xyxy(np.array([[30, 20, 120, 80]], np.float32)), [[30, 20, 150, 100]])


def test_formats_are_inverse_and_keep_type_and_shape() -> None:
    boxes = np.random.default_rng(0).integers(0, 50, (2, 3, 4))
    back = xyxy_to_xywh(xywh_to_xyxy(boxes))
    np.testing.assert_array_equal(back, boxes, strict=True)
    assert xywh_to_xyxy(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_scaling_stretches_each_side() -> None:
    scaled = scale_boxes(np.array([[10, 20, 30, 40]]), (100, 200), (50, 1000))
    np.testing.assert_array_equal(scaled, np.array([[50, 10, 150, 20]], np.float32), strict=True)


def test_a_frame_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        scale_boxes(np.zeros((1, 4)), (0, 5), (10, 10))
