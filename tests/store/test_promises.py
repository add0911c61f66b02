"""The nine promises of the store, each by its name."""

import dataclasses
import functools
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import Field, Schema, open_store, write_store
from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.errors import PartClaimed, RecipeMismatch, RowFailed, RowMissing, StoreCorrupt, UsageError
from penstock.report import Report
from penstock.schema import Record
from penstock.source import Candidate
from penstock.store import StoreSink
from penstock.store.commit import Commit
from penstock.testing import make_sa1b_tar
from tests.store.crash import CrashModel, KillDisk, TraceDisk

SCHEMA = Schema(
    [
        Field(name="vector", dtype="float32", shape=(5,)),
        Field(name="small", dtype="uint8", shape=(3,), file="meta"),
        Field(name="number", dtype="int64", file="meta"),
        Field(name="caption", dtype="str"),
        Field(name="boxes", dtype="float32", shape=(None, 4)),
    ]
)


def record(number: int) -> Record:
    return {
        "vector": np.full(5, number, np.float32) + np.arange(5, dtype=np.float32) / 8,
        "small": np.array([number % 256, 1, 2], np.uint8),
        "number": np.int64(number * 1_000_003),
        "caption": f"row {number} \u00e9" * (number % 4),
        "boxes": np.full((number % 3, 4), number, np.float32),
    }


def same(left: Record, right: Record) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in SCHEMA)


FAILING = {3, 11}


def fill(
    path: Path, rows: int, *, disk: object = None, flush_every: int = 2, committed: list[set[int]] | None = None
) -> None:
    """Writes rows in a scrambled order, two of them failing, with many group commits; notes what is committed when."""
    sink = StoreSink(path, SCHEMA, identity={"recipe": 1}, part_rows=7, disk=disk)  # type: ignore[arg-type]
    writer = sink.writer()
    candidates = [Candidate(key=f"k{n}", cheap=n + 1) for n in range(rows)]
    admissions = sink.admit(candidates)
    order = list(range(rows))
    random.Random(5).shuffle(order)
    safe: set[int] = set()
    waiting: set[int] = set()
    for count, n in enumerate(order, 1):
        ticket = admissions[n].ticket
        if ticket is None or sink.enter(ticket).ticket is None:
            continue
        if n in FAILING:
            sink.commit(Commit(ticket=ticket, error="BadData", message=f"row {n} is bad"))
        else:
            sink.commit(
                Commit(ticket=ticket, content=n + 1, written=writer.write(ticket.folder, ticket.position, record(n)))
            )
            waiting.add(n)
        if count % flush_every == 0:
            sink.flush()
            safe |= waiting
            if committed is not None:
                committed.append(set(safe))
    sink.close(complete=True)


def data_files(path: Path) -> dict[str, bytes]:
    """Bytes of every data file and ledger; not what depends on history (failures, reports, the manifest's times)."""
    kept = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and (file.suffix in (".bin", ".blob", ".idx") or file.name == "keys.txt"):
            kept[str(file.relative_to(path))] = file.read_bytes()
    return kept


def check_intact(path: Path, committed: set[int], rows: int) -> None:
    """Every committed row is whole; every other one is whole too, or missing, or recorded as failed."""
    if not (path / "store.json").exists():
        assert not committed
        return
    store = open_store(path)
    found = {store.keys[row]: row for row in range(len(store))}
    for n in range(rows):
        row = found.get(f"k{n}")
        if row is None:
            assert n not in committed
            continue
        try:
            assert same(store[row], record(n))
            assert n not in FAILING
        except RowMissing:
            assert n not in committed
        except RowFailed:
            assert n in FAILING
            with pytest.raises(RowFailed, match=f"row {n} is bad"):
                store[row]


