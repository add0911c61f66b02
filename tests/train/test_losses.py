"""Mask losses at sampled points, and scores that add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from penstock.train.distributed import Ranks
from penstock.train.losses import POINTS, dice_loss, mask_losses, sampled_points, values_at
from penstock.train.metrics import MaskScore


def test_points_of_a_sample_depend_on_its_seed_alone() -> None:
    logits = torch.randn(4, 40, 40, generator=torch.Generator().manual_seed(0))
    whole = sampled_points(logits, [3, 1, 4, 1 << 63])
    for number, seed in enumerate([3, 1, 4, 1 << 63]):
        assert torch.equal(sampled_points(logits[number : number + 1], [seed])[0], whole[number])
    assert whole.shape == (4, 1600, 2)
    assert 0 <= float(whole.min()) <= float(whole.max()) < 1


def test_three_of_four_points_lie_where_the_logits_are_near_zero() -> None:
    columns = torch.linspace(-4, 4, 64).expand(1, 64, 64)
    points = sampled_points(columns, [0], 1000)
    unsure = values_at(columns, points).abs() < 2
    assert 0.8 < float(unsure.float().mean()) < 0.95  # a third of all, then the least sure of them
    assert sampled_points(torch.zeros(1, 200, 200), [0]).shape[1] == POINTS


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**64 - 1))
def test_a_perfect_mask_loses_nearly_nothing_and_its_opposite_much(height: int, width: int, seed: int) -> None:
    masks = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (2, height, width)))
    logits = (masks.float() - 0.5) * 80
    large = torch.nn.functional.interpolate(logits[:, None], scale_factor=8)[:, 0]
    entropy, dice = mask_losses(logits, masks, [seed, 0], points=64)
    assert entropy.shape == dice.shape == (2,)
    far, _ = mask_losses(-large, masks, [seed, 0], points=64)
    near, small = mask_losses(large, masks, [seed, 0], points=64)
    assert (near < far).all()
    assert (small < 0.75).all()


def test_dice_by_hand() -> None:
    shares, wanted = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert dice_loss(shares, wanted).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_gradients_reach_the_logits() -> None:
    logits = torch.zeros(2, 8, 8, requires_grad=True)
    entropy, dice = mask_losses(logits, torch.ones(2, 8, 8), [0, 1])
    (entropy.sum() + dice.sum()).backward()
    assert logits.grad is not None
    assert (logits.grad <= 0).all()
    assert (logits.grad < 0).any()


def test_giou_is_the_mean_and_ciou_counts_pixels() -> None:
    masks = torch.zeros(2, 4, 4)
    masks[0, :2], masks[1, 0, 0] = 1, 1
    logits = torch.full((2, 4, 4), -1.0)
    logits[0, :1], logits[1, 0, 0] = 1, 1
    score = MaskScore()
    score.take(logits, masks)
    assert score.giou == pytest.approx((0.5 + 1) / 2)
    assert score.ciou == pytest.approx((4 + 1) / (8 + 1))
    one, other = MaskScore(), MaskScore()
    one.take(logits[:1], masks[:1])
    other.take(logits[1:], masks[1:])
    assert {name: value + vars(other)[name] for name, value in vars(one).items()} == vars(score)
    assert vars(score.over(Ranks())) == vars(score)
    assert np.isnan(MaskScore().giou)
    empty = MaskScore()
    empty.take(torch.full((1, 4, 4), -1.0), torch.zeros(1, 4, 4))
    assert empty.giou == 1.0
