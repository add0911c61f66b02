"""The reader of TrackingNet, from folders and from LMDBs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers.base import Reader
from penstock.readers.trackingnet import TrackingNet, TrackingNetLmdb
from penstock.registry import open_source
from penstock.testing import ReaderTests
from tests.readers.track_data import gray, write_frames, write_lines, write_lmdb


def write_trackingnet(root: Path) -> Path:
    """Three training sets, the last with a number of two digits, and the test set."""
    for place, (folder, video, frames) in enumerate(
        (("TRAIN_0", "-a_0", 3), ("TRAIN_0", "Zb_1", 12), ("TRAIN_2", "c", 2), ("TRAIN_10", "d", 2))
    ):
        write_frames(root / folder / "frames" / video, range(frames), "{}.jpg")
        lines = [f"{number}.0,{place}.0,10.0,5.5" for number in range(frames)]
        write_lines(root / folder / "anno" / f"{video}.txt", lines)
    write_lines(root / "TRAIN_2" / "anno" / "c.txt", ["1,2,3,4", "0,0,0,0"])
    write_frames(root / "TEST" / "frames" / "t", range(3), "{}.jpg")
    write_frames(root / "TEST" / "frames" / "u", range(1), "{}.jpg")
    write_lines(root / "TEST" / "anno" / "t.txt", ["1,2,3,4"])
    write_lines(root / "TEST" / "anno" / "u.txt", ["1,2,3,4"])
    return root


def pack(root: Path, to: Path) -> Path:
    """The training sets as the trackers' LMDBs."""
    to.mkdir()
    listed = []
    for number in (0, 2, 10):
        write_lmdb(to / f"TRAIN_{number}_lmdb", root / f"TRAIN_{number}")
        listed += [[number, path.stem] for path in sorted((root / f"TRAIN_{number}" / "anno").iterdir())]
    (to / "seq_list.json").write_text(json.dumps(listed))
    return to


