"""Vectors as novic's cache: read here by byte numbers, as a program that knows the format and not penstock would."""

import hashlib
import os
import signal
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from penstock.cli import main
from penstock.errors import BadData, OutputRefused, UsageError
from penstock.exporters.embedding_novic import CACHE, KEYS
from penstock.exporters.embedding_rows import open_rows
from penstock.exporters.embeddings import export_vectors, holds_vectors
from penstock.schema import Field, Schema
from penstock.store import write_store
from tests.exporters.test_embeddings import KEYS as MADE
from tests.exporters.test_embeddings import content, write_vectors
from tests.store.crash import KillDisk

MAGIC_SHA256 = "fd57c2f0f09a77f66e173f6325ad79e3ccfc9c18325d627d37dc627b313425e6"
"""Of novic's 32 bytes of magic."""
EPS = 2.0**-23


def number(content: bytes, start: int, size: int) -> int:
    return int.from_bytes(content[start : start + size], "little")


def read_cache(path: Path) -> np.ndarray:
    """The vectors, with every check that novic's own reader and writer make of a cache without targets."""
    content = path.read_bytes()
    assert hashlib.sha256(content[:32]).hexdigest() == MAGIC_SHA256
    assert number(content, 32, 1) == 1  # version
    assert list(content[33:38]) == [0, 1, 1, 1, 0]  # targets, full, default weights, unit weights, strict
    assert content[38:102] == bytes(64)  # hashes: novic looks at them only where strict is set
    nouns, noun_bytes, noun_dim = number(content, 102, 4), number(content, 106, 4), number(content, 110, 2)
    count, targets = number(content, 116, 4), number(content, 120, 2)
    assert (nouns, noun_bytes, noun_dim, targets) == (0, 0, 0, 0)
    assert [number(content, 112 + 2 * place, 2) for place in range(2)] == [3, 0]  # int64, bool
    assert number(content, 122, 2) == 2  # int32
    dim, kind = number(content, 124, 2), number(content, 126, 2)
    assert kind == 2  # float32, the type of novic's embedders
    assert count >= 1
    assert len(content) == 128 + 4 * count * dim
    flat = struct.unpack(f"<{count * dim}f", content[128:])
    vectors = np.array(flat, np.float32).reshape(count, dim)
    assert (np.abs(np.linalg.norm(vectors, axis=1) - 1) <= 4 * EPS).all()
    return vectors


def many(path: Path, count: int, dim: int = 24) -> Path:
    """A store of vectors of several pictures."""
    rng = np.random.default_rng(5)
    schema = Schema([Field(name="embedding", dtype="float16", shape=(dim,), axes="D", kind="embedding")])
    vectors = rng.standard_normal((count, dim))
    units = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    write_store(path, schema, [(f"p{row // 10:03d}_{row}", {"embedding": units[row]}) for row in range(count)])
    return path


def test_an_independent_reader_finds_every_vector_under_its_key(tmp_path: Path) -> None:
    many(tmp_path / "store", 300)
    report = export_vectors(tmp_path / "store", tmp_path / "out", format="novic")
    assert (report.status, report.done, report.bytes_written) == ("ok", 300, 128 + 300 * 24 * 4)
    vectors, keys = read_cache(tmp_path / "out" / CACHE), (tmp_path / "out" / KEYS).read_text().split("\n")[:-1]
    origin = open_rows(tmp_path / "store")
    assert sorted(keys) == sorted(origin.keys)
    stored = dict(zip(origin.keys, origin.vectors().astype(np.float64), strict=True))
    for key, vector in zip(keys, vectors, strict=True):
        expected = stored[key] / np.linalg.norm(stored[key])
        assert np.abs(vector - expected).max() <= EPS, key


def test_pictures_are_mixed_and_equal_vectors_give_equal_bytes(tmp_path: Path) -> None:
    many(tmp_path / "store", 300)
    for name in ("one", "two"):
        export_vectors(tmp_path / "store", tmp_path / name, format="novic")
    for name in (CACHE, KEYS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    pictures = [key[:4] for key in (tmp_path / "one" / KEYS).read_text().split()]
    assert sum(first == second for first, second in pairwise(pictures)) < 30


def test_the_command_writes_it_and_the_folder_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vectors(tmp_path / "store")
    output = tmp_path / "out"
    assert main(["export", str(tmp_path / "store"), "--format", "novic", "--output", str(output), "--quiet"]) == 0
    assert read_cache(output / CACHE).shape == (len(MADE), 6)
    assert sorted(path.name for path in output.iterdir()) == [CACHE, KEYS, "report.html", "report.json"]
    assert holds_vectors(output)
    with pytest.raises(UsageError, match="written, not read"):
        export_vectors(output, tmp_path / "back", format="npy")
    with pytest.raises(OutputRefused, match="layout novic"):
        export_vectors(tmp_path / "store", output, format="novic")


def test_what_novic_would_refuse_is_refused(tmp_path: Path) -> None:
    schema = Schema([Field(name="embedding", dtype="float16", shape=(4,), axes="D", kind="embedding")])
    good = np.array([1, 0, 0, 0], np.float16)
    for name, rows, words in (
        ("long", [("a_1", good), ("a_2", good * 2)], "'a_2': expected a vector of norm 1 within 0.002, got 2"),
        ("zero", [("a_1", good * 0)], "got 0"),
        ("nan", [("a_1", good * np.float16(np.nan))], "got nan"),
    ):
        write_store(tmp_path / name, schema, [(key, {"embedding": vector}) for key, vector in rows])
        with pytest.raises(BadData, match=words):
            export_vectors(tmp_path / name, tmp_path / f"{name}-out", format="novic")
        assert not (tmp_path / f"{name}-out" / CACHE).exists()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "inst2feat.tsv").write_text("image_id\tsegment_id\tfeat_file\n")
    with pytest.raises(BadData, match=r"1 to 2\^32 - 1 vectors"):
        export_vectors(tmp_path / "none", tmp_path / "none-out", format="novic")


@pytest.mark.parametrize("halfway", [False, True])
def test_killed_at_any_step_the_same_call_ends_with_the_same_bytes(halfway: bool, tmp_path: Path) -> None:
    write_vectors(tmp_path / "store")
    count = KillDisk(1 << 60)
    export_vectors(tmp_path / "store", tmp_path / "clean", format="novic", disk=count)
    clean, killed = content(tmp_path / "clean"), 0
    for step in range(1, (1 << 60) - count.left + 1):
        output = tmp_path / f"killed-{step}"
        child = os.fork()
        if child == 0:
            try:
                export_vectors(tmp_path / "store", output, format="novic", disk=KillDisk(step, halfway=halfway))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        found = content(output) if output.exists() else {}
        assert found.get(CACHE, clean[CACHE]) == clean[CACHE], f"half a cache, killed at step {step}"
        if CACHE not in found:
            export_vectors(tmp_path / "store", output, format="novic")
        assert content(output) == clean, f"killed at step {step}"
    assert killed >= (3 if halfway else 6)
