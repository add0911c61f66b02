"""Filling a batch from a source, in a loader's threads: bulk gather where it can be, row by row where it must be."""

import errno
import inspect
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, cast

import numpy as np

from penstock.errors import BadData, PenstockError, RowError, SchemaError, StoreCorrupt
from penstock.samplers import mix
from penstock.schema import Field, Record, Schema, Value
from penstock.source import Source, Subset

T = TypeVar("T")

Transform = Callable[[Record], Record]
"""A function from record to record, called in the loader's threads."""

BAD_ROW = (BadData, RowError, StoreCorrupt)
"""What says that a row's bytes are wrong: another row may stand in, if the caller allows it."""

TRANSIENT = frozenset(
    number
    for name in ("EIO", "EAGAIN", "ETIMEDOUT", "ESTALE", "EINTR", "EBUSY", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED",
                 "EPIPE", "ENETDOWN", "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO")
    if (number := getattr(errno, name, None)) is not None
)  # fmt: skip
"""errno values of a failed read that a later attempt may not meet."""

RETRY_WAITS_S = (0.02, 0.1, 0.5)
"""Seconds before each further attempt at a transient failure."""

MAX_SUBSTITUTES = 8
"""Rows tried in place of a bad one before its error is raised."""

WARM_SHARE = 0.6
"""From this share of resident pages on, data count as warm."""

LARGE_ROW_BYTES = 1 << 16
"""From here on a positioned read of a cold row beats page faults."""


class Gathers(Protocol):
    """A source that copies fixed fields of many rows at once; see `Store.gather`."""

    def gather(self, rows: np.ndarray, fields: Sequence[str] | None, out: Mapping[str, np.ndarray]) -> None:
        """Fills out[name] (N, *field.shape) for rows (N,) int64."""
        ...


class Tally:
    """What happened while rows were filled."""

    __slots__ = ("failed", "retried", "substituted")

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        """Class of the error -> rows read in vain."""
        self.retried = 0
        """Reads repeated after a transient failure."""
        self.substituted = 0
        """Rows that another row stands in for."""

    def add(self, other: "Tally") -> None:
        """Adds the counts of another."""
        self.failed.update(other.failed)
        self.retried += other.retried
        self.substituted += other.substituted


class Job:
    """A batch being filled. Parts of it are filled by several threads; each touches its own rows only."""

    __slots__ = ("columns", "errors", "keys", "lists", "positions", "remaining", "rows", "tally")

    def __init__(self, rows: np.ndarray, positions: range, columns: dict[str, np.ndarray], lists: list[str]) -> None:
        self.rows = rows
        self.positions = positions
        self.columns = columns
        self.lists: dict[str, list[Value]] = {name: [""] * len(rows) for name in lists}
        self.keys: list[str] | None = None
        """The rows' keys, where they were asked for."""
        self.remaining = 0
        """Parts that are not filled yet. Only the consumer's thread counts."""
        self.errors: list[tuple[int, BaseException]] = []
        """First row of a part -> what ended it."""
        self.tally = Tally()


class Part:
    """Rows start..stop-1 of a job: what one thread fills at a time."""

    __slots__ = ("cursor", "error", "job", "start", "stop", "tally")

    def __init__(self, job: Job, start: int, stop: int) -> None:
        self.job = job
        self.start = start
        self.stop = stop
        self.tally = Tally()
        self.error: BaseException | None = None
        self.cursor = -1
        """The row of the job that is read by itself just now; -1 while rows are read together."""


