"""TimingTrackingSampler: the seed's map-style dataset of tracking samples, over `penstock.tracking.Tracking`."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.compat.tensor_dict import TensorDict
from penstock.compat.tracking_datasets import OriginalDataset
from penstock.draws import Frames, Steps, TrackSample
from penstock.errors import BadData, MissingExtra, UsageError
from penstock.registry import open_source
from penstock.sequence_save import RETRY_BITS
from penstock.source import Source, check_index
from penstock.track_samples import TrackSamples
from penstock.track_tables import track_tables
from penstock.tracking import Tracking

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingExtra("torch", "train", "TimingTrackingSampler") from error

_log = logging.getLogger("penstock")


class TrackingData(TensorDict):
    """What goes into a processing: the fields, and the sample that they were made from."""

    track_sample: TrackSample
    """Its pictures are read-only and shared; the fields are not."""


Processing = Callable[[TrackingData], Mapping[str, Any]]


def no_processing(data: TrackingData) -> TrackingData:
    """The data as they are: whole pictures. The default."""
    return data


class TimingTrackingSampler(Dataset[TensorDict]):
    """Template and search frames of one video at a time, with the boxes that led to the search frame and that follow.

    `sampler[i]` is a function of the arguments, the seed, the epoch and i: it is the same in any process and order. Fields
    before processing (n pictures of a role, T = min_interval, F = future_steps):

        template_images, search_images           lists of (H, W, 3) uint8 arrays, RGB
        template_anno, search_anno               lists of (4,) float32 tensors, XYWH in pixels
        template_masks, search_masks             lists of (H, W) uint8 tensors, 0 or 1; zeros where the source has none
        gt_sequence_anno_backward, ..._forward   (1, T, 4) and (1, F, 4) float32, XYWH in pixels; zeros where no box is
        template_frame_ids, search_frame_ids, gt_frame_ids_backward, gt_frame_ids_forward
                                                 lists of int: positions in the video, from 0
        is_video_dataset, image_size             bool; [H, W] of the first search picture
        dataset, test_class, sequence            text; test_class is "" where the source has none
        label                                    (1,) float32, 1 or 0: the search frames show the target (with train_cls)
        template_visible, search_visible         (n,) bool
        gt_visible_backward, gt_valid_backward   (T,) bool: the target can be seen; there is a box (also ..._forward)
        gt_padded_backward, gt_time_backward     (T,) bool: repeated; (T,) float64 seconds, NaN where no rate is known
        template_paths, search_paths             lists of texts, relative to the source's root
        key, seed                                text that `rebuild` takes; 63 bits for random processing
        gap, attempts                            ints, see `penstock.draws.Draw`
        retries, rejected                        int, and text: draws given up before this one, and why

    After processing there is `valid`, true. If a processing sets it to false, or a picture cannot be read, the next of at
    most `max_retries` further draws of this index is taken. What was given up is counted in `rejections` and in the sample.

    Args:
        datasets: readers or stores of penstock, texts that name them ("lasot:/data/LaSOT"), or objects of the original
            interface (`get_sequence_info`, `get_frames`, ...).
        p_datasets: a weight for each; None for the numbers of their sequences.
        samples_per_epoch: `len()`.
        max_gap: frames; a list, one per further template, in the modes trident, trident_pro and stark.
        num_search_frames: per sample.
        num_template_frames: per sample.
        processing: takes the fields above, gives those of the sample.
        frame_sample_mode: "causal", "interval", "trident", "trident_pro" or "stark".
        train_cls: with probability 1 - pos_prob the search frame does not show the target (trident and stark).
        pos_prob: see train_cls.
        min_interval: T.
        future_steps: F.
        seed: 0..2**64-1.
        max_retries: 0 or more.

    Attributes:
        tracking: the sampler of penstock that draws.
        rejections: (source, reason) -> draws given up by this object in this process.

    Raises:
        UsageError: an argument is out of range, or a source has nothing that can be drawn.
        SourceNotFound: a path holds no such source.
    """

    def __init__(
        self,
        datasets: Sequence[object],
        p_datasets: Sequence[float] | None,
        samples_per_epoch: int,
        max_gap: int | Sequence[int],
        num_search_frames: int,
        *,
        num_template_frames: int = 1,
        processing: Processing = no_processing,
        frame_sample_mode: str = "causal",
        train_cls: bool = False,
        pos_prob: float = 0.5,
        min_interval: int = 50,
        future_steps: int = 1,
        seed: int = 0,
        max_retries: int = 10,
    ) -> None:
        if not 0 <= max_retries < 1 << 16:
            raise UsageError(f"max_retries: expected 0..65535, got {max_retries}")
        if isinstance(datasets, str) or not datasets:
            raise UsageError(f"datasets: expected a list of at least one source, got {datasets!r}")
        if not callable(processing):
            raise UsageError(f"processing: expected a function of the sample, got {processing!r}")
        self.datasets = list(datasets)
        sources = [_source(one) for one in datasets]
        tables = track_tables(sources)
        self.tracking = Tracking(
            tables,
            mode=frame_sample_mode,
            max_gap=max_gap,
            num_search=num_search_frames,
            num_template=num_template_frames,
            weights=p_datasets,
            samples_per_epoch=samples_per_epoch,
            seed=seed,
            train_cls=train_cls,
            pos_prob=pos_prob,
            min_interval=min_interval,
            future_steps=future_steps,
        )
        self.samples = TrackSamples(sources, tables)
        self.processing = processing
        self.train_cls = train_cls
        self.max_retries = max_retries
        self.epoch = 0
        self.rejections: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self.tracking)

    def set_epoch(self, epoch: int) -> None:
        """Samples of another epoch from now on. Without it every epoch has the same ones: an index means a sample. Workers
        that a DataLoader has started already do not hear of it.

        Raises:
            UsageError: it is negative, or so large that steps run out.
        """
        if epoch < 0 or (epoch + 1) * len(self) > 1 << RETRY_BITS:
            raise UsageError(f"epoch: expected 0..{(1 << RETRY_BITS) // len(self) - 1}, got {epoch}")
        self.epoch = epoch

    def __getitem__(self, index: int) -> TensorDict:
        """The sample of an index; a negative one counts from the end.

        Raises:
            IndexError: there is no such index.
            BadData: no draw gave a sample; source, sequence and reason of each are named.
        """
        step = self.epoch * len(self) + check_index(index, len(self))
        refused: list[tuple[str, str]] = []
        for retry in range(self.max_retries + 1):
            made = self._sample(step + (retry << RETRY_BITS), refused)
            if made is not None:
                return made
        said = Counter(f"{where}: {why}" for where, why in refused)
        listed = "; ".join(f"{text} ({count}x)" for text, count in said.most_common(5))
        raise BadData(f"sample {index}: {len(refused)} draws, none could be used: {listed}")

    def rebuild(self, key: str) -> TensorDict:
        """The sample whose field `key` says this. Which epoch and index it had does not matter.

        Raises:
            UsageError, StateMismatch: as `Tracking.rebuild`.
            BadData: the sample cannot be used any more.
        """
        refused: list[tuple[str, str]] = []
        made = self._sample(self.tracking.rebuild(key).step, refused)
        if made is None:
            raise BadData(f"{key}: {refused[0][0]}: {refused[0][1]}")
        return made

    def _sample(self, step: int, refused: list[tuple[str, str]]) -> TensorDict | None:
        """The sample of a step; None, and one more line in `refused`, where it cannot be used."""
        draw = self.tracking.draw(step)
        table = self.tracking.tables[draw.source]
        where = f"{table.name}: {table.names[draw.sequence]}"
        try:
            data = self._data(self.samples.read(draw), [why for _, why in refused])
            made = self.processing(data)
        except BadData as error:
            self._refuse(table.name, where, str(error), type(error).__name__, refused)
            return None
        if not isinstance(made, Mapping):
            raise UsageError(f"processing: expected it to give the fields of a sample, got {type(made).__name__}")
        if not bool(made.get("valid", True)):
            reason = str(made.get("reason", "the processing says valid = False"))
            detail = f"{reason}: {made['detail']}" if "detail" in made else reason
            self._refuse(table.name, where, detail, reason, refused)
            return None
        return TensorDict({**made, "valid": True})

    def _refuse(self, source: str, where: str, why: str, reason: str, refused: list[tuple[str, str]]) -> None:
        """Counts it by its reason, and keeps where and why for the message."""
        refused.append((where, why))
        self.rejections[source, reason] += 1
        _log.info("penstock: %s is not used: %s", where, why)

    def _data(self, sample: TrackSample, rejected: list[str]) -> TrackingData:
        draw = sample.draw
        data = TrackingData(
            **_role("template", sample.template),
            **_role("search", sample.search),
            **_history("backward", sample.backward),
            **_history("forward", sample.forward),
            is_video_dataset=sample.is_video,
            image_size=list(sample.image_hw),
            dataset=sample.source,
            test_class=sample.category,
            sequence=sample.sequence,
            key=draw.key,
            seed=draw.seed >> 1,
            gap=draw.gap,
            attempts=draw.attempts,
            retries=len(rejected),
            rejected="; ".join(rejected),
        )
        if self.train_cls:
            data["label"] = torch.tensor([float(draw.positive)])
        data.track_sample = sample
        return data


def _source(dataset: object) -> Source:
    if isinstance(dataset, str):
        return open_source(dataset)
    if hasattr(dataset, "get_sequence_info"):
        return OriginalDataset(dataset)
    if isinstance(dataset, Source):
        return dataset
    raise UsageError(
        f"datasets: expected a source, a text such as 'lasot:/data/LaSOT', or an object with get_sequence_info and "
        f"get_frames, got {type(dataset).__name__}"
    )


def _role(name: str, frames: Frames) -> dict[str, object]:
    return {
        f"{name}_images": [np.array(image) for image in frames.images],
        f"{name}_anno": list(boxes_to_tensor(frames.boxes)),
        f"{name}_masks": [torch.from_numpy(np.array(mask)) for mask in frames.masks],
        f"{name}_frame_ids": [int(one) for one in frames.frames],
        f"{name}_visible": torch.from_numpy(np.array(frames.visible)),
        f"{name}_paths": list(frames.paths),
    }


def _history(name: str, steps: Steps) -> dict[str, object]:
    return {
        f"gt_sequence_anno_{name}": boxes_to_tensor(steps.boxes)[None],
        f"gt_frame_ids_{name}": [int(one) for one in steps.frames],
        f"gt_visible_{name}": torch.from_numpy(np.array(steps.visible)),
        f"gt_valid_{name}": torch.from_numpy(np.array(steps.valid)),
        f"gt_padded_{name}": torch.from_numpy(np.array(steps.padded)),
        f"gt_time_{name}": torch.from_numpy(np.array(steps.time)),
    }


def boxes_to_tensor(boxes: np.ndarray) -> torch.Tensor:
    """(N, 4) boxes as float32; zeros where a number is NaN (there is no box), as the original has them."""
    has_box = ~np.isnan(boxes).any(axis=1, keepdims=True)
    return torch.from_numpy(np.where(has_box, boxes, 0).astype(np.float32))
