"""Jobs: one bad row costs one row, whatever it does; counts add up; order and bytes do not depend on who works."""

import dataclasses
import os
import signal
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadData, BudgetExceeded, OutputFull, RowFailed
from penstock.jobs import Job, Launcher
from penstock.launch.local import Inline, Local
from penstock.report import Budget, Report
from penstock.schema import Field, Record, Schema
from penstock.source import Candidate, Problem
from penstock.store import StoreSink, open_store, sink
from penstock.store.claims import Claim
from penstock.work import hash_record
from tests.store.crash import FullDisk
from tests.test_bad_input import data_files

IN = Schema([Field(name="number", dtype="int64", shape=())])
OUT = Schema(
    [
        Field(name="square", dtype="int64", shape=()),
        Field(name="places", dtype="int32", shape=(None,), axes="N"),
    ]
)


@dataclass
class Numbers:
    """Rows 0..count-1, each its own number plus `shift`; a source with random access, and what it offers."""

    count: int
    shift: int = 0
    cheap: int = 1
    origin: str = "numbers"
    unreadable: frozenset[int] = frozenset()
    moved: frozenset[int] = frozenset()
    """Rows that are 1000 more than they were."""
    problems: list[Problem] = field(default_factory=list)

    schema: ClassVar[Schema] = IN

    def __getitem__(self, index: int) -> Record:
        if index in self.unreadable:
            raise BadData(f"number {index} cannot be read")
        return {"number": np.int64(index + self.shift + 1000 * (index in self.moved))}

    def candidates(self) -> Iterator[Candidate]:
        for number in range(self.count):
            yield Candidate(key=f"n{number}", origin=self.origin, cheap=self.cheap, index=number)


@dataclass
class Batched(Numbers):
    """Gives several rows at once, and remembers which were asked for."""

    asked: list[list[int]] = field(default_factory=list)

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        self.asked.append(list(indices))
        return [self[index] for index in indices]


@dataclass(frozen=True, kw_only=True)
class Square:
    """The square of a number, and its decimal places; does something else where it meets a poisoned number."""

    name: ClassVar[str] = "square"
    version: ClassVar[int] = 1
    bitwise: ClassVar[bool] = True
    schema: ClassVar[Schema] = OUT

    batch_size: int = 4
    bad: frozenset[int] = frozenset()
    misfit: frozenset[int] = frozenset()
    exits: frozenset[int] = frozenset()
    crashes: frozenset[int] = frozenset()
    sleeps: frozenset[int] = frozenset()

    def identity(self) -> dict[str, object]:
        return {"stage": self.name, "version": self.version}

    def setup(self, device: str) -> None:
        assert device == "cpu"

    def __call__(self, records: list[Record]) -> list[Record]:
        numbers = [int(np.asarray(record["number"])) for record in records]
        for number in numbers:
            if number in self.bad:
                raise BadData(f"{number} is bad")
            if number in self.exits:
                os._exit(3)
            if number in self.crashes:
                os.kill(os.getpid(), signal.SIGSEGV)
            if number in self.sleeps:
                time.sleep(60)
        return [self.one(number) for number in numbers]

    def one(self, number: int) -> Record:
        places = np.array([int(place) for place in str(number)], np.int32)
        return {"square": np.float64(0.5) if number in self.misfit else np.int64(number * number), "places": places}


@dataclass(frozen=True, kw_only=True)
class Counted(Square):
    """Writes down the numbers of each call, also of those in other processes."""

    counts: Path

    def __call__(self, records: list[Record]) -> list[Record]:
        with self.counts.open("a") as file:
            file.write(" ".join(str(int(record["number"])) for record in records) + "\n")
        return super().__call__(records)


@dataclass(frozen=True, kw_only=True)
class Timed(Square):
    """Looks at its worker's timer."""

    def setup(self, device: str) -> None:
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def __call__(self, records: list[Record]) -> list[Record]:
        left_s, _ = signal.getitimer(signal.ITIMER_REAL)
        if not 0 < left_s <= 200.0 * len(records):
            raise BadData(f"{left_s} s are left")
        return super().__call__(records)


