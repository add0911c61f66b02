"""The reader of scenes: maps belong to frames by name, never by position; every kind of id map; what is not paired."""

import io
from pathlib import Path

import numpy as np
import pytest

from penstock.describe import describe
from penstock.errors import BadData, SourceNotFound
from penstock.geometry.id_pngs import write_id_png
from penstock.readers.base import Reader
from penstock.readers.pth import save_id_map
from penstock.readers.scenes import Scenes
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def id_map(number: int, size_hw: tuple[int, int] = (8, 10)) -> np.ndarray:
    """A map that tells frames apart: 0 is unlabelled."""
    ids = np.zeros(size_hw, np.int32)
    ids[2:6, 3:7] = 40_000 + number
    return ids


def write_map(path: Path, ids: np.ndarray) -> None:
    """By its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        path.write_bytes(save_id_map(ids))
    elif path.suffix == ".png":
        path.write_bytes(write_id_png(ids))
    else:
        buffer = io.BytesIO()
        np.save(buffer, ids)
        path.write_bytes(buffer.getvalue())


def write_scene(
    folder: Path, *, suffix: str = ".jpg.pth", numbers: tuple[int, ...] = (2, 10, 1), ids: str = "obj_ids"
) -> Path:
    """Frames with numbers of unequal length, and a map each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.full((8, 10, 3), 20 * number, np.uint8)
        (folder / "images" / f"frame_{number}.jpg").write_bytes(encode_picture(pixels, "jpg"))
        write_map(folder / ids / f"frame_{number}{suffix}", id_map(number))
    return folder


