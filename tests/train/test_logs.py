"""What a run says: rates over ranks, lines cut at a resume, TensorBoard's files."""

import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from penstock.errors import MissingExtra
from penstock.train.logs import Interval, Journal, TensorBoard, WandB, line_of, words_of


def test_a_line_is_over_all_ranks() -> None:
    one = Interval(samples=30, wait_s=0.5, copy_s=0.1, total_s=2.0, steps_s=[1.0, 1.0])
    other = Interval(samples=10, wait_s=1.0, total_s=2.5, steps_s=[0.5, 2.0])
    one.take({"source": ["a", "a", "b"], "attempt": np.array([0, 2, 0])}, 3)
    other.take({"source": ["b"], "attempt": np.array([1])}, 1)
    one.worst.append((3.0, "x"))
    other.worst.append((4.0, "y"))
    line = line_of([one.plain(), other.plain()])
    assert line["samples_per_s"] == pytest.approx(44 / 2.5)
    assert line["data_wait"] == pytest.approx(0.4)
    assert line["copy"] == pytest.approx(0.05)
    assert line["step_p50_ms"] == pytest.approx(1000)
    assert line["sources"] == {"a": 0.5, "b": 0.5}
    assert line["substituted"] == {"a": 0.5, "b": 0.5}
    assert [entry["key"] for entry in line["worst"]] == ["y", "x"]
    assert "data_wait 40.0%" in words_of(line)


def test_the_worst_samples_are_those_of_all_steps_since_the_last_line() -> None:
    one, other = Interval(), Interval()
    for number, loss in enumerate((9.0, 8.0, 1.0, 1.0, 7.0)):
        one.worst.append((loss, f"step{number}"))
        other.worst.append((0.5, "small"))
    line = line_of(
        [one.plain() | {"total_s": 1.0, "steps_s": [1.0]}, other.plain() | {"total_s": 1.0, "steps_s": [1.0]}]
    )
    assert [entry["key"] for entry in line["worst"]] == ["step0", "step1", "step4"]


def test_a_run_that_goes_on_cuts_the_lines_that_it_writes_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, from_step=0, writers=[])
    for step in (5, 10, 15):
        journal.write(step, 20, {"loss": 1.0})
    with journal.path.open("ab") as file:
        file.write(b'{"step":')  # torn by a kill
    Journal(tmp_path, from_step=10, writers=[]).write(15, 20, {"loss": 0.5})
    lines = [orjson.loads(line) for line in journal.path.read_bytes().splitlines()]
    assert lines == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 1.0}, {"step": 15, "loss": 0.5}]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    journal = Journal(tmp_path, from_step=0, writers=[TensorBoard(tmp_path)])
    journal.write(3, 9, {"loss": 0.25, "sources": {"a": 1.0}})
    journal.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(3, 0.25)]


def test_tensorboard_shows_the_steps_after_a_kill_once(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for from_step, value in ((0, 1.0), (10, 0.5)):
        time.sleep(1.1 if from_step else 0)  # its files have the second in their names
        writer = TensorBoard(tmp_path, from_step=from_step)
        for step in range(from_step + 5, 21, 5):
            writer.write(step, {"loss": value})
        writer.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(5, 1.0), (10, 1.0), (15, 0.5), (20, 0.5)]


def test_a_run_that_goes_on_is_one_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        writer = WandB(tmp_path, "project")
        writer.write(step, {"loss": 1.0})
        writer.close()
    name = (tmp_path / "wandb_id.txt").read_text()
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert runs
    assert {run.rpartition("-")[2] for run in runs} == {name}


def test_a_missing_logger_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"penstock\[wandb\]"):
        WandB(tmp_path, "project")
