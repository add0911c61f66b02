"""`masklets`: pairs of frames with masks, one `masklet_data_*.npz` each."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.channel_order import ChannelOrder, channel_order
from penstock.readers.base import Memo, Reader
from penstock.readers.fields import IMAGE, MASK, PATH, VISIBLE
from penstock.readers.files import Files, walk
from penstock.readers.index import Index
from penstock.readers.npz import npz_names, read_npz_file
from penstock.schema import Field, Record, Schema

_NAME = re.compile(r"masklet_data_.*?(\d*)\.npz")
_VIEWS = (1, 2)
VIEW = Field(name="view", dtype="uint8", kind="number", meaning="1 or 2: which frame of the pair")


class Masklets(Reader):
    """Pairs of frames of one object: rows 2k and 2k + 1 are `frame1` with `mask1` and `frame2` with `mask2` of file k.

    A group is a file; the key is its path without suffix, and /1 or /2. The index holds names alone: of hundreds of
    thousands of files none is opened before a row of it is read, and then only the members asked for are.

    Frames are (H, W, 3) numbers of 0..255, floats rounded to the nearest; masks (H, W) of 0 and 1, or of 0 and 255: set is
    what lies above half of that. An empty mask is a row like others, with `visible` false. Source of the format: the
    files in use, whose frames are BGR.

    Args:
        root: the folder; files are found at any depth.
        channels: order of the colours in the files. `check_channels` looks whether it is right.
    """

    name = "masklets"
    layout = "masklet_data_*.npz with frame1, mask1, frame2, mask2, in subfolders or not"
    schema = Schema(
        [
            replace(IMAGE, meaning="RGB, 0..255, at its own size; floats are rounded to the nearest"),
            replace(MASK, meaning="0 or 1, of the image's size; set where the file has more than half of 1, or of 255"),
            VIEW,
            replace(VISIBLE, meaning="the mask has a pixel"),
            replace(PATH, meaning="file that the pair comes from, relative to the root"),
        ]
    )

    def __init__(self, root: Path | str, *, channels: Literal["bgr", "rgb"] = "bgr") -> None:
        if channels not in ("bgr", "rgb"):
            raise UsageError(f"channels={channels!r}: expected 'bgr' or 'rgb'")
        self.channels = channels
        super().__init__(root, options={"channels": channels})

    def fault(self, files: Files) -> str:
        """No file of that name, in the root or in the first folders of it."""
        for looked, (_, inside, _) in enumerate(walk(files.root)):
            if _numbered(inside):
                return ""
            if looked >= 200:
                break
        others = [name for name in files.names() if name.endswith(".npz")]
        return f"no masklet_data_*.npz{f', but {len(others)} other .npz ({others[0]})' if others else ''}"

    def check_channels(self, sample: int = 32) -> ChannelOrder:
        """Whether the order of the colours looks right, from the first frames of evenly spaced pairs.

        Files that cannot be read are passed over. "rgb" says that the setting `channels` fits, "bgr" that it is the
        other one, "unsure" that these pictures do not tell.

        Raises:
            UsageError: sample below 1.
        """
        if sample < 1:
            raise UsageError(f"sample={sample}: expected at least 1")
        count = len(self) // 2
        pictures = []
        for number in np.unique(np.linspace(0, count - 1, min(sample, count)).round().astype(int)).tolist():
            try:
                pictures.append(np.asarray(self.read(2 * number, ["image"])["image"]))
            except BadData:
                continue
        return channel_order(pictures)

    def describe(self) -> dict[str, object]:
        """Pairs and the channel order."""
        return {"pairs": len(self) // 2, "channels": self.channels}

    def _stamps(self) -> Iterable[object]:
        return [(folder, stamp) for folder, _, stamp in walk(self.root)]

    def _build(self) -> Index:
        index = Index()
        paths = [
            f"{folder}/{name}" if folder else name for folder, files, _ in walk(self.root) for name in _numbered(files)
        ]
        index.put("starts", 2 * np.arange(len(paths) + 1), "int64")
        index.put_texts("group", (path.removesuffix(".npz") for path in paths))
        return index

    def _key(self, row: int) -> str:
        return f"{self.index.text('group', row // 2)}/{row % 2 + 1}"

    def _pictures(self, row: int) -> Sequence[str]:
        return [f"{self.index.text('group', row // 2)}.npz"]

    def group_of(self, index: int) -> int:
        """Half of the row: a pair is two rows."""
        return range(len(self))[index] // 2

    def _record(self, row: int, fields: frozenset[str], memo: Memo) -> Record:
        path, view = self._pictures(row)[0], row % 2 + 1
        record: Record = {"path": path, "view": np.array(view, np.uint8)}
        if not fields & {"image", "mask", "visible"}:
            return record
        names = [f"frame{view}"] * ("image" in fields) + [f"mask{view}"] * bool(fields & {"mask", "visible"})
        try:
            arrays = _members(self.root / path, names)
            if "image" in fields:
                record["image"] = self._frame(arrays[f"frame{view}"])
            if fields & {"mask", "visible"}:
                record["mask"] = mask = _mask(arrays[f"mask{view}"])
                record["visible"] = np.asarray(mask.any())
                if "image" in fields and np.shape(record["image"])[:2] != mask.shape:
                    raise BadData(
                        f"frame{view} is {np.shape(record['image'])}, mask{view} {mask.shape}: expected one size"
                    )
        except BadData as error:
            raise BadData(f"{self.root / path}: {error}") from error
        return record

    def _frame(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB.

        Raises:
            BadData: another shape, values that are not finite or outside 0..255, or a range that looks like 0..1.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or not frame.size or frame.dtype.kind not in "uif":
            raise BadData(f"frame: expected (H, W, 3) numbers, got {frame.shape} of {frame.dtype}")
        if frame.dtype != np.uint8:
            low, high = float(frame.min()), float(frame.max())
            if not (low >= 0 and high <= 255):
                raise BadData(f"frame: expected finite values of 0..255, got {low:g}..{high:g}")
            whole = frame.astype(np.uint8)
            if not (whole == frame).all():
                if high <= 1:
                    raise BadData(f"frame: expected values of 0..255, got {low:g}..{high:g}: the range looks like 0..1")
                whole = np.rint(frame).astype(np.uint8)
            frame = whole
        self._count_picture()
        return np.ascontiguousarray(frame[..., ::-1] if self.channels == "bgr" else frame)


def _members(path: Path, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    arrays = read_npz_file(path, names)
    missing = [name for name in names if name not in arrays]
    if missing:
        found = npz_names(path.read_bytes())
        raise BadData(f"expected members {', '.join(names)}; there are {', '.join(found) or 'none'}")
    return arrays


def _mask(values: np.ndarray) -> np.ndarray:
    """(H, W) uint8, 0 or 1: above 0.5 where the largest value is at most 1, above 127.5 where it is more.

    Raises:
        BadData: another shape; values that are not finite or outside 0..255; a largest value between 1 and 127.5, which
            is neither a mask of 0 and 1 nor one of 0 and 255.
    """
    if values.ndim != 2 or not values.size or values.dtype.kind not in "buif":
        raise BadData(f"mask: expected (H, W) numbers or bool, got {values.shape} of {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and (high <= 1 or 127.5 < high <= 255)):
        raise BadData(f"mask: expected values of 0..1 or of 0..255, got {low:g}..{high:g}")
    return (values > (0.5 if high <= 1 else 127.5)).view(np.uint8)


def _numbered(files: Iterable[os.DirEntry[str]]) -> list[str]:
    """Names of the files that hold pairs, by number."""
    found = []
    for file in files:
        match = _NAME.fullmatch(file.name)
        if match:
            found.append((file.name[: match.start(1)], int(match[1] or -1), file.name))
    return [name for _, _, name in sorted(found)]
