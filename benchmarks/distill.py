"""Does a distillation wait for its data? The same student over the same rows in each form, beside the seed's way. Tables.

    python benchmarks/distill.py [--rows 64] [--rounds 3] [--json result.json]         # about 15 minutes, 4 GB of disk
    python benchmarks/distill.py --quick
    python benchmarks/distill.py --device cuda --batch-size 32 --num-workers 8 --rows 512 --precision bf16

Rows: crops of examples/photos stretched to 1024 x 1024, and what the stand-in teacher says of them (sizes and types of
SAM2.1-B+: 256 x 64 x 64 and 256 x 32 x 32). `penstock teacher` writes pictures and NPZ files, from which the TARs are packed
and `penstock convert` makes the stores. Every form gives picture, P4_S16, edges and weight maps of shuffled rows, warm.

seed: a torch DataLoader with processes that read rows the original's way: seven .bin files by seek and read, or JPEG and NPZ out
of a TAR (with an index, so that it can shuffle, which the original cannot; only what is used is read).

alone: rows a second that the data side gives to nobody. emulated: the real training loop over a student that sleeps, as a
processor does while a GPU computes: no figure of a GPU, but what waiting would be beside one of that speed. real: training
steps of the student on --device. The ways take turns in each round; figures are medians of rounds.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.base import Peer, note_rows
from peers.plain import Original
from peers.tars import TarStored
from report import header, machine
from residency import folder_bytes, resident_share, warm
from torch import nn
from workloads import A, Workload

from penstock import open_store
from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.models.students import open_student
from penstock.teacher import TeacherConfig, teach
from penstock.train.distill import Distill, DistillModel
from penstock.train.distill_config import DistillConfig
from penstock.train.distill_data import DistillBatches, open_distill_data
from penstock.train.distributed import Ranks
from penstock.train.objective import Losses
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Feeds, Trainer

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PHOTOS = ("astronaut", "cat", "owl", "parrot")
TEACHER_FIELDS = ("P4_S16", "P5_S32", "edges", "weights", "bbox", "mask")
LEVEL = "P4_S16"
READ = ("image", LEVEL, "edge_256x256", "fg_map_64x64", "bg_map_64x64")
IN_TAR = Workload("A", tuple(column for column in A.columns if column.name in READ), A.batch, LEVEL)
EPOCHS = 1_000
"""Of a seed's loader in one iteration: more than any run here takes, so that no epoch's end drains its workers."""
STORE, STORE16, JPEG16, V1 = "store", "store, float16", "store, JPEG, float16", "v1 directory"
TAR, DEFLATED, FOLDER = "TAR, stored NPZ", "TAR, deflated NPZ", "folder of JPEG and stored NPZ"
SEED_BIN, SEED_TAR, SEED_DEFLATED = "seed: .bin files", "seed: TAR, stored NPZ", "seed: TAR, deflated NPZ"


@dataclass
class Way:
    """One form of the rows, how it is read, and what was found."""

    folder: Path
    feeds: Callable[[int], Feeds]
    """Batch size -> batches of the contract of distillation."""
    row_bytes: float = 0.0
    alone: list[float] = field(default_factory=list)
    emulated: dict[float, list[dict[str, float]]] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)

    def rate(self) -> float:
        """Rows a second alone."""
        return statistics.median(self.alone)

    def beside(self, ms: float, name: str) -> float:
        """A figure of the emulated training."""
        return statistics.median(one[name] for one in self.emulated[ms])


class SeedFeeds:
    """A peer's batches by the names of penstock's; a `Feeds` of the trainer."""

    def __init__(self, peer: Peer, folder: Path, batch_size: int, workers: int) -> None:
        peer.epochs = EPOCHS
        self._batches = peer.loader(folder, batch_size, workers, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            count = len(batch["image"])
            yield {
                "image": batch["image"].permute(0, 3, 1, 2),
                LEVEL: batch[LEVEL].reshape(count, 256, 64, 64),
                "edge_256x256": batch["edge_256x256"],
                "fg_map": batch["fg_map_64x64"],
                "bg_map": batch["bg_map_64x64"],
                "key": [""] * count,
            }

    def state_dict(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """It has none."""


class Sleeps:
    """The objective of a student on a device that takes so long for a picture and leaves the processor alone."""

    weights: Mapping[str, float] = {"step": 1.0}

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """All pictures."""
        return {"step": float(len(batch["image"]))}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Losses:
        """Sleeps; the loss is there for the loop's sake."""
        time.sleep(self.ms * len(batch["image"]) / 1e3)
        return Losses(sums={"step": next(model.parameters()).sum()})


