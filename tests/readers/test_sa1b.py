"""The reader of SA-1B: boxes that are one less, pairs by name, folders and TARs, damage, many files."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.boxes import mask_box
from penstock.geometry.rle import encode_rle
from penstock.readers import sa1b_files, sa1b_json
from penstock.readers.base import Reader
from penstock.readers.sa1b import Sa1b
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "sa1b_like"
Change = Callable[[dict[str, Any]], object]


def sa1b_members(numbers: tuple[int, ...] = (2, 10, 1), *, change: Change | None = None) -> dict[str, bytes]:
    """Name -> content: for each number N a picture of 12 x (16 + N) and a JSON with three masks, one of each form."""
    members: dict[str, bytes] = {}
    for number in numbers:
        height, width = 12, 16 + number
        annotations = []
        for place in range(3):
            mask = np.zeros((height, width), np.uint8)
            mask[1 : 4 + place, 1 + 5 * place : 5 + 5 * place] = 1
            box = mask_box(mask).tolist()
            polygon = [[box[0], 1, box[0] + 4, 1, box[0] + 4, 4 + place, box[0], 4 + place]]
            forms = (encode_rle(mask), encode_rle(mask, compressed=False), polygon)
            annotations.append(
                {
                    "id": 1000 * number + 2 - place,
                    "segmentation": forms[place],
                    "bbox": [box[0], box[1], box[2] - 1, box[3] - 1],
                    "area": int(mask.sum()),
                    "predicted_iou": 0.9,
                    "stability_score": 0.95,
                    "point_coords": [[box[0] + 1.5, 2.25]],
                    "crop_box": [0, 0, width, height],
                }
            )
        image = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
        content: dict[str, Any] = {"image": image, "annotations": annotations}
        if change is not None:
            change(content)
        pixels = np.full((height, width, 3), 20 * number, np.uint8)
        members[f"sa_{number}.jpg"] = encode_picture(pixels, "jpg")
        members[f"sa_{number}.json"] = json.dumps(content).encode()
    return members


def write_sa1b(root: Path, *, change: Change | None = None, numbers: tuple[int, ...] = (2, 10, 1)) -> Path:
    """Pictures and JSON files side by side."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in sa1b_members(numbers, change=change).items():
        (root / name).write_bytes(content)
    return root


def write_sa1b_tar(path: Path, numbers: tuple[int, ...] = (2, 10, 1), *, mode: str = "w") -> Path:
    """The same as a TAR, as published: names start with "./"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in sa1b_members(numbers).items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def first_annotation(**values: object) -> Change:
    """Sets values of the first annotation of sa_1."""

    def change(content: dict[str, Any]) -> None:
        if content["image"]["image_id"] == 1:
            content["annotations"][0] |= values

    return change


class TestSa1bFolder(ReaderTests):
    """The contract, side by side."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        write_sa1b(tmp_path / "data" / "sa_000000")
        self.root = tmp_path / "data"

    def make_reader(self) -> Reader:
        """Nine masks."""
        return Sa1b(self.root)


