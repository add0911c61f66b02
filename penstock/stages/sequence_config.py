"""Settings of the crops of tracking samples. The defaults are those of the STARK and OSTrack training code."""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from penstock.errors import UsageError

ATTENTION_STRIDE = 16
"""Pixels of the crop per cell of the attention mask that the network makes of it."""


@dataclass(frozen=True, kw_only=True)
class RoleCrop:
    """How the pictures of one role are cropped."""

    factor: float
    """Side of the crop over sqrt(w * h) of the box it is made around."""
    size: int
    """Side of the crop as fed, in pixels; a multiple of 16 for most networks, 16 at least."""
    center_jitter: float = 0.0
    """The centre moves by up to half of this times sqrt(w * h)."""
    scale_jitter: float = 0.0
    """Width and height are multiplied by exp(normal * this), each on its own."""

    def __post_init__(self) -> None:
        if not (0 < self.factor <= 1000 and 0 <= self.center_jitter <= 1000 and 0 <= self.scale_jitter <= 10):
            raise UsageError(
                f"crop: expected a factor above 0 and up to 1000, center_jitter of 0..1000, scale_jitter of 0..10, got {self}"
            )
        if not ATTENTION_STRIDE <= self.size <= 1 << 12:
            raise UsageError(f"crop: expected a size of {ATTENTION_STRIDE}..4096 pixels, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What is done to a sample. The defaults are the original's."""

    template: RoleCrop = field(default_factory=lambda: RoleCrop(factor=2.0, size=128))
    search: RoleCrop = field(
        default_factory=lambda: RoleCrop(factor=4.0, size=256, center_jitter=3.0, scale_jitter=0.25)
    )
    gray_prob: float = 0.05
    """That all pictures of a sample are gray."""
    flip_prob: float = 0.5
    """That all of them are mirrored, before the crop."""
    frame_flip_prob: float = 0.5
    """That a crop is mirrored, each on its own."""
    brightness: float = 0.2
    """Each crop is multiplied by a number in 1 - this .. 1 + this."""
    history: Literal["mapped", "original"] = "mapped"
    """"original": the histories are not mirrored with the pictures, and a step without a box has zeros."""
    normalize_history: bool = False
    """Histories as fed are divided by the picture's width and height and clipped to 0..1 (the original's TIMProcessing);
    else they are in pixels (its STARKProcessing)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("gray_prob", "flip_prob", "frame_flip_prob", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}: expected 0..1, got {getattr(self, name)}")
        if self.history not in ("mapped", "original"):
            raise UsageError(f"history: expected mapped or original, got {self.history!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise UsageError(f"mean and std: expected three numbers each, std above 0, got {self.mean} and {self.std}")

    def without_augmentation(self) -> "CropConfig":
        """The same crops with nothing random: for evaluation and for looking."""
        return replace(
            self,
            template=replace(self.template, center_jitter=0.0, scale_jitter=0.0),
            search=replace(self.search, center_jitter=0.0, scale_jitter=0.0),
            gray_prob=0.0,
            flip_prob=0.0,
            frame_flip_prob=0.0,
            brightness=0.0,
        )

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 RGB to what the network is fed: (n, 3, S, S) float32, (value / 255 - mean) / std."""
        mean, std = np.array([self.mean, self.std], np.float32)
        scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def denormalised(self, images: np.ndarray) -> np.ndarray:
        """The inverse of `normalised`: (n, 3, S, S) floats to (n, S, S, 3) uint8, rounded, clipped to 0..255."""
        mean, std = np.array([self.mean, self.std], np.float32)
        values = np.rint((images.transpose(0, 2, 3, 1) * std + mean) * np.float32(255))
        pixels: np.ndarray = np.clip(values, 0, 255).astype(np.uint8)
        return pixels

    def identity(self) -> dict[str, object]:
        """Plain values, nested as the configuration is: for a recipe."""
        values: dict[str, object] = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}
