"""The command line of teachers: pictures to what a student learns from."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penstock.cli_common import FAULT, OK, Flag, Json
from penstock.cli_job import run_job
from penstock.report import dump_json

if TYPE_CHECKING:
    from penstock.report import Report
    from penstock.teacher_check import Checked


def teacher(
    *,
    source: str,
    output: Path,
    model_type: str = "sam2.1_hiera_b+",
    weights: str | None = None,
    download: Flag = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    image_size: int | None = None,
    fields: str = "P4_S16,P5_S32,edges,weights,bbox,mask",
    feature_dtype: Literal["float32", "float16"] = "float32",
    write: Literal["store", "v1", "tar", "npz"] = "store",
    image_codec: Literal["raw", "jpeg"] | None = None,
    strategy: Literal["geometry-colour", "largest", "all"] = "geometry-colour",
    max_objects: int | None = None,
    batch_size: int = 8,
    num_workers: int = -1,
    device: str = "auto",
    devices: int = 1,
    max_pictures: int | None = None,
    max_failures: str | None = None,
    retry_failed: Flag = False,
    on_change: Literal["refuse", "recompute"] = "refuse",
    check: int = 0,
    durability: Literal["power", "process"] = "power",
    part_rows: int | None = None,
    timeout_s: float | None = None,
    launcher: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    dry_run: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Keep what a teacher says of pictures, for a student to learn from: features, edges, weight maps, boxes, masks.

    Run it again and it does only what is missing, or whose picture or masks changed.

    Parameters
    ----------
    source
        Pictures: `sa1b:DIR`, `coco-instances:DIR`, `scenes:ROOT`; `folder:DIR` has pictures without masks.
    output
        A new or empty folder, or the output of an earlier run.
    model_type
        The teacher, and what is recorded as such: a SAM2 by the name of its configuration, or `stand-in`, which is no
        network and needs no weights.
    weights
        A file, a folder of transformers, or OWNER/NAME of the hub; by default the model's own in model_zoo/sam.
    download
        Fetch weights from the hub that are not on this machine.
    precision
        Of the teacher; `bf16` on a GPU.
    image_size
        Side of the square; with `stand-in` only, any multiple of 32. By default the teacher's own, 1024.
    fields
        What to keep, separated by commas: levels (P2_S4, P3_S8, P4_S16, P5_S32), edges, weights, bbox, mask.
    feature_dtype
        `float16` halves the features.
    write
        `store`: penstock's own. `v1`: config.json and seven .bin files. `tar`: TARs of JPEG and NPZ. `npz`: such files.
    image_codec
        Of the stretched picture: `raw`, or `jpeg`; by default raw, and jpeg with tar and npz.
    strategy
        Which objects have a box and a mask: `largest`, `all`, or `geometry-colour`, by size, place and contrast.
    max_objects
        Boxes of a picture, at most; by default one, and all with `all`.
    batch_size
        Pictures per call of the teacher.
    num_workers
        Worker processes, each with the model; 0 works in this process, -1 takes one per core, or four per GPU.
    device
        `auto`, `cpu`, `cuda` or `cuda:1`.
    devices
        GPUs to share the work, from `--device` on.
    max_pictures
        Take only the first so many pictures.
    max_failures
        Failures that are still a success: `12`, or `0.5%` of the pictures.
    retry_failed
        Try pictures again that failed before from the same input.
    on_change
        Where the store was made with another teacher, fields or strategy: refuse, or compute all anew.
    check
        Afterwards compute so many rows again, one by one, and compare; exit 1 if a field is beyond the tolerance.
    durability
        `power`: what is committed outlives a power cut. `process`: it outlives a kill.
    part_rows
        Rows of a part of the store; samples of a TAR.
    timeout_s
        Seconds that one picture may take before it counts as failed.
    launcher
        `ray` works on the machines of a Ray cluster that share the disk: docs/ray.md.
    ray_address
        Of the cluster; by default one on this machine.
    dry_run
        Say what would be done and why; write nothing.
    quiet
        No progress on stderr.
    """
    from penstock.errors import UsageError
    from penstock.launch.workers import launcher_of
    from penstock.teacher import TeacherConfig, plan_teach, teach
    from penstock.teacher_check import check_rows

    if check < 0 or (check and write not in ("store", "v1")):
        raise UsageError(f"--check {check}: expected a number of rows of --write store or v1, or 0 for none")
    config = TeacherConfig(
        source=source, output=output, model_type=model_type, weights=weights, download=download, precision=precision,
        image_size=image_size, fields=tuple(name.strip() for name in fields.split(",") if name.strip()),
        feature_dtype=feature_dtype, write=write, image_codec=image_codec, strategy=strategy, max_objects=max_objects,
        batch_size=batch_size, num_workers=num_workers, device=device, devices=devices, max_pictures=max_pictures,
        max_failures=max_failures, retry_failed=retry_failed, on_change=on_change, durability=durability,
        part_rows=part_rows, timeout_s=timeout_s,
    )  # fmt: skip
    if dry_run:
        plan = plan_teach(config)
        print(dump_json(plan) if json else f"{output}: {plan['rows']}, {plan['reasons']}, {plan['bytes_to_write']} bytes, "
              f"about {plan['seconds_estimate']} s on {plan['workers']} workers")  # fmt: skip
        return OK
    workers = launcher_of(
        launcher, ray_address, num_workers=config.num_workers, devices=config.devices, timeout_s=config.timeout_s
    )
    checks: list[Checked] = []

    def run(progress: "Callable[[Report], None]", stop: "Callable[[], str]") -> "Report":
        report = teach(config, on_progress=progress, stop=stop, launcher=workers)
        if check and report.done and not report.interrupted:
            checks.append(check_rows(config, check))
            report.notes["checked"] = checks[0].to_json()
        _warn(report)
        return report

    code = run_job(run, output, quiet=quiet, json=json)
    for one in checks:
        print(f"{len(one.keys)} rows computed again:", *one.lines(), sep="\n  ", file=sys.stderr)
    return code or (OK if all(one.is_good for one in checks) else FAULT)


def _warn(report: "Report") -> None:
    """Says on stderr what a run of that kind must not hide."""
    notes = report.notes
    if notes["model_type"] == "stand-in":
        print(
            "penstock: teacher: these features are the stand-in's, of no network; they are no SAM2's", file=sys.stderr
        )
    if notes.get("random_weights"):
        print(f"penstock: teacher: {notes['model_type']}: random weights: the features mean nothing", file=sys.stderr)
    if notes.get("without_annotation"):
        print(
            f"penstock: teacher: {notes['without_annotation']} pictures have no annotation and are left out; folder:DIR "
            "takes pictures without masks",
            file=sys.stderr,
        )
    if notes.get("without_object"):
        print(f"penstock: teacher: {notes['without_object']} pictures have no object, and no box", file=sys.stderr)
