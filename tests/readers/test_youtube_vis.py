"""The reader of COCO-video JSON."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from penstock.errors import BadData, SourceNotFound
from penstock.geometry.boxes import mask_box
from penstock.geometry.rle import encode_rle
from penstock.readers.base import Reader
from penstock.readers.files import FolderFiles
from penstock.readers.youtube_vis import YoutubeVis
from penstock.registry import open_source
from penstock.testing import ReaderTests, assert_equal_records, encode_picture

HEIGHT, WIDTH = 24, 32
VIDEOS = {7: ("0043f083b5", 4), 12: ("b\u00e4r", 3)}


def mask_at(number: int, frame: int) -> np.ndarray:
    """A block that moves, so that a wrong frame is seen."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2 + number : 8 + number, 3 * frame : 3 * frame + 5] = 1
    return mask


def annotation(number: int, video: int, absent: tuple[int, ...] = (), **changes: object) -> dict[str, object]:
    """One annotation over all frames of its video, null where absent."""
    masks = [None if frame in absent else mask_at(number, frame) for frame in range(VIDEOS[video][1])]
    return {
        "id": number,
        "video_id": video,
        "category_id": 1 + number % 2,
        "iscrowd": 0,
        "height": HEIGHT,
        "width": WIDTH,
        "length": 1,
        "segmentations": [None if mask is None else encode_rle(mask, compressed=number != 2) for mask in masks],
        "bboxes": [None if mask is None else mask_box(mask).tolist() for mask in masks],
        "areas": [None if mask is None else int(mask.sum()) for mask in masks],
        **changes,
    }


def file_of() -> dict[str, object]:
    """Two videos; the second listed first; three annotations; compressed and uncompressed RLE, and polygons."""
    polygons = [[[3.0 * frame, 5, 3 * frame + 5, 5, 3 * frame + 5, 11, 3 * frame, 11]] for frame in range(3)]
    return {
        "info": {},
        "videos": [
            {
                "id": video,
                "width": WIDTH,
                "height": HEIGHT,
                "length": frames,
                "file_names": [f"{name}/{5 * frame:05d}.jpg" for frame in range(frames)],
            }
            for video, (name, frames) in reversed(VIDEOS.items())
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "giant_panda"}],
        "annotations": [
            annotation(3, 12, segmentations=polygons),
            annotation(2, 7, iscrowd=1),
            annotation(1, 7, absent=(1,)),
        ],
    }


def write_vis(
    root: Path,
    *,
    json: str = "train/instances.json",
    images: str = "train/JPEGImages",
    change: Callable[[dict], None] | None = None,
) -> Path:
    """Annotation and pictures; `change` spoils the annotation first."""
    parsed = file_of()
    if change is not None:
        change(parsed)
    for name, frames in VIDEOS.values():
        for frame in range(frames):
            path = root / images / name / f"{5 * frame:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_picture(np.full((HEIGHT, WIDTH, 3), 10 + 20 * frame, np.uint8)))
    (root / json).parent.mkdir(parents=True, exist_ok=True)
    (root / json).write_bytes(orjson.dumps(parsed))
    return root


