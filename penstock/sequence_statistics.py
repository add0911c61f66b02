"""What a folder of saved sequences holds, in plain numbers: gaps, shares, boxes, motion, visibility, rejections.

Reads metadata and provenance, no pictures. Folders are read one after another and forgotten; what is kept grows with the
numbers of videos and classes, not with that of sequences.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.errors import BadData, SourceNotFound, StoreCorrupt
from penstock.sequence_distribution import QUANTITIES, Distribution, gap_range
from penstock.sequence_facts import Facts, read_facts
from penstock.sequence_folder import SIDE, TEMPORARY, read_manifest, require_sequences
from penstock.sequence_sink import FAILURES
from penstock.source import Problem

GRID = 16
"""Cells of a heat map along each side."""
MAX_PROBLEMS = 50
"""Damaged and missing folders that are listed; all are counted."""


HEAT_MAPS = {
    "template": "Box centres in template pictures",
    "search": "Box centres in search pictures",
    "crop": "Box centres in search crops",
}


@dataclass(kw_only=True)
class SequenceStatistics:
    """The numbers of one folder of saved sequences."""

    path: Path
    manifest: dict[str, Any] | None
    """What `sequences.json` says; None for sequences saved without a recipe."""
    folders: int = 0
    """Folders of sequences, whole or damaged."""
    read: int = 0
    """Of them, those that could be read: all other numbers are of these."""
    missing: int = 0
    """Folders that a list of saved paths names and that are not there."""
    problems: list[Problem] = field(default_factory=list)
    """The first damaged and missing folders."""
    unfinished: int = 0
    """Folders that a run was writing when it was killed."""
    failures: Counter[str] = field(default_factory=Counter)
    """Sequences that could not be saved, and never were, by error class and message."""
    plain: int = 0
    """Sequences whose provenance holds no draw (`SequenceSaver`): only gaps in frames, sources and classes are known."""
    sources: Counter[str] = field(default_factory=Counter)
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By source and class; "" or "unknown" where there is none."""
    videos: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By source and name of the video or picture that the templates are of."""
    pictures: int = 0
    """Sequences of single pictures."""
    negatives: int = 0
    grown: int = 0
    """Sequences for which max_gap had to grow."""
    same_frame: int = 0
    """Sequences of videos in which a search frame is also a template."""
    retried: int = 0
    """Sequences of which at least one draw was rejected."""
    rejections: Counter[str] = field(default_factory=Counter)
    """Rejected draws by reason."""
    gaps: dict[int, Distribution] = field(default_factory=dict)
    """By template: search row minus template row (frames, where the rows are not recorded), videos and positives only."""
    numbers: dict[str, Distribution] = field(
        default_factory=lambda: {name: made() for name, made in QUANTITIES.items()}
    )
    heat: dict[str, np.ndarray] = field(
        default_factory=lambda: {name: np.zeros((GRID, GRID), np.int64) for name in HEAT_MAPS}
    )
    """By name of `HEAT_MAPS`: (GRID, GRID) int64 counts, rows from the top; centres outside count at the border."""
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By name ("search frames visible", "backward steps padded"): how many of how many."""

    @property
    def requested(self) -> dict[str, float]:
        """Share of each source as the recipe wants it, summing to 1; empty if there is no recipe."""
        identity = self._identity
        found: Counter[str] = Counter()
        for source, share in zip(identity.get("sources", {}).values(), identity.get("shares", []), strict=True):
            found[source["name"]] += share
        total = sum(found.values())
        return {name: share / total for name, share in found.items()}

    @property
    def draw(self) -> dict[str, Any]:
        """The settings of the draw: mode, max_gap and so on; empty if there is no recipe."""
        return dict(self._identity.get("draw", {}))

    @property
    def available(self) -> dict[str, int]:
        """Number of sequences of each source, where the run recorded it."""
        provenance = (self.manifest or {}).get("provenance", {})
        return dict(provenance.get("sequences", {}))

    def gap_range(self, place: int) -> tuple[float, float] | None:
        """Least and greatest gap of a template by mode and max_gap before it grows; None if there is no recipe."""
        draw = self.draw
        if "mode" not in draw:
            return None
        last = len(self.gaps) - 1
        return gap_range(draw["mode"], draw["max_gap"], place, last=last, is_sorted=draw.get("order") == "odtrack")

    def beyond(self, place: int) -> int:
        """How many gaps of a template lie outside `gap_range`: growth, if nothing else."""
        limits = self.gap_range(place) or (-inf, inf)
        keys, counts = self.gaps[place].bins()
        return int(counts[(keys < limits[0]) | (keys > limits[1])].sum())

    def to_json(self) -> dict[str, object]:
        """Plain values. Of classes and videos the numbers and the twenty most drawn."""
        counts = ("folders", "read", "missing", "unfinished", "plain", "pictures", "negatives", "grown")
        return {
            "path": str(self.path),
            **{name: getattr(self, name) for name in (*counts, "same_frame", "retried")},
            "damaged": self.folders - self.read,
            "problems": [{"path": one.path, "message": one.message} for one in self.problems],
            "requested": self.requested,
            "drawn": {name: count / self.read for name, count in self.sources.most_common()},
            "failures": dict(self.failures),
            "rejections": dict(self.rejections.most_common()),
            "classes": {"count": len(self.classes), "most": _most(self.classes)},
            "videos": {"count": len(self.videos), "most": _most(self.videos)},
            "gaps": {str(place): one.to_json() for place, one in sorted(self.gaps.items())},
            "numbers": {name: one.to_json() for name, one in self.numbers.items() if one.count},
            "shares": {name: part / total for name, (part, total) in self.shares.items() if total},
        }

    @property
    def _identity(self) -> dict[str, Any]:
        return dict((self.manifest or {}).get("identity", {}))


