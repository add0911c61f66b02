"""`sav`: SA-V, in its train layout (MP4 and RLE in JSON) and its val and test layout (frames and one PNG per mask)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import mask_box
from penstock.geometry.rle import decode_rle
from penstock.readers.base import Memo, some
from penstock.readers.fields import AREA, MASK
from penstock.readers.files import Files
from penstock.readers.index import Index
from penstock.readers.sav_frames import MASKS, PICTURES, frames_stamps, frames_tracks, read_mask
from penstock.readers.sav_json import FPS, STRIDE, Masklets, ParsedFiles, masklet_columns, parse_masklets, rle_hash
from penstock.readers.tracks import NO_PICTURE, Track, Tracks
from penstock.readers.video import VideoPool
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

MASKLET_TYPE = Field(
    name="masklet_type",
    dtype="str",
    kind="text",
    meaning="manual or auto, by the annotation file; manual in the val and test layout",
)
_FROM_MASK = frozenset({"box", "valid", "visible", "absent", "area", "mask"})
_KINDS = ("manual", "auto")
_ENDS = {"mp4": ".mp4", **{kind: f"_{kind}.json" for kind in _KINDS}}


class Sav(Tracks):
    """SA-V: a row is one object in one annotated frame, a group is one masklet.

    Videos run at 24 frames a second and every fourth frame is annotated: the annotation k is frame 4 * k of the video, and
    that is what `frame` says. An object whose mask is empty is hidden: absent, not visible, its mask all zeros. Frames
    without annotation are no rows. Source of the layouts: the files as published.

    Args:
        root: the folder that holds `sav_train`, `sav_val` or `sav_test`, or one of these.
        split: which of them; None takes the root itself or else the first that is there.
        annotations: of the train layout: which JSON files, those made by hand, by the model, or both where there are both.
        videos: names of videos; all if empty.
        boxes: of the val and test layout, whose masks are PNGs: "read" decodes a row's PNG when its box, visibility or
            area is asked for; "index" decodes all PNGs once, when the index is built, so that `column("box")` is there.
    """

    name = "sav"
    layout = (
        "sav_train/sav_NNN/VIDEO.mp4 with VIDEO_manual.json and VIDEO_auto.json, "
        f"or sav_val/{PICTURES}/VIDEO/*.jpg with sav_val/{MASKS}/VIDEO/OBJECT/*.png"
    )
    extra_columns: ClassVar[Mapping[str, str]] = {"area": "float32", "rle_hash": "uint64"}
    extra_fields = (replace(AREA, meaning="pixels of the mask, counted"),)
    group_columns: ClassVar[Mapping[str, str]] = {
        "annotation": "str",
        "masklet_type": "str",
        "place": "int32",
        "size_hw": "int32",
        "fault": "str",
    }
    row_columns = (*Tracks.row_columns, *extra_columns)
    schema = Schema([*Tracks.schema.fields, MASK, *extra_fields, MASKLET_TYPE])

    def __init__(
        self,
        root: Path | str,
        *,
        split: Literal["train", "val", "test"] | None = None,
        annotations: Literal["manual", "auto", "both"] = "both",
        videos: tuple[str, ...] = (),
        boxes: Literal["read", "index"] = "read",
    ) -> None:
        self.split = split
        self.annotations = annotations
        self.videos = videos
        self.boxes = boxes
        self._base, self._is_train = "", True
        self._pool = VideoPool()
        self._parsed = ParsedFiles()
        options = {"split": split, "annotations": annotations, "videos": videos, "boxes": boxes}
        super().__init__(root, options=options)

    def fault(self, files: Files) -> str:
        """No part with annotation of either layout."""
        return "" if self._find(files) else self._missing(files)

    def _missing(self, files: Files) -> str:
        parts = [name for name in files.names() if name.startswith("sav_")][:5]
        wanted = f"sav_{self.split}" if self.split else "sav_train, sav_val or sav_test"
        return f"no {wanted} with {PICTURES} and {MASKS}, or with *_manual.json or *_auto.json" + (
            f"; there is {', '.join(parts)}" if parts else ""
        )

    def _find(self, files: Files) -> tuple[str, bool] | None:
        """Folder of the part, with a slash at its end, and whether it has the train layout."""
        splits = [self.split] if self.split else ["train", "val", "test"]
        for base, split in [*((f"sav_{each}/", each) for each in splits), *(("", each) for each in splits)]:
            if split == "train" and _has_json(files, base):
                return base, True
            if split != "train" and files.exists(base + PICTURES) and files.exists(base + MASKS):
                return base, False
        return None

    def _stamps(self) -> Iterable[object]:
        self._base, self._is_train = self._find(self.files) or ("", True)
        if self._is_train:
            for stem, has in self._train_files().items():
                yield stem, *(self.files.stamp(f"{stem}_{kind}.json") for kind in _KINDS if kind in has)
                if "mp4" not in has:
                    yield "no mp4"
            return
        yield from frames_stamps(self.files, self._base, self.videos, with_masks=self.boxes == "index")

    def column(self, name: str) -> np.ndarray:
        """As `Tracks.column`, and `area`.

        Raises:
            UsageError: boxes and what follows from them are asked for in a val or test layout opened with boxes="read".
        """
        if name in _FROM_MASK and not self._is_train and self.boxes == "read":
            raise UsageError(
                f"{self.root}: {name} of all rows needs every PNG: open with boxes='index', which reads them"
            )
        return super().column(name)

    def describe(self) -> dict[str, object]:
        """Layout, masklets by type, videos, rows whose video is not there (train layout), hidden rows (where they are known
        without reading masks)."""
        kinds, counts = np.unique(self.index.texts("masklet_type"), return_counts=True)
        known = self._is_train or self.boxes == "index"
        return {
            "layout": "train" if self._is_train else "val",
            "part": self._base.rstrip("/") or ".",
            "masklets": {str(kind): int(count) for kind, count in zip(kinds, counts, strict=True)},
            "videos": len(set(self.index.texts("video"))),
            "rows_without_video": int(((self.index["flags"] & NO_PICTURE) != 0).sum()) if self._is_train else None,
            "absent_rows": int(self.column("absent").sum()) if known else None,
            "damaged_rows": int(np.isnan(self.index["area"]).sum()) if known else None,
        }

    def _build(self) -> Index:
        index = super()._build()
        unknown = sorted(set(self.videos) - set(index.texts("video")))
        if unknown:
            reasons = "; ".join(problem.message for problem in index.problems[:3])
            raise UsageError(
                f"{self.root}: no rows of the videos {', '.join(unknown[:10])}{': ' if reasons else ''}{reasons}"
            )
        return index

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        if self._is_train:
            return self._train_tracks(problems)
        return frames_tracks(self.files, self._base, self.videos, problems, read_masks=self.boxes == "index")

    def _train_files(self) -> dict[str, list[str]]:
        """Videos of the train layout, path without suffix, by name, and which files each has: mp4, manual, auto."""
        found: dict[str, list[str]] = {}
        for path in _shard_files(self.files, self._base):
            for kind, end in _ENDS.items():
                if path.endswith(end):
                    found.setdefault(path.removesuffix(end), []).append(kind)
        wanted = set(self.videos)
        order = sorted(found, key=lambda stem: (stem.rpartition("/")[2], stem))
        return {stem: found[stem] for stem in order if not wanted or stem.rpartition("/")[2] in wanted}

    def _train_tracks(self, problems: list[Problem]) -> Iterator[Track]:
        seen: dict[str, str] = {}
        lone: dict[str, dict[str, None]] = {}
        for stem, has in self._train_files().items():
            video = stem.rpartition("/")[2]
            if video in seen:
                problems.append(
                    Problem(stem, "BadData", f"the video is there twice: {seen[video]} is read, {stem} is not")
                )
                continue
            seen[video] = stem
            if has == ["mp4"]:
                problems.append(Problem(f"{stem}.mp4", "BadData", "no _manual.json and no _auto.json: no rows"))
            for kind in _KINDS if self.annotations == "both" else (self.annotations,):
                if kind not in has:
                    continue
                path = f"{stem}_{kind}.json"
                try:
                    masklets = parse_masklets(self.files.read(path), str(self.files.root / path))
                except BadData as error:
                    problems.append(Problem(path, "BadData", f"{error}; its rows are not there"))
                    continue
                problems += [Problem(path, "BadData", message) for message in masklets.problems]
                if "mp4" not in has:
                    lone.setdefault(stem.rpartition("/")[0], {})[video] = None
                yield from self._masklets(stem, kind, masklets, is_absent="mp4" not in has)
        for folder, videos in lone.items():
            message = f"no MP4 of {some(list(videos))}: their rows are there, and fail when the picture is read"
            problems.append(Problem(folder or ".", "SourceNotFound", message))

    def _masklets(self, stem: str, kind: str, masklets: Masklets, *, is_absent: bool) -> Iterator[Track]:
        video = stem.rpartition("/")[2]
        places = np.arange(len(masklets.entries))
        for place, target in enumerate(masklets.ids):
            boxes, areas, hashes = masklet_columns(masklets, place)
            if masklets.fault:
                boxes[:], areas[:] = np.nan, np.nan
            yield Track(
                video=video,
                target=target,
                name=f"{video}/{kind}/{target}",
                fps=FPS,
                folder=f"{stem}.mp4",
                numbers=places,
                frames=places * STRIDE,
                boxes=boxes,
                absent=areas == 0,
                missing=np.full(len(places), is_absent),
                extra={"area": areas, "rle_hash": hashes},
                about={
                    "annotation": f"{stem}_{kind}.json",
                    "masklet_type": kind,
                    "place": place,
                    "size_hw": masklets.size_hw,
                    "fault": masklets.fault,
                },
            )

    def _picture(self, folder: str, number: int) -> str:
        return folder if self._is_train else f"{folder}/{number:05d}.jpg"

    def _mask_path(self, row: int) -> str:
        annotation = self.index.text("annotation", self.group_of(row))
        return annotation if self._is_train else f"{annotation}/{int(self.index['number'][row]):05d}.png"

    def _pictures(self, row: int) -> Sequence[str]:
        return [self._path(row)] if self._is_train else [self._path(row), self._mask_path(row)]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        group = self.group_of(row)
        fault = self.index.text("fault", group)
        if fault:
            raise BadData(f"{self.root}: {self._mask_path(row)}: {fault}")
        mask = None
        if "mask" in fields or (fields & _FROM_MASK and np.isnan(self.index["area"][row])):
            mask = self._rle_mask(row) if self._is_train else read_mask(self.files, self._mask_path(row))
        record = super()._record(row, fields - _FROM_MASK, memo)
        record["masklet_type"] = self.index.text("masklet_type", group)
        if mask is not None:
            record |= _seen(mask)
            image = record.get("image")
            if isinstance(image, np.ndarray) and image.shape[:2] != mask.shape:
                raise BadData(
                    f"{self.root}: {self._path(row)} is {image.shape[0]} x {image.shape[1]} (height x width), "
                    f"its mask {self._mask_path(row)} is {mask.shape[0]} x {mask.shape[1]}"
                )
        return record

    def _rle_mask(self, row: int) -> np.ndarray:
        """The mask of a row of the train layout: (H, W) uint8, 0 or 1."""
        group, number = self.group_of(row), int(self.index["number"][row])
        path, place = self.index.text("annotation", group), int(self.index["place"][group])
        height, width = self.index["size_hw"][group].tolist()
        where = f"{self.files.root / path}: masklet[{number}][{place}]"
        entries = self._parsed.entries(self.files, path)
        if number >= len(entries) or place >= len(entries[number]):
            raise BadData(f"{where}: expected the mask of object {place}, got a shorter list")
        rle = entries[number][place]
        if rle_hash(rle) != int(self.index["rle_hash"][row]):
            raise BadData(f"{where}: the file changed since the source was opened; open it again")
        try:
            if not isinstance(rle, Mapping):
                raise BadData(f"expected RLE (size and counts), got {type(rle).__name__}")
            return np.ascontiguousarray(decode_rle(rle, (height, width)))
        except BadData as error:
            raise BadData(f"{where}: {error}") from error

    def _frame(self, row: int, memo: Memo) -> np.ndarray:
        if not self._is_train:
            return super()._frame(row, memo)
        path, frame = self._path(row), int(self.index["frame"][row])
        wanted = memo.once("frames", lambda: self._frames_of(memo.rows))[path]
        height, width = self.index["size_hw"][self.group_of(row)].tolist()
        pixels = memo.once(("video", path), lambda: self._video_frames(path, sorted(wanted)))[frame]
        if pixels.shape[:2] != (height, width):
            raise BadData(
                f"{self.root / path}: the annotation says {height} x {width} (height x width), "
                f"the video is {pixels.shape[0]} x {pixels.shape[1]}"
            )
        return pixels

    def _frames_of(self, rows: Sequence[int]) -> dict[str, set[int]]:
        """Which frames of which video the rows need, so that each video is decoded in one pass."""
        frames: dict[str, set[int]] = {}
        for row in rows:
            frames.setdefault(self._path(row), set()).add(int(self.index["frame"][row]))
        return frames

    def _video_frames(self, path: str, frames: list[int]) -> dict[int, np.ndarray]:
        """Frames of a video, ascending, by number; each (H, W, 3) uint8 RGB, read-only."""
        full = self.root / path
        if not full.is_file():
            raise BadData(f"{full}: expected the video of this annotation, got no such file")
        count = len(self._pool.video(full))
        if frames[-1] >= count:
            raise BadData(
                f"{full}: the annotation names frame {frames[-1]}, the video has {count} frames (0..{count - 1})"
            )
        decoded = dict(zip(frames, self._pool.frames(full, frames), strict=True))
        for pixels in decoded.values():
            self._count_picture()
            pixels.flags.writeable = False
        return decoded


def _seen(mask: np.ndarray) -> Record:
    """What follows from a mask."""
    area = int(np.count_nonzero(mask))
    return {
        "mask": mask,
        "box": mask_box(mask),
        "area": np.array(area, np.float32),
        "valid": np.array(area > 0),
        "visible": np.array(area > 0),
        "absent": np.array(area == 0),
    }


def _shard_files(files: Files, base: str) -> Iterator[str]:
    """Files of the train layout: directly in the part, or in its sav_NNN folders."""
    for name in files.names(base):
        if name.endswith((".json", ".mp4")):
            yield base + name
        elif name.startswith("sav_"):
            yield from (f"{base}{name}/{inner}" for inner in files.names(base + name))


def _has_json(files: Files, base: str) -> bool:
    """Whether a manual or auto annotation is among the files."""
    ends = tuple(f"_{kind}.json" for kind in _KINDS)
    return any(path.endswith(ends) for path in _shard_files(files, base))
