"""`sa1b`: photos and JSON files with masks, in folders or in TARs as published."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.boxes import box_fault, one_less_to_xywh
from penstock.geometry.polygons import segmentation_to_mask
from penstock.readers.base import Memo, Reader, some
from penstock.readers.coco_columns import MISSING
from penstock.readers.fields import ANNOTATION_ID, AREA, BOX, IMAGE, IMAGE_ID, MASK, PATH
from penstock.readers.files import Files, FolderFiles
from penstock.readers.index import Index
from penstock.readers.sa1b_files import (
    Entry,
    Folders,
    TarMembers,
    folder_stamps,
    list_folder,
    list_tars,
    look,
    put_members,
    tars_in,
)
from penstock.readers.sa1b_json import Parsed, annotation_hash, joined, parse_all, parse_json
from penstock.readers.tar_scan import compression_of
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

_BOX_AS_IN_THE_FILE = (
    "XYWH in pixels of the image, as the file has it: corner counted from 0, width = last column - first column and "
    "height = last row - first row, each one less than COCO counts"
)
PREDICTED_IOU = Field(
    name="predicted_iou", dtype="float32", kind="number", meaning="IoU that the model expects of its mask, about 0..1"
)
STABILITY_SCORE = Field(
    name="stability_score",
    dtype="float32",
    kind="number",
    meaning="IoU of the mask under a higher and a lower threshold, 0..1",
)
POINT = Field(
    name="point",
    dtype="float32",
    shape=(2,),
    axes="2",
    meaning="XY in pixels of the image: the (first) point that prompted the mask",
)
_NUMBERS = {"area", "predicted_iou", "stability_score"}


class Sa1b(Reader):
    """SA-1B: a row is one mask, a group is one picture; the key is `sa_N/<annotation id>`.

    Pictures and JSON files lie side by side, in the root or in folders of it; or below `img` and `js`; or inside TARs
    without compression, whose headers are read once, when the index is built. Source of the format: the dataset's own
    description and files.

    Args:
        root: the folder, a TAR, or a folder of `*.tar`.
        image_dir: folder of the pictures relative to the root (inside each TAR for TARs); None finds it.
        annotation_dir: folder of the JSON files, likewise. Pictures and JSON files are paired by path without suffix.
        boxes: "coco" counts width and height as COCO does, in pixels covered, one more than the file; "file" gives them
            as in the file.
        min_area: masks with fewer pixels, as the JSON states them, are no rows.
        max_images: only the first so many JSON files, in order.
        max_rows: only the first so many rows.
    """

    name = "sa1b"
    layout = "sa_N.jpg with sa_N.json, side by side (in subfolders or not) or in img/ and js/; or *.tar of these"
    row_columns = ("id", "repeat", "area", "box", "predicted_iou", "stability_score", "hash")
    schema = Schema([IMAGE, MASK, BOX, AREA, PREDICTED_IOU, STABILITY_SCORE, POINT, ANNOTATION_ID, IMAGE_ID, PATH])

    def __init__(
        self,
        root: Path | str,
        *,
        image_dir: str | None = None,
        annotation_dir: str | None = None,
        boxes: Literal["coco", "file"] = "coco",
        min_area: float = 0,
        max_images: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        for name, limit in (("max_images", max_images), ("max_rows", max_rows)):
            if limit is not None and limit < 1:
                raise UsageError(f"{name}={limit}: expected at least 1, or None for all")
        if not min_area >= 0:
            raise UsageError(f"min_area={min_area}: expected a number of pixels")
        self.folders = Folders(image_dir, annotation_dir)
        self.boxes = boxes
        self.min_area = min_area
        self.max_images = max_images
        self.max_rows = max_rows
        if boxes == "file":
            fields = self.schema.fields
            self.schema = Schema(replace(BOX, meaning=_BOX_AS_IN_THE_FILE) if one is BOX else one for one in fields)
        files = _files_of(Path(root), self.folders)
        options: dict[str, object] = {"image_dir": image_dir, "annotation_dir": annotation_dir, "boxes": boxes}
        options |= {"min_area": float(min_area), "max_images": max_images, "max_rows": max_rows}
        super().__init__(root, files=files, options=options)
        if isinstance(self.files, TarMembers):
            self.files.index = self.index

    def fault(self, files: Files) -> str:
        """No JSON with its picture; or TARs that are compressed, all of them."""
        if isinstance(files, TarMembers):
            paths = [files.root / tar if tar else files.root for tar in files.tars]
            kinds = [compression_of(path) for path in paths if path.is_file()]
            return f"{paths[0]} is compressed ({kinds[0]}); unpack it first" if kinds and all(kinds) else ""
        missing = [name for name in (self.folders.images, self.folders.annotations) if name and not files.exists(name)]
        if missing:
            return f"no folder {' and no folder '.join(missing)}"
        is_root = files.root == self.root
        is_above = files.root in self.root.absolute().parents
        found = look(files.root, self.folders, shallow=is_above)
        if found == "pairs" or (is_root and found == "json") or (not is_root and tars_in(files.root)):
            return ""
        if found == "pictures":
            return f"pictures without masks (no JSON of the same name); for plain pictures use folder:{files.root}"
        if found == "apart":
            return "pictures and JSON files in different folders; name them with image_dir= and annotation_dir="
        return "no sa_N.jpg with sa_N.json, and no *.tar"

    def _stamps(self) -> Iterable[object]:
        if isinstance(self.files, TarMembers):
            return self.files.stamps()
        return folder_stamps(self.root, self.folders)

    def _build(self) -> Index:
        index = Index()
        if isinstance(self.files, TarMembers):
            listing = list_tars(self.root, self.files.tars, self.folders, index.problems)
        else:
            listing = list_folder(self.root, self.folders)
            tars = tars_in(self.root)
            if tars:
                message = f"{len(tars)} TARs lie beside the pictures and are not read: {some(tars)}"
                index.problems.append(Problem(".", "BadData", message))
        entries = listing.entries[: self.max_images]
        parsed = joined([*self._parse(entries)])
        entries = entries[: len(parsed.counts)]
        _note_problems(index.problems, entries, parsed, listing.lone_pictures)
        self._put(index, entries, parsed)
        without = np.bincount(parsed.counts == 0, minlength=2)[1] - len(parsed.faults)
        counts = (len(listing.lone_pictures), sum(not one.has_picture for one in entries), without, parsed.small)
        index.put("tally", counts, "int64")
        return index

    def _parse(self, entries: Sequence[Entry]) -> Iterator[Parsed]:
        """All files, or as many as it takes for `max_rows`."""
        wanted = self.max_rows
        for part in parse_all([one.place for one in entries], self.min_area):
            yield part
            if wanted is not None:
                wanted -= int(part.counts.sum())
                if wanted <= 0:
                    return

    def _put(self, index: Index, entries: Sequence[Entry], parsed: Parsed) -> None:
        ends = np.minimum(np.cumsum(parsed.counts), np.iinfo(np.int64).max if self.max_rows is None else self.max_rows)
        counts = np.diff(ends, prepend=0)
        kept = np.flatnonzero(counts).tolist()
        shown = [entries[number] for number in kept]
        for name, values in parsed.rows.items():
            values = values[: int(counts.sum())]
            if name == "box" and self.boxes == "coco":
                values = one_less_to_xywh(values)
            index.put(name, values, values.dtype.str)
        index.put("starts", np.cumsum([0, *counts[kept].tolist()]), "int64")
        index.put("size_hw", parsed.size_hw[kept], "int32")
        index.put_texts("group", _unique([one.stem for one in shown], [one.annotation for one in shown]))
        index.put_texts("path", (one.picture for one in shown))
        index.put_texts("json", (one.annotation for one in shown))
        put_members(index, shown)

    def describe(self) -> dict[str, object]:
        """Pictures, masks, and what is no row."""
        lone, without_picture, empty, small = self.index["tally"].tolist()
        tars = self.files.tars if isinstance(self.files, TarMembers) else []
        return {
            "pictures": self.index.count("group"),
            "masks": len(self),
            "pictures_without_json": lone,
            "json_without_picture": without_picture,
            "json_without_rows": empty,
            "masks_below_min_area": small,
            "boxes": self.boxes,
            "tars": [tar or self.root.name for tar in tars[:100]],
        }

    def _key(self, row: int) -> str:
        number, repeat = int(self.index["id"][row]), int(self.index["repeat"][row])
        known = "none" if number == MISSING else str(number)
        return f"{self.index.text('group', self.group_of(row))}/{known}{f'#{repeat + 1}' if repeat else ''}"

    def _pictures(self, row: int) -> Sequence[str]:
        return [self.index.text("path", self.group_of(row))]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        group = self.group_of(row)
        path = self.index.text("path", group)
        record: Record = {"path": path, "image_id": self._entry_name(group)}
        for name in fields & _NUMBERS:
            record[name] = self.index[name][row]
            if np.isnan(record[name]):
                raise self._bad(row, f"expected a number as {name}, got none")
        if "annotation_id" in fields:
            record["annotation_id"] = self.index["id"][row]
            if record["annotation_id"] == MISSING:
                raise self._bad(row, "expected a whole number as id, got none")
        if "box" in fields:
            record["box"] = self._box(row)
        if "point" in fields:
            record["point"] = self._point(row, memo)
        if "mask" in fields:
            record["mask"] = self._mask(row, memo)
        if "image" in fields:
            record["image"] = self._image(path, memo, self._size(row))
        return record

    def _entry_name(self, group: int) -> str:
        return Path(self.index.text("json", group)).stem

    def _box(self, row: int) -> np.ndarray:
        """(4,) float32 XYWH, as the option says."""
        box: np.ndarray = self.index["box"][row].copy()
        covered = box if self.boxes == "coco" else one_less_to_xywh(box)
        reason = box_fault(covered, self._size(row))
        if reason:
            raise self._bad(row, f"bbox {reason}")
        return box

    def _point(self, row: int, memo: Memo) -> np.ndarray:
        """(2,) float32 XY."""
        points = self._annotation(row, memo).get("point_coords")
        first = points[0] if isinstance(points, list) and points else None
        is_point = isinstance(first, list) and len(first) == 2 and {*map(type, first)} <= {int, float}
        if not is_point or not np.isfinite(point := np.array(first, np.float64)).all() or np.abs(point).max() > 1e9:
            raise self._bad(row, f"expected point_coords [[x, y]], got {str(points)[:80]}")
        return point.astype(np.float32)

    def _mask(self, row: int, memo: Memo) -> np.ndarray:
        """(H, W) uint8, 0 or 1; never empty."""
        try:
            mask = segmentation_to_mask(self._annotation(row, memo).get("segmentation"), self._size(row))
        except BadData as error:
            raise self._bad(row, str(error)) from error
        if not mask.any():
            raise self._bad(row, "expected a segmentation that covers a pixel, got an empty mask")
        return mask

    def _annotation(self, row: int, memo: Memo) -> dict[str, Any]:
        """The annotation as the JSON has it, which is parsed once per memo.

        Raises:
            BadData: the file is not what the index was built from.
        """
        path = self.index.text("json", self.group_of(row))
        position = int(self.index["position"][row])
        try:
            found = memo.once(("json", path), lambda: parse_json(self.files.read(path))[1])
        except BadData as error:
            raise BadData(f"{self.root}: {path}: {error}; it changed since the source was opened") from error
        if position >= len(found) or annotation_hash(found[position]) != int(self.index["hash"][row]):
            raise self._bad(row, f"annotation {position} changed since the source was opened; open it again")
        if not isinstance(found[position], dict):
            raise self._bad(row, f"expected a JSON object, got {type(found[position]).__name__}")
        annotation: dict[str, Any] = found[position]
        return annotation

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self.index["size_hw"][self.group_of(row)].tolist()
        if not height:
            raise self._bad(row, "expected image.height and image.width, whole numbers above 0")
        return height, width

    def _bad(self, row: int, message: str) -> BadData:
        path = self.index.text("json", self.group_of(row))
        return BadData(f"{self.root}: {path}: annotation {self._key(row).rpartition('/')[2]}: {message}")


def _files_of(root: Path, folders: Folders) -> Files:
    """Members of TARs where the root is one, or has some and no pairs beside; else the folder."""
    if root.is_file() and (root.suffix == ".tar" or root.name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))):
        return TarMembers(root, [""])
    if root.is_dir():
        tars = tars_in(root)
        if tars and look(root, folders) not in ("pairs", "json"):
            return TarMembers(root, tars)
    return FolderFiles(root)


def _note_problems(problems: list[Problem], entries: Sequence[Entry], parsed: Parsed, lone: Sequence[str]) -> None:
    """What is wrong with whole files: each that is broken, and how many lack their counterpart."""
    for number, fault in parsed.faults.items():
        problems.append(Problem(entries[number].annotation, "BadData", f"{fault}; its masks are no rows"))
    without = [one.annotation for one in entries if not one.has_picture]
    firsts = np.cumsum([0, *parsed.counts.tolist()])
    twice = np.unique(np.searchsorted(firsts, np.flatnonzero(parsed.rows["repeat"]), side="right") - 1).tolist()
    named = zip(entries, parsed.file_names, strict=True)
    strange = [f"{one.annotation} says {name}" for one, name in named if name and Path(name).stem != one.stem]
    stems = Counter(one.stem for one in entries)
    again = [f"{stem} ({times} times)" for stem, times in stems.items() if times > 1]
    for what, which in (
        ("pictures have no JSON of the same name, and no rows", lone),
        ("JSON files have no picture of the same name; their rows fail when the image is read", without),
        ("JSON files have annotations with an id that another has; keys of the later ones end with #2, #3",
         [entries[number].annotation for number in twice]),
        ("JSON files name another picture than the one of their own name", strange),
        ("names of pictures are there in several folders; groups of the later ones are named name@folder", again),
    ):  # fmt: skip
        if which:
            problems.append(Problem(".", "BadData", f"{len(which)} {what}: {some(which)}"))


def _unique(stems: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """Names of groups: the stems; where one was there before, with its folder."""
    seen: set[str] = set()
    for stem, path in zip(stems, paths, strict=True):
        name = f"{stem}@{path.rpartition('/')[0]}" if stem in seen else stem
        seen.add(stem)
        yield name