class TestPromise1:
    """Killed or cut off at any instant: every committed row intact, every other missing, none half right."""

    ROWS = 16

    def test_power_cut_at_every_write_leaves_committed_rows_intact_and_others_missing(self, tmp_path: Path) -> None:
        root = tmp_path / "live"
        root.mkdir()
        disk = TraceDisk(root)
        marks: list[tuple[int, set[int]]] = []

        class Marks(list):  # type: ignore[type-arg]
            def append(self, safe: set[int]) -> None:
                marks.append((len(disk.ops), safe))

        fill(root / "s", self.ROWS, disk=disk, committed=Marks())
        everything = set(range(self.ROWS)) - FAILING
        rng = random.Random(11)
        tried = 0
        for cut in range(len(disk.ops) + 1):
            committed: set[int] = set()
            for moment, safe in marks:
                if moment <= cut:
                    committed = safe
            if cut == len(disk.ops):
                committed = everything
            crashed = tmp_path / "crashed"
            CrashModel(disk.ops[:cut]).crash(crashed, rng)
            check_intact(crashed / "s", committed, self.ROWS)
            if cut % 9 == 0:
                fill(crashed / "s", self.ROWS)
                assert data_files(crashed / "s") == data_files(root / "s")
            shutil.rmtree(crashed)
            tried += 1
        assert tried > 300

    @settings(max_examples=60, deadline=None)
    @given(share=st.floats(0, 1), seed=st.integers(0, 2**32))
    def test_any_torn_state_can_be_resumed_to_the_clean_bytes(
        self, share: float, seed: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        ops, clean = _trace(tmp_path_factory)
        crashed = tmp_path_factory.mktemp("crashed")
        CrashModel(ops[: round(share * len(ops))]).crash(crashed, random.Random(seed))
        fill(crashed / "s", self.ROWS)
        assert data_files(crashed / "s") == clean
        shutil.rmtree(crashed)


@functools.cache
def _trace_at(folder: Path) -> tuple[list[object], dict[str, bytes]]:
    disk = TraceDisk(folder)
    fill(folder / "s", TestPromise1.ROWS, disk=disk)
    return list(disk.ops), data_files(folder / "s")


def _trace(factory: pytest.TempPathFactory) -> tuple[list, dict[str, bytes]]:  # type: ignore[type-arg]
    folder = factory.getbasetemp() / "trace"
    folder.mkdir(exist_ok=True)
    return _trace_at(folder)


SMALL = {
    "feature_size": 4,
    "channels": 2,
    "picture_size": 32,
    "edge_sizes": (32,),
    "map_sizes": (32,),
    "size_hw": (40, 50),
}


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TAR of 24 small samples, one of which cannot be decoded."""

    def spoil(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: content[:200] if number == 9 and name.endswith("jpg") else content
            for name, content in members.items()
        }

    path = tmp_path_factory.mktemp("shard") / "shard.tar"
    make_sa1b_tar(path, 24, num_boxes=2, mutate=spoil, **SMALL)  # type: ignore[arg-type]
    return path


def config(shard: Path, output: Path, **changes: object) -> ConvertConfig:
    settings = {"workers": 0, "part_rows": 10, "image_size": 32, **changes}
    return ConvertConfig(tar_path=(str(shard),), output_dir=output, **settings)  # type: ignore[arg-type]


def in_child(work: object) -> int:
    """Runs a callable in a fork of this process and gives its exit status; -9 if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()  # type: ignore[operator]
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


class TestPromise2:
    """A run that was killed a thousand times ends with the bytes of the clean run."""

    def test_killed_at_200_random_moments_a_conversion_ends_with_the_bytes_of_the_clean_run(
        self, shard: Path, tmp_path: Path
    ) -> None:
        lasts = 1e9  # the shortest of three: one that is held up would have all others end before they are killed
        for _ in range(3):
            shutil.rmtree(tmp_path / "clean", ignore_errors=True)
            started = time.monotonic()
            convert_sa1b_tar(config(shard, tmp_path / "clean", durability="process"))
            lasts = min(lasts, time.monotonic() - started)
        clean = data_files(tmp_path / "clean")
        rng = random.Random(7)
        killed = finished = 0
        output = tmp_path / "killed"
        while killed < 200:
            child = os.fork()
            if child == 0:
                convert_sa1b_tar(config(shard, output, durability="process"))
                os._exit(0)
            time.sleep(rng.random() * lasts * 1.1)
            os.kill(child, signal.SIGKILL)
            if os.waitpid(child, 0)[1] == signal.SIGKILL:
                killed += 1
            else:
                finished += 1
            if finished and rng.random() < 0.3:
                assert data_files(output) == clean
                shutil.rmtree(output)
                finished = 0
        report = convert_sa1b_tar(config(shard, output))
        assert data_files(output) == clean
        assert (report.planned, report.done, report.failed, report.missing) == (24, 23, 1, 0)

    @pytest.mark.parametrize("halfway", [False, True])
    def test_killed_at_each_step_of_a_commit_a_conversion_ends_with_the_bytes_of_the_clean_run(
        self, tmp_path: Path, halfway: bool
    ) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 5, num_boxes=2, **SMALL)  # type: ignore[arg-type]
        fields = ("image", "P5_S32", "bboxes")
        settings = config(tmp_path / "a.tar", tmp_path / "killed", part_rows=3, fields=fields, durability="process")
        assert self._kill_at_each_step(settings, tmp_path / "clean", halfway) > (20 if halfway else 60)

    @pytest.mark.parametrize("halfway", [False, True])
    def test_v1_killed_at_each_step_ends_with_the_bytes_of_the_clean_run(self, tmp_path: Path, halfway: bool) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 2)
        settings = config(
            tmp_path / "a.tar", tmp_path / "killed", layout="v1", image_size=1024, part_rows=None, durability="process"
        )
        assert self._kill_at_each_step(settings, tmp_path / "clean", halfway) > (15 if halfway else 40)

    @staticmethod
    def _kill_at_each_step(settings: ConvertConfig, clean_path: Path, halfway: bool) -> int:
        """Kills at every write, resize, rename, removal and flush in turn; `halfway`: inside every write. Gives their number."""
        count = KillDisk(1 << 60)
        convert_sa1b_tar(dataclasses.replace(settings, output_dir=clean_path), disk=count)
        steps = count.writes if halfway else range(1, count.at - count.left + 1)
        clean = data_files(clean_path)
        for step in steps:
            status = in_child(lambda: convert_sa1b_tar(settings, disk=KillDisk(step, halfway=halfway)))  # noqa: B023
            assert status == signal.SIGKILL
            convert_sa1b_tar(settings)
            assert data_files(settings.output_dir) == clean, f"killed at step {step}"
            shutil.rmtree(settings.output_dir)
        return len(steps)

    def test_killed_worker_processes_and_driver_end_with_the_bytes_of_the_clean_run(
        self, shard: Path, tmp_path: Path
    ) -> None:
        convert_sa1b_tar(config(shard, tmp_path / "clean"))
        clean = data_files(tmp_path / "clean")
        for count in (1, 8, 16):

            def die(report: Report) -> None:
                if report.done >= count:  # noqa: B023
                    os.kill(os.getpid(), signal.SIGKILL)

            settings = config(shard, tmp_path / "killed", workers=2)
            assert in_child(lambda: convert_sa1b_tar(settings, on_progress=die)) == signal.SIGKILL  # noqa: B023
        convert_sa1b_tar(config(shard, tmp_path / "killed", workers=2))
        assert data_files(tmp_path / "killed") == clean


