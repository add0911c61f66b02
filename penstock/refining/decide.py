"""Who gets which pixel: the proposals of all objects laid over each other, without an order of painting that erases."""

import numpy as np

from penstock.errors import MissingExtra
from penstock.refining.trust import Trust
from penstock.refining.types import FALLBACK, Assignment, Objects

try:
    import cv2
except ImportError as error:
    raise MissingExtra("opencv-python-headless", "images", "refining id maps") from error

Union = tuple[int, tuple[int, int, int, int], np.ndarray]
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
        (H, W) uint16 numbers of objects, 0 for none.
    """
    laid = [claim for claim in claims if not coarse[claim[0] - 1]]
    laid += [_coarse_claim(objects, index) for index in np.flatnonzero(coarse).tolist()]
    sizes = {number: np.count_nonzero(mask) for number, _, mask in laid}
    laid.sort(key=lambda claim: (-sizes[claim[0]], -claim[0]))
    painted = np.zeros_like(objects.labels)
    room = np.empty(max((mask.size for _, _, mask in laid), default=0), np.uint16)
    for number, (x, y, width, height), mask in laid:
        colour = room[: mask.size].reshape(mask.shape)
        colour.fill(number)
        cv2.copyTo(colour, mask, painted[y : y + height, x : x + width])
    if trust is not None:
        _keep_cores(laid, trust, painted)
    return painted


def without_proposal(assignment: Assignment) -> np.ndarray:
    """(K,) bool: objects for which no proposal was found."""
    found: np.ndarray = assignment.how == FALLBACK
    return found


def _coarse_claim(objects: Objects, index: int) -> Union:
    """The coarse mask of object number index + 1."""
    x, y, width, height = objects.boxes[index].tolist()
    mask = objects.labels[y : y + height, x : x + width] == index + 1
    return index + 1, (x, y, width, height), mask.view(np.uint8)


def _keep_cores(claims: list[Union], trust: Trust, painted: np.ndarray) -> None:
    """Gives each object what it claims in its own core and others have. `painted` is changed in place."""
    against = trust.core != painted
    against &= trust.core != 0
    against &= painted != 0  # where nobody claims, its object does not
    at = np.flatnonzero(against)
    owners = trust.core.ravel()[at]
    wanted = set(np.unique(owners).tolist())
    for number, (x, y, width, height), mask in claims:
        if number in wanted:
            own = at[owners == number]
            rows, columns = own // painted.shape[1] - y, own % painted.shape[1] - x
            is_near = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            own, rows, columns = own[is_near], rows[is_near], columns[is_near]
            painted.ravel()[own[mask[rows, columns] != 0]] = number


def _joined(boxes: np.ndarray, masks: list[np.ndarray]) -> tuple[tuple[int, int, int, int], np.ndarray]:
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
