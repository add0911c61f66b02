"""Crops of tracking samples: pictures, boxes and histories together under every augmentation; rejections; determinism."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.draws import Draw, Frames, History, Steps, TrackSample
from penstock.errors import BadData, UsageError
from penstock.geometry.crops import map_boxes, mirror_boxes
from penstock.jobs import Job
from penstock.launch.local import Inline
from penstock.report import Report
from penstock.schema import Field, Record, Schema
from penstock.source import SourceOffers
from penstock.stages.sequence import CroppedFrames, CroppedSample, Rejected, crop_sample
from penstock.stages.sequence_config import CropConfig, RoleCrop
from penstock.stages.sequence_record import SampleShape, SequenceCrops, crop_schema, cropped_record
from penstock.store import StoreSink, open_store

PLAIN = CropConfig().without_augmentation()
SMALL = CropConfig(
    template=RoleCrop(factor=2.0, size=32),
    search=RoleCrop(factor=4.0, size=64, center_jitter=3.0, scale_jitter=0.25),
)


def frames_of(images: Sequence[np.ndarray], boxes: Sequence[Sequence[float]], **changes: object) -> Frames:
    number = len(images)
    values: dict[str, object] = {
        "images": list(images),
        "boxes": np.array(boxes, np.float64),
        "masks": [np.zeros(image.shape[:2], np.uint8) for image in images],
        "frames": np.arange(number),
        "visible": np.ones(number, bool),
        "valid": np.ones(number, bool),
        "paths": [f"img/{i:08d}.jpg" for i in range(number)],
    }
    return Frames(**{**values, **changes})


def steps_of(boxes: Sequence[Sequence[float]], **changes: object) -> Steps:
    number = len(boxes)
    values: dict[str, object] = {
        "boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "frames": np.arange(number),
        "visible": np.ones(number, bool),
        "valid": np.ones(number, bool),
        "padded": np.zeros(number, bool),
        "time": np.arange(number) / 30,
    }
    return Steps(**{**values, **changes})


def draw_of(seed: int, **changes: object) -> Draw:
    rows = np.zeros(1, np.int64)
    history = History(rows=rows, padded=np.zeros(1, bool))
    values: dict[str, object] = {
        "step": 7, "seed": seed, "key": "a key", "source": 0, "sequence": 3, "template_rows": rows, "search_source": 0,
        "search_sequence": 3, "search_rows": rows, "backward": history, "forward": history,
    }  # fmt: skip
    return Draw(**{**values, **changes})


def noise(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


BOX = (50, 40, 20, 12)


def sample_of(seed: int = 0, **changes: object) -> TrackSample:
    values: dict[str, object] = {
        "draw": draw_of(seed),
        "source": "lasot",
        "sequence": "cat-1",
        "category": "cat",
        "is_video": True,
        "template": frames_of([noise(), noise(seed=1)], [BOX, (30, 30, 18, 18)]),
        "search": frames_of([noise(seed=2)], [(55, 42, 22, 14)]),
        "backward": steps_of([BOX, (52, 41, 20, 12)]),
        "forward": steps_of([(55, 42, 22, 14)]),
        "image_hw": (90, 120),
    }
    return TrackSample(**{**values, **changes})


def cropped(sample: TrackSample, config: CropConfig = SMALL) -> CroppedSample:
    found = crop_sample(sample, config)
    assert isinstance(found, CroppedSample), found
    return found


def refused(sample: TrackSample, config: CropConfig = SMALL) -> Rejected:
    found = crop_sample(sample, config)
    assert isinstance(found, Rejected)
    return found


def with_marker(hw: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    """Black, with a white square around a pixel (column, row)."""
    picture = np.zeros((*hw, 3), np.uint8)
    x, y = centre
    picture[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 255
    return picture


def centroid(picture: np.ndarray) -> np.ndarray:
    """Of the light, in continuous coordinates."""
    weights = picture[:, :, 0].astype(np.float64)
    rows, columns = np.indices(weights.shape) + 0.5
    return np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()


def middle(box: np.ndarray) -> np.ndarray:
    return box[:2] + box[2:] / 2


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[int, int]], list[tuple[float, float]]]:
    """Size of the pictures; the pixel in the middle of each of five boxes; sizes of the boxes."""
    hw = (draw(st.integers(40, 160)), draw(st.integers(40, 160)))
    centres = [(draw(st.integers(0, hw[1] - 1)), draw(st.integers(0, hw[0] - 1))) for _ in range(5)]
    sizes = [(draw(st.floats(4, 60)), draw(st.floats(4, 60))) for _ in range(5)]
    return hw, centres, sizes


def check_marker(frames: CroppedFrames, number: int, where: np.ndarray, radius: float) -> bool:
    """Whether the marker is wholly in the crop; if so, it must be where it was said to be."""
    size = frames.images.shape[1]
    reach = radius * frames.affine[number, 1, 1] + 1
    if not (np.all(where >= reach) and np.all(where <= size - reach)):
        return False
    assert np.abs(centroid(frames.images[number]) - where).max() < 1
    return True


@given(scenes(), st.integers(0, 2**64 - 1), st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_marker_at_a_box_centre_is_found_at_the_mapped_centre(
    scene: tuple[tuple[int, int], list[tuple[int, int]], list[tuple[float, float]]], seed: int, is_original: bool
) -> None:
    hw, centres, sizes = scene
    config = replace(SMALL, gray_prob=0.5, history="original" if is_original else "mapped")
    boxes = [
        (x + 0.5 - w / 2, y + 0.5 - h / 2, w, h) for (x, y), (w, h) in zip(centres, sizes, strict=True)
    ]  # fmt: skip
    radii = [max(2, int(np.ceil(np.sqrt(w * h) / 8))) for w, h in sizes]
    pictures = [with_marker(hw, centre, radius) for centre, radius in zip(centres, radii, strict=True)]
    sample = sample_of(
        seed,
        template=frames_of(pictures[:2], boxes[:2]),
        search=frames_of(pictures[2:3], boxes[2:3]),
        backward=steps_of(boxes[:4]),
        forward=steps_of(boxes[2:]),
        image_hw=hw,
    )
    found = crop_sample(sample, config)
    if isinstance(found, Rejected):
        assert "attention mask all padding" in found.reason
        return
    whole = [
        min(x, y, hw[1] - 1 - x, hw[0] - 1 - y) >= radius for (x, y), radius in zip(centres, radii, strict=True)
    ]  # fmt: skip
    for frames, first in ((found.template, 0), (found.search, 2)):
        for number in range(len(frames.images)):
            if whole[first + number]:
                check_marker(frames, number, middle(frames.boxes[number]), radii[first + number])
            bound = (1 + frames.affine[number, 1, 1]) / 2 + 1e-3
            assert np.abs(frames.anno[number] * frames.images.shape[1] - frames.boxes[number]).max() <= bound
    for steps, first in ((found.backward, 0), (found.forward, 2)):
        for step in range(len(steps.boxes)):
            place = first + step
            picture = pictures[place]
            if not whole[place]:
                continue
            seen = replace(sample, search=replace(sample.search, images=[picture]))
            again = cropped(seen, config)
            # a marker made for another box may be too small for this crop to show well
            if radii[place] * again.search.affine[0, 1, 1] >= 1:
                check_marker(again.search, 0, middle(steps.crop_boxes[step]), radii[place])
            mirrored = picture[:, ::-1] if found.joint_flip and not is_original else picture
            np.testing.assert_allclose(middle(steps.boxes[step]), centroid(mirrored), atol=1e-6)


def test_the_marker_test_sees_markers() -> None:
    """Without jitter the marker is in the crop, whatever the mirroring: and all four kinds of it come up."""
    config = replace(SMALL, search=RoleCrop(factor=4.0, size=64), brightness=0.0)
    box = (60.5 - 9, 44.5 - 6, 18, 12)
    picture = with_marker((90, 120), (60, 44), 2)
    kinds = set()
    for seed in range(40):
        sample = sample_of(seed, template=frames_of([picture], [box]), search=frames_of([picture], [box]))
        found = cropped(sample, config)
        assert check_marker(found.search, 0, middle(found.search.boxes[0]), 2)
        kinds.add((found.joint_flip, bool(found.search.flip[0])))
    assert len(kinds) == 4


def test_without_augmentation_and_at_scale_one_the_crop_is_the_picture() -> None:
    picture = noise(200, 300)
    mask = (picture[:, :, 0] > 100).astype(np.uint8)
    template = frames_of([picture], [(100, 50, 64, 64)], masks=[mask])
    search = frames_of([picture], [(120, 60, 64, 64)], masks=[mask])
    found = cropped(sample_of(5, template=template, search=search), PLAIN)
    np.testing.assert_array_equal(found.template.images[0], picture[18:146, 68:196])
    np.testing.assert_array_equal(found.template.masks[0], mask[18:146, 68:196])
    np.testing.assert_array_equal(found.template.affine[0], [[1, 0, -68], [0, 1, -18]])
    np.testing.assert_array_equal(found.template.crop_box[0], [68, 18, 128, 128])
    np.testing.assert_array_equal(found.template.boxes[0], [32, 32, 64, 64])
    np.testing.assert_allclose(found.template.anno[0] * 128, [31.5, 31.5, 64, 64])
    assert not found.template.att.any()
    # the search crop is 256 x 256 around (152, 92): rows -36..219, columns 24..279
    expected = np.zeros((256, 256, 3), np.uint8)
    expected[36:236] = picture[:, 24:280]
    np.testing.assert_array_equal(found.search.images[0], expected)
    outside = np.ones((256, 256), bool)
    outside[36:236] = False
    np.testing.assert_array_equal(found.search.att[0], outside)
    assert (found.joint_flip, found.gray, found.search.flip.tolist()) == (False, False, [False])
    assert found.search.brightness.tolist() == [1.0]


@pytest.mark.parametrize("seed", range(8))
def test_mirroring_turns_pictures_masks_attention_and_boxes_together(seed: int) -> None:
    """Both mirrorings certain, nothing else: a crop is that of the picture, mirrored twice."""
    both = replace(PLAIN, flip_prob=1.0, frame_flip_prob=1.0)
    picture = noise(90, 120, seed)
    mask = (picture[:, :, 0] > 100).astype(np.uint8)
    box = (5 + seed, 10, 32, 32)  # whole numbers and an even side: no rounding differs
    sample = sample_of(
        seed, template=frames_of([picture], [box], masks=[mask]), search=frames_of([picture], [box], masks=[mask])
    )
    plain, mirrored = cropped(sample, PLAIN), cropped(sample, both)
    for left, right in ((plain.template, mirrored.template), (plain.search, mirrored.search)):
        np.testing.assert_array_equal(left.att, right.att)
        np.testing.assert_array_equal(left.masks, right.masks)
        np.testing.assert_allclose(left.affine, right.affine, atol=1e-9)
        np.testing.assert_allclose(left.boxes, right.boxes, atol=1e-9)
        np.testing.assert_array_equal(left.crop_box, right.crop_box)
        assert np.abs(left.images.astype(int) - right.images).max() <= 1
    np.testing.assert_allclose(plain.backward.crop_boxes, mirrored.backward.crop_boxes, atol=1e-9)
    np.testing.assert_allclose(mirrored.backward.boxes, mirror_boxes(plain.backward.boxes, 120))


def test_histories_as_the_original_are_never_mirrored() -> None:
    absent = steps_of([BOX, (0, 0, 0, 0), (np.nan,) * 4], valid=np.array([True, False, False]))
    sample = sample_of(3, backward=absent)
    certain = replace(SMALL, flip_prob=1.0)
    mapped, original = cropped(sample, certain), cropped(sample, replace(certain, history="original"))
    assert mapped.joint_flip
    assert original.joint_flip
    np.testing.assert_array_equal(mapped.search.images, original.search.images)
    np.testing.assert_array_equal(original.backward.boxes[0], BOX)
    np.testing.assert_array_equal(mapped.backward.boxes[0], [120 - 50 - 20, 40, 20, 12])
    np.testing.assert_array_equal(original.backward.anno, [BOX, [0] * 4, [0] * 4])
    np.testing.assert_array_equal(mapped.backward.anno[1:], np.full((2, 4), np.nan))
    np.testing.assert_array_equal(mapped.backward.crop_boxes, original.backward.crop_boxes)
    np.testing.assert_array_equal(mapped.backward.valid, [True, False, False])


def test_normalised_histories_are_divided_and_clipped() -> None:
    config = replace(PLAIN, normalize_history=True)
    found = cropped(sample_of(backward=steps_of([(60, 45, 30, 9), (-12, 0, 600, 90)])), config)
    np.testing.assert_allclose(found.backward.anno, [[0.5, 0.5, 0.25, 0.1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(found.backward.boxes[1], [-12, 0, 600, 90])
    np.testing.assert_array_equal(cropped(sample_of(), PLAIN).backward.anno[0], BOX)


def test_everything_random_has_the_stated_range_and_rate() -> None:
    tiny = replace(
        SMALL, template=RoleCrop(factor=2.0, size=16), search=replace(SMALL.search, factor=8.0, size=16)
    )  # fmt: skip
    box = np.array([300.0, 200.0, 20.0, 12.0])
    pictures = [np.full((500, 600, 3), 100, np.uint8)]
    made = [
        cropped(sample_of(seed, template=frames_of(pictures, [box]), search=frames_of(pictures, [box])), tiny)
        for seed in range(1200)
    ]
    assert 0.03 < np.mean([one.gray for one in made]) < 0.075
    assert 0.45 < np.mean([one.joint_flip for one in made]) < 0.55
    flips = np.array([[one.template.flip[0], one.search.flip[0], one.joint_flip] for one in made])
    assert np.all(np.abs(flips.mean(axis=0) - 0.5) < 0.05)
    assert np.abs(np.corrcoef(flips.T) - np.eye(3)).max() < 0.1
    factors = np.array([one.search.brightness[0] for one in made])
    assert 0.8 <= factors.min() < 0.81
    assert 1.19 < factors.max() <= 1.2
    assert all((one.search.images == round(100 * one.search.brightness[0])).all() for one in made)
    around = np.stack([one.search.around[0] for one in made])
    growth = np.log(around[:, 2:] / box[2:]) / 0.25
    assert np.all(np.abs(growth.mean(axis=0)) < 0.1)
    assert np.all(np.abs(growth.std(axis=0) - 1) < 0.07)
    moves = (around[:, :2] + around[:, 2:] / 2 - middle(box)) / np.sqrt(around[:, 2] * around[:, 3])[:, None] / 3
    assert np.abs(moves).max() <= 0.5 + 1e-9
    assert np.all(np.abs(moves.std(axis=0) - 12**-0.5) < 0.02)
    assert all((one.template.around[0] == box).all() or one.joint_flip for one in made)


def test_gray_pictures_are_gray_and_all_of_them() -> None:
    found = cropped(sample_of(1), replace(SMALL, gray_prob=1.0))
    for frames in (found.template, found.search):
        assert (frames.images == frames.images[..., :1]).all()
        assert frames.images.any()


def test_frames_do_not_depend_on_how_many_there_are() -> None:
    two = cropped(sample_of(11))
    one = cropped(sample_of(11, template=frames_of([noise()], [BOX])))
    np.testing.assert_array_equal(one.template.images[0], two.template.images[0])
    np.testing.assert_array_equal(one.search.images, two.search.images)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.stages.test_sequence import digest
print(" ".join(digest(seed) for seed in {seeds}))
"""


