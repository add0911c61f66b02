"""Counts of shared pixels, against loops over pairs of masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import BadData
from penstock.refining import overlap
from penstock.refining.labels import parse
from penstock.refining.overlap import contingency, label_counts
from penstock.refining.proposals import from_masks, mask_areas


@st.composite
def frames(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) ids -1..6, (N, H, W) bool."""
    height, width, count = draw(st.integers(1, 15)), draw(st.integers(1, 15)), draw(st.integers(0, 6))
    ids = draw(hnp.arrays(np.int64, (height, width), elements=st.integers(-1, 6)))
    return ids, draw(hnp.arrays(bool, (count, height, width)))


@given(frame=frames())
def test_every_pair_is_counted(frame: tuple[np.ndarray, np.ndarray]) -> None:
    ids, masks = frame
    objects, proposals = parse(ids), from_masks((ids.shape[0], ids.shape[1]), masks)
    masks = masks[masks.any(axis=(1, 2))]
    table = contingency(objects, proposals)
    wanted = [[np.sum(mask & (objects.labels == number)) for number in range(len(objects) + 1)] for mask in masks]
    np.testing.assert_array_equal(table, np.array(wanted, np.int64).reshape(len(masks), len(objects) + 1), strict=True)
    np.testing.assert_array_equal(table.sum(axis=1), mask_areas(proposals))


@pytest.mark.parametrize("batch", [1, 40, 100])
def test_batches_of_boxes_count_the_same(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(batch)
    objects = parse(rng.integers(-1, 4, (12, 9)).repeat(2, axis=1))
    proposals = from_masks((12, 18), rng.random((20, 12, 18)) < rng.uniform(0, 0.1, (20, 1, 1)))
    expected = contingency(objects, proposals)
    monkeypatch.setattr(overlap, "BATCH", batch)
    np.testing.assert_array_equal(contingency(objects, proposals), expected)


@pytest.mark.parametrize("count", [255, 256, 257, 65_535, 65_536, 65_537])
def test_as_many_labels_as_a_type_holds_and_one_more(count: int) -> None:
    labels = np.array([[0, count - 1, count - 1], [1, 0, count - 2]], np.uint32)
    table = label_counts(labels, count, from_masks((2, 3), [np.array([[1, 1, 0], [1, 0, 1]], bool)]))
    assert {place: table[0, place] for place in np.flatnonzero(table[0])} == {0: 1, 1: 1, count - 2: 1, count - 1: 1}


def test_a_frame_of_another_size_is_bad_data() -> None:
    with pytest.raises(BadData, match=r"a frame of \(2, 3\) \(height, width\), got \(3, 2\)"):
        contingency(parse(np.ones((2, 3), int)), from_masks((3, 2), [np.ones((3, 2), bool)]))
