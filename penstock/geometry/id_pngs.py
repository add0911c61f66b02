"""Masks and id maps as PNG files: gray, palette and panoptic. Numbers are read as stored, never by way of colours.

Pillow stretches gray of 1, 2 and 4 bits to 0..255; here the stored numbers come back. A palette file is its indices:
a file that was turned into RGB on its way has lost them, and is refused.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from penstock.errors import BadData, UsageError
from penstock.geometry.id_maps import checked_ids, panoptic_ids, panoptic_rgb
from penstock.geometry.masks import MAX_MASK_PIXELS, binary_mask

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
_COLOURS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)


def read_palette_png(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The indices of a palette PNG (DAVIS, MOSE, YouTube-VOS, SA-V), or the numbers of a gray one of up to 8 bits.

    Args:
        content: the file's bytes.

    Returns:
        (H, W) uint8 as stored; (N, 3) uint8 RGB, the colour of each number: for a gray file its ramp from black to
        white. A palette that is shorter than the highest index is filled up with black.

    Raises:
        BadData: no PNG, truncated or damaged, above `MAX_MASK_PIXELS`, of other colours, or of 16 bits.
    """
    ids, colours, bits, palette = _read(content, {"palette", "gray"})
    if bits == 16:
        raise BadData("PNG: expected a palette or gray of up to 8 bits, got gray of 16; read it with read_id_png")
    if colours == "gray":
        palette = np.repeat(np.linspace(0, 255, 1 << bits).astype(np.uint8)[:, None], 3, axis=1)
    missing = max(int(ids.max()) + 1 - len(palette), 0)
    return ids, np.pad(palette, ((0, missing), (0, 0)))


