"""What a training run says: a line per interval, the same as JSON lines, and to TensorBoard or W&B where they are wanted."""

import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from penstock.errors import MissingExtra
from penstock.store.output import replace_file

LOG = "log.jsonl"
_WORST = 3
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Where numbers go besides the JSON lines."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


@dataclass(kw_only=True)
class Interval:
    """What happened since the last line, on this rank."""

    samples: int = 0
    wait_s: float = 0.0
    """In the loader."""
    copy_s: float = 0.0
    """Bringing batches to the device, as far as the host waits for it."""
    total_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    """Source -> samples."""
    substituted: Counter[str] = field(default_factory=Counter)
    """Source -> samples that another row stood in for."""
    worst: list[tuple[float, str]] = field(default_factory=list)
    """Of each step the sample with the highest loss, and its key."""

    def take(self, batch: Mapping[str, Any], num_samples: int) -> None:
        """Counts a batch; sources where it says them."""
        self.samples += num_samples
        if "source" in batch and "attempt" in batch:
            self.parts.update(batch["source"])
            attempts = np.asarray(batch["attempt"]).tolist()
            self.substituted.update(
                name for name, attempt in zip(batch["source"], attempts, strict=True) if attempt > 0
            )

    def plain(self) -> dict[str, Any]:
        """As plain values, to be gathered from all ranks."""
        return {
            **vars(self),
            "parts": dict(self.parts),
            "substituted": dict(self.substituted),
            "worst": nlargest(_WORST, self.worst),
        }


class Means:
    """Means by name: of a loss over the samples that have it, of other numbers over steps. What no sample had has no mean."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """A sum over so many."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def join(self, other: "Means") -> None:
        """What another one has, too."""
        for name, total in other._sums.items():
            self.add(name, total, other._counts[name])

    def values(self) -> dict[str, float]:
        """Name -> mean."""
        return {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name]}


def line_of(intervals: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of an interval over all ranks: rates, waiting, sources.

    Returns:
        samples_per_s; data_wait and copy, shares 0..1 of the time of the rank that waited most; step_p50_ms and
        step_p99_ms; sources: name -> share; substituted: name -> share of its samples.
    """
    times = [max(one["total_s"], 1e-9) for one in intervals]
    steps = np.concatenate([one["steps_s"] for one in intervals]) * 1e3
    found: dict[str, Any] = {
        "samples_per_s": sum(one["samples"] for one in intervals) / max(times),
        "data_wait": max(one["wait_s"] / time for one, time in zip(intervals, times, strict=True)),
        "copy": max(one["copy_s"] / time for one, time in zip(intervals, times, strict=True)),
        "step_p50_ms": float(np.percentile(steps, 50)),
        "step_p99_ms": float(np.percentile(steps, 99)),
    }
    parts: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for one in intervals:
        parts.update(one["parts"])
        bad.update(one["substituted"])
    if parts:
        found["sources"] = {name: count / parts.total() for name, count in sorted(parts.items())}
        found["substituted"] = {name: bad[name] / parts[name] for name in sorted(bad)}
    worst = nlargest(_WORST, (tuple(entry) for one in intervals for entry in one["worst"]))
    if worst:
        found["worst"] = [{"loss": loss, "key": key} for loss, key in worst]
    return found


class Journal:
    """Writes lines: JSON to a file, words to the log, numbers to writers. One process of a run has one.

    Args:
        folder: of the run.
        from_step: lines of later steps are cut off: the run goes on from there and writes them again.
        writers: further places.
    """

    def __init__(self, folder: Path, *, from_step: int, writers: list[Writer]) -> None:
        self.path = folder / LOG
        self.writers = writers
        if self.path.exists():
            lines = [line for line in self.path.read_bytes().split(b"\n")[:-1] if _step_of(line) <= from_step]
            self.path.write_bytes(b"".join(line + b"\n" for line in lines))

    def write(self, step: int, steps: int, values: Mapping[str, Any]) -> None:
        """One line: after so many of all steps."""
        with self.path.open("ab") as file:
            file.write(orjson.dumps({"step": step, **values}, option=orjson.OPT_APPEND_NEWLINE))
        _log.info("step %d/%d  %s", step, steps, words_of(values))
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for writer in self.writers:
            writer.write(step, numbers)

    def close(self) -> None:
        """Closes the writers."""
        for writer in self.writers:
            writer.close()


def words_of(values: Mapping[str, Any]) -> str:
    """The values as a line for people."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{key} {share:.0%}" for key, share in value.items())
            found += [f"{name} {inner}"] if inner else []
        elif name in ("data_wait", "copy"):
            found.append(f"{name} {value:.1%}")
        elif isinstance(value, int | float):
            found.append(f"{name} {value:.4g}")
    return "  ".join(found)


class TensorBoard:
    """Numbers and pictures into TensorBoard's event files.

    Args:
        folder: of the run.
        from_step: where it begins or goes on; what a killed run wrote of later steps is shown no more.

    Raises:
        MissingExtra: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, from_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "train", "TensorBoard") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, array: np.ndarray) -> None:
        """A picture, (H, W, 3) uint8 RGB. One of the same name at another step is shown on the same slider."""
        self._writer.add_image(name, array, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class WandB:
    """Numbers to Weights & Biases: one run there for one folder, however often it goes on.

    Args:
        folder: of the run; `wandb_id.txt` in it says which run there.
        project: there.

    Raises:
        OutputRefused, OutputFull: the folder cannot be written.
        MissingExtra: the package wandb is not installed.
    """

    def __init__(self, folder: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "wandb", "logging to Weights & Biases") from error
        path = folder / "wandb_id.txt"
        if not path.exists():
            replace_file(path, secrets.token_hex(8).encode())
        self._run = wandb.init(project=project, dir=str(folder), id=path.read_text(encoding="ascii"), resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """All numbers of the step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


def _step_of(line: bytes) -> float:
    """The step that a line is of; a line that is none belongs to no step."""
    try:
        return float(orjson.loads(line)["step"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return float("inf")
