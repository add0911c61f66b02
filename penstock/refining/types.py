"""What the steps of refinement hand to each other. Arrays of one frame; coordinates in pixels of the picture, corner (0, 0)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Objects:
    """An id map, parsed: its valid ids numbered from 1. Objects number k is `ids[k - 1]`."""

    labels: np.ndarray
    """(H, W) number of the object, 0 where the id is not valid: uint8 where there are at most 255, else uint16."""
    ids: np.ndarray
    """(K,) int64, rising."""
    areas: np.ndarray
    """(K,) int64, pixels."""
    boxes: np.ndarray
    """(K, 4) int32 XYWH, tight."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the frame."""
        return self.labels.shape[0], self.labels.shape[1]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Masks that a model, or somebody, thinks there are; overlapping, in no order that means something."""

    size_hw: tuple[int, int]
    boxes: np.ndarray
    """(N, 4) int32 XYWH, tight."""
    masks: tuple[np.ndarray, ...]
    """N of (h, w) bool: the mask within its box."""
    scores: np.ndarray
    """(N,) float32 0..1: IoU as the model predicts it."""
    stability: np.ndarray
    """(N,) float32 0..1: how little the mask changes with its threshold (SAM's stability score)."""
    ids: np.ndarray
    """(N,) int64: id of the object that was prompted for; 0 for a mask that came from a point of a grid."""

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a promptable model is asked for the objects of a frame, all in one batch."""

    ids: np.ndarray
    """(K,) int64."""
    boxes: np.ndarray
    """(K, 4) float32 XYXY: left, top, right, bottom edges."""
    points: np.ndarray
    """(K, P, 2) float32 x, y: centres of pixels lie at .5."""
    point_labels: np.ndarray
    """(K, P) int32: 1 inside, 0 outside, -1 no point."""
    mask_logits: np.ndarray
    """(K, 256, 256) float32: a soft mask of the whole frame stretched to a square; above 0 inside."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame to refine."""

    key: str
    """`<scene>/<stem>`."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    objects: Objects


class Encoded(Protocol):
    """A frame that a proposer has looked at, and can be asked about."""

    def prompted(self, prompts: Prompts) -> Proposals:
        """One to three proposals for each prompt, `ids` set; none for an object of which it can say nothing."""
        ...

    def at_points(self, points: np.ndarray) -> Proposals:
        """Proposals for each of (P, 2) float32 x, y, filtered by score, stability, area and box NMS; `ids` 0."""
        ...


class Proposer(Protocol):
    """Where masks come from: SAM2, edge snapping, a folder."""

    @property
    def device(self) -> str:
        """Where it works: "cpu" or "cuda:N"."""
        ...

    def identity(self) -> Mapping[str, object]:
        """Plain values; all that the proposals depend on but the picture and the map: weights hash, thresholds."""
        ...

    def encode(self, frames: Sequence[Frame]) -> Sequence[Encoded]:
        """Looks at frames, in one batch where it can."""
        ...


FALLBACK, MATCHED, MERGED, LOW = 0, 1, 2, 4
"""How an object found its mask, as bits: none fitted; one; several; one that fits badly."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which proposals make up which object, before anything is painted."""

    proposals: Proposals
    """The proposals after cutting: one that covered several objects is there in parts."""
    numbers: np.ndarray
    """(N,) int32: number of the object each belongs to, 0 for none. No proposal belongs to two."""
    how: np.ndarray
    """(K,) uint8 of FALLBACK, MATCHED, MERGED, LOW for each object."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the do-no-harm gate measured and decided, per object."""

    accepted: np.ndarray
    """(K,) bool."""
    reasons: tuple[str, ...]
    """K words: "" where accepted; else "core", "area", "pieces", "edge", "colours", "gone", "small" or "no proposal"."""
    core_recall: np.ndarray
    """(K,) float32 0..1: share of the coarse mask's core that the new mask keeps."""
    area_ratio: np.ndarray
    """(K,) float32: new pixels over coarse pixels."""
    pieces: np.ndarray
    """(K, 2) int32: connected components, coarse and new."""
    edge: np.ndarray
    """(K, 2) float32: how much of the boundary lies on an edge of the picture, 0..1, coarse and new."""
    votes: np.ndarray
    """(K,) float32 -1..1: what the colours of the pixels gained and lost say (`penstock.refining.colours`), 1 for the new."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """The frame's result."""

    ids: np.ndarray
    """(H, W) an id of the frame, or 0 where none could be given: the first of uint16, int32, int64 that holds the ids."""
    confidence: np.ndarray
    """(H, W) uint8: 255 where coarse map and new mask agree in the core, down to 0 where there is no id."""
    reasons: np.ndarray
    """(H, W) uint8: why the pixel has the id it has, see `penstock.refining.residual.REASONS`."""
    how: np.ndarray
    """(K,) uint8, of the assignment."""
    gate: Gate
    areas: np.ndarray
    """(K,) int64: pixels of each object after refinement."""
    proposals: int
    counts: dict[str, int] = field(default_factory=dict)
    """objects, sam_matched, merged, low_confidence, fallback, accepted, kept, invalid_pixels, invalid_before, pixels."""
