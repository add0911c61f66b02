"""Loader: the sampler's order on any topology, leased memory that is never overwritten, bad rows counted."""

import contextlib
import ctypes
import errno
import gc
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import random
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.buffers import Batch, BufferPool, Transfers
from penstock.errors import BadData, BudgetExceeded, RowFailed, SchemaError, StateMismatch, UsageError
from penstock.loader import Loader
from penstock.samplers import Epochs, mix
from penstock.schema import Field, Schema
from penstock.source import Concat, Subset

SCHEMA = Schema(
    [
        Field(name="number", dtype="int64"),
        Field(name="image", dtype="uint8", shape=(3, 5)),
        Field(name="flag", dtype="bool"),
        Field(name="level", dtype="uint16", shape=(2,)),
    ]
)
LONG = Schema([*SCHEMA.fields, Field(name="boxes", dtype="float32", shape=(None, 4)), Field(name="text", dtype="str")])


def columns(num_rows):
    number = np.arange(num_rows)
    return {
        "number": number,
        "image": (number[:, None, None] * 31 + np.arange(15).reshape(3, 5)).astype(np.uint8),
        "flag": number % 3 == 0,
        "level": (number[:, None] * 7 + np.arange(2)).astype(np.uint16),
    }


class PlainSource:
    """Schema, keys, length and records: the least a source may be."""

    def __init__(self, num_rows, schema=LONG):
        self.schema = schema
        self.columns = columns(num_rows)
        self.keys = [f"row-{i}" for i in range(num_rows)]

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        record = {name: values[index] for name, values in self.columns.items()}
        record["boxes"] = np.full((index % 3, 4), index, np.float32)
        record["text"] = f"caption {index}"
        return {name: record[name] for name in self.schema}


class ArraySource(PlainSource):
    """A source in memory with all that a store offers."""

    def __init__(self, num_rows, schema=SCHEMA, done=None):
        super().__init__(num_rows, schema)
        self.done = done
        self.modes = set()
        self.resident = 1.0

    def gather(self, rows, fields, out, *, io="mmap"):
        self.modes.add(io)
        for name in fields:
            np.take(self.columns[name], rows, axis=0, out=out[name], mode="clip")

    def done_rows(self):
        return self.done

    def digest(self):
        return f"array-{len(self)}"

    def residency(self, rows, fields=None):
        return self.resident


class FaultySource(ArraySource):
    """Rows that fail: for good, or for the first reads."""

    def __init__(self, num_rows, bad=(), flaky=(), schema=SCHEMA, error=BadData):
        super().__init__(num_rows, schema)
        self.bad = set(bad)
        self.flaky = Counter(flaky)
        self.error = error
        self.lock = threading.Lock()

    def check(self, row):
        if row in self.bad:
            raise self.error(f"row {row} is rotten")
        with self.lock:
            if self.flaky[row] > 0:
                self.flaky[row] -= 1
                raise OSError(errno.EIO, "a cable came loose")

    def gather(self, rows, fields, out, *, io="mmap"):
        for row in rows.tolist():
            self.check(row)
        super().gather(rows, fields, out, io=io)

    def __getitem__(self, index):
        self.check(index)
        return super().__getitem__(index)


def rows_of(batch):
    return batch.rows.tolist()


def drawn(loader):
    return [rows_of(batch) for batch in loader]


def flat(lists):
    return list(itertools.chain(*lists))


def assert_equals_source(batch, source):
    for name, values in batch.items():
        expected = [source[row][name] for row in batch.rows.tolist()]
        if isinstance(values, list):
            assert len(values) == len(expected)
            assert all(np.array_equal(a, b) for a, b in zip(values, expected, strict=True))
        else:
            np.testing.assert_array_equal(np.asarray(values), np.stack(expected))


def wait_for(condition):
    deadline_s = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert condition()


