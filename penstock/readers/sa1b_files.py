"""Where pictures and JSON files of SA-1B lie: side by side or in two folders, on disk or in TARs as published."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import BadData
from penstock.readers.base import PICTURES
from penstock.readers.files import FolderFiles, stamp_of, walk
from penstock.readers.index import Index
from penstock.readers.sa1b_json import Place
from penstock.readers.tar_scan import TarScan, compression_of
from penstock.source import Problem

_LAST_NUMBER = re.compile(r"(.*?)(\d+)")
_NAMED = re.compile(r"sa_\d+\.json")
_AUTOMATIC = ("img", "js")
"""Folders of pictures and of JSON files that are known without being named."""


@dataclass(frozen=True)
class Entry:
    """A JSON and its picture, by path relative to the root (a TAR counts as a folder)."""

    annotation: str
    picture: str
    """Where it lies, or should lie."""
    has_picture: bool
    place: Place
    spans: tuple[tuple[str, int, int, int], ...] = ()
    """In a TAR: path, offset, size and time of both."""

    @property
    def stem(self) -> str:
        """Name without folder and suffix: `sa_223750`."""
        return self.annotation.rpartition("/")[2].rpartition(".")[0]


@dataclass(frozen=True)
class Listing:
    """What lies under the root."""

    entries: list[Entry]
    """In order: by folder or TAR, then by number."""
    lone_pictures: list[str]
    """Pictures without a JSON."""


@dataclass(frozen=True)
class Folders:
    """Where pictures and where JSON files are looked for, relative to the root; "" is the root, None is not said."""

    images: str | None
    annotations: str | None

    @property
    def depth(self) -> int:
        """How deep to look: side by side not further than the folders in the root, so that a root that is too high does
        not take all datasets below it for one."""
        return 64 if self.images or self.annotations else 1

    def settled(self, has_both: bool) -> "Folders":
        """With what was not said filled in: `img` and `js` where both are there, else side by side."""
        if self.images is None and self.annotations is None:
            return Folders(*_AUTOMATIC) if has_both else Folders("", "")
        return Folders(*(os.path.normpath(one or ".").strip("/.") for one in (self.images, self.annotations)))


def look(root: Path, folders: Folders, *, shallow: bool = False) -> str:
    """What lies at the places to look at, by names: "pairs", "apart" (pictures and JSON files, never in one folder),
    "pictures", "json" (files that SA-1B may have named), or "". At most 200 folders are looked
    into; `shallow`: none but the places."""
    found = settle(root, folders)
    has_pictures = has_annotations = has_named = False
    looked = 0
    for place in sorted({str(found.images), str(found.annotations)}):
        for _, _, names in _walked(root, place, depth=0 if shallow else found.depth):
            pictures = place == found.images and any(name.lower().endswith(PICTURES) for name, _ in names)
            annotations = place == found.annotations and any(name.endswith(".json") for name, _ in names)
            has_pictures, has_annotations = has_pictures or pictures, has_annotations or annotations
            has_named |= annotations and any(_NAMED.fullmatch(name) for name, _ in names)
            if (pictures and annotations) or (found.images != found.annotations and has_pictures and has_annotations):
                return "pairs"
            looked += 1
            if looked >= 200:
                break
    if has_pictures:
        return "apart" if has_annotations else "pictures"
    return "json" if has_named else ""


def settle(root: Path, folders: Folders) -> Folders:
    """The folders of a root on disk."""
    return folders.settled(all((root / name).is_dir() for name in _AUTOMATIC))


def _walked(root: Path, start: str, *, depth: int) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
    """Folders as `walk` gives them: relative name, stamp, and names of the pictures and JSON files directly in it, sorted,
    with the stamp of the JSON files (0 for pictures).

    Raises:
        BadData: a folder cannot be listed, or a JSON file not be looked at.
    """
    for folder, files, stamp in walk(root, start, depth=depth):
        try:
            annotations = [(file.name, stamp_of(file.stat())) for file in files if file.name.endswith(".json")]
        except OSError as error:
            raise BadData(f"{root / folder}: expected files that can be looked at: {error}") from error
        pictures = [(file.name, 0) for file in files if file.name.lower().endswith(PICTURES)]
        yield folder, stamp, sorted(annotations + pictures)


def folder_stamps(root: Path, folders: Folders) -> Iterator[object]:
    """One for each folder: its own, and those of its JSON files together."""
    found = settle(root, folders)
    for place in sorted({str(found.images), str(found.annotations)}):
        for folder, stamp, names in _walked(root, place, depth=found.depth):
            yield folder, stamp, xxhash.xxh3_128_hexdigest(str(names).encode("utf-8", "surrogateescape"))


def list_folder(root: Path, folders: Folders) -> Listing:
    """Pictures and JSON files on disk."""
    found = settle(root, folders)
    names = [
        f"{folder}/{name}" if folder else name
        for place in sorted({str(found.images), str(found.annotations)})
        for folder, _, inside in _walked(root, place, depth=found.depth)
        for name, _ in inside
    ]
    pairs, lone = _pair(names, found)
    base = str(root.absolute())
    return Listing([Entry(one, picture, known, Place(f"{base}/{one}")) for one, picture, known in pairs], lone)


def list_tars(root: Path, tars: Sequence[str], folders: Folders, problems: list[Problem]) -> Listing:
    """Members of TARs, whose headers are read once. What is wrong with one goes to the problems.

    Args:
        root: the folder of the TARs, or the one TAR.
        tars: their names in that folder; [""] for the root itself.
        folders: where to look inside each.
        problems: gets the faults.
    """
    listing = Listing([], [])
    for tar in tars:
        members = _members(root / tar if tar else root, tar, problems)
        tops = {name.partition("/")[0] for name in members if "/" in name}
        pairs, lone = _pair(members, folders.settled(tops.issuperset(_AUTOMATIC)))
        prefix = f"{tar}/" if tar else ""
        listing.lone_pictures.extend(prefix + name for name in lone)
        for annotation, picture, known in pairs:
            offset, size, _ = members[annotation]
            place = Place(str((root / tar if tar else root).absolute()), offset, size)
            spans = [(prefix + name, *members[name]) for name in (annotation, picture) if name in members]
            listing.entries.append(Entry(prefix + annotation, prefix + picture, known, place, tuple(spans)))
    return listing


class TarMembers:
    """The pictures and JSON files of TARs, found through the reader's index, so that headers are read once and not at
    every start. It is of use when the index is attached.

    Args:
        root: the folder of the TARs, or the one TAR.
        tars: their names in that folder; [""] for the root itself.
    """

    def __init__(self, root: Path, tars: Sequence[str]) -> None:
        self.root = root
        self.tars = list(tars)
        self.index = Index()

    def read(self, path: str) -> bytes:
        """See `Files.read`."""
        at = self._position(path)
        if at < 0:
            raise BadData(f"{self.root}: no member {path}")
        place = Place(str(self._tar_of(path)), int(self.index["member.offset"][at]), int(self.index["member.size"][at]))
        return place.read()

    def exists(self, path: str) -> bool:
        """See `Files.exists`."""
        return self._position(path) >= 0

    def names(self, folder: str = "") -> list[str]:
        """See `Files.names`."""
        start = folder.rstrip("/") + "/" if folder else ""
        paths = [*self.index.texts("path"), *self.index.texts("json")]
        return sorted({path[len(start) :].partition("/")[0] for path in paths if path.startswith(start)})

    def stamp(self, path: str) -> int:
        """See `Files.stamp`: of the size and time in the member's header."""
        at = self._position(path)
        known = (int(self.index[f"member.{name}"][at]) for name in ("size", "time"))
        return 0 if at < 0 else xxhash.xxh3_64_intdigest(repr(tuple(known)).encode())

    def stamps(self) -> Iterator[object]:
        """Of the TARs themselves."""
        for tar in self.tars:
            yield tar, FolderFiles(self.root).stamp(tar)

    def _tar_of(self, path: str) -> Path:
        return self.root if self.tars == [""] else self.root / path.partition("/")[0]

    def _position(self, path: str) -> int:
        hashes = self.index["member.hash"]
        wanted = path_hash(path)
        at = int(np.searchsorted(hashes, np.uint64(wanted)))
        return at if at < len(hashes) and int(hashes[at]) == wanted else -1


