"""One rank of a small training, for the tests: python -m tests.train.job FOLDER [name=value ...]; says its weights' digest."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from penstock.errors import PenstockError
from penstock.loader import Loader
from penstock.samplers import Epochs
from penstock.schema import Field, Record, Schema
from penstock.source import Lookup
from penstock.train.checkpoint import digest_of
from penstock.train.distributed import joined
from penstock.train.objective import Losses
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Trainer

ROWS = 96


class Numbers:
    """Rows x (6,) and y (2,) of a fixed linear rule; y is only there in some rows."""

    schema = Schema(
        [
            Field(name="x", dtype="float32", shape=(6,)),
            Field(name="y", dtype="float32", shape=(2,)),
            Field(name="has", dtype="bool"),
        ]
    )
    keys = Lookup(ROWS, lambda row: f"row{row}")

    def __init__(self, poisoned: int = -1) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((ROWS, 6), np.float32)
        self.y = (self.x @ rng.standard_normal((6, 2)) + 0.1).astype(np.float32)
        if poisoned >= 0:
            self.x[poisoned] = np.nan

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Record:
        return {"x": self.x[index], "y": self.y[index], "has": np.asarray(index % 3 > 0)}


class Fit:
    """Two losses: of the numbers, for the rows that have them, and of the size of the output, for all."""

    weights: ClassVar[Mapping[str, float]] = {"fit": 1.0, "size": 0.01}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Rows with each loss."""
        return {"fit": float(np.asarray(batch["has"]).sum()), "size": float(len(batch["x"]))}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Losses:
        found = model(batch["x"])
        each = ((found - batch["y"]) ** 2).mean(dim=1) * batch["has"]
        size = found.square().mean(dim=1)
        return Losses(
            sums={"fit": each.sum(), "size": size.sum()},
            per_sample=each.detach(),
            metrics={"has": float(batch["has"].sum())},
        )


def model(dropout: float = 0.0) -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2))


def watch(trainer: Trainer, kill_at: int, signal_at: int) -> None:
    """This process dies, or gets SIGTERM, right after that step."""
    update = trainer._update

    def watched(batch: Mapping[str, Any]) -> int:
        number = update(batch)
        if trainer.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.step == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return number

    trainer._update = watched  # type: ignore[method-assign]


def main(folder: Path, options: dict[str, Any]) -> None:
    """Trains; the first rank prints one line of JSON."""
    kill_at, signal_at = options.pop("kill_at", -1), options.pop("signal_at", -1)
    batch_size, poisoned = options.pop("batch_size", 16), options.pop("poisoned", -1)
    dropout, identity = options.pop("dropout", 0.0), options.pop("identity", {})
    settings = TrainSettings(**{"steps": 20, "learning_rate": 1e-2, "save_every": 3, "log_every": 5, **options})
    with joined("cpu") as ranks:
        loader = Loader(
            Numbers(poisoned), batch_size=batch_size, sampler=Epochs(ROWS, seed=3), rank=ranks.rank,
            world_size=ranks.world_size, output="torch", threads=1,
        )  # fmt: skip
        net = model(dropout)
        trainer = Trainer(
            net, Fit(), loader, settings, folder=folder, ranks=ranks, identity=identity,
            evaluate=lambda one: {"weight": float(sum(value.abs().sum() for value in one.parameters()))},
        )  # fmt: skip
        watch(trainer, kill_at, signal_at)
        metrics = trainer.run()
        if ranks.is_first:
            average = digest_of(trainer.ema.values) if trainer.ema else ""
            print(
                json.dumps(
                    {"digest": digest_of(net.state_dict()), "ema": average, "metrics": metrics, "step": trainer.step}
                )
            )
        del trainer, net


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except PenstockError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
