"""Weights of a student's backbone from a file, by whichever of the known namings; every name and shape is checked."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from penstock.errors import BadData, UsageError
from penstock.models.opened import hash_state
from penstock.models.student_network import Backbone
from penstock.models.weights_file import differences, listed, read_weights
from penstock.models.yolov8 import SIZES

_COUNTER = ".num_batches_tracked"
"""Batch norm's; some formats leave it out, and nothing here reads it."""
_PART = "backbone."
_OF_RUN = "student.backbone."
"""Of a checkpoint of `penstock train distill`."""


def load_backbone(backbone: Backbone, path: Path) -> str:
    """Gives a backbone the weights of a file.

    Names may begin with what torch.compile and DDP put there (`_orig_mod.`, `module.`). Where some begin with `backbone.`
    (a detector, a whole student), the others are of other parts and are passed over.

    Args:
        backbone: changed in place, if everything fits.
        path: see `penstock.models.weights_file.read_weights`.

    Returns:
        Hash of the weights, as they are in the backbone.

    Raises:
        SourceNotFound, MissingExtra: as `read_weights`.
        BadData: the file is damaged, holds two values for one weight, or NaN.
        UsageError: weights of another architecture: missing and left-over names are listed.
    """
    found = _named(backbone, read_weights(path), path)
    state = backbone.state_dict()
    wanted = {name: value for name, value in state.items() if name in found or not name.endswith(_COUNTER)}
    given = {name: value for name, value in found.items() if name in wanted or not backbone.is_spare(name)}
    if wrong := differences(wanted, given):
        raise UsageError(
            f"{path}: weights of another architecture than {backbone.spec}: {wrong}.{_advice(backbone, found)}"
        )
    taken = {name: found[name].to(value.dtype) if name in found else value for name, value in state.items()}
    bad = [name for name, value in taken.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise BadData(f"{path}: expected finite weights, got NaN or infinity in {listed(bad)}")
    backbone.load_state_dict(taken)
    return hash_state(backbone.state_dict())


def _named(backbone: Backbone, state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors by the backbone's own names, without those of other parts."""
    plain = [(re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", "")), value) for name, value in state.items()]
    if any(name.startswith(_PART) for name, _ in plain):
        plain = [(name.removeprefix(_PART), value) for name, value in plain if name.startswith(_PART)]
    found: dict[str, torch.Tensor] = {}
    for name, value in plain:
        own = backbone.own_name(name)
        if own in found:
            raise BadData(f"{path}: expected each weight once, got {name} by two names")
        found[own] = value
    return found


def _advice(backbone: Backbone, found: Mapping[str, torch.Tensor]) -> str:
    """What the weights look like, in words; empty if nothing that is known."""
    if any(name.startswith(_OF_RUN) for name in found):
        return " It is a checkpoint of a training, not of a backbone: say --pretrained-pth, or take its export/backbone.pth"
    stem = found.get("stem.conv.weight", found.get("model.0.conv.weight"))
    if stem is not None:
        sizes = [size for size, (widths, _) in SIZES.items() if widths[0] == len(stem)]
        like = f"yolov8:{sizes[0]}" if sizes else ""
    elif any(name.startswith(("stem.conv1.c.", "net.stem.conv1.c.")) for name in found):
        like = "repvit"
    else:
        like = ""
    if like == backbone.spec:
        return " They were cut after a lower stride, or damaged: learn no level beyond it, or give whole weights"
    return f" They look like {like}: say --backbone {like}" if like else ""
