"""The student: a backbone, 1x1 adapters to the teacher's levels, an edge head. B pictures, S x S pixels, C channels."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from penstock.errors import UsageError
from penstock.models.distill_protocols import EDGE, Level

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, RGB of 0..1: what every student is fed, whatever its backbone was trained with before."""
EDGE_STRIDE, EDGE_SIDE, EDGE_CHANNELS = 4, 256, 64
_EDGE_SHARE = 0.05
"""Share of edge pixels that an edge head begins with."""
_GROUPS = 8


class Backbone(nn.Module):
    """Normalised pixels to features, one map per stride asked for; cut after the last of them.

    Names of weights: a file has published names, the module has its own. The base class takes them for the same.
    """

    spec: str
    """As `open_student` takes it, complete: `yolov8:s`."""
    channels: dict[int, int]
    """Of each stride that it gives, from high to low resolution."""

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of each stride of `channels`, in its order.

        Args:
            pixels: (B, 3, S, S) float32 RGB, normalised.

        Returns:
            (B, channels[stride], S / stride, S / stride) float each, rounded up where S is no multiple.
        """
        raise NotImplementedError

    def own_name(self, name: str) -> str:
        """The module's name for a published one; the same where it knows none."""
        return name

    def published_name(self, name: str) -> str:
        """The published name for one of the module's: what other libraries load."""
        return name

    def is_spare(self, name: str) -> bool:
        """Whether a file may hold this (an `own_name`) although the module does not: a classifier, stages that are cut."""
        return False

    def reparameterise(self) -> None:
        """Joins branches into single convolutions, in place, where the architecture has such a form for inference."""


def require_strides(spec: str, wanted: Sequence[int], there: Sequence[int]) -> None:
    """Refuses strides that a backbone does not give.

    Args:
        spec: of the backbone, for the message.
        wanted: in pixels; must be given by ascending stride, each once.
        there: in pixels.

    Raises:
        UsageError: one of them is not there, or none is wanted.
    """
    lacking = [stride for stride in wanted if stride not in there]
    if lacking or not wanted:
        known = ", ".join(str(stride) for stride in sorted(set(there)))
        raise UsageError(
            f"backbone {spec}: expected levels of its strides ({known}), got {lacking or 'none'}"
            + (f"; edges need {EDGE_STRIDE}: set edge_weight to 0" if lacking == [EDGE_STRIDE] else "")
        )


class EdgeHead(nn.Module):
    """Edge logits of a map of stride 4: 1x1, depthwise 3x3, 1x1, with GroupNorm and SiLU, at 256 x 256.

    Of 64 channels, as the original's head asks; its script gives it 256 and does not start. What comes before the first norm
    is done at the map's own size: resizing is linear too. It begins by saying about 5 % everywhere. Unlike the original's
    its last weights do not begin at zero, at which no gradient would pass.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(channels, EDGE_CHANNELS, 1)
        self.narrow = nn.Conv2d(EDGE_CHANNELS, EDGE_CHANNELS, 1, bias=False)
        self.narrow_norm = nn.GroupNorm(_GROUPS, EDGE_CHANNELS)
        self.depthwise = nn.Conv2d(EDGE_CHANNELS, EDGE_CHANNELS, 3, padding=1, groups=EDGE_CHANNELS, bias=False)
        self.depthwise_norm = nn.GroupNorm(_GROUPS, EDGE_CHANNELS)
        self.out = nn.Conv2d(EDGE_CHANNELS, 1, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.constant_(self.out.bias, math.log(_EDGE_SHARE / (1 - _EDGE_SHARE)))  # type: ignore[arg-type]  # it has one

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) float of stride 4 -> (B, 1, 256, 256) logits."""
        found = resized(self.narrow(self.adapter(features)), EDGE_SIDE)
        found = F.silu(self.narrow_norm(found))
        found = F.silu(self.depthwise_norm(self.depthwise(found)))
        logits: torch.Tensor = self.out(found)
        return logits


class Student(nn.Module):
    """Pictures to what the teacher says of them.

    Args:
        backbone: that gives the strides of all levels, and stride 4 where there is an edge head.
        levels: the teacher's levels that are learned, by name.
        edge_head: whether edges are predicted as well.
        image_size: side of the square pictures, in pixels; others work too, but an export is for this one.

    Raises:
        UsageError: the backbone lacks a stride.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone, levels: Mapping[str, Level], *, edge_head: bool, image_size: int) -> None:
        super().__init__()
        require_strides(backbone.spec, strides_of(levels, edge_head), list(backbone.channels))
        self.levels, self.image_size = dict(levels), image_size
        self.backbone = backbone
        self.adapters = nn.ModuleDict(
            {name: nn.Conv2d(backbone.channels[level.stride], level.channels, 1) for name, level in levels.items()}
        )
        self.edge_head = EdgeHead(backbone.channels[EDGE_STRIDE]) if edge_head else None
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the student sees.

        Args:
            image: (B, 3, S, S) uint8 RGB, or float of 0..255.

        Returns:
            name of each level -> (B, C, h, w) float of the teacher's shape; "edge" -> (B, 1, 256, 256) logits where there
            is an edge head.
        """
        maps = self.backbone_maps(image)
        found = {
            name: resized(self.adapters[name](maps[level.stride]), level.side) for name, level in self.levels.items()
        }
        return found if self.edge_head is None else {**found, EDGE: self.edge_head(maps[EDGE_STRIDE])}

    @property
    def outputs(self) -> list[str]:
        """Names of what `forward` gives, in its order."""
        return [*self.levels, *([] if self.edge_head is None else [EDGE])]

    def backbone_maps(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """The backbone's own features, before adapters.

        Args:
            image: as of `forward`.

        Returns:
            stride -> (B, C, S / stride, S / stride) float.
        """
        pixels = (image.float() / 255 - self.mean) / self.std
        return dict(zip(self.backbone.channels, self.backbone(pixels), strict=True))


def strides_of(levels: Mapping[str, Level], edge_head: bool) -> list[int]:
    """Strides that a backbone must give, ascending, in pixels."""
    return sorted({level.stride for level in levels.values()} | ({EDGE_STRIDE} if edge_head else set()))


def resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(B, C, h, w) float -> (B, C, side, side), bilinear; as it is where it has that size."""
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
