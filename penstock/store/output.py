"""Outputs: one file put in its place, and what to say where nothing can be written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import OutputFull, OutputRefused
from penstock.store.disk import Disk

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def refused_if_unwritable(output: Path) -> Iterator[None]:
    """Makes an output, or its folder, that the system does not let be made an OutputRefused: no permission, a file system
    that is read only, a file where a folder should be, or the other way round. Other errors pass unchanged.

    Args:
        output: as the user named it.
    """
    try:
        yield
    except (OutputFull, OutputRefused):
        raise
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        file = error.filename2 or error.filename or str(output)
        what = f"{error.strerror}" if file == str(output) else f"{file}: {error.strerror}"
        raise OutputRefused(f"{output}: not writable ({what}); nothing was touched") from error


@contextmanager
def full_said(output: Path, kept: str) -> Iterator[None]:
    """Makes a full disk, or a full quota, an OutputFull that says so of this output. Other errors pass unchanged.

    Args:
        output: as the user named it.
        kept: what becomes of what was written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OutputFull(error.errno, f"{output}: no room left; {kept}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Puts a file in its place, atomically; the folders above it are made.

    Raises:
        OutputRefused: it cannot be written there, or a folder is in its place.
        OutputFull: no room; what was there stays.
    """
    disk = Disk()
    with refused_if_unwritable(path):
        if path.is_dir():
            raise OutputRefused(f"{path}: is a folder; expected a file; nothing was touched")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            disk.replace(path, content)
        finally:
            disk.close()


def existing_folder(path: Path) -> Path:
    """The path, or the closest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
