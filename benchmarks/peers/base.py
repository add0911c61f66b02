"""What every peer is, and the DataLoader plumbing that several share."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from workloads import Records, Workload

Batch = Mapping[str, Any]


class Peer:
    """One way to store records and to read shuffled batches of them.

    `loader` returns an iterable: each `iter()` of it is one more epoch, shuffled anew, of batches that map the wanted
    columns to torch tensors (NumPy arrays where that is all the peer has).
    """

    name = ""
    needs: tuple[str, ...] = ("torch",)
    """Modules without which it cannot run."""
    workloads: tuple[str, ...] = ("A", "B")
    counts: tuple[int, ...] = (0, 1, 2)
    """Numbers of workers, or of threads, to try."""
    folder = ""
    """Peers that read the same files name the same folder; empty is the peer's own name."""
    lossy = False
    """Whether the picture is stored as JPEG."""
    exact_shuffle = True
    remark = ""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.epochs = 1
        """Epochs that one `iter()` of a loader runs through, so that small data can be timed for long enough."""

    def available(self) -> str | None:
        """None if it can run here, or the reason why not."""
        if self.workload.name not in self.workloads:
            return f"has no workload {self.workload.name}"
        missing = [module for module in self.needs if not _is_found(module)]
        return f"not installed: {', '.join(missing)}" if missing else None

    def write(self, folder: Path, records: Records) -> None:
        """Writes the records into an empty folder."""
        raise NotImplementedError

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        """Shuffled epochs over the folder."""
        raise NotImplementedError


class Shuffled:
    """Sampler of whole batches: row numbers of `epochs` epochs, in another order at every `iter()`."""

    def __init__(self, rows: int, batch: int, seed: int, epochs: int = 1) -> None:
        self.rows, self.batch, self.seed, self.epochs = rows, batch, seed, epochs
        self.epoch = 0

    def __len__(self) -> int:
        return self.epochs * -(-self.rows // self.batch)

    def __iter__(self) -> Iterator[np.ndarray]:
        for _ in range(self.epochs):
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
            self.epoch += 1
            yield from (order[start : start + self.batch] for start in range(0, self.rows, self.batch))


class Rows:
    """Map-style dataset over a function that opens the files once per process and returns how to read rows.

    `opener()` gives a function from row numbers to a finished batch, or, with `per_row`, from one row to a record.
    """

    def __init__(self, rows: int, opener: Callable[[], Callable[[Any], Any]], *, per_row: bool) -> None:
        self.rows, self.opener, self.per_row = rows, opener, per_row
        self.pid = -1
        self.read: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Any:
        if self.read is None or self.pid != os.getpid():
            self.read, self.pid = self.opener(), os.getpid()
        return [self.read(int(row)) for row in rows] if self.per_row else self.read(np.asarray(rows))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pid": -1, "read": None}


class Repeated:
    """Several epochs of a loader as one iteration."""

    def __init__(self, loader: Iterable[Batch], epochs: int) -> None:
        self.loader, self.epochs = loader, epochs

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.epochs):
            yield from self.loader


def data_loader(
    dataset: Any, batch: int, workers: int, order: tuple[int, int], *, per_row: bool = False, start: str | None = None
) -> Iterable[Batch]:
    """A torch DataLoader over a map-style dataset: whole batches as they come, or records through default_collate.

    `order` is (seed, epochs per iteration).
    """
    from torch.utils.data import DataLoader, default_collate

    return DataLoader(
        dataset,
        batch_sampler=Shuffled(len(dataset), batch, *order),  # type: ignore[arg-type]  # arrays of rows are sequences too
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=default_collate if per_row else tensors,
        multiprocessing_context=start if workers else None,
    )


def tensors(batch: Mapping[str, Any]) -> Batch:
    """The arrays of a batch as tensors over the same memory."""
    import torch

    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}


def stack(workload: Workload, records: Sequence[Mapping[str, Any]]) -> Batch:
    """Records as one batch of tensors, by one copy."""
    return tensors({c.name: np.stack([np.asarray(r[c.name]) for r in records]) for c in workload.wanted})


def count_rows(folder: Path) -> int:
    """Number of rows, from the note that `note_rows` left."""
    return int((folder / "rows.txt").read_text())


def note_rows(folder: Path, records: Records) -> None:
    """Leaves the number of rows beside the files."""
    (folder / "rows.txt").write_text(str(len(records)))


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
