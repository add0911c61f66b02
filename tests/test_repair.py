"""repair saves every row that is right, guesses nothing, and may be killed at any step."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from penstock import repair as repair_module
from penstock.check import verify
from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.errors import PartClaimed, SourceNotFound, StoreCorrupt, UsageError
from penstock.repair import repair
from penstock.store import open_store, write_store
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.testing import Truth, make_sa1b_tar
from tests.test_check import SCHEMA, make_store, overwrite, record
from tests.v1_writer import RECORD_BYTES, SPARSE, append, rectangle, tear, write_config, write_v1

STEPS = ("make_directory", "resize", "write", "replace", "rename", "remove", "sync", "sync_directory", "copy")


class Killed(BaseException):
    """The process is gone."""


class Dying(Disk):
    """Does so many steps, tears the next one, and none after that."""

    def __init__(self, steps: int) -> None:
        super().__init__(flush=False)
        self.left = steps

    def __getattribute__(self, name: str) -> object:
        if name in STEPS:
            if self.left <= 0:
                if name == "write" and self.left == 0:
                    self.left = -1
                    return lambda path, content, offset: self._torn(path, content, offset)
                raise Killed(name)
            self.left -= 1
        return super().__getattribute__(name)

    def _torn(self, path: Path, content: bytes | memoryview, offset: int) -> None:
        Disk.write(self, path, memoryview(content).cast("B")[: len(content) // 2], offset)
        raise Killed("write")


def clone(source: Path, target: Path) -> Path:
    """A copy whose sparse files stay sparse."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*SPARSE))
    for name in SPARSE:
        if (source / name).exists():
            (target / name).touch()
            os.truncate(target / name, (source / name).stat().st_size)
    return target


