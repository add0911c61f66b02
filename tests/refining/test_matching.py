"""Proposals to objects, many to one: what belongs, what is cut, what nobody gets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import BadData
from penstock.refining.labels import parse
from penstock.refining.matching import LOW_AGREEMENT, MUTUAL_AGREEMENT, SLIVER_PIXELS, SLIVER_SHARE, assign
from penstock.refining.proposals import from_masks
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import trust
from penstock.refining.types import FALLBACK, LOW, MATCHED, MERGED, Assignment, Objects, Proposals

RULE = RefineSettings()
SIZE = (40, 60)


def halves() -> np.ndarray:
    """(40, 60): id 5 left, id 9 right, 0 in the last column."""
    ids = np.full(SIZE, 5)
    ids[:, 30:] = 9
    ids[:, 59] = 0
    return ids


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def full(proposals: Proposals) -> list[np.ndarray]:
    masks = []
    for (x, y, width, height), crop in zip(proposals.boxes.tolist(), proposals.masks, strict=True):
        mask = np.zeros(proposals.size_hw, bool)
        mask[y : y + height, x : x + width] = crop
        masks.append(mask)
    return masks


def assigned(
    ids: np.ndarray, *masks: np.ndarray, prompted: tuple[int, ...] = (), scores: tuple[float, ...] = ()
) -> Assignment:
    column = np.array([*prompted, *[0] * (len(masks) - len(prompted))])
    given = np.array(scores) if scores else None
    return assign(parse(ids), from_masks((ids.shape[0], ids.shape[1]), masks, ids=column, scores=given), RULE)


def pieces_of(assignment: Assignment, number: int) -> list[np.ndarray]:
    return [mask for mask, owner in zip(full(assignment.proposals), assignment.numbers, strict=True) if owner == number]


def test_one_that_lies_inside_belongs_whole_though_it_reaches_out() -> None:
    reaching = box(0, 40, 3, 33)
    assignment = assigned(halves(), reaching)
    assert assignment.numbers.tolist() == [1]
    assert assignment.how.tolist() == [MATCHED, FALLBACK]
    np.testing.assert_array_equal(full(assignment.proposals)[0], reaching)


def test_a_wall_in_pieces_is_whole_again() -> None:
    pieces = [box(0, 40, left, left + 10) for left in (0, 10, 20)]
    assignment = assigned(halves(), *pieces, box(0, 40, 31, 59))
    assert assignment.numbers.tolist() == [1, 1, 1, 2]
    assert assignment.how.tolist() == [MATCHED | MERGED, MATCHED]


def test_one_that_covers_two_is_cut_along_the_coarse_map() -> None:
    assignment = assigned(halves(), box(0, 40, 20, 45))
    assert assignment.numbers.tolist() == [1, 2]
    np.testing.assert_array_equal(pieces_of(assignment, 1)[0], box(0, 40, 20, 30))
    np.testing.assert_array_equal(pieces_of(assignment, 2)[0], box(0, 40, 30, 45))
    assert assignment.how.tolist() == [MATCHED | LOW, MATCHED]


def test_parts_carry_what_their_proposal_had() -> None:
    masks = [box(0, 40, 20, 45)]
    proposals = from_masks(SIZE, masks, scores=np.array([0.5]), stability=np.array([0.25]))
    parts = assign(parse(halves()), proposals, RULE).proposals
    assert (parts.scores.tolist(), parts.stability.tolist(), parts.ids.tolist()) == ([0.5] * 2, [0.25] * 2, [0] * 2)


def test_one_that_covers_a_small_object_and_floods_others_is_never_given_whole() -> None:
    ids = np.repeat(np.arange(1, 11), 6)[None].repeat(40, axis=0)  # ten bars, none has a fifth of the whole frame
    ids[:, 6:9] = 1
    assignment = assigned(ids, np.ones(SIZE, bool))
    objects = parse(ids)
    assert assignment.numbers.tolist() == list(range(1, 11))
    for number, mask in zip(assignment.numbers, full(assignment.proposals), strict=True):
        np.testing.assert_array_equal(mask, objects.labels == number)


def test_slivers_are_dropped_and_what_is_only_slivers_stays_nobodys() -> None:
    ids = halves()
    assignment = assigned(ids, box(0, 3, 29, 31))  # three pixels of each
    assert assignment.numbers.tolist() == [0]
    assert assignment.how.tolist() == [FALLBACK, FALLBACK]
    assert (SLIVER_PIXELS, SLIVER_SHARE) == (4, 0.02)
    assert assigned(ids, box(0, 11, 27, 30) | box(0, 40, 30, 40)).numbers.tolist() == [
        2
    ]  # whole: 33 of 433 are outside
    cut = assigned(ids, box(0, 5, 27, 30) | box(0, 6, 30, 39))  # 15 are under 2 % of 1200; 54 of 1160 are not
    assert cut.numbers.tolist() == [2]
    np.testing.assert_array_equal(full(cut.proposals)[0], box(0, 6, 30, 39))


def test_one_that_lies_on_no_object_or_mostly_so_is_nobodys() -> None:
    ids = np.zeros(SIZE, int)
    ids[:, :10] = 3
    ids[20, 30] = 4
    assert assigned(ids, box(0, 40, 40, 60)).numbers.tolist() == [0]
    assert assigned(ids, box(0, 40, 8, 60) & ~box(20, 21, 30, 31)).numbers.tolist() == [0]  # a little of 3
    assert assigned(ids, box(0, 40, 20, 60)).numbers.tolist() == [0]  # covers 4, which is nothing of it
    assert assigned(ids, box(0, 40, 0, 22)).numbers.tolist() == [1]  # 3 with a hole beside it


def test_what_is_spoken_for_is_not_cut_out_of_another_and_what_is_not_gets_its_part() -> None:
    good, both = box(0, 40, 0, 28), box(0, 40, 20, 45)
    assignment = assigned(halves(), good, both)
    assert assignment.numbers.tolist() == [1, 2]
    np.testing.assert_array_equal(full(assignment.proposals)[1], both)
    slight = assigned(halves(), box(0, 40, 0, 5), both)  # an IoU of 1/6 speaks for nobody
    assert slight.numbers.tolist() == [1, 1, 2]
    np.testing.assert_array_equal(full(slight.proposals)[1], both & box(0, 40, 0, 30))
    nested = assigned(halves(), box(0, 40, 0, 5), box(0, 40, 0, 4), both)  # together they cover no more than one does
    assert nested.numbers.tolist() == [1, 1, 1, 2]


def test_the_best_candidate_of_a_prompted_object_is_taken_and_no_other() -> None:
    part, whole, both = box(0, 40, 5, 12), box(0, 40, 0, 31), np.ones(SIZE, bool)
    assignment = assigned(halves(), part, whole, both, prompted=(5, 5, 5), scores=(0.95, 0.8, 0.99))
    assert assignment.numbers.tolist() == [0, 1, 0]
    assert assignment.how.tolist() == [MATCHED, FALLBACK]


def test_a_prompted_one_that_floods_others_is_cut_to_its_object() -> None:
    assignment = assigned(halves(), np.ones(SIZE, bool), prompted=(5,))
    assert assignment.numbers.tolist() == [1]
    np.testing.assert_array_equal(full(assignment.proposals)[0], halves() == 5)


def test_a_thin_object_may_move_beside_itself_when_prompted() -> None:
    ids = np.full((200, 300), 1)
    ids[:, 100:105] = 2
    moved = np.zeros(ids.shape, bool)
    moved[:, 103:108] = True  # two fifths of it on its coarse self: no two-sided test would give it
    assert assigned(ids, moved).how.tolist() == [FALLBACK, MATCHED | LOW]
    assignment = assigned(ids, moved, prompted=(2,))
    assert assignment.numbers.tolist() == [2]
    assert assignment.how.tolist() == [FALLBACK, MATCHED | LOW]


def test_a_candidate_that_hardly_meets_its_object_or_names_no_object_is_nobodys() -> None:
    ids = halves()
    assignment = assigned(ids, box(0, 40, 29, 59), box(0, 40, 0, 30), prompted=(5, 7))
    assert assignment.numbers.tolist() == [0, 0]


def test_automatic_ones_add_to_a_prompted_object_only_while_it_is_not_covered() -> None:
    piece, other = box(0, 40, 0, 15), box(0, 40, 16, 30)
    assert assigned(halves(), piece, other, prompted=(5,)).how.tolist() == [MATCHED | MERGED, FALLBACK]
    assert assigned(halves(), box(0, 40, 0, 27), other, prompted=(5,)).how.tolist() == [MATCHED, FALLBACK]


def test_nothing_to_match_is_a_fallback_for_all() -> None:
    assert assigned(halves()).how.tolist() == [FALLBACK, FALLBACK]
    nobody = assigned(np.zeros(SIZE, int), np.ones(SIZE, bool), np.ones(SIZE, bool), prompted=(3,))
    assert nobody.numbers.tolist() == [0, 0]
    assert len(nobody.how) == 0


def test_a_frame_of_another_size_is_bad_data() -> None:
    with pytest.raises(BadData, match="a frame of"):
        assign(parse(halves()), from_masks((3, 2), [np.ones((3, 2), bool)]), RULE)


@st.composite
def frames(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) ids -1..5, (N, H, W) masks, (N,) ids that were prompted for, 0 for most."""
    height, width, count = draw(st.integers(1, 14)), draw(st.integers(1, 14)), draw(st.integers(0, 7))
    coarse = draw(hnp.arrays(np.int64, (3, 3), elements=st.integers(-1, 5)))
    ids = coarse[np.arange(height)[:, None] * 3 // height, np.arange(width) * 3 // width]
    masks = draw(hnp.arrays(bool, (count, 5, 5)))[
        :, np.arange(height)[:, None] * 5 // height, np.arange(width) * 5 // width
    ]
    return ids, masks, draw(hnp.arrays(np.int64, count, elements=st.sampled_from([0, 0, 0, 1, 2, 3, 8])))


@settings(max_examples=300)
@given(frame=frames(), inside=st.floats(0, 1), cut=st.floats(0, 1), covers=st.floats(0, 1))
def test_rules_hold_for_any_frame(
    frame: tuple[np.ndarray, np.ndarray, np.ndarray], inside: float, cut: float, covers: float
) -> None:
    ids, masks, prompted = frame
    rule = replace(RULE, inside_share=inside, cut_share=cut, covers_share=covers)
    objects, proposals = parse(ids), from_masks((ids.shape[0], ids.shape[1]), masks, ids=prompted)
    assignment = assign(objects, proposals, rule)
    originals = full(proposals)
    keys = [mask.tobytes() for mask in originals]
    assert len(assignment.numbers) == len(assignment.proposals)
    for mask, number, one in zip(full(assignment.proposals), assignment.numbers, assignment.proposals.ids, strict=True):
        inside_labels = np.bincount(objects.labels[mask], minlength=len(objects) + 1)[1:]
        if number and one:
            assert objects.ids[number - 1] == one
        if mask.tobytes() not in keys:  # a part
            assert number
            assert inside_labels.sum() == inside_labels[number - 1] == mask.sum()
            assert any((mask <= original).all() for original in originals)
        elif number and not one and inside_labels.sum() != inside_labels[number - 1]:
            if best_of_all(
                mask, number, objects, [one for one, asked in zip(originals, proposals.ids, strict=True) if not asked]
            ):
                continue
            others = np.delete(inside_labels, number - 1)
            assert inside_labels[number - 1] > inside * inside_labels.sum()
            assert others.max() <= cut * inside_labels.sum()
    for number in range(1, len(objects) + 1):
        pieces = pieces_of(assignment, number)
        how = (MATCHED if pieces else FALLBACK) | (MERGED if len(pieces) > 1 else 0)
        if pieces:
            union, target = np.logical_or.reduce(pieces), objects.labels == number
            how |= LOW if (union & target).sum() < LOW_AGREEMENT * (union | target).sum() else 0
        assert assignment.how[number - 1] == how
        prompts = (assignment.numbers == number) & (assignment.proposals.ids != 0)
        assert prompts.sum() <= 1


def best_of_all(mask: np.ndarray, number: int, objects: Objects, masks: list[np.ndarray]) -> bool:
    """Whether mask and object are each other's best match."""

    def agreement(one: np.ndarray, index: int) -> float:
        target = objects.labels == index
        return float((one & target).sum() / (one | target).sum())

    own = agreement(mask, number)
    mine = [agreement(mask, index) for index in range(1, len(objects) + 1)]
    theirs = [agreement(one, number) for one in masks]
    return own >= MUTUAL_AGREEMENT and own == max(mine) and own == max(theirs, default=own)


@given(frame=frames())
def test_zones_at_hand_change_nothing(frame: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ids, masks, prompted = frame
    objects, proposals = parse(ids), from_masks((ids.shape[0], ids.shape[1]), masks, ids=prompted)
    left, right = assign(objects, proposals, RULE), assign(objects, proposals, RULE, zones=trust(objects, RULE))
    np.testing.assert_array_equal(left.numbers, right.numbers, strict=True)
    np.testing.assert_array_equal(left.how, right.how, strict=True)
    for mask, other in zip(full(left.proposals), full(right.proposals), strict=True):
        np.testing.assert_array_equal(mask, other)
