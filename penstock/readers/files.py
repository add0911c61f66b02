"""Where a dataset's files lie: a folder, an LMDB. A reader asks by relative path and does not care which."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import xxhash

from penstock.errors import BadData, MissingExtra, SourceNotFound
from penstock.fill import is_transient


class Files(Protocol):
    """Read-only files by relative POSIX path. Pickles, forks, serves many threads."""

    @property
    def root(self) -> Path:
        """The folder, LMDB or TAR; or the folder of these."""
        ...

    def read(self, path: str) -> bytes:
        """The whole content.

        Raises:
            BadData: there is no such file, or it cannot be read.
            OSError: reading failed in a way that may pass (EIO, ESTALE, ...).
        """
        ...

    def exists(self, path: str) -> bool:
        """Whether there is such a file (or, in a folder, such a folder)."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Names directly inside a folder, sorted; empty where there is no such folder."""
        ...

    def stamp(self, path: str) -> int:
        """A 64-bit hash of what is known of a file or folder without reading it: size and time; 0 where there is none."""
        ...


class Walked(NamedTuple):
    """A folder that `walk` has come to."""

    folder: str
    """Relative to the root; "" for the root itself."""
    files: list[os.DirEntry[str]]
    """What lies directly in it and is no folder, in no order."""
    stamp: int
    """See `stamp_of`."""


class FolderFiles:
    """Files of a folder on disk."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def read(self, path: str) -> bytes:
        """See `Files.read`."""
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                return file.read()
        except OSError as error:
            if is_transient(error):
                raise
            raise BadData(f"{self.root / path}: expected a file that can be read: {error.strerror or error}") from error
        except ValueError as error:  # a zero byte in the name
            raise BadData(f"{self.root}: {path!r}: expected the path of a file: {error}") from error

    def exists(self, path: str) -> bool:
        """See `Files.exists`."""
        return os.path.exists(os.path.join(self.root, path))

    def names(self, folder: str = "") -> list[str]:
        """See `Files.names`."""
        try:
            return sorted(os.listdir(os.path.join(self.root, folder)))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte in the name
            return []
        except OSError as error:  # a loop of symbolic links, no permission
            raise BadData(f"{self.root / folder}: expected a folder that can be listed: {error}") from error

    def stamp(self, path: str) -> int:
        """See `Files.stamp`."""
        try:
            status = os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):  # the latter: a zero byte in the name
            return 0
        return stamp_of(status)


class LmdbFiles:
    """Values of an LMDB whose keys are relative paths, as the `*_lmdb` datasets of pytracking and its heirs store them.

    The environment is opened read-only on first use, once per process however many sources read it (LMDB wants it so),
    and anew after a fork; a source can be forked and pickled.
    """

    def __init__(self, root: Path | str, *, prefix: str = "") -> None:
        self.root = Path(root)
        self.prefix = prefix

    def read(self, path: str) -> bytes:
        """See `Files.read`."""
        key = (self.prefix + path).encode()
        with self._environment().begin(buffers=False) as transaction:  # type: ignore[attr-defined]  # an lmdb.Environment
            content = transaction.get(key)
        if content is None:
            raise BadData(f"{self.root}: no key {key.decode()}")
        return bytes(content)

    def exists(self, path: str) -> bool:
        """See `Files.exists`."""
        with self._environment().begin() as transaction:  # type: ignore[attr-defined]  # an lmdb.Environment
            return transaction.get((self.prefix + path).encode()) is not None

    def names(self, folder: str = "") -> list[str]:
        """See `Files.names`; jumps from child to child: the cost follows their number, not that of the keys below them."""
        start = (self.prefix + (folder.rstrip("/") + "/" if folder else "")).encode()
        children = set()
        with self._environment().begin() as transaction, transaction.cursor() as cursor:  # type: ignore[attr-defined]
            found = cursor.set_range(start)
            while found and (key := bytes(cursor.key())).startswith(start):
                child, slash, _ = key[len(start) :].partition(b"/")
                children.add(child.decode("utf-8", "surrogateescape"))
                found = cursor.set_range(start + child + _AFTER_SLASH) if slash else cursor.next()
        return sorted(children - {""})

    def keys(self, start: str = "") -> Iterator[str]:
        """Keys that start with a text, sorted as LMDB keeps them (by bytes)."""
        first = (self.prefix + start).encode()
        with self._environment().begin() as transaction, transaction.cursor() as cursor:  # type: ignore[attr-defined]
            found = cursor.set_range(first)
            while found and (key := bytes(cursor.key())).startswith(first):
                yield key.decode("utf-8", "surrogateescape").removeprefix(self.prefix)
                found = cursor.next()

    def stamp(self, path: str) -> int:
        """See `Files.stamp`: that of the whole data file, since LMDB keeps no times; 0 for a key that is not there."""
        if path and not self.exists(path):
            return 0
        return FolderFiles(self.root).stamp("data.mdb" if self.root.is_dir() else "")

    def _environment(self) -> object:
        with _environments_lock:
            name = os.path.realpath(self.root)
            process, environment = _environments.get(name, (0, None))
            if process != os.getpid():
                if environment is not None:
                    environment.close()  # type: ignore[attr-defined]  # the parent's, as this child inherited it
                environment = _open_lmdb(self.root)
                _environments[name] = os.getpid(), environment
            return environment


class ForkLock:
    """A lock that a forked child finds free, whoever held it in the parent, and that pickles as a free one.

    It suits what is whole between any two steps of the interpreter, a dict or a counter: a fork may come while the lock
    is held.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), threading.Lock()).acquire()

    def __exit__(self, *error: object) -> None:
        self._locks[os.getpid()].release()

    def __getstate__(self) -> dict[str, object]:
        return {"_locks": {}}


