"""Reading NPZ bytes that come from strangers: nothing is executed, every size is checked before memory is taken."""

import io
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from penstock.errors import BadData
from penstock.fill import is_transient
from penstock.readers.object_array import decode_object_array

MAX_MEMBERS = 10_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)
"""What a damaged archive makes zipfile raise."""
_HEADER_ERRORS = (ValueError, TypeError, SyntaxError, RecursionError, KeyError, EOFError, tokenize.TokenError)


def read_npz(
    content: bytes | bytearray | memoryview | np.ndarray,
    *,
    names: Collection[str] | None = None,
    object_fields: Collection[str] = ("masks",),
    max_bytes: int = 1 << 30,
) -> dict[str, np.ndarray]:
    """The arrays of an NPZ, by name, read without NumPy's pickle.

    Members that are stored, as `numpy.savez` does, become views of `content` (perhaps unaligned); deflated ones are
    unpacked. Checksums are verified for every member read.

    Args:
        content: the NPZ's bytes; an array must be uint8, one-dimensional and contiguous.
        names: the members wanted; all of them for None. Names that are not there are no fault.
        object_fields: names that may hold pickled object arrays of numbers; they come back as plain arrays of numbers,
            (N, H, W) for an object array of shape (N,) that holds (H, W) arrays.
        max_bytes: limit on the sum of the declared sizes of the members read, and on what an object array unpacks to.

    Raises:
        BadData: the bytes are no NPZ, a member is damaged, too large, an object array that is not allowed, or an object
            array that holds anything but numbers. The message names the member.
    """
    view = _view(content)
    with _open_zip(content) as archive:
        members = _wanted(archive, names)
        declared = sum(member.file_size for member in members.values())
        if declared > max_bytes:
            raise BadData(f"NPZ: the members declare {declared} bytes; expected at most {max_bytes}")
        return {
            name: _parse_npy(name, _member_bytes(archive, view, member), name in object_fields, max_bytes)
            for name, member in members.items()
        }


def read_npz_file(
    path: str | os.PathLike[str], names: Collection[str], *, max_bytes: int = 1 << 30
) -> dict[str, np.ndarray]:
    """As `read_npz`, of a file, of which only the members wanted are read.

    Raises:
        BadData: as `read_npz`; or the file cannot be read.
    """
    try:
        with open(path, "rb") as file, _zip_of(file, os.fstat(file.fileno()).st_size) as archive:
            members = _wanted(archive, names)
            declared = sum(member.file_size for member in members.values())
            if declared > max_bytes:
                raise BadData(f"NPZ: the members declare {declared} bytes; expected at most {max_bytes}")
            contents = {name: memoryview(zip_member(archive, member, "NPZ")) for name, member in members.items()}
    except OSError as error:
        if is_transient(error):
            raise
        raise BadData(f"{os.fspath(path)}: expected a file that can be read: {error.strerror or error}") from error
    return {name: _parse_npy(name, content, False, max_bytes) for name, content in contents.items()}


def npz_names(content: bytes | bytearray | memoryview | np.ndarray) -> list[str]:
    """Names of the arrays of an NPZ, in order, from its directory alone.

    Raises:
        BadData: the bytes are no NPZ, or a name is there twice.
    """
    with _open_zip(content) as archive:
        return list(_wanted(archive, None))


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def _view(content: bytes | bytearray | memoryview | np.ndarray) -> memoryview:
    return memoryview(content).cast("B")  # type: ignore[arg-type]  # arrays are buffers, though not to mypy


def _open_zip(content: bytes | bytearray | memoryview | np.ndarray) -> zipfile.ZipFile:
    shared = content if isinstance(content, bytes) else _view(content)  # BytesIO copies anything but bytes
    return _zip_of(io.BytesIO(shared), len(shared))


