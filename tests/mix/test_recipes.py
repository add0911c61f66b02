"""docs/recipes.md: the same samples in the same order through other people's loaders and trainers, stopped and resumed."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from penstock.errors import BadData, StateMismatch, UsageError
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_torch import MixBatches, collate
from penstock.mix_views import Views
from tests.mix.data import Pictures, batch_bytes, samples_of

BATCH = 6


@cache
def mixture() -> Mixed:
    """Two sources, one with pairs, some rows bad: 50 samples an epoch."""
    bad = {row: BadData("planted") for row in (3, 4, 5, 17)}
    parts = [
        MixPart(name="pairs", source=Pictures("pairs", 40, stored_pairs=True)),
        MixPart(name="words", source=Pictures("words", 30, bad=bad)),
    ]
    return Mixed(parts, views=Views(size=2, grid=1), seed=3)


@cache
def truth() -> list[bytes]:
    """The samples at the first positions, each made alone."""
    return samples_of(mixture(), 0, 120)


def loader(**options: Any) -> MixLoader:
    """Of the mixture; tensors."""
    return MixLoader(mixture(), batch_size=BATCH, **{"output": "torch", "budget": None, **options})


def feed(of: MixLoader, workers: int, kind: Any = DataLoader) -> Any:
    """A DataLoader over the loader's samples and positions."""
    return kind(of.mixed, batch_sampler=MixBatches(of), collate_fn=collate, num_workers=workers)


def bytes_of(batches: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """The samples of some batches, in order."""
    return [sample for batch in batches for sample in batch_bytes(batch, list(mixture().schema))]


def expected(steps: Iterable[int], rank: int = 0, world: int = 1) -> list[bytes]:
    """The samples of a rank at these steps."""
    share = BATCH // world
    starts = [step * BATCH + rank * share for step in steps]
    return [truth()[position] for start in starts for position in range(start, start + share)]


def test_a_batch_of_collate_is_a_batch_of_the_loader() -> None:
    theirs, ours = next(iter(feed(loader(), 0))), next(iter(loader()))
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        if isinstance(value, list):
            assert theirs[name] == value
        else:
            assert theirs[name].dtype == value.dtype
            assert torch.equal(theirs[name].long(), torch.as_tensor(value).long())
    assert theirs["image2"].shape == (BATCH, 2, 2, 3)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_dataloader(workers: int) -> None:
    of = loader()
    one = feed(of, workers)
    assert len(one) == 9
    assert bytes_of(one) == expected(range(9))
    assert (len(one), bytes_of(one)) == (8, expected(range(9, 17)))  # the second epoch; it holds positions 54..101


def test_dataloader_resumes_on_other_ranks_and_workers() -> None:
    batches = iter(feed(loader(), 2))
    next(batches)
    sampler = MixBatches(loader())
    state = json.dumps(sampler.state_after(next(batches)))
    assert len(state) < 1024
    for rank in range(3):
        of = loader(rank=rank, world_size=3)
        of.load_state_dict(json.loads(state))
        assert bytes_of(feed(of, rank)) == expected(range(2, 9), rank, 3)
    native = loader(threads=3)
    native.load_state_dict(json.loads(state))
    assert bytes_of(native) == expected(range(2, 9))
    taken = next(iter(native))
    assert MixBatches(loader()).state_after(taken) == native.state_dict()


def test_an_epoch_that_was_broken_off_begins_again() -> None:
    one = feed(loader(), 2)
    next(iter(one))
    assert bytes_of(one) == expected(range(9))


def test_batches_without_end_have_no_length() -> None:
    sampler = MixBatches(loader(epochs=None))
    assert [positions for _, positions in zip(range(12), sampler, strict=False)][-1] == list(range(66, 72))
    with pytest.raises(TypeError, match="no length"):
        len(sampler)


def test_batches_that_somebody_cut_anew_are_noticed() -> None:
    other = loader(rank=1, world_size=2)
    with pytest.raises(UsageError, match=r"rank 0 of 1 at step 0.*cut the batches"):
        MixBatches(loader()).state_after(next(iter(feed(other, 0))))


def test_a_state_of_another_mixture_is_refused() -> None:
    state = {**MixBatches(loader()).state_dict(), "seed": 4}
    with pytest.raises(StateMismatch, match="seed: expected 3, got 4"):
        MixBatches(loader()).load_state_dict(state)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 4, 9])
