"""The data side of distillation: one contract whatever the format, ranks and threads; what does not fit is refused by name."""

import json
import logging
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.errors import (
    BadData,
    BudgetExceeded,
    SchemaError,
    SourceNotFound,
    StateMismatch,
    StoreUnsupported,
    UsageError,
)
from penstock.samplers import mix
from penstock.schema import Schema
from penstock.store import open_store, write_store
from penstock.testing import SourceTests, Truth, make_sa1b_tar, make_sample

torch = pytest.importorskip("torch")

from penstock.train.distill_config import DistillConfig  # noqa: E402
from penstock.train.distill_data import DistillBatches, DistillData, find_binary, open_distill_data  # noqa: E402
from penstock.train.distill_rows import PairRows, StoreRows, require_numbers  # noqa: E402

ROWS, SIDE, CELLS, CHANNELS = 12, 64, 4, 8
TINY: dict[str, Any] = {"feature_size": CELLS, "channels": CHANNELS, "picture_size": SIDE, "size_hw": (40, 56),
                        "edge_sizes": (256, 4), "map_sizes": (CELLS,)}  # fmt: skip
FULL: dict[str, Any] = {"loss_type": "fgd", "decoder": "stand-in", "val_share": 0.25, "batch_size": 3, "num_workers": 2}
Batch = dict[str, Any]