def job(path: Path, offers: Numbers, stage: Square | None = None, **options: object) -> Job:
    stage = stage or Square()
    report = Report(command="square", output=str(path))
    budget = options.get("budget")
    if isinstance(budget, Budget):
        report.budget = budget
    output = StoreSink(
        path, OUT, identity=stage.identity(), durability="process", part_rows=options.pop("part_rows", None)
    )  # type: ignore[arg-type]
    known = {"launcher": Inline(), **options}
    return Job(offers=offers, stage=stage, sink=output, report=report, **known)  # type: ignore[arg-type]


def counts(report: Report) -> tuple[int, int, int, int]:
    assert report.planned == report.done + report.failed + report.missing
    return report.planned, report.done, report.failed, report.missing


def check_rows(path: Path, count: int, failed: set[int], shift: int = 0) -> None:
    store = open_store(path)
    assert [store.keys[row] for row in range(count)] == [f"n{row}" for row in range(count)]
    for row in range(count):
        if row in failed:
            with pytest.raises(RowFailed):
                store[row]
        else:
            assert int(np.asarray(store[row]["square"])) == (row + shift) ** 2
            assert np.asarray(store[row]["places"]).tolist() == [int(place) for place in str(row + shift)]


LAUNCHERS = [Inline(), Local(1), Local(3)]


class TestOneBadRow:
    """A bad row is found in its batch, recorded, counted; its neighbours are done."""

    @pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 64])
    def test_in_a_batch_costs_only_itself(self, batch_size: int, tmp_path: Path) -> None:
        stage = Square(batch_size=batch_size, bad=frozenset({0, 6, 7, 19}))
        report = job(tmp_path / "s", Numbers(20), stage).run()
        assert counts(report) == (20, 16, 4, 0)
        assert [(one.key, one.error, one.message, one.source) for one in report.failures] == [
            (f"n{n}", "BadData", f"{n} is bad", "numbers") for n in (0, 6, 7, 19)
        ]
        assert (report.exit_code, report.status) == (1, "partial")
        check_rows(tmp_path / "s", 20, {0, 6, 7, 19})

    def test_that_cannot_be_read_costs_only_itself(self, tmp_path: Path) -> None:
        report = job(tmp_path / "s", Numbers(9, unreadable=frozenset({2, 8}))).run()
        assert counts(report) == (9, 7, 2, 0)
        check_rows(tmp_path / "s", 9, {2, 8})

    def test_whose_record_does_not_fit_the_schema_costs_only_itself(self, tmp_path: Path) -> None:
        report = job(tmp_path / "s", Numbers(9), Square(misfit=frozenset({5}))).run()
        assert counts(report) == (9, 8, 1, 0)
        assert (report.failures[0].key, report.failures[0].error) == ("n5", "SchemaError")
        assert "square" in report.failures[0].message
        check_rows(tmp_path / "s", 9, {5})

    @pytest.mark.parametrize("kind", ["exits", "crashes"])
    @pytest.mark.parametrize("launcher", [Local(1), Local(2)], ids=["one", "two"])
    def test_that_kills_its_worker_costs_only_itself(self, kind: str, launcher: Local, tmp_path: Path) -> None:
        stage = dataclasses.replace(Square(batch_size=4), **{kind: frozenset({6})})
        report = job(tmp_path / "s", Numbers(10), stage, launcher=launcher).run()
        assert counts(report) == (10, 9, 1, 0)
        (failure,) = report.failures
        assert (failure.key, failure.error, failure.source) == ("n6", "WorkerDied", "numbers")
        assert "n6" in failure.message
        assert f"exit code {3 if kind == 'exits' else -signal.SIGSEGV}" in failure.message
        check_rows(tmp_path / "s", 10, {6})

    def test_that_takes_too_long_costs_only_itself(self, tmp_path: Path) -> None:
        stage = Square(batch_size=2, sleeps=frozenset({3}))
        report = job(tmp_path / "s", Numbers(6), stage, launcher=Local(1, timeout_s=2.0)).run()
        assert counts(report) == (6, 5, 1, 0)
        assert (report.failures[0].key, report.failures[0].error) == ("n3", "TimeoutError")
        assert "n3" in report.failures[0].message
        check_rows(tmp_path / "s", 6, {3})

    def test_has_its_time_from_when_the_stage_is_loaded(self, tmp_path: Path) -> None:
        report = job(tmp_path / "s", Numbers(5), Timed(), launcher=Local(1, timeout_s=200.0)).run()
        assert (counts(report), report.reasons) == ((5, 5, 0, 0), {})

    def test_is_tried_again_when_asked_for(self, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(8), Square(bad=frozenset({5}))).run()
        again = job(tmp_path / "s", Numbers(8)).run()
        assert (counts(again), again.skipped) == ((8, 7, 1, 0), 8)
        retried = job(tmp_path / "s", Numbers(8), retry_failed=True).run()
        assert (counts(retried), retried.skipped, retried.exit_code) == ((8, 8, 0, 0), 7, 0)
        check_rows(tmp_path / "s", 8, set())


