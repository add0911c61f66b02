"""Peers as processes: starts `serve.py`, sends it commands, waits no longer than allowed."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Answer = dict[str, Any]


class Process:
    """A peer in a process (and process group) of its own, with one computing thread per process."""

    def __init__(self, peer: str, workload: str, python: str, log: Path) -> None:
        self.peer = peer
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
            environment[f"{name}_NUM_THREADS"] = "1"
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [python or sys.executable, str(HERE / "serve.py"), peer, workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env=environment,
        )
        self._pending = b""

    def call(self, do: str, timeout_s: float, **arguments: Any) -> Answer:
        """Sends a command and gives the answer; {"error": ...} if the process fails, dies or takes too long."""
        if self._process.poll() is not None:
            return {"error": f"its process ended with {self._process.returncode}"}
        line = json.dumps({"do": do, **arguments}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": "its process ended"}
        return self._answer(do, timeout_s)

    def end(self) -> None:
        """Ends the process and its workers."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._kill()
        self._log.close()

    def _answer(self, do: str, timeout_s: float) -> Answer:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, until - time.monotonic())):
                    self._kill()
                    return {"error": f"{do} took more than {timeout_s:.0f} s"}
                content = os.read(self._process.stdout.fileno(), 1 << 16)
                if not content:
                    return {"error": f"{do}: its process ended with {self._process.wait()}"}
                self._pending += content
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
