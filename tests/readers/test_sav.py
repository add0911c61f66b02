"""The reader of SA-V, in both layouts."""

import os
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.boxes import mask_box
from penstock.geometry.id_pngs import write_binary_png
from penstock.geometry.rle import encode_rle
from penstock.readers.base import Reader
from penstock.readers.files import FolderFiles
from penstock.readers.sav import Sav
from penstock.readers.sav_json import ParsedFiles
from penstock.registry import open_source
from penstock.testing import ReaderTests, assert_equal_records, encode_picture
from tests.readers.test_video import HEIGHT, WIDTH, X264, Kind, number_of, picture, write_video

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "sav"
FRAMES = 18
ANNOTATED = 5
"""ceil(18 / 4)."""


def mask_at(frame: int, target: int) -> np.ndarray:
    """A square that moves with the video; the second object is hidden in frame 8."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if (frame, target) != (8, 1):
        mask[4 + target * 20 : 14 + target * 20, frame : frame + 9] = 1
    return mask


def annotation(objects: int = 2, **changes: object) -> dict[str, object]:
    """A JSON with the keys and the kinds of numbers of the genuine ones."""
    return {
        "video_id": "sav_000001",
        "video_duration": FRAMES / 24,
        "video_frame_count": float(FRAMES),
        "video_height": float(HEIGHT),
        "video_width": float(WIDTH),
        "video_split": "train",
        "masklet": [[encode_rle(mask_at(4 * k, o)) for o in range(objects)] for k in range(ANNOTATED)],
        "masklet_id": list(range(objects)),
        "masklet_first_appeared_frame": [0.0] * objects,
        "masklet_frame_count": [ANNOTATED] * objects,
        "masklet_stability_score": [None] * objects,
        "masklet_num": ANNOTATED,  # a look-alike's mistake: the number of frames
        **changes,
    }


def write_json(path: Path, parsed: object) -> Path:
    """One annotation file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(parsed))
    return path


def write_train(root: Path) -> Path:
    """Two videos in two folders; the first with both annotations, the second with one object made by hand."""
    first, second = root / "sav_train" / "sav_000", root / "sav_train" / "sav_001"
    for folder, video in ((first, "sav_000001"), (second, "sav_001002")):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"{video}.mp4").exists():
            write_video(folder / f"{video}.mp4", Kind("b.mp4", options=X264, rate=24, frames=FRAMES))
    write_json(first / "sav_000001_manual.json", annotation(2))
    write_json(first / "sav_000001_auto.json", annotation(1))
    write_json(second / "sav_001002_manual.json", annotation(1))
    return root


def write_val(root: Path) -> Path:
    """Two videos; every fourth frame has a PNG per object, 0 and 255 or 0 and 1."""
    part = root / "sav_val"
    for video, targets in (("sav_010001", 2), ("sav_010002", 1)):
        for frame in range(FRAMES):
            path = part / "JPEGImages_24fps" / video / f"{frame:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_picture(picture(frame)))
        for target in range(targets):
            for frame in range(0, FRAMES, 4):
                path = part / "Annotations_6fps" / video / f"{target:03d}" / f"{frame:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(write_binary_png(mask_at(frame, target)))
    (part / "sav_val.txt").write_text("sav_010001\nsav_010002\n")
    return root


class TestTrain(ReaderTests):
    """The contract, over MP4 and JSON."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_train(tmp_path)

    def make_reader(self) -> Reader:
        """Two videos, four masklets."""
        return Sav(self.root)

    def test_masklets_share_their_frames(self) -> None:
        """A batch over two masklets decodes each frame once."""
        reader = self.make_reader()
        reader.__getitems__([*range(10), 3])
        assert reader.pictures_decoded == ANNOTATED


class TestVal(ReaderTests):
    """The contract, over frames and PNGs."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_val(tmp_path)

    def make_reader(self) -> Reader:
        """Two videos, three masklets."""
        return Sav(self.root)


