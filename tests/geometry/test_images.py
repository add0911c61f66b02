"""Pictures: decoded faithfully, or refused with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from penstock.errors import BadData
from penstock.geometry.images import decode_picture, encode_jpeg, picture_header, stretch


def ramp(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 200 // height, x * 200 // width, (x + y) * 2], axis=-1).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned_jpeg(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0, exif=exif)


def png_16_bit(channels: int) -> bytes:
    kind = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + b"\x12\x34" * channels * 4 for _ in range(4))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def near(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and np.abs(left.astype(int) - right.astype(int)).mean() < 4


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(mode: str, kind: str) -> None:
    picture = Image.fromarray(ramp()).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    found = decode_picture(encoded(picture, kind))
    assert found.dtype == np.uint8
    assert near(found, expected)


def test_cmyk_is_what_pillow_makes_of_it() -> None:
    content = encoded(Image.fromarray(ramp()).convert("CMYK"), "JPEG", quality=95)
    assert picture_header(content).mode == "CMYK"
    np.testing.assert_array_equal(decode_picture(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_refused(channels: int) -> None:
    with pytest.raises(BadData, match="8 bits per colour"):
        decode_picture(png_16_bit(channels))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_bad_data_wherever_it_is_cut(kind: str) -> None:
    content = encoded(Image.fromarray(ramp()), kind)
    for cut in range(len(content)):
        with pytest.raises(BadData, match="picture"):
            decode_picture(content[:cut])


def test_a_truncated_cmyk_jpeg_is_bad_data() -> None:
    content = encoded(Image.fromarray(ramp(200, 200)).convert("CMYK"), "JPEG")
    with pytest.raises(BadData, match="truncated"):
        decode_picture(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_what_is_no_picture_is_bad_data(content: bytes) -> None:
    with pytest.raises(BadData, match="picture"):
        decode_picture(content)


def test_a_decompression_bomb_is_refused_before_it_unpacks() -> None:
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    chunks = b"".join(bytes(4) + name + struct.pack(">I", zlib.crc32(name)) for name in (b"IDAT", b"IEND"))
    with pytest.raises(BadData, match=r"at most|bomb"):
        decode_picture(content + chunks)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_turned_picture_follows_the_original_size(orientation: int) -> None:
    pixels = ramp()
    content = turned_jpeg(pixels, orientation)
    assert near(decode_picture(content, expected_hw=(24, 40)), pixels)
    steps = {5: (Image.Transpose.TRANSPOSE), 6: (Image.Transpose.ROTATE_270), 7: (Image.Transpose.TRANSVERSE)}
    upright = Image.fromarray(pixels).transpose(steps.get(orientation, Image.Transpose.ROTATE_90))
    assert near(decode_picture(content, expected_hw=(40, 24)), np.asarray(upright))


@pytest.mark.parametrize(
    ("orientation", "size_hw", "expected_hw"),
    [
        (6, (24, 40), None),
        (6, (24, 40), (240, 400)),
        (6, (24, 24), (24, 24)),
        (3, (24, 40), (24, 40)),
        (2, (24, 40), None),
    ],
)
def test_an_orientation_that_cannot_be_decided_is_bad_data(
    orientation: int, size_hw: tuple[int, int], expected_hw: tuple[int, int] | None
) -> None:
    with pytest.raises(BadData, match=f"orientation {orientation}.*cannot be told"):
        decode_picture(turned_jpeg(ramp(*size_hw), orientation), expected_hw=expected_hw)


def test_orientation_one_is_no_orientation() -> None:
    assert near(decode_picture(turned_jpeg(ramp(), 1)), ramp())


def test_stretch_keeps_a_picture_of_the_right_size_untouched() -> None:
    pixels = ramp()
    assert stretch(pixels, (24, 40)) is pixels
    assert stretch(pixels, (48, 20)).shape == (48, 20, 3)


def test_jpeg_round_trip_is_close() -> None:
    content = encode_jpeg(ramp())
    assert picture_header(content).size_hw == (24, 40)
    assert near(decode_picture(content), ramp())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([encoded(Image.fromarray(ramp()), "JPEG"), encoded(Image.fromarray(ramp()), "PNG")]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_any_damage_gives_pixels_or_bad_data(content: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    try:
        pixels = decode_picture(bytes(damaged))
    except BadData:
        return
    assert pixels.dtype == np.uint8
