"""The fields of a SA-1B feature NPZ, checked one by one: accepted is what the format states, nothing is guessed."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from penstock.errors import BadData
from penstock.geometry.boxes import xywh_to_xyxy
from penstock.geometry.masks import resize_mask
from penstock.schema import Field

FEATURES = re.compile(r"P\d+_S\d+")
EDGES = re.compile(r"edge_(\d+)x\1")
MAPS = re.compile(r"(fg|bg)_map_(\d+)x\2")
ALIASES = {"P4_S16": "IMAGE_EMB_S16"}
"""Field -> the name that some extractors give it."""

DERIVED_FROM = {"fg_map_128x128": "fg_map_64x64", "bg_map_128x128": "bg_map_64x64"}
"""Maps that v5 extractors leave out, and the map that they are derived from."""

MAX_OBJECTS = 10_000

Arrays = Mapping[str, np.ndarray]


def npz_name(name: str, present: Collection[str]) -> str:
    """The NPZ's name of a field: its alias where only that is there."""
    alias = ALIASES.get(name, name)
    return alias if name not in present and alias in present else name


def wanted_names(names: Collection[str]) -> set[str]:
    """Every NPZ name that may be needed for these fields."""
    wanted = {*names, "image_shape"}
    if "masks" in names:
        wanted.add("bboxes")
    wanted |= {ALIASES[name] for name in names if name in ALIASES}
    return wanted | {DERIVED_FROM[name] for name in names if name in DERIVED_FROM}


def features(arrays: Arrays, field: Field) -> np.ndarray:
    """(C, h, w) floats of the field's type, from (1, C, h, w) or (C, h, w).

    Raises:
        BadData: absent, of another shape, no floats, or not finite (float16 included: what exceeds its range).
    """
    array = _required(arrays, field.name)
    squeezed = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    if squeezed.shape != field.shape or array.dtype.kind != "f":
        found = f"{array.shape} {array.dtype}"
        raise BadData(f"{field.name}: expected floats of shape {field.shape} or (1, ...), got {found}")
    with np.errstate(over="ignore"):
        values = squeezed.astype(field.numpy_dtype, copy=False)
    _finite(values, field.name, f"finite numbers that fit {field.dtype}")
    return values


def edges(arrays: Arrays, field: Field) -> np.ndarray:
    """(n, n) uint8 of 0 and 1.

    Raises:
        BadData: absent, of another shape, or with other values.
    """
    array = _square(arrays, field)
    if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        raise BadData(f"{field.name}: expected 0 and 1 only, got {array.dtype} from {array.min()} to {array.max()}")
    return array.astype(np.uint8)


def weight_map(arrays: Arrays, field: Field) -> np.ndarray:
    """(n, n) float32 weights; the 128x128 ones are derived where they are absent (see `DERIVED_FROM`).

    Every cell of the 64x64 map becomes four cells with a quarter of its weight, so that the sum stays.

    Raises:
        BadData: absent and not derivable, of another shape, no floats, or not finite.
    """
    source = DERIVED_FROM.get(field.name)
    if field.name not in arrays and source is not None and source in arrays:
        half = Field(name=source, dtype=field.dtype, shape=tuple(n // 2 for n in field.shape if n is not None))
        return weight_map(arrays, half).repeat(2, axis=0).repeat(2, axis=1) / np.float32(4)
    array = _square(arrays, field)
    if array.dtype.kind != "f":
        raise BadData(f"{field.name}: expected floats, got {array.dtype}")
    _finite(array, field.name, "finite numbers")
    return array.astype(np.float32, copy=False)


def boxes_xyxy(arrays: Arrays) -> np.ndarray:
    """(N, 4) float32 XYXY in original-image pixels, from XYWH. No field, or an empty one, is N = 0.

    Raises:
        BadData: a shape other than (N, 4) or (0,), values that are not finite, or a width or height not above 0.
    """
    boxes = arrays.get("bboxes")
    if boxes is None or boxes.shape == (0,):
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf" or len(boxes) > MAX_OBJECTS:
        raise BadData(f"bboxes: expected numbers of shape (N, 4), XYWH, got {boxes.shape} {boxes.dtype}")
    _finite(boxes, "bboxes", "finite numbers")
    flat = np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1))
    if len(flat):
        raise BadData(f"bboxes: expected width and height above 0, got {boxes[flat[0]].tolist()} at box {flat[0]}")
    return xywh_to_xyxy(boxes.astype(np.float64)).astype(np.float32)