def test_annotation_k_is_frame_4k_of_the_video(tmp_path: Path) -> None:
    reader = Sav(write_train(tmp_path))
    assert [group.name for group in reader.groups] == [
        "sav_000001/manual/0",
        "sav_000001/manual/1",
        "sav_000001/auto/0",
        "sav_001002/manual/0",
    ]
    for row in range(len(reader)):
        record = reader[row]
        frame, target = int(record["frame"]), int(str(record["object"]))
        assert frame == row % ANNOTATED * 4
        assert number_of(np.asarray(record["image"])) == frame
        assert float(record["time"]) == frame / 24
        np.testing.assert_array_equal(record["mask"], mask_at(frame, target))
        np.testing.assert_array_equal(record["box"], mask_box(mask_at(frame, target)))
        assert float(record["area"]) == mask_at(frame, target).sum()
    assert reader.keys[7] == "sav_000001/manual/1/00000008"


@pytest.mark.parametrize("layout", ["train", "val", "val index"])
def test_a_hidden_object_is_absent_and_its_mask_empty(tmp_path: Path, layout: str) -> None:
    boxes = "index" if layout.endswith("index") else "read"
    root = write_train(tmp_path) if layout == "train" else write_val(tmp_path)
    reader = Sav(root, boxes=boxes)
    record = reader[7]
    assert (bool(record["valid"]), bool(record["visible"]), bool(record["absent"])) == (False, False, True)
    assert not np.any(record["box"])
    assert not np.any(record["mask"])
    assert reader.problems == []
    assert_equal_records(reader.read(7, ["box", "visible"]), {name: record[name] for name in ("box", "visible")})


def test_boxes_and_visibility_are_columns(tmp_path: Path) -> None:
    train = Sav(write_train(tmp_path))
    val = Sav(write_val(tmp_path), split="val", boxes="index")
    for reader in (train, val):
        for name in ("box", "visible", "absent", "area"):
            np.testing.assert_array_equal(
                reader.column(name), [reader.read(row, [name])[name] for row in range(len(reader))]
            )
        assert reader.describe()["absent_rows"] == 1
        assert reader.pictures_decoded == 0
    lazy = Sav(tmp_path, split="val")
    with pytest.raises(UsageError, match="boxes='index'"):
        lazy.column("box")
    assert lazy.describe()["absent_rows"] is None


def test_options_choose_part_annotation_and_videos(tmp_path: Path) -> None:
    write_train(tmp_path)
    write_val(tmp_path)
    assert len(Sav(tmp_path, annotations="manual")) == 15
    assert len(Sav(tmp_path, annotations="auto")) == 5
    assert len(Sav(tmp_path, videos=("sav_001002",))) == 5
    assert len(open_source(f"sav:{tmp_path}?split=val&videos=sav_010002")) == 5
    assert len(Sav(tmp_path / "sav_val")) == len(Sav(tmp_path, split="val")) == 15
    assert len(Sav(tmp_path / "sav_train")) == 20
    assert len(Sav(tmp_path / "sav_train" / "sav_001")) == 5
    with pytest.raises(UsageError, match="sav_999999"):
        Sav(tmp_path, videos=("sav_001002", "sav_999999"))
    with pytest.raises(SourceNotFound, match="sav_test"):
        Sav(tmp_path, split="test")


def test_a_wrong_root_is_corrected(tmp_path: Path) -> None:
    write_val(tmp_path / "SA-V")
    with pytest.raises(SourceNotFound, match=r"Did you mean .*SA-V"):
        Sav(tmp_path)
    with pytest.raises(SourceNotFound, match=r"Did you mean .*sav_val"):
        Sav(tmp_path / "SA-V" / "sav_val" / "Annotations_6fps")


@pytest.mark.parametrize(("count", "frames"), [(FRAMES - 2, ANNOTATED), (FRAMES, ANNOTATED - 1), (FRAMES, FRAMES)])
def test_counts_that_do_not_fit_fail_their_rows_alone(tmp_path: Path, count: int, frames: int) -> None:
    write_train(tmp_path)
    masklet = [[encode_rle(mask_at(0, 0))]] * frames
    path = tmp_path / "sav_train/sav_001/sav_001002_manual.json"
    write_json(path, annotation(1, masklet=masklet, video_frame_count=float(count)))
    reader = Sav(tmp_path)
    assert [problem.path for problem in reader.problems] == ["sav_train/sav_001/sav_001002_manual.json"]
    assert "do not fit" in reader.problems[0].message
    assert len(reader) == 15 + frames
    with pytest.raises(BadData, match=r"sav_001002_manual\.json.*do not fit.*expected one for every 4th frame"):
        reader.read(15, ["image"])
    assert reader.column("visible").tolist() == [row != 7 for row in range(15)] + [False] * frames
    assert reader.read(0, ["visible"])["visible"]


