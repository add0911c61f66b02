"""The stage of convert sa1b-tar: rows against the truth, and every kind of bad input."""

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from penstock.errors import BadData, UsageError
from penstock.geometry.masks import resize_mask
from penstock.schema import Record
from penstock.stages.convert import Sa1bConvert, derived_fields
from penstock.store.v1_schema import V1_FILES, V1_SCHEMA
from penstock.testing import encode_picture, make_sample

TINY = {"feature_size": 4, "channels": 2, "picture_size": 48, "edge_sizes": (16, 8), "map_sizes": (16, 8)}
Fields = dict[str, np.ndarray]


def as_record(picture: bytes, npz: bytes) -> Record:
    return {"picture": np.frombuffer(picture, np.uint8), "npz": np.frombuffer(npz, np.uint8)}


def tiny(seed: int = 0, **options: object) -> tuple[Record, dict[str, object]]:
    picture, npz, truth = make_sample(seed, **{**TINY, **options})
    return as_record(picture, npz), truth


def real(seed: int = 0, **options: object) -> tuple[Record, dict[str, object]]:
    picture, npz, truth = make_sample(seed, **options)
    return as_record(picture, npz), truth


def store_stage(record: Record | None = None, **options: object) -> Sa1bConvert:
    return Sa1bConvert.plan([record or tiny()[0]], **{"layout": "store", "image_size": 48, **options})


def convert(record: Record, stage: Sa1bConvert | None = None) -> Record:
    stage = stage or store_stage()
    stage.setup("cpu")
    (row,) = stage([record])
    assert list(row) == list(stage.schema)
    for name, field in stage.schema.items():
        field.encode(row[name])
    return row


def expected_masks(truth: dict[str, object]) -> np.ndarray:
    return np.stack([resize_mask(mask, (256, 256)) for mask in truth["masks"]])


def test_v1_records_have_the_documented_sizes() -> None:
    assert V1_FILES == {
        "images": 3_145_728,
        "features": 5_242_880,
        "edge_maps": 70_656,
        "weight_maps": 172_032,
        "bboxes": 16,
        "masks": 65_536,
        "metadata": 20,
    }
    assert sum(V1_FILES.values()) == 8_696_868


def test_a_v1_row_is_the_truth() -> None:
    record, truth = real(3)
    row = convert(record, Sa1bConvert.plan([record]))
    for name in V1_SCHEMA:
        if name in truth["fields"] and name not in ("bboxes", "masks"):
            np.testing.assert_array_equal(row[name], np.squeeze(truth["fields"][name]))
    np.testing.assert_array_equal(row["bboxes"], truth["boxes_xyxy"])
    np.testing.assert_array_equal(row["masks"], expected_masks(truth))
    assert np.abs(row["image"].astype(int) - truth["picture"]).mean() < 4
    assert (row["num_bboxes"], row["has_bbox"], row["image_shape"].tolist()) == (1, 1, [120, 160, 3])


def test_v1_keeps_the_first_box_and_counts_all() -> None:
    record, truth = real(num_boxes=3)
    row = convert(record, Sa1bConvert.plan([record]))
    np.testing.assert_array_equal(row["bboxes"], truth["boxes_xyxy"][:1])
    np.testing.assert_array_equal(row["masks"], expected_masks(truth)[:1])
    assert (row["num_bboxes"], row["has_bbox"]) == (3, 1)


def test_v1_without_a_box_has_the_documented_filler() -> None:
    record, _ = real(num_boxes=0)
    row = convert(record, Sa1bConvert.plan([record]))
    assert row["bboxes"].tolist() == [[0, 0, 1, 1]]
    assert not row["masks"].any()
    assert (row["num_bboxes"], row["has_bbox"]) == (0, 0)


