"""Proposals of masks: made of full masks, chosen, cleaned as SAM does, and as bytes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from penstock.errors import BadData
from penstock.geometry.boxes import mask_box
from penstock.geometry.masks import MAX_MASK_PIXELS, binary_mask
from penstock.geometry.rle import decode_rle, encode_rle
from penstock.refining.types import Proposals

MAX_PIXELS = 1 << 31
"""Pixels of all boxes of a frame together: content that says more is refused before memory is taken."""

_FORMAT = "penstock-proposals-1"
_COLUMNS = ("boxes", "counts", "ids", "scores", "stability")


def from_masks(
    size_hw: tuple[int, int],
    masks: np.ndarray | Sequence[np.ndarray],
    *,
    scores: np.ndarray | None = None,
    stability: np.ndarray | None = None,
    ids: np.ndarray | None = None,
) -> Proposals:
    """Proposals from masks of the whole frame.

    Args:
        size_hw: height and width of the frame.
        masks: (N, H, W), or N of (H, W): bool, or numbers that are all 0 or 1.
        scores: (N,) predicted IoU; cut to 0..1, which models overstep a little. 1 where it is not given.
        stability: (N,) 0..1, cut likewise; 1 where it is not given.
        ids: (N,) ids that were prompted for; 0 where it is not given.

    Returns:
        The masks that have pixels, in their order: `len(masks) - len(proposals)` were empty.

    Raises:
        BadData: a mask of another size or that is not binary, or a column that is not N finite numbers.
    """
    found = np.zeros(len(masks), np.int64) if ids is None else np.asarray(ids, np.int64)
    if found.shape != (len(masks),):
        raise BadData(f"proposals: expected {len(masks)} ids, one per mask, got {found.shape}")
    kept, boxes, crops = [], [], []
    for number, mask in enumerate(masks):
        if mask.shape != tuple(size_hw):
            raise BadData(f"proposal {number}: expected a mask of the frame's {size_hw}, got {mask.shape}")
        whole = binary_mask(mask).view(np.bool_)
        box, crop = tight((0, 0), whole)
        if crop.size:
            kept.append(number)
            boxes.append(box)
            crops.append(crop)
    return Proposals(
        size_hw=(int(size_hw[0]), int(size_hw[1])),
        boxes=np.array(boxes, np.int32).reshape(-1, 4),
        masks=tuple(crops),
        scores=_column("scores", scores, len(masks))[kept],
        stability=_column("stability", stability, len(masks))[kept],
        ids=found[kept],
    )


def tight(corner_xy: tuple[int, int], crop: np.ndarray) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """A piece of a mask without its empty borders.

    Args:
        corner_xy: where the crop lies in the frame.
        crop: (h, w) bool.

    Returns:
        Tight box XYWH in the frame, and a (h', w') bool copy, contiguous; of no size where the crop is empty.
    """
    x, y, width, height = (int(side) for side in mask_box(crop))
    return (corner_xy[0] + x, corner_xy[1] + y, width, height), crop[y : y + height, x : x + width].copy()


def taken(proposals: Proposals, rows: np.ndarray) -> Proposals:
    """Those of the rows, in their order; `rows` are (M,) whole numbers 0..N - 1."""
    return replace(
        proposals,
        boxes=proposals.boxes[rows],
        masks=tuple(proposals.masks[row] for row in rows),
        scores=proposals.scores[rows],
        stability=proposals.stability[rows],
        ids=proposals.ids[rows],
    )


def joined(parts: Sequence[Proposals]) -> Proposals:
    """Proposals of one frame, one after the other. At least one part; all of one size."""
    return Proposals(
        size_hw=parts[0].size_hw,
        boxes=np.concatenate([part.boxes for part in parts]),
        masks=tuple(mask for part in parts for mask in part.masks),
        scores=np.concatenate([part.scores for part in parts]),
        stability=np.concatenate([part.stability for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
    )


def mask_areas(proposals: Proposals) -> np.ndarray:
    """(N,) int64: pixels of each mask."""
    return np.array([np.count_nonzero(mask) for mask in proposals.masks], np.int64)


def filtered(
    proposals: Proposals, *, min_score: float = 0.0, min_stability: float = 0.0, min_area: int = 0
) -> Proposals:
    """Those of at least this predicted IoU, this stability and so many pixels, in their order."""
    keeps = (proposals.scores >= min_score) & (proposals.stability >= min_stability)
    if min_area > 0:
        keeps &= mask_areas(proposals) >= min_area
    return taken(proposals, np.flatnonzero(keeps))


def box_nms(proposals: Proposals, threshold: float) -> Proposals:
    """Without those whose box overlaps that of a better one by an IoU above the threshold: torchvision's rule.

    Returns:
        The rest, best score first; of equal scores the one that came first.
    """
    left, top, width, height = proposals.boxes.astype(np.int64).T
    right, bottom, areas = left + width, top + height, width * height
    waiting = np.argsort(-proposals.scores, kind="stable")
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        across = np.minimum(right[best], right[waiting]) - np.maximum(left[best], left[waiting])
        down = np.minimum(bottom[best], bottom[waiting]) - np.maximum(top[best], top[waiting])
        shared = np.maximum(across, 0) * np.maximum(down, 0)
        waiting = waiting[shared / (areas[best] + areas[waiting] - shared) <= threshold]
    return taken(proposals, np.array(kept, np.int64))


def cleaned(proposals: Proposals, min_area: int) -> Proposals:
    """Holes and islands of fewer pixels removed, as SAM's `min_mask_region_area`: first holes, then islands; of a mask that
    is all small islands the largest stays. Corners connect. A gap between the mask and the picture's border is a hole.

    Boxes are tight again; scores and stability stay, and boxes that have come to overlap are left to `box_nms`.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    pieces = [
        _cleaned(tuple(box), mask, min_area, proposals.size_hw)
        for box, mask in zip(proposals.boxes.tolist(), proposals.masks, strict=True)
    ]
    boxes = np.array([box for box, _ in pieces], np.int32).reshape(-1, 4)
    return replace(proposals, boxes=boxes, masks=tuple(mask for _, mask in pieces))


