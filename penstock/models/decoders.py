"""Opens a teacher's frozen decoder by its spec, and refuses one that is another teacher's than the features are."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock.errors import SourceNotFound, UsageError
from penstock.models.distill_protocols import STAND_IN, Level, MaskDecoder, level_stride
from penstock.models.opened import require_torch, torch_device
from penstock.models.sam2_config import Named, parse_model_cfg

if TYPE_CHECKING:
    import torch
    from torch import nn


def open_decoder(spec: str, *, device: "str | torch.device" = "auto", level: Level | None = None) -> MaskDecoder:
    """Opens a decoder: everything that can be wrong with it is said here, before any work.

    Args:
        spec: MODEL_TYPE or MODEL_TYPE=WEIGHTS, as the features' teacher was named: `sam2.1_hiera_b+=FILE`; see
            `penstock.models.sam2_weights.open_weights` for both. `stand-in`: that of the teacher without weights.
        device: where it works: "auto" (a GPU where there is one), "cpu", "cuda:0".
        level: of the features; the stand-in takes channels and size from it. Others have their own: see `require_own`.

    Raises:
        UsageError: unknown name, no such device, weights of another architecture.
        SourceNotFound: no such weights; the message says how to name them.
        BadData: they are damaged.
        MissingExtra: torch or transformers is not installed.
    """
    model_type, weights = parse_decoder(spec)
    if model_type == STAND_IN:
        require_torch("train")
        from penstock.models.stand_in import StandInDecoder

        if weights is not None:
            raise UsageError(f"decoder {spec!r}: expected {STAND_IN}: it has no weights")
        return (
            StandInDecoder()
            if level is None
            else StandInDecoder(channels=level.channels, image_size=level.side * level.stride)
        )
    require_torch("transformers")
    from penstock.models.sam2_decoder import Sam2Decoder
    from penstock.models.sam2_weights import open_weights

    where = torch_device(str(device))
    try:
        opened = open_weights(model_type, weights)
    except SourceNotFound as error:  # what it says to do is of other commands
        raise SourceNotFound(
            f"decoder {spec!r}: {str(error).partition(': ')[0]}: not on this machine: say {model_type}=FILE with those of the "
            f"teacher, or decoder {STAND_IN} for features of the teacher {STAND_IN}"
        ) from error
    decoder: MaskDecoder = Sam2Decoder(opened, model_type=model_type).to(where)
    return decoder


def masks_for(decoder: MaskDecoder, features: "torch.Tensor", boxes: "torch.Tensor", image_size: int) -> "torch.Tensor":
    """What a decoder makes of boxes that are counted in pixels of pictures of another size than its own square.

    Args:
        decoder: see there.
        features: (B, C, h, w) float.
        boxes: (B, 4) float XYXY, 0..image_size.
        image_size: side of those pictures.

    Returns:
        (B, 4 h, 4 w) float32 logits, above 0 inside.
    """
    return decoder(features, boxes.float() * (decoder.image_size / image_size))


def parse_decoder(spec: str) -> tuple[str, Path | None]:
    """MODEL_TYPE and WEIGHTS of a spec; a path that exists is a MODEL_TYPE whatever it looks like.

    Raises:
        UsageError: one of them is empty.
    """
    if spec and Path(spec).exists():
        return spec, None
    model_type, mark, weights = spec.partition("=")
    if not model_type or (mark and not weights):
        raise UsageError(f"decoder {spec!r}: expected MODEL_TYPE or MODEL_TYPE=WEIGHTS, such as sam2.1_hiera_b+=FILE")
    return model_type, Path(weights).expanduser() if mark else None


def trainable_copy(decoder: MaskDecoder) -> "nn.Module":
    """A copy whose mask decoder learns; the decoder itself stays as it is.

    Raises:
        UsageError: it has no weights.
    """
    if not hasattr(decoder, "trainable_copy"):
        raise UsageError("decoder: expected one with weights to train, got one that has none: leave it frozen")
    return cast("nn.Module", decoder.trainable_copy())


def require_own(decoder: MaskDecoder, level: Level, teacher: Mapping[str, object]) -> None:
    """Refuses a decoder that is not the teacher's whose features these are: its masks would mean nothing.

    Args:
        decoder: see `open_decoder`.
        level: of the features.
        teacher: facts of the data (`DistillData.teacher`): `teacher`, its identity, of which `weights` is a hash;
            `model_type`. What is absent is not compared; a hash settles the matter, else names of SAM2 are compared by
            architecture and version.

    Raises:
        UsageError: the level, its channels or its size are not the decoder's, or the teacher is another.
    """
    if level.name != decoder.level:
        raise UsageError(f"decoder: it takes {decoder.level}, the level is {level.name}: say --level {decoder.level}")
    side = decoder.image_size // level_stride(decoder.level)
    if level.shape != (decoder.channels, side, side):
        raise UsageError(
            f"decoder: features of another teacher: {level.name} of the data is {level.shape}, the decoder takes "
            f"{(decoder.channels, side, side)}: name the decoder of the teacher{_of(teacher)} that made them"
        )
    mine = decoder.identity()
    theirs = teacher.get("teacher")
    hashes = mine.get("weights"), theirs.get("weights") if isinstance(theirs, Mapping) else None
    if all(hashes):
        if hashes[0] != hashes[1]:
            raise UsageError(
                f"decoder: features of another teacher: theirs{_of(teacher)} has weights {hashes[1]}, the decoder {hashes[0]}"
                ": say MODEL_TYPE=FILE with the file that the features were made with"
            )
        return
    names = str(mine.get("model_type") or mine.get("decoder") or ""), str(teacher.get("model_type") or "")
    if all(names) and _named(names[0]) != _named(names[1]):
        raise UsageError(
            f"decoder: features of another teacher: the data say {names[1]}, the decoder is {names[0]}: say decoder "
            f"{names[1]}=WEIGHTS; or, where the data are wrong, correct their model_type"
        )


def _of(teacher: Mapping[str, object]) -> str:
    return f" ({teacher['model_type']})" if teacher.get("model_type") else ""


def _named(model_type: str) -> Named | str:
    """What decides the model: architecture and version, where the name says so."""
    try:
        return parse_model_cfg(model_type) or model_type
    except UsageError:  # the data may say anything
        return model_type
