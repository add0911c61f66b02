"""Loaders over shards: mosaicml-streaming, litdata, webdataset, HF datasets streamed."""

import importlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader_peers.base import SHARD, WEIGHTS, LoaderRun, Peer, Run, Setup, decode, numbers, payload
from mosaic import streaming_package

TOTAL = sum(WEIGHTS.values())


class Mosaic(Peer):
    """mosaicml-streaming: streams with proportions, py1e shuffle, 4 canonical nodes; ranks are nodes of one process."""

    needs = ("streaming", "torch")

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        streaming = streaming_package()
        for name in rows:
            out = str(folder / name)
            with streaming.MDSWriter(out=out, columns={"payload": "bytes"}, size_limit=60 * SHARD) as writer:
                for number in numbers(rows, name):
                    writer.write({"payload": payload(number, bad, changed)})

    def open(self, setup: Setup) -> Run:
        os.environ.update(RANK=str(setup.rank), WORLD_SIZE=str(setup.world), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        _alone(setup)
        streaming = streaming_package()
        importlib.import_module("streaming.base.util").clean_stale_shared_memory()

        class Numbers(streaming.StreamingDataset):  # type: ignore[misc,name-defined]
            def __getitem__(self, at: Any) -> int:
                return decode(super().__getitem__(at)["payload"])

        streams = [
            streaming.Stream(
                local=str(Path(setup.folder) / name), proportion=WEIGHTS[name] / TOTAL if setup.mixed else None
            )
            for name in setup.names
        ]
        dataset = Numbers(
            streams=streams, epoch_size=4096 if setup.mixed else None, shuffle=True, shuffle_seed=setup.seed,
            batch_size=setup.batch, num_canonical_nodes=4,
        )  # fmt: skip
        return LoaderRun(
            streaming.StreamingDataLoader(
                dataset, batch_size=setup.batch, num_workers=setup.workers, collate_fn=_tensor, drop_last=True
            )
        )


def _alone(setup: Setup) -> None:
    """A process group whose barriers return at once: each rank is a node that runs by itself, one after another."""
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if setup.world > 1:
        torch.distributed.init_process_group("fake", rank=setup.rank, world_size=setup.world, store=FakeStore())


def _tensor(found: list[int]) -> Any:
    """What StreamingDataLoader can count."""
    import torch

    return torch.tensor(found)


class LitData(Peer):
    """litdata: chunks, CombinedStreamingDataset, StreamingDataLoader; ranks by its environment variables."""

    needs = ("litdata", "torch")

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        from litdata.streaming import Cache

        for name in rows:
            (folder / name).mkdir(parents=True)
            cache = Cache(str(folder / name), chunk_size=SHARD)
            for row, number in enumerate(numbers(rows, name)):
                cache[row] = payload(number, bad, changed)
            cache.done()
            cache.merge()

    def open(self, setup: Setup) -> Run:
        os.environ.update(WORLD_SIZE=str(setup.world), GLOBAL_RANK=str(setup.rank), NNODES="1")
        import litdata

        class Numbers(litdata.StreamingDataset):  # type: ignore[misc,name-defined]
            def __getitem__(self, at: Any) -> int:
                return decode(super().__getitem__(at))

        parts = [
            Numbers(str(Path(setup.folder) / name), shuffle=True, seed=setup.seed, drop_last=True)
            for name in setup.names
        ]
        dataset: Any = parts[0]
        if setup.mixed:
            weights = [WEIGHTS[name] / TOTAL for name in setup.names]
            dataset = litdata.CombinedStreamingDataset(parts, seed=setup.seed, weights=weights, iterate_over_all=False)
        return LoaderRun(
            litdata.StreamingDataLoader(
                dataset, batch_size=setup.batch, num_workers=setup.workers, collate_fn=list, drop_last=True
            )
        )


class WebDataset(Peer):
    """webdataset: TAR shards, shard and buffer shuffle, RandomMix; it has no state."""

    needs = ("webdataset", "torch")
    resumes = False
    survives = "handler=ignore_and_continue"

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        import webdataset

        for name in rows:
            (folder / name).mkdir(parents=True)
            with webdataset.ShardWriter(str(folder / name / "%03d.tar"), maxcount=SHARD, verbose=0) as sink:
                for number in numbers(rows, name):
                    sink.write({"__key__": f"{number:05d}", "bin": payload(number, bad, changed)})

    def open(self, setup: Setup) -> Run:
        os.environ.update(RANK=str(setup.rank), WORLD_SIZE=str(setup.world))
        import webdataset

        handler = webdataset.ignore_and_continue if setup.survive else webdataset.reraise_exception

        def part(name: str) -> Any:
            shards = sorted(str(path) for path in (Path(setup.folder) / name).glob("*.tar"))
            rows = webdataset.WebDataset(
                shards,
                shardshuffle=len(shards),
                seed=setup.seed,
                nodesplitter=webdataset.split_by_node,
                empty_check=False,
            )
            shuffled = rows.shuffle(64, seed=setup.seed).map(lambda sample: decode(sample["bin"]), handler=handler)
            return shuffled.repeat() if setup.mixed else shuffled

        parts = [part(name) for name in setup.names]
        dataset: Any = parts[0]
        if setup.mixed:
            random.seed(setup.seed)
            dataset = webdataset.RandomMix(parts, [WEIGHTS[name] / TOTAL for name in setup.names])
        from torch.utils.data import DataLoader

        return LoaderRun(
            DataLoader(dataset, setup.batch, num_workers=setup.workers, collate_fn=list, drop_last=True)  # type: ignore[arg-type]
        )


class HfStreaming(Peer):
    """HF datasets: to_iterable_dataset of 8 shards, buffer shuffle, interleave_datasets; torchdata's StatefulDataLoader."""

    needs = ("datasets", "torchdata", "torch")

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        import datasets

        datasets.disable_progress_bars()
        for name in rows:
            content = [payload(number, bad, changed) for number in numbers(rows, name)]
            datasets.Dataset.from_dict({"payload": content}).save_to_disk(str(folder / name))

    def open(self, setup: Setup) -> Run:
        import datasets
        from datasets.distributed import split_dataset_by_node
        from torchdata.stateful_dataloader import StatefulDataLoader

        datasets.disable_progress_bars()
        parts = [
            datasets.load_from_disk(str(Path(setup.folder) / name))
            .to_iterable_dataset(num_shards=8)
            .shuffle(seed=setup.seed, buffer_size=64)
            for name in setup.names
        ]
        dataset = parts[0]
        if setup.mixed:
            shares = [WEIGHTS[name] / TOTAL for name in setup.names]
            dataset = datasets.interleave_datasets([part.repeat(None) for part in parts], shares, seed=setup.seed)
        dataset = dataset.map(lambda row: {"number": decode(row["payload"])}, remove_columns=["payload"])
        dataset = split_dataset_by_node(dataset, setup.rank, setup.world)
        return LoaderRun(
            StatefulDataLoader(dataset, setup.batch, num_workers=setup.workers, collate_fn=_numbers, drop_last=True)
        )


def _numbers(rows: list[Mapping[str, int]]) -> list[int]:
    return [row["number"] for row in rows]
