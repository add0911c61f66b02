"""What the commands of training share: one rank of several, its lines, its exit code."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from penstock.cli_common import FAULT, OK
from penstock.report import dump_json

if TYPE_CHECKING:
    from penstock.train.distributed import Ranks

_SIGNALS = 128
"""Exit codes above it: the number of the signal that ended the run."""

Run = Callable[["Ranks", Callable[[str], None] | None], dict[str, Any]]
"""Trains as one rank; given what to say lines with, None on ranks that are silent."""


def run_ranked(
    command: str,
    device: str,
    run: Run,
    *,
    level: int,
    json: bool,
    closing: Callable[[dict[str, Any]], Sequence[str]],
    failed: Callable[[dict[str, Any]], bool] = lambda found: False,
) -> int:
    """Joins the ranks, runs, prints what came of it on the first one; gives the exit code.

    Args:
        command: for the JSON.
        device: as the configuration says.
        run: see `Run`.
        level: of the lines on stderr.
        json: print one object instead of lines.
        closing: the last lines for people.
        failed: whether what came of it is a failure.

    Raises:
        MissingExtra: torch is not installed.
        PenstockError: as `run`.
    """
    from penstock.errors import MissingExtra, PenstockError

    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("torch", "train", "training") from error
    from penstock.train.distributed import joined

    with joined(device) as ranks, _told(level if ranks.is_first else logging.WARNING):
        speaks = ranks.is_first and not json
        try:
            found = run(ranks, _say if speaks else None)
        except PenstockError as error:
            if ranks.is_first or not json:
                raise
            print(f"penstock: rank {ranks.rank}: {error}", file=sys.stderr)  # stdout is the first rank's: one object
            raise SystemExit(FAULT) from error  # no return: leaving in order waits for all ranks
        except SystemExit as stop:
            if ranks.is_first and isinstance(stop.code, int) and stop.code > _SIGNALS:
                _say_stopped(command, signal.Signals(stop.code - _SIGNALS).name, json=json)
            raise
        is_first = ranks.is_first
    has_failed = failed(found)
    if is_first and json:
        print(dump_json({"command": command, "status": "failed" if has_failed else "ok", **found}))
    elif is_first:
        for line in closing(found):
            print(line)
    return FAULT if has_failed else OK


def _say_stopped(command: str, name: str, *, json: bool) -> None:
    if json:
        print(dump_json({"command": command, "status": "partial", "interrupted": name}))
    print(f"penstock: {name}: stopped after a checkpoint; run it again to go on", file=sys.stderr)


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _told(level: int) -> Iterator[None]:
    """Lines of the training on stderr inside, from that level on."""
    log = logging.getLogger("penstock")
    before, handler = log.level, logging.StreamHandler(sys.stderr)
    is_heard = log.hasHandlers()
    log.setLevel(level)
    if not is_heard:
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
