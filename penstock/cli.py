"""The command line: one thin function per command. Results go to stdout, progress and logs to stderr."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from penstock import (
    __version__,
    cli_bench,
    cli_data,
    cli_embed,
    cli_loader,
    cli_refine,
    cli_sequence,
    cli_teacher,
    cli_train,
    cli_train_distill,
)
from penstock.cli_common import EVERY_FLAG, FAULT, MISUSE, OK, Flag, Json, dashed
from penstock.cli_job import run_job
from penstock.errors import BadData, PenstockError, RowError, UsageError
from penstock.report import dump_json

_STDIN = "<standard input>"

app = App(
    name="penstock",
    version=__version__,
    help="Training-data engine for segmentation, tracking and distillation. In every flag `_` and `-` are the same.",
    result_action="return_value",
    default_parameter=EVERY_FLAG,
)
convert = App(name="convert", help="Turn somebody else's files into a store.")
app.command(convert)

app.command(cli_data.info)
app.command(cli_data.listed, name="list")
app.command(cli_data.settings)
app.command(cli_data.doctor)
app.command(cli_sequence.sequence)
app.command(cli_sequence.export)
app.command(cli_embed.embed)
app.command(cli_embed.search)
app.command(cli_embed.dedup)
app.command(cli_embed.zero_shot)
app.command(cli_embed.embedding_map, name="map")
app.command(cli_refine.refine)
app.command(cli_loader.loader)
app.command(cli_teacher.teacher)
app.command(cli_bench.bench)
cli_train.train.command(cli_train_distill.distill, name="distill")
app.command(cli_train.train)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and gives its exit code: 0 done, 1 a fault or too many failed rows, 2 misuse."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    arguments = [_dashed(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        code = app(arguments, exit_on_error=False, print_error=True)
    except CycloptsError as error:
        if "--json" in arguments:
            _print_error(error, arguments)
        return MISUSE
    except BrokenPipeError:  # `penstock info ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UsageError as error:
        return _complain(error, arguments, MISUSE)
    except PenstockError as error:
        return _complain(error, arguments, FAULT)
    return code if isinstance(code, int) else OK


@convert.command(name="sa1b-tar")
def convert_sa1b_tar(
    *,
    tar_path: Annotated[list[str], Parameter(consume_multiple=True, negative="")],
    output_dir: Path,
    layout: Literal["store", "v1"] = "store",
    image_codec: Literal["raw", "jpeg"] = "raw",
    feature_dtype: Literal["float32", "float16"] = "float32",
    fields: str = "",
    image_size: int = 1024,
    model_type: str = "sam2.1_hiera_b+",
    workers: int = -1,
    max_samples: int | None = None,
    max_failures: str | None = None,
    retry_failed: Flag = False,
    append: Flag = False,
    durability: Literal["power", "process"] = "power",
    part_rows: int | None = None,
    timeout_s: float | None = None,
    launcher: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    dry_run: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Convert TAR shards of SA-1B pictures and NPZ features into a distillation set.

    Rows are in input order. Run it again after an interruption and it does only what is missing; give more TARs and they
    are added; the same TAR twice adds nothing.

    Parameters
    ----------
    tar_path
        TARs in input order, compressed or not; `-` is standard input.
    output_dir
        A new or empty folder, or the output of an earlier run.
    layout
        `store`: penstock's own. `v1`: config.json and seven .bin files, as the original writes them.
    image_codec
        `jpeg` keeps the pictures compressed (layout store only).
    feature_dtype
        `float16` halves the features (layout store only).
    fields
        Names of the fields to keep, separated by commas; all that the first sample has by default (layout store only).
    image_size
        Side of the square picture in pixels (layout store only).
    model_type
        Name of the teacher that made the features; recorded.
    workers
        Worker processes; 0 works in this process, -1 takes one per core.
    max_samples
        Take only the first so many samples of the input.
    max_failures
        Failures that are still a success: `12`, or `0.5%` of the samples. More stop the run. Default: none is allowed, but
        the run goes on to the end.
    retry_failed
        Try samples again that failed before from the same input.
    append
        Allow adding to a v1 directory that penstock did not write.
    durability
        `power`: what is committed outlives a power cut. `process`: it outlives a kill.
    part_rows
        Rows of a part; by default what makes parts of 16 GiB.
    timeout_s
        Seconds that one sample may take before it counts as failed.
    launcher
        `ray` works on the machines of a Ray cluster that share the disk: docs/ray.md.
    ray_address
        Of the cluster; by default one on this machine.
    dry_run
        Say what would be done and why, how many bytes and about how long; write nothing.
    quiet
        No progress on stderr.
    """
    from penstock.convert import ConvertConfig, plan_sa1b_tar
    from penstock.convert import convert_sa1b_tar as run

    config = ConvertConfig(
        tar_path=tuple("-" if path == _STDIN else path for path in tar_path),
        output_dir=output_dir,
        layout=layout,
        image_codec=image_codec,
        feature_dtype=feature_dtype,
        fields=tuple(name.strip() for name in fields.split(",") if name.strip()),
        image_size=image_size,
        model_type=model_type,
        workers=workers,
        max_samples=max_samples,
        max_failures=max_failures,
        retry_failed=retry_failed,
        append=append,
        durability=durability,
        part_rows=part_rows,
        timeout_s=timeout_s,
        launcher=launcher,
        ray_address=ray_address,
    )
    if dry_run:
        plan = plan_sa1b_tar(config)
        rows = plan["rows"]
        print(dump_json(plan) if json else f"{output_dir}: {rows}, {plan['reasons']}, {plan['bytes_to_write']} bytes, "
              f"about {plan['seconds_estimate']} s on {plan['workers']} workers")  # fmt: skip
        return OK
    return run_job(
        lambda progress, stop: run(config, on_progress=progress, stop=stop), output_dir, quiet=quiet, json=json
    )


