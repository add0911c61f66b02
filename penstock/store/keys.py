"""Keys of a part: `keys.txt`, one id per line, and `keys.idx`, which finds a line by number or by id without reading all."""

import itertools
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import SchemaError, StoreCorrupt
from penstock.store.disk import Disk
from penstock.store.rows import KEYS, opening

INDEX = "keys.idx"
_HASH_DTYPE = np.dtype([("hash", "<u8"), ("row", "<u8")])


def encode_keys(keys: Sequence[str]) -> bytes:
    """Lines of keys.txt.

    Raises:
        SchemaError: a key is empty or holds a line break.
    """
    for key in keys:
        if not key or "\n" in key or "\r" in key:
            raise SchemaError(f"key {key!r}: expected one non-empty line of text")
    return "".join(f"{key}\n" for key in keys).encode()


def hash_key(key: str) -> int:
    """The hash under which keys.idx finds a key: xxh3_64 of its UTF-8 bytes."""
    return xxhash.xxh3_64_intdigest(key.encode())


class Keys(Sequence[str]):
    """Keys of one part, by row and by name; opened on first use, dropped when pickled."""

    def __init__(self, folder: Path, rows: int, *, sealed: bool) -> None:
        self.folder = folder
        self.sealed = sealed
        self._rows = rows
        self._maps: tuple[mmap.mmap, np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": None}

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # rows only, no slices: they would build lists
        text, offsets, _ = self._open()
        if not 0 <= row < self._rows:
            raise IndexError(f"row {row} of {self._rows} rows")
        return text[int(offsets[row]) : int(offsets[row + 1]) - 1].decode()

    def __iter__(self) -> Iterator[str]:
        """All keys in order, decoded at once."""
        if not self._rows:
            return iter(())
        text, offsets, _ = self._open()
        return iter(text[: int(offsets[self._rows])].decode().split("\n")[:-1])

    def find(self, keys: Sequence[str]) -> dict[str, int]:
        """Row of each of these keys that is here."""
        if not self._rows:
            return {}
        _, _, table = self._open()
        wanted = np.fromiter((hash_key(key) for key in keys), np.uint64, len(keys))
        hashes = table["hash"]
        places = np.searchsorted(hashes, wanted)
        found = {}
        inside = places < len(table)
        hits = np.flatnonzero(inside & (hashes[np.minimum(places, len(table) - 1)] == wanted))
        for number in hits.tolist():
            place = int(places[number])
            while place < len(table) and hashes[place] == wanted[number]:
                row = int(table["row"][place])
                if self[row] == keys[number]:
                    found[keys[number]] = row
                    break
                place += 1
        return found

    def _open(self) -> tuple[mmap.mmap, np.ndarray, np.ndarray]:
        if self._maps is None:
            path = self.folder / KEYS
            with opening(path), path.open("rb") as file:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self.sealed:
                with opening(self.folder / INDEX):
                    index = np.memmap(self.folder / INDEX, np.uint8, "r")
                split = 8 * (self._rows + 1)
                offsets, table = index[:split].view("<u8"), index[split:].view(_HASH_DTYPE)
            else:
                offsets, table = _index(text, self._rows, path)
            if int(offsets[-1]) > len(text):
                raise StoreCorrupt(f"{path}: expected {int(offsets[-1])} bytes, found {len(text)}; run penstock verify")
            self._maps = text, offsets, table
        return self._maps


def write_index(disk: Disk, folder: Path, rows: int) -> None:
    """Writes and flushes keys.idx: rows + 1 offsets (uint64), then (hash, row) sorted by hash, both uint64."""
    path = folder / KEYS
    text = path.read_bytes()
    offsets, table = _index(text, rows, path)
    target = folder / INDEX
    disk.replace(target, offsets.tobytes() + table.tobytes())


def line_ends(text: bytes | mmap.mmap) -> np.ndarray:
    """Position after each line break."""
    return np.flatnonzero(np.frombuffer(text, np.uint8) == 10).astype("<u8") + np.uint64(1)


def _index(text: bytes | mmap.mmap, rows: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    ends = line_ends(text)[:rows]
    if len(ends) < rows:
        raise StoreCorrupt(f"{path}: expected {rows} lines, found {len(ends)}; run penstock verify")
    offsets = np.concatenate([np.zeros(1, "<u8"), ends])
    table = np.empty(rows, _HASH_DTYPE)
    view = memoryview(text)
    starts = offsets.tolist()
    table["hash"] = [xxhash.xxh3_64_intdigest(view[a : b - 1]) for a, b in itertools.pairwise(starts)]
    table["row"] = np.arange(rows)
    view.release()
    return offsets, np.sort(table, order=["hash", "row"])
