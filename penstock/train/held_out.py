"""Held-out samples of a mixture: cut off the end of each source, evaluated by all ranks together."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from penstock.draws import TrackTable
from penstock.errors import BadData, UsageError
from penstock.mix_rows import MixPart, PartRows
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.schema import Record
from penstock.source import Lookup, Source, check_index, snapshot
from penstock.train.distributed import Ranks
from penstock.train.dual_loop import evaluate_dual_loop
from penstock.train.metrics import MaskScore

_log = logging.getLogger("penstock")


class Rows:
    """Rows start..stop-1 of a source, between two groups, with what a mixture needs of a source.

    Args:
        source: with random access; tracks keep theirs.
        start, stop: rows.
    """

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.source, self.start, self.stop = source, start, stop
        self.schema = source.schema

    @property
    def keys(self) -> Sequence[str]:
        """Those of the source."""
        return Lookup(len(self), lambda row: self.source.keys[self.start + row])

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Record:
        return self.source[self.start + check_index(index, len(self))]

    def read(self, index: int, fields: Sequence[str]) -> Record:
        """Some fields of a row."""
        row = self.start + check_index(index, len(self))
        read = getattr(self.source, "read", None)
        record: Record = self.source[row] if read is None else read(row, fields)
        return {name: record[name] for name in fields}

    def digest(self) -> str:
        """Of the source, and which rows."""
        return f"{snapshot(self.source)[0]}[{self.start}:{self.stop}]"

    def track_table(self) -> TrackTable:
        """The annotations of these rows."""
        from penstock.track_tables import track_table

        table = track_table(self.source)
        first, last = np.searchsorted(table.starts, [self.start, self.stop]).tolist()
        rows = slice(self.start, self.stop)
        return replace(
            table, starts=table.starts[first : last + 1] - self.start, boxes=table.boxes[rows], valid=table.valid[rows],
            visible=table.visible[rows], frames=table.frames[rows], fps=table.fps[first:last],
            names=Lookup(last - first, lambda number: table.names[first + number]),
            categories=Lookup(last - first, lambda number: table.categories[first + number]), origin=None,
        )  # fmt: skip


class Split(NamedTuple):
    """A part in two: what is trained on, what is held out (None: nothing), and how many samples there are in each."""

    train: MixPart
    held: MixPart | None
    num_train: int
    num_held: int


def split(part: MixPart, share: float) -> Split:
    """Holds out the last groups of a part's source, after its limits; samples of one group are never on both sides.

    Args:
        part: its source has groups, as readers do.
        share: of the groups, 0..1; at least one where it is above 0 and there are two groups.

    Raises:
        UsageError: as `PartRows`: no row can be drawn; or the pair rule allows no pair.
    """
    rows = PartRows(part)
    if rows.pairs is not None and not rows.pairs.any():
        raise UsageError(f"{part.name}: no two rows of a track fit {part.pairs}; every sample would be one frame alone")
    source, first = part.source, rows.first
    groups, count = source.groups, source.group_of(int(first[-1])) + 1  # type: ignore[attr-defined]  # readers have them
    stop = groups[count - 1].stop
    held = min(max(1, round(share * count)), count - 1) if share else 0
    border = groups[count - held].start if held else stop
    num_train = bisect_left(first, border)
    if num_train in (0, len(first)):
        border, num_train = stop, len(first)
    plain = partial(replace, part, max_images=None)
    train = plain(source=_rows(source, 0, border), max_rows=num_train)
    if num_train == len(first):
        return Split(train, None, num_train, 0)
    num_held = len(first) - num_train
    return Split(train, plain(source=_rows(source, border, stop), max_rows=num_held, repeats=1), num_train, num_held)


class HeldOut:
    """Evaluates a model of the dual loop on held-out samples, each at most once, the same on any number of ranks.

    Args:
        parts: of `split`.
        views: sizes, as in training.
        samples: at most so many, as evenly from the parts as they allow, drawn at random by the seed.
        batch_size: samples that the model looks at together; at least 2, so that a caption can be swapped.
        seed: of the draw.
    """

    def __init__(self, parts: Sequence[MixPart], views: Views, *, samples: int, batch_size: int, seed: int) -> None:
        self.mixed = [Mixed([part], seed=seed, views=views) for part in parts]
        size = max(2, batch_size)
        self._batches: list[tuple[Mixed, list[int]]] = []
        for number, count in enumerate(_even([len(one) for one in self.mixed], samples)):
            pieces = min(-(-count // size), max(1, count // 2)) if count else 0  # of two at least
            places = np.array_split(np.arange(count), pieces) if pieces else []
            self._batches += [(self.mixed[number], place.tolist()) for place in places]
        self.samples = sum(len(positions) for _, positions in self._batches)
        self.has_pairs = any(one.pairing(one.parts[0].name) != "none" for one in self.mixed)

    @property
    def headline(self) -> str:
        """The metric to look at: across frames where there are pairs; "" where nothing is held out."""
        return "" if not self.samples else "cross_giou" if self.has_pairs else "same_giou"

    def evaluate(
        self, model: nn.Module, ranks: Ranks, *, cache: Callable[[str], str] | None = None
    ) -> dict[str, float]:
        """Scores over all ranks, with the model's own captions or those of a cache: same_giou, cross_giou, shuffled_giou,
        empty_giou, same_ciou, cross_ciou (see `evaluate_dual_loop`), those across frames only where there are pairs;
        `unreadable`: samples left out because they are bad data, and so is what stood in for them."""
        names = ("same", "cross", "shuffled", "empty") if self.has_pairs else ("same",)
        scores = {name: MaskScore() for name in names}
        bad: list[str] = []
        for batch in self._read(ranks, bad):
            for name, score in evaluate_dual_loop(model, [batch], cache=cache).items():
                if name in scores:
                    _add(scores[name], score)
        if bad:
            _log.warning("penstock: %d held-out samples cannot be evaluated; the first: %s", len(bad), bad[0])
        total = {name: score.over(ranks) for name, score in scores.items()}
        found = {f"{name}_giou": score.giou for name, score in total.items()}
        found |= {f"{name}_ciou": total[name].ciou for name in ("same", "cross") if name in total}
        return {**found, "unreadable": ranks.sums({"bad": len(bad)})["bad"]}

    def _read(self, ranks: Ranks, bad: list[str]) -> Iterator[Mapping[str, Any]]:
        """This rank's batches: whole ones, so that a caption is swapped with the same one on any number of ranks."""
        for mixed, positions in self._batches[ranks.rank :: ranks.world_size]:
            samples = []
            for position in positions:
                try:
                    samples.append(mixed[position])
                except BadData as error:
                    bad.append(str(error))
            if samples:
                names = ("image1", "mask1", "image2", "mask2", "is_pair")
                arrays = {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in names}
                yield {**arrays, "key1": [str(sample["key1"]) for sample in samples]}


def _rows(source: Source, start: int, stop: int) -> Source:
    return source if (start, stop) == (0, len(source)) else Rows(source, start, stop)


def _even(sizes: Sequence[int], total: int) -> list[int]:
    """At most `total` in all, and of each at most its size, as even as can be."""
    taken = [0] * len(sizes)
    for place, number in enumerate(sorted(range(len(sizes)), key=lambda one: sizes[one])):
        taken[number] = min(sizes[number], (total - sum(taken)) // (len(sizes) - place))
    return taken


def _add(into: MaskScore, score: MaskScore) -> None:
    for name, value in vars(score).items():
        setattr(into, name, getattr(into, name) + value)
