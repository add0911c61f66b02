"""What a promptable model is asked: boxes, points and soft masks of the objects of a coarse map, and points of a grid."""

import math

import numpy as np

from penstock.geometry.masks import nearest
from penstock.geometry.opencv import cv2
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import Trust, band_width, trust
from penstock.refining.types import LOW, MATCHED, MERGED, Objects, Prompts

LOGIT_SIDE = 256
"""Cells of the soft mask on each side."""

STEEPNESS = 2.0
"""Logits per cell from the boundary."""

LARGEST_LOGIT = 8.0

POLE_SHARE = 0.25
"""A further pole lies at least this share of the first one's distance from the boundary."""

LARGE_SHARE = 0.1
"""Of the frame: an object so large may be made of pieces, so that one prompt does not find it."""

_SIDE = 256
"""Longest side of a mask in which poles and neighbours are looked for."""


def make_prompts(objects: Objects, settings: RefineSettings) -> Prompts:
    """Prompts for every object, from the coarse map alone.

    Points inside are poles: the pixel furthest from the object's boundary (the frame's border is one), then the furthest
    outside the circle around that which fits into the object, and so on while it lies at least `POLE_SHARE` as deep.
    Points outside lie in cores of other objects (`penstock.refining.trust`), one per neighbour, the neighbours nearest to
    the object's box first (then to its centre, then by number). Of a large object each few rows and columns are looked at.

    Args:
        objects: the coarse map.
        settings: `poles`, `negatives`, `band_share`.

    Returns:
        One prompt per object; P = poles + negatives points, columns without a point have label -1. The soft mask rises by
        `STEEPNESS` per cell from the boundary, up to `LARGEST_LOGIT`; an object too small for any cell has the cell of
        its first pole.
    """
    count, columns = len(objects), settings.poles + settings.negatives
    points = np.zeros((count, columns, 2), np.float32)
    point_labels = np.full((count, columns), -1, np.int32)
    zones = trust(objects, settings)
    for index in range(count):
        inside = _poles(objects, index, settings.poles)
        outside = _in_neighbours(objects, zones, index, settings.negatives)
        points[index, : len(inside)], point_labels[index, : len(inside)] = inside, 1
        last = settings.poles + len(outside)
        points[index, settings.poles : last], point_labels[index, settings.poles : last] = outside, 0
    boxes = objects.boxes.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return Prompts(
        ids=objects.ids,
        boxes=boxes,
        points=points,
        point_labels=point_labels,
        mask_logits=_soft_masks(objects, points[:, 0]),
    )


def grid_points(size_hw: tuple[int, int], side: int) -> np.ndarray:
    """The centres of side x side equal cells of a frame, row by row: SAM's grid of automatic points.

    Args:
        size_hw: height and width of the frame.
        side: points in each direction.

    Returns:
        (side * side, 2) float32 x, y in pixels.
    """
    height, width = size_hw
    centres = (np.arange(side) + 0.5) / side
    rows, columns = np.meshgrid(centres * height, centres * width, indexing="ij")
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float32)


def residual_points(objects: Objects, painted: np.ndarray, how: np.ndarray, settings: RefineSettings) -> np.ndarray:
    """Those points of the grid that prompted masks leave something to find at.

    Taken are points on pixels that have no object, no labelled pixel being as near as the band is wide; and points in large
    objects (`LARGE_SHARE` of the frame) made of pieces: those whose prompt found no mask, or one that fits badly, or that
    several masks make up, where the coarse map has the object and no mask claims the pixel.

    Args:
        objects: the coarse map.
        painted: (H, W) uint16: what the prompted masks claim, 0 for nothing.
        how: (K,) uint8, of the assignment of the prompted masks.
        settings: `points_per_side`, `band_share`.

    Returns:
        (P, 2) float32 x, y in pixels; P may be 0.
    """
    height, width = objects.size_hw
    points = grid_points(objects.size_hw, settings.points_per_side)
    columns, rows = np.minimum(points.astype(np.int64), [width - 1, height - 1]).T
    unlabelled = ((painted == 0) & (objects.labels == 0)).view(np.uint8)
    side = 2 * band_width(objects.size_hw, settings) + 1
    free = cv2.erode(unlabelled, np.ones((side, side), np.uint8))[rows, columns] != 0
    found_whole = (how & (MATCHED | MERGED | LOW)) == MATCHED
    in_pieces = np.concatenate([[False], (objects.areas >= LARGE_SHARE * height * width) & ~found_whole])
    taken: np.ndarray = points[free | (in_pieces[objects.labels[rows, columns]] & (painted[rows, columns] == 0))]
    return taken


