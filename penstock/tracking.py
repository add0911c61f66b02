"""Tracking: the sampler of trackers' training, as a pure function of (settings, seed, step)."""

import operator
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
import xxhash

from penstock.draws import Draw, History, TrackTable
from penstock.errors import BadData, StateMismatch, UsageError
from penstock.tracking_columns import Draws, Histories
from penstock.tracking_history import history_ids
from penstock.tracking_modes import CAUSES, FITS, GROWTH, WIDENING, Choice, Videos, choose
from penstock.tracking_pool import Pool, table_digest
from penstock.tracking_random import below, chances, states, words
from penstock.tracking_settings import check_gaps, check_settings, check_weights
from penstock.tracking_shares import Shares

CHUNK = 8192
"""Steps computed at a time."""
BLOCK = 64
"""Steps that `draw` computes at once, as one costs nearly as much; steps are mostly asked for one after another."""
MAX_STEPS = 1 << 62
_OTHERS = 1000
"""Draws of another sequence for a negative, at most."""
_SEED, _SEQUENCE, _POSITIVE, _NEGATIVE = 0, 1, 2, 4  # labels of random numbers; tracking_modes has 3


class Tracking:
    """Draws template and search frames for training a tracker, as the samplers of PyTracking, STARK, OSTrack and ODTrack do.

    A step's draw depends on the settings, the seed and the step, on nothing else: it is the same in any process, thread,
    batch or order, and `rebuild` makes it from its key. The source is decided by step (`shares`), the sequence is uniform
    over those that can be drawn: videos of at least `min_frames` rows, more than 2 * (num_search + num_template) of them
    visible; pictures with a valid box. Frames come by `mode`, see `tracking_modes`; a single picture is repeated. Distances
    are rows of the table: of a source annotated at every fourth frame, one row is four frames. Where no frames fit after
    `max_growth`, another sequence of the source is drawn, `max_attempts` times.

    Histories are of `history_ids`. Of a single picture every step is its row: the last backward one and the first forward
    one stand for it, all others are padded.

    Args:
        tables: the annotations of the sources.
        mode: "causal", "interval", "trident", "trident_pro" or "stark".
        max_gap: one number of rows for causal and interval; for the others a list, one per further template (an integer is
            refused there: the original fails on it with a TypeError).
        num_search: search frames; 1 in trident, trident_pro and stark.
        num_template: templates. In trident, trident_pro and stark there are always 1 + len(max_gap), and this number only
            says which sequences can be drawn, as in the original.
        weights: of the sources, 0 or more; None for their numbers of sequences, as in the original.
        samples_per_epoch: `len()`; steps go on beyond it.
        seed: 0..2**64-1.
        train_cls: also draw negatives (trident, trident_pro, stark). With probability 1 - pos_prob the search frame is a
            row of the same video in which the target is not visible; where there is none, and for pictures, any row (with
            stark: any valid row) of another sequence, its source drawn by weight.
        pos_prob: probability of a positive.
        min_interval: steps of the backward history.
        future_steps: steps of the forward history.
        max_growth: by how much max_gap may grow. Modes that do not widen draw `max_growth // 5 + 1` times instead.
        max_attempts: sequences tried per step.
        min_frames: see above.
        order: "ostrack" leaves templates and search frames as drawn (the base frame first); "odtrack" sorts each (causal
            and interval). The search range begins after the base frame in both: it is the latest template.
        shares: "exact" or "random", see `Shares`.

    Raises:
        UsageError: a setting is out of range; weights are as many as tables are not, negative, not finite or all 0; a
            table is contradictory, or, with a weight above 0, without any sequence that can be drawn.
    """

    def __init__(
        self,
        tables: Sequence[TrackTable],
        *,
        mode: Literal["causal", "interval", "trident", "trident_pro", "stark"] | str = "causal",
        max_gap: int | Sequence[int] = 200,
        num_search: int = 1,
        num_template: int = 1,
        weights: Sequence[float] | None = None,
        samples_per_epoch: int = 60_000,
        seed: int = 0,
        train_cls: bool = False,
        pos_prob: float = 0.5,
        min_interval: int = 50,
        future_steps: int = 1,
        max_growth: int = 1000,
        max_attempts: int = 100,
        min_frames: int = 20,
        order: Literal["ostrack", "odtrack"] | str = "ostrack",
        shares: Literal["exact", "random"] | str = "exact",
    ) -> None:
        self.tables = list(tables)
        given = {name: value for name, value in locals().items() if name not in ("self", "tables")}
        self.settings = check_settings(given)
        gaps, found = check_gaps(mode, max_gap), check_weights(self.tables, weights)
        self.seed, self.samples_per_epoch, self.max_attempts = int(seed), int(samples_per_epoch), int(max_attempts)
        self.min_interval, self.future_steps = int(min_interval), int(future_steps)
        self.pos_prob = float(pos_prob) if train_cls else 1.0
        self._choice = Choice(
            mode=mode,
            gaps=gaps,
            num_template=num_template if mode in WIDENING else 1 + len(gaps),
            num_search=num_search,
            sort=order == "odtrack",
            rounds=max_growth // GROWTH + 1,
        )
        self._pool = Pool(
            self.tables,
            [weight > 0 for weight in found],
            visible_above=2 * (num_search + num_template),
            min_frames=min_frames,
            with_valid=mode == "stark",
            with_invisible=self.pos_prob < 1,
        )
        if self.pos_prob < 1 and self._pool.eligible_counts.sum() < 2:
            raise UsageError("Tracking: train_cls: expected two sequences that can be drawn or more, got one")
        self._shares = Shares(found, self.seed, shares)
        self._last: tuple[int, Draws, Histories] | None = None
        self._identity = self._describe()
        self._digest = xxhash.xxh3_64_hexdigest(self._identity.encode("utf-8", "surrogateescape"))

    def __len__(self) -> int:
        return self.samples_per_epoch

    def draw(self, step: int) -> Draw:
        """The draw of a step, 0 or more; steps go on beyond `len()`.

        Raises:
            UsageError: the step is negative.
            BadData: no sequence of its source gave frames; source, sequence, mode and cause are named.
        """
        place, columns, histories = self._around(operator.index(step))
        return Draw(
            step=int(step),
            seed=int(columns.seed[place]),
            key=f"{int(step)}@{self._digest}",
            source=int(columns.source[place]),
            sequence=int(columns.sequence[place]),
            template_rows=columns.template_rows[place].copy(),
            search_source=int(columns.search_source[place]),
            search_sequence=int(columns.search_sequence[place]),
            search_rows=columns.search_rows[place].copy(),
            backward=_history(histories.backward[place], histories.backward_padded[place]),
            forward=_history(histories.forward[place], histories.forward_padded[place]),
            positive=bool(columns.positive[place]),
            gap=int(columns.gap[place]),
            attempts=int(columns.attempts[place]),
        )

    def draws(self, start: int, stop: int) -> Draws:
        """The draws of the steps start..stop-1, without histories.

        Raises:
            UsageError, BadData: as `draw`.
        """
        if not 0 <= start <= stop <= MAX_STEPS:
            raise UsageError(f"Tracking.draws: expected 0 <= start <= stop, got {start}, {stop}")
        cuts = range(start, max(stop, start + 1), CHUNK)
        parts = [self._chunk(np.arange(cut, min(cut + CHUNK, stop))) for cut in cuts]
        if len(parts) == 1:
            return parts[0]
        return Draws(
            **{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Draws)}
        )

    def histories(self, draws: Draws) -> Histories:
        """The histories of draws of this sampler."""
        offset = self._pool.offsets[draws.source]
        start, stop = (rows - offset for rows in self._pool.rows_of(draws.source, draws.sequence))
        first, search = draws.template_rows.min(axis=1) - start, draws.history_search - start
        found = history_ids(first, search, stop - start, steps=self.min_interval, future=self.future_steps)
        backward, backward_padded, forward, forward_padded = found
        pictures = ~self._pool.is_video[draws.source]
        backward_padded[pictures, -1] = False
        base = start[:, None]
        return Histories(
            backward=backward + base,
            backward_padded=backward_padded,
            forward=forward + base,
            forward_padded=forward_padded,
        )

    def rebuild(self, key: str) -> Draw:
        """The draw that bears a key.

        Raises:
            UsageError: the text is no key.
            StateMismatch: it is the key of a sampler with other settings or other annotations.
        """
        step, _, digest = key.partition("@")
        if not (step.isascii() and step.isdigit() and len(digest) == len(self._digest)):
            raise UsageError(f"Tracking.rebuild: expected a key such as '12@{self._digest}', got {key!r}")
        if digest != self._digest:
            raise StateMismatch(
                f"Tracking.rebuild: the key {key!r} is of the sampler {digest}, this one is {self._digest}: the settings, "
                f"the seed or the annotations differ. This one: {self._identity}"
            )
        return self.draw(int(step))

    def identity(self) -> str:
        """Everything the draws depend on, as text: settings, weights, and a digest of each table's annotations."""
        return self._identity

    def digest(self) -> str:
        """A 64-bit hash of `identity`, 16 hexadecimal digits; part of every key."""
        return self._digest

    @property
    def shares(self) -> np.ndarray:
        """(sources,) float64: the share of the steps that each source has."""
        return self._shares.weights

    @property
    def num_template(self) -> int:
        """Templates per draw."""
        return self._choice.num_template

    @property
    def nbytes(self) -> int:
        """Bytes held beside the tables."""
        return self._pool.nbytes + self._shares.nbytes

    def eligible(self, source: int) -> np.ndarray:
        """Numbers of the sequences of a source that can be drawn, ascending; empty for a source of weight 0."""
        return self._pool.eligible(source)

    def __repr__(self) -> str:
        return self._identity

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.tables, dict(self.settings), self._digest)

    def _describe(self) -> str:
        """`identity`, of the settings that the draws depend on."""
        unused = {"samples_per_epoch", "weights", *(() if self.settings["train_cls"] else ("pos_prob",))}
        named = {name: value for name, value in self.settings.items() if name not in unused}
        named["max_gap"] = list(self._choice.gaps)
        named["weights"] = self._shares.weights.tolist()
        settings = ", ".join(f"{name}={value!r}" for name, value in named.items())
        tables = ", ".join(f"{table.name}:{table_digest(table)}" for table in self.tables)
        return f"Tracking-1({settings}, tables=[{tables}])"

    def _around(self, step: int) -> tuple[int, Draws, Histories]:
        """Draws of a block of steps, kept for the next call, and the place of the step in them."""
        if not 0 <= step < MAX_STEPS:
            raise UsageError(f"Tracking.draw: expected a step of 0 or more, got {step}")
        number, place = divmod(step, BLOCK)
        last = self._last  # one read: other threads may replace it
        if last is None or last[0] != number:
            try:
                draws = self.draws(number * BLOCK, (number + 1) * BLOCK)
            except BadData:  # perhaps of another step
                draws = self.draws(step, step + 1)
                return 0, draws, self.histories(draws)
            last = self._last = (number, draws, self.histories(draws))
        return place, last[1], last[2]

    def _chunk(self, steps: np.ndarray) -> Draws:
        count, of = len(steps), states(self.seed, steps)
        source = self._shares.sources(steps)
        sequence, gap, attempts = (np.zeros(count, np.int64) for _ in range(3))
        templates = np.zeros((count, self._choice.num_template), np.int64)
        searches = np.zeros((count, self._choice.num_search), np.int64)
        pending = np.arange(count)
        for attempt in range(self.max_attempts):
            sequence[pending] = self._pool.pick(source[pending], words(of[pending], _SEQUENCE, attempt))
            start, stop = self._pool.rows_of(source[pending], sequence[pending])
            templates[pending], searches[pending] = start[:, None], start[:, None]
            attempts[pending] = attempt + 1
            in_video = np.flatnonzero(self._pool.is_video[source[pending]])
            videos = Videos(start=start, stop=stop, states=of[pending], attempt=attempt).take(in_video)
            chosen = choose(videos, self._choice, self._pool.visible, self._pool.valid)
            where = pending[in_video]
            templates[where], searches[where], gap[where] = chosen.templates, chosen.searches, chosen.gap
            pending = where[chosen.cause != FITS]
            if not pending.size:
                break
        else:
            cause = int(chosen.cause[chosen.cause != FITS][0])
            raise self._impossible(int(steps[pending[0]]), int(source[pending[0]]), int(sequence[pending[0]]), cause)
        history = searches.max(axis=1)
        search_source, search_sequence, positive = self._negatives(of, source, sequence, searches)
        is_here = (search_source == source) & (search_sequence == sequence)
        history = np.where(is_here, searches.max(axis=1), history) - self._pool.offsets[source]
        return Draws(
            step=steps,
            seed=words(of, _SEED),
            source=source,
            sequence=sequence,
            template_rows=templates - self._pool.offsets[source][:, None],
            search_source=search_source,
            search_sequence=search_sequence,
            search_rows=searches - self._pool.offsets[search_source][:, None],
            history_search=history,
            positive=positive,
            gap=gap,
            attempts=attempts,
        )

    def _negatives(
        self, of: np.ndarray, source: np.ndarray, sequence: np.ndarray, searches: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Puts other rows into `searches` where a step is a negative; source and sequence of the search frames, and
        which are positive."""
        search_source, search_sequence = source.copy(), sequence.copy()
        if self.pos_prob == 1:
            return search_source, search_sequence, np.ones(len(source), bool)
        positive = chances(words(of, _POSITIVE)) < self.pos_prob
        pending = np.flatnonzero(~positive)
        start, stop = self._pool.rows_of(source[pending], sequence[pending])
        rows, found = self._pool.invisible.sample(start, stop, [words(of[pending], _NEGATIVE, 0)])
        searches[pending[found]] = rows[found]
        pending = pending[~found]
        for attempt in range(1, _OTHERS):
            if not pending.size:
                break
            here = of[pending]
            search_source[pending] = self._shares.drawn(words(here, _NEGATIVE, attempt, 0))
            chosen = self._pool.pick(search_source[pending], words(here, _NEGATIVE, attempt, 1))
            search_sequence[pending] = chosen
            start, stop = self._pool.rows_of(search_source[pending], chosen)
            number = words(here, _NEGATIVE, attempt, 2)
            rows = start + below(number, stop - start)
            if self._choice.mode == "stark":
                valid, found = self._pool.valid.sample(start, stop, [number])
                rows = np.where(found, valid[:, 0], rows)  # a picture is not among them
            searches[pending, 0] = rows
            pending = pending[(search_source[pending] == source[pending]) & (chosen == sequence[pending])]
        if pending.size:
            name = self.tables[int(source[pending[0]])].name
            raise BadData(
                f"Tracking: {name}: train_cls: no other sequence came up in {_OTHERS} draws; weights: {self.shares}"
            )
        return search_source, search_sequence, positive

    def _impossible(self, step: int, source: int, sequence: int, cause: int) -> BadData:
        table, choice = self.tables[source], self._choice
        grown = f", grown by up to {(choice.rounds - 1) * GROWTH}" if choice.mode in WIDENING else ""
        return BadData(
            f"Tracking: step {step}: {table.name}: none of {self.max_attempts} sequences drawn gave frames for mode "
            f"{choice.mode}; the last was {table.names[sequence]}: {CAUSES[cause]} (max_gap {list(choice.gaps)}{grown}). "
            f"Raise max_gap, max_growth or max_attempts, or leave such sequences out"
        )


def _reopen(tables: Sequence[TrackTable], settings: dict[str, object], digest: str) -> Tracking:
    sampler = Tracking(tables, **settings)  # type: ignore[arg-type]  # as they were given
    if sampler.digest() != digest:
        raise StateMismatch(
            f"Tracking: the annotations changed since the sampler was pickled: it was {digest}, now it is {sampler!r}"
        )
    return sampler


def _history(rows: np.ndarray, padded: np.ndarray) -> History:
    return History(rows=rows.copy(), padded=padded.copy())
