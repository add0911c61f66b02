"""TeacherPictures: what a teacher looks at. A row is a picture with all of its masks, over any source of pictures."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal

import numpy as np
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.id_maps import id_boxes
from penstock.readers.base import Reader, some
from penstock.readers.fields import IMAGE
from penstock.readers.sa1b import Sa1b
from penstock.schema import Record, Schema
from penstock.source import Candidate, Lookup, Problem, Source, check_index
from penstock.stages.teacher_fields import OBJECT_BITS, OBJECT_BOXES, ObjectMasks

_FRAMES = ("frame", "view")
"""A source with one of these fields has a picture per row, whatever its groups are."""
_CHUNK = 16
"""Masks of a picture that are in memory together at its full size."""


class TeacherPictures:
    """Rows are pictures: `image`, and its masks as `penstock.stages.teacher_fields.ObjectMasks` keeps them.

    The rows of a reader may be masks, whose groups are pictures (`mask`: SA-1B, COCO, ...): then a group is a row here, with
    its name as key. Or they are pictures, each with an id map, whose positive ids are the masks (`ids`: scenes), with a
    single mask (frames of videos, and sources that are no readers), or without any (`folder`). Pictures that the source has
    no row for, because they have no annotation, are none here. An id without a pixel is no mask.

    Also an `Offers` for jobs: the cheap input key of a row covers all of its annotations, and size and time of its files.

    Args:
        source: with the field `image`; `mask` or `ids` where there are masks.
        threads: that read the pictures of one call.

    Raises:
        UsageError: the source has no pictures, or two of them have one name.
    """

    def __init__(self, source: Source, *, threads: int = 1) -> None:
        if "image" not in source.schema:
            raise UsageError(
                f"{type(source).__name__}: expected a source with image; it has {some([*source.schema], 20)}"
            )
        self.source, self.threads = source, threads
        self.kind: Literal["map", "mask", "ids", "plain"] = _kind_of(source)
        self.schema = Schema([IMAGE, OBJECT_BOXES, OBJECT_BITS])
        has_groups = self.kind in ("map", "mask") and not set(_FRAMES) & set(source.schema)
        self._groups = source if has_groups and isinstance(source, Reader) else None
        self._starts = np.arange(len(source) + 1) if self._groups is None else np.unique(self._groups.index["starts"])
        self._cheap: list[int] | None = None
        twice = _first_twice(self.keys)
        if twice:
            raise UsageError(
                f"{type(source).__name__}: two pictures are named {twice!r}; take one split or folder at a time"
            )

    @property
    def problems(self) -> list[Problem]:
        """Faults of whole files, as the source knows them."""
        return list(getattr(self.source, "problems", []))

    @property
    def without_annotation(self) -> int:
        """Pictures without a mask that SA-1B has no row for, and that are none here; 0 of other sources, which keep no count."""
        return int(self.source.describe()["json_without_rows"]) if isinstance(self.source, Sa1b) else 0  # type: ignore[call-overload]  # a number

    @property
    def keys(self) -> Sequence[str]:
        """One id per picture: the group's name where a group is a picture, else the key of its first row."""
        return Lookup(len(self), self._key)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Record:
        """A picture and its masks.

        Raises:
            IndexError: there is no such row.
            BadData: the picture, or one of its masks, is wrong; the message names the file.
        """
        row = check_index(index, len(self))
        first, last = int(self._starts[row]), int(self._starts[row + 1])
        picture, masks = self._read(first, last)
        return {"image": picture, **masks.to_record()}

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Several pictures, read by `threads` threads.

        Raises:
            IndexError, BadData: one of them is wrong, and then none is given.
        """
        if self.threads < 2 or len(indices) < 2:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(min(self.threads, len(indices))) as pool:
            return list(pool.map(self.__getitem__, indices))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cheap": None}  # a worker only reads records

    def candidates(self) -> Iterator[Candidate]:
        """All pictures, in order; sizes and times of files are read once."""
        if self._cheap is None:
            cheap = _cheap_of(self.source)
            self._cheap = [cheap(first, last) for first, last in pairwise(self._starts.tolist())]
        return (Candidate(key=self._key(row), cheap=number, index=row) for row, number in enumerate(self._cheap))

    def _key(self, row: int) -> str:
        first = int(self._starts[row])
        if self._groups is None:
            return self.source.keys[first]
        return self._groups.groups[self._groups.group_of(first)].name

    def _read(self, first: int, last: int) -> tuple[np.ndarray, ObjectMasks]:
        """The picture that rows from `first` to before `last` share, and their masks."""
        source = self.source
        if self.kind == "map" and isinstance(source, Reader):
            picture = np.asarray(source.read(first, ["image"])["image"])
            ids: np.ndarray = source.id_map(first)  # type: ignore[attr-defined]  # what makes it of this kind
            return picture, _of_ids(picture, ids, source.column("segment_id")[first:last])
        if self.kind == "mask" and isinstance(source, Reader):
            picture = np.asarray(source.read(first, ["image"])["image"])
            chunks = (range(start, min(start + _CHUNK, last)) for start in range(first, last, _CHUNK))
            masks = (record["mask"] for chunk in chunks for record in source._read(chunk, ["mask"]))
            return picture, _of_masks(picture, masks, f"{source.root}: {self.source.keys[first]}")
        record = source[first]
        picture = np.asarray(record["image"])
        if self.kind == "mask":
            return picture, _of_masks(picture, iter([record["mask"]]), source.keys[first])
        return picture, _of_ids(picture, np.asarray(record["ids"]) if self.kind == "ids" else np.zeros((0, 0)), None)


def _kind_of(source: Source) -> Literal["map", "mask", "ids", "plain"]:
    known = source.schema
    if "mask" in known:
        has_maps = isinstance(source, Reader) and hasattr(source, "id_map") and "segment_id" in known
        return "map" if has_maps else "mask"
    return "ids" if "ids" in known else "plain"


def _cheap_of(source: Source) -> Callable[[int, int], int]:
    """A function of (first row, row after the last) to 64 bits, which change with any annotation of a picture, and with size
    and time of its files; a store's change with any of its rows."""
    if not isinstance(source, Reader):
        fingerprint, digest = getattr(source, "fingerprint", None), getattr(source, "digest", str)()

        def of_source(first: int, last: int) -> int:
            if fingerprint is not None:
                return int(fingerprint(first))
            return xxhash.xxh3_64_intdigest(f"{digest}{source.keys[first]}".encode())

        return of_source
    options, index = str(sorted(source.options.items())), source.index
    size = "size_hw" in index.columns

    def of_reader(first: int, last: int) -> int:
        hasher = xxhash.xxh3_64(f"{options} {last - first}".encode("utf-8", "surrogateescape"))
        for name in source.row_columns:
            fixed = index.columns.get(name)
            if fixed is not None:
                hasher.update(np.ascontiguousarray(fixed[first:last]).tobytes())
            else:
                hasher.update(b"".join(index.raw(name, row) for row in range(first, last)))
        if size:
            hasher.update(np.ascontiguousarray(index["size_hw"][source.group_of(first)]).tobytes())
        for path in dict.fromkeys(path for row in (first, last - 1) for path in source._pictures(row)):
            hasher.update(f"{path} {source.files.stamp(path)}".encode("utf-8", "surrogateescape"))
        return hasher.intdigest()

    return of_reader


