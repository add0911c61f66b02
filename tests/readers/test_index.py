"""The index cache: built once, rebuilt when its files change, never in the way."""

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import StateMismatch
from penstock.readers.index import Index, cached_index
from penstock.source import Problem


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))


def sample_index() -> Index:
    index = Index()
    index.put("box", np.arange(12).reshape(3, 4), "float32")
    index.put("empty", [], "int64")
    index.put_texts("name", ["a", "", "\u4e09"])
    index.problems.append(Problem("x.json", "BadData", "broken"))
    return index


def never() -> Index:
    raise AssertionError("built although it is in the cache")


def test_the_second_opening_builds_nothing_and_gives_the_same() -> None:
    first = cached_index("r", "id", "f", sample_index)
    second = cached_index("r", "id", "f", never)
    for index in (first, second):
        np.testing.assert_array_equal(index["box"], np.arange(12, dtype=np.float32).reshape(3, 4), strict=True)
        assert index["empty"].shape == (0,)
        assert index.texts("name") == ["a", "", "\u4e09"]
        assert index.problems == [Problem("x.json", "BadData", "broken")]


def test_another_fingerprint_builds_anew() -> None:
    cached_index("r", "id", "old", Index)
    assert "box" in cached_index("r", "id", "new", sample_index).columns


@pytest.mark.parametrize("damage", [lambda b: b[:20], lambda b: b[:-1], lambda b: b"\xff" * len(b), lambda b: b""])
def test_a_damaged_cache_file_is_built_anew(tmp_path: Path, damage: "object") -> None:
    cached_index("r", "id", "f", sample_index)
    (path,) = (tmp_path / "cache" / "index").iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]  # one of the functions above
    assert cached_index("r", "id", "f", sample_index).texts("name") == ["a", "", "\u4e09"]
    cached_index("r", "id", "f", never)


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        index = cached_index("r", "id", "f", sample_index)
    assert "cannot be kept" in caplog.text
    assert pickle.loads(pickle.dumps(index)).texts("name") == index.texts("name")


def test_a_kept_index_is_pickled_by_name() -> None:
    index = cached_index("r", "id", "f", lambda: _large())
    content = pickle.dumps(index)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content)["box"], index["box"])


def test_a_rebuilt_index_refuses_the_old_pickle() -> None:
    content = pickle.dumps(cached_index("r", "id", "f", sample_index))
    cached_index("r", "id", "g", sample_index)
    with pytest.raises(StateMismatch, match="rebuilt"):
        pickle.loads(content)


def test_an_open_index_outlives_its_replacement() -> None:
    index = cached_index("r", "id", "f", sample_index)
    cached_index("r", "id", "g", Index)
    assert index.texts("name") == ["a", "", "\u4e09"]


def test_nothing_is_left_beside_the_index(tmp_path: Path) -> None:
    for fingerprint in "abc":
        cached_index("r", "id", fingerprint, sample_index)
    assert len(os.listdir(tmp_path / "cache" / "index")) == 1


@given(st.lists(st.binary(max_size=20)))
def test_texts_come_back(texts: list[bytes]) -> None:
    index = Index()
    index.put_texts("t", texts)
    assert index.count("t") == len(texts)
    assert [index.raw("t", row) for row in range(len(texts))] == texts


def _large() -> Index:
    index = Index()
    index.put("box", np.zeros((100_000, 4)), "float32")
    return index
