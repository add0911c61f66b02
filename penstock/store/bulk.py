"""write_store: records at hand into a store, in this process."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from penstock.errors import UsageError
from penstock.schema import Record, Schema
from penstock.source import Candidate
from penstock.store.commit import Commit
from penstock.store.sink import StoreSink
from penstock.store.write import RowWriter, runs_of

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 8 << 20


def write_store(path: Path | str, schema: Schema, records: Iterable[tuple[str, Record]], **options: object) -> None:
    """Writes (key, record) pairs, in order, into a new store, in this process.

    Args:
        path: a new or empty folder, or a store of the same recipe, whose done rows are then kept.
        schema: the fields of every record.
        records: pairs of a key and a record; read once.
        options: as for `StoreSink` (identity, attributes, durability, part_rows).

    Raises:
        UsageError: a key comes twice.
        SchemaError: a record does not fit the schema.
        OutputRefused, RecipeMismatch: the folder holds something else.
        OutputFull: no room left; what was committed is kept.
    """
    sink = StoreSink(Path(path), schema, **options)  # type: ignore[arg-type]  # checked by StoreSink itself
    writer = sink.writer()
    block = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, sink.layout.row_bytes)))
    rest = _unique(records)
    try:
        while some := [_kept(pair, block) for pair in itertools.islice(rest, block)]:
            _write_block(sink, writer, some)
        sink.close(complete=True)
    finally:
        sink.release()


def _unique(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
    seen: set[str] = set()
    for key, record in records:
        if key in seen:
            raise UsageError(f"write_store: key {key!r} comes twice; a key names one row")
        seen.add(key)
        yield key, record


def _kept(pair: tuple[str, Record], block: int) -> tuple[str, Record]:
    """A record that stays as it is while others are gathered: whoever makes records may use one buffer for all."""
    key, record = pair
    return pair if block == 1 else (key, {n: v if isinstance(v, str) else np.array(v) for n, v in record.items()})


def _write_block(sink: StoreSink, writer: RowWriter, records: Sequence[tuple[str, Record]]) -> None:
    candidates = [Candidate(key=key) for key, _ in records]
    admissions = sink.admit(candidates, grow=True)
    entered = [sink.enter(admission.ticket) if admission.ticket else admission for admission in admissions]
    todo = [(entry.ticket, record) for entry, (_, record) in zip(entered, records, strict=True) if entry.ticket]
    for tickets, rows in runs_of([(ticket, writer.encode(record)) for ticket, record in todo]):
        for ticket, written in zip(
            tickets, writer.write_rows(tickets[0].folder, tickets[0].position, rows), strict=True
        ):
            sink.commit(Commit(ticket=ticket, written=written))
