"""The whole configuration of a distillation: data, student, losses, training, where it goes. Imports nothing heavy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from penstock.errors import UsageError

DataFormat = Literal["binary", "tar_shard", "npz_dir"]
Export = Literal["state_dict", "onnx", "torchscript"]
LossType = Literal["mse", "cosine", "fgd", "fsdlike"]

_FGD = ("fgd_alpha_fg", "fgd_beta_bg", "fgd_alpha_edge", "fgd_gamma_mask", "fgd_lambda_rela", "fgd_temperature")
_FSD = ("fsd_weight_fg", "fsd_weight_bg", "fsd_temperature")
_NEAR = ("edge_mask_start_epoch", "edge_mask_kernel_size")
_USED_WITH: tuple[tuple[str, tuple[object, ...], tuple[str, ...]], ...] = (
    ("feat_weight", (), ("loss_type", "feat_mask", *_FGD, *_FSD, "enable_edge_boost")),
    ("loss_type", ("mse", "cosine"), ("feat_mask",)),
    ("loss_type", ("fgd",), _FGD),
    ("loss_type", ("fsdlike",), _FSD),
    ("loss_type", ("fgd", "fsdlike"), ("enable_edge_boost",)),
    ("enable_edge_boost", (), ("fgd_alpha_edge",)),
    ("edge_weight", (), ("edge_task_start_epoch", "use_pos_weight", "enable_edge_mask_progressive", *_NEAR)),
    ("enable_edge_mask_progressive", (), _NEAR),
    ("enable_mask_loss", (), ("mask_weight", "mask_bce_weight", "mask_dice_weight", "mask_task_start_epoch",
                              "mask_head_unfreeze_epoch")),
    ("val_share", (), ("val_samples",)),
    ("export", (), ("export_from",)),
    ("pretrained_pth", (None,), ("backbone_weights",)),
)  # fmt: skip
"""A field, its values (none listed: any that is not 0, off or empty), and the fields that change something only beside them."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What `penstock train distill` does. Flags have the names of the fields, after the seed's script.

    Raises:
        UsageError: a value is out of range, or two contradict each other; the field is named.
    """

    output_dir: Path = Path("work_dirs/distill")
    """Checkpoints, logs, pictures, the report. A run in it is continued."""

    data_format: DataFormat = "binary"
    """"binary": a store or a v1 directory; "tar_shard": TARs of JPEG and NPZ; "npz_dir": such files in a folder."""
    binary_data_path: Path | None = None
    """With "binary"; None: `binary_data_dir` of the settings, else the documented default."""
    data_path: tuple[str, ...] = ()
    """With the other formats: TARs or a folder of TARs; the folder of pictures and NPZ files."""
    max_samples: int | None = None
    """Only the first so many rows."""
    level: str = "P4_S16"
    """The teacher's level that is learned."""
    teacher_channels: int | None = None
    """What the level must have; None: what the data have."""
    val_share: float = 0.02
    """Share of the rows, from the end, that is held out and evaluated: to the nearest row, at least one; 0: none."""
    val_samples: int = 512
    """Held-out rows that are evaluated, at most."""
    max_bad: float = 0.01
    """Share of the rows drawn so far that may be bad (replaced by others, counted) before training stops; of 1,000 rows where
    fewer are drawn. Each device counts its own, from its start."""

    backbone: str = "yolov8"
    """As of `penstock.models.students.open_student`: yolov8, repvit, timm:NAME."""
    backbone_weights: Path | None = None
    """State dict that the backbone begins with."""
    pretrained_pth: Path | None = None
    """A checkpoint of penstock whose weights a new run begins with."""

    loss_type: LossType = "mse"
    feat_weight: float = 1.0
    feat_mask: Literal["all", "objects"] = "all"
    """"objects": of mse and cosine only the cells that an object covers (fg_map above 0) count."""
    fgd_alpha_fg: float = 0.001
    fgd_beta_bg: float = 0.0005
    fgd_alpha_edge: float = 0.002
    fgd_gamma_mask: float = 0.0
    fgd_lambda_rela: float = 0.0
    fgd_temperature: float = 1.0
    fsd_weight_fg: float = 1.0
    fsd_weight_bg: float = 0.2
    fsd_temperature: float = 1.0
    enable_edge_boost: bool = False
    """fgd also counts the cells with edges, by `fgd_alpha_edge`; fsdlike by `fsd_weight_fg`."""

    edge_weight: float = 1.0
    """Of the edge head's loss, 0.5 BCE + 0.5 Dice; 0: the student has no edge head."""
    edge_task_start_epoch: int = 5
    """Epochs are counted from 1; before it the edge loss has weight 0."""
    use_pos_weight: bool = False
    """BCE of edges weighs positives by negatives / positives of the picture, at most 20."""
    enable_edge_mask_progressive: bool = False
    """From `edge_mask_start_epoch` on the edge loss looks only near edges, dilated by `edge_mask_kernel_size`."""
    edge_mask_start_epoch: int = 5
    edge_mask_kernel_size: int = 3
    """Side of the square, in pixels of 256; odd."""

    decoder: str | None = None
    """The frozen decoder that judges features: MODEL_TYPE, or MODEL_TYPE=WEIGHTS; None: masks are neither learned nor judged."""
    enable_mask_loss: bool = False
    mask_weight: float = 1.0
    mask_bce_weight: float = 2.0
    mask_dice_weight: float = 1.0
    mask_task_start_epoch: int = 10
    mask_head_unfreeze_epoch: int | None = None
    """From this epoch on the decoder of the mask loss is trained too (never the one that evaluates); None: never."""

    batch_size: int = 16
    """Pictures that one device looks at together."""
    gradient_accumulation_steps: int = 1
    """Forward passes of each device in a step; a step has batch_size x this x devices pictures."""
    epochs: int = 2
    max_steps: int | None = None
    lr: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """0: not clipped."""
    ema_decay: float = 0.0
    """Of the average that is evaluated and exported; 0: there is none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    device: str = "auto"
    seed: int = 0

    export: tuple[Export, ...] = ("state_dict",)
    """What is written of the student at the end, each checked against it."""
    export_from: Literal["best", "last"] | None = None
    """The student that is written: of the best evaluation, or of the last step; None: the best, where there is one and every
    loss of the last step had begun by then."""
    baselines: bool = True
    """Before the first step, evaluate the untrained student and the mean of the teacher's features too."""

    num_workers: int = 4
    """Threads that read and decode."""
    prefetch_factor: int = 4
    """Batches in work ahead of the training."""
    log_interval: int = 50
    save_interval: int = 500
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        least_1 = ("val_samples", "edge_task_start_epoch", "edge_mask_start_epoch", "mask_task_start_epoch", "batch_size",
                   "gradient_accumulation_steps", "epochs", "num_workers", "prefetch_factor", "log_interval",
                   "save_interval")  # fmt: skip
        for name in least_1:
            self._require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("max_samples", "teacher_channels", "max_steps", "mask_head_unfreeze_epoch"):
            self._require(getattr(self, name) is None or getattr(self, name) >= 1, name, "1 or more")
        weights = ("feat_weight", "fgd_alpha_fg", "fgd_beta_bg", "fgd_alpha_edge", "fgd_gamma_mask", "fgd_lambda_rela",
                   "fsd_weight_fg", "fsd_weight_bg", "edge_weight", "mask_weight", "mask_bce_weight", "mask_dice_weight",
                   "max_grad_norm", "weight_decay")  # fmt: skip
        for name in weights:
            self._require(0 <= getattr(self, name) < math.inf, name, "0 or more")
        for name in ("fgd_temperature", "fsd_temperature", "lr"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0")
        self._require(0 <= self.seed < 1 << 64, "seed", "0..2**64-1")
        self._require(0 <= self.val_share < 1, "val_share", "0..1 without 1")
        self._require(0 <= self.max_bad <= 1, "max_bad", "0..1")
        self._require(0 <= self.ema_decay < 1, "ema_decay", "0..1 without 1")
        kernel = self.edge_mask_kernel_size
        self._require(kernel >= 1 and kernel % 2 == 1, "edge_mask_kernel_size", "an odd number of pixels, 1 or more")
        choices = {"data_format": DataFormat, "loss_type": LossType, "feat_mask": Literal["all", "objects"],
                   "schedule": Literal["cosine", "constant"], "precision": Literal["fp32", "bf16"]}  # fmt: skip
        for name, allowed in choices.items():
            self._require(getattr(self, name) in get_args(allowed), name, " or ".join(get_args(allowed)))
        self._require(set(self.export) <= set(get_args(Export)), "export", " or ".join(get_args(Export)))
        self._require(self.export_from in (None, "best", "last"), "export_from", "best or last")
        self._require(self.export_from != "best" or self.val_share > 0, "export_from", "last with val_share=0")
        is_binary = self.data_format == "binary"
        self._require(
            not is_binary or not self.data_path, "data_path", "none with data_format=binary (binary_data_path)"
        )
        self._require(is_binary or self.binary_data_path is None, "binary_data_path", "none without data_format=binary")
        self._require(is_binary or bool(self.data_path), "data_path", f"a path with data_format={self.data_format}")
        self._require(not self.enable_mask_loss or self.decoder is not None, "decoder", "one with enable_mask_loss")
        self._require(
            self.feat_weight > 0 or self.edge_weight > 0 or self.enable_mask_loss, "feat_weight", "a loss at least"
        )
        for name, other in without_effect(vars(self)).items():
            raise UsageError(
                f"distill: {name}: expected its default, for it has no effect with {other}; got {getattr(self, name)!r}: "
                "leave it out, or change the other"
            )

    @property
    def share_of_rank(self) -> int:
        """Pictures of a step on one device."""
        return self.batch_size * self.gradient_accumulation_steps

    def changed(self, given: Mapping[str, object]) -> "DistillConfig":
        """This configuration, as of a recipe, with other values of some fields; what has no effect beside these goes back to
        its default.

        Raises:
            UsageError: as the class; a given value that has no effect is refused too.
        """
        values = {**vars(self), **given}
        idle = without_effect(values).keys() - given.keys()
        return DistillConfig(**{name: value for name, value in values.items() if name not in idle})

    def plain(self) -> dict[str, object]:
        """Plain values, for a report."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UsageError(f"distill: {name}: expected {expected}, got {getattr(self, name)!r}")


def without_effect(values: Mapping[str, object]) -> dict[str, str]:
    """Fields that are not at their default and change nothing.

    Args:
        values: of fields of `DistillConfig`; the others are at their default.

    Returns:
        Name -> the other field because of which it changes nothing, with its value: "feat_mask" -> "loss_type='fgd'".
    """
    defaults = {field.name: field.default for field in fields(DistillConfig)}
    whole = {**defaults, **values}
    found: dict[str, str] = {}
    for other, useful, names in _USED_WITH:
        value = whole[other]
        if value in useful if useful else value:
            continue
        for name in names:
            if whole[name] != defaults[name]:
                found.setdefault(name, f"{other}={value!r}")
    return found
