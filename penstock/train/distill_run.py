"""From the configuration of a distillation to a trained, evaluated and exported student."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import orjson
import torch
from torch import nn

from penstock.errors import BadData, OutputRefused, SourceNotFound, UsageError
from penstock.models.decoders import trainable_copy
from penstock.models.student_export import export_student, require_onnx
from penstock.models.students import OpenedStudent, open_student
from penstock.report import dump_json
from penstock.store.manifest import NAME
from penstock.store.output import replace_file
from penstock.store.rows import KEYS
from penstock.store.v1 import CONFIG
from penstock.train.batch_norm import over_ranks
from penstock.train.checkpoint import BEST, latest, load_checkpoint
from penstock.train.distill import Distill, DistillModel
from penstock.train.distill_config import DistillConfig
from penstock.train.distill_data import DistillBatches, DistillData, open_distill_data
from penstock.train.distill_eval import HeldOutPictures, decoder_of
from penstock.train.distill_losses import GlobalContext, feature_cosine
from penstock.train.distill_metrics import MeanFeature
from penstock.train.distill_pictures import HELD_FOLDER, save_worst_pictures
from penstock.train.distributed import Ranks, device_of
from penstock.train.logs import TensorBoard
from penstock.train.pieces import Batch, on_device
from penstock.train.run_folder import alone_in, begin_with, require_folder, writers_of
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Trainer

Way = Literal["train", "dry-run", "overfit"]
OVERFIT_STEPS = 100
REPORT, BASELINES, EXPORT = "report.json", "baselines.json", "export"
_HOW = ("loss_type", "feat_weight", "feat_mask", "fgd_alpha_fg", "fgd_beta_bg", "fgd_alpha_edge", "fgd_gamma_mask",
        "fgd_lambda_rela", "fgd_temperature", "fsd_weight_fg", "fsd_weight_bg", "fsd_temperature", "enable_edge_boost",
        "edge_weight", "edge_task_start_epoch", "use_pos_weight", "enable_edge_mask_progressive", "edge_mask_start_epoch",
        "edge_mask_kernel_size", "enable_mask_loss", "mask_weight", "mask_bce_weight", "mask_dice_weight",
        "mask_task_start_epoch", "mask_head_unfreeze_epoch")  # fmt: skip
"""Fields of the configuration that must be the same for a run to be continued, besides data, student and settings."""


def run_distill(
    config: DistillConfig,
    *,
    ranks: Ranks | None = None,
    way: Way = "train",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains, or looks whether training would work.

    Args:
        config: see there.
        ranks: from `joined()`; None: this process alone, on the device that the configuration says.
        way: "train"; "dry-run": one batch forward and backward; "overfit": every step on the first batch. The last two
            write nothing.
        say: given lines on what was opened.

    Returns:
        Plain values. All ways: config, student, teacher, samples (of an epoch), held_out, global_batch, steps. train: step,
        first_step (where this process went on; 0: from the start), metrics and baselines (see `evaluate_features`), data
        (see `DistillBatches.report`), export (see `export_student`; checkpoint, step and metrics of the student that is
        exported), checkpoint; also written as report.json. dry-run: plan (see `Trainer.dry_run`). overfit: first_loss,
        last_loss.

    Raises:
        UsageError, SchemaError, SourceNotFound, MissingExtra: wrong settings, or data, weights or packages that are not
            there or do not fit; of the best student, that there is none.
        OutputRefused, OutputFull: output_dir cannot be written.
        PartClaimed: another run trains into it.
        BadData: baselines.json of the run that goes on is damaged.
        BudgetExceeded: too many rows are bad.
        NotFinite, RecipeMismatch, StateMismatch: as `Trainer`.
        SystemExit: as `Trainer.run`.
    """
    ranks = ranks or Ranks(device=device_of(config.device, 0))
    if way == "train":
        require_folder(config.output_dir)
        _refuse_store(config.output_dir)
        if "onnx" in config.export:
            require_onnx()
    parts = _Parts(config, ranks, say)
    if way == "train":
        with alone_in(config.output_dir, ranks):
            return _train(parts)
    with tempfile.TemporaryDirectory() as folder:
        trainer, facts = parts.trainer(Path(folder), way)
        if way == "dry-run":
            return {**facts, "plan": trainer.dry_run()}
        totals = trainer.overfit()
        return {**facts, "first_loss": totals[0], "last_loss": totals[-1]}


def _refuse_store(output: Path) -> None:
    """Checkpoints among the rows that they were trained on would be in the way of both."""
    if any(all((output / name).exists() for name in names) for names in ((NAME,), (CONFIG, KEYS))):
        raise OutputRefused(f"output-dir {output}: expected a folder for a training, got a store or a v1 directory")


