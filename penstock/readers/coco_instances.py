"""`coco-instances` and `coco-lmdb`: annotated objects of COCO, LVIS, and anything in their format.

Source of the format: the data page of cocodataset.org; the LMDB is that of the trackers' `MSCOCOSeq_lmdb`: keys are the
relative paths of the files.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from penstock.errors import BadData, UsageError
from penstock.geometry.polygons import segmentation_to_mask
from penstock.readers.base import Memo
from penstock.readers.coco_columns import Pictures, SplitRows, Tally, annotation_columns, arrange, listed, split_rows
from penstock.readers.coco_files import LABEL, CocoReader
from penstock.readers.fields import (
    ANNOTATION_ID,
    AREA,
    BOX,
    CATEGORY,
    CATEGORY_ID,
    IMAGE,
    IMAGE_ID,
    ISCROWD,
    MASK,
    PATH,
)
from penstock.readers.files import Files, LmdbFiles
from penstock.schema import Record, Schema

_HUNDREDTHS, _JSON = b"\0", b"\1"
_CHUNK = 4096


class CocoInstances(CocoReader):
    """Annotations of `annotations/instances_<split>.json`. Pictures without annotations have no rows.

    Rows are in order of picture id and annotation id; the key is `<picture>_<annotation>`, where the picture is the stem of
    its file, zeros kept. Boxes may reach a little over the border: COCO rounds them.

    Args:
        root: the folder that holds `annotations`.
        split: a split's name, or its start ("train", "val"), or "all"; None for the only one.
        annotations: another file than `instances_*.json`, in `annotations` or relative to the root (LVIS, say).
        images: folder of the photos, relative to the root, where it is not `<split>` or `images/<split>`.
        crowd: "drop" leaves out what is marked as a crowd.
        min_side: leaves out boxes that are not wider and higher than this, in pixels; 0 leaves out none. The samplers of
            the trackers mean 50.

    Raises:
        SourceNotFound, BadData, UsageError: as `CocoReader`; a negative `min_side`, another word for `crowd`.
    """

    name = "coco-instances"
    layout = "annotations/instances_<split>.json, and <split>/*.jpg or images/<split>/*.jpg"
    kind = "instances"
    id_column = "annotation_id"
    row_columns = ("annotation_id", "category_id", "area", "box", "iscrowd", "segmentation")
    schema = Schema([IMAGE, MASK, BOX, AREA, ANNOTATION_ID, IMAGE_ID, CATEGORY, CATEGORY_ID, LABEL, ISCROWD, PATH])

    def __init__(
        self,
        root: Path | str,
        *,
        split: str | None = None,
        annotations: str | None = None,
        images: str | None = None,
        crowd: Literal["keep", "drop"] = "keep",
        min_side: float = 0,
    ) -> None:
        if crowd not in ("keep", "drop") or not 0 <= min_side < float("inf"):
            raise UsageError(f"{self.name}: expected crowd keep or drop and min_side >= 0, got {crowd!r}, {min_side}")
        self.crowd = crowd
        self.min_side = min_side
        super().__init__(
            root,
            split=split,
            annotations=annotations,
            images=images,
            options={"crowd": crowd, "min_side": float(min_side)},
        )

    def segmentation(self, index: int) -> object:
        """The annotation's `segmentation`: a list of polygons (lists of float), or RLE, as the JSON has it."""
        return unpack_segmentation(self.index.raw("segmentation", range(len(self))[index]))

    def _split_rows(self, content: dict[str, Any], pictures: Pictures, tally: Tally, where: str) -> SplitRows:
        entries = listed(content, "annotations", where)
        is_object = [isinstance(entry, dict) for entry in entries]
        tally.problem("annotations are no objects", [e for e, fits in zip(entries, is_object, strict=True) if not fits])
        entries = [entry for entry, fits in zip(entries, is_object, strict=True) if fits]
        owners = pictures.positions(entry.get("image_id") for entry in entries)
        columns = annotation_columns(entries, self.id_column)
        is_crowd = columns["iscrowd"] & (self.crowd == "drop")
        is_small = (columns["box"][:, 2:] <= self.min_side).any(axis=1) & (self.min_side > 0) & ~is_crowd
        tally.count("crowds_left_out", int(is_crowd.sum()))
        tally.count("small_left_out", int(is_small.sum()))
        order, row_owners = arrange(columns, self.id_column, owners=owners, keep=~is_crowd & ~is_small, tally=tally)
        part = split_rows(pictures, columns, order, row_owners)
        part.texts["segmentation"] = pack_segmentations([entries[one].get("segmentation") for one in order.tolist()])
        return part

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        record = self._common(row, fields, memo)
        if "mask" in fields:
            size = self._size(self.group_of(row), memo)
            try:
                mask = segmentation_to_mask(self.segmentation(row), size)
            except BadData as error:
                raise BadData(f"{self._where(row)}: {error}") from error
            if not mask.any():
                raise BadData(f"{self._where(row)}: expected a segmentation that covers a pixel, got an empty mask")
            record["mask"] = mask
        return record


