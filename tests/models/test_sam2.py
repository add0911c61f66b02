"""SAM2 as a proposer: transformers' real model, tiny, with random weights."""

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("cv2")

from penstock.errors import BadData, UsageError  # noqa: E402
from penstock.models.sam2 import AutomaticMasks, Sam2Options, Sam2Proposer  # noqa: E402
from penstock.models.sam2_pixels import cut_masks, model_pixels  # noqa: E402
from penstock.models.sam2_weights import build, open_weights  # noqa: E402
from penstock.refining.types import Frame, Prompts, Proposals  # noqa: E402
from tests.models.sam2_data import frame_of, picture, prompts_of  # noqa: E402

ALL = AutomaticMasks(pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1, min_mask_region_area=0)
"""Keeps every mask that has pixels."""


def make(*, lazy: bool = False, **options: Any) -> Sam2Proposer:
    return Sam2Proposer(Sam2Options(**{"model_cfg": "random:tiny", "device": "cpu", **options}), lazy=lazy)


@pytest.fixture(scope="module")
def proposer() -> Sam2Proposer:
    return make(automatic=ALL)


@pytest.fixture(scope="module")
def frame() -> Frame:
    return frame_of(picture(60, 80))


def same(left: Proposals, right: Proposals, tolerance: float = 0.0) -> None:
    """Equal but for pixels on borders, whose logits are near 0 and depend on the size of the batch."""
    np.testing.assert_array_equal(left.ids, right.ids)
    np.testing.assert_allclose(left.scores, right.scores, atol=1e-5)
    assert left.size_hw == right.size_hw
    for number in range(len(left)):
        assert (full(left, number) != full(right, number)).mean() <= tolerance


def full(proposals: Proposals, number: int) -> np.ndarray:
    mask = np.zeros(proposals.size_hw, bool)
    left, top, width, height = proposals.boxes[number]
    mask[top : top + height, left : left + width] = proposals.masks[number]
    return mask


def test_each_prompt_gets_candidates_with_its_id(proposer: Sam2Proposer, frame: Frame) -> None:
    found = proposer.encode([frame])[0].prompted(prompts_of(frame))
    assert found.size_hw == (60, 80)
    assert set(found.ids) == {5, 9}
    assert len(found) <= 6
    assert [str(column.dtype) for column in (found.boxes, found.scores, found.ids)] == ["int32", "float32", "int64"]
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.stability >= 0) & (found.stability <= 1)).all()
    for (left, top, width, height), mask in zip(found.boxes, found.masks, strict=True):
        assert mask.shape == (height, width)
        assert mask.dtype == bool
        assert left >= 0 <= top
        assert left + width <= 80
        assert top + height <= 60
        assert mask[0].any()
        assert mask[-1].any()
        assert mask[:, 0].any()
        assert mask[:, -1].any()


def test_the_logits_are_those_of_transformers(proposer: Sam2Proposer, frame: Frame) -> None:
    model, prompts = build(open_weights("random:tiny")), prompts_of(frame)
    scale = torch.tensor([128 / 80, 128 / 60])
    for number in range(2):
        one = slice(number, number + 1)
        with torch.inference_mode():
            wanted = model(
                pixel_values=model_pixels([frame.image], 128, "cpu"),
                input_points=(torch.from_numpy(prompts.points[one]) * scale)[None],
                input_labels=torch.from_numpy(prompts.point_labels[one])[None],
                input_boxes=(torch.from_numpy(prompts.boxes[one]).reshape(1, 2, 2) * scale).reshape(1, 1, 4),
                input_masks=torch.from_numpy(prompts.mask_logits[one])[None],
            )
        found = cut_masks(
            wanted.pred_masks[0, 0], wanted.iou_scores[0, 0], np.full(3, prompts.ids[number]), (60, 80), 1.0
        )
        mine = proposer.encode([frame])[0].prompted(prompts)
        rows = np.flatnonzero(mine.ids == prompts.ids[number]).tolist()
        assert len(rows) == len(found)
        for row, other in zip(rows, range(len(found)), strict=True):
            assert (full(mine, row) != full(found, other)).mean() < 1e-3
            assert mine.scores[row] == pytest.approx(found.scores[other], abs=1e-4)


def test_masks_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(4, 8, 8)).astype(np.float32)) * 3
    logits[2] = -1
    found = cut_masks(logits, torch.tensor([0.5, 1.5, 0.5, -0.5]), np.array([7, 8, 9, 10]), (50, 33), 1.0)
    assert found.ids.tolist() == [7, 8, 10]  # the empty one is dropped
    assert found.scores.tolist() == [0.5, 1, 0]
    stretched = torch.nn.functional.interpolate(logits[None], (50, 33), mode="bilinear")[0].numpy()
    for number, source in enumerate((0, 1, 3)):
        np.testing.assert_array_equal(full(found, number), stretched[source] > 0)
        stability = (stretched[source] > 1).sum() / (stretched[source] > -1).sum()
        assert found.stability[number] == pytest.approx(stability)


