"""Decoding a pickled NumPy object array of numbers without letting the pickle call anything: see `safe_pickle`."""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np

from penstock.errors import BadData
from penstock.readers.pickle_memo import refuse_huge_memo
from penstock.readers.safe_pickle import NUMPY_STUBS, PICKLE_ERRORS, ArrayState, StubUnpickler

MAX_DEPTH = 4


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
        state = StubUnpickler(io.BytesIO(content), f"NPZ: member {name!r}", NUMPY_STUBS).load()
    except BadData:
        raise
    except PICKLE_ERRORS as error:
        raise BadData(f"NPZ: member {name!r}: the pickle cannot be read as an array of numbers: {error}") from error
    if not isinstance(state, ArrayState):
        raise BadData(f"NPZ: member {name!r}: expected a pickled array, got {type(state).__name__}")
    builder = _Builder(name, max_bytes)
    array = builder.build(state)
    if shape is not None and state.shape != shape:
        raise BadData(f"NPZ: member {name!r}: its header says shape {shape}, its pickle {state.shape}")
    return array


class _Builder:
    """Turns collected states into arrays, counting the bytes they take."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._left = max_bytes

    def build(self, state: ArrayState, depth: int = 0) -> np.ndarray:
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
        if kinds == {ArrayState}:
            return self._stacked([value for value in values if isinstance(value, ArrayState)], shape, depth)
        if not kinds <= {int, bool, float}:
            raise self._bad("elements of type " + ", ".join(sorted(kind.__name__ for kind in kinds)))
        try:
            return np.array(values, np.float64 if float in kinds else np.int64)
        except OverflowError as error:
            raise self._bad("integers of more than 64 bits") from error

    def _stacked(self, states: Sequence[ArrayState], shape: tuple[int, ...], depth: int) -> np.ndarray:
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
