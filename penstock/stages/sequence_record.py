"""Cropped samples as records of fixed shapes, and the stage that makes them: a step in, a cropped sample out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from penstock.draws import TrackSample
from penstock.errors import BadData, UsageError
from penstock.schema import Field, Record, Schema
from penstock.stages.sequence import CroppedFrames, CroppedSample, CroppedSteps, Rejected, crop_sample
from penstock.stages.sequence_config import CropConfig

ROLES = ("template", "search")
HISTORIES = ("backward", "forward")

_FILE = "sample"
"""All that is small stands in one file, the pixels of each kind in their own."""
_SEARCH_CROP = "XYWH in pixels of the first search crop; NaN where there is no box"
_SCALARS = {
    "step": ("int64", "of the sampler"),
    "seed": ("uint64", "of everything random that was done to the pictures"),
    "positive": ("bool", "false: the search frames do not show the target"),
    "gap": ("int32", "by how much max_gap had to grow"),
    "attempts": ("int32", "sequences that the sampler tried until one fitted"),
    "is_video": ("bool", "false: a single picture"),
    "joint_flip": ("bool", "all pictures were mirrored before the crop"),
    "gray": ("bool", "all pictures are gray"),
}
_TEXTS = {
    "draw": "from which the sampler rebuilds the draw",
    "source": "name of the source",
    "sequence": "name of the sequence",
    "category": "class of the target; empty where there is none",
}


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """How many pictures and steps the samples of a configuration have."""

    num_template: int = 1
    num_search: int = 1
    num_backward: int = 50
    num_forward: int = 1

    def __post_init__(self) -> None:
        if min(self.num_template, self.num_search) < 1 or min(self.num_backward, self.num_forward) < 0:
            raise UsageError(
                f"sample: expected a template and a search frame or more, histories of 0 or more, got {self}"
            )


class ReadsSteps(Protocol):
    """What gives the stage its samples: a sampler and its sources. Pickles."""

    def __call__(self, step: int, attempt: int) -> TrackSample:
        """The sample of a step; with another attempt (from 0), the one drawn in its place. A pure function.

        Raises:
            BadData: a picture cannot be read.
        """
        ...

    def identity(self) -> dict[str, object]:
        """What defines the samples, as plain values: sources, sampler, seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class SequenceCrops:
    """The stage. Input records: `step`, () int64. Output records: exactly `schema`.

    A sample that cannot be cropped is drawn again, up to `max_attempts` times in all; `rejections` says why, one line each.
    """

    name: ClassVar[str] = "sequence-crops"
    version: ClassVar[int] = 1
    bitwise: ClassVar[bool] = True
    batch_size: ClassVar[int] = 1

    config: CropConfig
    shape: SampleShape
    samples: ReadsSteps
    max_attempts: int = 100

    @property
    def schema(self) -> Schema:
        """`crop_schema`, and `rejections`."""
        meaning = "why earlier draws of this step were rejected, a line each"
        return Schema(
            [*crop_schema(self.config, self.shape).fields, Field(name="rejections", dtype="str", meaning=meaning)]
        )

    def identity(self) -> dict[str, object]:
        """What defines the output, as plain values."""
        return {
            "stage": self.name,
            "version": self.version,
            "crop": self.config.identity(),
            "shape": dict(vars(self.shape)),
            "samples": self.samples.identity(),
            "max_attempts": self.max_attempts,
        }

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        """One cropped sample per step.

        Raises:
            BadData: a picture cannot be read, or no draw of the step can be cropped.
        """
        return [self._cropped(int(np.asarray(record["step"]))) for record in records]

    def _cropped(self, step: int) -> Record:
        sample, rejected = first_accepted(
            lambda attempt: self.samples(step, attempt), self.config, max_attempts=self.max_attempts
        )
        return {**cropped_record(sample), "rejections": "\n".join(one.reason for one in rejected)}


def first_accepted(
    read: Callable[[int], TrackSample], config: CropConfig, *, max_attempts: int
) -> tuple[CroppedSample, list[Rejected]]:
    """The first draw that can be cropped, and why those before could not.

    Args:
        read: attempt (from 0) to sample.
        config: what to do to them.
        max_attempts: how many to try, 1 or more.

    Raises:
        BadData: none of them can be; the message holds the counts of the reasons and the last detail.
    """
    rejected: list[Rejected] = []
    for attempt in range(max_attempts):
        found = crop_sample(read(attempt), config)
        if isinstance(found, CroppedSample):
            return found, rejected
        rejected.append(found)
    reasons = [one.reason for one in rejected]
    counts = ", ".join(f"{reasons.count(reason)} x {reason}" for reason in sorted(set(reasons)))
    last = rejected[-1].detail if rejected else "none was tried"
    raise BadData(f"none of {max_attempts} draws can be cropped: {counts}; the last one: {last}")