class TestBudget:
    """More failures than allowed stop the run; what was done is kept."""

    def test_a_spent_budget_raises_and_keeps_what_was_done(self, tmp_path: Path) -> None:
        stage = Square(batch_size=1, bad=frozenset(range(3, 1000, 2)))
        running = job(tmp_path / "s", Numbers(1000), stage, budget=Budget(5))
        with pytest.raises(BudgetExceeded, match="6 of 1000 rows failed, the budget is 5"):
            running.run()
        report = running.report
        assert counts(report) == (1000, 8, 6, 986)
        assert (report.interrupted, report.exit_code) == ("failure budget", 1)
        assert open_store(tmp_path / "s").counts() == {"planned": 1000, "done": 8, "failed": 6, "missing": 986}
        rest = job(tmp_path / "s", Numbers(1000), retry_failed=True).run()
        assert (counts(rest), rest.skipped) == ((1000, 1000, 0, 0), 8)
        check_rows(tmp_path / "s", 1000, set())

    def test_within_the_budget_nothing_stops(self, tmp_path: Path) -> None:
        stage = Square(bad=frozenset({1, 2, 3}))
        report = job(tmp_path / "s", Numbers(30), stage, budget=Budget.parse("10%")).run()
        assert (counts(report), report.status, report.exit_code) == ((30, 27, 3, 0), "ok", 0)

    def test_a_hopeless_beginning_stops_even_without_a_budget(self, tmp_path: Path) -> None:
        stage = Square(batch_size=10, bad=frozenset(range(1000)))
        running = job(tmp_path / "s", Numbers(1000), stage)
        with pytest.raises(BudgetExceeded, match="the first 100 rows all failed; first: n0: 0 is bad"):
            running.run()
        assert counts(running.report) == (1000, 0, 100, 900)
        assert running.report.status == "failed"

    def test_nothing_offered_is_no_success(self, tmp_path: Path) -> None:
        report = job(tmp_path / "s", Numbers(0)).run()
        assert (report.status, report.exit_code) == ("failed", 1)


