"""Features as colours, and sheets of what a student has learned beside its teacher: NumPy and Pillow, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from penstock.geometry.boxes import xyxy_to_xywh
from penstock.geometry.images import stretch
from penstock.geometry.masks import nearest
from penstock.sequence_sheet import INK, LINE, MARGIN, PAPER, Colour, frame_box, write

HELD_FOLDER = "worst_held_out"
"""Of pictures of held-out samples; `worst` has those of training."""
INDEX = "index.json"
"""Beside pictures: {"step": N or null, "samples": [{"file": name, "key": key, "words": what was found}]}."""
PANEL = 256
"""Side of a panel, in pixels."""
_BAD: Colour = (255, 0, 255)
"""Of cells that are not finite."""
_TRUTH, _TEACHER, _STUDENT, _SOFT = (0, 158, 90), (50, 130, 245), (235, 120, 0), (110, 110, 110)
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
_FLAT = 1e-10
"""A direction with less than this share of the features' energy is rounding, not content."""


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Three directions among C channels, as red, green and blue, with the range of each."""

    mean: np.ndarray
    """(C,) float64."""
    axes: np.ndarray
    """(3, C) float64, of length 1; 0 where features do not vary in so many directions."""
    low: np.ndarray
    """(3,) float64: what is black."""
    high: np.ndarray
    """(3,) float64: what is full."""

    def of(self, features: np.ndarray) -> np.ndarray:
        """Features as colours: of the teacher and of its student alike, so that equal features have equal colours.

        Args:
            features: (C, h, w) float. Cells that are not finite become magenta.

        Returns:
            (h, w, 3) uint8 RGB; a direction without a range is half grey.
        """
        is_good = np.isfinite(features).all(axis=0)
        centred = np.where(is_good, features, 0).astype(np.float64) - self.mean[:, None, None]
        parts = np.tensordot(self.axes, centred, axes=1).transpose(1, 2, 0)
        span = self.high - self.low
        shares = np.where(span > 0, (parts - self.low) / np.where(span > 0, span, 1), 0.5)
        colours: np.ndarray = (255 * shares.clip(0, 1)).round().astype(np.uint8)
        colours[~is_good] = _BAD
        return colours


def fit_colours(features: np.ndarray) -> Colours:
    """The three principal directions of a teacher's features; the greatest is red.

    A direction's sign is that in which its largest weight is positive; its range is that of all cells without the lowest
    and the highest hundredth.

    Args:
        features: (N, C, h, w) float of a few pictures; cells that are not finite are left out.
    """
    channels = features.shape[1]
    cells = features.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    cells = cells[np.isfinite(cells).all(axis=1)]
    axes = np.zeros((3, channels))
    if not len(cells):
        return Colours(mean=np.zeros(channels), axes=axes, low=np.zeros(3), high=np.zeros(3))
    mean = cells.mean(axis=0)
    centred = cells - mean
    energies, vectors = np.linalg.eigh(centred.T @ centred / len(cells))
    floor = _FLAT * float((cells**2).sum(axis=1).mean())
    for place, number in enumerate(range(channels - 1, max(channels - 4, -1), -1)):
        if energies[number] > floor:
            vector = vectors[:, number]
            axes[place] = vector * np.sign(vector[np.abs(vector).argmax()])
    parts = centred @ axes.T
    low, high = np.percentile(parts, (1, 99), axis=0)
    return Colours(mean=mean, axes=axes, low=low, high=high)


def error_map(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """How far the student is off in each cell, in units of the teacher's features: 0 is equal; all zeros are 1 off on average.

    Args:
        teacher: (C, h, w) float.
        student: the same.

    Returns:
        (h, w) float64: |student - teacher| of a cell over the root of the mean |teacher|^2 of all cells. Not finite where
        features are not.
    """
    wanted, found = teacher.astype(np.float64), student.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        distance = np.sqrt(((found - wanted) ** 2).sum(axis=0))
    lengths = (wanted**2).sum(axis=0)
    scale = np.sqrt(lengths[np.isfinite(lengths)].mean()) if np.isfinite(lengths).any() else 0.0
    relative: np.ndarray = distance / max(float(scale), 1e-12)
    return relative


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, and what teacher and student make of it. Maps are of any size and are stretched to the panel."""

    key: str
    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    level: str
    teacher: np.ndarray
    """(C, h, w) float."""
    student: np.ndarray
    """The same."""
    edges: Mapping[str, np.ndarray] = field(default_factory=dict)
    """"teacher", "student" -> (n, n) bool; empty: not shown."""
    masks: Mapping[str, np.ndarray] | None = None
    """"truth", "teacher", "student" -> (n, n) bool, those that there are; empty: the sample has no box; None: not shown."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of masks other than the truth: IoU with it."""
    box_xyxy: np.ndarray | None = None
    """(4,) float in pixels of the image."""


@dataclass(kw_only=True)
class _Panel:
    title: str
    picture: np.ndarray
    """(PANEL, PANEL, 3) uint8."""
    legend: list[tuple[str, Colour]]


def words_of(sample: Sample) -> str:
    """What was found, for people: error, cosine, IoUs."""
    error = error_map(sample.teacher, sample.student).mean()
    ious = [f"IoU of the {name}'s mask {value:.2f}" for name, value in sample.scores.items()]
    return ", ".join([f"error {error:.3f}", f"cosine {_cosine(sample.teacher, sample.student):.3f}", *ious])


