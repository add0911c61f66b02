"""Losses of distillation: a student's features, edges and masks against the teacher's.

B pictures, C channels, h x w cells, H x W pixels. Each loss is (B,), one number a picture that depends on this picture alone:
whoever averages them may cut the batch as he likes. Float16 and bfloat16 are computed in float32, under autocast too;
float64 stays. A fault in shapes is a UsageError.
"""

import torch
import torch.nn.functional as F
from torch import nn

from penstock.errors import UsageError
from penstock.train.losses import dice_loss

_SMALL_NORM = 1e-4
"""A feature shorter than this counts as of this length: its cosine goes to 0, and gradients stay below 1e4, fit for float16."""
_SMALL_VARIANCE = 1e-6
"""Of a channel over the cells, in `fsdlike`: a constant one is divided by 1e-3, not by 0."""


def feature_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Masked mean squared error: sum over cells of mask x (mean over C of (s - t)^2) / sum of the mask.

    Source: the first stage of EdgeSAM (Zhou et al. 2023), whose mask leaves out the padding; without a mask MobileSAM's.

    Args:
        student, teacher: (B, C, h, w) float.
        mask: (B, h, w) bool, or weights of 0 or more of any scale; None: all cells.

    Returns:
        (B,), 0 or more; 0 where the mask is empty.
    """
    student, teacher = _wide(student, teacher)
    _require_shape("student's features", student, teacher.shape)
    return _masked_mean((student - teacher).square().mean(dim=1), mask)


def feature_cosine(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Masked mean of 1 - cosine of the two features of a cell (`cell_cosine`); arguments as of `feature_mse`.

    Returns:
        (B,) 0..2 but for rounding: 0 for the same directions, whatever their lengths; 0 where the mask is empty.
    """
    return _masked_mean(1 - cell_cosine(student, teacher), mask)


def cell_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cosine of the student's and the teacher's feature (B, C, h, w) in each cell: (B, h, w) -1..1.

    Two zeros agree: 1. A zero against something: 0. Lengths below 1e-4 count as 1e-4.
    """
    student, teacher = _wide(student, teacher)
    _require_shape("student's features", student, teacher.shape)
    both_zero = (student == 0).all(dim=1) & (teacher == 0).all(dim=1)
    return F.cosine_similarity(student, teacher, dim=1, eps=_SMALL_NORM).masked_fill(both_zero, 1.0)


def fgd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    fg: torch.Tensor,
    bg: torch.Tensor,
    edge: torch.Tensor | None = None,
    *,
    alpha_fg: float,
    beta_bg: float,
    alpha_edge: float = 0.0,
    gamma_mask: float = 0.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Focal distillation (FGD, Yang et al. 2022, equations 1-9), with an edge term after the seed's script.

    Attention of a feature x: S = h w softmax over cells of (mean over C of |x|) / T; A = C softmax over channels of (mean over
    cells of |x|) / T. With those of the teacher, w = alpha fg + beta bg + alpha_edge edge:

        sum over C, h, w of w S A (s - t)^2  +  gamma (sum |S_s - S_t| + sum |A_s - A_t|)

    The paper multiplies both features by the square roots of the weights and sums the squared differences: the same number.
    The global term is `GlobalContext`: it has parameters.

    Args:
        student, teacher: (B, C, h, w) float.
        fg, bg: (B, h, w) float, 0 or more, each of sum 1 in a picture; all zero (no object, nothing but objects): adds nothing.
        edge: like them (`cell_weights`). The seed's script gives shares of edge pixels that do not sum to 1 here, thousands of
            times heavier than its alphas say.
        alpha_fg, beta_bg, alpha_edge, gamma_mask: 0 or more.
        temperature: above 0.

    Returns:
        (B,), 0 or more. A sum over channels, not a mean: hence alphas of about 0.001.
    """
    student, teacher = _wide(student, teacher)
    _require_shape("student's features", student, teacher.shape)
    cells, channels = _attention(teacher, temperature)
    error = (channels[:, :, None, None] * (student - teacher).square()).sum(dim=1)
    weights = alpha_fg * _map_like(error, fg) + beta_bg * _map_like(error, bg)
    if edge is not None:
        weights = weights + alpha_edge * _map_like(error, edge)
    loss = (weights * cells * error).flatten(1).sum(dim=1)
    if gamma_mask == 0:
        return loss
    own_cells, own_channels = _attention(student, temperature)
    apart = (own_cells - cells).abs().flatten(1).sum(dim=1) + (own_channels - channels).abs().sum(dim=1)
    return loss + gamma_mask * apart