class TestWhoWorks:
    """Order and bytes are those of the plan, whoever works and however it went."""

    @pytest.mark.parametrize("bad", [frozenset(), frozenset({0, 17, 18, 40})], ids=["all good", "some bad"])
    def test_gives_the_same_bytes(self, bad: frozenset[int], tmp_path: Path) -> None:
        reports = []
        for number, launcher in enumerate(LAUNCHERS):
            path = tmp_path / str(number)
            reports.append(job(path, Numbers(41), Square(bad=bad), launcher=launcher, part_rows=15).run())
        assert len({counts(report) for report in reports}) == 1
        first, *others = [data_files(tmp_path / str(number)) for number in range(len(LAUNCHERS))]
        assert len([name for name in first if name.endswith("square.bin")]) == 3
        assert all(first == other for other in others)
        check_rows(tmp_path / "2", 41, set(bad))

    def test_stopped_and_resumed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        job(tmp_path / "clean", Numbers(41), part_rows=15).run()
        rounds = 0
        missing = 41
        while missing:
            calls = iter(range(41 - missing + 5, -1, -1))
            stop = lambda: "" if next(calls) else "SIGTERM"  # noqa: B023, E731  # asked within this round only
            report = job(tmp_path / "s", Numbers(41), stop=stop, part_rows=15).run()
            assert report.missing < missing
            missing, rounds = report.missing, rounds + 1
            assert (report.status, report.interrupted) == (("partial", "SIGTERM") if missing else ("ok", ""))
        assert rounds > 3
        assert data_files(tmp_path / "s") == data_files(tmp_path / "clean")


class TestContent:
    """A row whose cheap key changed is read, and computed again only if its content changed too."""

    @pytest.mark.parametrize("launcher", [Inline(), Local(1)], ids=["inline", "local"])
    def test_the_same_content_is_skipped(self, launcher: Launcher, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(10, cheap=1)).run()
        before = data_files(tmp_path / "s")
        report = job(tmp_path / "s", Numbers(10, cheap=2), Square(bad=frozenset(range(10))), launcher=launcher).run()
        assert (counts(report), report.skipped, report.bytes_written) == ((10, 10, 0, 0), 10, 0)
        assert data_files(tmp_path / "s") == before

    def test_other_content_of_the_same_file_is_computed_again(self, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(10, cheap=1), part_rows=4).run()
        report = job(tmp_path / "s", Numbers(10, cheap=2, shift=5), part_rows=4).run()
        assert (counts(report), report.skipped, report.notes["changed"]) == ((10, 10, 0, 0), 0, 10)
        check_rows(tmp_path / "s", 10, set(), shift=5)

    @pytest.mark.parametrize("launcher", [Inline(), Local(2)], ids=["inline", "local"])
    def test_changed_rows_share_calls(self, launcher: Launcher, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(40), part_rows=9).run()
        changed = frozenset(range(3, 40, 4))
        stage = Counted(batch_size=4, counts=tmp_path / "counts")
        report = job(tmp_path / "s", Numbers(40, cheap=2, moved=changed), stage, launcher=launcher, part_rows=9).run()
        assert (counts(report), report.skipped, report.notes["changed"]) == ((40, 40, 0, 0), 30, 10)
        computed = [[int(number) for number in line.split()] for line in stage.counts.read_text().splitlines()]
        assert sorted(number for call in computed for number in {*call}) == [
            number + 1000 for number in sorted(changed)
        ]
        assert {len(call) for call in computed} == {4}
        # Inline, a comparison's batch is done before the next row is admitted; workers may be ahead of the driver.
        assert len(computed) <= (3 if isinstance(launcher, Inline) else 6)
        store = open_store(tmp_path / "s")
        assert [int(store[row]["square"]) for row in range(40)] == [
            (row + 1000 * (row in changed)) ** 2 for row in range(40)
        ]

    def test_comparisons_are_read_a_batch_at_a_time(self, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(10), Square(batch_size=4)).run()
        offers = Batched(10, cheap=2)
        assert job(tmp_path / "s", offers, Square(batch_size=4)).run().skipped == 10
        assert offers.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_a_stopped_run_finishes_what_was_gathered(self, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(10), Square(batch_size=4)).run()
        answers = iter(["", "", "SIGTERM"])
        report = job(tmp_path / "s", Batched(10, cheap=2), Square(batch_size=4), stop=lambda: next(answers)).run()
        assert (report.done, report.skipped, report.missing) == (3, 3, 7)

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_whatever_changed_and_failed_and_stopped_the_store_ends_as_a_clean_one(self, data: st.DataObject) -> None:
        count, batch_size = data.draw(st.integers(1, 23)), data.draw(st.integers(1, 6))
        rows = st.frozensets(st.integers(0, count - 1))
        changed, bad, stops = data.draw(rows), data.draw(rows), data.draw(st.integers(0, 2 * count))
        first = Square(batch_size=batch_size, bad=data.draw(rows))
        with TemporaryDirectory() as folder:
            path = Path(folder)
            job(path / "s", Numbers(count), first, part_rows=5, budget=Budget(count)).run()
            after = Numbers(count, cheap=2, moved=changed)
            stage = Square(batch_size=batch_size, bad=frozenset(number + 1000 for number in bad))
            answers = iter([""] * stops)
            options: dict[str, object] = {"part_rows": 5, "budget": Budget(count), "retry_failed": True}
            job(path / "s", after, stage, stop=lambda: next(answers, "SIGTERM"), **options).run()
            report = job(path / "s", after, stage, **options).run()
            assert report.planned == count == report.done + report.failed
            store = open_store(path / "s")
            failed = changed & bad
            for row in range(count):
                if row in failed:
                    with pytest.raises(RowFailed):
                        store[row]
                else:
                    assert int(store[row]["square"]) == (row + 1000 * (row in changed)) ** 2

    def test_other_content_of_another_file_is_a_duplicate_and_the_first_row_stays(self, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(3, cheap=1)).run()
        report = job(tmp_path / "s", Numbers(3, cheap=2, shift=5, origin="other")).run()
        assert report.failed == 3
        assert all("duplicate id" in one.message and "other" in one.message for one in report.failures)
        store = open_store(tmp_path / "s")
        assert [int(np.asarray(store[row]["square"])) for row in range(3)] == [0, 1, 4]

    def test_a_done_row_that_can_no_longer_be_read_stays_done_and_is_reported(self, tmp_path: Path) -> None:
        job(tmp_path / "s", Numbers(5, cheap=1)).run()
        report = job(tmp_path / "s", Numbers(5, cheap=2, unreadable=frozenset({2}))).run()
        assert (counts(report), report.notes["unreadable_now"]) == ((5, 5, 0, 0), 1)
        assert "n2" in str(report.notes["unreadable_first"])
        check_rows(tmp_path / "s", 5, set())

    def test_hashes_tell_names_and_values_apart(self) -> None:
        records: list[Record] = [
            {"a": np.array([1, 2], np.int64)},
            {"b": np.array([1, 2], np.int64)},
            {"a": np.array([2, 1], np.int64)},
            {"a": np.array([1], np.int64), "b": np.array([2], np.int64)},
            {"a": "1"},
            {},
        ]
        hashes = [hash_record(record) for record in records]
        assert len(set(hashes)) == len(hashes)
        assert 0 not in hashes


