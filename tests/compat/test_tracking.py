"""TimingTrackingSampler, its processing and its scripts: fields, purity, DataLoaders, original datasets, refusals."""

import json
import pickle
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from penstock.errors import BadData, StateMismatch, UsageError
from penstock.geometry.images import decode_picture
from penstock.sequence_config import DrawConfig, SaveConfig, SequenceConfig
from penstock.sequence_save import save_sequences
from penstock.stages.sequence_config import CropConfig, RoleCrop
from penstock.testing import encode_picture

torch = pytest.importorskip("torch", reason="TimingTrackingSampler needs torch")

from penstock.compat import SequenceSaver, TimingTrackingSampler  # noqa: E402  # only where torch is
from penstock.compat.processing import Compose, Normalize, STARKProcessing, TIMProcessing, ToTensor  # noqa: E402
from penstock.compat.sequence_scripts import main, save_sequences_from_sampler  # noqa: E402
from penstock.compat.tensor_dict import TensorDict  # noqa: E402

FRAMES, SIZE_HW = 40, (48, 64)
HIDDEN = 7
STEPS, FUTURE = 50, 5
STAMP = "20260101_000000"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def box_at(frame: int) -> tuple[int, int, int, int]:
    """XYWH from 0 of the target, which moves right."""
    return 4 + frame, 20, 12, 10


def picture(frame: int) -> np.ndarray:
    """A green target on a gray that says which frame it is."""
    pixels = np.full((*SIZE_HW, 3), 20 + 4 * frame, np.uint8)
    x, y, w, h = box_at(frame)
    pixels[y : y + h, x : x + w] = (60, 200, 40)
    return pixels


