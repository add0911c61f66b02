"""What a teacher writes besides a store: pairs that `convert` reads back, whole TARs, resume, and the same bytes after kills."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.errors import BadData, OutputFull, OutputRefused, RecipeMismatch, StoreCorrupt, UsageError
from penstock.jobs import Job
from penstock.launch.local import Inline
from penstock.models.stand_in import StandInTeacher
from penstock.readers.npz import read_npz
from penstock.readers.npz_dir import NpzDir
from penstock.readers.sa1b_pairs import parse_member
from penstock.readers.sa1b_tar import Sa1bTar
from penstock.report import Report
from penstock.schema import Record, Schema
from penstock.source import Candidate, Problem
from penstock.stages.teacher import TeachPictures
from penstock.stages.teacher_fields import ObjectMasks
from penstock.store import Store, open_store
from penstock.store.disk import Disk
from penstock.store.v1_sink import V1Sink
from penstock.teacher_config import TeacherConfig
from penstock.teacher_sinks import PairSink, member_names, open_teacher_sink, rows_folder
from penstock.testing import assert_equal_records
from penstock.work import hash_record
from tests.store.crash import FullDisk, KillDisk, forked

SIDE, ROWS, SHARD = 64, 8, 3
FEATURES = ("P3_S8", "P4_S16")


@dataclass
class Pictures:
    """Pictures with two objects, the last without any; `bad` ones cannot be read, `seeds` changes one."""

    schema = Schema([])
    count: int = ROWS
    bad: frozenset[int] = frozenset()
    seeds: dict[int, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def candidates(self) -> Iterator[Candidate]:
        for row in range(self.count):
            yield Candidate(key=f"sa_{row + 7}", origin=f"{row}.jpg", cheap=self.seeds.get(row, 1), index=row)

    def __getitem__(self, row: int) -> Record:
        if row in self.bad:
            raise BadData(f"picture {row} is damaged")
        rng = np.random.default_rng([row, self.seeds.get(row, 1)])
        image = rng.integers(0, 255, (40, 56, 3), np.uint8)
        pieces = [((4, 6), np.ones((20, 24), np.uint8)), ((30, 2), np.ones((9, 11), np.uint8))]
        masks = ObjectMasks.of((40, 56), pieces if row < ROWS - 1 else [])
        return {"image": image, **masks.to_record()}


class Known(TeachPictures):
    """The real stage, whose rows were computed beforehand: a process that is forked needs no torch."""

    made: dict[int, Record]

    def __call__(self, records: list[Record]) -> list[Record]:
        return [self.made[hash_record(record)] for record in records]


def make_stage(pictures: Sequence[Pictures], **options: object) -> Known:
    options = {"fields": (*FEATURES, "edges", "weights", "bbox", "mask"), "strategy": "all", **options}
    teacher = StandInTeacher(device="cpu", image_size=SIDE)
    stage = Known(teacher=teacher, image_codec="jpeg", batch_size=1, **options)  # type: ignore[arg-type]
    stage.made = {}
    for some in pictures:
        for record in (some[row] for row in range(some.count) if row not in some.bad):
            (stage.made[hash_record(record)],) = TeachPictures.__call__(stage, [record])
    return stage


@pytest.fixture(scope="module")
def stage() -> Known:
    return make_stage([Pictures(), Pictures(seeds={4: 2})])


def config_of(output: Path, write: str, **options: object) -> TeacherConfig:
    part_rows = {"part_rows": SHARD, "source": "folder:x", "durability": "process"}
    return TeacherConfig(output=output, write=write, **{**part_rows, **options})  # type: ignore[arg-type]


def run(
    output: Path, write: str, stage: Known, pictures: Pictures | None = None, *, disk: Disk | None = None, retry: bool = False
) -> Report:  # fmt: skip
    report = Report(command="teacher", output=str(output))
    sink = open_teacher_sink(config_of(output, write), stage, disk)
    Job(
        offers=pictures or Pictures(), stage=stage, sink=sink, launcher=Inline(), report=report, retry_failed=retry
    ).run()  # fmt: skip
    return report


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("*.tar"))


def files_of(output: Path) -> dict[str, bytes]:
    """What a user sees: no side folder."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def converted(output: Path, tars: Sequence[Path]) -> Store:
    config = ConvertConfig(
        tar_path=tuple(map(str, tars)), output_dir=output, image_codec="jpeg", image_size=SIDE, workers=0
    )
    assert convert_sa1b_tar(config).failed == 0
    store = open_store(output)
    assert isinstance(store, Store)
    return store


