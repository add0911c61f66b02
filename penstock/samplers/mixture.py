"""Mix: several sources in one order, with exact shares. A pure function of (settings, seed, position)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np

from penstock.errors import UsageError
from penstock.samplers.epochs import CHUNK_ROWS
from penstock.samplers.permutation import hashes, mix, permute

WINDOW = 4096
"""Positions of a window, at least: inside it sources stand in any order, from one to the next shares are kept."""
SMALL_ROWS = 4096
"""Sources up to so many rows have the permutations of many epochs computed at once."""
_MOST = 1 << 48
_WINDOWS, _ROWS, _SUBSTITUTES, _SAMPLES = range(4)
"""What a hash of the seed is for."""

Ends = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture."""

    name: str
    num_rows: int
    """Rows that can be drawn, 1 or more."""
    weight: int | float | Fraction | None = None
    """Share of the draws relative to the others; None: as many draws as there are rows. All parts have one, or none."""
    repeats: int = 1
    """How often each row comes in an epoch where there are no weights."""


class Drawn(NamedTuple):
    """What stands at some positions, (N,) each."""

    parts: np.ndarray
    """int64 number of the part."""
    rows: np.ndarray
    """int64 row of that part, 0..num_rows-1."""
    epochs: np.ndarray
    """int64: how often all rows of that part had been drawn before."""


