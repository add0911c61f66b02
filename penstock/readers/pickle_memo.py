"""A look at the opcodes of a pickle, to refuse what would take memory out of proportion."""

import pickletools
import re

from penstock.errors import BadData

MAX_MEMO = 1 << 24
"""Largest memo index. NumPy's own pickles of arrays use a few dozen."""

MAX_TUPLES = 10_000
"""Most tuples. Nested ones are hashed by recursion in C: millions of them would end the process. An array takes about four."""

_PLAIN_RUN = re.compile(rb"(?:K.)+|[\x88\x89]+", re.DOTALL)
"""Runs of BININT1, NEWTRUE and NEWFALSE: the millions of numbers of a mask, which need no look."""

_PREFIX_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def refuse_huge_memo(content: bytes, name: str) -> None:
    """Refuse a pickle whose memo indices are large, before it is loaded.

    A memo index is an array index inside the unpickler: a large one would take gigabytes before anything fails.

    Args:
        content: the pickle; only its opcodes are walked, nothing is built.
        name: the NPZ member, for messages.

    Raises:
        BadData: a memo index above `MAX_MEMO`, more than `MAX_TUPLES` tuples, or a byte that is no opcode.
    """
    at = tuples = 0
    while at < len(content):
        run = _PLAIN_RUN.match(content, at)
        if run:
            at = run.end()
            continue
        opcode = pickletools.code2op.get(chr(content[at]))  # type: ignore[attr-defined]  # not in typeshed
        if opcode is None:
            raise BadData(f"NPZ: member {name!r}: byte {at} of the pickle, {content[at]:#04x}, is no pickle opcode")
        argument, at = _argument(content, at + 1, opcode)
        index = _memo_index(opcode.name, argument)
        if index > MAX_MEMO:
            raise BadData(f"NPZ: member {name!r}: the pickle has memo index {index}; expected at most {MAX_MEMO}")
        tuples += opcode.name.startswith("TUPLE")
        if tuples > MAX_TUPLES:
            raise BadData(
                f"NPZ: member {name!r}: the pickle holds more than {MAX_TUPLES} tuples; expected an array of arrays"
            )
        if opcode.name == "STOP":
            return


def _argument(content: bytes, at: int, opcode: pickletools.OpcodeInfo) -> tuple[bytes, int]:
    """The opcode's argument, and the position behind it."""
    if opcode.arg is None:
        return b"", at
    size = opcode.arg.n
    if size == pickletools.UP_TO_NEWLINE:
        end = at
        for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1):
            end = content.find(b"\n", end) + 1 or len(content)
        return content[at:end], end
    if size < 0:
        prefix = _PREFIX_BYTES[size]
        size = prefix + int.from_bytes(content[at : at + prefix], "little")
    end = min(at + size, len(content))
    return content[at : min(end, at + 16)], end


def _memo_index(opcode: str, argument: bytes) -> int:
    if opcode == "LONG_BINPUT":
        return int.from_bytes(argument, "little")
    if opcode == "PUT":
        digits = argument.strip()
        return int(digits) if digits.isdigit() and len(digits) < 20 else MAX_MEMO + 1
    return 0
