"""The stage of `penstock refine`: frames with id maps in; refined id maps as files, statistics, and a table of objects out."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar, Literal, get_args

import numpy as np
import xxhash

from penstock.errors import BadData, UsageError
from penstock.geometry.opencv import cv2
from penstock.readers.fields import IMAGE, PATH
from penstock.readers.pth import save_id_map
from penstock.readers.scenes import SCENE
from penstock.refining.frame import keep_memory, refine_frame
from penstock.refining.labels import parse
from penstock.refining.residual import REASONS
from penstock.refining.settings import RefineSettings
from penstock.refining.types import LOW, MATCHED, MERGED, Frame, Objects, Proposer, Refined
from penstock.schema import Field, Record, Schema
from penstock.stages.workers import one_thread, worker_number

Format = Literal["pth", "npy", "png"]
FORMATS = get_args(Format)
IdType = Literal["uint16", "int32", "int16"]
ID_TYPES = get_args(IdType)
CONTENTS = ("ids_content", "confidence_content")
"""Fields that are files: whoever writes the rows puts them where they belong."""

COUNTS = (
    "objects", "sam_matched", "merged", "low_confidence", "fallback", "accepted", "kept", "invalid_pixels",
    "invalid_before", "pixels", "proposals",
)  # fmt: skip
"""Statistics of a frame, whole numbers."""
_MEANINGS = {
    "objects": "ids of the map that are valid",
    "sam_matched": "objects that found proposals",
    "merged": "objects made of several proposals",
    "low_confidence": "objects whose proposal fits badly",
    "fallback": "objects for which no proposal fits: they keep the mask they had",
    "accepted": "objects with a new mask: the gate, where there is one, accepted it",
    "kept": "objects that keep the mask they had: no proposal fits, or the gate refused the new one",
    "invalid_pixels": "pixels without an id after refinement",
    "invalid_before": "pixels without an id before",
    "pixels": "of the frame",
    "proposals": "masks that were proposed",
}
_HOW = {MATCHED: "matched", MERGED: "merged", LOW: "low"}


def input_schema() -> Schema:
    """Of the records that the stage takes."""
    ids = Field(
        name="ids", dtype="int64", shape=(None, None), axes="H W", kind="ids", meaning="object id per pixel as stored"
    )
    existing = Field(
        name="existing", dtype="int64", shape=(None, None), axes="H W", kind="ids",
        meaning="the refined map that somebody else made, of the frame's size; 0 x 0 where there is none",
    )  # fmt: skip
    size = Field(name="existing_bytes", dtype="int64", meaning="of that map's file")
    return Schema([IMAGE, ids, SCENE, PATH, _FILE, existing, size])


_FILE = Field(name="file", dtype="str", kind="text", meaning="the refined map's file, relative to the root")


@dataclass(kw_only=True)
class RefineFrames:
    """Refines id maps with what a proposer sees in the pictures. Input: records of `input_schema()`.

    Output: the file of the refined map and the PNG of its confidence as bytes (`CONTENTS`; empty where somebody else's
    file is kept), `COUNTS`, sizes and digests of the files, and per object what was decided, as JSON (`table`).
    """

    name: ClassVar[str] = "refine-frames"
    version: ClassVar[int] = 1

    proposer: Proposer
    """Pickles, and loads its weights where it is used."""
    settings: RefineSettings = field(default_factory=RefineSettings)
    format: Format = "pth"
    dtype: IdType = "uint16"
    batch_size: int = 1
    """Frames that the proposer looks at together."""
    devices: int = 1
    """GPUs that workers share, from the proposer's own on; worker n takes the n-th of them, and round again."""
    reopen: Callable[..., Proposer] | None = None
    """Opens the same proposer on another `device`; needed with several devices."""
    tolerance: ClassVar[float] = 1.0
    """On a GPU a pixel on a boundary may get the id of either side."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"format: expected {', '.join(FORMATS)}, got {self.format!r}")
        if self.dtype not in ID_TYPES:
            raise UsageError(f"dtype: expected {', '.join(ID_TYPES)}, got {self.dtype!r}")
        if self.format == "png" and self.dtype == "int32":
            raise UsageError("dtype int32: a PNG holds ids up to 65535; expected uint16 or int16, or format pth or npy")
        if self.batch_size < 1:
            raise UsageError(f"batch-size: expected a positive number of frames, got {self.batch_size!r}")

    @property
    def bitwise(self) -> bool:
        """On a CPU; a GPU may choose other kernels from run to run."""
        return self.proposer.device == "cpu"

    @cached_property
    def schema(self) -> Schema:
        """Files, statistics, sizes and digests, texts."""
        counts = [Field(name=n, dtype="int64", meaning=_MEANINGS[n], file="frame") for n in COUNTS]
        sizes = [
            Field(name="kept_existing", dtype="uint8", meaning="1 where somebody else's map was kept", file="frame"),
            Field(name="size_hw", dtype="int32", shape=(2,), axes="2", meaning="height and width", file="frame"),
            Field(name="file_bytes", dtype="int64", meaning="size of the map's file", file="frame"),
            Field(name="confidence_bytes", dtype="int64", meaning="size of the PNG; 0: none", file="frame"),
            Field(name="file_digest", dtype="uint64", meaning="xxh3_64 of the map's file; 0: not ours", file="frame"),
            Field(name="confidence_digest", dtype="uint64", meaning="xxh3_64 of the PNG; 0: none", file="frame"),
        ]
        contents = [Field(name=n, dtype="uint8", shape=(None,), axes="N", meaning="a file's bytes") for n in CONTENTS]
        table = Field(name="table", dtype="str", kind="text", meaning="JSON: what was decided for each object, and why")
        return Schema([*counts, *sizes, *contents, SCENE, PATH, _FILE, table])

    def identity(self) -> dict[str, object]:
        """The proposer with its weights, the settings, and how maps are stored."""
        return {
            "stage": self.name,
            "version": self.version,
            "proposer": dict(self.proposer.identity()),
            "settings": {name: _plain(value) for name, value in asdict(self.settings).items()},
            "format": self.format,
            "dtype": self.dtype,
        }

    def setup(self, device: str) -> None:
        """Takes this worker's device.

        Args:
            device: as the proposer's; "cuda" is the one GPU that this worker sees, whatever its number is elsewhere.

        Raises:
            UsageError: the weights have changed since the run began, or the device is not the proposer's.
        """
        cv2.setNumThreads(1)  # workers are processes
        keep_memory()
        own = self.proposer.device
        if device not in ("auto", own, own.partition(":")[0]):
            raise UsageError(f"device: the proposer was opened on {own}, asked for {device}")
        kind, _, first = own.partition(":")
        number = 0 if device == "cuda" else int(first or 0) + worker_number() % self.devices
        if kind != "cpu" and number != int(first or 0) and self.reopen is not None:
            before = dict(self.proposer.identity())
            self.proposer = self.reopen(device=f"{kind}:{number}")
            if dict(self.proposer.identity()) != before:
                raise UsageError("the proposer's model changed while the run was starting; run again")

    def __call__(self, records: list[Record]) -> list[Record]:
        """One row for each frame.

        Raises:
            BadData: a map holds an id that the type cannot, or the proposer can say nothing of a frame.
        """
        count = len(records)
        while count > 1 and records[count - 2] is records[count - 1]:
            count -= 1  # the job's padding
        frames = [None if np.size(record["existing"]) else self._frame(record) for record in records[:count]]
        wanted = [frame for frame in frames if frame is not None]
        with one_thread(self.proposer.device):
            encoded = self.proposer.encode(wanted) if wanted else []
            refined = iter([refine_frame(f, e, self.settings) for f, e in zip(wanted, encoded, strict=True)])
        rows = [
            self._kept(record) if frame is None else self._row(record, frame.objects, next(refined))
            for record, frame in zip(records[:count], frames, strict=True)
        ]
        return rows + rows[-1:] * (len(records) - count)

    def _frame(self, record: Record) -> Frame:
        key = f"{record['scene']}/{PurePosixPath(str(record['path'])).stem}"
        objects = parse(np.asarray(record["ids"]), invalid=self.settings.invalid)
        highest = int(objects.ids[-1]) if len(objects) else 0
        if highest > np.iinfo(self.dtype).max:
            wider = "--dtype int32" if highest <= np.iinfo(np.int32).max and self.dtype != "int32" else "smaller ids"
            raise BadData(
                f"{key}: the largest id is {highest}; {self.dtype} holds {np.iinfo(self.dtype).max}: use {wider}"
            )
        return Frame(key=key, image=np.asarray(record["image"]), objects=objects)

    def _row(self, record: Record, objects: Objects, refined: Refined) -> Record:
        ids = encode_ids(refined.ids, self.format, self.dtype)
        confidence = _png(refined.confidence)
        counts = {**refined.counts, "proposals": refined.proposals}
        contents = {"ids_content": ids, "confidence_content": confidence}
        sizes = {
            "kept_existing": 0, "file_bytes": len(ids), "confidence_bytes": len(confidence),
            "file_digest": xxhash.xxh3_64_intdigest(ids), "confidence_digest": xxhash.xxh3_64_intdigest(confidence),
        }  # fmt: skip
        return self._record(record, counts, sizes, contents, json.dumps(table_of(objects, refined)))

    def _kept(self, record: Record) -> Record:
        """The row of a frame whose map somebody else has made."""
        valid = parse(np.asarray(record["existing"]), invalid=self.settings.invalid)
        before = parse(np.asarray(record["ids"]), invalid=self.settings.invalid)
        counts = dict.fromkeys(COUNTS, 0) | {
            "objects": len(valid),
            "pixels": valid.labels.size,
            "invalid_pixels": valid.labels.size - int(valid.areas.sum()),
            "invalid_before": before.labels.size - int(before.areas.sum()),
        }
        sizes = {"kept_existing": 1, "file_bytes": int(np.asarray(record["existing_bytes"]))}
        sizes |= dict.fromkeys(("confidence_bytes", "file_digest", "confidence_digest"), 0)
        return self._record(record, counts, sizes, dict.fromkeys(CONTENTS, b""), json.dumps({"objects": []}))

    def _record(
        self, record: Record, counts: dict[str, int], sizes: dict[str, int], contents: dict[str, bytes], table: str
    ) -> Record:
        known = self.schema
        numbers = {name: counts[name] for name in COUNTS} | sizes
        row: Record = {name: np.array(value, known[name].dtype) for name, value in numbers.items()}
        row["size_hw"] = np.array(np.shape(record["ids"]), np.int32)
        row |= {name: np.frombuffer(content, np.uint8) for name, content in contents.items()}
        return row | {name: str(record[name]) for name in ("scene", "path", "file")} | {"table": table}


def encode_ids(ids: np.ndarray, format: Format, dtype: IdType) -> bytes:  # noqa: A002  # the name of the flag
    """An id map as a file: equal arguments give equal bytes.

    Args:
        ids: (H, W) whole numbers.
        format: "pth" (a tensor, as torch.save writes it), "npy", or "png" (gray of 16 bits).
        dtype: to store; never wraps.

    Raises:
        BadData: an id does not fit; the message names it.
    """
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if format == "png":
        low, high = 0, min(high, 65_535)
    for found in (int(ids.max()), int(ids.min())):
        if not low <= found <= high:
            raise BadData(
                f"id map: {found} does not fit {format} of {dtype} ({low}..{high}): use --dtype int32, not as png"
            )
    stored = np.ascontiguousarray(ids, np.dtype(dtype).newbyteorder("<"))
    if format == "pth":
        return save_id_map(stored)
    if format == "png":
        return _png(stored.astype(np.uint16, copy=False))
    buffer = io.BytesIO()
    np.save(buffer, stored)
    return buffer.getvalue()


def table_of(objects: Objects, refined: Refined) -> dict[str, object]:
    """What was decided for each object, and how many pixels have their id for which reason. Plain values."""
    gate = refined.gate
    rows = [
        {
            "id": int(objects.ids[k]),
            "before": int(objects.areas[k]),
            "after": int(refined.areas[k]),
            "how": [word for bit, word in _HOW.items() if refined.how[k] & bit] or ["fallback"],
            "accepted": bool(gate.accepted[k]),
            "reason": gate.reasons[k],
            "core_recall": round(float(gate.core_recall[k]), 4),
            "area_ratio": round(float(gate.area_ratio[k]), 4),
            "pieces": gate.pieces[k].tolist(),
            "votes": round(float(gate.votes[k]), 4),
            "edge": [round(float(one), 4) for one in gate.edge[k]],
        }
        for k in range(len(objects))
    ]
    pixels = cv2.calcHist([refined.reasons], [0], None, [256], [0, 256]).ravel()  # a bincount takes five times as long
    return {"objects": rows, "reasons": {name: int(pixels[code]) for name, code in REASONS.items() if pixels[code]}}


def _png(values: np.ndarray) -> bytes:
    """(H, W) uint8 or uint16 as a gray PNG; runs only, as maps are flat: half the time of the default."""
    return bytes(
        cv2.imencode(
            ".png",
            values,
            [
                *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
                *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
            ],
        )[1]
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
