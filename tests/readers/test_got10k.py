"""The reader of GOT-10k, from folders and from an LMDB."""

from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound
from penstock.readers.base import Reader
from penstock.readers.got10k import Got10k, Got10kLmdb
from penstock.registry import open_source
from penstock.testing import ReaderTests
from tests.readers.track_data import SHARED, gray, write_frames, write_lines, write_lmdb

BOXES = [f"{i}.2500,2.0000,3.0000,4.5000" for i in range(4)]


def write_sequence(folder: Path, frames: int = 4) -> None:
    """A sequence as published: absent in its second frame, without cover in its third."""
    write_frames(folder, range(1, frames + 1))
    write_lines(folder / "groundtruth.txt", BOXES[:frames])
    write_lines(folder / "absence.label", [0, 1, 0, 0][:frames])
    write_lines(folder / "cover.label", [8, 5, 0, 3][:frames])
    write_lines(folder / "cut_by_image.label", [0, 0, 0, 1][:frames])
    about = ["[METAINFO]", "url: https://a/b", "begin: 00:00:01", "end: 00:00:11", "anno_fps: 10Hz"]
    write_lines(folder / "meta_info.ini", [*about, "object_class: giant panda", "motion_class: walking"])


def write_got10k(root: Path) -> Path:
    """train, val and test as published; list.txt is not in the order of the names."""
    for name, frames in (("GOT-10k_Train_000002", 4), ("GOT-10k_Train_000001", 2)):
        write_sequence(root / "train" / name, frames)
    write_lines(root / "train" / "list.txt", ["GOT-10k_Train_000002", "GOT-10k_Train_000001"])
    write_sequence(root / "val" / "GOT-10k_Val_000001", 3)
    write_lines(root / "val" / "list.txt", ["GOT-10k_Val_000001"])
    write_frames(root / "test" / "GOT-10k_Test_000001", range(1, 4))
    write_lines(root / "test" / "GOT-10k_Test_000001" / "groundtruth.txt", BOXES[:1])
    write_lines(root / "test" / "list.txt", ["GOT-10k_Test_000001"])
    return root


