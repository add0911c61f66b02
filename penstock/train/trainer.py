"""The training loop: ranks, accumulation, mixed precision, averages, checkpoints, exact resume. Plain torch."""

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import orjson
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from penstock.errors import NotFinite, UsageError
from penstock.store.output import refused_if_unwritable
from penstock.train.checkpoint import (
    BEST,
    latest,
    load_checkpoint,
    random_state,
    remove_old,
    save_checkpoint,
    set_random_state,
    step_path,
)
from penstock.train.distributed import Ranks
from penstock.train.ema import Ema
from penstock.train.logs import Interval, Journal, Means, Writer, line_of
from penstock.train.objective import Losses, Objective
from penstock.train.pieces import (
    Batch,
    Whole,
    adamw,
    added,
    gradient_norm,
    num_samples,
    on_device,
    pieces_of,
    require_trainable,
    sample_keys,
    seed_step,
    warn_of_slow_average,
)
from penstock.train.settings import TrainSettings

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NAMED = 20
"""Samples that a NaN names."""
_log = logging.getLogger(__name__)


class Feeds(Protocol):
    """What a trainer needs of a loader: `Loader`, `MixLoader`."""

    def __iter__(self) -> Iterator[Any]:
        """Batches of this rank's share, from the first not yet taken to the end of an epoch, or without end."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Where the consumer stands."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Goes on from there."""
        ...


