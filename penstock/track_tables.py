"""Tables of annotations for the tracking sampler, made from readers: no picture is read, arrays stay mapped."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from penstock.draws import TrackTable
from penstock.errors import UsageError
from penstock.readers.base import Reader
from penstock.readers.tracks import Tracks
from penstock.source import Lookup


def track_table(source: object, *, name: str = "", min_side: float = 0) -> TrackTable:
    """The annotations of a source as arrays.

    Of a reader of tracks: a sequence is a track. Of a reader of annotated objects (COCO, LVIS): a sequence is one annotation
    of one row, `is_video` is false, visible and valid say the same: four finite numbers, w and h above 0 (and above
    `min_side`), no crowd. Of any other source: what its own `track_table()` gives.

    The table is pickled as (source, options), so that a sampler goes into another process without its arrays.

    Args:
        source: see above.
        name: of the table; empty for the reader's.
        min_side: pictures only: boxes not wider and higher than this, in pixels, are not valid. PyTracking's reader says 50
            and its sampler ignores it, so 0 is what the original draws.

    Raises:
        UsageError: the source is of no such kind, or `min_side` is negative or given for tracks.
    """
    if not 0 <= min_side < float("inf"):
        raise UsageError(f"track_table: min_side: expected 0 or more, got {min_side}")
    if min_side and (isinstance(source, Tracks) or not isinstance(source, Reader)):
        raise UsageError(f"track_table: min_side is for sources of single pictures; got a {type(source).__name__}")
    origin = partial(track_table, source, name=name, min_side=min_side)
    own = getattr(source, "track_table", None)
    if own is not None:
        given: TrackTable = own()
        return replace(given, name=name or given.name, origin=origin)
    if isinstance(source, Tracks):
        return replace(_of_tracks(source, name or source.name), origin=origin)
    if isinstance(source, Reader) and {"box", "category_id", "class_id"} <= set(source.index.columns):
        return replace(_of_annotations(source, name or source.name, min_side), origin=origin)
    raise UsageError(
        f"track_table: expected a reader of tracks (lasot, got10k, youtube-vis, sav, ...), of annotated objects "
        f"(coco-instances) or a source with track_table(); got a {type(source).__name__}"
    )


def track_tables(sources: Sequence[object], *, min_side: float = 0) -> list[TrackTable]:
    """A table of each source; a name that comes again gets a number: lasot, lasot-2.

    Args:
        sources: as of `track_table`.
        min_side: for those of single pictures.

    Raises:
        UsageError: as `track_table`.
    """
    tables: list[TrackTable] = []
    for source in sources:
        is_picture = isinstance(source, Reader) and not isinstance(source, Tracks)
        table = track_table(source, min_side=min_side if is_picture else 0)
        known = {other.name for other in tables}
        names = (table.name, *(f"{table.name}-{number}" for number in range(2, len(sources) + 1)))
        name = next(one for one in names if one not in known)
        tables.append(table if name == table.name else track_table(source, name=name, min_side=min_side * is_picture))
    return tables


def _of_tracks(source: Tracks, name: str) -> TrackTable:
    index, count = source.index, len(source.groups)
    return TrackTable(
        name=name,
        starts=source.column("starts"),
        boxes=source.column("box"),
        valid=source.column("valid"),
        visible=source.column("visible"),
        frames=source.column("frame"),
        fps=source.column("fps"),
        names=Lookup(count, partial(index.text, "group")),
        categories=Lookup(count, partial(index.text, "category")),
    )


def _of_annotations(source: Reader, name: str, min_side: float) -> TrackTable:
    count, index, labels = len(source), source.index, source.column("label")
    boxes = np.asarray(source.column("box"), np.float32)
    with np.errstate(invalid="ignore"):
        valid = np.asarray(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > min_side).all(axis=1))
    if "iscrowd" in index.columns:
        valid &= source.column("iscrowd") == 0
    return TrackTable(
        name=name,
        starts=np.arange(count + 1),
        boxes=boxes,
        valid=valid,
        visible=valid,
        frames=np.broadcast_to(np.int32(0), (count,)),
        fps=np.broadcast_to(np.float64("nan"), (count,)),
        names=source.keys,
        categories=Lookup(count, lambda row: index.text("class", int(labels[row])) if labels[row] >= 0 else ""),
        is_video=False,
    )
