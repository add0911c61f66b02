"""A frame before and after refinement, side by side: the picture, its ids in colours, and their outlines."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from penstock.sequence_sheet import INK, LINE, MARGIN, PAPER, fitted, write

_STRENGTH = 0.45
"""Of the colours over the picture."""
_INVALID = (0, 0, 0)
_OUTLINE = (255, 255, 255)


def before_after(image: np.ndarray, maps: Mapping[str, np.ndarray], *, width: int | None = None) -> np.ndarray:
    """A panel for each map, from left to right, its name above it.

    An id has the same colour everywhere; pixels without an id are hatched in black, outlines white.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: name -> (H, W) whole numbers; 0 and below is no id.
        width: of each panel, in pixels; None: that of the picture.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    size = (image.shape[1], image.shape[0])
    if width is not None and width < size[0]:
        size = (width, max(1, round(width * size[1] / size[0])))
    page = Image.new("RGB", ((size[0] + MARGIN) * len(maps) + MARGIN, size[1] + LINE + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (name, ids) in enumerate(maps.items()):
        left = MARGIN + number * (size[0] + MARGIN)
        write(draw, (left, MARGIN), name, INK)
        page.paste(_panel(image, ids, size), (left, 2 * MARGIN + LINE))
    return np.asarray(page)


def colours_of(ids: np.ndarray) -> np.ndarray:
    """A colour for each id: (N,) int64 to (N, 3) uint8 RGB. Neighbouring numbers get hues far from each other."""
    turns = (ids.astype(np.float64) * 0.618033988749895) % 1
    shades = np.where(ids % 3 == 0, 1.0, np.where(ids % 3 == 1, 0.78, 0.58))
    channels = [np.clip(np.abs((turns + shift) % 1 * 6 - 3) - 1, 0, 1) for shift in (0, 2 / 3, 1 / 3)]
    colours: np.ndarray = (255 * shades[:, None] * np.stack(channels, -1)).astype(np.uint8)
    return colours


def _panel(image: np.ndarray, ids: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """At this width and height; ids are taken where they are, never mixed."""
    picture = np.asarray(fitted(Image.fromarray(image), size))
    rows, columns = (np.arange(small) * whole // small for small, whole in zip(size[::-1], ids.shape, strict=True))
    small = np.maximum(ids[rows[:, None], columns], 0)
    found, places = np.unique(small, return_inverse=True)
    colours = colours_of(found)[places.reshape(small.shape)]
    mixed = (picture * (1 - _STRENGTH) + colours * _STRENGTH).astype(np.uint8)
    hatched = np.add.outer(np.arange(size[1]), np.arange(size[0])) % 6 < 3
    mixed[(small == 0) & hatched] = _INVALID
    mixed[(small == 0) & ~hatched] = picture[(small == 0) & ~hatched]
    outline = np.zeros(small.shape, np.bool_)
    outline[:, 1:] |= small[:, 1:] != small[:, :-1]
    outline[1:] |= small[1:] != small[:-1]
    mixed[outline] = _OUTLINE
    return Image.fromarray(mixed)
