"""What boxes, masks and picture sizes say about each other: the box convention, and whether masks are there and fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from penstock.geometry.boxes import xywh_to_xyxy

Convention = Literal["xyxy", "xywh", ""]

EDGE_PX = 1.0
"""How far a box may reach out of its picture."""
AGREE, DISAGREE = 0.5, 0.1
"""Intersection over union of a box with its mask's tight box: at least / below."""

_NAMES: tuple[Literal["xyxy", "xywh"], ...] = ("xyxy", "xywh")

Owned = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Field -> its values, first dimension n, and the row of each, ascending."""


Line = tuple[str, str, str, int, int]

MAX_INT = np.iinfo(np.int64).max


@dataclass
class BoxEvidence:
    """Counts over all boxes of a store; rows are those of the store, -1 for none."""

    boxes: int = 0
    measured: int = 0
    """Boxes whose picture's size is known."""
    fits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_NAMES, 0))
    """Boxes that, read this way, are ordered and lie inside their picture."""
    agrees: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_NAMES, 0))
    """Boxes that, read this way, agree with their mask."""
    unordered: int = 0
    """Boxes that, read as XYXY, have no positive width and height."""
    outside: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_NAMES, 0))
    disagrees: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_NAMES, 0))
    masks: int = 0
    """Boxes that have a mask field."""
    empty: int = 0
    """Of those, boxes whose mask is all zero."""
    compared: int = 0
    """Of those, boxes whose mask and picture size are known."""
    first: dict[str, int] = field(default_factory=dict)
    """The first row that a count of something wrong met."""

    def add(self, together: Owned, first_row: int) -> None:
        """Counts the boxes of a chunk of rows; `first_row` is added to their row numbers."""
        if "bboxes" not in together:
            return
        boxes, rows = _objects(together, "bboxes")
        sizes_hw = _sizes(together, rows)
        known = sizes_hw.min(axis=1, initial=MAX_INT) > 0
        readings = {"xyxy": boxes, "xywh": xywh_to_xyxy(boxes)}
        self.boxes += len(boxes)
        self.measured += int(known.sum())
        flat = ~ordered(boxes)
        self.unordered += self._note("unordered", flat, rows + first_row)
        for name in _NAMES:
            beyond = ~inside(readings[name], sizes_hw) & known
            self.outside[name] += self._note(f"outside-{name}", beyond, rows + first_row)
            self.fits[name] += int((ordered(readings[name]) & ~beyond & known).sum())
        if "masks" in together:
            self._add_masks(together, readings, sizes_hw, (rows, first_row))

    def _add_masks(
        self, together: Owned, readings: Mapping[str, np.ndarray], sizes_hw: np.ndarray, owners: tuple[np.ndarray, int]
    ) -> None:
        masks, mask_rows = _objects(together, "masks")
        if not np.array_equal(mask_rows, owners[0]):
            return  # another count of masks than of boxes is a fault of its own
        rows = mask_rows + owners[1]
        tight, has_any = tight_boxes(masks)
        self.masks += len(masks)
        self.empty += self._note("empty", ~has_any, rows)
        use = has_any & (sizes_hw.min(axis=1, initial=MAX_INT) > 0)
        self.compared += int(use.sum())
        scale = sizes_hw[:, [1, 0, 1, 0]] / np.array([masks.shape[2], masks.shape[1]] * 2, np.float64)
        for name in _NAMES:
            overlap = iou(readings[name], tight * scale)
            self.agrees[name] += int((use & (overlap >= AGREE)).sum())
            self.disagrees[name] += self._note(f"disagrees-{name}", use & (overlap < DISAGREE), rows)

    def _note(self, what: str, which: np.ndarray, rows: np.ndarray) -> int:
        if which.any():
            self.first.setdefault(what, int(rows[which][0]))
        return int(which.sum())

    def contradicts(self, convention: Convention) -> str:
        """Why the boxes are probably of the other convention than this one; empty where nothing says so.

        Two witnesses: a box read the wrong way is often unordered or reaches out of its picture, and seldom agrees
        with its mask. The masks decide where most of them are there, for they tell apart what the first cannot.
        """
        if not convention or not self.boxes:
            return ""
        other = "xywh" if convention == "xyxy" else "xyxy"
        if 2 * self.compared > self.boxes:
            if self.agrees[other] > 2 * self.agrees[convention]:
                counts = f"{self.agrees[convention]:,} of {self.compared:,} boxes agree with their masks"
                return f"read as {convention.upper()} {counts}, as {other.upper()} {self.agrees[other]:,}"
            return ""
        misfits = self.measured - self.fits[convention]
        if misfits * 20 >= self.measured > 0 and self.fits[other] > self.fits[convention]:
            inside_now = f"{self.fits[convention]:,} of {self.measured:,} boxes are ordered and inside their pictures"
            return f"read as {convention.upper()} {inside_now}, as {other.upper()} {self.fits[other]:,}"
        return ""

    def findings(self, marker: str) -> tuple[list[Line], list[Line]]:
        """Faults and suspicions, each (code, where, message, rows, first row).

        Args:
            marker: how the store says that its boxes are to be read: "xyxy", "xywh", or "" where it does not.
        """
        faults: list[Line] = []
        doubts: list[Line] = []
        if marker == "xyxy" and self.unordered:
            text = f"bboxes: {self.unordered:,} of {self.boxes:,} boxes marked XYXY have right <= left or bottom <= top"
            faults.append(("box-order", "bboxes", text, self.unordered, self.first["unordered"]))
        if marker == "xyxy" and self.outside["xyxy"]:
            text = f"bboxes: {self.outside['xyxy']:,} of {self.measured:,} boxes reach out of their pictures"
            faults.append(("box-outside", "bboxes", text, self.outside["xyxy"], self.first["outside-xyxy"]))
        convention: Convention = "xyxy" if marker == "xyxy" else "xywh" if marker == "xywh" else ""
        doubt = self.contradicts(convention)
        if doubt:
            text = f"bboxes: marked {convention.upper()} (no marker: XYWH), but {doubt}: probably the other convention"
            misfits = self.measured - self.fits[convention]
            first = self.first.get("unordered" if convention == "xyxy" else "outside-xywh", -1)
            doubts.append(("box-convention", "bboxes", text, misfits, first))
        if self.empty:
            share = f"{self.empty:,} of {self.masks:,} boxes ({self.empty / self.masks:.0%}) have an all-zero mask"
            text = f"masks: {share}; penstock repair --tar-path rebuilds masks from the TARs"
            doubts.append(("empty-mask", "masks", text, self.empty, self.first["empty"]))
        if convention and 2 * self.disagrees[convention] > self.compared > 0:
            count = self.disagrees[convention]
            text = f"masks: {count:,} of {self.compared:,} masks lie elsewhere than their boxes (IoU below {DISAGREE})"
            doubts.append(("mask-box", "masks", text, count, self.first[f"disagrees-{convention}"]))
        return faults, doubts


