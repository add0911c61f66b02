"""`lasot`: single-object tracking sequences as LaSOT publishes them, and the LMDB that trackers make of them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import SourceNotFound
from penstock.readers.base import some
from penstock.readers.files import Files, LmdbFiles
from penstock.readers.track_files import Frames, TextTracks, split_list
from penstock.readers.tracks import Track, Tracks
from penstock.schema import Field, Schema
from penstock.source import Problem

OCCLUDED = Field(name="occluded", dtype="bool", kind="flag", meaning="full_occlusion.txt says fully hidden")
OUT_OF_VIEW = Field(name="out_of_view", dtype="bool", kind="flag", meaning="out_of_view.txt says outside the picture")
SENTENCE = Field(name="sentence", dtype="str", kind="text", meaning="nlp.txt: what the target is; empty without one")
ATTRIBUTES = ("IV", "POC", "DEF", "MB", "CM", "ROT", "BC", "VC", "SV", "FOC", "FM", "OV", "LR", "ARC")
"""What the 14 flags of attributes.txt mean, in their order."""
_SEQUENCE = re.compile(r"(.+)-([0-9]+)")
_FILES = ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt", "absent.txt", "nlp.txt", "attributes.txt", "img")


class Lasot(TextTracks):
    """LaSOT: a row is a frame, a group is a sequence. Sequences lie in folders of their class, or directly in the root.

    Boxes are written with the corner counted from 1; here it counts from 0, unless asked otherwise. Whether the target is
    there is said by flags (full_occlusion.txt, out_of_view.txt, or the benchmark's absent.txt), and boxes of absent
    frames are often full-size, so `visible` goes by the flags. Format: the files as published.

    Args:
        root: the folder of the classes.
        split: `train` is the 1,120 names of protocol II, `test` is what is there beside them.
        sequences: names, to take only these.
        corner: `zero` takes 1 from x and y of every box with a positive size; `file` gives all numbers as written.
    """

    name = "lasot"
    layout = "CLASS/CLASS-N/ with groundtruth.txt and img/00000001.jpg (or CLASS-N/ directly in the root)"
    extra_columns: ClassVar[Mapping[str, str]] = {"occluded": "bool", "out_of_view": "bool"}
    extra_fields = (OCCLUDED, OUT_OF_VIEW)
    group_columns: ClassVar[Mapping[str, str]] = {**TextTracks.group_columns, "sentence": "str", "attributes": "str"}
    group_fields = (SENTENCE,)
    row_columns = (*Tracks.row_columns, *extra_columns)
    schema = Schema([*Tracks.schema.fields, *extra_fields, *group_fields])

    def __init__(
        self,
        root: Path | str,
        *,
        split: Literal["all", "train", "test"] = "all",
        sequences: tuple[str, ...] = (),
        corner: Literal["zero", "file"] = "zero",
    ) -> None:
        self.split = split
        self.sequences = tuple(sequences)
        self.corner = corner
        options = {"split": split, "sequences": self.sequences, "corner": corner}
        super().__init__(root, options=options)

    def fault(self, files: Files) -> str:
        """No folder of a sequence with groundtruth.txt or img in it."""
        for folder in _folders(files):
            if {"groundtruth.txt", "img"} & set(files.names(folder)):
                return ""
        return "no CLASS/CLASS-N with groundtruth.txt or img"

    def _stamps(self) -> Iterable[object]:
        if isinstance(self.files, LmdbFiles):
            return [self.files.stamp("")]
        return [(f"{folder}/{name}", self.files.stamp(f"{folder}/{name}")) for folder in self._chosen([])
                for name in _FILES]  # fmt: skip

    def _chosen(self, problems: list[Problem]) -> list[str]:
        """Folders of the sequences asked for, in order."""
        folders: dict[str, str] = {}
        for folder in _folders(self.files):
            first = folders.setdefault(folder.rpartition("/")[2], folder)
            if first != folder:
                problems.append(Problem(folder, "BadData", f"the same sequence as {first}: left out"))
        unknown = [name for name in self.sequences if name not in folders]
        if unknown:
            raise SourceNotFound(f"{self.root}: no sequence {some(unknown)}; there are {some(list(folders))}")
        train = set() if self.split == "all" else set(split_list("lasot_train"))
        lost = sorted(train - set(folders)) if self.split == "train" else []
        if lost:
            message = (
                f"split=train: {len(train) - len(lost)} of {len(train)} sequences are here; not here: {some(lost)}"
            )
            problems.append(Problem(str(self.root), "SourceNotFound", message))
        return [
            folder
            for name, folder in folders.items()
            if (self.split == "all" or (name in train) == (self.split == "train"))
            and (not self.sequences or name in self.sequences)
        ]

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        for folder in self._chosen(problems):
            there = set(self.files.names(folder))
            if not there & {"groundtruth.txt", "img"}:
                problems.append(Problem(folder, "SourceNotFound", "neither groundtruth.txt nor img: no rows"))
                continue
            yield self._track(folder, there, problems)

    def _track(self, folder: str, there: set[str], problems: list[Problem]) -> Track:
        name = folder.rpartition("/")[2]
        frames = self._frames(f"{folder}/img", f"{folder}/groundtruth.txt", problems)
        occluded, out_of_view, absent = self._flags(folder, there, frames, problems)
        boxes = frames.boxes
        if self.corner == "zero":
            boxes[(boxes[:, 2:] > 0).all(axis=1), :2] -= 1
        texts = {
            text: self._content(f"{folder}/{text}", "taken as empty", problems).decode("utf-8-sig", "replace").strip()
            if text in there
            else ""
            for text in ("nlp.txt", "attributes.txt")
        }
        return Track(
            video=name,
            name=name,
            category=name.rpartition("-")[0],
            folder=f"{folder}/img",
            numbers=frames.numbers,
            frames=frames.numbers - self.first,
            boxes=boxes,
            absent=absent,
            annotated=frames.annotated,
            missing=frames.missing,
            extra={"occluded": occluded, "out_of_view": out_of_view},
            about={
                **frames.counts,
                "sentence": " ".join(texts["nlp.txt"].split()),
                "attributes": texts["attributes.txt"],
            },
        )

    def _flags(
        self, folder: str, there: set[str], frames: Frames, problems: list[Problem]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) bool each: fully occluded, out of view, absent."""
        found = []
        for name in ("full_occlusion.txt", "out_of_view.txt", "absent.txt"):
            is_needed = name != "absent.txt" and "absent.txt" not in there
            if name in there or is_needed:
                found.append(self._values(f"{folder}/{name}", frames, problems) != 0)
            else:
                found.append(np.zeros(len(frames.numbers), bool))
        return found[0], found[1], found[0] | found[1] | found[2]

    def describe(self) -> dict[str, object]:
        """As of all tracks, and frames by flag, sequences by attribute (attributes.txt), sequences with a sentence."""
        flags = [text.replace(",", " ").split() for text in self.index.texts("attributes")]
        known = [each for each in flags if len(each) == len(ATTRIBUTES)]
        return {
            **super().describe(),
            "occluded_rows": int(self.index["occluded"].sum()),
            "out_of_view_rows": int(self.index["out_of_view"].sum()),
            "sequences_with_sentence": sum(bool(text) for text in self.index.texts("sentence")),
            "sequences_by_attribute": {
                name: sum(each[place] == "1" for each in known) for place, name in enumerate(ATTRIBUTES) if known
            },
        }


class LasotLmdb(Lasot):
    """LaSOT as one LMDB: the same relative paths as keys, the same options."""

    name = "lasot-lmdb"
    layout = "an LMDB with keys CLASS/CLASS-N/groundtruth.txt and CLASS/CLASS-N/img/00000001.jpg"

    def _open(self, root: Path) -> Files:
        return LmdbFiles(root)


def _folders(files: Files) -> Iterator[str]:
    """Folders CLASS-N in the root or in a folder CLASS, by class and number."""
    found = []
    for top in files.names():
        names = [top] if _SEQUENCE.fullmatch(top) else files.names(top)
        for name in names:
            matched = _SEQUENCE.fullmatch(name)
            if matched and (name == top or matched[1] == top):
                found.append((matched[1], int(matched[2]), name, top if name == top else f"{top}/{name}"))
    return (folder for *_, folder in sorted(found))
