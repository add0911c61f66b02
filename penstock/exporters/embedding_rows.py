"""Vectors of segments, wherever they lie: keys, labels, and the vectors in blocks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import orjson
import xxhash

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.exporters.embedding_files import INDEXES, Ids, read_npy, read_npz
from penstock.exporters.embedding_novic import CACHE
from penstock.exporters.embedding_tables import LANCE, TABLE, read_lance, read_table
from penstock.sequence_folder import SIDE
from penstock.store import Store, open_store
from penstock.store.manifest import NAME

VECTOR = "embedding"
Readable = Literal["store", "npy", "npz", "parquet", "lance"]
PLACES: Mapping[Readable | Literal["novic"], str] = {
    "store": NAME, "npy": INDEXES["npy"], "npz": INDEXES["npz"], "parquet": TABLE, "lance": LANCE, "novic": CACHE,
}  # fmt: skip
"""What a folder of a layout holds."""
STORE = "store"
"""In `.penstock` of a folder of files: the store that they were made from."""
MARKER = "vectors.json"
"""In `.penstock` of a folder of files: layout, what the vectors were made with, whether it is whole."""
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\\]")


@dataclass(kw_only=True)
class VectorRows:
    """Vectors with their keys, in the order in which they lie.

    Attributes:
        where: the folder, for messages.
        layout: "store", "npy", "npz", "parquet" or "lance".
        keys: `<picture>_<segment>`.
        labels: (N,) int32, 0-based place of the class; -1 where it is not known.
        attributes: what the vectors were made with, as far as it is recorded.
        dim: numbers of a vector.
        store: where they lie in one, and `rows`, (N,) int64, those of it that hold a vector.
        matrix: (N, D) float16, where they were files.
    """

    where: Path
    layout: str
    keys: list[str]
    labels: np.ndarray
    attributes: Mapping[str, object] = field(default_factory=dict)
    dim: int = 0
    store: Store | None = None
    rows: np.ndarray | None = None
    matrix: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def vectors(self, places: np.ndarray | None = None) -> np.ndarray:
        """(n, D) float16: those of some places, (n,) int64; None for all."""
        if self.matrix is not None:
            return self.matrix if places is None else self.matrix[places]
        assert self.store is not None
        assert self.rows is not None
        rows = self.rows if places is None else self.rows[places]
        found = np.empty((len(rows), self.dim), self.store.schema[VECTOR].dtype)
        self.store.gather(rows, [VECTOR], {VECTOR: found})
        return found.astype(np.float16, copy=False)

    def digest(self) -> str:
        """Changes with every vector, key and label."""
        if self.store is not None:
            return self.store.digest()
        hasher = xxhash.xxh3_128("\n".join(self.keys).encode())
        hasher.update(np.ascontiguousarray(self.labels).tobytes())
        hasher.update(np.ascontiguousarray(self.vectors()).tobytes())
        return hasher.hexdigest()


def store_of(folder: Path) -> Path:
    """Where the store of a folder of files lies, that `penstock embed --format npy` made."""
    return folder / SIDE / STORE


def open_rows(path: Path, *, layout: Readable | None = None) -> VectorRows:
    """Opens vectors in any layout; without a `layout`, by what the folder holds.

    Raises:
        SourceNotFound: there are none.
        UsageError: the store has no field `embedding`; or the folder is a cache of novic.
        BadData: files are damaged.
    """
    found = layout or _layout(path)
    if found == "store":
        return _of_store(path)
    if found == "parquet":
        keys, matrix, labels, attributes = read_table(path / TABLE)
    elif found == "lance":
        keys, matrix, labels, attributes = read_lance(path / LANCE)
    else:
        keys, matrix, labels = read_npy(path) if found == "npy" else read_npz(path)
        attributes = _attributes(path)
    return VectorRows(
        where=path, layout=found, keys=keys, labels=labels, attributes=attributes, dim=matrix.shape[1], matrix=matrix
    )


def named(rows: VectorRows, layout: str) -> Ids:
    """Image ids and segment ids of vectors, in the order of the index.

    Raises:
        BadData: a key is no `<picture>_<segment>`; two pictures have one image id; a name that no file can have; or a
            segment id above 2147483647, for npz.
    """
    pictures: dict[str, str] = {}
    image_ids: list[str] = []
    segments = np.empty(len(rows), np.int64)
    for place, key in enumerate(rows.keys):
        picture, line, number = key.rpartition("_")
        if not line or not (number.isascii() and number.isdecimal()) or len(number) > 18:
            raise BadData(f"{rows.where}: key {key!r}: expected <picture>_<segment>, as penstock embed makes them")
        name = picture_id(picture.rpartition("/")[2])
        if pictures.setdefault(name, picture) != picture:
            raise BadData(
                f"{rows.where}: pictures {pictures[name]} and {picture} have the same image id, {name}: as {layout} one "
                "would take the place of the other; the formats store, parquet and lance keep whole names"
            )
        if not name or _FORBIDDEN.search(name):
            raise BadData(f"{rows.where}: key {key!r}: {name!r} can be no file of {layout}")
        image_ids.append(name)
        segments[place] = int(number)
    if layout == "npz" and len(segments) and segments.max() > np.iinfo(np.int32).max:
        raise BadData(
            f"{rows.where}: segment id {segments.max()}: expected at most {np.iinfo(np.int32).max}, as npz keeps int32; "
            "take npy, store, parquet or lance"
        )
    order = np.lexsort((segments, np.array(image_ids, dtype=np.str_)))
    ids = Ids([image_ids[place] for place in order.tolist()], segments[order], order)
    same = ids.segments[1:] == ids.segments[:-1]
    for place in np.flatnonzero(same).tolist():
        if ids.images[place] == ids.images[place + 1]:
            raise BadData(f"{rows.where}: two vectors of picture {ids.images[place]}, segment {ids.segments[place]}")
    return ids


def picture_id(stem: str) -> str:
    """The image id of a picture: the first run of digits of its name, as it is where it has 12, without zeros at the front
    where it has not; the whole name where there are no digits."""
    found = re.search(r"[0-9]+", stem)
    if found is None:
        return stem
    return found[0] if len(found[0]) == 12 else found[0].lstrip("0") or "0"


def _layout(path: Path) -> Readable:
    for layout, name in PLACES.items():
        if not (path / name).exists():
            continue
        if layout == "novic":
            raise UsageError(f"{path}: is a cache of novic, which is written, not read; take what it was exported from")
        return layout
    raise SourceNotFound(f"{path}: expected vectors: one of {', '.join(PLACES.values())}; found none of them")


def _of_store(path: Path) -> VectorRows:
    store = open_store(path)
    known = store.schema.get(VECTOR)
    if known is None or known.is_variable or len(known.shape) != 1 or known.dtype not in ("float16", "float32"):
        raise UsageError(
            f"{path}: no field {VECTOR} of float16 or float32 and shape (D,); the fields are {', '.join(store.schema)}; "
            "penstock embed makes vectors"
        )
    done = store.done_rows()
    rows = np.arange(len(store), dtype=np.int64) if done is None else done
    labels = np.full(len(rows), -1, np.int32)
    if "label" in store.schema:
        views = store.column_views("label")
        labels = np.concatenate([np.asarray(view) for view in views])[rows].astype(np.int32) if views else labels
    keys = [store.keys[row] for row in rows.tolist()]
    return VectorRows(
        where=path, layout="store", keys=keys, labels=labels, attributes=store.attributes, dim=known.item_shape[0],
        store=store, rows=rows,
    )  # fmt: skip


def _attributes(path: Path) -> Mapping[str, object]:
    """What is recorded beside files; nothing where another program wrote them."""
    marker = path / SIDE / MARKER
    if not marker.exists():
        return {}
    try:
        found = orjson.loads(marker.read_bytes())
        attributes = found["attributes"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise BadData(f"{marker}: expected JSON with the key attributes: {error}") from error
    return dict(attributes)
