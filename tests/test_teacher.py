"""The job of teacher: every picture once, exactly what changed anew, the same bytes whatever happened in between."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("cv2")

from penstock import registry  # noqa: E402
from penstock.cli import main  # noqa: E402
from penstock.convert import ConvertConfig, convert_sa1b_tar  # noqa: E402
from penstock.errors import RecipeMismatch, RowFailed, SourceNotFound, UsageError  # noqa: E402
from penstock.geometry.boxes import mask_box, xywh_to_xyxy  # noqa: E402
from penstock.geometry.masks import resize_mask  # noqa: E402
from penstock.geometry.rle import encode_rle  # noqa: E402
from penstock.models.distill_protocols import Teacher, TeacherOptions  # noqa: E402
from penstock.models.sam2_teacher import Sam2Teacher  # noqa: E402
from penstock.models.stand_in import StandInTeacher  # noqa: E402
from penstock.models.teachers import open_teacher  # noqa: E402
from penstock.readers.sa1b import Sa1b  # noqa: E402
from penstock.registry import open_source  # noqa: E402
from penstock.report import Report  # noqa: E402
from penstock.source import Subset  # noqa: E402
from penstock.stages.teacher_fields import ObjectMasks  # noqa: E402
from penstock.store import open_store, write_store  # noqa: E402
from penstock.store.v1_schema import V1_SCHEMA  # noqa: E402
from penstock.teacher import TeacherConfig, open_input, plan_teach, teach  # noqa: E402
from penstock.teacher_check import check_rows  # noqa: E402
from penstock.teacher_pictures import TeacherPictures  # noqa: E402
from penstock.testing import encode_picture  # noqa: E402
from tests.readers.test_coco_panoptic import write_coco_panoptic  # noqa: E402
from tests.readers.test_scenes import write_scene  # noqa: E402
from tests.store.crash import KillDisk  # noqa: E402
from tests.test_bad_input import data_files  # noqa: E402

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def write_pictures(root: Path, count: int = 5, *, empty: tuple[int, ...] = ()) -> Path:
    """SA-1B: noisy pictures of several sizes with three overlapping objects each; those of `empty` have one of one pixel."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        rng = np.random.default_rng(number)
        height, width = 60 + 7 * number, 80 - 5 * number
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        masks = []
        for place in range(1 if number in empty else 3):
            mask = np.zeros((height, width), np.uint8)
            side = 1 if number in empty else 12 + 6 * place
            mask[5 + 8 * place : 5 + 8 * place + side, 4 + 6 * place : 4 + 6 * place + side] = 1
            pixels[mask > 0] = rng.integers(100, 255, 3)
            masks.append(mask)
        write_picture(root, number, pixels, masks)
    return root


def write_picture(root: Path, number: int, pixels: np.ndarray, masks: list[np.ndarray]) -> None:
    height, width = pixels.shape[:2]
    annotations = []
    for place, mask in enumerate(masks):
        x, y, w, h = mask_box(mask).tolist()
        annotations.append(
            {
                "id": 100 * number + place, "segmentation": encode_rle(mask), "bbox": [x, y, w - 1, h - 1],
                "area": int(mask.sum()), "predicted_iou": 0.9, "stability_score": 0.9, "point_coords": [[x, y]],
            }
        )  # fmt: skip
    image = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    (root / f"sa_{number}.jpg").write_bytes(encode_picture(pixels, "png"))  # lossless, whatever the name says
    (root / f"sa_{number}.json").write_text(json.dumps({"image": image, "annotations": annotations}))


def config(pictures: Path | str, output: Path, **changes: object) -> TeacherConfig:
    text = pictures if isinstance(pictures, str) else f"sa1b:{pictures}"
    known: dict[str, Any] = {
        "source": text,
        "output": output,
        "model_type": "stand-in",
        "image_size": 64,
        "batch_size": 2,
    }
    if "model_type" in changes:
        del known["image_size"]
    return TeacherConfig(**(known | {"num_workers": 0, "device": "cpu", "durability": "process"} | changes))


def computed(report: Report) -> int:
    return report.done + report.failed - report.skipped


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "sa1b")


