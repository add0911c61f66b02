"""How fast is the embedding cache? Crops beside the seed's way, end to end beside the model alone, reads; one run, one thread.

    python benchmarks/embed.py [--pictures 40] [--model tiny:size=224,dim=768]
    python benchmarks/search.py --rows 1300000     # exact top 10

The seed's way: the whole picture blended in float for each mask, cut, through Pillow and the model's transform.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import reader_data as data
import torch
from PIL import Image

from penstock import open_store
from penstock.embed import EmbedConfig, embed
from penstock.geometry.segment_crops import cut_segment
from penstock.models.embedders import open_embedder
from penstock.models.protocols import PictureTransform
from penstock.models.transform import picture_pixels
from penstock.stages.embed_pixels import FastPixels

HW, COUNT, PAD, ALPHA = (480, 640), 11, 0.1, 0.3


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of COCO's usual size, and ids 1..11 of regions of many sizes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (30, 40, 3), np.uint8)
    picture = np.array(Image.fromarray(small).resize(HW[::-1], Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    far = [
        ((rows - rng.integers(HW[0])) ** 2 + (columns - rng.integers(HW[1])) ** 2) * np.exp(rng.normal(0, 1.2))
        for _ in range(COUNT)
    ]
    return picture, np.argmin(far, axis=0) + 1


def seed_way(picture: np.ndarray, ids: np.ndarray, transform: PictureTransform) -> torch.Tensor:
    """(n, 3, h, w), one segment after the other."""
    image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    found = []
    for number in np.unique(ids).tolist():
        mask = torch.from_numpy(ids == number)
        blended = torch.where(mask[None], image, image * ALPHA + 0.5 * (1 - ALPHA))
        rows, columns = torch.where(mask)
        top, bottom = int(rows.min()), int(rows.max()) + 1
        left, right = int(columns.min()), int(columns.max()) + 1
        high, wide = int(PAD * (bottom - top)), int(PAD * (right - left))
        crop = blended[:, max(0, top - high) : bottom + high, max(0, left - wide) : right + wide]
        pixels = (crop.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        found.append(torch.from_numpy(picture_pixels(Image.fromarray(pixels), transform)))
    return torch.stack(found)


def least(works: list[Callable[[], object]], repetitions: int) -> list[float]:
    """Seconds of processor time of each, the least of calls in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repetitions):
        for work, found in zip(works, times, strict=True):
            begin = time.process_time()
            work()
            found.append(time.process_time() - begin)
    return [min(found) for found in times]


def crops(repetitions: int) -> list[str]:
    """Lines about the crop path."""
    transform = PictureTransform(size_hw=(224, 224))
    fast = FastPixels(transform, ALPHA, device="cpu", count=16)
    picture, ids = scene(0)
    numbers = np.unique(ids).tolist()

    def ours() -> torch.Tensor:
        cuts = [cut_segment(picture, ids == number, PAD) for number in numbers]
        return fast([(cut.pixels, cut.inside) for cut in cuts])

    off = float((ours() - seed_way(picture, ids, transform)).abs().max() * 127.5)
    seconds = least([ours, lambda: seed_way(picture, ids, transform)], repetitions)
    rates = [len(numbers) / each for each in seconds]
    return [
        f"| crops, segments/s | {rates[0]:,.0f} |",
        f"| crops the seed's way, segments/s | {rates[1]:,.0f} |",
        f"| ratio (largest difference {off:.0f} of 255) | {rates[0] / rates[1]:.1f} |",
    ]


def whole(folder: Path, spec: str, pictures: int) -> list[str]:
    """Lines about a whole run: small pictures, up to nine segments each."""
    data.coco_panoptic(folder / "coco", pictures)
    config = EmbedConfig(cache_dir=folder / "out", data_path=folder / "coco", embedder_spec=spec, num_workers=0,
                         device="cpu", durability="process")  # fmt: skip
    embed(replace(config, cache_dir=folder / "first", max_segments=1))  # imports
    begin = time.process_time()
    report = embed(config)
    run = report.done / (time.process_time() - begin)
    embedder = open_embedder(spec, device="cpu")
    pixels = torch.zeros((16, 3, *embedder.transform.size_hw))
    model = 16 / least([lambda: embedder.embed(pixels)], 3)[0]
    begin = time.perf_counter()
    again = embed(config)
    seconds = time.perf_counter() - begin
    assert again.notes["unchanged"]
    store = open_store(config.cache_dir)
    rows = np.random.default_rng(0).integers(0, len(store), 20_000).tolist()
    view = store.column_views("embedding")[0]
    read = least([lambda: [view[row] for row in rows]], 5)[0] / len(rows)
    record = least([lambda: [store.read(row, ["embedding"]) for row in rows]], 3)[0] / len(rows)
    return [
        f"| {report.done} segments by {spec}, segments/s, opening included | {run:,.0f} |",
        f"| the model alone, segments/s | {model:,.0f} |",
        f"| ratio | {run / model:.2f} |",
        f"| unchanged rerun, s | {seconds:.2f} |",
        f"| one vector from the mapped column, us | {1e6 * read:.2f} |",
        f"| one vector by `store.read`, us | {1e6 * record:.2f} |",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--model", default="tiny:size=224,dim=768")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.machine()}, one thread\n\n| what | value |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PENSTOCK_CACHE_DIR"] = str(Path(folder) / "cache")
        for line in [*crops(arguments.repetitions), *whole(Path(folder), arguments.model, arguments.pictures)]:
            print(line, flush=True)


if __name__ == "__main__":
    main()
