"""Where the vectors of `penstock embed` go: the output, or a folder beside it that takes its place once it is whole."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from penstock.errors import PartClaimed, RecipeMismatch
from penstock.schema import Schema
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.store.hold import hold_all
from penstock.store.manifest import NAME
from penstock.store.sink import PLAN_WAIT_S
from penstock.store.state import check_output
from penstock.work_plan import is_sealed

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


@contextmanager
def steady(place: Path) -> Iterator[None]:
    """Nobody else changes the places of two stores meanwhile; a change that was killed is ended first. The claim is held
    shortly, so whoever wants it waits."""
    claim = Claim(place, name="_place")
    while True:
        settle(place)
        # Without a store there is nothing whose place could be taken; and what cannot be written can still be looked at.
        if not (place / NAME).exists() or not os.access(place, os.W_OK):
            yield
            return
        try:
            claim.acquire(wait_s=PLAN_WAIT_S)
        except PartClaimed:
            if place.is_dir():
                raise
            continue  # the very moment of a change
        break
    try:
        yield
    finally:
        claim.release()


def take_place(fresh: Path, place: Path) -> None:
    """Puts a whole store where the old one is, which is removed. Killed in between, `settle` ends it. Of several drivers that
    have made it together each may call this.

    Raises:
        PartClaimed: another driver writes in the old one.
    """
    with steady(place):
        if not is_sealed(fresh):
            return  # another driver has done it, or goes on writing, and will do it
        with hold_all(fresh, wait_s=PLAN_WAIT_S) as held, hold_all(place):
            if any(entry.draft for entry in held.manifest.parts):
                return
            place.rename(fresh / REPLACED)
            with suppress(FileNotFoundError):  # one that begins has just settled it
                fresh.rename(place)
            held.moved(place)
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
