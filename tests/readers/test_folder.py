"""The reader of plain pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.errors import BadData, SourceNotFound
from penstock.readers.base import Reader
from penstock.readers.folder import Folder
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture


def write_pictures(root: Path) -> Path:
    """Two folders with three pictures, one name outside ASCII."""
    for number, name in enumerate(("a/one.jpg", "a/Zw\u00f6lf.png", "b/deep/\u4e09.JPG")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8 + number, 12, 3), 40 * number, np.uint8)
        path.write_bytes(encode_picture(pixels, "png" if path.suffix == ".png" else "jpg"))
    (root / "b" / "notes.txt").write_text("not a picture")
    return root


class TestFolder(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_pictures(tmp_path / "pictures")

    def make_reader(self) -> Reader:
        """Three pictures."""
        return Folder(self.root)


def test_the_text_of_a_source_opens_it(tmp_path: Path) -> None:
    source = open_source(f"folder:{write_pictures(tmp_path)}?exif=ignore")
    assert list(source.keys) == ["a/Zw\u00f6lf.png", "a/one.jpg", "b/deep/\u4e09.JPG"]
    assert source[0]["image"].shape == (9, 12, 3)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="without rows"):
        Folder(tmp_path)


def test_a_turned_photo_comes_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert Folder(tmp_path)[0]["image"][0, 0, 0] == 255
    assert Folder(tmp_path, exif="ignore")[0]["image"][0, 0, 0] == 0
    with pytest.raises(BadData, match="orientation 3"):
        Folder(tmp_path, exif="decide")[0]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(Folder(tmp_path)) == 3


def test_a_new_picture_is_seen_and_a_damaged_one_fails_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    before = Folder(tmp_path)
    (tmp_path / "a" / "two.jpg").write_bytes((tmp_path / "a" / "one.jpg").read_bytes()[:100])
    after = Folder(tmp_path)
    assert (len(before), len(after)) == (3, 4)
    assert before.digest() != after.digest()
    with pytest.raises(BadData, match=r"two\.jpg"):
        after[2]
    assert after[3]["image"].shape == (10, 12, 3)


def test_a_rewritten_picture_changes_its_fingerprint_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    source = Folder(tmp_path)
    before = [source.fingerprint(row) for row in range(3)]
    os.utime(tmp_path / "a" / "one.jpg", (1, 1))
    after = [source.fingerprint(row) for row in range(3)]
    assert [left == right for left, right in zip(before, after, strict=True)] == [True, False, True]
