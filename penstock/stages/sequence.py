"""Crops of a tracking sample: joint and per-frame augmentation, the boxes and histories that go with it, and every map.

What is done, and its defaults, is what the STARK and OSTrack training code does: for all pictures of a sample together gray
or not and mirrored or not; for each picture a jittered box, the square around it with black beyond the border, brightness,
and a second mirroring of the crop alone. Three things differ on purpose: the histories are mirrored with the pictures
(`history="original"` is as the original), a picture's last row and column are not taken for padding where the crop reaches
over them, and mirrored boxes are at W - right, not at W - 1 - right.

All that is random is a pure function of `Draw.seed`. All coordinates are continuous: a pixel in column x covers x..x+1.
"""

import math
from dataclasses import dataclass, field, fields, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from penstock.draws import Draw, Frames, Steps, TrackSample
from penstock.errors import UsageError
from penstock.geometry import crops
from penstock.geometry.boxes import box_fault
from penstock.tracking_random import chances, states, words

ATTENTION_STRIDE = 16
"""Pixels of the crop per cell of the attention mask that the network makes of it."""

_JOINT, _TEMPLATE, _SEARCH = range(3)
_GRAY, _FLIP, _BRIGHTNESS, _GROWTH_X, _GROWTH_Y, _OFFSET_X, _OFFSET_Y = range(7)
_NORMAL = NormalDist()
_CENTER_SHARE = 1 / 8


