"""Job: a stage run over offered rows into a sink; resumable, counted, budgeted."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from penstock.errors import BudgetExceeded
from penstock.report import Budget, Outcome, Report
from penstock.source import Candidate, Offers
from penstock.store.commit import Admission, Commit, origin_hash
from penstock.store.write import RowWriter, Ticket
from penstock.work import Finished, Order, Stage, Work

HOPELESS_ROWS = 100
"""A run whose first so many rows all failed stops: something is wrong with all of them."""


class Sink(Protocol):
    """Where rows go: `StoreSink`, `V1Sink`."""

    def writer(self) -> RowWriter:
        """What a worker writes rows with; pickles."""
        ...

    def admit(
        self, candidates: Sequence[Candidate], *, retry_failed: bool = False, grow: bool = False
    ) -> list[Admission]:
        """Finds or plans the row of each candidate, in order."""
        ...

    def enter(self, ticket: Ticket) -> Admission:
        """Takes the claim that a ticket needs, right before its row is computed."""
        ...

    def recompute(self, candidate: Candidate) -> Ticket | None:
        """Leave to replace a done row whose input has changed; None if another driver holds it."""
        ...

    def commit(self, commit: Commit) -> None:
        """Takes one finished row; flushes now and then."""
        ...

    def flush(self) -> None:
        """Makes what was taken outlive a kill, or a power cut."""
        ...

    def close(self, *, complete: bool) -> None:
        """Flushes, seals what is whole, releases every claim."""
        ...

    def release(self) -> None:
        """Releases every claim without a flush. Safe to call twice."""
        ...

    @property
    def wants_drain(self) -> bool:
        """Whether rows in flight should finish before more are handed out."""
        ...

    @property
    def held(self) -> Mapping[str, str]:
        """Parts that another driver was seen to hold, and who that is."""
        ...


class Launcher(Protocol):
    """Runs a work's calls somewhere. Truth is the set of committed rows, so any order of results is right."""

    def run(
        self, work: Work, batches: Iterator[Sequence[Order] | None]
    ) -> Iterator[tuple[Sequence[Order], Sequence[Finished]]]:
        """Pulls batches, a bounded number ahead, and gives each back with its results.

        A None among the batches asks to finish what is in flight before more is pulled.
        """
        ...


