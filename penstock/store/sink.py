"""StoreSink: the driver's side of a store that is being written: plan parts, hand out tickets, commit rows, seal."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from penstock.errors import PartClaimed, UsageError
from penstock.schema import Schema
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
from penstock.store.keys import encode_keys
from penstock.store.known import Known
from penstock.store.layout import Layout
from penstock.store.manifest import NAME, Manifest, PartEntry
from penstock.store.open_part import OpenPart, allocate, cut_torn_keys, remove_leftovers
from penstock.store.rows import DONE, FAILED, KEYS
from penstock.store.seal import copy_for_recompute, seal
from penstock.store.write import RowWriter, Ticket

PART_BYTES = 16 << 30
MAX_PART_ROWS = 1 << 20
COMMIT_BYTES = 256 << 20
COMMIT_SECONDS = 5.0
PLAN_WAIT_S = 600.0


class StoreSink:
    """Writes rows into a store under claims. One driver per part; any number of drivers per store."""

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        identity: Mapping[str, object] | None = None,
        attributes: Mapping[str, object] | None = None,
        provenance: Mapping[str, object] | None = None,
        durability: str = "power",
        part_rows: int | None = None,
        disk: Disk | None = None,
        shared: bool | None = None,
    ) -> None:
        self.path = path
        self.schema = schema
        self.layout = Layout.of(schema)
        self.disk = disk or Disk(flush=durability == "power")
        self.shared = shared
        self.part_rows = part_rows or max(1, min(MAX_PART_ROWS, PART_BYTES // max(1, self.layout.row_bytes)))
        self._parts: dict[str, OpenPart] = {}
        self._held: dict[str, str] = {}
        self._ended: dict[str, np.ndarray] = {}  # states of parts that another driver was seen to have sealed
        self._folders: dict[str, Path] = {}
        self._pending: list[Commit] = []
        self._pending_bytes = 0
        self._last_flush = time.monotonic()
        self.known = Known(path, self._open(identity or {}, attributes or {}, provenance or {}), self._parts)

    def writer(self) -> RowWriter:
        """What a worker writes rows with; pickles."""
        return RowWriter(self.schema, self.layout, self.disk.for_worker())

    # Planning

    def admit(
        self, candidates: Sequence[Candidate], *, retry_failed: bool = False, grow: bool = False
    ) -> list[Admission]:
        """Finds or plans the row of each candidate, in order.

        Args:
            candidates: rows offered, each key once.
            retry_failed: whether rows that failed before, from unchanged input, are tried again.
            grow: add new keys to a part that grows (the input is a stream) instead of planning whole parts.
        """
        keys = [candidate.key for candidate in candidates]
        if len(set(keys)) < len(keys):
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise UsageError(f"{self.path}: key {twice!r} is offered twice; a key names one row")
        if grow and self.known.manifest.parts:
            self._settled_growing_part()
        known = self.known.find(keys)
        fresh = [key for key in keys if key not in known]
        planned = (self._grow(fresh) if grow else self._plan(fresh)) if fresh else {}
        records = self.known.records(known)
        return [
            self._verdict(candidate, *known[candidate.key], records[candidate.key], retry_failed)
            if candidate.key in known
            else Admission(verdict="compute", ticket=self._ticket(candidate, *planned[candidate.key]))
            for candidate in candidates
        ]

    def enter(self, ticket: Ticket) -> Admission:
        """Takes the claim that a ticket needs, right before its row is computed: "compute", "done" or "held"."""
        folder = ticket.folder.name
        part = self._claimed(folder)
        if folder in self._held:
            return Admission(verdict="held")
        state = int((self._ended[folder] if part is None else part.states)[ticket.row])
        if part is not None and not state:
            return Admission(verdict="compute", ticket=ticket)
        return Admission(
            verdict={DONE: "done", FAILED: "failed"}.get(state, "held")
        )  # by another, since it was admitted

    @property
    def wants_drain(self) -> bool:
        """Whether the driver should let the rows in flight finish before it hands out more. Never: rows have fixed places."""
        return False

    def recompute(self, candidate: Candidate) -> Ticket | None:
        """Leave to replace the done row of a candidate whose input has changed; None if another driver holds the part.

        A sealed part is copied first; readers of the old version are undisturbed.
        """
        name, row = self.known.find([candidate.key])[candidate.key]
        part = self._rewritable(name)
        if part is None:
            return None
        if part.states[row]:
            part.ledger.reset(self.disk, [row])
            part.states[row] = 0
        return self._ticket(candidate, part.folder.name, row)

    # Committing

    def commit(self, commit: Commit) -> None:
        """Takes one finished row; flushes when enough bytes or seconds have gathered."""
        self._pending.append(commit)
        self._pending_bytes += commit.written.size if commit.written else 0
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._last_flush >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Group commit: data, then keys, then failures, then the rows' records, each flushed before the next."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        for name in sorted({file for commit in pending if commit.written for file in commit.written.files}):
            self.disk.sync(Path(name))
        for folder in dict.fromkeys(commit.ticket.folder for commit in pending):
            part = self._parts[folder.name]
            part.claim.check()
            self._commit_part(part, [commit for commit in pending if commit.ticket.folder == folder])
        self._last_flush = time.monotonic()

    def close(self, *, complete: bool) -> None:
        """Flushes, seals what can be sealed, releases every claim. `complete`: the input has ended, growing parts too."""
        self.flush()
        if complete:
            for entry in self.known.manifest.parts:
                folder = entry.draft or entry.name
                if (not entry.sealed or entry.draft) and folder not in self._held:
                    self._seal_if_whole(self._claimed(folder), complete=True)
        self.release()

    def release(self) -> None:
        """Releases every claim and closes every file, without a flush or a seal."""
        for part in self._parts.values():
            part.claim.release()
        self._parts.clear()
        self.disk.close()

    @property
    def held(self) -> Mapping[str, str]:
        """Folders of parts that another driver was seen to hold, and who that is."""
        return dict(self._held)

    def _open(
        self, identity: Mapping[str, object], attributes: Mapping[str, object], provenance: Mapping[str, object]
    ) -> Manifest:
        if (self.path / NAME).exists():
            manifest = Manifest.load(self.path)
            manifest.check_identity(self.path, identity, self.schema)
            for entry in manifest.parts:
                if entry.sealed and not entry.draft:
                    remove_leftovers(self.disk, self.path, entry, self.layout)
            return manifest
        refuse_foreign(self.path, begun=self.path / NAME)
        self.disk.make_directory(self.path)
        with self._planning():
            if not (self.path / NAME).exists():
                fresh = Manifest(schema=self.schema, attributes=attributes, identity=identity, provenance=provenance)
                fresh.save(self.disk, self.path)
        return self._open(identity, attributes, provenance)  # by another driver with another recipe, maybe

    def _plan(self, keys: Sequence[str]) -> dict[str, tuple[str, int]]:
        with self._planning():
            self.known.reload()
            self._settled_growing_part()
            found = self.known.find(keys)  # another driver may have planned them meanwhile
            fresh = [key for key in keys if key not in found]
            manifest = self.known.manifest
            require_room(self.path, len(fresh) * self.layout.row_bytes)
            for start in range(0, len(fresh), self.part_rows):
                some = fresh[start : start + self.part_rows]
                entry = PartEntry(name=f"part-{len(manifest.parts):05d}", rows=len(some))
                allocate(self.disk, self.path / entry.name, entry.rows, self.layout, encode_keys(some))
                manifest = manifest.with_part(entry)
                found |= {key: (entry.name, row) for row, key in enumerate(some)}
            manifest.save(self.disk, self.path)
            self.known.manifest = manifest
        return found

    def _grow(self, keys: Sequence[str]) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        while rest := [key for key in keys if key not in found]:
            part = next((part for part in self._parts.values() if part.entry.growing), None)
            if part is None:
                self._begin_growing(rest)
                found |= self.known.find(rest)  # added by another driver, while none of the parts was ours
                continue
            some = rest[: part.entry.rows - part.rows]
            lines = encode_keys(some)
            self.disk.write(part.folder / KEYS, lines, part.text_end)
            rows = {key: part.rows + number for number, key in enumerate(some)}
            found |= {key: (part.entry.name, row) for key, row in rows.items()}
            part.names |= rows
            part.text_end += len(lines)
            part.rows += len(some)
            if part.rows == part.entry.rows:
                self._settle_keys(part)
                part.entry = replace(part.entry, growing=False)
                self._update(part.entry)
        return found

    def _begin_growing(self, keys: Sequence[str]) -> None:
        """Takes the claim of the part that grows; makes one where there is none, and not all keys are known by now."""
        with self._planning():
            self.known.reload()
            if self._settled_growing_part() is not None or len(self.known.find(keys)) == len(keys):
                return
            entry = PartEntry(name=f"part-{len(self.known.manifest.parts):05d}", rows=self.part_rows, growing=True)
            allocate(self.disk, self.path / entry.name, entry.rows, self.layout, b"")
            claim = Claim(self.path / entry.name, shared=self.shared)
            claim.acquire()  # before anybody can know of it
            part = OpenPart(entry, self.path / entry.name, self.layout, claim)
            part.rows = 0
            self._parts[entry.name] = part
            self.known.manifest = self.known.manifest.with_part(entry)
            self.known.manifest.save(self.disk, self.path)

    def _settled_growing_part(self) -> OpenPart | None:
        """The part that grows, under our claim, so that all its keys are known.

        Raises:
            PartClaimed: another driver is adding keys to it.
        """
        for entry in self.known.manifest.parts:
            if entry.growing and not entry.sealed:
                part = self._claimed(entry.name)
                if part is None and entry.name in self._held:
                    raise PartClaimed(self._held[entry.name])
                return part or self._settled_growing_part()  # sealed meanwhile; now the manifest says so
        return None

    def _verdict(self, candidate: Candidate, name: str, row: int, record: np.ndarray, retry_failed: bool) -> Admission:
        folder = self.known.entry(name).draft or name
        state, same = int(record["state"]), int(record["cheap"]) == candidate.cheap
        if state and same and not (state == FAILED and retry_failed):
            return Admission(verdict="done" if state == DONE else "failed")
        if state == DONE:
            return Admission(verdict="compare", content=int(record["content"]), origin=int(record["origin"]))
        if state == FAILED:
            ticket = self.recompute(candidate)
            return Admission(verdict="compute", ticket=ticket) if ticket else Admission(verdict="held")
        return Admission(verdict="compute", ticket=self._ticket(candidate, folder, row))

    def _ticket(self, candidate: Candidate, folder: str, row: int) -> Ticket:
        if folder not in self._folders:
            self._folders[folder] = self.path / folder
        return Ticket(
            key=candidate.key,
            folder=self._folders[folder],
            row=row,
            position=row,
            cheap=candidate.cheap,
            origin=origin_hash(candidate.origin),
        )

    def _claimed(self, folder: str) -> OpenPart | None:
        """The part under our claim. None where another driver has it (`held` says who), or has sealed it since the manifest
        was read: the manifest is that of now then."""
        if folder in self._parts:
            return self._parts[folder]
        claim = None if folder in self._ended else self._claim(folder)
        if claim is None:
            return None
        with ExitStack() as undo:
            undo.callback(claim.release)
            self.known.reload()
            entry = self.known.entry(folder)
            if folder != entry.draft and (entry.sealed or folder != entry.name):
                self._ended[folder] = self.known.states(folder)
                return None
            part = OpenPart(entry, self.path / folder, self.layout, claim)
            if entry.growing and not entry.sealed:
                cut_torn_keys(self.disk, part)
            undo.pop_all()
        self._parts[folder] = part
        return part

    def _claim(self, folder: str) -> Claim | None:
        if folder in self._held:
            return None
        claim = Claim(self.path / folder, shared=self.shared)
        try:
            claim.acquire()
        except PartClaimed as error:
            self._held[folder] = str(error)
            return None
        return claim

    def _rewritable(self, name: str) -> OpenPart | None:
        """The newest version of a part, not sealed, under our claim; None if another driver holds it."""
        while True:
            entry = self.known.entry(name)
            folder = entry.draft or entry.name
            if entry.sealed and not entry.draft:
                self._begin_version(entry)
            elif (part := self._claimed(folder)) is not None:
                return part
            if folder in self._held:
                return None

    def _begin_version(self, sealed: PartEntry) -> None:
        """Copies a sealed part, unless another driver has begun its next version, or ended it, meanwhile."""
        claim = self._claim(sealed.name)
        if claim is None:
            return
        try:
            self.known.reload()
            if self.known.entry(sealed.name) == sealed:
                draft = copy_for_recompute(self.disk, self.path, sealed, self.layout)
                self._update(replace(sealed, draft=draft))
        finally:
            claim.release()

    def _update(self, entry: PartEntry) -> None:
        with self._planning():
            self.known.manifest = Manifest.load(self.path).with_part(entry)
            self.known.manifest.save(self.disk, self.path)

    @contextmanager
    def _planning(self) -> Iterator[None]:
        """The right to replace the manifest; held shortly, so whoever wants it waits."""
        claim = Claim(self.path, shared=self.shared, name="_plan")
        claim.acquire(wait_s=PLAN_WAIT_S)
        try:
            yield
        finally:
            claim.release()

    def _settle_keys(self, part: OpenPart | None) -> None:
        if part is not None and part.entry.growing:
            self.disk.sync(part.folder / KEYS)

    def _commit_part(self, part: OpenPart, commits: Sequence[Commit]) -> None:
        self._settle_keys(part)
        failures = [failure_line(commit) for commit in commits if commit.written is None]
        if failures:
            part.ledger.append_failures(self.disk, failures)
        rows = [commit.ticket.row for commit in commits]
        part.ledger.write(self.disk, rows, ledger_records(part.ledger, commits))
        self.disk.sync(part.ledger.rows_path)
        part.states[rows] = [DONE if commit.written else FAILED for commit in commits]
        self._seal_if_whole(part, complete=False)

    def _seal_if_whole(self, part: OpenPart | None, *, complete: bool) -> None:
        if part is None or part.missing or (part.entry.growing and not complete) or not part.rows:
            return
        old = part.entry
        entry = seal(self.disk, part.folder, part.entry, self.layout, rows=part.rows)
        self._update(entry)
        self._parts.pop(part.folder.name)
        part.claim.release()
        self.known.forget(old.name)
        remove_leftovers(self.disk, self.path, entry, self.layout)
