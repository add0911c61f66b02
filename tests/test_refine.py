"""The job of refine: every frame once, exactly what changed anew, the same bytes whatever happened in between, and nothing
of anybody else's lost."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import (
    BadData,
    BudgetExceeded,
    OutputRefused,
    PartClaimed,
    RecipeMismatch,
    RowFailed,
    SourceNotFound,
    UsageError,
)
from penstock.geometry.id_pngs import read_id_png
from penstock.launch.local import Local
from penstock.readers.pth import load_id_file, save_id_map
from penstock.refine import gpus_of, plan_refine, refine
from penstock.refine_config import RefineConfig
from penstock.refine_sink import open_rows
from penstock.refining.types import Frame
from penstock.report import Report
from penstock.store import open_store
from penstock.store.claims import Claim
from tests.readers.test_pth import pickled
from tests.refine_data import LookedAt, MaskProposer, coarse_map, config, outputs_of, write_frame, write_scenes
from tests.store.crash import KillDisk
from tests.test_bad_input import data_files

MASKS = MaskProposer()
HOSTILE = pickled(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
"""A pickle that runs a program."""
VERSION = r"\.\d+/"
"""Of a part that was made anew, in the name of its folder."""
ROOT = Path(__file__).parents[1]
SCENES = ROOT.parent / "shared" / "data" / "scenes"


def run(root: Path, **changes: object) -> Report:
    return refine(config(root, **changes), proposer=MASKS)


def store_of(root: Path, folder: str = "obj_ids_refine") -> Path:
    return root / ".penstock" / folder


def everything(root: Path) -> dict[str, bytes]:
    """Refined maps, confidences, and the store's data."""
    return outputs_of(root) | {
        f"store/{re.sub(VERSION, '/', name)}": content for name, content in data_files(store_of(root)).items()
    }


def scenes_of(report: Report) -> Any:
    return report.notes["scenes"]


def total_of(report: Report) -> Any:
    return report.notes["total"]


def computed(report: Report) -> int:
    return report.done + report.failed - report.skipped


def failure(root: Path, key: str) -> str:
    store = open_store(store_of(root))
    with pytest.raises(RowFailed) as caught:
        store[store.find(key)]
    return str(caught.value)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data", {"a": 3, "b": 2})


def test_every_frame_has_its_map_its_confidence_and_its_row(scenes: Path) -> None:
    report = run(scenes)
    assert (report.status, report.planned, report.done) == ("ok", 5, 5)
    store = open_store(store_of(scenes))
    assert list(store.keys) == [*(f"a/frame_{n:06d}" for n in range(3)), *(f"b/frame_{n:06d}" for n in range(2))]
    for row in store:
        place = scenes / str(row["file"])
        assert place.name.endswith(".jpg.pth")
        refined = load_id_file(place)
        before = load_id_file(scenes / str(row["path"]).replace("images", "obj_ids").__add__(".pth"))
        assert refined.dtype == np.uint16
        assert refined.shape == before.shape == tuple(np.asarray(row["size_hw"]))
        assert set(np.unique(refined)) >= set(np.unique(before)) - {0}
        confidence = scenes / f"{place.parent.parent.name}/obj_ids_refine_confidence/{Path(str(row['path'])).name}.png"
        levels = read_id_png(confidence.read_bytes())
        assert levels.shape == refined.shape
        assert (levels[refined == 0] == 0).all()
        assert int(np.asarray(row["objects"])) == len(set(np.unique(before)) - {0})
        assert int(np.asarray(row["invalid_pixels"])) == int((refined == 0).sum())
        assert int(np.asarray(row["file_bytes"])) == place.stat().st_size
        table = json.loads(str(row["table"]))
        assert [one["id"] for one in table["objects"]] == sorted(set(np.unique(before).tolist()) - {0})
        assert sum(one["after"] for one in table["objects"]) == int((refined > 0).sum())
        assert sum(table["reasons"].values()) == refined.size


def test_the_refined_maps_are_a_source_of_scenes_themselves(scenes: Path) -> None:
    from penstock.registry import open_source

    run(scenes)
    assert len(open_source(f"scenes:{scenes}?ids=obj_ids_refine")) == 5


