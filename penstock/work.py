"""What a worker does: fetch records, run the stage, write rows, and say how each row ended. Also the stage's protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import xxhash

from penstock.errors import OutputFull, SchemaError
from penstock.schema import Record, Schema
from penstock.source import Candidate, Offers
from penstock.store.commit import Admission
from penstock.store.write import Encoded, RowWriter, Ticket, Written, runs_of


class Stage(Protocol):
    """Records in, records out; usually holds a model. Pickles; loads what is heavy in `setup`."""

    @property
    def name(self) -> str:
        """Its name in recipes."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever the same input would give other bytes than before."""
        ...

    @property
    def bitwise(self) -> bool:
        """Whether the same input always gives the same bytes."""
        ...

    @property
    def batch_size(self) -> int:
        """Records per call, always: the last call is padded.

        Rows of a first run share a call by their places in the input, also after an interruption. A row whose input has
        changed shares one with others that have: a stage of several records per call that is `bitwise` must give a record
        the same bytes in any company and at any place of a call.
        """
        ...

    @property
    def schema(self) -> Schema:
        """The fields of the records that come out."""
        ...

    def identity(self) -> dict[str, object]:
        """What defines the output, as plain values: parameters, model, weights."""
        ...

    def setup(self, device: str) -> None:
        """Loads what is needed, once per worker."""
        ...

    def __call__(self, records: list[Record]) -> list[Record]:
        """One record out for each one in.

        Raises:
            BadData: what a record says is wrong; with several records the job finds out which.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Order:
    """One row for a worker: compute and write it; or, without a ticket, only hash its input, or keep others company."""

    candidate: Candidate
    ticket: Ticket | None = None
    admission: Admission | None = None
    attempt: int = 1
    place: int = -1
    """Number of the candidate in the input, which fixes its batch; -1: its batch is over, it shares one with others of
    which the same is true."""
    is_companion: bool = False
    """Whether the row is only computed so that its batch is the one of a clean run, and not written."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a worker says of an order: written, or an error. `fatal` stops the run: it is not the row's fault."""

    content: int = 0
    written: Written | None = None
    error: str = ""
    message: str = ""
    fatal: BaseException | None = None


@dataclass(kw_only=True)
class Work:
    """What a worker does with a batch of orders. Pickles into workers; the stage is set up on the first call."""

    offers: Offers | None
    """None where candidates carry their records."""
    stage: Stage
    writer: RowWriter
    device: str = "cpu"
    is_ready: bool = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "is_ready": False}

    def set_up(self) -> None:
        """Loads the stage, once."""
        if not self.is_ready:
            self.stage.setup(self.device)
            self.is_ready = True

    def __call__(self, orders: Sequence[Order]) -> list[Finished]:
        """Computes and writes each row; errors become outcomes, one per order."""
        self.set_up()
        fetched = self._fetch(orders)
        wanted = [order.is_companion or order.ticket is not None for order in orders]
        good = [number for number, (record, _) in enumerate(fetched) if record is not None and wanted[number]]
        computed = self._compute([fetched[number][0] for number in good])  # type: ignore[misc]  # None was sorted out
        results = [finished for _, finished in fetched]
        rows: list[tuple[Ticket, Encoded]] = []
        places: dict[Ticket, int] = {}
        for number, result in zip(good, computed, strict=True):
            ticket = orders[number].ticket
            if ticket is None:
                continue  # a companion
            encoded = self._encode(result)
            if isinstance(encoded, Finished):
                results[number] = replace(encoded, content=results[number].content)
            else:
                rows.append((ticket, encoded))
                places[ticket] = number
        for tickets, values in runs_of(rows):
            for ticket, finished in zip(tickets, self._write(tickets, values), strict=True):
                results[places[ticket]] = replace(finished, content=results[places[ticket]].content)
        return results

    def _fetch(self, orders: Sequence[Order]) -> list[tuple[Record | None, Finished]]:
        """The record of each order, or why there is none."""
        records: list[Record | Exception | None] = [order.candidate.record for order in orders]
        if self.offers is not None:
            indices = {place: order.candidate.index for place, order in enumerate(orders)}
            known = {place: index for place, index in indices.items() if index is not None}
            for place, found in zip(known, self._read(self.offers, list(known.values())), strict=True):
                records[place] = found
        return [_fetched(order, record) for order, record in zip(orders, records, strict=True)]

    def _read(self, offers: Offers, indices: Sequence[int]) -> list[Record | Exception]:
        """Several rows at once where the offers can, so that what they share is read once; where that fails, halves."""
        batched: Callable[[Sequence[int]], list[Record]] | None = getattr(offers, "__getitems__", None)
        if len(indices) > 1 and batched is None:
            return [found for index in indices for found in self._read(offers, [index])]
        try:
            return [*batched(indices)] if batched else [offers[index] for index in indices]
        except Exception as error:  # noqa: BLE001  # the per-row boundary: recorded, counted, budgeted
            if len(indices) == 1:
                return [error]
        half = len(indices) // 2
        return self._read(offers, indices[:half]) + self._read(offers, indices[half:])

    def _compute(self, records: list[Record]) -> list[Record | Exception]:
        if not records:
            return []
        # Always as many records as the stage states: with fewer, a device may take other kernels and give other bits.
        padding = records[-1:] * (self.stage.batch_size - len(records))
        try:
            found: list[Record | Exception] = [*self.stage([*records, *padding])]
            return found[: len(records)]
        except Exception as error:  # noqa: BLE001  # the per-row boundary: recorded, counted, budgeted
            if len(records) == 1:
                return [error]
        half = len(records) // 2  # one of them is bad: find it, keep the others
        return self._compute(records[:half]) + self._compute(records[half:])

    def _encode(self, result: Record | Exception) -> Encoded | Finished:
        if isinstance(result, Exception):
            return _failed(result)
        try:
            return self.writer.encode(result)
        except SchemaError as error:
            return _failed(error)

    def _write(self, tickets: Sequence[Ticket], rows: Sequence[Encoded]) -> list[Finished]:
        try:
            written = self.writer.write_rows(tickets[0].folder, tickets[0].position, rows)
        except OSError as error:
            name, message = type(error).__name__, str(error)
            return [Finished(error=name, message=message, fatal=error) for _ in tickets]
        return [Finished(written=done) for done in written]


def hash_record(record: Record) -> int:
    """xxh3_64 over all values of a record, field by field in order of name; never 0."""
    digest = xxhash.xxh3_64()
    for name in sorted(record):
        value = record[name]
        raw = value.encode() if isinstance(value, str) else np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        digest.update(f"{name} {len(raw)}\n".encode())
        digest.update(raw if isinstance(raw, bytes) else raw.data)
    return digest.intdigest() or 1


def _fetched(order: Order, record: Record | Exception | None) -> tuple[Record | None, Finished]:
    if isinstance(record, Exception):
        return None, _failed(record)
    if record is None:
        return None, Finished(error="SchemaError", message=f"{order.candidate.key}: offered without a record")
    return record, Finished(content=hash_record(record))


def _failed(error: Exception) -> Finished:
    fatal = error if isinstance(error, (OutputFull, MemoryError, ImportError)) else None
    return Finished(error=type(error).__name__, message=str(error) or repr(error), fatal=fatal)