def test_stateful_dataloader(workers: int, taken: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    first = feed(loader(), workers, stateful)
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    state = first.state_dict()
    again = feed(loader(), workers, stateful)
    again.load_state_dict(state)
    assert bytes_of(again) == expected(range(taken, 9) if taken < 9 else range(9, 17))  # at the end the next epoch


class Positions(nn.Module):
    """A model of one weight that notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def forward(self, position: torch.Tensor, image2: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        """A loss."""
        self.seen.append(position.tolist())
        return {"loss": self.weight * image2.float().mean()}


def steps(numbers: Iterable[int]) -> list[list[int]]:
    """The positions of steps, of one rank."""
    return [list(range(step * BATCH, (step + 1) * BATCH)) for step in numbers]


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def begin() -> tuple[Any, Any, MixLoader, Positions]:
        accelerator = accelerate.Accelerator(cpu=True)
        of = loader(rank=accelerator.process_index, world_size=accelerator.num_processes)
        accelerator.register_for_checkpointing(of)
        model = Positions()
        prepared, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        return accelerator, prepared, of, model

    accelerator, prepared, of, model = begin()
    for number, batch in enumerate(of):
        accelerator.backward(prepared(**batch)["loss"])
        if number == 3:
            accelerator.save_state(str(tmp_path))
            break
    assert model.seen == steps(range(4))
    accelerator, prepared, of, model = begin()
    accelerator.load_state(str(tmp_path))
    for batch in of:
        prepared(**batch)
    assert model.seen == steps(range(4, 9))


@pytest.mark.filterwarnings("ignore")  # of Lightning: hints about workers and loggers
def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        """The model above."""

        def __init__(self) -> None:
            super().__init__()
            self.model = Positions()

        def training_step(self, batch: Mapping[str, Any], _: int) -> torch.Tensor:
            """A loss."""
            loss: torch.Tensor = self.model(**batch)["loss"]
            return loss

        def transfer_batch_to_device(self, batch: Mapping[str, Any], device: torch.device, _: int) -> dict[str, Any]:
            """As a plain dict, of which Lightning knows how to copy it."""
            return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """Any."""
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trainer(**options: Any) -> Any:
        saved = lightning.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        return lightning.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[saved], **options,
        )  # fmt: skip

    module = Module()
    trainer(max_steps=6).fit(module, loader())
    assert module.model.seen == steps(range(6))
    module = Module()
    trainer(max_epochs=2).fit(module, loader(), ckpt_path=tmp_path / "step=4.ckpt")
    assert module.model.seen == steps(range(4, 17))


@pytest.mark.filterwarnings("ignore")  # of the Trainer: pinned memory without a device
def test_hf_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")

    class MixTrainer(transformers.Trainer):  # type: ignore[misc,name-defined]
        """Takes its batches as they are."""

        def get_train_dataloader(self) -> Any:
            """This rank's share; not prepared, so nobody cuts it again."""
            of = loader(rank=self.args.process_index, world_size=self.args.world_size, epochs=None)
            return feed(of, 2)

    def trainer(model: nn.Module, max_steps: int) -> Any:
        settings = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=max_steps, save_steps=4, logging_steps=100, report_to=[], use_cpu=True,
            remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False, save_strategy="steps",
        )  # fmt: skip
        return MixTrainer(model=model, args=settings)

    model = Positions()
    trainer(model, 4).train()
    assert model.seen == steps(range(4))
    model = Positions()
    trainer(model, 12).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert model.seen == steps(range(4, 12))
