"""Sources by their text: READER:PATH?option=value, stores by path, settings in the place of a path."""

import inspect
import logging
from pathlib import Path

import numpy as np
import pytest

from penstock import Field, Schema, open_source, open_sources, registry, write_store
from penstock.errors import SourceNotFound, UsageError
from penstock.readers.base import Reader
from penstock.readers.folder import Folder
from penstock.readers.sa1b_tar import Sa1bTar
from penstock.registry import parse_source
from penstock.store import Store
from penstock.testing import encode_picture, make_sa1b_tar


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode_picture(np.zeros((4, 4, 3), np.uint8), "png"))
    return folder


def test_a_path_is_a_store(tmp_path: Path) -> None:
    schema = Schema([Field(name="x", dtype="int32")])
    write_store(tmp_path / "folder:odd", schema, [("a", {"x": np.array(1, np.int32)})])
    assert isinstance(open_source(str(tmp_path / "folder:odd")), Store)


def test_options_take_the_types_of_the_reader(pictures: Path) -> None:
    source = open_source(f"folder:{pictures}?exif=ignore")
    assert isinstance(source, Folder)
    assert source.exif == "ignore"


def test_a_path_with_a_question_mark(pictures: Path) -> None:
    odd = pictures.rename(pictures.parent / "what?split=x")
    assert len(open_source(f"folder:{odd}")) == 1
    assert parse_source(f"folder:{odd}?exif=ignore").options == {"exif": "ignore"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder:{}?exif=maybe", "expected apply or ignore or decide"),
        ("folder:{}?colour=1", "no option colour; there are exif"),
        ("folder:{}?exif=apply&exif=ignore", "twice"),
        ("foldr:{}", "no reader 'foldr'"),
        ("folder:{}?missing=drop", "open_sources"),
        ("folder:", "no setting names a folder"),
        ("{}/nowhere", "nowhere"),
    ],
)
def test_wrong_texts_say_what_is_wrong(pictures: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(text.format(pictures))


def test_the_settings_give_the_path(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_LASOT_DIR", str(pictures / "nowhere"))
    with pytest.raises(SourceNotFound, match="nowhere"):
        open_source("lasot:")
    monkeypatch.delenv("PENSTOCK_LASOT_DIR")
    monkeypatch.setenv("PENSTOCK_SETTINGS", "")
    with pytest.raises(UsageError, match="PENSTOCK_LASOT_DIR"):
        open_source("lasot:")


def test_a_missing_source_is_dropped_only_where_that_was_asked(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SourceNotFound):
        open_sources([f"folder:{pictures}", f"folder:{pictures}/nowhere"])
    with caplog.at_level(logging.WARNING):
        opened = open_sources([f"folder:{pictures}", f"folder:{pictures}/nowhere?missing=drop"])
    assert len(opened) == 1
    assert "left out (missing=drop)" in caplog.text
    with pytest.raises(SourceNotFound, match="none of these"):
        open_sources([f"folder:{pictures}/nowhere?missing=drop"])
    with pytest.raises(UsageError, match="error or drop"):
        open_sources([f"folder:{pictures}?missing=maybe"])


def test_tars_by_file_folder_and_pattern(tmp_path: Path) -> None:
    for number in range(2):
        make_sa1b_tar(tmp_path / f"s{number}.tar", 1, start=number, picture_size=32)
    for path, rows in ((tmp_path / "s0.tar", 1), (tmp_path, 2), (tmp_path / "s*.tar", 2)):
        source = open_source(f"sa1b-tar:{path}")
        assert isinstance(source, Sa1bTar)
        assert len(source) == rows
    with pytest.raises(SourceNotFound, match="pattern"):
        open_source(f"sa1b-tar:{tmp_path}/x*.tar")


@pytest.mark.parametrize("name", registry.names("readers"))
def test_every_reader_can_be_opened_by_text(name: str) -> None:
    """It is importable, its options are keyword-only and of types that a text can give, and it says what it is."""
    reader = registry.find("readers", name)
    assert inspect.getdoc(reader)
    function = reader.__init__ if inspect.isclass(reader) else reader  # type: ignore[misc]  # the constructor
    positional = [
        each for each in inspect.signature(function).parameters.values() if each.kind is not each.KEYWORD_ONLY
    ]
    assert [each.name for each in positional if each.name != "self"] in (["root"], ["path"])
    if inspect.isclass(reader) and issubclass(reader, Reader):
        assert reader.name == name
        assert reader.layout


def test_a_reader_from_outside_is_found(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    class Point:
        name = "mine"

        def load(self) -> type:
            return Folder

    monkeypatch.setattr(
        registry, "entry_points", lambda group, name=None: [Point()] if group == "penstock.readers" else []
    )
    assert "mine" in registry.names("readers")
    assert len(open_source(f"mine:{pictures}")) == 1


def test_names_are_described() -> None:
    found = registry.describe_names("readers")
    assert found["folder"].startswith("JPEGs and PNGs")