def test_every_picture_has_its_row_and_each_field_its_definition(pictures: Path, tmp_path: Path) -> None:
    settings = config(pictures, tmp_path / "out", model_type="random:tiny:3", strategy="all")
    report = teach(settings)
    assert (report.planned, report.done, report.status) == (5, 5, "ok")
    assert report.notes["random_weights"] is True
    store, teacher = open_store(tmp_path / "out"), open_teacher("random:tiny:3", TeacherOptions(device="cpu"))
    assert list(store.keys) == [f"sa_{number}" for number in range(1, 6)]
    squares = [f"edge_{side}x{side}" for side in (256, 8, 4)]
    maps = [f"{kind}_map_{side}x{side}" for side in (16, 8, 4) for kind in ("fg", "bg")]
    assert list(store.schema) == ["image", "P4_S16", "P5_S32", *squares, *maps, "bboxes", "masks", "image_shape"]
    source = Sa1b(pictures)
    for row, record in enumerate(store):
        members = [source[place] for place in range(3 * row, 3 * row + 3)]
        picture = np.asarray(members[0]["image"])
        for name, values in teacher.features([picture]).items():
            if name in record:
                np.testing.assert_array_equal(record[name], values[0].numpy())
        stretched = Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(record["image"], np.asarray(stretched))
        masks = [np.asarray(member["mask"]) for member in members]
        np.testing.assert_array_equal(record["bboxes"], xywh_to_xyxy(np.stack([mask_box(mask) for mask in masks])))
        np.testing.assert_array_equal(record["masks"], np.stack([resize_mask(mask, (256, 256)) for mask in masks]))
        for name in maps:
            assert np.asarray(record[name]).sum() == pytest.approx(1, abs=1e-5)
        assert np.asarray(record["image_shape"]).tolist() == list(picture.shape)
    said = store.attributes
    assert (said["model_type"], said["image_size"], said["bbox_format"]) == ("random:tiny:3", 128, "xyxy")
    assert said["teacher"]["weights"] == teacher.identity()["weights"]  # type: ignore[index]  # a mapping


def test_fields_codec_and_type_are_those_asked_for(pictures: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"fields": ("P3_S8", "bbox"), "feature_dtype": "float16", "image_codec": "jpeg"}
    teach(config(pictures, tmp_path / "out", **changes))
    store = open_store(tmp_path / "out")
    assert {name: field.dtype for name, field in store.schema.items()} == {
        "image_jpeg": "uint8", "P3_S8": "float16", "bboxes": "float32", "image_shape": "int32"
    }  # fmt: skip
    found = check_rows(config(pictures, tmp_path / "out", **changes), 5)
    assert found.is_good
    assert 0 < found.fields["P3_S8"].cosine_error < 1e-6  # what half precision costs
    assert found.fields["P3_S8"].worst.startswith("sa_")


def test_an_unchanged_rerun_does_nothing_and_says_so(pictures: Path, tmp_path: Path) -> None:
    teach(config(pictures, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    report = teach(config(pictures, tmp_path / "out"))
    assert (report.planned, report.done, report.skipped, report.bytes_written) == (5, 5, 5, 0)
    assert report.notes["unchanged"] is True
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for path in pictures.iterdir():
        os.utime(path, (1, 1))
    assert plan_teach(config(pictures, tmp_path / "out"))["reasons"] == {"changed input": 5}
    assert computed(teach(config(pictures, tmp_path / "out"))) == 0  # only touched


def test_a_changed_picture_or_mask_computes_its_row_anew_and_no_other(pictures: Path, tmp_path: Path) -> None:
    teach(config(pictures, tmp_path / "out"))
    json_file = pictures / "sa_4.json"
    content = json.loads(json_file.read_text())
    del content["annotations"][1]
    json_file.write_text(json.dumps(content))
    with Image.open(pictures / "sa_2.jpg") as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0] ^= 255
    (pictures / "sa_2.jpg").write_bytes(encode_picture(pixels, "png"))
    report = teach(config(pictures, tmp_path / "out"))
    assert report.notes["changed"] == computed(report) == 2
    teach(config(pictures, tmp_path / "clean"))
    for left, right in zip(open_store(tmp_path / "out"), open_store(tmp_path / "clean"), strict=True):
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "random:tiny"}, r"P4_S16: shape: store \(256, 4, 4\), now \(128, 8, 8\)"),
        ({"image_size": 96}, r"P4_S16: shape: store \(256, 4, 4\), now \(256, 6, 6\)"),
        ({"strategy": "largest"}, "strategy: store 'geometry-colour', now 'largest'"),
        ({"max_objects": 2}, "max_objects"),
        ({"fields": ("P4_S16",)}, "P5_S32: only in the store"),
        ({"feature_dtype": "float16"}, "P4_S16: dtype: store float32, now float16"),
    ],
)
def test_another_recipe_is_refused_or_takes_the_place_of_the_old_one(
    change: dict[str, object], word: str, pictures: Path, tmp_path: Path
) -> None:
    teach(config(pictures, tmp_path / "out", max_pictures=2))
    clean = data_files(tmp_path / "out")
    changed = config(pictures, tmp_path / "out", max_pictures=2, **change)
    for run in (teach, plan_teach):
        with pytest.raises(RecipeMismatch, match=rf"(?s){word}.*\n--on-change recompute"):
            run(changed)
    assert data_files(tmp_path / "out") == clean
    assert computed(teach(replace(changed, on_change="recompute"))) == 2
    teach(replace(changed, output=tmp_path / "fresh"))
    assert data_files(tmp_path / "out") == data_files(tmp_path / "fresh")


