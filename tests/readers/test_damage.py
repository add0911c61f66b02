"""Damage of any kind, through every reader: what comes out is typed, or recorded; nothing else escapes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.describe import describe
from penstock.errors import BadData, PenstockError, SourceNotFound, UsageError
from penstock.geometry.boxes import box_fault
from penstock.readers.base import Reader
from penstock.readers.files import FolderFiles, LmdbFiles
from penstock.readers.index import Index, cached_index
from penstock.readers.pth import load_id_file
from penstock.readers.video_index import libav_errors
from penstock.registry import open_source
from penstock.source import Problem
from tests.readers.test_coco_instances import write_coco_instances
from tests.readers.test_coco_panoptic import write_coco_panoptic
from tests.readers.test_davis import write_davis, write_vos
from tests.readers.test_folder import write_pictures
from tests.readers.test_got10k import write_got10k
from tests.readers.test_imagenet_vid import write_vid
from tests.readers.test_lasot import write_lasot
from tests.readers.test_masklets import write_masklets
from tests.readers.test_openimages import write_openimages
from tests.readers.test_refcoco import write_refcoco
from tests.readers.test_sa1b import write_sa1b, write_sa1b_tar
from tests.readers.test_sav import write_val
from tests.readers.test_scenes import write_scene
from tests.readers.test_trackingnet import pack, write_trackingnet
from tests.readers.test_youtube_vis import write_vis
from tests.readers.track_data import write_lmdb

MAKERS: dict[str, Callable[[Path], Path]] = {
    "coco-instances:": write_coco_instances,
    "coco-panoptic:": write_coco_panoptic,
    "davis:": write_davis,
    "davis:?split=train&rows=objects": write_vos,
    "folder:": write_pictures,
    "got10k:": write_got10k,
    "imagenet-vid:": write_vid,
    "lasot:": write_lasot,
    "masklets:": write_masklets,
    "openimages:": write_openimages,
    "openimages:?rows=boxes": write_openimages,
    "refcoco:?split=all": write_refcoco,
    "sa1b:": write_sa1b,
    "sav:": write_val,
    "trackingnet:": write_trackingnet,
    "youtube-vis:": write_vis,
}
WORDS = [b"nan", b"-1", b"1e999", b"\x00", b"\xff", b"null", b"[]", b'"a\\u0000b"', b"99999999999999999999", b"<", b""]


def damage(path: Path, dice: random.Random) -> None:
    """One of the things that happen to files."""
    content = path.read_bytes()
    at = dice.randrange(len(content) + 1)
    kind = dice.randrange(8)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.symlink_to(path.name)
    elif kind == 2:
        path.unlink()
        path.mkdir()
    elif kind == 3:
        path.write_bytes(content[:at])
    elif kind == 4:
        path.write_bytes(content[:at] + bytes(dice.randrange(256) for _ in range(4)) + content[at + 4 :])
    else:
        words = content.split(b" " if kind < 7 else b",")
        words[dice.randrange(len(words))] = dice.choice(WORDS)
        path.write_bytes((b" " if kind < 7 else b",").join(words))


@pytest.mark.parametrize("text", MAKERS)
def test_only_typed_errors_come_out(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    root = MAKERS[text](whole / "data").relative_to(whole)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    reader, query = text.split(":")
    seen = 0
    for number in range(12):
        dice = random.Random(f"{text}{number}")
        copy = tmp_path / str(number)
        shutil.copytree(whole, copy)
        monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / f"cache{number}"))
        damage(copy / dice.choice(files), dice)
        try:
            source = open_source(f"{reader}:{copy / root}{query}")
        except PenstockError as error:
            seen += str(tmp_path) in str(error)
            continue
        assert isinstance(source, Reader)
        assert len(source) > 0
        describe(source, sample=2)
        for row in range(min(len(source), 6)):
            source.fingerprint(row)
            try:
                source[row]
            except PenstockError:
                seen += 1
    assert seen


@pytest.mark.parametrize("text", MAKERS)
def test_files_that_vanish_after_opening_fail_their_rows(text: str, tmp_path: Path) -> None:
    root = MAKERS[text](tmp_path / "data")
    reader, query = text.split(":")
    source = open_source(f"{reader}:{root}{query}")
    assert isinstance(source, Reader)
    shutil.rmtree(tmp_path / "data")
    for row in range(len(source)):
        with pytest.raises(BadData, match="data"):
            source[row]
        source.fingerprint(row)


def test_a_zero_byte_in_a_path_is_no_file(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path)
    with pytest.raises(BadData, match="path of a file"):
        files.read("a\0b")
    assert (files.names("a\0b"), files.stamp("a\0b"), files.exists("a\0b")) == ([], 0, False)


def test_a_problem_of_a_file_whose_name_is_no_utf8_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    problem = Problem(os.fsdecode(b"b\xe4r.jpg"), "BadData", "broken")

    def build() -> Index:
        index = Index(problems=[problem])
        index.put("area", [1e300], "float32")
        return index

    assert cached_index("x", "y", "1", build).problems == [problem]
    assert cached_index("x", "y", "1", Index).problems == [problem]


def test_what_killed_writers_left_of_an_index_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path))
    cached_index("x", "y", "1", Index)
    (kept,) = (tmp_path / "index").iterdir()
    old, new = kept.with_name(f".{kept.name}.old"), kept.with_name(f".{kept.name}.new")
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    cached_index("x", "y", "2", Index)
    assert sorted((tmp_path / "index").iterdir()) == sorted([kept, new])


def test_an_interrupt_during_a_build_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import time\nfrom penstock.readers.index import Index, cached_index\n"
        "def build():\n    print('building', flush=True)\n    time.sleep(60)\n    return Index()\n"
        "cached_index('x', 'y', '1', build)\n"
    )
    environ = {**os.environ, "PENSTOCK_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_lmdb_that_is_cut_off_is_refused_and_one_nearby_is_suggested(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    (tmp_path / "here").mkdir()
    path = write_lmdb(tmp_path / "here" / "lmdb", write_lasot(tmp_path / "lasot"))
    with pytest.raises(SourceNotFound, match=rf"a folder without it\. Did you mean {path}\?"):
        LmdbFiles(tmp_path / "here").names()
    size = (path / "data.mdb").stat().st_size
    cut = tmp_path / "cut"
    shutil.copytree(path, cut)
    os.truncate(cut / "data.mdb", size - 4096)
    with pytest.raises(BadData, match=f"at least {size} bytes, got {size - 4096}: it is cut off"):
        LmdbFiles(cut).names()


def test_a_root_of_several_lmdbs_is_suggested(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    root = pack(write_trackingnet(tmp_path / "trackingnet"), tmp_path / "lmdbs")
    for wrong in (tmp_path, root / "TRAIN_0_lmdb"):
        with pytest.raises(SourceNotFound, match=rf"no seq_list\.json.*Did you mean {root}\?"):
            open_source(f"trackingnet-lmdb:{wrong}")


def test_a_file_deep_in_a_dataset_suggests_its_root(tmp_path: Path) -> None:
    root = write_lasot(tmp_path / "lasot")
    with pytest.raises(SourceNotFound, match=rf"it is no folder\. .*Did you mean {root}(/cat)?\?"):
        open_source(f"lasot:{root}/cat/cat-20/groundtruth.txt")


def test_a_path_that_is_too_long_is_not_found() -> None:
    with pytest.raises(SourceNotFound, match="no such folder"):
        open_source(f"folder:{'x' * 5000}")


def test_a_folder_without_pictures_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"without rows .*expected pictures \(\.jpg"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize(("name", "file"), [("lasot", "cat/cat-20/groundtruth.txt"), ("lasot", "cat/cat-20/nlp.txt")])
def test_one_track_file_that_cannot_be_read_is_a_problem(name: str, file: str, tmp_path: Path) -> None:
    root = write_lasot(tmp_path / "lasot")
    (root / file).unlink(missing_ok=True)
    (root / file).mkdir()
    source = open_source(f"{name}:{root}")
    assert isinstance(source, Reader)
    assert [problem.path for problem in source.problems if "Is a directory" in problem.message] == [file]


def test_one_meta_info_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    root = write_got10k(tmp_path / "got10k")
    file = "train/GOT-10k_Train_000002/meta_info.ini"
    (root / file).unlink(missing_ok=True)
    (root / file).mkdir()
    source = open_source(f"got10k:{root}")
    assert isinstance(source, Reader)
    assert file in [problem.path for problem in source.problems]


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_one_tar_that_cannot_be_read_is_a_problem(kind: str, tmp_path: Path) -> None:
    write_sa1b_tar(tmp_path / "sa_000001.tar", (2,))
    other = tmp_path / "sa_000000.tar"
    other.mkdir() if kind == "folder" else other.symlink_to("nowhere")
    source = open_source(f"sa1b:{tmp_path}")
    assert isinstance(source, Reader)
    assert len(source) == 3
    assert [problem.path for problem in source.problems] == ([] if kind == "folder" else ["sa_000000.tar"])


def test_tars_without_pairs_are_no_silent_empty_source(tmp_path: Path) -> None:
    write_sa1b_tar(tmp_path / "sa_000000.tar", (2,))
    content = describe(open_source(f"sa1b-tar:{tmp_path}"))
    assert content["rows"] == 0
    assert "no row" in str(content["problems"])


def test_min_area_is_a_number(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="min_area=nan"):
        open_source(f"sa1b:{write_sa1b(tmp_path / 'sa_000000').parent}?min_area=nan")


def test_an_npy_header_that_is_no_python_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.zeros((2, 3), np.int64))
    path.write_bytes(path.read_bytes().replace(b")", b"(", 1))
    with pytest.raises(BadData, match="NPY"):
        load_id_file(path)


def test_scenes_with_a_map_that_cannot_be_read(tmp_path: Path) -> None:
    write_scene(tmp_path / "a", suffix=".npy", numbers=(1, 2))
    source = open_source(f"scenes:{tmp_path}")
    (tmp_path / "a" / "obj_ids" / "frame_1.npy").unlink()
    with pytest.raises(PenstockError, match="frame_1"):
        source[0]


def test_infinite_boxes_are_faults_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert box_fault(np.array([-np.inf, 0, np.inf, 1]), (5, 5)).startswith("not finite")


def test_a_seek_that_libav_does_not_permit_is_bad_data(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    path.write_bytes(b"damaged")
    with pytest.raises(BadData, match="whole video"), libav_errors(str(path)):
        raise av.error.PermissionError(1, "Operation not permitted", str(path))