class TestGot10k(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_got10k(tmp_path / "got10k")

    def make_reader(self) -> Reader:
        """All parts."""
        return Got10k(self.root)


class TestGot10kLmdb(ReaderTests):
    """The contract, from an LMDB."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        root = write_got10k(tmp_path / "got10k")
        self.root = write_lmdb(tmp_path / "lmdb", root / "train", "train/")

    def make_reader(self) -> Reader:
        """The training part."""
        return Got10kLmdb(self.root)


def test_boxes_and_flags_as_written(tmp_path: Path) -> None:
    source = Got10k(write_got10k(tmp_path) / "train")
    assert source.problems == []
    assert [group.name for group in source.groups] == ["GOT-10k_Train_000002", "GOT-10k_Train_000001"]
    np.testing.assert_array_equal(source.column("box")[:4], np.loadtxt(BOXES, delimiter=",", dtype=np.float32))
    assert source.column("visible")[:4].tolist() == [True, False, False, True]
    assert source.column("absent")[:4].tolist() == [False, True, False, False]
    assert source.column("cover")[:4].tolist() == [8, 5, 0, 3]
    row = source[3]
    assert gray(row["image"]) == 4
    assert (row["cut_by_image"], row["cover"], row["category"], row["motion_class"]) == (
        True,
        3,
        "giant panda",
        "walking",
    )
    assert row["time"] == pytest.approx(0.3)
    assert not source[2]["visible"]
    assert row["path"] == "GOT-10k_Train_000002/00000004.jpg"


def test_a_root_above_the_parts(tmp_path: Path) -> None:
    root = write_got10k(tmp_path)
    assert [group.name for group in Got10k(root).groups] == [
        "GOT-10k_Train_000002", "GOT-10k_Train_000001", "GOT-10k_Val_000001", "GOT-10k_Test_000001",
    ]  # fmt: skip
    val = open_source(f"got10k:{root}?split=val")
    assert val[0]["path"] == "val/GOT-10k_Val_000001/00000001.jpg"
    assert list(Got10k(root / "val", split="val").keys) == list(val.keys)
    with pytest.raises(SourceNotFound, match=r"split=train, but list.txt names GOT-10k_Val_000001"):
        Got10k(root / "val", split="train")
    with pytest.raises(SourceNotFound, match="Did you mean"):
        Got10k(root / "val" / "GOT-10k_Val_000001")


def test_the_test_part_has_the_first_box_only(tmp_path: Path) -> None:
    source = Got10k(write_got10k(tmp_path), split="test")
    assert source.problems == []
    assert source.column("valid").tolist() == [True, False, False]
    assert np.isnan(source[2]["box"]).all()
    assert gray(source[2]["image"]) == 3
    assert (source[0]["visible"], source[0]["cover"], source[2]["visible"]) == (True, 255, False)
    assert source.describe()["rows_without_annotation"] == 2


def test_the_lists_of_vot_want_the_whole_list(tmp_path: Path) -> None:
    root = write_got10k(tmp_path)
    with pytest.raises(
        SourceNotFound, match=r"7086 positions .*has 2 sequences, 1 of them of that split: .*partial=true"
    ):
        Got10k(root, split="vottrain")
    partial = open_source(f"got10k:{root}?split=vottrain&partial=true")
    assert [group.name for group in partial.groups] == ["GOT-10k_Train_000001"]  # place 0, whatever it is in this copy
    assert [group.name for group in Got10k(root, split="votval", partial=True).groups] == ["GOT-10k_Train_000002"]


def test_the_lists_of_vot_are_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_got10k(tmp_path)
    monkeypatch.setattr("penstock.readers.got10k.split_list", lambda name: {"got10k_votval": ["1"]}[name])
    assert [group.name for group in Got10k(root, split="votval").groups] == ["GOT-10k_Train_000001"]


def test_counts_and_files_that_are_missing(tmp_path: Path) -> None:
    root = write_got10k(tmp_path) / "train"
    folder = root / "GOT-10k_Train_000002"
    (folder / "00000002.jpg").unlink()
    (folder / "cover.label").unlink()
    (folder / "meta_info.ini").unlink()
    write_lines(root / "GOT-10k_Train_000001" / "absence.label", [0])
    write_lines(root / "GOT-10k_Train_000001" / "cover.label", [9, 8])
    write_lines(root / "list.txt", ["GOT-10k_Train_000002", "GOT-10k_Train_000001", "GOT-10k_Train_000007"])
    source = Got10k(root)
    assert sorted(Path(problem.path).name for problem in source.problems) == [
        "GOT-10k_Train_000002", "GOT-10k_Train_000007", "absence.label", "cover.label", "cover.label", "meta_info.ini",
    ]  # fmt: skip
    with pytest.raises(BadData, match="4 lines of annotation and 3 pictures"):
        source[1]
    assert gray(source[2]["image"]) == 3
    assert source.column("cover").tolist() == [255] * 5 + [8]
    assert source.column("visible")[:4].tolist() == [True, False, True, True]
    assert (source[0]["category"], np.isnan(source[0]["time"])) == ("", True)


def test_a_list_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    root = write_got10k(tmp_path)
    write_lines(root / "train" / "list.txt", ["../val/GOT-10k_Val_000001"])
    with pytest.raises(BadData, match="expected names of folders"):
        Got10k(root / "train")


def test_the_index_follows_the_labels(tmp_path: Path) -> None:
    root = write_got10k(tmp_path) / "train"
    assert Got10k(root)[0]["visible"]
    write_lines(root / "GOT-10k_Train_000002" / "absence.label", [1, 1, 1, 1])
    assert not Got10k(root)[0]["visible"]


def test_an_lmdb_holds_the_same_rows(tmp_path: Path) -> None:
    root = write_got10k(tmp_path / "got10k")
    on_disk, in_lmdb = Got10k(root, split="train"), Got10kLmdb(write_lmdb(tmp_path / "lmdb", root))
    assert [group.name for group in in_lmdb.groups] == [group.name for group in Got10k(root).groups]
    in_lmdb = Got10kLmdb(tmp_path / "lmdb", split="train")
    assert list(on_disk.keys) == list(in_lmdb.keys)
    for name, column in on_disk.index.columns.items():
        np.testing.assert_array_equal(column, in_lmdb.index.columns[name])


@pytest.mark.skipif(not (SHARED / "got10k").is_dir(), reason="needs shared/data")
def test_the_shared_sequences() -> None:
    source = Got10k(SHARED / "got10k", split="train")
    assert source.problems == []
    assert (len(source.groups), len(source)) == (2, 100)
    folder = SHARED / "got10k" / "train" / "GOT-10k_Train_900001"
    count = source.groups[0].stop
    boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",", dtype=np.float32)  # as the got10k toolkit reads it
    np.testing.assert_array_equal(source.column("box")[:count], boxes)
    absent, cover = np.loadtxt(folder / "absence.label"), np.loadtxt(folder / "cover.label")
    visible = (absent == 0) & (cover > 0) & (boxes[:, 2:] > 0).all(axis=1)
    np.testing.assert_array_equal(source.column("visible")[:count], visible)
    assert source[0]["category"] == "car"
