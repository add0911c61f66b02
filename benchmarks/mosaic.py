"""MosaicML's `streaming`, for whoever measures it: it imports torchvision, which may be built for CUDA only."""

from typing import Any

_KEPT: list[Any] = []
"""Operators are gone with the object that defined them."""


def streaming_package() -> Any:
    """The package; where torchvision misses two operators, they are declared first. Knows nothing of penstock."""
    import torch

    try:
        import streaming
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import streaming
    return streaming
