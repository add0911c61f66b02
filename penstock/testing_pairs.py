"""Pairs of small pictures of one object, for tests and demonstrations: moving handwriting, and windows of real photos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import xxhash

from penstock.errors import BadData, MissingExtra, UsageError
from penstock.readers.fields import IMAGE, MASK
from penstock.schema import Field, Record, Schema
from penstock.source import Lookup, Source, check_index, snapshot

SIDE, CELLS, OBJECTS = 32, 3, 4
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (230, 60, 60), "green": (60, 200, 80), "blue": (80, 110, 240), "yellow": (230, 210, 60),
    "purple": (180, 80, 220), "orange": (245, 150, 40),
}  # fmt: skip
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
WORDS = (*COLOURS, *DIGITS, *ROWS, *COLUMNS)
"""Every word of the captions."""
_TRAIN = 1400
PLACES = tuple(f"at{number}" for number in range(16))
"""Words of a box: four of them, left, top, right, bottom, in sixteenths of the picture."""
_DRAWN, _COMPARED, _ROUNDS = 96, 12, 12
# windows drawn at once, how many of those allowed are compared, how often


class MovingDigits:
    """Pairs of 32 x 32 pictures of four handwritten digits on a grid of 3 x 3 cells; in the second one each stands elsewhere.

    Rows 2k and 2k + 1 are the two views of pair k. The caption says colour, digit, and where the object stands in its own
    view: words about the place are true of one view only. One other digit has the object's colour, one its number. Digits
    are those of scikit-learn (Alpaydin and Kaynak, UCI, CC BY 4.0), of 8 x 8 pixels, turned and coloured; training and test
    take theirs from different writings.

    Args:
        pairs: how many.
        seed: of everything.
        test: draw from the 397 writings kept for tests instead of the other 1,400.

    Raises:
        MissingExtra: scikit-learn or OpenCV is not installed.
    """

    schema = Schema(
        [
            IMAGE,
            MASK,
            Field(name="sentence", dtype="str", kind="text", meaning="colour, digit, row, column"),
            Field(name="view", dtype="uint8", kind="number", meaning="1 or 2: which frame of the pair"),
        ]
    )

    def __init__(self, pairs: int, *, seed: int = 0, test: bool = False) -> None:
        self.pairs, self.seed, self.test = pairs, seed, test
        _writings()

    @property
    def keys(self) -> Sequence[str]:
        """`digits/<pair>/<view>`."""
        return Lookup(len(self), lambda row: f"digits/{row // 2}/{row % 2 + 1}")

    def __len__(self) -> int:
        return 2 * self.pairs

    def __getitem__(self, index: int) -> Record:
        row = check_index(index, len(self))
        rng = np.random.default_rng([self.seed, int(self.test), row // 2])
        return _view(rng, row % 2, self.test)

    def digest(self) -> str:
        """Identity of the pictures."""
        return f"moving-digits-1:{self.pairs}:{self.seed}:{self.test}"


@dataclass(frozen=True, kw_only=True)
class WindowRule:
    """Which two windows of a picture make a pair.

    Raises:
        UsageError: a number is out of range.
    """

    min_area: float = 0.01
    """Share of the picture. A smaller object is no object here: neither looked for nor counted among the others."""
    min_share: float = 0.04
    max_share: float = 0.35
    """Of a window: what the object covers of it."""
    min_seen: float = 0.5
    """Of the object: what lies in a window."""
    others: int = 2
    """At least so many other objects are in each window, each with 2 % of it or more."""
    max_overlap: float = 0.1
    """Highest IoU of the two masks, each as it lies in its own window; 1 allows any two windows. At 0.1 whoever answers with the
    place of the first view is wrong in the second."""

    def __post_init__(self) -> None:
        shares = 0 < self.min_share < self.max_share <= 1 and 0 <= self.min_area <= 1
        if not shares or self.others < 0 or not 0 <= self.max_overlap <= 1 or not 0 < self.min_seen <= 1:
            raise UsageError(
                f"WindowRule: expected shares of 0..1, min_share < max_share, others of 0 or more; got {self}"
            )


@dataclass(frozen=True)
class Window:
    """A square of a picture, in whole pixels: left column, top row, side; and whether it is turned left to right."""

    x: int
    y: int
    side: int
    flipped: bool


@dataclass(frozen=True)
class _Photo:
    """A picture, its K objects, and the sums (K, H + 1, W + 1) int32 of each mask over the pixels above and left."""

    image: np.ndarray
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    """One word each; empty where there is none, or where two objects of the picture share it."""
    sums: np.ndarray


@dataclass(frozen=True)
class _Object:
    """Its key, the word of its kind or "", and its mask (H, W), 0 or 1."""

    name: str
    kind: str
    mask: np.ndarray


class WindowPairs:
    """Pairs of windows of real photos: the same object in both, elsewhere in the second one, other objects around it.

    Rows 2k and 2k + 1 are the two views of pair k. Two views of a still photo, not two moments: shifted, scaled, some turned left
    to right, and that is all that differs. Windows of training start in even columns of the photo and those of a test in
    odd ones: no window is in both, though of the same photos and overlapping. The sentence
    says what the object is and its box in this view: its `category`, where no other object of the picture has it, else a
    word of its own. That word is true of both views, the box of one.

    Args:
        sources: of objects with `image`, `mask` and `image_id` (rows of one picture one after another: COCO, SA-1B, Open
            Images), or of pictures with `image` and `ids`, whose positive ids are the objects. Each row is read once.
        pairs: how many.
        side: pixels of the square views.
        seed: of everything.
        test: windows of odd columns.
        rule: which windows.
        without: `image_id` of pictures that are left out (of a source with ids: keys).
        recolour: each view in colours of its own: channels in any order, each times 0.5 to 1.5, half of the views inverted.

    Raises:
        UsageError: a number is out of range, a source has neither masks nor ids, or no object has a pair of windows.
        MissingExtra: OpenCV is not installed.
    """

    schema = MovingDigits.schema

    def __init__(
        self,
        sources: Sequence[Source],
        pairs: int,
        *,
        side: int = 32,
        seed: int = 0,
        test: bool = False,
        rule: WindowRule | None = None,
        without: Sequence[str] = (),
        recolour: bool = False,
    ) -> None:
        self.pairs, self.side, self.seed, self.test, self.rule = pairs, side, seed, test, rule or WindowRule()
        self.recolour = recolour
        if pairs < 1 or side < 1:
            raise UsageError(f"WindowPairs: expected pairs and side of 1 or more, got {pairs} and {side}")
        found = [photo for source in sources for photo in _photos(source, self.rule.min_area, without)]
        self._photos = [
            photo for photo in found if len(photo.names) > self.rule.others and min(photo.image.shape[:2]) >= side
        ]
        every = [(photo, number) for photo in self._photos for number in range(len(photo.names))]
        self._targets = [
            one
            for number, one in enumerate(every)
            if all(self._drawn(np.random.default_rng([number]), one, odd) is not None for odd in (False, True))
        ]
        """(photo, number of the object) of those that have pairs: the same ones for training and for a test."""
        if not self._targets:
            raise UsageError(f"WindowPairs: none of {len(every)} objects has two windows by {self.rule}")
        self.objects = [photo.names[number] for photo, number in self._targets]
        """Names of the objects that pairs are made of: keys of their rows, or `<key>_<id>`."""
        self.said = [photo.kinds[number] or f"object{place}" for place, (photo, number) in enumerate(self._targets)]
        """The word of each object."""
        self.words = (*sorted(set(self.said)), *PLACES)
        """Every word of the sentences."""
        self._digest = xxhash.xxh3_64_hexdigest(repr([snapshot(source)[0] for source in sources]).encode())
        self._last: tuple[int, tuple[int, tuple[Window, Window]]] | None = None

    @property
    def keys(self) -> Sequence[str]:
        """`windows/<pair>/<view>`."""
        return Lookup(len(self), lambda row: f"windows/{row // 2}/{row % 2 + 1}")

    def __len__(self) -> int:
        return 2 * self.pairs

    def __getitem__(self, index: int) -> Record:
        row = check_index(index, len(self))
        target, windows = self.drawn(row // 2)
        photo, number = self._targets[target]
        image, mask = self._image(photo, windows[row % 2]), self._mask(photo, number, windows[row % 2]).astype(np.uint8)
        if self.recolour:
            image = _recoloured(image, np.random.default_rng([self.seed, int(self.test), row // 2, row % 2]))
        rows, columns = np.nonzero(mask)
        edges = [columns.min(), rows.min(), columns.max(), rows.max()]
        places = [PLACES[int(edge) * len(PLACES) // self.side] for edge in edges]
        sentence = " ".join([self.said[target], *places])
        return {"image": image, "mask": mask, "sentence": sentence, "view": np.asarray(row % 2 + 1, np.uint8)}

    def drawn(self, pair: int) -> tuple[int, tuple[Window, Window]]:
        """Number of the object in `objects`, and the windows of both views: a pure function of (seed, test, pair)."""
        last = self._last
        if last is not None and last[0] == pair:
            return last[1]
        rng = np.random.default_rng([self.seed, int(self.test), pair])
        while True:
            target = int(rng.integers(len(self._targets)))
            windows = self._drawn(rng, self._targets[target], self.test)
            if windows is not None:
                self._last = pair, (target, windows)
                return target, windows

    def digest(self) -> str:
        """Identity of the pictures."""
        made = f"{self.pairs}:{self.side}:{self.seed}:{self.test}:{self.rule}:{self.recolour}:{self.objects}"
        return f"window-pairs-2:{self._digest}:{xxhash.xxh3_64_hexdigest(made.encode())}"

    def _drawn(self, rng: np.random.Generator, target: tuple[_Photo, int], odd: bool) -> tuple[Window, Window] | None:
        """Two windows by the rule; None where so many draws gave none."""
        photo, number = target
        for _ in range(_ROUNDS):
            allowed = self._allowed(rng, photo, number, odd)
            if len(allowed) < 2:
                continue
            mask = self._mask(photo, number, allowed[0])
            for window in allowed[1:_COMPARED]:
                other = self._mask(photo, number, window)
                both, either = (mask & other).sum(), (mask | other).sum()
                if mask.any() and other.any() and window != allowed[0] and both <= self.rule.max_overlap * either:
                    return allowed[0], window
        return None

    def _allowed(self, rng: np.random.Generator, photo: _Photo, number: int, odd: bool) -> list[Window]:
        """Of windows drawn at once, those that show enough of the object and of others."""
        height, width = photo.image.shape[:2]
        area = int(photo.sums[number, -1, -1])
        share = rng.uniform(self.rule.min_share, self.rule.max_share, _DRAWN)
        sides = np.sqrt(area / share).astype(np.int64).clip(self.side, min(height, width))
        xs, ys = (rng.integers(0, size - sides + 1) for size in (width, height))
        xs = xs - (xs % 2 != odd)  # to the left, where its columns are of the other kind; -1 is dropped below
        flips = rng.integers(0, 2, _DRAWN)
        ends = photo.sums[:, ys + sides, xs + sides] + photo.sums[:, ys, xs]
        inside = ends - photo.sums[:, ys + sides, xs] - photo.sums[:, ys, xs + sides]
        shares = inside / sides**2
        right = (shares[number] >= self.rule.min_share) & (shares[number] <= self.rule.max_share) & (xs >= 0)
        right &= inside[number] >= self.rule.min_seen * area
        right &= (shares >= 0.02).sum(axis=0) - (shares[number] >= 0.02) >= self.rule.others
        return [Window(int(xs[i]), int(ys[i]), int(sides[i]), bool(flips[i])) for i in np.flatnonzero(right)]

    def _image(self, photo: _Photo, window: Window) -> np.ndarray:
        """(side, side, 3) uint8 RGB."""
        from penstock.geometry.opencv import cv2

        pixels = photo.image[window.y : window.y + window.side, window.x : window.x + window.side]
        small = np.asarray(cv2.resize(pixels, (self.side, self.side), interpolation=cv2.INTER_AREA))
        return np.ascontiguousarray(small[:, ::-1]) if window.flipped else small

    def _mask(self, photo: _Photo, number: int, window: Window) -> np.ndarray:
        """(side, side) bool: more than half of the cell is covered; borders of cells lie on whole pixels of the photo."""
        edges = np.arange(self.side + 1) * window.side // self.side
        sums = photo.sums[number][np.ix_(window.y + edges, window.x + edges)]
        sizes = edges[1:] - edges[:-1]
        mask = 2 * (sums[1:, 1:] - sums[:-1, 1:] - sums[1:, :-1] + sums[:-1, :-1]) > sizes[:, None] * sizes
        return np.ascontiguousarray(mask[:, ::-1]) if window.flipped else mask


def _photos(source: Source, min_area: float, without: Sequence[str]) -> Iterator[_Photo]:
    """The pictures of a source with their objects, the small ones left out."""
    if "ids" in source.schema:
        for row, key in enumerate(source.keys):
            if key not in without:
                ids = np.asarray(source[row]["ids"])
                known = [int(one) for one in np.unique(ids) if one > 0]
                objects = [_Object(f"{key}_{one}", "", ids == one) for one in known]
                yield _photo(np.asarray(source[row]["image"]), objects, min_area)
        return
    if not {"image", "mask", "image_id"} <= set(source.schema):
        raise UsageError(
            f"WindowPairs: expected image and ids, or image, mask and image_id; got {sorted(source.schema)}"
        )
    rows = ((key, source[row]) for row, key in enumerate(source.keys))
    for name, one in groupby(rows, lambda item: str(item[1]["image_id"])):
        records = list(one)
        if name not in without:
            kinds = ["".join(str(record.get("category", "")).lower().split()) for _, record in records]
            objects = [
                _Object(key, kind if kinds.count(kind) == 1 else "", np.asarray(record["mask"]))
                for (key, record), kind in zip(records, kinds, strict=True)
            ]
            yield _photo(np.asarray(records[0][1]["image"]), objects, min_area)


def _photo(image: np.ndarray, objects: Sequence[_Object], min_area: float) -> _Photo:
    large = [one for one in objects if one.mask.mean() >= min_area]
    sums = np.zeros((len(large), image.shape[0] + 1, image.shape[1] + 1), np.int32)
    for number, one in enumerate(large):
        sums[number, 1:, 1:] = one.mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    return _Photo(image, tuple(one.name for one in large), tuple(one.kind for one in large), sums)


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 in other colours; places and outlines stay."""
    pixels = image[..., rng.permutation(3)] * rng.uniform(0.5, 1.5, 3)
    pixels = 255 - pixels if rng.random() < 0.5 else pixels
    return pixels.clip(0, 255).round().astype(np.uint8)


