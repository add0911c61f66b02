"""The stage of `penstock teacher`: a picture and its masks in, a teacher's features and what goes with them out."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from penstock.errors import BadData, UsageError
from penstock.geometry.images import encode_jpeg
from penstock.geometry.opencv import cv2
from penstock.models.distill_protocols import Level, Teacher
from penstock.models.opened import require_torch
from penstock.schema import Field, Record, Schema
from penstock.stages.convert import MASK_THRESHOLD
from penstock.stages.teacher_fields import (
    STRATEGIES,
    ObjectMasks,
    Strategy,
    boxes_xyxy,
    chosen,
    edge_map,
    outlines,
    small_masks,
    union,
    weight_maps,
)
from penstock.stages.workers import one_thread, worker_number
from penstock.store.v1_schema import IMAGE_SIZE, MASK_SIZE, V1_SCHEMA

EDGES, WEIGHTS, BOX, MASK = "edges", "weights", "bbox", "mask"
FIELDS = ("P2_S4", "P3_S8", "P4_S16", "P5_S32", EDGES, WEIGHTS, BOX, MASK)
DEFAULT_FIELDS = FIELDS[2:]
FINE_EDGES = 256
"""Side of the finest edge map, whatever the size of the picture: what students' edge heads give."""
JPEG = {"store": 95, "pairs": 100}
"""Quality of stretched pictures; 100 is the original's, in TARs and beside NPZ files."""