class Filler:
    """Reads rows of a source into jobs. Safe to use from many threads.

    Args:
        source: where rows come from.
        rows: (N,) int64 rows of the source that may be drawn; None for all.
        fields: names of the fields read; None for all.
        transform: applied to each record, or None.
        substitute: whether another row may stand in for a bad one.
        seed: of the choice of substitutes.
    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray | None,
        fields: Sequence[str] | None,
        *,
        transform: Transform | None,
        substitute: bool,
        seed: int,
    ) -> None:
        self.source = source
        self.rows = rows
        self.num_rows = len(source) if rows is None else len(rows)
        self.read_schema = source.schema.select(fields)
        self.transform = transform
        self.substitute = substitute
        self.seed = seed
        self.io = "mmap"
        self.gathered: list[str] = []
        if transform is None and can_gather(source):
            self.gathered = [field.name for field in self.read_schema.fields if not field.is_variable]
        read = getattr(source, "read", None)
        self._read: Callable[[int, list[str]], Record] | None = (
            read if read is not None and _accepts(source, "read", "fields") else None
        )
        self._takes_io = bool(self.gathered) and _accepts(source, "gather", "io")
        self.schema = self.read_schema
        """The fields of a batch."""
        self.single: list[Field] = []
        """The fields that are read row by row."""
        self._settle(self.read_schema)

    def learn(self, position: int, index: int) -> None:
        """Where there is a transform, finds the schema of what it gives from the record at this position.

        Raises:
            SchemaError: the transform gives values that no field can hold.
        """
        if self.transform is None:
            return
        row = self.row(index)
        for attempt in range(MAX_SUBSTITUTES + 1):
            try:
                self._settle(self._schema_of(self._record(row, Tally())))
                return
            except BAD_ROW as error:
                if not self.substitute or attempt == MAX_SUBSTITUTES:
                    error.add_note(f"while reading row {row} to learn what the transform gives")
                    raise
                row = self._stand_in(position, attempt + 1)

    def row(self, index: int) -> int:
        """The source's row of a sampler's row."""
        return index if self.rows is None else int(self.rows[index])

    def fill(self, part: Part) -> None:
        """Fills the part's rows.

        Raises:
            Exception: what a source or a transform raises; a bad row only if none may stand in for it.
        """
        done = self._gather_all(part)
        if done and not self.single:
            return
        for i in range(part.start, part.stop):
            part.cursor = i
            self._fill_row(part, i, done)

    def _gather_all(self, part: Part) -> bool:
        if not self.gathered:
            return True
        try:
            self._gather(part.job, part.start, part.stop)
        except BAD_ROW:
            return False
        except OSError as error:
            if not is_transient(error):
                raise
            return False
        return True

    def _gather(self, job: Job, start: int, stop: int) -> None:
        out = {name: job.columns[name][start:stop] for name in self.gathered}
        source = cast(Gathers, self.source)
        if self._takes_io:
            source.gather(job.rows[start:stop], self.gathered, out, io=self.io)  # type: ignore[call-arg]  # probed
        else:
            source.gather(job.rows[start:stop], self.gathered, out)

    def _fill_row(self, part: Part, i: int, gathered: bool) -> None:
        job = part.job
        for attempt in range(MAX_SUBSTITUTES + 1):
            if attempt:
                job.rows[i] = self._stand_in(job.positions[i], attempt)
            try:
                self._put(part, i, gathered and not attempt)
            except BAD_ROW as error:
                part.tally.failed[type(error).__name__] += 1
                if not self.substitute or attempt == MAX_SUBSTITUTES:
                    raise
            else:
                part.tally.substituted += attempt > 0
                return

    def _put(self, part: Part, i: int, gathered: bool) -> None:
        job = part.job
        if self.gathered and not gathered:
            read_with_retries(lambda: self._gather(job, i, i + 1), part.tally)
        if not self.single:
            return
        record = self._record(int(job.rows[i]), part.tally)
        if self.transform is not None and record.keys() != self.schema.keys():
            raise SchemaError(f"transform: expected the fields {', '.join(self.schema)}, got {', '.join(record)}")
        for field in self.single:
            value = record[field.name]
            if field.is_variable:
                job.lists[field.name][i] = value
            else:
                job.columns[field.name][i] = field.encode(value)

    def _record(self, row: int, tally: Tally) -> Record:
        names = list(self.read_schema) if self.transform else [field.name for field in self.single]
        read = self._read
        whole = read_with_retries(lambda: read(row, names) if read else self.source[row], tally)
        record = {name: whole[name] for name in names}
        if self.transform is None:
            return record
        given = self.transform(record)
        if not isinstance(given, dict):
            raise SchemaError(f"transform: expected a dict of fields, got {type(given).__name__}")
        return given

    def _schema_of(self, record: Record) -> Schema:
        found = []
        for name, value in record.items():
            known = self.read_schema.get(name)
            if known is not None and known.is_variable:
                found.append(known)
            elif isinstance(value, str):
                found.append(Field(name=name, dtype="str"))
            else:
                array = np.asarray(value)
                found.append(Field(name=name, dtype=array.dtype.name, shape=array.shape))
        return Schema(found)

    def _settle(self, schema: Schema) -> None:
        self.schema = schema
        self.single = [field for field in schema.fields if field.name not in self.gathered]

    def _stand_in(self, position: int, attempt: int) -> int:
        return self.row(mix(self.seed, position, attempt) % self.num_rows)


def read_with_retries(read: Callable[[], T], tally: Tally) -> T:
    """What `read` gives; a failure that a later attempt may not meet is tried again a few times, and counted.

    Raises:
        OSError: the last attempt failed too.
    """
    for wait_s in RETRY_WAITS_S:
        try:
            return read()
        except OSError as error:
            if not is_transient(error):
                raise
        tally.retried += 1
        time.sleep(wait_s)
    return read()


def is_transient(error: OSError) -> bool:
    """Whether reading again may help: decided by errno, never for an error that penstock raised on purpose."""
    if isinstance(error, PenstockError):
        return False
    return error.errno in TRANSIENT or isinstance(error, TimeoutError | ConnectionError | InterruptedError)


def can_gather(source: Source) -> bool:
    """Whether the source, under any subsets, copies many rows at once."""
    while isinstance(source, Subset):
        source = source.source
    return hasattr(source, "gather")


def choose_io(filler: Filler, rows: np.ndarray) -> tuple[str, float | None]:
    """How to read fixed fields, and the share of their pages found in the page cache (None where nobody can say).

    Warm data and small rows: the memory map. Cold large rows: positioned reads through the page cache where all rows
    fit into half of the memory, so that the next epoch is warm; past the page cache where they do not.
    """
    probe = getattr(filler.source, "residency", None)
    if probe is None or not filler.gathered or not len(rows):
        return "mmap", None
    named = _accepts(filler.source, "residency", "fields")
    share = float(probe(rows, filler.gathered) if named else probe(rows))
    row_bytes = sum(filler.read_schema[name].item_bytes for name in filler.gathered)
    if share >= WARM_SHARE or row_bytes < LARGE_ROW_BYTES:
        return "mmap", share
    return ("pread" if _data_bytes(filler) < _memory_bytes() / 2 else "direct"), share


def should_warm(filler: Filler, share: float | None) -> bool:
    """Whether reading all of the data once, in order, beats a seek per row: cold small rows that fit into half of memory."""
    if share is None or share >= WARM_SHARE or not hasattr(filler.source, "warm"):
        return False
    small = sum(filler.read_schema[name].item_bytes for name in filler.gathered) < LARGE_ROW_BYTES
    return small and _data_bytes(filler) < _memory_bytes() / 2


def _data_bytes(filler: Filler) -> int:
    return filler.num_rows * sum(filler.read_schema[name].item_bytes for name in filler.gathered)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _accepts(source: object, method: str, parameter: str) -> bool:
    return parameter in inspect.signature(getattr(source, method)).parameters
