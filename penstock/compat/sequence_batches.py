"""What a DataLoader over tracking samples gives, taken apart: batches of any size into samples, tensors into arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import BadData, UsageError

Sample = dict[str, Any]
"""Field name -> array, text, number, or lists of these."""


def split_batch(data: Mapping[str, Any], batch_dim: int | None = None) -> Iterator[Sample]:
    """The samples of what a loader gave; of a single sample, itself.

    `template_anno` tells which it is: (N, 4), or a list of (4,), is a sample; one dimension more is a batch. Lists hold one
    entry per frame and each entry its batch, as every collate function makes them; lists of texts hold one text per sample.

    A batch is stacked on dimension 0 (torch's default collate) or 1 (the original's, frames first). Which one follows from
    the sizes: all stacked fields must have the number of samples there. Where both would do, `batch_dim` decides.

    Args:
        data: a mapping (a dict, a TensorDict) of tensors, arrays, lists, texts, numbers.
        batch_dim: 0 or 1; None: it follows from the sizes.

    Raises:
        BadData: there is no `template_anno`, or the sizes fit no number of samples.
        UsageError: both dimensions fit, and `batch_dim` is not given.
    """
    plain = {name: _plain(value) for name, value in data.items()}
    if not _is_batch(plain):
        yield plain
        return
    size, dim = _layout(plain, batch_dim)
    for number in range(size):
        yield {name: _part(value, number, dim) for name, value in plain.items()}


def _plain(value: Any) -> Any:
    """Tensors as arrays; mappings as dicts; lists and tuples as lists."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _is_batch(data: Sample) -> bool:
    boxes = data.get("template_anno")
    if isinstance(boxes, np.ndarray):
        return boxes.ndim == 3
    if isinstance(boxes, list) and boxes:
        return np.ndim(boxes[0]) == 2
    raise BadData(
        f"a sample needs template_anno, (N, 4) boxes; got {type(boxes).__name__}; its keys are {sorted(data)}"
    )


def _layout(data: Sample, batch_dim: int | None) -> tuple[int, int]:
    """Number of samples, and the dimension they are stacked on."""
    known = set(_counts(data.values()))
    stacked = [array.shape for array in _arrays(data.values()) if array.ndim >= 2]
    fits = {}
    for dim in (0, 1) if batch_dim is None else (batch_dim,):
        sizes = {shape[dim] for shape in stacked} | known
        if len(sizes) == 1:
            fits[dim] = sizes.pop()
    if not fits:
        raise BadData(
            f"a batch of {sorted(known)} samples whose fields have the shapes {sorted(set(stacked))}: these do not fit"
        )
    if len(fits) == 2 and any(shape[0] != 1 or shape[1] != 1 for shape in stacked):
        raise UsageError(
            f"a batch of {fits[0]} samples, stacked fields {sorted(set(stacked))}: samples may lie along dimension 0 or 1; "
            "say which: SequenceSaver(..., batch_dim=0) for torch's default collate, 1 for frames first"
        )
    dim = min(fits)
    return fits[dim], dim


def _counts(values: Any) -> Iterator[int]:
    """Sizes of what can only be one entry per sample: lists of texts, arrays of one dimension."""
    for value in values:
        if isinstance(value, list):
            if value and isinstance(value[0], str):
                yield len(value)
            else:
                yield from _counts(value)
        elif isinstance(value, dict):
            yield from _counts(value.values())
        elif isinstance(value, np.ndarray) and value.ndim == 1:
            yield len(value)


def _arrays(values: Any) -> Iterator[np.ndarray]:
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, list):
            yield from _arrays(value)
        elif isinstance(value, dict):
            yield from _arrays(value.values())


def _part(value: Any, number: int, dim: int) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        return value[number] if value.ndim == 1 else value.take(number, axis=dim)
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return value[number]
        return [_part(one, number, dim) for one in value]
    if isinstance(value, dict):
        return {name: _part(one, number, dim) for name, one in value.items()}
    return value