class TestTrackingNet(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_trackingnet(tmp_path / "trackingnet")

    def make_reader(self) -> Reader:
        """Four videos."""
        return TrackingNet(self.root)


class TestTrackingNetLmdb(ReaderTests):
    """The contract, from LMDBs."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = pack(write_trackingnet(tmp_path / "trackingnet"), tmp_path / "lmdb")

    def make_reader(self) -> Reader:
        """Four videos."""
        return TrackingNetLmdb(self.root)


def test_frames_count_from_0_in_numeric_order(tmp_path: Path) -> None:
    source = TrackingNet(write_trackingnet(tmp_path))
    assert source.problems == []
    assert [group.name for group in source.groups] == ["TRAIN_0/-a_0", "TRAIN_0/Zb_1", "TRAIN_2/c", "TRAIN_10/d"]
    row = source[source.groups[1].start + 10]
    assert (gray(row["image"]), row["frame"], row["path"]) == (10, 10, "TRAIN_0/frames/Zb_1/10.jpg")
    assert row["box"].tolist() == [10, 1, 10, 5.5]
    assert (row["video"], row["category"], row["visible"]) == ("Zb_1", "", True)
    assert source.column("visible")[15:17].tolist() == [True, False]  # as valid: there are no flags


def test_sets_by_number(tmp_path: Path) -> None:
    root = write_trackingnet(tmp_path)
    source = open_source(f"trackingnet:{root}?sets=10,0")
    assert [group.name for group in source.groups] == ["TRAIN_0/-a_0", "TRAIN_0/Zb_1", "TRAIN_10/d"]
    assert list(TrackingNet(root, sets=(0, 10)).keys) == list(source.keys)
    with pytest.raises(SourceNotFound, match="no TRAIN_3; there are sets 0, 2, 10"):
        TrackingNet(root, sets=(3,))
    for wrong in ({"sets": ("one",)}, {"sets": (0,), "split": "test"}):
        with pytest.raises(UsageError, match="expected numbers of training sets"):
            TrackingNet(root, **wrong)


def test_the_test_set_has_the_first_box_only(tmp_path: Path) -> None:
    source = TrackingNet(write_trackingnet(tmp_path), split="test")
    assert source.problems == []
    assert source.column("valid").tolist() == [True, False, False, True]
    assert np.isnan(source[1]["box"]).all()


def test_classes_from_a_file(tmp_path: Path) -> None:
    root = write_trackingnet(tmp_path)
    write_lines(root / "classes.txt", ["c\tcat", "-a_0\tplane"])
    source = TrackingNet(root, classes="classes.txt")
    assert [source[group.start]["category"] for group in source.groups] == ["plane", "", "cat", ""]
    assert TrackingNet(root, classes=str(root / "classes.txt"))[0]["category"] == "plane"
    write_lines(root / "classes.txt", ["c cat"])
    with pytest.raises(BadData, match="line 1: expected a video, a tab and its class"):
        TrackingNet(root, classes="classes.txt")
    with pytest.raises(SourceNotFound, match=r"none\.txt"):
        TrackingNet(root, classes="none.txt")


def test_a_wrong_root_is_told_the_right_one(tmp_path: Path) -> None:
    root = write_trackingnet(tmp_path / "data" / "trackingnet")
    for wrong in (root.parent, root / "TRAIN_0"):
        with pytest.raises(SourceNotFound, match=r"no TRAIN_0, TRAIN_1, .* Did you mean .*data/trackingnet"):
            TrackingNet(wrong)


def test_counts_that_differ_lose_no_row(tmp_path: Path) -> None:
    root = write_trackingnet(tmp_path)
    (root / "TRAIN_0" / "frames" / "-a_0" / "1.jpg").unlink()
    (root / "TRAIN_0" / "anno" / "Zb_1.txt").unlink()
    write_lines(root / "TRAIN_2" / "anno" / "e.txt", ["1,2,3,4"])
    write_frames(root / "TRAIN_10" / "frames" / "d", [7], "{}.jpg")
    source = TrackingNet(root)
    assert {problem.path for problem in source.problems} == {
        "TRAIN_0/frames/-a_0", "TRAIN_0/anno/Zb_1.txt", "TRAIN_0/frames/Zb_1", "TRAIN_2/frames/e", "TRAIN_10/frames/d",
    }  # fmt: skip
    assert len(source) == 3 + 12 + 2 + 1 + 3
    with pytest.raises(BadData, match="3 lines of annotation and 2 pictures"):
        source[1]
    assert not source.column("valid")[3:15].any()
    assert gray(source[len(source) - 1]["image"]) == 7
    assert source.keys[len(source) - 1] == "TRAIN_10/d/00000007"


def test_the_index_opens_without_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_trackingnet(tmp_path)
    TrackingNet(root)
    with monkeypatch.context() as patch:
        patch.setattr(TrackingNet, "_build", lambda self: pytest.fail("the index was there"))
        TrackingNet(root)
    os.utime(root / "TRAIN_10" / "anno" / "d.txt", (1, 1))
    write_lines(root / "TRAIN_10" / "anno" / "d.txt", ["9,9,9,9", "9,9,9,9"])
    assert TrackingNet(root)[17]["box"].tolist() == [9, 9, 9, 9]


def test_lmdbs_hold_the_same_rows(tmp_path: Path) -> None:
    root = write_trackingnet(tmp_path / "trackingnet")
    on_disk, in_lmdb = TrackingNet(root), TrackingNetLmdb(pack(root, tmp_path / "lmdb"))
    assert list(on_disk.keys) == list(in_lmdb.keys)
    for name, column in on_disk.index.columns.items():
        np.testing.assert_array_equal(column, in_lmdb.index.columns[name])
    assert in_lmdb.problems == []


def test_faults_of_lmdbs(tmp_path: Path) -> None:
    root = pack(write_trackingnet(tmp_path / "trackingnet"), tmp_path / "lmdb")
    (root / "seq_list.json").write_text('[[0, "-a_0"], [0, "gone"], [5, "x"]]')
    source = TrackingNetLmdb(root)
    assert len(source) == 3
    assert {problem.path for problem in source.problems} == {
        "TRAIN_5_lmdb", "TRAIN_0/anno/gone.txt", "TRAIN_0/frames/gone",
    }  # fmt: skip
    (root / "seq_list.json").write_text('["TRAIN_0"]')
    with pytest.raises(BadData, match="expected pairs of set number and video"):
        TrackingNetLmdb(root)
    (root / "seq_list.json").unlink()
    with pytest.raises(SourceNotFound, match=r"no seq_list\.json"):
        TrackingNetLmdb(root)
