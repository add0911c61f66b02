"""Proposals: made of masks, filtered, thinned out, cleaned, and as bytes."""

import cv2
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import BadData
from penstock.geometry.boxes import mask_box
from penstock.refining.proposals import (
    box_nms,
    cleaned,
    dump_proposals,
    filtered,
    from_masks,
    joined,
    load_proposals,
    mask_areas,
    taken,
)
from penstock.refining.types import Proposals


def full_masks(proposals: Proposals) -> np.ndarray:
    """(N, H, W) bool."""
    masks = np.zeros((len(proposals), *proposals.size_hw), bool)
    for whole, (x, y, width, height), mask in zip(masks, proposals.boxes.tolist(), proposals.masks, strict=True):
        whole[y : y + height, x : x + width] = mask
    return masks


def assert_equal(left: Proposals, right: Proposals) -> None:
    assert left.size_hw == right.size_hw
    assert len(left) == len(right)
    for name in ("boxes", "scores", "stability", "ids"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)
    for mask, other in zip(left.masks, right.masks, strict=True):
        np.testing.assert_array_equal(mask, other, strict=True)


@st.composite
def stacks(draw: st.DrawFn) -> np.ndarray:
    """(N, H, W) bool."""
    height, width, count = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 5))
    return draw(hnp.arrays(bool, (count, height, width)))


shares = st.floats(0, 1, width=32)


@st.composite
def proposed(draw: st.DrawFn) -> Proposals:
    masks = draw(stacks())
    column = hnp.arrays(np.float32, len(masks), elements=shares)
    ids = draw(hnp.arrays(np.int64, len(masks), elements=st.integers(0, 2**63 - 1)))
    return from_masks(masks.shape[1:], masks, scores=draw(column), stability=draw(column), ids=ids)


@given(masks=stacks())
def test_crops_are_tight_and_empty_masks_are_dropped(masks: np.ndarray) -> None:
    height, width = masks.shape[1:]
    proposals = from_masks((height, width), masks, ids=np.arange(1, len(masks) + 1))
    kept = np.flatnonzero(masks.any(axis=(1, 2)))
    np.testing.assert_array_equal(full_masks(proposals), masks[kept])
    assert proposals.boxes.tolist() == [mask_box(masks[row]).tolist() for row in kept]
    assert proposals.ids.tolist() == [row + 1 for row in kept]
    assert mask_areas(proposals).tolist() == masks[kept].sum(axis=(1, 2)).tolist()
    assert proposals.scores.tolist() == proposals.stability.tolist() == [1.0] * len(kept)
    assert proposals.boxes.shape == (len(kept), 4)
    assert proposals.boxes.dtype == np.int32


def test_no_masks_are_no_proposals() -> None:
    assert len(from_masks((3, 4), ())) == 0


def test_a_crop_does_not_hold_the_whole_mask_in_memory() -> None:
    mask = np.zeros((100, 100), bool)
    mask[50, 50] = True
    assert from_masks((100, 100), [mask]).masks[0].base is None


