"""Keys and ledgers, checked without trusting them: lines, duplicates, indexes, and the ledger beside a v1 directory."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from penstock.check_values import Finding
from penstock.store.keys import INDEX, line_ends
from penstock.store.rows import DONE, KEYS, ROWS, Ledger
from penstock.store.v1 import CONFIG, SIDE, V1_LAYOUT

RECIPE = "recipe.json"


class Lines(Sequence[str]):
    """The lines of a keys.txt, whatever is in it; none without the file. A last line without its end is no line."""

    def __init__(self, path: Path) -> None:
        self.exists = path.exists()
        self._text: bytes | mmap.mmap = b""
        if self.exists and path.stat().st_size:
            with path.open("rb") as file:
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.ends = line_ends(self._text).astype(np.int64) if len(self._text) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # lines only, no slices
        return self.raw(row).decode(errors="replace") if 0 <= row < len(self.ends) else ""

    def raw(self, row: int) -> bytes:
        """The bytes of a line, without its end."""
        return self._text[int(self.ends[row - 1]) if row else 0 : int(self.ends[row]) - 1]

    @property
    def torn(self) -> bytes:
        """What stands behind the last line end."""
        return self._text[int(self.ends[-1]) if len(self.ends) else 0 :]

    def hashes(self) -> np.ndarray:
        """(n,) uint64: xxh3_64 of each line."""
        found = (xxhash.xxh3_64_intdigest(self.raw(row)) for row in range(len(self)))
        return np.fromiter(found, np.uint64, len(self))

    def lengths(self) -> np.ndarray:
        """(n,) int64: bytes of each line, without its end."""
        return np.diff(self.ends, prepend=0) - 1


def check_lines(
    lines: Lines, expected: int, where: str, counted_in: str, faults: list[Finding], *, exact: bool = True
) -> None:
    """Number of lines, empty ones, and a torn last one; more lines than rows are no fault unless `exact`."""
    if not lines.exists:
        faults.append(Finding(code="keys", where=where, message=f"{where}: no such file; expected {expected:,} lines"))
        return
    if len(lines) < expected or (exact and len(lines) > expected):
        text = f"{where} holds {len(lines):,} lines, {counted_in} counts {expected:,}"
        faults.append(Finding(code="keys", where=where, message=text, first_row=min(len(lines), expected)))
    if lines.torn and exact:
        text = f"{where}: its last line is torn: {lines.torn[:80]!r} without a line end"
        faults.append(Finding(code="keys", where=where, message=text, first_row=len(lines)))
    empty = np.flatnonzero(lines.lengths()[:expected] == 0)
    if len(empty):
        text = f"{where}: {len(empty):,} empty lines, first row {empty[0]}; every row needs a key"
        faults.append(Finding(code="empty-key", where=where, message=text, rows=len(empty), first_row=int(empty[0])))


def check_duplicates(texts: Sequence[Lines], faults: list[Finding]) -> None:
    """Keys that several rows share, over all parts."""
    hashes = np.concatenate([lines.hashes() for lines in texts]) if texts else np.zeros(0, np.uint64)
    full = np.concatenate([lines.lengths() for lines in texts]) > 0 if texts else np.zeros(0, bool)
    rows = np.flatnonzero(full)
    _, first, counts = np.unique(hashes[rows], return_index=True, return_counts=True)
    twice = np.sort(rows[first[counts > 1]])
    if not len(twice):
        return
    row, local = int(twice[0]), int(twice[0])
    for lines in texts:
        if local < len(lines):
            break
        local -= len(lines)
    again = int(rows[np.flatnonzero(hashes[rows] == hashes[row])[1]])
    surplus = int((counts[counts > 1] - 1).sum())
    text = (
        f"{KEYS}: {surplus:,} rows repeat the key of an earlier one, first {lines[local]!r} in rows {row} and {again}"
    )
    faults.append(
        Finding(code="duplicate-key", where=KEYS, message=text, rows=surplus, first_row=again, key=lines[local])
    )


def check_index(folder: Path, lines: Lines, label: str, faults: list[Finding]) -> None:
    """keys.idx against what keys.txt says it must be, byte by byte: then every key is found through it."""
    path = folder / INDEX
    if not path.exists() or path.read_bytes() != expected_index(lines):
        what = "does not fit keys.txt: keys are not found through it" if path.exists() else "no such file"
        text = f"{label}/{INDEX}: {what}; penstock repair writes it anew"
        faults.append(Finding(code="keys-index", where=f"{label}/{INDEX}", message=text))


def expected_index(lines: Lines) -> bytes:
    """What keys.idx of a sealed part must hold."""
    table = np.empty(len(lines), [("hash", "<u8"), ("row", "<u8")])
    table["hash"], table["row"] = lines.hashes(), np.arange(len(lines))
    offsets = np.concatenate([np.zeros(1, "<u8"), lines.ends.astype("<u8")])
    return offsets.tobytes() + np.sort(table, order=["hash", "row"]).tobytes()


def damaged_records(ledger: Ledger, rows: int) -> np.ndarray:
    """Rows whose record in `_rows.bin` is not blank, and yet wrong: its check does not fit, or it has no state."""
    bad = [np.zeros(0, np.int64)]
    size = ledger.dtype.itemsize
    for start, records in ledger.chunks(rows):
        raw = np.fromfile(ledger.rows_path, np.uint8, len(records) * size, offset=start * size).reshape(-1, size)
        bad.append(np.flatnonzero(raw.any(axis=1) & (records["state"] == 0)) + start)
    return np.concatenate(bad)


def check_v1_ledger(
    path: Path, total: int, lines: Lines, faults: list[Finding], notes: list[Finding]
) -> tuple[int | None, np.ndarray | None]:
    """The ledger that penstock keeps beside a v1 directory.

    Returns:
        Rows committed, None where there is no ledger; and (rows, files) uint64 checksums by record, 0 where unknown.
    """
    side, where = path / SIDE, f"{SIDE}/{ROWS}"
    if not (side / ROWS).exists():
        return None, None
    try:
        json.loads((side / RECIPE).read_bytes())
    except (OSError, ValueError) as error:
        text = f"{SIDE}/{RECIPE}: cannot be read: {error}"
        faults.append(Finding(code="ledger-recipe", where=f"{SIDE}/{RECIPE}", message=text))
    ledger, names = Ledger(side, len(V1_LAYOUT.file_names)), Lines(side / KEYS)
    bad = damaged_records(ledger, len(ledger))
    if len(bad):
        text = f"{where}: {len(bad):,} records are damaged and count as missing, first {bad[0]} ({names[int(bad[0])]})"
        faults.append(Finding(code="ledger-record", where=where, message=text, rows=len(bad), first_row=int(bad[0])))
    records = ledger.read(0, len(ledger))
    done = np.flatnonzero(records["state"] == DONE)
    positions = records["position"][done]
    order = np.argsort(positions, kind="stable")
    good = positions[order] == np.arange(len(order))
    committed = int(len(order) if good.all() else np.argmin(good))
    if committed < len(order):
        text = f"{where}: record {committed} of the data files belongs to no row, or to several; expected one"
        faults.append(Finding(code="ledger-position", where=where, message=text, first_row=committed))
    if committed < total:
        text = f"{CONFIG} counts {total:,} samples, {where} has {committed:,} committed rows"
        faults.append(Finding(code="ledger-count", where=where, message=text))
    if total < committed:
        text = f"{where} has {committed - total:,} committed rows more than {CONFIG}; the next convert run counts them"
        notes.append(Finding(code="uncounted-rows", where=where, message=text, rows=committed - total))
    rows = done[order][:committed]
    _check_names(names, lines, rows, faults)
    return committed, records["sums"][rows]


def _check_names(names: Lines, lines: Lines, rows: np.ndarray, faults: list[Finding]) -> None:
    """The line of each record in keys.txt against the ledger's."""
    if len(rows) and rows.max() >= len(names):
        text = f"{SIDE}/{KEYS} holds {len(names):,} lines, {SIDE}/{ROWS} has rows up to {rows.max()}"
        faults.append(Finding(code="keys", where=f"{SIDE}/{KEYS}", message=text))
        return
    count = min(len(rows), len(lines))
    differ = np.flatnonzero(names.hashes()[rows[:count]] != lines.hashes()[:count])
    if len(differ):
        row = int(differ[0])
        text = f"{KEYS}: line {row}: expected {names[int(rows[row])]!r} as in {SIDE}/{KEYS}, found {lines[row]!r}"
        faults.append(Finding(code="keys", where=KEYS, message=text, rows=len(differ), first_row=row, key=lines[row]))
