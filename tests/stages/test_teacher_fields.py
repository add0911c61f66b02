"""Edges, weight maps, boxes and masks of objects: against their definitions, written out slowly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2")

from penstock.geometry.boxes import mask_box, xywh_to_xyxy  # noqa: E402
from penstock.stages.teacher_fields import (  # noqa: E402
    STRATEGIES,
    ObjectMasks,
    boxes_xyxy,
    chosen,
    edge_map,
    outlines,
    scores,
    small_masks,
    union,
    weight_maps,
)

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def noise(size_hw: tuple[int, int], count: int, seed: int) -> list[np.ndarray]:
    """Masks of speckles inside random windows: some touch the border, some are empty."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        mask = np.zeros(size_hw, np.uint8)
        y, x = rng.integers(0, size_hw[0]), rng.integers(0, size_hw[1])
        window = mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)]
        window[:] = rng.random(window.shape) < rng.random()
        found.append(mask)
    return found


def objects(*masks: np.ndarray) -> ObjectMasks:
    size_hw = (masks[0].shape[0], masks[0].shape[1])
    return ObjectMasks.of(size_hw, [((0, 0), mask) for mask in masks])


def square(side: int, top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


@given(size_hw=SIZES, count=st.integers(0, 4), seed=st.integers(0, 1 << 20))
def test_masks_come_back_from_their_record(size_hw: tuple[int, int], count: int, seed: int) -> None:
    masks = noise(size_hw, count, seed)
    full = [mask for mask in masks if mask.any()]
    packed = ObjectMasks.of(size_hw, [((0, 0), mask) for mask in masks])
    again = ObjectMasks.from_record(size_hw, packed.to_record())
    assert len(again) == len(full)
    assert again.areas.tolist() == [int(mask.sum()) for mask in full]
    for number, mask in enumerate(full):
        np.testing.assert_array_equal(again.whole(number), mask)
        np.testing.assert_array_equal(again.boxes_xywh[number], mask_box(mask))


@given(size_hw=SIZES, count=st.integers(0, 4), seed=st.integers(0, 1 << 20))
def test_outlines_are_the_gradients_of_whole_masks_together(size_hw: tuple[int, int], count: int, seed: int) -> None:
    masks = noise(size_hw, count, seed)
    wanted = np.zeros(size_hw, np.uint8)
    for mask in masks:
        wanted |= cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    packed = ObjectMasks.of(size_hw, [((0, 0), mask) for mask in masks])
    np.testing.assert_array_equal(outlines(packed), wanted)
    np.testing.assert_array_equal(
        union(packed), np.any([np.zeros(size_hw, bool), *(mask > 0 for mask in masks)], axis=0)
    )


@given(scale=st.integers(1, 6), side=st.integers(1, 16), seed=st.integers(0, 1 << 20))
def test_an_edge_touches_every_cell_that_it_passes(scale: int, side: int, seed: int) -> None:
    lines = (np.random.default_rng(seed).random((side * scale, side * scale)) < 0.1).astype(np.uint8)
    wanted = lines.reshape(side, scale, side, scale).max((1, 3))
    np.testing.assert_array_equal(edge_map(lines, side), wanted)


def test_an_edge_of_one_pixel_counts_in_a_large_picture() -> None:
    lines = np.zeros((1500, 2250), np.uint8)
    lines[700, 1100] = 1
    for side in (256, 64, 32):
        assert edge_map(lines, side).sum() >= 1


@settings(max_examples=50)
@given(size_hw=SIZES, side=st.sampled_from([1, 3, 8, 32]), seed=st.integers(0, 1 << 20))
def test_weights_are_those_of_adaptive_pooling_and_sum_to_1(size_hw: tuple[int, int], side: int, seed: int) -> None:
    torch = pytest.importorskip("torch")
    covered = (np.random.default_rng(seed).random(size_hw) < 0.5).astype(np.uint8)
    inside, outside = weight_maps(covered, [side])[side]
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(covered[None]).double(), side)[0].numpy()
    np.testing.assert_array_equal(inside > 0, pooled > 0.5)
    np.testing.assert_array_equal(outside > 0, pooled <= 0.5)
    for weights in (inside, outside):
        assert weights.dtype == np.float32
        assert weights.sum() == pytest.approx(1, abs=1e-5) or not weights.any()
        assert len(np.unique(weights[weights > 0])) <= 1


