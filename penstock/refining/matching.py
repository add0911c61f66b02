"""Which proposals make up which object: many to one, by two-sided overlap, and cut where one proposal covers several."""

from dataclasses import dataclass, replace

import numpy as np

from penstock.errors import BadData
from penstock.refining.decide import unions
from penstock.refining.overlap import label_counts
from penstock.refining.proposals import joined, taken, tight
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import Trust, trust
from penstock.refining.types import FALLBACK, LOW, MATCHED, MERGED, Assignment, Objects, Proposals

AGREEMENT, CORE_RECALL, LEAKAGE, SCORE, STABILITY = 0.4, 0.2, -0.4, 0.1, 0.1
"""Weights of the evidence for a candidate of a prompted object."""

LEAST_AGREEMENT = 0.1
"""A candidate of a lower IoU with its coarse object shows another thing."""

MUTUAL_AGREEMENT = 0.2
"""A proposal and an object that are each other's best match belong together from this IoU on, and the object is spoken for."""

LOW_AGREEMENT = 0.5
"""An object whose proposals together have a lower IoU with it fits badly."""

SLIVER_PIXELS, SLIVER_SHARE = 4, 0.02
"""A part of a cut proposal with fewer pixels, or a lower share of its object, is dropped."""

Cut = tuple[int, int]
"""Row of a proposal, and number of the object that gets its part."""


@dataclass(frozen=True)
class _Counts:
    """Pixels of N proposals: in all (N,), on each object (N, K), on each object's core (N, K); int64."""

    areas: np.ndarray
    shared: np.ndarray
    cores: np.ndarray


def assign(
    objects: Objects, proposals: Proposals, settings: RefineSettings, *, zones: Trust | None = None
) -> Assignment:
    """Gives proposals to objects, as many to one as it takes. Ties go to the lower number and the earlier proposal.

    A proposal that was prompted is a candidate for its object alone, and an object takes one at most: that of the most
    evidence, which weighs IoU with the coarse mask, share of the object's core that it keeps, share of it that lies in
    others' cores, predicted IoU and stability. One of an IoU below `LEAST_AGREEMENT` is not taken; one of which more than
    `cut_share` lies in the cores of others that have no good candidate of their own (`MUTUAL_AGREEMENT`) is cut to the coarse
    mask. Cores, since near a boundary the coarse map itself errs.

    Any other goes by its pixels on objects. One that fits an object best, as the object fits it, belongs to it, if all else
    that it has a good share of is spoken for in the same way. Else it belongs to the object that has most of them if that is
    more than `inside_share`, no second one has more than `cut_share`, and it either lies there by more than `inside_share` of
    all its pixels, or covers `covers_share` of the object, which makes up at least `cut_share` of it. If a second one has
    more, or if it covers an object but does not lie inside one, it is cut along the coarse map: each object gets its part,
    unless that is a sliver. So none goes whole to one object and floods others. The rest are nobody's.

    Where what an object has covers `covers_share` of it, a prompted one takes no automatic proposals, and none takes parts
    of cut ones: these are there to make walls whole, not to bring the coarse boundary back.

    Args:
        objects: K, of the coarse map.
        proposals: N; one that was prompted for an id that the map does not hold is nobody's.
        settings: `inside_share`, `covers_share`, `cut_share`, `band_share`.
        zones: `trust(objects, settings)`, where it is at hand; only prompted proposals need it.

    Returns:
        The proposals, in their order, but those that were cut: their parts come last. `how` of an object is MATCHED where it
        has any, with MERGED where it has several, and LOW where their union has an IoU below `LOW_AGREEMENT` with the
        coarse object; FALLBACK where it has none.

    Raises:
        BadData: proposals of a frame of another size.
    """
    if proposals.size_hw != objects.size_hw:
        raise BadData(f"proposals: expected a frame of {objects.size_hw} (height, width), got {proposals.size_hw}")
    is_prompted = proposals.ids != 0
    if zones is None and is_prompted.any():
        zones = trust(objects, settings)
    counts = _counted(objects, proposals, zones if is_prompted.any() else None)
    enough = settings.covers_share * objects.areas

    numbers, cuts = _prompted(objects, proposals, counts, settings, zones)
    covered = np.zeros(len(objects), np.int64)
    for row, number in [*((row, int(numbers[row])) for row in np.flatnonzero(numbers).tolist()), *cuts]:
        covered[number - 1] = counts.shared[row, number - 1]
    wholes, parts = _automatic(objects, counts, ~is_prompted, settings)
    numbers += np.where(np.append(0, covered < enough)[wholes], wholes, 0).astype(np.int32)

    wanted = {number for _, number in parts}
    if wanted:
        held = np.where(np.isin(numbers, list(wanted)), numbers, 0)
        lowest, highest, _, _ = _together(objects, proposals, held, counts)
        unclear = (lowest < enough) & (highest >= enough) & (covered < enough)
        covered = np.maximum(covered, np.where(unclear, _exact(objects, proposals, held, unclear)[0], lowest))
        cuts += [(row, number) for row, number in parts if covered[number - 1] < enough[number - 1]]
    return _assigned(objects, proposals, numbers, cuts, counts)


