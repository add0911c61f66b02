"""The layouts `npy` and `npz`: names, bytes, indexes; and reading them. Equal vectors give equal bytes."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from penstock.errors import BadData, SourceNotFound

Layout = Literal["npy", "npz"]
INDEXES = {"npy": "inst2feat.tsv", "npz": "image_index.tsv"}
HEADERS = {"npy": ("image_id", "segment_id", "feat_file"), "npz": ("image_id", "feat_file", "num_segments")}
ARRAYS = ("segment_ids", "embeddings", "labels")
_BLOCK = 4096
"""Vectors read at once."""


@dataclass(frozen=True)
class Ids:
    """Names of vectors, sorted."""

    images: list[str]
    """Image id of each vector."""
    segments: np.ndarray
    """(N,) int64."""
    order: np.ndarray
    """(N,) int64: place of each where it lies."""

    def runs(self) -> Iterator[slice]:
        """Vectors of each picture."""
        start = 0
        for place in range(1, len(self.images) + 1):
            if place == len(self.images) or self.images[place] != self.images[start]:
                yield slice(start, place)
                start = place


class Rows(Protocol):
    """What files are made from."""

    labels: np.ndarray

    def vectors(self, places: np.ndarray | None = None) -> np.ndarray:
        """(n, D) float16: those of some places, (n,) int64; None for all."""
        ...


def names_of(ids: Ids, layout: Layout) -> list[str]:
    """The files, in order, without the index."""
    if layout == "npy":
        return [f"{image}_{segment}.npy" for image, segment in zip(ids.images, ids.segments.tolist(), strict=True)]
    return [f"{ids.images[run.start]}.npz" for run in ids.runs()]


def files_of(rows: Rows, ids: Ids, layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files, in order, without the index."""
    names = iter(names_of(ids, layout))
    if layout == "npy":
        for start in range(0, len(ids.order), _BLOCK):
            for vector in rows.vectors(ids.order[start : start + _BLOCK]):
                yield next(names), npy_bytes(vector)
        return
    for run in ids.runs():
        places = ids.order[run]
        yield next(names), npz_bytes(ids.segments[run], rows.vectors(places), rows.labels[places])


def npy_bytes(vector: np.ndarray) -> bytes:
    """A (D,) vector as the file of one segment, float16."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(vector, np.float16), allow_pickle=False)
    return stream.getvalue()


def npz_bytes(segment_ids: np.ndarray, embeddings: np.ndarray, labels: np.ndarray) -> bytes:
    """The vectors of one picture as its file: segment_ids (n,) int32, embeddings (n, D) float16, labels (n,) int32."""
    arrays = (segment_ids.astype(np.int32), embeddings.astype(np.float16), labels.astype(np.int32))
    stream = io.BytesIO()
    fields: dict[str, Any] = dict(zip(ARRAYS, arrays, strict=True))
    np.savez_compressed(stream, **fields)
    return stream.getvalue()


def index_of(ids: Ids, layout: Layout) -> bytes:
    """The index: a row per vector (npy) or picture (npz)."""
    names = names_of(ids, layout)
    if layout == "npy":
        cells: Iterator[tuple[object, ...]] = zip(ids.images, ids.segments.tolist(), names, strict=True)
        return table(layout, cells)
    return table(
        layout,
        ((ids.images[run.start], name, run.stop - run.start) for run, name in zip(ids.runs(), names, strict=True)),
    )


def table(layout: Layout, rows: Iterator[tuple[object, ...]]) -> bytes:
    """Rows under the header of a layout, apart by tabs, a newline after each."""
    return "".join("\t".join(map(str, row)) + "\n" for row in (HEADERS[layout], *rows)).encode()


def read_index(folder: Path, layout: Layout) -> list[tuple[str, str, str]]:
    """The rows of an index, without its header.

    Raises:
        SourceNotFound: there is none.
        BadData: another header, rows of another length, or a file that is not a bare name.
    """
    path = folder / INDEXES[layout]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise SourceNotFound(f"{path}: expected the index of {layout} files; there is none") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: expected UTF-8: {error}") from error
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not lines or tuple(lines[0].split("\t")) != HEADERS[layout]:
        raise BadData(f"{path}: expected the header {' '.join(HEADERS[layout])}, got {lines[:1]}")
    place = HEADERS[layout].index("feat_file")
    found: list[tuple[str, str, str]] = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != 3 or not re.fullmatch(rf"[^/\\\x00]+\.{layout}", cells[place]):
            raise BadData(f"{path}:{number}: expected {', '.join(HEADERS[layout])} with a bare name, got {line!r}")
        number_cell = cells[1] if layout == "npy" else cells[2]
        if not (number_cell.isascii() and number_cell.isdecimal()):
            raise BadData(f"{path}:{number}: expected a number, got {number_cell!r}")
        found.append((cells[0], cells[1], cells[2]))
    return found


def listed_files(folder: Path, layout: Layout) -> list[str]:
    """Files that an index in the folder names; none where there is no index."""
    if not (folder / INDEXES[layout]).exists():
        return []
    place = HEADERS[layout].index("feat_file")
    return [row[place] for row in read_index(folder, layout)]


def read_npy(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, (N, D) float16, and labels, which are not known: (N,) int32 of -1. See `read_npy_cache`."""
    keys: list[str] = []
    vectors: list[np.ndarray] = []
    for image, segment, name in read_index(folder, "npy"):
        keys.append(f"{image}_{segment}")
        vectors.append(_loaded(folder / name, lambda found: found.ndim == 1 and found.dtype == np.float16))
    return keys, _joined(folder, [vector[None] for vector in vectors]), np.full(len(keys), -1, np.int32)


