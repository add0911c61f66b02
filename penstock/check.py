"""verify: says what is wrong with a store or a v1 directory, what is suspicious, and what is worth knowing."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from penstock.check_ledger import Lines, check_duplicates, check_index, check_lines, check_v1_ledger, damaged_records
from penstock.check_v1 import check_v1_files, v1_config
from penstock.check_values import Columns, Finding, Scan, scan
from penstock.errors import PenstockError, SourceNotFound, StoreCorrupt
from penstock.schema import Schema
from penstock.store.layout import Layout, size_of
from penstock.store.manifest import NAME, Manifest, PartEntry, digest_identity
from penstock.store.rows import DONE, FAILED, KEYS, ROWS, Ledger
from penstock.store.seal import digest_part
from penstock.store.store import committed_rows
from penstock.store.v1 import CONFIG, V1_LAYOUT

_PART = re.compile(r"part-\d{5,}(\.\d+)?")

Progress = Callable[[int, int], None]
"""Told (rows done, rows in all)."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What `verify` found. A fault is certain; a suspicion is what the values say; a note is no defect."""

    path: str
    layout: str
    """"store", "v1", or "sequences"."""
    rows: int
    """Rows that the manifest or config.json counts."""
    full: bool
    """Whether every byte was read, or sizes, manifest, keys and ledger only."""
    faults: tuple[Finding, ...]
    suspicions: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        lists = {
            name: [finding.to_json() for finding in getattr(self, name)] for name in ("faults", "suspicions", "notes")
        }
        return {"path": self.path, "layout": self.layout, "rows": self.rows, "full": self.full, "ok": self.ok, **lists}


@dataclass
class Book:
    """Findings while they are gathered."""

    faults: list[Finding] = field(default_factory=list)
    suspicions: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


def verify(path: Path | str, *, full: bool = True, on_progress: Progress | None = None) -> Findings:
    """Checks a store or a v1 directory. A broken one is reported, never raised.

    Manifest, sizes, keys and ledger first; then, if `full`, every record is read once: its checksums where there are
    any, and its values by what each field is. Memory stays at some 64 MB and a few dozen bytes per row.

    Args:
        path: the folder.
        full: False reads no records: sizes, manifest, keys and ledger only.
        on_progress: called after every chunk of records.

    Raises:
        SourceNotFound: the folder is neither, nor the rest of one.
    """
    path = Path(path)
    kind = layout_of(path)
    book = Book()
    check = _check_store if kind == "store" else _check_v1
    rows = check(path, book, full, on_progress or (lambda done, total: None))
    return Findings(
        path=str(path),
        layout=kind,
        rows=rows,
        full=full,
        faults=tuple(book.faults),
        suspicions=tuple(book.suspicions),
        notes=tuple(book.notes),
    )


def layout_of(path: Path) -> str:
    """ "store" or "v1", also of what is left of one.

    Raises:
        SourceNotFound: the folder is neither.
    """
    if (path / NAME).exists():
        return "store"
    if (path / CONFIG).exists() or any((path / file.name).exists() for file in V1_LAYOUT.records):
        return "v1"
    if any(folder.joinpath(ROWS).exists() for folder in path.glob("part-*")):
        return "store"
    raise SourceNotFound(f"{path}: holds neither {NAME} (a penstock store) nor {CONFIG} (a v1 directory)")