class CocoLmdb(CocoInstances):
    """The same in an LMDB: keys `annotations/instances_<split>.json` and `images/<split>/<file>`. Otherwise as
    `CocoInstances`."""

    name = "coco-lmdb"
    layout = "an LMDB with the keys annotations/instances_<split>.json and images/<split>/<file>"

    def _open(self, root: Path) -> Files:
        return LmdbFiles(root)


def pack_segmentations(segmentations: Sequence[Any]) -> list[bytes]:
    """Each segmentation in few bytes; `unpack_segmentation` gives it back, exactly.

    COCO's coordinates have two decimals: polygons that are whole hundredths of a pixel, to the last bit, become int32
    (count, then the coordinates, polygon by polygon). All else stays JSON.
    """
    packed: list[bytes] = []
    for start in range(0, len(segmentations), _CHUNK):
        chunk = segmentations[start : start + _CHUNK]
        lists = [one for one in chunk if isinstance(one, list)]
        done = _packed_polygons(lists) or [(_packed_polygons([one]) or [_as_json(one)])[0] for one in lists]
        next_list = iter(done)
        packed += [next(next_list) if isinstance(one, list) else _as_json(one) for one in chunk]
    return packed


def unpack_segmentation(packed: bytes) -> object:
    """The inverse of `pack_segmentations`, for one: polygons as lists of float, or what the JSON had."""
    if packed[:1] == _JSON:
        return orjson.loads(packed[1:])
    numbers = np.frombuffer(packed, "<i4", offset=1)
    polygons, at = [], 0
    while at < len(numbers):
        end = at + 1 + int(numbers[at])
        polygons.append((numbers[at + 1 : end] / 100).tolist())
        at = end
    return polygons


def _as_json(segmentation: object) -> bytes:
    return _JSON + orjson.dumps(segmentation)


def _packed_polygons(segmentations: Sequence[Any]) -> list[bytes]:
    """All of them as hundredths; those that are not exact as JSON. None where one of them is no list of
    lists of numbers, or empty."""
    if not all(segmentations):
        return []
    polygons = list(chain.from_iterable(segmentations))
    if {*map(type, polygons)} != {list}:
        return []
    flat = list(chain.from_iterable(polygons))
    if {*map(type, flat)} - {int, float}:
        return []
    lengths = np.array([*map(len, polygons)])
    values = np.array(flat, np.float64)
    with np.errstate(over="ignore"):
        hundredths = np.rint(values * 100)
    is_exact = (np.abs(hundredths) < 1 << 31) & (hundredths / 100 == values)
    hundredths[~is_exact] = 0
    numbers = np.insert(hundredths.astype("<i4"), np.cumsum(lengths) - lengths, lengths).tobytes()
    ends = np.cumsum(lengths + 1)[np.cumsum([*map(len, segmentations)]) - 1].tolist()
    inexact = np.flatnonzero(np.insert(~is_exact, np.cumsum(lengths) - lengths, False))
    wrong = set(np.searchsorted(ends, inexact, side="right").tolist())
    starts = [0, *ends[:-1]]
    return [
        _as_json(one) if place in wrong else _HUNDREDTHS + numbers[4 * start : 4 * end]
        for place, (one, start, end) in enumerate(zip(segmentations, starts, ends, strict=True))
    ]
