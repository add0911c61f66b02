"""Depths are Chebyshev distances from other labels; cores are deep, and never empty."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.refining.labels import parse
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import CORE_SHARE, DEEPEST, band_width, histogram, look_up, trust
from tests.refining.drawn import true_map

maps = arrays(np.int64, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(-1, 3))


def distances(labels: np.ndarray) -> np.ndarray:
    """(H, W): how far the nearest pixel of another label that touches this label's region is; 8 neighbours for more than 1."""
    height, width = labels.shape
    beside = np.zeros(labels.shape, bool)
    beside[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    beside[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    beside[1:] |= labels[1:] != labels[:-1]
    beside[:-1] |= labels[1:] != labels[:-1]
    rows, columns = np.nonzero(beside)
    y, x = np.mgrid[:height, :width]
    if not len(rows):
        return np.full(labels.shape, 1000)
    found: np.ndarray = 1 + np.maximum(abs(y[..., None] - rows), abs(x[..., None] - columns)).min(axis=-1)
    return found


@given(maps, st.sampled_from([0.01, 0.1]))
@settings(max_examples=60, deadline=None)
def test_depth_says_how_far_another_label_is(ids: np.ndarray, share: float) -> None:
    objects = parse(ids)
    found = trust(objects, RefineSettings(band_share=share))
    away = distances(objects.labels)
    limits = (1, math.ceil(found.band / 4), math.ceil(found.band / 2), found.band)
    expected = sum((away > max(1, limit)).astype(int) for limit in limits)
    np.testing.assert_array_equal(found.depth, expected)


@given(maps)
@settings(max_examples=60, deadline=None)
def test_every_object_has_a_core_inside_it_of_its_deepest_pixels(ids: np.ndarray) -> None:
    objects = parse(ids)
    found = trust(objects, RefineSettings())
    assert ((found.core == 0) | (found.core == objects.labels)).all()
    np.testing.assert_array_equal(np.bincount(found.core.ravel(), minlength=len(objects) + 1)[1:], found.core_areas)
    assert (found.core_areas >= np.maximum(1, CORE_SHARE * objects.areas)).all()
    for number in range(1, len(objects) + 1):
        inside = objects.labels == number
        shallowest = found.depth[found.core == number].min()
        np.testing.assert_array_equal(found.core == number, inside & (found.depth >= shallowest))


def test_the_core_of_a_large_object_is_all_beyond_the_band() -> None:
    objects = parse(true_map(1))
    found = trust(objects, RefineSettings(band_share=0.01))
    assert found.band == 2 == band_width((120, 160), RefineSettings(band_share=0.01))
    np.testing.assert_array_equal(found.core != 0, found.depth == DEEPEST)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_look_up_and_histogram_are_those_of_numpy(count: int, dtype: type) -> None:
    rng = np.random.default_rng(count)
    labels = rng.integers(0, count + 1, (31, 17)).astype(np.min_scalar_type(count))
    table: np.ndarray = rng.integers(0, 200, count + 1).astype(dtype)
    found = look_up(labels, table)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, table[labels])
    np.testing.assert_array_equal(histogram(labels, count), np.bincount(labels.ravel(), minlength=count + 1))
