"""One saved sequence on disk: a folder of metadata, annotations, provenance and pictures. Pictures in, files out, and back.

    seq_000001_20241201_143022/
      metadata.json          nine keys                           (metadata.pkl with save_format="pickle")
      annotations.json       boxes in the frame of images/       (annotations.pkl)
      provenance.json        everything else, and size and hash of every other file
      images/template/template_000.jpg    images/search/search_000.jpg    (.png)
      masks/template/template_000.png     0 and 255; only of sources that have masks
      images_raw/... masks_raw/...        as images/ and masks/, with pictures="both": the source's own

Folder, file and key names of the first three and of `images/` are those of the seed's document.
"""

import ctypes
import errno
import io
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import xxhash

from penstock.errors import BadData, OutputRefused, SourceNotFound, StoreCorrupt, UsageError
from penstock.geometry.images import encode_jpeg
from penstock.geometry.opencv import cv2
from penstock.readers.plain_pickle import load_plain_pickle
from penstock.schema import Record, Schema
from penstock.store.disk import Disk
from penstock.store.output import full_said
from penstock.store.v1 import SIDE as SIDE

METADATA, ANNOTATIONS, PROVENANCE = "metadata", "annotations", "provenance.json"
IMAGES, RAW = "images", "images_raw"
MASKS, RAW_MASKS = "masks", "masks_raw"
PICTURE_KINDS = ("image", "mask")
"""Kinds of the fields that lie in pictures; all others stand in `provenance.json`."""
ROLES = ("template", "search")
TEMPORARY = ".writing-"
"""How the name of a folder that is not whole yet begins."""
VERSION = 1
MANIFEST = "sequences.json"
"""In the folder `.penstock` beside the sequences of a run: its recipe and timestamp."""
FORMAT = "penstock sequences"
MANIFEST_VERSION = 1
TIMESTAMP = re.compile(r"\d{8}_\d{6}")

METADATA_KEYS = (
    "sequence_id",
    "timestamp",
    "dataset",
    "test_class",
    "is_video_dataset",
    "template_frame_ids",
    "search_frame_ids",
    "gt_frame_ids_backward",
    "gt_frame_ids_forward",
)
ANNOTATION_KEYS = ("template_anno", "search_anno", "gt_sequence_anno_backward", "gt_sequence_anno_forward")

SaveFormat = Literal["json", "pickle"]
ImageFormat = Literal["jpg", "png"]

_KEPT = "saved sequences are kept, free some space"
_INDENT = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
_SUFFIXES = {"json": "json", "pickle": "pkl"}


def picture_name(role: str, number: int, image_format: str, *, folder: str = IMAGES) -> str:
    """Path of a picture in its sequence: "images/template/template_000.jpg"."""
    return f"{folder}/{role}/{role}_{number:03d}.{image_format}"


