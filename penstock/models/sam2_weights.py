"""SAM2's weights: found, read safely, renamed from Meta's names to those of transformers, and checked to the last one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import MissingExtra, SourceNotFound, UsageError
from penstock.models.hub import find_folder, local_path, read_json
from penstock.models.opened import hash_state
from penstock.models.sam2_config import ARCHITECTURES, make_config, parse_model_cfg, require_transformers
from penstock.models.weights_file import counted, read_weights

if TYPE_CHECKING:
    import torch

NEEDS = (("config.json",), ("model.safetensors", "pytorch_model.bin"))
"""What a folder of transformers holds."""

_RENAMED = [
    (re.compile(pattern), meta)
    for pattern, meta in [
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
        (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
        (
            r"^(prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding$",
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "sam_prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "sam_prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "sam_prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "sam_prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "sam_prompt_encoder.mask_downscaling.6."),
        (r"^prompt_encoder\.", "sam_prompt_encoder."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"^mask_decoder\.", "sam_mask_decoder."),
        (r"\.layer_norm", ".norm"),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.proj_out\.", ".mlp.layers.1."),  # two layers; the heads below have three
        (r"(mlps\.\d+|_head)\.layers\.0\.", r"\1.layers.1."),
        (r"\.proj_out\.", ".layers.2."),
        (r"\.proj_in\.", ".layers.0."),
        (r"^no_memory_embedding$", "no_mem_embed"),
    ]
]
"""From a name of transformers to Meta's, one after the other."""

VIDEO_PART = (
    "memory_", "mask_downsample.", "maskmem_", "no_mem_pos_enc", "no_obj_", "obj_ptr_", "no_memory_positional_encoding",
    "no_object_pointer", "object_pointer_proj.", "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer.",
)  # fmt: skip
"""How weights of the video part begin, in either naming; pictures need none of them."""


@dataclass(frozen=True, kw_only=True)
class Sam2Weights:
    """Weights that fit their architecture."""

    config: Any
    """`Sam2Config` of transformers."""
    state: "Mapping[str, torch.Tensor]"
    """float32, by the names of transformers, complete."""
    digest: str
    """Hash of `state`: the same whatever the file's format."""
    is_random: bool = False


_TWINS = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")


def open_weights(model_cfg: str, checkpoint: Path | None = None, *, download: bool = False) -> Sam2Weights:
    """Finds and reads the weights of a SAM2.

    Args:
        model_cfg: as `parse_model_cfg` takes it; or a folder as `save_pretrained` writes it, or `OWNER/NAME` of the hub.
        checkpoint: a .pt of Meta's, a .safetensors, or a folder of transformers. None: those of the folder or the model,
            or else a file in `ZOO`.
        download: whether the hub may be asked for what is not on this machine.

    Raises:
        UsageError: a name that is not known, or weights of another architecture: the first names that differ are said.
        SourceNotFound: no such file; the message says where to put it, and that there is a proposer without weights.
        BadData: the file is damaged, or holds more than weights.
        MissingExtra: transformers or torch is not installed.
    """
    named = parse_model_cfg(model_cfg)
    if named is None:
        folder = _model_folder(model_cfg, download)
        config = require_transformers().Sam2Config.from_dict(read_json(folder / "config.json"))
        return _checked(config, checkpoint or folder, model_cfg)
    config = make_config(ARCHITECTURES[named.size])
    if named.seed is None:
        return _checked(config, checkpoint or Path(named.zoo_file), model_cfg)
    if checkpoint is not None:
        raise UsageError(f"model-cfg {model_cfg} makes random weights: expected no checkpoint, got {checkpoint}")
    state = _random_state(expected_shapes(config), named.seed)
    return Sam2Weights(config=config, state=state, digest=hash_state(state), is_random=True)


