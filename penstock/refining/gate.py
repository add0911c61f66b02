"""Do no harm: an object's new mask is taken only if the picture's colours speak for it, the more so the less it looks like
the coarse one."""

import math

import numpy as np

from penstock.geometry.opencv import cv2
from penstock.refining.colours import votes
from penstock.refining.decide import without_proposal
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import Trust, histogram
from penstock.refining.types import Assignment, Gate, Objects

STRIDE = 4
"""Pieces of large objects are counted in each fourth row and column."""

LINES = 300
"""Boundaries are looked at in so many rows and columns along the diagonal, or in all of a smaller picture."""

SMALL = 32 * 32
"""Pixels; in an object below it pieces are counted one by one."""

MORE_PIECES = 2
"""An object may come apart into twice its pieces and so many more."""

EDGE_LOSS = 0.05
"""The boundary may lie worse on edges by so much, and by the error of sampling it, 0.3 / sqrt(samples)."""

ASKED = 0.5
"""Votes and trust in the frame's proposals that a new mask needs, if nothing speaks against it."""

MAJORITY = 0.1
"""Votes of an object that speak for the frame's proposals."""

DOUBT = 0.15
"""So much more is asked for if core, area, pieces or edges speak against a mask."""

FEW = 12
"""Samples of a boundary; with fewer of them nothing is said about its edges."""


def gate(
    image: np.ndarray,
    coarse: tuple[Objects, Trust],
    assignment: Assignment,
    painted: np.ndarray,
    settings: RefineSettings,
) -> Gate:
    """Measures every object's new mask beside its coarse one, and decides.

    "no proposal", none was found, "small", the coarse mask is smaller than a square of twice the band, too small to judge
    by, and "gone", fewer than `min_pixels` are left (or than all, of a smaller object), are reasons to keep the coarse mask;
    without the gate only the first.

    Else what was gained and lost is put to the vote (`penstock.refining.colours`): the mask is refused if votes and trust are
    less than `ASKED`, and by as much more as the logarithm of how many times smaller it became. Trust t in a frame's
    proposals is the share s of its changed objects whose votes are above `MAJORITY` (with one more for and one more against),
    or 3 s - 1 where that is less: where most masks are bad, good ones need more votes. The first of these doubts
    is the reason for a refusal, and each alone raises what is asked for by `DOUBT`:

    "core": the new mask has less than `min_core_recall` of the core.
    "area": it grew or shrank by more than `area_change` of the coarse area and what of that lies outside the core.
    "pieces": it has more than twice the coarse mask's components and `MORE_PIECES`.
    "edge": its boundary lies worse on edges of the picture (`EDGE_LOSS`).
    "colours": none of these, the votes alone.

    An object that nothing was changed in passes.

    Args:
        image: (H, W, 3) uint8 RGB.
        coarse: the coarse map and its trust.
        assignment: tells which objects have a proposal.
        painted: (H, W), the new map, of the type of the coarse labels.
        settings: thresholds, and whether the gate is used.

    Returns:
        Measures and decisions. Pieces are components of 4 neighbours; those of large objects are counted at a quarter of
        the resolution, those of small ones (below `SMALL`) within their coarse box and band. The edge score is the mean,
        over samples of the boundary, of g / (g + m): g is the range of grey values in the 3 x 3 pixels there, m its
        mean over the frame, so that a boundary anywhere scores about a half or less in any picture.
    """
    objects, trust = coarse
    count = len(objects)
    areas = histogram(painted, count)[1:]
    gone = painted != trust.core
    gone &= trust.core != 0
    lost = np.bincount(trust.core.ravel()[np.flatnonzero(gone)], minlength=count + 1)[1:]
    recall = (1 - lost / trust.core_areas).astype(np.float32)
    ratio = (areas / objects.areas).astype(np.float32)
    pieces = np.stack([_pieces(labels, objects, trust.band) for labels in (objects.labels, painted)], axis=1)
    pieces[areas == 0, 1] = 0
    edge, samples = _edges(image, objects.labels, painted, count)
    spoken, changed = votes(image, objects.labels, painted, count)
    gain = np.where(samples >= FEW, edge[:, 1] - edge[:, 0], 0)
    doubts = {
        "core": recall < settings.min_core_recall,
        "area": np.abs(areas - objects.areas) > settings.area_change * objects.areas + objects.areas - trust.core_areas,
        "pieces": pieces[:, 1] > 2 * pieces[:, 0] + MORE_PIECES,
        "edge": gain < -EDGE_LOSS - 0.3 / np.sqrt(np.maximum(samples, 1)),
    }
    rules = {"no proposal": without_proposal(assignment)}
    if settings.uses_gate:
        rules["small"] = objects.areas < (2 * trust.band) ** 2
        rules["gone"] = areas < np.minimum(settings.min_pixels, objects.areas)
        refused = _outvoted(np.where(rules["no proposal"], 0, changed), spoken, ratio, doubts)
        rules |= {reason: holds & refused for reason, holds in doubts.items()} | {"colours": refused}
    reasons = np.full(count, "", object)
    for reason, holds in reversed(rules.items()):
        reasons[holds] = reason
    return Gate(
        accepted=reasons == "",
        reasons=tuple(reasons.tolist()),
        core_recall=recall,
        area_ratio=ratio,
        pieces=pieces,
        edge=edge,
        votes=spoken,
    )