def convert(tars: list[Path], output: Path, **options: Any) -> Path:
    options = {"image_size": SIDE, **options}
    report = convert_sa1b_tar(ConvertConfig(tar_path=tuple(map(str, tars)), output_dir=output, workers=0, **options))
    assert report.failed == 0
    return output


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs as TARs, a folder, and stores; row 2 has no box, row 5 three, row 7 six."""
    root = tmp_path_factory.mktemp("distill")
    (root / "tars").mkdir()
    (root / "pairs").mkdir()
    for number in range(ROWS):
        boxes = {2: 0, 5: 3, 7: 6}.get(number, 1)
        key = f"sa_{number:02d}"
        picture, npz, _ = make_sample(number, key=key, num_boxes=boxes, **TINY)
        (root / "pairs" / f"{key}.jpg").write_bytes(picture)
        (root / "pairs" / f"{key}_features.npz").write_bytes(npz)
    for shard in range(2):
        members = [path for path in sorted((root / "pairs").iterdir()) if int(path.name[3:5]) // 6 == shard]
        from penstock.testing import write_tar

        write_tar(root / "tars" / f"sa1b_shard_{shard:05d}.tar", [(path.name, path.read_bytes()) for path in members])
    tars = sorted((root / "tars").iterdir())
    convert(tars, root / "raw")
    convert(tars, root / "jpeg", image_codec="jpeg")
    convert(tars, root / "half", feature_dtype="float16", part_rows=5)
    return root


def config_of(root: Path, kind: str = "raw", **options: Any) -> DistillConfig:
    options = {**FULL, **options}
    if kind in ("tars", "pairs"):
        data_format = {"tars": "tar_shard", "pairs": "npz_dir"}[kind]
        return DistillConfig(data_format=data_format, data_path=(str(root / kind),), **options)  # type: ignore[arg-type]
    return DistillConfig(binary_data_path=root / kind, **options)


def batches_of(
    config: DistillConfig, count: int, *, state: Any = None, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    feeds = DistillBatches(open_distill_data(config), config, rank=rank, world_size=world_size)
    if state is not None:
        feeds.load_state_dict(state)
    return [copied(batch) for batch in islice(feeds, count)]


def copied(batch: Batch) -> Batch:
    return {name: value if isinstance(value, list) else value.clone() for name, value in batch.items()}


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == other[name] if isinstance(value, list) else torch.equal(value, other[name]), name


def joined(batches: list[Batch]) -> Batch:
    first = batches[0]
    return {
        name: [key for one in batches for key in one[name]]
        if name == "key"
        else torch.cat([one[name] for one in batches])
        for name in first
    }


class TestStoreRows(SourceTests):
    @pytest.fixture(autouse=True)
    def _root(self, root: Path) -> None:
        self.root = root

    def make_source(self) -> StoreRows:
        source = open_distill_data(config_of(self.root, "jpeg")).train
        assert isinstance(source, StoreRows)
        return source


class TestPairRows(SourceTests):
    @pytest.fixture(autouse=True)
    def _root(self, root: Path) -> None:
        self.root = root

    def make_source(self) -> PairRows:
        source = open_distill_data(config_of(self.root, "tars")).train
        assert isinstance(source, PairRows)
        return source


def test_the_batch_is_that_of_the_contract_and_lies_in_the_loaders_memory(root: Path) -> None:
    config = config_of(root)
    data = open_distill_data(config)
    assert (data.level.shape, data.level.stride, data.image_size) == ((CHANNELS, CELLS, CELLS), 16, SIDE)
    feeds = DistillBatches(data, config)
    batch = next(iter(feeds))
    found = {name: (str(value.dtype), tuple(value.shape)) for name, value in batch.items() if name != "key"}
    assert found == {
        "image": ("torch.uint8", (3, 3, SIDE, SIDE)),
        "P4_S16": ("torch.float32", (3, CHANNELS, CELLS, CELLS)),
        "edge_256x256": ("torch.uint8", (3, 256, 256)),
        "fg_map": ("torch.float32", (3, CELLS, CELLS)),
        "bg_map": ("torch.float32", (3, CELLS, CELLS)),
        "box": ("torch.float32", (3, 4)),
        "mask": ("torch.uint8", (3, 256, 256)),
        "has_box": ("torch.bool", (3,)),
    }
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    places = [batch[name].data_ptr() for name in ("image", "P4_S16", "edge_256x256", "fg_map", "bg_map")]
    assert max(places) - min(places) < int(str(feeds.report()["buffer_bytes"]))
    assert len(feeds) == (ROWS - 3) // 3


def test_values_are_those_of_the_store(root: Path) -> None:
    store = open_store(root / "raw")
    for batch in batches_of(config_of(root), 3):
        for place, key in enumerate(batch["key"]):
            record = store[store.find(key)]
            assert np.array_equal(batch["image"][place].permute(1, 2, 0).numpy(), record["image"])
            assert np.array_equal(batch["P4_S16"][place].numpy(), record["P4_S16"])
            assert np.array_equal(batch["fg_map"][place].numpy(), record["fg_map_4x4"])
            count = len(record["bboxes"])
            assert bool(batch["has_box"][place]) == (count > 0)
            if count == 1:
                expected = np.asarray(record["bboxes"])[0] * np.array([SIDE / 56, SIDE / 40] * 2)
                assert np.allclose(batch["box"][place].numpy(), expected, atol=1e-4)
                assert np.array_equal(batch["mask"][place].numpy(), np.asarray(record["masks"])[0])


@pytest.mark.parametrize("kind", ["jpeg", "tars", "pairs"])
def test_every_format_gives_equal_batches(root: Path, kind: str) -> None:
    assert_same(batches_of(config_of(root), 7), batches_of(config_of(root, kind), 7))


def test_only_what_is_asked_for_is_read(root: Path) -> None:
    config = config_of(root, loss_type="mse", decoder=None, edge_weight=0.0)
    (batch,) = batches_of(config, 1)
    assert set(batch) == {"image", "P4_S16", "key"}
    (batch,) = batches_of(replace(config, feat_mask="objects"), 1)
    assert set(batch) == {"image", "P4_S16", "fg_map", "bg_map", "key"}


def test_float16_features_are_given_as_stored(root: Path) -> None:
    config = config_of(root, "half", loss_type="mse")
    (batch,) = batches_of(config, 1)
    assert batch["P4_S16"].dtype == torch.float16
    assert open_distill_data(config).teacher["feature_dtype"] == "float16"
    exact = {
        key: one
        for batch in batches_of(config_of(root), 3)
        for key, one in zip(batch["key"], batch["P4_S16"], strict=True)
    }
    for key, one in zip(batch["key"], batch["P4_S16"], strict=True):
        assert torch.equal(one, exact[key].half())


@pytest.mark.parametrize(("key", "count"), [("sa_05", 3), ("sa_07", 6)])
def test_of_several_boxes_one_is_chosen_by_position_and_its_mask_with_it(root: Path, key: str, count: int) -> None:
    store = open_store(root / "raw")
    record = store[store.find(key)]
    assert len(record["bboxes"]) == count
    config = config_of(root, val_share=0.0, seed=3)
    feeds = DistillBatches(open_distill_data(config), config)
    seen = set()
    for number, batch in enumerate(islice(feeds, 120)):
        if key in batch["key"]:
            place = batch["key"].index(key)
            chosen = mix(3, number * 3 + place, 0xB0C5) % count
            assert np.array_equal(batch["mask"][place].numpy(), np.asarray(record["masks"])[chosen])
            expected = np.asarray(record["bboxes"])[chosen] * np.array([SIDE / 56, SIDE / 40] * 2)
            assert np.allclose(batch["box"][place].numpy(), expected, atol=1e-4)
            seen.add(chosen)
    assert seen == set(range(count))


@pytest.mark.parametrize("kind", ["raw", "tars"])
def test_threads_change_nothing(root: Path, kind: str) -> None:
    few, many = (config_of(root, kind, num_workers=n, prefetch_factor=p) for n, p in ((1, 1), (5, 4)))
    assert_same(batches_of(few, 7), batches_of(many, 7))


@pytest.mark.parametrize("kind", ["raw", "jpeg", "pairs"])
def test_two_ranks_together_are_one(root: Path, kind: str) -> None:
    alone = batches_of(config_of(root, kind, batch_size=4), 5)
    shares = [batches_of(config_of(root, kind, batch_size=2), 5, rank=rank, world_size=2) for rank in range(2)]
    assert_same(alone, [joined(list(pair)) for pair in zip(*shares, strict=True)])


def test_accumulation_makes_the_share_of_a_rank_larger(root: Path) -> None:
    one = batches_of(config_of(root, batch_size=4), 2)
    assert_same(one, batches_of(config_of(root, batch_size=2, gradient_accumulation_steps=2), 2))


@pytest.mark.parametrize("kind", ["raw", "tars"])
def test_a_state_continues_exactly_and_refuses_other_data(root: Path, kind: str) -> None:
    config = config_of(root, kind)
    whole = batches_of(config, 9)
    feeds = DistillBatches(open_distill_data(config), config)
    for _ in islice(feeds, 4):
        pass
    state = json.loads(json.dumps(feeds.state_dict()))
    assert_same(whole[4:], batches_of(replace(config, num_workers=1), 5, state=state))
    for other in (config_of(root, "half"), replace(config, seed=1), replace(config, max_samples=10)):
        with pytest.raises(StateMismatch):
            batches_of(other, 1, state=state)


def test_the_last_rows_are_held_out_and_no_row_is_on_both_sides(root: Path) -> None:
    for share, count in ((0.25, 3), (0.01, 1), (0.5, 6), (0.3, 4), (0.2, 2)):  # 0.3 of 12 is 3.6
        data = open_distill_data(config_of(root, val_share=share))
        assert data.held is not None
        assert [*data.train.keys, *data.held.keys] == list(open_store(root / "raw").keys)
        assert len(data.held) == count
    assert open_distill_data(config_of(root, val_share=0.0)).held is None
    few = open_distill_data(config_of(root, max_samples=4))
    assert few.held is not None
    assert (list(few.train.keys), list(few.held.keys)) == (["sa_00", "sa_01", "sa_02"], ["sa_03"])


def test_facts_of_the_data_are_said(root: Path) -> None:
    facts = open_distill_data(config_of(root)).teacher
    assert (facts["chosen_by"], facts["format"], facts["rows"], facts["left_out"]) == (
        "binary-data-path",
        "store",
        12,
        0,
    )
    assert facts["model_type"] == "sam2.1_hiera_b+"
    facts = open_distill_data(config_of(root, "pairs")).teacher
    assert (facts["format"], facts["rows"], facts["model_type"]) == ("npz_dir", ROWS, "sam2.1_hiera_b+")


@pytest.mark.usefixtures("no_settings")
def test_a_binary_set_is_looked_for_in_the_flag_the_settings_and_the_default(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = DistillConfig(**FULL)
    assert find_binary(nothing) == (Path("data/sa1b_binary"), "default")
    with pytest.raises(SourceNotFound, match="PENSTOCK_BINARY_DATA_DIR"):
        open_distill_data(nothing)
    shutil.copytree(root / "raw", "data/sa1b_binary")
    assert open_distill_data(nothing).teacher["chosen_by"] == "default"
    monkeypatch.setenv("PENSTOCK_BINARY_DATA_DIR", str(root / "jpeg"))
    facts = open_distill_data(nothing).teacher
    assert (facts["path"], facts["chosen_by"]) == (
        str(root / "jpeg"),
        "binary_data_dir of PENSTOCK_BINARY_DATA_DIR",
    )
    assert open_distill_data(config_of(root, "half")).teacher["path"] == str(root / "half")
    with pytest.raises(SourceNotFound, match="nowhere"):
        open_distill_data(config_of(root, "nowhere"))


# Rows that are bad


def poke(store: Path, name: str, row: int, value: bytes, item_bytes: int) -> None:
    """Overwrites the first bytes of a row."""
    (path,) = store.glob(f"part-*/{name}.bin")
    with path.open("r+b") as file:
        file.seek(row * item_bytes)
        file.write(value)


@pytest.mark.parametrize(("dtype", "number"), [("float32", np.nan), ("float32", np.inf), ("float16", -np.inf)])
def test_features_that_are_not_finite_are_replaced_and_counted(
    root: Path, tmp_path: Path, dtype: str, number: float
) -> None:
    tars = sorted((root / "tars").iterdir())
    convert(tars, tmp_path / "raw", feature_dtype=dtype)
    size = CHANNELS * CELLS * CELLS * np.dtype(dtype).itemsize
    poke(tmp_path / "raw", "P4_S16", 4, np.array(number, dtype).tobytes(), size)
    config = config_of(tmp_path)
    feeds = DistillBatches(open_distill_data(config), config)
    batches = [copied(batch) for batch in islice(feeds, 3)]
    assert "sa_04" not in [key for batch in batches for key in batch["key"]]
    assert all(torch.isfinite(batch["P4_S16"]).all() for batch in batches)
    report = feeds.report()
    assert (report["substituted"], report["failed"]) == (1, {"BadData": 1})
    strict = replace(config, max_bad=0.0)
    with pytest.raises(BudgetExceeded, match="BadData: 1"):
        list(islice(DistillBatches(open_distill_data(strict), strict), 3))


def test_a_bad_jpeg_and_a_bad_pair_are_replaced_too(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "pairs", tmp_path / "pairs")
    (tmp_path / "pairs" / "sa_01.jpg").write_bytes(b"no picture")
    (tmp_path / "pairs" / "sa_00_features.npz").write_bytes(b"no archive")
    config = config_of(tmp_path, "pairs", val_share=0.0)
    feeds = DistillBatches(open_distill_data(config), config)
    seen = [key for batch in islice(feeds, 4) for key in batch["key"]]
    assert not {"sa_00", "sa_01"} & set(seen)
    assert int(str(feeds.report()["substituted"])) >= 2
    shutil.copytree(root / "jpeg", tmp_path / "jpeg")
    (blob,) = (tmp_path / "jpeg").glob("part-*/image_jpeg.blob")
    blob.write_bytes(b"\0" * 100 + blob.read_bytes()[100:])
    config = config_of(tmp_path, "jpeg", val_share=0.0)
    feeds = DistillBatches(open_distill_data(config), config)
    assert "sa_00" not in [key for batch in islice(feeds, 4) for key in batch["key"]]
    assert feeds.report()["substituted"] == 1


def test_damage_in_the_first_pairs_hides_nothing(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "pairs", tmp_path / "pairs")
    for name in ("sa_00_features.npz", "sa_01_features.npz"):
        content = bytearray((tmp_path / "pairs" / name).read_bytes())
        place = content.find(b"NUMPY") + 200  # in the first member, of which the checksum is wrong then
        content[place] ^= 1
        (tmp_path / "pairs" / name).write_bytes(bytes(content) if name > "sa_01" else b"nothing")
    data = open_distill_data(config_of(tmp_path, "pairs"))
    assert (data.level.channels, data.teacher["rows"]) == (CHANNELS, ROWS)


def test_boxes_of_an_unknown_format_matter_only_where_they_are_read(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "raw", tmp_path / "raw")
    manifest = tmp_path / "raw" / "store.json"
    manifest.write_text(manifest.read_text().replace('"xyxy"', '"cxcywh"'))
    assert open_distill_data(config_of(tmp_path, decoder=None)).boxes == "xyxy"
    with pytest.raises(StoreUnsupported, match="cxcywh"):
        open_distill_data(config_of(tmp_path))


def test_masks_of_another_size_are_refused(root: Path, tmp_path: Path) -> None:
    store = open_store(root / "raw")
    fields = [replace(one, shape=(None, 64, 64)) if one.name == "masks" else one for one in store.schema.fields]
    rows = [{**store[row], "masks": np.zeros((len(store[row]["bboxes"]), 64, 64), np.uint8)} for row in range(ROWS)]
    records = zip(store.keys, rows, strict=True)
    write_store(tmp_path / "raw", Schema(fields), records, attributes=store.attributes)
    assert "masks: expected 256 x 256" in refusal(config_of(tmp_path))


def test_rows_that_are_not_done_are_left_out(root: Path, tmp_path: Path) -> None:
    tar = tmp_path / "bad.tar"
    truths: list[Truth] = make_sa1b_tar(
        tar, 5, mutate=lambda number, pair: {name: b"bad" if number == 1 else value for name, value in pair.items()}, **TINY
    )  # fmt: skip
    assert len(truths) == 5
    convert_sa1b_tar(ConvertConfig(tar_path=(str(tar),), output_dir=tmp_path / "raw", image_size=SIDE, workers=0))
    data = open_distill_data(config_of(tmp_path))
    assert data.held is not None
    assert [*data.train.keys, *data.held.keys] == ["sa_0", "sa_2", "sa_3", "sa_4"]
    assert (data.teacher["rows"], data.teacher["left_out"]) == (4, 1)


# v1


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v1 directory of four rows in full size, the second without a box."""
    folder = tmp_path_factory.mktemp("v1")
    full: dict[str, Any] = {"size_hw": (600, 800)}
    make_sa1b_tar(folder / "a.tar", 1, **full)
    make_sa1b_tar(folder / "b.tar", 1, start=1, num_boxes=0, **full)
    make_sa1b_tar(folder / "c.tar", 2, start=2, **full)
    return convert([folder / f"{name}.tar" for name in "abc"], folder / "v1", layout="v1", image_size=1024)


