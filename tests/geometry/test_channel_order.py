"""The guess of the channel order: odd under a swap, unsure where it cannot know."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.geometry.channel_order import channel_order
from penstock.geometry.images import decode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
WOOD, LEAVES, FLESH = (170, 110, 60), (90, 140, 40), (220, 120, 150)


def scene(colour: tuple[int, int, int], rows: int) -> np.ndarray:
    """Gray, the last rows of one colour."""
    pixels = np.full((20, 30, 3), 90, np.uint8)
    pixels[20 - rows :] = colour
    return pixels


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
def test_swapping_turns_the_sign(seeds: list[int]) -> None:
    pictures = [
        np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8) // np.array([1, 2, 3], np.uint8)
        for seed in seeds
    ]
    straight, swapped = channel_order(pictures), channel_order([picture[..., ::-1] for picture in pictures])
    assert straight.score == pytest.approx(-swapped.score)
    assert straight.scenes == swapped.scenes
    assert {straight.guess, swapped.guess} in ({"rgb", "bgr"}, {"unsure"})


def test_usual_colours_are_rgb_and_swapped_bgr() -> None:
    pictures = [scene(colour, rows) for colour in (WOOD, LEAVES, FLESH) for rows in (5, 10)]
    assert channel_order(pictures).guess == "rgb"
    assert channel_order([picture[..., ::-1] for picture in pictures]).guess == "bgr"


def test_one_scene_however_often_is_one() -> None:
    many, one = channel_order([scene(WOOD, 8)] * 8), channel_order([scene(WOOD, 8)])
    assert (many.scenes, many.guess) == (1, "unsure")
    assert many == one


@pytest.mark.parametrize("pictures", [[], [np.full((9, 9, 3), 200, np.uint8)], [np.zeros((1, 300, 3), np.uint8)]])
def test_without_colour_it_is_unsure(pictures: list[np.ndarray]) -> None:
    found = channel_order(pictures)
    assert (found.guess, found.score, found.scenes) == ("unsure", 0.0, 0)


def test_blue_sky_says_nothing() -> None:
    sky = scene((0, 0, 0), 0)
    sky[:10] = (110, 160, 230)
    assert channel_order([sky]).scenes == 0


def test_other_arrays_are_refused() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(BadData, match="uint8"):
            channel_order([wrong])


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_real_pictures_are_never_guessed_wrong() -> None:
    folders = (
        "photos/*",
        "coco_panoptic/val2017/*",
        "openimages/train/*",
        "sa1b_like/images_only/*",
        "lasot/*/*/img/*1.jpg",
    )
    paths = [path for folder in folders for path in sorted(SHARED.glob(folder))][:30]
    pictures = [decode_picture(path.read_bytes(), exif="ignore")[::4, ::4] for path in paths]
    singles = [channel_order([picture]).guess for picture in pictures]
    swapped = [channel_order([picture[..., ::-1]]).guess for picture in pictures]
    assert "bgr" not in singles
    assert "rgb" not in swapped
    assert channel_order(pictures).guess == "rgb"
    assert channel_order([picture[..., ::-1] for picture in pictures]).guess == "bgr"
