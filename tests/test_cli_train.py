"""`penstock train dual-loop` through the real entry point, alone and under torchrun."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import main
from penstock.cli_ranks import run_ranked
from penstock.cli_train import DualLoopFlags
from penstock.errors import UsageError
from penstock.recipes import full_dual_loop, quick_dual_loop
from penstock.train.dual_loop_config import DualLoopConfig

torch = pytest.importorskip("torch")

from penstock.train.checkpoint import load_checkpoint  # noqa: E402
from penstock.train.distributed import Ranks  # noqa: E402
from tests.train.dual_loop_data import write_all, write_pairs  # noqa: E402

APART = {"recipe", "model_path", "lora_r", "lora_alpha", "local_rank"}
"""Flags that are no fields of the configuration."""
SEED = (
    "sav_dir sa1b_dir openimage_dir refcoco_dir sa1b_max_samples sav_max_samples sav_repeats refcoco_repeats num_epochs "
    "batch_size gradient_accumulation_steps learning_rate max_grad_norm ema_decay lora_r lora_alpha num_workers "
    "log_interval save_interval local_rank pretrained_pth model_path output_dir"
)
"""The original script's."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_all(tmp_path_factory.mktemp("data"))


def arguments(folders: dict[str, str], output: Path, *more: str) -> list[str]:
    given = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
    fixed = ["--size", "32", "--output-dir", str(output), "--device", "cpu", "--num_workers", "1"]
    return ["train", "dual-loop", *given, *fixed, *more]


def test_flags_are_the_fields_of_the_configuration_and_those_of_the_original() -> None:
    flags = {one.name for one in fields(DualLoopFlags)}
    assert flags - APART == {one.name for one in fields(DualLoopConfig)}
    assert set(SEED.split()) <= flags
    assert all(one.default is None for one in fields(DualLoopFlags)), "what is given is told from what is not"


def test_defaults_named_in_the_help_are_those_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dual-loop", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    config = DualLoopConfig(sav_dir="x")
    known = {
        "max_bad": "training stops; 0.05.",
        "size": "masks; 1024.", "eval_share": "each epoch; 0.01;", "num_workers": "decode; 4.",
        "eval_samples": "at most; 512.", "log_interval": "between lines; 10.", "save_interval": "checkpoints; 500.",
        "gradient_accumulation_steps": "in a step; 4.", "max_empty": "training stops; 0.5.", "batch_size": "together; 1.",
    }  # fmt: skip
    for name, words in known.items():
        assert words in shown
        assert str(getattr(config, name)) in words


