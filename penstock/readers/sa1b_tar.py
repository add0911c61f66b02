"""SA-1B TARs of pictures and NPZ features: by random access where the files allow it, as a stream where they do not."""

import glob
import os
import stat
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers.sa1b_pairs import Member, Pair, Seen, Waiting
from penstock.readers.sa1b_stream import MAX_MEMBER_BYTES, RECORD_SCHEMA, Sa1bTarStream, content_hash, wanted_member
from penstock.readers.tar_scan import STDIN, TarScan, compression_of, is_tar
from penstock.schema import Record
from penstock.source import Candidate, Problem, check_index

__all__ = ["MAX_MEMBER_BYTES", "RECORD_SCHEMA", "Sa1bTar", "Sa1bTarStream", "open_sa1b_tar", "open_sa1b_tars"]

_SPAN = 5
"""Numbers that say where a row lies: TAR, first byte and size of the picture, first byte and size of the NPZ."""


def open_sa1b_tars(paths: Sequence[Path | str], *, spill_dir: Path | None = None) -> "Sa1bTar | Sa1bTarStream":
    """The TARs as one input: by random access if all are plain files without compression, else as a stream.

    Args:
        paths: TARs in input order; "-" is standard input. A file given twice counts once.
        spill_dir: where a stream may put members that wait long for their counterpart; the system's by default.

    Raises:
        SourceNotFound: a path does not exist or is a folder, or no input is a TAR.
        UsageError: no path, or one that is compressed with Zstandard.
    """
    distinct = _distinct(paths)
    regular = [path for path in distinct if path != STDIN and Path(path).is_file()]
    kinds = {path: compression_of(Path(path)) for path in regular}
    packed = [path for path, kind in kinds.items() if kind == "zst"]
    if packed:
        raise UsageError(f"{packed[0]}: Zstandard is not read; pipe it: zstd -dc {packed[0]} | ... --tar-path -")
    if len(regular) == len(distinct) and not any(is_tar(Path(path)) for path in regular):
        raise SourceNotFound(f"expected TARs, got files that are none: {', '.join(distinct)}")
    if len(regular) < len(distinct) or any(kinds.values()):
        return Sa1bTarStream(distinct, spill_dir=spill_dir)
    return Sa1bTar(distinct)


def open_sa1b_tar(path: Path | str) -> "Sa1bTar | Sa1bTarStream":
    """`sa1b-tar:PATH`: a TAR, a folder of `*.tar` (in order of name), or a pattern such as `/data/sa_*.tar`.

    Raises:
        SourceNotFound: there is no TAR.
    """
    if Path(path).is_dir():
        found = sorted(map(str, Path(path).glob("*.tar")))
    else:
        found = [str(path)] if Path(path).exists() else sorted(glob.glob(str(path)))
    if not found:
        raise SourceNotFound(f"{path}: expected a TAR, a folder of *.tar, or a pattern that matches some; got none")
    return open_sa1b_tars(found)


@dataclass
class _TarIndex:
    """What one TAR offers, in order: parallel columns, so that a million rows stay small."""

    keys: list[str] = field(default_factory=list)
    cheap: "array[int]" = field(default_factory=lambda: array("Q"))
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    """Row of the source, -1 for a candidate that failed."""
    failures: dict[str, str] = field(default_factory=dict)