def test_parts_that_another_driver_holds_are_named_and_count_as_missing(tmp_path: Path) -> None:
    planned = job(tmp_path / "s", Numbers(20), part_rows=8, stop=lambda: "SIGTERM").run()
    assert planned.missing > 0
    claim = Claim(tmp_path / "s" / "part-00001")
    claim.acquire()
    report = job(tmp_path / "s", Numbers(20), part_rows=8).run()
    claim.release()
    assert counts(report) == (20, 12, 0, 8)
    assert (list(report.notes["held"]), report.status, report.exit_code) == (["part-00001"], "partial", 1)
    report = job(tmp_path / "s", Numbers(20), part_rows=8).run()
    assert (counts(report), report.skipped, report.exit_code) == ((20, 20, 0, 0), 12, 0)
    check_rows(tmp_path / "s", 20, set())


def test_a_full_disk_is_the_runs_fault_not_the_rows(tmp_path: Path) -> None:
    stage = Square(batch_size=1)
    running = job(tmp_path / "s", Numbers(50), stage)
    running.sink = StoreSink(tmp_path / "s", OUT, identity=stage.identity(), disk=FullDisk(900))
    with pytest.raises(OutputFull):
        running.run()
    assert running.report.failed == 0
    report = job(tmp_path / "s", Numbers(50), stage).run()
    assert counts(report) == (50, 50, 0, 0)
    check_rows(tmp_path / "s", 50, set())


