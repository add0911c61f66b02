"""The command line of the tracking system: sequences saved, reported, drawn; saved sets exported."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from penstock.cli_common import OK, Flag, Json
from penstock.cli_job import run_job
from penstock.report import dump_json

if TYPE_CHECKING:
    from penstock.check import Findings

sequence = App(name="sequence", help="Sampled tracking sequences: save them, look at them.")

Many = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]


@sequence.command
def save(
    *,
    output: Path | None = None,
    config: Path | None = None,
    source: Many = None,
    weights: Annotated[list[float] | None, Parameter(consume_multiple=True, negative="")] = None,
    num_sequences: int | None = None,
    seed: int | None = None,
    mode: Literal["causal", "interval", "trident", "trident_pro", "stark"] | None = None,
    max_gap: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    num_template: int | None = None,
    num_search: int | None = None,
    min_interval: int | None = None,
    future_steps: int | None = None,
    pictures: Literal["crops", "raw", "both"] | None = None,
    image_format: Literal["jpg", "png"] | None = None,
    save_format: Literal["json", "pickle"] | None = None,
    save_images: bool | None = None,
    timestamp: str | None = None,
    workers: int | None = None,
    max_failures: str | None = None,
    retry_failed: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Draw sequences from tracking datasets and save them as folders. Run it again and it does only what is missing.

    Every setting may stand in the configuration and in a variable PENSTOCK_SEQUENCE_NAME, the common ones also here; the
    later goes before.

    Parameters
    ----------
    output
        New or empty folder, or that of an earlier run of the same configuration.
    config
        A TOML file: docs/sequence.md lists what it may hold.
    source
        Datasets: `lasot:/data/LaSOT?split=train got10k:/data/got10k/train`.
    weights
        One for each source: how often it is drawn.
    num_sequences
        How many; 100 by default.
    seed
        Equal seeds give equal folders.
    mode
        How template and search frames are drawn.
    max_gap
        Rows between template and search; in trident modes and stark one for each further template.
    num_template
        Template frames of a sequence.
    num_search
        Search frames of a sequence.
    min_interval
        Steps of the history before the search frame.
    future_steps
        Steps from the search frame on.
    pictures
        `crops` as a network is fed them, `raw` as the source has them, or `both`.
    image_format
        `png` is exact.
    save_format
        Of metadata and annotations.
    save_images
        `--no-save-images` saves boxes and metadata only.
    timestamp
        YYYYmmdd_HHMMSS in names and metadata; by default that of the run that began the folder.
    workers
        Worker processes; 0 works in this process, -1 takes one per core.
    max_failures
        Failures that are still a success: `12`, or `0.5%`.
    retry_failed
        Try sequences again that failed before.
    quiet
        No progress on stderr.
    """
    from penstock.sequence_config import load_config
    from penstock.sequence_save import save_sequences

    gap = None if not max_gap else max_gap[0] if len(max_gap) == 1 else tuple(max_gap)
    settings = load_config(
        config,
        {
            "output": output, "sources": tuple(source) if source else None, "weights": tuple(weights) if weights else None,
            "num_sequences": num_sequences, "seed": seed, "mode": mode, "max_gap": gap, "num_template": num_template,
            "num_search": num_search, "min_interval": min_interval, "future_steps": future_steps, "pictures": pictures,
            "image_format": image_format, "save_format": save_format, "save_images": save_images, "timestamp": timestamp,
            "workers": workers, "max_failures": max_failures, "retry_failed": retry_failed or None,
        },
    )  # fmt: skip
    return run_job(
        lambda progress, stop: save_sequences(settings, on_progress=progress, stop=stop),
        settings.output, quiet=quiet, json=json,
    )  # fmt: skip