def v1_config(path: Path, **options: Any) -> DistillConfig:
    return DistillConfig(
        binary_data_path=path, **{**FULL, "batch_size": 1, "num_workers": 1, "prefetch_factor": 1, **options}
    )


def test_a_v1_directory_gives_the_contract_without_copies(v1: Path) -> None:
    config = v1_config(v1, val_share=0.0)
    data = open_distill_data(config)
    assert (data.level.shape, data.image_size, data.teacher["format"]) == ((256, 64, 64), 1024, "v1")
    feeds = DistillBatches(data, config)
    store = open_store(v1)
    for batch in islice(feeds, 4):
        (key,) = batch["key"]
        record = store[store.find(key)]
        assert np.array_equal(batch["image"][0].permute(1, 2, 0).numpy(), record["image"])
        assert bool(batch["has_box"][0]) == (key != "sa_1")
        expected = np.asarray(record["bboxes"])[0] * np.array([1024 / 800, 1024 / 600] * 2)
        assert np.allclose(batch["box"][0].numpy(), expected if key != "sa_1" else 0, atol=1e-3)
        places = [batch[name].data_ptr() for name in ("image", "P4_S16", "edge_256x256", "fg_map", "mask")]
        assert max(places) - min(places) < int(str(feeds.report()["buffer_bytes"]))


