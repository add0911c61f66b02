"""SequenceSaver as the seed's document uses it, and what its original got wrong (reference 2.7)."""

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.compat.sequence import SequenceSaver
from penstock.compat.sequence_batches import split_batch
from penstock.errors import BadData, OutputRefused, SourceNotFound, UsageError
from penstock.sequence_check import check_folder

torch = pytest.importorskip("torch")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAMP = "20241201_143022"
KEYS = {
    "sequence_id", "timestamp", "dataset", "test_class", "is_video_dataset",
    "template_frame_ids", "search_frame_ids", "gt_frame_ids_backward", "gt_frame_ids_forward",
}  # fmt: skip


def sample(number: int = 0, *, templates: int = 2, searches: int = 1, steps: int = 5) -> dict[str, Any]:
    """A sample before any processing, as the original sampler gives it."""
    rng = np.random.default_rng(number)

    def pictures(count: int) -> list[np.ndarray]:
        return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]

    def boxes(count: int) -> np.ndarray:
        return (rng.random((count, 4)) * 30 + 1).astype(np.float32)

    return {
        "template_images": pictures(templates),
        "template_anno": list(boxes(templates)),
        "search_images": pictures(searches),
        "search_anno": list(boxes(searches)),
        "gt_sequence_anno_backward": boxes(steps)[None],
        "gt_sequence_anno_forward": boxes(2)[None],
        "template_frame_ids": [10 + number, 11 + number][:templates],
        "search_frame_ids": [15 + number],
        "gt_frame_ids_backward": list(range(10, 10 + steps)),
        "gt_frame_ids_forward": [15, 16],
        "dataset": "lasot",
        "test_class": f"class{number}",
        "is_video_dataset": True,
        "valid": True,
    }


def processed(number: int = 0, **shape: int) -> dict[str, Any]:
    """A sample after processing: float tensors (N, 3, H, W), normalised."""
    data = sample(number, **shape)
    for role in ("template", "search"):
        images = np.stack(data[f"{role}_images"]).astype(np.float32) / 255
        images = (images - np.float32(MEAN)) / np.float32(STD)
        data[f"{role}_images"] = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        data[f"{role}_anno"] = torch.from_numpy(np.stack(data[f"{role}_anno"]))
    for name in ("gt_sequence_anno_backward", "gt_sequence_anno_forward"):
        data[name] = torch.from_numpy(data[name])
    return data


def frames_first(samples: list[Mapping[str, Any]]) -> dict[str, Any]:
    """As the collate function of the original: tensors are stacked on dimension 1."""

    def collate(values: list[Any]) -> Any:
        first = values[0]
        if torch.is_tensor(first):
            return torch.stack(values, 1)
        if isinstance(first, (bool, int)):
            return torch.tensor([int(value) for value in values])
        if isinstance(first, list):
            return [collate(list(each)) for each in zip(*values, strict=True)]
        return values

    return {name: collate([one[name] for one in samples]) for name in samples[0]}


def loader(samples: list[dict[str, Any]], batch_size: int, **options: Any) -> Any:
    return torch.utils.data.DataLoader(samples, batch_size=batch_size, **options)


