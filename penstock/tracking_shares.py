"""Which source stands at which step: shares that hold at every prefix, or independent draws.

Exact shares. Weights become whole numbers n of sum W; in each period of W steps a source stands n times. The k-th time must
lie in the slots floor((k - 1) * W / n) .. ceil(k * W / n) - 1; these windows can always be kept, by taking of those open the
one that closes first (Baruah et al., "Proportionate progress", 1996). Then after any number of steps every count is
weight * steps, rounded down or up. So that a period never stays in step with a number of ranks, each period is read
forwards or backwards, its sources of equal weight change places, and neighbours that may be swapped are; all by hashes of
the period's number. The source of a step is thus computed from the step alone.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from penstock.samplers import mix
from penstock.tracking_random import states, words

MAX_PERIOD = 1 << 18
"""Weights that need larger whole numbers are rounded to this sum."""


class Shares:
    """The source of each step.

    Args:
        weights: of the sources, 0 or more, not all 0.
        seed: 0..2**64-1.
        how: "exact" as above, or "random": each step draws its source independently, as the original samplers do; then
            the count of a source after n steps deviates by about the root of n * weight.

    Attributes:
        weights: (sources,) float64 of sum 1: as given, or, of exact shares, n / W.
    """

    def __init__(self, weights: Sequence[float], seed: int, how: str) -> None:
        total = sum(Fraction(weight) for weight in weights)
        fractions = [Fraction(weight) / total for weight in weights]
        counts = _whole(fractions)
        self._seed = mix(seed, 0x536861726573)
        self._period: np.ndarray | None = None
        self.weights = np.array([float(fraction) for fraction in fractions])
        ends = [sum(fractions[: place + 1]) for place in range(len(fractions))]
        self._ends = np.array([min(int(end * 2**64), 2**64 - 1) for end in ends], np.uint64)
        self._last = max(place for place, count in enumerate(counts) if count)
        if how == "exact":
            self.weights = np.array(counts) / sum(counts)
            self._period = _schedule(counts)
            self._swaps = [_swappable(self._period, counts, first) for first in (0, 1)]
            equal: dict[int, list[int]] = {}
            for source, count in enumerate(counts):
                equal.setdefault(count, []).append(source)
            self._equals = [np.array(each) for count, each in equal.items() if count and len(each) > 1]

    def sources(self, steps: np.ndarray) -> np.ndarray:
        """The source of each step.

        Args:
            steps: (n,) int64, 0 or more.

        Returns:
            (n,) int64.
        """
        if self._period is None:
            return self.drawn(words(states(self._seed, steps), 0))
        size = len(self._period)
        number, slot = np.divmod(steps, size)
        of = states(self._seed, number)
        style = words(of, 0)
        slot = np.where(style & np.uint64(1), slot, size - 1 - slot)
        for parity, swappable in enumerate(self._swaps):
            first = slot - ((slot ^ parity) & 1)
            is_meant = ((style >> np.uint64(1)) & np.uint64(1)) == parity
            coin = words(of + first.astype(np.uint64), 1) >> np.uint64(63)
            slot = np.where(is_meant & swappable[slot] & (coin == 1), 2 * first + 1 - slot, slot)
        found = self._period[slot].astype(np.int64)
        for place, equals in enumerate(self._equals):
            found = _exchange(found, equals, words(of, 2, place))
        return found

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """A source by weight for each random number: (n,) uint64 to (n,) int64."""
        return np.minimum(np.searchsorted(self._ends, numbers, side="right"), self._last)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self._period is None else self._period.nbytes + sum(each.nbytes for each in self._swaps)


def _whole(fractions: Sequence[Fraction]) -> list[int]:
    """Whole numbers in the proportion of the fractions: exact where their sum stays below the limit."""
    near = [fraction.limit_denominator(10**6) for fraction in fractions]
    if sum(near) == 1 and all(abs(a - b) <= b / 10**12 for a, b in zip(near, fractions, strict=True)):
        fractions = near
    scale = lcm(*(fraction.denominator for fraction in fractions))
    exact = [int(fraction * scale) for fraction in fractions]
    divisor = gcd(*exact)
    if sum(exact) // divisor <= MAX_PERIOD:
        return [count // divisor for count in exact]
    counts = [max(int(fraction * MAX_PERIOD), 1) if fraction else 0 for fraction in fractions]
    rest = [fraction * MAX_PERIOD - count for fraction, count in zip(fractions, counts, strict=True)]
    for place in sorted(range(len(counts)), key=lambda place: (-rest[place], place))[: MAX_PERIOD - sum(counts)]:
        counts[place] += 1
    return counts


def _schedule(counts: Sequence[int]) -> np.ndarray:
    """The source of each slot of a period, (W,) uint16."""
    size = sum(counts)
    out = np.empty(size, np.uint16)
    waiting = [(0, source, 1) for source, count in enumerate(counts) if count]  # opens at, source, how manieth
    ready: list[tuple[int, int, int]] = []  # closes at
    for slot in range(size):
        while waiting and waiting[0][0] <= slot:
            _, source, number = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-number * size // counts[source]), source, number))
        _, source, number = heapq.heappop(ready)
        out[slot] = source
        if number < counts[source]:
            heapq.heappush(waiting, (number * size // counts[source], source, number + 1))
    return out


def _swappable(period: np.ndarray, counts: Sequence[int], first: int) -> np.ndarray:
    """(W,) bool: slots that may change places with the other of their pair; pairs begin at `first` and every second slot.

    A swap gives the source of the earlier slot one less and that of the later one more after the earlier slot only: it may
    be where the one stood above its weight there, and the other below.
    """
    size = len(period)
    found = np.zeros(size, bool)
    earlier = np.arange(first, size - 1, 2)
    given = np.zeros(size, np.int64)
    for source in np.flatnonzero(counts).tolist():
        given[period == source] = np.arange(counts[source])
    shares = np.array(counts, np.int64)[period]
    above = (given[earlier] + 1) * size > shares[earlier] * (earlier + 1)
    under = given[earlier + 1] * size < shares[earlier + 1] * (earlier + 1)
    may = earlier[above & under & (period[earlier] != period[earlier + 1])]
    found[may] = found[may + 1] = True
    return found


def _exchange(found: np.ndarray, equals: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sources of equal weight in another order, which the random number of each step's period decides."""
    place = np.full(int(max(found.max(initial=0), equals[-1])) + 1, -1)
    place[equals] = np.arange(len(equals))
    at = place[found]
    inside = np.flatnonzero(at >= 0)
    keys = np.stack([words(numbers[inside], member) for member in range(len(equals))], axis=1)
    order = np.argsort(keys, axis=1, kind="stable")
    out = found.copy()
    out[inside] = equals[order[np.arange(len(inside)), at[inside]]]
    return out
