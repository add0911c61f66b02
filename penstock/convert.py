"""SA-1B TARs to a distillation set: wires reader, stage and sink into a job."""

import errno
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.errors import BadData, OutputFull, OutputRefused, UsageError
from penstock.jobs import Job, Launcher, Sink
from penstock.launch.local import Inline, Local
from penstock.launch.ray import Ray
from penstock.readers.sa1b_tar import Sa1bTar, Sa1bTarStream, open_sa1b_tars
from penstock.report import Budget, Report
from penstock.schema import Record
from penstock.source import Candidate, Offers, Problem
from penstock.stages.convert import MASK_THRESHOLD, Sa1bConvert
from penstock.store.disk import Disk
from penstock.store.layout import Layout
from penstock.store.output import existing_folder
from penstock.store.provenance import provenance
from penstock.store.sink import StoreSink
from penstock.store.state import check_output, known_rows
from penstock.store.v1_schema import MASK_SIZE
from penstock.store.v1_sink import V1Sink, check_v1_output
from penstock.work_plan import COMPUTED, num_computed, reason_of

COMMAND = "convert sa1b-tar"
PROBE_ROWS = 3
_PEEK_ROWS = 32
"""Samples read ahead to find one that shows which fields there are."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert, where to, and how."""

    tar_path: tuple[str, ...]
    """TARs in input order, compressed or not; "-" is standard input."""
    output_dir: Path
    """New or empty folder, or the output of an earlier run: then only what is missing is done."""
    layout: Literal["store", "v1"] = "store"
    """"store" is penstock's own layout; "v1" the seed's config.json and seven .bin files, byte for byte."""
    image_codec: Literal["raw", "jpeg"] = "raw"
    """"jpeg" keeps pictures compressed: a fifth of the bytes, a few milliseconds a picture when reading."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """"float16" halves the features, with a relative error below 0.0005."""
    fields: tuple[str, ...] = ()
    """Fields to keep; all that the first sample has if empty."""
    image_size: int = 1024
    """Side of the square picture, in pixels; pictures are stretched to it."""
    model_type: str = "sam2.1_hiera_b+"
    """Name of the teacher, recorded in the output; nothing depends on it."""
    workers: int = -1
    """Worker processes; 0 works in this process, -1 takes one per core."""
    max_samples: int | None = None
    """Take only the first so many samples of the input."""
    max_failures: str | None = None
    """Failures that are still a success: a count ("12") or a share of the samples ("0.5%"); more stop the run. By default
    none is, and nothing but a first hundred samples that all fail stops the run."""
    retry_failed: bool = False
    """Try samples again that failed before, although their input is the same."""
    append: bool = False
    """Allow adding to a v1 directory that penstock did not write. Our own outputs are always added to."""
    durability: Literal["power", "process"] = "power"
    """"power" flushes every commit to the disk; "process" leaves that to the system: a kill is safe, a power cut is not."""
    part_rows: int | None = None
    """Rows of a part; by default what makes parts of 16 GiB."""
    timeout_s: float | None = None
    """Seconds that one sample may take."""
    launcher: Literal["local", "ray"] = "local"
    """Where workers run: processes of this machine, or actors on every node of a Ray cluster."""
    ray_address: str | None = None
    """Of the Ray cluster: "auto", "HOST:PORT" or "ray://HOST:PORT"; by default RAY_ADDRESS, or else one started here."""

    def __post_init__(self) -> None:
        checks = [
            ("tar_path", bool(self.tar_path), "at least one TAR"),
            ("image_size", 16 <= self.image_size <= 8192, "16..8192"),
            ("workers", self.workers >= -1, "-1 (one per core), 0 (none) or more"),
            ("max_samples", self.max_samples is None or self.max_samples > 0, "a positive number"),
            ("part_rows", self.part_rows is None or self.part_rows > 0, "a positive number"),
            ("timeout_s", self.timeout_s is None or self.timeout_s > 0, "a positive number of seconds"),
            ("launcher", self.launcher == "local" or self.workers, "local with workers 0: they run in this process"),
            ("ray_address", self.launcher == "ray" or self.ray_address is None, "none with the local launcher"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise UsageError(f"{name.replace('_', '-')}: expected {expected}, got {getattr(self, name)!r}")
        if self.max_failures is not None:
            Budget.parse(self.max_failures)

    def to_json(self) -> dict[str, object]:
        """Plain values, as recorded with the output."""
        return {**asdict(self), "output_dir": str(self.output_dir)}


def convert_sa1b_tar(
    config: ConvertConfig,
    *,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    disk: Disk | None = None,
) -> Report:
    """Converts TARs of pictures and NPZ features into a store or a v1 directory.

    Rows are in input order. Interrupted or finished, the same call does only what is missing; more TARs are added; the same
    TAR twice adds nothing.

    Args:
        config: see `ConvertConfig`.
        on_progress: called after every batch with the report so far.
        stop: asked between batches; a non-empty answer ends the run after the rows in hand.
        disk: the write seam; tests replace it.

    Raises:
        UsageError: wrong settings, a missing path, an output that is something else's; nothing was touched.
        BudgetExceeded: more rows failed than allowed.
        OutputFull: no room; what was committed is kept.
    """
    offers, stage = _open_input(config)
    is_stream = isinstance(offers.inner, Sa1bTarStream)
    if is_stream and config.launcher == "ray":
        raise UsageError(
            "launcher ray: compressed TARs and pipes are read by the driver alone; give plain TARs, or use local"
        )
    launcher = _launcher(config)
    report = Report(command=COMMAND, output=str(config.output_dir))
    if config.max_failures is not None:
        report.budget = Budget.parse(config.max_failures)
    report.notes["config"] = config.to_json()
    _check_room(config, offers, stage)
    job = Job(
        offers=offers,
        stage=stage,
        sink=_open_sink(config, stage, disk),
        launcher=launcher,
        report=report,
        budget=Budget.parse(config.max_failures) if config.max_failures is not None else None,
        retry_failed=config.retry_failed,
        is_stream=is_stream,
        max_rows=config.max_samples,
        on_progress=on_progress,
        stop=stop,
    )
    try:
        return job.run()
    finally:
        report.notes |= {
            "repeated": offers.inner.repeated,
            "ignored_members": offers.inner.ignored,
            "layout": config.layout,
        }


def plan_sa1b_tar(config: ConvertConfig) -> dict[str, object]:
    """What `convert_sa1b_tar` would do, and why; writes nothing. A pipe cannot be looked at without using it up.

    Returns:
        Plain values: counts by reason, bytes, and an estimate of the seconds from a short probe.
    """
    offers, stage = _open_input(config)
    if isinstance(offers.inner, Sa1bTarStream) and "-" in config.tar_path:
        raise UsageError("dry-run: standard input can be read only once; give files")
    if config.layout == "v1":
        check_v1_output(config.output_dir, stage.identity(), append=config.append)
    else:
        check_output(config.output_dir, stage.identity(), stage.schema)
    known = known_rows(config.output_dir)
    reasons: Counter[str] = Counter()
    probe: list[Candidate] = []
    for candidate in itertools.islice(offers.candidates(), config.max_samples):
        reason = reason_of(candidate.key, candidate.cheap, known, retry=config.retry_failed)
        reasons[reason] += 1
        if reason in COMPUTED and not candidate.failure and len(probe) < PROBE_ROWS:
            probe.append(candidate)
    todo = num_computed(reasons)
    seconds, row_bytes = _probe(offers, stage, probe)
    workers = max(1, _workers(config))
    return {
        "command": COMMAND,
        "dry_run": True,
        "output": str(config.output_dir),
        "rows": {"planned": sum(reasons.values()), "to_do": todo},
        "reasons": dict(reasons),
        "bytes_to_write": todo * row_bytes,
        "bytes_free": shutil.disk_usage(existing_folder(config.output_dir)).free,
        "seconds_per_row": round(seconds, 4),
        "seconds_estimate": round(seconds * todo / workers, 1),
        "workers": workers,
        "fields": list(stage.schema),
        "problems": [vars(problem) for problem in offers.problems],
    }


class _Peeked:
    """Offers whose first candidates were looked at already, and are given again."""

    def __init__(self, inner: Sa1bTar | Sa1bTarStream) -> None:
        self.inner = inner
        self.schema = inner.schema
        self._rest = inner.candidates()
        self._seen: list[Candidate] = []

    def __getstate__(self) -> dict[str, object]:
        return {"inner": self.inner, "schema": self.schema}  # a worker only reads records

    @property
    def problems(self) -> list[Problem]:
        return self.inner.problems

    def __getitem__(self, index: int) -> Record:
        if isinstance(self.inner, Sa1bTarStream):
            raise TypeError("a stream has no rows by index")
        return self.inner[index]

    def first_records(self) -> Iterator[Record]:
        """Records of the first readable candidates."""
        for candidate in itertools.islice(self._rest, _PEEK_ROWS):
            self._seen.append(candidate)
            if not candidate.failure:
                record = _read(self, candidate)
                if record is not None:
                    yield record

    def candidates(self) -> Iterator[Candidate]:
        seen, self._seen = self._seen, []
        return itertools.chain(seen, self._rest)


def _read(offers: Offers, candidate: Candidate) -> Record | None:
    try:
        return candidate.record if candidate.index is None else offers[candidate.index]
    except BadData:
        return None  # met again, recorded and counted, when the job comes to it


def _open_input(config: ConvertConfig) -> tuple[_Peeked, Sa1bConvert]:
    inner = open_sa1b_tars(config.tar_path, spill_dir=existing_folder(config.output_dir))
    offers = _Peeked(inner)
    stage = Sa1bConvert.plan(
        offers.first_records(),
        layout=config.layout,
        image_codec=config.image_codec,
        feature_dtype=config.feature_dtype,
        fields=list(config.fields) or None,
        image_size=config.image_size,
        model_type=config.model_type,
    )
    return offers, stage


def _open_sink(config: ConvertConfig, stage: Sa1bConvert, disk: Disk | None) -> Sink:
    identity = stage.identity()
    attributes = {
        "reader": "sa1b-tar",
        "layout": config.layout,
        "model_type": stage.model_type,
        "image_size": stage.image_size,
        "mask_size": MASK_SIZE,
        "mask_threshold": MASK_THRESHOLD,
        "bbox_format": "xyxy",
        "bbox_frame": "original",
        "derived_fields": list(stage.derived),
    }
    try:
        if config.layout == "v1":
            return V1Sink(
                config.output_dir,
                identity=identity,
                attributes=attributes,
                durability=config.durability,
                append=config.append,
                disk=disk,
            )
        return StoreSink(
            config.output_dir,
            stage.schema,
            identity=identity,
            attributes=attributes,
            provenance=provenance(config.to_json()),
            durability=config.durability,
            part_rows=config.part_rows,
            disk=disk,
        )
    except PermissionError as error:
        raise OutputRefused(
            f"{error.filename or config.output_dir}: not writable ({error.strerror}); nothing was touched"
        ) from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise OutputRefused(f"{config.output_dir}: lies on a read-only file system; nothing was touched") from error
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise OutputRefused(f"{config.output_dir}: cannot be a folder ({error.strerror})") from error
        raise


def _launcher(config: ConvertConfig) -> Launcher:
    if config.launcher == "ray":
        return Ray(
            config.workers if config.workers > 0 else None, address=config.ray_address, timeout_s=config.timeout_s
        )
    workers = _workers(config)
    return Local(workers, timeout_s=config.timeout_s) if workers else Inline()


def _workers(config: ConvertConfig) -> int:
    return len(os.sched_getaffinity(0)) if config.workers < 0 else config.workers


def _check_room(config: ConvertConfig, offers: _Peeked, stage: Sa1bConvert) -> None:
    """Raises OutputFull where not even one row fits; how many rows a pipe brings nobody knows beforehand."""
    free = shutil.disk_usage(existing_folder(config.output_dir)).free
    need = Layout.of(stage.schema).row_bytes
    if free < need:
        raise OutputFull(f"{config.output_dir}: one row takes {need} bytes, {free} are free")


def _probe(offers: _Peeked, stage: Sa1bConvert, candidates: list[Candidate]) -> tuple[float, int]:
    """Seconds and bytes of a row, from the first few; only the layout's fixed bytes where none can be read."""
    stage.setup("cpu")
    layout = Layout.of(stage.schema)
    started, blob_bytes = time.perf_counter(), []
    for candidate in candidates:
        try:
            record = _read(offers, candidate)
            row = stage([record])[0] if record is not None else {}
        except BadData:
            continue  # met again, recorded and counted, when the job comes to it
        values = [row.get(blob.field.name) for blob in layout.blobs]
        blob_bytes.append(sum(value.nbytes for value in values if isinstance(value, np.ndarray)))
    tried = max(1, len(blob_bytes))
    return (time.perf_counter() - started) / tried, layout.row_bytes + sum(blob_bytes) // tried
