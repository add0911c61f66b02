"""The stand-in: a teacher and a mask decoder without weights, for where no SAM2 is at hand. Named as such everywhere.

Its features are fixed random functions of colours and gradients at several scales: learnable by a small student, because
they depend on what is seen, and good enough to tell objects from what surrounds them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import UsageError
from penstock.models.distill_protocols import STAND_IN, Level
from penstock.models.opened import require_torch, torch_device, versions
from penstock.models.sam2_pixels import model_pixels

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Raised whenever the same picture would give other features."""
IMAGE_SIZE = 1024
CHANNELS = 256
_SEED = 20261121
_STRIDES = {"P3_S8": 8, "P4_S16": 16, "P5_S32": 32}
_SPREAD = 0.3
"""Weight of how much what is seen varies within a cell."""
_AROUND = {1: 1.0, 3: 0.3, 7: 0.1}
"""Side, in cells, of the neighbourhoods that a cell knows the mean of, and its weight."""
_TEXTURE = 4.0
"""Weight of gradients, which are smaller numbers than colours."""
_MIXING = 0.6
"""How fast features turn with what is seen: low is smooth and easy to learn, high tells more apart."""
_OUTSIDE = 20.0
"""What logits lose where the box does not reach."""
_SHARPNESS = 8.0
"""Logits of what is as surely inside as the middle of the box."""
_RING = 0.25
"""How far around the box a decoder looks, as a share of its sides."""
_RIDGE = 0.05
"""Of the least squares, whose weights sum to 2."""