def make_rows(folder: Path, rows: int) -> None:
    """Pictures and NPZ files, TARs of them, and stores of a TAR."""
    sys.path.append(str(EXAMPLES))
    from photo_crops import write_crops

    write_crops(folder / "pictures", PHOTOS, first=1001, count=rows)
    common = {"model_type": "stand-in", "durability": "process"}
    teach(TeacherConfig(source=f"sa1b:{folder / 'pictures'}", output=folder / "files", write="npz", fields=TEACHER_FIELDS,
                        device="cpu", num_workers=0, **common))  # fmt: skip
    pack(folder / "files", folder / "tar", None)
    pack(folder / "files", folder / "deflated", np.savez_compressed)
    outputs: dict[str, dict[str, Any]] = {
        "store": {},
        "store16": {"feature_dtype": "float16"},
        "jpeg16": {"feature_dtype": "float16", "image_codec": "jpeg"},
        "v1": {"layout": "v1"},
    }
    for name, options in outputs.items():
        tars = (str(folder / "tar" / "shard.tar"),)
        report = convert_sa1b_tar(
            ConvertConfig(tar_path=tars, output_dir=folder / name, workers=0, **options, **common)
        )
        assert report.done == rows, report.text()
    note_rows(folder / "v1", range(rows))  # type: ignore[arg-type]  # only its length is looked at


def pack(files: Path, output: Path, save: Callable[..., None] | None) -> None:
    """A TAR of all pairs of a folder, in order; `save` writes the NPZ files again, without masks, which nobody here reads."""
    output.mkdir()
    with tarfile.open(output / "shard.tar", "w") as tar:
        for picture in sorted(files.glob("*.jpg")):
            npz = picture.with_name(f"{picture.stem}_features.npz")
            tar.add(picture, picture.name)
            if save is None:
                tar.add(npz, npz.name)
                continue
            with tempfile.NamedTemporaryFile(suffix=".npz") as again, np.load(npz) as arrays:
                save(again, **{name: arrays[name] for name in arrays.files if name != "masks"})
                again.flush()
                tar.add(again.name, npz.name)


def ways_of(folder: Path, workers: int) -> dict[str, Way]:
    """All of them, by name."""

    def config(batch_size: int, **where: Any) -> DistillConfig:
        return DistillConfig(loss_type="fgd", edge_task_start_epoch=1, val_share=0.0, batch_size=batch_size,
                             num_workers=workers, **where)  # fmt: skip

    def ours(name: str, **where: Any) -> Way:
        def feeds(batch_size: int) -> Feeds:
            one = config(batch_size, **where)
            return DistillBatches(open_distill_data(one), one)

        return Way(folder / name, feeds)

    def seed(name: str, peer: Callable[[], Peer]) -> Way:
        return Way(folder / name, lambda batch_size: SeedFeeds(peer(), folder / name, batch_size, workers))

    return {
        STORE: ours("store", binary_data_path=folder / "store"),
        STORE16: ours("store16", binary_data_path=folder / "store16"),
        JPEG16: ours("jpeg16", binary_data_path=folder / "jpeg16"),
        V1: ours("v1", binary_data_path=folder / "v1"),
        TAR: ours("tar", data_format="tar_shard", data_path=(str(folder / "tar"),)),
        DEFLATED: ours("deflated", data_format="tar_shard", data_path=(str(folder / "deflated"),)),
        FOLDER: ours("files", data_format="npz_dir", data_path=(str(folder / "files"),)),
        SEED_BIN: seed("v1", lambda: Original(A)),
        SEED_TAR: seed("tar", lambda: TarStored(IN_TAR)),
        SEED_DEFLATED: seed("deflated", lambda: TarStored(IN_TAR)),
    }


