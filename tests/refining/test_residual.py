"""Pixels nobody has: what they are given, and what stays without an id."""

import numpy as np
import pytest
from hypothesis import given as tried
from hypothesis import settings
from hypothesis import strategies as st

from penstock.refining.labels import parse
from penstock.refining.proposals import from_masks
from penstock.refining.residual import CONFIDENCE, REASONS, explain, fill_gaps, restore, segment_majority, survive
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import DEEPEST, trust
from tests.refining.drawn import given, spoiled, true_map

SETTINGS = RefineSettings()


def test_what_nobody_claims_in_a_core_goes_back() -> None:
    objects = parse(true_map(5))
    zones = trust(objects, SETTINGS)
    labels = np.zeros_like(objects.labels)
    at = restore(zones, labels)
    np.testing.assert_array_equal(labels, zones.core)
    np.testing.assert_array_equal(at, np.flatnonzero(zones.core))


def test_holes_and_gaps_get_the_nearest_object() -> None:
    truth = parse(true_map(6)).labels
    rng = np.random.default_rng(0)
    labels = truth.copy()
    labels[:, 80:83] = 0
    for _ in range(10):
        row, column = rng.integers(0, 110, 2)
        labels[row : row + 5, column : column + 5] = 0
    before = labels.copy()
    at = fill_gaps(labels, RefineSettings(residual_limit_share=0.03))  # 6 pixels: every row and column is looked at
    np.testing.assert_array_equal(at, np.flatnonzero(before == 0))
    known = np.argwhere(before != 0)
    for row, column in np.argwhere(before == 0):
        away = np.hypot(*(known - [row, column]).T)
        near = before[tuple(known[away <= away.min() * 1.05 + 0.01].T)]  # DIST_L2 with a mask of 5 errs by 2 % at most
        assert labels[row, column] in near


def test_a_coarse_search_is_off_by_two_pixels_at_most() -> None:
    labels = np.repeat(parse(true_map(6, size_hw=(240, 320))).labels, 2, axis=1)
    labels[100:112] = 0
    before = labels.copy()
    fill_gaps(labels, RefineSettings(residual_limit_share=0.02))  # 13 pixels
    known = np.argwhere(before != 0)
    for row, column in np.argwhere(before == 0)[::17]:
        away = np.hypot(*(known - [row, column]).T)
        assert labels[row, column] in before[tuple(known[away <= away.min() + 3].T)]


@pytest.mark.parametrize("shape", ["box", "disc"])
def test_a_large_region_without_labels_is_not_flooded(shape: str) -> None:
    labels = np.repeat(parse(true_map(7, size_hw=(240, 320))).labels, 2, axis=1)
    rows, columns = np.mgrid[:240, :640]
    wide = (abs(rows - 120) < 50) & (abs(columns - 300) < 90)
    if shape == "disc":
        wide = np.hypot(rows - 120, columns - 300) < 60
    labels[wide] = 0
    labels[180:, 500:506] = 0
    assert len(fill_gaps(labels, SETTINGS))
    assert (labels[180:, 500:506] != 0).all()
    assert (labels[wide] == 0).mean() > 0.995
    assert len(fill_gaps(np.zeros((50, 50), np.uint16), SETTINGS)) == 0
    assert len(fill_gaps(labels, RefineSettings(residual_limit_share=0))) == 0


def test_nothing_is_filled_from_further_than_the_limit() -> None:
    labels = np.zeros((100, 100), np.uint16)
    labels[50, 50] = 1
    fill_gaps(labels, RefineSettings(residual_limit_share=0.03))
    rows, columns = np.nonzero(labels)
    assert np.hypot(rows - 50, columns - 50).max() <= 4


def test_a_proposal_of_nobody_gives_its_rest_to_its_majority() -> None:
    ids = np.zeros((40, 40), np.int64)
    ids[:, :20], ids[:10, 20:] = 1, 2
    objects = parse(ids)
    masks = np.zeros((3, 40, 40), bool)
    masks[0, 10:40, 5:25] = True  # three quarters in 1
    masks[1, 10:40, 22:40] = True  # all without label
    masks[2, 5:20, 30:40] = True  # a third in 2
    labels = objects.labels.copy()
    at = segment_majority(given(objects, from_masks((40, 40), masks), [0, 0, 0]), labels, SETTINGS)
    expected = objects.labels.copy()
    expected[10:40, 20:25] = 1
    np.testing.assert_array_equal(labels, expected)
    assert sorted(at.tolist()) == np.flatnonzero(expected != objects.labels).tolist()
    assert len(segment_majority(given(objects, from_masks((40, 40), masks), [1, 1, 2]), labels, SETTINGS)) == 0


@tried(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from(["nothing", "one", "noise"]))
@settings(max_examples=60, deadline=None)
def test_every_object_of_enough_pixels_survives(seed: int, min_pixels: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    objects = parse(rng.integers(0, 6, (rng.integers(1, 20), rng.integers(1, 20))))
    chosen = RefineSettings(min_pixels=min_pixels)
    labels = np.zeros_like(objects.labels)
    if kind == "one" and len(objects):
        labels[:] = 1
    elif kind == "noise":
        labels[:] = rng.integers(0, len(objects) + 1, labels.shape)
    before = labels.copy()
    after = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
    at = survive((objects, trust(objects, chosen)), labels, after, chosen)
    np.testing.assert_array_equal(after, np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:])
    assert (after[objects.areas >= min_pixels] >= min_pixels).all()
    assert (labels.ravel()[at] == objects.labels.ravel()[at]).all()
    assert set(np.flatnonzero(labels != before)) <= set(at.tolist())
    assert len(np.unique(at)) == len(at)


def test_reasons_and_confidence_say_what_happened() -> None:
    objects = parse(spoiled(true_map(8), 8))
    zones = trust(objects, SETTINGS)
    labels = objects.labels.copy()
    labels[10:20, 10:20] = 1
    at = np.flatnonzero(labels == 0)[:5]
    labels.ravel()[at] = 3
    kept, how = np.zeros(len(objects), bool), np.ones(len(objects), np.uint8)
    kept[1], how[2] = True, 3
    reasons, confidence = explain((objects, zones), labels, how, kept, {"nearest": at})
    same = labels == objects.labels
    expected = np.select(
        [labels == 0, labels == 2, same, labels == 3], [0, REASONS["kept"], REASONS["coarse"], REASONS["merged"]], 2
    )
    expected.ravel()[at] = REASONS["nearest"]
    np.testing.assert_array_equal(reasons, expected)
    words = {number: word for word, number in REASONS.items()}
    table = np.array([CONFIDENCE[words[number]] for number in range(len(words))])
    np.testing.assert_array_equal(confidence, table[reasons, zones.depth])
    assert ((confidence == 0) == (labels == 0)).all()
    agreed = (reasons == REASONS["coarse"]) & (zones.depth == DEEPEST)
    np.testing.assert_array_equal(confidence == 255, agreed)