class Mix:
    """Draws from several parts in given shares, in an order that needs no memory.

    Shares: without weights each row comes `repeats` times an epoch (a concatenation, shuffled). With weights w of sum W,
    part s has been drawn n_s times after p positions, and |n_s - w_s * p / W| < 1 wherever a window ends; inside one the
    order is a keyed permutation. Windows of `window` positions follow each other in cycles of `cycle`, after each of which
    the shares are exact; the last one of a cycle may be shorter. Within a part each row comes once before any comes again
    (where one part is so rare that a window has more than 16,384 positions: up to the order inside that window).

    How: let A_s be the sum of the weights up to part s. After b windows of length L part s has floor(A_s * bL / W) -
    floor(A_(s-1) * bL / W) draws, so a window knows its counts without those before it. Its slots, part by part, are
    permuted; the slot gives the number of the draw, and that, through the permutation of the part's epoch, the row.
    Distances to the exact share lie below 1 (two roundings down, subtracted); counts never fall because a window is long
    enough for one draw of the rarest part.

    `num_rows` is the length of an epoch in positions; `source_rows` how many rows there are in all parts. Rows given by
    `rows` are numbered through all parts in order, as `Concat` does.

    Args:
        parts: one or more.
        seed: 0..2**64-1.
        ends: with weights, where an epoch ends: "first" part that has run out, or "all" parts (those that run out
            earlier begin again, in another order). Draws go on over the end of an epoch: no row is left out.
        epoch_rows: with weights, an epoch of so many positions instead.

    Raises:
        UsageError: a setting is out of range, or they contradict each other.
    """

    def __init__(
        self, parts: Sequence[Part], *, seed: int = 0, ends: Ends = "first", epoch_rows: int | None = None
    ) -> None:
        self.parts, self.seed, self.ends = tuple(parts), seed, ends
        _check_parts(self.parts)
        _require(0 <= seed < 1 << 64, "seed", "0..2**64-1", seed)
        _require(ends in get_args(Ends), "ends", "first or all", ends)
        weighted = self.parts[0].weight is not None
        _require(weighted or epoch_rows is None, "epoch_rows", "weights", epoch_rows)
        _require(epoch_rows is None or 0 < epoch_rows <= _MOST, "epoch_rows", "1 or more", epoch_rows)
        self.weights = _weights(self.parts)
        """Whole numbers without a common divisor."""
        self.total = sum(self.weights)
        self.source_rows = sum(part.num_rows for part in self.parts)
        if weighted:
            self.cycle = self.total * -(-WINDOW // self.total)
            self.num_rows = epoch_rows or self._epoch()
        else:
            self.num_rows = self.cycle = sum(part.num_rows * part.repeats for part in self.parts)
        _require(
            self.cycle <= _MOST, "weights", "a sum below 2**48 as whole numbers without a common divisor", self.total
        )
        window = max(WINDOW, -(-self.total // min(self.weights)))
        self.window = self.cycle if self.cycle < 2 * window else window
        self._sums = [0, *accumulate(self.weights)]
        self._per_cycle = np.array(self._counts(self.cycle), np.int64)
        self._offsets = np.array([0, *accumulate(part.num_rows for part in self.parts)], np.int64)
        self._recent: tuple[tuple[tuple[int, int], Drawn], ...] = ()

    def draw(self, start: int, stop: int) -> Drawn:
        """What stands at the positions start..stop-1, in arrays of the caller's own.

        Raises:
            UsageError: start is negative or beyond stop.
        """
        if not 0 <= start <= stop:
            raise UsageError(f"Mix.draw: expected 0 <= start <= stop, got {start}, {stop}")
        out = Drawn(*(np.empty(stop - start, np.int64) for _ in Drawn._fields))
        start, stop = int(start), int(stop)  # NumPy's integers overflow in a hash
        position = start
        while position < stop:
            cycle, place = divmod(position, self.cycle)
            number, offset = divmod(place, CHUNK_ROWS)
            whole = self._chunk(cycle, number)
            length = min(stop - position, len(whole.rows) - offset)
            for mine, theirs in zip(out, whole, strict=True):
                mine[position - start : position - start + length] = theirs[offset : offset + length]
            position += length
        return out

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 rows at the positions start..stop-1, numbered through all parts."""
        drawn = self.draw(start, stop)
        rows: np.ndarray = drawn.rows + self._offsets[drawn.parts]
        return rows

    def counts(self, start: int, stop: int) -> list[int]:
        """How often each part stands at the positions start..stop-1: from whole windows by arithmetic."""
        return [b - a for a, b in zip(self._counts_at(start), self._counts_at(stop), strict=True)]

    def sample_seed(self, position: int) -> int:
        """64 bits for all that is random about the sample at a position."""
        return mix(self.seed, _SAMPLES, int(position))

    def stand_in(self, part: int, position: int, attempt: int) -> int:
        """The row, of the same part, that stands in at a position after `attempt` (1, 2, ...) bad ones."""
        return mix(self.seed, _SUBSTITUTES, int(part), int(position), attempt) % self.parts[part].num_rows

    def identity(self) -> str:
        """Everything the order depends on, as text."""
        parts = ", ".join(
            f"{part.name}: {part.num_rows} x {part.repeats if part.weight is None else f'weight {weight}'}"
            for part, weight in zip(self.parts, self.weights, strict=True)
        )
        return f"Mix-1({parts}; seed={self.seed}, epoch={self.num_rows})"

    def __repr__(self) -> str:
        return self.identity()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_recent": ()}

    def _epoch(self) -> int:
        lengths = [
            Fraction(part.num_rows * self.total, weight) for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        return max(1, math.floor(min(lengths))) if self.ends == "first" else math.ceil(max(lengths))

    def _counts(self, place: int) -> list[int]:
        """Draws of each part in the first `place` positions of a cycle, a multiple of the window or the cycle's end."""
        floors = [total * place // self.total for total in self._sums]
        return [b - a for a, b in pairwise(floors)]

    def _counts_at(self, position: int) -> list[int]:
        cycle, place = divmod(position, self.cycle)
        first = place - place % self.window
        counts = np.array(self._counts(first), object) + self._per_cycle.astype(object) * cycle
        inside = self.draw(cycle * self.cycle + first, position).parts
        return [int(n) for n in counts + np.bincount(inside, minlength=len(self.parts))]

    def _chunk(self, cycle: int, number: int) -> Drawn:
        recent = self._recent  # one read: other threads may replace it
        for key, known in recent:
            if key == (cycle, number):
                return known
        start, stop = number * CHUNK_ROWS, min((number + 1) * CHUNK_ROWS, self.cycle)
        windows = range(start // self.window, -(-stop // self.window))
        pieces = [self._window(cycle, one, start, stop) for one in windows]
        parts = np.concatenate([piece[0] for piece in pieces])
        draws = np.concatenate([piece[1] for piece in pieces])
        rows, epochs = np.empty_like(draws), np.empty_like(draws)
        for part in range(len(self.parts)):
            mine = np.flatnonzero(parts == part)
            if len(mine):
                rows[mine], epochs[mine] = self._part_rows(part, draws[mine])
        drawn = Drawn(parts, rows, epochs)
        self._recent = (((cycle, number), drawn), *recent[:1])  # two: threads stand on both sides of a border
        return drawn

    def _window(self, cycle: int, window: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Parts, and the numbers of their draws, at the positions of a window that lie in start..stop-1 of the cycle."""
        first = window * self.window
        last = min(first + self.window, self.cycle)
        before, after = np.array(self._counts(first), np.int64), np.array(self._counts(last), np.int64)
        sizes = after - before
        ends = np.cumsum(sizes)
        whole = self.window <= CHUNK_ROWS
        low, high = max(start, first) - first, min(stop, last) - first
        places = np.arange(last - first) if whole else np.arange(low, high)
        slots = permute(places, last - first, mix(self.seed, _WINDOWS, cycle, window))
        parts = np.searchsorted(ends, slots, side="right")
        before += cycle * self._per_cycle
        draws = slots + (before - (ends - sizes))[parts]
        if not whole:
            return parts, draws
        for part in range(len(self.parts)):  # in the order of positions: no row again before all have come
            mine = np.flatnonzero(parts == part)
            draws[mine] = before[part] + np.arange(len(mine))
        return parts[low:high], draws[low:high]

    def _part_rows(self, part: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and epoch of draws of a part."""
        size = self.parts[part].num_rows
        epochs, places = np.divmod(draws, size)
        rows = np.empty_like(draws)
        low, high = int(epochs.min()), int(epochs.max())
        if size <= SMALL_ROWS:
            numbers = np.arange(low, high + 1, dtype=np.uint64)[:, None]
            orders = np.argsort(
                hashes(np.arange(size, dtype=np.uint64)[None], hashes(numbers, self._key(part))), axis=1
            )
            rows[:] = orders[epochs - low, places]
        else:
            for epoch in np.unique(epochs).tolist():
                mine = np.flatnonzero(epochs == epoch)
                rows[mine] = permute(places[mine], size, mix(self._key(part), epoch))
        return rows, epochs

    def _key(self, part: int) -> int:
        return mix(self.seed, _ROWS, part)


def _check_parts(parts: Sequence[Part]) -> None:
    _require(bool(parts), "parts", "one or more", "none")
    names = [part.name for part in parts]
    _require(len(set(names)) == len(names), "parts", "names that differ", ", ".join(names))
    for part in parts:
        _require(1 <= part.num_rows <= _MOST, f"{part.name}: num_rows", "1 or more", part.num_rows)
        _require(part.repeats >= 1, f"{part.name}: repeats", "1 or more", part.repeats)
        _require(
            part.weight is None or part.repeats == 1, f"{part.name}: repeats", "1 where there is a weight", part.repeats
        )
        _require(part.weight is None or 0 < part.weight < math.inf, f"{part.name}: weight", "above 0", part.weight)
    without = [part.name for part in parts if part.weight is None]
    one_kind = len(without) in (0, len(parts))
    _require(one_kind, "weights", "one for every part, or for none", f"none for {', '.join(without)}")


def _weights(parts: Sequence[Part]) -> list[int]:
    """Whole numbers in the same proportions, without a common divisor. 0.1 means a tenth, not the float next to it."""
    given = [
        Fraction(part.num_rows * part.repeats) if part.weight is None else Fraction(str(part.weight)) for part in parts
    ]
    scale = math.lcm(*(weight.denominator for weight in given))
    whole = [int(weight * scale) for weight in given]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(f"Mix: {name}: expected {expected}, got {found!r}")
