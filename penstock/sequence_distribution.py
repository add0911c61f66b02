"""Numbers counted in narrow bins, and the quantities of saved sequences that are counted so."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import numpy as np

LEAST = 2.0**-12
"""In bins of equal ratio all that is below counts as this."""
_BLOCK = 1 << 16


class Distribution:
    """Numbers, counted in narrow bins: its memory does not grow with how many there are.

    Args:
        title: what the numbers are.
        unit: of them.
        step: width of a bin; with `log` in powers of two. Bins are centred on multiples of it.
        log: bins of equal ratio, for numbers above 0; what is below `LEAST` counts as that.
    """

    def __init__(self, title: str, unit: str, *, step: float = 1.0, log: bool = False) -> None:
        self.title, self.unit, self.step, self.log = title, unit, step, log
        self.count = 0
        """Numbers added."""
        self.sequences = 0
        """Sequences that they come from."""
        self._counts: Counter[int] = Counter()
        self._waiting: list[float] = []

    def add(self, values: Sequence[float]) -> None:
        """Adds the numbers of one sequence, all finite."""
        self.count += len(values)
        self.sequences += bool(values)
        self._waiting += values
        if len(self._waiting) > _BLOCK:
            self._settle()

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the filled bins, (B,) int64 ascending, and what each holds, (B,) int64."""
        self._settle()
        keys = np.array(sorted(self._counts), np.int64)
        return keys, np.array([self._counts[key] for key in keys.tolist()], np.int64)

    def value(self, key: float) -> float:
        """The middle of a bin by its number."""
        return float(2.0 ** (key * self.step) if self.log else key * self.step)

    def quantile(self, share: float) -> float:
        """The number below or at which this share of all lies, to the width of a bin; NaN if there are none."""
        keys, counts = self.bins()
        if not len(keys):
            return float("nan")
        return self.value(int(keys[np.searchsorted(np.cumsum(counts), share * counts.sum())]))

    def to_json(self) -> dict[str, object]:
        """Counts and quantiles."""
        shares = {"p5": 0.05, "median": 0.5, "p95": 0.95}
        found = {name: self.quantile(share) if self.count else None for name, share in shares.items()}
        return {"unit": self.unit, "count": self.count, "sequences": self.sequences, **found}

    def _settle(self) -> None:
        if self._waiting:
            values = np.array(self._waiting, np.float64)
            scaled = np.log2(np.maximum(values, LEAST)) if self.log else values
            keys, counts = np.unique(np.rint(scaled / self.step).astype(np.int64), return_counts=True)
            self._counts.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
            self._waiting = []


_SIZE = partial(Distribution, unit="sqrt(w h) over sqrt(W H) of the picture", step=1 / 32, log=True)
_ASPECT = partial(Distribution, unit="w over h", step=1 / 32, log=True)
_PLACE = partial(Distribution, step=0.01)
QUANTITIES: dict[str, Callable[[], Distribution]] = {
    "growth": partial(Distribution, "Growth of max_gap", "rows"),
    "attempts": partial(Distribution, "Videos tried until frames fitted", "videos"),
    "template size": partial(_SIZE, "Box size in template pictures"),
    "search size": partial(_SIZE, "Box size in search pictures"),
    "crop size": partial(
        Distribution, "Box size in search crops", "sqrt(w h) over the side of the crop", step=1 / 32, log=True
    ),
    "template aspect": partial(_ASPECT, "Aspect of template boxes"),
    "search aspect": partial(_ASPECT, "Aspect of search boxes"),
    "search x": partial(_PLACE, "Box centre in search pictures, across", "share of the width"),
    "search y": partial(_PLACE, "Box centre in search pictures, down", "share of the height"),
    "crop x": partial(_PLACE, "Box centre in search crops, across", "share of the side"),
    "crop y": partial(_PLACE, "Box centre in search crops, down", "share of the side"),
    "outside": partial(_PLACE, "Part of search crops outside the picture", "share of the area"),
    "speed": partial(Distribution, "Speed of the box centre", "sqrt(w h) of the box per second", step=1 / 16, log=True),
    "scale change": partial(Distribution, "Scale change", "octaves of sqrt(w h) per second", step=0.02),
}
"""What is counted of each sequence, by name."""


def gap_range(
    mode: str, max_gap: int | Sequence[int], place: int, *, last: int, is_sorted: bool = False
) -> tuple[float, float]:
    """Least and greatest search row minus template row that a mode of `penstock.tracking_modes` can draw before max_gap grows.

    Args:
        mode: "causal", "interval", "trident", "trident_pro" or "stark".
        max_gap: one number for causal and interval, else one for each further template.
        place: which template, from 0.
        last: number of the last template.
        is_sorted: templates ascend (order="odtrack"), so that the base frame of causal comes last.
    """
    if isinstance(max_gap, int):
        if mode == "causal":
            return (1, max_gap - 1) if place == (last if is_sorted else 0) else (2, 2 * max_gap - 1)
        is_base = place == 0 and not (is_sorted and last)
        return (-max_gap, max_gap - 1) if is_base else (1 - 2 * max_gap, 2 * max_gap - 1)
    return (1 - max_gap[place - 1], max_gap[place - 1]) if place else (-inf, inf)
