"""COCO's JSON lists as columns: pictures, classes, annotations. Values that are missing or wrong cost their row only.

Lists of a million entries are common, so that a column is made in one go; entry by entry only where that fails.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from penstock.errors import BadData
from penstock.readers.index import Index
from penstock.source import Problem

MISSING = int(np.iinfo(np.int64).min)
"""Stands in a column of whole numbers where the annotation has none."""


@dataclass
class Pictures:
    """`images` of an annotation file, in order of their ids (as numbers where they are)."""

    files: list[str]
    """Names as the annotation has them, or the last two parts of `coco_url` (LVIS); empty where there is neither."""
    ids: list[int | str]
    size_hw: np.ndarray
    """(N, 2) int64 height and width; 0 where the annotation does not say."""

    def positions(self, wanted: Iterable[object]) -> np.ndarray:
        """(M,) int64: position of each picture asked for by its id; -1 where there is none."""
        known: dict[object, int] = {one: position for position, one in enumerate(self.ids)}
        found = [known.get(one, -1) if isinstance(one, int | float | str) else -1 for one in wanted]
        return np.array(found, np.int64)


@dataclass
class SplitRows:
    """One split as columns: pictures that have rows, and rows in order of picture and id."""

    pictures: Pictures
    counts: np.ndarray
    """(N,) int64: rows of each picture, none 0."""
    columns: dict[str, np.ndarray]
    """One entry per row."""
    texts: dict[str, list[bytes]] = field(default_factory=dict)
    """One entry per row."""
    picture_texts: dict[str, list[str]] = field(default_factory=dict)
    """One entry per picture."""


class Classes:
    """`categories` of the annotation files of all splits, together."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, str, int]] = {}

    def add(self, entries: Sequence[Any], where: str) -> None:
        """Adds those of one file.

        Raises:
            BadData: an entry has no id, or an id names two classes.
        """
        for entry in entries:
            number = _whole(entry.get("id")) if isinstance(entry, dict) else MISSING
            if number == MISSING:
                raise BadData(f"{where}: categories: expected entries with a whole number as id, got {str(entry)[:80]}")
            isthing = entry.get("isthing")
            name, group = ("" if entry.get(key) is None else str(entry[key]) for key in ("name", "supercategory"))
            found = name, group, int(isthing) if isthing in (0, 1) else -1
            if self._known.setdefault(entry["id"], found) != found:
                raise BadData(
                    f"{where}: categories: id {entry['id']} stands for {self._known[entry['id']]} and {found}"
                )

    def put_into(self, index: Index) -> None:
        """Columns `class_id` (ascending), `class`, `supercategory`, `class_isthing` (-1 where it is not said)."""
        ordered = sorted(self._known.items())
        index.put("class_id", [number for number, _ in ordered], "int64")
        index.put("class_isthing", [entry[2] for _, entry in ordered], "int8")
        index.put_texts("class", (entry[0] for _, entry in ordered))
        index.put_texts("supercategory", (entry[1] for _, entry in ordered))


class Tally:
    """Counts what an annotation file holds that is no row: as numbers for `describe`, as problems for the user."""

    def __init__(self, index: Index, path: str) -> None:
        self._index = index
        self._path = path

    def count(self, name: str, number: int) -> None:
        """Adds to a column `count.<name>`, (1,) int64."""
        known = self._index.columns.get(f"count.{name}")
        self._index.put(f"count.{name}", [number + (0 if known is None else int(known[0]))], "int64")

    def problem(self, what: str, examples: Sequence[object]) -> None:
        """Says that entries are left out, how many and which first; nothing where there is none."""
        if len(examples):
            first = ", ".join(str(one)[:80] for one in list(examples[:3]))
            message = f"{len(examples)} {what}, and are left out: {first}{', ...' if len(examples) > 3 else ''}"
            self._index.problems.append(Problem(self._path, "BadData", message))


