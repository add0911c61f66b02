"""What was measured as Markdown tables, as JSON, and against the targets."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Row, median
from peers import LIMITS

Rows = Mapping[str, Row]
Rates = Mapping[str, float]
_PACKAGES = [
    "penstock",
    "numpy",
    "torch",
    "webdataset",
    "litdata",
    "tensordict",
    "grain",
    "array-record",
    "ffcv",
    "lmdb",
    "h5py",
    "zarr",
    "tensorstore",
    "pyarrow",
    "datasets",
    "pylance",
    "spdl",
    "simplejpeg",
    "mosaicml-streaming",
]


def machine(folder: Path) -> dict[str, Any]:
    """Processor, memory, kernel, disk, versions, date, load."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":?")
    disk = (
        subprocess.run(["df", "-T", str(folder)], capture_output=True, text=True, check=True)
        .stdout.split("\n")[1]
        .split()
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "disk": f"{disk[1]} on {disk[0]}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def header(facts: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The machine and the conditions in a few lines."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    before, after = facts["load_average"][0], facts.get("load_average_after", [0.0])[0]
    busy = "other processes were loading the machine" if before > 0.5 else "the machine was quiet when it began"
    lines = [
        f"{facts['date']}: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, Linux {facts['kernel']}, "
        f"{facts['disk']}, Python {facts['python']}.",
        f"Load average {before} before (without ours: {busy}), {after} after (ours included).",
        f"Versions: {versions}.",
        *notes,
    ]
    return "\n".join(lines)


def warm_table(rows: Rows, wanted_bytes: int, batch: int) -> str:
    """Records per second of each loader with its spread, and its ratios within the same repetitions."""
    limit = gather_limit(rows, batch)
    lines = [
        "| loader | w | records/s, median (min-max) | GB/s | penstock is x times it | of the gather limit | remark |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = sorted(rows.values(), key=lambda row: -median(row.rates(batch)) if row.warm.get(batch) else 1.0)
    for row in order:
        rates = row.rates(batch)
        if not rates:
            lines.append(
                f"| {row.title or row.peer} | | not run: {row.reason or 'nothing measured'} | | | | {row.remark} |"
            )
            continue
        ratio = median(_ratios(rows["penstock"].warm.get(batch, {}), row.warm[batch]))
        share = median(_ratios(row.warm[batch], limit))
        middle = median(rates)
        spread = f"{middle:,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"
        remark = "; ".join(text for text in (row.remark, row.reason and f"failed later: {row.reason}") if text)
        speed = f"{middle * wanted_bytes / 1e9:.2f}"
        lines.append(f"| {row.title} | {row.best} | {spread} | {speed} | {ratio:.2f} | {share:.2f} | {remark} |")
    return "\n".join(lines)


def other_table(rows: Rows) -> str:
    """Waiting beside a training step, cold reading and writing."""
    lines = [
        "| loader | 20 ms step: records/s; waiting (w, batches) | cold, records/s (w) | of the disk's O_DIRECT limit "
        "| write, records/s | of the disk's write limit | bytes on disk, GB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows.values():
        if row.peer in LIMITS or not (row.steps or row.cold or row.write_rate):
            continue
        step = "-"
        if row.steps:
            count, best = best_step(row)
            rate = best["rows"] / best["seconds"]
            step = f"{rate:,.0f}; {best['waited']:.1%} ({count}, {best['steps']:.0f})"
        cold = f"{median(row.cold):,.0f} ({row.cold_workers})" if row.cold else "-"
        share = f"{cold_share(row):.2f}" if row.cold else "-"
        found = next((other for other in rows.values() if other.write_rate and _folder(other) == _folder(row)), row)
        write = f"{found.write_rate:,.0f} | {found.write_share:.2f} | {found.disk_bytes / 1e9:.2f}"
        lines.append(f"| {row.title} | {step} | {cold} | {share} | {write} |")
    return "\n".join(lines)


def probe_table(probes: Mapping[str, Any]) -> str:
    """Latency, open time and memory of penstock stores."""
    lines = ["| store | rows | open, ms | memory of opening, MB | store[i], us: median (p99) | one field, us |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, probe in probes.items():
        if "error" in probe:
            lines.append(f"| {name} | not run: {probe['error']} | | | | |")
            continue
        row_us = f"{probe['row_us']:.1f} ({probe['row_p99_us']:.1f})"
        cells = (
            f"{probe['rows']:,} | {probe['open_ms']:.1f} | {probe['open_mb']:.1f} | {row_us} | {probe['field_us']:.1f}"
        )
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def gather_limit(rows: Rows, batch: int) -> Rates:
    """The rates of the gather that is the better one, by repetition."""
    found = [rows[name] for name in ("take", "preadv") if name in rows and rows[name].warm.get(batch)]
    return max(found, key=lambda row: median(row.rates(batch))).warm[batch] if found else {}


def best_step(row: Row) -> tuple[int, dict[str, float]]:
    """The number of workers that waits least beside a step, and its figures."""
    return min(row.steps.items(), key=lambda pair: pair[1]["waited"])


def cold_share(row: Row) -> float:
    """Cold rate over the disk's O_DIRECT rate, repetition by repetition."""
    return median([rate / limit for rate, limit in zip(row.cold, row.cold_limit, strict=True)])


def targets(found: Mapping[str, Rows], probes: Mapping[str, Any], memory: Mapping[str, Any]) -> str:
    """The targets table: what was asked, what was measured, met or missed."""
    checks: list[tuple[str, float, float, bool]] = []
    if "A" in found:
        checks += _targets_a(found["A"])
    if "B" in found:
        checks += _targets_b(found["B"])
    for name, probe in probes.items():
        if "error" not in probe:
            checks += _targets_probe(name, probe)
    if memory.get("points_mb"):
        points = memory["points_mb"]
        checks.append(("memory of a loader: growth over the run, MB", points[-1] - points[1], 5.0, False))
        if memory.get("ring_mb"):
            checks.append(("memory of a loader above its ring, MB", max(points) - memory["ring_mb"], 50.0, False))
    lines = ["| target | asked | measured | |", "| --- | --- | --- | --- |"]
    for name, value, asked, at_least in checks:
        met = value >= asked if at_least else value < asked
        word = "not measured" if value != value else "met" if met else "missed"
        lines.append(f"| {name} | {'>=' if at_least else '<'} {asked:g} | {value:.3g} | {word} |")
    return "\n".join(lines)


def to_json(found: Mapping[str, Rows]) -> dict[str, Any]:
    """All rows as plain values."""
    return {name: {peer: dataclasses.asdict(row) for peer, row in rows.items()} for name, rows in found.items()}


def _targets_a(rows: Rows) -> list[tuple[str, float, float, bool]]:
    ours, batch = rows["penstock"], min(rows["penstock"].warm, default=0)
    over = _over(rows, batch)
    cold = _best(rows, lambda row: median(row.cold))
    waited = best_step(ours)[1]["waited"] if ours.steps else float("nan")
    return [
        ("A warm: times the best peer", over(_peers(rows)), 2.0, True),
        ("A warm: times the best beside a step (spdl)", over(["spdl"]), 3.5, True),
        ("A warm: times the original's reader", over(["original"]), 10.0, True),
        ("A warm: times TAR + deflated NPZ", over(["tar-deflated"]), 45.0, True),
        ("A warm: of the gather limit", _share(rows, batch), 0.8, True),
        ("A with a 20 ms step: share waiting", waited, 0.02, False),
        ("A cold: of the disk's O_DIRECT limit", cold_share(ours) if ours.cold else float("nan"), 0.9, True),
        ("A cold: times the best peer", median(ours.cold) / cold, 3.0, True),
        ("A write: of the disk's write limit", ours.write_share or float("nan"), 0.9, True),
    ]


def _targets_b(rows: Rows) -> list[tuple[str, float, float, bool]]:
    ours = rows["penstock"]
    checks = []
    for batch in sorted(ours.warm):
        checks.append((f"B warm, batches of {batch}: of the gather limit", _share(rows, batch), 0.8, True))
        checks.append((f"B warm, batches of {batch}: times the best peer", _over(rows, batch)(_peers(rows)), 2.0, True))
    cold = _best(rows, lambda row: median(row.cold))
    return [*checks, ("B cold: times the best peer", median(ours.cold) / cold, 5.0, True)]


def _targets_probe(name: str, probe: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    checks = [(f"{name}: open, ms", probe["open_ms"], 50.0 if probe["rows"] <= 1_000_000 else 200.0, False)]
    if name.startswith("A"):
        return [*checks, (f"{name}: store[i], us", probe["row_us"], 20.0, False)]
    return [*checks, (f"{name}: per field group, us", probe["field_us"], 5.0, False)]


def _share(rows: Rows, batch: int) -> float:
    return median(_ratios(rows["penstock"].warm.get(batch, {}), gather_limit(rows, batch)))


def _over(rows: Rows, batch: int) -> Callable[[Sequence[str]], float]:
    def over(names: Sequence[str]) -> float:
        rates = [rows[name].warm[batch] for name in names if name in rows and rows[name].warm.get(batch)]
        found = [median(_ratios(rows["penstock"].warm.get(batch, {}), those)) for those in rates]
        return min(found, default=float("nan"))

    return over


def _ratios(above: Rates, below: Rates) -> list[float]:
    """Ratios within the same repetitions."""
    return [rate / below[tag] for tag, rate in above.items() if tag in below]


def _folder(row: Row) -> str:
    return "raw" if row.peer in LIMITS else row.folder or row.peer


def _peers(rows: Rows) -> list[str]:
    return [name for name in rows if not name.startswith("penstock") and name not in LIMITS]


def _best(rows: Rows, of: Callable[[Row], float]) -> float:
    found = [value for name in _peers(rows) if (value := of(rows[name])) == value]
    return max(found, default=float("nan"))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
