"""What distillation asks of its models: a teacher, a student, a frozen decoder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from penstock.errors import UsageError

if TYPE_CHECKING:
    import torch

_LEVEL = re.compile(r"P(\d+)_S(\d+)")
EDGE = "edge"
"""Name of a student's edge logits among its outputs."""
STAND_IN = "stand-in"
"""Model type of the teacher and decoder without weights."""
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher is opened."""

    weights: str | None = None
    """A file, a folder of transformers, or OWNER/NAME of the hub; None: where the model type's own lie."""
    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"."""
    download: bool = False
    """Whether the hub may be asked for what is not on this machine."""
    precision: Precision = "fp32"
    image_size: int | None = None
    """Side of the square that it sees, in pixels; None: its own."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a feature pyramid: `P4_S16` is (channels, side, side), one column per 16 x 16 pixels of the input."""

    name: str
    stride: int
    channels: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.channels, self.side, self.side)


def level_stride(name: str) -> int:
    """The stride in a level's name, in pixels: 16 of `P4_S16`.

    Raises:
        UsageError: it is no such name, or number and stride disagree (P4 is 2**4 = 16).
    """
    match = _LEVEL.fullmatch(name)
    if not match or 1 << int(match[1]) != int(match[2]):
        raise UsageError(f"level {name!r}: expected P2_S4, P3_S8, P4_S16 or P5_S32")
    return int(match[2])


def level_name(stride: int) -> str:
    """The name of the level of a stride, a power of 2 in pixels: `P4_S16` of 16."""
    return f"P{stride.bit_length() - 1}_S{stride}"


class Teacher(Protocol):
    """Pictures to the features of a pyramid. Pickles without its weights, which are read again where they are needed."""

    name: str
    """What is recorded as `model_type`: the weights' own name, "stand-in" where they are none."""
    device: str
    image_size: int
    """Side of the square that the model sees, in pixels; pictures are stretched to it."""
    levels: Mapping[str, Level]
    """All that it can give, by name, from high to low resolution."""

    def identity(self) -> Mapping[str, object]:
        """What the features depend on: hash of the weights, architecture, precision. Plain values."""
        ...

    def libraries(self) -> Mapping[str, str]:
        """Version of each library that they were made with: recorded, never compared."""
        ...

    def features(self, images: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
        """Pictures, (H, W, 3) uint8 RGB each, to name -> (N, C, h, w) float32 on `device`."""
        ...


class MaskDecoder(Protocol):
    """A teacher's prompt encoder and mask decoder, frozen: what judges features. Gradients pass to the features alone."""

    level: str
    """Of the features that it takes: `P4_S16`."""
    channels: int
    image_size: int
    """Side of the square that boxes are counted in, in pixels."""

    def identity(self) -> Mapping[str, object]:
        """Hash of the weights, architecture; plain values."""
        ...

    def __call__(self, features: "torch.Tensor", boxes: "torch.Tensor") -> "torch.Tensor":
        """One mask for the box of each picture.

        Args:
            features: (B, C, h, w) float, as the teacher gives them.
            boxes: (B, 4) float XYXY in pixels of the square, 0..image_size.

        Returns:
            (B, 4 h, 4 w) float32 logits, above 0 inside, over the whole square.
        """
        ...
