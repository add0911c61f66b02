"""What every launcher does with batches, wherever its workers are: hand them out, and find the row that kills a worker."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from penstock.work import Finished, Order

Batch = Sequence[Order]
Results = Sequence[Finished]

MAX_ATTEMPTS = 2
"""A single row whose worker died is tried once more, alone: the first death may have been another row's doing."""

_END: Batch = ()


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What became of a batch without results: its worker died or ran out of time while it worked on it."""

    reason: str
    timed_out: bool = False
    blameless: bool = False
    """Whether something else than the batch may well have ended the worker: it is given out whole once more."""


class Crew(Protocol):
    """Workers that take batches."""

    @property
    def has_room(self) -> bool:
        """Whether a worker would take one more batch now."""
        ...

    def submit(self, batch: Batch) -> None:
        """Gives a batch to a worker; called when there is room."""
        ...

    def wait(self) -> list[tuple[Batch, Results | Lost | None]]:
        """Waits until something has happened; batches that ended are given back. May be empty.

        None: nobody began it, and it is to be given out again.
        """
        ...


def drive(crew: Crew, batches: Iterator[Batch | None]) -> Iterator[tuple[Batch, Results]]:
    """Hands batches to a crew and gives each back with its results; see `penstock.jobs.Launcher`.

    A batch that was lost is halved until the one row is left that loses its worker: it gets a failure as its result.
    """
    again: deque[Batch] = deque()
    flying = 0
    ended = False
    while flying or again or not ended:
        drain = False
        while not drain and crew.has_room:
            if again:
                batch: Batch | None = again.popleft()
            else:
                batch = None if ended else next(batches, _END)
            if batch is _END:
                ended = True
                batch = None
            if batch is None:
                drain = True
            else:
                crew.submit(batch)
                flying += 1
        for batch, outcome in crew.wait():
            flying -= 1
            if outcome is None:
                again.append(batch)
            elif isinstance(outcome, Lost):
                failures, retries = _after_loss(batch, outcome)
                again += retries
                if failures:
                    yield batch, failures
            else:
                yield batch, outcome


def _after_loss(batch: Batch, lost: Lost) -> tuple[Results, list[Batch]]:
    """The failure of a single row, or the batches to try instead."""
    if len(batch) > 1:
        if lost.blameless and batch[0].attempt == 1:  # whole, so that its rows keep each other company
            return (), [[replace(order, attempt=2) for order in batch]]
        half = len(batch) // 2
        return (), [_alone(part) if len(part) == 1 else part for part in (batch[:half], batch[half:])]
    (order,) = batch
    if order.attempt < MAX_ATTEMPTS and not lost.timed_out:
        return (), [[replace(order, attempt=order.attempt + 1)]]
    name = "TimeoutError" if lost.timed_out else "WorkerDied"
    return [Finished(error=name, message=f"{order.candidate.key}: {lost.reason}, {order.attempt} attempts")], []


def _alone(batch: Batch) -> Batch:
    return [replace(order, attempt=1) for order in batch]
