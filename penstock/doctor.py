"""The doctor: is this machine ready, and is every dataset that the settings name what it should be?"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from penstock.describe import look
from penstock.doctor_machine import check_disks, check_machine, check_packages
from penstock.doctor_verdict import Verdict, fail, off, ok, warn
from penstock.errors import MissingExtra, PenstockError, SourceNotFound, UsageError
from penstock.geometry.channel_order import channel_order
from penstock.readers.base import Reader
from penstock.readers.masklets import Masklets
from penstock.registry import find, names
from penstock.settings import KEYS, Key, Loaded, Settings, load_settings
from penstock.source import Source
from penstock.store import open_store

OLD_SETTINGS = ("lib/train/admin/local.py", "ltr/admin/local.py", "local.py")
"""Where the original systems keep theirs, below the working folder."""


@dataclass
class Diagnosis:
    """All verdicts, in order."""

    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong. What is merely not set up is not wrong."""
        return not any(verdict.status == "fail" for verdict in self.verdicts)

    def to_json(self) -> dict[str, object]:
        """Plain values: command, status, checks, counts."""
        counts = {
            status: sum(one.status == status for one in self.verdicts) for status in ("ok", "warn", "fail", "off")
        }
        return {
            "command": "doctor",
            "status": "ok" if self.is_sound else "failed",
            "counts": counts,
            "checks": [asdict(verdict) for verdict in self.verdicts],
        }

    def lines(self) -> Iterator[str]:
        """One line per verdict, below it what to do next; at the end the whole in one sentence."""
        section = ""
        for verdict in self.verdicts:
            if verdict.section != section:
                section = verdict.section
                yield f"{section}"
            yield f"  {verdict.status:5} {verdict.name:22} {verdict.message}"
            if verdict.next_step:
                yield f"        {'':22} -> {verdict.next_step}"
        faults = [verdict.name for verdict in self.verdicts if verdict.status == "fail"]
        warnings = sum(verdict.status == "warn" for verdict in self.verdicts)
        yield f"not ready: {', '.join(faults)}" if faults else f"ready ({warnings} warnings)"


def examine(
    *, sample: int = 8, measure_disks: bool = False, on_progress: Callable[[str], object] = lambda what: None
) -> Diagnosis:
    """Looks at settings, datasets, packages, machine, disks.

    Args:
        sample: rows to read of each dataset.
        measure_disks: write and read back a file to say how fast the disks are.
        on_progress: told what is looked at next: an index of a large dataset takes minutes the first time.
    """
    diagnosis = Diagnosis()
    loaded = _settings(diagnosis.verdicts)
    settings = Settings() if loaded is None else loaded.settings
    for key in KEYS.values():
        path: Path | None = getattr(settings, key.name)
        if path is None or key.name == "cache_dir":
            continue
        on_progress(f"{key.name} ({path})")
        diagnosis.verdicts += _folder(key, path, sample)
    diagnosis.verdicts += _not_set(settings)
    on_progress("packages, machine, disks")
    diagnosis.verdicts += check_packages()
    diagnosis.verdicts += _registered()
    diagnosis.verdicts += check_machine()
    folders = {name: getattr(settings, name) for name in ("cache_dir", "binary_data_dir", "workspace_dir")}
    diagnosis.verdicts += check_disks({name: path for name, path in folders.items() if path}, measure=measure_disks)
    return diagnosis


def _settings(verdicts: list[Verdict]) -> Loaded | None:
    section = "settings"
    old = next((path for path in OLD_SETTINGS if Path(path).is_file()), "")
    try:
        loaded = load_settings()
    except PenstockError as error:
        verdicts.append(fail(section, "file", str(error), "mend the file, then run doctor again"))
        return None
    if loaded.file is None:
        how = f"penstock settings import {old}" if old else "write a penstock.toml: docs/settings.md has one to copy"
        verdicts.append(off(section, "file", f"none found; looked for {', '.join(map(str, loaded.searched))}", how))
    else:
        verdicts.append(ok(section, "file", str(loaded.file)))
    verdicts += [warn(section, "variables", note, "correct or unset it") for note in loaded.notes]
    return loaded


def _not_set(settings: Settings) -> list[Verdict]:
    """One line for all readers without a folder; a fault where there is no folder at all."""
    section = "datasets"
    unset = [key for key in KEYS.values() if getattr(settings, key.name) is None and key.readers]
    kept = [key for key in KEYS.values() if key.readers or key.name == "binary_data_dir"]
    if all(getattr(settings, key.name) is None for key in kept):
        how = "name at least one dataset: a key of docs/settings.md in penstock.toml, or PENSTOCK_LASOT_DIR=/data/lasot"
        return [fail(section, "all", "no dataset is set", how)]
    names_unset = ", ".join(key.name for key in unset)
    return [off(section, "not set", names_unset, "set those that you have")] if unset else []


