"""WebDataset shards, Parquet, safetensors, stores and Rerun recordings, read back by their own libraries where installed."""

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.check import verify
from penstock.errors import MissingExtra, SourceNotFound, UsageError
from penstock.exporters import export
from penstock.exporters.base import Exporter
from penstock.exporters.parquet import ParquetTable
from penstock.exporters.rerun import RerunRecording
from penstock.exporters.safetensors import Safetensors
from penstock.exporters.store import StoreOfSequences
from penstock.exporters.webdataset import WebDataset
from penstock.geometry.images import decode_picture
from penstock.saved import Saved
from penstock.store import open_store
from penstock.testing import assert_equal_records
from penstock.testing_exporters import ExporterTests, boxes_of, make_saved_set
from tests.exporters.data import exported, save_real


def has(package: str) -> Any:
    """Skips where an optional package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


class TestWebDataset(ExporterTests):
    """The contract."""

    def make_exporter(self) -> WebDataset:
        return WebDataset(shard_sequences=2)


@has("pyarrow")
class TestParquet(ExporterTests):
    """The contract."""

    def make_exporter(self) -> ParquetTable:
        return ParquetTable()


@has("rerun")
class TestRerun(ExporterTests):
    """The contract."""

    def make_exporter(self) -> RerunRecording:
        return RerunRecording()


@has("safetensors")
class TestSafetensors(ExporterTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _lasot(self, tmp_path: Path) -> None:
        self.lasot = tmp_path / "lasot"

    def make_exporter(self) -> Safetensors:
        return Safetensors()

    def make_set(self, root: Path) -> Path:
        return save_real(root, lasot=self.lasot)


class TestStoreOfSequences(ExporterTests):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _lasot(self, tmp_path: Path) -> None:
        self.lasot = tmp_path / "lasot"

    def make_exporter(self) -> StoreOfSequences:
        return StoreOfSequences()

    def make_set(self, root: Path) -> Path:
        return save_real(root, lasot=self.lasot)


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        assert {(one.mtime, one.uid, one.mode) for one in tar} == {(0, 0, 0o644)}
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]  # all are files


def test_shards_hold_whole_sequences(tmp_path: Path) -> None:
    out = exported(tmp_path, WebDataset(shard_sequences=2), masks=True)
    shards = sorted(path.name for path in out.glob("*.tar"))
    assert shards == ["shard-000000.tar", "shard-000001.tar"]
    found = [members(out / name) for name in shards]
    assert [[name for name in one if name.endswith(".json")] for one in found] == [
        ["seq_000001.json", "seq_000002.json"], ["seq_000003.json"],
    ]  # fmt: skip
    saved = tmp_path / "set" / "seq_000002_20241201_143022"
    assert found[0]["seq_000002.search_001.jpg"] == (saved / "images" / "search" / "search_001.jpg").read_bytes()
    assert found[0]["seq_000002.search_001.mask.png"] == (saved / "masks" / "search" / "search_001.png").read_bytes()
    content = json.loads(found[0]["seq_000002.json"])
    assert content["metadata"] == json.loads((saved / "metadata.json").read_text())
    assert content["annotations"] == json.loads((saved / "annotations.json").read_text())
    assert content["absent"] == {"template": ["", "hidden"], "search": ["", "", "outside"]}
    assert json.loads(found[1]["seq_000003.json"])["annotations"]["search_anno"] == [[None] * 4] * 3  # a negative


def test_keys_of_shards_have_no_dot(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set")
    for number, name in ((1, "seq_a.b_20241201_143022"), (2, "seq_a-b_20241201_143022")):
        (tmp_path / "set" / f"seq_{number:06d}_20241201_143022").rename(tmp_path / "set" / name)
    export(tmp_path / "set", tmp_path / "out", format=WebDataset())
    keys = [name.partition(".")[0] for name in members(tmp_path / "out" / "shard-000000.tar") if name.endswith("json")]
    assert sorted(keys) == ["seq_000003", "seq_a-b", "seq_a-b-"]


@has("webdataset")
@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")  # the library leaves shards open
def test_shards_are_read_by_webdataset(tmp_path: Path) -> None:
    import webdataset

    out = exported(tmp_path, WebDataset())
    samples = list(webdataset.WebDataset(str(out / "shard-000000.tar"), shardshuffle=False))
    assert [one["__key__"] for one in samples] == ["seq_000001", "seq_000002", "seq_000003"]
    assert decode_picture(samples[0]["search_000.jpg"]).shape == (48, 64, 3)


@has("pyarrow")
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_the_table_says_what_was_saved(tmp_path: Path, compression: Any) -> None:
    import pyarrow.parquet

    out = exported(tmp_path, ParquetTable(compression=compression, group_sequences=2))
    file = pyarrow.parquet.ParquetFile(out / "steps.parquet")
    assert file.metadata.num_row_groups == 2
    codecs = {file.metadata.row_group(0).column(place).compression for place in range(file.metadata.num_columns)}
    assert codecs == {"ZSTD", "UNCOMPRESSED"} if compression == "zstd" else codecs == {"UNCOMPRESSED"}
    rows = file.read().to_pylist()
    assert [row["role"] for row in rows[:7]] == ["template"] * 2 + ["search"] * 3 + ["backward", "forward"]
    assert len(rows) == 21
    assert [[row[name] for name in ("x", "y", "width", "height")] for row in rows[2:5]] == boxes_of(
        "search", 0
    ).tolist()
    assert [row["frame"] for row in rows[:7]] == [3, 5, 9, 12, 15, 8, 9]
    assert [row["absent"] for row in rows[:7]] == ["", "", "", "", "outside", None, None]
    assert rows[8]["absent"] == "hidden"
    assert rows[8]["visible"] is False
    assert rows[8]["valid"] is True
    assert [rows[5][name] for name in ("x", "y", "width", "height", "time")] == [None] * 5
    assert rows[5]["padded"] is False
    assert [rows[16][name] for name in ("x", "absent")] == [None, "outside"]  # a negative
    saved = tmp_path / "set" / "seq_000001_20241201_143022" / "images" / "template" / "template_001.jpg"
    assert rows[1]["image"] == saved.read_bytes()
    assert (rows[1]["image_height"], rows[1]["image_width"]) == (48, 64)
    about = json.loads(file.metadata.metadata[b"penstock"])
    assert about["sources"] == ["made"]


@has("pyarrow")
def test_the_table_without_pictures(tmp_path: Path) -> None:
    import pyarrow.parquet

    save_real(tmp_path / "set", save_images=False)
    export(tmp_path / "set", tmp_path / "out", format=ParquetTable(images=False, compression_level=9))
    table = pyarrow.parquet.read_table(tmp_path / "out" / "steps.parquet")
    assert "image" not in table.column_names
    assert table["image_height"].null_count == len(table) == 2 * (2 + 1 + 4 + 2)


@has("safetensors")
@pytest.mark.parametrize("pictures", ["crops", "raw", "both"])
def test_tensors_are_the_record(tmp_path: Path, pictures: str) -> None:
    from safetensors import safe_open

    save_real(tmp_path / "set", pictures=pictures)
    export(tmp_path / "set", tmp_path / "out", format=Safetensors())
    saved = Saved(tmp_path / "set")
    for index, key in enumerate(saved.keys):
        with safe_open(tmp_path / "out" / f"{key}.safetensors", "np") as file:
            about = json.loads(file.metadata()["penstock"])
            record = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        assert_equal_records({**record, **about["texts"]}, saved[index])
        assert about["digest"] == saved.provenance(index)["digest"]
        assert set(about["meaning"]) == set(saved.schema)


@pytest.mark.parametrize("pictures", ["crops", "raw", "both"])
@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_rows_of_the_store_are_the_records(tmp_path: Path, pictures: str, image_format: str) -> None:
    save_real(tmp_path / "set", pictures=pictures, image_format=image_format)
    export(tmp_path / "set", tmp_path / "out", format=StoreOfSequences(), licence="mine")
    store, saved = open_store(tmp_path / "out"), Saved(tmp_path / "set")
    assert list(store.keys) == list(saved.keys)
    for index in range(len(saved)):
        record = dict(store[index])
        for name, field in saved.schema.items():
            if not field.is_storable:
                content = np.asarray(record[name]).tobytes()
                empty = np.zeros_like(saved[index][name])
                record[name] = decode_picture(content) if content else empty
        assert_equal_records(record, saved[index])
    assert store.attributes["licence"] == "mine"
    assert store.attributes["sources"] == ["lasot"]
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("exporter", [StoreOfSequences(), pytest.param(Safetensors(), marks=has("safetensors"))])
def test_records_need_a_recipe_and_carry_all_pictures(tmp_path: Path, exporter: Exporter) -> None:
    make_saved_set(tmp_path / "made")
    with pytest.raises(SourceNotFound, match="says what they hold"):
        export(tmp_path / "made", tmp_path / "out", format=exporter)
    save_real(tmp_path / "set", pictures="both")
    with pytest.raises(UsageError, match="leave it out"):
        export(tmp_path / "set", tmp_path / "out", format=exporter, pictures="source")
    assert not (tmp_path / "out").exists()


@has("rerun")
def test_a_recording_says_boxes_on_frames(tmp_path: Path) -> None:
    from rerun.chunk import RrdReader

    out = exported(tmp_path, RerunRecording(), masks=True)
    assert sorted(path.name for path in out.glob("*.rrd")) == [f"seq_{n:06d}.rrd" for n in (1, 2, 3)]
    said: dict[tuple[str, str], dict[int, Any]] = {}
    for chunk in RrdReader(str(out / "seq_000002.rrd")).stream():
        batch = chunk.to_record_batch()
        for name in set(batch.schema.names) - {"frame"}:
            frames = batch.column("frame").to_pylist() if "frame" in batch.schema.names else [-1]
            found = said.setdefault((chunk.entity_path, name), {})
            found |= dict(zip(frames, batch.column(name).to_pylist(), strict=True))
    boxes = {"template": boxes_of("template", 1), "search": boxes_of("search", 1)}
    for role, frames in (("template", [3]), ("search", [9, 12])):
        centres = said[f"/{role}/target", "Boxes2D:centers"]
        halves = said[f"/{role}/target", "Boxes2D:half_sizes"]
        assert sorted(centres) == sorted(halves) == frames
        for frame, box in zip(frames, boxes[role], strict=False):
            np.testing.assert_allclose(np.array(centres[frame][0]) - halves[frame][0], box[:2], atol=1e-4)
            np.testing.assert_allclose(2 * np.array(halves[frame][0]), box[2:], rtol=1e-6)
    for role, frame in (("template", 5), ("search", 15)):
        for entity in ("target", "mask"):
            assert list(said[f"/{role}/{entity}", "Clear:is_recursive"]) == [frame]
    saved = tmp_path / "set" / "seq_000002_20241201_143022" / "images" / "search" / "search_001.jpg"
    assert bytes(said["/search", "EncodedImage:blob"][12][0]) == saved.read_bytes()
    assert list(said["/search/forward", "Boxes2D:centers"]) == [9]
    assert '"video": "video-1"' in said["/about", "TextDocument:text"][-1][0]


@pytest.mark.parametrize(
    ("exporter", "module", "extra"),
    [
        (ParquetTable(), "pyarrow", "table"),
        (Safetensors(), "safetensors.numpy", "safetensors"),
        (RerunRecording(), "rerun", "rerun"),
    ],
)
def test_a_missing_package_is_one_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: Exporter, module: str, extra: str
) -> None:
    make_saved_set(tmp_path / "set")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"penstock\[{extra}\]"):
        export(tmp_path / "set", tmp_path / "out", format=exporter)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    "faults", [{"compression": "lz77"}, {"compression": "none", "compression_level": 3}, {"group_sequences": 0}]
)
def test_options_of_the_table_are_checked(faults: Any) -> None:
    with pytest.raises(UsageError):
        ParquetTable(**faults)


def test_options_of_shards_are_checked() -> None:
    with pytest.raises(UsageError, match="1 or more"):
        WebDataset(shard_sequences=0)
