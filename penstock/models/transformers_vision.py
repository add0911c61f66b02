"""SigLIP and CLIP by transformers, from a local folder or the Hugging Face hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import BadData, MissingExtra, UsageError
from penstock.models.hub import TOKENIZER, find_folder, lacks, read_json
from penstock.models.opened import Opened, hash_state, require_torch, torch_device
from penstock.models.torchvision_shim import ensure_torchvision
from penstock.models.transform import picture_pixels, read_processor

if TYPE_CHECKING:
    import torch

_NEEDS = (("config.json",), ("model*.safetensors", "pytorch_model*.bin"), ("preprocessor_config.json",))
_SIGLIP = ("SiglipVisionModel", "SiglipTextModel", "pooler_output", "pooler_output")
_CLIP = ("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection", "image_embeds", "text_embeds")
_MODELS = {"siglip": _SIGLIP, "siglip_vision_model": _SIGLIP, "clip": _CLIP, "clip_vision_model": _CLIP}
"""`model_type` of config.json -> classes of the towers, and where their outputs hold the vectors."""


def open_transformers(name: str, device: str) -> Opened:
    """SigLIP and CLIP by transformers: a folder as `save_pretrained` writes it, or OWNER/NAME of the hub.

    Args:
        name: folder or repository; config.json decides which model it is.
        device: as asked for.

    Raises:
        MissingExtra: transformers or torch is not installed.
        SourceNotFound: files are missing and cannot be had.
        BadData: the files are damaged.
        UsageError: another kind of model.
    """
    require_torch("transformers")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "transformers", "embedding with transformers") from error
    settled = torch_device(device)
    spec = f"transformers:{name}"
    folder = find_folder(spec, name, _NEEDS)
    transform = read_processor(str(folder / "preprocessor_config.json"), read_json(folder / "preprocessor_config.json"))
    kind = str(read_json(folder / "config.json").get("model_type"))
    if kind not in _MODELS:
        raise UsageError(f"{spec}: model type {kind}: expected one of {', '.join(_MODELS)}")
    vision, text, vision_field, text_field = _MODELS[kind]
    ensure_torchvision()
    network = _load(getattr(transformers, vision), folder)
    size = network.config.image_size
    if transform.size_hw != (size, size):
        raise BadData(f"{folder}: config.json says pictures of {size}, preprocessor_config.json {transform.size_hw}")
    has_texts = kind in ("siglip", "clip")
    return Opened(
        network=network,
        device=settled,
        transform=transform,
        prepare=lambda picture: picture_pixels(picture, transform),
        weights=hash_state(network.state_dict()),
        vectors=lambda output: getattr(output, vision_field),
        encode_texts=_text_encoder(spec, folder, text, text_field) if has_texts else None,
        packages=("transformers", "torch"),
    )


def _text_encoder(spec: str, folder: Path, model: str, field: str) -> "Callable[[Sequence[str]], torch.Tensor]":
    """Encodes texts; loads the tokenizer and the tower when the first ones come."""
    parts: list[Any] = []

    def encode(texts: Sequence[str]) -> "torch.Tensor":
        import transformers

        if not parts:
            if lacking := lacks(folder, TOKENIZER):
                raise UsageError(
                    f"{spec}: texts need a tokenizer, and {folder} holds no {lacking}: put its files there"
                )
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            except (OSError, ValueError, ImportError) as error:
                raise UsageError(f"{spec}: the tokenizer in {folder} cannot be loaded: {error}") from error
            parts.extend((tokenizer, _load(getattr(transformers, model), folder).eval()))
        tokenizer, tower = parts
        length = tower.config.max_position_embeddings
        tokens = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        is_masked = model != "SiglipTextModel"  # SigLIP was trained to read its padding
        known = {key: tokens[key] for key in ("input_ids", "attention_mask")[: 1 + is_masked]}
        found: torch.Tensor = getattr(tower(**known), field)
        return found

    return encode


def _load(model: Any, folder: Path) -> Any:
    """A tower in float32, from local files only."""
    import torch
    from safetensors import SafetensorError

    try:
        with _quiet():
            loaded, report = model.from_pretrained(
                str(folder),
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadData(f"{folder}: transformers cannot load {model.__name__}: {error}") from error
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        raise BadData(
            f"{folder}: {len(wrong)} weights of {model.__name__} are missing or of another shape than config.json says, "
            f"{wrong[0]} for one"
        )
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars and tables of the weights that the other tower owns."""
    from transformers import utils

    logging: Any = utils.logging
    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()
