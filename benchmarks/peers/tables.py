"""Columnar tables: Arrow IPC, Hugging Face datasets, Lance. Each column is a fixed-size binary or list of bytes."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers.base import Batch, Peer, Rows, count_rows, data_loader, note_rows
from peers.databases import blocks
from workloads import Column, Records, Workload


class ArrowIpc(Peer):
    """One memory-mapped Arrow file of record batches; rows are views that are copied into the batch."""

    name = "Arrow IPC, memory-mapped"
    needs = ("torch", "pyarrow")

    def write(self, folder: Path, records: Records) -> None:
        import pyarrow as pa

        schema = _schema(self.workload)
        with pa.OSFile(str(folder / "records.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for _, block in blocks(records):
                writer.write_batch(_record_batch(self.workload, block))
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_arrow, folder / "records.arrow", self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class HfDatasets(Peer):
    """Hugging Face datasets over Arrow, columns selected, Arrow format (its fastest)."""

    name = "HF datasets"
    needs = ("torch", "datasets")

    def write(self, folder: Path, records: Records) -> None:
        import datasets

        kinds = {
            c.name: datasets.List(datasets.Value(c.dtype), length=int(np.prod(c.shape))) for c in self.workload.columns
        }
        features = datasets.Features(kinds)
        with datasets.arrow_writer.ArrowWriter(path=str(folder / "data.arrow"), features=features) as writer:
            for _, block in blocks(records):
                writer.write_table(_list_table(self.workload, block).cast(features.arrow_schema))
            writer.finalize()
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_datasets, folder / "data.arrow", self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class Lance(Peer):
    """Lance: rows taken by position, columns selected."""

    name = "lance"
    needs = ("torch", "lance")

    def write(self, folder: Path, records: Records) -> None:
        import lance
        import pyarrow as pa

        batches = (_record_batch(self.workload, block) for _, block in blocks(records))
        reader = pa.RecordBatchReader.from_batches(_schema(self.workload), batches)
        lance.write_dataset(reader, str(folder / "records.lance"), max_rows_per_file=1 << 30)
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_lance, folder / "records.lance", self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs), start="forkserver")


def _schema(workload: Workload) -> Any:
    import pyarrow as pa

    return pa.schema([(column.name, pa.binary(column.nbytes)) for column in workload.columns])


def _record_batch(workload: Workload, block: dict[str, np.ndarray]) -> Any:
    """The block as fixed-size binary columns, without a copy."""
    import pyarrow as pa

    rows = len(block[workload.row_column])
    buffers = {c.name: pa.py_buffer(np.ascontiguousarray(block[c.name])) for c in workload.columns}
    arrays = [pa.Array.from_buffers(pa.binary(c.nbytes), rows, [None, buffers[c.name]]) for c in workload.columns]
    return pa.record_batch(arrays, schema=_schema(workload))


def _list_table(workload: Workload, block: dict[str, np.ndarray]) -> Any:
    import pyarrow as pa

    return pa.table(
        {
            c.name: pa.FixedSizeListArray.from_arrays(pa.array(block[c.name].reshape(-1)), int(np.prod(c.shape)))
            for c in workload.columns
        }
    )


def _binary(array: Any, column: Column) -> np.ndarray:
    """A fixed-size binary array as (rows, *shape), a view."""
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    flat = flat[array.offset * column.nbytes : (array.offset + len(array)) * column.nbytes]
    return flat.view(column.dtype).reshape(-1, *column.shape)


def _open_arrow(path: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    import pyarrow as pa

    file = pa.ipc.open_file(pa.memory_map(str(path)))
    parts = [file.get_batch(at) for at in range(file.num_record_batches)]
    columns = {c.name: [_binary(part.column(c.name), c) for part in parts] for c in workload.wanted}
    size = len(parts[0])

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        part, inner = np.divmod(rows, size)
        places = list(zip(part.tolist(), inner.tolist(), strict=True))
        return {name: np.stack([views[p][i] for p, i in places]) for name, views in columns.items()}

    return read


def _open_datasets(path: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    import datasets

    wanted = [column.name for column in workload.wanted]
    table = datasets.Dataset.from_file(str(path)).select_columns(wanted).with_format("arrow")

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        found = table[rows.tolist()]
        flat = {c.name: found.column(c.name).combine_chunks().flatten().to_numpy() for c in workload.wanted}
        return {c.name: flat[c.name].reshape(-1, *c.shape) for c in workload.wanted}

    return read


def _open_lance(path: Path, workload: Workload) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    import lance

    table = lance.dataset(str(path))
    names = [column.name for column in workload.wanted]

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        found = table.take(rows.tolist(), columns=names)
        return {c.name: _binary(found.column(c.name).combine_chunks(), c) for c in workload.wanted}

    return read
