"""Vectors of segments in other layouts: a file per segment (`npy`) or picture (`npz`), a table (`parquet`, `lance`), novic's
cache (`novic`); and all but the last back.

Source of the layouts `npy` and `npz`: the first embedding cache for COCO panoptic, its names, headers and types as they
were. Files are put in their places one by one, each whole, the index last: a kill leaves no half file, and the same call
goes on from there and ends with the same bytes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import orjson

from penstock.errors import OutputRefused, PartClaimed, UsageError
from penstock.exporters.embedding_files import INDEXES, Layout, files_of, index_of, listed_files, names_of
from penstock.exporters.embedding_novic import KEYS, write_novic
from penstock.exporters.embedding_rows import MARKER, PLACES, VECTOR, VectorRows, named, open_rows
from penstock.exporters.embedding_tables import write_lance, write_table, write_vector_store
from penstock.report import Report
from penstock.sequence_folder import SIDE, flush_folders
from penstock.store.disk import Disk
from penstock.store.manifest import NAME, Manifest
from penstock.store.output import refused_if_unwritable

COMMAND = "export"
Format = Literal["npy", "npz", "parquet", "lance", "novic", "store"]
FORMATS = get_args(Format)
_WRITERS = {"parquet": write_table, "lance": write_lance, "novic": write_novic, "store": write_vector_store}


@dataclass(frozen=True)
class Put:
    """What was done to a folder of files."""

    written: int = 0
    kept: int = 0
    removed: int = 0
    bytes_written: int = 0


def export_vectors(source: Path | str, output: Path | str, *, format: Format, disk: Disk | None = None) -> Report:  # noqa: A002  # the name of the flag
    """Writes vectors in another layout: any of `store`, `npy`, `npz`, `parquet`, `lance` into any other, or `novic`.

    `npy`: `<image_id>_<segment_id>.npy`, (D,) float16, and `inst2feat.tsv` with image_id, segment_id, feat_file.
    `npz`: `<image_id>.npz`, compressed: segment_ids (n,) int32, embeddings (n, D) float16, labels (n,) int32; and
    `image_index.tsv` with image_id, feat_file, num_segments. Both indexes are sorted by image id and segment id.
    `parquet`: `vectors.parquet`, a row per vector with every field of the store. `lance`: the same as `vectors.lance`.
    `novic`: `embedding_cache.bin` and `keys.txt`, see `embedding_novic`. `store`: a store with the fields
    `embedding`, `image_id`, `segment_id`, `label`. Only rows that hold a vector are written. A label that is not known
    (`npy` keeps none) is -1.

    Args:
        source: a store of vectors, or a folder of `npy`, `npz`, `parquet` or `lance`.
        output: a new or empty folder; for npy and npz also the output of an earlier call, which is then brought up to date.
        format: the layout.
        disk: the write seam; tests replace it.

    Returns:
        The report: rows are vectors. Its notes say how many files were written, kept and removed.

    Raises:
        UsageError: no such format; the source is in that layout already; or a package is missing. Nothing was touched.
        SourceNotFound: no vectors there.
        BadData: the source's files are damaged; two pictures would get one image id, or a segment id does not fit; or, for
            novic, a vector is not of norm 1, or there is none.
        OutputRefused: the output holds something else; nothing was touched.
        OutputFull: no room; the same call goes on.
        PartClaimed: another run is writing the same table or cache.
    """
    if format not in FORMATS:
        raise UsageError(f"export of vectors: expected the format {', '.join(FORMATS)}, got {format!r}")
    rows, target = open_rows(Path(source)), Path(output)
    if rows.layout == format:
        raise UsageError(f"{source}: is of the format {format} already; copy the folder")
    report = Report(command=COMMAND, output=str(output), planned=len(rows), notes={"format": format})
    seam = disk or Disk()
    try:
        with refused_if_unwritable(target):
            if format in INDEXES:
                put = put_vectors(rows, target, cast(Layout, format), disk=disk)
                report.skipped = len(rows) if not put.written else 0
                report.bytes_written = put.bytes_written
                report.notes["files"] = vars(put)
            else:
                require_free(target, format)
                with _alone(target, seam):
                    require_free(target, format)
                    report.bytes_written = _WRITERS[format](rows, target, seam)
    finally:
        seam.close()
    report.done = len(rows)
    return report


def holds_vectors(path: Path | str) -> bool:
    """Whether `export_vectors` is for this folder: files or a table of vectors, or a store with the field `embedding`."""
    folder = Path(path)
    if any((folder / name).exists() for name in PLACES.values() if name != NAME):
        return True
    return (folder / NAME).exists() and VECTOR in Manifest.load(folder).schema


def require_free(folder: Path, layout: str) -> None:
    """Makes sure that a folder is new, empty, holds what was put there in the same layout, or what a killed run left.

    Raises:
        OutputRefused: it holds something else; the message says what.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder}: is a file; expected a new or an empty folder; nothing was touched")
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    begun = f"{PLACES[cast(Format, layout)]}.new"
    if names <= {SIDE} or (begun in names and names <= {SIDE, begun, KEYS, f"{KEYS}.new"}):
        return
    before = _marker(folder).get("layout")
    if before == layout and layout in INDEXES:
        return
    found = next((layout for layout, name in PLACES.items() if (folder / name).exists()), "")
    what = f"holds files of the layout {before or found}" if before or found else "is not empty"
    why = "" if before else ", and nothing that says what they were made with" if found else ""
    raise OutputRefused(
        f"{folder}: {what}{why}; expected a new or an empty folder, or earlier output as {layout}; nothing was touched"
    )