def _of_masks(picture: np.ndarray, masks: Iterator[object], where: str) -> ObjectMasks:
    size_hw = (picture.shape[0], picture.shape[1])

    def checked() -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        for number, mask in enumerate(masks):
            array = np.asarray(mask)
            if array.shape != size_hw:
                raise BadData(f"{where}: mask {number}: expected the picture's size {size_hw}, got {array.shape}")
            yield (0, 0), array

    return ObjectMasks.of(size_hw, checked())


def _of_ids(picture: np.ndarray, ids: np.ndarray, wanted: np.ndarray | None) -> ObjectMasks:
    """The masks of an id map: of the ids wanted, in their order, or of all above 0, ascending; none of an empty map."""
    size_hw = (picture.shape[0], picture.shape[1])
    if not ids.size:
        return ObjectMasks.of(size_hw, [])
    if ids.shape != size_hw:
        raise BadData(f"expected an id map of the picture's size {size_hw}, got {ids.shape}")
    known, boxes = id_boxes(ids)
    places = {number: place for place, number in enumerate(known.tolist())}
    asked = [number for number in known.tolist() if number > 0] if wanted is None else wanted.tolist()

    def pieces() -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        for number in asked:
            if number in places:
                x, y, width, height = boxes[places[number]].astype(int).tolist()
                yield (x, y), ids[y : y + height, x : x + width] == number

    return ObjectMasks.of(size_hw, pieces())


def _first_twice(keys: Sequence[str]) -> str:
    """The first name that is there twice; empty if none is."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return ""
