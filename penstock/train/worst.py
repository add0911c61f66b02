"""Pictures of the samples with the highest loss: both views side by side, the object in its own colours, the rest grey."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER, COUNT = "worst", 4


def save_worst(batch: Mapping[str, Any], order: Sequence[int], folder: Path) -> None:
    """Writes `worst/<n>_<source>_<key>.jpg` of the last batch, in the place of what lay there.

    Args:
        batch: of `MixLoader`.
        order: numbers of its samples, the worst first.
        folder: of the run.
    """
    into = folder / FOLDER
    into.mkdir(exist_ok=True)
    for path in into.glob("*.jpg"):
        path.unlink()
    for place, number in enumerate(order[:COUNT]):
        views = [
            _view(np.asarray(batch[f"image{one}"][number]), np.asarray(batch[f"mask{one}"][number])) for one in "12"
        ]
        name = re.sub(r"[^\w.-]", "_", f"{place}_{batch['source'][number]}_{batch['key1'][number]}")[:120]
        Image.fromarray(np.concatenate(views, axis=1)).save(into / f"{name}.jpg")


def _view(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of an image (H, W, 3) uint8 and a mask (H, W) of 0 and 1."""
    grey = (image.mean(axis=2, keepdims=True) * 0.4 + 60).astype(np.uint8)
    view: np.ndarray = np.where(mask[..., None] > 0, image, grey)
    return view