def _counted(objects: Objects, proposals: Proposals, zones: Trust | None) -> _Counts:
    """All counts in one pass: the core of object k is label K + k. Without zones there are no cores."""
    count = len(objects)
    if zones is None:
        table = label_counts(objects.labels, count + 1, proposals)
        shared, cores = table[:, 1:], np.zeros((len(proposals), count), np.int64)
    else:
        codes = objects.labels.astype(np.min_scalar_type(2 * count))
        codes += (zones.core != 0).view(np.uint8) * codes.dtype.type(count)
        table = label_counts(codes, 2 * count + 1, proposals)
        cores = table[:, count + 1 :]
        shared = table[:, 1 : count + 1] + cores
    return _Counts(areas=table.sum(axis=1), shared=shared, cores=cores)


def _prompted(
    objects: Objects, proposals: Proposals, counts: _Counts, settings: RefineSettings, zones: Trust | None
) -> tuple[np.ndarray, list[Cut]]:
    """The best candidate of each object that was prompted for: (N,) int32 numbers of those taken whole; those cut."""
    numbers, cuts = np.zeros(len(proposals), np.int32), list[Cut]()
    rows = np.flatnonzero(np.isin(proposals.ids, objects.ids))
    if zones is None or not len(rows):
        return numbers, cuts
    places = np.searchsorted(objects.ids, proposals.ids[rows])
    areas, shared = counts.areas[rows], counts.shared[rows, places]
    agreement = shared / (areas + objects.areas[places] - shared)
    kept = counts.cores[rows, places]
    leaked = (counts.cores[rows].sum(axis=1) - kept) / areas
    evidence = (
        AGREEMENT * agreement
        + CORE_RECALL * kept / zones.core_areas[places]
        + LEAKAGE * leaked
        + SCORE * proposals.scores[rows]
        + STABILITY * proposals.stability[rows]
    )
    evidence[agreement < LEAST_AGREEMENT] = -np.inf
    order = np.lexsort((-evidence, places))
    chosen = order[np.append(True, places[order][1:] != places[order][:-1])]
    chosen = chosen[np.isfinite(evidence[chosen])]
    silent = np.ones(len(objects), np.bool_)
    silent[places[chosen[agreement[chosen] >= MUTUAL_AGREEMENT]]] = False
    leaked = (counts.cores[rows][:, silent].sum(axis=1) - np.where(silent[places], kept, 0)) / areas
    for at in chosen:
        if leaked[at] <= settings.cut_share:
            numbers[rows[at]] = places[at] + 1
        elif not _is_sliver(shared[at], objects.areas[places[at]]):
            cuts.append((int(rows[at]), int(places[at]) + 1))
    return numbers, cuts


