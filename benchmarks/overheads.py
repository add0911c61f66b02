"""Where the time goes that is not copying: order and Python per batch, and writing small rows.

    python benchmarks/overheads.py

Rows of 4 bytes make copying negligible, so a pass of the loader over them is its overhead.
"""

import cProfile
import io
import pstats
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from penstock import Epochs, Field, Loader, Record, Schema, open_store, write_store

ROWS = 200_000
WRITTEN = 30_000


def main() -> None:
    """Prints microseconds per batch for the order alone and for the whole loader, and a profile of write_store."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny"
        schema = Schema([Field(name="a", dtype="uint8", shape=(4,)), Field(name="b", dtype="uint8", shape=(4,))])
        blank = {"a": np.zeros(4, np.uint8), "b": np.zeros(4, np.uint8)}
        write_store(path, schema, ((f"k{n}", blank) for n in range(ROWS)), durability="process")
        store = open_store(path)
        print("| rows per batch | order, us | loader without copying, us |\n| --- | --- | --- |")
        for size in (1024, 4096):
            print(f"| {size:,} | {order_us(size):.0f} | {loader_us(store, size):.0f} |")
        print(profile_write(Path(folder) / "written"))


def order_us(size: int) -> float:
    """Microseconds per batch for the order alone."""
    order = Epochs(ROWS)
    batches = ROWS // size
    order.rows(0, 1)
    started = time.perf_counter()
    for number in range(10 * batches):
        order.rows(number * size, (number + 1) * size)
    return (time.perf_counter() - started) / (10 * batches) * 1e6


def loader_us(store: object, size: int) -> float:
    """Microseconds per batch for the loader, on rows of which there is next to nothing to copy."""
    loader = Loader(store, batch_size=size, threads=1, epochs=10)  # type: ignore[arg-type]
    started, count = time.perf_counter(), 0
    for _ in loader:
        count += 1
    return (time.perf_counter() - started) / count * 1e6


def profile_write(path: Path) -> str:
    """The functions in which writing small rows spends its time."""
    schema = Schema(
        [Field(name="vector", dtype="float16", shape=(768,)), Field(name="box", dtype="float32", shape=(4,))]
    )
    vectors = np.random.default_rng(0).random((1000, 768)).astype(np.float16)
    box = np.zeros(4, np.float32)

    def records() -> Iterator[tuple[str, Record]]:
        for number in range(WRITTEN):
            yield f"k{number}", {"vector": vectors[number % 1000], "box": box}

    profile = cProfile.Profile()
    started = time.perf_counter()
    profile.runcall(write_store, path, schema, records())
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(12)
    seconds = time.perf_counter() - started
    return f"write_store, {WRITTEN:,} rows of 1,552 bytes, under cProfile: {seconds:.2f} s\n{text.getvalue()}"


if __name__ == "__main__":
    main()
