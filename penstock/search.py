"""Search in a store of unit vectors: the exact nearest neighbours by cosine.

search_vectors.py    the vectors on disk, their check, their exact cosine      search_query.py       what is searched for
search_duplicates.py near duplicates                                           search_zero_shot.py   top-1 per category
search_map.py        a map in two dimensions                                   search_page.py        a page of crops

A fast scan gives each row a score that is wrong by at most a bound `beta`, which follows from the arithmetic used. If the
k-th largest of these is A, then k rows have a true score of A - beta and more; so a row of the true top k has one, too,
and its fast score is at least A - 2 beta. All such rows are scored exactly, and the best of them are the answer. Nothing
is approximate in it; the bound only decides how many rows are looked at twice.
"""

import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from penstock.errors import MissingExtra, UsageError
from penstock.search_vectors import CHUNK_ROWS, Vectors, as_vectors, unit_queries
from penstock.store import Store

if TYPE_CHECKING:
    import torch

Engine = Literal["auto", "numpy", "torch"]
_QUERIES = 64
"""Scored together; their fast scores of a chunk fit in a few megabytes."""
_HALF_QUERIES = 4
"""Up to so many queries are scored one by one in float16; more by one product of matrices in float32."""
_PENDING = 8192
_LOWEST = np.float32(-2)
_ROUNDING = 2.0**-24
_HALF_ROUNDING = 2.0**-11


