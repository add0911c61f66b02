"""What a teacher says of pictures, for students: wires source, stage and sink into a job. `penstock teacher`."""

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from penstock.embed_place import output_of, steady, take_place
from penstock.errors import BadData, RecipeMismatch
from penstock.jobs import Job, Launcher, Sink
from penstock.launch.workers import local_launcher, num_workers_of, require_devices
from penstock.models.distill_protocols import Teacher, TeacherOptions
from penstock.models.teachers import open_teacher
from penstock.registry import open_source
from penstock.report import Budget, Report
from penstock.stages.teacher import JPEG, TeachPictures, attributes_of
from penstock.stages.workers import one_thread
from penstock.store import open_store
from penstock.store.disk import Disk
from penstock.store.layout import Layout
from penstock.store.output import existing_folder, refused_if_unwritable
from penstock.store.provenance import provenance
from penstock.store.sink import StoreSink
from penstock.store.state import known_rows
from penstock.store.v1_sink import check_v1_output
from penstock.teacher_config import TeacherConfig as TeacherConfig
from penstock.teacher_pictures import TeacherPictures
from penstock.work_plan import is_sealed, num_computed, reasons_of, say_unchanged

COMMAND = "teacher"
DECODE_THREADS = 4
"""Threads of each worker of a GPU that decode pictures and masks."""
PROBE_ROWS = 10
"""Pictures that are tried, at most, to find one whose time can be taken."""


def teach(
    config: TeacherConfig,
    *,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    launcher: Launcher | None = None,
    disk: Disk | None = None,
) -> Report:
    """Keeps what a teacher says of every picture of a source: a row each, in the source's order.

    Interrupted or finished, the same call does only what is missing, and what has changed: another picture, other masks. A
    picture that cannot be read, or whose features are not finite, is a failed row. One without an object has no box; the
    report's note `without_object` counts these. One of SA-1B without any annotation is no row; the note
    `without_annotation` counts these.

    Args:
        config: see `TeacherConfig`.
        on_progress: called after every batch with the report so far.
        stop: asked between batches; a non-empty answer ends the run after the rows in hand.
        launcher: where batches are run; None: worker processes on this machine.
        disk: the write seam; tests replace it.

    Raises:
        UsageError, MissingExtra, SourceNotFound: wrong settings, no such data, no such teacher, or no weights on this
            machine; nothing was touched.
        OutputRefused: `output` holds something else.
        RecipeMismatch: it was made with another recipe (and `on_change` says refuse); each difference is named.
        PartClaimed: it was, and is still being written by another run; what was computed stays beside it for the next one.
        BudgetExceeded: more rows failed than allowed.
        OutputFull: no room; what was committed is kept.
    """
    started = time.monotonic()
    pictures, stage = open_input(config)
    with steady(config.output) if config.write == "store" else nullcontext():
        output = _check_output(config, stage)
        known = _known(config, output)
        sink = _open_sink(replace(config, output=output), stage, disk)
    report = Report(command=COMMAND, output=str(config.output))
    budget = Budget.parse(config.max_failures) if config.max_failures is not None else None
    report.budget = budget or report.budget
    report.notes |= {"config": config.to_json(), "model_type": stage.teacher.name, "device": stage.teacher.device}
    if stage.teacher.identity().get("random_weights"):
        report.notes["random_weights"] = True
    reasons = _reasons(config, pictures, known)
    if left_over := len(known.keys() - set(pictures.keys)):
        report.notes["left_over"] = left_over
    if pictures.without_annotation:
        report.notes["without_annotation"] = pictures.without_annotation
    if config.write == "store" and is_sealed(output) and not num_computed(reasons):
        sink.release()
        say_unchanged(report, reasons, pictures.problems)
        report.seconds = time.monotonic() - started
    else:
        Job(
            offers=pictures,
            stage=stage,
            sink=sink,
            launcher=launcher or local_launcher(_workers(config, stage), config.timeout_s),
            report=report,
            budget=budget,
            retry_failed=config.retry_failed,
            max_rows=config.max_pictures,
            device=stage.teacher.device,
            on_progress=on_progress,
            stop=stop,
        ).run()
    if output != config.output and not report.interrupted:
        if not num_computed(_reasons(config, pictures, _known(config, output))):
            take_place(output, config.output)
        output = output if output.exists() else config.output
    if "bbox" in config.fields and config.write in ("store", "v1"):
        report.notes["without_object"] = _without_object(output)
    return report


def plan_teach(config: TeacherConfig) -> dict[str, object]:
    """What `teach` would do, and why; writes nothing.

    Returns:
        Plain values: counts by reason, bytes, and an estimate of the seconds from one picture.

    Raises:
        As `teach`.
    """
    pictures, stage = open_input(config)
    output = _check_output(config, stage)
    known = _known(config, output)
    reasons = _reasons(config, pictures, known)
    todo = num_computed(reasons)
    seconds, row_bytes = _probe(pictures, stage) if todo else (0.0, 0)
    workers = max(1, _workers(config, stage))
    return {
        "command": COMMAND,
        "dry_run": True,
        "output": str(config.output),
        "rows": {"planned": sum(reasons.values()), "to_do": todo},
        "reasons": dict(reasons),
        "left_over": len(known.keys() - set(pictures.keys)),
        "without_annotation": pictures.without_annotation,
        "bytes_to_write": todo * row_bytes,
        "bytes_free": shutil.disk_usage(existing_folder(config.output)).free,
        "seconds_per_row": round(seconds, 4),
        "seconds_estimate": round(seconds * todo / workers, 1),
        "workers": workers,
        "model_type": stage.teacher.name,
        "device": stage.teacher.device,
        "fields": list(stage.schema),
        "problems": [vars(problem) for problem in pictures.problems],
    }


