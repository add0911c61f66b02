"""Prompts lie where they should: inside, in neighbours' cores, in the cells of the object."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.refining.labels import parse
from penstock.refining.prompts import LARGEST_LOGIT, grid_points, make_prompts, residual_points
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import trust
from penstock.refining.types import FALLBACK, LOW, MATCHED
from tests.refining.drawn import true_map

SETTINGS = RefineSettings()


@given(arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(-1, 4)))
@settings(max_examples=60, deadline=None)
def test_points_lie_in_the_object_and_in_the_cores_of_others(ids: np.ndarray) -> None:
    objects = parse(ids)
    prompts, core = make_prompts(objects, SETTINGS), trust(objects, SETTINGS).core
    assert len(prompts) == len(objects)
    assert prompts.points.dtype == prompts.boxes.dtype == prompts.mask_logits.dtype == np.float32
    for number in range(1, len(objects) + 1):
        points, labels = prompts.points[number - 1], prompts.point_labels[number - 1]
        columns, rows = points.astype(int).T
        assert (labels[0], set(labels) <= {1, 0, -1}) == (1, True)
        assert (points[labels >= 0] % 1 == 0.5).all()
        assert (objects.labels[rows, columns][labels == 1] == number).all()
        neighbours = core[rows, columns][labels == 0]
        assert (neighbours != 0).all()
        assert (neighbours != number).all()
        assert len(set(neighbours.tolist())) == len(neighbours)
        assert len({tuple(point) for point in points[labels == 1].tolist()}) == (labels == 1).sum()


def test_the_box_is_in_edges_and_the_mask_is_that_of_the_object() -> None:
    ids = np.zeros((64, 128), np.int64)
    ids[10:30, 20:60] = 5
    prompts = make_prompts(parse(ids), SETTINGS)
    np.testing.assert_array_equal(prompts.ids, [5])
    np.testing.assert_array_equal(prompts.boxes, [[20, 10, 60, 30]])
    inside = prompts.mask_logits[0] > 0
    np.testing.assert_array_equal(inside, ids[:, :].repeat(4, 0).repeat(2, 1) == 5)
    assert prompts.mask_logits[0, 80, 80] == LARGEST_LOGIT
    assert prompts.mask_logits[0, 200, 200] == -LARGEST_LOGIT
    assert 0 < prompts.mask_logits[0, 40, 80] < 3
    assert -3 < prompts.mask_logits[0, 39, 80] < 0
    assert not (prompts.point_labels == 0).any()
    assert prompts.points[0, 0].tolist() == pytest.approx([40, 20], abs=10.5)


def test_an_object_of_one_pixel_and_one_that_fills_the_frame_have_prompts() -> None:
    ids = np.ones((300, 700), np.int64)
    ids[77, 501] = 2
    prompts = make_prompts(parse(ids), SETTINGS)
    assert prompts.points[1, 0].tolist() == [501.5, 77.5]
    assert (prompts.point_labels[1] == 1).sum() == 1
    assert (prompts.mask_logits[1] > 0).sum() == 1
    assert (prompts.mask_logits[0] > 0).mean() > 0.99
    whole = make_prompts(parse(np.ones((300, 700), np.int64)), SETTINGS)
    assert (whole.mask_logits == LARGEST_LOGIT).all()
    assert (whole.point_labels[0] == 1).sum() >= 1
    assert abs(whole.points[0, 0, 1] - 150) < 3


def test_poles_of_a_dumbbell_lie_in_both_weights() -> None:
    ids = np.zeros((40, 120), np.int64)
    ids[5:35, 5:35] = ids[5:35, 80:110] = ids[18:22, 30:90] = 1
    prompts = make_prompts(parse(ids), RefineSettings(poles=2))
    columns = sorted(prompts.points[0, :2, 0].tolist())
    assert columns[0] < 35
    assert columns[1] > 80


def test_negatives_are_in_the_nearest_neighbours() -> None:
    ids = np.repeat(np.arange(1, 7), 40)[None].repeat(60, axis=0)
    prompts = make_prompts(parse(ids), RefineSettings(negatives=2, poles=1))
    columns, rows = prompts.points[2, 1:].astype(int).T
    assert set(ids[rows, columns].tolist()) == {2, 4}
    assert make_prompts(parse(ids), RefineSettings(negatives=0)).points.shape == (6, 3, 2)


def test_no_objects_no_prompts() -> None:
    prompts = make_prompts(parse(np.zeros((5, 7), np.int64)), SETTINGS)
    assert (len(prompts), prompts.points.shape, prompts.mask_logits.shape) == (0, (0, 6, 2), (0, 256, 256))


def test_the_grid_is_that_of_sam() -> None:
    offset = 1 / (2 * 32)
    one = np.linspace(offset, 1 - offset, 32)
    expected = np.stack([np.tile(one[None, :], (32, 1)), np.tile(one[:, None], (1, 32))], axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(grid_points((690, 920), 32), expected * [920, 690], rtol=1e-6)


def test_residual_points_lie_where_nothing_is_labelled_beyond_the_band() -> None:
    ids = true_map(2)
    ids[20:90, 30:100] = 0
    objects = parse(ids)
    matched = np.full(len(objects), MATCHED, np.uint8)
    points = residual_points(objects, objects.labels, matched, RefineSettings(band_share=0.02))
    assert len(points)
    columns, rows = points.astype(int).T
    assert rows.min() >= 20 + 4
    assert rows.max() < 90 - 4
    assert columns.min() >= 30 + 4
    assert columns.max() < 100 - 4
    full = parse(true_map(2))
    assert len(residual_points(full, full.labels, np.full(len(full), MATCHED, np.uint8), SETTINGS)) == 0


@pytest.mark.parametrize("how", [FALLBACK, MATCHED | LOW])
def test_residual_points_lie_in_large_objects_that_were_not_found_whole(how: int) -> None:
    ids = np.ones((100, 100), np.int64)
    ids[:30, :30] = 2
    objects = parse(ids)
    painted = objects.labels.copy()
    painted[:, 50:] = 0
    painted[:30, :30] = 0
    points = residual_points(objects, painted, np.array([how, how], np.uint8), SETTINGS)
    columns, rows = points.astype(int).T
    assert set(ids[rows, columns].tolist()) == {1}
    assert columns.min() >= 50
    assert len(points) == 16 * 32
