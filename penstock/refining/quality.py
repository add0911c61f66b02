"""How good an id map is beside the truth: IoU, Boundary IoU, PQ, harm, invalid pixels, ids that flip between frames.

In all of it an id of 0 or below is no object. In the truth such pixels are void, nobody knows what they are: by default
they count for nobody ("excluded"); where the truth labels everything of interest, they count against an object that
takes them ("counted").
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from penstock.errors import BadData
from penstock.refining.labels import parse
from penstock.refining.types import Objects

Void = Literal["excluded", "counted"]

BOUNDARY_SHARE = 0.02
"""Width of the band of Boundary IoU, of the diagonal (Cheng and others 2021)."""

HARM = 0.01
"""An object is harmed if its IoU falls by more than this."""


@dataclass(frozen=True, kw_only=True)
class Panoptic:
    """Segments matched to those of the truth, whatever their ids; sums over any number of frames."""

    true: int = 0
    """Pairs with an IoU above 0.5."""
    extra: int = 0
    """Segments without a partner that do not lie mostly in void."""
    missed: int = 0
    """Segments of the truth without a partner."""
    iou_sum: float = 0.0
    """Of the pairs."""

    def __add__(self, other: "Panoptic") -> "Panoptic":
        return Panoptic(
            true=self.true + other.true,
            extra=self.extra + other.extra,
            missed=self.missed + other.missed,
            iou_sum=self.iou_sum + other.iou_sum,
        )

    @property
    def quality(self) -> float:
        """PQ, 0..1; 1 where there is nothing to find and nothing was found."""
        half = self.true + 0.5 * (self.extra + self.missed)
        return self.iou_sum / half if half else 1.0


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """One frame beside its truth."""

    ids: np.ndarray
    """(K,) int64, those of the truth, rising."""
    ious: np.ndarray
    """(K,) float64 0..1."""
    boundary_ious: np.ndarray
    """(K,) float64 0..1."""
    harmed: int
    """Objects whose IoU is more than `HARM` below that of the coarse map."""
    panoptic: Panoptic
    invalid: int
    """Pixels without a valid id."""
    pixels: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Many frames; every object of every frame weighs the same."""

    objects: int
    mean_iou: float
    boundary_iou: float
    pq: float
    harm_rate: float
    """Share of objects that were harmed."""
    invalid_ratio: float


def object_ious(ids: np.ndarray, truth: np.ndarray, *, void: Void = "excluded") -> tuple[np.ndarray, np.ndarray]:
    """IoU of each object of the truth with the object of the same id.

    Args:
        ids: (H, W) integers.
        truth: (H, W) integers.
        void: whether pixels that are void in the truth count.

    Returns:
        (K,) int64 ids of the truth, rising; (K,) float64 IoU 0..1, 0 for an id that the map has not.

    Raises:
        BadData: no id maps, or of different sizes.
    """
    found, true = _parsed(ids, truth)
    return true.ids, _ious(found, true, void)


def mean_iou(ids: np.ndarray, truth: np.ndarray, *, void: Void = "excluded") -> float:
    """The mean of `object_ious`; 1 for a truth without objects. Arguments and errors are those of `object_ious`."""
    return _mean(object_ious(ids, truth, void=void)[1])


def boundary_ious(
    ids: np.ndarray, truth: np.ndarray, *, pixels: int | None = None, void: Void = "excluded"
) -> tuple[np.ndarray, np.ndarray]:
    """Boundary IoU of each object of the truth: IoU of the bands along the inside of both outlines.

    A band is what eroding the mask `pixels` times by a square of 3 takes away; beyond the picture nothing is set.

    Args:
        ids: (H, W) integers.
        truth: (H, W) integers.
        pixels: width of the band; None is `BOUNDARY_SHARE` of the diagonal, at least 1.
        void: whether pixels that are void in the truth count.

    Returns:
        (K,) int64 ids of the truth, rising; (K,) float64 0..1.

    Raises:
        BadData: no id maps, or of different sizes.
        MissingExtra: OpenCV is missing.
    """
    found, true = _parsed(ids, truth)
    return true.ids, _boundary_ious(found, true, pixels, void)


def panoptic_quality(ids: np.ndarray, truth: np.ndarray) -> Panoptic:
    """Segments matched by panopticapi's rule, all of one category, none a crowd; add up those of several frames.

    Two segments are a pair if their IoU is above 0.5, reckoned without the pixels that are void in the truth. A segment
    that lies in void by more than half is neither right nor wrong.

    Args:
        ids: (H, W) integers.
        truth: (H, W) integers.

    Returns:
        The counts.

    Raises:
        BadData: no id maps, or of different sizes.
    """
    found, true = _parsed(ids, truth)
    return _panoptic(found, true)


def invalid_ratio(ids: np.ndarray) -> float:
    """Share of the pixels of an (H, W) map of integers whose id is 0 or below.

    Raises:
        BadData: no id map.
    """
    return float((parse(ids).labels == 0).mean())


