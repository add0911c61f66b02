"""One rank of two whose BatchNorm counts all pictures: python -m tests.train.ranks_of_norm FOLDER; run by test_batch_norm."""

import sys
from pathlib import Path

import torch
from torch import nn

from penstock.train.batch_norm import over_ranks
from penstock.train.distributed import joined


def network() -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.03),
        nn.SiLU(),
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2, affine=False),
    ).double()


def pictures() -> torch.Tensor:
    """(6, 3, 8, 8); the two ranks take 4 and 2 of them."""
    torch.manual_seed(4)
    return torch.randn(6, 3, 8, 8, dtype=torch.float64)


def step(model: nn.Module, images: torch.Tensor) -> None:
    """Gradients of a sum over pictures."""
    (model(images) ** 3).sum().backward()


if __name__ == "__main__":
    with joined("cpu") as ranks:
        model = over_ranks(network(), ranks)
        own = pictures()[:4] if ranks.is_first else pictures()[4:]
        own.requires_grad_()
        step(model, own)
        gradients = {name: value.grad for name, value in model.named_parameters()}
        content = {"gradients": gradients, "state": model.state_dict(), "pixels": own.grad}
        torch.save(content, Path(sys.argv[1]) / f"{ranks.rank}.pt")
        ranks.wait()