def statistics(saved_dir: Path | str) -> SequenceStatistics:
    """Reads a folder of saved sequences. One that is damaged is counted and listed, and the rest goes on.

    Raises:
        SourceNotFound: there is no saved sequence.
        StoreCorrupt: `sequences.json` or the list of failures in `.penstock` is damaged.
    """
    path = Path(saved_dir)
    names = require_sequences(path)
    found = SequenceStatistics(path=path, manifest=read_manifest(path), folders=len(names))
    for name in names:
        try:
            facts = read_facts(path / name)
        except (SourceNotFound, BadData) as error:
            _list(found, path / name, f"{type(error).__name__}: {error}")
            continue
        _count(found, facts)
    for name in sorted(_listed(path) - set(names)):
        found.missing += 1
        _list(found, path / name, "is named in a list of saved paths, and is not there")
    found.unfinished = sum(1 for _ in path.glob(f"{TEMPORARY}*"))
    found.failures = _failures(path, {name.rpartition("_")[0].rpartition("_")[0] for name in names})
    return found


def _count(found: SequenceStatistics, facts: Facts) -> None:
    found.read += 1
    found.sources[facts.source] += 1
    found.classes[facts.source, facts.category] += 1
    found.pictures += not facts.is_video
    found.plain += facts.is_plain
    found.negatives += not facts.positive
    found.grown += facts.growth > 0
    found.retried += bool(facts.reasons)
    found.rejections.update(facts.reasons)
    found.same_frame += any(0.0 in gaps for gaps in facts.gaps.values())
    if facts.video:
        found.videos[facts.source, facts.video] += 1
    for place, gaps in facts.gaps.items():
        if place not in found.gaps:
            found.gaps[place] = Distribution(f"Gap of template {place}", "frames" if facts.is_plain else "rows")
        found.gaps[place].add(gaps)
    for name, values in facts.numbers.items():
        found.numbers[name].add(values)
    for name, (part, total) in facts.shares.items():
        before = found.shares.get(name, (0, 0))
        found.shares[name] = before[0] + part, before[1] + total
    for name, centres in facts.centres.items():
        cells = np.clip((centres * GRID).astype(np.int64), 0, GRID - 1)
        np.add.at(found.heat[name], (cells[:, 1], cells[:, 0]), 1)


def _list(found: SequenceStatistics, path: Path, message: str) -> None:
    if len(found.problems) < MAX_PROBLEMS:
        found.problems.append(Problem(str(path), "BadData", message))


def _listed(path: Path) -> set[str]:
    """Names of the folders in the lists of saved paths."""
    names: set[str] = set()
    for file in path.glob("saved_paths_*.txt"):
        names |= {Path(line).name for line in file.read_text("utf-8", "surrogateescape").splitlines() if line}
    return names


def _failures(path: Path, saved: set[str]) -> Counter[str]:
    """Of sequences that are not there; the last message of each."""
    file = path / SIDE / FAILURES
    if not file.exists():
        return Counter()
    content = file.read_bytes()
    last: dict[str, str] = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            one = orjson.loads(line)
            last[one["key"]] = f"{one['error']}: {one['message']}"
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreCorrupt(f"{file}: a line is no failure: {line[:80]!r}") from error
    return Counter(message for key, message in last.items() if key not in saved)


def _most(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {f"{source}: {name}": count for (source, name), count in counts.most_common(20)}
