"""The two workloads: what a record holds, what a loader must deliver, and records that are made up and can be checked.

Records are drawn from a small pool of made pictures and random bytes, so that making them costs nothing beside writing
them; a small field carries the row number, so that every batch can be checked against what was written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

POOL = 8
Record = dict[str, np.ndarray]


@dataclass(frozen=True)
class Column:
    """One fixed field of a record."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_wanted: bool = True
    """Whether the reader of the original delivers it. The others are written, and are not asked for."""

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Workload:
    """A kind of record and the batches that are read of it."""

    name: str
    columns: tuple[Column, ...]
    batch: int
    row_column: str
    """The field that holds the row number, once per row, as its first element."""

    @property
    def wanted(self) -> tuple[Column, ...]:
        """The columns that a loader must deliver."""
        return tuple(column for column in self.columns if column.is_wanted)

    @property
    def record_bytes(self) -> int:
        """Bytes of a whole record."""
        return sum(column.nbytes for column in self.columns)

    @property
    def wanted_bytes(self) -> int:
        """Bytes that a loader delivers for a row."""
        return sum(column.nbytes for column in self.wanted)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """First byte of each column in a record that holds all of them, one after the other."""
        ends = np.cumsum([0, *(column.nbytes for column in self.columns)])
        return {column.name: int(end) for column, end in zip(self.columns, ends, strict=False)}

    @cached_property
    def pool(self) -> list[Record]:
        """The records that all rows are made of. The same in every process."""
        rng = np.random.default_rng(7)
        return [{c.name: _values(c, rng) for c in self.columns} for _ in range(POOL)]

    def record(self, row: int) -> Record:
        """The record of a row; arrays must not be written to."""
        record = dict(self.pool[row % POOL])
        stamped = record[self.row_column].copy()
        stamped.reshape(-1)[0] = row
        record[self.row_column] = stamped
        return record

    def rows_of(self, batch: Mapping[str, object]) -> np.ndarray:
        """Row numbers of the records in a batch."""
        values = np.asarray(batch[self.row_column])
        return values.reshape(len(values), -1)[:, 0].astype(np.int64)

    def pack(self, record: Record) -> bytes:
        """The whole record as bytes, columns one after the other."""
        return b"".join(record[column.name].tobytes() for column in self.columns)

    def unpack(self, content: bytes | memoryview) -> Record:
        """Views of the wanted columns in a packed record."""
        return {
            c.name: np.frombuffer(content, c.dtype, int(np.prod(c.shape)), self.offsets[c.name]).reshape(c.shape)
            for c in self.wanted
        }


class Records:
    """Rows 0..n-1 as (key, record); by position too, and pickles into a worker."""

    def __init__(self, workload: Workload, rows: int) -> None:
        self.workload = workload
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[str, Record]:
        return f"sa_{row:09d}", self.workload.record(row)

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return (self[row] for row in range(self.rows))

    def __reduce__(self) -> tuple[object, ...]:
        return _records, (self.workload.name, self.rows)


def check(workload: Workload, batch: Mapping[str, object], lossy: bool) -> np.ndarray:
    """Row numbers of a batch, after comparing the first and last record with what was written.

    Raises:
        ValueError: a column is missing, has another shape or type, or other bytes.
    """
    rows = workload.rows_of(batch)
    for column in workload.wanted:
        values = np.asarray(batch[column.name])
        size = values.nbytes // len(rows)
        if size != column.nbytes or values.dtype != np.dtype(column.dtype):
            raise ValueError(
                f"{column.name}: expected {column.nbytes} bytes of {column.dtype}, got {size}, {values.dtype}"
            )
        for at in (0, len(rows) - 1):
            expected = workload.record(int(rows[at]))[column.name]
            if not (lossy and column.name == "image") and values[at].tobytes() != expected.tobytes():
                raise ValueError(f"{column.name}: row {rows[at]} is not what was written")
    return rows


def _records(name: str, rows: int) -> Records:
    return Records(WORKLOADS[name], rows)


def _values(column: Column, rng: np.random.Generator) -> np.ndarray:
    if column.name == "image":
        return _picture(rng, column.shape[0])
    if column.dtype == "uint8":
        return (rng.random(column.shape, np.float32) > 0.7).astype(np.uint8)
    if column.dtype == "int32":
        return np.array([1, 1, 1365, 2048, 3], np.int32).reshape(column.shape)
    return rng.standard_normal(column.shape, np.float32).astype(column.dtype)


def _picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth colours, edges and sensor noise: a JPEG of quality 95 is about a fifth of it, as of a photograph."""
    picture = rng.integers(0, 26, (side, side, 3), np.uint8)
    for block, brightest in ((64, 180), (8, 40)):
        blocks = rng.integers(0, brightest, (side // block, side // block, 3), np.uint8)
        picture += blocks.repeat(block, 0).repeat(block, 1)
    return picture


_MAPS = tuple(
    Column(f"{kind}_map_{side}x{side}", "float32", (side, side), is_wanted=side == 64)
    for side in (128, 64, 32)
    for kind in ("fg", "bg")
)
A = Workload(
    "A",
    (
        Column("image", "uint8", (1024, 1024, 3)),
        Column("P4_S16", "float32", (1, 256, 64, 64)),
        Column("P5_S32", "float32", (1, 256, 32, 32), is_wanted=False),
        Column("edge_256x256", "uint8", (256, 256)),
        Column("edge_64x64", "uint8", (64, 64), is_wanted=False),
        Column("edge_32x32", "uint8", (32, 32), is_wanted=False),
        *_MAPS,
        Column("bboxes", "float32", (1, 4)),
        Column("masks", "uint8", (1, 256, 256)),
        Column("metadata", "int32", (5,)),
    ),
    batch=16,
    row_column="bboxes",
)
"""The distillation record: 8,696,868 bytes, of which 7,503,908 are delivered."""

B = Workload(
    "B", (Column("embedding", "float16", (768,)), Column("box", "float32", (4,))), batch=4096, row_column="box"
)
"""The embedding record: 1,552 bytes."""

WORKLOADS = {"A": A, "B": B}
V1_FILES = {
    "images.bin": ("image",),
    "features.bin": ("P4_S16", "P5_S32"),
    "edge_maps.bin": ("edge_256x256", "edge_64x64", "edge_32x32"),
    "weight_maps.bin": tuple(column.name for column in _MAPS),
    "bboxes.bin": ("bboxes",),
    "masks.bin": ("masks",),
    "metadata.bin": ("metadata",),
}
"""Files of a v1 directory and the columns of their records, in order."""
