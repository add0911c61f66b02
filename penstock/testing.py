"""Makers of tiny, seeded inputs with known truth, and the contract that every source's test class inherits."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from penstock.testing_contracts import ReaderTests, SourceTests, assert_equal_records

__all__ = [
    "MODEL_TYPE",
    "MTIME",
    "MaskStyle",
    "ReaderTests",
    "SourceTests",
    "Truth",
    "assert_equal_records",
    "encode_picture",
    "make_sa1b_tar",
    "make_sample",
    "npz_bytes",
    "write_tar",
]

Truth = dict[str, object]
"""What a maker knows about a sample: key, boxes_xywh and boxes_xyxy (N, 4) float32 in original-image pixels, masks
(N, H, W) uint8 0/1 at original resolution, size_hw, picture (h, w, 3) uint8 RGB before encoding, fields (name ->
array), picture_bytes and npz_bytes as they stand in the TAR."""

MaskStyle = Literal["object_squeezed", "object_bool", "object_list", "plain", "flat"]
"""How the NPZ holds its masks: `np.array([m], dtype=object)`, which NumPy makes an (N, H, W) array of Python ints (or
bools); an object array of shape (N,) of (H, W) arrays; a plain (N, H, W) uint8 array; a plain (H, W) one."""

MODEL_TYPE = "sam2.1_hiera_b+"
MTIME = 1_700_000_000


def make_sample(
    seed: int,
    *,
    key: str | None = None,
    size_hw: tuple[int, int] = (120, 160),
    num_boxes: int = 1,
    variant: Literal["v1", "v5"] = "v1",
    mask_style: MaskStyle = "object_squeezed",
    picture: str = "jpg",
    picture_size: int | None = 1024,
    feature_size: int = 64,
    channels: int = 256,
    edge_sizes: tuple[int, ...] = (256, 64, 32),
    map_sizes: tuple[int, ...] = (128, 64, 32),
    compressed_npz: bool = False,
    change: Callable[[dict[str, np.ndarray]], object] | None = None,
) -> tuple[bytes, bytes, Truth]:
    """One sample as a feature extractor leaves it: a picture and an NPZ.

    Args:
        seed: equal seeds and arguments give equal bytes.
        key: the sample's id; `sa_<seed>` by default.
        size_hw: original picture size, in whose pixels boxes and masks are given.
        num_boxes: objects; 0 leaves `masks` out, as the extractors do.
        variant: "v5" leaves the maps of 128x128 out.
        mask_style: see `MaskStyle`.
        picture: "jpg", "jpeg" or "png".
        picture_size: side of the square stored picture; None stores it at `size_hw`.
        feature_size: side of P4_S16; P5_S32 has half of it. The real one is 64.
        channels: of both features. The real number is 256.
        edge_sizes: sides of the edge pictures. The real ones are 256, 64, 32.
        map_sizes: sides of the weight maps. The real ones are 128, 64, 32.
        compressed_npz: deflate the NPZ.
        change: edits the NPZ's fields in place before they are written.

    Returns:
        The picture's bytes, the NPZ's bytes, the truth.
    """
    rng = np.random.default_rng([seed, 7])
    masks = (
        np.stack([_ellipse(rng, size_hw) for _ in range(num_boxes)]) if num_boxes else np.zeros((0, *size_hw), np.uint8)
    )
    boxes_xyxy = np.array([_tight_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
    stored_hw = size_hw if picture_size is None else (picture_size, picture_size)
    pixels = _draw(rng, masks, size_hw, stored_hw)
    sizes = {"edge": edge_sizes, "map": map_sizes if variant == "v1" else tuple(n for n in map_sizes if n != 128)}
    fields = _npz_fields(rng, np.asarray(masks.any(axis=0)), (channels, feature_size), sizes)
    fields |= _object_fields(key or f"sa_{seed}", size_hw, boxes_xywh)
    if num_boxes:
        fields["masks"] = _styled(masks, mask_style)
    if change is not None:
        change(fields)
    picture_bytes = encode_picture(pixels, picture)
    npz = npz_bytes(fields, compressed=compressed_npz)
    truth: Truth = {
        "key": key or f"sa_{seed}",
        "boxes_xywh": boxes_xywh,
        "boxes_xyxy": boxes_xyxy,
        "masks": masks,
        "size_hw": size_hw,
        "picture": pixels,
        "fields": fields,
        "picture_bytes": picture_bytes,
        "npz_bytes": npz,
    }
    return picture_bytes, npz, truth


def make_sa1b_tar(
    path: Path | str,
    num_samples: int,
    *,
    start: int = 0,
    seed: int = 0,
    mode: Literal["w", "w:gz", "w:bz2", "w:xz"] = "w",
    prefix: str = "",
    suffix: str = "_features",
    picture: str = "jpg",
    mutate: Callable[[int, dict[str, bytes]], Mapping[str, bytes]] | None = None,
    **sample: object,
) -> list[Truth]:
    """A TAR of samples `sa_<start>` .. `sa_<start + num_samples - 1>`, picture before NPZ.

    Args:
        path: where it goes.
        num_samples: how many.
        start: first number.
        seed: shifts every sample's content; ids stay.
        mode: as `tarfile.open`; compressed files are deterministic too.
        prefix: before every member name, "./" say.
        suffix: between id and ".npz".
        picture: extension and kind of the pictures.
        mutate: given a sample's position and its members (name -> bytes), returns the members to write.
        **sample: passed to `make_sample`.

    Returns:
        The truth of each sample, in order.
    """
    truths = []
    members: list[tuple[str, bytes]] = []
    for number in range(start, start + num_samples):
        key = f"sa_{number}"
        picture_bytes, npz, truth = make_sample(seed * 100_003 + number, key=key, picture=picture, **sample)  # type: ignore[arg-type]  # its keywords, checked there
        pair = {f"{prefix}{key}.{picture}": picture_bytes, f"{prefix}{key}{suffix}.npz": npz}
        members += (mutate(number - start, pair) if mutate else pair).items()
        truths.append(truth)
    write_tar(path, members, mode=mode)
    return truths


def write_tar(path: Path | str, members: list[tuple[str, bytes]], *, mode: str = "w") -> None:
    """A TAR of regular members, in order, with fixed times: equal arguments give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), MTIME
            tar.addfile(header, io.BytesIO(content))
    Path(path).write_bytes(_compressed(buffer.getvalue(), mode.partition(":")[2]))


