"""Masks without a model: the outlines of a coarse id map moved to where the colours nearby say that they belong.

Each object is a Gaussian of CIELAB colour, fitted anew around every place to the object's own pixels nearby (region
competition with local statistics). A pixel near an outline goes to the object that explains its colour best, less a
price for each pixel of distance from where the coarse map had that object. Large unlabelled areas compete as one more
object; small ones are holes, which all around them may claim; what nobody reaches goes to the nearest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from penstock.errors import UsageError
from penstock.geometry.opencv import cv2
from penstock.refining.proposals import from_masks
from penstock.refining.types import Frame, Objects, Prompts, Proposals

_FIT_LIMIT = 12.0
"""Squared deviations beyond which a colour fits no worse: one odd pixel proves nothing."""
_LEAST_VARIANCE = 0.001
"""Of CIELAB in 0..1: JPEG and noise."""
_SMOOTH = 1.0
"""Pixels over which the evidence is averaged."""


@dataclass(frozen=True, kw_only=True)
class Classical:
    """A `Proposer` without weights: one mask for each object that is prompted for, none at points.

    Needs pictures in which neighbours differ in colour or brightness; where they do not, outlines stay. Deterministic.
    """

    reach_share: float = 0.02
    """How far an outline may move, of the diagonal."""
    window_share: float = 0.05
    """Half the side of the square in which colours are fitted, of the diagonal."""
    price: float = 15.0
    """Of moving by the whole reach, in units of log-likelihood."""
    hole_share: float = 0.01
    """Unlabelled areas up to this share of the frame are holes."""
    rounds: int = 2
    """Colours are fitted anew to the result of the round before."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UsageError: a value is out of range.
        """
        for name in ("reach_share", "window_share", "hole_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}: expected 0..1, got {getattr(self, name)!r}")
        if self.rounds < 1 or self.price < 0 or self.device != "cpu":
            raise UsageError(
                f"classical: expected rounds of 1 or more, a price of 0 or more and device cpu, got {self}"
            )

    def identity(self) -> Mapping[str, object]:
        """Name, version and every setting."""
        return {"proposer": "classical", "version": 1, **asdict(self)}

    def encode(self, frames: Sequence[Frame]) -> "Sequence[Snapped]":
        """Looks at frames; the work is done when they are prompted."""
        return [Snapped(frame, self) for frame in frames]


class Snapped:
    """One frame: the proposer's `Encoded`."""

    def __init__(self, frame: Frame, proposer: Classical) -> None:
        self._frame = frame
        self._proposer = proposer
        self._labels: np.ndarray | None = None

    def prompted(self, prompts: Prompts) -> Proposals:
        """One mask for each prompted object of the frame that keeps pixels; points, boxes and logits are not looked at.

        Its score is the IoU with the coarse object: the less an outline moved, the surer it is.
        """
        objects = self._frame.objects
        if self._labels is None:
            self._labels = snap(self._frame.image, objects, self._proposer)
        places = np.flatnonzero(np.isin(objects.ids, prompts.ids))
        masks = [self._labels == place + 1 for place in places.tolist()]
        coarse = [objects.labels == place + 1 for place in places.tolist()]
        pairs = zip(masks, coarse, strict=True)
        scores = [np.count_nonzero(new & old) / np.count_nonzero(new | old) for new, old in pairs]
        return from_masks(objects.size_hw, masks, scores=np.array(scores, np.float32), ids=objects.ids[places])

    def at_points(self, points: np.ndarray) -> Proposals:
        """None: what no object of the map names is not looked for."""
        return from_masks(self._frame.objects.size_hw, ())


