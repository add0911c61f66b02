"""What to save, how to draw it, how to crop it: frozen dataclasses, from TOML, the environment and flags, in this order."""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from penstock.errors import SourceNotFound, UsageError
from penstock.registry import open_sources, parse_source
from penstock.report import Budget
from penstock.sequence_folder import TIMESTAMP, ImageFormat, SaveFormat
from penstock.settings.values import fitted, toml_content
from penstock.source import Source
from penstock.stages.sequence_config import CropConfig
from penstock.tracking_modes import WIDENING

PREFIX = "PENSTOCK_SEQUENCE_"
"""Of variables: `PENSTOCK_SEQUENCE_MAX_GAP=100`."""

Mode = Literal["causal", "interval", "trident", "trident_pro", "stark"]
Pictures = Literal["crops", "raw", "both"]


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How template and search frames are drawn; see `penstock.tracking.Tracking`."""

    mode: Mode = "causal"
    max_gap: int | tuple[int, ...] = 200
    """Rows between template and search frame; in the trident modes and stark a list, one for each further template."""
    num_search: int = 1
    num_template: int = 1
    train_cls: bool = False
    """Whether some samples are negatives: the search frame does not show the target."""
    pos_prob: float = 0.5
    """Probability of a positive, with train_cls."""
    min_interval: int = 50
    """Steps of `gt_frame_ids_backward`."""
    future_steps: int = 1
    """Steps of `gt_frame_ids_forward`."""
    max_growth: int = 1000
    """By how much max_gap may grow."""
    max_attempts: int = 100
    """Sequences tried per sample."""
    min_frames: int = 20
    """Rows that a video has at least."""
    order: Literal["ostrack", "odtrack"] = "ostrack"
    shares: Literal["exact", "random"] = "exact"


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """How samples become files, and how the job runs."""

    save_images: bool = True
    """False saves boxes and metadata only."""
    pictures: Pictures = "crops"
    """"crops": as a network is fed them; "raw": as the source has them, nothing cropped; "both": crops in `images`, the
    source's pictures in `images_raw`. Boxes of annotations.json lie in the pictures of `images`."""
    image_format: ImageFormat = "jpg"
    """"png" is exact. A raw "jpg" is the source's own file, byte for byte, wherever that is an upright JPEG."""
    jpeg_quality: int = 95
    """Of pictures that are encoded: crops, and raw pictures that are no JPEG."""
    save_format: SaveFormat = "json"
    """Of metadata and annotations: "json" or "pickle"."""
    timestamp: str = ""
    """`YYYYmmdd_HHMMSS` in names and metadata; by default that of the run that began the folder, now in a new one."""
    max_retries: int = 10
    """Draws beside the first that a sequence may take if its crops are rejected."""
    workers: int = -1
    """Worker processes; 0 works in this process, -1 takes one per core."""
    max_failures: str | None = None
    """Failures that are still a success: a count ("12") or a share ("0.5%"); more stop the run."""
    retry_failed: bool = False
    """Try sequences again that failed before."""
    timeout_s: float | None = None
    """Seconds that one sequence may take."""
    durability: Literal["power", "process"] = "power"
    """"power" flushes every folder to the disk; "process" leaves that to the system."""

    def __post_init__(self) -> None:
        checks = [
            ("jpeg_quality", 1 <= self.jpeg_quality <= 100, "1..100"),
            ("max_retries", 0 <= self.max_retries < 1 << 16, "0..65535"),
            ("workers", self.workers >= -1, "-1 (one per core), 0 (none) or more"),
            ("timeout_s", self.timeout_s is None or self.timeout_s > 0, "a positive number of seconds"),
            ("timestamp", not self.timestamp or bool(TIMESTAMP.fullmatch(self.timestamp)), "YYYYmmdd_HHMMSS"),
        ]
        _require(self, checks)
        if self.max_failures is not None:
            Budget.parse(self.max_failures)


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """All that saved sequences depend on, and where they go."""

    output: Path
    """New or empty folder, or that of an earlier run of the same configuration: then only what is missing is done."""
    sources: tuple[str, ...] = ()
    """`READER:PATH?option=value`; empty only where sources are handed over opened."""
    weights: tuple[float, ...] | None = None
    """One for each source: how often it is drawn. None: in proportion to their numbers of sequences."""
    num_sequences: int = 100
    seed: int = 0
    draw: DrawConfig = field(default_factory=DrawConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self) -> None:
        count = len(self.sources)
        checks = [
            ("num_sequences", 1 <= self.num_sequences < 1 << 40, "1 or more"),
            ("seed", 0 <= self.seed < 1 << 64, "0..2**64-1"),
            (
                "weights",
                not (self.weights and count) or len(self.weights) == count,
                f"one number for each of {count} sources",
            ),
        ]
        _require(self, checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as recorded with the output."""
        return {**asdict(self), "output": str(self.output)}


def load_config(
    path: Path | str | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> SequenceConfig:
    """A configuration from a TOML file, `PENSTOCK_SEQUENCE_*` variables, and flags; the later go before.

    The file has the names of `SequenceConfig` at its top and the tables `[draw]`, `[crops]` (with `[crops.template]` and
    `[crops.search]`) and `[save]`. A variable and an override have the plain name of a setting, whatever table it stands
    in: `PENSTOCK_SEQUENCE_MAX_GAP`, `max_gap`. Where two tables have it, the table stands before: `template_size`.

    Args:
        path: the file; None for none.
        overrides: name -> value; None values are left out.
        environ: the variables; None: those of the process.

    Raises:
        SourceNotFound: there is no such file.
        UsageError: no TOML, an unknown name, a value of another type or out of range; the message says where it stands.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    if path is not None:
        values |= _from_file(Path(path))
    known = {name.upper(): name for name in _aliases()}
    for variable in sorted(environ):
        if variable.startswith(PREFIX):
            name = known.get(variable.removeprefix(PREFIX))
            if name is None:
                raise UsageError(
                    f"{variable}: no such setting of saved sequences; there are {', '.join(sorted(known))}"
                )
            values |= _settled(variable, name, _from_text(environ[variable]))
    for name, value in (overrides or {}).items():
        if value is not None:
            values |= _settled(name, name, value)
    return _build(values)


def open_named(config: SequenceConfig) -> tuple[list[Source], tuple[float, ...] | None]:
    """The sources of a configuration, and their weights. One that says `missing=drop` and is not there is left out with its
    weight, and a warning.

    Raises:
        SourceNotFound, UsageError: as `penstock.registry.open_sources`.
    """
    if not config.sources:
        raise UsageError("sources: expected at least one, READER:PATH")
    opened: list[Source] = []
    weights: list[float] = []
    for number, text in enumerate(config.sources):
        try:
            opened += open_sources([text])
        except SourceNotFound:
            if parse_source(text).options.get("missing") != "drop":
                raise
            continue
        weights += [config.weights[number]] if config.weights else []
    if not opened:
        raise SourceNotFound(f"none of these sources is there: {', '.join(config.sources)}")
    return opened, tuple(weights) or None


def _leaves(kind: type, start: str = "") -> Iterator[tuple[str, object]]:
    """ "table.name" of each setting, and its type."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _leaves(hint, f"{start}{name}.")
        else:
            yield f"{start}{name}", hint


def _aliases() -> dict[str, str]:
    """Plain name -> "table.name"; a name that two tables have is "table_name"."""
    paths = [path for path, _ in _leaves(SequenceConfig)]
    plain = [path.rpartition(".")[2] for path in paths]
    return {
        name if plain.count(name) == 1 else "_".join(path.split(".")[-2:]): path
        for name, path in zip(plain, paths, strict=True)
    }


def _settled(where: str, name: str, value: object) -> dict[str, object]:
    aliases = _aliases()
    if name not in aliases:
        raise UsageError(f"{where}: no such setting of saved sequences; there are {', '.join(sorted(aliases))}")
    return {aliases[name]: fitted(value, dict(_leaves(SequenceConfig))[aliases[name]], where)}


def _from_file(path: Path) -> dict[str, object]:
    content = toml_content(path, "a configuration of saved sequences")
    hints, found = dict(_leaves(SequenceConfig)), {}
    for name, value in _flat(content):
        if name not in hints:
            table = name.rpartition(".")[0]
            near = ", ".join(one for one in hints if one.rpartition(".")[0] == table) or ", ".join(hints)
            raise UsageError(f"{path}: no setting {name}; there are {near}")
        found[name] = fitted(value, hints[name], f"{path}: {name}")
    return found


def _flat(content: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, object]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _from_text(text: str) -> object:
    """A variable's text as a TOML value: 3, true, [1, 2]; or else as it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(values: Mapping[str, object]) -> SequenceConfig:
    if "output" not in values:
        raise UsageError("output: not given; say it in the file, or by a flag")
    mode, gap = values.get("draw.mode", DrawConfig.mode), values.get("draw.max_gap")
    if mode not in WIDENING and isinstance(gap, int):  # a flag cannot tell a number from a list of one
        values = {**values, "draw.max_gap": (gap,)}
    config: SequenceConfig = _made(SequenceConfig(output=Path()), values)
    return config


def _made(defaults: Any, values: Mapping[str, object]) -> Any:
    """The dataclass with these values ("table.name" -> value) in place of its own."""
    changed: dict[str, object] = {}
    for one in fields(defaults):
        inner = {n.partition(".")[2]: v for n, v in values.items() if n.startswith(f"{one.name}.")}
        if inner:
            changed[one.name] = _made(getattr(defaults, one.name), inner)
        elif one.name in values:
            changed[one.name] = values[one.name]
    return replace(defaults, **changed)


def _require(config: object, checks: Sequence[tuple[str, bool, str]]) -> None:
    for name, holds, expected in checks:
        if not holds:
            raise UsageError(f"{name.replace('_', '-')}: expected {expected}, got {getattr(config, name)!r}")
