"""A mixture in somebody else's DataLoader: which positions make each batch, and how samples become one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import MissingExtra
from penstock.mix_loader import MixLoader
from penstock.schema import Record

if TYPE_CHECKING:
    import torch


class MixBatches:
    """Batch sampler: for each step the positions of this rank's share, as a `MixLoader` of the same settings takes them.

        loader = MixLoader(mixed, batch_size=16, rank=rank, world_size=world_size)
        feed = DataLoader(loader.mixed, batch_sampler=MixBatches(loader), collate_fn=collate, num_workers=4)

        for batch in feed:
            loader.take(batch)

    One `for` over the feed begins where the loader stands and runs over its `epochs`; then the loader stands at the end,
    where the next one begins. Workers hold no state: their number changes nothing.

    A DataLoader draws ahead of who uses its batches, so the loader learns of them by `MixLoader.take`: report, budget,
    list of bad rows and state are then those of its own iteration, and a `for` that was broken off goes on. Without, the
    loader stands still until all batches are drawn. `state_after(batch)` is the state once that batch is used; a
    StatefulDataLoader keeps it by itself.

    Args:
        loader: settings, samples and position; it reads nothing here.
    """

    def __init__(self, loader: MixLoader) -> None:
        self.loader = loader
        self._plan, self._epochs = loader.loader.plan, loader.loader.epochs

    def __len__(self) -> int:
        """Batches of the next `for`.

        Raises:
            TypeError: it has no end.
        """
        if self._epochs is None:
            raise TypeError("MixBatches: without end (epochs=None): it has no length")
        step = self.step
        return self._plan.end_of_epoch(step, self._epochs) - step

    def __iter__(self) -> "MixSteps":
        """Lists of positions; the iterator has a state of its own."""
        return MixSteps(self)

    @property
    def step(self) -> int:
        """Batches that the loader has given."""
        return self.loader.next_position // self.loader.batch_size

    def end(self, step: int) -> int | None:
        """The step at which a `for` that begins at this one ends; None: never."""
        return None if self._epochs is None else self._plan.end_of_epoch(step, self._epochs)

    def positions(self, step: int) -> list[int]:
        """This rank's positions of a step."""
        return list(self._plan.positions(step))

    def state_at(self, step: int) -> dict[str, object]:
        """The state of a `MixLoader` that has given so many batches."""
        return {**self.loader.state_dict(), "next_position": step * self.loader.batch_size}

    def state_after(self, batch: Mapping[str, Any]) -> dict[str, object]:
        """The state once this batch of this rank is used: what to save with the model.

        Raises:
            UsageError: as `MixLoader.step_of`.
        """
        return self.state_at(self.loader.step_of(batch) + 1)

    def state_dict(self) -> dict[str, object]:
        """Where the next `for` begins."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The next `for` goes on from there; on any number of ranks and workers.

        Raises:
            StateMismatch: as of `MixLoader.load_state_dict`.
        """
        self.loader.load_state_dict(state)


class MixSteps:
    """The iterator of `MixBatches`. Its state counts the steps that it gave: a StatefulDataLoader keeps it per batch."""

    def __init__(self, batches: MixBatches) -> None:
        self._batches = batches
        self._step = batches.step
        self._end = batches.end(self._step)

    def __iter__(self) -> "MixSteps":
        return self

    def __next__(self) -> list[int]:
        """This rank's positions of the next step."""
        if self._step == self._end:
            self._batches.load_state_dict(self.state_dict())
            raise StopIteration
        self._step += 1
        return self._batches.positions(self._step - 1)

    def state_dict(self) -> dict[str, object]:
        """The state of a `MixLoader` that has given as many batches."""
        return self._batches.state_at(self._step)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on from there, and the loader with it.

        Raises:
            StateMismatch: as of `MixLoader.load_state_dict`.
        """
        self._batches.load_state_dict(state)
        self._step = self._batches.step
        self._end = self._batches.end(self._step)


def collate(samples: Sequence[Record]) -> "dict[str, torch.Tensor | list[str]]":
    """A batch of samples of a mixture, as `MixLoader` gives with output="torch": a DataLoader's `collate_fn`.

    Args:
        samples: B of `Mixed`, one or more.

    Returns:
        Field -> tensor (B, *field.shape) in the field's own type (pictures uint8, `seed` uint64), or the list of B texts:
        `caption`, and of the provenance `source`, `key1`, `key2`, `failures`. `image2` is always there.

    Raises:
        MissingExtra: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train", "batches of tensors") from error
    batch: dict[str, torch.Tensor | list[str]] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        texts = [value for value in values if isinstance(value, str)]
        batch[name] = texts if isinstance(first, str) else torch.from_numpy(np.stack([np.asarray(v) for v in values]))
    return batch
