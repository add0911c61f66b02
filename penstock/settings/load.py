"""Settings from the file and the variables, each value with where it came from."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import SourceNotFound, UsageError
from penstock.settings.file import parse_settings, place
from penstock.settings.keys import FILE_NAME, KEYS, PREFIX, Settings, nearest

SETTINGS_VARIABLE = "PENSTOCK_SETTINGS"
"""Names the settings file."""
OTHERS = ("PENSTOCK_SEQUENCE_", "PENSTOCK_TEST_", "PENSTOCK_SEEDS")
"""How the variables of other configurations begin."""
DEFAULT = "default"
"""Origin of a value that neither a file nor a variable gives."""

_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})", re.ASCII)


@dataclass(frozen=True)
class Loaded:
    """Settings, and where they came from."""

    settings: Settings
    file: Path | None
    """The settings file that was read."""
    searched: tuple[Path, ...]
    """Where a settings file was looked for, in order; the last one is `file` where there is one."""
    origins: Mapping[str, str]
    """Per key: the settings file, the name of a variable, or "default"."""
    notes: tuple[str, ...]
    """What a user should know and what stopped nothing: a variable of an unknown name."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data: file, searched, settings (key -> value, origin), notes."""
        values = {name: getattr(self.settings, name) for name in KEYS}
        return {
            "file": None if self.file is None else str(self.file),
            "searched": [str(path) for path in self.searched],
            "settings": {
                name: {"value": None if value is None else str(value), "origin": self.origins[name]}
                for name, value in values.items()
            },
            "notes": list(self.notes),
        }


def load_settings(path: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Reads the settings file and the `PENSTOCK_*` variables.

    Args:
        path: the settings file; None: it is looked for.
        environ: the variables; None: those of the process.

    A value may begin with `~` and hold `$NAME` or `${NAME}`; `$$` is a dollar sign. A relative path in the file counts from
    the file's folder, one in a variable from the working folder. An empty value means that the key is not set, so an empty
    variable takes a value of the file away.

    Raises:
        SourceNotFound: the file given, by argument or by `PENSTOCK_SETTINGS`, is not there.
        UsageError: the file is no TOML, or holds an unknown key, a value that is no text, an unset `$NAME`.
    """
    environ = os.environ if environ is None else environ
    searched = _candidates(path, environ)
    found = next((one for one in searched if os.path.lexists(one)), None)
    if found is None and (path or environ.get(SETTINGS_VARIABLE)):
        what = "the settings file given" if path else f"the settings file that {SETTINGS_VARIABLE} names"
        raise SourceNotFound(f"{searched[0]}: {what} is not there; `penstock settings import` writes one")
    values: dict[str, Path | None] = {"cache_dir": default_cache_dir(environ)}
    origins = dict.fromkeys(KEYS, DEFAULT)
    if found is not None:
        text = _read_text(found)
        for name, value in parse_settings(text, found).items():
            where = f"{place(found, text, name)}: {name}"
            values[name] = _expand(value, base=found.parent, environ=environ, where=where)
            origins[name] = str(found)
    for name, key in KEYS.items():
        if key.variable in environ:
            value = environ[key.variable]
            values[name] = _expand(value, base=_here(), environ=environ, where=key.variable)
            origins[name] = key.variable
    if values["cache_dir"] is None:
        values["cache_dir"] = default_cache_dir(environ)
    tried = tuple(searched if found is None else searched[: searched.index(found) + 1])
    return Loaded(Settings(**values), found, tried, origins, tuple(_unknown_variables(environ)))


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """`penstock` in `$XDG_CACHE_HOME` or, where that is not set or relative, in `~/.cache`."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache") / "penstock"


def _candidates(path: Path | str | None, environ: Mapping[str, str]) -> list[Path]:
    here = _here()
    named = path or environ.get(SETTINGS_VARIABLE)
    if named:
        return [here / _home_expanded(str(named), environ, "settings file")]
    home = _home(environ)
    folders = [here, *here.parents]
    if home in folders:
        folders = folders[: folders.index(home) + 1]
    return [*(one / FILE_NAME for one in folders), _xdg(environ, "XDG_CONFIG_HOME", ".config") / "penstock" / FILE_NAME]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8, which a settings file has to be") from None
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: a symbolic link that leads nowhere; mend it or remove it") from None
    except OSError as error:
        raise UsageError(f"{path}: the settings file cannot be read: {error.strerror or error}") from error


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working folder was removed; go to another one and try again") from None


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _xdg(environ: Mapping[str, str], variable: str, otherwise: str) -> Path:
    """A folder of the XDG base directory rules, which ignore a relative one."""
    named = Path(environ.get(variable, ""))
    return named if named.is_absolute() else _home(environ) / otherwise


def _home_expanded(value: str, environ: Mapping[str, str], where: str) -> str:
    if value == "~" or value.startswith("~/"):
        return str(_home(environ)) + value[1:]
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise UsageError(f"{where}: {value!r}: no user {user[1:]!r} here; write ./{user} for a folder of that name")
    return expanded


def _expand(value: str, *, base: Path, environ: Mapping[str, str], where: str) -> Path | None:
    """The path that a value means; None for an empty one."""

    def variable(match: re.Match[str]) -> str:
        name = match[2] or match[3]
        if match[1]:
            return "$"
        if name not in environ:
            raise UsageError(
                f"{where}: {value!r}: the variable {name} is not set; set it, or write $$ for a dollar sign"
            )
        return environ[name]

    if "\0" in value:
        raise UsageError(f"{where}: {value!r}: a path cannot hold a zero byte")
    expanded = _VARIABLE.sub(variable, _home_expanded(value, environ, where))
    return base / expanded if expanded else None


def _unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    known = {SETTINGS_VARIABLE, *(key.variable for key in KEYS.values())}
    for name in sorted(environ):
        if name.startswith(PREFIX) and not name.startswith(OTHERS) and name not in known:
            yield f"the variable {name} is not a setting and changes nothing{nearest(name, known)}"
