"""Seconds to build the index of annotations at real size, and to open it again; and a dry run of `penstock embed` over it.

    python benchmarks/index_open.py [--coco-pictures 118287] [--sa1b-pictures 50000]

Annotation is made up: eleven segments a picture (COCO panoptic), twelve masks a JSON file (SA-1B). There are no pictures:
an index is built without them.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SEGMENTS, MASKS = 11, 12


def coco_panoptic(root: Path, pictures: int) -> str:
    """The annotation of `pictures` photos in COCO panoptic's layout; the text of the source."""
    images, annotations = [], []
    box = {"category_id": 1, "iscrowd": 0, "bbox": [10, 20, 30, 40], "area": 1200}
    for number in range(1, pictures + 1):
        name = f"{number:012d}"
        images.append({"id": number, "file_name": f"{name}.jpg", "height": 480, "width": 640})
        segments = [{"id": 70_000 + place, **box} for place in range(SEGMENTS)]
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "thing", "supercategory": "any", "isthing": 1}]
    for folder in ("annotations", "panoptic_train2017", "train2017"):
        (root / folder).mkdir(parents=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    return f"coco-panoptic:{root}"


def sa1b(root: Path, pictures: int) -> str:
    """The JSON files of `pictures` photos of SA-1B; the text of the source."""
    root.mkdir()
    rle = {"size": [1500, 2250], "counts": [1_000_000, 5000, 2_370_000]}
    mask = {"bbox": [10, 20, 29, 39], "area": 5000, "predicted_iou": 0.9, "stability_score": 0.95, "segmentation": rle,
            "point_coords": [[12, 22]], "crop_box": [0, 0, 2250, 1500]}  # fmt: skip
    for number in range(1, pictures + 1):
        image = {"image_id": number, "width": 2250, "height": 1500, "file_name": f"sa_{number}.jpg"}
        annotations = [{"id": number * 100 + place, **mask} for place in range(MASKS)]
        (root / f"sa_{number}.json").write_text(json.dumps({"image": image, "annotations": annotations}))
    return f"sa1b:{root}"


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what it gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Prints the tables."""
    from penstock.embed import EmbedConfig, plan_embed
    from penstock.readers.base import Reader
    from penstock.registry import open_source

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--coco-pictures", type=int, default=118_287)
    parser.add_argument("--sa1b-pictures", type=int, default=50_000)
    arguments = parser.parse_args()
    print(
        "| dataset | pictures | rows | index built, s | opened again, s (median of 5) |\n| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PENSTOCK_CACHE_DIR"] = str(Path(folder) / "cache")
        coco = coco_panoptic(Path(folder) / "coco", arguments.coco_pictures)
        made = {coco: arguments.coco_pictures,
                sa1b(Path(folder) / "sa1b", arguments.sa1b_pictures): arguments.sa1b_pictures}  # fmt: skip
        for text, pictures in made.items():
            built, source = timed(lambda: open_source(text))  # noqa: B023  # called at once
            assert isinstance(source, Reader)
            opened = np.median([timed(lambda: open_source(text))[0] for _ in range(5)])  # noqa: B023
            print(f"| {source.name} | {pictures:,} | {len(source):,} | {built:.1f} | {opened:.3f} |", flush=True)
        config = EmbedConfig(
            cache_dir=Path(folder) / "vectors", data_path=Path(coco.partition(":")[2]), embedder_spec="tiny:"
        )
        seconds, plan = timed(lambda: plan_embed(config))
        assert isinstance(plan, dict)
        print(f"\ndry run of penstock embed over {plan['rows']['planned']:,} segments, nothing there: {seconds:.1f} s")


if __name__ == "__main__":
    main()
