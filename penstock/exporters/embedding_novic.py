"""Vectors as the embedding cache of novic (github.com/pallgeuer/novic), version 1, without targets.

Source of the format: novic's `embedding_cache.py`, read there, not copied. One file, little-endian, nothing between its parts:

    byte  size   what
    0     32     magic
    32    1      version, 1
    33    1      targets: 0, so that none of their parts are in the file
    34    3 x 1  full targets, default weights, unit weights: 1, as novic sets them where there are no targets
    37    1      whether only the embedder that made it may open it: 0
    38    32     SHA-256 of the embedder's configuration: zeros
    70    32     SHA-256 of the target configuration: zeros
    102   2 x 4  nouns and their bytes: 0
    110   2      numbers of a target: 0
    112   2 x 2  types of target ids (int64: 3) and of their mask (bool: 0)
    116   4      N, vectors
    120   2      targets of a vector: 0
    122   2      type of the numbers of nouns (int32: 2)
    124   2      D, numbers of a vector
    126   2      type of the vectors (float32: 2)
    128   4 N D  the vectors, of norm 1 within 4 x 2^-23
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from penstock.errors import BadData
from penstock.store.disk import Disk

CACHE = "embedding_cache.bin"
KEYS = "keys.txt"
MAGIC = bytes.fromhex("a9fd4b142a9ab8136d1537cae82bef824219db4ab893b226a01a3de4ad52b199")
HEADER = struct.Struct("<32sB5?32s32sIIHHHIHHHH")
_INT64, _BOOL, _INT32, _FLOAT32 = 3, 0, 2, 2
"""Numbers of types in novic's lists."""
_BLOCK = 16384
"""Vectors written at once."""
_TOLERANCE = 0.002
"""How far from 1 a norm may be before the vector is taken for something else; float16 moves it by less than 0.0005."""


class Rows(Protocol):
    """What a cache is made from: see `embedding_rows.VectorRows`."""

    keys: list[str]
    dim: int

    def vectors(self, places: np.ndarray | None = None) -> np.ndarray:
        """(n, D) float16: those of some places, (n,) int64; None for all."""
        ...


def write_novic(rows: Rows, folder: Path, disk: Disk) -> int:
    """Writes `embedding_cache.bin`, and `keys.txt` with the key of each vector, a line each, since the cache holds no keys.

    The vectors are float32, divided by their norm once more: novic's embedders give float32, and it refuses another type.
    They lie in an order that has nothing to do with their pictures (by the hash of the key), since novic trains on
    neighbours in one batch; equal keys and vectors give equal bytes.

    Returns:
        Bytes of the cache.

    Raises:
        BadData: there are no vectors, more than the header can count, one that is not finite and of norm 1 within 0.002, or a
            key with a line break.
        OutputFull: no room.
    """
    if not 1 <= len(rows.keys) < 1 << 32 or not 1 <= rows.dim < 1 << 16:
        raise BadData(
            f"a cache of novic: expected 1 to 2^32 - 1 vectors of 1 to 65535 numbers, got {len(rows.keys)} of {rows.dim}"
        )
    order = mixed(rows.keys)
    names = "".join(f"{rows.keys[place]}\n" for place in order.tolist())
    if names.count("\n") != len(order):
        raise BadData(f"a cache of novic: a key with a line break cannot stand in {KEYS}")
    disk.make_directory(folder)
    fresh, size = folder / f"{CACHE}.new", HEADER.size + 4 * rows.dim * len(order)
    disk.resize(fresh, size)
    disk.write(fresh, header(len(order), rows.dim), 0)
    for start in range(0, len(order), _BLOCK):
        block = unit(rows, order[start : start + _BLOCK])
        disk.write(fresh, block.tobytes(), HEADER.size + 4 * rows.dim * start)
    disk.sync(fresh)
    disk.replace(folder / KEYS, names.encode())
    disk.close(fresh)
    disk.rename(fresh, folder / CACHE)
    return size


def header(count: int, dim: int) -> bytes:
    """The 128 bytes before `count` vectors of `dim` float32."""
    return HEADER.pack(
        MAGIC, 1, False, True, True, True, False, bytes(32), bytes(32), 0, 0, 0, _INT64, _BOOL, count, 0, _INT32, dim, _FLOAT32
    )  # fmt: skip


def mixed(keys: Sequence[str]) -> np.ndarray:
    """(N,) int64: the places of keys in the order of their hashes; equal hashes in the order of the keys."""
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64, len(keys))
    return np.argsort(hashes, kind="stable")


def unit(rows: Rows, places: np.ndarray) -> np.ndarray:
    """(n, D) little-endian float32, divided by their norm: the vectors of some places, (n,) int64.

    Raises:
        BadData: one is not finite, or its norm is not 1 within 0.002.
    """
    wide = rows.vectors(places).astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    wrong = ~(np.abs(norms[:, 0] - 1) <= _TOLERANCE)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise BadData(
            f"key {rows.keys[int(places[first])]!r}: expected a vector of norm 1 within {_TOLERANCE}, got {norms[first, 0]:.6g}"
        )
    found: np.ndarray = (wide / norms).astype("<f4")
    return found
