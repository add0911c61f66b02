"""One loader in a process of its own: reads requests as JSON lines, does each in a forked child, answers in JSON lines.

Requests: modules; write; run; rebuild. A child that takes too long is ended with its workers.
What a loader prints goes to stderr.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import pickle
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loader_peers import PEERS
from loader_peers.base import Peer, Setup

Answer = dict[str, Any]
DISTRIBUTIONS = {"streaming": "mosaicml-streaming"}


def run(peer: Peer, request: dict[str, Any]) -> Answer:
    """Numbers of the samples of `steps` batches (None: to the end), from a saved state; saves its state at the end."""
    opened = peer.open(Setup(**request["setup"]))
    if request.get("state"):
        opened.load(pickle.loads(Path(request["state"]).read_bytes()))
    found: list[list[int]] = []
    steps = request.get("steps")
    for batch in opened.batches():
        found.append([int(number) for number in batch])
        if len(found) == steps:
            break
    answer: Answer = {"batches": found}
    if request.get("save"):
        content = pickle.dumps(opened.state())
        Path(request["save"]).write_bytes(content)
        answer["state_bytes"] = len(content)
    return answer


def write(peer: Peer, request: dict[str, Any]) -> Answer:
    """Writes both sources."""
    bad, changed = frozenset(request.get("bad", ())), frozenset(request.get("changed", ()))
    peer.write(Path(request["folder"]), request["rows"], bad, changed)
    return {}


def rebuild(peer: Peer, request: dict[str, Any]) -> Answer:
    """The number of one sample."""
    return {"number": peer.rebuild(Setup(**request["setup"]), request["step"], request["place"])}


def modules(peer: Peer) -> Answer:
    """Versions of what it needs, and what is missing. The modules are imported, so that children have them."""
    missing = peer.missing()
    if not missing:
        importlib.import_module(f"loader_peers.{type(peer).__module__.rpartition('.')[2]}")
        if "streaming" in peer.needs:
            importlib.import_module("loader_peers.sharded")._streaming()
        else:
            for name in peer.needs:
                importlib.import_module(name)
    versions = {
        name: importlib.metadata.version(DISTRIBUTIONS.get(name, name)) for name in peer.needs if name not in missing
    }
    options = {name: getattr(peer, name) for name in ("mixes", "resumes", "survives", "rebuilds")}
    return {"missing": missing, "versions": versions, **options}


DO = {"run": run, "write": write, "rebuild": rebuild}


def in_child(peer: Peer, request: dict[str, Any]) -> Answer:
    """Does a request in a forked child of a process group of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(reading)
        try:
            answer = DO[request["do"]](peer, request)
        except BaseException as error:  # noqa: BLE001  of any library, told to the parent
            answer = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(answer))
        os._exit(0)
    os.close(writing)
    until, content = time.monotonic() + request["timeout_s"], b""
    os.set_blocking(reading, False)
    ended = False
    while not ended and time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(reading, 1 << 20)
            content += piece
            ended = not piece
            continue
        time.sleep(0.01)
    os.close(reading)
    if ended:
        os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(
            50
        ):  # until none of its workers is left, who might hold shared memory of a name that the next run uses
            os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
    if not ended:
        return {"error": f"it took more than {request['timeout_s']} s"}
    return dict(json.loads(content)) if content else {"error": "its process died"}


def main() -> None:
    """Serves until stdin ends."""
    warnings.simplefilter("ignore")
    module, _, name = PEERS[sys.argv[1]].partition(":")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if peer is None:
                peer = getattr(importlib.import_module(f"loader_peers.{module}"), name)()
            answer = modules(peer) if request["do"] == "modules" else in_child(peer, request)
        except ImportError as error:
            answer = {"missing": [error.name or str(error)]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
