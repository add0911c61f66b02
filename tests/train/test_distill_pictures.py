"""Features as colours, errors, sheets; pictures of the worst samples, from real forward passes that leave no trace."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

pytest.importorskip("torch")

import torch
from torch import nn

from penstock.errors import OutputRefused
from penstock.train.distill_pictures import samples_of, save_worst_pictures
from penstock.train.distill_sheets import (
    HELD_FOLDER,
    INDEX,
    PANEL,
    Sample,
    error_map,
    fit_colours,
    sheet_of,
    words_of,
)
from penstock.train.metrics import MaskScore

LEVEL = "P4_S16"
SIDE, CHANNELS = 64, 8


def features(count: int = 3, channels: int = CHANNELS, seed: int = 0) -> np.ndarray:
    """Of unlike variance in each channel, so that principal directions are clear."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, channels, 4, 4)) * 3.0 ** np.arange(channels)[:, None, None]).astype(np.float32)


class Student(nn.Module):
    """A convolution with a batch norm and dropout, and an edge head."""

    def __init__(self, *, has_edges: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, CHANNELS, 16, 16), nn.BatchNorm2d(CHANNELS), nn.Dropout(0.5))
        self.head = nn.Conv2d(3, 1, 3, padding=1) if has_edges else None

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        values = image.float() / 255
        found = {LEVEL: self.body(values)}
        if self.head is not None:
            found["edge"] = self.head(nn.functional.interpolate(values, (256, 256)))
        return found


