"""What one saved sequence says, read from its metadata and provenance; no pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadData
from penstock.geometry.boxes import clip_boxes_xywh
from penstock.sequence_folder import ROLES, boxes_from_json, load_provenance, load_sequence


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
        return _of_draw(metadata, provenance) if "search" in provenance else _of_plain(metadata)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadData(f"{folder}: metadata and provenance are not as penstock writes them: {error!r}") from error


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


def _of_draw(metadata: Mapping[str, Any], provenance: Mapping[str, Any]) -> Facts:
    template, search = provenance["template"], provenance["search"]
    positive, is_video = bool(provenance["positive"]), bool(metadata["is_video_dataset"])
    facts = Facts(
        source=str(provenance["source"]),
        category=str(metadata["test_class"]),
        video=str(provenance["sequence"]),
        is_video=is_video,
        positive=positive,
        growth=int(provenance["gap"]),
        reasons=[str(one["reason"]) for one in provenance["rejections"]],
        gaps=_gaps({"template": template["rows"], "search": search["rows"]}) if is_video and positive else {},
    )
    facts.numbers = {"growth": [float(provenance["gap"])], "attempts": [float(provenance["attempts"])]}
    for role, frames in (("template", template), ("search", search)):
        flags = np.asarray(frames["visible"], bool)
        facts.shares[f"{role} frames visible"] = int(flags.sum()), len(flags)
        if role == "template" or positive:
            _add_boxes(facts, role, boxes_from_json(frames["boxes"], role), frames)
    _add_histories(facts, [provenance["backward"], provenance["forward"]])
    if provenance["crop"] is not None:
        _add_crops(facts, provenance["crop"], search, positive=positive)
    return facts


def _gaps(rows: Mapping[str, Sequence[int]]) -> dict[int, list[float]]:
    return {
        place: [float(search) - template for search in rows["search"]]
        for place, template in enumerate(rows["template"])
    }


def _add_boxes(facts: Facts, role: str, boxes: np.ndarray, frames: Mapping[str, Any]) -> None:
    fits = np.asarray(frames["valid"], bool) & (boxes[:, 2:] > 0).all(axis=1)
    sizes = np.asarray(frames["image_hw"], np.float64).reshape(-1, 2)[fits][:, ::-1]
    boxes = boxes[fits]
    centres = (boxes[:, :2] + boxes[:, 2:] / 2) / sizes
    facts.centres[role] = centres
    facts.numbers[f"{role} size"] = np.sqrt(boxes[:, 2:].prod(axis=1) / sizes.prod(axis=1)).tolist()
    facts.numbers[f"{role} aspect"] = (boxes[:, 2] / boxes[:, 3]).tolist()
    if role == "search":
        facts.numbers["search x"], facts.numbers["search y"] = centres.T.tolist()


def _add_histories(facts: Facts, histories: Sequence[Mapping[str, Any]]) -> None:
    """Flags of the steps, and the motion from step to step of both histories together."""
    flags = {name: [np.asarray(one[name], bool) for one in histories] for name in ("visible", "valid", "padded")}
    for name, visible, padded in zip(("backward", "forward"), flags["visible"], flags["padded"], strict=True):
        facts.shares[f"{name} steps padded"] = int(padded.sum()), len(padded)
        facts.shares[f"{name} steps visible, of those not padded"] = (
            int((visible & ~padded).sum()),
            int((~padded).sum()),
        )
    visible, valid, padded = (np.concatenate(flags[name]) for name in ("visible", "valid", "padded"))
    boxes = np.concatenate([boxes_from_json(one["boxes"], "history") for one in histories])[~padded]
    time = np.concatenate([np.array(one["time"], np.float64) for one in histories])[~padded]
    seen = (visible & valid)[~padded] & np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    seconds = np.diff(time)
    both = seen[1:] & seen[:-1] & (seconds > 0)
    facts.shares["pairs of steps with a known time between them"] = int(both.sum()), int((seen[1:] & seen[:-1]).sum())
    centres, sides = boxes[:, :2] + boxes[:, 2:] / 2, np.sqrt(boxes[:, 2:].prod(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = np.hypot(*np.diff(centres, axis=0).T) / sides[:-1] / seconds
        change = np.log2(sides[1:] / sides[:-1]) / seconds
    facts.numbers["speed"], facts.numbers["scale change"] = speed[both].tolist(), change[both].tolist()


def _add_crops(facts: Facts, crop: Mapping[str, Any], search: Mapping[str, Any], *, positive: bool) -> None:
    inner = crop["search"]
    windows = boxes_from_json(inner["crop_box"], "crop_box")
    areas = [
        1 - clip_boxes_xywh(window, (int(hw[0]), int(hw[1])))[2:].prod() / window[2:].prod()
        for window, hw in zip(windows, search["image_hw"], strict=True)
    ]
    facts.numbers["outside"] = [float(area) for area in areas]
    facts.shares["sequences gray"] = int(crop["gray"]), 1
    facts.shares["sequences mirrored as a whole"] = int(crop["joint_flip"]), 1
    facts.shares["search crops mirrored on their own"] = sum(inner["flip"]), len(inner["flip"])
    boxes = boxes_from_json(inner["boxes"], "search") / float(inner["size"])
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if positive:
        facts.centres["crop"] = boxes[:, :2] + boxes[:, 2:] / 2
        facts.numbers["crop size"] = np.sqrt(boxes[:, 2:].prod(axis=1)).tolist()
        facts.numbers["crop x"], facts.numbers["crop y"] = facts.centres["crop"].T.tolist()
