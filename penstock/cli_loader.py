"""The command line of the mixed loader: what a mixture would give, what stands at a position, how fast it loads."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from penstock.cli_common import OK, Json
from penstock.report import dump_json

if TYPE_CHECKING:
    from penstock.mix_config import Opened

loader = App(name="loader", help="Mixtures of datasets: plan, explain, measure.")


@loader.command(name="dry-run")
def dry_run(config: Path, *, json: Json = False) -> int:
    """Say what one epoch of a mixture holds: samples, shares and passes of each source. Reads no picture.

    Parameters
    ----------
    config
        A TOML file: docs/mix.md lists what it may hold.
    """
    from penstock.mix_config import load_mix_config, open_mix
    from penstock.mix_report import planned, planned_lines

    settings = load_mix_config(config)
    opened = open_mix(settings)
    plan = planned(opened.mixed)
    steps = -(-plan["samples"] // settings.batch_size)
    if json:
        dropped = [one._asdict() for one in opened.dropped]
        print(dump_json({"command": "loader dry-run", "status": "ok", "steps": steps, **plan, "dropped": dropped}))
        return OK
    _say_dropped(opened)
    for line in planned_lines(plan):
        print(line)
    print(f"{steps} steps of {settings.batch_size} samples")
    return OK


@loader.command
def explain(
    config: Path, position: Annotated[list[int], Parameter(negative="", consume_multiple=True)], *, json: Json = False
) -> int:
    """Say which sample stands at a position of a mixture, and what would stand in for it. Reads no picture.

    Parameters
    ----------
    config
        A TOML file: docs/mix.md lists what it may hold.
    position
        Global positions, from 0; step t takes those from t * batch_size on.
    """
    from penstock.errors import UsageError
    from penstock.mix_config import load_mix_config, open_mix
    from penstock.mix_loader import read_quarantine

    settings = load_mix_config(config)
    mixed = open_mix(settings).mixed
    if min(position) < 0:
        raise UsageError(f"position: expected 0 or more, got {min(position)}")
    known = mixed if settings.quarantine is None else mixed.with_quarantine(read_quarantine(settings.quarantine))
    found = [known.explain(one) for one in position]
    if json:
        print(dump_json({"command": "loader explain", "status": "ok", "positions": found}))
        return OK
    for one in found:
        pair = f" with {one['key2']}" if one["is_pair"] else ""
        bad = ", known to be bad" if one["in_quarantine"] else ""
        print(f"{one['position']}: {one['source']}: {one['key1']}{pair} (row {one['row']}, pass {one['epoch']}{bad})")
        print(f"  key {one['key']}, seed {one['seed']}; in its stead: {', '.join(one['stand_ins'])}")  # type: ignore[arg-type]
    return OK


@loader.command
def bench(config: Path, *, batches: int = 100, threads: int | None = None, json: Json = False) -> int:
    """Load batches of a mixture and say how fast: samples a second; milliseconds, bytes and bad rows of each source.

    Parameters
    ----------
    config
        A TOML file: docs/mix.md lists what it may hold. Its quarantine is read, and bad rows are added to it.
    batches
        How many; the mixture is begun again where it ends.
    threads
        That read and decode, in place of the configuration's.
    """
    from contextlib import closing
    from dataclasses import replace

    from penstock.errors import UsageError
    from penstock.mix_config import load_mix_config, mix_loader, open_mix
    from penstock.mix_report import drawn_lines

    if batches < 1:
        raise UsageError(f"batches: expected 1 or more, got {batches}")
    settings = load_mix_config(config)
    settings = replace(settings, epochs=None, threads=settings.threads if threads is None else threads)
    opened = open_mix(settings)
    feed = mix_loader(settings, opened.mixed)
    begin = time.perf_counter()
    first_s = 0.0
    with closing(iter(feed)) as running:
        for number, _ in zip(range(batches), running, strict=False):
            first_s = first_s if number else time.perf_counter() - begin
        seconds = time.perf_counter() - begin
    rate = batches * settings.batch_size / seconds
    report = feed.report()
    if json:
        print(
            dump_json(
                {
                    "command": "loader bench", "status": "ok", "batches": batches, "batch_size": settings.batch_size,
                    "threads": settings.threads, "seconds": seconds, "first_batch_s": first_s,
                    "samples_per_s": rate, "sources": report, "dropped": [one._asdict() for one in opened.dropped],
                }
            )
        )  # fmt: skip
        return OK
    _say_dropped(opened)
    for line in drawn_lines(report):
        print(line)
    print(f"{rate:.1f} samples/s on {settings.threads} threads, the first batch after {first_s:.2f} s")
    return OK


def _say_dropped(opened: "Opened") -> None:
    for one in opened.dropped:
        print(f"Left out: {one.name}: {one.reason}")
