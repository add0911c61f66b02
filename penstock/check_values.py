"""Reads every record of a part once: its checksums, and its values by what each field is. Knows no manifest."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from penstock.check_boxes import BoxEvidence
from penstock.schema import Field
from penstock.store.layout import IDX_DTYPE, BlobFile, Layout, RecordFile

CHUNK_BYTES = 32 << 20
"""Bytes of records held at a time."""
SUM_TOLERANCE = 1e-3
MAX_SIDE = 65_535

_WEIGHTS = re.compile(r"(fg|bg)_map_\d+x\d+")
_TOGETHER = ("bboxes", "masks", "image_shape", "num_bboxes", "has_bbox")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, suspicious or worth knowing."""

    code: str
    """Stable word for programs: "checksum", "torn-record", "not-finite" ..."""
    where: str
    """File, with its folder inside the store, or file and field."""
    message: str
    """What, where, expected, found, and what to do."""
    rows: int = 0
    """How many rows it concerns; 0 where it is not about rows."""
    first_row: int = -1
    """The first of them; -1 where there is none."""
    key: str = ""
    """The key of that row, where it has one."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


class Tally:
    """Faults of rows, counted by code and place; of each the first row is kept."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[object]] = {}

    def add(self, code: str, where: str, rows: np.ndarray, message: str) -> None:
        """Counts these rows, ascending; the message is what all rows of this code and place have in common."""
        if len(rows):
            entry = self._found.setdefault((code, where), [message, 0, int(rows[0])])
            entry[1] = int(str(entry[1])) + len(rows)

    def findings(self, key_of: Callable[[int], str]) -> Iterator[Finding]:
        """One finding for each code and place."""
        for (code, where), (message, count, first) in self._found.items():
            row, number = int(str(first)), int(str(count))
            key = key_of(row)
            text = f"{where}: {message}: {number:,} row{'s' * (number > 1)}, first row {row} ({key})"
            yield Finding(code=code, where=where, message=text, rows=number, first_row=row, key=key)


@dataclass(kw_only=True)
class Columns:
    """The data files of one part, as a scan reads them. Rows are records of the files, counted from 0."""

    folder: Path
    layout: Layout
    rows: int
    """Rows to visit."""
    sealed: bool = True
    first: int = 0
    """Row of the store that record 0 is."""
    label: str = ""
    """Before file names in messages: "part-00000/"."""
    ledger: Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]
    """For rows start..stop-1: (n,) bool, which are done, and (n, files) uint64 checksums or None."""


@dataclass(kw_only=True)
class Scan:
    """What a scan has found so far."""

    tally: Tally = field(default_factory=Tally)
    boxes: BoxEvidence = field(default_factory=BoxEvidence)
    damaged: list[int] = field(default_factory=list)
    """Done rows (of the store) whose bytes are gone or other than their checksum says; a row may be there twice."""
    unknown_sums: int = 0
    """Done rows without checksums."""
    unreadable: list[str] = field(default_factory=list)
    """Files that the system could not read, with its reason."""
    values: bool = True
    """Whether values are looked at too, or checksums only."""


def scan(columns: Columns, found: Scan, on_rows: Callable[[int], None]) -> None:
    """Visits every record of the part; `on_rows` is told how many rows were visited since it was last called."""
    with ExitStack() as stack:
        files = _Files(columns, stack, found)
        blob_bytes = sum(path.stat().st_size for path in columns.folder.glob("*.blob"))
        row_bytes = max(1, columns.layout.row_bytes + blob_bytes // max(1, columns.rows))
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, columns.rows, step):
            stop = min(columns.rows, start + step)
            _scan_chunk(files, start, stop)
            on_rows(stop - start)