class TestYoutubeVis(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_vis(tmp_path)

    def make_reader(self) -> Reader:
        """Two videos, three tracks, eleven rows."""
        return YoutubeVis(self.root)


def test_rows_are_frames_of_annotations_in_order_of_their_ids(tmp_path: Path) -> None:
    reader = YoutubeVis(write_vis(tmp_path))
    assert [group.name for group in reader.groups] == ["0043f083b5/1", "0043f083b5/2", "b\u00e4r/3"]
    assert reader.problems == []
    for row in range(len(reader)):
        record, number, frame = reader[row], int(reader[row]["annotation_id"]), int(reader[row]["frame"])
        assert abs(int(np.asarray(record["image"])[0, 0, 0]) - (10 + 20 * frame)) <= 2
        assert str(record["path"]).endswith(f"/{5 * frame:05d}.jpg")
        expected = np.zeros((HEIGHT, WIDTH)) if row == 1 else mask_at(number, frame)
        np.testing.assert_array_equal(record["mask"], expected)
        np.testing.assert_array_equal(record["box"], mask_box(expected))
        assert float(record["area"]) == expected.sum()
        assert bool(record["visible"]) == bool(record["valid"]) == (not record["absent"]) == (row != 1)
        assert bool(record["iscrowd"]) == (number == 2)
        assert str(record["category"]) == ("person", "giant_panda")[number % 2]
    np.testing.assert_array_equal(reader.column("visible"), [row != 1 for row in range(11)])
    assert reader.keys[1] == "0043f083b5/1/00000001"
    assert reader.describe()["crowd_tracks"] == 1


@pytest.mark.parametrize(
    ("json", "images", "options"),
    [
        ("train/instances.json", "train/JPEGImages", {}),
        ("train.json", "train/JPEGImages", {}),
        ("annotations_train.json", "train", {}),
        ("annotations/instances_train.json", "JPEGImages", {}),
        ("annotations/instances_train_sub.json", "train/JPEGImages", {}),
        ("instances.json", "JPEGImages", {"split": ""}),
        ("valid/instances.json", "valid/JPEGImages", {"split": "valid"}),
        ("my.json", "my pictures", {"annotations": "my.json", "images": "my pictures"}),
    ],
)
def test_the_names_in_use_are_found(tmp_path: Path, json: str, images: str, options: dict[str, str]) -> None:
    reader = YoutubeVis(write_vis(tmp_path, json=json, images=images), **options)
    assert np.shape(reader[0]["image"]) == (HEIGHT, WIDTH, 3)
    assert reader.problems == []


def test_a_wrong_root_is_corrected_and_a_text_opens_it(tmp_path: Path) -> None:
    write_vis(tmp_path / "vis")
    with pytest.raises(SourceNotFound, match=r"no train/instances\.json.*Did you mean .*vis"):
        YoutubeVis(tmp_path)
    with pytest.raises(SourceNotFound, match=r"Did you mean .*vis"):
        YoutubeVis(tmp_path / "vis" / "train" / "JPEGImages")
    assert len(open_source(f"youtube-vis:{tmp_path / 'vis'}?split=train")) == 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "broken JSON"),
        (b"[]", "expected a JSON dict"),
        (orjson.dumps({"images": [], "annotations": [], "categories": []}), "coco-instances"),
        (orjson.dumps({"videos": [], "categories": [], "annotations": None}), "have no annotation"),
        (orjson.dumps({"videos": [], "categories": []}), "`annotations`"),
        (orjson.dumps({"videos": [], "categories": [], "annotations": []}), "no annotation with a frame"),
    ],
)
def test_a_broken_central_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_vis(tmp_path)
    (tmp_path / "train/instances.json").write_bytes(content)
    with pytest.raises(BadData, match=rf"instances\.json: .*{message}"):
        YoutubeVis(tmp_path)


def test_faults_of_annotations_fail_their_rows_alone(tmp_path: Path) -> None:
    def spoil(parsed: dict) -> None:
        videos, annotations = parsed["videos"], parsed["annotations"]
        videos[0]["length"] = 9
        videos += [{"id": 20, "width": 1, "height": 1, "file_names": []}, {"id": 21, "file_names": ["x/0.jpg"]}]
        annotations[1]["segmentations"].pop()
        annotations[2]["category_id"] = 99
        annotations += [
            annotation(4, 7, video_id=50),
            annotation(3, 7),
            annotation(5, 7, video_id=20),
            annotation(6, 7, video_id=21, segmentations=[None], bboxes=[[0, 0, 1, 1]], areas=[1]),
            annotation(8, 12, bboxes=None),
        ]

    reader = YoutubeVis(write_vis(tmp_path, change=spoil))
    messages = " | ".join(problem.message for problem in reader.problems)
    for expected in (
        "`length` is 9, there are 3 file_names",
        "video 20: no `file_names`",
        "annotation 2: `segmentations`: expected one entry for each of the 4 frames of its video, got 3; its 4 rows fail",
        "video_id 50: no video with this id",
        "annotation id 3, video_id 12: expected a number that is there once",
        "annotation 6: video 21: expected a positive height and width, got None and None",
        "annotation 8: `bboxes`: expected one entry for each of the 3 frames of its video, got NoneType",
    ):
        assert expected in messages
    groups = {group.name: group for group in reader.groups}
    assert set(groups) == {"0043f083b5/1", "0043f083b5/2", "0043f083b5/3", "b\u00e4r/8", "x/6"}
    with pytest.raises(BadData, match="annotation 2: `segmentations`"):
        reader.read(groups["0043f083b5/2"].start, ["image"])
    with pytest.raises(BadData, match="category_id 99 is not in `categories`"):
        reader[0]
    assert np.shape(reader.read(0, ["image"])["image"]) == (HEIGHT, WIDTH, 3)
    assert not reader.column("visible")[groups["0043f083b5/2"].start]
    assert not reader.column("absent")[groups["0043f083b5/2"].start]


