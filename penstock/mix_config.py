"""A mixture in a file: sources, shares, views, budget; from TOML or a mapping to a loader."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from penstock.errors import SourceNotFound, UsageError
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import MAX_ATTEMPTS, Mixed
from penstock.mix_tally import Budget
from penstock.mix_views import Views
from penstock.registry import open_source
from penstock.samplers.mixture import Ends
from penstock.samplers.pairs import PairRule
from penstock.settings.values import fitted, no_fit, toml_content

Missing = Literal["error", "drop", "drop-keep-shares"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One `[[source]]` of a mixture.

    Raises:
        UsageError: the weight is out of range.
    """

    name: str
    source: str
    """`READER:PATH?option=value&...`, or the path of a store."""
    weight: int | float | None = None
    """Share of the draws; given for all sources, or for none: then each row comes once an epoch, times `repeats`."""
    repeats: int = 1
    max_rows: int | None = None
    """Only the first so many samples."""
    max_images: int | None = None
    """Only the samples of the first so many groups: pictures, for a source whose groups are pictures."""
    missing: Missing = "error"
    """What if the path holds nothing: "error"; "drop": go on without, and `epoch_rows` is shared among the others;
    "drop-keep-shares": go on without, and `epoch_rows` shrinks by this source's share, so that the others are drawn as
    often as with it."""
    pairs: PairRule | None = None
    """For tracks: how the second view is chosen."""

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise UsageError(f"weight: expected above 0, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """A mixture and how it is loaded.

    Raises:
        UsageError: there is no source, or a number is out of range.
    """

    source: tuple[SourceConfig, ...]
    batch_size: int = 1
    """Of the global batch, over all ranks."""
    seed: int = 0
    ends: Ends = "first"
    """With weights: an epoch ends with the "first" source that has run out, or when "all" have."""
    epoch_rows: int | None = None
    """With weights: samples of an epoch."""
    epochs: int | None = 1
    """Epochs that one `for` runs over."""
    max_attempts: int = MAX_ATTEMPTS
    threads: int = 2
    prefetch: int = 3
    quarantine: Path | None = None
    """Folder of the lists of bad rows."""
    allow_data_change: bool = False
    """Take a state that was saved with other data."""
    views: Views = field(default_factory=Views)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "prefetch", "max_attempts", "epochs", "epoch_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}: expected 1 or more, got {value}")
        if not self.source:
            raise UsageError("source: expected one or more, got none")


class Dropped(NamedTuple):
    """A source that is not there and may be missing."""

    name: str
    source: str
    reason: str


class Opened(NamedTuple):
    """A mixture that is open, and what it goes without."""

    mixed: Mixed
    dropped: list[Dropped]


def load_mix_config(config: Path | str | Mapping[str, Any]) -> MixConfig:
    """A configuration from a TOML file or a mapping of the same shape; `docs/mix.md` lists what it may hold.

    Raises:
        SourceNotFound: there is no such file.
        UsageError: no TOML, an unknown or missing key, or a value of another type or out of range; the key is named.
    """
    if isinstance(config, Mapping):
        return _made(MixConfig, config, "")  # type: ignore[no-any-return]  # of the class given
    path = Path(config)
    content = toml_content(path, "the configuration of a mixture")
    return _made(MixConfig, content, f"{path}: ")  # type: ignore[no-any-return]  # of the class given


def open_mix(config: MixConfig) -> Opened:
    """Opens the sources and plans the mixture. No picture is read.

    Raises:
        SourceNotFound: a source is not there and may not be missing, or none is there.
        UsageError: as `Mixed`, `open_source`.
    """
    parts: list[MixPart] = []
    dropped: list[Dropped] = []
    kept = Fraction(0)
    for one in config.source:
        try:
            source = open_source(one.source)
        except SourceNotFound as error:
            if one.missing == "error":
                raise
            dropped.append(Dropped(one.name, one.source, str(error)))
            kept += Fraction(str(one.weight or 0)) if one.missing == "drop-keep-shares" else 0
            continue
        parts.append(
            MixPart(
                name=one.name, source=source, weight=one.weight, repeats=one.repeats, max_rows=one.max_rows,
                max_images=one.max_images, pairs=one.pairs,
            )
        )  # fmt: skip
    if not parts:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in dropped)
        raise SourceNotFound(f"mix: none of the sources is there: {reasons}")
    there = sum((Fraction(str(part.weight or 0)) for part in parts), Fraction(0))
    epoch_rows = config.epoch_rows
    if epoch_rows is not None and there:
        epoch_rows = max(1, int(epoch_rows * there / (there + kept)))
    mixed = Mixed(
        parts, seed=config.seed, ends=config.ends, epoch_rows=epoch_rows, views=config.views,
        max_attempts=config.max_attempts,
    )  # fmt: skip
    return Opened(mixed, dropped)


def mix_loader(
    config: MixConfig, mixed: Mixed, *, rank: int = 0, world_size: int = 1, output: str = "numpy"
) -> MixLoader:
    """The loader of one rank; see `MixLoader`."""
    return MixLoader(
        mixed, batch_size=config.batch_size, rank=rank, world_size=world_size, threads=config.threads,
        prefetch=config.prefetch, output=output, epochs=config.epochs, budget=config.budget,
        quarantine=config.quarantine, allow_data_change=config.allow_data_change,
    )  # fmt: skip


def _made(kind: Any, content: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping; nested ones likewise."""
    hints = get_type_hints(kind)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise UsageError(f"{where}{unknown[0]}: no such key; there are {', '.join(hints)}")
    for one in fields(kind):
        if one.name not in content and one.default is MISSING and one.default_factory is MISSING:
            raise UsageError(f"{where}{one.name}: not given")
    values = {name: _value(hints[name], value, f"{where}{name}") for name, value in content.items()}
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"{where.rstrip('.: ') or 'mix'}: {error}") from error


def _value(hint: Any, value: object, where: str) -> object:
    """The value as the type wants it; tables as the dataclasses they are for.

    Raises:
        UsageError: it does not fit.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        inner = get_args(kind)[0] if get_origin(kind) is tuple else None
        if is_dataclass(inner):
            if isinstance(value, (list, tuple)):
                return tuple(_value(inner, one, f"{where}[{number}]") for number, one in enumerate(value))
            raise no_fit(value, hint, where)
        if is_dataclass(kind):
            if isinstance(value, Mapping):
                return _made(kind, value, f"{where}.")
            raise no_fit(value, hint, where)
    return fitted(value, hint, where)
