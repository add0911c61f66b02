"""The XML of one frame of ImageNet VID, and the names of its classes."""

from dataclasses import dataclass, field
from xml.etree import ElementTree

from penstock.errors import BadData

CLASSES = {
    "n02691156": "airplane",
    "n02419796": "antelope",
    "n02131653": "bear",
    "n02834778": "bicycle",
    "n01503061": "bird",
    "n02924116": "bus",
    "n02958343": "car",
    "n02402425": "cattle",
    "n02084071": "dog",
    "n02121808": "domestic_cat",
    "n02503517": "elephant",
    "n02118333": "fox",
    "n02510455": "giant_panda",
    "n02342885": "hamster",
    "n02374451": "horse",
    "n02129165": "lion",
    "n01674464": "lizard",
    "n02484322": "monkey",
    "n03790512": "motorcycle",
    "n02324045": "rabbit",
    "n02509815": "red_panda",
    "n02411705": "sheep",
    "n01726692": "snake",
    "n02355227": "squirrel",
    "n02129604": "tiger",
    "n04468005": "train",
    "n01662784": "turtle",
    "n04530566": "watercraft",
    "n02062744": "whale",
    "n02391049": "zebra",
}
"""WordNet id to name: the 30 classes of the video detection task of 2015."""
_CORNERS = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")


@dataclass(frozen=True)
class VidObject:
    """One object of one frame."""

    track: str
    wnid: str
    box_xywh: tuple[float, ...]
    """XYWH in pixels: xmin, ymin, xmax - xmin, ymax - ymin; NaN where the XML does not hold four numbers."""
    is_occluded: bool
    is_generated: bool


@dataclass
class VidFrame:
    """What one XML says."""

    size_hw: tuple[int, int]
    """Height and width of the picture; zeros where it does not say."""
    objects: list[VidObject] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def parse_frame(content: bytes) -> VidFrame:
    """The objects of a frame, in the order of the file. An object without a trackid is left out, and is a fault.

    Raises:
        BadData: it is no XML, or one with a document type or entities, which this dataset has not: they are not expanded.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"expected XML in UTF-8: {error}") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadData("expected XML without a document type and entities; this one is not read")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadData(f"broken XML: {error}") from error
    height, width = _number(root, "size/height"), _number(root, "size/width")
    is_sized = 0 < height < 1e6 and 0 < width < 1e6
    frame = VidFrame((int(height), int(width)) if is_sized else (0, 0))
    for each in root.iterfind("object"):
        track = (each.findtext("trackid") or "").strip()
        if not track or "\n" in track or "/" in track:
            frame.faults.append(f"object without a trackid ({track[:20]!r}): left out")
            continue
        left, top, right, bottom = (_number(each, name) for name in _CORNERS)
        box = (left, top, right - left, bottom - top)
        if not all(abs(number) < 1e9 for number in box):
            frame.faults.append(f"trackid {track}: expected four numbers in bndbox: its box fails when read")
            box = (float("nan"),) * 4
        is_occluded, is_generated = ((each.findtext(name) or "0").strip() != "0" for name in ("occluded", "generated"))
        frame.objects.append(VidObject(track, (each.findtext("name") or "").strip(), box, is_occluded, is_generated))
    return frame


def _number(node: ElementTree.Element, path: str) -> float:
    """The number in a child; NaN where there is none."""
    try:
        return float(node.findtext(path) or "nan")
    except ValueError:
        return float("nan")
