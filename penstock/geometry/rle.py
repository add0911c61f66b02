"""COCO's run-length encoding: the runs of 0 and 1, in turn, down the columns.

A mask is `{"size": [height, width], "counts": ...}`. `counts` is a list of run lengths that starts with zeros
(uncompressed), or these lengths written as text (compressed): from the fourth on each is replaced by its difference to
the last but one, and every number is cut into groups of five bits, lowest first, a sixth bit telling that more follow,
each written as the character 48 + value. Source of the format: pycocotools.

Runs are parsed and checked here, in NumPy, before anything is made of them: pycocotools trusts what it is given, reads
past the end of a cut text, and takes the memory that a hostile size asks for. Decoding from the checked runs is also
faster. Compressed text is written by pycocotools.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.errors import BadData, MissingExtra
from penstock.geometry.masks import MAX_MASK_PIXELS, binary_mask

_LONGEST_NUMBER = 12
"""Characters of one number: 60 bits. pycocotools writes at most 7."""


def decode_rle(rle: Mapping[str, Any], expected_hw: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of a mask.

    Args:
        rle: `size` and `counts`, where `counts` is a list of whole numbers, or compressed: str or bytes.
        expected_hw: the size that the mask must have: that of its picture.

    Returns:
        (H, W) uint8, 0 or 1, in Fortran order (columns are contiguous), as pycocotools gives it.

    Raises:
        BadData: a part is missing or of another type, the size is not `expected_hw` or above `MAX_MASK_PIXELS`, the
            text is cut or holds other characters, a count is negative, or the counts do not sum to the pixels.
    """
    counts, (height, width) = rle_counts(rle, expected_hw)
    values = np.zeros(len(counts), np.uint8)
    values[1::2] = 1
    return np.repeat(values, counts).reshape(width, height).T


def encode_rle(mask: np.ndarray, *, compressed: bool = True) -> dict[str, Any]:
    """The runs of a mask; `decode_rle` gives the mask back.

    Args:
        mask: (H, W) bool, or numbers that are all 0 or 1.
        compressed: text, or else a list of run lengths.

    Returns:
        `{"size": [H, W], "counts": str or list of int}`, ready for JSON.

    Raises:
        BadData: it is no binary mask.
        MissingExtra: compressed, and pycocotools is not installed.
    """
    pixels = binary_mask(mask)
    if compressed:
        encoded = coco_mask_api("writing compressed RLE").encode(np.asfortranarray(pixels))
        return {"size": list(pixels.shape), "counts": encoded["counts"].decode("ascii")}
    line = pixels.ravel(order="F")
    changes = np.flatnonzero(line[1:] != line[:-1]) + 1
    counts = np.diff(changes, prepend=0, append=line.size).tolist()
    return {"size": list(pixels.shape), "counts": [0, *counts] if line[0] else counts}


def rle_area(rle: Mapping[str, Any], expected_hw: tuple[int, int] | None = None) -> int:
    """How many pixels are set, without making them. Arguments and errors as `decode_rle`."""
    counts, _ = rle_counts(rle, expected_hw)
    return int(counts[1::2].sum())


def rle_box(rle: Mapping[str, Any], expected_hw: tuple[int, int] | None = None) -> np.ndarray:
    """The tight box, without making the pixels: equal to `boxes.mask_box` of the mask.

    Returns:
        (4, ) float32 XYWH in pixels; zeros for an empty mask.

    Raises:
        BadData: as `decode_rle`.
    """
    counts, (height, _) = rle_counts(rle, expected_hw)
    ends = np.cumsum(counts)[1::2]
    starts = ends - counts[1::2]
    has_pixels = ends > starts
    if not has_pixels.any():
        return np.zeros(4, np.float32)
    left, top = np.divmod(starts[has_pixels], height)
    right, bottom = np.divmod(ends[has_pixels] - 1, height)
    turns = bool((left != right).any())  # a run that goes on in the next column touches the last row and the first
    y0, y1 = (0, height - 1) if turns else (int(top.min()), int(bottom.max()))
    x0, x1 = int(left.min()), int(right.max())
    return np.array([x0, y0, x1 - x0 + 1, y1 - y0 + 1], np.float32)


