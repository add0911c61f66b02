"""The command line of measurements that need no training: what the data side can feed."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from penstock.cli_common import OK, Json
from penstock.report import dump_json
from penstock.train.distill_config import DataFormat

if TYPE_CHECKING:
    from penstock.train.distill_data import DistillBatches

bench = App(name="bench", help="Measure on this machine.")


@bench.command
def loader(
    *,
    binary_data_path: Path | None = None,
    data_format: DataFormat = "binary",
    data_path: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    level: str = "P4_S16",
    fields: str = "edges",
    batch_size: int = 16,
    num_workers: int = 4,
    seconds: float = 10.0,
    json: Json = False,
) -> int:
    """Say how many samples a second distillation could be fed: the batches of training, and nobody who trains.

    A training that takes more waits for its data. What is not in the page cache yet is read from the disk: run it twice to
    know both, and see what was cold.

    Parameters
    ----------
    binary_data_path
        A store or a v1 directory; by default binary_data_dir of the settings, else data/sa1b_binary.
    data_format
        `binary`, `tar_shard` (TARs of JPEG and NPZ) or `npz_dir` (such files in a folder).
    data_path
        With the other formats: TARs, folders of TARs; the folder of pictures and NPZ files.
    level
        Of the features.
    fields
        What is read beside picture and features: any of edges, weights and bbox (with its mask), separated by commas.
    batch_size
        Samples of a batch.
    num_workers
        Threads that read and decode.
    seconds
        How long, after the first batch; what is there is read again and again.
    """
    from penstock.errors import UsageError
    from penstock.models.opened import require_torch
    from penstock.train.distill_config import DistillConfig
    from penstock.train.distill_data import DistillBatches, open_distill_data

    require_torch("train")
    words = {word.strip() for word in fields.split(",") if word.strip()}
    if unknown := words - {"edges", "weights", "bbox"}:
        raise UsageError(f"fields: expected some of edges, weights, bbox, got {', '.join(sorted(unknown))}")
    if not seconds > 0:
        raise UsageError(f"seconds: expected a positive number, got {seconds}")
    for name, number in (("batch-size", batch_size), ("num-workers", num_workers)):
        if number < 1:
            raise UsageError(f"{name}: expected 1 or more, got {number}")
    config = DistillConfig(
        data_format=data_format,
        binary_data_path=binary_data_path,
        data_path=data_path,
        level=level,
        loss_type="fgd" if "weights" in words else "mse",
        edge_weight=float("edges" in words),
        decoder="stand-in" if "bbox" in words else None,
        val_share=0.0,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    data = open_distill_data(config)
    if len(data.train) < batch_size:
        raise UsageError(
            f"batch-size: expected at most the {len(data.train)} rows of {data.teacher['path']}, got {batch_size}: lower it, or "
            "measure more data"
        )
    found = {"data": dict(data.teacher), "batch_size": batch_size, "threads": num_workers}
    found |= _measured(DistillBatches(data, config), seconds)
    if json:
        print(dump_json({"command": "bench loader", "status": "ok", **found}))
        return OK
    facts = data.teacher
    print(f"{facts['path']} ({facts['format']}, chosen by {facts['chosen_by']}): {facts['rows']} rows")
    print(
        f"{found['samples_per_s']:.1f} samples/s, {found['gb_per_s']:.2f} GB/s, on {num_workers} threads, batches of {batch_size}"
    )
    print(f"{found['state']}; read by {found['io']}; the first batch after {found['first_batch_s']:.2f} s")
    return OK


def _measured(feeds: "DistillBatches", seconds: float) -> dict[str, Any]:
    """Samples and bytes a second after the first batch, for so long; whether the data were in the page cache before."""
    from penstock.fill import WARM_SHARE

    begin = time.perf_counter()
    running = iter(feeds)
    next(running)
    first_s = time.perf_counter() - begin
    report = feeds.report()
    residency, before = report["residency"], int(str(report["bytes"]))
    begin, samples, spent = time.perf_counter(), 0, 0.0
    while spent < seconds:
        samples += len(next(running)["key"])
        spent = time.perf_counter() - begin
    report = feeds.report()
    state = "nobody can say whether the data were in the page cache"
    if isinstance(residency, float):
        state = f"{'warm' if residency >= WARM_SHARE else 'cold'}: {residency:.0%} of the pages looked at were in the page cache"
    return {
        "samples": samples,
        "seconds": spent,
        "samples_per_s": samples / spent,
        "gb_per_s": (int(str(report["bytes"])) - before) / spent / 1e9,
        "bytes_per_sample": int(str(report["bytes"])) // int(str(report["drawn"])),
        "first_batch_s": first_s,
        "residency": residency,
        "state": state,
        **{name: report[name] for name in ("io", "substituted", "failed")},
    }
