"""Loading a pickle of plain data: dicts, lists, tuples, sets, texts, bytes, numbers, bools, None. Nothing else is made.

The interpreter's unpickler in Python is used, not the one in C: its memo is a dict, so that a large memo index takes no
memory, and its opcodes can be taken away one by one. Keys of dicts and members of sets must be texts, bytes, numbers or
None: hashing a tuple of a million tuples would end the process.

Python 2 wrote its texts as bytes. They are read as UTF-8, and as Latin-1 where they are no UTF-8.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.errors import BadData
from penstock.readers.safe_pickle import PICKLE_ERRORS

_SCALARS = (str, bytes, int, float, type(None))
_REFUSED = {
    "BUILD",
    "BYTEARRAY8",
    "EXT1",
    "EXT2",
    "EXT4",
    "FROZENSET",
    "NEWOBJ",
    "NEWOBJ_EX",
    "NEXT_BUFFER",
    "OBJ",
    "READONLY_BUFFER",
}
"""Opcodes that make or change what is no plain data."""

_SETS = {("__builtin__", "set"), ("builtins", "set")}
"""What protocols 0 to 3 call a set: the one name that is known."""


@dataclass(frozen=True)
class PlainPickle:
    """What a pickle holds."""

    value: Any
    """dict, list, tuple, set, str, bytes, int, float, bool or None, nested."""
    latin1: int
    """Byte strings of Python 2 that are no UTF-8 and were read as Latin-1."""
    example: bytes
    """The first of these."""


def load_plain_pickle(content: bytes, where: str) -> PlainPickle:
    """What a pickle of plain data holds, of any protocol, written by Python 2 or 3. Nothing in it is run or imported.

    Args:
        content: the file's bytes.
        where: the file, for messages.

    Raises:
        BadData: the pickle asks for a name (any class or function but `set`), for an object outside itself, for an opcode
            that makes other things; a dict's key or a set's member is a container; or it is damaged.
    """
    unpickler = _PlainUnpickler(content, where)
    try:
        value = unpickler.load()
    except BadData:
        raise
    except (*PICKLE_ERRORS, struct.error) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise BadData(f"{where}: expected a whole pickle of plain data, got a damaged one ({reason})") from error
    return PlainPickle(value, unpickler.latin1, unpickler.example)


class _MakeSet:
    """Stands for the name `set`."""

    __slots__ = ()

    def __call__(self, members: Iterable[object] = ()) -> set[object]:
        return set(_hashable(members))


class _PlainUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(io.BytesIO(content))
        self._where = where
        self.latin1 = 0
        self.example = b""

    def find_class(self, module: str, name: str) -> _MakeSet:
        if (module, name) not in _SETS:
            raise BadData(
                f"{self._where}: the pickle asks for {module}.{name}"[:300] + "; expected nothing but dicts, lists, "
                "texts and numbers. It was refused and nothing was run"
            )
        return _MakeSet()

    def persistent_load(self, pid: object) -> object:
        raise BadData(f"{self._where}: the pickle refers to an object outside itself, which is refused")

    def get_extension(self, code: int) -> None:
        raise BadData(f"{self._where}: the pickle asks for extension {code}, which is refused")

    def _decode_string(self, value: bytes) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            self.latin1 += 1
            self.example = self.example or value[:40]
            return value.decode("latin-1")

    def refuse(self, opcode: str) -> None:
        """What a refused opcode does."""
        raise BadData(f"{self._where}: the pickle asks for {opcode}, which makes what is no plain data; it was refused")

    def set_item(self) -> None:
        """SETITEM."""
        value = self.stack.pop()
        (key,) = _hashable([self.stack.pop()])
        _dict(self.stack[-1])[key] = value

    def set_items(self) -> None:
        """SETITEMS."""
        items = self.pop_mark()
        _dict(self.stack[-1]).update(zip(_hashable(items[::2]), items[1::2], strict=True))

    def make_dict(self) -> None:
        """DICT."""
        items = self.pop_mark()
        self.append(dict(zip(_hashable(items[::2]), items[1::2], strict=True)))

    def add_items(self) -> None:
        """ADDITEMS."""
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise TypeError("members given to something that is no set")
        self.stack[-1].update(_hashable(items))


def _refusal(opcode: str) -> Callable[[_PlainUnpickler], None]:
    return lambda unpickler: unpickler.refuse(opcode)


for _opcode in pickletools.opcodes:
    if _opcode.name in _REFUSED:
        _PlainUnpickler.dispatch[ord(_opcode.code)] = _refusal(_opcode.name)
_PlainUnpickler.dispatch |= {
    pickle.SETITEM[0]: _PlainUnpickler.set_item,
    pickle.SETITEMS[0]: _PlainUnpickler.set_items,
    pickle.DICT[0]: _PlainUnpickler.make_dict,
    pickle.ADDITEMS[0]: _PlainUnpickler.add_items,
}


def _hashable(items: Iterable[object]) -> list[Any]:
    listed = list(items)
    for item in listed:
        if not isinstance(item, _SCALARS):
            raise TypeError(f"a {type(item).__name__} as the key of a dict or the member of a set")
    return listed


def _dict(value: object) -> dict[object, object]:
    if type(value) is not dict:
        raise TypeError("items given to something that is no dict")
    return value
