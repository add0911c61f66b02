"""The trainer: one step is one step however it is cut, and a run that is killed ends as if it had not been."""

import contextlib
import json
import logging
import math
import random
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from penstock.errors import NotFinite, OutputRefused, RecipeMismatch, StoreCorrupt, UsageError
from penstock.loader import Loader
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.samplers import Epochs
from penstock.train.checkpoint import latest, load_checkpoint
from penstock.train.objective import Losses
from penstock.train.pieces import seed_step
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Trainer
from tests.mix.data import Pictures
from tests.train import job
from tests.train.ranks import run_ranks

TOLERANCE = 1e-6
"""Of float32 weights: sums in another order differ in their last bits."""


def run(folder: Path, ranks: int = 1, **options: Any) -> tuple[int, str, str]:
    """Trains with so many processes; see `run_ranks`."""
    return run_ranks(ranks, "tests.train.job", [str(folder), json.dumps(options)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = latest(folder)
    assert path is not None
    found: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return found


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.allclose(value, right[name], rtol=0, atol=TOLERANCE), (name, (value - right[name]).abs().max())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with the whole batch, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, errors = run(folder, ema_decay=0.9)
    assert code == 0, errors
    return folder


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 3), (2, 1), (2, 4), (4, 1)])
def test_ranks_and_accumulation_give_the_step_of_the_large_batch(
    ranks: int, accumulation: int, whole: Path, tmp_path: Path
) -> None:
    code, _, errors = run(tmp_path, ranks, accumulation=accumulation, ema_decay=0.9)
    assert code == 0, errors
    assert_close(weights(tmp_path), weights(whole))
    one, other = (load_checkpoint(latest(folder) or folder)["ema"] for folder in (tmp_path, whole))
    assert_close(one, other)


@pytest.mark.parametrize(("ranks", "then", "at"), [(2, 1, 7), (2, 2, 10), (2, 4, 5)])
def test_a_killed_run_continued_on_other_ranks_ends_with_the_weights_of_the_whole_run(
    ranks: int, then: int, at: int, whole: Path, tmp_path: Path
) -> None:
    code, _, _ = run(tmp_path, ranks, kill_at=at, ema_decay=0.9)
    assert code == -signal.SIGKILL
    assert load_checkpoint(latest(tmp_path) or tmp_path)["step"] == at // 3 * 3 if at % 3 else at - 3
    code, _, errors = run(tmp_path, then, ema_decay=0.9)
    assert code == 0, errors
    assert_close(weights(tmp_path), weights(whole))


def test_the_same_ranks_continue_bit_for_bit_with_dropout_too(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, dropout=0.5)[0] == 0
    for at in (4, 11):  # the second time in another epoch
        assert run(killed, dropout=0.5, kill_at=at)[0] == -signal.SIGKILL
    assert run(killed, dropout=0.5)[0] == 0
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(killed)[name])
    lines = [(folder / "log.jsonl").read_text().splitlines() for folder in (whole, killed)]
    steps = [[json.loads(line)["step"] for line in one] for one in lines]
    assert steps[0] == steps[1]


def test_sigterm_saves_and_exits(whole: Path, tmp_path: Path) -> None:
    code, _, errors = run(tmp_path, 2, signal_at=8, ema_decay=0.9)
    assert code == 128 + signal.SIGTERM, errors
    step = load_checkpoint(latest(tmp_path) or tmp_path)["step"]
    assert step in (8, 9)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, step], "what came since the last line is said"
    assert run(tmp_path, 1, ema_decay=0.9)[0] == 0
    assert_close(weights(tmp_path), weights(whole))


def trainer(folder: Path, poisoned: int = -1, **settings: Any) -> Trainer:
    loader = Loader(job.Numbers(poisoned), batch_size=16, sampler=Epochs(job.ROWS, seed=3), output="torch", threads=1)
    chosen = TrainSettings(**{"steps": 20, "learning_rate": 1e-2, **settings})
    return Trainer(job.model(), job.Fit(), loader, chosen, folder=folder)


def test_a_nan_names_its_samples_and_leaves_the_weights(tmp_path: Path) -> None:
    one = trainer(tmp_path, poisoned=5, ema_decay=0.5)
    with pytest.raises(NotFinite, match="row5"):
        one.run()
    assert all(torch.isfinite(value).all() for value in one.model.parameters())
    position = Epochs(job.ROWS, seed=3).rows(0, job.ROWS).tolist().index(5)
    assert one.step == position // 16


