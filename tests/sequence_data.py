"""Small sources for the tests of saved sequences: LaSOT in its own layout, and pictures with masks in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penstock.draws import TrackTable
from penstock.schema import Field, Record, Schema
from penstock.testing import encode_picture
from tests.readers.track_data import write_lines

FRAMES, SIZE_HW = 24, (72, 96)


def write_lasot(root: Path, sequences: int = 3, *, frames: int = FRAMES, size_hw: tuple[int, int] = SIZE_HW) -> Path:
    """Sequences of one moving target on noise; frame 5 of each is out of view, with an empty box."""
    height, width = size_hw
    for number in range(1, sequences + 1):
        rng = np.random.default_rng(number)
        folder = root / "cat" / f"cat-{number}"
        (folder / "img").mkdir(parents=True)
        boxes, hidden = [], []
        ground = rng.integers(60, 160, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        for frame in range(frames):
            x, y = 8 + (2 * frame) % (width // 2), 10 + number + frame % (height // 3)
            pixels = ground.copy()
            pixels[y : y + 14, x : x + 18] = (250, 20 + frame, 30)
            (folder / "img" / f"{frame + 1:08d}.jpg").write_bytes(encode_picture(pixels))
            hidden.append(int(frame == 5))
            boxes.append("0,0,0,0" if frame == 5 else f"{x + 1},{y + 1},18,14")
        write_lines(folder / "groundtruth.txt", boxes)
        write_lines(folder / "full_occlusion.txt", [",".join(["0"] * frames)])
        write_lines(folder / "out_of_view.txt", [",".join(map(str, hidden))])
    return root


class MaskedPictures:
    """Single pictures with a box and a mask, as COCO's; each its own size."""

    schema = Schema(
        [
            Field(name="image", dtype="uint8", shape=(None, None, 3), axes="H W C", kind="image"),
            Field(name="mask", dtype="uint8", shape=(None, None), axes="H W", kind="mask"),
        ]
    )

    def __init__(self, count: int = 4, *, boxes: Sequence[Sequence[float]] | None = None) -> None:
        self.count = count
        self.boxes = np.array([[20, 14, 16, 12]] * count if boxes is None else boxes, np.float32)
        self.keys = [f"picture-{number}" for number in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        size_hw = (60 + index, 80 + 2 * index)
        mask = np.zeros(size_hw, np.uint8)
        x, y, w, h = self.boxes[index].astype(int).tolist()
        mask[y : y + h, x : x + w] = 1
        image = np.random.default_rng(index).integers(0, 256, (*size_hw, 3), np.uint8)
        return {"image": image, "mask": mask}

    def track_table(self) -> TrackTable:
        valid = self.boxes[:, 2] > 0
        return TrackTable(
            name="pictures",
            starts=np.arange(self.count + 1),
            boxes=self.boxes,
            valid=valid,
            visible=valid,
            frames=np.zeros(self.count, np.int32),
            fps=np.full(self.count, np.nan),
            names=self.keys,
            categories=["thing"] * self.count,
            is_video=False,
        )