def alone(feeds: Iterable[Mapping[str, Any]], seconds: float) -> float:
    """Rows a second, after the batches that were made before anybody asked."""
    running = iter(feeds)
    for _ in range(5):
        next(running)
    begin, rows, spent = time.perf_counter(), 0, 0.0
    while spent < seconds:
        rows += len(next(running)["key"])
        spent = time.perf_counter() - begin
    return rows / spent


def last_line(trainer: Trainer) -> dict[str, float]:
    """Trains; the line of the log about the second half of the steps, or what is left behind the first line."""
    trainer.run()
    found: dict[str, float] = json.loads((trainer.folder / "log.jsonl").read_bytes().splitlines()[-1])
    return found


def emulated(feeds: Feeds, ms: float, batch_size: int, steps: int) -> dict[str, float]:
    """Samples a second, waiting and busy share beside a device that takes `ms` for a picture."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(steps=2 * steps, log_every=steps, save_every=2 * steps)
        found = last_line(Trainer(nn.Linear(1, 1), Sleeps(ms), feeds, settings, folder=Path(folder)))
    rate = found["samples_per_s"]
    return {"samples_per_s": rate, "data_wait": found["data_wait"], "busy": rate * ms / 1e3}


def real(feeds: Feeds, arguments: argparse.Namespace) -> dict[str, float]:
    """The log's line about real training steps, all but the first ones."""
    from penstock.models.distill_protocols import Level

    config = DistillConfig(loss_type="fgd", edge_task_start_epoch=1, backbone=arguments.backbone)
    level = Level(name=LEVEL, stride=16, channels=256, side=64)
    opened = open_student(arguments.backbone, levels={LEVEL: level}, edge_head=True, image_size=1024)
    steps, ranks = arguments.real_steps, Ranks(device=torch.device(arguments.device))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(steps=2 * steps, log_every=steps, save_every=2 * steps, precision=arguments.precision)
        objective = Distill(config, steps_per_epoch=2 * steps)
        return last_line(
            Trainer(DistillModel(opened.model), objective, feeds, settings, folder=Path(folder), ranks=ranks)
        )


