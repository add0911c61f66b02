"""`penstock embed --verify-sample`: vectors of a store against those by the reference path, from whole pictures and masks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from penstock.errors import BadData, RecipeMismatch, UsageError
from penstock.geometry.segment_crops import reference_crop
from penstock.models.embedders import open_embedder
from penstock.models.protocols import Embedder
from penstock.segments import Segments
from penstock.source import Source
from penstock.store import Store
from penstock.store.manifest import Manifest

LEAST_COSINE, MEDIAN_COSINE = 0.9995, 0.9999
"""What vectors by the fast path must have with those by the reference: each one, and half of them."""


@dataclass(frozen=True)
class Verified:
    """Vectors of a store against those by the reference path."""

    keys: tuple[str, ...]
    """Rows that were computed again."""
    cosines: tuple[float, ...]
    """One for each."""

    @property
    def least(self) -> float:
        """The smallest cosine."""
        return min(self.cosines)

    @property
    def median(self) -> float:
        """The median cosine."""
        return float(np.median(self.cosines))

    @property
    def is_good(self) -> bool:
        """Whether each is 0.9995 and the median 0.9999, at least."""
        return self.least >= LEAST_COSINE and self.median >= MEDIAN_COSINE

    def to_json(self) -> dict[str, object]:
        """Plain values; the three worst rows by name."""
        worst = sorted(zip(self.cosines, self.keys, strict=True))[:3]
        return {
            "verified": len(self.keys),
            "cosine_least": round(self.least, 7),
            "cosine_median": round(self.median, 7),
            "status": "ok" if self.is_good else "failed",
            "worst": [{"key": key, "cosine": round(cosine, 7)} for cosine, key in worst],
        }


def verify_sample(
    store: Store, source: Source, count: int, *, seed: int = 0, embedder: Embedder | None = None
) -> Verified:
    """Computes some rows of a store again by the reference path, from whole pictures and masks, and compares.

    Args:
        store: of vectors, as `embed` makes it.
        source: what it was made from; a row that is no longer there, or can no longer be read, counts as cosine 0.
        count: rows; all done ones where there are fewer.
        seed: which.
        embedder: the opened model; None opens the store's own, on the CPU.

    Raises:
        UsageError: no store of vectors, or one without a done row, or a model that cannot be opened.
        RecipeMismatch: the model has other weights than when the store was made.
    """
    said = store.attributes
    if "embedding" not in store.schema or "pad_ratio" not in said:
        raise UsageError(
            f"{store.path}: expected a store of vectors as penstock embed makes it; it has {list(store.schema)}"
        )
    embedder = embedder or open_embedder(str(said["spec"]), device="cpu")
    refuse_other_model(store, embedder)
    segments = Segments(source, pad_ratio=said["pad_ratio"], recipe=said["recipe"])  # type: ignore[arg-type]  # as written
    done = store.done_rows()
    rows = np.arange(len(store)) if done is None else done
    if not len(rows) or count < 1:
        raise UsageError(f"{store.path}: {len(rows)} rows are done, {count} were asked for: expected at least one")
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:count]).tolist()
    keys = [store.keys[row] for row in chosen]
    wanted = set(keys)
    places = {key: place for place, key in enumerate(segments.keys) if key in wanted}
    cosines = []
    for row, key in zip(chosen, keys, strict=True):
        again = _again(segments, places.get(key), embedder, float(str(said["bg_alpha"])))
        vector = np.asarray(store.read(row, ["embedding"])["embedding"], np.float64)
        cosines.append(0.0 if again is None else float(vector @ again / np.linalg.norm(vector)))
    return Verified(tuple(keys), tuple(cosines))


def _again(segments: Segments, place: int | None, embedder: Embedder, bg_alpha: float) -> np.ndarray | None:
    """(D,) float64 of norm 1 by the reference path; None where the row cannot be read."""
    import torch

    if place is None:
        return None
    try:
        picture, mask = segments.whole(place)
        crop = reference_crop(picture, mask, bg_alpha=bg_alpha, pad_ratio=segments.pad_ratio)
    except BadData:
        return None  # counts as a cosine of 0, and is named among the worst
    vector = embedder.embed(torch.from_numpy(embedder.prepare(crop)[None]))[0].double().cpu().numpy()
    unit: np.ndarray = vector / np.linalg.norm(vector)
    return unit


def refuse_other_model(store: Store, embedder: Embedder) -> None:
    """Makes sure that a model is the one that made a store, where the store says. Precision, device and spec may differ.

    Raises:
        RecipeMismatch: another one; each difference is named.
    """
    made_by = Manifest.load(store.path).identity.get("embedder")
    now = embedder.identity()
    known: Mapping[str, object] = made_by if isinstance(made_by, Mapping) else now
    changed = [name for name in ("weights", "transform", "dim") if known.get(name) != now.get(name)]
    if changed:
        lines = [f"{name}: store {known.get(name)!r}, now {now.get(name)!r}" for name in changed]
        head = f"{store.path} was made with another model, {known.get('spec')!r}, now {now.get('spec')!r}"
        raise RecipeMismatch(f"{head}:\n  " + "\n  ".join(lines))