def build(weights: Sam2Weights) -> Any:
    """A `Sam2Model` on the CPU, ready to infer, with these weights; they are shared, not copied."""
    model = _empty(weights.config)
    model.load_state_dict(weights.state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a configuration asks for."""
    return {name: tuple(tensor.shape) for name, tensor in _empty(config).state_dict().items()}


def meta_names(name: str) -> tuple[str, ...]:
    """Meta's names for a weight of transformers: one, or several that are stacked along the first axis."""
    if name == "prompt_encoder.point_embed.weight":
        return tuple(f"sam_prompt_encoder.point_embeddings.{number}.weight" for number in range(4))
    for pattern, meta in _RENAMED:
        name = pattern.sub(meta, name)
    return (name,)


def _empty(config: Any) -> Any:
    import torch

    with torch.device("meta"):
        return require_transformers().Sam2Model(config)


def _model_folder(name: str, download: bool) -> Path:
    spec = f"sam2:{name}"
    if download or local_path(name) is not None or "/" not in name:
        return find_folder(spec, name, NEEDS)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "transformers", "reading the Hugging Face hub's cache") from error
    try:
        folder = snapshot_download(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise SourceNotFound(
            f"{spec}: not on this machine: say --download to fetch it, run `hf download {name}` where there is internet and "
            "copy its cache here (HF_HOME says where), or use --proposer classical, which needs no weights"
        ) from error
    return find_folder(spec, folder, NEEDS)


def _checked(config: Any, path: Path, model_cfg: str) -> Sam2Weights:
    state = _named(read_state(path), expected_shapes(config), f"{path}, as {model_cfg}")
    return Sam2Weights(config=config, state=state, digest=hash_state(state))


def read_state(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a checkpoint, by its own names; nothing but tensors is unpickled.

    Raises:
        SourceNotFound: no such file.
        BadData: it is damaged, or holds more than tensors.
    """
    if path.is_dir():
        files = [path / name for name in NEEDS[1] if (path / name).is_file()]
        path = files[0] if files else path / NEEDS[1][0]
    if not path.is_file():
        raise SourceNotFound(
            f"{path}: no SAM2 weights: put Meta's checkpoint there, say --checkpoint FILE, or use --proposer classical, "
            "which needs no weights"
        )
    return read_weights(path)


def _named(
    state: "Mapping[str, torch.Tensor]", shapes: Mapping[str, tuple[int, ...]], where: str
) -> "dict[str, torch.Tensor]":
    """The state by the names of transformers: every weight asked for, in its shape, and no other but the video part's."""
    import torch

    is_meta = any(name.startswith(("image_encoder.", "sam_mask_decoder.")) for name in state)
    sources = {name: meta_names(name) if is_meta else (_present(name, state),) for name in shapes}
    used = {source for names in sources.values() for source in names}
    missing = sorted(used - state.keys())
    surplus = sorted(name for name in state.keys() - used if not name.startswith(VIDEO_PART))
    _refuse(where, state, {"missing": missing, "not expected": surplus})
    found = {}
    for name, names in sources.items():
        parts = [state[each] for each in names]
        fits = all(part.shape[1:] == parts[0].shape[1:] for part in parts)
        whole = parts[0] if len(parts) == 1 or not fits else torch.cat(parts)
        found[name] = whole.to(torch.float32).contiguous()
    other = [
        f"{sources[name][0]} {tuple(found[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if tuple(found[name].shape) != shape
    ]
    _refuse(where, state, {"of another shape": other})
    return found


def _present(name: str, state: "Mapping[str, torch.Tensor]") -> str:
    """The name, or its twin where only that is stored: two names of one matrix."""
    if name in state or name not in _TWINS:
        return name
    other = _TWINS[name == _TWINS[0]]
    return other if other in state else name


def _refuse(where: str, state: "Mapping[str, torch.Tensor]", wrong: Mapping[str, Sequence[str]]) -> None:
    if said := counted(wrong):
        raise UsageError(f"{where}: weights of another architecture: {said}.{_advice(state)}")


def _advice(state: "Mapping[str, torch.Tensor]") -> str:
    """Which architecture the weights look like, in words; empty if none that is known."""
    blocks = {match[1] for name in state if (match := re.search(r"(?:trunk|backbone)\.blocks\.(\d+)\.", name))}
    stem = [tensor for name, tensor in state.items() if re.search(r"patch_embed\.proj(?:ection)?\.weight$", name)]
    channels = int(stem[0].shape[0]) if stem and stem[0].ndim else 0
    for size, known in ARCHITECTURES.items():
        if (known.channels, sum(known.blocks)) == (channels, len(blocks)):
            return f" They look like SAM2's {size}: say --model-cfg {size}"
    return ""


def _random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> "dict[str, torch.Tensor]":
    """Weights that mean nothing, the same for a seed in every version: NumPy promises that, torch does not."""
    import torch

    generator = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        values = generator.standard_normal(shape, np.float32)
        if name.endswith(
            ("norm1.weight", "norm2.weight", "norm3.weight", "norm4.weight", "norm.weight", "attn.weight")
        ):
            values = 1 + values * np.float32(0.02)
        elif name.endswith("bias"):
            values *= np.float32(0.02)
        elif "embedding" not in name and len(shape) > 1:
            values /= np.float32(np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(values)
    state[_TWINS[0]] = state[_TWINS[1]].clone()
    return state