@app.command
def verify(path: Path, *, fast: Flag = False, quiet: Flag = False, json: Json = False) -> int:
    """Check a store: sizes, checksums, value ranges, keys; suspicious boxes and masks. Exit 1 if there is a fault.

    Saved sequences are compared, file by file, with what was written.

    Parameters
    ----------
    path
        A store, v1 directories included, whoever wrote it; or a folder of saved sequences.
    fast
        Sizes, manifest and ledger only; no row's bytes are read.
    quiet
        No progress on stderr.
    """
    from penstock.check import verify as run
    from penstock.cli_sequence import sequence_findings
    from penstock.progress import Progress
    from penstock.sequence_folder import MANIFEST, SIDE, saved_folders

    with Progress(quiet=quiet or json) as progress:
        if path.is_dir() and (any(saved_folders(path)) or (path / SIDE / MANIFEST).exists()):
            findings = sequence_findings(path, progress.rows)
        else:
            findings = run(path, full=not fast, on_progress=progress.rows)
    if json:
        print(dump_json(findings.to_json()))
    else:
        for kind, found in (("fault", findings.faults), ("suspicion", findings.suspicions), ("note", findings.notes)):
            for finding in found:
                print(f"{kind}: {finding.where}: {finding.message}")
        print(f"{path}: {len(findings.faults)} faults, {len(findings.suspicions)} suspicions")
    return FAULT if findings.faults else OK


@app.command
def repair(
    path: Path,
    *,
    tar_path: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    boxes: Literal["xyxy"] | None = None,
    dry_run: Flag = False,
    quiet: Flag = False,
    json: Json = False,
) -> int:
    """Mend what verify finds: cut a torn v1 directory to whole records, rebuild boxes and masks, mark damaged rows.

    Parameters
    ----------
    path
        A store, v1 directories included, whoever wrote it.
    tar_path
        TARs that the directory was made from: boxes, masks and metadata are made anew from them.
    boxes
        `xyxy`: turn the XYWH boxes of a v1 directory that the original wrote into XYXY.
    dry_run
        Say what would be done; change nothing.
    quiet
        No progress on stderr.
    """
    from penstock.progress import Progress
    from penstock.repair import repair as run

    with Progress(quiet=quiet or json) as progress:
        done = run(path, tars=tuple(tar_path or ()), boxes=boxes, dry_run=dry_run, on_progress=progress.rows)
    content = done.to_json()
    if json:
        print(dump_json(content))
    else:
        print(f"{path}: {'would do' if dry_run else 'done'}:")
        for name, value in content.items():
            print(f"  {name}: {value}")
    return OK


def _complain(error: PenstockError, arguments: Sequence[str], code: int) -> int:
    """Prints an error, as JSON where that was asked for."""
    if isinstance(error, (BadData, RowError)):
        code = FAULT
    if "--json" in arguments:
        _print_error(error, arguments)
    print(f"penstock: {error}", file=sys.stderr)
    return code


def _print_error(error: Exception, arguments: Sequence[str]) -> None:
    command = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    print(dump_json({"command": command, "status": "failed", "error": type(error).__name__, "message": str(error)}))


def _dashed(argument: str) -> str:
    """As `dashed`; a lone dash is a flag to the parser."""
    return _STDIN if argument == "-" else dashed(argument)
