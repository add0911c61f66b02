"""Frames and prompts for tests of proposers."""

import numpy as np

from penstock.refining.types import Frame, Objects, Prompts


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coarse blocks of colour, (H, W, 3) uint8."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)[:height, :width].copy()


def frame_of(image: np.ndarray, key: str = "scene/frame_000000.jpg") -> Frame:
    """A frame with two objects, ids 5 and 9: left and right half."""
    height, width = image.shape[:2]
    half = width // 2
    labels = np.ones((height, width), np.uint16)
    labels[:, half:] = 2
    objects = Objects(
        labels=labels,
        ids=np.array([5, 9]),
        areas=np.array([half * height, (width - half) * height]),
        boxes=np.array([[0, 0, half, height], [half, 0, width - half, height]], np.int32),
    )
    return Frame(key=key, image=image, objects=objects)


def prompts_of(frame: Frame, seed: int = 0) -> Prompts:
    """Boxes, three points and a mask for each object of `frame_of`."""
    rng = np.random.default_rng(seed)
    corners = frame.objects.boxes.astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    sides = np.array(frame.objects.size_hw[::-1], np.float32)
    return Prompts(
        ids=frame.objects.ids,
        boxes=corners,
        points=(rng.random((2, 3, 2)) * sides).astype(np.float32),
        point_labels=np.array([[1, 0, -1], [1, 1, 0]], np.int32),
        mask_logits=rng.normal(size=(2, 256, 256)).astype(np.float32),
    )
