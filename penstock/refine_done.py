"""The done frames of a refinement: what was decided in them, which are worth a look, and maps of others that lie beside them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest, nsmallest
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from penstock.errors import BadData, RowError
from penstock.readers.pth import load_id_file
from penstock.readers.scenes import Scenes
from penstock.refine_sink import NewestRows
from penstock.refining.consistency import id_flips
from penstock.schema import Record
from penstock.store import Store

SHOWN = 8
"""Frames that are shown as the worst, and as many as the best."""
_SUFFIXES = (".pth", ".pt", ".npy", ".png")
_KEPT = ("coarse", "kept", "invalid")
"""Reasons of pixels that are as they were."""


@dataclass(frozen=True)
class DoneFrame:
    """A frame with a refined map."""

    key: str
    scene: str
    row: int
    """In the scenes."""
    path: str
    """Of the picture, relative to the root."""
    record: Record
    """The fields that were asked for, of its row in the store."""


def done_frames(
    store: Store, scenes: Scenes, limit: int | None = None, fields: Sequence[str] = ()
) -> Iterator[DoneFrame]:
    """The frames that are done, in order.

    Args:
        store: rows of `penstock refine`; some may be missing.
        scenes: the frames that were asked for.
        limit: only so many of them, from the first on.
        fields: of the store, to be read.
    """
    rows = NewestRows(store.path, store)
    for row in range(len(scenes) if limit is None else limit):
        key = scenes.keys[row]
        try:
            record = rows.read(key, ["path", *fields])
        except (KeyError, RowError):
            continue  # missing or failed: counted elsewhere
        yield DoneFrame(key, scenes.groups[scenes.group_of(row)].name, row, str(record["path"]), record)


@dataclass(kw_only=True)
class Decisions:
    """What was decided in all done frames."""

    objects: Counter[str] = field(default_factory=Counter)
    """Objects that keep their coarse mask, by reason."""
    pixels: Counter[str] = field(default_factory=Counter)
    """Pixels by the reason for their id (`penstock.refining.residual.REASONS`)."""
    flips: int = 0
    """Ids that the coarse maps of two neighbouring frames have, and the refined map of just one of them."""
    chances: int = 0
    """Ids that the coarse maps of two neighbouring frames have."""
    worst: list[dict[str, object]] = field(default_factory=list)
    """Frames worth a look: `key`, `why`."""
    best: list[dict[str, object]] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "kept_by_reason": dict(self.objects.most_common()),
            "pixels_by_reason": dict(self.pixels.most_common()),
            "id_flips": {"flips": self.flips, "chances": self.chances},
            "worst": self.worst,
            "best": self.best,
        }


def decisions(store: Store, scenes: Scenes, limit: int | None, gains: Mapping[str, tuple[float, float]]) -> Decisions:
    """Counts the decisions, and chooses frames to look at.

    The worst are those whose mean IoU rose least, or fell, and the best those where it rose most, where the truth of any
    frame is known. Elsewhere the worst are those with the smallest share of accepted objects, and among them with the
    most pixels without an id; the best those with the largest share of accepted objects and of changed pixels.

    Args:
        store, scenes, limit: as `done_frames`.
        gains: mean IoU before and after of the frames whose truth is known.
    """
    found = Decisions()
    ranks: list[tuple[float, float, str, str]] = []
    previous: tuple[str, frozenset[int], frozenset[int]] | None = None
    for frame in done_frames(store, scenes, limit, ("table", "kept_existing")):
        if int(np.asarray(frame.record["kept_existing"])):
            previous = None  # somebody else's: nothing is known of its objects
            continue
        table: dict[str, Any] = json.loads(str(frame.record["table"]))
        found.objects.update(one["reason"] for one in table["objects"] if one["reason"])
        found.pixels.update(table["reasons"])
        before, after = (frozenset(one["id"] for one in table["objects"] if one[name]) for name in ("before", "after"))
        if previous is not None and previous[0] == frame.scene:
            flips, chances = id_flips((previous[1], before), (previous[2], after))
            found.flips, found.chances = found.flips + flips, found.chances + chances
        previous = (frame.scene, before, after)
        if not gains or frame.key in gains:
            ranks.append(_rank(frame.key, table, gains.get(frame.key)))
    count = min(SHOWN, (len(ranks) + 1) // 2)
    found.worst = [{"key": key, "why": why} for _, _, key, why in nsmallest(count, ranks)]
    shown = {one["key"] for one in found.worst}
    found.best = [{"key": key, "why": why} for _, _, key, why in nlargest(count, ranks) if key not in shown]
    return found


def map_of(folder: Path, picture: str) -> Path | None:
    """The map of a picture in a folder of maps: by the picture's name with its suffix, or without; the first of .pth, .pt,
    .npy and .png.

    Args:
        folder: may be missing.
        picture: its name or path.
    """
    name = PurePosixPath(picture)
    places = (folder / f"{stem}{suffix}" for stem in (name.name, name.stem) for suffix in _SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def load_beside(path: Path, size_hw: Sequence[int]) -> np.ndarray:
    """The map in a file that belongs to a frame: (H, W) int64.

    Raises:
        BadData, SourceNotFound: it cannot be read, has ids of 2^63 and above, or is not of the frame's size; maps are
            never resampled.
    """
    ids = load_id_file(path)
    if ids.shape != tuple(size_hw):
        raise BadData(f"{path}: expected the frame's size {tuple(size_hw)}, got {ids.shape}; maps are never resampled")
    if ids.dtype == np.uint64 and int(ids.max()) > np.iinfo(np.int64).max:
        raise BadData(f"{path}: expected numbers below 2^63, got {ids.max()}")
    return ids.astype(np.int64, copy=False)


def _rank(key: str, table: dict[str, Any], gain: tuple[float, float] | None) -> tuple[float, float, str, str]:
    """Lower is worse; with the words for it."""
    objects, reasons = table["objects"], table["reasons"]
    pixels = max(1, sum(reasons.values()))
    accepted = sum(one["accepted"] for one in objects)
    invalid = reasons.get("invalid", 0) / pixels
    changed = 1 - sum(reasons.get(name, 0) for name in _KEPT) / pixels
    why = f"{accepted} of {len(objects)} objects accepted, {changed:.1%} of the pixels changed, {invalid:.1%} without an id"
    if gain is not None:
        return gain[1] - gain[0], gain[1], key, f"IoU {gain[0]:.3f} to {gain[1]:.3f}; {why}"
    return accepted / max(1, len(objects)), changed - invalid, key, why
