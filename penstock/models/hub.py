"""Finds a model's files: in a folder, in the cache of the Hugging Face hub, or, with internet, in the hub itself.

Libraries are never left to download by themselves: without internet they try again for most of a minute.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote, urlsplit

import orjson

from penstock.errors import BadData, MissingExtra, SourceNotFound, UsageError

REACH_SECONDS = 5.0
"""How long the hub may take to answer before it counts as out of reach."""

TOKENIZER = (
    ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"),
)
"""What `find_folder` and `lacks` need for a tokenizer; transformers makes an empty one of a folder that has none."""

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TRUE = {"1", "ON", "YES", "TRUE"}


def local_path(name: str) -> Path | None:
    """The path that a name is: `file:///...`, one that exists, or one that starts like a path; None for any other name.

    Raises:
        UsageError: a `file:` address of another machine.
    """
    if name.startswith("file:"):
        address = urlsplit(name)
        if address.netloc not in ("", "localhost"):
            raise UsageError(f"{name}: expected file:///absolute/path")
        return Path(unquote(address.path))
    path = Path(name).expanduser()
    return path if path.exists() or name.startswith(("/", "./", "../", "~")) else None


def find_folder(spec: str, name: str, needs: Sequence[Sequence[str]], *, instead: str = "") -> Path:
    """The folder that holds a model's files: a local folder, or a repository of the hub in its cache.

    Args:
        spec: for messages.
        name: path of a folder, or `OWNER/NAME` in the hub.
        needs: names or patterns; one of each sequence has to be there.
        instead: what to do with files that were copied by hand, for messages.

    Raises:
        SourceNotFound: the folder or the repository is not there, or lacks a file; the message says what to do.
        UsageError: the name is neither.
    """
    path = local_path(name)
    if path is not None:
        if not path.is_dir():
            raise SourceNotFound(f"{spec}: no folder {path}")
        if lacking := lacks(path, needs):
            raise SourceNotFound(f"{spec}: {path} holds no {lacking}: put it there")
        return path
    if not _REPOSITORY.fullmatch(name):
        raise UsageError(f"{spec}: {name!r}: expected a folder that exists, or OWNER/NAME of the Hugging Face hub")
    kind = spec.partition(":")[0]
    return _repository(spec, name, needs, instead or f"copy the files into a folder and say {kind}:/path/to/folder")


def lacks(folder: Path, needs: Sequence[Sequence[str]]) -> str:
    """What a folder does not hold, in words; empty if it holds one of each."""
    names = [path.name for path in folder.iterdir()]
    return "; no ".join(
        " or ".join(patterns)
        for patterns in needs
        if not any(fnmatch(name, pattern) for name in names for pattern in patterns)
    )


def read_json(path: Path) -> dict[str, object]:
    """The object that a JSON file holds.

    Raises:
        BadData: it is not JSON, or not an object.
    """
    try:
        facts = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise BadData(f"{path}: not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise BadData(f"{path}: expected an object, got {type(facts).__name__}")
    return facts


def _repository(spec: str, name: str, needs: Sequence[Sequence[str]], instead: str) -> Path:
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "transformers", "reading the Hugging Face hub's cache") from error
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        lacking = lacks(folder, needs)
    except LocalEntryNotFoundError:
        lacking = "anything of it"
    if not lacking:
        return folder
    advice = (
        f"the cache {constants.HF_HUB_CACHE} lacks {lacking}. On a machine with internet run `hf download {name}`, "
        f"then copy its cache here (HF_HOME says where), or {instead}"
    )
    if _is_offline():
        raise SourceNotFound(f"{spec}: not on this machine, and HF_HUB_OFFLINE forbids to fetch it: {advice}")
    if not _is_reachable(constants.ENDPOINT):
        raise SourceNotFound(f"{spec}: not on this machine, and {constants.ENDPOINT} cannot be reached: {advice}")
    patterns = [pattern for each in needs for pattern in each] + ["*.json", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, OSError) as error:
        raise SourceNotFound(f"{spec}: the hub did not give it ({error}); {advice}") from error
    if lacking := lacks(folder, needs):
        raise SourceNotFound(f"{spec}: the hub's repository {name} holds no {lacking}: it is of another kind")
    return folder


def _is_offline() -> bool:
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _is_reachable(address: str) -> bool:
    """Whether anything answers there; asked once, by way of the proxies that the environment names."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REACH_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
