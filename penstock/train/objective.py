"""Objective: (model, batch) -> named losses. What a trainer needs to know of a task, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What an objective gives for a batch of B samples."""

    sums: Mapping[str, torch.Tensor]
    """Name -> 0-dimensional sum over the samples that have this loss; connected to the parameters even where none has."""
    per_sample: torch.Tensor | None = None
    """(B,) float, detached: how bad each sample is; names the samples of a NaN and the worst ones."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further sums to be logged as means over all samples: rates, counts."""
    having: Mapping[str, float] = field(default_factory=dict)
    """Name -> samples that had this loss, where only the forward pass can tell: what is logged is the mean over them. Of
    other names it is over those that `counts` said."""


class Objective(Protocol):
    """One task. Each loss is averaged over the samples that have it, over all ranks and accumulation steps.

    One whose weights change in time also has `begin(step)`, which a run calls before each update, counted from 0.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """Of each named loss in the total."""
        ...

    def counts(self, batch: Mapping[str, Any]) -> Mapping[str, float]:
        """How many samples of a batch have each loss. Needs no model: it is asked for before the forward pass."""
        ...

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Losses:
        """The losses of a batch whose tensors are on the model's device."""
        ...
