"""Source: random access to records. Candidate: a row that a source offers to a job. Views over sources are sources."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import xxhash

from penstock.errors import SchemaError, UsageError
from penstock.schema import Record, Schema

_T = TypeVar("_T")


@runtime_checkable
class Source(Protocol):
    """Random access to records.

    Implementations are safe to read from many threads, survive a fork, and pickle into workers (open files lazily, drop
    handles when pickled). A minimal one is four members: `schema`, `keys`, `__len__`, `__getitem__`.
    """

    @property
    def schema(self) -> Schema:
        """The fields of every record."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """One id per row; looked up by position, never held as a list for large sources."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """The record of a row; a negative index counts from the end; IndexError outside."""
        ...


@dataclass(frozen=True)
class Group:
    """Contiguous rows that belong together: a video, a scene, an image with its segments."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A row that a source offers to a job, in input order, before anything is computed."""

    key: str
    origin: str = ""
    """Name of the file it comes from, without folders: tells a changed input from a second row of the same id."""
    cheap: int = 0
    """64-bit hash of what is known without reading: names, sizes, times, what is cut off. Equal means unchanged."""
    index: int | None = None
    """Position in the source, where the source has random access."""
    record: Record | None = None
    """The record itself, where the input can be read only once and in order."""
    failure: str = ""
    """Why the row cannot be read, where that is known already (a lone member of a pair, say)."""


@dataclass(frozen=True)
class Problem:
    """A fault of a whole input file, beside the rows that it cost (a truncated archive, say)."""

    path: str
    error: str
    """Class name of the error."""
    message: str


class Offers(Protocol):
    """What a job works on: candidates in input order, and random access to those that carry an index.

    Offers with `__getitems__(indices)` are asked for the rows of a batch at once, and row by row where that fails.
    """

    @property
    def schema(self) -> Schema:
        """The fields of the records offered."""
        ...

    @property
    def problems(self) -> list[Problem]:
        """Faults of whole input files met so far."""
        ...

    def candidates(self) -> Iterator[Candidate]:
        """The rows offered, in input order. May be iterated once if the input is a pipe."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """The record of a candidate by its `index`; called in workers."""
        ...


class SourceOffers:
    """Offers every row of a source, by index. `cheap` is the source's `fingerprint(index)`; of a source without one, the
    hash of the key alone."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.schema = source.schema
        self.problems: list[Problem] = []

    def candidates(self) -> Iterator[Candidate]:
        """All rows, in order."""
        keys = self.source.keys
        fingerprint = getattr(self.source, "fingerprint", None)
        for index in range(len(self.source)):
            cheap = xxhash.xxh3_64_intdigest(keys[index].encode()) if fingerprint is None else fingerprint(index)
            yield Candidate(key=keys[index], cheap=cheap, index=index)

    def __getitem__(self, index: int) -> Record:
        return self.source[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Records of several rows, in one call of the source where it has one: what rows share is read once."""
        batched: Callable[[Sequence[int]], list[Record]] | None = getattr(self.source, "__getitems__", None)
        return batched(indices) if batched else [self.source[index] for index in indices]


class Subset:
    """Some rows of a source, in a given order. Rows may repeat."""

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.rows = np.asarray(rows, np.int64)
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < len(source)):
            found = f"{self.rows.min()}..{self.rows.max()}"
            raise UsageError(f"Subset: rows must lie in 0..{len(source) - 1}, got {found}")
        self.schema = source.schema

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the chosen rows."""
        return Lookup(len(self), lambda i: self.source.keys[int(self.rows[i])])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.rows[check_index(index, len(self))])]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Records of several rows; torch's DataLoader asks for a batch this way."""
        rows = self.rows[[check_index(index, len(self)) for index in indices]].tolist()
        batched = getattr(self.source, "__getitems__", None)
        return batched(rows) if batched else [self.source[row] for row in rows]

    def gather(
        self, rows: np.ndarray, fields: Sequence[str] | None, out: Mapping[str, np.ndarray], *, io: str = "mmap"
    ) -> None:
        """As `Store.gather`, where the underlying source has it."""
        gather = getattr(self.source, "gather", None)
        if gather is None:
            raise UsageError(f"Subset: {type(self.source).__name__} has no gather; read records one by one")
        gather(self.rows[rows], fields, out, **({} if io == "mmap" else {"io": io}))

    def done_rows(self) -> np.ndarray | None:
        """Which of the chosen rows are done, as positions in this subset; None if all are."""
        done = getattr(self.source, "done_rows", lambda: None)()
        return None if done is None else np.flatnonzero(np.isin(self.rows, done))

    def residency(self, rows: Sequence[int] | np.ndarray, fields: Sequence[str] | None = None) -> float:
        """As `Store.residency`; 1.0 where the underlying source cannot say."""
        probe = getattr(self.source, "residency", None)
        return 1.0 if probe is None else float(probe(self.rows[np.asarray(rows)], fields))

    def digest(self) -> str:
        """Identity of the snapshot: the underlying source's, and the rows chosen."""
        inner = getattr(self.source, "digest", lambda: "\n".join(self.source.keys))()
        return xxhash.xxh3_128_hexdigest(inner.encode() + self.rows.tobytes())


class Concat:
    """Sources of one schema, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise UsageError("Concat: expected at least one source")
        for source in sources[1:]:
            if source.schema != sources[0].schema:
                raise SchemaError("Concat: the schemas differ; bring them together with Map or by choosing fields")
        self.sources = list(sources)
        self.schema = sources[0].schema
        self._ends = np.cumsum([len(source) for source in sources])

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all sources, in order."""

        def key(index: int) -> str:
            source, row = self._locate(index)
            return source.keys[row]

        return Lookup(len(self), key)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        source, row = self._locate(check_index(index, len(self)))
        return source[row]

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self.sources[number], index - start


class Map:
    """A source whose records pass through a function, which states the schema it gives."""

    def __init__(self, source: Source, function: Callable[[Record], Record], schema: Schema) -> None:
        self.source = source
        self.function = function
        self.schema = schema

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the underlying source."""
        return self.source.keys

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.function(self.source[index])


def snapshot(source: Source) -> tuple[str, np.ndarray | None]:
    """Identity of what can be drawn now, and the (R,) int64 rows that are done, or None for all."""
    done = getattr(source, "done_rows", None)
    rows = None if done is None else done()
    if hasattr(source, "digest"):
        digest = str(source.digest())
    else:  # all that a plain source offers without reading it: its fields, its length and some keys
        spread = np.linspace(0, len(source) - 1, min(64, len(source)), dtype=np.int64).tolist()
        sample = [source.keys[i] for i in spread]
        digest = xxhash.xxh3_128_hexdigest(repr((source.schema.to_json(), len(source), sample)).encode())
    chosen = [values for values in (rows, getattr(source, "rows", None)) if isinstance(values, np.ndarray)]
    return "-".join([digest, *(xxhash.xxh3_64_hexdigest(values.tobytes()) for values in chosen)]), rows


def check_index(index: int, length: int) -> int:
    """The index counted from the front.

    Raises:
        IndexError: outside -length..length-1.
    """
    if not -length <= index < length:
        raise IndexError(f"row {index} of {length} rows")
    return index + length if index < 0 else index


class Lookup(Sequence[_T]):
    """A sequence whose members are computed on demand: the keys or the groups of a large source."""

    def __init__(self, length: int, member: Callable[[int], _T]) -> None:
        self._length = length
        self._member = member

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> _T | list[_T]:  # type: ignore[override]
        if isinstance(index, slice):
            return [self._member(i) for i in range(*index.indices(self._length))]
        return self._member(check_index(index, self._length))
