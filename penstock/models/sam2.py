"""SAM2 and SAM2.1 as a proposer, by transformers' `Sam2Model`; weights of Meta's or of transformers, or random ones."""

import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.models.opened import require_torch, torch_device
from penstock.models.sam2_config import config_facts
from penstock.models.sam2_memory import in_chunks
from penstock.models.sam2_pixels import cut_masks, model_pixels
from penstock.models.sam2_weights import Sam2Weights, build, open_weights
from penstock.refining.proposals import box_nms, cleaned, filtered, from_masks, joined
from penstock.refining.types import Frame, Prompts, Proposals

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

VERSION = 1
"""Of this code, in the identity: goes up when masks change."""

_PIXELS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Of full-size masks that are held at once, by device: on a CPU what stays in warm memory, on a GPU 256 MB of float32."""

_Result = TypeVar("_Result")
_log = logging.getLogger("penstock")


@dataclass(frozen=True, kw_only=True)
class AutomaticMasks:
    """Which masks from points are kept: SAM's rule, with the original's values (reference 2.2)."""

    pred_iou_thresh: float = 0.7
    """0..1. The IoU that the model predicts has to be above."""
    stability_score_thresh: float = 0.5
    """0..1. Of the masks cut at +offset and -offset, the IoU has to be as much."""
    stability_score_offset: float = 1.0
    """In logits."""
    box_nms_thresh: float = 0.7
    """0..1. Of two masks whose boxes overlap by more (IoU), the better one stays."""
    min_mask_region_area: int = 100
    """Holes and islands below so many pixels of the picture go, as in the first SAM; SAM2's own generator counts them on
    the mask of 256 x 256. 0: none."""


@dataclass(frozen=True, kw_only=True)
class Sam2Options:
    """What `Sam2Proposer` is made of; see `open_weights` for the first three."""

    model_cfg: str = "sam2_hiera_l.yaml"
    checkpoint: Path | None = None
    download: bool = False
    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"."""
    points_per_batch: int = 64
    """Prompts decoded together to begin with; halved where memory is short."""
    oom_to_cpu: bool = False
    """What does not fit into the GPU even one by one is done on the CPU; otherwise the frame fails."""
    automatic: AutomaticMasks = AutomaticMasks()