def test_a_file_opens_with_torch(scenes: Path) -> None:
    torch = pytest.importorskip("torch")
    run(scenes, dtype="int32")
    path = scenes / "a/obj_ids_refine/frame_000000.jpg.pth"
    tensor = torch.load(path, weights_only=True)
    assert tensor.dtype == torch.int32
    np.testing.assert_array_equal(tensor.numpy(), load_id_file(path))


@pytest.mark.parametrize("layout", ["pth", "npy", "png"])
def test_formats_hold_the_same_ids(layout: str, scenes: Path, tmp_path: Path) -> None:
    run(scenes)
    expected = load_id_file(scenes / "b/obj_ids_refine/frame_000001.jpg.pth")
    other = write_scenes(tmp_path / "other", {"a": 3, "b": 2})
    run(other, format=layout)
    found = load_id_file(other / f"b/obj_ids_refine/frame_000001.jpg.{layout}")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint16


def test_one_scene_can_be_the_root(scenes: Path) -> None:
    report = run(scenes / "b")
    assert report.done == 2
    assert scenes_of(report)[0]["scene"] == "b"
    assert (scenes / "b" / "obj_ids_refine" / "frame_000001.jpg.pth").exists()


def test_statistics_are_those_of_the_rows_and_cover_frames_of_earlier_runs(scenes: Path) -> None:
    first = run(scenes)
    again = run(scenes)
    assert (again.done, again.skipped, again.bytes_written) == (5, 5, 0)
    assert again.notes["scenes"] == first.notes["scenes"]
    rows = list(open_store(store_of(scenes)))
    one, two = scenes_of(again)
    assert (one["frames"], one["done"], two["frames"]) == (3, 3, 2)
    assert one["objects"] == sum(int(np.asarray(row["objects"])) for row in rows[:3])
    shares = [int(np.asarray(row["invalid_pixels"])) / int(np.asarray(row["pixels"])) for row in rows]
    assert one["invalid"] == pytest.approx(np.mean(shares[:3]), abs=1e-6)
    assert total_of(again)["invalid"] == pytest.approx(np.mean(shares), abs=1e-6)


def test_an_unchanged_rerun_touches_nothing(scenes: Path) -> None:
    run(scenes)
    before = {path: path.stat().st_mtime_ns for path in scenes.rglob("*") if path.is_file() and path.name[0] != "_"}
    run(scenes)
    after = {path: path.stat().st_mtime_ns for path in scenes.rglob("*") if path.is_file() and path.name[0] != "_"}
    assert before == after


def test_a_changed_map_is_done_again_and_no_other(scenes: Path, tmp_path: Path) -> None:
    run(scenes)
    before = outputs_of(scenes)
    write_frame(scenes / "a", 1, coarse_map(55), seed=1)
    assert plan_refine(config(scenes), proposer=MASKS)["reasons"] == {"done": 4, "changed input": 1}
    report = run(scenes)
    assert report.notes["changed"] == computed(report) == 1
    after = outputs_of(scenes)
    assert {name.rpartition("/")[2][:12] for name in after if after[name] != before[name]} == {"frame_000001"}
    fresh = write_scenes(tmp_path / "fresh", {"a": 3, "b": 2})
    write_frame(fresh / "a", 1, coarse_map(55), seed=1)
    run(fresh)
    assert outputs_of(fresh) == after


def test_a_changed_picture_is_done_again(scenes: Path) -> None:
    run(scenes)
    write_frame(scenes / "b", 0, coarse_map(100), seed=77)
    assert computed(run(scenes)) == 1


def test_files_that_were_only_touched_are_not_done_again(scenes: Path) -> None:
    run(scenes)
    for path in [*scenes.glob("*/images/*"), *scenes.glob("*/obj_ids/*")]:
        os.utime(path, (1, 1))
    assert computed(run(scenes)) == 0


@pytest.mark.parametrize("change", ["gone", "short", "no confidence"])
def test_a_done_row_without_its_file_is_done_again(change: str, scenes: Path) -> None:
    run(scenes)
    clean = everything(scenes)
    place = scenes / "a/obj_ids_refine/frame_000002.jpg.pth"
    if change == "gone":
        place.unlink()
    elif change == "short":
        os.truncate(place, 100)
    else:
        (scenes / "a/obj_ids_refine_confidence/frame_000002.jpg.png").unlink()
    assert plan_refine(config(scenes), proposer=MASKS)["reasons"] == {"done": 4, "files gone": 1}
    report = run(scenes)
    assert computed(report) == 1
    assert "replaced_existing" not in report.notes
    assert outputs_of(scenes) == {name: content for name, content in clean.items() if not name.startswith("store/")}
    assert computed(run(scenes)) == 0


