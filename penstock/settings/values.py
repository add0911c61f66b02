"""Values of a configuration: from TOML, and fitted to the types of dataclasses."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from penstock.errors import SourceNotFound, UsageError


def toml_content(path: Path, what: str) -> dict[str, Any]:
    """What a TOML file holds.

    Args:
        path: the file.
        what: what it should be, for the message where it is not there.

    Raises:
        SourceNotFound: there is no such file.
        UsageError: it is no TOML, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SourceNotFound(f"{path}: expected {what} (TOML); there is no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: this is no TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error


def fitted(value: object, hint: object, where: str) -> object:
    """A plain value as a type wants it: a whole number for a float, a text for a path, a list for a tuple. What is none of
    these, or NaN, fits no number; tables are the caller's.

    Args:
        value: of TOML, or plain Python.
        hint: bool, int, float, str, Path, None, a Literal, a tuple, or a union of these.
        where: what the message begins with.

    Raises:
        UsageError: it does not fit; what would is said.
    """
    kinds: Sequence[object] = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if kind is bool and isinstance(value, bool):
            return value
        if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            if kind is float and not math.isnan(value):
                return float(value)
            if kind is int and math.isfinite(value) and int(value) == value:
                return int(value)
        if kind is Path and isinstance(value, (str, Path)):
            return Path(value)
        if kind is str and isinstance(value, str):
            return value
        if kind is type(None) and value is None:
            return None
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            inner = [one for one in get_args(kind) if one is not Ellipsis]
            wanted = [inner[0]] * len(value) if Ellipsis in get_args(kind) else inner
            if len(wanted) == len(value):
                pairs = enumerate(zip(value, wanted, strict=True))
                return tuple(fitted(one, want, f"{where}[{number}]") for number, (one, want) in pairs)
    raise no_fit(value, hint, where)


def no_fit(value: object, hint: object, where: str) -> UsageError:
    """The error that says what would have fitted a type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = [_word(kind) for kind in kinds if kind is not type(None)]
    return UsageError(f"{where}: expected {' or '.join(words)}, got {value!r}")


def _word(kind: object) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        inner = [one for one in get_args(kind) if one is not Ellipsis]
        length = "" if Ellipsis in get_args(kind) else f"{len(inner)} "
        return f"a list of {length}{'tables' if is_dataclass(inner[0]) else _word(inner[0])}"
    return "a table" if is_dataclass(kind) else str(getattr(kind, "__name__", kind))
