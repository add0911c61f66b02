"""SA-1B TARs: pairs, order, repeats, hostile names; random access and stream agree."""

import io
import os
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers.sa1b_tar import Sa1bTar, Sa1bTarStream, open_sa1b_tars
from penstock.schema import Record
from penstock.source import Candidate, Offers
from penstock.testing import SourceTests, Truth, assert_equal_records, make_sa1b_tar, write_tar

TINY = {
    "feature_size": 4,
    "channels": 2,
    "picture_size": 32,
    "size_hw": (20, 24),
    "edge_sizes": (8,),
    "map_sizes": (8,),
}


def tiny_tar(path: Path, num_samples: int, **options: object) -> list[Truth]:
    return make_sa1b_tar(path, num_samples, **{**TINY, **options})


def record_of(offers: Offers, candidate: Candidate) -> Record | None:
    if candidate.failure:
        return None
    return offers[candidate.index] if candidate.index is not None else candidate.record


def both(*paths: Path, **options: object) -> list[Candidate]:
    """The candidates, after checking that random access and stream give the same."""
    random, stream = Sa1bTar(paths), Sa1bTarStream(random_paths := [str(path) for path in paths], **options)
    found = list(random.candidates())
    streamed = list(stream.candidates())
    assert random.paths == random_paths
    facts = [(one.key, one.origin, one.cheap, one.failure) for one in found]
    assert facts == [(one.key, one.origin, one.cheap, one.failure) for one in streamed]
    for left, right in zip(found, streamed, strict=True):
        if not left.failure:
            assert_equal_records(random[left.index], right.record)
    counts = [(source.ignored, source.repeated, len(source.problems)) for source in (random, stream)]
    assert counts[0] == counts[1]
    assert [one.key for one in found if not one.failure] == random.keys
    return found


class TestContract(SourceTests):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        tiny_tar(tmp_path / "a.tar", 2)
        tiny_tar(tmp_path / "b.tar", 3, start=2)
        self.paths = [tmp_path / "a.tar", tmp_path / "b.tar"]

    def make_source(self) -> Sa1bTar:
        return Sa1bTar(self.paths)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("suffix", ["_features", "_sam2_features", ""])
@pytest.mark.parametrize(("prefix", "picture"), [("", "jpg"), ("./", "jpeg"), ("a/b/", "png"), ("", "JPG")])
def test_every_spelling_gives_the_bytes_in_order(
    tmp_path: Path, mode: str, suffix: str, prefix: str, picture: str
) -> None:
    truths = tiny_tar(tmp_path / "a.tar", 3, mode=mode, suffix=suffix, prefix=prefix, picture=picture)
    source = open_sa1b_tars([tmp_path / "a.tar"])
    assert isinstance(source, Sa1bTar if mode == "w" else Sa1bTarStream)
    found = list(source.candidates())
    assert [one.key for one in found] == ["sa_0", "sa_1", "sa_2"]
    assert {one.origin for one in found} == {"a.tar"}
    for candidate, truth in zip(found, truths, strict=True):
        record = record_of(source, candidate)
        assert record["picture"].tobytes() == truth["picture_bytes"]
        assert record["npz"].tobytes() == truth["npz_bytes"]
    assert not source.problems


def test_rows_are_in_the_order_in_which_pairs_become_complete(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "b_features.npz",
        "c.jpg",
        "b.jpg",
        "c_features.npz",
        "lone.png",
        "a_features.npz",
        "d_features.npz",
    ]
    write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    found = both(tmp_path / "a.tar")
    assert [one.key for one in found] == ["b", "c", "a", "lone", "d"]
    assert [bool(one.failure) for one in found] == [False, False, False, True, True]


def test_unpaired_members_name_what_is_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b_features.npz", b"2")])
    picture, npz = both(tmp_path / "a.tar")
    assert "'a.jpg' in a.tar: expected a NPZ" in picture.failure
    assert "'b_features.npz' in a.tar: expected a picture" in npz.failure
    assert picture.index is None is picture.record


def test_other_members_are_ignored_and_counted(tmp_path: Path) -> None:
    names = ["a.jpg", "a_features.npz", "._a.jpg", ".hidden.npz", "notes.txt", "b.npy", ".jpg", "x/._a_features.npz"]
    write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    source = Sa1bTar([tmp_path / "a.tar"])
    assert source.keys == ["a"]
    assert source.ignored == 6
    assert len(both(tmp_path / "a.tar")) == 1


