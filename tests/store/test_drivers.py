"""Several drivers write one store at once, some of them killed, while a reader opens it again and again."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from penstock.check import verify
from penstock.errors import PartClaimed, RowError, SourceNotFound, StoreCorrupt
from penstock.jobs import Job
from penstock.launch.local import Inline
from penstock.report import Report
from penstock.source import Candidate
from penstock.store import StoreSink, open_store
from penstock.store.disk import Disk
from tests.store.crash import KillDisk, forked
from tests.test_jobs import OUT, Numbers, Square

ROWS, PART_ROWS, DRIVERS = 23, 4, 3


@dataclass(frozen=True, kw_only=True)
class Round:
    """What the drivers of one round are given."""

    moved: frozenset[int]
    bad: frozenset[int]
    cheap: int
    retry: bool

    def run(self, path: Path, *, shared: bool, disk: Disk | None = None) -> Report:
        sink = StoreSink(path, OUT, part_rows=PART_ROWS, disk=disk, shared=shared, durability="process")
        offers = Numbers(ROWS, moved=self.moved, cheap=self.cheap)
        report = Report(command="square", output=str(path))
        stage = Square(batch_size=1, bad=self.bad)
        return Job(
            offers=offers, stage=stage, sink=sink, launcher=Inline(), report=report, retry_failed=self.retry
        ).run()

    def expected(self, row: int) -> int:
        return (row + 1000 * (row in self.moved)) ** 2


def rounds_of(rng: random.Random) -> list[Round]:
    """Some rows fail at first, then some change and the failed ones are tried again."""
    bad = frozenset(rng.sample(range(ROWS), 3))
    moved = frozenset(rng.sample(range(ROWS), 5))
    return [
        Round(moved=frozenset(), bad=bad, cheap=1, retry=False),
        Round(moved=moved, bad=frozenset(), cheap=2, retry=True),
    ]


def look_at(path: Path, rounds: list[Round]) -> None:
    """What a reader finds while the store is being written: each row right, or not there yet, or replaced since."""
    store = open_store(path)
    for row in range(len(store)):
        try:
            found = int(np.asarray(store.read(row, ["square"])["square"]))
        except RowError:
            continue
        except StoreCorrupt as error:
            if "open it again" not in str(error):
                raise
            return
        assert found in [one.expected(row) for one in rounds]


@pytest.mark.parametrize("shared", [False, True], ids=["lock", "file"])
def test_drivers_at_once_and_kills_leave_what_one_driver_does(tmp_path: Path, shared: bool) -> None:
    opened = killed = 0
    for seed in range(12):
        rng = random.Random(seed)
        path = tmp_path / f"s{seed}"
        rounds = rounds_of(rng)
        for number, one in enumerate(rounds):
            children = {}
            for driver in range(DRIVERS):
                # A driver whose claims are files leaves them behind for a minute when it is killed.
                disk = KillDisk(rng.randrange(5, 120)) if driver == 0 and not shared else None
                told = tmp_path / f"{seed}-{number}-{driver}"
                children[forked(partial(one.run, path, shared=shared, disk=disk), told)] = told
            while children:
                with suppress(SourceNotFound):  # not begun yet
                    look_at(path, rounds)
                    opened += 1
                for child, told in list(children.items()):
                    pid, status = os.waitpid(child, os.WNOHANG)
                    if pid:
                        del children[pid]
                        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
                        assert not told.exists(), told.read_text()
            one.run(path, shared=shared)
        store = open_store(path)
        values = {store.keys[row]: int(np.asarray(store[row]["square"])) for row in range(len(store))}
        assert values == {f"n{row}": rounds[-1].expected(row) for row in range(ROWS)}
        assert store.counts()["done"] == ROWS
        assert verify(path).ok
        assert not shared or not list(path.rglob("_claim*"))  # nobody was killed with one
    assert opened > 50
    assert killed > 6 or shared


class Stream(Numbers):
    """Gives its rows along with their keys, as a pipe does."""

    def candidates(self) -> Iterator[Candidate]:
        """In order, once."""
        return (replace(one, record=self[one.index]) for one in super().candidates())


def fill(path: Path, rows: int, disk: Disk | None = None) -> None:
    """A run that adds rows one by one; a second one is told who is at it."""
    sink = StoreSink(path, OUT, part_rows=PART_ROWS, disk=disk, durability="process")
    report = Report(command="square", output=str(path))
    stage = Square(batch_size=1)
    with suppress(PartClaimed):
        Job(offers=Stream(rows), stage=stage, sink=sink, launcher=Inline(), report=report, is_stream=True).run()


def test_streams_at_once_and_kills_leave_each_key_once(tmp_path: Path) -> None:
    killed = 0
    for seed in range(12):
        rng = random.Random(seed)
        path = tmp_path / f"s{seed}"
        for rows in (9, ROWS):
            disks = [KillDisk(rng.randrange(5, 150)), None, None]
            told = [tmp_path / f"{seed}-{rows}-{number}" for number in range(DRIVERS)]
            children = [forked(partial(fill, path, rows, disk), one) for disk, one in zip(disks, told, strict=True)]
            for child, one in zip(children, told, strict=True):
                killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
                assert not one.exists(), one.read_text()
            fill(path, rows)
        store = open_store(path)
        values = [(store.keys[row], int(np.asarray(store[row]["square"]))) for row in range(len(store))]
        assert sorted(values) == sorted((f"n{row}", row**2) for row in range(ROWS))
        assert verify(path).ok
    assert killed > 6
