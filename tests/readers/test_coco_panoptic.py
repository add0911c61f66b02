"""The reader of COCO panoptic: ids of three bytes, classes that say what is a thing, splits, damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.id_pngs import write_panoptic_png
from penstock.readers.base import Reader
from penstock.readers.coco_columns import boxes_of, real_numbers, whole_numbers
from penstock.readers.coco_files import choose_splits
from penstock.readers.coco_panoptic import CocoPanoptic
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CATEGORIES = [
    {"id": 7, "name": "train", "supercategory": "vehicle", "isthing": 1},
    {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
    {"id": 200, "name": "rug-merged", "supercategory": "textile", "isthing": 0},
]
SEGMENTS = {139: [(66051, 7), (12, 200)], 20: [(16777215, 1), (255, 200), (256, 200)], 3: [(9, 1)]}
"""Picture -> (segment id, category id): not in order, ids of one, two and three bytes."""

Change = Callable[[dict[str, Any]], object]


def write_coco_panoptic(
    root: Path, *, split: str = "val2017", change: Change | None = None, first: int = 0, unpacked: bool = False
) -> Path:
    """Three photos with six segments, each a band of columns; column 0 is void. `change` edits the JSON."""
    maps = root / "annotations" / f"panoptic_{split}" if unpacked else root / f"panoptic_{split}"
    for folder in (maps, root / split, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, segments in SEGMENTS.items():
        height, width, name = 12, 1 + 4 * len(segments), f"{first + number:012d}"
        ids, infos = np.zeros((height, width), np.uint32), []
        for place, (segment, category) in enumerate(segments):
            ids[2:, 1 + 4 * place : 5 + 4 * place] = segment
            infos.append({"id": segment, "category_id": category, "iscrowd": int(segment == 12), "area": 40})
            infos[-1]["bbox"] = [1 + 4 * place, 2, 4, 10]
        pixels = np.full((height, width, 3), number, np.uint8)
        (root / split / f"{name}.jpg").write_bytes(encode_picture(pixels, "jpg"))
        (maps / f"{name}.png").write_bytes(write_panoptic_png(ids))
        images.append({"id": first + number, "file_name": f"{name}.jpg", "height": height, "width": width})
        annotations.append({"image_id": first + number, "file_name": f"{name}.png", "segments_info": infos})
    content: dict[str, Any] = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    if change is not None:
        change(content)
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def segment(content: dict[str, Any], annotation: int = 0, place: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = content["annotations"][annotation]["segments_info"][place]
    return found


class TestCocoPanoptic(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = tmp_path

    def make_reader(self) -> Reader:
        """Three pictures."""
        return CocoPanoptic(write_coco_panoptic(self.root))


def test_rows_are_the_segments_in_order_of_picture_and_id(tmp_path: Path) -> None:
    reader = CocoPanoptic(write_coco_panoptic(tmp_path))
    assert list(reader.keys) == [
        "000000000003_9",
        "000000000020_255",
        "000000000020_256",
        "000000000020_16777215",
        "000000000139_12",
        "000000000139_66051",
    ]
    assert [group.name for group in reader.groups] == ["000000000003", "000000000020", "000000000139"]
    last = reader[5]
    assert (last["category"], last["supercategory"], last["image_id"]) == ("train", "vehicle", "000000000139")
    assert (int(last["category_id"]), int(last["label"]), bool(last["isthing"])) == (7, 1, True)
    assert last["path"] == "val2017/000000000139.jpg"
    np.testing.assert_array_equal(last["box"], np.array([1, 2, 4, 10], np.float32), strict=True)
    assert last["mask"].dtype == np.uint8
    assert np.argwhere(last["mask"]).min(axis=0).tolist() == [2, 1]
    assert int(last["mask"].sum()) == 40 == int(last["area"])
    assert [bool(reader.read(row, ["iscrowd"])["iscrowd"]) for row in range(6)] == [False] * 4 + [True, False]
    assert reader.column("label").tolist() == [0, 2, 2, 0, 2, 1]


def test_a_thing_is_what_the_categories_say_not_the_segment(tmp_path: Path) -> None:
    def lie(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            for info in entry["segments_info"]:
                info["isthing"] = 1 - (info["category_id"] < 100)

    reader = CocoPanoptic(write_coco_panoptic(tmp_path, change=lie))
    found = [bool(reader.read(row, ["isthing"])["isthing"]) for row in range(6)]
    assert found == [True, False, False, True, False, True]


def test_the_id_map_of_a_picture_and_ids_that_nothing_lists(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path, change=lambda content: content["annotations"][1]["segments_info"].pop(1))
    reader = CocoPanoptic(tmp_path)
    ids = reader.id_map(1)
    assert (ids.shape, ids.dtype) == ((12, 13), np.uint32)
    assert set(np.unique(ids).tolist()) == {0, 255, 256, 16777215}
    assert reader.unlisted_ids(1).tolist() == [255]
    assert reader.unlisted_ids(0).tolist() == []
    assert len(reader) == 5


def test_the_png_folder_as_coco_unpacks_it_photos_in_images_and_png_names(tmp_path: Path) -> None:
    def as_png(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            entry["file_name"] = entry["file_name"].replace(".jpg", ".png")

    write_coco_panoptic(tmp_path, unpacked=True, change=as_png)
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    reader = CocoPanoptic(tmp_path)
    assert [reader[row]["path"] for row in (0, 5)] == [
        "images/val2017/000000000003.jpg",
        "images/val2017/000000000139.jpg",
    ]
    assert reader.problems == []
    (tmp_path / "images").rename(tmp_path / "photos")
    assert CocoPanoptic(tmp_path, images="photos/val2017")[0]["path"] == "photos/val2017/000000000003.jpg"


def test_splits(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path, split="train2017", first=1000)
    alone = CocoPanoptic(tmp_path)
    assert (
        alone.digest() == CocoPanoptic(tmp_path, split="train").digest() == CocoPanoptic(tmp_path, split="all").digest()
    )
    write_coco_panoptic(tmp_path, split="val2017")
    with pytest.raises(UsageError, match="several splits: train2017, val2017"):
        CocoPanoptic(tmp_path)
    with pytest.raises(UsageError, match="no split test; there are train2017, val2017"):
        CocoPanoptic(tmp_path, split="test")
    both = CocoPanoptic(tmp_path, split="all")
    assert len(both) == 12
    assert both[0]["path"] == "train2017/000000001003.jpg"
    assert both[11]["path"] == "val2017/000000000139.jpg"
    assert len(set(both.keys)) == 12
    assert both.describe()["pictures_with_rows"] == {"train2017": 3, "val2017": 3}
    assert len(open_source(f"coco-panoptic:{tmp_path}?split=val")) == 6


def test_a_short_name_of_a_split_must_mean_one() -> None:
    found = {"train2014": "a", "train2017": "b", "val2017": "c"}
    assert choose_splits(found, "val", "x") == {"val2017": "c"}
    assert choose_splits(found, "train2014", "x") == {"train2014": "a"}
    assert choose_splits({**found, "train": "d"}, "train", "x") == {"train": "d"}
    assert choose_splits({}, "train", "x") == {}
    with pytest.raises(UsageError, match="train2014, train2017"):
        choose_splits(found, "train", "x")


def test_splits_with_pictures_of_the_same_name_keep_keys_apart(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path, split="train2017")
    write_coco_panoptic(tmp_path, split="val2017")
    keys = list(CocoPanoptic(tmp_path, split="all").keys)
    assert len(set(keys)) == 12
    assert keys[0] == "train2017/000000000003_9"


def test_a_map_of_another_size_is_refused_or_stretched(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path)
    path = tmp_path / "panoptic_val2017" / "000000000003.png"
    small = np.array(Image.open(path))[::2]
    Image.fromarray(small).save(path)
    with pytest.raises(BadData, match=r"000000000003\.png: expected the photo's size, 12 x 5 .* got 6 x 5"):
        CocoPanoptic(tmp_path)[0]
    reader = CocoPanoptic(tmp_path, resize="nearest")
    assert reader[0]["mask"].shape == (12, 5)
    assert int(reader[0]["mask"].sum()) == 40
    assert CocoPanoptic(tmp_path).fingerprint(1) != reader.fingerprint(1)


def test_a_photo_of_another_size_than_stated_fails(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path)
    (tmp_path / "val2017" / "000000000003.jpg").write_bytes(encode_picture(np.zeros((5, 12, 3), np.uint8), "jpg"))
    with pytest.raises(BadData, match=r"000000000003\.jpg: the annotation says 12 x 5"):
        CocoPanoptic(tmp_path)[0]


def test_sizes_that_the_annotation_lacks_come_from_the_photo(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path, change=lambda content: content["images"][2].pop("height"))
    assert CocoPanoptic(tmp_path)[0]["mask"].shape == (12, 5)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"category_id": 5}, "label", "category_id that is listed in categories, got 5"),
        ({"category_id": None}, "category", "category_id that is listed in categories, got none"),
        ({"bbox": [None, 2, 4, 10]}, "box", "not finite"),
        ({"bbox": [1, 2, 4]}, "box", "not finite"),
        ({"bbox": "1234"}, "box", "not finite"),
        ({"bbox": [50, 2, 4, 10]}, "box", "outside the picture"),
        ({"bbox": [1, 2, 0, 10]}, "box", "empty"),
        ({"area": "many"}, "area", "got nan"),
        ({"id": 77}, "mask", "expected pixels of this id in panoptic_val2017/000000000003.png, got none"),
    ],
)
def test_one_bad_value_costs_its_row_alone(tmp_path: Path, change: dict[str, Any], field: str, message: str) -> None:
    write_coco_panoptic(tmp_path, change=lambda content: segment(content, 2).update(change))
    reader = CocoPanoptic(tmp_path)
    assert len(reader) == 6
    with pytest.raises(BadData, match=message) as caught:
        reader.read(0, [field])
    assert "picture 000000000003" in str(caught.value)
    assert "image" in reader.read(0, ["image", "path"])
    assert all(reader[row]["mask"].any() for row in range(1, 6))


def test_a_class_that_does_not_say_whether_it_is_a_thing(tmp_path: Path) -> None:
    write_coco_panoptic(
        tmp_path, change=lambda content: content.update(categories=[{"id": n, "name": str(n)} for n in (1, 7, 200)])
    )
    reader = CocoPanoptic(tmp_path)
    assert reader.read(0, ["category"])["category"] == "1"
    with pytest.raises(BadData, match="isthing"):
        reader.read(0, ["isthing"])


def test_entries_that_cannot_be_rows_are_told(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        segment(content, 0, 0).pop("id")
        segment(content, 1, 0)["id"] = 255
        segment(content, 0, 1)["id"] = 0
        content["annotations"].append({"image_id": 4, "file_name": "x.png", "segments_info": [{"id": 1}]})
        content["annotations"].append({"image_id": 3, "file_name": "x.png"})
        content["images"] += [{"file_name": "y.jpg"}, dict(content["images"][0])]

    reader = CocoPanoptic(write_coco_panoptic(tmp_path, change=spoil))
    assert list(reader.keys) == ["000000000003_9", "000000000020_255", "000000000020_256"]
    messages = " | ".join(problem.message for problem in reader.problems)
    for expected in ("no id", "does not list", "another of the picture", "no segments_info", "id that another has"):
        assert expected in messages
    assert reader.describe()["void_entries"] == 1
    assert reader.describe()["pictures_without_rows"] == 1


def test_broken_files(tmp_path: Path) -> None:
    reader = CocoPanoptic(write_coco_panoptic(tmp_path))
    (tmp_path / "panoptic_val2017" / "000000000003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "val2017" / "000000000020.jpg").unlink()
    with pytest.raises(BadData, match=r"000000000003\.png"):
        reader.read(0, ["mask"])
    with pytest.raises(BadData, match=r"000000000020\.jpg"):
        reader.read(1, ["image"])
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text("{")
    with pytest.raises(BadData, match=r"panoptic_val2017\.json: broken JSON"):
        CocoPanoptic(tmp_path)
    path.write_text('{"images": []}')
    with pytest.raises(BadData, match="expected a list 'categories', got the keys images"):
        CocoPanoptic(tmp_path)
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(SourceNotFound, match="without rows"):
        CocoPanoptic(tmp_path)


def test_a_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    root = write_coco_panoptic(tmp_path / "coco")
    for wrong in (tmp_path, root / "annotations", root / "val2017"):
        with pytest.raises(SourceNotFound, match=rf"no annotations/panoptic_.*Did you mean {root}\?"):
            CocoPanoptic(wrong)
    with pytest.raises(SourceNotFound, match="no such folder"):
        CocoPanoptic(tmp_path / "nowhere")


def test_missing_folders_are_a_problem_and_the_rest_can_be_read(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    reader = CocoPanoptic(tmp_path)
    assert len(reader.problems) == 1
    assert "val2017/, images/val2017/" in reader.problems[0].message
    assert reader.read(0, ["mask"])["mask"].any()
    with pytest.raises(BadData, match="val2017"):
        reader[0]


def test_names_outside_ascii_and_in_folders(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for folder, entry in zip("ab", content["images"], strict=False):
            (tmp_path / "val2017" / folder).mkdir()
            (tmp_path / "val2017" / entry["file_name"]).rename(tmp_path / "val2017" / folder / "Z\u00fcrich.jpg")
            entry["file_name"] = f"{folder}/Z\u00fcrich.jpg"

    reader = CocoPanoptic(write_coco_panoptic(tmp_path, change=rename))
    assert [group.name for group in reader.groups] == ["000000000003", "b/Z\u00fcrich", "a/Z\u00fcrich"]
    assert reader[-1]["path"] == "val2017/a/Z\u00fcrich.jpg"


def test_the_cache_gives_what_a_fresh_build_gives_and_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco_panoptic(tmp_path)
    first = CocoPanoptic(tmp_path)
    fresh = first._build()
    with monkeypatch.context() as patch:
        patch.setattr(CocoPanoptic, "_build", lambda self: pytest.fail("built again"))
        again = CocoPanoptic(tmp_path)
    assert set(fresh.columns) == set(again.index.columns)
    for name, values in fresh.columns.items():
        np.testing.assert_array_equal(values, again.index[name], strict=True)
    before = [first.fingerprint(row) for row in range(6)]
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"id": 9, "category_id": 1', '"id": 9, "category_id": 7 '))
    changed = CocoPanoptic(tmp_path)
    assert changed[0]["category"] == "train"
    assert [old == changed.fingerprint(row) for row, old in enumerate(before)] == [False] + [True] * 5
    assert changed.digest() != first.digest()


def test_another_name_of_a_class_changes_fingerprints(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path)
    before = [CocoPanoptic(tmp_path).fingerprint(row) for row in (-6, 5)]
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"person", "super', '"human", "super'))
    assert [CocoPanoptic(tmp_path).fingerprint(row) == old for row, old in zip((-6, 5), before, strict=True)] == [
        False,
        True,
    ]


def test_a_large_annotation_opens_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, segments = 20_000, 11
    numbers = np.random.default_rng(0).permutation(600_000)[:pictures].tolist()
    info = [{"id": n + 1, "category_id": 1, "iscrowd": 0, "bbox": [n, 0, 2, 3], "area": 6} for n in range(segments)]
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640} for n in numbers],
        "annotations": [{"image_id": n, "file_name": f"{n:012d}.png", "segments_info": info} for n in numbers],
        "categories": CATEGORIES,
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    assert len(CocoPanoptic(tmp_path)) == pictures * segments
    monkeypatch.setattr(CocoPanoptic, "_build", lambda self: pytest.fail("built again"))
    monkeypatch.setattr(CocoPanoptic, "_key", lambda self, row: pytest.fail("asked for a key"))
    reader = CocoPanoptic(tmp_path)
    assert len(reader) == pictures * segments
    assert not reader.column("box").flags.writeable
    smallest = f"{min(numbers):012d}"
    record = reader.read(3, ["box", "segment_id", "image_id"])
    assert (record["box"].tolist(), int(record["segment_id"]), record["image_id"]) == ([3, 0, 2, 3], 4, smallest)


@given(
    st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(width=32), st.text(max_size=2)), max_size=6
    )
)
def test_a_column_holds_each_number_that_is_one(values: list[Any]) -> None:
    entries = [{"id": value} for value in values]
    wholes, reals = whole_numbers(entries, "id"), real_numbers(entries, "id")
    assert (wholes.shape, reals.shape) == ((len(values),), (len(values),))
    for value, whole, real in zip(values, wholes.tolist(), reals, strict=True):
        if isinstance(value, int):
            assert whole == value
        elif isinstance(value, str) or value is None:
            assert whole == np.iinfo(np.int64).min
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            np.testing.assert_array_equal(real, np.float64(value).astype(np.float32))
        elif not isinstance(value, bool):
            assert np.isnan(real)


@given(st.lists(st.one_of(st.none(), st.lists(st.floats(-1e6, 1e6, width=32), max_size=5), st.just(["1", 2, 3, 4]))))
def test_boxes_that_are_none_become_nan(boxes: list[Any]) -> None:
    found = boxes_of([{"bbox": box} for box in boxes])
    for box, values in zip(boxes, found, strict=True):
        is_box = isinstance(box, list) and len(box) == 4 and not isinstance(box[0], str)
        np.testing.assert_array_equal(values, np.array(box if is_box else [np.nan] * 4, np.float32))


@pytest.mark.parametrize("name", ["coco_panoptic", "camvid_panoptic"])
def test_real_files_agree_with_the_rule_of_panopticapi(name: str) -> None:
    root = SHARED / name
    if not root.exists():
        pytest.skip("no shared data")
    content = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category for category in content["categories"]}
    reader = CocoPanoptic(root)
    rows = {key: row for row, key in enumerate(reader.keys)}
    assert len(rows) == sum(len(entry["segments_info"]) for entry in content["annotations"])
    for entry in content["annotations"]:
        rgb = np.array(Image.open(root / "panoptic_val2017" / entry["file_name"]), np.int64)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256 * 256 * rgb[..., 2]
        photo = np.array(Image.open(root / "val2017" / images[entry["image_id"]]["file_name"]).convert("RGB"))
        stem = Path(images[entry["image_id"]]["file_name"]).stem
        for info in entry["segments_info"]:
            record = reader[rows[f"{stem}_{info['id']}"]]
            category = names[info["category_id"]]
            inside = ids == info["id"]
            np.testing.assert_array_equal(record["mask"], inside)
            assert inside.sum() == info["area"] == record["area"]
            y, x = np.nonzero(inside)
            tight = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert tight == info["bbox"] == record["box"].tolist()
            assert (record["category"], bool(record["isthing"])) == (category["name"], bool(category["isthing"]))
            assert int(record["label"]) == sorted(names).index(info["category_id"])
            assert np.abs(record["image"].astype(int) - photo).max() <= 2
    assert all(reader.unlisted_ids(group.start).size == 0 for group in reader.groups)
