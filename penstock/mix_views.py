"""Two views of an object, at the sizes that models want: what a mixture of datasets gives for each position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.schema import Field, Record, Schema

PROVENANCE = Schema(
    [
        Field(name="source", dtype="str", kind="text", meaning="name of the part that the sample comes from"),
        Field(name="key1", dtype="str", kind="text", meaning="key of the first view's row in its source"),
        Field(
            name="key2", dtype="str", kind="text", meaning="key of the second view's row; key1 where there is no pair"
        ),
        Field(
            name="row", dtype="int64", kind="number", meaning="number of the draw's row in its part, after substitution"
        ),
        Field(name="planned_row", dtype="int64", kind="number", meaning="the row that the plan said"),
        Field(
            name="epoch", dtype="int64", kind="number", meaning="how often all rows of the part had been drawn before"
        ),
        Field(name="position", dtype="int64", kind="number", meaning="global position in the plan"),
        Field(name="attempt", dtype="int64", kind="number", meaning="0, or how many rows had failed before this one"),
        Field(
            name="retries",
            dtype="int64",
            kind="number",
            meaning="reads repeated after a failure of the disk or the net",
        ),
        Field(name="seed", dtype="uint64", kind="number", meaning="for all that is random about the sample"),
        Field(name="failures", dtype="str", kind="text", meaning="JSON list of the source's rows that failed"),
    ]
)
"""Where a sample comes from; in every batch."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Sizes of the views. Pictures and masks are stretched to squares, each from the original, so all samples have one size.

    Raises:
        UsageError: a size is below 1.
    """

    size: int = 1024
    """Side of `image1`, `mask1`, `image2`, `mask2`."""
    small: int = 0
    """Side of `small1`, `small2`, the captioner's pictures (448 for Sa2VA); 0: none."""
    grid: int = 0
    """Side of `region1`, `region2`, the mask on the captioner's grid (16 for Sa2VA); 0: none."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.small < 0 or self.grid < 0:
            raise UsageError(f"Views: expected size of 1 or more, small and grid of 0 or more, got {self}")

    @property
    def schema(self) -> Schema:
        """Fields of a sample without its provenance."""
        fields = []
        for view in "12":
            fields.append(_square(f"image{view}", self.size, "image", "RGB, 0..255, stretched"))
            fields.append(_square(f"mask{view}", self.size, "mask", "0 or 1, stretched"))
            if self.small:
                fields.append(_square(f"small{view}", self.small, "image", "RGB, 0..255, stretched from the original"))
            if self.grid:
                fields.append(
                    _square(f"region{view}", self.grid, "mask", "0 or 1: more than half of the cell is covered")
                )
        return Schema(
            [
                *fields,
                Field(name="is_pair", dtype="bool", kind="flag", meaning="view 2 is another picture than view 1"),
                Field(
                    name="caption",
                    dtype="str",
                    kind="text",
                    meaning="a human's sentence about the object; mostly empty",
                ),
            ]
        )

    def view(self, record: Record) -> dict[str, np.ndarray]:
        """One view: image, mask and, where asked for, small and region, of a record with `image` (H, W, 3) uint8 RGB and
        `mask` (H, W) 0 or 1. A mask that is not empty stays so at every size.

        Raises:
            BadData: the picture is none, or the mask is empty, is no mask, or of another size.
        """
        from penstock.geometry.images import stretch
        from penstock.geometry.masks import binary_mask, resize_mask

        image, mask = np.asarray(record["image"]), binary_mask(np.asarray(record["mask"]))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise BadData(f"image: expected (H, W, 3) uint8, got {image.shape} of {image.dtype}{_strange(image)}")
        if mask.shape != image.shape[:2]:
            raise BadData(f"mask: expected the picture's size {image.shape[:2]}, got {mask.shape}")
        if not mask.any():
            raise BadData("mask: it is empty")
        square = (self.size, self.size)
        found = {"mask": resize_mask(mask, square)}  # first: it refuses what is too large
        found["image"] = stretch(image, square)
        if self.small:
            found["small"] = stretch(image, (self.small, self.small))
        if self.grid:
            found["region"] = resize_mask(mask, (self.grid, self.grid))
        return found

    def sample(self, views: Sequence[Mapping[str, np.ndarray]], caption: str) -> Record:
        """A sample of two views, or of one, which then is view 2 as well: the same arrays."""
        sample: Record = {"is_pair": np.asarray(len(views) == 2), "caption": caption}
        for number, view in (("1", views[0]), ("2", views[-1])):
            sample.update({f"{name}{number}": value for name, value in view.items()})
        return sample


def _strange(values: np.ndarray) -> str:
    """What a message adds for numbers that are none."""
    return "" if values.dtype.kind != "f" or np.isfinite(values).all() else ", with values that are not finite"


def _square(name: str, side: int, kind: str, meaning: str) -> Field:
    picture = kind == "image"
    shape, axes = ((side, side, 3), "H W C") if picture else ((side, side), "H W")
    return Field(name=name, dtype="uint8", shape=shape, axes=axes, kind=kind, meaning=meaning)
