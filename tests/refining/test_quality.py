"""Figures of quality beside the definitions that they claim to follow, written out plainly."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.refining.quality import (
    Panoptic,
    Void,
    boundary_ious,
    id_flips,
    invalid_ratio,
    mean_iou,
    object_ious,
    panoptic_quality,
    score_frame,
    total,
)


def blocks(rng: np.random.Generator, size_hw: tuple[int, int], ids: list[int]) -> np.ndarray:
    """(H, W) int64: rectangles painted over each other."""
    painted = np.zeros(size_hw, np.int64)
    for id_ in rng.choice(ids, 8).tolist():
        y, x = rng.integers(size_hw[0]), rng.integers(size_hw[1])
        painted[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = id_
    return painted


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth and a map that agrees in part; ids below 0 and ids of one only occur."""
    rng = np.random.default_rng(seed)
    size_hw = (int(rng.integers(4, 40)), int(rng.integers(4, 40)))
    truth = blocks(rng, size_hw, [-1, 0, 3, 7, 40_000])
    found = np.roll(truth, int(rng.integers(0, 3)), axis=1)
    other = blocks(rng, size_hw, [-1, 0, 3, 7, 11, 40_000])
    return np.where(other != 0, other, found) if rng.random() < 0.7 else found, truth


def plain_iou(found: np.ndarray, truth: np.ndarray, id_: int, void: Void) -> float:
    mask, true = found == id_, truth == id_
    if void == "excluded":
        mask = mask & (truth > 0)
    return float((mask & true).sum() / (mask | true).sum())


def reference_boundary(mask: np.ndarray, pixels: int) -> np.ndarray:
    """`mask_to_boundary` of the authors of Boundary IoU, with the width given."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=pixels)
    return (mask.astype(np.uint8) - eroded[1:-1, 1:-1]).astype(bool)


def panopticapi(found: np.ndarray, truth: np.ndarray) -> Panoptic:
    """`pq_compute_single_core` for one category and no crowd, pair by pair, void being 0."""
    found, truth = np.maximum(found, 0), np.maximum(truth, 0)
    true = extra = 0
    iou_sum = 0.0
    matched: set[tuple[str, int]] = set()
    for gt in np.unique(truth[truth > 0]).tolist():
        for pred in np.unique(found[found > 0]).tolist():
            shared = int(((truth == gt) & (found == pred)).sum())
            if shared:
                in_void = int(((truth == 0) & (found == pred)).sum())
                union = int((found == pred).sum()) + int((truth == gt).sum()) - shared - in_void
                if shared / union > 0.5:
                    true += 1
                    iou_sum += shared / union
                    matched |= {("gt", gt), ("pred", pred)}
    for pred in np.unique(found[found > 0]).tolist():
        if ("pred", pred) not in matched:
            in_void = int(((truth == 0) & (found == pred)).sum())
            extra += in_void / int((found == pred).sum()) <= 0.5
    missed = sum(("gt", gt) not in matched for gt in np.unique(truth[truth > 0]).tolist())
    return Panoptic(true=true, extra=extra, missed=missed, iou_sum=iou_sum)


@given(st.integers(0, 1 << 32), st.sampled_from(["excluded", "counted"]))
def test_iou_is_that_of_masks_of_equal_ids(seed: int, void: Void) -> None:
    found, truth = pair(seed)
    ids, ious = object_ious(found, truth, void=void)
    assert ids.tolist() == np.unique(truth[truth > 0]).tolist()
    np.testing.assert_allclose(ious, [plain_iou(found, truth, id_, void) for id_ in ids.tolist()])


@given(st.integers(0, 1 << 32), st.sampled_from([None, 1, 2, 3]), st.sampled_from(["excluded", "counted"]))
def test_boundary_iou_is_that_of_its_authors(seed: int, pixels: int | None, void: Void) -> None:
    found, truth = pair(seed)
    width = max(1, round(0.02 * float(np.hypot(*truth.shape)))) if pixels is None else pixels
    ids, ious = boundary_ious(found, truth, pixels=pixels, void=void)
    counted = (truth > 0) | (void == "counted")
    for id_, iou in zip(ids.tolist(), ious.tolist(), strict=True):
        true, mine = (reference_boundary(one == id_, width) & counted for one in (truth, found))
        assert iou == pytest.approx((true & mine).sum() / max(1, (true | mine).sum()))


@given(st.integers(0, 1 << 32))
def test_pq_is_that_of_panopticapi(seed: int) -> None:
    found, truth = pair(seed)
    mine, reference = panoptic_quality(found, truth), panopticapi(found, truth)
    assert (mine.true, mine.extra, mine.missed) == (reference.true, reference.extra, reference.missed)
    assert mine.iou_sum == pytest.approx(reference.iou_sum)


def test_the_truth_itself_is_perfect() -> None:
    truth = pair(3)[1]
    score = total([score_frame(truth, truth, truth)])
    assert (score.mean_iou, score.boundary_iou, score.pq, score.harm_rate) == (1, 1, 1, 0)
    assert score.invalid_ratio == invalid_ratio(truth) == (truth <= 0).mean()


def test_what_lies_in_void_counts_only_where_it_shall() -> None:
    truth = np.zeros((10, 10), np.int32)
    truth[:5] = 1
    flooded = np.ones((10, 10), np.int32)
    assert mean_iou(flooded, truth) == 1
    assert mean_iou(flooded, truth, void="counted") == 0.5


def test_harm_is_a_fall_by_more_than_a_point() -> None:
    truth = np.repeat([1, 2], 5000).reshape(100, 100)
    slightly, worse = truth.copy(), truth.copy()
    slightly[49, :40] = 2
    worse[49] = worse[48] = 2
    assert score_frame(slightly, truth, truth).harmed == 0
    assert score_frame(worse, truth, truth).harmed == 2
    assert score_frame(truth, truth, worse).harmed == 0
    assert total([score_frame(worse, truth, truth), score_frame(truth, truth, worse)]).harm_rate == 0.5


def test_an_object_that_is_lost_has_an_iou_of_0() -> None:
    truth = np.repeat([1, 2], 50).reshape(10, 10)
    assert object_ious(np.zeros_like(truth), truth)[1].tolist() == [0, 0]
    assert mean_iou(truth, np.zeros_like(truth)) == 1


def test_ids_that_change_between_frames_are_counted() -> None:
    truth = np.repeat([1, 2, 3, 0], 25).reshape(10, 10)
    swapped = np.select([truth == 1, truth == 2], [2, 1], truth)
    assert id_flips((truth, truth), (truth, truth)) == (0, 3)
    assert id_flips((truth, swapped), (truth, truth)) == (2, 3)
    assert id_flips((truth, np.where(truth == 3, 0, swapped)), (truth, truth)) == (2, 2)
    assert id_flips((np.zeros_like(truth), truth), (truth, truth)) == (0, 0)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(BadData, match="one size"):
        mean_iou(np.zeros((4, 5), np.int32), np.zeros((5, 4), np.int32))
    with pytest.raises(BadData, match="at least one frame"):
        total([])
