"""Records of saved sequences: what `Saved` gives back, which fields there are, and how samples become records."""

from collections.abc import Mapping

import numpy as np

from penstock.draws import Frames, Steps, TrackSample
from penstock.schema import Field, Record, Schema
from penstock.sequence_config import SaveConfig
from penstock.sequence_folder import ANNOTATION_KEYS, ROLES, boxes_to_json
from penstock.stages.sequence import CroppedSample
from penstock.stages.sequence_config import CropConfig
from penstock.stages.sequence_record import SampleShape, crop_schema, cropped_record

_HISTORIES = ("backward", "forward")
_PIXELS = "XYWH in pixels of the source's picture, corner from 0; NaN where there is no box"
_DRAWN = {
    "step": ("int64", "of the sampler"),
    "seed": ("uint64", "of the draw"),
    "positive": ("bool", "false: the search frames do not show the target"),
    "gap": ("int32", "by how much max_gap had to grow"),
    "attempts": ("int32", "sequences that the sampler tried until one fitted"),
}


def saved_schema(save: SaveConfig, crops: CropConfig, shape: SampleShape) -> Schema:
    """The fields of saved sequences: those of `crop_schema`, those of the source's own pictures, or both.

    The pictures of the source are single fields, `template_image_000`, since each has its own size.
    """
    fields: list[Field] = []
    if save.pictures != "raw":
        fields += crop_schema(crops, shape).fields
    if save.pictures == "raw":
        fields += _raw_fields(shape)
    if save.pictures != "crops":
        fields += _picture_fields(shape)
    return Schema(field for field in fields if save.save_images or field.kind not in ("image", "mask"))


def saved_record(sample: TrackSample, cropped: CroppedSample | None, save: SaveConfig) -> Record:
    """The record of a sample, and its crops if they are saved; as `saved_schema` says, pictures always included."""
    record = _raw_record(sample) if cropped is None else cropped_record(cropped)
    if save.pictures != "crops":
        for role, frames in _roles(sample).items():
            for number, (image, mask) in enumerate(zip(frames.images, frames.masks, strict=True)):
                record[f"{role}_image_{number:03d}"] = image
                record[f"{role}_mask_{number:03d}"] = np.asarray(mask != 0, np.uint8)
    return record


def annotations_of(sample: TrackSample, cropped: CroppedSample | None) -> dict[str, object]:
    """annotations.json: boxes in pixels of the pictures in `images`; histories in those of the first search picture."""
    if cropped is None:
        boxes = (sample.template.boxes, sample.search.boxes, sample.backward.boxes, sample.forward.boxes)
    else:
        steps = (cropped.backward.crop_boxes, cropped.forward.crop_boxes)
        boxes = (cropped.template.boxes, cropped.search.boxes, *steps)
    return {name: boxes_to_json(one) for name, one in zip(ANNOTATION_KEYS, boxes, strict=True)}


def origin_of(sample: TrackSample) -> dict[str, object]:
    """Where a sample comes from, in plain values: numbers in the tables, files, sizes, boxes in the source's pixels."""
    draw = sample.draw
    rows = {"template": draw.template_rows, "search": draw.search_rows}
    return {
        "key": draw.key,
        "source": draw.source,
        "sequence": draw.sequence,
        "search_source": draw.search_source,
        "search_sequence": draw.search_sequence,
        **{
            role: {
                "rows": rows[role].tolist(),
                "paths": frames.paths,
                "image_hw": [list(image.shape[:2]) for image in frames.images],
                "boxes": boxes_to_json(frames.boxes),
            }
            for role, frames in _roles(sample).items()
        },
        "backward": {"rows": draw.backward.rows.tolist(), "boxes": boxes_to_json(sample.backward.boxes)},
        "forward": {"rows": draw.forward.rows.tolist(), "boxes": boxes_to_json(sample.forward.boxes)},
    }


def _roles(sample: TrackSample) -> Mapping[str, Frames]:
    return dict(zip(ROLES, (sample.template, sample.search), strict=True))


def _steps(sample: TrackSample) -> Mapping[str, Steps]:
    return dict(zip(_HISTORIES, (sample.backward, sample.forward), strict=True))


