"""Progress on stderr: rows, failures, rate and time left. A bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from penstock.report import Report

LINE_EVERY_S = 10.0


class Progress:
    """A context manager; `job` and `rows` are told how far the work is."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self._bar = Bar(*columns, console=console, transient=True) if self._is_terminal and not quiet else None
        self._task = self._bar.add_task("rows", total=None) if self._bar else None
        self._started = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def job(self, report: Report) -> None:
        """Shows how far a job is."""
        rate = report.bytes_written / 1e6 / max(1e-9, time.monotonic() - self._started)
        self._show(report.done + report.failed, report.planned, f"{report.failed} failed, {rate:.0f} MB/s")

    def rows(self, done: int, total: int) -> None:
        """Shows how many rows of how many are through."""
        self._show(done, total, "")

    def _show(self, done: int, total: int, text: str) -> None:
        if self.quiet:
            return
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=text or "rows")
            return
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            rate = done / (now - self._started)
            left = f", {(total - done) / rate:.0f} s left" if rate and total else ""
            sys.stderr.write(f"{done} of {total} rows, {rate:.1f}/s {text}{left}\n")