def test_links_are_never_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("a.jpg", tarfile.SYMTYPE),
            ("a_features.npz", tarfile.LNKTYPE),
            ("b.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.addfile(_directory("folder.jpg"))
    source = Sa1bTar([tmp_path / "a.tar"])
    assert list(source.candidates()) == []
    assert source.ignored == 3
    assert both(tmp_path / "a.tar") == []


def _directory(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("../../etc/x", "x"),
        ("/abs/x", "x"),
        ("a\nb", "a\\nb"),
        ("a\x00b", None),
        ("caf\udce9", "caf\\udce9"),
        ("b\u2028c", "b\\u2028c"),
    ],
)
def test_hostile_names_give_plain_keys(tmp_path: Path, name: str, key: str | None) -> None:
    write_tar(tmp_path / "a.tar", [(f"{name}.jpg", b"1"), (f"{name}_features.npz", b"2")])
    (found, *rest) = both(tmp_path / "a.tar") or [None]
    assert not rest
    assert (found.key if found else None) == key
    assert found is None or found.key.isprintable()
    assert found is None or bool(found.failure) == ("\\" in found.key)


def test_an_endless_name_gives_a_short_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x" * 3000 + ".jpg", b"1"), ("x" * 3000 + ".npz", b"2")])
    (found,) = both(tmp_path / "a.tar")
    assert len(found.key) <= 255
    assert "3000 letters" in found.failure


def test_the_same_file_twice_adds_nothing(tmp_path: Path) -> None:
    tiny_tar(tmp_path / "a.tar", 2)
    os.link(tmp_path / "a.tar", tmp_path / "again.tar")
    (tmp_path / "link.tar").symlink_to(tmp_path / "a.tar")
    paths = [tmp_path / name for name in ("a.tar", "again.tar", "link.tar", "a.tar")]
    source = open_sa1b_tars(paths)
    assert len(list(source.candidates())) == 2
    assert source.repeated == 0


