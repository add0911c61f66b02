"""Makers that the tests of tracking readers share: numbered pictures, text files, a tree as an LMDB."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from penstock.testing import encode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIZE_HW = (24, 32)


def write_frames(folder: Path, numbers: Iterable[int], pattern: str = "{:08d}.jpg") -> None:
    """Pictures of one gray each, 8 times their number, so that a frame that is off by one is seen."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.full((*SIZE_HW, 3), 8 * number % 256, np.uint8)
        (folder / pattern.format(number)).write_bytes(encode_picture(pixels))


def gray(image: np.ndarray) -> int:
    """The number of the picture that `write_frames` wrote, from its pixels."""
    return round(float(image.mean()) / 8)


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """A text file, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def write_lmdb(path: Path, root: Path, prefix: str = "") -> Path:
    """All files of a folder under their relative paths."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                transaction.put(f"{prefix}{file.relative_to(root).as_posix()}".encode(), file.read_bytes())
    return path