def contents(path: Path) -> dict[str, bytes | int]:
    """Every file's bytes; of the sparse ones the size."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in ("_claim", "_plan"))
    return {str(f.relative_to(path)): f.stat().st_size if f.name in SPARSE else f.read_bytes() for f in files}


def kill_at_every_step(base: Path, scratch: Path, act: Callable[[Path, Disk], object]) -> int:
    """Kills `act` at each of its steps, runs it again, and compares with a run that was not killed. Gives the steps.

    A directory that opens in between must be the old one or the new one, in boxes, masks and marker.
    """
    act(clean := clone(base, scratch / "clean"), Disk(flush=False))
    before, expected = contents(base), contents(clean)
    for step in range(10_000):
        path = clone(base, scratch / f"step-{step}")
        try:
            act(path, Dying(step))
        except Killed:
            assert served(path) in (None, said(before), said(expected)), f"killed at step {step}"
            act(path, Disk(flush=False))
            assert contents(path) == expected, f"killed at step {step}"
            shutil.rmtree(path)
        else:
            assert contents(path) == expected
            return step
    raise AssertionError("never ended")


def served(path: Path) -> tuple[object, ...] | None:
    """What a reader would get; None where the directory is refused."""
    try:
        open_store(path)
    except StoreCorrupt:
        return None
    return said(contents(path))


def said(files: dict[str, bytes | int]) -> tuple[object, ...]:
    """Boxes, masks, and what config.json says of them; nothing for a store, of which whole parts are compared."""
    if "config.json" not in files:
        return ()
    config = json.loads(files["config.json"])
    return files["bboxes.bin"], files["masks.bin"], config["total_samples"], config.get("bbox_format")


def boxes_of(path: Path) -> np.ndarray:
    """(n, 4) what bboxes.bin holds."""
    return np.fromfile(path / "bboxes.bin", "<f4").reshape(-1, 4)


# Torn v1 directories


def test_torn_directory_is_cut_to_the_rows_whole_in_every_file(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 61, total=8)
    tear(path)
    before = contents(path)
    plan = repair(path, dry_run=True)
    assert contents(path) == before
    assert not (path / ".penstock").exists()
    report = repair(path)
    assert report.deeds == plan.deeds
    assert (report.rows_before, report.rows_after) == (8, 8)
    assert {name: (path / name).stat().st_size for name in RECORD_BYTES} == {n: 8 * s for n, s in RECORD_BYTES.items()}
    assert (path / "keys.txt").read_text().split() == [f"sa_{row}" for row in range(8)]
    assert not (path / ".penstock").exists()
    assert verify(path).ok
    assert len(open_store(path)) == 8
    assert repair(path).deeds == []
    assert json.loads(json.dumps(report.to_json()))["rows_after"] == 8


def test_append_behind_a_tear_is_cut_to_the_rows_before_it(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 61, total=8)
    tear(path)
    append(path, 61, 85, boxes="xywh")
    write_config(path, 32)
    report = repair(path)
    assert report.rows_after == 8
    assert "records were appended behind the torn record 60" in report.deeds[0].message
    assert verify(path).ok
    assert len(open_store(path)) == 8


def test_rows_that_were_written_and_never_counted_are_kept(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 7, total=4)
    with (path / "metadata.bin").open("r+b") as file:
        file.truncate(6 * 20 + 3)
    report = repair(path)
    assert (report.rows_before, report.rows_after) == (4, 6)
    assert verify(path).ok
    assert json.loads((path / "config.json").read_bytes())["description"] == "by others"


def test_rows_whose_box_belongs_to_another_picture_are_cut(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 9)
    boxes = np.array([rectangle(row)[1] for row in range(9)], "<f4")
    boxes[3:8] = [[900, 600, 910, 610]] * 5
    boxes[:8].tofile(path / "bboxes.bin")  # one record was lost: what follows is shifted
    report = repair(path)
    assert report.rows_after == 3
    assert "from row 3 on the boxes belong to other pictures" in report.deeds[0].message


def test_file_that_is_gone_drops_no_rows(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 3)
    (path / "masks.bin").unlink()
    before = contents(path)
    with pytest.raises(StoreCorrupt, match=r"would drop all 3 rows; nothing was touched"):
        repair(path)
    assert contents(path) == before


def test_cut_may_be_killed_at_any_step(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 6, total=2)
    for name, size in {"bboxes.bin": 2 * 16, "metadata.bin": 2 * 20, "edge_maps.bin": 5 * 70_656 + 61_952}.items():
        os.truncate(path / name, size)
    append(path, 6, 8, boxes="xywh")
    write_config(path, 4)
    steps = kill_at_every_step(path, tmp_path, lambda p, disk: repair(p, disk=disk))
    assert steps > 20
    assert len(open_store(tmp_path / "clean")) == 2


# Boxes


def test_boxes_become_xyxy_once(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 5)
    before = contents(path)
    assert repair(path, boxes="xyxy", dry_run=True).deeds[0].message == "bboxes.bin: 5 boxes from XYWH to XYXY"
    assert contents(path) == before
    for _ in range(2):
        repair(path, boxes="xyxy")
        np.testing.assert_array_equal(boxes_of(path), [rectangle(row)[1] for row in range(5)])
    after = contents(path)
    config = json.loads(after["config.json"])
    assert (config["bbox_format"], config["bbox_frame"], config["description"]) == ("xyxy", "original", "by others")
    assert {name for name in after if after[name] != before.get(name)} == {"bboxes.bin", "config.json"}
    assert verify(path).suspicions == ()


def test_box_conversion_may_be_killed_at_any_step(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 3)
    act: Callable[[Path, Disk], object] = lambda p, disk: repair(p, boxes="xyxy", disk=disk)  # noqa: E731
    assert kill_at_every_step(path, tmp_path, act) > 15
    np.testing.assert_array_equal(boxes_of(tmp_path / "clean"), [rectangle(row)[1] for row in range(3)])


def test_interrupted_rebuild_is_refused_until_it_is_finished(tmp_path: Path) -> None:
    refused = 0
    for step in range(8, 16):
        path = write_v1(tmp_path / str(step), 3)
        with pytest.raises(Killed):
            repair(path, boxes="xyxy", disk=Dying(step))
        if json.loads((path / "config.json").read_bytes()).get("bbox_format") == "rebuilding":
            refused += 1
            with pytest.raises(StoreCorrupt, match="run the same penstock repair again"):
                open_store(path)
            journal = json.loads((path / ".penstock" / "repair.json").read_bytes())
            if journal["stage"] == "build":
                with pytest.raises(UsageError, match="same options"):
                    repair(path)
    assert refused
    shutil.rmtree(path / ".penstock")
    config = json.loads((path / "config.json").read_bytes()) | {"bbox_format": "rebuilding"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreCorrupt, match="journal is gone"):
        repair(path, boxes="xyxy")


# TARs


def small_mask(truth: Truth) -> np.ndarray:
    """(256, 256) the first mask, as the format defines it."""
    mask = np.asarray(truth["masks"])[0].astype(np.float32)
    return (cv2.resize(mask, (256, 256), interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)


def faulty_directory(path: Path, truths: list[Truth], others: int) -> Path:
    """As the original converts: XYWH boxes, empty masks; `others` rows more whose keys are in no TAR."""
    write_v1(path, len(truths) + others, masks=False)
    boxes = boxes_of(path)
    for row, truth in enumerate(truths):
        boxes[row] = np.asarray(truth["boxes_xywh"])[0]
    boxes.tofile(path / "bboxes.bin")
    names = [str(truth["key"]) for truth in truths] + [f"other_{number}" for number in range(others)]
    (path / "keys.txt").write_text("".join(f"{name}\n" for name in names))
    return path


SMALL = {"channels": 1, "feature_size": 2, "edge_sizes": (4,), "map_sizes": (4,), "picture_size": 16}


def test_boxes_and_masks_are_rebuilt_from_tars(tmp_path: Path) -> None:
    def spoil(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: content[:-40] if name.endswith("npz") and number == 2 else content
            for name, content in members.items()
        }

    truths = make_sa1b_tar(tmp_path / "a.tar", 4, mutate=spoil, **SMALL)
    path = faulty_directory(tmp_path / "v1", truths, others=12)
    before = contents(path)
    plan = repair(path, tars=[tmp_path / "a.tar"], dry_run=True)
    assert contents(path) == before
    report = repair(path, tars=[tmp_path / "a.tar"])
    assert (plan.rebuilt, report.rebuilt, report.failed, report.kept) == (4, 3, 1, 12)
    assert report.failures[0].startswith("sa_2: NPZ")
    assert report.kept_keys == [f"other_{number}" for number in range(10)]
    boxes = boxes_of(path)
    for row, truth in enumerate(truths):
        assert boxes[row].tolist() == np.asarray(truth["boxes_xyxy"])[0].tolist()
    np.testing.assert_array_equal(boxes[4:], [rectangle(row)[1] for row in range(4, 16)])
    masks = np.fromfile(path / "masks.bin", np.uint8).reshape(-1, 256, 256)
    for row in (0, 1, 3):
        np.testing.assert_array_equal(masks[row], small_mask(truths[row]))
    assert not masks[[2, *range(4, 16)]].any()
    metadata = np.fromfile(path / "metadata.bin", "<i4").reshape(-1, 5)
    assert metadata[0].tolist() == [1, 1, 120, 160, 3]
    assert metadata[2].tolist() == np.frombuffer(bytes(before["metadata.bin"]), "<i4").reshape(-1, 5)[2].tolist()
    assert {name for name, content in contents(path).items() if content != before.get(name)} == {
        "bboxes.bin", "masks.bin", "metadata.bin", "config.json",
    }  # fmt: skip


def test_rebuild_from_tars_may_be_killed_at_any_step(tmp_path: Path) -> None:
    truths = make_sa1b_tar(tmp_path / "a.tar", 2, **SMALL)
    path = faulty_directory(tmp_path / "v1", truths, others=1)
    act: Callable[[Path, Disk], object] = lambda p, disk: repair(p, tars=[tmp_path / "a.tar"], disk=disk)  # noqa: E731
    assert kill_at_every_step(path, tmp_path, act) > 25


def converted(tmp_path: Path, name: str) -> Path:
    """A v1 directory of ours, with its ledger."""
    tar = tmp_path / "full.tar"
    if not tar.exists():
        make_sa1b_tar(tar, 3)
    config = ConvertConfig(
        tar_path=(str(tar),), output_dir=tmp_path / name, layout="v1", workers=0, durability="process"
    )
    convert_sa1b_tar(config)
    return tmp_path / name


def test_directory_of_ours_keeps_its_ledger_right(tmp_path: Path) -> None:
    path = converted(tmp_path, "v1")
    clean = {name: content for name, content in contents(path).items() if not name.startswith(".penstock/")}
    assert verify(path).ok
    np.zeros((3, 256, 256), np.uint8).tofile(path / "masks.bin")
    assert [fault.code for fault in verify(path).faults] == ["checksum"]
    repair(path, tars=[tmp_path / "full.tar"])
    assert verify(path).ok
    assert verify(path).suspicions == ()
    os.truncate(path / "masks.bin", 2 * 65_536 + 5)
    report = repair(path)
    assert (report.rows_before, report.rows_after) == (3, 2)
    assert verify(path).ok
    converted(tmp_path, "v1")
    after = {name: content for name, content in contents(path).items() if not name.startswith(".penstock/")}
    assert after == clean
    assert verify(path).ok


def test_directory_that_is_being_written_is_refused(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1", 2)
    (path / ".penstock").mkdir()
    claim = Claim(path / ".penstock", shared=False)
    claim.acquire()
    with pytest.raises(PartClaimed):
        repair(path, boxes="xyxy")
    claim.release()


# Stores


def spoil_store(path: Path) -> None:
    """Row 5 changes a byte, row 9's file is short, keys.idx of the first part is gone."""
    vector = path / "part-00001" / "vector.bin"
    overwrite(vector, 70, bytes([vector.read_bytes()[70] ^ 1]))
    os.truncate(path / "part-00002" / "edge_8x8.bin", 100)
    (path / "part-00000" / "keys.idx").unlink()


