"""The reader of ImageNet VID, from folders and from an LMDB."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound
from penstock.readers.base import Reader
from penstock.readers.imagenet_vid import ImagenetVid, ImagenetVidLmdb
from penstock.readers.vid_xml import CLASSES, parse_frame
from penstock.testing import ReaderTests
from tests.readers.track_data import SIZE_HW, gray, write_frames, write_lmdb

Objects = dict[str, tuple[int, int, int, int]]
TRAIN = "train/ILSVRC2015_VID_train_0001/ILSVRC2015_train_00000007"
DOG = "n02084071"


def xml(objects: Objects, *, occluded: str = "0", wnid: str = DOG) -> str:
    """One frame as published: corners in the order xmax, xmin, ymax, ymin."""
    parts = [
        f"<object><trackid>{track}</trackid><name>{wnid}</name><bndbox><xmax>{right}</xmax><xmin>{left}</xmin>"
        f"<ymax>{bottom}</ymax><ymin>{top}</ymin></bndbox><occluded>{occluded}</occluded><generated>1</generated></object>"
        for track, (left, top, right, bottom) in objects.items()
    ]
    size = f"<size><width>{SIZE_HW[1]}</width><height>{SIZE_HW[0]}</height></size>"
    return f"<annotation><folder>f</folder><filename>0</filename>{size}{''.join(parts)}</annotation>"


def write_video(root: Path, folder: str, frames: list[str]) -> Path:
    """Pictures and one XML per frame."""
    write_frames(root / "Data" / "VID" / folder, range(len(frames)), "{:06d}.JPEG")
    annotations = root / "Annotations" / "VID" / folder
    annotations.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(frames):
        (annotations / f"{number:06d}.xml").write_text(content)
    return annotations


def write_vid(root: Path) -> Path:
    """A training video with targets 2 and 10 (which leaves for a frame), one of a class not known, a validation video."""
    two, ten = (1, 2, 11, 22), (5, 6, 8, 10)
    frames = [
        xml({"10": ten}),
        xml({"10": ten, "2": two}, occluded="1"),
        xml({"2": two}),
        xml({"2": two, "10": ten}),
        xml({}),
    ]
    write_video(root, TRAIN, frames)
    write_video(root, "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000", [xml({"0": two}, wnid="n1")] * 2)
    write_video(root, "val/ILSVRC2015_val_00000003", [xml({"0": ten})] * 3)
    return root


def cache_of(root: Path) -> list[dict[str, object]]:
    """The annotation list of the training videos as pytracking's reader defines it (the rule, written anew): a track from
    its first frame to the one before it is missing."""
    sequences: list[dict[str, object]] = []
    for video in sorted((root / "Annotations" / "VID" / "train").glob("*/*")):
        trees = [ElementTree.parse(path).getroot() for path in sorted(video.iterdir())]
        frames = [{each.findtext("trackid"): each for each in tree.findall("object")} for tree in trees]
        targets = {track: start for start, frame in reversed(list(enumerate(frames))) for track in frame}
        for track, start in sorted(targets.items(), key=lambda item: item[1]):
            stop = next((place for place in range(start, len(frames)) if track not in frames[place]), len(frames))
            objects = [frame[track] for frame in frames[start:stop]]
            corners = [
                [int(each.findtext(f"bndbox/{name}") or 0) for name in ("xmin", "ymin", "xmax", "ymax")]
                for each in objects
            ]
            sequences.append({
                "set_id": int(video.parent.name[-4:]), "vid_id": int(video.name[-8:]), "start_frame": start,
                "class_name": objects[0].findtext("name"), "image_size": [SIZE_HW[1], SIZE_HW[0]],
                "anno": [[left, top, right - left, bottom - top] for left, top, right, bottom in corners],
                "target_visible": [each.findtext("occluded") == "0" for each in objects],
            })  # fmt: skip
    return sequences


def pack(root: Path, to: Path) -> Path:
    """The training pictures and the annotation list as the trackers' LMDB."""
    (root / "cache.json").write_text(json.dumps(cache_of(root)))
    return write_lmdb(to, root)


