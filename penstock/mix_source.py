"""Mixed: several datasets as one source of samples by position, where a bad sample never ends the training."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import xxhash

from penstock.errors import BadData, StateMismatch, UsageError
from penstock.fill import BAD_ROW, Tally, read_with_retries
from penstock.mix_views import PROVENANCE, Views
from penstock.samplers import Mix, Part
from penstock.samplers.mixture import Ends
from penstock.samplers.pairs import PairRule, Pairs
from penstock.schema import Record, Schema
from penstock.source import Lookup, Source, snapshot

MAX_ATTEMPTS = 8
"""Rows tried for a position: the planned one and its substitutes."""
VIEW = "view"
"""Field of a source whose rows 2k and 2k + 1 are the two frames of a pair."""


@dataclass(frozen=True, kw_only=True)
class MixPart:
    """One dataset of a mixture, and how much of it is drawn."""

    name: str
    source: Source
    weight: int | float | Fraction | None = None
    """Share of the draws relative to the others; None for all: each row once an epoch (times `repeats`)."""
    repeats: int = 1
    max_rows: int | None = None
    """Only the first so many samples."""
    max_images: int | None = None
    """Only the samples of the first so many groups of the source: pictures, for a source whose groups are pictures."""
    pairs: PairRule | None = None
    """For a source of tracks: how the second view is chosen. A source with the field `view` has its pairs already."""


class _Rows:
    """The draws of one part: draw d stands for one row of the source, or for two."""

    def __init__(self, part: MixPart) -> None:
        self.part = part
        self.source = part.source
        self.digest, done = snapshot(part.source)
        self.is_paired = VIEW in part.source.schema
        self.pairs = _pairs(part)
        first = np.arange(len(part.source)) if done is None else np.asarray(done)
        if self.is_paired:
            first = first[(first % 2 == 0) & np.isin(first + 1, first)]
        elif self.pairs is not None:
            first = first[np.isin(first, self.pairs.anchors)]
        if part.max_images is not None:
            first = first[first < _end_of_groups(part, part.max_images)]
        self.first = first[: part.max_rows]
        """(D,) int64: row of the first view."""
        if not len(self.first):
            raise UsageError(f"mix: {part.name}: no row that can be drawn, of {len(part.source)} rows of the source")

    def of(self, draw: int, seed: int) -> tuple[int, int | None]:
        """Rows of the two views; None for the second where there is no pair."""
        row = int(self.first[draw])
        if self.is_paired:
            return row, row + 1
        return row, None if self.pairs is None else self.pairs.partner(row, seed)

    def read(self, rows: tuple[int, int | None], tally: Tally) -> tuple[Record, Record | None]:
        """The records of both views; a row that stands for both is read once.

        Raises:
            BadData, RowError, StoreCorrupt: the data of one is bad.
            OSError: reading failed again and again.
        """
        names = [name for name in ("image", "mask", "sentence") if name in self.source.schema]
        read = getattr(self.source, "read", None)

        def one(row: int) -> Record:
            return dict(self.source[row]) if read is None else dict(read(row, names))

        first = read_with_retries(lambda: one(rows[0]), tally)
        second = rows[1]
        return first, None if second is None else read_with_retries(lambda: one(second), tally)


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
        quarantine: part name -> keys of first rows known to be bad, and why. Such a row is not read again; what stands in
            for it is the same, known or not.

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
        for part in parts:
            lacking = {"image", "mask"} - set(part.source.schema)
            if lacking:
                raise UsageError(
                    f"mix: {part.name}: expected a source with image and mask, it lacks {', '.join(lacking)}"
                )
        if max_attempts < 1:
            raise UsageError(f"mix: max_attempts: expected 1 or more, got {max_attempts}")
        self._rows = [_Rows(part) for part in parts]
        planned = [
            Part(name=part.name, num_rows=len(rows.first), weight=part.weight, repeats=part.repeats)
            for part, rows in zip(parts, self._rows, strict=True)
        ]
        self.plan = Mix(planned, seed=seed, ends=ends, epoch_rows=epoch_rows)
        self.parts, self.views, self.max_attempts = tuple(parts), views or Views(), max_attempts
        self.quarantine = {name: dict(keys) for name, keys in (quarantine or {}).items()}
        self.schema = Schema([*self.views.schema.fields, *PROVENANCE.fields])
        settings = [(part.name, part.max_rows, part.max_images, part.pairs) for part in parts]
        order = repr((self.plan.identity(), settings, self.views, max_attempts))
        self.plan_digest = xxhash.xxh3_128_hexdigest(order.encode())
        """Of all settings that the samples depend on."""
        self.data_digests = {part.name: rows.digest for part, rows in zip(parts, self._rows, strict=True)}
        """Of the data of each part."""

    @property
    def keys(self) -> Sequence[str]:
        """`<digest>:<position>`: what `rebuild` takes."""
        return Lookup(len(self), self.key)

    def key(self, position: int) -> str:
        """Names a sample for `rebuild`."""
        return f"{self.digest()[:16]}:{position}"

    def digest(self) -> str:
        """Identity of plan and data."""
        return xxhash.xxh3_128_hexdigest(repr((self.plan_digest, sorted(self.data_digests.items()))).encode())

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
        if position < 0:
            raise IndexError(f"position {position}: expected 0 or more")
        drawn = self.plan.draw(position, position + 1)
        number, planned, epoch = (int(values[0]) for values in drawn)
        rows, seed = self._rows[number], self.plan.sample_seed(position)
        failures: list[dict[str, object]] = []
        tally = Tally()
        for attempt in range(self.max_attempts):
            draw = self.plan.stand_in(number, position, attempt) if attempt else planned
            pair = rows.of(draw, seed)
            key = rows.source.keys[pair[0]]
            known = self.quarantine.get(rows.part.name, {}).get(key)
            if known is not None:
                failures.append({"key": key, "error": known, "known": True})
                continue
            try:
                first, second = rows.read(pair, tally)
                sample = self.views.sample(first, second)
            except BAD_ROW as error:
                failures.append({"key": key, "error": type(error).__name__, "message": str(error)[:500]})
                continue
            key2 = key if pair[1] is None else rows.source.keys[pair[1]]
            numbers = {"row": draw, "planned_row": planned, "epoch": epoch, "position": position, "attempt": attempt,
                       "retries": tally.retried}  # fmt: skip
            sample.update({name: np.asarray(value, np.int64) for name, value in numbers.items()})
            texts = {"source": rows.part.name, "key1": key, "key2": key2, "failures": _listed(failures)}
            return {**sample, **texts, "seed": np.asarray(seed, np.uint64)}
        reasons = Counter(str(failure["error"]) for failure in failures)
        raise BadData(
            f"{rows.part.name}: all {self.max_attempts} rows tried at position {position} are bad "
            f"({', '.join(f'{name}: {count}' for name, count in reasons.most_common())}); "
            f"the last: {failures[-1]['key']}: {failures[-1].get('message', 'in quarantine')}"
        )

    def explain(self, position: int) -> dict[str, object]:
        """What the plan says of a position, without reading anything but keys: plain values."""
        number, planned, epoch = (int(values[0]) for values in self.plan.draw(position, position + 1))
        rows, seed = self._rows[number], self.plan.sample_seed(position)
        stand_ins = [self.plan.stand_in(number, position, attempt) for attempt in range(1, self.max_attempts)]
        first, second = rows.of(planned, seed)
        known = self.quarantine.get(rows.part.name, {})
        return {
            "position": position,
            "key": self.key(position),
            "source": rows.part.name,
            "row": planned,
            "epoch": epoch,
            "mix_epoch": position // len(self),
            "seed": seed,
            "key1": rows.source.keys[first],
            "key2": rows.source.keys[first if second is None else second],
            "is_pair": second is not None,
            "in_quarantine": rows.source.keys[first] in known,
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
    return json.dumps(failures, ensure_ascii=False) if failures else ""


def _pairs(part: MixPart) -> Pairs | None:
    if part.pairs is None:
        return None
    from penstock.track_tables import track_table

    if VIEW in part.source.schema:
        raise UsageError(f"mix: {part.name}: its rows are pairs already; leave out the pair rule")
    return Pairs(track_table(part.source), part.pairs)


def _end_of_groups(part: MixPart, count: int) -> int:
    """First row after so many groups."""
    groups = getattr(part.source, "groups", None)
    if groups is None:
        raise UsageError(f"mix: {part.name}: max_images: the source has no groups; use max_rows")
    return len(part.source) if count >= len(groups) else int(groups[count].start)
