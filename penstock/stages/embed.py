"""The stage of `penstock embed`: crops of segments in, unit vectors out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.segment_crops import blend
from penstock.models.embedders import BATCHES
from penstock.models.protocols import Embedder
from penstock.schema import Field, Record, Schema
from penstock.stages.embed_pixels import FastPixels
from penstock.stages.workers import one_thread, worker_number

if TYPE_CHECKING:
    import torch

Path = Literal["fast", "reference"]
PATHS = get_args(Path)
_CROP = ("pixels", "inside")
_CODE = 1
"""Version of the crops: raised whenever the same input would give another one."""


@dataclass(kw_only=True)
class EmbedSegments:
    """Blends, resizes and embeds crops. Input: records of `penstock.segments.Segments`. Output: `embedding` and the rest of
    the input but for its pixels.

    The fast path does on `device` what the reference does with Pillow and the model's own transform; vectors agree to a
    cosine of 0.9995 and better.
    """

    name: ClassVar[str] = "embed-segments"
    version: ClassVar[int] = 1

    embedder: Embedder
    """Pickles, and loads its weights where it is used."""
    segments: Schema
    """Of the records that come in."""
    recipe: str
    """How the segments were cut, with `pad_ratio`: see `Segments`."""
    pad_ratio: float
    bg_alpha: float = 0.3
    """Share of the picture that is left outside the mask; the rest is mid-grey."""
    path: Path = "fast"
    batch_size: int = 96
    """Rows per call."""
    devices: int = 1
    """GPUs that workers share, from the embedder's own on; worker n takes the n-th of them, and round again."""
    reopen: Callable[..., Embedder] | None = None
    """Opens the same model on another `device`; needed with several devices."""
    tolerance: ClassVar[float] = 1e-3
    """By how much a vector's numbers may differ where the stage is not bitwise."""

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise UsageError(f"path: expected {' or '.join(PATHS)}, got {self.path!r}")
        if not 0 <= self.bg_alpha <= 1:
            raise UsageError(f"bg-alpha: expected 0..1, got {self.bg_alpha!r}")
        self._pixels: FastPixels | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pixels": None}

    @property
    def bitwise(self) -> bool:
        """On a CPU; a GPU may choose other kernels from run to run."""
        return self.embedder.device == "cpu"

    @property
    def model_batch(self) -> int:
        """Crops per call of the model."""
        return model_batch(self.batch_size, self.embedder.device)

    @property
    def schema(self) -> Schema:
        """`embedding`, then the fields of the segments but for their pixels."""
        vector = Field(
            name="embedding", dtype="float16", shape=(self.embedder.dim,), axes="D", kind="embedding",
            meaning="of the segment, of norm 1; the model is in the attributes",
        )  # fmt: skip
        rest = [field for field in self.segments.fields if field.name not in _CROP]
        return Schema([vector, *(one if one.is_variable else replace(one, file="segment") for one in rest)])

    def identity(self) -> dict[str, object]:
        """Model, weights and transform; and all that crops are made by."""
        return {
            "stage": self.name,
            "version": self.version,
            "embedder": dict(self.embedder.identity()),
            "recipe": self.recipe,
            "bg_alpha": self.bg_alpha,
            "pad_ratio": self.pad_ratio,
            "path": self.path,
        }

    def setup(self, device: str) -> None:
        """Makes the buffers; with several devices, opens the model on this worker's.

        Args:
            device: as the embedder's; "cuda" is the one GPU that this worker sees, whatever its number is elsewhere.

        Raises:
            UsageError: the model's weights have changed, or the device is not the embedder's.
        """
        own = self.embedder.device
        if device not in ("auto", own, own.partition(":")[0]):
            raise UsageError(f"device: the embedder was opened on {own}, asked for {device}")
        kind, _, first = own.partition(":")
        number = 0 if device == "cuda" else int(first or 0) + worker_number() % self.devices
        if kind != "cpu" and number != int(first or 0) and self.reopen is not None:
            before = self.embedder.identity()
            self.embedder = self.reopen(device=f"{kind}:{number}")
            if self.embedder.identity() != before:
                raise UsageError(f"{self.embedder.spec}: the model changed while the run was starting; run again")
        self._pixels = FastPixels(
            self.embedder.transform, self.bg_alpha, device=self.embedder.device, count=self.model_batch
        )

    def __call__(self, records: list[Record]) -> list[Record]:
        """One vector for each segment.

        Raises:
            BadData: the model gives no finite vector for one of them.
        """
        count = len(records)
        while count > 1 and records[count - 2] is records[count - 1]:
            count -= 1  # the job's padding
        with one_thread(self.embedder.device):  # `setup` has loaded torch
            vectors = self._embedded([self._crop(record) for record in records[:count]])
        if not np.isfinite(vectors).all():
            raise BadData(f"{self.embedder.spec}: a vector with numbers that are not finite")
        halves = vectors.astype(np.float16)
        found = [self._row(record, vector) for record, vector in zip(records[:count], halves, strict=True)]
        return found + found[-1:] * (len(records) - count)

    def _row(self, record: Record, vector: np.ndarray) -> Record:
        return {"embedding": vector, **{name: record[name] for name in self.segments if name not in _CROP}}

    def _crop(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(record["pixels"]), np.asarray(record["inside"])

    def _embedded(self, crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """(n, D) float32, in batches of one size; a last one is filled up with its last crop."""
        import torch

        size, parts = self.model_batch, [np.zeros((0, self.embedder.dim), np.float32)]
        for start in range(0, len(crops), size):
            some = crops[start : start + size]
            pixels = self._prepared(some)
            if len(some) < size:
                pixels = torch.cat([pixels, pixels[-1:].expand(size - len(some), *pixels.shape[1:])])
            parts.append(self.embedder.embed(pixels)[: len(some)].float().cpu().numpy())
        return np.concatenate(parts)

    def _prepared(self, crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> "torch.Tensor":
        import torch

        if self.path == "reference":
            return torch.from_numpy(np.stack([self.reference_pixels(*crop) for crop in crops]))
        if self._pixels is None:
            raise UsageError("EmbedSegments: call setup() first")
        return self._pixels(crops)

    def reference_pixels(self, pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """(3, h, w) float32 by NumPy, Pillow and the model's own transform."""
        from PIL import Image

        return self.embedder.prepare(Image.fromarray(blend(pixels, inside, self.bg_alpha)))


def attributes_of(stage: EmbedSegments) -> Mapping[str, object]:
    """What the store of vectors says of itself."""
    return {
        "kind": "embeddings",
        "spec": stage.embedder.spec,
        "dim": stage.embedder.dim,
        "recipe": stage.recipe,
        "bg_alpha": stage.bg_alpha,
        "pad_ratio": stage.pad_ratio,
        "path": stage.path,
        "crop_version": _CODE,
    }


def model_batch(rows: int, device: str) -> int:
    """Crops per call of the model, always: so that a row's vector does not depend on how many come with it.

    Args:
        rows: of the stage's call.
        device: "cpu" or "cuda:N".
    """
    return min(rows, BATCHES[device.partition(":")[0]])
