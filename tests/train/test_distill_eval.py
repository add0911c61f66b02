"""Evaluation of a distillation: features, edges, masks of a real SAM2 decoder of random weights."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from penstock.errors import BadData, UsageError  # noqa: E402
from penstock.models.decoders import open_decoder  # noqa: E402
from penstock.models.distill_protocols import EDGE, MaskDecoder  # noqa: E402
from penstock.train.distill_eval import evaluate_features  # noqa: E402
from penstock.train.distill_metrics import FeatureScore, MeanFeature  # noqa: E402
from penstock.train.distributed import Ranks  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402
from tests.train.ranks_of_eval import (  # noqa: E402
    LEVEL,
    ROWS,
    SAMPLES,
    Student,
    config_of,
    evaluated,
    held_of,
    record_of,
    write_rows,
)

Batch = Mapping[str, Any]


@pytest.fixture(scope="module")
def decoder() -> MaskDecoder:
    return open_decoder("random:tiny", device="cpu")


def batch_of(*keys: int) -> dict[str, Any]:
    """Pictures by number: each the same in every batch. Every third has no box, number 4 an empty mask."""
    rows = [picture_of(key) for key in keys]
    batch: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "key": [f"sa_{key}" for key in keys]}


def scores_of(student: Student, batches: Sequence[Batch], decoder: MaskDecoder | None) -> dict[str, float]:
    return evaluate_features(lambda batch: student(batch["image"]), batches, decoder, Ranks(), level=LEVEL)


def picture_of(key: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(key)
    left, top = rng.integers(0, 100, 2)
    mask = np.zeros((256, 256), np.uint8)
    mask[2 * top : 2 * top + 40, 2 * left : 2 * left + 50] = key != 4
    return {
        "image": rng.integers(0, 256, (3, 128, 128), np.uint8),
        LEVEL: rng.normal(size=(128, 8, 8)).astype(np.float16),
        "edge_256x256": rng.integers(0, 2, (256, 256), np.uint8),
        "box": np.array([left, top, left + 25, top + 20], np.float32),
        "mask": mask,
        "has_box": np.array(key % 3 != 0),
    }


def test_an_equal_student_is_perfect_by_the_teacher_and_no_better_than_it_by_the_truth(decoder: MaskDecoder) -> None:
    found = evaluate_features(
        lambda batch: {LEVEL: batch[LEVEL].float()}, [batch_of(1, 2, 3), batch_of(4, 5)], decoder, Ranks(), level=LEVEL
    )
    assert found["samples"] == 5
    assert found["without_box"] == 2  # number 3 has no box, number 4 an empty mask
    assert found["miou_student_teacher"] == 1
    assert found["miou_student_gt"] == found["miou_teacher_gt"]
    assert found["cosine"] == pytest.approx(1)
    assert found["mse"] == 0
    assert found["cka"] == pytest.approx(1)
    assert "edge_f1" not in found


def test_masks_are_scored_as_their_definition_says(decoder: MaskDecoder) -> None:
    student, batch = Student(), batch_of(1, 2, 5, 3)
    found = scores_of(student, [batch], decoder)
    boxes, wanted = torch.from_numpy(batch["box"])[:3], batch["mask"][:3] > 0
    with torch.no_grad():
        features = {
            "student": student(torch.from_numpy(batch["image"]))[LEVEL][:3],
            "teacher": torch.from_numpy(batch[LEVEL])[:3].float(),
        }
        masks = {
            name: torch.nn.functional.interpolate(decoder(value, boxes)[:, None], (256, 256), mode="bilinear")[
                :, 0
            ].numpy()
            > 0
            for name, value in features.items()
        }
    masks["gt"] = wanted
    for one, other in (("student", "gt"), ("teacher", "gt"), ("student", "teacher")):
        pairs = zip(masks[one], masks[other], strict=True)
        wanted_iou = np.mean([(left & right).sum() / (left | right).sum() for left, right in pairs])
        assert found[f"miou_{one}_{other}"] == pytest.approx(wanted_iou), (one, other)
    assert 0 < found["miou_teacher_gt"] < 1


def test_features_and_edges_are_those_of_their_scores(decoder: MaskDecoder) -> None:
    student, batch, score = Student(), batch_of(1, 2, 3), FeatureScore()
    found = scores_of(student, [batch], None)
    with torch.no_grad():
        output = student(torch.from_numpy(batch["image"]))
    score.take(output[LEVEL], torch.from_numpy(batch[LEVEL]).float())
    assert {name: found[name] for name in score.values()} == score.values()
    drawn, wanted = output[EDGE][:, 0].numpy() > 0, batch["edge_256x256"] > 0
    assert found["edge_f1"] == pytest.approx(2 * (drawn & wanted).sum() / (drawn.sum() + wanted.sum()))
    assert not [name for name in found if "miou" in name or name == "without_box"]
    without = {name: value for name, value in batch.items() if name != "edge_256x256"}
    assert "edge_f1" not in scores_of(student, [without], None)
    assert "edge_f1" not in scores_of(Student(has_edges=False), [batch], None)


def test_no_gradient_is_kept_and_tensors_do_as_arrays_do(decoder: MaskDecoder) -> None:
    student, batch = Student(), batch_of(1, 2)
    tensors = {name: torch.from_numpy(value) if name != "key" else value for name, value in batch.items()}
    found = scores_of(student, [batch], decoder)
    assert scores_of(student, [tensors], decoder) == found
    assert all(value.grad is None for value in student.parameters())


@pytest.mark.parametrize("batch", [batch_of(3, 6), batch_of(4)], ids=["no box", "an empty mask"])
def test_where_nothing_can_be_judged_no_mask_is_scored(decoder: MaskDecoder, batch: Batch) -> None:
    found = scores_of(Student(), [batch], decoder)
    assert found["without_box"] == len(batch["key"])
    assert [name for name, value in found.items() if math.isnan(value)] == [
        "miou_student_gt", "miou_teacher_gt", "miou_student_teacher",
    ]  # fmt: skip


def test_masks_of_nothing_agree_with_each_other_and_with_no_truth() -> None:
    class Blind:
        level, channels, image_size = LEVEL, 128, 128

        def identity(self) -> Mapping[str, object]:
            return {}

        def __call__(self, features: Any, boxes: Any) -> Any:
            return torch.full((len(features), 32, 32), -1.0)

    found = scores_of(Student(), [batch_of(1, 2)], Blind())
    assert [found[f"miou_{name}"] for name in ("student_gt", "teacher_gt", "student_teacher")] == [0, 0, 1]


def test_boxes_are_of_the_picture_whatever_the_decoder_s_square(decoder: MaskDecoder) -> None:
    batch = batch_of(1, 2)
    half = {**batch, "image": batch["image"][:, :, ::2, ::2], "box": batch["box"] / 2}

    def exact(given: Batch) -> dict[str, Any]:
        return {LEVEL: given[LEVEL].float() * 0.5}

    assert evaluate_features(exact, [half], decoder, Ranks(), level=LEVEL) == evaluate_features(
        exact, [batch], decoder, Ranks(), level=LEVEL
    )


def test_a_student_of_another_size_is_refused(decoder: MaskDecoder) -> None:
    with pytest.raises(UsageError, match=re.escape("expected (1, 128, 8, 8), got (1, 64, 8, 8)")):
        evaluate_features(
            lambda batch: {LEVEL: batch[LEVEL][:, :64].float()}, [batch_of(1)], decoder, Ranks(), level=LEVEL
        )


def test_the_mean_feature_is_scored_alike(decoder: MaskDecoder) -> None:
    mean = MeanFeature()
    mean.take(torch.from_numpy(batch_of(7, 8, 9)[LEVEL]))
    found = evaluate_features(
        lambda batch: {LEVEL: mean.predict(len(batch["image"]))}, [batch_of(1, 2)], decoder, Ranks(), level=LEVEL
    )
    wanted = mean.predict(1).numpy().astype(np.float64) - batch_of(1, 2)[LEVEL].astype(np.float64)
    assert found["mse"] == pytest.approx(np.square(wanted).mean())
    assert 0 < found["miou_student_teacher"] <= 1


def test_two_ranks_score_what_one_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(tmp_path)
    code, output, errors = run_ranks(2, "tests.train.ranks_of_eval", [str(path)])
    assert code == 0, errors
    first, second = json.loads(output)
    assert first == second
    alone = evaluated(path, Ranks())
    assert first == pytest.approx(alone, rel=1e-6)
    assert alone["samples"] == SAMPLES
    assert 0 < alone["without_box"] < SAMPLES
    assert alone["unreadable"] == 0
    assert caplog.text == ""  # no batch is kept


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_each_picture_is_seen_once_on_any_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    held, data = held_of(config_of(write_rows(tmp_path)))
    assert data.held is not None
    bad: list[str] = []
    seen = [
        [key for batch in held.batches(Ranks(rank=rank, world_size=world_size), bad) for key in batch["key"]]
        for rank in range(world_size)
    ]
    alone = [key for batch in held.batches(Ranks(), bad) for key in batch["key"]]
    assert sorted(key for keys in seen for key in keys) == sorted(alone)
    assert len(set(alone)) == SAMPLES == held.samples
    assert set(alone) < set(data.held.keys) <= {f"sa_{row}" for row in range(ROWS)}
    assert bad == []


def test_a_rank_without_a_picture_gives_nothing(tmp_path: Path) -> None:
    held, _ = held_of(config_of(write_rows(tmp_path), val_samples=1))
    assert [list(held.batches(Ranks(rank=rank, world_size=2), [])) != [] for rank in range(2)] == [True, False]


def test_boxes_of_the_original_picture_come_in_pixels_of_the_square(tmp_path: Path) -> None:
    """The original gave the decoder boxes in pixels of the picture as it was."""
    held, _ = held_of(config_of(write_rows(tmp_path)))
    batches = list(held.batches(Ranks(), []))
    assert [batch["key"] for batch in batches] == [batch["key"] for batch in held.batches(Ranks(), [])]
    seen = 0
    for batch in batches:
        for key, box, mask, has_box in zip(batch["key"], batch["box"], batch["mask"], batch["has_box"], strict=True):
            record = record_of(int(key.removeprefix("sa_")))
            assert bool(has_box) == (len(record["bboxes"]) > 0)
            if has_box:
                stored = record["bboxes"] * np.array([128 / 640, 128 / 480] * 2, np.float32)
                number = int(np.abs(stored - box.numpy()).max(axis=1).argmin())
                np.testing.assert_allclose(box, stored[number], atol=1e-4)
                np.testing.assert_array_equal(mask, record["masks"][number])
                rows, columns = np.nonzero(mask.numpy())
                drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 2
                np.testing.assert_allclose(box, drawn, atol=1)  # the box and its mask are in one frame
                seen += 1
    assert seen > 1


def test_an_unreadable_picture_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = held_of(config_of(write_rows(tmp_path)))
    keys = [key for batch in whole.batches(Ranks(), []) for key in batch["key"]]
    held, _ = held_of(config_of(write_rows(tmp_path / "bad", bad=int(keys[2].removeprefix("sa_")))))
    found = held.evaluate(Student(), Ranks())
    assert (found["samples"], found["unreadable"]) == (SAMPLES - 1, 1)
    assert math.isfinite(found["mse"])
    assert keys[2] in caplog.text
    rest = [batch_without(batch, keys[2]) for batch in whole.batches(Ranks(), [])]
    wanted = scores_of(Student(), rest, held.decoder)
    assert found == pytest.approx({**wanted, "unreadable": 1})


def batch_without(batch: Batch, key: str) -> Batch:
    places = [place for place, one in enumerate(batch["key"]) if one != key]
    return {
        name: value[places] if isinstance(value, torch.Tensor) else [value[place] for place in places]
        for name, value in batch.items()
    }


def test_no_readable_picture_is_an_error(tmp_path: Path) -> None:
    held, _ = held_of(config_of(write_rows(tmp_path, bad=ROWS - 1), val_share=0.01))
    assert held.samples == 1
    with pytest.raises(BadData, match="NaN"):
        held.evaluate(Student(), Ranks())


def test_the_headline_and_what_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path)
    held, _ = held_of(config_of(path))
    assert held.headline in held.evaluate(Student(), Ranks())
    blind, _ = held_of(config_of(path, decoder=None))
    assert blind.headline in blind.evaluate(Student(), Ranks())
    with pytest.raises(UsageError, match="val_share"):
        held_of(config_of(path, val_share=0.0))


def test_the_decoder_of_another_teacher_is_refused(tmp_path: Path) -> None:
    mine = open_decoder("random:tiny", device="cpu").identity()
    path = write_rows(tmp_path, teacher={"model_type": "random:tiny", "teacher": mine})
    held, _ = held_of(config_of(path, decoder="random:tiny"))
    assert held.decoder is not None
    assert held.decoder.identity() == mine
    for other in ("random:tiny:3", "stand-in"):
        with pytest.raises(UsageError, match=r"features of another teacher: theirs \(random:tiny\)"):
            held_of(config_of(path, decoder=other))
    only_name = write_rows(tmp_path / "named", teacher={"model_type": "sam2.1_hiera_b+"})
    with pytest.raises(UsageError, match=r"the data say sam2.1_hiera_b\+, the decoder is random:tiny"):
        held_of(config_of(only_name, decoder="random:tiny"))


def test_baselines_are_scored_on_the_same_pictures(tmp_path: Path) -> None:
    held, data = held_of(config_of(write_rows(tmp_path)))
    mean = MeanFeature()
    for row in range(len(data.train)):
        mean.take(torch.from_numpy(np.array(data.train[row][LEVEL]))[None])
    found = held.score(lambda batch: {LEVEL: mean.predict(len(batch["image"]))}, Ranks())
    student = held.evaluate(Student(), Ranks())
    for name in ("samples", "without_box", "miou_teacher_gt"):
        assert found[name] == student[name]
    assert found["mse"] == pytest.approx(4 / 3, rel=0.05)  # noise of variance 1 against the mean of three such
