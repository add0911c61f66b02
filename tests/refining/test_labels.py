"""Id maps, parsed: numbers, areas and boxes against masks one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import BadData
from penstock.geometry.boxes import mask_box
from penstock.refining.labels import MAX_OBJECTS, parse

TYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"]


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """Few different ids, small or huge, some not valid, of any type that holds them."""
    dtype = draw(st.sampled_from(TYPES))
    limits = np.iinfo(dtype)
    ids = draw(st.lists(st.integers(int(limits.min), min(int(limits.max), 2**63 - 1)) | st.integers(0, 5), max_size=5))
    size_hw = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    return draw(hnp.arrays(np.dtype(dtype), size_hw, elements=st.sampled_from([0, *ids])))


@given(ids=maps(), invalid=st.lists(st.integers(-3, 5), max_size=2))
def test_every_id_above_0_is_an_object_unless_it_is_said_to_be_invalid(ids: np.ndarray, invalid: list[int]) -> None:
    objects = parse(ids, invalid=invalid)
    valid = sorted({int(one) for one in ids.ravel() if one > 0} - set(invalid))
    assert objects.ids.tolist() == valid
    assert len(objects) == len(valid)
    assert objects.size_hw == ids.shape
    for number, one in enumerate(valid, 1):
        np.testing.assert_array_equal(objects.labels == number, ids == one)
        assert objects.areas[number - 1] == (ids == one).sum()
        assert objects.boxes[number - 1].tolist() == mask_box(ids == one).tolist()
    assert int((objects.labels > 0).sum()) == int(objects.areas.sum())
    types = [str(part.dtype) for part in (objects.labels, objects.ids, objects.areas, objects.boxes)]
    assert types == ["uint8", "int64", "int64", "int32"]
    assert objects.boxes.shape == (len(valid), 4)


@pytest.mark.parametrize("value", [0, -1, 7])
def test_a_map_without_a_valid_pixel_has_no_objects(value: int) -> None:
    objects = parse(np.full((3, 4), value), invalid=(7,))
    assert len(objects) == 0
    assert not objects.labels.any()


def test_a_view_that_is_not_contiguous_is_a_map_too() -> None:
    ids = np.arange(24).reshape(4, 6).T[::2]
    np.testing.assert_array_equal(parse(ids).labels, np.searchsorted(np.unique(ids[ids > 0]), ids) + 1 - (ids == 0))


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_labels_are_bytes_where_a_byte_numbers_all_objects(count: int, dtype: type) -> None:
    ids = np.arange(1, 2 * count + 1).reshape(2, count)
    objects = parse(ids, invalid=range(count + 1, 2 * count + 1))
    assert objects.labels.dtype == dtype
    assert objects.labels.tolist() == [list(range(1, count + 1)), [0] * count]


@pytest.mark.parametrize("high", [255, 256, 65_535, 65_536, 1 << 32])
def test_ids_of_which_only_the_high_bits_differ_are_told_apart(high: int) -> None:
    assert parse(np.array([[1, 1 + high, 1, -1, high - 1, -high]])).labels.tolist() == [[1, 3, 1, 0, 2, 0]]


def test_as_many_objects_as_uint16_numbers_and_no_more() -> None:
    ids = np.arange(1, MAX_OBJECTS + 2).reshape(256, 256)
    assert parse(ids, invalid=(9,)).labels.max() == MAX_OBJECTS
    with pytest.raises(BadData, match="at most 65535 objects, got 65536"):
        parse(ids)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.ones((2, 2), bool), "got bool"),
        (np.ones((2, 2), np.float32), r"whole numbers, got \(2, 2\) float32"),
        (np.ones((2, 2, 1), np.int32), "expected"),
        (np.ones((0, 2), np.int32), "expected"),
        (np.array([[1, 1 << 63]], np.uint64), "up to 2.63 - 1, got 9223372036854775808"),
    ],
)
def test_what_is_no_id_map_is_bad_data(ids: np.ndarray, words: str) -> None:
    with pytest.raises(BadData, match=words):
        parse(ids)