class TestScenes(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = tmp_path / "scenes"
        write_scene(self.root / "b")
        write_scene(self.root / "a_\u00e9", suffix=".npy", numbers=(1, 2))

    def make_reader(self) -> Reader:
        """Two scenes."""
        return Scenes(self.root)


@pytest.mark.parametrize("suffix", [".jpg.pth", ".pth", ".npy", ".jpg.npy", ".png", ".jpg.png"])
def test_maps_of_every_kind_and_name(tmp_path: Path, suffix: str) -> None:
    source = Scenes(write_scene(tmp_path / "s", suffix=suffix))
    assert list(source.keys) == ["s/frame_1", "s/frame_2", "s/frame_10"]
    for row, number in enumerate((1, 2, 10)):
        record = source[row]
        assert np.asarray(record["ids"]).dtype == np.int64
        np.testing.assert_array_equal(record["ids"], id_map(number))
        assert (int(record["frame"]), record["scene"]) == (row, "s")
        assert record["ids_path"] == f"obj_ids/frame_{number}{suffix}"


def test_pairing_is_by_name_when_one_is_missing(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s", numbers=(1, 2, 3, 10))
    (scene / "obj_ids" / "frame_2.jpg.pth").unlink()
    (scene / "images" / "frame_3.jpg").unlink()
    source = Scenes(tmp_path)
    assert list(source.keys) == ["s/frame_1", "s/frame_10"]
    assert [int(source[row]["frame"]) for row in range(2)] == [0, 2]
    assert [int(np.asarray(source[row]["ids"]).max()) for row in range(2)] == [40_001, 40_010]
    assert [(problem.path, problem.message.partition(":")[0]) for problem in source.problems] == [
        ("s/images", "1 of 3 frames have no map in obj_ids; they are no rows"),
        ("s/obj_ids", "1 maps have no picture, and are no rows"),
    ]
    every = open_source(f"scenes:{tmp_path}?frames=all")
    assert len(every) == 3
    assert every.read(1, ["image", "ids_path"])["ids_path"] == ""
    with pytest.raises(BadData, match="no map in obj_ids"):
        every[1]
    assert every.describe()["maps_without_frame"] == 1


def test_a_map_of_another_size_is_never_resampled(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s")
    write_map(scene / "obj_ids" / "frame_1.jpg.pth", id_map(1, (4, 5)))
    source = Scenes(tmp_path)
    with pytest.raises(BadData, match="never resampled") as caught:
        source[0]
    assert "frame_1.jpg:" in str(caught.value)
    assert "frame_1.jpg.pth" in str(caught.value)
    assert source.read(0, ["ids"])["ids"].shape == (4, 5)
    assert source[1]["image"].shape == (8, 10, 3)


def test_damaged_maps_and_negative_ids(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s", suffix=".npy")
    (scene / "obj_ids" / "frame_1.npy").write_bytes(b"\x93NUMPY")
    write_map(scene / "obj_ids" / "frame_2.npy", np.full((8, 10), -1, np.int16))
    write_map(scene / "obj_ids" / "frame_10.npy", np.full((8, 10), 2**64 - 1, np.uint64))
    source = Scenes(tmp_path)
    with pytest.raises(BadData, match=r"frame_1\.npy"):
        source[0]
    assert np.asarray(source[1]["ids"]).min() == -1
    with pytest.raises(BadData, match=r"below 2\^63"):
        source[2]
    (scene / "obj_ids" / "frame_2.npy").unlink()
    with pytest.raises(BadData, match="was there"):
        source.read(1, ["ids"])


def test_the_first_kind_of_map_counts(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s", suffix=".jpg.npy", ids="refined_ins_ids")
    for number in (1, 2, 10):
        write_map(scene / "refined_ins_ids" / f"frame_{number}.jpg.png", id_map(7, (16, 20)))
    source = open_source(f"scenes:{tmp_path}?ids=refined_ins_ids")
    assert source[0]["ids"].shape == (8, 10)
    assert source.describe()["further_maps_of_a_frame"] == 3


def test_some_scenes_and_the_root_as_a_scene(tmp_path: Path) -> None:
    for name in ("s10", "s2", "s1"):
        write_scene(tmp_path / "x" / name)
    (tmp_path / "x" / "notes").mkdir()
    (tmp_path / "x" / "s3" / "images").mkdir(parents=True)
    assert [group.name for group in Scenes(tmp_path / "x").groups] == ["s1", "s2", "s10"]
    some = open_source(f"scenes:{tmp_path / 'x'}?scenes=s10,s1")
    assert [group.name for group in some.groups] == ["s1", "s10"]
    attributes = describe(some)["attributes"]
    assert isinstance(attributes, dict)
    assert attributes["options"]["scenes"] == ["s10", "s1"]
    assert Scenes(tmp_path / "x" / "s2").groups[0].name == "s2"
    with pytest.raises(SourceNotFound, match="no scene s7"):
        Scenes(tmp_path / "x", scenes=("s7",))


def test_wrong_roots_and_folders_are_told(tmp_path: Path) -> None:
    write_scene(tmp_path / "x" / "y" / "s", ids="refined_ins_ids")
    with pytest.raises(SourceNotFound, match="say ids=refined_ins_ids"):
        Scenes(tmp_path / "x" / "y")
    with pytest.raises(SourceNotFound, match=r"Did you mean .*/y\?"):
        Scenes(tmp_path / "x", ids="refined_ins_ids")
    with pytest.raises(SourceNotFound, match=r"Did you mean .*/s\?"):
        Scenes(tmp_path / "x" / "y" / "s" / "images", ids="refined_ins_ids")


def test_stems_that_repeat_and_new_frames(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s")
    (scene / "images" / "frame_1.png").write_bytes(encode_picture(np.zeros((8, 10, 3), np.uint8), "png"))
    source = Scenes(tmp_path)
    assert len(source) == 3
    assert "stem of another" in source.problems[0].message
    write_scene(tmp_path / "s", numbers=(11,))
    assert len(Scenes(tmp_path)) == 4
    before, after = source.fingerprint(0), Scenes(tmp_path).fingerprint(0)
    assert before == after
    write_map(scene / "obj_ids" / "frame_1.jpg.pth", np.zeros((9, 10), np.uint8))
    assert source.fingerprint(0) != before


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_shared_scenes() -> None:
    source = Scenes(SHARED / "scenes")
    assert [(group.name, group.stop - group.start) for group in source.groups] == [
        ("indoor_cats", 10), ("lobby_chair", 8), ("rugby_field", 10), ("street_a", 8)
    ]  # fmt: skip
    assert not source.problems
    rows = {key: row for row, key in enumerate(source.keys)}
    for group in source.groups:
        for row in (group.start, group.stop - 1):
            record = source[row]
            assert np.shape(record["image"])[:2] == np.shape(record["ids"])
    assert int(np.asarray(source[rows["rugby_field/frame_000000"]]["ids"]).max()) > 32_767
