"""Pickles of plain data, and those that are not."""

import collections
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadData
from penstock.readers.plain_pickle import load_plain_pickle

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
_PLAIN = st.recursive(
    _SCALARS | st.sets(st.integers() | st.text()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(_SCALARS, inner),
    max_leaves=20,
)


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@given(value=_PLAIN, protocol=st.sampled_from([3, 4, 5]))
@settings(deadline=None)
def test_plain_data_come_back(value: object, protocol: int) -> None:
    found = load_plain_pickle(pickle.dumps(value, protocol), "f").value
    assert found == value
    assert repr(type(found)) == repr(type(value))


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_plain_data_of_old_protocols_come_back(protocol: int) -> None:
    value = [{"a": (1, -2.5, True, None), "\u4e09": [1 << 70, "x\ny"], 3: {1, 2}}, set()]
    assert load_plain_pickle(pickle.dumps(value, protocol), "f").value == value


def test_what_two_places_share_is_shared() -> None:
    inner = [1]
    found = load_plain_pickle(pickle.dumps([inner, inner], 2), "f").value
    assert found[0] is found[1]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"S'caf\\xc3\\xa9'\n.", "caf\u00e9"),
        (b"U\x05caf\xc3\xa9.", "caf\u00e9"),
        (b"T\x05\x00\x00\x00caf\xc3\xa9.", "caf\u00e9"),
        (b"V\\u4e09\n.", "\u4e09"),
    ],
)
def test_byte_strings_of_python_2_are_utf8(content: bytes, text: str) -> None:
    found = load_plain_pickle(content, "f")
    assert (found.value, found.latin1) == (text, 0)


def test_byte_strings_that_are_no_utf8_are_latin1_and_counted() -> None:
    found = load_plain_pickle(b"(lU\x04caf\xe9aU\x02\xc3\xa9aS'\\xff'\na.", "f")
    assert found.value == ["caf\u00e9", "\u00e9", "\u00ff"]
    assert (found.latin1, found.example) == (2, b"caf\xe9")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (_Call(len, "run"), "builtin.*len"),  # not print, which ray replaces
        (_Call(eval, "1"), "builtin.*eval"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (Decimal(1), "decimal.Decimal"),
        (len, "builtin.*len"),
    ],
)
def test_a_name_is_refused_and_named(
    value: object, name: str, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadData, match=rf"refs\.p: the pickle asks for .*{name}"):
        load_plain_pickle(pickle.dumps(value, protocol), "refs.p")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"(ios\nsystem\n.", "asks for os.system"),
        (b"(cos\nsystem\no.", "asks for os.system"),
        (b"c__builtin__\nset\n(t\x81.", "asks for NEWOBJ"),
        (b"c__builtin__\nset\n}b.", "asks for BUILD"),
        (b"Px\n.", "outside itself"),
        (b"K\x01Q.", "outside itself"),
        (b"\x82\x01.", "extension 1|EXT1"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "asks for BYTEARRAY8"),
        (b"\x97.", "asks for NEXT_BUFFER"),
        (b"})" + b"\x85" * 1_000_000 + b"K\x01s.", "a tuple as the key"),
        (b"(" + b")" + b"\x85" * 1_000_000 + b"K\x01d.", "a tuple as the key"),
        (b"\x8f()" + b"\x85" * 1_000_000 + b"\x90.", "a tuple as the key of a dict or the member of a set"),
        (b"()" + b"\x85" * 1_000_000 + b"\x91.", "asks for FROZENSET"),
        (b"c__builtin__\nset\n(]](K\x01ee" + b"tR.", "a list as the key|damaged"),
        (b"]K\x01K\x02s.", "no dict"),
        (b"]r\xff\xff\xff\xff", "damaged"),
        (b"", "damaged"),
        (b"garbage", "damaged"),
        (b"]q\x01", "damaged"),
        (b"I12x\n.", "damaged"),
        (b"K\x01K\x02R.", "damaged"),
        (b"h\x07.", "damaged"),
        (b"J\x01.", "damaged"),
        (b"I" + b"9" * 10_000 + b"\n.", "damaged"),
    ],
)
def test_hostile_and_damaged_pickles_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        load_plain_pickle(content, "refs.p")


def test_a_large_memo_index_takes_no_memory() -> None:
    assert load_plain_pickle(b"]r\xff\xff\xff\xff.", "f").value == []


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_plain_data_or_bad_data(content: bytes) -> None:
    try:
        found = load_plain_pickle(content, "f").value
    except BadData:
        return
    assert isinstance(found, dict | list | tuple | set | str | bytes | int | float | None)


def test_every_cut_of_a_pickle_is_refused() -> None:
    content = pickle.dumps([{"a": [1, 2], "b": "text"}], 2)
    for length in range(len(content)):
        with pytest.raises(BadData, match="damaged"):
            load_plain_pickle(content[:length], "f")
