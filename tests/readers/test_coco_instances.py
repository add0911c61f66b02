"""The reader of COCO's objects: polygons and both kinds of RLE, crowds, LVIS, the LMDB of the trackers."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.rle import encode_rle
from penstock.readers.base import Reader
from penstock.readers.coco_instances import CocoInstances, CocoLmdb, pack_segmentations, unpack_segmentation
from penstock.readers.coco_panoptic import CocoPanoptic
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture
from tests.readers.test_coco_panoptic import write_coco_panoptic

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CATEGORIES = [{"id": number, "name": name, "supercategory": "s"} for number, name in ((90, "rug"), (1, "person"))]
HW = (40, 60)

Change = Callable[[dict[str, Any]], object]


def write_coco_instances(
    root: Path, *, split: str = "val2017", folder: str = "{split}", change: Change | None = None
) -> Path:
    """Three photos, one of them without objects; five objects: polygons, two polygons, crowd, compressed RLE."""
    photos = root / folder.format(split=split)
    photos.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    block = np.zeros(HW, np.uint8)
    block[5:15, 50:] = 1
    segmentations: list[tuple[int, int, Any, list[float]]] = [
        (139, 21, [[10.5, 10.25, 30.75, 10.25, 30.75, 30.5]], [10.5, 10.25, 20.25, 20.25]),
        (139, 3, [[1, 1, 9, 1, 9, 9, 1, 9], [20.1, 2.3, 28.7, 2.3, 28.7, 8.9]], [1, 1, 27.7, 8]),
        (20, 900100, encode_rle(block, compressed=False), [50, 5, 10, 10]),
        (20, 4, encode_rle(block), [50, 5, 10, 10]),
        (20, 5, [[1 / 3, 0.1234567, 25, 3, 9.87654321, 31.5]], [0.33, 0.12, 24.67, 31.38]),
    ]
    images = []
    for number in (139, 20, 3):
        name = f"{number:012d}.jpg"
        (photos / name).write_bytes(encode_picture(np.full((*HW, 3), number, np.uint8), "jpg"))
        images.append({"id": number, "file_name": name, "height": HW[0], "width": HW[1]})
    annotations = [
        {"id": number, "image_id": picture, "category_id": 1 if number < 5 else 90, "iscrowd": int(number > 900_000)}
        | {"segmentation": segmentation, "bbox": box, "area": 12.5 + number}
        for picture, number, segmentation, box in segmentations
    ]
    content: dict[str, Any] = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    if change is not None:
        change(content)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def write_lmdb(path: Path, root: Path) -> Path:
    """Every file below a root as a value; its relative path is the key."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for file in sorted(root.rglob("*.*")):
            transaction.put(file.relative_to(root).as_posix().encode(), file.read_bytes())
    return path