def walk(root: Path, start: str = "", *, depth: int | None = None) -> Iterator[Walked]:
    """Folders from `start` on, in order of path. Hidden names are left out; links are followed, loops of them are not.

    Args:
        root: the folder that names are relative to.
        start: where to begin, relative to it.
        depth: how many levels below `start` to look at; None for all.

    Raises:
        BadData: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [(start, 0)]
    while waiting:
        folder, level = waiting.pop()
        files, inside = [], []
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir():
                        files.append(entry)
                    elif depth is None or level < depth:
                        inside.append((f"{folder}/{entry.name}" if folder else entry.name, level + 1))
        except OSError as error:
            raise BadData(f"{root / folder}: expected a folder that can be listed: {error}") from error
        yield Walked(folder, files, stamp_of(status))
        waiting += sorted(inside, reverse=True)


_AFTER_SLASH = b"0"
"""The byte after "/": a key that starts with `child0` or anything greater is not below `child/`."""
_environments: dict[str, tuple[int, object]] = {}
_environments_lock = threading.Lock()
os.register_at_fork(before=_environments_lock.acquire, after_in_parent=_environments_lock.release,
                    after_in_child=_environments_lock.release)  # fmt: skip


def stamp_of(status: os.stat_result) -> int:
    """Size and time of a file, or time of a folder, as 64 bits."""
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return xxhash.xxh3_64_intdigest(f"{size} {status.st_mtime_ns}".encode())


def _open_lmdb(root: Path) -> object:
    try:
        import lmdb
    except ImportError as error:
        raise MissingExtra("lmdb", "lmdb", "reading an LMDB") from error
    if not os.path.exists(root / "data.mdb" if root.is_dir() else root):
        got = "a folder without it" if root.is_dir() else "nothing"
        near = next((folder for folder in nearby(root) if os.path.isfile(folder / "data.mdb")), None)
        hint = f". Did you mean {near}?" if near else ""
        raise SourceNotFound(f"{root}: expected an LMDB (a folder with data.mdb), got {got}{hint}")
    try:
        opened = lmdb.open(
            str(root), readonly=True, lock=False, readahead=False, meminit=False, max_readers=512, subdir=root.is_dir()
        )
    except lmdb.Error as error:
        raise SourceNotFound(f"{root}: expected an LMDB (a folder with data.mdb): {error}") from error
    expected = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    found = os.stat(root / "data.mdb" if root.is_dir() else root).st_size
    if found < expected:  # to read behind the end of a mapped file kills the process
        opened.close()
        raise BadData(
            f"{root}: expected an LMDB of at least {expected} bytes, got {found}: it is cut off; copy it again "
            "(if it is whole: `mdb_copy -c` writes it in full size)"
        )
    return cast(object, opened)


def nearby(root: Path) -> list[Path]:
    """Folders that a wrong root may have meant: up to two levels up, then two levels down (at most 200). Of a path that is
    no folder, the one that it lies in, and three levels up."""
    if not os.path.isdir(root):
        known = [folder for folder in root.absolute().parents if os.path.isdir(folder)]
        return known[: 4 if os.path.exists(root) else 1]
    found = list(root.absolute().parents)[:2]
    below = [root]
    for _ in range(2):
        below = [Path(entry.path) for folder in below for entry in _folders(folder)][:200]
        found += below
    return found


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)
    except OSError:
        return []
