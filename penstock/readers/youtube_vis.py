"""`youtube-vis`: video instances in COCO-video JSON, as YouTube-VIS and OVIS have them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson

from penstock.errors import BadData, SourceNotFound
from penstock.geometry.boxes import box_fault
from penstock.geometry.polygons import segmentation_to_mask
from penstock.readers.base import Memo, require_json
from penstock.readers.fields import ANNOTATION_ID, AREA, CATEGORY_ID, ISCROWD, MASK
from penstock.readers.files import Files
from penstock.readers.index import Index
from penstock.readers.tracks import ABSENT_BIT, Track, Tracks
from penstock.schema import Record, Schema
from penstock.source import Problem

_LISTS = ("segmentations", "bboxes", "areas")


class YoutubeVis(Tracks):
    """YouTube-VIS, OVIS and others in COCO-video JSON: a row is one object in one frame, a group is one annotation.

    Every annotation has a row for each frame of its video. Where the lists say null the object is absent: not visible, its
    box and mask are zeros. Masks (RLE of both forms, or polygons) are kept in the index, so that the JSON, of some hundred
    megabytes, is parsed once and not again. Source of the format: the files as published.

    Args:
        root: the folder that holds the annotation file and the pictures.
        split: part of their names: `train` finds `train/instances.json`, `annotations/instances_train.json`,
            `annotations_train.json`, `train.json`; empty finds what lies directly in the root.
        annotations: the annotation file, relative to the root, where it is named otherwise.
        images: the folder that `file_names` start from, relative to the root, where it is named otherwise.
    """

    name = "youtube-vis"
    layout = (
        "train/instances.json (or annotations/instances_train.json, annotations_train.json, train.json, instances.json) "
        "in COCO-video JSON, with pictures in train/JPEGImages/VIDEO/*.jpg (or JPEGImages, train)"
    )
    extra_columns: ClassVar[Mapping[str, str]] = {"area": "float32"}
    extra_fields = (replace(AREA, meaning="pixels of the mask, as the dataset states it; NaN where it does not"),)
    extra_texts = ("segmentation", "file")
    group_columns: ClassVar[Mapping[str, str]] = {
        "annotation_id": "int64",
        "category_id": "int64",
        "known_category": "bool",
        "iscrowd": "bool",
        "size_hw": "int32",
        "fault": "str",
    }
    row_columns = (*Tracks.row_columns, "area", "segmentation")
    schema = Schema([*Tracks.schema.fields, MASK, *extra_fields, CATEGORY_ID, ISCROWD, ANNOTATION_ID])

    def __init__(self, root: Path | str, *, split: str = "train", annotations: str = "", images: str = "") -> None:
        self.split = split
        self.annotations = annotations
        self.images = images
        super().__init__(root, options={"split": split, "annotations": annotations, "images": images})

    def fault(self, files: Files) -> str:
        """No annotation file under one of the names known, or the one named."""
        if self._annotation_path(files):
            return ""
        return f"no {' and no '.join(self._annotation_names())}"

    def _annotation_names(self) -> list[str]:
        if self.annotations:
            return [self.annotations]
        split = self.split
        named = [
            f"{split}/instances.json",
            f"{split}/annotations.json",
            f"annotations/instances_{split}.json",
            f"annotations/instances_{split}_sub.json",
            f"annotations/{split}.json",
            f"annotations_{split}.json",
            f"instances_{split}.json",
            f"{split}.json",
        ]
        return [*(named if split else []), "instances.json", "annotations.json"]

    def _annotation_path(self, files: Files) -> str:
        return next((path for path in self._annotation_names() if files.exists(path)), "")

    def _folders(self) -> list[str]:
        if self.images:
            return [self.images]
        split = self.split
        named = [f"{split}/JPEGImages", f"JPEGImages/{split}", split, f"images/{split}"] if split else []
        return [*named, "JPEGImages", "images", "."]

    def _stamps(self) -> Iterable[object]:
        path = self._annotation_path(self.files)
        yield path, self.files.stamp(path)
        for folder in self._folders():
            if folder != ".":  # the root changes with whatever is put beside
                yield folder, self.files.stamp(folder)

    def describe(self) -> dict[str, object]:
        """As `Tracks`, with the annotation file and the number of crowds."""
        return {
            "annotations": self._annotation_path(self.files),
            **super().describe(),
            "crowd_tracks": int(self.index["iscrowd"].sum()),
        }

    def _build(self) -> Index:
        index = super()._build()
        if not index.count("group"):
            path = self.files.root / self._annotation_path(self.files)
            reasons = "; ".join(problem.message for problem in index.problems[:3])
            raise BadData(
                f"{path}: no annotation with a frame. {reasons or 'Published test and valid files have none.'}"
            )
        return index

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        path = self._annotation_path(self.files)
        parsed = _Parsed.of(self.files.read(path), str(self.files.root / path), path, problems)
        folder = self._picture_folder(parsed, problems)
        seen: set[int] = set()
        for annotation in parsed.annotations:
            number, video_id = annotation.get("id"), annotation.get("video_id")
            video = parsed.videos.get(video_id) if isinstance(video_id, int) else None
            if not isinstance(number, int) or number in seen or video is None:
                reason = "no video with this id" if video is None else "expected a number that is there once"
                message = f"annotation id {number!r}, video_id {video_id!r}: {reason}; its rows are not there"
                problems.append(Problem(path, "BadData", message))
                continue
            seen.add(number)
            if not video.files:
                continue
            track = _track(annotation, video, parsed.categories, folder)
            if track.about["fault"]:
                message = f"annotation {number}: {track.about['fault']}; its {len(track.numbers)} rows fail"
                problems.append(Problem(path, "BadData", message))
            yield track

    def _picture_folder(self, parsed: "_Parsed", problems: list[Problem]) -> str:
        """The first folder known that holds a picture of one of the first videos."""
        firsts = [video.files[0] for video in list(parsed.videos.values())[:20] if video.files]
        for folder in self._folders():
            if any(self.files.exists(f"{folder}/{first}") for first in firsts):
                return folder
        folders = [folder for folder in self._folders() if self.files.exists(folder)]
        if self.images and not folders:
            raise SourceNotFound(f"{self.root}: images={self.images}: there is no such folder")
        message = f"no pictures such as {firsts[:1]} in {', '.join(self._folders())}: every row fails when its picture is read"
        problems.append(Problem(folders[0] if folders else ".", "BadData", message))
        return folders[0] if folders else "."

    def _path(self, row: int) -> str:
        return f"{self.index.text('folder', self.group_of(row))}/{self.index.text('file', row)}".removeprefix("./")

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        group = self.group_of(row)
        fault = self.index.text("fault", group)
        if fault:
            raise self._bad(group, fault)
        if fields & {"category", "category_id"} and not self.index["known_category"][group]:
            raise self._bad(group, f"category_id {int(self.index['category_id'][group])} is not in `categories`")
        absent = bool(self.index["flags"][row] & ABSENT_BIT)
        height, width = self.index["size_hw"][group].tolist()
        if "box" in fields and not absent:
            reason = box_fault(self.index["box"][row], (height, width))
            if reason:
                raise self._bad(group, f"frame {int(self.index['frame'][row])}: box {reason}")
        record = super()._record(row, fields, memo)
        record["annotation_id"] = self.index["annotation_id"][group]
        record["category_id"] = self.index["category_id"][group]
        record["iscrowd"] = self.index["iscrowd"][group]
        if "mask" in fields:
            try:
                record["mask"] = self._mask(row, (height, width), absent)
            except BadData as error:
                raise self._bad(group, f"frame {int(self.index['frame'][row])}: {error}") from error
        return record

    def _bad(self, group: int, message: str) -> BadData:
        path = self.files.root / self._annotation_path(self.files)
        return BadData(f"{path}: annotation {int(self.index['annotation_id'][group])}: {message}")

    def _frame(self, row: int, memo: Memo) -> np.ndarray:
        height, width = self.index["size_hw"][self.group_of(row)].tolist()
        return self._image(self._path(row), memo, (height, width))

    def _mask(self, row: int, size_hw: tuple[int, int], absent: bool) -> np.ndarray:
        """(H, W) uint8, 0 or 1; all zeros where the object is absent, and only there."""
        content = self.index.raw("segmentation", row)
        if absent:
            return np.zeros(size_hw, np.uint8)
        if not content:
            raise BadData("a box without a segmentation")
        mask = np.ascontiguousarray(segmentation_to_mask(orjson.loads(content), size_hw))
        if not mask.any():
            raise BadData("the mask is empty; where an object is absent its segmentation is null")
        return mask


@dataclass(frozen=True, kw_only=True)
class _Video:
    name: str
    files: list[str]
    size_hw: tuple[int, int]
    fault: str


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    videos: dict[int, _Video]
    categories: dict[int, str]
    annotations: list[dict[str, object]] = field(repr=False)

    @classmethod
    def of(cls, content: bytes, where: str, path: str, problems: list[Problem]) -> "_Parsed":
        """The three lists of the file, annotations by video and id.

        Raises:
            BadData: broken JSON, or no COCO-video JSON with annotation.
        """
        parsed = require_json(content, where, dict)
        if "images" in parsed and "videos" not in parsed:
            raise BadData(f"{where}: expected COCO-video JSON with `videos`, got `images`: read it with coco-instances")
        for name in ("videos", "annotations", "categories"):
            found = parsed.get(name)
            if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                hint = "; the published test and valid files have no annotation" if name == "annotations" else ""
                raise BadData(f"{where}: expected a list `{name}` of objects, got {type(found).__name__}{hint}")
        videos = _videos(parsed["videos"], path, problems)
        categories = {each["id"]: str(each.get("name", "")) for each in parsed["categories"] if "id" in each}
        order = {video_id: place for place, video_id in enumerate(videos)}
        annotations = sorted(
            parsed["annotations"], key=lambda each: (order.get(each.get("video_id"), -1), str(each.get("id")).zfill(20))
        )
        return cls(videos=videos, categories=categories, annotations=annotations)


def _videos(found: Sequence[dict[str, object]], path: str, problems: list[Problem]) -> dict[int, _Video]:
    """Videos by id, in the order of their ids. The name is the folder of their pictures, where each has its own."""
    videos: dict[int, _Video] = {}
    names: set[str] = set()
    numbered = [(number, each) for each in found if isinstance(number := each.get("id"), int)]
    for number, each in sorted(numbered, key=lambda entry: entry[0]):
        files = each.get("file_names")
        listed = [name for name in files if isinstance(name, str)] if isinstance(files, list) else []
        height, width = each.get("height"), each.get("width")
        is_sized = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
        fault = (
            "" if is_sized else f"video {number}: expected a positive height and width, got {height!r} and {width!r}"
        )
        folders = {name.rpartition("/")[0] for name in listed}
        name = folders.pop() if len(folders) == 1 else ""
        name = name if name and name not in names else str(number)
        names.add(name)
        if not listed:
            problems.append(
                Problem(path, "BadData", f"video {number}: no `file_names`: a video of no frames has no rows")
            )
        elif "length" in each and each["length"] != len(listed):
            message = (
                f"video {number}: `length` is {each['length']}, there are {len(listed)} file_names: these are read"
            )
            problems.append(Problem(path, "BadData", message))
        size_hw = (height, width) if is_sized else (0, 0)
        videos[number] = _Video(name=name, files=listed, size_hw=size_hw, fault=fault)  # type: ignore[arg-type]  # is_sized
    if len(videos) < len(found):
        problems.append(
            Problem(path, "BadData", f"{len(found) - len(videos)} videos have no id of their own: no rows of them")
        )
    return videos


def _track(annotation: dict[str, object], video: _Video, categories: dict[int, str], folder: str) -> Track:
    """The rows of an annotation: one per frame of its video."""
    count = len(video.files)
    lists: dict[str, list[object]] = {}
    fault = video.fault
    for name in _LISTS:
        found = annotation.get(name)
        if isinstance(found, list) and len(found) == count:
            lists[name] = found
            continue
        lists[name] = [None] * count
        if name != "areas" or found is not None:
            got = len(found) if isinstance(found, list) else type(found).__name__
            fault = fault or f"`{name}`: expected one entry for each of the {count} frames of its video, got {got}"
    boxes = np.array([_four(box) for box in lists["bboxes"]], np.float32)
    segmentations = [b"" if each is None else orjson.dumps(each) for each in lists["segmentations"]]
    absent = np.array(
        [not fault and box is None and not text for box, text in zip(lists["bboxes"], segmentations, strict=True)]
    )
    boxes[absent] = 0
    if fault:
        boxes[:] = np.nan
    areas = [each if isinstance(each, int | float) else np.nan for each in lists["areas"]]
    number, category_id = annotation["id"], annotation.get("category_id")
    known = isinstance(category_id, int) and category_id in categories
    return Track(
        video=video.name,
        target=str(number),
        name=f"{video.name}/{number}",
        category=categories[category_id] if known else "",  # type: ignore[index]  # known says so
        folder=folder,
        numbers=np.arange(count),
        boxes=boxes,
        absent=absent,
        extra={"area": np.where(absent, 0, np.array(areas, np.float32))},
        texts={"segmentation": segmentations, "file": video.files},
        about={
            "annotation_id": number,
            "category_id": category_id if isinstance(category_id, int) else -1,
            "known_category": known,
            "iscrowd": bool(annotation.get("iscrowd", 0)),
            "size_hw": video.size_hw,
            "fault": fault,
        },
    )


def _four(box: object) -> list[float]:
    """The four numbers of a box; NaN where there are none."""
    if isinstance(box, list) and len(box) == 4 and all(isinstance(each, int | float) for each in box):
        return [float(each) for each in box]
    return [np.nan] * 4
