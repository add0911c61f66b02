"""Tracking: the modes of the trackers' samplers, as a pure function of (settings, seed, step)."""

import itertools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.draws import TrackTable
from penstock.errors import BadData, StateMismatch, UsageError
from penstock.tracking import CHUNK, Tracking
from penstock.tracking_history import history_ids
from penstock.tracking_random import MAX_BOUND, below, states, words
from penstock.tracking_rows import RowSet
from penstock.tracking_shares import MAX_PERIOD, Shares

MODES = ["causal", "interval", "trident", "trident_pro", "stark"]
LISTED = ["trident", "trident_pro", "stark"]


def make_table(name="a", *, lengths=(40, 60, 25), visible=None, valid=None, is_video=True):
    count = sum(lengths)
    seen = np.ones(count, bool) if visible is None else np.asarray(visible, bool)
    return TrackTable(
        name=name,
        starts=np.cumsum([0, *lengths]),
        boxes=np.ones((count, 4), np.float32),
        valid=seen if valid is None else np.asarray(valid, bool),
        visible=seen,
        frames=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths] or [np.zeros(0, np.int32)]),
        fps=np.full(len(lengths), 30.0),
        names=[f"{name}-{number}" for number in range(len(lengths))],
        categories=[""] * len(lengths),
        is_video=is_video,
    )


def speckled(name, seed, *, count=12, share=0.7):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 90, count)
    visible = rng.random(lengths.sum()) < share
    return make_table(name, lengths=lengths, visible=visible, valid=visible | (rng.random(len(visible)) < 0.3))


def photos(name="photos", count=30):
    return make_table(name, lengths=[1] * count, is_video=False)


def sampler(mode="causal", tables=None, **options):
    gaps = {"max_gap": [15, 6]} if mode in LISTED else {"max_gap": 15, "num_template": 3, "num_search": 2}
    given = speckled("a", 1), photos(), speckled("b", 2)
    return Tracking(given if tables is None else tables, mode=mode, **{"weights": [3, 1, 2]} | gaps | options)


def assert_same(left, right):
    for field in fields(left):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


def assert_same_draw(left, right):
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name in ("backward", "forward"):
            assert_same(a, b)
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


# histories


def history(first, search, length, steps=50, future=5):
    found = history_ids(np.array([first]), np.array([search]), np.array([length]), steps=steps, future=future)
    return [each[0].tolist() for each in found]


def test_history_vectors():
    backward, padded, forward, forward_padded = history(10, 15, 300)
    assert backward == [0] * 35 + list(range(15))
    assert padded == [True] * 35 + [False] * 15
    assert (forward, forward_padded) == ([15, 16, 17, 18, 19], [False] * 5)
    assert history(10, 59, 300)[:2] == [list(range(9, 59)), [False] * 50]
    assert history(10, 60, 300)[:2] == [list(range(10, 60)), [False] * 50]
    backward, padded, _, _ = history(10, 250, 300)
    assert backward[:4] == [10, 14, 19, 24]
    assert backward[-1] == 249
    assert not any(padded)


def test_history_at_the_ends():
    assert history(10, 297, 300)[2:] == [[297, 298, 299, 299, 299], [False, False, False, True, True]]
    assert history(30, 0, 40, steps=4)[:2] == [[0] * 4, [True] * 4]
    assert history(30, 3, 40, steps=5)[:2] == [[0, 0, 0, 1, 2], [True, True, False, False, False]]
    assert history(5, 9, 40, steps=1, future=1) == [[5], [False], [9], [False]]
    with pytest.raises(UsageError, match="steps and future"):
        history(1, 2, 3, steps=0)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(1, 60), st.integers(1, 60))
def test_histories_keep_their_rules(length, data, steps, future):
    first, search = (data.draw(st.integers(0, length - 1)) for _ in range(2))
    backward, padded, forward, forward_padded = history(first, search, length, steps, future)
    real = [frame for frame, is_padded in zip(backward, padded, strict=True) if not is_padded]
    assert real == sorted(set(real))
    assert all(0 <= frame < search for frame in real)
    assert len(real) == (steps if search - first >= steps else min(steps, search))
    assert backward[: steps - len(real)] == [real[0] if real else search] * (steps - len(real))
    if search - first >= steps > 1:
        assert (real[0], real[-1]) == (first, search - 1)
    assert forward == [min(search + number, length - 1) for number in range(future)]
    assert forward_padded == [search + number >= length for number in range(future)]


