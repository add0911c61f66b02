"""An id map, parsed: which of its ids are objects, their numbers, areas and boxes."""

from collections.abc import Iterable

import numpy as np

from penstock.errors import BadData
from penstock.geometry.id_maps import checked_ids
from penstock.refining.runs import run_starts
from penstock.refining.types import Objects

MAX_OBJECTS = (1 << 16) - 1
"""As many as uint16 can number beside 0."""

_MAX_ID = (1 << 63) - 1
_TABLE = 1 << 20
"""Ids up to here are numbered through a table, others by sorting."""


def parse(ids: np.ndarray, *, invalid: Iterable[int] = ()) -> Objects:
    """The objects of an id map: every id above 0, but those that are said to be invalid.

    Works on the runs of equal ids along the rows, of which a map has far fewer than pixels.

    Args:
        ids: (H, W) whole numbers of any type and byte order.
        invalid: ids that are no object; 0 and below never are one.

    Returns:
        Objects numbered from 1 in order of their ids; none (K = 0) where no pixel is valid.

    Raises:
        BadData: no id map (another shape, floats, bool), an id above 2^63 - 1, or more than `MAX_OBJECTS` objects.
    """
    pixels = checked_ids(np.asarray(ids))
    if pixels.dtype.kind == "b":
        raise BadData("id map: expected whole numbers, got bool: a mask says where an object is, not which")
    values, starts, lengths = _runs(pixels)
    found, numbers = _numbered(values, [int(one) for one in invalid])
    labels = np.repeat(numbers.astype(np.min_scalar_type(len(found))), lengths).reshape(pixels.shape)
    areas = np.bincount(numbers, weights=lengths, minlength=len(found) + 1)[1:].astype(np.int64)
    return Objects(labels=labels, ids=found, areas=areas, boxes=_boxes(starts, lengths, numbers, pixels.shape[1]))


def _runs(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, first pixel (int64) and length (int64) of each run of equal values, none longer than a row: (R,) each."""
    flat = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")).reshape(-1)
    unsigned = flat.view(f"u{flat.itemsize}")
    highest = int(unsigned.max())  # no lower where an id is negative
    narrow = np.min_scalar_type(highest)
    starts = run_starts(unsigned.astype(narrow, copy=False), np.s_[:: pixels.shape[1]])
    return flat[starts], starts, np.diff(starts, append=flat.size)


def _numbered(values: np.ndarray, invalid: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The ids that are objects, (K,) int64 rising, and the number of each value, (R,) int64, 0 where it is none."""
    if int(values.max()) > _MAX_ID:
        raise BadData(f"id map: expected ids up to 2^63 - 1, got {values.max()}")
    whole = np.maximum(values.astype(np.int64), 0)
    if int(whole.max()) < _TABLE:
        is_object = np.zeros(int(whole.max()) + 1, np.bool_)
        is_object[whole] = True
        is_object[[0, *(one for one in invalid if 0 < one < len(is_object))]] = False
        found = np.flatnonzero(is_object)
        numbers = np.where(is_object, np.cumsum(is_object), 0)[whole]
    else:
        present, places = np.unique(whole, return_inverse=True)
        is_object = ~np.isin(present, [0, *(one for one in invalid if 0 < one <= _MAX_ID)])
        found = present[is_object]
        numbers = np.where(is_object, np.cumsum(is_object), 0)[places]
    if len(found) > MAX_OBJECTS:
        raise BadData(f"id map: expected at most {MAX_OBJECTS} objects, got {len(found)}: is it a depth map?")
    return found.astype(np.int64, copy=False), numbers


def _boxes(starts: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, width: int) -> np.ndarray:
    """Tight boxes of numbers 1..K, (K, 4) int32 XYWH, from the runs of a map of this width."""
    count = int(numbers.max()) + 1
    rows, lefts = np.divmod(starts, width)
    left, top = np.full(count, width), np.full(count, rows[-1] + 1)
    right, bottom = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.minimum.at(left, numbers, lefts)
    np.maximum.at(right, numbers, lefts + lengths)
    np.minimum.at(top, numbers, rows)
    np.maximum.at(bottom, numbers, rows + 1)
    return np.stack([left, top, right - left, bottom - top], axis=-1)[1:].astype(np.int32)
