"""What a store says of its own format, and that the stores of earlier versions still open."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from penstock import open_store, write_store
from penstock.check import verify
from penstock.errors import SourceNotFound, StoreCorrupt, StoreUnsupported
from tests.store.test_promises import SCHEMA, record, same

OLD = Path(__file__).parents[1] / "data"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "format-1", tmp_path / "s")
    return tmp_path / "s"


def edit(store: Path, **changes: object) -> None:
    manifest = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(manifest | changes))


def test_a_store_of_format_1_opens_and_verifies() -> None:
    found = open_store(OLD / "format-1")
    assert [found.keys[row] for row in range(len(found))] == [f"k{n}" for n in range(5)]
    assert all(same(found[n], record(n)) for n in range(5))
    assert found.attributes == {"made_by": "format 1"}
    assert verify(OLD / "format-1").ok


def test_a_store_of_format_1_is_written_with_the_same_bytes_today(tmp_path: Path) -> None:
    write_store(tmp_path / "s", SCHEMA, ((f"k{n}", record(n)) for n in range(5)), part_rows=3)
    for old in (OLD / "format-1").rglob("part-*/*"):
        assert (tmp_path / "s" / old.relative_to(OLD / "format-1")).read_bytes() == old.read_bytes(), old.name


def test_an_unknown_incompat_feature_is_refused_by_name(store: Path) -> None:
    edit(store, features={"compat": [], "read_compat": [], "incompat": ["folded-rows"]})
    with pytest.raises(StoreUnsupported, match="folded-rows"):
        open_store(store)


def test_an_unknown_read_compat_feature_may_be_read_and_not_written(store: Path) -> None:
    edit(store, features={"compat": ["colours"], "read_compat": ["row-index"], "incompat": []})
    assert len(open_store(store)) == 5
    with pytest.raises(StoreUnsupported, match="row-index"):
        write_store(store, SCHEMA, [("k9", record(9))])
    edit(store, features={"compat": ["colours"], "read_compat": [], "incompat": []})
    write_store(store, SCHEMA, [("k9", record(9))])
    assert json.loads((store / "store.json").read_text())["features"]["compat"] == ["colours"]
    assert np.array_equal(open_store(store)[5]["vector"], record(9)["vector"])


def test_a_later_version_and_unknown_parts_of_a_manifest_are_refused_with_a_word(store: Path) -> None:
    parts = json.loads((store / "store.json").read_text())["parts"]
    for changes in ({"version": 2}, {"parts": [{**parts[0], "mirror": "b"}]}):
        edit(store, **changes)
        with pytest.raises(StoreUnsupported):
            open_store(store)
        edit(store, version=1, parts=parts)


def test_what_is_no_manifest_is_refused(store: Path, tmp_path: Path) -> None:
    for text in ("", "[]", '{"format": "zip"}', '{"format": "penstock", "version": 1}'):
        (store / "store.json").write_text(text)
        with pytest.raises(StoreCorrupt):
            open_store(store)
    with pytest.raises(SourceNotFound, match=r"neither store\.json"):
        open_store(tmp_path)
