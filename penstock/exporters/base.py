"""What an exporter is given: sequences one after another, and a folder that is not in its place yet."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from penstock.errors import BadData, SourceNotFound
from penstock.exporters.sequences import SavedSequence, SavedSet
from penstock.report import Outcome, Report
from penstock.store.disk import Disk

T = TypeVar("T")


@dataclass
class Output:
    """The folder that an exporter writes into; it is put in its place when the export is whole."""

    path: Path
    disk: Disk
    _sizes: dict[str, int] = field(default_factory=dict)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Writes files: path in the folder to content.

        Raises:
            OutputFull: no room.
        """
        for name, content in files.items():
            self._sizes[name] = 0
            self.append(name, content)
            self.disk.close(self.path / name)

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a file; makes it where there is none.

        Raises:
            OutputFull: no room.
        """
        path = self.path / name
        if not self._sizes.get(name):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.disk.write(path, content, self._sizes.get(name, 0))
        self._sizes[name] = self._sizes.get(name, 0) + len(content)


@dataclass
class Sequences:
    """The sequences that an export goes through, in order, once; what fails is noted and left out.

    Attributes:
        saved: the set.
        report: counts, and the first failures.
        about: what is said of each sequence that was exported.
        failures: all that were not, with the reason.
    """

    saved: SavedSet
    report: Report
    licence: str = ""
    on_progress: Callable[[Report], None] = lambda report: None
    stop: Callable[[], str] = lambda: ""
    about: list[dict[str, object]] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)

    def map(self, function: Callable[[SavedSequence], T]) -> Iterator[T]:
        """What the function gives for each sequence.

        A sequence that cannot be read, or for which the function raises BadData, has failed: it is in the report, and nothing
        is given for it. So the function writes nothing; whoever takes what it gives does.
        """
        for index, name in enumerate(self.saved.names):
            self.report.interrupted = self.stop()
            if self.report.interrupted:
                return
            try:
                sequence = self.saved.read(index)
                given = function(sequence)
            except (BadData, SourceNotFound) as error:
                outcome = Outcome(
                    key=name, error=type(error).__name__, message=str(error), source=self.saved.folders[index]
                )
                self.failures.append(outcome)
                self.report.add_failure(outcome)
            else:
                yield given
                self.about.append(sequence.about())
                self.report.done += 1
            self.on_progress(self.report)

    def summary(self) -> dict[str, object]:
        """What every export says of its origin: timestamp and recipe of the set, names of its sources, the licence stated."""
        manifest = self.saved.manifest or {}
        identity = manifest.get("identity", {})
        sources = {one["name"] for one in identity.get("sources", {}).values()} | {
            str(one["source"]) for one in self.about
        }
        return {
            "timestamp": manifest.get("timestamp", ""),
            "pictures": self.saved.pictures,
            "recipe": identity or None,
            "sources": sorted(sources),
            "licence": self.licence or "not recorded: that of the sources applies",
        }


class Exporter(Protocol):
    """An output layout. A frozen dataclass whose fields, all by keyword, are its options."""

    name: ClassVar[str]
    """As in the registry."""
    version: ClassVar[int]
    """Of the layout; recorded in the output."""
    deterministic: ClassVar[bool]
    """Whether equal sets give equal bytes."""

    def run(self, sequences: Sequences, out: Output) -> None:
        """Writes all sequences into the folder, by way of `sequences.map`.

        Raises:
            MissingExtra: a package is needed that is not installed; before anything is read.
            OutputFull: no room.
        """
        ...
