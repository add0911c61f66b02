"""Pictures of saved sequences: a contact sheet of what a network is fed, and what such pictures are drawn with."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from penstock.errors import BadData
from penstock.geometry.images import decode_picture
from penstock.sequence_folder import IMAGES, RAW, ROLES, boxes_from_json, load_provenance, load_sequence

Colour = tuple[int, int, int]
PAPER, INK, SHADOW = (255, 255, 255), (30, 30, 30), (0, 0, 0)
PAST, SEARCH, FUTURE, PADDED, CROP = (80, 165, 255), (255, 214, 0), (255, 95, 210), (165, 165, 165), (120, 230, 140)
MARGIN, LINE = 8, 15
_TILE_HEIGHT, _TILE_WIDTHS = 176, (120, 320)
_EMPTY = (205, 205, 205)


@dataclass(kw_only=True)
class Shown:
    """A saved sequence as it is drawn."""

    folder: Path
    metadata: dict[str, Any]
    annotations: dict[str, Any]
    record: dict[str, Any]
    """Fields of the record that are not pictures; empty where none were saved (`SequenceSaver`)."""
    origin: dict[str, Any]

    @property
    def has_crops(self) -> bool:
        """Whether the pictures in `images` are crops, as far as is known."""
        return "search_affine" in self.record

    @property
    def same_video(self) -> bool:
        """Whether search and template frames are of one video."""
        pairs = (("source", "search_source"), ("sequence", "search_sequence"))
        return all(self.origin.get(one) == self.origin.get(other) for one, other in pairs)

    @property
    def heading(self) -> str:
        """Id, source, class, video."""
        names = (self.metadata.get("dataset"), self.metadata.get("test_class"), self.record.get("sequence"))
        return "  ".join([str(self.metadata.get("sequence_id")), *(str(name) for name in names if name)])

    def pictures(self, role: str, folder: str = IMAGES) -> list[Image.Image]:
        """The pictures of a role, none if none were saved.

        Raises:
            BadData: one is damaged; it is named.
        """
        found = []
        for path in sorted((self.folder / folder / role).glob(f"{role}_*")):
            try:
                found.append(Image.fromarray(decode_picture(path.read_bytes())))
            except BadData as error:
                raise BadData(f"{path}: {error}") from error
            except OSError as error:
                raise BadData(f"{path}: cannot be read: {error.strerror or error}") from error
        return found

    def sizes(self, role: str) -> list[tuple[int, int]]:
        """Width and height of the pictures in `images`, from the provenance; none where it does not say."""
        if self.has_crops:
            sides = [
                round(abs(affine[0][0]) * window[2])
                for affine, window in zip(self.record[f"{role}_affine"], self.record[f"{role}_crop_box"], strict=True)
            ]
            return [(side, side) for side in sides]
        return [(width, height) for height, width in self.origin.get(role, {}).get("image_hw", [])]


def load_shown(folder: Path | str) -> Shown:
    """Reads a saved sequence.

    Raises:
        SourceNotFound: there is none.
        BadData: a file is damaged.
    """
    path = Path(folder)
    metadata, annotations = load_sequence(path)
    provenance = load_provenance(path)
    record, origin = provenance.get("record", {}), provenance.get("origin", {})
    return Shown(folder=path, metadata=metadata, annotations=annotations, record=record, origin=origin)


def contact_sheet(saved_sequence_dir: Path | str) -> np.ndarray:
    """Templates and search pictures of a saved sequence side by side: box, frame, visible or absent (hatched), gap.

    Where crops and the source's pictures were saved there is a row of each; in the lower one the crop is dashed. Where no
    pictures were saved boxes are drawn on grey.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        SourceNotFound: there is no saved sequence.
        BadData: a file is damaged; it is named.
    """
    shown = load_shown(saved_sequence_dir)
    try:
        lines = [shown.heading, _subtitle(shown)]
        rows = [_row(shown, IMAGES)]
        if (shown.folder / RAW).is_dir():
            rows.append(_row(shown, RAW))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadData(f"{shown.folder}: not as penstock writes it: {error!r}") from error
    width = max(*(sum(tile.width + MARGIN for tile in row) for row in rows), 360) + MARGIN
    top = MARGIN + LINE * len(lines)
    height = top + sum(max((tile.height for tile in row), default=0) + MARGIN for row in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        write(draw, (MARGIN, MARGIN + number * LINE), line, INK)
    for row in rows:
        left = MARGIN
        for tile in row:
            sheet.paste(tile, (left, top + MARGIN))
            left += tile.width + MARGIN
        top += max((tile.height for tile in row), default=0) + MARGIN
    return np.asarray(sheet)


def frame_box(
    draw: ImageDraw.ImageDraw, box: np.ndarray, colour: Colour, *, width: int = 2, dashed: bool = False
) -> None:
    """Draws (4,) XYWH pixels as a rectangle, with a dark line around it that shows on any picture."""
    left, top, right, bottom = (round(float(one)) for one in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    if not dashed:
        draw.line(corners, fill=SHADOW, width=width + 2, joint="curve")
        draw.line(corners, fill=colour, width=width, joint="curve")
        return
    for (x0, y0), (x1, y1) in pairwise(corners):
        length = max(abs(x1 - x0), abs(y1 - y0))
        for start in range(0, min(length, 8000), 10):
            ends = (start / length, min(start + 6, length) / length)
            dash = [(x0 + (x1 - x0) * at, y0 + (y1 - y0) * at) for at in ends]
            draw.line(dash, fill=SHADOW, width=width + 2)
            draw.line(dash, fill=colour, width=width)


def hatch(image: Image.Image, box: np.ndarray, colour: Colour) -> None:
    """Fills the part of (4,) XYWH pixels that lies in the picture with diagonal lines."""
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(image.width, int(box[0] + box[2]) + 1), min(image.height, int(box[1] + box[3]) + 1)
    if right <= left or bottom <= top:
        return
    part = image.crop((left, top, right, bottom))
    draw = ImageDraw.Draw(part)
    for start in range(-part.height, part.width, 9):
        draw.line((start, part.height, start + part.height, 0), fill=SHADOW, width=3)
        draw.line((start, part.height, start + part.height, 0), fill=colour, width=1)
    image.paste(part, (left, top))


def write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: Colour) -> None:
    """Writes a line of text; the place is its upper left corner."""
    draw.text(place, text, fill=colour, font=ImageFont.load_default(12))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another width and height."""
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _subtitle(shown: Shown) -> str:
    if not shown.record:
        return "gap and draw not recorded"
    kind = "video" if shown.record["is_video"] else "single picture"
    parts = [f"step {shown.record['step']}", kind, f"max_gap grew by {shown.record['gap']}"]
    if not shown.record["positive"]:
        parts.append("NEGATIVE" if shown.same_video else "NEGATIVE: search frame of another video")
    return ", ".join(parts)


