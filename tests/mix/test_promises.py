"""P1 to P12 of docs/mix.md, each under its number."""

import errno
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import fill
from penstock.errors import BadData, BudgetExceeded, OutputRefused, SourceNotFound, StateMismatch, UsageError
from penstock.mix_config import load_mix_config, open_mix
from penstock.mix_loader import MixLoader
from penstock.mix_report import drawn_lines, planned, planned_lines
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_tally import Budget, added
from penstock.mix_views import PROVENANCE, Views
from penstock.samplers.pairs import PairRule
from penstock.schema import Record
from penstock.source import Lookup
from tests.mix.data import Pictures, Tracks, batch_bytes, sample_bytes, samples_of

TINY = Views(size=2)


def mixed(*sources: Pictures, weights: Sequence[float | None] | None = None, **options: Any) -> Mixed:
    """Of these sources, under their names."""
    given_weights = weights or [None] * len(sources)
    parts = [
        MixPart(name=one.name, source=one, weight=weight, pairs=PairRule() if isinstance(one, Tracks) else None)
        for one, weight in zip(sources, given_weights, strict=True)
    ]
    return Mixed(parts, **{"views": TINY, **options})


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(fill, "RETRY_WAITS_S", (0.0, 0.0, 0.0))


def test_p1_the_plan_is_a_pure_function_of_settings_data_seed_and_position() -> None:
    one = mixed(Pictures("a", 300), Pictures("b", 50), weights=[2, 1], seed=5)
    other = pickle.loads(pickle.dumps(mixed(Pictures("a", 300), Pictures("b", 50), weights=[2, 1], seed=5)))
    places = [70_000, 3, 40_000, 3, 10**15]
    assert [one.explain(place) for place in places] == [other.explain(place) for place in reversed(places)][::-1]
    assert one.explain(3) != mixed(Pictures("a", 300), Pictures("b", 50), weights=[2, 1], seed=6).explain(3)


def test_p1_shares_are_exact_and_each_row_comes_once_a_pass() -> None:
    one = mixed(Pictures("a", 700), Pictures("b", 90), weights=[0.7, 0.3])
    drawn = one.plan.draw(0, 3 * one.plan.cycle)
    for end in range(one.plan.window, 3 * one.plan.cycle + 1, one.plan.window):
        assert (drawn.parts[:end] == 0).sum() == Fraction(7, 10) * end
    for part, size in ((0, 700), (1, 90)):
        rows = drawn.rows[drawn.parts == part][:size]
        assert sorted(rows.tolist()) == list(range(size))


def test_p2_step_t_takes_its_positions_and_rank_r_its_share() -> None:
    source = mixed(Pictures("a", 100))
    taken = []
    for rank in range(3):
        loader = MixLoader(source, batch_size=12, rank=rank, world_size=3, epochs=2)
        taken.append([np.asarray(batch["position"]).tolist() for batch in loader])
    assert [len(steps) for steps in taken] == [17, 17, 17]  # 200 positions, the last batch reaches over the end
    for step in range(17):
        assert [one for steps in taken for one in steps[step]] == list(range(step * 12, step * 12 + 12))
    with pytest.raises(UsageError, match="divisor of the global batch of 12"):
        MixLoader(source, batch_size=12, world_size=5)


def test_p3_the_state_counts_what_was_consumed_not_what_was_prefetched() -> None:
    loader = MixLoader(mixed(Pictures("a", 100)), batch_size=4, threads=4, prefetch=5)
    for number, _ in enumerate(loader, 1):
        assert loader.state_dict()["next_position"] == 4 * number
        if number == 3:
            break
    assert loader.next_position == 12


def test_p3_a_state_is_small_and_plain() -> None:
    sources = [Pictures(f"a-long-name-{number}", 10**6) for number in range(10)]
    state = MixLoader(mixed(*sources, weights=[1 / 3] * 10, seed=2**64 - 1), batch_size=64).state_dict()
    text = json.dumps(state)
    assert len(text) < 1024
    assert json.loads(text) == state


