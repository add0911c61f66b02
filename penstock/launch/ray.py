"""The Ray launcher: workers on every node of a cluster. Orders and outcomes travel; records and rows never do.

A worker is an actor with one CPU, and one GPU where the stage runs on one. It reads its input and writes its rows itself,
so the paths of the driver must be there on every node. Actors die with their driver; one that outlives it for a moment
finds, before it writes, that the claim is no longer its driver's.
"""

import logging
import os
import platform
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from penstock.errors import MissingExtra, PartClaimed, SourceNotFound, UsageError
from penstock.launch.drive import Batch, Lost, Results, drive
from penstock.schema import Record
from penstock.store.claims import NAME as CLAIM
from penstock.store.v1 import SIDE
from penstock.store.write import Encoded, RowWriter, Written
from penstock.work import Work

_ENVIRONMENT = ("PENSTOCK_", "HF_", "OMP_", "TORCH_")
"""Variables of the driver that its workers get too."""
_OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster that is started here: hardly anything goes through it."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # devices that are hidden stay hidden
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # else it prints what happens to workers to stdout, which is the report's
}
"""Read by Ray when it is imported; the user's own come first."""
_CONNECT_S = 20.0
_RETRY_S = 1.0
_log = logging.getLogger("penstock")


class Ray:
    """Runs batches in actors of a Ray cluster. What dies is restarted, on another node if need be.

    Args:
        workers: number of actors; None: as many as the cluster has GPUs, or CPUs, for.
        address: of the cluster: "auto" (the one that runs on this machine), "HOST:PORT", "ray://HOST:PORT"; None: what
            RAY_ADDRESS says, or else one that is started here and ends with the run.
        gpus: GPUs per actor; None: one where the job's device is CUDA. A share (0.5) puts several on one.
        timeout_s: seconds a single row may take before its worker is killed and the row fails; None: no limit.
        ahead: batches in flight per actor.
        start_s: seconds to wait while no worker at all is up.

    Raises:
        MissingExtra: ray is not installed.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        gpus: float | None = None,
        timeout_s: float | None = None,
        ahead: int = 2,
        start_s: float = 300.0,
    ) -> None:
        _import_ray()
        self.workers = workers
        self.address = address
        self.gpus = gpus
        self.timeout_s = timeout_s
        self.ahead = ahead
        self.start_s = start_s

    def run(self, work: Work, batches: Iterator[Batch | None]) -> Iterator[tuple[Batch, Results]]:
        """See `penstock.jobs.Launcher`.

        Raises:
            UsageError: no cluster at the address; or no worker came up for `start_s` seconds: the message says what was
                asked for and what the cluster has; or the input is a stream, whose records would have to travel.
        """
        first = list(islice(batches, 1))  # a run that finds everything done starts nothing
        if not first:
            return
        ray = _import_ray()
        with _connected(ray, self.address, self.workers):
            gpus = self.gpus if self.gpus is not None else float(work.device.startswith("cuda"))
            wanted = self.workers or _capacity(ray, gpus)
            first += islice(batches, max(0, wanted - 1))  # no more actors than there are batches for them
            device = "cuda" if gpus else work.device  # an actor sees its own GPU only
            crew = _Crew(ray, self, work=replace(work, device=device), gpus=gpus)
            try:
                crew.start(min(wanted, max(1, sum(batch is not None for batch in first))))
                yield from drive(crew, chain(first, batches))
            finally:
                crew.stop()


@dataclass
class _Slot:
    """One actor as the driver sees it."""

    actor: Any
    hello: Any = None
    """The call that tells that it is up; None while it is, or until it is made again."""
    hello_at: float = 0.0
    is_up: bool = False
    queue: deque[tuple[Any, Batch]] = field(default_factory=deque)
    """Calls in flight, in order: the actor works on the first."""
    deadline: float = float("inf")
    late: Any = None
    """The call that ran out of time."""


class _Crew:
    """Actors as a crew. An actor that died takes no batch until it has said that it is up again."""

    def __init__(self, ray: Any, launcher: Ray, *, work: Work, gpus: float) -> None:
        self._ray = ray
        self._launcher = launcher
        self._gpus = gpus
        self._work = ray.put(ray.cloudpickle.dumps(work))
        self._slots: list[_Slot] = []
        self._claims: dict[Path, bytes] = {}
        self._last_up = time.monotonic()
        self._trouble = ""

    def start(self, count: int) -> None:
        """Asks for the actors; they come up when the cluster has room for them."""
        is_client = (self._launcher.address or "").startswith("ray://")  # then the driver's host is nobody's node
        node = "" if is_client else self._ray.get_runtime_context().get_node_id()
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        make = self._ray.remote(
            num_cpus=1, num_gpus=self._gpus, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )(_Worker)
        self._slots = [_Slot(make.remote(os.getcwd(), environment, node)) for _ in range(count)]

    def stop(self) -> None:
        """Kills the actors, whatever they are at."""
        for slot in self._slots:
            self._ray.kill(slot.actor)

    @property
    def has_room(self) -> bool:
        return any(slot.is_up and len(slot.queue) < self._launcher.ahead for slot in self._slots)

    def submit(self, batch: Batch) -> None:
        if any(order.candidate.record is not None for order in batch):
            raise UsageError("the ray launcher needs files: records of a stream would have to travel; use local")
        slot = min((slot for slot in self._slots if slot.is_up), key=lambda slot: len(slot.queue))
        claims = {order.ticket.folder: self._claim(order.ticket.folder) for order in batch if order.ticket}
        slot.queue.append((slot.actor.work.remote(list(batch), claims), batch))
        if len(slot.queue) == 1:
            self._start_clock(slot)

    def wait(self) -> list[tuple[Batch, Results | Lost | None]]:
        now = time.monotonic()
        self._say_hello(now)
        calls = [slot.hello for slot in self._slots if slot.hello is not None]
        calls += [call for slot in self._slots for call, _ in slot.queue]
        if any(slot.is_up for slot in self._slots):
            self._last_up = now
            if not any(slot.queue for slot in self._slots):
                return []  # there is room, and nothing to wait for
        elif not self._slots or now - self._last_up > self._launcher.start_s:
            raise UsageError(self._nobody())
        soonest = min(slot.deadline for slot in self._slots)
        ready = self._ready(calls, max(0.0, min(soonest - now, _RETRY_S)))
        ended: list[tuple[Batch, Results | Lost | None]] = []
        for slot in list(self._slots):
            if slot.hello in ready:
                self._hear_hello(slot)
            while slot.queue and slot.queue[0][0] in ready:
                ended.append(self._harvest(slot))
            if time.monotonic() > slot.deadline:
                slot.late, slot.deadline = slot.queue[0][0], float("inf")
                self._ray.kill(slot.actor, no_restart=False)  # its calls fail, and it starts anew
        return ended

    def _ready(self, calls: list[Any], timeout_s: float) -> set[Any]:
        """Calls that have ended; waits for the first one."""
        if not calls:
            time.sleep(timeout_s)
            return set()
        self._ray.wait(calls, num_returns=1, timeout=timeout_s)
        return set(self._ray.wait(calls, num_returns=len(calls), timeout=0)[0])

    def _say_hello(self, now: float) -> None:
        for slot in self._slots:
            if not slot.is_up and slot.hello is None and not slot.queue and now >= slot.hello_at:
                slot.hello = slot.actor.hello.remote(self._work)

    def _hear_hello(self, slot: _Slot) -> None:
        call, slot.hello = slot.hello, None
        try:
            self._get(call)
        except self._ray.exceptions.ActorUnavailableError as error:  # it starts anew, on another node perhaps
            slot.hello_at, self._trouble = time.monotonic() + _RETRY_S, str(error)
        except self._ray.exceptions.RayActorError as error:
            self._slots.remove(slot)
            self._trouble = str(error)
            _log.warning("penstock: a Ray worker is gone for good: %s", error)
        else:
            slot.is_up = True

    def _harvest(self, slot: _Slot) -> tuple[Batch, Results | Lost | None]:
        call, batch = slot.queue.popleft()
        try:
            outcome: Results | Lost | None = self._get(call)
        except self._ray.exceptions.RayActorError as error:
            outcome = None  # it waited behind the call that the actor was at when it died
            if slot.is_up:
                timed_out = call == slot.late
                reason = "ran out of time" if timed_out else "its worker died"
                outcome = Lost(reason=reason, timed_out=timed_out, blameless=not timed_out)
                slot.is_up, self._trouble = False, str(error)
            slot.deadline = float("inf")
        else:
            self._start_clock(slot)
        return batch, outcome

    def _start_clock(self, slot: _Slot) -> None:
        slot.deadline = float("inf")
        if self._launcher.timeout_s and slot.queue:
            slot.deadline = time.monotonic() + self._launcher.timeout_s * len(slot.queue[0][1])

    def _get(self, call: Any) -> Any:
        """The result of a call; what it raised, as it raised it."""
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None

    def _claim(self, folder: Path) -> bytes:
        """What the claim says by which we write in a folder: nobody else's says the same. Empty if there is none."""
        if folder not in self._claims:
            self._claims[folder] = _read_claim(folder)
        return self._claims[folder]

    def _nobody(self) -> str:
        wanted = f"1 CPU and {self._gpus:g} GPU" if self._gpus else "1 CPU"
        found = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        trouble = f"; the last error: {self._trouble}" if self._trouble else ""
        return (
            f"ray: no worker is up, after {self._launcher.start_s:g} s; each needs {wanted}, "
            f"the cluster has CPU {found['CPU']:g}, GPU {found['GPU']:g}{trouble}"
        )