def test_histories_of_draws_are_rows_of_their_sequence():
    tracking = sampler(min_interval=7, future_steps=3)
    draws = tracking.draws(0, 600)
    histories = tracking.histories(draws)
    for place in range(0, 600, 7):
        table = tracking.tables[draws.source[place]]
        start, stop = table.starts[draws.sequence[place]], table.starts[draws.sequence[place] + 1]
        if not table.is_video:
            assert set(histories.backward[place]) == set(histories.forward[place]) == {start}
            assert histories.backward_padded[place].tolist() == [True] * 6 + [False]
            assert histories.forward_padded[place].tolist() == [False, True, True]
            continue
        first, search = draws.template_rows[place].min() - start, draws.search_rows[place].max() - start
        expected = history(first, search, stop - start, 7, 3)
        assert (histories.backward[place] - start).tolist() == expected[0]
        assert histories.backward_padded[place].tolist() == expected[1]
        assert (histories.forward[place] - start).tolist() == expected[2]


# pure function of the step


@pytest.mark.parametrize("mode", MODES)
def test_a_draw_does_not_depend_on_what_else_is_drawn(mode):
    tracking = sampler(mode, seed=3, train_cls=mode in LISTED)
    whole = tracking.draws(50, 450)
    copy = pickle.loads(pickle.dumps(tracking))
    parts = [copy.draws(start, start + 40) for start in reversed(range(50, 450, 40))][::-1]
    for field in fields(whole):
        joined = np.concatenate([getattr(part, field.name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, field.name))
    for step in (50, 51, 200, 449):
        draw = copy.draw(step)
        place = step - 50
        assert (draw.seed, draw.sequence, draw.gap) == (whole.seed[place], whole.sequence[place], whole.gap[place])
        np.testing.assert_array_equal(draw.template_rows, whole.template_rows[place])
        np.testing.assert_array_equal(draw.search_rows, whole.search_rows[place])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tracking.draw, range(50, 90)))
    assert [draw.sequence for draw in found] == whole.sequence[:40].tolist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 3 * CHUNK), min_size=2, max_size=5, unique=True), st.sampled_from(MODES), st.integers(0, 9)
)
def test_any_cut_gives_the_same_draws(cuts, mode, seed):
    tracking = sampler(mode, seed=seed)
    cuts = sorted(cuts)
    whole = tracking.draws(cuts[0], cuts[-1])
    parts = [tracking.draws(start, stop) for start, stop in itertools.pairwise(cuts)]
    for name in ("search_rows", "template_rows", "source", "seed"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def test_steps_have_no_end_and_no_epoch():
    tracking = sampler(samples_per_epoch=10)
    assert len(tracking) == 10
    assert tracking.draw(10**15).step == 10**15
    assert len(tracking.draws(7, 7)) == 0
    with pytest.raises(UsageError, match="0 or more, got -1"):
        tracking.draw(-1)
    with pytest.raises(UsageError, match="start <= stop"):
        tracking.draws(3, 2)
    tracking.draw(3).search_rows[:] = -1  # the caller's own
    assert tracking.draw(3).search_rows[0] >= 0


def test_seeds_and_settings_give_other_draws_and_other_identities():
    others = [{"seed": 1}, {"max_gap": 16}, {"order": "odtrack"}, {"weights": [1, 1, 2]}, {"shares": "random"}]
    first, found = sampler(), [sampler(**other) for other in others]
    assert len({one.identity() for one in [first, *found]}) == 1 + len(others)
    steps = first.draws(0, 300)
    for other in found:
        assert not np.array_equal(other.draws(0, 300).template_rows, steps.template_rows)
    assert sampler(weights=[6, 2, 4]).identity() == first.identity()
    assert sampler(samples_per_epoch=1, max_gap=np.int64(15)).identity() == first.identity()


def test_the_order_of_a_seed_is_settled():
    draws = sampler(seed=5).draws(0, 6)
    assert draws.seed[:2].tolist() == SETTLED_SEEDS
    assert draws.source.tolist() == SETTLED_SOURCES
    assert draws.search_rows[:, 0].tolist() == SETTLED_ROWS


SETTLED_SEEDS = [13553616560631378835, 11026381154348316265]
SETTLED_SOURCES = [2, 0, 1, 0, 2, 0]
SETTLED_ROWS = [319, 283, 23, 248, 37, 99]


def test_a_key_gives_its_draw_back():
    tracking = sampler("stark", train_cls=True)
    for step in (0, 17, 10**9):
        draw = tracking.draw(step)
        assert len(draw.key) < 40
        assert_same_draw(pickle.loads(pickle.dumps(tracking)).rebuild(draw.key), draw)
    with pytest.raises(StateMismatch, match="settings"):
        sampler("stark", train_cls=True, seed=9).rebuild(tracking.draw(3).key)
    changed = [replace(table, visible=np.roll(table.visible, 1)) for table in tracking.tables]
    with pytest.raises(StateMismatch, match="annotations"):
        sampler("stark", changed, train_cls=True).rebuild(tracking.draw(3).key)
    for text in ("", "12", "-1@" + tracking.digest(), "x@" + tracking.digest(), "1@abc"):
        with pytest.raises(UsageError, match="expected a key"):
            tracking.rebuild(text)


ORIGINS = {"seed": 1}


def made_again(name):
    return replace(speckled(name, ORIGINS["seed"], count=400), origin=partial(made_again, name))


def test_tables_with_an_origin_are_pickled_by_it():
    tracking = Tracking([made_again("a")])
    content = pickle.dumps(tracking)
    assert len(content) < 1000
    assert_same_draw(pickle.loads(content).draw(4), tracking.draw(4))
    ORIGINS["seed"] = 2
    try:
        with pytest.raises(StateMismatch, match="changed since"):
            pickle.loads(content)
    finally:
        ORIGINS["seed"] = 1


# shares


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60) | st.sampled_from([1, 1, 2]), min_size=1, max_size=9).filter(any),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**12),
)
def test_shares_are_exact_at_every_prefix(weights, seed, period):
    shares = Shares(weights, seed, "exact")
    np.testing.assert_allclose(shares.weights, np.array(weights) / sum(weights), rtol=1e-12)
    size = sum(weights)
    for start in (0, period * size):  # counts are whole at the end of a period of the weights
        found = shares.sources(np.arange(start, start + 4 * size))
        for source, weight in enumerate(weights):
            counts = np.cumsum(found == source)
            deviation = counts * size - np.arange(1, len(found) + 1) * weight
            assert np.abs(deviation).max() < size


