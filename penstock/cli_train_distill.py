"""The command line of distillation: `penstock train distill`."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from penstock.cli_common import Flag, Json
from penstock.cli_ranks import run_ranked

if TYPE_CHECKING:
    from penstock.train.distill_config import DistillConfig

_Switch = Annotated[bool | None, Parameter(negative="")]
_Several = Parameter(consume_multiple=True, negative="")


@dataclass(frozen=True, kw_only=True)
class DistillFlags:
    """Flags of `penstock train distill`, in the words of the original's; None: what the recipe says, or the default."""

    recipe: str | None = None
    """Begin with quick_distill, full_distill, or a file FILE.toml of these flags' names."""
    output_dir: Path | None = None
    """Checkpoints, log.jsonl, report.html, the exported student; a run in it is continued. work_dirs/distill."""
    data_format: Literal["binary", "tar_shard", "npz_dir"] | None = None
    """binary: a store or a v1 directory, the default; tar_shard: TARs of JPEG and NPZ; npz_dir: such files in a folder."""
    binary_data_path: Path | None = None
    """The store or v1 directory. By default `binary_data_dir` of the settings, else data/sa1b_binary; it is said."""
    data_path: Annotated[tuple[str, ...] | None, _Several] = None
    """With tar_shard and npz_dir: the TARs, or the folder."""
    max_samples: int | None = None
    """Only the first so many rows."""
    level: str | None = None
    """Level of the teacher's pyramid that is learned; P4_S16."""
    teacher_channels: int | None = None
    """What that level must have; by default what it has: 256."""
    val_share: float | None = None
    """Share of the rows, from the end and to the nearest row, that is held out and evaluated after each epoch; 0.02; 0:
    none."""
    val_samples: int | None = None
    """Held-out rows that are evaluated, at most; 512."""
    max_bad: float | None = None
    """Share of bad rows, of those drawn so far or of 1,000 if they are fewer, above which training stops; 0.01."""
    backbone: str | None = None
    """Student: yolov8 (yolov8:n, yolov8:m), repvit, or timm:NAME."""
    backbone_weights: Path | None = None
    """State dict that the backbone begins with."""
    pretrained_pth: Path | None = None
    """Checkpoint of penstock whose weights a new run begins with."""
    loss_type: Literal["mse", "cosine", "fgd", "fsdlike"] | None = None
    """What features are compared by; mse."""
    feat_weight: float | None = None
    """Of the features' loss; 1."""
    feat_mask: Literal["all", "objects"] | None = None
    """objects: mse and cosine look at cells with an object only."""
    fgd_alpha_fg: float | None = None
    """fgd: weight of cells with an object; 0.001."""
    fgd_beta_bg: float | None = None
    """fgd: of cells without; 0.0005."""
    fgd_alpha_edge: float | None = None
    """fgd with --enable-edge-boost: of cells with edges; 0.002."""
    fgd_gamma_mask: float | None = None
    """fgd: of the attention maps' difference; 0."""
    fgd_lambda_rela: float | None = None
    """fgd: of the global relation; 0."""
    fgd_temperature: float | None = None
    """fgd: of the teacher's attention; 1."""
    fsd_weight_fg: float | None = None
    """fsdlike: weight of cells with an object; 1."""
    fsd_weight_bg: float | None = None
    """fsdlike: of cells without; 0.2."""
    fsd_temperature: float | None = None
    """fsdlike: of the teacher's attention; 1."""
    enable_edge_boost: _Switch = None
    """fgd and fsdlike also count cells with edges."""
    edge_weight: float | None = None
    """Of the edge head's loss; 1; 0: no edge head."""
    edge_task_start_epoch: int | None = None
    """First epoch, from 1, in which edges count; 5."""
    use_pos_weight: _Switch = None
    """Balance edge pixels against the rest."""
    enable_edge_mask_progressive: _Switch = None
    """Later look at edges and around them only."""
    edge_mask_start_epoch: int | None = None
    """First epoch of that; 5."""
    edge_mask_kernel_size: int | None = None
    """How far around, in pixels of 256: side of a square; 3."""
    decoder: str | None = None
    """The teacher's frozen mask decoder, MODEL_TYPE or MODEL_TYPE=WEIGHTS: then masks are evaluated. stand-in fits the
    teacher stand-in."""
    enable_mask_loss: _Switch = None
    """Train on that decoder's masks too."""
    mask_weight: float | None = None
    """Of the masks' loss; 1."""
    mask_bce_weight: float | None = None
    """Of cross-entropy in it; 2."""
    mask_dice_weight: float | None = None
    """Of Dice in it; 1."""
    mask_task_start_epoch: int | None = None
    """First epoch in which masks count; 10."""
    mask_head_unfreeze_epoch: int | None = None
    """First epoch in which a copy of the decoder learns too; never."""
    batch_size: int | None = None
    """Pictures that one device looks at together; 16."""
    gradient_accumulation_steps: int | None = None
    """Forward passes of each device in a step; 1."""
    epochs: int | None = None
    """2."""
    max_steps: int | None = None
    """Stop after so many steps, if the epochs are longer; of --overfit-one-batch 100."""
    lr: float | None = None
    """The highest learning rate; 0.001."""
    schedule: Literal["cosine", "constant"] | None = None
    """cosine falls to 0 after a warm-up; constant is the original's."""
    weight_decay: float | None = None
    """0.01."""
    max_grad_norm: float | None = None
    """Clip gradients to this norm; 1; 0 does not."""
    ema_decay: float | None = None
    """Of the average that is evaluated and exported, as 0.999; 0: there is none."""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16 computes in bfloat16 over weights that stay float32."""
    compile: bool | None = None
    """Compile the student with torch.compile; off."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1."""
    seed: int | None = None
    """Of weights, order and draws; 0."""
    export: Annotated[tuple[Literal["state_dict", "onnx", "torchscript"], ...] | None, _Several] = None
    """What is written of the student at the end, each checked against it; state_dict. A finished run exports again."""
    export_from: Literal["best", "last"] | None = None
    """The student that is written: of the best evaluation, or of the last step; by default the best, if all losses had begun
    by then."""
    baselines: bool | None = None
    """Evaluate the untrained student and the mean of the teacher's features before the first step; on."""
    num_workers: int | None = None
    """Threads that read and decode; 4."""
    prefetch_factor: int | None = None
    """Batches in work ahead of the training; 4."""
    log_interval: int | None = None
    """Steps between lines; 50."""
    save_interval: int | None = None
    """Steps between checkpoints; 500."""
    tensorboard: _Switch = None
    """Numbers and pictures for TensorBoard too, in the output folder."""
    wandb: str | None = None
    """Project at Weights & Biases that gets the numbers too."""

    def to_config(self) -> "DistillConfig":
        """The configuration: the recipe's, or the defaults, with what was given.

        Raises:
            UsageError: no such recipe, a value out of range, or one that has no effect beside the others.
            SourceNotFound: no such recipe file.
        """
        from penstock.recipes import distill_recipe
        from penstock.train.distill_config import DistillConfig

        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        recipe = given.pop("recipe", None)
        return DistillConfig(**given) if recipe is None else distill_recipe(recipe).changed(given)


