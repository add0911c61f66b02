"""Distillation: a student's features, edges and masks against a teacher's. An objective for the trainer.

B pictures of S x S pixels; features (B, C, h, w); see `DistillBatches` for the batch.
"""

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from penstock.models.decoders import masks_for
from penstock.models.distill_protocols import EDGE, MaskDecoder
from penstock.train.distill_config import DistillConfig
from penstock.train.distill_losses import (
    GlobalContext,
    cell_weights,
    edge_loss,
    feature_cosine,
    feature_mse,
    fgd,
    fsdlike,
    mask_loss,
    positive_weights,
)
from penstock.train.objective import Losses

FEATURE, MASK = "feature", "mask"
_log = logging.getLogger("penstock")


class DistillModel(nn.Module):
    """What is trained: the student, and what its losses learn with it.

    Args:
        student: as of `penstock.models.students.open_student`.
        context: the global term of FGD; None where it has no weight.
        decoder: a `MaskDecoder` whose weights are trained from an epoch on; None where it stays frozen.
    """

    def __init__(
        self, student: nn.Module, *, context: GlobalContext | None = None, decoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.context = context
        self.decoder = decoder

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The student's outputs for (B, 3, S, S) uint8 or float 0..255: level name -> (B, C, h, w), "edge" -> logits."""
        found: dict[str, torch.Tensor] = self.student(image)
        return found


class Distill:
    """feat_weight x distillation + edge_weight x edges + mask_weight x masks, each from the epoch it starts in.

    Args:
        config: weights, kinds, first epochs.
        steps_per_epoch: from which the epoch of a step follows; epochs are counted from 1.
        decoder: the frozen one, with `enable_mask_loss`.
    """

    def __init__(self, config: DistillConfig, *, steps_per_epoch: int, decoder: MaskDecoder | None = None) -> None:
        self.config, self.steps_per_epoch, self.decoder = config, steps_per_epoch, decoder
        self.epoch: int | None = None
        """None: every loss counts, as when one batch is tried."""
        later = {
            "edge_task_start_epoch": EDGE in self._names,
            "edge_mask_start_epoch": EDGE in self._names and config.enable_edge_mask_progressive,
            "mask_task_start_epoch": MASK in self._names,
            "mask_head_unfreeze_epoch": MASK in self._names and config.mask_head_unfreeze_epoch is not None,
        }
        for name, is_used in later.items():
            if is_used and getattr(config, name) > config.epochs:
                _log.warning(
                    "penstock: %s is %d and there are %d epochs: what it begins never comes",
                    name, getattr(config, name), config.epochs,
                )  # fmt: skip

    @property
    def _names(self) -> list[str]:
        config = self.config
        asked = {FEATURE: config.feat_weight > 0, EDGE: config.edge_weight > 0, MASK: config.enable_mask_loss}
        return [name for name, is_asked in asked.items() if is_asked]

    @property
    def weights(self) -> dict[str, float]:
        """Of each loss, now."""
        config = self.config
        found = {FEATURE: config.feat_weight, EDGE: config.edge_weight, MASK: config.mask_weight}
        return {name: found[name] * self._has_begun(name) for name in self._names}

    def begin(self, step: int) -> None:
        """The trainer's: update number `step`, from 0, comes next."""
        self.epoch = step // self.steps_per_epoch + 1

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """All pictures; of masks those with a box."""
        return {
            name: float(batch["has_box"].sum()) if name == MASK else float(len(batch["image"])) for name in self._names
        }

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Losses:
        """The losses of a batch."""
        whole = cast(DistillModel, model)
        found = whole(batch["image"])
        each = {FEATURE: self._feature, EDGE: self._edge, MASK: self._mask}
        values = {name: each[name](whole, found, batch) for name in self._names}
        weights = self.weights
        total = torch.stack([weights[name] * value.detach().float() for name, value in values.items()]).sum(dim=0)
        return Losses(sums={name: value.sum() for name, value in values.items()}, per_sample=total)

    def _has_begun(self, name: str) -> bool:
        first = {EDGE: self.config.edge_task_start_epoch, MASK: self.config.mask_task_start_epoch}
        return self.epoch is None or self.epoch >= first.get(name, 1)

    def _feature(
        self, model: DistillModel, found: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
    ) -> torch.Tensor:
        config = self.config
        student, teacher = found[config.level], batch[config.level]
        if config.loss_type in ("mse", "cosine"):
            mask = batch["fg_map"] > 0 if config.feat_mask == "objects" else None
            return (feature_mse if config.loss_type == "mse" else feature_cosine)(student, teacher, mask)
        size = (student.shape[-2], student.shape[-1])
        edge = cell_weights(batch["edge_256x256"], size) if config.enable_edge_boost else None
        if config.loss_type == "fsdlike":
            return fsdlike(
                student, teacher, batch["fg_map"], batch["bg_map"], edge, weight_fg=config.fsd_weight_fg,
                weight_bg=config.fsd_weight_bg, weight_edge=config.fsd_weight_fg, temperature=config.fsd_temperature,
            )  # fmt: skip
        value = fgd(
            student, teacher, batch["fg_map"], batch["bg_map"], edge, alpha_fg=config.fgd_alpha_fg,
            beta_bg=config.fgd_beta_bg, alpha_edge=config.fgd_alpha_edge, gamma_mask=config.fgd_gamma_mask,
            temperature=config.fgd_temperature,
        )  # fmt: skip
        if model.context is not None:
            value = value + config.fgd_lambda_rela * model.context(student, teacher)
        return value

    def _edge(self, model: DistillModel, found: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> torch.Tensor:
        config = self.config
        logits, edges = found[EDGE], batch["edge_256x256"]
        is_near = config.enable_edge_mask_progressive and (
            self.epoch is None or self.epoch >= config.edge_mask_start_epoch
        )
        near = config.edge_mask_kernel_size if is_near else None
        balance = positive_weights(edges, near) if config.use_pos_weight else None
        return edge_loss(logits, edges, balance, near)

    def _mask(self, model: DistillModel, found: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> torch.Tensor:
        student, has_box = found[self.config.level], batch["has_box"].bool()
        nothing = student.flatten(1).sum(dim=1).float() * 0.0
        if not self._has_begun(MASK) or not bool(has_box.any()):
            return nothing  # connected to the student, and no decoder runs for it
        decoder = self._decoder(model)
        logits = masks_for(decoder, student[has_box], batch["box"][has_box], batch["image"].shape[-1])
        value = mask_loss(
            logits, batch["mask"][has_box], bce_weight=self.config.mask_bce_weight,
            dice_weight=self.config.mask_dice_weight,
        )  # fmt: skip
        return nothing.index_put((has_box.nonzero()[:, 0],), value, accumulate=True)

    def _decoder(self, model: DistillModel) -> MaskDecoder:
        first = self.config.mask_head_unfreeze_epoch
        if model.decoder is not None and first is not None and (self.epoch is None or self.epoch >= first):
            return cast(MaskDecoder, model.decoder)
        assert self.decoder is not None  # `enable_mask_loss` needs one
        return self.decoder
