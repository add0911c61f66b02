"""From a store that the real stage made to a trained student: runs, resumes, ranks, refusals."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.cli import main  # noqa: E402
from penstock.distill_report import write_report  # noqa: E402
from penstock.errors import (  # noqa: E402
    BadData,
    BudgetExceeded,
    OutputRefused,
    PartClaimed,
    RecipeMismatch,
    SchemaError,
    UsageError,
)
from penstock.models.decoders import open_decoder  # noqa: E402
from penstock.models.student_export import load_student  # noqa: E402
from penstock.store.claims import Claim  # noqa: E402
from penstock.testing import encode_picture  # noqa: E402
from penstock.train.checkpoint import BEST, latest, load_checkpoint  # noqa: E402
from penstock.train.distill_config import DistillConfig  # noqa: E402
from penstock.train.distill_eval import HeldOutPictures  # noqa: E402
from penstock.train.distill_run import run_distill  # noqa: E402
from tests.train.distill_set import ROWS, write_set  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"))


def config_of(folder: Path, output: Path, **values: Any) -> DistillConfig:
    known: dict[str, Any] = {
        "backbone": "yolov8:n", "batch_size": 4, "edge_weight": 0.0, "epochs": 2, "val_share": 0.25, "num_workers": 1,
        "device": "cpu", "lr": 3e-3, "export": (), "baselines": False, "log_interval": 1,
    }  # fmt: skip
    return DistillConfig(binary_data_path=folder, output_dir=output, **{**known, **values})


def weights(output: Path) -> dict[str, torch.Tensor]:
    path = latest(output)
    assert path is not None
    found: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return found


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], **within: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **within)


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its beginning to its end."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_distill(config_of(folder, output))
    return output


def test_a_second_training_into_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    claim.acquire()
    with pytest.raises(PartClaimed, match="is being written by process"):
        run_distill(config_of(folder, tmp_path, max_steps=1))
    claim.release()
    assert not list(tmp_path.iterdir())


def test_a_run_trains_evaluates_exports_and_reports(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = config_of(
        folder, tmp_path / "run", edge_weight=1.0, edge_task_start_epoch=1, decoder="stand-in", enable_mask_loss=True,
        mask_task_start_epoch=2, ema_decay=0.9, tensorboard=True, export=("state_dict",), baselines=True,
        max_samples=6, val_share=0.34, batch_size=2,  # edges are slow on a CPU
    )  # fmt: skip
    found = run_distill(config, say=said.append)
    assert (found["step"], found["steps"], found["held_out"], found["samples"]) == (4, 4, 2, 4)
    assert f"data: {folder} (binary-data-path): store, 4 rows to train on, 2 held out; teacher stand-in" in said[0]
    scores = {name: found["baselines"][name]["cosine"] for name in ("untrained", "mean_feature")}
    assert all(-1 <= value <= 1 for value in scores.values())
    for name in (
        "cosine",
        "cka",
        "std_ratio",
        "edge_recall",
        "miou_student_gt",
        "miou_teacher_gt",
        "miou_student_teacher",
    ):
        assert name in found["metrics"]
    lines = lines_of(tmp_path / "run")
    assert [line["mask"] for line in lines if "mask" in line][:2] == [0, 0]
    assert all(line["mask"] > 0 for line in lines if "mask" in line and line["step"] > 2)
    assert {"data_wait", "copy", "samples_per_s", "step_p50_ms"} <= lines[0].keys()
    assert (tmp_path / "run" / BEST).is_file()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert list((tmp_path / "run" / "worst").glob("*.jpg"))
    student = load_student(tmp_path / "run" / "export" / "student.pth")
    ema = load_checkpoint(latest(tmp_path / "run"))["ema"]  # type: ignore[arg-type]  # it is there
    name = "adapters.P4_S16.weight"
    torch.testing.assert_close(student.state_dict()[name], ema[f"student.{name}"])
    page = write_report(tmp_path / "run").read_text()
    assert "stand-in" in page
    again = run_distill(config)
    assert (again["first_step"], again["step"]) == (4, 4)
    assert (again["baselines"], again["data"]) == (found["baselines"], found["data"])
    (tmp_path / "run" / "baselines.json").write_text("{")
    with pytest.raises(BadData, match=r"baselines\.json: expected the JSON of this run"):
        run_distill(config)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights_with_other_threads(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run_distill(config_of(folder, output, save_interval=1), ranks=None)
    for path in output.glob("step_*.pt"):
        if load_checkpoint(path)["step"] > 3:
            path.unlink()
    path = latest(output)
    assert path is not None
    assert load_checkpoint(path)["step"] == 3
    found = run_distill(config_of(folder, output, num_workers=3, prefetch_factor=1))
    assert (found["first_step"], found["step"]) == (3, 4)
    assert_same(weights(output), weights(whole), rtol=0, atol=0)


def test_all_weights_follow_from_the_seed(folder: Path, tmp_path: Path) -> None:
    for name, drawn in (("one", 1), ("other", 2)):
        torch.manual_seed(drawn)  # what was drawn before in the process does not count
        run_distill(config_of(folder, tmp_path / name, loss_type="fgd", fgd_lambda_rela=1e-4, max_steps=1))
    assert any(name.startswith("context.") for name in weights(tmp_path / "one"))
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "other"), rtol=0, atol=0)


def test_two_processes_equal_one(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    flags = {
        "binary-data-path": folder, "output-dir": output, "backbone": "yolov8:n", "batch-size": 2, "edge-weight": 0,
        "epochs": 2, "val-share": 0.25, "num-workers": 1, "device": "cpu", "lr": 3e-3, "log-interval": 1,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    code, text, errors = run_ranks(2, "penstock", ["train", "distill", *words, "--no-baselines"])
    assert code == 0, errors
    assert "4 of 4 steps, 9 pictures an epoch, 3 held out, 4 a step" in text
    assert (output / "report.html").is_file()
    for one, other in zip(lines_of(whole), lines_of(output), strict=True):
        for name in one.keys() & {"feature", "loss", "gradient_norm", "eval/cosine", "eval/mse"}:
            within = 1e-3 if one["step"] == 1 else 1e-2  # what rounding makes of it grows from step to step
            assert one[name] == pytest.approx(other[name], rel=within), (one["step"], name)
    begun = run_distill(config_of(folder, output.parent / "begun", max_steps=1, lr=1e-12))["checkpoint"]
    first, alone, shared = load_checkpoint(Path(begun))["model"], weights(whole), weights(output)
    trained = [name for name, value in first.items() if value.is_floating_point()]
    far = sum(float((alone[name] - first[name]).square().sum()) for name in trained)
    apart = sum(float((alone[name] - shared[name]).square().sum()) for name in trained)
    assert apart <= 1e-4 * far  # Adam divides by the gradient's size: what is nearly 0 may go either way


def test_the_real_classes_of_sam2_from_pictures_to_a_student(tmp_path: Path) -> None:
    """Teacher, frozen decoder, and a copy of it that learns from the second epoch on; random tiny weights."""
    pytest.importorskip("transformers")
    folder = write_set(tmp_path, model_type="random:tiny", feature_dtype="float16")
    config = config_of(
        folder, tmp_path / "run", loss_type="fsdlike", decoder="random:tiny", enable_mask_loss=True,
        mask_task_start_epoch=1, mask_head_unfreeze_epoch=2, precision="bf16", gradient_accumulation_steps=2, batch_size=2,
    )  # fmt: skip
    found = run_distill(config)
    assert found["step"] == 4
    assert found["metrics"]["miou_teacher_gt"] is not None
    frozen = open_decoder("random:tiny", device="cpu")
    assert isinstance(frozen, torch.nn.Module)
    learned = {
        name.removeprefix("decoder."): value for name, value in weights(tmp_path / "run").items() if "decoder." in name
    }
    assert any(not torch.equal(value, learned[name]) for name, value in frozen.state_dict().items())
    with pytest.raises(UsageError, match="another teacher"):
        run_distill(config_of(folder, tmp_path / "other", decoder="stand-in"))


def test_another_configuration_of_a_begun_run_is_refused(folder: Path, whole: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"loss_type": "fgd"}, "loss_type"), ({"backbone": "yolov8:s"}, "student"), ({"epochs": 3}, "steps"),
        ({"feat_weight": 0.5}, "feat_weight"),
    ]  # fmt: skip
    for changed, named in cases:
        with pytest.raises(RecipeMismatch, match=named):
            run_distill(config_of(folder, whole, **changed))


def test_the_best_student_is_exported_or_the_last_where_that_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([0.5, 0.4])
    monkeypatch.setattr(HeldOutPictures, "evaluate", lambda self, model, ranks: {"cosine": next(scores)})
    words = "--backbone yolov8:n --batch-size 4 --edge-weight 0 --val-share 0.25 --device cpu --ema-decay 0.5 --no-baselines"
    paths = ["--binary-data-path", str(folder), "--output-dir", str(tmp_path)]
    for source, path, step, cosine in (
        ("best", tmp_path / BEST, 2, 0.5),
        ("last", tmp_path / "step_000000004.pt", 4, 0.4),
    ):
        more = ["--export-from", "last"] if source == "last" else []
        assert main(["train", "distill", *words.split(), *paths, *more]) == 0
        said = capsys.readouterr().out
        assert f"exported: {tmp_path / 'export' / 'student.pth'}, of step {step}\n" in said
        assert ("held out, student of step 2: cosine 0.500" in said) == (source == "best")
        assert "held out, student: cosine 0.400" in said
        export = json.loads((tmp_path / "report.json").read_text())["export"]
        assert export["checkpoint"] == str(path)
        assert (export["step"], export["metrics"]) == (step, {"cosine": cosine})
        average = load_checkpoint(path)["ema"]
        for name, value in load_student(tmp_path / "export" / "student.pth").named_parameters():
            assert torch.equal(value, average[f"student.{name}"])
    (tmp_path / BEST).unlink()
    assert main(["train", "distill", *words.split(), *paths]) == 2
    assert (
        "best.pt: expected the checkpoint of the best evaluation, got no file; run this again"
        in capsys.readouterr().err
    )


def test_where_no_evaluation_gave_a_number_the_last_is_exported_and_no_best_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldOutPictures, "evaluate", lambda self, model, ranks: {"cosine": float("nan")})
    config = config_of(folder, tmp_path, max_steps=1)
    assert run_distill(config)["export"]["step"] == 1
    with pytest.raises(UsageError, match="export_from: expected last, got 'best': cosine was never a number; run this"):
        run_distill(replace(config, export=("state_dict",), export_from="best"))


def test_a_best_student_from_before_a_loss_began_is_exported_only_where_that_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.4])
    monkeypatch.setattr(HeldOutPictures, "evaluate", lambda self, model, ranks: {"miou_student_gt": next(scores)})
    config = config_of(folder, tmp_path, decoder="stand-in", enable_mask_loss=True, mask_task_start_epoch=2)
    assert run_distill(config)["export"]["step"] == 4
    found = run_distill(replace(config, export=("state_dict",), export_from="best"))["export"]
    assert (found["step"], found["checkpoint"]) == (2, str(tmp_path / BEST))


def test_weights_of_another_model_are_counted_and_named(folder: Path, whole: Path, tmp_path: Path) -> None:
    shape = r"student\.backbone\.stem\S+: expected \(32,.*\), got \(16,.*\)"
    cases = {
        "yolov8:s": ({"backbone": "yolov8:s"}, rf"\d+ of another shape \({shape}, {shape}, {shape}, \.\.\.\)\. Take a"),
        "edges": ({"edge_weight": 1.0}, r"10 missing \((student\.edge_head\S+, ){3}\.\.\.\)\. Take a"),
    }
    for changed, words in cases.values():
        with pytest.raises(RecipeMismatch, match=words):
            run_distill(config_of(folder, tmp_path, pretrained_pth=latest(whole), **changed), way="dry-run")


def test_a_look_before_training_writes_nothing(folder: Path, tmp_path: Path) -> None:
    plan = run_distill(config_of(folder, tmp_path / "run"), way="dry-run")["plan"]
    assert plan["fields"]["P4_S16"] == [4, 256, 4, 4]
    assert plan["losses"]["feature"] > 0
    found = run_distill(config_of(folder, tmp_path / "run", max_steps=8), way="overfit")
    assert found["last_loss"] < found["first_loss"]
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(OutputRefused, match="got a store or a v1"):
        run_distill(config_of(folder, folder))
    with pytest.raises((UsageError, SchemaError), match="teacher_channels"):
        run_distill(config_of(folder, output, teacher_channels=128))
    with pytest.raises((UsageError, SchemaError), match="P3_S8"):
        run_distill(config_of(folder, output, level="P3_S8"))
    with pytest.raises(UsageError, match="val"):
        run_distill(config_of(folder, output, val_share=1e-9, max_samples=1, batch_size=1))
    with pytest.raises(UsageError, match="decoder"):
        run_distill(config_of(folder, output, decoder="random:tiny"))
    with pytest.raises(UsageError, match="decoder"):
        run_distill(config_of(folder, output, decoder="stand-in", enable_mask_loss=True, mask_head_unfreeze_epoch=1))
    assert not list(output.glob("*.pt"))


def test_pictures_without_boxes_are_judged_by_no_mask_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
        (tmp_path / "photos" / f"{number}.png").write_bytes(encode_picture(pixels, "png"))
    made = ["--model-type", "stand-in", "--image-size", "64", "--num-workers", "0"]
    assert (
        main(["teacher", "--source", f"folder:{tmp_path / 'photos'}", "--output", str(tmp_path / "store"), *made]) == 0
    )
    words = (
        "--backbone yolov8:n --batch-size 2 --edge-weight 0 --epochs 1 --device cpu --decoder stand-in --no-baselines"
    )
    paths = ["--binary-data-path", str(tmp_path / "store"), "--output-dir", str(tmp_path / "run")]
    assert main(["train", "distill", *words.split(), *paths]) == 0
    assert "no held-out picture has a box: the decoder judged no mask" in capsys.readouterr().out


def test_rows_with_nan_features_are_replaced_and_counted_until_the_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path, model_type="stand-in")
    path = next(folder.glob("part-*/*P4_S16*.bin"))
    values = np.fromfile(path, np.float32)
    per_row = len(values) // ROWS
    values[2 * per_row + 5] = np.nan
    values.tofile(path)
    found = run_distill(config_of(folder, tmp_path / "run", max_bad=0.5))
    assert found["data"][0]["substituted"] > 0
    words = "--backbone yolov8:n --batch-size 4 --edge-weight 0 --epochs 1 --val-share 0.25 --device cpu --max-bad 0.5"
    paths = ["--binary-data-path", str(folder), "--output-dir", str(tmp_path / "cli"), "--no-baselines"]
    assert main(["train", "distill", *words.split(), *paths]) == 0
    assert re.search(r"\d bad rows were drawn and replaced by others \(BadData: \d\)", capsys.readouterr().out)
    with pytest.raises(BudgetExceeded):
        run_distill(config_of(folder, tmp_path / "none", max_bad=0.0))