def changed_mixture(change: str) -> Mixed:
    """The mixture of the next test, with one change."""
    name = "c" if change == "name" else "b"
    options: dict[str, Any] = {
        "seed": 1 if change == "seed" else 0,
        "views": Views(size=3) if change == "views" else TINY,
        "max_attempts": 7 if change == "max_attempts" else 8,
        "epoch_rows": 99 if change == "epoch_rows" else 100,
        "ends": "all" if change == "ends" else "first",
    }
    second = MixPart(
        name=name, source=Pictures("b", 19 if change == "rows" else 20), weight=3 if change == "weight" else 2,
        max_rows=10 if change == "max_rows" else None, repeats=1,
    )  # fmt: skip
    parts = [MixPart(name="a", source=Pictures("a", 50), weight=1), second]
    return Mixed(parts[::-1] if change == "order" else parts, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed", "seed: expected 1, got 0"),
        ("views", "views: expected '3/0/0', got '2/0/0'"),
        ("max_attempts", "max_attempts"),
        ("epoch_rows", "epoch_rows: expected 99, got 100"),
        ("ends", "ends: expected 'all'"),
        ("weight", "b: its weight, repeats, limits"),
        ("max_rows", "b: its weight, repeats, limits"),
        ("name", "parts: expected a, c, got a, b"),
        ("order", "parts: expected b, a, got a, b"),
        ("rows", "b: its data changed: expected 19 rows"),
        ("batch_size", "batch_size: expected 2, got 4"),
    ],
)
def test_p3_another_configuration_is_refused_by_the_name_of_the_field(change: str, words: str) -> None:
    loader = MixLoader(changed_mixture(""), batch_size=4)
    next(iter(loader))
    other = MixLoader(changed_mixture(change), batch_size=2 if change == "batch_size" else 4)
    with pytest.raises(StateMismatch, match=words):
        other.load_state_dict(loader.state_dict())
    assert other.next_position == 0


def test_p3_changed_data_are_taken_on_demand_and_a_source_may_have_become_shorter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loader = MixLoader(changed_mixture(""), batch_size=4)
    next(iter(loader))
    shorter = changed_mixture("rows")
    with pytest.raises(StateMismatch, match="allow_data_change"):
        MixLoader(shorter, batch_size=4).load_state_dict(loader.state_dict())
    resumed = MixLoader(shorter, batch_size=4, allow_data_change=True)
    resumed.load_state_dict(loader.state_dict())
    assert "b: its data changed: expected 19 rows" in caplog.text
    batch = next(iter(resumed))
    assert np.asarray(batch["position"]).tolist() == [4, 5, 6, 7]
    assert batch_bytes(batch, list(shorter.schema)) == samples_of(shorter, 4, 8)


@pytest.mark.parametrize("state", [{}, {"next_position": -4}, {"parts": 3}, {"next_position": 3}, {"parts": [["a"]]}])
def test_p3_what_is_no_state_is_refused(state: dict[str, Any]) -> None:
    loader = MixLoader(changed_mixture(""), batch_size=4)
    with pytest.raises(StateMismatch):
        loader.load_state_dict({**loader.state_dict(), **state} if state else {})


def test_p4_the_seed_of_a_sample_is_the_positions() -> None:
    source = mixed(Pictures("a", 10))
    seeds = [int(source[position]["seed"]) for position in range(40)]
    assert len(set(seeds)) == 40
    assert seeds == [source.plan.sample_seed(position) for position in range(40)]


class Flaky(Pictures):
    """Reading some rows fails so many times with an errno, then goes well."""

    def __init__(self, rows: int, fails: dict[int, int], number: int = errno.EIO) -> None:
        super().__init__("flaky", rows)
        self.fails, self.number = dict(fails), number

    def __getitem__(self, index: int) -> Record:
        if self.fails.get(index, 0) > 0:
            self.fails[index] -= 1
            raise OSError(self.number, "planted")
        return super().__getitem__(index)


