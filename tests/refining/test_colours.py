"""Votes of the pixels that an object gained and lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.refining.colours import votes
from tests.refining.drawn import picture


def square() -> np.ndarray:
    """(120, 160) uint8: object 1 is a square of 60 pixels in object 2."""
    labels = np.full((120, 160), 2, np.uint8)
    labels[30:90, 50:110] = 1
    return labels


def test_all_changed_pixels_vote_for_the_truth_and_against_leaving_it() -> None:
    truth = square()
    coarse = np.roll(truth, (4, 3), (0, 1))
    image = picture(truth.astype(np.int64), 0)
    changed = np.count_nonzero(truth != coarse)
    towards, pixels = votes(image, coarse, truth, 2)
    np.testing.assert_array_equal(towards, [1, 1])
    np.testing.assert_array_equal(pixels, [changed, changed])
    np.testing.assert_array_equal(votes(image, truth, coarse, 2)[0], [-1, -1])


def test_colours_are_those_nearby() -> None:
    truth = square()
    shade = np.broadcast_to(np.linspace(0, 120, 160)[:, None], (120, 160, 3))
    image = (shade + np.where(truth == 1, 40, 0)[..., None]).astype(np.uint8)
    assert (votes(image, np.roll(truth, 4, 1), truth, 2)[0] > 0.9).all()


def test_nothing_is_said_of_an_unchanged_map_of_one_colour_or_of_an_object_never_seen() -> None:
    truth = square()
    flat = np.full((120, 160, 3), 90, np.uint8)
    same, none = votes(flat, truth, truth, 3)
    assert not same.any()
    assert not none.any()
    assert not votes(flat, np.roll(truth, 4, 1), truth, 2)[0].any()
    unseen, pixels = votes(picture(truth.astype(np.int64), 0), np.full_like(truth, 2), truth, 2)
    assert unseen.tolist() == [0, 0]
    assert pixels.tolist() == [3600, 3600]


def test_pixels_without_a_known_owner_count_as_undecided() -> None:
    truth = square()
    coarse = truth.copy()
    coarse[30:60, 50:56] = 2
    coarse[100:105, 0:6] = 3
    found, pixels = votes(picture(truth.astype(np.int64), 0), coarse, truth, 3)
    assert pixels.tolist() == [180, 210, 30]
    assert found.tolist() == pytest.approx([1, 180 / 210, 0])


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 50), st.integers(1, 50), st.sampled_from([3, 300, 60_000]))
def test_votes_lie_between_minus_1_and_1_and_turn_round_with_the_maps(
    seed: int, height: int, width: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    one, other = rng.integers(0, count + 1, (2, height, width)).astype(np.uint16)
    there, pixels = votes(image, one, other, count)
    back, _ = votes(image, other, one, count)
    assert (abs(there) <= 1).all()
    np.testing.assert_array_equal(there, -back)
    assert pixels.sum() <= 2 * image.shape[0] * image.shape[1]
