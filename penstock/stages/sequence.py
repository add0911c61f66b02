"""Crops of a tracking sample: joint and per-frame augmentation, the boxes and histories that go with it, and every map.

What is done, and its defaults, is what the STARK and OSTrack training code does: for all pictures of a sample together gray
or not and mirrored or not; for each picture a jittered box, the square around it with black beyond the border, brightness,
and a second mirroring of the crop alone. Three things differ on purpose: the histories are mirrored with the pictures
(`history="original"` is as the original), a picture's last row and column are not taken for padding where the crop reaches
over them, and mirrored boxes are at W - right, not at W - 1 - right.

All that is random is a pure function of `Draw.seed`. All coordinates are continuous: a pixel in column x covers x..x+1.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from penstock.draws import Draw, Frames, Steps, TrackSample
from penstock.geometry import crops
from penstock.geometry.boxes import box_fault
from penstock.stages.sequence_config import ATTENTION_STRIDE, CropConfig
from penstock.tracking_random import chances, states, words

_JOINT, _TEMPLATE, _SEARCH = range(3)
_GRAY, _FLIP, _BRIGHTNESS, _GROWTH_X, _GROWTH_Y, _OFFSET_X, _OFFSET_Y = range(7)
_NORMAL = NormalDist()
_CENTER_SHARE = 1 / 8
_FARTHEST = 1e9
"""A box with a larger number is taken for a wrong one."""


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


def _rolls(seed: int, role: int, number: int) -> np.ndarray:
    """(number, 7) in 0..1: one row per frame, one column per purpose. A frame's do not depend on the others'."""
    frames = states(seed, np.arange(number))
    return np.stack([chances(words(frames, role, purpose)) for purpose in range(_OFFSET_Y + 1)], axis=1)


def _planned(
    sample: TrackSample, frames: Frames, role: int, *, config: CropConfig, joint_flip: bool
) -> list[_Plan] | Rejected:
    name = "template" if role == _TEMPLATE else "search"
    plans = []
    for number, rolls in enumerate(_rolls(sample.draw.seed, role, len(frames.images))):
        size_hw = (frames.images[number].shape[0], frames.images[number].shape[1])
        target = _target(sample.draw, frames, number, size_hw=size_hw, role=role)
        plan = _plan(target, rolls, size_hw, config=config, role=role, joint_flip=joint_flip)
        if isinstance(plan, str):
            numbers = ", ".join(f"{value:g}" for value in frames.boxes[number])
            return Rejected(
                reason=f"{name} {plan}",
                detail=f"{name} {number}, {frames.paths[number]}: box {numbers} in a picture of "
                f"{size_hw[0]} x {size_hw[1]} (height x width), seed {sample.draw.seed}",
            )
        plans.append(plan)
    return plans


def _target(draw: Draw, frames: Frames, number: int, *, size_hw: tuple[int, int], role: int) -> np.ndarray:
    """The box to crop around, before jitter; NaN where there is none."""
    box = frames.boxes[number] if frames.valid[number] else np.full(4, np.nan)
    if role == _TEMPLATE or draw.positive:
        return box
    is_same = (draw.source, draw.sequence) == (draw.search_source, draw.search_sequence)
    if not is_same and not box_fault(box, size_hw):
        return box  # another object, where it is
    height, width = size_hw
    wide, high = width * _CENTER_SHARE, height * _CENTER_SHARE
    return np.array([width / 2 - wide / 2, height / 2 - high / 2, wide, high])


def _plan(
    box: np.ndarray, rolls: np.ndarray, size_hw: tuple[int, int], *, config: CropConfig, role: int, joint_flip: bool
) -> _Plan | str:
    """Or the reason why there is no crop."""
    if fault := box_fault(box, size_hw):
        return "box is outside the picture" if fault.startswith("outside") else "box is not valid"
    if np.abs(box).max() > _FARTHEST:
        return "box is not valid"
    settings = config.template if role == _TEMPLATE else config.search
    mirrored_width = size_hw[1] if joint_flip else None
    if mirrored_width is not None:
        box = crops.mirror_boxes(box, mirrored_width)
    around = crops.jitter_box(
        box,
        growth=np.array([_normal(rolls[_GROWTH_X]), _normal(rolls[_GROWTH_Y])]),
        offset=rolls[[_OFFSET_X, _OFFSET_Y]] - 0.5,
        scale_jitter=settings.scale_jitter,
        center_jitter=settings.center_jitter,
    )
    window = crops.crop_window(around, factor=settings.factor, size=settings.size)
    if not 1 <= window.side <= crops.MAX_SIDE:
        return "crop side < 1" if window.side < 1 else f"crop side > {crops.MAX_SIDE}"
    flip = bool(rolls[_FLIP] < config.frame_flip_prob)
    padding = crops.crop_padding(window, size_hw)
    att = padding[:, ::-1] if flip else padding
    if att.all():
        return "attention mask all padding"
    cells = np.arange(settings.size // ATTENTION_STRIDE) * settings.size // (settings.size // ATTENTION_STRIDE)
    if att[np.ix_(cells, cells)].all():
        return f"attention mask all padding after down-sampling by {ATTENTION_STRIDE}"
    lowest = 1 - config.brightness
    return _Plan(
        window=window,
        box=box,
        around=around,
        att=att,
        mirrored_width=mirrored_width,
        flip=flip,
        brightness=lowest + float(rolls[_BRIGHTNESS]) * 2 * config.brightness,
    )


def _normal(roll: float) -> float:
    """A standard normal number from one in 0..1 (1 excluded), by the inverse of its distribution."""
    return _NORMAL.inv_cdf(min(float(roll) + 2.0**-54, 1 - 2.0**-53))


def _cropped(frames: Frames, plans: list[_Plan], *, gray: bool) -> CroppedFrames:
    affine = np.stack(
        [crops.crop_affine(plan.window, mirrored_width=plan.mirrored_width, flip=plan.flip) for plan in plans]
    )
    own = np.where(np.asarray(frames.valid, bool)[:, None], frames.boxes, np.nan)
    return CroppedFrames(
        images=np.stack([_pixels(image, plan, gray) for image, plan in zip(frames.images, plans, strict=True)]),
        anno=np.stack([_anno(plan) for plan in plans]).astype(np.float32),
        boxes=np.stack([crops.map_boxes(box, one) for box, one in zip(own, affine, strict=True)]),
        masks=np.stack([_mask_pixels(mask, plan) for mask, plan in zip(frames.masks, plans, strict=True)]),
        att=np.stack([plan.att for plan in plans]),
        affine=affine,
        crop_box=np.stack([_in_source(plan.window.box, plan) for plan in plans]),
        around=np.stack([_in_source(plan.around, plan) for plan in plans]),
        flip=np.array([plan.flip for plan in plans], bool),
        brightness=np.array([plan.brightness for plan in plans], np.float64),
        frames=np.asarray(frames.frames, np.int64),
        visible=np.asarray(frames.visible, bool),
        valid=np.asarray(frames.valid, bool),
        paths=list(frames.paths),
    )


def _pixels(image: np.ndarray, plan: _Plan, gray: bool) -> np.ndarray:
    crop = crops.cut_crop(image, plan.window, mirrored=plan.mirrored_width is not None, gray=gray)
    if plan.brightness != 1:
        crop = crops.brighten(crop, plan.brightness)
    return crops.mirror_pixels(crop) if plan.flip else crop


def _mask_pixels(mask: np.ndarray, plan: _Plan) -> np.ndarray:
    crop = crops.cut_mask(mask, plan.window, mirrored=plan.mirrored_width is not None)
    return crops.mirror_pixels(crop) if plan.flip else crop


def _anno(plan: _Plan) -> np.ndarray:
    boxes = crops.fed_boxes(plan.box, plan.around, plan.window)
    return crops.mirror_boxes(boxes, 1) if plan.flip else boxes


def _in_source(box: np.ndarray, plan: _Plan) -> np.ndarray:
    return box if plan.mirrored_width is None else crops.mirror_boxes(box, plan.mirrored_width)


def _history(
    steps: Steps, config: CropConfig, *, affine: np.ndarray, size_hw: tuple[int, int], joint_flip: bool
) -> CroppedSteps:
    own = np.where(np.asarray(steps.valid, bool)[:, None], steps.boxes, np.nan)
    height, width = size_hw
    boxes = crops.mirror_boxes(own, width) if joint_flip and config.history == "mapped" else own
    anno = boxes if config.history == "mapped" else np.nan_to_num(boxes, nan=0.0)
    if config.normalize_history:
        anno = np.clip(anno / np.array([width, height, width, height]), 0, 1)
    return CroppedSteps(
        anno=anno.astype(np.float32),
        boxes=boxes,
        crop_boxes=crops.map_boxes(own, affine),
        frames=np.asarray(steps.frames, np.int64),
        visible=np.asarray(steps.visible, bool),
        valid=np.asarray(steps.valid, bool),
        padded=np.asarray(steps.padded, bool),
        time=np.asarray(steps.time, np.float64),
    )
