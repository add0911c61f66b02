"""COCO's polygons: to pixels as pycocotools makes them, and from pixels so that the same pixels come back.

A polygon is `[x0, y0, x1, y1, ...]` in pixels, where the centre of the first pixel is (0.5, 0.5). pycocotools sets a
pixel by the even-odd rule, with each polygon rounded to fifths of a pixel; several polygons of one object are united.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.errors import BadData
from penstock.geometry.masks import MAX_MASK_PIXELS, binary_mask
from penstock.geometry.rle import coco_mask_api, decode_rle

MAX_OUTLINE = 1 << 22
"""The longest outline that is drawn, in pixels; pycocotools takes 80 bytes for each."""


def polygons_to_mask(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> np.ndarray:
    """The pixels inside any of the polygons, as COCO's own tools set them.

    Args:
        polygons: one or more, each of three or more points; may reach over the border of the picture.
        size_hw: height and width of the picture.

    Returns:
        (H, W) uint8, 0 or 1, in Fortran order. Empty where the polygons cover no pixel's centre.

    Raises:
        BadData: no polygon, an odd number of coordinates, fewer than six, not finite, an outline longer than
            `MAX_OUTLINE`, or a picture without pixels or above `MAX_MASK_PIXELS`.
        MissingExtra: pycocotools is not installed.
    """
    height, width = size_hw
    if min(size_hw) <= 0 or height * width > MAX_MASK_PIXELS:
        raise BadData(f"polygons: expected a picture of 1..{MAX_MASK_PIXELS} pixels, got {height} x {width}")
    if not len(polygons):
        raise BadData("polygons: expected one or more, got none")
    outlines = [_checked_outline(polygon, number) for number, polygon in enumerate(polygons)]
    api = coco_mask_api("drawing polygons")
    parts = api.frPyObjects([outline.tolist() for outline in outlines], height, width)
    while len(parts) > 1:  # in groups: one merge of them all takes minutes for 100,000 parts
        parts = [api.merge(parts[first : first + 16]) for first in range(0, len(parts), 16)]
    return decode_rle(parts[0], size_hw)


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask along the edges of its pixels; `polygons_to_mask` gives the mask back, exactly.

    Pixels that touch by a side only at a corner are different parts. A part with holes is one polygon that visits the
    holes by cuts of no width: by the even-odd rule (pycocotools, most vector graphics) the pixels are exact; a program
    that draws outlines with a pen, or fills the holes, gives others. No point is dropped but those on a straight line.

    Args:
        mask: (H, W) bool, or numbers that are all 0 or 1.

    Returns:
        One polygon per part, in reading order of their first pixels: `[x0, y0, x1, y1, ...]`, clockwise on the screen,
        whole numbers in 0..W and 0..H. None for an empty mask.

    Raises:
        BadData: it is no binary mask.
    """
    edges = _Edges(np.pad(binary_mask(mask), 1).astype(np.int8))
    firsts = edges.loops()
    holes = [first for first in firsts if edges.below[first] < 0]
    edges.cut_to(holes)
    return [edges.outline(first) for first in firsts if edges.below[first] > 0]


def segmentation_to_mask(segmentation: object, size_hw: tuple[int, int]) -> np.ndarray:
    """The pixels of a COCO annotation's `segmentation`, whichever of the three forms it has.

    Args:
        segmentation: a list of polygons, or RLE, compressed or not.
        size_hw: height and width of the picture; RLE must have this size.

    Returns:
        (H, W) uint8, 0 or 1, in Fortran order.

    Raises:
        BadData: as `polygons_to_mask` and `rle.decode_rle`; or it has none of the forms.
        MissingExtra: polygons, and pycocotools is not installed.
    """
    if isinstance(segmentation, Mapping):
        return decode_rle(segmentation, size_hw)
    if isinstance(segmentation, list | tuple):
        return polygons_to_mask(segmentation, size_hw)
    raise BadData(f"segmentation: expected a list of polygons or an RLE mapping, got {type(segmentation).__name__}")