@pytest.mark.usefixtures("no_waits")
def test_p5_a_failure_that_may_pass_is_retried_and_then_raised_with_part_and_key() -> None:
    source = mixed(Flaky(20, {3: 3, 4: 1}))
    loader = MixLoader(source, batch_size=20)
    next(iter(loader))
    report = loader.report()["flaky"]
    assert (report["retried"], report["substituted"], report["failed"]) == (4, 0, {})
    with pytest.raises(
        OSError, match=r"mix: flaky: flaky/3, at position \d+: reading failed again and again: .*planted"
    ):
        next(iter(MixLoader(mixed(Flaky(20, {3: 4})), batch_size=20)))
    with pytest.raises(PermissionError, match="planted") as caught:
        next(iter(MixLoader(mixed(Flaky(20, {3: 1}, errno.EACCES)), batch_size=20)))
    assert any("mix: flaky: flaky/3, at position" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    "error", [TypeError, NameError, ImportError, MemoryError, KeyError, ValueError, ZeroDivisionError]
)
def test_p5_an_error_of_a_program_always_raises(error: type[Exception]) -> None:
    source = mixed(Pictures("a", 20, bad={3: error("planted")}))
    with pytest.raises(error, match="planted") as caught:
        next(iter(MixLoader(source, batch_size=20, budget=None)))
    assert any("mix: a: a/3, at position" in note for note in caught.value.__notes__)


def spoil(name: str, value: Any) -> Any:
    """A fault that replaces a field."""
    return lambda record: record.update({name: value})


