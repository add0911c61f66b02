"""Tracks: what readers of tracking datasets share. A row is one frame of one target, a group is that target's track."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from penstock.errors import BadData
from penstock.readers.base import Memo, Reader
from penstock.readers.fields import BOX, CATEGORY, FRAME, IMAGE, OBJECT, PATH, TIME, VALID, VIDEO, VISIBLE
from penstock.readers.index import Index
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

ABSENT = Field(
    name="absent", dtype="bool", kind="flag", meaning="a flag of the dataset says that the target cannot be seen"
)
_BOX = replace(BOX, meaning=f"{BOX.meaning}; NaN where there is no annotation", allows_nan=True)
ANNOTATED, ABSENT_BIT, HIDDEN, NO_PICTURE = 1, 2, 4, 8
"""Bits of the column `flags`."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """One target through one video, as parsed. Arrays have one entry per frame, N of them."""

    video: str
    target: str = "0"
    """The target's id within its video."""
    name: str
    """Name of the group; unique."""
    category: str = ""
    fps: float = float("nan")
    """Frames a second of the pictures listed; NaN where the dataset does not say."""
    folder: str
    """Folder of the pictures, relative to the root."""
    numbers: np.ndarray
    """(N,) int: number of each picture in its file name, as the dataset counts."""
    frames: np.ndarray | None = None
    """(N,) int: position of each row's picture in the video, from 0; None for 0..N-1."""
    boxes: np.ndarray
    """(N, 4) XYWH in pixels, corner from 0; NaN or nothing positive where there is no box."""
    absent: np.ndarray
    """(N,) bool."""
    annotated: np.ndarray | None = None
    """(N,) bool: the annotation has a line for this frame; None for all."""
    hidden: np.ndarray | None = None
    """(N,) bool: not absent, and yet not to be counted as visible, by a flag of the reader's own; None for none."""
    missing: np.ndarray | None = None
    """(N,) bool: the picture was not there when the index was built; None where the reader does not look."""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Columns of the reader's own, (N, ...)."""
    texts: Mapping[str, Sequence[str | bytes]] = field(default_factory=dict)
    """Columns of texts of the reader's own, N each."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What the reader keeps of the track as a whole: a text, a number or several per name."""


class Tracks(Reader):
    """Base of readers whose rows are frames of tracks. A subclass gives `_tracks` and `_picture`.

    Visible means: annotated with a box of positive size, and neither absent nor hidden. The flag decides, not the box: an
    absent target with a full-size box is not visible.

    Boxes and flags of all frames are columns (`column("box")`, `column("flags")`), read without any picture.
    """

    extra_columns: ClassVar[Mapping[str, str]] = {}
    """Columns of the reader's own, name -> dtype; each is also a field, of the same name, in `extra_fields`."""
    extra_fields: ClassVar[tuple[Field, ...]] = ()
    extra_texts: ClassVar[tuple[str, ...]] = ()
    """Columns of texts of the reader's own, one entry per row."""
    group_columns: ClassVar[Mapping[str, str]] = {}
    """What the reader keeps of each track (`Track.about`), name -> dtype, "str" for texts; one entry per group."""
    group_fields: ClassVar[tuple[Field, ...]] = ()
    """Fields that every row of a track has from `group_columns`, of the same name."""
    row_columns: ClassVar[tuple[str, ...]] = ("box", "flags", "number", "frame")
    schema = Schema([IMAGE, _BOX, VALID, VISIBLE, ABSENT, FRAME, TIME, VIDEO, OBJECT, CATEGORY, PATH])

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        """All tracks, in order. Faults of whole files go to the list."""
        raise NotImplementedError

    def _picture(self, folder: str, number: int) -> str:
        """Path of a picture, relative to the root."""
        raise NotImplementedError

    def _build(self) -> Index:
        index = Index()
        tracks = _Columns(self.extra_columns, self.extra_texts, self.group_columns)
        for track in self._tracks(index.problems):
            if len(track.numbers):
                tracks.add(track)
        tracks.put_into(index)
        return index

    def column(self, name: str) -> np.ndarray:
        """As `Reader.column`, and `valid`, `visible`, `absent`, (N,) bool, computed from box and flags."""
        if name not in ("valid", "visible", "absent"):
            return super().column(name)
        flags, boxes = self.index["flags"], self.index["box"]
        absent = (flags & ABSENT_BIT) != 0
        with np.errstate(invalid="ignore"):
            valid = ((flags & ANNOTATED) != 0) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
        visible = valid & ((flags & (ABSENT_BIT | HIDDEN)) == 0)
        found: dict[str, np.ndarray] = {"absent": absent, "valid": valid, "visible": visible}
        return found[name]

    def describe(self) -> dict[str, object]:
        """Tracks, videos, classes, visible and absent frames."""
        categories, counts = np.unique(self.index.texts("category"), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:20]
        return {
            "tracks": len(self.groups),
            "videos": len(set(self.index.texts("video"))),
            "visible_rows": int(self.column("visible").sum()),
            "absent_rows": int(self.column("absent").sum()),
            "rows_without_annotation": int(((self.index["flags"] & ANNOTATED) == 0).sum()),
            "classes": len(categories),
            "largest_classes": {str(categories[number]): int(counts[number]) for number in order},
        }

    def _key(self, row: int) -> str:
        return f"{self.index.text('group', self.group_of(row))}/{int(self.index['frame'][row]):08d}"

    def _pictures(self, row: int) -> Sequence[str]:
        return [self._path(row)]

    def _path(self, row: int) -> str:
        return self._picture(self.index.text("folder", self.group_of(row)), int(self.index["number"][row]))

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        group = self.group_of(row)
        box, flags = self.index["box"][row], int(self.index["flags"][row])
        positive = bool(flags & ANNOTATED) and bool(box[2] > 0) and bool(box[3] > 0)
        if flags & ANNOTATED and not np.isfinite(box).all() and not flags & ABSENT_BIT and "box" in fields:
            raise BadData(f"{self.root}: {self._key(row)}: box {box.tolist()}: expected four finite numbers")
        frame = int(self.index["frame"][row])
        record: Record = {
            "box": box.copy(),
            "valid": np.array(positive),
            "visible": np.array(positive and not flags & (ABSENT_BIT | HIDDEN)),
            "absent": np.array(bool(flags & ABSENT_BIT)),
            "frame": np.array(frame, np.int32),
            "time": np.array(frame / float(self.index["fps"][group])),
            "video": self.index.text("video", group),
            "object": self.index.text("target", group),
            "category": self.index.text("category", group),
            "path": self._path(row),
        }
        record |= {extra.name: self.index[extra.name][row] for extra in self.extra_fields}
        for own in self.group_fields:
            record[own.name] = self.index.text(own.name, group) if own.is_text else self.index[own.name][group]
        if "image" in fields:
            record["image"] = self._frame(row, memo)
        return record

    def _frame(self, row: int, memo: Memo) -> np.ndarray:
        """The picture of a row; a reader of video files overrides it."""
        return self._image(self._path(row), memo)


