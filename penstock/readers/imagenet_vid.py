"""`imagenet-vid`: ImageNet VID's XML per frame, and the LMDB that trackers make of it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import BadData
from penstock.readers.base import Memo, require_json, some
from penstock.readers.files import Files, LmdbFiles
from penstock.readers.track_files import picture_numbers
from penstock.readers.tracks import NO_PICTURE, Track, Tracks
from penstock.readers.vid_xml import CLASSES, VidObject, parse_frame
from penstock.schema import Field, Schema
from penstock.source import Problem

OCCLUDED = Field(name="occluded", dtype="bool", kind="flag", meaning="the dataset says that something hides the target")
GENERATED = Field(
    name="generated", dtype="bool", kind="flag", meaning="the box was interpolated, not drawn; false where not known"
)
WNID = Field(name="wnid", dtype="str", kind="text", meaning="WordNet id of the class; empty where it is not known")
_WNIDS = {name: wnid for wnid, name in CLASSES.items()}
_NUMBER = re.compile(r"[0-9]+")
_GAP = VidObject("", "", (float("nan"),) * 4, False, False)


class _VidTracks(Tracks):
    """What both layouts share. A row is one target in one frame, a group is the target's track."""

    extra_columns: ClassVar[Mapping[str, str]] = {"occluded": "bool", "generated": "bool"}
    extra_fields = (OCCLUDED, GENERATED)
    group_columns: ClassVar[Mapping[str, str]] = {
        "wnid": "str",
        "size_hw": "int32",
        "pictures": "int64",
        "annotations": "int64",
    }
    group_fields = (WNID,)
    row_columns = (*Tracks.row_columns, *extra_columns)
    schema = Schema([*Tracks.schema.fields, *extra_fields, *group_fields])

    def _picture(self, folder: str, number: int) -> str:
        return f"{folder}/{number:06d}.JPEG"

    def _frame(self, row: int, memo: Memo) -> np.ndarray:
        group = self.group_of(row)
        if int(self.index["flags"][row]) & NO_PICTURE:
            pictures, annotations = int(self.index["pictures"][group]), int(self.index["annotations"][group])
            raise BadData(
                f"{self.files.root}: {self._path(row)}: no such picture; {self.index.text('video', group)} has "
                f"{annotations} frames of annotation and {pictures} pictures"
            )
        height, width = self.index["size_hw"][group].tolist()
        return self._image(self._path(row), memo, (height, width) if height > 0 and width > 0 else None)

    def describe(self) -> dict[str, object]:
        """As of all tracks, and frames whose target is occluded, or whose box was interpolated."""
        return {
            **super().describe(),
            "occluded_rows": int(self.index["occluded"].sum()),
            "generated_rows": int(self.index["generated"].sum()),
        }


