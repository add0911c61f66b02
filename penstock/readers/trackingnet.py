"""`trackingnet`: TrackingNet's sets of annotation files and frames, and the LMDBs that trackers make of them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers.base import require_json, some
from penstock.readers.files import Files, FolderFiles, LmdbFiles
from penstock.readers.track_files import TextTracks
from penstock.readers.tracks import Track
from penstock.source import Problem

_SET = re.compile(r"TRAIN_(0|[1-9][0-9]*)")


class TrackingNet(TextTracks):
    """TrackingNet: a row is a frame, a group is a video. Pictures are counted from 0, without leading zeros.

    There are no flags: visible means a box of positive size. The test set gives the box of the first frame only: the
    other rows are there, not annotated. Format: the files as published.

    Args:
        root: the folder that holds TRAIN_0 to TRAIN_11, or TEST.
        split: the training sets, or TEST.
        sets: numbers of the training sets to take; all that are there by default.
        classes: a file with a video, a tab and its class per line, absolute or relative to the root. A video that it does
            not name has the empty class.
    """

    name = "trackingnet"
    layout = "TRAIN_0/anno/VIDEO.txt and TRAIN_0/frames/VIDEO/0.jpg (up to TRAIN_11; or TEST)"
    first = 0
    digits = 0

    def __init__(
        self,
        root: Path | str,
        *,
        split: Literal["train", "test"] = "train",
        sets: tuple[int | str, ...] = (),
        classes: str = "",
    ) -> None:
        wrong = [each for each in sets if not str(each).isdecimal()]
        if wrong or (sets and split == "test"):
            raise UsageError(f"sets={sets}: expected numbers of training sets, as 0,1,2, with split=train")
        self.split = split
        self.sets = tuple(sorted({int(each) for each in sets}))
        self.classes = classes
        super().__init__(root, options={"split": split, "sets": self.sets, "classes": classes})

    def fault(self, files: Files) -> str:
        """A set that was asked for is not there, or none is, or it holds neither anno nor frames."""
        folders = _sets(files, self.split, self.sets)
        for folder in folders:
            if not {"anno", "frames"} & set(files.names(folder)):
                return f"no {folder}/anno"
        return "" if folders else "no TEST" if self.split == "test" else "no TRAIN_0, TRAIN_1, ..."

    def _stamps(self) -> Iterable[object]:
        yield FolderFiles(self.root).stamp(self.classes) if self.classes else 0
        for folder in _sets(self.files, self.split, self.sets):
            for part in ("anno", "frames"):
                for name in self.files.names(f"{folder}/{part}"):
                    yield f"{folder}/{part}/{name}", self.files.stamp(f"{folder}/{part}/{name}")

    def _videos(self, folder: str) -> list[str]:
        """Names of the videos of a set that have annotation or pictures."""
        annotated = (name[:-4] for name in self.files.names(f"{folder}/anno") if name.endswith(".txt"))
        return sorted({*annotated, *(name for name in self.files.names(f"{folder}/frames") if name[0] != ".")})

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        known = self._known_classes()
        for folder in _sets(self.files, self.split, self.sets):
            for video in self._videos(folder):
                pictures = f"{folder}/frames/{video}"
                frames = self._frames(pictures, f"{folder}/anno/{video}.txt", problems, first_only=self.split == "test")
                if not len(frames.numbers):
                    problems.append(Problem(pictures, "SourceNotFound", "no line and no picture: no rows"))
                yield Track(
                    video=video,
                    name=f"{folder}/{video}",
                    category=known.get(video, ""),
                    folder=pictures,
                    numbers=frames.numbers,
                    boxes=frames.boxes,
                    frames=frames.numbers,
                    absent=np.zeros(len(frames.numbers), bool),
                    annotated=frames.annotated,
                    missing=frames.missing,
                    about=frames.counts,
                )

    def _known_classes(self) -> Mapping[str, str]:
        """Video to class."""
        if not self.classes:
            return {}
        path = self.root / self.classes
        try:
            lines = path.read_text("utf-8").splitlines()
        except OSError as error:
            raise SourceNotFound(f"classes={path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise BadData(f"classes={path}: expected UTF-8 text: {error}") from error
        known = {}
        for number, line in enumerate(lines, 1):
            video, tab, category = line.partition("\t")
            if not tab and line.strip():
                raise BadData(
                    f"classes={path}: line {number}: expected a video, a tab and its class, got {line[:80]!r}"
                )
            known[video] = category.strip()
        return known


class TrackingNetLmdb(TrackingNet):
    """TrackingNet as one LMDB per training set, the same relative paths as keys, and `seq_list.json` beside them."""

    name = "trackingnet-lmdb"
    layout = "seq_list.json, and LMDBs TRAIN_0_lmdb, ... with keys anno/VIDEO.txt and frames/VIDEO/0.jpg"

    def __init__(self, root: Path | str, *, sets: tuple[int | str, ...] = (), classes: str = "") -> None:
        super().__init__(root, sets=sets, classes=classes)

    def _open(self, root: Path) -> Files:
        return SetFiles(root)

    def fault(self, files: Files) -> str:
        """No seq_list.json, or no LMDB of a set."""
        if not (files.root / "seq_list.json").is_file():
            return "no seq_list.json"
        return "" if _sets(files, "train", self.sets) else "no TRAIN_0_lmdb, TRAIN_1_lmdb, ..."

    def _stamps(self) -> Iterable[object]:
        here = FolderFiles(self.root)
        yield [here.stamp("seq_list.json"), here.stamp(self.classes) if self.classes else 0]
        for folder in _sets(self.files, "train", self.sets):
            yield folder, self.files.stamp(folder)

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        there = set(_sets(self.files, "train", ()))
        absent = sorted({f"TRAIN_{number}" for number, _ in self._listed()} - there) if not self.sets else []
        for folder in absent:
            problems.append(Problem(f"{folder}_lmdb", "SourceNotFound", "in seq_list.json, but no such LMDB: no rows"))
        yield from super()._tracks(problems)

    def _videos(self, folder: str) -> list[str]:
        return sorted({video for number, video in self._listed() if folder == f"TRAIN_{number}"})

    def _listed(self) -> list[tuple[int, str]]:
        path = self.root / "seq_list.json"
        pairs = require_json(FolderFiles(self.root).read("seq_list.json"), str(path), list)
        for pair in pairs:
            if not (isinstance(pair, list) and [type(each) for each in pair] == [int, str]):
                raise BadData(f"{path}: expected pairs of set number and video, got {str(pair)[:80]}")
        return [(pair[0], pair[1]) for pair in pairs]


class SetFiles:
    """LMDBs TRAIN_k_lmdb in a folder, as one tree: `TRAIN_k/anno/x.txt` is the key `anno/x.txt` of the k-th."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def read(self, path: str) -> bytes:
        """See `Files.read`."""
        files, key = self._inner(path)
        return files.read(key)

    def exists(self, path: str) -> bool:
        """See `Files.exists`."""
        files, key = self._inner(path)
        return files.root.exists() and (not key or files.exists(key))

    def names(self, folder: str = "") -> list[str]:
        """See `Files.names`."""
        if folder:
            files, key = self._inner(folder)
            return files.names(key) if files.root.exists() else []
        return [name.removesuffix("_lmdb") for name in FolderFiles(self.root).names() if name.endswith("_lmdb")]

    def stamp(self, path: str) -> int:
        """See `Files.stamp`: that of the LMDB."""
        files, key = self._inner(path)
        return files.stamp(key) if files.root.exists() else 0

    def _inner(self, path: str) -> tuple[LmdbFiles, str]:
        first, _, key = path.partition("/")
        return LmdbFiles(self.root / f"{first}_lmdb"), key


def _sets(files: Files, split: str, wanted: tuple[int, ...]) -> list[str]:
    """Folders of the sets, by number.

    Raises:
        SourceNotFound: one that was asked for is not there.
    """
    names = files.names()
    if split == "test":
        return ["TEST"] if "TEST" in names else []
    found = sorted(int(matched[1]) for matched in map(_SET.fullmatch, names) if matched)
    lost = [number for number in wanted if number not in found]
    if found and lost:
        raise SourceNotFound(f"{files.root}: no TRAIN_{some(lost)}; there are sets {some(found, 12)}")
    return [f"TRAIN_{number}" for number in found if not wanted or number in wanted]
