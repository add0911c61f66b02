"""Teachers: SAM2 by transformers' real classes, tiny, with random weights; and the stand-in."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("cv2")

from penstock.errors import BadData, SourceNotFound, UsageError  # noqa: E402
from penstock.models.distill_protocols import Teacher, TeacherOptions, level_stride  # noqa: E402
from penstock.models.sam2_config import ARCHITECTURES  # noqa: E402
from penstock.models.sam2_pixels import model_pixels  # noqa: E402
from penstock.models.sam2_teacher import Sam2Teacher  # noqa: E402
from penstock.models.sam2_weights import build, open_weights  # noqa: E402
from penstock.models.stand_in import StandInDecoder, StandInTeacher  # noqa: E402
from penstock.models.teachers import open_teacher  # noqa: E402
from tests.models.sam2_data import picture  # noqa: E402
from tests.models.test_sam2_weights import as_meta  # noqa: E402

CPU = TeacherOptions(device="cpu")
PICTURES = [picture(60, 80), picture(45, 30, seed=1), picture(128, 128, seed=2)]


@pytest.fixture(scope="module")
def sam2() -> Teacher:
    return open_teacher("random:tiny:3", CPU)


@pytest.fixture(scope="module")
def stand_in() -> Teacher:
    return open_teacher("stand-in", TeacherOptions(device="cpu", image_size=256))


@pytest.mark.parametrize("name", ["sam2", "stand_in"])
def test_features_are_as_the_levels_say_and_do_not_depend_on_company(name: str, request: pytest.FixtureRequest) -> None:
    teacher: Teacher = request.getfixturevalue(name)
    together = teacher.features(PICTURES)
    assert [*together] == [*teacher.levels]
    assert [level.side for level in teacher.levels.values()] == sorted(
        (level.side for level in teacher.levels.values()), reverse=True
    )
    for level_name, level in teacher.levels.items():
        assert (level.name, level.stride) == (level_name, level_stride(level_name))
        assert level.side * level.stride == teacher.image_size
        assert together[level_name].shape == (len(PICTURES), *level.shape)
        assert together[level_name].dtype == torch.float32
        alone = torch.cat([teacher.features([one])[level_name] for one in PICTURES])
        torch.testing.assert_close(together[level_name], alone, rtol=1e-4, atol=1e-4)
    again = pickle.loads(pickle.dumps(teacher))
    assert again.identity() == teacher.identity()
    for level_name, values in again.features(PICTURES[:1]).items():
        np.testing.assert_array_equal(values.numpy(), teacher.features(PICTURES[:1])[level_name].numpy())
    assert set(teacher.libraries()) >= {"torch"}
    with pytest.raises(BadData, match="expected a picture"):
        teacher.features([np.zeros((4, 4), np.uint8)])


def test_sam2_gives_the_raw_pyramid_with_its_coarsest_level(sam2: Teacher) -> None:
    assert [*sam2.levels] == ["P2_S4", "P3_S8", "P4_S16", "P5_S32"]
    found = sam2.features(PICTURES[:1])
    network = build(open_weights("random:tiny:3"))
    with torch.inference_mode():
        pixels = model_pixels(PICTURES[:1], 128, "cpu")
        predictor = network.get_image_embeddings(pixels)[-1]  # as SAM2's own predictor: with the embedding
        raw = predictor - network.no_memory_embedding.reshape(1, -1, 1, 1)
        finer = network.vision_encoder(pixels).fpn_hidden_states  # transformers drops the last level
    torch.testing.assert_close(found["P4_S16"], raw, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found["P4_S16"], predictor, atol=1e-2)
    for level, wanted in zip(("P2_S4", "P3_S8", "P4_S16"), finer, strict=True):
        torch.testing.assert_close(found[level], wanted)
    assert sam2.identity()["random_weights"] is True


def test_meta_s_checkpoint_and_a_folder_of_transformers_are_one_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "b+", ARCHITECTURES["tiny"])
    weights = open_weights("random:tiny:3")
    torch.save({"model": as_meta(weights.state)}, tmp_path / "meta.pt")
    build(weights).save_pretrained(tmp_path / "folder")
    meta = open_teacher(options=TeacherOptions(weights=str(tmp_path / "meta.pt"), device="cpu"))
    folder = open_teacher(options=TeacherOptions(weights=str(tmp_path / "folder"), device="cpu"))
    own = open_teacher(str(tmp_path / "folder"), CPU)
    assert meta.name == folder.name == "sam2.1_hiera_b+"
    assert meta.identity() == folder.identity() == own.identity()
    assert "random_weights" not in meta.identity()
    wanted = open_teacher("random:tiny:3", CPU).features(PICTURES[:1])
    for one in (meta, folder, own):
        for name, values in one.features(PICTURES[:1]).items():
            np.testing.assert_array_equal(values.numpy(), wanted[name].numpy())


def test_weights_of_the_hub_of_another_architecture_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.models.sam2_teacher.open_weights", lambda *_, **__: open_weights("random:tiny"))
    with pytest.raises(UsageError, match=r"facebook/sam2\.1-hiera-tiny holds weights of another architecture than t$"):
        open_teacher("t", TeacherOptions(weights="facebook/sam2.1-hiera-tiny", device="cpu"))


def test_weights_that_change_while_it_is_pickled_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "b+", ARCHITECTURES["tiny"])
    path = tmp_path / "weights.pt"
    torch.save(as_meta(open_weights("random:tiny:1").state), path)
    content = pickle.dumps(open_teacher(options=TeacherOptions(weights=str(path), device="cpu")))
    torch.save(as_meta(open_weights("random:tiny:2").state), path)
    with pytest.raises(UsageError, match="the weights have changed since it was opened"):
        pickle.loads(content).features(PICTURES[:1])


def test_without_weights_it_says_what_to_do_and_never_takes_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for weights, place in ((None, r"model_zoo/sam/sam2\.1_hiera_base_plus\.pt"), ("nowhere.pt", "nowhere.pt")):
        with pytest.raises(SourceNotFound, match=rf"{place}: say --weights FILE .* --model-type stand-in"):
            open_teacher(options=TeacherOptions(weights=weights, device="cpu"))
    with pytest.raises(SourceNotFound, match="owner/unheard-of: say --weights"):
        open_teacher(options=TeacherOptions(weights="owner/unheard-of", device="cpu"))


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("random:huge", {}, "model-type 'random:huge'"),
        ("sam3.yaml", {}, "model-type 'sam3.yaml'"),
        ("random:tiny", {"image_size": 64}, "image-size 64: random:tiny sees 128 x 128"),
        ("random:tiny", {"precision": "bf16"}, "expected fp32 on a CPU"),
        ("random:tiny", {"device": "cuda:99"}, "cuda:99"),
        ("stand-in", {"weights": "a.pt"}, "has no weights"),
        ("stand-in", {"precision": "bf16"}, "works in fp32"),
        ("stand-in:x", {}, "has no weights"),
        ("stand-in", {"image_size": 100}, "a multiple of 32 with the stand-in, got 100"),
    ],
)
def test_what_cannot_be_is_said_at_once(model_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_teacher(model_type, TeacherOptions(**{"device": "cpu"} | options))


def test_weights_of_another_size_are_refused_with_advice(tmp_path: Path) -> None:
    torch.save(as_meta(open_weights("random:tiny").state), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"another architecture: .* say --model-type tiny"):
        open_teacher("t", TeacherOptions(weights=str(tmp_path / "w.pt"), device="cpu"))
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(BadData, match=r"w\.pt"):
        open_teacher("t", TeacherOptions(weights=str(tmp_path / "w.pt"), device="cpu"))


def test_the_stand_in_is_named_so_and_follows_what_is_seen(stand_in: Teacher) -> None:
    assert stand_in.name == stand_in.identity()["teacher"] == stand_in.identity()["weights"] == "stand-in"
    image = picture(256, 256)
    before = stand_in.features([image])
    for values in before.values():
        assert values.shape[1] == 256
        assert 0.5 < float(values.std()) < 2
        assert (values.flatten(2).std(2) > 0).all()  # no channel is dead
    image[:32, :32] = 0
    for name, values in stand_in.features([image]).items():
        changed = (values - before[name]).abs().amax((0, 1)) > 0
        cells, reach = 32 // level_stride(name), 4
        assert changed[:cells, :cells].all()
        assert not changed[cells + reach :, :].any()
        assert not changed[:, cells + reach :].any()


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture of 256 x 256 with a blob of another colour, its mask, and its box XYXY."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256]
    y, x = rng.uniform(90, 166, 2)
    inside = ((rows - y) / rng.uniform(30, 60)) ** 2 + ((columns - x) / rng.uniform(30, 60)) ** 2 < 1
    image = np.where(inside[..., None], rng.integers(0, 90, 3), rng.integers(140, 255, 3))
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    ys, xs = np.nonzero(inside)
    return image, inside, np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def test_the_stand_in_s_decoder_finds_the_object_of_a_box(stand_in: Teacher) -> None:
    decoder = StandInDecoder(image_size=256)
    images, masks, boxes = (np.stack(part) for part in zip(*(drawn(seed) for seed in range(6)), strict=True))
    logits = decoder(stand_in.features([*images])["P4_S16"], torch.from_numpy(boxes))
    assert logits.shape == (6, 64, 64)
    assert logits.dtype == torch.float32
    found = torch.nn.functional.interpolate(logits[:, None], (256, 256), mode="bilinear")[:, 0].numpy() > 0
    ious = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
    rectangle = masks.sum((1, 2)) / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert ious.mean() > max(0.85, rectangle.mean())


def test_the_decoder_s_gradients_pass_to_features_and_not_beyond_the_box(stand_in: Teacher) -> None:
    decoder = StandInDecoder(channels=5, image_size=128)
    features = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    boxes = torch.tensor([[16.0, 16, 80, 96], [0, 0, 128, 128]])
    logits = decoder(features, boxes)
    assert (logits[0, :, 24:] < 0).all()
    assert (logits[0, :2] < 0).all()
    torch.autograd.backward([logits.sigmoid().sum()])
    gradient = features.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient[0].abs().sum() > 0
    flat = torch.zeros(1, 5, 8, 8, requires_grad=True)
    torch.autograd.backward([decoder(flat, boxes[:1]).sum()])
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
    alone = decoder(features[:1], boxes[:1])
    torch.testing.assert_close(alone, logits[:1])
    assert decoder.identity()["weights"] == StandInTeacher(device="cpu", image_size=128).identity()["weights"]


def test_a_picture_that_does_not_fit_into_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Sam2Teacher("random:tiny", CPU)
    sizes: list[int] = []
    known = Sam2Teacher._pyramid

    def short(self: Sam2Teacher, images: Any) -> Any:
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return known(self, images)

    monkeypatch.setattr(Sam2Teacher, "_pyramid", short)
    room = 1
    assert teacher.features(PICTURES)["P5_S32"].shape[0] == 3
    assert sizes == [3, 1, 1, 1]
    assert teacher.features(PICTURES)["P5_S32"].shape[0] == 3
    assert sizes[4:] == [1, 1, 1]  # remembered
    room = 0
    with pytest.raises(BadData, match="out of memory on cpu with one picture"):
        teacher.features(PICTURES[:1])
