"""Photographs with masks cut into many pictures, in the layout of SA-1B: sa_N.jpg beside sa_N.json."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from panoptic_layout import FRAMES, HERE
from PIL import Image

from penstock.geometry.boxes import mask_box
from penstock.geometry.rle import encode_rle


def write_crops(root: Path, photos: Sequence[str], *, first: int, count: int) -> None:
    """Writes sa_FIRST and so on: random crops of the photographs in turn, mirrored or not, with their piece of the mask.

    Args:
        root: folder.
        photos: names of `masks`.
        first: number of the first picture, and the seed.
        count: pictures.
    """
    rng = np.random.default_rng(first)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        picture, mask = open_photo(photos[number % len(photos)])
        rows, columns = crop(mask, rng)
        step = int(rng.choice([-1, 1]))
        mask = mask[rows, columns][:, ::step]
        Image.fromarray(picture[rows, columns][:, ::step]).save(root / f"sa_{number}.jpg", quality=95)
        x, y, width, height = mask_box(mask).tolist()
        box = [x, y, width - 1, height - 1]  # SA-1B counts one less
        object_ = {"id": number, "segmentation": encode_rle(mask), "bbox": box, "area": int(mask.sum())}
        image = {"image_id": number, "file_name": f"sa_{number}.jpg", "height": mask.shape[0], "width": mask.shape[1]}
        (root / f"sa_{number}.json").write_text(json.dumps({"image": image, "annotations": [object_]}))


def open_photo(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB and (H, W) bool of a name of `masks`."""
    stem, _, frame = name.partition("_")
    picture = Image.open(HERE / (f"{FRAMES}/{frame}.jpg" if frame else f"photos/{stem}.jpg"))
    return np.asarray(picture.convert("RGB")), np.asarray(Image.open(HERE / "masks" / f"{name}.png").convert("L")) > 0


def crop(mask: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a third to all of each side, such that the object is 3 to 90 % of the crop; mask: (H, W) bool."""
    for _ in range(1000):
        sides = [int(side * rng.uniform(0.35, 1)) for side in mask.shape]
        top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip(mask.shape, sides, strict=True))
        rows, columns = slice(top, top + sides[0]), slice(left, left + sides[1])
        if 0.03 < mask[rows, columns].mean() < 0.9:
            return rows, columns
    raise ValueError("expected a mask with crops of which the object is 3 to 90 %, got none in 1000 draws")
