"""`davis`: frames with one palette PNG each, as DAVIS, MOSE and YouTube-VOS have them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.id_maps import id_areas, id_boxes
from penstock.geometry.id_pngs import read_palette_png
from penstock.geometry.images import picture_header
from penstock.readers.base import PICTURES, Memo, require_json
from penstock.readers.fields import AREA, FRAME, IDS, IMAGE, MASK, PATH, TIME, VIDEO
from penstock.readers.files import Files
from penstock.readers.tracks import ANNOTATED, Track, Tracks
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

VOID = 255
"""Pixels that belong to nothing known; but the object itself in a video that has no other number (DAVIS 2016)."""
RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
"""Folders between `JPEGImages` and the videos, in the order in which they are taken."""
ANNOTATED_FIELD = Field(name="annotated", dtype="bool", kind="flag", meaning="there is a PNG for this frame")
_IDS = replace(
    IDS,
    dtype="int16",
    meaning="object per pixel, of the image's size, as stored: 0 is background, 255 void (or the one object of a video "
    "without other numbers); -1 everywhere in a frame without annotation",
)


class Davis(Tracks):
    """DAVIS, MOSE, YouTube-VOS and others with JPEGImages/VIDEO/*.jpg and palette PNGs of the same names in Annotations.

    A row is one frame with its id map, and a group one video (rows="frames"); or a row is one object in one annotated
    frame, and a group one object of one video (rows="objects"). `frame` is the position among the pictures of the folder;
    keys end in the file's own name, since YouTube-VOS lists every fifth frame: 00000, 00005, ... Source of the layouts: the
    files as published.

    Args:
        root: the folder that holds `JPEGImages` and `Annotations`, or `SPLIT/JPEGImages` and `SPLIT/Annotations`.
        split: a folder of the root (YouTube-VOS, MOSE), or a list in ImageSets, ImageSets/2017 or ImageSets/2016 (DAVIS);
            empty takes all videos.
        rows: "frames", or "objects". Which objects a video has and where they are is in its PNGs only, so that "objects"
            decodes all of them once, when the index is built.
        frames: "annotated" for those with a PNG; "all" for every picture (with rows="frames").
        resolution: folder below `JPEGImages` and `Annotations`; empty takes 480p, Full-Resolution or 1080p where there is
            one.
        annotations: the folder of the PNGs where it is named otherwise (`Annotations_unsupervised`).
    """

    name = "davis"
    layout = (
        "JPEGImages[/480p]/VIDEO/*.jpg with Annotations[/480p]/VIDEO/*.png, and lists in ImageSets; "
        "or the same in train, valid, ..."
    )
    extra_columns: ClassVar[Mapping[str, str]] = {"area": "float32"}
    extra_texts = ("file",)
    group_columns: ClassVar[Mapping[str, str]] = {"masks": "str", "pictures": "int32"}
    row_columns = (*Tracks.row_columns, "area", "file")

    def __init__(
        self,
        root: Path | str,
        *,
        split: str = "",
        rows: Literal["frames", "objects"] = "frames",
        frames: Literal["annotated", "all"] = "annotated",
        resolution: str = "",
        annotations: str = "Annotations",
    ) -> None:
        if rows == "objects" and frames == "all":
            raise UsageError("davis: rows=objects has only annotated frames: elsewhere nobody knows where an object is")
        self.split = split
        self.rows = rows
        self.frames = frames
        self.resolution = resolution
        self.annotations = annotations
        if rows == "frames":
            self.schema = Schema([IMAGE, _IDS, ANNOTATED_FIELD, FRAME, TIME, VIDEO, PATH])
        else:
            area = replace(AREA, meaning="pixels of the mask, counted")
            self.schema = Schema([*Tracks.schema.fields, MASK, area])
        options = {"split": split, "rows": rows, "frames": frames, "resolution": resolution, "annotations": annotations}
        super().__init__(root, options=options)

    def fault(self, files: Files) -> str:
        """No JPEGImages, no Annotations beside them, or no such split or resolution."""
        found = self._find(files)
        return found if isinstance(found, str) else ""

    def _find(self, files: Files) -> "_Place | str":
        """Where the parts lie, or what is missing."""
        bases = [f"{self.split}/", ""] if self.split else [""]
        base = next((each for each in bases if files.exists(each + "JPEGImages")), None)
        if base is None:
            inner = [name for name in ("train", "valid", "val", "test") if files.exists(f"{name}/JPEGImages")]
            hint = f"; there is {inner[0]}/JPEGImages: say split={inner[0]}" if inner else ""
            return f"no {' and no '.join(each + 'JPEGImages' for each in bases)}{hint}"
        known = [name for name in RESOLUTIONS if files.exists(f"{base}JPEGImages/{name}")]
        resolution = self.resolution or (known[0] if known else "")
        tail = f"/{resolution}" if resolution else ""
        pictures, masks = f"{base}JPEGImages{tail}", f"{base}{self.annotations}{tail}"
        for folder in (pictures, masks):
            if not files.exists(folder):
                return f"no {folder}"
        if base or not self.split:
            return _Place(base, pictures, masks, "")
        lists = [f"ImageSets/{year}{self.split}.txt" for year in ("2017/", "2016/", "")]
        found = next((path for path in lists if files.exists(path)), "")
        return _Place(base, pictures, masks, found) if found else f"no list {' and no '.join(lists)}"

    def _place(self) -> "_Place":
        found = self._find(self.files)
        if isinstance(found, str):
            raise BadData(f"{self.root}: the files changed while they were read: {found}")
        return found

    def _stamps(self) -> Iterable[object]:
        place = self._place()
        yield place, self.files.stamp(place.list_path), self.files.stamp(f"{place.base}meta.json")
        for video in self._videos(place):
            masks = f"{place.masks}/{video}"
            yield video, self.files.stamp(f"{place.pictures}/{video}"), self.files.stamp(masks)
            if self.rows == "objects":
                yield [self.files.stamp(f"{masks}/{name}") for name in self.files.names(masks)]

    def _videos(self, place: "_Place") -> list[str]:
        """Videos in order of name.

        Raises:
            BadData: the list of the split holds something else than names.
        """
        if not place.list_path:
            return [name for name in self.files.names(place.pictures) if not name.startswith(".")]
        lines = self.files.read(place.list_path).decode("utf-8-sig", "surrogateescape").splitlines()
        names = sorted({line.strip() for line in lines} - {""})
        paths = [name for name in names if "/" in name]
        if paths or not names:
            got = paths[0] if paths else "none"
            raise BadData(f"{self.root}: {place.list_path}: expected names of videos, one per line, got {got!r}")
        return names

    def column(self, name: str) -> np.ndarray:
        """As `Tracks.column`; and `area`.

        Raises:
            UsageError: boxes, areas and what follows from them, of rows that are whole frames.
        """
        if self.rows == "frames" and name in ("box", "area", "valid", "visible", "absent"):
            raise UsageError(f"{self.root}: a row is a frame with many objects: {name} needs rows='objects'")
        return super().column(name)

    def describe(self) -> dict[str, object]:
        """Videos, tracks, frames, and how many pictures have no annotation."""
        place = self._place()
        annotated = (self.index["flags"] & ANNOTATED) != 0
        videos = self.index.texts("video")
        first = np.unique(videos, return_index=True)[1]
        rows = np.add.reduceat(annotated, self.index["starts"][:-1], dtype=np.int64)
        found: dict[str, object] = {
            "pictures": place.pictures,
            "masks": place.masks,
            "videos": len(first),
            "frames": int(self.index["pictures"][first].sum()),
            "frames_without_annotation": int((self.index["pictures"][first] - rows[first]).sum()),
        }
        return found if self.rows == "frames" else {**found, **super().describe()}

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        place = self._place()
        categories = self._categories(place) if self.rows == "objects" else {}
        for video in self._videos(place):
            try:
                found = self._video(place, video, problems)
            except BadData as error:  # a folder that cannot be listed
                problems.append(Problem(f"{place.pictures}/{video}", "BadData", f"{error}; no rows"))
                continue
            if self.rows == "frames":
                yield self._frame_track(found)
            else:
                yield from self._object_tracks(found, categories.get(video, {}), problems)

    def _video(self, place: "_Place", video: str, problems: list[Problem]) -> "_Video":
        """Pictures and PNGs of a video; says where they do not fit."""
        folder, masks = f"{place.pictures}/{video}", f"{place.masks}/{video}"
        names = [name for name in self.files.names(folder) if name.lower().endswith(PICTURES)]
        names.sort(key=_by_number)
        pngs = {name[:-4] for name in self.files.names(masks) if name.endswith(".png")}
        stems = [name.rpartition(".")[0] for name in names]
        annotated = np.array([stem in pngs for stem in stems], bool)
        lone, count = len(pngs - set(stems)), int(annotated.sum())
        rows = "no rows of them" if self.frames == "annotated" else "rows without annotation"
        if not names:
            problems.append(Problem(folder, "BadData", "no pictures: a video of no frames has no rows"))
        elif not pngs:
            problems.append(Problem(masks, "BadData", f"no PNG for any of {len(names)} pictures: {rows}"))
        elif len(names) / 2 < count < len(names):  # fewer are meant so: first frames only, every fifth, ...
            message = f"{len(names) - count} of {len(names)} pictures have no PNG: {rows}"
            problems.append(Problem(masks, "BadData", message))
        if lone and names:
            problems.append(
                Problem(masks, "BadData", f"{lone} of {len(pngs)} PNGs have no picture in {folder}: no rows")
            )
        return _Video(video, folder, masks, names, annotated)

    def _frame_track(self, video: "_Video") -> Track:
        places = np.arange(len(video.names)) if self.frames == "all" else np.flatnonzero(video.annotated)
        return self._track(video, video.name, places, np.zeros((len(places), 4)), np.zeros(len(places)))

    def _object_tracks(
        self, video: "_Video", categories: Mapping[str, str], problems: list[Problem]
    ) -> Iterator[Track]:
        """A track for each number in the PNGs of a video; all of them are decoded."""
        places = np.flatnonzero(video.annotated)
        known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        failed = np.zeros(len(places), bool)
        for row, place in enumerate(places.tolist()):
            path = video.mask(place)
            try:
                ids = self._read_ids(path)
            except BadData as error:
                failed[row] = True
                problems.append(Problem(path, "BadData", f"{error}; its rows fail"))
                continue
            (numbers, found), (_, counts) = id_boxes(ids), id_areas(ids)
            for number, box, count in zip(numbers.tolist(), found, counts.tolist(), strict=True):
                boxes, areas = known.setdefault(number, (np.zeros((len(places), 4)), np.zeros(len(places))))
                boxes[row], areas[row] = box, count
        targets = sorted(set(known) - {0, VOID}) or sorted(set(known) - {0})
        if len(places) and not targets:
            problems.append(Problem(video.masks, "BadData", "no object in any PNG: no rows"))
        for number in targets:
            boxes, areas = known[number]
            boxes[failed], areas[failed] = np.nan, np.nan
            track = self._track(video, f"{video.name}/{number}", places, boxes, areas)
            yield replace(track, target=str(number), category=categories.get(str(number), ""), absent=areas == 0)

    def _track(self, video: "_Video", name: str, places: np.ndarray, boxes: np.ndarray, areas: np.ndarray) -> Track:
        return Track(
            video=video.name,
            name=name,
            folder=video.folder,
            numbers=places,
            frames=places,
            boxes=boxes,
            absent=np.zeros(len(places), bool),
            annotated=video.annotated[places],
            extra={"area": areas},
            texts={"file": [video.names[place] for place in places.tolist()]},
            about={"masks": video.masks, "pictures": len(video.names)},
        )

    def _categories(self, place: "_Place") -> dict[str, dict[str, str]]:
        """Classes of objects by video and id, from YouTube-VOS' meta.json where there is one."""
        path = f"{place.base}meta.json"
        if not self.files.exists(path):
            return {}
        where = str(self.files.root / path)
        videos = require_json(self.files.read(path), where, dict).get("videos")
        try:
            return {
                video: {number: str(each.get("category", "")) for number, each in found["objects"].items()}
                for video, found in (videos or {}).items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise BadData(
                f"{where}: expected videos -> VIDEO -> objects -> ID -> category, got another shape"
            ) from error

    def _key(self, row: int) -> str:
        return f"{self.index.text('group', self.group_of(row))}/{self._stem(row)}"

    def _stem(self, row: int) -> str:
        return self.index.text("file", row).rpartition(".")[0]

    def _path(self, row: int) -> str:
        return f"{self.index.text('folder', self.group_of(row))}/{self.index.text('file', row)}"

    def _mask_path(self, row: int) -> str:
        return f"{self.index.text('masks', self.group_of(row))}/{self._stem(row)}.png"

    def _pictures(self, row: int) -> Sequence[str]:
        is_annotated = int(self.index["flags"][row]) & ANNOTATED
        return [self._path(row), self._mask_path(row)] if is_annotated else [self._path(row)]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        is_annotated = bool(int(self.index["flags"][row]) & ANNOTATED)
        damaged = bool(np.isnan(self.index["area"][row]))
        record = super()._record(row, fields - {"box"}, memo)
        record["annotated"] = np.array(is_annotated)
        record["area"] = self.index["area"][row]
        image = record.get("image")
        size_hw = image.shape[:2] if isinstance(image, np.ndarray) else None
        path = self._mask_path(row)
        if fields & {"ids", "mask"} or (damaged and fields & {"box", "area", "valid", "visible", "absent"}):
            if not is_annotated:
                size_hw = size_hw or picture_header(self.files.read(self._path(row))).size_hw
                record["ids"] = np.full(size_hw, -1, np.int16)
                return record
            ids = memo.once(("ids", path), lambda: self._read_ids(path))
            if size_hw is not None and ids.shape != size_hw:
                raise BadData(
                    f"{self.root}: {path} is {ids.shape[0]} x {ids.shape[1]} (height x width), "
                    f"its picture {self._path(row)} is {size_hw[0]} x {size_hw[1]}"
                )
            if self.rows == "frames":
                record["ids"] = ids.astype(np.int16)
                return record
            mask = (ids == int(self.index.text("target", self.group_of(row)))).view(np.uint8)
            if np.count_nonzero(mask) != self.index["area"][row]:
                raise BadData(f"{self.root}: {path} changed since the source was opened; open it again")
            record["mask"] = mask
        return record

    def _read_ids(self, path: str) -> np.ndarray:
        """(H, W) uint8 as stored."""
        content = self.files.read(path)
        try:
            return read_palette_png(content)[0]
        except BadData as error:
            raise BadData(f"{self.files.root}: {path}: {error}") from error


@dataclass(frozen=True)
class _Place:
    base: str
    pictures: str
    masks: str
    list_path: str


@dataclass(frozen=True)
class _Video:
    name: str
    folder: str
    masks: str
    names: list[str]
    """Of the pictures, in order."""
    annotated: np.ndarray

    def mask(self, place: int) -> str:
        """Path of the PNG of a picture."""
        return f"{self.masks}/{self.names[place].rpartition('.')[0]}.png"


def _by_number(name: str) -> tuple[bool, int, str]:
    stem = name.rpartition(".")[0]
    return (not stem.isdecimal(), int(stem) if stem.isdecimal() else 0, name)
