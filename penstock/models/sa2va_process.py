"""A model in a process of its own, with its own interpreter and packages: asks `sa2va_worker.py` over pipes."""

import os
import selectors
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from penstock.errors import PenstockError, SourceNotFound, UsageError
from penstock.models import sa2va_worker

_TAIL = 2000
"""Bytes of a dead process's last words that are shown."""
_BLOCK = 1 << 20
_GRACE_S = 5.0
"""For a process that was told to end."""


class ModelProcessError(PenstockError, RuntimeError):
    """A model's process died, was late, or said something else than an answer."""


class ModelProcess:
    """Starts with the first question; after it died, the next question starts another one.

    Args:
        python: interpreter of the environment that has the model's packages.
        arguments: of `sa2va_worker.py`.
        start_s: seconds for loading the model.
        answer_s: seconds for an answer.

    Raises:
        UsageError: a time that is not above 0.
    """

    def __init__(self, python: Path, arguments: Sequence[str], *, start_s: float, answer_s: float) -> None:
        if min(start_s, answer_s) <= 0:
            raise UsageError(f"ModelProcess: expected seconds above 0, got {start_s} and {answer_s}")
        self.command = [str(python), "-u", sa2va_worker.__file__, *arguments]
        self.start_s, self.answer_s = start_s, answer_s
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer to a question: its object and its arrays.

        Raises:
            SourceNotFound: there is no such interpreter.
            UsageError: its environment lacks a package.
            ModelProcessError: the process died, was late or said something else, or the model failed over the question.
        """
        what = str(head.get("ask"))
        try:
            if self._process is None:
                self._start()
            deadline = time.monotonic() + self.answer_s
            self._write(sa2va_worker.pack(head, arrays), deadline, what)
            found, values = self._read(deadline, what)
        except BaseException:
            self._kill()  # else the next question would get this one's answer
            raise
        if "error" in found:
            raise ModelProcessError(f"{self.command[0]}: the model failed over {what}: {found['error']}")
        return found, values

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self._kill()

    def _start(self) -> None:
        words = tempfile.TemporaryFile()  # noqa: SIM115  # `_end` closes it
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # nothing is downloaded by running a model
        try:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, bufsize=0,
                start_new_session=True, env={**os.environ, **offline},
            )  # fmt: skip
        except OSError as error:
            words.close()
            raise SourceNotFound(
                f"{self.command[0]}: cannot be run ({error.strerror}): expected the interpreter of an environment that has "
                "the model's packages"
            ) from error
        self._words, self._ending = words, weakref.finalize(self, _end, self._process, words)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        found, _ = self._read(time.monotonic() + self.start_s, "the start")
        if "error" in found:
            self._kill()
            raise UsageError(
                f"{self.command[0]}: its environment lacks a package ({found['error']}): install there what the model's "
                "own repository pins"
            )

    def _write(self, frame: bytes, deadline: float, what: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe, rest = self._process.stdin.fileno(), memoryview(frame)
        while rest:
            self._wait(pipe, selectors.EVENT_WRITE, deadline, what)
            try:
                rest = rest[os.write(pipe, rest[:_BLOCK]) :]
            except BrokenPipeError as error:
                raise self._died(what) from error

    def _read(self, deadline: float, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
        head = self._bytes(sa2va_worker.HEAD, deadline, what, begins=sa2va_worker.MAGIC)
        try:
            return sa2va_worker.unpack(self._bytes(sa2va_worker.body_length(head), deadline, what))
        except (ValueError, TypeError, EOFError) as error:
            raise self._lost(f"its answer to {what} cannot be read: {error}") from error

    def _bytes(self, count: int, deadline: float, what: str, begins: bytes = b"") -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, found = self._process.stdout.fileno(), bytearray()
        while len(found) < count:
            self._wait(pipe, selectors.EVENT_READ, deadline, what)
            block = os.read(pipe, min(count - len(found), _BLOCK))
            if not block:
                raise self._died(what)
            found += block
            if found[: len(begins)] != begins[: len(found)]:
                raise self._lost(f"expected an answer to {what}, got {bytes(found)!r} on its stdout")
        return bytes(found)

    def _wait(self, pipe: int, event: int, deadline: float, what: str) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise self._lost(f"no answer to {what} in time ({self.start_s:g} s to start, {self.answer_s:g} s each)")

    def _died(self, what: str) -> ModelProcessError:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        code = self._process.returncode
        how = "closed its pipes" if code is None else f"exit status {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        return self._lost(f"the process died over {what} ({how})")

    def _lost(self, why: str) -> ModelProcessError:
        """The error, with the last words of the process, which is ended."""
        self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - _TAIL))
        words = self._words.read().decode(errors="replace").strip()
        self._kill()
        return ModelProcessError(f"{self.command[0]}: {why}; it said last: {words or 'nothing'}")

    def _kill(self) -> None:
        if self._process is not None:
            self._ending()
            self._process = None


def _end(process: "subprocess.Popen[bytes]", words: IO[bytes]) -> None:
    """Kills a process and what it started, and waits for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
    words.close()
