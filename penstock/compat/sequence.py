"""SequenceSaver: the seed's interface to saved sequences, over `penstock.sequence_folder`. Folder, file and key names are
the seed's; pictures are real pictures, batches of any size are split, metadata are filled in."""

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penstock.compat.sequence_batches import Sample, boxes_of, numbers_of, pixels_of, split_batch
from penstock.errors import BadData, OutputRefused, UsageError
from penstock.geometry.images import decode_picture
from penstock.report import Outcome
from penstock.sequence_folder import (
    ANNOTATION_KEYS,
    IMAGES,
    METADATA_KEYS,
    ROLES,
    TIMESTAMP,
    ImageFormat,
    SaveFormat,
    boxes_to_json,
    encode_pixels,
    load_sequence,
    picture_name,
    saved_format,
    sequence_files,
    write_folder,
)
from penstock.store.disk import Disk
from penstock.store.output import refused_if_unwritable

_log = logging.getLogger("penstock")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TIMESTAMP = "%Y%m%d_%H%M%S"
_PIXEL_BOXES = {
    "template_anno": "template_boxes",
    "search_anno": "search_boxes",
    "gt_sequence_anno_backward": "gt_boxes_backward",
    "gt_sequence_anno_forward": "gt_boxes_forward",
}
"""Boxes as a network is fed them -> the same in pixels of the crops; `STARKProcessing` and `TIMProcessing` give both."""