def distill(
    flags: Annotated[DistillFlags, Parameter(name="*")] = DistillFlags(),
    *,
    dry_run: Flag = False,
    overfit_one_batch: Flag = False,
    verbose: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Train a light student to give a teacher's features, edges and masks; evaluate it, export it, report.

    Run it again after an interruption and it goes on where it was. On several GPUs: `torchrun --nproc_per_node 8 -m penstock
    train distill ...`; a step then has that many times the pictures.

    Parameters
    ----------
    flags
        What is trained on what.
    dry_run
        Open everything, one batch forward and backward, say what would be done; write nothing.
    overfit_one_batch
        Take every step on the first batch; exit 1 if the loss does not fall by half. Writes nothing.
    verbose
        Whatever is said for debugging.
    quiet
        No lines of the training on stderr.
    """
    from penstock.errors import UsageError

    if dry_run and overfit_one_batch:
        raise UsageError("--dry-run: expected it without --overfit-one-batch")
    way = "dry-run" if dry_run else "overfit" if overfit_one_batch else "train"
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    return run_distill(flags.to_config(), way=way, level=level, json=json)


def run_distill(config: "DistillConfig", *, way: str = "train", level: int = logging.INFO, json: bool = False) -> int:
    """Trains as one rank, prints what came of it, writes report.html; gives the exit code.

    Raises:
        MissingExtra: torch is not installed.
        PenstockError: as `penstock.train.distill_run.run_distill`.
    """
    from penstock.distill_report import write_report
    from penstock.train.distill_run import run_distill as run

    def work(ranks: Any, say: Any) -> dict[str, Any]:
        found = run(config, ranks=ranks, way=way, say=say)  # type: ignore[arg-type]  # checked
        if way == "train" and ranks.is_first:
            found["report"] = str(write_report(config.output_dir))
        return found

    return run_ranked(
        "train distill",
        config.device,
        work,
        level=level,
        json=json,
        closing=lambda found: _closing(found, way),
        failed=lambda found: way == "overfit" and not found["last_loss"] <= found["first_loss"] / 2,
    )


def _closing(found: dict[str, Any], way: str) -> list[str]:
    from penstock.train.distill_run import EXPORT

    size = f"{found['samples']} pictures an epoch, {found['held_out']} held out, {found['global_batch']} a step"
    if way == "dry-run":
        return [size, *(f"  {name}: {value}" for name, value in found["plan"].items())]
    if way == "overfit":
        return [size, f"loss {found['first_loss']:.4g} -> {found['last_loss']:.4g} on one batch"]
    since = f" (from step {found['first_step']} on)" if found["first_step"] else ""
    lines = [f"{found['step']} of {found['steps']} steps{since}, {size}"]
    exported = found["export"]
    best = {f"student of step {exported['step']}": exported["metrics"]} if exported["step"] != found["step"] else {}
    lines += _table({"student": found["metrics"], **best, **found["baselines"]})
    if found["metrics"].get("without_box", 0) == found["metrics"].get("samples", -1):
        lines.append("no held-out picture has a box: the decoder judged no mask")
    failed = sum((Counter(one["failed"]) for one in found["data"]), Counter())
    if failed:
        reasons = ", ".join(f"{name}: {count}" for name, count in failed.most_common())
        lines.append(f"{failed.total()} bad rows were drawn and replaced by others ({reasons})")
    folder = Path(found["config"]["output_dir"]) / EXPORT
    lines += [f"exported: {folder / name}, of step {exported['step']}" for name in exported["files"]]
    return [*lines, f"checkpoint: {found['checkpoint']}", f"report: {found['report']}"]


_SHOWN = ("cosine", "mse", "cka", "edge_f1", "miou_student_gt", "miou_student_teacher", "miou_teacher_gt")


def _table(scores: dict[str, dict[str, float | None]]) -> list[str]:
    """One line for each that was evaluated."""
    lines = []
    for name, values in scores.items():
        words = [f"{key} {value:.3f}" for key in _SHOWN if (value := values.get(key)) is not None]
        lines += [f"held out, {name.replace('_', ' ')}: {', '.join(words)}"] if words else []
    return lines or ["held out: nothing"]