def _zip_of(file: BinaryIO, size: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except ZIP_ERRORS as error:
        raise BadData(f"NPZ: expected a ZIP archive, got {size} bytes that are none: {error}") from error


def _wanted(archive: zipfile.ZipFile, names: Collection[str] | None) -> dict[str, zipfile.ZipInfo]:
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise BadData(f"NPZ: {len(listed)} members; expected at most {MAX_MEMBERS}")
    members: dict[str, zipfile.ZipInfo] = {}
    for member in listed:
        name = member.filename.removesuffix(".npy")
        if not member.filename.endswith(".npy") or (names is not None and name not in names):
            continue
        if name in members:
            raise BadData(f"NPZ: member {name!r} is there twice; expected once")
        members[name] = member
    return members


def _member_bytes(archive: zipfile.ZipFile, view: memoryview, member: zipfile.ZipInfo) -> memoryview:
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
        return _stored_bytes(view, member)
    return memoryview(zip_member(archive, member, "NPZ"))


def zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    """The bytes of a ZIP member, of the length that it declares and of the right checksum.

    Raises:
        BadData: it is damaged; the message starts with `where`.
    """
    try:
        with archive.open(member) as opened:
            content = opened.read(member.file_size)
            opened.read(1)  # past the end: this is where zipfile compares the checksum
    except ZIP_ERRORS as error:
        raise BadData(f"{where}: member {member.filename!r} is damaged: {error}") from error
    if len(content) != member.file_size:
        raise BadData(f"{where}: member {member.filename!r}: expected {member.file_size} bytes, got {len(content)}")
    return content


def _stored_bytes(view: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """The member's bytes where they lie, without a copy."""
    start = member.header_offset
    header = view[start : start + _LOCAL_HEADER.size] if start >= 0 else view[:0]
    if len(header) < _LOCAL_HEADER.size:
        raise BadData(f"NPZ: member {member.filename!r}: its header at byte {start} lies outside {len(view)} bytes")
    magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    first = start + _LOCAL_HEADER.size + name_bytes + extra_bytes
    content = view[first : first + member.file_size]
    if magic != b"PK\x03\x04" or len(content) != member.file_size:
        raise BadData(
            f"NPZ: member {member.filename!r}: expected {member.file_size} bytes from byte {first}, "
            f"got {len(content)} (header {magic!r})"
        )
    crc = zlib.crc32(content)
    if crc != member.CRC:
        raise BadData(f"NPZ: member {member.filename!r}: expected checksum {member.CRC:08x}, got {crc:08x}")
    return content


def _parse_npy(name: str, content: memoryview, objects_allowed: bool, max_bytes: int) -> np.ndarray:
    header, payload = _npy_header(name, content)
    if header.dtype.hasobject:
        if not objects_allowed:
            raise BadData(
                f"NPZ: member {name!r}: expected numbers, got an object array (a pickle), which is not loaded"
            )
        return decode_object_array(payload, name=name, shape=header.shape, max_bytes=max_bytes)
    if header.dtype.kind not in "biufcUS":
        raise BadData(f"NPZ: member {name!r}: expected numbers or text, got type {header.dtype}")
    count = 1
    for side in header.shape:
        count *= side
    expected = count * header.dtype.itemsize
    if expected != len(payload):
        raise BadData(
            f"NPZ: member {name!r}: shape {header.shape} of {header.dtype} needs {expected} bytes, got {len(payload)}"
        )
    if not expected:
        return np.zeros(header.shape, header.dtype)
    flat = np.frombuffer(payload, header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _npy_header(name: str, content: memoryview) -> tuple[_Header, memoryview]:
    stream = io.BytesIO(content[: 1 << 17])
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise BadData(f"NPZ: member {name!r}: expected NPY version 1.0 or 2.0, got {version}")
    except BadData:
        raise
    except _HEADER_ERRORS as error:
        raise BadData(f"NPZ: member {name!r}: its NPY header cannot be read: {error}") from error
    if len(shape) > 32 or any(isinstance(side, bool) or not 0 <= side < 1 << 40 for side in shape):
        raise BadData(f"NPZ: member {name!r}: expected a shape of at most 32 sides >= 0, got {shape}")
    return _Header(tuple(shape), bool(fortran), dtype), content[stream.tell() :]
