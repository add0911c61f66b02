"""The makers of spoiled maps and scenes, and the model that knows the truth, keep their word."""

from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SourceNotFound, UsageError
from penstock.readers.scenes import Scenes
from penstock.refining.labels import parse
from penstock.refining.prompts import grid_points, make_prompts
from penstock.refining.quality import id_flips, mean_iou, object_ious
from penstock.refining.settings import RefineSettings
from penstock.refining.types import Frame, Proposals
from penstock.testing_corruption import Kind, corrupt, make_scene, make_scenes_folder
from penstock.testing_simulated import SimulatedSam, ceiling

SIZE = (60, 80)


def frame_of(seed: int) -> tuple[Frame, np.ndarray]:
    image, truth = make_scene(seed, SIZE, 5)
    return Frame(key=f"made/{seed}", image=image, objects=parse(corrupt(truth, seed, strength=0.3))), truth


def masks_of(proposals: Proposals) -> list[bytes]:
    """All that the proposals are, in order."""
    rows = zip(proposals.boxes, proposals.masks, proposals.scores, proposals.ids, strict=True)
    return [b"".join([box.tobytes(), mask.tobytes(), score.tobytes(), id_.tobytes()]) for box, mask, score, id_ in rows]


@given(st.integers(0, 1 << 40), st.sampled_from(get_args(Kind)), st.floats(0, 1), st.sampled_from(["u1", "i4", "i8"]))
def test_damage_is_the_same_again_and_makes_no_id(seed: int, kind: Kind, strength: float, dtype: str) -> None:
    truth = make_scene(5, (32, 40), 4)[1].astype(dtype)
    before = truth.copy()
    spoiled = corrupt(truth, seed, strength=strength, kinds=[kind])
    assert np.array_equal(truth, before)
    assert spoiled.dtype == truth.dtype
    assert spoiled.shape == truth.shape
    assert np.array_equal(spoiled, corrupt(truth, seed, strength=strength, kinds=[kind]))
    assert set(np.unique(spoiled)) <= {0, *np.unique(truth)}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_does_something_and_nothing_at_0(kind: Kind) -> None:
    truth = make_scene(5, (120, 160), 4)[1]
    assert np.array_equal(corrupt(truth, 1, strength=0, kinds=[kind]), truth)
    assert not np.array_equal(corrupt(truth, 1, strength=1, kinds=[kind]), truth)


def test_more_strength_does_more_damage() -> None:
    truths = [make_scene(seed)[1] for seed in range(4)]
    ious = [
        np.mean([mean_iou(corrupt(truth, n, strength=strength), truth) for n, truth in enumerate(truths)])
        for strength in (0, 0.25, 0.5, 1)
    ]
    assert ious[0] == 1
    assert all(after < before - 0.05 for before, after in pairwise(ious))


def test_a_swap_exchanges_two_ids_and_no_pixel() -> None:
    truth = make_scene(5, SIZE, 4)[1]
    swapped = corrupt(truth, 2, strength=1, kinds=["swap"])
    assert id_flips((truth, swapped), (truth, truth))[0] == 2
    assert sorted(np.unique(swapped, return_counts=True)[1]) == sorted(np.unique(truth, return_counts=True)[1])


def test_scenes_are_made_of_edges_that_lie_on_those_of_the_truth() -> None:
    image, truth = make_scene(3)
    assert image.shape == (240, 320, 3)
    assert image.dtype == np.uint8
    assert truth.shape == (240, 320)
    assert truth.dtype == np.uint16
    grey = image.astype(np.float32).mean(-1)
    steps = np.abs(np.diff(grey, axis=1))
    at_edges = np.diff(truth.astype(int), axis=1) != 0
    assert steps[at_edges].mean() > 2 * steps[~at_edges].mean()
    for one, other in zip(make_scene(3, frame=2), make_scene(3, frame=2), strict=True):
        assert np.array_equal(one, other)


def test_frames_of_a_scene_are_one_room_with_the_same_ids() -> None:
    first, later = make_scene(3, SIZE)[1], make_scene(3, SIZE, frame=2)[1]
    assert np.array_equal(first[:, 8:], later[:, :-8])
    assert np.array_equal(make_scene(3, SIZE, frame=20)[1], first)