@pytest.mark.parametrize("change", [{"dtype": "int32"}, {"min_pixels": 3}, {"format": "npy"}, {"invalid_ids": (12,)}])
def test_other_settings_do_all_again_and_leave_nothing_of_the_old(
    change: dict[str, object], scenes: Path, tmp_path: Path
) -> None:
    run(scenes)
    assert plan_refine(config(scenes, **change), proposer=MASKS)["reasons"] == {"other settings": 5}
    with pytest.raises(RecipeMismatch):
        run(scenes, on_change="refuse", **change)
    assert computed(run(scenes)) == 0
    assert computed(run(scenes, **change)) == 5
    fresh = write_scenes(tmp_path / "fresh", {"a": 3, "b": 2})
    run(fresh, **change)
    assert everything(fresh) == everything(scenes)
    assert sorted(path.name for path in (scenes / ".penstock").iterdir()) == ["obj_ids_refine"]


def test_a_few_scenes_in_another_format_take_nothing_from_the_rest(scenes: Path) -> None:
    run(scenes)
    before = everything(scenes)
    with pytest.raises(OutputRefused, match="holds 5 frames as pth"):
        plan_refine(config(scenes, max_scenes=1, format="npy"), proposer=MASKS)
    with pytest.raises(OutputRefused, match="output-dir-name"):
        run(scenes, max_scenes=1, format="npy")
    assert everything(scenes) == before
    assert computed(run(scenes, max_scenes=1, min_pixels=3)) == 3
    assert set(outputs_of(scenes)) == {name for name in before if not name.startswith("store/")}


def test_what_a_run_left_that_was_killed_while_it_changed_recipes_is_removed(scenes: Path) -> None:
    run(scenes)
    expected = everything(scenes)
    store_of(scenes).rename(store_of(scenes, "obj_ids_refine.old"))
    assert computed(run(scenes)) == 5
    assert everything(scenes) == expected
    assert [path.name for path in (scenes / ".penstock").iterdir()] == ["obj_ids_refine"]


def test_a_run_with_other_settings_waits_for_nobody_and_takes_nothing_away(scenes: Path) -> None:
    run(scenes)
    before = everything(scenes)
    claim = Claim(store_of(scenes) / "part-00000")
    claim.acquire()
    try:
        with pytest.raises(PartClaimed, match="is being written by"):
            run(scenes, min_pixels=3)
    finally:
        claim.release()
    assert everything(scenes) == before


def test_frames_that_another_run_is_writing_are_left_to_it_and_said(scenes: Path) -> None:
    answers = iter(["", "SIGTERM"])
    refine(config(scenes), proposer=MASKS, stop=lambda: next(answers, "SIGTERM"))
    claim = Claim(store_of(scenes) / "part-00000")
    claim.acquire()
    try:
        report = run(scenes)
    finally:
        claim.release()
    assert report.missing
    assert report.exit_code == 1
    assert "part-00000" in str(report.notes["held"])
    assert run(scenes).status == "ok"


def test_gpus_are_all_that_are_visible_or_the_one_named() -> None:
    assert gpus_of("cpu", "auto") == 0
    assert gpus_of("cuda:1", "cuda:1") == 1


def test_another_proposer_is_another_recipe(scenes: Path) -> None:
    run(scenes)
    with pytest.raises(RecipeMismatch, match="other"):
        refine(config(scenes, on_change="refuse"), proposer=MaskProposer(name="other"))
    assert computed(refine(config(scenes), proposer=MaskProposer(name="other"))) == 5


def test_maps_that_others_made_are_kept_and_counted(scenes: Path) -> None:
    theirs = scenes / "a/obj_ids_refine/frame_000001.jpg.pth"
    theirs.parent.mkdir()
    content = save_id_map(coarse_map(1), "int32")
    theirs.write_bytes(content)
    plan = plan_refine(config(scenes), proposer=MASKS)
    assert plan["reasons"] == {"missing": 4, "to be looked at: made by others": 1}
    report = run(scenes)
    assert theirs.read_bytes() == content
    assert total_of(report)["kept_existing"] == 1
    assert "replaced_existing" not in report.notes
    row = open_store(store_of(scenes))[1]
    assert int(np.asarray(row["objects"])) == 3
    assert int(np.asarray(row["invalid_pixels"])) == int((coarse_map(1) == 0).sum())
    assert computed(run(scenes)) == 0
    assert total_of(run(scenes, min_pixels=3))["kept_existing"] == 1
    assert theirs.read_bytes() == content
    replaced = run(scenes, min_pixels=3, existing="replace")
    assert computed(replaced) == 1
    assert replaced.notes["replaced_existing"] == {"frames": 1, "first": ["a/frame_000001"]}
    assert theirs.read_bytes() != content


