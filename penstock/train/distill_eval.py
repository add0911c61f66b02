"""How good a student is on pictures that it was not trained on: by its features, its edges, and the masks of the frozen decoder.

B pictures, C channels, h x w cells.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from penstock.errors import UsageError
from penstock.loader import Loader
from penstock.models.decoders import masks_for, open_decoder, require_own
from penstock.models.distill_protocols import EDGE, MaskDecoder
from penstock.samplers import Epochs
from penstock.train.distill_config import DistillConfig
from penstock.train.distill_contract import EDGES, Contract, DistillData
from penstock.train.distill_metrics import EdgeScore, FeatureScore
from penstock.train.distributed import Ranks
from penstock.train.metrics import MaskScore
from penstock.train.pieces import on_device

_PREFETCH = 2
_ANY = 1 << 62
"""Reads that may fail: a held-out picture that cannot be read is left out."""
_log = logging.getLogger("penstock")

Predict = Callable[[Mapping[str, Any]], Mapping[str, torch.Tensor]]
"""A batch on the device to level name -> (B, C, h, w) float, and "edge" -> (B, 1, 256, 256) logits where there is a head."""


@dataclass(kw_only=True)
class MaskScores:
    """Masks of the frozen decoder, of the pictures that have a box and a mask."""

    student_gt: MaskScore = field(default_factory=MaskScore)
    teacher_gt: MaskScore = field(default_factory=MaskScore)
    student_teacher: MaskScore = field(default_factory=MaskScore)
    without_box: int = 0
    """Pictures without a box, or with an empty mask: nothing to judge by."""

    def take(
        self, decoder: MaskDecoder, student: torch.Tensor, teacher: torch.Tensor, batch: Mapping[str, Any]
    ) -> None:
        """Adds pictures: features (B, C, h, w) float of both; `image`, `box`, `mask`, `has_box` of the batch, on one device.
        Masks are compared at the size of `mask`."""
        masks = batch["mask"] > 0
        rows = (batch["has_box"].bool() & masks.flatten(1).any(dim=1)).nonzero().flatten()
        self.without_box += len(masks) - len(rows)
        if not len(rows):
            return
        wanted, boxes, side = masks[rows], batch["box"][rows], batch["image"].shape[-1]
        found, given = (masks_for(decoder, features[rows], boxes, side) for features in (student, teacher))
        self.student_gt.take(found, wanted)
        self.teacher_gt.take(given, wanted)
        given = F.interpolate(given[:, None], wanted.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        self.student_teacher.take(found, given > 0)

    def values(self, ranks: Ranks) -> dict[str, float]:
        """Mean IoU of each pair over all ranks, 0..1, two empty masks agree; NaN where no picture was judged."""
        total = {name: getattr(self, name).over(ranks) for name in ("student_gt", "teacher_gt", "student_teacher")}
        counted = ranks.sums({"without_box": self.without_box})
        return {f"miou_{name}": score.giou for name, score in total.items()} | counted


class HeldOutPictures:
    """Evaluates on held-out pictures: the same ones each time, each once, on any number of ranks.

    Args:
        data: something is held out.
        config: at most `val_samples` of them, drawn at random by `seed`; `batch_size` at a time on each rank, read by
            `num_workers` threads.
        decoder: see `decoder_of`.

    Attributes:
        samples: pictures, those that turn out to be unreadable too.
        headline: the metric to look at.

    Raises:
        UsageError: nothing is held out.
    """

    def __init__(self, data: DistillData, config: DistillConfig, decoder: MaskDecoder | None = None) -> None:
        if data.held is None:
            raise UsageError("distill: val_share: expected above 0 where a student is evaluated, got 0")
        self.source, self.level, self.config, self.decoder = data.held, data.level.name, config, decoder
        self.samples = min(config.val_samples, len(data.held))
        self.headline = "cosine" if decoder is None else "miou_student_gt"
        self._contract = Contract(data, config.seed)

    def evaluate(self, model: nn.Module, ranks: Ranks) -> dict[str, float]:
        """As `score`, of a student."""
        return self.score(lambda batch: model(batch["image"]), ranks)

    def score(self, predict: Predict, ranks: Ranks) -> dict[str, float]:
        """What `evaluate_features` says, and `unreadable`: pictures that are bad data, and so left out. All ranks call it.

        Raises:
            UsageError: as there.
            BadData, RowError, StoreCorrupt: no picture can be read.
        """
        bad: list[str] = []
        found = evaluate_features(predict, self.batches(ranks, bad), self.decoder, ranks, level=self.level)
        if bad:
            _log.warning("penstock: %d held-out pictures cannot be evaluated; the first: %s", len(bad), bad[0])
        return {**found, **ranks.sums({"unreadable": len(bad)})}

    def batches(self, ranks: Ranks, bad: list[str]) -> Iterator[dict[str, Any]]:
        """This rank's batches, as `Contract` makes them; keys of pictures that cannot be read are added to `bad`."""
        size, order = self.config.batch_size * ranks.world_size, Epochs(len(self.source), seed=self.config.seed)
        loader = Loader(
            self.source, batch_size=size, sampler=order, drop_last=False, output="torch", threads=self.config.num_workers,
            prefetch=_PREFETCH, rank=ranks.rank, world_size=ranks.world_size, errors="substitute", max_failures=_ANY,
            keys=True, pin=False,  # a copy from pinned memory may still run when the buffer takes another batch
        )  # fmt: skip
        try:
            for batch in islice(loader, -(-self.samples // size)):
                wanted = order.rows(batch.positions.start, batch.positions.stop).tolist()
                places = []
                for place, (position, row) in enumerate(zip(batch.positions, batch.rows.tolist(), strict=True)):
                    if position < self.samples and row == wanted[place]:
                        places.append(place)
                    elif position < self.samples:  # another row stands in for it
                        bad.append(self.source.keys[wanted[place]])
                if places:
                    yield _some(self._contract(batch), places)
        finally:
            loader.seek(0)  # ends its threads


def decoder_of(config: DistillConfig, data: DistillData, device: "str | torch.device") -> MaskDecoder | None:
    """The frozen decoder of the features' own teacher; None where the configuration names none.

    Raises:
        UsageError, SourceNotFound, BadData, MissingExtra: as `open_decoder` and `require_own`.
    """
    if config.decoder is None:
        return None
    decoder = open_decoder(config.decoder, device=device, level=data.level)
    require_own(decoder, data.level, data.teacher)
    return decoder


def evaluate_features(
    predict: Predict, batches: Iterable[Mapping[str, Any]], decoder: MaskDecoder | None, ranks: Ranks, *, level: str
) -> dict[str, float]:
    """The scores of whatever predicts features, a student or a baseline, over all ranks.

    Args:
        predict: see `Predict`.
        batches: of this rank, arrays or tensors anywhere, as `Contract` makes them: the level; `edge_256x256` where edges are
            scored; `image`, `box`, `mask` and `has_box` where there is a decoder. Each picture is in one batch of one rank;
            a rank may have none.
        decoder: of the teacher, on the ranks' device; None: masks are not judged.
        ranks: all of them call it, and get the same.
        level: `P4_S16`.

    Returns:
        samples: pictures. What `FeatureScore.values` says; where `predict` gives edges and the batches have them, what
        `EdgeScore.values` says; with a decoder miou_student_gt, miou_teacher_gt (the ceiling: no student is meant to pass
        it), miou_student_teacher, means over the pictures with a box and a mask that is not empty, and `without_box`, the
        number of the others. What is not defined is NaN.

    Raises:
        UsageError: features of another shape than the teacher's, or than the decoder takes.
    """
    features, edges, masks = FeatureScore(), EdgeScore(), MaskScores()
    with torch.no_grad():
        for each in batches:
            batch = on_device(each, ranks.device)
            found, teacher = predict(batch), batch[level].float()
            features.take(found[level], teacher)
            if EDGE in found and EDGES in batch:
                edges.take(found[EDGE], batch[EDGES])
            if decoder is not None:
                masks.take(decoder, found[level], teacher, batch)
    features, edges = features.over(ranks), edges.over(ranks)
    return {
        "samples": float(features.samples),
        **features.values(),
        **(edges.values() if edges.samples else {}),
        **(masks.values(ranks) if decoder is not None else {}),
    }


def _some(batch: Mapping[str, Any], places: list[int]) -> dict[str, Any]:
    """Some samples of a batch; a view of it where they are all."""
    if len(places) == len(batch["key"]):
        return dict(batch)
    return {
        name: value[places] if isinstance(value, torch.Tensor) else [value[place] for place in places]
        for name, value in batch.items()
    }