def open_input(config: TeacherConfig) -> tuple[TeacherPictures, TeachPictures]:
    """The pictures and the stage of a configuration, the teacher opened.

    Raises:
        UsageError, MissingExtra, SourceNotFound, BadData: as `teach`.
    """
    pictures = TeacherPictures(open_source(config.source))
    options = TeacherOptions(
        weights=config.weights, device=config.device, download=config.download,
        precision=config.precision, image_size=config.image_size,
    )  # fmt: skip
    with one_thread("cpu"):
        teacher = open_teacher(config.model_type, options)
    require_devices(config.devices, teacher.device, config.num_workers)
    stage = TeachPictures(
        teacher=teacher,
        fields=config.fields,
        layout="v1" if config.write == "v1" else "store",
        image_codec=config.image_codec or ("jpeg" if config.write in ("tar", "npz") else "raw"),
        jpeg_quality=JPEG["pairs" if config.write in ("tar", "npz") else "store"],
        feature_dtype=config.feature_dtype,
        strategy=config.strategy,
        max_objects=config.max_objects,
        batch_size=config.batch_size,
        devices=config.devices,
        threads=1 if teacher.device == "cpu" else DECODE_THREADS,  # a CPU has a worker per core already
        reopen=partial(_opened_on, config.model_type, options),
    )
    pictures.threads = stage.threads
    return pictures, stage


def _opened_on(model_type: str, options: TeacherOptions, *, device: str) -> Teacher:
    return open_teacher(model_type, replace(options, device=device))


def _check_output(config: TeacherConfig, stage: TeachPictures) -> Path:
    """Where rows go; touches nothing.

    Raises:
        OutputRefused, RecipeMismatch: as `teach`.
    """
    if config.write == "store":
        try:
            return output_of(config.output, stage.identity(), stage.schema, on_change=config.on_change)
        except RecipeMismatch as error:
            if config.on_change == "recompute":
                raise
            raise RecipeMismatch(f"{error}\n--on-change recompute makes all of it anew and takes its place") from error
    if config.write == "v1":
        check_v1_output(config.output, stage.identity(), append=False)
    return config.output


def _known(config: TeacherConfig, output: Path) -> dict[str, tuple[int, int]]:
    """State and cheap input key of each row of the output."""
    if config.write in ("store", "v1"):
        return known_rows(output)
    from penstock.teacher_sinks import rows_folder

    return known_rows(rows_folder(output))


def _reasons(config: TeacherConfig, pictures: TeacherPictures, known: Mapping[str, tuple[int, int]]) -> Counter[str]:
    rows = ((one.key, one.cheap) for one in itertools.islice(pictures.candidates(), config.max_pictures))
    return reasons_of(rows, known, retry=config.retry_failed)


def _workers(config: TeacherConfig, stage: TeachPictures) -> int:
    return num_workers_of(config.num_workers, stage.teacher.device, config.devices)


def _open_sink(config: TeacherConfig, stage: TeachPictures, disk: Disk | None) -> Sink:
    with refused_if_unwritable(config.output):
        if config.write != "store":
            from penstock.teacher_sinks import open_teacher_sink

            return open_teacher_sink(config, stage, disk)
        return StoreSink(
            config.output,
            stage.schema,
            identity=stage.identity(),
            attributes=attributes_of(stage),
            provenance=provenance(config.to_json(), libraries=dict(stage.teacher.libraries())),
            durability=config.durability,
            part_rows=config.part_rows,
            disk=disk,
        )


def _probe(pictures: TeacherPictures, stage: TeachPictures) -> tuple[float, int]:
    """Seconds and bytes of a row, from the first that can be computed; 0 s and the fixed bytes where none of a few can."""
    alone = replace(stage, batch_size=1)
    alone.setup(stage.teacher.device)
    layout = Layout.of(stage.schema)
    for row in range(min(len(pictures), PROBE_ROWS)):
        started = time.perf_counter()
        try:
            (record,) = alone([pictures[row]])
        except BadData:
            continue  # met again, recorded and counted, when the job comes to it
        seconds = time.perf_counter() - started
        return seconds, sum(np.asarray(value).nbytes for value in record.values())
    return 0.0, layout.row_bytes


def _without_object(output: Path) -> int:
    """Done rows that have no box."""
    store = open_store(output)
    done = store.done_rows()
    rows = range(len(store)) if done is None else done.tolist()
    if "has_bbox" in store.schema:
        return sum(not int(np.asarray(store.read(row, ["has_bbox"])["has_bbox"])) for row in rows)
    return sum(not len(store.read(row, ["bboxes"])["bboxes"]) for row in rows)