def test_faults_of_single_files_and_masks(tmp_path: Path) -> None:
    write_train(tmp_path)
    folder = tmp_path / "sav_train" / "sav_001"
    masklet = annotation(2)["masklet"]
    assert isinstance(masklet, list)
    masklet[1][0] = {"size": [HEIGHT, WIDTH + 1], "counts": masklet[1][0]["counts"]}
    masklet[2] = masklet[2][:1]
    masklet[3][1] = None
    write_json(folder / "sav_001002_manual.json", annotation(2, masklet=masklet, masklet_id=[7, 9]))
    (folder / "sav_001003_manual.json").write_bytes(b'{"masklet": [')
    write_json(folder / "sav_001004_manual.json", annotation(masklet=[]))
    write_json(folder / "sav_001005_manual.json", annotation(1, masklet_id=[0, 1]))
    (folder / "sav_001006.mp4").write_bytes(b"")
    reader = Sav(tmp_path, videos=("sav_001002", "sav_001005"))
    whole = Sav(tmp_path)
    found = {problem.path.rpartition("/")[2]: problem.message for problem in whole.problems}
    assert "1 masks are missing" in found["sav_001002_manual.json"]
    assert "broken JSON" in found["sav_001003_manual.json"]
    assert "its rows are not there" in found["sav_001003_manual.json"]
    assert "no annotated frame" in found["sav_001004_manual.json"]
    assert "names 2 objects, the lists hold 1" in found["sav_001005_manual.json"]
    assert "no _manual.json" in found["sav_001006.mp4"]
    assert [reader.groups[number].name for number in (0, 1)] == ["sav_001002/manual/7", "sav_001002/manual/9"]
    for row, message in ((1, "48 x 65"), (7, "got a shorter list"), (8, "got NoneType")):
        for name in ("box", "mask", "visible"):
            with pytest.raises(BadData, match=rf"sav_001002_manual\.json: masklet.*{message}"):
                reader.read(row, [name])
        assert not reader.column("visible")[row]
        assert number_of(np.asarray(reader.read(row, ["image"])["image"])) == row % ANNOTATED * 4
    assert np.any(reader.read(0, ["mask"])["mask"])


def test_rows_of_videos_that_are_not_there_are_counted_and_said(tmp_path: Path) -> None:
    """Their masks can be read; once the video is there, so can the pictures, and the source is another one."""
    write_train(tmp_path)
    path = tmp_path / "sav_train/sav_000/sav_000001.mp4"
    whole = Sav(tmp_path)
    assert (whole.problems, whole.describe()["rows_without_video"]) == ([], 0)
    path.rename(tmp_path / "elsewhere")
    partly = Sav(tmp_path)
    assert (len(partly), partly.describe()["rows_without_video"]) == (len(whole), 3 * ANNOTATED)
    (problem,) = partly.problems
    assert (problem.path, problem.error) == ("sav_train/sav_000", "SourceNotFound")
    assert problem.message.startswith("no MP4 of sav_000001: their rows")
    assert partly.digest() != whole.digest()
    assert np.any(partly.read(0, ["mask"])["mask"])
    with pytest.raises(BadData, match=r"sav_000001\.mp4.*no such file"):
        partly.read(0, ["image"])
    (tmp_path / "elsewhere").rename(path)
    assert number_of(np.asarray(partly.read(1, ["image"])["image"])) == 4
    assert Sav(tmp_path).digest() == whole.digest()


