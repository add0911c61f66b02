"""Mix: exact shares, each row once, one order whoever asks for it and in whatever pieces."""

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.samplers import CHUNK_ROWS, Mix, Part

SIZES = st.lists(st.integers(1, 3000), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**64 - 1)


def concatenation(sizes: list[int], seed: int = 0, repeats: int = 1) -> Mix:
    return Mix([Part(name=f"s{n}", num_rows=rows, repeats=repeats) for n, rows in enumerate(sizes)], seed=seed)


@given(SIZES, SEEDS, st.integers(1, 3), st.integers(0, 3))
def test_without_weights_an_epoch_has_every_row_as_often_as_it_repeats(
    sizes: list[int], seed: int, repeats: int, epoch: int
) -> None:
    mixture = concatenation(sizes, seed, repeats)
    assert mixture.num_rows == repeats * sum(sizes)
    rows = mixture.rows(epoch * mixture.num_rows, (epoch + 1) * mixture.num_rows)
    assert (np.bincount(rows, minlength=sum(sizes)) == repeats).all()


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 50)), min_size=1, max_size=6), SEEDS, st.integers(0, 10**15)
)
def test_shares_are_exact_to_less_than_one_draw_at_windows(
    given_parts: list[tuple[int, int]], seed: int, after: int
) -> None:
    mixture = Mix([Part(name=f"s{n}", num_rows=r, weight=w) for n, (r, w) in enumerate(given_parts)], seed=seed)
    total = sum(weight for _, weight in given_parts)
    position = after - after % mixture.cycle + (after % mixture.cycle) // mixture.window * mixture.window
    for (_, weight), count in zip(given_parts, mixture.counts(0, position), strict=True):
        assert abs(count - Fraction(weight * position, total)) < 1


@given(SIZES, SEEDS)
def test_shares_of_a_concatenation_are_exact_to_less_than_one_draw_at_windows(sizes: list[int], seed: int) -> None:
    big = [size * 37 for size in sizes]
    mixture = concatenation(big, seed)
    parts = mixture.draw(0, mixture.num_rows).parts
    for number, size in enumerate(big):
        drawn = np.concatenate([[0], np.cumsum(parts == number)])[:: mixture.window]
        exact = np.arange(len(drawn)) * mixture.window * size / sum(big)
        assert np.abs(drawn - exact).max() < 1


@given(SIZES, SEEDS)
def test_within_a_part_no_row_comes_again_before_all_have_come(sizes: list[int], seed: int) -> None:
    weights = [1 + number for number in range(len(sizes))]
    mixture = Mix(
        [Part(name=f"s{n}", num_rows=r, weight=w) for n, (r, w) in enumerate(zip(sizes, weights, strict=True))],
        seed=seed,
    )
    drawn = mixture.draw(0, 20_000)
    for number, size in enumerate(sizes):
        rows = drawn.rows[drawn.parts == number]
        epochs = drawn.epochs[drawn.parts == number]
        assert (epochs == np.arange(len(rows)) // size).all()
        for start in range(0, min(len(rows) - size, 3 * size) + 1, size):
            assert len(set(rows[start : start + size].tolist())) == size


@given(SIZES, SEEDS, st.integers(0, 10**12), st.lists(st.integers(1, CHUNK_ROWS), min_size=1, max_size=4))
def test_any_cut_gives_the_same_order(sizes: list[int], seed: int, start: int, pieces: list[int]) -> None:
    mixture = concatenation(sizes, seed)
    whole = mixture.draw(start, start + sum(pieces))
    fresh = pickle.loads(pickle.dumps(mixture))
    at = start
    for length in reversed(pieces):
        part = fresh.draw(at, at + length)
        for ours, all_of_it in zip(part, whole, strict=True):
            assert (ours == all_of_it[at - start : at - start + length]).all()
        at += length


def test_counts_agree_with_what_is_drawn() -> None:
    mixture = concatenation([7, 5000, 131], seed=5)
    parts = mixture.draw(0, 40_000).parts
    for start, stop in [(0, 1), (4095, 4097), (5137, 5139), (17, 33_333), (40_000, 40_000)]:
        assert mixture.counts(start, stop) == np.bincount(parts[start:stop], minlength=3).tolist()


def test_no_rank_sees_one_part_only() -> None:
    """A pattern of period 4 dealt to 4 ranks would give each rank one part for ever."""
    mixture = Mix([Part(name=f"s{n}", num_rows=1000, weight=1) for n in range(4)])
    parts = mixture.draw(0, 4 * 4096).parts
    for rank in range(4):
        shares = np.bincount(parts[rank::4], minlength=4) / 4096
        assert (abs(shares - 0.25) < 0.05).all()


def test_weights_as_people_write_them() -> None:
    mixture = Mix([Part(name="a", num_rows=10, weight=0.1), Part(name="b", num_rows=10, weight=Fraction(3, 10))])
    assert mixture.weights == [1, 3]
    assert mixture.num_rows == 13  # b has run out after 10 of its draws
    assert Mix(mixture.parts, ends="all").num_rows == 40
    assert Mix(mixture.parts, epoch_rows=7).num_rows == 7


def test_a_billion_rows_and_one() -> None:
    mixture = concatenation([10**9, 1])
    assert mixture.counts(0, 10**9 + 1) == [10**9, 1]
    assert len(mixture.draw(5 * 10**8, 5 * 10**8 + 64).rows) == 64
    assert len(pickle.dumps(mixture)) < 2000


def test_stand_ins_are_spread_over_the_part() -> None:
    """A run of 500 bad rows is not answered by its neighbour 500 times."""
    mixture = concatenation([20_000, 3])
    found = Counter(mixture.stand_in(0, position, 1) for position in range(500))
    assert max(found.values()) <= 3
    assert {mixture.stand_in(1, position, 2) for position in range(100)} == {0, 1, 2}


def test_seeds_differ() -> None:
    assert (concatenation([500], 1).rows(0, 500) != concatenation([500], 2).rows(0, 500)).any()
    assert concatenation([500], 1).sample_seed(7) != concatenation([500], 1).sample_seed(8)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "one or more"),
        ([Part(name="a", num_rows=0)], "num_rows"),
        ([Part(name="a", num_rows=1), Part(name="a", num_rows=2)], "names that differ"),
        ([Part(name="a", num_rows=1, weight=1), Part(name="b", num_rows=2)], "none for b"),
        ([Part(name="a", num_rows=1, weight=-1)], "above 0"),
        ([Part(name="a", num_rows=1, weight=float("nan"))], "above 0"),
        ([Part(name="a", num_rows=1, weight=1, repeats=2)], "where there is a weight"),
        ([Part(name="a", num_rows=1, repeats=0)], "repeats"),
    ],
)
def test_contradictions_are_refused(parts: list[Part], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Mix(parts)


def test_what_only_weights_need_is_refused_without() -> None:
    with pytest.raises(UsageError, match="epoch_rows"):
        Mix([Part(name="a", num_rows=1)], epoch_rows=5)
    with pytest.raises(UsageError, match="ends"):
        Mix([Part(name="a", num_rows=1)], ends="never")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed"):
        Mix([Part(name="a", num_rows=1)], seed=-1)
    with pytest.raises(UsageError, match="start"):
        Mix([Part(name="a", num_rows=1)]).draw(3, 2)
