"""Files in folders and LMDBs look the same to a reader; walks; locks across forks."""

import errno
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from penstock.errors import BadData, SourceNotFound
from penstock.readers.files import Files, FolderFiles, ForkLock, LmdbFiles, walk

CONTENT = {"a/1.txt": b"one", "a/b/2.txt": b"two", "\u4e09.txt": b"three"}


def folder(root: Path) -> Files:
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return FolderFiles(root)


def write_lmdb(path: Path, content: dict[str, bytes]) -> None:
    """An LMDB as the `*_lmdb` datasets are: keys are relative paths."""
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for name, value in content.items():
            transaction.put(name.encode(), value)


def database(root: Path) -> Files:
    write_lmdb(root / "db", {f"train/{name}": content for name, content in CONTENT.items()})
    return LmdbFiles(root / "db", prefix="train/")


MAKERS = [folder, database]


@pytest.mark.parametrize("make", MAKERS)
def test_content_names_and_stamps(tmp_path: Path, make: Callable[[Path], Files]) -> None:
    files = make(tmp_path)
    for copy in (files, pickle.loads(pickle.dumps(files))):
        assert {name: copy.read(name) for name in CONTENT} == CONTENT
        assert copy.names() == ["a", "\u4e09.txt"]
        assert copy.names("a") == ["1.txt", "b"]
        assert copy.names("nowhere") == []
        assert copy.exists("a/b/2.txt")
        assert not copy.exists("a/3.txt")
        assert copy.stamp("a/1.txt") != 0
        assert copy.stamp("a/3.txt") == 0
        with pytest.raises(BadData, match=r"3\.txt"):
            copy.read("a/3.txt")


@pytest.mark.parametrize("make", MAKERS)
def test_threads_and_a_fork_read_the_same(tmp_path: Path, make: Callable[[Path], Files]) -> None:
    files = make(tmp_path)
    names = list(CONTENT) * 20
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(files.read, names)) == [CONTENT[name] for name in names]
    child = os.fork()
    if not child:
        os._exit(0 if all(files.read(name) == CONTENT[name] for name in CONTENT) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    files = folder(tmp_path)
    before = files.stamp("a/1.txt")
    (tmp_path / "a" / "1.txt").write_bytes(b"longer")
    assert files.stamp("a/1.txt") != before


def test_what_is_no_lmdb_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFound, match="LMDB"):
        LmdbFiles(tmp_path / "empty").names()
    with pytest.raises(SourceNotFound, match="LMDB"):
        LmdbFiles(tmp_path / "nowhere").names()


def test_a_loop_of_links_is_said(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadData, match="loop"):
        FolderFiles(tmp_path).names("loop")


def test_a_walk_is_in_order_of_path_without_hidden_names_and_loops(tmp_path: Path) -> None:
    for name in ("b/2/x", "b/10/x", "b/y", "a/x", ".hidden/x", "z", ".z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    found = [(folder, sorted(file.name for file in files)) for folder, files, _ in walk(tmp_path)]
    assert found == [("", ["z"]), ("a", ["x"]), ("b", ["y"]), ("b/10", ["x"]), ("b/2", ["x"])]
    assert [folder for folder, _, _ in walk(tmp_path, depth=1)] == ["", "a", "b"]
    assert [folder for folder, _, _ in walk(tmp_path, "b", depth=0)] == ["b"]
    with pytest.raises(BadData, match="nowhere"):
        list(walk(tmp_path, "nowhere"))


def test_a_lock_held_while_forking_is_free_in_the_child_and_in_a_copy() -> None:
    lock = ForkLock()
    with lock:
        child = os.fork()
        if not child:
            signal.alarm(20)
            with lock:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pickle.loads(pickle.dumps(lock)):
            pass


def test_a_read_that_may_succeed_later_is_no_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader tries it again; a file that is not there is bad data at once."""

    def broken(*given: object, **options: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(OSError, match="Input/output error") as raised:
        FolderFiles(tmp_path).read("a.jpg")
    assert not isinstance(raised.value, BadData)
    monkeypatch.undo()
    with pytest.raises(BadData):
        FolderFiles(tmp_path).read("a.jpg")