class StandInTeacher:
    """A `Teacher` without a network: 256 channels at strides 8, 16 and 32 of a square of any multiple of 32 pixels."""

    def __init__(self, *, device: str = "auto", image_size: int = IMAGE_SIZE) -> None:
        """Raises:
        UsageError: no such device, or a side that is no multiple of 32.
        """
        require_torch("train")
        if image_size < 32 or image_size % 32:
            raise UsageError(f"image-size: expected a multiple of 32 with the {STAND_IN}, got {image_size}")
        self.name = STAND_IN
        self.device = torch_device(device)
        self.image_size = image_size
        self.levels: Mapping[str, Level] = {
            name: Level(name=name, stride=stride, channels=CHANNELS, side=image_size // stride)
            for name, stride in _STRIDES.items()
        }

    def identity(self) -> dict[str, object]:
        """Its version; there are no weights."""
        return {"teacher": STAND_IN, "version": VERSION, "weights": STAND_IN, "precision": "fp32",
                "image_size": self.image_size}  # fmt: skip

    def libraries(self) -> dict[str, str]:
        """Of torch."""
        return versions(["torch"])

    def features(self, images: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
        """Pictures, (H, W, 3) uint8 RGB each, to name -> (N, 256, h, w) float32 on `device`, of about unit variance.

        Raises:
            BadData: a picture is none.
        """
        import torch

        with torch.inference_mode():
            pixels = model_pixels(images, self.image_size, self.device)
            seen = _seen(pixels)
            return {name: _level(seen, stride) for name, stride in _STRIDES.items()}


class StandInDecoder:
    """A `MaskDecoder` without weights: for each box it solves for the linear function of the features that best tells the
    middle of the box, +1, from a ring around it, -1 (least squares, ridge), and asks it of every cell. Gradients pass to the
    features, through the solution.

    Features are centred over the picture and made unit vectors first. Beyond the box logits are low.
    """

    level = "P4_S16"

    def __init__(self, *, channels: int = CHANNELS, image_size: int = IMAGE_SIZE) -> None:
        """
        Args:
            channels: of the features; any.
            image_size: side of the square that boxes are counted in, in pixels.
        """
        self.channels = channels
        self.image_size = image_size

    def identity(self) -> dict[str, object]:
        """Its version; there are no weights."""
        return {"decoder": STAND_IN, "version": VERSION, "weights": STAND_IN, "image_size": self.image_size}

    def __call__(self, features: "torch.Tensor", boxes: "torch.Tensor") -> "torch.Tensor":
        """One mask for the box of each picture.

        Args:
            features: (B, C, h, w) float.
            boxes: (B, 4) float XYXY in pixels of the square, 0..image_size.

        Returns:
            (B, 4 h, 4 w) float32 logits, above 0 inside, over the whole square.
        """
        import torch

        features = features.float()
        height, width = features.shape[-2:]
        centred = features - features.mean((2, 3), keepdim=True)
        cells = torch.nn.functional.normalize(centred, dim=1, eps=1e-6)
        boxes = boxes.to(features).float()
        inside = _coverage(boxes, height, width, self.image_size)
        middle = inside * _bump(boxes, height, width, self.image_size)
        around = _coverage(_grown(boxes, _RING), height, width, self.image_size) - inside
        logits = _told_apart(cells, middle, around.clamp(min=0))
        fine = torch.nn.functional.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=False)[
            :, 0
        ]
        return fine - _OUTSIDE * (1 - _coverage(boxes, 4 * height, 4 * width, self.image_size))


def _seen(pixels: "torch.Tensor") -> "torch.Tensor":
    """(N, 8, S, S) of normalised pixels: three colours, two opponents, brightness, and the sizes of its two gradients."""
    import torch

    red, green, blue = pixels.unbind(1)
    light = pixels.mean(1)
    across = torch.nn.functional.pad(light.diff(dim=2), (0, 1)).abs()
    down = torch.nn.functional.pad(light.diff(dim=1), (0, 0, 0, 1)).abs()
    maps = [red, green, blue, red - green, (red + green) / 2 - blue, light, _TEXTURE * across, _TEXTURE * down]
    return torch.stack(maps, 1)


def _level(seen: "torch.Tensor", stride: int) -> "torch.Tensor":
    """(N, 256, h, w): for each cell the mean and the spread of what is seen, and the means of cells around it, mixed by a
    fixed matrix and bent by a sine."""
    import torch

    pool = torch.nn.functional.avg_pool2d
    mean = pool(seen, stride)
    spread = (pool(seen**2, stride) - mean**2).clamp(min=0).sqrt()
    parts = [_SPREAD * spread]
    for side, weight in _AROUND.items():
        parts.append(weight * pool(mean, side, stride=1, padding=side // 2, count_include_pad=False))
    known = torch.cat(parts, 1)
    rng = np.random.default_rng(_SEED + stride)
    mixing = rng.standard_normal((CHANNELS, known.shape[1]), np.float32) * np.float32(_MIXING)
    phase = rng.uniform(-np.pi, np.pi, CHANNELS).astype(np.float32)
    matrix, shift = (torch.from_numpy(values).to(known.device) for values in (mixing, phase))
    mixed = torch.einsum("nkhw,ck->nchw", known, matrix) + shift[:, None, None]
    return 2**0.5 * torch.sin(mixed)


def _coverage(boxes: "torch.Tensor", height: int, width: int, size: int) -> "torch.Tensor":
    """(B, height, width): share of each cell that lies in the box."""
    return (
        _overlap(boxes[:, 1], boxes[:, 3], height, size)[:, :, None]
        * _overlap(boxes[:, 0], boxes[:, 2], width, size)[:, None, :]
    )


def _overlap(low: "torch.Tensor", high: "torch.Tensor", count: int, size: int) -> "torch.Tensor":
    import torch

    edges = torch.arange(count + 1, device=low.device, dtype=torch.float32)
    low, high = low[:, None] * count / size, high[:, None] * count / size
    return (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(0, 1)


def _bump(boxes: "torch.Tensor", height: int, width: int, size: int) -> "torch.Tensor":
    """(B, height, width): 1 at the centre of the box, falling off to its sides as a Gaussian does."""
    import torch

    def along(low: "torch.Tensor", high: "torch.Tensor", count: int) -> "torch.Tensor":
        centres = (torch.arange(count, device=low.device) + 0.5) * size / count
        half = ((high - low) / 2).clamp(min=size / count)
        return torch.exp(-4 * ((centres - (low + high)[:, None] / 2) / half[:, None]) ** 2)

    return along(boxes[:, 1], boxes[:, 3], height)[:, :, None] * along(boxes[:, 0], boxes[:, 2], width)[:, None, :]


def _grown(boxes: "torch.Tensor", by: float) -> "torch.Tensor":
    """Boxes wider and higher by a share of their sides, on each side."""
    import torch

    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes[:, :2] - by * sides, boxes[:, 2:] + by * sides], 1)


def _told_apart(cells: "torch.Tensor", inside: "torch.Tensor", around: "torch.Tensor") -> "torch.Tensor":
    """(B, h, w) logits of (B, C, h, w) unit vectors, from (B, h, w) weights of either kind; 0 where both kinds have none."""
    import torch

    count, _, height, width = cells.shape
    known = torch.cat([cells, torch.ones_like(cells[:, :1])], 1).flatten(2)
    ours, others = (_summing_to_1(weights.flatten(1)) for weights in (inside, around))
    spread = torch.einsum("bcn,bn,bdn->bcd", known, ours + others, known)
    spread = spread + _RIDGE * torch.eye(known.shape[1], device=cells.device)
    wanted = torch.einsum("bcn,bn->bc", known, ours - others)
    solved = torch.linalg.solve(spread, wanted)
    return _SHARPNESS * torch.einsum("bcn,bc->bn", known, solved).view(count, height, width)


def _summing_to_1(weights: "torch.Tensor") -> "torch.Tensor":
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
