"""Work in chunks that become smaller where memory is short."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
_log = logging.getLogger("penstock")


def in_chunks(
    count: int, size: int, work: Callable[[slice], Result], alone: Callable[[slice, str], Result], what: str
) -> tuple[list[Result], int]:
    """Work done on `count` things, `size` at a time; where memory does not do, half of it, and so on.

    Args:
        count: of things.
        size: of a chunk to begin with.
        work: does a chunk, in torch's inference mode.
        alone: does the one thing that does not fit even alone, or raises; also given the words of the error.
        what: the things, for messages.

    Returns:
        What the chunks gave, in order, the last one as short as it is; and the size in the end.
    """
    results: list[Result] = []
    start = 0
    while start < count:
        number = min(size, count - start)
        chunk = slice(start, start + number)
        found = _attempt(work, chunk)
        if isinstance(found, _NoMemory):  # outside of the handler, whose traceback holds the memory
            _free()
            if number > 1:
                size = number // 2
                _log.warning("penstock: SAM2: out of memory with %d %s, going on with %d", number, what, size)
                continue
            found = alone(chunk, found.reason)
        results.append(found)
        start += number
    return results, size


@dataclass(frozen=True)
class _NoMemory:
    reason: str


def _attempt(work: Callable[[slice], Result], chunk: slice) -> Result | _NoMemory:
    """The result, or the words of an error: memory is short."""
    import torch

    try:
        with torch.inference_mode():
            return work(chunk)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return _NoMemory(str(error))
        raise


def _free() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
