"""What a dual loop needs of models: one that says what a mask shows, one that finds what was said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class FoundMasks:
    """What a segmenter answers to B captions."""

    logits: "torch.Tensor"
    """(B, h, w): above 0 inside."""
    has_mask: "torch.Tensor"
    """(B,) bool: whether the answer had a mask at all ([SEG], a polygon); logits are below 0 where it had none."""
    answer_loss: "torch.Tensor | None" = None
    """(B,) mean cross-entropy of the answer's tokens, where the model is trained by them."""


class Captioner(Protocol):
    """Mask to words."""

    def captions(self, images: "torch.Tensor", masks: "torch.Tensor") -> list[str]:
        """One caption for each mask; "" where it has none.

        Args:
            images: (B, 3, H, W) float32 0..1 RGB.
            masks: (B, H, W) 0 or 1.
        """
        ...

    def caption_loss(self, images: "torch.Tensor", masks: "torch.Tensor", captions: Sequence[str]) -> "torch.Tensor":
        """(B,) mean cross-entropy of given captions; of "" it is 0, connected to the parameters."""
        ...


class SoftCaptioner(Captioner, Protocol):
    """A captioner through whose words a gradient passes."""

    def soft_captions(self, images: "torch.Tensor", masks: "torch.Tensor") -> "torch.Tensor":
        """(B, L, V): one-hot words forward, their probabilities backward (straight-through)."""
        ...


class Segmenter(Protocol):
    """Words to mask."""

    def segment(
        self, images: "torch.Tensor", captions: "Sequence[str] | torch.Tensor", masks: "torch.Tensor | None" = None
    ) -> FoundMasks:
        """The mask of what each caption says.

        Args:
            images: (B, 3, H, W) float32 0..1 RGB.
            captions: B texts, or soft words (B, L, V) of a `SoftCaptioner`.
            masks: (B, H, W) of the truth, for models that learn from an answer in tokens; None: none is learned.
        """
        ...
