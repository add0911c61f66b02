"""The phases of one workload: write, choose workers, warm repetitions, a training step beside, cold repetitions."""

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import limits
import residency
from driver import Process
from peers import LIMITS
from workloads import WORKLOADS

ANCHORS = ("penstock", *LIMITS)
"""Run in every group, interleaved with the peers of the group."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to do."""

    rows: int
    batches: tuple[int, ...]
    """Batch sizes; the first is used for everything but the warm repetitions."""
    repetitions: int
    cold_repetitions: int
    pass_s: float
    """Fast loaders run several epochs in a row until a pass takes about this long."""
    steps: int
    step_limit_s: float
    step: str
    timeout_s: float
    quick: bool
    until: Mapping[str, float] = field(default_factory=dict)
    """time.monotonic() after which no further peer is begun (start), repeated (repeat), timed beside a step or cold."""

    def is_late(self, phase: str) -> bool:
        """Whether the time of a phase is used up."""
        return time.monotonic() > self.until.get(phase, float("inf"))


@dataclass
class Row:
    """What was measured of one peer."""

    peer: str
    title: str = ""
    remark: str = ""
    reason: str = ""
    """Why it was not run, or what failed."""
    counts: Sequence[int] = ()
    folder: str = ""
    best: int = 0
    epochs: int = 1
    write_rate: float = 0.0
    write_share: float = 0.0
    """Of the disk's write limit measured just before."""
    disk_bytes: int = 0
    chosen_by: dict[int, float] = field(default_factory=dict)
    """Records per second of one pass for each number of workers."""
    warm: dict[int, dict[str, float]] = field(default_factory=dict)
    """Records per second by batch size and repetition ("group.repetition")."""
    cold: list[float] = field(default_factory=list)
    cold_limit: list[float] = field(default_factory=list)
    """Records per second at the disk's O_DIRECT rate, measured in the same repetition."""
    cold_workers: int = 0
    steps: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether nothing has failed yet."""
        return not self.reason

    def rates(self, batch: int) -> list[float]:
        """Records per second of every warm repetition."""
        return list(self.warm.get(batch, {}).values())


class Bench:
    """Runs the phases for one workload."""

    def __init__(
        self, workload: str, plan: Plan, folder: Path, pythons: dict[str, str], say: Callable[[str], None]
    ) -> None:
        self.workload = WORKLOADS[workload]
        self.plan = plan
        self.folder = folder / workload
        self.folder.mkdir(parents=True)
        self.pythons = pythons
        self.say = say
        self.rows: dict[str, Row] = {}
        self.processes: dict[str, Process] = {}
        self.residencies: list[float] = []
        self.disk_write: list[float] = []

    def run(self, peers: Sequence[str], groups_of: int) -> dict[str, Row]:
        """Measures the peers in groups, the anchors in every group."""
        names = [*ANCHORS, *(name for name in peers if name not in ANCHORS)]
        log = self.folder.parent / "peers.log"
        for name in names:
            self.processes[name] = Process(name, self.workload.name, self.pythons.get(name, ""), log)
        for name in names:
            self._ask(name)
        others = [name for name in peers if name not in ANCHORS and self.rows[name].is_run]
        folders = sorted({self._folder(name) for name in others}, key=[self._folder(name) for name in others].index)
        for number, start in enumerate(range(0, max(1, len(folders)), groups_of)):
            here = set(folders[start : start + groups_of])
            self._group(number, [name for name in others if self._folder(name) in here])
        for process in self.processes.values():
            process.end()
        shutil.rmtree(self.folder)
        return self.rows

    def _group(self, number: int, names: list[str]) -> None:
        started = time.monotonic()
        for name in (*ANCHORS, *names):
            if self.plan.is_late("start") and name not in ANCHORS:
                self._fail(name, "the time of --quick was used up")
            self._write(name)
            self._choose(name)
        self._clock(started, "written, workers chosen")
        names = [name for name in (*ANCHORS, *names) if self.rows[name].is_run]
        self._warm_up(names)
        for batch in self.plan.batches:
            self._repeat([name for name in names if self.rows[name].is_run], batch, number)
        self._clock(started, "warm repetitions")
        for name in names:
            self._steps(name)
        self._clock(started, "beside a step")
        for _ in range(self.plan.cold_repetitions):
            self._cold([name for name in names if self.rows[name].is_run and name not in LIMITS])
        kept = {self._folder(name) for name in ANCHORS}
        for name in names:
            if name not in ANCHORS:
                self.processes.pop(name).end()
        for folder in {self._folder(name) for name in names} - kept:
            shutil.rmtree(folder, ignore_errors=True)
        self._clock(started, f"group {number} done: {', '.join(names)}")

    def _clock(self, started: float, what: str) -> None:
        self.say(f"workload {self.workload.name}, {time.monotonic() - started:.0f} s: {what}")

    def _ask(self, name: str) -> None:
        self.rows[name] = Row(name)
        answer = self.processes[name].call("available", 60)
        row = self.rows[name]
        for key in ("title", "remark", "counts", "folder"):
            setattr(row, key, answer.get(key) or getattr(row, key))
        if self.plan.quick and len(row.counts) > 2:
            row.counts = (row.counts[0], row.counts[-1])
        reason = answer.get("error") or answer["reason"]
        if reason:
            self._fail(name, reason)

    def _write(self, name: str) -> None:
        row, folder = self.rows[name], self._folder(name)
        if not row.is_run or folder.exists():
            return
        folder.mkdir()
        size = self.plan.rows * self.workload.record_bytes
        limit = limits.disk_write(self.folder, min(size, 1 << 30), direct=True)
        answer = self._call(name, "write", folder=str(folder), rows=self.plan.rows)
        if answer:
            self.disk_write.append(limit)
            row.write_rate = self.plan.rows / answer["seconds"]
            row.write_share = row.write_rate * self.workload.record_bytes / 1e9 / limit
            row.disk_bytes = answer["bytes"]

    def _warm_up(self, names: list[str]) -> None:
        folders = sorted({self._folder(name) for name in names})
        for folder in folders:
            residency.warm(folder)
        self.residencies += [residency.resident_share(folder) for folder in folders]

    def _choose(self, name: str) -> None:
        """Checks the first epoch, then takes the number of workers that gives the most records per second."""
        row = self.rows[name]
        if row.chosen_by or not row.is_run:
            return
        for count in row.counts:
            row.epochs = 1
            found = self._epoch(name, count, verify=0 if row.chosen_by else self.plan.rows)
            if not found:
                return
            row.epochs = self._epochs(found["seconds"])
            if row.epochs > 1:
                self._epoch(name, count)
            found = self._epoch(name, count)
            if not found:
                return
            row.chosen_by[count] = found["rows"] / found["seconds"]
        row.best = max(row.chosen_by, key=lambda count: row.chosen_by[count])
        row.epochs = self._epochs(self.plan.rows / row.chosen_by[row.best])

    def _epochs(self, seconds: float) -> int:
        """Epochs of so many seconds that make a pass long enough."""
        return max(1, min(12, round(self.plan.pass_s / seconds)))

    def _repeat(self, names: list[str], batch: int, group: int) -> None:
        """Every loader and limit once per repetition, each time in another order."""
        for name in names:
            self._epoch(name, self.rows[name].best, batch=batch)
        for repetition in range(self.plan.repetitions):
            if repetition and self.plan.is_late("repeat"):
                break
            at = repetition * max(1, len(names) // self.plan.repetitions) % max(1, len(names))
            for name in names[at:] + names[:at]:
                found = self._epoch(name, self.rows[name].best, batch=batch) if self.rows[name].is_run else None
                if found:
                    rates = self.rows[name].warm.setdefault(batch, {})
                    rates[f"{group}.{repetition}"] = found["rows"] / found["seconds"]

    def _steps(self, name: str) -> None:
        row = self.rows[name]
        if not row.is_run or name in LIMITS or row.steps or self.workload.name != "A":
            return
        if self.plan.is_late("step") and name != "penstock":
            return
        limit = self.plan.step_limit_s * (4 if name == "penstock" else 1)
        epochs = -(-(self.plan.steps + 20) * self.plan.batches[0] // self.plan.rows)
        for count in row.counts[-1:] if self.plan.quick else row.counts:
            settings = {"steps": self.plan.steps, "limit_s": limit, "step": self.plan.step}
            found = self._call(name, "steps", **self._where(name, count), epochs=epochs, **settings)
            if found:
                row.steps[count] = found

    def _cold(self, names: list[str]) -> None:
        raw = self._folder("take")
        for name in names:
            if self.plan.is_late("cold"):
                return
            row = self.rows[name]
            count = row.counts[-1]
            self.processes[name].call("close", 60)
            others = [other for other in self.processes if self._folder(other) in (self._folder(name), raw)]
            for other in others:
                self.processes[other].call("close", 60)
            self._call(name, "open", **self._where(name, count))
            residency.drop(raw)
            limit = limits.disk_read(raw) * 1e9 / self.workload.wanted_bytes
            residency.drop(self._folder(name))
            held = residency.resident_share(self._folder(name))
            if held > 0.02:
                self.say(f"{name}: {held:.0%} of its pages stay in the page cache, cold figure left out")
                continue
            found = self._call(name, "epoch", **self._where(name, count))
            if found:
                row.cold_workers = count
                row.cold.append(found["rows"] / found["seconds"])
                row.cold_limit.append(limit)

    def _epoch(self, name: str, count: int, *, batch: int = 0, verify: int = 0) -> dict[str, Any] | None:
        row = self.rows[name]
        where = self._where(name, count) | ({"batch": batch} if batch else {})
        epochs = 1 if verify else row.epochs
        return self._call(name, "epoch", **where, epochs=epochs, verify=verify) if row.is_run else None

    def _where(self, name: str, count: int) -> dict[str, Any]:
        return {"folder": str(self._folder(name)), "workers": count, "batch": self.plan.batches[0]}

    def _call(self, name: str, do: str, **arguments: Any) -> dict[str, Any] | None:
        answer = self.processes[name].call(do, self.plan.timeout_s, **arguments)
        if "error" in answer:
            self._fail(name, f"{do}: {answer['error']}")
            return None
        return answer

    def _fail(self, name: str, reason: str) -> None:
        self.rows[name].reason = reason
        self.say(f"{name} ({self.workload.name}): not run: {reason}")
        self.processes[name].end()

    def _folder(self, name: str) -> Path:
        shared = "raw" if name in LIMITS else self.rows[name].folder
        return self.folder / (shared or name)


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else float("nan")
