"""Stores of many rows: made sparse, so that they cost no disk; then open time, memory and latency in a fresh process.

python probe.py make FOLDER WORKLOAD ROWS PARTS      python probe.py measure FOLDER
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers.penstock_store import PenstockStore
from serve import private_mb
from workloads import WORKLOADS, Records

_DRAWS = 1000


def probe(folder: Path, workload: str, rows: int, parts: int) -> dict[str, Any]:
    """Makes a sparse store and measures it in a process of its own; {"error": ...} if that fails."""
    folder.mkdir(parents=True)
    try:
        _run("make", str(folder), workload, str(rows), str(parts))
        return dict(json.loads(_run("measure", str(folder)).splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    finally:
        shutil.rmtree(folder)


def make(folder: Path, workload: str, rows: int, parts: int) -> None:
    """Writes a small store, then says in its manifest that it has more rows and lengthens its files without writing."""
    small = Records(WORKLOADS[workload], 8)
    PenstockStore(WORKLOADS[workload]).write(folder, small)
    path = folder / "store" / "store.json"
    manifest = json.loads(path.read_text())
    (entry,) = manifest["parts"]
    each = rows // parts
    source = folder / "store" / entry["name"]
    sizes = {file: source.joinpath(file).stat().st_size // len(small) for file in os.listdir(source)}
    names = [entry["name"], *(f"part-{number:05d}" for number in range(1, parts))]
    for name in names[1:]:
        shutil.copytree(source, folder / "store" / name)
    manifest["parts"] = []
    for name in names:
        for file, size in sizes.items():
            if file.endswith(".bin"):
                os.truncate(folder / "store" / name / file, size * each)
        manifest["parts"].append({**entry, "name": name, "rows": each, "done": each})
    path.write_text(json.dumps(manifest))


def measure(folder: Path) -> dict[str, Any]:
    """Open time, memory of opening, and the time of random rows and of one field of them, in microseconds."""
    from penstock.store import open_store

    before = private_mb()
    started = time.perf_counter()
    store = open_store(folder / "store")
    opened = time.perf_counter() - started
    held = private_mb() - before
    rows = np.random.default_rng(3).integers(0, len(store), _DRAWS).tolist()
    first = next(iter(store.schema))
    store[rows[0]]
    whole = _times(lambda row: store[row], rows)
    one = _times(lambda row: store.read(row, (first,)), rows)
    return {
        "rows": len(store),
        "open_ms": opened * 1e3,
        "open_mb": held,
        "row_us": float(np.median(whole)),
        "row_p99_us": float(np.percentile(whole, 99)),
        "field_us": float(np.median(one)),
    }


def _times(read: Any, rows: list[int]) -> np.ndarray:
    times = []
    for row in rows:
        started = time.perf_counter()
        read(row)
        times.append(time.perf_counter() - started)
    return np.array(times) * 1e6


def _run(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment).stdout


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        print(json.dumps(measure(Path(sys.argv[2]))))
