"""Saving sequences: the tree of the seed's document, the same bytes whoever saves them and however often killed, and
every failure said."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import sequence_sink
from penstock.errors import (
    BadData,
    BudgetExceeded,
    OutputFull,
    OutputRefused,
    RecipeMismatch,
    SourceNotFound,
    UsageError,
)
from penstock.geometry.crops import map_boxes
from penstock.report import Report, dump_json
from penstock.sequence_config import DrawConfig, SaveConfig, SequenceConfig, load_config
from penstock.sequence_save import save_sequences
from penstock.stages.sequence_config import CropConfig, RoleCrop
from tests.sequence_data import MaskedPictures, write_lasot
from tests.store.crash import FullDisk, KillDisk

STAMP = "20241201_143022"
DRAW = DrawConfig(min_frames=5, min_interval=8, future_steps=3, num_template=2, max_gap=10)
CROPS = CropConfig(
    template=RoleCrop(factor=2, size=32), search=RoleCrop(factor=4, size=48, center_jitter=1, scale_jitter=0.1)
)


@pytest.fixture(scope="module")
def lasot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lasot(tmp_path_factory.mktemp("data") / "lasot")


def config(lasot: Path, output: Path, *, num_sequences: int = 5, seed: int = 1, **save: Any) -> SequenceConfig:
    settings: dict[str, Any] = {"workers": 0, "timestamp": STAMP, **save}
    return SequenceConfig(
        sources=(f"lasot:{lasot}",), output=output, num_sequences=num_sequences, seed=seed,
        draw=DRAW, crops=CROPS, save=SaveConfig(**settings),
    )  # fmt: skip


def hashes(output: Path) -> dict[str, str]:
    """SHA-256 of every file of the sequences, and of the list of paths without its folder."""
    found = {}
    for path in sorted(output.rglob("*")):
        if path.is_file() and ".penstock" not in path.parts:
            content = path.read_bytes().replace(str(output).encode(), b"")
            found[str(path.relative_to(output))] = hashlib.sha256(content).hexdigest()
    return found


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return tuple(
        json.loads((folder / f"{name}.json").read_text()) for name in ("metadata", "annotations", "provenance")
    )  # type: ignore[return-value]


def in_child(run: Callable[[], object]) -> int:
    """Runs in a forked child; its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("pictures", ["crops", "raw", "both"])
def test_the_tree_is_the_seeds(lasot: Path, tmp_path: Path, pictures: str) -> None:
    report = save_sequences(config(lasot, tmp_path / "out", num_sequences=2, pictures=pictures))
    assert (report.done, report.exit_code, report.notes["timestamp"]) == (2, 0, STAMP)
    assert json.loads(dump_json(report.to_json()))["rejected"] == report.notes["rejected"]
    images = ["search/search_000.jpg", "template/template_000.jpg", "template/template_001.jpg"]
    folders = {"both": ("images", "images_raw")}.get(pictures, ("images",))
    one = [
        "annotations.json",
        *(f"{folder}/{name}" for folder in folders for name in images),
        "metadata.json",
        "provenance.json",
    ]
    assert list(hashes(tmp_path / "out")) == [
        f"saved_paths_{STAMP}.txt", *(f"seq_{n:06d}_{STAMP}/{name}" for n in (1, 2) for name in one),
    ]  # fmt: skip
    paths = (tmp_path / "out" / f"saved_paths_{STAMP}.txt").read_text().splitlines()
    assert paths == [str(tmp_path / "out" / f"seq_{n:06d}_{STAMP}") for n in (1, 2)]
    metadata, annotations, provenance = read(Path(paths[1]))
    assert list(metadata) == [
        "sequence_id", "timestamp", "dataset", "test_class", "is_video_dataset", "template_frame_ids", "search_frame_ids",
        "gt_frame_ids_backward", "gt_frame_ids_forward",
    ]  # fmt: skip
    assert (metadata["sequence_id"], metadata["timestamp"], metadata["dataset"]) == ("seq_000002", STAMP, "lasot")
    assert (metadata["test_class"], metadata["is_video_dataset"]) == ("cat", True)
    assert [len(metadata[name]) for name in list(metadata)[5:]] == [2, 1, 8, 3]
    assert all(type(frame) is int for name in list(metadata)[5:] for frame in metadata[name])
    assert [np.shape(annotations[name]) for name in annotations] == [(2, 4), (1, 4), (8, 4), (3, 4)]
    assert provenance["origin"]["search"]["paths"] == [
        f"cat/{provenance['record']['sequence']}/img/{metadata['search_frame_ids'][0] + 1:08d}.jpg"
    ]
    own = lasot / provenance["origin"]["search"]["paths"][0]
    if pictures != "crops":
        assert (Path(paths[1]) / folders[-1] / images[0]).read_bytes() == own.read_bytes()