def _view(rng: np.random.Generator, view: int, test: bool) -> Record:
    """The target is object 0; all is drawn for both views, so that each is a pure function of the pair."""
    from penstock.geometry.opencv import cv2

    pictures, labels = _writings()
    colours, digits = _objects(rng)
    low, high = (_TRAIN, len(labels)) if test else (0, _TRAIN)
    chosen = [int(rng.choice(np.flatnonzero(labels[low:high] == digit))) + low for digit in digits]
    before = rng.permutation(CELLS * CELLS)[:OBJECTS]
    after = rng.permutation(CELLS * CELLS)[:OBJECTS]
    while (before == after).any():
        after = rng.permutation(CELLS * CELLS)[:OBJECTS]
    angles = rng.uniform(-20, 20, (2, OBJECTS))
    image = np.full((SIDE, SIDE, 3), 25, np.float32) + rng.normal(0, 6, (2, SIDE, SIDE, 3))[view].astype(np.float32)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for number, cell in enumerate((before, after)[view].tolist()):
        turn = np.asarray(cv2.getRotationMatrix2D((3.5, 3.5), float(angles[view, number]), 1.15), np.float64)
        turn[:, 2] += 1.0
        ink = cv2.warpAffine(pictures[chosen[number]], turn, (10, 10))[..., None]
        top, left = 1 + cell // CELLS * 10, 1 + cell % CELLS * 10
        colour = np.array(COLOURS[colours[number]], np.float32)
        place = image[top : top + 10, left : left + 10]
        place[:] = place * (1 - ink) + colour * ink
        if number == 0:
            mask[top : top + 10, left : left + 10] = ink[..., 0] > 0.35
    cell = int((before, after)[view][0])
    sentence = f"{colours[0]} {DIGITS[digits[0]]} {ROWS[cell // CELLS]} {COLUMNS[cell % CELLS]}"
    pixels = image.clip(0, 255).round().astype(np.uint8)
    return {"image": pixels, "mask": mask, "sentence": sentence, "view": np.asarray(view + 1, np.uint8)}


def _objects(rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Colours and digits: object 1 has the target's colour, object 2 its digit, none has both."""
    names = list(COLOURS)
    order, numbers = rng.permutation(len(names)), rng.permutation(10)
    colours = [names[order[0]], names[order[0]], names[order[1]], names[order[2]]]
    digits = [int(numbers[0]), int(numbers[1]), int(numbers[0]), int(numbers[2])]
    return colours, digits


@lru_cache(maxsize=1)
def _writings() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) float32 0..1 and (1797,) labels."""
    from penstock.geometry import opencv  # noqa: F401  needed later: said at once

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "search", "moving digits") from error
    found = load_digits()
    if found.images.shape != (1797, 8, 8):
        raise BadData(f"scikit-learn's digits: expected (1797, 8, 8), got {found.images.shape}")
    return (found.images / 16).astype(np.float32), found.target
