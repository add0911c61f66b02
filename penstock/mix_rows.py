"""The rows of one dataset of a mixture: which can be drawn, which two make a sample, what reading them takes."""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from penstock.errors import UsageError
from penstock.fill import Tally, read_with_retries
from penstock.samplers.pairs import PairRule, Pairs
from penstock.schema import Record
from penstock.source import Source, snapshot

VIEW = "view"
"""Field of a source whose rows 2k and 2k + 1 are the two frames of a pair."""
_FIELDS = ("image", "mask", "sentence")
_TIMED = 4096


@dataclass(frozen=True, kw_only=True)
class MixPart:
    """One dataset of a mixture, and how much of it is drawn."""

    name: str
    source: Source
    weight: int | float | Fraction | None = None
    """Share of the draws relative to the others; None for all: each row once an epoch (times `repeats`)."""
    repeats: int = 1
    max_rows: int | None = None
    """Only the first so many samples."""
    max_images: int | None = None
    """Only the samples of the first so many groups of the source: pictures, for a source whose groups are pictures."""
    pairs: PairRule | None = None
    """For a source of tracks: how the second view is chosen. A source with the field `view` has its pairs already."""


class Reads:
    """Seconds and bytes of the samples made last, by any thread."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=_TIMED)

    def note(self, seconds: float, num_bytes: int) -> None:
        """One sample: how long a thread took over it, and the bytes of its decoded records."""
        self._recent.append((seconds, num_bytes))

    def report(self) -> dict[str, float | None]:
        """ms_p50, ms_p99: of a sample in one thread; bytes_per_s: decoded, by one thread. None where nothing was read."""
        found = np.array(self._recent.copy())
        if not len(found):
            return {"ms_p50": None, "ms_p99": None, "bytes_per_s": None}
        middle, high = np.quantile(found[:, 0], [0.5, 0.99]) * 1000
        seconds, num_bytes = found.sum(axis=0)
        return {"ms_p50": float(middle), "ms_p99": float(high), "bytes_per_s": float(num_bytes / max(seconds, 1e-9))}

    def __reduce__(self) -> tuple[type["Reads"], tuple[()]]:
        """A copy in another process counts for itself."""
        return type(self), ()


class PartRows:
    """The draws of one part: draw d stands for one row of the source, or for two.

    Raises:
        UsageError: the source lacks `image` or `mask`, a limit is out of range, or no row can be drawn.
    """

    def __init__(self, part: MixPart) -> None:
        self.part, self.source, self.reads = part, part.source, Reads()
        schema = part.source.schema
        lacking = {"image", "mask"} - set(schema)
        if lacking or schema["image"].dtype != "uint8":
            found = f"it lacks {', '.join(sorted(lacking))}" if lacking else f"its image is {schema['image'].dtype}"
            raise UsageError(f"mix: {part.name}: expected a source with image (uint8 RGB) and mask; {found}")
        for name, limit in (("max_rows", part.max_rows), ("max_images", part.max_images)):
            if limit is not None and limit < 1:
                raise UsageError(f"mix: {part.name}: {name}: expected 1 or more, or none, got {limit}")
        self.digest, done = snapshot(part.source)
        self.is_paired = VIEW in schema
        self.pairs = _pairs(part, done)
        self.first = self._first(done)[: part.max_rows]
        """D rows of first views; a range wherever all rows can be drawn, so that size costs no memory."""
        if not len(self.first):
            raise UsageError(f"mix: {part.name}: no row that can be drawn, of {len(part.source)} rows of the source")

    def of(self, draw: int, seed: int) -> list[int]:
        """Rows of the views: two, or one where there is no pair."""
        row = int(self.first[draw])
        second = row + 1 if self.is_paired else None if self.pairs is None else self.pairs.partner(row, seed)
        return [row] if second is None else [row, second]

    def read(self, row: int, tally: Tally) -> Record:
        """The fields of a row that a sample needs.

        Raises:
            BadData, RowError, StoreCorrupt: its data are bad.
            OSError: reading failed again and again.
        """
        read = getattr(self.source, "read", None)
        names = [name for name in _FIELDS if name in self.source.schema]
        return read_with_retries(lambda: dict(self.source[row] if read is None else read(row, names)), tally)

    def _first(self, done: np.ndarray | None) -> range | np.ndarray:
        stop = len(self.source) if self.part.max_images is None else _end_of_groups(self.part, self.part.max_images)
        if done is None and self.pairs is None:
            return range(0, stop - 1, 2) if self.is_paired else range(stop)
        rows = self.pairs.anchors if self.pairs is not None else np.asarray(done)
        if self.is_paired:
            rows = rows[(rows % 2 == 0) & np.isin(rows + 1, rows)]
        return rows[rows < stop]


def _pairs(part: MixPart, done: np.ndarray | None) -> Pairs | None:
    if part.pairs is None:
        return None
    from penstock.track_tables import track_table

    if VIEW in part.source.schema:
        raise UsageError(f"mix: {part.name}: its rows are pairs already; leave out the pair rule")
    pairs = Pairs(track_table(part.source), part.pairs)
    if done is not None:
        pairs.usable &= np.isin(np.arange(len(pairs.usable)), done)
        pairs.anchors = np.flatnonzero(pairs.usable)
    return pairs


def _end_of_groups(part: MixPart, count: int) -> int:
    """First row after so many groups."""
    groups = getattr(part.source, "groups", None)
    if groups is None:
        raise UsageError(f"mix: {part.name}: max_images: the source has no groups; use max_rows")
    return len(part.source) if count >= len(groups) else int(groups[count].start)
