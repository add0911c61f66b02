"""Charts as plain numbers that a template draws as SVG: histograms of one or two sets, and heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf, isfinite, log10

import numpy as np

from penstock.sequence_distribution import LEAST, Distribution

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 32, 34
_BARS = 40
_TICKS = 6
_TAIL = 0.005
"""Of the numbers at each end, this share is put into the last bar there."""


@dataclass(kw_only=True)
class Chart:
    """A histogram; all coordinates are in a picture of `WIDTH` x `HEIGHT`."""

    title: str
    description: str
    """All that the picture says, in words."""
    unit: str
    bars: list[dict[str, object]] = field(default_factory=list)
    """x, y, width, height, label."""
    outline: str = ""
    """Points of the second set's steps; empty if there is none."""
    ticks: list[tuple[float, str]] = field(default_factory=list)
    levels: list[tuple[float, str]] = field(default_factory=list)
    limits: list[tuple[float, str]] = field(default_factory=list)
    """Marked places: x, text."""
    note: str = ""


@dataclass(kw_only=True)
class HeatMap:
    """Counts over a square."""

    title: str
    description: str
    cells: list[tuple[int, int, float, str]]
    """Column, row, strength 0..1, label; empty cells are left out."""
    side: int


def histogram(
    one: Distribution,
    other: Distribution | None = None,
    *,
    limits: Sequence[tuple[float, str]] = (),
    whole: bool = False,
    title: str = "",
) -> Chart:
    """Shares by bins; the bars are the first set, the outline is the second.

    Args:
        one: at least one number.
        other: of the same quantity; one without numbers is left out.
        limits: values to mark, with a text.
        whole: show all numbers, however far out.
        title: in place of the distribution's.
    """
    other = other if other is not None and other.count else None
    sets = [one] if other is None else [one, other]
    low, high = _range(sets, limits, whole=whole)
    group = max(1, ceil((high - low + 1) / _BARS))
    bins = (high - low) // group + 1
    shares = [_shares(each, low=low, group=group, bins=bins) for each in sets]
    most = max(float(each.max()) for each in shares)
    across, down = (WIDTH - LEFT - RIGHT) / bins, HEIGHT - TOP - BOTTOM
    heights = [each / most * down for each in shares]

    def place(key: float) -> float:
        return round(LEFT + (key - low + 0.5) / group * across, 1)

    chart = Chart(
        title=title or one.title,
        description=" ".join(_words(each, name) for each, name in zip(sets, ("", "Compared:"), strict=False)),
        unit=one.unit,
    )
    for number, (share, height) in enumerate(zip(shares[0].tolist(), heights[0].tolist(), strict=True)):
        if share:
            ends = one.value(low + number * group), one.value(low + (number + 1) * group - 1)
            span = _text(ends[0]) if group == 1 else f"{_text(ends[0])} to {_text(ends[1])}"
            left, top = round(LEFT + number * across, 1), round(HEIGHT - BOTTOM - height, 1)
            size = {"width": round(max(across - 1, 0.5), 1), "height": round(height, 1)}
            chart.bars.append({"x": left, "y": top, **size, "label": f"{span}: {share:.1%}"})
    if len(heights) > 1:
        points = [
            (LEFT + (number + side) * across, HEIGHT - BOTTOM - y)
            for number, y in enumerate(heights[1])
            for side in (0, 1)
        ]
        chart.outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    chart.ticks = [(place(key), text) for key, text in _ticks(one, low, low + bins * group - 1)]
    chart.levels = [(TOP, f"{most:.0%}" if most >= 0.1 else f"{most:.1%}"), (HEIGHT - BOTTOM, "0")]
    chart.limits = [(place(value / one.step), text) for value, text in limits if isfinite(value)]
    if not whole and any(each.bins()[0][0] < low or each.bins()[0][-1] > high for each in sets):
        chart.note = "The first and the last bar also hold what lies beyond them."
    if one.log and one.value(low) <= LEAST:
        chart.note = f"{chart.note} 0 counts as {_text(LEAST)}.".strip()
    return chart


def heat_map(counts: np.ndarray, title: str) -> HeatMap:
    """A chart of (G, G) counts, rows from the top."""
    side, total = len(counts), int(counts.sum())
    most = max(1, int(counts.max()))
    cells = [
        (column, row, round(0.08 + 0.92 * counts[row, column] / most, 3), f"{counts[row, column] / total:.1%}")
        for row, column in np.argwhere(counts).tolist()
    ]
    description = "no boxes"
    if total:
        rows, columns = np.indices(counts.shape)
        middle = ((columns + 0.5) * counts).sum() / total / side, ((rows + 0.5) * counts).sum() / total / side
        description = (
            f"{total} boxes in {len(cells)} of {side * side} cells; mean {middle[0]:.2f} across, {middle[1]:.2f} down; "
            f"the fullest cell holds {most / total:.1%}"
        )
    return HeatMap(title=title, description=description, cells=cells, side=side)


def _range(sets: Sequence[Distribution], limits: Sequence[tuple[float, str]], *, whole: bool) -> tuple[int, int]:
    """First and last bin to show."""
    low, high = inf, -inf
    for one in sets:
        keys, counts = one.bins()
        totals = np.cumsum(counts) / counts.sum()
        first, last = (0, len(keys) - 1) if whole else np.searchsorted(totals, [_TAIL, 1 - _TAIL - 1e-12]).tolist()
        low, high = min(low, int(keys[first])), max(high, int(keys[last]))
    for value, _ in limits:
        if isfinite(value):
            low, high = min(low, floor(value / sets[0].step)), max(high, ceil(value / sets[0].step))
    return (int(low) - 1, int(high) + 1) if high - low < 2 else (int(low), int(high))


def _shares(one: Distribution, *, low: int, group: int, bins: int) -> np.ndarray:
    keys, counts = one.bins()
    found = np.zeros(bins)
    np.add.at(found, np.clip((keys - low) // group, 0, bins - 1), counts)
    shares: np.ndarray = found / one.count
    return shares


def _ticks(one: Distribution, low: int, high: int) -> list[tuple[float, str]]:
    """Places, as numbers of bins, of round values."""
    if one.log:
        octave = 1 / one.step
        step = next(size for size in (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12) if (high - low) / octave / size <= _TICKS)
        powers = np.arange(ceil(low / octave / step), floor(high / octave / step) + 1) * step
        return [(power * octave, _text(2.0**power)) for power in powers.tolist()]
    span = max((high - low) * one.step, one.step)
    ten = 10.0 ** floor(log10(span / _TICKS))
    step = next(ten * size for size in (1, 2, 5, 10, 20) if span / (ten * size) <= _TICKS)
    step = max(step, one.step)
    numbers = np.arange(ceil(low * one.step / step - 1e-9), floor(high * one.step / step + 1e-9) + 1)
    return [(number * step / one.step, _text(number * step)) for number in numbers.tolist()]


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) > 1e-12 else "0"


def _words(one: Distribution, start: str) -> str:
    low, middle, high = (_text(one.quantile(share)) for share in (0.05, 0.5, 0.95))
    return f"{start} {one.count} numbers of {one.sequences} sequences: median {middle}, 90% in {low} to {high}.".strip()
