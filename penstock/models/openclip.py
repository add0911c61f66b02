"""open_clip models: the hub's, local folders and files, OpenAI's CLIP, and architectures with random weights."""

import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import BadData, MissingExtra, SourceNotFound, UsageError
from penstock.models.hub import TOKENIZER, find_folder, lacks, local_path, read_json
from penstock.models.opened import Opened, hash_state, require_torch, torch_device
from penstock.models.torchvision_shim import ensure_torchvision
from penstock.models.transform import make_transform

if TYPE_CHECKING:
    import torch

_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_RANDOM = re.compile(r"random(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is to be loaded: all of it is on this machine."""

    spec: str
    config: dict[str, Any]
    """`model_cfg` as open_clip has it."""
    preprocess: Mapping[str, object]
    """`preprocess_cfg`: mean, std, interpolation, resize_mode."""
    weights: Path | None = None
    """None: random, of `seed`."""
    seed: int = 0
    tokenizer: str = ""
    """What `open_clip.get_tokenizer` takes."""


def open_openclip(name: str, device: str) -> Opened:
    """open_clip models: OWNER/NAME of the hub, a folder, a weights file, ARCH@WEIGHTS, or ARCH@random[:SEED].

    Args:
        name: a folder or a repository holds open_clip_config.json and weights; beside a weights file lies that JSON, or
            ARCH, a name that open_clip knows, says what it is. ARCH@random has random weights, for tests and timings.
        device: as asked for.

    Raises:
        MissingExtra: open_clip or torch is not installed.
        SourceNotFound: files are missing and cannot be had; the message says where to put them.
        BadData: the files are damaged, or of another architecture.
        UsageError: no such architecture, or it is not clear how its pictures are normalised.
    """
    open_clip = _import()
    torch_device(device)
    spec = f"openclip:{name}"
    path = local_path(name)
    left, at, right = name.rpartition("@")
    if at and not (path and path.exists()):
        return _open(_plan_architecture(spec, left, right), device)
    if path is not None and path.is_file():
        if not (path.parent / _CONFIG).is_file():
            raise UsageError(f"{spec}: of which architecture? Say openclip:ARCH@{path}, or put {_CONFIG} beside it")
        return _open(_plan_folder(spec, path.parent, path), device)
    if path is None and name in open_clip.list_models():
        raise UsageError(
            f"{spec}: an architecture, not weights: say openclip:{name}@/path/to/weights, openclip:{name}@random, "
            f"or a repository, such as openclip:timm/{name}"
        )
    folder = find_folder(spec, name, ((_CONFIG,), _WEIGHTS if path is None else _PATTERNS))
    return _open(_plan_folder(spec, folder, _weights_in(spec, folder)), device)


def open_openai(name: str, device: str) -> Opened:
    """OpenAI's CLIP by open_clip: ViT-B/32, ViT-L/14@336px, RN50, ...

    Args:
        name: a name that OpenAI gave; NAME@/path/to/weights takes the weights from a file.
        device: as asked for.

    Raises:
        MissingExtra, SourceNotFound, BadData, UsageError: as `open_openclip`.
    """
    open_clip = _import()
    torch_device(device)
    spec = f"openai:{name}"
    left, _, file = name.rpartition("@")
    path = local_path(file) if left else None
    published = left if path else name
    known = open_clip.list_openai_models()
    architecture = published.replace("@336px", "-336").replace("/", "-")
    if architecture not in known:
        raise UsageError(f"{spec}: no CLIP {published!r} by OpenAI; there are {', '.join(known)}")
    facts = open_clip.get_pretrained_cfg(architecture, "openai")
    if path is None:
        repository = str(facts.get("hf_hub", "")).rstrip("/")
        instead = f"copy the weights and say openai:{name}@/path/to/weights"
        path = _weights_in(spec, find_folder(spec, repository, (_WEIGHTS,), instead=instead))
    plan = _plan_weights(spec, architecture, path)
    plan = replace(plan, config={**plan.config, "quick_gelu": True}, preprocess=_published(facts))
    return _open(plan, device)


def _import() -> Any:
    """open_clip, which needs a torchvision that can be imported."""
    require_torch("openclip")
    ensure_torchvision()
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtra("open_clip_torch", "openclip", "embedding with open_clip") from error
    return open_clip


def _plan_architecture(spec: str, name: str, weights: str) -> _Plan:
    """ARCH@WEIGHTS, ARCH@random and FOLDER@random."""
    random = _RANDOM.fullmatch(weights)
    folder = local_path(name) if random and _import().get_model_config(name) is None else None
    if folder is not None:
        plan = _plan_folder(spec, folder, None)
    else:
        plan = _plan_weights(spec, name, None if random else local_path(weights) or Path(weights))
    return replace(plan, seed=int(random[1] or 0)) if random else plan


def _plan_weights(spec: str, architecture: str, weights: Path | None) -> _Plan:
    """An architecture that open_clip knows. How its pictures are normalised stands beside the weights, or is what all
    weights published for the architecture agree on; open_clip's own default would be wrong for a SigLIP."""
    open_clip = _import()
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise UsageError(f"{spec}: open_clip knows no architecture {architecture!r}; see open_clip.list_models()")
    if weights is not None and not weights.is_file():
        raise SourceNotFound(f"{spec}: no file {weights}")
    beside = weights.parent / _CONFIG if weights else None
    if beside and beside.is_file():
        preprocess = _section(beside, "preprocess_cfg")
    else:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        choices = [_published(open_clip.get_pretrained_cfg(architecture, tag)) for tag in tags]
        if any(choice != choices[0] for choice in choices):
            raise UsageError(
                f"{spec}: weights published for {architecture} differ in how pictures are normalised: put an "
                f'{_CONFIG} with {{"preprocess_cfg": {{"mean": ..., "std": ..., "resize_mode": ...}}}} beside the file'
            )
        preprocess = choices[0] if choices else {}
    return _Plan(spec=spec, config=config, preprocess=preprocess, weights=weights, tokenizer=architecture)


def _plan_folder(spec: str, folder: Path, weights: Path | None) -> _Plan:
    if not (folder / _CONFIG).is_file():
        raise SourceNotFound(f"{spec}: {folder} holds no {_CONFIG}")
    config = _section(folder / _CONFIG, "model_cfg")
    preprocess = _section(folder / _CONFIG, "preprocess_cfg")
    return _Plan(spec=spec, config=config, preprocess=preprocess, weights=weights, tokenizer=f"local-dir:{folder}")


def _weights_in(spec: str, folder: Path) -> Path:
    """The weights of a folder: by the usual names, or the only file that can be meant."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)})
    if len(found) != 1:
        raise UsageError(f"{spec}: which weights? Name the file; {folder} holds {[path.name for path in found]}")
    return found[0]


def _section(path: Path, name: str) -> dict[str, Any]:
    section = read_json(path).get(name)
    if not isinstance(section, dict):
        raise BadData(f"{path}: expected an object {name!r}, got {section!r}")
    return section


def _published(facts: Mapping[str, object]) -> dict[str, object]:
    """The part of a published tag that says how pictures are prepared."""
    known = ("mean", "std", "interpolation", "resize_mode")
    return {name: facts[name] for name in known if facts.get(name) is not None}


def _open(plan: _Plan, device: str) -> Opened:
    open_clip = _import()
    model = _build(plan)
    visual = model.visual
    settings = open_clip.transform.PreprocessCfg(
        **{**asdict(open_clip.transform.PreprocessCfg()), **plan.preprocess, "size": visual.image_size}
    )
    transform = make_transform(
        plan.spec,
        settings.size,
        resize=settings.resize_mode,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
    )
    pipeline = open_clip.transform.image_transform_v2(settings, is_train=False)
    return Opened(
        network=visual,
        device=torch_device(device),
        transform=transform,
        prepare=lambda picture: pipeline(picture).numpy(),
        weights=hash_state(visual.state_dict()),
        vectors=lambda output: output[0] if isinstance(output, tuple) else output,
        encode_texts=_text_encoder(plan, model),
        facts={} if plan.weights else {"random_weights": True, "seed": plan.seed},
        packages=("open_clip_torch", "timm", "torch", "torchvision"),
    )


def _build(plan: _Plan) -> Any:
    """The model, in evaluation mode on the CPU. Nothing is downloaded: towers are never initialised from elsewhere."""
    import torch

    open_clip = _import()
    config = {**plan.config, "vision_cfg": dict(plan.config["vision_cfg"]), "text_cfg": dict(plan.config["text_cfg"])}
    text = config["text_cfg"]
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    is_custom = config.pop("custom_text", False) or "hf_model_name" in text
    plain = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in config else plain
    try:
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(plan.seed)
            model = kind(**config)
            if plan.weights is not None:
                open_clip.load_checkpoint(model, str(plan.weights), strict=True)
    except (pickle.UnpicklingError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise BadData(f"{plan.spec}: open_clip cannot load {plan.weights or 'this configuration'}: {error}") from error
    return model.eval().requires_grad_(False)


def _text_encoder(plan: _Plan, model: Any) -> "Callable[[Sequence[str]], torch.Tensor]":
    """Encodes texts; the tokenizer is made when the first ones come, since most of them need files of their own."""
    made: list[Any] = []

    def encode(texts: Sequence[str]) -> "torch.Tensor":
        if not made:
            made.append(_tokenizer(plan))
        found: torch.Tensor = model.encode_text(made[0](list(texts)))
        return found

    return encode


def _tokenizer(plan: _Plan) -> Any:
    """The model's tokenizer, from this machine only."""
    name = plan.config["text_cfg"].get("hf_tokenizer_name", "")
    where = plan.tokenizer
    if name:
        where = str(_tokenizer_folder(plan, name))
    try:
        with _quiet():
            if not name:
                return _import().get_tokenizer(where, context_length=plan.config["text_cfg"].get("context_length"))
            keywords = dict(plan.config["text_cfg"].get("tokenizer_kwargs", {}))
            mode = plan.config["text_cfg"].get("tokenizer_mode")
            length = plan.config["text_cfg"].get("context_length", 77)
            make = _import().tokenizer.HFTokenizer
            return make(where, context_length=length, tokenizer_mode=mode, local_files_only=True, **keywords)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{plan.spec}: the tokenizer in {where} cannot be loaded: {error}") from error


def _tokenizer_folder(plan: _Plan, name: str) -> Path:
    beside = plan.weights.parent if plan.weights else None
    if beside and not lacks(beside, TOKENIZER):
        return beside
    try:
        return find_folder(f"tokenizer {name}", name, TOKENIZER, instead="put its files beside the weights")
    except SourceNotFound as error:
        raise UsageError(f"{plan.spec}: texts need a tokenizer. {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip from setting up the root logger, and from talking through it."""
    root = logging.getLogger()
    before = list(root.handlers)
    kept = logging.NullHandler()
    root.addHandler(kept)
    root.addFilter(_drop)
    try:
        yield
    finally:
        root.removeFilter(_drop)
        root.removeHandler(kept)
        for handler in [each for each in root.handlers if each not in before]:
            root.removeHandler(handler)


def _drop(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
