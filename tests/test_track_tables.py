"""Tables of annotations from readers: tracks, annotated objects, and sources that make their own."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from penstock.draws import TrackTable
from penstock.errors import StateMismatch, UsageError
from penstock.readers.coco_instances import CocoInstances
from penstock.readers.folder import Folder
from penstock.readers.lasot import Lasot
from penstock.registry import open_source
from penstock.testing import encode_picture
from penstock.track_tables import track_table, track_tables
from penstock.tracking import Tracking

SHARED = Path(__file__).parents[2] / "shared"


def write_lasot(root, lengths, hidden=(2,)):
    for number, length in enumerate(lengths, 1):
        folder = root / "cat" / f"cat-{number}"
        (folder / "img").mkdir(parents=True)
        for frame in range(1, length + 1):
            (folder / "img" / f"{frame:08d}.jpg").touch()
        boxes = [f"{frame + 1},{2 * frame + 1},{10 + number},20" for frame in range(length)]
        (folder / "groundtruth.txt").write_text("\n".join(boxes) + "\n")
        flags = ",".join(str(int(frame in hidden)) for frame in range(length))
        (folder / "full_occlusion.txt").write_text(flags)
        (folder / "out_of_view.txt").write_text(",".join("0" * length))
    return Lasot(root)


def write_coco(root, boxes):
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "val2017" / "000000000001.jpg").write_bytes(encode_picture(np.zeros((90, 120, 3), np.uint8)))
    annotations = [
        {
            "id": 10 + place,
            "image_id": 1,
            "category_id": 7,
            "bbox": box,
            "area": 1.0,
            "iscrowd": crowd,
            "segmentation": [],
        }
        for place, (box, crowd) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "000000000001.jpg", "height": 90, "width": 120}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog", "supercategory": "animal"}],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return CocoInstances(root)


def test_tracks_become_videos(tmp_path):
    table = track_table(write_lasot(tmp_path, [25, 30]))
    assert (table.name, len(table), table.is_video) == ("lasot", 2, True)
    assert table.starts.tolist() == [0, 25, 55]
    assert list(table.names) == ["cat-1", "cat-2"]
    assert list(table.categories) == ["cat", "cat"]
    assert table.boxes[25].tolist() == [0, 0, 12, 20]
    assert table.valid.all()
    assert np.flatnonzero(~table.visible).tolist() == [2, 27]
    assert table.frames[25:28].tolist() == [0, 1, 2]
    assert np.isnan(table.fps).all()


def test_annotations_become_videos_of_one_frame(tmp_path):
    boxes = [([0, 0, 60, 80], 0), ([5, 5, 20, 60], 0), ([1, 1, 0, 5], 0), ([0, 0, 100, 80], 1)]
    table = track_table(source := write_coco(tmp_path, boxes))
    assert (table.is_video, table.starts.tolist()) == (False, [0, 1, 2, 3, 4])
    assert table.valid.tolist() == table.visible.tolist() == [True, True, False, False]
    assert list(table.names) == list(source.keys)
    assert set(table.categories) == {"dog"}
    assert track_table(source, min_side=50).valid.tolist() == [True, False, False, False]
    draws = Tracking([table], num_template=2).draws(0, 50)
    assert set(draws.sequence.tolist()) == {0, 1}
    assert (draws.template_rows == draws.sequence[:, None]).all()


def test_a_sampler_is_pickled_without_its_tables(tmp_path):
    sources = [write_lasot(tmp_path / "lasot", [300] * 20), write_coco(tmp_path / "coco", [([0, 0, 60, 80], 0)] * 200)]
    tracking = Tracking(track_tables(sources), weights=[2, 1])
    content = pickle.dumps(tracking)
    assert len(content) < 4000
    copy = pickle.loads(content)
    assert copy.identity() == tracking.identity()
    np.testing.assert_array_equal(copy.draws(0, 500).search_rows, tracking.draws(0, 500).search_rows)
    assert copy.tables[0].names[3] == "cat-4"
    path = tmp_path / "lasot" / "cat" / "cat-1" / "full_occlusion.txt"
    path.write_text(",".join("1" * 300))
    Tracking([track_table(Lasot(tmp_path / "lasot"))])
    with pytest.raises(StateMismatch):
        pickle.loads(content)


def test_names_are_told_apart(tmp_path):
    source, other = write_lasot(tmp_path / "a", [25]), write_lasot(tmp_path / "b", [30])
    tables = track_tables([source, other, write_coco(tmp_path / "c", [([0, 0, 60, 80], 0)])], min_side=70)
    assert [table.name for table in tables] == ["lasot", "lasot-2", "coco-instances"]
    assert pickle.loads(pickle.dumps(tables[1])).name == "lasot-2"
    assert not tables[2].valid.any()
    assert track_table(source, name="train").name == "train"


class Made:
    def track_table(self):
        return TrackTable(
            name="made",
            starts=np.array([0, 30]),
            boxes=np.ones((30, 4), np.float32),
            valid=np.ones(30, bool),
            visible=np.ones(30, bool),
            frames=np.arange(30, dtype=np.int32),
            fps=np.array([24.0]),
            names=["only"],
            categories=[""],
        )


def test_a_source_may_make_its_own_table():
    table = track_table(Made())
    assert (table.name, track_table(Made(), name="x").name) == ("made", "x")
    assert pickle.loads(pickle.dumps(table)).names == ["only"]


def test_other_sources_are_refused(tmp_path):
    (tmp_path / "one.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "png"))
    with pytest.raises(UsageError, match=r"reader of tracks .* got a Folder"):
        track_table(Folder(tmp_path))
    with pytest.raises(UsageError, match="got a list"):
        track_table([1, 2])
    lasot = write_lasot(tmp_path / "lasot", [25])
    with pytest.raises(UsageError, match="min_side is for sources of single pictures"):
        track_table(lasot, min_side=50)
    with pytest.raises(UsageError, match="min_side: expected 0 or more"):
        track_table(lasot, min_side=-1)


@pytest.mark.parametrize("name", ["lasot:lasot", "got10k:got10k/train", "sav:sav", "coco-instances:coco_instances"])
def test_real_annotations(name):
    reader, _, folder = name.partition(":")
    if not (SHARED / "data" / folder).is_dir():
        pytest.skip("no shared data")
    source = open_source(f"{reader}:{SHARED / 'data' / folder}")
    table = track_table(source)
    draws = Tracking([table], min_interval=80).draws(0, 200)
    for row, category in zip(draws.search_rows[:20, 0], draws.sequence[:20], strict=True):
        record = source.read(int(row), ["box", "category"])
        np.testing.assert_array_equal(record["box"], table.boxes[row])
        assert record["category"] == table.categories[category]
