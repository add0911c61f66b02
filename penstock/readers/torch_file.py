"""The files of torch.save, opened without torch and without running code: what a tensor or an array in them is.

A `.pth` is a ZIP archive (torch 1.6 and later): `NAME/data.pkl` is a pickle of the object, `NAME/data/KEY` the bytes of
each storage, `NAME/byteorder` their order. Before 1.6 it was five pickles (magic number, protocol, system, object, keys of
the storages) and then, per storage, its number of elements (int64) and its elements. A tensor in the pickle is a call of
`torch._utils._rebuild_tensor_v2(storage, offset, sizes, strides, ...)`, or of `_rebuild_tensor_v3`, which also names the
type; a storage is a persistent id `("storage", type, KEY, device, number of elements)`. A NumPy array needs no storage:
its bytes lie in the pickle. No name in the pickle is imported and nothing it asks for is run: see `safe_pickle`.
"""

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from penstock.errors import BadData
from penstock.readers.npz import ZIP_ERRORS, zip_member
from penstock.readers.safe_pickle import NUMPY_STUBS, PICKLE_ERRORS, Stub, StubUnpickler, refuse_long_pickle

MAX_BYTES = 1 << 30
"""Limit on the bytes of a file, of what its ZIP members unpack to, and of one storage."""

MAX_MEMBERS = 1000
STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
}
"""Name of a storage's class in the module torch -> type of its elements."""