def npz_bytes(fields: Mapping[str, np.ndarray], *, compressed: bool = False) -> bytes:
    """The arrays as `numpy.savez` (or `savez_compressed`) writes them; object arrays are pickled, as it does."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **fields)  # type: ignore[arg-type]  # names are field names
    return buffer.getvalue()


def encode_picture(pixels: np.ndarray, picture: str = "jpg") -> bytes:
    """(H, W, 3) or (H, W) uint8 as JPEG (quality 90) or PNG."""
    buffer = io.BytesIO()
    kind = "PNG" if picture.lower() == "png" else "JPEG"
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _npz_fields(
    rng: np.random.Generator, union: np.ndarray, features: tuple[int, int], sizes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Features of (channels, side), edges and weight maps of a picture whose objects cover `union`."""
    channels, side = features
    fields: dict[str, np.ndarray] = {
        "P4_S16": rng.random((1, channels, side, side), np.float32) - np.float32(0.5),
        "P5_S32": rng.random((1, channels, side // 2, side // 2), np.float32) - np.float32(0.5),
    }
    fields |= {f"edge_{n}x{n}": _edges(union, n) for n in sizes["edge"]}
    for n in sizes["map"]:
        fields |= {f"{name}_map_{n}x{n}": weights for name, weights in _weight_maps(union, n).items()}
    return fields


def _object_fields(key: str, size_hw: tuple[int, int], boxes_xywh: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "bboxes": boxes_xywh,
        "image_shape": np.array([*size_hw, 3], np.int64),
        "has_bbox": np.array(len(boxes_xywh) > 0),
        "num_bboxes": np.array(len(boxes_xywh), np.int32),
        "image_id": np.array(key),
        "model_type": np.array(MODEL_TYPE),
        "geometry_color_flag": np.array(0, np.int32),
    }


def _ellipse(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    height, width = size_hw
    ry, rx = rng.uniform(0.15, 0.3, 2) * (height, width)
    cy, cx = rng.uniform(0.35, 0.65, 2) * (height, width)
    y, x = np.mgrid[:height, :width]
    inside: np.ndarray = ((y + 0.5 - cy) / ry) ** 2 + ((x + 0.5 - cx) / rx) ** 2 <= 1
    return inside.astype(np.uint8)


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw(
    rng: np.random.Generator, masks: np.ndarray, size_hw: tuple[int, int], stored_hw: tuple[int, int]
) -> np.ndarray:
    low, high = rng.integers(20, 110, 3), rng.integers(120, 235, 3)
    ramp = np.linspace(0, 1, stored_hw[1])[None, :, None] * 0.7 + np.linspace(0, 0.3, stored_hw[0])[:, None, None]
    pixels = (low + (high - low) * ramp).astype(np.uint8)
    rows = np.arange(stored_hw[0]) * size_hw[0] // stored_hw[0]
    columns = np.arange(stored_hw[1]) * size_hw[1] // stored_hw[1]
    for mask in masks:
        pixels[mask[rows][:, columns].astype(bool)] = rng.integers(0, 255, 3)
    return pixels


def _sampled(union: np.ndarray, n: int) -> np.ndarray:
    rows, columns = (np.arange(n) * side // n for side in union.shape)
    sampled: np.ndarray = union[rows][:, columns]
    return sampled


def _edges(union: np.ndarray, n: int) -> np.ndarray:
    inside = _sampled(union, n).astype(np.int8)
    edges = np.zeros((n, n), np.uint8)
    edges[1:] |= np.diff(inside, axis=0) != 0
    edges[:, 1:] |= np.diff(inside, axis=1) != 0
    return edges


def _weight_maps(union: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Foreground and background weights; the sum over each map is 1 (0 for an empty foreground)."""
    inside = _sampled(union, n).astype(np.float32)
    return {
        "fg": (inside / max(inside.sum(), 1)).astype(np.float32),
        "bg": ((1 - inside) / max((1 - inside).sum(), 1)).astype(np.float32),
    }


def _styled(masks: np.ndarray, style: MaskStyle) -> np.ndarray:
    if style == "object_squeezed":
        return np.array(list(masks), dtype=object)
    if style == "object_bool":
        return np.array(list(masks.astype(bool)), dtype=object)
    if style == "object_list":
        listed = np.empty(len(masks), dtype=object)
        listed[:] = list(masks)
        return listed
    return masks[0] if style == "flat" else masks


def _compressed(content: bytes, how: str) -> bytes:
    if how == "gz":
        return gzip.compress(content, mtime=0)
    if how == "bz2":
        return bz2.compress(content)
    if how == "xz":
        return lzma.compress(content)
    return content