def test_tars_are_read_back_by_convert_to_the_same_values_in_order(tmp_path: Path, stage: Known) -> None:
    report = run(tmp_path / "tars", "tar", stage)
    assert (report.done, report.failed) == (ROWS, 0)
    assert [path.name for path in shards(tmp_path / "tars")] == [f"sa1b_shard_{n:05d}.tar" for n in range(3)]
    assert [len(Sa1bTar([path])) for path in shards(tmp_path / "tars")] == [3, 3, 2]
    store = converted(tmp_path / "store", shards(tmp_path / "tars"))
    assert list(store.keys) == [f"sa_{row + 7}" for row in range(ROWS)]
    pictures = Pictures()
    for row in range(ROWS):
        assert_equal_records(dict(store[row]), stage.made[hash_record(pictures[row])])
    assert len(store[0]["bboxes"]) == 2
    assert len(store[ROWS - 1]["bboxes"]) == 0


def test_an_npz_has_the_fields_of_the_original(tmp_path: Path, stage: Known) -> None:
    run(tmp_path / "pairs", "npz", stage)
    arrays = read_npz((tmp_path / "pairs" / "sa_7_features.npz").read_bytes())
    assert arrays["P4_S16"].shape == (1, 256, 4, 4)
    assert arrays["P4_S16"].dtype == np.float32
    assert arrays["image_shape"].tolist() == [40, 56, 3]
    assert arrays["bboxes"].tolist() == [[4, 6, 24, 20], [30, 2, 11, 9]]
    assert (bool(arrays["has_bbox"]), int(arrays["num_bboxes"])) == (True, 2)
    assert (str(arrays["image_id"]), str(arrays["model_type"])) == ("sa_7", "stand-in")
    assert arrays["masks"].shape == (2, 256, 256)
    assert arrays["masks"].dtype == np.uint8
    without = read_npz((tmp_path / "pairs" / f"sa_{ROWS + 6}_features.npz").read_bytes())
    assert "masks" not in without
    assert (without["bboxes"].shape, bool(without["has_bbox"])) == ((0, 4), False)


def test_the_files_of_a_folder_are_the_members_of_the_tars(tmp_path: Path, stage: Known) -> None:
    run(tmp_path / "tars", "tar", stage)
    run(tmp_path / "pairs", "npz", stage)
    folder, tars = NpzDir(tmp_path / "pairs"), Sa1bTar(shards(tmp_path / "tars"))
    assert sorted(folder.keys) == sorted(tars.keys)
    assert not folder.problems
    for row, key in enumerate(folder.keys):
        assert_equal_records(folder[row], tars[tars.keys.index(key)])


@pytest.mark.parametrize("write", ["tar", "npz"])
def test_a_second_run_does_nothing_and_a_lost_file_is_made_anew(tmp_path: Path, stage: Known, write: str) -> None:
    output = tmp_path / "out"
    run(output, write, stage)
    before = files_of(output)
    report = run(output, write, stage)
    assert (report.skipped, report.done, report.bytes_written) == (ROWS, ROWS, 0)
    lost = sorted(before)[2]
    (output / lost).unlink()
    assert run(output, write, stage).bytes_written > 0
    assert files_of(output) == before
    assert not (rows_folder(output) / "pending").exists() or not any((rows_folder(output) / "pending").iterdir())


