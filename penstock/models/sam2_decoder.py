"""SAM2's prompt encoder and mask decoder alone: a box and the features of a picture to a mask. Frozen; it judges features.

B pictures, C channels, h x w cells, a square of S x S pixels (S = 16 h).
"""

import re
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import nn

from penstock.errors import UsageError
from penstock.models.distill_protocols import level_name
from penstock.models.sam2_config import config_facts
from penstock.models.sam2_weights import Sam2Weights, build

VERSION = 1
"""Of this code, in the identity: goes up when masks change."""

_NOT_TRAINED = re.compile(r"(conv_s[01]|iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.[1-9])\.")
"""Parameters of the mask decoder that the mask of one box does not pass: skips, scores, the other masks."""


class Sam2Decoder(nn.Module):
    """A `MaskDecoder` over transformers' SAM2, on P4_S16.

    Features are those of the pyramid as a teacher gives them; the "no memory" embedding, which SAM2's own predictor adds
    before its decoder, is added here. The decoder's skips from strides 4 and 8 are off, as in the original
    distillation: a student gives P4_S16 alone. What comes out is what SAM2 predicts with zeros in their place, so the
    teacher's own masks are coarser than its predictor's: they, and no perfect mask, are the ceiling of a student's.

    One mask for a box, by SAM2's own rule: the mask for sure prompts, or, where that one is unstable, the best of the three
    others. A loss looks at the mask that is judged.

    Args:
        weights: from `open_weights`.
        model_type: what they were asked for by.
    """

    no_memory: torch.Tensor
    positions: torch.Tensor

    def __init__(self, weights: Sam2Weights, *, model_type: str) -> None:
        super().__init__()
        network = build(weights)
        config = weights.config.prompt_encoder_config
        self.image_size = int(config.image_size)
        self.channels = int(config.hidden_size)
        stride = int(config.patch_size)
        self.level = level_name(stride)
        self.side = self.image_size // stride
        """h = w."""
        self.prompt_encoder, self.mask_decoder = network.prompt_encoder, network.mask_decoder
        self.register_buffer("no_memory", network.no_memory_embedding.detach().reshape(1, -1, 1, 1))
        self.register_buffer("positions", network.get_image_wide_positional_embeddings(), persistent=False)
        self._identity = {
            "decoder": "sam2",
            "version": VERSION,
            "model_type": model_type,
            "weights": weights.digest,
            **config_facts(weights.config),
            **({"random_weights": True} if weights.is_random else {}),
        }

    def identity(self) -> Mapping[str, object]:
        """Hash of all weights, the encoder's too, which is the teacher's; architecture; `random_weights` where masks mean
        nothing. Plain values. Of a trainable copy: what it began with."""
        return self._identity

    def trainable_copy(self) -> "Sam2Decoder":
        """A copy whose mask decoder learns: every parameter that shapes the mask, none that a gradient never reaches. It
        always gives the mask for sure prompts, as SAM2's own training: what chooses another one is not trained with it."""
        copy = deepcopy(self)
        copy.mask_decoder.dynamic_multimask_via_stability = False
        for name, value in copy.mask_decoder.named_parameters():
            value.requires_grad_(not _NOT_TRAINED.match(name))
        return copy

    def forward(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """One mask for the box of each picture. Boxes are encoded in float32 under any autocast: in bfloat16 a coordinate
        would be off by pixels. Half a pixel of the square is added to them, as SAM2 does.

        Args:
            features: (B, C, h, w) float of any precision, as the teacher gives them.
            boxes: (B, 4) float XYXY in pixels of the square, 0..S.

        Returns:
            (B, 4 h, 4 w) float32 logits, above 0 inside, over the whole square.

        Raises:
            UsageError: other shapes.
        """
        count, cells = len(features), (self.channels, self.side, self.side)
        if tuple(features.shape) != (count, *cells) or tuple(boxes.shape) != (count, 4):
            raise UsageError(
                f"decoder: expected {self.level} of (B, {', '.join(map(str, cells))}) and boxes of (B, 4), "
                f"got {tuple(features.shape)} and {tuple(boxes.shape)}"
            )
        if not count:
            return features.float().reshape(0, 4 * self.side, 4 * self.side)
        with torch.autocast(features.device.type, enabled=False):
            sparse, dense = self.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes.float()[:, None], input_masks=None
            )
        no_skip = self.positions.new_zeros(1, 1, 1, 1)
        logits, _, _, _ = self.mask_decoder(
            image_embeddings=features.float() + self.no_memory,
            image_positional_embeddings=self.positions.expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            high_resolution_features=[no_skip, no_skip],
        )
        found: torch.Tensor = logits[:, 0, 0].float()
        return found

    def train(self, mode: bool = True) -> "Sam2Decoder":
        """Stays in eval mode: nothing in it behaves otherwise in training but the choice of the mask, which is settled."""
        return super().train(False)