class TestPromise3:
    """Row order is the order of the plan, never the order of completion."""

    def test_rows_written_in_any_order_stand_in_the_order_of_the_plan(self, tmp_path: Path) -> None:
        fill(tmp_path / "s", 16)
        store = open_store(tmp_path / "s")
        assert [store.keys[row] for row in range(16)] == [f"k{n}" for n in range(16)]
        assert all(same(store[n], record(n)) for n in range(16) if n not in FAILING)

    def test_four_workers_and_one_give_the_same_bytes(self, shard: Path, tmp_path: Path) -> None:
        for workers in (0, 1, 4):
            convert_sa1b_tar(config(shard, tmp_path / str(workers), workers=workers))
        assert data_files(tmp_path / "0") == data_files(tmp_path / "1") == data_files(tmp_path / "4")


class TestPromise4:
    """A missing or failed row raises; zeros are never served."""

    def test_missing_and_failed_rows_raise_and_gather_refuses_them(self, tmp_path: Path) -> None:
        sink = StoreSink(tmp_path / "s", SCHEMA)
        admissions = sink.admit([Candidate(key=f"k{n}") for n in range(3)])
        tickets = [admission.ticket for admission in admissions]
        assert tickets[0]
        assert tickets[1]
        for ticket in tickets[:2]:
            sink.enter(ticket)  # type: ignore[arg-type]
        sink.commit(Commit(ticket=tickets[0], written=sink.writer().write(tickets[0].folder, 0, record(0))))
        sink.commit(Commit(ticket=tickets[1], error="BadData", message="no picture"))
        sink.close(complete=False)
        store = open_store(tmp_path / "s")
        assert same(store[0], record(0))
        with pytest.raises(RowFailed, match="no picture"):
            store[1]
        with pytest.raises(RowMissing, match="k2"):
            store[2]
        out = {"vector": np.empty((2, 5), np.float32)}
        with pytest.raises(RowMissing):
            store.gather(np.array([0, 2]), ["vector"], out)
        assert store.counts() == {"planned": 3, "done": 1, "failed": 1, "missing": 1}
        rows = store.done_rows()
        assert rows is not None
        assert rows.tolist() == [0]


