"""Near duplicates: all pairs of rows whose cosine reaches a threshold, exactly, joined to groups."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from penstock.errors import UsageError
from penstock.search_vectors import Vectors, as_vectors
from penstock.store import Store

MAX_ROWS = 200_000
"""More are compared only by who says so: the time grows with the square."""

_BLOCK_ROWS = 2048
_ROUNDING = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What `duplicates` found.

    Two rows are in one group if a chain of pairs leads from one to the other; they need not be a pair themselves.
    """

    threshold: float
    rows: int
    """Compared with each other."""
    pairs: int
    """Of a cosine of the threshold and more."""
    groups: tuple[np.ndarray, ...]
    """Rows (int64, ascending) of each group of two and more, by first row. The first row stands for its group."""

    @property
    def surplus(self) -> np.ndarray:
        """(n,) int64, ascending: all rows of groups but the first of each. Without them no duplicate is left."""
        rest = [group[1:] for group in self.groups]
        return np.sort(np.concatenate(rest)) if rest else np.zeros(0, np.int64)

    def to_json(self, store: Store) -> dict[str, object]:
        """Plain values, with keys."""
        return {
            "threshold": self.threshold,
            "rows": self.rows,
            "pairs": self.pairs,
            "surplus": len(self.surplus),
            "groups": [[store.keys[row] for row in group.tolist()] for group in self.groups],
        }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What comparing all pairs takes."""

    rows: int
    pairs: int
    seconds: float
    """Estimated from one block on this machine."""

    def __str__(self) -> str:
        return f"{self.pairs:,} pairs of {self.rows:,} rows, about {self.seconds:,.0f} s on this machine"


def duplicates_cost(store: Store | Vectors) -> Cost:
    """What `duplicates` would take, from a product of two blocks of the size it uses.

    Raises:
        UsageError: the store has no vectors.
    """
    vectors = as_vectors(store)
    count = vectors.count
    size = max(1, min(_BLOCK_ROWS, count))
    block = np.ones((size, vectors.dim), np.float32)
    np.matmul(block, block.T)
    begin = time.perf_counter()
    (np.matmul(block, block.T) >= 2).any()
    spent = time.perf_counter() - begin
    pairs = count * (count - 1) // 2
    return Cost(rows=count, pairs=pairs, seconds=spent * max(1.0, pairs / size**2))


def duplicates(
    store: Store | Vectors, threshold: float = 0.98, *, max_rows: int = MAX_ROWS, block_rows: int = _BLOCK_ROWS
) -> Duplicates:
    """Groups of rows that look alike. Exact: every pair is compared; memory does not grow with the pairs found.

    A pair counts if its cosine, as `Vectors.scores` gives it, is at least the threshold rounded to float32. The answer
    does not depend on the blocks. Rows that are not done are passed over.

    Args:
        store: with a field `embedding` of unit vectors, or `Vectors`.
        threshold: above -1, up to 1.
        max_rows: more rows are refused, with what they would cost.
        block_rows: rows compared with as many others at a time.

    Raises:
        UsageError: the threshold makes no sense, or there are more rows than `max_rows`.
        BadData: a stored vector is not of norm 1.
    """
    vectors = as_vectors(store)
    if not -1 < threshold <= 1 or block_rows < 1:
        raise UsageError(f"duplicates: expected a threshold in -1..1, blocks of rows, got {threshold}, {block_rows}")
    if vectors.count > max_rows:
        cost = duplicates_cost(vectors)
        raise UsageError(f"{vectors.store.path}: {cost}; more than {max_rows:,} rows are compared with max_rows only")
    rows = np.arange(len(vectors)) if vectors.done is None else np.flatnonzero(vectors.done)
    parent = np.arange(len(rows))
    pairs = 0
    for left, right in _close_pairs(vectors, rows, np.float32(threshold), block_rows):
        pairs += len(left)
        _join(parent, left, right)
    roots = parent
    order = np.argsort(roots, kind="stable")
    cuts = np.flatnonzero(np.diff(roots[order])) + 1
    groups = tuple(rows[group] for group in np.split(order, cuts) if len(group) > 1)
    return Duplicates(threshold=threshold, rows=len(rows), pairs=pairs, groups=groups)


def _close_pairs(
    vectors: Vectors, rows: np.ndarray, threshold: np.float32, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in `rows` of all pairs that reach the threshold, each pair once, block by block.

    A product of float32 is wrong by at most dim roundings, and by the rounding of both vectors; pairs so close to the
    threshold that this could matter are scored exactly.
    """
    doubt = 1.01 * (vectors.dim + 16) * _ROUNDING
    if len(rows):
        _ = vectors.scales  # the check of all vectors
    for first in range(0, len(rows), size):
        left = vectors.unit(rows[first : first + size]).astype(np.float32)
        for second in range(first, len(rows), size):
            right = left if second == first else vectors.unit(rows[second : second + size]).astype(np.float32)
            fast = left @ right.T
            if second == first:
                fast[np.tril_indices(len(fast))] = -np.inf
            ones, others = np.nonzero(fast >= threshold - doubt)
            ones, others = ones + first, others + second
            unsure = np.flatnonzero(fast[ones - first, others - second] < threshold + doubt)
            keep = np.ones(len(ones), np.bool_)
            keep[unsure] = _pair_scores(vectors, rows[ones[unsure]], rows[others[unsure]]) >= threshold
            if keep.any():
                yield ones[keep], others[keep]


def _pair_scores(vectors: Vectors, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) float32: the exact cosine of pairs of rows."""
    found = np.empty(len(ones), np.float32)
    for start in range(0, len(ones), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        found[part] = vectors.scores(others[part], vectors.unit(ones[part]))
    return found


def _join(parent: np.ndarray, ones: np.ndarray, others: np.ndarray) -> None:
    """Joins the groups of pairs; `parent` leads each place to the first of its group in one step, before and after."""
    while True:
        left, right = parent[ones], parent[others]
        apart = left != right
        if not apart.any():
            return
        ones, others, left, right = ones[apart], others[apart], left[apart], right[apart]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(above := parent[parent], parent):
            parent[:] = above