def dump_proposals(proposals: Proposals) -> bytes:
    """JSON in which each mask is COCO's RLE of its box; `load_proposals` gives the same proposals back, bit for bit.

    Raises:
        MissingExtra: pycocotools is not installed.
    """
    return orjson.dumps(
        {
            "format": _FORMAT,
            "size": list(proposals.size_hw),
            "boxes": proposals.boxes.tolist(),
            "counts": [encode_rle(mask)["counts"] for mask in proposals.masks],
            "ids": proposals.ids.tolist(),
            "scores": proposals.scores.tolist(),
            "stability": proposals.stability.tolist(),
        }
    )


def load_proposals(content: bytes) -> Proposals:
    """The inverse of `dump_proposals`. Nothing in the content is trusted.

    Raises:
        BadData: no such content, cut or damaged, a box outside the frame or not tight, or more than `MAX_PIXELS`.
    """
    head = _head(content)
    size_hw = (int(head["size"][0]), int(head["size"][1]))
    boxes = np.array(head["boxes"], np.int64).reshape(-1, 4)
    right, bottom = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    if len(boxes) and (boxes[:, :2].min() < 0 or boxes[:, 2:].min() < 1):
        raise BadData("proposals: expected boxes inside the frame with a side of 1 or more")
    if (right > size_hw[1]).any() or (bottom > size_hw[0]).any():
        raise BadData(f"proposals: expected boxes inside the frame of {size_hw}, got one that reaches beyond it")
    if (total := int(boxes[:, 2:].prod(axis=1).sum())) > MAX_PIXELS:
        raise BadData(f"proposals: expected at most {MAX_PIXELS} pixels in all boxes, got {total}")
    masks = []
    for number, (box, counts) in enumerate(zip(boxes.tolist(), head["counts"], strict=True)):
        mask = np.ascontiguousarray(decode_rle({"size": [box[3], box[2]], "counts": counts})).view(np.bool_)
        if not (mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()):
            raise BadData(f"proposal {number}: expected a tight box, got a mask that does not reach its sides")
        masks.append(mask)
    return Proposals(
        size_hw=size_hw,
        boxes=boxes.astype(np.int32),
        masks=tuple(masks),
        scores=_column("scores", head["scores"], len(masks)),
        stability=_column("stability", head["stability"], len(masks)),
        ids=np.array(head["ids"], np.int64),
    )


def _column(name: str, values: object, count: int) -> np.ndarray:
    """(count,) float32, cut to 0..1; ones for None."""
    if values is None:
        return np.ones(count, np.float32)
    column = np.asarray(values, np.float64)
    if column.shape != (count,) or not np.isfinite(column).all():
        raise BadData(f"proposals: expected {count} finite {name}, one per mask, got {column.shape}: {column[:5]}")
    return column.clip(0, 1).astype(np.float32)


