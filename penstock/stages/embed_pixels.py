"""From crops of segments to what a picture model is fed: blend, antialiased resize, normalise. Fast, on any device.

Pillow resizes in two passes, along rows and along columns, and rounds to 8 bits after each. So do both ways here, in the
order of the Pillow that is installed; what comes out differs from its own by one step of 255 in a few pixels of a thousand.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import PIL

from penstock.geometry.segment_crops import blend_table
from penstock.models.protocols import PictureTransform

if TYPE_CHECKING:
    import torch

Crop = tuple[np.ndarray, np.ndarray]
"""(h, w, 3) uint8 RGB, and (h, w) uint8 that says where the segment is."""

_ALONG, _PIXELS = 32, 1 << 24
"""Crops that a device resizes together, of similar size: padding costs little, and there are few launches. Fewer where
they are so large that, padded, they have more pixels than that: each takes some forty bytes on the device."""
_LONGEST = 8
"""A side that would grow to more than so many times the model's before it is cut is resized where it is cut only."""


class FastPixels:
    """Makes the input of a model. Keeps its buffers: what it gives is overwritten by the next call.

    Args:
        transform: of the model.
        bg_alpha: see `penstock.geometry.segment_crops.blend`.
        device: where the input is wanted; on a CPU crops are resized one by one, elsewhere many at once.
        count: crops of a call, at most.
    """

    def __init__(self, transform: PictureTransform, bg_alpha: float, *, device: str, count: int) -> None:
        import torch

        self.transform = transform
        self.device = device
        self.table = blend_table(bg_alpha)
        self._scale, self._shift = scale_and_shift(transform, device)
        self._ready = None
        if device == "cpu":
            self._ready = torch.zeros((count, 3, *transform.size_hw))

    def __call__(self, crops: Sequence[Crop]) -> "torch.Tensor":
        """(n, 3, h, w) float32 on the device, normalised."""
        import torch

        with torch.inference_mode():
            if self._ready is None:
                return batched_pixels(crops, self.table, self.transform, self.device)
            for number, (pixels, inside) in enumerate(crops):
                small = self._resized(blended(pixels, inside, self.table))
                torch.mul(small, self._scale, out=self._ready[number]).sub_(self._shift)
            return self._ready[: len(crops)]

    def _resized(self, pixels: np.ndarray) -> "torch.Tensor":
        """(3, h, w) uint8."""
        import torch
        from torch.nn.functional import interpolate

        full_hw, offset_hw = placed(pixels.shape[:2], self.transform)
        (height, width), (top, left) = self.transform.size_hw, offset_hw
        if max(full_hw[0] / height, full_hw[1] / width) > _LONGEST:
            plain = [(pixels, np.ones(pixels.shape[:2], np.uint8))]
            return _resized_together(plain, self.table, self.transform, "cpu")[0].to(torch.uint8)
        found = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        steps = [(full_hw[0], pixels.shape[1]), full_hw] if columns_first(pixels.shape[:2], full_hw) else [full_hw]
        for size in steps:  # one step goes along the rows first
            found = interpolate(found, size, mode=self.transform.interpolation, antialias=True, align_corners=False)
        return found[0, :, top : top + height, left : left + width]


