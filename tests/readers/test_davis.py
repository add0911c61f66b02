"""The reader of frames with palette PNGs: DAVIS, MOSE, YouTube-VOS."""

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.boxes import mask_box
from penstock.geometry.id_pngs import write_binary_png, write_palette_png
from penstock.readers.base import Reader
from penstock.readers.davis import Davis
from penstock.readers.files import FolderFiles
from penstock.registry import open_source
from penstock.testing import ReaderTests, assert_equal_records, encode_picture

HEIGHT, WIDTH = 20, 28
VIDEOS = {"bear": 3, "dogs-jump": 4, "\u732b": 2}


def ids_at(frame: int, objects: int = 2) -> np.ndarray:
    """Two blocks that move; the second is not in frame 1; a void pixel."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in range(1, objects + 1):
        if (number, frame) != (2, 1):
            ids[2 + 7 * number - 7 : 7 + 7 * number - 7, frame : frame + 6] = number
    ids[-1, -1] = 255
    return ids


def write_video(
    root: Path, name: str, count: int, *, tail: str = "", step: int = 1, annotated: slice = slice(None)
) -> None:
    """Pictures and palette PNGs of one video."""
    pictures, masks = root / "JPEGImages" / tail / name, root / "Annotations" / tail / name
    pictures.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for frame in range(count):
        pixels = np.full((HEIGHT, WIDTH, 3), 10 + 20 * frame, np.uint8)
        (pictures / f"{frame * step:05d}.jpg").write_bytes(encode_picture(pixels))
    for frame in range(count)[annotated]:
        (masks / f"{frame * step:05d}.png").write_bytes(write_palette_png(ids_at(frame)))


def write_davis(root: Path) -> Path:
    """DAVIS: a folder for the resolution, lists in ImageSets/2017."""
    for name, count in VIDEOS.items():
        write_video(root, name, count, tail="480p")
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("bear\n\u732b\n", encoding="utf-8")
    (lists / "val.txt").write_text("dogs-jump\n")
    return root


def write_vos(root: Path) -> Path:
    """YouTube-VOS: train/JPEGImages, every fifth frame, meta.json."""
    write_video(root / "train", "003234408d", 3, step=5)
    write_video(root / "train", "0043f083b5", 2, step=5)
    objects = {"1": {"category": "penguin", "frames": ["00000"]}, "2": {"category": "giant_panda", "frames": ["00000"]}}
    meta = {"videos": {"003234408d": {"objects": objects}, "0043f083b5": {"objects": objects}}}
    (root / "train" / "meta.json").write_bytes(orjson.dumps(meta))
    return root


class TestFrames(ReaderTests):
    """The contract: a row is a frame."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_davis(tmp_path)

    def make_reader(self) -> Reader:
        """Three videos, nine frames."""
        return Davis(self.root)


class TestAllFrames(ReaderTests):
    """The contract: pictures without PNG are rows too."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = tmp_path
        write_video(tmp_path, "bear", 5, annotated=slice(1))
        write_video(tmp_path, "cat", 3, annotated=slice(0))

    def make_reader(self) -> Reader:
        """Two videos, eight frames, one PNG."""
        return Davis(self.root, frames="all")


class TestObjects(ReaderTests):
    """The contract: a row is an object in a frame."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_vos(tmp_path)

    def make_reader(self) -> Reader:
        """Two videos, four tracks, ten rows."""
        return Davis(self.root, split="train", rows="objects")


def test_ids_come_as_stored(tmp_path: Path) -> None:
    reader = Davis(write_davis(tmp_path))
    assert [group.name for group in reader.groups] == sorted(VIDEOS)
    assert list(reader.keys)[:4] == ["bear/00000", "bear/00001", "bear/00002", "dogs-jump/00000"]
    for row in range(len(reader)):
        record = reader[row]
        frame = int(record["frame"])
        np.testing.assert_array_equal(record["ids"], ids_at(frame))
        with Image.open(tmp_path / "Annotations/480p" / f"{reader.keys[row]}.png") as png:  # as the toolkits read it
            np.testing.assert_array_equal(record["ids"], np.array(png))
        assert abs(int(np.asarray(record["image"])[0, 0, 0]) - (10 + 20 * frame)) <= 2
        assert record["annotated"]
    assert reader.problems == []
    described = reader.describe()
    assert (described["videos"], described["frames"], described["frames_without_annotation"]) == (3, 9, 0)
    with pytest.raises(UsageError, match="rows='objects'"):
        reader.column("box")