class Sa1bTar:
    """Random access to the pairs of plain TARs. It is a source (rows are the readable pairs) and offers candidates.

    Records hold the bytes as they stand in the TAR: `picture` and `npz`, both (n,) uint8. Headers are read TAR by TAR,
    when rows of it are first asked for; nothing stays open, so it pickles, forks and serves many threads.

    Attributes:
        problems: TARs that are damaged, or no TARs at all.
        ignored: members that are neither picture nor NPZ, or no regular files (folders not counted).
        repeated: pairs that came again with the same content.
    """

    schema = RECORD_SCHEMA

    def __init__(self, paths: Sequence[Path | str], *, max_member_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.paths = _distinct(paths)
        self.problems: list[Problem] = []
        self.ignored = 0
        self.max_member_bytes = max_member_bytes
        self._tars: list[_TarIndex] = []
        self._spans = array("q")
        self._seen = Seen(self._same_content)
        self._lock = threading.RLock()
        for path in self.paths:
            if path == STDIN or not Path(path).is_file() or compression_of(Path(path)):
                raise UsageError(f"{path}: expected a plain file without compression; use open_sa1b_tars")

    @property
    def repeated(self) -> int:
        """Pairs that came again with the same content, in the TARs read so far."""
        return self._seen.repeated

    def candidates(self) -> Iterator[Candidate]:
        """Pairs in the order in which they become complete; after those of a TAR its lone members."""
        for number, path in enumerate(self.paths):
            self._scan_to(number)
            index, origin = self._tars[number], Path(path).name
            for key, cheap, row in zip(index.keys, index.cheap, index.rows, strict=True):
                failure = index.failures.get(key, "")
                yield Candidate(key=key, origin=origin, cheap=cheap, failure=failure, index=None if failure else row)

    @property
    def keys(self) -> list[str]:
        """Ids of the readable pairs, in order."""
        self._scan_to(len(self.paths) - 1)
        return [key for index in self._tars for key, row in zip(index.keys, index.rows, strict=True) if row >= 0]

    def __len__(self) -> int:
        self._scan_to(len(self.paths) - 1)
        return len(self._spans) // _SPAN

    def __getitem__(self, index: int) -> Record:
        """The bytes of a pair.

        Raises:
            IndexError: there is no such row.
            BadData: the TAR has become shorter since its headers were read.
        """
        if not 0 <= index < len(self._spans) // _SPAN:
            index = check_index(index, len(self))
        contents = self._read(index)
        return {name: np.frombuffer(contents[name], np.uint8) for name in RECORD_SCHEMA}

    def __getstate__(self) -> dict[str, object]:
        with self._lock:
            return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _scan_to(self, number: int) -> None:
        with self._lock:
            while len(self._tars) <= number:
                self._tars.append(self._scan(self.paths[len(self._tars)]))

    def _scan(self, path: str) -> _TarIndex:
        index, waiting, tar = _TarIndex(), Waiting(), Path(path).name
        try:
            file = open(path, "rb")  # noqa: SIM115  # closed below
        except OSError as error:
            self.problems.append(Problem(path, type(error).__name__, f"{path}: {error}"))
            return index
        with file:
            size = os.fstat(file.fileno()).st_size
            scan = TarScan(path, file, file_bytes=size)
            for member in self._members(scan, size):
                pair = waiting.add(member)
                if pair is not None:
                    self._note(index, self._seen.offer_pair(pair, tar, partial(self._add_span, pair)))
        for lone in waiting.lone():
            self._note(index, self._seen.offer_lone(lone, tar))
        if scan.problem is not None:
            self.problems.append(scan.problem)
        return index

    def _members(self, scan: TarScan, file_bytes: int) -> Iterator[Member]:
        for info in scan:
            member = wanted_member(info, self.max_member_bytes)
            if member is None:
                self.ignored += not info.isdir()
                continue
            found = max(0, file_bytes - info.offset_data)
            if found < info.size:
                yield replace(member, fault=scan.cut(info, found))
                return
            yield member

    def _note(self, index: _TarIndex, candidate: Candidate | None) -> None:
        if candidate is None:
            return
        index.keys.append(candidate.key)
        index.cheap.append(candidate.cheap)
        index.rows.append(-1 if candidate.failure else len(self._spans) // _SPAN - 1)
        if candidate.failure:
            index.failures[candidate.key] = candidate.failure

    def _add_span(self, pair: Pair) -> int:
        """Gives the pair its row."""
        (picture, npz) = pair.members
        self._spans.extend((len(self._tars), picture.offset, picture.size, npz.offset, npz.size))
        return len(self._spans) // _SPAN - 1

    def _read(self, row: int) -> dict[str, bytes]:
        tar, *spans = self._spans[row * _SPAN : (row + 1) * _SPAN]
        return self._read_spans(self.paths[tar], {"picture": (spans[0], spans[1]), "npz": (spans[2], spans[3])})

    def _same_content(self, row: int, pair: Pair) -> bool:
        spans: dict[str, tuple[int, int]] = {member.kind: (member.offset, member.size) for member in pair.members}
        again = self._read_spans(self.paths[len(self._tars)], spans)
        return content_hash(**self._read(row)) == content_hash(**again)

    @staticmethod
    def _read_spans(path: str, spans: dict[str, tuple[int, int]]) -> dict[str, bytes]:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            contents = {}
            for name, (offset, size) in spans.items():
                contents[name] = content = _pread(descriptor, offset, size)
                if len(content) != size:
                    raise BadData(f"{path}: {name} at byte {offset}: expected {size} bytes, got {len(content)}")
            return contents
        finally:
            os.close(descriptor)


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content


def _distinct(paths: Sequence[Path | str]) -> list[str]:
    """The paths without those that name a file again.

    Raises:
        SourceNotFound: there is no such path, or it is a folder.
        UsageError: there is none at all.
    """
    seen: set[object] = set()
    distinct = []
    for path in map(str, paths):
        identity: object = STDIN
        if path != STDIN:
            try:
                status = os.stat(path)
            except OSError as error:
                raise SourceNotFound(f"{path}: expected a TAR, got {error.strerror or error}") from error
            if stat.S_ISDIR(status.st_mode):
                raise SourceNotFound(f"{path}: expected a TAR, got a folder")
            identity = (status.st_dev, status.st_ino)
        if identity not in seen:
            seen.add(identity)
            distinct.append(path)
    if not distinct:
        raise UsageError("expected at least one TAR, got none")
    return distinct
