"""Files are found, or it is said quickly what to do; nothing is tried where the internet is forbidden or away."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.models import hub

pytest.importorskip("huggingface_hub")

NEEDS = (("config.json",), ("*.safetensors", "*.bin"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, which is at an address where nobody listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # until the end of the test, so that nobody else takes it and listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        yield tmp_path


def fill(cache: Path, *names: str) -> Path:
    repository = cache / "models--own--model"
    folder = repository / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_paths() -> None:
    assert hub.local_path("file:///a/b%20c") == Path("/a/b c")
    assert hub.local_path("/a/b") == Path("/a/b")
    assert hub.local_path("own/model-that-is-not-here") is None
    with pytest.raises(UsageError, match="file:///"):
        hub.local_path("file://elsewhere/a")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceNotFound, match=r"holds no \*\.safetensors or \*\.bin"):
        hub.find_folder("x:y", str(tmp_path), NEEDS)
    (tmp_path / "a.bin").write_text("")
    assert hub.find_folder("x:y", str(tmp_path), NEEDS) == tmp_path
    assert hub.find_folder("x:y", f"file://{tmp_path}", NEEDS) == tmp_path


def test_a_repository_in_the_cache(cache: Path) -> None:
    folder = fill(cache, "config.json", "model.safetensors")
    assert hub.find_folder("x:own/model", "own/model", NEEDS) == folder


def test_a_repository_in_the_cache_that_lacks_its_weights(cache: Path) -> None:
    fill(cache, "config.json")
    with pytest.raises(SourceNotFound, match=r"lacks \*\.safetensors or \*\.bin\. .*hf download own/model"):
        hub.find_folder("x:own/model", "own/model", NEEDS)


def test_offline_nobody_is_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_is_reachable", lambda address: pytest.fail("it asked the hub"))
    with pytest.raises(SourceNotFound, match=r"HF_HUB_OFFLINE forbids .*say x:/path/to/folder"):
        hub.find_folder("x:own/model", "own/model", NEEDS)


def test_out_of_reach_is_quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    began = time.perf_counter()
    with pytest.raises(SourceNotFound, match="cannot be reached"):
        hub.find_folder("x:own/model", "own/model", NEEDS)
    assert time.perf_counter() - began < hub.REACH_SECONDS + 30  # the hub's own client would try for minutes


def test_neither_a_folder_nor_a_repository() -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        hub.find_folder("x:one two", "one two", NEEDS)


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[1]", "expected an object")])
def test_a_damaged_json_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadData, match=words):
        hub.read_json(tmp_path / "a.json")
