"""Names of SAM2's models, and its weights in Meta's and in transformers' form."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from penstock.errors import BadData, SourceNotFound, UsageError  # noqa: E402
from penstock.models.sam2_config import ARCHITECTURES, config_facts, make_config, parse_model_cfg  # noqa: E402
from penstock.models.sam2_weights import (  # noqa: E402
    build,
    expected_shapes,
    meta_names,
    open_weights,
    read_state,
)

META_NAMES = re.findall(
    r"\S+",
    """
image_encoder.neck.convs.#.conv.bias image_encoder.neck.convs.#.conv.weight
image_encoder.trunk.blocks.#.attn.proj.bias image_encoder.trunk.blocks.#.attn.proj.weight
image_encoder.trunk.blocks.#.attn.qkv.bias image_encoder.trunk.blocks.#.attn.qkv.weight
image_encoder.trunk.blocks.#.mlp.layers.#.bias image_encoder.trunk.blocks.#.mlp.layers.#.weight
image_encoder.trunk.blocks.#.norm#.bias image_encoder.trunk.blocks.#.norm#.weight
image_encoder.trunk.blocks.#.proj.bias image_encoder.trunk.blocks.#.proj.weight
image_encoder.trunk.patch_embed.proj.bias image_encoder.trunk.patch_embed.proj.weight
image_encoder.trunk.pos_embed image_encoder.trunk.pos_embed_window no_mem_embed
sam_mask_decoder.conv_s#.bias sam_mask_decoder.conv_s#.weight
sam_mask_decoder.iou_prediction_head.layers.#.bias sam_mask_decoder.iou_prediction_head.layers.#.weight
sam_mask_decoder.iou_token.weight sam_mask_decoder.mask_tokens.weight sam_mask_decoder.obj_score_token.weight
sam_mask_decoder.output_hypernetworks_mlps.#.layers.#.bias sam_mask_decoder.output_hypernetworks_mlps.#.layers.#.weight
sam_mask_decoder.output_upscaling.#.bias sam_mask_decoder.output_upscaling.#.weight
sam_mask_decoder.pred_obj_score_head.layers.#.bias sam_mask_decoder.pred_obj_score_head.layers.#.weight
sam_prompt_encoder.mask_downscaling.#.bias sam_prompt_encoder.mask_downscaling.#.weight
sam_prompt_encoder.no_mask_embed.weight sam_prompt_encoder.not_a_point_embed.weight
sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix sam_prompt_encoder.point_embeddings.#.weight
""",
)
"""Of the picture part of a checkpoint that Meta's own classes wrote, numbers left out, attention of the decoder apart."""

ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return open_weights("random:tiny:3")


def as_meta(state: Any) -> dict[str, Any]:
    """A state of transformers as Meta would have stored it, with some of the video part."""
    stored = {"maskmem_tpos_enc": torch.zeros(7, 1, 1, 64), "memory_attention.norm.weight": torch.zeros(4)}
    for name, tensor in state.items():
        names = meta_names(name)
        stored |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return stored


def test_names_are_those_of_meta_s_checkpoints(tiny: Any) -> None:
    found = {re.sub(r"\d+", "#", name) for whole in tiny.state for name in meta_names(whole)}
    decoder = "sam_mask_decoder.transformer"
    block = [f"{decoder}.layers.#.{attention}" for attention in ATTENTIONS]
    projections = [
        f"{one}.{part}_proj"
        for one in [*block, f"{decoder}.final_attn_token_to_image"]
        for part in ("q", "k", "v", "out")
    ]
    modules = [
        *projections,
        f"{decoder}.layers.#.norm#",
        f"{decoder}.layers.#.mlp.layers.#",
        f"{decoder}.norm_final_attn",
    ]
    assert found == {*META_NAMES, *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}


@pytest.mark.parametrize("wrap", [True, False])
def test_meta_s_checkpoint_comes_back(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: bool) -> None:
    monkeypatch.setitem(ARCHITECTURES, "t", ARCHITECTURES["tiny"])
    stored = as_meta(tiny.state)
    path = tmp_path / "weights.pt"
    torch.save({"model": stored, "epoch": 7} if wrap else stored, path)
    found = open_weights("configs/sam2.1/sam2.1_hiera_t.yaml", path)
    assert found.digest == tiny.digest
    for name, tensor in tiny.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=0, atol=0)


