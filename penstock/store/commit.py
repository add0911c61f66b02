"""What driver, ledger and sinks say to each other: admissions, commits, and the lines they become on disk."""

import errno
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import OutputFull, OutputRefused
from penstock.store.rows import DONE, FAILED, Ledger
from penstock.store.write import Ticket, Written

_OURS = ("_plan", "store.json.new")
"""What a driver has, or leaves if it is killed, before its first manifest."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What the sink says to a candidate.

    verdict: "compute" (with a ticket), "done" (an unchanged row is there), "failed" (failed before, not to be retried),
    "compare" (the cheap input key differs: read the content, compare it with `content`), "held" (another driver has it).
    """

    verdict: str
    ticket: Ticket | None = None
    content: int = 0
    origin: int = 0


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One row to commit: written (done), or failed with an error class and a message."""

    ticket: Ticket
    content: int = 0
    written: Written | None = None
    error: str = ""
    message: str = ""
    source: str = ""
    """Name of the file that the row comes from."""
    attempt: int = 1
    stage: str = ""
    """Name of the stage that was to compute it."""


def ledger_records(ledger: Ledger, commits: Sequence[Commit]) -> np.ndarray:
    """The records of these rows as they go into `_rows.bin`."""
    records = np.zeros(len(commits), ledger.dtype)
    for record, commit in zip(records, commits, strict=True):
        ticket = commit.ticket
        record["state"] = DONE if commit.written else FAILED
        record["cheap"], record["content"], record["origin"] = ticket.cheap, commit.content, ticket.origin
        record["position"] = ticket.position if commit.written else -1
        if commit.written:
            record["sums"] = commit.written.sums
    return records


def failure_line(commit: Commit) -> dict[str, object]:
    """The line of `_failures.jsonl` for a failed row."""
    return {
        "key": commit.ticket.key,
        "row": commit.ticket.row,
        "source": commit.source,
        "stage": commit.stage,
        "error": commit.error,
        "message": commit.message,
        "attempt": commit.attempt,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def refuse_foreign(path: Path, *, begun: Path | None = None, ours: Sequence[str] = ()) -> None:
    """Makes sure that a path is free for a new store, of either layout.

    Args:
        path: the output.
        begun: a file that says, where it is there, that another driver has begun the same output meanwhile.
        ours: names of what may be there before that file is.

    Raises:
        OutputRefused: it is a file, or a folder that holds something.
    """
    if path.exists() and not path.is_dir():
        raise OutputRefused(f"{path}: is a file; expected an empty or a new folder; nothing was touched")
    entries = _names_in(path)
    if begun is not None and (begun.exists() or (begun.parent == path and begun.name in entries)):
        return
    for name, what in (
        ("store.json", "a penstock store (--layout store)"),
        ("config.json", "a v1 directory (--layout v1)"),
    ):
        if name in entries:
            raise OutputRefused(f"{path}: is {what}; give another folder, or that layout; nothing was touched")
    held = [name for name in entries if name not in (*_OURS, *ours) and not name.startswith("_plan.")][:3]
    if held:
        raise OutputRefused(
            f"{path}: holds {', '.join(held)}; expected a penstock store or an empty folder; nothing was touched"
        )


def _names_in(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def require_room(path: Path, size: int) -> None:
    """Makes sure that what is planned fits, before anything is computed.

    Raises:
        OutputFull: it does not.
    """
    free = shutil.disk_usage(path).free
    if free < size:
        raise OutputFull(errno.ENOSPC, f"{path}: {size:,} bytes are planned, {free:,} are free; nothing was computed")


def origin_hash(origin: str) -> int:
    """The 64-bit hash of a file name that a row's record keeps."""
    return xxhash.xxh3_64_intdigest(origin.encode()) if origin else 0
