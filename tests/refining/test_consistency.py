"""Votes of faces: counted as by hand, clear majorities only, whole objects renamed and no outline moved."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.refining.consistency import (
    WEAK,
    Majorities,
    Votes,
    added,
    agree,
    face_flips,
    id_flips,
    majorities,
    votes_of,
)
from penstock.refining.quality import id_flips as true_flips
from penstock.refining.quality import object_ious
from penstock.testing_corruption import corrupt, make_scene

SEEDS = st.integers(0, 10_000)
SURE = np.uint8(255)


def frame_of(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids with some invalid, confidence, faces with some missing: (H, W) each."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 9)), int(rng.integers(1, 12)))
    ids = rng.choice([-1, 0, 3, 5, 70_000], size)
    return ids, rng.integers(0, 256, size).astype(np.uint8), rng.integers(-1, 6, size)


def by_pair(votes: Votes) -> dict[tuple[int, int], tuple[int, int]]:
    columns = (votes.faces, votes.ids, votes.weights, votes.frames)
    return {
        (face, one): (weight, frames) for face, one, weight, frames in zip(*(c.tolist() for c in columns), strict=True)
    }


def elected(**ids_of_faces: int) -> Majorities:
    """`f3=7`: face 3 has id 7."""
    pairs = sorted((int(name[1:]), number) for name, number in ids_of_faces.items())
    faces, ids = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    return Majorities(faces=faces, ids=ids)


@given(SEEDS)
def test_votes_are_the_sums_of_the_confidence(seed: int) -> None:
    ids, confidence, faces = frame_of(seed)
    expected: dict[tuple[int, int], int] = defaultdict(int)
    for one, sure, face in zip(ids.ravel().tolist(), confidence.ravel().tolist(), faces.ravel().tolist(), strict=True):
        if one > 0 and face >= 0:
            expected[face, one] += sure
    votes = votes_of(ids, confidence, faces)
    assert by_pair(votes) == {pair: (weight, 1) for pair, weight in expected.items()}
    assert list(by_pair(votes)) == sorted(expected)


@given(st.lists(SEEDS, max_size=5))
def test_votes_add_up_in_any_order(seeds: list[int]) -> None:
    votes = [votes_of(*frame_of(seed)) for seed in seeds]
    whole = added(votes)
    expected: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for one in votes:
        for pair, (weight, frames) in by_pair(one).items():
            expected[pair][0] += weight
            expected[pair][1] += frames
    assert by_pair(whole) == {pair: tuple(sums) for pair, sums in expected.items()}
    assert by_pair(added(votes[::-1])) == by_pair(whole)
    assert by_pair(added([added(votes[:2]), added(votes[2:])])) == by_pair(whole)


def test_a_majority_is_clear_and_of_several_frames() -> None:
    def votes(*rows: tuple[int, int, int, int]) -> Votes:
        faces, ids, weights, frames = (np.array(column, np.int64) for column in zip(*rows, strict=True))
        return Votes(faces=faces, ids=ids, weights=weights, frames=frames)

    found = majorities(votes((0, 5, 20, 2), (0, 7, 10, 2), (1, 5, 19, 2), (1, 7, 10, 3), (2, 9, 99, 1), (4, 6, 1, 2)))
    assert dict(zip(found.faces.tolist(), found.ids.tolist(), strict=True)) == {0: 5, 4: 6}
    even = majorities(votes((3, 8, 10, 1), (3, 9, 10, 1)), share=0, frames=1)
    assert even.ids.tolist() == [8]
    assert not len(majorities(added([])).faces)


def test_two_objects_that_exchanged_their_ids_get_them_back() -> None:
    faces = np.arange(60).reshape(6, 10)
    true = np.where(np.arange(10) < 5, 4, 9) * np.ones((6, 1), np.int64)
    votes = added([votes_of(true, np.full(true.shape, SURE), faces)] * 2)
    swapped = np.where(true == 4, 9, 4)
    found = agree(swapped, np.full(true.shape, SURE), faces, majorities(votes))
    np.testing.assert_array_equal(found.ids, true)
    assert (found.renamed, found.filled) == (2, 0)
    assert (found.confidence == 255).all()


def test_an_object_takes_a_free_id_but_never_that_of_one_with_more_votes_for_it() -> None:
    faces = np.repeat([[0, 1, 1]], 4, axis=0)
    ids = np.repeat([[5, 6, 6]], 4, axis=0)
    sure = np.full(ids.shape, SURE)
    assert agree(ids, sure, faces, elected(f0=8)).ids[0].tolist() == [8, 6, 6]
    joined = agree(ids, sure, faces, elected(f0=6, f1=6))
    assert joined.ids[0].tolist() == [5, 6, 6]
    assert not joined.renamed
    exchanged = agree(np.where(ids == 5, 6, 5), sure, faces, elected(f1=6))
    assert exchanged.ids[0].tolist() == [5, 6, 6]


def test_weak_pixels_take_the_id_of_their_face_and_sure_ones_keep_theirs() -> None:
    ids = np.array([[5, 5, 5, 5, 0, 7, 7, 7]])
    confidence = np.array([[255, 200, WEAK, WEAK - 1, 0, WEAK - 1, 255, 255]], np.uint8)
    faces = np.array([[1, 1, 2, 2, 2, -1, 3, 3]])
    found = agree(ids, confidence, faces, elected(f1=5, f2=7))
    assert found.ids.tolist() == [[5, 5, 5, 7, 7, 7, 7, 7]]
    assert found.confidence.tolist() == [[255, 200, WEAK, WEAK, WEAK, WEAK - 1, 255, 255]]
    assert found.filled == 2


@given(SEEDS, SEEDS)
def test_outlines_of_sure_pixels_stay_and_no_objects_become_one(seed: int, other: int) -> None:
    ids, confidence, faces = frame_of(seed)
    names = np.random.default_rng(other).choice([3, 5, 9, 70_000], 6)
    found = agree(ids, confidence, faces, Majorities(faces=np.arange(6), ids=names.astype(np.int64)))
    sure = (confidence >= WEAK) & (ids > 0)
    pairs = {(one, new) for one, new in zip(ids[sure].tolist(), found.ids[sure].tolist(), strict=True)}
    assert len({one for one, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
    unsaid = (faces < 0) & (ids <= 0)
    assert not found.ids[unsaid].any()
    assert (found.confidence >= np.where(ids > 0, confidence, 0)).all()


@given(SEEDS)
def test_without_majorities_nothing_changes(seed: int) -> None:
    ids, confidence, faces = frame_of(seed)
    found = agree(ids, confidence, faces, majorities(votes_of(ids, confidence, faces)))
    np.testing.assert_array_equal(found.ids, np.maximum(ids, 0))
    np.testing.assert_array_equal(found.confidence, confidence)


def test_ids_exchanged_in_some_frames_of_a_scene_flip_less_and_nothing_gets_worse() -> None:
    truths, coarse, faces = [], [], []
    rows, columns = np.indices((120, 160))
    for number in range(10):
        truth = make_scene(5, (120, 160), frame=number)[1].astype(np.int64)
        truths.append(truth)
        coarse.append(corrupt(truth, number, strength=0.5, kinds=("swap",)))
        faces.append((rows // 3) * 1000 + (columns + 4 * number) // 3)
    sure = np.full((120, 160), SURE)
    votes = majorities(added([votes_of(*one) for one in zip(coarse, [sure] * 10, faces, strict=True)]))
    agreed = [agree(ids, sure, shown, votes).ids for ids, shown in zip(coarse, faces, strict=True)]

    def flips(maps: list[np.ndarray]) -> int:
        return sum(true_flips((maps[n], maps[n + 1]), (truths[n], truths[n + 1]))[0] for n in range(9))

    assert flips(coarse) >= 10
    assert flips(agreed) <= 0.3 * flips(coarse)
    for before, after, truth in zip(coarse, agreed, truths, strict=True):
        assert (object_ious(after, truth)[1] >= object_ious(before, truth)[1] - 1e-9).all()


def test_flips_between_two_frames() -> None:
    faces = np.array([[0, 0, 1, 2, 3]])
    sure = np.full(faces.shape, SURE)
    one, other = (votes_of(np.array([ids]), sure, faces) for ids in ([5, 5, 6, 7, 0], [5, 6, 7, 7, 7]))
    assert face_flips(one, other) == (1, 3)
    assert face_flips(one, one) == (0, 3)
    assert id_flips(({1, 2, 3}, {2, 3, 4}), ({2, 3}, {3, 4})) == (1, 2)
    assert id_flips((set(), {1}), (set(), {1})) == (0, 0)


def test_face_maps_of_another_size_or_beyond_reason_are_refused() -> None:
    ids = np.ones((3, 4), np.int64)
    sure = np.full(ids.shape, SURE)
    with pytest.raises(BadData, match="size"):
        votes_of(ids, sure, np.zeros((4, 3), np.int64))
    with pytest.raises(BadData, match="size"):
        votes_of(ids, sure[:2], np.zeros((3, 4), np.int64))
    with pytest.raises(BadData, match="2\\^32"):
        votes_of(ids, sure, np.full((3, 4), 1 << 32))
    with pytest.raises(BadData):
        agree(ids, sure, np.zeros((3, 4)), elected(f0=1))
