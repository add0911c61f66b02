"""Epochs: every row once per epoch, as a pure function of position, the same on every machine."""

import itertools
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.samplers import CHUNK_ROWS, Epochs, mix, permute

SHUFFLES = st.sampled_from(["exact", "block", False])


def make(num_rows, seed, shuffle, block_rows=7, window_blocks=3):
    return Epochs(num_rows, seed=seed, shuffle=shuffle, block_rows=block_rows, window_blocks=window_blocks)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 2000),
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
    SHUFFLES,
    st.integers(1, 700),
    st.integers(1, 9),
)
def test_every_epoch_is_a_bijection(num_rows, seed, epoch, shuffle, block_rows, window_blocks):
    sampler = make(num_rows, seed, shuffle, block_rows, window_blocks)
    rows = sampler.rows(epoch * num_rows, (epoch + 1) * num_rows)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_rows))


@pytest.mark.parametrize("num_rows", [CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 5])
@pytest.mark.parametrize("shuffle", ["exact", "block", False])
def test_every_epoch_is_a_bijection_across_chunks(num_rows, shuffle):
    rows = make(num_rows, 1, shuffle, 100, 30).rows(num_rows, 2 * num_rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_rows))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000) | st.just(CHUNK_ROWS + 9), SHUFFLES, st.lists(st.floats(0, 3), min_size=2, max_size=6))
def test_rows_do_not_depend_on_how_they_are_asked_for(num_rows, shuffle, shares):
    cuts = sorted(int(share * num_rows) for share in shares)
    whole = make(num_rows, 5, shuffle, 60, 5).rows(cuts[0], cuts[-1])
    other = make(num_rows, 5, shuffle, 60, 5)
    pieces = [other.rows(a, b) for a, b in reversed(list(itertools.pairwise(cuts)))]
    np.testing.assert_array_equal(np.concatenate(pieces[::-1]), whole)


@pytest.mark.parametrize("shuffle", ["exact", "block"])
def test_epochs_and_seeds_differ(shuffle):
    orders = [make(1000, seed, shuffle).rows(e * 1000, e * 1000 + 1000) for seed in range(5) for e in range(5)]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert (order == other).mean() < 0.05


def test_without_shuffle_rows_are_in_order():
    np.testing.assert_array_equal(Epochs(5, shuffle=False).rows(3, 12), [3, 4, 0, 1, 2, 3, 4, 0, 1])


def test_true_is_exact():
    assert Epochs(100, shuffle=True).identity() == Epochs(100).identity()


def test_the_order_of_a_seed_is_frozen():
    """A change here changes the order of every training run: bump the number in Epochs.identity and say so."""
    assert Epochs(10, seed=0).rows(0, 20).tolist() == GOLDEN["ten"]
    assert Epochs(200_000, seed=7).rows(123_456, 123_462).tolist() == GOLDEN["many"]
    assert Epochs(10**12, seed=7).rows(5, 9).tolist() == GOLDEN["huge"]
    assert Epochs(100, seed=1, shuffle="block", block_rows=8, window_blocks=2).rows(0, 20).tolist() == GOLDEN["block"]
    assert mix(1, 2, 3) == GOLDEN["mix"]
    assert Epochs(10).identity() == "Epochs-1(num_rows=10, seed=0, shuffle=exact)"


@pytest.mark.parametrize("num_rows", [10, 97, 1000])
def test_every_row_is_equally_likely_at_every_position(num_rows):
    epochs = 3000
    rows = Epochs(num_rows, seed=9).rows(0, epochs * num_rows).reshape(epochs, num_rows)
    counts = np.stack([np.bincount(rows[:, place], minlength=num_rows) for place in range(num_rows)])
    assert chi_square(counts, epochs / num_rows) == pytest.approx(1, abs=6 * np.sqrt(2) / (num_rows - 1))
    steps = (rows[:, 1:] - rows[:, :-1]) % num_rows
    counts = np.bincount(steps.ravel(), minlength=num_rows)[1:]
    assert chi_square(counts, steps.size / (num_rows - 1)) < 1 + 6 * np.sqrt(2 / (num_rows - 2))


