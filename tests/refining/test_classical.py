"""Outlines that follow colours: what the classical proposer promises, and that it is worth having."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from penstock.errors import UsageError
from penstock.readers.pth import load_id_file
from penstock.refining.classical import Classical, snap
from penstock.refining.frame import refine_frame
from penstock.refining.labels import parse
from penstock.refining.prompts import make_prompts
from penstock.refining.quality import FrameScore, score_frame, total
from penstock.refining.settings import RefineSettings
from penstock.refining.types import Frame
from penstock.testing_corruption import corrupt, make_scene

DATA = Path(__file__).parents[3] / "shared" / "data"


def refined(image: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    frame = Frame(key="a/b", image=image, objects=parse(coarse))
    return refine_frame(frame, Classical().encode([frame])[0], RefineSettings()).ids


def test_an_outline_moves_to_the_edge_of_the_picture() -> None:
    truth = np.ones((200, 200), np.int32)
    truth[60:140, 60:140] = 5
    image = np.where(truth[..., None] == 5, [200, 60, 60], [60, 60, 200]).astype(np.uint8)
    coarse = np.roll(truth, (2, -2), axis=(0, 1))
    coarse[90:95, 90:95] = 0
    snapped = np.array([0, 1, 5])[snap(image, parse(coarse), Classical())]
    wrong_before, wrong = (np.count_nonzero(ids != truth) for ids in (coarse, snapped))
    assert wrong_before > 600
    assert wrong < wrong_before / 5  # not 0: moving has its price, and corners are rounded


def test_where_the_picture_shows_nothing_the_map_stays() -> None:
    coarse = make_scene(1, (80, 100), 4)[1]
    objects = parse(np.maximum(coarse, 1))
    snapped = snap(np.full((80, 100, 3), 128, np.uint8), objects, Classical())
    assert (snapped == objects.labels).mean() > 0.99


def test_a_large_area_without_labels_stays_without() -> None:
    image = np.full((200, 200, 3), 40, np.uint8)
    image[40:120, 40:120] = 200
    coarse = np.zeros((200, 200), np.int32)
    coarse[42:122, 42:122] = 9
    snapped = snap(image, parse(coarse), Classical())
    bright = image[..., 0] == 200
    wrong_before, wrong = (np.count_nonzero((ids > 0) != bright) for ids in (coarse, snapped))
    assert wrong < 0.55 * wrong_before  # the area around gives up what it had; what it had not it is slow to take
    assert not snapped[:30].any()
    assert not snapped[:, 150:].any()


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(1, 40))
def test_any_map_gives_labels_of_its_own_twice_the_same(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    objects = parse(rng.integers(-1, 4, (height, width)).repeat(2, 0)[:height])
    snapped = snap(image, objects, Classical())
    assert snapped.dtype == np.uint16
    assert snapped.shape == (height, width)
    assert int(snapped.max()) <= len(objects)
    assert np.array_equal(snapped, snap(image, objects, Classical()))


def test_outlines_do_not_move_further_than_their_reach() -> None:
    image, truth = make_scene(2)
    objects = parse(corrupt(truth, 2))
    reach = round(0.01 * 400)
    snapped = snap(image, objects, Classical(reach_share=0.01, hole_share=0))
    for number in range(1, len(objects) + 1):
        rows, columns = np.nonzero(objects.labels == number)
        for y, x in np.argwhere((snapped == number) & (objects.labels != number))[::50].tolist():
            assert np.hypot(rows - y, columns - x).min() <= reach * 1.05


def test_each_prompt_gets_one_mask_of_its_object() -> None:
    image, truth = make_scene(4, (80, 100), 4)
    frame = Frame(key="a/b", image=image, objects=parse(truth))
    encoded = Classical().encode([frame])[0]
    proposals = encoded.prompted(make_prompts(frame.objects, RefineSettings()))
    assert sorted(proposals.ids.tolist()) == sorted(set(proposals.ids.tolist()))
    assert set(proposals.ids.tolist()) <= set(frame.objects.ids.tolist())
    assert len(encoded.at_points(np.array([[5.0, 5.0]], np.float32))) == 0
    assert Classical().identity() != Classical(price=1).identity()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="reach_share"):
        Classical(reach_share=2)
    with pytest.raises(UsageError, match="rounds"):
        Classical(rounds=0)
    with pytest.raises(UsageError, match="cpu"):
        Classical(device="cuda")


def test_made_scenes_get_better() -> None:
    before, after = [], []
    for seed in range(4):
        image, truth = make_scene(seed, (160, 200), 6)
        coarse = corrupt(truth, seed, strength=0.4)
        before.append(score_frame(coarse, truth, coarse))
        after.append(score_frame(refined(image, coarse), truth, coarse))
    assert total(after).mean_iou > total(before).mean_iou + 0.05
    assert total(after).boundary_iou > total(before).boundary_iou + 0.05


@pytest.mark.skipif(not (DATA / "scenes_truth").is_dir(), reason="the shared scenes are not here")
def test_no_shared_scene_gets_worse_and_all_get_better_on_average() -> None:
    gains = {}
    for folder in sorted((DATA / "scenes").iterdir()):
        before: list[FrameScore] = []
        after: list[FrameScore] = []
        for path in sorted((folder / "images").iterdir())[::3]:
            image = np.asarray(Image.open(path).convert("RGB"))
            coarse = load_id_file(folder / "obj_ids" / f"{path.name}.pth")
            truth = load_id_file(DATA / "scenes_truth" / folder.name / f"{path.name}.png")
            before.append(score_frame(coarse, truth, void="counted"))
            after.append(score_frame(refined(image, coarse), truth, void="counted"))
        gains[folder.name] = total(after).mean_iou - total(before).mean_iou
    assert min(gains.values()) > 0, gains
    assert np.mean(list(gains.values())) > 0.04, gains
