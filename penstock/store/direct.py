"""Reads past the page cache: O_DIRECT wants aligned addresses, offsets and lengths, and this module sees to that."""

import mmap
import os
import threading

import numpy as np

ALIGNMENT = 4096
"""Bytes. Covers the logical block of every common disk."""

_MAX_CHUNK = 8 << 20
_scratch = threading.local()


def read_direct(descriptor: int, target: memoryview, start: int) -> int:
    """Fills the target from byte `start` of a file opened with O_DIRECT. Gives the number of bytes filled.

    Goes straight into the target where addresses agree, through a scratch buffer of this thread where they do not.
    """
    address = np.frombuffer(target, np.uint8).ctypes.data
    aligned = len(target) - len(target) % ALIGNMENT
    done = 0
    if address % ALIGNMENT == 0 and start % ALIGNMENT == 0 and aligned:
        done = _fill(descriptor, target[:aligned], start)
        if done < aligned:
            return done
    while done < len(target):
        count = _through_scratch(descriptor, target[done:], start + done)
        if not count:
            break
        done += count
    return done


def _fill(descriptor: int, target: memoryview, start: int) -> int:
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], start + done)
        done += count
        if not count or count % ALIGNMENT:
            break
    return done


def _through_scratch(descriptor: int, target: memoryview, start: int) -> int:
    first = start - start % ALIGNMENT
    wanted = min(start - first + len(target), _MAX_CHUNK)
    length = -(-wanted // ALIGNMENT) * ALIGNMENT
    scratch: mmap.mmap | None = getattr(_scratch, "buffer", None)
    if scratch is None or len(scratch) < length:
        scratch = _scratch.buffer = mmap.mmap(-1, max(length, 1 << 20))
    view = memoryview(scratch)
    got = os.preadv(descriptor, [view[:length]], first)
    usable = max(0, min(got, wanted) - (start - first))
    target[:usable] = view[start - first : start - first + usable]
    return usable
