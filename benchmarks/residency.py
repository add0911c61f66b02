"""What part of a folder is in the page cache, and how to put it there or take it out."""

import ctypes
import mmap
import os
from pathlib import Path

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def folder_bytes(folder: Path) -> int:
    """Bytes allocated on disk."""
    return sum(path.stat().st_blocks * 512 for path in files(folder))


def sync(folder: Path) -> None:
    """Flushes every file of a folder to the disk."""
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def drop(folder: Path) -> None:
    """Takes the folder's files out of the page cache; pages that a process has mapped stay."""
    sync(folder)
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(folder: Path) -> None:
    """Reads the folder's files into the page cache."""
    buffer = bytearray(4 << 20)
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def resident_share(folder: Path) -> float:
    """Share of the folder's pages that are in the page cache, by mincore; 0.0 to 1.0."""
    counts = [_resident(path) for path in files(folder) if path.stat().st_size]
    total = sum(pages for _, pages in counts)
    return sum(here for here, _ in counts) / total if total else 0.0


def _resident(path: Path) -> tuple[int, int]:
    size = path.stat().st_size
    pages = -(-size // _PAGE)
    state = (ctypes.c_ubyte * pages)()
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as area,
    ):
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), state):
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
    return sum(byte & 1 for byte in bytes(state)), pages
