"""Where a dataset's files lie: a folder, LMDBs, a TAR. A reader asks by relative path and does not care which."""

import os
import stat
import tarfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import xxhash

from penstock.errors import BadData, MissingExtra, SourceNotFound


class Files(Protocol):
    """Read-only files by relative POSIX path. Pickles, forks, serves many threads."""

    @property
    def root(self) -> Path:
        """The folder, LMDB or TAR."""
        ...

    def read(self, path: str) -> bytes:
        """The whole content.

        Raises:
            BadData: there is no such file, or it cannot be read.
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
            raise BadData(f"{self.root / path}: expected a file that can be read: {error.strerror or error}") from error

    def exists(self, path: str) -> bool:
        """See `Files.exists`."""
        return os.path.exists(os.path.join(self.root, path))

    def names(self, folder: str = "") -> list[str]:
        """See `Files.names`."""
        try:
            return sorted(os.listdir(os.path.join(self.root, folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:  # a loop of symbolic links, no permission
            raise BadData(f"{self.root / folder}: expected a folder that can be listed: {error}") from error

    def stamp(self, path: str) -> int:
        """See `Files.stamp`."""
        try:
            status = os.stat(os.path.join(self.root, path))
        except OSError:
            return 0
        return stamp_of(status)


class TarFiles:
    """Regular members of a TAR without compression, by name ("./" stripped). Headers are read once, on first use."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._lock = threading.Lock()
        self._spans: dict[str, tuple[int, int, int]] | None = None

    def read(self, path: str) -> bytes:
        """See `Files.read`."""
        span = self._members().get(path)
        if span is None:
            raise BadData(f"{self.root}: no member {path}")
        with open(self.root, "rb") as file:
            content = os.pread(file.fileno(), span[1], span[0])
        if len(content) != span[1]:
            raise BadData(f"{self.root}: member {path}: expected {span[1]} bytes at {span[0]}, got {len(content)}")
        return content

    def exists(self, path: str) -> bool:
        """See `Files.exists`."""
        return path in self._members()

    def names(self, folder: str = "") -> list[str]:
        """See `Files.names`."""
        return _inside(self._members(), folder)

    def stamp(self, path: str) -> int:
        """See `Files.stamp`."""
        span = self._members().get(path)
        return 0 if span is None else xxhash.xxh3_64_intdigest(repr(span).encode())

    def _members(self) -> dict[str, tuple[int, int, int]]:
        with self._lock:
            if self._spans is None:
                try:
                    with tarfile.open(self.root, "r:") as tar:
                        self._spans = {
                            member.name.removeprefix("./"): (member.offset_data, member.size, int(member.mtime))
                            for member in tar
                            if member.isreg()
                        }
                except (tarfile.TarError, EOFError) as error:
                    raise BadData(f"{self.root}: expected a TAR without compression: {error}") from error
                except OSError as error:
                    raise SourceNotFound(f"{self.root}: expected a TAR: {error.strerror or error}") from error
            return self._spans

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Path]) -> None:
        TarFiles.__init__(self, state["root"])


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
    if not root.exists():
        raise SourceNotFound(f"{root}: expected an LMDB (a folder with data.mdb), got nothing")
    try:
        opened: object = lmdb.open(
            str(root), readonly=True, lock=False, readahead=False, meminit=False, max_readers=512, subdir=root.is_dir()
        )
    except lmdb.Error as error:
        raise SourceNotFound(f"{root}: expected an LMDB (a folder with data.mdb): {error}") from error
    return opened


def _inside(paths: Iterable[str], folder: str) -> list[str]:
    start = folder.rstrip("/") + "/" if folder else ""
    return sorted({path[len(start) :].partition("/")[0] for path in paths if path.startswith(start)} - {""})
