"""In what format a distillation set holds its boxes: read from its attributes, never guessed."""

from typing import Literal

from penstock.errors import StoreUnsupported
from penstock.store.store import Store

BoxFormat = Literal["xyxy", "xywh"]


def box_format(store: Store) -> BoxFormat:
    """The format of `bboxes`, in original-image pixels: XYWH in a v1 directory without our marker (see `open_v1`).

    Raises:
        StoreUnsupported: the store says neither of the two, or another frame.
    """
    found, frame = store.attributes.get("bbox_format"), store.attributes.get("bbox_frame", "original")
    if found not in ("xyxy", "xywh") or frame != "original":
        expected = "expected bbox_format xyxy or xywh in the frame 'original'"
        raise StoreUnsupported(f"{store.path}: {expected}, got {found!r} in {frame!r}; see penstock info")
    return "xyxy" if found == "xyxy" else "xywh"