def test_a_folder_of_transformers(tiny: Any, tmp_path: Path) -> None:
    build(tiny).save_pretrained(tmp_path / "model")
    found = open_weights(str(tmp_path / "model"))
    assert found.digest == tiny.digest
    assert config_facts(found.config) == config_facts(tiny.config)
    again = open_weights(str(tmp_path / "model"), tmp_path / "model" / "model.safetensors")
    assert again.digest == tiny.digest
    torch.save(as_meta(tiny.state), tmp_path / "meta.pt")
    assert open_weights(str(tmp_path / "model"), tmp_path / "meta.pt").digest == tiny.digest


def test_one_name_of_the_shared_matrix_is_enough(tiny: Any, tmp_path: Path) -> None:
    build(tiny).save_pretrained(tmp_path / "model")
    for twin in ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"):
        torch.save({name: tensor for name, tensor in tiny.state.items() if name != twin}, tmp_path / "one.pt")
        assert open_weights(str(tmp_path / "model"), tmp_path / "one.pt").digest == tiny.digest


def test_weights_of_another_architecture_are_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": as_meta(tiny.state)}, path)
    with pytest.raises(
        UsageError,
        match=r"another architecture: \d+ missing \(image_encoder\.trunk\.blocks\.10\..*look like SAM2's tiny",
    ):
        open_weights("t", path)
    monkeypatch.setitem(ARCHITECTURES, "t", ARCHITECTURES["tiny"])
    stored = as_meta(tiny.state)
    del stored["no_mem_embed"]
    torch.save(stored | {"classifier.weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match=r"1 missing \(no_mem_embed\); 1 not expected \(classifier.weight\)"):
        open_weights("t", path)
    stored = as_meta(tiny.state)
    stored["sam_mask_decoder.iou_token.weight"] = torch.zeros(1, 64)
    torch.save(stored, path)
    with pytest.raises(
        UsageError, match=r"of another shape \(sam_mask_decoder.iou_token.weight \(1, 64\) instead of \(1, 128\)"
    ):
        open_weights("t", path)


def test_missing_weights_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFound, match=r"^model_zoo/sam/sam2_hiera_large\.pt: .*--proposer classical"):
        open_weights("sam2_hiera_l.yaml")
    with pytest.raises(SourceNotFound, match=r"sam2\.1_hiera_base_plus\.pt"):
        open_weights("configs/sam2.1/sam2.1_hiera_b+.yaml")
    with pytest.raises(SourceNotFound, match=r"facebook/sam2.1-hiera-large: not on this machine.*--download"):
        open_weights("facebook/sam2.1-hiera-large")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 and no zip"])
def test_damaged_files_are_bad_data(tmp_path: Path, content: bytes) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=name):
            read_state(tmp_path / name)


class Evil:
    """Would make a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def test_nothing_is_run_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BadData, match="tensors only") as caught:
        read_state(tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)  # torch's own advice is how to run it
    assert not (tmp_path / "evil").exists()
    for content in ([1], {"model": {"a": 1}}, {}):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(BadData, match=r"odd\.pt"):
            read_state(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    ("text", "size", "file"),
    [
        ("sam2_hiera_l.yaml", "l", "sam2_hiera_large.pt"),
        ("configs/sam2/sam2_hiera_s.yaml", "s", "sam2_hiera_small.pt"),
        ("configs/sam2.1/sam2.1_hiera_b+.yaml", "b+", "sam2.1_hiera_base_plus.pt"),
        ("sam2.1_hiera_t", "t", "sam2.1_hiera_tiny.pt"),
        ("t", "t", "sam2_hiera_tiny.pt"),
    ],
)
def test_names_of_configurations(text: str, size: str, file: str) -> None:
    named = parse_model_cfg(text)
    assert named is not None
    assert (named.size, named.zoo_file, named.seed) == (size, f"model_zoo/sam/{file}", None)


def test_random_weights_follow_their_seed(tiny: Any) -> None:
    assert parse_model_cfg("facebook/sam2.1-hiera-large") is None
    for wrong in ("sam2_hiera_x.yaml", "random:huge", "random:tiny:x"):
        with pytest.raises(UsageError, match="model-cfg"):
            parse_model_cfg(wrong)
    assert open_weights("random:tiny:3").digest == tiny.digest != open_weights("random:tiny").digest
    assert tiny.is_random
    with pytest.raises(UsageError, match="expected no checkpoint"):
        open_weights("random:tiny", Path("weights.pt"))


@pytest.mark.parametrize(("size", "millions"), [("t", 31), ("s", 38), ("b+", 73), ("l", 216)])
def test_published_architectures_have_their_size(size: str, millions: int) -> None:
    shapes = expected_shapes(make_config(ARCHITECTURES[size]))
    assert sum(np.prod(shape) for shape in shapes.values()) / 1e6 == pytest.approx(millions, abs=1)