class ImagenetVid(_VidTracks):
    """ImageNet VID: one XML per frame, with the objects in it. A group is one `trackid` of a video, a row is a frame of it.

    Rows go from the first to the last frame that has the target; the frames between without it are there, not annotated.
    A box is XYWH with w = xmax - xmin and h = ymax - ymin, as trackers read it. An occluded target is not visible. An
    XML that is broken makes the rows of its frame fail. Format: the files as published.

    A `cache.json` in the root, as other programs write it, is neither read nor written. The index is rebuilt when a
    folder changes; an XML that is overwritten in place, under its name, is not noticed.

    Args:
        root: the folder that holds Annotations and Data.
        split: `train` (folders of a thousand videos) or `val`; the test set has no annotation.
    """

    name = "imagenet-vid"
    layout = (
        "Annotations/VID/train/ILSVRC2015_VID_train_0000/VIDEO/000000.xml and the same below Data with 000000.JPEG "
        "(val without the level of sets)"
    )

    def __init__(self, root: Path | str, *, split: Literal["train", "val"] = "train") -> None:
        self.split = split
        super().__init__(root, options={"split": split})

    def fault(self, files: Files) -> str:
        """No annotation folder of the split with anything in it."""
        folder = f"Annotations/VID/{self.split}"
        return "" if files.names(folder) else f"no {folder}"

    def _stamps(self) -> Iterable[object]:
        for video in self._videos():
            yield video, self.files.stamp(f"Annotations/VID/{video}"), self.files.stamp(f"Data/VID/{video}")

    def _videos(self) -> Iterator[str]:
        """Folders of the videos below Annotations/VID, sorted."""
        top = f"Annotations/VID/{self.split}"
        for name in self.files.names(top):
            if self.split == "val":
                yield f"val/{name}"
            else:
                yield from (f"train/{name}/{video}" for video in self.files.names(f"{top}/{name}"))

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        has_pictures = bool(self.files.names(f"Data/VID/{self.split}"))
        if not has_pictures:
            message = "no such folder: every row fails when its picture is read"
            problems.append(Problem(f"Data/VID/{self.split}", "SourceNotFound", message))
        for folder in self._videos():
            names = self.files.names(f"Annotations/VID/{folder}")
            numbers = picture_numbers(names, 6, ".xml")
            pictures = picture_numbers(self.files.names(f"Data/VID/{folder}"), 6, ".JPEG")
            if has_pictures and not np.array_equal(numbers, pictures):
                problems.append(_mismatch(folder, numbers, pictures))
            yield from self._of_video(folder, numbers, pictures, problems)

    def _of_video(
        self, folder: str, numbers: np.ndarray, pictures: np.ndarray, problems: list[Problem]
    ) -> Iterator[Track]:
        found: dict[str, dict[int, VidObject]] = {}
        broken, faults, size_hw = [], [], (0, 0)
        for number in numbers.tolist():
            path = f"Annotations/VID/{folder}/{number:06d}.xml"
            try:
                frame = parse_frame(self.files.read(path))
            except BadData as error:
                broken.append(number)
                faults.append(f"{number:06d}.xml: {error}")
                continue
            size_hw = frame.size_hw if min(size_hw) <= 0 else size_hw
            faults += [f"{number:06d}.xml: {fault}" for fault in frame.faults]
            for each in frame.objects:
                track = found.setdefault(each.track, {})
                if number in track:
                    faults.append(f"{number:06d}.xml: trackid {each.track} twice: the first is taken")
                track.setdefault(number, each)
        for target in sorted(found, key=_by_number):
            track = found[target]
            names = sorted({each.wnid for each in track.values()} - {""})
            if len(names) > 1:
                faults.append(f"trackid {target} has classes {some(names)}: the first frame's is taken")
            about = {"size_hw": size_hw, "pictures": len(pictures), "annotations": len(numbers)}
            yield _track(folder, target, track, broken, pictures=pictures, about=about)
        if faults:
            problems.append(Problem(f"Annotations/VID/{folder}", "BadData", some(faults)))


class ImagenetVidLmdb(_VidTracks):
    """ImageNet VID as one LMDB: the key `cache.json` is the annotation, as the trackers' readers compute it from the XMLs.

    That list has one track per entry, up to the first frame without the target, and does not keep the trackid: `object`
    is the place of the track among those of its video. What is visible is kept, the rest of the flags is not.
    """

    name = "imagenet-vid-lmdb"
    layout = "an LMDB with keys cache.json and Data/VID/train/ILSVRC2015_VID_train_0000/VIDEO/000000.JPEG"

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)

    def _open(self, root: Path) -> Files:
        return LmdbFiles(root)

    def fault(self, files: Files) -> str:
        """No key cache.json."""
        return "" if files.exists("cache.json") else "no key cache.json"

    def _stamps(self) -> Iterable[object]:
        return [self.files.stamp("cache.json")]

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        entries = require_json(self.files.read("cache.json"), f"{self.root}: cache.json", list)
        counts: dict[str, int] = {}
        pictures: dict[str, np.ndarray] = {}
        for place, entry in enumerate(entries):
            where = f"cache.json[{place}]"
            try:
                folder, start, boxes, visible, name, size_hw = _entry(entry)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                message = f"expected set_id, vid_id, class_name, start_frame, anno, target_visible: {error!r}: no rows"
                problems.append(Problem(where, "BadData", message))
                continue
            if folder not in pictures:
                pictures[folder] = picture_numbers(self.files.names(folder), 6, ".JPEG")
            target = counts[folder] = counts.get(folder, -1) + 1
            numbers = np.arange(start, start + len(boxes))
            missing = ~np.isin(numbers, pictures[folder])
            if missing.any():
                message = f"{len(boxes)} frames of annotation, no picture of {some(numbers[missing].tolist())}"
                problems.append(Problem(folder, "BadData", message))
            wnid = name if name in CLASSES else _WNIDS.get(name, "")
            video = folder.rpartition("/")[2]
            yield Track(
                video=video,
                target=str(target),
                name=f"{video}/{target}",
                category=CLASSES.get(name, name),
                folder=folder,
                numbers=numbers,
                frames=numbers,
                boxes=boxes,
                absent=np.zeros(len(boxes), bool),
                hidden=~visible,
                missing=missing,
                extra={"occluded": ~visible, "generated": np.zeros(len(boxes), bool)},
                about={"wnid": wnid, "size_hw": size_hw, "pictures": len(pictures[folder]), "annotations": len(boxes)},
            )


