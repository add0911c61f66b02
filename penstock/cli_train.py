"""The command line of training."""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from penstock.cli_common import Flag, Json
from penstock.cli_ranks import run_ranked

if TYPE_CHECKING:
    from penstock.train.dual_loop_config import DualLoopConfig, DualLoopLines

train = App(name="train", help="Train a model on what penstock reads.")
_ELSEWHERE = {
    "lora_r": "penstock adds no LoRA layers; leave it out",
    "lora_alpha": "penstock adds no LoRA layers; leave it out",
}


@dataclass(frozen=True, kw_only=True)
class DualLoopFlags:
    """Flags of `penstock train dual-loop`, in the words of the original's; None: what the recipe says, or the default."""

    recipe: str | None = None
    """Begin with quick_dual_loop (one device, 1 x 4, 500 pictures of SA-1B), full_dual_loop (2 x 4 on each device), or a
    file FILE.toml of these flags' names."""
    sav_dir: str | None = None
    """Masklet pairs (masklet_data_*.npz) or SA-V. This and the next three: a folder, or READER:PATH?option=value."""
    sa1b_dir: str | None = None
    """SA-1B: pictures and JSON, in folders or TARs."""
    refcoco_dir: str | None = None
    """The folder above refcoco: every sentence of the train split."""
    openimage_dir: str | None = None
    """Open Images with masks; if there is no such folder it is left out, with a warning."""
    sa1b_max_samples: int | None = None
    """Only the first so many pictures of SA-1B, with all their masks."""
    sav_max_samples: int | None = None
    """Only the first so many samples of SA-V."""
    sav_repeats: int | None = None
    """How often each sample of SA-V comes in an epoch; 1."""
    refcoco_repeats: int | None = None
    """How often each sentence comes in an epoch; 1."""
    sav_min_gap: float | None = None
    """Of SA-V itself: frames of the video between the two of a pair, at least; 1."""
    sav_max_gap: float | None = None
    """The same, at most; 48."""
    size: int | None = None
    """Side of the square pictures and masks; 1024."""
    max_bad: float | None = None
    """Share of bad samples, of the last 1,000, from which training stops; 0.05. 0: it stops at the first."""
    model: str | None = None
    """Captioner and segmenter: cycle, the built-in small one, or florence2:FOLDER, florence2:OWNER/NAME."""
    model_path: str | None = None
    """The original's word for --model sa2va:PATH."""
    pretrained_pth: Path | None = None
    """Checkpoint of penstock whose weights a new run begins with."""
    captions: Literal["pseudo", "truth", "cached", "soft"] | None = None
    """pseudo: the model's own; truth: the human sentence where there is one; cached: made before; soft: own, with a
    gradient. By default truth where there are sentences, else what suits the model."""
    caption_cache: str | None = None
    """Source with the captions of --captions cached, by key."""
    max_empty: float | None = None
    """Share of empty captions, of the last 1,000, from which training stops; 0.5."""
    batch_size: int | None = None
    """Samples that one device looks at together; 1."""
    gradient_accumulation_steps: int | None = None
    """Forward passes of each device in a step; 4. A step has batch-size x this x devices samples."""
    num_epochs: int | None = None
    """1."""
    max_steps: int | None = None
    """Stop after so many steps, if the epochs are longer; of --overfit-one-batch 100."""
    learning_rate: float | None = None
    """The highest; by default what suits the model: 0.002 for cycle, 0.00001 for florence2."""
    max_grad_norm: float | None = None
    """Clip gradients to this norm; 1; 0 does not."""
    ema_decay: float | None = None
    """Of the average that is evaluated, as 0.999; 0: there is none."""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16 computes in bfloat16 over weights that stay float32."""
    device: str | None = None
    """auto, cpu, cuda, cuda:1."""
    seed: int | None = None
    """Of weights, order and draws; 0."""
    eval_share: float | None = None
    """Share of each dataset that is held out and evaluated after each epoch; 0.01; 0: none."""
    eval_samples: int | None = None
    """Held-out samples that are evaluated, at most; 512."""
    num_workers: int | None = None
    """Threads that read and decode; 4."""
    log_interval: int | None = None
    """Steps between lines; 10."""
    save_interval: int | None = None
    """Steps between checkpoints; 500."""
    tensorboard: Annotated[bool | None, Parameter(negative="")] = None
    """Numbers for TensorBoard too, in the output folder."""
    wandb: str | None = None
    """Project at Weights & Biases that gets the numbers too."""
    output_dir: Path | None = None
    """Checkpoints, log.jsonl, report.json; a run in it is continued. work_dirs/dual_loop_sft, or the recipe's."""
    lora_r: int | None = None
    """Refused: penstock adds no LoRA layers."""
    lora_alpha: int | None = None
    """Refused, likewise."""
    local_rank: int | None = None
    """What old launchers add; it must be that of torchrun."""

    def to_config(self) -> "DualLoopConfig":
        """The configuration: the recipe's, or the defaults, with what was given.

        Raises:
            UsageError: no such recipe, a flag that cannot be kept, or a value out of range.
        """
        from penstock.errors import UsageError
        from penstock.recipes import dual_loop_recipe
        from penstock.train.dual_loop_config import DualLoopConfig

        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        for name, word in _ELSEWHERE.items():
            if name in given:
                raise UsageError(f"--{name.replace('_', '-')} {given[name]}: {word}")
        rank, own = given.pop("local_rank", -1), int(os.environ.get("LOCAL_RANK", "0"))
        if rank not in (-1, own):
            raise UsageError(
                f"--local-rank {rank}: expected {own}, as LOCAL_RANK says; start it by torchrun, without the flag"
            )
        if "model_path" in given:
            if "model" in given:
                raise UsageError("--model-path: expected none beside --model; it stands for --model sa2va:PATH")
            given["model"] = f"sa2va:{given.pop('model_path')}"
        recipe = given.pop("recipe", None)
        if recipe is None:
            return DualLoopConfig(**given)
        return replace(dual_loop_recipe(recipe), **given)