def digest(seed: int) -> str:
    record = cropped_record(cropped(sample_of(seed), SMALL))
    whole = hashlib.sha256()
    for name in sorted(record):
        value = record[name]
        whole.update(
            name.encode() + (value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
        )
    return whole.hexdigest()


def accepted(count: int) -> list[int]:
    return [seed for seed in range(1000) if isinstance(crop_sample(sample_of(seed), SMALL), CroppedSample)][:count]


def test_same_bytes_in_any_order_and_in_another_process() -> None:
    seeds = accepted(12)
    first = [digest(seed) for seed in seeds]
    assert len(set(first)) == len(seeds)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    assert [digest(seed) for seed in reversed(seeds)] == first[::-1]
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=root, seeds=seeds[::-1])],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == first[::-1]


BAD_BOXES = {
    "nan": ((np.nan, 1, 5, 5), "box is not valid"),
    "infinite": ((np.inf, 1, 5, 5), "box is not valid"),
    "empty": ((10, 10, 0, 5), "box is not valid"),
    "negative": ((10, 10, -4, 5), "box is not valid"),
    "far": ((10, 10, 1e200, 5), "box is not valid"),
    "outside": ((500, 10, 5, 5), "box is outside the picture"),
    "tiny": ((10, 10, 1e-200, 1e-200), "crop side < 1"),
    "huge": ((-4e5, -4e5, 1e6, 1e6), "crop side > 16384"),
}