def test_frames_of_a_batch_do_not_touch_each_other(proposer: Sam2Proposer, frame: Frame) -> None:
    other = frame_of(picture(45, 70, seed=1), "scene/other.jpg")
    alone = [proposer.encode([one])[0].prompted(prompts_of(one)) for one in (frame, other)]
    together = [
        each.prompted(prompts_of(one))
        for each, one in zip(proposer.encode([frame, other]), (frame, other), strict=True)
    ]
    for left, right in zip(alone, together, strict=True):
        same(left, right, tolerance=1e-3)


@pytest.mark.parametrize("size", [1, 4, 5, 64])
def test_the_last_batch_of_points_is_not_dropped(proposer: Sam2Proposer, frame: Frame, size: int) -> None:
    points = np.random.default_rng(0).uniform(0, 60, (9, 2)).astype(np.float32)
    wanted = proposer.encode([frame])[0].at_points(points)
    assert (wanted.ids == 0).all()
    assert len(wanted) > 9  # up to three for each
    same(make(automatic=ALL, points_per_batch=size).encode([frame])[0].at_points(points), wanted, tolerance=1e-3)


def test_points_are_filtered_by_sam_s_rule(proposer: Sam2Proposer, frame: Frame) -> None:
    points = np.random.default_rng(0).uniform(0, 60, (9, 2)).astype(np.float32)
    every = proposer.encode([frame])[0].at_points(points)
    score, stability = float(np.median(every.scores)), 0.05
    rule = AutomaticMasks(
        pred_iou_thresh=score, stability_score_thresh=stability, box_nms_thresh=1, min_mask_region_area=0
    )
    found = make(automatic=rule).encode([frame])[0].at_points(points)
    keeps = (every.scores > score) & (every.stability >= stability)
    assert 0 < len(found) == keeps.sum() < len(every)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(every.scores[keeps]), atol=1e-5)
    strict = AutomaticMasks(pred_iou_thresh=0, stability_score_thresh=0, min_mask_region_area=100)
    apart = make(automatic=strict).encode([frame])[0].at_points(points)
    assert 0 < len(apart) < len(every)  # boxes of random masks cover the picture
    assert make(automatic=AutomaticMasks(pred_iou_thresh=1)).encode([frame])[0].at_points(points).size_hw == (60, 80)


def test_nothing_asked_nothing_found(proposer: Sam2Proposer, frame: Frame) -> None:
    encoded = proposer.encode([frame])[0]
    assert len(encoded.at_points(np.zeros((0, 2), np.float32))) == 0
    none = Prompts(
        ids=np.zeros(0, np.int64), boxes=np.zeros((0, 4), np.float32), points=np.zeros((0, 3, 2), np.float32),
        point_labels=np.zeros((0, 3), np.int32), mask_logits=np.zeros((0, 256, 256), np.float32),
    )  # fmt: skip
    assert len(encoded.prompted(none)) == 0
    assert proposer.encode([]) == []