def test_a_made_folder_is_read_as_scenes(tmp_path: Path) -> None:
    made = make_scenes_folder(tmp_path, scenes=2, frames=2, size_hw=SIZE, seed=4)
    source = Scenes(tmp_path)
    assert tuple(source.keys) == made.keys == tuple(made.truths)
    for row, truth in zip(range(len(source)), made.truths.values(), strict=True):
        record = source[row]
        assert np.shape(record["image"]) == (*SIZE, 3)
        assert 0.2 < mean_iou(np.asarray(record["ids"]), truth) < 1


def test_wrong_arguments_are_refused() -> None:
    truth = np.ones((20, 20), np.int32)
    with pytest.raises(UsageError, match="strength"):
        corrupt(truth, 0, strength=1.5)
    with pytest.raises(UsageError, match="kinds"):
        corrupt(truth, 0, kinds=["melt"])  # type: ignore[list-item]  # what a user might try
    with pytest.raises(UsageError, match="size_hw"):
        make_scene(0, (8, 80))
    with pytest.raises(UsageError, match="error"):
        SimulatedSam({}, error=2)
    with pytest.raises(SourceNotFound, match="made/1"):
        SimulatedSam({}).encode([frame_of(1)[0]])


def test_without_error_the_model_knows_the_truth() -> None:
    frame, truth = frame_of(1)
    encoded = SimulatedSam({frame.key: truth}, error=0).encode([frame])[0]
    found = encoded.at_points(grid_points(SIZE, 32))
    shown = [(truth[y : y + h, x : x + w], mask) for (x, y, w, h), mask in zip(found.boxes, found.masks, strict=True)]
    assert all(len(np.unique(part[mask])) == 1 for part, mask in shown)
    best = ceiling(found, truth)
    assert (best[best > 0] == 1).all()
    assert (best > 0).mean() > 0.7


@pytest.mark.parametrize("error", [0, 0.4, 1])
def test_answers_do_not_depend_on_the_order_of_questions(error: float) -> None:
    frame, truth = frame_of(2)
    prompts, points = make_prompts(frame.objects, RefineSettings()), grid_points(SIZE, 16)
    one, other = (SimulatedSam({frame.key: truth}, error=error, seed=3).encode([frame])[0] for _ in range(2))
    first = masks_of(one.prompted(prompts)), masks_of(one.at_points(points))
    second = masks_of(other.at_points(points)), masks_of(other.prompted(prompts))
    assert first == second[::-1]
    assert all(mask.any() for mask in one.prompted(prompts).masks)
    assert set(one.prompted(prompts).ids.tolist()) <= set(frame.objects.ids.tolist())


def test_the_ceiling_falls_with_the_error_and_is_one_that_can_be_reached() -> None:
    means = []
    for error in (0.0, 0.3, 0.6, 1.0):
        found = []
        for seed in range(3):
            frame, truth = frame_of(seed)
            proposals = (
                SimulatedSam({frame.key: truth}, error=error).encode([frame])[0].at_points(grid_points(SIZE, 32))
            )
            found.append(ceiling(proposals, truth))
            for best, own in zip(found[-1], _best_single(proposals, truth), strict=True):
                assert best >= own - 1e-12
        means.append(np.concatenate(found).mean())
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.8
    assert means[-1] < 0.5


def _best_single(proposals: Proposals, truth: np.ndarray) -> list[float]:
    """IoU of each object with the proposal that fits it best, each painted as a map of its own."""
    best = dict.fromkeys(np.unique(truth[truth > 0]).tolist(), 0.0)
    for (x, y, width, height), mask in zip(proposals.boxes.tolist(), proposals.masks, strict=True):
        for id_ in best:
            painted = np.zeros(truth.shape, np.int64)
            painted[y : y + height, x : x + width][mask] = id_
            ids, ious = object_ious(painted, truth)
            best[id_] = max(best[id_], float(ious[ids == id_][0]))
    return list(best.values())
