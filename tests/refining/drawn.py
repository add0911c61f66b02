"""Drawn frames: a true map, its picture, a spoiled map, and proposals good and useless."""

import numpy as np

from penstock.refining.labels import parse
from penstock.refining.proposals import from_masks
from penstock.refining.types import Assignment, Frame, Objects, Proposals

SIZE_HW = (120, 160)


def true_map(seed: int, *, count: int = 9, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """(H, W) int64: ids 3, 6, ... of cells around random points."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    centres = rng.uniform(0, 1, (count, 2)) * size_hw
    distances = [np.hypot(rows - y + 3 * np.sin(columns / 9), columns - x) for y, x in centres]
    found: np.ndarray = 3 * (np.argmin(distances, axis=0) + 1)
    return found


def picture(ids: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: a colour per id, with noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(20, 235, (int(ids.max()) + 1, 3))
    noisy: np.ndarray = (colours[np.maximum(ids, 0)] + rng.normal(0, 4, (*ids.shape, 3))).clip(0, 255).astype(np.uint8)
    return noisy


def spoiled(ids: np.ndarray, seed: int, *, shift: int = 2, holes: int = 6) -> np.ndarray:
    """(H, W) int64: shifted, with holes of 0."""
    rng = np.random.default_rng(seed)
    coarse = np.roll(ids, (shift, -shift), (0, 1))
    for _ in range(holes):
        row, column = rng.integers(0, ids.shape[0] - 4), rng.integers(0, ids.shape[1] - 4)
        coarse[row : row + 4, column : column + 4] = 0
    return coarse


def frame_of(ids: np.ndarray, image: np.ndarray | None = None) -> Frame:
    """The frame of a coarse map."""
    return Frame(key="scene/frame", image=picture(ids, 0) if image is None else image, objects=parse(ids))


def masks_of(ids: np.ndarray, *, prompted: bool = False) -> Proposals:
    """One mask per id above 0."""
    found = np.unique(ids[ids > 0])
    masks = [ids == one for one in found]
    return from_masks((ids.shape[0], ids.shape[1]), masks, ids=found if prompted else None)


def garbage(seed: int, size_hw: tuple[int, int] = SIZE_HW, count: int = 40) -> Proposals:
    """Masks that have nothing to do with any picture: discs, boxes, stripes and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    masks = []
    for number in range(count):
        y, x, reach = rng.uniform(0, size_hw[0]), rng.uniform(0, size_hw[1]), rng.uniform(2, 2 + max(size_hw) / 2)
        kind = number % 4
        if kind == 0:
            masks.append((rows - y) ** 2 + (columns - x) ** 2 < reach**2)
        elif kind == 1:
            masks.append((abs(rows - y) < reach) & (abs(columns - x) < reach / 3))
        elif kind == 2:
            masks.append((rows + columns) % int(reach + 2) < 2)
        else:
            masks.append(rng.random(size_hw) < rng.uniform(0.05, 0.9))
    scores, stability = rng.uniform(0, 1, (2, count)).astype(np.float32)
    return from_masks(size_hw, masks, scores=scores, stability=stability)


def given(objects: Objects, proposals: Proposals, numbers: list[int]) -> Assignment:
    """An assignment made by hand: the object of each proposal."""
    members = np.bincount(numbers, minlength=len(objects) + 1)[1:]
    how = np.select([members == 0, members == 1], [0, 1], 3).astype(np.uint8)
    return Assignment(proposals=proposals, numbers=np.array(numbers, np.int32), how=how)


def mean_iou(ids: np.ndarray, truth: np.ndarray) -> float:
    """Over the ids of the truth."""
    known = truth > 0
    pairs = [((ids == one) & known, truth == one) for one in np.unique(truth[known])]
    return float(np.mean([(left & right).sum() / (left | right).sum() for left, right in pairs]))