def test_a_map_that_others_put_in_the_place_of_ours_is_theirs(scenes: Path) -> None:
    run(scenes)
    theirs = scenes / "a/obj_ids_refine/frame_000001.jpg.pth"
    content = save_id_map(coarse_map(1), "int32")
    theirs.write_bytes(content)
    (scenes / "a/obj_ids_refine_confidence/frame_000001.jpg.png").unlink()
    report = run(scenes)
    assert (computed(report), total_of(report)["kept_existing"]) == (1, 1)
    assert theirs.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", save_id_map(np.ones((4, 5), np.int32)), HOSTILE])
def test_maps_of_others_that_are_damaged_or_of_another_size_are_made_anew_with_a_note(
    content: bytes, scenes: Path
) -> None:
    theirs = scenes / "b/obj_ids_refine/frame_000000.jpg.pth"
    theirs.parent.mkdir()
    theirs.write_bytes(content)
    report = run(scenes)
    assert report.status == "ok"
    assert report.notes["replaced_existing"] == {"frames": 1, "first": ["b/frame_000000"]}
    assert load_id_file(theirs).shape == (40, 56)


def test_the_inputs_are_never_written_to(scenes: Path, tmp_path: Path) -> None:
    for changes in (
        {"output_dir_name": "obj_ids"},
        {"output_dir_name": "images"},
        {"output_dir_name": "x/y"},
        {"output_dir_name": ""},
    ):
        with pytest.raises(UsageError):
            run(scenes, **changes)
    (scenes / "b" / "obj_ids_refine").symlink_to(scenes / "b" / "obj_ids")
    with pytest.raises(OutputRefused, match="a folder of the input"):
        run(scenes)
    assert not (scenes / ".penstock").exists()


def test_an_id_that_does_not_fit_fails_its_frame_and_says_what_to_do(scenes: Path) -> None:
    ids = coarse_map(1)
    ids[5, 5] = 70_000
    write_frame(scenes / "a", 1, ids)
    report = run(scenes)
    assert (report.done, report.failed) == (4, 1)
    assert "70000" in failure(scenes, "a/frame_000001")
    assert "--dtype int32" in failure(scenes, "a/frame_000001")
    assert not (scenes / "a/obj_ids_refine/frame_000001.jpg.pth").exists()
    assert run(scenes, dtype="int32").done == 5
    assert load_id_file(scenes / "a/obj_ids_refine/frame_000001.jpg.pth").max() == 70_000
    assert run(scenes, dtype="int16").failed == 1
    ids[5, 5] = 1 << 40
    write_frame(scenes / "a", 1, ids)
    assert run(scenes, dtype="int32").failed == 1
    assert not (scenes / "a/obj_ids_refine/frame_000001.jpg.pth").exists()  # the one of before would be stale


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint32])
def test_maps_of_every_type(dtype: type[np.generic], tmp_path: Path) -> None:
    ids = np.minimum(coarse_map(0), 200).astype(dtype)
    write_frame(tmp_path / "s", 0, ids.astype(np.int64))
    (tmp_path / "s/obj_ids/frame_000000.jpg.pth").write_bytes(save_id_map(ids))
    assert run(tmp_path).status == "ok"
    assert set(np.unique(load_id_file(tmp_path / "s/obj_ids_refine/frame_000000.jpg.pth"))) >= {7, 12, 200}


def test_minus_one_and_ids_that_are_none_become_zero(tmp_path: Path) -> None:
    ids = coarse_map(3)
    ids[:10, :10] = -1
    write_frame(tmp_path / "s", 0, ids)
    report = run(tmp_path, invalid_ids=(12,))
    refined = load_id_file(tmp_path / "s/obj_ids_refine/frame_000000.jpg.pth")
    assert report.status == "ok"
    assert set(np.unique(refined)) <= {0, 7, 303}