class _Parts:
    """Data, student and decoder of a configuration, opened and checked against each other."""

    def __init__(self, config: DistillConfig, ranks: Ranks, say: Callable[[str], None] | None) -> None:
        self.config, self.ranks = config, ranks
        self.data = data = open_distill_data(config)
        if say is not None:
            say(f"data: {data.teacher['path']} ({data.teacher['chosen_by']}): {_described(data)}")
        self.batches = DistillBatches(data, config, rank=ranks.rank, world_size=ranks.world_size)
        self.decoder = decoder_of(config, data, ranks.device)
        self.held = None if data.held is None else HeldOutPictures(data, config, self.decoder)
        self.opened = open_student(
            config.backbone,
            levels={data.level.name: data.level},
            edge_head=config.edge_weight > 0,
            weights=config.backbone_weights,
            image_size=data.image_size,
            seed=config.seed,
        )
        self.model = self._model(self.opened)
        if say is not None:
            say(f"student: {self.opened.identity['student']}, {_size(self.opened.model)}; level {data.level.name}")

    def _model(self, opened: OpenedStudent) -> DistillModel:
        config, level = self.config, self.data.level
        context = trained = None
        if config.loss_type == "fgd" and config.fgd_lambda_rela > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                context = GlobalContext(level.channels)
        if config.enable_mask_loss and config.mask_head_unfreeze_epoch is not None:
            assert self.decoder is not None  # `enable_mask_loss` has one
            trained = trainable_copy(self.decoder)
        model = DistillModel(opened.model, context=context, decoder=trained)
        if config.compile:
            opened.model.compile()
        return cast(DistillModel, over_ranks(model, self.ranks))

    def trainer(self, folder: Path, way: Way) -> tuple[Trainer, dict[str, Any]]:
        """The trainer of a run in this folder, and what is said of it."""
        config, ranks, data = self.config, self.ranks, self.data
        is_long, epoch = way == "train", len(self.batches)
        settings = _settings(config, epoch, "" if self.held is None or not is_long else self.held.headline)
        if way == "overfit":
            settings = replace(settings, steps=config.max_steps or OVERFIT_STEPS)
        if config.pretrained_pth is not None and latest(folder) is None:
            begin_with(self.model, config.pretrained_pth)
        writers = writers_of(folder, ranks, tensorboard=config.tensorboard, wandb=config.wandb) if is_long else []

        def worst(batch: Batch, order: Sequence[int], into: Path) -> None:
            sheets = save_worst_pictures(
                self.model, batch, order, into, level=data.level.name, decoder=self.decoder, step=trainer.step
            )
            for writer in writers:
                if isinstance(writer, TensorBoard):
                    for number, sheet in enumerate(sheets):
                        writer.picture(trainer.step, f"worst/{number}", sheet)

        trainer = Trainer(
            self.model,
            Distill(config, steps_per_epoch=epoch, decoder=self.decoder),
            self.batches,
            settings,
            folder=folder,
            ranks=ranks,
            identity=self.identity(),
            evaluate=self.evaluate if self.held is not None else None,
            on_worst=worst if is_long else None,
            writers=writers,
        )
        facts = {
            "config": config.plain(),
            "student": dict(self.opened.identity),
            "teacher": dict(data.teacher),
            "samples": len(data.train),
            "held_out": 0 if self.held is None else self.held.samples,
            "global_batch": config.share_of_rank * ranks.world_size,
            "steps": settings.steps,
        }
        return trainer, facts

    def identity(self) -> dict[str, object]:
        """What must be the same for a run to be continued."""
        teacher = {name: self.data.teacher.get(name) for name in ("model_type", "teacher", "feature_dtype")}
        decoder = dict(self.decoder.identity()) if self.decoder is not None and self.config.enable_mask_loss else None
        how = {name: getattr(self.config, name) for name in _HOW}
        return {"student": dict(self.opened.identity), "teacher": teacher, "decoder": decoder, **how}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores of a student on the held-out pictures, over all ranks."""
        assert self.held is not None
        return self.held.evaluate(model, self.ranks)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores of the student as it is, untrained, and of the mean of the teacher's features over training pictures."""
        assert self.held is not None
        level, device = self.data.level.name, self.ranks.device
        mean = MeanFeature()
        for batch in HeldOutPictures(replace(self.data, held=self.data.train), self.config).batches(self.ranks, []):
            mean.take(batch[level])
        total = mean.over(self.ranks)
        was_training = self.model.training
        untrained = self.evaluate(self.model.to(device).eval())
        self.model.train(was_training)
        return {
            "untrained": untrained,
            "mean_feature": self.held.score(
                lambda batch: {level: total.predict(len(batch["image"])).to(device)}, self.ranks
            ),
        }

    def held_pictures(self, folder: Path, step: int) -> None:
        """Pictures of the samples of the first held-out batch whose features are least like the teacher's."""
        assert self.held is not None
        batch = next(self.held.batches(Ranks(device=self.ranks.device), []), None)
        if batch is None:
            return
        moved, level = on_device(batch, self.ranks.device), self.data.level.name
        loss = feature_cosine(self.model(moved["image"])[level], moved[level])
        order = loss.argsort(descending=True).tolist()
        save_worst_pictures(
            self.model, batch, order, folder, level=level, decoder=self.decoder, name=HELD_FOLDER, step=step
        )


