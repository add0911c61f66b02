"""Pairs of rows of a track: gap, visibility, size, seconds."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.samplers.pairs import PairRule, Pairs
from tests.mix.data import Tracks

TABLE = Tracks("t", 3, 10, hidden=(4, 13)).track_table()
"""Three tracks of ten rows, 4 frames apart at 24 frames a second; the box of row r is r % 10 + 1 pixels wide and high."""


@given(st.integers(0, 29), st.integers(1, 20), st.integers(0, 30), st.integers(0, 80), st.sets(st.integers(0, 29)))
def test_partners_are_all_rows_that_the_rule_allows(row: int, low: int, more: int, area: int, hidden: set[int]) -> None:
    table = replace(TABLE, visible=np.array([one not in hidden for one in range(30)]))
    pairs = Pairs(table, PairRule(min_gap=low, max_gap=low + more, min_area=area))
    side = np.arange(30) % 10 + 1
    expected: list[int | None] = [
        other
        for other in range(30)
        if other // 10 == row // 10
        and low <= abs(other - row) * 4 <= low + more
        and other not in hidden
        and side[other] ** 2 >= area
    ]
    assert pairs.partners(row).tolist() == expected
    assert pairs.anchors.tolist() == [one for one in range(30) if one not in hidden and side[one] ** 2 >= area]
    assert pairs.partner(row, 5) in (expected or [None])


def test_a_rule_says_whether_it_allows_a_pair_at_all() -> None:
    assert Pairs(TABLE, PairRule(min_gap=36, max_gap=36)).any()
    assert not Pairs(TABLE, PairRule(min_gap=37, max_gap=48)).any()
    assert not Pairs(TABLE, PairRule(min_area=101)).any()


def test_seconds_are_frames_over_the_rate() -> None:
    in_seconds = Pairs(TABLE, PairRule(min_gap=0.5, max_gap=1, unit="seconds"))
    in_frames = Pairs(TABLE, PairRule(min_gap=12, max_gap=24))
    for row in range(30):
        assert in_seconds.partners(row).tolist() == in_frames.partners(row).tolist()
    mixed = Pairs(replace(TABLE, fps=np.array([24.0, 12, 24])), PairRule(min_gap=0.5, max_gap=1, unit="seconds"))
    assert [mixed.partners(row).tolist() for row in (0, 10, 20)] == [[3, 5, 6], [12], [23, 24, 25, 26]]


def test_seconds_need_a_rate() -> None:
    table = replace(TABLE, fps=np.array([24.0, np.nan, 24.0]))
    with pytest.raises(UsageError, match="1 tracks have no frame rate, t1 the first"):
        Pairs(table, PairRule(unit="seconds"))
    Pairs(replace(table, visible=np.arange(30) // 10 != 1), PairRule(unit="seconds"))  # nothing of it is drawn
    Pairs(table, PairRule(unit="frames"))


def test_each_partner_is_as_likely_as_any_other() -> None:
    pairs = Pairs(TABLE, PairRule(min_gap=4, max_gap=12))
    counts = Counter(pairs.partner(15, seed) for seed in range(3000))
    assert set(counts) == {12, 14, 16, 17, 18}  # 13 is hidden
    assert all(abs(count - 600) < 5 * 600**0.5 for count in counts.values())


@pytest.mark.parametrize(
    "wrong",
    [{"min_gap": 0}, {"min_gap": 3, "max_gap": 2}, {"unit": "miles"}, {"min_area": -1}, {"max_gap": float("inf")},
     {"min_gap": float("nan")}],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="PairRule"):
        PairRule(**wrong)
