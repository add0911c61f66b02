"""The local launcher: worker processes on this machine, or none at all. A crash costs the row that caused it, no other."""

import ctypes
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from penstock.errors import WorkersLost
from penstock.launch.drive import Batch, Lost, Results, drive
from penstock.work import Work

_PR_SET_PDEATHSIG = 1
_HELD_BACK = {signal.SIGINT}
"""Not SIGTERM: the pool ends workers with it, also those that are still starting."""
_LOOK_S = 1.0
"""How long a driver waits for a batch before it looks whether the pool still works."""
_work: Work | None = None
_path = ""


class Inline:
    """Runs every batch in this process, one after another: for small jobs, tests and debuggers."""

    def run(self, work: Work, batches: Iterator[Batch | None]) -> Iterator[tuple[Batch, Results]]:
        """See `penstock.jobs.Launcher`."""
        for batch in batches:
            if batch is not None:
                yield batch, work(batch)


class Local:
    """Runs batches in worker processes. Workers die with the driver; the dead are replaced.

    Args:
        workers: number of processes.
        timeout_s: seconds a single row may take before its worker is killed and the row fails; None: no limit. Loading the
            stage does not count.
        ahead: batches in flight per worker.
    """

    def __init__(self, workers: int, *, timeout_s: float | None = None, ahead: int = 2) -> None:
        self.workers = workers
        self.timeout_s = timeout_s
        self.ahead = ahead

    def run(self, work: Work, batches: Iterator[Batch | None]) -> Iterator[tuple[Batch, Results]]:
        """See `penstock.jobs.Launcher`."""
        first = list(itertools.islice(batches, self.workers))  # no more processes than there are batches for them
        if not first:
            return
        with tempfile.NamedTemporaryFile(prefix="penstock-work-") as file:
            # By way of a file: a worker that dies before it has read a full pipe would leave the driver writing for good.
            file.write(pickle.dumps(work))
            file.flush()
            yield from self._run_pool(
                file.name, len([batch for batch in first if batch]), itertools.chain(first, batches)
            )

    def _run_pool(self, work: str, workers: int, batches: Iterator[Batch | None]) -> Iterator[tuple[Batch, Results]]:
        pool = ProcessPool(
            max_workers=max(1, workers),
            context=multiprocessing.get_context("spawn"),
            initializer=_initialize,
            initargs=(work, os.getpid()),
        )
        try:
            with _signals_held_back():
                if not pool.active:  # asking starts the workers, in this thread
                    raise BrokenProcessPool("the pool of workers did not start")
            capacity = self.workers * self.ahead
            yield from drive(_Pool(pool, capacity=capacity, timeout_s=self.timeout_s), batches)
            pool.close()  # type: ignore[no-untyped-call]  # pebble types its methods in part
            pool.join()
        except BaseException as error:  # also GeneratorExit: whoever gives up the run gives up its workers
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()
            if isinstance(error, BrokenProcessPool):
                raise WorkersLost(
                    "all workers were killed from outside before one of them had begun; what was committed is kept: run the "
                    "same command again, and look who ends them (out of memory? a scheduler?)"
                ) from error
            raise


class _Pool:
    """A pool of processes as a crew. The pool restarts what dies, and knows which batch it died of."""

    def __init__(self, pool: ProcessPool, *, capacity: int, timeout_s: float | None) -> None:
        self._pool = pool
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._flying: dict[Future[Results], Batch] = {}

    @property
    def has_room(self) -> bool:
        return len(self._flying) < self._capacity

    def submit(self, batch: Batch) -> None:
        # The worker keeps the time itself: the pool's own limit would count the loading of the stage with the first rows.
        limit_s = self._timeout_s * len(batch) if self._timeout_s else 0.0
        try:
            future = self._pool.schedule(_call, args=[batch, limit_s])
        except RuntimeError as error:  # as `schedule` says it
            raise BrokenProcessPool("the pool of workers broke") from error
        self._flying[future] = batch

    def wait(self) -> list[tuple[Batch, Results | Lost | None]]:
        if not self._flying:
            return []
        while not (done := wait(self._flying, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done):
            if not self._pool.active:  # batches between two of its threads when it broke have futures that never end
                raise BrokenProcessPool("the pool of workers broke")
        return [(self._flying.pop(future), self._harvest(future)) for future in done]

    def _harvest(self, future: "Future[Results]") -> Results | Lost:
        try:
            return future.result()
        except ProcessExpired as error:
            code = getattr(error, "exitcode", "?")
            if self._timeout_s and code == -signal.SIGALRM:
                return Lost(reason="ran out of time", timed_out=True)
            return Lost(reason=f"its worker died (exit code {code})")


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keeps Ctrl-C from workers that start, which could not yet ignore it: processes made in here inherit the mask."""
    resource_tracker.ensure_running()  # it unblocks these signals when it starts, so it must have done so
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize(path: str, driver: int) -> None:
    """Runs once in each worker: Ctrl-C is the driver's to handle, and a worker never outlives its driver."""
    global _path
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_HELD_BACK, signal.SIGALRM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver and not Path(f"/proc/{driver}").exists():
        os._exit(1)
    _path = path


def _call(batch: Batch, limit_s: float) -> Results:
    """Computes a batch; a worker that takes longer than `limit_s` dies of SIGALRM, whatever it is at. 0: no limit."""
    global _work
    if _work is None:
        work: Work = pickle.loads(Path(_path).read_bytes())
        work.set_up()  # takes as long as it takes
        _work = work
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return _work(batch)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