@train.command(name="dual-loop")
def dual_loop(
    flags: Annotated[DualLoopFlags, Parameter(name="*")] = DualLoopFlags(),
    *,
    dry_run: Flag = False,
    overfit_one_batch: Flag = False,
    verbose: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Train mask to caption on one picture and caption to mask on the other, on several datasets mixed.

    Every row comes once an epoch, shuffled; what is bad is replaced and counted. Run it again after an interruption and
    it goes on where it was. On several GPUs: `torchrun --nproc_per_node 8 -m penstock train dual-loop ...`.

    Parameters
    ----------
    flags
        What is trained on what.
    dry_run
        Open everything, one batch forward and backward, say what would be done; write nothing.
    overfit_one_batch
        Take every step on the first batch; exit 1 if the loss does not fall by half. Writes nothing.
    verbose
        Shapes and whether both pictures are the same, at every step.
    quiet
        No lines of the training on stderr.
    """
    from penstock.errors import UsageError
    from penstock.train.dual_loop_config import DualLoopLines

    if dry_run and overfit_one_batch:
        raise UsageError("--dry-run: expected it without --overfit-one-batch")
    way = "dry-run" if dry_run else "overfit" if overfit_one_batch else "train"
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    return run_dual_loop(flags.to_config(), DualLoopLines(), way=way, level=level, json=json)


def run_dual_loop(
    config: "DualLoopConfig",
    lines: "DualLoopLines",
    *,
    way: str = "train",
    level: int = logging.INFO,
    json: bool = False,
) -> int:
    """Trains as one rank, says so in these lines, prints what came of it; gives the exit code.

    Raises:
        MissingExtra: torch is not installed.
        PenstockError: as `penstock.train.dual_loop_run.run_dual_loop`.
    """
    from penstock.train.dual_loop_run import run_dual_loop as run

    return run_ranked(
        "train dual-loop",
        config.device,
        lambda ranks, say: run(config, ranks=ranks, way=way, lines=lines, say=say),  # type: ignore[arg-type]  # checked
        level=level,
        json=json,
        closing=lambda found: _closing(found, way),
        failed=lambda found: way == "overfit" and not found["last_loss"] <= found["first_loss"] / 2,
    )


def _closing(found: dict[str, Any], way: str) -> list[str]:
    from penstock.mix_report import drawn_lines

    size = f"{found['samples']} samples an epoch, {found['global_batch']} a step, captions: {found['captions']}"
    if way == "dry-run":
        return [size, *(f"  {name}: {value}" for name, value in found["plan"].items())]
    if way == "overfit":
        return [size, f"loss {found['first_loss']:.4g} -> {found['last_loss']:.4g} on one batch"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in found["metrics"].items() if value is not None)
    since = f" (from step {found['first_step']} on)" if found["first_step"] else ""
    drawn = drawn_lines(found["sources"]) if found["step"] > found["first_step"] else ["Nothing was left to train"]
    if found["empty_captions"] is not None:
        size += f" ({found['empty_captions']:.0%} empty)"
    lines = [*drawn, f"{found['step']} of {found['steps']} steps{since}, {size}"]
    return [*lines, f"held out: {scores}" if scores else "held out: nothing", f"checkpoint: {found['checkpoint']}"]
