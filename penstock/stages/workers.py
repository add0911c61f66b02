"""What stages with a model share: which worker this is, and torch on one thread."""

import multiprocessing
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def worker_number() -> int:
    """Workers of a pool are numbered from 1 by their names; the driver is 0."""
    digits = re.findall(r"\d+", multiprocessing.current_process().name)
    return int(digits[-1]) if digits else 0


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Torch, where something has loaded it, on one thread of the CPU: workers are processes, and the numbers must not depend
    on how many cores there are."""
    torch = sys.modules.get("torch")
    if torch is None or device != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
