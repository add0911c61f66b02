"""BinaryDistillDataset: the seed's keys, values that are right, its errors, and DataLoaders of every kind."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.errors import PenstockError, SchemaError, StoreUnsupported, UsageError
from penstock.geometry.boxes import xyxy_to_xywh
from penstock.testing import Truth, make_sample, write_tar

torch = pytest.importorskip("torch", reason="BinaryDistillDataset needs torch")

from penstock.compat import BinaryDistillDataset, collate_distill  # noqa: E402  # only where torch is
from penstock.compat.distill_script import ScriptFlags, main  # noqa: E402
from penstock.train.distill_config import DistillConfig  # noqa: E402

SIZE_HW = (512, 1024)
NUM_BOXES = (1, 0, 3)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Truth]]:
    path = tmp_path_factory.mktemp("shard") / "sa1b_shard_00000.tar"
    members, truths = [], []
    for number, num_boxes in enumerate(NUM_BOXES):
        picture, npz, truth = make_sample(number, size_hw=SIZE_HW, num_boxes=num_boxes, picture="png")
        members += [(f"sa_{number}.png", picture), (f"sa_{number}_features.npz", npz)]
        truths.append(truth)
    write_tar(path, members)
    return path, truths


@pytest.fixture(scope="module")
def made(shard: tuple[Path, list[Truth]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same three rows as a v1 directory, a store, and a store that is as unlike v1 as can be."""
    root = tmp_path_factory.mktemp("sets")
    plain = ConvertConfig(tar_path=(str(shard[0]),), output_dir=root, workers=0, durability="process")
    configs = {
        "v1": replace(plain, layout="v1", output_dir=root / "v1"),
        "store": replace(plain, output_dir=root / "store"),
        "lossy": replace(plain, output_dir=root / "lossy", image_codec="jpeg", feature_dtype="float16", part_rows=2),
    }
    for config in configs.values():
        assert convert_sa1b_tar(config).exit_code == 0
    return {name: config.output_dir for name, config in configs.items()}


@pytest.fixture
def v1(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made["v1"], tmp_path / "v1"))


def foreign(v1: Path, *, empty_masks: bool = False) -> Path:
    """The directory as the original converter writes it: boxes XYWH, no marker, nothing of ours beside it."""
    config = json.loads((v1 / "config.json").read_bytes())
    ours = {"bbox_format", "bbox_frame", "derived_fields"}
    (v1 / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name not in ours}))
    boxes = np.fromfile(v1 / "bboxes.bin", "<f4").reshape(-1, 4)
    xyxy_to_xywh(boxes).astype("<f4").tofile(v1 / "bboxes.bin")
    shutil.rmtree(v1 / ".penstock")
    if empty_masks:
        (v1 / "masks.bin").write_bytes(bytes((v1 / "masks.bin").stat().st_size))
    return v1


@pytest.mark.parametrize("kind", ["v1", "store", "lossy"])
def test_values_are_those_of_the_input(made: dict[str, Path], shard: tuple[Path, list[Truth]], kind: str) -> None:
    dataset = BinaryDistillDataset(made[kind])
    assert len(dataset) == len(NUM_BOXES)
    for truth, item in zip(shard[1], [dataset[index] for index in range(len(dataset))], strict=True):
        fields: dict[str, np.ndarray] = truth["fields"]  # type: ignore[assignment]  # as its docstring says
        kept = len(truth["boxes_xyxy"][:1] if kind == "v1" else truth["boxes_xyxy"])  # type: ignore[index,arg-type]
        tolerance = {"atol": 5e-4, "rtol": 0} if kind == "lossy" else {"atol": 0, "rtol": 0}
        np.testing.assert_allclose(item["teacher_features"], fields["P4_S16"][0], **tolerance)
        difference = np.abs(item["image"].permute(1, 2, 0).numpy().astype(int) - truth["picture"])
        assert difference.mean() < (2 if kind == "lossy" else 1e-9)
        np.testing.assert_array_equal(item["edge_256x256"], fields["edge_256x256"])
        np.testing.assert_array_equal(item["fg_map"][0], fields["fg_map_64x64"])
        np.testing.assert_array_equal(item["bg_map"][0], fields["bg_map_64x64"])
        np.testing.assert_array_equal(item["box_prompts_xyxy"], truth["boxes_xyxy"][:kept])
        masks = np.asarray(truth["masks"])[:kept].reshape(kept, 256, 2, 256, 4).mean(axis=(2, 4)) > 0.5
        np.testing.assert_array_equal(item["box_prompts_masks_orig"], masks)
        assert masks.any(axis=(1, 2)).all()
        assert item["box_prompts_count"] == kept
        assert item["box_prompts_flag"] == int(kept > 0)
        assert item["has_bbox"] is (kept > 0)
        assert item["num_bboxes"] == len(truth["boxes_xyxy"])
        assert item["image_shape"].tolist() == [*SIZE_HW, 3]
        assert item["image_id"] == truth["key"]


