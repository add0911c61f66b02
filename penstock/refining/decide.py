"""Who gets which pixel: the proposals of all objects laid over each other, without an order of painting that erases."""

import numpy as np

from penstock.geometry.opencv import cv2
from penstock.refining.runs import positions
from penstock.refining.trust import Trust
from penstock.refining.types import FALLBACK, Assignment, Objects

Box = tuple[int, int, int, int]
Union = tuple[int, Box, np.ndarray]
"""Number of an object, box XYWH, mask (h, w) uint8 of 0 and 1."""


def unions(assignment: Assignment) -> list[Union]:
    """What each object's proposals cover together, the largest first; of equal ones the higher number first.

    Args:
        assignment: proposals and the object of each.

    Returns:
        One for each object that has a proposal.
    """
    proposals = assignment.proposals
    members: dict[int, list[int]] = {}
    for index, number in enumerate(assignment.numbers.tolist()):
        if number:
            members.setdefault(number, []).append(index)
    found = []
    for number, indices in members.items():
        box, mask = _joined(proposals.boxes[indices], [proposals.masks[index].view(np.uint8) for index in indices])
        found.append((np.count_nonzero(mask), number, box, mask))
    found.sort(key=lambda one: (-one[0], -one[1]))
    return [(number, box, mask) for _, number, box, mask in found]


def paint(objects: Objects, claims: list[Union], trust: Trust | None, coarse: np.ndarray) -> np.ndarray:
    """A new map, each pixel decided at once. An object claims its union, or its coarse mask where it is to keep that.

    1. Where several claim a pixel the object of the smaller claim has it (of equal ones the lower number).
    2. But in the core of its own coarse mask an object has all that it claims: nobody eats a core whose object is there.
    3. What nobody claims has no object.

    When an object is made to keep its coarse mask after all, the others gain what it had of their claims, and lose nothing
    but pixels which the coarse map gives to it, none of their own core among them.

    Args:
        objects: the coarse map.
        claims: as `unions` gives them.
        trust: of the coarse map; without it there is no rule 2.
        coarse: (K,) bool: which objects keep their coarse mask.

    Returns:
        (H, W) numbers of objects, 0 for none; of the type of the coarse labels.
    """
    painted = np.empty_like(objects.labels)
    _paint(_laid(objects, claims, coarse), trust, painted, (0, 0, *painted.shape[::-1]))
    return painted


def repaint(
    objects: Objects,
    claims: list[Union],
    trust: Trust | None,
    coarse: tuple[np.ndarray, np.ndarray],
    painted: np.ndarray,
) -> None:
    """Makes a map what `paint` gives when other objects keep their coarse mask. Only where they lie is anything changed.

    Args:
        objects: the coarse map.
        claims: as `unions` gives them.
        trust: of the coarse map, or none, as when it was painted.
        coarse: (K,) bool each: which objects kept their coarse mask when it was painted, and which do now.
        painted: (H, W) as `paint` gave it; changed in place.
    """
    laid = _laid(objects, claims, coarse[1])
    boxes = {number: [box] for number, box, _ in claims}
    windows = []
    for index in np.flatnonzero(coarse[0] != coarse[1]).tolist():
        both = np.array([objects.boxes[index].tolist(), *boxes.get(index + 1, [])])
        left, top = both[:, :2].min(axis=0).tolist()
        right, bottom = (both[:, :2] + both[:, 2:]).max(axis=0).tolist()
        windows.append((left, top, right - left, bottom - top))
    if sum(width * height for _, _, width, height in windows) > painted.size:
        windows = [(0, 0, *painted.shape[::-1])]
    for window in windows:
        _paint(laid, trust, painted, window)


def without_proposal(assignment: Assignment) -> np.ndarray:
    """(K,) bool: objects for which no proposal was found."""
    found: np.ndarray = assignment.how == FALLBACK
    return found


def _laid(objects: Objects, claims: list[Union], coarse: np.ndarray) -> list[Union]:
    """All claims, the largest first, of equal ones the higher number: with the coarse masks of those that keep them."""
    kept = np.flatnonzero(coarse).tolist()
    if not kept:
        return claims
    sized = [(int(np.count_nonzero(claim[2])), claim) for claim in claims if not coarse[claim[0] - 1]]
    for index in kept:
        x, y, width, height = objects.boxes[index].tolist()
        mask = objects.labels[y : y + height, x : x + width] == index + 1
        sized.append((int(objects.areas[index]), (index + 1, (x, y, width, height), mask.view(np.uint8))))
    sized.sort(key=lambda one: (-one[0], -one[1][0]))
    return [claim for _, claim in sized]


def _paint(laid: list[Union], trust: Trust | None, painted: np.ndarray, window: Box) -> None:
    """Paints a window XYWH of a map anew, in place."""
    left, top, across, down = window
    right, bottom = left + across, top + down
    painted[top:bottom, left:right] = 0
    room = np.empty(across * down, painted.dtype)
    for number, (x, y, width, height), mask in laid:
        x0, y0, x1, y1 = max(x, left), max(y, top), min(x + width, right), min(y + height, bottom)
        if x0 < x1 and y0 < y1:
            colour = room[: (y1 - y0) * (x1 - x0)].reshape(y1 - y0, x1 - x0)
            colour.fill(number)
            cv2.copyTo(colour, mask[y0 - y : y1 - y, x0 - x : x1 - x], painted[y0:y1, x0:x1])
    if trust is not None:
        _keep_cores(laid, trust.core[top:bottom, left:right], painted[top:bottom, left:right], (left, top))


def _keep_cores(laid: list[Union], core: np.ndarray, painted: np.ndarray, corner_xy: tuple[int, int]) -> None:
    """Gives each object what it claims in its own core and others have, in a window. `painted` is changed in place."""
    against = core != painted
    against &= core != 0
    against &= painted != 0  # where nobody claims, its object does not
    at = positions(against)
    if not len(at):
        return
    rows, columns = at // painted.shape[1], at % painted.shape[1]
    owners = core[rows, columns]
    boxes = np.zeros((int(owners.max()) + 1, 5), np.int64)
    masks, size = [np.zeros(0, np.uint8)], 0
    wanted = np.bincount(owners) > 0
    for number, box, mask in laid:
        if number < len(wanted) and wanted[number]:
            boxes[number] = *box, size
            masks.append(mask.reshape(-1))
            size += mask.size
    x, y, width, height, start = boxes[owners].T
    inside_rows, inside_columns = rows + corner_xy[1] - y, columns + corner_xy[0] - x
    is_near = (inside_rows >= 0) & (inside_rows < height) & (inside_columns >= 0) & (inside_columns < width)
    cells = (start + inside_rows * width + inside_columns)[is_near]
    near = np.flatnonzero(is_near)[np.concatenate(masks)[cells] != 0]
    painted[rows[near], columns[near]] = owners[near]


def _joined(boxes: np.ndarray, masks: list[np.ndarray]) -> tuple[Box, np.ndarray]:
    """The box around (n, 4) boxes XYWH, and the masks (uint8) in it, joined."""
    if len(masks) == 1:
        x, y, width, height = boxes[0].tolist()
        return (x, y, width, height), np.ascontiguousarray(masks[0])
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    whole = np.zeros((bottom - top, right - left), np.uint8)
    for (x, y, width, height), mask in zip(boxes.tolist(), masks, strict=True):
        whole[y - top : y - top + height, x - left : x - left + width] |= mask
    return (left, top, right - left, bottom - top), whole
