"""A map of a store: its vectors in two dimensions by scikit-learn, and a picture of them by Pillow."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from penstock.errors import MissingExtra, UsageError
from penstock.search_vectors import Vectors, as_vectors
from penstock.store import Store

Method = Literal["pca", "tsne"]
_COLOURS = 12
_OTHER = (170, 170, 170)
_LEAST_ROWS = 4
_LEGEND, _MARGIN, _LINE = 190, 16, 18


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Rows of a store in two dimensions."""

    rows: np.ndarray
    """(n,) int64, ascending: all rows that are done, or a sample."""
    points: np.ndarray
    """(n, 2) float32. Units mean nothing; of t-SNE, neither do distances between far groups."""
    of: int
    """Rows that are done."""
    method: str
    seed: int
    explained: float | None = None
    """Of PCA: share of the variance that the two dimensions hold."""

    @property
    def words(self) -> str:
        """What is shown, in a sentence."""
        some = (
            f"all {self.of:,} rows" if len(self.rows) == self.of else f"{len(self.rows):,} of {self.of:,} rows, drawn"
        )
        held = "" if self.explained is None else f"; two dimensions hold {self.explained:.0%} of the variance"
        return f"{self.method} of {some} with seed {self.seed}{held}"


def projection(
    store: Store | Vectors, method: Method = "pca", *, max_rows: int = 5000, seed: int = 0, perplexity: float = 30.0
) -> Projection:
    """Vectors in two dimensions.

    Args:
        store: with a field `embedding` of unit vectors, or `Vectors`.
        method: "pca" keeps directions of the largest variance; "tsne" keeps neighbours.
        max_rows: of more rows so many are drawn, without repeats, each equally likely.
        seed: of the draw and of the method: the same seed gives the same points on the same machine.
        perplexity: of t-SNE; at most a third of the rows is used.

    Raises:
        UsageError: fewer than four rows, or a number that makes no sense.
        BadData: a stored vector is not of norm 1.
        MissingExtra: scikit-learn is not there.
    """
    vectors = as_vectors(store)
    if method not in ("pca", "tsne") or max_rows < _LEAST_ROWS or perplexity <= 0:
        found = f"{method!r}, max_rows={max_rows}, perplexity={perplexity}"
        raise UsageError(f"projection: expected pca or tsne, max_rows of {_LEAST_ROWS} and more, got {found}")
    rows = np.arange(len(vectors)) if vectors.done is None else np.flatnonzero(vectors.done)
    if len(rows) < _LEAST_ROWS:
        raise UsageError(f"{vectors.store.path}: expected {_LEAST_ROWS} vectors and more for a map, got {len(rows)}")
    _ = vectors.scales  # the check of all vectors
    chosen = rows
    if len(rows) > max_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
    values = vectors.unit(chosen)
    explained = None
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtra("scikit-learn", "search", "drawing a map") from error
    if vectors.dim == 1:
        points = np.concatenate([values, np.zeros_like(values)], axis=1)
    elif method == "pca":
        points, explained = _pca(PCA, values, seed)
    else:
        near = min(perplexity, (len(chosen) - 1) / 3)
        points = TSNE(2, perplexity=near, init="random", random_state=seed).fit_transform(values.astype(np.float32))
    return Projection(
        rows=chosen, points=points.astype(np.float32), of=len(rows), method=method, seed=seed, explained=explained
    )


def map_picture(shown: Projection, labels: Sequence[str] | None = None, *, side: int = 800) -> Image.Image:
    """The points as a picture, with a legend of the most frequent labels; the others are gray.

    Args:
        shown: as `projection` gives it.
        labels: one for each of its rows; None: all points alike.
        side: pixels of the square that holds the points.

    Returns:
        RGB picture of (side + legend) x side pixels.

    Raises:
        UsageError: another number of labels, or a side too small to draw in.
    """
    if side < 100 or (labels is not None and len(labels) != len(shown.rows)):
        found = "no labels" if labels is None else f"{len(labels)} labels"
        raise UsageError(f"map_picture: expected {len(shown.rows)} labels, a side of 100 and more, got {found}, {side}")
    names = list(labels or [""] * len(shown.rows))
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    colours = {name: _colour(place) for place, name in enumerate(ranked[:_COLOURS])}
    image = Image.new("RGB", (side + (_LEGEND if labels is not None else 0), side), "white")
    draw = ImageDraw.Draw(image)
    low, high = shown.points.min(0), shown.points.max(0)
    scale = (side - 2 * _MARGIN) / max(float((high - low).max()), 1e-12)
    radius = 2 if len(names) > 1500 else 3
    for name, (x, y) in sorted(zip(names, shown.points.tolist(), strict=True), key=lambda pair: pair[0] in colours):
        left, top = _MARGIN + (x - float(low[0])) * scale, side - _MARGIN - (y - float(low[1])) * scale
        draw.ellipse((left - radius, top - radius, left + radius, top + radius), fill=colours.get(name, _OTHER))
    if labels is not None:
        entries = [(f"{name or 'none'} ({counts[name]})", colours[name]) for name in colours]
        rest = len(ranked) - len(colours)
        entries += [(f"{rest} more", _OTHER)] if rest else []
        for place, (text, colour) in enumerate(entries):
            top = _MARGIN + place * _LINE
            draw.rectangle((side + 4, top, side + 14, top + 10), fill=colour)
            draw.text((side + 20, top - 1), text.encode("ascii", "replace").decode()[:26], fill="black")
    return image


def _pca(make: type, values: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Points, and the share of the variance that they hold; all at one place where there is none."""
    if not np.ptp(values, axis=0).any():
        return np.zeros((len(values), 2)), 1.0
    model = make(2, svd_solver="auto", random_state=seed)
    return model.fit_transform(values), float(model.explained_variance_ratio_.sum())


def _colour(place: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((place * 0.61803) % 1, 0.75, 0.85 if place % 2 else 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)
