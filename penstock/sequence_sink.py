"""The folder of saved sequences while it is written: what is there, what failed, who writes. Whole folders are the truth.

DIR/seq_000001_<timestamp>/       see `penstock.sequence_folder`
DIR/saved_paths_<timestamp>.txt   one path a line, written at the end of each run
DIR/.penstock/sequences.json      recipe and timestamp
DIR/.penstock/_failures.jsonl     one line for each failure
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.errors import OutputRefused, RecipeMismatch, UsageError
from penstock.report import Outcome
from penstock.schema import Record, Schema
from penstock.sequence_folder import (
    FORMAT,
    MANIFEST,
    MANIFEST_VERSION,
    SIDE,
    TEMPORARY,
    TIMESTAMP,
    flush_folders,
    in_order,
    load_provenance,
    read_manifest,
    saved_folders,
    write_aside,
)
from penstock.source import Candidate
from penstock.store.claims import Claim
from penstock.store.commit import Admission, Commit, failure_line
from penstock.store.disk import Disk
from penstock.store.layout import Layout
from penstock.store.sink import COMMIT_BYTES, COMMIT_SECONDS
from penstock.store.write import Encoded, RowWriter, Ticket, Written

FAILURES = "_failures.jsonl"


class FolderWriter(RowWriter):
    """What a worker writes with: a record of files (path in the folder -> (N,) uint8) becomes a folder, whole or not at all."""

    def __init__(self, timestamp: str, disk: Disk) -> None:
        schema = Schema([])
        super().__init__(schema, Layout.of(schema), disk)
        self.timestamp = timestamp

    def encode(self, record: Record) -> Encoded:
        """The files as they are."""
        return {name: np.asarray(content) for name, content in record.items()}

    def write_rows(self, folder: Path, position: int, rows: Sequence[Encoded]) -> list[Written]:
        """Writes one folder for each record, aside, from the number `position` on; the sink puts it in its place.

        Raises:
            OutputFull: no room; nothing is left of the folder at hand.
        """
        written = []
        for number, files in enumerate(rows, position):
            contents = {name: content.tobytes() for name, content in files.items()}
            fresh = write_aside(self.disk, folder / folder_name(number, self.timestamp), contents)
            size = sum(len(content) for content in contents.values())
            written.append(Written(sums=(), files=(str(fresh),), size=size))
        return written


class SequenceSink:
    """Where a job puts sequences (see `penstock.jobs.Sink`). One run at a time writes a folder.

    Args:
        path: new or empty folder, or that of an earlier run with the same recipe.
        identity: the recipe, plain values; what must be the same for all sequences of the folder.
        schema: the fields of a sequence as a record, for `penstock.saved.Saved`.
        timestamp: of the names; that of the earlier run if empty.
        now: the timestamp of a new folder for which none is given.
        provenance: recorded, not compared.
        durability: "power" or "process".
        disk: the write seam; tests replace it.

    Raises:
        OutputRefused: the folder holds something else.
        RecipeMismatch: it holds sequences of another recipe or another timestamp; the message names each difference.
        PartClaimed: another run is writing there.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: Mapping[str, object],
        schema: Schema,
        timestamp: str,
        now: str,
        provenance: Mapping[str, object],
        durability: str = "power",
        disk: Disk | None = None,
    ) -> None:
        self.path = path
        self.side = path / SIDE
        self.disk = disk or Disk(flush=durability == "power")
        self.identity: dict[str, Any] = orjson.loads(orjson.dumps(identity))
        check_output(path, self.identity, timestamp)
        self.disk.make_directory(self.side)
        self._pending: list[Path] = []
        self._pending_bytes, self._last_flush = 0, time.monotonic()
        self._claim = Claim(self.side)
        self._claim.acquire()
        with ExitStack() as undo:
            undo.callback(self.release)
            check_output(path, self.identity, timestamp)  # as another run has left it meanwhile
            known = read_manifest(path)
            self.timestamp = str(known["timestamp"]) if known else timestamp or now
            if not known:
                self._create(provenance, schema)
            for left in path.glob(f"{TEMPORARY}*"):
                shutil.rmtree(left)
            self._done = set(saved_folders(path))
            self._failed = self._known_failures()
            undo.pop_all()

    def writer(self) -> FolderWriter:
        """What a worker writes with; pickles."""
        return FolderWriter(self.timestamp, self.disk.for_worker())

    def admit(
        self, candidates: Sequence[Candidate], *, retry_failed: bool = False, grow: bool = False
    ) -> list[Admission]:
        """Which sequences are there, which failed before, which are to be made."""
        return [self._verdict(candidate, retry_failed) for candidate in candidates]

    def enter(self, ticket: Ticket) -> Admission:
        """The folder is claimed as a whole: always granted."""
        return Admission(verdict="compute", ticket=ticket)

    def recompute(self, candidate: Candidate) -> Ticket | None:
        """Never: a folder that is there is not touched."""
        return None

    def commit(self, commit: Commit) -> None:
        """Takes a folder that was written aside; notes a failure, flushed."""
        if commit.written is not None:
            self._pending.append(Path(commit.written.files[0]))
            self._pending_bytes += commit.written.size
            if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._last_flush >= COMMIT_SECONDS:
                self.flush()
            return
        line = orjson.dumps(failure_line(commit), option=orjson.OPT_APPEND_NEWLINE)
        path = self.side / FAILURES
        self.disk.write(path, line, path.stat().st_size if path.exists() else 0)
        self.disk.sync(path)

    def flush(self) -> None:
        """Puts the folders taken in their places, their files flushed before, their names after."""
        taken, self._pending, self._pending_bytes = self._pending, [], 0
        if taken:
            self._claim.check()
        flush_folders(self.disk, taken)
        for fresh in taken:
            name = fresh.name.removeprefix(TEMPORARY)
            os.rename(fresh, self.path / name)
            self._done.add(name)
        if taken:
            self.disk.sync_directory(self.path)
        self._last_flush = time.monotonic()

    def close(self, *, complete: bool) -> None:
        """Flushes, and writes the list of paths, in order."""
        self.flush()
        lines = "".join(f"{self.path / name}\n" for name in in_order(self._done))
        if lines:
            self.disk.replace(self.path / f"saved_paths_{self.timestamp}.txt", lines.encode())

    def release(self) -> None:
        """Keeps what is whole, also of a run that failed, and gives up the claim. Safe to call twice."""
        try:
            self.flush()
        finally:
            self._claim.release()
            self.disk.close()

    @property
    def wants_drain(self) -> bool:
        """Never: sequences do not wait for each other."""
        return False

    @property
    def held(self) -> Mapping[str, str]:
        """Nothing: a folder that another run holds is refused as a whole."""
        return {}

    def rejections(self) -> dict[str, int]:
        """Draws that were drawn again before the sequences that are there now, by reason."""
        counts: Counter[str] = Counter()
        for name in self._done:
            counts.update(one["reason"] for one in load_provenance(self.path / name)["rejections"])
        return dict(counts.most_common())

    def _verdict(self, candidate: Candidate, retry_failed: bool) -> Admission:
        assert candidate.index is not None
        if folder_name(candidate.index, self.timestamp) in self._done:
            return Admission(verdict="done")
        if candidate.key in self._failed and not retry_failed:
            return Admission(verdict="failed")
        ticket = Ticket(key=candidate.key, folder=self.path, row=candidate.index, position=candidate.index)
        return Admission(verdict="compute", ticket=ticket)

    def _create(self, provenance: Mapping[str, object], schema: Schema) -> None:
        content = {
            "format": FORMAT,
            "version": MANIFEST_VERSION,
            "timestamp": self.timestamp,
            "identity": self.identity,
            "schema": schema.to_json(),
            "provenance": provenance,
        }
        options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        self.disk.replace(self.side / MANIFEST, orjson.dumps(content, option=options))

    def _known_failures(self) -> dict[str, Outcome]:
        path = self.side / FAILURES
        if not path.exists():
            return {}
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a run that was killed while it wrote the last line
            self.disk.resize(path, len(whole))
        lines = (orjson.loads(line) for line in whole.splitlines())
        return {line["key"]: Outcome(key=line["key"], error=line["error"], message=line["message"]) for line in lines}


