"""The reader of RefCOCO."""

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.rle import encode_rle
from penstock.readers.base import Reader
from penstock.readers.refcoco import Refcoco
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "refcoco"
pycocotools_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Changes = Callable[[list[dict[str, Any]], dict[str, Any]], None]


def _sentence(sent_id: int, text: str) -> dict[str, Any]:
    return {"tokens": text.lower().split(), "raw": f"{text}!", "sent_id": sent_id, "sent": text.lower()}


def _reference(ref_id: int, ann_id: int, image_id: int, split: str, *texts: str) -> dict[str, Any]:
    first = 10 * ref_id
    return {
        "sent_ids": [first + place for place in range(len(texts))],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": [_sentence(first + place, text) for place, text in enumerate(texts)],
        "category_id": 1 + ann_id % 2,
    }


def references() -> list[dict[str, Any]]:
    """Seven references to objects of three pictures, not in order."""
    return [
        _reference(12, 1003, 900, "train", "The left dog", "dog"),
        _reference(3, 1001, 581857, "train", "Two parts"),
        _reference(2, 1002, 900, "train", "caf\u00e9 sign", "sign", "the sign"),
        _reference(4, 1004, 581857, "val", "runs"),
        _reference(5, 1001, 581857, "testA", "one"),
        _reference(6, 1004, 581857, "testB", "two"),
        _reference(7, 1005, 77, "testAB", "three", "four"),
    ]


def instances() -> dict[str, Any]:
    """Pictures of 12 x 16 and more; polygons, one of two parts that overlap, and both forms of RLE."""

    def annotation(number: int, image_id: int, segmentation: object, **values: object) -> dict[str, Any]:
        entry = {"id": number, "image_id": image_id, "segmentation": segmentation, "bbox": [2, 1.5, 6, 5], "area": 24.5}
        return entry | {"iscrowd": 0, "category_id": 1 + number % 2} | values

    return {
        "images": [
            {"id": image_id, "file_name": f"COCO_train2014_{image_id:012d}.jpg", "height": 12, "width": 16}
            for image_id in (581857, 900, 77)
        ],
        "annotations": [
            annotation(1001, 581857, [[2, 1, 8, 1, 8, 6, 2, 6], [4, 3, 12.5, 3, 12.5, 9, 4, 9]]),
            annotation(1002, 900, [[2.2, 1.7, 8.1, 1, 7.5, 6.6]]),
            annotation(1003, 900, {"size": [12, 16], "counts": [30, 5, 157]}, iscrowd=1),
            annotation(1004, 581857, {"size": [12, 16], "counts": [0, 192]}),
            annotation(1005, 77, [[1, 1, 5, 1, 5, 5]]),
            annotation(9999, 77, [[1, 1, 5, 1, 5, 5]]),
        ],
        "categories": [{"id": 1, "name": "sign"}, {"id": 2, "name": "dog"}],
    }


def write_refcoco(
    root: Path, *, dataset: str = "refcoco", split_by: str = "unc", change: Changes | None = None, mmdet: bool = False
) -> Path:
    """A small dataset in the layout of the REFER API, or of mmdet."""
    refs, content = references(), instances()
    mask = np.zeros((12, 16), np.uint8)
    mask[2:9, 3:12] = 1
    content["annotations"][3]["segmentation"] = encode_rle(mask)
    if change:
        change(refs, content)
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, 2))
    (folder / "instances.json").write_text(json.dumps(content))
    pictures = folder / "coco2014/train2014" if mmdet else root / "images/mscoco/images/train2014"
    pictures.mkdir(parents=True, exist_ok=True)
    for number, image_id in enumerate((77, 900, 581857)):
        pixels = np.full((12, 16, 3), 50 * number, np.uint8)
        (pictures / f"COCO_train2014_{image_id:012d}.jpg").write_bytes(encode_picture(pixels, "jpg"))
    return root


