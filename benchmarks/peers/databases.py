"""Key-value and array stores: LMDB, HDF5, Zarr, TensorStore."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers.base import Batch, Peer, Rows, count_rows, data_loader, note_rows
from workloads import Column, Records, Workload


class Lmdb(Peer):
    """One value per record, all columns packed; copied into the batch from the map."""

    name = "lmdb"
    needs = ("torch", "lmdb")

    def write(self, folder: Path, records: Records) -> None:
        import lmdb

        room = int(len(records) * (self.workload.record_bytes + 16384) * 1.2) + (1 << 28)
        per_commit = max(1, (256 << 20) // self.workload.record_bytes)
        with lmdb.open(str(folder), map_size=room, sync=False, writemap=False) as base:
            for start in range(0, len(records), per_commit):
                with base.begin(write=True) as step:
                    for row in range(start, min(len(records), start + per_commit)):
                        step.put(f"{row:09d}".encode(), self.workload.pack(records[row][1]), append=True)
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_lmdb, folder, self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class H5py(Peer):
    """One contiguous dataset per column; rows read straight into the batch."""

    name = "h5py"
    needs = ("torch", "h5py")

    def write(self, folder: Path, records: Records) -> None:
        import h5py

        with h5py.File(folder / "records.h5", "w") as file:
            columns = self.workload.columns
            tables = {c.name: file.create_dataset(c.name, (len(records), *c.shape), c.dtype) for c in columns}
            for start, block in blocks(records):
                for name, table in tables.items():
                    table[start : start + len(block[name])] = block[name]
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_h5py, folder / "records.h5", self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class Zarr(Peer):
    """One array per column, no compression; chunks of one record (A) or of 256 (B)."""

    name = "zarr"
    needs = ("torch", "zarr")

    def write(self, folder: Path, records: Records) -> None:
        import zarr

        for column in self.workload.columns:
            shape, chunks = (len(records), *column.shape), chunk_shape(column)
            store = str(folder / column.name)
            zarr.create_array(store, shape=shape, dtype=column.dtype, chunks=chunks, compressors=None, zarr_format=3)
        arrays = {c.name: zarr.open_array(str(folder / c.name), mode="r+") for c in self.workload.columns}
        for start, block in blocks(records):
            for name, array in arrays.items():
                array[start : start + len(block[name])] = block[name]
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_zarr, folder, self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs), start="forkserver")


class TensorStore(Peer):
    """The same arrays through TensorStore's zarr3 driver, all columns requested at once."""

    name = "tensorstore (zarr3)"
    needs = ("torch", "tensorstore")

    def write(self, folder: Path, records: Records) -> None:
        arrays = {
            column.name: _tensorstore(folder, column, (len(records), *column.shape)) for column in self.workload.columns
        }
        for start, block in blocks(records):
            waiting = [array[start : start + len(block[name])].write(block[name]) for name, array in arrays.items()]
            for write in waiting:
                write.result()
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_tensorstore, folder, self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs), start="forkserver")


def blocks(records: Records) -> Iterable[tuple[int, dict[str, np.ndarray]]]:
    """Runs of records as arrays of a block, with the first row: 16 records of A, 4,096 of B."""
    size = records.workload.batch
    for start in range(0, len(records), size):
        found = [records[row][1] for row in range(start, min(len(records), start + size))]
        yield start, {c.name: np.stack([record[c.name] for record in found]) for c in records.workload.columns}


def chunk_shape(column: Column) -> tuple[int, ...]:
    """One row per chunk where rows are large, 256 where they are small."""
    return (256 if column.nbytes < 4096 and len(column.shape) == 1 and column.name != "metadata" else 1, *column.shape)


def _open_lmdb(folder: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    import lmdb

    base = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, max_readers=8)

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        with base.begin(buffers=True) as step:
            found = [workload.unpack(step.get(f"{row:09d}".encode())) for row in rows]
            return {c.name: np.stack([record[c.name] for record in found]) for c in workload.wanted}

    return read


def _open_h5py(path: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    import h5py

    file = h5py.File(path, "r")

    def gather(column: Column, rows: np.ndarray) -> np.ndarray:
        if column.nbytes < 4096 and workload.name == "B":
            return file[column.name][rows]  # rows are sorted
        out = np.empty((len(rows), *column.shape), column.dtype)
        for at, row in enumerate(rows):
            file[column.name].read_direct(out, np.s_[row], np.s_[at])
        return out

    return lambda rows: {column.name: gather(column, np.sort(rows)) for column in workload.wanted}


def _open_zarr(folder: Path, workload: Workload) -> Callable[[np.ndarray], Mapping[str, Any]]:
    import zarr

    arrays = {column.name: zarr.open_array(str(folder / column.name), mode="r") for column in workload.wanted}
    return lambda rows: {name: np.asarray(array.oindex[np.sort(rows)]) for name, array in arrays.items()}


def _tensorstore(folder: Path, column: Column, shape: tuple[int, ...] | None = None) -> Any:
    import tensorstore

    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / column.name)}}
    if shape is None:
        return tensorstore.open(spec, read=True, open=True).result()
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape(column))}}
    codecs = (
        [{"name": "bytes", "configuration": {"endian": "little"}}] if column.dtype != "uint8" else [{"name": "bytes"}]
    )
    spec["metadata"] = {"shape": list(shape), "data_type": column.dtype, "chunk_grid": grid, "codecs": codecs}
    return tensorstore.open(spec, create=True, delete_existing=True).result()


def _open_tensorstore(folder: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    arrays = {column.name: _tensorstore(folder, column) for column in workload.wanted}

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        waiting = {name: array[rows].read(order="C") for name, array in arrays.items()}
        return {name: request.result() for name, request in waiting.items()}

    return read
