"""`openimages`: masks or boxes of Open Images V4 to V7, from its CSV files.

Source of the format: the download page of Open Images. Corners are in 0..1 of the picture's width and height; a mask is a
PNG of another size than the picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import box_fault, unit_xxyy_to_xywh
from penstock.geometry.id_pngs import binary_png
from penstock.geometry.images import PictureHeader, picture_header
from penstock.geometry.masks import nearest
from penstock.readers.base import Memo, Reader
from penstock.readers.fields import BOX, CATEGORY, IMAGE, IMAGE_ID, MASK, PATH
from penstock.readers.files import Files, FolderFiles
from penstock.readers.index import Index, starts_of
from penstock.readers.openimages_csv import NO_FLAG, Codes, CsvColumns, class_names, flags, numbers
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

_SPLITS = ("train", "validation", "test")
_ENDS = {"masks": "annotations-object-segmentation.csv", "boxes": "annotations-bbox.csv"}
_CORNERS = ("XMin", "XMax", "YMin", "YMax")
_FLAGS = {
    "is_occluded": ("IsOccluded", "another object hides a part of it"),
    "is_truncated": ("IsTruncated", "it reaches over the border of the picture"),
    "is_group_of": ("IsGroupOf", "one box over five or more objects that touch"),
    "is_depiction": ("IsDepiction", "a drawing or a statue, no real object"),
    "is_inside": ("IsInside", "seen from inside: a car, a building"),
}
_LONGEST_BOX_ID = 64
_LABEL_NAME = Field(name="label_name", dtype="str", kind="text", meaning="the dataset's id of the class, as /m/01g317")
_BOX_ID = Field(
    name="box_id", dtype="str", kind="text", meaning="BoxID of the masks' CSV; for boxes, its place among the picture's"
)
_IOU = Field(
    name="predicted_iou",
    dtype="float32",
    kind="number",
    meaning="0..1, IoU that a model predicts between the mask and the true one; NaN where none is given",
)
_FLAG_FIELDS = [
    Field(name=name, dtype="int8", kind="number", meaning=f"1 yes, 0 no, -1 not known: {meaning}")
    for name, (_, meaning) in _FLAGS.items()
]


class OpenImages(Reader):
    """Masks or boxes of Open Images. A row is one mask (or one box), a group is its picture.

    Rows are sorted by the picture's id, then as in the file. A mask comes at the picture's size: resized by the nearest
    pixel, where the pixel of the mask is the one that the centre of the picture's pixel falls in.

    Args:
        root: the folder that holds the CSV files (or `annotations/` with them), `masks` and the pictures.
        split: None for the only one there is.
        rows: "masks" from `*-annotations-object-segmentation.csv`, "boxes" from `*-annotations-bbox.csv`.

    Raises:
        SourceNotFound: no such CSV file, no class names, no picture folder.
        BadData: a CSV file lacks a column.
        UsageError: several splits, or several files of one split, to choose from.
    """

    name = "openimages"
    layout = "annotations/train-annotations-object-segmentation.csv, class-descriptions*.csv, masks/*.png, train/*.jpg"

    def __init__(
        self,
        root: Path | str,
        *,
        split: Literal["train", "validation", "test"] | None = None,
        rows: Literal["masks", "boxes"] = "masks",
    ) -> None:
        self._asked = split
        self.rows = rows
        own = [_IOU] if rows == "masks" else _FLAG_FIELDS
        box = replace(BOX, meaning=f"{BOX.meaning}; from corners given to a millionth of the picture's sides")
        masks = [replace(MASK, meaning=f"{MASK.meaning}, to which it is resized by the nearest pixel")]
        schema = [IMAGE, *(masks if rows == "masks" else []), box, IMAGE_ID, CATEGORY, _LABEL_NAME, *own, _BOX_ID, PATH]
        self.schema = Schema(schema)
        own_columns = ("box_id", "predicted_iou") if rows == "masks" else tuple(_FLAGS)
        self.row_columns = ("corners", *own_columns)  # type: ignore[misc]  # the columns depend on what rows are
        files = FolderFiles(root)
        found = self._found(files)
        if len(found) > 1:
            raise UsageError(
                f"openimages: several to choose from: {', '.join(path for _, path in found)}; {_how(found)}"
            )
        self.split, self._csv = found[0] if found else ("", "")
        self.images = _first(files, [f"images/{self.split}", self.split, "images"])
        self.masks = _first(files, [f"masks/{self.split}", "masks"])
        super().__init__(root, files=files, options={"split": self.split, "rows": rows})

    def fault(self, files: Files) -> str:
        """No CSV file of the rows asked for, no class names, or no pictures."""
        found = self._found(files)
        if not found:
            return f"no {self._asked or '*'}-{_ENDS[self.rows]}, in the folder or in annotations/"
        if not _class_files(files):
            return "no *class-descriptions*.csv, in the folder or in annotations/"
        places = [f"images/{found[0][0]}", found[0][0], "images"]
        if not _first(files, places):
            return f"no pictures in any of {', '.join(places)}"
        if self.rows == "masks" and not files.exists("masks"):
            return "no masks/"
        return ""

    def describe(self) -> dict[str, object]:
        """What was opened; pictures, rows of the largest classes, flags that are set, rows of unknown classes."""
        counts = np.bincount(self.index["label"], minlength=self.index.count("label_name"))
        largest = [place for place in np.argsort(-counts, kind="stable")[:20].tolist() if counts[place]]
        unknown = self.index["is_known"] == 0
        return {
            "split": self.split,
            "rows": self.rows,
            "pictures": len(self.groups),
            "classes": int(np.count_nonzero(counts)),
            "largest_classes": {self._class_of(place): int(counts[place]) for place in largest},
            "rows_of_unknown_class": int(counts[unknown].sum()),
            **{name: int(np.count_nonzero(self.index[name] == 1)) for name in _FLAGS if name in self.index.columns},
        }

    def fingerprint(self, index: int) -> int:
        """As `Reader.fingerprint`; the class's label and name count too."""
        label = int(self.index["label"][index])
        parts = [super().fingerprint(index), self.index.text("label_name", label), self.index.text("category", label)]
        return xxhash.xxh3_64_intdigest(repr(parts).encode("utf-8", "surrogateescape"))

    def _found(self, files: Files) -> list[tuple[str, str]]:
        """(split, path) of the CSV files of the rows and the split asked for."""
        found = []
        for path in _tables(files, _ENDS[self.rows]):
            words = path.rpartition("/")[2].removesuffix(_ENDS[self.rows]).split("-")
            found += [(split, path) for split in _SPLITS if split in words and split == (self._asked or split)]
        return found

    def _stamps(self) -> Iterable[object]:
        return [(path, self.files.stamp(path)) for path in (self._csv, *_class_files(self.files))]

    def _build(self) -> Index:
        index = Index()
        names = class_names([self.root / path for path in _class_files(self.files)], index)
        images, labels = Codes(), Codes()
        columns = (
            self._mask_columns(index, images, labels)
            if self.rows == "masks"
            else self._box_columns(index, images, labels)
        )
        image_ids, image_places = images.sorted()
        label_names, label_places = labels.sorted()
        owners = image_places[columns.pop("image")] if image_ids else np.zeros(0, np.int32)
        order = np.argsort(owners, kind="stable")
        owners = owners[order]
        columns["label"] = label_places[columns["label"]]
        for name, values in columns.items():
            index.put(name, values[order], values.dtype.str)
        index.put("starts", starts_of(owners, len(image_ids)), "int64")
        index.put_texts("group", image_ids)
        index.put_texts("label_name", label_names)
        index.put_texts("category", [names.get(label, "") for label in label_names])
        index.put("is_known", [label in names for label in label_names], "uint8")
        return index

    def _mask_columns(self, index: Index, images: Codes, labels: Codes) -> dict[str, np.ndarray]:
        table = CsvColumns(
            self.root / self._csv,
            ["MaskPath", "ImageID", "LabelName", "BoxID", *(f"Box{corner}" for corner in _CORNERS), "PredictedIoU"],
        )
        parts: list[dict[str, np.ndarray]] = []
        odd: list[str] = []
        for paths, image_ids, label_names, box_ids, *corners, ious in table.chunks():
            usual = map(_mask_name, image_ids, label_names, box_ids)
            places = np.full(len(paths), -1, np.int32)
            for row, (path, name) in enumerate(zip(paths, usual, strict=True)):
                if path != name:
                    places[row] = len(odd)
                    odd.append(path)
            part = self._common(images.of(image_ids), labels.of(label_names), corners)
            stems = (_encoded(path.removesuffix(".png")) for path in paths)
            hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, stems), np.uint64, len(paths))
            part |= {"mask_name": places, "hash": hashes, "predicted_iou": numbers(ious).astype(np.float32)}
            if len(longest := max(box_ids, key=len)) > _LONGEST_BOX_ID:
                raise BadData(
                    f"{table.path}: expected BoxIDs of at most {_LONGEST_BOX_ID} letters, got {longest[:80]!r}"
                )
            parts.append(part | {"box_id": np.array([*map(_encoded, box_ids)], np.bytes_)})
        table.report(index, self._csv)
        index.put_texts("mask_name_text", odd)
        columns = _joined(parts)
        return self._without_repeats(index, columns)

    def _without_repeats(self, index: Index, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first row of each mask; a second one of the same file would have its key."""
        hashes = columns.pop("hash", np.zeros(0, np.uint64))
        _, firsts = np.unique(hashes, return_index=True)
        if len(firsts) == len(hashes):
            return columns
        message = (
            f"{len(hashes) - len(firsts)} lines name a MaskPath that an earlier line names; their rows are not there"
        )
        index.problems.append(Problem(self._csv, "BadData", message))
        firsts.sort()
        return {name: values[firsts] for name, values in columns.items()}

    def _box_columns(self, index: Index, images: Codes, labels: Codes) -> dict[str, np.ndarray]:
        own = [column for column, _ in _FLAGS.values()]
        table = CsvColumns(self.root / self._csv, ["ImageID", "LabelName", *_CORNERS, *own])
        parts = []
        for image_ids, label_names, x0, x1, y0, y1, *found in table.chunks():
            part = self._common(images.of(image_ids), labels.of(label_names), [x0, x1, y0, y1])
            parts.append(part | {name: flags(column) for name, column in zip(_FLAGS, found, strict=True)})
        table.report(index, self._csv)
        return _joined(parts)

    @staticmethod
    def _common(images: np.ndarray, labels: np.ndarray, corners: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        return {"image": images, "label": labels, "corners": np.stack([numbers(corner) for corner in corners], axis=1)}

    def _box_id(self, row: int, group: int) -> str:
        if self.rows == "boxes":
            return str(row - int(self.index["starts"][group]))
        return bytes(self.index["box_id"][row]).decode("utf-8", "surrogateescape")

    def _mask_path(self, row: int) -> str:
        place, group = int(self.index["mask_name"][row]), self.group_of(row)
        if place >= 0:
            return f"{self.masks}/{self.index.text('mask_name_text', place)}"
        label = self.index.text("label_name", int(self.index["label"][row]))
        return f"{self.masks}/{_mask_name(self.index.text('group', group), label, self._box_id(row, group))}"

    def _key(self, row: int) -> str:
        if self.rows == "masks":
            return self._mask_path(row).removeprefix(f"{self.masks}/").removesuffix(".png")
        group = self.group_of(row)
        return f"{self.index.text('group', group)}_{self._box_id(row, group)}"

    def _picture(self, group: int) -> str:
        return f"{self.images}/{self.index.text('group', group)}.jpg"

    def _pictures(self, row: int) -> Sequence[str]:
        photo = self._picture(self.group_of(row))
        return [photo, self._mask_path(row)] if self.rows == "masks" else [photo]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        group, label = self.group_of(row), int(self.index["label"][row])
        path = self._picture(group)
        record: Record = {
            "path": path,
            "image_id": self.index.text("group", group),
            "label_name": self.index.text("label_name", label),
            "box_id": self._box_id(row, group),
        }
        if "image" in fields:
            record["image"] = self._image(path, memo)
        if fields & {"mask", "box"}:
            size_hw = record["image"].shape[:2] if "image" in fields else self._size(path, memo)  # type: ignore[union-attr]
            record |= self._shapes(row, fields, size_hw)
        if "category" in fields:
            if not self.index["is_known"][label]:
                raise BadData(
                    f"{self._where(row)}: expected a LabelName of the class names, got {record['label_name']}"
                )
            record["category"] = self.index.text("category", label)
        if "predicted_iou" in fields:
            record["predicted_iou"] = np.array(self.index["predicted_iou"][row])
        for name in fields & _FLAGS.keys():
            record[name] = np.array(self.index[name][row])
            if record[name] == NO_FLAG:
                raise BadData(f"{self._where(row)}: expected {_FLAGS[name][0]} to be 1, 0 or -1, got another text")
        return record

    def _shapes(self, row: int, fields: frozenset[str], size_hw: tuple[int, int]) -> Record:
        record: Record = {}
        if "mask" in fields:
            record["mask"] = self._mask(self._mask_path(row), size_hw)
        if "box" in fields:
            record["box"] = box = unit_xxyy_to_xywh(self.index["corners"][row], size_hw)
            if fault := box_fault(box, size_hw):
                raise BadData(f"{self._where(row)}: expected corners inside the picture, got a box {fault}")
        return record

    def _size(self, path: str, memo: Memo) -> tuple[int, int]:
        """Height and width by the picture's header. A turned picture is refused, as when it is decoded."""
        header = memo.once(("header", path), lambda: self._header(path))
        if header.orientation != 1:
            raise BadData(
                f"{self.files.root}: {path}: EXIF orientation {header.orientation}: it cannot be told whether boxes and "
                f"masks belong to the stored or to the turned picture; write it upright, without EXIF orientation"
            )
        return header.size_hw

    def _header(self, path: str) -> PictureHeader:
        content = self.files.read(path)
        try:
            return picture_header(content)
        except BadData as error:
            raise BadData(f"{self.files.root}: {path}: {error}") from error

    def _mask(self, path: str, size_hw: tuple[int, int]) -> np.ndarray:
        content = self.files.read(path)
        try:
            mask = binary_png(content)
            if not mask.any():
                raise BadData("expected a mask with pixels, got an empty one")
            return _at_size(mask, size_hw)
        except BadData as error:
            raise BadData(f"{self.files.root}: {path}: {error}") from error

    def _class_of(self, label: int) -> str:
        return self.index.text("category", label) or self.index.text("label_name", label)

    def _where(self, row: int) -> str:
        return f"{self.files.root}: {self._csv}: {self._key(row)}"


def _at_size(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The mask at another size. An object that no pixel's centre falls in keeps the pixel over its first one.

    Raises:
        BadData: the sides are not in proportion, by more than rounding each of the four sides to a whole pixel explains.
    """
    (from_h, from_w), (height, width) = mask.shape, size_hw
    if abs(width * from_h - height * from_w) > width + height + from_w + from_h:
        raise BadData(
            f"expected a mask of the picture's proportions, {height} x {width} (height x width), got {from_h} x {from_w}"
        )
    resized = nearest(mask, size_hw)
    if not resized.any():
        row, column = divmod(int(mask.argmax()), from_w)
        resized[row * height // from_h, column * width // from_w] = 1
    return resized


def _tables(files: Files, end: str) -> list[str]:
    return [
        f"{folder}{name}"
        for folder in ("", "annotations/")
        for name in files.names(folder.rstrip("/"))
        if name.endswith(end)
    ]


def _class_files(files: Files) -> list[str]:
    """Files of class names; those of the classes with boxes first."""
    found = [path for path in _tables(files, ".csv") if "class-descriptions" in path.rpartition("/")[2]]
    return sorted(found, key=lambda path: ("boxable" not in path, path))


def _first(files: Files, folders: Sequence[str]) -> str:
    return next((folder for folder in folders if folder and files.exists(folder)), "")


def _how(found: Sequence[tuple[str, str]]) -> str:
    splits = sorted({split for split, _ in found})
    return "say which (split=NAME)" if len(splits) > 1 else "keep one of them"


def _mask_name(image_id: str, label: str, box_id: str) -> str:
    """What mask files are called."""
    return f"{image_id}_{label.replace('/', '')}_{box_id}.png"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Chunks of columns as whole columns."""
    if not parts:
        return {"image": np.zeros(0, np.int32), "label": np.zeros(0, np.int32)}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
