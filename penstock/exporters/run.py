"""Runs an exporter: output refused or made, sequences read and checked, the whole put in its place at once."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, cast

from penstock.errors import BadData, OutputRefused, PartClaimed, UsageError
from penstock.exporters.base import Exporter, Output, Sequences
from penstock.exporters.sequences import Pictures, SavedSet
from penstock.exporters.text import dump
from penstock.registry import find
from penstock.report import Budget, Report
from penstock.sequence_folder import SIDE, flush_folders
from penstock.store.claims import is_at
from penstock.store.disk import Disk
from penstock.store.output import full_said, refused_if_unwritable

COMMAND = "export"
EXPORT = "export.json"
TEMPORARY = ".exporting-"
"""How the name of a folder that is not whole yet begins."""


def export(
    saved_dir: Path | str,
    output: Path | str,
    *,
    format: str | Exporter,  # noqa: A002  # the name of the flag
    pictures: Pictures = "saved",
    licence: str = "",
    max_failures: str | None = None,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    disk: Disk | None = None,
    **options: object,
) -> Report:
    """Writes saved sequences in another layout.

    Everything is written into a folder beside the output, which gets its name when it is whole: after a kill there is no
    output, and the next run begins anew. A sequence that cannot be exported is left out, and named with the reason in the
    report and in `OUTPUT/.penstock/export.json`, which also says where each sequence comes from.

    Args:
        saved_dir: folder of saved sequences.
        output: new or empty folder.
        format: name of an exporter ("mot"), or one.
        pictures: "saved" takes `images/` and the boxes in them; "source" the source's own pictures, and boxes in these, of a
            set that was saved with pictures raw or both.
        licence: a note that is carried into the output.
        max_failures: how many sequences may fail: a count ("12") or a share ("0.5%"); none by default. More than that, and
            the report's exit code is 1; the others are exported anyhow.
        on_progress: called after every sequence with the report so far.
        stop: asked before every sequence; a non-empty answer ends the run, without output.
        disk: the write seam; tests replace it.
        options: those of the exporter.

    Returns:
        The report: rows are sequences.

    Raises:
        UsageError: no such format or option, or a package is missing; nothing was touched.
        SourceNotFound: no saved sequences there.
        OutputRefused: the output holds something; nothing was touched.
        PartClaimed: another run is exporting to it.
        BadData: not one sequence could be exported; the message has the first reason. There is no output.
        OutputFull: no room; nothing is left behind.
    """
    exporter = make_exporter(format, options)
    if pictures not in ("saved", "source"):
        raise UsageError(f"pictures: expected saved or source, got {pictures!r}")
    saved, target = SavedSet(Path(saved_dir), pictures), Path(output)
    _require_free(target)
    report = Report(command=COMMAND, output=str(target), planned=len(saved), notes={"format": exporter.name})
    report.budget = Budget.parse(max_failures) if max_failures is not None else report.budget
    sequences = Sequences(saved, report, licence=licence, on_progress=on_progress, stop=stop)
    begun = time.monotonic()
    seam = disk or Disk()
    with _folder_beside(target) as fresh, full_said(target, "nothing of the export was kept"):
        try:
            exporter.run(sequences, Output(fresh, seam))
            if not report.interrupted:
                _finish(fresh, target, seam, sequences, exporter)
        finally:
            seam.close()
    report.done = 0 if report.interrupted else report.done
    report.seconds = time.monotonic() - begun
    return report


def make_exporter(format: str | Exporter, options: dict[str, Any]) -> Exporter:  # noqa: A002  # as `export`
    """An exporter by its name, with its options.

    Raises:
        UsageError: there is no such name, or no such option, or a value that does not fit.
    """
    if not isinstance(format, str):
        if options:
            raise UsageError(f"export: options {', '.join(options)} beside an exporter; give them to the exporter")
        return format
    make = cast(Callable[..., Exporter], find("exporters", format))
    try:
        return make(**options)
    except TypeError as error:
        known = ", ".join(getattr(make, "__dataclass_fields__", {})) or "none"
        raise UsageError(f"export {format}: {', '.join(options)}: {error}; options are: {known}") from error


def _require_free(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        what = "is not empty" if target.is_dir() else "is a file"
        raise OutputRefused(f"{target}: {what}; expected a new or an empty folder; nothing was touched")


def _finish(fresh: Path, target: Path, disk: Disk, sequences: Sequences, exporter: Exporter) -> None:
    """Says what was done, and puts the folder in its place."""
    report = sequences.report
    if not report.done:
        first = sequences.failures[0]
        raise BadData(
            f"{sequences.saved.root}: none of {report.planned} sequences can be exported as {exporter.name}; "
            f"{first.key}: {first.message}"
        )
    about = {
        "format": "penstock export",
        "version": 1,
        "exporter": exporter.name,
        "exporter_version": exporter.version,
        "options": asdict(exporter) if is_dataclass(exporter) and not isinstance(exporter, type) else {},
        "set": sequences.summary(),
        "sequences": sequences.about,
        "failed": [failure.to_json() for failure in sequences.failures],
    }
    Output(fresh, disk).write({f"{SIDE}/{EXPORT}": dump(about)})
    report.bytes_written = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    flush_folders(disk, [fresh])
    _require_free(target)
    disk.rename(fresh, target)


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, locked for this run; it is removed at the end where it is still there."""
    fresh = target.absolute().with_name(f"{TEMPORARY}{target.absolute().name}")
    just = f"{target}: another run has just exported to it"
    with refused_if_unwritable(target):
        fresh.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            raise PartClaimed(just) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PartClaimed(f"{target}: another run is exporting to it") from error
        if not is_at(descriptor, fresh):
            raise PartClaimed(just)
        try:
            _require_free(target)
            for left in fresh.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield fresh
        finally:
            if is_at(descriptor, fresh):  # else it is that of another run, which began when this one was done
                shutil.rmtree(fresh, ignore_errors=True)
    finally:
        os.close(descriptor)