class TestImagenetVid(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_vid(tmp_path / "vid")

    def make_reader(self) -> Reader:
        """Three tracks of two videos."""
        return ImagenetVid(self.root)


class TestImagenetVidLmdb(ReaderTests):
    """The contract, from an LMDB."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = pack(write_vid(tmp_path / "vid"), tmp_path / "lmdb")

    def make_reader(self) -> Reader:
        """Three tracks of two videos."""
        return ImagenetVidLmdb(self.root)


def test_a_track_goes_from_its_first_frame_to_its_last(tmp_path: Path) -> None:
    source = ImagenetVid(write_vid(tmp_path))
    assert source.problems == []
    assert [(group.name, group.stop - group.start) for group in source.groups] == [
        ("ILSVRC2015_train_00000000/0", 2), ("ILSVRC2015_train_00000007/2", 3), ("ILSVRC2015_train_00000007/10", 4),
    ]  # fmt: skip
    assert source.column("frame").tolist() == [0, 1, 1, 2, 3, 0, 1, 2, 3]
    assert source.column("valid").tolist() == [True] * 7 + [False, True]
    assert source.column("visible").tolist() == [True, True, False, True, True, True, False, False, True]
    row = source[2]
    assert row["box"].tolist() == [1, 2, 10, 20]
    assert (gray(row["image"]), row["category"], row["wnid"], row["object"]) == (1, "dog", DOG, "2")
    assert (row["occluded"], row["absent"], row["generated"]) == (True, False, True)
    assert row["path"] == f"Data/VID/{TRAIN}/000001.JPEG"
    assert np.isnan(source[7]["box"]).all()
    assert (source[0]["category"], source[0]["wnid"]) == ("n1", "n1")


def test_val_has_no_sets(tmp_path: Path) -> None:
    source = ImagenetVid(write_vid(tmp_path), split="val")
    assert (source.groups[0].name, len(source)) == ("ILSVRC2015_val_00000003/0", 3)
    assert gray(source[2]["image"]) == 2


def test_a_cache_of_other_programs_is_neither_read_nor_written(tmp_path: Path) -> None:
    root = write_vid(tmp_path)
    ImagenetVid(root)
    assert not (root / "cache.json").exists()
    (root / "cache.json").write_text("[]")
    assert len(ImagenetVid(root)) == 9
    assert (root / "cache.json").read_text() == "[]"


def test_a_broken_xml_costs_the_rows_of_its_frame(tmp_path: Path) -> None:
    root = write_vid(tmp_path)
    (root / "Annotations" / "VID" / TRAIN / "000002.xml").write_text("<annotation><object>")
    source = ImagenetVid(root)
    assert len(source) == 9
    for row in (3, 7):
        with pytest.raises(BadData, match="expected four finite numbers"):
            source[row]
    assert "000002.xml: broken XML" in source.problems[0].message


@pytest.mark.parametrize("content", ['<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "<!ENTITY x>", "\0"])
def test_entities_are_refused(content: str) -> None:
    with pytest.raises(BadData):
        parse_frame(content.encode())
    with pytest.raises(BadData, match="UTF-8"):
        parse_frame(content.encode("utf-16"))


def test_objects_that_are_wrong(tmp_path: Path) -> None:
    root = write_vid(tmp_path)
    good = xml({"2": (1, 2, 11, 22)})
    folder = root / "Annotations" / "VID" / TRAIN
    (folder / "000001.xml").write_text(good.replace("<xmin>1</xmin>", "<xmin>one</xmin>"))
    (folder / "000002.xml").write_text(good.replace("<trackid>2</trackid>", ""))
    (folder / "000003.xml").write_text(xml({"2": (1, 2, 3, 4)}, wnid="n02402425").replace("</annotation>", good[12:]))
    (folder / "000004.xml").write_text(xml({"10": (9, 9, 1, 1)}))
    source = ImagenetVid(root)
    with pytest.raises(BadData, match="expected four finite numbers"):
        source[2]
    message = source.problems[0].message
    assert "expected four numbers in bndbox" in message
    assert "object without a trackid" in message
    assert "trackid 2 twice: the first is taken" in message
    assert "has classes n02084071, n02402425" in message
    assert source.column("valid").tolist()[-1] is False  # corners the wrong way round: no positive size


def test_pictures_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    root = write_vid(tmp_path)
    (root / "Data" / "VID" / TRAIN / "000003.JPEG").unlink()
    path = root / "Annotations" / "VID" / "train" / "ILSVRC2015_VID_train_0000" / "ILSVRC2015_train_00000000"
    for file in path.iterdir():
        file.write_text(file.read_text().replace("<height>24", "<height>25"))
    source = ImagenetVid(root)
    assert "4 pictures, 5 frames of annotation; no picture of 3" in source.problems[0].message
    with pytest.raises(BadData, match="5 frames of annotation and 4 pictures"):
        source[4]
    with pytest.raises(BadData, match="the annotation says 25 x 32"):
        source[0]
    for folder in sorted((root / "Data").rglob("*"), reverse=True):
        folder.unlink() if folder.is_file() else folder.rmdir()
    assert [problem.path for problem in ImagenetVid(root).problems] == ["Data/VID/train"]


def test_a_wrong_root_is_told_the_right_one(tmp_path: Path) -> None:
    root = write_vid(tmp_path / "data" / "ILSVRC2015")
    for wrong in (root.parent, root / "Annotations"):
        with pytest.raises(SourceNotFound, match=r"no Annotations/VID/train.* Did you mean .*ILSVRC2015"):
            ImagenetVid(wrong)


def test_the_index_opens_without_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_vid(tmp_path)
    ImagenetVid(root)
    with monkeypatch.context() as patch:
        patch.setattr(ImagenetVid, "_build", lambda self: pytest.fail("the index was there"))
        ImagenetVid(root)
    write_video(root, TRAIN, [xml({"2": (1, 2, 3, 4)})] * 7)
    assert len(ImagenetVid(root)) == 9


def test_an_lmdb_gives_the_tracks_up_to_their_first_gap(tmp_path: Path) -> None:
    root = write_vid(tmp_path / "vid")
    on_disk, in_lmdb = ImagenetVid(root), ImagenetVidLmdb(pack(root, tmp_path / "lmdb"))
    assert in_lmdb.problems == []
    assert [(group.name, group.stop - group.start) for group in in_lmdb.groups] == [
        ("ILSVRC2015_train_00000000/0", 2), ("ILSVRC2015_train_00000007/0", 2), ("ILSVRC2015_train_00000007/1", 3),
    ]  # fmt: skip
    same = [0, 1, 5, 6, 2, 3, 4]  # rows of the folder; the LMDB's tracks are in order of their first frames
    for name in ("box", "frame", "visible", "occluded"):
        np.testing.assert_array_equal(in_lmdb.column(name), on_disk.column(name)[same])
    np.testing.assert_array_equal(in_lmdb[3]["image"], on_disk[6]["image"])
    assert (in_lmdb[3]["category"], in_lmdb[3]["wnid"]) == ("dog", DOG)


def test_faults_of_an_lmdb(tmp_path: Path) -> None:
    root = write_vid(tmp_path / "vid")
    entries = cache_of(root)
    entries[0]["class_name"] = "red_panda"  # pytracking writes names, its heirs WordNet ids
    entries[1]["anno"] = [[1, 2, 3]]
    entries[2]["start_frame"] = 4
    (root / "cache.json").write_text(json.dumps([*entries, {"set_id": 1}, 5]))
    source = ImagenetVidLmdb(write_lmdb(tmp_path / "lmdb", root))
    assert (source[0]["category"], source[0]["wnid"]) == ("red_panda", "n02509815")
    assert [problem.path for problem in source.problems] == [
        "cache.json[1]", f"Data/VID/{TRAIN}", "cache.json[3]", "cache.json[4]",
    ]  # fmt: skip
    with pytest.raises(BadData, match="no such picture"):
        source[4]
    (root / "cache.json").write_text("{")
    with pytest.raises(BadData, match="broken JSON"):
        ImagenetVidLmdb(write_lmdb(tmp_path / "broken", root))
    with pytest.raises(SourceNotFound, match=r"no key cache\.json"):
        ImagenetVidLmdb(write_lmdb(tmp_path / "empty", root / "Data"))


def test_there_are_30_classes() -> None:
    assert len(CLASSES) == len(set(CLASSES.values())) == 30