_WIDTHS = {
    1: ("bool", "uint8", "int8"),
    2: ("uint16", "int16", "float16", "bfloat16"),
    4: ("uint32", "int32", "float32"),
    8: ("uint64", "int64", "float64"),
}
ITEM_BYTES = {name: width for width, names in _WIDTHS.items() for name in names}
"""Type of a tensor -> bytes of an element."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LEGACY_PROTOCOL = 1001
_KEY = re.compile(r"[0-9]{1,20}")


def read_torch_file(content: bytes, where: str) -> object:
    """What torch.save stored, collected but not built.

    Args:
        content: the file.
        where: its name, for messages.

    Returns:
        A `TensorState` whose storage holds as many bytes as it says, an `ArrayState`, or whatever plain Python object
        (a dict, a list, a number) the file holds.

    Raises:
        BadData: no such file, a damaged one, one that is too large, or one that names anything but tensors and arrays.
    """
    if content.startswith(b"PK"):
        return _read_zip(content, where)
    if _LEGACY_START in content[:32]:
        return _read_legacy(content, where)
    raise BadData(f"{where}: expected a file of torch.save, got {len(content)} bytes that start with {content[:8]!r}")


class _StorageType(Stub):
    """`torch.IntStorage` and the like, and `torch.storage.UntypedStorage`: only named."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _TensorType(Stub):
    """`torch.uint16` and the like: only named."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _OrderedDictName(Stub):
    """`collections.OrderedDict()`: the hooks of a tensor, always empty."""

    __slots__ = ()

    def __call__(self) -> None:
        return None


@dataclass(slots=True)
class StorageState:
    """The elements that a tensor is a view of. The bytes of the old format follow the pickle: empty until then."""

    dtype: str
    key: str
    count: int
    content: bytes | memoryview = b""
    big_endian: bool = False


@dataclass(slots=True)
class TensorState:
    """What a pickle says of a tensor: offset and strides count elements of `dtype`."""

    storage: StorageState
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class _Rebuild(Stub):
    """`torch._utils._rebuild_tensor`, `_v2` and `_v3`: a view of a storage."""

    __slots__ = ("_version",)

    def __init__(self, version: int) -> None:
        self._version = version

    def __call__(self, storage: object, offset: object, shape: object, strides: object, *more: object) -> TensorState:
        kind = more[2] if self._version == 3 and len(more) >= 3 else None
        if (
            not isinstance(storage, StorageState)
            or len(more) > 4
            or (self._version == 3) != isinstance(kind, _TensorType)
        ):
            raise ValueError("a tensor without a storage or a type")
        if not isinstance(offset, int) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ValueError("a tensor without offset, sizes and strides")
        if not len(shape) == len(strides) <= 32 or any(type(number) is not int for number in (*shape, *strides)):
            raise ValueError(f"a tensor of shape {shape!r} and strides {strides!r}"[:200])
        return TensorState(
            storage, offset, shape, strides, kind.dtype if isinstance(kind, _TensorType) else storage.dtype
        )


def _torch_stubs() -> dict[tuple[str, str], Callable[[], Stub]]:
    stubs = dict(NUMPY_STUBS)
    stubs["collections", "OrderedDict"] = _OrderedDictName
    stubs["torch.storage", "UntypedStorage"] = lambda: _StorageType("uint8")
    for version, suffix in ((1, ""), (2, "_v2"), (3, "_v3")):
        stubs["torch._utils", f"_rebuild_tensor{suffix}"] = lambda version=version: _Rebuild(version)  # type: ignore[misc]
    for name, dtype in STORAGES.items():
        for module in ("torch", "torch.cuda"):
            stubs[module, name] = lambda dtype=dtype: _StorageType(dtype)  # type: ignore[misc]
    for dtype in ITEM_BYTES:
        stubs["torch", dtype] = lambda dtype=dtype: _TensorType(dtype)  # type: ignore[misc]
    return stubs


_STUBS = _torch_stubs()


class _TorchUnpickler(StubUnpickler):
    """Names from `_STUBS`; storages from a function of (type, key, number of elements)."""

    def __init__(self, stream: io.BytesIO, where: str, storage: Callable[[str, str, int], StorageState]) -> None:
        super().__init__(stream, where, _STUBS)
        self._storage = storage

    def persistent_load(self, pid: object) -> StorageState:
        """The storage that a persistent id names.

        Raises:
            BadData: the id is none of a storage.
        """
        match pid:
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(count), *rest) if _KEY.fullmatch(key):
                if not 0 <= count <= MAX_BYTES:
                    raise BadData(f"{self._where}: storage {key!r}: {count} elements, more than {MAX_BYTES} bytes")
                if rest not in ([], [None]):
                    raise BadData(f"{self._where}: storage {key!r} is a view of another, which is not supported")
                return self._storage(dtype, key, count)
        raise BadData(f"{self._where}: expected the id of a storage in the pickle, got {str(pid)[:200]!r}; refused")


def _unpickle(stream: io.BytesIO, where: str, storage: Callable[[str, str, int], StorageState]) -> object:
    """The next pickle of the stream, behind which it stands afterwards."""
    refuse_long_pickle(stream, where)
    try:
        loaded: object = _TorchUnpickler(stream, where, storage).load()
    except BadData:
        raise
    except PICKLE_ERRORS as error:
        raise BadData(f"{where}: the pickle cannot be read as a tensor or an array: {error}"[:400]) from error
    return loaded


def _read_zip(content: bytes, where: str) -> object:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except ZIP_ERRORS as error:
        raise BadData(f"{where}: the {len(content)} bytes are a damaged ZIP archive: {error}") from error
    with archive:
        members = _members(archive, where)
        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise BadData(f"{where}: expected one member NAME/data.pkl, as torch.save writes, got {len(roots)}")
        root = roots[0]
        order = b"little"
        if f"{root}byteorder" in members:
            order = zip_member(archive, members[f"{root}byteorder"], where)
        if order not in (b"little", b"big"):
            raise BadData(f"{where}: expected byte order little or big, got {order[:20]!r}")

        def storage(dtype: str, key: str, count: int) -> StorageState:
            member = members.get(f"{root}data/{key}")
            if member is None:
                raise BadData(f"{where}: the pickle names storage {key!r}, and there is no member {root}data/{key}")
            view = memoryview(zip_member(archive, member, where))
            return _filled(StorageState(dtype, key, count, big_endian=order == b"big"), view, where)

        pickled = zip_member(archive, members[f"{root}data.pkl"], where)
        return _unpickle(io.BytesIO(pickled), where, storage)


def _members(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    listed = archive.infolist()
    members = {member.filename: member for member in listed}
    declared = sum(member.file_size for member in listed)
    if len(listed) > MAX_MEMBERS or declared > MAX_BYTES:
        raise BadData(
            f"{where}: {len(listed)} ZIP members of {declared} bytes; expected at most {MAX_MEMBERS} of {MAX_BYTES}"
        )
    if len(members) < len(listed):
        raise BadData(f"{where}: a ZIP member is there twice; expected {len(members)} different names")
    return members


def _read_legacy(content: bytes, where: str) -> object:
    stream = io.BytesIO(content)
    storages: dict[str, StorageState] = {}

    def storage(dtype: str, key: str, count: int) -> StorageState:
        return storages.setdefault(key, StorageState(dtype, key, count))

    magic, protocol, system = (_unpickle(stream, where, storage) for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise BadData(f"{where}: expected torch's format {_LEGACY_PROTOCOL}, got {str(protocol)[:40]!r}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadData(f"{where}: expected a file of a little-endian machine, got {str(system)[:200]}")
    loaded = _unpickle(stream, where, storage)
    keys = _unpickle(stream, where, storage)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise BadData(f"{where}: expected the storages {sorted(storages)[:4]}, got a list {str(keys)[:200]}")
    at, view = stream.tell(), memoryview(content)
    for key in keys:
        one = storages[key]
        size = one.count * ITEM_BYTES[one.dtype]
        if int.from_bytes(view[at : at + 8], "little") != one.count:
            raise BadData(f"{where}: storage {key!r}: the pickle says {one.count} elements, the data another number")
        _filled(one, view[at + 8 : at + 8 + size], where)
        at += 8 + size
    return loaded


def _filled(storage: StorageState, content: memoryview, where: str) -> StorageState:
    """The storage with its bytes, which must be as many as it says."""
    expected = storage.count * ITEM_BYTES[storage.dtype]
    if len(content) != expected:
        raise BadData(f"{where}: storage {storage.key!r}: expected {expected} bytes, got {len(content)}")
    storage.content = content
    return storage
