"""The stage of refine: rows of frames, files as bytes, and what does not fit."""

import io
import json
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadData, UsageError
from penstock.geometry.id_pngs import read_id_png
from penstock.readers.pth import load_id_map
from penstock.refining.settings import RefineSettings
from penstock.schema import Record
from penstock.stages.refine import COUNTS, ID_TYPES, RefineFrames, encode_ids, input_schema
from tests.refine_data import MaskProposer, coarse_map, picture_of

NO_MAP = np.zeros((0, 0), np.int64)


def record_of(seed: int, **changes: object) -> Record:
    ids = coarse_map(seed)
    known: dict[str, Any] = {
        "image": picture_of(ids, seed), "ids": ids, "scene": "a", "path": f"a/images/frame_{seed}.jpg",
        "file": f"a/out/frame_{seed}.jpg.pth", "existing": NO_MAP, "existing_bytes": np.array(0, np.int64),
    }  # fmt: skip
    return known | changes


def stage_of(**options: object) -> RefineFrames:
    stage = RefineFrames(**({"proposer": MaskProposer()} | options))  # type: ignore[arg-type]  # checked by it
    stage.setup("cpu")
    return stage


def numbers(row: Record) -> dict[str, int]:
    return {name: int(np.asarray(row[name])) for name in (*COUNTS, "kept_existing", "file_bytes", "confidence_bytes")}


def test_rows_fit_the_schema_and_their_files_are_as_said() -> None:
    stage = stage_of(batch_size=2)
    rows = stage([record_of(1), record_of(2)])
    for seed, row in zip((1, 2), rows, strict=True):
        assert list(row.keys() ^ stage.schema.keys()) == []
        for name, field in stage.schema.items():
            field.encode(row[name])
        content = np.asarray(row["ids_content"]).tobytes()
        ids = load_id_map(content)
        assert numbers(row)["file_bytes"] == len(content)
        assert int(np.asarray(row["file_digest"])) == xxhash.xxh3_64_intdigest(content)
        levels = read_id_png(np.asarray(row["confidence_content"]).tobytes())
        assert levels.shape == ids.shape == coarse_map(seed).shape
        counts = numbers(row)
        assert counts["objects"] == 3
        assert counts["invalid_pixels"] == int((ids == 0).sum())
        assert counts["invalid_before"] == int((coarse_map(seed) == 0).sum())
        assert counts["accepted"] + counts["kept"] <= 3
        assert counts["sam_matched"] + counts["fallback"] == 3
        assert [one["id"] for one in json.loads(str(row["table"]))["objects"]] == [7, 12, 300 + seed]


def test_input_is_what_the_offers_give() -> None:
    assert set(record_of(1)) == set(input_schema())


def test_padding_is_not_computed_again_and_company_does_not_matter() -> None:
    stage = stage_of(batch_size=4)
    one, two = record_of(1), record_of(2)
    together = stage([one, two, two, two])
    alone = stage([one, one, one, one])
    assert len(together) == len(alone) == 4
    assert together[3] is together[1]
    for name in stage.schema:
        left, right = together[0][name], alone[0][name]
        assert left == right if isinstance(left, str) else np.array_equal(left, right)


def test_a_map_of_others_is_kept_without_files() -> None:
    stage = stage_of(batch_size=2)
    existing = coarse_map(9)
    kept, made = stage([record_of(1, existing=existing, existing_bytes=np.array(77, np.int64)), record_of(2)])
    counts = numbers(kept)
    assert (counts["kept_existing"], counts["file_bytes"], counts["confidence_bytes"]) == (1, 77, 0)
    assert counts["objects"] == 3
    assert counts["invalid_pixels"] == int((existing == 0).sum())
    assert np.size(kept["ids_content"]) == np.size(kept["confidence_content"]) == 0
    assert numbers(made)["kept_existing"] == 0


def test_a_pickled_stage_gives_the_same_bytes() -> None:
    stage = stage_of()
    again = pickle.loads(pickle.dumps(stage))
    again.setup("cpu")
    assert again.identity() == stage.identity()
    left, right = stage([record_of(3)])[0], again([record_of(3)])[0]
    assert np.array_equal(left["ids_content"], right["ids_content"])
    assert np.array_equal(left["confidence_content"], right["confidence_content"])


def test_identity_is_plain_and_names_what_matters() -> None:
    identity = stage_of(settings=RefineSettings(invalid=(4, 5))).identity()
    assert json.loads(json.dumps(identity)) == identity
    others = [stage_of(dtype="int32"), stage_of(format="npy"), stage_of(settings=RefineSettings(poles=2)),
              stage_of(proposer=MaskProposer(name="x"))]  # fmt: skip
    assert all(other.identity() != stage_of().identity() for other in others)


@pytest.mark.parametrize("dtype", ID_TYPES)
def test_an_id_that_does_not_fit_is_named(dtype: Any) -> None:
    ids = coarse_map(1)
    ids[0, 0] = np.iinfo(dtype).max + 1
    with pytest.raises(BadData, match=f"a/frame_1: the largest id is {np.iinfo(dtype).max + 1}"):
        stage_of(dtype=dtype)([record_of(1, ids=ids)])
    ids[0, 0] = np.iinfo(dtype).max
    (row,) = stage_of(dtype=dtype)([record_of(1, ids=ids)])
    assert load_id_map(np.asarray(row["ids_content"]).tobytes()).dtype == np.dtype(dtype)


@given(
    st.sampled_from(ID_TYPES),
    st.sampled_from(["pth", "npy", "png"]),
    st.lists(st.integers(0, 70_000), min_size=6, max_size=6),
)
def test_ids_come_back_as_they_were_or_are_refused(dtype: Any, layout: Any, values: list[int]) -> None:
    ids = np.array(values, np.int64).reshape(2, 3)
    if max(values) > np.iinfo(dtype).max or (layout == "png" and max(values) > 65_535):
        with pytest.raises(BadData, match=str(max(values))):
            encode_ids(ids, layout, dtype)
        return
    content = encode_ids(ids, layout, dtype)
    assert content == encode_ids(ids, layout, dtype)
    if layout == "png":
        found = read_id_png(content)
        assert found.dtype == np.uint16
    else:
        found = load_id_map(content) if layout == "pth" else np.load(io.BytesIO(content))
        assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "jpg"}, "format: expected pth, npy, png"),
        ({"dtype": "uint8"}, "dtype: expected uint16"),
        ({"format": "png", "dtype": "int32"}, "a PNG holds ids up to 65535"),
        ({"batch_size": 0}, "batch-size"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage_of(**options)


def test_another_device_than_the_proposers_is_refused() -> None:
    with pytest.raises(UsageError, match="the proposer was opened on cpu, asked for cuda:1"):
        stage_of().setup("cuda:1")


def test_workers_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "name", "SpawnProcess-3")
    stage = RefineFrames(
        proposer=MaskProposer(device="cuda:0"), devices=2, reopen=lambda device: MaskProposer(device=device)
    )
    stage.setup("cuda:0")
    assert stage.proposer.device == "cuda:1"
    stage.setup("cuda")  # of Ray: a worker sees its own alone
    assert stage.proposer.device == "cuda:0"
    changed = RefineFrames(
        proposer=MaskProposer(device="cuda:0"), devices=2, reopen=lambda device: MaskProposer(name="new", device=device)
    )
    with pytest.raises(UsageError, match="changed while the run was starting"):
        changed.setup("cuda:0")
