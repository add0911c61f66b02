"""Id maps in `.pth` files: what torch reads is what we read, and nothing a file asks for is run."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers import pth, safe_pickle, torch_file
from penstock.readers.pth import load_id_file, load_id_map, save_id_map

torch = pytest.importorskip("torch")

SHARED = Path(__file__).parents[2].parent / "shared"
TYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


def saved(value: object, **how: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def rezipped(content: bytes, changes: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with members replaced, added, or (None) left out; names without the root."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        members = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name, data in (members | changes).items():
            if data is not None:
                new.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def pickled(value: bytes) -> bytes:
    """A torch file whose pickle is the one given."""
    return rezipped(saved(torch.zeros(2, 3, dtype=torch.int32)), {"data.pkl": value})


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert found.flags.owndata
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_of_every_integer_type(dtype: str, legacy: bool) -> None:
    whole = torch.arange(-20, 40).reshape(6, 10).to(getattr(torch, dtype))
    for view in (whole, whole.t(), whole[2:, 3:], whole[::2, ::3], whole[1:2].expand(4, 10), whole[None, None]):
        found = load_id_map(saved(view, _use_new_zipfile_serialization=not legacy))
        assert_same(found, view.numpy().reshape(view.shape[-2:]))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_of_every_integer_type(dtype: str, protocol: int) -> None:
    ids = np.arange(-20, 40).reshape(6, 10).astype(dtype)
    for view in (
        ids,
        np.asfortranarray(ids),
        ids.T,
        ids[1::2, ::3],
        ids.astype(ids.dtype.newbyteorder(">")),
        ids[None],
    ):
        for legacy in (False, True):
            content = saved(view, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
            assert_same(load_id_map(content), view.reshape(view.shape[-2:]))
    with zipfile.ZipFile(io.BytesIO(saved(ids))) as archive:
        old = pickled(archive.read("archive/data.pkl").replace(b"numpy._core.", b"numpy.core."))
    assert_same(load_id_map(old), ids)


@given(
    st.sampled_from(TYPES).flatmap(lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 8), st.integers(0, 8)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_views_of_tensors_and_arrays(
    ids: np.ndarray, cut: tuple[int, int, int, int], turned: bool, legacy: bool
) -> None:
    rows, columns, top, left = cut
    place = (slice(top % ids.shape[0], None, rows), slice(left % ids.shape[1], None, columns))
    array, tensor = ids[place], torch.from_numpy(ids.copy())[place]
    if turned:
        array, tensor = array.T, tensor.t()
    for value in (array, tensor):
        assert_same(load_id_map(saved(value, _use_new_zipfile_serialization=not legacy)), array)


@given(
    st.sampled_from(TYPES).flatmap(lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
)
@settings(max_examples=40, deadline=None)
def test_what_is_saved_is_a_tensor_for_torch(ids: np.ndarray) -> None:
    content = save_id_map(ids)
    assert content == save_id_map(np.asfortranarray(ids))
    tensor = torch.load(io.BytesIO(content), weights_only=True)
    assert tensor.is_contiguous()
    assert_same(np.array(tensor.numpy()), ids)
    assert_same(load_id_map(content), ids)


def test_saved_data_are_aligned_and_map_into_memory(tmp_path: Path) -> None:
    ids = np.arange(200_000, dtype=np.int32).reshape(400, 500)
    path = tmp_path / "ids.pth"
    path.write_bytes(save_id_map(ids, "int64"))
    assert np.array_equal(torch.load(path, mmap=True, weights_only=True).numpy(), ids)
    assert path.read_bytes().find(ids.astype(np.int64).tobytes()) % 64 == 0


@pytest.mark.parametrize(
    ("ids", "dtype", "message"),
    [
        (np.array([[300]]), "uint8", "do not fit uint8"),
        (np.array([[-1]]), "uint16", "do not fit uint16"),
        (np.array([[1 << 40]]), "int32", "do not fit int32"),
        (np.array([[2]]), "bool", "do not fit bool"),
        (np.array([[2]]), "float32", "integer type"),
        (np.array([[2.0]]), "int32", "expected \\(H, W\\) integers"),
        (np.array([2]), None, "expected \\(H, W\\) integers"),
        (np.zeros((0, 4), int), None, "at least one pixel"),
    ],
)
def test_saving_refuses_what_would_change(ids: np.ndarray, dtype: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        save_id_map(ids, dtype)


def test_big_endian_archive_and_deflated_members() -> None:
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    content = saved(torch.from_numpy(ids))
    swapped = rezipped(content, {"byteorder": b"big", "data/0": ids.astype(">i4").tobytes()})
    assert_same(load_id_map(swapped), ids)
    assert_same(load_id_map(rezipped(content, {"byteorder": None})), ids)
    assert_same(load_id_map(rezipped(content, {}, zipfile.ZIP_DEFLATED)), ids)
    with pytest.raises(BadData, match="byte order"):
        load_id_map(rezipped(content, {"byteorder": b"middle"}))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 3), "tensor of float32"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), "tensor of bfloat16"),
        (torch.zeros(2, 3, dtype=torch.float16), "tensor of float16"),
        (np.zeros((2, 3)), "array of float64"),
        (np.zeros((2, 3), complex), "no number"),
        (np.array([["a"]]), "no number"),
        (np.array([[1, None]]), "Python objects"),
        (torch.zeros(3, dtype=torch.int32), r"one map \(H, W\)"),
        (torch.zeros(2, 3, 4, dtype=torch.int32), r"one map \(H, W\)"),
        (np.zeros((3, 4, 1), int), r"one map \(H, W\)"),
        (np.zeros((0, 4), int), "shape|bytes"),
        ({"ids": torch.zeros(2, 3, dtype=torch.int32)}, "got dict"),
        ([1, 2], "got list"),
        (7, "got int"),
        (None, "got NoneType"),
        (torch.nn.Parameter(torch.zeros(2, 3)), "torch._utils._rebuild_parameter"),
        (torch.zeros(2, 3, dtype=torch.int32).to_sparse(), "_rebuild_sparse_tensor"),
        (OrderedDict(a=1), "NoneType|cannot be read"),
        (Path("x"), r"pathlib.*refused and nothing was run"),
    ],
)
def test_what_is_no_id_map_is_named(value: object, message: str, legacy: bool) -> None:
    with pytest.raises(BadData, match=message):
        load_id_map(saved(value, _use_new_zipfile_serialization=not legacy))


class Call:
    def __init__(self, function: object, *given: object) -> None:
        self.call = (function, given)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = [os.system, eval, exec, subprocess.Popen, getattr, np.frombuffer, np.load, torch.load, torch.zeros]


@pytest.mark.parametrize("function", HOSTILE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_never_run(function: object, legacy: bool, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for protocol in (2, 4):
        content = saved(
            Call(function, f"touch {mark}"), pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy
        )
        with pytest.raises(BadData, match=r"asks for .*refused and nothing was run"):
            load_id_map(content)
    assert not mark.exists()


def tensor_pickle(
    *,
    storage: bytes = b"ctorch\nIntStorage\n",
    key: bytes = b"0",
    count: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
) -> bytes:
    def number(value: int) -> bytes:
        return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)

    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    def several(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    pid = b"(" + text(b"storage") + storage + text(key) + text(b"cpu") + number(count) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + pid
        + number(offset)
        + several(shape)
        + several(strides)
        + hooks
        + b"tR."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "at most"),
        ({"shape": (1 << 20, 1 << 20), "strides": (0, 0)}, "at most"),
        ({"shape": (1 << 100, 1), "strides": (0, 0)}, "at most"),
        ({"shape": (2, 4)}, "does not fit"),
        ({"shape": (-2, 3)}, "does not fit"),
        ({"shape": (0, 3)}, "does not fit"),
        ({"strides": (-3, 1)}, "does not fit"),
        ({"strides": (3,)}, "shape"),
        ({"offset": 1}, "does not fit"),
        ({"offset": -1}, "does not fit"),
        ({"count": 5}, "expected 20 bytes, got 24"),
        ({"count": 1 << 60}, "elements"),
        ({"count": -1}, "elements"),
        ({"storage": b"ctorch\nLongStorage\n"}, "expected 48 bytes, got 24"),
        ({"storage": b"cos\nsystem\n"}, "os.system"),
        ({"storage": b"ctorch._utils\n_rebuild_tensor_v2\n"}, "id of a storage"),
        ({"key": b"../version"}, "id of a storage"),
        ({"key": b"../../etc/passwd"}, "id of a storage"),
        ({"key": b"7"}, "no member archive/data/7"),
    ],
)
def test_sizes_and_names_are_checked(change: dict[str, Any], message: str) -> None:
    assert_same(load_id_map(pickled(tensor_pickle())), np.zeros((2, 3), np.int32))
    with pytest.raises(BadData, match=message):
        load_id_map(pickled(tensor_pickle(**change)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo"),
        (b"\x80\x02Np2147483647\n.", "memo"),
        (b"\x80\x02" + b"N0" * 20_000 + b"N.", "opcodes"),
        (b"\x80\x02" + b"(" * 9_000 + b"t" * 8_000 + b".", "opcodes"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.", "no whole pickle"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "no whole pickle"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "no whole pickle"),
        (b"", "no whole pickle"),
        (b"\xff\xfe", "no whole pickle"),
        (b"\x80\x02NQ.", "id of a storage"),
        (b"\x80\x02Px\n.", "id of a storage"),
        (b"\x80\x02\x82\x01.", "cannot be read"),
        (b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aNsb.", "cannot be read"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "cannot be read"),
        (b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n(NNNtR.", "cannot be read"),
        (b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n.", "got Reconstruct"),
    ],
)
def test_hostile_pickles(value: bytes, message: str) -> None:
    with pytest.raises(BadData, match=message):
        load_id_map(pickled(value))


def test_arrays_whose_size_is_a_lie() -> None:
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    plain = pickle.dumps(ids, 2)
    for sides in (b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"):
        lie = plain.replace(b"K\x02K\x03", b"K\x02" + sides)
        assert lie != plain
        with pytest.raises(BadData, match="shape"):
            load_id_map(pickled(lie))
    empty = pickle.dumps(np.empty((0, 3), np.int64), 2)
    with pytest.raises(BadData, match=r"shape|bytes"):
        load_id_map(pickled(empty))


def test_zip_bombs_and_odd_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(torch.zeros(200, 300, dtype=torch.int32))
    with pytest.raises(BadData, match=r"NAME/data\.pkl"):
        load_id_map(rezipped(content, {"data.pkl": None}))
    with pytest.raises(BadData, match="damaged"):
        load_id_map(content[:-40])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        first = archive.getinfo("archive/data/0").header_offset
    flipped = bytearray(content)
    flipped[first + 1000] ^= 1
    with pytest.raises(BadData, match="damaged"):
        load_id_map(bytes(flipped))
    twice = io.BytesIO(content)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", b"N.")
    with pytest.raises(BadData, match="twice"):
        load_id_map(twice.getvalue())
    two = io.BytesIO(content)
    with zipfile.ZipFile(two, "a") as archive:
        archive.writestr("other/data.pkl", b"N.")
    with pytest.raises(BadData, match="got 2"):
        load_id_map(two.getvalue())
    monkeypatch.setattr(torch_file, "MAX_BYTES", 100_000)
    with pytest.raises(BadData, match="expected at most"):
        load_id_map(rezipped(content, {}, zipfile.ZIP_DEFLATED))
    monkeypatch.undo()
    monkeypatch.setattr(torch_file, "MAX_MEMBERS", 3)
    with pytest.raises(BadData, match="expected at most 3"):
        load_id_map(content)


def test_a_member_that_lies_about_its_length_takes_no_memory() -> None:
    bomb = rezipped(saved(torch.zeros(2, 3, dtype=torch.int32)), {"data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    lie = bomb.replace(struct.pack("<I", 1 << 24), struct.pack("<I", 24))
    assert lie != bomb
    with pytest.raises(BadData, match=r"damaged|expected 24 bytes"):
        load_id_map(lie)


def test_legacy_files_that_lie() -> None:
    content = saved(torch.arange(6, dtype=torch.int32).reshape(2, 3), _use_new_zipfile_serialization=False)
    assert_same(load_id_map(content), np.arange(6, dtype=np.int32).reshape(2, 3))
    for cut in (1, 24, 30, 60, 200):
        with pytest.raises(BadData):
            load_id_map(content[:-cut])
    with pytest.raises(BadData, match="little-endian"):
        load_id_map(content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(BadData, match="1001"):
        load_id_map(content.replace(b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03."))
    with pytest.raises(BadData, match="elements"):
        load_id_map(content[:-32] + struct.pack("<q", 7) + content[-24:])


def test_a_storage_of_the_old_format_that_is_a_view_is_refused() -> None:
    view = tensor_pickle().replace(b"tQ", b"X\x01\x00\x00\x00atQ")
    with pytest.raises(BadData, match="view of another"):
        load_id_map(pickled(view))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(range(4)),
    st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_damaged_bytes_never_end_in_another_error(
    which: int, changes: list[tuple[float, int]], in_pickle: bool
) -> None:
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    value = torch.from_numpy(ids) if which % 2 else ids
    content = bytearray(saved(value, _use_new_zipfile_serialization=which < 2))
    inner = which < 2 and in_pickle
    if inner:  # behind the checksum
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = bytearray(archive.read("archive/data.pkl"))
    for place, byte in changes:
        content[int(place * len(content))] = byte
    damaged = rezipped(saved(value), {"data.pkl": bytes(content)}) if inner else bytes(content)
    try:
        found = load_id_map(damaged)
    except BadData:
        return
    assert found.ndim == 2
    assert found.dtype.kind in "biu"
    if which == 1 and not inner:
        assert np.array_equal(found, ids), "a checksum guards the data"


def test_files_by_suffix(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint16).reshape(3, 4)
    for name in ("a.jpg.pth", "a.PT", "\u043a\u043e\u0442.pth"):
        (tmp_path / name).write_bytes(save_id_map(ids, "int32"))
        assert_same(load_id_file(tmp_path / name), ids.astype(np.int32))
        assert_same(load_id_map(str(tmp_path / name)), ids.astype(np.int32))
    for view in (ids, ids.T, ids[None], ids.astype(">u2")):
        np.save(tmp_path / "a.npy", view)
        assert_same(load_id_file(tmp_path / "a.npy"), view.reshape(view.shape[-2:]))
    with pytest.raises(UsageError, match=r"\.tif"):
        load_id_file(tmp_path / "a.tif")
    for name in ("none.pth", "none.npy", "none.png"):
        with pytest.raises(SourceNotFound, match=name):
            load_id_file(tmp_path / name)


def test_png_id_maps(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    ids = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
    Image.fromarray(ids).save(tmp_path / "a.png")
    assert np.array_equal(load_id_file(tmp_path / "a.png"), ids)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(BadData, match=r"a\.png"):
        load_id_file(tmp_path / "a.png")


def test_npy_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3), np.int64))
    contents = {
        "expected an NPY": b"hello",
        "NPY file of integers": path.read_bytes()[:-1],
        "of integers: mmap": path.read_bytes().replace(b"(2, 3)", b"(9, 9)"),
    }
    for message, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(BadData, match=message):
            load_id_file(path)
    for array, message in ((np.zeros((2, 3)), "float64"), (np.array([[1, None]]), "NPY file of integers")):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(BadData, match=message):
            load_id_file(path)
    with path.open("wb") as opened:
        np.savez(opened, a=np.zeros((2, 3), int))
    with pytest.raises(BadData, match="archive of several"):
        load_id_file(path)


def test_large_and_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"hello", pickle.dumps(np.zeros((2, 3), int)), b"\x80\x02" * 50):
        with pytest.raises(BadData, match=r"expected a file of torch\.save"):
            load_id_map(content)
    path = tmp_path / "a.pth"
    path.write_bytes(save_id_map(np.zeros((20, 30), np.int64)))
    monkeypatch.setattr(pth, "MAX_BYTES", 100)
    with pytest.raises(BadData, match="at most 100"):
        load_id_map(path)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(saved(torch.zeros(2, 3, dtype=torch.uint16)))
    code = (
        "import sys; from penstock.readers.pth import load_id_map, save_id_map; "
        f"save_id_map(load_id_map({str(path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stubs_refuse_by_themselves() -> None:
    with pytest.raises(BadData, match="outside itself"):
        safe_pickle.StubUnpickler(io.BytesIO(b"\x80\x02NQ."), "here", safe_pickle.NUMPY_STUBS).load()


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_shared_scenes_are_read_as_torch_reads_them() -> None:
    types = set()
    for path in sorted((SHARED / "data" / "scenes").glob("*/obj_ids/*.pth")):
        theirs = np.asarray(torch.load(path, weights_only=False))
        types.add(theirs.dtype.name)
        assert_same(load_id_file(path), theirs)
    assert types == {"int32", "uint8", "uint16"}