def test_repeated_pairs_are_counted_and_not_offered(tmp_path: Path) -> None:
    tiny_tar(tmp_path / "a.tar", 2)
    (tmp_path / "copy.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as old, tarfile.open(tmp_path / "touched.tar", "w") as new:
        for member in old:
            content = old.extractfile(member).read()
            member.mtime += 1
            new.addfile(member, io.BytesIO(content))
    paths = [tmp_path / name for name in ("a.tar", "copy.tar", "touched.tar")]
    assert [one.key for one in both(*paths)] == ["sa_0", "sa_1"]
    source = Sa1bTar(paths)
    list(source.candidates())
    assert source.repeated == 4


def test_a_duplicate_id_with_other_content_fails_and_names_both(tmp_path: Path) -> None:
    for number in range(3):
        tiny_tar(tmp_path / f"{number}.tar", 1, seed=number)
    tiny_tar(tmp_path / "more.tar", 1, start=7)
    with tarfile.open(tmp_path / "more.tar", "a") as tar:
        for name, content in (
            ("x/sa_7.jpg", b"1"),
            ("x/sa_7_features.npz", b"2"),
            ("y/sa_7.jpg", b"33"),
            ("y/sa_7.npz", b"4"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = both(*[tmp_path / f"{number}.tar" for number in range(3)], tmp_path / "more.tar")
    assert [one.key for one in found] == [
        "sa_0",
        "sa_0@1.tar",
        "sa_0@2.tar",
        "sa_7",
        "sa_7@more.tar",
        "sa_7@more.tar#2",
    ]
    assert found[1].failure == "duplicate id sa_0: first in 0.tar, again in 1.tar with other content"
    assert [bool(one.failure) for one in found] == [False, True, True, False, True, True]


def test_a_whole_pair_after_a_lone_member_of_its_id_is_kept(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1")])
    write_tar(tmp_path / "b.tar", [("x.jpg", b"1"), ("x.npz", b"2")])
    lone, whole = both(tmp_path / "a.tar", tmp_path / "b.tar")
    assert (lone.key, whole.key, whole.failure) == ("x", "x@b.tar", "")


def test_members_of_one_folder_belong_together(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x/a.jpg", b"x"), ("y/a.jpg", b"y"), ("y/a.npz", b"yy"), ("x/a.npz", b"xx")])
    source = Sa1bTar([tmp_path / "a.tar"])
    assert (source[0]["picture"].tobytes(), source[0]["npz"].tobytes()) == (b"y", b"yy")


def test_an_oversized_member_fails_its_row_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1" * 2000), ("a.npz", b"2"), ("b.jpg", b"1"), ("b.npz", b"2")])
    for source in (
        Sa1bTar([tmp_path / "a.tar"], max_member_bytes=1000),
        Sa1bTarStream([tmp_path / "a.tar"], max_member_bytes=1000),
    ):
        large, small = source.candidates()
        assert "2000 bytes; expected at most 1000" in large.failure
        assert not small.failure


def test_wrong_paths_are_refused_before_any_work(tmp_path: Path) -> None:
    tiny_tar(tmp_path / "a.tar", 1)
    (tmp_path / "text.tar").write_text("no archive" * 200)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "zst.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    for wrong in (tmp_path / "absent.tar", tmp_path):
        with pytest.raises(SourceNotFound, match="expected a TAR"):
            open_sa1b_tars([tmp_path / "a.tar", wrong])
    for wrong in (tmp_path / "text.tar", tmp_path / "empty.tar"):
        with pytest.raises(SourceNotFound, match="files that are none"):
            open_sa1b_tars([wrong])
    with pytest.raises(UsageError, match="at least one TAR"):
        open_sa1b_tars([])
    with pytest.raises(UsageError, match="Zstandard"):
        open_sa1b_tars([tmp_path / "zst.tar"])
    tiny_tar(tmp_path / "a.tar.gz", 1, mode="w:gz")
    with pytest.raises(UsageError, match="open_sa1b_tars"):
        Sa1bTar([tmp_path / "a.tar.gz"])


def test_a_file_that_is_no_tar_is_a_problem_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no archive" * 200)
    tiny_tar(tmp_path / "a.tar", 1)
    source = open_sa1b_tars([tmp_path / "text.tar", tmp_path / "a.tar"])
    assert [one.key for one in source.candidates()] == ["sa_0"]
    (problem,) = source.problems
    assert (problem.path, problem.error) == (str(tmp_path / "text.tar"), "ReadError")


def test_a_tar_that_shrinks_after_the_headers_were_read_is_bad_data(tmp_path: Path) -> None:
    tiny_tar(tmp_path / "a.tar", 2)
    source = Sa1bTar([tmp_path / "a.tar"])
    assert len(source) == 2
    os.truncate(tmp_path / "a.tar", 3000)
    with pytest.raises(BadData, match=r"expected .* bytes, got"):
        source[1]


def test_a_worker_that_knows_no_headers_yet_finds_its_row(tmp_path: Path) -> None:
    tiny_tar(tmp_path / "a.tar", 2)
    tiny_tar(tmp_path / "b.tar", 2, start=2)
    paths = [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert_equal_records(Sa1bTar(paths)[3], list(Sa1bTarStream(paths).candidates())[3].record)


def through_a_pipe(path: Path, write: Callable[[object], None]) -> threading.Thread:
    os.mkfifo(path)

    def feed() -> None:
        with open(path, "wb") as pipe:
            write(pipe)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    return thread


def test_a_named_pipe_gives_what_the_file_gives(tmp_path: Path) -> None:
    tiny_tar(tmp_path / "a.tar", 4, mode="w:gz")
    expected = list(open_sa1b_tars([tmp_path / "a.tar"]).candidates())
    thread = through_a_pipe(tmp_path / "pipe", lambda pipe: pipe.write((tmp_path / "a.tar").read_bytes()))
    source = open_sa1b_tars([tmp_path / "pipe"])
    found = list(source.candidates())
    thread.join()
    assert [(one.key, one.cheap) for one in found] == [(one.key, one.cheap) for one in expected]
    with pytest.raises(UsageError, match="read once"):
        next(source.candidates())
    with pytest.raises(UsageError, match="no random access"):
        source[0]


def test_a_pipe_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    through_a_pipe(tmp_path / "pipe", lambda pipe: pipe.write(b"no archive" * 100))
    with pytest.raises(SourceNotFound, match="something else"):
        list(open_sa1b_tars([tmp_path / "pipe"]).candidates())


def test_memory_stays_bounded_however_long_members_wait(tmp_path: Path) -> None:
    """All pictures, then all NPZs: 64 MB wait for their counterpart, of which 4 MB may stay in memory."""
    block = bytes(1 << 20)

    def write(pipe: object) -> None:
        with tarfile.open(fileobj=pipe, mode="w|") as tar:
            for suffix, size in ((".jpg", len(block)), (".npz", 100)):
                for number in range(64):
                    member = tarfile.TarInfo(f"sa_{number}{suffix}")
                    member.size = size
                    tar.addfile(member, io.BytesIO(block[:size]))

    spill = tmp_path / "spill"
    spill.mkdir()
    thread = through_a_pipe(tmp_path / "pipe", write)
    source = Sa1bTarStream([tmp_path / "pipe"], spill_dir=spill, max_pending_bytes=4 << 20)
    tracemalloc.start()
    try:
        count = 0
        for candidate in source.candidates():
            assert candidate.record["picture"].size == len(block)
            count += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        thread.join()
    assert count == 64
    assert peak < 16 << 20
    assert list(spill.iterdir()) == []


def test_spilled_members_come_back_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [(f"{n}.jpg", rng.bytes(1000 + n)) for n in range(20)]
    npzs = [(f"{n}.npz", rng.bytes(10)) for n in reversed(range(20))]
    write_tar(tmp_path / "a.tar", pictures + npzs)
    assert len(both(tmp_path / "a.tar", max_pending_bytes=3000, spill_dir=tmp_path)) == 20
