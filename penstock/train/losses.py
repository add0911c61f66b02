"""Losses of masks. Logits (B, h, w) float, masks (B, H, W) 0 or 1; each loss is (B,), one number a sample."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from penstock.samplers.permutation import hashes

POINTS, OVERSAMPLE, IMPORTANCE = 12544, 3.0, 0.75
"""As in Sa2VA and Mask2Former: so many points a mask, three of four where the logit is least sure of three times as many."""


def sampled_points(logits: torch.Tensor, seeds: Sequence[int] | np.ndarray, points: int = POINTS) -> torch.Tensor:
    """Where a mask loss looks: mostly where the logits are near 0 (PointRend, Kirillov et al. 2020).

    The random points depend on the seeds alone, so that a sample has the same ones on any rank and in any piece.

    Args:
        logits: (B, h, w).
        seeds: B numbers of 0..2**64-1.
        points: P; a mask of fewer pixels has as many points as pixels.

    Returns:
        (B, P, 2) float32 x, y in 0..1 of the picture.
    """
    count = min(points, logits.shape[-1] * logits.shape[-2])
    many = int(count * OVERSAMPLE)
    kept = int(count * IMPORTANCE)
    drawn = _random_points(seeds, many + count - kept).to(logits.device)
    candidates = drawn[:, :many]
    unsure = values_at(logits.detach(), candidates).abs()
    chosen = torch.topk(unsure, kept, dim=1, largest=False).indices
    best = torch.gather(candidates, 1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([best, drawn[:, many:]], dim=1)


def values_at(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values of maps (B, h, w) at points (B, P, 2) x, y in 0..1: (B, P)."""
    found = F.grid_sample(maps[:, None].float(), points[:, :, None] * 2 - 1, align_corners=False, padding_mode="border")
    values: torch.Tensor = found[:, 0, :, 0]
    return values


def mask_losses(
    logits: torch.Tensor, masks: torch.Tensor, seeds: Sequence[int] | np.ndarray, points: int = POINTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy and Dice at sampled points.

    Masks are brought to the size of the logits by the nearest pixel first, as Sa2VA does.

    Returns:
        (B,) mean cross-entropy over the points, (B,) 1 - Dice with eps 1.
    """
    small = F.interpolate(masks[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0]
    where = sampled_points(logits, seeds, points)
    found, wanted = values_at(logits, where), values_at(small, where)
    entropy = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(dim=1)
    return entropy, dice_loss(found.sigmoid(), wanted)


def dice_loss(shares: torch.Tensor, wanted: torch.Tensor, eps: float = 1.0) -> torch.Tensor:
    """1 - (2 x overlap + eps) / (sum of both + eps) of (B, P) in 0..1: (B,)."""
    overlap = (shares * wanted).sum(dim=1)
    return 1 - (2 * overlap + eps) / (shares.sum(dim=1) + wanted.sum(dim=1) + eps)


def _random_points(seeds: Sequence[int] | np.ndarray, count: int) -> torch.Tensor:
    keys = np.asarray(seeds, np.uint64)[:, None]
    bits = hashes(np.arange(2 * count, dtype=np.uint64)[None], keys)
    return torch.from_numpy(
        (bits >> np.uint64(40)).astype(np.float32).reshape(len(keys), count, 2) / np.float32(1 << 24)
    )
