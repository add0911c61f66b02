"""What one saved sequence says, read from its metadata and provenance; no pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadData
from penstock.geometry.boxes import clip_boxes_xywh
from penstock.sequence_folder import ROLES, boxes_from_json, load_provenance, load_sequence
from penstock.stages.sequence_record import HISTORIES


@dataclass(kw_only=True)
class Facts:
    """What one sequence adds."""

    source: str
    category: str
    video: str = ""
    is_plain: bool = False
    is_video: bool
    positive: bool = True
    growth: int = 0
    reasons: list[str] = field(default_factory=list)
    gaps: dict[int, list[float]] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    centres: dict[str, np.ndarray] = field(default_factory=dict)
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_facts(folder: Path) -> Facts:
    """Reads one sequence.

    Raises:
        SourceNotFound: a file is not there.
        BadData: a file is damaged, or holds other keys and values than penstock writes.
    """
    metadata, _ = load_sequence(folder)
    provenance = load_provenance(folder)
    try:
        facts = _of_draw(provenance) if "record" in provenance else _of_plain(metadata)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadData(f"{folder}: metadata and provenance are not as penstock writes them: {error!r}") from error
    odd = [name for name, values in facts.numbers.items() if not np.isfinite(values).all()]
    if odd:
        raise BadData(
            f"{folder}: {', '.join(odd)}: expected boxes and pictures of finite, positive size in provenance.json"
        )
    return facts


def _of_plain(metadata: Mapping[str, Any]) -> Facts:
    """Of a sequence without a recorded draw."""
    is_video = bool(metadata["is_video_dataset"])
    rows = {role: [int(one) for one in metadata[f"{role}_frame_ids"]] for role in ROLES}
    return Facts(
        source=str(metadata["dataset"]),
        category=str(metadata["test_class"]),
        is_plain=True,
        is_video=is_video,
        gaps=_gaps(rows) if is_video else {},
    )


def _of_draw(provenance: Mapping[str, Any]) -> Facts:
    record, origin = provenance["record"], provenance["origin"]
    positive, is_video = bool(record["positive"]), bool(record["is_video"])
    facts = Facts(
        source=str(record["source"]),
        category=str(record["category"]),
        video=str(record["sequence"]),
        is_video=is_video,
        positive=positive,
        growth=int(record["gap"]),
        reasons=[str(one["reason"]) for one in provenance["rejections"]],
        gaps=_gaps({role: origin[role]["rows"] for role in ROLES}) if is_video and positive else {},
    )
    facts.numbers = {"growth": [float(record["gap"])], "attempts": [float(record["attempts"])]}
    for role in ROLES:
        flags = np.asarray(record[f"{role}_visible"], bool)
        facts.shares[f"{role} frames visible"] = int(flags.sum()), len(flags)
        if role == "template" or positive:
            _add_boxes(facts, role, origin[role], np.asarray(record[f"{role}_valid"], bool))
    _add_histories(facts, record, origin)
    if "search_affine" in record:
        _add_crops(facts, record, origin["search"]["image_hw"])
    return facts


def _gaps(rows: Mapping[str, Sequence[int]]) -> dict[int, list[float]]:
    return {
        place: [float(search) - template for search in rows["search"]]
        for place, template in enumerate(rows["template"])
    }


def _add_boxes(facts: Facts, role: str, frames: Mapping[str, Any], valid: np.ndarray) -> None:
    boxes = boxes_from_json(frames["boxes"], role)
    fits = valid & _has_area(boxes)
    sizes = np.asarray(frames["image_hw"], np.float64).reshape(-1, 2)[fits][:, ::-1]
    boxes = boxes[fits]
    centres = (boxes[:, :2] + boxes[:, 2:] / 2) / sizes
    facts.centres[role] = centres
    facts.numbers[f"{role} size"] = np.sqrt(boxes[:, 2:].prod(axis=1) / sizes.prod(axis=1)).tolist()
    facts.numbers[f"{role} aspect"] = (boxes[:, 2] / boxes[:, 3]).tolist()
    if role == "search":
        facts.numbers["search x"], facts.numbers["search y"] = centres.T.tolist()


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: four finite numbers, w and h above 0."""
    found: np.ndarray = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    return found


def _add_histories(facts: Facts, record: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Flags of the steps, and the motion from step to step of both histories together."""
    flags = {
        field: [np.asarray(record[f"{name}_{field}"], bool) for name in HISTORIES]
        for field in ("visible", "valid", "padded")
    }
    for name, visible, padded in zip(HISTORIES, flags["visible"], flags["padded"], strict=True):
        facts.shares[f"{name} steps padded"] = int(padded.sum()), len(padded)
        facts.shares[f"{name} steps visible, of those not padded"] = (
            int((visible & ~padded).sum()),
            int((~padded).sum()),
        )
    kept = ~np.concatenate(flags["padded"])
    boxes = np.concatenate([boxes_from_json(origin[name]["boxes"], name) for name in HISTORIES])[kept]
    time = np.concatenate([np.array(record[f"{name}_time"], np.float64) for name in HISTORIES])[kept]
    seen = (np.concatenate(flags["visible"]) & np.concatenate(flags["valid"]))[kept] & _has_area(boxes)
    seconds = np.diff(time)
    pairs = seen[1:] & seen[:-1]
    timed = pairs & (seconds > 0)
    facts.shares["pairs of visible steps with a known time"] = int(timed.sum()), int(pairs.sum())
    centres, sides = boxes[:, :2] + boxes[:, 2:] / 2, np.sqrt(boxes[:, 2:].prod(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = np.hypot(*np.diff(centres, axis=0).T) / sides[:-1] / seconds
        change = np.log2(sides[1:] / sides[:-1]) / seconds
    facts.numbers["speed"], facts.numbers["scale change"] = speed[timed].tolist(), change[timed].tolist()


def _add_crops(facts: Facts, record: Mapping[str, Any], sizes_hw: Sequence[Sequence[int]]) -> None:
    windows, affines = boxes_from_json(record["search_crop_box"], "search_crop_box"), record["search_affine"]
    parts = [
        1 - clip_boxes_xywh(window, (int(height), int(width)))[2:].prod() / window[2:].prod()
        for window, (height, width) in zip(windows, sizes_hw, strict=True)
    ]
    facts.numbers["outside"] = [float(part) for part in parts]
    facts.shares["sequences gray"] = int(record["gray"]), 1
    facts.shares["sequences mirrored as a whole"] = int(record["joint_flip"]), 1
    facts.shares["search crops mirrored on their own"] = sum(record["search_flip"]), len(record["search_flip"])
    if facts.positive:
        side = abs(np.asarray(affines, np.float64)[:, :1, 0]) * windows[:, 2:3]
        boxes = boxes_from_json(record["search_boxes"], "search_boxes") / side
        boxes = boxes[np.isfinite(boxes).all(axis=1)]
        facts.centres["crop"] = boxes[:, :2] + boxes[:, 2:] / 2
        facts.numbers["crop size"] = np.sqrt(boxes[:, 2:].prod(axis=1)).tolist()
        facts.numbers["crop x"], facts.numbers["crop y"] = facts.centres["crop"].T.tolist()
