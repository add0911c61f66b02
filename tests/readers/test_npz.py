"""NPZ bytes from strangers: right arrays, or BadData; never code that runs."""

import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.readers.npz import npz_names, read_npz
from penstock.readers.object_array import decode_object_array
from penstock.testing import npz_bytes

MASK = (np.arange(35).reshape(5, 7) % 3 == 0).astype(np.uint8)


def object_list(*arrays: np.ndarray) -> np.ndarray:
    listed = np.empty(len(arrays), dtype=object)
    for number, array in enumerate(arrays):
        listed[number] = array
    return listed


class Evil:
    """Pickles into a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_what_numpy_reads(compressed: bool) -> None:
    fields = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        "scalar": np.array(True),
        "text": np.array("sa_1"),
        "empty": np.zeros((0, 4), np.float64),
    }
    content = npz_bytes(fields, compressed=compressed)
    read = read_npz(content)
    assert list(read) == list(fields) == npz_names(content)
    for name, array in fields.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_stored_members_are_not_copied() -> None:
    content = np.frombuffer(npz_bytes({"a": np.arange(1000)}), np.uint8)
    assert np.shares_memory(read_npz(content)["a"], content)


def test_only_the_names_asked_for_are_read() -> None:
    content = npz_bytes({"a": np.zeros(3), "strange": np.array([Evil(os.getcwd)], dtype=object)})
    assert list(read_npz(content, names=("a", "absent"))) == ["a"]


@pytest.mark.parametrize(
    "masks",
    [
        np.array([MASK], dtype=object),
        np.array([MASK, 1 - MASK], dtype=object),
        np.array([MASK.astype(bool)], dtype=object),
        np.array([MASK.astype(np.float32)], dtype=object),
        object_list(MASK),
        object_list(MASK.astype(bool), MASK == 0),
        object_list(np.asfortranarray(MASK.astype(">i4"))),
        object_list(np.array(MASK, dtype=object)),
        np.array([MASK.astype(int) * 1000], dtype=object),
        np.array([], dtype=object),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_object_masks_of_every_shape_numpy_makes(masks: np.ndarray, protocol: int) -> None:
    expected = np.stack([np.asarray(mask) for mask in masks]) if len(masks) else masks
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": masks.shape})
    pickle.dump(masks, buffer, protocol=protocol)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("masks.npy", b"\x93NUMPY\x01\x00" + buffer.getvalue()[8:])
    read = read_npz(packed.getvalue())["masks"]
    assert read.dtype.kind in "biuf"
    np.testing.assert_array_equal(read, expected.astype(read.dtype))


def test_names_of_old_numpy_are_known() -> None:
    content = pickle.dumps(np.array([MASK], dtype=object), protocol=3).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(decode_object_array(content, name="masks"), MASK[None])


@pytest.mark.parametrize(
    ("function", "arguments", "refused"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("open({!r}, 'w')",), "eval"),
        (exec, ("open({!r}, 'w')",), "exec"),
        (subprocess.call, (["touch", "{}"],), "subprocess.call"),
        (np.load, ("{}",), "numpy.load"),
        (np.save, ("{}", 1), "numpy.save"),
        (open, ("{}", "w"), "open"),
        (getattr, (1, "real"), "getattr"),
    ],
)
def test_a_pickle_that_would_run_code_runs_none(
    tmp_path, function: object, arguments: tuple[object, ...], refused: str
) -> None:
    trace = tmp_path / "ran.npy"
    filled = tuple(
        [part.format(trace) for part in argument] if isinstance(argument, list)
        else argument.format(str(trace)) if isinstance(argument, str) else argument
        for argument in arguments
    )  # fmt: skip
    for array in (np.array([Evil(function, *filled)], dtype=object), object_list(MASK, Evil(function, *filled))):
        with pytest.raises(BadData, match=rf"'masks'.*{refused}.*refused"):
            read_npz(npz_bytes({"masks": array}))
    assert not trace.exists()


HOSTILE = {
    "state given to a stub": b"cnumpy\nndarray\n}U\x01aK\x01sb.",
    "dict state of dtype": b"cnumpy\ndtype\n(NX\x01\x00\x00\x00a)d\x86b.",
    "new object": b"cnumpy\nndarray\n)\x81.",
    "instance": b"(inumpy\nndarray\n.",
    "object opcode": b"(cnumpy\nndarray\nK\x01o.",
    "extension": b"\x82\x01.",
    "outside reference": b"Pid\n.",
    "huge memo": b"Nr\xff\xff\xff\x7f.",
    "huge text memo": b"Np99999999999\n.",
    "huge bytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "huge text": b"X\xff\xff\xff\xff.",
    "empty": b"",
    "no opcode": b"\xff\xff",
    "a number": b"K\x01.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.sort\x93.",
    "reconstruct of another": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
    "no state": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hand_made_hostile_pickles_are_bad_data(name: str) -> None:
    with pytest.raises(BadData, match="masks"):
        decode_object_array(HOSTILE[name], name="masks")


def test_an_array_that_holds_itself_is_bad_data() -> None:
    array = np.empty(1, dtype=object)
    array[0] = array
    with pytest.raises(BadData, match="arrays inside"):
        decode_object_array(pickle.dumps(array), name="masks")


def test_one_array_named_many_times_counts_each_time() -> None:
    content = pickle.dumps(object_list(*[np.zeros((100, 100), np.uint8)] * 1000))
    with pytest.raises(BadData, match="more than 100000 bytes"):
        decode_object_array(content, name="masks", max_bytes=100_000)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"], dtype=object),
        np.array([None], dtype=object),
        np.array([{"a": 1}], dtype=object),
        np.array([1 << 80], dtype=object),
        object_list(np.array(["text"])),
        object_list(MASK, MASK[:2]),
        object_list(MASK, 1),
        object_list(np.zeros(2, np.complex64)),
    ],
    ids=str,
)
def test_object_arrays_of_anything_but_numbers_are_bad_data(array: np.ndarray) -> None:
    with pytest.raises(BadData, match="'masks'"):
        read_npz(npz_bytes({"masks": array}))


def test_an_object_array_under_another_name_is_bad_data() -> None:
    with pytest.raises(BadData, match=r"'bboxes'.*object array"):
        read_npz(npz_bytes({"bboxes": np.array([MASK], dtype=object)}))


def test_a_deflated_bomb_is_refused_by_its_declared_size() -> None:
    content = npz_bytes({"a": np.zeros(1 << 20, np.uint8)}, compressed=True)
    assert len(content) < 1 << 13
    with pytest.raises(BadData, match=r"declare .* bytes; expected at most 1000"):
        read_npz(content, max_bytes=1000)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_is_found_by_the_checksum(compressed: bool) -> None:
    content = bytearray(npz_bytes({"a": np.arange(1000)}, compressed=compressed))
    content[len(content) // 2] ^= 1
    with pytest.raises(BadData, match="'a"):
        read_npz(content)


def test_a_shape_that_the_bytes_do_not_fill_is_bad_data() -> None:
    npy = io.BytesIO()
    np.lib.format.write_array_header_1_0(npy, {"descr": "<f4", "fortran_order": False, "shape": (1 << 39, 2)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.npy", npy.getvalue() + b"1234")
    with pytest.raises(BadData, match=r"needs .* bytes, got 4"):
        read_npz(packed.getvalue())


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 10, npz_bytes({"a": np.arange(9)})[:-30]])
def test_bytes_that_are_no_npz_are_bad_data(content: bytes) -> None:
    with pytest.raises(BadData, match="expected a ZIP archive"):
        read_npz(content)


def test_a_name_that_is_there_twice_is_bad_data() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", b"")
    with pytest.raises(BadData, match="twice"):
        read_npz(packed.getvalue())


WHOLE = {
    compressed: npz_bytes({"a": np.arange(20), "masks": object_list(MASK, MASK)}, compressed=compressed)
    for compressed in (False, True)
}


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_gives_arrays_or_bad_data(compressed: bool, changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[compressed])
    for position, value in changes:
        content[position % len(content)] = value
    try:
        arrays = read_npz(content, max_bytes=1 << 20)
    except BadData:
        return
    assert all(array.dtype.kind in "biufcUS" for array in arrays.values())


PICKLES = [pickle.dumps(object_list(MASK, MASK), protocol=p) for p in (2, 4)] + [pickle.dumps(np.array([MASK], object))]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PICKLES), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=4))
def test_any_damage_of_a_pickle_gives_numbers_or_bad_data(content: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    try:
        array = decode_object_array(damaged, name="masks", max_bytes=1 << 20)
    except BadData:
        return
    assert array.dtype.kind in "biuf"


def test_a_pickle_of_nested_tuples_cannot_end_the_process() -> None:
    content = b"})" + b"\x85" * 2_000_000 + b"K\x01s."
    with pytest.raises(BadData, match="tuples"):
        decode_object_array(memoryview(content), name="masks", shape=(1,), max_bytes=1 << 20)
