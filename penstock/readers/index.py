"""Indexes of datasets: columns built from annotation files, kept on disk with the fingerprint of what they were built from.

One file per index: 8 bytes little-endian length of a JSON head, the head (format, fingerprint, problems, columns with
type, shape and place), then the columns, each at a multiple of 64 bytes. It is mapped, not read, so that opening does not
depend on the number of rows.
"""

import json
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import StateMismatch
from penstock.settings import default_cache_dir, load_settings
from penstock.source import Problem

FORMAT = 1
_ALIGN = 64
_log = logging.getLogger("penstock")


@dataclass
class Index:
    """Columns by name, and what was wrong with the files that they were built from.

    A column is an array whose first dimension counts rows, groups or texts. Texts of a column `x` are two arrays, the UTF-8
    bytes `x.bytes` and the int64 offsets `x.ends`; use `put_texts` and `text`.
    """

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    kept: tuple[Path, str] | None = None
    """The file that it was opened from, and its fingerprint. Such an index is pickled by name, not by content."""

    def __getstate__(self) -> dict[str, object]:
        return {"kept": self.kept} if self.kept else dict(self.__dict__)

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self.kept:
            found = _load(*self.kept)
            if found is None:
                raise StateMismatch(
                    f"{self.kept[0]}: the index was rebuilt or removed since the source was opened; open it again"
                )
            self.__dict__.update(found.__dict__)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def put(self, name: str, values: object, dtype: str) -> None:
        """Adds a column of numbers."""
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and fails when the row is read
            self.columns[name] = np.ascontiguousarray(values, dtype)

    def put_texts(self, name: str, texts: Iterable[str | bytes]) -> None:
        """Adds a column of texts (or bytes)."""
        parts = [text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in texts]
        self.columns[f"{name}.bytes"] = np.frombuffer(b"".join(parts), np.uint8)
        self.columns[f"{name}.ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def count(self, name: str) -> int:
        """Number of texts in a column of texts, or of rows in a column of numbers."""
        return len(self.columns[f"{name}.ends" if f"{name}.ends" in self.columns else name])

    def raw(self, name: str, row: int) -> bytes:
        """One member of a column of texts, as bytes."""
        ends = self.columns[f"{name}.ends"]
        start = int(ends[row - 1]) if row else 0
        return self.columns[f"{name}.bytes"][start : int(ends[row])].tobytes()

    def text(self, name: str, row: int) -> str:
        """One text."""
        return self.raw(name, row).decode("utf-8", "surrogateescape")

    def texts(self, name: str) -> list[str]:
        """All texts of a column."""
        return [self.text(name, row) for row in range(self.count(name))]


def cache_dir() -> Path:
    """Where indexes are kept: the setting `cache_dir`, by default `penstock` in the user's cache folder.

    Raises:
        UsageError: the settings cannot be read.
    """
    found = load_settings().settings.cache_dir
    return default_cache_dir(os.environ) if found is None else found


def fingerprint_of(parts: Iterable[object]) -> str:
    """A 128-bit hash of what an index is built from: names, stamps, options."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()


def cached_index(name: str, identity: str, fingerprint: str, build: Callable[[], Index]) -> Index:
    """The index from the cache, or built and put there.

    Args:
        name: the reader's name, for the file name and for messages.
        identity: what the index is of: absolute path and the options that change its rows.
        fingerprint: of the files it is built from; a cached index with another one is built anew.
        build: makes it.

    A cache that cannot be written costs a warning and the time to build again, never the result.
    """
    path = cache_dir() / "index" / f"{name}-{xxhash.xxh3_64_hexdigest(identity.encode('utf-8', 'surrogateescape'))}.idx"
    found = _load(path, fingerprint)
    if found is not None:
        return found
    start = time.monotonic()
    index = build()
    if time.monotonic() - start > 2:
        _log.warning("penstock: %s: index of %s built in %.1f s", name, identity, time.monotonic() - start)
    try:
        _save(path, fingerprint, index)
    except OSError as error:
        _log.warning("penstock: %s: the index cannot be kept in %s (%s); it is built at every start", name, path, error)
        return index
    return _load(path, fingerprint) or index


def _save(path: Path, fingerprint: str, index: Index) -> None:
    places, at = {}, 0
    for name, column in index.columns.items():
        places[name] = {"dtype": column.dtype.str, "shape": column.shape, "start": at}
        at += -(-column.nbytes // _ALIGN) * _ALIGN
    head = {"format": FORMAT, "fingerprint": fingerprint, "columns": places, "bytes": at}
    head["problems"] = [asdict(problem) for problem in index.problems]
    content = json.dumps(head).encode()  # a problem may name a file whose name is no UTF-8, which orjson refuses
    content += b" " * (-(8 + len(content)) % _ALIGN)
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_stale(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            for column in index.columns.values():
                file.write(column.data if column.nbytes else b"")
                file.write(b"\0" * (-column.nbytes % _ALIGN))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)  # it is not there when an interrupt came right after the replacement
        raise


def _drop_stale(path: Path) -> None:
    """Removes what writers of this index left that were killed more than a day ago."""
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):  # another process has just removed it
            if left.stat().st_mtime < time.time() - 86400:
                left.unlink()


def _load(path: Path, fingerprint: str) -> Index | None:
    """The index on disk if it is whole and of this fingerprint. Anything else means: build it."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    length = int.from_bytes(mapped[:8], "little")
    try:
        head = json.loads(mapped[8 : 8 + length])
    except ValueError:
        return None
    if not isinstance(head, dict) or (head.get("format"), head.get("fingerprint")) != (FORMAT, fingerprint):
        return None
    if size != 8 + length + head["bytes"]:
        return None
    columns = {
        name: np.ndarray(tuple(place["shape"]), place["dtype"], mapped, 8 + length + place["start"])
        for name, place in head["columns"].items()
    }
    problems = [Problem(**problem) for problem in head["problems"]]
    return Index(columns, problems, (path, fingerprint))


def starts_of(owners: np.ndarray, count: int) -> np.ndarray:
    """First row of each group, and the number of rows at the end, from the ascending group number of each row.

    Args:
        owners: (N,) ascending group numbers in 0..count-1.
        count: number of groups.

    Returns:
        (count + 1,) int64.
    """
    return np.searchsorted(owners, np.arange(count + 1)).astype(np.int64)