def snap(image: np.ndarray, objects: Objects, settings: Classical) -> np.ndarray:
    """The labels of a coarse map, moved to the picture's colours.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects: of the same size.
        settings: the knobs.

    Returns:
        (H, W) uint16: number of the object, 0 where there is none.
    """
    count = len(objects)
    if not count:
        return objects.labels.astype(np.uint16)
    known, start = _filled(objects, settings.hole_share)
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32) / np.float32(255)
    labels = start
    for _ in range(settings.rounds):
        best = np.full(start.shape, -np.inf, np.float32)
        winner = start.copy()
        for number in range(1, count + 2):
            _compete(number, (known, labels), colours, (best, winner), settings)
        labels = winner
    snapped: np.ndarray = np.where(labels > count, 0, labels).astype(np.uint16)
    return snapped


def _compete(
    number: int,
    maps: tuple[np.ndarray, np.ndarray],
    colours: np.ndarray,
    state: tuple[np.ndarray, np.ndarray],
    settings: Classical,
) -> None:
    """Lets one object bid for the pixels in its reach; `state` is the best bid so far and whose it is."""
    known, labels = maps
    best, winner = state
    diagonal = float(np.hypot(*known.shape))
    reach, window = max(1, round(settings.reach_share * diagonal)), max(2, round(settings.window_share * diagonal))
    box = _grown(cv2.boundingRect((known == number).view(np.uint8)), reach, known.shape)
    mask = labels[box] == number
    if not mask.any():
        return
    distance = cv2.distanceTransform((known[box] != number).view(np.uint8), cv2.DIST_L2, 3)
    bid = _log_likelihood(colours[box], mask, window)
    bid -= np.float32(settings.price / reach) * distance
    bid = cv2.GaussianBlur(bid, (0, 0), _SMOOTH)
    wins = (bid > best[box]) & (distance <= reach)
    best[box][wins] = bid[wins]
    winner[box][wins] = number


def _log_likelihood(colours: np.ndarray, mask: np.ndarray, window: int) -> np.ndarray:
    """(h, w) float32: how well each pixel's colour fits those of the mask within a window around it.

    Moments vary slowly: they are reckoned on a picture a few times smaller. Far from the mask they mean nothing.
    """
    size = mask.shape[::-1]
    step = max(1, window // 5)
    small = tuple(max(1, -(-side // step)) for side in size)
    side = 2 * round(window / step) + 1

    def mean(values: np.ndarray) -> np.ndarray:
        less = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
        averaged: np.ndarray = cv2.blur(less, (side, side), borderType=cv2.BORDER_CONSTANT)
        return averaged

    inside = mask.astype(np.float32)[..., None]
    own = colours * inside
    weight = mean(inside)[..., None] + np.float32(1e-6)
    middle = mean(own) / weight
    variance = np.maximum(mean(own * colours) / weight - middle * middle, 0) + np.float32(_LEAST_VARIANCE)
    whole_middle, whole_variance = (cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in (middle, variance))
    spread = np.log(whole_variance).sum(-1)
    off = (colours - whole_middle) ** 2 / whole_variance
    fit: np.ndarray = np.float32(-0.5) * (np.minimum(off, np.float32(_FIT_LIMIT)).sum(-1) + spread)
    return fit


def _filled(objects: Objects, hole_share: float) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) int32 labels, large unlabelled areas numbered K + 1: with holes as 0, and with the nearest label there."""
    labels = objects.labels.astype(np.int32)
    empty = (labels == 0).view(np.uint8)
    _, pieces, figures, _ = cv2.connectedComponentsWithStats(empty, connectivity=4)
    is_large = figures[:, cv2.CC_STAT_AREA] > hole_share * labels.size
    is_large[0] = False
    labels[is_large[pieces]] = len(objects) + 1
    holes = (labels == 0).view(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(holes, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(int(nearest.max()) + 1, np.int32)
    table[nearest[holes == 0]] = labels[holes == 0]
    return labels, table[nearest]


def _grown(rectangle: Sequence[int], margin: int, size_hw: tuple[int, ...]) -> tuple[slice, slice]:
    x, y, width, height = rectangle
    rows = slice(max(0, y - margin), min(size_hw[0], y + height + margin))
    return rows, slice(max(0, x - margin), min(size_hw[1], x + width + margin))
