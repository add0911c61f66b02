"""MixLoader: global batches of a mixture, the same on any number of ranks, threads and accumulation steps."""

import json
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from penstock.buffers import Batch
from penstock.errors import StateMismatch, UsageError
from penstock.feed import Feed
from penstock.loader import Loader
from penstock.mix_source import Mixed
from penstock.mix_tally import Budget, MixTally
from penstock.store.output import full_said, refused_if_unwritable

STATE_VERSION = 1
_LONGEST_LINE = 1 << 16
_log = logging.getLogger("penstock")


class Positions:
    """The order of a source whose rows are positions: 0, 1, 2, ... without end."""

    continuous = True

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows, self.seed = num_rows, seed

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The positions themselves, (stop - start,) int64."""
        return np.arange(start, stop)

    def identity(self) -> str:
        """Everything the order depends on."""
        return f"Positions({self.num_rows})"


class MixLoader:
    """Batches of a mixture. Step t takes the positions [t * batch_size, (t + 1) * batch_size); rank r its r-th share.

    What a step gives depends on (mixture, batch_size, t) alone. Accumulation cuts a rank's share further, in the trainer.
    `for batch in loader` runs to the end of the mixture's epoch; a batch may reach over it, and no sample is left out.

    Args:
        mixed: the samples.
        batch_size: of the global batch, over all ranks.
        rank, world_size: this process and their number, which divides batch_size.
        threads: that read and decode.
        prefetch: batches ahead of the consumer.
        output: "numpy", or "torch" for tensors over the same memory.
        epochs: epochs of the mixture that one `for` runs over; None: without end.
        budget: of bad samples, in what this rank consumes; None: any number.
        quarantine: folder of the lists of bad rows. All lists in it are read now; this rank appends to its own what the
            batches taken met. None: no lists.
        allow_data_change: a state that was saved with other data is taken, with a warning: the order is that of the data
            now, from the position that was reached.

    Raises:
        UsageError: a setting is out of range; batch_size is no multiple of world_size; the quarantine is no folder.
    """

    def __init__(
        self,
        mixed: Mixed,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        prefetch: int = 3,
        output: str = "numpy",
        epochs: int | None = 1,
        budget: Budget | None = Budget(),  # noqa: B008  frozen
        quarantine: Path | str | None = None,
        allow_data_change: bool = False,
    ) -> None:
        self._folder = None if quarantine is None else Path(quarantine)
        known = {} if self._folder is None else read_quarantine(self._folder)
        self.mixed = mixed.with_quarantine(_joined(mixed.quarantine, known))
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.allow_data_change = allow_data_change
        self.tally = MixTally(self.mixed, budget)
        self.loader = Loader(
            self.mixed,
            batch_size=batch_size,
            sampler=Positions(len(mixed), mixed.plan.seed),
            epochs=epochs,
            output=output,
            threads=threads,
            prefetch=prefetch,
            rank=rank,
            world_size=world_size,
        )
        self._listed: set[tuple[str, str]] = set()
        self._step = 0

    def __len__(self) -> int:
        """Batches of the first epoch."""
        return len(self.loader)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Batches from the first not yet taken on. A consumer that stops early should close the iterator
        (`contextlib.closing`): that waits for the threads, and a process that ends while they decode may be aborted.

        Raises:
            BudgetExceeded: too many bad samples. The batch is not given, and is the next one of who goes on.
            BadData: all rows tried for one position are bad.
            OutputRefused, OutputFull: the list of bad rows cannot be written.
        """
        self.loader.seek(self._step)  # a batch that was made and not given is made again
        feed = cast(Feed, iter(self.loader))
        try:
            for batch in feed:
                self._count(batch)
                self._step += 1
                yield batch
        finally:
            feed.close("")

    def take(self, batch: Mapping[str, Any]) -> None:
        """Says that a batch is used now which somebody else's DataLoader made of `mixed` (see `penstock.mix_torch`): it
        counts in the report and against the budget, its bad rows go to the list, and the loader stands behind it. Batches
        of the loader's own iteration are taken already.

        Args:
            batch: of this rank, from `collate`, on the CPU.

        Raises:
            UsageError: its positions are not one of this rank's shares.
            BudgetExceeded, OutputRefused, OutputFull: as when iterating; the loader stays where it was.
        """
        step = self.step_of(batch)
        self._count(batch)
        self._step = step + 1

    def step_of(self, batch: Mapping[str, Any]) -> int:
        """The step whose share of this rank a batch is.

        Raises:
            UsageError: its positions are not one of this rank's shares: somebody cut the batches anew.
        """
        found = [int(position) for position in batch["position"]]
        step = found[0] // self.batch_size if found else 0
        expected = list(self.loader.plan.positions(step))
        if found != expected:
            raise UsageError(
                f"mix: expected the positions of rank {self.rank} of {self.world_size} at step {step}, {expected}; got "
                f"{found}. Does another sampler cut the batches again? Then do not prepare this DataLoader"
            )
        return step

    @property
    def next_position(self) -> int:
        """The first global position that was not consumed."""
        return self._step * self.batch_size

    def report(self) -> dict[str, dict[str, Any]]:
        """What this rank has consumed, per part: see `MixTally.report`; `penstock.mix_tally.added` adds those of all ranks."""
        return self.tally.report()

    def state_dict(self) -> dict[str, object]:
        """Where the consumer stands, counted in batches that it took, and what they depend on. Fits JSON; below 1 KB for up
        to ten parts or so."""
        mixed = self.mixed
        return {
            "version": STATE_VERSION,
            "next_position": self.next_position,
            "batch_size": self.batch_size,
            **mixed.settings,
            "parts": [[name, digest, mixed.data[name]] for name, digest in mixed.part_settings.items()],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on where a loader stood, on any number of ranks and threads.

        Raises:
            StateMismatch: the state is of other settings or (unless allowed) of other data; each difference is named.
        """
        ours = self.state_dict()
        differ = [
            f"{name}: expected {ours[name]!r}, got {state.get(name)!r}"
            for name in ours
            if name not in ("next_position", "parts") and state.get(name) != ours[name]
        ]
        changed = self._compare_parts(state.get("parts"), differ)
        position = state.get("next_position")
        if not isinstance(position, int) or position < 0 or position % self.batch_size:
            differ.append(f"next_position: expected a multiple of {self.batch_size}, got {position!r}")
        if differ or not isinstance(position, int) or (changed and not self.allow_data_change):
            hint = (
                "" if differ else ". With allow_data_change the loader goes on from the same position in the new order"
            )
            raise StateMismatch(f"MixLoader: the state is of another mixture: {'; '.join([*differ, *changed])}{hint}")
        if changed:
            _log.warning("penstock: the loader goes on with other data: %s", "; ".join(changed))
        self._step = position // self.batch_size
        self.loader.seek(self._step)

    def _compare_parts(self, theirs: object, differ: list[str]) -> list[str]:
        """Parts whose data changed; other differences are added to the list given."""
        try:
            known = {str(name): (digest, data) for name, digest, data in theirs}  # type: ignore[attr-defined]  # caught
        except (TypeError, ValueError):
            differ.append(f"parts: expected a list of (name, settings, data), got {theirs!r:.80}")
            return []
        mixed = self.mixed
        if list(known) != list(mixed.part_settings):
            differ.append(f"parts: expected {', '.join(mixed.part_settings)}, got {', '.join(known)}")
            return []
        changed = []
        for name, (digest, data) in known.items():
            if digest != mixed.part_settings[name]:
                differ.append(f"{name}: its weight, repeats, limits or pair rule differ")
            if data != mixed.data[name]:
                changed.append(f"{name}: its data changed: expected {mixed.data[name]}, got {data}")
        return changed

    def _count(self, batch: Mapping[str, Any]) -> None:
        """A batch in the counts, its bad rows in the list, both held against the budget."""
        self._append(self.tally.take(batch))
        self.tally.check()

    def _append(self, found: Sequence[Mapping[str, str]]) -> None:
        """Adds bad rows to this rank's list, each once."""
        new = {(one["source"], one["key"]): one for one in found}.keys() - self._listed
        if self._folder is None or not new:
            return
        lines = [json.dumps(one) for one in found if (one["source"], one["key"]) in new]
        path = self._folder / f"rank{self.rank}.jsonl"
        with refused_if_unwritable(path), full_said(path, "the lines before stay"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.truncate(_end_of_lines(file))
                file.write("".join(f"{line}\n" for line in dict.fromkeys(lines)).encode())
        self._listed |= new


def read_quarantine(folder: Path) -> dict[str, dict[str, str]]:
    """Part -> key -> class of the error, from all lists of a folder. A torn last line (of a kill) is left out.

    Raises:
        UsageError: it is a file; or another line is no JSON object with source, key and error.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"quarantine {folder}: expected a folder, or nothing yet; it is a file")
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is torn, or empty
            try:
                entry = json.loads(line)
                found.setdefault(str(entry["source"]), {})[str(entry["key"])] = str(entry["error"])
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(
                    f"{path}:{number}: expected a JSON object with source, key and error, got {line[:80]!r}"
                ) from error
    return found


def _end_of_lines(file: BinaryIO) -> int:
    """Bytes up to the last line end: what a kill left after it is torn."""
    start = max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1


def _joined(one: Mapping[str, Mapping[str, str]], other: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in {*one, *other}}
