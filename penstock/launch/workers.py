"""How many workers a job with a model takes on this machine, and on which devices."""

import os

from penstock.errors import UsageError
from penstock.jobs import Launcher
from penstock.launch.local import Inline, Local
from penstock.models.opened import torch_device

WORKERS_PER_GPU = 4


def require_devices(devices: int, device: str, num_workers: int) -> None:
    """Refuses several devices where there are not as many GPUs, or not as many workers.

    Args:
        devices: GPUs that are asked for.
        device: the first of them, settled: "cpu" or "cuda:N".
        num_workers: asked for; -1: as many as suit.

    Raises:
        UsageError: see above.
    """
    kind, _, first = device.partition(":")
    if devices == 1:
        return
    if kind == "cpu":
        raise UsageError(f"devices: expected 1 on a CPU, whose cores the workers share, got {devices}")
    torch_device(f"{kind}:{int(first) + devices - 1}")
    if 0 <= num_workers < devices:
        raise UsageError(f"devices: expected a worker for each of {devices}, got num-workers {num_workers}")


def num_workers_of(asked: int, device: str, devices: int) -> int:
    """Workers for a number asked for: -1 is one per core, or four per GPU."""
    if asked >= 0:
        return asked
    return len(os.sched_getaffinity(0)) if device == "cpu" else WORKERS_PER_GPU * devices


def local_launcher(workers: int, timeout_s: float | None) -> Launcher:
    """Worker processes of this machine; none at all for 0."""
    return Local(workers, timeout_s=timeout_s) if workers else Inline()


def launcher_of(
    name: str, address: str | None, *, num_workers: int, devices: int, timeout_s: float | None
) -> Launcher | None:
    """The launcher of a command's flags; None: what the configuration takes on this machine.

    Args:
        name: "local" or "ray".
        address: of a Ray cluster.
        num_workers, devices, timeout_s: of the configuration.

    Raises:
        UsageError: flags that contradict each other.
        MissingExtra: ray is not installed.
    """
    if name == "local":
        if address is not None:
            raise UsageError(f"--ray-address {address}: expected none with the local launcher; say --launcher ray")
        return None
    if devices > 1:
        raise UsageError(f"--launcher ray: each worker has a GPU of its own; expected no --devices, got {devices}")
    if num_workers == 0:
        raise UsageError("--launcher ray: expected workers, got --num-workers 0, which works in this process")
    from penstock.launch.ray import Ray

    return Ray(num_workers if num_workers > 0 else None, address=address, timeout_s=timeout_s)
