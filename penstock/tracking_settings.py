"""What the settings of a tracking sampler may be."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from penstock.draws import TrackTable
from penstock.errors import UsageError
from penstock.tracking_modes import MODES, WIDENING

_LOWEST = {
    "num_search": 1,
    "num_template": 1,
    "samples_per_epoch": 1,
    "seed": 0,
    "min_interval": 1,
    "future_steps": 1,
    "max_growth": 0,
    "max_attempts": 1,
    "min_frames": 1,
}


def check_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings by name, whole numbers as int.

    Raises:
        UsageError: one is out of range, or two contradict each other.
    """
    found = dict(settings)
    for name, low in _LOWEST.items():
        found[name] = whole_number(name, found[name], low)
    mode, train_cls = found["mode"], bool(found["train_cls"])
    _one_of("mode", mode, MODES)
    _one_of("order", found["order"], ("ostrack", "odtrack"))
    _one_of("shares", found["shares"], ("exact", "random"))
    if found["order"] != "ostrack" and mode not in WIDENING:
        raise UsageError(f"Tracking: order={found['order']!r} needs mode causal or interval, got {mode!r}")
    if mode not in WIDENING and found["num_search"] != 1:
        raise UsageError(f"Tracking: mode {mode!r} draws one search frame, got num_search={found['num_search']}")
    if train_cls and mode in WIDENING:
        raise UsageError(f"Tracking: train_cls needs mode trident, trident_pro or stark, got {mode!r}")
    pos_prob = found["pos_prob"]
    if not isinstance(pos_prob, int | float | np.floating) or not 0 <= pos_prob <= 1:
        raise UsageError(f"Tracking: pos_prob: expected 0..1, got {pos_prob!r}")
    if found["seed"] >= 1 << 64:  # type: ignore[operator]  # an int
        raise UsageError(f"Tracking: seed: expected 0..{(1 << 64) - 1}, got {found['seed']}")
    return found | {"train_cls": train_cls, "pos_prob": float(pos_prob)}


def check_weights(tables: Sequence[TrackTable], weights: Sequence[float] | None) -> list[float]:
    """The weights; numbers of sequences where there are none.

    Raises:
        UsageError: there is no table, they are as many as tables are not, negative, not finite, or all 0; or there are none
            and a table is empty.
    """
    if not tables:
        raise UsageError("Tracking: expected at least one table, got none")
    if weights is None:
        empty = [table.name for table in tables if not len(table)]
        if empty:
            raise UsageError(f"Tracking: {', '.join(empty)}: expected at least one sequence, got none")
        found = [float(len(table)) for table in tables]
    else:
        found = [float(weight) for weight in weights]
    if len(found) != len(tables):
        raise UsageError(f"Tracking: weights: expected {len(tables)}, one per table, got {len(found)}")
    named = ", ".join(f"{table.name}: {weight}" for table, weight in zip(tables, found, strict=True))
    if not all(isfinite(weight) and weight >= 0 for weight in found) or not sum(found):
        raise UsageError(f"Tracking: weights: expected finite numbers, 0 or more, not all 0, got {named}")
    return found


def check_gaps(mode: str, max_gap: int | Sequence[int]) -> tuple[int, ...]:
    """max_gap as a tuple.

    Raises:
        UsageError: it is a list where the mode takes one number, or the other way round; or a number is below 1.
    """
    is_number = isinstance(max_gap, int | np.integer)
    if is_number != (mode in WIDENING):
        expected = "one number" if mode in WIDENING else "a list of numbers, one per further template"
        raise UsageError(f"Tracking: mode {mode!r}: max_gap: expected {expected}, got {max_gap!r}")
    gaps = (max_gap,) if isinstance(max_gap, int | np.integer) else tuple(max_gap)
    if not gaps:
        raise UsageError(f"Tracking: mode {mode!r}: max_gap: expected at least one number, got an empty list")
    return tuple(whole_number("max_gap", gap, 1) for gap in gaps)


def whole_number(name: str, value: object, low: int) -> int:
    """The setting as int.

    Raises:
        UsageError: it is no whole number, or below `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise UsageError(f"Tracking: {name}: expected a whole number, {low} or more, got {value!r}")
    return int(value)


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"Tracking: {name}: expected one of {', '.join(known)}, got {value!r}")
