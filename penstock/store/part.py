"""Reading one part: memory maps opened on first use, zero-copy records, and batches gathered into the caller's buffers."""

import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import RowFailed, RowMissing, StoreCorrupt
from penstock.schema import Record, Value
from penstock.store.direct import read_direct
from penstock.store.keys import Keys
from penstock.store.layout import IDX_DTYPE, BlobFile, Layout, RecordFile, Slot, check_sizes
from penstock.store.rows import DONE, FAILED, KEYS, Ledger, opening

_scratch = threading.local()

_WARM_BYTES = 4 << 20
_PROBED_BYTES = 64 << 10
"""Of a field's value so much is looked for in the page cache: all of a large one would take milliseconds."""
_SMALL_RECORD = 1 << 16
"""Below this many bytes one take of whole records beats a copy per row."""


class Part:
    """Rows of one folder. Safe across fork, threads and pickling: descriptors and maps are per object, read-only, positional."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        rows: int,
        keys: Keys,
        *,
        sealed: bool,
        whole: bool,
        ledger: Path | None = None,
        digest: str = "",
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.rows = rows
        self.keys = keys
        self.sealed = sealed
        self.whole = whole
        """Whether every row is known to be done, so that no state need be looked up."""
        self.ledger = ledger
        """Folder of `_rows.bin`; None where nobody kept one."""
        self.known_digest = digest
        """The manifest's digest of a sealed part."""
        self._done: np.ndarray | None = None
        self._maps: dict[str, mmap.mmap] = {}
        self._descriptors: dict[tuple[str, bool], int] = {}

    def __getstate__(self) -> dict[str, object]:
        state = {**self.__dict__, "_maps": {}, "_descriptors": {}, "_done": None}
        state.pop("_slots", None)
        return state

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)

    def check_sizes(self, sizes: Mapping[str, int], *, exact: bool) -> None:
        """Compares the size of every file with what it must be.

        Raises:
            StoreCorrupt: a file is shorter (or, if `exact`, longer); the first row that is not whole is named.
        """
        for path, expected, found in check_sizes(self.folder, dict(sizes)):
            if found > expected and not exact:
                continue
            record = next((file.record_bytes for file in self.layout.records if file.name == path.name), 0)
            row = f"; row {max(found, 0) // record} is not whole" if record and found < expected else ""
            raise StoreCorrupt(
                f"{path}: expected {expected} bytes, found {found}{row}; run penstock verify {self.folder.parent}"
            )

    def record(self, row: int, names: Sequence[str] | None = None) -> Record:
        """The record as read-only views into the maps; str for text fields.

        Raises:
            RowMissing, RowFailed: the row holds nothing.
        """
        if not self.whole:
            self._check_done(row)
        found: Record = {}
        for name, file, slot in self._slots:
            if names is None or name in names:
                field = slot.field
                start = row * file.record_bytes + slot.offset
                found[name] = np.ndarray(field.item_shape, field.numpy_dtype, self._map(file.name), start)
        for blob in self.layout.blobs:
            if names is None or blob.field.name in names:
                found[blob.field.name] = self._blob_value(blob, row)
        return found

    def column(self, name: str) -> np.ndarray:
        """A fixed field of all rows, (rows, *field.shape), read-only, without a copy. States are not looked at.

        Raises:
            KeyError: there is no such fixed field.
        """
        for found, file, slot in self._slots:
            if found == name:
                if not self.rows:
                    return np.zeros((0, *slot.field.item_shape), slot.field.numpy_dtype)
                records: np.ndarray = np.ndarray((self.rows,), file.dtype, self._map(file.name))
                return records[name]
        raise KeyError(name)

    def gather(
        self,
        rows: np.ndarray,
        names: Sequence[str],
        out: Mapping[str, np.ndarray],
        io: str,
        places: np.ndarray | None = None,
    ) -> None:
        """Copies fixed fields of rows into `out[name]`: row number k to its k-th entry, or to entry `places[k]`."""
        for file in self.layout.records:
            slots = [slot for slot in file.slots if slot.field.name in names]
            if not slots:
                continue
            if io != "mmap" and (io == "pread" or file.record_bytes >= _SMALL_RECORD):
                self._read_rows(file, slots, rows, out, places, direct=io == "direct")
            elif file.is_dense and places is None and out[slots[0].field.name].flags.c_contiguous:
                self._take(file, rows, out[slots[0].field.name])
            elif file.record_bytes < _SMALL_RECORD:
                self._take_records(file, slots, rows, out, places)
            else:
                for slot in slots:
                    self._copy_rows(file, slot, rows, out[slot.field.name], places)

    def require_done(self, rows: np.ndarray, start: int) -> None:
        """Looks up the states of these rows; `start` is the part's first row in the store, for the message.

        Raises:
            RowMissing, RowFailed: one of them holds nothing.
        """
        if self.whole:
            return
        if self._done is None or not self._done[rows].all():
            self._done = self.states() == DONE  # a done row stays done: a wrong answer can only be an old "not yet"
        for number in np.flatnonzero(~self._done[rows])[:1].tolist():
            self._check_done(int(rows[number]), start)

    def states(self) -> np.ndarray:
        """State of every row, uint8."""
        if self.whole or self.ledger is None:
            return np.full(self.rows, DONE, np.uint8)
        return Ledger(self.folder, len(self.layout.file_names)).states(self.rows)

    def digest(self) -> str:
        """Identity of the rows: the manifest's, or one made from the ledger, or from the keys where there is no ledger."""
        if self.known_digest:
            return self.known_digest
        digest = xxhash.xxh3_128(f"{self.rows}\n".encode())
        if self.ledger is not None:
            ledger = Ledger(self.ledger, len(self.layout.file_names))
            for _, records in ledger.chunks(len(ledger)):
                digest.update(records["state"].tobytes() + records["sums"].tobytes())
        elif (self.folder / KEYS).exists():
            digest.update((self.folder / KEYS).read_bytes())
        return digest.hexdigest()

    def residency(self, rows: np.ndarray, names: Sequence[str]) -> list[tuple[mmap.mmap, int, int]]:
        """Where these fields of the rows begin: (map, first byte, number of bytes), for measuring what is cached."""
        spans = []
        for name, file, slot in self._slots:
            if name in names:
                starts = rows * file.record_bytes + slot.offset
                spans += [
                    (self._map(file.name), int(start), min(slot.field.item_bytes, _PROBED_BYTES)) for start in starts
                ]
        return spans

    @cached_property
    def _slots(self) -> list[tuple[str, RecordFile, Slot]]:
        return [(slot.field.name, file, slot) for file in self.layout.records for slot in file.slots]

    def warm(self, names: Sequence[str], stopped: Callable[[], bool]) -> None:
        """Reads the files of these fixed fields once, in order, so that the page cache holds them."""
        buffer = bytearray(_WARM_BYTES)
        for file in self.layout.records:
            if not any(slot.field.name in names for slot in file.slots):
                continue
            descriptor = self._descriptor(file.name, direct=False)
            for start in range(0, self.rows * file.record_bytes, _WARM_BYTES):
                if stopped():
                    return
                os.preadv(descriptor, [buffer], start)

    def _map(self, name: str) -> mmap.mmap:
        found = self._maps.get(name)
        if found is None:
            with opening(self.folder / name), (self.folder / name).open("rb") as file:
                found = self._maps.setdefault(name, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return found

    def _array(self, file: RecordFile) -> np.ndarray:
        return np.ndarray((self.rows,), f"V{file.record_bytes}", self._map(file.name))

    def _take(self, file: RecordFile, rows: np.ndarray, out: np.ndarray) -> None:
        # Rows as opaque bytes: one memcpy a row. mode="raise" would copy the output twice; the rows were checked before.
        target = out.reshape(len(rows), -1).view(f"V{file.record_bytes}").reshape(len(rows))
        np.take(self._array(file), rows, axis=0, out=target, mode="clip")

    def _take_records(
        self,
        file: RecordFile,
        slots: Sequence[Slot],
        rows: np.ndarray,
        out: Mapping[str, np.ndarray],
        places: np.ndarray | None,
    ) -> None:
        records = _scratch_rows(len(rows), file.record_bytes)
        np.take(self._array(file), rows, axis=0, out=records, mode="clip")
        fields = records.view(file.dtype)
        for slot in slots:
            out[slot.field.name][... if places is None else places] = fields[slot.field.name]

    def _copy_rows(
        self, file: RecordFile, slot: Slot, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None
    ) -> None:
        shape, dtype = slot.field.item_shape, slot.field.numpy_dtype
        data = self._map(file.name)
        for place, row in zip(_listed(places, rows), rows.tolist(), strict=True):
            out[place] = np.ndarray(shape, dtype, data, row * file.record_bytes + slot.offset)

    def _read_rows(
        self,
        file: RecordFile,
        slots: Sequence[Slot],
        rows: np.ndarray,
        out: Mapping[str, np.ndarray],
        places: np.ndarray | None,
        *,
        direct: bool,
    ) -> None:
        for slot in slots:
            direct_here = direct and slot.field.item_bytes >= _SMALL_RECORD
            descriptor = self._descriptor(file.name, direct=direct_here)
            for place, row in zip(_listed(places, rows), rows.tolist(), strict=True):
                target = out[slot.field.name][place : place + 1].data.cast("B")
                start = row * file.record_bytes + slot.offset
                done = read_direct(descriptor, target, start) if direct_here else _read_full(descriptor, target, start)
                if done != len(target):
                    expected = f"{len(target)} bytes of {slot.field.name} at byte {start}"
                    raise StoreCorrupt(f"{self.folder / file.name}: row {row}: expected {expected}, got {done}")

    def _descriptor(self, name: str, *, direct: bool) -> int:
        found = self._descriptors.get((name, direct))
        if found is None:
            flags = os.O_RDONLY | os.O_CLOEXEC | (getattr(os, "O_DIRECT", 0) if direct else 0)
            with opening(self.folder / name):
                fresh = os.open(self.folder / name, flags)
            found = self._descriptors.setdefault((name, direct), fresh)
            if found != fresh:
                os.close(fresh)
        return found

    def _blob_value(self, blob: BlobFile, row: int) -> Value:
        index = np.ndarray(
            (), IDX_DTYPE, self._map(blob.name if self.sealed else blob.open_name), row * IDX_DTYPE.itemsize
        )
        segment, offset, length = (int(index[name]) for name in ("segment", "offset", "length"))
        field = blob.field
        if not length:
            return "" if field.is_text else np.zeros((0, *field.item_shape), field.numpy_dtype)
        name = blob.blob if self.sealed else blob.segment(segment)
        data = self._map(name)
        if offset + length > len(data):
            self._maps.pop(name)  # the segment grew since it was mapped
            data = self._map(name)
        if offset + length > len(data):
            raise StoreCorrupt(f"{self.folder / name}: row {row}: expected {offset + length} bytes, found {len(data)}")
        if field.is_text:
            return data[offset : offset + length].decode()
        return np.ndarray((length // field.item_bytes, *field.item_shape), field.numpy_dtype, data, offset)

    def _check_done(self, row: int, start: int = 0) -> None:
        ledger = Ledger(self.folder, len(self.layout.file_names))
        state = ledger.read(row, row + 1)["state"][0]
        if state == DONE:
            return
        key = self.keys[row]
        where = f"{self.folder}: row {row + start} ({key})"
        if state == FAILED:
            failure = ledger.failures().get(key, {})
            reason = f"{failure.get('error', 'error')}: {failure.get('message', 'no reason recorded')}"
            raise RowFailed(f"{where} failed: {reason}")
        raise RowMissing(f"{where} was never computed; run the job again, or ask done_rows() which are there")


def _read_full(descriptor: int, target: memoryview, start: int) -> int:
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], start + done)
        if not count:
            break
        done += count
    return done


def _listed(places: np.ndarray | None, rows: np.ndarray) -> Sequence[int]:
    if places is None:
        return range(len(rows))
    found: list[int] = places.tolist()
    return found


def _scratch_rows(rows: int, record_bytes: int) -> np.ndarray:
    """Warm memory of this thread for so many records: touching fresh memory would cost more than the copy."""
    size = rows * record_bytes
    buffer: np.ndarray | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _scratch.buffer = np.zeros(size, np.uint8)
    return buffer[:size].view(f"V{record_bytes}")
