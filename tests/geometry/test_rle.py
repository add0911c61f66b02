"""COCO RLE: round trips, pycocotools as the judge, damaged and hostile counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import BadData, MissingExtra
from penstock.geometry.boxes import mask_box, one_less_to_xywh
from penstock.geometry.masks import MAX_MASK_PIXELS
from penstock.geometry.rle import decode_rle, encode_rle, rle_area, rle_box, rle_counts

coco = pytest.importorskip("pycocotools.mask")
judged_by_coco = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools.decode and toBbox warn under NumPy 2; penstock calls neither."""
SHARED = Path(__file__).parents[2].parent / "shared"

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.integers(0, 1))
)


def texts(mask: np.ndarray) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(mask))


@judged_by_coco
@given(masks)
def test_masks_come_back_and_pycocotools_agrees(mask: np.ndarray) -> None:
    text, listed = encode_rle(mask), encode_rle(mask, compressed=False)
    judged = texts(mask)
    assert text == {"size": list(mask.shape), "counts": judged["counts"].decode()}
    assert coco.frPyObjects(listed, *mask.shape)["counts"] == judged["counts"]
    for rle in (text, listed, judged, json.loads(json.dumps(text)), json.loads(json.dumps(listed))):
        np.testing.assert_array_equal(decode_rle(rle, mask.shape), mask, strict=True)
        assert rle_area(rle) == coco.area(judged) == mask.sum()
        np.testing.assert_array_equal(rle_box(rle), mask_box(mask), strict=True)
        np.testing.assert_array_equal(rle_box(rle), coco.toBbox(judged))
    np.testing.assert_array_equal(coco.decode(judged), mask)


@judged_by_coco
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 9))
def test_runs_of_no_length_are_read_as_pycocotools_reads_them(counts: list[int], height: int) -> None:
    counts.append(-sum(counts) % height + height)
    size = [height, sum(counts) // height]
    judged = coco.frPyObjects({"size": size, "counts": counts}, *size)
    for rle in ({"size": size, "counts": counts}, judged):
        mask = decode_rle(rle)
        np.testing.assert_array_equal(mask, coco.decode(judged))
        assert rle_area(rle) == mask.sum()
        np.testing.assert_array_equal(rle_box(rle), mask_box(mask))


def test_large_runs_and_large_differences() -> None:
    mask = np.zeros((6000, 5000), np.uint8)
    mask[:, 17] = 1
    mask[3, 4000] = 1
    mask[5000:, 4999] = 1
    rle = encode_rle(mask)
    np.testing.assert_array_equal(rle_counts(rle)[0], encode_rle(mask, compressed=False)["counts"])
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(rle_box(rle), mask_box(mask))


@judged_by_coco
@given(st.binary(max_size=12), st.integers(1, 5), st.integers(1, 5))
def test_any_bytes_are_a_mask_of_that_size_or_bad_data(content: bytes, height: int, width: int) -> None:
    try:
        mask = decode_rle({"size": [height, width], "counts": content})
    except BadData:
        return
    np.testing.assert_array_equal(mask, coco.decode({"size": [height, width], "counts": content}))


@judged_by_coco
@given(masks, st.data())
def test_damaged_text_is_bad_data_or_what_pycocotools_reads(mask: np.ndarray, data: st.DataObject) -> None:
    text = bytearray(texts(mask)["counts"])
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(48, 111))
    rle = {"size": list(mask.shape), "counts": bytes(text)}
    try:
        found = decode_rle(rle)
    except BadData:
        return
    np.testing.assert_array_equal(found, coco.decode(rle))


