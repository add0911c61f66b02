"""The schema of a v1 directory: seven files of fixed records, 8,696,868 bytes a row."""

from penstock.schema import Field, Schema

IMAGE_SIZE = 1024
MASK_SIZE = 256


def _map(kind: str, size: int) -> Field:
    where = "foreground" if kind == "fg" else "background"
    return Field(
        name=f"{kind}_map_{size}x{size}",
        dtype="float32",
        shape=(size, size),
        axes="H W",
        kind="map",
        meaning=f"{where} loss weights over the stretched picture",
        file="weight_maps",
    )


def _edges(size: int) -> Field:
    return Field(
        name=f"edge_{size}x{size}",
        dtype="uint8",
        shape=(size, size),
        axes="H W",
        kind="mask",
        meaning="edges of the stretched picture, 0 or 1",
        file="edge_maps",
    )


def _features(name: str, side: int, stride: int) -> Field:
    return Field(
        name=name,
        dtype="float32",
        shape=(256, side, side),
        axes="C H W",
        kind="features",
        meaning=f"teacher features, one column per {stride} x {stride} pixels of the stretched picture",
        file="features",
    )


V1_SCHEMA = Schema(
    [
        Field(
            name="image",
            dtype="uint8",
            shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
            axes="H W C",
            kind="image",
            meaning="RGB 0..255, the picture stretched to 1024 x 1024",
            file="images",
        ),
        _features("P4_S16", 64, 16),
        _features("P5_S32", 32, 32),
        *(_edges(size) for size in (256, 64, 32)),
        *(_map(kind, size) for size in (128, 64, 32) for kind in ("fg", "bg")),
        Field(
            name="bboxes",
            dtype="float32",
            shape=(1, 4),
            axes="N 4",
            kind="boxes",
            meaning="first box, XYXY in original-image pixels; 0 0 1 1 where there is none (see has_bbox)",
            file="bboxes",
        ),
        Field(
            name="masks",
            dtype="uint8",
            shape=(1, MASK_SIZE, MASK_SIZE),
            axes="N H W",
            kind="mask",
            meaning="mask of the first box over the stretched picture, 0 or 1; zeros where there is none",
            file="masks",
        ),
        Field(
            name="num_bboxes",
            dtype="int32",
            meaning="boxes of the picture, of which v1 keeps the first",
            file="metadata",
        ),
        Field(name="has_bbox", dtype="int32", meaning="1 if there is a box, else 0", file="metadata"),
        Field(
            name="image_shape",
            dtype="int32",
            shape=(3,),
            axes="3",
            meaning="height, width, channels of the original picture, in pixels",
            file="metadata",
        ),
    ]
)
"""Fields in the order of their bytes; `file` is the stem of the `.bin` file that holds them."""

V1_FILES: dict[str, int] = {}
"""Stem of each file -> bytes of one record, in the order in which the format names them."""
for _field in V1_SCHEMA.fields:
    V1_FILES[_field.file] = V1_FILES.get(_field.file, 0) + _field.item_bytes