def _train(parts: _Parts) -> dict[str, Any]:
    config, ranks = parts.config, parts.ranks
    trainer, facts = parts.trainer(config.output_dir, "train")
    baselines = _baselines(parts, trainer)
    metrics = _plain(trainer.run())
    reports = ranks.gathered(parts.batches.report())
    found = {
        **facts, "first_step": trainer.first_step, "step": trainer.step, "metrics": metrics, "baselines": baselines,
        "data": reports, "checkpoint": str(latest(config.output_dir)), "export": {"files": {}},
    }  # fmt: skip
    if ranks.is_first:
        report = config.output_dir / REPORT
        if trainer.step == trainer.first_step and report.exists():  # nothing was drawn: what was stays
            found["data"] = orjson.loads(report.read_bytes())["data"]
        found["export"] = _finish(parts, trainer)
        replace_file(report, f"{dump_json(found)}\n".encode())
    ranks.wait()
    return found


def _finish(parts: _Parts, trainer: Trainer) -> dict[str, Any]:
    """Pictures and files of the best student, or the last, as it was evaluated: with the average, where there is one."""
    config, model = parts.config, parts.model
    path, content = _chosen(config, trainer)
    model.load_state_dict({**content["model"], **content["ema"]})
    model.eval()
    report: dict[str, Any] = {"files": {}}
    with torch.no_grad():
        if parts.held is not None:
            parts.held_pictures(config.output_dir, content["step"])
        if config.export:
            report = export_student(
                parts.opened.model, config.output_dir / EXPORT, image_size=parts.data.image_size, formats=config.export
            )
    return {"checkpoint": str(path), "step": content["step"], "metrics": _plain(content["metrics"]), **report}


def _chosen(config: DistillConfig, trainer: Trainer) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of the student that is exported, and what is in it.

    Raises:
        UsageError: the best is asked for, and no evaluation told one.
        SourceNotFound: there was a best one, and it has been removed.
    """
    last, best = latest(config.output_dir), config.output_dir / BEST
    assert last is not None  # the trainer's last step
    remedy = "run this again with export_from last"
    if config.export_from == "best" and trainer.best is None:
        raise UsageError(
            f"distill: export_from: expected last, got 'best': {trainer.settings.best} was never a number; {remedy}"
        )
    if config.export_from != "last" and trainer.best is not None:
        if not best.exists():
            raise SourceNotFound(f"{best}: expected the checkpoint of the best evaluation, got no file; {remedy}")
        content = load_checkpoint(best, identity=trainer.identity)
        if config.export_from == "best" or _same_losses(
            cast(Distill, trainer.objective), content["step"], trainer.step
        ):
            return best, content
    return last, load_checkpoint(last, identity=trainer.identity)


def _same_losses(objective: Distill, *steps: int) -> bool:
    """Whether after so many steps the same losses had begun: a best student may be one whose edge head has learned nothing."""
    weights = []
    for step in steps:
        objective.begin(step - 1)
        weights.append(objective.weights)
    return weights[0] == weights[-1]


def _baselines(parts: _Parts, trainer: Trainer) -> dict[str, dict[str, float | None]]:
    """Scored before the first step and kept beside the checkpoints; those of a run that goes on are its own."""
    path = parts.config.output_dir / BASELINES
    if parts.held is None or not parts.config.baselines:
        return {}
    if trainer.step:
        if not path.exists():
            return {}
        try:
            kept: dict[str, dict[str, float | None]] = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise BadData(f"{path}: expected the JSON of this run: {error}; remove it") from error
        return kept
    found = {name: _plain(values) for name, values in parts.baselines().items()}
    if parts.ranks.is_first:
        replace_file(path, f"{dump_json(found)}\n".encode())
    return found


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _settings(config: DistillConfig, epoch: int, best: str) -> TrainSettings:
    is_constant = config.schedule == "constant"
    return TrainSettings(
        steps=min(config.epochs * epoch, config.max_steps or 1 << 62),
        accumulation=config.gradient_accumulation_steps,
        learning_rate=config.lr,
        final_learning_rate=config.lr if is_constant else 0.0,
        warmup_share=0.0 if is_constant else 0.05,
        weight_decay=config.weight_decay,
        clip_norm=config.max_grad_norm,
        precision=config.precision,
        ema_decay=config.ema_decay,
        seed=config.seed,
        log_every=config.log_interval,
        eval_every=epoch,
        save_every=config.save_interval,
        best=best,
        unused_parameters=config.mask_head_unfreeze_epoch is not None,
    )


def _described(data: DistillData) -> str:
    teacher = data.teacher
    held = 0 if data.held is None else len(data.held)
    left_out = f", {teacher['left_out']} left out" if teacher.get("left_out") else ""
    return (
        f"{teacher['format']}, {len(data.train)} rows to train on, {held} held out{left_out}; teacher "
        f"{teacher.get('model_type', 'unknown')}, {data.level.name} {data.level.shape} {teacher['feature_dtype']}"
    )


def _size(model: nn.Module) -> str:
    return f"{sum(int(np.prod(one.shape)) for one in model.parameters()) / 1e6:.2f} M parameters"
