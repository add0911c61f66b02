"""A frame from end to end: what good proposals bring, what useless ones cannot spoil, and that nothing is lost."""

import platform
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given as tried
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import BadData
from penstock.refining.frame import decide_frame, ids_of, refine_frame
from penstock.refining.labels import parse
from penstock.refining.prompts import grid_points
from penstock.refining.proposals import from_masks, joined
from penstock.refining.residual import REASONS
from penstock.refining.settings import RefineSettings
from penstock.refining.types import FALLBACK, Frame, Prompts, Proposals, Refined
from tests.refining.drawn import SIZE_HW, frame_of, garbage, masks_of, mean_iou, picture, spoiled, true_map

PROMPT, OVERLAP = RefineSettings(), RefineSettings(matcher="overlap")
SEED = RefineSettings(matcher="overlap", profile="seed")
ALL = [PROMPT, OVERLAP, SEED]


@dataclass
class Answers:
    """Answers from proposals that are given, and remembers what it was asked."""

    prompted_ones: Proposals
    automatic: Proposals
    asked: list[str] = field(default_factory=list)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    def prompted(self, prompts: Prompts) -> Proposals:
        """Those with ids."""
        self.asked.append("prompted")
        return self.prompted_ones

    def at_points(self, points: np.ndarray) -> Proposals:
        """Those without."""
        self.asked.append("points")
        self.points = points
        return self.automatic


def none(size_hw: tuple[int, int] = SIZE_HW) -> Proposals:
    return from_masks(size_hw, ())


def check(frame: Frame, found: Refined, chosen: RefineSettings) -> None:
    """What holds for every result."""
    objects = frame.objects
    assert found.ids.dtype == np.uint16
    assert found.confidence.dtype == found.reasons.dtype == np.uint8
    assert found.ids.shape == found.confidence.shape == found.reasons.shape == objects.size_hw
    assert set(np.unique(found.ids)) <= {0, *objects.ids.tolist()}
    np.testing.assert_array_equal(found.areas, [(found.ids == one).sum() for one in objects.ids])
    large = objects.areas >= chosen.min_pixels
    assert (found.areas[large] >= np.minimum(chosen.min_pixels, objects.areas[large])).all()
    np.testing.assert_array_equal(found.ids == 0, found.reasons == REASONS["invalid"])
    np.testing.assert_array_equal(found.ids == 0, found.confidence == 0)
    counts = found.counts
    assert counts["objects"] == len(objects) == counts["sam_matched"] + counts["fallback"]
    assert counts["objects"] == counts["accepted"] + counts["kept"]
    assert counts["invalid_pixels"] == (found.ids == 0).sum()
    assert counts["invalid_before"] == (objects.labels == 0).sum()
    assert counts["pixels"] == found.ids.size


