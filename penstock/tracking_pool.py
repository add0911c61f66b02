"""What a tracking sampler holds of its tables: which sequences can be drawn, and where their rows lie among all rows."""

from collections.abc import Sequence

import numpy as np
import xxhash

from penstock.draws import TrackTable
from penstock.errors import UsageError
from penstock.tracking_random import MAX_BOUND, below
from penstock.tracking_rows import RowSet, aligned


class Pool:
    """Tables one behind another, each beginning at a multiple of 64 of the rows counted through all of them.

    Holds about 4.2 bytes a row of videos, 8.4 where `valid` is asked for, and 8 a picture; the tables themselves are not
    copied.

    Args:
        tables: of the sources.
        used: per table, whether sequences are drawn from it; others need not have any.
        visible_above: a video is drawn from if it has more visible rows than this.
        min_frames: and at least so many rows.
        with_valid: whether rows with a box are to be drawn.
        with_invisible: whether rows without the target in sight are to be drawn.

    Raises:
        UsageError: a table is contradictory, has no sequence, or none that can be drawn; the message says why.
    """

    def __init__(
        self,
        tables: Sequence[TrackTable],
        used: Sequence[bool],
        *,
        visible_above: int,
        min_frames: int,
        with_valid: bool,
        with_invisible: bool,
    ) -> None:
        for table in tables:
            _check(table)
        sizes = [aligned(len(table.visible)) for table in tables]
        if sum(sizes) > MAX_BOUND:
            raise UsageError(f"Tracking: expected fewer than {MAX_BOUND:,} rows in all tables, got {sum(sizes):,}")
        self.tables = tables
        self.offsets = np.cumsum([0, *sizes[:-1]])
        self.is_video = np.array([table.is_video for table in tables])
        self._starts = np.concatenate(
            [(table.starts + offset).astype(np.uint32) for table, offset in zip(tables, self.offsets, strict=True)]
        )
        self._first = np.cumsum([0, *(len(table.starts) for table in tables[:-1])])
        self.visible = RowSet(_of_video(table, table.visible) for table in tables)
        self.valid = RowSet(_of_video(table, table.valid) for table in tables if with_valid)
        self.invisible = RowSet(_of_video(table, ~table.visible) for table in tables if with_invisible)
        eligible = [
            self._eligible(number, visible_above, min_frames) if used[number] else np.zeros(0, np.uint32)
            for number in range(len(tables))
        ]
        self._eligible_first = np.cumsum([0, *(len(each) for each in eligible[:-1])])
        self.eligible_counts = np.array([len(each) for each in eligible])
        self._eligible_sequences = np.concatenate(eligible)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the tables."""
        sets = self.visible.nbytes + self.valid.nbytes + self.invisible.nbytes
        return int(sets + self._starts.nbytes + self._eligible_sequences.nbytes)

    def pick(self, source: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """A random sequence that can be drawn, of each source: (n,) int64 and (n,) uint64 to (n,) int64."""
        place = self._eligible_first[source] + below(numbers, self.eligible_counts[source])
        picked: np.ndarray = self._eligible_sequences[place].astype(np.int64)
        return picked

    def rows_of(self, source: np.ndarray, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row and one past the last of sequences, counted through all tables: (n,) int64 each."""
        place = self._first[source] + sequence
        return self._starts[place].astype(np.int64), self._starts[place + 1].astype(np.int64)

    def eligible(self, source: int) -> np.ndarray:
        """Numbers of the sequences of a table that can be drawn, (n,) uint32 ascending."""
        first = self._eligible_first[source]
        return self._eligible_sequences[first : first + self.eligible_counts[source]]

    def _eligible(self, number: int, visible_above: int, min_frames: int) -> np.ndarray:
        table = self.tables[number]
        if not len(table):
            raise UsageError(
                f"Tracking: {table.name}: expected at least one sequence, got none; give it weight 0 or no place"
            )
        if not table.is_video:
            faults = {"without a valid box": ~np.asarray(table.valid, bool)}
        else:
            sequences = np.arange(len(table))
            start, stop = self.rows_of(np.full(len(table), number), sequences)
            few = self.visible.rank(stop) - self.visible.rank(start) <= visible_above
            short = stop - start < min_frames
            faults = {
                f"of fewer than {min_frames} frames": short,
                f"with {visible_above} visible frames or fewer": few & ~short,
            }
        fits = ~np.any([*faults.values()], axis=0)
        if fits.any():
            return np.flatnonzero(fits).astype(np.uint32)
        reasons = [
            f"{np.count_nonzero(is_so):,} {what} (such as {table.names[int(np.argmax(is_so))]})"
            for what, is_so in faults.items()
            if is_so.any()
        ]
        raise UsageError(f"Tracking: {table.name}: none of {len(table):,} sequences can be drawn: {', '.join(reasons)}")


def table_digest(table: TrackTable) -> str:
    """A 128-bit hash of what draws depend on: name, kind, sequences, valid and visible rows. Boxes are not part of it."""
    hasher = xxhash.xxh3_128(f"{table.name} {bool(table.is_video)} {len(table)} ".encode("utf-8", "surrogateescape"))
    hasher.update(np.ascontiguousarray(table.starts, "<i8").data)
    for flags in (table.valid, table.visible):
        hasher.update(np.packbits(np.asarray(flags, bool)).data)
    return hasher.hexdigest()


def _of_video(table: TrackTable, flags: np.ndarray) -> np.ndarray:
    return flags if table.is_video else np.zeros(len(flags), bool)


def _check(table: TrackTable) -> None:
    starts, count = np.asarray(table.starts), len(table.visible)
    lengths = np.diff(starts)
    fault = ""
    if len(starts) < 1 or starts[0] != 0 or starts[-1] != count or (lengths < 1).any():
        fault = f"starts: expected 0, then ascending numbers up to the {count} rows"
    elif not len(table.valid) == len(table.boxes) == len(table.frames) == count:
        fault = (
            f"expected columns of one length, got {len(table.valid)}, {len(table.boxes)}, {len(table.frames)}, {count}"
        )
    elif not table.is_video and (lengths != 1).any():
        fault = "is_video is false: expected one row per sequence"
    if fault:
        raise UsageError(f"Tracking: {table.name}: {fault}")