@dataclass(frozen=True, kw_only=True)
class RoleCrop:
    """How the pictures of one role are cropped."""

    factor: float
    """Side of the crop over sqrt(w * h) of the box it is made around."""
    size: int
    """Side of the crop as fed, in pixels; a multiple of 16 for most networks, 16 at least."""
    center_jitter: float = 0.0
    """The centre moves by up to half of this times sqrt(w * h)."""
    scale_jitter: float = 0.0
    """Width and height are multiplied by exp(normal * this), each on its own."""

    def __post_init__(self) -> None:
        numbers = (self.factor, self.center_jitter, self.scale_jitter)
        if not all(map(math.isfinite, numbers)) or self.factor <= 0 or min(numbers) < 0:
            raise UsageError(f"crop: expected a factor above 0 and jitters of 0 and more, got {self}")
        if not ATTENTION_STRIDE <= self.size <= 1 << 12:
            raise UsageError(f"crop: expected a size of {ATTENTION_STRIDE}..4096 pixels, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What is done to a sample. The defaults are the original's."""

    template: RoleCrop = field(default_factory=lambda: RoleCrop(factor=2.0, size=128))
    search: RoleCrop = field(
        default_factory=lambda: RoleCrop(factor=4.0, size=256, center_jitter=3.0, scale_jitter=0.25)
    )
    gray_prob: float = 0.05
    """That all pictures of a sample are gray."""
    flip_prob: float = 0.5
    """That all of them are mirrored, before the crop."""
    frame_flip_prob: float = 0.5
    """That a crop is mirrored, each on its own."""
    brightness: float = 0.2
    """Each crop is multiplied by a number in 1 - this .. 1 + this."""
    history: Literal["mapped", "original"] = "mapped"
    """"original": the histories are not mirrored with the pictures, and a step without a box has zeros."""
    normalize_history: bool = False
    """Histories as fed are divided by the picture's width and height and clipped to 0..1 (the original's TIMProcessing);
    else they are in pixels (its STARKProcessing)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("gray_prob", "flip_prob", "frame_flip_prob", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}: expected 0..1, got {getattr(self, name)}")
        if self.history not in ("mapped", "original"):
            raise UsageError(f"history: expected mapped or original, got {self.history!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise UsageError(f"mean and std: expected three numbers each, std above 0, got {self.mean} and {self.std}")

    def without_augmentation(self) -> "CropConfig":
        """The same crops with nothing random: for evaluation and for looking."""
        return replace(
            self,
            template=replace(self.template, center_jitter=0.0, scale_jitter=0.0),
            search=replace(self.search, center_jitter=0.0, scale_jitter=0.0),
            gray_prob=0.0,
            flip_prob=0.0,
            frame_flip_prob=0.0,
            brightness=0.0,
        )

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 RGB to what the network is fed: (n, 3, S, S) float32, (value / 255 - mean) / std."""
        scaled = (images.astype(np.float32) / np.float32(255) - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def denormalised(self, images: np.ndarray) -> np.ndarray:
        """The inverse of `normalised`: (n, 3, S, S) floats to (n, S, S, 3) uint8, rounded, clipped to 0..255."""
        scaled = images.transpose(0, 2, 3, 1) * np.float32(self.std) + np.float32(self.mean)
        return np.clip(np.rint(scaled * np.float32(255)), 0, 255).astype(np.uint8)


@dataclass(kw_only=True)
class CroppedFrames:
    """The crops of one role, n of side S. Affine, crop box and box are those of the picture as the source has it."""

    images: np.ndarray
    """(n, S, S, 3) uint8 RGB as fed, before `CropConfig.normalised`. Brightness is rounded to whole values."""
    anno: np.ndarray
    """(n, 4) float32 XYWH in units of the crop's side, as the original feeds it (`geometry.crops.fed_boxes`). A negative
    has there the box it was cropped around, which may be no object's."""
    boxes: np.ndarray
    """(n, 4) float64 XYWH in pixels of the crop, by the affine: exact; may reach outside; NaN where there is no box."""
    masks: np.ndarray
    """(n, S, S) uint8, 0 or 1."""
    att: np.ndarray
    """(n, S, S) bool: True where the crop shows something outside the picture."""
    affine: np.ndarray
    """(n, 2, 3) float64: point of the crop = matrix @ (x, y, 1) of the source's picture, every mirroring included."""
    crop_box: np.ndarray
    """(n, 4) float64 XYWH in pixels of the source's picture; may reach outside."""
    around: np.ndarray
    """(n, 4) float64 XYWH in pixels of the source's picture: the jittered box that the crop was made around."""
    flip: np.ndarray
    """(n,) bool: the crop was mirrored on its own."""
    brightness: np.ndarray
    """(n,) float64: the factor."""
    frames: np.ndarray
    """(n,) int64: position in the video."""
    visible: np.ndarray
    """(n,) bool."""
    valid: np.ndarray
    """(n,) bool."""
    paths: list[str]
    """Relative to the source's root."""


@dataclass(kw_only=True)
class CroppedSteps:
    """A history of T steps beside the crops."""

    anno: np.ndarray
    """(T, 4) float32 as fed: `boxes`, divided and clipped with `normalize_history`. NaN (history="original": 0) where
    there is no box."""
    boxes: np.ndarray
    """(T, 4) float64 XYWH in pixels of the picture, mirrored with it unless history="original"; NaN where there is none."""
    crop_boxes: np.ndarray
    """(T, 4) float64 XYWH in pixels of the first search crop, where `history` changes nothing; NaN where there is no box,
    and in all steps of a negative whose search frames are of another sequence."""
    frames: np.ndarray
    """(T,) int64: position in the video."""
    visible: np.ndarray
    """(T,) bool."""
    valid: np.ndarray
    """(T,) bool."""
    padded: np.ndarray
    """(T,) bool: repeated, because the video is too short."""
    time: np.ndarray
    """(T,) float64 seconds from the video's first frame; NaN where no rate is known."""


@dataclass(kw_only=True)
class CroppedSample:
    """A sample as a network is fed it, with all that relates it to its source."""

    draw: Draw
    source: str
    sequence: str
    category: str
    is_video: bool
    template: CroppedFrames
    search: CroppedFrames
    backward: CroppedSteps
    forward: CroppedSteps
    image_hw: tuple[int, int]
    """Height and width of the first search picture."""
    joint_flip: bool
    """All pictures were mirrored before the crop."""
    gray: bool
    roots: dict[str, str]
    """Source name -> its root."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A sample that cannot be cropped: an outcome to be counted; the caller draws the next one."""

    reason: str
    """One of a few sentences, to count by."""
    detail: str
    """Which picture, and the numbers."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One crop before its pixels are touched. Window and box are in the picture as the joint mirroring leaves it."""

    window: crops.CropWindow
    box: np.ndarray
    around: np.ndarray
    att: np.ndarray
    mirrored_width: int | None
    flip: bool
    brightness: float


def crop_sample(sample: TrackSample, config: CropConfig) -> CroppedSample | Rejected:
    """Crops and augments a sample. A pure function of the sample (with its `draw.seed`) and the configuration.

    Args:
        sample: one search picture or more. Its arrays are not written to. Histories are of the template's video, whose
            pictures all have the size of the first template.
        config: what to do.

    Returns:
        The crops; or Rejected, without a pixel being touched, where a template's or a search frame's box is not valid or
        lies outside its picture, or the crop's side is < 1 or > `crops.MAX_SIDE`, or the attention mask is padding only,
        as it is or at every 16th pixel. A negative is cropped around a box in the middle of its picture, 1/8 of it wide
        and high, if it shows the same sequence or has no box.
    """
    gray_roll, flip_roll = _rolls(sample.draw.seed, _JOINT, 1)[0, [_GRAY, _FLIP]]
    gray, joint_flip = bool(gray_roll < config.gray_prob), bool(flip_roll < config.flip_prob)
    plans: dict[int, list[_Plan]] = {}
    for role, frames in ((_TEMPLATE, sample.template), (_SEARCH, sample.search)):
        planned = _planned(sample, frames, role, config=config, joint_flip=joint_flip)
        if isinstance(planned, Rejected):
            return planned
        plans[role] = planned
    search = _cropped(sample.search, plans[_SEARCH], gray=gray)
    draw = sample.draw
    is_same = (draw.source, draw.sequence) == (draw.search_source, draw.search_sequence)
    size_hw = sample.template.images[0].shape[:2]
    affine = search.affine[0] if is_same else np.full((2, 3), np.nan)
    histories = [
        _history(steps, config, affine=affine, size_hw=size_hw, joint_flip=joint_flip)
        for steps in (sample.backward, sample.forward)
    ]
    return CroppedSample(
        draw=draw,
        source=sample.source,
        sequence=sample.sequence,
        category=sample.category,
        is_video=sample.is_video,
        template=_cropped(sample.template, plans[_TEMPLATE], gray=gray),
        search=search,
        backward=histories[0],
        forward=histories[1],
        image_hw=sample.image_hw,
        joint_flip=joint_flip,
        gray=gray,
        roots=sample.roots,
    )


def config_values(config: CropConfig) -> dict[str, object]:
    """A configuration as plain values for a recipe, nested as it is."""
    values: dict[str, object] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        values[one.name] = dict(vars(value)) if isinstance(value, RoleCrop) else value
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _rolls(seed: int, role: int, number: int) -> np.ndarray:
    """(number, 7) in 0..1: one row per frame, one column per purpose. A frame's do not depend on the others'."""
    frames = states(seed, np.arange(number))
    return np.stack([chances(words(frames, role, purpose)) for purpose in range(_OFFSET_Y + 1)], axis=1)


def _planned(
    sample: TrackSample, frames: Frames, role: int, *, config: CropConfig, joint_flip: bool
) -> list[_Plan] | Rejected:
    name, settings = ("template", config.template) if role == _TEMPLATE else ("search", config.search)
    plans = []
    for number, rolls in enumerate(_rolls(sample.draw.seed, role, len(frames.images))):
        size_hw = frames.images[number].shape[:2]
        where = f"{name} {number} ({frames.paths[number]})"
        box = _target(sample.draw, frames, number, role)
        if fault := "" if box is None else box_fault(box, size_hw):
            is_outside = fault.startswith("outside")
            return Rejected(
                reason=f"{name} box is {'outside the picture' if is_outside else 'not valid'}",
                detail=f"{where}: {fault}",
            )
        if box is None:
            return Rejected(
                reason=f"{name} box is not valid", detail=f"{where}: the source says that it shows no target"
            )
        mirrored_width = size_hw[1] if joint_flip else None
        plan = _plan(box, rolls, size_hw=size_hw, settings=settings, mirrored_width=mirrored_width)
        if isinstance(plan, Rejected):
            return replace(plan, detail=f"{where}: {plan.detail}")
        flip = bool(rolls[_FLIP] < config.frame_flip_prob)
        lowest = max(0.0, 1 - config.brightness)
        brightness = lowest + float(rolls[_BRIGHTNESS]) * (1 + config.brightness - lowest)
        plan = replace(plan, flip=flip, brightness=brightness, att=plan.att[:, ::-1] if flip else plan.att)
        if reason := _attention_fault(plan.att):
            return Rejected(reason=reason, detail=f"{where}: crop {plan.window}, picture {size_hw}")
        plans.append(plan)
    return plans