def test_v1_derives_the_maps_that_v5_lacks_and_says_so() -> None:
    record, truth = real(variant="v5")
    stage = Sa1bConvert.plan([record])
    assert stage.derived == ("fg_map_128x128", "bg_map_128x128") == derived_fields(truth["fields"])
    assert stage.identity()["derived"] == list(stage.derived)
    row = convert(record, stage)
    for kind in ("fg", "bg"):
        large, small = row[f"{kind}_map_128x128"], row[f"{kind}_map_64x64"]
        np.testing.assert_allclose(large.sum(), small.sum(), rtol=1e-5)
        np.testing.assert_array_equal(large[::2, 1::2] * 4, small)
    whole, truth = real()
    np.testing.assert_array_equal(convert(whole, stage)["fg_map_128x128"], truth["fields"]["fg_map_128x128"])
    with pytest.raises(BadData, match=r"fg_map_128x128.*output of their own"):
        Sa1bConvert.plan([whole])([record])


@pytest.mark.parametrize("style", ["object_squeezed", "object_bool", "object_list", "plain", "flat"])
@pytest.mark.parametrize("num_boxes", [1, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_style_of_masks_is_right(style: str, num_boxes: int, compressed: bool) -> None:
    if style == "flat" and num_boxes > 1:
        num_boxes = 1
    record, truth = tiny(5, mask_style=style, num_boxes=num_boxes, compressed_npz=compressed)
    row = convert(record)
    np.testing.assert_array_equal(row["masks"], expected_masks(truth))
    np.testing.assert_array_equal(row["bboxes"], truth["boxes_xyxy"])
    assert all(mask.any() for mask in row["masks"])


def test_the_store_layout_holds_no_filler() -> None:
    row = convert(tiny(num_boxes=0)[0])
    assert row["bboxes"].shape == (0, 4)
    assert row["masks"].shape == (0, 256, 256)


def test_the_store_schema_is_what_the_npz_holds() -> None:
    def change(fields: Fields) -> None:
        fields["IMAGE_EMB_S16"] = fields.pop("P4_S16")[0]
        fields["P3_S8"] = np.zeros((2, 8, 8), np.float32)
        fields["unknown"] = np.zeros(3)
        fields["strange"] = np.array([None], dtype=object)

    stage = store_stage(tiny(change=change)[0])
    assert list(stage.schema) == [
        "image", "P3_S8", "P4_S16", "P5_S32", "edge_16x16", "edge_8x8",
        "fg_map_16x16", "bg_map_16x16", "fg_map_8x8", "bg_map_8x8", "bboxes", "masks", "image_shape",
    ]  # fmt: skip
    assert stage.schema["P4_S16"].shape == (2, 4, 4)
    assert "XYXY in original-image pixels" in stage.schema["bboxes"].meaning
    row = convert(tiny(change=change)[0], stage)
    np.testing.assert_array_equal(row["P4_S16"], tiny()[1]["fields"]["P4_S16"][0])


def test_planning_skips_what_cannot_be_read() -> None:
    broken: Record = {"picture": np.zeros(1, np.uint8), "npz": np.zeros(9, np.uint8)}
    assert "P4_S16" in Sa1bConvert.plan([broken, tiny()[0]], layout="store").schema
    with pytest.raises(BadData, match="no NPZ can be read.*expected a ZIP"):  # noqa: RUF043
        Sa1bConvert.plan([broken], layout="store")
    assert Sa1bConvert.plan([broken]).schema is V1_SCHEMA


def test_fields_choose_columns_and_cost_only_what_they_need() -> None:
    def change(fields: Fields) -> None:
        fields["P5_S32"] = np.full_like(fields["P5_S32"], np.nan)
        fields["masks"] = np.array(["text"], dtype=object)

    stage = store_stage(fields=["P4_S16", "image_shape"])
    picture, npz = b"no picture", tiny(change=change)[0]["npz"]
    row = convert({"picture": np.frombuffer(picture, np.uint8), "npz": npz}, stage)
    assert list(row) == ["P4_S16", "image_shape"]
    with pytest.raises(UsageError, match="no field depth; there are image, P4_S16"):
        store_stage(fields=["depth"])


@pytest.mark.parametrize(
    "options",
    [
        {"image_codec": "jpeg"},
        {"feature_dtype": "float16"},
        {"image_size": 512},
        {"fields": ["image"]},
        {"layout": "v3"},
        {"layout": "store", "image_codec": "webp"},
        {"layout": "store", "feature_dtype": "int8"},
        {"layout": "store", "image_size": 0},
    ],
)
def test_what_cannot_be_is_refused_with_the_flag_named(options: dict[str, object]) -> None:
    name = [key for key in options if key != "layout"] or ["layout"]
    with pytest.raises(UsageError, match="--" + name[0].replace("_", "-")):
        Sa1bConvert.plan([tiny()[0]], **options)


def test_float16_features_round_and_refuse_what_does_not_fit() -> None:
    stage = store_stage(feature_dtype="float16")
    record, truth = tiny()
    np.testing.assert_array_equal(convert(record, stage)["P4_S16"], truth["fields"]["P4_S16"][0].astype(np.float16))

    def change(fields: Fields) -> None:
        fields["P4_S16"][0, 1, 2, 3] = 1e6

    with pytest.raises(BadData, match=r"P4_S16: expected finite numbers that fit float16, got inf at \(1, 2, 3\)"):
        convert(tiny(change=change)[0], stage)


def test_jpegs_of_the_right_size_pass_untouched() -> None:
    record, truth = tiny()
    row = convert(record, store_stage(image_codec="jpeg"))
    assert row["image_jpeg"].tobytes() == truth["picture_bytes"]


@pytest.mark.parametrize(("options", "size"), [({"picture": "png"}, 48), ({}, 40)])
def test_other_pictures_are_encoded_anew(options: dict[str, str], size: int) -> None:
    record, _ = tiny(**options)
    row = convert(record, store_stage(image_codec="jpeg", image_size=size))
    with Image.open(io.BytesIO(row["image_jpeg"].tobytes())) as picture:
        assert (picture.format, picture.size) == ("JPEG", (size, size))


def test_a_picture_of_another_size_is_stretched() -> None:
    assert convert(tiny(picture_size=None)[0])["image"].shape == (48, 48, 3)


def test_identity_is_plain_and_tells_recipes_apart() -> None:
    stages = [store_stage(), store_stage(feature_dtype="float16"), store_stage(image_codec="jpeg"),
              store_stage(image_size=32), store_stage(fields=["image"]), store_stage(model_type="other"),
              Sa1bConvert.plan([tiny()[0]])]  # fmt: skip
    texts = {json.dumps(stage.identity(), sort_keys=True) for stage in stages}
    assert len(texts) == len(stages)
    assert json.dumps(store_stage().identity()) == json.dumps(store_stage().identity())


def test_equal_input_gives_equal_bytes() -> None:
    record, _ = tiny(2, num_boxes=2)
    first, second = convert(record), convert(record)
    assert all(np.asarray(first[name]).tobytes() == np.asarray(second[name]).tobytes() for name in first)


def test_no_image_shape_means_the_picture_s_own() -> None:
    row = convert(tiny(change=lambda fields: fields.pop("image_shape"))[0])
    assert row["image_shape"].tolist() == [48, 48, 3]


def test_a_tiny_object_keeps_a_cell() -> None:
    def change(fields: Fields) -> None:
        mask = np.zeros((2000, 2000), np.uint8)
        mask[1000, 500] = 1
        fields["masks"] = mask[None]

    masks = convert(tiny(change=change)[0])["masks"]
    assert np.argwhere(masks[0]).tolist() == [[1000 * 256 // 2000, 500 * 256 // 2000]]


def put(name: str, value: object) -> Callable[[Fields], None]:
    return lambda fields: fields.__setitem__(name, np.asarray(value))


def cell(name: str, value: float) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        fields[name].flat[0] = value

    return change


MASK = np.ones((1, 5, 5), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("P4_S16"), r"P4_S16: expected the field \(or IMAGE_EMB_S16\) in the NPZ, got none"),
        (lambda fields: fields.pop("edge_8x8"), "edge_8x8: expected the field in the NPZ, got none"),
        (lambda fields: fields.pop("bg_map_16x16"), "bg_map_16x16: expected the field"),
        (lambda fields: fields.pop("masks"), "masks: expected one .* for each of 1 boxes, got no masks"),
        (
            put("P4_S16", np.zeros((2, 4, 5), np.float32)),
            r"P4_S16: expected floats of shape \(2, 4, 4\).*got \(2, 4, 5\)",
        ),
        (put("P4_S16", np.zeros((2, 4, 4), np.int32)), r"P4_S16: expected floats .* got \(2, 4, 4\) int32"),
        (put("P4_S16", np.array([MASK], dtype=object)), "'P4_S16': expected numbers, got an object array"),
        (cell("P5_S32", np.nan), r"P5_S32: expected finite numbers .* got nan at \(0, 0, 0\)"),
        (cell("P5_S32", np.inf), "P5_S32: expected finite numbers"),
        (cell("fg_map_8x8", np.nan), r"fg_map_8x8: expected finite numbers, got nan at \(0, 0\)"),
        (put("fg_map_8x8", np.zeros((8, 9), np.float32)), r"fg_map_8x8: expected shape \(8, 8\), got \(8, 9\)"),
        (put("fg_map_8x8", np.zeros((8, 8), np.int8)), "fg_map_8x8: expected floats, got int8"),
        (cell("edge_8x8", 255), "edge_8x8: expected 0 and 1 only, got uint8 from 0 to 255"),
        (put("bboxes", np.ones((1, 5))), r"bboxes: expected numbers of shape \(N, 4\), XYWH, got \(1, 5\)"),
        (put("bboxes", np.ones(4)), r"bboxes: .* got \(4,\)"),
        (put("bboxes", [["a", "b", "c", "d"]]), "bboxes: expected numbers"),
        (put("bboxes", [[1, 2, np.nan, 4]]), r"bboxes: expected finite numbers, got nan at \(0, 2\)"),
        (put("bboxes", [[1, 2, 0, 4]]), "bboxes: expected width and height above 0"),
        (put("bboxes", [[1, 2, 3, -4]]), "bboxes: expected width and height above 0"),
        (put("bboxes", np.ones((2, 4))), "masks: expected one .* for each of 2 boxes, got masks of shape"),
        (put("bboxes", np.zeros((0, 4))), "masks: expected one .* for each of 0 boxes"),
        (put("masks", np.zeros((1, 5, 5))), "masks: expected a mask that is not empty for box 0"),
        (put("masks", MASK * 7), "masks: expected 0 and 1 .* got 7 to 7"),
        (put("masks", MASK * np.nan), "masks: expected 0 and 1"),
        (put("masks", MASK[:, :, :0]), "masks: expected numbers"),
        (put("masks", MASK[None]), "masks: expected one"),
        (put("image_shape", [20, 24]), r"image_shape: expected three positive integers .* got \[20, 24\]"),
        (put("image_shape", [20, 0, 3]), "image_shape: expected three positive"),
        (put("image_shape", [20.0, 24.0, 3.0]), "image_shape: .* float64"),
    ],
)
def test_a_bad_field_is_named_with_expected_and_found(change: Callable[[Fields], None], message: str) -> None:
    record, _ = tiny(change=change)
    with pytest.raises(BadData, match=message):
        store_stage()([record])


@pytest.mark.parametrize("boxes", [np.zeros(0, np.float32), np.zeros((0, 4), np.float32)])
def test_empty_box_arrays_mean_no_box(boxes: np.ndarray) -> None:
    assert convert(tiny(num_boxes=0, change=put("bboxes", boxes))[0])["bboxes"].shape == (0, 4)


def test_masks_of_0_and_255_are_masks() -> None:
    record, truth = tiny(mask_style="plain", change=lambda fields: fields.update(masks=fields["masks"] * 255))
    np.testing.assert_array_equal(convert(record)["masks"], expected_masks(truth))


def _cmyk(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _turned(pixels: np.ndarray) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_bad_pictures_are_named_and_cmyk_is_read() -> None:
    record, truth = tiny()
    pixels = truth["picture"]
    jpeg = encode_picture(pixels)
    bad = {"truncated": jpeg[: len(jpeg) - 20], "cannot be told": _turned(pixels), "expected a JPEG or a PNG": b"text"}
    for message, content in bad.items():
        with pytest.raises(BadData, match=message):
            convert({**record, "picture": np.frombuffer(content, np.uint8)})
    row = convert({**record, "picture": np.frombuffer(_cmyk(pixels), np.uint8)})
    assert np.abs(row["image"].astype(int) - pixels).mean() < 4
