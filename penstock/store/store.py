"""Store: a source that penstock wrote. `open_store` opens penstock's own layout and v1 directories alike."""

import bisect
import ctypes
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import SchemaError
from penstock.schema import Record, Schema
from penstock.source import check_index
from penstock.store.keys import Keys
from penstock.store.layout import Layout
from penstock.store.manifest import Manifest, PartEntry, read_steadily
from penstock.store.part import Part
from penstock.store.rows import DONE, FAILED, Ledger


class Store:
    """Rows of fixed records on disk; a Source, and a map-style dataset for torch's DataLoader.

    Opening reads the manifest only. `store[i]` gives zero-copy, read-only views; `gather` fills the caller's buffers.
    Safe across fork, pickling and threads. Usually made by `open_store`.
    """

    def __init__(self, path: Path, schema: Schema, parts: Sequence[Part], attributes: Mapping[str, object]) -> None:
        self.path = path
        self.schema = schema
        self.parts = list(parts)
        self.attributes = dict(attributes)
        self._ends = np.cumsum([part.rows for part in parts], dtype=np.int64).tolist()
        self._fixed = [field.name for field in schema.fields if not field.is_variable]

    @property
    def keys(self) -> Sequence[str]:
        """Ids by row; looked up on disk, never held as a list."""
        return _StoreKeys(self)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        """The record of a row: field -> read-only view (str for text).

        Raises:
            IndexError: out of range.
            RowMissing, RowFailed: the row holds nothing.
        """
        part, row = self._locate(check_index(index, len(self)))
        return part.record(row)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Writable copies of several records, read as one batch; torch's DataLoader fetches this way."""
        rows = np.array([check_index(index, len(self)) for index in indices], np.int64)
        out = {
            name: np.empty((len(rows), *self.schema[name].item_shape), self.schema[name].dtype) for name in self._fixed
        }
        self.gather(rows, None, out)
        records: list[Record] = [{name: out[name][number] for name in self._fixed} for number in range(len(rows))]
        variable = [name for name in self.schema if name not in out]
        for number, row in enumerate(rows.tolist() if variable else []):
            part, local = self._locate(row)
            found = part.record(local, variable)
            records[number] |= {n: v if isinstance(v, str) else v.copy() for n, v in found.items()}
        return records

    def read(self, index: int, fields: Sequence[str]) -> Record:
        """As `store[index]`, with some fields only."""
        self.schema.select(fields)
        part, row = self._locate(check_index(index, len(self)))
        return part.record(row, fields)

    def find(self, key: str) -> int:
        """The row of an id.

        Raises:
            KeyError: no row has it.
        """
        for part, end in zip(self.parts, self._ends, strict=True):
            found = part.keys.find([key])
            if found:
                return int(end) - part.rows + found[key]
        raise KeyError(key)

    def gather(
        self, rows: np.ndarray, fields: Sequence[str] | None, out: Mapping[str, np.ndarray], *, io: str = "mmap"
    ) -> None:
        """Copies fixed fields of many rows into arrays the caller owns. Releases the GIL; safe from many threads.

        Args:
            rows: (N,) int64, each in 0..len-1; any order, repeats allowed.
            fields: names of fixed fields; None for all of them.
            out: for each field an array of shape (N, *field.shape) and the field's type.
            io: "mmap" copies from the maps; "pread" reads straight into `out`; "direct" does so past the page cache for
                fields of 64 KiB and more.

        Raises:
            IndexError: a row is out of range.
            RowMissing, RowFailed: a row holds nothing.
            SchemaError: a field is unknown or of variable length, or an array in `out` has another shape or type.
        """
        rows = np.asarray(rows, np.int64)
        names = self._fixed if fields is None else list(fields)
        self._check_gather(rows, names, out)
        if not len(rows):
            return
        if len(self.parts) == 1:
            self.parts[0].require_done(rows, 0)
            self.parts[0].gather(rows, names, out, io)
            return
        owners = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owners).tolist():
            part = self.parts[number]
            places = np.flatnonzero(owners == number)
            start = self._ends[number] - part.rows
            local = rows[places] - start
            part.require_done(local, start)
            part.gather(local, names, out, io, None if len(places) == len(rows) else places)

    def column_views(self, name: str) -> list[np.ndarray]:
        """A fixed field of every row, without a copy: an array of shape (rows, *field.shape) for each part, in row order.

        Read-only views into the maps, for those who go over a whole column. Rows of `done_rows()` hold data; in the
        others stands whatever the file has there.

        Raises:
            SchemaError: the field is unknown or of variable length.
        """
        if name not in self._fixed:
            raise SchemaError(f"column_views: {name} is no fixed field; those are {', '.join(self._fixed)}")
        return [part.column(name) for part in self.parts]

    def done_rows(self) -> np.ndarray | None:
        """Rows that are done, int64, ascending; None if every row is."""
        if all(part.whole for part in self.parts):
            return None
        states = np.concatenate([part.states() for part in self.parts]) if self.parts else np.zeros(0, np.uint8)
        return np.flatnonzero(states == DONE).astype(np.int64)

    def counts(self) -> dict[str, int]:
        """Rows planned, done, failed and missing."""
        states = [np.bincount(part.states(), minlength=3) for part in self.parts if not part.whole]
        total = np.sum(states, axis=0) if states else np.zeros(3, np.int64)
        done = int(total[DONE]) + sum(part.rows for part in self.parts if part.whole)
        return {"planned": len(self), "done": done, "failed": int(total[FAILED]), "missing": int(total[0])}

    def digest(self) -> str:
        """Identity of this snapshot: schema, parts, and which rows are done. Changes when rows are added or recomputed."""
        digest = xxhash.xxh3_128(repr([field.to_json() for field in self.schema.fields]).encode())
        for part in self.parts:
            digest.update(f"{part.rows} {part.digest()}\n".encode())
        return digest.hexdigest()

    def residency(self, rows: Sequence[int] | np.ndarray, fields: Sequence[str] | None = None) -> float:
        """Share of the pages under these rows that the page cache holds, 0..1; 1.0 where the system cannot say."""
        names = self._fixed if fields is None else [name for name in fields if name in self._fixed]
        spans = []
        for row in np.asarray(rows).tolist():
            part, local = self._locate(row)
            spans += part.residency(np.array([local]), names)
        return _resident_share(spans)

    def warm(self, fields: Sequence[str] | None = None, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads fixed fields once, in order, into the page cache: small rows in random order would cost a seek each.

        Args:
            fields: names of fixed fields; None for all of them.
            stopped: asked every few megabytes; True ends it.
        """
        names = self._fixed if fields is None else [name for name in fields if name in self._fixed]
        for part in self.parts:
            part.warm(names, stopped)

    def _locate(self, index: int) -> tuple[Part, int]:
        number = bisect.bisect_right(self._ends, index)
        part = self.parts[number]
        return part, index - (self._ends[number] - part.rows)

    def _check_gather(self, rows: np.ndarray, names: Sequence[str], out: Mapping[str, np.ndarray]) -> None:
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"{self.path}: rows must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        for name in names:
            if name not in self.schema or self.schema[name].is_variable:
                raise SchemaError(f"gather: {name} is no fixed field; those are {', '.join(self._fixed)}")
            field = self.schema[name]
            expected = (len(rows), *field.item_shape)
            if name not in out or out[name].shape != expected or out[name].dtype != field.numpy_dtype:
                found = f"{out[name].shape} {out[name].dtype}" if name in out else "nothing"
                raise SchemaError(f"gather: out[{name!r}]: expected {expected} {field.numpy_dtype}, got {found}")


class _StoreKeys(Sequence[str]):
    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # rows only, no slices: they would build lists
        part, row = self._store._locate(check_index(index, len(self)))
        return part.keys[row]


def open_parts(path: Path, *, newest: bool = False) -> Store:
    """Opens a store of penstock's own layout; sizes of all files are checked, no row is read.

    Args:
        path: its folder.
        newest: of a part that is being computed anew the next version, as its writer sees it.

    Raises:
        SourceNotFound, StoreUnsupported, StoreCorrupt: see `Manifest.load` and `Part.check_sizes`.
    """

    def opened(manifest: Manifest) -> Store:
        layout = Layout.of(manifest.schema)
        entries = [
            replace(one, name=one.draft, draft="", sealed=False) if newest and one.draft else one
            for one in manifest.parts
        ]
        parts = [open_part(path, one, layout) for one in entries]
        return Store(path, manifest.schema, parts, manifest.attributes)

    return read_steadily(path, opened)


def open_part(path: Path, entry: PartEntry, layout: Layout) -> Part:
    """Opens one part as the manifest describes it."""
    folder = path / entry.name
    rows = committed_rows(folder, entry, layout) if entry.growing else entry.rows
    whole = entry.sealed and not entry.failed
    keys = Keys(folder, rows, sealed=entry.sealed)
    part = Part(folder, layout, rows, keys, sealed=entry.sealed, whole=whole, ledger=folder, digest=entry.digest)
    sizes = layout.sealed_sizes(rows, dict(entry.blob_bytes)) if entry.sealed else layout.open_sizes(rows)
    part.check_sizes(sizes, exact=entry.sealed)
    return part


def committed_rows(folder: Path, entry: PartEntry, layout: Layout) -> int:
    """Rows of a part that still grows: up to the last committed one, for later keys may be torn."""
    states = Ledger(folder, len(layout.file_names)).states(entry.rows)
    used = np.flatnonzero(states)
    return int(used[-1]) + 1 if len(used) else 0


def _resident_share(spans: Sequence[tuple[mmap.mmap, int, int]]) -> float:
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None or not spans:
        return 1.0
    bases = {
        id(data): np.frombuffer(data, np.uint8).ctypes.data
        for data in {id(span[0]): span[0] for span in spans}.values()
    }
    flags = ctypes.create_string_buffer(max(length for _, _, length in spans) // mmap.PAGESIZE + 2)
    held = total = 0
    for data, start, length in spans:
        first = start - start % mmap.PAGESIZE
        size = start + length - first
        if mincore(ctypes.c_void_p(bases[id(data)] + first), ctypes.c_size_t(size), flags) != 0:
            return 1.0
        pages = -(-size // mmap.PAGESIZE)
        held += (
            sum(flag & 1 for flag in flags.raw[:pages])
            if pages < 64
            else int((np.frombuffer(flags.raw, np.uint8, pages) & 1).sum())
        )
        total += pages
    return held / total
