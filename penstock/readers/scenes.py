"""`scenes`: frames of scenes with id maps, `images/frame_000000.jpg` and `obj_ids/frame_000000.jpg.pth`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.errors import BadData, SourceNotFound
from penstock.readers.base import PICTURES, Memo, Reader, some
from penstock.readers.fields import FRAME, IDS, IMAGE, PATH
from penstock.readers.files import Files
from penstock.readers.index import Index
from penstock.readers.pth import load_id_file
from penstock.schema import Field, Record, Schema
from penstock.source import Problem

_MAPS = (".pth", ".pt", ".npy", ".png")
"""Suffixes of id maps; where a frame has several, the first of these counts."""

_IMAGES = "images"
SCENE = Field(name="scene", dtype="str", kind="text", meaning="name of the scene's folder")
IDS_PATH = Field(
    name="ids_path",
    dtype="str",
    kind="text",
    meaning="file of the id map, relative to the root; empty where there is none",
)


class Scenes(Reader):
    """Scenes with object ids per pixel, as ScanNet++ and InsScene keep them: a row is a frame, a group is a scene.

    A scene is a folder in the root (or the root itself) with `images` and a folder of id maps. Picture and map belong
    together by name: the map's is the picture's, with the picture's suffix or without, and .pth, .pt, .npy or .png; never
    by their position in a list. Frames are in order of the numbers in their names. The key is `<scene>/<picture's stem>`.
    Source of the format: what torch.save, NumPy and the ScanNet++ toolbox write.

    Args:
        root: the folder of the scenes, or one scene.
        ids: name of the folder of id maps: `obj_ids`, `refined_ins_ids`, `obj_ids_refine`, ...
        frames: "paired" has the frames with a map as rows; "all" also those without, which fail when `ids` is read.
        scenes: only these; all for none.
    """

    name = "scenes"
    layout = "SCENE/images/*.jpg with SCENE/obj_ids/*.jpg.pth (or .npy, .png; another folder: ids=NAME)"
    row_columns = ("path", "ids_path", "frame")
    schema = Schema(
        [
            IMAGE,
            replace(IDS, meaning="object id per pixel as stored, of the image's size; 0 and below is unlabelled"),
            SCENE,
            replace(FRAME, meaning="position of the picture among those of its scene, from 0"),
            PATH,
            IDS_PATH,
        ]
    )

    def __init__(
        self,
        root: Path | str,
        *,
        ids: str = "obj_ids",
        frames: Literal["paired", "all"] = "paired",
        scenes: tuple[str, ...] = (),
    ) -> None:
        self.ids = ids
        self.frames = frames
        self.scenes = scenes
        super().__init__(root, options={"ids": ids, "frames": frames, "scenes": scenes})

    def fault(self, files: Files) -> str:
        """No scene; or none of the names asked for."""
        scenes = _scenes(files, self.ids)
        if not scenes:
            near = sorted({one for scene in _scenes(files, "") for one in _map_folders(files, scene)})
            hint = f", but {', '.join(near)}: say ids={near[0]}" if near else ""
            return f"no folder with {_IMAGES}/ and {self.ids}/{hint}"
        known = {self._scene_name(files, scene) for scene in scenes}
        missing = [name for name in self.scenes if name not in known]
        if missing and files.root == self.root:
            return f"no scene {', '.join(missing)} with {_IMAGES}/ and {self.ids}/ among {len(known)}"
        return ""

    def describe(self) -> dict[str, object]:
        """Frames, scenes, and what is not paired."""
        without_map, without_picture, further = self.index["tally"].tolist()
        return {
            "scenes": self.index.count("group"),
            "ids": self.ids,
            "frames_without_map": without_map,
            "maps_without_frame": without_picture,
            "further_maps_of_a_frame": further,
        }

    def _stamps(self) -> Iterable[object]:
        for scene in self._all_scenes():
            for folder in (_IMAGES, self.ids):
                yield scene, folder, self.files.stamp(_inside(scene, folder))

    def _build(self) -> Index:
        index = Index()
        paths: list[str] = []
        maps: list[str] = []
        frames: list[int] = []
        names, starts, tally = [], [0], np.zeros(3, np.int64)
        for scene in self._all_scenes():
            name = self._scene_name(self.files, scene)
            if self.scenes and name not in self.scenes:
                continue
            pictures = self._pictures_of(scene, index.problems)
            found, further = _maps_by_stem(self.files.names(_inside(scene, self.ids)))
            tally += self._note_unpaired(scene, set(pictures), set(found), further, index.problems)
            rows = [one for one in enumerate(pictures) if one[1] in found or self.frames == "all"]
            paths += [_inside(scene, f"{_IMAGES}/{pictures[stem]}") for _, stem in rows]
            maps += [_inside(scene, f"{self.ids}/{found[stem]}") if stem in found else "" for _, stem in rows]
            frames += [number for number, _ in rows]
            if rows:
                names.append(name)
                starts.append(len(paths))
        index.put("starts", starts, "int64")
        index.put("frame", frames, "int32")
        index.put("tally", tally, "int64")
        for column, texts in (("group", names), ("path", paths), ("ids_path", maps)):
            index.put_texts(column, texts)
        return index

    def _pictures_of(self, scene: str, problems: list[Problem]) -> dict[str, str]:
        """Stem to name, in order of the numbers in the names."""
        folder = _inside(scene, _IMAGES)
        names = [name for name in self.files.names(folder) if name.lower().endswith(PICTURES) and name[0] != "."]
        found: dict[str, str] = {}
        again = []
        for name in sorted(names, key=_natural):
            if found.setdefault(name.rpartition(".")[0], name) != name:
                again.append(name)
        if again:
            message = f"{len(again)} pictures have the stem of another, and are no rows: {some(again)}"
            problems.append(Problem(folder, "BadData", message))
        return found

    def _note_unpaired(
        self, scene: str, pictures: set[str], maps: set[str], further: int, problems: list[Problem]
    ) -> tuple[int, int, int]:
        lone_pictures, lone_maps = sorted(pictures - maps), sorted(maps - pictures)
        fate = "they are no rows" if self.frames == "paired" else "their rows fail when the ids are read"
        if lone_pictures:
            message = f"{len(lone_pictures)} of {len(pictures)} frames have no map in {self.ids}; {fate}: "
            problems.append(Problem(_inside(scene, _IMAGES), "BadData", message + some(lone_pictures)))
        if lone_maps:
            message = f"{len(lone_maps)} maps have no picture, and are no rows: {some(lone_maps)}"
            problems.append(Problem(_inside(scene, self.ids), "BadData", message))
        return len(lone_pictures), len(lone_maps), further

    def _all_scenes(self) -> list[str]:
        """Scenes, also those without a folder of maps."""
        return [""] if "" in _scenes(self.files, self.ids) else [one for one in _scenes(self.files, "") if one]

    def _scene_name(self, files: Files, scene: str) -> str:
        return scene or files.root.absolute().name

    def _key(self, row: int) -> str:
        scene = self.index.text("group", self.group_of(row))
        return f"{scene}/{Path(self.index.text('path', row)).stem}"

    def _pictures(self, row: int) -> Sequence[str]:
        return [path for path in (self.index.text("path", row), self.index.text("ids_path", row)) if path]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        path, ids_path = self.index.text("path", row), self.index.text("ids_path", row)
        record: Record = {"path": path, "ids_path": ids_path}
        record["scene"] = self.index.text("group", self.group_of(row))
        record["frame"] = self.index["frame"][row]
        if "ids" in fields:
            record["ids"] = self._id_map(path, ids_path)
        if "image" in fields:
            expected = np.shape(record["ids"]) if "ids" in fields else None
            record["image"] = self._decode_beside(path, ids_path, memo, expected)
        return record

    def _id_map(self, path: str, ids_path: str) -> np.ndarray:
        """(H, W) int64."""
        if not ids_path:
            raise BadData(f"{self.root / path}: the frame has no map in {self.ids}")
        try:
            ids = load_id_file(self.root / ids_path)
        except SourceNotFound as error:
            raise BadData(f"{error}; it was there when the index was built") from error
        if ids.dtype == np.uint64 and ids.max() > np.iinfo(np.int64).max:
            raise BadData(f"{self.root / ids_path}: expected ids below 2^63, got {ids.max()}")
        return ids.astype(np.int64, copy=False)

    def _decode_beside(self, path: str, ids_path: str, memo: Memo, size_hw: tuple[int, ...] | None) -> np.ndarray:
        """The picture; of the size of its map, where that was read."""
        if size_hw is None:
            return self._image(path, memo)
        try:
            return self._image(path, memo, (size_hw[0], size_hw[1]))
        except BadData as error:
            raise BadData(f"{error} (the id map is {self.root / ids_path}; labels are never resampled)") from error


def _scenes(files: Files, ids: str) -> list[str]:
    """Folders with pictures, and with maps where `ids` is named: "" alone where the root is one; else those in the root,
    sorted by the numbers in their names."""

    def is_scene(name: str) -> bool:
        return files.exists(_inside(name, _IMAGES)) and (not ids or files.exists(_inside(name, ids)))

    if ids and is_scene(""):
        return [""]
    found = sorted((name for name in files.names() if name[0] != "." and is_scene(name)), key=_natural)
    return found or ([""] if is_scene("") else [])


def _map_folders(files: Files, scene: str) -> list[str]:
    """Folders beside the pictures that hold maps."""
    folders = [name for name in files.names(scene) if name != _IMAGES]
    return [name for name in folders if any(one.endswith(_MAPS) for one in files.names(_inside(scene, name))[:10])]


def _maps_by_stem(names: Iterable[str]) -> tuple[dict[str, str], int]:
    """The picture's stem to the map's name; how many more maps there are of stems that have one."""
    found: dict[str, tuple[int, str]] = {}
    count = 0
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if name.startswith(".") or dot + suffix.lower() not in _MAPS:
            continue
        if stem.lower().endswith(PICTURES):
            stem = stem.rpartition(".")[0]
        count += 1
        rank = (_MAPS.index(dot + suffix.lower()), name)
        found[stem] = min(found.get(stem, rank), rank)
    return {stem: name for stem, (_, name) in found.items()}, count - len(found)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Numbers in names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(number % 2, int(part) if number % 2 else 0, part) for number, part in enumerate(parts)], name


def _inside(scene: str, name: str) -> str:
    return f"{scene}/{name}" if scene else name