def _head(content: bytes) -> dict[str, Any]:
    """The parsed content, each part of the type and length that it should have; numbers of boxes and ids fit int64."""
    try:
        head = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadData(f"proposals: expected JSON, got {bytes(content[:40])!r}...: {error}") from error
    if not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise BadData(f"proposals: expected content of the format {_FORMAT!r}; make it again with this version")
    size: Any = head.get("size")
    columns: dict[str, Any] = {name: head.get(name) for name in _COLUMNS}
    if not _are_whole(size) or len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_MASK_PIXELS:
        raise BadData(f"proposals: expected a frame of 1..{MAX_MASK_PIXELS} pixels, got a size of {size}")
    lengths = {name: len(column) if isinstance(column, list) else None for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise BadData(f"proposals: expected lists of one length, got {lengths}")
    if not all(_are_whole(box) and len(box) == 4 and max(box) <= max(size) for box in columns["boxes"]):
        raise BadData("proposals: expected boxes of four whole numbers within the frame")
    if not _are_whole(columns["ids"]) or not all(isinstance(text, str) for text in columns["counts"]):
        raise BadData("proposals: expected ids that are whole numbers, and compressed RLE for each mask")
    if not all(type(number) in (int, float) for name in ("scores", "stability") for number in columns[name]):
        raise BadData("proposals: expected scores and stability that are numbers")
    return {"size": size, **columns}


def _are_whole(numbers: Any) -> bool:
    """Whether it is a list of whole numbers that fit int64."""
    return isinstance(numbers, list) and all(type(one) is int and -(1 << 63) <= one < 1 << 63 for one in numbers)


def _cleaned(
    box: tuple[int, int, int, int], mask: np.ndarray, min_area: int, size_hw: tuple[int, int]
) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """Tight box and pixels of one mask without small holes and islands; its own where there are none."""
    x, y, width, height = box
    frame_height, frame_width = size_hw
    # Background beyond a side of the box is one region with the whole strip up to the picture's border. A strip of
    # fewer pixels than `min_area` is taken in, for it may be a hole; any other side gets a line that is never one.
    gaps = np.array([y, frame_height - y - height, x, frame_width - x - width])
    is_thin = gaps * [frame_width, frame_width, frame_height, frame_height] < min_area
    above, below, before, behind = np.where(is_thin, gaps, 1).tolist()
    wide = np.pad(mask, ((above, below), (before, behind)))
    if _is_clean(wide, is_thin):
        return box, mask
    regions, areas = _regions(~wide)
    is_hole = areas < min_area
    for thin, line in zip(is_thin, (regions[0], regions[-1], regions[:, 0], regions[:, -1]), strict=True):
        if not thin:
            is_hole[line] = False
    is_hole[0] = False
    if is_hole.any():
        wide |= is_hole[regions]
    regions, areas = _regions(wide)
    is_kept = areas >= min_area
    is_kept[0] = False
    if not is_kept.any():
        is_kept[1 + int(areas[1:].argmax())] = True
    if is_kept[1:].all() and not is_hole.any():
        return box, mask
    return tight((x - before, y - above), is_kept[regions])


def _is_clean(wide: np.ndarray, is_thin: np.ndarray) -> bool:
    """Whether a mask is one piece without holes, and no background is cut off but by a side that is not thin: told by
    outlines, in a fraction of the time that regions take. False may be said of a clean one too."""
    if len(_outlines(wide)) != 1:
        return False
    right, bottom = wide.shape[1] - 1, wide.shape[0] - 1
    for outline in _outlines(~wide) if is_thin.any() else ():
        x, y = outline[:, 0].T
        reaches = ((y == 0).any(), (y == bottom).any(), (x == 0).any(), (x == right).any())
        if not (reaches & ~is_thin).any():
            return False
    return True


def _outlines(mask: np.ndarray) -> Any:
    """Outlines of regions, corners included, and of their holes: (P, 1, 2) int32 x, y each."""
    from penstock.geometry.opencv import cv2

    return cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected regions of a mask, corners included: (h, w) int32 numbers from 1, 0 outside; (R + 1,) int64 areas."""
    from penstock.geometry.opencv import cv2

    _, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return regions, np.bincount(regions.reshape(-1))
