"""Square crops: windows, exact maps, padding, pixels."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.geometry.crops import (
    MAX_SIDE,
    CropWindow,
    brighten,
    crop_affine,
    crop_padding,
    crop_window,
    cut_crop,
    cut_mask,
    fed_boxes,
    jitter_box,
    map_boxes,
    mirror_boxes,
    mirror_pixels,
)

coordinates = st.floats(-50, 300, allow_nan=False)
lengths = st.floats(0.5, 200, allow_nan=False)
boxes = st.tuples(coordinates, coordinates, lengths, lengths).map(np.array)
windows = st.builds(
    CropWindow, st.integers(-60, 90), st.integers(-60, 90), st.integers(1, 120), st.sampled_from([16, 32, 48])
)


def as_points(corners: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return corners @ affine[:, :2].T + affine[:, 2]


@pytest.mark.parametrize(
    ("box", "factor", "expected"),
    [
        ((10, 20, 30, 30), 2.0, (-5, 5, 60)),
        ((0, 0, 64, 64), 2.0, (-32, -32, 128)),
        ((0, 0, 1, 1), 4.0, (-2, -2, 4)),
        ((10, 10, 20, 5), 4.0, (0, -8, 40)),  # the centre lies at 12.5: halves go to the even number
        ((10, 10, 2, 1), 2.0, (10, 9, 3)),  # ceil(sqrt(2) * 2) = 3
        ((3, 3, 0, 9), 4.0, (3, 8, 0)),
    ],
)
def test_window_of_a_box(box: tuple[float, ...], factor: float, expected: tuple[int, int, int]) -> None:
    window = crop_window(np.array(box), factor=factor, size=32)
    assert (window.x, window.y, window.side, window.size) == (*expected, 32)


def test_a_box_of_any_size_gives_a_window_that_can_be_refused() -> None:
    assert crop_window(np.array([0, 0, 1e200, 1e200]), factor=4, size=32).side > MAX_SIDE
    assert crop_window(np.array([0, 0, 1e-200, 1e-200]), factor=4, size=32).side == 0


@given(boxes, st.floats(0.5, 6))
def test_side_and_centre_of_a_window(box: np.ndarray, factor: float) -> None:
    window = crop_window(box, factor=factor, size=32)
    assert window.side == math.ceil(math.sqrt(box[2] * box[3]) * factor)
    centre = np.array([window.x, window.y]) + window.side / 2
    assert np.abs(centre - (box[:2] + box[2:] / 2)).max() <= 0.5 + 1e-9


@given(windows, boxes, st.booleans(), st.booleans())
def test_boxes_and_points_go_the_same_way(window: CropWindow, box: np.ndarray, joint: bool, flip: bool) -> None:
    width = 120
    affine = crop_affine(window, mirrored_width=width if joint else None, flip=flip)
    mapped = map_boxes(box, affine)
    corners = as_points(np.array([box[:2], box[:2] + box[2:]]), affine)
    np.testing.assert_allclose(mapped[:2], corners.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(mapped[:2] + mapped[2:], corners.max(axis=0), atol=1e-6)
    by_hand = mirror_boxes(box, width) if joint else box
    by_hand = (by_hand - np.array([window.x, window.y, 0, 0])) * window.scale
    np.testing.assert_allclose(mapped, mirror_boxes(by_hand, window.size) if flip else by_hand, atol=1e-6)


@given(boxes, boxes, st.floats(1, 5), st.sampled_from([16, 128, 256]))
def test_the_fed_boxes_lie_as_near_to_the_exact_ones_as_stated(
    box: np.ndarray, around: np.ndarray, factor: float, size: int
) -> None:
    window = crop_window(around, factor=factor, size=size)
    exact = map_boxes(box, crop_affine(window))
    fed = fed_boxes(box, around, window) * size
    np.testing.assert_allclose(fed[2:], exact[2:], rtol=1e-9)
    assert np.abs(fed[:2] - exact[:2]).max() <= (1 + window.scale) / 2 + 1e-6
    if window.scale <= 1:
        assert np.abs(fed[:2] - exact[:2]).max() <= 1 + 1e-6


def test_fed_box_by_hand() -> None:
    """A box of 50 x 50 in the middle of its own search crop: side 200, scale 256 / 200, centre at 127.5."""
    box = np.array([100.0, 60.0, 50.0, 50.0])
    window = crop_window(box, factor=4.0, size=256)
    np.testing.assert_allclose(fed_boxes(box, box, window) * 256, [127.5 - 32, 127.5 - 32, 64, 64])
    np.testing.assert_allclose(map_boxes(box, crop_affine(window)), [96, 96, 64, 64])


def test_nan_boxes_stay_nan() -> None:
    nothing = np.full((2, 4), np.nan)
    assert np.isnan(map_boxes(nothing, crop_affine(CropWindow(0, 0, 8, 16), flip=True))).all()
    assert np.isnan(mirror_boxes(nothing, 10)[:, 0]).all()


@given(windows, st.integers(0, 100))
@settings(max_examples=60)
def test_padding_is_where_the_resize_mixes_in_what_is_outside(window: CropWindow, seed: int) -> None:
    height, width = np.random.default_rng(seed).integers(1, 100, 2).tolist()
    outside = np.ones((window.side, window.side))
    rows, columns = np.arange(window.side) + window.y, np.arange(window.side) + window.x
    outside[np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))] = 0
    resized = cv2.resize(outside, (window.size, window.size), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(crop_padding(window, (height, width)), resized > 1e-4)


def test_padding_is_exact_at_the_borders() -> None:
    """Side = size: one pixel of the picture for each of the crop, so that exactly those outside are padding."""
    padding = crop_padding(CropWindow(-3, -1, 16, 16), (10, 9))
    expected = np.ones((16, 16), bool)
    expected[1:11, 3:12] = False
    np.testing.assert_array_equal(padding, expected)
    assert not crop_padding(CropWindow(0, 0, 16, 16), (16, 16)).any()
    assert crop_padding(CropWindow(16, 0, 16, 16), (16, 16)).all()
    assert crop_padding(CropWindow(10**30, 0, 16, 16), (16, 16)).all()


@given(windows, st.booleans(), st.booleans())
@settings(max_examples=60)
def test_pixels_are_those_of_the_padded_picture(window: CropWindow, mirrored: bool, gray: bool) -> None:
    picture = np.random.default_rng(window.side).integers(0, 256, (70, 90, 3), np.uint8)
    before = picture.copy()
    whole = np.ascontiguousarray(picture[:, ::-1] if mirrored else picture)
    if gray:
        whole = cv2.cvtColor(cv2.cvtColor(whole, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    padded = np.pad(whole, ((250, 250), (250, 250), (0, 0)))
    region = padded[250 + window.y :, 250 + window.x :][: window.side, : window.side]
    expected = cv2.resize(np.ascontiguousarray(region), (window.size, window.size), interpolation=cv2.INTER_LINEAR)
    found = cut_crop(picture, window, mirrored=mirrored, gray=gray)
    np.testing.assert_array_equal(found, expected)
    found[:] = 0
    np.testing.assert_array_equal(picture, before)


@given(windows, st.booleans())
@settings(max_examples=60)
def test_masks_follow_their_picture(window: CropWindow, mirrored: bool) -> None:
    mask = np.zeros((70, 90), np.uint8)
    mask[20:50, 30:70] = 1
    found = cut_mask(mask, window, mirrored=mirrored)
    shares = cut_crop(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2), window, mirrored=mirrored)[:, :, 0]
    np.testing.assert_array_equal(found, shares >= 128)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(cut_mask(mask.astype(bool), window, mirrored=mirrored), found)
    assert not cut_mask(mask * 0, window).any()


def test_jitter_moves_and_grows_as_stated() -> None:
    box = np.array([10.0, 20.0, 40.0, 10.0])
    offset = np.array([0.5, -0.5])
    same = jitter_box(box, growth=np.ones(2), offset=offset, scale_jitter=0, center_jitter=0)
    np.testing.assert_array_equal(same, box)
    moved = jitter_box(box, growth=np.zeros(2), offset=offset, scale_jitter=0.25, center_jitter=3)
    np.testing.assert_allclose(moved, [10 + 30, 20 - 30, 40, 10])
    grown = jitter_box(box, growth=np.log([2.0, 0.5]), offset=np.zeros(2), scale_jitter=1, center_jitter=3)
    np.testing.assert_allclose(grown, [-10, 22.5, 80, 5])


def test_brightness_rounds_and_clips() -> None:
    values = np.array([[[0, 1, 100], [127, 254, 255]]], np.uint8)
    np.testing.assert_array_equal(brighten(values, 1.2), [[[0, 1, 120], [152, 255, 255]]])
    np.testing.assert_array_equal(brighten(values, 0.8), [[[0, 1, 80], [102, 203, 204]]])
    np.testing.assert_array_equal(mirror_pixels(values), values[:, ::-1])
