"""Contracts: what every source and every reader promises, as test classes to inherit."""

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext

import numpy as np
import xxhash

from penstock.readers.base import Reader
from penstock.schema import Record
from penstock.source import Source


class SourceTests:
    """What every source promises. A test class inherits it and gives `make_source`."""

    def make_source(self) -> Source:
        """A source of at least two rows."""
        raise NotImplementedError

    def test_negative_index_counts_from_the_end(self) -> None:
        """`source[-1]` is the last row."""
        source = self.make_source()
        assert len(source) >= 2, "the contract needs at least two rows"
        assert_equal_records(source[-1], source[len(source) - 1])
        assert_equal_records(source[-len(source)], source[0])

    def test_index_outside_raises_index_error(self) -> None:
        """So that plain iteration ends."""
        source = self.make_source()
        for index in (len(source), -len(source) - 1):
            try:
                source[index]
            except IndexError:
                continue
            raise AssertionError(f"source[{index}] of {len(source)} rows raised no IndexError")

    def test_iteration_gives_every_row_once(self) -> None:
        """The old protocol of index and IndexError."""
        source = self.make_source()
        count = 0
        for _ in source:  # type: ignore[attr-defined]  # iterable through __getitem__
            count += 1
        assert count == len(source)

    def test_pickled_copy_reads_the_same(self) -> None:
        """A source goes into workers by pickle."""
        source = self.make_source()
        first = source[0]
        copy = pickle.loads(pickle.dumps(source))
        assert len(copy) == len(source)
        assert list(copy.keys) == list(source.keys)
        assert_equal_records(copy[0], first)
        assert_equal_records(copy[-1], source[-1])

    def test_threads_read_the_same(self) -> None:
        """Many threads share one source."""
        source = self.make_source()
        rows = list(range(len(source))) * 4
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(source.__getitem__, rows))
        for row, record in zip(rows, together, strict=True):
            assert_equal_records(record, source[row])

    def test_keys_are_unique_and_as_many_as_rows(self) -> None:
        """A key names a row."""
        source = self.make_source()
        assert len(source.keys) == len(source)
        assert len(set(source.keys)) == len(source)

    def test_records_fit_the_schema(self) -> None:
        """Every field of the schema is there and goes to disk without loss."""
        source = self.make_source()
        for row in range(len(source)):
            record = source[row]
            assert set(record) == set(source.schema), (
                f"row {row}: fields {sorted(record)}, schema {sorted(source.schema)}"
            )
            for name, field in source.schema.items():
                field.encode(record[name])

    def test_a_forked_process_reads_the_same(self) -> None:
        """Opened and used before the fork."""
        _read_in_child(self.make_source(), multiprocessing.get_context("fork"))

    def test_a_spawned_process_reads_the_same(self) -> None:
        """Pickled into a fresh interpreter."""
        _read_in_child(self.make_source(), multiprocessing.get_context("spawn"))

    def test_opening_again_gives_the_same(self) -> None:
        """Order and content do not depend on when it is opened."""
        assert _digest(self.make_source()) == _digest(self.make_source())


