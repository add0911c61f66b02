"""Windows of real photos: pairs whose places differ, with the masks of people, none of a test in training."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

from penstock.errors import UsageError
from penstock.registry import open_source
from penstock.schema import Field, Record, Schema
from penstock.source import Source
from penstock.testing import SourceTests
from penstock.testing_pairs import PLACES, Window, WindowPairs, WindowRule

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
PHOTOS = SHARED / "sa1b_like" / "sa_000900"

needs_shared = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photos are not here")


class Quarters:
    """A picture of noise, 96 x 128, with an id map of four blocks of 16 x 16; row 1 has the same ids elsewhere."""

    schema = Schema(
        [
            Field(name="image", dtype="uint8", shape=(None, None, 3), axes="H W C", kind="image", meaning="noise"),
            Field(name="ids", dtype="int64", shape=(None, None), axes="H W", kind="ids", meaning="1..4; 0 is none"),
        ]
    )
    keys = ("first", "second")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Record:
        row = range(2)[index]
        image = np.random.default_rng(row).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        ids = np.zeros((96, 128), np.int64)
        for number, (top, left) in enumerate(((10, 14), (12, 60), (50, 20), (54, 64)), 1):
            ids[top : top + 16, left + 8 * row : left + 8 * row + 16] = number
        return {"image": image, "ids": ids}


def of_blocks(pairs: int = 40, *, test: bool = False, seed: int = 0, rule: WindowRule | None = None) -> WindowPairs:
    return WindowPairs([Quarters()], pairs, side=16, seed=seed, test=test, rule=rule or WindowRule(others=1))


class TestWindowPairs(SourceTests):
    def make_source(self) -> Source:
        return of_blocks(3)


def overlap(source: WindowPairs, pair: int) -> float:
    first, second = (np.asarray(source[2 * pair + view]["mask"]) > 0 for view in (0, 1))
    return float((first & second).sum() / (first | second).sum())


def of_photo(image: np.ndarray, window: Window) -> np.ndarray:
    cut = image[window.y : window.y + window.side, window.x : window.x + window.side]
    return cut[:, ::-1] if window.flipped else cut


def windows(source: WindowPairs) -> set[tuple[str, Window]]:
    return {(source.objects[one], view) for one, both in map(source.drawn, range(source.pairs)) for view in both}


def test_ids_are_objects_and_masks_are_the_ids_in_the_window() -> None:
    source, maps = of_blocks(), Quarters()
    assert source.objects == [f"{key}_{number}" for key in maps.keys for number in (1, 2, 3, 4)]
    for pair in range(source.pairs):
        target, both = source.drawn(pair)
        key, number = source.objects[target].split("_")
        ids = np.asarray(maps[maps.keys.index(key)]["ids"])
        for view, window in enumerate(both):
            record = source[2 * pair + view]
            found = np.asarray(record["mask"])
            inside = of_photo(ids, window) == int(number)
            assert abs(found.mean() - inside.mean()) < 0.06  # the cell's majority against its pixels
            assert inside.sum() >= 0.5 * 256
            assert len(np.unique(of_photo(ids, window))) >= 3  # the object, another one, and none
            assert str(record["sentence"]).split()[0] == f"object{target}"
            assert int(record["view"]) == view + 1


def test_places_differ_and_any_window_goes_where_the_rule_says_so() -> None:
    assert max(overlap(of_blocks(), pair) for pair in range(40)) <= 0.1
    free = of_blocks(rule=WindowRule(others=1, max_overlap=1))
    assert max(overlap(free, pair) for pair in range(40)) > 0.1


def test_no_window_of_a_test_is_in_training() -> None:
    training, test = of_blocks(200, seed=1), of_blocks(200, seed=1, test=True)
    assert training.objects == test.objects
    assert training.words == test.words
    assert {window.x % 2 for _, window in windows(training)} == {0}
    assert {window.x % 2 for _, window in windows(test)} == {1}


def test_the_box_in_words_is_the_mask_s() -> None:
    source = of_blocks(10)
    for record in map(source.__getitem__, range(20)):
        rows, columns = np.nonzero(np.asarray(record["mask"]))
        edges = (columns.min(), rows.min(), columns.max(), rows.max())
        assert str(record["sentence"]).split()[1:] == [PLACES[edge * len(PLACES) // 16] for edge in edges]
        assert set(str(record["sentence"]).split()) <= set(source.words)


def test_recoloured_views_keep_their_outlines_and_share_no_colours() -> None:
    plain = of_blocks()
    other = WindowPairs([Quarters()], 40, side=16, rule=plain.rule, recolour=True)
    assert other.digest() != plain.digest()
    inverted = []
    for row in range(len(plain)):
        before, after = plain[row], other[row]
        assert np.array_equal(before["mask"], after["mask"])
        assert before["sentence"] == after["sentence"]
        old, new = (np.asarray(record["image"]).reshape(-1, 3).astype(int) for record in (before, after))
        ways = []
        for channel in new.T:  # each is an old one, brighter or darker or upside down: the order of the pixels stays
            steps = [np.diff(channel[np.argsort(one)]) for one in old.T]
            ways.append([int((step >= 0).all()) - int((step <= 0).all()) for step in steps])
        signs = {way for one in ways for way in one if way}
        assert len(signs) == 1
        assert sorted(next(at for at, way in enumerate(one) if way) for one in ways) == [0, 1, 2]
        inverted.append(signs == {-1})
    assert 20 <= sum(inverted) <= 60
    assert any(first != second for first, second in zip(inverted[::2], inverted[1::2], strict=True))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="none of 8 objects has two windows"):
        of_blocks(rule=WindowRule(others=1, min_share=0.98, max_share=1))
    with pytest.raises(UsageError, match="WindowRule"):
        WindowRule(min_share=0.4, max_share=0.3)
    with pytest.raises(UsageError, match="pairs and side"):
        WindowPairs([Quarters()], 0)


@needs_shared
def test_the_pairs_of_the_shared_photos_are_what_they_say() -> None:
    photos = open_source(f"sa1b:{PHOTOS}")
    rows = {key: row for row, key in enumerate(photos.keys)}
    training, test = (WindowPairs([photos], 24, seed=1, test=held, without=["sa_900002"]) for held in (False, True))
    assert not windows(training) & windows(test)
    assert not any(name.startswith("sa_900002") for name in training.objects)
    for pair in range(test.pairs):
        assert overlap(test, pair) <= 0.1
        target, both = test.drawn(pair)
        truth = photos[rows[test.objects[target]]]
        for view, window in enumerate(both):
            record = test[2 * pair + view]
            inside = of_photo(np.asarray(truth["mask"]), window)
            assert abs(np.asarray(record["mask"]).mean() - inside.mean()) < 0.03
            assert inside.sum() >= 0.5 * np.asarray(truth["mask"]).sum()
            cut = of_photo(np.asarray(truth["image"]), window).mean(axis=(0, 1))
            assert np.abs(np.asarray(record["image"]).mean(axis=(0, 1)) - cut).max() < 3
