"""Refined id maps of scenes: wires reader, stage and sink into a job. `penstock refine`."""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from penstock.errors import BadData, BudgetExceeded, OutputRefused, RecipeMismatch, RowError
from penstock.jobs import Job, Launcher
from penstock.launch.local import Inline, Local
from penstock.models.proposers import open_proposer
from penstock.readers.scenes import Scenes
from penstock.refine_after import look_back, require_asked
from penstock.refine_config import RefineConfig
from penstock.refine_files import FrameOffers, Outputs, open_scenes
from penstock.refine_sink import ROW_FILES, RefineSink, open_rows, places_of, read_rows, rows_schema, why_anew
from penstock.refine_statistics import SceneStatistics, statistics_of, total
from penstock.refining.types import Proposer
from penstock.report import Budget, Report
from penstock.schema import Record
from penstock.stages.refine import CONTENTS, RefineFrames
from penstock.store import Store
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.store.hold import hold_all
from penstock.store.output import refused_if_unwritable
from penstock.store.provenance import provenance
from penstock.store.rows import DONE, FAILED
from penstock.store.sink import PLAN_WAIT_S
from penstock.store.state import check_output, known_rows

COMMAND = "refine"
BATCHES = {"cpu": 1, "cuda": 4}
"""Frames that a model looks at together, by device."""
_LISTED = 10
_log = logging.getLogger("penstock")


def refine(
    config: RefineConfig,
    *,
    proposer: Proposer | None = None,
    on_start: Callable[[Report], None] = lambda report: None,
    on_progress: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], str] = lambda: "",
    launcher: Launcher | None = None,
    disk: Disk | None = None,
) -> Report:
    """Refines the id maps of scenes, each into a file beside it; see `penstock.refine_files` for what lies where.

    Interrupted or finished, the same call does only what is missing: frames without a result, with another picture, map or
    settings than before, or whose result is gone. A frame that cannot be refined is a failed row, and the rest goes on.
    The report's notes hold the statistics of all frames asked for (`scenes`, `total`), whenever they were made; what was
    decided (`decisions`, see `penstock.refine_done.Decisions`); where asked for, `quality` (`penstock.refine_truth`) and
    `consistency` (`penstock.refine_agree`).

    Args:
        config: see `RefineConfig`.
        proposer: where masks come from; None: what the configuration says.
        on_start: called before the first frame; the report's notes say what was found.
        on_progress: called after every batch with the report so far.
        stop: asked between batches; a non-empty answer ends the run after the frames in hand.
        launcher: where batches are run; None: worker processes on this machine.
        disk: the write seam; tests replace it.

    Raises:
        UsageError, MissingExtra, SourceNotFound: wrong settings, no scenes, or no weights on this machine; nothing was
            touched.
        OutputRefused: the output would be written over the input, or cannot be written; or it has maps of another format in
            scenes that are not asked for.
        RecipeMismatch: it was made with other settings, and `on_change` says refuse; each difference is named.
        PartClaimed: it was made with other settings, and another run is still writing it.
        BudgetExceeded: more frames failed than allowed.
        OutputFull: no room; what was committed is kept.
    """
    started = time.monotonic()
    offers, stage = open_input(config, proposer)
    budget = Budget.parse(config.max_failures) if config.max_failures is not None else None
    report = Report(command=COMMAND, output=str(config.data_root))
    report.budget = budget or report.budget
    report.notes |= _said(config, offers, stage)
    with refused_if_unwritable(config.outputs.store), _beginning(config):
        _clear_old(config.outputs)
        if _has_other_recipe(config, offers, stage):
            _retire(config.outputs, stage)
        sink = _open_sink(config, stage, disk)
    on_start(report)
    job = Job(
        offers=offers,
        stage=stage,
        sink=sink,
        launcher=launcher or _launcher(config, stage),
        report=report,
        budget=budget,
        retry_failed=config.retry_failed,
        device=stage.proposer.device,
        on_progress=on_progress,
        stop=stop,
    )
    try:
        job.run()
    except BudgetExceeded:
        report.notes |= _counted(config, offers, sink)
        raise
    report.notes |= _counted(config, offers, sink)
    report.notes |= look_back(config, offers, report, stop)
    report.seconds = time.monotonic() - started
    return report


def plan_refine(config: RefineConfig, *, proposer: Proposer | None = None) -> dict[str, object]:
    """What `refine` would do, and why; writes nothing. Seconds are those of a frame whose proposals are not cached.

    Returns:
        Plain values: counts by reason, bytes and seconds as estimated from one frame.

    Raises:
        As `refine`.
    """
    offers, stage = open_input(replace(config, proposal_cache=None), proposer)
    reasons = _reasons(config, offers, stage)
    todo = sum(number for reason, number in reasons.items() if reason not in _LEFT)
    seconds, size = _probe(offers, stage) if todo else (0.0, 0)
    workers = 1 if config.sequential else _workers(config, stage)
    return {
        "command": COMMAND,
        "dry_run": True,
        "output": str(config.data_root),
        "rows": {"planned": sum(reasons.values()), "to_do": todo},
        "reasons": dict(reasons),
        "bytes_to_write": todo * size,
        "bytes_free": shutil.disk_usage(config.data_root).free,
        "seconds_per_row": round(seconds, 4),
        "seconds_estimate": round(seconds * todo / workers, 1),
        "workers": workers,
        **_said(config, offers, stage),
        "problems": [vars(problem) for problem in offers.problems],
    }