@pytest.mark.parametrize("halfway", [False, True])
def test_killed_at_any_step_it_ends_with_the_bytes_of_the_clean_run(halfway: bool, tmp_path: Path) -> None:
    settings = config(write_pictures(tmp_path / "sa1b", 3), tmp_path / "out", part_rows=2, fields=("P5_S32", "bbox"))
    count = KillDisk(1 << 60)
    teach(replace(settings, output=tmp_path / "clean"), disk=count)
    steps, clean = (1 << 60) - count.left, data_files(tmp_path / "clean")
    killed = 0
    for step in range(1, steps + 1, 1 + steps // 10):
        output = tmp_path / f"killed-{step}"
        child = os.fork()
        if child == 0:
            try:
                teach(replace(settings, output=output), disk=KillDisk(step, halfway=halfway))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        report = teach(replace(settings, output=output))
        assert (report.status, report.done) == ("ok", 3)
        assert data_files(output) == clean, f"killed at step {step}"
    assert killed > 2


def test_a_stopped_run_goes_on_and_workers_give_the_same_bytes(pictures: Path, tmp_path: Path) -> None:
    settings = config(pictures, tmp_path / "out")
    answers = iter(["", "", "SIGTERM"])
    assert teach(settings, stop=lambda: next(answers, "SIGTERM")).interrupted == "SIGTERM"
    assert plan_teach(settings)["rows"] in [{"planned": 5, "to_do": todo} for todo in (1, 3)]
    assert teach(replace(settings, num_workers=2)).status == "ok"
    teach(replace(settings, output=tmp_path / "clean", batch_size=5))
    assert data_files(tmp_path / "out") == data_files(tmp_path / "clean")


def test_bad_pictures_fail_alone_and_are_named(pictures: Path, tmp_path: Path) -> None:
    (pictures / "sa_2.jpg").write_bytes(b"\xff\xd8 nothing")
    (pictures / "sa_3.jpg").write_bytes(encode_picture(np.zeros((9, 9, 3), np.uint8), "png"))
    content = json.loads((pictures / "sa_5.json").read_text())
    content["annotations"][1]["segmentation"] = {"size": [3, 4], "counts": "nonsense"}
    (pictures / "sa_5.json").write_text(json.dumps(content))
    report = teach(config(pictures, tmp_path / "out", batch_size=4))
    assert (report.planned, report.done, report.failed) == (5, 2, 3)
    assert report.status != "ok"
    store = open_store(tmp_path / "out")
    with pytest.raises(RowFailed, match="the annotation says"):
        store[store.find("sa_3")]
    with pytest.raises(RowFailed, match="annotation 501"):
        store[store.find("sa_5")]


class _Blind(StandInTeacher):
    """NaN where the picture is black."""

    def features(self, images: Any) -> Any:
        found = super().features(images)
        found = {name: values.clone() for name, values in found.items()}
        for number, image in enumerate(images):
            if not image.any():
                found["P4_S16"][number, 3, 1, 1] = float("nan")
        return found


def test_features_that_are_not_finite_are_a_failed_row(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(pictures, 3, np.zeros((40, 40, 3), np.uint8), [np.eye(40, dtype=np.uint8)])

    def blind(text: str, options: TeacherOptions) -> Teacher:
        return _Blind(device="cpu", image_size=64)

    monkeypatch.setattr(
        registry, "find", lambda kind, name, known=registry.find: blind if kind == "teachers" else known(kind, name)
    )
    report = teach(config(pictures, tmp_path / "out", batch_size=5))
    assert [failure.key for failure in report.failures] == ["sa_3"]
    assert "P4_S16: expected finite numbers that fit float32, got 1 that are not" in report.failures[0].message
    assert report.done == 4


def test_pictures_without_an_object_are_counted_and_have_no_box(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "sa1b", 4, empty=(2,))
    report = teach(config(root, tmp_path / "out"))
    assert (report.status, report.done, report.notes["without_object"]) == ("ok", 4, 1)
    record = open_store(tmp_path / "out")[1]
    assert np.asarray(record["bboxes"]).shape == (0, 4)
    assert np.asarray(record["masks"]).shape == (0, 256, 256)
    assert teach(config(root, tmp_path / "out")).notes["without_object"] == 1
    assert teach(config(root, tmp_path / "largest", strategy="largest")).notes["without_object"] == 0


def test_pictures_without_an_annotation_are_no_rows_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pictures(tmp_path / "sa1b", 4)
    parsed = json.loads((root / "sa_2.json").read_text())
    (root / "sa_2.json").write_text(json.dumps({**parsed, "annotations": []}))
    report = teach(config(root, tmp_path / "out"))
    assert (report.done, report.notes["without_annotation"]) == (3, 1)
    assert plan_teach(config(root, tmp_path / "other"))["without_annotation"] == 1
    flags = ["--model-type", "stand-in", "--image-size", "64", "--num-workers", "0"]
    assert main(["teacher", "--source", f"sa1b:{root}", "--output", str(tmp_path / "cli"), *flags]) == 0
    assert "1 pictures have no annotation and are left out" in capsys.readouterr().err
    assert "without_annotation" not in teach(config(write_pictures(tmp_path / "full", 2), tmp_path / "all")).notes


def test_the_seed_s_layouts_hold_the_same_rows(pictures: Path, tmp_path: Path) -> None:
    large: dict[str, Any] = {"image_size": 1024, "max_pictures": 2, "batch_size": 1}
    teach(config(pictures, tmp_path / "store", **large))
    report = teach(config(pictures, tmp_path / "v1", write="v1", **large))
    assert (report.status, report.done, report.notes["without_object"]) == ("ok", 2, 0)
    assert teach(config(pictures, tmp_path / "v1", write="v1", **large)).skipped == 2
    wanted, v1 = open_store(tmp_path / "store"), open_store(tmp_path / "v1")
    assert v1.schema == V1_SCHEMA
    assert check_rows(config(pictures, tmp_path / "v1", write="v1", **large), 2).is_good
    for row in range(2):
        for name, value in wanted[row].items():
            np.testing.assert_array_equal(v1[row][name], value)
    pytest.importorskip("penstock.teacher_sinks")
    assert teach(config(pictures, tmp_path / "tar", write="tar", **large)).status == "ok"
    assert plan_teach(config(pictures, tmp_path / "tar", write="tar", **large))["reasons"] == {"done": 2}
    tars = tuple(str(path) for path in sorted((tmp_path / "tar").glob("*.tar")))
    convert_sa1b_tar(
        ConvertConfig(tar_path=tars, output_dir=tmp_path / "back", layout="v1", workers=0, durability="process")
    )
    for row, record in enumerate(open_store(tmp_path / "back")):
        for name, value in v1[row].items():
            if name != "image":  # through a JPEG
                np.testing.assert_array_equal(record[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image_size": 64}, "pictures of 64 x 64"),
        ({"feature_dtype": "float16"}, "feature-dtype float16"),
        ({"fields": ("P4_S16",)}, "fields P4_S16"),
        ({"strategy": "all"}, "several objects"),
        ({"image_codec": "jpeg"}, "image-codec jpeg"),
    ],
)
def test_v1_refuses_what_it_cannot_hold(change: dict[str, Any], word: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"write v1 cannot hold .*{word}.*: use --write store"):
        teach(config(pictures, tmp_path / "out", **({"write": "v1", "image_size": 1024} | change)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"fields": ()}, {"fields": ("P4_S17",)}, {"fields": ("mask",)}, {"write": "zip"}, {"batch_size": 0},
        {"strategy": "best"}, {"max_objects": 0}, {"image_codec": "raw", "write": "tar"}, {"num_workers": -2},
        {"on_change": "recompute", "write": "v1"}, {"max_failures": "many"}, {"image_size": 1}, {"devices": 2},
        {"fields": ("P2_S4",)}, {"source": "sa1b:/nowhere"}, {"precision": "fp8"}, {"feature_dtype": "float64"},
    ],
)  # fmt: skip
def test_misuse_is_said_before_any_work(change: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        teach(config(pictures, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_sources_of_every_kind(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path / "coco")
    write_scene(tmp_path / "scenes" / "a")
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    (tmp_path / "plain" / "sub" / "x.png").write_bytes(encode_picture(np.zeros((9, 8, 3), np.uint8), "png"))
    coco = open_source(f"coco-panoptic:{tmp_path / 'coco'}")
    found = TeacherPictures(coco, threads=2)
    groups = list(coco.groups)  # type: ignore[attr-defined]  # a reader
    assert list(found.keys) == [group.name for group in groups]
    for row, record in enumerate(found.__getitems__(range(len(found)))):
        masks = ObjectMasks.from_record(np.asarray(record["image"]).shape[:2], record)
        members = [coco[place] for place in range(groups[row].start, groups[row].stop)]
        assert len(masks) == len(members)
        for number, member in enumerate(members):
            np.testing.assert_array_equal(masks.whole(number), np.asarray(member["mask"]) != 0)
    scenes = TeacherPictures(open_source(f"scenes:{tmp_path / 'scenes'}"))
    assert list(scenes.keys) == ["a/frame_1", "a/frame_2", "a/frame_10"]
    assert np.asarray(scenes[0]["object_boxes"]).tolist() == [[3, 2, 4, 4]]
    plain = TeacherPictures(open_source(f"folder:{tmp_path / 'plain'}"))
    assert list(plain.keys) == ["sub/x.png"]
    assert len(np.asarray(plain[0]["object_boxes"])) == 0
    report = teach(config(f"folder:{tmp_path / 'plain'}", tmp_path / "out"))
    assert (report.done, report.notes["without_object"]) == (1, 1)


def test_other_sources_have_a_picture_per_row_and_two_of_one_name_are_refused(pictures: Path, tmp_path: Path) -> None:
    part = TeacherPictures(Subset(Sa1b(pictures), [4, 0]))
    assert list(part.keys) == [Sa1b(pictures).keys[4], Sa1b(pictures).keys[0]]
    assert len(np.asarray(part[0]["object_boxes"])) == 1
    assert len({candidate.cheap for candidate in part.candidates()}) == 2
    with pytest.raises(UsageError, match="two pictures are named"):
        TeacherPictures(Subset(Sa1b(pictures), [0, 0]))
    with pytest.raises(UsageError, match="expected a source with image"):
        TeacherPictures(Subset(open_store(_numbers(tmp_path / "numbers")), [0]))
    with pytest.raises(IndexError):
        part[2]


def _numbers(path: Path) -> Path:
    from penstock.schema import Field, Schema

    write_store(path, Schema([Field(name="x", dtype="int32")]), [("a", {"x": np.array(1, np.int32)})])
    return path


def test_check_finds_what_was_changed_behind_its_back(pictures: Path, tmp_path: Path) -> None:
    settings = config(pictures, tmp_path / "out")
    teach(settings)
    assert check_rows(settings, 3).keys == ("sa_1", "sa_3", "sa_5")
    features = next((tmp_path / "out").rglob("P4_S16.bin"))
    content = np.fromfile(features, "<f4")
    content[: len(content) // 5] *= -1
    content.tofile(features)
    found = check_rows(settings, 5)
    assert found.faults == ("P4_S16",)
    assert found.fields["P4_S16"].worst == "sa_1"
    assert found.fields["P4_S16"].cosine_error == pytest.approx(2)
    assert found.fields["P5_S32"].max_error == 0
    (pictures / "sa_3.jpg").unlink()
    assert check_rows(settings, 5).unreadable == ("sa_3",)
    assert any("BEYOND" in line for line in found.lines())
    for count, change in ((0, {}), (2, {"write": "tar"})):
        with pytest.raises(UsageError, match="check: expected"):
            check_rows(replace(settings, **change), count)  # type: ignore[arg-type]  # a field


def test_a_stage_on_another_device_is_refused_and_pickles(pictures: Path, tmp_path: Path) -> None:
    _, stage = open_input(config(pictures, tmp_path / "out"))
    with pytest.raises(UsageError, match="the teacher was opened on cpu, asked for cuda:0"):
        stage.setup("cuda:0")
    with pytest.raises(UsageError, match="stand-in has no P2_S4; it has P3_S8, P4_S16, P5_S32"):
        replace(stage, fields=("P2_S4",))


def test_pictures_that_are_looked_at_together_give_the_rows_of_those_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU: batches of one size, filled up, and threads."""
    source, stage = open_input(config(pictures, tmp_path / "out", model_type="random:tiny", fields=("P3_S8", "bbox")))
    records = [source[row] for row in range(5)]
    alone = replace(stage, batch_size=5)(records)
    monkeypatch.setattr(type(stage), "bitwise", False)
    sizes: list[int] = []
    known = Sam2Teacher._pyramid

    def counted(self: Sam2Teacher, images: Any) -> Any:
        sizes.append(len(images))
        return known(self, images)

    monkeypatch.setattr(Sam2Teacher, "_pyramid", counted)
    together = replace(stage, batch_size=3, threads=3)
    found = [*together(records[:3]), *together([*records[3:], records[4]])]
    assert sizes == [3, 3]
    assert found[5] is found[4]
    for left, right in zip(alone, found, strict=False):
        np.testing.assert_allclose(np.asarray(left["P3_S8"]), np.asarray(right["P3_S8"]), atol=1e-4)
        for name in ("image", "bboxes", "image_shape"):
            np.testing.assert_array_equal(left[name], right[name])
    assert stage.reopen is not None
    assert stage.reopen(device="cpu").identity() == stage.teacher.identity()


def test_the_command(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["teacher", "--source", f"sa1b:{pictures}", "--output", str(tmp_path / "out"), "--image-size", "64",
             "--num-workers", "0", "--quiet", "--json"]  # fmt: skip
    assert main([*words]) == 2
    text = capsys.readouterr()
    assert json.loads(text.out)["error"] == "SourceNotFound"
    assert "--model-type stand-in" in text.err
    assert not (tmp_path / "out").exists()
    words += ["--model-type", "stand-in"]
    assert main([*words, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"] == {"planned": 5, "to_do": 5}
    assert not (tmp_path / "out").exists()
    assert main([*words, "--check", "2"]) == 0
    text = capsys.readouterr()
    assert json.loads(text.out)["checked"]["status"] == "ok"
    assert "these features are the stand-in's" in text.err
    for more in (
        ["--check", "-1"],
        ["--check", "1", "--write", "tar"],
        ["--ray-address", "auto"],
        ["--launcher", "ray"],
    ):
        assert main([*words, *more]) == 2
    capsys.readouterr()


def test_the_default_teacher_without_weights_is_an_error(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFound, match=r"no weights of sam2\.1_hiera_b"):
        teach(TeacherConfig(source=f"sa1b:{pictures}", output=tmp_path / "out"))


@pytest.mark.parametrize(
    "source", ["coco-instances:coco_instances", "sa1b:sa1b_like/sa_000900", "sa1b:sa1b_like/sa_000900.tar"]
)
def test_real_photographs(source: str, tmp_path: Path) -> None:
    reader, _, place = source.partition(":")
    if not (SHARED / place).exists():
        pytest.skip("no shared data")
    settings = config(f"{reader}:{SHARED / place}", tmp_path / "out", image_size=256, strategy="all")
    report = teach(settings)
    assert (report.failed, report.missing) == (0, 0)
    for row in open_store(tmp_path / "out"):
        assert 0.01 < np.asarray(row["edge_256x256"]).mean() < 0.5
        assert len(np.asarray(row["bboxes"])) == len(np.asarray(row["masks"])) > 0
        assert np.asarray(row["masks"]).any((1, 2)).all()
    assert check_rows(settings, 2).is_good


def test_the_page_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher", "--help"]) == 0
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    page = (Path(__file__).parents[1] / "docs" / "teacher.md").read_text(encoding="ascii")
    assert len(flags) > 25
    assert sorted(flag for flag in flags if flag not in page) == []
