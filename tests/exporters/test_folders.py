"""MOT, GOT-10k, LaSOT and COCO-video: read back, frame by frame, by the readers of these layouts."""

import configparser
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData, OutputRefused, PartClaimed, SourceNotFound, UsageError
from penstock.exporters import export
from penstock.exporters.coco_video import CocoVideo
from penstock.exporters.got10k import Got10kFolder, cover_of
from penstock.exporters.lasot import LasotFolder, lasot_line
from penstock.exporters.mot import Mot, mot_lines
from penstock.exporters.run import make_exporter
from penstock.exporters.sequences import Frame
from penstock.exporters.text import fixed, folder_text
from penstock.geometry.images import decode_picture
from penstock.readers.got10k import Got10k
from penstock.readers.lasot import Lasot
from penstock.readers.track_files import parse_boxes
from penstock.readers.youtube_vis import YoutubeVis
from penstock.registry import names
from penstock.testing_exporters import ExporterTests, boxes_of, digests, make_saved_set
from tests.exporters.data import exported, save_real, truth

SIDES = st.floats(0.01, 5000)
CORNERS = st.floats(-5000, 5000)


class TestMot(ExporterTests):
    """The contract."""

    def make_exporter(self) -> Mot:
        return Mot()


class TestGot10kFolder(ExporterTests):
    """The contract."""

    def make_exporter(self) -> Got10kFolder:
        return Got10kFolder()


class TestLasotFolder(ExporterTests):
    """The contract."""

    def make_exporter(self) -> LasotFolder:
        return LasotFolder()


class TestCocoVideo(ExporterTests):
    """The contract."""

    def make_exporter(self) -> CocoVideo:
        return CocoVideo()


def frame_of(box: list[float], absent: str = "") -> Frame:
    return Frame(
        role="search", number=0, frame=0, box=np.array(box), absent=absent, picture=None, suffix="", size_hw=(100, 200)  # type: ignore[arg-type]
    )  # fmt: skip


def parse_mot(path: Path) -> np.ndarray:
    """(n, 5): frame from 0, XYWH with the corner from 0."""
    rows = np.array([line.split(",") for line in path.read_text().splitlines()], np.float64).reshape(-1, 10)
    assert (rows[:, 1] == 1).all()
    assert (rows[:, 6:] == [1, -1, -1, -1]).all()
    return np.column_stack([rows[:, 0] - 1, rows[:, 2:4] - 1, rows[:, 4:6]])


def test_mot_round_trip(tmp_path: Path) -> None:
    out = exported(tmp_path, Mot())
    for number in range(3):
        boxes, absent = truth(number)
        folder = out / "train" / f"seq_{number + 1:06d}"
        rows = parse_mot(folder / "gt" / "gt.txt")
        assert rows[:, 0].tolist() == np.flatnonzero(~absent).tolist()
        np.testing.assert_allclose(rows[:, 1:], boxes[~absent], atol=5.1e-5)
        info = configparser.ConfigParser()
        info.read(folder / "seqinfo.ini")
        about = info["Sequence"]
        assert (about["name"], about["imDir"], about["imExt"]) == (folder.name, "img1", ".jpg")
        assert [int(about[name]) for name in ("seqLength", "imWidth", "imHeight", "frameRate")] == [5, 64, 48, 1]
        assert sorted(path.name for path in (folder / "img1").iterdir()) == [f"{n:06d}.jpg" for n in range(1, 6)]
    saved = tmp_path / "set" / "seq_000001_20241201_143022" / "images" / "search" / "search_000.jpg"
    assert (out / "train" / "seq_000001" / "img1" / "000003.jpg").read_bytes() == saved.read_bytes()