def put_members(index: Index, entries: Sequence[Entry]) -> None:
    """Columns `member.hash` (ascending), `member.offset`, `member.size`, `member.time` of the entries' members."""
    spans = sorted((path_hash(path), offset, size, time) for one in entries for path, offset, size, time in one.spans)
    columns = list(zip(*spans, strict=True)) or [(), (), (), ()]
    for name, values, dtype in zip(
        ("hash", "offset", "size", "time"), columns, ("uint64", *["int64"] * 3), strict=True
    ):
        index.put(f"member.{name}", np.array(values, dtype), dtype)


def path_hash(path: str) -> int:
    """64 bits of a path."""
    return xxhash.xxh3_64_intdigest(path.encode("utf-8", "surrogateescape"))


def tars_in(folder: Path) -> list[str]:
    """Names of the TARs directly in a folder, sorted."""
    names = [name for name in FolderFiles(folder).names() if name.endswith(".tar") and not name.startswith(".")]
    return [name for name in names if not (folder / name).is_dir()]


def _members(path: Path, tar: str, problems: list[Problem]) -> dict[str, tuple[int, int, int]]:
    """Pictures and JSON files of a TAR: name to offset, size and time. Of members of one name the last, as `tar` does."""
    found: dict[str, tuple[int, int, int]] = {}
    try:
        kind = compression_of(path)
        file = open(path, "rb")  # noqa: SIM115  # closed below
    except OSError as error:
        problems.append(Problem(tar or path.name, "BadData", f"expected a TAR: {error.strerror or error}; no rows"))
        return found
    with file:
        if kind:
            message = f"a TAR compressed with {kind} has no random access, and is not read; unpack it"
            problems.append(Problem(tar or path.name, "BadData", message))
            return found
        length = os.fstat(file.fileno()).st_size
        scan = TarScan(str(path), file, file_bytes=length)
        for info in scan:
            name = info.name.removeprefix("./").lstrip("/")
            is_wanted = name.endswith(".json") or name.lower().endswith(PICTURES)
            if not info.isreg() or not is_wanted or name.rpartition("/")[2].startswith("."):
                continue
            if info.offset_data + info.size > length:
                scan.cut(info, max(0, length - info.offset_data))
                break
            found[name] = (info.offset_data, info.size, int(info.mtime))
    if scan.problem is not None:
        problems.append(Problem(tar or path.name, scan.problem.error, scan.problem.message))
    return found


def _pair(names: Iterable[str], folders: Folders) -> tuple[list[tuple[str, str, bool]], list[str]]:
    """JSON files in order, each with its picture (or where that should lie) and whether it is there; lone pictures."""
    images, annotations = (f"{one}/" if one else "" for one in (folders.images, folders.annotations))
    pictures: dict[str, str] = {}
    stems: dict[str, str] = {}
    for name in sorted(names):
        if name.endswith(".json"):
            if name.startswith(annotations):
                stems[name[len(annotations) : -len(".json")]] = name
        elif name.startswith(images):
            pictures.setdefault(name[len(images) :].rpartition(".")[0], name)
    ordered = sorted(stems, key=_order)
    pairs = [(stems[one], pictures.get(one, f"{images}{one}.jpg"), one in pictures) for one in ordered]
    return pairs, [pictures[one] for one in sorted(pictures, key=_order) if one not in stems]


def _order(stem: str) -> tuple[str, str, int, str]:
    """By folder, then by the number at the end of the name."""
    folder, _, name = stem.rpartition("/")
    match = _LAST_NUMBER.fullmatch(name)
    return (folder, match[1], int(match[2]), name) if match else (folder, name, -1, name)
