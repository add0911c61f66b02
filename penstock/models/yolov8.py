"""YOLOv8's backbone: CSPDarknet with C2f blocks and SPPF. Written from the published figures; no code of ultralytics or mmyolo.

Weights have mmyolo's names; ultralytics' are understood.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from penstock.errors import UsageError
from penstock.models.student_network import Backbone, require_strides

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "n": ((16, 32, 64, 128, 256), (1, 2, 2, 1)),
    "s": ((32, 64, 128, 256, 512), (1, 2, 2, 1)),
    "m": ((48, 96, 192, 384, 576), (2, 4, 4, 2)),
    "l": ((64, 128, 256, 512, 512), (3, 6, 6, 3)),
    "x": ((80, 160, 320, 640, 640), (3, 6, 6, 3)),
}
"""Channels of the stem (stride 2) and of the stages of strides 4, 8, 16, 32; C2f's bottlenecks in each stage."""
STRIDES = (4, 8, 16, 32)
_EPSILON, _MOMENTUM = 1e-3, 0.03

_NUMBERED = re.compile(r"(?:model\.)+(\d+)\.(.+)")
_OTHER_PARTS = re.compile(r"(neck|bbox_head)\.")


class YoloV8(Backbone):
    """YOLOv8's backbone, of one of the published sizes, cut after the last stage that is wanted.

    Args:
        size: a key of `SIZES`.
        strides: that are wanted, ascending, in pixels.

    Raises:
        UsageError: no such size or stride.
    """

    def __init__(self, size: str, strides: Sequence[int]) -> None:
        super().__init__()
        if size not in SIZES:
            raise UsageError(f"backbone yolov8:{size}: expected a size of {', '.join(SIZES)}")
        self.spec = f"yolov8:{size}"
        require_strides(self.spec, strides, STRIDES)
        widths, depths = SIZES[size]
        self.channels = {stride: widths[STRIDES.index(stride) + 1] for stride in strides}
        self._last = STRIDES.index(strides[-1])
        self.stem = ConvNorm(3, widths[0], 3, stride=2)
        for number in range(self._last + 1):
            before, width = widths[number : number + 2]
            layers = [ConvNorm(before, width, 3, stride=2), C2f(width, depths[number])]
            self.add_module(
                f"stage{number + 1}", nn.Sequential(*layers, *([Sppf(width)] if STRIDES[number] == 32 else []))
            )

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """See `Backbone`."""
        found = []
        features = self.stem(pixels)
        for number, stride in enumerate(STRIDES[: self._last + 1]):
            features = getattr(self, f"stage{number + 1}")(features)
            if stride in self.channels:
                found.append(features)
        return found

    def own_name(self, name: str) -> str:
        """ultralytics' `model.4.m.0.cv1.conv.weight` is `stage2.1.blocks.0.conv1.conv.weight`."""
        match = _NUMBERED.fullmatch(name)
        if not match:
            return name
        layer, rest = int(match[1]), match[2]
        if layer == 0:
            return f"stem.{rest}"
        if layer == 9:
            return "stage4.2." + rest.replace("cv", "conv", 1)
        if layer > 9:
            return f"neck.{layer}.{rest}"
        stage = f"stage{(layer + 1) // 2}"
        if layer % 2:
            return f"{stage}.0.{rest}"
        if rest.startswith("m."):
            return f"{stage}.1.blocks." + rest[2:].replace("cv", "conv", 1)
        return f"{stage}.1." + re.sub(r"^cv1\.", "main_conv.", re.sub(r"^cv2\.", "final_conv.", rest))

    def published_name(self, name: str) -> str:
        """mmyolo's: `backbone.stem.conv.weight`."""
        return f"backbone.{name}"

    def is_spare(self, name: str) -> bool:
        """The stages after the last one that is wanted, and the detector's neck and head."""
        match = re.match(r"stage([1-4])\.", name)
        return int(match[1]) > self._last + 1 if match else _OTHER_PARTS.match(name) is not None


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, SiLU. (B, C, h, w) -> (B, out, h / stride, w / stride)."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=_EPSILON, momentum=_MOMENTUM)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return F.silu(self.bn(self.conv(features)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions and the way around them. (B, C, h, w) stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(channels, channels, 3), ConvNorm(channels, channels, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        found: torch.Tensor = features + self.conv2(self.conv1(features))
        return found


class C2f(nn.Module):
    """Half of the channels goes through bottlenecks; every result on the way is joined. (B, C, h, w) stays."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.main_conv = ConvNorm(channels, channels, 1)
        self.blocks = nn.ModuleList([Bottleneck(half) for _ in range(depth)])
        self.final_conv = ConvNorm((2 + depth) * half, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        parts = list(self.main_conv(features).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        joined: torch.Tensor = self.final_conv(torch.cat(parts, dim=1))
        return joined


class Sppf(nn.Module):
    """Largest values within 5, 9 and 13 cells, beside the features themselves. (B, C, h, w) stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(channels, channels // 2, 1), ConvNorm(channels * 2, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        parts = [self.conv1(features)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        joined: torch.Tensor = self.conv2(torch.cat(parts, dim=1))
        return joined
