"""What any source is, in plain values: kind, counts, schema, sizes. For `penstock info` and the doctor."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from penstock.errors import PenstockError
from penstock.geometry.boxes import box_fault
from penstock.readers.base import Reader
from penstock.schema import Record
from penstock.source import Source
from penstock.store import Store

SAMPLE = 16
"""Rows read to say how large pictures are and whether they decode."""


@dataclass
class Looked:
    """What reading a few rows, spread evenly over a source, has shown."""

    rows: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Key -> what reading the row raised."""
    sizes_hw: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of the pictures."""
    empty_masks: int = 0
    masks: int = 0
    boxes: int = 0
    boxes_outside: int = 0
    """Boxes of positive size of which nothing lies in the picture."""
    images: list[np.ndarray] = field(default_factory=list)
    """(H, W, 3) uint8, at most 8 of them."""
    picture_bytes: list[int] = field(default_factory=list)


def describe(source: Source, *, sample: int = SAMPLE) -> dict[str, object]:
    """Kind, rows, groups, schema, attributes, sizes of a source.

    Args:
        source: a store, a reader, any other source.
        sample: rows to read for the sizes of pictures; 0 reads none.

    Returns:
        Plain values, fit for json.dumps: kind, rows, groups, schema, attributes, and what the kind adds (states and parts
        of a store; problems and sample of a reader).
    """
    schema = [{**each.to_json(), "file": each.file} for each in source.schema.fields]
    content: dict[str, object] = {"kind": type(source).__name__, "rows": len(source), "groups": len(source)}
    content |= {"schema": schema, "attributes": {}}
    if isinstance(source, Store):
        foreign = source.attributes.get("layout") == "v1" and not (Path(source.path) / "store.json").exists()
        content |= {"kind": "v1" if foreign else "store", "states": source.counts(), "parts": len(source.parts)}
        content |= {"attributes": source.attributes, "bytes": _bytes_below(Path(source.path))}
    elif isinstance(source, Reader):
        content |= {"kind": source.name, "groups": len(source.groups)}
        content["attributes"] = {"path": str(source.root), "options": _plain(source.options), **source.describe()}
        content["problems"] = [
            {"path": problem.path, "error": problem.error, "message": problem.message} for problem in source.problems
        ]
        if sample:
            content["sample"] = sizes(source, look(source, sample))
    elif not len(source):
        message = f"{type(source).__name__} finds no row here; is this the right reader?"
        content["problems"] = [{"path": "", "error": "SourceNotFound", "message": message}]
    return content


def look(source: Source, rows: int = SAMPLE) -> Looked:
    """Reads some rows, spread evenly from the first to the last."""
    looked = Looked()
    for row in np.unique(np.linspace(0, len(source) - 1, min(rows, len(source))).astype(int)).tolist():
        looked.rows += 1
        try:
            record = source[row]
        except (PenstockError, OSError) as error:
            looked.failures[source.keys[row]] = f"{type(error).__name__}: {error}"
            continue
        for name, kind in ((each.name, each.kind) for each in source.schema.fields):
            value = record[name]
            if isinstance(value, str):
                continue
            if kind == "image":
                looked.sizes_hw.append((value.shape[0], value.shape[1]))
                looked.images += [value][: 8 - len(looked.images)]
            elif kind in ("mask", "ids"):
                looked.masks += 1
                looked.empty_masks += not (np.asarray(value) > 0).any()
        if isinstance(source, Reader):
            looked.picture_bytes += source.picture_bytes(row)
            _look_at_box(looked, record)
    return looked


def _look_at_box(looked: Looked, record: Record) -> None:
    box, image = record.get("box"), record.get("image")
    if isinstance(box, np.ndarray) and isinstance(image, np.ndarray) and (box[2:] > 0).all():
        looked.boxes += 1
        looked.boxes_outside += bool(box_fault(box, (image.shape[0], image.shape[1])))


def sizes(source: Source, looked: Looked) -> dict[str, object]:
    """What was seen in numbers: rows read and failed, picture sides, bytes of a picture file, empty masks."""
    found: dict[str, object] = {"rows": looked.rows, "failed": len(looked.failures), "failures": looked.failures}
    if looked.sizes_hw:
        heights, widths = zip(*looked.sizes_hw, strict=True)
        found |= {"height": [min(heights), max(heights)], "width": [min(widths), max(widths)]}
    if looked.picture_bytes:
        found["bytes_per_picture"] = round(sum(looked.picture_bytes) / len(looked.picture_bytes))
    if looked.masks:
        found |= {"masks": looked.masks, "empty_masks": looked.empty_masks}
    if looked.boxes:
        found |= {"boxes": looked.boxes, "boxes_outside": looked.boxes_outside}
    return found


def _plain(options: dict[str, object]) -> dict[str, object]:
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return {
        name: value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)
        for name, value in listed.items()
    }


def _bytes_below(folder: Path) -> int:
    """Bytes that the files below a folder take on disk; holes are not counted."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name), follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:  # a draft that was sealed or dropped meanwhile
                continue
    return total
