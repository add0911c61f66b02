"""The settings file: its text read, made and written. Nothing here replaces a file unless told to."""

import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import OutputRefused, UsageError
from penstock.settings.keys import KEYS, TABLE, nearest


def parse_settings(text: str, path: Path) -> dict[str, str]:
    """Key -> value as it stands in a settings file, nothing expanded. `path` is for the messages only.

    Raises:
        UsageError: no TOML (file and line), something outside the table, an unknown key (the nearest one is named), a value
            that is no text.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path}: this is no TOML: {error}; a value stands in quotes: lasot_dir = '/data/lasot'"
        ) from None
    except RecursionError:
        raise UsageError(f"{path}: this is no settings file: brackets within brackets, too deep to read") from None
    for name in content:
        if name != TABLE:
            hint = f"keys stand below a line [{TABLE}]" if name in KEYS else f"the only table is [{TABLE}]"
            raise UsageError(f"{place(path, text, name)}: {name} does not belong here; {hint}")
    table = content.get(TABLE, {})
    if not isinstance(table, dict):
        raise UsageError(f"{place(path, text, TABLE)}: expected a table [{TABLE}], got {table!r}")
    for name, value in table.items():
        if name not in KEYS:
            raise UsageError(f"{place(path, text, name)}: no setting {name!r}{nearest(name, KEYS)}")
        if not isinstance(value, str):
            raise UsageError(
                f"{place(path, text, name)}: {name}: expected a path in quotes, got {type(value).__name__} {value!r}"
            )
    return table


def settings_toml(values: Mapping[str, str]) -> str:
    """A settings file with every key: those of `values` set, the others as comments. The same values give the same text.

    Values are taken as they are: a dollar sign is written so that it stays one.

    Raises:
        UsageError: a key is unknown.
    """
    for name in values:
        if name not in KEYS:
            raise UsageError(f"no setting {name!r}{nearest(name, KEYS)}")
    lines = [
        "# Settings of penstock: where datasets lie. A variable such as PENSTOCK_LASOT_DIR goes before a line here.",
        "# Relative paths count from the folder of this file; ~ and $NAME are expanded, $$ is a dollar sign.",
        "",
        f"[{TABLE}]",
    ]
    for key in KEYS.values():
        text = _quoted(values.get(key.name, "").replace("$", "$$"))
        lines += [f"# {key.meaning}", f"{key.name} = {text}" if values.get(key.name) else f'# {key.name} = ""']
    return "\n".join(lines) + "\n"


def write_settings(text: str, path: Path | str, *, replace: bool = False) -> Path:
    """Writes a settings file, whole or not at all, and reads it back before it takes its place.

    Args:
        text: the file's content, checked first.
        path: where to; folders above it are made. Behind a symbolic link the file itself is replaced.
        replace: whether a file that is already there may be replaced; it keeps its permissions.

    Returns:
        the path written.

    Raises:
        OutputRefused: something is there and `replace` is not given; it is no file; it cannot be written.
        UsageError: the text is not that of a settings file.
    """
    target = Path(os.path.realpath(path)) if replace else Path(path)
    parse_settings(text, target)
    if target.is_dir():
        raise OutputRefused(f"{target}: expected a file to write the settings to, this is a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        reserved = _reserve(target, replace=replace)
        try:
            _put(text, target)
        except BaseException:
            if reserved:
                target.unlink()
            raise
    except OutputRefused:
        raise
    except OSError as error:
        raise OutputRefused(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def place(path: Path, text: str, name: str) -> str:
    """File, and the line on which a key or a table begins, where it can be told."""
    begins = re.compile(rf"\s*\[*\s*[\"']?{re.escape(name)}[\"']?\s*[\]=.]")
    line = next((number for number, one in enumerate(text.split("\n"), 1) if begins.match(one)), None)
    return str(path) if line is None else f"{path}:{line}"


def _quoted(text: str) -> str:
    """A TOML basic string: as in JSON, but for the delete character, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _reserve(target: Path, *, replace: bool) -> bool:
    """Makes the file, empty, in one step that fails where there is one; so no file of anybody else's is replaced."""
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        if replace:
            return False
        raise OutputRefused(f"{target}: there is something already; it was left as it is, name another file") from None
    return True


def _put(text: str, target: Path) -> None:
    """Writes beside the target, reads back, and renames over it."""
    content = text.encode()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, name)
        if Path(name).read_bytes() != content:
            raise OutputRefused(f"{target}: the disk gave back other bytes than were written; nothing was replaced")
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
