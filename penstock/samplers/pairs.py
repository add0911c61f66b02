"""Pairs: which second row belongs to a first one. Pure functions of (annotations, row, seed)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from penstock.draws import TrackTable
from penstock.errors import UsageError
from penstock.samplers.permutation import mix

Unit = Literal["frames", "seconds"]


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """How far apart the two rows of a pair lie, and how large the object is in both.

    Raises:
        UsageError: a number is out of range.
    """

    min_gap: float = 1
    max_gap: float = 48
    """In `unit`, before or after; both ends are allowed."""
    unit: Unit = "frames"
    """Of the video: SA-V's annotated frames are 4 frames apart. "seconds" needs a rate."""
    min_area: float = 0
    """Pixels of the box, width times height, in the source's pictures."""

    def __post_init__(self) -> None:
        right = 0 < self.min_gap <= self.max_gap < math.inf
        if not right or self.unit not in get_args(Unit) or not 0 <= self.min_area < math.inf:
            raise UsageError(
                f"PairRule: expected 0 < min_gap <= max_gap, frames or seconds, min_area of 0 or more; got {self}"
            )


class Pairs:
    """Rows of tracks with a partner each: another row of the same track, both visible and large enough.

    Args:
        table: annotations of a source of tracks.
        rule: see `PairRule`.

    Raises:
        UsageError: seconds are asked for, and a track with visible rows has no rate.
    """

    def __init__(self, table: TrackTable, rule: PairRule) -> None:
        self.table, self.rule = table, rule
        with np.errstate(invalid="ignore"):
            large = table.boxes[:, 2].astype(np.float64) * table.boxes[:, 3] >= rule.min_area
        self.usable = np.asarray(table.visible) & (large | (rule.min_area == 0))
        """(N,) bool: rows that a pair may be made of."""
        self.anchors = np.flatnonzero(self.usable)
        """(A,) int64: the usable rows, those without a partner included."""
        if rule.unit == "seconds":
            tracks = np.unique(np.searchsorted(table.starts, self.anchors, side="right") - 1)
            without = tracks[~(np.asarray(table.fps)[tracks] > 0)]
            if len(without):
                name = table.names[int(without[0])]
                raise UsageError(
                    f"PairRule: unit seconds: {len(without)} tracks have no frame rate, {name} the first; use frames"
                )

    def partner(self, row: int, seed: int) -> int | None:
        """One of the partners of a row, each as likely as any other; None where there is none."""
        found = self.partners(row)
        return int(found[mix(seed, row) % len(found)]) if len(found) else None

    def any(self) -> bool:
        """Whether the rule allows a pair at all. Ends with the first one found."""
        return any(len(self.partners(row)) for row in self.anchors.tolist())

    def partners(self, row: int) -> np.ndarray:
        """(P,) int64 rows that the rule allows beside this one, rising."""
        table = self.table
        track = int(np.searchsorted(table.starts, row, side="right")) - 1
        start, stop = int(table.starts[track]), int(table.starts[track + 1])
        gaps = np.abs(table.frames[start:stop].astype(np.int64) - int(table.frames[row])).astype(np.float64)
        if self.rule.unit == "seconds":
            gaps /= float(table.fps[track])
        near = (gaps >= self.rule.min_gap) & (gaps <= self.rule.max_gap) & self.usable[start:stop]
        return start + np.flatnonzero(near)