class _Worker:
    """The actor: a `Work`, set up once."""

    def __init__(self, directory: str, environment: dict[str, str], driver_node: str) -> None:
        self._work: Work | None = None
        self._writer: _FencedWriter | None = None
        self._driver_node = driver_node
        self._flushes = True
        os.environ.update(environment)
        if Path(directory).is_dir():  # relative paths mean what they mean to the driver
            os.chdir(directory)

    def hello(self, pickled: bytes) -> None:
        """Loads the stage; ends when the worker is ready for orders."""
        if self._work is None:
            ray = _import_ray()
            work: Work = ray.cloudpickle.loads(pickled)
            work.writer = self._writer = _FencedWriter(work.writer)
            work.set_up()
            self._flushes = ray.get_runtime_context().get_node_id() != self._driver_node
            self._work = work

    def work(self, batch: Batch, claims: dict[Path, bytes]) -> Results:
        """Computes and writes the rows of a batch, under the claims of the driver that sent it."""
        assert self._work is not None
        assert self._writer is not None
        self._writer.claims = claims
        for folder in claims:
            self._writer.check(folder)
        results = self._work(batch)
        if self._flushes:  # another host's flush does not reach what this one still holds back
            for name in sorted({name for one in results if one.written for name in one.written.files}):
                self._writer.disk.sync(Path(name))
        return results