class TestCocoInstances(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = tmp_path

    def make_reader(self) -> Reader:
        """Two pictures with objects."""
        return CocoInstances(write_coco_instances(self.root))


class TestCocoLmdb(ReaderTests):
    """The contract, in an LMDB."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        root = write_coco_instances(tmp_path / "files", folder="images/{split}")
        self.path = write_lmdb(tmp_path / "lmdb", root)

    def make_reader(self) -> Reader:
        """The same two pictures."""
        return CocoLmdb(self.path)


def test_rows_are_the_annotations_in_order_of_picture_and_id(tmp_path: Path) -> None:
    reader = CocoInstances(write_coco_instances(tmp_path))
    assert list(reader.keys) == [
        "000000000020_4",
        "000000000020_5",
        "000000000020_900100",
        "000000000139_3",
        "000000000139_21",
    ]
    last = reader[4]
    assert (last["category"], last["image_id"], last["path"]) == ("rug", "000000000139", "val2017/000000000139.jpg")
    assert (int(last["category_id"]), int(last["label"]), int(last["annotation_id"])) == (90, 1, 21)
    np.testing.assert_array_equal(last["box"], np.array([10.5, 10.25, 20.25, 20.25], np.float32), strict=True)
    assert float(last["area"]) == 33.5
    assert [bool(reader.read(row, ["iscrowd"])["iscrowd"]) for row in range(5)] == [False, False, True, False, False]
    description = reader.describe()
    assert description["pictures_with_rows"] == {"val2017": 2}
    assert description["pictures_without_rows"] == 1
    assert description["largest_classes"] == {"rug": 3, "person": 2}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_masks_are_those_of_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CocoInstances(write_coco_instances(tmp_path))
    path = tmp_path / "annotations" / "instances_val2017.json"
    assert masks_agree_with_pycocotools(reader, path, monkeypatch) == 5


def masks_agree_with_pycocotools(reader: CocoInstances, path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Compares every row with what pycocotools says; the number of rows."""
    coco_api = pytest.importorskip("pycocotools.coco")
    monkeypatch.setattr("builtins.print", lambda *words: None)
    coco = coco_api.COCO(str(path))
    monkeypatch.undo()
    assert sorted(coco.anns) == sorted(reader.column("annotation_id").tolist())
    for record in (reader[row] for row in range(len(reader))):
        annotation = coco.anns[int(record["annotation_id"])]
        assert Path(str(record["path"])).name == coco.imgs[annotation["image_id"]]["file_name"]
        np.testing.assert_array_equal(record["mask"], coco.annToMask(annotation), strict=True)
        np.testing.assert_array_equal(record["box"], np.float32(annotation["bbox"]), strict=True)
        assert record["area"] == np.float32(annotation["area"])
        assert int(record["category_id"]) == annotation["category_id"]
        assert int(record["label"]) == sorted(coco.getCatIds()).index(annotation["category_id"])
        assert bool(record["iscrowd"]) == bool(annotation["iscrowd"])
    return len(reader)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_real_files_are_read_as_pycocotools_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    root = SHARED / "coco_instances"
    if not root.exists():
        pytest.skip("no shared data")
    reader = CocoInstances(root)
    path = root / "annotations" / "instances_val2017.json"
    assert masks_agree_with_pycocotools(reader, path, monkeypatch) == 10
    record = reader[0]
    assert record["mask"].sum() == pytest.approx(float(record["area"]), rel=0.05)
    photo = np.array(Image.open(root / str(record["path"])).convert("RGB")).astype(int)
    assert np.abs(record["image"] - photo).max() <= 2


def test_crowds_and_small_boxes_are_left_out_on_demand_and_counted(tmp_path: Path) -> None:
    write_coco_instances(tmp_path)
    reader = open_source(f"coco-instances:{tmp_path}?crowd=drop&min_side=10")
    assert isinstance(reader, CocoInstances)
    assert list(reader.keys) == ["000000000020_5", "000000000139_21"]
    assert reader.describe()["crowds_left_out"] == 1
    assert reader.describe()["small_left_out"] == 2
    with pytest.raises(SourceNotFound, match="without rows"):
        CocoInstances(tmp_path, min_side=50)
    with pytest.raises(UsageError, match="min_side"):
        CocoInstances(tmp_path, min_side=-1)


def test_a_segmentation_comes_back_as_the_json_has_it(tmp_path: Path) -> None:
    reader = CocoInstances(write_coco_instances(tmp_path))
    content = json.loads((tmp_path / "annotations" / "instances_val2017.json").read_text())
    known = {annotation["id"]: annotation["segmentation"] for annotation in content["annotations"]}
    numbers = reader.column("annotation_id").tolist()
    assert [reader.segmentation(row) for row in range(5)] == [known[number] for number in numbers]
    assert reader.segmentation(-1) == known[numbers[-1]]


_polygons = st.lists(
    st.lists(st.one_of(st.integers(-500, 99_999).map(lambda n: n / 100), st.floats(), st.integers(0, 640)), max_size=9),
    max_size=4,
)
_others = st.one_of(st.none(), st.just({"size": [2, 2], "counts": "04"}), st.just([["a", 1]]), st.just([[None]]))


@given(st.lists(st.one_of(_polygons, _others), max_size=6))
def test_packing_segmentations_loses_nothing(segmentations: list[Any]) -> None:
    written = orjson.loads(orjson.dumps(segmentations))
    assert [unpack_segmentation(one) for one in pack_segmentations(written)] == written


def test_hundredths_take_four_bytes() -> None:
    polygon = [round(0.01 * number, 2) for number in range(1000)]
    assert [len(packed) for packed in pack_segmentations([[polygon]] * 5000)] == [1 + 4 * 1001] * 5000


def test_lvis_names_its_pictures_by_url(tmp_path: Path) -> None:
    def as_lvis(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            name = entry.pop("file_name")
            entry["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
        for annotation in content["annotations"]:
            annotation.pop("iscrowd")

    write_coco_instances(tmp_path, split="x", folder="train2017", change=as_lvis)
    annotations = tmp_path / "annotations"
    (annotations / "instances_x.json").rename(annotations / "lvis_v1_val.json")
    with pytest.raises(SourceNotFound, match=r"no annotations/instances_\*\.json"):
        CocoInstances(tmp_path)
    for name in ("lvis_v1_val.json", "annotations/lvis_v1_val.json"):
        reader = CocoInstances(tmp_path, annotations=name)
        assert reader[0]["path"] == "train2017/000000000020.jpg"
        assert reader.keys[0] == "000000000020_4"
        assert not reader[2]["iscrowd"]
        assert reader.problems == []
    with pytest.raises(UsageError, match="give one of them"):
        CocoInstances(tmp_path, annotations="lvis_v1_val.json", split="val")
    with pytest.raises(SourceNotFound, match=r"no other\.json"):
        CocoInstances(tmp_path, annotations="other.json")


def test_keypoint_files_find_the_photos_of_their_split(tmp_path: Path) -> None:
    write_coco_instances(tmp_path)
    annotations = tmp_path / "annotations"
    (annotations / "instances_val2017.json").rename(annotations / "person_keypoints_val2017.json")
    reader = CocoInstances(tmp_path, annotations="person_keypoints_val2017.json")
    assert reader[0]["path"] == "val2017/000000000020.jpg"


def test_an_lmdb_holds_the_same_rows(tmp_path: Path) -> None:
    root = write_coco_instances(tmp_path / "files", folder="images/{split}")
    on_disk, in_lmdb = CocoInstances(root), CocoLmdb(write_lmdb(tmp_path / "lmdb", root))
    assert list(on_disk.keys) == list(in_lmdb.keys)
    assert on_disk[0]["path"] == in_lmdb[0]["path"] == "images/val2017/000000000020.jpg"
    for name in ("image", "mask", "box"):
        np.testing.assert_array_equal(on_disk[4][name], in_lmdb[4][name], strict=True)
    assert in_lmdb.problems == []
    with pytest.raises(SourceNotFound, match="expected an LMDB"):
        CocoLmdb(root)
    with pytest.raises(SourceNotFound, match="expected an LMDB"):
        CocoLmdb(tmp_path / "nowhere")


def swapped(annotation: dict[str, Any]) -> None:
    annotation["segmentation"]["size"].reverse()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda one: one.update(segmentation=[]), "mask", "got none"),
        (lambda one: one.pop("segmentation"), "mask", "got NoneType"),
        (lambda one: one.update(segmentation=[[1, 1, 9, 1, 9, 9, 5]]), "mask", "even count"),
        (lambda one: one.update(segmentation=[[1, 1, None, 1, 9, 9]]), "mask", "finite"),
        (lambda one: one.update(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]), "mask", "empty mask"),
        (swapped, "mask", "height and width are swapped"),
        (lambda one: one.update(bbox=[70, 5, 3, 3]), "box", "outside the picture"),
        (lambda one: one.update(bbox=[1, 5, None, 3]), "box", "not finite"),
        (lambda one: one.update(category_id=12), "category_id", "listed in categories, got 12"),
        (lambda one: one.pop("area"), "area", "got nan"),
    ],
)
def test_one_bad_annotation_costs_its_row_alone(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], field: str, message: str
) -> None:
    reader = CocoInstances(write_coco_instances(tmp_path, change=lambda content: change(content["annotations"][3])))
    assert len(reader) == 5
    with pytest.raises(BadData, match=message) as caught:
        reader.read(0, [field])
    assert "annotation_id 4 of picture 000000000020" in str(caught.value)
    assert all(reader[row]["mask"].any() for row in range(1, 5))


