"""`folder`: plain pictures, at any depth."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.geometry.images import decode_picture
from penstock.readers.base import PICTURES, Memo, Reader
from penstock.readers.fields import IMAGE, PATH
from penstock.readers.files import Files, walk
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
        return [(folder, stamp) for folder, _, stamp in walk(self.root)]

    def _build(self) -> Index:
        index, paths, starts, folders = Index(), [], [0], []
        for folder, files, _ in walk(self.root):
            names = sorted(file.name for file in files if file.name.lower().endswith(PICTURES))
            if names:
                paths += [f"{folder}/{name}" if folder else name for name in names]
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
