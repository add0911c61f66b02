"""MixLoader: global batches of a mixture, the same on any number of ranks, threads and accumulation steps."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from penstock.buffers import Batch
from penstock.errors import StateMismatch, UsageError
from penstock.loader import Loader
from penstock.mix_source import Mixed
from penstock.mix_tally import Budget, MixTally

STATE_VERSION = 1


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
        budget: of bad rows; None: any number.
        quarantine: folder of the lists of bad rows. All lists in it are read now; this rank appends to its own when
            `save_quarantine` is called. None: no lists.

    Raises:
        UsageError: a setting is out of range; batch_size is no multiple of world_size.
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
    ) -> None:
        self._folder = None if quarantine is None else Path(quarantine)
        known = {} if self._folder is None else read_quarantine(self._folder)
        self.mixed = mixed.with_quarantine(_joined(mixed.quarantine, known))
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
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
        self._step = 0

    def __len__(self) -> int:
        """Batches of the first epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first not yet taken on.

        Raises:
            BudgetExceeded: too many bad rows.
            BadData: all rows tried for one position are bad.
        """
        for batch in self.loader:
            self.tally.take(batch)
            self._step += 1
            yield batch

    @property
    def next_position(self) -> int:
        """The first global position that was not consumed."""
        return self._step * self.batch_size

    def state_dict(self) -> dict[str, object]:
        """Where the consumer stands, counted in what it took; fits JSON, well below 1 KB for usual numbers of parts."""
        return {
            "version": STATE_VERSION,
            "plan": self.mixed.plan_digest,
            "data": dict(self.mixed.data_digests),
            "batch_size": self.batch_size,
            "next_position": self.next_position,
        }

    def load_state_dict(self, state: Mapping[str, object], *, allow_data_change: bool = False) -> None:
        """Goes on where a loader stood, on any number of ranks and threads.

        Raises:
            StateMismatch: the state is of another plan, batch size or (unless allowed) of other data; all are named.
        """
        ours = self.state_dict()
        wrong = [
            f"{name}: expected {ours[name]!r}, got {state.get(name)!r}"
            for name in ("version", "plan", "batch_size")
            if state.get(name) != ours[name]
        ]
        theirs = state.get("data")
        data = theirs if isinstance(theirs, dict) else {}
        for name in sorted({*self.mixed.data_digests, *data}):
            expected, found = self.mixed.data_digests.get(name), data.get(name)
            if expected != found and not allow_data_change:
                wrong.append(f"data of {name}: expected {expected}, got {found}")
        position = state.get("next_position")
        if not isinstance(position, int) or position < 0 or position % self.batch_size:
            wrong.append(f"next_position: expected a multiple of {self.batch_size}, got {position!r}")
        if wrong or not isinstance(position, int):
            raise StateMismatch(f"MixLoader: the state belongs to other data or settings: {'; '.join(wrong)}")
        self._step = position // self.batch_size
        self.loader.seek(self._step)

    def save_quarantine(self) -> int:
        """Appends the bad rows met since the last call to this rank's list; gives how many.

        Raises:
            UsageError: the loader was made without a quarantine folder.
        """
        if self._folder is None:
            raise UsageError("MixLoader: save_quarantine needs quarantine=FOLDER")
        lines = [
            json.dumps({"source": name, "key": key, "error": error}, ensure_ascii=False)
            for name, keys in self.tally.bad.items()
            for key, error in keys.items()
        ]
        self.tally.bad.clear()
        if lines:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"rank{self.rank}.jsonl").open("ab") as file:
                file.truncate(_end_of_lines(Path(file.name)))
                file.write("".join(f"{line}\n" for line in lines).encode())
        return len(lines)


def read_quarantine(folder: Path) -> dict[str, dict[str, str]]:
    """Part -> key -> class of the error, from all lists of a folder. A torn last line (of a kill) is left out.

    Raises:
        UsageError: another line is no JSON object with source, key and error.
    """
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is torn, or empty
            try:
                entry = json.loads(line)
                found.setdefault(str(entry["source"]), {})[str(entry["key"])] = str(entry["error"])
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(
                    f"{path}:{number}: expected a JSON object with source, key and error, got {line[:80]!r}"
                ) from error
    return found


def _end_of_lines(path: Path) -> int:
    """Bytes up to the last line end: what a kill left after it is torn."""
    return path.read_bytes().rfind(b"\n") + 1


def _joined(one: Mapping[str, Mapping[str, str]], other: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in {*one, *other}}