def ordered(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(n,) bool: which of (n, 4) XYXY boxes have a positive width and height; NaN is not."""
    return np.asarray((boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1))


def inside(boxes_xyxy: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """(n,) bool: which of (n, 4) XYXY boxes lie in pictures of (n, 2) height and width, but for `EDGE_PX`."""
    low = (boxes_xyxy[:, :2] >= -EDGE_PX).all(axis=1)
    high = (boxes_xyxy[:, 2:] <= sizes_hw[:, ::-1] + EDGE_PX).all(axis=1)
    return np.asarray(low & high)


def tight_boxes(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest boxes around what is not zero.

    Args:
        masks: (n, H, W) numbers.

    Returns:
        (n, 4) float64 XYXY in cells of the masks, right and bottom exclusive, and (n,) bool: which masks have any.
    """
    by_row, by_column = (masks != 0).any(axis=2), (masks != 0).any(axis=1)
    sides = [by_column.argmax(axis=1), by_row.argmax(axis=1)]
    sides += [by.shape[1] - by[:, ::-1].argmax(axis=1) for by in (by_column, by_row)]
    return np.stack(sides, axis=1).astype(np.float64), by_row.any(axis=1)


def iou(left_xyxy: np.ndarray, right_xyxy: np.ndarray) -> np.ndarray:
    """(n,) float64: intersection over union of (n, 4) XYXY boxes with (n, 4) others; 0 for boxes that are none."""
    left, right = left_xyxy.astype(np.float64), right_xyxy.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sides = np.minimum(left[:, 2:], right[:, 2:]) - np.maximum(left[:, :2], right[:, :2])
        shared = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
        areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (left, right)]
        union = areas[0] + areas[1] - shared
        return np.where(union > 0, shared / union, 0.0)


def _objects(together: Owned, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, ...) the boxes or masks of rows that have one, and their rows. A fixed field keeps its first object."""
    values, rows = together[name]
    if values.ndim > {"bboxes": 2, "masks": 3}[name]:
        values = values[:, 0]
        if "has_bbox" in together:
            has, owners = together["has_bbox"]
            there = np.isin(rows, owners[has == 1])
            return values[there], rows[there]
    return values, rows


def _sizes(together: Owned, rows: np.ndarray) -> np.ndarray:
    """(n, 2) int64 height and width of the picture of each of these rows; zeros where it is unknown."""
    sizes = np.zeros((len(rows), 2), np.int64)
    if "image_shape" in together and len(rows):
        shapes, owners = together["image_shape"]
        places = np.minimum(np.searchsorted(owners, rows), max(0, len(owners) - 1))
        if len(owners):
            sizes = np.where((owners[places] == rows)[:, None], shapes[places, :2].clip(0), 0).astype(np.int64)
    return sizes