def test_without_the_marker_boxes_are_xywh_and_empty_masks_are_no_prompts(
    v1: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = shutil.copytree(v1, tmp_path / "old")
    shutil.rmtree(old / ".penstock")
    boxes = np.fromfile(old / "bboxes.bin", "<f4").reshape(-1, 4)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    xywh.astype("<f4").tofile(old / "bboxes.bin")
    written = json.loads((old / "config.json").read_text())
    del written["bbox_format"], written["bbox_frame"]
    (old / "config.json").write_text(json.dumps(written))
    assert open_distill_data(v1_config(old)).boxes == "xywh"
    left, right = (
        {batch["key"][0]: batch["box"] for batch in batches_of(v1_config(path, val_share=0.0), 4)} for path in (v1, old)
    )
    assert all(torch.allclose(left[key], right[key], atol=1e-3) for key in left)
    np.zeros((4, 1, 256, 256), np.uint8).tofile(old / "masks.bin")
    config = v1_config(old, val_share=0.0)
    feeds = DistillBatches(open_distill_data(config), config)
    with caplog.at_level(logging.WARNING, "penstock"):
        for batch in islice(feeds, 8):
            assert not batch["has_box"].any()
            assert not batch["box"].any()
    assert feeds.report()["dropped"] == {"boxes outside": 0, "empty masks": 6}
    assert len([record for record in caplog.records if "penstock repair" in record.message]) == 1


# What does not fit


def refusal(config: DistillConfig) -> str:
    with pytest.raises(SchemaError) as caught:
        open_distill_data(config)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["raw", "tars"])
