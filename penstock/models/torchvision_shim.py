"""Lets a torchvision whose compiled operators cannot load be imported: open_clip needs its transforms only.

That is what a torchvision built for CUDA, or for another torch, is beside this one. Its Python half insists that two
operators (`nms`, `qnms`) are defined when it is imported; they are defined here, `nms` in plain torch.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@cache
def ensure_torchvision() -> bool:
    """Makes `import torchvision` work. A torchvision that is whole, or missing, is left as it is.

    Returns:
        Whether the stand-in operators had to be defined.
    """
    import torch

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return False
    if not hasattr(torch.ops.torchvision, "nms"):
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        _KEPT.append(library)
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True
    return True


_KEPT: "list[torch.library.Library]" = []
"""Operators are gone with the object that defined them."""


def _loads(folder: Path) -> bool:
    """Whether the compiled operators can be loaded; torch's own libraries have been, by its import."""
    try:
        ctypes.CDLL(str(next(folder.glob("_C*.so"))))
    except (OSError, StopIteration):
        return False
    return True


def nms(boxes: "torch.Tensor", scores: "torch.Tensor", iou_threshold: float) -> "torch.Tensor":
    """Rows kept by non-maximum suppression, the best first.

    Args:
        boxes: (N, 4) float, XYXY.
        scores: (N,) float.
        iou_threshold: a box that overlaps a better one by more is dropped.

    Returns:
        (K,) int64.
    """
    import torch

    low, high = boxes[:, :2], boxes[:, 2:]
    areas = (high - low).prod(dim=1)
    order = torch.argsort(scores, descending=True, stable=True)
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        overlap = (torch.minimum(high[best], high[rest]) - torch.maximum(low[best], low[rest])).clamp(min=0).prod(dim=1)
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)
