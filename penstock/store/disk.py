"""The one seam through which a store writes. A test replaces it to record, tear, fail or kill at any write."""

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import OutputFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_COPY_BYTES = 64 << 20


class Disk:
    """Positioned writes, flushes and directory changes. Holds one descriptor per file it has written to.

    Every method either does all of what it says or raises. A full disk is OutputFull; other system errors pass unchanged.
    Not for two threads at once: each worker opens its own.
    """

    def __init__(self, *, flush: bool = True) -> None:
        self.flush = flush
        self._descriptors: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"flush": self.flush, "_descriptors": {}}

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
        """Writes all the bytes at the offset; the file must exist."""
        view = memoryview(content).cast("B") if len(content) else memoryview(b"")
        with _named(path):
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
        """Removes a file or a whole directory; nothing happens where there is none."""
        for name in [name for name in self._descriptors if name == str(path) or name.startswith(f"{path}/")]:
            self.close(Path(name))
        if path.is_dir():
            shutil.rmtree(path)
        else:
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
        for name in [str(path)] if path else list(self._descriptors):
            descriptor = self._descriptors.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)

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
