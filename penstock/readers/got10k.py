"""`got10k`: single-object tracking sequences as GOT-10k publishes them, and the LMDB that trackers make of them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import BadData, SourceNotFound
from penstock.readers.base import some
from penstock.readers.files import Files, LmdbFiles
from penstock.readers.track_files import TextTracks, parse_pairs, split_list
from penstock.readers.tracks import Track, Tracks
from penstock.schema import Field, Schema
from penstock.source import Problem

COVER = Field(
    name="cover",
    dtype="uint8",
    kind="number",
    meaning="eighths of the target that can be seen in the picture, 0..8; 255 where the dataset does not say",
)
CUT_BY_IMAGE = Field(
    name="cut_by_image", dtype="bool", kind="flag", meaning="the border of the picture cuts the target"
)
MOTION_CLASS = Field(name="motion_class", dtype="str", kind="text", meaning="what the target does; empty if not said")
UNKNOWN_COVER = 255
Split = Literal["all", "train", "val", "test", "vottrain", "votval"]
_PARTS = ("train", "val", "test")
_NAMED = re.compile(r"GOT-10k_(Train|Val|Test)_([0-9]{6})")
_FILES = ("groundtruth.txt", "absence.label", "cover.label", "cut_by_image.label", "meta_info.ini", "")


class Got10k(TextTracks):
    """GOT-10k: a row is a frame, a group is a sequence, in the order of list.txt. Boxes count the corner from 0 already.

    The test part gives the box of the first frame only: the other rows are there, not annotated. A target of which cover
    says 0 is not visible, as an absent one. Format: the files as published.

    Args:
        root: the folder that holds list.txt, or the one above, with train, val or test in it.
        split: `train`, `val`, `test`: that part; `all`: whatever list.txt there is. `vottrain` and `votval` are the
            parts of the training set that trackers for the VOT challenge use, by position in its list.txt.
        partial: allows `vottrain` and `votval` on a copy with some of the sequences: by the number in their names.
    """

    name = "got10k"
    layout = "list.txt, and GOT-10k_Train_000001/ with groundtruth.txt and 00000001.jpg; or train/, val/, test/ of that"
    extra_columns: ClassVar[Mapping[str, str]] = {"cover": "uint8", "cut_by_image": "bool"}
    extra_fields = (COVER, CUT_BY_IMAGE)
    group_columns: ClassVar[Mapping[str, str]] = {**TextTracks.group_columns, "motion_class": "str"}
    group_fields = (MOTION_CLASS,)
    row_columns = (*Tracks.row_columns, *extra_columns)
    schema = Schema([*Tracks.schema.fields, *extra_fields, *group_fields])

    def __init__(self, root: Path | str, *, split: Split = "all", partial: bool = False) -> None:
        self.split = split
        self.partial = partial
        super().__init__(root, options={"split": split, "partial": partial})

    def fault(self, files: Files) -> str:
        """No list.txt of the part asked for, or it names sequences of another part."""
        parts = self._parts(files)
        if not parts:
            part = self._part() or "train, val or test"
            return f"no list.txt, neither here nor in {part}"
        wanted = self._part()
        for name in _listed(files, parts[0])[:1] if wanted else []:
            matched = _NAMED.fullmatch(name)
            if matched and matched[1].lower() != wanted:
                return f"split={self.split}, but list.txt names {name}"
        return ""

    def _part(self) -> str:
        """The part that the split belongs to; empty for all."""
        return {"all": "", "vottrain": "train", "votval": "train"}.get(self.split, self.split)

    def _parts(self, files: Files) -> list[str]:
        """Folders with a list.txt of the part asked for: ["."], or some of train, val, test."""
        if files.exists("list.txt"):
            return ["."]
        return [part for part in _PARTS if self._part() in ("", part) and files.exists(f"{part}/list.txt")]

    def _stamps(self) -> Iterable[object]:
        if isinstance(self.files, LmdbFiles):
            yield self.files.stamp("")
            return
        for part in self._parts(self.files):
            yield part, self.files.stamp(f"{part}/list.txt")
            for folder in self._chosen(part):
                yield folder, [self.files.stamp(f"{folder}/{name}") for name in _FILES]

    def _chosen(self, part: str) -> list[str]:
        """Folders of the sequences of a part that the split asks for, in the order of list.txt."""
        names = _listed(self.files, part)
        if self.split in ("vottrain", "votval"):
            names = self._of_list(names, [int(text) for text in split_list(f"got10k_{self.split}")])
        return [name if part == "." else f"{part}/{name}" for name in names]

    def _of_list(self, names: list[str], places: list[int]) -> list[str]:
        """Names at these positions of the full list.txt, in the order of the list given."""
        if len(names) > max(places):
            chosen = set(places)
            return [name for place, name in enumerate(names) if place in chosen]
        official = {f"GOT-10k_Train_{place + 1:06d}" for place in places}
        there = [name for name in names if name in official]
        if not self.partial:
            raise SourceNotFound(
                f"{self.root}: split={self.split} is {len(places)} positions in the full list.txt, up to {max(places)}; "
                f"this one has {len(names)} sequences, {len(there)} of them of that split: open it with partial=true"
            )
        return there

    def _tracks(self, problems: list[Problem]) -> Iterator[Track]:
        for part in self._parts(self.files):
            seen: set[str] = set()
            for folder in self._chosen(part):
                if folder in seen:
                    problems.append(Problem(f"{part}/list.txt", "BadData", f"{folder} twice: the second is left out"))
                elif not self.files.names(folder):
                    problems.append(Problem(folder, "SourceNotFound", "in list.txt, but no such folder: no rows"))
                else:
                    named = _NAMED.fullmatch(folder.rpartition("/")[2])
                    is_test = "test" in (part, self._part()) or (named is not None and named[1] == "Test")
                    yield self._track(folder, is_test, problems)
                seen.add(folder)

    def _track(self, folder: str, is_test: bool, problems: list[Problem]) -> Track:
        name = folder.rpartition("/")[2]
        there = set(self.files.names(folder))
        frames = self._frames(folder, f"{folder}/groundtruth.txt", problems, first_only=is_test)

        def label(file: str, missing: float) -> np.ndarray:
            if is_test and file not in there:
                return np.full(len(frames.numbers), missing)
            return self._values(f"{folder}/{file}", frames, problems, missing)

        absent, cut = label("absence.label", 0) != 0, label("cut_by_image.label", 0) != 0
        cover = label("cover.label", UNKNOWN_COVER)
        wrong = ~((cover >= 0) & (cover <= 8) | (cover == UNKNOWN_COVER))
        if wrong.any():
            message = f"expected 0..8, got {some(sorted(set(cover[wrong].tolist())))}: taken as not known"
            problems.append(Problem(f"{folder}/cover.label", "BadData", message))
            cover[wrong] = UNKNOWN_COVER
        path = f"{folder}/meta_info.ini"
        about = parse_pairs(self._content(path, "read as empty", problems)) if "meta_info.ini" in there else {}
        if not about and not is_test:
            problems.append(Problem(path, "SourceNotFound", "no class and no rate of this sequence"))
        return Track(
            video=name,
            name=name,
            category=about.get("object_class", ""),
            fps=_rate(about.get("anno_fps", "")),
            folder=folder,
            numbers=frames.numbers,
            frames=frames.numbers - self.first,
            boxes=frames.boxes,
            absent=absent,
            annotated=frames.annotated,
            hidden=cover == 0,
            missing=frames.missing,
            extra={"cover": cover, "cut_by_image": cut},
            about={**frames.counts, "motion_class": about.get("motion_class", "")},
        )

    def describe(self) -> dict[str, object]:
        """As of all tracks, and frames with nothing of the target, and cut ones."""
        return {
            **super().describe(),
            "rows_without_cover": int((self.index["cover"] == 0).sum()),
            "rows_cut_by_image": int(self.index["cut_by_image"].sum()),
        }


class Got10kLmdb(Got10k):
    """GOT-10k as one LMDB: the same relative paths as keys, after `train/` (or `val/`, `test/`), the same options."""

    name = "got10k-lmdb"
    layout = "an LMDB with keys train/list.txt, train/GOT-10k_Train_000001/groundtruth.txt, .../00000001.jpg"

    def _open(self, root: Path) -> Files:
        return LmdbFiles(root)


def _listed(files: Files, part: str) -> list[str]:
    """Names in list.txt.

    Raises:
        BadData: one of them leads out of the folder.
    """
    path = "list.txt" if part == "." else f"{part}/list.txt"
    names = files.read(path).decode("utf-8-sig", "surrogateescape").split()
    wrong = [name for name in names if "/" in name or name in (".", "..")]
    if wrong:
        raise BadData(f"{files.root / path}: expected names of folders, got {some(wrong)}")
    return names


def _rate(text: str) -> float:
    """Frames a second from "10Hz"; NaN where it does not say."""
    matched = re.match(r"([0-9.]+)\s*Hz", text, re.IGNORECASE)
    try:
        rate = float(matched[1]) if matched else float("nan")
    except ValueError:
        rate = float("nan")
    return rate if rate > 0 else float("nan")