@pytest.mark.parametrize("chosen", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_true_masks_make_the_true_map(seed: int, chosen: RefineSettings) -> None:
    truth = true_map(seed)
    chosen = replace(chosen, band_share=0.02)  # 4 pixels, for a shift of 2 in x and y
    frame = frame_of(spoiled(truth, seed), picture(truth, seed))
    found = decide_frame(frame, masks_of(truth, prompted=chosen.matcher == "prompt"), chosen)
    check(frame, found, chosen)
    before, after = (mean_iou(ids, truth) for ids in (ids_of(frame.objects, frame.objects.labels), found.ids))
    assert before < 0.95
    assert after > (0.995 if chosen.matcher == "prompt" else 0.975)  # small objects, shifted, have their masks cut


@pytest.mark.parametrize("seed", range(12))
def test_useless_proposals_make_nothing_worse(seed: int) -> None:
    truth = true_map(seed)
    coarse = spoiled(truth, seed)
    frame = frame_of(coarse, picture(truth, seed))
    before = mean_iou(coarse, truth)
    for proposals in (garbage(seed), prompted_garbage(seed, frame), none()):
        for rules in (PROMPT, OVERLAP):
            chosen = replace(rules, residual_limit_share=0.02)  # 4 pixels, as the holes
            found = decide_frame(frame, proposals, chosen)
            check(frame, found, chosen)
            assert mean_iou(found.ids, truth) >= before


def prompted_garbage(seed: int, frame: Frame) -> Proposals:
    """Garbage that says it is some object."""
    junk = garbage(seed)
    ids = np.random.default_rng(seed).choice(frame.objects.ids, len(junk))
    return Proposals(
        size_hw=junk.size_hw, boxes=junk.boxes, masks=junk.masks, scores=junk.scores, stability=junk.stability, ids=ids
    )


@tried(
    arrays(np.int64, st.tuples(st.integers(1, 16), st.integers(1, 16)), elements=st.integers(-1, 4)),
    st.integers(0, 1000),
    st.sampled_from([RefineSettings(min_pixels=5), *ALL, RefineSettings(matcher="overlap", gate=False, min_pixels=1)]),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_whatever_is_proposed(ids: np.ndarray, seed: int, chosen: RefineSettings) -> None:
    rng = np.random.default_rng(seed)
    frame = frame_of(ids, rng.integers(0, 256, (*ids.shape, 3), np.uint8))
    size_hw = frame.objects.size_hw
    junk = garbage(seed, size_hw, count=8)
    proposals = joined([junk, from_masks(size_hw, rng.random((4, *size_hw)) < 0.7, ids=rng.integers(0, 5, 4))])
    check(frame, decide_frame(frame, proposals, chosen), chosen)


@pytest.mark.parametrize("chosen", ALL)
def test_without_proposals_the_coarse_map_comes_back(chosen: RefineSettings) -> None:
    coarse = spoiled(true_map(1), 1)
    coarse[:3] = -1
    frame = frame_of(coarse, picture(true_map(1), 1))
    found = decide_frame(frame, none(), chosen)
    check(frame, found, chosen)
    np.testing.assert_array_equal(found.ids, np.maximum(coarse, 0))
    assert found.counts["fallback"] == found.counts["kept"] == len(frame.objects)
    assert set(found.gate.reasons) == {"no proposal"}
    assert (found.how == FALLBACK).all()


@pytest.mark.parametrize("value", [0, -1])
def test_a_map_without_objects_stays_empty_and_asks_nothing(value: int) -> None:
    frame = frame_of(np.full(SIZE_HW, value), np.zeros((*SIZE_HW, 3), np.uint8))
    answers = Answers(garbage(0), garbage(0))
    for chosen in ALL:
        found = refine_frame(frame, answers, chosen)
        check(frame, found, chosen)
        assert not found.ids.any()
        assert not decide_frame(frame, garbage(0), chosen).ids.any()
    assert answers.asked == []


def test_automatic_points_are_asked_only_where_prompted_masks_leave_something() -> None:
    truth = true_map(3)
    frame = frame_of(truth)
    answers = Answers(masks_of(truth, prompted=True), garbage(3))
    refine_frame(frame, answers, PROMPT)
    assert answers.asked == ["prompted"]
    truth[30:80, 40:100] = 0
    frame = frame_of(truth)
    answers = Answers(masks_of(truth, prompted=True), garbage(3))
    found = refine_frame(frame, answers, PROMPT)
    assert answers.asked == ["prompted", "points"]
    columns, rows = answers.points.astype(int).T
    assert (truth[rows, columns] == 0).all()
    assert found.proposals == len(answers.prompted_ones) + len(answers.automatic)


def test_overlap_asks_the_whole_grid() -> None:
    truth = true_map(3)
    answers = Answers(none(), masks_of(truth))
    found = refine_frame(frame_of(truth), answers, RefineSettings(matcher="overlap", points_per_side=7))
    assert answers.asked == ["points"]
    np.testing.assert_array_equal(answers.points, grid_points(SIZE_HW, 7))
    np.testing.assert_array_equal(found.ids, truth)


def test_a_wall_in_pieces_is_whole_again() -> None:
    truth = np.full(SIZE_HW, 1)
    truth[40:80, 60:100] = 2
    coarse = spoiled(truth, 0)
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    pieces = [(truth == 1) & (columns // 40 == column) & (rows // 60 == row) for column in range(4) for row in range(2)]
    pieces = [piece & (columns % 40 != 0) for piece in pieces]  # a crack between any two
    frame = frame_of(coarse, picture(truth, 0))
    found = decide_frame(frame, from_masks(SIZE_HW, [*pieces, truth == 2]), OVERLAP)
    check(frame, found, OVERLAP)
    assert found.counts["merged"] == 1
    assert mean_iou(found.ids, truth) > 0.99
    assert found.counts["invalid_pixels"] == 0


def test_an_object_that_is_refused_keeps_its_mask_and_harms_no_neighbour() -> None:
    truth = true_map(5)
    masks = masks_of(truth, prompted=True)
    frame = frame_of(truth)
    bad = [mask.copy() for mask in masks.masks]
    bad[0][:, : bad[0].shape[1] // 2] = False  # half of its core is not there
    proposals = from_masks(
        SIZE_HW, [placed(box, mask) for box, mask in zip(masks.boxes.tolist(), bad, strict=True)], ids=masks.ids
    )
    found = decide_frame(frame, proposals, PROMPT)
    assert found.gate.reasons[0] == "core"
    assert found.counts["kept"] == 1
    np.testing.assert_array_equal(found.ids, truth)


def placed(box: list[int], mask: np.ndarray) -> np.ndarray:
    """(H, W) bool from a crop."""
    whole = np.zeros(SIZE_HW, bool)
    whole[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = mask
    return whole


def test_what_was_unlabelled_on_purpose_stays_so() -> None:
    truth = true_map(6)
    image = picture(truth, 6)
    truth[20:100, 20:90] = 0
    frame = frame_of(truth, image)
    region = from_masks(SIZE_HW, [truth == 0])
    for chosen in (PROMPT, OVERLAP):
        found = decide_frame(frame, joined([masks_of(truth), region]), chosen)
        np.testing.assert_array_equal(found.ids, truth)
        junk = decide_frame(frame, joined([masks_of(truth), region, garbage(6)]), chosen)
        assert (junk.ids[truth == 0] == 0).mean() > 0.5


@pytest.mark.parametrize("chosen", ALL)
def test_the_same_frame_gives_the_same_bytes(chosen: RefineSettings) -> None:
    frame = frame_of(spoiled(true_map(7), 7))
    first, second = (decide_frame(frame, garbage(7), chosen) for _ in range(2))
    for name in ("ids", "confidence", "reasons", "how", "areas"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.counts == second.counts
    assert first.gate.reasons == second.gate.reasons


@pytest.mark.parametrize("largest", [70_000, 1 << 40])
def test_large_ids_come_back_as_they_were(largest: int) -> None:
    ids = true_map(8) + largest
    found = decide_frame(frame_of(ids, picture(true_map(8), 8)), masks_of(ids), OVERLAP)
    np.testing.assert_array_equal(found.ids, ids)


def test_sizes_that_differ_are_refused() -> None:
    truth = true_map(9)
    wrong = Frame(key="scene/frame", image=np.zeros((120, 161, 3), np.uint8), objects=parse(truth))
    with pytest.raises(BadData, match="scene/frame"):
        decide_frame(wrong, none(), PROMPT)
    with pytest.raises(BadData, match="scene/frame"):
        refine_frame(wrong, Answers(none(), none()), PROMPT)
    with pytest.raises(BadData, match="scene/frame"):
        decide_frame(frame_of(truth), none((120, 161)), PROMPT)
    for answers in (Answers(none((3, 3)), none()), Answers(none(), none((3, 3)))):
        truth[30:80, 40:100] = 0
        with pytest.raises(BadData, match="scene/frame"):
            refine_frame(frame_of(truth), answers, PROMPT)


_FAULTS = """
import resource, sys
import numpy as np
from penstock.refining.frame import keep_memory
if sys.argv[1:]:
    keep_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    arrays = [np.ones((1080, 1440), np.uint8) for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_kept_memory_is_not_asked_for_again() -> None:
    calls = [[sys.executable, "-c", _FAULTS, *more] for more in ([], ["keep"])]
    freed, kept = (int(subprocess.run(call, capture_output=True, check=True).stdout) for call in calls)
    assert kept < freed / 2
