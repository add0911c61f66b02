"""The seed's functions for the embedding cache, and the datasets they read: `COCOPanopticDirectory`."""

import fcntl
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
from PIL import Image

from penstock.errors import BadData, MissingExtra, OutputRefused, UsageError
from penstock.exporters.embedding_files import INDEXES, npz_bytes, read_index, table
from penstock.exporters.embedding_rows import MARKER, picture_id
from penstock.geometry.segment_crops import reference_crop
from penstock.readers.coco_panoptic import CocoPanoptic
from penstock.sequence_folder import SIDE
from penstock.store.disk import Disk
from penstock.store.output import replace_file

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader, Dataset

Target = dict[str, Any]


class COCOPanopticDirectory:
    """Pictures of COCO panoptic with the masks of their segments; also gives its DataLoaders, as the original does.

    An item is (image, target). image: (3, H, W) uint8, RGB, at its own size. target: `masks` (N, H, W) bool, `labels` (N,)
    int64, place of the class among all classes of the file, 0..132 for COCO; `is_crowd` (N,) bool; `segment_ids` (N,) int64;
    `image_id`, text. Pictures without segments are left out.

    Args:
        path: folder of COCO panoptic.
        num_workers: of the DataLoaders.
        batch_size: of the DataLoaders, in pictures.
        split: "train", "val", "all"; None for the only one.

    Raises:
        MissingExtra: torch is not installed.
        SourceNotFound, UsageError, BadData: as `CocoPanoptic`.
    """

    def __init__(
        self, path: Path | str, num_workers: int = 4, batch_size: int = 16, *, split: str | None = None
    ) -> None:
        if find_spec("torch") is None:
            raise MissingExtra("torch", "train", "the seed's datasets")
        self.source = CocoPanoptic(path, split=split)
        self.num_workers, self.batch_size = num_workers, batch_size

    def __len__(self) -> int:
        return len(self.source.groups)

    def __getitem__(self, index: int) -> "tuple[torch.Tensor, Target]":
        """See the class.

        Raises:
            IndexError: there is no such picture.
            BadData: its photo, its PNG or its annotation are wrong.
        """
        import torch

        group = self.source.groups[index]
        rows = range(group.start, group.stop)
        records = self.source.__getitems__(rows)
        image = torch.from_numpy(np.array(records[0]["image"])).permute(2, 0, 1).contiguous()
        stem, _, _ = self.source.keys[rows[0]].rpartition("_")

        def column(name: str) -> np.ndarray:
            return np.array([np.asarray(record[name]) for record in records])

        return image, {
            "masks": torch.from_numpy(column("mask") != 0),
            "labels": torch.from_numpy(column("label").astype(np.int64)),
            "is_crowd": torch.from_numpy(column("iscrowd").astype(np.bool_)),
            "segment_ids": torch.from_numpy(column("segment_id").astype(np.int64)),
            "image_id": picture_id(stem.rpartition("/")[2]),
        }

    def setup(self, stage: str | None = None) -> "COCOPanopticDirectory":
        """Nothing is left to do: everything is opened by the constructor. For callers of the original's class."""
        return self

    def train_dataloader(self) -> "DataLoader[Any]":
        """Pictures in order of their ids, none left out, none flipped: see `create_dataloader`."""
        from torch.utils.data import DataLoader

        dataset = cast("Dataset[Any]", self)  # map-style; the base class adds nothing to it
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=False,
            num_workers=self.num_workers,
            collate_fn=collate_pictures,
        )

    def val_dataloader(self) -> "DataLoader[Any]":
        """The same as `train_dataloader`: `split` says what is read."""
        return self.train_dataloader()


def collate_pictures(
    items: "Sequence[tuple[torch.Tensor, Target]]",
) -> "tuple[tuple[torch.Tensor, ...], tuple[Target, ...]]":
    """Images and targets of a batch, each a tuple: pictures differ in size and are not stacked."""
    return tuple(image for image, _ in items), tuple(target for _, target in items)


def create_dataloader(
    data_path: Path | str, batch_size: int = 8, num_workers: int = 4, *, split: str | None = None
) -> "DataLoader[Any]":
    """A DataLoader over all pictures of COCO panoptic, in order, that gives (images, targets) as `collate_pictures`.

    Args:
        data_path: folder of COCO panoptic.
        batch_size: pictures.
        num_workers: processes.
        split: see `COCOPanopticDirectory`.

    Raises:
        SourceNotFound, UsageError, BadData: as `CocoPanoptic`.
    """
    return COCOPanopticDirectory(data_path, num_workers, batch_size, split=split).train_dataloader()


def extract_image_and_segment_ids(
    batch: "tuple[tuple[torch.Tensor, ...], tuple[Target, ...]]", dataloader: "DataLoader[Any] | None" = None
) -> tuple[list[str], list[list[int]]]:
    """Image id, and ids of the segments, of each picture of a batch.

    Args:
        batch: as `create_dataloader` gives it.
        dataloader: not needed, the ids are in the batch; the original looks them up by position.
    """
    _, targets = batch
    return [target["image_id"] for target in targets], [target["segment_ids"].tolist() for target in targets]


