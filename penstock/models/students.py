"""Opens a student by its spec: `yolov8:s`, `repvit:m1`, `timm:NAME`, or a backbone of an outside package."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import registry
from penstock.errors import MissingExtra, UsageError
from penstock.models.distill_protocols import Level

if TYPE_CHECKING:
    from penstock.models.student_network import Backbone, Student

DEEPEST = 32
"""Sides of pictures are multiples of it, in pixels, so that every cell of every level covers as much."""


@dataclass(frozen=True, kw_only=True)
class OpenedStudent:
    """A student, on the CPU, in training mode."""

    model: "Student"
    """See its `forward` for what goes in and comes out."""
    identity: Mapping[str, object]
    """Plain values: what must be the same for a run to be continued."""


def open_student(
    spec: str,
    *,
    levels: Mapping[str, Level],
    edge_head: bool,
    weights: Path | None = None,
    image_size: int,
    seed: int = 0,
) -> OpenedStudent:
    """Builds a student; what cannot work is refused here.

    Args:
        spec: NAME or NAME:TEXT, of the registry's students. `yolov8` (sizes n, s, m, l, x; s), `repvit` (m0.9, m1, m1.0,
            m1.1, m1.5, m2, ...; m1), `timm:NAME`. Outside packages add names through the entry point `penstock.students`: a
            function of (text after the colon, strides ascending, image_size) -> Backbone.
        levels: the teacher's levels that are learned, by name. What the backbone has beyond the last one is cut.
        edge_head: whether edges are predicted as well, from stride 4.
        weights: that the backbone begins with, see `penstock.models.student_weights.load_backbone`; None: random ones.
        image_size: side of the square pictures, a multiple of 32, in pixels.
        seed: of everything that begins at random; torch's own generator is left as it was.

    Raises:
        UsageError: unknown spec, a stride that the backbone does not have, weights of another architecture.
        SourceNotFound, BadData: no such file of weights, or a damaged one.
        MissingExtra: torch, timm or safetensors is needed.
    """
    if image_size < DEEPEST or image_size % DEEPEST:
        raise UsageError(f"student {spec}: image_size: expected a multiple of {DEEPEST}, got {image_size}")
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train", f"student {spec}") from error
    from penstock.models.student_network import Student, strides_of
    from penstock.models.student_weights import load_backbone

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = open_backbone(spec, strides_of(levels, edge_head), image_size)
        model = Student(backbone, levels, edge_head=edge_head, image_size=image_size)
    digest = None if weights is None else load_backbone(backbone, weights)
    identity = {
        "student": backbone.spec, "levels": {name: asdict(level) for name, level in levels.items()},
        "edge_head": edge_head, "image_size": image_size, "weights": digest, "seed": seed,
    }  # fmt: skip
    return OpenedStudent(model=model, identity=identity)


def open_backbone(spec: str, strides: Sequence[int], image_size: int) -> "Backbone":
    """The backbone of a spec, with random weights from torch's generator.

    Args:
        spec: as of `open_student`.
        strides: wanted, ascending, in pixels.
        image_size: side of the pictures, in pixels.

    Raises:
        UsageError: no such student, size or stride.
        MissingExtra: timm is needed.
    """
    name, _, text = spec.partition(":")
    make = cast("Callable[[str, Sequence[int], int], Backbone]", registry.find("students", name))
    return make(text, strides, image_size)


def open_yolov8(size: str, strides: Sequence[int], image_size: int) -> "Backbone":
    """YOLOv8's backbone of size n, s, m, l or x (s): penstock's own code, weights of mmyolo's or ultralytics' names."""
    from penstock.models.yolov8 import YoloV8

    return YoloV8(size or "s", strides)


def open_repvit(size: str, strides: Sequence[int], image_size: int) -> "Backbone":
    """RepViT of size m0.9, m1, m1.0, m1.1, m1.5, m2, m2.3 or m3 (m1), by timm; joined into plain convolutions for export."""
    from penstock.models.timm_student import TimmBackbone, require_timm

    name = f"repvit_{(size or 'm1').replace('.', '_')}"
    known = require_timm().list_models("repvit_*")
    if name not in known:
        sizes = ", ".join(each.removeprefix("repvit_").replace("_", ".") for each in known)
        raise UsageError(f"backbone repvit:{size}: expected a size of {sizes}")
    return TimmBackbone(f"repvit:{size or 'm1'}", name, strides, image_size=image_size)


def open_timm(name: str, strides: Sequence[int], image_size: int) -> "Backbone":
    """Any network of timm that gives a pyramid of features, by its name; with random weights, or those of a file."""
    from penstock.models.timm_student import TimmBackbone

    return TimmBackbone(f"timm:{name}", name, strides, image_size=image_size)
