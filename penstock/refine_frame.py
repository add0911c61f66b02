"""One frame refined and shown, without a folder of scenes: `penstock refine --frame IMAGE --ids MAP`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.images import decode_picture
from penstock.readers.pth import load_id_file
from penstock.refine import open_proposer_of
from penstock.refine_config import RefineConfig
from penstock.refine_overlay import before_after
from penstock.refining.types import Proposer
from penstock.sequence_folder import encode_pixels
from penstock.stages.refine import COUNTS, RefineFrames
from penstock.store.output import replace_file

_LINE = "{:>10}  {:>9}  {:>9}  {:>9}  {:<18}  {}"
_OF_SCENES = (
    "ids_dir_name", "output_dir_name", "max_scenes", "processes_per_gpu", "existing", "consistency", "face_ids_dir_name",
    "truth", "batch_size", "workers", "sequential", "max_failures", "retry_failed", "on_change", "timeout_s",
)  # fmt: skip
_NO_MAP = np.zeros((0, 0), np.int64)


@dataclass(frozen=True, kw_only=True)
class ShownFrame:
    """What became of a frame."""

    frame: Path
    ids: Path
    files: tuple[Path, ...]
    """Written: the map, its confidence (PNG), before and after (PNG)."""
    counts: dict[str, int]
    """`penstock.stages.refine.COUNTS`."""
    table: dict[str, Any]
    """`objects`: what was decided for each; `reasons`: pixels by the reason for their id."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        files = {"frame": str(self.frame), "ids": str(self.ids), "files": [str(one) for one in self.files]}
        return {"command": "refine", "status": "ok", **files, **self.counts, **self.table}

    def lines(self) -> list[str]:
        """A table for people: a line for each object, then the totals."""
        lines = [_LINE.format("id", "before", "after", "core kept", "how", "decision")]
        for one in self.table["objects"]:
            decision = "accepted" if one["accepted"] else f"kept as it was: {one['reason']}"
            numbers = (one["id"], one["before"], one["after"], f"{one['core_recall']:.1%}")
            lines.append(_LINE.format(*numbers, "+".join(one["how"]), decision))
        counts = self.counts
        shares = [counts[name] / counts["pixels"] for name in ("invalid_before", "invalid_pixels")]
        return [
            *lines,
            f"{counts['objects']} objects: {counts['sam_matched']} matched, {counts['merged']} merged, "
            f"{counts['low_confidence']} of low confidence, {counts['fallback']} without a proposal, "
            f"{counts['accepted']} accepted; without an id {shares[0]:.1%} before, {shares[1]:.1%} after",
            *(f"written: {path}" for path in self.files),
        ]


def not_of_one_frame(config: RefineConfig) -> list[str]:
    """The flags of a configuration that were given and say something of scenes, jobs or workers only."""
    plain = RefineConfig(data_root=config.data_root)
    return [f"--{name.replace('_', '-')}" for name in _OF_SCENES if getattr(config, name) != getattr(plain, name)]


def refine_one(
    config: RefineConfig, frame: Path, ids: Path, output: Path | None = None, *, proposer: Proposer | None = None
) -> ShownFrame:
    """Refines one id map and writes the map, its confidence, and a picture of before and after.

    Args:
        config: proposer, settings, format and type; folders of scenes play no part.
        frame: the picture.
        ids: its map: .pth, .npy or .png.
        output: folder; by default `refined_<stem of the picture>` in the working folder.
        proposer: where masks come from; None: what the configuration says.

    Raises:
        SourceNotFound: no such picture or map.
        BadData: one cannot be read, or they differ in size.
        UsageError, MissingExtra: wrong settings, or no weights on this machine.
        OutputRefused, OutputFull: the files cannot be written.
    """
    record, before = _record(frame, ids)
    stage = RefineFrames(
        proposer=proposer or open_proposer_of(config),
        settings=config.settings,
        format=config.format,
        dtype=config.dtype,
    )
    stage.setup(stage.proposer.device)
    (row,) = stage([record])
    folder = output or Path(f"refined_{frame.stem}")
    content, confidence = (np.asarray(row[name]).tobytes() for name in ("ids_content", "confidence_content"))
    paths = tuple(
        folder / f"{frame.name}{end}" for end in (f".{config.format}", ".confidence.png", ".before_after.png")
    )
    for path in paths:
        if path.exists() and any(path.samefile(one) for one in (frame, ids)):
            raise UsageError(f"{path}: is the input; give another --output")
    replace_file(paths[0], content)
    replace_file(paths[1], confidence)
    after = load_id_file(paths[0])
    shown = before_after(np.asarray(record["image"]), {"before": before, "after": after})
    replace_file(paths[2], encode_pixels(shown, "png"))
    return ShownFrame(
        frame=frame,
        ids=ids,
        files=paths,
        counts={name: int(np.asarray(row[name])) for name in COUNTS},
        table=json.loads(str(row["table"])),
    )


def _record(frame: Path, ids: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A record of the stage's input, and the map.

    Raises:
        SourceNotFound, BadData: as `refine_one`.
    """
    if not frame.is_file():
        raise SourceNotFound(f"{frame}: no such picture")
    before = load_id_file(ids)
    if before.dtype == np.uint64 and int(before.max()) > np.iinfo(np.int64).max:
        raise BadData(f"{ids}: expected ids below 2^63, got {before.max()}")
    try:
        image = decode_picture(frame.read_bytes(), expected_hw=(before.shape[0], before.shape[1]))
    except BadData as error:
        raise BadData(f"{frame}: {error} (the id map is {ids})") from error
    if image.shape[:2] != before.shape:
        raise BadData(
            f"{frame}: the picture is {image.shape[0]} x {image.shape[1]} (height x width), the map {ids} is "
            f"{before.shape[0]} x {before.shape[1]}; labels are never resampled"
        )
    texts = {"scene": frame.absolute().parent.name, "path": frame.name, "file": frame.name}
    known = before.astype(np.int64)
    return {"image": image, "ids": known, "existing": _NO_MAP, "existing_bytes": np.array(0, np.int64), **texts}, known
