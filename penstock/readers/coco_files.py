"""What the readers of COCO's JSON files share: splits, pictures, classes, and annotations as columns.

Source of the format: the data page of cocodataset.org. Ids of pictures, annotations and classes are numbers of the JSON;
boxes are XYWH in pixels, corner from 0.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import box_fault
from penstock.geometry.images import picture_header
from penstock.readers.base import Memo, Reader, require_json
from penstock.readers.files import Files, FolderFiles
from penstock.readers.index import Index
from penstock.schema import Field, Record
from penstock.source import Problem

LABEL = Field(
    name="label",
    dtype="int64",
    kind="number",
    meaning="place of the class among all classes of the annotation file, sorted by category_id, from 0",
)
MISSING = int(np.iinfo(np.int64).min)
"""Stands in a column of whole numbers where the annotation has none."""
_PHOTO_SUFFIXES = ("", ".jpg", ".jpeg", ".png")
_PROBES = 4


@dataclass
class SplitRows:
    """One split as columns. Pictures with rows only, N of them, in order of their ids; rows in order of picture and id."""

    pictures: list[str]
    """(N,) file names as the annotation has them."""
    ids: list[str]
    """(N,) ids of the pictures, as text."""
    sizes: np.ndarray
    """(N, 2) height and width, 0 where the annotation does not say."""
    counts: np.ndarray
    """(N,) rows of each picture."""
    columns: dict[str, np.ndarray]
    """One entry per row."""
    texts: dict[str, list[bytes]] = field(default_factory=dict)
    """One entry per row."""
    picture_texts: dict[str, list[str]] = field(default_factory=dict)
    """One entry per picture."""


@dataclass
class Pictures:
    """`images` of an annotation file, in order of their ids (as numbers where they are)."""

    files: list[str]
    ids: list[Any]
    sizes: np.ndarray

    def positions(self, wanted: Iterable[object]) -> np.ndarray:
        """Position of each picture asked for by its id; -1 where there is none. (M,) int64."""
        known = {one: position for position, one in enumerate(self.ids)}
        return np.array([known.get(one, -1) if isinstance(one, int | str) else -1 for one in wanted], np.int64)


class CocoReader(Reader):
    """Base of readers of `annotations/<kind>_<split>.json`. A row is one annotation, a group is its picture.

    A subclass sets `kind` and `id_column`, and writes `_split_rows` and the fields of its own.

    Args:
        root: the folder that holds `annotations`.
        files: where the files lie, if not in the folder.
        split: as `choose_splits`.
        annotations: one annotation file by name, in `annotations` or relative to the root; then there is no `split`.
        images: folder of the photos relative to the root, where it is none of the usual.
        options: those of the subclass.
    """

    kind: ClassVar[str]
    id_column: ClassVar[str]

    def __init__(
        self,
        root: Path | str,
        *,
        files: Files | None = None,
        split: str | None = None,
        annotations: str | None = None,
        images: str | None = None,
        options: Mapping[str, object],
    ) -> None:
        self.annotations = annotations
        self._images = images
        self._missing: list[Problem] = []
        where = FolderFiles(root) if files is None else files
        self.splits = self._splits(where, split)
        named = {"split": ",".join(self.splits), "annotations": annotations, "images": images}
        super().__init__(root, files=where, options=named | dict(options))
        self._photos = [self._place(number, "file", self._folders(name)) for number, name in enumerate(self.splits)]

    def fault(self, files: Files) -> str:
        """The annotation file is not there."""
        if self.annotations is not None:
            return "" if named_annotation(files, self.annotations) else f"no {self.annotations}, nor in annotations/"
        return "" if find_splits(files, self.kind) else f"no annotations/{self.kind}_*.json"

    @property
    def problems(self) -> list[Problem]:
        """Faults of whole files: entries that are no rows, picture folders that are not there."""
        return [*self.index.problems, *self._missing]

    def column(self, name: str) -> np.ndarray:
        """As `Reader.column`, and `label`, (N,) int64 computed from the classes; -1 where the class is unknown."""
        if name != "label":
            return super().column(name)
        known, wanted = self.index["class_id"], self.index["category_id"]
        if not len(known):
            return np.full(len(wanted), -1)
        found = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[found] == wanted, found, -1)

    def fingerprint(self, index: int) -> int:
        """As `Reader.fingerprint`; the picture's size and the class's names count too."""
        group = self.group_of(index)
        parts = [super().fingerprint(index), self.index["size_hw"][group].tolist()]
        if (place := int(self._labels([index])[0])) >= 0:
            parts += [place, self.index.text("class", place), self.index.text("supercategory", place)]
            parts.append(int(self.index["class_isthing"][place]))
        return xxhash.xxh3_64_intdigest(repr(parts).encode("utf-8", "surrogateescape"))

    def describe(self) -> dict[str, object]:
        """Pictures per split, rows left out and why, crowds, classes."""
        pictures = np.bincount(self.index["split"], minlength=len(self.splits))
        counts = {
            name.partition(".")[2]: int(self.index[name].sum()) for name in self.index.columns if name[:6] == "count."
        }
        rows_of = np.bincount(self.column("label") + 1, minlength=1 + len(self.index["class_id"]))[1:]
        largest = [place for place in np.argsort(-rows_of, kind="stable")[:20].tolist() if rows_of[place]]
        return {
            "pictures_with_rows": {name: int(pictures[number]) for number, name in enumerate(self.splits)},
            **counts,
            "crowd_rows": int(np.count_nonzero(self.index["iscrowd"])),
            "rows_of_unknown_class": len(self) - int(rows_of.sum()),
            "classes": len(rows_of),
            "largest_classes": {self.index.text("class", place): int(rows_of[place]) for place in largest},
        }

    def _split_rows(self, content: dict[str, Any], pictures: Pictures, index: Index, path: str) -> SplitRows:
        """The rows of one annotation file; what cannot be a row goes to `index.problems`."""
        raise NotImplementedError

    def _splits(self, files: Files, split: str | None) -> dict[str, str]:
        if self.annotations is None:
            return choose_splits(find_splits(files, self.kind), split, f"{files.root}: {self.name}")
        if split is not None:
            raise UsageError(f"{self.name}: split={split} and annotations={self.annotations}: give one of them")
        path = named_annotation(files, self.annotations)
        return {Path(path).stem.removeprefix(f"{self.kind}_"): path} if path else {}

    def _stamps(self) -> Iterable[object]:
        return [(name, path, self.files.stamp(path)) for name, path in self.splits.items()]

    def _build(self) -> Index:
        index, parts, classes = Index(), [], _Classes()
        for path in self.splits.values():
            where = f"{self.files.root}: {path}"
            content = require_json(self.files.read(path), where, dict)
            classes.add(_listed(content, "categories", where), where)
            pictures = _pictures(_listed(content, "images", where), index, path)
            part = self._split_rows(content, pictures, index, path)
            _add_count(index, "pictures_without_rows", len(pictures.files) - len(part.pictures))
            parts.append(part)
        lengths = np.concatenate([part.counts for part in parts])
        index.put("starts", np.concatenate([[0], np.cumsum(lengths)]), "int64")
        index.put("split", np.repeat(np.arange(len(parts)), [len(part.pictures) for part in parts]), "uint8")
        index.put("size_hw", np.concatenate([part.sizes for part in parts]), "int32")
        index.put_texts("group", _names(dict(zip(self.splits, parts, strict=True)), self.root))
        index.put_texts("file", chain.from_iterable(part.pictures for part in parts))
        for name, values in parts[0].columns.items():
            index.put(name, np.concatenate([part.columns[name] for part in parts]), values.dtype.str)
        for name in parts[0].texts:
            index.put_texts(name, chain.from_iterable(part.texts[name] for part in parts))
        for name in parts[0].picture_texts:
            index.put_texts(name, chain.from_iterable(part.picture_texts[name] for part in parts))
        classes.put_into(index)
        return index

    def _folders(self, split: str) -> list[str]:
        """Where the photos of a split may lie, likely places first."""
        if self._images is not None:
            return [self._images.rstrip("/")]
        words = split.split("_")
        names = ["_".join(words[first:]) for first in range(len(words))]
        return [*names, *(f"images/{name}" for name in names), "images", ""]

    def _place(
        self, split: int, column: str, folders: Sequence[str], suffixes: Sequence[str] = _PHOTO_SUFFIXES
    ) -> tuple[str, str]:
        """Folder of a split's pictures, and the suffix that they have if not their own: where the first of them are."""
        groups = np.flatnonzero(self.index["split"] == split)[:_PROBES].tolist()
        for file in (self.index.text(column, group) for group in groups):
            for folder in folders:
                for suffix in suffixes if file else ():
                    if self.files.exists(_joined(folder, suffix, file)):
                        return folder, suffix
        for folder in folders:
            if folder and self.files.exists(folder):
                return folder, ""
        looked = ", ".join(f"{folder}/" for folder in folders if folder)
        message = f"no picture of this split and no folder for them; expected one of {looked}; its rows fail when read"
        self._missing.append(Problem(list(self.splits.values())[split], "SourceNotFound", message))
        return folders[0], ""

    def _key(self, row: int) -> str:
        return f"{self.index.text('group', self.group_of(row))}_{int(self.index[self.id_column][row])}"

    def _photo(self, group: int) -> str:
        folder, suffix = self._photos[int(self.index["split"][group])]
        return _joined(folder, suffix, self.index.text("file", group))

    def _pictures(self, row: int) -> Sequence[str]:
        return [self._photo(self.group_of(row))]

    def _where(self, row: int) -> str:
        group = self.group_of(row)
        path = list(self.splits.values())[int(self.index["split"][group])]
        number = int(self.index[self.id_column][row])
        return f"{self.files.root}: {path}: {self.id_column} {number} of picture {self.index.text('group', group)}"

    def _stated_size(self, group: int) -> tuple[int, int] | None:
        """Height and width by the annotation, or None."""
        height, width = self.index["size_hw"][group].tolist()
        return (height, width) if height > 0 and width > 0 else None

    def _size(self, group: int, memo: Memo) -> tuple[int, int]:
        """Height and width by the annotation, or else by the photo's header."""
        path = self._photo(group)
        return self._stated_size(group) or memo.once(
            ("size", path), lambda: picture_header(self.files.read(path)).size_hw
        )

    def _photo_pixels(self, row: int, memo: Memo) -> np.ndarray:
        group = self.group_of(row)
        if not self.index.text("file", group):
            raise BadData(f"{self._where(row)}: expected its entry of images to have a file_name or coco_url, got none")
        return self._image(self._photo(group), memo, self._stated_size(group))

    def _labels(self, rows: Sequence[int]) -> np.ndarray:
        """As `column("label")`, of some rows."""
        known, wanted = self.index["class_id"], self.index["category_id"][list(rows)]
        found = np.searchsorted(known, wanted)
        inside = found < len(known)
        inside[inside] = known[found[inside]] == wanted[inside]
        return np.where(inside, found, -1)

    def _common(self, row: int, fields: frozenset[str]) -> Record:
        """The fields that need no file, those asked for.

        Raises:
            BadData: the annotation has no such value, or a wrong one.
        """
        group = self.group_of(row)
        record: Record = {
            self.id_column: np.array(self.index[self.id_column][row]),
            "image_id": self.index.text("group", group),
            "iscrowd": np.array(self.index["iscrowd"][row]),
            "path": self._photo(group),
        }
        if "box" in fields:
            box = self.index["box"][row].copy()
            if fault := box_fault(box, self._stated_size(group)):
                raise BadData(f"{self._where(row)}: expected bbox to be four numbers inside the picture: it is {fault}")
            record["box"] = box
        if "area" in fields:
            area = np.array(self.index["area"][row])
            if not 0 <= area < np.inf:
                raise BadData(f"{self._where(row)}: expected area to be a number of pixels, got {area}")
            record["area"] = area
        if fields & {"category", "category_id", "label", "isthing", "supercategory"}:
            record |= self._class_fields(row, fields)
        return record

    def _class_fields(self, row: int, fields: frozenset[str]) -> Record:
        number, label = int(self.index["category_id"][row]), int(self._labels([row])[0])
        if label < 0:
            found = "none" if number == MISSING else str(number)
            raise BadData(f"{self._where(row)}: expected a category_id that is listed in categories, got {found}")
        isthing = int(self.index["class_isthing"][label])
        if "isthing" in fields and isthing < 0:
            raise BadData(f"{self._where(row)}: expected category {number} to say isthing 0 or 1, got nothing")
        return {
            "category": self.index.text("class", label),
            "category_id": np.array(number, np.int64),
            "label": np.array(label, np.int64),
            "supercategory": self.index.text("supercategory", label),
            "isthing": np.array(isthing > 0),
        }


class _Classes:
    """`categories` of the annotation files, together."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[str, str, int]] = {}

    def add(self, entries: list[Any], where: str) -> None:
        """Raises BadData where an entry has no id, or an id names two classes."""
        for entry in entries:
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise BadData(f"{where}: categories: expected entries with a whole number as id, got {str(entry)[:80]}")
            isthing = entry.get("isthing")
            names = str(entry.get("name", "")), str(entry.get("supercategory", ""))
            found = (*names, int(isthing) if isthing in (0, 1) else -1)
            if self.known.setdefault(entry["id"], found) != found:
                raise BadData(f"{where}: categories: id {entry['id']} is {self.known[entry['id']]} and {found}")

    def put_into(self, index: Index) -> None:
        """Columns `class_id` (ascending), `class`, `supercategory`, `class_isthing` (-1: not said)."""
        ordered = sorted(self.known.items())
        index.put("class_id", [number for number, _ in ordered], "int64")
        index.put("class_isthing", [entry[2] for _, entry in ordered], "int8")
        index.put_texts("class", (entry[0] for _, entry in ordered))
        index.put_texts("supercategory", (entry[1] for _, entry in ordered))
