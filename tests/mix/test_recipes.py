"""docs/recipes.md: the same samples in the same order through other people's loaders and trainers, stopped and resumed."""

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, get_worker_info

from penstock.errors import BadData, BudgetExceeded, StateMismatch, UsageError
from penstock.mix_loader import MixLoader, read_quarantine
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_tally import Budget
from penstock.mix_torch import MixBatches, collate
from penstock.mix_views import Views
from penstock.schema import Record
from tests.mix.data import Pictures, batch_bytes, samples_of

BATCH = 6
BAD = (3, 4, 5, 17)
BAD_KEYS = {f"words/{row}" for row in BAD}


@cache
def mixture() -> Mixed:
    """Two sources, one with pairs, some rows bad: 50 samples an epoch."""
    bad = {row: BadData("planted") for row in BAD}
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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [2, 6, 9])  # with 2 workers all batches are drawn once the sixth is used
def test_batches_taken_move_the_loader_however_far_ahead_they_are_drawn(workers: int, taken: int) -> None:
    of = loader()
    one = feed(of, workers)
    for number, batch in enumerate(one, 1):
        of.take(batch)
        assert of.state_dict() == MixBatches(of).state_after(batch)
        assert of.next_position == number * BATCH
        if number == taken:
            break
    assert bytes_of(one) == expected(range(taken, 9) if taken < 9 else range(9, 17))


def take_all(of: MixLoader, workers: int, given: list[bytes]) -> None:
    """One `for` over a DataLoader; the samples taken are added to the list."""
    for batch in feed(of, workers):
        of.take(batch)
        given += batch_bytes(batch, list(of.mixed.schema))


def taken_of(rank: int, workers: int | None, folder: Path, **options: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Report and samples of one epoch of a rank; by the loader itself (None), or by workers and `take`."""
    of = loader(rank=rank, world_size=2, quarantine=folder, epochs=2, **options)
    if workers is None:
        given = bytes_of(of)
    else:
        given = []
        take_all(of, workers, given)
    timed = ("ms_p50", "ms_p99", "bytes_per_s")  # of the process that reads
    return {part: {n: v for n, v in one.items() if n not in timed} for part, one in of.report().items()}, given


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_that_workers_meet_are_listed_and_not_read_again(workers: int, tmp_path: Path) -> None:
    ours = [taken_of(rank, None, tmp_path / "ours") for rank in range(2)]
    theirs = [taken_of(rank, workers, tmp_path / "theirs") for rank in range(2)]
    assert theirs == ours
    for rank in range(2):
        lines = [(tmp_path / folder / f"rank{rank}.jsonl").read_text() for folder in ("ours", "theirs")]
        assert lines[0] == lines[1]
        assert lines[0]
    assert set(read_quarantine(tmp_path / "theirs")["words"]) == BAD_KEYS
    before = (tmp_path / "theirs" / "rank0.jsonl").read_text()
    again, samples = taken_of(0, workers, tmp_path / "theirs")
    assert samples == theirs[0][1]
    assert set(again["words"]["failed"]) == {"known bad"}
    assert (tmp_path / "theirs" / "rank0.jsonl").read_text() == before


class Killing(Pictures):
    """Ends the process of a worker that reads row 20."""

    def __getitem__(self, index: int) -> Record:
        if index == 20 and get_worker_info() is not None:
            os._exit(9)
        return super().__getitem__(index)


def test_a_worker_that_dies_costs_no_batch() -> None:
    source = Mixed([MixPart(name="a", source=Killing("a", 60))], views=Views(size=2))
    of, given = MixLoader(source, batch_size=BATCH), list[bytes]()
    with pytest.raises(RuntimeError, match="worker"):
        take_all(of, 2, given)
    assert of.next_position == len(given)
    resumed = MixLoader(source, batch_size=BATCH)
    resumed.load_state_dict(json.loads(json.dumps(of.state_dict())))
    rest = [sample for batch in resumed for sample in batch_bytes(batch, list(source.schema))]
    assert given + rest == samples_of(source, 0, 60)
    assert len(given) < 60


def test_a_budget_holds_what_workers_meet(tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded, match="words: 2 samples needed a substitute"):
        taken_of(0, 2, tmp_path, budget=Budget(max_total=1))


def test_batches_without_end_have_no_length() -> None:
    sampler = MixBatches(loader(epochs=None))
    assert [positions for _, positions in zip(range(12), sampler, strict=False)][-1] == list(range(66, 72))
    with pytest.raises(TypeError, match="no length"):
        len(sampler)


def test_batches_that_somebody_cut_anew_are_noticed() -> None:
    other = loader(rank=1, world_size=2)
    with pytest.raises(UsageError, match=r"rank 0 of 1 at step 0.*cut the batches"):
        MixBatches(loader()).state_after(next(iter(feed(other, 0))))
    of = loader()
    with pytest.raises(UsageError, match=r"rank 0 of 1 at step 0.*cut the batches"):
        of.take(next(iter(feed(other, 0))))
    assert of.report()["words"]["drawn"] == of.report()["pairs"]["drawn"] == 0


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
        ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        of = loader(**ranks, quarantine=tmp_path / "bad")
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
    assert set(read_quarantine(tmp_path / "bad")["words"]) == BAD_KEYS


@pytest.fixture
def importable_torchvision() -> None:
    """Lightning and the Trainer import torchvision, which may be built for another torch than the one here."""
    from penstock.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()


@pytest.mark.filterwarnings("ignore")  # of Lightning: hints about workers and loggers
@pytest.mark.usefixtures("importable_torchvision")
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
    trainer(max_epochs=2).fit(module, loader(quarantine=tmp_path / "bad"), ckpt_path=tmp_path / "step=4.ckpt")
    assert module.model.seen == steps(range(4, 17))
    assert set(read_quarantine(tmp_path / "bad")["words"]) == BAD_KEYS


@pytest.mark.filterwarnings("ignore")  # of the Trainer: pinned memory without a device
@pytest.mark.usefixtures("importable_torchvision")
def test_hf_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")

    class MixTrainer(transformers.Trainer):  # type: ignore[misc,name-defined]
        """Takes its batches as they are."""

        def get_train_dataloader(self) -> Any:
            """This rank's share; not prepared, so nobody cuts it again."""
            self.mix = loader(
                rank=self.args.process_index, world_size=self.args.world_size, epochs=None, quarantine=tmp_path / "bad"
            )
            return feed(self.mix, 2)

        def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            """As usual, and the batch is taken."""
            self.mix.take(inputs)
            loss: torch.Tensor = super().training_step(model, inputs, *rest)
            return loss

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
    resumed = trainer(model, 12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert model.seen == steps(range(4, 12))
    assert resumed.mix.next_position == 12 * BATCH
    assert sum(one["drawn"] for one in resumed.mix.report().values()) == 8 * BATCH
    assert set(read_quarantine(tmp_path / "bad")["words"]) == BAD_KEYS
