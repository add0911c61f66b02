"""Polygons: drawn as pycocotools draws, traced so that the same pixels come back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import BadData, MissingExtra
from penstock.geometry.polygons import mask_to_polygons, polygons_to_mask, segmentation_to_mask
from penstock.geometry.rle import encode_rle

coco = pytest.importorskip("pycocotools.mask")
judged_by_coco = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools.decode and toBbox warn under NumPy 2; penstock calls neither."""
SHARED = Path(__file__).parents[2].parent / "shared"

masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.integers(0, 1))
)


@judged_by_coco
@given(masks)
def test_masks_come_back_exactly_holes_included(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask)
    if mask.any():
        rles = coco.frPyObjects(polygons, *mask.shape)
        np.testing.assert_array_equal(coco.decode(coco.merge(rles)), mask)
        np.testing.assert_array_equal(polygons_to_mask(polygons, mask.shape), mask, strict=True)
    else:
        assert polygons == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_noise_and_nested_rings_come_back(share: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((120, 90)) < share
    np.testing.assert_array_equal(polygons_to_mask(mask_to_polygons(noise), noise.shape), noise)
    y, x = np.mgrid[:120, :90]
    rings = np.hypot(y - 60, x - 45).astype(int) // 4 % 2 == 0
    polygons = mask_to_polygons(rings)
    np.testing.assert_array_equal(polygons_to_mask(polygons, rings.shape), rings)


def test_a_square_is_its_four_corners_and_parts_are_apart() -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[1:3, 2:5] = 1
    assert mask_to_polygons(mask) == [[2, 1, 5, 1, 5, 3, 2, 3]]
    mask[3, 5] = 1
    assert len(mask_to_polygons(mask)) == 2


def test_a_hole_is_visited_by_a_cut_of_no_width() -> None:
    mask = np.ones((3, 3), np.uint8)
    mask[1, 1] = 0
    [polygon] = mask_to_polygons(mask)
    x, y = np.array(polygon).reshape(-1, 2).T
    signed = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert signed == 8


def test_many_parts_are_united_fast() -> None:
    mask = np.indices((300, 300)).sum(axis=0) % 2
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 45_000
    np.testing.assert_array_equal(polygons_to_mask(polygons, mask.shape), mask)


@judged_by_coco
@given(
    st.lists(
        st.lists(st.floats(-30, 60), min_size=6, max_size=12).filter(lambda one: len(one) % 2 == 0),
        min_size=1,
        max_size=20,
    )
)
def test_any_polygons_are_drawn_as_pycocotools_draws_them(polygons: list[list[float]]) -> None:
    drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, 20, 30)))
    np.testing.assert_array_equal(polygons_to_mask(polygons, (20, 30)), drawn, strict=True)


@pytest.mark.parametrize(
    ("polygons", "words"),
    [
        ([], "got none"),
        ([[]], "six or more"),
        ([[1, 2, 3, 4]], "six or more"),  # pycocotools takes four numbers for a box
        ([[0, 0, 5, 0, 5, 5, 1]], "even count"),
        ([0, 0, 5, 0, 5, 5], "six or more"),
        ([[0, 0, 5, 0, 5, float("nan")]], "NaN"),
        ([[0, 0, 5, 0, 5, float("inf")]], "infinity"),
        ([[0, 0, 5, 0, 5, 5], [0, 0, 5]], "polygon 1"),
        ([["a", 0, 5, 0, 5, 5]], "expected numbers"),
        ([[0, 0, 5, 0, 5, 1e300]], "at most"),
        ([[-2e6, 0, 2e6, 0] * 3], "outline of at most"),
        ([[None, 0, 5, 0, 5, 5]], "NaN"),
        ([[[0, 0], [1, 1], [0, 1]]], "six or more"),
    ],
)
def test_what_is_no_polygon_is_bad_data(polygons: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        polygons_to_mask(polygons, (10, 10))


@pytest.mark.parametrize("size_hw", [(0, 5), (-1, -1), (1 << 20, 1 << 20)])
def test_hostile_sizes_are_bad_data(size_hw: tuple[int, int]) -> None:
    with pytest.raises(BadData, match="expected a picture"):
        polygons_to_mask([[0, 0, 5, 0, 5, 5]], size_hw)


@given(masks)
def test_every_form_of_a_segmentation_is_the_same_mask(mask: np.ndarray) -> None:
    forms: list[Any] = [encode_rle(mask), encode_rle(mask, compressed=False)]
    forms += [mask_to_polygons(mask)] if mask.any() else []
    for form in forms:
        np.testing.assert_array_equal(segmentation_to_mask(form, mask.shape), mask)


def test_other_segmentations_are_bad_data() -> None:
    with pytest.raises(BadData, match="got str"):
        segmentation_to_mask("text", (5, 5))
    with pytest.raises(BadData, match="size of the picture"):
        segmentation_to_mask({"size": [4, 4], "counts": [16]}, (5, 5))


def test_without_pycocotools_masks_are_traced_but_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    polygons = mask_to_polygons(np.ones((2, 2)))
    with pytest.raises(MissingExtra, match=r"pycocotools.*penstock\[coco\]"):
        polygons_to_mask(polygons, (2, 2))


@judged_by_coco
@pytest.mark.skipif(not (SHARED / "data/coco_instances").is_dir(), reason="needs the shared data")
def test_objects_of_coco_are_drawn_as_pycocotools_draws_them() -> None:
    record = json.loads((SHARED / "data/coco_instances/annotations/instances_val2017.json").read_text())
    sizes = {picture["id"]: (picture["height"], picture["width"]) for picture in record["images"]}
    for annotation in record["annotations"]:
        size_hw = sizes[annotation["image_id"]]
        mask = segmentation_to_mask(annotation["segmentation"], size_hw)
        drawn = coco.decode(coco.merge(coco.frPyObjects(annotation["segmentation"], *size_hw)))
        np.testing.assert_array_equal(mask, drawn, strict=True)
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.02, abs=5)
        np.testing.assert_array_equal(polygons_to_mask(mask_to_polygons(mask), size_hw), mask)
    assert len(record["annotations"]) == 10
