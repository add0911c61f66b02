"""RowWriter: what a worker does with a computed record. Tickets and outcomes travel to and fro, pixels never."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import SchemaError
from penstock.schema import Record, Schema
from penstock.store.disk import Disk
from penstock.store.layout import IDX_DTYPE, BlobFile, Layout, RecordFile


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

    def write(self, folder: Path, position: int, record: Record) -> Written:
        """Writes one record.

        Raises:
            SchemaError: the record does not fit the schema.
            OutputFull: no room.
        """
        arrays = self._encode(record)
        sums, size = [], 0
        files = [str(folder / file.name) for file in self.layout.records]
        for file in self.layout.records:
            content = self._fixed(file, arrays)
            self.disk.write(folder / file.name, content, position * file.record_bytes)
            sums.append(xxhash.xxh3_64_intdigest(content))
            size += file.record_bytes
        for blob in self.layout.blobs:
            content = arrays[blob.field.name].reshape(-1).view(np.uint8).data
            files += self._append(folder, blob, position, content)
            sums.append(xxhash.xxh3_64_intdigest(content))
            size += len(content)
        return Written(sums=tuple(sums), files=tuple(files), size=size)

    def _encode(self, record: Record) -> dict[str, np.ndarray]:
        if set(record) != set(self.schema):
            missing, extra = sorted(set(self.schema) - set(record)), sorted(set(record) - set(self.schema))
            raise SchemaError(f"record: missing fields {missing}, unknown fields {extra}")
        return {name: self.schema[name].encode(value) for name, value in record.items()}

    def _fixed(self, file: RecordFile, arrays: Mapping[str, np.ndarray]) -> memoryview:
        if file.is_dense:
            return arrays[file.slots[0].field.name].reshape(-1).view(np.uint8).data
        buffer = self._buffers[file.name]
        for slot in file.slots:
            raw = arrays[slot.field.name].reshape(-1).view(np.uint8)
            buffer[slot.offset : slot.offset + raw.size] = raw
        return buffer.data

    @cached_property
    def _buffers(self) -> dict[str, np.ndarray]:
        return {file.name: np.zeros(file.record_bytes, np.uint8) for file in self.layout.records if not file.is_dense}

    def _append(self, folder: Path, blob: BlobFile, position: int, content: memoryview) -> list[str]:
        index_path = folder / blob.open_name
        key = folder / blob.field.name
        number, end = self._segments.get(key) or (self._claim_segment(folder, blob), 0)
        path = folder / blob.segment(number)
        if len(content):
            self.disk.write(path, content, end)
        self._segments[key] = number, end + len(content)
        entry = np.array((number, end, len(content)), IDX_DTYPE)
        self.disk.write(index_path, memoryview(entry.tobytes()), position * IDX_DTYPE.itemsize)
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