def rle_counts(
    rle: Mapping[str, Any], expected_hw: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """The checked runs and the size of a mask. Arguments and errors as `decode_rle`.

    Returns:
        (N, ) int64 run lengths of 0 and 1 in turn, down the columns, that sum to the pixels; height and width.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        found = sorted(map(str, rle)) if isinstance(rle, Mapping) else type(rle).__name__
        raise BadData(f"RLE: expected a mapping with size and counts, got {found}")
    size_hw = _checked_size(rle["size"], expected_hw)
    pixels = size_hw[0] * size_hw[1]
    coded = rle["counts"]
    counts = _inflated(coded) if isinstance(coded, str | bytes) else _listed(coded)
    if len(counts) and not 0 <= int(counts.min()) <= int(counts.max()) <= pixels:
        raise BadData(
            f"RLE: expected runs of 0..{pixels} pixels for {size_hw[0]} x {size_hw[1]} (height x width), "
            f"got {counts.min()}..{counts.max()}: the counts are damaged or of another size"
        )
    if (total := int(counts.sum())) != pixels:
        raise BadData(
            f"RLE: expected counts that sum to {pixels} pixels ({size_hw[0]} x {size_hw[1]}, height x width), "
            f"got {total}: the counts are damaged or of another size"
        )
    return counts, size_hw


def coco_mask_api(purpose: str) -> Any:
    """The module `pycocotools.mask`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingExtra("pycocotools", "coco", purpose) from error
    return mask


def _checked_size(size: object, expected_hw: tuple[int, int] | None) -> tuple[int, int]:
    sides = list(size) if isinstance(size, list | tuple | np.ndarray) else []
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int | np.integer) for side in sides):
        raise BadData(f"RLE: expected a size of two whole numbers, height and width, got {str(size)[:80]}")
    height, width = int(sides[0]), int(sides[1])
    if min(height, width) <= 0 or height * width > MAX_MASK_PIXELS:
        raise BadData(f"RLE: expected a size of 1..{MAX_MASK_PIXELS} pixels, got {height} x {width}")
    if expected_hw is not None and (height, width) != tuple(expected_hw):
        swapped = "; height and width are swapped" if (width, height) == tuple(expected_hw) else ""
        raise BadData(
            f"RLE: expected the size of the picture, {expected_hw[0]} x {expected_hw[1]} (height x width), "
            f"got {height} x {width}{swapped}"
        )
    return height, width


def _listed(counts: object) -> np.ndarray:
    if not isinstance(counts, list | tuple | np.ndarray):
        raise BadData(f"RLE: expected counts as a list of whole numbers, or str, or bytes, got {type(counts).__name__}")
    try:
        numbers = np.asarray(counts)
    except (ValueError, OverflowError) as error:
        raise BadData(f"RLE: expected counts that are whole numbers, got others: {error}") from error
    if numbers.size == 0:
        return np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or int(numbers.max()) >= 1 << 62:
        raise BadData(f"RLE: expected counts that are whole numbers, got {str(counts)[:80]}")
    return numbers.astype(np.int64)


def _inflated(text: str | bytes) -> np.ndarray:
    """The run lengths of compressed counts."""
    try:
        letters = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8)
    except UnicodeEncodeError as error:
        raise BadData(f"RLE: expected counts of the characters 48..111, got {text[error.start]!r}") from error
    if not len(letters):
        return np.zeros(0, np.int64)
    if letters.min() < 48 or letters.max() > 111:
        wrong = int(np.flatnonzero((letters < 48) | (letters > 111))[0])
        raise BadData(f"RLE: expected counts of the characters 48..111, got {letters[wrong]} at {wrong}")
    groups = letters.astype(np.int64) - 48
    lasts = np.flatnonzero(groups < 32)
    if not len(lasts) or lasts[-1] != len(groups) - 1:
        raise BadData(f"RLE: the counts of {len(groups)} characters are cut inside a number")
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - firsts + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise BadData(f"RLE: expected numbers of 1..{_LONGEST_NUMBER} characters, got one of {lengths.max()}")
    bits = 5 * (np.arange(len(groups)) - np.repeat(firsts, lengths))
    numbers = np.add.reduceat((groups & 31) << bits, firsts)
    numbers -= ((groups[lasts] & 16) > 0) * (np.int64(1) << (5 * lengths))  # the highest bit is the sign
    if max(int(numbers.max()), -int(numbers.min())) > MAX_MASK_PIXELS:
        raise BadData(f"RLE: expected runs of at most {MAX_MASK_PIXELS} pixels: the counts are damaged")
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
