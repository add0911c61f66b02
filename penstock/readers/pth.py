"""Id maps as files: `.pth` and `.pt` of torch.save, read and written without torch; `.npy` and `.png`."""

import io
import math
import os
import struct
import tokenize
import zipfile
from pathlib import Path

import numpy as np

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers.safe_pickle import ArrayState
from penstock.readers.torch_file import ITEM_BYTES, MAX_BYTES, STORAGES, TensorState, read_torch_file

_ALIGNMENT = 64
_NPY_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    KeyError,
    OverflowError,
    RecursionError,
    tokenize.TokenError,
)
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_INTEGERS = tuple(name for name in ITEM_BYTES if "float" not in name)


def load_id_map(path_or_bytes: str | os.PathLike[str] | bytes) -> np.ndarray:
    """The id map in a `.pth` file, without torch and without running code.

    Read: a tensor or a NumPy array of any integer type or bool, of any strides, offset and byte order, as torch.save
    writes it (ZIP and the format before torch 1.6; any device). Refused: floats, even whole ones (cast them yourself),
    containers, Parameters, tensor subclasses, object arrays, sparse and quantized tensors, views of storages and
    big-endian files of the old format, and the TAR format before torch 0.1.10.

    Args:
        path_or_bytes: the file, or its content.

    Returns:
        (H, W) array of the stored type (bool stays bool), native byte order, C order, writable, owned by the caller.
        Leading sides of 1 are dropped: (1, H, W) gives (H, W).

    Raises:
        SourceNotFound: no such file.
        BadData: anything else than one id map, damaged, too large or hostile; the message names what was refused.
    """
    if isinstance(path_or_bytes, bytes):
        where, content = "pth", path_or_bytes
    else:
        where, content = str(path_or_bytes), _file_bytes(Path(path_or_bytes))
    loaded = read_torch_file(content, where)
    if isinstance(loaded, TensorState):
        return _checked(_tensor_view(loaded, where), where)
    if isinstance(loaded, ArrayState):
        return _checked(_array_view(loaded, where), where)
    raise BadData(f"{where}: expected a tensor or an array, got {type(loaded).__name__.strip('_')}")


def load_id_file(path: str | os.PathLike[str]) -> np.ndarray:
    """The id map in a file, by its suffix: `.pth` or `.pt`, `.npy` (never a pickle), `.png`.

    Returns:
        (H, W) array of bool or integers, as stored; see `load_id_map` and `penstock.geometry.id_pngs.read_id_png`.

    Raises:
        UsageError: another suffix.
        SourceNotFound: no such file.
        BadData: the file holds no id map, or a damaged one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".pth", ".pt"):
        return load_id_map(path)
    if suffix == ".npy":
        return _load_npy(path)
    if suffix != ".png":
        raise UsageError(f"{path}: expected an id map in a .pth, .pt, .npy or .png file, got suffix {path.suffix!r}")
    from penstock.geometry.id_pngs import read_id_png

    try:
        return read_id_png(_file_bytes(path))
    except BadData as error:
        raise BadData(f"{path}: {error}") from error


def save_id_map(ids: np.ndarray, dtype: str | np.dtype | None = None) -> bytes:
    """A `.pth` file that torch.load opens as a tensor, also with weights_only=True. Equal arguments give equal bytes.

    Args:
        ids: (H, W) integers or bool.
        dtype: type to store; that of `ids` for None. int32 is what most tools expect. uint16, uint32 and uint64 need
            torch 2.3 or later to be opened.

    Returns:
        The file's content: a ZIP of stored members, the data aligned to 64 bytes.

    Raises:
        UsageError: `ids` is no such array, or a value does not fit `dtype`.
    """
    ids = np.asarray(ids)
    name = np.dtype(ids.dtype if dtype is None else dtype).name
    if ids.ndim != 2 or not ids.size or ids.dtype.name not in _INTEGERS:
        raise UsageError(f"id map: expected (H, W) integers, at least one pixel, got {ids.shape} of {ids.dtype}")
    if name not in _INTEGERS:
        raise UsageError(f"id map: expected an integer type to store, got {name}")
    with np.errstate(all="ignore"):
        stored = np.ascontiguousarray(ids, np.dtype(name).newbyteorder("<"))
    if not np.array_equal(stored, ids):
        raise UsageError(f"id map: ids {ids.min()}..{ids.max()} do not fit {name}; choose a wider type")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in (
            ("data.pkl", _tensor_pickle(name, stored.shape)),
            ("byteorder", b"little"),
            ("data/0", stored.tobytes()),
            ("version", b"3\n"),
        ):
            info = zipfile.ZipInfo(f"archive/{member}")
            first = buffer.tell() + 30 + len(info.filename) + 4
            padding = -first % _ALIGNMENT
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, content)
    return buffer.getvalue()


def _tensor_pickle(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The pickle of a contiguous tensor whose storage is "0", in protocol 2."""

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    height, width = shape
    typed = dtype in _STORAGE_OF
    storage = f"ctorch\n{_STORAGE_OF[dtype]}\n" if typed else "ctorch.storage\nUntypedStorage\n"
    elements = height * width * (1 if typed else np.dtype(dtype).itemsize)
    return b"".join(
        [
            b"\x80\x02" + f"ctorch._utils\n_rebuild_tensor_{'v2' if typed else 'v3'}\n(".encode(),
            b"(" + text("storage") + storage.encode() + text("0") + text("cpu") + number(elements) + b"tQ",
            number(0) + b"(" + number(height) + number(width) + b"t(" + number(width) + number(1) + b"t",
            b"\x89ccollections\nOrderedDict\n)R",
            b"" if typed else f"ctorch\n{dtype}\n".encode(),
            b"tR.",
        ]
    )


