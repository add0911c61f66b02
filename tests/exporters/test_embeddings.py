"""Vectors as npy, npz, Parquet and store: the first cache's layouts to the byte, there and back, killed and gone on with."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData, OutputRefused, SourceNotFound, UsageError
from penstock.exporters.embedding_rows import open_rows, picture_id
from penstock.exporters.embeddings import export_vectors, holds_vectors, read_npy_cache, read_npz_cache
from penstock.schema import Field, Record, Schema
from penstock.store import open_store, write_store
from tests.store.crash import KillDisk

SCHEMA = Schema(
    [
        Field(name="embedding", dtype="float16", shape=(6,), axes="D", kind="embedding", meaning="of norm 1"),
        Field(name="label", dtype="int32", kind="number", meaning="class"),
        Field(name="box", dtype="float32", shape=(4,), axes="4", kind="box", meaning="XYWH, corner from 0"),
        Field(name="category", dtype="str", kind="text", meaning="class"),
    ]
)
KEYS = ("000000397133_15467", "000000397133_9", "cat-0042_16777215", "000000037777_23456", "nameless_7")


def write_vectors(path: Path, keys: tuple[str, ...] = KEYS, seed: int = 0) -> Path:
    """A store of vectors with these keys."""
    rng = np.random.default_rng(seed)

    def record(number: int) -> Record:
        vector = rng.standard_normal(6)
        return {
            "embedding": (vector / np.linalg.norm(vector)).astype(np.float16),
            "label": np.array(number * 3, np.int32),
            "box": np.arange(4, dtype=np.float32) + number,
            "category": f"class {number}",
        }

    write_store(
        path,
        SCHEMA,
        [(key, record(number)) for number, key in enumerate(keys)],
        attributes={"kind": "embeddings", "spec": "tiny:", "dim": 6, "recipe": "native"},
    )
    return path


def content(folder: Path) -> dict[str, bytes]:
    """The files themselves, without what is said of them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_npy_is_the_first_layout(tmp_path: Path) -> None:
    store = open_store(write_vectors(tmp_path / "store"))
    report = export_vectors(tmp_path / "store", tmp_path / "npy", format="npy")
    assert (report.planned, report.done, report.status) == (5, 5, "ok")
    assert (tmp_path / "npy" / "inst2feat.tsv").read_text() == (
        "image_id\tsegment_id\tfeat_file\n"
        "000000037777\t23456\t000000037777_23456.npy\n"
        "000000397133\t9\t000000397133_9.npy\n"
        "000000397133\t15467\t000000397133_15467.npy\n"
        "42\t16777215\t42_16777215.npy\n"
        "nameless\t7\tnameless_7.npy\n"
    )
    assert len(content(tmp_path / "npy")) == 6
    vector = np.load(tmp_path / "npy" / "000000397133_15467.npy")
    assert (vector.shape, vector.dtype) == ((6,), np.float16)
    assert (vector == store[0]["embedding"]).all()


def test_npz_is_the_first_layout(tmp_path: Path) -> None:
    store = open_store(write_vectors(tmp_path / "store"))
    export_vectors(tmp_path / "store", tmp_path / "npz", format="npz")
    assert (tmp_path / "npz" / "image_index.tsv").read_text() == (
        "image_id\tfeat_file\tnum_segments\n"
        "000000037777\t000000037777.npz\t1\n"
        "000000397133\t000000397133.npz\t2\n"
        "42\t42.npz\t1\n"
        "nameless\tnameless.npz\t1\n"
    )
    with np.load(tmp_path / "npz" / "000000397133.npz") as arrays:
        assert arrays.files == ["segment_ids", "embeddings", "labels"]
        assert [arrays[name].dtype.name for name in arrays.files] == ["int32", "float16", "int32"]
        assert arrays["segment_ids"].tolist() == [9, 15467]
        assert arrays["labels"].tolist() == [3, 0]
        assert (arrays["embeddings"] == np.stack([store[1]["embedding"], store[0]["embedding"]])).all()


