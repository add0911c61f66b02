"""The job of embed: every segment once, exactly what changed anew, the same bytes whatever happened in between."""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock import registry
from penstock.embed import EmbedConfig, embed, open_input, plan_embed
from penstock.embed_place import REPLACED, take_place
from penstock.embed_verify import verify_sample
from penstock.errors import (
    BudgetExceeded,
    OutputRefused,
    PartClaimed,
    RecipeMismatch,
    RowFailed,
    SourceNotFound,
    UsageError,
)
from penstock.geometry.id_pngs import read_panoptic_png, write_panoptic_png
from penstock.geometry.segment_crops import reference_crop
from penstock.launch.local import Inline
from penstock.models.embedders import open_embedder
from penstock.readers.coco_panoptic import CocoPanoptic
from penstock.readers.scenes import Scenes
from penstock.registry import open_source
from penstock.report import Report
from penstock.schema import Field, Record, Schema
from penstock.segments import Segments
from penstock.source import Source, SourceOffers, Subset
from penstock.stages.embed import EmbedSegments
from penstock.store import StoreSink, open_store, write_store
from penstock.store.claims import Claim
from penstock.testing import encode_picture
from penstock.work import Order, Work
from tests.models.onnx_bytes import channel_means
from tests.readers.test_scenes import id_map, write_map, write_scene
from tests.store.crash import KillDisk
from tests.test_bad_input import data_files

torch = pytest.importorskip("torch")

embed_module = sys.modules["penstock.embed"]
SHARED = Path(__file__).parents[1].parent / "shared"
CATEGORIES = [{"id": number, "name": f"class-{number}", "isthing": 1} for number in (1, 7, 200)]


