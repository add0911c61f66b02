"""penstock itself: a MixLoader over masklet files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from loader_peers.base import FIRST, WEIGHTS, Peer, Run, Setup, numbers

from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.readers.masklets import Masklets


class Ours(Peer):
    """One NPZ file a sample; bad ones are cut in half. Workers are threads."""

    needs = ("penstock",)
    survives = "always"
    rebuilds = True

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        for name in rows:
            (folder / name).mkdir(parents=True)
            for number in numbers(rows, name):
                path = folder / name / f"masklet_data_{number:05d}.npz"
                frame = np.full((4, 4, 3), 7 if number in changed else 5, np.float32)
                mask = np.full((4, 4), 255, np.float32)
                with path.open("wb") as file:
                    np.savez(file, frame1=frame, mask1=mask, frame2=frame, mask2=mask)
                if number in bad:
                    path.write_bytes(path.read_bytes()[:300])

    def open(self, setup: Setup) -> Run:
        return _Run(setup)

    def rebuild(self, setup: Setup, step: int, place: int) -> int:
        run = _Run(setup)
        keys: list[str] = []
        for _, batch in zip(range(step + 1), run.loader, strict=False):
            keys = batch.row_keys()
        return _number(str(_Run(setup).loader.mixed.rebuild(keys[place])["key1"]))


class _Run(Run):
    def __init__(self, setup: Setup) -> None:
        parts = [
            MixPart(
                name=name, source=Masklets(Path(setup.folder) / name), weight=WEIGHTS[name] if setup.mixed else None
            )
            for name in setup.names
        ]
        self.loader = MixLoader(
            Mixed(parts, seed=setup.seed, views=Views(size=4)), batch_size=setup.global_batch, rank=setup.rank, budget=None,
            world_size=setup.world, threads=setup.workers + 1, epochs=None if setup.mixed else 1,
        )  # fmt: skip

    def batches(self) -> Iterator[list[int]]:
        for batch in self.loader:
            yield [_number(key) for key in batch["key1"]]

    def state(self) -> Any:
        return self.loader.state_dict()

    def load(self, state: Any) -> None:
        self.loader.load_state_dict(state)


def _number(key: str) -> int:
    found = int("".join(filter(str.isdigit, key.partition("masklet_data_")[2][:5])))
    assert found < FIRST["b"] + 1000
    return found