@pytest.mark.parametrize(
    "weights", [[0.4, 0.3, 0.3], [1 / 3, 2 / 3], [0.1] * 10, [1120, 9335, 30130, 117266], [1e-9, 1]]
)
def test_shares_of_real_numbers(weights):
    shares = Shares(weights, 1, "exact")
    fractions = np.array(weights) / sum(weights)
    np.testing.assert_allclose(shares.weights, fractions, atol=1 / MAX_PERIOD)
    found = shares.sources(np.arange(60_000))
    for source, weight in enumerate(shares.weights):
        counts = np.cumsum(found == source)
        assert np.abs(counts - np.arange(1, 60_001) * weight).max() < 1 + 1e-6


def test_no_rank_sees_one_source_only():
    for weights in ([1, 1, 1], [2, 1], [1, 1, 1, 1], [2, 1, 1], [5, 4, 3, 2, 1]):
        found = Shares(weights, 0, "exact").sources(np.arange(30_000))
        for rank in range(len(weights)):
            assert len(set(found[rank :: len(weights)].tolist())) > 1


def test_random_shares_are_as_independent_draws():
    found = Shares([3, 1], 0, "random").sources(np.arange(40_000)) == 1
    assert abs(found.sum() - 10_000) < 400
    sums = found.reshape(-1, 40).sum(axis=1)
    assert 0.85 < sums.var() / (40 * 3 / 16) < 1.15
    assert set(Shares([0, 1, 0], 0, "random").sources(np.arange(100)).tolist()) == {1}