class Trainer:
    """Trains a model on an objective.

    A step takes a global batch: this rank's share comes from the loader and is cut into `accumulation` pieces. Each named
    loss is the sum over all samples of the global batch that have it, divided by their number, so that a step is the same
    whatever the ranks and pieces. Weights are float32; `bf16` computes in bfloat16 under autocast.

    Args:
        model: on any device; it is moved to that of the ranks. Its parameters must be float32.
        objective: the losses.
        loader: batches; an iterator that ends is begun again (the next epoch).
        settings: numbers.
        folder: of checkpoints and logs; made if it is not there. A run in it is continued.
        ranks: from `joined()`.
        identity: what else must be the same for a run to be continued: the model's configuration, the recipe.
        evaluate: called on all ranks with the model (the average, where there is one) in eval mode; gives metrics, the same
            on every rank.
        on_worst: called on the first rank after an evaluation with a batch and the numbers of its worst samples, the
            worst first, and a folder: for pictures of them.
        writers: further places for numbers.

    Raises:
        UsageError: a parameter is not float32, or none is trained.
        OutputRefused: the folder cannot be made.
        StoreCorrupt: its newest checkpoint is damaged.
        RecipeMismatch: the folder's run is of another configuration.
        StateMismatch: its data or order are not those of the loader.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        loader: Feeds,
        settings: TrainSettings,
        *,
        folder: Path,
        ranks: Ranks | None = None,
        identity: Mapping[str, object] | None = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        on_worst: Callable[[Batch, Sequence[int], Path], None] | None = None,
        writers: Sequence[Writer] = (),
    ) -> None:
        self.ranks = ranks or Ranks()
        self.model, self.objective, self.loader, self.settings = model, objective, loader, settings
        self.folder, self.evaluate, self.on_worst = folder, evaluate, on_worst
        self.identity = {"settings": settings.identity(), "given": dict(identity or {})}
        require_trainable(model)
        model.to(self.ranks.device)
        self.ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
        if self.ranks.is_first:
            warn_of_slow_average(settings)
        self.optimizer = adamw(model, settings)
        self.step = 0
        """Updates made."""
        self.first_step = 0
        """Updates made before this process went on."""
        self.metrics: dict[str, float] = {}
        """Of the last evaluation."""
        self.best: float | None = None
        with refused_if_unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        seed_step(settings.seed, self.step, self.ranks.rank)
        self._whole: nn.Module = Whole(model, objective)
        if self.ranks.world_size > 1:
            self._whole = DistributedDataParallel(
                self._whole,
                find_unused_parameters=settings.unused_parameters,
            )
        self._journal: Journal | None = None
        if self.ranks.is_first:
            self._journal = Journal(folder, from_step=self.step, writers=list(writers))
        self._interval = Interval()
        self._means = Means()
        self._last: tuple[Batch, torch.Tensor | None] | None = None
        self._signal = 0

    def run(self) -> dict[str, float]:
        """Trains to the last step; gives the metrics of the last evaluation.

        Raises:
            NotFinite: a loss or a gradient is NaN or infinite; the message names the samples; weights are as before.
            SystemExit: 128 + the number of SIGTERM or SIGINT, after a checkpoint.
        """
        settings = self.settings
        journal = contextlib.closing(self._journal) if self._journal else contextlib.nullcontext()
        with self._signals(), journal, contextlib.closing(self._batches()) as batches:
            while self.step < settings.steps:
                if hasattr(self.objective, "begin"):
                    self.objective.begin(self.step)
                begin = time.perf_counter()
                batch = next(batches)
                self._interval.wait_s += time.perf_counter() - begin
                number = self._update(batch)
                self._interval.steps_s.append(time.perf_counter() - begin)
                self._interval.total_s += self._interval.steps_s[-1]
                last = self.step == settings.steps
                if number or last or self.step % settings.log_every == 0:
                    self._say()
                if last or (settings.eval_every and self.step % settings.eval_every == 0):
                    self._evaluate()
                if number or last or self.step % settings.save_every == 0:
                    self.save()
                if number:
                    raise SystemExit(128 + number)
        return self.metrics

    def overfit(self) -> list[float]:
        """Takes every step on the first batch, and saves nothing: the loss must fall to nearly nothing, or something is
        wrong with model, objective or data. Gives the total loss of every step."""
        batch = self._first_batch()
        totals = []
        while self.step < self.settings.steps:
            self._means = Means()
            self._update(batch)
            totals.append(self._means.values()["loss"])
        return totals

    def dry_run(self) -> dict[str, object]:
        """One batch forward and backward, without an update: plain values to look at before the long run.

        Raises:
            NotFinite: as `run`.
        """
        batch = self._first_batch()
        device_batch, count = on_device(batch, self.ranks.device), num_samples(batch)
        means, bad, _ = self._backward(device_batch, count)
        norm = gradient_norm(self.model)
        self._require_finite(batch, bad, means.values(), norm)
        self.optimizer.zero_grad(set_to_none=True)
        parameters = list(self.model.parameters())
        return {
            "fields": {name: list(getattr(value, "shape", [len(value)])) for name, value in batch.items()},
            "samples_per_rank": count,
            "accumulation": self.settings.accumulation,
            "ranks": self.ranks.world_size,
            "device": str(self.ranks.device),
            "steps": self.settings.steps,
            "step": self.step,
            "parameters": sum(one.numel() for one in parameters),
            "trained": sum(one.numel() for one in parameters if one.requires_grad),
            "losses": means.values(),
            "gradient_norm": norm,
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if self.ranks.device.type == "cuda" else 0,
        }

    def save(self, name: str = "") -> None:
        """Writes a checkpoint, from the first rank; the others wait."""
        if self.ranks.is_first:
            content = {
                "step": self.step,
                "identity": orjson.dumps(self.identity).decode(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else {},
                "loader": dict(self.loader.state_dict()),
                "random": random_state(),
                "metrics": dict(self.metrics),
                "best": self.best,
            }
            save_checkpoint(self.folder / name if name else step_path(self.folder, self.step), content)
            remove_old(self.folder, self.settings.keep_last)
        self.ranks.wait()

    def _resume(self) -> None:
        path = latest(self.folder)
        if path is None:
            return
        content = load_checkpoint(path, identity=self.identity)
        self.loader.load_state_dict(content["loader"])
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.ema:
            self.ema.load_state_dict(content["ema"])
        set_random_state(content["random"])
        self.step = self.first_step = content["step"]
        self.metrics, self.best = content["metrics"], content["best"]
        _log.info("goes on from %s", path)

    def _first_batch(self) -> Batch:
        with contextlib.closing(self._batches()) as batches:
            return next(batches)

    def _batches(self) -> Generator[Batch, None, None]:
        """Epoch after epoch. Closing it ends the loader's threads."""
        while True:
            taken = False
            for batch in self.loader:
                taken = True
                yield batch
            if not taken:
                raise UsageError("train: the loader gives no batch")

    def _update(self, batch: Batch) -> int:
        """One step; gives the number of a signal that any rank has got, or 0."""
        settings, count = self.settings, num_samples(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        seed_step(settings.seed, self.step, self.ranks.rank)
        begin = time.perf_counter()
        moved = on_device(batch, self.ranks.device)
        self._interval.copy_s += time.perf_counter() - begin
        self._interval.take(batch, count)
        means, bad, number = self._backward(moved, count)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm or math.inf))
        self._require_finite(batch, bad, means.values(), norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            self.ema.update()
        self._last = batch, bad
        self._note_worst(batch, bad)
        means.add("gradient_norm", norm)
        self._means.join(means)
        return number

    def _backward(self, batch: Batch, count: int) -> tuple[Means, torch.Tensor | None, int]:
        """Gradients of the global loss; the losses, per-sample losses of this rank, and a signal's number."""
        settings, ranks = self.settings, self.ranks
        pieces = list(pieces_of(batch, count, settings.accumulation))
        mine = {f"n {name}": value for name, value in added([self.objective.counts(one) for one in pieces]).items()}
        shared = ranks.sums({**mine, "samples": count, "signal": float(self._signal)})
        counts = {name: max(shared[f"n {name}"], 1.0) for name in self.objective.weights}
        sums: list[Mapping[str, float]] = []
        per_sample: list[torch.Tensor] = []
        for number, piece in enumerate(pieces, 1):
            quiet = number < len(pieces) and isinstance(self._whole, DistributedDataParallel)
            with self._whole.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    losses: Losses = self._whole(piece)
                weighted = [
                    weight * losses.sums[name] / counts[name] for name, weight in self.objective.weights.items()
                ]
                torch.stack([one.float() for one in weighted]).sum().mul(ranks.world_size).backward()  # type: ignore[no-untyped-call]
            sums.append({f"sum {name}": float(losses.sums[name].detach()) for name in self.objective.weights})
            sums.append({f"of {name}": float(value) for name, value in losses.metrics.items()})
            sums.append({f"having {name}": float(value) for name, value in losses.having.items()})
            if losses.per_sample is not None:
                per_sample.append(losses.per_sample.detach().float().cpu())
        total = ranks.sums(added(sums))
        means = Means()
        for name in self.objective.weights:
            means.add(name, total[f"sum {name}"], total.get(f"having {name}", shared[f"n {name}"]))
        means.add("loss", sum(w * total[f"sum {name}"] / counts[name] for name, w in self.objective.weights.items()))
        for name in (name for name in total if name.startswith("of ")):
            means.add(name[3:], total[name], shared["samples"])
        return means, torch.cat(per_sample) if per_sample else None, int(shared["signal"] and max(self._signals_got()))

    def _signals_got(self) -> list[int]:
        return [int(str(one)) for one in self.ranks.gathered(self._signal)]

    def _require_finite(self, batch: Batch, bad: torch.Tensor | None, found: Mapping[str, float], norm: float) -> None:
        if math.isfinite(found["loss"]) and math.isfinite(norm):
            return
        keys = sample_keys(batch)
        guilty = keys if bad is None else [keys[i] for i in torch.nonzero(~torch.isfinite(bad)).flatten().tolist()]
        named = [name for one in self.ranks.gathered(guilty) for name in one]  # type: ignore[attr-defined]
        self.optimizer.zero_grad(set_to_none=True)
        parts = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        where = ", ".join(named[:_NAMED]) + more or "no single sample: all losses are finite, the gradient is not"
        raise NotFinite(
            f"train: step {self.step}: a loss or a gradient is not finite ({parts}, gradient norm {norm:.4g}). "
            f"Samples: {where}. The weights are those of step {self.step}; look at the samples, or lower the learning rate"
        )

    def _note_worst(self, batch: Batch, bad: torch.Tensor | None) -> None:
        if bad is None or not len(bad):
            return
        number = int(bad.argmax())
        self._interval.worst.append((float(bad[number]), sample_keys(batch)[number]))

    def _say(self) -> None:
        intervals = self.ranks.gathered(self._interval.plain())
        if self._journal is not None:
            rate = self.settings.learning_rate_at(self.step - 1)
            line = {**self._means.values(), "learning_rate": rate, **line_of(intervals)}  # type: ignore[arg-type]
            self._journal.write(self.step, self.settings.steps, line)
        self._interval, self._means = Interval(), Means()

    def _evaluate(self) -> None:
        if self.evaluate is not None:
            self.model.eval()
            with self.ema.used() if self.ema else contextlib.nullcontext(), torch.no_grad():
                self.metrics = {name: float(value) for name, value in self.evaluate(self.model).items()}
            self.model.train()
            if self._journal is not None:
                self._journal.write(self.step, self.settings.steps, {f"eval/{k}": v for k, v in self.metrics.items()})
            self._keep_best()
        if self.on_worst is not None and self._last is not None and self._last[1] is not None and self.ranks.is_first:
            order = torch.argsort(self._last[1], descending=True).tolist()
            self.on_worst(self._last[0], order, self.folder)

    def _keep_best(self) -> None:
        name = self.settings.best.removeprefix("-")
        if not name:
            return
        if name not in self.metrics:
            raise UsageError(f"train: best={self.settings.best!r}: expected one of {', '.join(self.metrics)}")
        value = self.metrics[name] * (-1 if self.settings.best.startswith("-") else 1)
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.best = value
            self.save(BEST)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are noted; the step in hand is finished and saved. A second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number
            signal.signal(number, before[signal.Signals(number)])

        for number in _SIGNALS:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