@pytest.mark.parametrize(
    ("masks", "columns", "words"),
    [
        ([np.ones((2, 3), bool)], {}, r"proposal 0: expected a mask of the frame's \(2, 2\), got \(2, 3\)"),
        ([np.full((2, 2), 255, np.uint8)], {}, "expected bool, or only 0 and 1"),
        ([np.ones((2, 2), bool)], {"scores": np.ones(2)}, "1 finite scores"),
        ([np.ones((2, 2), bool)], {"stability": np.array([np.nan])}, "1 finite stability"),
        ([np.ones((2, 2), bool)], {"ids": np.zeros(0, np.int64)}, "1 ids"),
    ],
)
def test_masks_and_columns_that_do_not_fit_are_bad_data(
    masks: list[np.ndarray], columns: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(BadData, match=words):
        from_masks((2, 2), masks, **columns)


def test_scores_that_overstep_are_cut() -> None:
    proposals = from_masks((1, 1), np.ones((2, 1, 1), bool), scores=np.array([1.02, -0.1]))
    assert proposals.scores.tolist() == [1.0, 0.0]


@given(proposals=proposed(), score=shares, stability=shares, area=st.integers(0, 20))
def test_filters_keep_what_reaches_every_limit(proposals: Proposals, score: float, stability: float, area: int) -> None:
    rows = [
        row
        for row in range(len(proposals))
        if proposals.scores[row] >= score
        and proposals.stability[row] >= stability
        and proposals.masks[row].sum() >= area
    ]
    kept = filtered(proposals, min_score=score, min_stability=stability, min_area=area)
    assert_equal(kept, taken(proposals, np.array(rows, np.int64)))


@given(proposals=proposed(), split=st.integers(0, 5))
def test_parts_joined_are_the_whole(proposals: Proposals, split: int) -> None:
    rows = np.arange(len(proposals))
    assert_equal(joined([taken(proposals, rows[:split]), taken(proposals, rows[split:])]), proposals)


def plain_nms(proposals: Proposals, threshold: float) -> list[int]:
    kept: list[int] = []
    for row in sorted(range(len(proposals)), key=lambda row: (-proposals.scores[row], row)):
        x, y, width, height = proposals.boxes[row].tolist()
        for other in kept:
            u, v, across, down = proposals.boxes[other].tolist()
            shared = max(0, min(x + width, u + across) - max(x, u)) * max(0, min(y + height, v + down) - max(y, v))
            if shared / (width * height + across * down - shared) > threshold:
                break
        else:
            kept.append(row)
    return kept


@given(proposals=proposed(), threshold=shares)
def test_box_nms_is_the_greedy_loop(proposals: Proposals, threshold: float) -> None:
    rows = plain_nms(proposals, threshold)
    assert_equal(box_nms(proposals, threshold), taken(proposals, np.array(rows, np.int64)))


def sam_rule(mask: np.ndarray, min_area: int) -> np.ndarray:
    """segment-anything's `remove_small_regions`, holes and then islands, on the whole frame."""
    for holes in (True, False):
        working = (mask ^ holes).astype(np.uint8)
        count, regions, facts, _ = cv2.connectedComponentsWithStats(working, connectivity=8)
        small = [region for region in range(1, count) if facts[region, cv2.CC_STAT_AREA] < min_area]
        if small:
            kept = [0, *small] if holes else [region for region in range(1, count) if region not in small]
            if not kept:
                kept = [1 + int(np.argmax(facts[1:, cv2.CC_STAT_AREA]))]
            mask = np.isin(regions, kept)
    return mask


@given(masks=stacks(), min_area=st.integers(0, 30))
def test_cleaning_in_the_box_is_sams_rule_on_the_frame(masks: np.ndarray, min_area: int) -> None:
    masks = masks[masks.any(axis=(1, 2))]
    height, width = masks.shape[1:]
    proposals = cleaned(from_masks((height, width), masks), min_area)
    wanted = np.array([sam_rule(mask, min_area) for mask in masks]).reshape(masks.shape)
    np.testing.assert_array_equal(full_masks(proposals), wanted)
    assert proposals.boxes.tolist() == [mask_box(mask).tolist() for mask in wanted]


@given(proposals=proposed())
def test_bytes_give_the_same_proposals_back(proposals: Proposals) -> None:
    assert_equal(load_proposals(dump_proposals(proposals)), proposals)


CONTENT = dump_proposals(from_masks((6, 8), np.eye(6, 8, dtype=bool)[None].repeat(2, axis=0), ids=np.array([3, 0])))


@given(end=st.integers(0, len(CONTENT) - 1))
def test_content_that_is_cut_is_bad_data(end: int) -> None:
    with pytest.raises(BadData, match="proposals: expected"):
        load_proposals(CONTENT[:end])


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@given(
    name=st.sampled_from(["size", "boxes", "counts", "ids", "scores", "stability"]), value=values, inside=st.booleans()
)
def test_hostile_content_is_bad_data_or_proposals_that_hold(name: str, value: object, inside: bool) -> None:
    head = orjson.loads(CONTENT)
    if inside:
        head[name][0] = value
    else:
        head[name] = value
    try:
        proposals = load_proposals(orjson.dumps(head))
    except BadData:
        return
    assert_equal(load_proposals(dump_proposals(proposals)), proposals)
    assert full_masks(proposals).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "content of the format"),
        ({"size": [1 << 20, 1 << 20]}, "a frame of 1"),
        ({"boxes": [[0, 0, 6, 6], [3, 0, 6, 6]]}, "reaches beyond it"),
        ({"boxes": [[0, 0, 6, 6], [0, 0, 0, 6]]}, "a side of 1"),
        ({"boxes": [[0, 0, 6, 6], [0, 0, 8, 6]]}, "RLE"),
        ({"boxes": [[0, 0, 6, 6], [0, 0, 6]]}, "four whole numbers"),
        ({"ids": [1]}, "lists of one length"),
        ({"ids": [1, 2.5]}, "ids that are whole numbers"),
        ({"scores": [1, None]}, "are numbers"),
        ({"counts": ["06", "T1"]}, "a tight box|RLE"),
    ],
)
def test_content_that_contradicts_itself_says_how(change: dict[str, object], words: str) -> None:
    with pytest.raises(BadData, match=words):
        load_proposals(orjson.dumps({**orjson.loads(CONTENT), **change}))


def test_masks_that_would_fill_memory_are_refused_before_they_are_made() -> None:
    side = 8192
    head = {**orjson.loads(CONTENT), "size": [side, side]}
    for name, value in (("boxes", [0, 0, side, side]), ("counts", "0"), ("ids", 1), ("scores", 1), ("stability", 1)):
        head[name] = [value] * 33
    with pytest.raises(BadData, match="at most 2147483648 pixels"):
        load_proposals(orjson.dumps(head))
