"""Losses of distillation against their formulas in NumPy and double precision, sample by sample."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from penstock.errors import UsageError
from penstock.train.distill_losses import (
    GlobalContext,
    cell_cosine,
    cell_weights,
    dilated,
    edge_loss,
    feature_cosine,
    feature_mse,
    fgd,
    fsdlike,
    mask_loss,
    positive_weights,
)

Loss = Callable[..., torch.Tensor]


def focal(student: torch.Tensor, teacher: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
    """FGD with every term, at odd weights."""
    return fgd(student, teacher, *maps, alpha_fg=0.7, beta_bg=0.3, alpha_edge=0.2, gamma_mask=0.1, temperature=0.5)


def shares(student: torch.Tensor, teacher: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
    """FSD-like with every term, at odd weights."""
    return fsdlike(student, teacher, *maps, weight_fg=1.0, weight_bg=0.2, weight_edge=0.4, temperature=0.5)


FEATURES: dict[str, tuple[Loss, int]] = {
    "mse": (feature_mse, 1), "cosine": (feature_cosine, 1), "fgd": (focal, 3), "fsdlike": (shares, 3)
}  # fmt: skip
"""Name -> (loss, how many maps of weights it takes)."""


def unit(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Maps (count, height, width) float64 that sum to 1, some cells 0; the first all zero, if there are two."""
    maps = rng.random((count, height, width)) * (rng.random((count, height, width)) < 0.6)
    maps[:, 0, 0] += 0.1
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    if count > 1:
        maps[0] = 0
    return maps


def given_arrays(seed: int, count: int, channels: int, side: int) -> list[np.ndarray]:
    """Student, teacher (count, channels, side, side + 1) and three maps, float64."""
    rng = np.random.default_rng(seed)
    features = [rng.normal(0, 1, (count, channels, side, side + 1)) for _ in range(2)]
    return [*features, *(unit(rng, count, side, side + 1) for _ in range(3))]


def tensors(arrays: list[np.ndarray], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.from_numpy(one).to(dtype) for one in arrays]


def softmax(values: np.ndarray) -> np.ndarray:
    """Over all values."""
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def attention(feature: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Of one picture (C, h, w): FGD's equations 3 and 4."""
    size = np.abs(feature)
    cells, channels = size.mean(axis=0), size.mean(axis=(1, 2))
    return cells.size * softmax(cells / temperature), channels.size * softmax(channels / temperature)


def slow_mse(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray) -> float:
    total = 0.0
    for y, x in np.ndindex(*mask.shape):
        total += mask[y, x] * np.mean((student[:, y, x] - teacher[:, y, x]) ** 2)
    return float(total / mask.sum()) if mask.any() else 0.0


def slow_cosine(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray) -> float:
    total = 0.0
    for y, x in np.ndindex(*mask.shape):
        one, other = student[:, y, x], teacher[:, y, x]
        total += mask[y, x] * (1 - one @ other / max(1e-4, np.linalg.norm(one)) / max(1e-4, np.linalg.norm(other)))
    return float(total / mask.sum()) if mask.any() else 0.0


def slow_fgd(student: np.ndarray, teacher: np.ndarray, *maps: np.ndarray) -> float:
    """As the paper writes it: both features times the square roots, then the sum of squares."""
    cells, channels = attention(teacher, 0.5)
    total = 0.0
    for alpha, one in zip((0.7, 0.3, 0.2), maps, strict=True):
        root = np.sqrt(one) * np.sqrt(cells) * np.sqrt(channels)[:, None, None]
        total += alpha * np.sum((student * root - teacher * root) ** 2)
    own_cells, own_channels = attention(student, 0.5)
    return float(total + 0.1 * (np.abs(own_cells - cells).sum() + np.abs(own_channels - channels).sum()))


def slow_fsdlike(student: np.ndarray, teacher: np.ndarray, *maps: np.ndarray) -> float:
    cells, channels = attention(teacher, 0.5)
    total = 0.0
    for weight, one in zip((1.0, 0.2, 0.4), maps, strict=True):
        apart = []
        for number, strength in enumerate(channels):
            root = np.sqrt(one * cells * strength * one.size)
            both = [channel * root for channel in (student[number], teacher[number])]
            found, wanted = (softmax((one - one.mean()) / np.sqrt(one.var() + 1e-6)) for one in both)
            apart.append(np.sum(wanted * np.log(wanted / found)))
        total += weight * np.mean(apart)
    return float(total)


SLOW: dict[str, Callable[..., float]] = {
    "mse": slow_mse, "cosine": slow_cosine, "fgd": slow_fgd, "fsdlike": slow_fsdlike
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 4), channels=st.integers(1, 5), side=st.integers(1, 5))
@settings(max_examples=25)
def test_features_lose_what_the_formula_says(name: str, seed: int, count: int, channels: int, side: int) -> None:
    arrays = given_arrays(seed, count, channels, side)
    loss, maps = FEATURES[name]
    found = loss(*tensors(arrays)[: 2 + maps])
    expected = [SLOW[name](*(array[number] for array in arrays[: 2 + maps])) for number in range(count)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    single = loss(*tensors(arrays, torch.float32)[: 2 + maps])
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", FEATURES)
@given(seed=st.integers(0, 1 << 30), count=st.integers(2, 6))
@settings(max_examples=15)
def test_a_picture_loses_the_same_in_any_batch_and_at_any_place(name: str, seed: int, count: int) -> None:
    loss, maps = FEATURES[name]
    inputs = tensors(given_arrays(seed, count, 3, 4))[: 2 + maps]
    whole = loss(*inputs)
    order = np.random.default_rng(seed).permutation(count)
    torch.testing.assert_close(loss(*(one[order] for one in inputs)), whole[order])
    torch.testing.assert_close(torch.cat([loss(*(one[[number]] for one in inputs)) for number in range(count)]), whole)


@pytest.mark.parametrize("name", FEATURES)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=15)
def test_equal_features_lose_nothing(name: str, seed: int) -> None:
    loss, maps = FEATURES[name]
    student, _, *weights = tensors(given_arrays(seed, 3, 4, 3))
    student[1] = 0
    assert (loss(student, student.clone(), *weights[:maps]).abs() < 1e-12).all()
    assert (loss(student.half(), student.half(), *(one.float() for one in weights[:maps])).abs() < 1e-6).all()


