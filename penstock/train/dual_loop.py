"""The dual loop: mask to caption on one view, caption to mask on the other. An objective for the trainer.

B pictures, H x W pixels, h x w logits.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from torch import nn

from penstock.errors import BudgetExceeded, UsageError
from penstock.models.caption_protocols import Captioner, FoundMasks, Segmenter, SoftCaptioner
from penstock.train.losses import POINTS, mask_losses
from penstock.train.metrics import MaskScore
from penstock.train.objective import Losses

Mode = Literal["pseudo", "truth", "cached", "soft"]
_log = logging.getLogger(__name__)


class CycleModule(Captioner, Segmenter, Protocol):
    """A module that does both."""


@dataclass(frozen=True, kw_only=True)
class DualLoopSettings:
    """What is trained on what.

    Raises:
        UsageError: a number is out of range.
    """

    captions: Mode = "pseudo"
    """Where the caption comes from that view 2 is searched by. "pseudo": the captioner's own words on view 1, without a
    gradient; "truth": the sample's caption, where it has one, else pseudo; "cached": made offline, by the key of view 1;
    "soft": the captioner's words as straight-through tokens, so that the mask loss reaches it."""
    bce: float = 2.0
    dice: float = 0.5
    language: float = 1.0
    """Weight of the words' cross-entropy: the captioner's on given captions, and (as `answer`) the segmenter's answer."""
    points: int = POINTS
    same_picture: bool = False
    """View 1 is used for both: what the original did, for showing what it costs."""
    max_empty: float = 0.5
    """Share of empty captions, over `window` samples, from which training stops: a captioner that says nothing."""
    window: int = 1000

    def __post_init__(self) -> None:
        weights = (self.bce, self.dice, self.language)
        if self.captions not in get_args(Mode) or min(weights) < 0 or self.points < 1 or self.window < 1:
            raise UsageError(f"DualLoopSettings: expected a mode of {get_args(Mode)}, weights of 0 or more, got {self}")
        if not 0 < self.max_empty <= 1:
            raise UsageError(f"DualLoopSettings: max_empty: expected above 0 and up to 1, got {self.max_empty}")


class DualLoop:
    """One step: words for (image1, mask1), the mask of those words on image2, its loss against mask2.

    For a sample without a pair view 2 is view 1. Images are uint8 (B, H, W, 3) RGB in a batch, and float32 (B, 3, H, W) of
    0..1 for the models. A caption that is empty is no caption: its mask has no loss, it is counted, and too many of
    them stop the training. Source: the original's `train_dual_loop.py`, as far as its document describes it.

    Args:
        settings: see there.
        cache: with captions="cached": gives the caption of a key, "" where there is none.

    Raises:
        UsageError: captions="cached" without a cache, or a cache without it.
    """

    def __init__(self, settings: DualLoopSettings, *, cache: Callable[[str], str] | None = None) -> None:
        if (cache is not None) != (settings.captions == "cached"):
            raise UsageError(
                f"DualLoop: captions={settings.captions!r}: a cache belongs to 'cached' and to nothing else"
            )
        self.settings, self.cache = settings, cache
        self.weights = {
            "bce": settings.bce, "dice": settings.dice, "language": settings.language, "answer": settings.language
        }  # fmt: skip
        self.heard = self.empty = 0
        """Captions so far, on this rank, and how many of them were empty."""
        self._model: nn.Module | None = None
        self._before = (0, 0)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Masks and answers: every sample. Language: the samples with a caption of their own."""
        count = float(len(batch["image1"]))
        return {"bce": count, "dice": count, "language": float(sum(_spoken(batch["caption"]))), "answer": count}

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Losses:
        """The losses of a batch of `MixLoader`.

        Raises:
            BudgetExceeded: too many captions were empty.
        """
        self._model = model
        images1, masks1 = as_pictures(batch["image1"]), batch["mask1"].float()
        images2, masks2 = as_pictures(batch["image2"]), batch["mask2"].float()
        if self.settings.same_picture:
            images2, masks2 = images1, masks1
        return self._step((images1, masks1, images2, masks2), batch)

    def dual_loop_step(
        self, images1: torch.Tensor, masks1: torch.Tensor, images2: torch.Tensor, masks2: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The original's step: losses by name, and their weighted sum as `loss`, averaged over the batch.

        Args:
            images1, images2: (B, 3, H, W) float32 0..1 RGB.
            masks1, masks2: (B, H, W) 0 or 1.

        Raises:
            UsageError: the loop has no model yet: call `use(model)`.
        """
        losses = self._step((images1, masks1, images2, masks2), {})
        found = {name: value / len(images1) for name, value in losses.sums.items()}
        return {**found, "loss": torch.stack([self.weights[name] * value for name, value in found.items()]).sum()}

    def use(self, model: nn.Module) -> "DualLoop":
        """The model that `dual_loop_step` and its parts work with; gives itself."""
        self._model = model
        return self

    def generate_caption_from_mask(self, images: torch.Tensor, masks: torch.Tensor) -> list[str]:
        """The captioner's words for each mask, without a gradient; "" where it says nothing. No constant stands in."""
        with torch.no_grad():
            return cast(Captioner, self._given()).captions(images, masks)

    def compute_segmentation_loss(
        self,
        images: torch.Tensor,
        captions: Sequence[str] | torch.Tensor,
        masks: torch.Tensor,
        *,
        seeds: Sequence[int] | np.ndarray | None = None,
    ) -> tuple[dict[str, torch.Tensor], FoundMasks]:
        """Losses (B,) of the masks of captions: bce, dice, answer; and what was found.

        Args:
            images: (B, 3, H, W).
            captions: B texts, or soft words (B, L, V).
            masks: (B, H, W) of the truth.
            seeds: of the sampled points; None: drawn by torch's generator.
        """
        found = cast(Segmenter, self._given()).segment(images, captions, masks)
        seeds = torch.randint(1 << 62, (len(images),)).numpy() if seeds is None else seeds
        bce, dice = mask_losses(found.logits, masks, seeds, self.settings.points)
        answer = torch.zeros_like(bce) if found.answer_loss is None else found.answer_loss
        return {"bce": bce, "dice": dice, "answer": answer}, found

    def _step(self, views: tuple[torch.Tensor, ...], batch: Mapping[str, Any]) -> Losses:
        images1, masks1, images2, masks2 = views
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("Using images1.shape=%s, images2.shape=%s", tuple(images1.shape), tuple(images2.shape))
            _log.debug("Same image? %s", torch.equal(images1, images2))
        texts = list(batch.get("caption", [""] * len(images1)))
        captions, said = self._captions(images1, masks1, texts, batch)
        spoken = torch.tensor(_spoken(said), device=images1.device)
        self._count(len(said), int((~spoken).sum()))
        losses, found = self.compute_segmentation_loss(images2, captions, masks2, seeds=_seeds(batch))
        taught = cast(Captioner, self._given()).caption_loss(images1, masks1, texts)
        each = {
            "language": taught,
            **{name: value if name == "answer" else value * spoken for name, value in losses.items()},
        }
        total = torch.stack([self.weights[name] * value.float() for name, value in each.items()]).sum(dim=0)
        heard = float(spoken.sum())
        return Losses(
            sums={name: value.sum() for name, value in each.items()},
            per_sample=total.detach(),
            metrics={"empty_captions": len(said) - heard, "no_mask": float((~found.has_mask).sum())},
            having={"bce": heard, "dice": heard, "answer": 0.0 if found.answer_loss is None else heard},
        )

    def _captions(
        self, images: torch.Tensor, masks: torch.Tensor, texts: list[str], batch: Mapping[str, Any]
    ) -> tuple[list[str] | torch.Tensor, list[str]]:
        """What the segmenter hears, and the same as texts."""
        mode = self.settings.captions
        if mode == "cached":
            assert self.cache is not None
            said = [self.cache(key) for key in batch["key1"]]
            return said, said
        if mode == "truth" and all(_spoken(texts)):
            return texts, texts
        own = self.generate_caption_from_mask(images, masks)
        if mode == "soft":
            return cast(SoftCaptioner, self._given()).soft_captions(images, masks), own
        if mode == "truth":
            own = [text if text.strip() else mine for text, mine in zip(texts, own, strict=True)]
        return own, own

    def _count(self, seen: int, empty: int) -> None:
        self.heard, self.empty = self.heard + seen, self.empty + empty
        window = self.heard - self._before[0]
        if window < self.settings.window:
            return
        share, self._before = (self.empty - self._before[1]) / window, (self.heard, self.empty)
        if share > self.settings.max_empty:
            why = "the captioner says nothing: look at its words, its weights, its prompt"
            if self.settings.captions == "cached":
                why = "the cache has none for these samples: look at its keys"
            raise BudgetExceeded(
                f"dual loop: {share:.0%} of the last {window} captions were empty, more than max_empty="
                f"{self.settings.max_empty:.0%}; {why}"
            )

    def _given(self) -> nn.Module:
        if self._model is None:
            raise UsageError("DualLoop: no model yet; call use(model) first")
        return self._model


