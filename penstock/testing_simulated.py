"""A segmenting model that knows the truth, and errs as much as it is told to: a `Proposer` for tests and benchmarks."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from penstock.errors import SourceNotFound, UsageError
from penstock.refining.labels import parse
from penstock.refining.overlap import contingency
from penstock.refining.proposals import from_masks
from penstock.refining.types import Encoded, Frame, Objects, Prompts, Proposals
from penstock.testing_corruption import bent, blob

__all__ = ["SimulatedSam", "ceiling"]

_LARGE = 0.08
"""Objects of a larger share of the frame come in pieces, as walls do."""


class SimulatedSam:
    """Masks as SAM gives them, cut from the truth.

    With a growing error outlines are bent, masks lose a part, swallow a neighbour, or show something else; large objects
    come in pieces when found by points; and masks of nothing are added. Scores know less and less about all that.

    Args:
        truths: key of a frame -> (H, W) integers; ids of 0 and below are segmented by nobody.
        error: 0 gives the truth, 1 is useless.
        seed: equal arguments, frames and questions give equal answers, in whatever order they are asked.

    Raises:
        UsageError: an error outside 0..1.
    """

    device = "cpu"

    def __init__(self, truths: Mapping[str, np.ndarray], *, error: float = 0.3, seed: int = 0) -> None:
        if not 0 <= error <= 1:
            raise UsageError(f"error: expected 0..1, got {error!r}")
        self._truths = truths
        self._error = error
        self._seed = seed

    def identity(self) -> Mapping[str, object]:
        """Name, version, error and seed; the truth is not in it."""
        return {"proposer": "simulated", "version": 1, "error": self._error, "seed": self._seed}

    def encode(self, frames: Sequence[Frame]) -> Sequence[Encoded]:
        """Looks the truths up.

        Raises:
            SourceNotFound: a frame's key has no truth.
        """
        for frame in frames:
            if frame.key not in self._truths:
                raise SourceNotFound(f"simulated proposer: no truth for {frame.key!r}, of {len(self._truths)} keys")
        return [_Known(parse(self._truths[frame.key]), self._error, self._stream(frame.key)) for frame in frames]

    def _stream(self, key: str) -> tuple[int, int]:
        return self._seed, zlib.crc32(key.encode())


class _Known:
    """One frame."""

    def __init__(self, truth: Objects, error: float, stream: tuple[int, int]) -> None:
        self._truth = truth
        self._error = error
        self._stream = stream

    def prompted(self, prompts: Prompts) -> Proposals:
        """For each prompt the object under most of its inner points: the whole, a part, and the whole with a neighbour."""
        masks, ids, scores = [], [], []
        for id_, points, point_labels in zip(prompts.ids.tolist(), prompts.points, prompts.point_labels, strict=True):
            hits = self._under(points[point_labels == 1])
            if hits.any():
                number = int(np.bincount(hits[hits > 0]).argmax())
                for kind, score in enumerate((0.9, 0.8, 0.7)):
                    rng = self._rng(1 + kind, number)
                    masks.append(self._mask(rng, number, kind))
                    scores.append(score + rng.normal(0, 0.3 * self._error))
                    ids.append(id_)
        return from_masks(self._truth.size_hw, masks, scores=np.array(scores, np.float32), ids=np.array(ids, np.int64))

    def at_points(self, points: np.ndarray) -> Proposals:
        """The objects, or pieces of large ones, that have a point in them, and masks of nothing."""
        masks = []
        hits = self._under(points)
        for number in np.unique(hits[hits > 0]).tolist():
            rng = self._rng(0, number)
            whole = self._mask(rng, number, 0)
            is_large = self._truth.areas[number - 1] > _LARGE * whole.size
            masks += self._pieces(rng, whole) if is_large and self._error > 0 else [whole]
        rng = self._rng(9, 0)
        junk = round(self._error * len(masks))
        masks += [blob(rng, self._truth.size_hw, 0.08 * max(self._truth.size_hw)) for _ in range(junk)]
        scores = 0.9 + rng.normal(0, 0.3 * self._error, len(masks))
        return from_masks(self._truth.size_hw, masks, scores=scores.astype(np.float32))

    def _rng(self, kind: int, number: int) -> np.random.Generator:
        return np.random.default_rng([*self._stream, kind, number])

    def _under(self, points: np.ndarray) -> np.ndarray:
        """(P,) numbers of the true objects under (P, 2) points."""
        height, width = self._truth.size_hw
        columns, rows = np.floor(points).astype(np.intp).T
        under: np.ndarray = self._truth.labels[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        return under

    def _mask(self, rng: np.random.Generator, number: int, kind: int) -> np.ndarray:
        """(H, W) bool: the object as this model sees it; `kind` 1 a part of it, 2 more than it."""
        error, mask = self._error, self._truth.labels == number
        chances = rng.random(3)
        if chances[0] < error**2:
            return blob(rng, self._truth.size_hw, float(np.sqrt(self._truth.areas[number - 1])))
        if kind == 1 or (kind == 0 and chances[1] < 0.5 * error):
            mask = self._pieces(rng, mask)[0] if kind == 1 else mask & ~self._pieces(rng, mask)[-1]
        if kind == 2 or (kind == 0 and chances[2] < 0.3 * error):
            mask = mask | (self._truth.labels == 1 + rng.integers(len(self._truth)))
        return bent(rng, mask, 6 * error) if error else mask

    def _pieces(self, rng: np.random.Generator, mask: np.ndarray) -> list[np.ndarray]:
        """The mask cut by parallel lines into two to four pieces."""
        rows, columns = np.nonzero(mask)
        if not len(rows):
            return [mask]
        angle = rng.random() * np.pi
        along = rows * np.sin(angle) + columns * np.cos(angle)
        cuts = np.sort(rng.uniform(along.min(), along.max(), int(rng.integers(1, 4))))
        pieces = []
        for place in range(len(cuts) + 1):
            piece = np.zeros_like(mask)
            inside = np.searchsorted(cuts, along) == place
            piece[rows[inside], columns[inside]] = True
            pieces.append(piece)
        return pieces


def ceiling(proposals: Proposals, truth: np.ndarray) -> np.ndarray:
    """How good a map these proposals allow: IoU of each true object with the best union of proposals that was found.

    Greedy and by the truth: each object takes the proposal that fits best, then those that raise its IoU most, until none
    does. Pixels that are void in the truth do not count. Two objects may use one proposal, as no map can.

    Args:
        proposals: of one frame.
        truth: (H, W) integers.

    Returns:
        (K,) float64 0..1, in order of the ids of the truth above 0.

    Raises:
        BadData: no id map.
    """
    objects = parse(truth)
    shared = contingency(objects, proposals)
    best = np.zeros(len(objects))
    for number in range(1, len(objects) + 1):
        area = int(objects.areas[number - 1])
        union = np.zeros(objects.size_hw, np.bool_)
        waiting = np.flatnonzero(shared[:, number] > 0).tolist()
        while waiting:
            found = [_iou_with(union, proposals, row, objects.labels, (number, area)) for row in waiting]
            place = int(np.argmax(found))
            if found[place] <= best[number - 1]:
                break
            best[number - 1] = found[place]
            row = waiting.pop(place)
            union[_box(proposals.boxes[row])] |= proposals.masks[row]
    return best


def _iou_with(union: np.ndarray, proposals: Proposals, row: int, labels: np.ndarray, target: tuple[int, int]) -> float:
    """IoU of a union and one more proposal with an object, given by number and area, without void pixels."""
    number, area = target
    more = union.copy()
    more[_box(proposals.boxes[row])] |= proposals.masks[row]
    inside = np.bincount(labels[more], minlength=number + 1)
    return float(inside[number] / (area + inside[1:].sum() - inside[number]))


def _box(box: np.ndarray) -> tuple[slice, slice]:
    x, y, width, height = box.tolist()
    return slice(y, y + height), slice(x, x + width)