# Order


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(1, 4))
def test_every_position_is_taken_once_per_epoch(num_rows, share, world_size, threads, drop_last, prefetch):
    batch_size = share * world_size
    if drop_last and num_rows < batch_size:
        with pytest.raises(UsageError, match="batch_size"):
            Loader(ArraySource(num_rows), batch_size=batch_size)
        return
    ranks = [
        list(
            Loader(
                ArraySource(num_rows),
                batch_size=batch_size,
                drop_last=drop_last,
                threads=threads,
                prefetch=prefetch,
                rank=rank,
                world_size=world_size,
                max_leased=200,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    positions = [p for step in zip(*ranks, strict=True) for batch in step for p in batch.positions]
    rows = [row for step in zip(*ranks, strict=True) for batch in step for row in batch.rows.tolist()]
    taken = num_rows // batch_size * batch_size if drop_last else num_rows
    assert positions == list(range(taken))
    assert rows == Epochs(num_rows).rows(0, taken).tolist()
    if not drop_last:
        assert sorted(rows) == list(range(num_rows))


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 80), st.sampled_from([4, 8]), st.integers(0, 30), st.booleans(), st.data())
def test_resume_after_any_batch_gives_the_same_tail_on_another_topology(num_rows, batch_size, taken, drop_last, data):
    source = ArraySource(num_rows)
    settings_ = {"batch_size": batch_size, "drop_last": drop_last, "epochs": None}
    first = iter(loader := Loader(source, **settings_, threads=1))
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(loader.state_dict()))
    expected = [next(first).rows.tolist() for _ in range(12)]
    world_size = data.draw(st.sampled_from([1, 2, 4]))
    threads = data.draw(st.integers(1, 3))
    ranks = [
        Loader(source, **settings_, threads=threads, prefetch=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.load_state_dict(state)
    iterators = [iter(rank) for rank in ranks]
    found = [[row for it in iterators for row in next(it).rows.tolist()] for _ in range(12)]
    assert found == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from(["numpy", "torch"]), st.booleans(), st.booleans())
def test_batches_equal_the_rows_of_the_source(num_rows, batch_size, output, gathers, long):
    kind = ArraySource if gathers else PlainSource
    source = kind(num_rows, LONG if long else SCHEMA)
    loader = Loader(source, batch_size=batch_size, drop_last=False, output=output, prefetch=2)
    for batch in loader:
        assert list(batch) == list(source.schema)
        assert_equals_source(batch, source)
        assert batch.row_keys() == [f"row-{row}" for row in batch.rows]


def test_the_number_of_threads_does_not_change_the_order():
    expected = drawn(Loader(ArraySource(100), batch_size=7, threads=1))
    for threads in (2, 5):
        assert drawn(Loader(PlainSource(100), batch_size=7, threads=threads)) == expected


def test_each_for_is_the_next_epoch_and_len_is_batches_per_epoch():
    loader = Loader(ArraySource(20), batch_size=6)
    first, second = drawn(loader), drawn(loader)
    assert len(loader) == len(first) == len(second) == 3
    assert first != second
    both = drawn(Loader(ArraySource(20), batch_size=6, epochs=2))
    assert both == first + second


def test_an_iteration_broken_off_goes_on_with_the_batch_not_yet_taken():
    expected = drawn(Loader(ArraySource(40), batch_size=4))
    loader = Loader(ArraySource(40), batch_size=4)
    found = []
    for batch in loader:
        found.append(batch.rows.tolist())
        if len(found) == 3:
            break
    assert loader.state_dict()["consumed"] == 3
    assert found + drawn(loader) == expected
    loader.seek(0)
    assert drawn(loader) == expected


@pytest.mark.parametrize("stop", [1, 4, 12, 15, 20])
def test_a_run_of_epochs_that_was_broken_off_ends_where_it_would_have(stop: int) -> None:
    expected = drawn(Loader(ArraySource(20), batch_size=4, epochs=6))
    loader = Loader(ArraySource(20), batch_size=4, epochs=3)  # 15 batches a run
    found = []
    while len(found) < stop:
        for batch in loader:
            found.append(batch.rows.tolist())
            if len(found) == stop:
                break
    rest = drawn(loader)
    assert len(found) + len(rest) == (15 if stop < 15 else 30)
    assert found + rest == expected[: len(found) + len(rest)]


def test_state_counts_batches_taken_not_prefetched():
    loader = Loader(ArraySource(100), batch_size=2, prefetch=8, epochs=None)
    iterator = iter(loader)
    assert loader.state_dict()["consumed"] == 0
    for n in range(1, 5):
        next(iterator)
        assert loader.state_dict()["consumed"] == n


def test_a_state_of_other_data_or_order_is_refused_by_field():
    state = Loader(ArraySource(40), batch_size=4).state_dict()
    for other, name in [
        (Loader(ArraySource(41), batch_size=4, sampler=Epochs(41)), "data"),
        (Loader(ArraySource(40), batch_size=8), "batch_size"),
        (Loader(ArraySource(40), batch_size=4, drop_last=False), "drop_last"),
        (Loader(ArraySource(40), batch_size=4, sampler=Epochs(40, seed=1)), "seed"),
        (Loader(ArraySource(40), batch_size=4, sampler=Epochs(40, shuffle=False)), "sampler"),
    ]:
        with pytest.raises(StateMismatch, match=f"{name}: expected"):
            other.load_state_dict(state)
    with pytest.raises(StateMismatch, match="version"):
        Loader(ArraySource(40), batch_size=4).load_state_dict({**state, "version": 99})
    with pytest.raises(StateMismatch, match="consumed"):
        Loader(ArraySource(40), batch_size=4).load_state_dict({**state, "consumed": -1})


def test_plain_sources_have_an_identity_too():
    state = Loader(PlainSource(40), batch_size=4).state_dict()
    Loader(PlainSource(40), batch_size=4).load_state_dict(state)
    moved = Subset(PlainSource(40), list(range(39, -1, -1)))
    with pytest.raises(StateMismatch, match="data"):
        Loader(moved, batch_size=4).load_state_dict(state)


def test_only_rows_that_are_done_are_drawn():
    done = np.array([3, 5, 8, 9, 20, 21, 22, 30])
    loader = Loader(ArraySource(40, done=done), batch_size=3, drop_last=False)
    rows = [row for batch in loader for row in batch.rows.tolist()]
    assert sorted(rows) == done.tolist()
    assert rows == done[Epochs(8).rows(0, 8)].tolist()
    with pytest.raises(UsageError, match="done"):
        Loader(ArraySource(40, done=done[:0]), batch_size=3)


def test_views_over_sources_load_too():
    base = ArraySource(30)
    for source in (Subset(base, [4, 4, 29, 0, 7]), Subset(PlainSource(30), [1, 2, 3]), Concat([base, base])):
        for batch in Loader(source, batch_size=2, drop_last=False):
            assert_equals_source(batch, source)


# Content


def test_only_the_fields_asked_for_are_read():
    source = ArraySource(10, LONG)
    batch = next(iter(Loader(source, batch_size=4, fields=["flag", "image"])))
    assert list(batch) == ["image", "flag"]
    assert len(batch) == 2
    with pytest.raises(SchemaError, match="colour"):
        Loader(source, batch_size=4, fields=["colour"])


@pytest.mark.parametrize("gathers", [True, False])
def test_variable_fields_come_as_lists(gathers):
    source = (ArraySource if gathers else PlainSource)(10, LONG)
    batch = next(iter(Loader(source, batch_size=4)))
    assert isinstance(batch["boxes"], list)
    assert [text.split()[1] for text in batch["text"]] == [str(row) for row in batch.rows]
    tensors = next(iter(Loader(source, batch_size=4, output="torch")))
    assert [len(boxes) for boxes in tensors["boxes"]] == [row % 3 for row in tensors.rows]


def test_torch_tensors_share_memory_with_the_buffer():
    torch = pytest.importorskip("torch")
    batch = next(iter(Loader(ArraySource(10), batch_size=4, output="torch")))
    kinds = {name: tensor.dtype for name, tensor in batch.items()}
    assert kinds == {"number": torch.int64, "image": torch.uint8, "flag": torch.bool, "level": torch.uint16}
    starts = {tensor.data_ptr() % os.sysconf("SC_PAGE_SIZE") for tensor in batch.values()}
    assert starts == {0}


def test_keys_are_looked_up_ahead_when_asked():
    for batch in Loader(ArraySource(10), batch_size=4, keys=True):
        assert batch.row_keys() == [f"row-{row}" for row in batch.rows]


def test_a_transform_sets_the_fields_of_the_batch():
    def transform(record):
        return {"sum": record["image"].sum(), "double": record["level"] * np.uint16(2), "text": record["text"]}

    source = PlainSource(20)
    for batch in Loader(source, batch_size=6, transform=transform):
        rows = batch.rows
        np.testing.assert_array_equal(batch["double"], source.columns["level"][rows] * 2)
        np.testing.assert_array_equal(batch["sum"], source.columns["image"][rows].sum((1, 2), dtype=np.uint64))
        assert batch["text"] == [f"caption {row}" for row in rows]


def test_a_transform_that_changes_shapes_or_fields_is_refused():
    by_size = Loader(PlainSource(20), batch_size=6, transform=lambda record: {"a": np.zeros(record["number"] + 1)})
    with pytest.raises(SchemaError, match="field a: expected shape"):
        list(by_size)
    no_record = Loader(PlainSource(20), batch_size=6, transform=lambda record: record["image"])
    with pytest.raises(SchemaError, match="expected a dict"):
        list(no_record)
    names = itertools.count()
    by_name = Loader(PlainSource(20), batch_size=6, transform=lambda record: {f"a{next(names)}": np.zeros(3)})
    with pytest.raises(SchemaError, match="expected the fields a0"):
        list(by_name)


# Leases


def test_a_batch_held_is_never_overwritten_whatever_is_kept_of_it():
    torch = pytest.importorskip("torch")
    keepers = [
        lambda batch: batch,
        lambda batch: batch["image"],
        lambda batch: batch["image"][1:, ::2],
        lambda batch: batch["image"].reshape(-1)[3:],
        lambda batch: batch["level"].view(np.uint8),
        lambda batch: batch["image"].T[0],
        lambda batch: memoryview(batch["number"]),
        lambda batch: torch.from_numpy(batch["image"]),
        lambda batch: torch.from_numpy(batch["number"])[2:].view(-1),
        lambda batch: torch.from_numpy(batch["image"]).permute(2, 0, 1).untyped_storage(),
        lambda batch: np.asarray(batch["number"], copy=None)[None],
        lambda batch: np.broadcast_to(batch["number"], (3, 6)),
    ]
    loader = Loader(ArraySource(600), batch_size=6, epochs=None, max_leased=60)
    iterator = iter(loader)
    choose = random.Random(5)
    held = []
    for n in range(1500):
        kept = keepers[n % len(keepers)](next(iterator))
        held.append((kept, snapshot(kept)))
        if len(held) > 40:
            choose.shuffle(held)
            del held[choose.randrange(1, 41) :]
    assert all(snapshot(kept) == content for kept, content in held)
    assert loader.report()["buffers"] <= 60


def snapshot(kept):
    if isinstance(kept, Batch):
        return {name: np.asarray(values).tobytes() for name, values in kept.items()}
    return bytes(kept) if not hasattr(kept, "numpy") else kept.numpy().tobytes()


def test_torch_batches_and_their_views_hold_the_buffer():
    pytest.importorskip("torch")
    loader = Loader(ArraySource(600), batch_size=6, epochs=None, output="torch")
    iterator = iter(loader)
    views = [next(iterator)["image"].float_power(1).numpy() * 0 for _ in range(30)]  # copies hold nothing
    assert loader.report()["buffers"] <= 4
    views = [next(iterator)["image"][:, 1] for _ in range(30)]
    content = [view.clone() for view in views]
    for _ in range(50):
        next(iterator)
    assert all(bool((view == copy).all()) for view, copy in zip(views, content, strict=True))


def test_threads_that_hold_batches_never_see_them_change():
    loader = Loader(ArraySource(600), batch_size=6, epochs=None)
    iterator, lock, wrong = iter(loader), threading.Lock(), []

    def consume(seed):
        choose, held = random.Random(seed), []
        for _ in range(300):
            with lock:
                batch = next(iterator)
            held.append((batch["number"][::2], batch.rows[::2].tolist()))
            del batch
            if len(held) > 8:
                numbers, expected = held.pop(choose.randrange(8))
                if numbers.tolist() != expected:
                    wrong.append(expected)

    threads = [threading.Thread(target=consume, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_dropped_batches_bring_every_buffer_back():
    loader = Loader(ArraySource(600), batch_size=6, epochs=None)
    iterator = iter(loader)
    for _ in range(200):
        next(iterator)
    assert loader.report()["buffers"] <= 4
    pool = loader._pool
    del iterator
    wait_for(lambda: pool.free == pool.allocated)


def test_batches_in_reference_cycles_come_back_before_an_error():
    loader = Loader(ArraySource(600), batch_size=6, epochs=None, max_leased=8)
    gc.disable()
    try:
        for batch in itertools.islice(loader, 100):
            cycle = [batch]
            cycle.append(cycle)
            del cycle, batch
    finally:
        gc.enable()


def test_keeping_too_many_batches_warns_once_then_says_what_to_do(caplog):
    loader = Loader(ArraySource(600), batch_size=6, epochs=None, prefetch=2, max_leased=10)
    held = []
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError, match=r"max_leased") as caught:
        held.extend(loader)
    assert len(held) == 10
    assert "batch.copy()" in str(caught.value)
    assert len(caplog.records) == 1
    assert all(batch["number"].tolist() == batch.rows.tolist() for batch in held)
    held.clear()
    del caught
    assert len(next(iter(loader)).rows) == 6


def test_copies_do_not_hold_buffers():
    loader = Loader(ArraySource(600), batch_size=6, epochs=None, max_leased=6)
    copies = [batch.copy() for batch in itertools.islice(loader, 50)]
    assert all(batch["number"].tolist() == batch.rows.tolist() for batch in copies)
    assert loader.report()["buffers"] <= 5


def test_pinned_memory_without_a_gpu_is_refused():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UsageError, match="pin"):
        iter(Loader(ArraySource(60), batch_size=6, pin=True))


def test_max_leased_below_what_prefetch_needs_is_refused():
    with pytest.raises(UsageError, match="max_leased"):
        iter(Loader(ArraySource(60), batch_size=6, prefetch=4, max_leased=4))


def test_memory_is_flat_over_thousands_of_batches():
    schema = Schema([Field(name="x", dtype="uint8", shape=(4096,))])
    source = ArraySource(512, schema)
    source.columns["x"] = np.zeros((512, 4096), np.uint8)
    loader = Loader(source, batch_size=64, epochs=None)
    iterator = iter(loader)
    for _ in range(200):
        next(iterator)
    before = resident_bytes()
    for _ in range(4000):
        next(iterator)
    assert resident_bytes() - before < 10e6
    report = loader.report()
    assert report["buffers"] * report["buffer_bytes"] <= 4 * 64 * 4096


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_numpy_still_keeps_the_exporter_of_a_buffer_alive():
    """The pool stands on this: the chain of views ends in the exporter, and its weak reference fires last."""
    memory = bytearray(4096)
    root = (ctypes.c_ubyte * 4096).from_buffer(memory)
    fired = []
    reference = weakref.ref(root, fired.append)
    view = np.ndarray((8, 8), np.uint8, root)[2:].reshape(-1).view(np.int8)[::2]
    del root
    assert not fired
    del view
    assert fired == [reference]


# Devices


class SlowDevice:
    """A device of arrays in memory whose copies are done only when the test says so."""

    def __init__(self):
        self.queued = []
        self.handed_over = 0

    def start_copy(self, values):
        event = SlowEvent({name: (value, value.clone().zero_()) for name, value in values.items()})
        self.queued.append(event)
        return {name: target for name, (_, target) in event.pairs.items()}, event

    def hand_over(self, values, event):
        self.handed_over += 1


class SlowEvent:
    def __init__(self, pairs):
        self.pairs = pairs
        self.done = False

    def query(self):
        return self.done

    def synchronize(self):
        if not self.done:
            for source, target in self.pairs.values():
                target.copy_(source)
            self.done = True
            self.pairs = {}


def test_a_buffer_goes_back_only_when_its_copy_is_done():
    pytest.importorskip("torch")
    import torch

    pool = BufferPool(SCHEMA.fields, 6, usual=4, most=4, pinned=False)
    device = SlowDevice()
    transfers = Transfers(device)
    values = {name: torch.from_numpy(array) for name, array in pool.lease().items()}
    transfers.start(Batch(values, np.arange(6), range(6), []))
    del values
    taken = transfers.take()
    del taken  # the consumer is done with the device batch; the copy is still under way
    transfers.collect(2)
    assert (pool.allocated, pool.free) == (1, 0)
    device.queued[0].synchronize()
    transfers.collect(2)
    assert pool.free == 1


def test_copies_that_finish_late_still_carry_the_right_rows():
    pytest.importorskip("torch")
    device = SlowDevice()
    source = ArraySource(240)
    loader = Loader(source, batch_size=6, output="torch").to(device)
    found = []
    for batch in loader:
        found.append(batch)
        assert sum(not event.done for event in device.queued) <= 4
    for event in device.queued:
        event.synchronize()
    for batch in found:
        assert_equals_source(batch, source)
    assert [batch.rows.tolist() for batch in found] == drawn(Loader(source, batch_size=6))
    assert device.handed_over == len(found) == loader.state_dict()["consumed"] == 40
    assert loader.report()["buffers"] <= 7


def test_dropping_an_iterator_waits_for_its_copies():
    pytest.importorskip("torch")
    device = SlowDevice()
    loader = Loader(ArraySource(240), batch_size=6, output="torch").to(device)
    iterator = iter(loader)
    next(iterator)
    del iterator
    assert all(event.done for event in device.queued)
    assert loader.state_dict()["consumed"] == 1


def test_cpu_is_the_loader_itself_and_numpy_goes_nowhere():
    pytest.importorskip("torch")
    loader = Loader(ArraySource(20), batch_size=6, output="torch")
    assert next(iter(loader.to("cpu")))["image"].device.type == "cpu"
    with pytest.raises(UsageError, match="torch"):
        Loader(ArraySource(20), batch_size=6).to("cpu")
    with pytest.raises(UsageError, match="cuda"):
        loader.to("meta")


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_the_source():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    source = ArraySource(60_000, Schema([Field(name="image", dtype="uint8", shape=(3, 5))]))
    loader = Loader(source, batch_size=512, output="torch", epochs=2).to("cuda")
    expected = torch.from_numpy(source.columns["image"]).cuda()
    for batch in loader:
        assert batch["image"].device.type == "cuda"
        torch.testing.assert_close(batch["image"], expected[torch.from_numpy(batch.rows).cuda()], rtol=0, atol=0)
    assert loader.report()["buffers"] <= 7


# Threads, forks, pickles


def test_no_thread_outlives_its_iteration(loader_threads):
    loader = Loader(ArraySource(40), batch_size=4, threads=3)
    list(loader)
    assert not loader_threads()
    for _ in loader:
        assert len(loader_threads()) == 3
        break
    wait_for(lambda: not loader_threads())
    iterator = iter(loader)
    next(iterator)
    del iterator
    wait_for(lambda: not loader_threads())
    with pytest.raises(ZeroDivisionError):
        list(Loader(PlainSource(40), batch_size=4, transform=lambda record: {"a": 1 // (int(record["number"]) - 17)}))
    assert not loader_threads()


def test_a_newer_iterator_ends_the_older_one():
    loader = Loader(ArraySource(40), batch_size=4)
    old = iter(loader)
    next(old)
    new = iter(loader)
    with pytest.raises(UsageError, match="newer"):
        next(old)
    assert len(list(new)) == 9
    assert next(new, None) is None


def test_a_pickled_loader_goes_on_where_the_first_stood():
    loader = Loader(ArraySource(40), batch_size=4)
    iterator = iter(loader)
    next(iterator)
    other = pickle.loads(pickle.dumps(loader))
    assert drawn(other) == [batch.rows.tolist() for batch in iterator]


def test_a_loader_works_in_a_forked_child():
    loader = Loader(ArraySource(40), batch_size=4)
    iterator = iter(loader)
    next(iterator)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child():
        try:
            next(iterator)
        except UsageError as error:
            results.put(str(error))
        results.put(drawn(loader))

    process = context.Process(target=child)
    process.start()
    process.join(200)
    assert process.exitcode == 0
    assert "fork" in results.get()
    assert results.get() == [batch.rows.tolist() for batch in iterator]


# Failures


def test_an_error_in_a_thread_reaches_the_consumer_with_row_and_key():
    source = FaultySource(40, bad=[17])
    with pytest.raises(BadData, match="rotten") as caught:
        list(Loader(source, batch_size=4))
    assert any("row 17 (key 'row-17')" in note for note in caught.value.__notes__)


def test_batches_before_the_failing_one_are_given_and_counted():
    order = Epochs(40).rows(0, 40)
    loader = Loader(FaultySource(40, bad=[int(order[22])]), batch_size=4, threads=3)
    found = []
    with pytest.raises(BadData):
        found.extend(map(rows_of, loader))
    assert found == order[:20].reshape(5, 4).tolist()
    assert loader.state_dict()["consumed"] == 5


@pytest.mark.parametrize("schema", [SCHEMA, LONG])
@pytest.mark.parametrize("error", [BadData, RowFailed])
def test_a_bad_row_is_replaced_by_a_rule_that_no_topology_changes(schema, error):
    bad = set(range(30, 45))
    settings_ = {"batch_size": 12, "errors": "substitute", "max_failures": 100}

    def load(threads, world_size=1):
        source = FaultySource(200, bad=bad, schema=schema, error=error)
        ranks = [
            Loader(source, **settings_, threads=threads, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        batches = [list(loader) for loader in ranks]
        for batch in itertools.chain(*batches):
            assert_equals_source(batch, source)
        return [flat(map(rows_of, step)) for step in zip(*batches, strict=True)], ranks[0]

    rows, loader = load(1)
    order = Epochs(200).rows(0, 192).tolist()
    for position, row in enumerate(itertools.chain(*rows)):
        tries = (mix(0, position, attempt) % 200 for attempt in range(1, 9))
        expected = order[position] if order[position] not in bad else next(t for t in tries if t not in bad)
        assert row == expected
    report = loader.report()
    assert report["substituted"] == sum(row in bad for row in order)
    assert report["failed"].keys() == {error.__name__}
    assert load(3)[0] == load(2, 2)[0] == rows


def test_when_no_substitute_is_good_the_error_is_raised():
    loader = Loader(FaultySource(10, bad=range(10)), batch_size=2, errors="substitute", max_failures=1000)
    with pytest.raises(BadData, match="rotten"):
        list(loader)
    with pytest.raises(BadData, match="rotten") as caught:
        list(Loader(FaultySource(10, bad=range(10)), batch_size=2, errors="substitute", transform=dict))
    assert "row" in caught.value.__notes__[0]
    assert loader.report()["failed"] == {"BadData": 9}  # the first row, and eight in its place


@pytest.mark.parametrize("budget", [3, "1%"])
def test_more_failures_than_the_budget_stop_the_run(budget):
    loader = Loader(FaultySource(400, bad=range(20)), batch_size=4, errors="substitute", max_failures=budget)
    with pytest.raises(BudgetExceeded, match="BadData"):
        list(loader)
    assert sum(loader.report()["failed"].values()) in range(4 if budget == 3 else 11, 20)


def test_transient_errors_are_retried_and_counted():
    source = FaultySource(40, flaky={5: 3, 9: 2})
    loader = Loader(source, batch_size=4)
    batches = drawn(loader)
    assert sorted(flat(batches)) == list(range(40))
    assert 2 <= loader.report()["retried"] <= 5
    assert loader.report()["substituted"] == 0


def test_a_transient_error_that_lasts_is_raised_even_with_substitutes():
    source = FaultySource(40, flaky={5: 99})
    with pytest.raises(OSError, match="cable") as caught:
        list(Loader(source, batch_size=4, errors="substitute"))
    assert caught.value.errno == errno.EIO
    assert any("row 5 " in note for note in caught.value.__notes__)


@pytest.mark.parametrize("error", [TypeError, OSError, MemoryError, SystemExit])
def test_errors_of_a_program_are_never_substituted(error):
    def transform(record):
        if record["number"] == 11:
            raise error("a bug")
        return record

    with pytest.raises(error, match="a bug"):
        list(Loader(ArraySource(40), batch_size=4, errors="substitute", transform=transform))


def test_bad_data_found_by_a_transform_is_substituted():
    def transform(record):
        if record["number"] == 11:
            raise BadData("empty mask")
        return record

    loader = Loader(ArraySource(40), batch_size=4, errors="substitute", transform=transform)
    assert 11 not in flat(drawn(loader))
    assert loader.report()["failed"] == {"BadData": 1}


# Reading and reports


def test_io_is_chosen_by_residency_and_reported():
    wide = Schema([Field(name="x", dtype="uint8", shape=(1 << 17,))])
    for resident, schema, expected in [(1.0, wide, "mmap"), (0.0, wide, "pread"), (0.0, SCHEMA, "mmap")]:
        source = ArraySource(12, schema)
        source.columns["x"] = np.zeros((12, 1 << 17), np.uint8)
        source.resident = resident
        loader = Loader(source, batch_size=4)
        list(loader)
        assert source.modes == {expected}
        assert (loader.report()["io"], loader.report()["residency"]) == (expected, resident)
    loader = Loader(source, batch_size=4, io="direct")
    list(loader)
    assert loader.report()["io"] == "direct"


def test_the_report_counts_what_was_taken():
    loader = Loader(ArraySource(40), batch_size=4)
    list(loader)
    report = loader.report()
    assert (report["batches"], report["drawn"]) == (10, 40)
    assert report["bytes"] == 40 * sum(field.item_bytes for field in SCHEMA.fields)
    assert report["wait_s"] > 0
    assert report["failed"] == {}
    json.dumps(report)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 41}, "batch_size"),
        ({"world_size": 3}, "world_size"),
        ({"rank": 1}, "rank"),
        ({"threads": 0}, "threads"),
        ({"prefetch": 0}, "prefetch"),
        ({"epochs": 0}, "epochs"),
        ({"output": "jax"}, "output"),
        ({"errors": "ignore"}, "errors"),
        ({"io": "fast"}, "io"),
        ({"pin": "yes"}, "pin"),
        ({"max_failures": "many"}, "max_failures"),
        ({"max_failures": "101%"}, "max_failures"),
        ({"max_failures": -1}, "max_failures"),
        ({"sampler": Epochs(39)}, "sampler"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, word):
    with pytest.raises(UsageError, match=word):
        Loader(ArraySource(40), **{"batch_size": 4, **arguments})


def test_a_rank_without_a_share_of_the_last_batch_takes_as_many_steps():
    ranks = [
        list(Loader(ArraySource(9), batch_size=4, drop_last=False, rank=rank, world_size=4, errors="substitute"))
        for rank in range(4)
    ]
    assert [[batch.num_rows for batch in batches] for batches in ranks] == [[1, 1, 0]] * 3 + [[1, 1, 1]]
    assert ranks[0][-1]["image"].shape == (0, 3, 5)
    assert "0 rows" in repr(ranks[0][-1])


def test_an_interrupt_leaves_the_loader_ready(loader_threads):
    loader = Loader(PlainSource(40), batch_size=4, transform=interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        list(loader)
    assert not loader_threads()


def interrupted(record):
    raise KeyboardInterrupt
