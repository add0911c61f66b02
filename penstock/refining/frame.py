"""One frame refined, from a coarse id map and proposals to a new id map that is nowhere worse without a reason."""

import numpy as np

from penstock.errors import BadData
from penstock.refining.decide import paint, repaint, unions, without_proposal
from penstock.refining.gate import gate
from penstock.refining.matching import assign
from penstock.refining.prompts import grid_points, make_prompts, residual_points
from penstock.refining.proposals import from_masks, joined
from penstock.refining.residual import explain, fill_gaps, restore, segment_majority, survive
from penstock.refining.runs import runs
from penstock.refining.seed_passes import assign_seed
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import Trust, histogram, trust
from penstock.refining.types import FALLBACK, LOW, MERGED, Assignment, Encoded, Frame, Gate, Objects, Proposals, Refined

_SHOWN = 31 << 20
"""Bytes: a little less than the 32 MB that glibc takes notice of."""


def refine_frame(frame: Frame, encoded: Encoded, settings: RefineSettings) -> Refined:
    """Asks a proposer about the frame, and decides.

    matcher "prompt": every object is prompted for; then automatic points, where those masks leave something to find
    (`penstock.refining.prompts.residual_points`), if there is such a point. "overlap": automatic points on the whole grid.
    A map without objects asks nothing.

    Args:
        frame: picture and coarse map of one size.
        encoded: the proposer's answers about this picture.
        settings: all of them.

    Returns:
        As `decide_frame`.

    Raises:
        BadData: picture and map, or proposals and map, differ in size.
    """
    _same_size(frame, frame.objects.size_hw)
    objects = frame.objects
    if not len(objects):
        proposals = from_masks(objects.size_hw, ())
    elif settings.matcher == "overlap":
        proposals = encoded.at_points(grid_points(objects.size_hw, settings.points_per_side))
    else:
        proposals = encoded.prompted(make_prompts(objects, settings))
        _same_size(frame, proposals.size_hw)
        points = residual_points(objects, *_claimed(objects, proposals, settings), settings)
        if len(points):
            automatic = encoded.at_points(points)
            _same_size(frame, automatic.size_hw)
            proposals = joined([proposals, automatic])
    return decide_frame(frame, proposals, settings)


def decide_frame(frame: Frame, proposals: Proposals, settings: RefineSettings) -> Refined:
    """A new id map from proposals alone, without a model: assign, paint, gate, residual.

    Without objects, or without proposals, the coarse map comes back as it is (invalid ids as 0), and every object counts
    as fallback.

    The profile "seed" assigns by the original's five passes and has neither gate, trust in cores nor residual; overlaps
    are decided as in the other profile (smaller on top), and objects of `min_pixels` survive, where the original's order
    of painting erased some.

    Args:
        frame: picture and coarse map of one size.
        proposals: of the same size.
        settings: all of them.

    Returns:
        The result. `counts`: objects; sam_matched (objects that have a proposal), merged (that have several), low_confidence
        (whose proposals fit badly) and fallback (that have none); accepted, and kept: objects that passed the gate, and
        those that keep their coarse mask, fallback ones among them; invalid_pixels and invalid_before: pixels without an
        id now and in the coarse map; pixels: of the frame.

    Raises:
        BadData: picture, map and proposals are not all of one size.
    """
    objects = frame.objects
    _same_size(frame, objects.size_hw)
    _same_size(frame, proposals.size_hw)
    if not len(objects) or not len(proposals):
        return _unchanged(objects, settings)
    is_seed = settings.profile == "seed"
    zones = trust(objects, settings)
    believed = None if is_seed else zones
    assignment = _assigned(objects, proposals, settings, zones)
    claims = unions(assignment)
    coarse = without_proposal(assignment)
    labels = paint(objects, claims, believed, coarse)
    decided = gate(frame.image, (objects, zones), assignment, labels, settings)
    kept = ~decided.accepted
    if (kept & ~coarse).any():
        repaint(objects, claims, believed, (coarse, kept), labels)
    given: dict[str, np.ndarray] = {}
    if not is_seed:
        given["restored"] = restore(zones, labels)
        if 2 * decided.accepted.sum() > (~coarse).sum():  # else the proposals know nothing about this frame
            given["segment"] = segment_majority(assignment, labels, settings)
        given["nearest"] = fill_gaps(labels, settings)
    areas = histogram(labels, len(objects))[1:]
    saved = survive((objects, zones), labels, areas, settings)
    if len(saved):
        given = {reason: at[~np.isin(at, saved)] for reason, at in given.items()}
        given["restored"] = np.concatenate([given.get("restored", saved[:0]), saved])
    reasons, confidence = explain((objects, zones), labels, assignment.how, kept, given)
    return Refined(
        ids=ids_of(objects, labels),
        confidence=confidence,
        reasons=reasons,
        how=assignment.how,
        gate=decided,
        areas=areas,
        proposals=len(proposals),
        counts=_counts(objects, assignment.how, decided, labels.size - int(areas.sum())),
    )


