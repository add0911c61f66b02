"""penstock: its own layout, and the original's v1 directory through the same loader."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        return _loader(self, folder / "store", batch, workers, seed)


class PenstockV1(Original):
    """A v1 directory, as the original's converter leaves it, read by penstock. Counts are threads."""

    name = "penstock on a v1 directory"
    needs = ("torch", "penstock")
    workloads = ("A",)
    counts = (1, 2)
    remark = "counts are threads"

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        return _loader(self, folder, batch, workers, seed)


def _loader(peer: Peer, path: Path, batch: int, threads: int, seed: int) -> Any:
    from penstock.loader import Loader
    from penstock.samplers import Epochs
    from penstock.store import open_store

    store = open_store(path)
    return Loader(
        store,
        batch_size=batch,
        fields=[column.name for column in peer.workload.wanted],
        sampler=Epochs(len(store), seed=seed),
        epochs=peer.epochs,
        drop_last=False,
        output="torch",
        threads=threads,
    )