@pytest.mark.parametrize("name", FEATURES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    loss, maps = FEATURES[name]
    student, *rest = tensors(given_arrays(3, 2, 3, 2))
    assert torch.autograd.gradcheck(lambda one: loss(one, *rest[: 1 + maps]), student.requires_grad_())


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_are_finite_at_zero_features_and_empty_maps(name: str, dtype: torch.dtype) -> None:
    loss, maps = FEATURES[name]
    _, teacher, *weights = tensors(given_arrays(0, 3, 4, 4), torch.float32)
    teacher[1] = 0
    student = torch.zeros_like(teacher).to(dtype).requires_grad_()
    found = loss(student, teacher.half(), *weights[:maps])
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), student)[0].isfinite().all()
    flat = torch.full_like(teacher, 3.0).requires_grad_()
    found = loss(flat, teacher, *weights[:maps])
    assert torch.autograd.grad(found.sum(), flat)[0].isfinite().all()


@pytest.mark.parametrize("name", FEATURES)
def test_autocast_changes_nothing(name: str) -> None:
    loss, maps = FEATURES[name]
    inputs = tensors(given_arrays(1, 2, 8, 6), torch.float32)[: 2 + maps]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*inputs)
    assert torch.equal(found, loss(*inputs))
    assert found.dtype == torch.float32


def test_an_empty_map_adds_nothing_and_is_no_nan() -> None:
    student, teacher, fg, bg, _ = tensors(given_arrays(5, 2, 3, 4))
    nothing = torch.zeros_like(fg)
    for loss in (feature_mse, feature_cosine):
        assert loss(student, teacher, nothing).tolist() == [0, 0]
        assert loss(student, teacher, fg > 0)[1] > 0
    assert focal(student, teacher, nothing, bg, nothing).isfinite().all()
    alone = fsdlike(student, teacher, nothing, bg, weight_fg=9.0, weight_bg=1.0)
    torch.testing.assert_close(alone, fsdlike(student, teacher, bg, nothing, weight_fg=1.0, weight_bg=9.0))
    assert fsdlike(student, teacher, nothing, nothing, weight_fg=1.0, weight_bg=1.0).tolist() == [0, 0]


def test_only_the_masked_cells_count() -> None:
    student, teacher, *_ = tensors(given_arrays(6, 2, 3, 4))
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[:, 1:3, 2] = True
    other = student.clone()
    other[:, :, 0] += 7
    for loss in (feature_mse, feature_cosine):
        assert torch.equal(loss(student, teacher, mask), loss(other, teacher, mask))
        assert not torch.equal(loss(student, teacher), loss(other, teacher))
        torch.testing.assert_close(loss(student, teacher, mask.double() * 0.01), loss(student, teacher, mask))


