"""Names of readers, stages, launchers, models, captioners, proposers, teachers, students and exporters, each a
"module:attribute" that is imported when asked for; outside packages add theirs through entry points: `penstock.readers`,
`penstock.proposers` and so on. Sources by their text."""

import inspect
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Literal, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from penstock.errors import SourceNotFound, UsageError
from penstock.source import Source

TABLES: dict[str, dict[str, str]] = {
    "readers": {
        "coco-instances": "penstock.readers.coco_instances:CocoInstances",
        "coco-lmdb": "penstock.readers.coco_instances:CocoLmdb",
        "coco-panoptic": "penstock.readers.coco_panoptic:CocoPanoptic",
        "davis": "penstock.readers.davis:Davis",
        "folder": "penstock.readers.folder:Folder",
        "got10k": "penstock.readers.got10k:Got10k",
        "got10k-lmdb": "penstock.readers.got10k:Got10kLmdb",
        "imagenet-vid": "penstock.readers.imagenet_vid:ImagenetVid",
        "imagenet-vid-lmdb": "penstock.readers.imagenet_vid:ImagenetVidLmdb",
        "lasot": "penstock.readers.lasot:Lasot",
        "lasot-lmdb": "penstock.readers.lasot:LasotLmdb",
        "masklets": "penstock.readers.masklets:Masklets",
        "npz-dir": "penstock.readers.npz_dir:NpzDir",
        "openimages": "penstock.readers.openimages:OpenImages",
        "refcoco": "penstock.readers.refcoco:Refcoco",
        "sa1b": "penstock.readers.sa1b:Sa1b",
        "sa1b-tar": "penstock.readers.sa1b_tar:open_sa1b_tar",
        "sav": "penstock.readers.sav:Sav",
        "saved": "penstock.saved:Saved",
        "scenes": "penstock.readers.scenes:Scenes",
        "trackingnet": "penstock.readers.trackingnet:TrackingNet",
        "trackingnet-lmdb": "penstock.readers.trackingnet:TrackingNetLmdb",
        "youtube-vis": "penstock.readers.youtube_vis:YoutubeVis",
    },
    "stages": {
        "embed-segments": "penstock.stages.embed:EmbedSegments",
        "refine-frames": "penstock.stages.refine:RefineFrames",
        "sa1b-convert": "penstock.stages.convert:Sa1bConvert",
        "teach-pictures": "penstock.stages.teacher:TeachPictures",
    },
    "launchers": {
        "inline": "penstock.launch.local:Inline",
        "local": "penstock.launch.local:Local",
        "ray": "penstock.launch.ray:Ray",
    },
    "models": {
        "onnx": "penstock.models.onnx_graph:open_onnx",
        "openai": "penstock.models.openclip:open_openai",
        "openclip": "penstock.models.openclip:open_openclip",
        "tiny": "penstock.models.tiny:open_tiny",
        "transformers": "penstock.models.transformers_vision:open_transformers",
    },
    "captioners": {
        "cycle": "penstock.models.captioners:open_built_in",
        "florence2": "penstock.models.florence2:open_florence2",
        "sa2va": "penstock.models.sa2va:open_sa2va",
    },
    "proposers": {
        "classical": "penstock.models.proposers:open_classical",
        "folder": "penstock.models.proposers:open_folder",
        "sam2": "penstock.models.proposers:open_sam2",
    },
    "teachers": {
        "sam2": "penstock.models.teachers:open_sam2",
        "stand-in": "penstock.models.teachers:open_stand_in",
    },
    "students": {
        "repvit": "penstock.models.students:open_repvit",
        "timm": "penstock.models.students:open_timm",
        "yolov8": "penstock.models.students:open_yolov8",
    },
    "exporters": {
        "coco-video": "penstock.exporters.coco_video:CocoVideo",
        "got10k": "penstock.exporters.got10k:Got10kFolder",
        "lasot": "penstock.exporters.lasot:LasotFolder",
        "mot": "penstock.exporters.mot:Mot",
        "parquet": "penstock.exporters.parquet:ParquetTable",
        "rerun": "penstock.exporters.rerun:RerunRecording",
        "safetensors": "penstock.exporters.safetensors:Safetensors",
        "store": "penstock.exporters.store:StoreOfSequences",
        "webdataset": "penstock.exporters.webdataset:WebDataset",
    },
}

_NAMED = re.compile(r"([a-z0-9][a-z0-9-]*):(.*)", re.DOTALL)
_log = logging.getLogger("penstock")


@dataclass(frozen=True)
class SourceName:
    """What the text of a source says: `READER:PATH?option=value&...`, or the path of a store."""

    reader: str
    """Empty for a store."""
    path: str
    """Empty for a reader's path in the settings."""
    options: Mapping[str, str]


def names(kind: str) -> list[str]:
    """Names known of a kind ("readers", "stages", "launchers", "models", "captioners", "proposers", "teachers", "students",
    "exporters"), sorted."""
    return sorted({*_table(kind), *(point.name for point in entry_points(group=f"penstock.{kind}"))})


def find(kind: str, name: str) -> object:
    """Imports what is registered under a name.

    Raises:
        UsageError: nothing is; the names that are known are listed.
    """
    known = _table(kind)
    if name in known:
        module, _, attribute = known[name].partition(":")
        found: object = getattr(import_module(module), attribute)
        return found
    for point in entry_points(group=f"penstock.{kind}", name=name):
        outside: object = point.load()
        return outside
    raise UsageError(f"no {kind.removesuffix('s')} {name!r}; known: {', '.join(names(kind))}")


