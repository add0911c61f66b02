"""open_clip's real code: SigLIP B/16 with random weights, a small model from files, and all that can be missing."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
from penstock.models.torchvision_shim import ensure_torchvision  # noqa: E402

ensure_torchvision()
open_clip = pytest.importorskip("open_clip")

from penstock.errors import BadData, SourceNotFound, UsageError  # noqa: E402
from penstock.models.embedders import open_embedder  # noqa: E402
from penstock.models.transform import picture_pixels  # noqa: E402
from tests.models.words import word_tokenizer  # noqa: E402

MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}


def small_model(seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return open_clip.CLIP(**MODEL).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as open_clip publishes models, with a .pt file."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}))
    torch.save(small_model().state_dict(), tmp_path / "weights.pt")
    return tmp_path


def picture(width: int = 61, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def test_a_folder_a_file_and_an_address_are_the_same_model(folder: Path) -> None:
    specs = [f"openclip:{folder}", f"openclip:{folder}/weights.pt", f"openclip:file://{folder}"]
    opened = [open_embedder(spec, device="cpu") for spec in specs]
    assert len({(each.dim, str(each.identity()["weights"]), each.transform) for each in opened}) == 1
    assert opened[0].dim == 24
    assert "random_weights" not in opened[0].identity()
    pipeline = open_clip.transform.image_transform(32, False, **PREPROCESS)
    pixels = torch.stack([pipeline(picture()), pipeline(picture(20, 70))])
    for prepared, one in zip(pixels, (picture(), picture(20, 70)), strict=True):
        np.testing.assert_array_equal(opened[0].prepare(one), prepared.numpy())
        np.testing.assert_array_equal(picture_pixels(one, opened[0].transform), prepared.numpy())
    with torch.inference_mode():
        wanted = small_model().encode_image(pixels, normalize=True)
    torch.testing.assert_close(opened[0].embed(pixels), wanted)


def test_texts_where_the_tokenizer_is_here(folder: Path) -> None:
    found = open_embedder(f"openclip:{folder}", device="cpu").embed_texts(["a photo of a cat", "sky"])
    tokens = open_clip.SimpleTokenizer(context_length=12)(["a photo of a cat", "sky"])
    with torch.inference_mode():
        wanted = small_model().encode_text(tokens, normalize=True)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    assert found.dtype == np.float32


def test_texts_with_a_tokenizer_beside_the_weights(folder: Path) -> None:
    text = {**MODEL["text_cfg"], "hf_tokenizer_name": "own/tokenizer"}  # type: ignore[dict-item]
    config = {"model_cfg": {**MODEL, "text_cfg": text}, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"texts need a tokenizer\. .*own/tokenizer.*put its files beside the weights"):
        open_embedder(f"openclip:{folder}", device="cpu").embed_texts(["cat"])
    word_tokenizer().save_pretrained(folder)
    found = open_embedder(f"openclip:{folder}", device="cpu").embed_texts(["cat", "dog sky"])
    tokens = torch.full((2, 12), 1)
    tokens[0, 0], tokens[1, 0], tokens[1, 1] = 3, 4, 5
    with torch.inference_mode():
        wanted = small_model().encode_text(tokens, normalize=True)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_a_folder_with_random_weights_says_so(folder: Path) -> None:
    one, same, other = (
        open_embedder(f"openclip:{folder}@{end}", device="cpu").identity() for end in ("random", "random:0", "random:7")
    )
    assert one["random_weights"] is True
    assert one["weights"] == same["weights"] != other["weights"]
    assert other["seed"] == 7


def test_nothing_is_said_through_the_root_logger(folder: Path) -> None:
    before = list(logging.getLogger().handlers)
    open_embedder(f"openclip:{folder}", device="cpu")
    assert logging.getLogger().handlers == before


def test_files_that_are_missing_or_wrong(folder: Path) -> None:
    cases: list[tuple[str, type[Exception], str]] = [
        (f"openclip:{folder}/none", SourceNotFound, "no folder"),
        (f"openclip:ViT-B-32@{folder}/none.pt", SourceNotFound, "no file"),
        (f"openclip:ViT-B-32@{folder}/open_clip_config.json", BadData, "cannot load"),
        (f"openclip:ViT-Z@{folder}/weights.pt", UsageError, "no architecture 'ViT-Z'"),
        (f"openclip:{folder}@weights.pt", UsageError, "no architecture"),
        ("openclip:ViT-B-16-SigLIP", UsageError, "ViT-B-16-SigLIP@random"),
        ("openclip:timm/ViT-B-16-SigLIP", SourceNotFound, "HF_HUB_OFFLINE"),
        ("openai:ViT-B/32", SourceNotFound, "openai:ViT-B/32@/path/to/weights"),
        ("openai:ViT-L/14@336px", SourceNotFound, "HF_HUB_OFFLINE"),
        ("openai:ViT-B/33", UsageError, "no CLIP 'ViT-B/33'"),
        (f"openai:ViT-B/32@{folder}/none.pt", SourceNotFound, "no file"),
    ]
    for spec, error, words in cases:
        with pytest.raises(error, match=words):
            open_embedder(spec, device="cpu")


def test_a_damaged_folder(folder: Path) -> None:
    weights = folder / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadData, match=r"cannot load .*weights\.pt"):
        open_embedder(f"openclip:{folder}", device="cpu")
    torch.save({"visual.proj": torch.zeros(2)}, weights)
    with pytest.raises(BadData, match=r"cannot load .*weights\.pt"):
        open_embedder(f"openclip:{folder}", device="cpu")
    (folder / "more.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="which weights"):
        open_embedder(f"openclip:{folder}", device="cpu")
    (folder / "more.bin").unlink()
    weights.unlink()
    with pytest.raises(SourceNotFound, match="put it there"):
        open_embedder(f"openclip:{folder}", device="cpu")
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(BadData, match="'model_cfg'"):
        open_embedder(f"openclip:{folder}@random", device="cpu")


def test_weights_alone_need_an_architecture(folder: Path) -> None:
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UsageError, match="of which architecture"):
        open_embedder(f"openclip:{folder}/weights.pt", device="cpu")


def test_architectures_whose_normalisation_is_not_clear(folder: Path) -> None:
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UsageError, match="differ in how pictures are normalised"):
        open_embedder(f"openclip:ViT-L-14@{folder}/weights.pt", device="cpu")


@pytest.fixture(scope="module")
def siglip() -> Any:
    return open_embedder("openclip:ViT-B-16-SigLIP@random", device="cpu")


@pytest.mark.slow
def test_siglip_b16_gives_768_numbers(siglip: Any) -> None:
    assert (siglip.dim, siglip.transform.size_hw, siglip.transform.resize) == (768, (224, 224), "squash")
    assert siglip.transform.mean == siglip.transform.std == (0.5, 0.5, 0.5)
    assert siglip.identity()["random_weights"] is True
    pixels = torch.from_numpy(np.stack([siglip.prepare(picture(width)) for width in (3, 200)]))
    found = siglip.embed(pixels)
    assert found.shape == (2, 768)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    np.testing.assert_array_equal(pixels[1].numpy(), picture_pixels(picture(200), siglip.transform))
    with pytest.raises(UsageError, match="texts need a tokenizer"):
        siglip.embed_texts(["a cat"])


@pytest.mark.slow
def test_siglip_b16_in_bf16_is_close(siglip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.stack([siglip.prepare(picture(width)) for width in (3, 50, 200)]))
    full = siglip.embed(pixels)
    monkeypatch.setattr(siglip, "_precision", "bf16")  # a second model would take seconds more
    half = siglip.embed(pixels)
    assert 0.999 < float((half * full).sum(dim=1).min()) < 1 - 1e-8
