"""The reader of Open Images."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.geometry.id_pngs import binary_png, write_binary_png
from penstock.readers import openimages, openimages_csv
from penstock.readers.base import Reader
from penstock.readers.openimages import OpenImages
from penstock.registry import open_source
from penstock.testing import ReaderTests, encode_picture

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "openimages"
FIRST, SECOND = "00a1f2e3d4c5b697", "fe00112233445566"
MASKS = "train-annotations-object-segmentation.csv"
BOXES = "oidv6-train-annotations-bbox.csv"
MASK_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
BOX_HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,Extra"
MASK_LINES = [
    f"{SECOND}_m01g317_0badcafe.png,{SECOND},/m/01g317,0badcafe,0.250000,0.750000,0.200000,0.600000,0.91234,0.1 0.2 1;",
    f"{FIRST}_m04dr76w_00000001.png,{FIRST},/m/04dr76w,00000001,0.000000,0.500000,0.100000,1.000000,0.00000,",
    f"{SECOND}_m04dr76w_12345678.png,{SECOND},/m/04dr76w,12345678,0.250000,1.000000,0.000000,0.500000,0.50000,",
    f"other-name.png,{FIRST},/m/01g317,00000002,0.125000,0.500000,0.100000,0.500000,,",
]
BOX_LINES = [
    f"{SECOND},xclick,/m/01g317,1,0.25,0.75,0.2,0.6,1,0,-1,0,0,0.3",
    f"{FIRST},xclick,/m/04dr76w,1,0,0.5,0.1,1,0,1,0,0,1,0.3",
    f"{SECOND},activemil,/m/04dr76w,1,0.25,1,0,0.5,-1,-1,-1,-1,-1,0.3",
]
CLASSES = "/m/01g317,Person\n/m/04dr76w,Caf\u00e9 bottle\n"


def mask_of(number: int, size_hw: tuple[int, int] = (20, 32)) -> np.ndarray:
    """A mask with a hole, another one for each number."""
    mask = np.zeros(size_hw, np.uint8)
    mask[2 + number : 15, 4 : 25 - number] = 1
    mask[8, 9:12] = 0
    return mask


def write_openimages(
    root: Path,
    *,
    split: str = "train",
    mask_lines: list[str] = MASK_LINES,
    box_lines: list[str] = BOX_LINES,
    mask_hw: tuple[int, int] = (20, 32),
) -> Path:
    """Two pictures of 10 x 16, masks of twice that size."""
    tables, pictures, masks = root / "annotations", root / split, root / "masks"
    for folder in (tables, pictures, masks):
        folder.mkdir(parents=True, exist_ok=True)
    (tables / MASKS.replace("train", split)).write_text("\n".join([MASK_HEADER, *mask_lines, ""]))
    (tables / BOXES.replace("train", split)).write_text("\n".join([BOX_HEADER, *box_lines, ""]))
    (tables / "class-descriptions-boxable.csv").write_text(CLASSES)
    for number, name in enumerate((FIRST, SECOND)):
        (pictures / f"{name}.jpg").write_bytes(encode_picture(np.full((10, 16, 3), 90 * number, np.uint8), "jpg"))
    for number, line in enumerate(MASK_LINES):
        (masks / line.partition(",")[0]).write_bytes(write_binary_png(mask_of(number, mask_hw)))
    return root


class TestMasks(ReaderTests):
    """The contract, over masks."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_openimages(tmp_path / "data")

    def make_reader(self) -> Reader:
        """Four masks."""
        return OpenImages(self.root)


class TestBoxes(ReaderTests):
    """The contract, over boxes."""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.root = write_openimages(tmp_path / "data")

    def make_reader(self) -> Reader:
        """Three boxes."""
        return OpenImages(self.root, rows="boxes")


def test_masks_by_picture_then_as_in_the_file(tmp_path: Path) -> None:
    reader = OpenImages(write_openimages(tmp_path))
    second = [f"{SECOND}_m01g317_0badcafe", f"{SECOND}_m04dr76w_12345678"]
    assert list(reader.keys) == [f"{FIRST}_m04dr76w_00000001", "other-name", *second]
    assert [(group.name, group.start, group.stop) for group in reader.groups] == [(FIRST, 0, 2), (SECOND, 2, 4)]
    record = reader[2]
    assert (record["image_id"], record["label_name"], record["category"]) == (SECOND, "/m/01g317", "Person")
    assert (record["box_id"], record["path"]) == ("0badcafe", f"train/{SECOND}.jpg")
    assert record["box"].tolist() == [4, 2, 8, 4]
    assert record["predicted_iou"] == np.float32(0.91234)
    assert reader[0]["category"] == "Caf\u00e9 bottle"
    assert np.isnan(reader[1]["predicted_iou"])
    assert not reader.problems


