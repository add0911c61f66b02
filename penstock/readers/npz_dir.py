"""`npz-dir`: pictures and NPZ features as files of a folder, what `sa1b-tar` is as members of a TAR."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from penstock.errors import BadData, SourceNotFound
from penstock.fill import is_transient
from penstock.readers.files import walk
from penstock.readers.sa1b_pairs import Member, Pair, Seen, Waiting, parse_member
from penstock.readers.sa1b_stream import MAX_MEMBER_BYTES, RECORD_SCHEMA, content_hash
from penstock.schema import Record
from penstock.source import Candidate, Lookup, Problem, check_index


class NpzDir:
    """Pairs of a picture and an NPZ, in a folder and its subfolders; rows are in the order of the pictures' paths.

    The picture `<id>.jpg` (or .jpeg, .png) goes with `<id>_features.npz`, `<id>_sam2_features.npz` or `<id>.npz`; the key is
    the id, without folders. Records hold the files' bytes: `picture` and `npz`, both (n,) uint8. It is a source (rows are the
    readable pairs) and offers candidates, of which lone files and repeated ids with other content have failed.

    Args:
        root: the folder. Hidden names are left out; links are followed, loops of them are not.

    Attributes:
        repeated: pairs that came again with the same content.
        problems: one for each candidate that failed.

    Raises:
        SourceNotFound: it is no folder, or holds no picture and no NPZ.
        BadData: a folder in it cannot be listed.
    """

    schema = RECORD_SCHEMA

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise SourceNotFound(f"{root}: expected a folder of pictures and NPZ files, got none")
        self._pairs: list[Pair] = []
        seen = Seen(self._same_content)
        self._candidates = list(self._offered(seen))
        if not self._candidates:
            raise SourceNotFound(f"{root}: expected pictures with <id>_features.npz, got no such file")
        self.repeated = seen.repeated
        failed = [candidate for candidate in self._candidates if candidate.failure]
        self.problems = [Problem(str(self.root / one.origin), "BadData", one.failure) for one in failed]
        self._readable = [one.key for one in self._candidates if not one.failure]

    def candidates(self) -> Iterator[Candidate]:
        """Pairs in the order of their pictures, then lone files."""
        return iter(self._candidates)

    @property
    def keys(self) -> Sequence[str]:
        """Ids of the readable pairs, in order."""
        return Lookup(len(self), self._readable.__getitem__)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Record:
        """The bytes of a pair.

        Raises:
            IndexError: there is no such row.
            BadData: a file has gone, or has another size than when the folder was looked at.
        """
        contents = self._read(self._pairs[check_index(index, len(self))])
        return {name: np.frombuffer(contents[name], np.uint8) for name in RECORD_SCHEMA}

    def _offered(self, seen: Seen) -> Iterator[Candidate]:
        waiting = Waiting()
        pairs = [pair for member in self._members() if (pair := waiting.add(member)) is not None]
        for pair in sorted(pairs, key=lambda pair: pair.picture.offset):
            candidate = seen.offer_pair(pair, pair.picture.folder, partial(self._add, pair))
            if candidate is not None:
                row = None if candidate.failure else len(self._pairs) - 1
                yield replace(candidate, origin=pair.picture.name, index=row)
        for lone in waiting.lone():
            yield replace(seen.offer_lone(lone, lone.folder or "."), origin=lone.name)

    def _members(self) -> Iterator[Member]:
        """Pictures and NPZs; `offset` is their place among all files, in order of path."""
        place = 0
        for folder, files, _ in walk(self.root):
            for file in sorted(files, key=lambda file: file.name):
                place += 1
                name = f"{folder}/{file.name}" if folder else file.name
                if parse_member(name, size=0, mtime=0, offset=place) is None or not file.is_file():
                    continue
                status = file.stat()
                member = parse_member(name, size=status.st_size, mtime=status.st_mtime, offset=place)
                assert member is not None
                if status.st_size > MAX_MEMBER_BYTES:
                    fault = f"{name} has {status.st_size} bytes; expected at most {MAX_MEMBER_BYTES}"
                    member = replace(member, fault=fault)
                yield member

    def _add(self, pair: Pair) -> int:
        """Gives the pair its row."""
        self._pairs.append(pair)
        return len(self._pairs) - 1

    def _same_content(self, row: int, pair: Pair) -> bool:
        return content_hash(**self._read(self._pairs[row])) == content_hash(**self._read(pair))

    def _read(self, pair: Pair) -> dict[str, bytes]:
        return {member.kind: self._read_file(member) for member in pair.members}

    def _read_file(self, member: Member) -> bytes:
        path = self.root / member.name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(member.size + 1)
        except OSError as error:
            if is_transient(error) or error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise BadData(f"{path}: expected a file that can be read: {error.strerror or error}") from error
        if len(content) != member.size:
            raise BadData(f"{path}: expected {member.size} bytes, as when it was listed, got {len(content)} or more")
        return content