def _raw_fields(shape: SampleShape) -> list[Field]:
    fields = [Field(name=name, dtype=dtype, kind="number", meaning=text) for name, (dtype, text) in _DRAWN.items()]
    fields += [
        Field(name="is_video", dtype="bool", kind="flag", meaning="false: a single picture"),
        Field(
            name="image_hw", dtype="int32", shape=(2,), axes="2", meaning="height, width of the first search picture"
        ),
        Field(name="draw", dtype="str", kind="text", meaning="from which the sampler rebuilds the draw"),
        Field(name="source", dtype="str", kind="text", meaning="name of the source"),
        Field(name="sequence", dtype="str", kind="text", meaning="name of the sequence"),
        Field(name="category", dtype="str", kind="text", meaning="class of the target; empty where there is none"),
    ]
    for role, count in zip(ROLES, (shape.num_template, shape.num_search), strict=True):
        fields += [
            _boxes(f"{role}_boxes", (count, 4), "N 4"),
            *_numbers(role, count, axes="N"),
            Field(name=f"{role}_paths", dtype="str", kind="text", meaning="files in the source's root, a line each"),
        ]
    for name, count in zip(_HISTORIES, (shape.num_backward, shape.num_forward), strict=True):
        fields += [
            _boxes(f"gt_sequence_anno_{name}", (count, 4), "T 4"),
            *_numbers(name, count, axes="T"),
            Field(
                name=f"{name}_padded",
                dtype="bool",
                shape=(count,),
                axes="T",
                meaning="repeated: the video is too short",
            ),
            Field(
                name=f"{name}_time",
                dtype="float64",
                shape=(count,),
                axes="T",
                meaning="seconds from the first frame; NaN where no rate is known",
                allows_nan=True,
            ),
        ]
    return fields


def _boxes(name: str, shape: tuple[int, int], axes: str) -> Field:
    return Field(name=name, dtype="float64", shape=shape, axes=axes, kind="boxes", meaning=_PIXELS, allows_nan=True)


def _numbers(name: str, count: int, *, axes: str) -> list[Field]:
    shape = (count,)
    return [
        Field(name=f"{name}_frames", dtype="int64", shape=shape, axes=axes, meaning="position in the video, from 0"),
        Field(name=f"{name}_visible", dtype="bool", shape=shape, axes=axes, meaning="the frame's flag"),
        Field(name=f"{name}_valid", dtype="bool", shape=shape, axes=axes, meaning="there is a box of positive size"),
    ]


def _picture_fields(shape: SampleShape) -> list[Field]:
    fields = []
    for role, count in zip(ROLES, (shape.num_template, shape.num_search), strict=True):
        for number in range(count):
            image, mask = f"{role}_image_{number:03d}", f"{role}_mask_{number:03d}"
            size = (None, None)
            fields += [
                Field(
                    name=image, dtype="uint8", shape=(*size, 3), axes="H W C", kind="image", meaning="the source's, RGB"
                ),
                Field(
                    name=mask,
                    dtype="uint8",
                    shape=size,
                    axes="H W",
                    kind="mask",
                    meaning="0 or 1; zeros where it has none",
                ),
            ]
    return fields


def _raw_record(sample: TrackSample) -> Record:
    record: Record = {name: np.array(getattr(sample.draw, name), dtype) for name, (dtype, _) in _DRAWN.items()}
    record |= {
        "is_video": np.array(sample.is_video),
        "image_hw": np.array(sample.image_hw, np.int32),
        "draw": sample.draw.key,
        "source": sample.source,
        "sequence": sample.sequence,
        "category": sample.category,
    }
    for name, part in {**_roles(sample), **_steps(sample)}.items():
        record |= {f"{name}_{field}": getattr(part, field) for field in ("frames", "visible", "valid")}
    for role, frames in _roles(sample).items():
        record |= {f"{role}_boxes": frames.boxes, f"{role}_paths": "\n".join(frames.paths)}
    for name, steps in _steps(sample).items():
        record |= {f"gt_sequence_anno_{name}": steps.boxes}
        record |= {f"{name}_{field}": getattr(steps, field) for field in ("padded", "time")}
    return record
