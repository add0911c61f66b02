"""The page of crops: what stands in it, and that it opens offline."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock import Field, Schema
from penstock.errors import BadData, UsageError
from penstock.schema import Record
from penstock.search_page import Page, Section, crop_of, write_search_page
from penstock.source import check_index

BOX = np.array([10, 20, 30, 12], np.float32)


class Pictures:
    """Three pictures, each with an orange box; the last is damaged."""

    schema = Schema(
        [
            Field(name="image", dtype="uint8", shape=(None, None, 3), kind="image"),
            Field(name="box", dtype="float32", shape=(4,), kind="box"),
        ]
    )
    keys = ("a", "b", "c")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Record:
        if check_index(index, 3) == 2:
            raise BadData("c.jpg: damaged")
        pixels = np.full((60, 90, 3), 40, np.uint8)
        pixels[20:32, 10:40] = (250, 120, 0)
        return {"image": pixels, "box": BOX}


class Findable(Pictures):
    """A source that knows the row of a key."""

    def find(self, key: str) -> int:
        if key not in self.keys:
            raise KeyError(key)
        return self.keys.index(key)


def page_of(*keys: str) -> Page:
    hits = [{"key": key, "row": n, "score": 1 - n / 8, "category": "<b>cat</b>"} for n, key in enumerate(keys)]
    return Page(title="Like <a>", sections=[Section(title="a", hits=hits)], facts={"store": "some/store"})


def pictures_in(text: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(one)))
        for one in re.findall(r'src="data:image/(?:jpeg|png);base64,([^"]+)"', text)
    ]


@pytest.mark.parametrize("source", [Pictures(), Findable()])
def test_the_page_shows_each_crop_with_score_and_category(tmp_path: Path, source: Pictures) -> None:
    path = write_search_page(page_of("b", "a", "c", "gone"), tmp_path / "new" / "page.html", source)
    text = path.read_text()
    crops = pictures_in(text)
    assert [crop.size[0] for crop in crops] == [160, 160]
    assert np.asarray(crops[0].convert("RGB"))[crops[0].height // 2, 80].tolist() == pytest.approx([250, 120, 0], abs=6)
    for part in ("1.0000", "0.8750", "&lt;b&gt;cat&lt;/b&gt;", "c.jpg: damaged", "no row of this key", "some/store"):
        assert part in text
    assert "<b>cat" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "No source was given" not in text


def test_without_a_source_the_page_says_so(tmp_path: Path) -> None:
    page = page_of("a")
    page.picture = Image.new("RGB", (30, 20), "red")
    page.table = [{"category": "cat", "rows": 3, "top-1": 0.5}]
    page.sections = [*page.sections, Section(title="asked", hits=[], picture=Image.new("RGB", (400, 100)), note="why")]
    text = write_search_page(page, tmp_path / "page.html").read_text()
    assert "No source was given" in text
    assert "no crop" in text
    assert "Nothing was found." in text
    assert [picture.size for picture in pictures_in(text)] == [(30, 20), (160, 40)]
    assert re.search(r'<td class="n">0\.500</td>', text)
    assert re.search(r'<td class="n">3</td>', text)


def test_a_crop_has_its_surroundings_and_its_box_outlined() -> None:
    crop = crop_of(Pictures(), 0)
    pixels = np.asarray(crop)
    # The box is 30 x 12; with 7.5 pixels around it, columns 2.5..47.5 and rows 12.5..39.5, cut to 2..48 and 12..40.
    assert crop.size == (160, round(28 / 46 * 160))
    assert pixels[0, 0].tolist() == [40, 40, 40]
    corner = int(8 * 160 / 46)
    assert pixels[corner, corner + 9].tolist() == [255, 196, 0]
    assert pixels[corner + 9, corner].tolist() == [255, 196, 0]
    assert pixels[corner + 9, corner + 9].tolist() == [250, 120, 0]


def test_a_source_without_pictures_is_refused() -> None:
    class Plain(Pictures):
        schema = Schema([Pictures.schema["box"]])

    with pytest.raises(UsageError, match="no image"):
        crop_of(Plain(), 0)