def _folder(key: Key, path: Path, sample: int) -> Iterator[Verdict]:
    """What a setting's folder holds, as each of its readers sees it; one that fits is enough."""
    if not path.is_dir():
        what = "there is no such folder" if not path.exists() else "it is no folder"
        yield fail("datasets", key.name, f"{path}: {what}", f"correct {key.name} ({key.meaning}), or unset it")
        return
    if key.name == "binary_data_dir":
        yield from _dataset(key, path, lambda: open_store(path), "store", sample)
        return
    if not key.readers:
        entries = sum(1 for _ in path.iterdir())
        yield ok("datasets", key.name, f"{path}: a folder with {entries} entries; no reader looks into it")
        return
    found = [(reader, list(_dataset(key, path, _opener(reader, path), reader, sample))) for reader in key.readers]
    fitting = [verdicts for _, verdicts in found if not verdicts[0].is_absent]
    for verdicts in fitting or [verdicts for _, verdicts in found]:
        yield from verdicts


def _opener(reader: str, path: Path) -> Callable[[], Source]:
    def opened() -> Source:
        make = find("readers", reader)
        source: Source = make(path)  # type: ignore[operator]  # a reader is made from its path
        return source

    return opened


def _dataset(key: Key, path: Path, opener: Callable[[], Source], reader: str, sample: int) -> Iterator[Verdict]:
    section = "datasets"
    try:
        source = opener()
    except SourceNotFound as error:
        yield fail(section, key.name, str(error), f"{reader} needs another folder: correct {key.name}", absent=True)
        return
    except MissingExtra as error:
        yield fail(section, key.name, str(error), str(error).rpartition(": ")[2])
        return
    except UsageError as error:  # opened without options: it holds several parts, and the reader asks which
        how = f"nothing is wrong; to look into one: penstock info '{reader}:{path}?OPTION=VALUE'"
        yield warn(section, key.name, f"{reader}: not looked into: {error}", how)
        return
    except (PenstockError, OSError) as error:
        yield fail(section, key.name, f"{reader}: {error}", "mend or replace the file named, then run doctor again")
        return
    if not len(source):
        message = f"{path_of(source)}: {reader} finds no row in it"
        yield fail(section, key.name, message, f"correct {key.name} ({key.meaning})", absent=True)
        return
    groups = f" in {len(source.groups)} groups" if isinstance(source, Reader) else ""
    yield ok(section, key.name, f"{reader}: {len(source):,} rows{groups}{_facts(source)}")
    yield from _inside(key, source, sample)


def path_of(source: Source) -> str:
    """Where a source lies, as far as it says."""
    return str(getattr(source, "root", getattr(source, "path", type(source).__name__)))


def _facts(source: Source) -> str:
    """Counts of what the reader says of itself: splits, classes, videos."""
    facts = source.describe() if isinstance(source, Reader) else {}
    counts = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if isinstance(value, (int, str))]
    return f" ({', '.join(counts[:5])})" if counts else ""


def _inside(key: Key, source: Source, sample: int) -> Iterator[Verdict]:
    """Problems, and what reading a few rows shows."""
    section, again = "datasets", f"penstock info {key.name}"
    if isinstance(source, Reader):
        again = f"penstock info '{source.name}:{source.root}'"
        if source.problems:
            first = source.problems[0]
            message = f"{len(source.problems)} problems in its files, the first: {first.path}: {first.message}"
            yield warn(section, key.name, message, f"{again} lists them")
    if not sample:
        return
    looked = look(source, sample)
    if looked.failures:
        name, reason = next(iter(looked.failures.items()))
        state: Literal["warn", "fail"] = "fail" if len(looked.failures) == looked.rows else "warn"
        message = f"{len(looked.failures)} of {looked.rows} rows read cannot be used, the first: {name}: {reason}"
        yield Verdict(section, key.name, state, message, "mend or replace the file named")
    if looked.masks and looked.empty_masks:
        share = f"{looked.empty_masks} of {looked.masks} masks read are empty"
        unlikely = looked.empty_masks == looked.masks
        yield (fail if unlikely else warn)(section, key.name, share, "penstock verify PATH" if unlikely else "")
    if looked.boxes_outside:
        message = f"{looked.boxes_outside} of {looked.boxes} boxes read lie outside their pictures"
        yield warn(section, key.name, message, f"{again}, and look at the corner that boxes count from")
    if looked.images:
        guess = source.check_channels() if isinstance(source, Masklets) else channel_order(looked.images)
        if guess.guess == "bgr":
            message = f"red and blue look swapped (score {guess.score:.2f} over {guess.scenes} scenes)"
            yield warn(section, key.name, message, "look at a picture; masklets have the option channels=bgr|rgb")


def _registered() -> list[Verdict]:
    """Readers of other packages that cannot be imported."""
    found = []
    for reader in names("readers"):
        try:
            find("readers", reader)
        except MissingExtra as error:
            found.append(off("packages", f"reader {reader}", str(error), str(error).rpartition(": ")[2]))
        except (ImportError, AttributeError) as error:
            found.append(
                fail("packages", f"reader {reader}", f"cannot be imported: {error}", "mend or remove the package")
            )
    return found or [ok("packages", "readers", f"{len(names('readers'))} are there, all can be imported")]