def open_input(config: RefineConfig, proposer: Proposer | None = None) -> tuple[FrameOffers, RefineFrames]:
    """The frames and the stage of a configuration, the model opened.

    Raises:
        UsageError, MissingExtra, SourceNotFound, OutputRefused: as `refine`.
    """
    scenes, limit = frames_of(config)
    config.outputs.refuse_inputs(scenes)
    require_asked(config, scenes)
    reopen = None if proposer is not None else _opener(config)
    opened = proposer if reopen is None else reopen(device=config.device)
    assert opened is not None
    if config.proposer == "classical" and config.matcher == "overlap":
        _log.warning(
            "penstock: proposer classical finds nothing at automatic points: with matcher overlap every object keeps its mask"
        )
    kind = opened.device.partition(":")[0]
    stage = RefineFrames(
        proposer=opened,
        settings=config.settings,
        format=config.format,
        dtype=config.dtype,
        batch_size=config.batch_size or BATCHES.get(kind, 1),
        devices=gpus_of(opened.device, config.device) or 1,
        reopen=reopen,
    )
    return FrameOffers(scenes, config.outputs, existing=config.existing, limit=limit), stage


def frames_of(config: RefineConfig) -> tuple[Scenes, int | None]:
    """The frames of a configuration, and how many of them count: those of the first scenes; None for all.

    Raises:
        SourceNotFound: there are none.
    """
    scenes = open_scenes(config.data_root, config.ids_dir_name)
    groups = scenes.groups
    few = config.max_scenes is not None and config.max_scenes < len(groups)
    return scenes, groups[(config.max_scenes or 0) - 1].stop if few else None


def gpus_of(opened: str, asked: str) -> int:
    """GPUs that a run uses: all that are visible, or the one that was named; 0 on a CPU.

    Args:
        opened: the device that the proposer is on.
        asked: the device of the configuration.
    """
    if not opened.startswith("cuda"):
        return 0
    if ":" in asked:
        return 1
    import torch

    return torch.cuda.device_count()


def open_proposer_of(config: RefineConfig) -> Proposer:
    """Where masks come from, by the configuration.

    Raises:
        UsageError, MissingExtra: no such proposer, or no weights on this machine.
    """
    return _opener(config)(device=config.device)


def _opener(config: RefineConfig) -> Callable[..., Proposer]:
    return partial(
        open_proposer,
        config.proposer,
        model_cfg=config.model_cfg,
        checkpoint=config.checkpoint,
        points_per_batch=config.points_per_batch,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
        min_mask_region_area=config.min_mask_region_area,
        download=config.download,
        oom_to_cpu=config.oom_to_cpu,
        cache=config.proposal_cache,
    )


def _said(config: RefineConfig, offers: FrameOffers, stage: RefineFrames) -> dict[str, object]:
    """What a run says of itself before it begins."""
    scenes = len(offers.scenes.groups)
    return {
        "config": config.to_json(),
        "device": stage.proposer.device,
        "gpus": gpus_of(stage.proposer.device, config.device),
        "scenes_found": min(scenes, config.max_scenes or scenes),
    }


def _counted(config: RefineConfig, offers: FrameOffers, sink: RefineSink) -> dict[str, object]:
    """Statistics of all frames, from the rows that are there now; what became of somebody else's maps."""

    def counted(store: Store) -> tuple[list[SceneStatistics], list[str]]:
        scenes = statistics_of(store, offers.scenes, offers.limit)
        return scenes, [key for key in sink.foreign if _is_ours(store, key)]

    scenes, replaced = read_rows(config.outputs.store, counted)
    notes: dict[str, object] = {"scenes": [one.to_json() for one in scenes], "total": total(scenes).to_json()}
    if replaced:
        notes["replaced_existing"] = {"frames": len(replaced), "first": replaced[:_LISTED]}
    return notes


def _is_ours(store: Store, key: str) -> bool:
    """Whether a frame is done, by us."""
    try:
        return not int(np.asarray(store.read(store.find(key), ["kept_existing"])["kept_existing"]))
    except RowError:
        return False


