"""SA-1B TARs that can only be read forwards: pipes and compressed files. Memory stays bounded, whatever their size."""

import errno
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from penstock.errors import OutputFull, SourceNotFound, UsageError
from penstock.readers.sa1b_pairs import Member, Pair, Seen, Waiting, parse_member
from penstock.readers.tar_scan import STDIN, DecodedStream, TarScan, open_stream
from penstock.schema import Field, Record, Schema
from penstock.source import Candidate, Problem

MAX_MEMBER_BYTES = 1 << 30
"""A larger picture or NPZ fails its row."""

MAX_PENDING_BYTES = 256 << 20
"""Bytes of members without counterpart that a stream keeps in memory; what is beyond goes to a temporary file."""

RECORD_SCHEMA = Schema(
    [
        Field(name="picture", dtype="uint8", shape=(None,), axes="N", meaning="the picture file's bytes: JPEG or PNG"),
        Field(name="npz", dtype="uint8", shape=(None,), axes="N", meaning="the NPZ file's bytes, as numpy.savez wrote"),
    ]
)
"""What a pair of a SA-1B TAR is, before anything is decoded."""


class Sa1bTarStream:
    """Candidates that carry their record, from TARs that are read once, forwards.

    Keys, order, hashes and failures are those of `Sa1bTar` over the same content.

    Attributes:
        problems: TARs that are damaged, or no TARs at all.
        ignored: members that are neither picture nor NPZ, or no regular files (folders not counted).
    """

    schema = RECORD_SCHEMA

    def __init__(
        self,
        paths: Sequence[Path | str],
        *,
        spill_dir: Path | None = None,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_member_bytes: int = MAX_MEMBER_BYTES,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.problems: list[Problem] = []
        self.ignored = 0
        self.spill_dir = spill_dir
        self.max_pending_bytes = max_pending_bytes
        self.max_member_bytes = max_member_bytes
        self._contents: dict[str, bytes] = {}
        self._seen = Seen(self._same_content)
        self._started = False

    @property
    def repeated(self) -> int:
        """Pairs that came again with the same content, so far."""
        return self._seen.repeated

    def candidates(self) -> Iterator[Candidate]:
        """Pairs in the order in which they become complete; after those of a TAR its lone members. Can be called once.

        Raises:
            UsageError: it was called before.
            SourceNotFound: the only input is no TAR.
            OutputFull: there is no room for the members that wait for their counterpart.
        """
        if self._started:
            raise UsageError("a stream of TARs can be read once; open it again, or give plain files")
        self._started = True
        for path in self.paths:
            yield from self._read_tar(path)

    def __getitem__(self, index: int) -> Record:
        """Nothing: the candidates carry their records.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"row {index}: a stream has no random access; its candidates carry their records")

    def _read_tar(self, path: str) -> Iterator[Candidate]:
        tar = Path(path).name
        waiting = Waiting()
        try:
            stream = open_stream(path)
        except OSError as error:
            self.problems.append(Problem(path, type(error).__name__, f"{path}: {error}"))
            return
        held = _Held(self.max_pending_bytes, self.spill_dir)
        try:
            scan = TarScan(path, stream)
            for member, content in self._members(scan, stream):
                pair = waiting.add(member)
                if pair is None:
                    held.put(member, content)
                    continue
                candidate = self._offer(pair, tar, held, content)
                if candidate is not None:
                    yield candidate
            for lone in waiting.lone():
                yield self._seen.offer_lone(lone, tar)
        finally:
            held.close()
            stream.close()
        if scan.problem is not None:
            self.problems.append(scan.problem)
        if not scan.is_archive and len(self.paths) == 1:
            raise SourceNotFound(f"{'standard input' if path == STDIN else path}: expected a TAR, got something else")

    def _members(self, scan: TarScan, stream: DecodedStream) -> Iterator[tuple[Member, bytes]]:
        for info in scan:
            member = wanted_member(info, self.max_member_bytes)
            if member is None:
                self.ignored += not info.isdir()
                continue
            content = b""
            if member.fault:
                found = stream.seek(info.offset_data + info.size) - info.offset_data
            else:
                content = stream.read(info.size)
                found = len(content)
            if found < info.size:
                yield replace(member, fault=scan.cut(info, found)), b""
                return
            yield member, content

    def _offer(self, pair: Pair, tar: str, held: "_Held", content: bytes) -> Candidate | None:
        """The pair's candidate; `content` is that of the member which came last."""
        picture, npz = (held.take(member) for member in pair.members)
        contents = {"picture": content if picture is None else picture, "npz": content if npz is None else npz}
        self._contents = contents
        candidate = self._seen.offer_pair(pair, tar, lambda: content_hash(**contents))
        self._contents = {}
        if candidate is None or candidate.failure:
            return candidate
        return replace(candidate, record={name: np.frombuffer(contents[name], np.uint8) for name in RECORD_SCHEMA})

    def _same_content(self, first: int, pair: Pair) -> bool:
        return first == content_hash(**self._contents)


class _Held:
    """Contents of members that wait: in memory up to a limit, beyond it in a temporary file that has no name."""

    def __init__(self, max_bytes: int, folder: Path | None) -> None:
        self._max_bytes = max_bytes
        self._folder = folder
        self._in_memory: dict[Member, bytes] = {}
        self._spans: dict[Member, tuple[int, int]] = {}
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, member: Member, content: bytes) -> None:
        """Keep a content until `take`."""
        if self._bytes + len(content) <= self._max_bytes:
            self._in_memory[member] = content
            self._bytes += len(content)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # closed by close()
            self._file.seek(self._end)
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = self._folder or tempfile.gettempdir()
            raise OutputFull(
                f"{where}: no room for {member.name!r}, which waits for its counterpart: {error}"
            ) from error
        self._spans[member] = (self._end, len(content))
        self._end += len(content)

    def take(self, member: Member) -> bytes | None:
        """The content, which is then forgotten; None if it was never put."""
        content = self._in_memory.pop(member, None)
        if content is not None:
            self._bytes -= len(content)
            return content
        span = self._spans.pop(member, None)
        if span is None or self._file is None:
            return None
        self._file.seek(span[0])
        content = self._file.read(span[1])
        if not self._spans:
            self._file.truncate(0)
            self._end = 0
        return content

    def close(self) -> None:
        """Forget everything."""
        self._in_memory.clear()
        if self._file is not None:
            self._file.close()


def content_hash(*, picture: bytes, npz: bytes) -> int:
    """64-bit hash of both members' bytes."""
    digest = xxhash.xxh3_64(picture)
    digest.update(len(picture).to_bytes(8, "little"))
    digest.update(npz)
    return digest.intdigest()


def wanted_member(info: tarfile.TarInfo, max_member_bytes: int) -> Member | None:
    """The header as a member; None for what is neither picture nor NPZ, or no regular file (links are not followed)."""
    if not info.isreg() or info.issparse():
        return None
    member = parse_member(info.name, size=info.size, mtime=float(info.mtime), offset=info.offset_data)
    if member is not None and info.size > max_member_bytes:
        fault = f"member {info.name!r} has {info.size} bytes; expected at most {max_member_bytes}"
        return replace(member, fault=fault)
    return member
