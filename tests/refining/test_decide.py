"""Who gets a pixel: smaller on top, cores are not eaten, coarse masks stay where nobody claims."""

import numpy as np
from hypothesis import given as tried
from hypothesis import settings
from hypothesis import strategies as st

from penstock.refining.decide import paint, repaint, unions, without_proposal
from penstock.refining.labels import parse
from penstock.refining.proposals import from_masks
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import trust
from tests.refining.drawn import SIZE_HW, garbage, given, masks_of, spoiled, true_map

SETTINGS = RefineSettings()


def test_unions_are_those_of_the_members_the_largest_first() -> None:
    ids = np.array([[1, 1, 2, 2, 2, 3]])
    objects = parse(ids)
    masks = np.zeros((5, 1, 6), bool)
    masks[0, 0, 0] = masks[1, 0, 3] = masks[2, 0, 2:4] = masks[3, 0, 5] = masks[4, 0, 1] = True
    found = unions(given(objects, from_masks((1, 6), masks), [1, 2, 2, 0, 3]))
    assert [(number, box, mask.tolist()) for number, box, mask in found] == [
        (2, (2, 0, 2, 1), [[1, 1]]),
        (3, (1, 0, 1, 1), [[1]]),
        (1, (0, 0, 1, 1), [[1]]),
    ]


def test_the_smaller_is_on_top_and_of_equal_ones_the_lower_number() -> None:
    ids = np.repeat(np.array([1, 2, 3]), 10)[None].repeat(10, axis=0)
    objects = parse(ids)
    masks = np.zeros((3, 10, 30), bool)
    masks[0, :, :20] = masks[1, :, 10:30] = masks[2, :, 14:16] = True
    assignment = given(objects, from_masks((10, 30), masks), [1, 2, 3])
    painted = paint(objects, unions(assignment), None, without_proposal(assignment))
    expected = np.repeat(np.array([1, 3, 1, 2]), [14, 2, 4, 10])
    np.testing.assert_array_equal(painted, expected[None].repeat(10, axis=0))


def test_a_claim_never_eats_the_core_of_another() -> None:
    ids = np.ones((60, 60), np.int64)
    ids[:, 30:] = 2
    objects = parse(ids)
    zones = trust(objects, RefineSettings(band_share=0.05))
    masks = np.ones((2, 60, 60), bool)
    masks[1, :, :40] = False
    right = zones.core == 2
    for numbers, coarse, expected in (
        ([1, 2], [False, False], masks[1]),  # it claims a part of its core
        ([1, 0], [False, True], ids == 2),  # it keeps its coarse mask, which is the smaller
        ([1, 0], [False, False], right & False),  # it claims nothing
    ):
        assignment = given(objects, from_masks((60, 60), masks), numbers)
        painted = paint(objects, unions(assignment), zones, np.array(coarse))
        np.testing.assert_array_equal(painted, np.where(expected, 2, 1))
    masks[0, :, :5] = False  # now it has the smaller claim, and is on top
    masks[1] = True
    assignment = given(objects, from_masks((60, 60), masks), [1, 2])
    painted = paint(objects, unions(assignment), zones, np.zeros(2, bool))
    np.testing.assert_array_equal(painted, np.where(right | ~masks[0], 2, 1))


def test_an_object_without_proposal_keeps_what_no_smaller_one_claims() -> None:
    objects = parse(np.array([[1, 1, 1, 2, 2, 2]]))
    for claimed, expected in ((2, [0, 0, 1, 1, 2, 2]), (4, [1, 1, 1, 2, 2, 2])):
        mask = (np.arange(6) < 4) & (np.arange(6) >= 4 - claimed)
        assignment = given(objects, from_masks((1, 6), mask[None, None]), [1])
        assert without_proposal(assignment).tolist() == [False, True]
        painted = paint(objects, unions(assignment), None, without_proposal(assignment))
        assert painted.tolist() == [expected]


def test_true_masks_paint_the_true_map() -> None:
    truth = true_map(3)
    objects = parse(truth)
    assignment = given(objects, masks_of(truth), list(range(1, len(objects) + 1)))
    painted = paint(objects, unions(assignment), trust(objects, SETTINGS), np.zeros(len(objects), bool))
    np.testing.assert_array_equal(painted, objects.labels)


@tried(st.integers(0, 10_000), st.data())
@settings(max_examples=40, deadline=None)
def test_when_objects_get_their_coarse_mask_back_the_others_lose_no_more_than_that(
    seed: int, data: st.DataObject
) -> None:
    objects = parse(spoiled(true_map(seed), seed))
    proposals = garbage(seed)
    numbers = np.random.default_rng(seed).integers(0, len(objects) + 1, len(proposals)).tolist()
    assignment = given(objects, proposals, numbers)
    zones, claims = trust(objects, SETTINGS), unions(assignment)
    coarse = without_proposal(assignment)
    reverted = coarse | np.array(data.draw(st.lists(st.booleans(), min_size=len(objects), max_size=len(objects))))
    before, after = paint(objects, claims, zones, coarse), paint(objects, claims, zones, reverted)
    for trusted in (zones, None):
        again = paint(objects, claims, trusted, coarse)
        repaint(objects, claims, trusted, (coarse, reverted), again)
        np.testing.assert_array_equal(again, paint(objects, claims, trusted, reverted))
    claimed = np.zeros((len(objects) + 1, *SIZE_HW), bool)
    for number, (x, y, width, height), mask in claims:
        claimed[number, y : y + height, x : x + width] = mask
    taken_back = np.isin(objects.labels, np.flatnonzero(reverted) + 1)
    for number in (np.flatnonzero(~reverted) + 1).tolist():
        lost = (before == number) & (after != number)
        assert not lost[~taken_back].any()
        np.testing.assert_array_equal(after[lost], objects.labels[lost])
        assert claimed[number][after == number].all()
    for number in (np.flatnonzero(reverted) + 1).tolist():
        assert (after[zones.core == number] == number).all()
        assert (objects.labels[after == number] == number).all()