class TestPromise5:
    """Every size is checked on open; open reads the manifest only."""

    def test_a_short_file_is_refused_naming_file_row_expected_and_found(self, tmp_path: Path) -> None:
        fill(tmp_path / "s", 16)
        file = tmp_path / "s" / "part-00001" / "vector.bin"
        with file.open("r+b") as opened:
            opened.truncate(7 * 20 - 30)
        with pytest.raises(StoreCorrupt, match=r"vector\.bin: expected 140 bytes, found 110; row 5 is not whole"):
            open_store(tmp_path / "s")

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        fill(tmp_path / "s", 16)
        (tmp_path / "s" / "part-00000" / "caption.blob").unlink()
        with pytest.raises(StoreCorrupt, match=r"caption\.blob"):
            open_store(tmp_path / "s")


def _read_in_child(store: object, row: int, answers: object) -> None:
    answers.put(store[row]["vector"].tolist())  # type: ignore[attr-defined, index]


class TestPromise6:
    """Opened before a fork, pickled into a worker, read by many threads: all safe. Negative index works."""

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_store_that_was_read_before_is_right_in_a_worker(self, tmp_path: Path, method: str) -> None:
        write_store(tmp_path / "s", SCHEMA, ((f"k{n}", record(n)) for n in range(20)), part_rows=8)
        store = open_store(tmp_path / "s")
        store[3]
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        children = [context.Process(target=_read_in_child, args=(store, row, answers)) for row in (4, 17)]
        for child in children:
            child.start()
        found = sorted(answers.get(timeout=300) for _ in children)
        for child in children:
            child.join()
        assert found == sorted(record(n)["vector"].tolist() for n in (4, 17))  # type: ignore[union-attr]

    def test_pickling_drops_maps_and_keeps_rows(self, tmp_path: Path) -> None:
        write_store(tmp_path / "s", SCHEMA, ((f"k{n}", record(n)) for n in range(20)), part_rows=8)
        store = open_store(tmp_path / "s")
        store[3]
        pickled = pickle.dumps(store)
        assert len(pickled) < 20_000
        assert same(pickle.loads(pickled)[19], record(19))

    def test_many_threads_read_the_same_rows(self, tmp_path: Path) -> None:
        write_store(tmp_path / "s", SCHEMA, ((f"k{n}", record(n)) for n in range(20)), part_rows=8)
        store = open_store(tmp_path / "s")
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda n: same(store[n % 20], record(n % 20)), range(400)))

    def test_negative_index_counts_from_the_end_and_outside_is_an_index_error(self, tmp_path: Path) -> None:
        write_store(tmp_path / "s", SCHEMA, ((f"k{n}", record(n)) for n in range(20)), part_rows=8)
        store = open_store(tmp_path / "s")
        assert same(store[-1], record(19))
        assert len(list(store)) == 20
        for index in (20, -21):
            with pytest.raises(IndexError, match="20 rows"):
                store[index]