def _tensor_view(tensor: TensorState, where: str) -> np.ndarray:
    """The tensor's view of its storage, any shape."""
    if tensor.dtype not in _INTEGERS:
        raise BadData(f"{where}: expected a map of integers, got a tensor of {tensor.dtype}; ids are never cast")
    dtype = np.dtype(tensor.dtype).newbyteorder(">" if tensor.storage.big_endian else "<")
    pairs = list(zip(tensor.shape, tensor.strides, strict=True))
    last = tensor.offset + sum((side - 1) * stride for side, stride in pairs)
    fits = tensor.offset >= 0 and all(side > 0 and stride >= 0 for side, stride in pairs)
    if not fits or (last + 1) * dtype.itemsize > len(tensor.storage.content):
        raise BadData(
            f"{where}: a tensor of shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset} does not "
            f"fit a storage of {len(tensor.storage.content)} bytes of {tensor.dtype}"[:500]
        )
    _check_shape(tensor.shape, dtype, where)
    strides = tuple(stride * dtype.itemsize if side > 1 else 0 for side, stride in pairs)
    return np.ndarray(tensor.shape, dtype, tensor.storage.content, tensor.offset * dtype.itemsize, strides)


def _array_view(state: ArrayState, where: str) -> np.ndarray:
    """The array over the pickle's own bytes, any shape."""
    if state.dtype.is_object or isinstance(state.payload, list) or state.shape is None:
        raise BadData(f"{where}: expected an array of integers, got one of Python objects, or without content")
    try:
        dtype = state.dtype.resolve()
    except ValueError as error:
        raise BadData(f"{where}: expected an array of integers, got {error}") from error
    count = math.prod(state.shape)
    if count * dtype.itemsize != len(state.payload) or not count:
        raise BadData(f"{where}: an array of shape {state.shape} of {dtype} with {len(state.payload)} bytes")
    return np.frombuffer(state.payload, dtype).reshape(state.shape, order="F" if state.fortran else "C")


def _check_shape(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """Refuse what is no (H, W), leading sides of 1 aside, or too large, before memory is taken."""
    count = math.prod(shape)
    if len(shape) < 2 or any(side != 1 for side in shape[:-2]) or not count:
        raise BadData(f"{where}: expected one map (H, W) of at least one pixel, got shape {shape}"[:500])
    if count * dtype.itemsize > MAX_BYTES:
        raise BadData(f"{where}: a map of shape {shape} of {dtype}; expected at most {MAX_BYTES} bytes"[:500])


def _checked(array: np.ndarray, where: str) -> np.ndarray:
    """(H, W), native, contiguous, owned.

    Raises:
        BadData: it is no map of integers.
    """
    if array.dtype.kind not in "biu":
        raise BadData(f"{where}: expected a map of integers, got an array of {array.dtype}; ids are never cast")
    _check_shape(array.shape, array.dtype, where)
    plain = array[(0,) * (array.ndim - 2)]
    return np.array(plain, plain.dtype.newbyteorder("="), order="C")


def _load_npy(path: Path) -> np.ndarray:
    _file_size(path)
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NPY_ERRORS as error:
        raise BadData(f"{path}: expected an NPY file of integers: {error}") from error
    except OSError as error:
        raise BadData(f"{path}: expected a file that can be read: {error.strerror or error}") from error
    if not isinstance(mapped, np.ndarray):
        raise BadData(f"{path}: expected an NPY file, got an archive of several arrays")
    return _checked(mapped, str(path))


def _file_size(path: Path) -> int:
    if not path.is_file():
        raise SourceNotFound(f"{path}: no such file; expected an id map")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise BadData(f"{path}: {size} bytes; expected an id map of at most {MAX_BYTES}")
    return size


def _file_bytes(path: Path) -> bytes:
    _file_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(f"{path}: expected a file that can be read: {error.strerror or error}") from error
