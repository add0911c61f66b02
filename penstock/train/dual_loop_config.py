"""The whole configuration of a dual-loop training: data, model, training, where it goes. Imports nothing heavy."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from penstock.errors import UsageError

Captions = Literal["pseudo", "truth", "cached", "soft"]
OPENIMAGE_MISSING = "Warning: OpenImage directory not found: {openimage_dir}, skipping OpenImage dataset"
"""The seed's words."""


@dataclass(frozen=True, kw_only=True)
class DualLoopConfig:
    """What `penstock train dual-loop` does. Flags have the names of the fields.

    A dataset is a folder, or `READER:PATH?option=value` (`READER:` alone takes the folder from the settings).

    Raises:
        UsageError: a value is out of range, or two contradict each other; the field is named.
    """

    output_dir: Path = Path("work_dirs/dual_loop_sft")
    """Checkpoints, logs, the report, lists of bad rows. A run in it is continued."""

    sav_dir: str | None = None
    """Masklet pairs (`masklet_data_*.npz`), or SA-V itself."""
    sa1b_dir: str | None = None
    refcoco_dir: str | None = None
    openimage_dir: str | None = None
    """The only one that may be missing: then it is left out, and said."""
    sa1b_max_samples: int | None = None
    """Pictures, not masks: 500 of the original's gave 51,328 samples."""
    sav_max_samples: int | None = None
    """Samples: pairs."""
    sav_repeats: int = 1
    refcoco_repeats: int = 1
    sav_min_gap: float | None = None
    sav_max_gap: float | None = None
    """SA-V itself: how far apart the frames of a pair lie, in frames of the video; 1 and 48. Masklet files are pairs."""
    size: int = 1024
    """Side of the pictures and masks."""
    max_bad: float = 0.05
    """Share of bad samples, of the last 1,000, from which training stops; 0: it stops at the first."""

    model: str = "cycle"
    """As of `penstock.models.captioners.open_cycle`."""
    captions: Captions | None = None
    """As of `DualLoopSettings`; None: "truth" where the mixture has sentences, else what the model names."""
    caption_cache: str | None = None
    """With captions "cached": a source with `caption` or `sentence`, whose keys are those of the first views."""
    pretrained_pth: Path | None = None
    """A checkpoint of penstock whose weights a new run begins with."""
    max_empty: float = 0.5
    """Share of empty captions, of the last 1,000, from which training stops."""

    batch_size: int = 1
    """Samples that one device looks at together."""
    gradient_accumulation_steps: int = 4
    num_epochs: int = 1
    max_steps: int | None = None
    """Stop after so many updates, if the epochs are longer."""
    learning_rate: float | None = None
    """None: the model's own."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    """Of the average that is evaluated; 0: there is none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    seed: int = 0

    eval_share: float = 0.01
    """Share of each dataset's groups (pairs, tracks, pictures), from its end, that is held out and evaluated; at least one
    where there are two; 0: none."""
    eval_samples: int = 512
    """Held-out samples that are evaluated, at most."""

    num_workers: int = 4
    """Threads that read and decode."""
    log_interval: int = 10
    save_interval: int = 500
    tensorboard: bool = False
    wandb: str | None = None
    """Project at Weights & Biases."""

    def __post_init__(self) -> None:
        least = {"size": 8, "eval_samples": 1}
        whole = ("sav_repeats", "refcoco_repeats", "size", "batch_size", "gradient_accumulation_steps", "num_epochs",
                 "eval_samples", "num_workers", "log_interval", "save_interval")  # fmt: skip
        for name in whole:
            self._require(getattr(self, name) >= least.get(name, 1), name, f"{least.get(name, 1)} or more")
        self._require(0 <= self.seed < 1 << 64, "seed", "0..2**64-1")
        for name in ("sa1b_max_samples", "sav_max_samples", "max_steps"):
            self._require(getattr(self, name) is None or getattr(self, name) >= 1, name, "1 or more")
        self._require(0 <= self.eval_share < 1, "eval_share", "0..1 without 1")
        self._require(0 <= self.max_bad <= 1, "max_bad", "0..1")
        self._require(0 < self.max_empty <= 1, "max_empty", "above 0 and up to 1")
        self._require(0 <= self.max_grad_norm < math.inf, "max_grad_norm", "0 or more")
        self._require(0 <= self.ema_decay < 1, "ema_decay", "0..1 without 1")
        self._require(self.captions is None or self.captions in get_args(Captions), "captions", "a mode")
        is_cached = self.captions == "cached"
        self._require(
            is_cached == (self.caption_cache is not None), "caption_cache", "a source with captions=cached, else none"
        )
        self._require(self.learning_rate is None or 0 < self.learning_rate < math.inf, "learning_rate", "above 0")
        self._require(
            self._given() > 0, "sav_dir", "a dataset at least: sav_dir, sa1b_dir, refcoco_dir or openimage_dir"
        )
        for name, owner in (("sa1b_max_samples", "sa1b_dir"), ("sav_max_samples", "sav_dir"), ("sav_min_gap", "sav_dir"),
                            ("sav_max_gap", "sav_dir")):  # fmt: skip
            needless = getattr(self, name) is not None and getattr(self, owner) is None
            self._require(not needless, name, f"none without {owner}")

    @property
    def share_of_rank(self) -> int:
        """Samples of a step on one device."""
        return self.batch_size * self.gradient_accumulation_steps

    def plain(self) -> dict[str, object]:
        """Plain values, for reports."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def _given(self) -> int:
        return sum(one is not None for one in (self.sav_dir, self.sa1b_dir, self.refcoco_dir, self.openimage_dir))

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UsageError(f"dual-loop: {name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class DualLoopLines:
    """What is said while the datasets are opened, as templates, in the seed's words where they are English; the rest is in
    `penstock.compat`."""

    sav: str = "Loading SAV dataset from {sav_dir}"
    found: str = "Found {files} NPZ files"
    tracks: str = "Found {files} tracks"
    limited: str = " (max_samples={max_samples})"
    sa1b: str = "Loading SA-1B dataset from {sa1b_dir}"
    refcoco: str = "Loading RefCOCO dataset"
    openimage_found: str = "OpenImage directory found: {openimage_dir}"
    openimage: str = "Loading OpenImage dataset"
    openimage_missing: str = OPENIMAGE_MISSING
    total: str = "Total datasets: {datasets}"
    dataset: str = "  Dataset {number}: {samples} samples"
    built: str = "Dataset built: {samples} total samples"
    held_out: str = "Held out for evaluation: {samples} of them"