class FirstChannel:
    """A decoder: the first channel above 0, inside the box."""

    level, channels = LEVEL, CHANNELS

    def __init__(self, image_size: int = SIDE) -> None:
        self.image_size = image_size

    def identity(self) -> dict[str, object]:
        return {}

    def __call__(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        found = torch.full((len(boxes), 16, 16), -1.0)
        for number, (left, top, right, bottom) in enumerate((boxes * (16 / self.image_size)).long().tolist()):
            grown = features[number, 0].repeat_interleave(4, 0).repeat_interleave(4, 1)
            found[number, top:bottom, left:right] = grown[top:bottom, left:right]
        return found


def batch_of(count: int = 5, seed: int = 0) -> dict[str, Any]:
    """The batch contract: NumPy arrays, as data give them."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 256, 256), np.uint8)
    masks[:, 64:192, 32:128] = 1
    return {
        "image": rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8).transpose(0, 3, 1, 2),
        LEVEL: rng.standard_normal((count, CHANNELS, 4, 4)).astype(np.float16),
        "edge_256x256": rng.integers(0, 2, (count, 256, 256), dtype=np.uint8),
        "box": np.tile(np.array([8, 16, 32, 48], np.float32), (count, 1)),
        "mask": masks,
        "has_box": np.arange(count) != 1,
        "key": [f"sa_{number}" for number in range(count)],
    }


def test_equal_features_have_equal_colours_and_the_first_direction_is_red() -> None:
    teacher = features()
    colours = fit_colours(teacher)
    shown = colours.of(teacher[0])
    assert shown.shape == (4, 4, 3)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, colours.of(teacher[0].copy()))
    assert not np.array_equal(shown, colours.of(teacher[1]))
    weights = np.abs(colours.axes)
    assert weights.argmax(axis=1).tolist() == [CHANNELS - 1, CHANNELS - 2, CHANNELS - 3]
    assert np.allclose((colours.axes**2).sum(axis=1), 1)
    assert (colours.high - colours.low).tolist() == sorted(colours.high - colours.low, reverse=True)


def test_colours_do_not_depend_on_the_sign_that_the_eigenvectors_come_with(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = features()
    before = fit_colours(teacher).of(teacher[0])
    real = np.linalg.eigh

    def turned(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energies, vectors = real(matrix)
        return energies, -vectors

    monkeypatch.setattr(np.linalg, "eigh", turned)
    assert np.array_equal(fit_colours(teacher).of(teacher[0]), before)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_constant_features_are_grey(value: float) -> None:
    teacher = np.full((2, CHANNELS, 4, 4), value, np.float32)
    colours = fit_colours(teacher)
    assert not colours.axes.any()
    assert (colours.of(teacher[0]) == 128).all()
    assert (colours.of(features()[0]) == 128).all()


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_colours_leave_the_rest_grey(channels: int) -> None:
    teacher = features(channels=channels)
    shown = fit_colours(teacher).of(teacher[0])
    assert (shown[..., channels:] == 128).all()
    assert np.ptp(shown[..., 0]) > 0


def test_cells_that_are_not_finite_are_magenta_and_spoil_nothing_else() -> None:
    teacher = features()
    clean = fit_colours(teacher)
    torn = np.concatenate([teacher, np.full((1, CHANNELS, 4, 4), np.nan, np.float32)])
    assert np.array_equal(fit_colours(torn).axes, clean.axes)
    student = teacher[0].copy()
    student[2, 1, 3] = np.inf
    shown = clean.of(student)
    assert shown[1, 3].tolist() == [255, 0, 255]
    same = np.ones((4, 4), np.bool_)
    same[1, 3] = False
    assert np.array_equal(shown[same], clean.of(teacher[0])[same])
    assert (fit_colours(torn[3:]).of(torn[3]) == (255, 0, 255)).all()
    found = error_map(teacher[0], student)
    assert not np.isfinite(found[1, 3])
    assert (found[same] == 0).all()


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (4, 3, 5), elements=st.floats(-100, 100, width=32)), st.floats(0.25, 4))
def test_the_error_is_relative(teacher: np.ndarray, scale: float) -> None:
    assert (error_map(teacher, teacher) == 0).all()
    energy = float((teacher.astype(np.float64) ** 2).sum(axis=0).mean())
    if energy > 1e-6:
        zeros = error_map(teacher, np.zeros_like(teacher))
        assert float((zeros**2).mean()) == pytest.approx(1)
        student = np.roll(teacher, 1, axis=2).astype(np.float64)
        scaled = error_map(teacher.astype(np.float64) * scale, student * scale)
        assert scaled == pytest.approx(error_map(teacher, student), abs=1e-6)


def sample(**changes: Any) -> Sample:
    one, other = features(2)
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    return Sample(**{"key": "sa_1", "image": image, "level": LEVEL, "teacher": one, "student": other, **changes})


def colour_count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(sheet.astype(int) - colour).max(axis=-1) <= 2).sum())


def test_a_sheet_has_a_panel_for_what_there_is() -> None:
    colours = fit_colours(features(2))
    edges = {name: np.eye(256, dtype=np.bool_) for name in ("teacher", "student")}
    masks = {name: np.ones((16, 16), np.bool_) for name in ("truth", "teacher", "student")}
    plain = sheet_of(sample(), colours)
    whole = sheet_of(
        sample(edges=edges, masks=masks, scores={"teacher": 0.5, "student": 0.25}, box_xyxy=np.array([8.0, 8, 40, 40])),
        colours,
    )
    none = sheet_of(sample(edges=edges, masks={}), colours)
    assert plain.dtype == np.uint8
    assert [one.shape[1] // PANEL for one in (plain, whole, none)] == [4, 6, 6]
    assert plain.shape[0] == whole.shape[0] == none.shape[0]
    assert colour_count(plain, (90, 90, 90)) >= PANEL * PANEL
    words = words_of(sample(scores={"student": 0.25}))
    assert words.startswith("error ")
    assert words.endswith("IoU of the student's mask 0.25")


def test_edges_and_outlines_have_the_colours_of_their_owners() -> None:
    half = np.zeros((256, 256), np.bool_)
    half[:128] = True
    sheet = sheet_of(sample(edges={"teacher": half, "student": half.T}), fit_colours(features(2)))
    green, blue, orange = (colour_count(sheet, one) for one in ((0, 158, 90), (50, 130, 245), (235, 120, 0)))
    assert min(green, blue, orange) >= 128 * 128
    assert max(green, blue, orange) < 128 * 128 + 500
    masks = {"truth": half, "teacher": half, "student": ~half}
    sheet = sheet_of(sample(masks=masks, scores={"teacher": 1.0, "student": 0.0}), fit_colours(features(2)))
    assert 4 * 256 <= colour_count(sheet, (50, 130, 245)) < 4 * 256 + 200  # none along the border of the picture
    assert 2 * 256 <= colour_count(sheet, (235, 120, 0)) < 2 * 256 + 200


def test_samples_are_what_the_student_gives_and_the_decoder_says() -> None:
    torch.manual_seed(0)
    student, batch, decoder = Student().eval(), batch_of(), FirstChannel()
    found = samples_of(student, batch, level=LEVEL, decoder=decoder)
    with torch.no_grad():
        outputs = student(torch.tensor(batch["image"]))
    assert [one.key for one in found] == batch["key"]
    for number, one in enumerate(found):
        assert np.allclose(one.student, outputs[LEVEL][number].numpy(), atol=1e-6)
        assert np.array_equal(one.teacher, batch[LEVEL][number].astype(np.float32))
        assert np.array_equal(one.image, batch["image"][number].transpose(1, 2, 0))
        assert np.array_equal(one.edges["student"], outputs["edge"][number, 0].numpy() > 0)
    assert found[1].masks == {}
    score = MaskScore()
    boxes = torch.tensor(batch["box"])
    score.take(decoder(outputs[LEVEL], boxes)[2:3], torch.tensor(batch["mask"][2:3]))
    assert found[2].scores["student"] == pytest.approx(score.giou)
    assert found[2].masks is not None
    assert found[2].masks["student"].shape == (PANEL, PANEL)
    assert found[2].box_xyxy is not None
    assert found[2].box_xyxy.tolist() == batch["box"][2].tolist()
    larger = samples_of(student, batch, level=LEVEL, decoder=FirstChannel(2 * SIDE))
    assert [one.scores for one in larger] == [one.scores for one in found]
    bare = {name: batch[name] for name in ("image", LEVEL)}
    (first, *_) = samples_of(Student(has_edges=False), bare, level=LEVEL)
    assert (first.key, first.edges, first.masks) == ("number 0", {}, None)


def test_an_empty_mask_is_no_mask() -> None:
    batch = batch_of(2)
    batch["mask"][0] = 0
    found = samples_of(Student(), batch, level=LEVEL, decoder=FirstChannel())
    assert [one.masks for one in found] == [{}, {}]


def test_looking_leaves_the_model_and_the_draws_as_they_were() -> None:
    torch.manual_seed(0)
    student = Student().train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    drawn = torch.get_rng_state()
    samples_of(student, batch_of(), level=LEVEL, decoder=FirstChannel())
    assert student.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(value.grad is None for value in student.parameters())


def test_the_worst_are_saved_in_their_order_in_the_place_of_the_former(tmp_path: Path) -> None:
    student, batch = Student(), batch_of(6)
    batch["key"][3] = "../a <b>\u4e2d" * 40
    save_worst_pictures(student, batch, [0, 1, 2, 3, 4], tmp_path, level=LEVEL)
    sheets = save_worst_pictures(student, batch, [3, 1, 5], tmp_path, level=LEVEL, decoder=FirstChannel(), step=7)
    listed = json.loads((tmp_path / "worst" / INDEX).read_text(encoding="utf-8"))
    assert listed["step"] == 7
    assert [one["key"] for one in listed["samples"]] == [batch["key"][number] for number in (3, 1, 5)]
    files = [one["file"] for one in listed["samples"]]
    assert sorted(path.name for path in (tmp_path / "worst").iterdir()) == sorted([*files, INDEX])
    for file, sheet in zip(files, sheets, strict=True):
        with Image.open(tmp_path / "worst" / file) as picture:
            assert np.asarray(picture).shape == sheet.shape
    assert all("cosine" in one["words"] for one in listed["samples"])
    assert save_worst_pictures(student, batch, [], tmp_path, level=LEVEL, name=HELD_FOLDER) == []
    assert json.loads((tmp_path / HELD_FOLDER / INDEX).read_text()) == {"step": None, "samples": []}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "worst").write_text("a file")
    with pytest.raises(OutputRefused):
        save_worst_pictures(Student(), batch_of(), [0], tmp_path, level=LEVEL)


def test_tensorboard_takes_the_sheets(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from penstock.train.logs import TensorBoard

    (sheet,) = save_worst_pictures(Student(), batch_of(), [0], tmp_path, level=LEVEL)
    board = TensorBoard(tmp_path)
    board.picture(7, "worst/0", sheet)
    board.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    (one,) = found.Images("worst/0")
    assert (one.step, one.width, one.height) == (7, sheet.shape[1], sheet.shape[0])
