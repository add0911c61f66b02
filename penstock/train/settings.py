"""The settings of a training run."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from penstock.errors import UsageError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, how fast, how often. A step is one update of the weights.

    Raises:
        UsageError: a number is out of range; the message names it.
    """

    steps: int
    accumulation: int = 1
    """Pieces that a rank's share of the global batch is cut into, one forward and backward pass each."""
    learning_rate: float = 1e-4
    """The highest, after warming up."""
    final_learning_rate: float = 0.0
    """At the end of the cosine."""
    warmup_share: float = 0.05
    """Of the steps, rising linearly."""
    weight_decay: float = 0.05
    """Of AdamW; on matrices and filters only."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0: not clipped."""
    precision: Precision = "fp32"
    """"bf16": autocast over weights that stay float32."""
    ema_decay: float = 0.0
    """Of the average that is evaluated and exported; 0: there is none."""
    seed: int = 0
    """Of dropout and whatever else a model draws: set anew at every step from (seed, step, rank)."""
    log_every: int = 10
    eval_every: int = 0
    """0: at the end only."""
    save_every: int = 500
    keep_last: int = 2
    """Checkpoints kept, besides the best."""
    best: str = ""
    """Metric of the evaluation by which the best checkpoint is kept, "-name" for lower is better; empty: none is kept."""
    unused_parameters: bool = False
    """Whether some parameters get no gradient in some steps (DDP must look for them)."""

    def __post_init__(self) -> None:
        whole = ("steps", "accumulation", "log_every", "save_every", "keep_last")
        for name in whole:
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "clip_norm", "eval_every"):
            _require(0 <= getattr(self, name) < math.inf, name, "0 or more", getattr(self, name))
        _require(0 <= self.warmup_share <= 1, "warmup_share", "0..1", self.warmup_share)
        _require(0 <= self.ema_decay < 1, "ema_decay", "0..1 without 1", self.ema_decay)
        _require(self.precision in get_args(Precision), "precision", "fp32 or bf16", self.precision)
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", "0..1 without 1", self.betas)

    @property
    def first_weights_left(self) -> float:
        """Share of the weights before the first step in the average after the last one; 0 where there is no average."""
        return self.ema_decay**self.steps

    def learning_rate_at(self, step: int) -> float:
        """Of the update number `step`, from 0: linear warm-up, then half a cosine down to the final rate."""
        warmup = round(self.warmup_share * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.steps - warmup)
        low = self.final_learning_rate
        return low + (self.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def identity(self) -> dict[str, object]:
        """What must be the same for a run to be continued: all but how often something is logged, evaluated or kept, and
        how the batch is cut."""
        names = ("steps", "learning_rate", "final_learning_rate", "warmup_share", "weight_decay", "clip_norm",
                 "precision", "ema_decay", "seed")  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "betas": list(self.betas)}


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(f"TrainSettings: {name}: expected {expected}, got {found!r}")
