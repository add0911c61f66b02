"""Where refined frames go: each map and its confidence as files of their own, the rest as a row of the store beside them.

A worker writes both files, flushed, under other names, and renames them; then the row. The driver flushes the folders and
commits the row. So a done row has its files, whatever happened in between; a file without a row is made anew.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from penstock.errors import PartClaimed, RowError, SourceNotFound, StoreCorrupt
from penstock.refine_files import Existing, Outputs
from penstock.schema import Record, Schema
from penstock.source import Candidate
from penstock.stages.refine import CONTENTS
from penstock.store import Store, StoreSink
from penstock.store.commit import Admission, Commit
from penstock.store.disk import Disk
from penstock.store.layout import Layout
from penstock.store.manifest import Manifest, read_steadily
from penstock.store.store import open_parts
from penstock.store.write import Encoded, RowWriter, Ticket, Written

Read = TypeVar("Read")
PART_ROWS = 1024
"""Frames of a part: what a driver claims at once, so that several hosts can share a run."""


class FrameWriter(RowWriter):
    """What a worker writes with: the contents of a record become files, the rest a row."""

    def __init__(self, schema: Schema, layout: Layout, disk: Disk, outputs: Outputs) -> None:
        super().__init__(schema, layout, disk)
        self.outputs = outputs

    def encode(self, record: Record) -> Encoded:
        """The row's values and the files' bytes.

        Raises:
            SchemaError: the record does not fit the schema.
        """
        rest = super().encode({name: value for name, value in record.items() if name not in CONTENTS})
        return rest | {name: np.asarray(record[name]) for name in CONTENTS}

    def write_rows(self, folder: Path, position: int, rows: Sequence[Encoded]) -> list[Written]:
        """Puts the files of each row in their places, the confidence before its map; then writes the rows.

        Raises:
            OutputFull: no room.
        """
        sizes = [self._put_files(row) for row in rows]
        written = super().write_rows(folder, position, rows)
        return [replace(one, size=one.size + size) for one, size in zip(written, sizes, strict=True)]

    def _put_files(self, row: Encoded) -> int:
        ids, confidence = (row[name].tobytes() for name in CONTENTS)
        if not ids:
            return 0  # somebody else's map is kept
        path = row["path"].tobytes().decode()
        for name, content in ((self.outputs.confidence(path), confidence), (self.outputs.file(path), ids)):
            self._put(self.outputs.root / name, content)
        return len(ids) + len(confidence)

    def _put(self, path: Path, content: bytes) -> None:
        """Writes a file aside, flushes it, and renames it; the folder is flushed by the driver, once for many."""
        fresh = path.with_name(f"{path.name}.new")
        self.disk.make_directory(path.parent)
        fresh.unlink(missing_ok=True)
        try:
            self.disk.write(fresh, content, 0)
            self.disk.sync(fresh)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            self.disk.close(fresh)
        os.replace(fresh, path)


class RefineSink(StoreSink):
    """A store whose rows have files elsewhere (see `penstock.store.StoreSink`).

    A done row whose files are gone, or of another size than recorded, is computed anew. What penstock had made of a frame
    that fails now is removed; somebody else's map never is.

    Args:
        outputs: where the files lie; the store is `outputs.store`.
        schema: of the stage, with its files.
        existing: "replace" computes the frames anew for which somebody else's map was kept.
        identity, attributes, provenance, durability, part_rows, disk: as `StoreSink`.

    Attributes:
        foreign: keys of the frames to be computed in whose place somebody else's map was.
    """

    def __init__(
        self,
        outputs: Outputs,
        schema: Schema,
        *,
        existing: Existing,
        identity: Mapping[str, object],
        attributes: Mapping[str, object],
        provenance: Mapping[str, object],
        durability: str = "power",
        part_rows: int | None = None,
        disk: Disk | None = None,
    ) -> None:
        super().__init__(
            outputs.store,
            rows_schema(schema),
            identity=identity,
            attributes=attributes,
            provenance=provenance,
            durability=durability,
            part_rows=part_rows or PART_ROWS,
            disk=disk,
        )
        self.outputs = outputs
        self.existing = existing
        self.foreign: list[str] = []
        self._unflushed: set[Path] = set()
        self._rows = NewestRows(outputs.store)

    def writer(self) -> FrameWriter:
        """What a worker writes rows with; pickles."""
        return FrameWriter(self.schema, self.layout, self.disk.for_worker(), self.outputs)

    def admit(
        self, candidates: Sequence[Candidate], *, retry_failed: bool = False, grow: bool = False
    ) -> list[Admission]:
        """As `StoreSink.admit`; a done row without its files is to be computed."""
        admitted = super().admit(candidates, retry_failed=retry_failed, grow=grow)
        found = [self._checked(*pair) for pair in zip(candidates, admitted, strict=True)]
        for candidate, admission in zip(candidates, found, strict=True):
            if admission.verdict == "compute" and self.outputs.is_foreign(candidate.origin):
                self.foreign.append(candidate.key)
        return found

    def commit(self, commit: Commit) -> None:
        """Takes one finished row; of a failed one the files of an earlier run are removed."""
        if commit.written is None:
            self.outputs.remove(commit.source)
        names = self.outputs.file(commit.source), self.outputs.confidence(commit.source)
        self._unflushed |= {(self.outputs.root / name).parent for name in names}
        super().commit(commit)

    def flush(self) -> None:
        """The folders of the files first, then the rows."""
        for folder in sorted(self._unflushed):
            if folder.is_dir():
                self.disk.sync_directory(folder)
        self._unflushed.clear()
        super().flush()

    def _checked(self, candidate: Candidate, admission: Admission) -> Admission:
        if admission.verdict not in ("done", "compare"):
            return admission
        try:
            row = self._row_files(candidate.key)
        except RowError:  # another driver computes it anew since it was admitted
            ticket: Ticket | None = self.recompute(candidate)
            return Admission(verdict="compute", ticket=ticket) if ticket else Admission(verdict="held")
        sizes = self.outputs.sizes(candidate.origin)
        why = why_anew(row, sizes, self.existing)
        if not why:
            return admission
        ticket = self.recompute(candidate)
        if ticket is None:
            return Admission(verdict="held")
        if why == "files gone":  # a map of the size that we wrote is ours although its confidence is gone
            is_ours = not int(np.asarray(row["kept_existing"])) and sizes[0] == int(np.asarray(row["file_bytes"]))
            self.outputs.remove(candidate.origin, is_ours=is_ours)
        return Admission(verdict="compute", ticket=ticket)

    def _row_files(self, key: str) -> Record:
        """`ROW_FILES` of a done row."""
        try:
            return self._rows.read(key, ROW_FILES)
        except (KeyError, RowError):  # another driver has done it since the store was opened
            return self._rows.reread(key, ROW_FILES)


ROW_FILES = ("kept_existing", "file_bytes", "confidence_bytes")
"""What `why_anew` asks of a row."""


def why_anew(row: Record, sizes: tuple[int, int], existing: Existing) -> str:
    """Why a done row with unchanged input is computed again: "files gone", "replace existing", or "" where it is not.

    Args:
        row: its `ROW_FILES`.
        sizes: bytes of its map and of its confidence as they are now.
        existing: as in `RefineSink`.
    """
    kept, file_bytes, confidence_bytes = (int(np.asarray(row[name])) for name in ROW_FILES)
    if kept and existing == "replace":
        return "replace existing"
    has_files = sizes[0] == file_bytes and (kept or sizes[1] == confidence_bytes)
    return "" if has_files else "files gone"


def rows_schema(schema: Schema) -> Schema:
    """What the store holds of the stage's records: all but the files."""
    return Schema(field for field in schema.fields if field.name not in CONTENTS)


