"""Reader: what all dataset readers share. Index from the cache, keys, groups, fingerprints, one decode per picture."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import xxhash

from penstock.errors import BadData, PenstockError, SourceNotFound
from penstock.geometry.images import decode_picture
from penstock.readers.files import Files, FolderFiles, ForkLock, nearby
from penstock.readers.index import Index, cached_index, fingerprint_of
from penstock.schema import Record, Schema
from penstock.source import Group, Lookup, Problem, check_index

_T = TypeVar("_T")
PICTURES = (".jpg", ".jpeg", ".png")
"""Suffixes of pictures, in lower case."""


class Reader:
    """A source over a dataset as published. A subclass is one layout.

    A subclass sets `name`, `layout` and `row_columns`, and writes `schema`, `fault`, `_stamps`, `_build`, `_key`,
    `_pictures` and `_record`; its `__init__` takes the options and calls this one last. The index that `_build` gives has
    at least the columns `starts` ((groups + 1,) int64: first row of each group, then the number of rows) and `group`
    (texts: their names), and what `row_columns` names (one entry per row).

    Attributes:
        root: the folder (or file) given.
        files: where its files lie.
        options: what the source was opened with, beside the root; they are part of its identity.
        problems: faults of whole files met when the index was built; the rows that they cost fail when read, or are not
            there, as the message says.
        pictures_decoded: pictures that this object has decoded so far; it tells what an access pattern costs.
    """

    name: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    """What lies under the root, in a few words, for messages."""
    row_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the index with one entry per row (texts by their name): what a row's annotation is."""
    schema: Schema

    def __init__(self, root: Path | str, *, files: Files | None = None, options: Mapping[str, object] = {}) -> None:
        self.root = Path(root)
        self.files: Files = self._open(self.root) if files is None else files
        self.options = dict(options)
        self.pictures_decoded = 0
        self._lock = ForkLock()
        fault = self._fault_of_root()
        if fault:
            raise SourceNotFound(
                f"{self.root}: no {self.name} dataset: {fault}. Expected: {self.layout}.{self._hint()}"
            )
        self._stamp = fingerprint_of([type(self).__name__, self.name, sorted(self.options.items()), *self._stamps()])
        identity = f"{self.root.absolute()} {sorted(self.options.items())}"
        self.index = cached_index(self.name, identity, self._stamp, self._build)
        self._length = int(self.index["starts"][-1]) if len(self.index["starts"]) else 0
        if not self._length:
            reasons = "; ".join(f"{problem.path}: {problem.message}" for problem in self.problems[:3])
            raise SourceNotFound(
                f"{self.root}: a {self.name} dataset without rows (options {self.options}): "
                f"{reasons or f'expected {self.layout}'}"
            )

    def fault(self, files: Files) -> str:
        """Why files do not look like this layout; empty if they do. Cheap: names only."""
        raise NotImplementedError

    def _open(self, root: Path) -> Files:
        """Where the files lie; a folder, unless a subclass says otherwise."""
        return FolderFiles(root)

    def _stamps(self) -> Iterable[object]:
        """Names and stamps of all that the index is built from."""
        raise NotImplementedError

    def _build(self) -> Index:
        """Reads the annotations. Decodes no picture."""
        raise NotImplementedError

    def _key(self, row: int) -> str:
        raise NotImplementedError

    def _pictures(self, row: int) -> Sequence[str]:
        """Files of a row beside the annotation: the picture first, then masks."""
        raise NotImplementedError

    def _record(self, row: int, fields: frozenset[str], memo: "Memo") -> Record:
        """The fields asked for (others may be there too). What several rows of a picture share comes from the memo."""
        raise NotImplementedError

    @property
    def problems(self) -> list[Problem]:
        """Faults of whole files."""
        return self.index.problems

    @property
    def keys(self) -> Sequence[str]:
        """One id per row, computed on demand."""
        return Lookup(len(self), self._key)

    @property
    def groups(self) -> Sequence[Group]:
        """Videos, scenes or images, in row order."""
        starts = self.index["starts"]
        return Lookup(
            len(starts) - 1,
            lambda number: Group(self.index.text("group", number), int(starts[number]), int(starts[number + 1])),
        )

    def group_of(self, index: int) -> int:
        """Position in `groups` of the group that a row belongs to."""
        return int(np.searchsorted(self.index["starts"], check_index(index, len(self)), side="right")) - 1

    def column(self, name: str) -> np.ndarray:
        """A fixed-size annotation field of all rows, read-only, without reading any picture: `box`, `visible`, ...

        Raises:
            KeyError: the index has no such column.
        """
        values = self.index[name].view()
        values.flags.writeable = False
        return values

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        """All fields of a row.

        Raises:
            IndexError: there is no such row.
            BadData: its picture or its annotation is wrong; the message names the file.
        """
        return self.read(index, None)

    def read(self, index: int, fields: Sequence[str] | None) -> Record:
        """Some fields of a row; a picture is decoded only if one of them needs it."""
        return self._read([index], fields)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Records of several rows; a picture that several of them share is decoded once."""
        return self._read(indices, None)

    def fingerprint(self, index: int) -> int:
        """A 64-bit hash of what the row is made from, at no cost of reading pictures: key, options, annotation, and size
        and time of its files. Equal means unchanged."""
        row = check_index(index, len(self))
        hasher = xxhash.xxh3_64(f"{self._key(row)} {sorted(self.options.items())}".encode("utf-8", "surrogateescape"))
        for name in self.row_columns:
            fixed = self.index.columns.get(name)
            hasher.update(self.index.raw(name, row) if fixed is None else np.ascontiguousarray(fixed[row]).tobytes())
        for path in self._pictures(row):
            hasher.update(f"{path} {self.files.stamp(path)}".encode("utf-8", "surrogateescape"))
        return hasher.intdigest()

    def digest(self) -> str:
        """Identity of the annotations and options that this source was opened with."""
        return self._stamp

    def describe(self) -> dict[str, object]:
        """What `penstock info` adds for this dataset: plain values."""
        return {}

    def picture_bytes(self, index: int) -> list[int]:
        """Bytes of the picture file of a row, in a list; empty where it is no file of its own (a video, an LMDB)."""
        paths = self._pictures(check_index(index, len(self)))[:1]
        if not isinstance(self.files, FolderFiles):
            return []
        found = [self.root / path for path in paths if path.lower().endswith(PICTURES)]
        return [path.stat().st_size for path in found if path.is_file()]

    def _read(self, indices: Sequence[int], fields: Sequence[str] | None) -> list[Record]:
        wanted = self.schema.select(fields)
        rows = [check_index(index, len(self)) for index in indices]
        names, memo = frozenset(wanted), Memo(rows)
        records = [self._record(row, names, memo) for row in rows]
        return [{name: record[name] for name in wanted} for record in records]

    def _image(self, path: str, memo: "Memo", expected_hw: tuple[int, int] | None = None) -> np.ndarray:
        """The picture, decoded once per memo, of the size that the annotation says, read-only.

        Raises:
            BadData: it is missing, damaged, or of another size; the message names the file.
        """
        return memo.once(("image", path), lambda: self._decode(path, expected_hw))

    def _decode(self, path: str, expected_hw: tuple[int, int] | None) -> np.ndarray:
        content = self.files.read(path)
        try:
            pixels = self._decode_pixels(content, expected_hw)
        except BadData as error:
            raise BadData(f"{self.files.root}: {path}: {error}") from error
        self._count_picture()
        if expected_hw is not None and pixels.shape[:2] != tuple(expected_hw):
            raise BadData(
                f"{self.files.root}: {path}: the annotation says {expected_hw[0]} x {expected_hw[1]} (height x width), "
                f"the picture is {pixels.shape[0]} x {pixels.shape[1]}"
            )
        pixels.flags.writeable = False
        return pixels

    def _decode_pixels(self, content: bytes, expected_hw: tuple[int, int] | None) -> np.ndarray:
        return decode_picture(content, expected_hw=expected_hw)

    def _count_picture(self) -> None:
        with self._lock:
            self.pictures_decoded += 1

    def _fault_of_root(self) -> str:
        if isinstance(self.files, FolderFiles) and not os.path.isdir(self.root):
            return "there is no such folder" if not os.path.exists(self.root) else "it is no folder"
        return self.fault(self.files)

    def _hint(self) -> str:
        """A root nearby that looks right, one or two levels up or down."""
        if not isinstance(self.files, type(self._open(self.root))):
            return ""
        for folder in nearby(self.root):
            try:
                if not self.fault(self._open(folder)):
                    return f" Did you mean {folder}?"
            except PenstockError:
                continue
        return ""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "pictures_decoded": 0}


class Memo:
    """What the rows of one call share: pictures decoded, files parsed. Lives as long as the call.

    Args:
        rows: of the call, counted from the front.
    """

    def __init__(self, rows: Sequence[int] = ()) -> None:
        self.rows = rows
        self._known: dict[object, object] = {}

    def once(self, key: object, make: Callable[[], _T]) -> _T:
        """What `make` gives, made once per key."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]  # type: ignore[return-value]  # a key names one kind of thing


def require_json(content: bytes, where: str, kind: type[_T]) -> _T:
    """Parsed JSON of the kind expected (dict or list).

    Raises:
        BadData: it is broken, or something else.
    """
    import orjson

    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadData(f"{where}: broken JSON: {error}") from error
    if not isinstance(found, kind):
        raise BadData(f"{where}: expected a JSON {kind.__name__}, got {type(found).__name__}")
    return found


def some(members: Sequence[object], most: int = 5) -> str:
    """The first of a list, for a message, and how many there are."""
    listed = ", ".join(str(member) for member in members[:most])
    return listed if len(members) <= most else f"{listed}, ... ({len(members)} in all)"