def write_palette_png(ids: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """The inverse of `read_palette_png`.

    Args:
        ids: (H, W) whole numbers, 0..255.
        palette: (N, 3) uint8 RGB, N <= 256, a colour for each id; None for `davis_palette`.

    Returns:
        The file. Ids come back exactly; so does the palette, if need be followed by black.

    Raises:
        BadData: no id map, an id outside 0..255, or one without a colour.
        UsageError: another shape or type of palette.
    """
    colours = davis_palette() if palette is None else palette
    if colours.ndim != 2 or colours.shape[1] != 3 or not 0 < len(colours) <= 256 or colours.dtype != np.uint8:
        raise UsageError(f"palette: expected (N, 3) uint8 with N of 1..256, got {colours.shape} {colours.dtype}")
    picture = Image.fromarray(checked_ids(ids, 0, len(colours) - 1).astype(np.uint8))
    picture.putpalette(colours.tobytes())
    return _written(picture)


def davis_palette() -> np.ndarray:
    """The colours of DAVIS and PASCAL VOC: (256, 3) uint8 RGB, entry 0 black, entry 1 (128, 0, 0).

    Bits 0, 1, 2 of an index are the highest bits of red, green, blue; bits 3, 4, 5 the next, and so on.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= ((index >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def read_id_png(content: bytes) -> np.ndarray:
    """The numbers of a gray (1 to 16 bits) or palette PNG.

    Returns:
        (H, W) uint8, or uint16 for gray of 16 bits; as stored.

    Raises:
        BadData: no PNG, truncated or damaged, above `MAX_MASK_PIXELS`, or of other colours.
    """
    return _read(content, {"palette", "gray"})[0]


def write_id_png(ids: np.ndarray) -> bytes:
    """The inverse of `read_id_png`: (H, W) whole numbers to a gray PNG of 8 bits, or of 16 where an id is above 255.

    Raises:
        BadData: no id map, or an id outside 0..65535: write it as a panoptic PNG.
    """
    numbers = checked_ids(ids, 0, 65_535)
    return _written(Image.fromarray(numbers.astype(np.uint8 if numbers.max() <= 255 else np.uint16)))


def read_panoptic_png(content: bytes) -> np.ndarray:
    """The ids of a COCO panoptic PNG: (H, W) uint32, R + 256 G + 65536 B.

    RGB, with or without alpha (ignored), or a palette whose colours are the ids, as lossless optimisers make it.

    Raises:
        BadData: no PNG, truncated or damaged, above `MAX_MASK_PIXELS`, gray, or of 16 bits per colour.
    """
    pixels, colours, _, palette = _read(content, {"RGB", "RGB with alpha", "palette"})
    if colours != "palette":
        return panoptic_ids(pixels[..., :3])
    if int(pixels.max()) >= len(palette):
        raise BadData(f"PNG: an index of {pixels.max()} without a colour: the palette has {len(palette)}")
    return panoptic_ids(palette[pixels])


def write_panoptic_png(ids: np.ndarray) -> bytes:
    """The inverse of `read_panoptic_png`: (H, W) whole numbers of 0..2^24 - 1 to an RGB PNG.

    Raises:
        BadData: no id map, or an id out of range.
    """
    return _written(Image.fromarray(panoptic_rgb(ids)))


def binary_png(content: bytes) -> np.ndarray:
    """The mask of a PNG that holds one object: 0 is background, and one other number (1, 255, ...) the object.

    Returns:
        (H, W) uint8, 0 or 1.

    Raises:
        BadData: as `read_palette_png`; more than one number beside 0; or a palette whose entry 0 is not black, so that
            it cannot be told which colour is the background.
    """
    ids, colours, _, palette = _read(content, {"palette", "gray"})
    if colours == "palette" and palette[:1].any():
        raise BadData(f"PNG: expected a mask whose palette starts with black, got {palette[0].tolist()}: which is set?")
    mask: np.ndarray = ids != 0
    highest = ids.max()
    if not (mask == (ids == highest)).all() and highest:
        values = np.unique(ids)
        raise BadData(
            f"PNG: expected a mask of 0 and one other number, got {len(values)} numbers, {values[:8].tolist()} ...: "
            f"an id map, or a mask with soft edges"
        )
    return mask.view(np.uint8)


def write_binary_png(mask: np.ndarray) -> bytes:
    """The inverse of `binary_png`: (H, W) bool, or numbers that are all 0 or 1, to a gray PNG of 0 and 255.

    Raises:
        BadData: it is no binary mask.
    """
    return _written(Image.fromarray(binary_mask(mask) * np.uint8(255)))


def _read(content: bytes, wanted: set[str]) -> tuple[np.ndarray, str, int, np.ndarray]:
    """Stored numbers, kind of colours, bits, palette.

    Returns:
        (H, W) uint8 or uint16, or (H, W, 3 or 4) uint8; a name of `_COLOURS`; bits per number; (N, 3) uint8, N = 0
        without a palette.

    Raises:
        BadData: not a whole PNG of the colours wanted.
    """
    if len(content) < 33 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        raise BadData(f"PNG: expected a PNG, got {len(content)} bytes that start with {content[:8]!r}")
    width, height, bits, code = struct.unpack(">IIBB", content[16:26])
    colours = _COLOURS.get(code, f"colour type {code}")
    if not 0 < width * height <= MAX_MASK_PIXELS:
        raise BadData(f"PNG: expected 1..{MAX_MASK_PIXELS} pixels, got {height} x {width}")
    if colours not in wanted or (bits == 16 and colours != "gray"):
        raise BadData(
            f"PNG: expected {' or '.join(sorted(wanted))}, got {colours} of {bits} bits; ids that were saved as "
            f"colours, or colours as ids, cannot be told apart: write the file anew from its source"
        )
    if PNG_END not in content:
        raise BadData(f"PNG: the {len(content)} bytes are truncated: expected an IEND chunk, got none")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            pixels = np.array(picture)
            palette = np.array(picture.getpalette() or [], np.uint8).reshape(-1, 3)
    except _DAMAGED as error:
        raise BadData(f"PNG: the {len(content)} bytes are truncated or damaged: {error}") from error
    if bits == 16:
        pixels = pixels.astype(np.uint16)
    elif colours == "gray":
        pixels = pixels.astype(np.uint8) if bits == 1 else pixels // np.uint8(255 // ((1 << bits) - 1))
    return pixels, colours, bits, palette


def _written(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