def test_a_mask_comes_at_the_size_of_the_picture(tmp_path: Path) -> None:
    reader = OpenImages(write_openimages(tmp_path))
    for row, number in enumerate((1, 3, 0, 2)):
        expected = Image.fromarray(mask_of(number)).resize((16, 10), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(reader[row]["mask"], np.asarray(expected))
        assert set(np.unique(reader[row]["mask"])) == {0, 1}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=200)
def test_nearest_is_that_of_pillow_and_never_empty(height: int, width: int, longest: int, random: object) -> None:
    scale = longest / max(height, width)
    from_hw = max(round(height * scale), 1), max(round(width * scale), 1)
    mask = (np.random.default_rng(random.randrange(1 << 30)).random(from_hw) < 0.3).astype(np.uint8)  # type: ignore[attr-defined]
    mask.flat[0] = 1
    resized = openimages._at_size(mask, (height, width))
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    assert resized.any()
    sides = ((height, from_hw[0]), (width, from_hw[1]))
    on_edge = any((2 * place + 1) * old % (2 * new) == 0 for new, old in sides for place in range(new))
    if expected.any() and not on_edge:  # a centre on the edge of two pixels: Pillow's floats go either way
        np.testing.assert_array_equal(resized, expected)


def test_an_object_that_falls_between_the_pixels_is_kept(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    mask = np.zeros((20, 32), np.uint8)
    mask[6, 10] = 1
    (root / "masks" / "other-name.png").write_bytes(write_binary_png(mask))
    assert np.argwhere(OpenImages(root)[1]["mask"]).tolist() == [[3, 5]]


def test_a_mask_of_other_proportions_or_without_pixels_fails_alone(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    for mask, message in (
        (np.ones((32, 20), np.uint8), r"other-name\.png: expected a mask of the picture's proportions, 10 x 16"),
        (np.ones((12, 32), np.uint8), "proportions"),
        (np.zeros((20, 32), np.uint8), r"other-name\.png: expected a mask with pixels, got an empty one"),
    ):
        (root / "masks" / "other-name.png").write_bytes(write_binary_png(mask))
        reader = OpenImages(root)
        with pytest.raises(BadData, match=message):
            reader[1]
        assert reader[0]["mask"].any()
        assert reader.read(1, ["box"])["box"].tolist() == [2, 1, 6, 4]


def test_boxes_and_their_flags(tmp_path: Path) -> None:
    reader = OpenImages(write_openimages(tmp_path), rows="boxes")
    assert list(reader.keys) == [f"{FIRST}_0", f"{SECOND}_0", f"{SECOND}_1"]
    names = ("is_occluded", "is_truncated", "is_group_of", "is_depiction", "is_inside")
    assert [[int(reader[row][name]) for name in names] for row in range(3)] == [
        [0, 1, 0, 0, 1],
        [1, 0, -1, 0, 0],
        [-1, -1, -1, -1, -1],
    ]
    assert reader[0]["box"].tolist() == [0, 1, 8, 9]
    assert "mask" not in reader.schema
    assert reader.describe()["is_occluded"] == 1


def test_a_box_reads_the_header_of_the_picture_alone(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    path = root / "train" / f"{FIRST}.jpg"
    path.write_bytes(path.read_bytes()[:-8])
    reader = OpenImages(root)
    assert reader.read(1, ["box", "mask"])["mask"].shape == (10, 16)
    assert reader.pictures_decoded == 0
    with pytest.raises(BadData, match=rf"train/{FIRST}\.jpg"):
        reader[0]


def test_a_turned_picture_is_refused(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 10)).save(root / "train" / f"{FIRST}.jpg", exif=exif)
    for fields in (["box"], ["image"]):
        with pytest.raises(BadData, match="EXIF orientation 6"):
            OpenImages(root).read(0, fields)


def test_missing_files_fail_their_rows(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    (root / "masks" / "other-name.png").unlink()
    (root / "train" / f"{SECOND}.jpg").unlink()
    reader = OpenImages(root)
    with pytest.raises(BadData, match=r"other-name\.png: expected a file"):
        reader[1]
    with pytest.raises(BadData, match=rf"{SECOND}\.jpg: expected a file"):
        reader.read(2, ["box"])
    assert reader.read(2, ["category"])["category"] == "Person"
    assert reader[0]["mask"].any()


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ("0.250000,0.750000", "nan,0.750000", "box", "not finite"),
        ("0.250000,0.750000", "left,0.750000", "box", "not finite"),
        ("0.250000,0.750000", "0.750000,0.250000", "box", "empty"),
        ("0.250000,0.750000", "1.250000,1.750000", "box", "outside the picture"),
        ("/m/01g317,0badcafe", "/m/0zzzz,0badcafe", "category", "got /m/0zzzz"),
    ],
)
def test_a_wrong_value_fails_its_row(tmp_path: Path, old: str, new: str, field: str, message: str) -> None:
    reader = OpenImages(write_openimages(tmp_path, mask_lines=[MASK_LINES[0].replace(old, new), *MASK_LINES[1:]]))
    with pytest.raises(BadData, match=f"{SECOND}_m01g317_0badcafe: expected .*{message}"):
        reader.read(2, [field])
    assert reader.read(2, ["image_id"])["image_id"] == SECOND
    assert reader[3]["mask"].any()


def test_a_wrong_flag_fails_its_row(tmp_path: Path) -> None:
    lines = [BOX_LINES[0].replace("0.6,1,0,-1", "0.6,2,0,-1"), *BOX_LINES[1:]]
    reader = OpenImages(write_openimages(tmp_path, box_lines=lines), rows="boxes")
    with pytest.raises(BadData, match="expected IsOccluded to be 1, 0 or -1"):
        reader[1]
    assert reader.read(1, ["is_truncated"])["is_truncated"] == 0


def test_broken_lines_are_counted_with_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openimages_csv, "_CHUNK", 2)
    lines = [MASK_LINES[0], "cut.png,0011", "", MASK_LINES[1], MASK_LINES[2], f"{MASK_LINES[3]},one,more"]
    reader = OpenImages(write_openimages(tmp_path, mask_lines=lines))
    (problem,) = reader.problems
    assert "2 lines are broken, expected 10 fields: lines 3, 7; their rows are not there" in problem.message
    assert problem.path == f"annotations/{MASKS}"
    assert len(reader) == 3