class _Columns:
    """Tracks put one behind another."""

    def __init__(self, extra: Mapping[str, str], extra_texts: Sequence[str], about: Mapping[str, str]) -> None:
        self.dtypes = {"box": "float32", "flags": "uint8", "number": "int32", "frame": "int32", **extra}
        self.row_texts: dict[str, list[str | bytes]] = {name: [] for name in extra_texts}
        self.about = about
        self.abouts: dict[str, list[object]] = {name: [] for name in about}
        self.rows: dict[str, list[np.ndarray]] = {name: [] for name in self.dtypes}
        self.texts: dict[str, list[str | bytes]] = {
            name: [] for name in ("group", "video", "target", "category", "folder")
        }
        self.fps: list[float] = []

    def add(self, track: Track) -> None:
        count = len(track.numbers)
        annotated = np.ones(count, bool) if track.annotated is None else track.annotated
        frames = np.arange(count) if track.frames is None else track.frames
        flags = annotated * ANNOTATED + track.absent * ABSENT_BIT
        for bit, marked in ((HIDDEN, track.hidden), (NO_PICTURE, track.missing)):
            if marked is not None:
                flags = flags + marked * bit
        columns = {"box": track.boxes, "flags": flags, "number": track.numbers, "frame": frames, **track.extra}
        for name, dtype in self.dtypes.items():
            self.rows[name].append(np.asarray(columns[name], dtype))
        for name, column in self.row_texts.items():
            column += track.texts[name]
        for name, values in self.abouts.items():
            values.append(track.about[name])
        texts = (track.name, track.video, track.target, track.category, track.folder)
        for column, text in zip(self.texts.values(), texts, strict=True):
            column.append(text)
        self.fps.append(track.fps)

    def put_into(self, index: Index) -> None:
        lengths = [len(numbers) for numbers in self.rows["number"]]
        index.put("starts", np.concatenate([[0], np.cumsum(lengths)]), "int64")
        index.put("fps", self.fps, "float64")
        for name, parts in self.rows.items():
            empty = np.zeros((0, 4) if name == "box" else (0,))
            index.put(name, np.concatenate(parts) if parts else empty, self.dtypes[name])
        for name, texts in (self.texts | self.row_texts).items():
            index.put_texts(name, texts)
        for name, values in self.abouts.items():
            if self.about[name] == "str":
                index.put_texts(name, (str(value) for value in values))
            else:
                index.put(name, values, self.about[name])
