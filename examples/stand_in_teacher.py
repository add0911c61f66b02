"""A stand-in teacher: makes SA-1B-like shards from photographs without a network.

Not SAM2: its features are fixed random projections of colours and gradients, and its objects are connected regions of
similar colour. What it writes has the names, shapes and types of real shards, so that everything behind it can be tried.
"""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np

CHANNELS = 256
MODEL_TYPE = "stand-in teacher (no network)"


def write_shard(target: Path, photos: list[Path], num_samples: int, seed: int = 0) -> None:
    """Writes a TAR of `sa_<n>.jpg` and `sa_<n>_features.npz`; samples are random crops of the photos."""
    rng = np.random.default_rng(seed)
    with tarfile.open(target, "w") as tar:
        for number in range(num_samples):
            photo = cv2.imread(str(photos[number % len(photos)]))
            picture = _crop(photo, rng)
            stretched = cv2.resize(picture, (1024, 1024), interpolation=cv2.INTER_LINEAR)
            jpeg = cv2.imencode(".jpg", stretched, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            npz = io.BytesIO()
            np.savez(npz, **teach(picture))
            for name, content in ((f"sa_{number}.jpg", jpeg), (f"sa_{number}_features.npz", npz.getvalue())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def teach(picture: np.ndarray) -> dict[str, np.ndarray]:
    """The NPZ fields of one BGR picture: features, edges, weight maps, the largest object's XYWH box and its mask."""
    masks = _regions(picture)
    fields: dict[str, np.ndarray] = {"P4_S16": _features(picture, 64), "P5_S32": _features(picture, 32)}
    kernel = np.ones((3, 3), np.uint8)
    edges = np.zeros(picture.shape[:2], np.uint8)
    for mask in masks:
        edges |= cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, kernel)
    union = np.max(masks, axis=0) if masks else np.zeros(picture.shape[:2], np.uint8)
    for size in (256, 64, 32):
        fields[f"edge_{size}x{size}"] = (
            cv2.resize(edges * 1.0, (size, size), interpolation=cv2.INTER_AREA) > 0
        ).astype(np.uint8)
    for size in (128, 64, 32):
        inside = (cv2.resize(union * 1.0, (size, size), interpolation=cv2.INTER_AREA) > 0.5).astype(np.float32)
        fields[f"fg_map_{size}x{size}"] = inside / max(float(inside.sum()), 1.0)
        fields[f"bg_map_{size}x{size}"] = (1 - inside) / max(float((1 - inside).sum()), 1.0)
    fields["image_shape"] = np.array(picture.shape, np.int64)
    if masks:
        left, top, width, height = cv2.boundingRect(masks[0])
        fields["bboxes"] = np.array([[left, top, width, height]], np.float32)
        fields["masks"] = np.array([masks[0]], dtype=object)
    return fields


def _crop(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = photo.shape[:2]
    h, w = (int(side * rng.uniform(0.6, 1.0)) for side in (height, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    return np.ascontiguousarray(photo[top : top + h, left : left + w])


def _regions(picture: np.ndarray) -> list[np.ndarray]:
    """Masks of the connected regions of similar colour that cover one to sixty per cent, largest first."""
    smooth = cv2.bilateralFilter(cv2.resize(picture, (160, 160)), 9, 60, 9)
    points = smooth.reshape(-1, 3).astype(np.float32)
    cv2.setRNGSeed(0)
    labels = cv2.kmeans(points, 5, None, (cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0), 1, cv2.KMEANS_PP_CENTERS)[1].reshape(
        160, 160
    )
    found = []
    for label in range(5):
        pieces = cv2.connectedComponents((labels == label).astype(np.uint8))[1]
        for piece in range(1, int(pieces.max()) + 1):
            mask = (pieces == piece).astype(np.uint8)
            if 0.01 < mask.mean() < 0.6:
                found.append(mask)
    found.sort(key=lambda mask: -int(mask.sum()))
    height, width = picture.shape[:2]
    return [cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) for mask in found[:8]]


def _features(picture: np.ndarray, side: int) -> np.ndarray:
    """(1, 256, side, side) float32: random projections of colour, gradient and position in each cell."""
    small = cv2.resize(picture, (side * 4, side * 4), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    gradients = [cv2.Sobel(small, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    stack = np.concatenate([small, *gradients, small**2], axis=2)
    cells = stack.reshape(side, 4, side, 4, -1).transpose(0, 2, 1, 3, 4).reshape(side * side, -1)
    weights = np.random.default_rng(1).standard_normal((cells.shape[1], CHANNELS)).astype(np.float32) / 8
    return np.ascontiguousarray((cells @ weights).T.reshape(1, CHANNELS, side, side))