def read(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(json.loads(Path(path, f"{name}.json").read_text()) for name in ("metadata", "annotations"))  # type: ignore[return-value]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_sample_gives_the_tree_of_the_document(tmp_path: Path) -> None:
    saver = SequenceSaver(tmp_path / "my_sequences", timestamp=STAMP)
    path = saver.save_sequence_data(sample(), "seq_001", save_images=True)
    assert path == str(tmp_path / "my_sequences" / f"seq_001_{STAMP}")
    assert tree(tmp_path / "my_sequences") == [
        f"seq_001_{STAMP}/{name}"
        for name in (
            "annotations.json", "images/search/search_000.jpg", "images/template/template_000.jpg",
            "images/template/template_001.jpg", "metadata.json", "provenance.json",
        )
    ]  # fmt: skip
    metadata, annotations = saver.load_sequence_data(path)
    assert (metadata, annotations) == read(path)
    assert metadata == {
        "sequence_id": "seq_001", "timestamp": STAMP, "dataset": "lasot", "test_class": "class0",
        "is_video_dataset": True, "template_frame_ids": [10, 11], "search_frame_ids": [15],
        "gt_frame_ids_backward": [10, 11, 12, 13, 14], "gt_frame_ids_forward": [15, 16],
    }  # fmt: skip
    np.testing.assert_array_equal(annotations["template_anno"], np.stack(sample()["template_anno"]))
    np.testing.assert_array_equal(annotations["gt_sequence_anno_backward"], sample()["gt_sequence_anno_backward"][0])
    assert check_folder(Path(path)) == []


def test_png_pictures_are_the_pixels(tmp_path: Path) -> None:
    saver = SequenceSaver(tmp_path, image_format="png", image_mean=MEAN, image_std=STD)
    raw = saver.load_sequence_images(saver.save_sequence_data(sample(), "raw"))
    fed = saver.load_sequence_images(saver.save_sequence_data(processed(), "fed"))
    for role in ("template", "search"):
        np.testing.assert_array_equal(raw[role], sample()[f"{role}_images"])
        np.testing.assert_array_equal(fed[role], raw[role])  # mean and std are undone, without loss


def test_normalisation_may_stand_in_the_sample_and_is_never_guessed(tmp_path: Path) -> None:
    saver = SequenceSaver(tmp_path, image_format="png")
    with pytest.raises(BadData, match="image_mean"):
        saver.save_sequence_data(processed(), "a")
    assert list(tmp_path.iterdir()) == []
    path = saver.save_sequence_data({**processed(), "image_mean": MEAN, "image_std": STD}, "a")
    np.testing.assert_array_equal(saver.load_sequence_images(path)["search"], sample()["search_images"])
    unit = {**sample(), "search_images": [sample()["search_images"][0] / 255.0]}
    path = saver.save_sequence_data(unit, "b")
    np.testing.assert_array_equal(saver.load_sequence_images(path)["search"], sample()["search_images"])
    with pytest.raises(BadData, match=r"0\.\.255"):
        saver.save_sequence_data({**sample(), "search_images": [sample()["search_images"][0].astype(np.float32)]}, "c")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("make", [sample, processed])
@pytest.mark.parametrize("collate", [None, frames_first])
def test_batches_of_any_size_are_the_samples(
    tmp_path: Path, batch_size: int, make: Callable[..., dict[str, Any]], collate: Any
) -> None:
    if make is sample and collate:
        pytest.skip("the original's collate takes tensors")
    samples = [make(number, searches=1) for number in range(5)]
    singles = SequenceSaver(tmp_path / "one", timestamp=STAMP, image_mean=MEAN, image_std=STD)
    batches = SequenceSaver(tmp_path / "many", timestamp=STAMP, image_mean=MEAN, image_std=STD)
    expected = [singles.save_sequence_data(one, f"seq_{n:06d}") for n, one in enumerate(samples, 1)]
    saved = batches.save_batch_sequences(loader(samples, batch_size, collate_fn=collate), num_sequences=5)
    assert [Path(path).name for path in saved] == [f"seq_{n:06d}_{STAMP}" for n in range(1, 6)]
    for left, right in zip(expected, saved, strict=True):
        assert tree(Path(left)) == tree(Path(right))
        assert all((Path(left) / name).read_bytes() == (Path(right) / name).read_bytes() for name in tree(Path(left)))
    assert (tmp_path / "many" / f"saved_paths_{STAMP}.txt").read_text().splitlines() == saved
    metadata, _ = read(saved[3])
    assert set(metadata) == KEYS
    assert metadata["is_video_dataset"] is True
    assert metadata["template_frame_ids"] == [13, 14]
    assert batches.failures == []


def test_a_batch_that_could_be_split_in_two_ways_is_refused(tmp_path: Path) -> None:
    square = {"template_anno": torch.zeros(2, 2, 4), "search_anno": torch.zeros(2, 2, 4), "dataset": ["a", "b"]}
    with pytest.raises(UsageError, match="batch_dim"):
        list(split_batch(square))
    square["template_anno"][0, 1] = 1
    assert np.asarray(next(iter(split_batch(square, 0)))["template_anno"])[1, 0] == 1
    assert np.asarray(next(iter(split_batch(square, 1)))["template_anno"])[1, 0] == 0
    with pytest.raises(BadData, match="do not fit"):
        list(split_batch({"template_anno": torch.zeros(3, 1, 4), "dataset": ["a", "b"]}))


def test_the_loader_is_iterated_once_and_only_as_far_as_needed(tmp_path: Path) -> None:
    taken: list[int] = []

    class Counting:
        def __iter__(self) -> Any:
            taken.append(-1)
            for number in range(100):
                taken.append(number)
                yield sample(number)

    saved = SequenceSaver(tmp_path).save_batch_sequences(Counting(), num_sequences=3)
    assert len(saved) == 3
    assert taken == [-1, 0, 1, 2]


def test_a_bad_sample_costs_itself_and_is_listed(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(3)]
    samples[1]["search_images"] = [np.full((8, 8, 3), 300.0)]
    saver = SequenceSaver(tmp_path, timestamp=STAMP)
    saved = saver.save_batch_sequences(iter(samples), num_sequences=3)
    assert [Path(path).name for path in saved] == [f"seq_000001_{STAMP}", f"seq_000003_{STAMP}"]
    assert [failure.key for failure in saver.failures] == ["seq_000002"]
    assert "0..1" in saver.failures[0].message
    assert not list(tmp_path.glob(".writing*"))
    with pytest.raises(BadData, match="no sequence was saved"):
        SequenceSaver(tmp_path / "none").save_batch_sequences(iter([samples[1]]))


def test_ids_never_collide(tmp_path: Path) -> None:
    saver = SequenceSaver(tmp_path, timestamp=STAMP)
    first = saver.save_batch_sequences(iter([sample(0)]), num_sequences=1)
    second = SequenceSaver(tmp_path, timestamp=STAMP).save_batch_sequences(iter([sample(1)]), num_sequences=1)
    assert [Path(path).name for path in first + second] == [f"seq_000001_{STAMP}", f"seq_000002_{STAMP}"]
    before = tree(tmp_path)
    with pytest.raises(OutputRefused):
        saver.save_sequence_data(sample(2), "seq_000001")
    with pytest.raises(UsageError, match="sequence_id"):
        saver.save_sequence_data(sample(2), "../x")
    assert tree(tmp_path) == before
    assert Path(saver.save_sequence_data(sample(2), 7)).name == f"seq_7_{STAMP}"


def test_pickle_is_loaded_only_when_asked_for_and_runs_nothing(tmp_path: Path) -> None:
    saver = SequenceSaver(tmp_path)
    path = Path(saver.save_sequence_data(sample(), "p", save_format="pickle"))
    as_json = saver.load_sequence_data(saver.save_sequence_data(sample(), "j"))
    with pytest.raises(UsageError, match="load_format"):
        saver.load_sequence_data(path)
    metadata, annotations = saver.load_sequence_data(path, load_format="pickle")
    assert {**metadata, "sequence_id": "j"} == as_json[0]
    assert annotations == as_json[1]
    assert pickle.loads((path / "metadata.pkl").read_bytes()) == metadata
    with pytest.raises(SourceNotFound):
        saver.load_sequence_data(path, load_format="json")
    with pytest.raises(SourceNotFound):
        saver.load_sequence_data(tmp_path)

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "hacked"),)

    (path / "metadata.pkl").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(BadData, match="refused"):
        saver.load_sequence_data(path, load_format="pickle")
    assert not (tmp_path / "hacked").exists()