BAD_DATA = {
    "empty mask": (spoil("mask", np.zeros((4, 4), np.uint8)), "empty"),
    "mask of another size": (spoil("mask", np.ones((4, 5), np.uint8)), "size"),
    "mask with NaN": (spoil("mask", np.full((4, 4), np.nan, np.float32)), "only 0 and 1"),
    "mask of 255": (spoil("mask", np.full((4, 4), 255, np.uint8)), "only 0 and 1"),
    "gray picture": (spoil("image", np.ones((4, 4), np.uint8)), "H, W, 3"),
    "four channels": (spoil("image", np.ones((4, 4, 4), np.uint8)), "H, W, 3"),
    "picture with NaN": (spoil("image", np.full((4, 4, 3), np.nan, np.float32)), "not finite"),
    "picture without pixels": (spoil("image", np.ones((0, 4, 3), np.uint8)), "H, W, 3"),
    "cannot be decoded": (BadData("planted"), "planted"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_p5_bad_data_are_substituted(kind: str) -> None:
    fault, words = BAD_DATA[kind]
    source = mixed(Pictures("a", 30, bad={3: fault}), seed=1)
    (sample,) = (one for one in (source[position] for position in range(30)) if one["planned_row"] == 3)
    assert int(sample["attempt"]) == 1
    assert sample["key1"] != "a/3"
    (failure,) = json.loads(str(sample["failures"]))
    assert (failure["key"], failure["error"]) == ("a/3", "BadData")
    assert words in failure["message"]


def test_p6_a_substitute_is_of_the_same_source_and_comes_from_its_formula() -> None:
    bad = {row: BadData("planted") for row in range(0, 60, 2)}
    source = mixed(Pictures("a", 60, bad=bad), Pictures("b", 60), seed=4, max_attempts=40)
    counts: Counter[str] = Counter()
    for position in range(120):
        sample, plan = source[position], source.plan
        number = ["a", "b"].index(str(sample["source"]))
        tried = [int(sample["planned_row"]), *(plan.stand_in(number, position, one) for one in range(1, 40))]
        expected = next(row for row in tried if number == 1 or row not in bad)
        assert int(sample["row"]) == expected == tried[int(sample["attempt"])]
        assert str(sample["key1"]) == f"{sample['source']}/{expected}"
        counts[str(sample["source"])] += 1
    assert counts == {"a": 60, "b": 60}


def test_p6_a_long_run_of_bad_rows_takes_a_loop_of_few_tries_and_the_substitutes_are_spread_evenly() -> None:
    """500 contiguous of 20,000: the next row would come 501 times, by 125,250 failed reads."""
    source = mixed(Pictures("a", 20_000, bad={row: BadData("planted") for row in range(5000, 5500)}))
    tried, found = 0, []
    for position in np.flatnonzero(np.isin(source.plan.draw(0, 20_000).rows, range(5000, 5500))).tolist():
        sample = source[position]
        tried += int(sample["attempt"])
        found.append(int(sample["row"]))
    assert len(found) == 500
    assert tried < 540
    assert max(Counter(found).values()) <= 3
    bins = np.bincount(np.array(found) // 400, minlength=50)
    expected = np.full(50, 500 * 400 / 19_500)
    expected[12], expected[13] = 500 * 200 / 19_500, 500 * 300 / 19_500
    assert ((bins - expected) ** 2 / expected).sum() < 90  # chi-square, 49 degrees of freedom: 1 in 4,000


def test_p6_all_bad_is_an_error_that_names_the_source_and_the_reasons() -> None:
    source = mixed(Pictures("good", 5), Pictures("rotten", 9, bad={row: BadData("mouldy") for row in range(9)}))
    with pytest.raises(BadData, match=r"rotten: all 8 rows tried at position \d+ are bad \(BadData: 8\).*mouldy"):
        next(iter(MixLoader(source, batch_size=14)))


@settings(max_examples=30)
@given(
    st.sets(st.integers(0, 59), max_size=20), st.sets(st.integers(0, 59), max_size=20), st.integers(0, 2**64 - 1),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_p6_bad_rows_change_no_other_position_and_neither_does_knowing_them(
    in_tracks: set[int], in_stored: set[int], seed: int, dice: Any
) -> None:
    """Non-interference: pairs by rule, where either row of a pair may be bad, and stored pairs."""

    def of(tracks: set[int], stored: set[int]) -> Mixed:
        faults = [{row: BadData("planted") for row in rows} for rows in (tracks, stored)]
        return mixed(
            Tracks("t", 4, 15, bad=faults[0]), Pictures("s", 60, stored_pairs=True, bad=faults[1]), seed=seed,
            max_attempts=60,
        )  # fmt: skip

    clean, damaged = of(set(), set()), of(in_tracks, in_stored)
    bad = {f"t/{row}" for row in in_tracks} | {f"s/{row}" for row in in_stored}
    known: dict[str, dict[str, str]] = {"t": {}, "s": {}}
    for key in sorted(bad):
        if dice.random() < 0.5:
            known[key[0]][key] = "BadData"
    knowing = damaged.with_quarantine(known)
    names = list(clean.schema)
    for position in range(100):
        plan = clean.explain(position)
        sample = damaged[position]
        assert sample_bytes(sample, names) == sample_bytes(knowing[position], names)
        if not {plan["key1"], plan["key2"]} & bad:
            assert sample_bytes(sample, names) == sample_bytes(clean[position], names)
        else:
            assert int(sample["attempt"]) > 0
            assert not {sample["key1"], sample["key2"]} & bad


def test_p6_bad_rows_are_listed_once_and_not_read_again(tmp_path: Path) -> None:
    faults = {row: BadData("planted") for row in (3, 8)}
    made: list[Pictures] = []
    for _ in range(2):
        made.append(Pictures("a", 20, bad=faults))
        loader = MixLoader(
            mixed(made[-1]), batch_size=10, rank=1, world_size=2, epochs=8, budget=None, quarantine=tmp_path
        )
        samples = [sample for batch in loader for sample in batch_bytes(batch, list(loader.mixed.schema))]
        if len(made) == 1:
            first = samples
        with (tmp_path / "rank1.jsonl").open("a") as file:
            file.write('{"source": "a", "ke')  # a kill
    assert samples == first
    lines = (tmp_path / "rank1.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines[:2]) == ["a/3", "a/8"]
    assert len(lines) == 3  # the torn one is last
    assert {3, 8} <= set(made[0].read_rows)
    assert not {3, 8} & set(made[1].read_rows)
    assert loader.report()["a"]["failed"]["known bad"] > 0


def test_p6_of_a_pair_the_row_that_failed_is_listed(tmp_path: Path) -> None:
    """The other row of the pair is good, and is drawn with other partners."""
    runs = []
    for _ in range(2):
        source = mixed(Tracks("t", 2, 10, bad={7: BadData("planted")}), seed=3)
        loader = MixLoader(source, batch_size=10, epochs=6, budget=None, quarantine=tmp_path)
        runs.append([sample for batch in loader for sample in batch_bytes(batch, list(source.schema))])
        assert loader.report()["t"]["substituted"] > 6  # also as a partner
    assert runs[0] == runs[1]
    assert [json.loads(line)["key"] for line in (tmp_path / "rank0.jsonl").read_text().splitlines()] == ["t/7"]


def test_p6_a_list_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    source = mixed(Pictures("a", 20, bad={3: BadData("planted")}))
    loader = MixLoader(source, batch_size=20, epochs=1, budget=None, quarantine=tmp_path)
    (tmp_path / "rank0.jsonl").mkdir()
    with pytest.raises(OutputRefused, match=r"rank0\.jsonl"):
        next(iter(loader))
    (tmp_path / "rank0.jsonl").rmdir()
    assert np.asarray(next(iter(loader))["position"]).tolist() == list(range(20))
    assert [json.loads(line)["key"] for line in (tmp_path / "rank0.jsonl").read_text().splitlines()] == ["a/3"]


@pytest.mark.parametrize("line", [b"rotten", b'{"key": "a/3"}', b"[]", b'{"source": "a", "key": "\xff", "error": "x"}'])
def test_p6_a_list_that_is_none_is_named_with_its_line(line: bytes, tmp_path: Path) -> None:
    good = b'{"source": "a", "key": "a/3", "error": "BadData"}'
    (tmp_path / "rank0.jsonl").write_bytes(b"\n".join([good, line, b""]))
    with pytest.raises(UsageError, match=r"rank0\.jsonl:2: expected a JSON object with source, key and error"):
        MixLoader(mixed(Pictures("a", 20)), batch_size=10, quarantine=tmp_path)


def budget_words(budget: Budget, bad: set[int], rows: int = 100) -> str:
    """The message that a budget gives, or nothing."""
    source = mixed(Pictures("fine", rows), Pictures("a", rows, bad={row: BadData("planted") for row in bad}))
    loader = MixLoader(source, batch_size=1, budget=budget)
    try:
        for _ in loader:
            pass
    except BudgetExceeded as error:
        return str(error)
    return ""


def test_p7_budgets_are_per_source_and_overall() -> None:
    bad = set(range(20))
    ample: dict[str, Any] = {"max_consecutive": 50, "max_fraction": 1.0}
    assert budget_words(Budget(**ample, max_total=20), bad) == ""
    words = budget_words(Budget(**ample, max_total=19), bad)
    assert "mix: a: 20 samples needed a substitute" in words
    assert "BadData: " in words
    assert "a/" in words
    assert "max_total=19" in words
    assert budget_words(Budget(max_fraction=0.3, window=40), bad) == ""
    assert "of the last 40 samples" in budget_words(Budget(max_fraction=0.2, window=40), bad)
    assert budget_words(Budget(max_consecutive=19, max_fraction=1.0), bad) == ""  # 20 in all, good ones between
    assert "in a row" in budget_words(Budget(max_consecutive=0, max_fraction=1.0), bad)
    assert budget_words(Budget(max_consecutive=0, max_fraction=0.0, max_total=0), set()) == ""


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(max_consecutive=4, max_fraction=1.0), "in a row"),
        (Budget(max_fraction=0.9, window=10), "of the last 10 samples"),
    ],
)
def test_p7_a_run_that_ends_within_a_batch_exceeds_a_budget_as_well(budget: Budget, words: str) -> None:
    """One batch of 60 with 52 bad samples; the last ones are good."""
    bad = mixed(Pictures("a", 60)).plan.rows(0, 52).tolist()
    source = mixed(Pictures("a", 60, bad={row: BadData("planted") for row in bad}), max_attempts=500)
    for batch_size in (1, 60):
        with pytest.raises(BudgetExceeded, match=words):
            for _ in MixLoader(source, batch_size=batch_size, budget=budget):
                pass
    good = Budget(max_consecutive=52, max_fraction=1.0, window=10)
    assert len(list(MixLoader(source, batch_size=60, budget=good))) == 1


def test_p7_all_sources_together_have_a_budget_too() -> None:
    bad = {row: BadData("planted") for row in range(6)}
    source = mixed(*(Pictures(name, 60, bad=bad) for name in ("a", "b", "c")))
    with pytest.raises(BudgetExceeded, match="mix: all parts: 13 samples needed a substitute"):
        for _ in MixLoader(source, batch_size=1, budget=Budget(max_total=12, max_fraction=1.0)):
            pass


@pytest.mark.parametrize("wrong", [{"max_consecutive": -1}, {"max_fraction": 1.5}, {"window": 0}, {"max_total": -1}])
def test_p7_a_budget_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Budget"):
        Budget(**wrong)


@pytest.mark.usefixtures("no_waits")
def test_p8_the_report_counts_what_was_given_and_ranks_add_up() -> None:
    bad = {row: BadData("planted") for row in range(4)}
    source = mixed(Pictures("a", 60, bad=bad), Flaky(20, {5: 2}), Tracks("t", 4, 10))
    reports = []
    for rank in range(2):
        loader = MixLoader(source, batch_size=10, rank=rank, world_size=2, budget=None)
        assert sum(batch.num_rows for batch in loader) == 60
        reports.append(json.loads(json.dumps(loader.report())))
    total = added(reports)
    assert {name: one["drawn"] for name, one in total.items()} == {"a": 60, "flaky": 20, "t": 40}
    assert (total["a"]["substituted"], total["flaky"]["retried"], total["t"]["pairs"]) == (4, 2, 40)
    assert total["a"]["failed"]["BadData"] >= 4
    assert total["flaky"]["unique"] == 20
    assert 0 < total["t"]["ms_p50"] <= total["t"]["ms_p99"]
    assert total["t"]["bytes_per_s"] > 0
    text = "\n".join(drawn_lines(total))
    assert "Dataset 0: 60 samples drawn (a: 50.00%)" in text
    assert "4 substituted" in text
    assert "Total: 120 samples drawn" in text


def test_p8_the_mixture_is_told_beforehand_without_reading() -> None:
    sources = Pictures("a", 60), Pictures("b", 20, stored_pairs=True), Tracks("t", 4, 10)
    plan = planned(mixed(*sources))
    assert planned_lines(plan)[:2] == [
        "Total datasets: 3", "  Dataset 0: 60 samples (a: 54.55%, each of 60 rows 1 times)",
    ]  # fmt: skip
    assert "Dataset built: 110 total samples" in planned_lines(plan)[-1]
    assert [one["pairs"] for one in plan["sources"]] == ["none", "stored", "rule"]
    assert sum(one["samples"] for one in plan["sources"]) == plan["samples"] == 110
    assert all(not one.read_rows for one in sources)


def config_of(missing: str, **settings_: Any) -> dict[str, Any]:
    """Two sources in memory, one of which is not there."""
    there = {"name": "a", "source": "memory-a", "weight": 3}
    gone = {"name": "b", "source": "memory-gone", "weight": 1, "missing": missing}
    return {"views": {"size": 2}, "source": [there, gone], **settings_}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`memory-NAME` opens a source of 100 rows, `memory-gone` none."""

    def opened(text: str) -> Pictures:
        if text == "memory-gone":
            raise SourceNotFound(f"{text}: no such folder")
        return Pictures(text.removeprefix("memory-"), 100)

    monkeypatch.setattr("penstock.mix_config.open_source", opened)


@pytest.mark.usefixtures("memory")
def test_p9_a_missing_source_is_an_error_or_left_out_as_said() -> None:
    with pytest.raises(SourceNotFound, match="memory-gone"):
        open_mix(load_mix_config(config_of("error", epoch_rows=400)))
    for missing, rows in (("drop", 400), ("drop-keep-shares", 300)):
        opened = open_mix(load_mix_config(config_of(missing, epoch_rows=400)))
        assert [one.name for one in opened.dropped] == ["b"]
        assert planned(opened.mixed)["samples"] == rows
        assert len(open_mix(load_mix_config(config_of(missing))).mixed) == 100
    config = config_of("drop")
    with pytest.raises(SourceNotFound, match="none of the sources is there: b: memory-gone"):
        open_mix(load_mix_config({**config, "source": config["source"][1:]}))


def test_p10_a_position_may_be_a_number_of_numpys() -> None:
    source = mixed(Pictures("a", 30, bad={row: BadData("planted") for row in range(15)}), seed=2)
    names = list(source.schema)
    for position in np.array([0, 7, 10**12]):
        assert sample_bytes(source[position], names) == sample_bytes(source[int(position)], names)
        assert source.explain(position) == source.explain(int(position))
        assert source.plan.sample_seed(position) == source.plan.sample_seed(int(position))


def test_p10_every_sample_says_where_it_comes_from() -> None:
    bad = {row: BadData("planted") for row in range(5)}
    source = mixed(Tracks("t", 4, 10, bad=bad), Pictures("a", 30), seed=2)
    batch = next(iter(MixLoader(source, batch_size=140)))
    assert set(PROVENANCE) <= set(batch)
    for number in range(140):
        told = source.explain(number)
        sample: dict[str, Any] = {name: batch[name][number] for name in PROVENANCE}
        assert (told["source"], told["row"], told["epoch"], told["seed"]) == (
            sample["source"], sample["planned_row"], sample["epoch"], sample["seed"],
        )  # fmt: skip
        if sample["attempt"] == 0:
            assert (told["key1"], told["key2"]) == (sample["key1"], sample["key2"])
        else:
            assert len(json.loads(sample["failures"])) == sample["attempt"]
            if told["source"] == "a":
                assert sample["key1"] == told["stand_ins"][int(sample["attempt"]) - 1]  # type: ignore[index]


def test_p10_a_sample_is_rebuilt_from_its_key_byte_for_byte() -> None:
    source = mixed(Tracks("t", 4, 10), Pictures("a", 30), seed=2)
    loader = MixLoader(source, batch_size=35, epochs=None)
    names = list(source.schema)
    for _, batch in zip(range(3), loader, strict=False):
        rebuilt = [sample_bytes(source.rebuild(key), names) for key in batch.row_keys()]
        assert rebuilt == batch_bytes(batch, names)
    other = mixed(Tracks("t", 4, 10), Pictures("a", 30), seed=3)
    with pytest.raises(StateMismatch, match="another plan or of other data"):
        other.rebuild(source.key(5))
    with pytest.raises(UsageError, match="expected a key"):
        source.rebuild("nonsense")


def test_p11_a_batch_holds_pairs_and_single_rows_and_a_single_row_is_read_once() -> None:
    single, tracks, stored = Pictures("words", 20), Tracks("t", 4, 10), Pictures("s", 40, stored_pairs=True)
    views = Views(size=4, small=3, grid=2)
    batch = next(iter(MixLoader(mixed(single, tracks, stored, views=views), batch_size=80)))
    names = ("image", "mask", "small", "region")
    arrays = {name: np.asarray(batch[name]) for view in "12" for name in (f"{name}{view}" for name in names)}
    same = [all((arrays[f"{name}1"][one] == arrays[f"{name}2"][one]).all() for name in names) for one in range(80)]
    is_pair = np.asarray(batch["is_pair"]).tolist()
    assert is_pair == [source != "words" for source in batch["source"]]
    assert is_pair == [not one for one in same] == [a != b for a, b in zip(batch["key1"], batch["key2"], strict=True)]
    assert Counter(single.read_rows) == dict.fromkeys(range(20), 1)
    assert Counter(stored.read_rows) == dict.fromkeys(range(40), 1)
    captions = dict(zip(batch["source"], batch["caption"], strict=True))
    assert captions["words"].startswith("row ")
    assert captions["t"] == ""
    region = np.asarray(batch["region1"])
    assert region.shape == (80, 2, 2)
    assert region.any(axis=(1, 2)).all()  # at least one cell


def test_p12_all_samples_have_one_size_whatever_the_pictures_have() -> None:
    def larger(record: Record) -> None:
        record["image"], record["mask"] = np.ones((9, 5, 3), np.uint8), np.ones((9, 5), np.uint8)

    source = mixed(Pictures("a", 10, bad=dict.fromkeys(range(5), larger)), views=Views(size=6))
    batch = next(iter(MixLoader(source, batch_size=10)))
    assert np.asarray(batch["image1"]).shape == (10, 6, 6, 3)
    assert np.asarray(batch["attempt"]).tolist() == [0] * 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_rows": 0}, "max_rows: expected 1 or more"),
        ({"max_images": -1}, "max_images: expected 1 or more"),
        ({"pairs": PairRule(min_gap=1, max_gap=2)}, "pairs already"),
    ],
)
def test_limits_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Mixed([MixPart(name="a", source=Pictures("a", 10, stored_pairs=True), **options)])


def test_pictures_are_counted_apart_from_rows() -> None:
    """Three pictures of four rows are twelve samples; three rows are three."""
    source = Pictures("a", 40, images=4)
    sizes = {
        len(Mixed([MixPart(name="a", source=source, max_images=pictures, max_rows=rows)]))
        for pictures, rows in ((3, None), (3, 100), (100, 12))
    }
    assert sizes == {12}
    assert len(Mixed([MixPart(name="a", source=source, max_rows=3)])) == 3


def test_what_a_source_must_have_is_said() -> None:
    class Masks(Pictures):
        """Without pictures."""

        def __init__(self) -> None:
            super().__init__("a", 5)
            self.schema = self.schema.select(["mask"])

    with pytest.raises(UsageError, match=r"a: expected a source with image .* it lacks image"):
        mixed(Masks())


def test_a_billion_rows_cost_no_memory() -> None:
    class Endless(Pictures):
        """Keys and rows as they are asked for."""

        @property
        def groups(self) -> list[Any]:
            """None."""
            raise AssertionError("not looked at")

    source = mixed(Endless("a", 10**9), Endless("s", 10**9, stored_pairs=True))
    assert len(source) == 10**9 + 10**9 // 2
    loader = MixLoader(source, batch_size=4)
    state = {**loader.state_dict(), "next_position": 4 * 300_000_000}
    loader.load_state_dict(state)
    assert np.asarray(next(iter(loader))["position"])[0] == 1_200_000_000
    assert loader.report()["a"]["unique"] is None


class Partly(Pictures):
    """Only some rows are done, as in a store whose job has failed rows."""

    def done_rows(self) -> np.ndarray:
        """All but 4, 5, 11 and 16."""
        return np.setdiff1d(np.arange(self.rows), [4, 5, 11, 16])


@pytest.mark.parametrize("stored_pairs", [False, True])
def test_rows_that_are_not_done_are_not_drawn(stored_pairs: bool) -> None:
    source = Partly("a", 20, stored_pairs=stored_pairs)
    whole = mixed(source)
    keys = {str(whole[position]["key1"]) for position in range(len(whole))}
    undone = {4, 10, 16} if stored_pairs else {4, 5, 11, 16}
    assert keys == {f"a/{row}" for row in range(0, 20, 2 if stored_pairs else 1) if row not in undone}
    assert not {4, 5, 11, 16} & set(source.read_rows)


class PartlyTracks(Tracks):
    """Only some rows are done, and they are tracks."""

    def done_rows(self) -> np.ndarray:
        """Every third."""
        return np.arange(0, self.rows, 3)


def test_rows_that_are_not_done_are_no_partners_either() -> None:
    source = PartlyTracks("t", 4, 15)
    whole = mixed(source, seed=1)
    samples = [whole[position] for position in range(3 * len(whole))]
    assert {bool(sample["is_pair"]) for sample in samples} == {True}
    assert set(source.read_rows) == set(range(0, 60, 3))


class Strange(Pictures):
    """Keys as of files whose names are no UTF-8."""

    @property
    def keys(self) -> Sequence[str]:
        """With half of a surrogate pair, as the system gives such names."""
        return Lookup(self.rows, lambda row: f"\udcff/{row}")


def test_a_budget_that_was_exceeded_leaves_the_loader_where_it_stands(tmp_path: Path) -> None:
    """What was found is listed, and no batch is lost to who goes on."""
    source = mixed(Strange("a", 20, bad={row: BadData("planted") for row in range(5)}), seed=1)
    loader = MixLoader(source, batch_size=10, budget=Budget(max_total=0), quarantine=tmp_path)
    with pytest.raises(BudgetExceeded):
        next(iter(loader))
    assert loader.next_position == 0  # it was not given: who goes on begins with it
    listed = MixLoader(source, batch_size=10, budget=None, quarantine=tmp_path).mixed.quarantine["a"]
    assert listed
    assert set(listed) <= {f"\udcff/{row}" for row in range(5)}
    loader.tally.budget = None
    assert np.asarray(next(iter(loader))["position"]).tolist() == list(range(10))
