"""The examples run as a user would run them, without a network, and say where to look."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9][0-9]_*.py"))
SLOW = "04_distill_student"
"""Run once, by its own test."""


@pytest.mark.parametrize("path", [one for one in EXAMPLES if one.stem != SLOW], ids=lambda path: str(path.stem))
def test_the_example_runs(path: Path, tmp_path: Path) -> None:
    run(path, tmp_path)


def run(path: Path, tmp_path: Path) -> tuple[str, Path]:
    """What the example prints, and where it says to look; it writes below `tmp_path/out`, and nowhere else."""
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    (shown,) = re.findall(r"^Look at (.+)$", done.stdout, flags=re.M)
    assert Path(shown).stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "out"], "written beside the folder that was named"
    return done.stdout, Path(shown)


def test_the_student_beats_its_untrained_self_and_the_mean_feature_on_photographs_held_out(tmp_path: Path) -> None:
    said, page = run(next(one for one in EXAMPLES if one.stem == SLOW), tmp_path)
    assert "the stand-in, which is no network and no SAM2" in said
    found = json.loads((page.parent / "report.json").read_text())
    assert found["teacher"]["model_type"] == "stand-in"
    assert found["teacher"]["teacher"]["weights"] == "stand-in"
    for name, margin in {"cosine": 0.2, "miou_student_teacher": 0.04, "miou_student_gt": 0.01}.items():
        others = [found["baselines"][one][name] for one in ("untrained", "mean_feature")]
        assert found["metrics"][name] > max(others) + margin, name
        assert f"{found['metrics'][name]:.3f}" in said
    assert found["metrics"]["miou_student_gt"] < found["metrics"]["miou_teacher_gt"]
    assert (found["samples"], found["metrics"]["samples"], found["metrics"]["without_box"]) == (192, 32, 0)
    shown = json.loads((page.parent / "worst_held_out" / "index.json").read_text())["samples"]
    assert shown
    assert all(one["key"] > "sa_1192" for one in shown), "a picture to learn from among those held out"
    assert "The teacher is a stand-in without learned weights" in page.read_text()


def test_the_distillation_example_fails_where_the_student_does_not_win(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(one for one in EXAMPLES if one.stem == SLOW)
    monkeypatch.syspath_prepend(str(path.parent))
    example = runpy.run_path(str(path))
    assert not set(example["TRAINED"]) & set(example["HELD_OUT"])
    scores = dict.fromkeys(example["SHOWN"], 0.5)
    report = {
        "metrics": {**scores, "miou_teacher_gt": 0.7, "cosine": 0.6},
        "baselines": {"untrained": {**scores, "miou_student_teacher": 0.4}, "mean_feature": scores},
    }
    with pytest.raises(SystemExit, match=r"above both, got less in: mIoU with the teacher's masks$"):
        example["compare"](report)
    assert "0.600" in capsys.readouterr().out


def test_the_embedding_example_names_its_double_and_shows_crops(tmp_path: Path) -> None:
    path = next(one for one in EXAMPLES if one.stem == "03_embed")
    done = subprocess.run([sys.executable, str(path), str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "tiny:, a small double of a network" in done.stdout
    assert re.search(r"^1\.0000  cat_1  cat$", done.stdout, flags=re.M)
    page = (tmp_path / "search.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12
    assert "a small double of a network" in page
    assert not re.search(r"""(?:src|href)=["']?http""", page)
