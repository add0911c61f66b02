"""What a tracking sampler sees: annotations of a source as arrays. What it gives: draws, and the samples read for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TrackTable:
    """The annotations of one source of tracks, N rows in S sequences: arrays, usually mapped from an index on disk.

    A source of single pictures (COCO) is one whose sequences have one row each and `is_video` is false.
    """

    name: str
    """Of the source: "lasot", "got10k", "coco"."""
    starts: np.ndarray
    """(S + 1,) int64: first row of each sequence, then N."""
    boxes: np.ndarray
    """(N, 4) float32 XYWH in pixels of the picture, corner from 0; NaN where there is none."""
    valid: np.ndarray
    """(N,) bool: annotated, of positive size."""
    visible: np.ndarray
    """(N,) bool: valid, and no flag says hidden or out of view."""
    frames: np.ndarray
    """(N,) int32: position of the row's picture in its video, from 0."""
    fps: np.ndarray
    """(S,) float64: frames a second, NaN where not known."""
    names: Sequence[str]
    """S names of sequences; looked up, not held."""
    categories: Sequence[str]
    """S class names, "" where there is none."""
    is_video: bool = True
    origin: "Callable[[], TrackTable] | None" = None
    """Makes the table again. Where given, the table is pickled as this, not by content."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        return super().__reduce_ex__(protocol) if self.origin is None else (self.origin, ())


@dataclass(frozen=True, kw_only=True)
class History:
    """Steps of a trajectory: what led to the search frame, or what follows from it. T steps."""

    rows: np.ndarray
    """(T,) int64 rows of the table."""
    padded: np.ndarray
    """(T,) bool: repeated because the video is too short. For a single picture all steps but one are padded."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a tracking sampler gives for one step. A pure function of (settings, seed, step); sees no pixels."""

    step: int
    seed: int
    """64 bits, for everything random that is done to the pictures of this step."""
    key: str
    """Text from which the sampler rebuilds this draw."""
    source: int
    """Number of the table."""
    sequence: int
    """Number of the sequence in it."""
    template_rows: np.ndarray
    """(num_template,) int64 rows of that table, in the order drawn."""
    search_source: int
    """As `source`, but for a negative taken from elsewhere."""
    search_sequence: int
    search_rows: np.ndarray
    """(num_search,) int64 rows of the table `search_source`."""
    backward: History
    """`gt_frame_ids_backward`: min_interval steps before the search frame; rows of `source`."""
    forward: History
    """`gt_frame_ids_forward`: future_steps from the search frame on; rows of `source`."""
    positive: bool = True
    """False: the search frames do not show the target (train_cls)."""
    gap: int = 0
    """By how much max_gap had to grow."""
    attempts: int = 1
    """Sequences tried until one fitted."""


@dataclass(kw_only=True)
class Frames:
    """Pictures of one role (template or search), n of them, as the source has them."""

    images: list[np.ndarray]
    """(H, W, 3) uint8 RGB each."""
    boxes: np.ndarray
    """(n, 4) float64 XYWH in pixels of its picture."""
    masks: list[np.ndarray]
    """(H, W) uint8 0/1 each; zeros where the source has no masks, as the original does."""
    frames: np.ndarray
    """(n,) int: position in the video."""
    visible: np.ndarray
    """(n,) bool."""
    valid: np.ndarray
    """(n,) bool."""
    paths: list[str]
    """Relative to the source's root."""


@dataclass(kw_only=True)
class Steps:
    """A history with its numbers, T steps."""

    boxes: np.ndarray
    """(T, 4) float64 XYWH in pixels of the source's pictures; NaN where there is no box."""
    frames: np.ndarray
    """(T,) int: position in the video."""
    visible: np.ndarray
    """(T,) bool."""
    valid: np.ndarray
    """(T,) bool."""
    padded: np.ndarray
    """(T,) bool."""
    time: np.ndarray
    """(T,) float64 seconds from the video's first frame; NaN where no rate is known."""


@dataclass(kw_only=True)
class TrackSample:
    """One draw with its pictures, before any crop or augmentation."""

    draw: Draw
    source: str
    """Name of the table."""
    sequence: str
    category: str
    is_video: bool
    template: Frames
    search: Frames
    backward: Steps
    forward: Steps
    image_hw: tuple[int, int]
    """Height and width of the first search picture."""
    roots: dict[str, str] = field(default_factory=dict)
    """Source name -> its root, for provenance."""
