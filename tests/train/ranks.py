"""Processes that train together, started as torchrun starts them, but for the imports: these are done once for all."""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

FORKS = multiprocessing.get_context("forkserver")
"""Forks processes off one that has imported torch, with what it would import at the first step, and has one thread."""
FORKS.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel", "torch._dynamo", "penstock.loader"])


def run_ranks(count: int, module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Runs `python -m MODULE ARGUMENTS` so many times; exit code of the first that failed, output of rank 0, errors of all."""
    # Held until all have ended, so that nobody else is given the port; the first rank may listen there.
    with socket.socket() as held, tempfile.TemporaryDirectory() as folder:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        codes = _run(count, Path(folder), [module, *arguments], {**os.environ, **shared, "WORLD_SIZE": str(count)})
        outputs, errors = ([_said(Path(folder), kind, rank).read_text() for rank in range(count)] for kind in (1, 2))
    return next((code for code in codes if code), 0), outputs[0], "".join(errors)


def _run(count: int, folder: Path, words: Sequence[str], environ: Mapping[str, str]) -> list[int]:
    jobs = [FORKS.Process(target=_become, args=(rank, folder, words, environ)) for rank in range(count)]
    for process in jobs:
        process.start()
    codes: list[int] = []
    for process in jobs:
        if -signal.SIGKILL in codes:
            process.kill()  # its peer is gone: it would wait for a long time
        process.join(500)
        assert process.exitcode is not None, "a rank did not end"
        codes.append(process.exitcode)
    return codes


def _said(folder: Path, kind: int, rank: int) -> Path:
    return folder / f"{rank}.{kind}"


def _become(rank: int, folder: Path, words: Sequence[str], environ: Mapping[str, str]) -> None:
    """Becomes `python -m WORDS`, which says into files what it would say on the terminal."""
    os.environ.clear()
    os.environ.update({**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    os.chdir(ROOT)
    for kind in (1, 2):
        os.dup2(os.open(_said(folder, kind, rank), os.O_WRONLY | os.O_CREAT), kind)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
