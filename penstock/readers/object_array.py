"""Decoding a pickled NumPy object array of numbers without letting the pickle call anything.

`pickle.Unpickler.find_class` hands out stubs in place of the few names that NumPy's own pickles refer to, and refuses
every other name. The stubs only collect what the pickle says; arrays are built from it afterwards, with every size
checked. So neither NumPy's functions nor anything else importable runs on behalf of a hostile file.
"""

import io
import pickle
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from penstock.errors import BadData
from penstock.readers.pickle_memo import refuse_huge_memo

MAX_DEPTH = 4
_NUMBER = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|\?)")
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    RecursionError,
    ImportError,
)


def decode_object_array(
    content: bytes | memoryview, *, name: str, shape: tuple[int, ...] | None = None, max_bytes: int = 1 << 30
) -> np.ndarray:
    """The numbers of a pickled object array.

    Args:
        content: the pickle, as it follows the header of an NPY file.
        name: the member, for messages.
        shape: the shape that the NPY header states; None checks none.
        max_bytes: limit on the bytes of the arrays that come out.

    Returns:
        An array of numbers (bools of Python become uint8): of the pickle's own shape where its elements are numbers,
        (N, ...) where they are N arrays of one shape.

    Raises:
        BadData: the pickle refers to anything but arrays of numbers, is damaged, or unpacks to more than `max_bytes`.
    """
    content = bytes(content)
    refuse_huge_memo(content, name)
    try:
        state = _NumbersOnly(io.BytesIO(content), name).load()
    except BadData:
        raise
    except _PICKLE_ERRORS as error:
        raise BadData(f"NPZ: member {name!r}: the pickle cannot be read as an array of numbers: {error}") from error
    if not isinstance(state, _ArrayState):
        raise BadData(f"NPZ: member {name!r}: expected a pickled array, got {type(state).__name__}")
    builder = _Builder(name, max_bytes)
    array = builder.build(state)
    if shape is not None and state.shape != shape:
        raise BadData(f"NPZ: member {name!r}: its header says shape {shape}, its pickle {state.shape}")
    return array