class TestRefcoco(ReaderTests):
    """The contract, over every split."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_refcoco(tmp_path / "data")

    def make_reader(self) -> Reader:
        """Eleven sentences."""
        return Refcoco(self.root, split="all")


def test_every_reference_and_every_sentence_in_order(tmp_path: Path) -> None:
    reader = Refcoco(write_refcoco(tmp_path))
    assert list(reader.keys) == ["2_20", "2_21", "2_22", "12_120", "12_121", "3_30"]
    assert [(group.name, group.start, group.stop) for group in reader.groups] == [("900", 0, 5), ("581857", 5, 6)]
    record = reader[0]
    assert (record["sentence"], record["raw"]) == ("caf\u00e9 sign", "caf\u00e9 sign!")
    assert [int(record[name]) for name in ("ref_id", "sent_id", "annotation_id", "category_id")] == [2, 20, 1002, 1]
    assert (record["category"], record["split"], record["image_id"]) == ("sign", "train", "900")
    assert record["box"].tolist() == [2, 1.5, 6, 5]
    assert (float(record["area"]), bool(record["iscrowd"])) == (24.5, False)
    assert bool(reader[3]["iscrowd"])
    assert not reader.problems


def test_the_picture_is_that_of_instances_json(tmp_path: Path) -> None:
    reader = Refcoco(write_refcoco(tmp_path))
    assert reader[5]["path"] == "images/mscoco/images/train2014/COCO_train2014_000000581857.jpg"
    assert abs(int(reader[5]["image"][0, 0, 0]) - 100) < 3


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("val", {4}),
        ("test", {5, 6, 7}),
        ("testA", {5, 7}),
        ("testB", {6, 7}),
        ("train", {2, 3, 12}),
        ("all", {2, 3, 4, 5, 6, 7, 12}),
    ],
)
def test_splits_are_those_of_the_refer_api(tmp_path: Path, split: Any, expected: set[int]) -> None:
    assert set(Refcoco(write_refcoco(tmp_path), split=split).column("ref_id").tolist()) == expected


def _refer(root: Path, split: str) -> list[tuple[dict[str, Any], dict[str, Any], np.ndarray]]:
    """What the REFER API reads of a split: getRefIds(split=...), loadRefs, getMask, each reference with its sentences.

    Its getMask adds the masks of the polygons up (`np.sum(axis=2)`): a pixel in two of them is 2 there, set here.
    """
    coco_mask = pytest.importorskip("pycocotools.mask")
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
    content = json.loads((root / "refcoco" / "instances.json").read_text())
    objects = {entry["id"]: entry for entry in content["annotations"]}
    photos = {entry["id"]: entry for entry in content["images"]}
    if split in ("testA", "testB", "testC"):
        chosen = [ref for ref in refs if split[-1] in ref["split"]]
    elif split == "test":
        chosen = [ref for ref in refs if "test" in ref["split"]]
    else:
        chosen = [ref for ref in refs if ref["split"] == split]
    found = []
    for ref in chosen:
        annotation, photo = objects[ref["ann_id"]], photos[ref["image_id"]]
        rle = annotation["segmentation"]
        if isinstance(rle, list) or isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, photo["height"], photo["width"])
        mask = coco_mask.decode(rle)
        mask = mask.sum(axis=2) if mask.ndim == 3 else mask
        found += [(ref, sentence, mask > 0) for sentence in ref["sentences"]]
    return found


def _compare_with_refer(root: Path, split: Any) -> None:
    reader, expected = Refcoco(root, split=split), _refer(root, split)
    assert len(reader) == len(expected)
    rows = {key: row for row, key in enumerate(reader.keys)}
    for ref, sentence, mask in expected:
        record = reader[rows[f"{ref['ref_id']}_{sentence['sent_id']}"]]
        assert (record["sentence"], record["raw"]) == (sentence["sent"], sentence["raw"])
        assert int(record["annotation_id"]) == ref["ann_id"]
        assert record["image_id"] == str(ref["image_id"])
        assert record["split"] == ref["split"]
        np.testing.assert_array_equal(record["mask"], mask)


@pycocotools_warns
@pytest.mark.parametrize("split", ["train", "val", "test", "testA", "testB"])
def test_numbers_equal_those_of_the_refer_api(tmp_path: Path, split: str) -> None:
    _compare_with_refer(write_refcoco(tmp_path), split)


@pycocotools_warns
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("split", ["train", "val"])
def test_shared_data_equal_those_of_the_refer_api(split: str) -> None:
    _compare_with_refer(SHARED, split)


def test_the_layout_of_mmdet_and_another_folder_of_pictures(tmp_path: Path) -> None:
    reader = Refcoco(write_refcoco(tmp_path / "mmdet", mmdet=True))
    assert reader[0]["path"].startswith("refcoco/coco2014/train2014/")
    assert reader[0]["image"].shape == (12, 16, 3)
    refer = write_refcoco(tmp_path / "refer")
    shutil.move(refer / "images", tmp_path / "elsewhere")
    with pytest.raises(SourceNotFound, match="no pictures in any of images/mscoco/images/train2014"):
        Refcoco(refer)
    folder = tmp_path / "elsewhere" / "mscoco" / "images" / "train2014"
    assert Refcoco(refer, images=str(folder))[0]["image"].shape == (12, 16, 3)


def test_datasets_and_splittings_are_chosen_or_named(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    write_refcoco(tmp_path, dataset="refcoco+")
    with pytest.raises(UsageError, match=r"refcoco, refcoco\+; say which \(dataset=NAME\)"):
        Refcoco(tmp_path)
    opened = open_source(f"refcoco:{tmp_path}?dataset=refcoco+&split=val")
    assert isinstance(opened, Refcoco)
    assert (opened.dataset, len(opened)) == ("refcoco+", 1)
    write_refcoco(tmp_path, dataset="refcoco+", split_by="google")
    with pytest.raises(UsageError, match=r"google, unc; say which \(split_by=NAME\)"):
        Refcoco(tmp_path, dataset="refcoco+")
    assert Refcoco(tmp_path, dataset="refcoco+", split_by="google").describe()["split_by"] == "google"
    with pytest.raises(SourceNotFound, match=r"no refcocog/refs\(\*\)\.p; there is refcoco/refs\(unc\)\.p"):
        Refcoco(tmp_path, dataset="refcocog")


def test_a_wrong_root_is_told_the_right_one(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "data")
    for wrong in (tmp_path, root / "refcoco", root / "images" / "mscoco"):
        with pytest.raises(SourceNotFound, match=f"Did you mean {root}"):
            Refcoco(wrong)
    with pytest.raises(SourceNotFound, match="no such folder"):
        Refcoco(tmp_path / "nowhere")
    (root / "refcoco" / "instances.json").unlink()
    with pytest.raises(SourceNotFound, match=r"no refcoco/instances\.json"):
        Refcoco(root)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        SourceNotFound, match="no reference of split testC; the splits are testA, testAB, testB, train, val"
    ):
        Refcoco(write_refcoco(tmp_path), split="testC")


def test_description_counts_every_split(tmp_path: Path) -> None:
    found = Refcoco(write_refcoco(tmp_path)).describe()
    assert (found["references"], found["sentences"]) == (3, 6)
    assert found["splits"] == {
        "testA": {"references": 1, "sentences": 1, "images": 1},
        "testAB": {"references": 1, "sentences": 2, "images": 1},
        "testB": {"references": 1, "sentences": 1, "images": 1},
        "train": {"references": 3, "sentences": 6, "images": 2},
        "val": {"references": 1, "sentences": 1, "images": 1},
    }


def _fail(root: Path, row: int, field: str, message: str, change: Changes) -> Refcoco:
    """A field of one row fails; its sentence is still there, and so are the other rows."""
    reader = Refcoco(write_refcoco(root, change=change))
    with pytest.raises(BadData, match=message):
        reader.read(row, [field])
    assert reader.read(row, ["raw"])["raw"]
    assert reader.read(5 - row, ["mask"])["mask"].any()
    return reader


def test_an_annotation_that_is_missing_fails_its_rows_and_is_counted(tmp_path: Path) -> None:
    def change(refs: list[dict[str, Any]], content: dict[str, Any]) -> None:
        refs[1]["ann_id"] = 4711

    for field in ("mask", "box", "area", "iscrowd"):
        message = "ref_id 3, sent_id 30, annotation_id 4711.*no such annotation"
        reader = _fail(tmp_path / field, 5, field, message, change)
        assert "1 references (1 rows)" in reader.problems[0].message
        assert "ref_id 3: annotation_id 4711" in reader.problems[0].message
        assert reader.describe()["rows_without_annotation"] == 1


def test_an_annotation_of_another_picture_fails(tmp_path: Path) -> None:
    reader = _fail(tmp_path, 5, "mask", "one of another picture", lambda refs, _: refs[1].update(ann_id=1002))
    assert "of another picture" in reader.problems[0].message


def test_a_picture_that_is_missing_fails_its_rows_and_is_counted(tmp_path: Path) -> None:
    reader = _fail(tmp_path / "a", 5, "image", "no entry with a file_name", lambda _, content: content["images"].pop(0))
    assert "image_id 581857" in reader.problems[0].message
    write_refcoco(tmp_path / "b")
    (tmp_path / "b/images/mscoco/images/train2014/COCO_train2014_000000581857.jpg").unlink()
    with pytest.raises(BadData, match=r"COCO_train2014_000000581857\.jpg: expected a file"):
        Refcoco(tmp_path / "b").read(5, ["image"])


@pytest.mark.parametrize(
    ("field", "message", "values"),
    [
        ("mask", "expected a list of polygons or an RLE mapping, got NoneType", {"segmentation": None}),
        ("mask", "expected a list of polygons or an RLE mapping, got str", {"segmentation": "mask.png"}),
        ("mask", "expected one or more, got none", {"segmentation": []}),
        ("mask", "even count", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}),
        ("mask", "expected the size of the picture", {"segmentation": {"size": [16, 12], "counts": [192]}}),
        ("mask", "got an empty one", {"segmentation": {"size": [12, 16], "counts": [192]}}),
        ("box", "not finite", {"bbox": [1, None, 2, 3]}),
        ("box", "not finite", {"bbox": "1 2 3 4"}),
        ("box", "outside the picture", {"bbox": [40, 2, 3, 3]}),
        ("box", "empty", {"bbox": [4, 2, 0, 3]}),
        ("area", "expected area to be a number", {"area": None}),
    ],
)
def test_a_wrong_annotation_fails_its_row(tmp_path: Path, field: str, message: str, values: dict[str, object]) -> None:
    _fail(tmp_path, 5, field, f"ref_id 3, .*{message}", lambda _, content: content["annotations"][0].update(values))


def test_an_unknown_category_and_an_empty_sentence_fail(tmp_path: Path) -> None:
    reader = _fail(tmp_path / "a", 5, "category", "got 7, not in it", lambda refs, _: refs[1].update(category_id=7))
    assert "category_id 7" in reader.problems[0].message
    _fail(
        tmp_path / "b",
        5,
        "sentence",
        "expected a sentence, got ' '",
        lambda r, _: r[1]["sentences"][0].update(sent=" "),
    )


def test_a_picture_of_another_size_fails(tmp_path: Path) -> None:
    _fail(tmp_path, 5, "image", "16 x 12", lambda _, content: content["images"][0].update(height=16, width=12))


def test_entries_that_are_no_references_are_counted(tmp_path: Path) -> None:
    def change(refs: list[dict[str, Any]], content: dict[str, Any]) -> None:
        refs[1].pop("ann_id")
        refs[3]["sentences"] = []
        refs[0]["sentences"][1].pop("sent")
        refs[2]["sentences"][0]["sent"] = "half \ud800"
        refs.append("text")  # type: ignore[arg-type]  # on purpose

    reader = Refcoco(write_refcoco(tmp_path, change=change), split="all")
    (problem,) = reader.problems
    for part in ("5 entries", "expected ann_id", "ref_id 4: expected sentences, got none", "ref_id 12, sentence 1"):
        assert part in problem.message
    assert len(reader) == 7


def test_ids_that_repeat_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="got 2 twice"):
        Refcoco(write_refcoco(tmp_path / "a", change=lambda refs, _: refs.append(copy.deepcopy(refs[2]))))
    with pytest.raises(BadData, match="its own sent_id, got 20, 20, 22"):
        Refcoco(write_refcoco(tmp_path / "b", change=lambda refs, _: refs[2]["sentences"][1].update(sent_id=20)))


def test_hostile_and_broken_files_are_refused(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path)
    path = root / "refcoco" / "refs(unc).p"
    whole = path.read_bytes()
    for content, message in (
        (b"cos\nsystem\n(S'true'\ntR.", r"refs\(unc\)\.p: the pickle asks for os\.system"),
        (whole[:200], r"refs\(unc\)\.p: expected a whole pickle"),
        (pickle.dumps({"a": 1}), "expected a list of references, got dict"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadData, match=message):
            Refcoco(root)
    path.write_bytes(whole)
    for text, message in (("{", "broken JSON"), ("[]", "expected a JSON dict"), ("{}", "expected a list 'images'")):
        (root / "refcoco" / "instances.json").write_text(text)
        with pytest.raises(BadData, match=message):
            Refcoco(root)


def _python_2(value: object) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: texts are bytes; `\\xe9` of Latin-1 stays."""
    if isinstance(value, dict):
        items = b"".join(_python_2(key) + _python_2(inner) for key, inner in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python_2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little")
    content = value if isinstance(value, bytes) else str(value).encode()
    return b"T" + len(content).to_bytes(4, "little") + content


def test_the_pickles_of_python_2(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path)
    expected = [Refcoco(root)[row]["raw"] for row in range(6)]
    refs = references()
    path = root / "refcoco" / "refs(unc).p"
    path.write_bytes(b"\x80\x02" + _python_2(refs) + b".")
    reader = Refcoco(root)
    assert [reader[row]["raw"] for row in range(6)] == expected
    assert not reader.problems
    refs[2]["sentences"][0]["raw"] = b"caf\xe9"
    path.write_bytes(b"\x80\x02" + _python_2(refs) + b".")
    reader = Refcoco(root)
    assert reader[0]["raw"] == "caf\u00e9"
    assert "1 texts are no UTF-8 and were read as Latin-1" in reader.problems[0].message


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_refcoco(tmp_path)
    first = Refcoco(root)
    prints = [first.fingerprint(row) for row in range(6)]
    path = root / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["area"] = 7
    path.write_text(json.dumps(content))
    second = Refcoco(root)
    assert float(second[5]["area"]) == 7
    assert [a == b for a, b in zip(prints, map(second.fingerprint, range(6)), strict=True)] == [True] * 5 + [False]
    monkeypatch.setattr(Refcoco, "_build", lambda _: pytest.fail("built though nothing changed"))
    assert list(Refcoco(root).keys) == list(first.keys)
