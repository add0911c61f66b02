"""What a store that is being written holds now, read without a claim while other drivers go on writing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from penstock.errors import PartClaimed, SourceNotFound, StoreCorrupt
from penstock.store.keys import Keys
from penstock.store.layout import Layout
from penstock.store.manifest import NAME, Manifest, PartEntry
from penstock.store.open_part import OpenPart
from penstock.store.rows import Ledger
from penstock.store.store import committed_rows

Read = TypeVar("Read")


class Known:
    """Parts, keys and states of a store, under the manifest as this driver last read it.

    Whatever a manifest names may be replaced by another driver: a part is sealed, or a new version takes its place.
    """

    def __init__(self, path: Path, manifest: Manifest, open_parts: Mapping[str, OpenPart]) -> None:
        self.path = path
        self.manifest = manifest
        self.layout = Layout.of(manifest.schema)
        self._open_parts = open_parts
        self._key_files: dict[str, Keys] = {}

    def reload(self) -> None:
        """Reads the manifest of now.

        Raises:
            PartClaimed: there is none any more.
            RecipeMismatch: it is that of another store, which has taken the place of this one.
        """
        try:
            manifest = Manifest.load(self.path)
        except SourceNotFound as error:
            raise PartClaimed(f"{self.path} is gone: another driver replaced it; run again") from error
        if (manifest.identity, manifest.schema) != (self.manifest.identity, self.manifest.schema):
            manifest.check_identity(self.path, self.manifest.identity, self.manifest.schema)
        self.manifest = manifest

    def entry(self, folder: str) -> PartEntry:
        """The part that has, or had, a folder of that name.

        Raises:
            StoreCorrupt: none had.
        """
        stem = folder.partition(".")[0]
        for entry in self.manifest.parts:
            if entry.name.partition(".")[0] == stem:
                return entry
        raise StoreCorrupt(f"{self.path / NAME}: has no part {stem}, which it had before; was it made anew meanwhile?")

    def find(self, keys: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Part and row of each key that has one."""
        return self._read(lambda: self._find(keys))

    def records(self, places: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
        """The ledger's records of rows given as key -> (part, row)."""
        return self._read(lambda: self._records(places))

    def states(self, folder: str) -> np.ndarray:
        """The state of each row of a part now, uint8. Of one that is being computed anew, and not done again yet, missing."""
        return self._read(lambda: self._ledger(folder).states(self.entry(folder).rows))

    def forget(self, name: str) -> None:
        """Drops what is kept of the keys of a folder, which has been sealed."""
        self._key_files.pop(name, None)

    def _read(self, read: Callable[[], Read]) -> Read:
        """Again, under the manifest of now, where a file was replaced in between."""
        while True:
            try:
                return read()
            except StoreCorrupt:
                before = self.manifest
                self.reload()
                if self.manifest == before:
                    raise

    def _find(self, keys: Sequence[str]) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for entry in self.manifest.parts:
            part = self._open_parts.get(entry.name)
            wanted = [key for key in keys if key not in found]
            if part is not None and part.names:
                here = {key: part.names[key] for key in wanted if key in part.names}
            else:
                here = self._keys_of(entry).find(wanted) if wanted else {}
            found |= {key: (entry.name, row) for key, row in here.items()}
        return found

    def _keys_of(self, entry: PartEntry) -> Keys:
        known = self._key_files.get(entry.name)
        if known is None or known.sealed != entry.sealed:
            rows = committed_rows(self.path / entry.name, entry, self.layout) if entry.growing else entry.rows
            known = self._key_files[entry.name] = Keys(self.path / entry.name, rows, sealed=entry.sealed)
        return known

    def _records(self, places: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(name for name, _ in places.values()):
            rows = {key: row for key, (part, row) in places.items() if part == name}
            first = min(rows.values())
            records = self._ledger(name).read(first, max(rows.values()) + 1)
            found |= {key: records[row - first] for key, row in rows.items()}
        return found

    def _ledger(self, folder: str) -> Ledger:
        entry = self.entry(folder)
        return Ledger(self.path / (entry.draft or entry.name), len(self.layout.file_names))
