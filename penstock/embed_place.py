"""Where the vectors of `penstock embed` go: the output, or a folder beside it that takes its place once it is whole."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from penstock.errors import RecipeMismatch
from penstock.schema import Schema
from penstock.store.disk import Disk
from penstock.store.state import check_output

REPLACED = ".replaced"
"""In the new output while the two change places: the old one. So nothing is ever deleted that was not made here."""


def output_of(
    place: Path, identity: Mapping[str, object], schema: Schema, *, on_change: Literal["refuse", "recompute"]
) -> Path:
    """Where rows go: the output itself, or `<output>.recompute` where it was made with another recipe. Touches nothing.

    Raises:
        OutputRefused: the folder holds something else.
        RecipeMismatch: it was made with another recipe, and `on_change` says refuse; or that folder was begun with a third
            one. Each difference is named.
    """
    known = _settled(place)
    try:
        check_output(known, identity, schema)
    except RecipeMismatch:
        if on_change == "refuse":
            raise
        fresh = _beside(place)
        try:
            check_output(fresh, identity, schema)
        except RecipeMismatch as error:
            raise RecipeMismatch(
                f"an earlier recompute is not done: end it with its recipe, or remove {fresh}. {error}"
            ) from error
        return fresh
    return known


def take_place(fresh: Path, place: Path) -> None:
    """Puts a whole store where the old one is, which is removed. Killed in between, `settle` ends it. Of several drivers that
    have made it together each may call this."""
    with suppress(FileNotFoundError):  # another one has done it
        place.rename(fresh / REPLACED)
    settle(place)


def settle(place: Path) -> None:
    """Ends a change of places that was killed: puts the new store in its place, and removes the old one."""
    if (found := _settled(place)) != place:
        with suppress(FileNotFoundError):
            found.rename(place)
    if (place / REPLACED).is_dir():
        disk = Disk()
        disk.remove(place / REPLACED)
        disk.close()


def _settled(place: Path) -> Path:
    """Where the store of an output is now: in its place, but for an instant of a change of places."""
    fresh = _beside(place)
    return fresh if not place.exists() and (fresh / REPLACED).is_dir() else place


def _beside(place: Path) -> Path:
    return place.with_name(f"{place.name}.recompute")
