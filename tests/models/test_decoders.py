"""The frozen decoder: transformers' real SAM2, tiny, with random weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from penstock.errors import SourceNotFound, UsageError  # noqa: E402
from penstock.geometry.boxes import scale_boxes  # noqa: E402
from penstock.models.decoders import open_decoder, parse_decoder, require_own, trainable_copy  # noqa: E402
from penstock.models.distill_protocols import Level, MaskDecoder, TeacherOptions  # noqa: E402
from penstock.models.sam2_decoder import Sam2Decoder  # noqa: E402
from penstock.models.sam2_pixels import model_pixels  # noqa: E402
from penstock.models.sam2_weights import build, open_weights  # noqa: E402
from penstock.models.teachers import open_teacher  # noqa: E402
from tests.models.sam2_data import picture  # noqa: E402

BOXES = torch.tensor([[3.0, 5, 80, 90], [0, 0, 128, 128], [40, 30, 50, 60], [100.5, 2.25, 120, 127]])


@pytest.fixture(scope="module")
def model() -> Any:
    return build(open_weights("random:tiny"))


@pytest.fixture(scope="module")
def decoder() -> Sam2Decoder:
    opened = open_decoder("random:tiny", device="cpu")
    assert isinstance(opened, Sam2Decoder)
    return opened


def features_of(seed: int = 0, count: int = len(BOXES)) -> Any:
    return torch.randn(count, 128, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_it_says_what_it_takes(decoder: MaskDecoder) -> None:
    assert (decoder.level, decoder.channels, decoder.image_size) == ("P4_S16", 128, 128)
    facts = decoder.identity()
    assert facts["weights"] == open_weights("random:tiny").digest
    assert (facts["model_type"], facts["random_weights"]) == ("random:tiny", True)
    assert facts["weights"] != open_decoder("random:tiny:1", device="cpu").identity()["weights"]


def test_the_logits_of_a_teacher_s_features_are_those_of_transformers(model: Any, decoder: MaskDecoder) -> None:
    """From a picture: what the teacher stores, through the decoder, is what SAM2 gives with zeros for its skips."""
    images = [picture(60, 80, seed) for seed in range(len(BOXES))]
    stored = open_teacher("random:tiny", TeacherOptions(device="cpu")).features(images)["P4_S16"].clone()
    with torch.no_grad():
        *skips, embedded = model.get_image_embeddings(model_pixels(images, 128, "cpu"))
        ask = {"input_boxes": BOXES[:, None], "multimask_output": False}
        off = model(image_embeddings=[*map(torch.zeros_like, skips), embedded], **ask).pred_masks[:, 0, 0]
        on = model(image_embeddings=[*skips, embedded], **ask).pred_masks[:, 0, 0]
        found = decoder(stored, BOXES)
    assert found.shape == (len(BOXES), 32, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, off, atol=1e-5, rtol=0)
    assert (found - on).abs().max() > 0.01 * on.std()  # that the skips are off is no detail


def test_the_no_memory_embedding_is_added_once(model: Any, decoder: MaskDecoder) -> None:
    assert model.no_memory_embedding.abs().max() > 0.1
    with torch.no_grad():
        shifted = decoder(features_of() - model.no_memory_embedding.reshape(1, -1, 1, 1), BOXES)
    assert (shifted - decoder(features_of(), BOXES)).abs().max() > 1e-3


def test_gradients_reach_the_features_and_no_parameter(decoder: Sam2Decoder) -> None:
    features = features_of().requires_grad_()
    decoder.train()
    decoder(features, BOXES).square().mean().backward()
    assert features.grad is not None
    assert (features.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(value.grad is None and not value.requires_grad for value in decoder.parameters())


def test_training_mode_changes_nothing(decoder: Sam2Decoder) -> None:
    before = decoder(features_of(), BOXES)
    assert torch.equal(decoder.train()(features_of(), BOXES), before)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(BOXES))), seed=st.integers(0, 1000))
def test_pictures_of_a_batch_do_not_touch_each_other(order: list[int], seed: int) -> None:
    decoder, features = open_decoder("random:tiny", device="cpu"), features_of(seed)
    with torch.no_grad():
        together = decoder(features, BOXES)
        alone = torch.cat([decoder(features[number, None], BOXES[number, None]) for number in order])
    torch.testing.assert_close(together[order], alone, atol=1e-5, rtol=1e-5)


def test_half_precision_features_and_autocast_keep_the_boxes_exact(decoder: MaskDecoder) -> None:
    features = features_of().half()
    with torch.no_grad():
        exact = decoder(features.float(), BOXES)
        assert torch.equal(decoder(features, BOXES), exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = decoder(features, BOXES)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_no_picture_at_all(decoder: MaskDecoder) -> None:
    features = features_of(count=0).requires_grad_()
    found: Any = decoder(features, BOXES[:0])
    assert found.shape == (0, 32, 32)
    found.sum().backward()


@pytest.mark.parametrize(
    ("features", "boxes"),
    [((4, 64, 8, 8), (4, 4)), ((4, 128, 4, 4), (4, 4)), ((4, 128, 8, 8), (3, 4)), ((4, 128, 8, 8), (4, 1, 4))],
)
def test_other_shapes_are_refused(decoder: MaskDecoder, features: tuple[int, ...], boxes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=re.escape("expected P4_S16 of (B, 128, 8, 8) and boxes of (B, 4)")):
        decoder(torch.zeros(features), torch.zeros(boxes))


def test_a_box_of_the_original_picture_lands_where_sam2_puts_it(model: Any, decoder: MaskDecoder) -> None:
    """The original gave the decoder boxes in pixels of a 640 x 480 picture as if they were of the square."""
    from transformers import Sam2ImageProcessor, Sam2Processor

    box = np.array([[120.0, 40, 600, 440]], np.float32)
    square = scale_boxes(box, (480, 640), (128, 128))
    np.testing.assert_allclose(square, [[24, 40 * 128 / 480, 120, 440 * 128 / 480]], rtol=1e-6)
    processor = Sam2Processor(Sam2ImageProcessor(size={"height": 128, "width": 128}), target_size=128)
    theirs = processor(
        images=np.zeros((480, 640, 3), np.uint8), input_boxes=[box.tolist()], return_tensors="pt"
    ).input_boxes
    torch.testing.assert_close(torch.from_numpy(square)[None], theirs.float())
    with torch.no_grad():
        model_sees, _ = model.prompt_encoder(None, None, theirs.float(), None)
        wrong, _ = model.prompt_encoder(None, None, torch.from_numpy(box)[None], None)
    assert (model_sees - wrong).abs().max() > 0.1
    with torch.no_grad():
        right = decoder(features_of(count=1), torch.from_numpy(square))
        fault = decoder(features_of(count=1), torch.from_numpy(box))
    assert (right - fault).abs().max() > 1e-3


def test_the_trainable_copy_learns_with_every_parameter_that_it_opens(decoder: Sam2Decoder) -> None:
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    copy = trainable_copy(decoder)
    opened = {name: value for name, value in copy.named_parameters() if value.requires_grad}
    assert opened
    assert all(name.startswith("mask_decoder.") for name in opened)
    optimizer = torch.optim.AdamW(opened.values(), lr=1e-2)
    copy(features_of(), BOXES).square().mean().backward()
    still = [name for name, value in opened.items() if value.grad is None or not value.grad.any()]
    assert still == []  # DDP waits for the others, weight decay eats them
    assert not [name for name, value in copy.named_parameters() if name not in opened and value.grad is not None]
    optimizer.step()
    assert not torch.equal(copy(features_of(), BOXES), decoder(features_of(), BOXES))
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


def test_the_trainable_copy_gives_the_mask_for_sure_prompts(
    model: Any, decoder: Sam2Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    skips = [torch.zeros(4, 16, 32, 32), torch.zeros(4, 32, 16, 16)]
    embedded = features_of() + model.no_memory_embedding.reshape(1, -1, 1, 1)
    monkeypatch.setattr(model.mask_decoder, "dynamic_multimask_via_stability", False)
    with torch.no_grad():
        wanted = model(image_embeddings=[*skips, embedded], input_boxes=BOXES[:, None], multimask_output=False)
        found = decoder.trainable_copy()(features_of(), BOXES)
    torch.testing.assert_close(found, wanted.pred_masks[:, 0, 0], atol=1e-5, rtol=0)


def test_names_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_decoder("sam2.1_hiera_b+") == ("sam2.1_hiera_b+", None)
    assert parse_decoder("sam2.1_hiera_b+=/x/a=b.pt") == ("sam2.1_hiera_b+", Path("/x/a=b.pt"))
    folder = tmp_path / "my=model"
    folder.mkdir()
    assert parse_decoder(str(folder)) == (str(folder), None)
    for spec in ("", "=a.pt", "sam2.1_hiera_b+="):
        with pytest.raises(UsageError, match="expected MODEL_TYPE"):
            parse_decoder(spec)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFound, match=r"sam2.1_hiera_b\+=FILE"):
        open_decoder("sam2.1_hiera_b+", device="cpu")
    with pytest.raises(SourceNotFound, match=r"gone\.pt"):
        open_decoder("sam2.1_hiera_b+=gone.pt", device="cpu")
    with pytest.raises(UsageError, match="random weights"):
        open_decoder("random:tiny=gone.pt", device="cpu")


def test_weights_of_a_file_are_the_same_decoder(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = open_decoder(str(tmp_path), device="cpu")
    assert again.identity()["weights"] == open_weights("random:tiny").digest
    with torch.no_grad():
        assert torch.equal(again(features_of(), BOXES), open_decoder("random:tiny", device="cpu")(features_of(), BOXES))


LEVEL = Level(name="P4_S16", stride=16, channels=128, side=8)


@pytest.mark.parametrize(
    ("level", "teacher", "fault"),
    [
        (Level(name="P5_S32", stride=32, channels=128, side=4), {}, "say --level P4_S16"),
        (Level(name="P4_S16", stride=16, channels=256, side=8), {}, "the decoder takes (128, 8, 8)"),
        (Level(name="P4_S16", stride=16, channels=128, side=64), {"model_type": "sam2.1_hiera_l"}, "(sam2.1_hiera_l)"),
        (LEVEL, {"teacher": {"weights": "xxh3_128:0"}}, "say MODEL_TYPE=FILE with the file"),
        (
            LEVEL,
            {"teacher": {"weights": "xxh3_128:0"}, "model_type": "random:tiny"},
            "(random:tiny) has weights xxh3_128:0",
        ),
        (LEVEL, {"model_type": "stand-in"}, "the data say stand-in"),
        (LEVEL, {"model_type": "random:tiny:1"}, "the data say random:tiny:1"),
        (LEVEL, {"model_type": "nobody.yaml"}, "correct their model_type"),
    ],
)
def test_features_of_another_teacher_are_refused(
    decoder: MaskDecoder, level: Level, teacher: Mapping[str, object], fault: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(fault)):
        require_own(decoder, level, teacher)


@pytest.mark.parametrize(
    "teacher", [{}, {"model_type": ""}, {"model_type": "random:tiny"}, {"model_type": "random:tiny:0"}]
)
def test_what_nobody_recorded_is_not_compared(decoder: MaskDecoder, teacher: Mapping[str, object]) -> None:
    require_own(decoder, LEVEL, teacher)
    require_own(decoder, LEVEL, {"teacher": decoder.identity(), "model_type": "renamed"})


def test_the_stand_in_takes_the_size_of_the_features() -> None:
    stand_in = open_decoder("stand-in", device="cpu", level=LEVEL)
    assert (stand_in.level, stand_in.channels, stand_in.image_size) == ("P4_S16", 128, 128)
    require_own(stand_in, LEVEL, {"model_type": "stand-in", "teacher": {"weights": "stand-in"}})
    assert stand_in(features_of(), BOXES).shape == (4, 32, 32)
    for teacher in ({"model_type": "sam2.1_hiera_b+"}, {"teacher": {"weights": "xxh3_128:0"}}):
        with pytest.raises(UsageError, match="features of another teacher"):
            require_own(stand_in, LEVEL, teacher)
    with pytest.raises(UsageError, match="it has no weights"):
        open_decoder("stand-in=a.pt", device="cpu")
    with pytest.raises(UsageError, match="leave it frozen"):
        trainable_copy(stand_in)


def test_a_teacher_s_own_features_are_taken(decoder: MaskDecoder) -> None:
    teacher = open_teacher("random:tiny", TeacherOptions(device="cpu"))
    require_own(decoder, teacher.levels["P4_S16"], {"model_type": teacher.name, "teacher": teacher.identity()})
    other = open_teacher("random:tiny:1", TeacherOptions(device="cpu"))
    with pytest.raises(UsageError, match="features of another teacher"):
        require_own(decoder, other.levels["P4_S16"], {"model_type": other.name, "teacher": other.identity()})
