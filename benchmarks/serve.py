"""One peer in a process of its own: reads commands as JSON lines, does them, answers with figures as JSON lines.

Commands: available, write, open, epoch, steps, memory, close. Whatever a peer prints goes to stderr.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import residency
from peers import LIMITS, PEERS
from peers.base import Batch, Peer
from workloads import WORKLOADS, Records, check


class Server:
    """The commands, for one peer and one workload. Holds at most one open loader."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.key: tuple[Any, ...] = ()
        self.loader: Any = None

    def write(self, folder: str, rows: int) -> dict[str, Any]:
        """Seconds to write and flush the records, and the bytes on disk."""
        records = Records(self.peer.workload, rows)
        len(self.peer.workload.pool)  # made, and modules imported, before the clock starts
        self._import()
        started = time.perf_counter()
        self.peer.write(Path(folder), records)
        residency.sync(Path(folder))
        return {"seconds": time.perf_counter() - started, "bytes": residency.folder_bytes(Path(folder))}

    def available(self) -> dict[str, Any]:
        """Why the peer cannot run here, or None, and what the driver must know of it."""
        peer = self.peer
        facts = {"title": peer.name, "counts": peer.counts, "folder": peer.folder, "remark": peer.remark}
        return {"reason": peer.available(), "exact_shuffle": peer.exact_shuffle, "lossy": peer.lossy, **facts}

    def open(self, folder: str, workers: int, batch: int, epochs: int = 1) -> dict[str, Any]:
        """Opens the loader, unless it is open already; reads no batch."""
        key = (folder, workers, batch, epochs)
        if key != self.key:
            self.close()
            self.peer.epochs = epochs
            self.loader = self.peer.loader(Path(folder), batch, workers, seed=1)
            self.key = key
        return {}

    def epoch(self, folder: str, workers: int, batch: int, epochs: int = 1, verify: int = 0) -> dict[str, Any]:
        """Seconds of a pass; `verify` is the number of rows written: batches are compared with them, rows are counted."""
        self.open(folder, workers, batch, epochs)
        count, seen = 0, set()
        started = time.perf_counter()
        for found in self.loader:
            count += len(found[self.peer.workload.row_column])
            if verify:
                seen.update(check(self.peer.workload, found, self.peer.lossy).tolist())
        seconds = time.perf_counter() - started
        if verify and (count != verify * epochs or len(seen) != verify):
            raise ValueError(f"an epoch gave {count} records, {len(seen)} different ones, of {verify}")
        return {"seconds": seconds, "rows": count}

    def steps(self, steps: int, limit_s: float, step: str, **where: Any) -> dict[str, Any]:
        """Share of the time spent waiting for batches beside a training step of 20 ms, after five batches of warm-up."""
        self.open(**where)
        train = _train_step(step)
        batches = self._endless()
        for _ in range(5):
            next(batches)
            train()
        waited, done, first = 0.0, 0, time.perf_counter()
        while done < steps and time.perf_counter() - first < limit_s:
            before = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - before
            train()
            done += 1
        total = time.perf_counter() - first
        self.close()
        return {"seconds": total, "waited": waited / total, "steps": done, "rows": done * where["batch"]}

    def memory(self, batches: int, **where: Any) -> dict[str, Any]:
        """Private memory in MB while a loader gives many batches: before it was opened, then at ten points."""
        self._import()
        before = private_mb()
        self.open(**where)
        points = []
        found = self._endless()
        for number in range(1, batches + 1):
            next(found)
            if number % max(1, batches // 10) == 0:
                points.append(private_mb() - before)
        report = self.loader.report() if hasattr(self.loader, "report") else {}
        ring = report.get("buffers", 0) * report.get("buffer_bytes", 0)
        return {"before_mb": before, "points_mb": points, "ring_mb": ring / 1e6 if ring else None, "batches": batches}

    def close(self) -> dict[str, Any]:
        """Drops the loader and its workers."""
        stop = getattr(self.loader, "close", None)
        if stop is not None:
            stop()
        self.loader, self.key, stop = None, (), None
        gc.collect()
        return {}

    def _import(self) -> None:
        for module in self.peer.needs:
            with contextlib.suppress(ImportError, RuntimeError):  # the command itself will say what is wrong
                importlib.import_module(module)

    def _endless(self) -> Iterator[Batch]:
        return chain.from_iterable(repeat(self.loader))


def private_mb() -> float:
    """Private and shared anonymous memory of this process; pages of mapped files are the page cache's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def make(name: str, workload: str) -> Peer:
    """The peer of this name."""
    module, attribute = {**PEERS, **LIMITS}[name].split(":")
    package = "" if name in LIMITS else "peers."
    return getattr(importlib.import_module(package + module), attribute)(WORKLOADS[workload])  # type: ignore[no-any-return]


def main() -> None:
    """Serves until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("workload")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(make(arguments.peer, arguments.workload))
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(server, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its line in the table
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    server.close()


def _train_step(kind: str) -> Any:
    """20 ms: a sleep (a GPU step, which leaves the cores free) or a matmul on one thread (a step on the CPU)."""
    if kind == "sleep":
        return lambda: time.sleep(0.02)
    import torch

    torch.set_num_threads(1)
    matrix = torch.randn(512, 512)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    repeats = max(1, round(0.02 / sorted(times)[len(times) // 2]))

    def train() -> None:
        for _ in range(repeats):
            matrix @ matrix

    return train


if __name__ == "__main__":
    main()
