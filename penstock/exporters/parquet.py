"""`parquet`: one table of steps, for pandas, DuckDB, Polars or Arrow. Needs the extra `table`."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import orjson

from penstock.errors import MissingExtra, UsageError
from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import SavedSequence

Row = dict[str, object]
_TEXTS = ("sequence", "source", "category", "video", "role")
_NUMBERS = ("x", "y", "width", "height")
_FLAGS = ("visible", "valid", "padded")


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """Parquet: `steps.parquet`, one row per step: each template, each search, each step of both histories, in this order.

    Columns: sequence, source, category, video (texts); role ("template", "search", "backward", "forward"); number (in its
    role, from 0); frame (position in the source's video, from 0); time (seconds); x, y, width, height (float64 XYWH with the
    corner from 0, in pixels of the picture, histories in those of the first search picture; null for no number); visible,
    valid, padded (as saved); absent ("", "outside", "hidden"; null for histories); path; image_height, image_width; image
    (the picture's file; null for histories). What was not saved is null. The table's metadata has a key `penstock`: JSON with
    the recipe, sources and licence.

    Args:
        compression: of all columns but `image`, which is compressed already.
        compression_level: of zstd; the library's own by default.
        images: False leaves the column `image` out.
        group_sequences: sequences of a row group.
    """

    name: ClassVar[str] = "parquet"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"
    compression_level: int | None = None
    images: bool = True
    group_sequences: int = 64

    def __post_init__(self) -> None:
        if self.compression not in ("zstd", "snappy", "gzip", "none"):
            raise UsageError(f"compression: expected zstd, snappy, gzip or none, got {self.compression!r}")
        if self.compression_level is not None and self.compression not in ("zstd", "gzip"):
            raise UsageError(f"compression_level: {self.compression} has none")
        if self.group_sequences < 1:
            raise UsageError(f"group_sequences: expected 1 or more, got {self.group_sequences}")

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtra("pyarrow", "table", "exporting a Parquet table") from error
        schema = self._schema(pyarrow)
        packed = {name: self.compression if name != "image" else "none" for name in schema.names}
        level = None if self.compression_level is None else dict.fromkeys(packed, self.compression_level)
        if level is not None:
            level.pop("image", None)
        with pyarrow.parquet.ParquetWriter(
            out.path / "steps.parquet", schema, compression=packed, compression_level=level, write_page_checksum=True
        ) as writer:
            rows = sequences.map(self._rows)
            while group := list(islice(rows, self.group_sequences)):
                together = [row for one in group for row in one]
                writer.write_table(pyarrow.Table.from_pylist(together, schema=schema), row_group_size=len(together))
            about = orjson.dumps({"exporter": self.name, "version": self.version, **sequences.summary()})
            writer.add_key_value_metadata({"penstock": about.decode()})

    def _schema(self, pyarrow: Any) -> Any:
        columns = [
            *((name, pyarrow.string()) for name in _TEXTS),
            ("number", pyarrow.int32()),
            ("frame", pyarrow.int64()),
            ("time", pyarrow.float64()),
            *((name, pyarrow.float64()) for name in _NUMBERS),
            *((name, pyarrow.bool_()) for name in _FLAGS),
            ("absent", pyarrow.string()),
            ("path", pyarrow.string()),
            ("image_height", pyarrow.int32()),
            ("image_width", pyarrow.int32()),
        ]
        return pyarrow.schema([*columns, *([("image", pyarrow.binary())] if self.images else [])])

    def _rows(self, sequence: SavedSequence) -> list[Row]:
        head = {name: getattr(sequence, name) for name in ("source", "category", "video")}
        rows = [*self._frames(sequence), *_histories(sequence)]
        return [{"sequence": sequence.name, **head, **row} for row in rows]

    def _frames(self, sequence: SavedSequence) -> Iterator[Row]:
        for one in sequence.frames:
            flags = {flag: sequence.record.get(f"{one.role}_{flag}") for flag in _FLAGS[:2]}
            row: Row = {
                "role": one.role,
                "number": one.number,
                "frame": one.frame,
                **_box(one.box),
                **{flag: None if found is None else bool(found[one.number]) for flag, found in flags.items()},
                "absent": one.absent,
                "path": one.path,
            }
            if one.picture is not None:
                row |= {"image_height": one.size_hw[0], "image_width": one.size_hw[1]}
                row |= {"image": one.picture} if self.images else {}
            yield row


def _histories(sequence: SavedSequence) -> Iterator[Row]:
    for role, steps in sequence.histories.items():
        for number, box in enumerate(steps.boxes):
            yield {
                "role": role,
                "number": number,
                "frame": None if steps.frames is None else steps.frames[number],
                "time": None if steps.time is None else steps.time[number],
                **_box(box),
                **{flag: None if found is None else bool(found[number]) for flag, found in steps.flags.items()},
            }


def _box(box: np.ndarray) -> Row:
    return {name: None if value != value else value for name, value in zip(_NUMBERS, box.tolist(), strict=True)}
