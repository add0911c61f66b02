"""SAM2's architectures by the names that people give them. Facts from the configurations that Meta publishes."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from penstock.errors import MissingExtra, UsageError
from penstock.models.opened import require_torch
from penstock.models.torchvision_shim import ensure_torchvision

ZOO = PurePosixPath("model_zoo/sam")
"""Where weights are looked for, under the working folder."""

_CONFIGURATION = re.compile(r"sam2(\.1)?_hiera_(t|s|b\+|l)(\.yaml)?")
_RANDOM = re.compile(r"random:(t|s|b\+|l|tiny)(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Of the picture encoder; prompt encoder and mask decoder are the same in all but the tiny one."""

    channels: int
    """Of the first stage; each next stage has twice as many."""
    heads: int
    """Of the first stage; each next stage has twice as many."""
    blocks: tuple[int, ...]
    """Of each of the four stages."""
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...]
    """Numbers of the blocks that see the whole picture."""
    background: int = 7
    """Side of the coarse positional embedding."""
    file: str = ""
    """What Meta calls it in the names of checkpoints."""
    image_size: int = 1024
    hidden: int = 256
    mlp: int = 2048
    decoder_heads: int = 8
    mask_channels: int = 16


ARCHITECTURES = {
    "t": Architecture(channels=96, heads=1, blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9), file="tiny"),
    "s": Architecture(channels=96, heads=1, blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13), file="small"),
    "b+": Architecture(
        channels=112, heads=2, blocks=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=14, file="base_plus"
    ),
    "l": Architecture(
        channels=144, heads=2, blocks=(2, 6, 36, 4), windows=(8, 4, 16, 8), global_blocks=(23, 33, 43), file="large"
    ),
    "tiny": Architecture(
        channels=16, heads=1, blocks=(1, 1, 2, 1), global_blocks=(3,),
        image_size=128, hidden=128, mlp=64, decoder_heads=2, mask_channels=4,
    ),
}  # fmt: skip
"""By the letter of Meta's configurations; "tiny" is for tests and was never trained."""


@dataclass(frozen=True)
class Named:
    """What a name of an architecture says."""

    size: str
    """Key of `ARCHITECTURES`."""
    zoo_file: str = ""
    """Where its weights lie by default, under the working folder; empty for random weights."""
    seed: int | None = None
    """Of random weights."""


def parse_model_cfg(text: str) -> Named | None:
    """What a name of an architecture says; None if it is none of these, and so a folder or a model of the hub.

    Args:
        text: `sam2_hiera_l.yaml`, `configs/sam2.1/sam2.1_hiera_l.yaml`, a letter (t, s, b+, l), or
            `random:SIZE[:SEED]` with SIZE one of t, s, b+, l, tiny.

    Raises:
        UsageError: the name of a configuration, or of random weights, that is not known.
    """
    if match := _RANDOM.fullmatch(text):
        return Named(match[1], seed=int(match[2] or 0))
    if text.startswith("random:"):
        raise UsageError(f"model-cfg {text!r}: expected random:SIZE[:SEED] with SIZE one of {', '.join(ARCHITECTURES)}")
    if text != "tiny" and text in ARCHITECTURES:
        return Named(text, str(ZOO / f"sam2_hiera_{ARCHITECTURES[text].file}.pt"))
    if match := _CONFIGURATION.fullmatch(PurePosixPath(text).name):
        return Named(match[2], str(ZOO / f"sam2{match[1] or ''}_hiera_{ARCHITECTURES[match[2]].file}.pt"))
    if text.endswith((".yaml", ".yml")):
        raise UsageError(
            f"model-cfg {text!r}: expected a configuration of SAM2 by name (sam2_hiera_l.yaml, "
            "configs/sam2.1/sam2.1_hiera_t.yaml), a letter (t, s, b+, l), or a folder or model of transformers"
        )
    return None


def make_config(architecture: Architecture) -> Any:
    """The `Sam2Config` of transformers.

    Raises:
        MissingExtra: transformers or torch is not installed.
    """
    transformers = require_transformers()
    dims = [architecture.channels << stage for stage in range(len(architecture.blocks))]
    size, hidden = architecture.image_size, architecture.hidden
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=dims[0],
        num_attention_heads=architecture.heads,
        image_size=[size, size],
        blocks_per_stage=list(architecture.blocks),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[architecture.heads << stage for stage in range(len(dims))],
        window_size_per_stage=list(architecture.windows),
        window_positional_embedding_background_size=[architecture.background] * 2,
        global_attention_blocks=list(architecture.global_blocks),
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=dims[::-1],
        backbone_feature_sizes=[[size // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=hidden,
    )
    prompts = transformers.Sam2PromptEncoderConfig(
        hidden_size=hidden, image_size=size, mask_input_channels=architecture.mask_channels
    )
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=hidden,
        mlp_dim=architecture.mlp,
        num_attention_heads=architecture.decoder_heads,
        iou_head_hidden_dim=hidden,
    )
    return transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def require_transformers() -> Any:
    """The module `transformers`, with torch.

    Raises:
        MissingExtra: one of them is not installed.
    """
    require_torch("transformers")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "transformers", "SAM2") from error
    ensure_torchvision()
    return transformers


def config_facts(config: Any) -> dict[str, object]:
    """What of a `Sam2Config` decides the masks and is not seen in the shapes of the weights; plain values."""
    backbone = config.vision_config.backbone_config
    return {
        "image_size": config.prompt_encoder_config.image_size,
        "channels": list(backbone.embed_dim_per_stage),
        "blocks": list(backbone.blocks_per_stage),
        "heads": list(backbone.num_attention_heads_per_stage),
        "windows": list(backbone.window_size_per_stage),
        "global_blocks": list(backbone.global_attention_blocks),
    }