class Sam2Proposer:
    """A `Proposer` over SAM2: pictures encoded in batches, the prompts of a frame decoded in batches.

    bf16 on a GPU that has it, float32 elsewhere; prompts are always encoded in float32, in bf16 a coordinate would be
    off by pixels. Pickles without the weights; where it is used again it reads them, and refuses others than before.
    """

    def __init__(self, options: Sam2Options, *, lazy: bool = False) -> None:
        """Reads the weights and checks them.

        Args:
            options: see there.
            lazy: build the model only when a picture comes.

        Raises:
            UsageError, SourceNotFound, BadData, MissingExtra: see `open_weights`; or no such device.
        """
        if options.points_per_batch < 1:
            raise UsageError(f"points-per-batch: expected 1 or more, got {options.points_per_batch}")
        require_torch("transformers")
        self.device = torch_device(options.device)
        self.points_per_batch = options.points_per_batch
        self.options = options
        self._network: Any = None
        self._where = self.device
        self._frames_per_batch: int | None = None
        weights = self._read()
        self._digest = weights.digest
        self._precision = _precision(self.device)
        self.image_size = int(weights.config.prompt_encoder_config.image_size)
        """Side of the square that the model sees, in pixels."""
        self._facts = {**config_facts(weights.config), **({"random_weights": True} if weights.is_random else {})}
        if not lazy:
            self._build(weights)

    def identity(self) -> dict[str, object]:
        """Hash of the weights, architecture, precision, thresholds; `random_weights` where masks mean nothing."""
        return {
            "proposer": "sam2",
            "version": VERSION,
            "weights": self._digest,
            "precision": self._precision,
            **asdict(self.options.automatic),
            **self._facts,
        }

    def encode(self, frames: Sequence[Frame]) -> list["Sam2Encoded"]:
        """Looks at frames, in one batch where memory allows.

        Raises:
            BadData: a picture is none, is not of its map's size, or does not fit into memory.
        """
        for frame in frames:
            if frame.image.shape[:2] != frame.objects.size_hw:
                found = f"a picture of {frame.image.shape[:2]} and an id map of {frame.objects.size_hw}"
                raise BadData(f"{frame.key}: expected one height and width, got {found}")

        def work(chunk: slice) -> "list[list[torch.Tensor]]":
            return self._features([frame.image for frame in frames[chunk]])

        limit = self._frames_per_batch or len(frames)
        chunks, size = in_chunks(
            len(frames),
            limit,
            work,
            lambda chunk, reason: self._on_cpu(lambda: work(chunk), "one picture", reason),
            "pictures",
        )
        self._frames_per_batch = size if size < limit else self._frames_per_batch
        features = [each for chunk in chunks for each in chunk]
        return [Sam2Encoded(self, frame, each) for frame, each in zip(frames, features, strict=True)]

    def decode(
        self, features: "list[torch.Tensor]", asked: "Asked", size_hw: tuple[int, int], *, above: float | None = None
    ) -> Proposals:
        """The masks of all prompts of a frame, several to a prompt; empty ones are dropped.

        Args:
            features: of the frame, as `encode` keeps them.
            asked: the prompts.
            size_hw: of the picture.
            above: the IoU that the model predicts has to be above this; what is not is never stretched to the picture.

        Raises:
            BadData: not even one prompt fits into memory.
        """

        def work(chunk: slice) -> list[Proposals]:
            return self._masks(features, asked.part(chunk), size_hw, above)

        parts, self.points_per_batch = in_chunks(
            len(asked.ids),
            self.points_per_batch,
            work,
            lambda chunk, reason: self._on_cpu(lambda: work(chunk), "one prompt", reason),
            "prompts",
        )
        return joined([from_masks(size_hw, []), *(masks for part in parts for masks in part)])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_network": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        require_torch("transformers")  # at once: who keeps torch to one thread, does so with one that is loaded

    def _read(self) -> Sam2Weights:
        options = self.options
        return open_weights(options.model_cfg, options.checkpoint, download=options.download)

    def _ready(self) -> Any:
        if self._network is None:
            weights = self._read()
            if weights.digest != self._digest:
                raise UsageError(
                    f"{self.options.model_cfg}: the weights have changed since it was opened: {self._digest}, "
                    f"now {weights.digest}"
                )
            self._build(weights)
        return self._network

    def _build(self, weights: Sam2Weights) -> None:
        self._network = build(weights).to(self.device)

    def _autocast(self) -> "torch.autocast":
        import torch

        is_half = self._where != "cpu" and self._precision == "bf16"
        return torch.autocast(self._where.partition(":")[0], dtype=torch.bfloat16, enabled=is_half)

    def _features(self, images: Sequence[np.ndarray]) -> "list[list[torch.Tensor]]":
        """For each picture its feature maps, (1, C, h, w) each, from high to low resolution."""
        network = self._ready()
        with self._autocast():
            levels = network.get_image_embeddings(model_pixels(images, self.image_size, self._where))
        return [[level[number : number + 1] for level in levels] for number in range(len(images))]

    def _masks(
        self, features: "list[torch.Tensor]", asked: "Asked", size_hw: tuple[int, int], above: float | None
    ) -> list[Proposals]:
        logits, scores = self._logits(features, asked, size_hw)
        ids = asked.ids.repeat(scores.shape[1])
        logits, scores = logits.flatten(0, 1), scores.flatten()
        if above is not None:
            wanted = scores > above
            logits, scores, ids = logits[wanted], scores[wanted], ids[wanted.cpu().numpy()]
        offset = self.options.automatic.stability_score_offset
        step = max(1, min(len(asked.ids), _PIXELS[self._where.partition(":")[0]] // (size_hw[0] * size_hw[1])))
        return [
            cut_masks(
                logits[start : start + step], scores[start : start + step], ids[start : start + step], size_hw, offset
            )
            for start in range(0, len(ids), step)
        ]

    def _logits(
        self, features: "list[torch.Tensor]", asked: "Asked", size_hw: tuple[int, int]
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """(K, 3, h, w) mask logits and (K, 3) float32 predicted IoU of K prompts."""
        import torch

        network, where, count = self._ready(), self._where, len(asked.ids)
        scale = torch.tensor([self.image_size / size_hw[1], self.image_size / size_hw[0]], device=where)
        boxes = None
        if asked.boxes is not None:
            corners = torch.from_numpy(asked.boxes).to(where).reshape(count, 2, 2)
            boxes = (corners * scale).reshape(count, 1, 4)
        sparse, dense = network.prompt_encoder(
            input_points=(torch.from_numpy(asked.points).to(where) * scale)[:, None],
            input_labels=torch.from_numpy(asked.labels).to(where)[:, None],
            input_boxes=boxes,
            input_masks=self._mask_input(asked),
        )
        positions = network.get_image_wide_positional_embeddings()
        kept = [level.to(where, torch.float32 if where == "cpu" else level.dtype) for level in features]
        with self._autocast():  # a prompt is one "picture" to transformers, which takes one dense prompt per picture
            logits, scores, _, _ = network.mask_decoder(
                image_embeddings=kept[-1].expand(count, -1, -1, -1),
                image_positional_embeddings=positions.expand(count, -1, -1, -1),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                high_resolution_features=[level.expand(count, -1, -1, -1) for level in kept[:-1]],
            )
        return logits[:, 0], scores[:, 0].float()

    def _mask_input(self, asked: "Asked") -> "torch.Tensor | None":
        """(K, 1, s, s) float32 at the size that the model takes; None without masks."""
        import torch

        if asked.logits is None:
            return None
        logits = torch.from_numpy(asked.logits).to(self._where)[:, None].float()
        size = self._ready().prompt_encoder.mask_input_size
        if logits.shape[-2:] == size:
            return logits
        return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False, antialias=True)

    def _on_cpu(self, work: Callable[[], _Result], what: str, reason: str) -> _Result:
        if not self.options.oom_to_cpu or self.device == "cpu":
            raise BadData(
                f"SAM2: out of memory on {self.device} with {what}: free the device (see who uses it), use a smaller model "
                f"or smaller pictures, or let the CPU do it (oom_to_cpu). {reason}"
            )
        import torch

        _log.warning("penstock: SAM2: out of memory with %s on %s, the CPU does it", what, self.device)
        self._network, self._where = self._ready().to("cpu"), "cpu"
        try:
            with torch.inference_mode():
                return work()
        finally:
            self._network, self._where = self._network.to(self.device), self.device


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Prompts of one frame, in pixels of the picture. K of them."""

    ids: np.ndarray
    """(K,) int64."""
    points: np.ndarray
    """(K, P, 2) float32 x, y."""
    labels: np.ndarray
    """(K, P) int32: 1 inside, 0 outside, -1 no point."""
    boxes: np.ndarray | None = None
    """(K, 4) float32 XYXY."""
    logits: np.ndarray | None = None
    """(K, S, S) float32."""

    def part(self, chunk: slice) -> "Asked":
        """Some of them."""
        boxes = None if self.boxes is None else self.boxes[chunk]
        logits = None if self.logits is None else self.logits[chunk]
        return Asked(
            ids=self.ids[chunk], points=self.points[chunk], labels=self.labels[chunk], boxes=boxes, logits=logits
        )


class Sam2Encoded:
    """A frame that SAM2 has encoded.

    Coordinates go to the model's square as in Meta's own predictor: stretched, and half a pixel of the square added by
    the prompt encoder.
    """

    def __init__(self, proposer: Sam2Proposer, frame: Frame, features: "list[torch.Tensor]") -> None:
        self._proposer = proposer
        self._key = frame.key
        self._size_hw = frame.objects.size_hw
        self._features = features

    def prompted(self, prompts: Prompts) -> Proposals:
        """Three proposals for each prompt, unfiltered but for empty masks.

        Raises:
            BadData: not even one prompt fits into memory.
        """
        with self._named():
            asked = Asked(
                ids=prompts.ids,
                points=prompts.points,
                labels=prompts.point_labels,
                boxes=prompts.boxes,
                logits=prompts.mask_logits,
            )
            return self._proposer.decode(self._features, asked, self._size_hw)

    def at_points(self, points: np.ndarray) -> Proposals:
        """Proposals for each of (P, 2) float32 x, y: three masks to a point, of which those stay that `AutomaticMasks` says.

        Raises:
            BadData: not even one point fits into memory.
        """
        rule, count = self._proposer.options.automatic, len(points)
        asked = Asked(
            ids=np.zeros(count, np.int64),
            points=np.asarray(points, np.float32).reshape(count, 1, 2),
            labels=np.ones((count, 1), np.int32),
        )
        with self._named():
            found = self._proposer.decode(self._features, asked, self._size_hw, above=rule.pred_iou_thresh)
        found = filtered(found, min_stability=rule.stability_score_thresh)
        found = box_nms(found, rule.box_nms_thresh)
        if not rule.min_mask_region_area:
            return found
        return box_nms(cleaned(found, rule.min_mask_region_area), rule.box_nms_thresh)

    @contextmanager
    def _named(self) -> "Iterator[None]":
        """Has errors name the frame."""
        try:
            yield
        except BadData as error:
            raise BadData(f"{self._key}: {error}") from error


def _precision(device: str) -> str:
    import torch

    has_half = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_half else "fp32"
