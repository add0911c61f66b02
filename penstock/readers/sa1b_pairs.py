"""Pictures and NPZs of SA-1B TARs brought together: names, pairs, repeated ids. Knows no file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import xxhash

from penstock.errors import BadData
from penstock.source import Candidate

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
NPZ_SUFFIXES = ("_sam2_features.npz", "_features.npz", ".npz")
"""Longest first, so that no id keeps a part of a suffix."""

MAX_KEY_LETTERS = 255


@dataclass(frozen=True, kw_only=True)
class Member:
    """A picture or an NPZ inside a TAR."""

    name: str
    """As it stands in the TAR."""
    id: str
    """What its basename says, without extension and suffix."""
    kind: Literal["picture", "npz"]
    size: int
    mtime: float
    offset: int
    """First byte of the content in the (decompressed) TAR."""
    fault: str = ""
    """Why it cannot be read, where that is known."""

    @property
    def folder(self) -> str:
        """The part before the basename."""
        return self.name.rpartition("/")[0]

    @property
    def basename(self) -> str:
        """The part after the last slash."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Pair:
    """A picture and the NPZ of the same id."""

    picture: Member
    npz: Member

    @property
    def members(self) -> tuple[Member, Member]:
        """Both."""
        return self.picture, self.npz

    @property
    def fault(self) -> str:
        """What is wrong with either."""
        return "; ".join(member.fault for member in self.members if member.fault)


def parse_member(name: str, *, size: int, mtime: float, offset: int) -> Member | None:
    """A picture or an NPZ by its name; None for anything else, hidden files ("._sa_1.jpg") included.

    Folders are stripped: a name such as "../../x.jpg" only ever gives the id "x".
    """
    basename = name.rpartition("/")[2]
    lower = basename.lower()
    if basename.startswith("."):
        return None
    kind: Literal["picture", "npz"]
    for suffixes, kind in ((PICTURE_SUFFIXES, "picture"), (NPZ_SUFFIXES, "npz")):
        for suffix in suffixes:
            if lower.endswith(suffix) and len(lower) > len(suffix):
                member_id = basename[: -len(suffix)]
                return Member(name=name, id=member_id, kind=kind, size=size, mtime=mtime, offset=offset)
    return None


class Waiting:
    """The members of one TAR whose counterpart has not come yet."""

    def __init__(self) -> None:
        self._members: dict[str, list[Member]] = {}

    def add(self, member: Member) -> Pair | None:
        """The pair that the member completes. Of several counterparts the one in the same folder, else the oldest."""
        waiting = self._members.setdefault(member.id, [])
        if not waiting or waiting[0].kind == member.kind:
            waiting.append(member)
            return None
        other = next((known for known in waiting if known.folder == member.folder), waiting[0])
        waiting.remove(other)
        if not waiting:
            del self._members[member.id]
        return Pair(other, member) if member.kind == "npz" else Pair(member, other)

    def lone(self) -> list[Member]:
        """What is left, in order of appearance."""
        return sorted((one for group in self._members.values() for one in group), key=lambda one: one.offset)


@dataclass
class Seen:
    """The ids seen so far, over all TARs: decides what is offered, under which key, and what merely repeats."""

    same_content: Callable[[int, Pair], bool]
    """Whether the pair that was given this token earlier has the content of this pair. May raise BadData."""
    repeated: int = 0
    _keys: set[str] = field(default_factory=set)
    _first: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def offer_pair(self, pair: Pair, tar: str, token: Callable[[], int]) -> Candidate | None:
        """The candidate of a complete pair; None where the same pair was offered before.

        Args:
            pair: picture and NPZ.
            tar: name of their TAR, without folders.
            token: called once, only for a pair that is offered and readable; kept for `same_content`.
        """
        cheap = cheap_hash(*pair.members)
        member_id = pair.picture.id
        failure = pair.fault or _name_fault(member_id)
        first = self._first.get(member_id)
        if not failure and first is not None:
            failure = self._compare(first, pair, cheap, tar)
            if not failure:
                self.repeated += 1
                return None
        if not failure:
            self._first[member_id] = (cheap, token(), tar)
        return Candidate(key=self._new_key(member_id, tar), origin=tar, cheap=cheap, failure=failure)

    def offer_lone(self, member: Member, tar: str) -> Candidate:
        """The failed candidate of a member whose counterpart its TAR lacks."""
        missing = "NPZ (<id>_features.npz)" if member.kind == "picture" else "picture (<id>.jpg)"
        lone = f"unpaired member {member.name!r} in {tar}: expected a {missing} of the same id, got none"
        failure = "; ".join(text for text in (member.fault, lone, _name_fault(member.id)) if text)
        return Candidate(key=self._new_key(member.id, tar), origin=tar, cheap=cheap_hash(member), failure=failure)

    def _compare(self, first: tuple[int, int, str], pair: Pair, cheap: int, tar: str) -> str:
        """Empty where the pair repeats the first one, else why it cannot be a row of its own."""
        first_cheap, token, first_tar = first
        try:
            if cheap == first_cheap or self.same_content(token, pair):
                return ""
        except BadData as error:
            return f"duplicate id {pair.picture.id}: first in {first_tar}, again in {tar}; not comparable: {error}"
        return f"duplicate id {pair.picture.id}: first in {first_tar}, again in {tar} with other content"

    def _new_key(self, member_id: str, tar: str) -> str:
        key = printable_key(member_id)
        if key in self._keys:
            key = base = f"{key}@{printable_key(tar)}"
            number = 1
            while key in self._keys:
                number += 1
                key = f"{base}#{number}"
        self._keys.add(key)
        return key


def cheap_hash(*members: Member) -> int:
    """64-bit hash of basenames, sizes, times and faults: equal means unchanged.

    A member that is cut off has the size in its header that the whole one has; without its fault, nobody would see it mended.
    """
    parts = [
        (one.basename, str(one.size), repr(float(one.mtime)), *([one.fault] if one.fault else [])) for one in members
    ]
    known = sorted("\0".join(part) for part in parts)
    return xxhash.xxh3_64_intdigest("\0\0".join(known).encode("utf-8", "surrogatepass"))


def printable_key(text: str) -> str:
    """The text with everything unprintable escaped, and shortened where it is too long for a key."""
    escaped = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    if len(escaped) <= MAX_KEY_LETTERS:
        return escaped
    return f"{escaped[: MAX_KEY_LETTERS - 55]}~{xxhash.xxh3_64_hexdigest(text.encode('utf-8', 'surrogatepass'))}"


def _name_fault(member_id: str) -> str:
    if not member_id.isprintable():
        return f"the id {printable_key(member_id)} holds characters that cannot be printed; expected plain text"
    if len(member_id) > MAX_KEY_LETTERS:
        return f"the id has {len(member_id)} letters; expected at most {MAX_KEY_LETTERS}"
    return ""