def id_flips(ids: tuple[np.ndarray, np.ndarray], truth: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    """Objects that change their id from one frame to another.

    The id of a true object in a frame is the one that most of its labelled pixels have, of equals the lowest.

    Args:
        ids: two maps, (H, W) integers.
        truth: their truth, the same object having the same id in both.

    Returns:
        Objects whose id differs; objects that are in both frames of the truth and have an id in both maps.

    Raises:
        BadData: no id maps, or of sizes that differ from their truth's.
    """
    first, second = (dict(_majorities(*_parsed(*pair))) for pair in zip(ids, truth, strict=True))
    both = first.keys() & second.keys()
    return sum(first[number] != second[number] for number in both), len(both)


def score_frame(
    ids: np.ndarray, truth: np.ndarray, coarse: np.ndarray | None = None, *, void: Void = "excluded"
) -> FrameScore:
    """All figures of a frame.

    Args:
        ids: (H, W) integers.
        truth: (H, W) integers.
        coarse: (H, W) integers: the map before it was refined; None counts no harm.
        void: whether pixels that are void in the truth count.

    Returns:
        The figures; `total` sums those of many frames up.

    Raises:
        BadData: no id maps, or of different sizes.
        MissingExtra: OpenCV is missing.
    """
    found, true = _parsed(ids, truth)
    ious = _ious(found, true, void)
    before = ious if coarse is None else object_ious(coarse, truth, void=void)[1]
    return FrameScore(
        ids=true.ids,
        ious=ious,
        boundary_ious=_boundary_ious(found, true, None, void),
        harmed=int((ious < before - HARM).sum()),
        panoptic=_panoptic(found, true),
        invalid=found.labels.size - int(found.areas.sum()),
        pixels=found.labels.size,
    )


def total(frames: Iterable[FrameScore]) -> Score:
    """The figures of many frames.

    Raises:
        BadData: no frame.
    """
    scores = list(frames)
    if not scores:
        raise BadData("scores: expected at least one frame, got none")
    objects = sum(len(score.ids) for score in scores)
    return Score(
        objects=objects,
        mean_iou=_mean(np.concatenate([score.ious for score in scores])),
        boundary_iou=_mean(np.concatenate([score.boundary_ious for score in scores])),
        pq=sum((score.panoptic for score in scores), Panoptic()).quality,
        harm_rate=sum(score.harmed for score in scores) / max(1, objects),
        invalid_ratio=sum(score.invalid for score in scores) / sum(score.pixels for score in scores),
    )


def _parsed(ids: np.ndarray, truth: np.ndarray) -> tuple[Objects, Objects]:
    if ids.shape != truth.shape:
        raise BadData(f"id maps: expected one size, got {ids.shape} beside a truth of {truth.shape}")
    return parse(ids), parse(truth)


def _table(found: Objects, true: Objects) -> np.ndarray:
    """(F + 1, K + 1) int64: pixels by both labels, 0 where there is none."""
    columns = len(true) + 1
    cells = found.labels.astype(np.int64)
    cells *= columns
    cells += true.labels
    return np.bincount(cells.ravel(), minlength=(len(found) + 1) * columns).reshape(-1, columns)


def _partners(found: Objects, true: Objects) -> np.ndarray:
    """(K,) int64: number in `found` of each true id; 0 for none."""
    places = np.searchsorted(found.ids, true.ids)
    known = places < len(found)
    known[known] = found.ids[places[known]] == true.ids[known]
    return np.where(known, places + 1, 0)


def _ious(found: Objects, true: Objects, void: Void) -> np.ndarray:
    table = _table(found, true)
    partners = _partners(found, true)
    shared = table[partners, np.arange(1, len(true) + 1)]
    sizes = table.sum(1) - (table[:, 0] if void == "excluded" else 0)
    union = true.areas + sizes[partners] - shared
    return np.where(partners > 0, shared / np.maximum(union, 1), 0.0)


def _boundary_ious(found: Objects, true: Objects, pixels: int | None, void: Void) -> np.ndarray:
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*true.size_hw)))) if pixels is None else pixels
    counted = true.labels > 0 if void == "excluded" else np.ones(true.size_hw, np.bool_)
    ious = np.zeros(len(true))
    for place, partner in enumerate(_partners(found, true).tolist()):
        if partner:
            box = _union_box(true.boxes[place], found.boxes[partner - 1])
            bands = [_band(one.labels[box] == n, width) for one, n in ((true, place + 1), (found, partner))]
            both, either = bands[0] & bands[1] & counted[box], (bands[0] | bands[1]) & counted[box]
            ious[place] = int(np.count_nonzero(both)) / max(1, int(np.count_nonzero(either)))
    return ious


def _union_box(one: np.ndarray, other: np.ndarray) -> tuple[slice, slice]:
    left, top = np.minimum(one[:2], other[:2]).tolist()
    right, bottom = np.maximum(one[:2] + one[2:], other[:2] + other[2:]).tolist()
    return slice(top, bottom), slice(left, right)


def _band(mask: np.ndarray, width: int) -> np.ndarray:
    """What erosion takes from an (h, w) bool mask beyond whose sides nothing is set."""
    from penstock.geometry.opencv import cv2

    inside = mask.view(np.uint8)
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    core = cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    band: np.ndarray = inside > core
    return band


def _panoptic(found: Objects, true: Objects) -> Panoptic:
    table = _table(found, true)
    areas, in_void = table[1:].sum(1), table[1:, 0]
    shared = table[1:, 1:]
    ious = shared / np.maximum(areas[:, None] + true.areas[None] - shared - in_void[:, None], 1)
    pairs = ious > 0.5
    alone = ~pairs.any(1) & (in_void <= 0.5 * areas)
    matched = int(pairs.sum())
    return Panoptic(true=matched, extra=int(alone.sum()), missed=len(true) - matched, iou_sum=float(ious[pairs].sum()))


def _majorities(found: Objects, true: Objects) -> Iterator[tuple[int, int]]:
    """Pairs of a true id and the id that it has in the map."""
    table = _table(found, true)[1:, 1:]
    if len(found):
        for place, (row, pixels) in enumerate(zip(table.argmax(0).tolist(), table.max(0).tolist(), strict=True)):
            if pixels:
                yield int(true.ids[place]), int(found.ids[row])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 1.0