def test_a_nan_of_many_samples_says_how_many(tmp_path: Path) -> None:
    source = job.Numbers()
    source.x[:] = np.nan
    loader = Loader(source, batch_size=32, sampler=Epochs(job.ROWS, seed=3), output="torch", threads=1)
    with pytest.raises(NotFinite, match=r"(row\d+, ){19}row\d+ and 12 more"):
        Trainer(job.model(), job.Fit(), loader, TrainSettings(steps=1), folder=tmp_path).run()


def test_a_run_ends_its_loader_and_closes_its_writers_however_it_ends(
    tmp_path: Path, loader_threads: Callable[[], list[threading.Thread]]
) -> None:
    class Held:
        closed = 0

        def write(self, step: int, values: Mapping[str, float]) -> None:
            pass

        def close(self) -> None:
            self.closed += 1

    class Grey:
        weights: ClassVar[Mapping[str, float]] = {"grey": 1.0}

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
            return {"grey": float(len(batch["image1"]))}

        def __call__(self, model: torch.nn.Module, batch: Mapping[str, Any]) -> Losses:
            each = model(batch["image1"].float().mean(dim=(1, 2, 3))[:, None] / 255).square()[:, 0] * self.factor
            return Losses(sums={"grey": each.sum()}, per_sample=each.detach())

    mixed = Mixed([MixPart(name="pictures", source=Pictures("p", 24))], views=Views(size=8))
    for factor in (1.0, math.nan):
        writer = Held()
        loader = MixLoader(mixed, batch_size=4, output="torch", epochs=None)
        folder, settings = tmp_path / str(factor), TrainSettings(steps=2, log_every=1)
        one = Trainer(torch.nn.Linear(1, 1), Grey(factor), loader, settings, folder=folder, writers=[writer])
        with contextlib.nullcontext() if factor == 1 else pytest.raises(NotFinite):
            one.run()
        assert writer.closed == 1
        assert not loader_threads()


def test_a_run_goes_on_where_an_epoch_ended(tmp_path: Path) -> None:
    assert job.ROWS // 16 == 6
    trainer(tmp_path / "whole", steps=18).run()
    trainer(tmp_path / "cut", steps=18, save_every=6, keep_last=9).run()
    for step in (12, 18):
        (tmp_path / f"cut/step_{step:09d}.pt").unlink()
    one = trainer(tmp_path / "cut", steps=18)
    assert one.first_step == 6
    one.run()
    assert_close(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    trainer(tmp_path, steps=4, save_every=2).run()
    (tmp_path / "step_000000004.pt").write_bytes((tmp_path / "step_000000004.pt").read_bytes()[:3000])
    with pytest.raises(StoreCorrupt, match=r"step_000000004.pt: .*remove it: it goes on from the one before"):
        trainer(tmp_path, steps=4)
    (tmp_path / "step_000000004.pt").unlink()
    assert trainer(tmp_path, steps=4).first_step == 2


def test_a_best_that_is_nan_at_first_is_none(tmp_path: Path) -> None:
    one = trainer(tmp_path, steps=4, eval_every=1, best="worth")
    values = iter([math.nan, 1.0, math.nan, 0.5])
    one.evaluate = lambda model: {"worth": next(values)}
    one.run()
    assert one.best == 1.0
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused, match="not writable"):
        trainer(tmp_path / "file")


def test_another_configuration_is_refused_with_its_difference(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).run()
    with pytest.raises(RecipeMismatch, match=r"learning_rate: expected 0.5, got 0.01"):
        trainer(tmp_path, steps=2, learning_rate=0.5)
    trainer(tmp_path, steps=2, log_every=1)  # how often something is said changes nothing


def test_one_batch_can_be_learned_by_heart(tmp_path: Path) -> None:
    totals = trainer(tmp_path, steps=300, weight_decay=0.0).overfit()
    assert totals[-1] < 0.1 * totals[0]
    assert latest(tmp_path) is None


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    plan = one.dry_run()
    assert plan["parameters"] == 6 * 16 + 16 + 16 * 2 + 2
    assert plan["samples_per_rank"] == 16
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())
    assert latest(tmp_path) is None


def test_weights_in_bfloat16_are_refused_and_float32_moves_under_autocast(tmp_path: Path) -> None:
    loader = Loader(job.Numbers(), batch_size=16, output="torch", threads=1)
    with pytest.raises(UsageError, match="float32"):
        Trainer(job.model().bfloat16(), job.Fit(), loader, TrainSettings(steps=1), folder=tmp_path)
    one = trainer(tmp_path / "moves", steps=30, learning_rate=1e-5, precision="bf16", warmup_share=0.0)
    before = [value.detach().clone() for value in one.model.parameters()]
    one.run()
    assert all((value != old).float().mean() > 0.9 for value, old in zip(one.model.parameters(), before, strict=True))


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path) -> None:
    one = trainer(tmp_path, steps=12, eval_every=3, save_every=2, keep_last=2, best="-worth")
    values = iter([3.0, 1.0, 2.0, 5.0])
    one.evaluate = lambda model: {"worth": next(values)}
    one.run()
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 6
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_000000010.pt", "step_000000012.pt"]