@pytest.mark.parametrize("role", ["template", "search"])
@pytest.mark.parametrize("name", BAD_BOXES)
def test_bad_boxes_are_rejected_with_a_reason(name: str, role: str) -> None:
    box, reason = BAD_BOXES[name]
    sample = sample_of(**{role: frames_of([noise()], [box])})
    found = refused(sample)
    assert found.reason == f"{role} {reason}"
    assert "img/00000000.jpg" in found.detail
    assert "90 x 120" in found.detail


@pytest.mark.parametrize("role", ["template", "search"])
def test_a_frame_that_the_source_calls_absent_is_rejected(role: str) -> None:
    sample = sample_of(**{role: frames_of([noise()], [BOX], valid=np.array([False]))})
    assert refused(sample).reason == f"{role} box is not valid"


def test_a_crop_of_padding_only_is_rejected() -> None:
    """At the border a jittered crop can miss the picture: altogether, or at every 16th pixel."""
    box = [(0, 0, 20, 20)]
    reasons = {"": 0}
    for seed in range(400):
        found = crop_sample(sample_of(seed, search=frames_of([noise()], box)), SMALL)
        reason = found.reason if isinstance(found, Rejected) else ""
        reasons[reason] = reasons.get(reason, 0) + 1
    assert reasons[""] > 200
    # centre of the crop within 1.5 of the box's, half its side 2: it always shows the corner, not always in a cell
    assert set(reasons) == {"", "search attention mask all padding after down-sampling by 16"}
    far = replace(SMALL, search=RoleCrop(factor=1.0, size=64, center_jitter=30.0))
    missed = {crop_sample(sample_of(seed, search=frames_of([noise()], box)), far) for seed in range(3)}
    assert {one.reason for one in missed if isinstance(one, Rejected)} == {"search attention mask all padding"}


