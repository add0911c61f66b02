"""Formats made for training: MosaicML streaming, LitData, TensorDict, Grain over ArrayRecord, FFCV."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mosaic import streaming_package
from peers.base import Batch, Peer, Repeated, Rows, count_rows, data_loader, note_rows, stack
from workloads import Records, Workload

_PAGE_BYTES = 1 << 24


class Mosaic(Peer):
    """mosaicml-streaming: MDS shards of encoded arrays, its own shuffle."""

    name = "mosaicml-streaming (MDS)"
    needs = ("torch", "streaming")
    exact_shuffle = False
    remark = "pins numpy<2.2: runs in its own environment, see --python"

    def write(self, folder: Path, records: Records) -> None:
        streaming = streaming_package()

        columns = {c.name: f"ndarray:{c.dtype}:{','.join(map(str, c.shape))}" for c in self.workload.columns}
        with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=1 << 27) as writer:
            for _, record in records:
                writer.write(record)
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        streaming = streaming_package()
        from torch.utils.data import DataLoader

        util = importlib.import_module("streaming.base.util")
        util.clean_stale_shared_memory()
        local = str(folder / "mds")
        dataset = streaming.StreamingDataset(local=local, shuffle=True, shuffle_seed=seed, batch_size=batch)
        join = partial(stack, self.workload)
        loader = DataLoader(dataset, batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=join)
        return Repeated(loader, self.epochs)


class LitData(Peer):
    """litdata: chunks written by its BinaryWriter, streamed in shuffled order."""

    name = "litdata"
    needs = ("torch", "litdata")
    exact_shuffle = False

    def write(self, folder: Path, records: Records) -> None:
        from litdata.streaming import Cache

        cache = Cache(str(folder / "chunks"), chunk_bytes=1 << 27)
        for row, (_, record) in enumerate(records):
            cache[row] = record
        cache.done()
        cache.merge()
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        import litdata

        dataset = litdata.StreamingDataset(str(folder / "chunks"), shuffle=True, seed=seed, drop_last=False)
        join = partial(stack, self.workload)
        loader = litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=join)
        return Repeated(loader, self.epochs)


class TensorDictPeer(Peer):
    """tensordict: memory-mapped tensors, one index of rows per batch."""

    name = "tensordict memmap"
    needs = ("torch", "tensordict")

    def write(self, folder: Path, records: Records) -> None:
        import torch
        from tensordict import TensorDict

        rows = len(records)
        one = TensorDict(
            {c.name: torch.zeros(c.shape, dtype=getattr(torch, c.dtype)) for c in self.workload.columns}, []
        )
        table = one.expand(rows).memmap_like(str(folder / "td"))
        for row, (_, record) in enumerate(records):
            for name, value in record.items():
                table.get(name)[row].numpy()[...] = value
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        rows = Rows(count_rows(folder), partial(_open_tensordict, folder / "td", self.workload), per_row=False)
        return data_loader(rows, batch, workers, (seed, self.epochs))


class Grain(Peer):
    """Grain over ArrayRecord files of one record per group; counts are worker processes, 0 is its reading threads."""

    name = "grain over array_record"
    needs = ("grain", "array_record")

    def write(self, folder: Path, records: Records) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        group = 1 if self.workload.name == "A" else 64
        writer = ArrayRecordWriter(str(folder / "records.array_record"), f"group_size:{group},uncompressed")
        for _, record in records:
            writer.write(self.workload.pack(record))
        writer.close()
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        return Repeated(_GrainEpochs(folder / "records.array_record", self.workload, batch, workers, seed), self.epochs)


class _GrainEpochs:
    def __init__(self, path: Path, workload: Workload, batch: int, workers: int, seed: int) -> None:
        self.path, self.workload, self.batch, self.workers, self.seed = path, workload, batch, workers, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        import grain

        source = grain.sources.ArrayRecordDataSource(str(self.path))
        self.epoch += 1
        rows = grain.MapDataset.source(source).shuffle(seed=self.seed + self.epoch)
        table = rows.map(self.workload.unpack).batch(self.batch).to_iter_dataset()
        if self.workers:
            table = table.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=self.workers))
        return iter(table)


class Ffcv(Peer):
    """FFCV: one .beton file, compiled decoders, threads, operating-system cache, random order."""

    name = "ffcv"
    needs = ("torch", "ffcv")
    counts = (1, 2)
    remark = "counts are threads; unwanted columns are skipped"

    def write(self, folder: Path, records: Records) -> None:
        from ffcv.fields import NDArrayField
        from ffcv.writer import DatasetWriter

        fields = {c.name: NDArrayField(np.dtype(_storable(c.dtype)), c.shape) for c in self.workload.columns}
        writer = DatasetWriter(str(folder / "records.beton"), fields, page_size=_PAGE_BYTES, num_workers=2)
        writer.from_indexed_dataset(_Tuples(records))
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        from ffcv.fields.decoders import NDArrayDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        pipelines = {c.name: [NDArrayDecoder(), ToTensor()] if c.is_wanted else None for c in self.workload.columns}
        path = str(folder / "records.beton")
        order = OrderOption.RANDOM
        loader = Loader(path, batch, workers, True, order, seed=seed, pipelines=pipelines, drop_last=False)
        return Repeated(_Named(loader, {c.name: c.dtype for c in self.workload.wanted}), self.epochs)


class _Named:
    """Tuples of a loader as mappings, in the types of the columns."""

    def __init__(self, loader: Iterable[tuple[Any, ...]], dtypes: Mapping[str, str]) -> None:
        self.loader, self.dtypes = loader, dtypes

    def __iter__(self) -> Iterator[Batch]:
        import torch

        kinds = [(name, getattr(torch, dtype)) for name, dtype in self.dtypes.items()]
        for values in self.loader:
            yield {name: value.view(kind) for (name, kind), value in zip(kinds, values, strict=True)}


class _Tuples:
    """Records as tuples, for FFCV's writer."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        return tuple(value.view(_storable(value.dtype.name)) for value in self.records[int(row)][1].values())


def _storable(dtype: str) -> str:
    """The type that FFCV's compiler knows, of the same size: it has no float16."""
    return "int16" if dtype == "float16" else dtype


def _open_tensordict(folder: Path, workload: Workload) -> Callable[[np.ndarray], Mapping[str, Any]]:
    import torch
    from tensordict import TensorDict

    table = TensorDict.load_memmap(str(folder)).select(*(column.name for column in workload.wanted))
    return lambda rows: dict(table[torch.from_numpy(rows)].items())
