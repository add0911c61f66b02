"""verify names what is wrong, where, and with which record, and calls nothing wrong that is right."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from penstock.check import Findings, verify
from penstock.check_boxes import iou, tight_boxes
from penstock.check_v1 import change_point
from penstock.errors import SourceNotFound
from penstock.schema import Field, Record, Schema
from penstock.store import write_store
from penstock.store.disk import Disk
from penstock.store.v1_schema import V1_SCHEMA
from penstock.store.v1_sink import V1Sink
from tests.v1_writer import RECORD_BYTES, append, tear, write_config, write_v1

SCHEMA = Schema(
    [
        Field(name="vector", dtype="float32", shape=(16,), kind="embedding"),
        Field(name="edge_8x8", dtype="uint8", shape=(8, 8), kind="mask"),
        Field(name="fg_map_4x4", dtype="float32", shape=(4, 4), kind="map"),
        Field(name="bboxes", dtype="float32", shape=(None, 4), kind="boxes", meaning="XYXY in original-image pixels"),
        Field(name="masks", dtype="uint8", shape=(None, 32, 32), kind="mask"),
        Field(name="image_shape", dtype="int32", shape=(3,)),
        Field(name="caption", dtype="str", kind="text"),
    ]
)


def record(row: int) -> Record:
    """A right record; row 3 has no object, the others two."""
    boxes = np.array([[40, 40, 80, 60], [80, 0, 160, 30]], np.float32)[: 0 if row == 3 else 2]
    masks = np.zeros((len(boxes), 32, 32), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int) // 5, strict=True):
        mask[y1:y2, x1:x2] = 1
    return {
        "vector": np.full(16, row, np.float32),
        "edge_8x8": np.eye(8, dtype=np.uint8),
        "fg_map_4x4": np.full((4, 4), 1 / 16, np.float32),
        "bboxes": boxes,
        "masks": masks,
        "image_shape": np.array([160, 160, 3], np.int32),
        "caption": f"row {row} \u00e9",
    }


def make_store(path: Path, rows: int = 10, *, part_rows: int = 4, **changes: object) -> Path:
    """A sealed store of several parts; `changes` replaces fields of row 5."""
    wrong = {name: np.asarray(value) for name, value in changes.items()}
    pairs = ((f"k{row}", record(row) | (wrong if row == 5 else {})) for row in range(rows))
    write_store(path, SCHEMA, pairs, part_rows=part_rows, durability="process")
    return path


def codes(findings: Findings) -> list[str]:
    """Codes of the faults."""
    return [fault.code for fault in findings.faults]


def messages(findings: Findings) -> str:
    """Faults and suspicions as one text."""
    return "\n".join(found.message for found in (*findings.faults, *findings.suspicions))


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """Changes bytes in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_whole_store_has_no_findings(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(make_store(tmp_path / "s"), on_progress=lambda done, total: seen.append((done, total)))
    assert found.ok
    assert (found.layout, found.rows, found.suspicions, found.notes) == ("store", 10, (), ())
    assert seen[-1] == (10, 10)
    assert json.loads(json.dumps(found.to_json()))["ok"] is True


def test_nothing_there_is_source_not_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SourceNotFound, match=r"store\.json"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"), [(b"{", "JSON"), (b'{"format": "penstock", "version": 1}', "lacks"), (b"[]", "manifest")]
)
def test_broken_manifest_is_reported(tmp_path: Path, content: bytes, said: str) -> None:
    path = make_store(tmp_path / "s")
    (path / "store.json").write_bytes(content)
    found = verify(path)
    assert codes(found) == ["manifest"]
    assert said in messages(found)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("parts", 0, "rows"), "4"),
        (("parts", 0, "rows"), -1),
        (("parts", 0, "name"), "../../etc"),
        (("parts", 0, "draft"), []),
        (("parts", 0, "blob_bytes"), ["a"]),
        (("parts", 0, "blob_bytes", "masks"), None),
        (("parts", 0), 7),
        (("attributes",), None),
        (("schema", 0, "shape", 0), 1_000_000_000),
        (("schema", 0, "kind"), None),
        (("recipe",), []),
        (("parts",), None),
        (("parts", 1, "rows"), 1_000_000_000),
    ],
)
def test_manifest_of_wrong_values_is_reported_and_never_raised(
    tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    path = make_store(tmp_path / "s")
    content = json.loads((path / "store.json").read_bytes())
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (path / "store.json").write_text(json.dumps(content))
    found = verify(path)
    assert not found.ok or place[0] == "schema"


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_is_reported_and_never_raised(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for path in (make_store(tmp_path / "s"), write_v1(tmp_path / "v1", 3)):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        for number in rng.choice(len(files), 2, replace=False).tolist():
            size = files[number].stat().st_size
            if rng.integers(3) == 0:
                files[number].unlink()
            elif rng.integers(2):
                os.truncate(files[number], int(rng.integers(size)))
            else:
                overwrite(files[number], int(rng.integers(size)), rng.bytes(9))
        verify(path)


def test_lost_manifest_and_lost_part_are_reported(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    (path / "part-00001").rename(tmp_path / "away")
    assert "part-00001: no such folder; expected 4 rows" in messages(verify(path))
    (path / "store.json").unlink()
    assert codes(verify(path)) == ["manifest"]


def test_short_file_names_bytes_and_row(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    with (path / "part-00001" / "vector.bin").open("r+b") as file:
        file.truncate(64 * 2 + 5)
    (path / "part-00000" / "caption.blob").unlink()
    for full in (True, False):
        text = messages(verify(path, full=full))
        assert "part-00001/vector.bin: expected 256 bytes, found 133; row 2 is the first that is not whole" in text
        assert "part-00000/caption.blob: expected 32 bytes, found no file" in text


@pytest.mark.parametrize(("name", "offset"), [("vector.bin", 70), ("masks.blob", 3000), ("caption.blob", 9)])
def test_changed_byte_is_found_by_its_checksum(tmp_path: Path, name: str, offset: int) -> None:
    path = make_store(tmp_path / "s")
    target = path / "part-00001" / name
    overwrite(target, offset, bytes([target.read_bytes()[offset] ^ 1]))
    assert verify(path, full=False).ok
    (fault,) = (fault for fault in verify(path).faults if fault.code == "checksum")
    assert (fault.rows, fault.first_row, fault.key) == (1, 5, "k5")
    assert fault.where == f"part-00001/{name}"


def test_damaged_ledger_is_found(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    ledger = path / "part-00000" / "_rows.bin"
    overwrite(ledger, ledger.stat().st_size // 4 * 2 + 9, b"\xff")
    found = verify(path, full=False)
    assert codes(found) == ["ledger-record", "ledger-count", "digest"]
    assert "1 records are damaged and count as missing, first row 2 (k2)" in messages(found)


def test_changed_keys_are_found(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    overwrite(path / "part-00001" / "keys.txt", 0, b"k1")
    found = verify(path, full=False)
    assert codes(found) == ["keys-index", "digest", "duplicate-key"]
    assert "1 rows repeat the key of an earlier one, first 'k1' in rows 1 and 4" in messages(found)


def test_missing_and_failed_rows_are_notes(tmp_path: Path) -> None:
    from penstock.source import Candidate
    from penstock.store import StoreSink
    from penstock.store.commit import Commit

    sink = StoreSink(tmp_path / "s", SCHEMA, durability="process")
    tickets = [entry.ticket for entry in sink.admit([Candidate(key=f"k{row}") for row in range(5)])]
    writer = sink.writer()
    for row, ticket in enumerate(tickets[:3]):
        assert ticket is not None
        sink.enter(ticket)
        done = row != 1
        written = writer.write(ticket.folder, ticket.position, record(row)) if done else None
        sink.commit(Commit(ticket=ticket, written=written, error="" if done else "BadData"))
    sink.close(complete=True)
    found = verify(tmp_path / "s")
    assert found.ok
    assert {note.code: note.rows for note in found.notes} == {"failed-rows": 1, "missing-rows": 2}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("vector", np.full(16, np.nan, np.float32), "not-finite"),
        ("edge_8x8", np.full((8, 8), 2, np.uint8), "not-binary"),
        ("fg_map_4x4", np.full((4, 4), 0.2, np.float32), "weight-sum"),
        ("fg_map_4x4", np.array([[-1, 2, 0, 0]] + [[0] * 4] * 3, np.float32), "negative-weight"),
        ("image_shape", np.array([0, 160, 3], np.int32), "image-shape"),
        ("image_shape", np.array([160, 160, 2], np.int32), "image-shape"),
        ("masks", np.zeros((1, 32, 32), np.uint8), "mask-count"),
        ("bboxes", np.array([[80, 40, 40, 60], [80, 0, 160, 30]], np.float32), "box-order"),
        ("bboxes", np.array([[40, 40, 80, 60], [80, 0, 162, 30]], np.float32), "box-outside"),
    ],
)
def test_impossible_values_are_found(tmp_path: Path, field: str, value: np.ndarray, code: str) -> None:
    found = verify(make_store(tmp_path / "s", **{field: value}))
    assert code in codes(found)
    (fault,) = (fault for fault in found.faults if fault.code == code)
    assert (fault.rows, fault.first_row, fault.key) == (1, 5, "k5")


def test_empty_mask_is_suspicious(tmp_path: Path) -> None:
    masks = np.asarray(record(5)["masks"]).copy()
    masks[1] = 0
    found = verify(make_store(tmp_path / "s", masks=masks))
    assert found.ok
    (doubt,) = found.suspicions
    assert (doubt.code, doubt.rows, doubt.key) == ("empty-mask", 1, "k5")
    assert "1 of 18 boxes (6%)" in doubt.message


# v1


def test_whole_v1_directory_has_no_findings(tmp_path: Path) -> None:
    for marker, boxes in ((None, "xywh"), ("xyxy", "xyxy")):
        path = write_v1(tmp_path / boxes, 6, marker=marker, boxes=boxes)
        found = verify(path)
        assert (found.faults, found.suspicions, found.notes, found.rows) == ((), (), (), 6)


def test_directory_torn_by_a_kill_names_every_record(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 61, total=8)
    tear(path)
    for full in (False, True):
        text = messages(verify(path, full=full))
        assert "edge_maps.bin: record 60 is torn: 61,952 of 70,656 bytes" in text
        assert "weight_maps.bin: record 60 is torn: 167,936 of 172,032 bytes" in text
        assert "(expected 565,248 bytes, found 4,301,312)" in text
        for name in ("images.bin", "features.bin", "masks.bin"):
            assert f"{name} holds 61 whole records, config.json counts 8" in text
        assert "keys.txt holds 61 lines, config.json counts 8" in text
        assert "bboxes.bin" not in text
        assert "misaligned" not in text


def test_append_behind_a_tear_is_found_through_values(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 61, total=8)
    tear(path)
    append(path, 61, 85, boxes="xywh")
    write_config(path, 32)
    text = messages(verify(path))
    for name, tail in (("edge_maps.bin", "61,952 of 70,656"), ("weight_maps.bin", "167,936 of 172,032")):
        assert f"{name}: record 60 is torn: {tail} bytes, and 24 records were appended behind it" in text
        assert "all from record 60 on are misaligned" in text
    assert "images.bin holds 85 whole records, config.json counts 32" in text
    assert "weight_maps.bin: fg_map_128x128: expected a sum of 1" in text


def test_boxes_without_marker_that_are_xyxy_are_suspicious(tmp_path: Path) -> None:
    for masks in (True, False):
        found = verify(write_v1(tmp_path / f"{masks}", 12, boxes="xyxy", masks=masks))
        assert found.ok
        assert "box-convention" in [doubt.code for doubt in found.suspicions]
        assert "read as XYWH" in messages(found)
        assert "as XYXY 12" in messages(found)


def test_boxes_under_the_marker_that_are_xywh_are_suspicious(tmp_path: Path) -> None:
    for masks in (True, False):
        found = verify(write_v1(tmp_path / f"{masks}", 12, boxes="xywh", marker="xyxy", masks=masks))
        assert "box-order" in codes(found)
        (doubt,) = (doubt for doubt in found.suspicions if doubt.code == "box-convention")
        assert "read as XYXY" in doubt.message
        assert "as XYWH 12" in doubt.message


def test_all_zero_masks_of_the_original_are_suspicious(tmp_path: Path) -> None:
    found = verify(write_v1(tmp_path / "v1", 5, masks=False))
    assert found.ok
    (doubt,) = found.suspicions
    assert (doubt.code, doubt.rows, doubt.first_row, doubt.key) == ("empty-mask", 5, 0, "sa_0")
    assert "5 of 5 boxes (100%)" in doubt.message


def test_masks_of_other_rows_are_suspicious(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 4)
    metadata = np.fromfile(path / "metadata.bin", "<i4").reshape(4, 5)
    boxes = np.tile(np.array([0, 0, 30, 30], "<f4"), (4, 1))
    boxes.tofile(path / "bboxes.bin")
    assert "mask-box" in [doubt.code for doubt in verify(path).suspicions]
    metadata[2, 1] = 0
    metadata.tofile(path / "metadata.bin")
    assert codes(verify(path)) == ["box-flags"]


def test_config_that_does_not_fit_is_reported(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 2)
    config = json.loads((path / "config.json").read_bytes())
    sizes = config["sample_sizes"] | {"masks_bytes": 4096}
    for change, said in (
        ({"sample_sizes": sizes}, "sample_sizes.masks_bytes: expected 65,536, got 4096"),
        ({"image_size": 512}, "image_size: expected 1,024, got 512"),
        ({"total_samples": "2"}, "total_samples: expected a count, got '2'"),
        ({"bbox_format": "rebuilding"}, "run the same penstock repair again"),
    ):
        (path / "config.json").write_text(json.dumps(config | change))
        assert said in messages(verify(path, full=False))
    (path / "config.json").write_text("{")
    assert "cannot be read" in messages(verify(path))
    (path / "config.json").unlink()
    assert codes(verify(path, full=False)) == ["config"]


def test_keys_of_a_v1_directory_are_checked(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 4)
    for text, said in (
        ("a\nb\na\nd\n", "first 'a' in rows 0 and 2"),
        ("a\n\nc\nd\n", "1 empty lines, first row 1"),
        ("a\nb\nc\n", "keys.txt holds 3 lines, config.json counts 4"),
        ("a\nb\nc\nd\nsa_", "its last line is torn: b'sa_'"),
    ):
        (path / "keys.txt").write_text(text)
        assert said in messages(verify(path, full=False))
    (path / "keys.txt").unlink()
    assert "keys.txt: no such file" in messages(verify(path, full=False))


def test_missing_file_and_whole_record_too_few_are_named(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 4)
    (path / "masks.bin").unlink()
    with (path / "bboxes.bin").open("r+b") as file:
        file.truncate(48)
    text = messages(verify(path))
    assert "masks.bin: no such file; config.json counts 4 (expected 262,144 bytes, found 0)" in text
    assert "bboxes.bin holds 3 whole records, config.json counts 4 (expected 64 bytes, found 48)" in text


def test_adopted_directory_has_rows_without_checksums(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 3, marker="xyxy", boxes="xyxy")
    sink = V1Sink(path, identity={"stage": "x"}, attributes={}, append=True, disk=Disk(flush=False))
    sink.close(complete=True)
    found = verify(path)
    assert found.ok
    assert [(note.code, note.rows) for note in found.notes] == [("no-checksums", 3)]
    with (path / "metadata.bin").open("ab") as file:
        file.write(b"123")
    found = verify(path)
    assert found.ok
    assert "3 bytes behind record 2 were never committed" in " ".join(note.message for note in found.notes)


def test_schema_of_the_writer_here_is_the_store_s() -> None:
    sizes = {f"{field.file}.bin": 0 for field in V1_SCHEMA.fields}
    for field in V1_SCHEMA.fields:
        sizes[f"{field.file}.bin"] += field.item_bytes
    assert sizes == RECORD_BYTES


def test_tight_boxes_and_overlap() -> None:
    masks = np.zeros((2, 6, 8), np.uint8)
    masks[0, 1:3, 2:7] = 1
    boxes, there = tight_boxes(masks)
    assert boxes[0].tolist() == [2, 1, 7, 3]
    assert there.tolist() == [True, False]
    left = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert iou(left, np.array([[1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 0, 0]])).tolist() == [pytest.approx(1 / 3), 0, 0]


def test_change_point_has_the_fewest_rows_on_the_wrong_side() -> None:
    def at(text: str) -> int | None:
        return change_point(np.array([c == "b" for c in text]), np.array([c == "a" for c in text]))

    assert [at(text) for text in ("bbaaa", "bb..aa", "bbbb", "....", "babbaaabaa", "aaa")] == [2, 2, None, None, 4, 0]
