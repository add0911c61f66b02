"""Where each field lives: files of fixed records, and of variable-length values. Layout v1 is the same with other tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from penstock.errors import SchemaError
from penstock.schema import Field, Schema

IDX_DTYPE = np.dtype([("segment", "<u8"), ("offset", "<u8"), ("length", "<u8")])
"""One row of `<field>.idx.bin`: segment of the blob, first byte in it, number of bytes."""

MAX_FILES = 56
"""More would make a row's record in `_rows.bin` larger than a disk sector."""


@dataclass(frozen=True)
class Slot:
    """A fixed field inside a record: `offset` bytes from the record's first."""

    field: Field
    offset: int


@dataclass(frozen=True)
class RecordFile:
    """A file of fixed records: row i is the `record_bytes` bytes from `i * record_bytes`."""

    name: str
    record_bytes: int
    slots: tuple[Slot, ...]

    @cached_property
    def is_dense(self) -> bool:
        """Whether one field fills the record, so that the file is one C array."""
        return len(self.slots) == 1

    @cached_property
    def dtype(self) -> np.dtype:
        """The record as a structured dtype."""
        return np.dtype(
            {
                "names": [slot.field.name for slot in self.slots],
                "formats": [(slot.field.numpy_dtype, slot.field.item_shape) for slot in self.slots],
                "offsets": [slot.offset for slot in self.slots],
                "itemsize": self.record_bytes,
            }
        )


@dataclass(frozen=True)
class BlobFile:
    """A variable-length field: an index of fixed rows, and segments that hold the bytes."""

    field: Field

    @property
    def name(self) -> str:
        """Name of the index file."""
        return f"{self.field.name}.idx.bin"

    @property
    def blob(self) -> str:
        """Name of the one canonical blob of a sealed part."""
        return f"{self.field.name}.blob"

    @property
    def open_name(self) -> str:
        """Name of the index while the part is written: (segment, offset, length) into the segments."""
        return f"{self.field.name}.open.idx.bin"

    def segment(self, number: int) -> str:
        """Name of a segment of a part that is still written."""
        return f"{self.field.name}.{number}.blob"


@dataclass(frozen=True)
class Layout:
    """The files of one part."""

    records: tuple[RecordFile, ...]
    blobs: tuple[BlobFile, ...]

    @classmethod
    def of(cls, schema: Schema) -> "Layout":
        """The layout of penstock's own stores: fields aligned to their type, records padded to their largest type.

        Raises:
            SchemaError: a field varies in more than its first dimension, or there are more files than a row's record can
                hold checksums for.
        """
        unfit = [f"{field.name} {field.shape}" for field in schema.fields if not field.is_storable]
        if unfit:
            raise SchemaError(
                f"a store holds fields of which only the first dimension varies, got {', '.join(unfit)}; encode them "
                f"(JPEG, PNG, RLE) or bring them to one size first"
            )
        groups: dict[str, list[Field]] = {}
        for field in schema.fields:
            if not field.is_variable:
                groups.setdefault(field.file, []).append(field)
        records = tuple(_aligned(name, group) for name, group in groups.items())
        blobs = tuple(BlobFile(field) for field in schema.fields if field.is_variable)
        if len(records) + len(blobs) > MAX_FILES:
            raise SchemaError(
                f"{len(records) + len(blobs)} files, at most {MAX_FILES}: put small fields into one `file`"
            )
        return cls(records, blobs)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row in all fixed files."""
        return sum(file.record_bytes for file in self.records) + IDX_DTYPE.itemsize * len(self.blobs)

    @cached_property
    def file_names(self) -> tuple[str, ...]:
        """Names in the order of a row's checksums: fixed files, then blobs."""
        return tuple(file.name for file in self.records) + tuple(file.blob for file in self.blobs)

    def open_sizes(self, rows: int) -> dict[str, int]:
        """Name and size of each file that is allocated when a part of so many rows is planned."""
        sizes = {file.name: rows * file.record_bytes for file in self.records}
        return sizes | {file.open_name: rows * IDX_DTYPE.itemsize for file in self.blobs}

    def sealed_sizes(self, rows: int, blob_bytes: dict[str, int]) -> dict[str, int]:
        """Name and size of each data file of a sealed part; `blob_bytes` is keyed by field."""
        sizes = {file.name: rows * file.record_bytes for file in self.records}
        for file in self.blobs:
            sizes |= {file.name: rows * IDX_DTYPE.itemsize, file.blob: blob_bytes[file.field.name]}
        return sizes


def _aligned(name: str, group: Iterable[Field]) -> RecordFile:
    slots = []
    end = 0
    largest = 1
    for field in group:
        align = field.numpy_dtype.alignment
        start = -(-end // align) * align
        slots.append(Slot(field, start))
        end = start + field.item_bytes
        largest = max(largest, align)
    return RecordFile(f"{name}.bin", -(-end // largest) * largest, tuple(slots))


def check_sizes(folder: Path, sizes: dict[str, int]) -> list[tuple[Path, int, int]]:
    """Files whose size on disk is not the one expected: (path, expected bytes, bytes found or -1 where there is none)."""
    wrong = []
    for name, expected in sizes.items():
        path = folder / name
        found = size_of(path)
        if found != expected:
            wrong.append((path, expected, found))
    return wrong


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
