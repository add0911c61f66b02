"""`coco-panoptic`: segments of COCO panoptic, and of anything in its format.

Source of the format: the data page of cocodataset.org and panopticapi: the id of a pixel is R + 256 G + 65536 B of the PNG;
0 is void; class and crowd flag stand in `segments_info`, whether a class is a thing in `categories`.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penstock.errors import BadData
from penstock.geometry.id_pngs import read_panoptic_png
from penstock.geometry.masks import nearest
from penstock.readers.base import Memo
from penstock.readers.coco_columns import Pictures, SplitRows, Tally, annotation_columns, arrange, listed, split_rows
from penstock.readers.coco_files import LABEL, CocoReader, joined
from penstock.readers.fields import AREA, BOX, CATEGORY, CATEGORY_ID, IMAGE, IMAGE_ID, ISCROWD, MASK, PATH
from penstock.schema import Field, Record, Schema

SEGMENT_ID = Field(
    name="segment_id", dtype="int64", kind="number", meaning="id of the segment in its picture, 1..16777215"
)
ISTHING = Field(
    name="isthing", dtype="bool", kind="flag", meaning="a class of countable things, by categories, not by the segment"
)
SUPERCATEGORY = Field(
    name="supercategory", dtype="str", kind="text", meaning="group of the class, empty where there is none"
)


class CocoPanoptic(CocoReader):
    """Segments of `annotations/panoptic_<split>.json`, with an id PNG per photo. Void (id 0) is no segment.

    Rows are in order of picture id and segment id; the key is `<picture>_<segment>`, where the picture is the stem of its
    file, zeros kept.

    Args:
        root: the folder that holds `annotations`.
        split: a split's name, or its start ("train", "val"), or "all"; None for the only one.
        images: folder of the photos, relative to the root, where it is not `<split>` or `images/<split>`.
        resize: "error" refuses an id PNG of another size than the photo; "nearest" stretches it.

    Raises:
        SourceNotFound, BadData, UsageError: as `CocoReader`.
    """

    name = "coco-panoptic"
    layout = "annotations/panoptic_<split>.json, panoptic_<split>/*.png and <split>/*.jpg"
    kind = "panoptic"
    id_column = "segment_id"
    row_columns = ("segment_id", "category_id", "area", "box", "iscrowd")
    schema = Schema(
        [
            IMAGE,
            MASK,
            BOX,
            AREA,
            SEGMENT_ID,
            IMAGE_ID,
            CATEGORY,
            CATEGORY_ID,
            LABEL,
            ISTHING,
            ISCROWD,
            SUPERCATEGORY,
            PATH,
        ]
    )

    def __init__(
        self,
        root: Path | str,
        *,
        split: str | None = None,
        images: str | None = None,
        resize: Literal["error", "nearest"] = "error",
    ) -> None:
        self.resize = resize
        super().__init__(root, split=split, images=images, options={"resize": resize})
        self._maps = [
            self._place(number, "map", self._map_folders(name), suffixes=("", ".png"))
            for number, name in enumerate(self.splits)
        ]

    def id_map(self, index: int) -> np.ndarray:
        """Segment ids of the picture that a row belongs to: (H, W) uint32, of the photo's size, 0 where void.

        Raises:
            IndexError: there is no such row.
            BadData: the PNG is missing, damaged, or of another size than the photo (unless resize="nearest").
        """
        return self._ids(self.group_of(index), Memo())

    def unlisted_ids(self, index: int) -> np.ndarray:
        """Ids in the PNG of a row's picture that the annotation does not list: (N,) uint32, ascending, void left out.

        Raises:
            IndexError, BadData: as `id_map`.
        """
        group = self.groups[self.group_of(index)]
        known = self.index["segment_id"][group.start : group.stop]
        return np.setdiff1d(self.id_map(index), np.append(known, 0)).astype(np.uint32)

    def _split_rows(self, content: dict[str, Any], pictures: Pictures, tally: Tally, where: str) -> SplitRows:
        entries = listed(content, "annotations", where)
        is_whole = [isinstance(entry, dict) and isinstance(entry.get("segments_info"), list) for entry in entries]
        tally.problem(
            "annotations have no segments_info", [e for e, whole in zip(entries, is_whole, strict=True) if not whole]
        )
        entries = [entry for entry, whole in zip(entries, is_whole, strict=True) if whole]
        owners = pictures.positions(entry.get("image_id") for entry in entries)
        lengths = [len(entry["segments_info"]) for entry in entries]
        segments = list(chain.from_iterable(entry["segments_info"] for entry in entries))
        columns = annotation_columns(segments, self.id_column)
        is_void = columns[self.id_column] == 0
        tally.count("void_entries", int(is_void.sum()))
        order, row_owners = arrange(
            columns, self.id_column, owners=np.repeat(owners, lengths), keep=~is_void, tally=tally
        )
        part = split_rows(pictures, columns, order, row_owners)
        maps = {owner: entry.get("file_name") for owner, entry in zip(owners.tolist(), entries, strict=True)}
        part.picture_texts["map"] = [
            name if isinstance(name, str) else "" for name in (maps[owner] for owner in np.unique(row_owners).tolist())
        ]
        return part

    def _map_folders(self, split: str) -> list[str]:
        return [f"panoptic_{split}", f"annotations/panoptic_{split}"]

    def _map(self, group: int) -> str:
        return joined(self._maps[int(self.index["split"][group])], self.index.text("map", group))

    def _pictures(self, row: int) -> Sequence[str]:
        group = self.group_of(row)
        return [self._photo(group), self._map(group)]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        record = self._common(row, fields, memo)
        if "mask" in fields:
            mask = self._ids(self.group_of(row), memo) == self.index["segment_id"][row]
            if not mask.any():
                path = self._map(self.group_of(row))
                raise BadData(f"{self._where(row)}: expected pixels of this id in {path}, got none: the mask is empty")
            record["mask"] = mask.view(np.uint8)
        return record

    def _ids(self, group: int, memo: Memo) -> np.ndarray:
        path = self._map(group)
        return memo.once(("ids", path), lambda: self._read_ids(path, self._size(group, memo)))

    def _read_ids(self, path: str, size_hw: tuple[int, int]) -> np.ndarray:
        content = self.files.read(path)
        try:
            ids = read_panoptic_png(content)
        except BadData as error:
            raise BadData(f"{self.files.root}: {path}: {error}") from error
        if ids.shape != size_hw:
            if self.resize == "error":
                raise BadData(
                    f"{self.files.root}: {path}: expected the photo's size, {size_hw[0]} x {size_hw[1]} (height x width), "
                    f"got {ids.shape[0]} x {ids.shape[1]}; resize=nearest stretches it"
                )
            ids = nearest(ids, size_hw)
        ids.flags.writeable = False
        return ids
