"""How near a student's features and edges are to the teacher's, in float64 sums that add up over batches and ranks.

B pictures, C channels, h x w cells, H x W pixels. Sums are taken picture by picture, in order: however the same pictures are
cut into batches, the totals are the same to the last bit. Over ranks they differ by rounding alone.
"""

import math
from dataclasses import dataclass, field
from typing import Self

import torch

from penstock.errors import UsageError
from penstock.train.distill_losses import cell_cosine, dilated
from penstock.train.distributed import Ranks

_CONSTANT = 1e-10
"""Variance below this share of the mean square is rounding: the channel is constant."""


@dataclass(kw_only=True)
class _Sums:
    """Named sums on the device where they were taken; none before the first picture."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def over(self, ranks: Ranks) -> Self:
        """Of all ranks together, on the CPU; a picture must not be on two of them, a rank may have none. All ranks call it."""
        total: dict[str, torch.Tensor] = {}
        for part in ranks.gathered({name: value.cpu().numpy() for name, value in self.sums.items()}):
            assert isinstance(part, dict)
            for name, value in part.items():
                found = torch.from_numpy(value)
                total[name] = total[name] + found if name in total else found.clone()
        return type(self)(sums=total)

    @property
    def samples(self) -> int:
        """Pictures taken."""
        return int(self.sums["samples"]) if self.sums else 0

    def _begin(self, like: torch.Tensor, **shapes: tuple[int, ...]) -> None:
        if not self.sums:
            self.sums = {
                name: torch.zeros(shape, dtype=torch.float64, device=like.device) for name, shape in shapes.items()
            }


@dataclass(kw_only=True)
class FeatureScore(_Sums):
    """A student's features against the teacher's.

    Costs 6 C^2 floating-point operations a cell in float64: 6.4e9 for a picture of 256 x 64 x 64.
    """

    def take(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        """Adds pictures: features (B, C, h, w) float of any precision, on one device.

        Raises:
            UsageError: student and teacher differ in shape.
        """
        if student.shape != teacher.shape:
            raise UsageError(
                f"FeatureScore: student's features: expected {tuple(teacher.shape)}, got {tuple(student.shape)}"
            )
        channels = teacher.shape[1]
        square = (channels, channels)
        self._begin(
            teacher, samples=(), cells=(), cosine=(), squared=(), absolute=(),
            student=(channels,), teacher=(channels,), student_student=square, teacher_teacher=square, student_teacher=square,
        )  # fmt: skip
        for one, other in zip(student.detach(), teacher.detach(), strict=True):
            self._take_picture(one.double(), other.double())

    def _take_picture(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        found, wanted = student.flatten(1), teacher.flatten(1)
        sums, apart = self.sums, found - wanted
        sums["samples"] += 1
        sums["cells"] += wanted.shape[1]
        sums["cosine"] += cell_cosine(student[None], teacher[None]).sum()
        sums["squared"] += apart.square().sum()
        sums["absolute"] += apart.abs().sum()
        sums["student"] += found.sum(dim=1)
        sums["teacher"] += wanted.sum(dim=1)
        sums["student_student"].addmm_(found, found.T)
        sums["teacher_teacher"].addmm_(wanted, wanted.T)
        sums["student_teacher"].addmm_(found, wanted.T)

    def values(self) -> dict[str, float]:
        """The scores of all pictures so far; NaN without pictures, and where it is said.

        Returns:
            cosine: mean over cells of the cosine of student's and teacher's feature, -1..1 (`cell_cosine`).
            mse, mae: mean squared and mean absolute error over cells and channels.
            mean_shift: mean over channels of |student's mean - teacher's mean| / teacher's standard deviation; 0 is best.
            std_ratio: mean over channels of student's / teacher's standard deviation; 1 is best, below it features are too flat.
                Both leave out channels in which the teacher is constant; NaN if it is in all.
            cka: linear CKA (Kornblith et al. 2019), 0..1. With X, Y the centred features (n, C) of all n cells of all pictures:
                ||X^T Y||^2 / (||X^T X|| ||Y^T Y||), Frobenius. X^T Y is the sum of the x y^T less n times the product of the
                means, so that it is exact over batches. Rotations, and one scale for all channels, do not change it. NaN if
                one of the two is constant.
        """
        names = ("cosine", "mse", "mae", "mean_shift", "std_ratio", "cka")
        if not self.sums:
            return dict.fromkeys(names, math.nan)
        sums = {name: value.cpu() for name, value in self.sums.items()}
        cells, channels = float(sums["cells"]), len(sums["teacher"])
        student, teacher = sums["student"] / cells, sums["teacher"] / cells
        own = _covariance(sums["student_student"] / cells, student, student)
        theirs = _covariance(sums["teacher_teacher"] / cells, teacher, teacher)
        both = _covariance(sums["student_teacher"] / cells, student, teacher)
        varies = theirs.diag() > _CONSTANT * sums["teacher_teacher"].diag() / cells
        spread = theirs.diag()[varies].sqrt()
        own_spread = own.diag()[varies].clamp(min=0).sqrt()
        is_constant = any(
            float(one.trace()) <= _CONSTANT * float(sums[name].trace()) / cells
            for one, name in ((own, "student_student"), (theirs, "teacher_teacher"))
        )
        cka = math.nan if is_constant else float(both.square().sum() / (own.norm() * theirs.norm()))
        found = (
            float(sums["cosine"]) / cells,
            float(sums["squared"]) / (cells * channels),
            float(sums["absolute"]) / (cells * channels),
            float(((student - teacher)[varies].abs() / spread).mean()),
            float((own_spread / spread).mean()),
            cka,
        )
        return dict(zip(names, found, strict=True))


@dataclass(kw_only=True)
class EdgeScore:
    """Edge pixels found against those wanted: counts."""

    samples: float = 0.0
    found: float = 0.0
    wanted: float = 0.0
    both: float = 0.0
    """Found and wanted at the same pixel."""
    found_near: float = 0.0
    """Found, and one is wanted there or at one of the 8 pixels around it."""
    wanted_near: float = 0.0
    """Wanted, and one is found there or at one of the 8 pixels around it."""

    def take(self, logits: torch.Tensor, edges: torch.Tensor) -> None:
        """Adds pictures: logits (B, 1, H, W) or (B, H, W), found where the probability is above 0.5; edges (B, H, W) 0 or 1.

        Raises:
            UsageError: they differ in shape.
        """
        found, wanted = (logits.squeeze(1) if logits.ndim == 4 else logits) > 0, edges > 0
        if found.shape != wanted.shape:
            raise UsageError(f"EdgeScore: logits: expected {tuple(wanted.shape)}, got {tuple(found.shape)}")
        self.samples += len(wanted)
        self.found += float(found.sum())
        self.wanted += float(wanted.sum())
        self.both += float((found & wanted).sum())
        self.found_near += float((found & dilated(wanted, 3)).sum())
        self.wanted_near += float((wanted & dilated(found, 3)).sum())

    def over(self, ranks: Ranks) -> "EdgeScore":
        """Of all ranks together; a picture must not be on two of them."""
        return EdgeScore(**ranks.sums(vars(self)))

    def values(self) -> dict[str, float]:
        """The scores over all pixels of all pictures, 0..1.

        Returns:
            edge_precision, edge_recall: share of the found pixels that are wanted, of the wanted ones that are found; NaN
                where nothing is found, where nothing is wanted. edge_f1: 2 P R / (P + R); 0 where one of the two has edges
                and the other none, NaN where neither has. The same with `_near`: a pixel of tolerance, each pixel by itself (no
                one-to-one matching).
        """
        exact = _rates(self.both, self.found, self.both, self.wanted)
        near = _rates(self.found_near, self.found, self.wanted_near, self.wanted)
        names = ("edge_precision", "edge_recall", "edge_f1")
        return dict(zip((*names, *(f"{name}_near" for name in names)), (*exact, *near), strict=True))


@dataclass(kw_only=True)
class MeanFeature(_Sums):
    """The teacher's mean feature map over training pictures: what a student that sees nothing would say. A baseline."""

    def take(self, teacher: torch.Tensor) -> None:
        """Adds pictures: the teacher's features (B, C, h, w), float of any precision."""
        self._begin(teacher, samples=(), feature=tuple(teacher.shape[1:]))
        for one in teacher.detach():
            self.sums["samples"] += 1
            self.sums["feature"] += one

    def predict(self, count: int) -> torch.Tensor:
        """The mean for so many pictures: (count, C, h, w) float32, one memory for all of them.

        Raises:
            UsageError: no picture was taken.
        """
        if not self.sums:
            raise UsageError("MeanFeature: expected at least one picture of the training rows, got none")
        mean = (self.sums["feature"] / self.sums["samples"]).float()
        return mean.expand(count, *mean.shape)


def _covariance(product: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(C, C) of the mean product and the means (C,)."""
    return product - torch.outer(one, other)


def _rates(right: float, found: float, met: float, wanted: float) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean."""
    precision = right / found if found else math.nan
    recall = met / wanted if wanted else math.nan
    if right > 0 and met > 0:
        return precision, recall, 2 * precision * recall / (precision + recall)
    return precision, recall, 0.0 if found or wanted else math.nan
