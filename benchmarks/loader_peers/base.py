"""What every loader under test is: it writes two sources, and gives the numbers of the samples of its batches."""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

WEIGHTS = {"a": 3, "b": 1}
FIRST = {"a": 0, "b": 1000}
"""Number of the first sample of each source."""
SHARD = 30
"""Rows of a shard, for formats that have shards."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One process of a run."""

    folder: str
    """What `Peer.write` wrote."""
    mixed: bool = False
    """Both sources, three to one; otherwise source a alone. Shuffled either way."""
    rank: int = 0
    world: int = 1
    workers: int = 0
    """Worker processes; threads where it has threads."""
    global_batch: int = 8
    seed: int = 7
    survive: bool = False
    """Switches on what the library itself has against bad samples."""

    @property
    def batch(self) -> int:
        """Samples of this rank in a batch."""
        return self.global_batch // self.world

    @property
    def names(self) -> list[str]:
        """The sources that are drawn from."""
        return ["a", "b"] if self.mixed else ["a"]


class Run:
    """One opened loader."""

    def batches(self) -> Iterator[list[int]]:
        """Numbers of the samples, batch by batch. A mixture may go on without end."""
        raise NotImplementedError

    def state(self) -> Any:
        """What its documentation says to save, counted at the batch given last."""
        raise NotImplementedError

    def load(self, state: Any) -> None:
        """Goes on from there; called before `batches`."""
        raise NotImplementedError


class LoaderRun(Run):
    """A loader that is iterated over and has a state_dict, as torch's way is."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def batches(self) -> Iterator[list[int]]:
        for batch in self.loader:
            yield [int(number) for number in batch]

    def state(self) -> Any:
        return self.loader.state_dict()

    def load(self, state: Any) -> None:
        self.loader.load_state_dict(state)


class Peer:
    """One library, used as its documentation says."""

    needs: tuple[str, ...] = ()
    mixes = True
    resumes = True
    survives: ClassVar[str] = ""
    """The option against bad samples, in words; empty: it has none."""
    rebuilds = False

    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def write(self, folder: Path, rows: Mapping[str, int], bad: frozenset[int], changed: frozenset[int]) -> None:
        """Writes both sources; samples in `bad` cannot be decoded, those in `changed` have other content."""
        raise NotImplementedError

    def open(self, setup: Setup) -> Run:
        """A loader, from its first batch on."""
        raise NotImplementedError

    def rebuild(self, setup: Setup, step: int, place: int) -> int:
        """The number of the sample at that place of a batch, without reading those before it."""
        raise NotImplementedError


def payload(number: int, bad: frozenset[int], changed: frozenset[int]) -> bytes:
    """Stands for an encoded picture: mark, number, content."""
    mark = b"BAD!" if number in bad else b"GOOD"
    return mark + number.to_bytes(4, "little") + (b"other" if number in changed else b"usual") * 8


def decode(content: bytes) -> int:
    """The number in it.

    Raises:
        ValueError: it is damaged.
    """
    if content[:4] != b"GOOD":
        raise ValueError("damaged picture")
    return int.from_bytes(content[4:8], "little")


def numbers(rows: Mapping[str, int], name: str) -> range:
    """Numbers of the samples of a source."""
    return range(FIRST[name], FIRST[name] + rows[name])