def test_boxes_lie_in_the_saved_pictures(lasot: Path, tmp_path: Path) -> None:
    save_sequences(config(lasot, tmp_path / "crops", num_sequences=4))
    save_sequences(config(lasot, tmp_path / "raw", num_sequences=4, pictures="raw"))
    for crop, raw in zip(
        sorted((tmp_path / "crops").glob("seq*")), sorted((tmp_path / "raw").glob("seq*")), strict=True
    ):
        (_, cropped, about), (_, image, _) = read(crop), read(raw)
        if about["retry"]:
            continue  # another draw
        for role in ("template", "search"):
            for number, box in enumerate(image[f"{role}_anno"]):
                affine = np.array(about["record"][f"{role}_affine"][number])
                np.testing.assert_allclose(cropped[f"{role}_anno"][number], map_boxes(np.array(box), affine))
        affine = np.array(about["record"]["search_affine"][0])
        for name in ("gt_sequence_anno_backward", "gt_sequence_anno_forward"):
            valid = about["record"][f"{name.rpartition('_')[2]}_valid"]
            for there, box, other in zip(valid, image[name], cropped[name], strict=True):
                if there:
                    np.testing.assert_allclose(other, map_boxes(np.array(box), affine))
                else:
                    assert other == [None] * 4


@pytest.mark.parametrize("save_format", ["json", "pickle"])
def test_same_bytes_on_any_number_of_workers(lasot: Path, tmp_path: Path, save_format: str) -> None:
    for workers in (0, 2):
        report = save_sequences(config(lasot, tmp_path / str(workers), workers=workers, save_format=save_format))
        assert report.exit_code == 0
    assert hashes(tmp_path / "0") == hashes(tmp_path / "2")
    save_sequences(config(lasot, tmp_path / "other", seed=2, save_format=save_format))
    assert hashes(tmp_path / "0") != hashes(tmp_path / "other")