@pytest.mark.parametrize("num_rows", [1 << 16, (1 << 31) - 1, (1 << 31) + 5, 10**12])
def test_neighbours_are_independent_and_spread(num_rows):
    rows = Epochs(num_rows, seed=1).rows(0, min(num_rows, 400_000))
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < num_rows
    limit = 5 / np.sqrt(len(rows))
    for lag in (1, 2, 16, 1024):
        assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < limit
    for classes in (rows * 64.0 // num_rows, rows % 61):
        counts = np.bincount(classes.astype(np.int64))
        assert chi_square(counts, counts.mean()) < 1 + 6 * np.sqrt(2 / len(counts))


def chi_square(counts, expected):
    """Per degree of freedom; about 1 for a uniform choice."""
    freedom = np.prod([n - 1 for n in counts.shape])
    return ((counts - expected) ** 2 / expected).sum() / freedom


def test_a_billion_rows_cost_no_memory_and_no_start_up():
    tracemalloc.start()
    try:
        Epochs(10**9, seed=1).rows(987_654_321, 987_654_321 + 4096)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # NumPy's arrays are counted; a permutation of all rows has 8 GB


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1000), st.integers(0, 99), st.integers(1, 40), st.integers(1, 9))
def test_a_block_stays_within_one_window(num_rows, seed, block_rows, window_blocks):
    rows = make(num_rows, seed, "block", block_rows, window_blocks).rows(0, num_rows)
    shift = mix(seed, 0, 0, 2) % num_rows
    block = (rows - shift) % num_rows // block_rows
    window = np.arange(num_rows) // (block_rows * window_blocks)
    for number in np.unique(block):
        assert len(np.unique(window[block == number])) == 1


def test_the_short_block_holds_other_rows_in_each_epoch():
    sampler = make(101, 3, "block", 10, 1)
    last = [int(sampler.rows(e * 101 + 100, e * 101 + 101)[0]) for e in range(200)]
    assert len(set(last)) > 60


@pytest.mark.parametrize("size", [1, 2, 3, 255, 257, 65535, 65537])
def test_permute_is_a_permutation_for_any_key(size):
    for key in (0, 1, 2**64 - 1):
        np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_callers_own_what_rows_returns():
    sampler = Epochs(100)
    expected = sampler.rows(0, 100)
    sampler.rows(0, 100)[:] = -1
    np.testing.assert_array_equal(sampler.rows(0, 100), expected)


def test_pickle_keeps_the_order_and_drops_the_cached_chunk():
    sampler = Epochs(CHUNK_ROWS * 3, seed=4)
    rows = sampler.rows(10, 2000)
    pickled = pickle.dumps(sampler)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).rows(10, 2000), rows)


def test_threads_may_share_a_sampler():
    sampler = Epochs(100_000, seed=2)
    expected = Epochs(100_000, seed=2).rows(0, 100_000)
    wrong = []

    def read(offset):
        for n in range(200):
            start = (offset + n * 7919) % 99_000
            if not np.array_equal(sampler.rows(start, start + 999), expected[start : start + 999]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(k * 31_000,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"num_rows": 0}, "num_rows"),
        ({"num_rows": 5, "seed": -1}, "seed"),
        ({"num_rows": 5, "shuffle": "none"}, "shuffle"),
        ({"num_rows": 5, "shuffle": "random"}, "shuffle"),
        ({"num_rows": 5, "block_rows": 0}, "block_rows"),
        ({"num_rows": 5, "window_blocks": 0}, "window_blocks"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, word):
    with pytest.raises(UsageError, match=word):
        Epochs(**arguments)


def test_bad_positions_are_refused():
    with pytest.raises(UsageError, match="start"):
        Epochs(5).rows(3, 2)
    with pytest.raises(UsageError, match="start"):
        Epochs(5).rows(-1, 2)
    assert Epochs(5).rows(3, 3).shape == (0,)


GOLDEN = {
    "ten": [3, 1, 9, 8, 2, 4, 6, 5, 0, 7, 7, 2, 4, 6, 8, 5, 0, 9, 3, 1],
    "many": [197339, 15970, 189568, 117913, 196729, 18394],
    "huge": [380639429137, 815912108836, 945812221405, 818688111071],
    "block": [28, 18, 15, 26, 30, 19, 23, 25, 27, 29, 21, 16, 24, 22, 17, 20, 69, 65, 50, 64],
    "mix": 16239038894714499693,
}
