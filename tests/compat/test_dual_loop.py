"""The seed's dual loop: its datasets, its collate function, its loop, its scripts."""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from penstock.compat import (  # noqa: E402
    SAVDatasetWrapper,
    build_datasets,
    build_mask_caption_dataset,
    collate_fn_mask_caption,
    train_epoch,
)
from penstock.compat.dual_loop import lines, main  # noqa: E402
from penstock.errors import NotFinite, SourceNotFound, UsageError  # noqa: E402
from penstock.models.captioners import open_cycle  # noqa: E402
from penstock.readers.masklets import Masklets  # noqa: E402
from penstock.train.dual_loop import DualLoop, DualLoopSettings  # noqa: E402
from tests.train.dual_loop_data import write_all, write_pairs  # noqa: E402

COMPAT = Path(__file__).parents[2] / "compat"
PACKAGE = "projects/llava_sam2/mask_caption_sft"
SIZE = (32, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_all(tmp_path_factory.mktemp("data"))


def test_a_pair_has_both_frames_in_rgb(folders: dict[str, str]) -> None:
    dataset = SAVDatasetWrapper(folders["sav_dir"], SIZE)
    assert len(dataset) == 12
    reader = Masklets(folders["sav_dir"])
    seen = set()
    for index in range(len(dataset)):
        item = dataset[index]
        for view in "12":
            assert (item[f"image{view}"].shape, item[f"image{view}"].dtype) == ((3, 32, 32), torch.float32)
            assert 0 <= item[f"image{view}"].min() <= item[f"image{view}"].max() <= 1
            assert set(item[f"mask{view}"].unique().tolist()) == {0.0, 1.0}
        assert item["has_paired_frame"]
        assert item["dataset_type"] == "sav"
        assert item["caption"] is None
        key = str(dataset.mixed[index]["key1"])
        row = list(reader.keys).index(key)
        inside = np.asarray(reader[row]["image"])[np.asarray(reader[row]["mask"]) > 0].mean(axis=0) / 255
        ours = item["image1"][:, item["mask1"] > 0].mean(dim=1).numpy()
        assert np.abs(ours - inside).max() < 0.1, "RGB, of that row"
        seen.add(key)
    assert len(seen) == 12
    assert torch.equal(dataset[-1]["image1"], dataset[11]["image1"])
    with pytest.raises(IndexError):
        dataset[12]


def test_a_torn_file_is_replaced_by_another_one_the_same_every_time(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "npz", 6)
    for number in (2, 3):
        (root / f"masklet_data_{number:05d}.npz").write_bytes(b"torn")
    dataset, again = SAVDatasetWrapper(str(root), SIZE), SAVDatasetWrapper(str(root), SIZE)
    assert len(dataset) == 6
    for index in range(6):
        assert torch.equal(dataset[index]["image2"], again[index]["image2"])


def test_limits_and_settings_of_the_wrapper(folders: dict[str, str]) -> None:
    assert len(SAVDatasetWrapper(folders["sav_dir"], SIZE, max_samples=5)) == 5
    shuffled = SAVDatasetWrapper(folders["sav_dir"], SIZE, shuffle=True)
    plain = SAVDatasetWrapper(folders["sav_dir"], SIZE)
    order = [[str(one.mixed[index]["key1"]) for index in range(12)] for one in (plain, shuffled)]
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1])
    with pytest.raises(UsageError, match="prefix"):
        SAVDatasetWrapper(folders["sav_dir"], SIZE, prefix="frames")
    with pytest.raises(UsageError, match="equal"):
        SAVDatasetWrapper(folders["sav_dir"], (32, 64))
    with pytest.raises(SourceNotFound):
        SAVDatasetWrapper(folders["sa1b_dir"], SIZE)


def test_all_datasets_in_one_and_the_seeds_lines(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    csv = Path(folders["openimage_dir"], "annotations", "train-annotations-object-segmentation.csv")
    dataset = build_mask_caption_dataset(
        sav_dir=folders["sav_dir"], sa1b_dir=folders["sa1b_dir"], target_size=SIZE,
        openimage_config={"annotation_csv": str(csv.parents[1] / csv.name)},
        refcoco_config={"data_root": folders["refcoco_dir"], "split": "train", "dataset_name": "refcoco"},
        sa1b_max_samples=1, sav_repeats=2,
    )  # fmt: skip
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"Loading SAV dataset from {folders['sav_dir']}", "\u627e\u5230 12 \u4e2aNPZ\u6587\u4ef6"]
    assert shown[-1] == "\u2713 Dataset built: 37 total samples"
    assert len(dataset) == 24 + 3 + 4 + 6
    items = [dataset[index] for index in range(len(dataset))]
    kinds = [item["dataset_type"] for item in items]
    assert {name: kinds.count(name) for name in kinds} == {"sav": 24, "sa1b": 3, "openimage": 4, "refcoco": 6}
    for item in items:
        assert item["has_paired_frame"] == (item["dataset_type"] == "sav") == (item["image2"] is not None)
        assert (item["mask2"] is None) == (item["image2"] is None)
        assert (item["caption"] is not None) == (item["dataset_type"] == "refcoco")