def encode_pixels(pixels: np.ndarray, image_format: ImageFormat, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG (4:4:4) or a PNG; equal pixels give equal bytes."""
    if image_format == "jpg":
        return encode_jpeg(pixels, quality=quality)
    return _png(pixels[:, :, ::-1])


def encode_mask(mask: np.ndarray) -> bytes:
    """(H, W) numbers or bool as a PNG: 255 where they are not 0, else 0."""
    return _png((np.asarray(mask) != 0) * np.uint8(255))


def _png(pixels: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise BadData(f"pixels of shape {pixels.shape} and type {pixels.dtype} could not be made a PNG")
    content: bytes = encoded.tobytes()
    return content


def boxes_to_json(boxes: np.ndarray) -> list[list[float | None]]:
    """(N, 4) boxes as lists; None where a number is NaN (no box), since JSON has none."""
    return [[None if value != value else value for value in row] for row in np.asarray(boxes, np.float64).tolist()]


def boxes_from_json(rows: object, where: str) -> np.ndarray:
    """(N, 4) float64; None is NaN.

    Raises:
        BadData: not a list of lists of four numbers.
    """
    try:
        boxes = np.array(rows, np.float64).reshape(-1, 4) if rows else np.zeros((0, 4))
    except (TypeError, ValueError) as error:
        raise BadData(f"{where}: expected boxes of four numbers each: {error}") from error
    return boxes


def record_to_json(record: Record, schema: Schema) -> dict[str, object]:
    """The fields of a record that are not pictures, as plain values; None stands for NaN."""
    return {name: _plain(record[name]) for name, field in schema.items() if field.kind not in PICTURE_KINDS}


def record_from_json(values: Mapping[str, object], schema: Schema, where: str) -> Record:
    """The inverse of `record_to_json`.

    Raises:
        BadData: a field is missing, or does not fit the schema.
    """
    record: Record = {}
    for name, field in schema.items():
        if field.kind in PICTURE_KINDS:
            continue
        try:
            value = values[name]
            record[name] = str(value) if field.is_text else np.array(value, field.dtype).reshape(field.shape)  # type: ignore[arg-type]  # only the first size may be open
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadData(f"{where}: field {name}: expected {field.dtype} {field.shape}: {error}") from error
    return record


def _plain(value: object) -> object:
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(listed, list):
        return [_plain(one) for one in listed]
    return None if listed != listed else listed


def sequence_files(
    *,
    metadata: Mapping[str, object],
    annotations: Mapping[str, object],
    provenance: Mapping[str, object],
    pictures: Mapping[str, bytes],
    save_format: SaveFormat = "json",
) -> dict[str, bytes]:
    """All files of a sequence by path; `provenance.json` holds size and hash of the others, and a hash of itself.

    Args:
        metadata: the nine keys of `METADATA_KEYS`, plain values.
        annotations: the four keys of `ANNOTATION_KEYS`, (N, 4) lists.
        provenance: plain values.
        pictures: path in the folder -> encoded picture.
        save_format: of metadata and annotations.
    """
    if save_format not in _SUFFIXES:
        raise UsageError(f"save_format: expected {' or '.join(_SUFFIXES)}, got {save_format!r}")
    suffix = _SUFFIXES[save_format]
    files = {
        f"{METADATA}.{suffix}": _dump(metadata, save_format),
        f"{ANNOTATIONS}.{suffix}": _dump(annotations, save_format),
        **pictures,
    }
    sums = {name: [len(content), xxhash.xxh3_128_hexdigest(content)] for name, content in files.items()}
    about = {"version": VERSION, **provenance, "files": sums}
    files[PROVENANCE] = orjson.dumps({**about, "digest": provenance_digest(about)}, option=_INDENT)
    return files


def write_folder(disk: Disk, folder: Path, files: Mapping[str, bytes]) -> int:
    """Writes a folder so that it is there whole or not at all: under another name first, flushed, then renamed.

    Args:
        disk: the write seam; whether it flushes is its setting.
        folder: where it goes; the folder above it exists.
        files: path in it -> content.

    Returns:
        Bytes of all files.

    Raises:
        OutputRefused: there is such a folder already.
        OutputFull: no room; nothing is left behind.
    """
    fresh = write_aside(disk, folder, files)
    try:
        flush_folders(disk, [fresh])
        disk.rename(fresh, folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise OutputRefused(f"{folder}: is there already; give another id; nothing was touched") from error
    return sum(len(content) for content in files.values())


def write_aside(disk: Disk, folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files of a folder beside it, under a name that begins with `TEMPORARY`; flushes nothing.

    Returns:
        The folder that holds them; what was left there is replaced.

    Raises:
        OutputFull: no room; nothing is left behind.
    """
    fresh = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with full_said(folder, _KEPT):
            for parent in sorted({(fresh / name).parent for name in files}):
                parent.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (fresh / name).touch()
                disk.write(fresh / name, content, 0)
                disk.close(fresh / name)
    except BaseException:
        disk.close()
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return fresh


def flush_folders(disk: Disk, folders: Sequence[Path]) -> None:
    """Makes all files of some folders outlive a power cut: on Linux by one flush of their file system, which costs as much
    as that of a few files."""
    if not disk.flush or not folders:
        return
    if sys.platform == "linux":
        with full_said(folders[0], _KEPT):
            _flush_file_system(folders[0])
        return
    for folder in folders:
        for top, _, names in os.walk(folder, topdown=False):
            for name in names:
                disk.sync(Path(top, name))
                disk.close(Path(top, name))
            disk.sync_directory(Path(top))


def _flush_file_system(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def saved_format(folder: Path) -> SaveFormat:
    """How metadata and annotations of a saved sequence are written.

    Raises:
        SourceNotFound: there is neither `metadata.json` nor `metadata.pkl`.
    """
    for name, suffix in _SUFFIXES.items():
        if (folder / f"{METADATA}.{suffix}").is_file():
            return "json" if name == "json" else "pickle"
    raise SourceNotFound(f"{folder}: no saved sequence: expected metadata.json or metadata.pkl")


def load_sequence(folder: Path, save_format: SaveFormat | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and annotations of a saved sequence, as written. Pickles are loaded without running anything in them.

    Raises:
        SourceNotFound: the folder holds none.
        BadData: a file is damaged; it is named.
    """
    suffix = _SUFFIXES[save_format or saved_format(folder)]
    metadata, annotations = (_load(folder / f"{name}.{suffix}") for name in (METADATA, ANNOTATIONS))
    return metadata, annotations


def load_provenance(folder: Path) -> dict[str, Any]:
    """What `provenance.json` says.

    Raises:
        SourceNotFound: there is none.
        BadData: it is damaged.
    """
    return _load(folder / PROVENANCE)


def saved_folders(path: Path) -> Iterator[str]:
    """Names of the sequences in a folder, in no order."""
    name = re.compile(rf"seq_.+_{TIMESTAMP.pattern}")
    return (one.name for one in path.iterdir() if name.fullmatch(one.name) and one.is_dir())


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What `sequences.json` of a folder says; None where there is none.

    Raises:
        StoreCorrupt: it is damaged, or of a later version.
    """
    file = path / SIDE / MANIFEST
    if not file.exists():
        return None
    try:
        content = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise StoreCorrupt(f"{file}: broken JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != MANIFEST_VERSION:
        raise StoreCorrupt(
            f"{file}: expected version {MANIFEST_VERSION} of {FORMAT!r}; a later penstock may have written it"
        )
    return content


def in_order(names: Iterable[str]) -> list[str]:
    """Names of sequences by their numbers."""
    return sorted(names, key=lambda name: (len(name), name))


def require_sequences(path: Path) -> list[str]:
    """Names of the saved sequences of a folder, in order.

    Raises:
        SourceNotFound: there are none.
    """
    names = in_order(saved_folders(path)) if path.is_dir() else []
    if not names:
        raise SourceNotFound(f"{path}: expected saved sequences, folders seq_..._YYYYmmdd_HHMMSS; there are none")
    return names


def provenance_digest(provenance: Mapping[str, object]) -> str:
    """The hash that `provenance.json` keeps of itself, without that hash."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(provenance, option=orjson.OPT_SORT_KEYS))


def _dump(content: Mapping[str, object], save_format: SaveFormat) -> bytes:
    if save_format == "json":
        return orjson.dumps(content, option=_INDENT)
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=4)
    with suppress(AttributeError):
        pickler.fast = True  # no memo: bytes must not depend on which equal texts are one object
    pickler.dump(content)
    return stream.getvalue()


def _load(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceNotFound(f"{path}: expected a file of a saved sequence: {error.strerror or error}") from error
    if path.suffix == ".pkl":
        found = load_plain_pickle(content, str(path)).value
    else:
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise BadData(f"{path}: broken JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadData(f"{path}: expected a mapping, got {type(found).__name__}")
    return found


def frames_of(values: Sequence[int] | np.ndarray) -> list[int]:
    """Frame numbers as plain integers."""
    return [int(value) for value in values]
