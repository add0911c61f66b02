"""The histories of a saved sequence, step by step on its search pictures, as a GIF or a video.

Past solid, search bold, future dashed, absent hatched, padded grey. Each box stands where it was in its own frame; the picture
below is the search frame's, so where the camera moves boxes of other frames do not lie on the target.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from penstock.errors import BadData, MissingExtra, UsageError
from penstock.geometry.crops import map_boxes
from penstock.sequence_folder import IMAGES, RAW, boxes_from_json
from penstock.sequence_sheet import (
    FUTURE,
    INK,
    LINE,
    MARGIN,
    PADDED,
    PAPER,
    PAST,
    SEARCH,
    SHADOW,
    Shown,
    fitted,
    frame_box,
    hatch,
    load_shown,
    write,
)
from penstock.store.output import replace_file

_HEIGHT = 288
_NARROWEST = 430
_SECONDS, _LAST_SECONDS = 0.15, 1.8
_COLOURS = {"past": PAST, "search": SEARCH, "future": FUTURE}


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One box of the animation."""

    kind: str
    """"past", "search" or "future"."""
    place: str
    """"past 3 of 50"."""
    boxes: np.ndarray
    """(P, 4) XYWH in pixels of each panel; NaN where there is none."""
    frame: int
    time: float | None
    visible: bool
    padded: bool


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A picture that boxes are drawn on."""

    image: Image.Image
    affine: np.ndarray
    """(2, 3): pixels of the source's picture to those of the panel."""


def overlay(saved_sequence_dir: Path | str, output: Path | str) -> Path:
    """Writes an animation of a saved sequence: one picture per history step and one at the end with all of them.

    Args:
        saved_sequence_dir: saved with its draw (by `penstock sequence save`); if it was saved without pictures, boxes are
            drawn on grey.
        output: `.gif`, or `.mp4` (H.264, needs the extra `video`). It is replaced if it is there.

    Returns:
        The path of the output.

    Raises:
        SourceNotFound: there is no saved sequence.
        BadData: a file is damaged, or nothing was saved that relates the histories to the pictures.
        UsageError: another kind of output.
        MissingExtra: PyAV is not installed.
        OutputRefused: the output cannot be written.
    """
    target = Path(output)
    if target.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"{target}: expected an output .gif or .mp4")
    shown = load_shown(saved_sequence_dir)
    if not shown.record:
        raise BadData(
            f"{shown.folder}: was saved without its draw (SequenceSaver), so nothing says where its histories lie in the "
            "pictures; save it with penstock sequence save"
        )
    try:
        panels = _panels(shown)
        steps = _steps(shown, panels)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadData(f"{shown.folder}: not as penstock writes it: {error!r}") from error
    pictures = [_drawn(shown, panels, steps, number) for number in range(len(steps) + 1)]
    content = _gif(pictures) if target.suffix.lower() == ".gif" else _mp4(pictures)
    replace_file(target, content)
    return target


def _panels(shown: Shown) -> list[_Panel]:
    """Each search picture: as fed, and the source's where that was saved too."""
    panels = []
    sources: list[tuple[str, list[Any]]] = [(IMAGES, shown.record.get("search_affine", []))]
    if (shown.folder / RAW).is_dir():
        sources.append((RAW, []))
    for folder, affines in sources:
        pictures = shown.pictures("search", folder)
        if not pictures:
            pictures = [Image.new("RGB", size, PADDED) for size in shown.sizes("search")]
        for number, picture in enumerate(pictures):
            scale = _HEIGHT / picture.height
            affine = np.array(affines[number] if affines else [[1, 0, 0], [0, 1, 0]], np.float64)
            small = fitted(picture, (max(1, round(picture.width * scale)), _HEIGHT))
            panels.append(_Panel(image=small, affine=affine * scale))
    return panels


def _steps(shown: Shown, panels: Sequence[_Panel]) -> list[_Step]:
    """Past, search, future. Of a search frame from another video there is the search alone."""
    record, origin = shown.record, shown.origin
    steps: list[_Step] = []
    histories = {"past": "backward", "future": "forward"} if shown.same_video else {}
    for kind, name in histories.items():
        boxes = boxes_from_json(origin[name]["boxes"], name)
        for number, box in enumerate(boxes):
            steps.append(
                _Step(
                    kind=kind,
                    place=f"{kind} {number + 1} of {len(boxes)}",
                    boxes=_mapped(panels, box),
                    frame=record[f"{name}_frames"][number],
                    time=record[f"{name}_time"][number],
                    visible=record[f"{name}_visible"][number] and record[f"{name}_valid"][number],
                    padded=record[f"{name}_padded"][number],
                )
            )
    first = boxes_from_json(origin["search"]["boxes"], "search")
    count = len(first)
    found = [
        _Step(
            kind="search",
            place=f"search {number + 1} of {count}",
            # a search frame's box lies in its own panels only
            boxes=np.where((np.arange(len(panels)) % count == number)[:, None], _mapped(panels, box), np.nan),
            frame=record["search_frames"][number],
            time=None,
            visible=record["search_visible"][number] and record["search_valid"][number],
            padded=False,
        )
        for number, box in enumerate(first)
    ]
    past = [step for step in steps if step.kind == "past"]
    return [*past, *found, *steps[len(past) :]]


