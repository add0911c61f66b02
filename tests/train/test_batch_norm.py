"""Batch normalisation over ranks gives the numbers of one process with the whole batch."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from penstock.train.batch_norm import BatchNormOverRanks, over_ranks
from penstock.train.distributed import Ranks
from tests.train.ranks import run_ranks
from tests.train.ranks_of_norm import network, pictures, step


def test_two_ranks_have_the_statistics_and_gradients_of_one(tmp_path: Path) -> None:
    code, _, errors = run_ranks(2, "tests.train.ranks_of_norm", [str(tmp_path)])
    assert code == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone, images = network(), pictures().requires_grad_()
    step(alone, images)
    assert images.grad is not None
    for name, value in alone.named_parameters():
        torch.testing.assert_close(first["gradients"][name] + second["gradients"][name], value.grad)
    torch.testing.assert_close(torch.cat([first["pixels"], second["pixels"]]), images.grad)
    for content in (first, second):
        assert content["state"].keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(content["state"][name], value)


def test_one_rank_keeps_its_layers() -> None:
    model = network()
    assert over_ranks(model, Ranks()) is model
    assert isinstance(model[1], nn.BatchNorm2d)  # type: ignore[index]


def test_what_is_not_trained_and_evaluation_mode_stay() -> None:
    model = network().eval()
    model[1].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    expected = model(pictures())
    changed = over_ranks(model, Ranks(world_size=2))
    layer = changed[1]  # type: ignore[index]
    assert isinstance(layer, BatchNormOverRanks)
    assert not layer.weight.requires_grad
    assert not layer.training
    torch.testing.assert_close(changed(pictures()), expected)