def blended(pixels: np.ndarray, inside: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 with what is outside the mask taken from a table; equal to `segment_crops.blend`."""
    from penstock.geometry.opencv import cv2

    found = cv2.LUT(pixels, table)
    cv2.copyTo(pixels, inside, found)
    return np.asarray(found)


def placed(crop_hw: Sequence[int], transform: PictureTransform) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width that a crop is resized to, and row and column in it where the model's picture begins."""
    if transform.resize == "squash":
        return transform.size_hw, (0, 0)
    height, width = int(crop_hw[0]), int(crop_hw[1])
    target = transform.size_hw[0]
    longer = int(target * max(height, width) / min(height, width))
    full = (longer, target) if width <= height else (target, longer)
    return full, (round((full[0] - target) / 2), round((full[1] - target) / 2))


def columns_first(crop_hw: Sequence[int], full_hw: tuple[int, int]) -> bool:
    """Whether Pillow resizes along the columns before it does so along the rows: from its version 13 on, where the height
    shrinks by more than twice what the width does (read off its results)."""
    if int(PIL.__version__.partition(".")[0]) < 13:
        return False
    fewer_rows = crop_hw[0] - full_hw[0]
    return fewer_rows > 0 and fewer_rows > 2 * (crop_hw[1] - full_hw[1])


def scale_and_shift(transform: PictureTransform, device: str) -> "tuple[torch.Tensor | float, torch.Tensor | float]":
    """Of 0..255, so that x * scale - shift is normalised: (3, 1, 1) float32 each, or one number for all channels."""
    import torch

    mean, std = torch.tensor(transform.mean), torch.tensor(transform.std)
    scale, shift = 1 / (255 * std), mean / std
    if len({*transform.mean}) == len({*transform.std}) == 1:  # one number is faster than three
        return float(scale[0]), float(shift[0])
    return scale.reshape(3, 1, 1).to(device), shift.reshape(3, 1, 1).to(device)


def batched_pixels(
    crops: Sequence[Crop], table: np.ndarray, transform: PictureTransform, device: str
) -> "torch.Tensor":
    """All of it with tensors on a device, many crops at once: two products with matrices of weights.

    Args:
        crops: of any sizes.
        table: (256,) uint8, see `blend_table`.
        transform: of the model.
        device: where.

    Returns:
        (n, 3, h, w) float32 on the device, normalised.
    """
    import torch

    found = torch.empty((len(crops), 3, *transform.size_hw), device=device)
    shapes = [inside.shape for _, inside in crops]
    is_turned = [columns_first(shape, placed(shape, transform)[0]) for shape in shapes]
    order = sorted(range(len(crops)), key=lambda number: (is_turned[number], shapes[number]))
    for _, group in groupby(order, key=is_turned.__getitem__):
        for some in _bunches(list(group), shapes):
            chosen = [crops[number] for number in some]
            found[torch.tensor(some, device=device)] = _resized_together(chosen, table, transform, device)
    scale, shift = scale_and_shift(transform, device)
    return found.mul_(scale).sub_(shift)


def _bunches(order: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Crops to resize together, at least one."""
    bunch: list[int] = []
    height = width = 0
    for number in order:
        tall, wide = max(height, shapes[number][0]), max(width, shapes[number][1])
        if bunch and (len(bunch) == _ALONG or (len(bunch) + 1) * tall * wide > _PIXELS):
            yield bunch
            bunch, tall, wide = [], *shapes[number]
        bunch.append(number)
        height, width = tall, wide
    if bunch:
        yield bunch


def _resized_together(
    crops: Sequence[Crop], table: np.ndarray, transform: PictureTransform, device: str
) -> "torch.Tensor":
    """(n, 3, h, w) float32 of whole numbers 0..255. All of them resized in the order of the first."""
    import torch

    sizes = [pixels.shape[:2] for pixels, _ in crops]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    packed = np.zeros((len(crops), height, width, 4), np.uint8)
    for place, (pixels, inside) in zip(packed, crops, strict=True):
        place[: pixels.shape[0], : pixels.shape[1], :3] = pixels
        place[: pixels.shape[0], : pixels.shape[1], 3] = inside
    there = torch.from_numpy(packed).to(device, non_blocking=True)
    colours = there[..., :3]
    outside = torch.from_numpy(table).to(device)[colours.int()]
    mixed = torch.where(there[..., 3:] != 0, colours, outside).permute(0, 3, 1, 2).float()
    places = [placed(size, transform) for size in sizes]
    (tall, wide), (full_hw, begin_hw) = transform.size_hw, zip(*places, strict=True)
    weights = partial(_weights, interpolation=transform.interpolation, device=device)
    down = weights(
        [(size[0], full[0], at[0]) for size, full, at in zip(sizes, full_hw, begin_hw, strict=True)], height, tall
    )
    across = weights(
        [(size[1], full[1], at[1]) for size, full, at in zip(sizes, full_hw, begin_hw, strict=True)], width, wide
    )
    across = across[:, None].transpose(2, 3)
    if columns_first(sizes[0], places[0][0]):
        return _rounded(_rounded(down[:, None] @ mixed) @ across)
    return _rounded(down[:, None] @ _rounded(mixed @ across))


def _rounded(values: "torch.Tensor") -> "torch.Tensor":
    """To the nearest of 0..255, halves up, as Pillow."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(
    lines: Sequence[tuple[int, int, int]], padded: int, wanted: int, *, interpolation: str, device: str
) -> "torch.Tensor":
    """(n, wanted, padded) float32: shares of the pixels of a line in each pixel of the resized one.

    Args:
        lines: of each one its length, the length after the resize, and where in that the wanted pixels begin.
        padded: length of the lines as they are stored.
        wanted: pixels.
        interpolation: Keys' cubic with -0.5, or the triangle; both widened where the line shrinks.
        device: where.
    """
    import torch

    length, full, begin = torch.tensor(lines, device=device, dtype=torch.float64).T[:, :, None, None]
    scale = length / full
    centre = (begin + torch.arange(wanted, device=device)[None, :, None] + 0.5) * scale
    pixel = torch.arange(padded, device=device)[None, None, :]
    far = ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs().float()
    if interpolation == "bilinear":
        shares = (1 - far).clamp_(min=0)
    else:
        near = (1.5 * far - 2.5) * far * far + 1
        tail = ((-0.5 * far + 2.5) * far - 4) * far + 2
        shares = torch.where(far < 1, near, torch.where(far < 2, tail, 0.0))
    shares = torch.where(pixel < length, shares, 0.0)
    return shares / shares.sum(dim=2, keepdim=True)
