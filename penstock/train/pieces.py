"""Pieces that the training loop is made of: cutting batches, seeding, the optimiser, the names of samples."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from penstock.errors import UsageError
from penstock.samplers import mix
from penstock.train.objective import Losses, Objective
from penstock.train.settings import TrainSettings

Batch = Mapping[str, Any]
_LEFT = 0.1
"""Share of the first weights in the average at the end, above which it is no average of the training."""
_log = logging.getLogger(__name__)


class Whole(nn.Module):
    """Model and objective as one module, so that whatever the objective calls runs inside DDP's forward."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch."""
        return self._objective(self.model, batch)


def require_trainable(model: nn.Module) -> None:
    """Refuses a model whose weights are not float32, or that has none.

    Raises:
        UsageError: see above.
    """
    wrong = [name for name, value in model.named_parameters() if value.requires_grad and value.dtype != torch.float32]
    if wrong:
        raise UsageError(
            f"train: expected float32 parameters (precision=bf16 computes in bfloat16 over them), got {wrong[0]} and "
            f"{len(wrong) - 1} others; at small learning rates bfloat16 weights do not move"
        )
    if not any(value.requires_grad for value in model.parameters()):
        raise UsageError("train: the model has no parameter that is trained")


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over what is trained; weight decay on matrices and filters alone."""
    trained = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, betas=settings.betas
    )


def warn_of_slow_average(settings: TrainSettings) -> None:
    """Says where the average that is evaluated is still mostly the weights before the first step."""
    if settings.first_weights_left > _LEFT:
        _log.warning(
            "penstock: ema_decay %g: after %d steps the first weights still make up %.0f%% of the average, which is what is "
            "evaluated: take a lower decay, or 0",
            settings.ema_decay,
            settings.steps,
            100 * settings.first_weights_left,
        )


def seed_step(*values: int) -> None:
    """Seeds the generators of torch, NumPy and Python from numbers of 0..2**64-1: (seed, step, rank)."""
    seed = mix(*values) & (2**63 - 1)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # the global one, which whatever a model calls may draw from
    random.seed(seed)


def num_samples(batch: Batch) -> int:
    """B of a batch: the length that its values share."""
    return min((len(value) for value in batch.values()), default=0)


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its arrays and tensors as tensors on a device; other values as they are."""
    moved: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        moved[name] = value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
    return moved


def pieces_of(batch: Batch, count: int, pieces: int) -> Iterator[dict[str, Any]]:
    """The batch in contiguous pieces, at most one of another length than the rest; never an empty one."""
    if not count:
        raise UsageError("train: this rank's share of a batch is empty; use a loader whose ranks all have one")
    size = -(-count // pieces)
    for start in range(0, count, size):
        yield {name: value[start : start + size] for name, value in batch.items()}


def added(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    total: dict[str, float] = {}
    for one in values:
        for name, value in one.items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


def gradient_norm(model: nn.Module) -> float:
    """Of all gradients together."""
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def sample_keys(batch: Batch) -> list[str]:
    """What names the samples: the row's key, else its position in the batch."""
    if hasattr(batch, "row_keys"):
        rows: list[str] = batch.row_keys()
        return [f"{one} ({key})" for one, key in zip(batch["key1"], rows, strict=True)] if "key1" in batch else rows
    named = batch.get("key1", batch.get("key"))
    return list(named) if named is not None else [f"number {number}" for number in range(num_samples(batch))]