class ReaderTests(SourceTests):
    """What every dataset reader promises beside. A test class gives `make_reader`, which makes small files in genuine
    layout anew and opens them: equal files each time, two groups at least, so that opening twice can be compared."""

    decodes = 1
    """Pictures that one row costs: 1, or 0 for a dataset without pictures."""

    def make_reader(self) -> Reader:
        """A reader over small files."""
        raise NotImplementedError

    def make_source(self) -> Source:
        """The reader is a source."""
        return self.make_reader()

    def test_groups_cover_the_rows_in_order(self) -> None:
        """Contiguous, none empty, names unique; `group_of` finds them."""
        reader = self.make_reader()
        groups = list(reader.groups)
        assert [group.start for group in groups] == [0, *[group.stop for group in groups[:-1]]]
        assert groups[-1].stop == len(reader)
        assert all(group.start < group.stop for group in groups)
        assert len({group.name for group in groups}) == len(groups) >= 2
        owners = [reader.group_of(row) for row in range(len(reader))]
        assert owners == [number for number, group in enumerate(groups) for _ in range(group.start, group.stop)]

    def test_keys_are_text_of_one_line(self) -> None:
        """They go into keys.txt."""
        for key in self.make_reader().keys:
            assert isinstance(key, str)
            assert key
            assert "\n" not in key

    def test_one_row_costs_one_picture(self) -> None:
        """Random access decodes the row's picture and no other; a whole group decodes each of its pictures once."""
        reader = self.make_reader()
        for row in (len(reader) - 1, 0, len(reader) // 2):
            before = reader.pictures_decoded
            reader[row]
            assert reader.pictures_decoded - before == self.decodes
        before = reader.pictures_decoded
        first = reader.groups[0]
        rows = list(range(first.start, first.stop))
        together = reader.__getitems__(rows)
        parts = ("frame", "view")  # of a video, of a pair
        pictures = {
            (str(one.get("path", n)), *(int(one.get(part, 0)) for part in parts)) for n, one in enumerate(together)
        }
        assert reader.pictures_decoded - before <= self.decodes * len(pictures)
        for row, record in zip(rows, together, strict=True):
            assert_equal_records(record, reader[row])

    def test_annotations_cost_no_picture(self) -> None:
        """Fields that are not pixels are read without decoding the picture, and are the same."""
        reader = self.make_reader()
        cheap = [name for name, field in reader.schema.items() if field.kind not in ("image", "mask", "ids", "masks")]
        row = len(reader) - 1
        full, before = reader[row], reader.pictures_decoded
        alone = reader.read(row, cheap)
        assert reader.pictures_decoded == before
        assert_equal_records(alone, {name: full[name] for name in cheap})

    def test_every_field_says_what_it_is(self) -> None:
        """Axes as many as dimensions; a meaning; a box its format and frame."""
        for name, field in self.make_reader().schema.items():
            assert field.is_text or len(field.axes.split()) == len(field.shape), name
            assert field.meaning, name
            if field.kind in ("box", "boxes"):
                assert "XYWH" in field.meaning or "XYXY" in field.meaning, name
                assert "pixels" in field.meaning, name

    def test_fingerprints_are_stable_and_tell_rows_apart(self) -> None:
        """Equal for the same reader opened by pickle; another for each row."""
        reader = self.make_reader()
        prints = [reader.fingerprint(row) for row in range(len(reader))]
        copy = pickle.loads(pickle.dumps(reader))
        assert prints == [copy.fingerprint(row) for row in range(len(copy))]
        assert len(set(prints)) == len(prints)

    def test_description_is_plain_data(self) -> None:
        """`penstock info` prints it as JSON."""
        json.dumps(self.make_reader().describe())


def _digest(source: Source) -> str:
    """Keys and records of a source as one hash."""
    hasher = xxhash.xxh3_128("\n".join(source.keys).encode("utf-8", "surrogateescape"))
    for row in range(len(source)):
        for name, value in sorted(source[row].items()):
            content = value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes()
            hasher.update(f"{name} {getattr(value, 'dtype', 'str')} {getattr(value, 'shape', '')}".encode())
            hasher.update(content)
    return hasher.hexdigest()


def _read_in_child(source: Source, context: BaseContext) -> None:
    """A child process reads all rows; what it saw is compared with what this process sees."""
    here = _digest(source)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_digest, args=(source, sender))  # type: ignore[attr-defined]  # every context has it
    child.start()
    sender.close()
    try:
        there, process = receiver.recv() if receiver.poll(120) else ("no answer in 120 s", 0)
    except EOFError:
        there, process = "the child ended without an answer", 0
    child.join()
    assert there == here
    assert process != os.getpid()


def _send_digest(source: Source, sender: "multiprocessing.connection.Connection[object, object]") -> None:
    sender.send((_digest(source), os.getpid()))


def assert_equal_records(left: Record, right: Record) -> None:
    """Two records have the same fields, types, shapes and values (NaN equals NaN).

    Raises:
        AssertionError: they differ; the message names the field.
    """
    assert set(left) == set(right), f"fields {sorted(left)} and {sorted(right)}"
    for name, value in left.items():
        other = right[name]
        if isinstance(value, str) or isinstance(other, str):
            assert value == other, f"field {name}: {value!r} and {other!r}"
        else:
            np.testing.assert_array_equal(value, other, err_msg=f"field {name}", strict=True)
