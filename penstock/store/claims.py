"""Claims: who may write a part. A lock on a local disk; on a shared one a file with host, pid, heartbeat and fencing number.

A local claim is a flock: the kernel drops it when its holder dies, however it dies. File systems that several hosts
mount do not promise that, so there the claim is a file made with O_EXCL whose time is renewed every few seconds; one
that has not been renewed for a minute is taken over under the next fencing number, and its old holder finds out before
its next commit. Either file is removed as its claim is given back.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from penstock.errors import PartClaimed

NAME = "_claim"
HEARTBEAT_S = 5.0
STALE_S = 60.0
_GONE_S = 1.0
"""How long a claim is tried again whose file is given back each time that it is opened."""

_SHARED = ("nfs", "lustre", "gpfs", "ceph", "beegfs", "cifs", "smb", "fuse", "glusterfs", "afs", "9p", "virtiofs")


class Claim:
    """An exclusive right to write in one folder, held from `acquire` to `release`."""

    def __init__(self, folder: Path, *, shared: bool | None = None, name: str = NAME) -> None:
        self.path = folder / name
        self.shared = is_shared(folder) if shared is None else shared
        self._descriptor: int | None = None
        self._token = b""
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def acquire(self, *, wait_s: float = 0.0) -> None:
        """Takes the claim.

        Raises:
            PartClaimed: somebody else holds it, still so after `wait_s` seconds; the message says who.
        """
        give_up = time.monotonic() + wait_s
        while True:
            if not self.path.parent.is_dir():
                raise PartClaimed(f"{self.path.parent} is gone: another driver replaced it; run again")
            try:
                if self._take_file() if self.shared else self._take_lock():
                    return
            except FileNotFoundError:  # the claim, or its folder, went while it was looked at
                if time.monotonic() < give_up + _GONE_S:
                    continue
                raise
            if time.monotonic() >= give_up:
                raise PartClaimed(
                    f"{self.path.parent} is being written by {_holder(self.path)}; wait for it, or stop it"
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Makes sure the claim is still ours, before a commit.

        Raises:
            PartClaimed: another host took it over because our heartbeat stood still.
        """
        if self.shared and _content(self.path) != self._token:
            raise PartClaimed(
                f"{self.path.parent}: this driver was fenced off by {_holder(self.path)}: its heartbeat had stopped"
            )

    def release(self) -> None:
        """Gives the claim back. Safe to call twice."""
        if self._beat is not None:
            self._stop.set()
            self._beat.join()
            self._beat = None
            if _content(self.path) == self._token:
                self.path.unlink(missing_ok=True)
        if self._descriptor is not None:
            if is_at(self._descriptor, self.path):
                self.path.unlink(missing_ok=True)  # first: who has it open sees that it is gone, and makes another
            os.close(self._descriptor)
            self._descriptor = None

    def _take_lock(self) -> bool:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not is_at(descriptor, self.path):  # its holder gave it back, and removed it, as we opened it
            os.close(descriptor)
            raise FileNotFoundError(self.path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _token(0), 0)
        self._descriptor = descriptor
        return True

    def _take_file(self) -> bool:
        fence = 1
        seen = _content(self.path)
        if seen is not None:
            if _age_s(self.path) < STALE_S:
                return False
            fence = _read(seen).get("fence", 0) + 1
            taken = self.path.with_name(f"{self.path.name}.stale-{fence}")
            try:
                os.rename(self.path, taken)  # of several who try, one succeeds
            except FileNotFoundError:
                return False
            if taken.read_bytes() != seen:
                os.rename(taken, self.path)  # it was renewed by a new holder in between
                return False
            taken.unlink()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        self._token = _token(fence)
        os.write(descriptor, self._token)
        os.fsync(descriptor)
        os.close(descriptor)
        self._stop.clear()
        self._beat = threading.Thread(target=self._renew, name="penstock-claim", daemon=True)
        self._beat.start()
        return True

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return  # fenced off: check() says so before the next commit


def is_shared(folder: Path) -> bool:
    """Whether the folder lies on a file system that several hosts may mount, as far as the mount table tells."""
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return False
    place = folder.resolve()
    best, kind = -1, ""
    for line in table.read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        if place.is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), right.split()[0]
    return kind.startswith(_SHARED)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _token(fence: int) -> bytes:
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "fence": fence, "since": round(time.time(), 3),
              "nonce": secrets.token_hex(4)}  # fmt: skip
    return json.dumps(holder).encode()


def _read(content: bytes | None) -> dict[str, int]:
    try:
        found = json.loads(content or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _content(path: Path) -> bytes | None:
    """None where there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(path: Path) -> str:
    found = _read(_content(path))
    return f"process {found['pid']} on {found['host']}" if "pid" in found else "another process"


def _age_s(path: Path) -> float:
    """Seconds since the file's time, both read from the file system's clock, so that hosts need not agree on one."""
    probe = path.with_name(f"{path.name}.clock-{socket.gethostname()}-{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)