@pytest.mark.parametrize("write", ["tar", "npz"])
def test_failed_rows_are_left_out_and_come_in_their_place_when_they_succeed(
    tmp_path: Path, stage: Known, write: str
) -> None:
    output = tmp_path / "out"
    report = run(output, write, stage, Pictures(bad=frozenset({1, 6, 7})))
    assert (report.done, report.failed) == (5, 3)
    if write == "tar":
        assert [Sa1bTar([path]).keys for path in shards(output)] == [["sa_7", "sa_9"], ["sa_10", "sa_11", "sa_12"]]
    report = run(output, write, stage, retry=True)
    assert (report.done, report.failed) == (ROWS, 0)
    run(tmp_path / "clean", write, stage)
    assert files_of(output) == files_of(tmp_path / "clean")


@pytest.mark.parametrize("write", ["tar", "npz"])
def test_a_changed_picture_is_computed_again_and_convert_sees_it(tmp_path: Path, stage: Known, write: str) -> None:
    output = tmp_path / "out"
    run(output, write, stage)
    before = files_of(output)
    run(output, write, stage, Pictures(seeds={4: 2}))
    after = files_of(output)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == ({"sa1b_shard_00001.tar"} if write == "tar" else {"sa_11.jpg", "sa_11_features.npz"})
    if write == "tar":
        with tarfile.open(shards(output)[1]) as tar:
            times = {member.name: member.mtime for member in tar}
        run(tmp_path / "first", write, stage)
        with tarfile.open(shards(tmp_path / "first")[1]) as tar:
            assert {member.name for member in tar if times[member.name] != member.mtime} == {
                "sa_11.jpg",
                "sa_11_features.npz",
            }


@pytest.mark.parametrize("write", ["tar", "npz"])
def test_killed_anywhere_a_tar_is_whole_or_not_there_and_the_end_is_that_of_a_clean_run(
    tmp_path: Path, stage: Known, write: str
) -> None:
    count = KillDisk(1 << 60)
    run(tmp_path / "clean", write, stage, disk=count)
    clean = files_of(tmp_path / "clean")
    killed = 0
    for at in range(1, (1 << 60) - count.left, 11):
        output = tmp_path / f"at_{at}"
        child = os.fork()
        if not child:
            run(output, write, stage, disk=KillDisk(at, halfway=at % 2 == 0))
            os._exit(0)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        for path in shards(output) if output.exists() else []:
            assert path.read_bytes() == clean[path.name]
        run(output, write, stage)
        assert files_of(output) == clean
    assert killed > 6


@pytest.mark.parametrize("write", ["tar", "npz"])
def test_several_drivers_at_once_end_with_the_same_bytes(tmp_path: Path, stage: Known, write: str) -> None:
    run(tmp_path / "clean", write, stage)
    for attempt in range(8):
        output = tmp_path / f"out_{attempt}"
        children = {}
        for number in range(3):
            told = tmp_path / f"told_{attempt}_{number}"
            children[forked(partial(run, output, write, stage), told)] = told
        for child, told in children.items():
            assert os.waitpid(child, 0)[1] == 0, told.read_text()
        run(output, write, stage)
        assert files_of(output) == files_of(tmp_path / "clean")