def _automatic(
    objects: Objects, counts: _Counts, rows: np.ndarray, settings: RefineSettings
) -> tuple[np.ndarray, list[Cut]]:
    """The two-sided test, for the rows that are set: (N,) number of the object that each belongs to whole, 0 for none; and
    the parts of those to be cut, by row and number."""
    shared, areas = counts.shared, counts.areas
    if not len(objects) or not rows.any():
        return np.zeros(len(shared), np.int64), []
    best = shared.argmax(axis=1)
    first = shared.max(axis=1)
    second = np.partition(shared, -2, axis=1)[:, -2] if len(objects) > 1 else np.zeros_like(first)
    valid = shared.sum(axis=1)
    covers = shared >= settings.covers_share * objects.areas
    is_inside = first > settings.inside_share * valid
    is_cut = second > settings.cut_share * valid
    fills = covers[np.arange(len(best)), best] & (first >= settings.cut_share * areas)
    mate, is_mutual = _mutual(objects, counts, rows, settings)
    best = np.where(is_mutual, mate, best)
    is_whole = is_mutual | (rows & is_inside & ~is_cut & ((first > settings.inside_share * areas) | fills))
    is_cut = rows & ~is_mutual & (is_cut | (covers.any(axis=1) & ~is_inside))
    is_part = is_cut[:, None] & (shared > 0) & ~_is_sliver(shared, objects.areas)
    return np.where(is_whole, best + 1, 0), [(int(row), int(place) + 1) for row, place in np.argwhere(is_part)]


