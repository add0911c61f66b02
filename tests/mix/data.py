"""Small sources in memory, and the bytes of what a mixture gives: for the tests of mixtures."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.draws import TrackTable
from penstock.mix_source import Mixed
from penstock.readers.fields import IMAGE, MASK
from penstock.schema import Field, Record, Schema
from penstock.source import Group, Lookup, check_index

SENTENCE = Field(name="sentence", dtype="str", kind="text", meaning="a human's words")
VIEW = Field(name="view", dtype="uint8", kind="number", meaning="1 or 2")
SIDE = 4


class Pictures:
    """Rows with a picture and a mask that depend on (name, row); some raise what `bad` says.

    Args:
        name: in keys and pixels.
        rows: how many.
        bad: row -> an error to raise, or a function that spoils the record.
        stored_pairs: rows 2k and 2k + 1 are the two views of a pair.
        images: rows of a group.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        *,
        bad: Mapping[int, Exception | Callable[[Record], None]] | None = None,
        stored_pairs: bool = False,
        images: int = 1,
    ) -> None:
        self.name, self.rows, self.bad, self.images = name, rows, dict(bad or {}), images
        extra = [VIEW] if stored_pairs else []
        self.schema = Schema([IMAGE, MASK, SENTENCE, *extra])
        self.read_rows: list[int] = []

    @property
    def keys(self) -> Sequence[str]:
        """`name/row`."""
        return Lookup(self.rows, lambda row: f"{self.name}/{row}")

    @property
    def groups(self) -> Sequence[Group]:
        """`images` rows each."""
        starts = range(0, self.rows, self.images)
        return [Group(f"g{start}", start, min(start + self.images, self.rows)) for start in starts]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Record:
        row = check_index(index, self.rows)
        self.read_rows.append(row)
        number = int.from_bytes(hashlib.blake2b(f"{self.name}/{row}".encode(), digest_size=4).digest(), "little")
        image = np.full((SIDE, SIDE, 3), number & 255, np.uint8)
        image[0, 0] = (number >> 8 & 255, number >> 16 & 255, number >> 24)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[row % SIDE, number % SIDE] = 1
        record: Record = {"image": image, "mask": mask, "sentence": f"row {row}" if self.name == "words" else ""}
        if "view" in self.schema:
            record["view"] = np.asarray(row % 2 + 1, np.uint8)
        fault = self.bad.get(row)
        if isinstance(fault, Exception):
            raise copy.copy(fault)  # raised itself, it would keep the frames of whoever caught it, and their threads
        if fault is not None:
            fault(record)
        return record

    def digest(self) -> str:
        """Of the rows, whatever their faults: damage on a disk does not change what a reader says of itself either."""
        return f"{self.name}:{self.rows}"


class Tracks(Pictures):
    """Pictures that are `length` frames of a track each, 4 frames apart at `fps`."""

    def __init__(
        self, name: str, tracks: int, length: int, *, fps: float = 24.0, hidden: Sequence[int] = (), **options: Any
    ) -> None:
        super().__init__(name, tracks * length, **options)
        self.tracks, self.length, self.fps, self.hidden = tracks, length, fps, list(hidden)

    def track_table(self) -> TrackTable:
        """Boxes grow along the track."""
        rows = np.arange(self.rows)
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (self.rows, 1))
        boxes[:, 2:] += (rows % self.length)[:, None]
        visible = ~np.isin(rows, self.hidden)
        return TrackTable(
            name=self.name, starts=np.arange(self.tracks + 1) * self.length, boxes=boxes, valid=np.ones(self.rows, bool),
            visible=visible, frames=(rows % self.length * 4).astype(np.int32), fps=np.full(self.tracks, self.fps),
            names=[f"t{n}" for n in range(self.tracks)], categories=[""] * self.tracks,
        )  # fmt: skip


APART = ("failures", "retries")
"""Fields that say how reading went; all others are the sample."""


def sample_bytes(record: Mapping[str, Any], names: Sequence[str]) -> bytes:
    """The sample as bytes: every field but those of `APART`."""
    return b"".join(
        value.encode() + b"\0" if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
        for value in (record[name] for name in names if name not in APART)
    )


def batch_bytes(batch: Mapping[str, Any], names: Sequence[str]) -> list[bytes]:
    """The samples of a batch, in order."""
    count = len(batch["source"])
    return [sample_bytes({name: batch[name][one] for name in names}, names) for one in range(count)]


def digest(samples: Sequence[bytes]) -> str:
    """Of samples, in order."""
    return hashlib.sha256(b"".join(samples)).hexdigest()


def samples_of(mixed: Mixed, start: int, stop: int) -> list[bytes]:
    """The samples at these positions, each made alone."""
    return [sample_bytes(mixed[position], list(mixed.schema)) for position in range(start, stop)]