def test_boxes_in_input_pixels_lie_on_the_stretched_mask(made: dict[str, Path]) -> None:
    item = BinaryDistillDataset(made["store"])[2]
    scale = torch.tensor([1024 / SIZE_HW[1], 1024 / SIZE_HW[0]] * 2)
    torch.testing.assert_close(item["box_prompts_xyxy_input"], item["box_prompts_xyxy"] * scale, rtol=0, atol=0)
    for box, mask in zip(item["box_prompts_xyxy_input"], item["box_prompts_masks_orig"], strict=True):
        rows, columns = (torch.nonzero(mask.any(dim=dim)).flatten() for dim in (1, 0))
        tight = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * 4  # 256 cells over 1024 pixels
        assert (box - tight).abs().max() <= 8


def test_edge_map_is_the_average_or_the_stored_one(made: dict[str, Path], shard: tuple[Path, list[Truth]]) -> None:
    averaged, stored = BinaryDistillDataset(made["v1"])[0], BinaryDistillDataset(made["v1"], edge_map="stored")[0]
    expected = torch.nn.functional.interpolate(averaged["edge_256x256"][None, None], size=(64, 64), mode="area")[0]
    assert torch.equal(averaged["edge_map"], expected)
    assert torch.equal(stored["edge_map"][0], torch.from_numpy(shard[1][0]["fields"]["edge_64x64"]).float())
    assert not torch.equal(averaged["edge_map"], stored["edge_map"])
    assert stored["edge_map"].shape == averaged["edge_map"].shape == (1, 64, 64)
    with pytest.raises(UsageError, match="edge_map: expected 'averaged' or 'stored', got 'both'"):
        BinaryDistillDataset(made["v1"], edge_map="both")


def test_boxes_without_the_marker_are_taken_as_xywh(v1: Path, made: dict[str, Path]) -> None:
    ours, theirs = BinaryDistillDataset(made["v1"]), BinaryDistillDataset(foreign(v1))
    for index in range(len(ours)):
        for name, value in ours[index].items():
            other = theirs[index][name]
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else np.array_equal(value, other)
            assert same, name