def listed(content: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A list of the JSON.

    Raises:
        BadData: it is not there, or no list.
    """
    found = content.get(name)
    if not isinstance(found, list):
        got = f"the keys {', '.join(map(str, content))}"[:200] if found is None else type(found).__name__
        raise BadData(f"{where}: expected a list {name!r}, got {got}")
    return found


def pictures_of(entries: Sequence[Any], tally: Tally) -> Pictures:
    """`images` in order. Entries without an id, and second ones of an id, are left out as a problem."""
    known: dict[int | str, Any] = {}
    twice, nameless = [], []
    for entry in entries:
        number = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if not isinstance(number, int | str):
            nameless.append(entry)
        elif number in known:
            twice.append(number)
        else:
            known[number] = entry
    tally.problem("entries of images have no id", nameless)
    tally.problem("entries of images have an id that another has", twice)
    ids = sorted(known, key=_rank)
    ordered = [known[number] for number in ids]
    sizes = np.stack([whole_numbers(ordered, "height"), whole_numbers(ordered, "width")], axis=1)
    return Pictures([_file_of(entry) for entry in ordered], ids, np.clip(sizes, 0, 1 << 30))


def whole_numbers(entries: Sequence[Any], name: str) -> np.ndarray:
    """(N,) int64: a number of each entry, `MISSING` where there is none."""
    values = _at_once(entries, name)
    if values is not None and values.dtype.kind in "ib":
        return values.astype(np.int64)
    return np.array([_whole(entry) for entry in _each(entries, name)], np.int64)


def real_numbers(entries: Sequence[Any], name: str) -> np.ndarray:
    """(N,) float32: a number of each entry, NaN where there is none."""
    values = _at_once(entries, name)
    if values is None or values.dtype.kind not in "iuf":
        values = np.array([entry if _is_number(entry) else np.nan for entry in _each(entries, name)], np.float64)
    return _as_float32(values)


def boxes_of(entries: Sequence[Any]) -> np.ndarray:
    """(N, 4) float32: `bbox` of each entry as it stands, NaN where it is not four numbers."""
    boxes = list(_each(entries, "bbox"))
    values = None
    if {*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4}:
        flat = list(chain.from_iterable(boxes))
        values = np.array(flat) if {*map(type, flat)} <= {int, float} else None
    if values is None or values.dtype.kind not in "iuf":
        is_box = [isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) for box in boxes]
        values = np.array([box if fits else [np.nan] * 4 for box, fits in zip(boxes, is_box, strict=True)], np.float64)
    return _as_float32(values).reshape(-1, 4)


def annotation_columns(entries: Sequence[Any], id_column: str) -> dict[str, np.ndarray]:
    """What all annotations have: id (under the name given), category_id, area, box, iscrowd (false where not said)."""
    crowds = whole_numbers(entries, "iscrowd")
    return {
        id_column: whole_numbers(entries, "id"),
        "category_id": whole_numbers(entries, "category_id"),
        "area": real_numbers(entries, "area"),
        "box": boxes_of(entries),
        "iscrowd": (crowds != 0) & (crowds != MISSING),
    }


def arrange(
    columns: dict[str, np.ndarray], id_column: str, *, owners: np.ndarray, keep: np.ndarray, tally: Tally
) -> tuple[np.ndarray, np.ndarray]:
    """The rows: entries that have a picture and an id of their own, in order of picture and id.

    Args:
        columns: one entry per annotation, M of them.
        id_column: the one with the ids.
        owners: (M,) position of each one's picture, -1 where it is not listed.
        keep: (M,) bool: False for what the reader itself leaves out.
        tally: is told what is left out beside that.

    Returns:
        (R,) int64: which entries, in order of rows; (R,) int64: position of each row's picture.
    """
    numbers = columns[id_column]
    tally.problem("annotations have no id", np.flatnonzero(numbers == MISSING).tolist())
    tally.problem(
        "annotations are of a picture that images does not list", numbers[(owners < 0) & (numbers != MISSING)].tolist()
    )
    chosen = np.flatnonzero(keep & (numbers != MISSING) & (owners >= 0))
    order = chosen[np.lexsort((numbers[chosen], owners[chosen]))]
    is_again = np.zeros(len(order), bool)
    is_again[1:] = (np.diff(numbers[order]) == 0) & (np.diff(owners[order]) == 0)
    tally.problem("annotations have an id that another of the picture has", numbers[order[is_again]].tolist())
    order = order[~is_again]
    return order, owners[order]


def split_rows(pictures: Pictures, columns: dict[str, np.ndarray], order: np.ndarray, owners: np.ndarray) -> SplitRows:
    """Columns in order of rows, and the pictures that have any.

    Args:
        pictures: all of the annotation file.
        columns: one entry per annotation.
        order: (R,) the rows, as `arrange` gives them.
        owners: (R,) position of each row's picture, ascending.
    """
    used, counts = np.unique(owners, return_counts=True)
    kept = Pictures([pictures.files[one] for one in used], [pictures.ids[one] for one in used], pictures.size_hw[used])
    return SplitRows(kept, counts, {name: values[order] for name, values in columns.items()})


def picture_names(splits: Mapping[str, Pictures], where: str) -> list[str]:
    """A name for each picture of all splits, unique: the stem of its file where that is, or else the path, or split and path.

    Raises:
        BadData: a file is listed twice within a split.
    """
    files = [
        (split, os.path.splitext(file or str(number))[0])
        for split, pictures in splits.items()
        for file, number in zip(pictures.files, pictures.ids, strict=True)
    ]
    paths = [path for _, path in files]
    names: list[str] = []
    for names in ([path.rpartition("/")[2] for path in paths], paths, [f"{split}/{path}" for split, path in files]):
        if len(set(names)) == len(names):
            return names
    seen: set[str] = set()
    again = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise BadData(f"{where}: the picture {again} is listed twice in images, under two ids: expected one entry per file")


def find_annotation(names: Sequence[str], kind: str) -> dict[str, str]:
    """Split -> annotation file, relative to the root, of the names in the folder `annotations`."""
    found = [name for name in names if name.startswith(f"{kind}_") and name.endswith(".json")]
    return {name[len(kind) + 1 : -len(".json")]: f"annotations/{name}" for name in sorted(found)}


def _at_once(entries: Sequence[Any], name: str) -> np.ndarray | None:
    try:
        values = np.array([entry[name] for entry in entries])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return values if values.ndim == 1 else None


def _each(entries: Sequence[Any], name: str) -> Iterable[Any]:
    return (entry.get(name) if isinstance(entry, dict) else None for entry in entries)


def _whole(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and MISSING < value < -MISSING else MISSING


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _file_of(entry: Mapping[str, Any]) -> str:
    file, url = entry.get("file_name"), entry.get("coco_url")
    if isinstance(file, str) and file:
        return file.removeprefix("./")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else ""


def _rank(number: int | str) -> tuple[int, int, str]:
    """Numbers before words, numbers in text among the numbers."""
    if isinstance(number, str):
        return (
            (0, int(number), number) if number.isascii() and number.isdecimal() and len(number) < 30 else (1, 0, number)
        )
    return 0, number, ""