def sheet_of(sample: Sample, colours: Colours) -> np.ndarray:
    """Picture, teacher, student, error, edges, masks side by side, a name above each and a legend below it.

    Args:
        sample: see there.
        colours: as of `fit_colours`, for these channels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = [
        _Panel(title="picture", picture=_fitted(sample.image), legend=[]),
        _Panel(title=f"teacher, {sample.level}", picture=_cells(colours.of(sample.teacher)),
               legend=[("three principal directions", _SOFT)]),
        _Panel(title=f"student, {sample.level}", picture=_cells(colours.of(sample.student)),
               legend=[("the same colours; cosine", _SOFT), (f"{_cosine(sample.teacher, sample.student):.3f}", INK)]),
        _error_panel(sample),
    ]  # fmt: skip
    panels += [_edge_panel(sample)] if sample.edges else []
    panels += [_mask_panel(sample, sample.masks)] if sample.masks is not None else []
    page = Image.new("RGB", ((PANEL + MARGIN) * len(panels) + MARGIN, PANEL + 3 * LINE + 4 * MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    write(draw, (MARGIN, MARGIN // 2), sample.key, INK)
    for number, panel in enumerate(panels):
        left, top = MARGIN + number * (PANEL + MARGIN), LINE + MARGIN
        write(draw, (left, top), panel.title, _SOFT)
        page.paste(Image.fromarray(panel.picture), (left, top + LINE + MARGIN // 2))
        for text, colour in panel.legend:
            place = (left, top + LINE + PANEL + MARGIN)
            write(draw, place, text, colour)
            left += round(draw.textlength(f"{text}  ", font_size=12))
    return np.asarray(page)


def _cosine(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean over the cells; of a cell of zeros it is 0."""
    wanted, found = teacher.astype(np.float64), student.astype(np.float64)
    lengths = np.sqrt((wanted**2).sum(axis=0) * (found**2).sum(axis=0))
    return float(((wanted * found).sum(axis=0) / np.maximum(lengths, 1e-12)).mean())


def _fitted(image: np.ndarray) -> np.ndarray:
    return stretch(np.ascontiguousarray(image), (PANEL, PANEL))


def _cells(colours: np.ndarray) -> np.ndarray:
    """(h, w, 3) to the panel's size, each cell a square."""
    return np.stack([nearest(colours[..., one], (PANEL, PANEL)) for one in range(3)], axis=-1)


def _error_panel(sample: Sample) -> _Panel:
    error = error_map(sample.teacher, sample.student)
    is_good = np.isfinite(error)
    places = np.where(is_good, error, 0).clip(0, 1) * (len(_HEAT) - 1)
    heat = np.stack([np.interp(places, np.arange(len(_HEAT)), _HEAT[:, one]) for one in range(3)], axis=-1)
    heat[~is_good] = _BAD
    return _Panel(title="error, |student - teacher| / |teacher|", picture=_cells(heat.round().astype(np.uint8)),
                  legend=[("black 0, pale 1 or more; mean", _SOFT), (f"{error.mean():.3f}", INK)])  # fmt: skip


def _edge_panel(sample: Sample) -> _Panel:
    teacher, student = (nearest(sample.edges[name], (PANEL, PANEL)) for name in ("teacher", "student"))
    picture = np.zeros((PANEL, PANEL, 3), np.uint8)
    picture[teacher & student], picture[teacher & ~student], picture[student & ~teacher] = _TRUTH, _TEACHER, _STUDENT
    legend = [("both", _TRUTH), ("the teacher's only", _TEACHER), ("the student's only", _STUDENT)]
    return _Panel(title="edges", picture=picture, legend=legend)


def _mask_panel(sample: Sample, wanted: Mapping[str, np.ndarray]) -> _Panel:
    picture = _fitted(sample.image)
    grey = (picture.mean(axis=2, keepdims=True) * 0.5 + 50).repeat(3, axis=2)
    if not wanted:
        return _Panel(
            title="masks", picture=grey.round().astype(np.uint8), legend=[("no box, or an empty mask", _SOFT)]
        )
    masks = {name: nearest(mask, (PANEL, PANEL)) for name, mask in wanted.items()}
    grey[masks["truth"]] = 0.55 * grey[masks["truth"]] + 0.45 * np.array(_TRUTH)
    legend = [("truth", _TRUTH)]
    for name, colour, width in (("teacher", _TEACHER, 4), ("student", _STUDENT, 2)):
        if name in masks:  # the student's outline is thin and lies on the teacher's, so that both are seen
            grey[_outline(masks[name], width)] = colour
            legend.append((f"{name} {sample.scores[name]:.2f}", colour))
    image = Image.fromarray(grey.round().astype(np.uint8))
    if sample.box_xyxy is not None:
        box = xyxy_to_xywh(sample.box_xyxy) * (PANEL / sample.image.shape[0])
        frame_box(ImageDraw.Draw(image), box, PAPER, width=1, dashed=True)
    title = "masks for the box, IoU" if sample.scores else "mask for the box"
    return _Panel(title=title, picture=np.asarray(image), legend=legend)


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """(n, n) bool: the outermost pixels of a mask; where it meets the border of the picture it has no outline."""
    side = 2 * width + 1
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, width, mode="edge"), (side, side))
    outline: np.ndarray = mask & ~windows.all(axis=(-1, -2))
    return outline