def _row(shown: Shown, folder: str) -> list[Image.Image]:
    tiles = []
    for role in ROLES:
        raw = folder == RAW
        boxes = boxes_from_json(shown.origin[role]["boxes"] if raw else shown.annotations[f"{role}_anno"], role)
        pictures = shown.pictures(role, folder)
        if not pictures:
            pictures = [Image.new("RGB", size, _EMPTY) for size in shown.sizes(role)]
        windows = boxes_from_json(shown.record[f"{role}_crop_box"], role) if raw else None
        for number, picture in enumerate(pictures):
            window = None if windows is None else windows[number]
            tiles.append(_tile(shown, role, number, picture=picture, box=boxes[number], window=window))
    return tiles


def _tile(
    shown: Shown, role: str, number: int, *, picture: Image.Image, box: np.ndarray, window: np.ndarray | None
) -> Image.Image:
    low, high = _TILE_WIDTHS
    width = min(high, max(low, round(picture.width * _TILE_HEIGHT / picture.height)))
    height = max(1, round(picture.height * width / picture.width))
    small = fitted(picture, (width, height)).copy()
    visible = shown.record[f"{role}_visible"][number] if shown.record else None
    if visible is False:
        hatch(small, np.array([0, 0, width, height]), PADDED)
    if np.isfinite(box).all():
        frame_box(ImageDraw.Draw(small), box * (width / picture.width), SEARCH if role == "search" else PAST)
    if window is not None:
        frame_box(ImageDraw.Draw(small), window * (width / picture.width), CROP, dashed=True)
    tile = Image.new("RGB", (width, height + 2 * LINE + 4), PAPER)
    tile.paste(small, (0, 0))
    frames = [shown.metadata[f"{one}_frame_ids"] for one in ROLES]
    known = frames[ROLES.index(role)]
    frame = f", frame {known[number]}" if number < len(known) else ""
    flag = {None: "visibility not saved", True: "visible", False: "ABSENT"}[visible]
    if role == "template" and number < len(known) and frames[1] and shown.same_video:
        flag += f", gap {frames[1][0] - known[number]:+d}"
    draw = ImageDraw.Draw(tile)
    write(draw, (0, height + 2), f"{role} {number}{frame}", INK)
    write(draw, (0, height + 2 + LINE), flag, INK)
    return tile