# frames


def frames_of(tracking, draws, place):
    """Table, rows of the sequence, positions of templates and searches in it."""
    table = tracking.tables[draws.source[place]]
    start, stop = table.starts[draws.sequence[place]], table.starts[draws.sequence[place] + 1]
    templates, searches = draws.template_rows[place], draws.search_rows[place]
    assert (templates >= start).all()
    assert (templates < stop).all()
    assert (searches >= start).all()
    assert (searches < stop).all()
    return table, start, stop, templates, searches


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODES), st.integers(0, 2**64 - 1), st.integers(1, 40), st.sampled_from([0.3, 0.7, 1.0]))
def test_frames_keep_the_rules_of_the_mode(mode, seed, gap, share):
    tables = [speckled("a", seed % 1000, share=share), photos()]
    gaps = [gap, 5] if mode in LISTED else gap
    tracking = sampler(mode, tables, weights=[5, 1], max_gap=gaps, seed=seed, num_template=2, max_growth=300)
    draws = tracking.draws(0, 120)
    for place in range(120):
        table, start, stop, templates, searches = frames_of(tracking, draws, place)
        assert draws.positive[place]
        assert draws.search_sequence[place] == draws.sequence[place]
        if not table.is_video:
            assert set(templates) == set(searches) == {start}
            continue
        assert table.visible[templates[0]]
        assert table.visible[searches].all()
        assert draws.sequence[place] in tracking.eligible(0)
        reach = gap + draws.gap[place]
        if mode == "causal":
            assert table.visible[templates].all()
            assert start + len(templates) - 1 <= templates[0] < stop - len(searches)
            assert (templates[1:] < templates[0]).all()
            assert (templates[1:] >= templates[0] - reach).all()
            assert (searches > templates[0]).all()
            assert (searches < templates[0] + reach).all()
        elif mode == "interval":
            assert table.visible[templates].all()
            others = np.concatenate([templates[1:], searches]) - templates[0]
            assert (others >= -reach).all()
            assert (others < reach).all()
            assert draws.gap[place] == 0
        else:
            assert draws.gap[place] == 0
            assert len(templates) == 3
            assert len(searches) == 1
            assert mode != "trident" or table.visible[templates].all()
            assert mode != "stark" or table.valid[templates].all()
            for further, width in zip(templates[1:], gaps, strict=True):
                low = searches[0] if templates[0] >= searches[0] else searches[0] - width
                high = searches[0] + width if templates[0] >= searches[0] else searches[0]
                assert low <= further < high


@pytest.mark.parametrize("mode", ["causal", "interval"])
def test_odtrack_sorts_what_ostrack_draws(mode):
    plain, ordered = (sampler(mode, order=order).draws(0, 300) for order in ("ostrack", "odtrack"))
    np.testing.assert_array_equal(np.sort(plain.template_rows), ordered.template_rows)
    np.testing.assert_array_equal(np.sort(plain.search_rows), ordered.search_rows)
    assert (plain.template_rows != ordered.template_rows).any()
    if mode == "causal":
        videos = ordered.source != 1
        assert (ordered.search_rows[videos, 0] > ordered.template_rows[videos, -1]).all()


def test_max_gap_grows_until_a_frame_is_found():
    visible = np.zeros(100, bool)
    visible[[0, 1, 2, 60, 61, 62]] = True
    tracking = Tracking([make_table(lengths=[100], visible=visible)], max_gap=4)
    draws = tracking.draws(0, 200)
    distance = draws.search_rows[:, 0] - draws.template_rows[:, 0]
    assert (distance < 4 + draws.gap).all()
    assert set(draws.gap % 5) == {0}
    assert draws.gap.max() >= 5