def evaluate_dual_loop(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], *, cache: Callable[[str], str] | None = None
) -> dict[str, MaskScore]:
    """How well captions of view 1 find their object, and whether it is the caption that finds it.

    Args:
        model: captioner and segmenter, in eval mode.
        batches: of `MixLoader` or like them; tensors or arrays.
        cache: gives the captions by the key of view 1; None: the model's own.

    Returns:
        same: on view 1 itself. cross: on view 2 of the samples that are pairs: the number to look at. shuffled: on view 2
        with the caption of another pair of the batch, where there is one. empty: on view 2 with no caption. Sums: add them
        over ranks.
    """
    both = cast(CycleModule, model)
    device = next(model.parameters()).device
    scores = {name: MaskScore() for name in ("same", "cross", "shuffled", "empty")}
    with torch.no_grad():
        for batch in batches:
            images1, images2 = (as_pictures(batch[name]).to(device) for name in ("image1", "image2"))
            masks1, masks2 = (torch.as_tensor(np.asarray(batch[name])).to(device) for name in ("mask1", "mask2"))
            captions = both.captions(images1, masks1) if cache is None else [cache(key) for key in batch["key1"]]
            scores["same"].take(both.segment(images1, captions).logits, masks1)
            pairs = torch.as_tensor(np.asarray(batch["is_pair"])).nonzero().flatten().tolist()
            if not pairs:
                continue
            images2, masks2, mine = images2[pairs], masks2[pairs], [captions[number] for number in pairs]
            heard = {"cross": mine, "empty": [""] * len(mine)}
            if len(mine) > 1:
                heard["shuffled"] = mine[1:] + mine[:1]
            for name, words in heard.items():
                scores[name].take(both.segment(images2, words).logits, masks2)
    return scores


def as_pictures(images: Any) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB, array or tensor, to (B, 3, H, W) float32 0..1."""
    return (
        torch.as_tensor(np.asarray(images) if isinstance(images, np.ndarray) else images).movedim(-1, 1).float() / 255
    )


def _spoken(texts: Sequence[str]) -> list[bool]:
    """Which of the captions say something."""
    return [bool(text.strip()) for text in texts]


def _seeds(batch: Mapping[str, Any]) -> np.ndarray | None:
    return (
        np.asarray(batch["seed"].cpu() if isinstance(batch["seed"], torch.Tensor) else batch["seed"])
        if "seed" in batch
        else None
    )
