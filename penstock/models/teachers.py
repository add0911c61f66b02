"""Opens a teacher by its model type: a SAM2 by the name of its configuration, `stand-in`, or one of an outside package."""

from collections.abc import Callable
from typing import cast

from penstock import registry
from penstock.errors import UsageError
from penstock.models.distill_protocols import STAND_IN, Teacher, TeacherOptions
from penstock.models.opened import require_torch

DEFAULT_MODEL_TYPE = "sam2.1_hiera_b+"


def open_teacher(model_type: str = DEFAULT_MODEL_TYPE, options: TeacherOptions | None = None) -> Teacher:
    """Opens a teacher: everything that can be wrong with it is said here, before any work.

    Args:
        model_type: `stand-in`, which needs no weights; NAME or NAME:TEXT of the registry's table "teachers" and of
            outside packages' entry points `penstock.teachers` (a function of (TEXT, options)); anything else is a SAM2 by
            the name of its configuration (`sam2.1_hiera_b+`), a folder or a model of transformers, or `random:SIZE[:SEED]`,
            whose weights mean nothing.
        options: see there.

    Raises:
        UsageError: unknown type, no such device, options that it does not take, weights of another architecture.
        SourceNotFound: no weights; the message says where to put them. The stand-in is never taken in their place.
        BadData: the weights are damaged.
        MissingExtra: an optional package is needed.
    """
    require_torch("train")
    name, _, text = model_type.partition(":")
    if name not in registry.names("teachers"):
        name, text = "sam2", model_type
    make = cast("Callable[[str, TeacherOptions], Teacher]", registry.find("teachers", name))
    return make(text, options or TeacherOptions())


def open_sam2(text: str, options: TeacherOptions) -> Teacher:
    """SAM2 or SAM2.1, by transformers: Meta's checkpoints, or transformers' own.

    Args:
        text: the configuration; `sam2.1_hiera_b+` without one.
        options: `image_size` is the model's own, or None.

    Raises:
        UsageError, SourceNotFound, BadData, MissingExtra: see `open_teacher`.
    """
    from penstock.models.sam2_teacher import Sam2Teacher

    return Sam2Teacher(text or DEFAULT_MODEL_TYPE, options)


def open_stand_in(text: str, options: TeacherOptions) -> Teacher:
    """No network: fixed functions of colours and gradients, where no weights are at hand.

    Args:
        text: empty.
        options: `image_size` is any multiple of 32, 1024 for None; no weights, and float32 only.

    Raises:
        UsageError: something else.
    """
    from penstock.models.stand_in import IMAGE_SIZE, StandInTeacher

    wrong = {f":{text}": bool(text), "weights": options.weights is not None, "precision": options.precision != "fp32"}
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(f"model-type {STAND_IN} has no weights, and works in fp32: expected no {what}")
    return StandInTeacher(device=options.device, image_size=options.image_size or IMAGE_SIZE)
