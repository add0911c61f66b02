"""The original's five passes give what plain loops over pairs of frames give."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.refine_seed import pair_loops
from penstock.errors import BadData
from penstock.refining.labels import parse
from penstock.refining.proposals import from_masks
from penstock.refining.seed_passes import assign_seed
from penstock.refining.settings import RefineSettings
from penstock.refining.types import FALLBACK, LOW, MATCHED, MERGED

SEED = RefineSettings(matcher="overlap", profile="seed")


@st.composite
def boxes(draw: st.DrawFn, size_hw: tuple[int, int]) -> tuple[slice, slice]:
    """A rectangle within a frame."""
    rows, columns = (sorted(draw(st.lists(st.integers(0, side), min_size=2, max_size=2))) for side in size_hw)
    return slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1)


@st.composite
def frames(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) ids of rectangles laid over each other, (N, H, W) masks: rectangles, some with holes."""
    size_hw = draw(st.integers(4, 24)), draw(st.integers(4, 24))
    ids = np.zeros(size_hw, np.int64)
    for one in draw(st.lists(st.integers(-1, 9), max_size=6)):
        ids[draw(boxes(size_hw))] = one
    masks = np.zeros((draw(st.integers(0, 9)), *size_hw), bool)
    for mask in masks:
        mask[draw(boxes(size_hw))] = True
        if draw(st.booleans()):
            mask[draw(boxes(size_hw))] = False
    return ids, masks[masks.any(axis=(1, 2))]


def bars(*widths: int) -> tuple[np.ndarray, np.ndarray]:
    """One object that fills the frame but its last row; masks that are its columns, of these widths, side by side."""
    ids = np.ones((10, sum(widths)), np.int64)
    ids[-1] = 0
    masks = np.zeros((len(widths), *ids.shape), bool)
    for mask, end, width in zip(masks, np.cumsum(widths).tolist(), widths, strict=True):
        mask[:-1, end - width : end] = True
    return ids, masks


@settings(max_examples=300)
@given(frame=frames(), threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]))
@example(frame=bars(6, 5, 5, 4), threshold=0.3)
@example(frame=bars(4, 4, 4, 4, 4), threshold=0.3)
@example(frame=bars(3, 3, 3, 3, 3, 3, 3), threshold=0.3)
@example(frame=bars(1, 9, 1, 9), threshold=0.9)
def test_same_assignment_as_loops_over_pairs(frame: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    ids, masks = frame
    objects, proposals = parse(ids), from_masks((ids.shape[0], ids.shape[1]), masks)
    assignment = assign_seed(
        objects, proposals, RefineSettings(matcher="overlap", profile="seed", iou_threshold=threshold)
    )
    plain = pair_loops(ids, list(masks), threshold)
    assert list(plain) == objects.ids.tolist()
    for number, match in enumerate(plain.values(), 1):
        assert np.flatnonzero(assignment.numbers == number).tolist() == sorted(match.masks)
        how = (MATCHED if match.masks else FALLBACK) | (LOW if match.low else 0) | (MERGED if match.merged else 0)
        assert assignment.how[number - 1] == how
    assert assignment.proposals is proposals


@pytest.mark.parametrize(
    ("widths", "how"),
    [
        ((20,), MATCHED),
        ((8, 6, 6), MATCHED | MERGED),
        ((5, 5, 5, 5), MATCHED | LOW | MERGED),
        ((3,) * 7, MATCHED | MERGED),
    ],
)
def test_walls_in_pieces_are_whole_again(widths: tuple[int, ...], how: int) -> None:
    ids, masks = bars(*widths)
    assignment = assign_seed(parse(ids), from_masks((ids.shape[0], ids.shape[1]), masks), SEED)
    assert assignment.how.tolist() == [how]
    assert assignment.numbers.all()


def test_nothing_to_match_is_a_fallback_for_all() -> None:
    objects = parse(np.arange(6).reshape(2, 3))
    assignment = assign_seed(objects, from_masks((2, 3), ()), SEED)
    assert assignment.how.tolist() == [FALLBACK] * 5
    nobody = assign_seed(parse(np.zeros((2, 3), int)), from_masks((2, 3), [np.ones((2, 3), bool)]), SEED)
    assert nobody.numbers.tolist() == [0]


def test_a_frame_of_another_size_is_bad_data() -> None:
    with pytest.raises(BadData, match="a frame of"):
        assign_seed(parse(np.ones((2, 3), int)), from_masks((3, 2), [np.ones((3, 2), bool)]), SEED)