def test_mot_keeps_pngs_and_splits_sizes(tmp_path: Path) -> None:
    out = exported(tmp_path, Mot(split="val"), image_format="png", search_size=128)
    folders = sorted(path.name for path in (out / "val").iterdir())
    assert folders == [f"seq_{n:06d}-{part}" for n in (1, 2, 3) for part in (1, 2)]
    text = (out / "val" / "seq_000001-2" / "seqinfo.ini").read_text()
    assert "imWidth=128\nimHeight=48\nimExt=.png\n" in text
    rows = parse_mot(out / "val" / "seq_000001-2" / "gt" / "gt.txt")
    assert rows[:, 0].tolist() == [0, 1]
    saved = tmp_path / "set" / "seq_000001_20241201_143022" / "images" / "search" / "search_001.png"
    assert (out / "val" / "seq_000001-2" / "img1" / "000002.png").read_bytes() == saved.read_bytes()


def test_got10k_round_trip(tmp_path: Path) -> None:
    out = exported(tmp_path, Got10kFolder())
    source = Got10k(out)
    assert [group.name for group in source.groups] == [f"seq_{n:06d}" for n in (1, 2, 3)]
    assert not source.problems
    for number, group in enumerate(source.groups):
        boxes, absent = truth(number)
        records = [source[row] for row in range(group.start, group.stop)]
        np.testing.assert_allclose([one["box"] for one in records], boxes, atol=5.1e-5)
        assert [not one["visible"] for one in records] == absent.tolist()
        assert {one["category"] for one in records} == {"toy car"}
        cut = [bool(one["cut_by_image"]) for one in records]
        assert cut == [False, False, False, bool(not absent[3] and boxes[3, 0] < 0), False]
        saved = tmp_path / "set" / f"seq_{number + 1:06d}_20241201_143022" / "images" / "template" / "template_001.jpg"
        np.testing.assert_array_equal(records[1]["image"], decode_picture(saved.read_bytes()))
    lines = (out / "train" / "seq_000001" / "groundtruth.txt").read_text().splitlines()
    assert lines[0] == "4.5000,6.2500,20.1250,10.0625"
    assert [len(number.partition(".")[2]) for line in lines for number in line.split(",")] == [4] * 20
    assert (out / "train" / "seq_000001" / "cover.label").read_text().split() == ["8", "8", "8", "6", "0"]
    info = (out / "train" / "seq_000001" / "meta_info.ini").read_text().splitlines()
    assert [line.partition(":")[0] for line in info[:6]] == [
        "[METAINFO]", "url", "begin", "end", "anno_fps", "object_class",
    ]  # fmt: skip


def test_lasot_round_trip(tmp_path: Path) -> None:
    out = exported(tmp_path, LasotFolder())
    source = Lasot(out)
    assert [group.name for group in source.groups] == [f"toy car-{n}" for n in (1, 2, 3)]
    assert not source.problems
    for number, group in enumerate(source.groups):
        boxes, absent = truth(number)
        records = [source[row] for row in range(group.start, group.stop)]
        np.testing.assert_allclose([one["box"] for one in records], boxes, atol=5.1e-5)
        assert [not one["visible"] for one in records] == absent.tolist()
        assert [bool(one["occluded"]) for one in records] == [False, number == 1, False, False, False]
        assert [bool(one["out_of_view"]) for one in records] == [False, False, number == 2, number == 2, True]
        assert {one["sentence"] for one in records} == {"toy car"}
    assert (out / "toy car" / "toy car-1" / "groundtruth.txt").read_text().splitlines() == [
        "5.5,7.25,20.125,10.0625", "9,10,10,12", "31.3333,21.2,15.1,12.7", "-4.5,4,20,10", "0,0,0,0",
    ]  # fmt: skip


