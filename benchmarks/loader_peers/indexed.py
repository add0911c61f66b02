"""Loaders over sources with random access: grain, torchdata's nodes, torchdata's StatefulDataLoader."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loader_peers.base import WEIGHTS, LoaderRun, Peer, Run, Setup, decode, numbers, payload


class Rows:
    """Payloads of a source, one file for all; rows by index."""

    def __init__(self, folder: str, name: str) -> None:
        self.rows = [bytes.fromhex(line) for line in json.loads((Path(folder) / f"{name}.json").read_text())]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> bytes:
        return self.rows[row]


class Numbers(Rows):
    """The same, decoded."""

    def __getitem__(self, row: int) -> int:  # type: ignore[override]  # the decoded row
        return decode(self.rows[row])


class Indexed(Peer):
    """Writes the sources as lists."""

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        folder.mkdir(parents=True)
        for name in rows:
            lines = [payload(number, bad, changed).hex() for number in numbers(rows, name)]
            (folder / f"{name}.json").write_text(json.dumps(lines))


class Grain(Indexed):
    """grain: MapDataset, mixed, shuffled, sliced by rank; workers are `mp_prefetch`."""

    needs = ("grain",)
    rebuilds = True

    def open(self, setup: Setup) -> Run:
        return _GrainRun(setup)

    def rebuild(self, setup: Setup, step: int, place: int) -> int:
        return int(_grain(setup)[step * setup.batch + place])


def _grain(setup: Setup) -> Any:
    import grain

    parts = [grain.MapDataset.source(Rows(setup.folder, name)).seed(setup.seed).shuffle() for name in setup.names]
    if setup.mixed:
        weights = [WEIGHTS[name] for name in setup.names]
        whole = grain.MapDataset.mix([part.repeat() for part in parts], weights=weights)
    else:
        whole = parts[0]
    return whole[setup.rank :: setup.world].map(decode)


class _GrainRun(LoaderRun):
    def __init__(self, setup: Setup) -> None:
        import grain

        table = _grain(setup).batch(setup.batch, drop_remainder=True).to_iter_dataset()
        if setup.workers:
            table = table.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=setup.workers))
        super().__init__(iter(table))

    def state(self) -> Any:
        return self.loader.get_state()

    def load(self, state: Any) -> None:
        self.loader.set_state(state)


class Nodes(Indexed):
    """torchdata.nodes: DistributedSampler per source, MultiNodeWeightedSampler; workers are threads of ParallelMapper."""

    needs = ("torchdata", "torch")

    def open(self, setup: Setup) -> Run:
        import torchdata.nodes as tn
        from torch.utils.data import DistributedSampler

        def part(name: str) -> Any:
            rows = Rows(setup.folder, name)
            order: Any = DistributedSampler(rows, setup.world, setup.rank, seed=setup.seed)  # type: ignore[arg-type,type-var]
            return tn.Mapper(tn.SamplerWrapper(order), rows.__getitem__)

        node = part("a")
        if setup.mixed:
            weights = {name: float(weight) for name, weight in WEIGHTS.items()}
            node = tn.MultiNodeWeightedSampler(
                {name: part(name) for name in setup.names}, weights, stop_criteria=tn.StopCriteria.CYCLE_FOREVER,
                rank=setup.rank, world_size=setup.world, seed=setup.seed,
            )  # fmt: skip
        node = tn.ParallelMapper(node, decode, setup.workers, method="thread")
        return LoaderRun(tn.Loader(tn.Batcher(node, setup.batch, drop_last=True)))


class Stateful(Indexed):
    """torchdata's StatefulDataLoader over a map-style dataset with a DistributedSampler: torch has no mixture."""

    needs = ("torchdata", "torch")
    mixes = False

    def open(self, setup: Setup) -> Run:
        from torch.utils.data import DistributedSampler
        from torchdata.stateful_dataloader import StatefulDataLoader

        rows: Any = Numbers(setup.folder, "a")
        order: Any = DistributedSampler(rows, setup.world, setup.rank, seed=setup.seed)
        return LoaderRun(
            StatefulDataLoader(
                rows, setup.batch, sampler=order, num_workers=setup.workers, drop_last=True, collate_fn=list
            )
        )
