"""The JSON of SA-V's train layout: `masklet[frame][object]`, one RLE each, for every fourth frame of the video."""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import orjson
import xxhash

from penstock.errors import BadData
from penstock.geometry.rle_many import rle_areas_and_boxes
from penstock.readers.base import require_json
from penstock.readers.files import Files, ForkLock

STRIDE = 4
"""Video frames from one annotated frame to the next."""
FPS = 24.0
KEPT_BYTES = 64 << 20
"""JSON files kept parsed, in bytes of their text; parsed they take about twice that."""


@dataclass(frozen=True, kw_only=True)
class Masklets:
    """One parsed file."""

    entries: list[list[object]]
    """[annotated frame][object]: RLE."""
    ids: list[str]
    """Of the objects, in their order in the lists."""
    size_hw: tuple[int, int]
    fault: str
    """Why no row of the file can be trusted; empty if they can."""
    problems: list[str]


def parse_masklets(content: bytes, where: str) -> Masklets:
    """Reads a `_manual.json` or `_auto.json`. Objects are counted in the lists; `masklet_num` is not believed, since
    files made by other tools have the number of frames there.

    Raises:
        BadData: broken, or without any mask.
    """
    parsed = require_json(content, where, dict)
    entries = parsed_entries(parsed, where)
    objects = max(len(each) for each in entries)
    if not objects:
        raise BadData(f"{where}: `masklet` has {len(entries)} frames and no object")
    height, width = _whole(parsed.get("video_height")), _whole(parsed.get("video_width"))
    frames = _whole(parsed.get("video_frame_count"))
    fault, problems = "", []
    if not frames or math.ceil(frames / STRIDE) != len(entries):
        fault = (
            f"video_frame_count {parsed.get('video_frame_count')} and {len(entries)} annotated frames do not fit: "
            f"expected one for every {STRIDE}th frame, {math.ceil(frames / STRIDE)}; their place in the video is not known"
        )
    elif not height or not width:
        sides = f"{parsed.get('video_height')} and {parsed.get('video_width')}"
        fault = f"expected a positive video_height and video_width, got {sides}"
    if fault:
        problems.append(f"{fault}; its {objects * len(entries)} rows fail")
    ids = parsed.get("masklet_id")
    named = [str(each) for each in ids] if isinstance(ids, list) else []
    if len(named) != objects or len(set(named)) != objects:
        problems.append(
            f"masklet_id names {len(named)} objects, the lists hold {objects}: they are counted from 0 instead"
        )
        named = [str(place) for place in range(objects)]
    short = sum(objects - len(each) for each in entries)
    if short:
        problems.append(f"{short} masks are missing: frames list fewer than {objects} objects; these rows fail")
    return Masklets(entries=entries, ids=named, size_hw=(height, width), fault=fault, problems=problems)


def parsed_entries(parsed: dict[str, object], where: str) -> list[list[object]]:
    """`masklet` of a parsed file.

    Raises:
        BadData: it is no list of lists, or empty.
    """
    entries = parsed.get("masklet")
    if not isinstance(entries, list) or not all(isinstance(each, list) for each in entries):
        raise BadData(f"{where}: expected `masklet` to be a list of frames, each a list of RLE, got another thing")
    if not entries:
        raise BadData(f"{where}: `masklet` is empty: a video of no annotated frame")
    return entries


def masklet_columns(masklets: Masklets, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, areas and hashes of one object, without decoding masks.

    Returns:
        (N, 4) float32 XYWH, zeros for an empty mask; (N,) float32 pixels; (N,) uint64. Box and area are NaN where the RLE
        is wrong: reading such a row tells why.
    """
    rles = [objects[place] if place < len(objects) else None for objects in masklets.entries]
    areas, boxes = rle_areas_and_boxes(rles, masklets.size_hw)
    return boxes, areas.astype(np.float32), np.array([rle_hash(rle) for rle in rles], np.uint64)


def rle_hash(rle: object) -> int:
    """A 64-bit hash of one mask as it stands in the JSON."""
    return xxhash.xxh3_64_intdigest(orjson.dumps(rle))


class ParsedFiles:
    """The files parsed last: rows of a masklet are read one after another, and a file takes a millisecond or two to parse.

    Serves many threads. A pickled copy starts empty, a forked one with what its parent had.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._lock = ForkLock()
        self._known: OrderedDict[tuple[str, int], tuple[int, list[list[object]]]] = OrderedDict()

    def entries(self, files: Files, path: str) -> list[list[object]]:
        """`masklet` of a file: [annotated frame][object].

        Raises:
            BadData: it cannot be read, or is broken.
        """
        key = (path, files.stamp(path))
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found[1]
        content, where = files.read(path), str(files.root / path)
        entries = parsed_entries(require_json(content, where, dict), where)
        with self._lock:
            self._known[key] = (len(content), entries)
            while len(self._known) > 1 and sum(size for size, _ in self._known.values()) > self.kept_bytes:
                self._known.popitem(last=False)
        return entries

    def __getstate__(self) -> dict[str, int]:
        return {"kept_bytes": self.kept_bytes}

    def __setstate__(self, state: dict[str, int]) -> None:
        ParsedFiles.__init__(self, state["kept_bytes"])


def _whole(value: object) -> int:
    """A positive whole number, which the files write as a float; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return 0
    return max(int(value), 0)