def _mapped(panels: Sequence[_Panel], box: np.ndarray) -> np.ndarray:
    return np.stack([map_boxes(box, panel.affine) for panel in panels])


def _drawn(shown: Shown, panels: Sequence[_Panel], steps: Sequence[_Step], number: int) -> Image.Image:
    """The picture of a step: those before it are thin; the last picture has all of them."""
    current = steps[number] if number < len(steps) else None
    images = []
    for place, panel in enumerate(panels):
        image = panel.image.copy()
        drawn = steps[: number + 1]
        if current is None:
            drawn = sorted(drawn, key=lambda step: step.kind == "search")  # the first future box is the search frame's
        for step in drawn:
            is_bold = step is current or (current is None and step.kind == "search")
            _draw_step(image, step, step.boxes[place], bold=is_bold)
        images.append(image)
    width = max(sum(image.width + MARGIN for image in images) + MARGIN, _NARROWEST)
    page = Image.new("RGB", (width + width % 2, _HEIGHT + 3 * LINE + 4 * MARGIN + 1), PAPER)
    draw = ImageDraw.Draw(page)
    write(draw, (MARGIN, MARGIN), shown.heading, INK)
    write(draw, (MARGIN, MARGIN + LINE), _line(shown, steps, current), INK)
    left, top = MARGIN, 2 * MARGIN + 2 * LINE
    for image in images:
        page.paste(image, (left, top))
        left += image.width + MARGIN
    _legend(page, top + _HEIGHT + MARGIN)
    return page


def _draw_step(image: Image.Image, step: _Step, box: np.ndarray, *, bold: bool) -> None:
    colour = PADDED if step.padded else _COLOURS[step.kind]
    has_box = bool(np.isfinite(box).all())
    if not step.visible and bold:
        hatch(image, box if has_box else np.array([0, 0, *image.size]), colour)
    if not has_box:
        return
    if not step.visible and not bold:
        hatch(image, box, colour)
    width = {"past": 1, "search": 3, "future": 1}[step.kind] + bold
    frame_box(ImageDraw.Draw(image), box, colour, width=width, dashed=step.kind == "future")


def _line(shown: Shown, steps: Sequence[_Step], current: _Step | None) -> str:
    if current is None:
        absent, padded = sum(not one.visible for one in steps), sum(one.padded for one in steps)
        return f"all {len(steps)} boxes: {absent} absent, {padded} padded"
    parts = [current.place, f"frame {current.frame}"]
    if current.time is not None:
        parts.append(f"{current.time:.2f} s")
    parts += ["absent"] * (not current.visible) + ["padded"] * current.padded
    if not shown.same_video:
        parts.append("of another video than the templates")
    return ", ".join(parts)


def _legend(page: Image.Image, top: int) -> None:
    draw, left = ImageDraw.Draw(page), MARGIN
    samples = [("past", PAST), ("search", SEARCH), ("future", FUTURE), ("absent", PAST), ("padded", PADDED)]
    for name, colour in samples:
        box = np.array([left + 2, top + 1, 22, LINE - 3])
        draw.rectangle((left - 2, top - 3, left + 28, top + LINE + 1), fill=INK)
        if name == "absent":
            hatch(page, box, colour)
        frame_box(draw, box, colour, width=4 if name == "search" else 2, dashed=name == "future")
        write(draw, (left + 33, top), name, INK)
        left += 86


def _gif(pictures: Sequence[Image.Image]) -> bytes:
    """One palette for all: of the last picture, and the colours that boxes are drawn in, which are too thin to be in it."""
    colours = (PAPER, INK, SHADOW, PAST, SEARCH, FUTURE, PADDED)
    own = [part for colour in colours for part in colour]
    plain = pictures[-1].quantize(256 - len(colours), method=Image.Quantize.MEDIANCUT)
    palette = Image.new("P", (1, 1))
    palette.putpalette((own + (plain.getpalette() or []))[: 3 * 256])
    mapped = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [round(1000 * _SECONDS)] * (len(pictures) - 1) + [round(1000 * _LAST_SECONDS)]
    stream = io.BytesIO()
    mapped[0].save(stream, "GIF", save_all=True, append_images=mapped[1:], duration=durations, loop=0)
    return stream.getvalue()


def _mp4(pictures: Sequence[Image.Image]) -> bytes:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", "writing videos") from error
    rate = round(1 / _SECONDS)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=rate)
        track.width, track.height = (side - side % 2 for side in pictures[0].size)
        track.pix_fmt = "yuv420p"
        for picture in [*pictures, *[pictures[-1]] * round(_LAST_SECONDS / _SECONDS)]:
            pixels = np.asarray(picture)[: track.height, : track.width]
            container.mux(track.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()
