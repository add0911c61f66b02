"""The double of an embedder: a small real network with fixed random weights, so that tests need no download.

Pictures that look alike get vectors that are close; what the pictures show means nothing to it.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import UsageError
from penstock.models.opened import Opened, hash_state, require_torch, torch_device
from penstock.models.protocols import PictureTransform
from penstock.models.transform import picture_pixels

if TYPE_CHECKING:
    import torch

_DEFAULTS = {"dim": 64, "size": 32, "seed": 0}
_FILTERS, _KERNEL, _GRID = 24, 5, 4


def open_tiny(name: str, device: str) -> Opened:
    """A small deterministic double for tests: one convolution, pooling and a projection, with weights fixed by a seed.

    Args:
        name: "" or "dim=64,size=32,seed=0", any of them.
        device: as asked for.

    Raises:
        UsageError: an option that is not there, or a value out of range.
    """
    options = {**_DEFAULTS, **_parse(name)}
    if not 1 <= options["dim"] <= 4096 or not 8 <= options["size"] <= 1024:
        raise UsageError(f"tiny:{name}: expected dim of 1 to 4096 and size of 8 to 1024")
    require_torch("train")
    network = _build(options["dim"], options["seed"])
    transform = PictureTransform(size_hw=(options["size"], options["size"]))
    return Opened(
        network=network,
        device=torch_device(device),
        transform=transform,
        prepare=lambda picture: picture_pixels(picture, transform),
        weights=hash_state(network.state_dict()),
        facts={"double": True},
        packages=("torch",),
    )


def _parse(name: str) -> dict[str, int]:
    options: dict[str, int] = {}
    for part in name.split(",") if name else []:
        match = re.fullmatch(r"(\w+)=(\d+)", part.strip())
        if match is None or match[1] not in _DEFAULTS or match[1] in options:
            raise UsageError(f"tiny:{name}: expected each of {', '.join(_DEFAULTS)} once at most, as name=number")
        options[match[1]] = int(match[2])
    return options


def _build(dim: int, seed: int) -> "torch.nn.Sequential":
    """Weights come from NumPy, whose generators give the same numbers in every version; torch's do not promise it."""
    import torch

    generator = np.random.default_rng(seed)
    kernels = generator.standard_normal((_FILTERS, 3, _KERNEL, _KERNEL), np.float32) / np.float32(_KERNEL)
    kernels[_FILTERS // 2 :] -= kernels[_FILTERS // 2 :].mean(axis=(2, 3), keepdims=True)  # half see edges, not colour
    features = _FILTERS * _GRID * _GRID
    projection = generator.standard_normal((dim, features), np.float32) / np.float32(features**0.5)
    convolution = torch.nn.Conv2d(3, _FILTERS, _KERNEL, stride=2, padding=_KERNEL // 2, bias=False)
    linear = torch.nn.Linear(features, dim)
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(kernels))
        linear.weight.copy_(torch.from_numpy(projection))
        linear.bias.copy_(torch.from_numpy(generator.standard_normal(dim, np.float32) * np.float32(0.01)))
    pool = torch.nn.AdaptiveAvgPool2d(_GRID)
    return torch.nn.Sequential(convolution, torch.nn.LeakyReLU(0.2), pool, torch.nn.Flatten(), linear)
