"""The seed's embedding cache: its functions, its script, and the job behind them with files for output."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.compat.embed import (
    COCOPanopticDirectory,
    create_dataloader,
    extract_image_and_segment_ids,
    prep_mask_image,
    save_image_embeddings,
)
from penstock.compat.embed_script import main, self_test, write_example
from penstock.embed import embed
from penstock.embed_as import embed_as, plan_embed_as
from penstock.errors import BadData, OutputRefused, RecipeMismatch, UsageError
from penstock.exporters.embedding_files import Layout
from penstock.exporters.embedding_rows import open_rows, store_of
from penstock.exporters.embeddings import read_npz_cache
from penstock.geometry.segment_crops import reference_crop
from penstock.store import open_store
from penstock.store.claims import Claim
from tests.exporters.test_embeddings import content
from tests.readers.test_scenes import write_scene
from tests.store.crash import KillDisk
from tests.test_embed import change_ids, config, map_of, write_coco

torch = pytest.importorskip("torch", reason="the seed's functions need torch")
TINY = ["--embedder_spec", "tiny:", "--device", "cpu", "--num_workers", "0", "--quiet"]


def test_a_batch_gives_pictures_masks_and_ids(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", 5)
    loader = create_dataloader(coco, batch_size=2, num_workers=0)
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    image_ids, segment_ids = extract_image_and_segment_ids(batches[0], loader)
    assert image_ids == ["000000000001", "000000000002"]
    assert segment_ids[1] == [1, 2, 3, 4, 5]
    image, target = batches[0][0][0], batches[0][1][0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 20, 31))
    assert (target["masks"].dtype, tuple(target["masks"].shape)) == (torch.bool, (5, 20, 31))
    assert target["labels"].tolist() == [1, 0, 2, 1, 0]
    assert target["is_crowd"].tolist() == [False, True, False, False, False]
    directory = COCOPanopticDirectory(coco, num_workers=0, batch_size=5).setup()
    assert len(directory) == 5
    assert len(list(directory.train_dataloader())) == len(list(directory.val_dataloader())) == 1


def test_crops_are_those_of_the_cache(tmp_path: Path) -> None:
    image, target = COCOPanopticDirectory(write_coco(tmp_path / "coco", 1))[0]
    ids = target["segment_ids"]
    crops = prep_mask_image(image, target["masks"], target["labels"], ids, 0.3, pad_ratio=0.1)
    pixels = image.permute(1, 2, 0).numpy()
    for crop, mask in zip(crops, target["masks"].numpy(), strict=True):
        expected = reference_crop(pixels, mask, bg_alpha=0.3, pad_ratio=0.1)
        assert np.array_equal(np.asarray(crop), np.asarray(expected))
    floats = prep_mask_image(image / 255, target["masks"], target["labels"], ids, 0.3, pad_ratio=0.1)
    assert np.array_equal(np.asarray(floats[0]), np.asarray(crops[0]))
    with pytest.raises(BadData, match=f"segment {int(ids[0])}: .*empty"):
        prep_mask_image(image, target["masks"] & False, target["labels"], ids)
    with pytest.raises(UsageError, match="N labels"):
        prep_mask_image(image, target["masks"], [1], ids)
    with pytest.raises(UsageError, match=r"0\.\.1"):
        prep_mask_image(image.float(), target["masks"], target["labels"], ids)
    with pytest.raises(UsageError, match="RGB picture"):
        prep_mask_image(image[0], target["masks"], target["labels"], ids)
    narrow = prep_mask_image(image[:, :, :3], target["masks"][:1, :, :3] | True, [1], [1], 1.0, pad_ratio=0)
    assert np.array_equal(np.asarray(narrow[0]), pixels[:, :3])  # a tensor's channels come first, however wide it is
    halves = prep_mask_image((image / 255).bfloat16(), target["masks"], target["labels"], ids)
    assert np.abs(np.asarray(halves[0], int) - np.asarray(crops[0], int)).max() <= 2


def test_vectors_of_a_picture_are_saved_with_its_row_of_the_index(tmp_path: Path) -> None:
    vectors = np.eye(3, 8, dtype=np.float32)
    save_image_embeddings(tmp_path / "out", "9", [4, 5, 6], torch.from_numpy(vectors), [0, 1, 132])
    save_image_embeddings(tmp_path / "out", "000000000007", np.array([1]), vectors[:1], torch.tensor([3]))
    save_image_embeddings(tmp_path / "out", "9", [4, 5], vectors[:2], [0, 132])
    index = (tmp_path / "out" / "image_index.tsv").read_text()
    assert index.splitlines() == [
        "image_id\tfeat_file\tnum_segments",
        "000000000007\t000000000007.npz\t1",
        "9\t9.npz\t2",
    ]
    rows = read_npz_cache(tmp_path / "out")
    assert (rows.keys, rows.labels.tolist()) == (["000000000007_1", "9_4", "9_5"], [3, 0, 132])
    for bad in (
        ("9", [1, 2], vectors, [1, 2, 3]),
        ("9", [1, 2, 1 << 31], vectors, [1, 2, 3]),
        ("../9", [1, 2, 3], vectors, [1, 2, 3]),
        ("9", [1, 2, 3], vectors * np.nan, [1, 2, 3]),
    ):
        with pytest.raises(UsageError):
            save_image_embeddings(tmp_path / "out", *bad)


@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_files_are_made_of_the_store_and_only_what_changed(layout: str, tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", 4)
    settings = config(coco, tmp_path / "out")
    assert plan_embed_as(settings, layout)["reasons"] == {"missing": 20}
    assert not (tmp_path / "out").exists()
    report = embed_as(settings, layout)
    assert (report.status, report.done, report.output) == ("ok", 20, str(tmp_path / "out"))
    rows, store = open_rows(tmp_path / "out"), open_store(store_of(tmp_path / "out"))
    assert (len(rows), rows.attributes["spec"]) == (20, "tiny:")
    for place, key in enumerate(rows.keys):
        assert (rows.vectors()[place] == store[store.find(key)]["embedding"]).all()
    again = embed_as(settings, layout)
    assert (again.skipped, again.bytes_written, again.notes["files"]["written"]) == (20, 0, 0)
    change_ids(map_of(coco, 2), 5, 0, (slice(0, 3), slice(None)))
    assert embed_as(settings, layout).notes["files"]["written"] == 1
    embed_as(replace(settings, cache_dir=tmp_path / "clean"), layout)
    assert content(tmp_path / "out") == content(tmp_path / "clean")
    with pytest.raises(RecipeMismatch):
        embed_as(replace(settings, bg_alpha=0.5), layout)
    changed = replace(settings, bg_alpha=0.5, on_change="recompute")
    assert embed_as(changed, layout).status == "ok"
    embed_as(replace(changed, cache_dir=tmp_path / "fresh"), layout)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_killed_anywhere_it_ends_with_the_bytes_of_the_clean_run(layout: str, tmp_path: Path) -> None:
    settings = replace(config(write_coco(tmp_path / "coco", 2), tmp_path / "clean"), part_rows=6)
    count = KillDisk(1 << 60)
    embed_as(settings, layout, disk=count)
    steps, clean = (1 << 60) - count.left, content(tmp_path / "clean")
    assert len(clean) == {"npy": 11, "npz": 3}[layout]
    killed = 0
    for step in range(1, steps + 1, 1 + steps // 12):
        again = replace(settings, cache_dir=tmp_path / f"killed-{step}")
        child = os.fork()
        if child == 0:
            try:
                embed_as(again, layout, disk=KillDisk(step))
            finally:
                os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert embed_as(again, layout).status == "ok"
        assert content(again.cache_dir) == clean, f"killed at step {step}"
    assert killed > 5


def test_a_stopped_run_has_no_files_yet(tmp_path: Path) -> None:
    settings = config(write_coco(tmp_path / "coco", 4), tmp_path / "out")
    answers = iter(["", "", "SIGTERM"])
    report = embed_as(settings, "npy", stop=lambda: next(answers, "SIGTERM"))
    assert report.interrupted == "SIGTERM"
    assert not content(tmp_path / "out")
    assert embed_as(settings, "npy").status == "ok"
    assert len(content(tmp_path / "out")) == 21


def test_folders_of_others_are_refused_before_any_work(tmp_path: Path) -> None:
    settings = config(write_coco(tmp_path / "coco", 1), tmp_path / "out")
    embed(replace(settings, cache_dir=tmp_path / "store"))
    with pytest.raises(OutputRefused, match="is a store"):
        embed_as(replace(settings, cache_dir=tmp_path / "store"), "npy")
    embed_as(settings, "npy")
    with pytest.raises(OutputRefused, match="layout npy"):
        embed_as(settings, "npz")
    with pytest.raises(OutputRefused, match="penstock embed"):
        save_image_embeddings(tmp_path / "out", "9", [4], np.eye(1), [0])
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "000000000009.npz").write_bytes(b"half of one")
    (tmp_path / "first" / "image_index.tsv").write_text("image_id\tfeat_file\tnum_segments\n")
    with pytest.raises(OutputRefused, match="layout npz, and nothing that says"):
        embed_as(replace(settings, cache_dir=tmp_path / "first"), "npz")


@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_names_that_files_cannot_have_are_refused_before_any_work(layout: Layout, tmp_path: Path) -> None:
    for scene in ("a", "b"):
        write_scene(tmp_path / "scenes" / scene)
    settings = config(tmp_path, tmp_path / "out", data_path=None, source=f"scenes:{tmp_path / 'scenes'}")
    for run in (embed_as, plan_embed_as):
        with pytest.raises(UsageError, match=rf"format {layout}: .*a/frame_1 and b/frame_1 have the same image id, 1"):
            run(settings, layout)
    assert not (tmp_path / "out").exists()
    assert embed_as(replace(settings, max_segments=3), layout).status == "ok"  # all of them in the first scene


def test_rows_that_another_driver_holds_leave_the_files_unwritten(tmp_path: Path) -> None:
    settings = replace(config(write_coco(tmp_path / "coco", 4), tmp_path / "out"), part_rows=8)
    embed_as(settings, "npy", stop=lambda: "SIGTERM")
    claim = Claim(store_of(tmp_path / "out") / "part-00001")
    claim.acquire()
    report = embed_as(settings, "npy")
    claim.release()
    assert (report.missing, report.interrupted, content(tmp_path / "out")) == (8, "", {})
    assert embed_as(settings, "npy").status == "ok"
    assert len(content(tmp_path / "out")) == 21


def test_the_script_has_the_defaults_of_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from penstock.compat.embed_script import ScriptConfig

    known = vars(ScriptConfig(data_path=tmp_path))
    assert known["embedder_spec"] == "openclip:timm/ViT-B-16-SigLIP"
    assert str(known["cache_dir"]) == "cache/vis_embed"
    expected = {"batch_size": 8, "num_workers": 4, "device": "cuda", "bg_alpha": 0.3, "pad_ratio": 0.1}
    expected |= {"split": "train", "format": "npy"}
    assert {name: known[name] for name in expected} == expected
    write_example(tmp_path / "coco")
    flags = [f"--data_path={tmp_path / 'coco'}", "--cache_dir", str(tmp_path / "out")]
    assert main([*flags, *TINY, "--dry-run"]) == 0
    assert '"to_do": 4' in capsys.readouterr().out
    assert main([*flags, *TINY, "--max-segments", "3"]) == 0
    assert sorted(content(tmp_path / "out"))[-1] == "inst2feat.tsv"
    assert np.load(tmp_path / "out" / "000000397133_15466.npy").dtype == np.float16
    assert (tmp_path / "out" / ".penstock" / "report.html").exists()
    assert main([*flags, *TINY, "--format", "csv"]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_default_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_example(tmp_path / "coco")
    flags = ["--data_path", str(tmp_path / "coco"), "--cache_dir", str(tmp_path / "out"), "--embedder_spec", "tiny:"]
    assert main(flags) == 2
    assert "use --device cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_seeds_test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_test() == 0
    assert "all is well" in capsys.readouterr().out