def test_a_training_says_what_it_has_and_what_came_of_it(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    more = ["--eval-share", "0.3", "--batch-size", "2", "--log-interval", "2", "--max_steps", "3"]
    assert main(arguments({**folders, "openimage_dir": "./nowhere"}, tmp_path / "out", *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Loading SAV dataset from {folders['sav_dir']}"
    assert "Warning: OpenImage directory not found: ./nowhere, skipping OpenImage dataset" in lines
    assert "Dataset built: 27 total samples" in lines
    assert any(line.startswith("held out: same_giou ") and "cross_giou " in line for line in lines)
    assert any(line.startswith("3 of 3 steps, ") and line.endswith("% empty)") for line in lines)
    assert lines[-1] == f"checkpoint: {tmp_path / 'out/step_000000003.pt'}"
    assert "step 2/3  bce " in caplog.text


def test_json_is_one_object_and_quiet_is_quiet(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sav = {"sav_dir": folders["sav_dir"]}
    assert main(arguments(sav, tmp_path / "out", "--max-steps", "1", "--json", "--quiet", "--eval-share", "0")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["status"], found["step"]) == ("train dual-loop", "ok", 1)
    assert found["captions"] == "soft"
    assert found["config"]["size"] == 32
    assert caplog.text == ""


def test_verbose_says_whether_both_pictures_are_the_same(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, same in (("sav_dir", False), ("sa1b_dir", True)):
        flags = ["--verbose", "--max-steps", "1", "--eval-share", "0"]
        assert main(arguments({name: folders[name]}, tmp_path / name, *flags)) == 0
        assert f"Same image? {same}" in caplog.text
        assert f"Same image? {not same}" not in caplog.text
        assert "Using images1.shape=(1, 3, 32, 32), images2.shape=(1, 3, 32, 32)" in caplog.text
        caplog.clear()


def test_a_dry_run_writes_nothing(folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folders, tmp_path / "out", "--dry-run")) == 0
    assert "  samples_per_rank: 4" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_one_batch_is_learned_by_heart_or_the_exit_code_says_so(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sav = {"sav_dir": folders["sav_dir"]}
    for rate, code in (("0.005", 0), ("1e-9", 1)):
        flags = ["--overfit-one-batch", "--max-steps", "60", "--learning-rate", rate]
        assert main(arguments(sav, tmp_path / "out", *flags)) == code
        assert "on one batch" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_recipe_holds_where_no_flag_says_otherwise() -> None:
    flags = DualLoopFlags(recipe="quick_dual_loop", sav_dir="npz", size=64)
    assert flags.to_config() == replace(quick_dual_loop(), sav_dir="npz", size=64)
    assert DualLoopFlags(recipe="full_dual_loop").to_config() == full_dual_loop()
    assert DualLoopFlags(sav_dir="npz").to_config() == DualLoopConfig(sav_dir="npz")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora_r": 128}, "--lora-r 128: penstock adds no LoRA layers"),
        ({"lora_alpha": 256}, "--lora-alpha 256: penstock adds no LoRA layers"),
        ({"local_rank": 3}, "--local-rank 3: expected 0"),
        ({"model_path": "x", "model": "cycle"}, "--model-path: expected none beside --model"),
        ({"recipe": "slow"}, "recipe 'slow'"),
    ],
)
def test_what_cannot_be_kept_is_refused(given: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UsageError, match=f"^{words}"):
        DualLoopFlags(**{"sav_dir": "npz", **given}).to_config()


def test_what_old_launchers_add_is_taken_where_it_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert DualLoopFlags(sav_dir="npz", local_rank=3).to_config() == DualLoopConfig(sav_dir="npz")
    assert DualLoopFlags(sav_dir="npz", model_path="weights").to_config().model == "sa2va:weights"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "expected a dataset at least"),
        (["--sav-dir", "./nowhere"], "nowhere"),
        (["--sav-dir", "./nowhere", "--dry-run", "--overfit-one-batch"], "--dry-run: expected it without"),
        (["--sav-dir", "{npz}", "--model", "blip"], "model 'blip': expected one of cycle"),
    ],
)
def test_misuse_exits_with_2(
    flags: list[str], words: str, folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [flag.replace("{npz}", folders["sav_dir"]) for flag in flags]
    assert main(["train", "dual-loop", "--output-dir", str(tmp_path / "out"), *given]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_are_all_bad_exit_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pairs(tmp_path / "npz", 9)
    for path in root.glob("*.npz"):
        path.write_bytes(b"torn")
    assert main(arguments({"sav_dir": str(root)}, tmp_path / "out", "--eval-share", "0")) == 1
    assert "sav: all 8 rows tried at position 0 are bad" in capsys.readouterr().err


def torchrun(count: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "-m", "penstock"]
    return subprocess.run([sys.executable, *launch, *words], capture_output=True, text=True, timeout=500)


def test_two_ranks_train_what_one_process_trains_and_it_goes_on_from_theirs(
    folders: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--max-steps", "3", "--eval-share", "0.3", "--save-interval", "1", "--json", "--quiet"]
    accumulated = ["--gradient-accumulation-steps", "4", "--batch-size", "1"]
    two = torchrun(2, arguments(folders, tmp_path / "two", *flags, "--gradient-accumulation-steps", "2"))
    assert two.returncode == 0, two.stderr
    one = subprocess.run(
        [sys.executable, "-m", "penstock", *arguments(folders, tmp_path / "one", *flags, *accumulated)],
        capture_output=True, text=True, timeout=500, check=True,
    )  # fmt: skip
    (line,) = two.stdout.splitlines()
    ours, theirs = json.loads(one.stdout), json.loads(line)
    assert ours["global_batch"] == theirs["global_batch"] == 4
    for name, value in ours["metrics"].items():
        assert theirs["metrics"][name] == pytest.approx(value, abs=1e-3)
    for name, counts in ours["sources"].items():
        assert counts["drawn"] == theirs["sources"][name]["drawn"]
    models = [load_checkpoint(Path(found["checkpoint"]))["model"] for found in (ours, theirs)]
    for name, value in models[0].items():
        assert torch.allclose(value, models[1][name], atol=1e-6), name
    (tmp_path / "two/step_000000003.pt").unlink()
    assert main(arguments(folders, tmp_path / "two", *flags, *accumulated)) == 0
    for name, value in load_checkpoint(tmp_path / "two/step_000000003.pt")["model"].items():
        assert torch.allclose(value, models[0][name], atol=1e-6), name


def test_a_rank_that_fails_ends_all_with_a_code(tmp_path: Path) -> None:
    done = torchrun(2, ["train", "dual-loop", "--sav-dir", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path)])
    assert done.returncode != 0
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_prints_an_object_where_all_fail(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def alone(device: str) -> Iterator[Ranks]:
        yield Ranks(rank=rank, world_size=2)

    monkeypatch.setattr("penstock.train.distributed.joined", alone)
    words = ["train", "dual-loop", "--sav-dir", str(tmp_path / "nowhere"), "--json"]
    if rank == 0:
        assert main(words) == 2
    else:
        with pytest.raises(SystemExit, match="1"):
            main(words)
    shown = capsys.readouterr()
    assert "nowhere: no masklets dataset" in shown.err
    assert [json.loads(line)["status"] for line in shown.out.splitlines()] == (["failed"] if rank == 0 else [])


@pytest.mark.parametrize("as_json", [True, False])
def test_a_run_that_a_signal_ends_says_so(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def run(ranks: object, say: object) -> dict[str, Any]:
        raise SystemExit(128 + signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        run_ranked("train distill", "cpu", run, level=logging.INFO, json=as_json, closing=lambda found: [])
    assert caught.value.code == 143
    out, error = capsys.readouterr()
    assert "SIGTERM: stopped after a checkpoint; run it again to go on" in error
    expected = {"command": "train distill", "status": "partial", "interrupted": "SIGTERM"}
    assert (json.loads(out) == expected) if as_json else not out
