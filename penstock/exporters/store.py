"""`store`: a penstock store whose rows are sequences."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from penstock.errors import BadData, SchemaError
from penstock.exporters.base import Output, Sequences
from penstock.exporters.records import Records
from penstock.exporters.sequences import SavedSequence
from penstock.schema import Field, Record, Schema
from penstock.sequence_folder import IMAGES, MASKS, RAW, RAW_MASKS, picture_name
from penstock.store import write_store

_VARIABLE = "the picture's file, JPEG or PNG"


@dataclass(frozen=True, kw_only=True)
class StoreOfSequences:
    """A penstock store: a row is a sequence, its fields are those of `Saved`, for training without decoding.

    Pictures of one size (crops) are pixels; pictures of the source, each of its own size, are their files as they are, in
    fields of the same name (`template_image_000`, kind "jpeg", or "array" for PNGs); empty where there is none. Keys are
    names of sequences. Attributes say recipe, sources and licence.
    """

    name: ClassVar[str] = "store"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`.

        Raises:
            SourceNotFound: SequenceSaver wrote the set, which keeps no schema.
        """
        records = Records(sequences)
        schema = store_schema(records.schema, records.saved.image_format)

        def row(sequence: SavedSequence) -> tuple[str, Record]:
            return sequence.name, _row(sequence, records, schema)

        def rows() -> Iterator[tuple[str, Record]]:
            yield from sequences.map(row)

        about = {"exporter": self.name, "version": self.version}
        write_store(
            out.path,
            schema,
            rows(),
            identity=about,
            attributes={**about, **sequences.summary()},
            disk=out.disk,
        )


def store_schema(schema: Schema, suffix: str) -> Schema:
    """The fields of the store for these of a set; pictures of any size are files."""
    return Schema(field if field.is_storable else _as_file(field, suffix) for field in schema.fields)


def _as_file(field: Field, suffix: str) -> Field:
    kind = "jpeg" if suffix == "jpg" and field.kind == "image" else "array"
    return replace(
        field, dtype="uint8", shape=(None,), axes="B", kind=kind, meaning=f"{_VARIABLE}: {field.meaning}", file=""
    )


def _row(sequence: SavedSequence, records: Records, schema: Schema) -> Record:
    fixed = [name for name, field in records.schema.items() if field.is_storable]
    record = records.read(sequence, fixed)
    for name in schema:
        if name not in record:
            record[name] = np.frombuffer(_file(sequence, name, records.saved.image_format), np.uint8)
    try:
        return {name: value if isinstance(value, str) else schema[name].encode(value) for name, value in record.items()}
    except SchemaError as error:
        raise BadData(f"{sequence.folder}: {error}") from error


def _file(sequence: SavedSequence, name: str, suffix: str) -> bytes:
    """The file of a field such as `template_image_000` or `search_mask_001`; empty where there is none."""
    role, what, number = name.split("_")
    both = sequence.provenance["pictures"] == "both"
    folders = {"image": (IMAGES, RAW), "mask": (MASKS, RAW_MASKS)}[what]
    path = picture_name(role, int(number), suffix if what == "image" else "png", folder=folders[both])
    return (sequence.folder / path).read_bytes() if path in sequence.provenance["files"] else b""
