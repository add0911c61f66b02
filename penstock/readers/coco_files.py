"""Base of the readers of COCO's JSON files: splits, photos, classes, and the fields that all of them have.

Source of the format: the data page of cocodataset.org. Ids of pictures, annotations and classes are numbers of the JSON;
boxes are XYWH in pixels, corner from 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import box_fault
from penstock.geometry.images import picture_header
from penstock.readers.base import Memo, Reader, require_json
from penstock.readers.coco_columns import (
    MISSING,
    Classes,
    Pictures,
    SplitRows,
    Tally,
    find_annotation,
    listed,
    picture_names,
    pictures_of,
)
from penstock.readers.files import Files
from penstock.readers.index import Index
from penstock.schema import Field, Record
from penstock.source import Problem

LABEL = Field(
    name="label",
    dtype="int64",
    kind="number",
    meaning="place of the class among all classes of the annotation file, sorted by category_id, from 0",
)
_SUFFIXES = ("", ".jpg", ".jpeg", ".png")
_PROBES = 4


class CocoReader(Reader):
    """Base of readers of `annotations/<kind>_<split>.json`. A row is one annotation, a group is its picture.

    A subclass sets `kind` and `id_column`, and writes `_split_rows` and `_record`.

    Args:
        root: the folder that holds `annotations`.
        split: as `choose_splits`.
        annotations: one annotation file by name, in `annotations` or relative to the root; then there is no `split`.
        images: folder of the photos relative to the root, where it is none of the usual.
        options: those of the subclass.

    Raises:
        SourceNotFound: no annotation file, or one without annotations.
        BadData: an annotation file is broken, or lacks one of its lists.
        UsageError: no such split, several to choose from, or split and annotations both.
    """

    kind: ClassVar[str]
    id_column: ClassVar[str]

    def __init__(
        self,
        root: Path | str,
        *,
        split: str | None = None,
        annotations: str | None = None,
        images: str | None = None,
        options: Mapping[str, object],
    ) -> None:
        self.annotations = annotations
        self.images = images
        self._missing: list[Problem] = []
        where = self._open(Path(root))
        self.splits = self._chosen(where, split)
        named = {"split": ",".join(self.splits), "annotations": annotations, "images": images}
        super().__init__(root, files=where, options=named | dict(options))
        self._photos = [self._place(number, "file", self._folders(name)) for number, name in enumerate(self.splits)]

    def fault(self, files: Files) -> str:
        """The annotation file is not there."""
        if self.annotations is not None:
            return "" if _named(files, self.annotations) else f"no {self.annotations}, nor one in annotations/"
        return "" if self._found(files) else f"no annotations/{self.kind}_*.json"

    @property
    def problems(self) -> list[Problem]:
        """Faults of whole files: entries that are no rows, picture folders that are not there."""
        return [*self.index.problems, *self._missing]

    def column(self, name: str) -> np.ndarray:
        """As `Reader.column`, and `label`, (N,) int64 computed from the classes; -1 where the class is unknown."""
        return self._labels(self.index["category_id"]) if name == "label" else super().column(name)

    def fingerprint(self, index: int) -> int:
        """As `Reader.fingerprint`; the picture's size and the class's names count too."""
        group = self.group_of(index)
        parts = [super().fingerprint(index), self.index["size_hw"][group].tolist()]
        place = int(self._labels(self.index["category_id"][[index]])[0])
        if place >= 0:
            parts += [place, self.index.text("class", place), self.index.text("supercategory", place)]
            parts.append(int(self.index["class_isthing"][place]))
        return xxhash.xxh3_64_intdigest(repr(parts).encode("utf-8", "surrogateescape"))

    def describe(self) -> dict[str, object]:
        """Pictures per split, what is left out and why, crowds, classes."""
        pictures = np.bincount(self.index["split"], minlength=len(self.splits))
        counted = [name for name in self.index.columns if name.startswith("count.")]
        rows_of = np.bincount(self.column("label") + 1, minlength=1 + len(self.index["class_id"]))[1:]
        largest = [place for place in np.argsort(-rows_of, kind="stable")[:20].tolist() if rows_of[place]]
        return {
            "pictures_with_rows": {name: int(pictures[number]) for number, name in enumerate(self.splits)},
            **{name.removeprefix("count."): int(self.index[name][0]) for name in counted},
            "crowd_rows": int(np.count_nonzero(self.index["iscrowd"])),
            "rows_of_unknown_class": len(self) - int(rows_of.sum()),
            "classes": len(rows_of),
            "largest_classes": {self.index.text("class", place): int(rows_of[place]) for place in largest},
        }

    def _split_rows(self, content: dict[str, Any], pictures: Pictures, tally: Tally, where: str) -> SplitRows:
        """The rows of one annotation file."""
        raise NotImplementedError

    def _found(self, files: Files) -> dict[str, str]:
        return find_annotation(files.names("annotations"), self.kind)

    def _chosen(self, files: Files, split: str | None) -> dict[str, str]:
        """Split -> annotation file, of those to open; empty where there is none."""
        if self.annotations is None:
            return choose_splits(self._found(files), split, f"{files.root}: {self.name}")
        if split is not None:
            raise UsageError(f"{self.name}: split={split} and annotations={self.annotations}: give one of them")
        path = _named(files, self.annotations)
        return {Path(path).stem.removeprefix(f"{self.kind}_"): path} if path else {}

    def _stamps(self) -> Iterable[object]:
        return [(name, path, self.files.stamp(path)) for name, path in self.splits.items()]

    def _build(self) -> Index:
        index, parts, classes = Index(), [], Classes()
        for path in self.splits.values():
            where = f"{self.files.root}: {path}"
            tally = Tally(index, path)
            content = require_json(self.files.read(path), where, dict)
            classes.add(listed(content, "categories", where), where)
            pictures = pictures_of(listed(content, "images", where), tally)
            part = self._split_rows(content, pictures, tally, where)
            tally.count("pictures_without_rows", len(pictures.files) - len(part.counts))
            parts.append(part)
        names = picture_names(dict(zip(self.splits, (part.pictures for part in parts), strict=True)), str(self.root))
        lengths = np.concatenate([part.counts for part in parts])
        index.put("starts", np.concatenate([[0], np.cumsum(lengths)]), "int64")
        index.put("split", np.repeat(np.arange(len(parts)), [len(part.counts) for part in parts]), "uint16")
        index.put("size_hw", np.concatenate([part.pictures.size_hw for part in parts]), "int32")
        index.put_texts("group", names)
        index.put_texts("file", chain.from_iterable(part.pictures.files for part in parts))
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
        if self.images is not None:
            return [self.images.rstrip("/")]
        words = split.split("_")
        names = ["_".join(words[first:]) for first in range(len(words))]
        return [*names, *(f"images/{name}" for name in names), "images", ""]

    def _place(
        self, split: int, column: str, folders: Sequence[str], *, suffixes: Sequence[str] = _SUFFIXES
    ) -> tuple[str, str]:
        """Folder of a split's pictures, and the suffix that they have if not their own: where the first of them are."""
        groups = np.flatnonzero(self.index["split"] == split)[:_PROBES].tolist()
        for file in (self.index.text(column, group) for group in groups):
            for folder in folders if file else ():
                for suffix in suffixes:
                    if self.files.exists(joined((folder, suffix), file)):
                        return folder, suffix
        for folder in folders:
            if folder and self.files.exists(folder):
                return folder, ""
        looked = ", ".join(f"{folder}/" for folder in folders if folder)
        message = f"no folder with the pictures of this split; expected one of {looked}; its rows fail when read"
        if len(groups):
            self._missing.append(Problem(list(self.splits.values())[split], "SourceNotFound", message))
        return folders[0], ""

    def _key(self, row: int) -> str:
        return f"{self.index.text('group', self.group_of(row))}_{int(self.index[self.id_column][row])}"

    def _photo(self, group: int) -> str:
        return joined(self._photos[int(self.index["split"][group])], self.index.text("file", group))

    def _pictures(self, row: int) -> Sequence[str]:
        return [self._photo(self.group_of(row))]

    def _where(self, row: int) -> str:
        """The annotation of a row, for messages."""
        group = self.group_of(row)
        path = list(self.splits.values())[int(self.index["split"][group])]
        number = int(self.index[self.id_column][row])
        return f"{self.files.root}: {path}: {self.id_column} {number} of picture {self.index.text('group', group)}"

    def _stated_size(self, group: int) -> tuple[int, int] | None:
        """Height and width by the annotation, or None."""
        height, width = self.index["size_hw"][group].tolist()
        return (height, width) if height and width else None

    def _size(self, group: int, memo: Memo) -> tuple[int, int]:
        """Height and width by the annotation, or else by the photo's header."""
        stated, path = self._stated_size(group), self._photo(group)
        return stated or memo.once(("size", path), lambda: picture_header(self.files.read(path)).size_hw)

    def _common(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        """The fields that all these readers have.

        Raises:
            BadData: the annotation has no such value, or a wrong one; or as `Reader._image`.
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
                raise BadData(
                    f"{self._where(row)}: expected bbox to be four numbers inside the picture, got one {fault}"
                )
            record["box"] = box
        if "area" in fields:
            area = np.array(self.index["area"][row])
            if not 0 <= area < np.inf:
                raise BadData(f"{self._where(row)}: expected area to be a number of pixels, got {area}")
            record["area"] = area
        if fields & {"category", "category_id", "label", "isthing", "supercategory"}:
            record |= self._class_of(row, fields)
        if "image" in fields:
            if not self.index.text("file", group):
                raise BadData(f"{self._where(row)}: expected the picture's entry to have a file_name, got none")
            record["image"] = self._image(self._photo(group), memo, self._stated_size(group))
        return record

    def _class_of(self, row: int, fields: frozenset[str]) -> Record:
        number = int(self.index["category_id"][row])
        label = int(self._labels(self.index["category_id"][[row]])[0])
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

    def _labels(self, category_ids: np.ndarray) -> np.ndarray:
        """(N,) category ids to (N,) int64 labels; -1 for unknown ones."""
        known = self.index["class_id"]
        labels = np.searchsorted(known, category_ids)
        labels[labels == len(known)] = -1
        return np.where(known[labels] == category_ids, labels, -1) if len(known) else labels


def choose_splits(found: Mapping[str, str], wanted: str | None, where: str) -> dict[str, str]:
    """Which splits to open.

    Args:
        found: split -> annotation file.
        wanted: the name of a split; or the start of one ("train", "val": whatever year); or "all"; or None for the only
            one there is.
        where: for messages.

    Returns:
        Those of `found` that are meant; none where there is none at all.

    Raises:
        UsageError: there is no such split, or several are meant.
    """
    if not found or wanted == "all" or (wanted is None and len(found) == 1):
        return dict(found)
    there = ", ".join(found)
    if wanted is None:
        raise UsageError(f"{where}: several splits: {there}; say which (split=NAME), or split=all")
    named = [wanted] if wanted in found else [name for name in found if name.startswith(wanted)]
    if len(named) > 1:
        raise UsageError(f"{where}: split={wanted} may be any of {', '.join(named)}; give the whole name")
    if not named:
        raise UsageError(f"{where}: no split {wanted}; there are {there}")
    return {named[0]: found[named[0]]}


def _named(files: Files, annotations: str) -> str:
    """The annotation file of that name, relative to the root; empty where there is none."""
    return next((path for path in (f"annotations/{annotations}", annotations) if files.exists(path)), "")


def joined(place: tuple[str, str], file: str) -> str:
    """Path of a picture: its folder, its name, and another suffix if there is one."""
    folder, suffix = place
    name = f"{file.rpartition('.')[0] or file}{suffix}" if suffix else file
    return f"{folder}/{name}" if folder else name
