"""Scores of distillation: against NumPy on all cells at once, cut anywhere, over ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from penstock.errors import UsageError
from penstock.train.distill_metrics import EdgeScore, FeatureScore, MeanFeature
from penstock.train.distributed import Ranks

SEEDS = st.integers(0, 1 << 30)


@dataclass(frozen=True, kw_only=True)
class Together(Ranks):
    """This process, with what the other ranks give written down."""

    others: Sequence[object] = field(default_factory=list)

    def gathered(self, value: object) -> list[object]:
        return [value, *self.others]


def features(seed: int, count: int, channels: int, side: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher (count, channels, side, side + 1) float64; a mean far from 0, channels of many sizes."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0, 1, (count, channels, side, side + 1)) * np.exp(rng.normal(0, 1, (channels, 1, 1))) + 5
    student = 0.5 * teacher[:, ::-1] + rng.normal(0, 1, teacher.shape)
    return torch.from_numpy(student), torch.from_numpy(teacher)


def score_of(student: torch.Tensor, teacher: torch.Tensor, cuts: Sequence[int] = ()) -> FeatureScore:
    score = FeatureScore()
    for rows in np.split(np.arange(len(teacher)), cuts):
        score.take(student[rows], teacher[rows])
    return score


def slow_values(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, float]:
    """By the definitions, with all cells in one matrix (n, C)."""
    found, wanted = (one.double().movedim(1, -1).flatten(0, 2).numpy() for one in (student, teacher))
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    centred, other = found - found.mean(axis=0), wanted - wanted.mean(axis=0)
    top = np.linalg.norm(other.T @ centred) ** 2
    return {
        "cosine": float(np.mean((found * wanted).sum(axis=1) / lengths)),
        "mse": float(np.mean((found - wanted) ** 2)),
        "mae": float(np.mean(np.abs(found - wanted))),
        "mean_shift": float(np.mean(np.abs(found.mean(axis=0) - wanted.mean(axis=0)) / wanted.std(axis=0))),
        "std_ratio": float(np.mean(found.std(axis=0) / wanted.std(axis=0))),
        "cka": float(top / np.linalg.norm(centred.T @ centred) / np.linalg.norm(other.T @ other)),
    }


@given(SEEDS, st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=40)
def test_features_score_what_the_definitions_say(seed: int, count: int, channels: int) -> None:
    student, teacher = features(seed, count, channels)
    score = score_of(student, teacher)
    assert score.values() == pytest.approx(slow_values(student, teacher), rel=1e-8)
    assert score.samples == count
    half = score_of(student.half(), teacher.half())
    assert half.values() == pytest.approx(slow_values(student.half(), teacher.half()), rel=1e-8)


@given(SEEDS, st.lists(st.integers(0, 6), max_size=4).map(sorted))
@settings(max_examples=40)
def test_batches_cut_anywhere_give_the_same_bits(seed: int, cuts: list[int]) -> None:
    student, teacher = features(seed, 6, 4)
    whole, cut = score_of(student, teacher), score_of(student, teacher, cuts)
    assert all(torch.equal(value, cut.sums[name]) for name, value in whole.sums.items())
    assert whole.values() == cut.values()
    mean, parts = MeanFeature(), MeanFeature()
    mean.take(teacher)
    for rows in np.split(np.arange(6), cuts):
        parts.take(teacher[rows])
    assert torch.equal(mean.sums["feature"], parts.sums["feature"])


@given(SEEDS, st.integers(0, 5))
@settings(max_examples=20)
def test_ranks_together_score_as_one(seed: int, cut: int) -> None:
    student, teacher = features(seed, 5, 3)
    whole = score_of(student, teacher)
    parts = [FeatureScore(), FeatureScore()]
    for part, rows in zip(parts, (slice(0, cut), slice(cut, 5)), strict=True):
        if len(teacher[rows]):
            part.take(student[rows], teacher[rows])
    other = {name: value.numpy() for name, value in parts[1].sums.items()}
    kept = parts[0].values()
    joint = parts[0].over(Together(others=[other, {}]))
    assert joint.values() == pytest.approx(whole.values(), rel=1e-9)
    assert joint.samples == 5
    assert parts[0].values() == pytest.approx(kept, nan_ok=True)  # what a rank holds stays its own
    alone = whole.over(Ranks())
    assert alone.values() == whole.values()
    alone.take(student, teacher)
    assert whole.samples == 5


@given(SEEDS, st.floats(0.01, 100), st.integers(2, 6))
@settings(max_examples=30)
def test_cka_knows_neither_rotation_nor_scale_nor_shift(seed: int, scale: float, channels: int) -> None:
    student, teacher = features(seed, 4, channels)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))[0]
    turned = torch.einsum("dc,bchw->bdhw", torch.from_numpy(turn), student) * scale + 3
    before, after = score_of(student, teacher).values()["cka"], score_of(turned, teacher).values()["cka"]
    assert after == pytest.approx(before, rel=1e-6)
    assert 0 <= before <= 1 + 1e-12
    turned = torch.einsum("dc,bchw->bdhw", torch.from_numpy(turn), teacher) * scale
    assert score_of(turned, teacher).values()["cka"] == pytest.approx(1, rel=1e-6)


def test_equal_features_score_best() -> None:
    _, teacher = features(0, 3, 4)
    best = {"cosine": 1, "mse": 0, "mae": 0, "mean_shift": 0, "std_ratio": 1, "cka": 1}
    assert score_of(teacher, teacher).values() == pytest.approx(best, abs=1e-9)


def test_channel_scores_see_a_shift_and_a_flat_student() -> None:
    _, teacher = features(1, 3, 4)
    means = teacher.mean(dim=(0, 2, 3), keepdim=True)
    flat = score_of(means + 0.25 * (teacher - means), teacher).values()
    assert flat["std_ratio"] == pytest.approx(0.25)
    assert flat["mean_shift"] == pytest.approx(0, abs=1e-9)
    spread = teacher.std(dim=(0, 2, 3), correction=0)[:, None, None]
    assert score_of(teacher - 2 * spread, teacher).values()["mean_shift"] == pytest.approx(2)


def test_constant_features_are_nan_where_nothing_can_be_said() -> None:
    student, teacher = features(2, 3, 3, side=7)
    constant = torch.tensor([5.001, 0.9, 7.7], dtype=torch.float64)[:, None, None].expand_as(teacher)
    found = score_of(constant, teacher).values()
    assert math.isnan(found["cka"])
    assert found["std_ratio"] == pytest.approx(0, abs=1e-5)
    assert math.isfinite(found["mse"])
    found = score_of(student, constant).values()
    assert all(math.isnan(found[name]) for name in ("cka", "std_ratio", "mean_shift"))
    teacher[:, 1] = 0.1
    expected = [slow_values(student[:, [one]], teacher[:, [one]])["std_ratio"] for one in (0, 2)]
    assert score_of(student, teacher).values()["std_ratio"] == pytest.approx(np.mean(expected))


def test_without_pictures_everything_is_nan() -> None:
    score = FeatureScore()
    assert score.samples == 0
    assert score.values().keys() == slow_values(*features(0, 1, 2)).keys()
    assert all(map(math.isnan, score.values().values()))
    assert all(map(math.isnan, score.over(Ranks()).values().values()))
    assert all(map(math.isnan, EdgeScore().values().values()))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected \(2, 3, 4, 4\), got \(2, 3, 4, 5\)"):
        FeatureScore().take(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 4))
    with pytest.raises(UsageError, match=r"expected \(2, 4, 4\), got \(2, 4, 5\)"):
        EdgeScore().take(torch.zeros(2, 1, 4, 5), torch.zeros(2, 4, 4))


def test_features_that_require_gradients_are_scored_without_them() -> None:
    student, teacher = features(0, 2, 3)
    score = score_of(student.requires_grad_(), teacher)
    assert not any(value.requires_grad for value in score.sums.values())


def slow_edges(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """By loops over pixels."""

    def hits(one: np.ndarray, other: np.ndarray, reach: int) -> int:
        return sum(
            bool(other[number, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].any())
            for number, y, x in np.argwhere(one)
        )

    values: dict[str, float] = {}
    for ending, reach in (("", 0), ("_near", 1)):
        precision = hits(found, wanted, reach) / found.sum() if found.any() else math.nan
        recall = hits(wanted, found, reach) / wanted.sum() if wanted.any() else math.nan
        total = (0 if math.isnan(precision) else precision) + (0 if math.isnan(recall) else recall)
        f1 = 2 * precision * recall / total if total else 0.0
        f1 = f1 if found.any() or wanted.any() else math.nan
        values |= {f"edge_precision{ending}": precision, f"edge_recall{ending}": recall, f"edge_f1{ending}": f1}
    return values


@given(SEEDS, st.integers(1, 6), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 3))
@settings(max_examples=60)
def test_edges_score_what_the_definitions_say(seed: int, side: int, many: float, wanted: float, cut: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, side, side + 1)
    logits, edges = torch.from_numpy(rng.random(shape) - (1 - many)), torch.from_numpy(rng.random(shape) < wanted)
    score, one, other = EdgeScore(), EdgeScore(), EdgeScore()
    score.take(logits[:, None], edges.to(torch.uint8))
    assert score.values() == pytest.approx(slow_edges((logits > 0).numpy(), edges.numpy()), nan_ok=True)
    one.take(logits[:cut], edges[:cut])
    other.take(logits[cut:], edges[cut:])
    assert {name: value + vars(other)[name] for name, value in vars(one).items()} == vars(score)
    assert vars(score.over(Ranks())) == vars(score)


def test_a_pixel_beside_the_edge_counts_with_tolerance_alone() -> None:
    edges, logits = torch.zeros(1, 9, 9), torch.full((1, 1, 9, 9), -1.0)
    edges[0, 4], logits[0, 0, 5] = 1, 1
    score = EdgeScore()
    score.take(logits, edges)
    found = score.values()
    assert (found["edge_f1"], found["edge_f1_near"]) == (0, 1)
    logits[0, 0, 5], logits[0, 0, 6] = -1, 1
    score = EdgeScore()
    score.take(logits, edges)
    assert score.values()["edge_f1_near"] == 0


def test_the_mean_feature_is_the_mean_and_can_be_scored() -> None:
    _, teacher = features(3, 6, 4)
    mean = MeanFeature()
    with pytest.raises(UsageError, match="at least one picture"):
        mean.predict(1)
    mean.take(teacher[:4].half())
    mean.take(teacher[4:])
    found = mean.predict(5)
    assert found.shape == (5, 4, 3, 4)
    assert found.dtype == torch.float32
    expected = torch.cat([teacher[:4].half().double(), teacher[4:]]).mean(dim=0)
    torch.testing.assert_close(found[2], expected.float())
    score = score_of(found, teacher[:5])
    assert score.values()["mse"] == pytest.approx(float((found - teacher[:5]).square().mean()), rel=1e-6)
    joint = mean.over(Together(others=[{}, {name: value.numpy() for name, value in mean.sums.items()}]))
    assert joint.samples == 12
    torch.testing.assert_close(joint.predict(1), mean.predict(1))
