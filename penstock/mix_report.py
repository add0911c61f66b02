"""What a mixture will give, and what it gave: per source, as plain values and as lines for a log."""

from collections.abc import Mapping
from typing import Any

from penstock.mix_source import Mixed

_COUNTS = ("unique", "repeated", "pairs", "substituted", "retried")


def planned(mixed: Mixed) -> dict[str, Any]:
    """The mixture of one epoch, by arithmetic: nothing is read.

    Returns:
        seed; samples: of the epoch; sources: name, rows (that can be drawn), source_rows, samples (of the epoch), share,
        passes (how often each row comes), weight, repeats, max_rows, max_images, pairs (whether two pictures make a
        sample: "stored", by "rule", or "none"), problems (faults that its reader met: path and message).
    """
    total = len(mixed)
    sources = []
    counts = mixed.plan.counts(0, total)
    for number, (part, planned_part, count) in enumerate(zip(mixed.parts, mixed.plan.parts, counts, strict=True)):
        weight = None if part.weight is None else mixed.plan.weights[number] / mixed.plan.total
        sources.append(
            {
                "name": part.name, "rows": planned_part.num_rows, "source_rows": len(part.source), "samples": count,
                "share": count / total, "passes": count / planned_part.num_rows, "weight": weight,
                "repeats": part.repeats, "max_rows": part.max_rows, "max_images": part.max_images,
                "pairs": mixed.pairing(part.name),
                "problems": [f"{one.path}: {one.message}" for one in getattr(part.source, "problems", [])],
            }
        )  # fmt: skip
    return {"seed": mixed.plan.seed, "samples": total, "sources": sources}


def planned_lines(plan: Mapping[str, Any]) -> list[str]:
    """What `planned` gives, one line per source, and one more where its files have faults: their rows may fail."""
    lines = [f"Total datasets: {len(plan['sources'])}"]
    for number, one in enumerate(plan["sources"]):
        pairs = {"stored": ", stored pairs", "rule": ", pairs by rule", "none": ""}[one["pairs"]]
        lines.append(
            f"  Dataset {number}: {one['samples']} samples ({one['name']}: {one['share']:.2%}, each of {one['rows']} rows "
            f"{one['passes']:.3g} times{pairs})"
        )
        if one["problems"]:
            lines.append(f"    problems in its files: {len(one['problems'])}, the first: {one['problems'][0]}")
    return [*lines, f"Dataset built: {plan['samples']} total samples, seed {plan['seed']}"]


def drawn_lines(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `MixLoader.report` gives, or `penstock.mix_tally.added`, one line per source."""
    lines = []
    total = sum(one["drawn"] for one in report.values())
    for number, (name, one) in enumerate(report.items()):
        counts = ", ".join(f"{one[count]} {count}" for count in _COUNTS if one.get(count) is not None)
        failed = ", ".join(f"{reason}: {count}" for reason, count in one["failed"].items()) or "none"
        share = one["drawn"] / total if total else 0.0
        lines.append(
            f"  Dataset {number}: {one['drawn']} samples drawn ({name}: {share:.2%}): {counts}; failed: {failed}"
        )
        if one["ms_p50"] is not None:
            rate = f"{one['bytes_per_s'] / 1e6:.1f} MB/s"
            lines.append(f"    ms per sample: p50 {one['ms_p50']:.2f}, p99 {one['ms_p99']:.2f}; decoded: {rate}")
    return [*lines, f"Total: {total} samples drawn"]