def write_coco(root: Path, pictures: int = 6, *, per_picture: int = 5, split: str = "val2017") -> Path:
    """Pictures of several sizes with stripes as segments, of 1 to many pixels; the ids of the first need three bytes."""
    rng = np.random.default_rng(0)
    for folder in (f"panoptic_{split}", split, "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(pictures):
        height, width, name = 20 + 3 * (number % 4), 31 + 5 * (number % 3), f"{number + 1:012d}"
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ids = np.zeros((height, width), np.uint32)
        infos: list[dict[str, Any]] = []
        for place in range(per_picture):
            left = place * width // per_picture
            segment = (1 << 24) - 1 - place if number == 0 else 1 + place
            ids[: 1 + place * 4, left : left + 1 + place] = segment
            infos.append({"id": segment, "category_id": (1, 7, 200)[place % 3], "iscrowd": int(place == 3)})
            infos[-1] |= {"area": 1, "bbox": [0, 0, 1, 1]}
        (root / split / f"{name}.jpg").write_bytes(encode_picture(pixels, "jpg"))
        (root / f"panoptic_{split}" / f"{name}.png").write_bytes(write_panoptic_png(ids))
        images.append({"id": number + 1, "file_name": f"{name}.jpg", "height": height, "width": width})
        annotations.append({"image_id": number + 1, "file_name": f"{name}.png", "segments_info": infos})
    content: dict[str, Any] = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return root


def config(root: Path, output: Path, **changes: object) -> EmbedConfig:
    known: dict[str, Any] = {"data_path": root, "cache_dir": output, "embedder_spec": "tiny:", "batch_size": 1}
    return EmbedConfig(**(known | {"num_workers": 0, "device": "cpu", "durability": "process"} | changes))


def computed(report: Report) -> int:
    return report.done + report.failed - report.skipped


def map_of(root: Path, number: int, split: str = "val2017") -> Path:
    return root / f"panoptic_{split}" / f"{number:012d}.png"


def change_ids(path: Path, old: int, new: int, where: tuple[slice, slice]) -> None:
    ids = read_panoptic_png(path.read_bytes())
    ids[where] = np.where(ids[where] == old, new, ids[where])
    path.write_bytes(write_panoptic_png(ids))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def test_every_segment_has_its_vector_and_what_is_said_of_it(coco: Path, tmp_path: Path) -> None:
    report = embed(config(coco, tmp_path / "out"))
    assert (report.planned, report.done, report.status) == (30, 30, "ok")
    store, source, embedder = open_store(tmp_path / "out"), CocoPanoptic(coco), open_embedder("tiny:", device="cpu")
    assert list(store.keys) == list(source.keys)
    assert store.attributes["dim"] == embedder.dim
    assert store.attributes["spec"] == "tiny:"
    for row in (0, 4, 17, 29):
        record, said = store[row], source[row]
        crop = reference_crop(np.asarray(said["image"]), np.asarray(said["mask"]), bg_alpha=0.3, pad_ratio=0.1)
        expected = embedder.embed(torch.from_numpy(embedder.prepare(crop)[None]))[0].numpy()
        assert float(np.asarray(record["embedding"], np.float32) @ expected) > 0.9995
        for name in ("image_id", "path", "category"):
            assert record[name] == said[name]
        for name in ("category_id", "label", "segment_id"):
            assert int(np.asarray(record[name])) == int(np.asarray(said[name]))
        mask = np.asarray(said["mask"])
        assert float(np.asarray(record["area"])) == mask.sum()
        left, top, width, height = np.asarray(record["box"]).astype(int)
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
    assert store.keys[4] == "000000000001_16777215"
    assert store.schema["label"].dtype == "int32"


def test_each_picture_is_decoded_once(coco: Path) -> None:
    source = CocoPanoptic(coco)
    segments = Segments(source)
    records = segments.__getitems__(range(30))
    assert len(records) == 30
    assert source.pictures_decoded == 6
    [segments[row] for row in (25, 26, 27)]  # the last one is kept
    assert source.pictures_decoded == 6


def test_a_job_asks_for_the_rows_of_a_batch_at_once_and_finds_the_bad_ones(coco: Path, tmp_path: Path) -> None:
    map_of(coco, 3).unlink()
    segments, stage = open_input(config(coco, tmp_path / "out", batch_size=8))
    work = Work(offers=segments, stage=stage, writer=StoreSink(tmp_path / "out", stage.schema).writer())
    orders = [Order(candidate=candidate) for candidate in segments.candidates()]
    finished = work(orders)
    assert [row for row, one in enumerate(finished) if one.error] == [10, 11, 12, 13, 14]
    assert {one.error for one in finished} == {"", "BadData"}
    assert len({one.content for one in finished if not one.error}) == 25
    assert SourceOffers(segments.source).__getitems__([0, 1])[1].keys() == segments.source[1].keys()


def test_an_unchanged_rerun_does_nothing_and_says_so(coco: Path, tmp_path: Path) -> None:
    embed(config(coco, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    report = embed(config(coco, tmp_path / "out"))
    assert (report.planned, report.done, report.skipped, report.bytes_written) == (30, 30, 30, 0)
    assert report.notes["unchanged"] is True
    assert report.status == "ok"
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_files_that_were_only_touched_are_not_computed_again(coco: Path, tmp_path: Path) -> None:
    embed(config(coco, tmp_path / "out"))
    clean = data_files(tmp_path / "out")
    for path in [*(coco / "val2017").iterdir(), *(coco / "panoptic_val2017").iterdir()]:
        os.utime(path, (1, 1))
    assert plan_embed(config(coco, tmp_path / "out"))["reasons"] == {"changed input": 30}
    report = embed(config(coco, tmp_path / "out"))
    assert computed(report) == 0
    assert "changed" not in report.notes
    assert data_files(tmp_path / "out").keys() == clean.keys()


def test_a_changed_mask_computes_its_own_segments_anew_and_no_others(coco: Path, tmp_path: Path) -> None:
    embed(config(coco, tmp_path / "out"))
    old = [np.array(row["embedding"]) for row in open_store(tmp_path / "out")]
    change_ids(map_of(coco, 2), 5, 0, (slice(0, 3), slice(None)))
    report = embed(config(coco, tmp_path / "out"))
    assert report.notes["changed"] == computed(report) == 1
    assert report.status == "ok"
    new = [np.array(row["embedding"]) for row in open_store(tmp_path / "out")]
    differ = [row for row, (left, right) in enumerate(zip(old, new, strict=True)) if (left != right).any()]
    assert differ == [list(CocoPanoptic(coco).keys).index("000000000002_5")]
    embed(config(coco, tmp_path / "clean"))
    assert [np.array(row["embedding"]).tolist() for row in open_store(tmp_path / "clean")] == [
        row.tolist() for row in new
    ]


def test_a_hundredth_of_the_masks_changed_computes_a_hundredth_of_the_rows(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", 100, per_picture=4)
    embed(config(coco, tmp_path / "out", batch_size=8))
    for number in (3, 20, 57, 90):
        change_ids(map_of(coco, number), 4, 0, (slice(0, 2), slice(None)))
    report = embed(config(coco, tmp_path / "out", batch_size=8))
    assert report.planned == 400
    assert computed(report) == 4 <= 0.011 * report.planned


def test_a_changed_picture_computes_the_segments_whose_crop_it_touches(coco: Path, tmp_path: Path) -> None:
    png = coco / "val2017" / "000000000003.jpg"
    pixels = np.random.default_rng(1).integers(0, 256, (26, 41, 3), dtype=np.uint8)
    png.write_bytes(encode_picture(pixels, "png"))  # a PNG of that name: pixels are then what one says
    embed(config(coco, tmp_path / "out"))
    pixels[-1, -1] ^= 255
    png.write_bytes(encode_picture(pixels, "png"))
    assert computed(embed(config(coco, tmp_path / "out"))) == 0  # no crop shows that corner
    pixels[0, 0] ^= 255
    png.write_bytes(encode_picture(pixels, "png"))
    assert computed(embed(config(coco, tmp_path / "out"))) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"bg_alpha": 0.5}, "bg_alpha: store 0.3, now 0.5"),
        ({"pad_ratio": 0.2}, "pad_ratio: store 0.1, now 0.2"),
        ({"embedder_spec": "tiny:seed=1"}, r"embedder\.spec: store .*seed=1"),
        ({"recipe": "legacy-640"}, "recipe: store 'native', now 'legacy-640'"),
    ],
)
def test_another_recipe_is_refused_or_takes_the_place_of_the_old_one(
    change: dict[str, object], word: str, coco: Path, tmp_path: Path
) -> None:
    small = {"max_segments": 5, "part_rows": 4}
    embed(config(coco, tmp_path / "out", **small))
    clean = data_files(tmp_path / "out")
    with pytest.raises(RecipeMismatch, match=word):
        embed(config(coco, tmp_path / "out", **small, **change))
    with pytest.raises(RecipeMismatch, match=word):
        plan_embed(config(coco, tmp_path / "out", **small, **change))
    assert data_files(tmp_path / "out") == clean
    stopped = embed(config(coco, tmp_path / "out", **small, **change, on_change="recompute"), stop=lambda: "SIGINT")
    assert stopped.interrupted == "SIGINT"
    assert data_files(tmp_path / "out") == clean
    report = embed(config(coco, tmp_path / "out", **small, **change, on_change="recompute"))
    assert computed(report) == report.planned
    embed(config(coco, tmp_path / "fresh", **small, **change))
    assert data_files(tmp_path / "out") == data_files(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "fresh", "out"]


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, run: Callable[[], object]) -> None:
    """Ends a run as a kill would, right before its n-th call of a function of `embed_place`'s: `rename` or `rmtree`."""

    class Killed(BaseException):
        pass

    calls = itertools.count()
    owner: Any = Path if name == "rename" else shutil
    known = getattr(owner, name)

    def stand_in(*args: Any) -> object:
        if next(calls) == call:
            raise Killed
        return known(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stand_in)
        with pytest.raises(Killed):
            run()