def test_arguments_of_the_script_name_the_datasets(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    args = Namespace(**{**folders, "openimage_dir": "./data/openimages"}, sa1b_max_samples=2, size=32, lora_r=128)
    assert len(build_datasets(args)) == 12 + 6 + 6
    warning = "Warning: OpenImage directory not found: ./data/openimages, skipping OpenImage dataset"
    assert warning in capsys.readouterr().out.splitlines()
    with pytest.raises(UsageError, match="a dataset at least"):
        build_datasets(Namespace())


def items_of(folders: Mapping[str, str], *names: str) -> list[dict[str, Any]]:
    dataset = build_datasets(Namespace(**{name: folders[name] for name in names}, size=32))
    return [dataset[index] for index in range(len(dataset))]


def test_image2_is_none_only_where_no_sample_has_a_second_frame(folders: dict[str, str]) -> None:
    pairs, lone = items_of(folders, "sav_dir")[:2], items_of(folders, "refcoco_dir")[:2]
    batch = collate_fn_mask_caption(lone)
    assert batch is not None
    assert batch["image2"] is None
    assert batch["mask2"] is None
    assert batch["captions"] == [one["caption"] for one in lone]
    mixed = collate_fn_mask_caption([pairs[0], lone[0], None, pairs[1]])
    assert mixed is not None
    assert mixed["image1"].shape == mixed["image2"].shape == (3, 3, 32, 32)
    assert mixed["has_paired_frame"].tolist() == [True, False, True]
    assert torch.equal(mixed["image2"][1], lone[0]["image1"])
    assert torch.equal(mixed["mask2"][1], lone[0]["mask1"])
    assert torch.equal(mixed["image2"][2], pairs[1]["image2"])
    assert not torch.equal(mixed["image2"][0], mixed["image1"][0])
    assert mixed["dataset_types"] == ["sav", "refcoco", "sav"]
    assert collate_fn_mask_caption([None]) is None


def test_batches_come_through_workers(folders: dict[str, str]) -> None:
    dataset = build_datasets(Namespace(sav_dir=folders["sav_dir"], size=16))
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=4, num_workers=1, collate_fn=collate_fn_mask_caption, multiprocessing_context="spawn"
    )
    assert [batch["image1"].shape[0] for batch in loader] == [4, 4, 4]


