"""One frame, refined and shown, in Python, on the command line, and by the seed's debug script."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.cli import main
from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.id_pngs import read_id_png
from penstock.readers.pth import load_id_file, save_id_map
from penstock.refine import refine
from penstock.refine_config import RefineConfig
from penstock.refine_frame import not_of_one_frame, refine_one
from tests.refine_data import MaskProposer, coarse_map, config, write_scenes

MASKS = MaskProposer()
ROOT = Path(__file__).parents[1]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data", {"a": 2})


@pytest.fixture
def paths(scenes: Path) -> tuple[Path, Path]:
    return scenes / "a/images/frame_000001.jpg", scenes / "a/obj_ids/frame_000001.jpg.pth"


def test_it_is_the_map_that_the_job_makes(scenes: Path, paths: tuple[Path, Path], tmp_path: Path) -> None:
    shown = refine_one(config(scenes), *paths, tmp_path / "out", proposer=MASKS)
    refine(config(scenes), proposer=MASKS)
    ids, confidence, picture = (path.read_bytes() for path in shown.files)
    assert ids == (scenes / "a/obj_ids_refine/frame_000001.jpg.pth").read_bytes()
    assert confidence == (scenes / "a/obj_ids_refine_confidence/frame_000001.jpg.png").read_bytes()
    assert read_id_png(confidence).shape == (40, 56)
    assert picture.startswith(b"\x89PNG")
    with Image.open(shown.files[2]) as opened:
        assert opened.size[0] > 2 * 56
    before = coarse_map(1)
    table = {one["id"]: one for one in shown.table["objects"]}
    assert {number: one["before"] for number, one in table.items()} == {
        number: int((before == number).sum()) for number in np.unique(before[before > 0]).tolist()
    }
    refined = load_id_file(shown.files[0])
    assert all(one["after"] == int((refined == number).sum()) for number, one in table.items())


def test_its_table_names_what_became_of_each_object(paths: tuple[Path, Path], tmp_path: Path) -> None:
    shown = refine_one(RefineConfig(data_root=Path()), *paths, tmp_path / "out", proposer=MASKS)
    lines = shown.lines()
    assert lines[0].split()[:3] == ["id", "before", "after"]
    assert len([line for line in lines if "accepted" in line or "kept as it was: " in line]) >= 3
    assert lines[-3:] == [f"written: {path}" for path in shown.files]
    for one, line in zip(shown.table["objects"], lines[1:], strict=False):
        assert line.split()[:3] == [str(one["id"]), str(one["before"]), str(one["after"])]
        assert one["accepted"] or one["reason"] in line


def test_the_command_prints_writes_and_needs_no_scenes(
    paths: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["refine", "--frame", str(paths[0]), "--ids", str(paths[1]), "--proposer", "classical"]
    assert main(words) == 0
    assert "3 objects: " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "refined_frame_000001").iterdir()) == [
        "frame_000001.jpg.before_after.png", "frame_000001.jpg.confidence.png", "frame_000001.jpg.pth",
    ]  # fmt: skip
    assert main([*words, "--json", "--output", "elsewhere", "--format", "npy"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], len(found["objects"])) == ("refine", 3)
    assert Path(found["files"][0]).read_bytes()[:6] == b"\x93NUMPY"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data-root", "x"], "--data-root"),
        (["--max-scenes", "2"], "--max-scenes"),
        (["--truth", "x"], "--truth"),
        (["--dry-run"], "--dry-run"),
        (["--workers", "2"], "--workers"),
        (["--launcher", "ray"], "--launcher"),
        (["--matcher", "overlap", "--sequential"], "--sequential"),
    ],
)
def test_flags_of_scenes_are_refused_with_it(
    more: list[str], message: str, paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["refine", "--frame", str(paths[0]), "--ids", str(paths[1]), "--proposer", "classical"]
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err


def test_neither_scenes_nor_a_frame_is_misuse(paths: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--ids", str(paths[1])], ["--data-root", "x", "--output", "y"]):
        assert main(["refine", "--proposer", "classical", *words]) == 2
        assert "--frame IMAGE --ids MAP" in capsys.readouterr().err
    assert main(["refine", "--proposer", "classical", "--frame", str(paths[0])]) == 2
    assert "--ids MAP" in capsys.readouterr().err


def test_bad_input_is_named_and_nothing_is_written(paths: tuple[Path, Path], tmp_path: Path) -> None:
    settings, out = RefineConfig(data_root=Path()), tmp_path / "out"
    small, torn = tmp_path / "small.pth", tmp_path / "torn.jpg"
    small.write_bytes(save_id_map(np.ones((5, 6), np.int32)))
    torn.write_bytes(paths[0].read_bytes()[:300])
    with pytest.raises(SourceNotFound, match="no such picture"):
        refine_one(settings, tmp_path / "nowhere.jpg", paths[1], out, proposer=MASKS)
    with pytest.raises(SourceNotFound):
        refine_one(settings, paths[0], tmp_path / "nowhere.pth", out, proposer=MASKS)
    with pytest.raises(BadData, match="never resampled"):
        refine_one(settings, paths[0], small, out, proposer=MASKS)
    with pytest.raises(BadData, match="torn"):
        refine_one(settings, torn, paths[1], out, proposer=MASKS)
    with pytest.raises(UsageError, match="is the input"):
        refine_one(settings, *paths, paths[1].parent, proposer=MASKS)
    assert not out.exists()
    assert not_of_one_frame(RefineConfig(data_root=Path(), max_scenes=1)) == ["--max-scenes"]


def test_the_seeds_debug_script_does_one_frame(paths: tuple[Path, Path], tmp_path: Path) -> None:
    words = [
        "--frame",
        str(paths[0]),
        "--ids",
        str(paths[1]),
        "--proposer",
        "classical",
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "compat/debug_single_image.py"), *words],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 objects: " in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 3
