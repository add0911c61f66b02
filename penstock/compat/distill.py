"""BinaryDistillDataset: the seed's map-style dataset over a distillation set, v1 directory or penstock store alike."""

import logging
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from penstock.compat.distill_open import ShapeMismatch, check_shapes, open_distillation_set, torn_read
from penstock.errors import BadData, MissingExtra, StoreCorrupt, UsageError
from penstock.geometry.boxes import scale_boxes, xywh_to_xyxy
from penstock.source import check_index
from penstock.store.box_format import box_format

try:
    import torch
    from torch.utils.data import Dataset, default_collate
except ImportError as error:
    raise MissingExtra("torch", "train", "BinaryDistillDataset") from error

logger = logging.getLogger(__name__)

Item = dict[str, object]
"""What `dataset[i]` gives; see `BinaryDistillDataset`."""

RAGGED_KEYS = ("box_prompts_xyxy", "box_prompts_xyxy_input", "box_prompts_masks_orig", "box_prompts_meta")
"""Keys whose first dimension differs from row to row: lists in a batch."""

_MASK_PROBES = 16
_DENSE = ("P4_S16", "edge_256x256", "fg_map_64x64", "bg_map_64x64", "image_shape")
_OBJECTS = ("bboxes", "masks")
_COUNTS = ("has_bbox", "num_bboxes")