def object_masks(arrays: Arrays, num_boxes: int, *, size: int, keep: int | None = None) -> np.ndarray:
    """(K, size, size) uint8 0/1: one mask per box, area-averaged; K is N, or at most `keep`.

    Args:
        arrays: the NPZ's fields; `masks` is (N, H, W), or (H, W) for one box. Masks cover the whole picture, whatever
            their resolution.
        num_boxes: N.
        size: side of the masks wanted.
        keep: how many of them are wanted.

    Raises:
        BadData: fewer or more masks than boxes, values other than 0 and 1 (or 0 and 255), or an empty mask.
    """
    masks = arrays.get("masks", np.zeros((0, 1, 1), np.uint8))
    if masks.ndim == 2:
        masks = masks[None]
    if num_boxes == 0 and not masks.any():
        return np.zeros((0, size, size), np.uint8)
    if masks.ndim != 3 or len(masks) != num_boxes:
        found = f"masks of shape {masks.shape}" if "masks" in arrays else "no masks"
        raise BadData(f"masks: expected one of (H, W) for each of {num_boxes} boxes, got {found}")
    wanted = masks[:keep]
    return np.stack([_small_mask(mask, size, number) for number, mask in enumerate(wanted)])


def image_shape(arrays: Arrays) -> np.ndarray | None:
    """(3,) int32 height, width, channels of the original picture; None where the NPZ does not state it.

    Raises:
        BadData: not three positive integers.
    """
    shape = arrays.get("image_shape")
    if shape is None:
        return None
    if shape.shape != (3,) or shape.dtype.kind not in "iu" or shape.min() <= 0 or shape.max() >= 1 << 31:
        raise BadData(f"image_shape: expected three positive integers [H, W, C], got {shape.tolist()} {shape.dtype}")
    return shape.astype(np.int32)


def _required(arrays: Arrays, name: str) -> np.ndarray:
    found = npz_name(name, arrays)
    if found not in arrays:
        alias = f" (or {ALIASES[name]})" if name in ALIASES else ""
        remedy = ""
        if name in DERIVED_FROM:
            remedy = "; this NPZ lacks maps that the first one had: convert its TARs into an output of their own"
        raise BadData(f"{name}: expected the field{alias} in the NPZ, got none{remedy}")
    return arrays[found]


def _square(arrays: Arrays, field: Field) -> np.ndarray:
    array = _required(arrays, field.name)
    if array.shape != field.shape:
        raise BadData(f"{field.name}: expected shape {field.shape}, got {array.shape}")
    return array


def _finite(array: np.ndarray, name: str, expected: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        where = np.unravel_index(int(np.argmin(finite)), array.shape)
        place = tuple(int(index) for index in where)
        raise BadData(f"{name}: expected {expected}, got {array[where]} at {place} ({(~finite).sum()} in all)")


def _small_mask(mask: np.ndarray, size: int, number: int) -> np.ndarray:
    if mask.dtype.kind not in "biuf" or not mask.size:
        raise BadData(f"masks: expected numbers, got {mask.dtype} of shape {mask.shape} for mask {number}")
    low, high = mask.min(), mask.max()
    if high == 0 and low == 0:
        raise BadData(f"masks: expected a mask that is not empty for box {number}, got zeros only")
    if high == 255 and low == 0 and ((mask == 0) | (mask == 255)).all():
        mask = mask == 255
    elif not (low >= 0 and high <= 1):
        raise BadData(f"masks: expected 0 and 1 (or 0 and 255), got {low} to {high} in mask {number}")
    return resize_mask(mask, (size, size))
