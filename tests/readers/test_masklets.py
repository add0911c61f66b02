"""The reader of masklet pairs: channel order, value ranges, names only in the index, cut files."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers import masklets
from penstock.readers.base import Reader
from penstock.readers.masklets import Masklets
from penstock.registry import open_source
from penstock.testing import ReaderTests


def pair(seed: int, **changes: object) -> dict[str, np.ndarray]:
    """Two frames and masks as in the wild: float32, 0..255, BGR. A change to None leaves a member out."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for view in (1, 2):
        arrays[f"frame{view}"] = rng.integers(0, 256, (9, 8, 3)).astype(np.float32)
        mask = np.zeros((9, 8), np.float32)
        mask[view : view + 3, 2:5] = 255
        arrays[f"mask{view}"] = mask
    arrays |= {name: np.asarray(value) for name, value in changes.items() if value is not None}
    return {name: values for name, values in arrays.items() if changes.get(name, 0) is not None}


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """As numpy.savez."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def write_masklets(root: Path, **changes: object) -> Path:
    """Three pairs in two folders; the changes are made to the first."""
    for number, name in enumerate(("a/masklet_data_00002.npz", "a/masklet_data_00010.npz", "b/masklet_data_00001.npz")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npz(pair(number, **({} if number else changes))))
    return root


class TestMasklets(ReaderTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_masklets(tmp_path / "sav")

    def make_reader(self) -> Reader:
        """Three pairs."""
        return Masklets(self.root)


def test_a_pair_is_two_rows_in_rgb(tmp_path: Path) -> None:
    source = Masklets(write_masklets(tmp_path))
    assert list(source.keys)[:3] == ["a/masklet_data_00002/1", "a/masklet_data_00002/2", "a/masklet_data_00010/1"]
    stored = pair(0)
    for row, view in ((0, 1), (1, 2)):
        record = source[row]
        np.testing.assert_array_equal(record["image"], stored[f"frame{view}"][..., ::-1])
        np.testing.assert_array_equal(record["mask"], stored[f"mask{view}"] > 0)
        assert int(record["view"]) == view
        assert record["visible"]
    swapped = open_source(f"masklets:{tmp_path}?channels=rgb")
    np.testing.assert_array_equal(swapped[0]["image"], stored["frame1"])
    with pytest.raises(UsageError, match="channels"):
        Masklets(tmp_path, channels="gbr")  # type: ignore[arg-type]


@given(value=st.floats(0, 255, width=32))
def test_floats_are_rounded_to_the_nearest(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    frame = np.full((9, 8, 3), value, np.float32)
    frame[0, 0, 0] = 255
    root = tmp_path_factory.mktemp("rounded")
    (root / "masklet_data_1.npz").write_bytes(npz(pair(0, frame1=frame)))
    image = np.asarray(Masklets(root).read(0, ["image"])["image"])
    assert abs(int(image[5, 5, 0]) - value) <= 0.5


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "bool"])
@pytest.mark.parametrize("top", [1, 255])
def test_masks_of_every_kind(tmp_path: Path, dtype: str, top: int) -> None:
    mask = np.zeros((9, 8))
    mask[2:4] = top
    source = Masklets(write_masklets(tmp_path, mask1=mask.astype(dtype)))
    np.testing.assert_array_equal(source[0]["mask"], mask > 0)


def test_soft_edges_are_cut_at_half_and_an_empty_mask_is_data(tmp_path: Path) -> None:
    soft = np.zeros((9, 8), np.float32)
    soft[3, 2:6] = (255, 128, 127, 1)
    source = Masklets(write_masklets(tmp_path, mask1=soft, mask2=np.zeros((9, 8), np.float32)))
    assert np.asarray(source[0]["mask"])[3].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    empty = source.read(1, ["visible", "mask"])
    assert not empty["visible"]
    assert not np.asarray(empty["mask"]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame1": np.full((9, 8, 3), 0.5, np.float32)}, "looks like 0..1"),
        ({"frame1": np.full((9, 8, 3), np.nan, np.float32)}, "finite"),
        ({"frame1": np.full((9, 8, 3), 255.5, np.float32)}, "0..255"),
        ({"frame1": np.full((9, 8, 3), -1, np.float32)}, "0..255"),
        ({"frame1": np.zeros((3, 9, 8), np.uint8)}, r"\(H, W, 3\)"),
        ({"frame1": None}, "there are"),
        ({"mask1": np.zeros((8, 9), np.float32)}, "one size"),
        ({"mask1": np.full((9, 8), 7, np.uint8)}, "0..1 or of 0..255"),
        ({"mask1": np.full((9, 8), np.nan, np.float32)}, "0..1 or of 0..255"),
        ({"mask1": np.zeros((9, 8, 1), np.float32)}, r"\(H, W\)"),
    ],
)
def test_what_is_wrong_costs_its_rows(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    source = Masklets(write_masklets(tmp_path, **changes))
    with pytest.raises(BadData, match=message) as caught:
        source[0]
    assert "masklet_data_00002.npz" in str(caught.value)
    assert source[1]["visible"]


def test_a_black_frame_of_whole_numbers_is_a_frame(tmp_path: Path) -> None:
    source = Masklets(write_masklets(tmp_path, frame1=np.zeros((9, 8, 3), np.float32)))
    assert not np.asarray(source[0]["image"]).any()


def test_only_names_are_indexed_and_only_members_asked_for_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_masklets(tmp_path)
    (tmp_path / "b" / "masklet_data_02481.npz").write_bytes(npz(pair(3))[:700])
    (tmp_path / "b" / "masklet_data_02482.npz").write_bytes(b"")
    asked: list[list[str]] = []
    real = masklets.read_npz_file
    monkeypatch.setattr(masklets, "read_npz_file", lambda path, names: asked.append(names) or real(path, names))
    source = Masklets(tmp_path)
    assert (len(source), asked, source.problems) == (10, [], [])
    source.read(1, ["mask"])
    source.read(1, ["view", "path"])
    assert asked == [["mask2"]]
    for row in (6, 8):
        with pytest.raises(BadData, match=r"masklet_data_0248\d\.npz"):
            source[row]


def test_new_files_are_seen_and_wrong_roots_are_told(tmp_path: Path) -> None:
    root = write_masklets(tmp_path / "x")
    before = Masklets(root)
    (root / "b" / "masklet_data_00000.npz").write_bytes(npz(pair(5)))
    after = Masklets(root)
    assert after.keys[4] == "b/masklet_data_00000/1"
    assert before.digest() != after.digest()
    (tmp_path / "x" / "c").mkdir()
    with pytest.raises(SourceNotFound, match="Did you mean"):
        Masklets(tmp_path / "x" / "c")
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.npz").write_bytes(b"")
    with pytest.raises(SourceNotFound, match=r"1 other \.npz"):
        Masklets(other)


def test_swapped_channels_are_found(tmp_path: Path) -> None:
    for number in range(12):
        rgb = np.full((16, 16, 3), 60, np.uint8)
        rgb[: 5 + 2 * (number // 3)] = ((120, 80, 50), (80, 120, 50), (130, 60, 80))[number % 3]
        (tmp_path / f"masklet_data_{number}.npz").write_bytes(npz({"frame1": rgb[..., ::-1], "mask1": rgb[..., 0]}))
    (tmp_path / "masklet_data_5.npz").write_bytes(b"cut")
    assert Masklets(tmp_path).check_channels().guess == "rgb"
    assert Masklets(tmp_path, channels="rgb").check_channels(12).guess == "bgr"
    with pytest.raises(UsageError, match="sample=0"):
        Masklets(tmp_path).check_channels(0)