class _Files:
    """Descriptors and buffers of one scan."""

    def __init__(self, columns: Columns, stack: ExitStack, found: Scan) -> None:
        self.columns = columns
        self.found = found
        self._stack = stack
        self._descriptors: dict[str, int | None] = {}
        self._buffers: dict[str, np.ndarray] = {}
        self._whole = {file.name: self._size(file.name) // file.record_bytes for file in columns.layout.records}

    def records(self, file: RecordFile, start: int, stop: int) -> np.ndarray:
        """(n, record_bytes) uint8 of the rows that the file holds whole, in a buffer that the next chunk reuses."""
        count = max(0, min(stop, self._whole[file.name]) - start)
        size = count * file.record_bytes
        buffer = self._buffers.get(file.name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[file.name] = np.empty(size, np.uint8)
        got = self.read_into(file.name, buffer[:size].data, start * file.record_bytes)
        return buffer[: got // file.record_bytes * file.record_bytes].reshape(-1, file.record_bytes)

    def read(self, name: str, size: int, offset: int) -> bytes:
        """So many bytes, or fewer where the file ends or cannot be read."""
        room = max(0, min(size, self._size(name) - offset))
        content = bytearray(room)
        return bytes(content[: self.read_into(name, memoryview(content), offset)])

    def read_into(self, name: str, target: memoryview, offset: int) -> int:
        """Fills the target; gives the number of bytes read."""
        descriptor = self._descriptor(name)
        done = 0
        try:
            while descriptor is not None and done < len(target):
                count = os.preadv(descriptor, [target[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            self.found.unreadable.append(f"{self.columns.label}{name}: byte {offset + done}: {error.strerror}")
        return done

    def _size(self, name: str) -> int:
        descriptor = self._descriptor(name)
        return 0 if descriptor is None else os.fstat(descriptor).st_size

    def _descriptor(self, name: str) -> int | None:
        if name not in self._descriptors:
            try:
                descriptor = os.open(self.columns.folder / name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._descriptors[name] = None  # its absence is reported with the sizes
            else:
                self._stack.callback(os.close, descriptor)
                self._descriptors[name] = descriptor
        return self._descriptors[name]


def _scan_chunk(files: _Files, start: int, stop: int) -> None:
    columns, found = files.columns, files.found
    done, sums = columns.ledger(start, stop)
    if sums is not None:
        found.unknown_sums += int((done & ~sums.any(axis=1)).sum())
    together: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, file in enumerate(columns.layout.records):
        raw = files.records(file, start, stop)
        there = done[: len(raw)]
        _lost(files, start, np.flatnonzero(done[len(raw) :]) + len(raw))
        if sums is not None:
            known = np.flatnonzero(there & (sums[: len(raw), number] != 0))
            wrong = [row for row in known.tolist() if xxhash.xxh3_64_intdigest(raw[row].data) != sums[row, number]]
            _damaged(files, file.name, start, np.array(wrong, np.int64))
        for slot in file.slots if found.values else ():
            values = raw.reshape(-1).view(file.dtype)[slot.field.name]
            rows = np.flatnonzero(there)
            _tally(files, file.name, slot.field, values if len(rows) == len(raw) else values[rows], rows + start)
            if slot.field.name in _TOGETHER:
                together[slot.field.name] = values[rows], rows + start
    for number, blob in enumerate(columns.layout.blobs, len(columns.layout.records)):
        owned = _scan_blob(files, blob, start, done, None if sums is None else sums[:, number])
        if owned is not None and found.values:
            _tally(files, blob.blob, blob.field, *owned)
            if blob.field.name in _TOGETHER:
                together[blob.field.name] = owned
    if found.values:
        _tally_flags(files, together)
        found.boxes.add(together, columns.first)


def _damaged(files: _Files, name: str, start: int, rows: np.ndarray) -> None:
    where = f"{files.columns.label}{name}"
    numbers = rows + start + files.columns.first
    files.found.tally.add("checksum", where, numbers, "the bytes are not those that were committed")
    files.found.damaged.extend(numbers.tolist())


def _lost(files: _Files, start: int, rows: np.ndarray) -> None:
    files.found.damaged.extend((rows + start + files.columns.first).tolist())  # the size says so in the findings


def _scan_blob(
    files: _Files, blob: BlobFile, start: int, done: np.ndarray, sums: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Checks the values of a variable field. Gives its elements and the row of each; None for text and JPEG."""
    sealed, first = files.columns.sealed, files.columns.first
    index_name = blob.name if sealed else blob.open_name
    size = IDX_DTYPE.itemsize
    raw = files.read(index_name, len(done) * size, start * size)
    index = np.frombuffer(raw[: len(raw) // size * size], IDX_DTYPE)
    _lost(files, start, np.flatnonzero(done[len(index) :]) + len(index))
    wrong, misfit, arrays, owners = [], [], [], []
    for row in np.flatnonzero(done[: len(index)]).tolist():
        segment, offset, length = (int(value) for value in index[row])
        name = blob.blob if sealed else blob.segment(segment)
        content = files.read(name, length, offset)
        known = sums is not None and sums[row] != 0
        if len(content) != length or (known and sums is not None and xxhash.xxh3_64_intdigest(content) != sums[row]):
            wrong.append(row)
        elif not _is_value(blob.field, content):
            misfit.append(row)
        elif not blob.field.is_text and blob.field.kind != "jpeg":
            array = np.frombuffer(content, blob.field.numpy_dtype).reshape(-1, *blob.field.item_shape)
            arrays.append(array)
            owners.append(np.full(len(array), row + start, np.int64))
    _damaged(files, blob.blob, start, np.array(wrong, np.int64))
    rows = np.array(misfit, np.int64) + start + first
    expected = {"jpeg": "a JPEG"}.get(blob.field.kind, "UTF-8 text" if blob.field.is_text else "whole elements")
    files.found.tally.add("not-a-value", f"{files.columns.label}{blob.blob}", rows, f"expected {expected}")
    return (np.concatenate(arrays), np.concatenate(owners)) if arrays else None


def _is_value(kind: Field, content: bytes) -> bool:
    if kind.kind == "jpeg":
        return content[:2] == b"\xff\xd8"
    if not kind.is_text:
        return not kind.item_bytes or len(content) % kind.item_bytes == 0
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _tally(files: _Files, name: str, kind: Field, values: np.ndarray, rows: np.ndarray) -> None:
    """Counts the rows whose values a field of this kind cannot have; `rows` is ascending and may repeat."""
    if not len(values):
        return
    where = f"{files.columns.label}{name}: {kind.name}"
    for code, message, bad in bad_values(kind, values):
        if bad.any():
            files.found.tally.add(code, where, np.unique(rows[bad]) + files.columns.first, message)


def bad_values(kind: Field, values: np.ndarray) -> Iterable[tuple[str, str, np.ndarray]]:
    """What values of a field cannot be: (code, what is wrong, (n,) bool: which).

    Args:
        kind: the field.
        values: (n, ...) of the field's type; n rows, or n elements of a variable field.
    """
    flat = values.reshape(len(values), -1)
    if values.dtype.kind == "f":
        finite = (np.isfinite(flat) | (np.isnan(flat) & kind.allows_nan)).all(axis=1)
        yield "not-finite", "infinite" if kind.allows_nan else "NaN or infinite", ~finite
        if _WEIGHTS.fullmatch(kind.name):
            with np.errstate(invalid="ignore", over="ignore"):
                sums = flat.sum(axis=1, dtype=np.float64)
                yield "negative-weight", "weights below 0", finite & (flat.min(axis=1) < 0)
                off = (np.abs(sums - 1) > SUM_TOLERANCE) & (sums != 0)
            yield "weight-sum", f"expected a sum of 1 within {SUM_TOLERANCE}, or all zeros", finite & off
    if kind.kind == "mask" and values.dtype.kind in "ui":
        yield "not-binary", "expected 0 and 1 only", (flat.max(axis=1) > 1) | (flat.min(axis=1) < 0)
    if values.dtype.kind == "b":
        yield "not-binary", "expected bytes 0 and 1 only", np.ascontiguousarray(flat).view(np.uint8).max(axis=1) > 1
    if kind.name == "image_shape" and flat.shape[1] == 3:
        sides = flat[:, :2]
        good = (sides >= 1).all(axis=1) & (sides <= MAX_SIDE).all(axis=1) & np.isin(flat[:, 2], (1, 3, 4))
        yield "image-shape", f"expected height and width of 1..{MAX_SIDE} and 1, 3 or 4 channels", ~good


def _tally_flags(files: _Files, together: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """has_bbox against num_bboxes, and boxes against masks where a row has several."""
    columns, tally = files.columns, files.found.tally
    if {"has_bbox", "num_bboxes"} <= set(together):
        (has, rows), (count, others) = together["has_bbox"], together["num_bboxes"]
        if np.array_equal(rows, others):
            bad = ~np.isin(has, (0, 1)) | (count < 0) | ((has == 1) != (count > 0))
            message = "expected has_bbox 1 where num_bboxes is above 0, else both 0"
            tally.add("box-flags", f"{columns.label}has_bbox, num_bboxes", rows[bad] + columns.first, message)
    several = {name for name in ("bboxes", "masks") if any(b.field.name == name for b in columns.layout.blobs)}
    if several == {"bboxes", "masks"}:
        counts = [together[name][1] if name in together else np.zeros(0, np.int64) for name in ("bboxes", "masks")]
        rows = np.unique(np.concatenate(counts))
        differ = [int(row) for row in rows if (counts[0] == row).sum() != (counts[1] == row).sum()]
        message = "expected one mask per box"
        tally.add("mask-count", f"{columns.label}bboxes, masks", np.array(differ, np.int64) + columns.first, message)


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A descriptor for positioned reads."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
