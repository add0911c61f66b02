"""What is searched for: a key of the store, a picture or a box of one, or a text; and what is said of the rows found."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from penstock.errors import BadData, MissingExtra, SourceNotFound, UsageError
from penstock.geometry.segment_crops import reference_crop, squash_ids, squash_picture
from penstock.models.protocols import Embedder
from penstock.schema import Value
from penstock.search_vectors import Vectors
from penstock.store import Store

_PICTURES = (".jpg", ".jpeg", ".png")
_COMPARED_KEYS = 20_000


@dataclass(frozen=True, kw_only=True)
class Query:
    """One thing to search for."""

    kind: Literal["key", "picture", "text"]
    text: str
    """As it was given."""
    row: int = -1
    """Of the key."""
    path: Path | None = None
    """Of the picture."""
    box: tuple[float, float, float, float] | None = None
    """XYWH in pixels of the picture, upright; None for all of it."""


def read_query(store: Store, text: str) -> Query:
    """Tells what a text means: a key of the store; else a picture, `PATH` or `PATH,x,y,w,h`; else words.

    Raises:
        SourceNotFound: it is the path of a picture that is not there.
        UsageError: it is empty, or the box behind a picture is none.
    """
    if not text.strip():
        raise UsageError("the query is empty; expected a key, a picture (PATH or PATH,x,y,w,h) or a text")
    try:
        return Query(kind="key", text=text, row=store.find(text))
    except KeyError:
        pass
    parts = text.rsplit(",", 4)
    if Path(text).suffix.lower() in _PICTURES or Path(text).is_file():
        path, box = Path(text), None
    elif len(parts) == 5 and Path(parts[0]).suffix.lower() in _PICTURES:
        path, box = Path(parts[0]), _box(text, parts[1:])
    elif any(suffix + "," in text.lower() for suffix in _PICTURES):
        raise UsageError(f"{text}: expected PATH or PATH,x,y,w,h: four numbers behind the picture")
    else:
        return Query(kind="text", text=text)
    if not path.is_file():
        raise SourceNotFound(f"{path}: no such picture, and {text!r} is no key of {store.path}")
    return Query(kind="picture", text=text, path=path, box=box)


def query_vector(vectors: Vectors, query: Query, embedder: Embedder | None = None) -> np.ndarray:
    """The vector of a query.

    Args:
        vectors: what is to be searched.
        query: as `read_query` gives it.
        embedder: the model that made the store; needed for pictures and texts.

    Returns:
        (D,) float64 of norm 1 for a key, float32 as the model gives it otherwise.

    Raises:
        RowMissing, RowFailed: the row of the key holds nothing.
        BadData: the picture cannot be decoded, or the vector of the key is not of norm 1.
        UsageError: a model is needed and there is none (for words that are no key: with the nearest keys), the model has
            no text tower, or the box lies outside of the picture.
    """
    if query.kind == "key":
        rows = np.array([query.row], np.int64)
        vectors.store.read(query.row, [vectors.field])
        values = vectors.take(rows)
        if not (np.isfinite(values).all() and values.any()):
            raise BadData(
                f"{vectors.store.path}: {vectors.field} of row {query.row} ({query.text}): zeros, or not finite"
            )
        return np.asarray(vectors.unit(rows)[0])
    if embedder is None:
        what = f"{query.text!r} is no key of {vectors.store.path}" if query.kind == "text" else f"{query.path}"
        near = nearest_keys(vectors.store, query.text) if query.kind == "text" else []
        raise UsageError(
            f"{what}{_meant(near)}; to search for a {query.kind}, give the model that made the store: "
            f"{vectors.store.attributes.get('spec', 'its spec is not recorded')}"
        )
    if query.kind == "text":
        try:
            return np.asarray(embedder.embed_texts([query.text])[0])
        except UsageError as error:
            meant = _meant(nearest_keys(vectors.store, query.text))
            raise UsageError(f"{query.text!r} is no key of {vectors.store.path}{meant}; as a text: {error}") from error
    return _embed_picture(embedder, crop_of(query, vectors.store.attributes))


def open_picture(query: Query) -> Image.Image:
    """The picture of a query, upright, RGB, cut to its box.

    Raises:
        BadData: it cannot be decoded.
        UsageError: the box has no part inside the picture.
    """
    from penstock.geometry.images import decode_picture

    if query.path is None:
        raise UsageError(f"{query.text!r}: a {query.kind}, not a picture")
    try:
        picture = Image.fromarray(decode_picture(query.path.read_bytes(), exif="apply"))
    except BadData as error:
        raise BadData(f"{query.path}: {error}") from error
    return picture if query.box is None else cut(picture, query.box, str(query.path))


def crop_of(query: Query, made: Mapping[str, object]) -> Image.Image:
    """The picture of a query, cropped as the store's own segments were: its box stands for a mask, so that it is padded and
    what is outside of it greyed. Without a box all of it is inside. A store that does not say how it was made gets the
    plain box.

    Args:
        query: with a path.
        made: the attributes of the store.

    Raises:
        BadData, UsageError: as `open_picture`.
    """
    if "pad_ratio" not in made or query.box is None:
        return open_picture(query)
    whole = open_picture(replace(query, box=None))
    left, top, right, bottom = _window(whole, query.box, str(query.path))
    mask = np.zeros((whole.height, whole.width), np.bool_)
    mask[top:bottom, left:right] = True
    pixels = np.asarray(whole)
    if made.get("recipe") == "legacy-640":
        pixels, mask = squash_picture(pixels), squash_ids(mask)
    bg_alpha, pad_ratio = (float(str(made[name])) for name in ("bg_alpha", "pad_ratio"))
    return reference_crop(pixels, mask, bg_alpha=bg_alpha, pad_ratio=pad_ratio)


def cut(picture: Image.Image, box: Sequence[float], where: str) -> Image.Image:
    """The part of a picture inside a box XYWH, to whole pixels outwards, at least one.

    Raises:
        UsageError: they do not overlap.
    """
    return picture.crop(_window(picture, box, where))


def _window(picture: Image.Image, box: Sequence[float], where: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of `cut`, exclusive."""
    x, y, width, height = box
    left, top = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
    right, bottom = min(picture.width, int(np.ceil(x + width))), min(picture.height, int(np.ceil(y + height)))
    if left >= right or top >= bottom:
        size = f"{picture.width} x {picture.height}"
        raise UsageError(f"{where}: the box {list(box)} (x, y, w, h) has no part inside the picture of {size} pixels")
    return left, top, right, bottom