def test_cosine_of_zeros() -> None:
    student, teacher = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4)
    student[0, 0, 0] = torch.tensor([0, 0, 1, 5])
    teacher[0, 0, 0] = torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(cell_cosine(student, teacher), torch.tensor([[[1.0, 0.0, 0.0, 1.0]]]))


@pytest.mark.parametrize("loss", [feature_mse, feature_cosine, focal, shares, GlobalContext(3)])
def test_other_shapes_are_refused_not_broadcast(loss: Loss) -> None:
    features, maps = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)
    weights = [] if isinstance(loss, GlobalContext) else [maps] * (3 if loss in (focal, shares) else 1)
    with pytest.raises(UsageError, match=r"student's features: expected \(2, 3, 4, 4\), got \(2, 3, 2, 2\)"):
        loss(features[..., :2, :2], features, *weights)
    if weights:
        with pytest.raises(UsageError, match=r"map of weights: expected \(2, 4, 4\), got \(2, 1, 4, 4\)"):
            loss(features, features, *(one[:, None] for one in weights))


def slow_context(block: torch.nn.Module, feature: np.ndarray) -> np.ndarray:
    weights = {name: value.detach().numpy() for name, value in block.state_dict().items()}
    logits = np.einsum("c,chw->hw", weights["mask.weight"][0, :, 0, 0], feature) + weights["mask.bias"]
    context = np.einsum("chw,hw->c", feature, softmax(logits))
    middle = weights["add.0.weight"] @ context + weights["add.0.bias"]
    middle = (middle - middle.mean()) / np.sqrt(middle.var() + 1e-5) * weights["add.1.weight"] + weights["add.1.bias"]
    added = weights["add.3.weight"] @ np.maximum(middle, 0) + weights["add.3.bias"]
    return np.asarray(feature + added[:, None, None])


def test_global_context_is_the_formula_and_learns() -> None:
    torch.manual_seed(0)
    context = GlobalContext(6).double()
    student, teacher, *_ = tensors(given_arrays(8, 3, 6, 4))
    torch.testing.assert_close(context(student, teacher), (student - teacher).square().sum(dim=(1, 2, 3)))  # W2 is 0
    assert context(teacher, teacher).tolist() == [0, 0, 0]
    for parameter in context.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = [
        np.sum((slow_context(context.student, one) - slow_context(context.teacher, other)) ** 2)
        for one, other in zip(student.numpy(), teacher.numpy(), strict=True)
    ]
    np.testing.assert_allclose(context(student, teacher).detach().numpy(), expected, rtol=1e-9)
    context(student, teacher).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in context.parameters())
    small = GlobalContext(3).double()
    torch.nn.init.normal_(small.student.add.get_parameter("3.weight"))
    features = [one.requires_grad_() for one in tensors(given_arrays(2, 2, 3, 2))[:2]]
    assert torch.autograd.gradcheck(small, features)


def test_global_context_is_computed_in_float32_under_autocast() -> None:
    context = GlobalContext(8)
    torch.nn.init.normal_(context.student.add.get_parameter("3.weight"))
    student, teacher, *_ = tensors(given_arrays(1, 2, 8, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = context(student, teacher.bfloat16())
    assert torch.equal(found, context(student, teacher.bfloat16().float()))


def near_edge(edges: np.ndarray, kernel: int) -> np.ndarray:
    """(H, W) bool, by a loop."""
    reach, found = kernel // 2, np.zeros(edges.shape, bool)
    for y, x in np.ndindex(*edges.shape):
        found[y, x] = edges[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].any()
    return found


def slow_edge_loss(logits: np.ndarray, edges: np.ndarray, positive: float, near: int | None) -> float:
    region = np.ones(edges.shape, bool) if near is None else near_edge(edges, near)
    if not region.any():
        return 0.0
    chance, wanted = 1 / (1 + np.exp(-logits[region])), edges[region].astype(float)
    entropy = -(positive * wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance)).mean()
    dice = 1 - (2 * (chance * wanted).sum() + 1) / (chance.sum() + wanted.sum() + 1)
    return float(0.5 * entropy + 0.5 * dice)


@given(st.integers(0, 1 << 30), st.integers(1, 9), st.sampled_from([None, 1, 3, 5]), st.booleans())
@settings(max_examples=40)
def test_edges_lose_what_the_formula_says(seed: int, side: int, near: int | None, weigh: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, 1, side, side + 2))
    edges = (rng.random((3, side, side + 2)) < 0.2).astype(np.uint8)
    edges[0] = 0
    positive = positive_weights(torch.from_numpy(edges), near) if weigh else None
    found = edge_loss(torch.from_numpy(logits), torch.from_numpy(edges), positive, near)
    expected = []
    for number in range(3):
        region = edges[number] >= 0 if near is None else near_edge(edges[number], near)
        ones = int(edges[number].sum())
        balance = min(20.0, max(1.0, (int(region.sum()) - ones) / ones)) if ones else 20.0
        expected.append(slow_edge_loss(logits[number, 0], edges[number], balance if weigh else 1.0, near))
        if positive is not None:
            assert positive[number].item() == pytest.approx(balance)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert near is None or found[0] == 0
    torch.testing.assert_close(
        edge_loss(torch.from_numpy(logits[:, 0]), torch.from_numpy(edges), positive, near), found
    )