@pytest.mark.parametrize("first", ["npy", "npz", "parquet", "store"])
@pytest.mark.parametrize("second", ["npy", "npz", "parquet", "store"])
def test_each_format_turns_into_the_others(first: str, second: str, tmp_path: Path) -> None:
    if "parquet" in (first, second):
        pytest.importorskip("pyarrow")
    write_vectors(tmp_path / "origin")
    start = tmp_path / "origin"
    if first != "store":
        start = tmp_path / "first"
        export_vectors(tmp_path / "origin", start, format=first)
    if first == second:
        with pytest.raises(UsageError, match="already"):
            export_vectors(start, tmp_path / "second", format=second)
        return
    export_vectors(start, tmp_path / "second", format=second)
    origin, found = open_rows(tmp_path / "origin"), open_rows(tmp_path / "second")
    by_key = {key: place for place, key in enumerate(found.keys)}
    for place, key in enumerate(origin.keys):
        picture, _, segment = key.rpartition("_")
        other = by_key[key if key in by_key else f"{picture_id(picture)}_{segment}"]
        assert (found.vectors(np.array([other])) == origin.vectors(np.array([place]))).all()
        assert found.labels[other] == (-1 if "npy" in (first, second) else origin.labels[place])
    assert len(found) == 5
    assert holds_vectors(start)
    assert holds_vectors(tmp_path / "second")
    assert not holds_vectors(tmp_path)
    assert found.attributes["spec"] == "tiny:"