def test_a_mask_that_is_named_twice_is_counted(tmp_path: Path) -> None:
    reader = OpenImages(write_openimages(tmp_path, mask_lines=[*MASK_LINES, MASK_LINES[1]]))
    assert len(reader) == 4
    assert "1 lines name a MaskPath that an earlier line names" in reader.problems[0].message


def test_missing_columns_are_named(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    path = root / "annotations" / MASKS
    path.write_text(path.read_text().replace("LabelName,BoxID", "Label,Box"))
    with pytest.raises(
        BadData, match="no column LabelName, BoxID in its header; it has MaskPath, ImageID, Label, Box,"
    ):
        OpenImages(root)
    path.write_text("")
    with pytest.raises(BadData, match="it has no header"):
        OpenImages(root)
    path.write_text(MASK_HEADER + "\n")
    with pytest.raises(SourceNotFound, match="without rows"):
        OpenImages(root)
    path.write_text(f"{MASK_HEADER}\n{MASK_LINES[0].replace('0badcafe,', 'x' * 100 + ',')}\n")
    with pytest.raises(BadData, match="BoxIDs of at most 64"):
        OpenImages(root)
    path.write_text(f'{MASK_HEADER}\n"{"x" * 200_000}')
    with pytest.raises(BadData, match="expected CSV: field larger"):
        OpenImages(root)


def test_byte_order_marks_quotes_and_headers_of_class_names(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    path = root / "annotations" / MASKS
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    (root / "annotations" / "class-descriptions-boxable.csv").unlink()
    names = '\ufeffLabelName,DisplayName\r\n/m/01g317,"Person, any"\r\n/m/04dr76w,\u74f6\r\nbroken\r\n'
    (root / "oidv7-class-descriptions.csv").write_bytes(names.encode())
    reader = OpenImages(root)
    assert [reader[row]["category"] for row in range(4)] == ["\u74f6", "Person, any", "Person, any", "\u74f6"]
    assert "1 lines are broken, expected a label and a name: lines 4" in reader.problems[0].message


def test_other_places_of_pictures_and_masks(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    (root / "images").mkdir()
    shutil.move(root / "train", root / "images" / "train")
    shutil.move(root / "masks", root / "moved")
    (root / "masks").mkdir()
    shutil.move(root / "moved", root / "masks" / "train")
    for path in (root / "annotations").iterdir():
        shutil.move(path, root)
    assert OpenImages(root)[0]["path"] == f"images/train/{FIRST}.jpg"
    assert OpenImages(root)[0]["mask"].any()


def test_a_split_is_chosen_or_named(tmp_path: Path) -> None:
    root = write_openimages(tmp_path)
    write_openimages(root, split="validation", mask_lines=MASK_LINES[:1])
    with pytest.raises(UsageError, match=r"train-.*validation-.*say which \(split=NAME\)"):
        OpenImages(root)
    assert len(open_source(f"openimages:{root}?split=validation")) == 1
    assert len(open_source(f"openimages:{root}?split=train&rows=boxes")) == 3
    with pytest.raises(SourceNotFound, match="no test-annotations-object-segmentation"):
        OpenImages(root, split="test")
    shutil.copy(root / "annotations" / MASKS, root)
    with pytest.raises(UsageError, match="keep one of them"):
        OpenImages(root, split="train")


def test_a_wrong_root_is_told_the_right_one(tmp_path: Path) -> None:
    root = write_openimages(tmp_path / "data")
    for wrong in (tmp_path, root / "train"):
        with pytest.raises(SourceNotFound, match=f"Did you mean {root}"):
            OpenImages(wrong)
    shutil.rmtree(root / "masks")
    with pytest.raises(SourceNotFound, match="no masks/"):
        OpenImages(root)
    assert len(OpenImages(root, rows="boxes")) == 3
    shutil.rmtree(root / "train")
    with pytest.raises(SourceNotFound, match="no pictures in any of images/train, train, images"):
        OpenImages(root, rows="boxes")
    (root / "annotations" / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(SourceNotFound, match=r"no \*class-descriptions"):
        OpenImages(root)


def test_opened_from_the_cache_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_openimages(tmp_path)
    first = OpenImages(root)
    prints = [first.fingerprint(row) for row in range(4)]
    path = root / "annotations" / MASKS
    path.write_text(path.read_text().replace("0.91234", "0.81234"))
    second = OpenImages(root)
    assert second[2]["predicted_iou"] == np.float32(0.81234)
    assert [a == b for a, b in zip(prints, map(second.fingerprint, range(4)), strict=True)] == [True, True, False, True]
    monkeypatch.setattr(OpenImages, "_build", lambda _: pytest.fail("built though nothing changed"))
    assert list(OpenImages(root).keys) == list(first.keys)


def test_many_rows_open_from_the_cache_without_work_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"{number % 7000:016x}_m01g317_{number:08x}.png,{number % 7000:016x},/m/01g317,{number:08x},0.1,0.2,0.1,0.2,0.5,"
        for number in range(40_000)
    ]
    root = write_openimages(tmp_path, mask_lines=lines)
    built = OpenImages(root)
    assert (len(built), len(built.groups)) == (40_000, 7000)
    assert sum(column.nbytes for column in built.index.columns.values()) < 100 * len(built)
    keys = [built.keys[row] for row in range(0, 40_000, 997)]
    for name in ("_build", "_key", "_pictures", "_record"):
        monkeypatch.setattr(OpenImages, name, lambda *_: pytest.fail("work at opening"))
    opened = OpenImages(root)
    monkeypatch.undo()
    assert [opened.keys[row] for row in range(0, 40_000, 997)] == keys
    assert keys == sorted(keys)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_shared_data_equal_the_files() -> None:
    reader = OpenImages(SHARED)
    text = (SHARED / "annotations" / MASKS).read_text()
    lines = {line["MaskPath"]: line for line in csv.DictReader(io.StringIO(text))}
    assert sorted(f"{key}.png" for key in reader.keys) == sorted(lines)
    for row, key in enumerate(reader.keys):
        line, record = lines[f"{key}.png"], reader[row]
        height, width = record["image"].shape[:2]
        corners = [float(line[f"Box{name}"]) for name in ("XMin", "YMin", "XMax", "YMax")]
        x, y, w, h = record["box"].tolist()
        np.testing.assert_allclose([x / width, y / height, (x + w) / width, (y + h) / height], corners, atol=1e-6)
        np.testing.assert_array_equal(record["mask"], binary_png((SHARED / "masks" / f"{key}.png").read_bytes()))
        assert (record["image_id"], record["label_name"]) == (line["ImageID"], line["LabelName"])
    assert len(OpenImages(SHARED, rows="boxes")) == 9