@dataclass(kw_only=True)
class TeachPictures:
    """Stretches pictures, asks the teacher, and adds edges, weight maps, boxes and masks.

    Input: `image` (H, W, 3) uint8 RGB, and an `ObjectMasks` as a record. Output: exactly `schema`, whose names are those of
    `penstock convert sa1b-tar`. The teacher sees each picture at its own resolution and stretches it itself.
    """

    name: ClassVar[str] = "teach-pictures"
    version: ClassVar[int] = 1
    tolerance: ClassVar[float] = 1e-2
    """By how much a feature may differ, in units of the largest, where the stage is not bitwise."""

    teacher: Teacher
    """Pickles, and loads its weights where it is used."""
    fields: tuple[str, ...] = DEFAULT_FIELDS
    """Some of `FIELDS`."""
    layout: Literal["store", "v1"] = "store"
    """"v1" gives exactly the fields of v1 directories, with the first box alone."""
    image_codec: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = JPEG["store"]
    feature_dtype: Literal["float16", "float32"] = "float32"
    strategy: Strategy = "geometry-colour"
    max_objects: int | None = None
    """See `penstock.stages.teacher_fields.chosen`."""
    batch_size: int = 8
    devices: int = 1
    """GPUs that workers share, from the teacher's own on; worker n takes the n-th of them, and round again."""
    threads: int = 1
    """That make the fields of the pictures of one call."""
    reopen: Callable[..., Teacher] | None = None
    """Opens the same teacher on another `device`; needed with several devices."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy: expected {' or '.join(STRATEGIES)}, got {self.strategy!r}")
        self._refuse_unknown()
        if self.layout == "v1":
            self._refuse_v1()

    @property
    def levels(self) -> Sequence[Level]:
        """The teacher's levels that are kept, from high to low resolution."""
        return [level for name, level in self.teacher.levels.items() if name in self.fields]

    @property
    def bitwise(self) -> bool:
        """On a CPU; a GPU may choose other kernels from run to run."""
        return self.teacher.device == "cpu"

    @property
    def edge_sides(self) -> Sequence[int]:
        """Of the edge maps: 256, and the sides at strides 16 and 32."""
        size = self.teacher.image_size
        return sorted({FINE_EDGES, size // 16, size // 32}, reverse=True)

    @property
    def weight_sides(self) -> Sequence[int]:
        """Of the weight maps: the sides at strides 8, 16 and 32."""
        return [self.teacher.image_size // stride for stride in (8, 16, 32)]

    @property
    def schema(self) -> Schema:
        """Picture, features, edges, weight maps, boxes, masks, the picture's own size: as far as they are asked for."""
        if self.layout == "v1":
            return V1_SCHEMA
        found = [_picture_field(self.image_codec, self.teacher.image_size)]
        found += [_level_field(level, self.feature_dtype) for level in self.levels]
        if EDGES in self.fields:
            found += [_square_field("edge", side) for side in self.edge_sides]
        if WEIGHTS in self.fields:
            found += [_square_field(kind, side) for side in self.weight_sides for kind in ("fg_map", "bg_map")]
        if BOX in self.fields:
            found.append(_BOXES)
        if MASK in self.fields:
            found.append(_MASKS)
        return Schema([*found, V1_SCHEMA["image_shape"]])

    def identity(self) -> dict[str, object]:
        """Teacher and weights, fields, how objects are chosen."""
        return {
            "stage": self.name,
            "version": self.version,
            "teacher": {"model_type": self.teacher.name, **self.teacher.identity()},
            "fields": list(self.schema),
            "layout": self.layout,
            "image_size": self.teacher.image_size,
            "image_codec": self.image_codec,
            "jpeg_quality": self.jpeg_quality if self.image_codec == "jpeg" else None,
            "feature_dtype": self.feature_dtype,
            "strategy": self.strategy,
            "max_objects": self.max_objects,
            "mask_size": MASK_SIZE,
            "mask_threshold": MASK_THRESHOLD,
            "boxes": "XYXY, original-image pixels",
        }

    def setup(self, device: str) -> None:
        """With several devices, opens the teacher on this worker's.

        Args:
            device: as the teacher's; "cuda" is the one GPU that this worker sees, whatever its number is elsewhere.

        Raises:
            UsageError: the teacher's weights have changed, or the device is not the teacher's.
        """
        require_torch("train")  # at once: who keeps torch to one thread, does so with one that is loaded
        if self.threads == 1:
            cv2.setNumThreads(1)  # a worker per core
        own = self.teacher.device
        if device not in ("auto", own, own.partition(":")[0]):
            raise UsageError(f"device: the teacher was opened on {own}, asked for {device}")
        kind, _, first = own.partition(":")
        number = 0 if device == "cuda" else int(first or 0) + worker_number() % self.devices
        if kind != "cpu" and number != int(first or 0) and self.reopen is not None:
            before = self.teacher.identity()
            self.teacher = self.reopen(device=f"{kind}:{number}")
            if self.teacher.identity() != before:
                raise UsageError(f"{self.teacher.name}: the weights changed while the run was starting; run again")

    def __call__(self, records: list[Record]) -> list[Record]:
        """One row for each picture.

        Raises:
            BadData: a picture is none, or a feature is not finite, or too large for float16.
        """
        count = len(records)
        while count > 1 and records[count - 2] is records[count - 1]:
            count -= 1  # the job's padding
        features = self._features([np.asarray(record["image"]) for record in records[:count]])
        if self.threads > 1 and count > 1:
            with ThreadPoolExecutor(min(self.threads, count)) as pool:
                rows = list(pool.map(self.row, records[:count], features))
        else:
            rows = [self.row(*one) for one in zip(records, features, strict=False)]
        return rows + rows[-1:] * (len(records) - count)

    def _features(self, images: Sequence[np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """For each picture level -> (C, h, w) of the type wanted. A CPU takes one by one, so that company changes nothing;
        a GPU always as many, the last picture repeated."""
        names = [level.name for level in self.levels]
        if not names:
            return [{} for _ in images]
        size = 1 if self.bitwise else self.batch_size
        found: list[Mapping[str, np.ndarray]] = []
        for start in range(0, len(images), size):
            some = images[start : start + size]
            with one_thread(self.teacher.device):
                given = self.teacher.features([*some, *[some[-1]] * (size - len(some))])
            halves = self.feature_dtype == "float16"
            arrays = {name: (given[name].half() if halves else given[name]).cpu().numpy() for name in names}
            found += [{name: arrays[name][number] for name in names} for number in range(len(some))]
        for features in found:
            _refuse_not_finite(self.teacher.name, features)
        return found

    def row(self, record: Record, features: Mapping[str, np.ndarray]) -> Record:
        """The row of a picture, of which the features are known: level -> (C, h, w)."""
        picture = np.asarray(record["image"])
        size_hw = (picture.shape[0], picture.shape[1])
        masks = ObjectMasks.from_record(size_hw, record)
        row: Record = {**self._picture(picture), **features}
        if EDGES in self.fields:
            lines = outlines(masks).astype(np.float32)
            row |= {f"edge_{side}x{side}": edge_map(lines, side) for side in self.edge_sides}
        if WEIGHTS in self.fields:
            for side, (inside, outside) in weight_maps(union(masks), self.weight_sides).items():
                row |= {f"fg_map_{side}x{side}": inside, f"bg_map_{side}x{side}": outside}
        if BOX in self.fields:
            row |= self._objects(masks, picture)
        row["image_shape"] = np.array(picture.shape, np.int32)
        return {name: row[name] for name in self.schema}

    def _picture(self, picture: np.ndarray) -> Record:
        """The stretched picture: bilinear and antialiased, as Pillow and SAM2's own transform do it."""
        side = self.teacher.image_size
        pixels = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
        if self.image_codec == "raw":
            return {"image": pixels}
        return {"image_jpeg": np.frombuffer(encode_jpeg(pixels, quality=self.jpeg_quality), np.uint8)}

    def _objects(self, masks: ObjectMasks, picture: np.ndarray) -> Record:
        numbers = chosen(masks, picture, self.strategy, self.max_objects)
        boxes = boxes_xyxy(masks, numbers)
        if self.layout == "store":
            with_masks = MASK in self.fields
            return {"bboxes": boxes, **({"masks": small_masks(masks, numbers, MASK_SIZE)} if with_masks else {})}
        small = small_masks(masks, numbers[:1], MASK_SIZE)
        return {
            "bboxes": boxes[:1] if len(boxes) else np.array([[0, 0, 1, 1]], np.float32),
            "masks": small if len(small) else np.zeros((1, MASK_SIZE, MASK_SIZE), np.uint8),
            "num_bboxes": np.array(len(boxes), np.int32),
            "has_bbox": np.array(len(boxes) > 0, np.int32),
        }

    def _refuse_unknown(self) -> None:
        """Raises:
        UsageError: the teacher has not got a level that is asked for.
        """
        known = self.teacher.levels
        unknown = [name for name in self.fields if name not in known and name not in (EDGES, WEIGHTS, BOX, MASK)]
        if unknown:
            raise UsageError(f"fields: {self.teacher.name} has no {', '.join(unknown)}; it has {', '.join(known)}")

    def _refuse_v1(self) -> None:
        """Raises:
        UsageError: v1 cannot hold what is asked for.
        """
        wrong = {
            f"fields {','.join(self.fields)} (it holds {','.join(DEFAULT_FIELDS)})": {*self.fields}
            != {*DEFAULT_FIELDS},
            f"feature-dtype {self.feature_dtype}": self.feature_dtype != "float32",
            f"image-codec {self.image_codec}": self.image_codec != "raw",
            f"pictures of {self.teacher.image_size} x {self.teacher.image_size}": self.teacher.image_size != IMAGE_SIZE,
            f"several objects (max-objects {self.max_objects}, strategy {self.strategy})": (
                (self.max_objects or 1) > 1 or (self.strategy == "all" and self.max_objects is None)
            ),
            **{
                f"{level.name} of {level.shape}": level.name in V1_SCHEMA and level.shape != V1_SCHEMA[level.name].shape
                for level in self.levels
            },
        }
        refused = [what for what, is_wrong in wrong.items() if is_wrong]
        if refused:
            raise UsageError(f"write v1 cannot hold {'; '.join(refused)}: use --write store")


def attributes_of(stage: TeachPictures) -> dict[str, object]:
    """What an output says of itself. `teacher` is compared where features meet a decoder: its weights must be the same."""
    return {
        "kind": "distillation",
        "reader": "teacher",
        "layout": stage.layout,
        "model_type": stage.teacher.name,
        "teacher": dict(stage.teacher.identity()),
        "image_size": stage.teacher.image_size,
        "mask_size": MASK_SIZE,
        "mask_threshold": MASK_THRESHOLD,
        "bbox_format": "xyxy",
        "bbox_frame": "original",
        "strategy": stage.strategy,
    }


_BOXES = Field(
    name="bboxes", dtype="float32", shape=(None, 4), axes="N 4", kind="boxes",
    meaning="boxes of the chosen objects, the best first, XYXY in original-image pixels; N may be 0",
)  # fmt: skip
_MASKS = Field(
    name="masks", dtype="uint8", shape=(None, MASK_SIZE, MASK_SIZE), axes="N H W", kind="mask",
    meaning=f"one mask per box over the stretched picture, 0 or 1, area-averaged above {MASK_THRESHOLD}",
)  # fmt: skip


def _picture_field(codec: str, size: int) -> Field:
    if codec == "jpeg":
        meaning = f"JPEG, 4:4:4, of the picture stretched to {size} x {size}"
        return Field(name="image_jpeg", dtype="uint8", shape=(None,), axes="N", kind="jpeg", meaning=meaning)
    meaning = f"RGB 0..255, the picture stretched to {size} x {size}"
    return Field(name="image", dtype="uint8", shape=(size, size, 3), axes="H W C", kind="image", meaning=meaning)


def _level_field(level: Level, dtype: str) -> Field:
    meaning = f"teacher features, one column per {level.stride} x {level.stride} pixels of the teacher's input"
    return Field(name=level.name, dtype=dtype, shape=level.shape, axes="C H W", kind="features", meaning=meaning)


def _square_field(kind: str, side: int) -> Field:
    """As v1's field of that kind, of any size; in a file of its own."""
    known = V1_SCHEMA[f"{kind}_64x64"]
    return replace(known, name=f"{kind}_{side}x{side}", shape=(side, side), file="")


def _refuse_not_finite(teacher: str, features: Mapping[str, np.ndarray]) -> None:
    """Raises:
    BadData: a number is NaN or infinite.
    """
    for name, values in features.items():
        if not np.isfinite(values).all():
            bad = np.count_nonzero(~np.isfinite(values))
            raise BadData(f"{teacher}: {name}: expected finite numbers that fit {values.dtype}, got {bad} that are not")