def places_of(store: Store) -> dict[str, int]:
    """The row of each key: for many keys, where `Store.find` would look into every part for each."""
    return {key: row for row, key in enumerate(chain.from_iterable(part.keys for part in store.parts))}


def open_rows(path: Path) -> Store:
    """The store as its writer sees it: of a part that is being computed anew the next version. An empty one where there is
    none yet."""
    try:
        return open_parts(path, newest=True)
    except SourceNotFound:
        return Store(path, Schema([]), [], {})


class NewestRows:
    """Rows by key of a store as `open_rows` opens it: opened again where another driver sealed or replaced what is read.

    Args:
        path: its folder.
        store: it, where it is open already.
    """

    def __init__(self, path: Path, store: Store | None = None) -> None:
        self.path = path
        try:
            self._take(open_rows(path) if store is None else store)
        except StoreCorrupt:
            read_steadily(path, lambda manifest: self._take(open_rows(path)))

    def read(self, key: str, fields: Sequence[str]) -> Record:
        """As `Store.read`.

        Raises:
            KeyError: the store had no such row when it was opened.
            RowMissing, RowFailed: the row holds nothing.
            StoreCorrupt: a file is not what it should be, and nobody has replaced it.
        """
        try:
            return self._store.read(self._places[key], fields)
        except StoreCorrupt:
            return self.reread(key, fields)

    def reread(self, key: str, fields: Sequence[str]) -> Record:
        """As `read`, of the store as it is now."""

        def again(manifest: Manifest) -> Record:
            self._take(open_parts(self.path, newest=True))
            return self._store.read(self._places[key], fields)

        return read_steadily(self.path, again)

    def _take(self, store: Store) -> None:
        self._places = places_of(store)
        self._store = store


def read_rows(path: Path, read: Callable[[Store], Read]) -> Read:
    """What `read` finds in a store as `open_rows` opens it: again where another driver sealed, replaced or began anew what
    was read meanwhile.

    Raises:
        StoreCorrupt: a file is not what it should be, and nobody has replaced it.
        PartClaimed: there is no store any more.
    """
    while True:
        try:
            return read_steadily(path, lambda manifest: read(open_parts(path, newest=True)))
        except RowError:
            continue  # of a row that was done, and is being computed anew
        except SourceNotFound as error:
            raise PartClaimed(f"{path} is gone: another driver replaced it; run again") from error