def test_negatives_are_cropped_in_the_middle_or_around_the_other_object() -> None:
    nowhere = frames_of([noise(80, 160)], [(np.nan,) * 4], valid=np.array([False]), visible=np.array([False]))
    found = cropped(sample_of(search=nowhere, draw=draw_of(1, positive=False)), PLAIN)
    np.testing.assert_array_equal(found.search.around[0], [70, 35, 20, 10])
    assert np.isnan(found.search.boxes).all()
    assert np.isfinite(found.search.anno).all()
    assert not found.draw.positive
    other = frames_of([noise()], [BOX])
    elsewhere = cropped(sample_of(search=other, draw=draw_of(1, positive=False, search_sequence=9)), PLAIN)
    np.testing.assert_array_equal(elsewhere.search.around[0], BOX)
    assert np.isnan(elsewhere.backward.crop_boxes).all()
    np.testing.assert_array_equal(elsewhere.backward.boxes[0], BOX)


def test_pictures_as_fed_and_back() -> None:
    config = CropConfig()
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    fed = config.normalised(images)
    assert fed.shape == (1, 3, 16, 16)
    assert fed.dtype == np.float32
    np.testing.assert_allclose(fed[0, :, 0, 0], -np.array(config.mean) / np.array(config.std), rtol=1e-6)
    np.testing.assert_array_equal(config.denormalised(fed), images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gray_prob": 1.5},
        {"brightness": -0.1},
        {"flip_prob": float("nan")},
        {"history": "flipped"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0,)},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CropConfig(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"factor": 0.0}, {"factor": float("nan")}, {"size": 15}, {"center_jitter": -1.0}, {"scale_jitter": 11.0}]
)
def test_wrong_crops_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RoleCrop(**{"factor": 2.0, "size": 32, **wrong})


