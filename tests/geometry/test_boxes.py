"""Boxes: formats, frames, faults."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import BadData
from penstock.geometry.boxes import (
    box_fault,
    box_faults,
    clip_boxes_xywh,
    mask_box,
    one_less_to_xywh,
    scale_boxes,
    unit_xxyy_to_xywh,
    xywh_to_one_less,
    xywh_to_unit_xxyy,
    xywh_to_xyxy,
    xyxy_to_xywh,
)


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


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_small_integers_do_not_overflow(dtype: type) -> None:
    box = np.array([[100, 100, 127, 120]], dtype)
    np.testing.assert_array_equal(xywh_to_xyxy(box), np.array([[100, 100, 227, 220]]), strict=True)
    np.testing.assert_array_equal(one_less_to_xywh(box), np.array([[100, 100, 128, 121]]), strict=True)
    np.testing.assert_array_equal(xyxy_to_xywh(np.array([9, 9, 5, 5], dtype)), [9, 9, -4, -4])


@given(arrays(np.int64, (3, 4), elements=st.integers(1, 10_000)), st.sampled_from([np.int64, np.float32, np.float64]))
def test_one_less_boxes_come_back(numbers: np.ndarray, dtype: type) -> None:
    boxes = numbers.astype(dtype)
    one_less = xywh_to_one_less(boxes)
    np.testing.assert_array_equal(one_less[:, 2:], boxes[:, 2:] - 1)
    np.testing.assert_array_equal(one_less_to_xywh(one_less), boxes, strict=True)


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [0, 0, 5, 0.5], [0, 0, float("nan"), 5]])
def test_a_box_without_pixels_has_no_one_less_form(box: list[float]) -> None:
    with pytest.raises(BadData, match="one-less"):
        xywh_to_one_less(np.array(box))


def test_unit_corners_are_in_the_order_of_open_images() -> None:
    boxes = unit_xxyy_to_xywh(np.array([[0.25, 0.75, 0.1, 0.2]]), (100, 200))
    np.testing.assert_array_equal(boxes, np.array([[50, 10, 100, 10]], np.float32), strict=True)


@given(arrays(np.float32, (3, 4), elements=st.integers(1, 5_000)), st.integers(1, 5_000), st.integers(1, 5_000))
def test_whole_pixels_come_back_from_unit_corners(boxes: np.ndarray, height: int, width: int) -> None:
    back = unit_xxyy_to_xywh(xywh_to_unit_xxyy(boxes, (height, width)), (height, width))
    np.testing.assert_array_equal(back, boxes, strict=True)


def test_unit_corners_need_pixels() -> None:
    with pytest.raises(ValueError, match="size_hw"):
        xywh_to_unit_xxyy(np.ones((1, 4)), (5, 0))


def test_clipping_keeps_the_part_inside() -> None:
    boxes = np.array([[-5, -5, 10, 10], [2, 3, 4, 5], [90, 40, 50, 50], [300, 0, 5, 5]], np.float32)
    clipped = np.array([[0, 0, 5, 5], [2, 3, 4, 5], [90, 40, 10, 10], [100, 0, 0, 5]], np.float32)
    np.testing.assert_array_equal(clip_boxes_xywh(boxes, (50, 100)), clipped, strict=True)
    np.testing.assert_array_equal(clip_boxes_xywh(boxes.astype(np.int16), (50, 100)), clipped.astype(int), strict=True)
    assert np.isnan(clip_boxes_xywh(np.full(4, np.nan), (5, 5))).all()


@given(arrays(np.float64, (5, 4), elements=st.integers(-20, 20)))
def test_a_box_is_outside_exactly_where_nothing_of_it_is_left(boxes: np.ndarray) -> None:
    boxes[:, 2:] = np.abs(boxes[:, 2:]) + 1
    size_hw = (8, 12)
    clipped = clip_boxes_xywh(boxes, size_hw)
    gone = np.flatnonzero((clipped[:, 2:] <= 0).any(axis=1))
    assert list(box_faults(boxes, size_hw)) == gone.tolist()
    changed = np.flatnonzero((clipped != boxes).any(axis=1))
    assert list(box_faults(boxes, size_hw, whole=True)) == changed.tolist()


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([float("nan"), 0, 5, 5], "not finite"),
        ([0, 0, float("inf"), 5], "not finite"),
        ([0, 0, 0, 5], "empty"),
        ([0, 0, 5, -1], "empty"),
        ([100, 0, 5, 5], "outside the picture"),
        ([0, -5, 5, 5], "outside the picture"),
    ],
)
def test_faults_are_named(box: list[float], reason: str) -> None:
    assert box_fault(np.array(box), (50, 100)).startswith(reason)
    assert box_fault(np.array([0, 0, 100, 50]), (50, 100), whole=True) == ""
    assert box_fault(np.array([-1, 0, 100, 50]), (50, 100)) == ""
    assert box_fault(np.array([-1, 0, 100, 50]), (50, 100), whole=True).startswith("across the border")
    assert box_fault(np.array([1e6, 0, 100, 50])) == ""


def test_the_box_of_a_mask_counts_as_coco_does() -> None:
    mask = np.zeros((10, 20), bool)
    mask[3, 5] = True
    np.testing.assert_array_equal(mask_box(mask), np.array([5, 3, 1, 1], np.float32), strict=True)
    mask[8, 15] = True
    np.testing.assert_array_equal(mask_box(mask), [5, 3, 11, 6])
    np.testing.assert_array_equal(mask_box(mask[:0]), np.zeros(4, np.float32), strict=True)
