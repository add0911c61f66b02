"""What a family of models gives: the network, its transform, the hash of its weights. Also devices and that hash."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from penstock.errors import MissingExtra, UsageError
from penstock.models.protocols import PictureTransform

if TYPE_CHECKING:
    import torch
    from PIL import Image

_BLOCK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model, opened. A family is a function (name, device as asked for) -> Opened."""

    network: Callable[..., Any]
    """(N, 3, h, w) float32 normalised pixels -> its output. A torch module, or anything that can be called."""
    device: str
    """"cpu" or "cuda:0", settled."""
    transform: PictureTransform
    prepare: "Callable[[Image.Image], np.ndarray]"
    """The model's own transform: an RGB picture to (3, h, w) float32."""
    weights: str
    """Hash of the weights, as text."""
    vectors: "Callable[[Any], torch.Tensor]" = lambda output: output
    """The network's output -> (N, D), not yet of norm 1."""
    encode_texts: "Callable[[Sequence[str]], torch.Tensor] | None" = None
    """Texts -> (N, D), not yet of norm 1; None where the model has no text tower."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """More that the vectors depend on; plain values, for the identity."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions are worth recording."""


def require_torch(extra: str) -> None:
    """Imports torch.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("torch", extra, "embedding") from error


def torch_device(asked: str) -> str:
    """The device that "auto", "cpu", "cuda" or "cuda:1" means on this machine: "cpu" or "cuda:N".

    Raises:
        UsageError: no such device here, or none that is known.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda:0" if count else "cpu"
    if asked == "cpu":
        return asked
    name, _, number = asked.partition(":")
    if name != "cuda" or not (number.isdecimal() or asked == "cuda"):
        raise UsageError(f"device {asked!r}: expected auto, cpu, cuda or cuda:N")
    if not count:
        built = "" if torch.version.cuda else f"; torch {torch.__version__} is built without CUDA"
        raise UsageError(f"device {asked!r}: no CUDA device on this machine{built}: use --device cpu or auto")
    if int(number or 0) >= count:
        raise UsageError(f"device {asked!r}: this machine has {count}, numbered from 0")
    return f"cuda:{int(number or 0)}"


def hash_state(state: "Mapping[str, torch.Tensor]") -> str:
    """Hash of a state dict: names, types, shapes and bytes, by name; the same wherever the tensors lie."""
    import torch

    digest = xxhash.xxh3_128()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"xxh3_128:{digest.hexdigest()}"


def hash_files(paths: Sequence[Path]) -> str:
    """Hash of files' bytes, one after the other."""
    digest = xxhash.xxh3_128()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Version of each installed distribution."""
    return {name: version(name) for name in packages}
