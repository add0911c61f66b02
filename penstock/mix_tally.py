"""What a mixture has given: counts per part, taken from the samples themselves, and the budgets they are held against."""

import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penstock.errors import BudgetExceeded, UsageError
from penstock.mix_source import Mixed

MOST_COUNTED = 1 << 28
"""Rows of a part up to which it is known which of them were drawn."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many bad samples are borne, per part and over all parts, in what one rank consumes. A bad sample is one that
    another row stood in for, whether the planned one was read or known to be bad.

    Raises:
        UsageError: a number is out of range.
    """

    max_consecutive: int = 100
    """Samples in a row, each after a bad one: more, and something is wrong with all of them."""
    max_fraction: float = 0.05
    """Of the last `window` samples; measured once there are so many."""
    window: int = 1000
    max_total: int | None = None

    def __post_init__(self) -> None:
        counts = self.max_consecutive >= 0 and self.window >= 1 and (self.max_total or 0) >= 0
        if not counts or not 0 <= self.max_fraction <= 1:
            raise UsageError(
                f"Budget: expected counts of 0 or more, a window of 1 or more, a fraction of 0..1; got {self}"
            )


@dataclass(kw_only=True)
class PartTally:
    """Counts of one part, of what this process has consumed."""

    drawn: int = 0
    """Samples."""
    pairs: int = 0
    """Samples whose views are two pictures."""
    substituted: int = 0
    """Samples that another row stood in for."""
    retried: int = 0
    """Reads repeated."""
    failed: Counter[str] = field(default_factory=Counter)
    """Class of the error -> rows that failed; "known bad" for those in quarantine, which were not read."""
    seen: np.ndarray | None = None
    """(num_rows,) bool: rows drawn."""
    first_bad: list[str] = field(default_factory=list)
    """Keys of the first bad rows."""
    consecutive: int = 0
    recent: deque[bool] = field(default_factory=deque)
    """Of the samples in the budget's window: whether they were bad."""
    recent_bad: int = 0
    longest: int = 0
    """Most bad samples in a row since the budget was last kept to: a batch may hold a run and what ends it."""
    densest: int = 0
    """Most bad samples in a whole window, likewise."""


class MixTally:
    """Counts batches as they are consumed, in order, and says when a budget is spent.

    Args:
        mixed: where the samples come from.
        budget: for every part and for all together; None: nothing is counted against anything.
    """

    def __init__(self, mixed: Mixed, budget: Budget | None) -> None:
        self.mixed, self.budget = mixed, budget
        sizes = [part.num_rows for part in mixed.plan.parts]
        self.parts = {
            part.name: PartTally(seen=np.zeros(size, bool) if size <= MOST_COUNTED else None)
            for part, size in zip(mixed.plan.parts, sizes, strict=True)
        }
        self.all = PartTally()

    def take(self, batch: Mapping[str, Any]) -> list[dict[str, str]]:
        """Counts a batch.

        Args:
            batch: with the fields of `PROVENANCE` and `is_pair`, in order of positions.

        Returns:
            The bad rows of it that were not in quarantine: source, key, error.
        """
        rows, pairs = np.asarray(batch["row"]).tolist(), np.asarray(batch["is_pair"]).tolist()
        attempts, retries = np.asarray(batch["attempt"]).tolist(), np.asarray(batch["retries"]).tolist()
        found: list[dict[str, str]] = []
        for number, name in enumerate(batch["source"]):
            tally = self.parts[name]
            if tally.seen is not None:
                tally.seen[rows[number]] = True
            failures = json.loads(batch["failures"][number] or "[]")
            for one in (tally, self.all):
                one.drawn += 1
                one.pairs += bool(pairs[number])
                one.retried += retries[number]
                one.substituted += attempts[number] > 0
                self._note(one, failures)
            found += [
                {"source": name, "key": one["key"], "error": one["error"]} for one in failures if not one.get("known")
            ]
        return found

    def check(self) -> None:
        """Holds the counts against the budget.

        Raises:
            BudgetExceeded: too many bad samples; the message has the reasons and the first keys.
        """
        if self.budget is not None:
            for name, tally in (*self.parts.items(), ("all parts", self.all)):
                _check(name, tally, self.budget)
                tally.longest = tally.densest = 0

    def _note(self, tally: PartTally, failures: Sequence[Mapping[str, Any]]) -> None:
        for failure in failures:
            tally.failed["known bad" if failure.get("known") else failure["error"]] += 1
            if len(tally.first_bad) < 5:
                tally.first_bad.append(failure["key"])
        tally.consecutive = tally.consecutive + 1 if failures else 0
        tally.longest = max(tally.longest, tally.consecutive)
        if self.budget is None:
            return
        tally.recent.append(bool(failures))
        tally.recent_bad += bool(failures)
        if len(tally.recent) > self.budget.window:
            tally.recent_bad -= tally.recent.popleft()
        if len(tally.recent) == self.budget.window:
            tally.densest = max(tally.densest, tally.recent_bad)

    def report(self) -> dict[str, dict[str, Any]]:
        """Counts per part of what this process consumed: plain values, for JSON.

        Returns:
            Part -> drawn, pairs, substituted: samples; unique: rows that came at least once (None for a part too large to
            know); repeated: the rest of drawn; retried: reads; failed: reason -> rows; ms_p50, ms_p99, bytes_per_s: of
            the samples made last, in one thread.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, tally in self.parts.items():
            unique = None if tally.seen is None else int(np.count_nonzero(tally.seen))
            found[name] = {
                "drawn": tally.drawn,
                "unique": unique,
                "repeated": None if unique is None else tally.drawn - unique,
                "pairs": tally.pairs,
                "substituted": tally.substituted,
                "retried": tally.retried,
                "failed": dict(tally.failed.most_common()),
                **self.mixed.reads[name].report(),
            }
        return found


def _check(name: str, tally: PartTally, budget: Budget) -> None:
    share = tally.densest / budget.window
    reasons = [
        (tally.longest > budget.max_consecutive, f"{tally.longest} samples in a row needed a substitute"),
        (share > budget.max_fraction, f"{share:.1%} of the last {budget.window} samples needed a substitute"),
        (budget.max_total is not None and tally.substituted > budget.max_total,
         f"{tally.substituted} samples needed a substitute"),
    ]  # fmt: skip
    for exceeded, words in reasons:
        if exceeded:
            counts = ", ".join(f"{reason}: {count}" for reason, count in tally.failed.most_common(5))
            raise BudgetExceeded(
                f"mix: {name}: {words}; the budget is {budget}. Reasons: {counts}; "
                f"the first: {', '.join(tally.first_bad)}. Look at the data, or raise the budget"
            )


def added(reports: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The reports of several ranks as one: counts and rates are summed, of milliseconds the slowest rank's stand.

    `unique` is exact where ranks share no row, as in one epoch without substitutes; a row that came to two ranks counts
    twice in it.
    """
    total: dict[str, dict[str, Any]] = {}
    for report in reports:
        for name, counts in report.items():
            into = total.setdefault(name, {"failed": Counter()})
            into["failed"].update(counts["failed"])
            for key in (one for one in counts if one != "failed"):
                known = [value for value in (into.get(key), counts[key]) if value is not None]
                into[key] = (max if key.startswith("ms_") else sum)(known) if known else None
    return {name: {**counts, "failed": dict(counts["failed"])} for name, counts in total.items()}
