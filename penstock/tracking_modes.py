"""Which frames of a video become templates and search frames: the modes of the trackers' samplers, for many videos at once.

Ranges are of rows; their upper ends are excluded, as in the original code: with max_gap = 200 a search frame lies at most
199 rows after its template. Frames are drawn with replacement.

    causal: a base frame, visible, with room for the other templates before it and for the search frames behind it; the
        other templates from [base - max_gap, base), the search frames from (base, base + max_gap).
    interval: a base frame, visible, anywhere; the other templates and the search frames from
        [base - max_gap, base + max_gap).
    trident: a template and a search frame, each any visible frame; then, for each gap of max_gap, one more template
        between the search frame and that gap towards the first template: [search, search + gap) if the first template is
        not before it, else [search - gap, search). It is visible.
    trident_pro: the same, but those further templates may be any frame.
    stark: the same, but they may be any frame with a valid box.

A video of more than 2 * (templates + search frames) visible frames always has a base frame. Where a further range holds no
fitting frame all is drawn again; causal and interval widen max_gap by `GROWTH` each time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penstock.tracking_random import below, words
from penstock.tracking_rows import RowSet

GROWTH = 5
WIDENING = ("causal", "interval")
MODES = (*WIDENING, "trident", "trident_pro", "stark")
FITS, NO_TEMPLATE, NO_SEARCH = range(3)
CAUSES = {
    NO_TEMPLATE: "no fitting frame in the range of a further template",
    NO_SEARCH: "no visible frame in the range of the search frame",
}
_FRAMES = 3
"""Label of all random numbers of this module."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to choose."""

    mode: str
    gaps: tuple[int, ...]
    """max_gap: one number for causal and interval, one per further template for the others."""
    num_template: int
    """Templates drawn."""
    num_search: int
    sort: bool
    """Templates ascending, and search frames ascending."""
    rounds: int
    """How often all is drawn again at most, the first time included."""


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Where to choose: the videos of n steps."""

    start: np.ndarray
    """(n,) int64 first row."""
    stop: np.ndarray
    """(n,) int64 one past the last row."""
    states: np.ndarray
    """(n,) uint64 of the steps."""
    attempt: int

    def take(self, places: np.ndarray) -> "Videos":
        """Some of them."""
        return Videos(
            start=self.start[places], stop=self.stop[places], states=self.states[places], attempt=self.attempt
        )

    def words(self, round_number: int, number: int, count: int = 1) -> list[np.ndarray]:
        """`count` random numbers per step, from the number given on."""
        labels = (_FRAMES, self.attempt, round_number)
        return [words(self.states, *labels, number + each) for each in range(count)]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was chosen for n steps."""

    templates: np.ndarray
    """(n, num_template) int64 rows."""
    searches: np.ndarray
    """(n, num_search) int64 rows."""
    gap: np.ndarray
    """(n,) int64: by how much max_gap grew."""
    cause: np.ndarray
    """(n,) int64: `FITS`, or why there is no such choice; then the rest means nothing."""


_Round = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Templates, searches, cause."""


def choose(videos: Videos, choice: Choice, visible: RowSet, valid: RowSet) -> Chosen:
    """Frames for each step.

    Args:
        videos: where; of more than 2 * (templates + search frames) visible frames.
        choice: how.
        visible: rows with the target in sight.
        valid: rows with a box; only stark asks for it.
    """
    count = len(videos.start)
    templates = np.zeros((count, choice.num_template), np.int64)
    searches = np.zeros((count, choice.num_search), np.int64)
    gap, cause = np.zeros(count, np.int64), np.zeros(count, np.int64)
    draw = _ROUNDS.get(choice.mode, _trident)
    pending, part = np.arange(count), videos
    for number in range(choice.rounds):
        found = draw(part, choice, number, visible, valid)
        templates[pending], searches[pending], cause[pending] = found
        gap[pending] = GROWTH * number if choice.mode in WIDENING else 0
        left = found[2] != FITS
        if not left.any():
            break
        pending = pending[left]
        part = videos.take(pending)
    if choice.sort:
        templates.sort(axis=1)
        searches.sort(axis=1)
    return Chosen(templates=templates, searches=searches, gap=gap, cause=cause)


def _causal(videos: Videos, choice: Choice, number: int, visible: RowSet, valid: RowSet) -> _Round:
    reach, more = choice.gaps[0] + GROWTH * number, choice.num_template - 1
    base, _ = visible.sample(videos.start + more, videos.stop - choice.num_search, videos.words(number, 0))
    at = base[:, 0]
    others, has_others = visible.sample(np.maximum(at - reach, videos.start), at, videos.words(number, 1, more))
    numbers = videos.words(number, 1 + more, choice.num_search)
    searches, has_searches = visible.sample(at + 1, np.minimum(at + reach, videos.stop), numbers)
    return np.hstack([base, others]), searches, _cause(has_others, has_searches)


def _interval(videos: Videos, choice: Choice, number: int, visible: RowSet, valid: RowSet) -> _Round:
    reach, more = choice.gaps[0] + GROWTH * number, choice.num_template - 1
    base, _ = visible.sample(videos.start, videos.stop, videos.words(number, 0))
    low, high = np.maximum(base[:, 0] - reach, videos.start), np.minimum(base[:, 0] + reach, videos.stop)
    others, has_others = visible.sample(low, high, videos.words(number, 1, more))
    searches, has_searches = visible.sample(low, high, videos.words(number, 1 + more, choice.num_search))
    return np.hstack([base, others]), searches, _cause(has_others, has_searches)


def _trident(videos: Videos, choice: Choice, number: int, visible: RowSet, valid: RowSet) -> _Round:
    pair, _ = visible.sample(videos.start, videos.stop, videos.words(number, 0, 2))
    template, search = pair[:, 0], pair[:, 1]
    is_behind = template >= search
    columns, has_all = [template], np.ones(len(search), bool)
    for place, gap in enumerate(choice.gaps):
        low = np.where(is_behind, search, np.maximum(search - gap, videos.start))
        high = np.where(is_behind, np.minimum(search + gap, videos.stop), search)
        numbers = videos.words(number, 2 + place)
        if choice.mode == "trident_pro":
            columns.append(low + below(numbers[0], np.maximum(high - low, 1)))
            continue
        further, found = (valid if choice.mode == "stark" else visible).sample(low, high, numbers)
        columns.append(further[:, 0])
        has_all &= found
    return np.stack(columns, axis=1), search[:, None], _cause(has_all, has_all)


def _cause(has_templates: np.ndarray, has_searches: np.ndarray) -> np.ndarray:
    return np.where(has_templates, np.where(has_searches, FITS, NO_SEARCH), NO_TEMPLATE)


_ROUNDS: dict[str, Callable[[Videos, Choice, int, RowSet, RowSet], _Round]] = {
    "causal": _causal,
    "interval": _interval,
}