@dataclass(kw_only=True)
class Job:
    """One run of a stage over offered rows into a sink."""

    offers: Offers
    stage: Stage
    sink: Sink
    launcher: Launcher
    report: Report
    budget: Budget | None = None
    """None: every failure counts against the exit code, and none stops the run but a hopeless beginning."""
    retry_failed: bool = False
    is_stream: bool = False
    """Whether the input can be read only once and in order."""
    max_rows: int | None = None
    block_rows: int = 1 << 16
    """Rows admitted at once where the input has random access."""
    device: str = "cpu"
    on_progress: Callable[[Report], None] = lambda report: None
    stop: Callable[[], str] = lambda: ""
    """Asked between batches; a non-empty answer (a signal's name) ends the run after the rows in hand."""
    _again: deque[Order] = field(default_factory=deque)
    _in_hand: int = 0
    """Orders that were taken up and have no result yet: handed out, or waiting for others to make up a batch."""
    _ended: bool = False

    def run(self) -> Report:
        """Runs until the input ends, the budget is spent, or `stop` says so.

        Raises:
            BudgetExceeded: more rows failed than allowed; what was done is kept and the report is filled in.
            OutputFull: no room left; what was committed is kept.
        """
        started = time.monotonic()
        offers = None if self.is_stream else self.offers
        work = Work(offers=offers, stage=self.stage, writer=self.sink.writer(), device=self.device)
        try:
            for orders, results in self.launcher.run(work, self._batches()):
                for order, finished in zip(orders, results, strict=True):
                    self._take(order, finished)
                self._in_hand -= len(orders)
                self.report.seconds = time.monotonic() - started
                self.on_progress(self.report)
                self._check_budget()
            self.sink.close(complete=self._ended)
        except BudgetExceeded:
            self.sink.close(complete=False)
            raise
        finally:
            self.sink.release()
            self.report.seconds = time.monotonic() - started
            self.report.problems = [vars(problem) for problem in self.offers.problems]
            if self.sink.held:
                self.report.notes["held"] = dict(self.sink.held)
        return self.report

    def _batches(self) -> Iterator[Sequence[Order] | None]:
        """Batches by place in the input, so that a row has the same companions in every run, interrupted or not.

        Orders without a place, rows that changed and comparisons, make up batches of their own, apart from each other:
        a row costs its share of a call, and rows of one picture are read at once.
        """
        batch: list[Order] = []
        rows: list[Order] = []
        comparisons: list[Order] = []
        number = -1
        for order in self._orders():
            if order is None:  # results are waited for, so nothing may stay behind; a comparison may add to the rows
                yield from self._gathered(comparisons or rows, 1)
                yield None
                continue
            if order.place < 0:
                self._in_hand += 1
                gathering = comparisons if order.ticket is None else rows
                gathering.append(order)
                yield from self._gathered(gathering, self.stage.batch_size)
                continue
            if order.place // self.stage.batch_size != number:
                yield from self._whole(batch)
                batch, number = [], order.place // self.stage.batch_size
            batch.append(order)
            if (order.place + 1) % self.stage.batch_size == 0:
                yield from self._whole(batch)
                batch = []
        if self._ended:  # a run that was stopped leaves a begun batch to the next one, which has all of it
            yield from self._whole(batch)
        yield from self._gathered(rows, 1)
        yield from self._gathered(comparisons, 1)

    def _gathered(self, orders: list[Order], least: int) -> Iterator[list[Order]]:
        """All orders as a batch, if there are so many of them; the list is empty then. They are in hand already."""
        if len(orders) >= least:
            batch, orders[:] = orders[:], []
            yield batch

    def _whole(self, batch: list[Order]) -> Iterator[list[Order]]:
        if any(order.ticket for order in batch):  # companions alone need not be computed
            self._in_hand += len(batch)
            yield batch

    def _orders(self) -> Iterator[Order | None]:
        first = 0
        for block in self._blocks():
            admissions = self.sink.admit(block, retry_failed=self.retry_failed, grow=self.is_stream)
            self.report.planned += len(block)
            for place, (candidate, admission) in enumerate(zip(block, admissions, strict=True), first):
                order = self._admit(candidate, admission, place)
                while order is not None and self.sink.wants_drain and self._in_hand:
                    yield None
                yield from self._enter(order)
                if admission.verdict == "compare":
                    yield from filter(None, [self._companion(candidate, place)])
                while self._again:
                    yield from self._enter(self._again.popleft())
                reason = self.stop()
                if reason:
                    self.report.interrupted = reason
                    return
            first += len(block)
        while self._in_hand or self._again:  # a comparison in flight may turn into a row to compute
            if self._again:
                yield from self._enter(self._again.popleft())
            else:
                yield None
        self._ended = True

    def _blocks(self) -> Iterator[list[Candidate]]:
        size = 1 if self.is_stream else self.block_rows
        block: list[Candidate] = []
        for number, candidate in enumerate(self.offers.candidates()):
            if self.max_rows is not None and number >= self.max_rows:
                break
            block.append(candidate)
            if len(block) == size:
                yield block
                block = []
        if block:
            yield block

    def _admit(self, candidate: Candidate, admission: Admission, place: int) -> Order | None:
        self._skip(admission)
        if admission.verdict in ("done", "failed", "held"):
            return self._companion(candidate, place)
        place = -1 if admission.ticket is None else place
        return Order(candidate=candidate, ticket=admission.ticket, admission=admission, place=place)

    def _skip(self, admission: Admission) -> None:
        if admission.verdict in ("done", "failed"):
            self.report.skipped += 1
            self.report.done += admission.verdict == "done"
            self.report.failed += admission.verdict == "failed"

    def _companion(self, candidate: Candidate, place: int) -> Order | None:
        if self.stage.batch_size == 1 or candidate.failure or place < 0:
            return None
        return Order(candidate=candidate, place=place, is_companion=True)

    def _enter(self, order: Order | None) -> Iterator[Order]:
        """Takes the claim a row needs; a row that is known to be bad is committed as failed at once."""
        if order is None:
            return
        if order.ticket is None:
            yield order
            return
        entered = self.sink.enter(order.ticket)
        if entered.ticket is None:
            self._skip(entered)
            yield from filter(None, [self._companion(order.candidate, order.place)])
            return
        order = replace(order, ticket=entered.ticket)
        if order.candidate.failure:
            self._take(order, Finished(error="BadData", message=order.candidate.failure))
            return
        yield order

    def _take(self, order: Order, finished: Finished) -> None:
        if finished.fatal is not None:
            raise finished.fatal
        if order.is_companion:
            return
        if order.ticket is None:
            self._compared(order, finished)
            return
        self.sink.commit(
            Commit(
                ticket=order.ticket,
                content=finished.content,
                written=finished.written,
                error=finished.error,
                message=finished.message,
                source=order.candidate.origin,
                attempt=order.attempt,
                stage=self.stage.name,
            )
        )
        if finished.written is None:
            key, source = order.candidate.key, order.candidate.origin
            self.report.add_failure(
                Outcome(key=key, error=finished.error, message=finished.message, source=source, attempt=order.attempt)
            )
        else:
            self.report.done += 1
            self.report.bytes_written += finished.written.size

    def _compared(self, order: Order, finished: Finished) -> None:
        """The cheap key of a done row differed; now its content is known."""
        candidate, admission = order.candidate, order.admission
        assert admission is not None
        if finished.error or candidate.failure or finished.content == admission.content:
            if finished.error or candidate.failure:
                reason = candidate.failure or finished.message
                self.report.notes["unreadable_now"] = int(str(self.report.notes.get("unreadable_now", 0))) + 1
                self.report.notes.setdefault(
                    "unreadable_first", f"{candidate.key} is done, but can no longer be read: {reason}"
                )
            self.report.skipped += 1
            self.report.done += 1
            return
        if origin_hash(candidate.origin) == admission.origin:
            ticket = self.sink.recompute(candidate)
            if ticket is not None:
                self.report.notes["changed"] = int(str(self.report.notes.get("changed", 0))) + 1
                self._again.append(Order(candidate=candidate, ticket=ticket))
            return
        text = f"duplicate id {candidate.key}: a done row of that id came from another file, with other content"
        double = Candidate(
            key=f"{candidate.key}@{candidate.origin}", origin=candidate.origin, cheap=candidate.cheap, index=candidate.index,
            record=candidate.record, failure=f"{text}; this one is in {candidate.origin}",
        )  # fmt: skip
        (again,) = self.sink.admit([double], grow=True)  # one part for all of them
        fresh = self._admit(double, again, -1)
        if fresh is not None:
            self._again.append(fresh)

    def _check_budget(self) -> None:
        report = self.report
        new = sum(report.reasons.values())
        if new >= HOPELESS_ROWS and not report.bytes_written and not self.retry_failed:  # retried rows failed before
            report.interrupted = "all rows failed"
            raise BudgetExceeded(
                f"the first {new} rows all failed; first: {report.failures[0].key}: {report.failures[0].message}"
            )
        if self.budget is not None and not self.budget.allows(report.failed, max(report.planned, 1000)):
            report.interrupted = "failure budget"
            raise BudgetExceeded(f"{report.failed} of {report.planned} rows failed, the budget is {self.budget}")