def _mutual(
    objects: Objects, counts: _Counts, rows: np.ndarray, settings: RefineSettings
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the object that each proposal fits best, and (N,) bool: whether it fits that object best of all, and whatever else
    it has a good share of is spoken for by another. Where the coarse map is shifted, that is not a proposal of two objects."""
    shared, places = np.where(rows[:, None], counts.shared, 0), np.arange(len(rows))
    agreement = shared / (counts.areas[:, None] + objects.areas - shared)
    mate = agreement.argmax(axis=1)
    fits = (agreement.argmax(axis=0)[mate] == places) & (agreement[places, mate] >= MUTUAL_AGREEMENT)
    silent = np.ones(len(objects), np.bool_)
    silent[mate[fits]] = False
    others = shared * silent > settings.cut_share * shared.sum(axis=1, keepdims=True)
    return mate, fits & ~others.any(axis=1)


def _is_sliver(pixels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Whether parts of so many pixels are too small for objects of these areas."""
    return (pixels < SLIVER_PIXELS) | (pixels < SLIVER_SHARE * areas)


def _together(
    objects: Objects, proposals: Proposals, numbers: np.ndarray, counts: _Counts
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the union of each object's proposals is sure to have, without making it: least and most pixels in the coarse
    object, least and most beside it; (K,) int64 each. Both are equal for a single proposal, or boxes that do not overlap."""
    count = len(objects)
    rows = np.flatnonzero(numbers)
    own = numbers[rows] - 1
    shared = counts.shared[rows, own]
    pairs = np.nonzero(np.triu(own[:, None] == own, 1))
    both = np.bincount(own[pairs[0]], weights=_common(proposals.boxes[rows], pairs), minlength=count)
    both = both.astype(np.int64)
    bounds = []
    for pixels in (shared, counts.areas[rows] - shared):
        most = np.bincount(own, weights=pixels, minlength=count).astype(np.int64)
        least = most - both
        np.maximum.at(least, own, pixels)
        bounds += [least, most]
    bounds[1] = np.minimum(bounds[1], objects.areas)
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _common(boxes: np.ndarray, pairs: tuple[np.ndarray, ...]) -> np.ndarray:
    """(P,) int64: pixels that the two boxes of a pair share; boxes (n, 4) XYWH, pairs two of (P,) rows."""
    begins = boxes[:, :2].astype(np.int64)
    ends = begins + boxes[:, 2:]
    first, second = pairs
    sides = np.minimum(ends[first], ends[second]) - np.maximum(begins[first], begins[second])
    found: np.ndarray = np.maximum(sides, 0).prod(axis=1)
    return found


def _exact(
    objects: Objects, proposals: Proposals, numbers: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the unions of the objects that are wanted, (K,) bool: in the coarse object, and beside it; (K,) int64 each,
    0 for others."""
    shared, beside = np.zeros((2, len(objects)), np.int64)
    if wanted.any():
        chosen = np.where(np.append(False, wanted)[numbers], numbers, 0)
        how = np.zeros(len(objects), np.uint8)
        for number, (x, y, width, height), mask in unions(Assignment(proposals=proposals, numbers=chosen, how=how)):
            inside = objects.labels[y : y + height, x : x + width] == number
            inside &= mask.view(np.bool_)
            shared[number - 1] = np.count_nonzero(inside)
            beside[number - 1] = np.count_nonzero(mask) - shared[number - 1]
    return shared, beside


def _assigned(
    objects: Objects, proposals: Proposals, numbers: np.ndarray, cuts: list[Cut], counts: _Counts
) -> Assignment:
    """Cuts made, and how each object found its mask."""
    if cuts:
        proposals, numbers, counts = _cut(objects, proposals, numbers, cuts, counts)
    least, most, beside_least, beside_most = _together(objects, proposals, numbers, counts)
    is_low = most < LOW_AGREEMENT * (beside_least + objects.areas)
    unclear = ~is_low & (least < LOW_AGREEMENT * (beside_most + objects.areas))
    shared, beside = _exact(objects, proposals, numbers, unclear)
    is_low |= unclear & (shared < LOW_AGREEMENT * (beside + objects.areas))
    members = np.bincount(numbers, minlength=len(objects) + 1)[1:]
    how = np.where(members > 1, MATCHED | MERGED, MATCHED) | np.where(is_low, LOW, 0)
    how = np.where(members > 0, how, FALLBACK).astype(np.uint8)
    return Assignment(proposals=proposals, numbers=numbers, how=how)


def _cut(
    objects: Objects, proposals: Proposals, numbers: np.ndarray, cuts: list[Cut], counts: _Counts
) -> tuple[Proposals, np.ndarray, _Counts]:
    """Proposals, numbers and counts with parts in place of those that are cut."""
    owners = np.array([number for _, number in cuts], np.int32)
    sizes = np.array([counts.shared[row, number - 1] for row, number in cuts], np.int64)
    own = np.zeros((len(cuts), len(objects)), np.int64)
    own[np.arange(len(cuts)), owners - 1] = sizes
    whole = np.setdiff1d(np.arange(len(proposals)), [row for row, _ in cuts])
    cut_counts = _Counts(
        areas=np.concatenate([counts.areas[whole], sizes]),
        shared=np.concatenate([counts.shared[whole], own]),
        cores=counts.cores,
    )
    return (
        joined([taken(proposals, whole), _parts(objects, proposals, cuts)]),
        np.concatenate([numbers[whole], owners]),
        cut_counts,
    )


def _parts(objects: Objects, proposals: Proposals, cuts: list[Cut]) -> Proposals:
    """The pieces of proposals that lie on objects, which there are: score, stability and id are the proposals'."""
    boxes, masks = [], []
    for row, number in cuts:
        x, y, width, height = proposals.boxes[row].tolist()
        left, top, across, down = objects.boxes[number - 1].tolist()
        x0, y0, x1, y1 = max(x, left), max(y, top), min(x + width, left + across), min(y + height, top + down)
        inside = objects.labels[y0:y1, x0:x1] == number
        inside &= proposals.masks[row][y0 - y : y1 - y, x0 - x : x1 - x]
        box, mask = tight((x0, y0), inside)
        boxes.append(box)
        masks.append(mask)
    whole = taken(proposals, np.array([row for row, _ in cuts]))
    return replace(whole, boxes=np.array(boxes, np.int32), masks=tuple(masks))