def _has_other_recipe(config: RefineConfig, offers: FrameOffers, stage: RefineFrames) -> bool:
    try:
        check_output(config.outputs.store, stage.identity(), rows_schema(stage.schema))
    except RecipeMismatch:
        if config.on_change == "refuse":
            raise
        store = open_rows(config.outputs.store)
        stored = store.attributes.get("format")
        if offers.limit is not None and offers.limit < len(store) and stored != stage.format:
            raise OutputRefused(
                f"{config.outputs.store}: holds {len(store)} frames as {stored}, which go where the format changes; only "
                f"{offers.limit} are asked for as {stage.format}: ask for all scenes, or give another --output-dir-name"
            ) from None
        return True
    return False


def _retire(outputs: Outputs, stage: RefineFrames) -> None:
    """Takes away the rows that were made with other settings; their files stay until they are replaced, but for those of
    another format, which would lie beside the new ones."""
    place = outputs.store
    with hold_all(place) as held:
        store = open_rows(place)
        known = str(held.manifest.identity.get("format", stage.format))
        if known != stage.format and "kept_existing" in store.schema:
            done = store.done_rows()
            for row in range(len(store)) if done is None else done.tolist():
                record = store.read(row, ["kept_existing", "file"])
                if not int(np.asarray(record["kept_existing"])):
                    (outputs.root / str(record["file"])).unlink(missing_ok=True)
        place.rename(_old(outputs))
        held.moved(_old(outputs))
    _clear_old(outputs)


@contextmanager
def _beginning(config: RefineConfig) -> Iterator[None]:
    """The right to look at the rows' recipe and to retire them; held shortly, so whoever begins as well waits."""
    side = config.outputs.store.parent
    if side.is_dir() and not os.access(side, os.W_OK):  # nothing in it can be retired, but all may be done
        yield
        return
    Disk(flush=config.durability == "power").make_directory(side)
    claim = Claim(side, name=f"_begin.{config.outputs.folder}")
    claim.acquire(wait_s=PLAN_WAIT_S)
    try:
        yield
    finally:
        claim.release()


def _old(outputs: Outputs) -> Path:
    return outputs.store.with_name(f"{outputs.store.name}.old")


def _clear_old(outputs: Outputs) -> None:
    """Also what a run that was killed right there has left."""
    if _old(outputs).exists():
        shutil.rmtree(_old(outputs))


def _open_sink(config: RefineConfig, stage: RefineFrames, disk: Disk | None) -> RefineSink:
    return RefineSink(
        config.outputs,
        stage.schema,
        existing=config.existing,
        identity=stage.identity(),
        attributes={"kind": "refined", "output_dir_name": config.output_dir_name, "format": config.format},
        provenance=provenance(config.to_json()),
        durability=config.durability,
        part_rows=config.part_rows,
        disk=disk,
    )


def _launcher(config: RefineConfig, stage: RefineFrames) -> Launcher:
    return Inline() if config.sequential else Local(_workers(config, stage), timeout_s=config.timeout_s)


def _workers(config: RefineConfig, stage: RefineFrames) -> int:
    gpus = gpus_of(stage.proposer.device, config.device)
    if gpus:
        return gpus * config.processes_per_gpu
    return config.workers if config.workers > 0 else len(os.sched_getaffinity(0))


_LEFT = ("done", "failed before, not retried")
"""Reasons not to compute a frame."""


def _reasons(config: RefineConfig, offers: FrameOffers, stage: RefineFrames) -> Counter[str]:
    """How many frames are to be computed, or not, and why."""
    other = _has_other_recipe(config, offers, stage)
    known = {} if other else known_rows(config.outputs.store)
    store = open_rows(config.outputs.store)
    places = places_of(store)
    reasons: Counter[str] = Counter()
    for candidate in offers.candidates():
        state, cheap = known.get(candidate.key, (0, 0))
        if not state:
            is_foreign = config.existing == "keep" and config.outputs.is_foreign(candidate.origin)
            reasons["to be looked at: made by others" if is_foreign else "other settings" if other else "missing"] += 1
        elif cheap != candidate.cheap:
            reasons["changed input"] += 1
        elif state == FAILED:
            reasons["failed before" if config.retry_failed else "failed before, not retried"] += 1
        elif state == DONE:
            row = store.read(places[candidate.key], ROW_FILES)
            reasons[why_anew(row, config.outputs.sizes(candidate.origin), config.existing) or "done"] += 1
    return reasons


def _probe(offers: FrameOffers, stage: RefineFrames) -> tuple[float, int]:
    """Seconds and bytes of a frame, from the first that can be refined; 0 where none of a few can."""
    stage.setup(stage.proposer.device)
    for row in range(min(len(offers.scenes), 10)):
        started = time.perf_counter()
        try:
            (record, *_) = stage([offers[row]])
        except BadData:
            continue  # met again, recorded and counted, when the job comes to it
        return time.perf_counter() - started, _bytes_of(record)
    return 0.0, 0


def _bytes_of(record: Record) -> int:
    return sum(np.asarray(record[name]).size for name in CONTENTS)