def test_without_pictures_and_with_missing_fields(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = SequenceSaver(tmp_path, timestamp=STAMP)
    data = {name: value for name, value in sample().items() if "image" not in name and name != "dataset"}
    path = saver.save_sequence_data(OrderedDict(data), "seq_001", save_images=False)
    assert tree(Path(path)) == ["annotations.json", "metadata.json", "provenance.json"]
    assert read(path)[0]["dataset"] == "unknown"
    assert "no dataset" in caplog.text
    assert saver.load_sequence_images(path) == {"template": [], "search": []}
    with pytest.raises(BadData, match="no pictures"):
        saver.save_sequence_data(data, "seq_002")
    with pytest.raises(BadData, match="template_anno"):
        saver.save_sequence_data({}, "seq_003")


def test_fractions_become_pixels_where_the_sample_says_so(tmp_path: Path) -> None:
    data = {**sample(), "normalized": True, "image_size": [100, 200]}
    data["template_anno"] = [np.array([0.5, 0.25, 0.1, 0.5])] * 2
    data["search_anno"] = [np.array([0.0, 0.0, 1.0, 1.0])]
    data["gt_sequence_anno_backward"] = np.array([[[0.5, 0.5, 0.1, 0.1], [np.nan] * 4]])
    _, annotations = read(SequenceSaver(tmp_path).save_sequence_data(data, 1))
    assert annotations["template_anno"][0] == [32.0, 12.0, 6.4, 24.0]
    assert annotations["search_anno"] == [[0.0, 0.0, 64.0, 48.0]]
    assert annotations["gt_sequence_anno_backward"] == [[100.0, 50.0, 20.0, 10.0], [None] * 4]


def test_steps_that_the_sample_says_have_no_box_are_null(tmp_path: Path) -> None:
    data = {**sample(), "gt_valid_backward": torch.tensor([True, False, True, True, False]), "test_class": ""}
    saver = SequenceSaver(tmp_path, timestamp=STAMP)
    metadata, annotations = read(saver.save_sequence_data(data, 1))
    boxes = annotations["gt_sequence_anno_backward"]
    assert [number for number, box in enumerate(boxes) if box == [None] * 4] == [1, 4]
    assert boxes[0] == pytest.approx(data["gt_sequence_anno_backward"][0, 0].tolist())
    assert metadata["test_class"] == "", "the sample says that it has none"
    with pytest.raises(BadData, match="gt_valid_forward: 1 flags for 2 boxes"):
        saver.save_sequence_data({**data, "gt_valid_forward": [True]}, 2)


def test_paths_are_listed_also_where_saving_ends_early(tmp_path: Path) -> None:
    def samples() -> Any:
        yield sample(0)
        yield sample(1)
        raise KeyboardInterrupt

    saver = SequenceSaver(tmp_path, timestamp=STAMP)
    with pytest.raises(KeyboardInterrupt):
        saver.save_batch_sequences(samples(), num_sequences=5)
    listed = (tmp_path / f"saved_paths_{STAMP}.txt").read_text().splitlines()
    assert [Path(path).name for path in listed] == [f"seq_000001_{STAMP}", f"seq_000002_{STAMP}"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timestamp": "../../x"}, "YYYYmmdd_HHMMSS"),
        ({"timestamp": "now"}, "YYYYmmdd_HHMMSS"),
        ({"jpeg_quality": 0}, "1..100"),
        ({"image_format": "bmp"}, "jpg or png"),
        ({"batch_dim": 2}, "0 or 1"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SequenceSaver(tmp_path, **options)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/below"):
        with pytest.raises(OutputRefused, match="not writable"):
            SequenceSaver(tmp_path / folder).save_sequence_data(sample(), 1)
    assert tree(tmp_path) == ["file"]


def test_damage_to_a_file_is_found(tmp_path: Path) -> None:
    path = Path(SequenceSaver(tmp_path).save_sequence_data(sample(), 1))
    picture, boxes = path / "images/search/search_000.jpg", path / "annotations.json"
    picture.write_bytes(picture.read_bytes()[:-1])
    boxes.unlink()
    (path / "stray.txt").write_text("x")
    assert sorted(Path(problem.path).name for problem in check_folder(path)) == [
        "annotations.json", "search_000.jpg", "stray.txt",
    ]  # fmt: skip
    about = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps({**about, "normalized": True}))
    assert any("digest" in problem.message for problem in check_folder(path))
