"""Reads a file of weights safely: tensors by name, from .safetensors or from torch's own format; no code in it is run."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import BadData, MissingExtra, SourceNotFound

if TYPE_CHECKING:
    import torch

CONTAINERS = ("state_dict", "model")
"""Keys under which checkpoints keep their weights."""
_LISTED = 3


def read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file, by the file's own names, on the CPU.

    Args:
        path: a .safetensors; anything else is read as torch's: a state dict, or one under a key of `CONTAINERS`.

    Raises:
        SourceNotFound: no such file.
        BadData: it is damaged, or holds more than tensors where the weights should be.
        MissingExtra: safetensors is not installed.
    """
    import torch

    content = _safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    inner = [
        content[key] for key in CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
    ]
    state = inner[0] if inner else content
    if not isinstance(state, Mapping) or not state:
        raise BadData(f"{path}: expected weights by name, got {type(state).__name__}")
    wrong = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if wrong:
        raise BadData(f"{path}: expected tensors by name, got another thing at {wrong[0]!r}")
    return dict(state)


def differences(wanted: "Mapping[str, torch.Tensor]", found: "Mapping[str, torch.Tensor]") -> str:
    """In words, how weights differ in names and shapes from those that a model takes; empty if they fit.

    Args:
        wanted: the model's.
        found: those that it is given.

    Returns:
        Counts with the first names, as "2 missing (a, b); 1 of another shape (c: expected (4,), got (3,))".
    """
    wrong = {
        "missing": [name for name in wanted if name not in found],
        "not expected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name}: expected {tuple(value.shape)}, got {tuple(found[name].shape)}"
            for name, value in wanted.items()
            if name in found and found[name].shape != value.shape
        ],
    }
    return counted(wrong)


def counted(wrong: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with names of weights, "missing" or "not expected": how many, and the first; what none has is left out."""
    return "; ".join(f"{len(names)} {what} ({listed(names)})" for what, names in wrong.items() if names)


def listed(names: Sequence[str]) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def read_torch(path: Path) -> object:
    """What is in a file of torch's own format, tensors on the CPU. No code in it is run.

    Raises:
        SourceNotFound: no such file.
        BadData: it is damaged, or holds more than tensors and plain values.
    """
    import torch

    _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        # what torch says before is how to load it all the same, and so to run it
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0] or type(error).__name__
        raise BadData(
            f"{path}: expected a file that holds tensors only, got a damaged or another one: {reason}. Of a pickled model, "
            "as ultralytics and mmengine write them, save its state_dict() alone, where its code is trusted"
        ) from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise SourceNotFound(f"{path}: no such file of weights")


def _safetensors(path: Path) -> object:
    _require_file(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra("safetensors", "safetensors", f"reading {path}") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadData(f"{path}: not a safetensors file, or a damaged one: {error}") from error