def test_edges_found_lose_nothing_and_gradients_are_right() -> None:
    edges = torch.zeros(2, 6, 6, dtype=torch.uint8)
    edges[1, 2] = 1
    sure = (edges.float() * 2 - 1)[:, None] * 60
    assert (edge_loss(sure, edges) < 1e-6).all()
    assert (edge_loss(-sure, edges) > 30).all()
    logits = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for near in (None, 3):
        assert torch.autograd.gradcheck(lambda one, near=near: edge_loss(one, edges, 2.0, near), logits)
    half = torch.zeros(2, 1, 6, 6, dtype=torch.float16, requires_grad=True)
    assert edge_loss(half, edges, near=3).dtype == torch.float32
    with pytest.raises(UsageError, match=r"logits of edges: expected \(2, 6, 6\), got \(2, 3, 3\)"):
        edge_loss(sure[..., :3, :3], edges)
    with pytest.raises(UsageError, match="expected an odd number of pixels, got 4"):
        edge_loss(sure, edges, near=4)


@given(st.integers(0, 1 << 30), st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 3, 5]))
@settings(max_examples=30)
def test_dilation_is_the_square_around_each_edge(seed: int, height: int, width: int, kernel: int) -> None:
    edges = np.random.default_rng(seed).random((2, height, width)) < 0.1
    found = dilated(torch.from_numpy(edges), kernel)
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), np.stack([near_edge(one, kernel) for one in edges]))


def test_masks_lose_what_the_formula_says() -> None:
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(0, 2, (3, 5, 6)), (rng.random((3, 5, 6)) < 0.4).astype(np.uint8)
    found = mask_loss(torch.from_numpy(logits), torch.from_numpy(masks), bce_weight=2.0, dice_weight=0.5)
    chance, wanted = 1 / (1 + np.exp(-logits)), masks.astype(float)
    entropy = -(wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance)).mean(axis=(1, 2))
    overlap = 2 * (chance * wanted).sum(axis=(1, 2)) + 1
    dice = 1 - overlap / (chance.sum(axis=(1, 2)) + wanted.sum(axis=(1, 2)) + 1)
    np.testing.assert_allclose(found.numpy(), 2 * entropy + 0.5 * dice, rtol=1e-12)
    inputs = torch.from_numpy(logits).requires_grad_()
    weights = {"bce_weight": 2.0, "dice_weight": 0.5}
    assert torch.autograd.gradcheck(lambda one: mask_loss(one, torch.from_numpy(masks), **weights), inputs)


def test_logits_of_masks_are_brought_to_the_size_of_the_masks() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.uint8)
    masks[:, :8] = 1
    logits = torch.full((2, 4, 4), -40.0)
    logits[0, :2], logits[1, 2:] = 40, 40
    right, wrong = mask_loss(logits.half(), masks, bce_weight=2.0, dice_weight=1.0).tolist()
    assert right < 1 < 50 < wrong
    assert mask_loss(logits, torch.zeros_like(masks), bce_weight=1.0, dice_weight=1.0).isfinite().all()
    with pytest.raises(UsageError, match="logits of masks"):
        mask_loss(logits[:1], masks, bce_weight=1.0, dice_weight=1.0)


def test_cells_share_the_edges_of_a_picture() -> None:
    edges = torch.zeros(2, 8, 8, dtype=torch.uint8)
    edges[0, 0], edges[0, 7, 7] = 1, 1
    weights = cell_weights(edges, (4, 4))
    assert weights.shape == (2, 4, 4)
    torch.testing.assert_close(weights[0, 0], torch.full((4,), 2 / 9))
    assert weights[0, 3, 3].item() == pytest.approx(1 / 9)
    assert weights.sum(dim=(1, 2)).tolist() == pytest.approx([1.0, 0.0])