@pytest.mark.parametrize("masks", [True, False])
def test_coco_video_round_trip(tmp_path: Path, masks: bool) -> None:
    out = exported(tmp_path, CocoVideo(segmentation="masks" if masks else "boxes"), masks=masks)
    source = YoutubeVis(out)
    assert [group.stop - group.start for group in source.groups] == [5, 5, 5]
    assert not source.problems
    for number, group in enumerate(source.groups):
        boxes, absent = truth(number)
        records = [source[row] for row in range(group.start, group.stop)]
        assert [not one["visible"] for one in records] == absent.tolist()
        kept = np.array([one["box"] for one in records])[~absent]
        np.testing.assert_array_equal(kept, boxes[~absent].astype(np.float32))
        for record, box, is_absent in zip(records, boxes, absent, strict=True):
            x, y, w, h = box.clip(0).round().astype(int).tolist()
            mask = np.zeros((48, 64), np.uint8)
            mask[y : y + h, x : x + w] = not is_absent
            if masks:
                np.testing.assert_array_equal(record["mask"], mask)
            assert bool(np.asarray(record["mask"]).any()) != is_absent
    content = json.loads((out / "train" / "instances.json").read_text())
    assert [video["frame_ids"] for video in content["videos"]] == [[3, 5, 9, 12, 15]] * 3
    assert [video["source_video"] for video in content["videos"]] == ["video-0", "video-1", "video-2"]
    assert content["annotations"][0]["bboxes"][2] == boxes_of("search", 0)[0].tolist()
    assert content["annotations"][0]["bboxes"][4] is None


def test_coco_video_without_masks_says_null(tmp_path: Path) -> None:
    out = exported(tmp_path, CocoVideo(), search_size=128)
    content = json.loads((out / "train" / "instances.json").read_text())
    sizes = [(video["height"], video["width"], video["length"]) for video in content["videos"]]
    assert sizes == [(48, 64, 2), (48, 128, 3)] * 3
    assert all(one["segmentations"] == [None] * one["length"] == one["areas"] for one in content["annotations"])
    source = YoutubeVis(out)
    boxes = [source.read(row, ["box"])["box"] for row in range(2, 4)]
    np.testing.assert_array_equal(boxes, boxes_of("search", 0)[:2].astype(np.float32))


def test_masks_agree_with_pycocotools(tmp_path: Path) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    out = exported(tmp_path, CocoVideo(), masks=True)
    for annotation in json.loads((out / "train" / "instances.json").read_text())["annotations"]:
        size = annotation["height"], annotation["width"]
        for runs, area in zip(annotation["segmentations"], annotation["areas"], strict=True):
            if runs is not None:
                assert int(mask_api.area(mask_api.frPyObjects(runs, *size))) == area


@pytest.mark.filterwarnings("ignore")
def test_the_toolkit_of_got10k_reads_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("got10k.datasets")
    out = exported(tmp_path, Got10kFolder())
    for number, (files, boxes, meta) in enumerate(datasets.GOT10k(str(out), subset="train", return_meta=True)):
        expected, absent = truth(number)
        np.testing.assert_allclose(boxes, expected, atol=5.1e-5)
        assert [Path(file).name for file in files] == [f"{n:08d}.jpg" for n in range(1, 6)]
        assert meta["absence"].tolist() == absent.tolist()
        assert meta["object_class"] == "toy car"


@pytest.mark.filterwarnings("ignore")
def test_motmetrics_reads_the_same(tmp_path: Path) -> None:
    motmetrics = pytest.importorskip("motmetrics")
    out = exported(tmp_path, Mot())
    for number in range(3):
        boxes, absent = truth(number)
        path = out / "train" / f"seq_{number + 1:06d}" / "gt" / "gt.txt"
        table = motmetrics.io.loadtxt(str(path), fmt="mot15-2D", min_confidence=1)
        np.testing.assert_allclose(table[["X", "Y", "Width", "Height"]], boxes[~absent], atol=5.1e-5)