@pytest.fixture(scope="module")
def lasot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of one class; the target of one is hidden in one frame, where its box is zero."""
    root = tmp_path_factory.mktemp("lasot")
    for name in ("cat-1", "cat-2"):
        folder = root / "cat" / name
        (folder / "img").mkdir(parents=True)
        lines = []
        for frame in range(FRAMES):
            (folder / "img" / f"{frame + 1:08d}.jpg").write_bytes(encode_picture(picture(frame)))
            x, y, w, h = box_at(frame)
            is_hidden = name == "cat-1" and frame == HIDDEN
            lines.append("0,0,0,0" if is_hidden else f"{x + 1},{y + 1},{w},{h}")
        (folder / "groundtruth.txt").write_text("\n".join(lines))
        hidden = [int(name == "cat-1" and frame == HIDDEN) for frame in range(FRAMES)]
        (folder / "full_occlusion.txt").write_text(",".join(map(str, hidden)))
        (folder / "out_of_view.txt").write_text(",".join("0" * FRAMES))
    return root


class Original:
    """A dataset of the original interface, videos or single pictures, with a class and masks."""

    def __init__(self, frames: int = FRAMES, name: str = "mine") -> None:
        self.frames = frames
        self.name = name
        self.sequence_list = ["first", "second"]

    def is_video_sequence(self) -> bool:
        return self.frames > 1

    def get_name(self) -> str:
        return self.name

    def get_num_sequences(self) -> int:
        return 2

    def has_class_info(self) -> bool:
        return True

    def get_class_list(self) -> list[str]:
        return ["dog"]

    def get_sequences_in_class(self, name: str) -> list[int]:
        return [1]

    def get_sequence_info(self, seq_id: int) -> dict[str, Any]:
        boxes = torch.tensor([box_at(frame) for frame in range(self.frames)], dtype=torch.float32)
        masks = torch.zeros((self.frames, *SIZE_HW))
        for frame in range(self.frames):
            x, y, w, h = box_at(frame)
            masks[frame, y : y + h, x : x + w] = 1
        return {"bbox": boxes, "valid": boxes[:, 2] > 0, "visible": torch.ones(self.frames).byte(), "mask": masks}

    def get_frames(self, seq_id: int, frame_ids: Sequence[int], anno: Mapping[str, Any] | None = None) -> Any:
        assert anno is not None
        annotations = {name: [value[frame] for frame in frame_ids] for name, value in anno.items()}
        return [picture(frame) for frame in frame_ids], annotations, {"object_class_name": "dog"}


class Broken(Original):
    """Its pictures cannot be read."""

    def get_frames(self, seq_id: int, frame_ids: Sequence[int], anno: Mapping[str, Any] | None = None) -> Any:
        return [None for _ in frame_ids], {}, {}


def make(datasets: Sequence[object], **options: Any) -> TimingTrackingSampler:
    options = {"p_datasets": None, "samples_per_epoch": 12, "max_gap": 20, "num_search_frames": 1} | options
    steps = {"min_interval": STEPS, "future_steps": FUTURE}
    return TimingTrackingSampler(datasets, **{**steps, **options})


def tim(**options: Any) -> TIMProcessing:
    return TIMProcessing(*FACTORS, **options)


FACTORS: tuple[Any, ...] = (
    {"template": 2.0, "search": 4.0},
    {"template": 32, "search": 64},
    {"template": 0.0, "search": 1.0},
    {"template": 0.0, "search": 0.25},
)


def test_fields_before_processing(lasot: Path) -> None:
    sampler = make([f"lasot:{lasot}"], num_template_frames=2, num_search_frames=3)
    assert len(sampler) == 12
    hidden = 0
    for index in range(len(sampler)):
        data = sampler[index]
        assert type(data) is TensorDict
        assert data["valid"] is True
        assert data["is_video_dataset"] is True
        assert (data["dataset"], data["test_class"], data["image_size"]) == ("lasot", "cat", list(SIZE_HW))
        assert data["sequence"] in ("cat-1", "cat-2")
        for role, count in (("template", 2), ("search", 3)):
            for image, anno, mask, frame in zip(
                *(data[f"{role}_{what}"] for what in ("images", "anno", "masks", "frame_ids")), strict=True
            ):
                assert anno.dtype == torch.float32
                assert tuple(anno.tolist()) == box_at(frame)
                assert image.shape == (*SIZE_HW, 3)
                assert image.flags.writeable
                assert abs(float(image[:8].mean()) - (20 + 4 * frame)) < 2
                assert mask.shape == SIZE_HW
                assert not mask.any()
            assert len(data[f"{role}_images"]) == len(data[f"{role}_paths"]) == count
            assert data[f"{role}_visible"].all()
        for name, steps in (("backward", STEPS), ("forward", FUTURE)):
            boxes, ids = data[f"gt_sequence_anno_{name}"], data[f"gt_frame_ids_{name}"]
            assert boxes.shape == (1, steps, 4)
            assert boxes.dtype == torch.float32
            for box, frame, valid in zip(boxes[0].tolist(), ids, data[f"gt_valid_{name}"].tolist(), strict=True):
                is_hidden = data["sequence"] == "cat-1" and frame == HIDDEN
                hidden += is_hidden
                assert (tuple(box), valid) == ((0, 0, 0, 0), False) if is_hidden else (box_at(frame), True)
            assert data[f"gt_visible_{name}"].shape == data[f"gt_padded_{name}"].shape == (steps,)
        search = max(data["search_frame_ids"])
        assert data["gt_frame_ids_forward"] == [min(search + step, FRAMES - 1) for step in range(FUTURE)]
        assert data["gt_frame_ids_backward"][-1] == search - 1
        assert int(data["gt_padded_backward"].sum()) == STEPS - search
    assert hidden


def test_an_index_is_a_sample(lasot: Path) -> None:
    sampler, again = make([f"lasot:{lasot}"]), make([f"lasot:{lasot}"])
    keys = [sampler[index]["key"] for index in range(len(sampler))]
    assert [again[index]["key"] for index in reversed(range(len(again)))] == keys[::-1]
    assert sampler[-1]["key"] == keys[-1]
    with pytest.raises(IndexError):
        sampler[len(sampler)]
    assert_equal(pickle.loads(pickle.dumps(sampler))[3], sampler[3])
    assert_equal(sampler.rebuild(keys[3]), sampler[3])
    assert make([f"lasot:{lasot}"], seed=1)[3]["key"] != keys[3]
    with pytest.raises(StateMismatch):
        make([f"lasot:{lasot}"], seed=1).rebuild(keys[3])
    again.set_epoch(1)
    later = [again[index]["key"] for index in range(len(again))]
    assert not set(later) & set(keys)
    assert_equal(sampler.rebuild(later[0]), again[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_data_loader(lasot: Path, workers: int, size: int) -> None:
    sampler = make([f"lasot:{lasot}", Original()], samples_per_epoch=6)
    loader = torch.utils.data.DataLoader(sampler, batch_size=size, num_workers=workers)
    batches = list(loader)
    assert [key for batch in batches for key in batch["key"]] == [sampler[index]["key"] for index in range(6)]
    first = batches[0]
    assert type(first) is TensorDict
    assert first["gt_sequence_anno_backward"].shape == (size, 1, STEPS, 4)
    assert first["template_images"][0].shape == (size, *SIZE_HW, 3)


def test_batches_are_saved(lasot: Path, tmp_path: Path) -> None:
    sampler = make([f"lasot:{lasot}"], samples_per_epoch=6, processing=tim())
    loader = torch.utils.data.DataLoader(sampler, batch_size=3)
    saver = SequenceSaver(tmp_path)
    assert len(saver.save_batch_sequences(loader, 5)) == 5
    metadata, _ = saver.load_sequence_data(sorted(tmp_path.glob("seq_*"))[4])
    data = sampler[4]
    for name in ("template_frame_ids", "search_frame_ids", "gt_frame_ids_backward", "gt_frame_ids_forward", "dataset"):
        assert metadata[name] == data[name]


def test_saved_boxes_are_pixels_of_saved_pictures(lasot: Path, tmp_path: Path) -> None:
    sampler = make([f"lasot:{lasot}"], processing=tim(brightness=0.0, gray_prob=0.0))
    saver = SequenceSaver(tmp_path, image_format="png")
    paths = saver.save_batch_sequences(torch.utils.data.DataLoader(sampler, batch_size=4), 12)
    histories = 0
    for path in paths:
        pictures = saver.load_sequence_images(path)
        _, annotations = saver.load_sequence_data(path)
        for role in ("template", "search"):
            image, (x, y, w, h) = pictures[role][0], annotations[f"{role}_anno"][0]
            row, column = int(y + h / 2), int(x + w / 2)
            if 0 <= row < len(image) and 0 <= column < len(image):
                _, green, blue = (int(value) for value in image[row, column])
                assert green > 170
                assert blue < 80
        assert annotations["gt_sequence_anno_forward"][0] == pytest.approx(annotations["search_anno"][0], abs=1e-3)
        histories += sum(None not in box for box in annotations["gt_sequence_anno_backward"])
    assert histories


@pytest.mark.parametrize("pictures", ["crops", "raw"])
def test_the_command_and_the_saver_of_the_seed_write_the_same_bytes(
    lasot: Path, tmp_path: Path, pictures: Literal["crops", "raw"]
) -> None:
    text, save = f"lasot:{lasot}", SaveConfig(pictures=pictures, image_format="png", workers=0, timestamp=STAMP)
    roles = {
        role: RoleCrop(size=size[role], factor=factor[role], center_jitter=center[role], scale_jitter=scale[role])
        for factor, size, center, scale in [FACTORS]
        for role in ("template", "search")
    }
    draw = DrawConfig(max_gap=20, num_template=2, min_interval=STEPS, future_steps=FUTURE)
    report = save_sequences(
        SequenceConfig(
            output=tmp_path / "command", sources=(text,), num_sequences=8, seed=3, draw=draw,
            crops=CropConfig(**roles), save=save,
        )
    )  # fmt: skip
    assert report.done == 8
    processing = STARKProcessing(*FACTORS) if pictures == "crops" else Compose([ToTensor(), Normalize(MEAN, STD)])
    sampler = make([text], num_template_frames=2, seed=3, processing=processing)
    saver = SequenceSaver(tmp_path / "saver", timestamp=STAMP, image_format="png")
    saver.save_batch_sequences(torch.utils.data.DataLoader(sampler, batch_size=4), 8)

    def files(root: Path) -> dict[str, bytes]:
        found = [path for path in root.glob("seq_*/**/*") if path.is_file() and path.name != "provenance.json"]
        return {str(path.relative_to(root)): path.read_bytes() for path in found}

    left, right = files(tmp_path / "command"), files(tmp_path / "saver")
    assert left == right
    assert len(left) == 8 * 5
    assert any(b"null" in content for content in left.values()), "the frame without a box is in a history"


def test_identity_processing_ends(lasot: Path) -> None:
    assert make([f"lasot:{lasot}"])[0]["valid"] is True
    assert make([f"lasot:{lasot}"], processing=lambda data: {"mine": 1})[0] == {"mine": 1, "valid": True}


def test_refusals_are_counted_and_bounded(lasot: Path) -> None:
    seen = []

    def refuse_some(data: Mapping[str, Any]) -> Mapping[str, Any]:
        seen.append(data["key"])
        return {**data, "valid": len(seen) % 3 == 0}

    sampler = make([f"lasot:{lasot}"], processing=refuse_some)
    data = sampler[0]
    assert (data["retries"], len(set(seen))) == (2, 3)
    assert data["rejected"].count("valid = False") == 2
    assert sampler.rejections == {("lasot", "the processing says valid = False"): 2}
    seen.clear()
    assert_equal(sampler[0], data)

    never = make(
        [f"lasot:{lasot}"], processing=lambda data: {**data, "valid": False, "reason": "too dark"}, max_retries=4
    )
    with pytest.raises(BadData, match=r"sample 5: 5 draws.*lasot: cat-\d: too dark"):
        never[5]
    broken = make([Broken()], max_retries=2)
    with pytest.raises(BadData, match=r"3 draws.*mine: (first|second)"):
        broken[0]
    assert broken.rejections.total() == 3


def test_what_a_program_does_wrong_is_raised(lasot: Path) -> None:
    def wrong(data: Mapping[str, Any]) -> Mapping[str, Any]:
        raise KeyError("no such field")

    def stop(data: Mapping[str, Any]) -> Mapping[str, Any]:
        signal.raise_signal(signal.SIGINT)
        return data

    with pytest.raises(KeyError, match="no such field"):
        make([f"lasot:{lasot}"], processing=wrong)[0]
    with pytest.raises(KeyboardInterrupt):
        make([f"lasot:{lasot}"], processing=stop)[0]
    with pytest.raises(UsageError, match="expected it to give the fields"):
        make([f"lasot:{lasot}"], processing=lambda data: None)[0]


def test_original_datasets() -> None:
    videos, pictures = Original(), Original(frames=1, name="single")
    sampler = make([videos, pictures], p_datasets=[1, 1], samples_per_epoch=10)
    sources = {}
    for index in range(len(sampler)):
        data = sampler[index]
        sources[data["dataset"]] = data
        assert data["test_class"] == ("dog" if data["sequence"] == "second" else "")
        for mask, box in zip(data["search_masks"], data["search_anno"], strict=True):
            x, y, w, h = (int(value) for value in box)
            assert int(mask.sum()) == w * h == int(mask[y : y + h, x : x + w].sum())
    single = sources["single"]
    assert single["is_video_dataset"] is False
    assert single["gt_frame_ids_backward"] == [0] * STEPS
    assert single["gt_padded_backward"].tolist() == [True] * (STEPS - 1) + [False]
    assert single["gt_sequence_anno_forward"].shape == (1, FUTURE, 4)
    assert sources["mine"]["is_video_dataset"] is True


@pytest.mark.parametrize(
    ("datasets", "options", "message"),
    [
        ([], {}, "at least one source"),
        ("lasot:/nowhere", {}, "at least one source"),
        ([3], {}, "get_sequence_info"),
        ([type("Half", (), {"get_sequence_info": 1})()], {}, "get_frames"),
        ([Original()], {"p_datasets": [1, 2]}, "one per table"),
        ([Original()], {"frame_sample_mode": "backwards"}, "mode"),
        ([Original()], {"frame_sample_mode": "trident"}, "a list of numbers"),
        ([Original(frames=10)], {}, "fewer than 20 frames"),
        ([Original()], {"max_retries": -1}, "max_retries"),
        ([Original()], {"processing": None}, "processing"),
    ],
)
def test_wrong_arguments(datasets: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(datasets, **options)


def test_negatives_have_a_label(lasot: Path) -> None:
    sampler = make([f"lasot:{lasot}"], frame_sample_mode="trident", max_gap=[20, 20], train_cls=True, pos_prob=0.5)
    labels = []
    for index in range(len(sampler)):
        data = sampler[index]
        assert len(data["template_images"]) == 3
        labels.append(float(data["label"]))
        hidden_one = data["sequence"] == "cat-1" and data["search_frame_ids"] == [HIDDEN]
        assert data["search_visible"].tolist() == [not hidden_one]
    assert set(labels) == {0.0, 1.0}


def test_compose_to_tensor_normalize(lasot: Path) -> None:
    plain = make([f"lasot:{lasot}"])[2]
    data = make([f"lasot:{lasot}"], processing=Compose([ToTensor(), Normalize(mean=MEAN, std=STD)]))[2]
    for role in ("template", "search"):
        image = data[f"{role}_images"][0]
        assert image.shape == (3, *SIZE_HW)
        assert image.dtype == torch.float32
        undone = (image.numpy().transpose(1, 2, 0) * STD + MEAN) * 255
        np.testing.assert_allclose(undone, plain[f"{role}_images"][0], atol=1e-3)
    assert (data["image_mean"], data["image_std"]) == (MEAN, STD)
    with pytest.raises(UsageError, match="normalised already"):
        Normalize(MEAN, STD)(data)
    with pytest.raises(UsageError, match="ToTensor"):
        Normalize(MEAN, STD)(plain)
    with pytest.raises(UsageError, match="uint8"):
        ToTensor()(data)
    ended = Compose([lambda data: {**data, "valid": False}, Normalize(MEAN, STD)])({})
    assert ended == {"valid": False}


@pytest.mark.parametrize("kind", [STARKProcessing, TIMProcessing])
def test_crops(lasot: Path, kind: type[STARKProcessing]) -> None:
    sampler = make([f"lasot:{lasot}"], processing=kind(*FACTORS))
    flips = set()
    for index in range(len(sampler)):
        data = sampler[index]
        assert data["template_images"].shape == (1, 3, 32, 32)
        assert data["search_images"].shape == (1, 3, 64, 64)
        assert data["search_images"].dtype == data["search_masks"].dtype == torch.float32
        assert data["search_att"].dtype == torch.bool
        assert data["search_att"].shape == data["search_masks"].shape == (1, 64, 64)
        assert data["search_anno"].shape == (1, 4)
        assert data["gt_sequence_anno_backward"].shape == (1, STEPS, 4)
        assert not torch.isnan(data["gt_sequence_anno_backward"]).any()
        first = data["gt_sequence_anno_forward"][0, 0].numpy().astype(float)
        if kind is TIMProcessing:
            assert float(data["gt_sequence_anno_backward"].max()) <= 1
            first = first * np.array([*SIZE_HW[::-1]] * 2)
        x, y, w, h = box_at(data["search_frame_ids"][0])
        expected = [SIZE_HW[1] - x - w if data["joint_flip"] else x, y, w, h]
        np.testing.assert_allclose(first, expected, atol=1e-3)
        flips.add(data["joint_flip"])
        assert_equal(sampler[index], data)
    assert flips == {False, True}


def test_crops_of_changed_pictures(lasot: Path) -> None:
    def darken(data: Any) -> Any:
        data["search_images"] = [image // 2 for image in data["search_images"]]
        return data

    still = {"brightness": 0.0, "gray_prob": 0.0}
    plain = make([f"lasot:{lasot}"], processing=tim(**still))[1]["search_images"]
    darkened = make([f"lasot:{lasot}"], processing=Compose([darken, tim(**still)]))[1]["search_images"]
    assert float((plain - darkened).max()) > 1


def test_a_crop_that_cannot_be_made_is_a_refusal(lasot: Path) -> None:
    def outside(data: Any) -> Any:
        data["search_anno"] = [torch.tensor([500.0, 500.0, 10.0, 10.0])]
        return data

    sampler = make([f"lasot:{lasot}"], processing=Compose([outside, tim()]), max_retries=1)
    with pytest.raises(BadData, match=r"lasot: cat-\d: search .*500 500|lasot: cat-\d: search .*500, 500"):
        sampler[0]
    assert sampler.rejections.total() == 2


def test_processing_arguments(lasot: Path) -> None:
    with pytest.raises(UsageError, match=r"joint_transform.*flip_prob"):
        tim(joint_transform=None)
    with pytest.raises(UsageError, match="mode"):
        tim(mode="triple")
    with pytest.raises(UsageError, match="TimingTrackingSampler"):
        tim()({})  # type: ignore[arg-type]  # what is refused
    pair = make([f"lasot:{lasot}"], processing=tim(mode="pair"))[0]
    assert pair["search_images"].shape == (3, 64, 64)
    assert pair["search_anno"].shape == (4,)


def test_tensor_dict() -> None:
    data = TensorDict(
        a=torch.ones(2), b=[torch.zeros(1), "text"], c={"d": torch.ones(1)}, e=TensorDict(f=torch.ones(1))
    )
    half = data.half()
    assert type(half) is TensorDict
    assert half["a"].dtype == half["b"][0].dtype == half["c"]["d"].dtype == half["e"]["f"].dtype == torch.float16
    assert half["b"][1] == "text"
    assert data["a"].dtype == torch.float32
    assert type(data.copy()) is TensorDict
    assert data.concat(TensorDict(a=1))["a"] == 1
    assert pickle.loads(pickle.dumps(data)).keys() == data.keys()
    with pytest.raises(AttributeError, match="no_such_method"):
        data.no_such_method()


@pytest.mark.parametrize("script", ["simple", "real", "example"])
def test_scripts(script: Any, lasot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", f"lasot:{lasot}", "--num_sequences", "3", "--save-dir", str(tmp_path)]
    assert main(script, [*arguments, "--timestamp", "20241201_143022"]) == 0
    assert "saved 3 of 3 sequences" in capsys.readouterr().out
    folders = sorted(path.name for path in tmp_path.glob("seq_0*"))
    assert folders == [f"seq_{number:06d}_20241201_143022" for number in (1, 2, 3)]
    assert len((tmp_path / "saved_paths_20241201_143022.txt").read_text().splitlines()) >= 3
    side = SIZE_HW if script == "simple" else (256, 256)
    image = decode_picture((tmp_path / folders[0] / "images/search/search_000.jpg").read_bytes())
    assert image.shape[:2] == side
    annotations = json.loads((tmp_path / folders[0] / "annotations.json").read_bytes())
    assert len(annotations["gt_sequence_anno_backward"]) == 80


def test_scripts_without_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PENSTOCK_LASOT_DIR", raising=False)
    assert main("simple", []) == 2
    assert "PENSTOCK_LASOT_DIR" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "lib/train/admin").mkdir(parents=True)
    (tmp_path / "lib/train/admin/local.py").write_text("raise SystemExit('never run')")
    assert main("real", []) == 2
    assert "penstock settings import lib/train/admin/local.py" in capsys.readouterr().err


def test_scripts_take_the_settings(lasot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_LASOT_DIR", str(lasot))
    assert main("simple", ["--num-sequences", "1"]) == 0
    monkeypatch.delenv("PENSTOCK_LASOT_DIR")
    (tmp_path / "mine.toml").write_text(f'[paths]\nlasot_dir = "{lasot}"\n')
    assert main("simple", ["--num-sequences", "1", "--settings", "mine.toml", "--save-dir", "other"]) == 0
    assert len(list(tmp_path.glob("*/seq_000001_*"))) == 2
    with pytest.raises(UsageError, match="the sampler has 12"):
        save_sequences_from_sampler(make([f"lasot:{lasot}"]), 13, tmp_path)


def assert_equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Equal fields, bit by bit but for the key that says which retry it was; NaN equals NaN."""
    assert left.keys() == right.keys()
    for name in left:
        if name in ("key", "seed"):
            assert left[name] == right[name]
            continue
        one, other = left[name], right[name]
        for a, b in zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)