def _check_v1(path: Path, book: Book, full: bool, on_progress: Progress) -> int:
    config = v1_config(path, book.faults)
    total = int(str(config.get("total_samples", -1)))
    lines = Lines(path / KEYS)
    committed, sums = check_v1_ledger(path, total, lines, book.faults, book.notes)
    whole = check_v1_files(path, total, committed, book.faults, book.notes)
    check_lines(lines, total if total >= 0 else max(whole.values()), KEYS, CONFIG, book.faults)
    check_duplicates([lines], book.faults)
    if not full:
        return max(total, 0)
    rows = total if committed is not None and total >= 0 else max(whole.values())

    def ledger(start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        done = np.ones(stop - start, bool)
        if sums is None:
            return done, None
        known = np.zeros((stop - start, sums.shape[1]), np.uint64)
        part = sums[start:stop]
        known[: len(part)] = part
        return done, known

    found, visited = Scan(), 0

    def on_rows(count: int) -> None:
        nonlocal visited
        visited += count
        on_progress(visited, rows)

    scan(Columns(folder=path, layout=V1_LAYOUT, rows=rows, ledger=ledger), found, on_rows)
    marker = str(config.get("bbox_format", "xywh")) if config else ""
    _conclude(found, book, lines.__getitem__, marker)
    return max(total, 0)


def _check_store(path: Path, book: Book, full: bool, on_progress: Progress) -> int:
    manifest = _manifest(path, book)
    if manifest is None:
        return 0
    layout = Layout.of(manifest.schema)
    total = sum(entry.rows for entry in manifest.parts)
    first, found, texts = 0, Scan(), []
    planned = []
    for entry in manifest.parts:
        rows, lines = _check_part(path, entry, layout, book)
        planned.append((entry, rows, first))
        texts.append(lines)
        first += rows
    check_duplicates(texts, book.faults)
    known = {entry.name for entry in manifest.parts} | {entry.draft for entry in manifest.parts}
    for folder in sorted(path.glob("part-*")):
        if folder.name not in known:
            book.notes.append(_note("left-over", folder.name, "is in no manifest: left by a driver that was stopped"))
    if full:
        visited = 0

        def on_rows(count: int) -> None:
            nonlocal visited
            visited += count
            on_progress(visited, first)

        for entry, rows, start in planned:
            scan(columns_of(path, entry, layout, rows, start), found, on_rows)
        starts = [start for _, _, start in planned]

        def key_of(row: int) -> str:
            part = max(number for number, start in enumerate(starts) if start <= row)
            return texts[part][row - starts[part]]

        _conclude(found, book, key_of, _convention(manifest))
    return total


def columns_of(path: Path, entry: PartEntry, layout: Layout, rows: int, first: int = 0, *, folder: str = "") -> Columns:
    """What a scan reads of one part; `folder` names its draft, where that is to be read."""
    name = folder or entry.name
    ledger = Ledger(path / name, len(layout.file_names))

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        records = ledger.read(start, stop)
        return records["state"] == DONE, records["sums"]

    rows = min(rows, len(ledger)) if ledger.rows_path.exists() else 0
    sealed = entry.sealed and not folder
    return Columns(
        folder=path / name, layout=layout, rows=rows, sealed=sealed, first=first, label=f"{name}/", ledger=read
    )


def _manifest(path: Path, book: Book) -> Manifest | None:
    try:
        manifest = Manifest.load(path)
        for file in Layout.of(manifest.schema).records:
            _ = file.dtype  # NumPy refuses impossible shapes here
        recorded = json.loads((path / NAME).read_bytes())["recipe"].get("digest")
        if not isinstance(manifest.attributes, dict):
            raise StoreCorrupt(f"attributes: expected an object, got {manifest.attributes!r}")
        for entry in manifest.parts:
            _check_entry(entry)
    except (PenstockError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"{NAME}: cannot be used: {error or type(error).__name__}"
        book.faults.append(Finding(code="manifest", where=NAME, message=text))
        return None
    if recorded != digest_identity(manifest.identity):
        text = f"{NAME}: recipe: the digest is not that of the identity; it was edited by hand"
        book.faults.append(Finding(code="recipe-digest", where=NAME, message=text))
    return manifest


def _check_entry(entry: PartEntry) -> None:
    """Raises StoreCorrupt where an entry holds what no penstock writes, so that everything after may trust its types."""
    counts: dict[str, object] = {"rows": entry.rows, "done": entry.done, "failed": entry.failed}
    blobs = entry.blob_bytes.items() if isinstance(entry.blob_bytes, dict) else [("", None)]
    counts |= {f"blob_bytes.{name}": size for name, size in blobs}
    wrong = {name: value for name, value in counts.items() if type(value) is not int or value < 0}
    names = {"name": entry.name, "draft": entry.name if entry.draft == "" else entry.draft}
    wrong |= {name: text for name, text in names.items() if not isinstance(text, str) or not _PART.fullmatch(text)}
    flags = {"growing": entry.growing, "sealed": entry.sealed}
    wrong |= {name: flag for name, flag in flags.items() if not isinstance(flag, bool)}
    if wrong:
        raise StoreCorrupt(f"parts: {entry.name!r}: {wrong} is not what penstock writes")


def _check_part(path: Path, entry: PartEntry, layout: Layout, book: Book) -> tuple[int, Lines]:
    """Sizes, ledger, keys and digest of a part. Gives its rows and its keys."""
    folder, lines = path / entry.name, Lines(path / entry.name / KEYS)
    ledger = Ledger(folder, len(layout.file_names))
    rows = entry.rows
    if not folder.is_dir():
        text = f"{entry.name}: no such folder; expected {rows:,} rows in it"
        book.faults.append(Finding(code="missing-part", where=entry.name, message=text, rows=rows))
        return rows, lines
    whole_ledger = _check_sizes(folder, entry, layout, ledger, book)
    if entry.growing and whole_ledger:
        rows = committed_rows(folder, entry, layout)
    there = min(rows, len(ledger)) if ledger.rows_path.exists() else 0
    states = ledger.states(there)
    _check_states(entry, ledger, states, lines, book)
    expected = rows if not entry.growing else min(rows, len(lines))
    check_lines(lines, expected, f"{entry.name}/{KEYS}", NAME, book.faults, exact=not entry.growing)
    if entry.sealed:
        check_index(folder, lines, entry.name, book.faults)
        _check_digest(folder, entry, book)
    if entry.draft:
        text = f"{entry.name}: {entry.draft} replaces it once its missing rows are computed; run the job again"
        book.notes.append(Finding(code="draft", where=entry.name, message=text))
        if not (path / entry.draft).is_dir():
            missing = f"{entry.draft}: no such folder; {NAME} names it as the next version of {entry.name}"
            book.faults.append(Finding(code="missing-part", where=entry.draft, message=missing))
    return rows, lines


def _check_sizes(folder: Path, entry: PartEntry, layout: Layout, ledger: Ledger, book: Book) -> bool:
    """Whether `_rows.bin` is there in full."""
    try:
        sizes = (
            layout.sealed_sizes(entry.rows, dict(entry.blob_bytes)) if entry.sealed else layout.open_sizes(entry.rows)
        )
    except KeyError as error:
        sizes = layout.open_sizes(entry.rows)
        text = f"{NAME}: {entry.name}: sealed, but blob_bytes lacks {error}"
        book.faults.append(Finding(code="manifest", where=NAME, message=text))
    records = {file.name: file.record_bytes for file in layout.records} | {ROWS: ledger.dtype.itemsize}
    for name, expected in (sizes | {ROWS: entry.rows * ledger.dtype.itemsize}).items():
        where = folder / name
        found = size_of(where)
        if found == expected or (found > expected and not entry.sealed):
            continue
        text = f"{folder.name}/{name}: expected {expected:,} bytes, found {f'{found:,}' if found >= 0 else 'no file'}"
        first = max(found, 0) // records[name] if name in records and found < expected else -1
        text += f"; row {first} is the first that is not whole" if first >= 0 else ""
        book.faults.append(Finding(code="size", where=f"{folder.name}/{name}", message=text, first_row=first))
    return ledger.rows_path.exists() and len(ledger) >= entry.rows


def _check_states(entry: PartEntry, ledger: Ledger, states: np.ndarray, lines: Lines, book: Book) -> None:
    where = f"{entry.name}/{ROWS}"
    bad = damaged_records(ledger, len(states))
    if len(bad):
        first, count = int(bad[0]), len(bad)
        text = f"{where}: {count:,} records are damaged and count as missing, first row {first} ({lines[first]})"
        finding = Finding(
            code="ledger-record", where=where, message=text, rows=count, first_row=first, key=lines[first]
        )
        (book.faults if entry.sealed else book.notes).append(finding)
    strange = np.flatnonzero(states > FAILED)
    if len(strange):
        text = f"{where}: state of row {strange[0]}: expected 0, 1 or 2, got {states[strange[0]]}"
        book.faults.append(Finding(code="ledger-state", where=where, message=text, rows=len(strange)))
    counts = {"done": int((states == DONE).sum()), "failed": int((states == FAILED).sum())}
    if entry.sealed and counts != {"done": entry.done, "failed": entry.failed}:
        pair = f"{counts['done']:,} and {counts['failed']:,}"
        text = f"{where}: expected {entry.done:,} done and {entry.failed:,} failed rows, found {pair}"
        book.faults.append(Finding(code="ledger-count", where=where, message=text))
    missing = len(states) - counts["done"] - counts["failed"]
    for code, count in (("failed", counts["failed"]), ("missing", missing)):
        if count:
            book.notes.append(_note(f"{code}-rows", entry.name, f"{count:,} of {len(states):,} rows are {code}", count))


def _check_digest(folder: Path, entry: PartEntry, book: Book) -> None:
    try:
        found = digest_part(folder)
    except OSError as error:
        found = f"none ({error.strerror})"
    if found != entry.digest:
        text = f"{folder.name}: digest of {ROWS} and {KEYS}: expected {entry.digest}, found {found}"
        book.faults.append(Finding(code="digest", where=folder.name, message=text))


def _convention(manifest: Manifest) -> str:
    """How the boxes of a store are to be read: as its attributes say, or its schema; "" where neither does."""
    marker = manifest.attributes.get("bbox_format")
    schema: Schema = manifest.schema
    if marker is None and "bboxes" in schema:
        meaning = schema["bboxes"].meaning.lower()
        marker = next((name for name in ("xyxy", "xywh") if name in meaning), "")
    return str(marker or "")


def _note(code: str, where: str, text: str, rows: int = 0) -> Finding:
    return Finding(code=code, where=where, message=f"{where}: {text}", rows=rows)


def _conclude(found: Scan, book: Book, key_of: Callable[[int], str], marker: str) -> None:
    """Puts what the scan counted into words."""
    book.faults += [Finding(code="unreadable", where=text.split(":")[0], message=text) for text in found.unreadable]
    book.faults += found.tally.findings(key_of)
    if found.unknown_sums:
        text = "rows that others wrote have no checksums, so that their bytes cannot be proved"
        book.notes.append(_note("no-checksums", ROWS, f"{found.unknown_sums:,} {text}", found.unknown_sums))
    faults, suspicions = found.boxes.findings(marker)
    for target, findings in ((book.faults, faults), (book.suspicions, suspicions)):
        for code, where, message, rows, first in findings:
            key = key_of(first) if first >= 0 else ""
            named = f"; first row {first} ({key})" if first >= 0 else ""
            target.append(Finding(code=code, where=where, message=message + named, rows=rows, first_row=first, key=key))
