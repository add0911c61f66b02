"""Where pictures and JSON files of SA-1B lie: side by side or in two folders, on disk or in TARs as published."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import BadData, SourceNotFound
from penstock.readers.base import PICTURES
from penstock.readers.files import FolderFiles, stamp_of
from penstock.readers.index import Index
from penstock.readers.sa1b_json import Place
from penstock.readers.tar_scan import TarScan, compression_of
from penstock.source import Problem

_LAST_NUMBER = re.compile(r"(.*?)(\d+)")
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

    def settled(self, has_both: bool) -> "Folders":
        """With what was not said filled in: `img` and `js` where both are there, else side by side."""
        if self.images is None and self.annotations is None:
            return Folders(*_AUTOMATIC) if has_both else Folders("", "")
        return Folders((self.images or "").strip("/.") or "", (self.annotations or "").strip("/.") or "")


def folder_has_pairs(root: Path, folders: Folders, depth: int) -> tuple[bool, bool]:
    """Whether there are pictures and JSON files at the places to look at; not more than 200 folders are looked into."""
    found = settle(root, folders)
    places = {found.images, found.annotations}
    has_pictures = has_annotations = False
    looked = 0
    for place in sorted(places):
        for folder, _, names in walk(root, place, depth=depth):
            looked += 1
            pictures = any(name.lower().endswith(PICTURES) for name, _ in names)
            annotations = any(name.endswith(".json") for name, _ in names)
            if len(places) == 1 and pictures and annotations:
                return True, True
            has_pictures |= pictures and folder.startswith(found.images)
            has_annotations |= annotations and folder.startswith(found.annotations)
            if looked >= 200 or (len(places) > 1 and has_pictures and has_annotations):
                return has_pictures, has_annotations
    return has_pictures, has_annotations and (not has_pictures or len(places) > 1)


def settle(root: Path, folders: Folders) -> Folders:
    """The folders of a root on disk."""
    return folders.settled(all((root / name).is_dir() for name in _AUTOMATIC))


def walk(root: Path, start: str = "", *, depth: int = 64) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
    """Folders from `start` on, in order of path: relative name, stamp, and names of the pictures and JSON files directly
    in it, with the stamp of the JSON files (0 for pictures). Hidden names are left out; links are followed, loops not.

    Raises:
        BadData: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [(start, 0)]
    while waiting:
        folder, level = waiting.pop()
        names: list[tuple[str, int]] = []
        inside: list[str] = []
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if name.endswith(".json"):
                        names.append((name, stamp_of(entry.stat()) if entry.is_file() else 0))
                    elif name.lower().endswith(PICTURES):
                        names.append((name, 0))
                    elif level < depth and entry.is_dir():
                        inside.append(f"{folder}/{name}" if folder else name)
        except OSError as error:
            raise BadData(f"{root / folder}: expected a folder that can be listed: {error}") from error
        names.sort()
        yield folder, stamp_of(status), names
        waiting += ((name, level + 1) for name in sorted(inside, reverse=True))


def folder_stamps(root: Path, folders: Folders) -> Iterator[object]:
    """One for each folder: its own, and those of its JSON files together."""
    found = settle(root, folders)
    for place in sorted({found.images, found.annotations}):
        for folder, stamp, names in walk(root, place):
            yield folder, stamp, xxhash.xxh3_128_hexdigest(str(names).encode("utf-8", "surrogateescape"))


def list_folder(root: Path, folders: Folders) -> Listing:
    """Pictures and JSON files on disk."""
    found = settle(root, folders)
    names = [
        f"{folder}/{name}" if folder else name
        for place in sorted({found.images, found.annotations})
        for folder, _, inside in walk(root, place)
        for name, _ in inside
    ]
    base = str(root.absolute())
    listing = _pair(names, found, lambda path: (Place(f"{base}/{path}"), ()))
    return listing


def list_tars(root: Path, tars: Sequence[str], folders: Folders, problems: list[Problem]) -> Listing:
    """Members of TARs, whose headers are read once. What is wrong with one goes to the problems."""
    listing = Listing([], [])
    for tar in tars:
        path = root / tar if tar else root
        members = _members(path, tar, problems)
        starts = {name.partition("/")[0] for name in members if "/" in name}
        found = _pair(
            list(members), folders.settled(set(_AUTOMATIC) <= starts), lambda name: _in_tar(path, tar, name, members)  # noqa: B023
        )
        prefix = f"{tar}/" if tar else ""
        listing.lone_pictures.extend(prefix + name for name in found.lone_pictures)
        for entry in found.entries:
            spans = tuple((prefix + name, *members[name]) for name in (entry.annotation, entry.picture) if name in members)
            listing.entries.append(
                Entry(prefix + entry.annotation, prefix + entry.picture, entry.has_picture, entry.place, spans)
            )
    return listing
