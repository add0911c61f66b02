"""Vectors as a Parquet table (extra `table`), as a Lance dataset (extra `lance`) and as a store."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from penstock.errors import BadData, MissingExtra
from penstock.schema import Field, Record, Schema
from penstock.sequence_folder import flush_folders
from penstock.store import Store, write_store
from penstock.store.disk import Disk

TABLE = "vectors.parquet"
LANCE = "vectors.lance"
GROUP = 16384
"""Vectors of a batch, and of a row group."""
Read = tuple[list[str], np.ndarray, np.ndarray, Mapping[str, object]]
"""Keys, (N, D) float16, labels (N,) int32, attributes."""


class Rows(Protocol):
    """What tables are made from: see `embedding_rows.VectorRows`."""

    keys: list[str]
    labels: np.ndarray
    attributes: Mapping[str, object]
    dim: int
    store: Store | None
    rows: np.ndarray | None

    def vectors(self, places: np.ndarray | None = None) -> np.ndarray:
        """(n, D) float16: those of some places, (n,) int64; None for all."""
        ...

    def digest(self) -> str:
        """Changes with every vector, key and label."""
        ...

    def __len__(self) -> int: ...


def write_table(rows: Rows, folder: Path, disk: Disk) -> int:
    """Writes `vectors.parquet`: the columns of `arrow_batches`, a row group per batch.

    Returns:
        Its bytes.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow("exporting vectors as a Parquet table")
    schema = arrow_schema(pyarrow, rows)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{TABLE}.new"
    with parquet.ParquetWriter(fresh, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in arrow_batches(pyarrow, rows, schema):
            writer.write_batch(batch, row_group_size=GROUP)
    disk.sync(fresh)
    disk.rename(fresh, folder / TABLE)
    return (folder / TABLE).stat().st_size


def write_lance(rows: Rows, folder: Path, disk: Disk) -> int:
    """Writes `vectors.lance`: a Lance dataset with the columns of `arrow_batches`. Its file names are Lance's, drawn anew
    in each run; what it holds is the same.

    Returns:
        Its bytes.

    Raises:
        MissingExtra: pylance is not installed.
    """
    lance, pyarrow = _lance("exporting vectors as a Lance dataset")
    schema = arrow_schema(pyarrow, rows)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{LANCE}.new"
    disk.remove(fresh)
    lance.write_dataset(arrow_batches(pyarrow, rows, schema), str(fresh), schema=schema)
    flush_folders(disk, [fresh])
    disk.rename(fresh, folder / LANCE)
    return sum(path.stat().st_size for path in (folder / LANCE).rglob("*") if path.is_file())


def arrow_schema(pyarrow: Any, rows: Rows) -> Any:
    """Columns: key, label, embedding (a fixed-size list of D float16), and every other field of the store. The metadata
    `penstock` is JSON with what the vectors were made with."""
    columns = [
        ("key", pyarrow.string()),
        ("label", pyarrow.int32()),
        ("embedding", pyarrow.list_(pyarrow.float16(), rows.dim)),
        *((one.name, _type(pyarrow, one)) for one in _extra(rows)),
    ]
    about = orjson.dumps({"version": 1, "attributes": dict(rows.attributes)}, option=orjson.OPT_SORT_KEYS)
    return pyarrow.schema(columns, metadata={"penstock": about})


def arrow_batches(pyarrow: Any, rows: Rows, schema: Any) -> Iterator[Any]:
    """The vectors in order, with the columns of `arrow_schema`: record batches of `GROUP` rows, the last one shorter."""
    extra = _extra(rows)
    for start in range(0, len(rows), GROUP):
        places = np.arange(start, min(start + GROUP, len(rows)))
        flat = pyarrow.array(rows.vectors(places).reshape(-1))
        columns = [
            pyarrow.array([rows.keys[place] for place in places.tolist()]),
            pyarrow.array(rows.labels[places]),
            pyarrow.FixedSizeListArray.from_arrays(flat, rows.dim),
            *_columns(pyarrow, rows, places, extra),
        ]
        yield pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def read_table(path: Path) -> Read:
    """Keys, (N, D) float16, labels (N,) int32 and attributes of a table that `write_table` made.

    Raises:
        MissingExtra: pyarrow is not installed.
        BadData: it is another table.
    """
    pyarrow, parquet = _pyarrow("reading vectors of a Parquet table")
    try:
        return _content(parquet.read_table(path, columns=list(_OWN)))
    except (pyarrow.ArrowException, KeyError, TypeError, AttributeError, orjson.JSONDecodeError) as error:
        raise BadData(f"{path}: expected a table of vectors with {', '.join(_OWN)}: {error}") from error


def read_lance(path: Path) -> Read:
    """Keys, (N, D) float16, labels (N,) int32 and attributes of a dataset that `write_lance` made.

    Raises:
        MissingExtra: pylance is not installed.
        BadData: it is another dataset, or damaged.
    """
    lance, pyarrow = _lance("reading vectors of a Lance dataset")
    try:
        return _content(lance.dataset(str(path)).to_table(columns=list(_OWN)))
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        raise BadData(f"{path}: expected a Lance dataset of vectors with {', '.join(_OWN)}: {error}") from error


def write_vector_store(rows: Rows, folder: Path, disk: Disk) -> int:
    """Writes a store with the fields embedding, image_id (the picture's part of the key), segment_id and label.

    Returns:
        Bytes of the vectors.
    """
    schema = Schema(
        [
            Field(
                name="embedding", dtype="float16", shape=(rows.dim,), axes="D", kind="embedding",
                meaning="of the segment, of norm 1",
            ),
            Field(name="segment_id", dtype="int64", kind="number", meaning="id of the segment in its picture", file="segment"),
            Field(
                name="label", dtype="int32", kind="number", meaning="place of the class, from 0; -1: not known",
                file="segment",
            ),
            Field(name="image_id", dtype="str", kind="text", meaning="id of the picture"),
        ]
    )  # fmt: skip
    write_store(
        folder,
        schema,
        _records(rows),
        identity={"exporter": "vectors", "version": 1, "source": rows.digest()},
        attributes={"kind": "embeddings", **rows.attributes},
        disk=disk,
    )
    return 2 * rows.dim * len(rows)


_OWN = ("key", "label", "embedding")


def _content(table: Any) -> Read:
    about = orjson.loads(table.schema.metadata[b"penstock"])["attributes"]
    dim = table.schema.field("embedding").type.list_size
    parts = [part.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for part in table["embedding"].chunks]
    vectors = np.concatenate([np.zeros((0, dim), np.float16), *parts])
    return table["key"].to_pylist(), vectors, table["label"].to_numpy().astype(np.int32), dict(about)


def _extra(rows: Rows) -> list[Field]:
    """Fields of the store that have no column of their own."""
    return [] if rows.store is None else [one for one in rows.store.schema.fields if one.name not in _OWN]


def _records(rows: Rows) -> Iterator[tuple[str, Record]]:
    for start in range(0, len(rows), GROUP):
        places = np.arange(start, min(start + GROUP, len(rows)))
        for place, vector in zip(places.tolist(), rows.vectors(places), strict=True):
            picture, line, number = rows.keys[place].rpartition("_")
            if not line or not (number.isascii() and number.isdecimal()):
                raise BadData(f"key {rows.keys[place]!r}: expected <picture>_<segment>")
            yield (
                rows.keys[place],
                {
                    "embedding": vector,
                    "segment_id": np.array(int(number), np.int64),
                    "label": rows.labels[place],
                    "image_id": picture,
                },
            )


def _columns(pyarrow: Any, rows: Rows, places: np.ndarray, extra: list[Field]) -> list[Any]:
    if rows.store is None or rows.rows is None or not extra:
        return []
    records = [rows.store.read(row, [one.name for one in extra]) for row in rows.rows[places].tolist()]
    found = []
    for one in extra:
        values = [record[one.name] for record in records]
        plain = [value if isinstance(value, str) else np.asarray(value).tolist() for value in values]
        found.append(pyarrow.array(plain, _type(pyarrow, one)))
    return found


def _type(pyarrow: Any, one: Field) -> Any:
    if one.dtype == "str":
        return pyarrow.string()
    plain = pyarrow.from_numpy_dtype(np.dtype(one.dtype))
    for _ in one.shape:
        plain = pyarrow.list_(plain)
    return plain


def _pyarrow(purpose: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "table", purpose) from error
    return pyarrow, pyarrow.parquet


def _lance(purpose: str) -> tuple[Any, Any]:
    try:
        import lance
        import pyarrow
    except ImportError as error:
        raise MissingExtra("pylance", "lance", purpose) from error
    return lance, pyarrow
