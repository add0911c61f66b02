"""repair: cuts torn v1 directories, rebuilds their boxes and masks, and marks damaged rows of stores for recomputing."""

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.check import columns_of, layout_of, verify
from penstock.check_ledger import Lines, check_v1_ledger, damaged_records, expected_index
from penstock.check_v1 import FILES, rows_still_right, sizes_of
from penstock.check_values import Scan, scan
from penstock.errors import PartClaimed, StoreCorrupt, UsageError
from penstock.repair_boxes import Rebuild, clear_journal, read_journal, write_journal
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.store.keys import INDEX
from penstock.store.layout import Layout
from penstock.store.manifest import Manifest, PartEntry
from penstock.store.rows import DONE, KEYS, ROWS, Ledger
from penstock.store.seal import copy_for_recompute, digest_part
from penstock.store.store import committed_rows
from penstock.store.v1 import CONFIG, SIDE, V1_LAYOUT, read_config

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Deed:
    """One thing that was done, or in a dry run would be."""

    code: str
    """"truncate", "boxes", "rebuild", "finish", "recompute", "missing" or "keys-index"."""
    where: str
    message: str
    rows: int = 0
    """Rows that it concerns."""


@dataclass(kw_only=True)
class RepairReport:
    """What `repair` did, or in a dry run would do."""

    path: str
    layout: str
    dry_run: bool
    rows_before: int = 0
    rows_after: int = 0
    deeds: list[Deed] = field(default_factory=list)
    remaining: list[str] = field(default_factory=list)
    """What is wrong and cannot be repaired, with what to do instead."""
    rebuilt: int = 0
    """Rows whose boxes, mask and metadata came from the TARs."""
    kept: int = 0
    """Rows of which no TAR holds the key: their masks are as before."""
    kept_keys: list[str] = field(default_factory=list)
    """The first ten of them."""
    failed: int = 0
    """Rows whose sample in the TARs is damaged; kept as before."""
    failures: list[str] = field(default_factory=list)
    """The first ten of them, with the reason."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)

    def note(self, code: str, where: str, message: str, rows: int = 0) -> None:
        """Adds a deed."""
        self.deeds.append(Deed(code=code, where=where, message=message, rows=rows))


def repair(
    path: Path | str,
    *,
    tars: Sequence[Path | str] = (),
    boxes: Literal["xyxy"] | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
    disk: Disk | None = None,
) -> RepairReport:
    """Repairs what can be repaired without a guess. May be killed at any instant; the same call then finishes the work.

    A torn v1 directory is cut to the rows that are whole and right in every file. With `boxes` or `tars` its boxes become
    XYXY, and with `tars` boxes, masks and metadata of the rows found there are made anew. Rows of a penstock store whose
    bytes are not what was committed are marked missing, in a new version of their part, so that the next run of the job
    that made them computes exactly those.

    Args:
        path: the folder.
        tars: v1 only: the TARs that it was converted from.
        boxes: v1 only: "xyxy" turns XYWH boxes into XYXY; nothing happens where they are that already.
        dry_run: touch nothing, and say what would be done.
        on_progress: told (rows done, rows in all).
        disk: the write seam; tests replace it.

    Raises:
        SourceNotFound: the folder is neither, or a TAR is not there.
        UsageError: another convention than "xyxy"; `tars` or `boxes` for a penstock store; or an interrupted repair of the
            boxes must be finished first.
        StoreCorrupt: not even a part of it can be saved; nothing was touched.
        PartClaimed: somebody is writing it.
    """
    path = Path(path)
    kind = layout_of(path)
    if boxes not in (None, "xyxy"):
        raise UsageError(f"boxes: expected 'xyxy', got {boxes!r}")
    report = RepairReport(path=str(path), layout=kind, dry_run=dry_run)
    disk = disk or Disk()
    tell = on_progress or (lambda done, total: None)
    if kind == "v1" and boxes and not tars:
        _refuse_doubtful(path)
    try:
        if kind == "v1":
            _repair_v1(path, Rebuild(path, disk, tars=tars, boxes=boxes, on_progress=tell), disk, report, tell)
        elif tars or boxes:
            raise UsageError(
                f"{path}: is a penstock store; its boxes are XYXY and its masks whole: omit tars and boxes"
            )
        else:
            _StoreRepair(path, disk, report, tell).run()
    finally:
        disk.close()
    return report


def _refuse_doubtful(path: Path) -> None:
    """Turning boxes that are XYXY already would spoil them, and nothing would show it."""
    doubts = [doubt for doubt in verify(path).suspicions if doubt.code == "box-convention"]
    if doubts and read_config(path).get("bbox_format") is None:
        text = 'if they are XYXY, add "bbox_format": "xyxy" to config.json; or give --tar-path, to make them anew'
        raise UsageError(f"{path}: {doubts[0].message}; nothing was touched: {text}")


def _repair_v1(path: Path, rebuild: Rebuild, disk: Disk, report: RepairReport, tell: Progress) -> None:
    with nullcontext() if report.dry_run else _side_claim(path, disk):
        report.rows_before = report.rows_after = int(str(read_config(path)["total_samples"]))
        _mend_tail(path, disk, report, tell)
        rebuild.run(report, report.rows_after)


@contextmanager
def _side_claim(path: Path, disk: Disk) -> Iterator[None]:
    """The claim of a v1 directory, as a conversion takes it; leaves no folder behind where there was none."""
    side = path / SIDE
    disk.make_directory(side)
    claim = Claim(side)
    claim.acquire()
    try:
        yield
    finally:
        claim.release()
        try:
            side.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            # It holds something, be it the claim of another driver; or one that did the same has removed it.
        else:
            disk.sync_directory(path)


def _mend_tail(path: Path, disk: Disk, report: RepairReport, tell: Progress) -> None:
    """Cuts all files of a v1 directory to the rows that are whole and right in each."""
    journal = read_journal(path)
    sizes = sizes_of(path)
    if journal.get("action") == "truncate":
        rows, why = int(str(journal["rows"])), "an interrupted repair is finished"
    else:
        planned = _plan_tail(path, sizes, report.rows_before, tell)
        if planned is None:
            return
        rows, why = planned
    report.rows_after = rows
    for name, size in sizes.items():
        target = rows * FILES[name].record_bytes
        if size != target:
            report.note("truncate", name, f"{name}: {size:,} bytes become {target:,}, {rows:,} records: {why}", rows)
    lines = Lines(path / KEYS)
    if len(lines) + bool(lines.torn) > rows:
        report.note("truncate", KEYS, f"{KEYS}: {len(lines):,} lines become {rows:,}: {why}", rows)
    if rows != report.rows_before:
        report.note("truncate", CONFIG, f"{CONFIG}: total_samples {report.rows_before:,} becomes {rows:,}: {why}", rows)
    if not report.dry_run:
        _cut(path, disk, rows, report.rows_before)


def _plan_tail(path: Path, sizes: Mapping[str, int], total: int, tell: Progress) -> tuple[int, str] | None:
    """Rows to keep and why not more; None if nothing is to be cut."""
    lines = Lines(path / KEYS)
    committed, _ = check_v1_ledger(path, total, lines, [], [])
    whole = {name: max(0, size) // FILES[name].record_bytes for name, size in sizes.items()}
    exact = all(size == total * FILES[name].record_bytes for name, size in sizes.items())
    if exact and committed in (None, total) and len(lines) + bool(lines.torn) <= total:
        return None
    if committed is None:
        rows, why = 0, ""
        if min(sizes.values()) >= 0:
            rows, why = rows_still_right(path, total, len(lines), lambda row: tell(row, total))
    else:
        name = min(whole, key=lambda stem: whole[stem])
        rows = min(committed, whole[name])
        why = "the ledger counts no more" if rows == committed else f"{name} holds {rows:,} whole records"
    if not rows and total:
        name = min(sizes, key=lambda stem: sizes[stem])
        raise StoreCorrupt(
            f"{path}: no row is whole and right in every file ({name}: {max(0, sizes[name]):,} bytes), so that cutting would "
            f"drop all {total:,} rows; nothing was touched: restore the file, or convert again"
        )
    return rows, why


def _cut(path: Path, disk: Disk, rows: int, total: int) -> None:
    """Journal, count down, ledger, files, keys, count; each flushed before the next, so that a kill leaves a torn
    directory that says so, and a second call does the same again."""
    write_journal(disk, path, {"action": "truncate", "rows": rows})
    _set_total(disk, path, min(rows, total))
    if (path / SIDE / ROWS).exists():
        ledger = Ledger(path / SIDE, len(V1_LAYOUT.file_names))
        records = ledger.read(0, len(ledger))
        lost = np.flatnonzero((records["state"] == DONE) & (records["position"] >= rows))
        if len(lost):
            ledger.reset(disk, lost.tolist())
    for name, file in FILES.items():
        disk.resize(path / name, rows * file.record_bytes)
        disk.sync(path / name)
    lines = Lines(path / KEYS)
    if len(lines) > rows or (lines.torn and len(lines) >= rows):
        disk.resize(path / KEYS, int(lines.ends[rows - 1]) if rows else 0)
        disk.sync(path / KEYS)
    _set_total(disk, path, rows)
    clear_journal(disk, path)


def _set_total(disk: Disk, path: Path, rows: int) -> None:
    config = read_config(path)
    if config["total_samples"] != rows:
        content = json.dumps({**config, "total_samples": rows}, indent=2, ensure_ascii=False)
        disk.replace(path / CONFIG, content.encode())


class _StoreRepair:
    """Finds the damaged rows of every part and marks them missing."""

    def __init__(self, path: Path, disk: Disk, report: RepairReport, tell: Progress) -> None:
        self.path = path
        self.disk = disk
        self.report = report
        self.tell = tell
        self.manifest = Manifest.load(path)
        self.layout = Layout.of(self.manifest.schema)

    def run(self) -> None:
        """All parts, one after the other, each under its claim."""
        total = self.report.rows_before = self.report.rows_after = sum(entry.rows for entry in self.manifest.parts)
        visited = 0
        for number in range(len(self.manifest.parts)):
            with self._steady(number) as entry:
                folder = self.path / (entry.draft or entry.name)
                if folder.is_dir():
                    self._part(entry, visited, total)
                    visited += entry.rows
                else:
                    text = f"{folder}: no such folder; {entry.rows:,} rows are lost: run the job into a new folder"
                    self.report.remaining.append(text)

    @contextmanager
    def _steady(self, number: int) -> Iterator[PartEntry]:
        """A part as it is now, under its claim: another driver may have sealed it, or begun a new version, meanwhile."""
        entry = Manifest.load(self.path).parts[number]
        while True:
            folder = self.path / (entry.draft or entry.name)
            claim = None if self.report.dry_run else Claim(folder)
            try:
                if claim is not None and folder.is_dir():
                    self._acquire(claim, folder)
                now = Manifest.load(self.path).parts[number]
                if now == entry:
                    yield entry
                    return
                entry = now
            finally:
                if claim is not None:
                    claim.release()

    def _acquire(self, claim: Claim, folder: Path) -> None:
        try:
            claim.acquire()
        except PartClaimed:
            if folder.is_dir():
                raise
            # Else there is nothing to claim any more: the manifest says what took its place, or that it is lost.

    def _part(self, entry: PartEntry, visited: int, total: int) -> None:
        folder = entry.draft or entry.name
        lines = Lines(self.path / folder / KEYS)
        rows = self._rows(entry, folder)
        if len(lines) < rows:
            text = f"{folder}/{KEYS}: expected {rows:,} lines, found {len(lines):,}; no row can be computed without its key"
            self.report.remaining.append(f"{text}: restore the file, or run the job into a new folder")
            return
        damaged = self._damaged(entry, folder, rows, visited, total)
        if damaged:
            keys = ", ".join(lines[row] for row in damaged[:10])
            named = f"{len(damaged):,} rows are damaged ({keys}{', ...' if len(damaged) > 10 else ''})"
            what = "missing" if entry.draft or not entry.sealed else "recompute"
            self.report.note(what, folder, f"{folder}: {named}; run the job again to compute them anew", len(damaged))
        if entry.sealed and not entry.draft:
            self._check_sealed(folder, entry, lines, bool(damaged))
        if damaged and not self.report.dry_run:
            self._mark(entry, folder, damaged)

    def _rows(self, entry: PartEntry, folder: str) -> int:
        ledger = Ledger(self.path / folder, len(self.layout.file_names))
        if entry.growing and ledger.rows_path.exists() and len(ledger) >= entry.rows:
            return committed_rows(self.path / folder, entry, self.layout)
        return entry.rows

    def _damaged(self, entry: PartEntry, folder: str, rows: int, visited: int, total: int) -> list[int]:
        """Rows, ascending, that the ledger calls done and whose bytes are others, or whose record itself is damaged."""
        ledger = Ledger(self.path / folder, len(self.layout.file_names))
        recorded = min(rows, len(ledger)) if ledger.rows_path.exists() else 0
        found = Scan(values=False)
        seen = visited

        def on_rows(count: int) -> None:
            nonlocal seen
            seen += count
            self.tell(seen, total)

        scan(columns_of(self.path, entry, self.layout, rows, folder=entry.draft), found, on_rows)
        self.report.remaining += [f"{text}; the disk may be failing" for text in found.unreadable]
        lost = range(recorded, rows) if entry.sealed else range(0)
        return sorted({*found.damaged, *damaged_records(ledger, recorded).tolist(), *lost})

    def _check_sealed(self, folder: str, entry: PartEntry, lines: Lines, damaged: bool) -> None:
        """keys.idx follows from keys.txt and is written anew in place; a digest that nothing explains cannot be mended."""
        index, expected = self.path / folder / INDEX, expected_index(lines)
        if not index.exists() or index.read_bytes() != expected:
            self.report.note(
                "keys-index", f"{folder}/{INDEX}", f"{folder}/{INDEX}: written anew from {KEYS}", entry.rows
            )
            if not self.report.dry_run:
                self.disk.replace(index, expected)
        if not damaged and digest_part(self.path / folder) != entry.digest:
            text = f"{folder}: the digest of {ROWS} and {KEYS} is not the sealed one, yet every row is whole"
            self.report.remaining.append(f"{text}: keys may have been edited; restore {KEYS}")

    def _mark(self, entry: PartEntry, folder: str, damaged: list[int]) -> None:
        sealed = entry.sealed and not entry.draft
        name = folder
        if sealed:
            name = copy_for_recompute(self.disk, self.path, entry, self.layout, damaged=True)
        ledger = Ledger(self.path / name, len(self.layout.file_names))
        for file, size in (self.layout.open_sizes(entry.rows) | {ROWS: entry.rows * ledger.dtype.itemsize}).items():
            place = self.path / name / file
            if not place.exists() or place.stat().st_size != size:
                self.disk.resize(place, size)
                self.disk.sync(place)
        ledger.reset(self.disk, damaged)
        if sealed:
            plan = Claim(self.path, name="_plan")
            plan.acquire(wait_s=600.0)
            try:
                fresh = replace(entry, draft=name)
                Manifest.load(self.path).with_part(fresh).save(self.disk, self.path)
            finally:
                plan.release()
