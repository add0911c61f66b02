"""Field and Schema: the named columns of a source, stored with the data and read by writer and reader alike."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np

from penstock.errors import SchemaError

Value = np.ndarray | str
"""What one field of one record holds: an array, or a str for a text field."""

Record = dict[str, Value]
"""One row: field name -> value."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One named column.

    A field whose first dimension is None has a variable length: JPEG bytes, captions, the boxes of a picture. Readers also
    have fields with more open dimensions (a picture of any size); stores hold them encoded, or stretched to one size.
    """

    name: str
    dtype: str
    """A NumPy type name ("uint8", "float32", "bool"), or "str" for UTF-8 text."""
    shape: tuple[int | None, ...] = ()
    """Shape of one row. A dimension that is None varies from row to row; a store takes that in the first place only."""
    axes: str = ""
    """What the dimensions are, one word each: "H W C", "N 4"."""
    kind: str = "array"
    """How a viewer or an exporter may understand it: image, jpeg, features, mask, boxes, map, text, embedding, array."""
    meaning: str = ""
    """One sentence: unit, range, coordinate frame, box format."""
    file: str = ""
    """Stem of the file that holds it. Fixed fields may share one; empty means the field's own name."""
    allows_nan: bool = False
    """Whether NaN says that there is no number: a box of a frame without the target, a time where no rate is known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", (None,) if self.is_text and not self.shape else tuple(self.shape))
        if not self.name.replace("_", "").isalnum() or not self.name.isascii():
            raise SchemaError(f"field name {self.name!r}: expected ASCII letters, digits and underscores")
        if self.is_text:
            if self.shape != (None,):
                raise SchemaError(f"field {self.name}: text has shape (None,), got {self.shape}")
        else:
            dtype = _numpy_dtype(self.name, self.dtype)
            object.__setattr__(self, "dtype", dtype.name)
        if any(size < 0 for size in self.item_shape):
            raise SchemaError(f"field {self.name}: shape {self.shape}: no dimension may be negative")
        if not self.file:
            object.__setattr__(self, "file", self.name)
        if self.is_variable and self.file != self.name:
            raise SchemaError(
                f"field {self.name}: a field of variable length has files of its own, got file={self.file!r}"
            )

    @cached_property
    def is_text(self) -> bool:
        """Whether a row holds a str."""
        return self.dtype == "str"

    @cached_property
    def is_variable(self) -> bool:
        """Whether the size differs from row to row."""
        return None in self.shape

    @cached_property
    def is_storable(self) -> bool:
        """Whether a store can hold it: no dimension but the first varies."""
        return None not in self.shape[1:]

    @cached_property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one element along a varying first dimension; the whole shape of a fixed field."""
        return tuple(n for n in self.shape if n is not None)

    @cached_property
    def numpy_dtype(self) -> np.dtype:
        """Element type on disk, little-endian; uint8 for text."""
        return np.dtype(np.uint8) if self.is_text else np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of one row of a fixed field; of one element of a varying one."""
        return self.numpy_dtype.itemsize * int(np.prod(self.item_shape, dtype=np.int64))

    def encode(self, value: Value) -> np.ndarray:
        """The value as the C-contiguous little-endian array that goes to disk.

        Casts are NumPy's "safe" ones, plus narrowing of floats (float64 to float32 or float16).

        Raises:
            SchemaError: the value has another shape or a type that would lose information.
        """
        if self.is_text:
            if not isinstance(value, str):
                raise SchemaError(f"field {self.name}: expected str, got {type(value).__name__}")
            return np.frombuffer(value.encode(), np.uint8)
        array = np.asarray(value)
        if array.shape == self.shape and array.dtype == self.numpy_dtype and array.flags.c_contiguous:
            return array
        fits = zip(array.shape, self.shape, strict=False)
        if array.ndim != len(self.shape) or any(wanted not in (None, size) for size, wanted in fits):
            raise SchemaError(f"field {self.name}: expected shape {self.shape}, got {array.shape}")
        target = self.numpy_dtype
        floats = array.dtype.kind == "f" and target.kind == "f"
        if not (floats or np.can_cast(array.dtype, target, "safe")):
            raise SchemaError(f"field {self.name}: {array.dtype} does not fit {target} without loss; cast it yourself")
        return np.ascontiguousarray(array, target).reshape(array.shape)

    def to_json(self) -> dict[str, object]:
        """Plain values, fit for json.dumps. `allows_nan` is there only where it is true."""
        values = {**asdict(self), "shape": list(self.shape)}
        return values if self.allows_nan else {name: value for name, value in values.items() if name != "allows_nan"}


@dataclass(frozen=True)
class Schema(Mapping[str, Field]):
    """The ordered list of a source's fields; a mapping from name to Field."""

    fields: tuple[Field, ...]

    def __init__(self, fields: Iterable[Field]) -> None:
        object.__setattr__(self, "fields", tuple(fields))
        names = [field.name for field in self.fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SchemaError(f"fields named twice: {', '.join(twice)}")

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def select(self, names: Sequence[str] | None) -> "Schema":
        """The schema of these fields, in this schema's order; all of them for None.

        Raises:
            SchemaError: a name is not a field.
        """
        if names is None:
            return self
        unknown = [name for name in names if name not in self]
        if unknown:
            raise SchemaError(f"no field {', '.join(unknown)}; the fields are {', '.join(self)}")
        return Schema(field for field in self.fields if field.name in set(names))

    def to_json(self) -> list[dict[str, object]]:
        """Plain values, fit for json.dumps."""
        return [field.to_json() for field in self.fields]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, object]]) -> "Schema":
        """The inverse of `to_json`.

        Raises:
            SchemaError: a row lacks a name or a type, or has an attribute that a Field does not have.
        """
        known = {attribute.name for attribute in fields(Field)}
        for row in rows:
            strange = sorted(set(row) - known)
            if strange or not {"name", "dtype"} <= set(row):
                raise SchemaError(f"not a field: {dict(row)}; unknown attributes: {strange}")
        return cls(Field(**row) for row in rows)  # type: ignore[arg-type]  # checked by Field itself


def _numpy_dtype(name: str, dtype: str) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise SchemaError(f"field {name}: {dtype!r} is no NumPy type") from error
    if found.kind not in "biufc":
        raise SchemaError(f"field {name}: type {dtype!r}: expected numbers, bool, or str for text")
    return found
