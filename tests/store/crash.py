"""Write seams for crash tests: one records every write, one kills its own process, one runs out of room; and a model of
what a disk may hold after the power went, given the writes so far and the flushes among them."""

import errno
import os
import random
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import OutputFull
from penstock.store.disk import Disk

SECTOR = 512


@dataclass
class Op:
    """One step that went through the seam, with paths below the root."""

    kind: str
    path: str
    content: bytes = b""
    number: int = 0
    """Offset of a write, size of a resize."""
    target: str = ""


class TraceDisk(Disk):
    """Does everything, and writes it down. `marks` are moments (numbers of operations) with a label."""

    def __init__(self, root: Path) -> None:
        super().__init__(flush=True)
        self.root = root
        self.ops: list[Op] = []

    def for_worker(self) -> "TraceDisk":
        return self

    def _note(self, kind: str, path: Path, content: bytes = b"", number: int = 0, target: str = "") -> None:
        self.ops.append(Op(kind, str(path.relative_to(self.root)), content, number, target))

    def make_directory(self, path: Path) -> None:
        for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
            folder.mkdir()
            self._note("mkdir", folder)
            self.sync_directory(folder.parent)

    def resize(self, path: Path, size: int) -> None:
        # The entry of a new file is flushed inside: note the size first, as the system call comes first.
        position = len(self.ops)
        super().resize(path, size)
        self.ops.insert(position, Op("resize", str(path.relative_to(self.root)), number=size))

    def write(self, path: Path, content: bytes | memoryview, offset: int) -> None:
        super().write(path, content, offset)
        self._note("write", path, bytes(content), offset)

    def copy(self, old: Path, new: Path) -> None:
        self.resize(new, 0)
        self.write(new, old.read_bytes(), 0)
        self.sync(new)

    def rename(self, old: Path, new: Path) -> None:
        self.close(new)
        os.replace(old, new)
        self._note("rename", old, target=str(new.relative_to(self.root)))
        self.sync_directory(new.parent)

    def remove(self, path: Path) -> None:
        self._note("remove", path)
        super().remove(path)

    def sync(self, path: Path) -> None:
        super().sync(path)
        self._note("sync", path)

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        if path == self.root or self.root in path.parents:
            self._note("syncdir", path)


@dataclass
class _Inode:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)


class CrashModel:
    """What may be on the disk after a power cut: flushed bytes for sure; of the others any sectors, in any order."""

    def __init__(self, ops: list[Op]) -> None:
        self.names: dict[str, _Inode | None] = {}
        self.renames: list[tuple[Op, _Inode | None]] = []
        self.durable_names: dict[str, _Inode | None] = {"": None, ".": None}
        self._pending_names: list[tuple[str, str, _Inode | None]] = []
        for op in ops:
            getattr(self, f"_{op.kind}")(op)

    def _mkdir(self, op: Op) -> None:
        self.names[op.path] = None
        self._pending_names.append(("add", op.path, None))

    def _inode(self, path: str) -> _Inode:
        found = self.names.get(path)
        if found is None:
            found = self.names[path] = _Inode()
            self._pending_names.append(("add", path, found))
        return found

    def _resize(self, op: Op) -> None:
        self._inode(op.path).pending.append(op)

    def _write(self, op: Op) -> None:
        self._inode(op.path).pending.append(op)

    def _sync(self, op: Op) -> None:
        inode = self._inode(op.path)
        for pending in inode.pending:
            _apply(inode.durable, pending, None)
        inode.pending.clear()

    def _rename(self, op: Op) -> None:
        inode = self.names.pop(op.path)
        self.names[op.target] = inode
        self._pending_names.append(("drop", op.path, None))
        self._pending_names.append(("add", op.target, inode))

    def _remove(self, op: Op) -> None:
        for path in [path for path in self.names if path == op.path or path.startswith(op.path + "/")]:
            self.names.pop(path)
            self._pending_names.append(("drop", path, None))

    def _syncdir(self, op: Op) -> None:
        for change in self._pending_names:
            self._settle(change)
        self._pending_names.clear()

    def _settle(self, change: tuple[str, str, _Inode | None]) -> None:
        kind, path, inode = change
        if kind == "add":
            self.durable_names[path] = inode
        else:
            self.durable_names.pop(path, None)

    def crash(self, root: Path, rng: random.Random) -> None:
        """Writes one possible state of the disk under `root`."""
        kept = rng.randint(0, len(self._pending_names))
        for change in self._pending_names[:kept]:
            self._settle(change)
        root.mkdir(parents=True, exist_ok=True)
        for path, inode in sorted(self.durable_names.items()):
            if inode is None:
                (root / path).mkdir(parents=True, exist_ok=True)
        for path, inode in self.durable_names.items():
            if inode is None or not (root / path).parent.is_dir():
                continue
            content = bytearray(inode.durable)
            pending = list(inode.pending)
            rng.shuffle(pending)
            for op in pending:
                _apply(content, op, rng)
            (root / path).write_bytes(content)


def _apply(content: bytearray, op: Op, rng: random.Random | None) -> None:
    if op.kind == "resize":
        if rng is None or rng.random() < 0.5:
            del content[op.number :]
            content.extend(bytes(op.number - len(content)))
        return
    position = op.number
    view = memoryview(op.content)
    while len(view):
        length = min(len(view), SECTOR - position % SECTOR)
        if rng is None or rng.random() < 0.5:
            if position + length > len(content):
                content.extend(bytes(position + length - len(content)))
            content[position : position + length] = view[:length]
        view, position = view[length:], position + length


class KillDisk(Disk):
    """Kills its own process at the n-th operation: before it, or (for a write) after half of the bytes."""

    def __init__(self, at: int, *, halfway: bool = False) -> None:
        super().__init__(flush=False)
        self.left = self.at = at
        self.halfway = halfway
        self.writes: list[int] = []
        """Which operations were writes, the first of all being 1."""

    def for_worker(self) -> "KillDisk":
        return self

    def _step(self) -> bool:
        self.left -= 1
        if self.left == 0 and not self.halfway:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.left == 0

    def resize(self, path: Path, size: int) -> None:
        self._step()
        super().resize(path, size)

    def write(self, path: Path, content: bytes | memoryview, offset: int) -> None:
        is_last = self._step()
        self.writes.append(self.at - self.left)
        if is_last:
            super().write(path, content[: len(content) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(path, content, offset)

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def sync(self, path: Path) -> None:
        self._step()
        super().sync(path)


class FullDisk(Disk):
    """Has room for so many bytes: the write that exceeds it stops in the middle, as a real one does."""

    def __init__(self, room: int) -> None:
        super().__init__(flush=False)
        self.room = room

    def for_worker(self) -> "FullDisk":
        return self

    def write(self, path: Path, content: bytes | memoryview, offset: int) -> None:
        if len(content) > self.room:
            super().write(path, content[: self.room], offset)
            self.room = 0
            raise OutputFull(errno.ENOSPC, f"{path}: no room left; committed rows are kept")
        self.room -= len(content)
        super().write(path, content, offset)


def forked(work: Callable[[], object], told: Path) -> int:
    """Does the work in a process of its own, which exits with 0, or with 1 and its traceback in `told`. Gives its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:  # noqa: BLE001  # whatever it is, the parent shows it
        told.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
