"""Where refined maps lie: names, what somebody else has made, and the frames that a run offers.

SCENE/images/frame_000000.jpg                          the picture
SCENE/obj_ids/frame_000000.jpg.pth                     the map that is refined
SCENE/obj_ids_refine/frame_000000.jpg.pth              the refined map (or .npy, .png)
SCENE/obj_ids_refine_confidence/frame_000000.jpg.png   how sure it is of each pixel, 0..255
ROOT/.penstock/obj_ids_refine/                         a store: statistics and a table of objects for each frame

The confidence is written before its map, and only by penstock: a map without one is somebody else's.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from penstock.errors import BadData, OutputRefused, SourceNotFound, UsageError
from penstock.readers.pth import load_id_file
from penstock.readers.scenes import Scenes
from penstock.schema import Record, Schema
from penstock.source import Candidate, Group, Problem, check_index
from penstock.stages.refine import Format, input_schema

SIDE = ".penstock"
IMAGES = "images"
Existing = Literal["keep", "replace"]
_NO_MAP = np.zeros((0, 0), np.int64)


@dataclass(frozen=True)
class Outputs:
    """Names of the files of a run."""

    root: Path
    """Of the scenes, or one scene."""
    folder: str
    """Name of the folder in each scene."""
    format: Format

    def file(self, path: str) -> str:
        """The refined map of a picture, both relative to the root."""
        picture = PurePosixPath(path)
        return str(picture.parent.parent / self.folder / f"{picture.name}.{self.format}")

    def confidence(self, path: str) -> str:
        """The PNG of the confidence of a picture's refined map."""
        picture = PurePosixPath(path)
        return str(picture.parent.parent / f"{self.folder}_confidence" / f"{picture.name}.png")

    @property
    def store(self) -> Path:
        """The folder of the store beside the maps."""
        return self.root / SIDE / self.folder

    def is_foreign(self, path: str) -> bool:
        """Whether somebody else's map is in the place of a picture's."""
        return os.path.exists(self.root / self.file(path)) and not os.path.exists(self.root / self.confidence(path))

    def sizes(self, path: str) -> tuple[int, int]:
        """Bytes of the map and of the confidence of a picture; 0 where there is none."""
        return _size(self.root / self.file(path)), _size(self.root / self.confidence(path))

    def remove(self, path: str, *, is_ours: bool = False) -> None:
        """Removes what penstock made for a picture: a map with a confidence, or one that is known to be ours. What lies in
        a folder that cannot be written to stays."""
        places = [self.root / self.file(path), self.root / self.confidence(path)]
        if is_ours or places[1].is_file():
            for place in places:  # the confidence last: it says whose the map is
                if os.access(place.parent, os.W_OK):
                    place.unlink(missing_ok=True)

    def refuse_inputs(self, scenes: Scenes) -> None:
        """Makes sure that no folder that is written is one that is read.

        Raises:
            OutputRefused: in one scene it is.
        """
        inputs = (IMAGES, scenes.ids)
        for group in scenes.groups:
            scene = self._scene(scenes, group)
            for folder in (self.folder, f"{self.folder}_confidence"):
                place = scene / folder
                if place.exists() and any(_is_same(place, scene / one) for one in inputs):
                    raise OutputRefused(f"{place}: is a folder of the input; give another --output-dir-name")

    def _scene(self, scenes: Scenes, group: Group) -> Path:
        return (self.root / scenes.index.text("path", group.start)).parent.parent


class FrameOffers:
    """The frames of scenes, offered to a job with what somebody else has made of them already.

    Args:
        scenes: frames with maps.
        outputs: where refined maps go.
        existing: what becomes of somebody else's map: "keep" it where it can be read and has the frame's size, or "replace".
        limit: only so many frames, from the first on.
    """

    def __init__(
        self, scenes: Scenes, outputs: Outputs, *, existing: Existing = "keep", limit: int | None = None
    ) -> None:
        if existing not in ("keep", "replace"):
            raise UsageError(f"existing: expected keep or replace, got {existing!r}")
        self.scenes, self.outputs, self.existing, self.limit = scenes, outputs, existing, limit
        self.schema: Schema = input_schema()

    @property
    def problems(self) -> list[Problem]:
        """Frames without a map, maps without a frame, scenes with neither."""
        return [*self.scenes.problems, *_empty_scenes(self.scenes)]

    def candidates(self) -> Iterator[Candidate]:
        """The frames, scene by scene."""
        keys = self.scenes.keys
        for row in range(len(self.scenes) if self.limit is None else self.limit):
            path = self.scenes.index.text("path", row)
            yield Candidate(key=keys[row], origin=path, cheap=self.scenes.fingerprint(row), index=row)

    def __getitem__(self, index: int) -> Record:
        """The picture, its map, and the refined map that somebody else made.

        Raises:
            BadData: picture or map cannot be read, they differ in size, or there is no leave to write beside them.
        """
        row = check_index(index, len(self.scenes))
        path = self.scenes.index.text("path", row)
        self._require_writable(path)
        record = self.scenes.read(row, ["ids", "image", "path", "scene"])
        existing, size = self._existing(path, np.shape(record["ids"]))
        found: Record = {
            "file": self.outputs.file(path),
            "existing": existing,
            "existing_bytes": np.array(size, np.int64),
        }
        return {**record, **found}

    def _existing(self, path: str, size_hw: Sequence[int]) -> tuple[np.ndarray, int]:
        place = self.outputs.root / self.outputs.file(path)
        if self.existing == "replace" or not self.outputs.is_foreign(path):
            return _NO_MAP, 0
        try:
            ids = load_id_file(place)
        except (BadData, SourceNotFound):
            return _NO_MAP, 0  # made anew; the run says so
        if ids.shape != tuple(size_hw) or (ids.dtype == np.uint64 and ids.max() > np.iinfo(np.int64).max):
            return _NO_MAP, 0
        return ids.astype(np.int64), _size(place)

    def _require_writable(self, path: str) -> None:
        """A scene that cannot be written to costs its own frames, not the run.

        Raises:
            BadData: it cannot.
        """
        for name in (self.outputs.file(path), self.outputs.confidence(path)):
            folder = (self.outputs.root / name).parent
            place = folder if folder.exists() else folder.parent
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise BadData(f"{place}: no folder that can be written to; refined maps go to {folder}")


def open_scenes(root: Path, ids: str) -> Scenes:
    """The frames of scenes that have maps.

    Raises:
        SourceNotFound: there are none.
    """
    return Scenes(root, ids=ids, frames="paired")


def _empty_scenes(scenes: Scenes) -> list[Problem]:
    """Folders of the layout in which no frame has a map and no map a frame."""
    known = {group.name for group in scenes.groups} | {scenes.root.absolute().name}
    told = {problem.path.partition("/")[0] for problem in scenes.problems}
    found = []
    for folder in sorted(one for one in scenes.root.iterdir() if one.is_dir() and one.name not in known | told):
        if (folder / IMAGES).is_dir() and (folder / scenes.ids).is_dir():
            found.append(
                Problem(folder.name, "BadData", f"a scene without frames: {IMAGES} and {scenes.ids} are empty")
            )
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_same(left: Path, right: Path) -> bool:
    return right.exists() and left.samefile(right)