def test_killed_at_every_step_and_resumed_gives_the_same_bytes(
    lasot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked children that kill themselves: before, or in the middle of, each operation on the disk in turn."""
    monkeypatch.setattr(sequence_sink, "COMMIT_SECONDS", 0.0)
    clean = config(lasot, tmp_path / "clean", num_sequences=6, durability="process")
    count = KillDisk(1 << 60)
    save_sequences(clean, disk=count)
    steps = (1 << 60) - count.left
    expected, killed = hashes(tmp_path / "clean"), 0
    for step in range(1, steps + 1):
        settings = replace(clean, output=tmp_path / f"killed-{step}")
        status = in_child(lambda: save_sequences(settings, disk=KillDisk(step, halfway=step % 2 == 0)))  # noqa: B023
        assert status in (signal.SIGKILL, 0)
        killed += status == signal.SIGKILL
        whole = [path for path in settings.output.glob("seq*") if (path / "provenance.json").exists()]
        assert len(whole) == len(list(settings.output.glob("seq*"))), "a folder is there whole or not at all"
        report = save_sequences(settings)
        assert (report.done, report.skipped, report.missing) == (6, len(whole), 0)
        assert hashes(settings.output) == expected, f"killed at step {step}"
    assert killed >= 40


def _save(settings: SequenceConfig) -> None:
    save_sequences(settings)


def _kill_when_busy(settings: SequenceConfig, moment: float) -> bool:
    """Runs a driver with workers and kills it once it has written something, and a moment later; whether it was alive."""
    output = settings.output
    before = set(output.glob("*seq*"))
    driver = multiprocessing.get_context("fork").Process(target=_save, args=(settings,))
    driver.start()
    deadline = time.monotonic() + 60
    while driver.is_alive() and set(output.glob("*seq*")) <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(moment)
    was_alive = driver.is_alive()
    driver.kill()
    driver.join()
    return was_alive


@pytest.mark.slow
def test_eight_workers_and_fifty_kills_give_the_bytes_of_one_worker(
    lasot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, rng = 200, random.Random(0)
    save_sequences(config(lasot, tmp_path / "one", num_sequences=count, workers=1))
    save_sequences(config(lasot, tmp_path / "eight", num_sequences=count, workers=8))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "eight")
    monkeypatch.setattr(sequence_sink, "COMMIT_SECONDS", 0.05)  # of the drivers, which are forks
    settings = config(lasot, tmp_path / "killed", num_sequences=count)
    kills = 0
    while kills < 50:
        save = replace(settings.save, workers=0 if kills % 5 else 2)  # workers take a second to start
        kills += _kill_when_busy(replace(settings, save=save), rng.uniform(0, 0.1))
        for path in list((tmp_path / "killed").glob("seq*"))[:60]:  # so that there is always something to do
            path.rename(tmp_path / f"gone-{kills}-{path.name}")
    save_sequences(settings)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "one")


def _save_some(settings: SequenceConfig, count: int) -> None:
    """Dies when so many are saved, with others in the hands of its workers."""

    def die(report: Report) -> None:
        if report.done == count:
            os.kill(os.getpid(), signal.SIGKILL)

    save_sequences(settings, on_progress=die)


def test_a_killed_driver_with_workers_resumes(lasot: Path, tmp_path: Path) -> None:
    save_sequences(config(lasot, tmp_path / "clean", num_sequences=60))
    settings = config(lasot, tmp_path / "killed", num_sequences=60, workers=2)
    driver = multiprocessing.get_context("fork").Process(target=_save_some, args=(settings, 5))
    driver.start()
    driver.join()
    assert driver.exitcode == -signal.SIGKILL
    assert save_sequences(replace(settings, save=replace(settings.save, workers=0))).exit_code == 0
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "clean")


def test_more_sequences_are_added_and_the_timestamp_is_kept(lasot: Path, tmp_path: Path) -> None:
    save_sequences(config(lasot, tmp_path / "all"))
    save_sequences(config(lasot, tmp_path / "out", num_sequences=2))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("seq*/*")}
    report = save_sequences(config(lasot, tmp_path / "out", timestamp=""))  # now is another time
    assert (report.done, report.skipped) == (5, 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert hashes(tmp_path / "out") == hashes(tmp_path / "all")


def test_a_new_folder_without_a_timestamp_takes_now(lasot: Path, tmp_path: Path) -> None:
    save_sequences(config(lasot, tmp_path / "out", num_sequences=2, timestamp=""))
    names = [path.name for path in sorted((tmp_path / "out").glob("seq*"))]
    assert len({name[-15:] for name in names}) == 1
    assert abs(time.mktime(time.strptime(names[0][-15:], "%Y%m%d_%H%M%S")) - time.time()) < 60


def test_another_configuration_is_refused_with_the_differences(lasot: Path, tmp_path: Path) -> None:
    settings = config(lasot, tmp_path / "out", num_sequences=1)
    save_sequences(settings)
    before = hashes(tmp_path / "out")
    for changed, words in (
        (replace(settings, seed=9), ["seed: saved 1, now 9"]),
        (replace(settings, draw=replace(DRAW, max_gap=11)), ["draw.max_gap: saved 10, now 11"]),
        (replace(settings, crops=replace(CROPS, gray_prob=0.5)), ["crops.gray_prob"]),
        (config(lasot, tmp_path / "out", image_format="png", jpeg_quality=5), ["save.image_format", "save.jpeg_quality"]),
        (config(lasot, tmp_path / "out", timestamp="20300101_000000"), ["timestamp: saved '20241201_143022'"]),
        (replace(settings, sources=(f"lasot:{lasot}?sequences=cat-1",)), ["sources.0"]),
    ):  # fmt: skip
        with pytest.raises(RecipeMismatch) as caught:
            save_sequences(changed)
        assert all(word in str(caught.value) for word in words)
    assert hashes(tmp_path / "out") == before


def test_a_foreign_folder_is_not_touched(lasot: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputRefused, match=r"notes\.txt"):
        save_sequences(config(lasot, tmp_path))
    with pytest.raises(OutputRefused, match="is a file"):
        save_sequences(config(lasot, tmp_path / "notes.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unreadable_frame_fails_its_sequences_and_is_listed(tmp_path: Path) -> None:
    lasot = write_lasot(tmp_path / "lasot", 2)
    good = save_sequences(config(lasot, tmp_path / "good", num_sequences=12, pictures="raw"))
    assert good.exit_code == 0
    for path in (lasot / "cat" / "cat-1" / "img").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    settings = config(lasot, tmp_path / "out", num_sequences=12, pictures="raw")
    report = save_sequences(settings)
    assert report.failed + report.done == 12
    assert report.failed > 0 < report.done
    assert report.exit_code == 1
    assert "cat-1" in report.failures[0].message
    lines = [json.loads(line) for line in (tmp_path / "out" / ".penstock" / "_failures.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} | {path.name[:10] for path in (tmp_path / "out").glob("seq*")} == {
        f"seq_{n:06d}" for n in range(1, 13)
    }
    again = save_sequences(settings)
    assert (again.failed, again.done, again.skipped) == (report.failed, report.done, 12)
    allowed = replace(settings, save=replace(settings.save, max_failures="99%"))
    assert save_sequences(allowed).exit_code == 0
    write_lasot(tmp_path / "mended", 2)
    for path in (tmp_path / "mended" / "cat" / "cat-1" / "img").glob("*.jpg"):
        path.replace(lasot / "cat" / "cat-1" / "img" / path.name)
    retried = replace(settings, save=replace(settings.save, retry_failed=True))
    assert save_sequences(retried).exit_code == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "good")
    for path in (lasot / "cat").glob("*/img/*.jpg"):
        path.write_bytes(b"\xff\xd8")
    with pytest.raises(BudgetExceeded):
        save_sequences(config(lasot, tmp_path / "none", num_sequences=200, pictures="raw"))


def test_rejected_crops_are_drawn_again_counted_and_bounded(tmp_path: Path) -> None:
    far = [[500, 500, 20, 20]]  # outside its picture
    settings = SequenceConfig(output=tmp_path / "out", num_sequences=20, draw=DRAW, crops=CROPS,
                              save=SaveConfig(workers=0, timestamp=STAMP))  # fmt: skip
    mixed = MaskedPictures(4, boxes=[[20, 14, 16, 12]] * 3 + far)
    report = save_sequences(settings, sources=[mixed])
    assert report.exit_code == 0
    rejections = [read(path)[2]["rejections"] for path in sorted((tmp_path / "out").glob("seq*"))]
    assert report.notes["rejected"] == {"template box is outside the picture": sum(map(len, rejections))}
    assert sum(map(len, rejections)) > 0
    for path, refused in zip(sorted((tmp_path / "out").glob("seq*")), rejections, strict=True):
        about = read(path)[2]
        assert about["retry"] == len(refused)
        assert about["record"]["step"] == about["step"] + (about["retry"] << 40)
    assert save_sequences(settings, sources=[mixed]).notes["rejected"] == report.notes["rejected"]
    none = save_sequences(replace(settings, output=tmp_path / "none"), sources=[MaskedPictures(1, boxes=far)])
    assert (none.done, none.failed, none.exit_code) == (0, 20, 1)
    assert "11 draws" in none.failures[0].message
    assert "11 x template box is outside the picture" in none.failures[0].message


def test_a_full_disk_keeps_whole_folders(lasot: Path, tmp_path: Path) -> None:
    settings = config(lasot, tmp_path / "out", image_format="png")
    save_sequences(replace(settings, output=tmp_path / "clean"))
    room = sum(path.stat().st_size for path in (tmp_path / "clean").rglob("*") if path.is_file()) // 2
    with pytest.raises(OutputFull):
        save_sequences(settings, disk=FullDisk(room))
    kept = list((tmp_path / "out").glob("seq*"))
    assert 0 < len(kept) < 5
    assert not list((tmp_path / "out").glob(".writing*"))
    assert save_sequences(settings).skipped == len(kept)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "clean")


def test_a_stop_finishes_what_is_in_hand(lasot: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def on_progress(report: Report) -> None:
        seen.append(report.done)

    report = save_sequences(
        config(lasot, tmp_path / "out", num_sequences=9),
        on_progress=on_progress,
        stop=lambda: "SIGINT" * (len(seen) >= 3),
    )
    assert (report.interrupted, report.exit_code) == ("SIGINT", 1)
    assert 3 <= report.done < 9
    assert len((tmp_path / "out" / f"saved_paths_{STAMP}.txt").read_text().splitlines()) == report.done


def test_sources_that_cannot_be_sampled_are_said_at_once(lasot: Path, tmp_path: Path) -> None:
    settings = config(lasot, tmp_path / "out")
    with pytest.raises(SourceNotFound):
        save_sequences(replace(settings, sources=(f"lasot:{tmp_path / 'nowhere'}",)))
    with pytest.raises(UsageError, match="at least one"):
        save_sequences(replace(settings, sources=()))
    with pytest.raises(UsageError, match="weights"):
        replace(settings, weights=(1.0, 2.0))
    with pytest.raises((UsageError, BadData), match="lasot"):
        save_sequences(replace(settings, draw=replace(DRAW, min_frames=1000)))
    assert not (tmp_path / "out").exists()
    left = replace(
        settings, sources=(f"lasot:{tmp_path / 'nowhere'}?missing=drop", f"lasot:{lasot}"), weights=(5.0, 1.0)
    )
    save_sequences(left)
    save_sequences(replace(settings, output=tmp_path / "one"))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "one")


def test_configuration_from_file_variables_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "save.toml"
    file.write_text(
        'sources = ["lasot:/data"]\noutput = "out"\nseed = 3\n[draw]\nmode = "stark"\nmax_gap = [5, 10]\n'
        "[crops]\nflip_prob = 0\n[crops.template]\nsize = 64\nfactor = 3\n[save]\nworkers = 2\n"
    )
    variables = {"PENSTOCK_SEQUENCE_SEED": "4", "PENSTOCK_SEQUENCE_TEMPLATE_SIZE": "80", "PENSTOCK_LASOT_DIR": "/x"}
    found = load_config(file, {"seed": 5, "pictures": "raw", "num_sequences": None}, environ=variables)
    assert (found.seed, found.save.pictures, found.save.workers, found.num_sequences) == (5, "raw", 2, 100)
    assert found.draw.max_gap == (5, 10)
    assert found.crops.template == RoleCrop(factor=3.0, size=80)
    assert found.crops.search == CropConfig().search
    assert load_config(file, environ=variables).seed == 4
    assert load_config(file, {"max_gap": 7}, environ={}).draw.max_gap == (7,), "stark takes a list, also of one"
    assert load_config(file, {"max_gap": 7, "mode": "causal"}, environ={}).draw.max_gap == 7
    assert load_config(None, {"output": "x", "timestamp": STAMP}, environ={}).save.timestamp == STAMP


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output = 'o'\nspeed = 1", "speed"),
        ("output = 'o'\n[draw]\nmode = 'fast'", "draw.mode"),
        ("output = 'o'\n[save]\nworkers = 'two'", "save.workers"),
        ("output = 'o'\n[crops.search]\nwidth = 2", "crops.search.width"),
        ("output = 'o'\nsources = ['a:b']\nweights = [1, 2]", "weights"),
        ("seed = 1", "output"),
        ("seed =", "TOML"),
    ],
)
def test_a_wrong_configuration_says_where(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_config(tmp_path / "c.toml", environ={})


def test_a_wrong_variable_or_flag_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PENSTOCK_SEQUENCE_SPEED"):
        load_config(None, {"output": "o"}, environ={"PENSTOCK_SEQUENCE_SPEED": "1"})
    with pytest.raises(UsageError, match="speed"):
        load_config(None, {"speed": 1}, environ={})
    with pytest.raises(UsageError, match="timestamp"):
        load_config(None, {"output": "o", "timestamp": "today"}, environ={})
    with pytest.raises(SourceNotFound):
        load_config(tmp_path / "none.toml", environ={})
