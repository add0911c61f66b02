"""What a refinement did, per scene and in all: counted from the rows of its store, so right after any restart."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from penstock.errors import RowError
from penstock.models.sam2_config import parse_model_cfg
from penstock.readers.scenes import Scenes
from penstock.refine_sink import NewestRows, places_of
from penstock.stages.refine import COUNTS
from penstock.store import Store
from penstock.store.rows import DONE, FAILED

_SUMMED = tuple(name for name in COUNTS if "invalid" not in name and name != "pixels")


@dataclass(frozen=True, kw_only=True)
class SceneStatistics:
    """A scene, or all of them. Sums over its done frames."""

    scene: str
    frames: int
    done: int = 0
    failed: int = 0
    kept_existing: int = 0
    """Done frames that somebody else had refined: only their objects and invalid pixels are known."""
    objects: int = 0
    sam_matched: int = 0
    merged: int = 0
    low_confidence: int = 0
    fallback: int = 0
    accepted: int = 0
    kept: int = 0
    proposals: int = 0
    invalid: float = 0.0
    """Mean over the done frames of the share of their pixels without an id, 0..1."""
    invalid_before: float = 0.0
    """The same of the maps that were refined."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {**asdict(self), "invalid": round(self.invalid, 6), "invalid_before": round(self.invalid_before, 6)}


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What a run says to people, as templates; the seed's words are in `penstock.compat`."""

    banner: str = "=== mask refinement ==="
    root: str = "data root: {root}"
    model: str = "model configuration: {model_cfg}"
    weights: str = "model weights: {checkpoint}"
    found: str = "proposer: {proposer}"
    gpus: str = "{gpus} GPUs found"
    no_gpu: str = "no GPU found, working on the CPU"
    scenes: str = "{scenes} scenes found"
    scene: str = (
        "{mark} {scene}: {done}/{frames} done, invalid: {invalid:.1%}, SAM matched: {sam_matched}, merged: {merged}, "
        "masks kept: {kept}"
    )
    marks: Sequence[str] = field(default=("-", "+"))
    """Of a scene of which no frame is done; of another one."""
    end: str = "=== mask refinement finished ==="
    stopped: str = "=== mask refinement stopped: run it again to go on ==="
    total: str = (
        "{scenes} scenes, {done}/{frames} frames done, {objects} objects: {sam_matched} matched, {merged} merged, "
        "{low_confidence} of low confidence, {fallback} without a proposal; {accepted} new masks accepted, {kept} masks kept"
    )
    place: str = "the refined maps lie in {folder}/ of each scene"

    def start(self, notes: Mapping[str, Any]) -> list[str]:
        """What is said before the first frame, from the notes of the report."""
        config = notes["config"]
        names = ("banner", "root", "model", "weights") if config["proposer"] == "sam2" else ("banner", "root", "found")
        known = parse_model_cfg(config["model_cfg"])
        named = known.zoo_file if known and known.zoo_file else config["model_cfg"]
        values = {
            **config,
            "root": config["data_root"],
            "checkpoint": config["checkpoint"] or named,
            "gpus": notes["gpus"],
        }
        texts = [*(getattr(self, name) for name in names), self.gpus if notes["gpus"] else self.no_gpu, self.scenes]
        return [text.format(**{**values, "scenes": notes["scenes_found"]}) for text in texts]

    def finish(self, notes: Mapping[str, Any]) -> list[str]:
        """A line for each scene, and the closing ones."""
        scenes, everything = notes["scenes"], notes["total"]
        lines = [self.scene.format(mark=self.marks[bool(one["done"])], **one) for one in scenes]
        is_whole = everything["done"] + everything["failed"] == everything["frames"]
        numbers = {**everything, "scenes": len(scenes), "folder": notes["config"]["output_dir_name"]}
        numbers["rate"] = everything["sam_matched"] / max(1, everything["objects"])
        return [
            *lines,
            *(one.format(**numbers) for one in (self.end if is_whole else self.stopped, self.total, self.place)),
        ]


def statistics_of(store: Store, scenes: Scenes, max_rows: int | None = None) -> list[SceneStatistics]:
    """One entry for each scene, in order.

    Args:
        store: rows of `penstock refine`, of which some may be missing.
        scenes: the frames that were asked for.
        max_rows: only so many of them, whole scenes.
    """
    states, places = _states(store), places_of(store)
    keys = scenes.keys
    found = []
    for group in scenes.groups:
        if max_rows is not None and group.start >= max_rows:
            break
        rows = [places[key] for one in range(group.start, group.stop) if (key := keys[one]) in places]
        ended = states[rows] if rows else np.zeros(0, np.uint8)
        done = np.array(rows, np.int64)[ended == DONE]
        numbers = {"done": len(done), "failed": int(np.count_nonzero(ended == FAILED))}
        shares = _shares(store, done)
        found.append(
            SceneStatistics(
                scene=group.name,
                frames=group.stop - group.start,
                **numbers,
                **_sums(store, done),
                invalid=shares[0],
                invalid_before=shares[1],
            )
        )
    return found


def total(scenes: Sequence[SceneStatistics]) -> SceneStatistics:
    """All scenes as one; shares are means over all done frames."""
    sums = {
        name: sum(getattr(one, name) for one in scenes)
        for name in ("frames", "done", "failed", "kept_existing", *_SUMMED)
    }
    done = max(1, sums["done"])
    shares = {
        name: sum(getattr(one, name) * one.done for one in scenes) / done for name in ("invalid", "invalid_before")
    }
    return SceneStatistics(scene="", **sums, **shares)


def frame_lines(store: Store, scenes: Scenes, max_rows: int | None = None) -> Iterator[str]:
    """A line for each done frame: its statistics, and the objects that kept the mask they had, with the reason."""
    rows = NewestRows(store.path, store)
    for key in itertools.islice(scenes.keys, max_rows):
        try:
            record = rows.read(key, list(store.schema))
        except (KeyError, RowError):
            continue  # not come to yet; or listed among the failures
        numbers = {name: int(np.asarray(record[name])) for name in COUNTS}
        kept = [f"{one['id']} {one['reason']}" for one in json.loads(str(record["table"]))["objects"] if one["reason"]]
        text = (
            f"{key}: {numbers['objects']} objects, {numbers['sam_matched']} matched, {numbers['merged']} merged, "
            f"{numbers['low_confidence']} low, {numbers['fallback']} without a proposal, "
            f"invalid {numbers['invalid_pixels'] / numbers['pixels']:.1%}"
        )
        yield f"{text}; kept: {', '.join(kept)}" if kept else text


def _sums(store: Store, rows: np.ndarray) -> dict[str, int]:
    names = ("kept_existing", *_SUMMED)
    return {name: int(values.sum()) for name, values in zip(names, _columns(store, rows, names), strict=True)}


def _shares(store: Store, rows: np.ndarray) -> tuple[float, float]:
    """Mean shares of pixels without an id, after and before."""
    after, before, pixels = _columns(store, rows, ("invalid_pixels", "invalid_before", "pixels"))
    if not len(rows):
        return 0.0, 0.0
    return float((after / pixels).mean()), float((before / pixels).mean())


def _columns(store: Store, rows: np.ndarray, names: Sequence[str]) -> Iterator[np.ndarray]:
    if not len(rows):
        return iter([np.zeros(0, np.int64) for _ in names])
    out = {name: np.zeros(len(rows), store.schema[name].dtype) for name in names}
    store.gather(rows, names, out)
    return iter([out[name] for name in names])


def _states(store: Store) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint8), *(part.states() for part in store.parts)])
