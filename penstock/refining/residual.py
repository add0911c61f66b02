"""Pixels that nobody has: given to an object where there is reason to, left without an id elsewhere; each with its reason."""

import math

import numpy as np

from penstock.geometry.opencv import cv2
from penstock.refining.runs import positions, runs
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import DEEPEST, Trust, band_width, histogram, look_up
from penstock.refining.types import MERGED, Assignment, Objects

REASONS = {
    "invalid": 0,
    "coarse": 1,
    "proposal": 2,
    "merged": 3,
    "kept": 4,
    "restored": 5,
    "segment": 6,
    "nearest": 7,
}
"""Why a pixel has the id it has.

invalid: it has none (0). coarse: the new mask of its object agrees with the coarse map. proposal: its object's proposal
claimed it. merged: the same, of an object made of several proposals. kept: its object keeps its coarse mask, by the gate
or because there was no proposal. restored: nobody claimed it, and it lies in the core of its coarse object, or the object
would have been lost without it. segment: most of a proposal that belongs to nobody has this id. nearest: it lies in a hole
or a gap, and this is the nearest id.
"""

CONFIDENCE = {
    "invalid": (0, 0, 0, 0, 0),
    "coarse": (128, 160, 192, 224, 255),
    "proposal": (144, 128, 112, 96, 80),
    "merged": (128, 112, 96, 80, 64),
    "kept": (64, 88, 112, 136, 160),
    "restored": (64, 80, 96, 112, 128),
    "segment": (64, 60, 56, 52, 48),
    "nearest": (48, 44, 40, 36, 32),
}
"""Confidence 0..255 by reason and by depth below the coarse boundary (`Trust.depth`, 0 beside it, 4 beyond the band): where
the coarse map is agreed with the depth speaks for it, where it is overruled against it."""

_SAMPLES = 4096
"""Pixels of an unassigned proposal that vote, about."""


def restore(trust: Trust, labels: np.ndarray) -> np.ndarray:
    """Gives each pixel that has no object and lies in a coarse core back to that core's object.

    Args:
        trust: of the coarse map.
        labels: (H, W) uint8 or uint16, painted; changed in place.

    Returns:
        (n,) flat positions of the pixels given back.
    """
    flat, core = labels.reshape(-1), trust.core.reshape(-1)
    is_given = flat == 0
    is_given &= core != 0
    given = positions(is_given)
    flat[given] = core[given]
    return given


def survive(
    coarse: tuple[Objects, Trust], labels: np.ndarray, areas: np.ndarray, settings: RefineSettings
) -> np.ndarray:
    """Makes every object of at least `min_pixels` coarse pixels have at least `min_pixels` in the end.

    One that has fewer gets its deepest `min_pixels` coarse pixels (of equal depth the first in reading order), whoever has
    them. No two objects can be given the same pixel, so that saving one never undoes what saved another.

    Args:
        coarse: the coarse map and its trust.
        labels: (H, W) uint8 or uint16; changed in place.
        areas: (K,) int64, pixels of each object in `labels`; changed in place.
        settings: `min_pixels`.

    Returns:
        (n,) flat positions of the pixels given back.
    """
    flat, width = labels.ravel(), labels.shape[1]
    objects, trust = coarse
    saved = np.zeros(len(objects), bool)
    given: list[np.ndarray] = []
    while (lost := (areas < settings.min_pixels) & (objects.areas >= settings.min_pixels) & ~saved).any():
        for index in np.flatnonzero(lost):
            left, top, side, height = objects.boxes[index].tolist()
            here = np.s_[top : top + height, left : left + side]
            rows, columns = np.nonzero(objects.labels[here] == index + 1)
            order = np.argsort(-trust.depth[here][rows, columns].astype(np.int16), kind="stable")
            deepest = order[: settings.min_pixels]
            at = (rows[deepest] + top) * width + columns[deepest] + left
            np.subtract.at(areas, flat[at][flat[at] > 0].astype(np.int64) - 1, 1)
            flat[at] = index + 1
            areas[index] += len(at)
            given.append(at)
        saved |= lost
    return np.concatenate(given) if given else np.zeros(0, np.int64)