def _outvoted(changed: np.ndarray, spoken: np.ndarray, ratio: np.ndarray, doubts: dict[str, np.ndarray]) -> np.ndarray:
    """(K,) bool: new masks that lack votes. `changed`: samples that were changed, 0 of an object without a proposal."""
    voting = changed > 0
    share = (np.count_nonzero(voting & (spoken > MAJORITY)) + 1) / (np.count_nonzero(voting) + 2)
    doubtful = np.logical_or.reduce(list(doubts.values()))
    asked = ASKED - min(share, 3 * share - 1) - np.log(np.clip(ratio, 1e-6, 1)) + DOUBT * doubtful
    found: np.ndarray = (voting | doubtful) & (spoken < asked)
    return found


def _pieces(labels: np.ndarray, objects: Objects, band: int) -> np.ndarray:
    """(K,) int32, at least 1: components of each object."""
    count = len(objects)
    coarse = np.ascontiguousarray(labels[::STRIDE, ::STRIDE])
    whole = (coarse != 0).view(np.uint8)  # a pixel beside another object's is left out, so that no component has two
    whole[:, :-1] &= (coarse[:, :-1] == coarse[:, 1:]).view(np.uint8)
    whole[:-1] &= (coarse[:-1] == coarse[1:]).view(np.uint8)
    number, components = cv2.connectedComponents(whole, connectivity=4)
    first = whole.copy()  # the first pixel of a component has none to its left and above
    first[:, 1:] &= 1 - whole[:, :-1]
    first[1:] &= 1 - whole[:-1]
    at = np.flatnonzero(first)
    owner = np.zeros(number, np.uint16)
    owner[components.ravel()[at]] = coarse.ravel()[at]
    found = np.bincount(owner, minlength=count + 1)[1:].astype(np.int32)
    for index in np.flatnonzero(objects.areas < SMALL):
        x, y, width, height = objects.boxes[index].tolist()
        near = labels[max(0, y - band) : y + height + band, max(0, x - band) : x + width + band]
        found[index] = cv2.connectedComponents((near == index + 1).view(np.uint8), connectivity=4)[0] - 1
    return np.maximum(found, 1)


def _edges(image: np.ndarray, before: np.ndarray, after: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) float32 edge scores of two maps, and (K,) int64 samples of the boundary that has fewer."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    strength = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    values = np.arange(256, dtype=np.float32)
    values /= values + max(float(cv2.mean(strength)[0]), 1.0)
    scores, samples = zip(*(_edge_sums(strength, labels, values, count) for labels in (before, after)), strict=True)
    numbers = np.stack(samples, axis=1)
    edge = np.stack(scores, axis=1) / np.maximum(numbers, 1)
    return edge.astype(np.float32), numbers.min(axis=1)


def _edge_sums(
    strength: np.ndarray, labels: np.ndarray, values: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) sums of values[strength] over the samples of each object's boundary, and their (K,) numbers."""
    stride = max(1, int(math.hypot(*labels.shape)) // LINES)
    sums, numbers = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    for axis in (0, 1):
        lines = np.s_[::stride] if axis == 0 else np.s_[:, ::stride]
        flat, edges = (np.ascontiguousarray(one[lines]).ravel() for one in (labels, strength))
        width = labels[lines].shape[1]
        step = 1 if axis == 0 else width
        at = np.flatnonzero(flat[step:] != flat[:-step])
        if axis == 0:
            at = at[at % width != width - 1]
        sides, weights = np.concatenate([flat[at], flat[at + step]]), np.tile(values[edges[at]], 2)
        sums += np.bincount(sides, weights, minlength=count + 1)
        numbers += np.bincount(sides, minlength=count + 1)
    return sums[1:], numbers[1:]
