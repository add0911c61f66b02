"""Ranks: joining them as torchrun starts them, sums over them, and a way out that does not crash."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from penstock.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks, in float64. Every rank gives the same names and gets the same numbers."""
        names = sorted(values)
        if self.world_size == 1:
            return {name: float(values[name]) for name in names}
        tensor = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(names, tensor.tolist(), strict=True))

    def gathered(self, value: object) -> list[object]:
        """The value of every rank, in order. Small plain values."""
        if self.world_size == 1:
            return [value]
        found: list[object] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """The ranks that torchrun (RANK, WORLD_SIZE, LOCAL_RANK) started, or this process alone. They leave together; a rank that
    cannot go on leaves by an exception, and waits for nobody.

    Args:
        device: "auto": the GPU of this rank's LOCAL_RANK if there is CUDA, else the CPU; "cpu"; "cuda"; "cuda:N".

    Raises:
        UsageError: the device is not there.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = device_of(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Ranks(device=chosen)
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(rank=rank, world_size=world_size, device=chosen)
        if own:
            gc.collect()  # a living DDP wrapper at teardown aborts the process now and then, and so does a rank that is early
            dist.barrier()
    finally:
        if own:
            gc.collect()
            dist.destroy_process_group()


def device_of(text: str, local_rank: int) -> torch.device:
    """The device of a rank.

    Raises:
        UsageError: no such device.
    """
    has_cuda = torch.cuda.is_available()
    if text == "cpu" or (text == "auto" and not has_cuda):
        return torch.device("cpu")
    name = f"cuda:{local_rank}" if text in ("auto", "cuda") else text
    known = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if has_cuda else []
    if name not in known:
        raise UsageError(f"device: expected cpu{''.join(f', {one}' for one in known)}, got {text!r} (here: {name})")
    return torch.device(name)
