"""Stores and loaders side by side: penstock, its peers, and what the machine allows.

    python benchmarks/stores.py --quick              about 5 minutes, small data: that it works, and the order of things
    python benchmarks/stores.py --targets            the full run: over 4 GB of records, an hour or so
    python benchmarks/stores.py --only penstock memmap --workloads A --targets

See README.md beside this file for what is measured and how to install the peers.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
from measure import Bench, Plan, Row, median
from peers import PEERS
from probe import probe
from serve import make
from workloads import WORKLOADS

_QUICK_S = {
    "A": {"start": 100, "repeat": 120, "step": 140, "cold": 160},
    "B": {"start": 215, "repeat": 235, "step": 235, "cold": 255},
}
"""Seconds after the start at which a phase of --quick begins nothing more; what was left out is said."""


def main() -> int:
    """Measures and prints; exit code 1 if penstock itself could not be measured."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the data are removed
    base = Path(arguments.folder or tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="stores-", dir=base))
    facts = report.machine(folder)
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    started = time.monotonic()
    try:
        found: dict[str, dict[str, Row]] = {}
        benches = []
        for name in arguments.workloads:
            bench = Bench(name, _plan(arguments, name, started), folder, pythons, _say)
            benches.append(bench)
            found[name] = bench.run(_peers(arguments.only), _group_size(bench, arguments))
        probes = {} if arguments.skip_probes else _probes(folder, found)
        memory = {} if arguments.skip_probes else _memory(folder, arguments.quick)
    finally:
        _say(f"log of the peers: {_keep_log(folder, base)}")
        shutil.rmtree(folder, ignore_errors=True)
    facts["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    _print(arguments, facts, found, probes, memory, benches)
    if arguments.json:
        content = {"machine": facts, "workloads": report.to_json(found), "probes": probes, "memory": memory}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    return int(any(not rows["penstock"].is_run for rows in found.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small data, few repetitions, at most about 5 minutes")
    add(
        "--folder",
        help="where data are written (default: the system's temporary folder); must be on the disk to measure",
    )
    add("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    add("--only", nargs="+", choices=list(PEERS), help="these peers only; penstock and the limits always run")
    add("--records", type=int, help="rows of workload A (default: 480, --quick 32)")
    add("--rows", type=int, help="rows of workload B (default: 200,000, --quick 40,000)")
    add("--repetitions", type=int, help="warm repetitions (default: 7, --quick 3)")
    add(
        "--step", choices=["sleep", "matmul"], default="sleep", help="20 ms training step: cores free (GPU) or one busy"
    )
    add(
        "--python",
        nargs="*",
        default=[],
        metavar="PEER=PATH",
        help="interpreter of a peer that needs its own environment",
    )
    add("--cache-share", type=float, default=0.75, help="share of memory that a group's data may take (default 0.75)")
    add("--max-disk-gb", type=float, default=40.0, help="data on disk at a time (default 40)")
    add("--skip-probes", action="store_true", help="leave out latency, open time and memory")
    add("--targets", action="store_true", help="compare with the targets: met or missed")
    add("--json", help="also write everything as JSON to this file")
    return parser


def _plan(arguments: argparse.Namespace, name: str, started: float) -> Plan:
    quick = arguments.quick
    large = (
        (arguments.records or (32 if quick else 480))
        if name == "A"
        else arguments.rows or (40_000 if quick else 200_000)
    )
    batch = WORKLOADS[name].batch
    sweep = () if quick or name == "A" else (1024, 2048, 8192)
    return Plan(
        rows=large,
        batches=(batch, *sweep),
        repetitions=arguments.repetitions or (3 if quick else 7),
        cold_repetitions=1 if quick else 3,
        pass_s=0.2 if quick else 1.0,
        steps=200,
        step_limit_s=1.5 if quick else 30,
        step=arguments.step,
        timeout_s=12 if quick else 600,
        quick=quick,
        until={phase: started + seconds for phase, seconds in _QUICK_S[name].items()} if quick else {},
    )


def _group_size(bench: Bench, arguments: argparse.Namespace) -> int:
    """Folders of peers that fit beside the two of the anchors in the page cache and on the disk."""
    each = bench.plan.rows * bench.workload.record_bytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * arguments.cache_share
    room = min(memory, arguments.max_disk_gb * 1e9, shutil.disk_usage(bench.folder).free * 0.9)
    if room < 3 * each:
        raise SystemExit(
            f"{bench.folder}: {each / 1e9:.1f} GB for each of 3 stores, room for {room / 1e9:.1f} GB; use --records"
        )
    return max(1, int(room // each) - 2)


def _peers(only: list[str] | None) -> list[str]:
    return [name for name in PEERS if not only or name in only or name == "penstock"]


def _probes(folder: Path, found: dict[str, dict[str, Row]]) -> dict[str, Any]:
    sizes = [("A, sparse", "A", 1000, 1), ("A, sparse", "A", 1_000_000, 1), ("B, sparse", "B", 1000, 1)]
    sizes += [
        ("B, sparse", "B", 1_000_000, 1),
        ("B, sparse", "B", 100_000_000, 1),
        ("B, 100 parts", "B", 100_000_000, 100),
    ]
    done = {}
    for title, workload, rows, parts in sizes:
        if workload in found:
            done[f"{title}, {rows:,} rows"] = probe(folder / "probe", workload, rows, parts)
    return done


def _memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Private memory of a fresh process while penstock's loader gives 10,000 batches of workload B."""
    from driver import Process
    from workloads import Records

    peer, batch, rows = make("penstock", "B"), 256 if quick else 4096, 40_000
    where = folder / "memory"
    where.mkdir()
    process = Process("penstock", "B", "", folder / "peers.log")
    try:
        answer = process.call("write", 120, folder=str(where), rows=len(Records(peer.workload, rows)))
        if "error" in answer:
            return answer
        process.end()
        process = Process("penstock", "B", "", folder / "peers.log")  # nothing of the writing is left in its memory
        return process.call("memory", 600, batches=10_000, folder=str(where), workers=2, batch=batch, epochs=1 << 10)
    finally:
        process.end()


def _print(
    arguments: argparse.Namespace,
    facts: dict[str, Any],
    found: dict[str, dict[str, Row]],
    probes: dict[str, Any],
    memory: dict[str, Any],
    benches: list[Bench],
) -> None:
    resident = min((share for bench in benches for share in bench.residencies), default=float("nan"))
    notes = [
        f"{'Quick run: small data. ' if arguments.quick else ''}Warm: at least {resident:.1%} of each folder in the page cache. "
        f"Step: {'a sleep of 20 ms (a GPU step, cores free)' if arguments.step == 'sleep' else '20 ms of matmul, one thread'}."
    ]
    print(report.header(facts, notes))
    for bench in benches:
        workload, rows = bench.workload, found[bench.workload.name]
        size = bench.plan.rows * workload.record_bytes / 1e9
        print(
            f"\n## Workload {workload.name}: {bench.plan.rows:,} records of {workload.record_bytes:,} bytes ({size:.2f} GB)"
        )
        for batch in bench.plan.batches:
            print(f"\nWarm, shuffled batches of {batch}, {bench.plan.repetitions} interleaved repetitions\n")
            print(report.warm_table(rows, workload.wanted_bytes, batch))
        limit = median(bench.disk_write)
        print(f"\nBeside a step, cold, and writing (disk's write limit {limit:.2f} GB/s, O_DIRECT and fsync)\n")
        print(report.other_table(rows))
    if probes:
        print(f"\n## Large stores (files are sparse)\n\n{report.probe_table(probes)}")
    if memory:
        print(f"\nMemory of a loader: {json.dumps(memory)}")
    if arguments.targets:
        print(f"\n## Targets\n\n{report.targets(found, probes, memory)}")


def _keep_log(folder: Path, base: Path) -> Path:
    kept = base / "stores-peers.log"
    if (folder / "peers.log").exists():
        shutil.copy(folder / "peers.log", kept)
    return kept


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
