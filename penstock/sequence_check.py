"""Whether a saved sequence is as it was saved."""

import os
from pathlib import Path

import xxhash

from penstock.errors import BadData, SourceNotFound
from penstock.sequence_folder import PROVENANCE, load_provenance, provenance_digest
from penstock.source import Problem


def check_folder(folder: Path) -> list[Problem]:
    """Compares every file of a saved sequence with what its provenance says. Faults are given, never raised."""
    try:
        provenance = load_provenance(folder)
    except (SourceNotFound, BadData) as error:
        return [Problem(str(folder / PROVENANCE), type(error).__name__, str(error))]
    problems = []
    said = provenance.pop("digest", None)
    if said != provenance_digest(provenance):
        problems.append(
            _fault(folder / PROVENANCE, f"its digest is {said}, its content has {provenance_digest(provenance)}")
        )
    listed = provenance.get("files")
    listed = listed if isinstance(listed, dict) else {}
    for name, sums in listed.items():
        problems += _check_file(folder / name, sums)
    there = {str(Path(top, name).relative_to(folder)) for top, _, names in os.walk(folder) for name in names}
    problems += [
        _fault(folder / name, "is not among the files that were saved")
        for name in sorted(there - {*listed, PROVENANCE})
    ]
    return problems


def _check_file(path: Path, sums: object) -> list[Problem]:
    try:
        content = path.read_bytes()
    except OSError as error:
        return [_fault(path, f"cannot be read: {error.strerror or error}")]
    if sums == [len(content), xxhash.xxh3_128_hexdigest(content)]:
        return []
    return [_fault(path, f"holds other bytes than were saved: expected size and hash {sums}, got {len(content)} bytes")]


def _fault(path: Path, message: str) -> Problem:
    return Problem(str(path), "BadData", f"{path}: {message}")
