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
    known, labels = _labels(vectors.store, rows, category)
    if len(rows):
        _ = vectors.scales  # the check of all vectors
    if class_vectors is None:
        if names is not None:
            raise UsageError("zero_shot: names without class vectors")
        if len(known) < 2:
            raise UsageError(f"{vectors.store.path}: expected two categories and more, got {len(known)}")
        chosen = list(known)
        nearest, judged = _by_means(vectors, rows, labels, len(known))
    else:
        chosen = _checked(names, class_vectors)
        place = {name: number for number, name in enumerate(chosen)}
        labels = np.array([place.get(name, -1) for name in known], np.int64)[labels] if len(known) else labels
        nearest, judged = _by_vectors(vectors, rows, class_vectors), labels >= 0
    predicted = np.full(len(vectors), -1, np.int64)
    predicted[rows] = nearest
    return _scored(vectors, rows, chosen, labels, predicted, judged, means=class_vectors is None, category=category)
