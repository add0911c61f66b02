"""Batch memory: buffers that are allocated once, leased as arrays, and come back when the last view of a batch dies."""

import collections
import ctypes
import gc
import logging
import mmap
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from penstock.errors import UsageError
from penstock.schema import Field, Value

if TYPE_CHECKING:
    import torch

Values: TypeAlias = "np.ndarray | torch.Tensor | list[Value] | list[torch.Tensor | str]"
"""One field of a batch: an array or tensor (B, *field.shape), or a list of B values where the length varies."""

Memory: TypeAlias = "mmap.mmap | np.ndarray"

MOST_BUFFERS = 64
MOST_BYTES = 8 << 30

_log = logging.getLogger(__name__)


_TOUCHING_THREADS = 2


class BufferPool:
    """Buffers of one layout: each field of a batch starts on a page of its own.

    A lease is a set of arrays over one buffer. They all stem from one exporter that is no ndarray, because NumPy
    shortens `.base` to the last ndarray of a chain: every view, reshape or tensor made from them keeps the exporter
    alive, and a weak reference to it fires when the last one dies. The callback may run in any thread, at any time,
    so it does nothing but append to a deque, which needs no lock.

    `lease` is called by one thread at a time.

    Args:
        fields: the fixed fields of a batch.
        num_rows: rows of a batch.
        usual: buffers that a consumer needs who drops each batch before he takes the next; more are a warning.
        most: buffers that may exist; one more is an error. None: 64, or fewer where they would exceed 8 GiB.
        pinned: take memory from torch's pinned allocator, for copies to a CUDA device.

    Raises:
        UsageError: `most` is less than `usual`.
    """

    def __init__(self, fields: Sequence[Field], num_rows: int, *, usual: int, most: int | None, pinned: bool) -> None:
        if most is not None and most < usual:
            raise UsageError(f"Loader: max_leased: expected {usual} (what prefetch needs) or more, got {most}")
        self.usual = usual
        self.pinned = pinned
        self.allocated = 0
        """Buffers that exist."""
        self._slots: list[tuple[str, tuple[int, ...], np.dtype, int]] = []
        end = 0
        for field in fields:
            self._slots.append((field.name, (num_rows, *field.item_shape), field.numpy_dtype, end))
            end += -(-num_rows * field.item_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.buffer_bytes = max(end, mmap.PAGESIZE)
        """Size of one buffer."""
        self.most = most or max(usual, min(MOST_BUFFERS, MOST_BYTES // self.buffer_bytes))
        self._exporter = ctypes.c_ubyte * self.buffer_bytes
        self._free: collections.deque[_Buffer] = collections.deque()
        self._buffers: list[_Buffer] = []

    def lease(self) -> dict[str, np.ndarray]:
        """Arrays (num_rows, *field.shape) by field name, with the contents of an earlier batch.

        Raises:
            UsageError: `most` buffers exist and all are in use.
        """
        buffer = self._take()
        root = self._exporter.from_buffer(buffer.memory)  # type: ignore[arg-type]  # both kinds are writable buffers
        buffer.lease = weakref.ref(root, _returner(self._free, buffer))
        memory = cast(mmap.mmap, root)  # NumPy's stubs know no ctypes array, which is a buffer as good
        return {name: np.ndarray(shape, dtype, memory, offset) for name, shape, dtype, offset in self._slots}

    def reserve(self, count: int) -> None:
        """Allocates and touches buffers beforehand, so that no batch waits for fresh memory later."""
        with ThreadPoolExecutor(_TOUCHING_THREADS) as pool:
            fresh = pool.map(lambda _: _allocate(self.buffer_bytes, self.pinned), range(count - self.allocated))
            self._buffers += [_Buffer(memory) for memory in fresh]
        self._free.extend(self._buffers[self.allocated :])
        self.allocated = len(self._buffers)

    @property
    def free(self) -> int:
        """Buffers that nobody uses."""
        return len(self._free)

    @property
    def has_room(self) -> bool:
        """Whether `lease` would succeed at once."""
        return bool(self._free) or self.allocated < self.most

    def _take(self) -> "_Buffer":
        try:
            return self._free.pop()  # the one used last is still in the processor's cache
        except IndexError:
            pass
        if self.allocated >= self.most:
            gc.collect()  # batches may hang in reference cycles
            if self._free:
                return self._free.pop()
            raise UsageError(
                f"Loader: all {self.most} batch buffers ({self.most * self.buffer_bytes / 1e6:.0f} MB) belong to "
                "batches that are still alive. Keep copies (batch.copy()), or fewer batches, or raise max_leased"
            )
        if self.allocated == self.usual:
            _log.warning(
                "Loader: batches are kept by the caller, so a buffer beyond the usual %d is allocated (%.1f MB each, "
                "at most %d). batch.copy() gives a buffer back; max_leased sets the bound",
                self.usual,
                self.buffer_bytes / 1e6,
                self.most,
            )
        buffer = _Buffer(_allocate(self.buffer_bytes, self.pinned))
        self._buffers.append(buffer)
        self.allocated += 1
        return buffer


class _Buffer:
    __slots__ = ("lease", "memory")

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.lease: object = None  # a weak reference must itself stay alive to fire


def _returner(free: "collections.deque[_Buffer]", buffer: _Buffer) -> Callable[[object], None]:
    return lambda _: free.append(buffer)


def _allocate(num_bytes: int, pinned: bool) -> Memory:
    if pinned:
        import torch

        array: np.ndarray = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()
        return array
    # Private, not Python's default of shared: huge pages apply, and a child process cannot write into our batches.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 0  # the first touch of a page is what costs
    return memory


class Batch(Mapping[str, Values]):
    """Rows of a source, stacked: field name -> array or tensor (B, *field.shape), B rows in the sampler's order.

    Fields of variable length are lists of B arrays or str. The arrays are yours for as long as any view of them lives;
    then the memory serves another batch. To keep many batches, keep copies.
    """

    __slots__ = ("_columns", "_keys", "_lookup", "positions", "rows")

    def __init__(
        self,
        columns: Mapping[str, Values],
        rows: np.ndarray,
        positions: range,
        lookup: Sequence[str],
        *,
        keys: list[str] | None = None,
    ) -> None:
        self._columns = columns
        self._lookup = lookup
        self._keys = keys
        self.rows = rows
        """(B,) int64: the source's rows, substitutes included."""
        self.positions = positions
        """Global positions in the sampler's order; seed a random augmentation with them and it is the same anywhere."""

    def __getitem__(self, name: str) -> Values:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {_describe(values)}" for name, values in self._columns.items())
        return f"Batch of {self.num_rows} rows ({fields})"

    @property
    def num_rows(self) -> int:
        """B: rows in this batch; it may be 0 on a rank that has no share of an epoch's short last batch."""
        return len(self.rows)

    def row_keys(self) -> list[str]:
        """The B keys of the rows, looked up in the source on first use."""
        if self._keys is None:
            self._keys = [self._lookup[row] for row in self.rows.tolist()]
        return self._keys

    def copy(self) -> "Batch":
        """The same batch in memory of its own, so that the loader's buffer goes back."""
        columns = {name: _copy(values) for name, values in self._columns.items()}
        return self.with_columns(columns)

    def with_columns(self, columns: Mapping[str, Values]) -> "Batch":
        """The same rows with other values: on another device, say."""
        return Batch(columns, self.rows, self.positions, self._lookup, keys=self._keys)


def _describe(values: Values) -> str:
    return f"list of {len(values)}" if isinstance(values, list) else f"{values.dtype} {tuple(values.shape)}"


def _copy(values: Values) -> Values:
    if isinstance(values, list):
        return values.copy()
    return values.copy() if isinstance(values, np.ndarray) else values.clone()


class Event(Protocol):
    """A mark in a device's queue of work."""

    def query(self) -> bool:
        """Whether all work before the mark is done."""
        ...

    def synchronize(self) -> None:
        """Waits until it is."""
        ...


@runtime_checkable
class Copier(Protocol):
    """Copies a batch to a device, without waiting."""

    def start_copy(self, columns: Mapping[str, Values]) -> tuple[dict[str, Values], Event]:
        """Queues the copies; returns the values on the device, and a mark behind the copies."""
        ...

    def hand_over(self, columns: Mapping[str, Values], event: Event) -> None:
        """Makes the work that the caller queues from now on wait for the copies."""
        ...


class Transfers:
    """Copies under way. A host batch, and with it its buffer, is held until the mark behind its copy is reached.

    That the consumer drops the device batch says nothing: the copy engine may still read the buffer.
    """

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._ahead: collections.deque[tuple[Batch, Event]] = collections.deque()
        self._held: list[tuple[Batch, Event]] = []

    @property
    def ahead(self) -> int:
        """Copies started and not yet taken."""
        return len(self._ahead)

    def start(self, batch: Batch) -> None:
        """Starts the copy of a host batch. The caller drops the batch; it is held here."""
        columns, event = self._copier.start_copy(batch)
        self._held.append((batch, event))
        self._ahead.append((batch.with_columns(columns), event))

    def take(self) -> Batch:
        """The oldest batch on the device that was not yet taken."""
        batch, event = self._ahead.popleft()
        self._copier.hand_over(batch, event)
        return batch

    def collect(self, most: int) -> None:
        """Lets go of host batches whose copies are done; waits for the oldest while more than `most` are held."""
        self._held = [(batch, event) for batch, event in self._held if not event.query()]
        while len(self._held) > most:
            self._held[0][1].synchronize()
            del self._held[0]

    def finish(self) -> None:
        """Waits for all copies and lets go of their batches; batches that nobody took are dropped."""
        self.collect(0)
        self._ahead.clear()


class CudaCopier:
    """Copies on a CUDA stream of its own, beside the computation."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def start_copy(self, columns: Mapping[str, Values]) -> tuple[dict[str, Values], Event]:
        """Queues copies from pinned memory; lists move value by value, str stays."""
        import torch

        with torch.cuda.stream(self._stream):
            moved: dict[str, Values] = {name: self._move(values) for name, values in columns.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            event.record(self._stream)
        return moved, event

    def hand_over(self, columns: Mapping[str, Values], event: Event) -> None:
        """The current stream waits for the copies, and the allocator knows that it uses their memory."""
        import torch

        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)  # type: ignore[arg-type]  # the one made by start_copy
        for values in columns.values():
            for tensor in values if isinstance(values, list) else [values]:
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(current)

    def _move(self, values: Values) -> Values:
        import torch

        if isinstance(values, list):
            return [v if isinstance(v, str) else torch.as_tensor(v).to(self._device) for v in values]
        assert isinstance(values, torch.Tensor)
        return values.to(self._device, non_blocking=True)