def test_maps_without_any_object(tmp_path: Path) -> None:
    for number, value in enumerate((0, -1)):
        write_frame(tmp_path / "s", number, np.full((20, 30), value, np.int64))
    report = run(tmp_path)
    assert (report.status, report.done) == ("ok", 2)
    assert total_of(report)["invalid"] == 1
    assert not load_id_file(tmp_path / "s/obj_ids_refine/frame_000001.jpg.pth").any()


def test_bad_frames_fail_alone_and_are_named(scenes: Path) -> None:
    for number in range(3, 8):
        write_frame(scenes / "a", number, coarse_map(number))
    images, maps = scenes / "a/images", scenes / "a/obj_ids"
    (maps / "frame_000003.jpg.pth").write_bytes(save_id_map(np.ones((5, 6), np.int32)))
    picture = images / "frame_000004.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    (maps / "frame_000005.jpg.pth").write_bytes(HOSTILE)
    (maps / "frame_000006.jpg.pth").write_bytes(b"")
    report = run(scenes, batch_size=4)
    assert (report.planned, report.done, report.failed) == (10, 6, 4)
    assert report.exit_code == 1
    assert "never resampled" in failure(scenes, "a/frame_000003")
    assert "frame_000004.jpg" in failure(scenes, "a/frame_000004")
    assert "os.system" in failure(scenes, "a/frame_000005")
    one, two = scenes_of(report)
    assert (one["done"], one["failed"], two["failed"]) == (4, 4, 0)
    write_frame(scenes / "a", 3, coarse_map(3))
    assert run(scenes).failed == 3
    with pytest.raises(BudgetExceeded):
        run(scenes, dtype="int32", max_failures="1")


def test_a_frame_that_the_model_cannot_look_at_costs_no_other_of_its_batch(scenes: Path) -> None:
    class Choosy(MaskProposer):
        def encode(self, frames: Sequence[Frame]) -> Sequence[LookedAt]:
            if any(frame.key == "a/frame_000001" for frame in frames):
                raise BadData("a/frame_000001: no memory for it")
            return super().encode(frames)

    report = refine(config(scenes, batch_size=5), proposer=Choosy())
    assert (report.done, report.failed) == (4, 1)
    assert "no memory for it" in failure(scenes, "a/frame_000001")


