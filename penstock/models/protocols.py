"""What penstock asks of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from penstock.errors import BadData

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class PictureTransform:
    """How a picture becomes what a model is fed: resized, cropped, scaled to 0..1, normalised. Stated by the model."""

    size_hw: tuple[int, int]
    """Height and width that the model takes."""
    resize: Literal["squash", "shortest"] = "squash"
    """"squash": both sides to `size_hw`, aspect not kept. "shortest": the shorter side, then a crop from the centre."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Always antialiased, as Pillow does it."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of 0..1 RGB."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class BadVectors(BadData):
    """Some rows of a batch have no direction: NaN, infinite, or all zeros. `rows` are their places in the batch."""

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class Embedder(Protocol):
    """Pictures to unit vectors. Pickles without its weights, which are loaded again where they are needed."""

    spec: str
    """`TYPE:NAME`, as given."""
    dim: int
    """Numbers of a vector: the model's own, never assumed."""
    transform: PictureTransform
    device: str

    def identity(self) -> Mapping[str, object]:
        """What the vectors depend on: spec, dim, transform, hash of the weights, precision. Plain values."""
        ...

    def libraries(self) -> Mapping[str, str]:
        """Version of each library that the vectors were made with: recorded in a store, never compared."""
        ...

    def embed(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(N, 3, h, w) float32, normalised by `transform`, on any device, to (N, dim) float32 on `device`, rows of norm 1.

        N is what the caller likes: where memory is short the batch is halved, and the smaller size remembered.

        Raises:
            BadVectors: some vectors have no direction; `rows` says which.
            PenstockError: not even one picture fits into memory.
        """
        ...

    def prepare(self, picture: "Image.Image") -> np.ndarray:
        """The model's own transform, the reference for every faster one: an RGB picture to (3, h, w) float32."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32 of norm 1.

        Raises:
            UsageError: the model has no text tower, or its tokenizer is not on this machine.
        """
        ...
