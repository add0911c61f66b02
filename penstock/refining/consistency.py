"""The same id for the same thing in neighbouring frames: what changes from one to the next, and votes of the mesh's faces.

A face of a mesh is one place of the scene, whatever frame it is seen in. Each pixel votes with its confidence for the id of
the face that it shows; a face with a clear majority over several frames gives its id

- to a whole object of a frame, where the faces of most of it agree on one other id that is free there: the frame had the
  wrong name for it, or exchanged two;
- to single pixels that no frame by itself was sure of (`WEAK`): those without an id, filled gaps, leftover segments.

Outlines stay those of the pictures: face maps are as far from the true edges as the coarse maps, which come from the same
mesh, so they never overrule a pixel that a proposal or the coarse map speaks for.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from penstock.errors import BadData
from penstock.geometry.id_maps import checked_ids
from penstock.refining.labels import parse

CLEAR = 2 / 3
"""Share of a face's votes that its majority needs,"""
FRAMES = 2
"""and of how many frames."""
HEARD = 0.5
"""An object is renamed only if at least this share of it shows faces with a clear majority,"""
AGREED = 0.8
"""of which this share says one other id."""
WEAK = 64
"""Pixels of less confidence take the id of their face; they have this confidence afterwards."""

_MOST_FACES = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Votes of pixels, by face and id; sorted by face, then id, each pair once."""

    faces: np.ndarray
    """(N,) int64."""
    ids: np.ndarray
    """(N,) int64, above 0."""
    weights: np.ndarray
    """(N,) int64: sum of the confidence, 0..255, of the pixels."""
    frames: np.ndarray
    """(N,) int64: frames that voted so."""


@dataclass(frozen=True, kw_only=True)
class Majorities:
    """The faces that have one."""

    faces: np.ndarray
    """(F,) int64, rising."""
    ids: np.ndarray
    """(F,) int64, above 0."""


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """A frame's map after the votes."""

    ids: np.ndarray
    """(H, W) int64, 0 where there is none."""
    confidence: np.ndarray
    """(H, W) uint8."""
    renamed: int
    """Objects that got another id."""
    filled: int
    """Weak pixels that got another id."""


