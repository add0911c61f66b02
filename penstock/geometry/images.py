"""Pictures: decoding that refuses what it cannot give faithfully, stretching, encoding."""

import io
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from penstock.errors import BadData, MissingExtra
from penstock.geometry.id_pngs import PNG_END
from penstock.geometry.masks import MAX_MASK_PIXELS

try:
    import cv2
    import simplejpeg
except ImportError as error:
    missing = "simplejpeg" if "simplejpeg" in str(error) else "opencv-python-headless"
    raise MissingExtra(missing, "images", "decoding pictures") from error

MAX_PIXELS = MAX_MASK_PIXELS
"""A larger picture is taken for a decompression bomb. The largest of SA-1B have 2^24."""

_ORIENTATION = 0x0112
_PIL_ERRORS = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True)
class PictureHeader:
    """What a picture says before its pixels are decoded."""

    format: str
    """"JPEG" or "PNG"."""
    mode: str
    """Pillow's name of the colour mode: RGB, L, CMYK, P, RGBA, LA, 1, ..."""
    size_hw: tuple[int, int]
    """Height and width as stored."""
    orientation: int
    """EXIF orientation, 1..8; 1 where there is none, or none that can be read."""


def picture_header(content: bytes) -> PictureHeader:
    """Format, colours, size and EXIF orientation, without decoding.

    Raises:
        BadData: no JPEG or PNG, damaged, of more than 8 bits per colour, or of more than `MAX_PIXELS`.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        if content[24:25] == b"\x10":
            raise BadData("picture: expected 8 bits per colour, got a PNG of 16; convert it with the range you mean")
        if PNG_END not in content:
            raise BadData(f"picture: the PNG of {len(content)} bytes is truncated: expected an IEND chunk, got none")
    elif not content.startswith(b"\xff\xd8"):
        raise BadData(f"picture: expected a JPEG or a PNG, got {len(content)} bytes that start with {content[:8]!r}")
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            width, height = picture.size
            header = PictureHeader(str(picture.format), picture.mode, (height, width), _orientation(picture))
    except _PIL_ERRORS as error:
        raise BadData(f"picture: its header cannot be read: {error}") from error
    if not 0 < height * width <= MAX_PIXELS:
        raise BadData(f"picture: expected at most {MAX_PIXELS} pixels, got {height} x {width}")
    if header.mode.startswith(("I", "F")):
        raise BadData(f"picture: expected 8 bits per colour, got mode {header.mode}")
    return header


def decode_picture(
    content: bytes, *, expected_hw: tuple[int, int] | None = None, exif: Literal["decide", "apply", "ignore"] = "decide"
) -> np.ndarray:
    """The pixels of a JPEG or PNG, in the orientation that `expected_hw` proves.

    Palettes, alpha (dropped), gray and CMYK (as Pillow converts it) become RGB. A picture with an EXIF orientation
    other than 1 is ambiguous: a reader that honours it sees another picture than one that does not, and what came with
    it (features, boxes) was made from one of the two. It is decided by `expected_hw` or refused, never guessed.

    Args:
        content: the file's bytes.
        expected_hw: height and width of the original picture, if known. Used only for turned pictures.
        exif: "apply" turns the picture upright as a viewer does, "ignore" gives it as stored: for pictures that nothing
            else came with.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadData: as `picture_header`; truncated or damaged pixels; or an orientation that cannot be decided.
    """
    header = picture_header(content)
    known = {"apply": header.orientation, "ignore": 1}
    turn = known[exif] if exif in known else _decided_turn(header, expected_hw)
    is_plain_jpeg = header.format == "JPEG" and header.mode in ("RGB", "L")
    pixels = _decode_jpeg(content) if is_plain_jpeg else _decode_with_pillow(content)
    return np.ascontiguousarray(_turned(pixels, turn))


def stretch(pixels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to (h, w, 3) uint8 by OpenCV's INTER_LINEAR; aspect is not kept, nothing is padded."""
    if pixels.shape[:2] == size_hw:
        return pixels
    stretched: np.ndarray = cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return stretched


def encode_jpeg(pixels: np.ndarray, *, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG without chroma subsampling (4:4:4)."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")
    return encoded


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except _PIL_ERRORS:
        return 1  # no reader can have turned a picture by EXIF that cannot be read
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _decided_turn(header: PictureHeader, expected_hw: tuple[int, int] | None) -> int:
    """The orientation to apply: 1 for as stored.

    Raises:
        BadData: it cannot be decided.
    """
    if header.orientation == 1:
        return 1
    height, width = header.size_hw
    if header.orientation >= 5 and height != width:
        if expected_hw == (height, width):
            return 1
        if expected_hw == (width, height):
            return header.orientation
    raise BadData(
        f"picture: EXIF orientation {header.orientation} of a picture stored as {height} x {width}, "
        f"original size {expected_hw}: it cannot be told whether features and boxes belong to the stored or to the "
        f"turned picture; write the picture upright, without EXIF orientation"
    )


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels upright."""
    if orientation in (2, 4):
        return pixels[:, ::-1] if orientation == 2 else pixels[::-1]
    if orientation in (5, 7):
        return np.rot90(pixels.swapaxes(0, 1), 0 if orientation == 5 else 2)
    return np.rot90(pixels, {3: 2, 6: 3, 8: 1}.get(orientation, 0))


def _decode_jpeg(content: bytes) -> np.ndarray:
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise BadData(f"picture: the JPEG of {len(content)} bytes is truncated or damaged: {error}") from error
    return pixels


def _decode_with_pillow(content: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            return np.asarray(picture.convert("RGB"))
    except _PIL_ERRORS as error:
        raise BadData(f"picture: the {len(content)} bytes are truncated or damaged: {error}") from error
