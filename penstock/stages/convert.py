"""The stage of `penstock convert sa1b-tar`: a picture and an NPZ in, a row of the v1 or of the store layout out."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.geometry.images import decode_picture, encode_jpeg, picture_header, stretch
from penstock.geometry.opencv import cv2
from penstock.readers.npz import npz_names, read_npz
from penstock.schema import Field, Record, Schema
from penstock.stages import sa1b_fields
from penstock.store.v1_schema import IMAGE_SIZE, MASK_SIZE, V1_SCHEMA

JPEG_QUALITY = 95
MASK_THRESHOLD = 0.5
MODEL_TYPE = "sam2.1_hiera_b+"

_BOXES_MEANING = "all boxes, XYXY in original-image pixels; N may be 0"
_MASKS_MEANING = f"one mask per box over the stretched picture, 0 or 1, area-averaged above {MASK_THRESHOLD}"


@dataclass(frozen=True, kw_only=True)
class Sa1bConvert:
    """Decodes, checks and reshapes one pair. Made by `plan`, which knows what the input holds.

    Input records: `picture` and `npz`, both (n,) uint8. Output records: exactly `schema`.
    """

    name: ClassVar[str] = "sa1b-convert"
    version: ClassVar[int] = 1
    bitwise: ClassVar[bool] = True
    batch_size: ClassVar[int] = 1

    schema: Schema
    layout: Literal["v1", "store"] = "v1"
    image_codec: Literal["raw", "jpeg"] = "raw"
    feature_dtype: Literal["float32", "float16"] = "float32"
    image_size: int = IMAGE_SIZE
    """Side of the square picture; its aspect is not kept."""
    model_type: str = MODEL_TYPE
    """Name of the teacher, recorded, not used."""
    derived: tuple[str, ...] = ()
    """Fields that the input lacks and that are computed from others; see `derived_fields`."""

    @classmethod
    def plan(
        cls,
        first_records: Iterable[Record],
        *,
        layout: Literal["v1", "store"] = "v1",
        image_codec: Literal["raw", "jpeg"] = "raw",
        feature_dtype: Literal["float32", "float16"] = "float32",
        fields: Sequence[str] | None = None,
        image_size: int = IMAGE_SIZE,
        model_type: str = MODEL_TYPE,
    ) -> "Sa1bConvert":
        """The stage for an input, of which the first readable NPZ tells what fields there are.

        Args:
            first_records: records of the input, in order; read until one can be.
            layout: "v1" is the fixed schema of v1 directories, "store" every known field that the NPZ has.
            image_codec: "jpeg" stores `image_jpeg` in place of `image`.
            feature_dtype: type of the feature fields.
            fields: which of the fields to keep; all for None.
            image_size: side of the picture.
            model_type: name of the teacher.

        Raises:
            UsageError: v1 cannot hold what is asked for, a value is unknown, or `fields` names one that is not there.
            BadData: the store layout is asked for and no NPZ can be read.
        """
        _check_options(layout, image_codec, feature_dtype, image_size)
        if layout == "v1":
            _check_v1(image_codec, feature_dtype, fields, image_size)
        arrays, failure = _first_readable(first_records)
        if layout == "v1":
            derived = () if arrays is None else derived_fields(arrays)
            return cls(schema=V1_SCHEMA, model_type=model_type, derived=derived)
        if arrays is None:
            raise BadData(
                f"no NPZ can be read, so the fields are not known; the first one: {failure or 'there is none'}"
            )
        found = _store_schema(arrays, image_codec, feature_dtype, image_size)
        if fields is not None and (unknown := [name for name in fields if name not in found]):
            raise UsageError(f"--fields: no field {', '.join(unknown)}; there are {', '.join(found)}")
        if fields is not None and not fields:
            raise UsageError(f"--fields: expected at least one of {', '.join(found)}, got none")
        return cls(
            schema=found.select(fields),
            layout=layout,
            image_codec=image_codec,
            feature_dtype=feature_dtype,
            image_size=image_size,
            model_type=model_type,
        )

    def identity(self) -> dict[str, object]:
        """What defines the output, as plain values: another identity is another recipe."""
        parameters = {key: value for key, value in asdict(self).items() if key != "schema"}
        return {
            "stage": self.name,
            "version": self.version,
            **parameters,
            "derived": list(self.derived),
            "fields": list(self.schema),
            "mask_size": MASK_SIZE,
            "mask_threshold": MASK_THRESHOLD,
            "boxes": "XYXY, original-image pixels",
        }

    def setup(self, device: str) -> None:
        """Once per worker: one OpenCV thread, since the job runs a process per core. `device` is not used."""
        cv2.setNumThreads(1)

    def __call__(self, records: list[Record]) -> list[Record]:
        """The rows of these pairs.

        Raises:
            BadData: a picture or a field is damaged or not as the format states. The message names the field.
        """
        return [self._convert(record) for record in records]

    def _convert(self, record: Record) -> Record:
        picture, npz = np.asarray(record["picture"]), np.asarray(record["npz"])
        arrays = read_npz(npz, names=sa1b_fields.wanted_names(set(self.schema)))
        shape = sa1b_fields.image_shape(arrays)
        row: Record = {}
        if shape is None or not {"image", "image_jpeg"}.isdisjoint(self.schema):
            content = picture.tobytes()
            original_hw = None if shape is None else (int(shape[0]), int(shape[1]))
            pixels = decode_picture(content, expected_hw=original_hw)
            shape = np.array(pixels.shape, np.int32) if shape is None else shape
            row |= self._picture(content, pixels)
        row |= self._objects(arrays)
        row["image_shape"] = shape
        row |= {name: self._dense(arrays, field) for name, field in self.schema.items() if name not in row}
        return {name: row[name] for name in self.schema}

    def _picture(self, content: bytes, pixels: np.ndarray) -> Record:
        if "image_jpeg" in self.schema:
            return {"image_jpeg": np.frombuffer(_as_jpeg(content, pixels, self.image_size), np.uint8)}
        return {"image": stretch(pixels, (self.image_size, self.image_size))} if "image" in self.schema else {}

    def _objects(self, arrays: sa1b_fields.Arrays) -> Record:
        """Boxes and masks. In v1 the first of them; 0 0 1 1 and zeros where there is none."""
        if "bboxes" not in self.schema and "masks" not in self.schema:
            return {}
        boxes = sa1b_fields.boxes_xyxy(arrays)
        if self.layout == "store":
            row: Record = {"bboxes": boxes}
            if "masks" in self.schema:
                row["masks"] = sa1b_fields.object_masks(arrays, len(boxes), size=MASK_SIZE)
            return row
        masks = sa1b_fields.object_masks(arrays, len(boxes), size=MASK_SIZE, keep=1)
        return {
            "bboxes": boxes[:1] if len(boxes) else np.array([[0, 0, 1, 1]], np.float32),
            "masks": masks if len(masks) else np.zeros((1, MASK_SIZE, MASK_SIZE), np.uint8),
            "num_bboxes": np.array(len(boxes), np.int32),
            "has_bbox": np.array(len(boxes) > 0, np.int32),
        }

    def _dense(self, arrays: sa1b_fields.Arrays, field: Field) -> np.ndarray:
        if field.kind == "features":
            return sa1b_fields.features(arrays, field)
        if field.kind == "mask":
            return sa1b_fields.edges(arrays, field)
        if field.name in sa1b_fields.DERIVED_FROM and field.name not in self.derived and field.name not in arrays:
            arrays = {}  # the first NPZ had the real map: this one may not pass a derived one off as such
        return sa1b_fields.weight_map(arrays, field)


def derived_fields(npz_names: Collection[str]) -> tuple[str, ...]:
    """The fields of v1 that an NPZ with these names lacks and that are computed from its others."""
    return tuple(
        name for name, source in sa1b_fields.DERIVED_FROM.items() if name not in npz_names and source in npz_names
    )


def _check_options(layout: str, image_codec: str, feature_dtype: str, image_size: int) -> None:
    allowed = {
        "--layout": (layout, ("v1", "store")),
        "--image-codec": (image_codec, ("raw", "jpeg")),
        "--feature-dtype": (feature_dtype, ("float32", "float16")),
    }
    for flag, (value, values) in allowed.items():
        if value not in values:
            raise UsageError(f"{flag}: expected one of {', '.join(values)}, got {value!r}")
    if not 1 <= image_size <= 1 << 14:
        raise UsageError(f"--image-size: expected 1..{1 << 14}, got {image_size}")


def _check_v1(image_codec: str, feature_dtype: str, fields: Sequence[str] | None, image_size: int) -> None:
    asked = {
        f"--image-codec {image_codec}": image_codec != "raw",
        f"--feature-dtype {feature_dtype}": feature_dtype != "float32",
        f"--image-size {image_size}": image_size != IMAGE_SIZE,
        "--fields": fields is not None,
    }
    refused = [flag for flag, there in asked.items() if there]
    if refused:
        raise UsageError(
            f"layout v1 holds raw pictures of {IMAGE_SIZE} x {IMAGE_SIZE}, float32 features and all of its fields; it "
            f"cannot hold {', '.join(refused)}: use --layout store"
        )


def _first_readable(records: Iterable[Record]) -> tuple[sa1b_fields.Arrays | None, str]:
    """The arrays of the first NPZ that can be read, or None and why the first one could not."""
    failure = ""
    for record in records:
        npz = np.asarray(record["npz"])
        try:
            return read_npz(npz, names=[name for name in npz_names(npz) if _is_known(name)]), ""
        except BadData as error:
            failure = failure or str(error)
    return None, failure


def _is_known(name: str) -> bool:
    patterns = (sa1b_fields.FEATURES, sa1b_fields.EDGES, sa1b_fields.MAPS)
    return name in sa1b_fields.ALIASES.values() or any(pattern.fullmatch(name) for pattern in patterns)


def _store_schema(arrays: sa1b_fields.Arrays, image_codec: str, feature_dtype: str, image_size: int) -> Schema:
    names = {sa1b_fields.npz_name("P4_S16", arrays): "P4_S16"}
    found = {names.get(name, name): array for name, array in arrays.items()}
    columns = [_picture_field(image_codec, image_size)]
    columns += [_features_field(name, found[name], feature_dtype) for name in _matching(sa1b_fields.FEATURES, found)]
    columns += [_square_field(name, "uint8", "mask") for name in _matching(sa1b_fields.EDGES, found)]
    columns += [_square_field(name, "float32", "map") for name in _matching(sa1b_fields.MAPS, found)]
    masks = {"dtype": "uint8", "shape": (None, MASK_SIZE, MASK_SIZE), "axes": "N H W", "kind": "mask"}
    return Schema(
        [
            *columns,
            Field(name="bboxes", dtype="float32", shape=(None, 4), axes="N 4", kind="boxes", meaning=_BOXES_MEANING),
            Field(name="masks", meaning=_MASKS_MEANING, **masks),  # type: ignore[arg-type]  # Field's own keywords
            V1_SCHEMA["image_shape"],
        ]
    )


def _matching(pattern: re.Pattern[str], names: Iterable[str]) -> list[str]:
    """Names that match as a whole, larger sizes first, foreground before background."""
    digits = {name: [-int(text) for text in re.findall(r"\d+", name)] for name in names}
    matching = [name for name in names if pattern.fullmatch(name)]
    if pattern is sa1b_fields.FEATURES:
        return sorted(matching, key=lambda name: digits[name][::-1], reverse=True)
    return sorted(matching, key=lambda name: (digits[name], name.startswith("bg")))


def _picture_field(image_codec: str, size: int) -> Field:
    meaning = f"RGB 0..255, the picture stretched to {size} x {size}"
    if image_codec == "jpeg":
        return Field(
            name="image_jpeg",
            dtype="uint8",
            shape=(None,),
            axes="N",
            kind="jpeg",
            meaning=f"JPEG of the picture stretched to {size} x {size}; its own bytes where it had that size",
        )
    return Field(name="image", dtype="uint8", shape=(size, size, 3), axes="H W C", kind="image", meaning=meaning)


def _features_field(name: str, array: np.ndarray, dtype: str) -> Field:
    shape = array.shape[1:] if array.ndim == 4 else array.shape
    if len(shape) != 3 or not all(shape):
        raise BadData(f"{name}: expected shape (C, h, w) or (1, C, h, w), got {array.shape}")
    stride = name.rpartition("_S")[2]
    meaning = f"teacher features, one column per {stride} x {stride} pixels of the teacher's input"
    return Field(name=name, dtype=dtype, shape=shape, axes="C H W", kind="features", meaning=meaning)


def _square_field(name: str, dtype: str, kind: str) -> Field:
    size = int(name.rpartition("x")[2])
    known = V1_SCHEMA.get(name)
    meaning = known.meaning if known else {"mask": "edges, 0 or 1", "map": "loss weights"}[kind]
    return Field(name=name, dtype=dtype, shape=(size, size), axes="H W", kind=kind, meaning=meaning)


def _as_jpeg(content: bytes, pixels: np.ndarray, size: int) -> bytes:
    """The file's own bytes where they are an upright JPEG, RGB or gray, of the size wanted; else encoded anew."""
    header = picture_header(content)
    upright = header.format == "JPEG" and header.mode in ("RGB", "L") and header.orientation == 1
    if upright and header.size_hw == (size, size):
        return content
    return encode_jpeg(stretch(pixels, (size, size)), quality=JPEG_QUALITY)
