"""Processes that train together, started as torchrun starts them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run_ranks(count: int, module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Runs `python -m MODULE ARGUMENTS` so many times; exit code of the first that failed, output of rank 0, errors of all."""
    # Held until all have ended, so that nobody else is given the port; the first rank may listen there.
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        return _run(count, [sys.executable, "-m", module, *arguments], port=held.getsockname()[1])


def _run(count: int, command: Sequence[str], *, port: int) -> tuple[int, str, str]:
    environ = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    jobs = [
        subprocess.Popen(
            command, env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]  # fmt: skip
    codes: list[int] = []
    outputs, errors = [], []
    for process in jobs:
        if any(code == -signal.SIGKILL for code in codes):
            process.kill()  # its peer is gone: it would wait for a long time
        out, error = process.communicate(timeout=500)
        codes.append(process.returncode)
        outputs.append(out)
        errors.append(error)
    return next((code for code in codes if code), 0), outputs[0], "".join(errors)