def test_a_missing_field_is_named_with_the_command_that_makes_it(root: Path, tmp_path: Path, kind: str) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    make_sa1b_tar(tars / "a.tar", 3, **{**TINY, "edge_sizes": (4,), "map_sizes": ()})
    convert([tars / "a.tar"], tmp_path / "raw", fields=("image", "P4_S16"))
    message = refusal(config_of(tmp_path, kind, loss_type="mse", decoder=None))
    assert "no field edge_256x256" in message
    assert "penstock teacher" in message
    assert "edges" in message.partition("--fields ")[2]
    message = refusal(config_of(tmp_path, kind, edge_weight=0.0))
    assert "fg_map_4x4, bg_map_4x4" in message
    assert "weights" in message.partition("--fields ")[2]
    assert "no field P3_S8" in refusal(config_of(tmp_path, kind, level="P3_S8"))


def test_another_teacher_or_size_is_refused(root: Path, tmp_path: Path) -> None:
    assert "expected 256 channels" in refusal(config_of(root, teacher_channels=256))
    assert open_distill_data(config_of(root, teacher_channels=CHANNELS)).level.channels == CHANNELS
    convert(sorted((root / "tars").iterdir()), tmp_path / "raw", image_size=32)
    assert "--image-size 64" in refusal(config_of(tmp_path))
    with pytest.raises(UsageError, match="P4_S16"):
        open_distill_data(config_of(root, level="P4"))