class TestSa1bTars(ReaderTests):
    """The contract, in two TARs."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = tmp_path / "tars"
        write_sa1b_tar(self.root / "sa_000000.tar", (2, 1))
        write_sa1b_tar(self.root / "sa_000001.tar", (12,))

    def make_reader(self) -> Reader:
        """Nine masks."""
        return Sa1b(self.root)


def test_rows_are_masks_in_order_of_the_pictures_numbers(tmp_path: Path) -> None:
    source = Sa1b(write_sa1b(tmp_path))
    assert [group.name for group in source.groups] == ["sa_1", "sa_2", "sa_10"]
    assert list(source.keys)[:4] == ["sa_1/1002", "sa_1/1001", "sa_1/1000", "sa_2/2002"]
    for row in range(len(source)):
        record = source[row]
        mask = np.asarray(record["mask"])
        np.testing.assert_array_equal(record["box"], mask_box(mask))
        assert record["area"] == mask.sum() == source.column("area")[row]
        assert np.shape(record["image"])[:2] == mask.shape
    assert record["point"].tolist() == [12.5, 2.25]
    assert (record["image_id"], record["path"], int(record["annotation_id"])) == ("sa_10", "sa_10.jpg", 10000)


def test_boxes_as_in_the_file(tmp_path: Path) -> None:
    source = open_source(f"sa1b:{write_sa1b(tmp_path)}?boxes=file")
    assert source[0]["box"].tolist() == [1, 1, 3, 2]
    assert "one less" in source.schema["box"].meaning
    assert Sa1b(tmp_path)[0]["box"].tolist() == [1, 1, 4, 3]


def test_two_folders_of_these_or_other_names(tmp_path: Path) -> None:
    for root, images, annotations in ((tmp_path / "a", "img", "js"), (tmp_path / "b", "photos", "masks")):
        for name, content in sa1b_members().items():
            path = root / (annotations if name.endswith("json") else images) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    assert len(Sa1b(tmp_path / "a")) == 9
    with pytest.raises(SourceNotFound, match="image_dir= and annotation_dir="):
        Sa1b(tmp_path / "b")
    source = open_source(f"sa1b:{tmp_path / 'b'}?image_dir=photos&annotation_dir=masks")
    assert source[0]["path"] == "photos/sa_1.jpg"
    with pytest.raises(SourceNotFound, match="no folder nothing"):
        Sa1b(tmp_path / "b", image_dir="nothing", annotation_dir="masks")


def test_a_tar_reads_as_its_folder_and_its_headers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sa1b_tar(tmp_path / "t" / "sa_000000.tar")
    folder, tar = Sa1b(write_sa1b(tmp_path / "f")), Sa1b(path)
    assert list(folder.keys) == list(tar.keys)
    for row in range(len(folder)):
        left, right = folder[row], tar[row]
        assert left["path"] == right["path"]
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left["mask"], right["mask"])

    def refuse(*_: object) -> None:
        raise AssertionError("headers are read again")

    monkeypatch.setattr(sa1b_files, "TarScan", refuse)
    assert Sa1b(path)[0]["path"] == "sa_1.jpg"
    assert tar.files.names() == sorted(sa1b_members())
    assert not tar.files.exists("sa_3.jpg")
    with pytest.raises(BadData, match="no member"):
        tar.files.read("sa_3.jpg")


def test_a_cut_tar_keeps_what_is_before(tmp_path: Path) -> None:
    path = write_sa1b_tar(tmp_path / "a.tar", (2, 1))
    with tarfile.open(path) as tar:
        offset = tar.getmember("./sa_1.json").offset_data
    path.write_bytes(path.read_bytes()[: offset + 10])
    source = Sa1b(path)
    assert [group.name for group in source.groups] == ["sa_2"]
    assert any("cut at byte" in problem.message for problem in source.problems)
    packed = write_sa1b_tar(tmp_path / "z" / "a.tar.gz", mode="w:gz")
    with pytest.raises(SourceNotFound, match="compressed"):
        Sa1b(packed)


def test_tars_beside_unpacked_pairs_are_named(tmp_path: Path) -> None:
    write_sa1b_tar(write_sa1b(tmp_path) / "sa_000009.tar", (9,))
    assert [problem.message for problem in Sa1b(tmp_path).problems] == [
        "1 TARs lie beside the pictures and are not read: sa_000009.tar"
    ]


def test_limits(tmp_path: Path) -> None:
    write_sa1b(tmp_path)
    assert len(Sa1b(tmp_path, max_images=2)) == 6
    few = Sa1b(tmp_path, max_rows=4)
    assert [group.stop for group in few.groups] == [3, 4]
    large = open_source(f"sa1b:{tmp_path}?min_area=16")
    assert (len(large), large.describe()["masks_below_min_area"]) == (6, 3)
    with pytest.raises(UsageError, match="max_rows=0"):
        Sa1b(tmp_path, max_rows=0)


def test_pictures_and_json_without_counterpart(tmp_path: Path) -> None:
    write_sa1b(tmp_path, numbers=(1, 2, 3))
    (tmp_path / "sa_2.json").unlink()
    (tmp_path / "sa_3.jpg").unlink()
    source = Sa1b(tmp_path)
    messages = " ".join(problem.message for problem in source.problems)
    assert "1 pictures have no JSON" in messages
    assert "sa_2.jpg" in messages
    assert "1 JSON files have no picture" in messages
    assert source.read(5, ["mask", "box"])["box"].shape == (4,)
    with pytest.raises(BadData, match=r"sa_3\.jpg"):
        source[5]


def test_pictures_alone_are_no_sa1b(tmp_path: Path) -> None:
    write_sa1b(tmp_path)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    with pytest.raises(SourceNotFound, match=f"folder:{tmp_path}"):
        Sa1b(tmp_path)


def test_a_root_too_high_or_too_low_is_told(tmp_path: Path) -> None:
    write_sa1b(tmp_path / "x" / "sa1b" / "sa_000000")
    with pytest.raises(SourceNotFound, match=r"Did you mean .*sa1b\?"):
        Sa1b(tmp_path / "x")
    with pytest.raises(SourceNotFound, match="no such folder"):
        Sa1b(tmp_path / "none")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"images": [], "annotations": []}', b'{"image": {}, "annotations": 3}']
)
def test_a_broken_json_is_a_problem(tmp_path: Path, content: bytes) -> None:
    write_sa1b(tmp_path)
    (tmp_path / "sa_2.json").write_bytes(content)
    source = Sa1b(tmp_path)
    assert len(source) == 6
    assert [(problem.path, problem.error) for problem in source.problems] == [("sa_2.json", "BadData")]


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"bbox": [100, 1, 3, 3]}, "box", "outside the picture"),
        ({"bbox": [1, 1, None, 3]}, "box", "not finite"),
        ({"bbox": [1, 1, -1, 3]}, "box", "empty"),
        ({"bbox": [1, 2, 3]}, "box", "not finite"),
        ({"area": None}, "area", "expected a number as area"),
        ({"predicted_iou": "high"}, "predicted_iou", "predicted_iou"),
        ({"id": "7"}, "annotation_id", "whole number"),
        ({"point_coords": []}, "point", "point_coords"),
        ({"segmentation": {"size": [12, 17], "counts": [204]}}, "mask", "empty mask"),
        ({"segmentation": {"size": [17, 12], "counts": [100, 104]}}, "mask", "size"),
        ({"segmentation": [[1, 2, 3]]}, "mask", "polygon"),
        ({"segmentation": None}, "mask", "segmentation"),
    ],
)
def test_a_bad_annotation_costs_its_field(tmp_path: Path, change: dict[str, Any], field: str, message: str) -> None:
    source = Sa1b(write_sa1b(tmp_path, change=first_annotation(**change)))
    assert len(source) == 9
    with pytest.raises(BadData, match=message) as caught:
        source.read(0, [field])
    assert "sa_1.json" in str(caught.value)
    source.read(0, [name for name in source.schema if name != field])
    assert source[1]["mask"].any()


def test_ids_that_repeat_and_names_that_repeat(tmp_path: Path) -> None:
    write_sa1b(tmp_path / "a", change=first_annotation(id=1001))
    write_sa1b(tmp_path / "b", numbers=(1,))
    source = Sa1b(tmp_path)
    assert list(source.keys)[:3] == ["sa_1/1001", "sa_1/1001#2", "sa_1/1000"]
    assert source.groups[3].name == "sa_1@b"
    assert source[9]["image_id"] == "sa_1"
    messages = " ".join(problem.message for problem in source.problems)
    assert "an id that another has" in messages
    assert "several folders" in messages


def test_a_picture_of_another_size_and_another_name(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        if content["image"]["image_id"] == 1:
            content["image"] |= {"width": 30, "file_name": "sa_5.jpg"}

    source = Sa1b(write_sa1b(tmp_path, change=change))
    with pytest.raises(BadData, match="the annotation says 12 x 30"):
        source.read(0, ["image"])
    assert "sa_1.json says sa_5.jpg" in source.problems[0].message


def test_a_change_after_opening_is_seen(tmp_path: Path) -> None:
    before = Sa1b(write_sa1b(tmp_path))
    write_sa1b(tmp_path, change=first_annotation(area=5, note="longer"))
    with pytest.raises(BadData, match="open it again"):
        before.read(0, ["mask"])
    after = Sa1b(tmp_path)
    assert float(after[0]["area"]) == 5
    changed = [before.fingerprint(row) != after.fingerprint(row) for row in range(1, 3)]
    assert before.fingerprint(0) != after.fingerprint(0)
    assert not any(changed) or before.files.stamp("sa_1.jpg") != after.files.stamp("sa_1.jpg")


def test_many_files_are_parsed_in_processes_with_equal_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sa1b(tmp_path, numbers=tuple(range(1, 12)))
    places = [sa1b_json.Place(str(path)) for path in sorted(tmp_path.glob("*.json"))]
    places.insert(3, sa1b_json.Place(str(tmp_path / "gone.json")))
    here = sa1b_json.joined([sa1b_json.parse_files(places, 13)])
    monkeypatch.setattr(sa1b_json, "MANY_FILES", 2)
    monkeypatch.setattr(sa1b_json.os, "sched_getaffinity", lambda _: {0, 1})
    there = sa1b_json.joined([*sa1b_json.parse_all(places, 13)])
    assert (here.small, here.faults, here.file_names) == (there.small, there.faults, there.file_names)
    assert [*here.faults] == [3]
    for name, column in here.rows.items():
        np.testing.assert_array_equal(column, there.rows[name], strict=True)
    np.testing.assert_array_equal(here.counts, there.counts)


def test_a_process_that_dies_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_sa1b(tmp_path)
    places = [sa1b_json.Place(str(path)) for path in sorted(tmp_path.glob("*.json"))]
    monkeypatch.setattr(sa1b_json.sys, "executable", "/bin/false")
    found = sa1b_json._parse_elsewhere(places, 0)
    assert found.counts.tolist() == [3, 3, 3]
    assert "going on here" in caplog.text


def test_many_json_files_open_from_the_cache_without_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = sa1b_members((1,))
    for number in range(3000):
        (tmp_path / f"sa_{number}.json").write_bytes(members["sa_1.json"])
    first = Sa1b(tmp_path, max_images=1500)
    assert len(first) == 4500
    monkeypatch.setattr(Sa1b, "_build", lambda self: pytest.fail("built again"))
    again = Sa1b(tmp_path, max_images=1500)
    assert again.keys[4499] == first.keys[4499]
    assert again.index.kept is not None


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_shared_pairs() -> None:
    folder, tar = Sa1b(SHARED / "sa_000900"), Sa1b(SHARED / "sa_000900.tar")
    assert len(folder) == len(tar) == 68
    assert not folder.problems
    assert not tar.problems
    for row in range(len(folder)):
        record = folder.read(row, ["mask", "box", "area"])
        np.testing.assert_array_equal(record["box"], mask_box(np.asarray(record["mask"])))
        assert record["area"] == np.asarray(record["mask"]).sum()
    np.testing.assert_array_equal(folder[67]["image"], tar[67]["image"])
    records = Sa1b(SHARED / "annotation_examples")
    for row in range(2):
        record = records.read(row, ["mask", "box"])
        np.testing.assert_array_equal(record["box"], mask_box(np.asarray(record["mask"])))
    with pytest.raises(SourceNotFound, match="folder:"):
        Sa1b(SHARED / "images_only")
