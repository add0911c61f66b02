"""The stage of embed: the fast path is the reference; a vector does not depend on its company."""

import pickle
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from PIL import Image

from penstock.errors import BadData, UsageError
from penstock.geometry.segment_crops import blend, blend_table
from penstock.models.embedders import open_embedder
from penstock.models.protocols import Embedder, PictureTransform
from penstock.models.transform import picture_pixels
from penstock.schema import Field, Record, Schema
from penstock.stages import embed_pixels
from penstock.stages.embed import EmbedSegments
from penstock.stages.embed_pixels import FastPixels, batched_pixels, columns_first

pytest.importorskip("torch")

SEGMENTS = Schema(
    [
        Field(name="pixels", dtype="uint8", shape=(None, None, 3)),
        Field(name="inside", dtype="uint8", shape=(None, None)),
        Field(name="box", dtype="float32", shape=(4,)),
        Field(name="path", dtype="str"),
    ]
)
SQUARE = PictureTransform(size_hw=(32, 32), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
OBLONG = PictureTransform(size_hw=(24, 40), interpolation="bilinear")
SHORTEST = PictureTransform(size_hw=(32, 32), resize="shortest")
SIDES = (1, 2, 3, 5, 8, 13, 31, 32, 33, 64, 100, 250)
SIZES = [(height, width) for height in SIDES for width in SIDES]


@cache
def tiny() -> Embedder:
    return open_embedder("tiny:", device="cpu")


def photo(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges, and a little noise: as photos are."""
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    smooth[: height // 2, : width // 3] //= 3
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def crop_of(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - height / 2) / height) ** 2 + ((columns - width / 2) / width) ** 2 <= 0.2
    inside[height // 2, width // 2] = True
    return photo(height, width), inside.astype(np.uint8)


def record_of(height: int, width: int) -> Record:
    pixels, inside = crop_of(height, width)
    box = np.array([0, 0, width, height], np.float32)
    return {"pixels": pixels, "inside": inside, "box": box, "path": f"{height}x{width}.jpg"}


def stage_of(**options: object) -> EmbedSegments:
    known: dict[str, object] = {"embedder": tiny(), "segments": SEGMENTS, "recipe": "native", "pad_ratio": 0.1}
    stage = EmbedSegments(**(known | {"batch_size": 8} | options))  # type: ignore[arg-type]
    stage.setup("cpu")
    return stage


def vectors_of(stage: EmbedSegments, records: Sequence[Record]) -> np.ndarray:
    size = stage.batch_size
    parts = [stage(list(records[start : start + size])) for start in range(0, len(records), size)]
    return np.stack([np.asarray(row["embedding"], np.float64) for part in parts for row in part])


@pytest.mark.parametrize("transform", [SQUARE, OBLONG, SHORTEST], ids=["square", "oblong", "shortest"])
@pytest.mark.parametrize("how", ["alone", "together"])
def test_fast_pixels_are_the_reference_to_a_step_or_two(transform: PictureTransform, how: str) -> None:
    crops = [crop_of(*size) for size in SIZES]
    if how == "alone":
        make = FastPixels(transform, 0.3, device="cpu", count=len(crops))
        found = make(crops).numpy()
    else:
        found = batched_pixels(crops, blend_table(0.3), transform, "cpu").numpy()
    scale = np.array(transform.std, np.float32).reshape(3, 1, 1) * 255
    for pixels, (crop, inside) in zip(found, crops, strict=True):
        expected = picture_pixels(Image.fromarray(blend(crop, inside, 0.3)), transform)
        steps = np.abs(pixels - expected) * scale
        assert steps.max() < 3.01, crop.shape
        assert (steps > 0.5).mean() < 0.05, crop.shape


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (700, 90), (90, 700), (640, 1)])
def test_large_crops_are_the_reference_too(size: tuple[int, int]) -> None:
    transform = PictureTransform(size_hw=(224, 224))
    crop = crop_of(*size)
    expected = picture_pixels(Image.fromarray(blend(*crop, 0.3)), transform)
    for found in (
        FastPixels(transform, 0.3, device="cpu", count=1)([crop]),
        batched_pixels([crop], blend_table(0.3), transform, "cpu"),
    ):
        steps = np.abs(found[0].numpy() - expected) * 127.5
        assert steps.max() < 3.01
        assert (steps > 0.5).mean() < 0.05


def test_the_order_of_passes_is_known_for_this_pillow() -> None:
    stripes = np.random.default_rng(0).integers(0, 2, (90, 20, 3), dtype=np.uint8) * 255
    ours = FastPixels(PictureTransform(size_hw=(32, 32)), 1.0, device="cpu", count=1)
    found = ours([(stripes, np.ones((90, 20), np.uint8))])[0].numpy()
    expected = picture_pixels(Image.fromarray(stripes), PictureTransform(size_hw=(32, 32)))
    assert (np.abs(found - expected) * 127.5 > 2).mean() < 0.01
    assert not columns_first((20, 90), (32, 32))


def test_vectors_by_the_fast_path_are_those_by_the_reference() -> None:
    records = [record_of(*size) for size in SIZES]
    fast, reference = (vectors_of(stage_of(path=path), records) for path in ("fast", "reference"))
    cosines = (fast * reference).sum(1) / np.linalg.norm(fast, axis=1) / np.linalg.norm(reference, axis=1)
    assert cosines.min() >= 0.9995
    assert np.median(cosines) >= 0.9999


def test_rows_are_unit_vectors_with_what_was_said_of_the_segment() -> None:
    stage = stage_of()
    (row,) = stage([record_of(9, 7)])
    assert list(row) == list(stage.schema) == ["embedding", "box", "path"]
    assert stage.schema["embedding"].shape == (tiny().dim,)
    assert stage.schema["embedding"].kind == "embedding"
    vector = np.asarray(row["embedding"])
    assert vector.dtype == np.float16
    assert abs(np.linalg.norm(vector.astype(float)) - 1) < 1e-3
    assert row["path"] == "9x7.jpg"


def test_a_vector_does_not_depend_on_its_company() -> None:
    stage = stage_of()
    records = [record_of(*size) for size in SIZES[:8]]
    together = vectors_of(stage, records)
    alone = np.concatenate([vectors_of(stage, [record] * 8)[:1] for record in records])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(("asked", "first", "opened"), [("cuda", 1, 0), ("cuda:1", 1, None), ("cuda", 0, None)])
def test_a_worker_that_sees_one_gpu_takes_it_whatever_its_number(asked: str, first: int, opened: int | None) -> None:
    own = pickle.loads(pickle.dumps(tiny()))
    own.device = f"cuda:{first}"
    calls: list[str] = []

    def reopen(*, device: str) -> Embedder:
        calls.append(device)
        return tiny()

    stage = EmbedSegments(embedder=own, segments=SEGMENTS, recipe="native", pad_ratio=0.1, batch_size=8, reopen=reopen)
    stage.setup(asked)
    assert calls == ([] if opened is None else [f"cuda:{opened}"])


@pytest.mark.parametrize("largest", [1, 5000, 1 << 24])
def test_large_crops_are_resized_together_with_fewer_others(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_pixels, "_PIXELS", largest)
    crops = [crop_of(*size) for size in SIZES[::3]]
    shapes = [inside.shape for _, inside in crops]
    bunches = list(embed_pixels._bunches(range(len(crops)), shapes))
    assert [number for bunch in bunches for number in bunch] == list(range(len(crops)))
    for bunch in bunches:
        tall, wide = (max(shapes[number][axis] for number in bunch) for axis in (0, 1))
        assert len(bunch) == 1 or (len(bunch) <= 32 and len(bunch) * tall * wide <= largest)
    found = batched_pixels(crops, blend_table(0.3), SQUARE, "cpu")
    monkeypatch.setattr(embed_pixels, "_PIXELS", 1 << 24)
    assert float((found - batched_pixels(crops, blend_table(0.3), SQUARE, "cpu")).abs().max()) < 0.05


def test_padding_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(batch_size=64)
    calls: list[int] = []
    embedded = EmbedSegments._embedded

    def counted(self: EmbedSegments, crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        calls.append(len(crops))
        return embedded(self, crops)

    monkeypatch.setattr(EmbedSegments, "_embedded", counted)
    one, two = record_of(4, 5), record_of(6, 7)
    found = stage([one, two, *[two] * 62])
    assert calls == [2]
    assert len(found) == 64
    np.testing.assert_array_equal(np.asarray(found[1]["embedding"]), np.asarray(found[63]["embedding"]))


def test_a_pickled_stage_gives_the_same_bytes() -> None:
    stage = stage_of()
    again = pickle.loads(pickle.dumps(stage))
    again.setup("cpu")
    records = [record_of(20, 30)] * 8
    np.testing.assert_array_equal(vectors_of(stage, records), vectors_of(again, records))
    assert again.identity() == stage.identity()


def test_vectors_that_are_not_finite_are_bad_data(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of()
    monkeypatch.setattr(EmbedSegments, "_embedded", lambda self, crops: np.full((len(crops), 64), np.nan, np.float32))
    with pytest.raises(BadData, match="not finite"):
        stage([record_of(4, 5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"path": "quick"}, "path: expected fast or reference"), ({"bg_alpha": 1.5}, "bg-alpha: expected 0..1")],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage_of(**options)


def test_another_device_than_the_models_is_refused() -> None:
    with pytest.raises(UsageError, match="the embedder was opened on cpu, asked for cuda:1"):
        stage_of().setup("cuda:1")


def test_identity_names_all_that_the_vectors_depend_on() -> None:
    base = stage_of().identity()
    assert base["embedder"] == tiny().identity()
    for change in ({"bg_alpha": 0.2}, {"pad_ratio": 0.2}, {"recipe": "legacy-640"}, {"path": "reference"}):
        assert stage_of(**change).identity() != base
    assert stage_of(batch_size=16).identity() == base