def prep_mask_image(
    image: "torch.Tensor | np.ndarray",
    masks: "torch.Tensor | np.ndarray",
    labels: "Sequence[int] | torch.Tensor | np.ndarray",
    target_ids: "Sequence[int] | torch.Tensor | np.ndarray",
    bg_alpha: float = 0.3,
    *,
    pad_ratio: float = 0.1,
) -> list[Image.Image]:
    """The crops of a picture's segments, as the model is to be fed them: background blended with grey, tight box, padding.

    Args:
        image: (3, H, W), or (H, W, 3) for an array: uint8, or floats of 0..1.
        masks: (N, H, W), not 0 where the segment is.
        labels: N classes; only counted.
        target_ids: N ids of the segments, for messages.
        bg_alpha: see `penstock.geometry.segment_crops.blend`.
        pad_ratio: see `penstock.geometry.segment_crops.padded_window`.

    Returns:
        N pictures in RGB, in the order of the masks; none is left out.

    Raises:
        UsageError: lengths, shapes or types that do not go together.
        BadData: a mask is empty, or not of the picture's size.
    """
    pixels, shapes = _pixels(image), np.asarray(masks)
    if shapes.ndim != 3 or not len(shapes) == len(labels) == len(target_ids):
        raise UsageError(
            f"prep_mask_image: expected (N, H, W) masks, N labels and N ids, got {shapes.shape}, {len(labels)}, "
            f"{len(target_ids)}"
        )
    crops = []
    for mask, number in zip(shapes != 0, target_ids, strict=True):
        try:
            crops.append(reference_crop(pixels, mask, bg_alpha=bg_alpha, pad_ratio=pad_ratio))
        except BadData as error:
            raise BadData(f"segment {int(number)}: {error}") from error
    return crops


def save_image_embeddings(
    cache_dir: Path | str,
    image_id: str,
    segment_ids: "Sequence[int] | torch.Tensor | np.ndarray",
    embeddings: "torch.Tensor | np.ndarray",
    labels: "Sequence[int] | torch.Tensor | np.ndarray",
) -> Path:
    """Saves the vectors of one picture as `<image_id>.npz`, and its row of `image_index.tsv`, which stays sorted.

    Both are replaced atomically; several processes may save at once. The index is rewritten with every picture: for whole
    datasets `build_vis_cache.py` is the way.

    Args:
        cache_dir: made where it is not there.
        image_id: a name of a file.
        segment_ids: (N,), up to 2147483647.
        embeddings: (N, D), finite; stored as float16.
        labels: (N,).

    Returns:
        The npz file.

    Raises:
        UsageError: shapes or values that do not fit.
        OutputRefused: the folder is one of `penstock embed`, or cannot be written to.
        OutputFull: no room; what was there stays.
    """
    folder = Path(cache_dir)
    segments, vectors, classes = np.asarray(segment_ids), _numbers(embeddings), np.asarray(labels)
    limits = np.iinfo(np.int32)
    if vectors.ndim != 2 or segments.shape != (len(vectors),) or classes.shape != (len(vectors),):
        raise UsageError(
            f"{image_id}: expected N ids, (N, D) vectors and N labels, got {segments.shape}, {vectors.shape}, {classes.shape}"
        )
    if not np.isfinite(vectors).all() or np.abs(vectors).max(initial=0) > np.finfo(np.float16).max:
        raise UsageError(f"{image_id}: expected vectors that are finite in float16")
    if any(len(one) and (one.min() < limits.min or one.max() > limits.max) for one in (segments, classes)):
        raise UsageError(f"{image_id}: expected ids and labels within int32")
    if not image_id or any(letter in "/\\" or ord(letter) < 32 for letter in image_id):
        raise UsageError(f"image_id {image_id!r}: expected a name of a file")
    if (folder / SIDE / MARKER).exists():
        raise OutputRefused(f"{folder}: was made by penstock embed, which keeps it; expected another folder")
    path = folder / f"{image_id}.npz"
    replace_file(path, npz_bytes(segments, vectors, classes))
    _index(folder, image_id, len(vectors))
    return path


def _index(folder: Path, image_id: str, count: int) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = folder / INDEXES["npz"]
        rows = {row[0]: row for row in (read_index(folder, "npz") if path.exists() else [])}
        rows[image_id] = (image_id, f"{image_id}.npz", str(count))
        disk = Disk()
        disk.replace(path, table("npz", iter(rows[name] for name in sorted(rows))))
        disk.close()
    finally:
        os.close(descriptor)


def _numbers(values: "torch.Tensor | np.ndarray") -> np.ndarray:
    return _plain(values.float()) if _is_tensor(values) else np.asarray(values)


def _plain(tensor: "torch.Tensor") -> np.ndarray:
    """NumPy has no bfloat16."""
    found: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    return found


def _is_tensor(values: object) -> "TypeGuard[torch.Tensor]":
    return hasattr(values, "detach")


def _pixels(image: "torch.Tensor | np.ndarray") -> np.ndarray:
    """(H, W, 3) uint8."""
    found = _plain(image) if _is_tensor(image) else np.asarray(image)
    if found.ndim == 3 and found.shape[0] == 3 and (_is_tensor(image) or found.shape[2] != 3):
        found = found.transpose(1, 2, 0)
    if found.ndim != 3 or found.shape[2] != 3:
        raise UsageError(f"prep_mask_image: expected an RGB picture, got {np.shape(image)}")
    if found.dtype == np.uint8:
        return np.ascontiguousarray(found)
    if not np.issubdtype(found.dtype, np.floating) or not (found.min(initial=0) >= 0 and found.max(initial=1) <= 1):
        raise UsageError(f"prep_mask_image: expected uint8, or floats of 0..1, got {found.dtype}")
    return np.ascontiguousarray((found * 255).round().astype(np.uint8))
