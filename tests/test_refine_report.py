"""The page of a refinement and quality beside the truth: whole, small, readable offline; figures those of the maps."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.cli import main
from penstock.errors import SourceNotFound
from penstock.geometry.id_pngs import write_id_png
from penstock.readers.pth import load_id_file, save_id_map
from penstock.refine import refine
from penstock.refine_done import SHOWN, map_of
from penstock.refine_overlay import before_after, colours_of
from penstock.refine_report import write_report
from penstock.refining.quality import id_flips, score_frame, total
from penstock.report import Report
from tests.refine_data import MaskProposer, coarse_map, config, write_frame, write_scenes

SHARED = Path(__file__).parents[2] / "shared" / "data"
MASKS = MaskProposer()


def true_map(seed: int) -> np.ndarray:
    """The coarse map, moved."""
    return np.roll(coarse_map(seed), 1, axis=1)


def write_truth(root: Path, name: str, numbers: range, first: int = 0) -> None:
    (root / name).mkdir(parents=True)
    for number in numbers:
        (root / name / f"frame_{number:06d}.jpg.png").write_bytes(write_id_png(true_map(first + number)))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_truth(tmp_path / "truth", "a", range(3))
    write_truth(tmp_path / "truth", "b", range(2), first=100)
    return write_scenes(tmp_path / "data", {"a": 3, "b": 2})


def run(root: Path, **changes: object) -> Report:
    return refine(config(root, **changes), proposer=MASKS)


def quality_of(report: Report) -> Any:
    return report.notes["quality"]


def decisions_of(report: Report) -> Any:
    return report.notes["decisions"]


def page_of(root: Path) -> str:
    return (root / ".penstock/obj_ids_refine/report.html").read_text()


def written(root: Path, **changes: object) -> str:
    settings = config(root, **changes)
    report = refine(settings, proposer=MASKS)
    report.report = str(write_report(settings, report))
    return page_of(root)


def test_quality_is_that_of_the_maps(scenes: Path, tmp_path: Path) -> None:
    found = quality_of(run(scenes, truth=tmp_path / "truth"))
    maps = [
        (load_id_file(scenes / f"a/obj_ids_refine/frame_{n:06d}.jpg.pth").astype(np.int64), coarse_map(n), true_map(n))
        for n in range(3)
    ]
    score = total(score_frame(after, truth, before) for after, before, truth in maps)
    flips = [id_flips((maps[n][0], maps[n + 1][0]), (maps[n][2], maps[n + 1][2])) for n in range(2)]
    assert (found["frames"], found["missing"], found["wrong"]) == (5, 0, 0)
    (one, two) = found["scenes"]
    assert (one["scene"], two["scene"]) == ("a", "b")
    assert one["after"]["mean_iou"] == pytest.approx(score.mean_iou, abs=1e-6)
    assert one["after"]["boundary_iou"] == pytest.approx(score.boundary_iou, abs=1e-6)
    assert one["after"]["pq"] == pytest.approx(score.pq, abs=1e-6)
    assert one["after"]["harm_rate"] == pytest.approx(score.harm_rate, abs=1e-6)
    assert (one["after"]["flips"], one["after"]["chances"]) == tuple(np.sum(flips, axis=0))
    before = total(score_frame(before, truth) for _, before, truth in maps)
    assert one["before"]["mean_iou"] == pytest.approx(before.mean_iou, abs=1e-6)
    assert found["total"]["after"]["objects"] == one["after"]["objects"] + two["after"]["objects"]


def test_missing_and_unusable_truth_is_counted_and_said(scenes: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    (truth / "a/frame_000001.jpg.png").unlink()
    (truth / "a/frame_000002.jpg.png").write_bytes(write_id_png(np.ones((4, 5), np.int64)))
    (truth / "b/frame_000000.jpg.png").write_bytes(b"torn")
    shutil.rmtree(scenes / "b" / "obj_ids_refine", ignore_errors=True)
    report = run(scenes, truth=truth)
    found = quality_of(report)
    assert (report.status, found["frames"], found["missing"], found["wrong"]) == ("ok", 2, 1, 2)
    said = {one["key"]: one["message"] for one in found["first"]}
    assert "no truth in" in said["a/frame_000001"]
    assert "never resampled" in said["a/frame_000002"]
    assert "frame_000000.jpg.png" in said["b/frame_000000"]
    (tmp_path / "none").mkdir()
    none = quality_of(run(scenes, truth=tmp_path / "none"))
    assert (none["frames"], none["missing"], none["total"], none["scenes"]) == (0, 5, {}, [])
    with pytest.raises(SourceNotFound, match="truth"):
        run(scenes, truth=tmp_path / "nowhere")


def test_truth_of_one_scene_may_lie_in_the_folder_itself_and_in_any_format(scenes: Path, tmp_path: Path) -> None:
    found = quality_of(run(scenes / "b", truth=tmp_path / "truth/b"))
    assert found["frames"] == 2
    folder = tmp_path / "maps"
    folder.mkdir()
    assert map_of(folder, "images/frame_000000.jpg") is None
    for name in ("frame_000000.png", "frame_000000.npy", "frame_000000.jpg.png", "frame_000000.jpg.pth"):
        (folder / name).write_bytes(b"")
        assert map_of(folder, "images/frame_000000.jpg") == folder / name
    assert map_of(tmp_path / "nowhere", "frame.jpg") is None


def test_decisions_are_those_of_the_tables(scenes: Path) -> None:
    report = run(scenes)
    found = decisions_of(report)
    counted: Any = report.notes["total"]
    assert sum(found["kept_by_reason"].values()) == counted["kept"]
    assert sum(found["pixels_by_reason"].values()) == 5 * 40 * 56
    assert found["id_flips"] == {"flips": 0, "chances": 6}
    keys = [one["key"] for one in [*found["worst"], *found["best"]]]
    assert len(set(keys)) == len(keys) == 5
    assert all("objects accepted" in one["why"] for one in found["worst"])


def test_the_worst_frame_is_the_one_that_lost_most(scenes: Path, tmp_path: Path) -> None:
    report = run(scenes, truth=tmp_path / "truth")
    found = decisions_of(report)
    gains = [
        float(after) - float(before)
        for before, after in (re.findall(r"IoU ([\d.]+) to ([\d.]+)", one["why"])[0] for one in found["worst"])
    ]
    assert gains == sorted(gains)
    best = re.findall(r"IoU ([\d.]+) to ([\d.]+)", found["best"][0]["why"])[0]
    assert float(best[1]) - float(best[0]) >= gains[-1]


def test_the_page_opens_offline_and_says_what_the_report_says(scenes: Path, tmp_path: Path) -> None:
    (scenes / "a/images/frame_000001.jpg").write_bytes(b"no <picture>")
    page = written(scenes, truth=tmp_path / "truth")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/jpeg;base64,") == 4
    for word in ("Beside the truth", "Scenes", "Reasons", "Failed frames", "Worst frames", "Best frames", "Settings"):
        assert word in page
    assert "no &lt;pict" in page
    assert "Agreement over frames" not in page
    assert "Beside the truth" not in written(scenes)


def test_a_frame_that_cannot_be_drawn_is_said_in_its_place(scenes: Path) -> None:
    settings = config(scenes)
    report = refine(settings, proposer=MASKS)
    (scenes / "b/images/frame_000001.jpg").write_bytes(b"gone bad")
    write_report(settings, report)
    assert page_of(scenes).count("data:image/jpeg;base64,") == 4
    assert "BadData: " in page_of(scenes)


def test_the_page_of_many_large_scenes_is_bounded(tmp_path: Path) -> None:
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for number in range(150):
        write_frame(root / f"scene{number:03d}", 0, coarse_map(number))
    for number in range(2 * SHOWN):
        noise = rng.integers(0, 256, (360, 480, 3), dtype=np.uint8)
        ids = rng.integers(1, 60, (12, 16)).repeat(30, 0).repeat(30, 1).astype(np.int64)
        scene = root / f"scene{number:03d}"
        Image.fromarray(noise).save(scene / "images/frame_000000.jpg", quality=90)
        (scene / "obj_ids/frame_000000.jpg.pth").write_bytes(save_id_map(ids))
    page = written(root)
    assert page.count("<figure") == 2 * SHOWN
    assert len(page) < 20_000_000
    assert "scene149" in page


def test_panels_lie_side_by_side_with_one_colour_for_an_id() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    ids = np.full((60, 80), 5)
    ids[:, 40:] = 0
    page = before_after(image, {"one": ids, "other": np.where(ids == 5, 0, 5)}, width=40)
    assert page.dtype == np.uint8
    assert page.shape[1] >= 80
    left, right = page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]
    expected = (100 * 0.55 + colours_of(np.array([5]))[0] * 0.45).astype(int)
    assert (abs(left.astype(int) - expected).max(-1) <= 1).sum() > 400
    assert (abs(right.astype(int) - expected).max(-1) <= 1).sum() > 400
    whole = before_after(image, {"one": ids})
    assert whole.shape[0] > 60
    assert len(np.unique(colours_of(np.arange(1, 200)), axis=0)) > 150


def test_the_command_says_the_quality_and_writes_the_page(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["refine", "--data-root", str(scenes), "--proposer", "classical", "--sequential"]
    assert main([*words, "--truth", str(tmp_path / "truth")]) == 0
    shown = capsys.readouterr().out
    assert "truth of 5 frames; 0 frames without, 0 not usable" in shown
    assert re.search(r"after: IoU [\d.]+, Boundary IoU [\d.]+, PQ [\d.]+, harmed [\d.]+%", shown)
    assert "Beside the truth" in page_of(scenes)
    saved = json.loads((scenes / ".penstock/obj_ids_refine/report.json").read_text())
    assert saved["quality"]["frames"] == 5
    assert saved["decisions"]["worst"]
    assert main([*words, "--json"]) == 0
    assert "quality" not in json.loads(capsys.readouterr().out)
    assert main([*words, "--truth", str(tmp_path / "nowhere")]) == 2
    assert main([*words, "--consistency", "faces"]) == 2


def test_the_shared_scenes_get_better_beside_their_truth(tmp_path: Path) -> None:
    if not (SHARED / "scenes_truth").exists():
        pytest.skip(f"{SHARED} is not there")
    root = Path(shutil.copytree(SHARED / "scenes", tmp_path / "scenes"))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    settings = config(root, truth=SHARED / "scenes_truth")
    report = refine(settings)
    found = quality_of(report)
    assert (found["frames"], found["missing"], found["wrong"]) == (36, 0, 0)
    for one in found["scenes"]:
        assert one["after"]["mean_iou"] >= one["before"]["mean_iou"], one["scene"]
    assert found["total"]["after"]["mean_iou"] > found["total"]["before"]["mean_iou"]
    page = write_report(settings, report)
    assert page.stat().st_size < 8_000_000