def folder_name(number: int, timestamp: str) -> str:
    """Name of the folder of the sequence `number`, from 0: "seq_000001_20241201_143022"."""
    return f"{sequence_key(number)}_{timestamp}"


def sequence_key(number: int) -> str:
    """Id of the sequence `number`, from 0: "seq_000001"."""
    return f"seq_{number + 1:06d}"


def check_output(path: Path, identity: Mapping[str, Any], timestamp: str) -> None:
    """Makes sure that a run may write here; touches nothing.

    Raises:
        OutputRefused, RecipeMismatch: as `SequenceSink`.
        UsageError: no timestamp as `YYYYmmdd_HHMMSS`.
    """
    if timestamp and not TIMESTAMP.fullmatch(timestamp):
        raise UsageError(f"timestamp: expected YYYYmmdd_HHMMSS, got {timestamp!r}")
    if path.exists() and not path.is_dir():
        raise OutputRefused(f"{path}: is a file; expected an empty or a new folder; nothing was touched")
    held = sorted(one.name for one in path.iterdir() if one.name != SIDE)[:3] if path.exists() else []
    known = read_manifest(path)  # looked for last: another run may have just begun
    if known is None:
        if held:
            raise OutputRefused(
                f"{path}: holds {', '.join(held)}; expected saved sequences with {SIDE}/{MANIFEST}, or an empty folder; "
                "nothing was touched"
            )
        return
    before, after = _flat(known["identity"]), _flat(dict(identity))
    if timestamp:
        before["timestamp"], after["timestamp"] = known["timestamp"], timestamp
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if names:
        lines = [f"{name}: saved {before.get(name)!r}, now {after.get(name)!r}" for name in names]
        raise RecipeMismatch(
            f"{path} was made with another configuration; use it, or another output folder:\n  " + "\n  ".join(lines)
        )


def _flat(content: Mapping[str, Any], start: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{start}{name}.")
        else:
            found[f"{start}{name}"] = value
    return found