def test_parquet_has_every_field_of_the_store(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_vectors(tmp_path / "store")
    for name in ("one", "two"):
        export_vectors(tmp_path / "store", tmp_path / name, format="parquet")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    table = parquet.read_table(tmp_path / "one" / "vectors.parquet")
    assert table.column_names == ["key", "label", "embedding", "box", "category"]
    row = table.slice(3, 1).to_pylist()[0]
    assert (row["key"], row["label"], row["category"]) == ("000000037777_23456", 9, "class 3")
    assert row["box"] == [3, 4, 5, 6]
    with pytest.raises(OutputRefused, match="layout parquet"):
        export_vectors(tmp_path / "store", tmp_path / "one", format="parquet")


def test_readers_give_keys_vectors_and_labels(tmp_path: Path) -> None:
    write_vectors(tmp_path / "store")
    for layout, read in (("npy", read_npy_cache), ("npz", read_npz_cache)):
        export_vectors(tmp_path / "store", tmp_path / layout, format=layout)
        rows = read(tmp_path / layout)
        assert rows.keys[:3] == ["000000037777_23456", "000000397133_9", "000000397133_15467"]
        assert (rows.vectors().shape, rows.vectors().dtype) == ((5, 6), np.float16)
        assert rows.labels.tolist() == ([-1] * 5 if layout == "npy" else [9, 3, 0, 6, 12])
    with pytest.raises(SourceNotFound, match=r"inst2feat\.tsv"):
        read_npy_cache(tmp_path / "npz")


@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_another_call_writes_what_changed_and_nothing_else(layout: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "store")
    export_vectors(tmp_path / "store", tmp_path / "out", format=layout)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    report = export_vectors(tmp_path / "store", tmp_path / "out", format=layout)
    assert report.notes["files"] == {"written": 0, "kept": len(times) - 1, "removed": 0, "bytes_written": 0}
    assert times == {path: path.stat().st_mtime_ns for path in times}
    for keys, seed in ((KEYS, 1), (KEYS[:3], 1), (KEYS, 0)):
        name = f"other-{len(keys)}-{seed}"
        write_vectors(tmp_path / name, keys, seed)
        export_vectors(tmp_path / name, tmp_path / "out", format=layout)
        export_vectors(tmp_path / name, tmp_path / f"{name}-clean", format=layout)
        assert content(tmp_path / "out") == content(tmp_path / f"{name}-clean")
    next((tmp_path / "out").glob(f"000000037777*.{layout}")).unlink()
    report = export_vectors(tmp_path / "other-5-0", tmp_path / "out", format=layout)
    assert report.notes["files"]["written"] == 1
    assert content(tmp_path / "out") == content(tmp_path / "other-5-0-clean")


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(layout: str, halfway: bool, tmp_path: Path) -> None:
    write_vectors(tmp_path / "store")
    write_vectors(tmp_path / "old", KEYS[1:], seed=4)
    count = KillDisk(1 << 60)
    export_vectors(tmp_path / "store", tmp_path / "clean", format=layout, disk=count)
    clean, killed = content(tmp_path / "clean"), 0
    for step in range(1, (1 << 60) - count.left + 1):
        output = tmp_path / f"killed-{step}"
        if step % 2:
            export_vectors(tmp_path / "old", output, format=layout)
        child = os.fork()
        if child == 0:
            try:
                export_vectors(tmp_path / "store", output, format=layout, disk=KillDisk(step, halfway=halfway))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        for name, found in content(output).items() if output.exists() else ():
            is_whole = name.endswith(".new") or found == clean.get(name) or step % 2
            assert is_whole, f"{name} is half written, killed at step {step}"
        export_vectors(tmp_path / "store", output, format=layout)
        assert content(output) == clean, f"killed at step {step}"
    assert killed > 5


def test_outputs_of_others_are_left_alone(tmp_path: Path) -> None:
    write_vectors(tmp_path / "store")
    export_vectors(tmp_path / "store", tmp_path / "npz", format="npz")
    with pytest.raises(OutputRefused, match="layout npz"):
        export_vectors(tmp_path / "store", tmp_path / "npz", format="npy")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "inst2feat.tsv").write_text("image_id\tsegment_id\tfeat_file\n")
    with pytest.raises(OutputRefused, match="nothing that says what they were made with"):
        export_vectors(tmp_path / "store", tmp_path / "foreign", format="npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused, match="is a file"):
        export_vectors(tmp_path / "store", tmp_path / "file", format="npy")
    with pytest.raises(UsageError, match="npy, npz"):
        export_vectors(tmp_path / "store", tmp_path / "x", format="csv")
    with pytest.raises(SourceNotFound, match="expected vectors"):
        export_vectors(tmp_path, tmp_path / "x", format="npy")


@pytest.mark.parametrize(
    ("keys", "layout", "words"),
    [
        (("a/frame_7_1", "b/frame_7_2"), "npy", "a/frame_7 and b/frame_7 have the same image id, 7"),
        (("x_1_3", "x_01_3"), "npz", "same image id"),
        (("x_1_3000000000",), "npz", "int32"),
        (("x_1_3", "x_1_03"), "npy", "two vectors"),
        (("nothing",), "npy", "<picture>_<segment>"),
    ],
)
def test_names_that_do_not_fit_are_refused(keys: tuple[str, ...], layout: str, words: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "store", keys)
    with pytest.raises(BadData, match=words):
        export_vectors(tmp_path / "store", tmp_path / "out", format=layout)
    assert not (tmp_path / "out").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("layout", "damage", "words"),
    [
        ("npy", lambda folder: cut(folder / "nameless_7.npy"), r"nameless_7\.npy"),
        ("npy", lambda folder: (folder / "nameless_7.npy").unlink(), r"nameless_7\.npy"),
        ("npy", lambda folder: np.save(folder / "nameless_7.npy", np.zeros(6)), "expected a vector of float16"),
        (
            "npy",
            lambda folder: np.save(folder / "nameless_7.npy", np.zeros(5, np.float16)),
            r"one length, got \[5, 6\]",
        ),
        ("npz", lambda folder: cut(folder / "42.npz"), r"42\.npz"),
        ("npz", lambda folder: np.savez(folder / "42.npz", labels=np.zeros(1)), "segment_ids"),
        (
            "npz",
            lambda folder: (folder / "42.npz").write_bytes((folder / "000000397133.npz").read_bytes()),
            "index says",
        ),
        ("npz", lambda folder: (folder / "image_index.tsv").write_text("image_id\n"), "header"),
        (
            "npy",
            lambda folder: (folder / "inst2feat.tsv").write_text("image_id\tsegment_id\tfeat_file\n1\t2\t../x.npy\n"),
            "bare name",
        ),
    ],
)
def test_damaged_files_are_named(layout: str, damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    write_vectors(tmp_path / "store")
    export_vectors(tmp_path / "store", tmp_path / "out", format=layout)
    damage(tmp_path / "out")
    with pytest.raises(BadData, match=words):
        open_rows(tmp_path / "out")


@given(st.from_regex(r"\A[a-z_-]{0,6}[0-9]{0,14}[a-z_-]{0,6}\Z").filter(bool))
def test_the_image_id_is_the_first_number_of_the_name(stem: str) -> None:
    found = picture_id(stem)
    digits = "".join(letter for letter in stem if letter.isdigit())
    if not digits:
        assert found == stem
    elif len(digits) == 12:
        assert found == digits
    else:
        assert found == str(int(digits))
    assert picture_id(found) == found or not digits