def test_a_sequence_that_fits_nothing_is_passed_over():
    hard = np.zeros(100, bool)
    hard[[0, 1, 2, 3, 99]] = True  # base in 0..98: frames 0..2 reach 3, frame 3 reaches nothing
    impossible = np.zeros(100, bool)
    impossible[-5:] = True  # with 3 search frames the base is 95 or 96; max_gap 1 reaches nothing
    tables = [make_table(lengths=[100, 100], visible=np.concatenate([impossible, np.ones(100, bool)]))]
    tracking = Tracking(tables, max_gap=1, max_growth=0, min_frames=1)
    with pytest.raises(
        BadData, match=r"step 0: a: none of 100 sequences.*mode causal.*a-[01]: no visible frame in the range"
    ):
        tracking.draw(0)
    tables = [make_table(lengths=[100, 100], visible=np.concatenate([hard, np.ones(100, bool)]))]
    draws = Tracking(tables, max_gap=2, max_growth=0, num_template=1).draws(0, 400)
    assert draws.attempts.max() > 1
    assert (draws.gap == 0).all()
    assert (draws.search_rows[:, 0] == draws.template_rows[:, 0] + 1).all()
    tracking, message = (
        Tracking(tables, max_gap=2, max_growth=0, max_attempts=1),
        r"a: none of 1 sequences .*a-0.*\[2\]",
    )
    with pytest.raises(BadData, match=message):
        tracking.draws(0, 400)
    fails = 0
    for step in range(60):  # a step that fails takes no other with it
        if draws.attempts[step] == 1:
            np.testing.assert_array_equal(tracking.draw(step).search_rows, draws.search_rows[step])
            continue
        fails += 1
        with pytest.raises(BadData, match=f"step {step}: {message}"):
            tracking.draw(step)
    assert fails


# against the original algorithm


def original_visible(rng, visible, count=1, low=None, high=None):
    low = 0 if low is None or low < 0 else low
    high = len(visible) if high is None or high > len(visible) else high
    members = [place for place in range(low, high) if visible[place]]
    return rng.choices(members, k=count) if members else None


def original_draw(rng, mode, visible, gap):
    """One template and one search frame (trident: two templates), as the field's samplers draw them."""
    if mode == "trident":
        while True:
            template, search = original_visible(rng, visible)[0], original_visible(rng, visible)[0]
            window = (search, search + gap) if template >= search else (search - gap, search)
            if further := original_visible(rng, visible, 1, *window):
                return template, further[0], search
    grown = 0
    while True:
        last = len(visible) - 1 if mode == "causal" else None
        base = original_visible(rng, visible, 1, 0, last)[0]
        low = base + 1 if mode == "causal" else base - gap - grown
        if search := original_visible(rng, visible, 1, low, base + gap + grown):
            return base, base, search[0]
        grown += 5


@pytest.mark.parametrize(("mode", "gap"), [("causal", 6), ("causal", 40), ("interval", 8), ("trident", 5)])
def test_distances_are_distributed_as_in_the_original(mode, gap):
    count, rng = 20_000, random.Random(4)
    table = speckled("a", 11, count=3, share=0.4)
    given = [gap] if mode == "trident" else gap
    tracking = Tracking([table], mode=mode, max_gap=given, seed=12)
    assert len(tracking.eligible(0)) == 3
    pieces = [table.visible[start:stop] for start, stop in zip(table.starts[:-1], table.starts[1:], strict=True)]
    original = np.array([original_draw(rng, mode, rng.choice(pieces), gap) for _ in range(count)])
    draws = tracking.draws(0, count)
    ours = np.column_stack([draws.template_rows[:, 0], draws.template_rows[:, -1], draws.search_rows[:, 0]])
    for left, right in ((0, 2), (1, 2)):
        assert_alike(original[:, right] - original[:, left], ours[:, right] - ours[:, left])
    assert_alike(original[:, 0], ours[:, 0] - table.starts[draws.sequence])


def assert_alike(left, right):
    """Two samples of whole numbers by chi-square; values seen fewer than 20 times are one."""
    values, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    seen = np.stack([np.bincount(part, minlength=len(values)) for part in np.split(places, 2)])
    rare = seen.sum(axis=0) < 20
    counts = np.column_stack([seen[:, ~rare], seen[:, rare].sum(axis=1)]).astype(float)
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=0) / 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = counts.shape[1] - 1
    assert chi_square < degrees + 4.5 * np.sqrt(2 * max(degrees, 1))


