"""Proposals in folders, and the cache over another proposer."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from penstock.errors import BadData, OutputRefused, SourceNotFound
from penstock.refining.proposals import from_masks
from penstock.refining.saved import Caching, SavedProposals, proposals_path, save_proposals
from penstock.refining.types import Frame, Prompts, Proposals
from tests.models.sam2_data import frame_of, picture, prompts_of

POINTS = np.array([[3.5, 4.5]], np.float32)


@pytest.fixture
def frame() -> Frame:
    return frame_of(picture(20, 30))


def some(seed: int = 0) -> Proposals:
    """Masks for ids 5, 9, 7 and two from points."""
    masks = np.random.default_rng(seed).random((5, 20, 30)) > 0.7
    return from_masks((20, 30), masks, ids=np.array([5, 0, 9, 7, 0]), scores=np.linspace(0.1, 0.9, 5))


def same(left: Proposals, right: Proposals) -> None:
    assert left.size_hw == right.size_hw
    for name in ("boxes", "scores", "stability", "ids"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert all((a == b).all() for a, b in zip(left.masks, right.masks, strict=True))


def test_prompted_gives_those_asked_for_and_points_the_rest(tmp_path: Path, frame: Frame) -> None:
    path = save_proposals(tmp_path, frame.key, some())
    assert path == tmp_path / "scene" / "frame_000000.jpg.proposals"
    encoded = SavedProposals(tmp_path).encode([frame])[0]
    prompted = encoded.prompted(prompts_of(frame))
    assert prompted.ids.tolist() == [5, 9]
    np.testing.assert_array_equal(prompted.masks[1], some().masks[2])
    assert encoded.at_points(POINTS).scores.tolist() == some().scores[[1, 4]].tolist()
    assert len(encoded.at_points(np.zeros((0, 2), np.float32))) == 0


def test_a_frame_without_a_good_file_fails_alone(tmp_path: Path, frame: Frame) -> None:
    save_proposals(tmp_path, frame.key, some())
    cut = save_proposals(tmp_path, "scene/cut.jpg", some())
    cut.write_bytes(cut.read_bytes()[:-9])
    save_proposals(tmp_path, "scene/small.jpg", from_masks((20, 29), np.ones((1, 20, 29), bool)))
    frames = [replace(frame, key=key) for key in ("scene/none.jpg", "scene/cut.jpg", "scene/small.jpg", "../up")]
    encoded = SavedProposals(tmp_path).encode([frame, *frames])
    assert len(encoded[0].prompted(prompts_of(frame))) == 2
    for each, message in zip(
        encoded[1:], ("no proposals were saved", "cut.jpg", r"frame's size \(20, 30\)", "expected a key"), strict=True
    ):
        with pytest.raises(BadData, match=message):
            each.prompted(prompts_of(frame))
        with pytest.raises(BadData, match=message):
            each.at_points(POINTS)


def test_identity_is_that_of_the_content(tmp_path: Path, frame: Frame) -> None:
    for name in ("a", "b"):
        save_proposals(tmp_path / name, frame.key, some())
    first = SavedProposals(tmp_path / "a")
    assert first.identity() == SavedProposals(tmp_path / "b").identity()
    assert pickle.loads(pickle.dumps(first)).identity() == first.identity()
    save_proposals(tmp_path / "b", frame.key, some(1))
    assert first.identity() != SavedProposals(tmp_path / "b").identity()


def test_a_folder_without_proposals_is_no_source(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceNotFound, match="found none"):
            SavedProposals(folder)


@pytest.mark.parametrize("key", ["", "../a", "/a", "a/../../b", "a\\b"])
def test_keys_stay_in_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadData, match="expected a key"):
        proposals_path(tmp_path, key)


class Counting:
    """A proposer over fixed proposals that counts what it is asked."""

    device = "cpu"

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.encoded: list[int] = []
        self.asked = 0

    def identity(self) -> dict[str, object]:
        return {"proposer": "counting", "version": self.version}

    def encode(self, frames: Sequence[Frame]) -> list["Counting"]:
        self.encoded.append(len(frames))
        return [self] * len(frames)

    def prompted(self, prompts: Prompts) -> Proposals:
        self.asked += 1
        return some(len(prompts.ids))

    def at_points(self, points: np.ndarray) -> Proposals:
        self.asked += 1
        return some(100 + len(points))


def test_the_cache_asks_once(tmp_path: Path, frame: Frame) -> None:
    other = replace(frame, key="scene/b.jpg", image=picture(20, 30, seed=1))
    inner, prompts = Counting(), prompts_of(frame)
    for _ in range(2):
        for each in Caching(inner, tmp_path).encode([frame, other]):
            same(each.prompted(prompts), some(2))
            same(each.at_points(POINTS), some(101))
    assert inner.encoded == [2]  # one batch, at the first question that was new
    assert inner.asked == 4


def test_the_cache_asks_anew_what_is_new(tmp_path: Path, frame: Frame) -> None:
    inner, prompts = Counting(), prompts_of(frame)
    cache = Caching(inner, tmp_path)
    cache.encode([frame])[0].prompted(prompts)
    objects = frame.objects
    changed = [
        (frame, replace(prompts, boxes=prompts.boxes + 1)),
        (frame, replace(prompts, mask_logits=-prompts.mask_logits)),
        (replace(frame, image=picture(20, 30, seed=2)), prompts),
        (replace(frame, objects=replace(objects, labels=objects.labels[:, ::-1])), prompts),
        (replace(frame, key="scene/c.jpg"), prompts),
    ]
    for number, (new, question) in enumerate(changed):
        cache.encode([new])[0].prompted(question)
        assert inner.asked == number + 2
    newer = Counting(version=2)
    Caching(newer, tmp_path).encode([frame])[0].prompted(prompts)
    assert newer.asked == 1


def test_a_cache_that_cannot_be_written_to_is_refused_at_once_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(OutputRefused, match="no folder that can be written to"):
            Caching(Counting(), folder)
    Caching(Counting(), tmp_path / "new" / "cache")
    assert not (tmp_path / "new").exists()


def test_a_damaged_answer_is_asked_anew(tmp_path: Path, frame: Frame, caplog: pytest.LogCaptureFixture) -> None:
    inner, prompts = Counting(), prompts_of(frame)
    Caching(inner, tmp_path).encode([frame])[0].prompted(prompts)
    (file,) = tmp_path.rglob("*.proposals")
    file.write_bytes(b"{")
    same(Caching(inner, tmp_path).encode([frame])[0].prompted(prompts), some(2))
    assert inner.asked == 2
    assert "damaged" in caplog.text
    same(Caching(inner, tmp_path).encode([frame])[0].prompted(prompts), some(2))
    assert inner.asked == 2
    assert Caching(inner, tmp_path).identity() == inner.identity()
