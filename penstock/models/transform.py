"""A `PictureTransform` applied with Pillow, and read from the files that models are published with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.models.protocols import PictureTransform

if TYPE_CHECKING:
    from PIL import Image

_MODES = ("squash", "shortest")
_INTERPOLATIONS = ("bicubic", "bilinear")


def picture_pixels(picture: "Image.Image", transform: PictureTransform) -> np.ndarray:
    """An RGB picture as a model is fed it, equal to torchvision's transforms of a Pillow picture.

    Returns:
        (3, h, w) float32, normalised.

    Raises:
        BadData: the picture is not RGB.
    """
    from PIL.Image import Resampling

    if picture.mode != "RGB":
        raise BadData(f"expected an RGB picture, got mode {picture.mode}: convert it first")
    height, width = transform.size_hw
    method = Resampling.BICUBIC if transform.interpolation == "bicubic" else Resampling.BILINEAR
    if transform.resize == "squash":
        picture = picture.resize((width, height), method)
    else:
        picture = picture.resize(shortest_side(picture.size, width), method)
        left, top = (round((side - width) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(numbers, np.float32).reshape(3, 1, 1) for numbers in (transform.mean, transform.std))
    return np.ascontiguousarray((pixels - mean) / std, np.float32)


def shortest_side(sides: tuple[int, int], target: int) -> tuple[int, int]:
    """Both sides after the shorter one became `target`; the longer is rounded down, as torchvision does."""
    short, long = min(sides), max(sides)
    other = int(target * long / short)
    return (target, other) if sides[0] <= sides[1] else (other, target)


def transform_facts(transform: PictureTransform) -> dict[str, object]:
    """A transform as plain values, for recipes."""
    return {
        "size_hw": list(transform.size_hw),
        "resize": transform.resize,
        "interpolation": transform.interpolation,
        "mean": list(transform.mean),
        "std": list(transform.std),
    }


def make_transform(
    where: str, size: object, *, resize: object, interpolation: object, mean: object, std: object
) -> PictureTransform:
    """A transform from values that a file states.

    Args:
        where: the file, for messages.
        size: one side, or height and width.
        resize: "squash" or "shortest".
        interpolation: "bicubic" or "bilinear".
        mean: three numbers.
        std: three numbers above 0.

    Raises:
        UsageError: a value that penstock cannot apply.
        BadData: a value that means nothing.
    """
    if resize not in _MODES:
        raise UsageError(f"{where}: resize mode {resize!r}: expected {' or '.join(_MODES)}")
    if interpolation not in _INTERPOLATIONS:
        raise UsageError(f"{where}: interpolation {interpolation!r}: expected {' or '.join(_INTERPOLATIONS)}")
    sides = _numbers(where, "size", [size, size] if isinstance(size, int) else size, 2)
    transform = PictureTransform(
        size_hw=(int(sides[0]), int(sides[1])),
        resize=cast(Any, resize),
        interpolation=cast(Any, interpolation),
        mean=cast(Any, _numbers(where, "mean", mean, 3)),
        std=cast(Any, _numbers(where, "std", std, 3)),
    )
    if min(sides) < 1 or min(transform.std) <= 0:
        raise BadData(f"{where}: expected sides of 1 and more and std above 0, got {transform}")
    if transform.resize == "shortest" and transform.size_hw[0] != transform.size_hw[1]:
        raise UsageError(f"{where}: resize mode shortest to a size that is not square, {transform.size_hw}")
    return transform


def read_processor(where: str, processor: Mapping[str, object]) -> PictureTransform:
    """The transform that a `preprocessor_config.json` of transformers states.

    Its crop from the centre rounds an odd margin down where torchvision rounds to even: one pixel, for some sizes.

    Raises:
        UsageError: it asks for what penstock does not do.
        BadData: a value that means nothing.
    """
    if not (processor.get("do_resize", True) and processor.get("do_rescale", True)):
        raise UsageError(f"{where}: without do_resize or do_rescale: not supported")
    size, crop = processor.get("size"), processor.get("crop_size")
    target: object = size
    is_shortest = isinstance(size, int) or (isinstance(size, Mapping) and "shortest_edge" in size)
    if is_shortest:
        edge = size["shortest_edge"] if isinstance(size, Mapping) else size
        if not processor.get("do_center_crop", crop is not None) or _sides(crop or edge) != [edge, edge]:
            raise UsageError(f"{where}: the shorter side to {edge}, then a crop to {crop}: expected a crop to {edge}")
        target = [edge, edge]
    elif processor.get("do_center_crop"):
        raise UsageError(f"{where}: a crop after both sides are resized: not supported")
    is_normalised = processor.get("do_normalize", True)
    resample = processor.get("resample", 3 if is_shortest else 2)
    return make_transform(
        where,
        _sides(target),
        resize="shortest" if is_shortest else "squash",
        interpolation={2: "bilinear", 3: "bicubic"}.get(resample if isinstance(resample, int) else -1, resample),
        mean=processor.get("image_mean") if is_normalised else [0, 0, 0],
        std=processor.get("image_std") if is_normalised else [1, 1, 1],
    )


def _sides(size: object) -> object:
    if isinstance(size, Mapping):
        return [size.get("height"), size.get("width")]
    return [size, size] if isinstance(size, int) else size


def _numbers(where: str, name: str, values: object, count: int) -> tuple[float, ...]:
    is_list = isinstance(values, Sequence) and len(values) == count
    if not (is_list and all(isinstance(each, (int, float)) for each in cast(Sequence[object], values))):
        raise BadData(f"{where}: {name}: expected {count} numbers, got {values!r}")
    return tuple(float(each) for each in cast(Sequence[float], values))
