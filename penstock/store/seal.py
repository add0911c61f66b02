"""Sealing a part: blobs in row order, an index of its keys, counts and a digest; from then on it is immutable."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import StoreCorrupt
from penstock.store.disk import Disk
from penstock.store.keys import INDEX, write_index
from penstock.store.layout import IDX_DTYPE, BlobFile, Layout
from penstock.store.manifest import PartEntry
from penstock.store.rows import DONE, FAILED, FAILURES, KEYS, ROWS, Ledger

_COPY_BYTES = 8 << 20


def seal(disk: Disk, folder: Path, entry: PartEntry, layout: Layout, *, rows: int) -> PartEntry:
    """Brings a part whose rows are all done or failed into its final form. Gives its new manifest entry.

    Nothing that a reader of the unsealed part uses is changed; the caller swaps the manifest, then removes leftovers.
    May be interrupted and run again. Bytes of failed rows are zeroed, so that they do not depend on attempts.
    """
    ledger = Ledger(folder, len(layout.file_names))
    if rows < entry.rows:
        for name, size in (layout.open_sizes(rows) | {ROWS: rows * ledger.dtype.itemsize}).items():
            disk.resize(folder / name, size)
            disk.sync(folder / name)
    records = np.concatenate([chunk for _, chunk in ledger.chunks(rows)])
    failed = np.flatnonzero(records["state"] == FAILED).tolist()
    for row in failed:
        _blank(disk, folder, layout, row)
    sizes = {
        blob.field.name: _join(disk, folder, blob, records, layout.file_names.index(blob.blob)) for blob in layout.blobs
    }
    for file in layout.records:
        disk.sync(folder / file.name)
    write_index(disk, folder, rows)
    return replace(
        entry,
        name=folder.name,
        rows=rows,
        growing=False,
        sealed=True,
        done=int(np.count_nonzero(records["state"] == DONE)),
        failed=len(failed),
        blob_bytes=sizes,
        digest=digest_part(folder),
        draft="",
    )


def digest_part(folder: Path) -> str:
    """xxh3_128 of `_rows.bin`, then `keys.txt`: as the rows' records hold checksums of all data, it covers the part."""
    digest = xxhash.xxh3_128()
    for name in (ROWS, KEYS):
        with (folder / name).open("rb") as file:
            while chunk := file.read(_COPY_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def copy_for_recompute(disk: Disk, path: Path, entry: PartEntry, layout: Layout, *, damaged: bool = False) -> str:
    """Copies a sealed part into the folder of its next version, in the form of a part that is written. Gives its name.

    Of a part known to be `damaged`, files that are gone are passed over: the caller makes them and resets their rows.
    """
    stem, _, version = entry.name.partition(".")
    name = f"{stem}.{int(version or 0) + 1}"
    old, new = path / entry.name, path / name
    disk.remove(new)
    disk.make_directory(new)
    copies = {file.name: file.name for file in layout.records} | {ROWS: ROWS, KEYS: KEYS, INDEX: INDEX}
    for blob in layout.blobs:
        copies |= {blob.name: blob.open_name, blob.blob: blob.segment(0)}
    if (old / FAILURES).exists():
        copies[FAILURES] = FAILURES
    for source, target in copies.items():
        if damaged and not (old / source).exists():
            continue
        disk.copy(old / source, new / target)
    disk.sync_directory(new)
    return name


def _blank(disk: Disk, folder: Path, layout: Layout, row: int) -> None:
    spans = [(file.name, file.record_bytes) for file in layout.records]
    spans += [(blob.open_name, IDX_DTYPE.itemsize) for blob in layout.blobs]
    for name, size in spans:
        with (folder / name).open("rb") as file:
            content = os.pread(file.fileno(), size, row * size)
        if any(content):
            disk.write(folder / name, bytes(size), row * size)


def _join(disk: Disk, folder: Path, blob: BlobFile, records: np.ndarray, number: int) -> int:
    """Writes `<field>.blob` and its index in row order, checking each value against its checksum. Gives the blob's size."""
    index = np.fromfile(folder / blob.open_name, IDX_DTYPE)
    target, fresh = folder / blob.blob, np.zeros(len(records), IDX_DTYPE)
    disk.resize(target, 0)
    segments = {
        int(n): (folder / blob.segment(int(n))).open("rb")
        for n in np.unique(index["segment"][records["state"] == DONE])
    }
    end = 0
    gathered: list[bytes] = []
    waiting = 0
    for row in np.flatnonzero(records["state"] == DONE).tolist():
        segment, offset, length = (int(value) for value in index[row])
        content = os.pread(segments[segment].fileno(), length, offset)
        if xxhash.xxh3_64_intdigest(content) != records["sums"][row][number]:
            where = f"{folder / blob.segment(segment)}: row {row}, byte {offset}"
            raise StoreCorrupt(
                f"{where}: {len(content)} of {length} bytes found, and their checksum is wrong; the disk lost them"
            )
        fresh[row] = (0, end + waiting, length)
        gathered.append(content)
        waiting += length
        if waiting >= _COPY_BYTES:
            disk.write(target, b"".join(gathered), end)
            gathered, end, waiting = [], end + waiting, 0
    disk.write(target, b"".join(gathered), end)
    for file in segments.values():
        file.close()
    disk.sync(target)
    disk.replace(folder / blob.name, fresh.tobytes())
    return end + waiting
