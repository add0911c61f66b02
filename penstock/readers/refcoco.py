"""`refcoco`: sentences that refer to objects of COCO pictures: RefCOCO, RefCOCO+, RefCOCOg, RefCLEF.

Source of the format: the REFER API. `refs(<who split it>).p` is a pickled list of references, each with its sentences;
`instances.json` holds their pictures, annotations and classes as COCO does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import box_fault
from penstock.geometry.polygons import segmentation_to_mask
from penstock.readers.base import Memo, Reader, require_json, some
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
from penstock.readers.files import Files, FolderFiles
from penstock.readers.index import Index, starts_of
from penstock.readers.plain_pickle import load_plain_pickle
from penstock.readers.refcoco_refs import Sentences, is_id, read_references, reference_files
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

_MISSING, _FOREIGN = -1, -2
"""In the column `annotation`: it is not in instances.json; it belongs to another picture."""

_SENTENCE = Field(name="sentence", dtype="str", kind="text", meaning="the sentence, cleaned by the authors")
_RAW = Field(name="raw", dtype="str", kind="text", meaning="the sentence as it was typed")
_REF_ID = Field(name="ref_id", dtype="int64", kind="number", meaning="the dataset's number of the reference")
_SENT_ID = Field(name="sent_id", dtype="int64", kind="number", meaning="the dataset's number of the sentence")
_SPLIT = Field(name="split", dtype="str", kind="text", meaning="the split that the reference says it is of")


class Refcoco(Reader):
    """Sentences about objects of COCO pictures. A row is one sentence of one reference; a group is a picture.

    Every reference and every sentence of the split is there, by picture (ids ascending), reference (ascending), and the
    sentence's place in it. The picture's name comes from `instances.json`: the `file_name` of a reference ends in the
    reference's number and is no file.

    Args:
        root: the folder that holds `refcoco`, `refcoco+`, `refcocog` or `refclef`.
        dataset: which of them; None for the only one there is.
        split_by: who split it, as in `refs(unc).p`; None for the only one there is.
        split: as the REFER API: "test" is all that have "test" in their split, "testA" also those of "testAB"; "all" is
            every reference.
        images: folder of the pictures, relative to the root or absolute, where it is none of the usual.

    Raises:
        SourceNotFound: no such dataset or no picture folder under the root, or no reference in the split.
        BadData: a file is broken, the pickle asks for a name, or two references or sentences have one id.
        UsageError: several datasets, or several splittings, to choose from.
    """

    name = "refcoco"
    layout = "refcoco/refs(unc).p, refcoco/instances.json and images/mscoco/images/train2014/*.jpg"
    row_columns = (
        *("ref_id", "sent_id", "annotation_id", "category_id", "image_id"),
        *("box", "area", "iscrowd", "segmentation_hash", "sentence", "raw"),
    )
    schema = Schema(
        [
            IMAGE,
            MASK,
            replace(BOX, meaning=f"{BOX.meaning}; as annotated"),
            AREA,
            _SENTENCE,
            _RAW,
            _REF_ID,
            _SENT_ID,
            ANNOTATION_ID,
            replace(IMAGE_ID, meaning="COCO's number of the picture, as text"),
            CATEGORY,
            CATEGORY_ID,
            _SPLIT,
            ISCROWD,
            PATH,
        ]
    )

    def __init__(
        self,
        root: Path | str,
        *,
        dataset: Literal["refcoco", "refcoco+", "refcocog", "refclef"] | None = None,
        split_by: str | None = None,
        split: Literal["train", "val", "test", "testA", "testB", "testC", "all"] = "train",
        images: str | None = None,
    ) -> None:
        self._asked = (dataset, split_by)
        self._images = images
        self.split = split
        files = FolderFiles(root)
        found = self._found(files)
        _refuse_many(self.name, "dataset", sorted({name for name, _ in found}))
        _refuse_many(self.name, "split_by", sorted(by for _, by in found))
        self.dataset, self.split_by = found[0] if found else ("", "")
        self.images = self._folder(files, self.dataset)
        named = {"dataset": self.dataset, "split_by": self.split_by, "split": split, "images": images}
        super().__init__(root, files=files, options=named)

    def fault(self, files: Files) -> str:
        """No references, no instances.json beside them, or no folder of pictures."""
        found = self._found(files)
        dataset, split_by = self._asked
        if not found:
            there = ", ".join(f"{name}/refs({by}).p" for name, by in reference_files(files)) or "no other"
            return f"no {dataset or 'refcoco'}/refs({split_by or '*'}).p; there is {there}"
        name = found[0][0]
        if not files.exists(f"{name}/instances.json"):
            return f"no {name}/instances.json"
        if not self._folder(files, name):
            return f"no pictures in any of {', '.join(self._folders(name))}"
        return ""

    def describe(self) -> dict[str, object]:
        """What was opened; references, sentences and pictures of every split of the file; rows without an annotation."""
        counts = self.index["split_counts"].tolist()
        return {
            "dataset": self.dataset,
            "split_by": self.split_by,
            "split": self.split,
            "references": len(np.unique(self.index["ref_id"])),
            "sentences": len(self),
            "splits": {
                name: dict(zip(("references", "sentences", "images"), row, strict=True))
                for name, row in zip(self.index.texts("split_name"), counts, strict=True)
            },
            "rows_without_annotation": int(np.count_nonzero(self.index["annotation"] < 0)),
        }

    def fingerprint(self, index: int) -> int:
        """As `Reader.fingerprint`; the picture's size and the class's name count too."""
        group, named = self.group_of(index), int(self.index["category"][index])
        parts = [
            super().fingerprint(index),
            self.index["size_hw"][group].tolist(),
            int(self.index["annotation"][index] < 0),
        ]
        parts.append(self.index.text("category_name", named) if named >= 0 else None)
        return xxhash.xxh3_64_intdigest(repr(parts).encode("utf-8", "surrogateescape"))

    def _found(self, files: Files) -> list[tuple[str, str]]:
        dataset, split_by = self._asked
        return [
            (name, by) for name, by in reference_files(files) if name == (dataset or name) and by == (split_by or by)
        ]

    def _folders(self, dataset: str) -> list[str]:
        if self._images is not None:
            return [self._images.rstrip("/") or "/"]
        if dataset == "refclef":
            return ["images/saiapr_tc-12", "refclef/saiapr_tc-12", "saiapr_tc-12"]
        usual = ["images/mscoco/images/train2014", f"{dataset}/coco2014/train2014", "coco2014/train2014", "train2014"]
        return [*usual, f"{dataset}/train2014", "images/train2014"]

    def _folder(self, files: Files, dataset: str) -> str:
        return next((folder for folder in self._folders(dataset) if files.exists(folder)), "")

    @property
    def _refs_path(self) -> str:
        return f"{self.dataset}/refs({self.split_by}).p"

    @property
    def _instances_path(self) -> str:
        return f"{self.dataset}/instances.json"

    def _stamps(self) -> Iterable[object]:
        return [(path, self.files.stamp(path)) for path in (self._refs_path, self._instances_path)]

    def _build(self) -> Index:
        index = Index()
        where = f"{self.files.root}: {self._refs_path}"
        loaded = load_plain_pickle(self.files.read(self._refs_path), where)
        if loaded.latin1:
            message = f"{loaded.latin1} texts are no UTF-8 and were read as Latin-1; the first is {loaded.example!r}"
            index.problems.append(Problem(self._refs_path, "UnicodeDecodeError", message))
        found = read_references(loaded.value, self.split, where)
        if found.broken:
            message = (
                f"{len(found.broken)} entries are no references or sentences and have no rows: {some(found.broken)}"
            )
            index.problems.append(Problem(self._refs_path, "BadData", message))
        if not found.rows:
            there = ", ".join(sorted(found.splits)) or "none"
            message = f"no reference of split {self.split}; the splits are {there}"
            index.problems.append(Problem(self._refs_path, "BadData", message))
        self._put_rows(index, found)
        content = require_json(
            self.files.read(self._instances_path), f"{self.files.root}: {self._instances_path}", dict
        )
        self._put_instances(index, content)
        self._report_missing(index)
        return index

    def _put_rows(self, index: Index, found: Sentences) -> None:
        numbers = np.array([row.numbers for row in found.rows], np.int64).reshape(-1, 5)
        for column, name in enumerate(("image_id", "ref_id", "sent_id", "annotation_id", "category_id")):
            index.put(name, numbers[:, column], "int64")
        images, owners = np.unique(numbers[:, 0], return_inverse=True)
        index.put("starts", starts_of(owners, len(images)), "int64")
        index.put_texts("group", map(str, images.tolist()))
        names = sorted(found.splits)
        places = {name: place for place, name in enumerate(names)}
        index.put_texts("split_name", names)
        index.put("split_counts", np.array([found.splits[name].counts for name in names]).reshape(-1, 3), "int64")
        index.put("split", [places[row.split] for row in found.rows], "int32")
        index.put_texts("sentence", [row.sentence for row in found.rows])
        index.put_texts("raw", [row.raw for row in found.rows])

    def _put_instances(self, index: Index, content: dict[str, Any]) -> None:
        """The columns that come from instances.json."""
        where = f"{self.files.root}: {self._instances_path}"
        photos, objects, classes = (_by_id(content, name, where) for name in ("images", "annotations", "categories"))
        groups = [photos.get(int(text), {}) for text in index.texts("group")]
        index.put_texts("file", [_text(photo.get("file_name")) for photo in groups])
        sizes = [[photo.get("height"), photo.get("width")] for photo in groups]
        index.put("size_hw", [size if all(map(_is_side, size)) else (0, 0) for size in sizes], "int32")
        wanted, place = np.unique(index["annotation_id"], return_inverse=True)
        entries = [objects.get(number, {}) for number in wanted.tolist()]
        texts = [orjson.dumps(entry.get("segmentation")) for entry in entries]
        index.put_texts("segmentation", texts)
        index.put("segmentation_hash", np.array([*map(xxhash.xxh3_64_intdigest, texts)], np.uint64)[place], "uint64")
        index.put(
            "box", np.array([_numbers(entry.get("bbox"), 4) for entry in entries]).reshape(-1, 4)[place], "float32"
        )
        index.put("area", np.array([_numbers([entry.get("area")], 1)[0] for entry in entries])[place], "float32")
        index.put("iscrowd", np.array([entry.get("iscrowd") == 1 for entry in entries])[place], "bool")
        owner = [entry["image_id"] if is_id(entry.get("image_id")) else _MISSING for entry in entries]
        is_there = np.array([bool(entry) for entry in entries])[place]
        is_foreign = np.array(owner, np.int64)[place] != index["image_id"]
        index.put("annotation", np.where(is_there, np.where(is_foreign, _FOREIGN, place), _MISSING), "int32")
        numbers = sorted(number for number, entry in classes.items() if _text(entry.get("name")))
        index.put_texts("category_name", [classes[number]["name"] for number in numbers])
        places = {number: place for place, number in enumerate(numbers)}
        index.put("category", [places.get(number, _MISSING) for number in index["category_id"].tolist()], "int32")

    def _report_missing(self, index: Index) -> None:
        """Rows that point to what is not there are counted as problems; they fail when read."""
        owners = np.repeat(np.arange(index.count("group")), np.diff(index["starts"]))
        has_photo = np.diff(index["file.ends"], prepend=0) > 0
        checks = (
            (index["annotation"] == _MISSING, "annotation_id", "an annotation that is not there"),
            (index["annotation"] == _FOREIGN, "annotation_id", "an annotation of another picture"),
            (~has_photo[owners], "image_id", "a picture that is not there"),
            (index["category"] == _MISSING, "category_id", "a category that is not there"),
        )
        for is_bad, column, what in checks:
            if not is_bad.any():
                continue
            pairs = np.unique(np.stack([index["ref_id"][is_bad], index[column][is_bad]], axis=1), axis=0).tolist()
            named = some([f"ref_id {ref_id}: {column} {number}" for ref_id, number in pairs])
            message = (
                f"{len(pairs)} references ({np.count_nonzero(is_bad)} rows) of {self._refs_path} name {what}: {named}"
            )
            index.problems.append(Problem(self._instances_path, "BadData", f"{message}; their rows fail when read"))

    def _key(self, row: int) -> str:
        return f"{int(self.index['ref_id'][row])}_{int(self.index['sent_id'][row])}"

    def _pictures(self, row: int) -> Sequence[str]:
        file = self.index.text("file", self.group_of(row))
        return [f"{self.images}/{file}"] if file else []

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        group = self.group_of(row)
        record: Record = {
            "raw": self.index.text("raw", row),
            "image_id": self.index.text("group", group),
            "split": self.index.text("split_name", int(self.index["split"][row])),
            **{name: np.array(self.index[name][row]) for name in ("ref_id", "sent_id", "annotation_id", "category_id")},
        }
        if "sentence" in fields:
            record["sentence"] = self._sentence(row)
        if "category" in fields:
            record["category"] = self._category(row)
        if fields & {"image", "path"}:
            record["path"] = path = self._path(row)
            if "image" in fields:
                record["image"] = self._image(path, memo, self._size(row))
        if fields & {"mask", "box", "area", "iscrowd"}:
            record |= self._object(row, fields, memo)
        return record

    def _object(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        """Fields of the annotation.

        Raises:
            BadData: it is not there, or the field asked for is wrong.
        """
        place = int(self.index["annotation"][row])
        if place < 0:
            got = "no such annotation" if place == _MISSING else "one of another picture"
            number = int(self.index["annotation_id"][row])
            raise BadData(f"{self._where(row)}: expected annotation {number} in {self._instances_path}, got {got}")
        box, area = self.index["box"][row].copy(), np.array(self.index["area"][row])
        if "box" in fields and (fault := box_fault(box, self._size(row))):
            raise BadData(f"{self._where(row)}: expected bbox to be four numbers inside the picture, got one {fault}")
        if "area" in fields and not 0 <= area < np.inf:
            raise BadData(f"{self._where(row)}: expected area to be a number of pixels, got {area}")
        record: Record = {"box": box, "area": area, "iscrowd": np.array(self.index["iscrowd"][row])}
        if "mask" in fields:
            record["mask"] = memo.once(("mask", place), lambda: self._mask(row, place))
        return record

    def _mask(self, row: int, place: int) -> np.ndarray:
        segmentation = orjson.loads(self.index.raw("segmentation", place))
        try:
            mask = segmentation_to_mask(segmentation, self._size(row))
        except BadData as error:
            raise BadData(f"{self._where(row)}: {error}") from error
        if not mask.any():
            raise BadData(f"{self._where(row)}: expected a mask with pixels, got an empty one")
        mask.flags.writeable = False
        return mask

    def _sentence(self, row: int) -> str:
        sentence = self.index.text("sentence", row)
        if not sentence.strip():
            raise BadData(f"{self._where(row)}: expected a sentence, got {sentence!r}")
        return sentence

    def _category(self, row: int) -> str:
        place = int(self.index["category"][row])
        if place < 0:
            number = int(self.index["category_id"][row])
            raise BadData(f"{self._where(row)}: expected a category of {self._instances_path}, got {number}, not in it")
        return self.index.text("category_name", place)

    def _size(self, row: int) -> tuple[int, int]:
        """Height and width by instances.json."""
        height, width = self.index["size_hw"][self.group_of(row)].tolist()
        if not height:
            raise BadData(
                f"{self._where(row)}: expected height and width of the picture in {self._instances_path}, got none"
            )
        return height, width

    def _path(self, row: int) -> str:
        pictures = self._pictures(row)
        if not pictures:
            raise BadData(
                f"{self._where(row)}: expected the picture in {self._instances_path}, got no entry with a file_name"
            )
        return pictures[0]

    def _where(self, row: int) -> str:
        ids = ", ".join(
            f"{name} {int(self.index[name][row])}" for name in ("ref_id", "sent_id", "annotation_id", "image_id")
        )
        return f"{self.files.root}: {self._refs_path}: {ids}"


def _refuse_many(reader: str, option: str, found: Sequence[str]) -> None:
    if len(found) > 1:
        raise UsageError(f"{reader}: several to choose from: {', '.join(found)}; say which ({option}=NAME)")


def _by_id(content: Mapping[str, Any], name: str, where: str) -> dict[int, dict[str, Any]]:
    """The entries of one of COCO's lists by their id; entries without one are of no use to anybody.

    Raises:
        BadData: there is no such list.
    """
    entries = content.get(name)
    if not isinstance(entries, list):
        raise BadData(
            f"{where}: expected a list {name!r}, got {type(entries).__name__}; the keys are {sorted(content)[:20]}"
        )
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and is_id(entry.get("id"))}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 20


def _numbers(values: object, count: int) -> list[float]:
    """The numbers of a list, NaN for each where it is no list of so many numbers."""
    if not isinstance(values, list) or len(values) != count or any(type(value) not in (int, float) for value in values):
        return [np.nan] * count
    return [float(value) for value in values]
