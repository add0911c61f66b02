"""Rewrites boxes, masks and metadata of a v1 directory through new files and renames, with a journal, so that a kill
at any instant leaves either the old rows, or a directory that is refused until the same repair has finished it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from penstock.check_ledger import Lines
from penstock.check_v1 import FILES
from penstock.errors import BadData, StoreCorrupt, UsageError
from penstock.geometry.boxes import xywh_to_xyxy
from penstock.schema import Record
from penstock.store.disk import Disk
from penstock.store.rows import DONE, KEYS, ROWS, Ledger, stamp
from penstock.store.v1 import CONFIG, REBUILDING, SIDE, V1_LAYOUT, read_config
from penstock.store.v1_schema import V1_SCHEMA

JOURNAL = "repair.json"
FRESH = ".repair"
"""Suffix of the new files until all of them are whole."""

_REBUILT = ("bboxes.bin", "masks.bin", "metadata.bin")
_FIELDS = tuple(slot.field.name for name in _REBUILT for slot in FILES[name].slots)
_COPY_BYTES = 8 << 20
_LISTED = 10


class Account(Protocol):
    """What is written into: a RepairReport."""

    dry_run: bool
    rebuilt: int
    kept: int
    kept_keys: list[str]
    failed: int
    failures: list[str]

    def note(self, code: str, where: str, message: str, rows: int = 0) -> None:
        """Adds a deed."""


def read_journal(path: Path) -> dict[str, object]:
    """What an interrupted repair had begun; empty where there was none."""
    try:
        found = json.loads((path / SIDE / JOURNAL).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StoreCorrupt(f"{path / SIDE / JOURNAL}: expected JSON: {error}") from error
    return dict(found)


def write_journal(disk: Disk, path: Path, journal: Mapping[str, object]) -> None:
    """Notes, flushed, what is about to be done."""
    disk.replace(path / SIDE / JOURNAL, json.dumps(journal, indent=1).encode())


def clear_journal(disk: Disk, path: Path) -> None:
    """The repair is done."""
    disk.remove(path / SIDE / JOURNAL)


class Rebuild:
    """One request: boxes to XYXY, and rows anew from TARs. Does nothing if neither is asked for."""

    def __init__(
        self,
        path: Path,
        disk: Disk,
        *,
        tars: Sequence[Path | str],
        boxes: str | None,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.path = path
        self.disk = disk
        self.tars = [str(tar) for tar in tars]
        self.boxes = boxes
        self.on_progress = on_progress
        self.request = {"tars": self.tars, "boxes": boxes}

    def run(self, report: Account, rows: int) -> None:
        """Finishes what an earlier call began, then does what this one asks for; `rows` is the count of rows.

        Order: journal, marker in config.json, new files, journal, renames, ledger, marker. The old files are read only
        until the journal says that the new ones are whole, and never again after: no box is converted twice.

        Raises:
            StoreCorrupt: the marker says that a repair was interrupted, and its journal is gone.
            UsageError: an interrupted repair has to be run again, and this call asks for nothing.
        """
        journal = read_journal(self.path)
        marker = read_config(self.path).get("bbox_format")
        if journal.get("stage") == "swap":
            report.note("finish", CONFIG, "an interrupted rebuild of the boxes is finished from its new files", rows)
            if report.dry_run:
                return
            self._swap(journal)
            marker = "xyxy"
            if journal.get("request") == self.request:
                return
        elif journal.get("stage") == "build":
            marker = journal.get("was")
            if not self.tars and self.boxes is None:
                asked = json.dumps(journal.get("request"))
                raise UsageError(f"{self.path}: a repair was interrupted; run it again with the same options: {asked}")
        elif marker == REBUILDING:
            text = "a repair was interrupted, but its journal is gone: whether boxes are XYWH or XYXY is unknown"
            raise StoreCorrupt(f"{self.path}: {text}; convert again")
        convert = marker != "xyxy"
        if self.tars or (self.boxes and convert):
            self._build(report, rows, marker, convert)

    def _build(self, report: Account, rows: int, marker: object, convert: bool) -> None:
        names = _REBUILT if self.tars else ("bboxes.bin",)
        offers = self._open_tars()
        if not report.dry_run:
            journal = {
                "action": "rebuild",
                "stage": "build",
                "was": marker,
                "files": list(names),
                "request": self.request,
            }
            write_journal(self.disk, self.path, journal)
            self._mark(REBUILDING)
            for name in names:
                self._copy(name, rows, convert=convert and name == "bboxes.bin")
        if convert:
            report.note("boxes", "bboxes.bin", f"bboxes.bin: {rows:,} boxes from XYWH to XYXY", rows)
        if offers is not None:
            self._from_tars(report, rows, offers)
            text = f"boxes, masks and metadata of {report.rebuilt:,} of {rows:,} rows made anew from the TARs"
            report.note("rebuild", ", ".join(names), text, report.rebuilt)
        if not report.dry_run:
            for name in names:
                self.disk.sync(self._fresh(name))
            write_journal(self.disk, self.path, {**journal, "stage": "swap"})
            self._swap(journal)

    def _open_tars(self) -> Iterator[tuple[str, Record | str]] | None:
        """Key and record of each sample in the TARs, or why it has none. Paths are checked at once."""
        if not self.tars:
            return None
        from penstock.readers.sa1b_tar import open_sa1b_tars  # its decoders are an extra

        offers = open_sa1b_tars(self.tars)

        def samples() -> Iterator[tuple[str, Record | str]]:
            for candidate in offers.candidates():
                if candidate.failure:
                    yield candidate.key, candidate.failure
                elif candidate.record is not None:
                    yield candidate.key, candidate.record
                else:
                    yield candidate.key, offers[candidate.index]  # type: ignore[index]  # without a record it has an index

        return samples()

    def _from_tars(self, report: Account, rows: int, offers: Iterator[tuple[str, Record | str]]) -> None:
        from penstock.stages.convert import Sa1bConvert  # OpenCV is an extra

        stage = Sa1bConvert(schema=V1_SCHEMA.select(_FIELDS), layout="v1")
        stage.setup("cpu")
        places: dict[str, list[int]] = {}
        lines = Lines(self.path / KEYS)
        for row in range(rows):
            places.setdefault(lines[row] or f"sample_{row:06d}", []).append(row)
        for key, record in offers:
            if key not in places:
                continue
            here = places.pop(key)
            try:
                if isinstance(record, str):
                    raise BadData(record)
                (made,) = [record] if report.dry_run else stage([record])
            except BadData as error:
                report.failed += len(here)
                report.failures += [f"{key}: {error}"][: _LISTED - len(report.failures)]
                continue
            for row in () if report.dry_run else here:
                self._write(row, made)
            report.rebuilt += len(here)
            self.on_progress(report.rebuilt + report.failed, rows)
        left = sorted((row, key) for key, here in places.items() for row in here)
        report.kept, report.kept_keys = len(left), [key for _, key in left[:_LISTED]]

    def _write(self, row: int, made: Record) -> None:
        for name in _REBUILT:
            file = FILES[name]
            record = np.zeros(1, file.dtype)
            for slot in file.slots:
                record[slot.field.name][0] = made[slot.field.name]
            self.disk.write(self._fresh(name), record.tobytes(), row * file.record_bytes)

    def _copy(self, name: str, rows: int, *, convert: bool) -> None:
        """The new file with the old one's rows."""
        fresh, size = self._fresh(name), rows * FILES[name].record_bytes
        self.disk.resize(fresh, 0)
        with (self.path / name).open("rb") as file:
            for start in range(0, size, _COPY_BYTES):
                content = file.read(min(_COPY_BYTES, size - start))
                if convert:
                    content = xywh_to_xyxy(np.frombuffer(content, "<f4").reshape(-1, 4)).astype("<f4").tobytes()
                self.disk.write(fresh, content, start)

    def _swap(self, journal: Mapping[str, object]) -> None:
        names = [str(name) for name in journal["files"]]  # type: ignore[attr-defined]  # we wrote a list
        for name in names:
            if self._fresh(name).exists():
                self.disk.close(self._fresh(name))
                self.disk.rename(self._fresh(name), self.path / name)
        self._refresh_ledger(names)
        self._mark("xyxy")
        clear_journal(self.disk, self.path)

    def _refresh_ledger(self, names: Sequence[str]) -> None:
        """Checksums of the rewritten files in the ledger of a directory of ours."""
        ledger = Ledger(self.path / SIDE, len(V1_LAYOUT.file_names))
        if not (self.path / SIDE / ROWS).exists():
            return
        records = ledger.read(0, len(ledger))
        done = np.flatnonzero(records["state"] == DONE)
        for name in names:
            size, number = FILES[name].record_bytes, V1_LAYOUT.file_names.index(name)
            with (self.path / name).open("rb") as file:
                for row in done[np.argsort(records["position"][done])].tolist():
                    file.seek(int(records["position"][row]) * size)
                    records["sums"][row, number] = xxhash.xxh3_64_intdigest(file.read(size))
        records[done] = stamp(records[done])
        self.disk.replace(ledger.rows_path, records.tobytes())

    def _mark(self, bbox_format: str) -> None:
        config = {**read_config(self.path), "bbox_format": bbox_format, "bbox_frame": "original"}
        self.disk.replace(self.path / CONFIG, json.dumps(config, indent=2, ensure_ascii=False).encode())

    def _fresh(self, name: str) -> Path:
        return self.path / (name + FRESH)
