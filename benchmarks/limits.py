"""What the machine allows: gathers and copies of the same bytes into warm buffers, into fresh memory, and the bare disk."""

import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import residency
from peers.base import Batch, Shuffled, count_rows, tensors
from peers.plain import Memmap, column_map
from workloads import Workload

_BLOCK = 8 << 20
Fill = Callable[[np.ndarray, dict[str, np.ndarray]], None]


class Take(Memmap):
    """np.take(mode="clip", out=warm) from memory maps, rows in random order: the gather limit. Counts are threads."""

    name = "gather limit: np.take into warm buffers"
    is_sequential = False

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = count_rows(folder)
        order: Iterable[np.ndarray] = Shuffled(rows, batch, seed, self.epochs)
        if self.is_sequential:
            order = [np.arange(start, min(rows, start + batch)) for start in range(0, rows, batch)] * self.epochs
        return Ring(self.workload, order, batch, workers, self.fill(folder))

    def fill(self, folder: Path) -> Fill:
        """The function that puts rows into a buffer."""
        maps = {column.name: column_map(folder, column) for column in self.workload.wanted}
        flat = {name: array.reshape(len(array), -1) for name, array in maps.items()}

        def fill(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
            for name, array in flat.items():
                np.take(array, rows, axis=0, mode="clip", out=out[name].reshape(len(rows), -1))

        return fill


class Preadv(Take):
    """preadv of each row into warm buffers, rows in random order: the other gather limit. Counts are threads."""

    name = "gather limit: preadv into warm buffers"
    workloads = ("A",)

    def fill(self, folder: Path) -> Fill:
        names = [column.name for column in self.workload.wanted]
        files = {name: os.open(folder / f"{name}.bin", os.O_RDONLY) for name in names}

        def fill(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
            places = rows.tolist()
            for name, file in files.items():
                size = out[name][0].nbytes
                for at, row in enumerate(places):
                    os.preadv(file, [out[name][at]], row * size)

        return fill


class Memcpy(Take):
    """Copies of the same bytes in file order from the page cache to warm buffers. Counts are threads."""

    name = "memcpy: page cache to warm buffers, in order"
    is_sequential = True

    def fill(self, folder: Path) -> Fill:
        maps = {column.name: column_map(folder, column) for column in self.workload.wanted}

        def fill(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
            for name, array in maps.items():
                np.copyto(out[name], array[rows[0] : rows[-1] + 1])

        return fill


class Fresh(Memcpy):
    """The same copies into memory just obtained from the system, as loaders do that allocate each batch."""

    name = "page cache to fresh memory, in order"
    counts = (0,)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        return _FreshEpochs(self.workload, count_rows(folder), batch, self.epochs, self.fill(folder))


class Ring:
    """Warm buffers filled by threads in the order of the batches; a batch lives until the next one is taken."""

    def __init__(self, workload: Workload, order: Iterable[np.ndarray], batch: int, threads: int, fill: Fill) -> None:
        self.order, self.threads, self.fill = order, threads, fill
        self.buffers = [buffers(workload, batch) for _ in range(2 * threads + 1)]
        self.batches = [tensors(buffer) for buffer in self.buffers]
        self.pool = ThreadPoolExecutor(max(1, threads))

    def __iter__(self) -> Iterator[Batch]:
        waiting: deque[tuple[Future[Any], int, int]] = deque()
        for number, rows in enumerate(self.order):
            at = number % len(self.buffers)
            out = {name: array[: len(rows)] for name, array in self.buffers[at].items()}
            if not self.threads:
                self.fill(rows, out)
                yield self._batch(at, len(rows))
                continue
            waiting.append((self.pool.submit(self.fill, rows, out), at, len(rows)))
            if len(waiting) == 2 * self.threads:
                yield self._taken(waiting)
        while waiting:
            yield self._taken(waiting)

    def _taken(self, waiting: "deque[tuple[Future[Any], int, int]]") -> Batch:
        future, at, rows = waiting.popleft()
        future.result()
        return self._batch(at, rows)

    def _batch(self, at: int, rows: int) -> Batch:
        batch = self.batches[at]
        whole = len(next(iter(batch.values()))) == rows
        return batch if whole else {name: value[:rows] for name, value in batch.items()}


class _FreshEpochs:
    def __init__(self, workload: Workload, rows: int, batch: int, epochs: int, fill: Fill) -> None:
        self.workload, self.rows, self.batch, self.epochs, self.fill = workload, rows, batch, epochs, fill

    def __iter__(self) -> Iterator[Batch]:
        for start in list(range(0, self.rows, self.batch)) * self.epochs:
            rows = np.arange(start, min(self.rows, start + self.batch))
            out = buffers(self.workload, len(rows), touch=False)
            self.fill(rows, out)
            yield tensors(out)


def buffers(workload: Workload, rows: int, *, touch: bool = True) -> dict[str, np.ndarray]:
    """One batch of the wanted columns in page-aligned memory, huge pages where the system gives them to warm buffers."""
    found = {}
    for column in workload.wanted:
        area = mmap.mmap(-1, max(1, rows * column.nbytes))
        if touch and hasattr(mmap, "MADV_HUGEPAGE"):
            area.madvise(mmap.MADV_HUGEPAGE)
        count = rows * int(np.prod(column.shape))
        found[column.name] = np.frombuffer(area, column.dtype, count).reshape(rows, *column.shape)
        if touch:
            found[column.name].fill(0)
    return found


def disk_read(folder: Path, threads: int = 2) -> float:
    """GB/s of O_DIRECT reads of the folder's large files, by threads with one buffer each."""
    pieces = []
    for path in residency.files(folder):
        whole = path.stat().st_size // _BLOCK * _BLOCK
        pieces += [(path, start) for start in range(0, whole, _BLOCK)]
    opened = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path, _ in pieces}
    areas = [mmap.mmap(-1, _BLOCK) for _ in range(threads)]

    def read(number: int) -> None:
        for path, start in pieces[number::threads]:
            os.preadv(opened[path], [areas[number]], start)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    seconds = time.perf_counter() - started
    for descriptor in opened.values():
        os.close(descriptor)
    return len(pieces) * _BLOCK / seconds / 1e9 if pieces else float("nan")


def disk_write(folder: Path, size: int, *, direct: bool, threads: int = 2) -> float:
    """GB/s of writing a new file of this size in blocks, flush to the disk included."""
    path = folder / "limit.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0)
    descriptor = os.open(path, flags)
    area = mmap.mmap(-1, _BLOCK)
    area[:] = np.random.default_rng(0).bytes(_BLOCK)
    count = max(1, size // _BLOCK)

    def write(number: int) -> None:
        for at in range(number, count, threads):
            os.pwrite(descriptor, area, at * _BLOCK)

    try:
        started = time.perf_counter()
        os.posix_fallocate(descriptor, 0, count * _BLOCK)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(write, range(threads)))
        os.fsync(descriptor)
        return count * _BLOCK / (time.perf_counter() - started) / 1e9
    finally:
        os.close(descriptor)
        path.unlink()
