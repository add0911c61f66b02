"""Tracks in text files: one box per line, one folder of numbered pictures. What LaSOT, GOT-10k and TrackingNet share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import ClassVar

import numpy as np

from penstock.errors import BadData
from penstock.readers.base import Memo, some
from penstock.readers.tracks import NO_PICTURE, Tracks
from penstock.source import Problem


@dataclass(frozen=True)
class Frames:
    """The frames of a track, from its annotation lines and its pictures. N frames, ascending by number."""

    numbers: np.ndarray
    """(N,) int64: number of the picture in its file name."""
    boxes: np.ndarray
    """(N, 4) float64 as written; NaN where no line says so or the line is no box."""
    annotated: np.ndarray
    """(N,) bool: there is a line."""
    missing: np.ndarray
    """(N,) bool: there is no picture."""
    counts: Mapping[str, int]
    """`pictures` and `lines`, for the index."""

    @property
    def lines(self) -> int:
        """Number of lines of the annotation."""
        return self.counts["lines"]


class TextTracks(Tracks):
    """Base of readers whose track is a text file of boxes and a folder of pictures NUMBER.jpg, paired by number.

    The frames of a track are all that have a line or a picture. One without a picture fails when the picture is read; one
    without a line is not annotated: its box is NaN. Where counts differ, a problem of the track says so.
    """

    first: ClassVar[int] = 1
    """Number of the picture that the first line belongs to."""
    digits: ClassVar[int] = 8
    """Digits of a number in a file name; 0 for no leading zeros."""
    group_columns: ClassVar[Mapping[str, str]] = {"pictures": "int64", "lines": "int64"}

    def _picture(self, folder: str, number: int) -> str:
        return f"{folder}/{number:0{self.digits}d}.jpg"

    def _frame(self, row: int, memo: Memo) -> np.ndarray:
        if int(self.index["flags"][row]) & NO_PICTURE:
            group = self.group_of(row)
            pictures, lines = int(self.index["pictures"][group]), int(self.index["lines"][group])
            raise BadData(
                f"{self.files.root}: {self._path(row)}: no such picture; {self.index.text('group', group)} has {lines} "
                f"lines of annotation and {pictures} pictures"
            )
        return super()._frame(row, memo)

    def _frames(self, folder: str, annotation: str, problems: list[Problem], *, first_only: bool = False) -> Frames:
        """The frames of a track.

        Args:
            folder: of the pictures, relative to the root.
            annotation: file of the boxes, relative to the root.
            problems: faults are added here: no file, lines that are no box, counts that differ, files of other names.
            first_only: one line for many pictures is no fault: the test set tells only where the target starts.
        """
        names = self.files.names(folder)
        pictures = picture_numbers(names, self.digits)
        boxes = self._boxes(annotation, problems)
        count, last = len(boxes), self.first + len(boxes)
        if len(pictures) == count and count and pictures[0] == self.first and pictures[-1] == last - 1:
            numbers, missing = pictures, np.zeros(count, bool)
        else:
            numbers = np.union1d(np.arange(self.first, last), pictures[pictures >= self.first])
            missing = ~np.isin(numbers, pictures)
            expected = first_only and count == 1 and not missing.any() and (pictures >= self.first).all()
            if not expected:
                problems.append(self._mismatch(folder, names, pictures, count))
        padded = np.full((len(numbers), 4), np.nan)
        padded[:count] = boxes
        return Frames(numbers, padded, numbers < last, missing, {"pictures": len(pictures), "lines": count})

    def _boxes(self, path: str, problems: list[Problem]) -> np.ndarray:
        """(lines, 4) float64. A missing file has no lines; a line that is no box is NaN: its box fails when read."""
        if not self.files.exists(path):
            problems.append(Problem(path, "SourceNotFound", "no such file: its frames are there, without annotation"))
            return np.zeros((0, 4))
        boxes, faulty = parse_boxes(self._content(path, "its frames are there, without annotation", problems))
        if faulty:
            problems.append(
                Problem(path, "BadData", f"expected four numbers in every line, got others in {some(faulty)}")
            )
        return boxes

    def _content(self, path: str, cost: str, problems: list[Problem]) -> bytes:
        """A file of one track; empty where it cannot be read, which is a problem that says what it costs."""
        try:
            return self.files.read(path)
        except BadData as error:
            problems.append(Problem(path, "BadData", f"{error}: {cost}"))
            return b""

    def _mismatch(self, folder: str, names: Sequence[str], pictures: np.ndarray, lines: int) -> Problem:
        parts = [f"{len(pictures)} pictures, {lines} lines of annotation"]
        without = np.setdiff1d(np.arange(self.first, self.first + lines), pictures)
        beyond = pictures[pictures >= self.first + lines]
        before = pictures[pictures < self.first]
        if len(without):
            parts.append(f"no picture of number {some(without.tolist())}: these rows fail when the picture is read")
        if len(beyond):
            parts.append(f"no line for picture {some(beyond.tolist())}: these rows are not annotated")
        if len(before):
            parts.append(f"picture {some(before.tolist())} is before the first, {self.first}: no row")
        if names and not len(pictures):
            expected = self._picture("", self.first).lstrip("/")
            parts.append(f"{len(names)} files, none named like {expected}, for instance {names[0]}")
        return Problem(folder, "BadData", "; ".join(parts))

    def _values(self, path: str, frames: Frames, problems: list[Problem], missing: float = 0) -> np.ndarray:
        """(N,) float64: one number per frame from a text file; `missing` where it has none, which is a problem."""
        found = np.full(len(frames.numbers), float(missing))
        if not self.files.exists(path):
            problems.append(Problem(path, "SourceNotFound", f"no such file: taken as {missing:g} in all frames"))
            return found
        try:
            values = parse_numbers(self.files.read(path))
        except BadData as error:
            problems.append(Problem(path, "BadData", f"{error}: taken as {missing:g} in all frames"))
            return found
        if len(values) not in (frames.lines or len(found), len(found)):
            problems.append(
                Problem(
                    path,
                    "BadData",
                    f"expected {frames.lines or len(found)} numbers, one per frame, got {len(values)}: taken as "
                    f"{missing:g} where there is none",
                )
            )
        used = min(len(values), len(found))
        found[:used] = values[:used]
        return found


def parse_boxes(content: bytes) -> tuple[np.ndarray, list[int]]:
    """Boxes of a text file, one per line: four numbers apart by commas, tabs or blanks. Empty lines at the end are dropped.

    Returns:
        (N, 4) float64, as written, NaN where the file says so or a line does not hold four numbers; and the numbers of
        the latter lines, from 1.
    """
    lines = content.decode("utf-8-sig", "replace").rstrip().splitlines()
    if not lines:
        return np.zeros((0, 4)), []
    try:
        boxes = np.loadtxt(lines, delimiter="," if "," in lines[0] else None, comments=None, ndmin=2)
    except ValueError:
        boxes = np.zeros((0, 0))
    if boxes.shape == (len(lines), 4):
        return boxes, []
    boxes, faulty = np.full((len(lines), 4), np.nan), []
    for number, line in enumerate(lines):
        try:
            boxes[number] = parse_numbers(line.encode())
        except ValueError:
            faulty.append(number + 1)
    return boxes, faulty


def parse_numbers(content: bytes) -> np.ndarray:
    """Numbers of a text file, apart by commas, blanks or lines.

    Returns:
        (N,) float64.

    Raises:
        BadData: a word is no number.
    """
    words = content.decode("utf-8-sig", "replace").replace(",", " ").split()
    try:
        return np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise BadData(f"expected numbers apart by commas, blanks or lines: {error}") from error


def parse_pairs(content: bytes) -> dict[str, str]:
    """`name: value` lines of a text file; lines without a colon are left out."""
    lines = content.decode("utf-8-sig", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def picture_numbers(names: Iterable[str], digits: int, suffix: str = ".jpg") -> np.ndarray:
    """Numbers of the files named NUMBER and the suffix, in exactly so many digits (0: no leading zeros), ascending.

    Returns:
        (N,) int64. Files of any other name are left out.
    """
    pattern = re.compile(rf"([0-9]{{{digits}}})" if digits else r"(0|[1-9][0-9]{0,8})")
    stems = [name[: -len(suffix)] for name in names if name.endswith(suffix)]
    return np.array(sorted(int(stem) for stem in stems if pattern.fullmatch(stem)), np.int64)


def split_list(name: str) -> list[str]:
    """Lines of a split list that comes with the package."""
    return (package_files("penstock.readers") / "splits" / f"{name}.txt").read_text("utf-8").split()