def segment_majority(assignment: Assignment, labels: np.ndarray, settings: RefineSettings) -> np.ndarray:
    """Pixels without an object, in a proposal that belongs to nobody, go to the object that has more than `inside_share`
    of that whole proposal: one that lies mostly where nothing is labelled gives nothing away. The smallest proposal
    speaks first; all vote by the map as it is before.

    Args:
        assignment: proposals, and which belong to nobody.
        labels: (H, W) uint8 or uint16; changed in place.
        settings: `inside_share`.

    Returns:
        (n,) flat positions of the pixels given.
    """
    proposals = assignment.proposals
    winners: list[tuple[int, int, int]] = []
    for index in np.flatnonzero(assignment.numbers == 0).tolist():
        x, y, width, height = proposals.boxes[index].tolist()
        step = max(1, math.isqrt(width * height // _SAMPLES))
        mask = proposals.masks[index][::step, ::step]
        votes = np.bincount(labels[y : y + height : step, x : x + width : step][mask])
        if votes.size > 1 and votes[0]:
            best = int(votes[1:].argmax()) + 1
            if votes[best] > settings.inside_share * votes.sum():
                winners.append((int(votes.sum()) * step * step, index, best))
    given: list[np.ndarray] = []
    for _, index, best in sorted(winners):
        x, y, width, height = proposals.boxes[index].tolist()
        here = labels[y : y + height, x : x + width]
        rows, columns = np.nonzero((here == 0) & proposals.masks[index])
        here[rows, columns] = best
        given.append((rows + y) * labels.shape[1] + columns + x)
    return np.concatenate(given) if given else np.zeros(0, np.int64)


def fill_gaps(labels: np.ndarray, settings: RefineSettings) -> np.ndarray:
    """Pixels without an object, in holes and gaps, go to the nearest object.

    A hole or gap is no wider anywhere than twice the limit, `residual_limit_share` of the diagonal: what a square of that
    side fits into was left without labels on purpose, and stays so with a margin around it. An object that is smaller than a
    square of twice the band gets nothing: it would be something else. Distances are those of
    cv2.DIST_L2 in each second row and column (in all of them where the limit is below 8 pixels).

    Args:
        labels: (H, W) uint8 or uint16; changed in place.
        settings: `residual_limit_share`.

    Returns:
        (n,) flat positions of the pixels given.
    """
    height, width = labels.shape
    limit = int(settings.residual_limit_share * math.hypot(height, width))
    if not limit:
        return np.zeros(0, np.int64)
    empty = positions(_narrow(labels == 0, limit))
    step = 2 if limit >= 8 else 1
    sparse = np.ascontiguousarray(labels[::step, ::step])
    if not len(empty) or not sparse.any():
        return np.zeros(0, np.int64)
    holes = (sparse == 0).view(np.uint8)
    distance, nearest = cv2.distanceTransformWithLabels(holes, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    rims = positions(cv2.dilate(holes, np.ones((3, 3), np.uint8)) != holes)  # the nearest of all lies beside a hole
    owner = np.zeros(int(nearest.max()) + 1, labels.dtype)
    owner[nearest.ravel()[rims]] = sparse.ravel()[rims]
    rows = empty // width
    cells = rows // step * sparse.shape[1] + (empty - rows * width) // step
    within = labels.ravel()[rows // step * step * width + (empty - rows * width) // step * step]
    found = np.where(within != 0, within, owner[nearest.ravel()[cells]])
    close = distance.ravel()[cells] * step <= limit
    close &= (histogram(labels, int(labels.max())) >= (2 * band_width(labels.shape, settings)) ** 2)[found]
    given: np.ndarray = empty[close]
    labels.ravel()[given] = found[close]
    return given


def _narrow(empty: np.ndarray, limit: int) -> np.ndarray:
    """(H, W) bool: of these pixels, those where no square of twice the limit fits in; looked at in coarse cells. `empty`
    itself, changed."""
    cell = min(4, max(1, limit // 4))
    side = 2 * (limit // cell) + 1
    sparse = np.ascontiguousarray(empty[::cell, ::cell]).view(np.uint8)
    wide = cv2.morphologyEx(sparse, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    wide = cv2.dilate(wide, np.ones((3, 3), np.uint8))
    x, y, width, height = cv2.boundingRect(wide)
    here = empty[y * cell : (y + height) * cell, x * cell : (x + width) * cell]
    columns = (wide[y : y + height, x : x + width] == 0).repeat(cell, axis=1)[:, : here.shape[1]]
    for row in range(min(cell, len(here))):
        rows = here[row::cell]
        rows &= columns[: len(rows)]
    return empty


def explain(
    coarse: tuple[Objects, Trust], labels: np.ndarray, how: np.ndarray, kept: np.ndarray, given: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Why each pixel has what it has, and how sure that is.

    Args:
        coarse: the coarse map and its trust.
        labels: (H, W) uint8 or uint16, the final map.
        how: (K,) uint8, of the assignment.
        kept: (K,) bool: objects that keep their coarse mask.
        given: reason -> (n,) flat positions of pixels given for it; a later one overrules.

    Returns:
        (H, W) uint8 numbers of `REASONS`, and (H, W) uint8 confidence: `CONFIDENCE` by reason and depth, 255 where coarse
        map and new mask agree in the core, 0 without an id.
    """
    objects, trust = coarse
    claimed = np.where(how & MERGED, REASONS["merged"], REASONS["proposal"])
    table = np.concatenate([[0], np.where(kept, REASONS["kept"], claimed)]).astype(np.uint8)
    values, lengths = runs(labels)
    reasons = np.repeat(table[values], lengths).reshape(labels.shape)
    cv2.copyTo((labels != 0).view(np.uint8), (labels == objects.labels).view(np.uint8), reasons)  # "coarse" is 1
    for index in np.flatnonzero(kept).tolist():
        x, y, width, height = objects.boxes[index].tolist()
        here = np.s_[y : y + height, x : x + width]
        reasons[here][(labels[here] == index + 1) & (objects.labels[here] == index + 1)] = REASONS["kept"]
    for word, at in given.items():
        reasons.ravel()[at] = REASONS[word]
    table = np.zeros((len(REASONS), 8), np.uint8)
    for word, number in REASONS.items():
        table[number, : DEEPEST + 1] = CONFIDENCE[word]
    codes = reasons * np.uint8(table.shape[1])  # a shift takes ten times as long
    codes |= trust.depth
    return reasons, look_up(codes, table.ravel())
