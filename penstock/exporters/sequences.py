"""Saved sequences as exporters see them: read whole, every file compared with what was saved.

A sequence is frames in one order: its templates, then its searches. Boxes are XYWH in pixels of the frame's own picture, corner
from 0, not clipped; those of the histories lie in the first search picture.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penstock.errors import BadData
from penstock.geometry.boxes import box_fault
from penstock.geometry.images import decode_picture, encode_jpeg, picture_header
from penstock.sequence_check import check_folder
from penstock.sequence_folder import (
    IMAGES,
    MASKS,
    RAW,
    RAW_MASKS,
    ROLES,
    TIMESTAMP,
    boxes_from_json,
    load_provenance,
    load_sequence,
    picture_name,
    read_manifest,
    require_sequences,
)

HISTORIES = ("backward", "forward")
Pictures = Literal["saved", "source"]
"""Which pictures: those of `images/`, or the source's own, where the set has them."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a sequence with its box."""

    role: str
    """"template" or "search"."""
    number: int
    """In its role, from 0."""
    frame: int | None
    """Position in the source's video, from 0; None where it was not saved."""
    box: np.ndarray
    """(4,) float64 XYWH in pixels of the picture, corner from 0, not clipped; NaN where there is none."""
    absent: Literal["", "outside", "hidden"]
    """Why the target is not to be seen: "outside" (no box, or none that reaches into the picture, or a search frame that does
    not show the target), "hidden" (there is a box, and the source says not visible); "" where it is."""
    picture: bytes | None
    """The file as saved; None where no pictures were saved."""
    suffix: str
    """"jpg" or "png"."""
    size_hw: tuple[int, int]
    """Of the picture; (0, 0) without one."""
    mask: bytes | None = None
    """PNG, 0 and 255; None where the source has none."""
    path: str = ""
    """Of the picture in its source, relative to the root; empty where it was not saved."""

    def jpeg(self, quality: int) -> bytes:
        """The picture as a JPEG: the bytes as saved where it is one."""
        assert self.picture is not None
        return self.picture if self.suffix == "jpg" else encode_jpeg(decode_picture(self.picture), quality=quality)

    def mask_pixels(self) -> np.ndarray | None:
        """(H, W) uint8, 0 or 1; None without a mask."""
        return None if self.mask is None else np.asarray(decode_picture(self.mask)[..., 0] != 0, np.uint8)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A history of T steps. Flags and times are None where they were not saved."""

    boxes: np.ndarray
    """(T, 4) float64 XYWH in pixels of the first search picture, corner from 0; NaN where there is no box."""
    frames: list[int] | None
    """Positions in the source's video, from 0."""
    flags: Mapping[str, list[bool] | None]
    """`visible`, `valid` and `padded`."""
    time: list[float | None] | None
    """Seconds from the video's first frame."""


@dataclass(frozen=True, kw_only=True)
class SavedSequence:
    """One saved sequence."""

    name: str
    """"seq_000001", or the whole name of its folder where the set holds several of that id."""
    folder: Path
    index: int
    """In the set."""
    metadata: Mapping[str, Any]
    """The nine keys."""
    provenance: Mapping[str, Any]
    frames: list[Frame]
    """Templates, then searches."""
    histories: Mapping[str, Steps]
    """`backward` and `forward`."""

    @property
    def category(self) -> str:
        """Class of the target; "" where there is none."""
        return str(self.metadata["test_class"])

    @property
    def source(self) -> str:
        """Name of the source."""
        return str(self.metadata["dataset"])

    @property
    def record(self) -> Mapping[str, Any]:
        """The saved record's plain fields; empty where SequenceSaver saved the sequence."""
        found = self.provenance.get("record", {})
        assert isinstance(found, Mapping)
        return found

    @property
    def video(self) -> str:
        """Name of the video in its source; "" where it was not saved."""
        return str(self.record.get("sequence", ""))

    def about(self) -> dict[str, object]:
        """What an export says of it: where it comes from, and the digest of its provenance."""
        return {
            "name": self.name,
            "folder": self.folder.name,
            "source": self.source,
            "video": self.video,
            "category": self.category,
            "digest": self.provenance.get("digest", ""),
        }

    def require_pictures(self) -> None:
        """For layouts that are nothing without them.

        Raises:
            BadData: a frame has none.
        """
        if not self.frames or any(frame.picture is None for frame in self.frames):
            raise BadData(f"{self.folder}: no pictures were saved; this layout needs them: save with save_images")

    def parts(self) -> dict[str, list[Frame]]:
        """Runs of frames of equal size, for layouts that state one size for all frames of a video.

        Returns:
            Name to frames: the name of the sequence where all are of one size, else that and -1, -2 and so on.
        """
        runs = [list(run) for _, run in itertools.groupby(self.frames, key=lambda frame: (frame.size_hw, frame.suffix))]
        if len(runs) == 1:
            return {self.name: runs[0]}
        return {f"{self.name}-{number}": run for number, run in enumerate(runs, 1)}


