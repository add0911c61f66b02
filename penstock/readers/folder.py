"""`folder`: plain pictures, at any depth."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.errors import BadData
from penstock.geometry.images import decode_picture
from penstock.readers.base import PICTURES, Memo, Reader
from penstock.readers.fields import IMAGE, PATH
from penstock.readers.files import Files, stamp_of
from penstock.readers.index import Index
from penstock.schema import Record, Schema


class Folder(Reader):
    """JPEGs and PNGs of a folder and its subfolders, sorted by path. Groups are the folders; the key is the relative path.

    Links are followed, loops of links are not. Files with other suffixes, and hidden ones, are not looked at.

    Args:
        root: the folder.
        exif: "apply" turns pictures upright as viewers do; "ignore" gives them as stored; "decide" refuses turned ones.
    """

    name = "folder"
    layout = "pictures (.jpg, .jpeg, .png), in subfolders or not"
    row_columns = ("path",)
    schema = Schema([IMAGE, PATH])

    def __init__(self, root: Path | str, *, exif: Literal["apply", "ignore", "decide"] = "apply") -> None:
        self.exif = exif
        super().__init__(root, options={"exif": exif})

    def fault(self, files: Files) -> str:
        """Any folder is one."""
        return ""

    def _stamps(self) -> Iterable[object]:
        return [(folder, stamp) for folder, _, stamp in _walk(self.root)]

    def _build(self) -> Index:
        index, paths, starts, folders = Index(), [], [0], []
        for folder, names, _ in _walk(self.root):
            if names:
                paths += [os.path.join(folder, name) if folder else name for name in names]
                folders.append(folder or ".")
                starts.append(len(paths))
        index.put("starts", starts, "int64")
        index.put_texts("group", folders)
        index.put_texts("path", paths)
        return index

    def _key(self, row: int) -> str:
        return self.index.text("path", row)

    def _pictures(self, row: int) -> Sequence[str]:
        return [self.index.text("path", row)]

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        path = self.index.text("path", row)
        record: Record = {"path": path}
        if "image" in fields:
            record["image"] = self._image(path, memo)
        return record

    def _decode_pixels(self, content: bytes, expected_hw: tuple[int, int] | None) -> np.ndarray:
        return decode_picture(content, exif=self.exif)


def _walk(root: Path) -> Iterable[tuple[str, list[str], int]]:
    """Folders below the root in order of path: relative name, pictures directly in it (sorted), stamp.

    Raises:
        BadData: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise BadData(f"{root / folder}: expected a folder that can be listed: {error}") from error
        names = sorted(name for name, is_dir in listed if not is_dir and name.lower().endswith(PICTURES))
        yield folder, names, stamp_of(status)
        waiting += sorted((os.path.join(folder, name) for name, is_dir in listed if is_dir), reverse=True)
