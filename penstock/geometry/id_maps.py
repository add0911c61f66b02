"""Id maps: one whole number per pixel that says which object it belongs to; to masks and back, areas, boxes.

What number means "no object" (0, or all that are not positive) is the data set's rule, not this module's: every value
of a map is treated alike. Files of id maps are in `id_pngs`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.masks import binary_mask

MAX_PANOPTIC_ID = (1 << 24) - 1
"""The highest id that three bytes hold."""

Overlap = Literal["refuse", "last", "smallest"]
"""What is done where masks overlap: refuse, the mask that comes last wins, or the one of the smallest area wins."""


def panoptic_ids(rgb: np.ndarray) -> np.ndarray:
    """The ids of a COCO panoptic picture: R + 256 G + 65536 B.

    Args:
        rgb: (H, W, 3) uint8, RGB; a picture read as BGR gives other ids.

    Returns:
        (H, W) uint32, 0..`MAX_PANOPTIC_ID`.

    Raises:
        BadData: another shape or type.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise BadData(f"panoptic picture: expected (H, W, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")
    ids = rgb[..., 2].astype(np.uint32)
    for channel in (1, 0):
        ids <<= np.uint32(8)
        ids |= rgb[..., channel]
    return ids


def panoptic_rgb(ids: np.ndarray) -> np.ndarray:
    """The inverse of `panoptic_ids`: (H, W) whole numbers to (H, W, 3) uint8 RGB.

    Raises:
        BadData: no id map, or an id outside 0..`MAX_PANOPTIC_ID`.
    """
    numbers = checked_ids(ids, 0, MAX_PANOPTIC_ID).astype(np.uint32)
    rgb: np.ndarray = np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], axis=-1).astype(np.uint8)
    return rgb


def ids_to_masks(ids: np.ndarray, wanted: Iterable[int]) -> np.ndarray:
    """One mask per id.

    Args:
        ids: (H, W) whole numbers.
        wanted: the ids, in the order of the masks. One that is not in the map gives an empty mask.

    Returns:
        (N, H, W) uint8, 0 or 1.

    Raises:
        BadData: no id map.
    """
    numbers = checked_ids(ids)
    listed = [int(one) for one in wanted]
    masks = np.empty((len(listed), *numbers.shape), np.bool_)
    for mask, one in zip(masks, listed, strict=True):
        np.equal(numbers, one, out=mask)
    return masks.view(np.uint8)


def masks_to_ids(
    masks: np.ndarray, ids: Sequence[int], *, overlap: Overlap = "refuse", background: int = 0
) -> np.ndarray:
    """One id map of many masks. The inverse of `ids_to_masks` where the masks do not overlap and none is empty.

    Args:
        masks: (N, H, W) bool, or numbers that are all 0 or 1.
        ids: N different numbers, 0..2^32 - 1, none of them `background`.
        overlap: where masks overlap: "refuse"; "last" lets the mask that comes later win; "smallest" the mask with
            fewer pixels, of equal ones the later.
        background: the id of pixels in no mask.

    Returns:
        (H, W) uint32.

    Raises:
        BadData: masks that are not binary, or that overlap where it is refused.
        UsageError: ids of another number, repeated, out of range or equal to the background; no such `overlap`.
    """
    numbers = [int(one) for one in ids]
    if overlap not in ("refuse", "last", "smallest"):
        raise UsageError(f"overlap: expected refuse, last or smallest, got {overlap!r}")
    if masks.ndim != 3:
        raise BadData(f"masks: expected (N, H, W), got shape {masks.shape}")
    if len(numbers) != len(masks) or len({*numbers, background}) != len(numbers) + 1:
        raise UsageError(
            f"ids: expected {len(masks)} different ids, one per mask, none of them the background {background}, "
            f"got {numbers[:20]}"
        )
    if not all(0 <= one < 1 << 32 for one in (*numbers, background)):
        raise UsageError(f"ids: expected 0..2^32 - 1, got {min(numbers)}..{max(numbers)} and background {background}")
    layers = [binary_mask(mask).view(np.bool_) for mask in masks]
    order = list(range(len(layers)))
    if overlap == "smallest":
        order.sort(key=lambda layer: -int(np.count_nonzero(layers[layer])))
    painted = np.full(masks.shape[1:], background, np.uint32)
    for place in order:
        if overlap == "refuse" and (under := painted[layers[place]] != background).any():
            raise BadData(
                f"masks: that of id {numbers[place]} shares {np.count_nonzero(under)} pixels with others; an id map "
                f"holds one id per pixel: say which wins (overlap=last or overlap=smallest)"
            )
        painted[layers[place]] = numbers[place]
    return painted


def id_areas(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels each id has.

    Args:
        ids: (H, W) whole numbers.

    Returns:
        (N, ) the ids that occur, ascending, of the map's type, background included; (N, ) int64 pixels.

    Raises:
        BadData: no id map.
    """
    _, starts, ends, values, first_of = _runs_by_id(ids)
    return values[first_of], np.add.reduceat(ends - starts, first_of)


def id_boxes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tight box of each id, all in one pass: equal to `boxes.mask_box` of its mask.

    Args:
        ids: (H, W) whole numbers.

    Returns:
        (N, ) the ids that occur, as `id_areas` gives them; (N, 4) float32 XYWH in pixels of the map.

    Raises:
        BadData: no id map.
    """
    rows, starts, ends, values, first_of = _runs_by_id(ids)
    left, right = np.minimum.reduceat(starts, first_of), np.maximum.reduceat(ends, first_of)
    top, bottom = np.minimum.reduceat(rows, first_of), np.maximum.reduceat(rows, first_of) + 1
    boxes = np.stack([left, top, right - left, bottom - top], axis=-1).astype(np.float32)
    return values[first_of], boxes


def checked_ids(ids: np.ndarray, lowest: int | None = None, highest: int | None = None) -> np.ndarray:
    """The map itself, if it is one: (H, W) whole numbers, within limits where they are given.

    Raises:
        BadData: another shape, no pixels, floats, or a number beyond the limits.
    """
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iub":
        raise BadData(f"id map: expected (H, W) whole numbers, got {ids.shape} {ids.dtype}")
    if lowest is not None and highest is not None:
        found = int(ids.min()), int(ids.max())
        if found[0] < lowest or found[1] > highest:
            raise BadData(f"id map: expected ids of {lowest}..{highest}, got {found[0]}..{found[1]}")
    return ids


def _runs_by_id(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The runs of equal ids along the rows, sorted by id.

    A map of objects has far fewer runs than pixels, so that sorting runs is much faster than sorting pixels.

    Returns:
        Row, first column, column past the end and id of each run, (R, ) each; the first run of each id, (N, ).
    """
    numbers = np.ascontiguousarray(checked_ids(ids))
    height, width = numbers.shape
    begins = np.ones(numbers.shape, np.bool_)
    np.not_equal(numbers[:, 1:], numbers[:, :-1], out=begins[:, 1:])
    places = np.flatnonzero(begins)
    lengths = np.diff(places, append=height * width)
    values = numbers.ravel()[places]
    order = np.argsort(values, kind="stable")
    rows, starts = np.divmod(places[order], width)
    values = values[order]
    first_of = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return rows, starts, starts + lengths[order], values, first_of
