"""Raw arrays in files: the original's reader, np.memmap, torch.from_file, and an spdl pipeline over the same files."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers.base import Batch, Peer, Rows, Shuffled, count_rows, data_loader, note_rows, tensors
from workloads import V1_FILES, Column, Records, Workload


class Original(Peer):
    """The way of the original's reader: per record seek + read of every file, frombuffer, copy, default collate.

    It leaves out the conversion of edges and masks to float32, in its favour.
    """

    name = "original (seek, read, default collate)"
    folder = "v1"

    def write(self, folder: Path, records: Records) -> None:
        tables = v1_tables(self.workload)
        files = {name: open(folder / name, "wb") for name in tables}  # noqa: SIM115 - closed below, all at once
        try:
            with open(folder / "keys.txt", "w") as keys:
                for key, record in records:
                    for name, columns in tables.items():
                        files[name].write(b"".join(record[column.name].tobytes() for column in columns))
                    keys.write(key + "\n")
        finally:
            for file in files.values():
                file.close()
        (folder / "config.json").write_text(json.dumps(_config(tables, len(records)), indent=2))
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_original, folder, self.workload), per_row=True)
        return data_loader(rows, batch, workers, (seed, self.epochs), per_row=True)


class Memmap(Peer):
    """np.memmap per column, one fancy index per batch, in a DataLoader."""

    name = "np.memmap, fancy index in a DataLoader"
    folder = "raw"

    def write(self, folder: Path, records: Records) -> None:
        write_columns(folder, self.workload, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_memmap, folder, self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class FromFile(Memmap):
    """torch.from_file per column, indexed by a tensor of rows, in a DataLoader."""

    name = "torch.from_file in a DataLoader"

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_from_file, folder, self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class Spdl(Memmap):
    """An spdl pipeline of threads that gather batches from memory maps."""

    name = "spdl (threads over np.memmap)"
    needs = ("torch", "spdl")
    counts = (1, 2)
    remark = "counts are threads"

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        read = _open_memmap(folder, self.workload)
        return _SpdlEpochs(
            Shuffled(count_rows(folder), batch, seed, self.epochs), lambda rows: tensors(read(rows)), workers
        )


class _SpdlEpochs:
    def __init__(self, batches: Shuffled, read: Callable[[np.ndarray], Batch], threads: int) -> None:
        self.batches, self.read, self.threads = batches, read, threads

    def __iter__(self) -> Any:
        from spdl.pipeline import PipelineBuilder

        builder = PipelineBuilder().add_source(list(self.batches)).pipe(self.read, concurrency=self.threads)
        pipeline = builder.add_sink(2).build(num_threads=self.threads)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()


def write_columns(folder: Path, workload: Workload, records: Records) -> None:
    """One file per column, rows one after the other."""
    files = [open(folder / f"{column.name}.bin", "wb") for column in workload.columns]  # noqa: SIM115
    try:
        for _, record in records:
            for column, file in zip(workload.columns, files, strict=True):
                file.write(record[column.name].data)
    finally:
        for file in files:
            file.close()
    note_rows(folder, records)


def v1_tables(workload: Workload) -> dict[str, tuple[Column, ...]]:
    """Files of the original's layout and the columns of their records; one file per column for other workloads."""
    columns = {column.name: column for column in workload.columns}
    files = V1_FILES if workload.name == "A" else {f"{name}.bin": (name,) for name in columns}
    return {file: tuple(columns[name] for name in names) for file, names in files.items()}


def column_map(folder: Path, column: Column) -> np.ndarray:
    """One column of a folder that `write_columns` wrote, mapped read-only: (rows, *shape)."""
    return np.memmap(folder / f"{column.name}.bin", column.dtype, "r").reshape(-1, *column.shape)


def _config(tables: dict[str, tuple[Column, ...]], rows: int) -> dict[str, object]:
    sizes = {f"{name.removesuffix('.bin')}_bytes": sum(c.nbytes for c in columns) for name, columns in tables.items()}
    return {
        "model_type": "made by benchmarks",
        "image_size": 1024,
        "mask_size": 256,
        "total_samples": rows,
        "version": "1.0",
        "description": "records of benchmarks/stores.py",
        "sample_sizes": {name.replace("images", "image"): size for name, size in sizes.items()},
        "interpolation_method": "cv2.INTER_AREA",
        "mask_binarization_threshold": 0.5,
    }


def _open_original(folder: Path, workload: Workload) -> Callable[[int], dict[str, np.ndarray]]:
    tables = v1_tables(workload)
    files = {name: open(folder / name, "rb") for name in tables}  # noqa: SIM115 - open as long as the process reads
    sizes = {name: sum(column.nbytes for column in columns) for name, columns in tables.items()}

    def read(row: int) -> dict[str, np.ndarray]:
        record = {}
        for name, columns in tables.items():
            files[name].seek(row * sizes[name])
            content = files[name].read(sizes[name])
            offset = 0
            for column in columns:
                if column.is_wanted:
                    flat = np.frombuffer(content, column.dtype, int(np.prod(column.shape)), offset)
                    record[column.name] = flat.reshape(column.shape).copy()
                offset += column.nbytes
        return record

    return read


def _open_memmap(folder: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    maps = {column.name: column_map(folder, column) for column in workload.wanted}
    return lambda rows: {name: np.asarray(array[rows]) for name, array in maps.items()}


def _open_from_file(folder: Path, workload: Workload) -> Callable[[np.ndarray], Batch]:
    import torch

    def whole(column: Column) -> torch.Tensor:
        path = folder / f"{column.name}.bin"
        kind = getattr(torch, column.dtype)
        size = path.stat().st_size // np.dtype(column.dtype).itemsize
        return torch.from_file(str(path), shared=True, size=size, dtype=kind).reshape(-1, *column.shape)

    arrays = {column.name: whole(column) for column in workload.wanted}
    return lambda rows: {name: array[torch.from_numpy(rows)] for name, array in arrays.items()}
