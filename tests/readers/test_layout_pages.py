"""docs/layouts: a page for every reader of a dataset, all of one form, with the options and fields that the code has."""

import inspect
import re
from pathlib import Path

import pytest

from penstock.readers.base import Reader
from penstock.readers.tracks import Tracks
from penstock.registry import find, names

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.stem for path in (DOCS / "layouts").glob("*.md"))


def page(name: str) -> str:
    return (DOCS / "layouts" / f"{name}.md").read_text("utf-8")


def test_every_reader_of_a_dataset_is_in_the_table_with_its_page() -> None:
    table = (DOCS / "layouts.md").read_text("utf-8")
    assert set(re.findall(r"\(layouts/([a-z0-9-]+)\.md\)", table)) == set(PAGES)
    for name in names("readers"):
        if isinstance(reader := find("readers", name), type) and issubclass(reader, Reader):
            assert f"[{name}](layouts/{name}.md)" in table or f"`{name}`" in table
            assert any(page(one).startswith("# ") and f"`{name}`" in page(one).partition("\n")[0] for one in PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_form_of_all(name: str) -> None:
    text = page(name)
    words = " ".join(text.split())
    parts = ["# `", "```text", " row is ", "key is ", "Fields: ", "| option | default | meaning |", "Traps: - "]
    assert [part for part in parts if part not in words] == []
    assert re.search(r"ecorded as (a )?problem", words)
    assert len(re.findall(rf'```bash no-run: needs the dataset\npenstock info "{name}:/data/[^\n]+"\n```', text)) == 1
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_the_options_and_fields_of_its_reader(name: str) -> None:
    reader = find("readers", name)
    assert isinstance(reader, type)
    parameters = inspect.signature(reader).parameters.values()
    options = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    text = page(name)
    rows = text.partition("| option | default | meaning |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", rows, re.MULTILINE)) == options
    common = set(Tracks.schema) if "those of all tracks" in text else set()
    own = set(getattr(reader, "schema", ())) - common  # of openimages and davis it depends on the options
    assert [field for field in own if f"`{field}`" not in text] == []
