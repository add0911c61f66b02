"""From the configuration of a dual loop to a trained model."""

import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import xxhash

from penstock.errors import UsageError
from penstock.mix_loader import MixLoader
from penstock.mix_source import Mixed
from penstock.mix_tally import Budget, added
from penstock.mix_views import Views
from penstock.models.captioners import OpenedCycle, open_cycle, require_cycle
from penstock.report import dump_json
from penstock.store.output import replace_file
from penstock.train.checkpoint import latest
from penstock.train.distributed import Ranks, device_of
from penstock.train.dual_loop import DualLoop, DualLoopSettings, Mode
from penstock.train.dual_loop_config import DualLoopConfig, DualLoopLines
from penstock.train.dual_loop_data import DualLoopData, caption_cache, open_data, require_captions
from penstock.train.held_out import HeldOut
from penstock.train.run_folder import alone_in, begin_with, require_folder, writers_of
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Trainer
from penstock.train.worst import save_worst

Way = Literal["train", "dry-run", "overfit"]
OVERFIT_STEPS = 100
REPORT = "report.json"
_log = logging.getLogger("penstock")


def run_dual_loop(
    config: DualLoopConfig,
    *,
    ranks: Ranks | None = None,
    way: Way = "train",
    lines: DualLoopLines | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains, or looks whether training would work.

    Args:
        config: see there.
        ranks: from `joined()`; None: this process alone, on the device that the configuration says.
        way: "train"; "dry-run": one batch forward and backward; "overfit": every step on the first batch. The last two
            write nothing.
        lines, say: as of `open_data`.

    Returns:
        Plain values. All ways: config, captions (the mode), samples (of an epoch), held_out, dropped, global_batch, steps.
        train: step, first_step (where this process went on; 0: from the start), metrics (see `HeldOut.evaluate`), sources
        (what was drawn since first_step, see `MixLoader.report`), empty_captions (their share since then; None: no step was
        left), checkpoint; also written as report.json, unless one of all steps is there. dry-run: plan (see
        `Trainer.dry_run`). overfit: first_loss, last_loss.

    Raises:
        UsageError, MissingExtra, SourceNotFound: wrong settings, or data that are not there.
        OutputRefused, OutputFull: output_dir cannot be written.
        PartClaimed: another run trains into it.
        BadData, BudgetExceeded: too much of the data is bad, or too many captions are empty.
        NotFinite, RecipeMismatch, StateMismatch: as `Trainer`.
        SystemExit: as `Trainer.run`.
    """
    ranks = ranks or Ranks(device=device_of(config.device, 0))
    require_cycle(config.model)
    if way == "train":
        require_folder(config.output_dir)
    data = open_data(config, lines=lines, say=say)
    captions = None if config.caption_cache is None else caption_cache(config.caption_cache)
    if captions is not None:
        require_captions(captions, [*data.train, *data.held], config.max_empty)
    opened = open_cycle(config.model, words=data.words(captions), seed=config.seed)
    if captions is not None:
        opened = replace(opened, identity={**opened.identity, "caption_cache": _digest(captions)})
    objective = objective_of(config, data, opened, captions)
    if way == "train":
        with alone_in(config.output_dir, ranks):
            return _train(config, ranks, data, opened, objective)
    with tempfile.TemporaryDirectory() as folder:
        trainer, facts = _trainer(config, ranks, data, opened, objective, folder=Path(folder), way=way)
        if way == "dry-run":
            return {**facts, "plan": trainer.dry_run()}
        totals = trainer.overfit()
        return {**facts, "first_loss": totals[0], "last_loss": totals[-1]}


def objective_of(
    config: DualLoopConfig, data: DualLoopData, opened: OpenedCycle, captions: Mapping[str, str] | None = None
) -> DualLoop:
    """The losses: where captions come from follows from the mixture, if the configuration leaves it open.

    Args:
        config: see there.
        data: that are trained on.
        opened: the model.
        captions: made before, by key; with captions="cached".

    Raises:
        UsageError: "truth" without a sentence in the mixture, or "soft" with a model whose words no gradient passes.
    """
    mode: Mode = config.captions or ("truth" if data.has_sentences else opened.untaught)
    if mode == "truth" and not data.has_sentences:
        raise UsageError(
            "dual-loop: captions=truth: expected a dataset with sentences (refcoco_dir); take pseudo or soft"
        )
    if mode == "soft" and not hasattr(opened.model, "soft_captions"):
        raise UsageError(f"dual-loop: captions=soft: no gradient passes through the words of model {config.model!r}")
    if mode == "pseudo" and opened.untaught == "soft" and not data.has_sentences:
        _log.warning("penstock: captions=pseudo without sentences: nothing teaches the words of model %s", config.model)
    cache = None if captions is None else lambda key: captions.get(key, "")
    return DualLoop(DualLoopSettings(captions=mode, max_empty=config.max_empty), cache=cache)


def settings_of(config: DualLoopConfig, samples: int, world_size: int, opened: OpenedCycle, best: str) -> TrainSettings:
    """The settings of the loop.

    Args:
        config: see there.
        samples: of an epoch.
        world_size: ranks.
        opened: for its learning rate.
        best: metric that the best checkpoint is kept by; "": none.
    """
    batch = config.share_of_rank * world_size
    steps = min(math.ceil(config.num_epochs * samples / batch), config.max_steps or 1 << 62)
    return TrainSettings(
        steps=steps, accumulation=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate or opened.learning_rate, clip_norm=config.max_grad_norm,
        precision=config.precision, ema_decay=config.ema_decay, seed=config.seed, log_every=config.log_interval,
        eval_every=math.ceil(samples / batch), save_every=config.save_interval, best=best,
    )  # fmt: skip


def _train(
    config: DualLoopConfig, ranks: Ranks, data: DualLoopData, opened: OpenedCycle, objective: DualLoop
) -> dict[str, Any]:
    trainer, facts = _trainer(config, ranks, data, opened, objective, folder=config.output_dir, way="train")
    metrics = {name: None if math.isnan(value) else value for name, value in trainer.run().items()}
    loader = cast(MixLoader, trainer.loader)
    reports = cast("list[Mapping[str, Mapping[str, Any]]]", ranks.gathered(loader.report()))
    found = {
        **facts, "first_step": trainer.first_step, "step": trainer.step, "metrics": metrics, "sources": added(reports),
        "empty_captions": _empty_captions(config, ranks, objective), "checkpoint": str(latest(config.output_dir)),
    }  # fmt: skip
    report = config.output_dir / REPORT
    if ranks.is_first and (trainer.step > trainer.first_step or not report.exists()):
        replace_file(report, f"{dump_json(found)}\n".encode())  # else that of the run that got there stays
    return found


def _digest(captions: Mapping[str, str]) -> str:
    text = json.dumps(captions, sort_keys=True)
    return f"{len(captions)} captions {xxhash.xxh3_64_hexdigest(text.encode())}"


def _empty_captions(config: DualLoopConfig, ranks: Ranks, objective: DualLoop) -> float | None:
    """Share of empty captions over all ranks, since this process began; said where it is more than may be."""
    total = ranks.sums({"heard": objective.heard, "empty": objective.empty})
    if not total["heard"]:
        return None
    share = total["empty"] / total["heard"]
    if share > config.max_empty and ranks.is_first:
        _log.warning(
            "penstock: %.0f%% of the captions were empty, more than max_empty=%.0f%%, which stops a training over %d of them",
            100 * share, 100 * config.max_empty, objective.settings.window,
        )  # fmt: skip
    return share


def _trainer(
    config: DualLoopConfig,
    ranks: Ranks,
    data: DualLoopData,
    opened: OpenedCycle,
    objective: DualLoop,
    *,
    folder: Path,
    way: Way,
) -> tuple[Trainer, dict[str, Any]]:
    views = Views(size=config.size)
    mixed = Mixed(data.train, seed=config.seed, views=views)
    held = HeldOut(data.held, views, samples=config.eval_samples, batch_size=config.batch_size, seed=config.seed)
    has_pairs = any(mixed.pairing(part.name) != "none" for part in data.train)
    if ranks.is_first and held.samples and has_pairs and not held.has_pairs:
        _log.warning(
            "penstock: no pair is held out: what is evaluated is one frame alone; raise eval_share, or take more"
        )
    is_long = way == "train"
    loader = MixLoader(
        mixed, batch_size=config.share_of_rank * ranks.world_size, rank=ranks.rank, world_size=ranks.world_size,
        threads=config.num_workers, output="torch", epochs=None,
        budget=Budget(max_fraction=config.max_bad, max_total=None if config.max_bad else 0),
        quarantine=folder / "quarantine" if is_long else None,
    )  # fmt: skip
    settings = settings_of(config, len(mixed), ranks.world_size, opened, held.headline if is_long else "")
    if way == "overfit":
        settings = replace(settings, steps=config.max_steps or OVERFIT_STEPS)
    if config.pretrained_pth is not None and latest(folder) is None:
        means = {name: opened.identity[name] for name in ("model", "words") if name in opened.identity}
        begin_with(opened.model, config.pretrained_pth, means=means)
    writers = writers_of(folder, ranks, tensorboard=config.tensorboard, wandb=config.wandb) if is_long else []
    trainer = Trainer(
        opened.model, objective, loader, settings, folder=folder, ranks=ranks,
        identity={**opened.identity, "captions": objective.settings.captions, "global_batch": loader.batch_size},
        evaluate=(lambda model: held.evaluate(model, ranks, cache=objective.cache)) if held.samples else None,
        on_worst=save_worst if is_long else None, writers=writers,
    )  # fmt: skip
    facts = {
        "config": config.plain(), "captions": objective.settings.captions, "samples": len(mixed),
        "held_out": held.samples, "dropped": list(data.dropped), "global_batch": loader.batch_size, "steps": settings.steps,
    }  # fmt: skip
    return trainer, facts
