"""Whether pictures said to be RGB have red and blue swapped, from the colours that photographs have.

Three kinds of colour are common in photographs, and what a swap turns them into is rare: skin, wood, soil and lamp light
(R > G > B) become azure, leaves and grass (G > R > B) become blue-green, flesh and flowers (R > B > G) become violet. Blue
sky, and bright blue surfaces in the upper half of a picture generally, are the one common exception, and count nothing.
Other exceptions, water, dusk, blue cars, are why one picture is hardly ever enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from penstock.errors import BadData

_SIDE = 128
"""Pictures are averaged down to about this many pixels a side: a single pixel's colour is noise."""

_SATURATION = 0.35
"""Of (highest - lowest) / highest. Below it shadows, roads and clouds are bluish."""

_DARK, _BRIGHT = 40, 140
_NO_COLOUR = 0.08
"""Share of coloured pixels that counts as much as evidence for neither side."""

_LEAST_COLOUR = 0.02
_SAME_SCENE = 0.3
"""Distance of two pictures' shares of colours below which they are taken for one scene, as frames of a video are."""


@dataclass(frozen=True)
class ChannelOrder:
    """What the pictures say."""

    guess: Literal["rgb", "bgr", "unsure"]
    """"rgb": as they should be; "bgr": red and blue are swapped."""
    score: float
    """Mean over scenes, -1 (swapped) .. 1 (as they should be). Swapping the channels turns its sign."""
    scenes: int
    """Scenes with enough colour to say something; frames that look alike count once."""
    needed: float
    """What the score's size must reach for a guess: 0.9 with one scene, 0.38 with eight, less with more."""


def channel_order(pictures: Sequence[np.ndarray]) -> ChannelOrder:
    """Guesses the order of the channels, and says "unsure" rather than be wrong.

    Each scene scores (usual colours - swapped colours) / (both + 0.08), all as shares of its pixels. The mean is taken
    for an answer where it reaches 0.1 + 0.8 / sqrt(scenes). How often it is right: docs/layouts/masklets.md.

    Args:
        pictures: (H, W, 3) uint8 each, said to be RGB; natural photographs. 8 or more of different scenes are wanted.

    Returns:
        The guess with its score. Without pictures, or without colours: "unsure".

    Raises:
        BadData: a picture of another shape or type.
    """
    shares = [_shares(picture) for picture in pictures]
    scenes: list[list[np.ndarray]] = []
    for share in shares:
        alike = next((scene for scene in scenes if np.abs(scene[0] - share).sum() < _SAME_SCENE), None)
        if alike is None:
            scenes.append([share])
        else:
            alike.append(share)
    means = [np.mean(scene, axis=0) for scene in scenes]
    scores = [_score(mean) for mean in means if mean[:2].sum() >= _LEAST_COLOUR]
    if not scores:
        return ChannelOrder("unsure", 0.0, 0, 0.9)
    score, needed = float(np.mean(scores)), 0.1 + 0.8 / math.sqrt(len(scores))
    is_sure = abs(score) >= needed
    return ChannelOrder(("rgb" if score > 0 else "bgr") if is_sure else "unsure", score, len(scores), needed)


def _score(shares: np.ndarray) -> float:
    usual, swapped = shares[:2].tolist()
    return float((usual - swapped) / (usual + swapped + _NO_COLOUR))


def _shares(picture: np.ndarray) -> np.ndarray:
    """(8,) float64 shares of the pixels: usual colours, swapped colours (both without bright blue and its swap in the
    upper half), then the six orders of the channels."""
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size or picture.dtype != np.uint8:
        raise BadData(f"picture: expected (H, W, 3) uint8, got {picture.shape} of {picture.dtype}")
    pixels = _smaller(picture)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    highest, lowest = pixels.max(axis=2), pixels.min(axis=2)
    is_coloured = (highest > _DARK) & (highest - lowest > _SATURATION * highest)
    is_upper = np.arange(len(pixels))[:, None] < len(pixels) / 2
    may_be_sky = is_upper & (highest > _BRIGHT) & (green < np.maximum(red, blue))
    counts = is_coloured & ~may_be_sky
    orders = [
        is_coloured & (first >= second) & (second >= third)
        for first, second, third in (
            (red, green, blue),
            (blue, green, red),
            (green, red, blue),
            (green, blue, red),
            (red, blue, green),
            (blue, red, green),
        )
    ]
    return np.array([each.mean() for each in (counts & (red > blue), counts & (blue > red), *orders)])


def _smaller(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32: averages of squares of pixels."""
    step = max(1, max(picture.shape[:2]) // _SIDE)
    height, width = (max(side // step, 1) for side in picture.shape[:2])
    cut = picture[: height * step, : width * step]
    rows, columns = min(step, picture.shape[0]), min(step, picture.shape[1])
    blocks = cut.reshape(height, rows, width, columns, 3)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))
