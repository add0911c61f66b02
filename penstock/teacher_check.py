"""`penstock teacher --check`: rows of an output against what the teacher says now, one picture at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.schema import Record
from penstock.stages.teacher import TeachPictures
from penstock.store import Store, open_store
from penstock.teacher import open_input
from penstock.teacher_config import TeacherConfig
from penstock.teacher_pictures import TeacherPictures

MAX_COSINE_ERROR = 1e-3
"""Of a row's field, as one vector, against the one computed now: what float16 costs is far below it."""


@dataclass(kw_only=True)
class FieldCheck:
    """One field over the rows that were computed again."""

    cosine_error: float = 0.0
    """1 - cosine, of the worst row. Of numbers as one vector."""
    max_error: float = 0.0
    """The largest difference of two numbers."""
    worst: str = ""
    """Key of the row of that difference."""


@dataclass(frozen=True)
class Checked:
    """Rows of an output against what is computed now."""

    keys: tuple[str, ...]
    """Rows that were computed again."""
    fields: Mapping[str, FieldCheck] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    """Rows whose picture can no longer be read, or is no longer there."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Fields beyond the tolerance."""
        return tuple(name for name, one in self.fields.items() if one.cosine_error >= MAX_COSINE_ERROR)

    @property
    def is_good(self) -> bool:
        """Whether every row could be computed again, and each field has a cosine error below 1e-3."""
        return not self.faults and not self.unreadable

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "checked": len(self.keys),
            "status": "ok" if self.is_good else "failed",
            "faults": list(self.faults),
            "unreadable": list(self.unreadable),
            "tolerance": MAX_COSINE_ERROR,
            "fields": {name: vars(one) for name, one in self.fields.items()},
        }

    def lines(self) -> list[str]:
        """For people: a line each field, and what cannot be read."""
        found = [
            f"{name:16} cosine error {one.cosine_error:.2e}, largest error {one.max_error:.3g}{' at ' if one.worst else ''}"
            f"{one.worst}{'  BEYOND ' + str(MAX_COSINE_ERROR) if name in self.faults else ''}"
            for name, one in self.fields.items()
        ]
        return [*found, *(f"cannot be read now: {key}" for key in self.unreadable)]


def check_rows(config: TeacherConfig, count: int) -> Checked:
    """Computes rows, spread evenly over an output, again, and compares them field by field.

    This is the reference path: pictures are read and looked at one at a time, in this process, with the teacher opened
    anew.

    Args:
        config: that the output was made with.
        count: rows; all that are done where there are fewer.

    Raises:
        UsageError: fewer than one row is asked for, none is done, or the output is no store and no v1 directory; or as
            `penstock.teacher.teach`.
    """
    if count < 1 or config.write not in ("store", "v1"):
        raise UsageError(
            f"check: expected 1 row or more of write store or v1, got {count} of write {config.write}; what is in TARs and "
            "NPZ files can be checked after penstock convert"
        )
    store = open_store(config.output)
    done = store.done_rows()
    rows = np.arange(len(store)) if done is None else done
    if not len(rows):
        raise UsageError(f"check: {config.output} has no row that is done")
    spread = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    pictures, stage = open_input(config)
    return _checked(store, rows[spread].tolist(), pictures, stage)


def _checked(store: Store, rows: list[int], pictures: TeacherPictures, stage: TeachPictures) -> Checked:
    keys = [store.keys[row] for row in rows]
    wanted = set(keys)
    places = {key: place for place, key in enumerate(pictures.keys) if key in wanted}
    alone = replace(stage, batch_size=1, threads=1, feature_dtype="float32")  # what float16 cost is said too
    alone.setup(stage.teacher.device)
    fields, unreadable = {name: FieldCheck() for name in stage.schema}, []
    for row, key in zip(rows, keys, strict=True):
        try:
            if key not in places:
                raise BadData(f"{key}: no longer in the source")
            (again,) = alone([pictures[places[key]]])
        except BadData:
            unreadable.append(key)
            continue
        _compare(store[row], again, fields, key)
    return Checked(keys=tuple(keys), fields=fields, unreadable=tuple(unreadable))


def _compare(stored: Record, again: Record, fields: Mapping[str, FieldCheck], key: str) -> None:
    for name, check in fields.items():
        left, right = (np.asarray(record[name]) for record in (stored, again))
        if name == "image_jpeg" or left.shape != right.shape:
            cosine, largest = (0.0, 0.0) if np.array_equal(left, right) else (1.0, float("inf"))
        else:
            left, right = (side.astype(np.float64).reshape(-1) for side in (left, right))
            cosine, largest = _cosine_error(left, right), float(np.abs(left - right).max(initial=0))
        check.cosine_error = max(check.cosine_error, cosine)
        if largest > check.max_error:
            check.max_error, check.worst = largest, key


def _cosine_error(left: np.ndarray, right: np.ndarray) -> float:
    """1 - cosine of two vectors; 0 where both are 0, and 1 where one is."""
    norms = float(np.linalg.norm(left)), float(np.linalg.norm(right))
    if not all(norms):
        return float(any(norms))
    return max(0.0, 1 - float(left @ right) / (norms[0] * norms[1]))
