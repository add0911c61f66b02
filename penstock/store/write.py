"""RowWriter: what a worker does with a computed record. Tickets and outcomes travel to and fro, pixels never."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import SchemaError
from penstock.schema import Field, Record, Schema
from penstock.store.disk import Disk
from penstock.store.layout import IDX_DTYPE, BlobFile, Layout, RecordFile

Encoded = dict[str, np.ndarray]
"""A record's values as they go to disk: C-contiguous, little-endian."""

_JOINED_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Leave to write one row: where it goes, and what it was made from."""

    key: str
    folder: Path
    """Folder of the data files."""
    row: int
    """Row in the ledger."""
    position: int
    """Record in the data files."""
    cheap: int = 0
    origin: int = 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a worker says of a row whose bytes it has written."""

    sums: tuple[int, ...]
    """xxh3_64 of the row's bytes in each file, in the order of `Layout.file_names`."""
    files: tuple[str, ...]
    """Files written to: the driver flushes them before it commits."""
    size: int
    """Bytes written."""


class RowWriter:
    """Writes records into the files of planned parts, by position; in any order, from any process.

    Each writer appends variable-length values to segments of its own. It flushes nothing and commits nothing.
    """

    def __init__(self, schema: Schema, layout: Layout, disk: Disk) -> None:
        self.schema = schema
        self.layout = layout
        self.disk = disk
        self._segments: dict[Path, tuple[int, int]] = {}
        self._known_paths: dict[Path, list[Path]] = {}

    def write(self, folder: Path, position: int, record: Record) -> Written:
        """Writes one record.

        Raises:
            SchemaError: the record does not fit the schema.
            OutputFull: no room.
        """
        return self.write_rows(folder, position, [self.encode(record)])[0]

    def encode(self, record: Record) -> Encoded:
        """The record's values as they go to disk.

        Raises:
            SchemaError: the record does not fit the schema.
        """
        if record.keys() != self._names:
            missing, extra = sorted(self._names - set(record)), sorted(set(record) - self._names)
            raise SchemaError(f"record: missing fields {missing}, unknown fields {extra}")
        return {name: field.encode(record[name]) for name, field in self._fields}

    def write_rows(self, folder: Path, position: int, rows: Sequence[Encoded]) -> list[Written]:
        """Writes encoded records at consecutive positions; small ones go to disk together.

        Raises:
            OutputFull: no room.
        """
        sums: list[list[int]] = [[] for _ in rows]
        sizes = [0] * len(rows)
        paths = self._paths(folder)
        files = [str(path) for path in paths]
        for file, path in zip(self.layout.records, paths, strict=True):
            contents = [self._fixed(file, arrays, alone=len(rows) == 1) for arrays in rows]
            self._write_fixed(path, file.record_bytes, position, contents)
            for number, content in enumerate(contents):
                sums[number].append(xxhash.xxh3_64_intdigest(content))
                sizes[number] += file.record_bytes
        for blob in self.layout.blobs:
            values = [arrays[blob.field.name].reshape(-1).view(np.uint8).data for arrays in rows]
            files += self._append(folder, blob, position, values)
            for number, value in enumerate(values):
                sums[number].append(xxhash.xxh3_64_intdigest(value))
                sizes[number] += len(value)
        names = tuple(files)
        return [Written(sums=tuple(row), files=names, size=size) for row, size in zip(sums, sizes, strict=True)]

    def _write_fixed(
        self, path: Path, record_bytes: int, position: int, contents: Sequence[memoryview | bytes]
    ) -> None:
        if record_bytes * len(contents) <= _JOINED_BYTES and len(contents) > 1:
            self.disk.write(path, b"".join(contents), position * record_bytes)
            return
        for number, content in enumerate(contents):
            self.disk.write(path, content, (position + number) * record_bytes)

    def _fixed(self, file: RecordFile, arrays: Encoded, *, alone: bool) -> memoryview | bytes:
        if file.is_dense:
            return arrays[file.slots[0].field.name].reshape(-1).view(np.uint8).data
        buffer = self._buffers[file.name]
        for slot in file.slots:
            raw = arrays[slot.field.name].reshape(-1).view(np.uint8)
            buffer[slot.offset : slot.offset + raw.size] = raw
        return buffer.data if alone else buffer.tobytes()

    @cached_property
    def _names(self) -> set[str]:
        return set(self.schema)

    @cached_property
    def _fields(self) -> list[tuple[str, Field]]:
        return list(self.schema.items())

    def _paths(self, folder: Path) -> list[Path]:
        if folder not in self._known_paths:
            self._known_paths = {folder: [folder / file.name for file in self.layout.records]}
        return self._known_paths[folder]

    @cached_property
    def _buffers(self) -> dict[str, np.ndarray]:
        return {file.name: np.zeros(file.record_bytes, np.uint8) for file in self.layout.records if not file.is_dense}

    def _append(self, folder: Path, blob: BlobFile, position: int, values: Sequence[memoryview]) -> list[str]:
        index_path = folder / blob.open_name
        key = folder / blob.field.name
        number, end = self._segments.get(key) or (self._claim_segment(folder, blob), 0)
        path = folder / blob.segment(number)
        index = np.zeros(len(values), IDX_DTYPE)
        index["segment"] = number
        index["length"] = [len(value) for value in values]
        index["offset"] = end + np.cumsum(index["length"]) - index["length"]
        joined = values[0] if len(values) == 1 else b"".join(values)
        if len(joined):
            self.disk.write(path, joined, end)
        self._segments[key] = number, end + len(joined)
        self.disk.write(index_path, index.tobytes(), position * IDX_DTYPE.itemsize)
        return [str(path), str(index_path)]

    def _claim_segment(self, folder: Path, blob: BlobFile) -> int:
        number = 0
        while True:
            try:
                os.close(os.open(folder / blob.segment(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                number += 1
            else:
                self.disk.resize(folder / blob.segment(number), 0)
                self.disk.sync_directory(folder)
                return number


def runs_of(rows: Sequence[tuple[Ticket, Encoded]]) -> Iterator[tuple[list[Ticket], list[Encoded]]]:
    """Splits rows into runs of consecutive positions in one folder, in the order given."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop < len(rows):
            before, after = rows[stop - 1][0], rows[stop][0]
            if after.folder == before.folder and after.position == before.position + 1:
                continue
        run = rows[start:stop]
        yield [ticket for ticket, _ in run], [encoded for _, encoded in run]
        start = stop
