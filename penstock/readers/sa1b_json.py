"""SA-1B's JSON files as columns, parsed once, in several processes where there are many."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import orjson
import xxhash

from penstock.errors import BadData
from penstock.readers.coco_columns import MISSING

MANY_FILES = 2_000
"""From this number on more than one process parses."""

_FILES_AT_ONCE = 4_000
_MAX_PROCESSES = 16
_ROW_COLUMNS = {
    "position": "int32",
    "id": "int64",
    "repeat": "int32",
    "area": "float32",
    "box": "float32",
    "predicted_iou": "float32",
    "stability_score": "float32",
    "hash": "uint64",
}
_log = logging.getLogger("penstock")


@dataclass(frozen=True)
class Place:
    """Where a JSON lies."""

    file: str
    """Absolute path of the file, or of the TAR that holds it."""
    offset: int = 0
    size: int = -1
    """Bytes; -1 is the whole file."""

    def read(self) -> bytes:
        """The content.

        Raises:
            BadData: it cannot be read, or is cut.
        """
        try:
            with open(self.file, "rb") as file:
                content = file.read() if self.size < 0 else os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise BadData(f"{self.file}: expected a file that can be read: {error.strerror or error}") from error
        if 0 <= self.size != len(content):
            raise BadData(f"{self.file}: expected {self.size} bytes at {self.offset}, got {len(content)}")
        return content


@dataclass
class Parsed:
    """Some JSON files as columns."""

    rows: dict[str, np.ndarray]
    """One entry per annotation kept: `position` in the file, `id` (`MISSING` where there is none), `repeat` (how many
    annotations of the file before it have the same id), `area`, `box` (N, 4) as in the file, `predicted_iou`,
    `stability_score` (NaN where the file has no number), `hash` of the annotation."""
    counts: np.ndarray
    """(F,) int64: annotations kept of each file."""
    size_hw: np.ndarray
    """(F, 2) int32: height and width of each picture; 0, 0 where the file does not say."""
    small: int = 0
    """Annotations left out by `min_area`."""
    faults: dict[int, str] = field(default_factory=dict)
    """File number to why it has no rows."""
    file_names: list[str] = field(default_factory=list)
    """`image.file_name` of each file; empty where there is none."""

    def to_bytes(self) -> bytes:
        """For another process."""
        buffer = io.BytesIO()
        texts = orjson.dumps([self.small, sorted(self.faults.items()), self.file_names])
        about = np.frombuffer(texts, np.uint8)
        arrays: dict[str, Any] = {**self.rows, "counts": self.counts, "size_hw": self.size_hw, "about": about}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Parsed":
        """The inverse of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        small, faults, file_names = orjson.loads(arrays.pop("about").tobytes())
        return cls(
            counts=arrays.pop("counts"),
            size_hw=arrays.pop("size_hw"),
            rows=arrays,
            small=small,
            faults=dict(faults),
            file_names=file_names,
        )


def parse_json(content: bytes) -> tuple[dict[str, Any], list[Any]]:
    """`image` and `annotations` of one file of SA-1B.

    Raises:
        BadData: broken JSON, or another layout.
    """
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadData(f"broken JSON: {error}") from error
    image = found.get("image") if isinstance(found, dict) else None
    annotations = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(image, dict) or not isinstance(annotations, list):
        got = f"the keys {sorted(found)}"[:200] if isinstance(found, dict) else f"a {type(found).__name__}"
        raise BadData(f"expected a JSON object with `image` and the list `annotations`, got {got}")
    return image, annotations


def annotation_hash(annotation: object) -> int:
    """64 bits that tell annotations apart."""
    return xxhash.xxh3_64_intdigest(orjson.dumps(annotation))


def parse_files(places: Sequence[Place], min_area: float) -> Parsed:
    """Parses one after another. A file that is wrong has no rows, and a fault."""
    rows: dict[str, list[Any]] = {name: [] for name in _ROW_COLUMNS}
    counts, sizes, names, faults, small = [], [], [], {}, 0
    for number, place in enumerate(places):
        before = len(rows["id"])
        size_hw, name = (0, 0), ""
        try:
            image, annotations = parse_json(place.read())
            size_hw, name = _size_of(image), str(image.get("file_name") or "")
            small += _add_rows(rows, annotations, min_area)
        except BadData as error:
            faults[number] = str(error)
        counts.append(len(rows["id"]) - before)
        sizes.append(size_hw)
        names.append(name)
    with np.errstate(over="ignore"):
        columns = {name: np.array(rows[name], np.float64 if "float" in kind else kind).astype(kind)
                   for name, kind in _ROW_COLUMNS.items()}  # fmt: skip
    columns["box"] = columns["box"].reshape(-1, 4)
    shape = np.array(sizes, np.int32).reshape(-1, 2)
    return Parsed(columns, np.array(counts, np.int64), shape, small, faults, names)