def test_objects_have_boxes_and_visibility_without_pictures(tmp_path: Path) -> None:
    reader = Davis(write_vos(tmp_path), split="train", rows="objects")
    assert [group.name for group in reader.groups] == [
        "003234408d/1",
        "003234408d/2",
        "0043f083b5/1",
        "0043f083b5/2",
    ]
    assert list(reader.keys)[:3] == ["003234408d/1/00000", "003234408d/1/00005", "003234408d/1/00010"]
    for row in range(len(reader)):
        record = reader[row]
        mask = (ids_at(int(record["frame"])) == int(str(record["object"]))).astype(np.uint8)
        np.testing.assert_array_equal(record["mask"], mask)
        np.testing.assert_array_equal(record["box"], mask_box(mask))
        np.testing.assert_array_equal(reader.column("box")[row], record["box"])
        assert bool(record["visible"]) == bool(mask.any()) == (not record["absent"]) == reader.column("visible")[row]
        assert str(record["category"]) == ("penguin", "giant_panda")[int(str(record["object"])) - 1]
    assert reader.column("absent").sum() == 2
    assert reader.problems == []


def test_the_one_number_of_a_binary_video_is_its_object(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", 2)
    for frame in range(2):
        mask = (ids_at(frame) == 1).astype(np.uint8)
        (tmp_path / "Annotations/bear" / f"{frame:05d}.png").write_bytes(write_binary_png(mask))
    reader = Davis(tmp_path, rows="objects")
    assert [group.name for group in reader.groups] == ["bear/255"]
    np.testing.assert_array_equal(reader[0]["mask"], ids_at(0) == 1)
    assert set(np.unique(Davis(tmp_path)[0]["ids"])) == {0, 255}


def test_splits_resolutions_and_folders(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "DAVIS")
    assert [group.name for group in Davis(root, split="train").groups] == ["bear", "\u732b"]
    assert len(open_source(f"davis:{root}?split=val&rows=objects")) == 8
    write_video(root, "bear", 3, tail="Full-Resolution")
    assert len(Davis(root)) == 9
    assert len(Davis(root, resolution="Full-Resolution")) == 3
    shutil.copytree(root / "Annotations", root / "Annotations_unsupervised")
    assert "Annotations_unsupervised" in str(Davis(root, annotations="Annotations_unsupervised").describe()["masks"])
    for options, message in (
        ({"split": "test-dev"}, r"no list ImageSets/2017/test-dev\.txt"),
        ({"resolution": "720p"}, "no JPEGImages/720p"),
        ({"annotations": "Masks"}, "no Masks/480p"),
    ):
        with pytest.raises(SourceNotFound, match=message):
            Davis(root, **options)
    with pytest.raises(SourceNotFound, match=r"Did you mean .*DAVIS"):
        Davis(tmp_path)
    with pytest.raises(SourceNotFound, match=r"Did you mean .*DAVIS"):
        Davis(root / "JPEGImages" / "480p")
    with pytest.raises(SourceNotFound, match=r"say split=train.*Did you mean .*train"):
        Davis(write_vos(tmp_path / "VOS"))
    with pytest.raises(UsageError, match="only annotated frames"):
        Davis(root, rows="objects", frames="all")
    (root / "ImageSets/2017/train.txt").write_text("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n")
    with pytest.raises(BadData, match="expected names of videos"):
        Davis(root, split="train")


def test_frames_without_annotation_are_asked_for_and_say_so(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", 5, annotated=slice(1))
    first = Davis(tmp_path)
    assert (len(first), first.describe()["frames_without_annotation"], first.problems) == (1, 4, [])
    every = Davis(tmp_path, frames="all")
    assert [bool(every[row]["annotated"]) for row in range(5)] == [True, False, False, False, False]
    np.testing.assert_array_equal(every[1]["ids"], np.full((HEIGHT, WIDTH), -1))
    np.testing.assert_array_equal(every.read(2, ["ids"])["ids"], np.full((HEIGHT, WIDTH), -1))
    assert every.describe()["frames_without_annotation"] == 4


def test_counts_that_differ_are_recorded(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", 5)
    write_video(tmp_path, "cat", 3)
    write_video(tmp_path, "empty", 0)
    write_video(tmp_path, "none", 2, annotated=slice(0))
    (tmp_path / "Annotations/bear/00003.png").unlink()
    (tmp_path / "JPEGImages/cat/00002.jpg").unlink()
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/mine.txt").write_text("bear\ncat\nempty\nnone\nmissing\n")
    reader = Davis(tmp_path, split="mine")
    found = {problem.path: problem.message for problem in reader.problems}
    assert "1 of 5 pictures have no PNG: no rows of them" in found["Annotations/bear"]
    assert "1 of 3 PNGs have no picture" in found["Annotations/cat"]
    assert "a video of no frames" in found["JPEGImages/empty"]
    assert "a video of no frames" in found["JPEGImages/missing"]
    assert "no PNG for any of 2 pictures" in found["Annotations/none"]
    assert list(reader.keys) == ["bear/00000", "bear/00001", "bear/00002", "bear/00004", "cat/00000", "cat/00001"]
    assert [int(reader.read(row, ["frame"])["frame"]) for row in range(4)] == [0, 1, 2, 4]


@pytest.mark.parametrize("rows", ["frames", "objects"])
def test_bad_pngs_and_pictures_fail_their_rows_alone(tmp_path: Path, rows: str) -> None:
    write_video(tmp_path, "bear", 6)
    masks, pictures = tmp_path / "Annotations/bear", tmp_path / "JPEGImages/bear"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(masks / "00001.png")
    (masks / "00002.png").write_bytes((masks / "00002.png").read_bytes()[:80])
    (masks / "00003.png").write_bytes(write_palette_png(ids_at(3).T.copy()))
    (pictures / "00004.jpg").write_bytes(b"no picture")
    reader = Davis(tmp_path, rows=rows)  # type: ignore[arg-type]
    assert len(reader) == (6 if rows == "frames" else 12)
    field = "ids" if rows == "frames" else "mask"
    for row, message in ((1, r"00001\.png.*got RGB"), (2, r"00002\.png.*truncated"), (3, "is 28 x 20.*is 20 x 28")):
        with pytest.raises(BadData, match=message):
            reader[row]
    with pytest.raises(BadData, match=r"00004\.jpg"):
        reader[4]
    assert np.any(reader.read(4, [field])[field])
    assert np.any(reader[5][field])
    assert np.shape(reader.read(1, ["image"])["image"]) == (HEIGHT, WIDTH, 3)
    if rows == "objects":
        assert [problem.path for problem in reader.problems] == [
            "Annotations/bear/00001.png",
            "Annotations/bear/00002.png",
        ]
        with pytest.raises(BadData, match="got RGB"):
            reader.read(1, ["box"])
        with pytest.raises(BadData, match="got RGB"):
            reader.read(1, ["visible"])
        assert not reader.column("visible")[1]
        assert not reader.column("absent")[1]


def test_videos_without_objects_and_folders_in_a_loop(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", 2)
    write_video(tmp_path, "nothing", 1)
    (tmp_path / "Annotations/nothing/00000.png").write_bytes(write_palette_png(np.zeros((HEIGHT, WIDTH), np.uint8)))
    (tmp_path / "JPEGImages/round").symlink_to(tmp_path / "JPEGImages/round")
    reader = Davis(tmp_path, rows="objects")
    found = {problem.path: problem.message for problem in reader.problems}
    assert "no object in any PNG" in found["Annotations/nothing"]
    assert "expected a folder that can be listed" in found["JPEGImages/round"]
    assert len(reader) == 4


def test_a_broken_meta_json_is_refused(tmp_path: Path) -> None:
    write_vos(tmp_path)
    for content, message in ((b"{", "broken JSON"), (b'{"videos": {"a": 5}}', "another shape")):
        (tmp_path / "train/meta.json").write_bytes(content)
        with pytest.raises(BadData, match=rf"meta\.json: .*{message}"):
            Davis(tmp_path, split="train", rows="objects")
    assert len(Davis(tmp_path, split="train")) == 5


def test_the_index_is_kept_and_made_again_when_a_png_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vos(tmp_path)
    fresh = Davis(tmp_path, split="train", rows="objects")
    prints = [fresh.fingerprint(row) for row in range(len(fresh))]
    with monkeypatch.context() as patched:
        patched.setattr(Davis, "_build", lambda self: pytest.fail("the index was built again"))
        patched.setattr(FolderFiles, "read", lambda self, path: pytest.fail(f"{path} was read"))
        cached = Davis(tmp_path, split="train", rows="objects")
    for row in range(len(fresh)):
        assert_equal_records(cached[row], fresh[row])
        assert cached.fingerprint(row) == prints[row]
    ids = ids_at(0)
    ids[0, 10:20] = 1
    (tmp_path / "train/Annotations/003234408d/00000.png").write_bytes(write_palette_png(ids))
    changed = Davis(tmp_path, split="train", rows="objects")
    np.testing.assert_array_equal(changed.column("box")[0], mask_box(ids == 1))
    assert [row for row in range(10) if changed.fingerprint(row) != prints[row]] == [0, 3]  # both objects of the frame
    with pytest.raises(BadData, match="changed since the source was opened"):
        fresh.read(0, ["mask"])