class _Edges:
    """The horizontal edges between set and unset pixels, and which follows which with set pixels on the right hand.

    Edge k runs along row `row[k]` of pixel corners from column `start[k]` to `end[k]`; `below[k]` is 1 where the set
    pixels are below it (then it runs to the right), -1 where they are above (to the left). Edges are in reading order.
    The vertical edge between k and `after[k]` is not kept: their ends say it.
    """

    def __init__(self, padded: np.ndarray) -> None:
        """padded: (H + 2, W + 2) int8, 0 or 1, with a border of 0."""
        row, left, right, below = _runs(padded[1:] - padded[:-1])
        left, right = left - 1, right - 1
        start, end = np.where(below > 0, left, right), np.where(below > 0, right, left)
        column, top, bottom, on_right = _runs((padded[:, 1:] - padded[:, :-1]).T)
        top, bottom = top - 1, bottom - 1
        begin, finish = np.where(on_right > 0, bottom, top), np.where(on_right > 0, top, bottom)
        width = padded.shape[1]
        vertical, after = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
        vertical[_by_corner(row * width + end, below)] = _by_corner(begin * width + column, -on_right)
        after[_by_corner(finish * width + column, on_right)] = _by_corner(row * width + start, below)
        self.row: list[int] = row.tolist()
        self.start: list[int] = start.tolist()
        self.end: list[int] = end.tolist()
        self.below: list[int] = below.tolist()
        self.after: list[int] = after[vertical].tolist()

    def loops(self) -> list[int]:
        """The first edge, in reading order, of every closed outline: of parts and of holes."""
        is_seen = bytearray(len(self.after))
        firsts = []
        for first in range(len(self.after)):
            if not is_seen[first]:
                firsts.append(first)
            edge = first
            while not is_seen[edge]:
                is_seen[edge] = 1
                edge = self.after[edge]
        return firsts

    def cut_to(self, holes: list[int]) -> None:
        """Joins each hole to the outline above it: from its top left corner, straight up along set pixels.

        The edge above is split where the cut meets it. It belongs to an outline that starts higher, so that no circle
        of cuts can arise, and every hole ends in the outline of its part.

        Args:
            holes: the first edge of each hole.
        """
        if not holes:
            return
        first = np.array(holes)
        row, column = np.array(self.row)[first], np.array(self.end)[first]  # the first edge of a hole runs to the left
        parent = self._edge_above(row, column)
        order = np.lexsort((column, parent))
        pieces: dict[int, int] = {}
        for hole, edge, x in zip(first[order].tolist(), parent[order].tolist(), column[order].tolist(), strict=True):
            piece, rest = pieces.get(edge, edge), len(self.after)
            self.row.append(self.row[piece])
            self.start.append(x)
            self.end.append(self.end[piece])
            self.after.append(self.after[piece])
            self.end[piece], self.after[piece], self.after[hole] = x, self.after[hole], rest
            pieces[edge] = rest

    def _edge_above(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The edge, with set pixels below it, that is nearest above each (row, column) of pixel corners."""
        tops = np.flatnonzero(np.array(self.below) > 0)
        top_row, left, right = (np.array(numbers)[tops] for numbers in (self.row, self.start, self.end))
        lengths = right - left
        cell_column = np.arange(lengths.sum()) + np.repeat(left - (np.cumsum(lengths) - lengths), lengths)
        height = int(row.max()) + int(top_row.max()) + 1
        cells = cell_column * height + np.repeat(top_row, lengths)
        order = np.argsort(cells)
        nearest = order[np.searchsorted(cells[order], column * height + row) - 1]
        above: np.ndarray = np.repeat(tops, lengths)[nearest]
        return above

    def outline(self, first: int) -> list[float]:
        """The polygon of the outline that an edge belongs to."""
        numbers: list[float] = []
        edge = first
        while True:
            numbers += [self.start[edge], self.row[edge], self.end[edge], self.row[edge]]
            edge = self.after[edge]
            if edge == first:
                return numbers


def _runs(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The runs of equal values other than 0 along each line of a (lines, N) array: line, begin, end, value."""
    padded = np.pad(signs, ((0, 0), (1, 1)))
    line, place = np.nonzero(padded[:, 1:] != padded[:, :-1])
    value = padded[line, place + 1].astype(np.int64)
    runs = np.flatnonzero(value)
    return line[runs], place[runs], place[runs + 1], value[runs]


def _by_corner(corner: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The order of edge ends by corner; where four edges meet (two pixels touch), by side, so that each keeps its own."""
    return np.argsort(corner * 2 + (side > 0))


def _checked_outline(polygon: Sequence[float], number: int) -> np.ndarray:
    """(2 N, ) float64.

    Raises:
        BadData: it is no polygon that can be drawn.
    """
    where = f"polygon {number}"
    try:
        numbers = np.asarray(polygon, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadData(f"{where}: expected numbers x0, y0, x1, y1, ..., got {str(polygon)[:80]}") from error
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
        raise BadData(
            f"{where}: expected an even count of six or more coordinates, got {numbers.size} of shape {numbers.shape}"
        )
    if not np.isfinite(numbers).all():
        raise BadData(f"{where}: expected finite coordinates, got NaN or infinity among {len(numbers)}")
    points = numbers.reshape(-1, 2)
    if np.abs(points).max() > MAX_OUTLINE:
        raise BadData(f"{where}: expected coordinates of at most {MAX_OUTLINE}, got {np.abs(points).max():g}")
    if (length := float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())) > MAX_OUTLINE:
        raise BadData(f"{where}: expected an outline of at most {MAX_OUTLINE} pixels, got {length:g}")
    return numbers