def test_the_video_is_named_where_it_does_not_fit(tmp_path: Path) -> None:
    write_train(tmp_path)
    first, second = tmp_path / "sav_train/sav_000/sav_000001.mp4", tmp_path / "sav_train/sav_001/sav_001002.mp4"
    first.unlink()
    write_video(second, Kind("b.mp4", options=X264, rate=24, frames=14))
    reader = Sav(tmp_path)
    with pytest.raises(BadData, match=r"sav_000001\.mp4.*no such file"):
        reader.read(0, ["image"])
    assert np.any(reader.read(0, ["mask"])["mask"])
    assert number_of(np.asarray(reader[18]["image"])) == 12
    with pytest.raises(BadData, match=r"sav_001002\.mp4.*frame 16.*14 frames"):
        reader[19]
    turned = annotation(1, video_height=float(WIDTH), video_width=float(HEIGHT))
    turned["masklet"] = [[encode_rle(mask_at(0, 0).T)]] * ANNOTATED
    write_json(second.with_name("sav_001002_manual.json"), turned)
    with pytest.raises(BadData, match=r"sav_001002\.mp4.*says 64 x 48.*is 48 x 64"):
        Sav(tmp_path)[15]


def test_val_faults_are_recorded_and_fail_alone(tmp_path: Path) -> None:
    part = write_val(tmp_path) / "sav_val"
    masks, pictures = part / "Annotations_6fps" / "sav_010001", part / "JPEGImages_24fps" / "sav_010001"
    (masks / "000" / "00004.png").write_bytes((masks / "000" / "00000.png").read_bytes()[:60])
    (masks / "000" / "00008.png").write_bytes(write_binary_png(np.ones((8, 8), np.uint8)))
    (pictures / "00012.jpg").unlink()
    (masks / "001" / "notes.txt").write_text("no mask")
    (masks / "002").mkdir()
    (part / "sav_val.txt").write_text("sav_010001\nsav_010002\nsav_010003\n")
    for boxes in ("read", "index"):
        reader = Sav(tmp_path, boxes=boxes)  # type: ignore[arg-type]
        messages = " | ".join(f"{problem.path}: {problem.message}" for problem in reader.problems)
        assert "sav_010003 is listed" in messages
        assert "001: expected masks 00000.png, 00004.png, ...: 1 of 6" in messages
        assert "002: expected masks" in messages
        assert "000: 1 of 5 masks have no picture" in messages
        assert ("00004.png" in messages.replace("00000.png, 00004.png", "")) == (boxes == "index")
        assert len(reader) == 15
        with pytest.raises(BadData, match=r"00004\.png"):
            reader.read(1, ["box"])
        with pytest.raises(BadData, match=r"is 48 x 64.*00008\.png is 8 x 8"):
            reader[2]
        with pytest.raises(BadData, match=r"00012\.jpg"):
            reader[3]
        assert np.any(reader[4]["mask"])


def test_the_index_is_kept_and_made_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_train(tmp_path)
    fresh = Sav(tmp_path)
    prints = [fresh.fingerprint(row) for row in range(len(fresh))]
    with monkeypatch.context() as patched:
        patched.setattr(Sav, "_build", lambda self: pytest.fail("the index was built again"))
        cached = Sav(tmp_path)
    assert cached.digest() == fresh.digest()
    assert [cached.fingerprint(row) for row in range(len(cached))] == prints
    masklet = annotation(1)["masklet"]
    assert isinstance(masklet, list)
    masklet[2][0] = encode_rle(mask_at(9, 0))
    write_json(tmp_path / "sav_train/sav_001/sav_001002_manual.json", annotation(1, masklet=masklet))
    changed = Sav(tmp_path)
    assert changed.digest() != fresh.digest()
    different = [row for row in range(len(changed)) if changed.fingerprint(row) != prints[row]]
    assert different == [17]
    with pytest.raises(BadData, match="changed since the source was opened"):
        fresh.read(17, ["mask"])


def test_names_outside_ascii_and_a_loop_of_links(tmp_path: Path) -> None:
    root = tmp_path / "D\u00e4ten \u4e09"
    write_json(root / "sav_train/sav_000/sav_\u4e8c_manual.json", annotation(1))
    (root / "sav_train/sav_000/sav_loop").symlink_to(root)
    reader = Sav(root)
    assert reader.keys[0] == "sav_\u4e8c/manual/0/00000000"
    assert np.any(reader.read(0, ["mask"])["mask"])


