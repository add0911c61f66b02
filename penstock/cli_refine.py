"""The command line of mask refinement."""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from penstock.cli_common import OK, Flag, Json
from penstock.cli_job import run_job
from penstock.report import Report, dump_json

if TYPE_CHECKING:
    from penstock.jobs import Launcher
    from penstock.refine_config import RefineConfig
    from penstock.refine_statistics import Lines


def refine(
    *,
    data_root: Path | None = None,
    frame: Path | None = None,
    ids: Path | None = None,
    output: Path | None = None,
    model_cfg: str = "sam2_hiera_l.yaml",
    checkpoint: Path | None = None,
    max_scenes: int | None = None,
    processes_per_gpu: int = 1,
    ids_dir_name: str = "obj_ids",
    output_dir_name: str = "obj_ids_refine",
    format: Literal["pth", "npy", "png"] = "pth",  # noqa: A002  # the word of the other commands
    dtype: Literal["uint16", "int32", "int16"] = "uint16",
    proposer: str = "sam2",
    matcher: Literal["prompt", "overlap"] = "prompt",
    profile: Literal["penstock", "seed"] = "penstock",
    points_per_side: int = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.7,
    stability_score_thresh: float = 0.5,
    box_nms_thresh: float = 0.7,
    min_mask_region_area: int = 100,
    iou_threshold: float = 0.3,
    min_pixels: int = 16,
    invalid_ids: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    existing: Literal["keep", "replace"] = "keep",
    consistency: Literal["none", "faces"] = "none",
    face_ids_dir_name: str = "face_ids",
    truth: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = -1,
    sequential: Flag = False,
    download: Flag = False,
    oom_to_cpu: Flag = False,
    proposal_cache: Path | None = None,
    max_failures: str | None = None,
    retry_failed: Flag = False,
    on_change: Literal["recompute", "refuse"] = "recompute",
    timeout_s: float | None = None,
    launcher: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    verbose: Flag = False,
    dry_run: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Refine the id maps of scenes: objects get the edges that the picture shows, and no object gets worse.

    Run it again and it does only what is missing, or whose picture, map or settings changed.

    Parameters
    ----------
    data_root
        A folder of scenes, each with `images` and `obj_ids`; or one scene.
    frame
        One picture in place of scenes: refine its map and show what was decided for each object.
    ids
        The map of `--frame`: .pth, .npy or .png.
    output
        Folder for the results of `--frame`; by default `refined_<name of the picture>`.
    model_cfg
        SAM2's architecture: `sam2_hiera_l.yaml`, `configs/sam2.1/sam2.1_hiera_l.yaml`, or a model's name or folder.
    checkpoint
        SAM2's weights; by default model_zoo/sam/sam2_hiera_large.pt, or those of a model given by name.
    max_scenes
        Take only the first so many scenes.
    processes_per_gpu
        Worker processes of each GPU, each with the model.
    ids_dir_name
        Folder of the maps in each scene.
    output_dir_name
        Folder that refined maps go to in each scene; `refined_ins_ids` is the original program's.
    format
        Of the refined maps: `pth` is a tensor, `png` gray of 16 bits.
    dtype
        Of the refined maps; a frame with an id that does not fit fails.
    proposer
        Where masks come from: `sam2`, `classical` (needs no weights), `folder:DIR` (saved before).
    matcher
        `prompt` asks the model for each object; `overlap` matches automatic masks, as the original does.
    profile
        `seed` with `--matcher overlap`: the original's five passes.
    points_per_side
        Of the grid of automatic points.
    points_per_batch
        Points that SAM2 decodes at once: lower it where memory is short.
    pred_iou_thresh
        Least quality that SAM2 expects of an automatic mask.
    stability_score_thresh
        Least stability of an automatic mask.
    box_nms_thresh
        Overlap of boxes from which one of two automatic masks is dropped.
    min_mask_region_area
        Least pixels of a piece of a mask.
    iou_threshold
        Of the original's passes.
    min_pixels
        An object of at least so many pixels always survives.
    invalid_ids
        Ids that are no object, besides 0 and below.
    existing
        Refined maps that another program made: keep those that are whole, or replace them.
    consistency
        `faces`: also write maps that agree over the frames of a scene, by votes of its mesh's faces.
    face_ids_dir_name
        Folder of face maps in each scene: the face that each pixel shows, below 0 for none.
    truth
        A folder of true maps, SCENE/frame_000000.jpg.png: report how good the maps were and are.
    device
        `auto` (all GPUs, or else the CPU), `cpu`, `cuda` (all), `cuda:1` (one).
    batch_size
        Frames that the model looks at together; by default 4 on a GPU, 1 on a CPU.
    workers
        Worker processes where there is no GPU; -1 takes one per core.
    sequential
        Work in this process.
    download
        Fetch weights that are not on this machine.
    oom_to_cpu
        Go on on the CPU where a GPU has no memory even for one point.
    proposal_cache
        A folder that keeps what the model answered: other settings of the matching then need no model.
    max_failures
        Failures that are still a success: `12`, or `0.5%` of the frames.
    retry_failed
        Try frames again that failed before from the same input.
    on_change
        Where the output was made with other settings: do all anew, or refuse.
    timeout_s
        Seconds that one frame may take before it counts as failed.
    launcher
        `ray` works on the machines of a Ray cluster that share the disk: docs/ray.md.
    ray_address
        Of the cluster; by default one on this machine.
    verbose
        A line for each frame, with the objects that kept their mask and why.
    dry_run
        Say what would be done and why; write nothing.
    quiet
        No progress on stderr.
    """
    from penstock.errors import UsageError
    from penstock.refine import plan_refine
    from penstock.refine_config import RefineConfig
    from penstock.refine_statistics import Lines

    config = RefineConfig(
        data_root=data_root or Path(), model_cfg=model_cfg, checkpoint=checkpoint, max_scenes=max_scenes, device=device,
        processes_per_gpu=processes_per_gpu, ids_dir_name=ids_dir_name, output_dir_name=output_dir_name, format=format,
        dtype=dtype, proposer=proposer, matcher=matcher, profile=profile, points_per_side=points_per_side,
        points_per_batch=points_per_batch, pred_iou_thresh=pred_iou_thresh, stability_score_thresh=stability_score_thresh,
        box_nms_thresh=box_nms_thresh, min_mask_region_area=min_mask_region_area, iou_threshold=iou_threshold,
        min_pixels=min_pixels, invalid_ids=tuple(invalid_ids or ()), existing=existing, batch_size=batch_size,
        workers=workers, sequential=sequential, download=download, oom_to_cpu=oom_to_cpu,
        proposal_cache=proposal_cache, max_failures=max_failures, retry_failed=retry_failed,
        on_change=on_change, timeout_s=timeout_s, consistency=consistency, face_ids_dir_name=face_ids_dir_name, truth=truth,
    )  # fmt: skip
    if frame is not None:
        others = {"--data-root": data_root, "--dry-run": dry_run, "--verbose": verbose, "--quiet": quiet,
                  "--ray-address": ray_address, "--launcher": launcher != "local"}  # fmt: skip
        return _show_frame(config, (frame, ids, output), [flag for flag, given in others.items() if given], json=json)
    if data_root is None or ids is not None or output is not None:
        raise UsageError("expected --data-root ROOT (scenes), or --frame IMAGE --ids MAP [--output DIR] (one picture)")
    if dry_run:
        plan = plan_refine(config)
        print(dump_json(plan) if json else f"{data_root}: {plan['rows']}, {plan['reasons']}, {plan['bytes_to_write']} bytes, "
              f"about {plan['seconds_estimate']} s on {plan['workers']} workers")  # fmt: skip
        return OK
    chosen = _launcher(config, launcher, ray_address)
    return run_refine(config, Lines(), launcher=chosen, verbose=verbose, quiet=quiet, json=json)


def run_refine(
    config: "RefineConfig",
    lines: "Lines",
    *,
    launcher: "Launcher | None" = None,
    verbose: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Refines, says so in these lines, prints and saves the report; gives the exit code."""
    from penstock.refine import refine as run

    def say(texts: list[str]) -> None:
        for text in [] if json else texts:
            print(text, flush=True)

    if verbose:
        logging.getLogger("penstock").setLevel(logging.INFO)

    runs: list[Report] = []

    def start(report: Report) -> None:
        runs.append(report)
        say(lines.start(report.notes))

    def job(progress: Callable[[Report], None], stop: Callable[[], str]) -> Report:
        report = run(
            config,
            on_start=start,
            on_progress=progress,
            stop=stop,
            launcher=launcher,
        )
        say([*lines.finish(report.notes), *notes_lines(report.notes)])
        if verbose:
            _say_frames(config)
        return report

    code = run_job(job, config.outputs.store, quiet=quiet, json=json)
    if runs and runs[0].report and "decisions" in runs[0].notes:
        _write_page(config, runs[0])
    return code


def notes_lines(notes: Mapping[str, Any]) -> list[str]:
    """What a run says of the truth and of agreement over frames, where it was asked."""
    from penstock.refine_truth import words

    said = [] if "quality" not in notes else words(notes["quality"])
    if "consistency" in notes:
        said.append(
            "agreement over frames: {done} of {windows} windows, {frames} frames ({without_faces} without a face map), "
            "{renamed} objects renamed, {filled} pixels filled; faces that change their id: {flips_before} before, "
            "{flips_after} after, of {chances}".format(**notes["consistency"])
        )
    return said


def _write_page(config: "RefineConfig", report: Report) -> None:
    """The page of refinement in place of the general one; where that cannot be, the general one stays."""
    from penstock.refine_report import write_report

    try:
        write_report(config, report)
    except OSError as error:
        print(f"penstock: no report.html could be written: {error}", file=sys.stderr)


def _show_frame(
    config: "RefineConfig", paths: tuple[Path, Path | None, Path | None], others: list[str], *, json: bool
) -> int:
    """Refines one picture's map and prints what was decided; `others` are flags that are of no use with it."""
    from penstock.errors import UsageError
    from penstock.refine_frame import not_of_one_frame, refine_one

    frame, ids, output = paths
    useless = [*others, *not_of_one_frame(config)]
    if useless:
        raise UsageError(f"--frame refines one picture: {', '.join(useless)} has no meaning with it")
    if ids is None:
        raise UsageError(f"--frame {frame}: expected --ids MAP, the picture's id map, too")
    shown = refine_one(config, frame, ids, output)
    print(dump_json(shown.to_json()) if json else "\n".join(shown.lines()))
    return OK


def _say_frames(config: "RefineConfig") -> None:
    from penstock.refine import frames_of
    from penstock.refine_sink import open_rows
    from penstock.refine_statistics import frame_lines

    scenes, limit = frames_of(config)
    for line in frame_lines(open_rows(config.outputs.store), scenes, limit):
        print(line, file=sys.stderr)


def _launcher(config: "RefineConfig", launcher: str, address: str | None) -> "Launcher | None":
    """None: what the configuration takes on this machine."""
    from penstock.errors import UsageError

    if launcher == "local":
        if address is not None:
            raise UsageError(f"--ray-address {address}: expected none with the local launcher; say --launcher ray")
        return None
    if config.sequential:
        raise UsageError("--launcher ray: expected workers, got --sequential, which works in this process")
    from penstock.launch.ray import Ray

    share = None if config.processes_per_gpu == 1 else 1 / config.processes_per_gpu
    count = config.workers if config.workers > 0 else None
    return Ray(count, address=address, gpus=share if config.device != "cpu" else None, timeout_s=config.timeout_s)
