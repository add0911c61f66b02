"""How good masks are, in sums that add up over batches and ranks without a rest."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from penstock.train.distributed import Ranks


@dataclass(kw_only=True)
class MaskScore:
    """IoU of many masks: sums of float64."""

    samples: float = 0.0
    iou: float = 0.0
    """Sum of each sample's IoU; two empty masks agree: 1."""
    intersection: float = 0.0
    union: float = 0.0

    def take(self, logits: torch.Tensor, masks: torch.Tensor) -> None:
        """Adds samples: logits (B, h, w), above 0 inside, brought to the size of the masks (B, H, W) 0 or 1."""
        found = F.interpolate(logits[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
        wanted = masks > 0
        overlap = (found & wanted).flatten(1).sum(dim=1).double()
        union = (found | wanted).flatten(1).sum(dim=1).double()
        self.samples += len(masks)
        self.iou += float(torch.where(union > 0, overlap / union.clamp(min=1), 1.0).sum())
        self.intersection += float(overlap.sum())
        self.union += float(union.sum())

    def over(self, ranks: Ranks) -> "MaskScore":
        """Of all ranks together; samples must not be on two of them."""
        return MaskScore(**ranks.sums(vars(self)))

    @property
    def giou(self) -> float:
        """gIoU of referring segmentation: the mean of each sample's IoU (LISA, GLaMM). NaN without samples."""
        return self.iou / self.samples if self.samples else float("nan")

    @property
    def ciou(self) -> float:
        """cIoU: all intersections over all unions; large objects count more. NaN without samples."""
        return self.intersection / self.union if self.union else float("nan")