def neighbours(
    store: Store | Vectors,
    queries: np.ndarray,
    *,
    top: int = 10,
    exclude: np.ndarray | None = None,
    engine: Engine = "auto",
    chunk_rows: int = CHUNK_ROWS,
    workers: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose vectors have the largest cosine with each query. Exact.

    The score is the cosine, rounded to a multiple of 2^-24 (`Vectors.scores`); rows of equal score come in row order. The
    answer does not depend on the engine, the chunks or the threads. Rows that are not done are passed over.

    Args:
        store: with a field `embedding` of unit vectors; or `Vectors` of another field. Whoever searches again and again
            keeps the `Vectors`: their check, one pass over all, is then done once.
        queries: (Q, dim) or (dim,) finite numbers of any length but 0.
        top: how many rows for each query.
        exclude: (Q, n) int64 rows that are not wanted for each query (the query itself, say); -1 for none.
        engine: "torch" scans float16 as it is, up to 4 queries at a time; "numpy" needs no other package. "auto" is torch
            where somebody has imported it already.
        chunk_rows: rows at a time, of each thread.
        workers: threads; the processors of this process by default.

    Returns:
        rows (Q, top) int64 and scores (Q, top) float32, best first; -1 and NaN where there are no more rows.

    Raises:
        UsageError: queries of another length, not finite or zero; a number that makes no sense.
        BadData: a stored vector is not of norm 1; the row is named.
        MissingExtra: engine "torch", and torch is not there.
    """
    vectors = as_vectors(store)
    if engine not in get_args(Engine):
        raise UsageError(f"engine: expected one of {', '.join(get_args(Engine))}, got {engine!r}")
    if top < 1 or chunk_rows < 1 or (workers is not None and workers < 1):
        raise UsageError(f"expected 1 and more, got top={top}, chunk_rows={chunk_rows}, workers={workers}")
    wanted = unit_queries(queries, vectors)
    unwanted = _exclusions(exclude, len(wanted), len(vectors))
    rows = np.full((len(wanted), top), -1, np.int64)
    scores = np.full((len(wanted), top), np.nan, np.float32)
    if not vectors.count:
        return rows, scores
    half = len(wanted) <= _HALF_QUERIES and _half(vectors, engine)
    for start in range(0, len(wanted), _QUERIES):
        group = wanted[start : start + _QUERIES]
        found = [_Best(vectors, query, top, unwanted[start + n]) for n, query in enumerate(group)]
        if half:
            _scan_half(vectors, found, chunk_rows, workers)
        else:
            _scan(vectors, found, chunk_rows, workers)
        for number, best in enumerate(found, start):
            best.settle()
            rows[number, : len(best.rows)] = best.rows
            scores[number, : len(best.rows)] = best.scores
    return rows, scores


@dataclass
class _Best:
    """The best rows of one query so far, and those that may yet be."""

    vectors: Vectors
    query: np.ndarray
    top: int
    exclude: np.ndarray
    beta: float = 0.0
    floor: float = float(_LOWEST)
    """A row whose fast score is below is not among the best."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    pending: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Rows in ascending order, and their fast scores."""

    def sift(self, start: int, fast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a chunk that may be among the best: rows and fast scores. Changes nothing but `fast`."""
        done = self.vectors.done
        if done is not None:
            fast[~done[start : start + len(fast)]] = -np.inf
        if len(self.exclude):
            inside = self.exclude[(self.exclude >= start) & (self.exclude < start + len(fast))]
            fast[inside - start] = -np.inf
        places = np.flatnonzero(fast >= self.floor)
        if len(places) > self.top:
            own = self._floor_of(fast[places])
            if own > self.floor:
                places = places[fast[places] >= own]
        return places + start, fast[places]

    def add(self, rows: np.ndarray, fast: np.ndarray) -> None:
        """Takes what `sift` gave."""
        if not len(rows):
            return
        self.pending.append((rows, fast))
        known = np.concatenate([each for _, each in self.pending])
        if len(known) >= self.top:
            self.floor = max(self.floor, self._floor_of(known))
        kept = [(each, values, values >= self.floor) for each, values in self.pending]
        self.pending = [(each[keep], values[keep]) for each, values, keep in kept]
        if sum(len(each) for each, _ in self.pending) > _PENDING + self.top:
            self.settle()

    def settle(self) -> None:
        """Scores exactly what is pending, and keeps the best."""
        fresh = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in self.pending)])
        self.pending = []
        rows = np.concatenate([self.rows, fresh])
        scores = np.concatenate([self.scores, self.vectors.scores(fresh, self.query)])
        order = np.lexsort((rows, -scores))[: self.top]
        self.rows, self.scores = rows[order], scores[order]
        if len(order) == self.top:
            self.floor = max(self.floor, float(self.scores[-1]) - self.beta)

    def _floor_of(self, fast: np.ndarray) -> float:
        return float(np.partition(fast, len(fast) - self.top)[len(fast) - self.top]) - 2 * self.beta


def _scan(vectors: Vectors, found: list[_Best], chunk_rows: int, workers: int | None) -> None:
    """Products of matrices in float32, by threads."""
    exact = np.stack([best.query for best in found])
    matrix = np.ascontiguousarray(exact.T, np.float32)
    for best, query in zip(found, exact, strict=True):
        best.beta = _bound(vectors.dim, query, query.astype(np.float32))

    def products(start: int, stop: int) -> np.ndarray:
        fast = np.empty((stop - start, len(found)), np.float32)
        for first, block in vectors.blocks(start, stop):
            np.matmul(block, matrix, out=fast[first - start : first - start + len(block)])
        return np.ascontiguousarray(fast.T)

    _sweep(vectors, found, products, chunk_rows, workers)


def _scan_half(vectors: Vectors, found: list[_Best], chunk_rows: int, workers: int | None) -> None:
    """Float16 as it lies on disk times one float16 query after the other, summed in float32 by torch."""
    import torch

    matrices = [(first, _tensor(view)) for first, view in vectors.views(0, len(vectors))]
    halves = [torch.from_numpy(best.query.astype(np.float16)) for best in found]
    for best, half in zip(found, halves, strict=True):
        best.beta = _bound(vectors.dim, best.query, half.numpy()) + 1.01 * _HALF_ROUNDING

    def products(start: int, stop: int) -> np.ndarray:
        fast = np.empty((len(found), stop - start), np.float32)
        for first, matrix in matrices:
            low, high = max(start, first), min(stop, first + len(matrix))
            for scores, half in zip(fast, halves, strict=True) if low < high else ():
                scores[low - start : high - start] = torch.mv(matrix[low - first : high - first], half).numpy()
        return fast

    _sweep(vectors, found, products, chunk_rows, workers)


def _sweep(
    vectors: Vectors,
    found: list[_Best],
    products: Callable[[int, int], np.ndarray],
    chunk_rows: int,
    workers: int | None,
) -> None:
    """Hands each query its fast scores. `products(start, stop)` are (Q, n) float32, of rows as long as they are stored.

    A thread takes the next chunk when it is through with one: a core that something else uses delays one chunk, not all.
    """
    scales = vectors.scales

    def sift(start: int, stop: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # rows that are not done may hold anything
            fast = products(start, stop)
            fast *= scales[start:stop]
        some = [best.sift(start, values) for best, values in zip(found, fast, strict=True)]
        with lock:
            for best, (rows, values) in zip(found, some, strict=True):
                best.add(rows, values)

    lock = threading.Lock()
    vectors.sweep(sift, chunk_rows=chunk_rows, workers=workers)


def _tensor(view: np.ndarray) -> "torch.Tensor":
    """The view as a tensor, without a copy; torch warns that it could be written to, which nobody does.

    Not for several threads at once: filters of warnings are the process's.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(view)


def _exclusions(exclude: np.ndarray | None, queries: int, rows: int) -> np.ndarray:
    """(Q, n) int64.

    Raises:
        UsageError: another shape, or rows that are not there.
    """
    found = np.zeros((queries, 0), np.int64) if exclude is None else np.asarray(exclude, np.int64)
    if found.ndim != 2 or len(found) != queries or (found.size and not (found.min() >= -1 and found.max() < rows)):
        raise UsageError(f"exclude: expected ({queries}, n) rows in -1..{rows - 1}, got shape {found.shape}: {found}")
    return found


def _bound(dim: int, exact: np.ndarray, used: np.ndarray) -> float:
    """How far a fast score may be from the true one.

    The query was rounded: by Cauchy and Schwarz that costs the length of the difference. A sum of `dim` products is wrong
    by at most dim roundings of the product of both lengths, whatever the order; the norm by half of that. A few more
    roundings are scale, result and the score itself. 1 % covers second orders and norms within `TOLERANCE` of 1.
    """
    shift = float(np.sqrt(np.sum((exact - used.astype(np.float64)) ** 2)))
    return 1.01 * (shift + (2 * dim + 16) * _ROUNDING)


def _half(vectors: Vectors, engine: Engine) -> bool:
    """Whether torch is to scan."""
    if engine == "numpy" or (engine == "auto" and "torch" not in sys.modules):
        return False
    try:
        import torch  # noqa: F401
    except ImportError as error:
        if engine == "auto":
            return False
        raise MissingExtra("torch", "train", "searching with engine torch") from error
    return vectors.store.schema[vectors.field].dtype == "float16" and _sums_in_float32()


@cache
def _sums_in_float32() -> bool:
    """Whether torch sums products of float16 in float32 on this processor, which the bound takes for granted.

    The products of the first half are positive, of the second negative: a sum in float16 would lose what its large middle
    cannot hold, while the result is small and its own rounding next to nothing.
    """
    import torch

    rng = np.random.default_rng(0)
    rows = np.abs(rng.standard_normal((64, 4096)))
    rows = (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float16)
    query = np.abs(rng.standard_normal(4096))
    query = (query / np.linalg.norm(query)).astype(np.float16)
    query[2048:] *= -1
    true = rows.astype(np.float64) @ query.astype(np.float64)
    found = torch.mv(torch.from_numpy(rows), torch.from_numpy(query)).numpy().astype(np.float64)
    return bool(np.all(np.abs(found - true) <= np.abs(true) * _HALF_ROUNDING * 1.01 + 4096 * _ROUNDING))
