"""npz-dir: pictures and NPZs of a folder, paired by name; the same bytes as from a TAR."""

import os
from pathlib import Path

import pytest

from penstock.errors import BadData, SourceNotFound
from penstock.readers.npz_dir import NpzDir
from penstock.readers.sa1b_tar import Sa1bTar
from penstock.registry import open_source
from penstock.testing import SourceTests, assert_equal_records, make_sample, write_tar

TINY = {
    "feature_size": 4,
    "channels": 2,
    "picture_size": 32,
    "size_hw": (20, 24),
    "edge_sizes": (8,),
    "map_sizes": (8,),
}


def make_folder(root: Path, count: int = 3, *, suffix: str = "_features", picture: str = "jpg") -> list[str]:
    """Pairs sa_8, sa_9, sa_10, ... so that the order of names is none of numbers."""
    root.mkdir(parents=True, exist_ok=True)
    keys = [f"sa_{number}" for number in range(8, 8 + count)]
    for number, key in enumerate(keys):
        image, npz, _ = make_sample(number, key=key, **TINY)  # type: ignore[arg-type]
        (root / f"{key}.{picture}").write_bytes(image)
        (root / f"{key}{suffix}.npz").write_bytes(npz)
    return keys


class TestContract(SourceTests):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        make_folder(tmp_path / "pairs")
        self.root = tmp_path / "pairs"

    def make_source(self) -> NpzDir:
        return NpzDir(self.root)


@pytest.mark.parametrize("suffix", ["_features", "_sam2_features", ""])
@pytest.mark.parametrize("picture", ["jpg", "JPEG", "png"])
def test_every_spelling_is_paired_and_in_the_order_of_the_pictures(tmp_path: Path, suffix: str, picture: str) -> None:
    keys = make_folder(tmp_path, 4, suffix=suffix, picture=picture)
    source = open_source(f"npz-dir:{tmp_path}")
    assert list(source.keys) == sorted(keys)
    for row, key in enumerate(source.keys):
        record = source[row]
        assert record["picture"].tobytes() == (tmp_path / f"{key}.{picture}").read_bytes()  # type: ignore[union-attr]
        assert record["npz"].tobytes() == (tmp_path / f"{key}{suffix}.npz").read_bytes()  # type: ignore[union-attr]


def test_records_are_those_of_a_tar_of_the_same_files(tmp_path: Path) -> None:
    make_folder(tmp_path / "pairs")
    members = [(path.name, path.read_bytes()) for path in sorted((tmp_path / "pairs").iterdir())]
    write_tar(tmp_path / "a.tar", members)
    folder, tar = NpzDir(tmp_path / "pairs"), Sa1bTar([tmp_path / "a.tar"])
    assert set(folder.keys) == set(tar.keys)
    for row, key in enumerate(folder.keys):
        assert_equal_records(folder[row], tar[tar.keys.index(key)])


def test_subfolders_are_looked_at_and_a_repeated_id_is_an_error_unless_it_is_the_same(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", 2)
    make_folder(tmp_path / "b", 2)
    (tmp_path / "b" / "sa_9.jpg").write_bytes(make_sample(77, **TINY)[0])  # type: ignore[arg-type]
    source = NpzDir(tmp_path)
    assert list(source.keys) == ["sa_8", "sa_9"]
    assert source.repeated == 1
    (problem,) = source.problems
    assert "duplicate id sa_9" in problem.message
    assert [one.key for one in source.candidates()] == ["sa_8", "sa_9", "sa_9@b"]


def test_lone_and_foreign_files_are_said_or_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    for name in ("lone.jpg", "other_features.npz", "notes.txt", "._sa_8.jpg"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = NpzDir(tmp_path)
    assert list(source.keys) == ["sa_8"]
    assert sorted(Path(problem.path).name for problem in source.problems) == ["lone.jpg", "other_features.npz"]
    failed = [one for one in source.candidates() if one.failure]
    assert all(one.index is None for one in failed)
    assert "expected a picture" in failed[1].failure


def test_no_pairs_no_folder_and_files_that_change_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SourceNotFound, match="expected"):
            NpzDir(path)
    make_folder(tmp_path, 2)
    source = NpzDir(tmp_path)
    (tmp_path / "sa_8.jpg").write_bytes(b"")
    (tmp_path / "sa_9_features.npz").unlink()
    for row in (0, 1):
        with pytest.raises(BadData, match="expected"):
            source[row]
