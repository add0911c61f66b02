"""Agreement over the frames of a scene: made beside the maps of single frames, windows done once, the same bytes whatever
happened in between."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.cli import main
from penstock.errors import OutputRefused, SourceNotFound, UsageError
from penstock.geometry.id_pngs import read_id_png
from penstock.launch.local import Inline
from penstock.readers.pth import load_id_file, save_id_map
from penstock.refine import frames_of, refine
from penstock.refine_after import agreement_of
from penstock.refine_agree import agree_scenes, windows_of
from penstock.refine_sink import open_rows
from penstock.report import Report
from tests.refine_data import MaskProposer, config, outputs_of, put, write_frame
from tests.store.crash import KillDisk

MASKS = MaskProposer()
SIZE_HW = (24, 30)
AGREED = "obj_ids_refine_agreed"


def true_map() -> np.ndarray:
    ids = np.full(SIZE_HW, 7, np.int64)
    ids[4:16, 5:18] = 12
    ids[10:22, 20:28] = 30
    return ids


def write_scene(root: Path, name: str, frames: int, *, swapped: tuple[int, ...] = (), faces: str = "npy") -> None:
    """A still camera; in some frames the two things have exchanged their ids; each face is a square of four pixels."""
    rows, columns = np.indices(SIZE_HW)
    shown = (rows // 2) * 100 + columns // 2
    for number in range(frames):
        ids = true_map()
        if number in swapped:
            ids[ids == 12], ids[true_map() == 30] = 30, 12
        write_frame(root / name, number, ids)
        if faces:
            folder = root / name / "face_ids"
            folder.mkdir(exist_ok=True)
            if faces == "npy":
                np.save(folder / f"frame_{number:06d}.npy", shown)
                os.utime(folder / f"frame_{number:06d}.npy", (0, 0))
            else:
                put(folder / f"frame_{number:06d}.jpg.pth", save_id_map(shown, "int32"))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_scene(root, "a", 5, swapped=(2,))
    write_scene(root, "b", 3)
    return root


def run(root: Path, **changes: object) -> Report:
    return refine(config(root, consistency="faces", **changes), proposer=MASKS)


def said(report: Report) -> Any:
    return report.notes["consistency"]


def agreed_map(root: Path, scene: str, number: int, end: str = "pth") -> np.ndarray:
    return load_id_file(root / scene / AGREED / f"frame_{number:06d}.jpg.{end}")


def everything(root: Path) -> dict[str, object]:
    """The files, and what was counted; records also hold times of files."""
    store = root / ".penstock" / AGREED
    counts = {str(path.relative_to(store)): json.loads(path.read_bytes())["counts"] for path in store.rglob("*.json")}
    return {**outputs_of(root, AGREED), **counts}


def test_an_exchange_of_ids_is_undone_beside_the_maps_of_single_frames(scenes: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    write_scene(alone, "a", 5, swapped=(2,))
    write_scene(alone, "b", 3)
    refine(config(alone), proposer=MASKS)
    report = run(scenes)
    assert report.status == "ok"
    assert outputs_of(scenes) == outputs_of(alone)
    assert (said(report)["windows"], said(report)["done"], said(report)["frames"], said(report)["renamed"]) == (
        2,
        2,
        8,
        2,
    )
    assert said(report)["flips_before"] > 50
    assert said(report)["flips_after"] < 0.3 * said(report)["flips_before"]
    for number in (2, 3):
        found = agreed_map(scenes, "a", number)
        assert (found[8:12, 8:14] == 12).all()
        assert (found[14:20, 22:26] == 30).all()
        confidence = scenes / f"a/{AGREED}_confidence/frame_{number:06d}.jpg.png"
        assert read_id_png(confidence.read_bytes()).shape == SIZE_HW
    single = load_id_file(scenes / "a/obj_ids_refine/frame_000002.jpg.pth")
    assert (single[8:12, 8:14] == 30).all()


def test_only_windows_on_which_something_changed_are_done_again(scenes: Path) -> None:
    first = run(scenes)
    before = everything(scenes)
    assert (said(first)["computed"], said(run(scenes))["computed"]) == (2, 0)
    write_frame(scenes / "b", 1, np.roll(true_map(), 1, 0), seed=1)
    assert said(run(scenes))["computed"] == 1
    (scenes / "a" / AGREED / "frame_000001.jpg.pth").unlink()
    assert said(run(scenes))["computed"] == 1
    faces = scenes / "a/face_ids/frame_000000.npy"
    np.save(faces, np.full(SIZE_HW, -1))
    assert said(run(scenes))["computed"] == 1
    assert everything(scenes) != before
    assert said(run(scenes))["computed"] == 0


def test_windows_are_even_and_bounded(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.refine_agree.WINDOW", 2)
    report = run(scenes)
    assert said(report)["windows"] == 5
    settings = config(scenes)
    found = list(
        windows_of(agreement_of(settings), open_rows(settings.outputs.store), *frames_of(settings), "face_ids")
    )
    assert [len(window.frames) for window in found] == [1, 2, 2, 1, 2]
    assert [window.name for window in found] == ["a/000000", "a/000001", "a/000003", "b/000000", "b/000001"]
    monkeypatch.setattr("penstock.refine_agree.WINDOW", 64)
    again = run(scenes)
    assert said(again)["windows"] == said(again)["computed"] == 2
    assert sorted(path.name for path in (scenes / ".penstock" / AGREED).rglob("*.json")) == ["000000.json"] * 2
    assert len(outputs_of(scenes, AGREED)) == 16


def test_frames_without_a_face_map_are_copied_and_scenes_without_any_left_out(scenes: Path) -> None:
    (scenes / "a/face_ids/frame_000003.npy").unlink()
    write_scene(scenes, "c", 2, faces="")
    write_scene(scenes, "d", 2, faces="pth")
    report = run(scenes)
    assert (said(report)["windows"], said(report)["without_faces"]) == (3, 1)
    single = (scenes / "a/obj_ids_refine/frame_000003.jpg.pth").read_bytes()
    assert (scenes / "a" / AGREED / "frame_000003.jpg.pth").read_bytes() == single
    assert not (scenes / "c" / AGREED).exists()
    assert agreed_map(scenes, "d", 1).shape == SIZE_HW


def test_what_is_no_longer_made_is_removed(scenes: Path) -> None:
    run(scenes)
    write_frame(scenes / "a", 1, true_map() + 70_000)
    report = run(scenes)
    assert (report.failed, said(report)["frames"]) == (1, 7)
    assert not (scenes / "a" / AGREED / "frame_000001.jpg.pth").exists()
    run(scenes, format="npy")
    assert {path.suffix for path in (scenes / "b" / AGREED).iterdir()} == {".npy"}


def test_a_face_map_of_another_size_costs_its_window_and_is_said(scenes: Path) -> None:
    np.save(scenes / "a/face_ids/frame_000001.npy", np.zeros((3, 4), np.int64))
    report = run(scenes)
    assert (said(report)["done"], [one["path"] for one in said(report)["failed"]]) == (1, ["a/000000"])
    assert "never resampled" in report.problems[0]["message"]
    assert "frame_000001.npy" in report.problems[0]["message"]
    assert report.exit_code == 1
    assert not (scenes / "a" / AGREED).exists()


def test_maps_of_others_vote_and_are_not_written_to(scenes: Path) -> None:
    theirs = scenes / "a/obj_ids_refine/frame_000004.jpg.pth"
    theirs.parent.mkdir()
    content = save_id_map(true_map(), "int32")
    theirs.write_bytes(content)
    report = run(scenes)
    assert theirs.read_bytes() == content
    assert said(report)["frames"] == 8
    np.testing.assert_array_equal(agreed_map(scenes, "a", 4), true_map())


def test_without_face_maps_or_with_wrong_names_nothing_is_touched(tmp_path: Path) -> None:
    write_scene(tmp_path, "a", 1, faces="")
    with pytest.raises(SourceNotFound, match="face_ids"):
        run(tmp_path)
    with pytest.raises(UsageError, match="consistency"):
        config(tmp_path, consistency="video")
    with pytest.raises(UsageError, match="face-ids-dir-name"):
        config(tmp_path, face_ids_dir_name="x/y")
    with pytest.raises(OutputRefused):
        config(tmp_path, consistency="faces", face_ids_dir_name="obj_ids_refine_agreed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_worker_processes_give_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    run(scenes)
    other = tmp_path / "other"
    write_scene(other, "a", 5, swapped=(2,))
    write_scene(other, "b", 3)
    assert run(other, sequential=False, workers=2).status == "ok"
    assert everything(other) == everything(scenes)


def test_a_run_that_is_stopped_says_so_and_goes_on_later(scenes: Path) -> None:

    def stop() -> str:
        return "SIGTERM" if (scenes / ".penstock" / AGREED / "a").exists() else ""

    report = refine(config(scenes, consistency="faces"), proposer=MASKS, stop=stop)
    assert (said(report)["done"], report.interrupted, report.status) == (1, "SIGTERM", "partial")
    assert said(run(scenes))["done"] == 2


def test_killed_at_any_step_it_ends_with_the_bytes_of_the_clean_run(tmp_path: Path) -> None:
    root = tmp_path / "clean"
    write_scene(root, "a", 3, swapped=(1,))
    run(root)
    expected = everything(root)
    count = KillDisk(1 << 60)
    other = tmp_path / "count"
    agree_all(other, count)
    steps = (1 << 60) - count.left
    assert steps > 20
    killed = 0
    for step in range(1, steps + 1, 1 + steps // 12):
        folder = tmp_path / f"killed-{step}"
        child = os.fork()
        if child == 0:
            try:
                agree_all(folder, KillDisk(step))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert run(folder).status == "ok"
        assert everything(folder) == expected, f"killed at step {step}"
    assert killed > 5


def agree_all(root: Path, disk: KillDisk) -> None:
    write_scene(root, "a", 3, swapped=(1,))
    settings = config(root, consistency="faces")
    refine(config(root), proposer=MASKS)
    work = agreement_of(settings)
    work.disk = disk
    agree_scenes(work, open_rows(settings.outputs.store), *frames_of(settings), faces="face_ids", launcher=Inline())


def test_the_command_says_what_agreed_and_the_page_shows_it(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scene, count in (("a", 5), ("b", 3)):
        (tmp_path / "truth" / scene).mkdir(parents=True)
        for number in range(count):
            np.save(tmp_path / f"truth/{scene}/frame_{number:06d}.npy", true_map())
    words = ["refine", "--data-root", str(scenes), "--proposer", "classical", "--sequential", "--consistency", "faces"]
    assert main([*words, "--truth", str(tmp_path / "truth")]) == 0
    shown = capsys.readouterr().out
    assert "agreement over frames: 2 of 2 windows, 8 frames (0 without a face map), 2 objects renamed" in shown
    flips = re.findall(r"(after|agreed): .* ids flipped (\d+) of 18", shown)
    assert [name for name, _ in flips] == ["after", "agreed"]
    assert int(flips[0][1]) == 4
    assert int(flips[1][1]) == 0
    page = (scenes / ".penstock/obj_ids_refine/report.html").read_text()
    assert "Agreement over frames" in page
    assert "agreed over frames" in page