def votes_of(ids: np.ndarray, confidence: np.ndarray, faces: np.ndarray) -> Votes:
    """What one frame says of the faces that it shows. Pixels without an id or a face say nothing.

    Args:
        ids: (H, W) whole numbers; 0 and below is none.
        confidence: (H, W) uint8.
        faces: (H, W) whole numbers: the face that each pixel shows, below 0 for none (`pix_to_face`).

    Raises:
        BadData: not all of one size, or no maps of whole numbers, or a face of 2^32 or above.
    """
    objects = parse(ids)
    shown = _checked_faces(faces, objects.size_hw, confidence.shape)
    base = len(objects) + 1
    keys = np.where((shown >= 0) & (objects.labels > 0), shown * base + objects.labels, -1).ravel()
    starts = _runs(keys)
    weights = np.add.reduceat(confidence.ravel(), starts, dtype=np.int64)
    runs, weights = keys[starts], weights[keys[starts] >= 0]
    found, places = np.unique(runs[runs >= 0], return_inverse=True)
    summed = np.bincount(places, weights, minlength=len(found)).astype(np.int64)
    names = np.concatenate([[0], objects.ids])[found % base]
    return Votes(faces=found // base, ids=names, weights=summed, frames=np.ones(len(found), np.int64))


def added(votes: Sequence[Votes]) -> Votes:
    """All votes together; of no votes, none."""
    columns = [np.concatenate([np.zeros(0, np.int64), *(getattr(one, n) for one in votes)]) for n in _COLUMNS]
    order = np.lexsort((columns[1], columns[0]))
    faces, ids, weights, frames = (column[order] for column in columns)
    starts = _runs(faces, ids)
    if not len(starts):
        return Votes(faces=faces, ids=ids, weights=weights, frames=frames)
    return Votes(
        faces=faces[starts],
        ids=ids[starts],
        weights=np.add.reduceat(weights, starts),
        frames=np.add.reduceat(frames, starts),
    )


def majorities(votes: Votes, *, share: float = CLEAR, frames: int = FRAMES) -> Majorities:
    """The id of each face that has a clear one; of equals the lowest.

    Args:
        votes: of any number of frames.
        share: of the face's votes that its majority needs, 0..1.
        frames: that must have voted for it.
    """
    starts = _runs(votes.faces)
    if not len(starts):
        return Majorities(faces=votes.faces, ids=votes.ids)
    best = np.lexsort((votes.ids, -votes.weights, votes.faces))[starts]
    clear = votes.weights[best] >= share * np.add.reduceat(votes.weights, starts)
    chosen = best[clear & (votes.frames[best] >= frames)]
    return Majorities(faces=votes.faces[chosen], ids=votes.ids[chosen])


def agree(ids: np.ndarray, confidence: np.ndarray, faces: np.ndarray, elected: Majorities) -> Agreed:
    """A frame's map, after the votes of its neighbours.

    No two objects become one: an object takes an id that nobody in the frame has, or exchanges with the object that has it
    and fewer votes for it. So the frame keeps as many objects as it has; an id can vanish, but only in favour of another.

    Args:
        ids: (H, W) whole numbers; 0 and below is none.
        confidence: (H, W) uint8.
        faces: (H, W) whole numbers, below 0 for none.
        elected: the id of each face.

    Raises:
        BadData: as `votes_of`.
    """
    objects = parse(ids)
    said = _said(_checked_faces(faces, objects.size_hw, confidence.shape), elected)
    heard = parse(said)
    names = np.concatenate([[0], objects.ids])
    if len(objects) and len(heard):
        columns = len(heard) + 1
        cells = np.bincount(
            (objects.labels.astype(np.int64) * columns + heard.labels).ravel(), minlength=len(names) * columns
        )
        table = cells.reshape(-1, columns)[1:, 1:]
        names[1:] = _renamed(objects.ids, heard.ids, table, objects.areas)
    decided = names[objects.labels]
    weak = (confidence < WEAK) & (said > 0) & (said != decided)
    decided[weak] = said[weak]
    return Agreed(
        ids=decided,
        confidence=np.where(weak, np.uint8(WEAK), confidence),
        renamed=int((names[1:] != objects.ids).sum()),
        filled=int(weak.sum()),
    )


def face_flips(first: Votes, second: Votes) -> tuple[int, int]:
    """Faces whose most voted id differs between two frames; faces that have an id in both."""
    one, other = (majorities(votes, share=0, frames=1) for votes in (first, second))
    _, left, right = np.intersect1d(one.faces, other.faces, assume_unique=True, return_indices=True)
    return int((one.ids[left] != other.ids[right]).sum()), len(left)


def id_flips(before: tuple[Set[int], Set[int]], after: tuple[Set[int], Set[int]]) -> tuple[int, int]:
    """Ids that come or go between two neighbouring frames although the coarse maps of both have them.

    Args:
        before: ids of the two coarse maps.
        after: ids of the two refined maps.

    Returns:
        Ids that just one of the refined maps has; ids that both coarse maps have.
    """
    both = before[0] & before[1]
    return len(both & (after[0] ^ after[1])), len(both)


def _renamed(own: np.ndarray, heard: np.ndarray, table: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(K,) int64 ids of objects of these ids and areas, after the (K, E) votes of their pixels for the heard ids (E,)."""
    names = own.copy()
    owners = {number: place for place, number in enumerate(own.tolist())}
    columns = {number: place for place, number in enumerate(heard.tolist())}
    total, most, wanted = table.sum(1), table.max(1), heard[table.argmax(1)]
    is_clear = (total >= HEARD * areas) & (most >= AGREED * total) & (wanted != own)
    settled = set()
    for place in np.lexsort((own, -most)).tolist():
        number, name = int(wanted[place]), int(names[place])
        owner = owners.get(number)
        if not is_clear[place] or owner in settled or number == name:
            continue
        if owner is None:
            del owners[name]
        elif table[owner, columns[number]] < most[place]:
            names[owner], owners[name] = name, owner
        else:
            continue  # its owner has more votes for it
        names[place], owners[number] = number, place
        settled.add(place)
    return names


_COLUMNS = ("faces", "ids", "weights", "frames")


def _runs(*columns: np.ndarray) -> np.ndarray:
    """First place of each run of equal values: (R,) int64 of (N,) columns."""
    begins = np.ones(len(columns[0]), np.bool_)
    if len(begins):
        begins[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(begins)


def _checked_faces(faces: np.ndarray, *sizes: tuple[int, ...]) -> np.ndarray:
    """(H, W) int64, -1 where there is none."""
    checked = checked_ids(np.asarray(faces))
    if any(checked.shape != size for size in sizes):
        raise BadData(f"face map: expected the id map's size {sizes[0]}, got {checked.shape}, confidence {sizes[-1]}")
    if int(checked.max()) >= _MOST_FACES:
        raise BadData(f"face map: expected faces below 2^32, got {checked.max()}")
    return np.maximum(checked.astype(np.int64), -1)


def _said(faces: np.ndarray, elected: Majorities) -> np.ndarray:
    """(H, W) int64: the elected id of the face of each pixel, 0 for none. Looks up runs, which are fewer than pixels."""
    flat = faces.ravel()
    starts = _runs(flat)
    shown = flat[starts]
    places = np.searchsorted(elected.faces, shown)
    known = places < len(elected.faces)
    known[known] = elected.faces[places[known]] == shown[known]
    ids = np.zeros(len(starts), np.int64)
    ids[known] = elected.ids[places[known]]
    return np.repeat(ids, np.diff(starts, append=flat.size)).reshape(faces.shape)