def test_empty_masks_of_the_original_converter_are_told(
    v1: Path, made: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    BinaryDistillDataset(made["v1"], verbose=False)
    assert not caplog.records
    BinaryDistillDataset(foreign(v1, empty_masks=True), verbose=False)
    assert "masks of all 2 rows with a box that were looked at are empty" in caplog.text
    assert "penstock repair" in caplog.text


def test_verbose_logs_a_summary(made: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "penstock.compat"):
        BinaryDistillDataset(made["v1"], verbose=False)
        assert not caplog.records
        BinaryDistillDataset(made["v1"])
    assert "3 rows, pictures of 1024 x 1024, boxes XYXY" in caplog.text


@pytest.mark.parametrize("kind", ["v1", "lossy"])
def test_index_from_the_end_and_outside(made: dict[str, Path], kind: str) -> None:
    dataset = BinaryDistillDataset(made[kind])
    assert dataset[-1]["image_id"] == dataset[np.int64(2)]["image_id"] == "sa_2"
    for index in (3, -4):
        with pytest.raises(IndexError):
            dataset[index]
    assert [item["image_id"] for item in dataset] == ["sa_0", "sa_1", "sa_2"]


@pytest.mark.parametrize(("method", "kind"), [("fork", "v1"), ("fork", "lossy"), ("spawn", "v1")])
def test_dataloader_workers_give_what_one_process_gives(made: dict[str, Path], method: str, kind: str) -> None:
    dataset = BinaryDistillDataset(made[kind])
    dataset[0]  # files opened before the fork: offsets of the original's handles were shared then
    options = {"batch_size": 2, "collate_fn": collate_distill, "multiprocessing_context": method}
    loaded = list(torch.utils.data.DataLoader(dataset, num_workers=2, **options))
    for number, batch in enumerate(loaded):
        expected = collate_distill([dataset[index] for index in range(number * 2, min(3, number * 2 + 2))])
        assert_same_batch(batch, expected)
    assert len(loaded) == 2


def test_pickled_copy_reads_the_same(made: dict[str, Path]) -> None:
    for path in made.values():
        dataset = BinaryDistillDataset(path)
        item = dataset[1]
        copy = pickle.loads(pickle.dumps(dataset))
        assert_same_batch(collate_distill([copy[1]]), collate_distill([item]))


def test_collate_keeps_ragged_keys_as_lists(made: dict[str, Path]) -> None:
    batch = collate_distill(BinaryDistillDataset(made["store"]).__getitems__([0, 1, 2]))
    assert batch["image"].shape == (3, 3, 1024, 1024)
    assert batch["teacher_features"].shape == (3, 256, 64, 64)
    assert batch["edge_map"].shape == (3, 1, 64, 64)
    assert batch["image_shape"].tolist() == [[*SIZE_HW, 3]] * 3
    assert batch["image_shape"].dtype == torch.int32
    assert [tuple(boxes.shape) for boxes in batch["box_prompts_xyxy"]] == [(1, 4), (0, 4), (3, 4)]
    assert [tuple(boxes.shape) for boxes in batch["box_prompts_xyxy_input"]] == [(1, 4), (0, 4), (3, 4)]
    assert [len(masks) for masks in batch["box_prompts_masks_orig"]] == list(NUM_BOXES)
    assert batch["box_prompts_meta"] == [[], [], []]
    assert batch["box_prompts_count"].tolist() == list(NUM_BOXES)
    assert batch["has_bbox"].tolist() == [True, False, True]
    assert batch["image_id"] == ["sa_0", "sa_1", "sa_2"]


def test_items_own_their_memory(made: dict[str, Path]) -> None:
    dataset = BinaryDistillDataset(made["v1"])
    for value in dataset[0].values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    assert dataset[0]["image"].any()
    assert dataset[0]["box_prompts_masks_orig"].any()


def test_rows_that_failed_are_left_out(
    shard: tuple[Path, list[Truth]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.tar"
    picture, npz, _ = make_sample(9, picture="png", picture_size=64)
    write_tar(bad, [("sa_8.png", picture[:50]), ("sa_8_features.npz", npz)])
    tars = (str(bad), str(shard[0]))
    config = ConvertConfig(
        tar_path=tars, output_dir=tmp_path / "set", workers=0, durability="process", max_failures="1"
    )
    convert_sa1b_tar(config)
    dataset = BinaryDistillDataset(tmp_path / "set")
    assert [item["image_id"] for item in dataset] == ["sa_0", "sa_1", "sa_2"]
    assert "1 of 4 rows failed or are missing" in caplog.text


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^Config not found at {tmp_path}/config.json") as caught:
        BinaryDistillDataset(tmp_path)
    assert isinstance(caught.value, PenstockError)


def test_no_samples(v1: Path) -> None:
    edit_config(v1, total_samples=0)
    with pytest.raises(ValueError, match=r"^Config reports 0 samples"):
        BinaryDistillDataset(v1)


def test_file_is_not_there(v1: Path) -> None:
    (v1 / "masks.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"^Required file not found: .*masks\.bin"):
        BinaryDistillDataset(v1)


@pytest.mark.parametrize(
    ("name", "record", "spoken"),
    [
        ("images", 3_145_728, "image"),
        ("features", 5_242_880, "features"),
        ("edge_maps", 70_656, "edge maps"),
        ("weight_maps", 172_032, "weight maps"),
        ("bboxes", 16, "bbox"),
        ("masks", 65_536, "mask"),
        ("metadata", 20, "metadata"),
    ],
)
def test_torn_file_is_told_with_index_and_bytes(v1: Path, name: str, record: int, spoken: str) -> None:
    opened = BinaryDistillDataset(v1)
    os.truncate(v1 / f"{name}.bin", record + 7)
    text = rf"^Failed to read {spoken} at index 1: expected {record} bytes, got 7"
    with pytest.raises(OSError, match=text):
        opened[1]
    assert opened[0]["image_id"] == "sa_0"
    os.truncate(v1 / f"{name}.bin", record * 2)
    with pytest.raises(OSError, match=rf"^Failed to read {spoken} at index 2: expected {record} bytes, got 0"):
        opened[-1]
    with pytest.raises(OSError, match=rf"^Failed to read {spoken} at index 2: expected {record} bytes, got 0"):
        BinaryDistillDataset(v1)


def test_torn_part_of_a_store_is_told_with_the_row_of_the_store(made: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(made["lossy"], tmp_path / "store"))
    dataset = BinaryDistillDataset(path)
    features = sorted(path.glob("*/P4_S16.bin"))[-1]
    os.truncate(features, 100)
    with pytest.raises(OSError, match=r"^Failed to read P4_S16 at index 2: expected 2097152 bytes, got 100"):
        dataset[2]
    assert dataset[1]["image_id"] == "sa_1"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda path: edit_config(path, image_size=640), r"\(1024, 1024, 3\) for image, got \(640, 640, 3\)"),
        (
            lambda path: edit_config(path, sample_sizes={"features_bytes": 4_194_304}),
            r"\(256, 64, 64\) for P4_S16.*features_bytes = 4194304",
        ),
    ],
)
def test_config_of_other_sizes(v1: Path, edit: Callable[[Path], None], text: str) -> None:
    edit(v1)
    with pytest.raises(RuntimeError, match=rf"^Expected tensor of shape {text}"):
        BinaryDistillDataset(v1)


def test_boxes_of_an_unknown_format_are_refused(v1: Path) -> None:
    edit_config(v1, bbox_format="cxcywh")
    with pytest.raises(
        StoreUnsupported, match="expected bbox_format xyxy or xywh in the frame 'original', got 'cxcywh'"
    ):
        BinaryDistillDataset(v1)


def test_box_without_an_original_size(v1: Path) -> None:
    metadata = np.fromfile(v1 / "metadata.bin", "<i4").reshape(-1, 5)
    metadata[2, 2:4] = 0
    metadata.tofile(v1 / "metadata.bin")
    with pytest.raises(ValueError, match=r"row 2 \(sa_2\): image_shape: expected positive sides, got 0 x 0"):
        BinaryDistillDataset(v1)[2]


@pytest.mark.parametrize("kind", ["v1", "store", "lossy"])
def test_another_input_size_is_refused(made: dict[str, Path], kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"^Expected tensor of shape \(640, 640, 3\) for image.*input_size=1024"):
        BinaryDistillDataset(made[kind], input_size=640)


def test_other_input_size_of_a_store(shard: tuple[Path, list[Truth]], tmp_path: Path) -> None:
    config = ConvertConfig(
        tar_path=(str(shard[0]),), output_dir=tmp_path / "small", workers=0, durability="process", image_size=320
    )
    convert_sa1b_tar(config)
    item = BinaryDistillDataset(tmp_path / "small", input_size=320)[0]
    assert item["image"].shape == (3, 320, 320)
    scale = torch.tensor([320 / SIZE_HW[1], 320 / SIZE_HW[0]] * 2)
    torch.testing.assert_close(item["box_prompts_xyxy_input"], item["box_prompts_xyxy"] * scale)


def test_store_without_a_field_says_which(shard: tuple[Path, list[Truth]], tmp_path: Path) -> None:
    fields = ("image", "P4_S16", "bboxes", "masks", "image_shape")
    config = ConvertConfig(
        tar_path=(str(shard[0]),), output_dir=tmp_path / "few", workers=0, durability="process", fields=fields
    )
    convert_sa1b_tar(config)
    with pytest.raises(SchemaError, match="no field edge_256x256, fg_map_64x64, bg_map_64x64"):
        BinaryDistillDataset(tmp_path / "few")


def test_import_loads_no_torch_and_a_missing_one_names_the_extra() -> None:
    script = """
import sys
import penstock.compat
assert "torch" not in sys.modules and "numpy" not in sys.modules
sys.modules["torch"] = None
try:
    penstock.compat.BinaryDistillDataset
except ImportError as error:
    assert type(error).__name__ == "MissingExtra", error
    assert "penstock[train]" in str(error), error
else:
    raise SystemExit("no error without torch")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=500)


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def assert_same_batch(left: dict[str, object], right: dict[str, object]) -> None:
    assert list(left) == list(right)
    for name, value in left.items():
        other = right[name]
        assert type(value) is type(other), name
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif value and isinstance(value[0], torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(value, other, strict=True)), name
        else:
            assert value == other, name


def test_the_script_takes_what_has_no_effect_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    plain = ScriptFlags(data_format="binary").to_config()
    assert not caplog.text
    flags = ScriptFlags(data_format="binary", fgd_alpha_fg=0.01, mask_weight=2.0, edge_weight=0.0, use_pos_weight=True)
    assert flags.to_config() == replace(plain, edge_weight=0.0)
    for flag, other in (("fgd-alpha-fg", "loss_type='mse'"), ("mask-weight", "enable_mask_loss=False")):
        assert f"penstock: --{flag} has no effect with {other}" in caplog.text
    assert len(caplog.records) == 3
    with pytest.raises(UsageError, match=r"fgd_alpha_fg: .*no effect with loss_type='mse'"):
        DistillConfig(fgd_alpha_fg=0.01)


def test_the_script_takes_no_fraction_for_a_whole_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch_size", "1.5"]) == 2
    assert "--batch-size: expected a whole number, got 1.5" in capsys.readouterr().err
