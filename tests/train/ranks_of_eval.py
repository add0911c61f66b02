"""One rank of two that evaluate: python -m tests.train.ranks_of_eval FOLDER; run by test_distill_eval. Also what it evaluates."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penstock.models.distill_protocols import EDGE
from penstock.schema import Field, Schema
from penstock.store import write_store
from penstock.train.distill_config import DistillConfig
from penstock.train.distill_data import DistillData, open_distill_data
from penstock.train.distill_eval import HeldOutPictures, decoder_of
from penstock.train.distributed import Ranks, joined

LEVEL = "P4_S16"
ROWS, SAMPLES = 12, 7
SCHEMA = Schema(
    [
        Field(name="image", dtype="uint8", shape=(128, 128, 3), axes="H W C", kind="image"),
        Field(name=LEVEL, dtype="float16", shape=(128, 8, 8), axes="C H W", kind="map"),
        Field(name="edge_256x256", dtype="uint8", shape=(256, 256), axes="H W", kind="mask"),
        Field(name="bboxes", dtype="float32", shape=(None, 4), axes="N 4", kind="boxes"),
        Field(name="masks", dtype="uint8", shape=(None, 256, 256), axes="N H W", kind="mask"),
        Field(name="image_shape", dtype="int32", shape=(3,)),
    ]
)


class Student(nn.Module):
    """Strides of 16 at once, and edges of brightness."""

    def __init__(self, seed: int = 0, *, has_edges: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down = nn.Conv2d(3, 128, 16, stride=16)
        self.has_edges = has_edges

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        picture = image.float() / 255
        found = {LEVEL: self.down(picture)}
        if self.has_edges:
            found[EDGE] = nn.functional.interpolate(picture.mean(1, keepdim=True), (256, 256)) - 0.5
        return found


def record_of(row: int) -> dict[str, Any]:
    """A picture that was 640 x 480; it has row % 3 boxes, in its own pixels."""
    rng = np.random.default_rng(row)
    corners = [(80 * number, 40 * number, 80 * number + 200, 40 * number + 120) for number in range(1, row % 3 + 1)]
    masks = np.zeros((len(corners), 256, 256), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, corners, strict=True):
        mask[top * 256 // 480 : bottom * 256 // 480, left * 256 // 640 : right * 256 // 640] = 1
    return {
        "image": rng.integers(0, 256, (128, 128, 3), np.uint8),
        LEVEL: rng.normal(size=(128, 8, 8)).astype(np.float16),
        "edge_256x256": rng.integers(0, 2, (256, 256), np.uint8),
        "bboxes": np.array(corners, np.float32).reshape(-1, 4),
        "masks": masks,
        "image_shape": np.array([480, 640, 3], np.int32),
    }


def write_rows(folder: Path, *, bad: int | None = None, teacher: Mapping[str, object] | None = None) -> Path:
    """A store of `ROWS` pictures `sa_0`, ...; the features of the bad one are NaN. It says which teacher made it."""
    records = [record_of(row) for row in range(ROWS)]
    if bad is not None:
        records[bad][LEVEL][5, 1, 2] = np.nan
    path = folder / "store"
    rows = [(f"sa_{row}", record) for row, record in enumerate(records)]
    write_store(path, SCHEMA, rows, attributes={"bbox_format": "xyxy", **(teacher or {})})
    return path


def config_of(path: Path, **changes: Any) -> DistillConfig:
    """9 of 12 rows are held out, 7 of them evaluated, 2 at a time."""
    options = {"val_share": 0.75, "val_samples": SAMPLES, "batch_size": 2, "decoder": "stand-in", "num_workers": 2}
    return DistillConfig(binary_data_path=path, **{**options, **changes})


def held_of(config: DistillConfig) -> tuple[HeldOutPictures, DistillData]:
    """What is held out, judged on the CPU."""
    data = open_distill_data(config)
    return HeldOutPictures(data, config, decoder_of(config, data, "cpu")), data


def evaluated(path: Path, ranks: Ranks) -> dict[str, float]:
    """The scores of a student."""
    return held_of(config_of(path))[0].evaluate(Student(), ranks)


if __name__ == "__main__":
    with joined("cpu") as ranks:
        found = evaluated(Path(sys.argv[1]), ranks)
        others = ranks.gathered(found)
        sys.stdout.write(json.dumps(others))
