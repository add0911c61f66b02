"""One iteration of a loader: which rows make a batch, the threads that fill it, and what is counted."""

import collections
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from penstock.buffers import Batch, BufferPool, Transfers, Values
from penstock.errors import BudgetExceeded, PenstockError, UsageError
from penstock.fill import Filler, Job, Part, Tally, choose_io, should_warm
from penstock.samplers import Sampler
from penstock.source import Source

PART_BYTES = 1 << 24
"""Bytes that one thread gathers at a time: the others fill the next batches, and nobody is woken twice for one."""
BUDGET_ROWS = 1000
"""A budget given as a share is measured over at least so many rows, so that one early failure does not exceed it."""
MEASURE_EVERY_S = 1.0
"""Epochs of a few batches do not measure residency each."""
RESIDENCY_ROWS = 64
"""Rows whose pages are looked for in the page cache at the start of each epoch."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which positions make which batch. `batch_size` is the global batch; this process is `rank` of `world_size`."""

    sampler: Sampler
    batch_size: int
    drop_last: bool
    rank: int
    world_size: int
    continuous: bool = False
    """Whether batches go on over the end of an epoch: step t takes the positions from t * batch_size on, for ever."""

    def __len__(self) -> int:
        """Batches per epoch; of a continuous plan, in the first."""
        num_rows = self.sampler.num_rows
        whole = self.drop_last and not self.continuous
        return num_rows // self.batch_size if whole else -(-num_rows // self.batch_size)

    @property
    def local_rows(self) -> int:
        """Rows of this process in a whole batch."""
        return self.batch_size // self.world_size

    def end_of_epoch(self, step: int, epochs: int) -> int:
        """The step after the run of `epochs` epochs that a step lies in; runs are counted from the first epoch, so one that was
        stopped and resumed ends where it would have."""
        if not self.continuous:
            return (step // len(self) // epochs + 1) * epochs * len(self)
        run = epochs * self.sampler.num_rows
        return -(-(step * self.batch_size // run + 1) * run // self.batch_size)

    def positions(self, step: int) -> range:
        """Global positions of this rank's rows of a batch, batches being counted from the first epoch's start."""
        if self.continuous:
            start = step * self.batch_size + self.local_rows * self.rank
            return range(start, start + self.local_rows)
        epoch, number = divmod(step, len(self))
        start = number * self.batch_size
        rows = min(self.batch_size, self.sampler.num_rows - start)
        start += epoch * self.sampler.num_rows
        return range(start + rows * self.rank // self.world_size, start + rows * (self.rank + 1) // self.world_size)


@dataclass(kw_only=True)
class Progress:
    """What the consumer has taken, and what happened on the way. Only his thread writes here."""

    max_failures: int | str
    consumed: int = 0
    """Batches taken since the first epoch's start; the state that is saved."""
    batches: int = 0
    drawn: int = 0
    num_bytes: int = 0
    wait_s: float = 0.0
    residency: float | None = None
    tally: Tally = field(default_factory=Tally)

    def allowed(self) -> float:
        """Failed reads that the budget allows by now.

        Raises:
            UsageError: max_failures is neither a count nor a percentage.
        """
        if isinstance(self.max_failures, int) and self.max_failures >= 0:
            return self.max_failures
        text = str(self.max_failures).removesuffix("%")
        share = float(text) / 100 if text.replace(".", "", 1).isdecimal() else -1.0
        if text == self.max_failures or not 0 <= share <= 1:
            raise UsageError(f'Loader: max_failures: expected a count or "P%", got {self.max_failures!r}')
        return share * max(self.drawn, BUDGET_ROWS)

    def settle(self, job: Job) -> None:
        """Counts a filled job, and raises what must be raised."""
        self.drawn += len(job.rows)
        self.tally.add(job.tally)
        if job.errors:
            error = min(job.errors, key=lambda entry: entry[0])[1]
            job.errors.clear()
            raise error
        failed = sum(self.tally.failed.values())
        if failed > self.allowed():
            reasons = ", ".join(f"{name}: {count}" for name, count in self.tally.failed.most_common())
            raise BudgetExceeded(
                f"Loader: {failed} of {self.drawn} rows drawn failed, more than max_failures={self.max_failures} "
                f"allows ({reasons}); check the source, or raise max_failures"
            )


@dataclass(frozen=True, kw_only=True)
class Work:
    """How batches are made, whatever is in them; see Loader."""

    threads: int
    prefetch: int
    io: str
    output: str
    keys: bool


class Feed(Iterator[Batch]):
    """One iteration. Its threads know the queues and the filler, not this object, so dropping it ends them."""

    def __init__(
        self,
        plan: Plan,
        filler: Filler,
        pool: BufferPool,
        progress: Progress,
        work: Work,
        *,
        stop: int | None,
        transfers: Transfers | None,
    ) -> None:
        self._plan = plan
        self._filler = filler
        self._pool = pool
        self._progress = progress
        self._how = work
        self._stop = stop
        self._transfers = transfers
        self._step = progress.consumed
        self._jobs: collections.deque[Job] = collections.deque()
        self._tasks: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[Part] = queue.SimpleQueue()
        self._ended = ""
        self._pid = os.getpid()
        self._warming: threading.Thread | None = None
        self._measure_at = 0.0
        self._lists = [field.name for field in filler.schema.fields if field.is_variable]
        self._row_bytes = sum(field.item_bytes for field in filler.schema.fields if not field.is_variable)
        self._stopped = stopped = threading.Event()
        arguments = (self._tasks, self._filled, filler, stopped)
        self._threads = [
            threading.Thread(target=_work, args=arguments, name=f"penstock-loader-{n}", daemon=True)
            for n in range(work.threads)
        ]
        self._finalizer = weakref.finalize(self, _shut, self._tasks, stopped, self._threads, transfers)
        for thread in self._threads:
            thread.start()

    def __next__(self) -> Batch:
        if self._pid != os.getpid():
            raise UsageError("Loader: this iterator was made before a fork; call iter(loader) in the child")
        if not self._finalizer.alive:
            if self._ended:
                raise UsageError(f"Loader: {self._ended}")
            raise StopIteration
        start_s = time.perf_counter()
        try:
            batch = self._pull() if self._transfers is None else self._pull_from_device(self._transfers)
        except BaseException:
            self.close("")
            raise
        self._progress.consumed += 1
        self._progress.batches += 1
        self._progress.wait_s += time.perf_counter() - start_s
        return batch

    def close(self, reason: str) -> None:
        """Ends the threads and waits for them; later calls of next raise with the reason, or end if it is empty."""
        if self._finalizer.alive:
            self._ended = reason
        self._finalizer()
        for thread in (*self._threads, *([self._warming] if self._warming else [])):
            thread.join()
        self._jobs.clear()

    def _pull(self) -> Batch:
        self._schedule()
        if not self._jobs:
            raise StopIteration
        while self._jobs[0].remaining:
            self._note(self._filled.get())
        job = self._jobs.popleft()
        self._progress.settle(job)
        return self._batch(job)

    def _pull_from_device(self, transfers: Transfers) -> Batch:
        transfers.collect(2)
        if not transfers.ahead:
            transfers.start(self._pull())
        batch = transfers.take()
        while not self._filled.empty():
            self._note(self._filled.get())
        if self._pool.has_room:
            self._schedule()
        if self._jobs and not (self._jobs[0].remaining or self._jobs[0].errors or self._jobs[0].tally.failed):
            transfers.start(self._pull())
        return batch

    def _note(self, part: Part) -> None:
        job = part.job
        job.remaining -= 1
        job.tally.add(part.tally)
        if part.error is not None:
            job.errors.append((part.start, part.error))
            part.error = None

    def _schedule(self) -> None:
        while len(self._jobs) < self._how.prefetch and (self._stop is None or self._step < self._stop):
            if self._jobs and not self._pool.has_room:
                return  # fewer ahead; only when nothing is in work is a missing buffer an error
            self._jobs.append(self._submit(self._step))
            self._step += 1

    def _submit(self, step: int) -> Job:
        plan, filler, work = self._plan, self._filler, self._how
        positions = plan.positions(step)
        rows = plan.sampler.rows(positions.start, positions.stop)
        if filler.rows is not None:
            rows = filler.rows[rows]
        if self._progress.residency is None or (step % len(plan) == 0 and time.monotonic() >= self._measure_at):
            self._measure(rows)
        columns = self._pool.lease()
        if len(rows) < plan.local_rows:
            columns = {name: values[: len(rows)] for name, values in columns.items()}
        job = Job(rows, positions, columns, self._lists)
        if work.keys:
            job.keys = [""] * len(rows)
        parts = min(work.threads, len(rows))
        if not filler.single:
            busy = -(-work.threads // work.prefetch)  # parts that keep all threads busy
            parts = min(parts, max(busy, 1 + len(rows) * self._row_bytes // PART_BYTES))
        job.remaining = parts
        for n in range(parts):
            self._tasks.put(Part(job, len(rows) * n // parts, len(rows) * (n + 1) // parts))
        return job

    def _measure(self, rows: np.ndarray) -> None:
        self._measure_at = time.monotonic() + MEASURE_EVERY_S
        mode, share = choose_io(self._filler, rows[:RESIDENCY_ROWS])
        self._progress.residency = share
        self._filler.io = mode if self._how.io == "auto" else self._how.io
        if self._how.io == "auto" and self._warming is None and should_warm(self._filler, share):
            warm = self._filler.source.warm  # type: ignore[attr-defined]  # should_warm looked
            given = {"fields": self._filler.gathered, "stopped": self._stopped.is_set}
            self._warming = threading.Thread(target=warm, kwargs=given, name="penstock-loader-warm", daemon=True)
            self._warming.start()

    def _batch(self, job: Job) -> Batch:
        self._progress.num_bytes += self._row_bytes * len(job.rows)
        source = self._filler.source
        values = {name: _value(job, name, self._how.output) for name in self._filler.schema}
        return Batch(values, job.rows, job.positions, source.keys, keys=job.keys)


def _value(job: Job, name: str, output: str) -> Values:
    values: Values = job.lists[name] if name in job.lists else job.columns[name]
    if output == "numpy":
        return values
    import torch

    if isinstance(values, list):  # copies: a torch tensor cannot be read-only, and a view of a source is
        return [torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for v in values]
    assert isinstance(values, np.ndarray)
    return torch.from_numpy(values)


def _work(
    tasks: "queue.SimpleQueue[Part | None]",
    filled: "queue.SimpleQueue[Part]",
    filler: Filler,
    stopped: threading.Event,
) -> None:
    while (part := tasks.get()) is not None:
        if not stopped.is_set():
            _run(part, filler)
            filled.put(part)
        del part  # while the thread waits, the name would keep the batch's buffer


def _run(part: Part, filler: Filler) -> None:
    try:
        filler.fill(part)
        if part.job.keys is not None:
            rows = part.job.rows[part.start : part.stop].tolist()
            part.job.keys[part.start : part.stop] = [filler.source.keys[row] for row in rows]
    except BaseException as error:  # noqa: BLE001  the thread's boundary: the consumer raises it; without, he would wait forever
        error.add_note(_where(part, filler.source))
        part.error = error


def _where(part: Part, source: Source) -> str:
    job = part.job
    if part.cursor < 0:
        return f"while gathering {part.stop - part.start} rows, {job.rows[part.start]} the first, together"
    row = int(job.rows[part.cursor])
    try:
        key = repr(source.keys[row])
    except (LookupError, OSError, PenstockError) as error:
        key = f"unknown: {error}"
    return f"while reading row {row} (key {key}), at position {job.positions[part.cursor]}"


def _shut(
    tasks: "queue.SimpleQueue[Part | None]",
    stopped: threading.Event,
    threads: list[threading.Thread],
    transfers: Transfers | None,
) -> None:
    stopped.set()
    for _ in threads:
        tasks.put(None)
    for thread in threads:  # one that still decodes while the interpreter ends would abort the process
        if thread is not threading.current_thread() and thread.is_alive():
            thread.join()
    if transfers is not None:
        transfers.finish()
