"""An exponential moving average of a model's parameters, in float32, under the names of the unwrapped model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from penstock.errors import UsageError


class Ema:
    """average = decay * average + (1 - decay) * parameter, after each step; buffers are copied as they are.

    In float32 whatever the model's type: in bfloat16 a decay of 0.999 does not move at all.

    Args:
        model: unwrapped: without DDP around it.
        decay: 0..1, 1 excluded.

    Raises:
        UsageError: the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"ema_decay: expected 0..1 without 1, got {decay}")
        self.decay = decay
        self._model = model
        self.values = {name: value.detach().float().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters as they are now."""
        for name, value in self._model.named_parameters():
            self.values[name].lerp_(value.detach().float(), 1 - self.decay)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes with the average inside; with its own parameters again afterwards."""
        own = {name: value.detach().clone() for name, value in self._model.named_parameters()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average by name."""
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes an average over.

        Raises:
            UsageError: other names.
        """
        if state.keys() != self.values.keys():
            raise UsageError(
                f"ema: expected the parameters of the model, got {sorted(state.keys() ^ self.values.keys())[:5]}"
            )
        for name, value in state.items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in self._model.named_parameters():
            value.copy_(values[name])
