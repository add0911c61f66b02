"""Whether two sets of saved sequences are drawn alike: two-sample tests on gaps and boxes, and on shares.

Numbers: the two-sample Kolmogorov-Smirnov statistic D (greatest distance between the two cumulative shares), its p-value by
Kolmogorov's distribution with Stephens' correction, and the population stability index. Shares: Pearson's chi-squared test
of homogeneity, half the sum of absolute differences, and the index.

The p-values count sequences, not values, as values of one sequence are not independent; equal numbers (gaps are whole) make
them too large, and two sequences of one video too small. The index grows by chance alone in small sets; how much is said.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import erfc, exp, lgamma, log, sqrt
from typing import TypeVar

import numpy as np

from penstock.sequence_distribution import Distribution
from penstock.sequence_statistics import SequenceStatistics

ALPHA = 0.01
"""A quantity differs if its p-value, times the number of tests that Holm's method says, is below this."""
BINS = 10
"""Of the population stability index: tenths of the first set."""
Name = TypeVar("Name", bound=Hashable)
_COUNT = 0.5
"""Added to each bin, so that an empty one has a logarithm."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How one quantity differs between two sets."""

    name: str
    test: str
    """"Kolmogorov-Smirnov" or "chi-squared"."""
    counts: tuple[int, int]
    """Sequences of each set that have it."""
    middles: tuple[float, float] | None
    """Medians; None for shares."""
    distance: float
    """0..1: D, or half the sum of absolute differences of the shares."""
    p: float
    """How often sets drawn alike lie this far apart or farther."""
    adjusted: float = 1.0
    """p after Holm's method for all tests of the comparison."""
    stability: float
    """Population stability index."""
    by_chance: float
    """What the index is on average for sets drawn alike of these numbers."""

    @property
    def differs(self) -> bool:
        """Whether the adjusted p is below `ALPHA`."""
        return self.adjusted < ALPHA

    @property
    def words(self) -> str:
        """The finding in words; 0.1 and 0.25 are the usual marks of the index."""
        if not self.differs:
            return "no difference shown"
        excess = self.stability - self.by_chance
        return "differs " + ("slightly" if excess < 0.1 else "moderately" if excess < 0.25 else "much")


def drift(first: SequenceStatistics, second: SequenceStatistics) -> list[Drift]:
    """All quantities that both sets have, those that differ most first."""
    found = [_of_numbers(one, second.gaps[place]) for place, one in sorted(first.gaps.items()) if place in second.gaps]
    found += [
        _of_numbers(one, other)
        for one, other in zip(first.numbers.values(), second.numbers.values(), strict=True)
        if one.count and other.count
    ]
    found.append(_of_shares("Shares of the sources", first.sources, second.sources))
    found.append(_of_shares("Shares of the classes", first.classes, second.classes))
    found.sort(key=lambda one: (one.p, -one.distance))
    adjusted, highest = [], 0.0
    for place, one in enumerate(found):
        highest = max(highest, min(1.0, one.p * (len(found) - place)))
        adjusted.append(Drift(**{**vars(one), "adjusted": highest}))
    return adjusted


def differences(
    first: Mapping[str, object], second: Mapping[str, object], start: str = ""
) -> list[tuple[str, str, str]]:
    """Settings of two recipes that are not the same: name, and both values."""
    found: list[tuple[str, str, str]] = []
    for name in sorted({*first, *second}):
        one, other = first.get(name), second.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{start}{name}.")
        elif one != other:
            found.append((f"{start}{name}", "-" if one is None else str(one), "-" if other is None else str(other)))
    return found


def kolmogorov(distance: float, first: int, second: int) -> float:
    """How often two samples of these sizes from one continuous distribution have this D or more."""
    effective = sqrt(first * second / (first + second))
    scaled = (effective + 0.12 + 0.11 / effective) * distance
    if scaled < 0.2:
        return 1.0  # the series does not converge there; its sum is 1 to twelve digits
    total: float = sum((-1.0) ** (k - 1) * exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * total))


def chi_squared(value: float, freedom: int) -> float:
    """How often a chi-squared number with so many degrees of freedom is this large or larger."""
    if value <= 0 or freedom < 1:
        return 1.0
    half = value / 2
    start = 0.5 if freedom % 2 else 1.0
    total = erfc(sqrt(half)) if freedom % 2 else exp(-half)
    for step in range((freedom - 1) // 2):
        order = start + step
        total += exp(order * log(half) - half - lgamma(order + 1))
    return min(1.0, total)


def _of_numbers(first: Distribution, second: Distribution) -> Drift:
    (keys, counts), (other_keys, other_counts) = first.bins(), second.bins()
    every = np.union1d(keys, other_keys)
    shares = np.zeros((2, len(every)))
    shares[0, np.searchsorted(every, keys)] = counts / counts.sum()
    shares[1, np.searchsorted(every, other_keys)] = other_counts / other_counts.sum()
    totals = np.cumsum(shares, axis=1)
    distance = float(np.abs(totals[0] - totals[1]).max())
    edges = np.unique(np.searchsorted(totals[0], np.arange(1, BINS) / BINS - 1e-12))
    binned = np.stack([np.diff(np.concatenate([[0.0], row[edges], [1.0]])) for row in totals])
    numbers = first.sequences, second.sequences
    stability, by_chance = _stability(binned[0], binned[1], numbers)
    return Drift(
        name=first.title,
        test="Kolmogorov-Smirnov",
        counts=numbers,
        middles=(first.quantile(0.5), second.quantile(0.5)),
        distance=distance,
        p=kolmogorov(distance, *numbers),
        stability=stability,
        by_chance=by_chance,
    )


def _of_shares(name: str, first: Counter[Name], second: Counter[Name]) -> Drift:
    names = list({**first, **second})
    table = np.array([[counts[one] for one in names] for counts in (first, second)], np.float64)
    sums = table.sum(axis=1)
    expected = sums[:, None] * table.sum(axis=0) / table.sum()
    shares = table / sums[:, None]
    numbers = int(sums[0]), int(sums[1])
    stability, by_chance = _stability(shares[0], shares[1], numbers)
    return Drift(
        name=name,
        test="chi-squared",
        counts=numbers,
        middles=None,
        distance=float(np.abs(shares[0] - shares[1]).sum() / 2),
        p=chi_squared(float(((table - expected) ** 2 / expected).sum()), len(names) - 1),
        stability=stability,
        by_chance=by_chance,
    )


def _stability(first: np.ndarray, second: np.ndarray, numbers: tuple[int, int]) -> tuple[float, float]:
    """The index of two lists of shares, and its mean for sets drawn alike."""
    bins = len(first)
    one, other = (
        (shares * number + _COUNT) / (number + _COUNT * bins)
        for shares, number in zip((first, second), numbers, strict=True)
    )
    return float(((one - other) * np.log(one / other)).sum()), (bins - 1) * (1 / numbers[0] + 1 / numbers[1])
