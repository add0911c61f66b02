"""The reader of LaSOT, from folders and from an LMDB."""

from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers.base import Reader
from penstock.readers.lasot import Lasot, LasotLmdb
from penstock.registry import open_source
from penstock.testing import ReaderTests
from tests.readers.track_data import SHARED, gray, write_frames, write_lines, write_lmdb

BOXES = ["1,1,4,5", "2,3,4,5", "0,0,0,0", "10,20,400,500", "3.5,4,5,6"]
"""The third frame is absent with an empty box, the fourth with a full-size one that leaves the picture."""


def write_sequence(folder: Path, frames: int = 5) -> None:
    """A sequence as published."""
    write_frames(folder / "img", range(1, frames + 1))
    write_lines(folder / "groundtruth.txt", BOXES[:frames])
    write_lines(folder / "full_occlusion.txt", [",".join("00100"[:frames])])
    write_lines(folder / "out_of_view.txt", [",".join("00010"[:frames])])
    (folder / "nlp.txt").write_text("red cat on\n the roof")


def write_lasot(root: Path) -> Path:
    """Two classes; `cat-20` is not in the training list; one sequence has the benchmark's flags."""
    write_sequence(root / "cat" / "cat-20")
    write_sequence(root / "cat" / "cat-4", 2)
    folder = root / "zebra" / "zebra-4"
    write_frames(folder / "img", range(1, 4))
    write_lines(folder / "groundtruth.txt", ["5,6,7,8"] * 3)
    write_lines(folder / "absent.txt", [0, 1, 0])
    write_lines(folder / "attributes.txt", ["1,0,0,0,0,0,0,0,0,1,0,0,0,0"])
    write_lines(root / "sequences.txt", ["cat-4", "cat-20", "zebra-4"])
    return root


