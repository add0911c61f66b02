"""Keyed permutations and hashes: what samplers are made of. The same on every machine and with every version of NumPy."""

import math

import numpy as np

_MASK = (1 << 64) - 1
_SMALL = 1 << 31


def mix(*values: int) -> int:
    """A 64-bit hash of integers (each 0..2**64-1), by the finalizer of splitmix64; the same on every machine."""
    state = len(values)
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permute(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """The images of places under the keyed permutation of 0..size-1.

    Args:
        places: (N,) integers in 0..size-1.
        size: number of elements permuted, at least 1 where N > 0.
        key: 64-bit key; another key, another permutation.

    Returns:
        (N,) int64 in 0..size-1.
    """
    small = size <= _SMALL
    out = _feistel(places.astype(np.uint32 if small else np.uint64), size, key)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = _feistel(out[outside], size, key)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _feistel(values: np.ndarray, size: int, key: int) -> np.ndarray:
    """A permutation of a grid of high x low >= size cells: each half in turn is shifted by a hash of the other."""
    low = math.isqrt(size - 1) + 1
    high = -(-size // low)
    left = values // low
    right = values - left * low
    rounds = 4 if size >= 1 << 16 else 8 if size >= 1 << 10 else 16  # few cells need more rounds to look random
    hashed = np.empty_like(values)
    wrapped = np.empty_like(values)
    for number in range(rounds):
        _hash(right, mix(key, number), hashed, wrapped)
        _shift(left, hashed, high, wrapped)
        left, right = right, left
        high, low = low, high
    left *= left.dtype.type(low)
    left += right
    return left


def _hash(values: np.ndarray, key: int, out: np.ndarray, scratch: np.ndarray) -> None:
    """A number in 0..2**half-1 from each value; half is half the width of the type."""
    word = values.dtype.type
    bits = values.dtype.itemsize * 8
    scale, offset = (key, mix(key)) if bits == 64 else (key >> 32, key & 0xFFFFFFFF)
    np.multiply(values, word(scale | 1), out=out)
    out += word(offset)
    np.right_shift(out, word(bits // 2 - 1), out=scratch)
    out ^= scratch
    out *= word(0x846CA68B if bits == 32 else 0xD6E8FEB86659FD93)
    out >>= word(bits // 2)


def _shift(values: np.ndarray, by: np.ndarray, size: int, scratch: np.ndarray) -> None:
    """values = (values + by * size / 2**half) mod size, in place, without a division."""
    word = values.dtype.type
    by *= word(size)
    by >>= word(values.dtype.itemsize * 4)
    values += by
    np.subtract(values, word(size), out=scratch)  # wraps to a huge number where values < size
    np.minimum(values, scratch, out=values)


def hashes(values: np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Hashes of (...) uint64 values under one key, or under keys that broadcast against them: (...) uint64."""
    with np.errstate(over="ignore"):
        state = values * np.uint64(0x9E3779B97F4A7C15) + (np.uint64(key) if isinstance(key, int) else key)
        for _ in range(2):
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state
