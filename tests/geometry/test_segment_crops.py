"""Crops of segments: the formulas, to the byte; blending before or after the cut is the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.geometry.segment_crops import (
    blend,
    blend_table,
    cut_segment,
    padded_window,
    reference_crop,
    squash_ids,
    squash_picture,
)

SIDES = st.integers(1, 40)
SHARES = st.floats(0, 1)


def picture_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def boxed(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Height and width, and a box in it: left, top, width, height."""
    height, width = draw(SIDES), draw(SIDES)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (height, width), (left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top)))


@given(boxed(), st.floats(0, 2))
def test_padding_is_truncated_and_ends_at_the_borders(
    case: tuple[tuple[int, int], tuple[int, int, int, int]], pad_ratio: float
) -> None:
    (height, width), (left, top, box_width, box_height) = case
    rows, columns = padded_window(np.array([left, top, box_width, box_height]), pad_ratio, (height, width))
    assert rows.start == max(0, top - int(pad_ratio * box_height))
    assert rows.stop == min(height, top + box_height + int(pad_ratio * box_height))
    assert columns.start == max(0, left - int(pad_ratio * box_width))
    assert columns.stop == min(width, left + box_width + int(pad_ratio * box_width))


def test_a_box_of_nine_pixels_gets_no_padding_and_one_of_ten_gets_one() -> None:
    assert padded_window(np.array([20, 20, 9, 10]), 0.1, (100, 100)) == (slice(19, 31), slice(20, 29))


@given(SHARES)
def test_the_table_is_the_formula(bg_alpha: float) -> None:
    values = np.arange(256, dtype=np.uint8)
    scaled = values.astype(np.float32) / np.float32(255)
    expected = ((scaled * np.float32(bg_alpha) + np.float32(0.5 * (1 - bg_alpha))) * np.float32(255)).astype(np.uint8)
    np.testing.assert_array_equal(blend_table(bg_alpha), expected)


def test_thirty_per_cent_of_black_and_of_white() -> None:
    table = blend_table(0.3)
    assert (table[0], table[255]) == (89, 165)  # 89.25 and 165.75, truncated


def test_alpha_of_one_leaves_every_value_as_it_is() -> None:
    np.testing.assert_array_equal(blend_table(1.0), np.arange(256))


@given(boxed(), SHARES, st.floats(0, 1))
def test_blending_the_whole_picture_and_cutting_is_cutting_and_blending(
    case: tuple[tuple[int, int], tuple[int, int, int, int]], bg_alpha: float, pad_ratio: float
) -> None:
    (height, width), (left, top, box_width, box_height) = case
    picture = picture_of(height, width)
    mask = np.zeros((height, width), bool)
    mask[top : top + box_height, left : left + box_width] = True
    mask[top, left + box_width - 1] = mask[top + box_height - 1, left] = True
    whole = np.asarray(reference_crop(picture, mask, bg_alpha=bg_alpha, pad_ratio=pad_ratio))
    crop = cut_segment(picture, mask, pad_ratio)
    np.testing.assert_array_equal(blend(crop.pixels, crop.inside, bg_alpha), whole)
    np.testing.assert_array_equal(crop.box_xywh, [left, top, box_width, box_height])
    assert crop.area == box_width * box_height


def test_inside_is_as_it_was() -> None:
    picture, inside = picture_of(7, 5), np.eye(7, 5, dtype=np.uint8)
    blended = blend(picture, inside, 0.3)
    np.testing.assert_array_equal(blended[inside == 1], picture[inside == 1])
    np.testing.assert_array_equal(blended[inside == 0], blend_table(0.3)[picture[inside == 0]])


def test_an_empty_mask_is_bad_data() -> None:
    with pytest.raises(BadData, match=r"its mask of 4 x 6 .* is empty"):
        cut_segment(picture_of(4, 6), np.zeros((4, 6), bool), 0.1)


def test_a_mask_of_another_size_is_bad_data() -> None:
    with pytest.raises(BadData, match=r"the mask is \(6, 4\), the picture \(4, 6\)"):
        cut_segment(picture_of(4, 6), np.ones((6, 4), bool), 0.1)


def test_ids_are_squashed_as_torch_does_it() -> None:
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 1 << 24, (123, 457))
    found = torch.nn.functional.interpolate(torch.from_numpy(ids)[None, None].double(), (640, 640), mode="nearest")
    np.testing.assert_array_equal(squash_ids(ids), found[0, 0].numpy().astype(ids.dtype))


def test_pictures_are_squashed_to_a_square() -> None:
    assert squash_picture(picture_of(30, 50)).shape == (640, 640, 3)