def boxes_of(sample: Sample, name: str) -> np.ndarray:
    """(N, 4) float64 boxes of a field: of an array (4,), (N, 4) or (1, N, 4), or of a list of them.

    Raises:
        BadData: anything else.
    """
    value = sample.get(name)
    if value is None or (isinstance(value, list) and not value):
        return np.zeros((0, 4))
    try:
        boxes = np.array([np.asarray(one) for one in value] if isinstance(value, list) else value, np.float64)
    except (TypeError, ValueError) as error:
        raise BadData(f"{name}: expected boxes (N, 4): {error}") from error
    if not boxes.size or boxes.shape[-1] != 4:
        raise BadData(f"{name}: expected boxes (N, 4), got shape {boxes.shape}")
    return boxes.reshape(-1, 4)


def numbers_of(sample: Sample, name: str) -> list[int]:
    """Frame ids of a field, as plain integers.

    Raises:
        BadData: they are no integers.
    """
    value = sample.get(name)
    flat = np.array([] if value is None else value).reshape(-1)
    if flat.size and (flat.dtype.kind not in "iuf" or (flat != np.round(flat)).any()):
        raise BadData(f"{name}: expected frame ids, whole numbers, got {flat[:5].tolist()}")
    return [int(one) for one in flat]


def pixels_of(
    sample: Sample, name: str, *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[np.ndarray]:
    """Pictures of a field as (H, W, 3) uint8 RGB each.

    uint8 is taken as it is. Floats are undone by mean and std where these are known, and are 0..1 otherwise; nothing is
    guessed from their values, and values that fit neither are refused. (3, H, W) and (H, W, 3) are both taken.

    Args:
        sample: see `split_batch`.
        name: "template_images" or "search_images": an array (N, ...) or (3, H, W), or a list of pictures.
        mean: of the normalisation, three numbers; `image_mean` of the sample goes before.
        std: as mean, `image_std`.

    Raises:
        BadData: no pictures, another shape, or values outside the range.
    """
    value = sample.get(name)
    if value is None or len(value) == 0:
        raise BadData(f"{name}: no pictures; use save_images=False where there are none")
    if isinstance(value, np.ndarray) and value.ndim == 3:
        value = value[None]
    shift, scale = _numbers(sample.get("image_mean", mean)), _numbers(sample.get("image_std", std))
    if (shift is None) != (scale is None):
        raise BadData(f"{name}: image_mean and image_std belong together, got {shift} and {scale}")
    return [_pixels(np.asarray(one), name, shift, scale) for one in value]


def _numbers(value: Any) -> np.ndarray | None:
    return None if value is None else np.array(value, np.float64).reshape(3)


def _pixels(picture: np.ndarray, name: str, mean: np.ndarray | None, std: np.ndarray | None) -> np.ndarray:
    if picture.ndim == 3 and picture.shape[-1] != 3 and picture.shape[0] == 3:
        picture = picture.transpose(1, 2, 0)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise BadData(f"{name}: expected pictures (3, H, W) or (H, W, 3), got shape {picture.shape}")
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    if picture.dtype.kind != "f":
        raise BadData(f"{name}: expected uint8 or floats, got {picture.dtype}")
    values = picture.astype(np.float64)
    if mean is not None and std is not None:
        values = values * std + mean
    low, high = float(values.min()), float(values.max())
    slack = 0.5 / 255
    if not (low >= -slack and high <= 1 + slack):
        how = (
            "after undoing image_mean and image_std"
            if mean is not None
            else "and no image_mean and image_std are given"
        )
        raise BadData(
            f"{name}: floats of {low:.3g}..{high:.3g} {how}; expected 0..1. Normalised pictures need the numbers that "
            "normalised them: SequenceSaver(..., image_mean=..., image_std=...), or these keys in the sample"
        )
    return np.ascontiguousarray(np.floor(values.clip(0, 1) * 255 + 0.5).astype(np.uint8))