def parse_all(places: Sequence[Place], min_area: float) -> Iterator[Parsed]:
    """Parses all, in order, some thousand files at a time; in several processes where there are many files.

    The processes are fresh interpreters that import this module alone. They do not run the caller's main module, so that
    this works in scripts without a main guard, in daemon processes and under test runners. What one cannot do (it was
    killed for its memory, say) is done here.
    """
    chunks = [places[start : start + _FILES_AT_ONCE] for start in range(0, len(places), _FILES_AT_ONCE)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(cores, _MAX_PROCESSES)
    if len(places) < MANY_FILES or processes < 2 or not sys.executable:
        for chunk in chunks:
            yield parse_files(chunk, min_area)
        return
    if len(chunks) < processes:
        step = -(-len(places) // processes)
        chunks = [places[start : start + step] for start in range(0, len(places), step)]
    with ThreadPoolExecutor(processes) as threads:
        yield from threads.map(lambda chunk: _parse_elsewhere(chunk, min_area), chunks)


def serve() -> None:
    """What a process of `parse_all` runs: one task from standard input, its columns to standard output."""
    task = orjson.loads(sys.stdin.buffer.read())
    parsed = parse_files(
        [Place(os.fsdecode(bytes(file)), at, size) for file, at, size in task["places"]], task["min_area"]
    )
    sys.stdout.buffer.write(parsed.to_bytes())


def _parse_elsewhere(places: Sequence[Place], min_area: float) -> Parsed:
    task = {"places": [(list(os.fsencode(one.file)), one.offset, one.size) for one in places], "min_area": min_area}
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        input=orjson.dumps(task),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        _log.warning("penstock: a process that parses JSON ended with %d (%s); going on here", done.returncode, last)
        return parse_files(places, min_area)
    return Parsed.from_bytes(done.stdout)


def _add_rows(rows: dict[str, list[Any]], annotations: list[Any], min_area: float) -> int:
    """Adds the annotations of a file; gives how many are below the area."""
    seen: dict[int, int] = {}
    small = 0
    for position, annotation in enumerate(annotations):
        entry = annotation if isinstance(annotation, dict) else {}
        area = _number(entry.get("area"))
        if area < min_area:
            small += 1
            continue
        number = entry.get("id")
        if type(number) is not int or not MISSING < number < 1 << 63:
            number = MISSING
        repeat = seen.get(number, 0)
        seen[number] = repeat + 1
        box = entry.get("bbox")
        box = [*map(_number, box)] if isinstance(box, list) and len(box) == 4 else [np.nan] * 4
        rows["position"].append(position)
        rows["id"].append(number)
        rows["repeat"].append(repeat)
        rows["area"].append(area)
        rows["box"].append(box)
        rows["predicted_iou"].append(_number(entry.get("predicted_iou")))
        rows["stability_score"].append(_number(entry.get("stability_score")))
        rows["hash"].append(annotation_hash(annotation))
    return small


def _number(value: object) -> float:
    return float(value) if type(value) in (int, float) else np.nan  # type: ignore[arg-type]  # a number, and no bool


def _size_of(image: dict[str, Any]) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    fits = all(type(side) is int and 0 < side < 1 << 31 for side in (height, width))
    return (height, width) if fits else (0, 0)  # type: ignore[return-value]  # checked


def joined(parts: Sequence[Parsed]) -> Parsed:
    """Parts in order as one."""
    firsts = np.cumsum([0, *(len(part.counts) for part in parts)]).tolist()
    empty = parse_files([], 0)
    return Parsed(
        {name: np.concatenate([empty.rows[name], *(part.rows[name] for part in parts)]) for name in _ROW_COLUMNS},
        np.concatenate([empty.counts, *(part.counts for part in parts)]),
        np.concatenate([empty.size_hw, *(part.size_hw for part in parts)]),
        sum(part.small for part in parts),
        {
            first + number: text
            for first, part in zip(firsts, parts, strict=False)
            for number, text in part.faults.items()
        },
        [*chain.from_iterable(part.file_names for part in parts)],
    )