def _poles(objects: Objects, index: int, count: int) -> np.ndarray:
    """(n, 2) x, y of 1 to `count` pixels deep inside an object, the deepest first."""
    x, y, width, height = objects.boxes[index].tolist()
    scale = max(1.0, max(width, height) / _SIDE)
    size_hw = max(1, round(height / scale)), max(1, round(width / scale))
    mask = nearest(objects.labels[y : y + height, x : x + width], size_hw) == index + 1
    if not mask.any():
        size_hw, mask = (height, width), objects.labels[y : y + height, x : x + width] == index + 1
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1].copy()
    found: list[tuple[float, float]] = []
    first = 0.0
    while len(found) < count:
        row, column = divmod(int(depth.argmax()), size_hw[1])
        deepest = float(depth[row, column])
        if deepest <= POLE_SHARE * first:
            break
        first = first or deepest
        source_row = (2 * row + 1) * height // (2 * size_hw[0])
        source_column = (2 * column + 1) * width // (2 * size_hw[1])
        found.append((x + source_column + 0.5, y + source_row + 0.5))
        cv2.circle(depth, (column, row), math.ceil(deepest), 0, -1)
    return np.array(found, np.float32)


def _in_neighbours(objects: Objects, zones: Trust, index: int, count: int) -> np.ndarray:
    """(n, 2) x, y of 0 to `count` pixels in the cores of other objects, one in each."""
    x, y, width, height = objects.boxes[index].tolist()
    frame_height, frame_width = objects.size_hw
    margin = 4 * zones.band + max(width, height) // 4
    left, top = max(0, x - margin), max(0, y - margin)
    right, bottom = min(frame_width, x + width + margin), min(frame_height, y + height + margin)
    step = max(1, math.isqrt((right - left) * (bottom - top) // (64 * 64)))
    numbers = zones.core[top:bottom:step, left:right:step]
    rows, columns = np.nonzero((numbers != 0) & (numbers != index + 1))
    owners = numbers[rows, columns]
    at_x, at_y = columns * step + left, rows * step + top
    beyond_x = np.maximum(np.maximum(x - at_x, at_x - (x + width - 1)), 0)
    beyond_y = np.maximum(np.maximum(y - at_y, at_y - (y + height - 1)), 0)
    from_centre = np.hypot(at_x - x - width / 2, at_y - y - height / 2)
    order = np.lexsort((owners, from_centre, np.hypot(beyond_x, beyond_y)))
    _, firsts = np.unique(owners[order], return_index=True)
    chosen = order[np.sort(firsts)[:count]]
    return np.stack([at_x[chosen] + 0.5, at_y[chosen] + 0.5], axis=1).astype(np.float32)


def _soft_masks(objects: Objects, poles: np.ndarray) -> np.ndarray:
    """(K, 256, 256) float32 logits; `poles` (K, 2) x, y lie in the objects."""
    height, width = objects.size_hw
    square = nearest(objects.labels, (LOGIT_SIDE, LOGIT_SIDE))
    logits = np.full((len(objects), LOGIT_SIDE, LOGIT_SIDE), -LARGEST_LOGIT, np.float32)
    reach = math.ceil(LARGEST_LOGIT / STEEPNESS) + 1
    for index, (pole_x, pole_y) in enumerate(poles.tolist()):
        x, y, box_width, box_height = objects.boxes[index].tolist()
        left, top = max(0, x * LOGIT_SIDE // width - reach), max(0, y * LOGIT_SIDE // height - reach)
        right = min(LOGIT_SIDE, (x + box_width) * LOGIT_SIDE // width + 1 + reach)
        bottom = min(LOGIT_SIDE, (y + box_height) * LOGIT_SIDE // height + 1 + reach)
        inside = square[top:bottom, left:right] == index + 1
        if not inside.any():
            inside[int(pole_y * LOGIT_SIDE / height) - top, int(pole_x * LOGIT_SIDE / width) - left] = True
        framed = cv2.copyMakeBorder(inside.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        deep, away = (
            cv2.distanceTransform(one, cv2.DIST_L2, 5)[1:-1, 1:-1] if one.min() == 0 else np.float32(LOGIT_SIDE)
            for one in (framed, 1 - framed)
        )
        signed = np.where(inside, deep - 0.5, 0.5 - away)
        logits[index, top:bottom, left:right] = np.clip(STEEPNESS * signed, -LARGEST_LOGIT, LARGEST_LOGIT)
    return logits