def test_annotations_that_cannot_be_rows_are_told(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        content["annotations"] += [{**first, "image_id": 77}, {**first, "id": None}, dict(first), "text"]
        content["annotations"].append({**first, "image_id": [139], "id": 2})

    reader = CocoInstances(write_coco_instances(tmp_path, change=spoil))
    assert len(reader) == 5
    assert [problem.message.partition(",")[0] for problem in reader.problems] == [
        "1 annotations are no objects",
        "1 annotations have no id",
        "2 annotations are of a picture that images does not list",
        "1 annotations have an id that another of the picture has",
    ]


def test_a_box_a_little_over_the_border_is_as_coco_rounds_it(tmp_path: Path) -> None:
    write_coco_instances(tmp_path, change=lambda content: content["annotations"][3].update(bbox=[50.2, 5, 9.9, 10]))
    assert CocoInstances(tmp_path)[0]["box"][2] == np.float32(9.9)


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    write_coco_instances(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    keys = list(CocoInstances(tmp_path).keys)
    for name in ('"id": 139', '"image_id": 139', '"id": 21', '"category_id": 1', '"id": 90'):
        text = path.read_text()
        assert f"{name}," in text
        path.write_text(text.replace(f"{name},", f"{name}.0,"))
    reader = CocoInstances(tmp_path)
    assert list(reader.keys) == keys
    assert reader.column("label").tolist() == [0, 1, 1, 0, 1]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all that is inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in inside:
        yield (*path, name)
        yield from _places(member, (*path, name))


_STRANGE = (None, -1, 1.5, 1e300, 2**64 - 1, "", "x", [], [[]], {}, True, {"size": [1, 1], "counts": "0"}, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("write", "reader"), [(write_coco_instances, CocoInstances), (write_coco_panoptic, CocoPanoptic)]
)
def test_a_spoiled_annotation_gives_typed_errors_only(
    tmp_path: Path, seed: int, write: Callable[[Path], Path], reader: Callable[[Path], Reader]
) -> None:
    path = sorted((write(tmp_path) / "annotations").glob("*.json"))[0]
    draw = random.Random(seed)
    sound = path.read_text()
    places = list(_places(json.loads(sound)))
    fine = failed = 0
    for _ in range(60):
        content = member = json.loads(sound)
        *way, last = draw.choice(places)
        for name in way:
            member = member[name]
        if isinstance(member, dict) and draw.random() < 0.3:
            del member[last]
        else:
            member[last] = draw.choice(_STRANGE)
        path.write_text(json.dumps(content))
        try:
            source = reader(tmp_path)
        except (BadData, SourceNotFound):
            failed += 1
            continue
        assert len(set(source.keys)) == len(source)
        for row in range(len(source)):
            for name, field in source.schema.items():
                try:
                    field.encode(source.read(row, [name])[name])
                    fine += 1
                except BadData:
                    failed += 1
    assert fine > 1000
    assert failed


def test_a_picture_without_a_name_costs_its_rows(tmp_path: Path) -> None:
    reader = CocoInstances(write_coco_instances(tmp_path, change=lambda content: content["images"][1].pop("file_name")))
    assert reader.keys[0] == "20_4"
    with pytest.raises(BadData, match="file_name"):
        reader.read(0, ["image"])
    assert reader[3]["image"].shape == (*HW, 3)


def test_a_class_id_that_means_two_things_is_refused(tmp_path: Path) -> None:
    write_coco_instances(tmp_path, split="train2017")
    write_coco_instances(tmp_path, change=lambda content: content["categories"][1].update(name="cat"))
    assert len(CocoInstances(tmp_path, split="val")) == 5
    with pytest.raises(BadData, match="id 1 stands for"):
        CocoInstances(tmp_path, split="all")


def test_a_picture_listed_twice_is_refused(tmp_path: Path) -> None:
    write_coco_instances(
        tmp_path, change=lambda content: content["images"][1].update(file_name=content["images"][0]["file_name"])
    )
    with pytest.raises(BadData, match="000000000139 is listed twice"):
        CocoInstances(tmp_path)


def test_the_cache_gives_what_a_fresh_build_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CocoInstances(write_coco_instances(tmp_path))
    fresh, before = first._build(), [first.fingerprint(row) for row in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(CocoInstances, "_build", lambda self: pytest.fail("built again"))
        again = CocoInstances(tmp_path)
    for name, values in fresh.columns.items():
        np.testing.assert_array_equal(values, again.index[name], strict=True)
    assert [again.fingerprint(row) for row in range(5)] == before

    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("30.75, 30.5]", "30.75, 30.51]"))
    after = [CocoInstances(tmp_path).fingerprint(row) for row in range(5)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True] * 4 + [False]
