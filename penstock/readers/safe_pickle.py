"""Loading a pickle of numbers without letting it call anything.

`pickle.Unpickler.find_class` hands out stubs in place of the few names that such a pickle refers to, and refuses every
other name. The stubs only collect what the pickle says; arrays are built from it afterwards, with every size checked.
So neither NumPy's functions nor anything else importable runs on behalf of a hostile file.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping

import numpy as np

from penstock.errors import BadData

MAX_OPCODES = 10_000
"""Of one pickle. That of a tensor or of an array of numbers has a few dozen."""

PICKLE_ERRORS = (
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
"""What a damaged pickle makes the unpickler raise."""

_NUMBER = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|\?)")


class StubUnpickler(pickle.Unpickler):
    """An unpickler whose every global is one of the stubs given.

    Args:
        stream: stands at the pickle's first byte; after `load` behind its last one.
        where: what is read, for messages.
        stubs: (module, name) -> what makes a stub; `numpy.core` is looked up as `numpy._core`.
    """

    def __init__(self, stream: io.BytesIO, where: str, stubs: Mapping[tuple[str, str], Callable[[], "Stub"]]) -> None:
        super().__init__(stream, encoding="latin1")
        self._where = where
        self._stubs = stubs

    def find_class(self, module: str, name: str) -> "Stub":
        """The stub of a name.

        Raises:
            BadData: the name is none of the known ones.
        """
        stub = self._stubs.get((module.replace("numpy.core", "numpy._core"), name))
        if stub is None:
            raise BadData(
                f"{self._where}: the pickle asks for {module}.{name}"[:300] + "; expected nothing but arrays of "
                "numbers. It was refused and nothing was run"
            )
        return stub()

    def persistent_load(self, pid: object) -> object:
        """Refuses objects that lie outside the pickle.

        Raises:
            BadData: always.
        """
        raise BadData(f"{self._where}: the pickle refers to an object outside itself, which is refused")


def refuse_long_pickle(stream: io.BytesIO, where: str) -> None:
    """Walk one pickle's opcodes, building nothing, and put the stream back to where it stood.

    Refuses what would take memory out of proportion: a memo index is an array index inside the unpickler, and a length
    is believed before the bytes are there.

    Raises:
        BadData: more than `MAX_OPCODES`, a memo index above that, an argument that is cut off, or no pickle.
    """
    start = stream.tell()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            index = argument if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) else 0
            if max(number, index) > MAX_OPCODES:
                raise BadData(
                    f"{where}: expected a pickle of at most {MAX_OPCODES} opcodes and memo entries, got more "
                    f"(opcode {number}, memo index {index})"
                )
    except BadData:
        raise
    except PICKLE_ERRORS as error:
        raise BadData(f"{where}: the bytes are no whole pickle: {error}"[:400]) from error
    stream.seek(start)


class Stub:
    """Stands for a global. Instances, never classes, are handed out: a pickle can set nothing on them."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise ValueError("state given to a name")


class DtypeState:
    """What a pickle says of a NumPy type."""

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
        """Whether it is the type of Python objects."""
        return self.code in ("O", "O8", "O4", "|O")

    def resolve(self) -> np.dtype:
        """The type.

        Raises:
            ValueError: it is none of bool, integers and floats.
        """
        if not _NUMBER.fullmatch(self.code):
            raise ValueError(f"a dtype {self.code!r}, which is no number")
        dtype = np.dtype(self.code)
        return dtype if self.order in "|=" else dtype.newbyteorder("<" if self.order == "<" else ">")


class ArrayState:
    """What a pickle says of a NumPy array."""

    __slots__ = ("dtype", "fortran", "payload", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype = DtypeState("?")
        self.fortran = False
        self.payload: bytes | bytearray | list[object] = b""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array whose state is not (version, shape, dtype, order, content)")
        _, shape, dtype, fortran, payload = state
        sides = isinstance(shape, tuple) and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
        if not sides or len(shape) > 32 or not isinstance(dtype, DtypeState):
            raise ValueError(f"an array of shape {shape!r}"[:200])
        if not isinstance(payload, list if dtype.is_object else bytes | bytearray):
            raise ValueError(f"an array whose content is {type(payload).__name__}")
        self.shape, self.dtype, self.fortran, self.payload = shape, dtype, bool(fortran), payload


class _NdarrayName(Stub):
    """`numpy.ndarray`: only named, as an argument of `_reconstruct`."""

    __slots__ = ()


class _Reconstruct(Stub):
    """`numpy._core.multiarray._reconstruct(ndarray, (0,), b"b")`: an array whose state follows."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> ArrayState:
        if not isinstance(kind, _NdarrayName):
            raise ValueError("_reconstruct of something that is no ndarray")
        return ArrayState()


class _FromBuffer(Stub):
    """`numpy._core.numeric._frombuffer(content, dtype, shape, "C")`: an array in pickle protocol 5."""

    __slots__ = ()

    def __call__(self, content: object, dtype: object, shape: object, order: object) -> ArrayState:
        state = ArrayState()
        state.__setstate__((1, shape, dtype, order == "F", content))
        return state


class _DtypeName(Stub):
    """`numpy.dtype("f4", False, True)`: a type whose byte order follows."""

    __slots__ = ()

    def __call__(self, code: object, *flags: object) -> DtypeState:
        if not isinstance(code, str) or len(flags) > 2:
            raise ValueError("a dtype that is not named by a text")
        return DtypeState(code)


class _Scalar(Stub):
    """`numpy._core.multiarray.scalar(dtype, bytes)`: one number."""

    __slots__ = ()

    def __call__(self, dtype: object, content: object) -> int | float | bool:
        if not isinstance(dtype, DtypeState) or not isinstance(content, bytes):
            raise ValueError("a scalar that is no number")
        numbers = np.frombuffer(content, dtype.resolve())
        if len(numbers) != 1:
            raise ValueError(f"a scalar of {len(content)} bytes")
        number: int | float | bool = numbers[0].item()
        return number


class _Encode(Stub):
    """`_codecs.encode(text, "latin1")`: how pickle protocol 2 spells bytes."""

    __slots__ = ()

    def __call__(self, text: object, codec: object) -> bytes:
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise ValueError("bytes that are not spelt in latin1")
        return text.encode("latin1")


NUMPY_STUBS: dict[tuple[str, str], Callable[[], Stub]] = {
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _DtypeName,
    ("_codecs", "encode"): _Encode,
}
"""The names that NumPy's pickles of arrays of numbers refer to."""
