"""The real classes of Florence-2, tiny and of random weights: both directions, learning, and the loop that trains them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("cv2")
pytest.importorskip("pycocotools")
from penstock.models.torchvision_shim import ensure_torchvision  # noqa: E402

ensure_torchvision()

from PIL import Image  # noqa: E402

from penstock.errors import BadData, SourceNotFound, UsageError  # noqa: E402
from penstock.models.florence2 import SURE, Florence2, _pixels, open_florence2  # noqa: E402
from penstock.models.florence2_polygons import bins_mask, box_bins, mask_bins  # noqa: E402
from penstock.models.florence2_tiny import TINY_TRANSFORM, tiny_network, tiny_tokenizer  # noqa: E402
from penstock.models.transform import picture_pixels  # noqa: E402
from penstock.train.dual_loop import DualLoop, DualLoopSettings, evaluate_dual_loop  # noqa: E402


def tiny(**settings: Any) -> Florence2:
    return Florence2(tiny_network(0), tiny_tokenizer(), TINY_TRANSFORM, **settings)


def answer_loss(net: Florence2, images: Any, texts: list[str], masks: Any) -> Any:
    return net.segment(images, texts, masks).answer_loss


def squares(count: int = 2, side: int = 64) -> tuple[Any, Any]:
    """Pictures with one square each, elsewhere and of another colour, and their masks."""
    images, masks = torch.full((count, 3, side, side), 0.1), torch.zeros(count, side, side)
    for number in range(count):
        at = 4 + number * 24
        images[number, number % 3, at : at + 24, at : at + 30] = 0.9
        masks[number, at : at + 24, at : at + 30] = 1
    return images, masks


def iou(left: np.ndarray, right: np.ndarray) -> float:
    return float(((left > 0) & (right > 0)).sum() / ((left > 0) | (right > 0)).sum())


def blobs(seed: int, height: int, width: int, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    ys, xs = np.mgrid[:height, :width]
    for _ in range(count):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        high, wide = rng.uniform(0.05, 0.3) * height, rng.uniform(0.05, 0.3) * width
        mask |= ((((ys - y) / high) ** 2 + ((xs - x) / wide) ** 2) < 1).astype(np.uint8)
    return mask


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_polygons_in_bins_give_any_small_mask_back(height: int, width: int, seed: int, share: float) -> None:
    """Noise: holes, parts that touch at corners, single pixels."""
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    polygons = mask_bins(mask, 10**6)
    assert bool(polygons) == bool(mask.any())
    assert all(0 <= number <= 999 for each in polygons for number in each)
    np.testing.assert_array_equal(bins_mask(polygons, (height, width)), mask)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(64, 64), (480, 640), (1024, 1024)]), st.sampled_from([510, 126]))
def test_outlines_become_coarser_until_they_fit(seed: int, size: tuple[int, int], limit: int) -> None:
    mask = blobs(seed, *size)
    polygons = mask_bins(mask, limit)
    assert sum(map(len, polygons)) + len(polygons) - 1 <= limit
    if mask.any():
        assert iou(bins_mask(polygons, size), mask) > 0.9


def test_what_is_too_much_or_too_small_for_the_answer() -> None:
    noise = (np.random.default_rng(0).random((60, 60)) < 0.5).astype(np.uint8)
    for limit in (8, 9, 50):
        polygons = mask_bins(noise, limit)
        assert polygons
        assert sum(map(len, polygons)) + len(polygons) - 1 <= limit
    dot = np.zeros((4000, 4000), np.uint8)
    dot[1001, 2003] = 1
    assert bins_mask(mask_bins(dot, 100), dot.shape)[996:1006, 1998:2008].any()
    assert box_bins(dot) == (500, 250, 501, 250)
    assert mask_bins(np.zeros((5, 5), np.uint8), 100) == []


def test_bins_are_those_of_transformers() -> None:
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    processor: Any = Florence2PostProcessor
    processor = processor({"polygons": {"PARSE": True}}, tiny_tokenizer())
    mask = np.zeros((48, 64), np.uint8)
    mask[7:20, 11:40] = 1
    mask[30:40, 2:9] = 1
    net = tiny()
    (first, second) = mask_bins(mask, 100)
    text = net.tokenizer.decode(net._spoken([first, second]), skip_special_tokens=False).replace(" ", "")
    assert text.count("<sep>") == 1
    (found,) = processor(text=text, image_size=(64, 48), parse_tasks="polygons")["polygons"]
    scale = np.array([64, 48]) / 1000
    for theirs, mine in zip(found["polygons"], (first, second), strict=True):  # they cut off what is below a pixel
        whole = np.floor((np.array(mine).reshape(-1, 2) + 0.5) * scale)
        np.testing.assert_array_equal(np.array(theirs).reshape(-1, 2), whole)
    box = processor.quantize(torch.tensor([[2.0, 7.0, 40.0, 40.0]]), (64, 48))[0].tolist()
    assert list(box_bins(mask)) == box


def test_the_picture_before_the_words_is_what_transformers_makes_of_image_tokens() -> None:
    net = tiny().eval()
    images, masks = squares()
    with torch.no_grad():
        prompts = net._describe(masks)
        encoded = net._encoded(images, prompts)
        labels = net._labels([net._ids("red"), net._ids("a green one")], 64)
        mine = net._logits(encoded, labels)
        pixels = _pixels(images, TINY_TRANSFORM)
        count = net.network.get_image_features(pixels).pooler_output.shape[1]
        ids = torch.tensor([[net.network.config.image_token_id] * count + prompt for prompt in prompts])
        output = net.network(input_ids=ids, attention_mask=(ids != 1).long(), pixel_values=pixels, labels=labels)
    torch.testing.assert_close(mine, output.logits)
    each = net.caption_loss(images, masks, ["red", "a green one"])
    tokens = (labels != -100).sum(dim=1)
    torch.testing.assert_close((each * tokens).sum() / tokens.sum(), output.loss)


def test_questions_are_those_of_the_processor() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    pictures = transformers.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    pictures.image_seq_length = 5
    processor = transformers.Florence2Processor(image_processor=pictures, tokenizer=tokenizer)
    net, (images, masks) = tiny(), squares(1)
    box = "".join(f"<loc_{number}>" for number in box_bins(masks[0].numpy()))
    for task, text, mine in (
        ("<REGION_TO_DESCRIPTION>", box, net._describe(masks)),
        ("<REFERRING_EXPRESSION_SEGMENTATION>", "a red square", net._locate(images, ["a red square "])),
    ):
        picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
        (ids,) = processor(images=picture, text=task + text, return_tensors="pt")["input_ids"].tolist()
        assert ids == [tokenizer.image_token_id] * 5 + mine[0]


@pytest.mark.parametrize("sides", [(50, 40), (64, 64), (300, 200)])
def test_pictures_are_prepared_as_pillow_does(sides: tuple[int, int]) -> None:
    """Not on full noise: Pillow cuts what goes beyond 0..255 after each of its two passes, and rounds there."""
    picture = Image.fromarray(np.random.default_rng(0).integers(70, 190, (sides[1], sides[0], 3), np.uint8))
    wanted = picture_pixels(picture, TINY_TRANSFORM)
    image = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
    np.testing.assert_allclose(_pixels(image, TINY_TRANSFORM)[0].numpy(), wanted, atol=1.2 / 255 / 0.224)


def test_a_sample_has_the_same_losses_in_any_batch() -> None:
    net = tiny()
    images, masks = squares()
    texts = ["red", "a much longer caption of the second"]
    together = net.caption_loss(images, masks, texts), answer_loss(net, images, texts, masks)
    for number in range(2):
        part = slice(number, number + 1)
        alone = images[part], masks[part], texts[part]
        torch.testing.assert_close(net.caption_loss(*alone), together[0][part])
        torch.testing.assert_close(answer_loss(net, alone[0], alone[2], alone[1]), together[1][part])


def test_it_learns_both_directions_and_answers_alone() -> None:
    """Words and polygons of two samples, learned by heart, come back from generation."""
    net = tiny(max_caption=12, max_answer=40)
    images, masks = squares()
    texts = ["red", "green"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(100):
        loss = (answer_loss(net, images, texts, masks) + net.caption_loss(images, masks, texts)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net.training
    assert net.captions(images, masks) == texts
    alone = net.segment(images, texts)
    assert alone.answer_loss is None
    assert alone.has_mask.all()
    assert set(alone.logits.flatten().tolist()) == {-SURE, SURE}
    for logits, mask in zip(alone.logits, masks, strict=True):
        assert iou(logits.numpy(), mask.numpy()) > 0.9
    assert all(module.training for module in net.modules())
    swapped = net.segment(images, texts[::-1])
    assert not torch.equal(swapped.logits, alone.logits)


@pytest.mark.parametrize("mode", ["pseudo", "truth"])
def test_a_step_of_the_dual_loop(mode: Any) -> None:
    net = tiny(max_caption=6, max_answer=30)
    images, masks = squares()
    batch = {
        "image1": (images * 255).round().byte().permute(0, 2, 3, 1),
        "mask1": masks.byte(),
        "image2": (images.flip(0) * 255).round().byte().permute(0, 2, 3, 1),
        "mask2": masks.flip(0).byte(),
        "caption": ["red", ""],
        "is_pair": torch.tensor([True, True]),
        "seed": torch.arange(2),
    }
    loop = DualLoop(DualLoopSettings(captions=mode, window=10**6))
    losses = loop(net, batch)
    total = torch.stack([loop.weights[name] * value for name, value in losses.sums.items()]).sum()
    total.backward()
    assert torch.isfinite(total)
    assert losses.sums["language"].requires_grad
    assert not losses.sums["bce"].requires_grad
    without = [name for name, value in net.named_parameters() if value.grad is None]
    assert not without, "DDP would wait for these"
    scores = evaluate_dual_loop(net.eval(), [batch])
    assert scores["cross"].samples == 2


def test_nothing_to_say_has_no_loss_but_a_gradient() -> None:
    net = tiny(max_caption=6, max_answer=30)
    images, masks = squares()
    masks[1] = 0
    assert net.captions(images, masks)[1] == ""
    losses: list[Any] = [net.caption_loss(images, masks, ["", "red"]), answer_loss(net, images, ["", "red"], masks)]
    for loss in losses:
        assert loss.tolist() == [0, 0]
        loss.sum().backward()
    assert answer_loss(net, images, ["red", "red"], masks)[0] > 0


def test_an_answer_without_a_polygon_has_no_mask() -> None:
    net = tiny()
    place, other = net._locations, net._ids("red")
    assert net._polygons([]) == []
    assert net._polygons(place[:5] + other) == []
    assert net._polygons(place[:7] + other + place[3:9] + [net._separator]) == [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]]
    found = net._found([other, place[:7]], (8, 8), torch.device("cpu"), None)
    assert found.has_mask.tolist() == [False, True]
    assert (found.logits[0] == -SURE).all()
    assert net._text([*other, *place[:4], 10**6]) == "red"


def test_what_it_refuses() -> None:
    images, masks = squares()
    with pytest.raises(UsageError, match="soft words"):
        tiny().segment(images, torch.zeros(2, 4, 9), masks)
    with pytest.raises(UsageError, match="2 captions, got 1"):
        tiny().segment(images, ["red"])
    for wrong in ({"max_caption": 1}, {"max_answer": 5000}, {"beams": 0}):
        with pytest.raises(UsageError, match="Florence2: expected"):
            tiny(**wrong)
    with pytest.raises(UsageError, match="more than the 1024"):
        tiny(max_caption=1024).segment(images, ["x" * 2000, "y"])
    from tests.models.words import word_tokenizer

    with pytest.raises(BadData, match="lacks <sep>"):
        Florence2(tiny_network(0), word_tokenizer(), TINY_TRANSFORM)


def test_random_weights_follow_from_the_seed() -> None:
    def digest(text: str, seed: int = 0) -> object:
        return open_florence2(text, (), seed).identity["weights"]

    assert digest("random:tiny:3") == digest("random:tiny", 3) == digest("random:tiny:3", 5)
    assert digest("random:tiny:3") != digest("random:tiny")
    with pytest.raises(UsageError, match="random:tiny:SEED"):
        digest("random:tiny:x")


def save(folder: Path, net: Florence2, nested: bool) -> None:
    net.network.save_pretrained(folder)
    net.tokenizer.save_pretrained(folder)
    facts: dict[str, Any] = {
        "size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": False,
        "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (folder / name).write_text(json.dumps({"image_processor": facts} if nested else facts))


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_gives_the_model_back(nested: bool, tmp_path: Path) -> None:
    net = tiny()
    save(tmp_path, net, nested)
    opened = open_florence2(str(tmp_path), (), 0)
    assert isinstance(opened.model, Florence2)
    assert opened.model.transform == TINY_TRANSFORM
    assert opened.untaught == "pseudo"
    images, masks = squares()
    net.eval()
    opened.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            opened.model.caption_loss(images, masks, ["a", "b c"]), net.caption_loss(images, masks, ["a", "b c"])
        )


def test_what_can_be_missing_or_wrong_in_a_folder(tmp_path: Path) -> None:
    save(tmp_path, tiny(), False)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, error, message in (
        ({"model_type": "bart"}, UsageError, "model type bart"),
        ({"auto_map": {}}, UsageError, "florence-community"),
        ({"vision_config": {**config["vision_config"], "projection_dim": 40}}, BadData, "missing or of another shape"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match=message):
            open_florence2(str(tmp_path), (), 0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(SourceNotFound, match="processor_config"):
        open_florence2(str(tmp_path), (), 0)
    with pytest.raises(SourceNotFound):
        open_florence2("florence-community/Florence-2-base", (), 0)
