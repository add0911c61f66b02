"""What SAM2 takes and gives, on its device: pictures to pixels, prompts to its square, mask logits to crops."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import BadData
from penstock.refining.types import Proposals

if TYPE_CHECKING:
    import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of 0..1 RGB, those of ImageNet: all published SAM2 models."""


def model_pixels(images: Sequence[np.ndarray], side: int, device: str) -> "torch.Tensor":
    """Pictures as SAM2's own transform makes them: both sides to `side`, bilinear, antialiased, in float.

    Args:
        images: (H, W, 3) uint8 RGB each, of any sizes.
        side: of the model's square, in pixels.
        device: where to.

    Returns:
        (N, 3, side, side) float32, normalised, on `device`.

    Raises:
        BadData: an array is no RGB picture.
    """
    import torch

    mean, std = (torch.tensor(numbers, device=device).reshape(1, 3, 1, 1) for numbers in (MEAN, STD))
    batch = []
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise BadData(f"expected a picture (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        picture = torch.from_numpy(_writable(image)).to(device).permute(2, 0, 1)[None].float() / 255
        batch.append(
            torch.nn.functional.interpolate(picture, (side, side), mode="bilinear", align_corners=False, antialias=True)
        )
    return (torch.cat(batch) - mean) / std


def _writable(image: np.ndarray) -> np.ndarray:
    """The picture in memory that torch takes: contiguous; views into stores are read-only, which torch warns of."""
    return np.require(image, requirements=["C", "W"])


def cut_masks(
    logits: "torch.Tensor", scores: "torch.Tensor", ids: np.ndarray, size_hw: tuple[int, int], offset: float
) -> Proposals:
    """Low-resolution logits stretched to the picture, cut at 0, and cropped; empty masks are dropped.

    Full-size masks live on the device, for this chunk only; what comes back is the crops, in one transfer.

    Args:
        logits: (N, h, w) float.
        scores: (N,) float, IoU as the model predicts it.
        ids: (N,) int64.
        size_hw: of the picture.
        offset: SAM's stability score is the IoU of the masks cut at +offset and at -offset.
    """
    import torch

    full = torch.nn.functional.interpolate(logits[:, None].float(), size_hw, mode="bilinear", align_corners=False)[:, 0]
    inside = full > 0
    low, high = (_count(full > cut) for cut in (-offset, offset))
    del full
    rows, columns = (inside.view(torch.uint8).amax(axis) for axis in (2, 1))  # faster by far than any()
    edges = torch.stack([*_ends(columns), *_ends(rows)], 1).cpu().numpy()  # left, right, top, bottom
    kept = np.flatnonzero(rows.amax(1).cpu().numpy())
    pixels = [inside[n, edges[n, 2] : edges[n, 3], edges[n, 0] : edges[n, 1]].reshape(-1) for n in kept]
    flat = torch.cat(pixels).cpu().numpy() if pixels else np.zeros(0, bool)
    left, right, top, bottom = edges[kept].T.astype(np.int32)
    sizes = np.stack([bottom - top, right - left], 1)
    parts = np.split(flat, np.cumsum(sizes.prod(1))[:-1]) if len(kept) else []
    return Proposals(
        size_hw=size_hw,
        boxes=np.stack([left, top, right - left, bottom - top], 1),
        masks=tuple(part.reshape(size) for part, size in zip(parts, sizes.tolist(), strict=True)),
        scores=scores.float().clamp(0, 1).cpu().numpy()[kept],
        stability=(high / low.clamp(min=1)).float().cpu().numpy()[kept],
        ids=ids[kept],
    )


def _count(masks: "torch.Tensor") -> "torch.Tensor":
    """(N,) pixels of (N, H, W) bool; rows first, in 32 bits, which is much faster than a sum of all in 64."""
    import torch

    return masks.sum(-1, dtype=torch.int32).sum(-1)


def _ends(lines: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """First line that is 1, and the one after the last, of (N, L) uint8."""
    return lines.argmax(1), lines.shape[1] - lines.flip(1).argmax(1)