@pytest.mark.parametrize("write", ["tar", "npz"])
def test_a_full_disk_keeps_what_was_committed(tmp_path: Path, stage: Known, write: str) -> None:
    run(tmp_path / "clean", write, stage)
    clean = files_of(tmp_path / "clean")
    size = sum(map(len, clean.values()))
    for room in (3000, size // 3, size * 2 // 3, size - 9000):
        output = tmp_path / f"room_{room}"
        with pytest.raises(OutputFull):
            run(output, write, stage, disk=FullDisk(room))
        run(output, write, stage)
        assert files_of(output) == clean


def test_a_lost_tar_is_made_anew_although_who_began_it_had_not_looked_at_all_of_its_rows(
    tmp_path: Path, stage: Known
) -> None:
    run(tmp_path / "clean", "tar", stage)
    run(tmp_path / "out", "tar", stage)
    shards(tmp_path / "out")[0].unlink()
    killed = open_teacher_sink(config_of(tmp_path / "out", "tar"), stage)
    killed.admit([next(Pictures().candidates())])
    killed.release()
    assert run(tmp_path / "out", "tar", stage, Pictures(count=1)).done == 1
    assert run(tmp_path / "out", "tar", stage).status == "ok"
    contents = [[path.read_bytes() for path in shards(tmp_path / name)] for name in ("out", "clean")]
    assert contents[0] == contents[1]


def test_a_tar_of_which_a_member_is_lost_is_refused_by_name(tmp_path: Path, stage: Known) -> None:
    output = tmp_path / "out"
    run(output, "tar", stage, Pictures(bad=frozenset({1})))
    (path, *_) = shards(output)
    with tarfile.open(path, "w"):
        pass  # empty
    with pytest.raises(StoreCorrupt, match=r"sa_7\.jpg is gone"):
        run(output, "tar", stage, retry=True)


def test_what_is_something_elses_is_refused_and_stays(tmp_path: Path, stage: Known) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    for write in ("tar", "npz"):
        with pytest.raises(OutputRefused, match=r"a\.jpg"):
            run(tmp_path / "photos", write, stage)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    run(tmp_path / "tars", "tar", stage)
    with pytest.raises(RecipeMismatch, match="write"):
        run(tmp_path / "tars", "npz", stage)
    with pytest.raises(RecipeMismatch, match="strategy"):
        run(tmp_path / "tars", "tar", make_stage([], strategy="largest"))
    with pytest.raises(UsageError, match="expected v1, tar or npz"):
        open_teacher_sink(config_of(tmp_path / "s", "store"), stage)


def test_boxes_without_masks_are_refused_for_no_reader_takes_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mask where bbox is"):
        run(tmp_path / "out", "tar", make_stage([], fields=("P4_S16", "bbox")))
    assert not (tmp_path / "out").exists()
    only = make_stage([Pictures()], fields=("P4_S16",))
    run(tmp_path / "plain", "tar", only)
    store = converted(tmp_path / "store", shards(tmp_path / "plain"))
    assert np.array_equal(store[0]["P4_S16"], only.made[hash_record(Pictures()[0])]["P4_S16"])


def test_v1_is_written_by_its_own_sink(tmp_path: Path) -> None:
    stage = TeachPictures(teacher=StandInTeacher(device="cpu"), fields=("P4_S16", "P5_S32", "edges", "weights", "bbox", "mask"),
                          layout="v1")  # fmt: skip
    sink = open_teacher_sink(config_of(tmp_path / "v1", "v1"), stage)
    assert isinstance(sink, V1Sink)
    sink.close(complete=True)
    store = open_store(tmp_path / "v1")
    assert (len(store), store.attributes["bbox_format"], store.attributes["model_type"]) == (0, "xyxy", "stand-in")


def test_a_box_whose_mask_is_empty_at_256_is_left_out(tmp_path: Path, stage: Known) -> None:
    sink = open_teacher_sink(config_of(tmp_path / "out", "npz"), stage)
    assert isinstance(sink, PairSink)
    row = dict(stage.made[hash_record(Pictures()[0])])
    row["masks"] = np.stack([np.zeros((256, 256), np.uint8), np.asarray(row["masks"])[1]])
    _, npz = sink.files.contents(sink.writer().encode(row), "sa_1")
    sink.release()
    arrays = read_npz(npz)
    assert arrays["bboxes"].tolist() == [[30, 2, 11, 9]]
    assert arrays["masks"].shape == (1, 256, 256)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=300))
def test_a_name_gives_one_id_for_both_files(key: str) -> None:
    picture, npz = (parse_member(name, size=0, mtime=0, offset=0) for name in member_names(key))
    assert picture is not None
    assert npz is not None
    assert (picture.kind, npz.kind) == ("picture", "npz")
    assert picture.id == npz.id
    assert max(len(name.encode()) for name in member_names(key)) < 255


@pytest.mark.parametrize("key", ["sa_1", "a_features", "a_sam2", "A_SAM2", "x.jpg", "\u00e4 b", "a_sam2_features"])
def test_usual_keys_come_back(key: str) -> None:
    picture = parse_member(member_names(key)[0], size=0, mtime=0, offset=0)
    assert picture is not None
    assert picture.id == key
    assert member_names("a/b") != member_names("a%2Fb") != member_names("a_b")