def describe_names(kind: str) -> dict[str, str]:
    """Names of a kind, each with the first line of its documentation.

    One that cannot be imported says why instead, an optional package that is missing for instance.
    """
    found = {}
    for name in names(kind):
        try:
            found[name] = (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]
        except (ImportError, AttributeError) as error:
            found[name] = f"cannot be imported: {error}"
    return found


def parse_source(text: str) -> SourceName:
    """Takes the text of a source apart. A path that exists is a store, whatever it looks like.

    Raises:
        UsageError: it names no known reader and no path that exists, or options twice.
    """
    match = _NAMED.fullmatch(text)
    if os.path.exists(text) or not match:  # unlike Path.exists false, not an error, where a name is too long
        return SourceName("", text, {})
    reader, rest = match.groups()
    find("readers", reader)
    path, mark, query = (rest, "", "") if os.path.exists(rest) else rest.rpartition("?")
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True) if mark else []  # refcoco+ is a name
    options = dict(pairs)
    if len(options) < len(pairs):
        raise UsageError(f"{text}: an option is there twice: {query}")
    return SourceName(
        reader, path if mark else rest, {name.replace("-", "_"): value for name, value in options.items()}
    )


def open_source(text: str) -> Source:
    """Opens a store by its path, or a dataset as `READER:PATH?option=value&...`.

    `lasot:/data/LaSOT?split=train`, for instance. Without a path (`lasot:`) the folder comes from the settings
    (`penstock.toml`, `PENSTOCK_LASOT_DIR`). Options are the keyword arguments of the reader.

    Raises:
        UsageError: no such reader, or an option that it does not have, or a value that does not fit.
        SourceNotFound: the path holds no such dataset; the message suggests a folder nearby that does.
    """
    name = parse_source(text)
    if "missing" in name.options:
        raise UsageError(f"{text}: `missing` is for several sources, which may go on without one: use open_sources")
    return _open(name)


def open_sources(texts: Sequence[str]) -> list[Source]:
    """Opens several sources. One that says `?missing=drop` is left out, with a warning, where its path holds nothing;
    the default is `missing=error`.

    Raises:
        UsageError, SourceNotFound: as `open_source`; or none is left.
    """
    opened: list[Source] = []
    for text in texts:
        name = parse_source(text)
        options = dict(name.options)
        policy = options.pop("missing", "error")
        if policy not in ("error", "drop"):
            raise UsageError(f"{text}: missing={policy!r}: expected error or drop")
        try:
            opened.append(_open(SourceName(name.reader, name.path, options)))
        except SourceNotFound as error:
            if policy == "error":
                raise
            _log.warning("penstock: %s is left out (missing=drop): %s", text, error)
    if not opened:
        raise SourceNotFound(f"none of these sources is there: {', '.join(texts)}")
    return opened


def _open(name: SourceName) -> Source:
    if not name.reader:
        from penstock.store import open_store

        return open_store(name.path)
    make = cast(Callable[..., Source], find("readers", name.reader))
    path = name.path
    if not path:
        from penstock.settings import load_settings, reader_path

        path = str(reader_path(load_settings().settings, name.reader))
    return make(path, **arguments_of(make, name.reader, name.options))


def arguments_of(make: Callable[..., object], name: str, options: Mapping[str, str]) -> dict[str, object]:
    """Options given as text, as the keyword-only arguments of what they are for, by their types.

    Raises:
        UsageError: there is no such option, or the text is no value of its type; both are named.
    """
    function = make.__init__ if inspect.isclass(make) else make
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    known = {each.name: hints.get(each.name, str) for each in parameters if each.kind is each.KEYWORD_ONLY}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{name}: no option {', '.join(unknown)}; there are {', '.join(known) or 'none'}")
    return {option: _value(option, text, known[option]) for option, text in options.items()}


def _value(option: str, text: str, hint: object) -> object:
    """The text as a value of the type: text, path, number, yes or no, one of some words, or several texts."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if kind is type(None):
            continue
        if get_origin(kind) is Literal:
            known = {str(choice): choice for choice in get_args(kind)}
            if text in known:
                return known[text]
        elif kind is bool and text.lower() in _WORDS:
            return _WORDS[text.lower()]
        elif kind in (int, float):
            try:
                return cast(Callable[[str], object], kind)(text)
            except ValueError:
                continue
        elif kind in (str, Path):
            return cast(Callable[[str], object], kind)(text)
        elif get_origin(kind) is tuple:
            return tuple(part for part in text.split(",") if part)
    raise UsageError(f"option {option}={text}: expected {_expected(kinds)}")


_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _expected(kinds: Sequence[object]) -> str:
    words = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += [str(choice) for choice in get_args(kind)]
        elif kind is bool:
            words += ["true", "false"]
        elif kind is not type(None):
            words.append(getattr(kind, "__name__", str(kind)))
    return " or ".join(words)


def _table(kind: str) -> dict[str, str]:
    if kind not in TABLES:
        raise UsageError(f"no table {kind!r}; there are {', '.join(TABLES)}")
    return TABLES[kind]
