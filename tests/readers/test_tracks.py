"""What readers of tracks share: boxes and numbers of text files, numbered pictures, names in an LMDB, split lists."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.readers.files import FolderFiles, LmdbFiles
from penstock.readers.track_files import (
    parse_boxes,
    parse_numbers,
    parse_pairs,
    picture_numbers,
    some,
    split_list,
)
from tests.readers.track_data import SHARED, write_lines, write_lmdb

BOX = st.tuples(*[st.floats(-1e5, 1e5).map(lambda number: round(number, 4))] * 4)


@given(st.lists(BOX, max_size=6), st.sampled_from([",", "\t", " ", ", "]), st.sampled_from(["", "\n", "\r\n", "\n\n"]))
def test_boxes_come_back_as_written(boxes: list[tuple[float, ...]], separator: str, end: str) -> None:
    text = "\n".join(separator.join(f"{number:.4f}" for number in box) for box in boxes) + end
    found, faulty = parse_boxes(text.encode())
    assert faulty == []
    np.testing.assert_array_equal(found, np.array(boxes).reshape(-1, 4))


def test_a_line_that_is_no_box_is_nan_and_named_and_shifts_nothing() -> None:
    found, faulty = parse_boxes(b"1,2,3,4\n\n5,6,7\n1,2,3,4,5\nx,1,2,3\n5,6,7,8\n")
    assert faulty == [2, 3, 4, 5]
    assert np.isnan(found[1:5]).all()
    assert found[[0, 5]].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_lines_that_only_add_up_to_boxes_are_no_boxes() -> None:
    assert parse_boxes(b"1,2,3\n4,5,6,7,8\n")[1] == [1, 2]


def test_a_byte_order_mark_and_nan_are_read() -> None:
    found, faulty = parse_boxes(b"\xef\xbb\xbf1,2,3,4\r\nNaN,NaN,NaN,NaN\r\n")
    assert faulty == []
    assert found[0].tolist() == [1, 2, 3, 4]
    assert np.isnan(found[1]).all()
    assert parse_boxes(b"")[0].shape == (0, 4)


def test_numbers_are_apart_by_commas_or_lines() -> None:
    assert parse_numbers(b"0,1, 1\n").tolist() == parse_numbers(b"0\n1\n1").tolist() == [0, 1, 1]
    with pytest.raises(BadData, match="could not convert"):
        parse_numbers(b"0,one")


def test_only_names_of_the_layout_are_pictures() -> None:
    names = ["00000010.jpg", "00000002.jpg", "3.jpg", "._00000001.jpg", "000000004.jpg", "00000005.png", "list.txt"]
    assert picture_numbers(names, 8).tolist() == [2, 10]
    assert picture_numbers(["10.jpg", "9.jpg", "0.jpg", "01.jpg", "-1.jpg"], 0).tolist() == [0, 9, 10]
    assert picture_numbers(["000000.JPEG", "000000.jpeg"], 6, ".JPEG").tolist() == [0]


def test_small_helpers() -> None:
    assert some(range(3)) == "0, 1, 2"
    assert some(range(9)) == "0, 1, 2, 3, 4, ... (9 in all)"
    assert parse_pairs(b"[METAINFO]\nurl: a:b\nanno_fps: 10Hz\n") == {"url": "a:b", "anno_fps": "10Hz"}


def test_names_in_an_lmdb_are_those_in_the_folder(tmp_path: Path) -> None:
    for name in ("a/x/1.txt", "a/x/2.txt", "a.txt", "a-1/y", "a0", "b/z"):
        write_lines(tmp_path / "tree" / name, [1])
    there, packed = FolderFiles(tmp_path / "tree"), LmdbFiles(write_lmdb(tmp_path / "lmdb", tmp_path / "tree"))
    for folder in ("", "a", "a/x", "a-1", "none"):
        assert packed.names(folder) == there.names(folder)


def test_the_split_lists_are_the_published_ones() -> None:
    lasot = split_list("lasot_train")
    assert len(lasot) == len(set(lasot)) == 1120
    train, val = (set(map(int, split_list(f"got10k_{name}"))) for name in ("vottrain", "votval"))
    assert (len(train), len(val), train & val) == (7086, 1249, set())
    assert (min(train | val), max(train | val)) == (0, 9333)
    splits = SHARED / "lasot_annotations" / "splits"
    if splits.is_dir():
        assert lasot == (splits / "lasot_train_split.txt").read_text().split()
