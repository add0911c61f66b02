"""Sets of rows of a tracking sampler: how many lie in a range, and a random one of them, for many ranges at once."""

from collections.abc import Iterable, Sequence

import numpy as np

from penstock.tracking_random import below

_BITS = 64
_PIECE = 1 << 20


def aligned(count: int) -> int:
    """Rows that a table of `count` rows takes up: the next multiple of 64."""
    return -(-count // _BITS) * _BITS


class RowSet:
    """Some rows of tables that lie one behind another, each beginning at a multiple of 64.

    Held as a bit per row with counts per 64 rows, and as a list of the members: 4 bytes a member, 0.2 bytes a row.

    Args:
        tables: per table, (N,) bool: which of its rows belong to the set.
    """

    def __init__(self, tables: Iterable[np.ndarray]) -> None:
        bits, members, offset = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint32)], 0
        for table in tables:
            for start in range(0, len(table), _PIECE):
                piece = np.asarray(table[start : start + _PIECE], bool)
                packed = np.packbits(piece, bitorder="little")
                bits.append(np.pad(packed, (0, aligned(len(piece)) // 8 - len(packed))))
                members.append((np.flatnonzero(piece) + (offset + start)).astype(np.uint32))
            offset += aligned(len(table))
        self._bits = np.concatenate([*bits, np.zeros(8, np.uint8)]).view("<u8")
        counts = np.bitwise_count(self._bits)
        self._before = (np.cumsum(counts, dtype=np.uint32) - counts).astype(np.uint32)
        self._members = np.concatenate([*members, np.zeros(1, np.uint32)])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self._bits.nbytes + self._before.nbytes + self._members.nbytes)

    def rank(self, rows: np.ndarray) -> np.ndarray:
        """Members before each row.

        Args:
            rows: (n,) int64, 0..number of rows.

        Returns:
            (n,) int64.
        """
        block = rows >> 6
        mask = (np.uint64(1) << (rows & 63).astype(np.uint64)) - np.uint64(1)
        counts: np.ndarray = self._before[block].astype(np.int64) + np.bitwise_count(self._bits[block] & mask)
        return counts

    def sample(self, low: np.ndarray, high: np.ndarray, numbers: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Random members of ranges, with replacement.

        Args:
            low: (n,) int64 first row of each range.
            high: (n,) int64 one past the last; a range that ends before it begins is empty.
            numbers: k arrays (n,) uint64 of random numbers; k = 0 asks for none.

        Returns:
            rows: (n, k) int64; arbitrary where the range has no member.
            found: (n,) bool.
        """
        rows = np.empty((len(low), len(numbers)), np.int64)
        if not numbers:
            return rows, np.ones(len(low), bool)
        first = self.rank(low)
        count = self.rank(high) - first
        bounds = np.maximum(count, 1)
        for column, each in enumerate(numbers):
            rows[:, column] = self._members[first + below(each, bounds)]
        return rows, count > 0
