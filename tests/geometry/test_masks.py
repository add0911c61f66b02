"""Masks: what is one, and resizing, by area and to the nearest pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.geometry.masks import binary_mask, nearest, resize_mask


def test_a_cell_is_set_where_more_than_half_is_covered() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :2] = 1  # a whole cell
    mask[2:, :2] = [[1, 0], [0, 1]]  # exactly half of one
    mask[:2, 2:] = [[1, 1], [1, 0]]  # three quarters of one
    np.testing.assert_array_equal(resize_mask(mask, (2, 2)), np.array([[1, 1], [0, 0]], np.uint8), strict=True)


def test_averages_are_those_of_numpy_for_whole_factors() -> None:
    mask = np.random.default_rng(0).random((60, 90)) < 0.5
    cover = mask.reshape(20, 3, 30, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize_mask(mask, (20, 30)), cover > 0.5)


def test_an_object_of_one_pixel_keeps_one_cell() -> None:
    mask = np.zeros((1500, 2250), bool)
    mask[700, 2000] = True
    small = resize_mask(mask, (256, 256))
    assert small.sum() == 1
    assert small[700 * 256 // 1500, 2000 * 256 // 2250] == 1
    assert not resize_mask(np.zeros((1500, 2250)), (256, 256)).any()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 5), (1, 40_000)])
def test_what_is_no_mask_is_bad_data(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadData, match="expected"):
        resize_mask(np.zeros(shape), (4, 4))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_zeros_and_ones_of_any_type_are_a_mask(dtype: type) -> None:
    mask = np.array([[0, 1], [1, 1]], dtype)
    np.testing.assert_array_equal(binary_mask(mask), np.array([[0, 1], [1, 1]], np.uint8), strict=True)


@pytest.mark.parametrize(
    "mask",
    [
        np.array([[0, 255]], np.uint8),
        np.array([[0, -1]]),
        np.array([[0.0, 0.5]]),
        np.array([[np.nan, 1.0]]),
        np.array([["0", "1"]]),
        np.zeros((0, 4)),
        np.zeros((2, 2, 1)),
    ],
)
def test_other_values_are_not_rounded(mask: np.ndarray) -> None:
    with pytest.raises(BadData, match="mask: expected"):
        binary_mask(mask)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_nearest_takes_the_pixel_that_the_centre_falls_in(height: int, width: int, tall: int, wide: int) -> None:
    ids = np.arange(height * width).reshape(height, width)
    rows = [int((2 * row + 1) * height / (2 * tall)) for row in range(tall)]
    columns = [int((2 * column + 1) * width / (2 * wide)) for column in range(wide)]
    assert nearest(ids, (tall, wide)).tolist() == [[int(ids[row, column]) for column in columns] for row in rows]
    assert nearest(ids, ids.shape) is ids