class SavedSet:
    """A folder of saved sequences.

    Args:
        root: the folder.
        pictures: see `Pictures`.

    Raises:
        SourceNotFound: there are none.
        StoreCorrupt: `.penstock/sequences.json` is damaged.
    """

    def __init__(self, root: Path, pictures: Pictures = "saved") -> None:
        self.root = root
        self.pictures = pictures
        self.folders = require_sequences(root)
        self.manifest = read_manifest(root)
        short = [re.sub(rf"_{TIMESTAMP.pattern}$", "", name) for name in self.folders]
        twice = {name for name, count in Counter(short).items() if count > 1}
        self.names = [whole if name in twice else name for name, whole in zip(short, self.folders, strict=True)]

    def __len__(self) -> int:
        return len(self.folders)

    def read(self, index: int) -> SavedSequence:
        """Reads a sequence, every file of it compared with what was saved.

        Raises:
            BadData: a file is missing, damaged or not as penstock writes it, or there are no such pictures.
        """
        folder = self.root / self.folders[index]
        faults = check_folder(folder)
        if faults:
            raise BadData("; ".join(fault.message for fault in faults[:3]))
        metadata, annotations = load_sequence(folder)
        provenance = load_provenance(folder)
        try:
            found = _Parts(folder, metadata, annotations, provenance, self.pictures)
            return SavedSequence(
                name=self.names[index],
                folder=folder,
                index=index,
                metadata={**metadata, "test_class": str(metadata["test_class"]), "dataset": str(metadata["dataset"])},
                provenance=provenance,
                frames=[frame for role in ROLES for frame in found.frames(role)],
                histories={name: found.steps(name) for name in HISTORIES},
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, BadData):
                raise
            raise BadData(f"{folder}: metadata and provenance are not as penstock writes them: {error!r}") from error


@dataclass(frozen=True)
class _Parts:
    """The parts of one sequence."""

    folder: Path
    metadata: Mapping[str, Any]
    annotations: Mapping[str, Any]
    provenance: Mapping[str, Any]
    pictures: Pictures

    @property
    def is_both(self) -> bool:
        return self.pictures == "source" and self.provenance.get("pictures") == "both"

    def frames(self, role: str) -> Iterator[Frame]:
        if self.pictures == "source" and self.provenance.get("pictures") not in ("raw", "both"):
            raise BadData(f"{self.folder}: holds no pictures of the source; it was saved with pictures=crops")
        record = self.provenance.get("record", {})
        origin = self.provenance.get("origin", {}).get(role, {})
        listed = origin["boxes"] if self.is_both else self.annotations[f"{role}_anno"]
        boxes = boxes_from_json(listed, f"{self.folder}: {role}")
        positions, paths = self.metadata[f"{role}_frame_ids"], origin.get("paths", [])
        shown = role == ROLES[0] or bool(record.get("positive", True))
        flags = [record.get(f"{role}_{name}") or [True] * len(boxes) for name in ("visible", "valid")]
        for number, box in enumerate(boxes):
            picture, suffix = self._picture(role, number, RAW if self.is_both else IMAGES, ("jpg", "png"))
            mask, _ = self._picture(role, number, RAW_MASKS if self.is_both else MASKS, ("png",))
            size_hw = (0, 0) if picture is None else picture_header(picture).size_hw
            has_box = shown and bool(flags[1][number]) and not box_fault(box, size_hw if picture is not None else None)
            yield Frame(
                role=role,
                number=number,
                frame=int(positions[number]) if positions else None,
                box=box if shown else np.full(4, np.nan),
                absent="outside" if not has_box else "" if flags[0][number] else "hidden",
                picture=picture,
                suffix=suffix,
                size_hw=size_hw,
                mask=mask if has_box else None,
                path=paths[number] if paths else "",
            )

    def steps(self, name: str) -> Steps:
        record = self.provenance.get("record", {})
        origin = self.provenance.get("origin", {}).get(name, {})
        listed = origin["boxes"] if self.is_both else self.annotations[f"gt_sequence_anno_{name}"]
        boxes = boxes_from_json(listed, f"{self.folder}: {name}")
        frames = [int(one) for one in self.metadata[f"gt_frame_ids_{name}"]]
        return Steps(
            boxes=boxes,
            frames=frames if len(frames) == len(boxes) else None,
            flags={flag: record.get(f"{name}_{flag}") for flag in ("visible", "valid", "padded")},
            time=record.get(f"{name}_time"),
        )

    def _picture(self, role: str, number: int, folder: str, suffixes: Sequence[str]) -> tuple[bytes | None, str]:
        for suffix in suffixes:
            name = picture_name(role, number, suffix, folder=folder)
            if name in self.provenance["files"]:
                return (self.folder / name).read_bytes(), suffix
        return None, ""