def fsdlike(
    student: torch.Tensor,
    teacher: torch.Tensor,
    fg: torch.Tensor,
    bg: torch.Tensor,
    edge: torch.Tensor | None = None,
    *,
    weight_fg: float,
    weight_bg: float,
    weight_edge: float = 0.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Where in the picture each channel is strong, as a distribution over cells: KL of the student's from the teacher's.

    For each map m of fg, bg, edge: both features are multiplied by sqrt(m S A) of the teacher (`fgd`), each channel of a
    picture is brought to mean 0 and variance 1 over its cells, p = softmax over cells; the term is the mean over channels of
    sum p_t (log p_t - log p_s), and its weight the map's.

    Source: the seed's FSD-like loss; the channel-wise KL is that of CWD (Shu et al. 2021). The seed normalises over the whole
    batch, so that pictures depend on one another; here each stands alone. Its Gaussian is left out: it looked for
    values above 0.5 in a map that sums to 1, found none, and put every object in the middle.

    Args:
        student, teacher, fg, bg, edge: as of `fgd`; of the maps only the proportions count. An all-zero map adds nothing.
        weight_fg, weight_bg, weight_edge: 0 or more.
        temperature: of the teacher's attention, above 0.

    Returns:
        (B,), 0 or more.
    """
    student, teacher = _wide(student, teacher)
    _require_shape("student's features", student, teacher.shape)
    cells, channels = _attention(teacher, temperature)
    terms = [(weight_fg, fg), (weight_bg, bg)] + ([(weight_edge, edge)] if edge is not None else [])
    loss = student.new_zeros(len(student))
    for weight, one in terms:
        shared = (channels[:, :, None, None] * (cells * _map_like(cells, one) * cells[0].numel())[:, None]).sqrt()
        found, wanted = _log_shares(student * shared), _log_shares(teacher * shared)
        loss = loss + weight * F.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=2).mean(dim=1)
    return loss


class GlobalContext(nn.Module):
    """The global term of FGD: both features with their context added (GcBlock, Cao et al. 2019), summed squared error.

        g(x) = x + W2 relu(norm(W1 sum over cells of softmax(Wk x) x)),  loss = sum over C, h, w of (g_s(s) - g_t(t))^2

    Student and teacher have a block each, and both learn, as in the paper; W2 begins at 0. It belongs to the model that is
    trained, as a submodule: in the seed's script it is made after the optimiser and never learns. Not needed after training.

    Args:
        channels: C of student and teacher.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.student, self.teacher = _Context(channels), _Context(channels)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Of (B, C, h, w) float each: (B,), 0 or more. FGD weighs it by about 5e-6."""
        student, teacher = _wide(student, teacher)
        _require_shape("student's features", student, teacher.shape)
        with torch.autocast(student.device.type, enabled=False):
            error: torch.Tensor = (self.student(student) - self.teacher(teacher)).square()
        return error.flatten(1).sum(dim=1)


def edge_loss(
    logits: torch.Tensor,
    edges: torch.Tensor,
    pos_weight: float | torch.Tensor | None = None,
    near: int | None = None,
) -> torch.Tensor:
    """0.5 binary cross-entropy + 0.5 Dice of edges (the seed's script; Dice with eps 1, see `dice_loss`).

    Args:
        logits: (B, 1, H, W) or (B, H, W) float.
        edges: (B, H, W) 0 or 1.
        pos_weight: what an edge pixel counts for in the cross-entropy: one number, or (B,) (`positive_weights`).
        near: side of a square, an odd number of pixels: only pixels within it around an edge count; None: all.

    Returns:
        (B,), 0 or more. With `near`, 0 for a picture without edges.
    """
    logits = _wide(logits.squeeze(1) if logits.ndim == 4 else logits)[0]
    _require_shape("logits of edges", logits, edges.shape)
    wanted = edges.to(logits.dtype)
    heavier = None if pos_weight is None else torch.as_tensor(pos_weight).to(logits).reshape(-1, 1, 1)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=heavier)
    region = None if near is None else dilated(edges, near)
    shares = logits.sigmoid() if region is None else logits.sigmoid() * region
    return 0.5 * _masked_mean(entropy, region) + 0.5 * dice_loss(shares.flatten(1), wanted.flatten(1))


def positive_weights(edges: torch.Tensor, near: int | None = None, limit: float = 20.0) -> torch.Tensor:
    """What an edge pixel of each picture must count for to balance the others: negatives / positives, 1..limit.

    Args:
        edges: (B, H, W) 0 or 1.
        near: only pixels near edges are counted, as in `edge_loss`.

    Returns:
        (B,) float32; `limit` for a picture without edges.
    """
    positives = (edges > 0).flatten(1).sum(dim=1).float()
    counted = edges[0].numel() if near is None else dilated(edges, near).flatten(1).sum(dim=1)
    return ((counted - positives) / positives.clamp(min=1)).clamp(1, limit).where(positives > 0, limit)


def mask_loss(logits: torch.Tensor, masks: torch.Tensor, *, bce_weight: float, dice_weight: float) -> torch.Tensor:
    """bce_weight x binary cross-entropy + dice_weight x Dice (eps 1) over all pixels of the mask.

    Args:
        logits: (B, h, w) float, of the frozen decoder on the student's features; brought to H x W, bilinear.
        masks: (B, H, W) 0 or 1.

    Returns:
        (B,), 0 or more.
    """
    logits = _wide(logits)[0]
    found = F.interpolate(logits[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    _require_shape("logits of masks", found, masks.shape)
    wanted = masks.to(found.dtype)
    entropy = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").flatten(1).mean(dim=1)
    return bce_weight * entropy + dice_weight * dice_loss(found.sigmoid().flatten(1), wanted.flatten(1))


def cell_weights(edges: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """How much of a picture's edges lies in each cell: (B, H, W) 0 or 1 -> (B, h, w) float32, each of sum 1, or all zero."""
    shares = F.adaptive_avg_pool2d(edges[:, None].float(), size_hw)[:, 0]
    total = shares.flatten(1).sum(dim=1)[:, None, None]
    return shares / total.where(total > 0, 1.0)


def dilated(edges: torch.Tensor, kernel: int) -> torch.Tensor:
    """Pixels with an edge in the kernel x kernel square around them: (B, H, W) 0 or 1 -> (B, H, W) bool. Kernel: odd."""
    if kernel < 1 or kernel % 2 != 1:
        raise UsageError(f"distillation: kernel around edges: expected an odd number of pixels, got {kernel}")
    return F.max_pool2d((edges > 0)[:, None].float(), kernel, stride=1, padding=kernel // 2)[:, 0] > 0


class _Context(nn.Module):
    """(B, C, h, w) and what attention over its cells found, added to every cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(1, channels // 2)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.add = nn.Sequential(
            nn.Linear(channels, middle), nn.LayerNorm(middle), nn.ReLU(), nn.Linear(middle, channels)
        )
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        for parameter in (self.mask.bias, *self.add[-1].parameters()):
            assert isinstance(parameter, torch.Tensor)
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        shares = self.mask(features).flatten(2).softmax(dim=2)
        context: torch.Tensor = self.add((features.flatten(2) * shares).sum(dim=2))
        return features + context[:, :, None, None]


def _attention(features: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, h, w) over cells and (B, C) over channels, each of mean 1."""
    strength = features.abs()
    by_cell = strength.mean(dim=1)
    by_channel = strength.flatten(2).mean(dim=2)
    cells = by_cell[0].numel() * (by_cell.flatten(1) / temperature).softmax(dim=1)
    return cells.view_as(by_cell), by_channel.shape[1] * (by_channel / temperature).softmax(dim=1)


def _log_shares(features: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to log-probabilities (B, C, h w) over the cells of each channel, normalised first."""
    centred = features.flatten(2) - features.flatten(2).mean(dim=2, keepdim=True)
    variance = centred.square().mean(dim=2, keepdim=True)
    return (centred * (variance + _SMALL_VARIANCE).rsqrt()).log_softmax(dim=2)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of (B, h, w) over the cells, weighted: (B,); 0 where all weights are 0."""
    if mask is None:
        return values.flatten(1).mean(dim=1)
    weights = _map_like(values, mask).flatten(1)
    total = weights.sum(dim=1)
    return (values.flatten(1) * weights).sum(dim=1) / total.where(total > 0, 1.0)


def _map_like(values: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """A map in the dtype of (B, h, w) values, of whose shape it must be."""
    _require_shape("map of weights", one, values.shape)
    return one.to(values.dtype)


def _wide(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In float32, or in float64 where one of them is."""
    dtype = torch.float64 if any(one.dtype == torch.float64 for one in tensors) else torch.float32
    return tuple(one.to(dtype) for one in tensors)


def _require_shape(name: str, got: torch.Tensor, expected: torch.Size) -> None:
    if got.shape != expected:
        raise UsageError(f"distillation: {name}: expected {tuple(expected)}, got {tuple(got.shape)}")