@sequence.command
def report(
    path: Path, *, compare: Path | None = None, output: Path | None = None, sheets: int = 24, json: Json = False
) -> int:
    """Write one page that shows what was saved: gaps, shares, boxes, speed, visibility, contact sheets. Opens offline.

    Parameters
    ----------
    path
        A folder of saved sequences.
    compare
        A second folder: the page then shows where the two drift apart.
    output
        The page; `report.html` in the folder by default.
    sheets
        Contact sheets on the page.
    """
    from penstock.sequence_report import statistics, write_report

    page = write_report(path, output, compare=compare, sheets=sheets)
    if json:
        print(
            dump_json({"command": "sequence report", "status": "ok", "output": str(page), **statistics(path).to_json()})
        )
    else:
        print(page)
    return OK


@sequence.command
def show(path: Path, *, output: Path, json: Json = False) -> int:
    """Draw one saved sequence as an animation: past solid, search bold, future dashed, absent hatched, padded grey.

    Parameters
    ----------
    path
        The folder of one sequence, `seq_000001_...`.
    output
        A `.gif`, or an `.mp4` (needs the extra `video`).
    """
    from penstock.sequence_report import overlay

    drawn = overlay(path, output)
    print(dump_json({"command": "sequence show", "status": "ok", "output": str(drawn)}) if json else drawn)
    return OK


def export(
    path: Path,
    *,
    format: str,  # noqa: A002  # the name of the flag
    output: Path,
    pictures: Literal["saved", "source"] = "saved",
    licence: str = "",
    option: Many = None,
    max_failures: str | None = None,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Write saved sequences in another layout (COCO video, MOT, GOT-10k, LaSOT, Parquet, WebDataset, ...), or vectors.

    A store of vectors, or a cache of npy or npz files, becomes one of store, npy, npz, parquet, lance, novic.

    Parameters
    ----------
    path
        A folder of saved sequences, or of vectors.
    format
        A name of `penstock list exporters`; of vectors: store, npy, npz, parquet, lance, novic.
    output
        New or empty folder.
    pictures
        `saved` takes those in `images`; `source` the source's own, of a set that was saved with pictures raw or both.
    licence
        A note that is carried into the output.
    option
        Options of the format, `name=value`: docs/exporting.md lists them.
    max_failures
        Failures that are still a success: `12`, or `0.5%`.
    quiet
        No progress on stderr.
    """
    from penstock.errors import UsageError
    from penstock.exporters import export as run
    from penstock.exporters.embeddings import export_vectors, holds_vectors
    from penstock.exporters.run import make_exporter
    from penstock.registry import arguments_of, find

    if holds_vectors(path):
        kind: Any = format  # checked there
        return run_job(lambda progress, stop: export_vectors(path, output, format=kind), output, quiet=quiet, json=json)
    pairs = [text.partition("=") for text in option or ()]
    if any(not mark for _, mark, _ in pairs):
        raise UsageError(f"--option: expected name=value, got {option}")
    texts = {name.replace("-", "_"): value for name, _, value in pairs}
    options = arguments_of(find("exporters", format), format, texts)  # type: ignore[arg-type]  # a class
    exporter = make_exporter(format, options)
    return run_job(
        lambda progress, stop: run(
            path, output, format=exporter, pictures=pictures, licence=licence, max_failures=max_failures,
            on_progress=progress, stop=stop,
        ),
        output, quiet=quiet, json=json,
    )  # fmt: skip


def sequence_findings(path: Path, on_progress: "Callable[[int, int], None]") -> "Findings":
    """What `penstock verify` says of a folder of saved sequences."""
    from penstock.check import Findings
    from penstock.check_values import Finding
    from penstock.saved import verify_saved
    from penstock.sequence_folder import saved_folders

    faults = tuple(
        Finding(code="sequence", where=problem.path, message=problem.message.removeprefix(f"{problem.path}: "))
        for problem in verify_saved(path, on_progress=on_progress)
    )
    rows = sum(1 for _ in saved_folders(path))
    return Findings(path=str(path), layout="sequences", rows=rows, full=True, faults=faults, suspicions=(), notes=())