def limit(monkeypatch: pytest.MonkeyPatch, proposer: Sam2Proposer, part: str, most: int) -> list[int]:
    """Lets a part of the model run out of memory with more than so many; gives the sizes it was asked for."""
    module = getattr(proposer._ready(), part)
    forward: Callable[..., Any] = module.forward
    sizes: list[int] = []

    def scarce(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["sparse_prompt_embeddings"] if part == "mask_decoder" else args[0]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", scarce)
    return sizes


def test_short_memory_halves_the_batch_and_is_remembered(
    monkeypatch: pytest.MonkeyPatch, proposer: Sam2Proposer, frame: Frame
) -> None:
    points = np.random.default_rng(0).uniform(0, 60, (9, 2)).astype(np.float32)
    wanted = proposer.encode([frame])[0].at_points(points)
    short = make(automatic=ALL)
    sizes = limit(monkeypatch, short, "mask_decoder", 2)
    same(short.encode([frame])[0].at_points(points), wanted, tolerance=1e-3)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    assert short.points_per_batch == 2
    short.encode([frame])[0].at_points(points)
    assert sizes[7:] == [2, 2, 2, 2, 1]


def test_short_memory_encodes_fewer_frames(
    monkeypatch: pytest.MonkeyPatch, proposer: Sam2Proposer, frame: Frame
) -> None:
    short = make(automatic=ALL)
    sizes = limit(monkeypatch, short, "vision_encoder", 1)
    found = short.encode([frame] * 3)
    assert sizes == [3, 1, 1, 1]
    same(found[2].prompted(prompts_of(frame)), proposer.encode([frame])[0].prompted(prompts_of(frame)), tolerance=1e-3)
    short.encode([frame] * 2)
    assert sizes[4:] == [1, 1]


def test_a_small_batch_does_not_make_later_ones_small(monkeypatch: pytest.MonkeyPatch, frame: Frame) -> None:
    ample = make(automatic=ALL)
    sizes = limit(monkeypatch, ample, "vision_encoder", 9)
    for count in (1, 3, 2):
        ample.encode([frame] * count)
    assert sizes == [1, 3, 2]


def test_what_never_fits_fails_its_frame(monkeypatch: pytest.MonkeyPatch, frame: Frame) -> None:
    short = make(automatic=ALL)
    encoded = short.encode([frame])[0]
    limit(monkeypatch, short, "mask_decoder", 0)
    with pytest.raises(BadData, match=r"^scene/frame_000000\.jpg: SAM2: out of memory on cpu with one prompt"):
        encoded.prompted(prompts_of(frame))
    limit(monkeypatch, short, "vision_encoder", 0)
    with pytest.raises(BadData, match="with one picture"):
        short.encode([frame])


def test_what_never_fits_may_go_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, proposer: Sam2Proposer, frame: Frame
) -> None:
    short = make(automatic=ALL, oom_to_cpu=True)
    encoded, forward = short.encode([frame])[0], short._ready().mask_decoder.forward
    moves: list[str] = []
    monkeypatch.setattr(short, "device", "cpu:0")  # another name for the same, which stands for a GPU

    def move(network: Any, device: str) -> Any:
        moves.append(device)
        return network

    monkeypatch.setattr(type(short._network), "to", move)

    def scarce(**kwargs: Any) -> Any:
        if not moves or moves[-1] != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**kwargs)

    monkeypatch.setattr(short._network.mask_decoder, "forward", scarce)
    same(encoded.prompted(prompts_of(frame)), proposer.encode([frame])[0].prompted(prompts_of(frame)), tolerance=1e-3)
    assert moves == ["cpu", "cpu:0"] * 2  # one prompt after the other


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch, frame: Frame) -> None:
    broken = make(automatic=ALL)

    def fail(**kwargs: Any) -> Any:
        raise RuntimeError("shape mismatch")

    encoded = broken.encode([frame])[0]
    monkeypatch.setattr(broken._ready().mask_decoder, "forward", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        encoded.prompted(prompts_of(frame))


def test_half_precision_finds_about_the_same(
    monkeypatch: pytest.MonkeyPatch, proposer: Sam2Proposer, frame: Frame
) -> None:
    wanted = proposer.encode([frame])[0].prompted(prompts_of(frame))
    half = make(automatic=ALL)
    monkeypatch.setattr(half, "_autocast", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    found = half.encode([frame])[0].prompted(prompts_of(frame))
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=0.02)
    assert np.mean([(full(found, n) != full(wanted, n)).mean() for n in range(len(wanted))]) < 0.05


def test_where_it_is_used_again_torch_is_there_before_the_first_picture(tmp_path: Path) -> None:
    content = tmp_path / "proposer"
    content.write_bytes(pickle.dumps(Sam2Proposer(Sam2Options(model_cfg="random:tiny", device="cpu"))))
    script = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); sys.exit('torch' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, str(content)]).returncode == 0


def test_it_pickles_without_weights(tmp_path: Path, frame: Frame) -> None:
    build(open_weights("random:tiny:1")).save_pretrained(tmp_path / "model")
    first = make(model_cfg=str(tmp_path / "model"), automatic=ALL)
    content = pickle.dumps(first)
    assert len(content) < 20_000
    second = pickle.loads(content)
    assert second.identity() == first.identity()
    prompts = prompts_of(frame)
    same(second.encode([frame])[0].prompted(prompts), first.encode([frame])[0].prompted(prompts))
    build(open_weights("random:tiny:2")).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="weights have changed"):
        pickle.loads(content).encode([frame])


def test_identity_says_what_masks_depend_on() -> None:
    base = make()
    assert base.identity() == make(points_per_batch=3, lazy=True).identity()
    assert base.identity()["random_weights"] is True
    assert base.identity() != make(model_cfg="random:tiny:1").identity()
    assert base.identity() != make(automatic=AutomaticMasks(box_nms_thresh=0.5)).identity()


def test_pixels_are_meta_s_transform() -> None:
    v2 = pytest.importorskip("torchvision.transforms.functional")
    image = picture(60, 80)
    image.flags.writeable = False  # as a view into a store
    wanted = v2.normalize(
        v2.resize(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255, [128, 128], antialias=True),
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
    )
    torch.testing.assert_close(model_pixels([image, image], 128, "cpu"), torch.stack([wanted] * 2))
    for wrong in (image[..., 0], image.astype(np.float32), image[:0]):
        with pytest.raises(BadData, match="expected a picture"):
            model_pixels([wrong], 128, "cpu")


def test_a_picture_of_another_size_than_its_map(proposer: Sam2Proposer, frame: Frame) -> None:
    wrong = Frame(key="scene/odd.jpg", image=picture(50, 80), objects=frame.objects)
    with pytest.raises(
        BadData, match=re.escape("scene/odd.jpg: expected one height and width, got a picture of (50, 80)")
    ):
        proposer.encode([wrong])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="points-per-batch"):
        make(points_per_batch=0)
    with pytest.raises(UsageError, match="device"):
        make(device="tpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_about_the_same(proposer: Sam2Proposer, frame: Frame) -> None:
    wanted = proposer.encode([frame])[0].prompted(prompts_of(frame))
    found = make(automatic=ALL, device="cuda").encode([frame])[0].prompted(prompts_of(frame))
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert np.mean([(full(found, n) != full(wanted, n)).mean() for n in range(len(wanted))]) < 0.05
