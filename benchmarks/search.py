"""How long does an exact top 10 take? penstock's search beside plain NumPy, and faiss where it is installed; same answers.

    python benchmarks/search.py --rows 1300000 --dim 768
    python benchmarks/search.py --rows 200000 --json result.json

Random unit vectors in clusters, float16, in a sealed store of parts, in the page cache. Every way's answers are compared
with penstock's: rows of the same scores. Times are of warm calls: the median, the least, and the median of the processors'
time, which other programs change least. One line is no search: every byte read once, the limit that the memory sets.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from penstock import Field, Schema, open_store, write_store
from penstock.schema import Record
from penstock.search import neighbours
from penstock.search_duplicates import duplicates_cost
from penstock.search_vectors import Vectors, processors

CLUSTERS = 1000
Way = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
READING = "reading every byte once, in the same threads"
"""No search: what the memory allows."""
NOTHING = (np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))


def records(rows: int, dim: int) -> Iterator[tuple[str, Record]]:
    """Unit vectors around `CLUSTERS` centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, dim), np.float32)
    for start in range(0, rows, 4096):
        count = min(4096, rows - start)
        block = centres[rng.integers(0, CLUSTERS, count)] + rng.standard_normal((count, dim), np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        for number, vector in enumerate(block.astype(np.float16), start):
            yield f"{number:08d}", {"embedding": vector}


def ways(vectors: Vectors) -> dict[str, Way]:
    """Name and function of each way that can run here."""
    found: dict[str, Way] = {"penstock, NumPy": lambda q: neighbours(vectors, q, engine="numpy")}
    try:
        import torch  # noqa: F401

        found["penstock, torch"] = lambda q: neighbours(vectors, q, engine="torch")
    except ImportError:
        print("torch is not installed: not run")

    def every_byte(start: int, stop: int) -> None:
        for _, view in vectors.views(start, stop):
            np.bitwise_or.reduce(view.reshape(-1).view(np.int64 if vectors.dim % 4 == 0 else np.int16))

    found[READING] = lambda q: (vectors.sweep(every_byte), NOTHING)[1]
    whole = np.concatenate([view.astype(np.float32) for view in vectors.store.column_views("embedding")])
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)

    def plain(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ whole.T
        rows = np.argpartition(-scores, 10, axis=1)[:, :10]
        order = np.argsort(-np.take_along_axis(scores, rows, 1), axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, 1)
        return rows, np.take_along_axis(scores, rows, 1)

    found["NumPy, float32 copy in memory"] = plain
    try:
        import faiss

        index = faiss.IndexFlatIP(vectors.dim)
        index.add(whole)
        found["faiss IndexFlatIP, float32 copy in memory"] = lambda q: index.search(q, 10)[::-1]
    except ImportError:
        print("faiss is not installed: not run")
    return found


def main() -> None:
    """Writes the store, runs every way in turn, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--store", type=Path, help="made there if it is not there, and kept")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.store or Path(folder) / "store"
        if not path.exists():
            field = Field(name="embedding", dtype="float16", shape=(options.dim,), kind="embedding")
            begin = time.perf_counter()
            write_store(path, Schema([field]), records(options.rows, options.dim), durability="process")
            print(f"store written in {time.perf_counter() - begin:.0f} s")
        results = measure(Vectors(open_store(path)), options.queries, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def measure(vectors: Vectors, counts: list[int], repeats: int) -> list[dict[str, object]]:
    """Times of every way, in turn, and whether the answers are the same."""
    vectors.store.warm(["embedding"])
    begin = time.perf_counter()
    assert len(vectors.scales) == len(vectors)
    check = time.perf_counter() - begin
    gigabytes = 2 * len(vectors) * vectors.dim / 1e9
    print(f"{len(vectors):,} x {vectors.dim} ({gigabytes:.2f} GB), {processors()} cores; check of all: {check:.2f} s")
    print(f"all pairs for duplicates: {duplicates_cost(vectors)}\n")
    print(
        "| way | queries | median ms | least ms | of the processors, ms | same answer |\n| --- | --- | --- | --- | --- | --- |"
    )
    results: list[dict[str, object]] = []
    known = ways(vectors)
    for count in counts:
        queries = np.random.default_rng(1).standard_normal((count, vectors.dim), np.float32)
        queries[::2] = vectors.take(np.arange(0, count, 2) * (len(vectors) // count))
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        times: dict[str, list[float]] = {name: [] for name in known}
        spent: dict[str, list[float]] = {name: [] for name in known}
        answers = {name: way(queries) for name, way in known.items()}
        for _ in range(repeats):
            for name, way in known.items():
                begin, used = time.perf_counter(), time.process_time()
                way(queries)
                times[name].append(1e3 * (time.perf_counter() - begin))
                spent[name].append(1e3 * (time.process_time() - used))
        expected = answers["penstock, NumPy"][1]
        for name in known:
            same = name == READING or bool(np.abs(answers[name][1] - expected).max() < 1e-5)
            said = "" if name == READING else "yes" if same else "NO"
            median, least, used = float(np.median(times[name])), min(times[name]), float(np.median(spent[name]))
            print(f"| {name} | {count} | {median:.0f} | {least:.0f} | {used:.0f} | {said} |", flush=True)
            results.append(
                {
                    "way": name,
                    "queries": count,
                    "median_ms": median,
                    "least_ms": least,
                    "processor_ms": used,
                    "same": same,
                }
            )
    return results


if __name__ == "__main__":
    main()
