"""`penstock refine` through the real entry point."""

import json
from pathlib import Path

import pytest

from penstock.cli import main
from tests.refine_data import write_scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data", {"scene001": 2, "scene002": 1})


def arguments(root: Path, *more: str) -> list[str]:
    known = {"--data-root": str(root), "--proposer": "classical"}
    given = [word for name, value in known.items() if name not in more for word in (name, value)]
    return ["refine", *given, "--sequential", *more]


def test_banner_scenes_and_closing_lines(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(scenes, "--verbose")) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "=== mask refinement ==="
    assert lines[1] == f"data root: {scenes}"
    assert "2 scenes found" in lines
    assert any(line.startswith("+ scene001: 2/2 done, invalid: ") and "SAM matched: " in line for line in lines)
    assert any(line.startswith("+ scene002: 1/1 done") for line in lines)
    assert "=== mask refinement finished ===" in lines
    assert "3 of 3 rows done" in lines[-1]
    assert "scene001/frame_000001: 3 objects" in shown.err
    assert (scenes / ".penstock/obj_ids_refine/report.html").exists()


def test_json_is_one_object(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(scenes, "--json", "--max-scenes", "1")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["status"], found["rows"]["done"]) == ("refine", "ok", 2)
    assert [one["scene"] for one in found["scenes"]] == ["scene001"]
    assert found["total"]["objects"] == 6
    assert found["config"]["proposer"] == "classical"


def test_a_dry_run_says_what_and_why(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(scenes, "--dry-run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"missing": 3}
    assert main(arguments(scenes, "--dry-run")) == 0
    assert "'to_do': 3" in capsys.readouterr().out
    assert sorted(path.name for path in scenes.iterdir()) == ["scene001", "scene002"]


def test_a_bad_frame_exits_with_1_and_is_named(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scenes / "scene002/images/frame_000000.jpg").write_bytes(b"no picture")
    assert main(arguments(scenes)) == 1
    shown = capsys.readouterr()
    assert "- scene002: 0/1 done" in shown.out
    assert "failed: scene002/frame_000000: BadData" in shown.err
    assert main(arguments(scenes, "--max-failures", "1")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--proposer", "nothing"], "classical"),
        (["--proposer", "folder:/nowhere"], "nowhere"),
        (["--data-root", "/nowhere"], "nowhere"),
        (["--output-dir-name", "obj_ids"], "never written to"),
        (["--output-dir-name", "images"], "never written to"),
        (["--format", "png", "--dtype", "int32"], "uint16"),
        (["--profile", "seed"], "--matcher overlap"),
        (["--max-scenes", "0"], "max-scenes"),
        (["--iou-threshold", "2"], "iou-threshold"),
        (["--ray-address", "auto"], "--launcher ray"),
        (["--launcher", "ray"], "--sequential"),
        (["--checkpoint", "x.pt"], "sam2"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_misuse_exits_with_2_and_touches_nothing(
    more: list[str], message: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(scenes, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (scenes / ".penstock").exists()


def test_sam2_without_weights_says_where_they_go_and_is_never_classical(
    scenes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    assert main(["refine", "--data-root", str(scenes), "--sequential"]) == 2
    shown = capsys.readouterr().err
    assert "model_zoo/sam/sam2_hiera_large.pt" in shown
    assert "--proposer classical" in shown
    assert not (scenes / ".penstock").exists()
