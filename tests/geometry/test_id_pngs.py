"""PNG files of masks and id maps: every depth, round trips, damage."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from penstock.errors import BadData, UsageError
from penstock.geometry.id_maps import id_areas, id_boxes
from penstock.geometry.id_pngs import (
    binary_png,
    davis_palette,
    read_id_png,
    read_palette_png,
    read_panoptic_png,
    write_binary_png,
    write_id_png,
    write_palette_png,
    write_panoptic_png,
)

SHARED = Path(__file__).parents[2].parent / "shared"
sizes = st.tuples(st.integers(1, 10), st.integers(1, 10))


def png(picture: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", **options)
    return content.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed_png(numbers: np.ndarray, *, bits: int, palette: np.ndarray | None = None) -> bytes:
    """A PNG written bit by bit, as the standard says: gray, or with a palette."""
    height, width = numbers.shape
    singles = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, width * bits)
    lines = np.packbits(singles, axis=1)
    body = zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes())
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if palette is None else 3, 0, 0, 0)
    colours = b"" if palette is None else chunk(b"PLTE", palette.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@given(st.sampled_from([1, 2, 4, 8]), sizes, st.booleans(), st.data())
def test_numbers_of_every_depth_are_read_as_stored(
    bits: int, size: tuple[int, int], with_palette: bool, data: st.DataObject
) -> None:
    ids = data.draw(arrays(np.uint8, size, elements=st.integers(0, (1 << bits) - 1)))
    palette = davis_palette()[: 1 << bits] if with_palette else None
    content = packed_png(ids, bits=bits, palette=palette)
    np.testing.assert_array_equal(read_id_png(content), ids, strict=True)
    found, colours = read_palette_png(content)
    np.testing.assert_array_equal(found, ids, strict=True)
    if palette is not None:
        np.testing.assert_array_equal(colours, palette, strict=True)
    else:
        shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(colours[ids], shown, strict=True)


@given(st.integers(1, 256), sizes, st.data())
def test_palette_files_come_back(colours: int, size: tuple[int, int], data: st.DataObject) -> None:
    ids = data.draw(arrays(np.int32, size, elements=st.integers(0, colours - 1)))
    palette = np.random.default_rng(colours).integers(0, 256, (colours, 3)).astype(np.uint8)
    found, read = read_palette_png(write_palette_png(ids, palette))
    np.testing.assert_array_equal(found, ids.astype(np.uint8), strict=True)
    np.testing.assert_array_equal(read[:colours], palette, strict=True)
    assert not read[colours:].any()


def test_the_palette_of_davis_is_the_known_one() -> None:
    known = [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128] * 3,
        [64, 0, 0],
    ]
    np.testing.assert_array_equal(davis_palette()[:9], np.array(known, np.uint8), strict=True)
    np.testing.assert_array_equal(davis_palette()[255], [224, 224, 192])
    assert len(np.unique(davis_palette(), axis=0)) == 256
    _, palette = read_palette_png(write_palette_png(np.array([[0, 200]])))
    np.testing.assert_array_equal(palette, davis_palette(), strict=True)


def test_a_palette_that_is_too_short_is_filled_for_reading_and_refused_for_writing() -> None:
    content = packed_png(np.array([[0, 3]]), bits=2, palette=davis_palette()[:2])
    ids, palette = read_palette_png(content)
    assert ids.max() == 3
    np.testing.assert_array_equal(palette[:2], davis_palette()[:2])
    assert palette.shape == (4, 3)
    with pytest.raises(BadData, match=r"ids of 0\.\.1, got 0\.\.3"):
        write_palette_png(ids, davis_palette()[:2])
    with pytest.raises(BadData, match="without a colour"):
        read_panoptic_png(content)
    with pytest.raises(UsageError, match="palette"):
        write_palette_png(ids, np.zeros((300, 3), np.uint8))


@given(sizes.flatmap(lambda size: arrays(np.int64, size, elements=st.integers(0, 65_535))), st.sampled_from([1, 300]))
def test_id_files_come_back(ids: np.ndarray, divisor: int) -> None:
    numbers = ids // divisor
    found = read_id_png(write_id_png(numbers))
    assert found.dtype == (np.uint8 if numbers.max() <= 255 else np.uint16)
    np.testing.assert_array_equal(found, numbers)


@given(sizes.flatmap(lambda size: arrays(np.uint32, size, elements=st.integers(0, (1 << 24) - 1))))
def test_panoptic_files_come_back(ids: np.ndarray) -> None:
    content = write_panoptic_png(ids)
    np.testing.assert_array_equal(read_panoptic_png(content), ids, strict=True)
    picture = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(read_panoptic_png(png(picture.convert("RGBA"))), ids, strict=True)
    colours, indices = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True)
    optimised = write_palette_png(indices.reshape(ids.shape), colours)
    np.testing.assert_array_equal(read_panoptic_png(optimised), ids, strict=True)


@given(sizes.flatmap(lambda size: arrays(np.uint8, size, elements=st.integers(0, 1))))
def test_masks_come_back_from_every_kind_of_file(mask: np.ndarray) -> None:
    files = [
        write_binary_png(mask),
        write_id_png(mask),
        write_palette_png(mask),
        png(Image.fromarray(mask.astype(bool))),
        write_id_png(mask * np.uint16(40_000)),
        packed_png(mask, bits=1),
        packed_png(mask * 3, bits=2),
    ]
    for content in files:
        np.testing.assert_array_equal(binary_png(content), mask, strict=True)


def test_a_file_of_many_numbers_or_of_unclear_colours_is_no_mask() -> None:
    with pytest.raises(BadData, match="3 numbers"):
        binary_png(write_id_png(np.array([[0, 1, 2]])))
    with pytest.raises(BadData, match="2 numbers"):
        binary_png(write_id_png(np.array([[1, 2]])))
    white_first = np.array([[255, 255, 255], [0, 0, 0]], np.uint8)
    with pytest.raises(BadData, match="which is set"):
        binary_png(packed_png(np.array([[0, 1]]), bits=1, palette=white_first))


@pytest.mark.parametrize("read", [read_palette_png, read_id_png, binary_png])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_no_ids(read: object, mode: str) -> None:
    names = {"RGB": "got RGB of 8", "RGBA": "got RGB with alpha", "LA": "got gray with alpha"}
    with pytest.raises(BadData, match=names[mode]):
        read(png(Image.new(mode, (4, 3))))  # type: ignore[operator]


def test_gray_is_no_panoptic_picture_and_16_bits_no_palette() -> None:
    with pytest.raises(BadData, match="got gray of 8"):
        read_panoptic_png(write_id_png(np.array([[1]])))
    with pytest.raises(BadData, match="gray of 16"):
        read_palette_png(write_id_png(np.array([[300]])))


def test_ids_beyond_the_format_are_refused() -> None:
    for write, wrong in ((write_id_png, 65_536), (write_palette_png, 256), (write_panoptic_png, 1 << 24)):
        for number in (wrong, -1):
            with pytest.raises(BadData, match="expected ids of 0"):
                write(np.array([[0, number]]))
    with pytest.raises(BadData, match="0 and 1"):
        write_binary_png(np.array([[0, 255]], np.uint8))


@pytest.mark.parametrize("read", [read_palette_png, read_id_png, read_panoptic_png, binary_png])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff" + bytes(60), b"GIF89a" + bytes(60)])
def test_what_is_no_png_is_bad_data(read: object, content: bytes) -> None:
    with pytest.raises(BadData, match="expected a PNG"):
        read(content)  # type: ignore[operator]


def test_a_file_cut_or_damaged_anywhere_is_bad_data() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (30, 30))
    files = [(write_id_png(ids), read_id_png), (write_palette_png(ids), lambda content: read_palette_png(content)[0])]
    for content, read in files:
        for length in range(0, len(content), 7):
            with pytest.raises(BadData):
                read(content[:length])
        for place in range(8, len(content) - 12, 11):
            damaged = bytearray(content)
            damaged[place] ^= 0x55
            with pytest.raises(BadData):
                read(bytes(damaged))


def test_a_file_that_lost_one_of_its_chunks_is_bad_data() -> None:
    whole = packed_png(np.random.default_rng(0).integers(0, 256, (40, 40)), bits=8)
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    body = whole[start + 8 : end - 4]
    pieces = [chunk(b"IDAT", body[first : first + 500]) for first in range(0, len(body), 500)]
    assert read_id_png(whole[:start] + b"".join(pieces) + whole[end:]).shape == (40, 40)
    for lost in range(len(pieces)):
        with pytest.raises(BadData, match="truncated or damaged"):
            read_id_png(whole[:start] + b"".join(pieces[:lost] + pieces[lost + 1 :]) + whole[end:])


def test_a_hostile_size_takes_no_memory() -> None:
    content = bytearray(packed_png(np.ones((4, 4)), bits=8))
    content[16:24] = struct.pack(">II", 1 << 30, 1 << 30)
    with pytest.raises(BadData, match="pixels, got"):
        read_id_png(bytes(content))


@pytest.mark.skipif(not (SHARED / "data/coco_panoptic").is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(("folder", "segments"), [("coco_panoptic", 24), ("camvid_panoptic", 66)])
def test_segments_of_panoptic_files_have_the_areas_and_boxes_of_the_json(folder: str, segments: int) -> None:
    root = SHARED / "data" / folder
    seen = 0
    for annotation in json.loads((root / "annotations/panoptic_val2017.json").read_text())["annotations"]:
        content = (root / "panoptic_val2017" / annotation["file_name"]).read_bytes()
        ids = read_panoptic_png(content)
        found, areas = id_areas(ids)
        _, boxes = id_boxes(ids)
        place = {one: index for index, one in enumerate(found.tolist())}
        for segment in annotation["segments_info"]:
            assert areas[place.pop(segment["id"])] == segment["area"]
            np.testing.assert_array_equal(boxes[found == segment["id"]][0], segment["bbox"])
            seen += 1
        assert set(place) <= {0}
        np.testing.assert_array_equal(read_panoptic_png(write_panoptic_png(ids)), ids)
    assert seen == segments


@pytest.mark.skipif(not (SHARED / "data/sav").is_dir(), reason="needs the shared data")
def test_masks_of_sav_and_open_images_are_read() -> None:
    masks = sorted((SHARED / "data/sav/sav_val").rglob("*.png")) + sorted((SHARED / "data/openimages").rglob("*.png"))
    assert len(masks) >= 24
    for path in masks:
        mask = binary_png(path.read_bytes())
        np.testing.assert_array_equal(mask, np.asarray(Image.open(path).convert("L")) > 0)
        np.testing.assert_array_equal(binary_png(write_binary_png(mask)), mask)


@pytest.mark.skipif(not (SHARED / "data/scenes_truth").is_dir(), reason="needs the shared data")
def test_id_maps_of_16_bits_come_back() -> None:
    paths = sorted((SHARED / "data/scenes_truth").rglob("*.png"))[::6]
    assert paths
    for path in paths:
        ids = read_id_png(path.read_bytes())
        np.testing.assert_array_equal(read_id_png(write_id_png(ids)), ids)