def measure(ways: Mapping[str, Way], arguments: argparse.Namespace) -> None:
    """Fills in what was found, the ways in turn, each round beginning with another."""
    names = list(ways)
    for turn in range(arguments.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            way = ways[name]
            way.alone.append(alone(way.feeds(arguments.batch_size), arguments.seconds))
            for ms in arguments.step_ms:
                step = max(arguments.batch_size * ms / 1e3, arguments.batch_size / way.alone[-1])
                steps = max(4, math.ceil(arguments.seconds / step))
                found = emulated(way.feeds(arguments.batch_size), ms, arguments.batch_size, steps)
                way.emulated.setdefault(ms, []).append(found)
            print(f"round {turn + 1}: {name}: {way.alone[-1]:.1f} rows/s", file=sys.stderr, flush=True)
    batch_size = arguments.batch_size if arguments.device != "cpu" else arguments.cpu_batch_size
    for name, way in ways.items() if arguments.real_steps else ():
        way.real = real(way.feeds(batch_size), arguments)
        print(f"real: {name}: {way.real['samples_per_s']:.2f} samples/s", file=sys.stderr, flush=True)


def float16_line(folder: Path) -> str:
    """What float16 costs and saves."""
    full, half = (open_store(folder / name) for name in ("store", "store16"))
    worst, sizes = 0.0, []
    for row in range(len(full)):
        a, b = (store.read(row, [LEVEL])[LEVEL] for store in (full, half))
        sizes = [a.nbytes, b.nbytes]
        a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
        cosine = (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
        worst = max(worst, float(1 - cosine.min()))
    return (
        f"float16: {LEVEL} of {sizes[1]:,} bytes a row in the place of {sizes[0]:,}; "
        f"largest cosine error of a cell, {len(full)} rows: {worst:.1e}"
    )


def main_table(ways: Mapping[str, Way], arguments: argparse.Namespace) -> str:
    """Bytes, rates, waiting."""
    steps = arguments.step_ms
    titles = [
        "rows as",
        "MB a row",
        "alone, rows/s",
        *(f"beside {ms:g} ms a picture: samples/s; waiting" for ms in steps),
    ]
    if arguments.real_steps:
        titles.append(f"real steps of {arguments.backbone}, {arguments.device}: ms (median); waiting; copying")
    lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] * len(titles))} |"]
    for name, way in ways.items():
        cells = [name, f"{way.row_bytes / 1e6:.2f}", f"{way.rate():.0f} ({min(way.alone):.0f}-{max(way.alone):.0f})"]
        cells += [f"{way.beside(ms, 'samples_per_s'):.1f}; {way.beside(ms, 'data_wait'):.1%}" for ms in steps]
        if way.real:
            cells.append(f"{way.real['step_p50_ms']:,.0f}; {way.real['data_wait']:.2%}; {way.real['copy']:.2%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claims(ways: Mapping[str, Way], arguments: argparse.Namespace) -> str:
    """The seed's three claims as found: its own reader, and the store, over each of its TARs."""
    steps, on_gpu = arguments.step_ms, bool(arguments.real_steps) and arguments.device != "cpu"
    titles = ["over", "loading time: 50-80 % less"]
    titles += [f"use of the device: 10-20 % more ({ms:g} ms)" for ms in steps]
    titles += [f"training: 20-40 % faster ({ms:g} ms)" for ms in steps]
    titles += ["training: 20-40 % faster (real)"] if on_gpu else []
    lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] * len(titles))} |"]
    for old in (SEED_DEFLATED, SEED_TAR):
        for new in (SEED_BIN, STORE, STORE16):
            before, after = ways[old], ways[new]
            cells = [f"{new} over {old}", f"{1 - before.rate() / after.rate():.0%}"]
            cells += [f"{before.beside(ms, 'busy'):.0%} to {after.beside(ms, 'busy'):.0%}" for ms in steps]
            rates = [(before.beside(ms, "samples_per_s"), after.beside(ms, "samples_per_s")) for ms in steps]
            rates += [(before.real["samples_per_s"], after.real["samples_per_s"])] if on_gpu else []
            cells += [f"{high / low - 1:.0%}" for low, high in rates]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The arguments, with those of --quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="eight rows, a look at everything")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-workers", type=int, default=2, help="threads of penstock, processes of the seed's way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--step-ms", type=float, nargs="+", default=[40.0, 10.0], help="a picture, of the emulated device"
    )
    parser.add_argument("--device", default="cpu", help="of the real steps")
    parser.add_argument("--backbone", default="yolov8:s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--real-steps", type=int, default=2, help="measured, after as many others; 0: none")
    parser.add_argument("--cpu-batch-size", type=int, default=1, help="of real steps on the CPU")
    parser.add_argument("--folder", type=Path, help="where the rows are made, for as long as it runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.batch_size, arguments.rounds, arguments.seconds = 8, 4, 1, 0.3
        arguments.backbone, arguments.real_steps = "yolov8:n", 1
    return arguments


def main() -> None:
    """Makes the rows, measures, prints."""
    arguments = parsed()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        facts = machine(folder)
        make_rows(folder, arguments.rows)
        ways = ways_of(folder, arguments.num_workers)
        for way in ways.values():
            way.row_bytes = folder_bytes(way.folder) / arguments.rows
            warm(way.folder)
        measure(ways, arguments)
        cached = min(resident_share(way.folder) for way in ways.values())
        line16 = float16_line(folder)
    facts["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    notes = [
        f"{arguments.rows} rows, batches of {arguments.batch_size}, {arguments.num_workers} threads or processes that load, "
        f"{arguments.rounds} rounds; at least {cached:.0%} of each form in the page cache. "
        f"Real steps: batches of {arguments.batch_size if arguments.device != 'cpu' else arguments.cpu_batch_size}, "
        f"{arguments.precision}, {facts.get('gpu', 'one thread')}.",
        line16 + ".",
    ]
    print(header(facts, notes), main_table(ways, arguments), claims(ways, arguments), sep="\n\n")
    if arguments.json:
        found = {
            name: {key: value for key, value in vars(way).items() if key not in ("folder", "feeds")}
            for name, way in ways.items()
        }
        content = {
            "machine": facts,
            "arguments": {**vars(arguments), "json": None, "folder": None},
            "ways": found,
            "float16": line16,
        }
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