def test_the_drivers_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are admitted in blocks; beside the ledger and the keys, which take tens of bytes a row, nothing stays."""

    monkeypatch.setattr(sink, "COMMIT_SECONDS", 0.02)  # else the commits of five seconds gather, or 256 MiB

    def peak(count: int) -> int:
        running = job(tmp_path / str(count), Numbers(count), Square(batch_size=50), block_rows=500)
        tracemalloc.start()
        assert running.run().done == count
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(500)  # what is imported and cached on first use
    few, many = peak(1000), peak(8000)
    print(f"peak of 1000 rows: {few} bytes, of 8000 rows: {many}")
    assert (many - few) / 7000 < 400


@dataclass
class BatchSum:
    """A row's output depends on its whole batch, as a kernel's bits may on the shape that it is called with."""

    name: ClassVar[str] = "batch-sum"
    version: ClassVar[int] = 1
    bitwise: ClassVar[bool] = True
    batch_size: ClassVar[int] = 4
    schema: ClassVar[Schema] = Schema([Field(name="sum", dtype="int64")])

    sizes: list[int] = field(default_factory=list)

    def identity(self) -> dict[str, object]:
        return {"stage": self.name}

    def setup(self, device: str) -> None:
        assert device == "cpu"

    def __call__(self, records: list[Record]) -> list[Record]:
        numbers = [int(record["number"]) for record in records]
        self.sizes.append(len(numbers))
        if 9 in numbers:
            raise BadData("nine")
        return [{"sum": np.int64(1000 * number + sum(numbers))} for number in numbers]


def test_rows_share_a_batch_with_the_same_rows_after_any_interruption_and_the_last_batch_is_padded(
    tmp_path: Path,
) -> None:
    def run(path: Path, stop_after: int | None, cheap: int = 1) -> BatchSum:
        stage = BatchSum()
        calls: list[int] = []

        def stop() -> str:
            calls.append(1)
            return "SIGTERM" if stop_after is not None and len(calls) > stop_after else ""

        sink_ = StoreSink(path, stage.schema, part_rows=7)
        offers = Numbers(18, cheap=cheap, unreadable=frozenset({14}))
        report = Report(command="test", output=str(path))
        Job(offers=offers, stage=stage, sink=sink_, launcher=Inline(), report=report, stop=stop, block_rows=5).run()
        return stage

    clean = run(tmp_path / "clean", None)
    assert set(clean.sizes) == {4}
    store = open_store(tmp_path / "clean")
    assert int(store[0]["sum"]) == 0 + 0 + 1 + 2 + 3
    assert int(store[17]["sum"]) == 17_000 + 16 + 17 + 17 + 17
    for stop_after in range(1, 19):
        path = tmp_path / f"stopped-{stop_after}"
        run(path, stop_after)
        again = run(path, None, cheap=1 + stop_after % 2)  # touched or not: the rest of a batch keeps it company
        assert set(again.sizes) <= {4}
        for row in range(18):
            if row not in (9, 14):
                assert int(open_store(path)[row]["sum"]) == int(store[row]["sum"]), (stop_after, row)


def test_rows_that_failed_before_are_all_tried_again_however_many_still_fail(tmp_path: Path) -> None:
    def run(count: int, *, bad: frozenset[int], retry: bool) -> Report:
        stage = Square(batch_size=1, bad=bad)
        offers, report = Numbers(count), Report(command="test", output=str(tmp_path))
        sink_ = StoreSink(tmp_path / "s", OUT)
        return Job(offers=offers, stage=stage, sink=sink_, launcher=Inline(), report=report, retry_failed=retry).run()

    assert run(301, bad=frozenset(range(1, 301)), retry=False).failed == 300
    report = run(301, bad=frozenset(range(1, 200)), retry=True)
    assert (report.done, report.failed, report.missing) == (102, 199, 0)