def crop_schema(config: CropConfig, shape: SampleShape) -> Schema:
    """The fields of `cropped_record`: all of fixed shape but the texts."""
    fields = [Field(name=name, dtype=dtype, meaning=meaning, file=_FILE) for name, (dtype, meaning) in _SCALARS.items()]
    fields.append(
        Field(
            name="image_hw",
            dtype="int32",
            shape=(2,),
            file=_FILE,
            meaning="height and width of the first search picture",
        )
    )
    fields += [Field(name=name, dtype="str", meaning=meaning) for name, meaning in _TEXTS.items()]
    fields += _role_fields("template", shape.num_template, config.template.size)
    fields += _role_fields("search", shape.num_search, config.search.size)
    unit = "of the picture's sides, 0..1" if config.normalize_history else "in pixels of the picture"
    for name, steps in zip(HISTORIES, (shape.num_backward, shape.num_forward), strict=True):
        fields += _history_fields(name, steps, unit)
    return Schema(fields)


def cropped_record(sample: CroppedSample) -> Record:
    """A cropped sample as a record of `crop_schema`. Roots of sources, which differ between machines, are left out."""
    draw = sample.draw
    scalars = {**vars(draw), **vars(sample)}
    record: Record = {name: np.array(scalars[name], dtype) for name, (dtype, _) in _SCALARS.items()}
    record |= {
        "image_hw": np.array(sample.image_hw, np.int32),
        "draw": draw.key,
        "source": sample.source,
        "sequence": sample.sequence,
        "category": sample.category,
    }
    for role, frames in zip(ROLES, (sample.template, sample.search), strict=True):
        record |= _role_record(role, frames)
    for name, steps in zip(HISTORIES, (sample.backward, sample.forward), strict=True):
        record |= _history_record(name, steps)
    return record


def _role_fields(role: str, number: int, size: int) -> list[Field]:
    def one(name: str, dtype: str, *shape: int, axes: str = "N", kind: str = "array", meaning: str) -> Field:
        full, file = (number, *shape), f"{role}_{name}" if shape[:1] == (size,) else _FILE
        return Field(
            name=f"{role}_{name}", dtype=dtype, shape=full, axes=axes, kind=kind, meaning=meaning, file=file,
            allows_nan=name == "boxes",
        )  # fmt: skip

    box = {"axes": "N 4", "kind": "boxes"}
    pixels = "pixels of the source's picture"
    return [
        one(
            "images", "uint8", size, size, 3, axes="N H W C", kind="image", meaning="RGB 0..255 as fed, not normalised"
        ),
        one("anno", "float32", 4, **box, meaning="XYWH in units of the crop's side, by the original's formula"),
        one("boxes", "float64", 4, **box, meaning="XYWH in pixels of the crop, exact; NaN where there is no box"),
        one("masks", "uint8", size, size, axes="N H W", kind="mask", meaning="0 or 1"),
        one("att", "bool", size, size, axes="N H W", kind="mask", meaning="true where outside the picture"),
        one("affine", "float64", 2, 3, axes="N 2 3", meaning=f"{pixels} to pixels of the crop, all mirroring included"),
        one("crop_box", "float64", 4, **box, meaning=f"the crop, XYWH in {pixels}; may reach outside"),
        one("around", "float64", 4, **box, meaning=f"the jittered box, XYWH in {pixels}"),
        one("flip", "bool", meaning="the crop was mirrored on its own"),
        one("brightness", "float64", meaning="factor of the pixels"),
        one("frames", "int64", meaning="position in the video, from 0"),
        one("visible", "bool", meaning="the frame's flag"),
        one("valid", "bool", meaning="the frame's box is annotated, of positive size"),
        Field(name=f"{role}_paths", dtype="str", meaning="of the pictures, relative to the source's root, a line each"),
    ]


def _history_fields(name: str, steps: int, unit: str) -> list[Field]:
    def one(field: str, dtype: str, *, meaning: str, boxes: bool = False) -> Field:
        shape, axes, kind = ((steps, 4), "T 4", "boxes") if boxes else ((steps,), "T", "array")
        return Field(
            name=field, dtype=dtype, shape=shape, axes=axes, kind=kind, meaning=meaning, file=_FILE,
            allows_nan=dtype.startswith("float"),
        )  # fmt: skip

    return [
        one(f"gt_sequence_anno_{name}", "float32", boxes=True, meaning=f"as fed: XYWH {unit}"),
        one(f"{name}_boxes", "float64", boxes=True, meaning="XYWH in pixels of the picture, mirrored as it was"),
        one(f"{name}_crop_boxes", "float64", boxes=True, meaning=_SEARCH_CROP),
        one(f"{name}_frames", "int64", meaning="position in the video, from 0"),
        one(f"{name}_visible", "bool", meaning="the frame's flag"),
        one(f"{name}_valid", "bool", meaning="the frame's box is annotated, of positive size"),
        one(f"{name}_padded", "bool", meaning="repeated, because the video is too short"),
        one(f"{name}_time", "float64", meaning="seconds from the video's first frame; NaN where no rate is known"),
    ]


def _role_record(role: str, frames: CroppedFrames) -> Record:
    values = {f"{role}_{name}": value for name, value in vars(frames).items()}
    return {**values, f"{role}_paths": "\n".join(frames.paths)}


def _history_record(name: str, steps: CroppedSteps) -> Record:
    values = dict(vars(steps))
    anno = values.pop("anno")
    return {f"gt_sequence_anno_{name}": anno, **{f"{name}_{field}": value for field, value in values.items()}}
