"""Outputs that cannot be written are refused with a message; other errors are left alone."""

import errno
import os
from pathlib import Path

import pytest

from penstock.errors import OutputFull, OutputRefused
from penstock.store.output import full_said, refused_if_unwritable, replace_file


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_what_the_system_refuses_is_said(code: int, tmp_path: Path) -> None:
    inner = tmp_path / ".part"
    with pytest.raises(OutputRefused) as caught, refused_if_unwritable(tmp_path):
        raise OSError(code, os.strerror(code), str(inner))
    assert str(caught.value) == f"{tmp_path}: not writable ({inner}: {os.strerror(code)}); nothing was touched"


@pytest.mark.parametrize("error", [OutputFull(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), OSError("odd")])
def test_other_errors_pass_unchanged(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(error.args[-1])) as caught, refused_if_unwritable(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [OutputFull(errno.ENOSPC, "rows"), OSError(errno.EDQUOT, "quota")])
def test_a_full_disk_is_said_of_the_output(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(OutputFull, match="out: no room left; it is gone"), full_said(tmp_path / "out", "it is gone"):
        raise error
    with pytest.raises(OSError, match="broken"), full_said(tmp_path, "it is gone"):
        raise OSError(errno.EIO, "broken")


def test_a_file_is_put_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    for content in (b"one", b"two and more", b""):
        replace_file(path, content)
        assert path.read_bytes() == content
    with pytest.raises(OutputRefused, match="is a folder"):
        replace_file(path.parent, b"")
    with pytest.raises(OutputRefused, match="not writable"):
        replace_file(path / "below", b"")
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]