def test_a_record_holds_the_sample_and_fits_its_schema() -> None:
    shape = SampleShape(num_template=2, num_search=1, num_backward=2, num_forward=1)
    sample = cropped(sample_of(accepted(1)[0]))
    record, schema = cropped_record(sample), crop_schema(SMALL, shape)
    assert set(record) == set(schema)
    for name, field in schema.items():
        field.encode(record[name])
    np.testing.assert_array_equal(record["search_att"], sample.search.att)
    np.testing.assert_array_equal(record["gt_sequence_anno_backward"], sample.backward.anno)
    assert record["template_paths"] == "img/00000000.jpg\nimg/00000001.jpg"
    assert (int(record["step"]), int(record["seed"]), record["draw"]) == (7, sample.draw.seed, "a key")


@dataclass
class Steps4:
    """Steps 0..3 as a source; and samples of them. The first draw of step 2 and every draw of step 3 are bad."""

    schema = Schema([Field(name="step", dtype="int64")])
    keys = ("0", "1", "2", "3")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Record:
        return {"step": np.array(range(4)[index], np.int64)}

    def __call__(self, step: int, attempt: int) -> TrackSample:
        is_bad = step == 3 or (step == 2 and attempt == 0)
        box = (10, 10, 0, 0) if is_bad else BOX
        draw = draw_of(step * 100 + attempt, step=step)
        return sample_of(draw=draw, template=frames_of([noise(seed=step)], [box]))

    def identity(self) -> dict[str, object]:
        return {"seed": 0}