def test_sequences_are_drawn_alike():
    tracking = Tracking([make_table(lengths=[30] * 50)])
    counts = np.bincount(tracking.draws(0, 50_000).sequence, minlength=50)
    assert ((counts - 1000) ** 2 / 1000).sum() < 49 + 4.5 * np.sqrt(98)


# negatives


@pytest.mark.parametrize("mode", LISTED)
def test_negatives_do_not_show_the_target(mode):
    tables = [speckled("a", 1, share=0.8), photos(), make_table("all", lengths=[30] * 4)]
    tracking = sampler(mode, tables, weights=[2, 1, 1], train_cls=True, pos_prob=0.25, min_interval=6)
    draws = tracking.draws(0, 2000)
    assert 0.2 < draws.positive.mean() < 0.3
    histories = tracking.histories(draws)
    plain = sampler(mode, tables, weights=[2, 1, 1], min_interval=6).draws(0, 2000)
    np.testing.assert_array_equal(plain.template_rows, draws.template_rows)
    np.testing.assert_array_equal(plain.search_rows[draws.positive], draws.search_rows[draws.positive])
    for place in np.flatnonzero(~draws.positive):
        source, sequence = draws.source[place], draws.sequence[place]
        there, row = tables[draws.search_source[place]], draws.search_rows[place, 0]
        at = draws.search_sequence[place]
        assert there.starts[at] <= row < there.starts[at + 1]
        elsewhere = (draws.search_source[place], at) != (source, sequence)
        assert elsewhere == (source != 0)
        assert elsewhere or not there.visible[row]
        assert not elsewhere or mode != "stark" or there.valid[row]
        expected = plain.search_rows[place, 0] if elsewhere else row
        assert histories.forward[place, 0] == draws.history_search[place] == expected


def test_negatives_need_a_mode_and_another_sequence():
    with pytest.raises(UsageError, match="train_cls needs mode trident"):
        sampler("causal", train_cls=True)
    one = [make_table(lengths=[30])]
    with pytest.raises(UsageError, match="two sequences"):
        Tracking(one, mode="trident", max_gap=[5], train_cls=True)
    assert Tracking(one, mode="trident", max_gap=[5], train_cls=True, pos_prob=1).draw(0).positive


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, 2]}, "weights: expected 3, one per table, got 2"),
        ({"weights": [1, -1, 1]}, "photos: -1.0"),
        ({"weights": [1, float("nan"), 1]}, "finite numbers"),
        ({"weights": [0, 0, 0]}, "not all 0"),
        ({"max_gap": [200]}, "mode 'causal': max_gap: expected one number, got"),
        ({"mode": "trident", "max_gap": 200}, "mode 'trident': max_gap: expected a list"),
        ({"mode": "trident", "max_gap": []}, "empty list"),
        ({"mode": "trident", "max_gap": [5], "num_search": 2}, "draws one search frame"),
        ({"mode": "trident", "max_gap": [5], "num_search": 1, "order": "odtrack"}, "order='odtrack' needs"),
        ({"mode": "sequential"}, "expected one of causal, interval, trident"),
        ({"order": "x"}, "ostrack, odtrack"),
        ({"shares": "x"}, "exact, random"),
        ({"max_gap": 0}, "max_gap: expected a whole number, 1 or more, got 0"),
        ({"min_interval": 0}, "min_interval: expected a whole number, 1 or more"),
        ({"future_steps": 0}, "future_steps"),
        ({"num_template": True}, "num_template"),
        ({"num_search": 1.5}, "num_search"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"pos_prob": 1.5}, "pos_prob"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
)
def test_settings_out_of_range(options, message):
    given = {"weights": [3, 1, 2], "max_gap": 15, "num_template": 2, "num_search": 1} | options
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Tracking([speckled("a", 1), photos(), speckled("b", 2)], **given)


