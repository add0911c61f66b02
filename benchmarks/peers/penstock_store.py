"""penstock: its own layout, and the original's v1 directory through the same loader."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from workloads import Records

from peers.base import Batch, Peer, note_rows
from peers.plain import Original


class PenstockStore(Peer):
    """penstock's own layout, one file per field. Counts are threads."""

    name = "penstock"
    needs = ("torch", "penstock")
    counts = (1, 2)
    remark = "counts are threads"

    def write(self, folder: Path, records: Records) -> None:
        from penstock.schema import Field, Schema
        from penstock.store import write_store

        schema = Schema(Field(name=c.name, dtype=c.dtype, shape=c.shape) for c in self.workload.columns)
        write_store(folder / "store", schema, records)
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        import penstock

        store = penstock.open_store(folder / "store")
        return Epochs(store, [column.name for column in self.workload.wanted], batch, workers, seed)


class PenstockV1(Original):
    """A v1 directory, as the original's converter leaves it, read by penstock. Counts are threads."""

    name = "penstock on a v1 directory"
    needs = ("torch", "penstock")
    workloads = ("A",)
    counts = (1, 2)
    remark = "counts are threads"

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        import penstock

        return Epochs(
            penstock.open_store(folder), [column.name for column in self.workload.wanted], batch, workers, seed
        )