def test_one_bad_scene_among_many(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "data", {f"scene{number:03d}": 1 for number in range(60)})
    for path in (root / "scene007").glob("images/*"):
        path.write_bytes(b"no picture")
    (root / "empty" / "images").mkdir(parents=True)
    (root / "empty" / "obj_ids").mkdir()
    (root / "not_a_scene").mkdir()
    report = run(root, max_failures="2")
    assert (report.done, report.failed) == (59, 1)
    assert report.exit_code == 0
    assert [problem["path"] for problem in report.problems] == ["empty"]
    assert "without frames" in report.problems[0]["message"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_scene_that_cannot_be_written_to_costs_its_own_frames(scenes: Path) -> None:
    (scenes / "a").chmod(0o555)
    report = run(scenes)
    (scenes / "a").chmod(0o755)
    assert (report.done, report.failed) == (2, 3)


def test_a_file_in_the_place_of_the_output_folder_costs_its_own_frames(scenes: Path) -> None:
    (scenes / "a" / "obj_ids_refine").write_bytes(b"")
    report = run(scenes)
    assert (report.done, report.failed) == (2, 3)
    assert "no folder that can be written to" in failure(scenes, "a/frame_000000")


def test_no_scenes_and_wrong_settings_are_refused(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(SourceNotFound):
        run(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(SourceNotFound):
        run(tmp_path / "bare")
    wrong: list[dict[str, object]] = [
        {"format": "jpg"}, {"dtype": "uint8"}, {"format": "png", "dtype": "int32"}, {"max_scenes": 0}, {"workers": 0},
        {"matcher": "x"}, {"profile": "seed"}, {"existing": "x"}, {"on_change": "x"}, {"pred_iou_thresh": 2.0},
        {"max_failures": "x"}, {"batch_size": 0}, {"ids_dir_name": "a/b"}, {"output_dir_name": ".penstock"},
    ]  # fmt: skip
    for changes in wrong:
        with pytest.raises(UsageError):
            run(scenes, **changes)
    assert not (scenes / ".penstock").exists()


def test_missing_weights_are_said_before_anything_is_touched(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scenes)
    with pytest.raises(UsageError, match="classical"):
        refine(RefineConfig(data_root=scenes))
    assert not (scenes / ".penstock").exists()


def test_the_first_scenes_only_and_then_the_rest(scenes: Path) -> None:
    first = run(scenes, max_scenes=1)
    assert (first.planned, first.done) == (3, 3)
    assert [one["scene"] for one in scenes_of(first)] == ["a"]
    rest = run(scenes)
    assert (rest.planned, rest.done, rest.skipped) == (5, 5, 3)


def test_a_dry_run_writes_nothing(scenes: Path) -> None:
    plan = plan_refine(config(scenes), proposer=MASKS)
    assert plan["rows"] == {"planned": 5, "to_do": 5}
    assert plan["reasons"] == {"missing": 5}
    assert plan["bytes_to_write"] > 5 * 40 * 56 * 2  # type: ignore[operator]  # a number
    assert not (scenes / ".penstock").exists()
    assert not (scenes / "a" / "obj_ids_refine").exists()


def test_a_dry_run_puts_nothing_into_the_cache(scenes: Path, tmp_path: Path) -> None:
    plan_refine(config(scenes, proposal_cache=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    assert refine(config(scenes, proposal_cache=tmp_path / "cache")).status == "ok"
    assert len(list((tmp_path / "cache").rglob("*.proposals"))) >= 5


def test_a_cache_that_cannot_be_written_to_takes_no_refined_map_away(scenes: Path) -> None:
    refine(config(scenes))
    before = everything(scenes)
    with pytest.raises(OutputRefused):
        refine(config(scenes, min_pixels=3, proposal_cache=next(scenes.glob("a/images/*.jpg"))))
    assert everything(scenes) == before


def test_automatic_masks_of_a_proposer_that_has_none_are_warned_of(
    scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = refine(config(scenes, matcher="overlap"))
    assert "every object keeps its mask" in caplog.text
    assert total_of(report)["fallback"] == total_of(report)["kept"] == total_of(report)["objects"]


def test_worker_processes_give_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    run(scenes)
    other = write_scenes(tmp_path / "other", {"a": 3, "b": 2})
    assert run(other, sequential=False, workers=2).status == "ok"
    assert everything(other) == everything(scenes)


def test_batches_of_frames_give_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    run(scenes)
    other = write_scenes(tmp_path / "other", {"a": 3, "b": 2})
    run(other, batch_size=3)
    assert everything(other) == everything(scenes)


def test_a_stopped_run_goes_on_where_it_was(scenes: Path, tmp_path: Path) -> None:
    answers = iter(["", "", "SIGTERM"])
    first = refine(config(scenes), proposer=MASKS, stop=lambda: next(answers, "SIGTERM"))
    assert first.interrupted == "SIGTERM"
    assert 0 < first.done < 5
    assert total_of(first)["done"] == first.done
    assert run(scenes).status == "ok"
    clean = write_scenes(tmp_path / "clean", {"a": 3, "b": 2})
    run(clean)
    assert everything(clean) == everything(scenes)


def test_a_worker_that_dies_names_the_poisoned_frame_and_the_rest_is_done(scenes: Path, tmp_path: Path) -> None:
    report = refine(config(scenes, batch_size=2), proposer=MaskProposer(kills="a/frame_000001"), launcher=Local(2))
    assert (report.done, report.failed) == (4, 1)
    assert dict(report.reasons) == {"WorkerDied": 1}
    assert report.failures[0].key == "a/frame_000001"
    assert not (scenes / "a/obj_ids_refine/frame_000001.jpg.pth").exists()
    assert run(scenes, batch_size=2, retry_failed=True).status == "ok"
    clean = write_scenes(tmp_path / "clean", {"a": 3, "b": 2})
    run(clean)
    assert everything(clean) == everything(scenes)


@pytest.mark.parametrize("halfway", [False, True])
def test_killed_at_any_step_it_ends_with_the_bytes_of_the_clean_run(halfway: bool, tmp_path: Path) -> None:
    clean = write_scenes(tmp_path / "clean", {"a": 2, "b": 1})
    count = KillDisk(1 << 60)
    refine(config(clean, part_rows=2), proposer=MASKS, disk=count)
    steps, expected = (1 << 60) - count.left, everything(clean)
    assert steps > 30
    killed = 0
    for step in range(1, steps + 1, 1 + steps // 20):
        root = write_scenes(tmp_path / f"killed-{step}", {"a": 2, "b": 1})
        child = os.fork()
        if child == 0:
            try:
                refine(config(root, part_rows=2), proposer=MASKS, disk=KillDisk(step, halfway=halfway))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        report = run(root, part_rows=2)
        assert (report.status, report.done) == ("ok", 3)
        assert everything(root) == expected, f"killed at step {step}"
    assert killed > 2


def test_a_new_recipe_killed_at_any_step_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    clean = write_scenes(tmp_path / "clean", {"a": 2, "b": 1})
    run(clean, format="npy")
    expected = everything(clean)
    for step in (1, 3, 8, 15, 25, 40):
        root = write_scenes(tmp_path / f"killed-{step}", {"a": 2, "b": 1})
        run(root)
        child = os.fork()
        if child == 0:
            try:
                refine(config(root, format="npy"), proposer=MASKS, disk=KillDisk(step))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert run(root, format="npy").status == "ok"
        assert everything(root) == expected, f"killed at step {step}"


SCRIPT = """
import sys
from pathlib import Path
from penstock.refine import refine
from tests.readers.test_pth import pickled
from tests.refine_data import MaskProposer, config
refine(config(Path(sys.argv[1]), sequential=False, workers=2, part_rows=4), proposer=MaskProposer())
"""


def test_killed_at_random_with_its_workers_it_ends_with_the_bytes_of_the_clean_run(tmp_path: Path, seed: int) -> None:
    counts = {"a": 7, "b": 6}
    clean = write_scenes(tmp_path / "clean", counts)
    run(clean, part_rows=4)
    root, rng = write_scenes(tmp_path / "killed", counts), random.Random(seed)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(root)], cwd=ROOT)
        wait_for(lambda: bool(outputs_of(root)), rng.uniform(0.5, 3.0))
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
    report = run(root, part_rows=4)
    assert (report.status, report.done) == ("ok", 13)
    assert everything(root) == everything(clean)


def wait_for(holds: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)


def test_rows_of_a_part_that_is_made_anew_are_read_from_its_next_version(scenes: Path) -> None:
    run(scenes)
    write_frame(scenes / "a", 0, np.full((40, 56), 9, np.int64))
    (scenes / "a/obj_ids_refine/frame_000002.jpg.pth").unlink()
    answers = iter(["", "", "SIGINT"])
    report = refine(config(scenes), proposer=MASKS, stop=lambda: next(answers, "SIGINT"))
    assert report.interrupted
    rows = open_rows(store_of(scenes))
    assert total_of(report)["done"] == rows.counts()["done"]
    assert run(scenes).status == "ok"
    assert int(np.asarray(open_rows(store_of(scenes))[0]["objects"])) == 1


def test_sam2_runs_through_the_job(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    root = write_scenes(tmp_path / "data", {"a": 2})
    report = refine(config(root, proposer="sam2:random:tiny", device="cpu", batch_size=2))
    assert (report.status, report.done) == ("ok", 2)
    assert total_of(report)["objects"] == total_of(report)["sam_matched"] + total_of(report)["fallback"] == 6
    for number in range(2):
        refined = load_id_file(root / f"a/obj_ids_refine/frame_{number:06d}.jpg.pth")
        assert set(np.unique(refined)) >= set(np.unique(coarse_map(number))) - {0}
    assert computed(refine(config(root, proposer="sam2:random:tiny", device="cpu", batch_size=2))) == 0


def test_scenes_of_the_shared_data_are_refined_without_weights(tmp_path: Path) -> None:
    if not SCENES.exists():
        pytest.skip(f"{SCENES} is not there")
    root = Path(shutil.copytree(SCENES, tmp_path / "scenes"))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    report = refine(config(root, sequential=False, workers=2))
    assert (report.status, report.done, report.missing) == ("ok", 36, 0)
    assert [(one["scene"], one["done"]) for one in scenes_of(report)] == [
        ("indoor_cats", 10), ("lobby_chair", 8), ("rugby_field", 10), ("street_a", 8),
    ]  # fmt: skip
    assert total_of(report)["accepted"] + total_of(report)["kept"] <= total_of(report)["objects"]