@given(st.tuples(CORNERS, CORNERS, SIDES, SIDES))
def test_written_boxes_are_the_boxes_to_half_a_digit(box: tuple[float, float, float, float]) -> None:
    for text, first in (
        (fixed(np.array(box)), 0),
        (lasot_line(frame_of(list(box))), 1),
        (",".join(mot_lines([frame_of(list(box))])[0].split(",")[2:6]), 1),
    ):
        found, faulty = parse_boxes(text.encode())
        assert not faulty
        assert np.abs(found[0] - np.array(box) - np.array([first, first, 0, 0])).max() <= 5.001e-5
        assert "-0," not in f"{text},"
        assert "e" not in text


@given(st.tuples(CORNERS, CORNERS, SIDES, SIDES))
def test_cover_is_a_share_of_the_box_in_eighths(box: tuple[float, float, float, float]) -> None:
    x, y, w, h = box
    inside = max(0, min(x + w, 200) - max(x, 0)) * max(0, min(y + h, 100) - max(y, 0)) / (w * h)
    cover = cover_of(frame_of(list(box)))
    assert 1 <= cover <= 8
    assert abs(cover - 8 * inside) <= 0.5001 or (cover == 1 and inside < 1 / 16)
    assert cover_of(frame_of(list(box), "outside")) == 0


@pytest.mark.parametrize(
    ("name", "folder"), [("", "object"), ("../up", "__up"), ("a/b", "a_b"), ("dining table", "dining table")]
)
def test_a_class_is_a_name_of_a_folder(name: str, folder: str) -> None:
    assert folder_text(name) == folder


def test_classes_that_lead_elsewhere_stay_inside(tmp_path: Path) -> None:
    out = exported(tmp_path, LasotFolder(), category="../../up")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    assert len(Lasot(out).groups) == 3


def test_source_pictures_of_a_set_that_has_both(tmp_path: Path) -> None:
    save_real(tmp_path / "set", pictures="both")
    export(tmp_path / "set", tmp_path / "crops", format=Mot())
    export(tmp_path / "set", tmp_path / "frames", format=Mot(), pictures="source")
    assert len(list((tmp_path / "crops" / "train").iterdir())) == 4  # templates of 32, searches of 48
    folders = sorted((tmp_path / "frames" / "train").iterdir())
    assert len(folders) == 2
    for folder, sequence in zip(folders, sorted((tmp_path / "set").glob("seq_*")), strict=True):
        origin = json.loads((sequence / "provenance.json").read_text())["origin"]
        rows = parse_mot(folder / "gt" / "gt.txt")
        np.testing.assert_allclose(rows[:, 1:], origin["template"]["boxes"] + origin["search"]["boxes"], atol=5.1e-5)
        for number, path in enumerate([*origin["template"]["paths"], *origin["search"]["paths"]], 1):
            assert (folder / "img1" / f"{number:06d}.jpg").read_bytes() == (tmp_path / "lasot" / path).read_bytes()


def test_source_pictures_that_are_not_there(tmp_path: Path) -> None:
    save_real(tmp_path / "set")
    with pytest.raises(BadData, match="holds no pictures of the source"):
        export(tmp_path / "set", tmp_path / "out", format=Mot(), pictures="source")


@pytest.mark.parametrize("exporter", [Mot(), Got10kFolder(), LasotFolder(), CocoVideo()])
def test_a_set_without_pictures_is_refused(tmp_path: Path, exporter: Mot) -> None:
    save_real(tmp_path / "set", save_images=False)
    with pytest.raises(BadData, match="save with save_images"):
        export(tmp_path / "set", tmp_path / "out", format=exporter)


def test_pickled_sets_are_exported_too(tmp_path: Path) -> None:
    for save_format in ("json", "pickle"):
        save_real(tmp_path / save_format, save_format=save_format)
        export(tmp_path / save_format, tmp_path / f"{save_format}-out", format=Got10kFolder())
    plain, pickled = (digests(tmp_path / f"{name}-out" / "train") for name in ("json", "pickle"))
    assert plain == pickled