def _track(
    folder: str,
    target: str,
    found: Mapping[int, VidObject],
    broken: Sequence[int],
    *,
    pictures: np.ndarray,
    about: Mapping[str, object],
) -> Track:
    """A track from its objects by frame; frames whose XML is broken are annotated with no box, so that they fail."""
    first = min(found)
    numbers = np.arange(first, max(found) + 1)
    objects = [found.get(number, _GAP) for number in numbers.tolist()]
    occluded = np.array([each.is_occluded for each in objects], bool)
    video = folder.rpartition("/")[2]
    wnid = found[first].wnid
    return Track(
        video=video,
        target=target,
        name=f"{video}/{target}",
        category=CLASSES.get(wnid, wnid),
        folder=f"Data/VID/{folder}",
        numbers=numbers,
        frames=numbers,
        boxes=np.array([each.box_xywh for each in objects], np.float64),
        absent=np.zeros(len(numbers), bool),
        annotated=np.array([each is not _GAP for each in objects]) | np.isin(numbers, broken),
        hidden=occluded,
        missing=~np.isin(numbers, pictures),
        extra={"occluded": occluded, "generated": np.array([each.is_generated for each in objects], bool)},
        about={**about, "wnid": wnid},
    )


def _mismatch(folder: str, numbers: np.ndarray, pictures: np.ndarray) -> Problem:
    parts = [f"{len(pictures)} pictures, {len(numbers)} frames of annotation"]
    without, unnamed = np.setdiff1d(numbers, pictures).tolist(), np.setdiff1d(pictures, numbers).tolist()
    if without:
        parts.append(f"no picture of {some(without)}: these rows fail when the picture is read")
    if unnamed:
        parts.append(f"no XML of {some(unnamed)}: not annotated within a track, no rows outside")
    return Problem(f"Data/VID/{folder}", "BadData", "; ".join(parts))


def _entry(entry: Mapping[str, object]) -> tuple[str, int, np.ndarray, np.ndarray, str, tuple[int, int]]:
    """Folder, first frame, boxes (N, 4), visible (N,), class and size of one member of cache.json.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: something is missing or of another kind.
    """
    numbers = [entry[name] for name in ("set_id", "vid_id", "start_frame")]
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in numbers):
        raise ValueError(f"set_id, vid_id, start_frame = {numbers}")
    boxes = np.array(entry["anno"], np.float64).reshape(-1, 4)
    visible = np.array(entry["target_visible"]).reshape(-1) != 0
    if not len(boxes) or len(visible) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes and {len(visible)} flags")
    name = entry["class_name"]
    width, height = np.array(entry.get("image_size") or (0, 0), np.int64).tolist()
    folder = f"Data/VID/train/ILSVRC2015_VID_train_{numbers[0]:04d}/ILSVRC2015_train_{numbers[1]:08d}"
    start = int(str(numbers[2]))
    return folder, start, boxes, visible, name if isinstance(name, str) else "", (height, width)


def _by_number(text: str) -> tuple[bool, int, str]:
    return (False, int(text), text) if _NUMBER.fullmatch(text) and len(text) < 19 else (True, 0, text)
