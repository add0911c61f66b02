"""The datasets of a dual loop: opened by name, limited, split, said in the seed's words."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import BadData, RowError, SourceNotFound, UsageError
from penstock.mix_rows import VIEW, MixPart, PartRows
from penstock.readers.files import FolderFiles
from penstock.readers.refcoco_refs import reference_files
from penstock.registry import open_source
from penstock.samplers.pairs import PairRule
from penstock.source import Source
from penstock.train.dual_loop_config import DualLoopConfig, DualLoopLines
from penstock.train.held_out import Split, split

_SENTENCE = "sentence"
_log = logging.getLogger("penstock")


@dataclass(frozen=True, kw_only=True)
class DualLoopData:
    """The datasets that are there."""

    splits: tuple[Split, ...]
    """In the order sav, sa1b, openimage, refcoco."""
    dropped: tuple[str, ...]
    """Names of those that are not."""

    @property
    def train(self) -> list[MixPart]:
        """Parts to train on."""
        return [one.train for one in self.splits]

    @property
    def held(self) -> list[MixPart]:
        """Parts to evaluate on."""
        return [one.held for one in self.splits if one.held is not None]

    @property
    def has_sentences(self) -> bool:
        """Whether some source has sentences."""
        return any(_SENTENCE in part.source.schema for part in self.train)

    def words(self, captions: Mapping[str, str] | None = None) -> list[str]:
        """Every word of the sentences that are trained on, and of captions made before, once, sorted. Reads annotations, no
        picture."""
        found = {word for text in (captions or {}).values() for word in text.split()}
        for part in self.train:
            if _SENTENCE in part.source.schema:
                found.update(word for text in _texts(part.source, _SENTENCE) for word in text.split())
        return sorted(found)


def open_data(
    config: DualLoopConfig, *, lines: DualLoopLines | None = None, say: Callable[[str], None] | None = None
) -> DualLoopData:
    """Opens what the configuration names. No picture is read.

    Args:
        config: see there.
        lines: what is said.
        say: takes each line; None: nothing is said.

    Raises:
        SourceNotFound: a dataset is not there (Open Images may be missing), or none is.
        UsageError: a limit or a pair rule does not fit, or there are several datasets to choose from.
    """
    lines, say = lines or DualLoopLines(), say or (lambda text: None)
    parts = {
        "sav": _sav(config, lines, say),
        "sa1b": _sa1b(config, lines, say),
        "refcoco": _refcoco(config, lines, say),
    }
    parts["openimage"] = _openimage(config, lines, say)
    given = [part for name in ("sav", "sa1b", "openimage", "refcoco") if (part := parts[name]) is not None]
    if not given:
        raise SourceNotFound(f"dual-loop: no dataset is there: {config.openimage_dir} is not, and no other is given")
    splits = tuple(split(part, config.eval_share) for part in given)
    counts = [one.num_train * one.train.repeats + one.num_held for one in splits]
    say(lines.total.format(datasets=len(splits)))
    for number, count in enumerate(counts):
        say(lines.dataset.format(number=number, samples=count))
    say(lines.built.format(samples=sum(counts)))
    if any(one.num_held for one in splits):
        say(lines.held_out.format(samples=sum(one.num_held for one in splits)))
    missing = config.openimage_dir is not None and parts["openimage"] is None
    return DualLoopData(splits=splits, dropped=("openimage",) if missing else ())


def caption_cache(text: str) -> dict[str, str]:
    """Captions made offline, by key.

    Args:
        text: of a source (see `open_source`) with a field `caption` or `sentence`.

    Raises:
        UsageError: it has neither, or a key twice.
        SourceNotFound: there is none.
    """
    source = open_source(text)
    names = [name for name in ("caption", _SENTENCE) if name in source.schema]
    if not names:
        raise UsageError(f"caption-cache {text}: expected a field caption or sentence, got {', '.join(source.schema)}")
    captions = dict(zip(source.keys, _texts(source, names[0]), strict=True))
    if len(captions) < len(source):
        raise UsageError(f"caption-cache {text}: {len(source) - len(captions)} keys are there twice")
    return captions


def require_captions(captions: Mapping[str, str], parts: Sequence[MixPart], max_empty: float) -> None:
    """Refuses, before the long work, captions that too many samples have none of; says how many have none.

    Args:
        captions: of `caption_cache`.
        parts: that are trained on, and held out.
        max_empty: share of the samples, as of `DualLoopSettings`.

    Raises:
        UsageError: more samples than that have no caption.
    """
    total, lacking = 0, []
    for part in parts:
        keys, first = part.source.keys, PartRows(part).first
        lacking += [
            f"{part.name}: {key}" for key in (keys[int(row)] for row in first) if not captions.get(key, "").strip()
        ]
        total += len(first)
    if not lacking:
        return
    words = f"caption-cache: {len(lacking)} of {total} samples have no caption in it, the first {lacking[0]}"
    if len(lacking) > max_empty * total:
        raise UsageError(
            f"{words}; expected captions by the keys of the first views, {max_empty:.0%} of them may lack one (max_empty); the "
            f"keys of the cache are like {next(iter(captions), 'nothing')!r}"
        )
    _log.warning("penstock: %s; their masks have no loss", words)


def _texts(source: Source, name: str) -> Sequence[str]:
    read = getattr(source, "read", None)
    found = []
    for row in range(len(source)):
        try:
            found.append(str((source[row] if read is None else read(row, [name]))[name]))
        except (BadData, RowError):
            found.append("")  # who draws the row counts it: as bad, or as a sample without a caption
    return found


def _sav(config: DualLoopConfig, lines: DualLoopLines, say: Callable[[str], None]) -> MixPart | None:
    if config.sav_dir is None:
        return None
    say(lines.sav.format(sav_dir=config.sav_dir) + _limit(lines, config.sav_max_samples))
    options = {} if "boxes=" in config.sav_dir else {"sav": "boxes=index"}  # the pair rule needs them all
    source = _open(config.sav_dir, ("masklets", "sav"), options)
    is_paired = VIEW in source.schema
    say((lines.found if is_paired else lines.tracks).format(files=len(source.groups)))  # type: ignore[attr-defined]  # readers have them
    gaps = {"min_gap": config.sav_min_gap, "max_gap": config.sav_max_gap}
    asked: dict[str, Any] = {name: value for name, value in gaps.items() if value is not None}
    if is_paired and asked:
        raise UsageError(f"dual-loop: sav_{next(iter(asked))}: {config.sav_dir} holds pairs already; leave it out")
    rule = None if is_paired else PairRule(**asked)
    return MixPart(name="sav", source=source, repeats=config.sav_repeats, max_rows=config.sav_max_samples, pairs=rule)


def _sa1b(config: DualLoopConfig, lines: DualLoopLines, say: Callable[[str], None]) -> MixPart | None:
    if config.sa1b_dir is None:
        return None
    limit = config.sa1b_max_samples
    say(lines.sa1b.format(sa1b_dir=config.sa1b_dir) + _limit(lines, limit))
    options = {} if limit is None else {"sa1b": f"max_images={limit}"}  # the index is of these pictures only
    return MixPart(name="sa1b", source=_open(config.sa1b_dir, ("sa1b",), options))


def _refcoco(config: DualLoopConfig, lines: DualLoopLines, say: Callable[[str], None]) -> MixPart | None:
    if config.refcoco_dir is None:
        return None
    say(lines.refcoco)
    there = reference_files(FolderFiles(config.refcoco_dir)) if os.path.isdir(config.refcoco_dir) else []
    options = {}
    if ("refcoco", "unc") in there:  # the original's, where there are several
        options["refcoco"] = "dataset=refcoco&split_by=unc"
    source = _open(config.refcoco_dir, ("refcoco",), options)
    return MixPart(name="refcoco", source=source, repeats=config.refcoco_repeats)


def _openimage(config: DualLoopConfig, lines: DualLoopLines, say: Callable[[str], None]) -> MixPart | None:
    folder = config.openimage_dir
    if folder is None:
        return None
    path = folder.removeprefix("openimages:").partition("?")[0]
    if path and not Path(path).is_dir():  # without a path the settings say where
        say(lines.openimage_missing.format(openimage_dir=folder))
        return None
    say(lines.openimage_found.format(openimage_dir=folder))
    say(lines.openimage)
    return MixPart(name="openimage", source=_open(folder, ("openimages",), {}))


def _open(given: str, readers: Sequence[str], options: dict[str, str]) -> Source:
    """A source by its text, or a folder by the first reader that finds its dataset there."""
    for reader in readers:
        if given.startswith(f"{reader}:"):
            more = options.get(reader, "")
            return open_source(f"{given}{'&' if '?' in given else '?'}{more}" if more else given)
    faults = []
    for reader in readers:
        try:
            return open_source(f"{reader}:{given}" + (f"?{options[reader]}" if reader in options else ""))
        except SourceNotFound as error:
            faults.append(str(error))
    raise SourceNotFound("; ".join(faults))


def _limit(lines: DualLoopLines, limit: int | None) -> str:
    return "" if limit is None else lines.limited.format(max_samples=limit)
