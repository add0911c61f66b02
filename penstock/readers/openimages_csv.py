"""Open Images' CSV files: parsed in chunks into columns of NumPy, as these files have millions of lines."""

import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from penstock.errors import BadData
from penstock.readers.index import Index
from penstock.source import Problem

_CHUNK = 4096
"""Lines at a time: more are slower, as they fall out of the processor's cache."""
_NAMED_LINES = 20
NO_FLAG = -128
"""What stands for a flag that is none of -1, 0, 1."""


class CsvColumns:
    """The columns asked for of one CSV file with a header, in chunks. A byte order mark is skipped.

    Args:
        path: the file.
        columns: names in its header, in the order wanted.

    Raises:
        BadData: the file cannot be read, or its header lacks a column.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = columns
        self.broken: list[int] = []
        """Numbers of the lines with too few or too many fields."""
        self.header: list[str] = []

    def chunks(self) -> Iterator[list[tuple[str, ...]]]:
        """The columns of some lines at a time; lines that are broken are left out, and empty ones.

        Raises:
            BadData: as the class.
        """
        try:
            with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from self._chunks(csv.reader(file))
        except OSError as error:
            raise BadData(f"{self.path}: expected a file that can be read: {error.strerror or error}") from error
        except csv.Error as error:
            raise BadData(f"{self.path}: expected CSV: {error}") from error

    def _chunks(self, lines: "Iterator[list[str]]") -> Iterator[list[tuple[str, ...]]]:
        self.header = [name.strip() for name in next(lines, [])]
        missing = [name for name in self.columns if name not in self.header]
        if missing:
            found = ", ".join(self.header)[:300]
            raise BadData(f"{self.path}: no column {', '.join(missing)} in its header; it has {found or 'no header'}")
        places = [self.header.index(name) for name in self.columns]
        width, number = len(self.header), 2
        while chunk := list(islice(lines, _CHUNK)):
            whole = chunk
            if set(map(len, chunk)) != {width}:
                whole = [line for line in chunk if len(line) == width]
                wrong = [place for place, line in enumerate(chunk) if line and len(line) != width]
                self.broken += [number + place for place in wrong]
            number += len(chunk)
            if whole:
                columns = list(zip(*whole, strict=True))
                yield [columns[place] for place in places]

    def report(self, index: Index, name: str) -> None:
        """Adds the broken lines to the problems of an index."""
        if self.broken:
            numbers = ", ".join(map(str, self.broken[:_NAMED_LINES])) + (
                ", ..." if len(self.broken) > _NAMED_LINES else ""
            )
            message = (
                f"{len(self.broken)} lines are broken, expected {len(self.header)} fields: lines {numbers}; "
                f"their rows are not there"
            )
            index.problems.append(Problem(name, "BadData", message))


class Codes:
    """Texts as numbers, in the order in which they are met first."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) int32."""
        known = self._known
        for text in dict.fromkeys(texts):
            known.setdefault(sys.intern(text), len(known))
        return np.fromiter(map(known.__getitem__, texts), np.int32, len(texts))

    def sorted(self) -> tuple[list[str], np.ndarray]:
        """The texts, sorted, and (number of texts,) int32: the place of each code in them."""
        texts = sorted(self._known)
        places = np.empty(len(texts), np.int32)
        places[[self._known[text] for text in texts]] = np.arange(len(texts))
        return texts, places


def numbers(texts: Sequence[str]) -> np.ndarray:
    """(N,) float64; NaN for a text that is no number."""
    try:
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        return np.array([_number(text) for text in texts], np.float64)


def flags(texts: Sequence[str]) -> np.ndarray:
    """(N,) int8 of -1, 0 and 1; `NO_FLAG` for another text."""
    return np.fromiter((_FLAGS.get(text, NO_FLAG) for text in texts), np.int8, len(texts))


def class_names(paths: Sequence[Path], index: Index) -> dict[str, str]:
    """Label to name, from files of two columns, with a header or without one; of two names the first file's holds.

    Raises:
        BadData: a file cannot be read.
    """
    names: dict[str, str] = {}
    for path in paths:
        broken = []
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                for number, line in enumerate(csv.reader(file), 1):
                    if len(line) == 2 and all(line):
                        names.setdefault(line[0].strip(), line[1].strip())
                    elif line:
                        broken.append(str(number))
        except OSError as error:
            raise BadData(f"{path}: expected a file that can be read: {error.strerror or error}") from error
        except csv.Error as error:
            raise BadData(f"{path}: expected CSV: {error}") from error
        if broken:
            message = (
                f"{len(broken)} lines are broken, expected a label and a name: lines {', '.join(broken[:_NAMED_LINES])}"
            )
            index.problems.append(Problem(path.name, "BadData", message))
    return names


_FLAGS = {"-1": -1, "0": 0, "1": 1}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
