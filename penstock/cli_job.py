"""A job on the command line: progress, signals, the report printed and saved, the exit code."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from penstock.errors import BudgetExceeded, StoreError
from penstock.report import Report, dump_json

if TYPE_CHECKING:
    from penstock.progress import Progress


def run_job(
    run: Callable[[Callable[[Report], None], Callable[[], str]], Report], output: Path, *, quiet: bool, json: bool
) -> int:
    """Runs a job with progress and signals; prints its report; gives the exit code."""
    from penstock.progress import Progress
    from penstock.report_page import save_report

    caught: list[signal.Signals] = []
    latest: list[Report] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        if len(caught) > 1:
            os._exit(128 + number)
        print(f"{caught[0].name}: finishing the rows in hand; once more stops at once", file=sys.stderr)

    def on_progress(report: Report, progress: "Progress") -> None:
        latest[:] = [report]
        progress.job(report)

    problem = ""
    with _handling(on_signal):
        try:
            with Progress(quiet=quiet or json) as progress:
                report = run(lambda report: on_progress(report, progress), lambda: caught[0].name if caught else "")
        except (BudgetExceeded, StoreError) as error:
            if not latest:
                raise
            report, problem = replace(latest[0]), str(error)
            report.interrupted = report.interrupted or type(error).__name__
            report.notes["error"] = problem
        try:
            save_report(report, output)
        except OSError as error:  # a full disk, say: the counts are printed all the same
            report.report = ""
            print(f"penstock: no report could be written: {error}", file=sys.stderr)
        print(dump_json(report.to_json()) if json else report.summary(), flush=True)
        if not json:
            _explain(report, problem)
    return 128 + caught[0] if caught else report.exit_code


@contextmanager
def _handling(on_signal: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call this while the job runs and its report is written."""
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _explain(report: Report, problem: str) -> None:
    for failure in report.failures:
        print(f"  failed: {failure.key}: {failure.error}: {failure.message}", file=sys.stderr)
    if sum(report.reasons.values()) > len(report.failures):
        print(f"  ... {dict(report.reasons)}; all are in _failures.jsonl", file=sys.stderr)
    for fault in report.problems:
        print(f"  input: {fault['path']}: {fault['message']}", file=sys.stderr)
    for name in ("held", "changed", "repeated", "ignored_members", "left_over", "unreadable_first"):
        if report.notes.get(name):
            print(f"  {name.replace('_', ' ')}: {report.notes[name]}", file=sys.stderr)
    if problem:
        print(f"  stopped: {problem}", file=sys.stderr)
    if report.report:
        print(f"  report: {report.report}", file=sys.stderr)
