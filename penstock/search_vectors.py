"""Vectors: the unit vectors of a store as one matrix that stays on disk, checked once, gone over in blocks.

A float16 number is a float32 number with other exponents: sign, exponent and fraction moved to their places, as integers,
then times 2^112. That is exact for every finite number, and several times as fast as NumPy's own conversion.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.store import Store

FIELD = "embedding"
"""Name of the field that `penstock embed` writes."""

TOLERANCE = 2e-3
"""How far from 1 the norm of a stored vector may be. Rounding a unit vector to float16 moves it by less than 5e-4."""

CHUNK_ROWS = 32768
"""Rows that one thread goes over before it hands in what it found."""

_INNER_BYTES = 768 << 10
"""Of float32 numbers at a time: they stay in the second-level cache."""
_EXACT_ROWS = 2048
_GRID = 2.0**24
_NO_HIGH_EXPONENT = np.int32(-0x70000001)
_REBIAS = np.float32(2.0**112)
_scratch = threading.local()
_T = TypeVar("_T")


class Vectors:
    """The unit vectors of a store, (rows, dim) float16 or float32, memory-mapped.

    Attributes:
        store: where they lie.
        field: their name.
        dim: numbers of a vector.
    """

    def __init__(self, store: Store, field: str = FIELD) -> None:
        """Opens a column; reads nothing.

        Raises:
            UsageError: the store has no such field, or it does not hold vectors of float16 or float32.
        """
        if field not in store.schema:
            fields = ", ".join(store.schema)
            raise UsageError(f"{store.path}: no field {field}; the fields are {fields}; penstock embed makes vectors")
        known = store.schema[field]
        if known.is_variable or len(known.shape) != 1 or known.dtype not in ("float16", "float32"):
            found = f"{known.dtype} {known.shape}"
            raise UsageError(f"{store.path}: field {field}: expected float16 or float32 of shape (D,), got {found}")
        self.store = store
        self.field = field
        self.dim = known.item_shape[0]
        self._views = [view for view in store.column_views(field) if len(view)]
        self._starts = np.cumsum([0, *(len(view) for view in self._views)], dtype=np.int64)

    def __len__(self) -> int:
        """Rows of the store, done or not."""
        return len(self.store)

    @cached_property
    def done(self) -> np.ndarray | None:
        """(rows,) bool: which rows hold a vector; None if all do. As of the first time it is asked for."""
        rows = self.store.done_rows()
        if rows is None:
            return None
        mask = np.zeros(len(self), np.bool_)
        mask[rows] = True
        return mask

    @cached_property
    def count(self) -> int:
        """Number of rows that hold a vector."""
        return len(self) if self.done is None else int(self.done.sum())

    @cached_property
    def scales(self) -> np.ndarray:
        """(rows,) float32: 1 / norm of each row, 0 for rows that are not done. One pass over all vectors, once.

        Raises:
            BadData: a row is not of norm 1 within `TOLERANCE`, or not finite; the first such row is named.
        """
        if not self.dim:
            raise BadData(f"{self.store.path}: field {self.field}: expected vectors of 1 number and more, got 0")
        norms = np.empty(len(self), np.float32)

        def measure(start: int, stop: int) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for first, block in self.blocks(start, stop):
                    np.sqrt(np.einsum("nd,nd->n", block, block), out=norms[first : first + len(block)])

        self.sweep(measure)
        wrong = ~(np.abs(norms - 1) <= TOLERANCE)
        if self.done is not None:
            wrong &= self.done
        if wrong.any():
            self._refuse(int(np.argmax(wrong)), int(wrong.sum()))
        scales = np.zeros(len(self), np.float32)
        return np.divide(1, norms, out=scales, where=True if self.done is None else self.done)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """These rows as float32, a few hundred at a time: (first row, (n, dim) array that the next step overwrites)."""
        size = max(16, _INNER_BYTES // (4 * max(1, self.dim)))
        buffer = _buffer(size * self.dim).reshape(size, self.dim)
        for first, view in self.views(start, stop):
            for offset in range(0, len(view), size):
                part = view[offset : offset + size]
                block = buffer[: len(part)]
                widen(part, block)
                yield first + offset, block

    def views(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """These rows as they are on disk: (first row, view), cut where a part of the store ends."""
        for begin, view in zip(self._starts.tolist(), self._views, strict=False):
            low, high = max(start, begin), min(stop, begin + len(view))
            if low < high:
                yield low, view[low - begin : high - begin]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim) float64 copies of some rows, int64, each in 0..len-1. Whether they are done is not looked at."""
        found = np.empty((len(rows), self.dim), np.float64)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            found[places] = self._views[owner][rows[places] - self._starts[owner]]
        return found

    def scores(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """The cosine of some rows with a query, as every command reports it.

        In float64, sums row by row, then rounded to a whole multiple of 2^-24, as fine as float32 is below 1: it depends
        on the two vectors alone, not on which rows are asked for with it, and rounding errors make no order.

        Args:
            rows: (n,) int64.
            query: (dim,) float64 of norm 1; or (n, dim), one for each row.

        Returns:
            (n,) float32, -1..1.
        """
        found = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _EXACT_ROWS):
            part = slice(start, start + _EXACT_ROWS)
            values = self.take(rows[part])
            products = np.sum(values * (query if query.ndim == 1 else query[part]), axis=1)
            np.multiply(values, values, out=values)
            cosines = products / np.sqrt(np.sum(values, axis=1))
            found[part] = np.clip(np.rint(cosines * _GRID), -_GRID, _GRID) / _GRID + 0.0
        return found

    def unit(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim) float64 of norm 1: some rows, which must be done."""
        values = self.take(rows)
        return np.asarray(values / np.sqrt(np.sum(values * values, axis=1))[:, None])

    def sweep(
        self, function: Callable[[int, int], _T], *, chunk_rows: int = CHUNK_ROWS, workers: int | None = None
    ) -> list[_T]:
        """`function(start, stop)` over all rows in chunks, by threads; the results in row order."""
        starts = range(0, len(self), chunk_rows)
        spans = [(start, min(start + chunk_rows, len(self))) for start in starts]
        count = min(len(spans), workers or processors())
        if count <= 1:
            return [function(*span) for span in spans]
        with ThreadPoolExecutor(count, thread_name_prefix="penstock-search") as pool:
            return list(pool.map(lambda span: function(*span), spans))

    def _refuse(self, row: int, count: int) -> None:
        vector = self.take(np.array([row]))[0]
        finite = bool(np.isfinite(vector).all())
        norm = f"a norm of {np.sqrt(np.sum(vector * vector)):.6g}" if finite else "NaN or infinity in it"
        more = f" ({count:,} rows are like this)" if count > 1 else ""
        raise BadData(
            f"{self.store.path}: {self.field} of row {row} ({self.store.keys[row]}): expected a vector of norm 1, "
            f"got {norm}{more}; compute it again with penstock embed, or divide by the norm before writing"
        )


def widen(values: np.ndarray, out: np.ndarray) -> None:
    """(n, dim) float16 or float32 into a C-contiguous float32 array of the same shape; exact where finite.

    A float16 infinity or NaN becomes a number of 65536 and more.
    """
    if values.dtype != np.float16:
        out[...] = values
        return
    bits = out.view(np.int32)
    bits[...] = values.view(np.int16)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _NO_HIGH_EXPONENT, out=bits)
    np.multiply(out, _REBIAS, out=out)


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_vectors(store: Store | Vectors) -> Vectors:
    """The vectors of a store in its field `embedding`; vectors as they are."""
    return store if isinstance(store, Vectors) else Vectors(store)


def unit_queries(queries: np.ndarray, vectors: Vectors) -> np.ndarray:
    """Queries as float64 of norm 1.

    Args:
        queries: (Q, dim) or (dim,) numbers; their length does not matter.
        vectors: what is to be searched.

    Returns:
        (Q, dim) float64.

    Raises:
        UsageError: another number of dimensions, not finite, or all zeros.
    """
    found = np.atleast_2d(np.asarray(queries, np.float64))
    if found.ndim != 2 or found.shape[1] != vectors.dim:
        spec = vectors.store.attributes.get("spec", "an unnamed model")
        raise UsageError(
            f"queries: expected (Q, {vectors.dim}), as {vectors.store.path} has it (from {spec}), got {np.shape(queries)}; "
            f"embed the query with the model that made the store"
        )
    largest = np.max(np.abs(found), axis=1, initial=0.0)
    for number in np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))[:1].tolist():
        what = "all zeros" if largest[number] == 0 else "NaN or infinity in it"
        raise UsageError(f"queries: number {number}: expected finite numbers, not all of them zero, got {what}")
    found = found / largest[:, None]
    return np.asarray(found / np.sqrt(np.sum(found * found, axis=1))[:, None])


def _buffer(size: int) -> np.ndarray:
    """Warm float32 memory of this thread."""
    buffer: np.ndarray | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _scratch.buffer = np.zeros(size, np.float32)
    return buffer[:size]