class _FencedWriter(RowWriter):
    """Writes only where the claim is still that of the driver that gave the order."""

    def __init__(self, writer: RowWriter) -> None:
        super().__init__(writer.schema, writer.layout, writer.disk)
        self._inner = writer
        self.claims: dict[Path, bytes] = {}

    def encode(self, record: Record) -> Encoded:
        return self._inner.encode(record)

    def write_rows(self, folder: Path, position: int, rows: Sequence[Encoded]) -> list[Written]:
        self.check(folder)
        return self._inner.write_rows(folder, position, rows)

    def check(self, folder: Path) -> None:
        """Raises PartClaimed where the claim is no longer the one that the order was given under."""
        if not folder.is_dir():
            raise SourceNotFound(
                f"{folder}: not there on node {platform.node()}; Ray workers read and write the driver's paths, "
                "so these must be on a file system that every node mounts, under the same name"
            )
        if _read_claim(folder) != self.claims[folder]:
            raise PartClaimed(
                f"{folder}: the driver that ordered these rows has given up its claim; nothing was written"
            )


def _read_claim(folder: Path) -> bytes:
    for path in (folder / CLAIM, folder / SIDE / CLAIM):  # of a part; of a v1 directory
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
    return b""


def _import_ray() -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "ray", "the ray launcher") from error


@contextmanager
def _connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """A connection to the cluster; the program's own where it has one already."""
    if ray.is_initialized():
        yield
        return
    address = _resolve(address)
    options: dict[str, object] = {"address": address, "log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        cpus = workers or len(os.sched_getaffinity(0))
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"ray: no cluster at {address}: {error}") from error
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()


def _resolve(address: str | None) -> str:
    """The address to connect to; where it names a host and a port, somebody listens there (Ray would try for minutes)."""
    if address in (None, "auto"):  # as Ray itself has it
        address = os.environ.get("RAY_ADDRESS") or address or "local"
    host, colon, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"ray: no cluster at {address}: {error}; start one with `ray start`") from error
    return address


def _capacity(ray: Any, gpus: float) -> int:
    """How many actors the cluster has room for, at least one."""
    found = ray.cluster_resources()
    return max(1, int(found.get("GPU", 0) / gpus) if gpus else int(found.get("CPU", 0)))
