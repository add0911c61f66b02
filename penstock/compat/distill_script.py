"""The seed's training script, `tools/core/exper/train_distill_single_test.py`, over `penstock train distill`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from penstock.cli_train_distill import run_distill
from penstock.compat.script import run_script
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.train.distill_config import DistillConfig

OUTPUT = Path("work_dirs")
_ABOUT = "Train a student on a distillation set, as the original script says it; see docs/differences.md."
_FLAG = Parameter(negative="")
_SAM2 = "sam2.1_hiera_b+"
_log = logging.getLogger("penstock")


@dataclass(frozen=True, kw_only=True)
class ScriptFlags:
    """The script's flags and defaults; flags with `_` or `-`."""

    env: Literal["ssh", "local"] = "ssh"
    """Sets nothing: in the original "ssh" overwrote batch size, workers and prefetch factor."""
    data_format: Literal["tar_shard", "npz_dir", "binary"] = "tar_shard"
    """binary reads a store or a v1 directory; the others need --data-path."""
    binary_data_path: Path | None = None
    """By default `binary_data_dir` of the settings, else data/sa1b_binary; it is said."""
    data_path: tuple[str, ...] = ()
    """TARs or their folder, or the folder of NPZ files; the original had it in its environment's configuration."""
    output_dir: Path | None = None
    """By default work_dirs/distill_single_test_<LOSS>/<backbone>_<run tag>; a run in it is continued."""
    loss_type: Literal["mse", "fgd", "fsdlike"] = "mse"
    """What features are compared by."""
    backbone: str = "yolov8"
    """yolov8, repvit, or timm:NAME."""
    batch_size: int = 16
    """Pictures of a step on one device."""
    epochs: int = 2
    """How often every picture is seen."""
    lr: float = 1e-3
    """Constant, as in the original."""
    feat_weight: float = 1.0
    """Of the features' loss; in the original without effect."""
    edge_weight: float = 1.0
    """Of the edges' loss."""
    num_workers: int = 8
    """Threads that read and decode."""
    prefetch_factor: int = 4
    """Batches in work ahead."""
    fgd_alpha_fg: float = 0.001
    """fgd: cells with an object."""
    fgd_beta_bg: float = 0.0005
    """fgd: cells without."""
    fgd_alpha_edge: float = 0.002
    """fgd: cells with edges."""
    fgd_gamma_mask: float = 0.0
    """fgd: attention maps."""
    fgd_lambda_rela: float = 0.0
    """fgd: global relation."""
    fgd_temperature: float = 1.0
    """fgd: of the attention."""
    fsd_weight_fg: float = 1.0
    """fsdlike: cells with an object."""
    fsd_weight_bg: float = 0.2
    """fsdlike: cells without."""
    enable_edge_boost: Annotated[bool, _FLAG] = False
    """Count cells with edges too."""
    enable_edge_mask_progressive: Annotated[bool, _FLAG] = False
    """Later look near edges only; in the original without effect."""
    edge_mask_start_epoch: int = 5
    """First epoch of that."""
    edge_mask_kernel_size: int = 3
    """How far from an edge."""
    use_pos_weight: Annotated[bool, _FLAG] = False
    """Balance edge pixels."""
    enable_mask_loss: Annotated[bool, _FLAG] = False
    """Train on masks of the teacher's frozen decoder."""
    mask_weight: float = 1.0
    """Of that loss."""
    mask_bce_weight: float = 2.0
    """Cross-entropy in it."""
    mask_dice_weight: float = 1.0
    """Dice in it."""
    mask_head_unfreeze_epoch: int = 100
    """First epoch in which the decoder learns too."""
    edge_task_start_epoch: int = 5
    """First epoch in which edges count."""
    mask_task_start_epoch: int = 10
    """First epoch in which masks count."""
    decoder: str | None = None
    """MODEL_TYPE or MODEL_TYPE=WEIGHTS; with --enable-mask-loss sam2.1_hiera_b+ by default."""
    no_compile: Annotated[bool, _FLAG] = False
    """Do not compile the student; that is done where --cuda-device is given."""
    total_images: int = 109960
    """Not needed: rows are counted."""
    resume: Path | None = None
    """A checkpoint whose weights a new run begins with; a run in the output folder is continued without it."""
    strict_resume: Annotated[bool, _FLAG] = False
    """Weights that do not fit are always refused."""
    log_interval: int = 50
    """Steps between lines."""
    teacher_channels: int = 256
    """That the features must have."""
    cuda_device: int | None = None
    """Number of the GPU; by default a GPU where there is one (the original's was 4)."""
    run_tag: str = ""
    """End of the output folder's name."""

    def to_config(self) -> "DistillConfig":
        """The configuration that these flags say. What has no effect beside the others is taken, as by the original, and said.

        Raises:
            UsageError: a value is out of range, or two contradict each other.
        """
        from penstock.train.distill_config import DistillConfig, without_effect

        apart = {"env", "no_compile", "total_images", "resume", "strict_resume", "cuda_device", "run_tag", "output_dir",
                 "decoder", "mask_head_unfreeze_epoch"}  # fmt: skip
        if self.cuda_device is not None and self.cuda_device < 0:
            raise UsageError(f"--cuda-device {self.cuda_device}: expected 0 or more")
        name = "_".join(part for part in (self.backbone.replace(":", "-"), self.run_tag) if part)
        default = OUTPUT / f"distill_single_test_{self.loss_type.upper()}" / name
        has_unfreezing = self.enable_mask_loss and self.mask_head_unfreeze_epoch <= self.epochs
        given = {key: value for key, value in vars(self).items() if key not in apart}
        idle = without_effect(given)
        for flag, other in idle.items():
            _log.warning("penstock: --%s has no effect with %s", flag.replace("_", "-"), other)
        return DistillConfig(
            **{key: value for key, value in given.items() if key not in idle},
            output_dir=self.output_dir or default,
            decoder=self.decoder or (_SAM2 if self.enable_mask_loss else None),
            mask_head_unfreeze_epoch=self.mask_head_unfreeze_epoch if has_unfreezing else None,
            compile=self.cuda_device is not None and not self.no_compile,
            pretrained_pth=self.resume,
            device="auto" if self.cuda_device is None else f"cuda:{self.cuda_device}",
            schedule="constant",
            max_grad_norm=0.0,
        )


def main(argv: Sequence[str]) -> int:
    """Runs the script and gives its exit code: 0 done, 1 a fault or too much bad data, 2 misuse."""
    app = App(name="train_distill_single_test", help=_ABOUT, result_action="return_value", version_flags=())

    @app.default
    def default(flags: Annotated[ScriptFlags, Parameter(name="*")] = ScriptFlags()) -> int:
        return run_distill(flags.to_config())

    return run_script(app, argv)
