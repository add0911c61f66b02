"""One pass over the headers of a TAR, seekable or not, compressed or not, that tells where a damaged one ends."""

import bz2
import gzip
import io
import logging
import lzma
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from penstock.source import Problem

STDIN = "-"
"""The path that means standard input."""

MAX_HEADER_BYTES = 1 << 20
"""Limit on an extended header (long names, PAX records), which is read whole."""

_ZEROS_AT_ONCE = 1 << 20
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_DECODE_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
_logger = logging.getLogger(__name__)


class ForwardFile(Protocol):
    """What `tarfile` needs to read: a plain file has it, a `DecodedStream` too."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        ...

    def seek(self, position: int, /) -> int:
        """Go there; forwards at least."""
        ...

    def tell(self) -> int:
        """Bytes before the next one."""
        ...


class _Decoded(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


class DecodedStream:
    """A pipe or a compressed file, read forwards. What breaks while decoding ends it, and is kept in `error`."""

    def __init__(self, raw: io.RawIOBase) -> None:
        buffered = io.BufferedReader(raw, 1 << 20)
        self._raw = buffered
        self._decoded = _decoder(buffered)
        self._position = 0
        self.error: Exception | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; fewer only at the end, or where decoding breaks."""
        pieces: list[bytes] = []
        left = sys.maxsize if size < 0 else size
        while left and self.error is None:
            try:
                piece = self._decoded.read1(min(left, 1 << 20))
            except _DECODE_ERRORS as error:
                self.error = error
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._position += len(content)
        return content

    def seek(self, position: int, /) -> int:
        """Skip forwards by reading.

        Raises:
            OSError: the position lies behind.
        """
        if position < self._position:
            raise OSError(f"a stream at byte {self._position} cannot go back to byte {position}")
        while self._position < position and self.read(min(position - self._position, 1 << 20)):
            pass
        return self._position

    def tell(self) -> int:
        """Decoded bytes read so far."""
        return self._position

    def close(self) -> None:
        """Close the file underneath."""
        self._raw.close()


class TarScan:
    """The members of a TAR in order. After the pass `problem` says what was wrong with the file, if anything.

    Attributes:
        file_bytes: size of a seekable file; None for a stream.
        problem: the file's fault: cut or damaged, with the byte at which it shows.
        is_archive: whether at least the first header, or an end-of-archive mark, was read.
    """

    def __init__(self, path: str, file: ForwardFile, *, file_bytes: int | None = None) -> None:
        self.path = path
        self.file = file
        self.file_bytes = file_bytes
        self.problem: Problem | None = None
        self.is_archive = False
        self._end: tuple[Exception, bytes] | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Headers in order; the file stands at the member's first byte. The caller may read forwards from there."""
        last = -1
        try:
            tar = tarfile.TarFile(fileobj=self.file, mode="r", tarinfo=self._header_class())  # type: ignore[arg-type]  # reads only
            while (info := tar.next()) is not None:
                self.is_archive = True
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
                if info.offset <= last or info.size < 0:
                    raise tarfile.ReadError(f"the header of {info.name!r} has size {info.size}")
                last = info.offset
                yield info
            self._check_end(tar.offset)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            self.fail(type(error).__name__, f"damaged at byte {self._position()}: {error}")
        if self._decode_error() is not None:
            self.problem = None
            self.fail("ReadError", f"cut at byte {self._position()}")

    def cut(self, info: tarfile.TarInfo, found: int) -> str:
        """Record that the file ends inside a member, of which `found` bytes are there; gives the member's fault."""
        self.fail(
            "ReadError",
            f"cut at byte {info.offset_data + found}: member {info.name!r} starts at byte {info.offset_data}, "
            f"expected {info.size} bytes, found {found}",
        )
        return f"truncated: member {info.name!r} expected {info.size} bytes, found {found}"

    def fail(self, error: str, message: str) -> None:
        """Record the file's fault; the first one stands."""
        broken = self._decode_error()
        if broken is not None:
            error, message = type(broken).__name__, f"{message} (decoding broke: {broken})"
        if self.problem is None:
            self.problem = Problem(self.path, error, f"{self.path}: {message}; the members before it are kept")

    def _position(self) -> int:
        """Where the file stands; its end where `tarfile` went past it."""
        position = self.file.tell()
        return position if self.file_bytes is None else min(position, self.file_bytes)

    def _decode_error(self) -> Exception | None:
        return self.file.error if isinstance(self.file, DecodedStream) else None

    def _header_class(self) -> type[tarfile.TarInfo]:
        """A TarInfo that remembers why headers ended: `tarfile` takes a damaged one for the end of the archive."""
        scan = self

        class Header(tarfile.TarInfo):
            @classmethod
            def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
                try:
                    header = super().frombuf(buf, encoding, errors)
                    extended = header.type in (b"L", b"K", b"x", b"g", b"X")
                    if header.size < 0 or (extended and header.size > MAX_HEADER_BYTES):
                        raise tarfile.InvalidHeaderError(f"size {header.size}")  # type: ignore[attr-defined]  # not in typeshed
                except tarfile.HeaderError as error:
                    scan._end = (error, bytes(buf))
                    raise
                return header

        return Header

    def _check_end(self, offset: int) -> None:
        error, block = self._end or (tarfile.ReadError("no header"), b"")
        if block.strip(b"\0"):
            self.fail("ReadError", f"damaged at byte {offset}: expected a header of 512 bytes, got {error}")
            return
        self.is_archive = True
        if len(block) < 512:
            _logger.warning(
                "%s: no end-of-archive mark after byte %d; if it was cut between members, later ones are missing",
                self.path,
                offset,
            )
            return
        while chunk := self.file.read(_ZEROS_AT_ONCE):
            if chunk.strip(b"\0"):
                self.fail(
                    "ReadError",
                    f"more content follows the end-of-archive mark at byte {offset} and is not read "
                    f"(were archives concatenated? Give each as a path of its own)",
                )
                break


def compression_of(path: Path) -> str:
    """ "gz", "bz2", "xz", "zst", or "" for a file that is not compressed."""
    with path.open("rb") as file:
        return _compression(file.read(6))


def open_stream(path: str) -> DecodedStream:
    """Standard input for "-", else the file or named pipe; decompressed where its first bytes say so."""
    if path == STDIN:
        return DecodedStream(os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False))
    return DecodedStream(open(path, "rb", buffering=0))


def is_tar(path: Path) -> bool:
    """Whether a regular file starts as a TAR, compressed or not."""
    stream = open_stream(str(path))
    try:
        scan = TarScan(str(path), stream)
        next(iter(scan), None)
        return scan.is_archive
    finally:
        stream.close()


def _compression(head: bytes) -> str:
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def _decoder(raw: "io.BufferedReader[io.RawIOBase]") -> "_Decoded":
    kind = _compression(raw.peek(6)[:6])
    if kind == "gz":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bz2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    return raw
