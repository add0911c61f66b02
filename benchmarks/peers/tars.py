"""TAR archives: JPEG + NPZ (stored and deflated) with an index of members, and webdataset."""

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers.base import Batch, Peer, Rows, data_loader, note_rows, stack
from workloads import Records, Workload

QUALITY = 95


class TarStored(Peer):
    """JPEG + NPZ members in one TAR; members are found by an index made when it is opened."""

    name = "TAR of JPEG + stored NPZ"
    needs = ("torch", "simplejpeg")
    workloads = ("A",)
    lossy = True
    save = staticmethod(np.savez)

    def write(self, folder: Path, records: Records) -> None:
        with tarfile.open(folder / "shard.tar", "w") as tar:
            for key, record in records:
                arrays = {name: value for name, value in record.items() if name != "image"}
                packed = io.BytesIO()
                self.save(packed, **arrays)
                _add(tar, f"{key}.jpg", _jpeg(record["image"]))
                _add(tar, f"{key}_features.npz", packed.getbuffer())
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        members = _members(folder / "shard.tar")
        rows = Rows(len(members), partial(_open_tar, folder / "shard.tar", members, self.workload), per_row=True)
        return data_loader(rows, batch, workers, (seed, self.epochs), per_row=True)


class TarDeflated(TarStored):
    """The same with compressed NPZ: the way of the seed's older code."""

    name = "TAR of JPEG + deflated NPZ (the old way)"
    save = staticmethod(np.savez_compressed)


class WebDatasetPeer(Peer):
    """webdataset: TAR shards read in order, shuffled in a buffer."""

    name = "webdataset"
    needs = ("torch", "webdataset", "simplejpeg")
    exact_shuffle = False
    remark = "shuffles shards and a buffer of 64 (A) or 5,000 (B) records"

    @property
    def lossy(self) -> bool:  # type: ignore[override]  # depends on the workload
        """A stores JPEG, B raw bytes."""
        return self.workload.name == "A"

    def write(self, folder: Path, records: Records) -> None:
        import webdataset

        per_shard = max(1, len(records) // 8)
        with webdataset.ShardWriter(str(folder / "%03d.tar"), maxcount=per_shard, verbose=0) as sink:
            for key, record in records:
                sink.write({"__key__": key, **self._members(record)})
        note_rows(folder, records)

    def loader(self, folder: Path, batch: int, workers: int, seed: int) -> Iterable[Batch]:
        import webdataset

        shards = [str(path) for path in sorted(folder.glob("*.tar"))]
        window = 64 if self.workload.name == "A" else 5000
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=seed, empty_check=False).repeat(
            self.epochs
        )
        dataset = dataset.shuffle(window).map(self._record).batched(batch, collation_fn=partial(stack, self.workload))
        return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    def _members(self, record: Mapping[str, np.ndarray]) -> dict[str, bytes]:
        if not self.lossy:
            return {"bin": self.workload.pack(record)}  # type: ignore[arg-type]  # a dict
        packed = io.BytesIO()
        np.savez(packed, **{name: value for name, value in record.items() if name != "image"})  # type: ignore[arg-type]
        return {"jpg": _jpeg(record["image"]), "npz": packed.getvalue()}

    def _record(self, members: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        if not self.lossy:
            return self.workload.unpack(members["bin"])
        return _decode(members["jpg"], members["npz"], self.workload)


def _jpeg(image: np.ndarray) -> bytes:
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(image, quality=QUALITY))


def _decode(jpeg: bytes, npz: bytes, workload: Workload) -> dict[str, np.ndarray]:
    import simplejpeg

    with np.load(io.BytesIO(npz)) as arrays:
        record = {column.name: arrays[column.name] for column in workload.wanted if column.name != "image"}
    return {"image": simplejpeg.decode_jpeg(jpeg), **record}


def _add(tar: tarfile.TarFile, name: str, content: bytes | memoryview) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _members(path: Path) -> list[tuple[int, int, int, int]]:
    """Offset and size of the JPEG and of the NPZ of each record."""
    with tarfile.open(path) as tar:
        found = [(member.offset_data, member.size) for member in tar]
    return [(*jpeg, *npz) for jpeg, npz in zip(found[::2], found[1::2], strict=True)]


def _open_tar(
    path: Path, members: list[tuple[int, int, int, int]], workload: Workload
) -> Callable[[int], dict[str, Any]]:
    descriptor = os.open(path, os.O_RDONLY)

    def read(row: int) -> dict[str, Any]:
        jpeg_at, jpeg_size, npz_at, npz_size = members[row]
        return _decode(os.pread(descriptor, jpeg_size, jpeg_at), os.pread(descriptor, npz_size, npz_at), workload)

    return read