def test_a_picture_without_objects_is_all_background() -> None:
    packed = ObjectMasks.of((30, 20), [])
    inside, outside = weight_maps(union(packed), [8])[8]
    assert not inside.any()
    assert outside.sum() == pytest.approx(1)
    assert not edge_map(outlines(packed), 8).any()
    picture = np.zeros((30, 20, 3), np.uint8)
    for strategy in STRATEGIES:
        assert not len(chosen(packed, picture, strategy))
    assert small_masks(packed, np.zeros(0, int), 16).shape == (0, 16, 16)
    assert boxes_xyxy(packed, np.zeros(0, int)).shape == (0, 4)


def test_strategies_choose_as_they_say() -> None:
    masks = objects(square(100, 0, 0, 40), square(100, 40, 40, 25), square(100, 0, 90, 3))
    picture = np.full((100, 100, 3), 60, np.uint8)
    picture[40:65, 40:65] = (250, 220, 30)
    assert chosen(masks, picture, "largest").tolist() == [0]
    assert chosen(masks, picture, "largest", 5).tolist() == [0, 1, 2]
    assert chosen(masks, picture, "all").tolist() == [0, 1, 2]
    assert chosen(masks, picture, "all", 2).tolist() == [0, 1]
    assert chosen(masks, picture, "geometry-colour").tolist() == [1]  # in the middle, and of another colour
    assert chosen(masks, picture, "geometry-colour", 9).tolist() == [1, 0]  # the third is too small
    np.testing.assert_array_equal(boxes_xyxy(masks, np.array([1])), [[40, 40, 65, 65]])
    np.testing.assert_array_equal(boxes_xyxy(masks, np.array([0, 2])), xywh_to_xyxy(masks.boxes_xywh[[0, 2]]))


def test_scores_are_those_of_their_definition() -> None:
    masks = objects(square(100, 40, 40, 20))
    picture = np.zeros((100, 100, 3), np.uint8)
    assert scores(masks, picture)[0] == pytest.approx(np.sqrt(0.04 / 0.05) + 1 + 1 + 1 + 0, abs=1e-6)
    picture[40:60, 40:60] = 255  # white on black: 100 apart in Lab, of which 40 are enough
    assert scores(masks, picture)[0] == pytest.approx(np.sqrt(0.04 / 0.05) + 1 + 1 + 1 + 1, abs=1e-6)
    corner = objects(square(100, 0, 0, 20))
    black = np.zeros((100, 100, 3), np.uint8)
    size, away = np.sqrt(0.8), np.hypot(0.4, 0.4) / np.hypot(0.5, 0.5)
    assert scores(corner, black)[0] == pytest.approx(size + 1 - away + 1 + 0 + 0, abs=1e-6)  # whole, but at two sides
    half = square(100, 40, 40, 20)
    half[40:50] = 0
    half[40, 40:60] = half[40:50, 40] = 1
    filled = half.sum() / 400
    assert scores(objects(half), black)[0] < np.sqrt(filled * 0.8) + 1 + filled + 1


@pytest.mark.parametrize("mask", [np.ones((50, 40), np.uint8), square(200, 5, 5, 6)])
def test_what_fills_the_picture_or_a_speck_is_no_object(mask: np.ndarray) -> None:
    picture = np.zeros((*mask.shape, 3), np.uint8)
    assert not len(chosen(objects(mask), picture, "geometry-colour"))
    assert chosen(objects(mask), picture, "largest").tolist() == [0]


def test_an_object_too_small_for_a_cell_keeps_one() -> None:
    masks = objects(square(1000, 501, 780, 1))
    small = small_masks(masks, np.array([0]), 256)
    assert small.sum() == 1
    assert small[0, 501 * 256 // 1000, 780 * 256 // 1000] == 1
