"""What is known of the rows in an output folder, read without touching it: for dry runs."""

import itertools
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from penstock.errors import SourceNotFound
from penstock.schema import Schema
from penstock.store.commit import refuse_foreign
from penstock.store.keys import Keys
from penstock.store.layout import Layout
from penstock.store.manifest import NAME, Manifest, read_steadily
from penstock.store.rows import DONE, KEYS, ROWS, Ledger
from penstock.store.store import committed_rows
from penstock.store.v1 import CONFIG, SIDE, V1_LAYOUT, open_v1


def known_rows(path: Path) -> dict[str, tuple[int, int]]:
    """State and cheap input key (0: unknown) of each row by key; nothing where there is no output yet."""
    with suppress(SourceNotFound):
        return read_steadily(path, partial(_of_store, path))
    side = path / SIDE
    if (side / ROWS).exists():
        records = Ledger(side, len(V1_LAYOUT.file_names))
        states = records.read(0, len(records))
        keys = (side / KEYS).read_bytes().decode(errors="replace").split("\n")[: len(states)]
        return {
            key: (int(state), int(cheap))
            for key, state, cheap in zip(keys, states["state"], states["cheap"], strict=False)
        }
    if (path / CONFIG).exists():
        store = open_v1(path)
        return {store.keys[row]: (DONE, 0) for row in range(len(store))}
    return {}


def check_output(path: Path, identity: Mapping[str, object], schema: Schema) -> None:
    """Makes sure that a store can be begun, or gone on with, in an output folder; touches nothing.

    Raises:
        OutputRefused: it holds something else.
        RecipeMismatch: it was made by another recipe; the message names each difference.
    """
    refuse_foreign(path, begun=path / NAME)
    try:
        manifest = Manifest.load(path)
    except SourceNotFound:
        return
    manifest.check_identity(path, identity, schema)


def _of_store(path: Path, manifest: Manifest) -> dict[str, tuple[int, int]]:
    layout = Layout.of(manifest.schema)
    known: dict[str, tuple[int, int]] = {}
    for entry in manifest.parts:
        folder = path / (entry.draft or entry.name)
        rows = committed_rows(folder, entry, layout) if entry.growing else entry.rows
        keys = Keys(path / entry.name, rows, sealed=entry.sealed)
        chunks = (records for _, records in Ledger(folder, len(layout.file_names)).chunks(rows))
        pairs = (zip(records["state"].tolist(), records["cheap"].tolist(), strict=True) for records in chunks)
        known.update(zip(keys, itertools.chain.from_iterable(pairs), strict=True))
    return known
