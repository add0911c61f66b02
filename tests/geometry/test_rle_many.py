"""Many masks at once are the same as one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import BadData
from penstock.geometry.rle import encode_rle, rle_area, rle_box
from penstock.geometry.rle_many import rle_areas_and_boxes

SIZE = (7, 5)


def one_by_one(rles: list[object], size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    areas, boxes = np.full(len(rles), np.nan), np.full((len(rles), 4), np.nan, np.float32)
    for place, rle in enumerate(rles):
        try:
            areas[place], boxes[place] = rle_area(rle, size_hw), rle_box(rle, size_hw)  # type: ignore[arg-type]
        except BadData:
            continue
    return areas, boxes


masks = st.one_of(
    arrays(np.uint8, SIZE, elements=st.integers(0, 1)),
    arrays(np.uint8, (7, 6), elements=st.integers(0, 1)),
    st.sampled_from([np.zeros(SIZE, np.uint8), np.ones(SIZE, np.uint8)]),
)
good = st.builds(lambda mask, compressed: encode_rle(mask, compressed=compressed), masks, st.booleans())
strange = st.one_of(
    st.none(),
    st.just({}),
    st.builds(lambda text: {"size": list(SIZE), "counts": text}, st.text("0123PQRSTXo_ko\x7f\u00e9", max_size=6)),
    st.builds(lambda rle, cut: {**rle, "counts": rle["counts"][:cut]}, good, st.integers(0, 8)),
)


@given(st.lists(st.one_of(good, good, good, strange), max_size=8))
def test_many_equal_one_by_one(rles: list[object]) -> None:
    for found, expected in zip(rle_areas_and_boxes(rles, SIZE), one_by_one(rles, SIZE), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_large_masks_equal_one_by_one(rng: np.random.Generator) -> None:
    size = (300, 400)
    rles: list[object] = []
    for _ in range(40):
        mask = np.zeros(size, np.uint8)
        for top, left, height, width in rng.integers(0, 200, (4, 4)).tolist():
            mask[top : top + height, left : left + width] ^= 1
        rles.append(encode_rle(mask))
    rles += [{"size": list(size), "counts": "o" * 13 + "0"}, {"size": list(size), "counts": [120000]}]
    for some in (rles, rles[:40]):
        for found, expected in zip(rle_areas_and_boxes(some, size), one_by_one(some, size), strict=True):
            np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("size", [(0, 5), (1 << 20, 1 << 20)])
def test_sizes_that_no_mask_has_give_nothing(size: tuple[int, int]) -> None:
    areas, _ = rle_areas_and_boxes([{"size": list(size), "counts": "00"}], size)
    assert np.isnan(areas).all()