class TestLasot(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_lasot(tmp_path / "lasot")

    def make_reader(self) -> Reader:
        """Three sequences."""
        return Lasot(self.root)


class TestLasotLmdb(ReaderTests):
    """The contract, from an LMDB."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_lmdb(tmp_path / "lmdb", write_lasot(tmp_path / "lasot"))

    def make_reader(self) -> Reader:
        """Three sequences."""
        return LasotLmdb(self.root)


def test_frames_pair_with_lines_and_sequences_are_in_numeric_order(tmp_path: Path) -> None:
    source = Lasot(write_lasot(tmp_path))
    assert source.problems == []
    assert [group.name for group in source.groups] == ["cat-4", "cat-20", "zebra-4"]
    row = source[source.groups[1].start + 1]
    assert gray(row["image"]) == 2
    assert row["path"] == "cat/cat-20/img/00000002.jpg"
    assert (row["frame"], row["category"], row["video"]) == (1, "cat", "cat-20")
    assert row["sentence"] == "red cat on the roof"
    assert source.keys[3] == "cat-20/00000001"
    assert np.isnan(row["time"])


def test_the_flag_decides_and_not_the_box(tmp_path: Path) -> None:
    source = Lasot(write_lasot(tmp_path), sequences=("cat-20", "zebra-4"))
    assert source.column("visible").tolist() == [True, True, False, False, True, True, False, True]
    assert source.column("valid").tolist() == [True, True, False, True, True, True, True, True]
    assert source.column("absent").tolist() == [False, False, True, True, False, False, True, False]
    assert [bool(row["visible"]) for row in map(source.__getitem__, range(8))] == source.column("visible").tolist()
    assert (source[2]["occluded"], source[2]["out_of_view"]) == (True, False)
    assert (source[3]["occluded"], source[3]["out_of_view"]) == (False, True)
    assert source.describe()["sequences_by_attribute"]["FOC"] == 1


def test_the_corner_counts_from_0_unless_asked_otherwise(tmp_path: Path) -> None:
    root = write_lasot(tmp_path)
    zero, file = Lasot(root, sequences=("cat-20",)), Lasot(root, sequences=("cat-20",), corner="file")
    written = np.loadtxt(BOXES, delimiter=",", dtype=np.float32)  # as the toolkit reads it
    np.testing.assert_array_equal(file.column("box"), written)
    assert zero.column("box").tolist() == [[0, 0, 4, 5], [1, 2, 4, 5], [0, 0, 0, 0], [9, 19, 400, 500], [2.5, 3, 5, 6]]
    assert zero.fingerprint(0) != file.fingerprint(0)


def test_splits(tmp_path: Path) -> None:
    root = write_lasot(tmp_path)
    train, test = Lasot(root, split="train"), open_source(f"lasot:{root}?split=test")
    assert [group.name for group in train.groups] == ["cat-4", "zebra-4"]
    assert [group.name for group in test.groups] == ["cat-20"]
    assert "2 of 1120 sequences are here" in train.problems[0].message
    with pytest.raises(SourceNotFound, match="no sequence cat-21"):
        Lasot(root, sequences=("cat-21",))
    with pytest.raises(UsageError, match="split"):
        open_source(f"lasot:{root}?split=valid")


def test_sequences_directly_in_the_root(tmp_path: Path) -> None:
    write_sequence(tmp_path / "cat-10", 2)
    write_sequence(tmp_path / "cat-9", 2)
    source = Lasot(tmp_path)
    assert [group.name for group in source.groups] == ["cat-9", "cat-10"]
    assert source[0]["path"] == "cat-9/img/00000001.jpg"


def test_a_wrong_root_is_told_the_right_one(tmp_path: Path) -> None:
    root = write_lasot(tmp_path / "data" / "LaSOTBenchmark")
    for wrong in (tmp_path, root.parent, root / "cat" / "cat-20" / "img"):
        with pytest.raises(SourceNotFound, match="no CLASS/CLASS-N with"):
            Lasot(wrong)
    with pytest.raises(SourceNotFound, match=r"Did you mean .*LaSOTBenchmark"):
        Lasot(root.parent)
    with pytest.raises(SourceNotFound, match="no such folder"):
        Lasot(tmp_path / "none")


def test_counts_that_differ_lose_no_row(tmp_path: Path) -> None:
    root = write_lasot(tmp_path)
    write_lines(root / "cat" / "cat-4" / "groundtruth.txt", BOXES[:2] * 2)
    write_frames(root / "zebra" / "zebra-4" / "img", [5])
    source = Lasot(root)
    assert [group.stop - group.start for group in source.groups] == [4, 5, 4]
    with pytest.raises(BadData, match="4 lines of annotation and 2 pictures"):
        source[2]
    assert source.read(2, ["box"])["box"].tolist() == [0, 0, 4, 5]
    last = source[len(source) - 1]
    assert gray(last["image"]) == 5
    assert (last["frame"], last["valid"], last["visible"]) == (4, False, False)
    assert np.isnan(last["box"]).all()
    messages = {problem.path: problem.message for problem in source.problems}
    assert "no picture of number 3, 4" in messages["cat/cat-4/img"]
    assert "no line for picture 5" in messages["zebra/zebra-4/img"]
    assert "expected 4 numbers, one per frame, got 2" in messages["cat/cat-4/full_occlusion.txt"]


def test_files_that_are_missing_or_broken_are_problems(tmp_path: Path) -> None:
    root = write_lasot(tmp_path)
    (root / "cat" / "cat-20" / "groundtruth.txt").unlink()
    (root / "cat" / "cat-4" / "out_of_view.txt").unlink()
    write_lines(root / "cat" / "cat-4" / "full_occlusion.txt", ["0,yes"])
    write_lines(root / "cat" / "cat-4" / "groundtruth.txt", ["1,2,3,4", "1,2,nan,4"])
    write_lines(root / "zebra" / "zebra-4" / "groundtruth.txt", ["1,2,3,4", "oops", "1,2,3,4"])
    (root / "zebra" / "zebra-5").mkdir()
    source = Lasot(root)
    assert sorted(problem.path for problem in source.problems) == [
        "cat/cat-20/groundtruth.txt",
        "cat/cat-20/img",
        "cat/cat-4/full_occlusion.txt",
        "cat/cat-4/out_of_view.txt",
        "zebra/zebra-4/groundtruth.txt",
        "zebra/zebra-5",
    ]
    assert len(source) == 10
    assert source.column("valid")[2:7].tolist() == [False] * 5
    assert gray(source[2]["image"]) == 1
    with pytest.raises(BadData, match=r"cat-4/00000001: box .*expected four finite numbers"):
        source[1]
    absent = source.groups[2].start + 1
    assert not source[absent]["visible"]  # no box in the line, and the flag says that the target is not there
    assert np.isnan(source[absent]["box"]).all()


def test_pictures_of_other_names_are_named(tmp_path: Path) -> None:
    write_sequence(tmp_path / "cat-1", 2)
    write_frames(tmp_path / "cat-2" / "img", [0, 1], "{}.jpg")
    write_lines(tmp_path / "cat-2" / "groundtruth.txt", BOXES[:2])
    write_lines(tmp_path / "cat-2" / "absent.txt", [0, 0])
    assert "none named like 00000001.jpg, for instance 0.jpg" in Lasot(tmp_path).problems[0].message


def test_a_damaged_picture_fails_alone(tmp_path: Path) -> None:
    root = write_lasot(tmp_path)
    path = root / "cat" / "cat-4" / "img" / "00000001.jpg"
    path.write_bytes(path.read_bytes()[:50])
    source = Lasot(root)
    with pytest.raises(BadData, match=r"cat-4/img/00000001\.jpg"):
        source[0]
    assert gray(source[1]["image"]) == 2


def test_the_index_is_kept_and_rebuilt_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_lasot(tmp_path)
    fresh = Lasot(root)
    with monkeypatch.context() as patch:
        patch.setattr(Lasot, "_build", lambda self: pytest.fail("the index was there"))
        kept = Lasot(root)
    assert kept.index.columns.keys() == fresh.index.columns.keys()
    for name, column in fresh.index.columns.items():
        np.testing.assert_array_equal(column, kept.index.columns[name])
    write_lines(root / "cat" / "cat-4" / "groundtruth.txt", ["7,7,7,7", "8,8,8,8"])
    assert Lasot(root)[1]["box"].tolist() == [7, 7, 8, 8]
    write_lines(root / "cat" / "cat-4" / "absent.txt", [1, 0])
    assert Lasot(root)[0]["absent"]


def test_an_lmdb_holds_the_same_rows(tmp_path: Path) -> None:
    root = write_lasot(tmp_path / "lasot")
    on_disk, in_lmdb = Lasot(root), LasotLmdb(write_lmdb(tmp_path / "lmdb", root))
    assert list(on_disk.keys) == list(in_lmdb.keys)
    for name, column in on_disk.index.columns.items():
        np.testing.assert_array_equal(column, in_lmdb.index.columns[name])
    assert in_lmdb.problems == []
    with pytest.raises(SourceNotFound, match="expected an LMDB"):
        LasotLmdb(tmp_path / "none")


@pytest.mark.skipif(not (SHARED / "lasot").is_dir(), reason="needs shared/data")
def test_the_shared_sequences() -> None:
    source = Lasot(SHARED / "lasot")
    assert source.problems == []
    assert [(group.name, group.stop - group.start) for group in source.groups][-1] == ("roadcar-2", 40)
    assert len(source) == 230
    assert not source.column("visible")[-23:-15].any()
    assert source[0]["image"].ndim == 3


@pytest.mark.skipif(not (SHARED / "lasot_annotations").is_dir(), reason="needs shared/data")
def test_the_genuine_annotation() -> None:
    source = Lasot(SHARED / "lasot_annotations", corner="file")
    assert (len(source.groups), len(source)) == (14, 54804)
    assert len(source.problems) == 14  # one per sequence: it has no pictures
    for group in source.groups:
        folder = SHARED / "lasot_annotations" / group.name.rpartition("-")[0] / group.name
        rows = slice(group.start, group.stop)
        boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",", dtype=np.float32)
        absent = np.loadtxt(folder / "absent.txt") == 1
        np.testing.assert_array_equal(source.column("box")[rows], boxes)
        np.testing.assert_array_equal(source.column("absent")[rows], absent)
        np.testing.assert_array_equal(source.column("visible")[rows], ~absent & (boxes[:, 2:] > 0).all(axis=1))
    with pytest.raises(BadData, match="no such picture"):
        source[0]
