"""Mixed: several datasets as one source of samples by position, where a bad sample never ends the training."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import index
from typing import NamedTuple

import numpy as np
import xxhash

from penstock.errors import BadData, StateMismatch, UsageError
from penstock.fill import BAD_ROW, Tally, is_transient
from penstock.mix_rows import MixPart, PartRows
from penstock.mix_views import PROVENANCE, Views
from penstock.samplers import Mix, Part
from penstock.samplers.mixture import Ends
from penstock.schema import Record, Schema
from penstock.source import Lookup

MAX_ATTEMPTS = 8
"""Rows tried for a position: the planned one and its substitutes."""
_ENDLESS = 1 << 62


class _View(NamedTuple):
    """What one row gives."""

    fields: dict[str, np.ndarray]
    caption: str
    num_bytes: int


class Mixed:
    """Samples of several datasets by global position: a pure function of (parts, settings, seed, position).

    A sample has the fields of `Views` and of `PROVENANCE`. Where the planned row is bad (it cannot be decoded, its mask is
    empty, ...), a row of the same part stands in, chosen by a hash of (seed, part, position, attempt): shares, every other
    position, and the number of steps stay as they are. Positions go on over the ends of epochs without bound.

    Args:
        parts: one or more datasets.
        seed, ends, epoch_rows: as of `Mix`.
        views: sizes; None: 1024 x 1024 and nothing else.
        max_attempts: rows tried for a position before its error is raised.
        quarantine: part name -> keys of rows known to be bad, and why. Such a row is not read again; what stands in for
            it is the same, known or not.

    Raises:
        UsageError: a setting is out of range, a part has no rows, or lacks `image` or `mask`.
    """

    def __init__(
        self,
        parts: Sequence[MixPart],
        *,
        seed: int = 0,
        ends: Ends = "first",
        epoch_rows: int | None = None,
        views: Views | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        quarantine: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        if max_attempts < 1:
            raise UsageError(f"mix: max_attempts: expected 1 or more, got {max_attempts}")
        self._rows = [PartRows(part) for part in parts]
        planned = [
            Part(name=part.name, num_rows=len(rows.first), weight=part.weight, repeats=part.repeats)
            for part, rows in zip(parts, self._rows, strict=True)
        ]
        self.plan = Mix(planned, seed=seed, ends=ends, epoch_rows=epoch_rows)
        self.parts, self.views, self.max_attempts = tuple(parts), views or Views(), max_attempts
        self.quarantine = {name: dict(keys) for name, keys in (quarantine or {}).items()}
        self.schema = Schema([*self.views.schema.fields, *PROVENANCE.fields])
        self.reads = {rows.part.name: rows.reads for rows in self._rows}
        """Part -> how long reading took, in this process."""
        sizes = "/".join(str(size) for size in (self.views.size, self.views.small, self.views.grid))
        self.settings: dict[str, object] = {
            "seed": seed, "ends": ends, "epoch_rows": epoch_rows, "views": sizes, "max_attempts": max_attempts,
        }  # fmt: skip
        """What the samples depend on, beside the parts: plain values."""
        self.part_settings = {
            part.name: _short(repr((part.weight, part.repeats, part.max_rows, part.max_images, part.pairs)))
            for part in parts
        }
        """Part -> digest of its settings, in the order of the parts."""
        self.data = {rows.part.name: f"{len(rows.first)} rows {_short(rows.digest)}" for rows in self._rows}
        """Part -> rows that can be drawn, and digest of its data."""

    @property
    def keys(self) -> Sequence[str]:
        """`<digest>:<position>`, for positions without end: what `rebuild` takes."""
        return Lookup(_ENDLESS, self.key)

    def key(self, position: int) -> str:
        """Names a sample for `rebuild`."""
        return f"{self.digest()[:16]}:{position}"

    def digest(self) -> str:
        """Identity of settings and data."""
        order = repr((self.settings, self.part_settings, self.data))
        return xxhash.xxh3_128_hexdigest(order.encode())

    def __len__(self) -> int:
        """Positions of an epoch."""
        return self.plan.num_rows

    def __getitem__(self, position: int) -> Record:
        """The sample at a global position, 0 or more; positions after the first epoch are the next epochs'.

        Raises:
            IndexError: the position is negative.
            BadData: every row tried is bad; the message names the part and the reasons.
            OSError: reading failed again and again.
        """
        position = index(position)  # NumPy's integers overflow in a hash
        if position < 0:
            raise IndexError(f"position {position}: expected 0 or more")
        begin = time.perf_counter()
        number, planned, epoch = (int(values[0]) for values in self.plan.draw(position, position + 1))
        rows, seed = self._rows[number], self.plan.sample_seed(position)
        failures: list[dict[str, object]] = []
        tally = Tally()
        for attempt in range(self.max_attempts):
            draw = self.plan.stand_in(number, position, attempt) if attempt else planned
            pair = rows.of(draw, seed)
            views = self._views_of(rows, pair, position, tally, failures)
            if views is None:
                continue
            sample = self.views.sample([view.fields for view in views], views[0].caption)
            keys = [rows.source.keys[row] for row in pair]
            numbers = {"row": draw, "planned_row": planned, "epoch": epoch, "position": position, "attempt": attempt,
                       "retries": tally.retried}  # fmt: skip
            sample.update({name: np.asarray(value, np.int64) for name, value in numbers.items()})
            texts = {"source": rows.part.name, "key1": keys[0], "key2": keys[-1], "failures": _listed(failures)}
            rows.reads.note(time.perf_counter() - begin, sum(view.num_bytes for view in views))
            return {**sample, **texts, "seed": np.asarray(seed, np.uint64)}
        raise self._all_bad(rows, position, failures)

    def _views_of(
        self, rows: PartRows, pair: Sequence[int], position: int, tally: Tally, failures: list[dict[str, object]]
    ) -> list[_View] | None:
        """The views of these rows; None, and one failure more, where a row is bad."""
        keys = [rows.source.keys[row] for row in pair]
        known = self.quarantine.get(rows.part.name, {})
        for key in keys:
            if key in known:
                failures.append({"key": key, "error": known[key], "known": True})
                return None
        views: list[_View] = []
        for row, key in zip(pair, keys, strict=True):
            try:
                record = rows.read(row, tally)
                num_bytes = sum(value.nbytes for value in record.values() if isinstance(value, np.ndarray))
                views.append(_View(self.views.view(record), str(record.get("sentence", "")), num_bytes))
            except BAD_ROW as error:
                failures.append({"key": key, "error": type(error).__name__, "message": str(error)[:500]})
                return None
            except Exception as error:  # of the disk, or of a program: not the data's fault
                where = f"mix: {rows.part.name}: {key}, at position {position}"
                if isinstance(error, OSError) and is_transient(error):  # without errno, or the loader would try again
                    raise OSError(f"{where}: reading failed again and again: {error}") from error
                error.add_note(where)
                raise
        return views

    def _all_bad(self, rows: PartRows, position: int, failures: Sequence[Mapping[str, object]]) -> BadData:
        reasons = Counter(str(failure["error"]) for failure in failures)
        last = failures[-1]
        return BadData(
            f"{rows.part.name}: all {self.max_attempts} rows tried at position {position} are bad "
            f"({', '.join(f'{name}: {count}' for name, count in reasons.most_common())}); "
            f"the last: {last['key']}: {last.get('message', 'in quarantine')}"
        )

    def pairing(self, name: str) -> str:
        """Where the pairs of a part come from: "stored" in the source, drawn by "rule", or "none": there is no rule, or it
        allows no pair.

        Raises:
            KeyError: there is no such part.
        """
        rows = {rows.part.name: rows for rows in self._rows}[name]
        return "stored" if rows.is_paired else "rule" if rows.pairs is not None and rows.pairs.any() else "none"

    def explain(self, position: int) -> dict[str, object]:
        """What the plan says of a position, without reading anything but keys: plain values."""
        position = index(position)
        number, planned, epoch = (int(values[0]) for values in self.plan.draw(position, position + 1))
        rows, seed = self._rows[number], self.plan.sample_seed(position)
        stand_ins = [self.plan.stand_in(number, position, attempt) for attempt in range(1, self.max_attempts)]
        keys = [rows.source.keys[row] for row in rows.of(planned, seed)]
        known = self.quarantine.get(rows.part.name, {})
        return {
            "position": position,
            "key": self.key(position),
            "source": rows.part.name,
            "row": planned,
            "epoch": epoch,
            "mix_epoch": position // len(self),
            "seed": seed,
            "key1": keys[0],
            "key2": keys[-1],
            "is_pair": len(keys) == 2,
            "in_quarantine": any(key in known for key in keys),
            "stand_ins": [rows.source.keys[rows.of(draw, seed)[0]] for draw in stand_ins],
        }

    def rebuild(self, key: str) -> Record:
        """The sample of that key again, byte for byte.

        Raises:
            StateMismatch: the key is of another plan or of other data.
            UsageError: it is no key.
        """
        digest, colon, position = key.partition(":")
        if not colon or not position.isdecimal():
            raise UsageError(f"rebuild: expected a key as <digest>:<position>, got {key!r}")
        if digest != self.digest()[:16]:
            raise StateMismatch(f"rebuild: {key} is of another plan or of other data than {self.digest()[:16]}")
        return self[int(position)]

    def with_quarantine(self, quarantine: Mapping[str, Mapping[str, str]]) -> "Mixed":
        """The same samples; rows known to be bad are not read."""
        other = object.__new__(Mixed)
        other.__dict__.update(self.__dict__, quarantine={name: dict(keys) for name, keys in quarantine.items()})
        return other


def _listed(failures: list[dict[str, object]]) -> str:
    return json.dumps(failures) if failures else ""


def _short(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())