def test_too_few_rows_are_refused_with_what_to_do(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves none for validation: .*val_share 0"):
        open_distill_data(config_of(root, max_samples=1))
    assert len(open_distill_data(config_of(root, max_samples=1, val_share=0.0)).train) == 1
    config = config_of(root, batch_size=10)
    with pytest.raises(UsageError, match="9 rows to train on, a step takes 10"):
        DistillBatches(open_distill_data(config), config)
    bad = tmp_path / "bad.tar"
    make_sa1b_tar(bad, 1, mutate=lambda _, pair: dict.fromkeys(pair, b"bad"), **TINY)
    with pytest.raises((UsageError, BadData)):
        open_distill_data(DistillConfig(data_format="tar_shard", data_path=(str(bad),), **FULL))


def test_inputs_without_random_access_or_without_pairs_are_refused(root: Path, tmp_path: Path) -> None:
    make_sa1b_tar(tmp_path / "a.tar.gz", 1, mode="w:gz", **TINY)
    cases: list[tuple[Any, tuple[str, ...], str]] = [
        ("tar_shard", (str(tmp_path / "a.tar.gz"),), "random access"),
        ("tar_shard", (str(tmp_path / "*.tar"),), "expected a TAR"),
        ("npz_dir", (str(root / "pairs"), str(root / "pairs")), "expected one folder"),
        ("npz_dir", (str(tmp_path / "none"),), "expected a folder"),
    ]
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "a.jpg").write_bytes(b"x")
    cases.append(("npz_dir", (str(tmp_path / "lone"),), "no pair of them unpaired"))
    for data_format, paths, expected in cases:
        with pytest.raises(UsageError, match=expected):
            open_distill_data(DistillConfig(data_format=data_format, data_path=paths, **FULL))


def test_numbers_are_checked_in_every_type() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        values = np.ones((3, 4, 5), dtype)
        require_numbers("x", values)
        require_numbers("x", np.full((1, 2), np.finfo(dtype).max, dtype))
        for bad in (np.nan, np.inf, -np.inf):
            values[2, 3, 4] = bad
            with pytest.raises(BadData, match="x: expected finite numbers"):
                require_numbers("x", values)
    require_numbers("x", np.zeros((0, 4), np.float32))
    with pytest.raises(BadData, match="positive sides"):
        require_numbers("image_shape", np.array([[3, 0, 3]], np.int32))
    bad_row = np.array([[1, 2], [1, np.inf], [np.nan, 2]], np.float32)
    with pytest.raises(BadData, match="row 1: x: expected finite"):
        require_numbers("x", bad_row, lambda place: f"row {place}: ")


def test_data_is_plain(root: Path) -> None:
    data = open_distill_data(config_of(root))
    assert isinstance(data, DistillData)
    assert json.loads(json.dumps(dict(data.teacher))) == dict(data.teacher)