def test_the_average_is_its_formula_and_is_evaluated(tmp_path: Path) -> None:
    one = trainer(tmp_path, steps=5, ema_decay=0.8, eval_every=5)
    expected = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    update = one._update

    def followed(batch: Any) -> int:
        number = update(batch)
        for name, value in one.model.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * value.detach()
        return number

    one._update = followed  # type: ignore[method-assign]
    seen: list[torch.Tensor] = []

    def look(model: Any) -> dict[str, float]:
        assert not model.training
        seen.append(next(model.parameters()).detach().clone())
        return {}

    one.evaluate = look
    one.run()
    assert one.ema is not None
    for name, value in one.ema.values.items():
        assert torch.allclose(value, expected[name], atol=1e-6)
    assert torch.equal(seen[0], one.ema.values["0.weight"])
    assert not torch.equal(seen[0], next(one.model.parameters()))


def test_lines_say_what_they_should(tmp_path: Path) -> None:
    trainer(tmp_path, steps=10, log_every=1).run()
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    named = {"step", "fit", "size", "loss", "has", "gradient_norm", "learning_rate", "samples_per_s", "data_wait", "copy",
             "step_p50_ms", "step_p99_ms", "worst"}  # fmt: skip
    assert named <= first.keys()
    assert np.isclose(first["loss"], first["fit"] + 0.01 * first["size"])


class Rare:
    """One sample of the epoch has the first loss; of the second the forward pass alone tells that one sample has it."""

    weights: ClassVar[Mapping[str, float]] = {"rare": 1.0, "told": 1.0}

    def __init__(self) -> None:
        self.first = torch.from_numpy(job.Numbers().x[0])

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"rare": float((batch["x"] == self.first).all(dim=1).sum()), "told": float(len(batch["x"]))}

    def __call__(self, model: torch.nn.Module, batch: Mapping[str, Any]) -> Losses:
        one = (batch["x"] == self.first).all(dim=1)
        each = 2.0 * one + 0.0 * model(batch["x"]).sum(dim=1)
        return Losses(sums={"rare": each.sum(), "told": each.sum()}, having={"told": float(one.sum())})


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_is_logged_over_the_samples_that_have_it_and_not_where_none_has(
    accumulation: int, tmp_path: Path
) -> None:
    one = trainer(tmp_path, steps=6, log_every=3, accumulation=accumulation)
    one.objective = one._whole._objective = Rare()  # type: ignore[assignment,union-attr]
    one.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    there = Epochs(job.ROWS, seed=3).rows(0, job.ROWS).tolist().index(0) // 48
    assert [line.get("rare") for line in lines] == [2.0 if number == there else None for number in (0, 1)]
    assert [line.get("told") for line in lines] == [2.0 if number == there else None for number in (0, 1)]
    assert lines[there]["loss"] == pytest.approx((2.0 + 2.0 / 16) / 3)
    assert lines[1 - there]["loss"] == 0


def test_a_dry_run_names_the_samples_of_a_nan(tmp_path: Path) -> None:
    first = int(Epochs(job.ROWS, seed=3).rows(0, 1)[0])
    with pytest.raises(NotFinite, match=f"row{first}"):
        trainer(tmp_path, poisoned=first).dry_run()


def test_an_average_that_is_still_the_first_weights_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "penstock"):
        trainer(tmp_path / "slow", steps=100, ema_decay=0.999)
    assert "after 100 steps the first weights still make up 90% of the average" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "penstock"):
        trainer(tmp_path / "quick", steps=100, ema_decay=0.9)
        trainer(tmp_path / "none", steps=1)
    assert not caplog.text


def test_a_step_seeds_the_generators_of_torch_numpy_and_python() -> None:
    def drawn(*values: int) -> tuple[float, float, float]:
        seed_step(*values)
        return float(torch.rand(())), float(np.random.random()), random.random()

    first, other = drawn(1, 2, 3), drawn(1, 3, 3)
    assert drawn(1, 2, 3) == first
    assert all(left != right for left, right in zip(first, other, strict=True))


def test_the_rate_rises_then_falls_as_a_cosine() -> None:
    settings = TrainSettings(steps=100, learning_rate=1.0, warmup_share=0.1)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[55] == pytest.approx(0.5, abs=1e-9)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1, "ema_decay": 1.0}, {"steps": 1, "precision": "fp16"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainSettings(**wrong)
