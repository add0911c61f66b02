"""The local launcher where workers die before they begin."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import WorkersLost
from penstock.launch.local import Local
from penstock.schema import Field, Record, Schema
from penstock.source import Candidate, Lookup, SourceOffers
from penstock.store import StoreSink
from penstock.work import Order, Work

SCHEMA = Schema([Field(name="x", dtype="float32")])


class Ones:
    schema = SCHEMA
    keys = Lookup(4, str)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Record:
        return {"x": np.float32(index)}


class Same:
    name, version, batch_size, bitwise, schema = "same", 1, 1, True, SCHEMA

    def identity(self) -> dict[str, object]:
        return {}

    def setup(self, device: str) -> None:
        return

    def __call__(self, records: list[Record]) -> list[Record]:
        return records


def test_workers_that_are_all_killed_while_they_start_end_the_run_with_a_word(tmp_path: Path) -> None:
    sink = StoreSink(tmp_path / "out", SCHEMA)
    work = Work(offers=SourceOffers(Ones()), stage=Same(), writer=sink.writer(), device="cpu")
    ended = threading.Event()

    def reaper() -> None:
        while not ended.is_set():
            for child in children():
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)

    def batches() -> Iterator[list[Order]]:
        for index, admission in enumerate(sink.admit([Candidate(key=str(n), index=n) for n in range(4)])):
            yield [Order(candidate=Candidate(key=str(index), index=index), ticket=admission.ticket, place=index)]

    thread = threading.Thread(target=reaper)
    thread.start()
    try:
        with pytest.raises(WorkersLost, match="run the same command again"):
            list(Local(2).run(work, batches()))
    finally:
        ended.set()
        thread.join()
        sink.release()


def children() -> list[int]:
    """Workers of this process: those that multiprocessing spawned, but for its tracker of resources."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == os.getpid() and b"spawn_main" in command:
                found.append(int(entry.name))
    return found