@pytest.mark.parametrize(("name", "call"), [("rename", 0), ("rename", 1), ("rmtree", 0)])
def test_killed_while_the_new_store_takes_its_place_the_next_run_ends_it(
    name: str, call: int, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(coco, tmp_path / "out", max_segments=5)
    embed(settings)
    changed = replace(settings, bg_alpha=0.5, on_change="recompute")
    killed_at(monkeypatch, name, call, lambda: embed(changed, launcher=Inline()))
    assert plan_embed(changed)["reasons"] == {"done": 5}
    embed(changed)
    embed(replace(changed, cache_dir=tmp_path / "fresh"))
    assert data_files(tmp_path / "out") == data_files(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "fresh", "out"]
    assert not (tmp_path / "out" / REPLACED).exists()


def test_a_new_store_takes_its_place_when_nobody_writes_in_either(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(coco, tmp_path / "out", max_segments=5)
    embed(settings)
    changed = replace(settings, bg_alpha=0.5, on_change="recompute")
    segments, stage = open_input(changed)
    first = next(segments.candidates())
    others: list[StoreSink] = []

    def written_again(fresh: Path, place: Path) -> None:
        if not others:
            others.append(embed_module._open_sink(changed, stage, fresh, None))
            others[0].recompute(replace(first, cheap=first.cheap + 1))
        take_place(fresh, place)

    monkeypatch.setattr(embed_module, "take_place", written_again)
    embed(changed, launcher=Inline())
    assert (tmp_path / "out.recompute").is_dir()
    others[0].release()
    claim = Claim(tmp_path / "out" / "part-00000")
    claim.acquire()
    with pytest.raises(PartClaimed, match="out/part-00000 is being written by process"):
        embed(changed, launcher=Inline())
    claim.release()
    assert embed(changed, launcher=Inline()).status == "ok"
    embed(replace(changed, cache_dir=tmp_path / "fresh"))
    vectors = [[np.asarray(row["embedding"]) for row in open_store(tmp_path / name)] for name in ("out", "fresh")]
    np.testing.assert_array_equal(*vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "fresh", "out"]


def test_folders_of_the_users_beside_the_output_are_left_alone(coco: Path, tmp_path: Path) -> None:
    settings = config(coco, tmp_path / "out", max_segments=5)
    embed(settings)
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "mine").write_text("of last year")
    changed = replace(settings, bg_alpha=0.5, on_change="recompute")
    embed(changed)
    assert (tmp_path / "out.old" / "mine").read_text() == "of last year"
    (tmp_path / "out.recompute").mkdir()
    (tmp_path / "out.recompute" / "mine").write_text("too")
    with pytest.raises(OutputRefused):
        embed(replace(changed, bg_alpha=0.6))
    assert (tmp_path / "out.recompute" / "mine").read_text() == "too"


def test_a_recompute_that_is_not_done_is_named_to_one_of_a_third_recipe(coco: Path, tmp_path: Path) -> None:
    settings = config(coco, tmp_path / "out", max_segments=5)
    embed(settings)
    embed(replace(settings, bg_alpha=0.5, on_change="recompute"), stop=lambda: "SIGTERM")
    with pytest.raises(RecipeMismatch, match=r"earlier recompute is not done: .* remove .*out\.recompute\. "):
        embed(replace(settings, bg_alpha=0.6, on_change="recompute"))


def test_segments_that_the_source_no_longer_has_are_counted(coco: Path, tmp_path: Path) -> None:
    embed(config(coco, tmp_path / "out"))
    path = coco / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][2]["segments_info"][1:]
    path.write_text(json.dumps(content))
    assert plan_embed(config(coco, tmp_path / "out"))["left_over"] == 4
    report = embed(config(coco, tmp_path / "out"))
    assert (report.planned, report.done, report.notes["left_over"]) == (26, 26, 4)


