"""Pictures and masks of one object each, written in the layout of COCO panoptic: what to do with masks of your own."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from penstock.geometry.id_pngs import write_panoptic_png

HERE = Path(__file__).parent
FRAMES = "tracks/chairmirror/chairmirror-1/img"
CATEGORIES = {"person": 1, "bird": 16, "cat": 17, "chair": 62}
OBJECTS = {"astronaut": "person", "owl": "bird", "parrot": "bird", "cat": "cat", "chelsea": "cat"}
SPLIT = "examples"


def write_layout(root: Path) -> int:
    """Writes `examples/NAME.jpg`, `panoptic_examples/NAME.png` and `annotations/panoptic_examples.json`; returns how many
    pictures. Segment 1 is the object; what is around it is void, 0."""
    images, annotations = [], []
    for folder in (SPLIT, f"panoptic_{SPLIT}", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted((HERE / "masks").glob("*.png")), 1):
        name, _, frame = path.stem.partition("_")
        mask = np.asarray(Image.open(path).convert("L")) > 0
        picture = HERE / (f"{FRAMES}/{frame}.jpg" if frame else f"photos/{name}.jpg")
        shutil.copyfile(picture, root / SPLIT / f"{path.stem}.jpg")
        (root / f"panoptic_{SPLIT}" / path.name).write_bytes(write_panoptic_png(mask.astype(np.uint8)))
        images.append({"id": number, "file_name": f"{path.stem}.jpg", "height": mask.shape[0], "width": mask.shape[1]})
        annotations.append(
            {"image_id": number, "file_name": path.name, "segments_info": [describe(OBJECTS.get(name, name), mask)]}
        )
    categories = [{"id": one, "name": name, "isthing": 1} for name, one in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"panoptic_{SPLIT}.json").write_text(json.dumps(content))
    return len(images)


def describe(category: str, mask: np.ndarray) -> dict[str, object]:
    """What COCO says of a segment, here the only one; mask: (H, W) bool."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "id": 1,
        "category_id": CATEGORIES[category],
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [int(side) for side in box],
    }