def test_two_sequences_of_one_id_are_both_there(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set", 2)
    (tmp_path / "set" / "seq_000002_20241201_143022").rename(tmp_path / "set" / "seq_000001_20250101_000000")
    export(tmp_path / "set", tmp_path / "out", format=Mot())
    names = sorted(path.name for path in (tmp_path / "out" / "train").iterdir())
    assert names == ["seq_000001_20241201_143022", "seq_000001_20250101_000000"]


@pytest.mark.parametrize("faults", [{"split": "../up"}, {"split": ""}])
def test_options_out_of_range_are_refused(faults: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Mot(**faults)
    with pytest.raises(UsageError):
        CocoVideo(**faults)


def test_other_misuse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="segmentation"):
        CocoVideo(segmentation="polygons")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="jpeg_quality"):
        LasotFolder(jpeg_quality=0)
    with pytest.raises(UsageError, match="split"):
        Got10kFolder(split="test")  # type: ignore[arg-type]
    with pytest.raises(SourceNotFound, match="saved sequences"):
        export(tmp_path, tmp_path / "out", format=Mot())
    make_saved_set(tmp_path / "set")
    with pytest.raises(UsageError, match="expected saved or source"):
        export(tmp_path / "set", tmp_path / "out", format=Mot(), pictures="raw")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give them to the exporter"):
        export(tmp_path / "set", tmp_path / "out", format=Mot(), split="val")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused, match="is a file"):
        export(tmp_path / "set", tmp_path / "file", format=Mot())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "set"]


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set")
    refused: list[str] = []

    def again() -> str:
        if not refused:
            with pytest.raises(PartClaimed, match="another run") as error:
                export(tmp_path / "set", tmp_path / "out", format=Mot())
            refused.append(str(error.value))
        return ""

    report = export(tmp_path / "set", tmp_path / "out", format=Mot(), stop=again)
    assert (len(refused), report.done) == (1, 3)


def test_a_failure_budget_decides_on_the_exit_code(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set")
    (tmp_path / "set" / "seq_000002_20241201_143022" / "provenance.json").unlink()
    report = export(tmp_path / "set", tmp_path / "out", format=Mot(), max_failures="1")
    assert (report.done, report.failed, report.exit_code) == (2, 1, 0)
    assert "provenance.json" in report.failures[0].message


def test_an_empty_folder_may_be_the_output(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set")
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "set", tmp_path / "out", format=Mot()).exit_code == 0
    assert (tmp_path / "out" / "train" / "seq_000001").is_dir()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("coco-video", {"segmentation": "boxes"}), ("mot", {"split": "val"}), ("got10k", {"jpeg_quality": 80}),
        ("lasot", {}), ("webdataset", {"shard_sequences": 2}), ("parquet", {"compression": "none"}), ("store", {}),
        ("safetensors", {}), ("rerun", {}),
    ],
)  # fmt: skip
def test_exporters_are_found_by_name(name: str, options: dict[str, object]) -> None:
    exporter = make_exporter(name, options)
    assert exporter.name == name
    assert exporter == type(exporter)(**options)
    with pytest.raises(UsageError, match="no_such"):
        make_exporter(name, {"no_such": 1})


def test_every_registered_exporter_is_named_as_it_says() -> None:
    for name in names("exporters"):
        assert make_exporter(name, {}).name == name


def test_a_killed_run_leaves_no_output_and_the_next_is_whole(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set")
    export(tmp_path / "set", tmp_path / "clean", format=Mot())
    for killed_at in range(1, 4):
        calls = iter(range(1, 5))
        child = os.fork()
        if child == 0:
            try:
                export(
                    tmp_path / "set", tmp_path / "out", format=Mot(),
                    stop=lambda: os.kill(os.getpid(), signal.SIGKILL) or "" if next(calls) == killed_at else "",  # noqa: B023
                )  # fmt: skip
            finally:
                os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not (tmp_path / "out").exists()
    export(tmp_path / "set", tmp_path / "out", format=Mot())
    assert digests(tmp_path / "out") == digests(tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "out", "set"]