class _NumbersOnly(pickle.Unpickler):
    """An unpickler whose every global is one of our stubs."""

    def __init__(self, stream: io.BytesIO, name: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> "_Stub":
        stub = _STUBS.get((module.replace("numpy.core", "numpy._core"), name))
        if stub is None:
            raise BadData(
                f"NPZ: member {self._name!r}: the pickle asks for {module}.{name}; expected nothing but arrays of "
                f"numbers. It was refused and nothing was run"
            )
        return stub()

    def persistent_load(self, pid: object) -> object:
        raise BadData(f"NPZ: member {self._name!r}: the pickle refers to an object outside itself, which is refused")


class _Stub:
    """Stands for a global. Instances, never classes, are handed out: a pickle can set nothing on them."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise ValueError("state given to a name")


class _NdarrayName(_Stub):
    """`numpy.ndarray`: only named, as an argument of `_reconstruct`."""

    __slots__ = ()


class _Reconstruct(_Stub):
    """`numpy._core.multiarray._reconstruct(ndarray, (0,), b"b")`: an array whose state follows."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> "_ArrayState":
        if not isinstance(kind, _NdarrayName):
            raise ValueError("_reconstruct of something that is no ndarray")
        return _ArrayState()


class _DtypeName(_Stub):
    """`numpy.dtype("f4", False, True)`: a type whose byte order follows."""

    __slots__ = ()

    def __call__(self, code: object, *flags: object) -> "_DtypeState":
        if not isinstance(code, str) or len(flags) > 2:
            raise ValueError("a dtype that is not named by a text")
        return _DtypeState(code)


class _Scalar(_Stub):
    """`numpy._core.multiarray.scalar(dtype, bytes)`: one number."""

    __slots__ = ()

    def __call__(self, dtype: object, content: object) -> int | float | bool:
        if not isinstance(dtype, _DtypeState) or not isinstance(content, bytes):
            raise ValueError("a scalar that is no number")
        numbers = np.frombuffer(content, dtype.resolve())
        if len(numbers) != 1:
            raise ValueError(f"a scalar of {len(content)} bytes")
        number: int | float | bool = numbers[0].item()
        return number


class _Encode(_Stub):
    """`_codecs.encode(text, "latin1")`: how pickle protocol 2 spells bytes."""

    __slots__ = ()

    def __call__(self, text: object, codec: object) -> bytes:
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise ValueError("bytes that are not spelt in latin1")
        return text.encode("latin1")


class _DtypeState:
    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype whose byte order is not stated")
        self.order = state[1]

    @property
    def is_object(self) -> bool:
        return self.code in ("O", "O8", "O4", "|O")

    def resolve(self) -> np.dtype:
        if not _NUMBER.fullmatch(self.code):
            raise ValueError(f"a dtype {self.code!r}, which is no number")
        dtype = np.dtype(self.code)
        return dtype if self.order in "|=" else dtype.newbyteorder("<" if self.order == "<" else ">")


class _ArrayState:
    __slots__ = ("dtype", "fortran", "payload", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype = _DtypeState("?")
        self.fortran = False
        self.payload: bytes | bytearray | list[object] = b""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array whose state is not (version, shape, dtype, order, content)")
        _, shape, dtype, fortran, payload = state
        sides = isinstance(shape, tuple) and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
        if not sides or len(shape) > 32 or not isinstance(dtype, _DtypeState):
            raise ValueError(f"an array of shape {shape!r}"[:200])
        if not isinstance(payload, list if dtype.is_object else bytes | bytearray):
            raise ValueError(f"an array whose content is {type(payload).__name__}")
        self.shape, self.dtype, self.fortran, self.payload = shape, dtype, bool(fortran), payload


_STUBS: dict[tuple[str, str], type[_Stub]] = {
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _DtypeName,
    ("_codecs", "encode"): _Encode,
}


class _Builder:
    """Turns collected states into arrays, counting the bytes they take."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._left = max_bytes

    def build(self, state: _ArrayState, depth: int = 0) -> np.ndarray:
        """The array of a state; elements that are arrays are stacked."""
        if state.shape is None:
            raise self._bad("an array without content")
        if depth >= MAX_DEPTH:
            raise self._bad(f"arrays inside arrays, {depth} deep")
        order: Literal["C", "F"] = "F" if state.fortran else "C"
        count = 1
        for side in state.shape:
            count *= side
        if isinstance(state.payload, list):
            array = self._elements(state.payload, count, state.shape, depth)
            return np.reshape(array, (*state.shape, *array.shape[1:]), order=order)
        try:
            dtype = state.dtype.resolve()
        except ValueError as error:
            raise self._bad(str(error)) from error
        if count * dtype.itemsize != len(state.payload):
            raise self._bad(f"shape {state.shape} of {dtype} with {len(state.payload)} bytes")
        self._take(len(state.payload))
        flat = np.frombuffer(state.payload, dtype) if count else np.zeros(0, dtype)
        return np.reshape(flat, state.shape, order=order)

    def _elements(self, values: Sequence[object], count: int, shape: tuple[int, ...], depth: int) -> np.ndarray:
        """Shape (count,) for numbers, (count, ...) for arrays."""
        if len(values) != count:
            raise self._bad(f"shape {shape} with {len(values)} elements")
        self._take(8 * count)
        small = _small_integers(values)
        if small is not None:
            return small
        kinds = set(map(type, values))
        if kinds == {_ArrayState}:
            return self._stacked([value for value in values if isinstance(value, _ArrayState)], shape, depth)
        if not kinds <= {int, bool, float}:
            raise self._bad("elements of type " + ", ".join(sorted(kind.__name__ for kind in kinds)))
        try:
            return np.array(values, np.float64 if float in kinds else np.int64)
        except OverflowError as error:
            raise self._bad("integers of more than 64 bits") from error

    def _stacked(self, states: Sequence[_ArrayState], shape: tuple[int, ...], depth: int) -> np.ndarray:
        if len(shape) != 1:
            raise self._bad(f"arrays inside an array of shape {shape}")
        inner = [self.build(state, depth + 1) for state in states]
        if len({array.shape for array in inner}) > 1:
            raise self._bad(f"arrays of different shapes: {sorted({array.shape for array in inner})}")
        self._take(sum(array.nbytes for array in inner))
        return np.stack(inner)

    def _take(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise self._bad(f"arrays of more than {self._max_bytes} bytes")

    def _bad(self, got: str) -> BadData:
        return BadData(f"NPZ: member {self._name!r}: expected arrays of numbers of one shape, got {got}")


def _small_integers(values: Sequence[object]) -> np.ndarray | None:
    """Python ints and bools of 0..255 as uint8, at once (a mask has millions); None if there is anything else."""
    try:
        return np.frombuffer(bytes(values), np.uint8) if values else np.zeros(0, np.uint8)  # type: ignore[arg-type]  # tried
    except (TypeError, ValueError):
        return None
