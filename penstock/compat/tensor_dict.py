"""TensorDict: the dictionary that the original samplers give. A tensor's method called on it is called on every tensor in it."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from penstock.errors import MissingExtra

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "train", "TensorDict") from error


class TensorDict(OrderedDict[str, Any]):
    """Fields by name: tensors, and whatever else a sample holds.

    `data.to(device)`, `data.float()` and every other public method of `torch.Tensor` that a dict does not have itself give a
    new TensorDict in which each tensor, also those in lists and in dicts, went through that method; other values stay.
    """

    def __getattr__(self, name: str) -> Callable[..., "TensorDict"]:
        if name.startswith("_") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}, and neither has a tensor")

        def forward(*args: object, **kwargs: object) -> TensorDict:
            return self.apply(lambda tensor: getattr(tensor, name)(*args, **kwargs))

        return forward

    def apply(self, function: Callable[[torch.Tensor], object]) -> "TensorDict":
        """A new TensorDict in which each tensor is what the function gives for it."""
        return TensorDict({name: _applied(value, function) for name, value in self.items()})

    def concat(self, other: "TensorDict") -> "TensorDict":
        """The fields of both; those of `other` go before."""
        return TensorDict({**self, **other})


def _applied(value: Any, function: Callable[[torch.Tensor], object]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, TensorDict):
        return value.apply(function)
    if isinstance(value, dict):
        return {name: _applied(one, function) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_applied(one, function) for one in value]
    return value
