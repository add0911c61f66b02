"""The ledger of a part: `_rows.bin` (how each row ended), `keys.txt` (its id), `_failures.jsonl` (why it failed)."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import StoreCorrupt
from penstock.store.disk import Disk

MISSING, DONE, FAILED = 0, 1, 2
"""States of a row. A missing row's record is all zeros."""

ROWS, KEYS, FAILURES = "_rows.bin", "keys.txt", "_failures.jsonl"

_CHUNK = 1 << 16


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Says of a file of a part that is not there what it means to who has the store open.

    Raises:
        StoreCorrupt: it is not there.
    """
    try:
        yield
    except FileNotFoundError as error:
        message = "gone: the part was sealed or replaced since this store was opened; open it again"
        raise StoreCorrupt(f"{path}: {message}") from error


def rows_dtype(num_files: int) -> np.dtype:
    """One record of `_rows.bin`, padded to a power of two of at most 512 bytes, so that no record straddles a sector.

    state: 0 missing, 1 done, 2 failed. cheap, content, origin: the row's input keys (see `Candidate`). position: the
    record's place in the data files (the row itself, but in a v1 directory). sums: xxh3_64 of the row's bytes in each
    file. check: xxh3_64 of everything before it; a record whose check is wrong counts as missing.
    """
    names = ["state", "cheap", "content", "origin", "position", "sums"]
    formats: list[object] = ["u1", "<u8", "<u8", "<u8", "<i8", ("<u8", (num_files,))]
    size = 64
    while size < 48 + 8 * num_files:
        size *= 2
    offsets = [0, 8, 16, 24, 32, 40, size - 8]
    return np.dtype({"names": [*names, "check"], "formats": [*formats, "<u8"], "offsets": offsets, "itemsize": size})


def stamp(records: np.ndarray) -> np.ndarray:
    """Fills in the `check` of each record, in place, and gives the array back."""
    raw = records.view(np.uint8).reshape(len(records), -1)
    records["check"] = [xxhash.xxh3_64_intdigest(row[:-8].data) for row in raw]
    return records


class Ledger:
    """Reads and writes the ledger in one folder. Writing goes through the caller's Disk, under the caller's claim."""

    def __init__(self, folder: Path, num_files: int) -> None:
        self.folder = folder
        self.dtype = rows_dtype(num_files)

    @cached_property
    def rows_path(self) -> Path:
        """Path of `_rows.bin`."""
        return self.folder / ROWS

    def __len__(self) -> int:
        return self.rows_path.stat().st_size // self.dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """Records of rows start..stop-1; one whose check is wrong comes back as missing (all zeros)."""
        size = self.dtype.itemsize
        with opening(self.rows_path), self.rows_path.open("rb") as file:
            raw = os.pread(file.fileno(), (stop - start) * size, start * size)
        if len(raw) != (stop - start) * size:
            expected = f"{stop * size} bytes for {stop} rows"
            raise StoreCorrupt(
                f"{self.rows_path}: expected {expected}, found {start * size + len(raw)}; run penstock verify"
            )
        records = np.frombuffer(raw, self.dtype).copy()
        view = memoryview(raw)
        for index in np.flatnonzero(records["state"]):
            row = view[index * size : (index + 1) * size]
            if xxhash.xxh3_64_intdigest(row[:-8]) != records["check"][index]:
                records[index] = np.zeros((), self.dtype)
        return records

    def chunks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """The records of the first `rows` rows, some at a time: (first row, records)."""
        for start in range(0, rows, _CHUNK):
            yield start, self.read(start, min(rows, start + _CHUNK))

    def states(self, rows: int) -> np.ndarray:
        """The state of each of the first `rows` rows, uint8."""
        found = [np.asarray(records["state"]) for _, records in self.chunks(rows)]
        return np.concatenate(found) if found else np.zeros(0, np.uint8)

    def write(self, disk: Disk, rows: Sequence[int], records: np.ndarray) -> None:
        """Writes one record per row; does not flush."""
        order = np.argsort(rows, kind="stable")
        numbers = np.asarray(rows)[order]
        size = self.dtype.itemsize
        # As bytes: copying structured values leaves the padding between fields undefined.
        raw = stamp(records).view(np.uint8).reshape(-1, size)[order].data.cast("B")
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1).tolist()
        for start, stop in itertools.pairwise([*starts, len(numbers)]):  # runs of consecutive rows, a write each
            disk.write(self.rows_path, raw[start * size : stop * size], int(numbers[start]) * size)

    def reset(self, disk: Disk, rows: Sequence[int]) -> None:
        """Marks rows as missing and flushes: what follows may overwrite their bytes."""
        blank = bytes(self.dtype.itemsize)
        for row in rows:
            disk.write(self.rows_path, blank, row * self.dtype.itemsize)
        disk.sync(self.rows_path)

    def append_failures(self, disk: Disk, failures: Iterable[dict[str, object]]) -> None:
        """Adds a line per failure and flushes."""
        path = self.folder / FAILURES
        lines = "".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
        size = path.stat().st_size if path.exists() else 0
        torn = size and path.read_bytes()[-1:] != b"\n"
        if not size:
            disk.resize(path, 0)
        disk.write(path, (("\n" if torn else "") + lines).encode(), size)
        disk.sync(path)

    def failures(self) -> dict[str, dict[str, object]]:
        """The last recorded failure of each key that has one; lines torn by a power cut are passed over."""
        path = self.folder / FAILURES
        found: dict[str, dict[str, object]] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    failure = json.loads(line)
                except ValueError:
                    continue
                if isinstance(failure, dict) and "key" in failure:
                    found[str(failure["key"])] = failure
        return found
