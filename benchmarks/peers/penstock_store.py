"""penstock: its own layout, and the original's v1 directory through the same loader."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peers.base import Batch, Peer, note_rows
from peers.plain import Original
from workloads import Records

_METADATA = ("num_bboxes", "has_bbox", "image_shape")


class PenstockStore(Peer):
    """penstock's own layout, one file per field. Counts are threads."""

    name = "penstock"
    needs = ("torch", "penstock", "penstock.loader", "penstock.store")
    counts = (1, 2)
    remark = "counts are threads"

    def write(self, folder: Path, records: Records) -> None:
        from penstock.schema import Field, Schema
        from penstock.store import write_store

        schema = Schema(Field(name=c.name, dtype=c.dtype, shape=c.shape) for c in self.workload.columns)
        write_store(folder / "store", schema, records)
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        names = [column.name for column in self.workload.wanted]
        return _loader(self, folder / "store", names, batch, workers, seed=seed)


class PenstockV1(Original):
    """A v1 directory, as the original's converter leaves it, read by penstock. Counts are threads."""

    name = "penstock on a v1 directory"
    needs = ("torch", "penstock", "penstock.loader", "penstock.store")
    workloads = ("A",)
    counts = (1, 2)
    remark = "counts are threads"

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        names = [column.name for column in self.workload.wanted if column.name != "metadata"]
        return _Joined(_loader(self, folder, [*names, *_METADATA], batch, workers, seed=seed))


class _Joined:
    """Batches in which the fields that penstock makes of metadata.bin are one column again."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        import torch

        for batch in self.loader:
            parts = [batch[name].reshape(len(batch[name]), -1) for name in _METADATA]
            yield {**batch, "metadata": torch.cat(parts, 1)}


def _loader(peer: Peer, path: Path, fields: Sequence[str], batch: int, threads: int, *, seed: int) -> Any:
    from penstock.loader import Loader
    from penstock.samplers import Epochs
    from penstock.store import open_store

    store = open_store(path)
    return Loader(
        store,
        batch_size=batch,
        fields=fields,
        sampler=Epochs(len(store), seed=seed),
        epochs=peer.epochs,
        drop_last=False,
        output="torch",
        threads=threads,
    )