def test_a_video_in_two_folders_is_read_once(tmp_path: Path) -> None:
    write_json(tmp_path / "sav_train/sav_000/sav_000001_manual.json", annotation(1))
    write_json(tmp_path / "sav_train/sav_001/sav_000001_manual.json", annotation(1))
    reader = Sav(tmp_path)
    assert len(reader) == ANNOTATED
    assert "there twice" in reader.problems[0].message


def test_parsed_files_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    paths = [write_json(tmp_path / f"{number}.json", annotation(1)).name for number in range(3)]
    files, size = FolderFiles(tmp_path), os.path.getsize(tmp_path / paths[0])
    kept = ParsedFiles(2 * size)
    first = [kept.entries(files, path) for path in paths]
    assert kept.entries(files, paths[2]) is first[2]
    assert kept.entries(files, paths[0]) is not first[0]


def test_uncompressed_rle_is_read_too(tmp_path: Path) -> None:
    masklet = [[encode_rle(mask_at(4 * k, 0), compressed=False)] for k in range(ANNOTATED)]
    write_json(tmp_path / "sav_train/sav_000/sav_000001_manual.json", annotation(1, masklet=masklet))
    reader = Sav(tmp_path)
    np.testing.assert_array_equal(reader.read(3, ["mask"])["mask"], mask_at(12, 0))


def test_tens_of_thousands_of_files_open_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rle = encode_rle(np.ones((2, 2), np.uint8))
    content = orjson.dumps(annotation(1, masklet=[[rle]], video_frame_count=3, video_height=2, video_width=2))
    for shard in range(20):
        folder = tmp_path / "sav_train" / f"sav_{shard:03d}"
        folder.mkdir(parents=True)
        for number in range(500):
            (folder / f"sav_{shard:03d}{number:03d}_manual.json").write_bytes(content)
    assert len(Sav(tmp_path)) == 10_000
    monkeypatch.setattr(Sav, "_build", lambda self: pytest.fail("the index was built again"))
    monkeypatch.setattr(FolderFiles, "read", lambda self, path: pytest.fail(f"{path} was read"))
    assert len(Sav(tmp_path)) == 10_000


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_the_genuine_annotation_and_the_derived_videos() -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    reader = Sav(SHARED)
    assert (len(reader), len(reader.groups)) == (14 * 121 + 10, 15)
    assert [problem.message.partition(":")[0] for problem in reader.problems] == ["no MP4 of sav_000001"]
    for kind, start in (("manual", 0), ("auto", 5 * 121)):
        parsed = orjson.loads((SHARED / f"sav_train/sav_000/sav_000001_{kind}.json").read_bytes())["masklet"]
        rles = [rle for target in range(len(parsed[0])) for rle in (objects[target] for objects in parsed)]
        rows = slice(start, start + len(rles))
        areas = np.array([mask_api.area(rle) for rle in rles])
        np.testing.assert_array_equal(reader.column("area")[rows], areas)
        np.testing.assert_array_equal(reader.column("box")[rows][areas > 0], mask_api.toBbox(rles)[areas > 0])
        np.testing.assert_array_equal(reader.column("visible")[rows], areas > 0)
        row = start + 300
        np.testing.assert_array_equal(reader.read(row, ["mask"])["mask"], mask_api.decode(rles[300]))
    with pytest.raises(BadData, match=r"sav_000001\.mp4"):
        reader[0]
    last = reader[-1]
    assert (int(last["frame"]), np.shape(last["image"]), np.shape(last["mask"])) == (36, (288, 192, 3), (288, 192))
    hidden = [
        int(reader.read(row, ["frame"])["frame"]) for row in range(1694, 1704) if not reader.column("visible")[row]
    ]
    assert hidden == [20, 24]
    val = Sav(SHARED, split="val", boxes="index")
    assert (len(val), val.problems, val.keys[1]) == (15, [], "sav_900002/000/00000004")
    assert np.shape(val[1]["image"])[:2] == np.shape(val[1]["mask"])
    for row in (0, 7):
        with Image.open(SHARED / "sav_val/Annotations_6fps" / f"sav_900002/000/{4 * row:05d}.png") as png:
            np.testing.assert_array_equal(val[row]["mask"], np.array(png) > 0)
