"""A part that is being written, under our claim; and what a crash may have left in it."""

from pathlib import Path

import numpy as np

from penstock.errors import StoreCorrupt
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.store.keys import line_ends
from penstock.store.layout import Layout
from penstock.store.manifest import PartEntry
from penstock.store.rows import KEYS, Ledger


class OpenPart:
    """A part under our claim."""

    def __init__(self, entry: PartEntry, folder: Path, layout: Layout, claim: Claim) -> None:
        self.entry = entry
        self.folder = folder
        self.claim = claim
        self.ledger = Ledger(folder, len(layout.file_names))
        self.states = self.ledger.states(entry.rows)
        self.rows = entry.rows
        """Rows that have a key; of a growing part fewer than it has room for."""
        self.text_end = 0
        """Bytes of keys.txt in use, while the part grows."""
        self.names: dict[str, int] = {}
        """Row of each key, while the part grows."""

    @property
    def missing(self) -> int:
        """Rows neither done nor failed."""
        return self.rows - int(np.count_nonzero(self.states[: self.rows]))


def allocate(disk: Disk, folder: Path, rows: int, layout: Layout, keys: bytes) -> None:
    """Makes the files of a part with room for so many rows, sparse, and flushes their sizes and names."""
    disk.remove(folder)  # left by a driver that was killed before it reached the manifest
    disk.make_directory(folder)
    ledger = Ledger(folder, len(layout.file_names))
    sizes = layout.open_sizes(rows) | {ledger.rows_path.name: rows * ledger.dtype.itemsize, KEYS: len(keys)}
    for name, size in sizes.items():
        disk.resize(folder / name, size)
    disk.write(folder / KEYS, keys, 0)
    for name in sizes:
        disk.sync(folder / name)
    disk.sync_directory(folder)


def cut_torn_keys(disk: Disk, part: OpenPart) -> None:
    """Keys behind the last committed row may be torn by a power cut, and nothing depends on them."""
    used = np.flatnonzero(part.states)
    part.rows = int(used[-1]) + 1 if len(used) else 0
    path = part.folder / KEYS
    ends = line_ends(path.read_bytes())
    if len(ends) < part.rows:
        raise StoreCorrupt(f"{path}: expected at least {part.rows} lines, found {len(ends)}; run penstock verify")
    part.text_end = int(ends[part.rows - 1]) if part.rows else 0
    names = path.read_bytes()[: part.text_end].decode().split("\n")[:-1]
    part.names = {name: row for row, name in enumerate(names)}
    disk.resize(path, part.text_end)
    disk.sync(path)


def remove_leftovers(disk: Disk, path: Path, entry: PartEntry, layout: Layout) -> None:
    """Removes what a sealed part no longer needs: open indexes and segments, and the version that it replaced."""
    folder = path / entry.name
    for blob in layout.blobs:
        segments = [found for found in folder.glob(f"{blob.field.name}.*.blob") if found.name != blob.blob]
        for leftover in [*segments, *folder.glob(blob.open_name)]:
            disk.remove(leftover)
    stem, _, version = entry.name.partition(".")
    for older in range(int(version or 0)):
        if (path / (f"{stem}.{older}" if older else stem)).exists():
            disk.remove(path / (f"{stem}.{older}" if older else stem))