class SequenceSaver:
    """Saves samples of a tracking sampler, and loads what was saved.

    Args:
        save_dir: folder of the sequences; it and those above it are made when the first sequence is saved.
        timestamp: `YYYYmmdd_HHMMSS` in folder names and metadata; one for all that this saver saves, now by default.
        image_format: "jpg" or "png".
        jpeg_quality: 1..100.
        image_mean: of the normalisation that float pictures went through, three numbers; `image_mean` of a sample goes before.
        image_std: as image_mean.
        batch_dim: dimension that batches are stacked on, see `split_batch`.

    Attributes:
        failures: samples of `save_batch_sequences` that could not be saved, with the reason.
    """

    def __init__(
        self,
        save_dir: Path | str,
        *,
        timestamp: str | None = None,
        image_format: ImageFormat = "jpg",
        jpeg_quality: int = 95,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        batch_dim: int | None = None,
    ) -> None:
        if image_format not in ("jpg", "png"):
            raise UsageError(f"image_format: expected jpg or png, got {image_format!r}")
        if not 1 <= jpeg_quality <= 100:
            raise UsageError(f"jpeg_quality: expected 1..100, got {jpeg_quality!r}")
        if batch_dim not in (None, 0, 1):
            raise UsageError(f"batch_dim: expected 0 or 1, got {batch_dim!r}")
        if timestamp and not TIMESTAMP.fullmatch(timestamp):
            raise UsageError(f"timestamp: expected YYYYmmdd_HHMMSS, got {timestamp!r}")
        self.save_dir = Path(save_dir)
        self.timestamp = timestamp or time.strftime(_TIMESTAMP)
        self.image_format: ImageFormat = image_format
        self.jpeg_quality = jpeg_quality
        self.image_mean, self.image_std = image_mean, image_std
        self.batch_dim = batch_dim
        self.failures: list[Outcome] = []
        self._disk = Disk()
        self._paths: list[str] = []

    def save_sequence_data(
        self, data: Mapping[str, Any], sequence_id: object, save_images: bool = True, save_format: SaveFormat = "json"
    ) -> str:
        """Saves one sample as `save_dir/seq_<id>_<timestamp>`; an id that begins with `seq_` gets no second one.

        Boxes go into annotations.json as they are given, or, if the sample says `normalized`, times the size of what they
        lie in: template and search boxes that of their picture, histories that of the frame (`image_size`, height and
        width). Where the sample has `template_boxes`, `search_boxes`, `gt_boxes_backward`, `gt_boxes_forward` (pixels of
        the crops, NaN where there is no box), these are taken. NaN becomes null, and so does a step of a history of which
        `gt_valid_backward` or `gt_valid_forward`, if given, says that there is no box. What is not given is "unknown", or
        an empty list, and named in a warning.

        Args:
            data: `template_images` and `search_images` as lists of (H, W, 3) uint8, or tensors (N, 3, S, S), floats undone
                by `image_mean` and `image_std`, or 0..1; `template_anno`, `search_anno` (N, 4), `gt_sequence_anno_backward`
                and `_forward` ((1,) T, 4), XYWH; `template_frame_ids`, `search_frame_ids`, `gt_frame_ids_backward` and
                `_forward`; `dataset`, `test_class`, `is_video_dataset`.
            sequence_id: text or number; letters, digits, `.`, `_`, `-`.
            save_images: whether pictures are saved.
            save_format: "json" or "pickle".

        Returns:
            Path of the folder.

        Raises:
            BadData: the sample does not hold what it should, or it is a batch of several; nothing is written.
            OutputRefused: there is such a folder already, or it cannot be written.
            OutputFull: no room; no part of the folder is left.
        """
        samples = list(split_batch(data, self.batch_dim))
        if len(samples) != 1:
            raise BadData(
                f"{len(samples)} samples; save_sequence_data takes one, save_batch_sequences a loader of batches"
            )
        return self._save(samples[0], sequence_id, save_images, save_format)

    def save_batch_sequences(
        self,
        dataloader: Iterable[Mapping[str, Any]],
        num_sequences: int = 100,
        save_images: bool = True,
        save_format: SaveFormat = "json",
    ) -> list[str]:
        """Saves the first samples of a loader as `seq_000001_<timestamp>` and so on, and lists their paths in
        `saved_paths_<timestamp>.txt`. The loader is iterated once; batches of any size are split.

        A sample that cannot be saved is logged, stands in `failures`, and leaves its number unused.

        Args:
            dataloader: gives samples or batches of them.
            num_sequences: samples to take.
            save_images: as `save_sequence_data`.
            save_format: as `save_sequence_data`.

        Returns:
            Paths of the folders.

        Raises:
            BadData: no sample could be saved; the message has the first reason.
            OutputFull: no room; what was saved is kept.
        """
        if num_sequences < 1:
            raise UsageError(f"num_sequences: expected 1 or more, got {num_sequences}")
        first, saved, failed = self._next_number(), list[str](), list[Outcome]()
        try:
            for number, sample in enumerate(self._samples(dataloader, num_sequences), first):
                name = f"seq_{number:06d}"
                try:
                    if isinstance(sample, BadData):
                        raise sample
                    saved.append(self._save(sample, name, save_images, save_format))
                except BadData as error:
                    _log.warning("penstock: %s is not saved: %s", name, error)
                    failed.append(Outcome(key=name, error="BadData", message=str(error)))
        finally:  # also where the disk is full, the loader fails, or Ctrl-C ends it
            self.failures += failed
            self._paths += saved
            self._list_paths()
        if not saved:
            reason = f"{failed[0].key}: {failed[0].message}" if failed else "the loader gave no sample"
            raise BadData(f"{self.save_dir}: no sequence was saved; {reason}")
        if len(saved) + len(failed) < num_sequences:
            _log.warning("penstock: the loader ended after %d of %d samples", len(saved) + len(failed), num_sequences)
        return saved

    def load_sequence_data(
        self, sequence_dir: Path | str, load_format: SaveFormat | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metadata and annotations of a saved sequence.

        Args:
            sequence_dir: folder of the sequence.
            load_format: "json" or "pickle"; None takes what is there. A pickle must be asked for: this one can hold nothing
                but texts and numbers, but what is saved elsewhere may hold anything, and a habit is a habit.

        Raises:
            SourceNotFound: no saved sequence, or none in this format.
            UsageError: it is a pickle, and nobody asked for one.
            BadData: a file is damaged.
        """
        folder = Path(sequence_dir)
        if load_format is None:
            load_format = saved_format(folder)
            if load_format == "pickle":
                raise UsageError(
                    f"{folder}: is saved as pickle; ask for it: load_sequence_data(..., load_format='pickle')"
                )
        elif load_format not in ("json", "pickle"):
            raise UsageError(f"load_format: expected json or pickle, got {load_format!r}")
        return load_sequence(folder, load_format)

    def load_sequence_images(self, sequence_dir: Path | str) -> dict[Literal["template", "search"], list[np.ndarray]]:
        """Pictures of a saved sequence, (H, W, 3) uint8 RGB each; empty lists where none were saved.

        Raises:
            BadData: a picture is damaged; it is named.
        """
        folder = Path(sequence_dir)
        saved_format(folder)
        found: dict[Literal["template", "search"], list[np.ndarray]] = {"template": [], "search": []}
        for role, pictures in found.items():
            for path in sorted((folder / IMAGES / role).glob(f"{role}_*")):
                try:
                    pictures.append(decode_picture(path.read_bytes()))
                except BadData as error:
                    raise BadData(f"{path}: {error}") from error
        return found

    def _samples(self, dataloader: Iterable[Mapping[str, Any]], limit: int) -> Iterable[Sample | BadData]:
        given = 0
        for batch in dataloader:
            try:
                samples: list[Sample | BadData] = [*split_batch(batch, self.batch_dim)]
            except BadData as error:
                samples = [error]
            for sample in samples:
                yield sample
                given += 1
                if given == limit:
                    return

    def _list_paths(self) -> None:
        if self._paths:
            lines = "".join(f"{path}\n" for path in self._paths)
            self._disk.replace(self.save_dir / f"saved_paths_{self.timestamp}.txt", lines.encode())

    def _next_number(self) -> int:
        """Behind the highest number that this timestamp has in the folder, whoever wrote it."""
        name = re.compile(rf"seq_(\d{{6,}})_{re.escape(self.timestamp)}")
        there = self.save_dir.iterdir() if self.save_dir.is_dir() else iter(())
        numbers = [int(found[1]) for found in (name.fullmatch(path.name) for path in there) if found]
        return max(numbers, default=0) + 1

    def _save(self, sample: Sample, sequence_id: object, save_images: bool, save_format: SaveFormat) -> str:
        identity = str(sequence_id)
        if not _ID.fullmatch(identity):
            raise UsageError(f"sequence_id: expected letters, digits, '.', '_' and '-', got {identity!r}")
        folder = self.save_dir / f"seq_{identity.removeprefix('seq_')}_{self.timestamp}"
        if folder.exists():
            raise OutputRefused(f"{folder}: is there already; give another id; nothing was touched")
        missing = [name for name in (*METADATA_KEYS[2:], *ANNOTATION_KEYS) if sample.get(name) is None]
        if missing:
            _log.warning("penstock: %s: the sample has no %s", folder.name, ", ".join(missing))
        pixels = self._pixels(sample) if save_images else {}
        metadata = {
            "sequence_id": identity,
            "timestamp": self.timestamp,
            **{name: "unknown" if sample.get(name) is None else str(sample[name]) for name in METADATA_KEYS[2:4]},
            "is_video_dataset": bool(sample.get("is_video_dataset", False)),
            **{name: numbers_of(sample, name) for name in METADATA_KEYS[5:]},
        }
        files = sequence_files(
            metadata=metadata,
            annotations={name: boxes_to_json(boxes) for name, boxes in _boxes(sample, pixels).items()},
            provenance={"saved_by": "SequenceSaver", "missing": missing, "normalized": bool(sample.get("normalized"))},
            pictures={
                picture_name(role, number, self.image_format): encode_pixels(one, self.image_format, self.jpeg_quality)
                for role, pictures in pixels.items()
                for number, one in enumerate(pictures)
            },
            save_format=save_format,
        )
        with refused_if_unwritable(folder):
            self._disk.make_directory(self.save_dir)
            write_folder(self._disk, folder, files)
        return str(folder)

    def _pixels(self, sample: Sample) -> dict[str, list[np.ndarray]]:
        return {role: pixels_of(sample, f"{role}_images", mean=self.image_mean, std=self.image_std) for role in ROLES}


def _boxes(sample: Sample, pixels: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Boxes as they are given, or as pixels where the sample says that they are fractions."""
    fields = {name: _PIXEL_BOXES[name] if _PIXEL_BOXES[name] in sample else name for name in ANNOTATION_KEYS}
    boxes = {name: boxes_of(sample, field) for name, field in fields.items()}
    for role, pictures in pixels.items():
        if len(boxes[f"{role}_anno"]) != len(pictures):
            raise BadData(f"{len(pictures)} {role} pictures, {len(boxes[f'{role}_anno'])} boxes in {role}_anno")
    for name in ("backward", "forward"):
        _leave_out(sample, boxes[f"gt_sequence_anno_{name}"], f"gt_valid_{name}")
    if not bool(sample.get("normalized")):
        return boxes
    for name in (name for name, field in fields.items() if field == name):
        role = name.removesuffix("_anno")
        if role in ROLES:
            if role not in pixels:
                raise BadData(f"{name}: fractions of pictures that are not saved; use save_images=True")
            sizes = np.array([[one.shape[1], one.shape[0]] * 2 for one in pixels[role]], np.float64)
        else:
            sizes = _frame_size(sample)
        boxes[name] = boxes[name] * sizes
    return boxes


def _leave_out(sample: Sample, boxes: np.ndarray, flags: str) -> None:
    """NaN for boxes that the flags of the sample, if it has them, say are none."""
    if sample.get(flags) is None:
        return
    is_box = np.asarray(sample[flags], bool).reshape(-1)
    if len(is_box) != len(boxes):
        raise BadData(f"{flags}: {len(is_box)} flags for {len(boxes)} boxes")
    boxes[~is_box] = np.nan


def _frame_size(sample: Sample) -> np.ndarray:
    """(4,) width, height, width, height of the frame that histories are fractions of."""
    size = np.array(sample.get("image_size", []), np.float64).reshape(-1)
    if size.shape != (2,):
        raise BadData(f"image_size: expected height and width of the frame, got {sample.get('image_size')!r}")
    return np.array([size[1], size[0], size[1], size[0]])
