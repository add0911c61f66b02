"""V1Sink: writes a v1 directory densely and in input order; a ledger in `.penstock` beside it makes that resumable."""

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from penstock.errors import OutputRefused, StoreCorrupt
from penstock.source import Candidate
from penstock.store.claims import Claim
from penstock.store.commit import (
    Admission,
    Commit,
    failure_line,
    ledger_records,
    origin_hash,
    refuse_foreign,
    require_room,
)
from penstock.store.disk import Disk
from penstock.store.keys import encode_keys, line_ends
from penstock.store.layout import size_of
from penstock.store.manifest import Manifest
from penstock.store.rows import DONE, FAILED, KEYS, Ledger, stamp
from penstock.store.sink import COMMIT_BYTES, COMMIT_SECONDS
from penstock.store.v1 import CONFIG, REBUILDING, RECIPE, SIDE, V1_LAYOUT, open_v1, read_config, write_config
from penstock.store.v1_schema import V1_SCHEMA
from penstock.store.write import RowWriter, Ticket

_COPY_BYTES = 8 << 20


class V1Sink:
    """Rows are committed in input order and leave no gap: a failed row takes no record, a retried one goes to the end.

    Workers write records ahead, at the places they will have if nothing fails; after a failure the few in flight are
    moved down. config.json counts committed rows only, at any instant.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: Mapping[str, object],
        attributes: Mapping[str, object],
        durability: str = "power",
        append: bool = False,
        disk: Disk | None = None,
        shared: bool | None = None,
    ) -> None:
        self.path = path
        self.schema = V1_SCHEMA
        self.side = path / SIDE
        self.disk = disk or Disk(flush=durability == "power")
        self.identity = json.loads(json.dumps(identity))
        self.attributes = dict(attributes)
        self.ledger = Ledger(self.side, len(V1_LAYOUT.file_names))
        self._order: deque[Ticket] = deque()
        self._finished: dict[int, Commit] = {}
        self._pending: list[Commit] = []
        self._last_flush = time.monotonic()
        check_v1_output(path, self.identity, append=append)
        self.disk.make_directory(self.side)
        self._claim = Claim(self.side, shared=shared)
        self._claim.acquire()
        self._names: dict[str, int] = {}
        self._text_end = 0
        with ExitStack() as undo:
            undo.callback(self.release)
            check_v1_output(path, self.identity, append=append)  # as another driver has left it meanwhile
            self._open()
            self._recover()
            undo.pop_all()
        self._next = self._assigned = self.total

    def writer(self) -> RowWriter:
        """What a worker writes rows with; pickles."""
        return RowWriter(V1_SCHEMA, V1_LAYOUT, self.disk.for_worker())

    def admit(
        self, candidates: Sequence[Candidate], *, retry_failed: bool = False, grow: bool = False
    ) -> list[Admission]:
        """As `StoreSink.admit`; rows are always added one by one, so `grow` makes no difference."""
        fresh = [candidate.key for candidate in candidates if candidate.key not in self._names]
        text = encode_keys(fresh)
        if len(fresh) > 1:
            require_room(self.path, len(fresh) * V1_LAYOUT.row_bytes)
        self._reserve(len(self._names) + len(fresh))
        self.disk.write(self.side / KEYS, text, self._text_end)
        self._text_end += len(text)
        for key in fresh:
            self._names[key] = len(self._names)
        rows = [self._names[candidate.key] for candidate in candidates]
        records = self.ledger.read(min(rows), max(rows) + 1) if rows else np.zeros(0, self.ledger.dtype)
        first = min(rows, default=0)
        return [
            self._verdict(candidate, row, records[row - first], retry_failed)
            for candidate, row in zip(candidates, rows, strict=True)
        ]

    def enter(self, ticket: Ticket) -> Admission:
        """Gives the ticket its place in the data files; the order of these calls is the order of the records."""
        placed = replace(ticket, position=self._assigned)
        self._assigned += 1
        self._order.append(placed)
        return Admission(verdict="compute", ticket=placed)

    def recompute(self, candidate: Candidate) -> Ticket | None:
        """Never: a v1 directory has no versions, and a record rewritten in place could be half right.

        Raises:
            OutputRefused: always; says what to do.
        """
        raise OutputRefused(
            f"{self.path}: {candidate.key} was made from other content than {candidate.origin} now holds, and layout v1 cannot "
            f"replace a record safely; convert into another folder, or use --layout store"
        )

    @property
    def wants_drain(self) -> bool:
        """Whether a failed row has left a hole among those in flight: new rows should wait until it is closed."""
        return self._assigned != self._next + len(self._order)

    def commit(self, commit: Commit) -> None:
        """Takes one finished row, in any order; rows become final in the order they entered."""
        self._finished[commit.ticket.row] = commit
        while self._order and self._order[0].row in self._finished:
            self._settle(self._finished.pop(self._order.popleft().row))
        if not self._order:
            self._assigned = self._next
        gathered = sum(ready.written.size for ready in self._pending if ready.written)
        if gathered >= COMMIT_BYTES or time.monotonic() - self._last_flush >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Group commit: data, names, ledger, then config.json, each flushed before the next."""
        pending, self._pending = self._pending, []
        self._last_flush = time.monotonic()
        if not pending:
            return
        self._claim.check()
        done = [commit for commit in pending if commit.written]
        for file in V1_LAYOUT.records if done else ():
            self.disk.sync(self.path / file.name)
        self._append_public_keys([commit.ticket.key for commit in done])
        self.disk.sync(self.side / KEYS)
        failures = [failure_line(commit) for commit in pending if commit.written is None]
        if failures:
            self.ledger.append_failures(self.disk, failures)
        self.ledger.write(self.disk, [commit.ticket.row for commit in pending], ledger_records(self.ledger, pending))
        self.disk.sync(self.ledger.rows_path)
        self.total += len(done)
        if done:
            write_config(self.disk, self.path, self.total, self.attributes)

    def close(self, *, complete: bool) -> None:
        """Commits what is in order, cuts off what is not, releases the claim."""
        self.flush()
        self._cut(self.total)
        self.release()

    def release(self) -> None:
        """Releases the claim and closes every file, without a flush."""
        self._claim.release()
        self.disk.close()

    @property
    def held(self) -> Mapping[str, str]:
        """Nothing: a v1 directory has one driver, and a second one is refused at once."""
        return {}

    def _open(self) -> None:
        if not (self.side / RECIPE).exists():
            if (self.path / CONFIG).exists():
                self._adopt()
            else:
                self._start_ledger()
        for name in [*(file.name for file in V1_LAYOUT.records), KEYS]:
            if not (self.path / name).exists():
                self.disk.resize(self.path / name, 0)
                self.disk.sync(self.path / name)
        if not (self.path / CONFIG).exists():
            write_config(self.disk, self.path, 0, self.attributes)

    def _start_ledger(self, keys: bytes = b"", records: np.ndarray | None = None) -> None:
        self.disk.make_directory(self.side)
        self.disk.replace(self.side / KEYS, keys)
        self.disk.replace(self.ledger.rows_path, b"" if records is None else records.tobytes())
        self.disk.replace(self.side / RECIPE, json.dumps(self.identity, indent=1, ensure_ascii=False).encode())

    def _adopt(self) -> None:
        """Takes over a v1 directory that others wrote: its rows are done, its checksums and input keys unknown (0)."""
        part = open_v1(self.path, exact=True)
        records = np.zeros(len(part), self.ledger.dtype)
        records["state"], records["position"] = DONE, np.arange(len(part))
        keys = [part.keys[row] for row in range(len(part))]
        self._start_ledger(encode_keys(keys), stamp(records))

    def _recover(self) -> None:
        """Finds what is committed: the records without a gap. What a crash left behind them is cut off."""
        records = self.ledger.read(0, len(self.ledger))
        done = np.flatnonzero(records["state"] == DONE)
        order = done[np.argsort(records["position"][done], kind="stable")]
        whole = records["position"][order] == np.arange(len(order))
        self.total = int(len(order) if whole.all() else np.argmin(whole))
        lost = order[self.total :].tolist()
        if lost:
            self.ledger.reset(self.disk, lost)
        used = np.flatnonzero(self.ledger.states(len(self.ledger)))
        rows = int(used[-1]) + 1 if len(used) else 0
        text = (self.side / KEYS).read_bytes()
        ends = line_ends(text)
        if len(ends) < rows:
            raise StoreCorrupt(f"{self.side / KEYS}: expected at least {rows} lines, found {len(ends)}")
        self._text_end = int(ends[rows - 1]) if rows else 0
        self._names = {name: row for row, name in enumerate(text[: self._text_end].decode().split("\n")[:-1])}
        self.disk.resize(self.side / KEYS, self._text_end)
        self.disk.resize(self.ledger.rows_path, rows * self.ledger.dtype.itemsize)
        self._cut(self.total)
        self._rewrite_public_keys(records, order[: self.total])
        if read_config(self.path)["total_samples"] != self.total:
            write_config(self.disk, self.path, self.total, self.attributes)

    def _rewrite_public_keys(self, records: np.ndarray, order: np.ndarray) -> None:
        """keys.txt has the names of committed rows, in the order of their records; a torn tail is replaced."""
        by_row = list(self._names)
        expected = encode_keys([by_row[row] for row in order.tolist()])
        path = self.path / KEYS
        if path.read_bytes() != expected:
            self.disk.replace(path, expected)
        self._public_end = len(expected)

    def _append_public_keys(self, keys: Sequence[str]) -> None:
        if keys:
            text = encode_keys(keys)
            self.disk.write(self.path / KEYS, text, self._public_end)
            self.disk.sync(self.path / KEYS)
            self._public_end += len(text)

    def _cut(self, total: int) -> None:
        for file in V1_LAYOUT.records:
            path = self.path / file.name
            size = total * file.record_bytes
            found = size_of(path)
            if found < size:
                raise StoreCorrupt(
                    f"{path}: expected {size} bytes for {total} committed rows, found {found}; run penstock repair"
                )
            if found > size:
                self.disk.resize(path, size)
                self.disk.sync(path)

    def _reserve(self, rows: int) -> None:
        size = rows * self.ledger.dtype.itemsize
        if self.ledger.rows_path.stat().st_size < size:
            self.disk.resize(self.ledger.rows_path, size)

    def _verdict(self, candidate: Candidate, row: int, record: np.ndarray, retry_failed: bool) -> Admission:
        state, cheap = int(record["state"]), int(record["cheap"])
        if state == DONE and cheap in (candidate.cheap, 0):
            return Admission(verdict="done")
        if state == DONE:
            return Admission(verdict="compare", content=int(record["content"]), origin=int(record["origin"]))
        if state == FAILED and cheap == candidate.cheap and not retry_failed:
            return Admission(verdict="failed")
        ticket = Ticket(
            key=candidate.key,
            folder=self.path,
            row=row,
            position=-1,
            cheap=candidate.cheap,
            origin=origin_hash(candidate.origin),
        )
        return Admission(verdict="compute", ticket=ticket)

    def _settle(self, commit: Commit) -> None:
        if commit.written:
            if commit.ticket.position != self._next:
                self._move(commit.ticket.position, self._next)
                commit = replace(commit, ticket=replace(commit.ticket, position=self._next))
            self._next += 1
        self._pending.append(commit)

    def _move(self, old: int, new: int) -> None:
        for file in V1_LAYOUT.records:
            path = self.path / file.name
            with path.open("rb") as source:
                source.seek(old * file.record_bytes)
                for start in range(0, file.record_bytes, _COPY_BYTES):
                    chunk = source.read(min(_COPY_BYTES, file.record_bytes - start))
                    self.disk.write(path, chunk, new * file.record_bytes + start)


def check_v1_output(path: Path, identity: Mapping[str, object], *, append: bool) -> None:
    """Refuses what is not ours to write; touches nothing.

    Raises:
        OutputRefused: the path holds something else, or a v1 directory that cannot be added to as it is.
        RecipeMismatch: it was made by another recipe.
    """
    if (path / CONFIG).exists() and read_config(path).get("bbox_format") == REBUILDING:
        raise OutputRefused(f"{path}: a repair was interrupted; run the same penstock repair again first")
    if (path / SIDE / RECIPE).exists():
        known = json.loads((path / SIDE / RECIPE).read_bytes())
        Manifest(schema=V1_SCHEMA, identity=known).check_identity(path, identity, V1_SCHEMA)
    elif (path / CONFIG).exists():
        if not append:
            text = "is a v1 directory that penstock did not write; --append adds to it; nothing was touched"
            raise OutputRefused(f"{path}: {text}")
        if read_config(path).get("bbox_format") != "xyxy":
            text = "its boxes are XYWH, new ones would be XYXY: run `penstock repair --boxes xyxy` on it first"
            raise OutputRefused(f"{path}: {text}; nothing was touched")
    elif not (path / SIDE).exists():
        refuse_foreign(path, begun=path / SIDE)