def test_changed_rows_share_calls_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = write_coco(tmp_path / "coco", 40, per_picture=4)
    embed(config(coco, tmp_path / "out"))
    for number in range(2, 41, 4):
        change_ids(map_of(coco, number), 4, 0, (slice(0, 2), slice(None)))
    calls: list[int] = []
    known = EmbedSegments._embedded

    def counted(self: EmbedSegments, crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        calls.append(len(crops))
        return known(self, crops)

    monkeypatch.setattr(EmbedSegments, "_embedded", counted)
    report = embed(config(coco, tmp_path / "out"))
    assert report.notes["changed"] == sum(calls) == 10
    assert len(calls) == 1  # all comparisons come first, then what they found
    embed(config(coco, tmp_path / "clean"))
    again, clean = open_store(tmp_path / "out"), open_store(tmp_path / "clean")
    assert all(np.array_equal(one["embedding"], other["embedding"]) for one, other in zip(again, clean, strict=True))


def test_memory_that_is_short_for_a_single_picture_is_a_failed_row(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def network(pixels: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > 2 or (len(sizes) > 1 and bool((pixels > 0.99).all(dim=(1, 2, 3)).any())):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return pixels.mean(dim=(2, 3)) + 2

    (coco / "val2017" / f"{2:012d}.jpg").write_bytes(encode_picture(np.full((23, 36, 3), 255, np.uint8), "png"))
    open_double = registry.find("models", "tiny")
    module = torch.nn.Module()
    module.forward = network
    load = lambda name, device: replace(open_double(name, device), network=module)  # type: ignore[operator]  # noqa: E731
    monkeypatch.setattr(registry, "find", lambda kind, name: load)
    report = embed(config(coco, tmp_path / "out", bg_alpha=1.0))
    assert (report.done, report.failed) == (25, 5)
    assert {failure.key for failure in report.failures} == {f"000000000002_{number}" for number in range(1, 6)}
    assert all("out of memory on cpu with a single picture" in failure.message for failure in report.failures)
    assert len(sizes) < 200


def test_a_store_of_masks_is_a_source_and_its_changes_are_seen(tmp_path: Path) -> None:
    maps = Schema(
        [
            Field(name="image", dtype="uint8", shape=(20, 30, 3), axes="H W C", kind="image"),
            Field(name="ids", dtype="int32", shape=(20, 30), axes="H W", kind="ids"),
        ]
    )

    def write(path: Path, ids: np.ndarray) -> Path:
        rng = np.random.default_rng(0)
        record: Record = {"image": rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), "ids": ids}
        write_store(path, maps, [("a", record)])
        return path

    ids = np.zeros((20, 30), np.int32)
    ids[3:9, 4:12] = 5
    first = Segments(open_source(str(write(tmp_path / "first", ids))))
    assert list(first.keys) == ["a_5"]
    ids[12:15, 4:12] = 7
    second = Segments(open_source(str(write(tmp_path / "second", ids))))
    assert list(second.keys) == ["a_5", "a_7"]  # not the first one's list out of the cache
    assert first.cheap_keys()[0] != second.cheap_keys()[0]


@pytest.mark.parametrize("halfway", [False, True])
def test_killed_at_any_step_it_ends_with_the_bytes_of_the_clean_run(halfway: bool, tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", 2)
    settings = config(coco, tmp_path / "killed", part_rows=6)
    count = KillDisk(1 << 60)
    embed(replace(settings, cache_dir=tmp_path / "clean"), disk=count)
    steps, clean = (1 << 60) - count.left, data_files(tmp_path / "clean")
    assert steps > 50
    killed = 0
    for step in range(1, steps + 1, 1 + steps // 25):
        output = tmp_path / f"killed-{step}"
        child = os.fork()
        if child == 0:
            try:
                embed(replace(settings, cache_dir=output), disk=KillDisk(step, halfway=halfway))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        report = embed(replace(settings, cache_dir=output))
        assert (report.status, report.done) == ("ok", 10)
        assert data_files(output) == clean, f"killed at step {step}"
    assert killed > 5


def test_worker_processes_give_the_same_bytes(coco: Path, tmp_path: Path) -> None:
    embed(config(coco, tmp_path / "one"))
    report = embed(config(coco, tmp_path / "two", num_workers=2))
    assert report.status == "ok"
    assert data_files(tmp_path / "one") == data_files(tmp_path / "two")


def test_an_onnx_session_has_one_thread_in_this_process_as_in_workers(coco: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.onnx").write_bytes(channel_means(("n", 3, 16, 16)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, stage = open_input(config(coco, tmp_path / "out", embedder_spec=f"onnx:{tmp_path / 'net.onnx'}"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    session = vars(stage.embedder)["_opened"].network._session
    assert session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_model_is_called_with_as_many_as_it_is_opened_for(batch_size: int, coco: Path, tmp_path: Path) -> None:
    _, stage = open_input(config(coco, tmp_path / "out", batch_size=batch_size))
    assert vars(stage.embedder)["batch_size"] == stage.model_batch  # compiled, it would be padded to more


def test_a_stopped_run_goes_on_where_it_was(coco: Path, tmp_path: Path) -> None:
    answers = iter(["", "", "SIGTERM"])
    first = embed(config(coco, tmp_path / "out"), stop=lambda: next(answers, "SIGTERM"))
    assert first.interrupted == "SIGTERM"
    assert embed(config(coco, tmp_path / "out")).status == "ok"
    embed(config(coco, tmp_path / "clean"))
    assert data_files(tmp_path / "out") == data_files(tmp_path / "clean")


def test_bad_rows_fail_alone_and_are_named(coco: Path, tmp_path: Path) -> None:
    map_of(coco, 2).unlink()
    change_ids(map_of(coco, 3), 4, 0, (slice(None), slice(None)))
    map_of(coco, 5).write_bytes(write_panoptic_png(np.ones((3, 4), np.uint32)))
    (coco / "val2017" / f"{6:012d}.jpg").write_bytes(b"\xff\xd8 nothing")
    report = embed(config(coco, tmp_path / "out", batch_size=8))
    assert (report.planned, report.done, report.failed) == (30, 14, 16)
    assert report.status != "ok"
    store = open_store(tmp_path / "out")
    with pytest.raises(RowFailed, match=r"mask of 26 x 41 .* is empty"):
        store[store.find("000000000003_4")]
    with pytest.raises(RowFailed, match="expected the photo's size"):
        store[store.find("000000000005_1")]
    for key in ("000000000002_1", "000000000006_3"):
        with pytest.raises(RowFailed):
            store[store.find(key)]
    with pytest.raises(BudgetExceeded):
        embed(config(coco, tmp_path / "other", max_failures="3", batch_size=1))


def test_gray_and_cmyk_pictures_and_a_segment_of_the_whole_frame(coco: Path, tmp_path: Path) -> None:
    for number, mode in ((1, "L"), (2, "CMYK")):
        path = coco / "val2017" / f"{number:012d}.jpg"
        with Image.open(path) as picture:
            converted = picture.convert(mode)
        converted.save(path)
    with Image.open(map_of(coco, 4)) as picture:
        width, height = picture.size
    ids = np.full((height, width), 5, np.uint32)
    map_of(coco, 4).write_bytes(write_panoptic_png(ids))
    report = embed(config(coco, tmp_path / "out"))
    assert (report.done, report.failed) == (26, 4)  # the four that the whole frame has hidden
    whole = open_store(tmp_path / "out")[19]
    assert np.asarray(whole["box"]).tolist() == [0, 0, width, height]
    assert verify_sample(open_store(tmp_path / "out"), CocoPanoptic(coco), 30).is_good


def test_the_legacy_recipe_has_no_crowds_and_crops_from_a_square(coco: Path, tmp_path: Path) -> None:
    report = embed(config(coco, tmp_path / "out", recipe="legacy-640"))
    assert (report.planned, report.done, report.notes["crowds_left_out"]) == (24, 24, 6)
    store = open_store(tmp_path / "out")
    assert store.keys[3] == "000000000001_16777215"
    assert np.asarray(store[store.find("000000000002_5")]["box"]).max() > 100
    assert verify_sample(store, CocoPanoptic(coco), 24).is_good


def test_scenes_have_a_row_for_each_positive_id_of_each_frame(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a")
    write_scene(tmp_path / "scenes" / "b", numbers=(7, 8))
    (tmp_path / "scenes" / "b" / "obj_ids" / "frame_8.jpg.pth").write_bytes(b"damaged")
    source = f"scenes:{tmp_path / 'scenes'}"
    settings = config(tmp_path, tmp_path / "out", data_path=None, source=source)
    report = embed(settings)
    store = open_store(tmp_path / "out")
    assert list(store.keys) == ["a/frame_1_40001", "a/frame_2_40002", "a/frame_10_40010", "b/frame_7_40007"]
    assert int(np.asarray(store[1]["segment_id"])) == 40002
    assert store[1]["image_id"] == "a/frame_2"
    assert np.asarray(store[0]["box"]).tolist() == [3, 2, 4, 4]
    assert [problem["path"] for problem in report.problems] == ["b/frame_8"]
    assert report.status != "ok"
    assert embed(settings).notes["unchanged"] is True
    assert verify_sample(store, Scenes(tmp_path / "scenes"), 4).is_good


def test_a_changed_map_of_a_scene_adds_its_new_ids_and_computes_what_it_changed(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scenes" / "a")
    settings = config(tmp_path, tmp_path / "out", data_path=None, source=f"scenes:{tmp_path / 'scenes'}")
    embed(settings)
    ids = id_map(2)
    ids[0, 0], ids[2, 3] = 9, 0
    write_map(scene / "obj_ids" / "frame_2.jpg.pth", ids)
    report = embed(settings)
    assert (report.planned, computed(report), report.notes["changed"]) == (4, 2, 1)
    assert sorted(open_store(tmp_path / "out").keys)[-1] == "a/frame_2_9"


def test_any_source_with_masks_will_do(coco: Path) -> None:
    part: Source = Subset(CocoPanoptic(coco), [7, 3, 12])
    segments, whole = Segments(part), Segments(CocoPanoptic(coco))
    for row, place in enumerate((7, 3, 12)):
        for name, value in segments[row].items():
            np.testing.assert_array_equal(value, whole[place][name])
    assert list(segments.keys) == [whole.keys[place] for place in (7, 3, 12)]


def test_a_dry_run_counts_and_touches_nothing(coco: Path, tmp_path: Path) -> None:
    plan = plan_embed(config(coco, tmp_path / "out"))
    assert plan["rows"] == {"planned": 30, "to_do": 30}
    assert plan["reasons"] == {"missing": 30}
    assert plan["dim"] == 64
    assert not (tmp_path / "out").exists()
    map_of(coco, 2).unlink()
    embed(config(coco, tmp_path / "out"))
    assert plan_embed(config(coco, tmp_path / "out"))["reasons"] == {"done": 25, "failed before, not retried": 5}
    again = plan_embed(config(coco, tmp_path / "out", retry_failed=True))
    assert again["reasons"] == {"done": 25, "failed before": 5}


def test_verify_finds_vectors_that_are_not_those_of_their_segments(coco: Path, tmp_path: Path) -> None:
    embed(config(coco, tmp_path / "out"))
    store = open_store(tmp_path / "out")
    found = verify_sample(store, CocoPanoptic(coco), 8)
    assert (len(found.keys), found.is_good) == (8, True)
    change_ids(map_of(coco, 2), 5, 1, (slice(None), slice(None)))
    found = verify_sample(store, CocoPanoptic(coco), 100)
    assert (len(found.keys), found.is_good) == (30, False)
    assert found.to_json()["status"] == "failed"
    assert {"000000000002_5"} <= {worst["key"] for worst in found.to_json()["worst"]}  # type: ignore[attr-defined]
    with pytest.raises(RecipeMismatch, match="made with another model"):
        verify_sample(store, CocoPanoptic(coco), 8, embedder=open_embedder("tiny:seed=3", device="cpu"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data_path": Path("no/such")}, SourceNotFound, "no such folder"),
        ({"embedder_spec": "nothing:at-all"}, UsageError, "nothing"),
        ({"embedder_spec": "onnx:no/such.onnx"}, UsageError, "no/such.onnx"),
        ({"split": "test"}, UsageError, "no split test"),
        ({"data_path": None, "source": "folder:."}, UsageError, "expected a source with image and mask"),
        ({"device": "cuda:63"}, UsageError, "device"),
        ({"devices": 2}, UsageError, "devices: expected 1 on a CPU"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    changes: dict[str, object], error: type[Exception], message: str, coco: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        embed(config(coco, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"bg_alpha": -0.1}, {"pad_ratio": float("nan")}, {"recipe": "new"}, {"source": "scenes:."}],
)
def test_wrong_settings_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(changes)).replace("_", "-").replace("source", "data-path")):
        config(tmp_path, tmp_path / "out", **changes)


def test_a_folder_that_holds_something_else_is_left_alone(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused):
        embed(config(coco, coco))


def test_keys_and_cheap_keys_are_those_of_the_rows(coco: Path) -> None:
    segments = Segments(CocoPanoptic(coco))
    assert list(segments.keys) == [segments.key_of(row) for row in range(30)] == list(CocoPanoptic(coco).keys)
    before = segments.cheap_keys()
    assert len(set(before)) == 30
    os.utime(coco / "val2017" / f"{2:012d}.jpg", (5, 5))
    after = Segments(CocoPanoptic(coco)).cheap_keys()
    assert [row for row in range(30) if before[row] != after[row]] == list(range(5, 10))


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="the shared data are not there")
@pytest.mark.parametrize("name", ["coco_panoptic", "camvid_panoptic"])
def test_real_pictures_verify(name: str, tmp_path: Path) -> None:
    root = SHARED / "data" / name
    if not root.exists():
        pytest.skip(f"no {name}")
    settings = config(root, tmp_path / "out", max_segments=24)
    assert embed(settings).status == "ok"
    segments, _ = open_input(settings)
    assert verify_sample(open_store(tmp_path / "out"), segments.source, 24).is_good
    assert open_source(str(tmp_path / "out")).schema["embedding"].kind == "embedding"
