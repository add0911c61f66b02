"""Zero-shot: how often the nearest of some class vectors names a row's own category. A number to see that vectors are sane."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import UsageError
from penstock.search_vectors import Vectors, as_vectors, unit_queries
from penstock.store import Store

PROMPT = "a photo of a {}."
"""The plain prompt of CLIP's authors."""

_BLOCK_ROWS = 4096
_LEAST = 1e-6
"""A sum of unit vectors that is shorter points nowhere."""


@dataclass(frozen=True, kw_only=True)
class CategoryScore:
    """One category."""

    category: str
    rows: int
    right: int

    @property
    def top1(self) -> float:
        """Share of rows whose nearest class is their own."""
        return self.right / self.rows


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Top-1 over a store. Chance would give 1 / classes."""

    method: str
    """"class vectors" (text prompts, say) or "class means, leave one out"."""
    classes: int
    categories: tuple[CategoryScore, ...]
    """By name."""
    left_out: dict[str, int]
    """Rows that no class can be right for, by category: not among the classes, or the only row of it."""
    predicted: np.ndarray
    """(rows of the store,) int64: number of the nearest class, in the order of `names`; -1 where there is none."""
    names: tuple[str, ...]

    @property
    def top1(self) -> float:
        """Share of all rows that are right; NaN without rows."""
        rows = sum(one.rows for one in self.categories)
        return sum(one.right for one in self.categories) / rows if rows else float("nan")

    @property
    def mean_top1(self) -> float:
        """Mean over categories, each counting once; NaN without rows."""
        return float(np.mean([one.top1 for one in self.categories])) if self.categories else float("nan")

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "method": self.method,
            "classes": self.classes,
            "rows": sum(one.rows for one in self.categories),
            "top1": self.top1,
            "mean_top1": self.mean_top1,
            "left_out": self.left_out,
            "categories": [
                {"category": one.category, "rows": one.rows, "right": one.right, "top1": one.top1}
                for one in self.categories
            ],
        }


def zero_shot(
    store: Store | Vectors,
    class_vectors: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    *,
    category: str = "category",
) -> ZeroShot:
    """Top-1 per category.

    Args:
        store: with fields `embedding` and `category`; where it has `category_id`, names are read once per id.
        class_vectors: (C, dim), one for each name (a model's vectors of prompts); rows of unknown categories are left out.
            None: the means of the categories' own unit vectors, of which each row is judged by means that it is no part
            of. This tells how well categories lie apart, not what a model knows of words.
        names: of the class vectors.
        category: the field with the name.

    Raises:
        UsageError: no such field, vectors without names or of another length, names twice, or fewer than two classes.
        BadData: a stored vector is not of norm 1.
    """
    vectors = as_vectors(store)
    rows = np.arange(len(vectors)) if vectors.done is None else np.flatnonzero(vectors.done)
    known, labels = categories_of(vectors.store, rows, category)
    if len(rows):
        _ = vectors.scales  # the check of all vectors
    if class_vectors is None:
        if names is not None:
            raise UsageError("zero_shot: names without class vectors")
        if len(known) < 2:
            raise UsageError(f"{vectors.store.path}: expected two categories and more, got {len(known)}")
        chosen = known
        nearest, judged = _by_means(vectors, rows, labels, len(known))
        targets = np.arange(len(known))
    else:
        chosen = _checked(names, class_vectors)
        targets = np.array([chosen.index(name) if name in chosen else -1 for name in known], np.int64)
        nearest = _by_vectors(vectors, rows, class_vectors)
        judged = np.isin(labels, np.flatnonzero(targets >= 0))
    predicted = np.full(len(vectors), -1, np.int64)
    predicted[rows] = nearest
    right = judged & (nearest == targets[labels])
    counts = np.bincount(labels[judged], minlength=len(known)).tolist()
    rights = np.bincount(labels[right], minlength=len(known)).tolist()
    others = np.bincount(labels[~judged], minlength=len(known)).tolist()
    scored = [CategoryScore(category=known[n], rows=counts[n], right=rights[n]) for n in range(len(known)) if counts[n]]
    return ZeroShot(
        method="class means, leave one out" if class_vectors is None else "class vectors",
        classes=len(chosen),
        categories=tuple(sorted(scored, key=lambda one: one.category)),
        left_out={known[n]: others[n] for n in range(len(known)) if others[n]},
        predicted=predicted,
        names=tuple(chosen),
    )


def categories_of(store: Store, rows: np.ndarray, category: str = "category") -> tuple[list[str], np.ndarray]:
    """The categories of some rows: names in sorted order, and (n,) int64 numbers into them.

    With a field `category_id` beside `category`, the name of an id is that of its first row; else each name is read.

    Raises:
        UsageError: the store has no such field of text.
    """
    if category not in store.schema or not store.schema[category].is_text:
        texts = [name for name, field in store.schema.items() if field.is_text]
        raise UsageError(f"{store.path}: no text field {category}; there are {', '.join(texts) or 'none'}")
    if category == "category" and "category_id" in store.schema and not store.schema["category_id"].is_variable:
        views = store.column_views("category_id")
        ids = np.concatenate([np.zeros(0, np.int64), *views])[rows]
        _, firsts, labels = np.unique(ids, return_index=True, return_inverse=True)
        names = [str(store.read(row, [category])[category]) for row in rows[firsts].tolist()]
    else:
        names = [str(store.read(row, [category])[category]) for row in rows.tolist()]
        labels = np.arange(len(names))
    known = sorted(set(names))
    place = {name: number for number, name in enumerate(known)}
    return known, np.array([place[name] for name in names], np.int64)[labels]


def _by_means(vectors: Vectors, rows: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest mean of each row, its own without it; and whether its category has another row at all."""
    counts = np.bincount(labels, minlength=classes)
    sums = np.zeros((classes, vectors.dim))
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        np.add.at(sums, labels[part], vectors.unit(rows[part]))
    lengths = np.linalg.norm(sums, axis=1)
    nearest = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        values, own = vectors.unit(rows[part]), labels[part]
        products = values @ sums.T
        scores = np.divide(products, lengths, out=np.full_like(products, -np.inf), where=lengths > _LEAST)
        rest = sums[own] - values
        length = np.linalg.norm(rest, axis=1)
        alone = (counts[own] < 2) | (length <= _LEAST)
        places = np.arange(len(own))
        inner = np.sum(rest * values, axis=1)
        scores[places, own] = np.divide(inner, length, out=np.full_like(inner, -np.inf), where=~alone)
        nearest[part] = np.argmax(scores, axis=1)
    return nearest, counts[labels] >= 2


def _by_vectors(vectors: Vectors, rows: np.ndarray, class_vectors: np.ndarray) -> np.ndarray:
    """Number of the nearest class vector of each row; of equal ones the first."""
    matrix = unit_queries(class_vectors, vectors).T
    nearest = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        nearest[part] = np.argmax(vectors.unit(rows[part]) @ matrix, axis=1)
    return nearest


def _checked(names: Sequence[str] | None, class_vectors: np.ndarray) -> list[str]:
    found = list(names or ())
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice or len(found) < 2 or len(found) != len(class_vectors):
        more = f"; twice: {', '.join(twice)}" if twice else ""
        raise UsageError(
            f"zero_shot: expected two names and more, one for each class vector, got {len(found)} names and "
            f"{len(class_vectors)} vectors{more}"
        )
    return found
