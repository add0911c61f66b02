"""One unit vector per segment: wires source, stage and sink into a job. `penstock embed`."""

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from penstock.embed_place import output_of, steady, take_place
from penstock.errors import BadData, UsageError
from penstock.jobs import Job, Launcher
from penstock.launch.workers import local_launcher, num_workers_of, require_devices
from penstock.models.embedders import open_embedder
from penstock.models.opened import require_torch, torch_device
from penstock.registry import open_source
from penstock.report import Budget, Report
from penstock.schema import Record
from penstock.segments import RECIPES, Recipe, Segments
from penstock.source import Source
from penstock.stages.embed import PATHS, EmbedSegments, attributes_of, model_batch
from penstock.stages.embed import Path as CropPath
from penstock.stages.workers import one_thread
from penstock.store.disk import Disk
from penstock.store.layout import Layout
from penstock.store.output import existing_folder, refused_if_unwritable
from penstock.store.provenance import provenance
from penstock.store.sink import StoreSink
from penstock.store.state import known_rows
from penstock.work_plan import is_sealed, num_computed, reasons_of, say_unchanged

COMMAND = "embed"
DEFAULT_SPEC = "openclip:timm/ViT-B-16-SigLIP"
ROWS_PER_PICTURE = 12
"""COCO has eleven segments a picture: what `batch_size` pictures are in rows."""
DECODE_THREADS = 4
"""Threads of each worker of a GPU that decode pictures."""
PROBE_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What to embed, where to, and how."""

    cache_dir: Path
    """New or empty folder, or the output of an earlier run: then only what is missing or changed is done."""
    data_path: Path | None = None
    """Folder of COCO panoptic; or else `source`."""
    source: str | None = None
    """Any source with masks or id maps, as `READER:PATH?option=value`: `sa1b:DIR`, `scenes:ROOT`, ..."""
    split: str | None = None
    """Of `data_path`: "train", "val", "all"; None for the only one there is."""
    embedder_spec: str = DEFAULT_SPEC
    """The model, `TYPE:NAME`: see `penstock.models.embedders.open_embedder`."""
    batch_size: int = 8
    """Pictures per batch, of twelve segments each. Memory only: vectors do not depend on it but by rounding."""
    num_workers: int = -1
    """Worker processes, each with the model; 0 works in this process, -1 takes one per core, or four per GPU."""
    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"."""
    devices: int = 1
    """GPUs to share the work, from `device` on; not with the Ray launcher, whose workers each have a GPU of their own."""
    bg_alpha: float = 0.3
    """Share of the picture that is left outside the mask; the rest is mid-grey."""
    pad_ratio: float = 0.1
    """Padding of the box on each side, as a share of its height and width."""
    recipe: Recipe = "native"
    """"native" cuts from the picture at its own size; "legacy-640" stretches it to 640 x 640 before, as the seed did."""
    path: CropPath = "fast"
    """"fast" crops with tensors on the device; "reference" with NumPy, Pillow and the model's own transform."""
    amp: bool | None = None
    """Mixed precision; None: on a GPU only."""
    amp_bf16: bool = False
    compile: bool = False
    max_segments: int | None = None
    """Take only the first so many segments."""
    max_failures: str | None = None
    """Failures that are still a success: a count ("12") or a share of the segments ("0.5%"); more stop the run."""
    retry_failed: bool = False
    """Try segments again that failed before, although their input is the same."""
    on_change: Literal["refuse", "recompute"] = "refuse"
    """Where the output was made with another model, alpha, padding or recipe: "refuse", or compute all of it anew beside
    it, and take its place once that is whole."""
    durability: Literal["power", "process"] = "power"
    """"power" flushes every commit to the disk; "process" leaves that to the system."""
    part_rows: int | None = None
    timeout_s: float | None = None
    """Seconds that one segment may take."""

    def __post_init__(self) -> None:
        checks = [
            ("data_path", (self.data_path is None) != (self.source is None), "a COCO folder, or else a source"),
            ("split", self.split is None or self.data_path is not None, "none beside a source: say READER:PATH?split="),
            ("batch_size", self.batch_size > 0, "a positive number of pictures"),
            ("num_workers", self.num_workers >= -1, "-1 (one per core), 0 (none) or more"),
            ("devices", self.devices > 0, "a positive number"),
            ("bg_alpha", 0 <= self.bg_alpha <= 1, "0..1"),
            ("pad_ratio", 0 <= self.pad_ratio <= 10, "0..10"),
            ("recipe", self.recipe in RECIPES, " or ".join(RECIPES)),
            ("path", self.path in PATHS, " or ".join(PATHS)),
            ("on_change", self.on_change in ("refuse", "recompute"), "refuse or recompute"),
            ("max_segments", self.max_segments is None or self.max_segments > 0, "a positive number"),
            ("part_rows", self.part_rows is None or self.part_rows > 0, "a positive number"),
            ("timeout_s", self.timeout_s is None or self.timeout_s > 0, "a positive number of seconds"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise UsageError(f"{name.replace('_', '-')}: expected {expected}, got {getattr(self, name)!r}")
        if self.max_failures is not None:
            Budget.parse(self.max_failures)

    def to_json(self) -> dict[str, object]:
        """Plain values, as recorded with the output."""
        paths = {"cache_dir": str(self.cache_dir), "data_path": self.data_path and str(self.data_path)}
        return {**asdict(self), **paths}


def embed(
    config: EmbedConfig,
    *,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    check: Callable[[Sequence[str]], None] = lambda keys: None,
    launcher: Launcher | None = None,
    disk: Disk | None = None,
) -> Report:
    """Embeds every segment of a source into a store of unit vectors, `cache_dir`.

    Rows are in the source's order, keys are its keys (`<picture>_<segment>` for COCO panoptic). Interrupted or finished,
    the same call does only what is missing, and what has changed: a segment is computed anew if its crop, its mask or
    what is said of it is other than before. A segment that cannot be read is a failed row. One that the source no longer
    has keeps its row; the report's note `left_over` counts these.

    Args:
        config: see `EmbedConfig`.
        on_progress: called after every batch with the report so far.
        stop: asked between batches; a non-empty answer ends the run after the rows in hand.
        check: given the keys of all rows before any work; what it raises ends the run.
        launcher: where batches are run; None: worker processes on this machine.
        disk: the write seam; tests replace it.

    Raises:
        UsageError, MissingExtra, SourceNotFound: wrong settings, no such data, no such model, or no weights on this
            machine; nothing was touched.
        OutputRefused: `cache_dir` holds something else.
        RecipeMismatch: it was made with another recipe (and `on_change` says refuse); each difference is named.
        PartClaimed: it was, and is still being written by another run; what was computed stays beside it for the next one.
        BudgetExceeded: more rows failed than allowed.
        OutputFull: no room; what was committed is kept.
    """
    started = time.monotonic()
    segments, stage = open_input(config)
    check(segments.keys[: config.max_segments])
    with steady(config.cache_dir):
        output = output_of(config.cache_dir, stage.identity(), stage.schema, on_change=config.on_change)
        known = known_rows(output)
        sink = _open_sink(config, stage, output, disk)  # also removes what a run killed right after its last row left
    report = Report(command=COMMAND, output=str(config.cache_dir))
    budget = Budget.parse(config.max_failures) if config.max_failures is not None else None
    report.budget = budget or report.budget
    report.notes |= {"config": config.to_json(), "dim": stage.embedder.dim, "spec": stage.embedder.spec}
    if segments.crowds_left_out:
        report.notes["crowds_left_out"] = segments.crowds_left_out
    reasons = _reasons(config, segments, known)
    left_over = _left_over(segments, known)
    if left_over:
        report.notes["left_over"] = left_over
    if is_sealed(output) and not num_computed(reasons):
        sink.release()
        say_unchanged(report, reasons, segments.problems)
        if output != config.cache_dir:  # killed when the last row was done
            take_place(output, config.cache_dir)
        report.seconds = time.monotonic() - started
        return report
    job = Job(
        offers=segments,
        stage=stage,
        sink=sink,
        launcher=launcher or local_launcher(_workers(config, stage), config.timeout_s),
        report=report,
        budget=budget,
        retry_failed=config.retry_failed,
        max_rows=config.max_segments,
        device=stage.embedder.device,
        on_progress=on_progress,
        stop=stop,
    )
    job.run()
    if output != config.cache_dir and not report.interrupted and _is_done(config, segments, output):
        take_place(output, config.cache_dir)
    return report


def plan_embed(config: EmbedConfig, *, check: Callable[[Sequence[str]], None] = lambda keys: None) -> dict[str, object]:
    """What `embed` would do, and why; writes nothing.

    Args:
        config: see `EmbedConfig`.
        check: as of `embed`.

    Returns:
        Plain values: counts by reason, bytes, and an estimate of the seconds from two segments.

    Raises:
        As `embed`.
    """
    segments, stage = open_input(config)
    check(segments.keys[: config.max_segments])
    output = output_of(config.cache_dir, stage.identity(), stage.schema, on_change=config.on_change)
    known = known_rows(output)
    reasons = _reasons(config, segments, known)
    todo = num_computed(reasons)
    row_bytes = Layout.of(stage.schema).row_bytes
    seconds = _probe(segments, stage) if todo else 0.0
    workers = max(1, _workers(config, stage))
    return {
        "command": COMMAND,
        "dry_run": True,
        "output": str(config.cache_dir),
        "rows": {"planned": sum(reasons.values()), "to_do": todo},
        "reasons": dict(reasons),
        "left_over": _left_over(segments, known),
        "bytes_to_write": todo * row_bytes,
        "bytes_free": shutil.disk_usage(existing_folder(config.cache_dir)).free,
        "seconds_per_row": round(seconds, 4),
        "seconds_estimate": round(seconds * todo / workers, 1),
        "workers": workers,
        "spec": stage.embedder.spec,
        "dim": stage.embedder.dim,
        "device": stage.embedder.device,
        "fields": list(stage.schema),
        "problems": [vars(problem) for problem in segments.problems],
    }


def open_segments(config: EmbedConfig) -> Segments:
    """The segments of a configuration.

    Raises:
        UsageError, SourceNotFound, BadData: as `embed`.
    """
    if config.data_path is not None:
        from penstock.readers.coco_panoptic import CocoPanoptic

        source: Source = CocoPanoptic(config.data_path, split=config.split)
    else:
        source = open_source(config.source or "")
    return Segments(source, pad_ratio=config.pad_ratio, recipe=config.recipe)


def open_input(config: EmbedConfig) -> tuple[Segments, EmbedSegments]:
    """The segments and the stage of a configuration, the model opened.

    Raises:
        UsageError, MissingExtra, SourceNotFound, BadData: as `embed`.
    """
    segments = open_segments(config)
    require_torch("train")
    rows = config.batch_size * ROWS_PER_PICTURE
    reopen = partial(
        open_embedder, config.embedder_spec, amp=config.amp, amp_bf16=config.amp_bf16, compile=config.compile,
        batch_size=model_batch(rows, torch_device(config.device)),
    )  # fmt: skip
    with one_thread("cpu"):  # as in workers: an ONNX session keeps the number of threads that it begins with
        embedder = reopen(device=config.device)
    require_devices(config.devices, embedder.device, config.num_workers)
    stage = EmbedSegments(
        embedder=embedder,
        segments=segments.schema,
        recipe=config.recipe,
        pad_ratio=config.pad_ratio,
        bg_alpha=config.bg_alpha,
        path=config.path,
        batch_size=rows,
        devices=config.devices,
        reopen=reopen,
    )
    segments.threads = 1 if stage.bitwise else DECODE_THREADS  # a CPU has a worker per core already
    return segments, stage


def _reasons(config: EmbedConfig, segments: Segments, known: Mapping[str, tuple[int, int]]) -> Counter[str]:
    rows = zip(segments.keys, segments.cheap_keys(), strict=True)
    return reasons_of(itertools.islice(rows, config.max_segments), known, retry=config.retry_failed)


def _is_done(config: EmbedConfig, segments: Segments, output: Path) -> bool:
    """Whether every segment has a row, by whichever driver."""
    return not num_computed(_reasons(config, segments, known_rows(output)))


def _workers(config: EmbedConfig, stage: EmbedSegments) -> int:
    return num_workers_of(config.num_workers, stage.embedder.device, config.devices)


def _left_over(segments: Segments, known: Mapping[str, tuple[int, int]]) -> int:
    """Rows of the output that the source no longer has; they stay, and are said."""
    return len(known) - sum(map(known.__contains__, segments.keys)) if known else 0


def _open_sink(config: EmbedConfig, stage: EmbedSegments, output: Path, disk: Disk | None) -> StoreSink:
    with refused_if_unwritable(output):
        return StoreSink(
            output,
            stage.schema,
            identity=stage.identity(),
            attributes=attributes_of(stage),
            provenance=provenance(config.to_json(), libraries=dict(stage.embedder.libraries())),
            durability=config.durability,
            part_rows=config.part_rows,
            disk=disk,
        )


def _probe(segments: Segments, stage: EmbedSegments) -> float:
    """Seconds of a row, from the first that can be read; 0 where none of a few can."""
    small = replace(stage, batch_size=PROBE_ROWS)
    small.setup(stage.embedder.device)
    for row in range(min(len(segments), 10)):
        started = time.perf_counter()
        try:
            records: list[Record] = segments.__getitems__([row, min(row + 1, len(segments) - 1)])
            small(records)
        except BadData:
            continue  # met again, recorded and counted, when the job comes to it
        return (time.perf_counter() - started) / len(records)
    return 0.0