def test_damaged_rows_of_a_store_are_marked_missing_and_computed_anew(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    clean = contents(make_store(tmp_path / "clean"))
    spoil_store(path)
    before = contents(path)
    plan = repair(path, dry_run=True)
    assert contents(path) == before
    report = repair(path)
    assert report.deeds == plan.deeds
    assert [(deed.code, deed.rows) for deed in report.deeds] == [("keys-index", 4), ("recompute", 1), ("recompute", 1)]
    assert "part-00001: 1 rows are damaged (k5)" in report.deeds[1].message
    assert repair(path).deeds == []
    rows = list(range(10))
    write_store(path, SCHEMA, ((f"k{row}", record(row)) for row in rows), part_rows=4, durability="process")
    assert verify(path).ok
    renamed = {name.replace(".1/", "/"): content for name, content in contents(path).items()}
    assert {n: c for n, c in renamed.items() if n != "store.json"} == {
        n: c for n, c in clean.items() if n != "store.json"
    }


def test_lost_files_of_a_store_cost_their_part_only(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    (path / "part-00000" / "vector.bin").unlink()
    (path / "part-00001" / "masks.blob").unlink()
    assert [deed.rows for deed in repair(path).deeds] == [4, 4]
    write_store(path, SCHEMA, ((f"k{row}", record(row)) for row in range(10)), part_rows=4, durability="process")
    assert verify(path).ok


def test_damaged_ledger_and_open_part_are_repaired(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    ledger = path / "part-00000" / "_rows.bin"
    overwrite(ledger, ledger.stat().st_size // 4 * 2 + 9, b"\xff")
    assert [deed.rows for deed in repair(path).deeds] == [1]
    overwrite(path / "part-00000.1" / "vector.bin", 3, b"\x01")  # the draft is damaged too
    assert [(deed.code, deed.rows) for deed in repair(path).deeds] == [("missing", 1)]
    write_store(path, SCHEMA, ((f"k{row}", record(row)) for row in range(10)), part_rows=4, durability="process")
    assert verify(path).ok


def test_keys_that_are_lost_cannot_be_repaired(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    (path / "part-00000" / "keys.txt").write_text("k0\n")
    overwrite(path / "part-00001" / "keys.txt", 0, b"x")
    report = repair(path)
    assert "part-00000/keys.txt: expected 4 lines, found 1" in report.remaining[0]
    assert "part-00001: the digest" in report.remaining[1]


def test_store_repair_may_be_killed_at_any_step(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", rows=5, part_rows=4)
    overwrite(path / "part-00000" / "vector.bin", 70, b"\x01")
    (path / "part-00000" / "keys.idx").unlink()
    assert kill_at_every_step(path, tmp_path, lambda p, disk: repair(p, disk=disk)) > 50


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    with pytest.raises(UsageError, match="is a penstock store"):
        repair(path, boxes="xyxy")
    with pytest.raises(UsageError, match="expected 'xyxy'"):
        repair(write_v1(tmp_path / "v1", 1), boxes="xywh")  # type: ignore[arg-type]  # a wrong value on purpose
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SourceNotFound):
        repair(tmp_path / "mine")
    with pytest.raises(SourceNotFound, match=r"b\.tar"):
        repair(tmp_path / "v1", tars=[tmp_path / "b.tar"])
    assert repair_module.RepairReport(path="p", layout="v1", dry_run=True).to_json()["deeds"] == []
