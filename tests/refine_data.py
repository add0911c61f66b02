"""Small scenes to refine, and a small real proposer: the objects themselves, opened up by a pixel."""

import os
import signal
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.readers.pth import save_id_map
from penstock.refine_config import RefineConfig
from penstock.refining.types import Frame, Prompts, Proposals
from penstock.testing import encode_picture

SIZE_HW = (40, 56)


def coarse_map(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """(H, W) int64: a wall, two things on it, a strip without an id."""
    rng = np.random.default_rng(seed)
    ids = np.full(size_hw, 7, np.int64)
    for number in (12, 300 + seed):
        top, left = rng.integers(2, size_hw[0] - 16), rng.integers(2, size_hw[1] - 16)
        ids[top : top + 12, left : left + 13] = number
    ids[:, -3:] = 0
    return ids


def picture_of(ids: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: a colour for each id, and noise."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(1).integers(0, 200, (997, 3))
    pixels: np.ndarray = (colours[ids % 997] + rng.integers(0, 40, (*ids.shape, 3))).astype(np.uint8)
    return pixels


def write_frame(scene: Path, number: int, ids: np.ndarray, *, seed: int | None = None, picture: str = "jpg") -> None:
    """A picture and its map, as the seed lays them out."""
    for folder in ("images", "obj_ids"):
        (scene / folder).mkdir(parents=True, exist_ok=True)
    name = f"frame_{number:06d}.{picture}"
    pixels = picture_of(ids, number if seed is None else seed)
    put(scene / "images" / name, encode_picture(pixels, picture))
    put(scene / "obj_ids" / f"{name}.pth", save_id_map(ids))


def put(path: Path, content: bytes) -> None:
    """Writes a file whose time depends on its content alone: equal inputs then have equal fingerprints."""
    path.write_bytes(content)
    os.utime(path, (0, zlib.crc32(content)))


def write_scenes(root: Path, counts: Mapping[str, int]) -> Path:
    """Scenes of so many frames."""
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write_frame(root / name, number, coarse_map(100 * place + number))
    return root


def config(root: Path, **changes: object) -> RefineConfig:
    """In this process, without flushes."""
    known: dict[str, Any] = {"data_root": root, "sequential": True, "durability": "process", "proposer": "classical"}
    return RefineConfig(**(known | changes))


def outputs_of(root: Path, folder: str = "obj_ids_refine") -> dict[str, bytes]:
    """Name and content of every file of the output folders."""
    found = [*root.glob(f"[!.]*/{folder}/*"), *root.glob(f"[!.]*/{folder}_confidence/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@dataclass
class MaskProposer:
    """Proposes for each object its coarse mask, opened up by a pixel on each side.

    `kills`: key of the frame that ends the process which looks at it.
    """

    name: str = "masks"
    kills: str = ""
    device: str = "cpu"

    def identity(self) -> Mapping[str, object]:
        """The name alone: a killer makes the same masks."""
        return {"proposer": self.name}

    def encode(self, frames: Sequence[Frame]) -> Sequence["LookedAt"]:
        """One look at each."""
        for frame in frames:
            if frame.key == self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
        return [LookedAt(frame) for frame in frames]


@dataclass(frozen=True)
class LookedAt:
    """A frame, and its objects as proposals."""

    frame: Frame

    def prompted(self, prompts: Prompts) -> Proposals:
        """The mask of each object prompted for."""
        objects = self.frame.objects
        numbers = [int(np.searchsorted(objects.ids, one)) for one in prompts.ids]
        return self._of([_grown(objects.labels == k + 1) for k in numbers], np.array(prompts.ids, np.int64))

    def at_points(self, points: np.ndarray) -> Proposals:
        """Nothing."""
        return self._of([], np.zeros(0, np.int64))

    def _of(self, masks: Sequence[np.ndarray], ids: np.ndarray) -> Proposals:
        boxes, crops = [], []
        for mask in masks:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            top, left, height, width = rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1
            boxes.append([left, top, width, height])
            crops.append(np.ascontiguousarray(mask[top : top + height, left : left + width]))
        return Proposals(
            size_hw=self.frame.objects.size_hw,
            boxes=np.array(boxes, np.int32).reshape(-1, 4),
            masks=tuple(crops),
            scores=np.full(len(masks), 0.9, np.float32),
            stability=np.full(len(masks), 0.9, np.float32),
            ids=ids,
        )


def _grown(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    near = [padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx] for dy, dx in _NEAR]
    grown: np.ndarray = np.logical_or.reduce(near)
    return grown


_NEAR = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