def read_npz(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, (N, D) float16, labels (N,) int32. See `read_npz_cache`."""
    keys: list[str] = []
    parts: list[np.ndarray] = []
    labels = [np.zeros(0, np.int32)]
    for image, name, count in read_index(folder, "npz"):
        segments, vectors, classes = load_npz(folder / name)
        if len(segments) != int(count):
            raise BadData(f"{folder / name}: expected {count} segments, as the index says, got {len(segments)}")
        keys += [f"{image}_{segment}" for segment in segments.tolist()]
        parts.append(vectors)
        labels.append(classes)
    return keys, _joined(folder, parts), np.concatenate(labels)


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """segment_ids (n,) int32, embeddings (n, D) float16, labels (n,) int32 of one picture.

    Raises:
        BadData: the file is missing or damaged, or its arrays are others.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            segments, vectors, labels = (archive[name] for name in ARRAYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadData(f"{path}: expected an npz with {', '.join(ARRAYS)}: {error}") from error
    kinds = [(segments.dtype, segments.ndim), (vectors.dtype, vectors.ndim), (labels.dtype, labels.ndim)]
    expected = [(np.dtype(np.int32), 1), (np.dtype(np.float16), 2), (np.dtype(np.int32), 1)]
    if kinds != expected or not len(segments) == len(vectors) == len(labels):
        found = ", ".join(f"{one.dtype}{one.shape}" for one in (segments, vectors, labels))
        raise BadData(f"{path}: expected int32 (n,), float16 (n, D), int32 (n,), got {found}")
    return segments, vectors, labels


def _loaded(path: Path, is_right: "_Check") -> np.ndarray:
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadData(f"{path}: expected an npy file of one vector: {error}") from error
    if not isinstance(found, np.ndarray) or not is_right(found):
        raise BadData(f"{path}: expected a vector of float16, got {getattr(found, 'dtype', '?')} {np.shape(found)}")
    return found


class _Check(Protocol):
    def __call__(self, found: np.ndarray, /) -> bool: ...


def _joined(folder: Path, parts: Sequence[np.ndarray]) -> np.ndarray:
    lengths = sorted({part.shape[1] for part in parts})
    if len(lengths) > 1:
        raise BadData(f"{folder}: expected vectors of one length, got {lengths}: several models wrote here")
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float16)