class BinaryDistillDataset(Dataset[Item]):
    """Pictures, teacher features, edges, weight maps, boxes and masks, with the seed's keys.

    `dataset[i]` is a dict; H and W are height and width of the original picture, S is `input_size`:

        image                   (3, S, S) uint8, RGB 0..255, the picture stretched to S x S; a view permuted from HWC
        teacher_features        (256, 64, 64) float32, the field P4_S16
        edge_256x256            (256, 256) float32, 0 or 1, over the stretched picture
        fg_map, bg_map          (1, 64, 64) float32 loss weights; each sums to 1 over the map
        edge_map                (1, 64, 64) float32: by default the area average of edge_256x256, in steps of 1/16
        box_prompts_xyxy        (N, 4) float32, XYXY in original pixels: 0..W, 0..H
        box_prompts_xyxy_input  (N, 4) float32, the same boxes in pixels of `image`: 0..S (not one of the seed's keys)
        box_prompts_masks_orig  (N, 256, 256) float32, 0 or 1: the mask over the stretched picture; made from the
                                original resolution by area averaging and a threshold of > 0.5
        box_prompts_count       int, N; at most 1 in a v1 directory, which keeps the first box only
        box_prompts_flag        int, 1 where N > 0, else 0
        box_prompts_meta        [], always
        geometry_color_flag     0, always
        has_bbox, num_bboxes    bool and int: boxes of the picture, of which a v1 directory may keep fewer
        image_shape             (3,) int32 NumPy array, [H, W, C] of the original picture
        image_id                str

    Boxes are XYXY whoever wrote the files: a v1 directory without the marker `bbox_format` in its config.json holds
    XYWH (the original converter writes those) and is converted while reading. Masks that the original converter wrote
    are all zero and cannot be repaired here: a warning says so, and `penstock repair` rebuilds them from the TARs.

    Rows that failed or are still missing in a store are left out; a warning says how many. Negative indices count from
    the end; `IndexError` outside. The dataset pickles, and works in a DataLoader with forked and with spawned workers:
    nothing is shared between processes but the files. `collate_distill` makes batches.

    Fields of fixed size are read straight into fresh memory by positioned reads: one copy, and a file that somebody
    else cuts short raises instead of killing the process. `penstock.Loader` reads the same files faster, into memory
    that is warm.

    Args:
        data_root: a v1 directory (config.json and seven .bin files), or a store of `penstock convert sa1b-tar`.
        input_size: side of the stored picture, in pixels; 1024 in a v1 directory. Nothing is resized.
        verbose: log a summary (logger penstock.compat.distill, level INFO). Warnings are logged either way.
        edge_map: "averaged": `edge_map` is the area average of edge_256x256, as in the original reader; "stored": the
            stored field edge_64x64, 0 or 1 (a cell is 1 where any of its pixels was).

    Raises:
        SourceNotFound (FileNotFoundError): "Config not found at ..."; or a .bin file is not there.
        StoreCorrupt (OSError): "Failed to read image at index ...: expected 3145728 bytes, got ...", now or by
            `dataset[i]`; or sizes and counts do not agree otherwise.
        ShapeMismatch (RuntimeError): "Expected tensor of shape ...": the files hold pictures or fields of other sizes.
        UsageError (ValueError): the set holds no row, or `edge_map` is neither of the two words.
    """

    def __init__(
        self,
        data_root: str | Path,
        input_size: int = 1024,
        verbose: bool = True,
        *,
        edge_map: Literal["averaged", "stored"] = "averaged",
    ) -> None:
        if edge_map not in ("averaged", "stored"):
            raise UsageError(f"edge_map: expected 'averaged' or 'stored', got {edge_map!r}")
        self.data_root = Path(data_root)
        self.input_size = input_size
        self.edge_map = edge_map
        self.store = open_distillation_set(self.data_root)
        names = [*_DENSE, *_OBJECTS, *(["edge_64x64"] if edge_map == "stored" else [])]
        check_shapes(self.store, names, input_size)
        self._xywh = box_format(self.store) == "xywh"
        self._ragged = self.store.schema["bboxes"].is_variable
        picture = "image_jpeg" if "image_jpeg" in self.store.schema else "image"
        wanted = [picture, *names, *(() if self._ragged else _COUNTS)]
        self._variable = [name for name in wanted if self.store.schema[name].is_variable]
        self._fixed = [name for name in wanted if name not in self._variable]
        self._rows = self.store.done_rows()
        if not len(self):
            raise UsageError(f"Config reports 0 samples: {self.data_root} holds no row that is done")
        self._warn(verbose)

    def __len__(self) -> int:
        """Rows that are done."""
        return len(self.store) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Item:
        """The item of a row; see the class.

        Raises:
            IndexError: out of range.
            StoreCorrupt (OSError): a file has become shorter.
            ShapeMismatch (RuntimeError): a JPEG holds a picture of another size than `input_size`.
            BadData (ValueError): a JPEG is damaged; a row with boxes has no original size.
        """
        place = check_index(operator.index(index), len(self))
        row = place if self._rows is None else int(self._rows[place])
        arrays = self._read(row, self._fixed, self._variable)
        edges = torch.from_numpy(arrays["edge_256x256"]).float()
        return {
            "image": torch.from_numpy(self._picture(row, arrays)).permute(2, 0, 1),
            "teacher_features": torch.from_numpy(arrays["P4_S16"]).float(),
            "edge_256x256": edges,
            "fg_map": torch.from_numpy(arrays["fg_map_64x64"])[None],
            "bg_map": torch.from_numpy(arrays["bg_map_64x64"])[None],
            "edge_map": self._edge_map(arrays, edges),
            **self._prompts(row, arrays),
            "image_shape": arrays["image_shape"],
            "image_id": self.store.keys[row],
        }

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Items of several rows; torch's DataLoader asks for a batch this way. No item shares memory with another."""
        return [self[index] for index in indices]

    def _read(self, row: int, fixed: Sequence[str], variable: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Arrays of our own, one copy from the page cache."""
        fields = {name: self.store.schema[name] for name in fixed}
        out = {name: np.empty((1, *field.item_shape), field.dtype) for name, field in fields.items()}
        try:
            self.store.gather(np.array([row]), fixed, out, io="pread")
        except StoreCorrupt as error:
            raise torn_read(self.store, row) or error from error
        arrays = {name: array[0] for name, array in out.items()}
        if variable:
            arrays |= {name: np.array(value) for name, value in self.store.read(row, variable).items()}
        return arrays

    def _picture(self, row: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if "image" in arrays:
            return arrays["image"]
        from penstock.geometry.images import decode_picture

        pixels = decode_picture(arrays["image_jpeg"].tobytes())
        expected = (self.input_size, self.input_size, 3)
        if pixels.shape != expected:
            what = f"Expected tensor of shape {expected} for the decoded picture, got {pixels.shape}"
            raise ShapeMismatch(f"{what}: {self.data_root}: row {row} ({self.store.keys[row]})")
        return pixels

    def _edge_map(self, arrays: Mapping[str, np.ndarray], edges: torch.Tensor) -> torch.Tensor:
        if self.edge_map == "stored":
            return torch.from_numpy(arrays["edge_64x64"]).float()[None]
        return torch.nn.functional.avg_pool2d(edges[None], 4)

    def _prompts(self, row: int, arrays: Mapping[str, np.ndarray]) -> Item:
        boxes, masks = arrays["bboxes"], arrays["masks"]
        if self._ragged:
            has_bbox, num_bboxes = len(boxes) > 0, len(boxes)
        else:
            has_bbox, num_bboxes = bool(arrays["has_bbox"]), int(arrays["num_bboxes"])
            if not has_bbox or num_bboxes <= 0:
                boxes, masks = boxes[:0], masks[:0]
        boxes = xywh_to_xyxy(boxes) if self._xywh else boxes
        height, width = (int(side) for side in arrays["image_shape"][:2])
        if len(boxes) and min(height, width) <= 0:
            where = f"{self.data_root}: row {row} ({self.store.keys[row]})"
            raise BadData(f"{where}: image_shape: expected positive sides, got {height} x {width}")
        size_hw = (self.input_size, self.input_size)
        scaled = scale_boxes(boxes, (height, width), size_hw) if len(boxes) else np.zeros((0, 4), np.float32)
        return {
            "box_prompts_xyxy": torch.from_numpy(boxes),
            "box_prompts_xyxy_input": torch.from_numpy(scaled),
            "box_prompts_masks_orig": torch.from_numpy(masks).float(),
            "box_prompts_count": len(boxes),
            "box_prompts_flag": int(len(boxes) > 0),
            "box_prompts_meta": [],
            "geometry_color_flag": 0,
            "has_bbox": has_bbox,
            "num_bboxes": num_bboxes,
        }

    def _warn(self, verbose: bool) -> None:
        left_out, total = len(self.store) - len(self), len(self.store)
        if left_out:
            logger.warning(
                "%s: %d of %d rows failed or are missing; they are left out", self.data_root, left_out, total
            )
        empty, seen = self._probe_masks()
        if seen and empty == seen:
            logger.warning(
                "%s: the masks of all %d rows with a box that were looked at are empty, as the original converter "
                "writes them; rebuild them from the TARs with penstock repair --tar-path",
                self.data_root,
                seen,
            )
        if verbose:
            boxes = "XYWH, converted to XYXY while reading" if self._xywh else "XYXY"
            size = f"{self.input_size} x {self.input_size}"
            logger.info("%s: %d rows, pictures of %s, boxes %s", self.data_root, len(self), size, boxes)

    def _probe_masks(self) -> tuple[int, int]:
        """Among a few rows of a directory that others wrote: those with a box and an empty mask, those with a box."""
        if not self._xywh or self._ragged:
            return 0, 0
        probes = np.unique(np.linspace(0, len(self) - 1, _MASK_PROBES).astype(int)).tolist()
        read = [self._read(row, ["masks", *_COUNTS]) for row in probes]
        with_box = [arrays["masks"] for arrays in read if arrays["has_bbox"] and arrays["num_bboxes"] > 0]
        return sum(not mask.any() for mask in with_box), len(with_box)


def collate_distill(batch: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Items of `BinaryDistillDataset` as a batch of B; give it to a DataLoader as `collate_fn`.

    Args:
        batch: B items, at least one, all of the same keys.

    Returns:
        The same keys. Boxes, masks and `box_prompts_meta` (`RAGGED_KEYS`) are lists of B entries, for their number of
        boxes differs; `image_shape` is a (B, 3) int32 tensor; everything else is what torch's default_collate makes of
        it: tensors with B in front, numbers and bools as (B,) tensors, `image_id` a list of str.
    """
    ragged = {key: [item[key] for item in batch] for key in RAGGED_KEYS if key in batch[0]}
    dense = {key: default_collate([item[key] for item in batch]) for key in batch[0] if key not in ragged}
    return {key: ragged[key] if key in ragged else dense[key] for key in batch[0]}
