"""Which rows of a job are to be computed, and why: from the keys of its input and what the output has."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from penstock.errors import SourceNotFound
from penstock.report import Report
from penstock.source import Problem
from penstock.store.manifest import Manifest
from penstock.store.rows import DONE, FAILED

COMPUTED = ("missing", "changed input", "failed before")
"""Reasons for which a row is computed."""

Known = Mapping[str, tuple[int, int]]
"""Key -> state and cheap input key of a row of the output, as of `store.state.known_rows`."""


def reason_of(key: str, cheap: int, known: Known, *, retry: bool) -> str:
    """Why a row is computed, or not: one of `COMPUTED`, "done", "failed before, not retried".

    Args:
        key: of the row.
        cheap: its cheap input key now; one that is known as 0 was never recorded, and counts as the same.
        known: rows of the output.
        retry: whether failed rows are tried again from the same input.
    """
    state, before = known.get(key, (0, 0))
    if not state:
        return "missing"
    if before not in (cheap, 0):
        return "changed input"
    if state == FAILED:
        return "failed before" if retry else "failed before, not retried"
    return "done" if state == DONE else "missing"


def reasons_of(rows: Iterable[tuple[str, int]], known: Known, *, retry: bool) -> Counter[str]:
    """How many rows (key, cheap input key) have each reason."""
    return Counter(reason_of(key, cheap, known, retry=retry) for key, cheap in rows)


def num_computed(reasons: Mapping[str, int]) -> int:
    """How many of them are computed."""
    return sum(reasons.get(reason, 0) for reason in COMPUTED)


def say_unchanged(report: Report, reasons: Mapping[str, int], problems: Sequence[Problem]) -> None:
    """Makes the report that of a run that has nothing to do.

    Args:
        report: changed in place.
        reasons: from `reasons_of`; of no row to be computed.
        problems: of the source.
    """
    report.planned = report.skipped = sum(reasons.values())
    report.done = reasons.get("done", 0)
    report.failed = report.planned - report.done
    report.problems = [vars(problem) for problem in problems]
    report.notes["unchanged"] = True


def is_sealed(output: Path) -> bool:
    """Whether a store is there with every part sealed: no row of it is missing."""
    try:
        parts = Manifest.load(output).parts
    except SourceNotFound:
        return False
    return bool(parts) and all(entry.sealed and not entry.draft for entry in parts)