def test_the_loop_learns_from_the_second_frame(folders: dict[str, str]) -> None:
    """The seed's bug: with other second frames the weights must become others."""
    batch = collate_fn_mask_caption(items_of(folders, "sav_dir")[:4])
    assert batch is not None
    other = {**batch, "mask2": batch["mask2"].flip(2), "image2": batch["image2"].flip(3)}
    ends = []
    for one in (batch, batch, other):
        model = open_cycle(seed=1).model
        torch.manual_seed(0)
        losses = train_epoch(model, [one, None, one], torch.optim.SGD(model.parameters(), lr=0.1))
        assert set(losses) == {"loss", "mask_loss", "dice_loss", "llm_loss"}
        ends.append(torch.cat([value.detach().flatten() for value in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.allclose(ends[0], ends[2])


def test_a_step_is_the_mean_of_its_batches_also_the_last_one(folders: dict[str, str]) -> None:
    batches = [collate_fn_mask_caption([item]) for item in items_of(folders, "sa1b_dir")[:3]]
    steps: list[float] = []
    model = open_cycle(seed=1).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_post_hook(lambda *_: steps.append(1.0))
    torch.manual_seed(0)
    found = train_epoch(model, batches, optimizer, gradient_accumulation_steps=2, max_grad_norm=1e9)
    assert len(steps) == 2
    torch.manual_seed(0)
    loop = DualLoop(DualLoopSettings()).use(model)
    expected = []
    for batch in batches:
        assert batch is not None
        views = (batch["image1"], batch["mask1"], batch["image1"], batch["mask1"])
        expected.append(float(loop.dual_loop_step(*views)["loss"].detach()))
    assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    with pytest.raises(UsageError, match="no batch"):
        train_epoch(model, [None], optimizer)


def test_a_gradient_that_is_not_finite_leaves_the_weights(folders: dict[str, str]) -> None:
    batches = [collate_fn_mask_caption([item]) for item in items_of(folders, "sa1b_dir")[:3]]
    assert batches[2] is not None
    batches[2]["image1"] = batches[2]["image1"] * float("nan")
    model = open_cycle(seed=1).model
    with pytest.raises(NotFinite, match="train_epoch: batch 3"):
        train_epoch(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), gradient_accumulation_steps=1)
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_the_script_prints_the_seeds_log(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**folders, "openimage_dir": "./data/openimages"}
    flags = [word for name, folder in given.items() for word in (f"--{name}", folder)]
    more = ["--sa1b_max_samples", "500", "--size", "16", "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    assert main([*flags, *more, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:9] == [
        f"Loading SAV dataset from {folders['sav_dir']}",
        "\u627e\u5230 12 \u4e2aNPZ\u6587\u4ef6",
        f"Loading SA-1B dataset from {folders['sa1b_dir']} (max_samples=500)",
        "Loading RefCOCO dataset",
        "Warning: OpenImage directory not found: ./data/openimages, skipping OpenImage dataset",
        "Total datasets: 3",
        "  Dataset 0: 12 samples",
        "  Dataset 1: 9 samples",
        "  Dataset 2: 6 samples",
    ]
    assert shown[9] == "\u2713 Dataset built: 27 total samples"
    assert main(["--no-such-flag"]) == 2
    assert main(["--sav_dir", str(tmp_path / "nowhere")]) == 2


def test_the_seeds_words_are_of_the_documents_form() -> None:
    assert lines().found.format(files=735577) == "\u627e\u5230 735577 \u4e2aNPZ\u6587\u4ef6"
    assert lines().built.format(samples=803899) == "\u2713 Dataset built: 803899 total samples"


def shell(script: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("SAV_DIR", "SA1B_DIR")}
    return subprocess.run(
        ["bash", str(COMPAT / script), *flags],
        capture_output=True, text=True, timeout=500, env={**environment, "PYTHON": sys.executable, **variables},
    )  # fmt: skip


def test_the_quick_script_is_its_recipe(folders: dict[str, str], tmp_path: Path) -> None:
    variables = {name.upper(): folder for name, folder in folders.items()}
    done = shell("test_dual_loop.sh", "--size", "16", "--max_steps", "1", "--device", "cpu",
                 **variables, OUTPUT_DIR=str(tmp_path / "out"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(max_samples=500)" in done.stdout
    assert ", 4 a step" in done.stdout
    assert (tmp_path / "out/step_000000001.pt").exists()


def test_the_full_script_starts_a_process_for_each_gpu(folders: dict[str, str], tmp_path: Path) -> None:
    variables = {name.upper(): folder for name, folder in folders.items()}
    flags = ["--size", "16", "--max_steps", "1", "--device", "cpu", "--eval-share", "0"]
    done = shell("run_dual_loop_full.sh", *flags, NUM_GPUS="2", **variables, OUTPUT_DIR=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert ", 16 a step" in done.stdout  # 2 x 4 x 2
    assert done.stdout.count("Total datasets: 4") == 1
    assert "max_samples" not in done.stdout


@pytest.mark.parametrize("script", ["test_dual_loop.sh", "run_dual_loop_full.sh"])
def test_a_script_that_fails_says_so_by_its_code(script: str, tmp_path: Path) -> None:
    done = shell(script, "--sav_dir", str(tmp_path / "nowhere"), NUM_GPUS="1")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def test_the_seeds_imports_run() -> None:
    names = "SAVDatasetWrapper, build_mask_caption_dataset, collate_fn_mask_caption"
    statements = (
        f"from projects.llava_sam2.mask_caption_sft.dataset_builder import {names}",
        "from projects.llava_sam2.mask_caption_sft.train_dual_loop import build_datasets, train_epoch",
    )
    subprocess.run([sys.executable, "-c", "\n".join(statements)], cwd=COMPAT, check=True, timeout=500)
    assert (COMPAT / PACKAGE / "dataset_builder.py").is_file()
