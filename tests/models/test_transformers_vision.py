"""transformers' real code, with small SigLIP and CLIP models of random weights saved to a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from penstock.models.torchvision_shim import ensure_torchvision  # noqa: E402

ensure_torchvision()

from penstock.errors import BadData, SourceNotFound, UsageError  # noqa: E402
from penstock.models.embedders import open_embedder  # noqa: E402
from tests.models.words import word_tokenizer  # noqa: E402

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": 8, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def save(folder: Path, model: Any, processor: Any) -> str:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"transformers:{folder}"


def siglip_processor() -> Any:
    return transformers.SiglipImageProcessor(size={"height": 32, "width": 32})


def clip_processor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def vision_model() -> Any:
    torch.manual_seed(0)
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def test_siglip(tmp_path: Path) -> None:
    model = vision_model()
    embedder = open_embedder(save(tmp_path, model, siglip_processor()), device="cpu")
    assert (embedder.dim, embedder.transform.size_hw, embedder.transform.resize) == (32, (32, 32), "squash")
    pixels = torch.from_numpy(np.stack([embedder.prepare(picture(*sides)) for sides in ((50, 40), (9, 80))]))
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(embedder.embed(pixels), wanted)
    with pytest.raises(UsageError, match="no text tower"):
        embedder.embed_texts(["cat"])


def test_clip_with_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config={**VISION, "projection_dim": 20}, text_config={**TEXT, "projection_dim": 20}, projection_dim=20
    )
    model = transformers.CLIPModel(config)
    spec = save(tmp_path, model, clip_processor())
    embedder = open_embedder(spec, device="cpu")
    assert (embedder.dim, embedder.transform.resize) == (20, "shortest")
    pixels = torch.from_numpy(np.stack([embedder.prepare(picture(*sides)) for sides in ((50, 40), (9, 80))]))
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(tower(pixel_values=pixels).image_embeds)
    torch.testing.assert_close(embedder.embed(pixels), wanted)
    with pytest.raises(UsageError, match="texts need a tokenizer"):
        embedder.embed_texts(["cat"])
    word_tokenizer().save_pretrained(tmp_path)
    found = open_embedder(spec, device="cpu").embed_texts(["cat", "dog sky"])
    assert found.shape == (2, 20)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("make", [siglip_processor, clip_processor])
def test_prepare_equals_the_pillow_processor(make: Any, tmp_path: Path) -> None:
    name = type(make()).__name__.removesuffix("Fast").removesuffix("Pil")
    pillow = getattr(transformers, f"{name}Pil", None)
    if pillow is None:
        pytest.skip("this transformers has no processor over Pillow")
    embedder = open_embedder(save(tmp_path, vision_model(), make()), device="cpu")
    for sides in ((50, 40), (40, 50), (32, 32), (9, 80), (300, 200)):
        theirs = pillow.from_pretrained(tmp_path)(picture(*sides), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(embedder.prepare(picture(*sides)), theirs, atol=1e-5)


def test_what_can_be_missing_or_wrong(tmp_path: Path) -> None:
    spec = save(tmp_path, vision_model(), siglip_processor())
    config = json.loads((tmp_path / "config.json").read_text())

    def rewrite(name: str, facts: object) -> None:
        (tmp_path / name).write_text(json.dumps(facts))

    rewrite("config.json", {**config, "model_type": "bert"})
    with pytest.raises(UsageError, match="model type bert"):
        open_embedder(spec, device="cpu")
    for change in ({"image_size": 40}, {"num_hidden_layers": 2}):
        rewrite("config.json", {**config, **change})
        with pytest.raises(BadData, match="weights of SiglipVisionModel are missing or of another shape"):
            open_embedder(spec, device="cpu")
    rewrite("config.json", config)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    rewrite("preprocessor_config.json", {**processor, "size": {"height": 40, "width": 40}})
    with pytest.raises(BadData, match="pictures of 32"):
        open_embedder(spec, device="cpu")
    rewrite("preprocessor_config.json", processor)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(BadData, match="cannot load SiglipVisionModel"):
        open_embedder(spec, device="cpu")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(SourceNotFound, match=r"holds no preprocessor_config\.json"):
        open_embedder(spec, device="cpu")
    with pytest.raises(SourceNotFound, match="HF_HUB_OFFLINE"):
        open_embedder("transformers:google/siglip-base-patch16-224")