def test_sources_that_cannot_be_drawn_from_say_why():
    short = make_table("short", lengths=[1, 5, 19])
    with pytest.raises(UsageError, match=r"short: none of 3 sequences.*3 of fewer than 20 frames \(such as short-0\)"):
        Tracking([speckled("a", 1), short])
    absent = make_table("absent", lengths=[30, 30, 3], visible=np.zeros(63, bool))
    with pytest.raises(UsageError, match=r"1 of fewer than 20.*absent-2.*2 with 4 visible frames or fewer.*absent-0"):
        Tracking([absent])
    blank = make_table("blank", lengths=[1, 1], visible=[False, False], is_video=False)
    with pytest.raises(UsageError, match=r"blank: none of 2.*2 without a valid box \(such as blank-0\)"):
        Tracking([blank])
    empty = make_table("empty", lengths=[])
    with pytest.raises(UsageError, match="empty: expected at least one sequence"):
        Tracking([speckled("a", 1), empty])
    with pytest.raises(UsageError, match="empty: expected at least one sequence"):
        Tracking([speckled("a", 1), empty], weights=[1, 1])
    tracking = Tracking([speckled("a", 1), empty, short], weights=[1, 0, 0])
    assert set(tracking.draws(0, 100).source) == {0}
    assert not len(tracking.eligible(2))
    with pytest.raises(UsageError, match="at least one table"):
        Tracking([])


def test_contradictory_tables_are_refused():
    table = make_table()
    for changed, message in (
        (replace(table, starts=table.starts[:-1]), "starts"),
        (replace(table, starts=np.array([0, 60, 40, 125])), "starts"),
        (replace(table, boxes=table.boxes[1:]), "one length"),
        (replace(table, is_video=False), "one row per sequence"),
    ):
        with pytest.raises(UsageError, match=message):
            Tracking([changed])


def test_eligible_sequences_are_those_of_the_original():
    tables = speckled("a", 5, count=40, share=0.15)
    tracking = Tracking([tables], num_search=2, num_template=1)
    pieces = np.split(tables.visible, tables.starts[1:-1])
    expected = [number for number, piece in enumerate(pieces) if piece.sum() > 6 and len(piece) >= 20]
    assert 0 < len(expected) < 40
    assert tracking.eligible(0).tolist() == expected
    assert set(tracking.draws(0, 3000).sequence) == set(expected)


# parts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=200), min_size=1, max_size=4), st.integers(0, 2**32))
def test_row_sets_count_and_choose(tables, seed):
    rows = RowSet([np.array(table, bool) for table in tables])
    padded = [table + [False] * (-len(table) % 64) for table in tables]
    members = np.flatnonzero(np.concatenate([np.array(table, bool) for table in padded]))
    total = sum(map(len, padded))
    np.testing.assert_array_equal(rows.rank(np.arange(total + 1)), np.searchsorted(members, np.arange(total + 1)))
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, total + 1, 50), rng.integers(0, total + 1, 50)
    chosen, found = rows.sample(low, high, [words(states(seed, np.arange(50)), 1)])
    np.testing.assert_array_equal(
        found, [bool(np.any((members >= a) & (members < b))) for a, b in zip(low, high, strict=True)]
    )
    assert np.isin(chosen[found, 0], members).all()
    assert ((chosen[found, 0] >= low[found]) & (chosen[found, 0] < high[found])).all()


@given(st.integers(0, 2**64 - 1), st.integers(1, MAX_BOUND))
def test_ranges_are_reduced_as_by_whole_numbers(number, bound):
    assert below(np.array([number], np.uint64), bound)[0] == number * bound >> 64
    assert below(np.array([number], np.uint64), np.array([bound]))[0] == number * bound >> 64


def test_random_numbers_are_splitmix64():
    assert words(np.zeros(1, np.uint64), 1, 2).dtype == np.uint64
    numbers = words(states(7, np.arange(100_000)), 3)
    bits = (numbers[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.008
    assert abs(np.corrcoef(numbers[1:].astype(float), numbers[:-1].astype(float))[0, 1]) < 0.015


def test_bytes_held_are_few():
    tables = [make_table("a", lengths=[1000] * 100)]
    assert Tracking(tables).nbytes < 4.5 * 100_000
    assert Tracking(tables, mode="stark", max_gap=[5], train_cls=True).nbytes < 9 * 100_000
