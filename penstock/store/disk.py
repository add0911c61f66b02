"""The one seam through which a store writes. A test replaces it to record, tear, fail or kill at any write."""

import errno
import fcntl
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.errors import OutputFull
from penstock.store.direct import ALIGNMENT

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_COPY_BYTES = 64 << 20
_DIRECT_CHUNK = 8 << 20

DIRECT_BYTES = 1 << 20
"""Writes of so many bytes and more go past the page cache: faster than through it, and they evict nobody's pages."""


class Disk:
    """Positioned writes, flushes and directory changes. Holds one descriptor per file it has written to.

    Every method either does all of what it says or raises. A full disk is OutputFull; other system errors pass unchanged.
    Not for two threads at once: each worker opens its own.
    """

    def __init__(self, *, flush: bool = True) -> None:
        self.flush = flush
        self._descriptors: dict[str, int] = {}
        self._direct: dict[str, int | None] = {}
        self._aligned: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"flush": self.flush, "_descriptors": {}, "_direct": {}, "_aligned": None}

    def make_directory(self, path: Path) -> None:
        """Creates the directory and those above it, and flushes the entries."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self.sync_directory(folder.parent)

    def resize(self, path: Path, size: int) -> None:
        """Makes the file, or cuts or extends it, to this many bytes; new bytes are zero and take no room yet."""
        is_new = not path.exists()
        with _named(path):
            os.ftruncate(self._open(path), size)
        if is_new:
            self.sync_directory(path.parent)

    def write(self, path: Path, content: bytes | memoryview, offset: int) -> None:
        """Writes all the bytes at the offset; the file must exist. Large blocks go past the page cache where they can."""
        view = memoryview(content).cast("B") if len(content) else memoryview(b"")
        with _named(path):
            if len(view) >= DIRECT_BYTES and not len(view) % ALIGNMENT and not offset % ALIGNMENT:
                done = self._write_direct(path, view, offset)
                view, offset = view[done:], offset + done
            descriptor = self._open(path)
            while len(view):
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written

    def replace(self, path: Path, content: bytes) -> None:
        """Puts the content in the file's place, atomically: at any instant the old file or the new one is there."""
        fresh = path.with_name(path.name + ".new")
        if fresh.exists():
            self.remove(fresh)
        self.resize(fresh, 0)
        self.write(fresh, content, 0)
        self.sync(fresh)
        self.close(fresh)
        self.rename(fresh, path)

    def copy(self, old: Path, new: Path) -> None:
        """Copies a file and flushes the copy; shares the blocks where the file system can."""
        self.resize(new, 0)
        done = 0
        with old.open("rb") as source, _named(new):
            while count := _copy_some(source.fileno(), self._open(new), done):
                done += count
        self.sync(new)
        self.close(new)

    def for_worker(self) -> "Disk":
        """A seam of the same kind for a worker, with descriptors of its own."""
        return Disk(flush=self.flush)

    def rename(self, old: Path, new: Path) -> None:
        """Renames, atomically, and flushes the directory."""
        self.close(new)
        os.replace(old, new)
        self.sync_directory(new.parent)

    def remove(self, path: Path) -> None:
        """Removes a file or a whole directory; nothing happens where there is none, or where others remove it as well."""
        for name in [name for name in self._descriptors if name == str(path) or name.startswith(f"{path}/")]:
            self.close(Path(name))
        while path.is_dir():
            with suppress(FileNotFoundError):  # of a file in it, which somebody else removed first
                shutil.rmtree(path)
        path.unlink(missing_ok=True)
        self.sync_directory(path.parent)

    def sync(self, path: Path) -> None:
        """Flushes the file's bytes, also those that other processes wrote to it."""
        if self.flush:
            with _named(path):
                _flush(self._open(path))

    def sync_directory(self, path: Path) -> None:
        """Flushes the names in a directory."""
        if self.flush:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self, path: Path | None = None) -> None:
        """Closes the descriptor of one file, or all of them."""
        for name in [str(path)] if path else [*self._descriptors, *self._direct]:
            for descriptor in (self._descriptors.pop(name, None), self._direct.pop(name, None)):
                if descriptor is not None:
                    os.close(descriptor)

    def _write_direct(self, path: Path, view: memoryview, offset: int) -> int:
        """Writes with O_DIRECT through aligned memory. Gives the bytes written: 0 where the file system will not have it."""
        name = str(path)
        if name not in self._direct:
            self._direct[name] = _open_direct(name)
        descriptor = self._direct[name]
        if descriptor is None:
            return 0
        self._aligned = self._aligned or mmap.mmap(-1, _DIRECT_CHUNK)
        aligned = memoryview(self._aligned)
        done = 0
        while done < len(view):
            size = min(_DIRECT_CHUNK, len(view) - done)
            aligned[:size] = view[done : done + size]
            written = os.pwrite(descriptor, aligned[:size], offset + done)
            done += written
            if written % ALIGNMENT:
                break  # the rest goes the usual way
        return done

    def _open(self, path: Path) -> int:
        name = str(path)
        if name not in self._descriptors:
            self._descriptors[name] = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self._descriptors[name]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message = (
                f"{path}: no room left ({os.strerror(error.errno or 0)}); committed rows are kept, free some space"
            )
            raise OutputFull(error.errno, message) from error
        error.filename = error.filename or str(path)
        raise


def _open_direct(name: str) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(name, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None  # a file system without O_DIRECT: through the page cache, to the same bytes
        raise


def _copy_some(source: int, target: int, offset: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, _COPY_BYTES, offset, offset)
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
    chunk = os.pread(source, _COPY_BYTES, offset)
    return os.pwrite(target, chunk, offset) if chunk else 0


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)
