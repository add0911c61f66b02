"""Moving handwriting: pairs of small pictures of real digits, with masks and captions. For tests and demonstrations."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from penstock.errors import BadData, MissingExtra
from penstock.readers.fields import IMAGE, MASK
from penstock.schema import Field, Record, Schema
from penstock.source import Lookup, check_index

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


def _view(rng: np.random.Generator, view: int, test: bool) -> Record:
    """The target is object 0; all is drawn for both views, so that each is a pure function of the pair."""
    import cv2

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
    try:
        import cv2  # noqa: F401
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "search,images", "moving digits") from error
    found = load_digits()
    if found.images.shape != (1797, 8, 8):
        raise BadData(f"scikit-learn's digits: expected (1797, 8, 8), got {found.images.shape}")
    return (found.images / 16).astype(np.float32), found.target