class TestPromise7:
    """Views are zero-copy and read-only; gather fills the caller's buffer."""

    def test_views_share_the_map_and_cannot_be_written(self, tmp_path: Path) -> None:
        write_store(tmp_path / "s", SCHEMA, ((f"k{n}", record(n)) for n in range(20)))
        store = open_store(tmp_path / "s")
        first, again = store[5], store[5]
        for name in ("vector", "small", "boxes"):
            left, right = first[name], again[name]
            assert isinstance(left, np.ndarray)
            assert isinstance(right, np.ndarray)
            assert np.shares_memory(left, right)
            assert not left.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                left[...] = 0

    @settings(max_examples=40, deadline=None)
    @given(
        rows=st.lists(st.integers(0, 29), max_size=40),
        io=st.sampled_from(["mmap", "pread", "direct"]),
        part_rows=st.sampled_from([4, 100]),
    )
    def test_gather_gives_the_rows_asked_for(
        self, rows: list[int], io: str, part_rows: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / f"gather-{part_rows}"
        if not path.exists():
            write_store(path, SCHEMA, ((f"k{n}", record(n)) for n in range(30)), part_rows=part_rows)
        store = open_store(path)
        out = {
            name: np.full((len(rows), *SCHEMA[name].item_shape), 99, SCHEMA[name].dtype)
            for name in ("vector", "small", "number")
        }
        store.gather(np.array(rows, np.int64), ["vector", "small", "number"], out, io=io)
        for place, row in enumerate(rows):
            assert all(np.array_equal(out[name][place], record(row)[name]) for name in out)


def _hold(path: Path, ready: object, go: object) -> None:
    sink = StoreSink(path, SCHEMA, part_rows=7)
    (admission,) = sink.admit([Candidate(key="k0", cheap=1)])
    sink.enter(admission.ticket)  # type: ignore[arg-type]
    ready.set()  # type: ignore[attr-defined]
    go.wait(300)  # type: ignore[attr-defined]
    sink.release()


class TestPromise8:
    """Two drivers never write one row."""

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_part_that_another_process_holds_is_left_alone_and_the_rest_is_done(
        self, tmp_path: Path, shared: bool
    ) -> None:
        path = tmp_path / "s"
        StoreSink(path, SCHEMA, part_rows=7).admit([Candidate(key=f"k{n}", cheap=n + 1) for n in range(14)])
        context = multiprocessing.get_context("spawn")
        ready, go = context.Event(), context.Event()
        other = context.Process(target=_hold, args=(path, ready, go))
        other.start()
        assert ready.wait(300)
        sink = StoreSink(path, SCHEMA, part_rows=7)
        admissions = sink.admit([Candidate(key=f"k{n}", cheap=n + 1) for n in range(14)])
        verdicts = [sink.enter(admission.ticket).verdict for admission in admissions if admission.ticket]
        assert verdicts == ["held"] * 7 + ["compute"] * 7
        assert list(sink.held) == ["part-00000"]
        assert "process" in sink.held["part-00000"]
        go.set()
        other.join()
        sink.release()

    def test_two_drivers_at_once_share_the_work_and_the_bytes_are_right(self, shard: Path, tmp_path: Path) -> None:
        convert_sa1b_tar(config(shard, tmp_path / "clean"))
        reports = []
        threads = [
            threading.Thread(
                target=lambda: reports.append(convert_sa1b_tar(config(shard, tmp_path / "both", part_rows=10)))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        convert_sa1b_tar(config(shard, tmp_path / "both"))
        assert data_files(tmp_path / "both") == data_files(tmp_path / "clean")
        written = sum(report.bytes_written for report in reports)
        assert written == sum(report.bytes_written for report in [convert_sa1b_tar(config(shard, tmp_path / "one"))])

    def test_a_second_driver_of_a_v1_directory_is_told_who_holds_it(self, tmp_path: Path) -> None:
        from penstock.store.v1_sink import V1Sink

        first = V1Sink(tmp_path / "v", identity={}, attributes={})
        with pytest.raises(PartClaimed, match=f"process {os.getpid()}"):
            V1Sink(tmp_path / "v", identity={}, attributes={})
        first.release()
        V1Sink(tmp_path / "v", identity={}, attributes={}).release()

    def test_a_stale_claim_on_a_shared_disk_is_taken_over_and_its_holder_is_fenced_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from penstock.store import claims

        monkeypatch.setattr(claims, "HEARTBEAT_S", 1e6)
        old = claims.Claim(tmp_path, shared=True)
        old.acquire()
        new = claims.Claim(tmp_path, shared=True)
        with pytest.raises(PartClaimed):
            new.acquire()
        os.utime(old.path, (time.time() - 100, time.time() - 100))
        new.acquire()
        new.check()
        with pytest.raises(PartClaimed, match="fenced off"):
            old.check()
        old.release()
        new.check()
        new.release()
        assert not new.path.exists()


class TestPromise9:
    """in = done + failed + missing, always; nothing done, or too much failed, is no success."""

    def test_counts_add_up_after_every_run(self, shard: Path, tmp_path: Path) -> None:
        for _ in range(2):
            report = convert_sa1b_tar(config(shard, tmp_path / "s"))
            assert (report.planned, report.done, report.failed, report.missing) == (24, 23, 1, 0)
            assert report.exit_code == 1
        assert convert_sa1b_tar(config(shard, tmp_path / "s", max_failures="5%")).exit_code == 0

    def test_an_interrupted_run_counts_what_is_missing(self, shard: Path, tmp_path: Path) -> None:
        calls = []

        def stop() -> str:
            calls.append(1)
            return "SIGTERM" if len(calls) > 9 else ""

        report = convert_sa1b_tar(config(shard, tmp_path / "s"), stop=stop)
        assert report.planned == report.done + report.failed + report.missing
        assert report.missing > 0
        assert (report.status, report.exit_code) == ("partial", 1)


def test_a_store_of_another_recipe_is_refused_with_the_differences_named(tmp_path: Path) -> None:
    StoreSink(tmp_path / "s", SCHEMA, identity={"model": "a", "size": 3}).release()
    with pytest.raises(RecipeMismatch, match=r"model: store 'a', now 'b'"):
        StoreSink(tmp_path / "s", SCHEMA, identity={"model": "b", "size": 3})


def test_recomputing_a_row_of_a_sealed_part_leaves_readers_of_the_old_version_undisturbed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, SCHEMA, ((f"k{n}", record(n)) for n in range(6)))
    old = open_store(path)
    before = old[2]["vector"].tolist()  # type: ignore[union-attr]
    sink = StoreSink(path, SCHEMA)
    ticket = sink.recompute(Candidate(key="k2", cheap=99))
    assert ticket
    sink.commit(
        Commit(ticket=ticket, content=5, written=sink.writer().write(ticket.folder, ticket.position, record(70)))
    )
    sink.close(complete=True)
    assert old[2]["vector"].tolist() == before  # type: ignore[union-attr]
    fresh = open_store(path)
    assert [same(fresh[n], record(n)) for n in range(6)] == [True, True, False, True, True, True]
    assert same(fresh[2], record(70))
    assert not (path / "part-00000").exists()
    assert old.digest() != fresh.digest()


def test_write_store_keeps_every_row_when_its_caller_reuses_one_buffer(tmp_path: Path) -> None:
    schema = Schema([Field(name="vector", dtype="float32", shape=(5,))])
    buffer = np.zeros(5, np.float32)

    def records() -> Iterator[tuple[str, Record]]:
        for n in range(50):
            buffer[:] = n
            yield f"k{n}", {"vector": buffer}

    write_store(tmp_path / "s", schema, records())
    store = open_store(tmp_path / "s")
    assert [float(store[n]["vector"][0]) for n in range(50)] == list(range(50))


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    for count in (2, 3000):
        with pytest.raises(UsageError, match="'k0' comes twice"):
            write_store(tmp_path / f"s{count}", SCHEMA, ((f"k{n % (count - 1)}", record(n)) for n in range(count)))


def test_a_driver_that_finds_the_next_version_begun_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, SCHEMA, ((f"k{n}", record(n)) for n in range(6)))
    late = StoreSink(path, SCHEMA)  # knows the manifest of now
    early = StoreSink(path, SCHEMA)
    assert early.recompute(Candidate(key="k2", cheap=9))
    early.release()
    ticket = late.recompute(Candidate(key="k4", cheap=9))
    assert ticket
    late.commit(Commit(ticket=ticket, written=late.writer().write(ticket.folder, ticket.position, record(40))))
    late.close(complete=True)
    assert same(open_store(path)[4], record(4))  # row 2 of the next version is still missing: the old one serves
    last = StoreSink(path, SCHEMA)
    (admission,) = last.admit([Candidate(key="k2", cheap=9)])
    assert admission.ticket
    last.enter(admission.ticket)
    written = last.writer().write(admission.ticket.folder, admission.ticket.position, record(20))
    last.commit(Commit(ticket=admission.ticket, written=written))
    last.close(complete=True)
    assert same(open_store(path)[4], record(40))
    assert same(open_store(path)[2], record(20))
