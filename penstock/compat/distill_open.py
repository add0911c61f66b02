"""Opening a distillation set for `BinaryDistillDataset`: the seed's checks, words and built-in errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.errors import SchemaError, SourceNotFound, StoreCorrupt
from penstock.schema import Field
from penstock.store import Store, open_store
from penstock.store.box_format import box_format
from penstock.store.manifest import NAME as MANIFEST
from penstock.store.part import Part
from penstock.store.v1 import CONFIG, V1_LAYOUT, read_config
from penstock.store.v1_schema import IMAGE_SIZE, V1_SCHEMA

_SPOKEN = {"images": "image", "edge_maps": "edge maps", "weight_maps": "weight maps", "masks": "mask", "bboxes": "bbox"}
"""Stem of a file -> what the seed calls one record of it."""


class ShapeMismatch(SchemaError, RuntimeError):
    """The files hold tensors of other shapes than the reader was told to expect."""


def open_distillation_set(root: Path) -> Store:
    """Opens a v1 directory or a store, and raises what the seed's reader raises, in its words.

    Args:
        root: the folder.

    Returns:
        The store; its attribute bbox_format is "xyxy" or "xywh", in original-image pixels.

    Raises:
        SourceNotFound (FileNotFoundError): "Config not found at ..."; or a .bin file is not there.
        ShapeMismatch (RuntimeError): config.json tells of other sizes than those of layout v1.
        StoreCorrupt (OSError): "Failed to read image at index ...: expected 3145728 bytes, got ..."; or the sizes and
            counts of the files do not agree otherwise.
        StoreUnsupported: the boxes are in a format or frame that is neither of the two.
    """
    if not (root / MANIFEST).exists():
        if not (root / CONFIG).is_file():
            remedy = "run convert_tar_to_bin.py, or give the folder that holds it"
            raise SourceNotFound(f"Config not found at {root / CONFIG}: {remedy}")
        config = read_config(root)
        _check_config(root, config)
        _refuse_short(root, int(str(config["total_samples"])))
    store = open_store(root)
    box_format(store)
    return store


def check_shapes(store: Store, names: Sequence[str], input_size: int) -> None:
    """Compares the store's fields with what the reader promises.

    Args:
        store: the set.
        names: fields that must be there beside the picture, each of the shape it has in layout v1; `bboxes` and `masks`
            may also be (N, 4) and (N, 256, 256).
        input_size: side of the picture.

    Raises:
        SchemaError: a field is missing, with what to do.
        ShapeMismatch: a field has another shape.
    """
    wanted = ["image_jpeg" if "image_jpeg" in store.schema else "image", *names]
    missing = [name for name in wanted if name not in store.schema]
    if missing:
        raise SchemaError(f"{store.path}: no field {', '.join(missing)}; convert again, see --fields")
    side = store.attributes.get("image_size", input_size)
    if "image" in store.schema:
        _check_field(store, store.schema["image"], (input_size, input_size, 3))
    elif side != input_size:
        expected, found = (input_size, input_size, 3), (side, side, 3)
        raise ShapeMismatch(_mismatch(store.path, "image_jpeg", expected, found))
    for name in names:
        field, known = store.schema[name], V1_SCHEMA[name]
        _check_field(store, field, (None, *known.shape[1:]) if field.is_variable else known.shape)


def torn_read(store: Store, row: int) -> StoreCorrupt | None:
    """What the seed's reader says of a row that a file is too short for; None where no file of fixed records is.

    Args:
        store: the set.
        row: row of the store, 0..len-1.
    """
    part, local = _part_of(store, row)
    for file in part.layout.records:
        found = _size(part.folder / file.name) - local * file.record_bytes
        if found < file.record_bytes:
            return _torn(part.folder / file.name, row, file.record_bytes, max(0, found))
    return None


def _part_of(store: Store, row: int) -> tuple[Part, int]:
    for part in store.parts:
        if row < part.rows:
            return part, row
        row -= part.rows
    raise IndexError(f"row {row} of {len(store)} rows")


def _refuse_short(root: Path, rows: int) -> None:
    for file in V1_LAYOUT.records:
        path = root / file.name
        if not path.exists():
            raise SourceNotFound(f"Required file not found: {path}: config.json counts {rows} samples; convert again")
        index, rest = divmod(_size(path), file.record_bytes)
        if index < rows:
            raise _torn(path, index, file.record_bytes, rest)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _torn(path: Path, index: int, expected: int, found: int) -> StoreCorrupt:
    stem = path.name.removesuffix(".bin")
    what = f"Failed to read {_SPOKEN.get(stem, stem)} at index {index}: expected {expected} bytes, got {found}"
    return StoreCorrupt(f"{what}: {path} is shorter than the count of samples says; run penstock verify {path.parent}")


def _check_config(root: Path, config: Mapping[str, object]) -> None:
    sizes = config.get("sample_sizes")
    for file in V1_LAYOUT.records:
        stem = file.name.removesuffix(".bin")
        name = f"{stem.replace('images', 'image')}_bytes"
        said = sizes.get(name, file.record_bytes) if isinstance(sizes, Mapping) else file.record_bytes
        if said != file.record_bytes:
            shapes = ", ".join(f"{slot.field.name} {slot.field.shape}" for slot in file.slots)
            first = file.slots[0].field
            raise ShapeMismatch(
                f"Expected tensor of shape {first.shape} for {first.name}, records of {file.record_bytes} bytes "
                f"({shapes}); {root / CONFIG} says {name} = {said}: this is no directory of layout v1"
            )
    side = config.get("image_size", IMAGE_SIZE)
    if side != IMAGE_SIZE:
        raise ShapeMismatch(_mismatch(root, "image", (IMAGE_SIZE, IMAGE_SIZE, 3), (side, side, 3)))


def _check_field(store: Store, field: Field, expected: tuple[int | None, ...]) -> None:
    if field.shape != expected:
        raise ShapeMismatch(_mismatch(store.path, field.name, expected, field.shape))


def _mismatch(path: Path, name: str, expected: Sequence[object], found: Sequence[object]) -> str:
    remedy = f"give input_size={found[0]}, or convert again" if name.startswith("image") else "convert again"
    return f"Expected tensor of shape {tuple(expected)} for {name}, got {tuple(found)}: {path}; {remedy}"
