"""What is kept of a picture's objects beside a teacher's features: edges, weight maps, chosen boxes and masks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from penstock.geometry.boxes import xywh_to_xyxy
from penstock.geometry.masks import resize_mask
from penstock.geometry.opencv import cv2
from penstock.refining.proposals import tight
from penstock.schema import Field, Record

Strategy = Literal["largest", "all", "geometry-colour"]
STRATEGIES = get_args(Strategy)

OBJECT_BOXES = Field(
    name="object_boxes", dtype="int32", shape=(None, 4), axes="N 4", kind="boxes",
    meaning="tight box of each mask, XYWH in pixels of the picture, right = x + w exclusive",
)  # fmt: skip
OBJECT_BITS = Field(
    name="object_bits", dtype="uint8", shape=(None,), axes="N",
    meaning="the masks inside their boxes, eight pixels to a byte, each from a byte of its own",
)  # fmt: skip
MIN_SHARE, MAX_SHARE, FULL_SHARE = 0.001, 0.9, 0.05
"""Of the picture: geometry-colour takes no object outside of the first two; from the third on its size counts in full."""
_LOOKED_AT = 64
"""The largest so many objects are looked at by geometry-colour."""
_RING = 0.15
"""Width of the ring around an object, as a share of the square root of its area."""
_PIXELS = 256
"""Colours of an object are measured on so many rows and columns, at most."""
_CONTRAST = 40.0
"""Distance in Lab from which colours inside and around count as wholly different."""


@dataclass(frozen=True, kw_only=True)
class ObjectMasks:
    """The masks of one picture, each kept inside its tight box. They may overlap; none is empty."""

    size_hw: tuple[int, int]
    boxes_xywh: np.ndarray
    """(N, 4) int32, tight, in pixels of the picture."""
    crops: tuple[np.ndarray, ...]
    """N of (h, w) uint8, 0 or 1."""

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def areas(self) -> np.ndarray:
        """(N,) int64: pixels of each mask."""
        return np.array([np.count_nonzero(crop) for crop in self.crops], np.int64)

    @classmethod
    def of(cls, size_hw: tuple[int, int], pieces: Iterable[tuple[tuple[int, int], np.ndarray]]) -> "ObjectMasks":
        """From pieces of masks, each as (x, y) of its corner in the picture and (h, w) of 0 and 1; empty ones are left out."""
        found = [tight(corner, piece != 0) for corner, piece in pieces]
        kept = [(box, crop.view(np.uint8)) for box, crop in found if crop.size]
        boxes = np.array([box for box, _ in kept], np.int32).reshape(-1, 4)
        return cls(size_hw=size_hw, boxes_xywh=boxes, crops=tuple(crop for _, crop in kept))

    def to_record(self) -> Record:
        """`OBJECT_BOXES` and `OBJECT_BITS`: a sixtieth of the bytes of the whole masks, and less."""
        packed = [np.packbits(crop) for crop in self.crops]
        return {
            "object_boxes": self.boxes_xywh,
            "object_bits": np.concatenate(packed) if packed else np.zeros(0, np.uint8),
        }

    @classmethod
    def from_record(cls, size_hw: tuple[int, int], record: Mapping[str, object]) -> "ObjectMasks":
        """The inverse of `to_record`."""
        boxes, bits = np.asarray(record["object_boxes"]), np.asarray(record["object_bits"])
        crops, start = [], 0
        for _, _, width, height in boxes.tolist():
            stop = start + (width * height + 7) // 8
            crops.append(np.unpackbits(bits[start:stop], count=width * height).reshape(height, width))
            start = stop
        return cls(size_hw=size_hw, boxes_xywh=boxes, crops=tuple(crops))

    def whole(self, number: int) -> np.ndarray:
        """(H, W) uint8, 0 or 1: one mask over the whole picture."""
        mask = np.zeros(self.size_hw, np.uint8)
        x, y, width, height = self.boxes_xywh[number].tolist()
        mask[y : y + height, x : x + width] = self.crops[number]
        return mask


def outlines(masks: ObjectMasks) -> np.ndarray:
    """(H, W) uint8, 0 or 1: the morphological gradient, 3 x 3, of each mask, all of them together.

    A pixel is set where some mask changes within the eight pixels around it. Where the mask ends at the picture's border
    nothing changes: what is beyond does not count.
    """
    found = np.zeros(masks.size_hw, np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    for number, crop in enumerate(masks.crops):
        rows, columns, padded = _widened(masks, number, crop, 1)
        line: np.ndarray = cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, kernel)
        found[rows, columns] |= line
    return found


def union(masks: ObjectMasks) -> np.ndarray:
    """(H, W) uint8, 0 or 1: pixels that some mask covers."""
    found = np.zeros(masks.size_hw, np.uint8)
    for (x, y, width, height), crop in zip(masks.boxes_xywh.tolist(), masks.crops, strict=True):
        found[y : y + height, x : x + width] |= crop
    return found


def edge_map(lines: np.ndarray, side: int) -> np.ndarray:
    """(side, side) uint8, 0 or 1: 1 where a line touches the cell, however little (OpenCV's INTER_AREA above 0).

    Args:
        lines: (H, W), 0 or 1, as `outlines` gives them; as float32 nothing is converted.
        side: of the map, in cells; it covers the whole picture, stretched.
    """
    touched: np.ndarray = (
        cv2.resize(lines.astype(np.float32, copy=False), (side, side), interpolation=cv2.INTER_AREA) > 0
    )
    return touched.astype(np.uint8)


def weight_maps(covered: np.ndarray, sides: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Loss weights of objects and of the rest, for several sizes.

    A cell is of an object where more than half of its pixels are: torch's adaptive average pooling above 0.5, in whole
    numbers; cells of n reach from floor(i H / n) to ceil((i + 1) H / n).

    Args:
        covered: (H, W) uint8, 0 or 1, as `union` gives it.
        sides: of the maps, in cells; they cover the whole picture, stretched.

    Returns:
        side -> foreground and background, (side, side) float32 each. Each is 1 / count where it is set, and so sums to 1;
        where it is set nowhere it is all 0.
    """
    sums = cv2.integral(covered)
    maps = {}
    for side in sides:
        (top, bottom), (left, right) = (_cells(length, side) for length in covered.shape)
        counted = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
        inside = 2 * counted > (bottom - top)[:, None] * (right - left)
        maps[side] = _normed(inside), _normed(~inside)
    return maps


def chosen(masks: ObjectMasks, picture: np.ndarray, strategy: Strategy, most: int | None = None) -> np.ndarray:
    """Which objects have a box and a mask, the best first.

    "largest": by area. "all": in the order of the source. "geometry-colour": by `scores`, above 0 only; a rule of
    penstock's own, since the module of that name is missing from the original.

    Args:
        masks: of the picture.
        picture: (H, W, 3) uint8 RGB.
        strategy: one of `STRATEGIES`.
        most: objects, at most; None: one, but with "all" as many as there are.

    Returns:
        (K,) int64 numbers of masks; none where there is no object, or none that fits.
    """
    if strategy == "all":
        return np.arange(len(masks))[:most]
    values = masks.areas.astype(np.float64) if strategy == "largest" else scores(masks, picture)
    order = np.argsort(-values, kind="stable")
    return order[values[order] > 0][: most or 1]


def scores(masks: ObjectMasks, picture: np.ndarray) -> np.ndarray:
    """How good an object each mask is to learn from: (N,) float64, 0..5; 0: none.

    The sum of five numbers of 0..1: size (the square root of its share of the picture over 5 %, at most 1), centrality (1
    less the distance of its centre of mass from the picture's, in units of half the diagonal), fill (its share of its box),
    wholeness (1 less a half for each side of the picture that its box touches, at least 0) and contrast (the distance of the
    mean colours inside and in a ring around it, in Lab, over 40, at most 1). Objects below 0.1 % or above 90 % of the picture
    have 0, as do all but the 64 largest.
    """
    found, areas = np.zeros(len(masks)), masks.areas
    height, width = masks.size_hw
    shares = areas / (height * width)
    for number in np.argsort(-areas, kind="stable")[:_LOOKED_AT].tolist():
        if not MIN_SHARE <= shares[number] <= MAX_SHARE:
            continue
        left, top, w, h = masks.boxes_xywh[number].tolist()
        x, y = _centre(masks, number)
        away = np.hypot(x / width - 0.5, y / height - 0.5) / np.hypot(0.5, 0.5)
        touched = (left == 0) + (top == 0) + (left + w == width) + (top + h == height)
        parts = (
            min(1.0, float(np.sqrt(shares[number] / FULL_SHARE))), 1 - float(away), areas[number] / (w * h),
            max(0.0, 1 - touched / 2), _contrast(masks, number, picture),
        )  # fmt: skip
        found[number] = sum(parts)
    return found


def boxes_xyxy(masks: ObjectMasks, numbers: np.ndarray) -> np.ndarray:
    """(K, 4) float32 XYXY in pixels of the picture: the tight boxes of these masks."""
    return xywh_to_xyxy(masks.boxes_xywh[numbers]).astype(np.float32)


def small_masks(masks: ObjectMasks, numbers: np.ndarray, side: int) -> np.ndarray:
    """(K, side, side) uint8, 0 or 1: these masks over the stretched picture, as `resize_mask` makes them."""
    found = [resize_mask(masks.whole(number), (side, side)) for number in numbers.tolist()]
    return np.stack(found) if found else np.zeros((0, side, side), np.uint8)


def _widened(masks: ObjectMasks, number: int, crop: np.ndarray, by: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of a mask's box, wider by some pixels on each side as far as the picture goes, and the mask there."""
    x, y, width, height = masks.boxes_xywh[number].tolist()
    above, left = min(by, y), min(by, x)
    below, right = min(by, masks.size_hw[0] - y - height), min(by, masks.size_hw[1] - x - width)
    rows, columns = slice(y - above, y + height + below), slice(x - left, x + width + right)
    return rows, columns, np.pad(crop, ((above, below), (left, right)))


def _cells(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel of each cell along an axis, and the one after its last."""
    numbers = np.arange(side)
    return numbers * length // side, -(-(numbers + 1) * length // side)


def _normed(inside: np.ndarray) -> np.ndarray:
    normed: np.ndarray = inside.astype(np.float32) / max(1, int(np.count_nonzero(inside)))
    return normed


def _centre(masks: ObjectMasks, number: int) -> tuple[float, float]:
    """x, y of a mask's centre of mass, in pixels of the picture."""
    crop = masks.crops[number]
    x, y = masks.boxes_xywh[number, :2].tolist()
    rows, columns = crop.sum(1, dtype=np.int64), crop.sum(0, dtype=np.int64)
    across, down = ((np.arange(len(line)) + 0.5) @ line / line.sum() for line in (columns, rows))
    return x + float(across), y + float(down)


def _contrast(masks: ObjectMasks, number: int, picture: np.ndarray) -> float:
    """0..1; 0 where there is nothing around the mask. Of a large object some rows and columns are looked at."""
    crop = masks.crops[number]
    width = max(2, round(_RING * float(np.sqrt(np.count_nonzero(crop)))))
    rows, columns, inside = _widened(masks, number, crop, width)
    step = -(-max(inside.shape) // _PIXELS)
    inside = np.ascontiguousarray(inside[::step, ::step])
    side = 2 * -(-width // step) + 1
    ring = cv2.dilate(inside, np.ones((side, side), np.uint8)) - inside
    if not ring.any() or not inside.any():
        return 0.0
    region = np.ascontiguousarray(picture[rows, columns][::step, ::step])
    means = np.array([cv2.mean(region, where)[:3] for where in (inside, ring)], np.float32) / 255
    lab = cv2.cvtColor(means[None], cv2.COLOR_RGB2Lab)[0]
    return min(1.0, float(np.linalg.norm(lab[0] - lab[1])) / _CONTRAST)
