"""Epochs: every row once per epoch, in an order that needs no memory."""

from typing import Protocol

import numpy as np

from penstock.errors import UsageError
from penstock.samplers.permutation import mix, permute

CHUNK_ROWS = 16384
"""Rows computed at a time: large enough that NumPy's call overhead vanishes, small enough for a core's L2 cache."""

_SMALL = 1 << 31
_MAX_ROWS = 1 << 48


class Sampler(Protocol):
    """Which row stands at which position. Sees no pixels, does no I/O, holds no state but its settings."""

    num_rows: int
    """Positions per epoch; rows are numbered 0..num_rows-1."""
    seed: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows at the global positions start..stop-1: (stop - start,) int64. Position p lies in epoch p // num_rows."""
        ...

    def identity(self) -> str:
        """Everything the order depends on, as text: equal text means equal order."""
        ...


class Epochs:
    """Every row once per epoch; another order in each epoch.

    The order is computed, not stored: a keyed Feistel network over a grid of about sqrt(n) x sqrt(n) cells, walked
    again where it leaves 0..n-1 (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). So a position costs
    the same in an epoch of a thousand rows and of a billion, nothing is kept but the chunk computed last, and no
    library's random stream is involved: the order of a seed stays the same over versions of NumPy.

    Shuffles:
        "exact" (or True): any row may stand anywhere.
        "block": blocks of `block_rows` contiguous rows are permuted, then rows inside windows of `window_blocks`
            blocks. For cold data that must be read in large pieces; rows of one block stay within one window of each
            other. The grid of blocks starts at another row in each epoch: a short block is no fixed set of rows.
        False: rows in order.

    Args:
        num_rows: rows in an epoch, 1 or more.
        seed: 0..2**64-1.
        shuffle: see above.
        block_rows: rows per block; only "block" uses it.
        window_blocks: blocks per window; only "block" uses it.

    Raises:
        UsageError: a setting is out of range.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        seed: int = 0,
        shuffle: str | bool = "exact",
        block_rows: int = 256,
        window_blocks: int = 64,
    ) -> None:
        kind = {True: "exact", False: "none"}.get(shuffle, shuffle) if isinstance(shuffle, bool) else shuffle
        if kind not in ("exact", "block", "none") or shuffle == "none":
            raise UsageError(f"Epochs: shuffle: expected 'exact', 'block', True or False, got {shuffle!r}")
        _check("num_rows", num_rows, 1, _MAX_ROWS)
        _check("seed", seed, 0, (1 << 64) - 1)
        _check("block_rows", block_rows, 1, _MAX_ROWS)
        _check("window_blocks", window_blocks, 1, _MAX_ROWS)
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = str(kind)
        self.block_rows = block_rows
        self.window_blocks = window_blocks
        self._last: tuple[int, int, np.ndarray] | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows at global positions.

        Args:
            start: first position, 0 or more; position p lies in epoch p // num_rows.
            stop: one past the last position.

        Returns:
            (stop - start,) int64, the caller's own.

        Raises:
            UsageError: start is negative or beyond stop.
        """
        if not 0 <= start <= stop:
            raise UsageError(f"Epochs.rows: expected 0 <= start <= stop, got {start}, {stop}")
        out = np.empty(stop - start, np.int64)
        position = start
        while position < stop:
            epoch, place = divmod(position, self.num_rows)
            chunk, offset = divmod(place, CHUNK_ROWS)
            piece = self._chunk(epoch, chunk)[offset : offset + stop - position]
            out[position - start : position - start + len(piece)] = piece
            position += len(piece)
        return out

    def identity(self) -> str:
        """Everything the order depends on, as text."""
        sizes = f", block_rows={self.block_rows}, window_blocks={self.window_blocks}"
        blocks = sizes if self.shuffle == "block" else ""
        return f"Epochs-1(num_rows={self.num_rows}, seed={self.seed}, shuffle={self.shuffle}{blocks})"

    def __repr__(self) -> str:
        return self.identity()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}

    def _chunk(self, epoch: int, number: int) -> np.ndarray:
        last = self._last  # one read: other threads may replace it
        if last is not None and last[:2] == (epoch, number):
            return last[2]
        start = number * CHUNK_ROWS
        order = self._order(epoch, start, min(start + CHUNK_ROWS, self.num_rows))
        self._last = (epoch, number, order)
        return order

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        if self.shuffle == "none":
            return np.arange(start, stop)
        if self.shuffle == "exact":
            return permute(np.arange(start, stop), self.num_rows, mix(self.seed, epoch))
        size = self.block_rows * self.window_blocks
        windows = range(start // size, -(-stop // size))
        pieces = [self._window(epoch, w, max(start, w * size), min(stop, (w + 1) * size)) for w in windows]
        return np.concatenate(pieces)

    def _window(self, epoch: int, window: int, start: int, stop: int) -> np.ndarray:
        size = self.block_rows * self.window_blocks
        first = window * size
        size = min(size, self.num_rows - first)
        place = permute(np.arange(start - first, stop - first), size, mix(self.seed, epoch, window))
        whole = self.num_rows // self.block_rows
        slots = np.arange(window * self.window_blocks, min((window + 1) * self.window_blocks, whole + 1))
        blocks = slots.copy()  # the short block, number `whole`, keeps the last slot
        if whole:
            blocks[slots < whole] = permute(slots[slots < whole], whole, mix(self.seed, epoch, 0, 1))
        shift = mix(self.seed, epoch, 0, 2) % self.num_rows
        moves = (blocks - (slots - slots[:1])) * self.block_rows + shift
        row: np.ndarray = place + moves[place.astype(np.uint32 if size <= _SMALL else np.int64) // self.block_rows]
        wrapped = row - self.num_rows
        np.minimum(row.view(np.uint64), wrapped.view(np.uint64), out=row.view(np.uint64))  # a negative number is huge
        return row


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"Epochs: {name}: expected {low}..{high}, got {value}")