def test_a_job_writes_cropped_samples_to_a_store(tmp_path: Path) -> None:
    config = replace(SMALL, search=RoleCrop(factor=4.0, size=64))
    steps = Steps4()
    stage = SequenceCrops(
        config=config, shape=SampleShape(num_backward=2), samples=steps, max_attempts=3
    )  # fmt: skip
    job = Job(
        offers=SourceOffers(steps),
        stage=stage,
        sink=StoreSink(tmp_path / "crops", stage.schema, identity=stage.identity()),
        launcher=Inline(),
        report=Report(command="crops", output="crops"),
    )
    report = job.run()
    assert (report.done, report.failed) == (3, 1)
    store = open_store(tmp_path / "crops")
    direct = cropped(steps(1, 0), config)
    for name, value in cropped_record(direct).items():
        np.testing.assert_array_equal(store[1][name], value)
    assert [store[row]["rejections"] for row in range(3)] == ["", "", "template box is not valid"]
    with pytest.raises(BadData, match="none of 3 draws can be cropped: 3 x template box is not valid"):
        stage([steps[3]])


def test_boxes_come_back_through_the_affine() -> None:
    found = cropped(sample_of(accepted(1)[0], template=frames_of([noise()], [BOX])))
    matrix = found.template.affine[0]
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    np.testing.assert_allclose(map_boxes(found.template.boxes[0], inverse), BOX, atol=1e-9)


def test_a_sample_of_three_large_pictures_takes_milliseconds() -> None:
    pictures = [noise(720, 1280, seed) for seed in range(3)]
    boxes = [(500, 300, 150, 120), (520, 310, 150, 120), (540, 320, 150, 120)]
    sample = sample_of(template=frames_of(pictures[:2], boxes[:2]), search=frames_of(pictures[2:], boxes[2:]))
    config = CropConfig()
    times = []
    for seed in range(30):
        one = replace(sample, draw=draw_of(seed))
        start = time.process_time()
        crop_sample(one, config)
        times.append(time.process_time() - start)
    assert np.median(times) < 0.03  # 2 ms on a free core