@pytest.mark.parametrize(
    ("name", "value", "field", "message"),
    [
        ("bboxes", [float("nan")] * 4, "box", "box not finite"),
        ("bboxes", [1, 2, 3], "box", "box not finite"),
        ("bboxes", [100, 100, 5, 5], "box", "box outside the picture"),
        ("bboxes", [1, 1, 0, 5], "box", "box empty"),
        ("bboxes", None, "box", "box not finite"),
        ("segmentations", None, "mask", "a box without a segmentation"),
        ("segmentations", {"size": [WIDTH, HEIGHT], "counts": [768]}, "mask", "swapped"),
        ("segmentations", {"size": [HEIGHT, WIDTH], "counts": [768]}, "mask", "the mask is empty"),
        ("segmentations", [[1, 2, 3]], "mask", "coordinates"),
        ("segmentations", 5, "mask", "expected a list of polygons or an RLE"),
    ],
)
def test_a_bad_box_or_mask_fails_when_it_is_read(
    tmp_path: Path, name: str, value: object, field: str, message: str
) -> None:
    def spoil(parsed: dict) -> None:
        parsed["annotations"][2][name][2] = value

    reader = YoutubeVis(write_vis(tmp_path, change=spoil))
    with pytest.raises(BadData, match=rf"instances\.json: annotation 1: frame 2: .*{message}"):
        reader.read(2, [field])
    other = "mask" if field == "box" else "box"
    assert np.any(reader.read(2, [other])[other])
    assert np.any(reader[3]["mask"])


def test_pictures_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    write_vis(tmp_path)
    folder = tmp_path / "train/JPEGImages/0043f083b5"
    (folder / "00005.jpg").unlink()
    (folder / "00010.jpg").write_bytes(encode_picture(np.zeros((WIDTH, HEIGHT, 3), np.uint8)))
    (folder / "00015.jpg").write_bytes((folder / "00000.jpg").read_bytes()[:200])
    reader = YoutubeVis(tmp_path)
    for row, message in ((1, r"00005\.jpg"), (2, r"00010\.jpg.*says 24 x 32.*is 32 x 24"), (3, r"00015\.jpg")):
        with pytest.raises(BadData, match=message):
            reader[row]
    shutil.rmtree(folder.parent)
    assert "no pictures such as" in YoutubeVis(tmp_path).problems[0].message
    with pytest.raises(SourceNotFound, match="images=nowhere"):
        YoutubeVis(tmp_path, images="nowhere")


def test_the_json_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = YoutubeVis(write_vis(tmp_path))
    records = [fresh[row] for row in range(len(fresh))]
    prints = [fresh.fingerprint(row) for row in range(len(fresh))]
    read = FolderFiles.read
    with monkeypatch.context() as patched:
        patched.setattr(
            FolderFiles, "read", lambda self, path: read(self, path) if path.endswith("jpg") else pytest.fail(path)
        )
        cached = YoutubeVis(tmp_path)
        for row, record in enumerate(records):
            assert_equal_records(cached[row], record)
    assert [cached.fingerprint(row) for row in range(len(cached))] == prints

    def change(parsed: dict) -> None:
        parsed["annotations"][2]["segmentations"][0] = encode_rle(mask_at(9, 1))

    changed = YoutubeVis(write_vis(tmp_path, change=change))
    assert changed.digest() != fresh.digest()
    np.testing.assert_array_equal(changed[0]["mask"], mask_at(9, 1))
    assert changed.fingerprint(0) != prints[0]