def put_vectors(rows: VectorRows, folder: Path, layout: Layout, *, disk: Disk | None = None) -> Put:
    """Makes a folder hold these vectors as files, and no others of before: what is there with the right bytes stays.

    Args:
        rows: vectors.
        folder: new, empty, or of an earlier call.
        layout: "npy" or "npz".
        disk: the write seam.

    Raises:
        OutputRefused, OutputFull, BadData: see `export_vectors`.
    """
    require_free(folder, layout)
    ids = named(rows, layout)
    seam = Disk(flush=False) if disk is None else disk
    with _locked(folder):
        require_free(folder, layout)  # as another run has left it meanwhile
        marker = {
            "format": "penstock vectors",
            "version": 1,
            "layout": layout,
            "rows": len(rows),
            "source": rows.digest(),
        }
        marker |= {"attributes": dict(rows.attributes)}
        expected = set(names_of(ids, layout))
        if _marker(folder) == {**marker, "whole": True} and expected | {INDEXES[layout]} <= set(os.listdir(folder)):
            return Put(kept=len(expected))
        _write_marker(folder, {**marker, "whole": False}, seam)
        written = kept = size = 0
        for name, content in files_of(rows, ids, layout):
            if _holds(folder / name, content):
                kept += 1
            else:
                _replace(seam, folder / name, content)
                written, size = written + 1, size + len(content)
        stale = [name for name in listed_files(folder, layout) if name not in expected]
        for name in stale:
            (folder / name).unlink(missing_ok=True)
        index = index_of(ids, layout)
        if not _holds(folder / INDEXES[layout], index):
            _replace(seam, folder / INDEXES[layout], index)
            size += len(index)
        flush_folders(Disk(), [folder])
        _write_marker(folder, {**marker, "whole": True}, seam)
    return Put(written, kept, len(stale), size)


def read_npy_cache(folder: Path | str) -> VectorRows:
    """The vectors of a folder of `npy`, by its index `inst2feat.tsv`: `.keys`, `.vectors()`, `.labels` (all -1).

    Raises:
        SourceNotFound: there is no index.
        BadData: the index is broken, a file is missing or damaged, or vectors are not of one length.
    """
    return open_rows(Path(folder), layout="npy")


def read_npz_cache(folder: Path | str) -> VectorRows:
    """The vectors of a folder of `npz`, by its index `image_index.tsv`: `.keys`, `.vectors()`, `.labels`.

    Raises:
        SourceNotFound, BadData: as `read_npy_cache`; or a file does not have the number of segments that the index says.
    """
    return open_rows(Path(folder), layout="npz")


def _marker(folder: Path) -> dict[str, object]:
    try:
        found = orjson.loads((folder / SIDE / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_marker(folder: Path, marker: dict[str, object], disk: Disk) -> None:
    _replace(disk, folder / SIDE / MARKER, orjson.dumps(marker, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _replace(disk: Disk, path: Path, content: bytes) -> None:
    disk.replace(path, content)
    disk.close(path)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file is there with this content."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except FileNotFoundError:
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits until no other process brings the folder up to date."""
    (folder / SIDE).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / SIDE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _alone(folder: Path, disk: Disk) -> Iterator[None]:
    """The right to write the one file of a folder, which is made, and removed if nothing came into it: two runs would write
    into one file.

    Raises:
        PartClaimed: another run has it.
    """
    is_new = not folder.exists()
    disk.make_directory(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PartClaimed(f"{folder}: another run is exporting to it") from error
        try:
            yield
        finally:
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(descriptor)
