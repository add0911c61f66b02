"""Each reason to keep a coarse mask, and that nothing else is one."""

import numpy as np
import pytest

from penstock.refining.gate import gate
from penstock.refining.labels import parse
from penstock.refining.settings import RefineSettings
from penstock.refining.trust import trust
from penstock.refining.types import MATCHED, Assignment, Gate, Objects
from tests.refining.drawn import masks_of, picture, true_map

SETTINGS = RefineSettings(band_share=0.01)


def square() -> np.ndarray:
    """Object 1 is a square of 60 pixels in object 2."""
    ids = np.full((120, 160), 2, np.int64)
    ids[30:90, 50:110] = 1
    return ids


def decided(
    ids: np.ndarray, painted: np.ndarray, settings: RefineSettings = SETTINGS, *, truth: np.ndarray | None = None
) -> Gate:
    objects = parse(ids)
    image = picture(ids if truth is None else truth, 0)
    return gate(image, (objects, trust(objects, settings)), matched(objects), painted.astype(np.uint16), settings)


def matched(objects: Objects) -> Assignment:
    """Every object has a proposal."""
    proposals = masks_of(objects.labels.astype(np.int64))
    numbers = np.arange(1, len(objects) + 1, dtype=np.int32)
    return Assignment(proposals=proposals, numbers=numbers, how=np.full(len(objects), MATCHED, np.uint8))


def test_the_coarse_map_itself_passes_with_equal_measures() -> None:
    ids = true_map(4)
    found = decided(ids, parse(ids).labels)
    assert found.accepted.all()
    assert set(found.reasons) == {""}
    assert (found.core_recall == 1).all()
    assert (found.area_ratio == 1).all()
    np.testing.assert_array_equal(found.pieces[:, 0], found.pieces[:, 1])
    np.testing.assert_array_equal(found.edge[:, 0], found.edge[:, 1])


def test_a_mask_moved_onto_the_edge_passes_and_scores_higher() -> None:
    truth = square()
    found = decided(np.roll(truth, (2, 2), (0, 1)), truth, truth=truth)
    assert found.accepted.all()
    assert (found.edge[:, 1] > found.edge[:, 0] + 0.2).all()


def test_edge_a_mask_moved_off_the_edge_is_refused() -> None:
    truth = square()
    found = decided(truth, np.roll(truth, (2, 2), (0, 1)))
    assert found.reasons == ("edge", "edge")


def test_core_a_mask_that_leaves_the_core_is_refused() -> None:
    painted = square()
    painted[32:88, 52:80] = 0
    found = decided(square(), painted)
    assert found.reasons == ("core", "")
    core = trust(parse(square()), SETTINGS).core == 1
    assert found.core_recall[0] == pytest.approx((core & (painted == 1)).sum() / core.sum())


def test_core_it_may_go_where_the_colours_speak_for_that() -> None:
    truth = square()
    coarse = np.roll(truth, (5, 5), (0, 1))
    found = decided(coarse, truth, truth=truth)
    assert found.core_recall[0] < SETTINGS.min_core_recall
    assert found.accepted.all()
    assert decided(coarse, truth, truth=np.full_like(truth, 7)).reasons[0] == "core"


def test_area_a_mask_that_grows_too_much_is_refused() -> None:
    ids = np.zeros((120, 160), np.int64)
    ids[30:90, 50:110] = 1
    painted = ids.copy()
    painted[20:100, 40:120] = 1
    found = decided(ids, painted)
    assert found.reasons == ("area",)
    assert found.area_ratio[0] == pytest.approx(6400 / 3600)
    assert decided(ids, painted, RefineSettings(band_share=0.01, area_change=2), truth=painted).accepted.all()


def test_pieces_a_mask_in_many_pieces_is_refused() -> None:
    ids = np.zeros((120, 160), np.int64)
    ids[30:90, 50:110] = 1
    painted = ids.copy()
    for row in range(2, 120, 14):
        painted[row : row + 8, 4:12] = painted[row : row + 8, 120:132] = 1
    found = decided(ids, painted, RefineSettings(band_share=0.01, area_change=2))
    assert found.reasons == ("pieces",)
    assert found.pieces.tolist() == [[1, 19]]


def test_gone_an_object_without_pixels_is_refused() -> None:
    found = decided(square(), np.full((120, 160), 2))
    assert found.reasons == ("gone", "colours")
    assert found.area_ratio[0] == found.core_recall[0] == found.pieces[0, 1] == 0


def test_no_proposal_is_the_first_reason_and_the_only_one_without_the_gate() -> None:
    ids = square()
    objects = parse(ids)
    assignment = matched(objects)
    assignment.how[0] = 0
    painted = np.ones((120, 160), np.uint16)
    for settings, reasons in ((SETTINGS, ("no proposal", "gone")), (RefineSettings(gate=False), ("no proposal", ""))):
        found = gate(picture(ids, 0), (objects, trust(objects, settings)), assignment, painted, settings)
        assert found.reasons == reasons
        assert found.accepted.tolist() == [not reason for reason in reasons]


def test_pieces_of_small_objects_are_counted_one_by_one() -> None:
    ids = np.zeros((64, 64), np.int64)
    ids[4:8, 4:8] = ids[4:8, 10:14] = ids[20:40, 20:40] = 1
    ids[50, 50] = 2
    found = decided(ids, parse(ids).labels)
    assert found.pieces.tolist() == [[3, 3], [1, 1]]


def test_a_frame_of_one_pixel_is_measured() -> None:
    found = decided(np.ones((1, 1), np.int64), np.ones((1, 1)))
    assert found.reasons == ("small",)  # nothing is changed in it, and it keeps what it has
    assert found.edge.tolist() == [[0, 0]]
