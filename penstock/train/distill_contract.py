"""What a batch of distillation is: the fields of a store, with one box in the frame of the picture."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.buffers import Batch, Values
from penstock.geometry.boxes import scale_boxes, xywh_to_xyxy
from penstock.models.distill_protocols import Level
from penstock.samplers import mix
from penstock.source import Source
from penstock.store.box_format import BoxFormat
from penstock.store.v1_schema import MASK_SIZE

if TYPE_CHECKING:
    import torch

EDGES = "edge_256x256"
COUNTS = ("has_bbox", "num_bboxes")
"""Of v1, whose rows always have a box: whether it is one."""
_BOX_SALT = 0xB0C5
_log = logging.getLogger("penstock")


@dataclass(frozen=True, kw_only=True)
class DistillData:
    """What is learned from. Sources give the fields of a store; `Contract` makes batches of them."""

    train: Source
    held: Source | None
    """The last `val_share` of the rows; None where it is 0."""
    level: Level
    image_size: int
    """Side S of the square picture, in pixels."""
    boxes: BoxFormat
    """Of the stored `bboxes`, where they are read."""
    teacher: Mapping[str, object]
    """Facts of the data, plain values: `path`, `chosen_by` (why that one), `format`, `rows` (that can be used), `left_out` (that
    failed or are missing), `model_type` and `teacher` (its identity) where they are recorded, `feature_dtype`."""


@dataclass
class Contract:
    """Makes what training and evaluation take of a loader's batch of `DistillData`.

    `contract(batch)` gives a dict of B samples, tensors over the loader's memory where nothing has to be computed:

        image             (B, 3, S, S) uint8 RGB, a view permuted from (B, S, S, 3)
        <level>           (B, C, h, w) float16 or float32, as stored
        edge_256x256      (B, 256, 256) uint8, 0 or 1
        fg_map, bg_map    (B, h, w) float32; each sums to 1, or to 0
        box               (B, 4) float32 XYXY in pixels of the square, 0..S
        mask              (B, 256, 256) uint8, 0 or 1, over the stretched picture
        has_box           (B,) bool
        key               list of B str

    Fields that the configuration does not ask for are not there. Of several boxes one is chosen by a hash of (seed, position), so
    another one in another epoch. A box whose mask is all zero, or that lies outside the picture, is none: `has_box` is false.

    Attributes:
        dropped: such boxes so far: "empty masks", "boxes outside".
    """

    data: DistillData
    seed: int
    dropped: Counter[str] = field(default_factory=Counter)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The samples of a batch that a `Loader` gave, as arrays or as tensors."""
        level = self.data.level
        stored = {level.name: level.name, EDGES: EDGES}
        stored |= {name: f"{name}_{level.side}x{level.side}" for name in ("fg_map", "bg_map")}
        made: dict[str, Any] = {"image": _tensor(batch["image"]).permute(0, 3, 1, 2)}
        made |= {name: _tensor(batch[known]) for name, known in stored.items() if known in batch}
        if "bboxes" in batch:
            made |= self._prompts(batch)
        return {**made, "key": batch.row_keys()}

    def _prompts(self, batch: Batch) -> dict[str, Any]:
        boxes, masks, has_box = self._chosen(batch)
        shapes = np.asarray(batch["image_shape"])
        square = (self.data.image_size, self.data.image_size)
        if self.data.boxes == "xywh":
            boxes = xywh_to_xyxy(boxes)
        for place in np.flatnonzero(has_box).tolist():
            original_hw = int(shapes[place, 0]), int(shapes[place, 1])
            boxes[place] = scale_boxes(boxes[place], original_hw, square)
        boxes = np.clip(np.nan_to_num(boxes, nan=0.0), 0, self.data.image_size)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        filled = masks.any(axis=(1, 2))
        self._count("boxes outside", int((has_box & ~inside).sum()))
        self._count("empty masks", int((has_box & inside & ~filled).sum()))
        has_box = has_box & inside & filled
        boxes[~has_box] = 0
        return {"box": _tensor(boxes), "mask": _tensor(masks), "has_box": _tensor(has_box)}

    def _chosen(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One box (B, 4) as stored, its mask (B, 256, 256), and whether there is one, of each row."""
        boxes, masks = batch["bboxes"], batch["masks"]
        if not isinstance(boxes, list):  # v1: the first one of each picture
            has = np.logical_and.reduce([np.asarray(batch[name]) > 0 for name in COUNTS])
            return np.array(boxes)[:, 0], np.asarray(masks)[:, 0], has
        one_box = np.zeros((len(boxes), 4), np.float32)
        one_mask = np.zeros((len(boxes), MASK_SIZE, MASK_SIZE), np.uint8)
        counts = [len(rows) for rows in boxes]
        for place, (position, count) in enumerate(zip(batch.positions, counts, strict=True)):
            if count:
                number = mix(self.seed, position, _BOX_SALT) % count
                one_box[place], one_mask[place] = np.asarray(boxes[place])[number], np.asarray(masks[place])[number]
        return one_box, one_mask, np.array(counts) > 0

    def _count(self, what: str, number: int) -> None:
        if number and not self.dropped[what]:
            remedy = "; the original converter writes such masks: penstock repair --tar-path rebuilds them"
            more = remedy if self.data.boxes == "xywh" and what == "empty masks" else ""
            _log.warning("%s: %s are left out as prompts, and counted%s", self.data.teacher["path"], what, more)
        self.dropped[what] += number


def _tensor(values: Values) -> "torch.Tensor":
    """The field of a batch as a tensor over the same memory."""
    import torch

    return torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.as_tensor(values)
