"""Bytes that exporters write: JSON, lines of numbers, members of a TAR; and what a name or a quality may be."""

import io
import re
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np
import orjson

from penstock.errors import UsageError


def dump(content: object) -> bytes:
    """JSON on several lines."""
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def shortest(numbers: np.ndarray, digits: int = 4) -> str:
    """Numbers apart by commas, rounded to so many digits behind the point, zeros at the end left out: "12,0.5,3"."""
    texts = (f"{float(number):.{digits}f}".rstrip("0").rstrip(".") for number in numbers)
    return ",".join("0" if text == "-0" else text for text in texts)


def fixed(numbers: np.ndarray, digits: int = 4) -> str:
    """Numbers apart by commas, with so many digits behind the point: "12.0000,0.5000"."""
    texts = (f"{float(number):.{digits}f}" for number in numbers)
    return ",".join(text.removeprefix("-") if not float(text) else text for text in texts)


def lines(rows: Sequence[object]) -> bytes:
    """One line of text for each."""
    return "".join(f"{row}\n" for row in rows).encode()


def folder_text(text: str) -> str:
    """A class name as the name of a folder: nothing that leads elsewhere, "object" for none."""
    return re.sub(r"[/\\\x00-\x1f\x7f]|^\.+", "_", text.strip()) or "object"


def require_folder_name(option: str, text: str) -> None:
    """Makes sure that an option is the name of a folder.

    Raises:
        UsageError: it is not.
    """
    if folder_text(text) != text:
        raise UsageError(f"{option}: expected the name of a folder, got {text!r}")


def require_quality(quality: int) -> None:
    """Makes sure that a JPEG quality is one.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise UsageError(f"jpeg_quality: expected 1..100, got {quality!r}")


def tar_members(files: Mapping[str, bytes]) -> bytes:
    """Members of a TAR, without its end: equal files give equal bytes (no times, no owners)."""
    stream = io.BytesIO()
    for name, content in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o644
        stream.write(info.tobuf(tarfile.PAX_FORMAT))
        stream.write(content)
        stream.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return stream.getvalue()