def nearest_keys(store: Store, text: str, most: int = 3) -> list[str]:
    """Keys that look like a text, best first. Of a large store only the first 20,000 keys are compared."""
    keys = [store.keys[row] for row in range(min(len(store), _COMPARED_KEYS))]
    return difflib.get_close_matches(text, keys, most)


def hits(store: Store, rows: np.ndarray, scores: np.ndarray) -> list[dict[str, object]]:
    """What is said of the rows found: row, key, score, and the store's small fields, as plain values for JSON and pages.

    Args:
        store: that was searched.
        rows: (n,) int64; those of -1 are left out.
        scores: (n,) float32; NaN where there is none, which becomes None.
    """
    small = [
        name
        for name, field in store.schema.items()
        if field.is_text or (not field.is_variable and (not field.shape or field.shape == (4,)))
    ]
    found: list[dict[str, object]] = []
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        if row >= 0:
            record = store.read(row, small)
            known = None if np.isnan(score) else score
            found.append({"row": row, "key": store.keys[row], "score": known} | {n: _plain(record[n]) for n in small})
    return found


def _plain(value: Value) -> object:
    return value if isinstance(value, str) else value.tolist()


def _embed_picture(embedder: Embedder, picture: Image.Image) -> np.ndarray:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train", "embedding a picture") from error
    pixels = torch.from_numpy(np.array(embedder.prepare(picture)))[None]
    with torch.no_grad():
        return np.asarray(embedder.embed(pixels)[0].cpu().float().numpy())


def _box(text: str, parts: Sequence[str]) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = (float(part) for part in parts)
    except ValueError as error:
        raise UsageError(f"{text}: expected four numbers x,y,w,h behind the picture, got {','.join(parts)}") from error
    if not (np.isfinite([x, y, width, height]).all() and width > 0 and height > 0):
        raise UsageError(f"{text}: expected a box x,y,w,h of positive width and height, got {','.join(parts)}")
    return x, y, width, height


def _meant(keys: Sequence[str]) -> str:
    return f" (did you mean {', '.join(keys)}?)" if keys else ""
