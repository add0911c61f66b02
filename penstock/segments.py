"""Segments: a source whose rows are segments, cut out of their pictures. Over any source with masks or id maps."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Literal, Protocol, cast, get_args

import numpy as np
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.segment_crops import cut_segment, squash_ids, squash_picture
from penstock.readers.base import Reader, some
from penstock.readers.coco_files import CocoReader
from penstock.readers.fields import AREA, BOX, IMAGE_ID
from penstock.readers.index import Index, cached_index
from penstock.schema import Field, Record, Schema
from penstock.source import Candidate, Problem, Source, check_index

Recipe = Literal["native", "legacy-640"]
RECIPES = get_args(Recipe)
PIXELS = Field(
    name="pixels", dtype="uint8", shape=(None, None, 3), axes="H W C", kind="image", meaning="RGB, padded, not blended"
)
INSIDE = Field(
    name="inside", dtype="uint8", shape=(None, None), axes="H W", kind="mask", meaning="0 or 1, of the crop's size"
)
SEGMENT_ID = Field(
    name="segment_id", dtype="int64", kind="number", meaning="id of the segment in its picture, as the dataset has it"
)
_BOX = replace(BOX, meaning="XYWH in pixels of the picture: the tight box of the mask, right = x + w exclusive")
_AREA = replace(AREA, meaning="pixels of the mask, counted")
_PASSED = ("image_id", "category", "category_id", "label", "iscrowd", "path")
_NUMBERS = {"segment_id": "segment_id", "annotation_id": "segment_id"}
"""Fields with the number of a segment, and the one that it becomes."""


class _HasMaps(Protocol):
    """A reader that gives the id map of a row's picture."""

    def id_map(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class _Shared:
    """What the segments of a picture share."""

    picture: np.ndarray
    ids: np.ndarray


class Segments:
    """Rows are segments: pixels of the padded crop, the mask inside it, box, area, and what the source says of them.

    The source's rows are segments themselves (`mask`: COCO, SA-1B, ...), and then rows and keys are the source's; or they
    are pictures with an id map (`ids`: scenes), and then there is a row for each positive id of each map, with the key
    `<key of the picture>_<id>`. To find these every map is read once; the list is kept in the cache of indexes.

    A picture and its id map are decoded once for all rows asked for in one call. Also an `Offers` for jobs: the cheap
    input key of a row covers its annotation and size and time of its files; the content is the record, so that a row
    is changed only if its crop is.

    Args:
        source: with the fields `image`, and `mask` or `ids`.
        pad_ratio: 0 or more, see `penstock.geometry.segment_crops.padded_window`.
        recipe: "native" cuts from the picture at its own size. "legacy-640" first stretches picture and mask to 640 x 640
            and has no row for crowds; a mask that has become empty is a row that fails.
        threads: that decode the pictures of one call.

    Raises:
        UsageError: the source has no such fields, or a setting is wrong.
    """

    def __init__(self, source: Source, *, pad_ratio: float = 0.1, recipe: Recipe = "native", threads: int = 1) -> None:
        if recipe not in RECIPES:
            raise UsageError(f"recipe: expected {' or '.join(RECIPES)}, got {recipe!r}")
        if not 0 <= pad_ratio <= 10:
            raise UsageError(f"pad-ratio: expected 0..10, got {pad_ratio!r}")
        self.source, self.pad_ratio, self.recipe, self.threads = source, pad_ratio, recipe, threads
        self.kind = _kind_of(source)
        self.crowds_left_out = 0
        self._problems: list[Problem] = []
        self._rows: np.ndarray | None = None
        self._ids: np.ndarray | None = None
        if self.kind == "ids":
            index = _index_of(source)
            self._rows, self._ids, self._problems = index["row"], index["id"], index.problems
        elif recipe == "legacy-640" and isinstance(source, CocoReader):
            self._rows = np.flatnonzero(~source.column("iscrowd"))
            self.crowds_left_out = len(source) - len(self._rows)
        self.schema = self._schema()
        self._cheap: tuple[list[str], list[int]] | None = None
        self._last: tuple[int, _Shared] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cheap": None, "_last": None}

    @property
    def problems(self) -> list[Problem]:
        """Faults of whole files: the source's, and id maps that cannot be read."""
        return [*getattr(self.source, "problems", []), *self._problems]

    @property
    def keys(self) -> Sequence[str]:
        """One id per row."""
        return self._known()[0]

    def __len__(self) -> int:
        return len(self.source) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """The crop of a segment.

        Raises:
            IndexError: there is no such row.
            BadData: picture, map or annotation are wrong, or the mask is empty.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Crops of several segments; each picture is decoded once.

        Raises:
            BadData: one of them is wrong, and then none is given.
        """
        rows = [check_index(index, len(self)) for index in indices]
        runs = [list(run) for _, run in groupby(rows, key=self._picture_of)]
        if self.threads > 1 and len(runs) > 1:
            with ThreadPoolExecutor(min(self.threads, len(runs))) as pool:
                parts = list(pool.map(self._cut, runs))
        else:
            parts = [self._cut(run) for run in runs]
        return [record for part in parts for record in part]

    def candidates(self) -> Iterator[Candidate]:
        """All rows, in order."""
        keys, cheap = self._known()
        return (Candidate(key=key, cheap=number, index=row) for row, (key, number) in enumerate(zip(keys, cheap)))  # noqa: B905  # made together

    def cheap_keys(self) -> list[int]:
        """The cheap input key of each row, 64 bits: reads sizes and times of files, once."""
        return self._known()[1]

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole picture that a row is cut from, (H, W, 3) uint8, and its mask, (H, W) bool, after the recipe.

        Raises:
            IndexError, BadData: as `segments[index]`.
        """
        row = check_index(index, len(self))
        place = self._source_row(row)
        if self.kind == "mask":
            record = self.source[place]
            picture, mask = np.asarray(record["image"]), np.asarray(record["mask"]) != 0
            return (squash_picture(picture), squash_ids(mask)) if self.recipe == "legacy-640" else (picture, mask)
        shared = self._shared(place)
        return shared.picture, shared.ids == self._id_of(row)

    def _known(self) -> tuple[list[str], list[int]]:
        """Keys and cheap keys of all rows."""
        if self._cheap is None:
            keys, cheap = _source_keys(self.source), _fingerprints(self.source)
            if self._rows is not None and self._ids is not None:
                pairs = list(zip(self._rows.tolist(), self._ids.tolist(), strict=True))
                keys = [f"{keys[row]}_{number}" for row, number in pairs]
                cheap = [cheap[row] ^ (number * _ODD & _BITS) for row, number in pairs]
            elif self._rows is not None:
                keys, cheap = [keys[row] for row in self._rows], [cheap[row] for row in self._rows]
            self._cheap = keys, cheap
        return self._cheap

    def _schema(self) -> Schema:
        known = self.source.schema
        passed = [known[name] for name in _PASSED if name in known]
        if self.kind == "ids" and "image_id" not in known:
            passed.insert(0, replace(IMAGE_ID, meaning="key of the picture in its source"))
        passed = [replace(one, dtype="int32") if one.name == "label" else one for one in passed]
        number = [SEGMENT_ID] if self.kind == "ids" or set(_NUMBERS) & set(known) else []
        return Schema([PIXELS, INSIDE, _BOX, _AREA, *number, *passed])

    def _source_row(self, row: int) -> int:
        return row if self._rows is None else int(self._rows[row])

    def _picture_of(self, row: int) -> int:
        """A number that rows of one picture share."""
        place = self._source_row(row)
        group_of = None if self.kind == "ids" else getattr(self.source, "group_of", None)
        return place if group_of is None else int(group_of(place))

    def _id_of(self, row: int) -> int:
        if self._ids is not None:
            return int(self._ids[row])
        return int(cast(Reader, self.source).column("segment_id")[self._source_row(row)])

    def _shared(self, place: int) -> _Shared:
        """Picture and ids of a source's row; those read last are kept, for rows that are asked for one by one."""
        number = place if self.kind == "ids" else cast(Reader, self.source).group_of(place)
        last = self._last
        if last is not None and last[0] == number:
            return last[1]
        if self.kind == "ids":
            record = self.source[place]
            shared = _Shared(np.asarray(record["image"]), np.asarray(record["ids"]))
        else:
            picture = np.asarray(cast(Reader, self.source).read(place, ["image"])["image"])
            shared = _Shared(picture, cast(_HasMaps, self.source).id_map(place))
        if self.recipe == "legacy-640":
            shared = _Shared(squash_picture(shared.picture), squash_ids(shared.ids))
        self._last = number, shared
        return shared

    def _cut(self, rows: list[int]) -> list[Record]:
        """Records of rows of one picture."""
        if self.kind == "mask":
            return self._cut_masks(rows)
        shared = self._shared(self._source_row(rows[0]))
        found = []
        for row in rows:
            record, number = self._said(row), self._id_of(row)
            record["segment_id"] = np.array(number, np.int64)
            found.append(self._record(row, shared.picture, shared.ids == number, record))
        return found

    def _cut_masks(self, rows: list[int]) -> list[Record]:
        places = [self._source_row(row) for row in rows]
        batched: Callable[[Sequence[int]], list[Record]] | None = getattr(self.source, "__getitems__", None)
        records = batched(places) if batched else [self.source[place] for place in places]
        squashed: dict[int, np.ndarray] = {}
        found = []
        for row, record in zip(rows, records, strict=True):
            picture, mask = np.asarray(record["image"]), np.asarray(record["mask"]) != 0
            if self.recipe == "legacy-640":
                mask = squash_ids(mask)
                if id(picture) not in squashed:
                    squashed[id(picture)] = squash_picture(picture)
                picture = squashed[id(picture)]
            said = {_NUMBERS.get(name, name): value for name, value in record.items()}
            found.append(self._record(row, picture, mask, said))
        return found

    def _said(self, row: int) -> Record:
        """What the source says of a row, but for its pixels."""
        place = self._source_row(row)
        names = [name for name in _PASSED if name in self.source.schema]
        record = dict(self.source.read(place, names)) if isinstance(self.source, Reader) else {}
        if self.kind == "ids":
            record.setdefault("image_id", self.source.keys[place])
        return record

    def _record(self, row: int, picture: np.ndarray, mask: np.ndarray, said: Record) -> Record:
        try:
            crop = cut_segment(picture, mask, self.pad_ratio)
        except BadData as error:
            squashed = " after it was stretched to 640 x 640" if self.recipe == "legacy-640" else ""
            raise BadData(f"{self.key_of(row)}: {error}{squashed}") from error
        cut: Record = {"pixels": crop.pixels, "inside": crop.inside, "box": crop.box_xywh}
        cut["area"] = np.array(crop.area, np.float32)
        if "label" in said:
            said["label"] = np.asarray(said["label"]).astype(np.int32)
        return {name: cut[name] if name in cut else said[name] for name in self.schema}

    def key_of(self, row: int) -> str:
        """The key of one row, without those of all others."""
        key = self.source.keys[self._source_row(row)]
        return key if self._ids is None else f"{key}_{int(self._ids[row])}"


_ODD, _BITS = 0x9E3779B97F4A7C15, (1 << 64) - 1


def _kind_of(source: Source) -> Literal["map", "mask", "ids"]:
    known = source.schema
    if "image" in known and "mask" in known:
        has_maps = isinstance(source, Reader) and hasattr(source, "id_map") and "segment_id" in known
        return "map" if has_maps else "mask"
    if "image" in known and "ids" in known:
        return "ids"
    raise UsageError(
        f"{type(source).__name__}: expected a source with image and mask, or image and ids; it has {some([*known], 20)}"
    )


def _stamp_of(source: Source) -> str:
    """Changes with any of the source's id maps."""
    hasher = xxhash.xxh3_128()
    for number in _fingerprints(source):
        hasher.update(number.to_bytes(8, "little"))
    return hasher.hexdigest()


def _index_of(source: Source) -> Index:
    """See `_listed`; from the cache, but of a source that has no files to tell by whether its maps are still the same."""
    if not isinstance(source, Reader):
        return _listed(source)
    identity = f"{source.root.absolute()} {sorted(source.options.items())}"
    return cached_index("segments", identity, _stamp_of(source), lambda: _listed(source))


def _listed(source: Source) -> Index:
    """Columns `row` and `id`: the positive ids of each picture's map, ascending. A map that cannot be read is a problem."""
    index = Index()
    rows: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for row in range(len(source)):
        try:
            record = source.read(row, ["ids"]) if isinstance(source, Reader) else source[row]
        except BadData as error:
            index.problems.append(Problem(source.keys[row], "BadData", str(error)))
            continue
        ids = np.unique(np.asarray(record["ids"]))
        ids = ids[ids > 0]
        rows.append(np.full(len(ids), row))
        found.append(ids)
    index.put("row", np.concatenate(rows) if rows else [], "int64")
    index.put("id", np.concatenate(found) if found else [], "int64")
    return index


def _source_keys(source: Source) -> list[str]:
    """All keys of a source, as a list: a million of them in a second where their form is known."""
    if isinstance(source, CocoReader):
        starts, numbers = source.index["starts"].tolist(), source.column(source.id_column).tolist()
        return [
            f"{name}_{number}"
            for group, name in enumerate(source.index.texts("group"))
            for number in numbers[starts[group] : starts[group + 1]]
        ]
    return list(source.keys)


def _fingerprints(source: Source) -> list[int]:
    """64 bits per row that change with its annotation, and with size and time of its files; each file is looked at once
    where a group is one picture. Those of a store change with any of its rows."""
    if not isinstance(source, Reader):
        known, digest = getattr(source, "fingerprint", None), getattr(source, "digest", str)()
        return [
            xxhash.xxh3_64_intdigest(f"{digest}{key}".encode()) if known is None else known(row)
            for row, key in enumerate(source.keys)
        ]
    starts = source.index["starts"].tolist()
    raw = _row_bytes(source)
    found: list[int] = []
    options, one_picture = str(sorted(source.options.items())), isinstance(source, CocoReader)
    for first, last in pairwise(starts):
        if last == first:
            continue
        pictures = source._pictures(first)
        if raw is None or not (one_picture or pictures == source._pictures(last - 1)):
            found += [source.fingerprint(row) for row in range(first, last)]
        else:
            stamps = [(path, source.files.stamp(path)) for path in pictures]
            seed = xxhash.xxh3_64_intdigest(f"{stamps} {options}".encode("utf-8", "surrogateescape"))
            found += [xxhash.xxh3_64_intdigest(content, seed) for content in raw[first:last]]
    return found


def _row_bytes(source: Reader) -> np.ndarray | None:
    """(N, ) fixed-size bytes of each row's annotation; None where it has texts."""
    if any(name not in source.index.columns for name in source.row_columns):
        return None
    columns = [np.ascontiguousarray(source.index[name]) for name in source.row_columns]
    if isinstance(source, CocoReader):
        labels = source.column("label")
        names = [
            xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogateescape")) for text in source.index.texts("class")
        ]
        columns += [labels, np.array([*names, 0], np.uint64)[labels]]
    flat = [column.reshape(len(source), -1).view(np.uint8).reshape(len(source), -1) for column in columns]
    joined = np.ascontiguousarray(np.concatenate(flat, axis=1))
    return joined.view(f"V{joined.shape[1]}").reshape(-1)
