"""Id maps: to masks and back, areas, boxes; panoptic colours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import mask_box
from penstock.geometry.id_maps import (
    MAX_PANOPTIC_ID,
    id_areas,
    id_boxes,
    ids_to_masks,
    masks_to_ids,
    panoptic_ids,
    panoptic_rgb,
)

sizes = st.tuples(st.integers(1, 10), st.integers(1, 10))


def maps(dtype: type, low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    return sizes.flatmap(lambda size: arrays(dtype, size, elements=st.integers(low, high)))


@given(maps(np.uint32, 0, MAX_PANOPTIC_ID))
def test_panoptic_ids_come_back(ids: np.ndarray) -> None:
    rgb = panoptic_rgb(ids)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(panoptic_ids(rgb), ids, strict=True)
    np.testing.assert_array_equal(panoptic_rgb(ids.astype(np.int64)), rgb)
    np.testing.assert_array_equal(rgb.astype(np.int64) @ [1, 256, 65536], ids)


def test_panoptic_channels_do_not_overflow() -> None:
    assert panoptic_ids(np.full((1, 1, 3), 255, np.uint8))[0, 0] == MAX_PANOPTIC_ID
    assert panoptic_ids(np.array([[[1, 2, 3]]], np.uint8))[0, 0] == 1 + 2 * 256 + 3 * 65536
    assert panoptic_ids(np.array([[[1, 2, 3]]], np.uint8)[..., ::-1])[0, 0] == 3 + 2 * 256 + 65536


@pytest.mark.parametrize(
    "ids",
    [
        np.array([[MAX_PANOPTIC_ID + 1]]),
        np.array([[-1]]),
        np.array([[1.0]]),
        np.array([1, 2]),
        np.zeros((0, 3), int),
        np.array([[True], [False]], object),
    ],
)
def test_ids_beyond_three_bytes_are_refused(ids: np.ndarray) -> None:
    with pytest.raises(BadData, match="id map: expected"):
        panoptic_rgb(ids)


@pytest.mark.parametrize("rgb", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), int)])
def test_other_pictures_are_no_panoptic_ids(rgb: np.ndarray) -> None:
    with pytest.raises(BadData, match="panoptic picture"):
        panoptic_ids(rgb)


@given(st.sampled_from([np.uint8, np.int16, np.uint32, np.int64]).flatmap(lambda dtype: maps(dtype, 0, 4)))
def test_masks_of_all_ids_give_the_map_back(ids: np.ndarray) -> None:
    found, areas = id_areas(ids)
    masks = ids_to_masks(ids, found.tolist())
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), areas)
    np.testing.assert_array_equal(masks.sum(axis=0), np.ones(ids.shape))
    objects = found > 0
    np.testing.assert_array_equal(
        masks_to_ids(masks[objects], found[objects].tolist()), ids.astype(np.uint32), strict=True
    )
    shifted = masks_to_ids(masks, (found.astype(int) + 70_000).tolist(), background=7)
    np.testing.assert_array_equal(shifted, ids.astype(np.uint32) + np.uint32(70_000))


@given(
    st.sampled_from([np.uint8, np.int32, np.int64]).flatmap(
        lambda dtype: maps(dtype, 0 if dtype is np.uint8 else -3, 3)
    )
)
def test_areas_and_boxes_are_those_of_the_masks(ids: np.ndarray) -> None:
    found, areas = id_areas(ids)
    values, counts = np.unique(ids, return_counts=True)
    np.testing.assert_array_equal(found, values, strict=True)
    np.testing.assert_array_equal(areas, counts, strict=True)
    same, boxes = id_boxes(ids)
    np.testing.assert_array_equal(same, values, strict=True)
    expected = np.stack([mask_box(ids == one) for one in values])
    np.testing.assert_array_equal(boxes, expected, strict=True)
    np.testing.assert_array_equal(id_boxes(np.asfortranarray(ids))[1], expected)


def test_ids_that_do_not_occur_or_do_not_fit_give_empty_masks() -> None:
    ids = np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(ids_to_masks(ids, [255, -1, 511, 255]), [[[0, 1]], [[0, 0]], [[0, 0]], [[0, 1]]])
    assert ids_to_masks(ids, []).shape == (0, 1, 2)


def test_overlaps_need_a_rule() -> None:
    masks = np.array([[[1, 1, 1, 0]], [[0, 1, 0, 0]], [[0, 1, 1, 0]]], np.uint8)
    with pytest.raises(BadData, match="id 8 shares 1 pixels"):
        masks_to_ids(masks, [9, 8, 7])
    np.testing.assert_array_equal(masks_to_ids(masks, [9, 8, 7], overlap="last"), [[9, 7, 7, 0]])
    np.testing.assert_array_equal(masks_to_ids(masks, [9, 8, 7], overlap="smallest"), [[9, 8, 7, 0]])
    np.testing.assert_array_equal(masks_to_ids(masks[:0], []), [[0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("ids", "rule"),
    [([1], "last"), ([1, 1], "last"), ([0, 1], "last"), ([-1, 1], "last"), ([1, 1 << 32], "last"), ([1, 2], "first")],
)
def test_wrong_ids_and_rules_are_refused(ids: list[int], rule: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        masks_to_ids(np.zeros((2, 3, 3)), ids, overlap=rule)  # type: ignore[arg-type]


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(BadData, match="0 and 1"):
        masks_to_ids(np.full((1, 2, 2), 255, np.uint8), [1])
    with pytest.raises(BadData, match=r"\(N, H, W\)"):
        masks_to_ids(np.zeros((2, 2), np.uint8), [1, 2])


def test_boxes_of_five_hundred_ids() -> None:
    tiles = np.kron(np.arange(25 * 20).reshape(20, 25), np.ones((54, 57), int)).astype(np.int32)
    found, boxes = id_boxes(tiles)
    assert len(found) == 500
    np.testing.assert_array_equal(boxes[26], [57, 54, 57, 54])