def keep_memory() -> None:
    """Has this process keep some 60 MB that it has freed, for a worker that refines one frame after the other.

    Arrays of a frame are freed and asked for again and again. Memory that goes back to the system in between is cleared
    by it each time, page by page, which takes milliseconds per frame. glibc keeps twice the largest block, up to 32 MB,
    that it has seen freed; this shows it one, without touching it. Another C library goes on as it was.
    """
    np.empty(_SHOWN, np.uint8)


def ids_of(objects: Objects, labels: np.ndarray) -> np.ndarray:
    """The ids that numbers stand for.

    Args:
        objects: whose numbers they are.
        labels: (H, W) uint8 or uint16, 0..K.

    Returns:
        (H, W) of the first of uint16, int32 and int64 that holds the ids; 0 where the label is 0.
    """
    table = np.concatenate([[0], objects.ids])
    dtype = next(one for one in (np.uint16, np.int32, np.int64) if table[-1] <= np.iinfo(one).max)
    values, lengths = runs(labels)
    return np.repeat(table.astype(dtype)[values], lengths).reshape(labels.shape)


def _claimed(objects: Objects, proposals: Proposals, settings: RefineSettings) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) objects as prompted masks claim them, and (K,) uint8 how."""
    if not len(proposals):
        return np.zeros_like(objects.labels), np.full(len(objects), FALLBACK, np.uint8)
    assignment = assign(objects, proposals, settings)
    nobody = np.zeros(len(objects), bool)
    return paint(objects, unions(assignment), None, nobody), assignment.how


def _assigned(objects: Objects, proposals: Proposals, settings: RefineSettings, zones: Trust) -> Assignment:
    """By the profile's rules."""
    if settings.profile == "seed":
        return assign_seed(objects, proposals, settings)
    return assign(objects, proposals, settings, zones=zones)


def _unchanged(objects: Objects, settings: RefineSettings) -> Refined:
    """The coarse map."""
    count = len(objects)
    zones = trust(objects, settings)
    kept = np.ones(count, bool)
    how = np.full(count, FALLBACK, np.uint8)
    reasons, confidence = explain((objects, zones), objects.labels, how, kept, {})
    decided = Gate(
        accepted=~kept,
        reasons=("no proposal",) * count,
        core_recall=np.ones(count, np.float32),
        area_ratio=np.ones(count, np.float32),
        pieces=np.ones((count, 2), np.int32),
        edge=np.zeros((count, 2), np.float32),
        votes=np.zeros(count, np.float32),
    )
    return Refined(
        ids=ids_of(objects, objects.labels),
        confidence=confidence,
        reasons=reasons,
        how=how,
        gate=decided,
        areas=objects.areas,
        proposals=0,
        counts=_counts(objects, how, decided, objects.labels.size - int(objects.areas.sum())),
    )


def _counts(objects: Objects, how: np.ndarray, decided: Gate, invalid: int) -> dict[str, int]:
    """`Refined.counts`."""
    count, accepted, fallback = len(objects), int(decided.accepted.sum()), int((how == FALLBACK).sum())
    return {
        "objects": count,
        "sam_matched": count - fallback,
        "merged": int(((how & MERGED) != 0).sum()),
        "low_confidence": int(((how & LOW) != 0).sum()),
        "fallback": fallback,
        "accepted": accepted,
        "kept": count - accepted,
        "invalid_pixels": invalid,
        "invalid_before": objects.labels.size - int(objects.areas.sum()),
        "pixels": objects.labels.size,
    }


def _same_size(frame: Frame, size_hw: tuple[int, int]) -> None:
    """Raises BadData: the picture is not of this size."""
    if frame.image.shape[:2] != tuple(size_hw):
        raise BadData(
            f"{frame.key}: expected picture, id map and proposals of one size (height, width), got a picture of "
            f"{frame.image.shape[:2]} beside {tuple(size_hw)}"
        )