@pytest.mark.parametrize("counts", [[2, 3], (5,), np.array([1, 4], np.uint16), "5", b"5"])
def test_lists_of_any_kind_are_counts(counts: Any) -> None:
    assert decode_rle({"size": (5, 1), "counts": counts}).shape == (5, 1)


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"counts": [4]}, "size and counts"),
        ([[1, 2, 3]], "size and counts"),
        ({"size": [2], "counts": [4]}, "two whole numbers"),
        ({"size": [2.0, 2.0], "counts": [4]}, "two whole numbers"),
        ({"size": [True, 4], "counts": [4]}, "two whole numbers"),
        ({"size": None, "counts": [4]}, "two whole numbers"),
        ({"size": [0, 2], "counts": []}, "expected a size"),
        ({"size": [-2, -2], "counts": [4]}, "expected a size"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "expected a size"),
        ({"size": [2**40, 2**40], "counts": [2**80]}, "expected a size"),
        ({"size": [2, 2], "counts": [3]}, "sum to 4"),
        ({"size": [2, 2], "counts": []}, "sum to 4"),
        ({"size": [2, 2], "counts": ""}, "sum to 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "runs of 0..4"),
        ({"size": [2, 2], "counts": [2**63, 2**63 + 4]}, "whole numbers"),
        ({"size": [2, 2], "counts": [2**80]}, "whole numbers"),
        ({"size": [2, 2], "counts": [2.0, 2.0]}, "whole numbers"),
        ({"size": [2, 2], "counts": ["2", "2"]}, "whole numbers"),
        ({"size": [2, 2], "counts": [[2], [1, 1]]}, "whole numbers"),
        ({"size": [2, 2], "counts": None}, "NoneType"),
        ({"size": [2, 2], "counts": 4}, "int"),
        ({"size": [2, 2], "counts": "4 "}, "48..111, got 32 at 1"),
        ({"size": [2, 2], "counts": "4\u00e9"}, "48..111"),
        ({"size": [2, 2], "counts": "4p"}, "48..111"),
        ({"size": [2, 2], "counts": "4P"}, "cut inside a number"),
        ({"size": [2, 2], "counts": "P" * 40 + "0"}, "characters, got one of 41"),
        ({"size": [2, 2], "counts": "oooooo7"}, "damaged"),
    ],
)
def test_what_is_no_rle_is_bad_data(rle: Any, words: str) -> None:
    with pytest.raises(BadData, match=words):
        decode_rle(rle)
    with pytest.raises(BadData, match=words):
        rle_area(rle)


def test_the_size_must_be_that_of_the_picture() -> None:
    rle = {"size": [2, 3], "counts": [6]}
    assert decode_rle(rle, (2, 3)).shape == (2, 3)
    with pytest.raises(BadData, match="swapped"):
        decode_rle(rle, (3, 2))
    with pytest.raises(BadData, match="expected the size of the picture, 4 x 4"):
        rle_box(rle, (4, 4))


def test_a_hostile_size_takes_no_memory() -> None:
    side = MAX_MASK_PIXELS
    with pytest.raises(BadData, match="expected a size"):
        decode_rle({"size": [side, 2], "counts": [side * 2]})


def test_no_binary_mask_has_no_rle() -> None:
    with pytest.raises(BadData, match="0 and 1"):
        encode_rle(np.array([[0, 255]], np.uint8))


def test_without_pycocotools_all_but_writing_text_works(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([[0, 1], [1, 1]], np.uint8)
    text = encode_rle(mask)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    np.testing.assert_array_equal(decode_rle(text), mask)
    assert encode_rle(mask, compressed=False) == {"size": [2, 2], "counts": [1, 3]}
    with pytest.raises(MissingExtra, match=r"pycocotools.*penstock\[coco\]"):
        encode_rle(mask)


@judged_by_coco
@pytest.mark.skipif(not (SHARED / "data/sa1b_like").is_dir(), reason="needs the shared data")
def test_masks_of_sa1b_have_the_areas_and_boxes_that_are_written_beside() -> None:
    seen = 0
    for path in sorted((SHARED / "data/sa1b_like").rglob("sa_*.json")):
        record = json.loads(path.read_text())
        for annotation in record["annotations"]:
            rle = annotation["segmentation"]
            size_hw = (record["image"]["height"], record["image"]["width"])
            np.testing.assert_array_equal(decode_rle(rle, size_hw), coco.decode(rle))
            assert rle_area(rle) == annotation["area"]
            np.testing.assert_array_equal(rle_box(rle), one_less_to_xywh(np.array(annotation["bbox"])))
            assert encode_rle(decode_rle(rle)) == {"size": rle["size"], "counts": rle["counts"]}
            seen += 1
    assert seen == 70
