"""Bad input and bad output: each gives a typed error or a recorded failure that says where and what; all else is kept."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.cli import main
from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.errors import OutputFull
from penstock.schema import Field, Record, Schema
from penstock.store import open_store, write_store
from penstock.testing import assert_equal_records, encode_picture, make_sa1b_tar, make_sample, npz_bytes, write_tar
from tests.geometry.test_images import encoded, png_16_bit, ramp, turned_jpeg
from tests.store.crash import FullDisk

SMALL: dict[str, Any] = {
    "feature_size": 4,
    "channels": 2,
    "picture_size": 32,
    "edge_sizes": (32,),
    "map_sizes": (32,),
    "size_hw": (40, 50),
}
BAD = 2
"""Which of the samples is spoiled."""
KEY = f"sa_{BAD}"
ROWS = 5

Fields = dict[str, np.ndarray]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process; gives its exit code and the one JSON object that it printed."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main([*map(str, arguments), "--json"])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        lines = printed.out.splitlines()
        return code, json.loads(lines[0]) if len(lines) == 1 else {"printed": printed.out, "errors": printed.err}

    return run


def converting(tar: Path, output: Path, *more: object, workers: int = 0, layout: str = "store") -> list[object]:
    size = ["--image-size", 32] if layout == "store" else ["--layout", "v1"]
    return ["convert", "sa1b-tar", "--tar-path", tar, "--output-dir", output, "--workers", workers, *size, *more]


def failure_lines(output: Path) -> list[dict[str, Any]]:
    files = [*output.glob("part-*/_failures.jsonl"), *output.glob(".penstock/_failures.jsonl")]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of everything below a folder; what "nothing was touched" means."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(p.relative_to(folder.parent)): (p.stat().st_mtime_ns, b"" if p.is_dir() else p.read_bytes()) for p in paths
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """What the rows are where nothing is spoiled, by key."""
    folder = tmp_path_factory.mktemp("clean")
    make_sa1b_tar(folder / "a.tar", ROWS, **SMALL)
    convert_sa1b_tar(
        ConvertConfig(tar_path=(str(folder / "a.tar"),), output_dir=folder / "s", workers=0, image_size=32)
    )
    store = open_store(folder / "s")
    return {store.keys[row]: store[row] for row in range(ROWS)}


def spoil_picture(content: bytes | Callable[[bytes], bytes]) -> Callable[[int, dict[str, bytes]], Mapping[str, bytes]]:
    def mutate(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        if number != BAD:
            return members
        name, other = members
        return {name: content(members[name]) if callable(content) else content, other: members[other]}

    return mutate


def spoil_npz(content: bytes | Callable[[bytes], bytes]) -> Callable[[int, dict[str, bytes]], Mapping[str, bytes]]:
    def mutate(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        name = f"sa_{number}_features.npz"
        new = content(members[name]) if callable(content) else content
        return {**members, name: new} if number == BAD else members

    return mutate


def spoil_fields(change: Callable[[Fields], object]) -> Callable[[int, dict[str, bytes]], Mapping[str, bytes]]:
    def rewritten(content: bytes) -> bytes:
        with np.load(io.BytesIO(content), allow_pickle=True) as npz:
            fields = dict(npz)
        change(fields)
        return npz_bytes(fields)

    return spoil_npz(rewritten)


def put(name: str, value: object) -> Callable[[int, dict[str, bytes]], Mapping[str, bytes]]:
    return spoil_fields(lambda fields: fields.update({name: np.asarray(value)}))


def with_value(name: str, value: float) -> Callable[[int, dict[str, bytes]], Mapping[str, bytes]]:
    def change(fields: Fields) -> None:
        fields[name] = fields[name].copy()
        fields[name].reshape(-1)[3] = value

    return spoil_fields(change)


def objects(values: list[object]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


class RunsCode:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (self.path, 0o755)


SPOILED: dict[str, tuple[Callable[[int, dict[str, bytes]], Mapping[str, bytes]], str]] = {
    "a JPEG cut in its header": (spoil_picture(lambda content: content[:100]), r"picture.*100 bytes|header"),
    "a JPEG cut in its pixels": (spoil_picture(lambda content: content[:-60]), r"picture.*truncated"),
    "an empty picture": (spoil_picture(b""), r"picture: expected a JPEG or a PNG, got 0 bytes"),
    "a picture that is text": (spoil_picture(b"<html>"), r"expected a JPEG or a PNG, got 6 bytes.*<html>"),
    "a PNG of 16 bits": (spoil_picture(png_16_bit(3)), r"expected 8 bits per colour, got a PNG of 16"),
    "a gray PNG of 16 bits": (spoil_picture(png_16_bit(1)), r"expected 8 bits per colour, got a PNG of 16"),
    "a picture turned by EXIF": (spoil_picture(turned_jpeg(ramp(32, 32), 6)), r"EXIF orientation 6.*32 x 32"),
    "no NPZ": (spoil_npz(b"PK?"), r"NPZ: expected a ZIP archive, got 3 bytes"),
    "an NPZ cut short": (spoil_npz(lambda content: content[: len(content) // 2]), r"NPZ: expected a ZIP archive"),
    "an NPZ with a changed byte": (
        spoil_npz(lambda c: c[:300] + bytes([c[300] ^ 1]) + c[301:]),
        r"NPZ: member .*expected",
    ),
    "no features": (spoil_fields(lambda fields: fields.pop("P4_S16")), r"P4_S16.*expected"),
    "no edges": (spoil_fields(lambda fields: fields.pop("edge_32x32")), r"edge_32x32.*expected"),
    "no weights": (spoil_fields(lambda fields: fields.pop("fg_map_32x32")), r"fg_map_32x32.*expected"),
    "misshaped features": (
        put("P4_S16", np.zeros((1, 2, 4, 5), np.float32)),
        r"P4_S16.*expected.*2, 4, 4.*got.*2, 4, 5",
    ),
    "misshaped edges": (put("edge_32x32", np.zeros((31, 32), np.uint8)), r"edge_32x32.*expected.*32, 32.*got.*31, 32"),
    "misshaped boxes": (put("bboxes", np.zeros((2, 3), np.float32)), r"bboxes.*expected.*4.*got.*2, 3"),
    "a mask too few": (put("bboxes", np.array([[1, 1, 5, 5]] * 3, np.float32)), r"masks.*expected.*3.*got.*"),
    "a NaN in the features": (with_value("P4_S16", np.nan), r"P4_S16.*(NaN|finite)"),
    "an infinity in the features": (with_value("P5_S32", np.inf), r"P5_S32.*(inf|finite)"),
    "a NaN in the weights": (with_value("bg_map_32x32", np.nan), r"bg_map_32x32.*(NaN|finite)"),
    "a NaN in a box": (with_value("bboxes", np.nan), r"bboxes.*(NaN|finite)"),
    "an edge of 7": (with_value("edge_32x32", 7), r"edge_32x32.*expected.*got.*7"),
    "features of text": (put("P4_S16", np.full((1, 2, 4, 4), "x")), r"P4_S16.*expected.*got"),
    "features as objects": (
        spoil_fields(lambda f: f.update(P4_S16=f["P4_S16"].astype(object))),
        r"P4_S16.*object array",
    ),
    "masks of text": (put("masks", objects(["a mask"])), r"masks.*"),
    "masks of None": (put("masks", objects([None])), r"masks.*"),
}


@pytest.mark.parametrize("kind", ["plain", "stream"])
@pytest.mark.parametrize("name", SPOILED)
def test_a_bad_sample_is_recorded_and_the_others_are_kept(
    name: str, kind: str, tmp_path: Path, run: Run, clean: dict[str, Record]
) -> None:
    mutate, said = SPOILED[name]
    tar = tmp_path / ("a.tar" if kind == "plain" else "a.tar.gz")
    make_sa1b_tar(tar, ROWS, mode="w" if kind == "plain" else "w:gz", mutate=mutate, **SMALL)
    code, report = run(*converting(tar, tmp_path / "s"))
    assert code == 1
    assert report["rows"] == {"planned": ROWS, "done": ROWS - 1, "failed": 1, "missing": 0, "skipped": 0}
    assert report["status"] == "partial"
    (failure,) = report["failures"]
    assert (failure["key"], failure["error"]) == (KEY, "BadData")
    (line,) = failure_lines(tmp_path / "s")
    assert (line["key"], line["row"], line["error"]) == (KEY, BAD, "BadData")
    for message in (failure["message"], line["message"]):
        assert re.search(said, message, re.DOTALL)
    assert line["source"] == failure["source"] == tar.name
    store = open_store(tmp_path / "s")
    for row in set(range(ROWS)) - {BAD}:
        assert_equal_records(store[row], clean[store.keys[row]])
    assert run(*converting(tar, tmp_path / "s", "--max-failures", 1))[0] == 0


@pytest.mark.parametrize("field", ["masks", "P4_S16", "bboxes", "image_shape", "unknown"])
@pytest.mark.parametrize("number", [0, BAD])
def test_a_pickle_that_would_run_code_never_runs(field: str, number: int, tmp_path: Path, run: Run) -> None:
    trap = tmp_path / "trapped"

    def mutate(position: int, members: dict[str, bytes]) -> dict[str, bytes]:
        if position != number:
            return members
        with np.load(io.BytesIO(members[f"sa_{position}_features.npz"]), allow_pickle=True) as npz:
            fields = {**npz, field: objects([RunsCode(str(trap))])}
        return {**members, f"sa_{position}_features.npz": npz_bytes(fields)}

    make_sa1b_tar(tmp_path / "a.tar", ROWS, mutate=mutate, **SMALL)
    code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
    assert not trap.exists()
    if field == "unknown":
        assert (code, report["rows"]["done"]) == (0, ROWS)
        return
    assert (code, report["rows"]["done"], report["rows"]["failed"]) == (1, ROWS - 1, 1)
    assert report["failures"][0]["key"] == f"sa_{number}"
    assert field in report["failures"][0]["message"]


def test_a_cmyk_picture_becomes_rgb(tmp_path: Path, run: Run) -> None:
    cmyk = encoded(Image.fromarray(ramp(32, 32)).convert("CMYK"), "JPEG", quality=95)
    make_sa1b_tar(tmp_path / "a.tar", ROWS, mutate=spoil_picture(cmyk), **SMALL)
    assert run(*converting(tmp_path / "a.tar", tmp_path / "s"))[0] == 0
    image = np.asarray(open_store(tmp_path / "s")[BAD]["image"]).astype(int)
    assert np.abs(image - ramp(32, 32)).mean() < 8


def test_a_picture_turned_by_exif_is_turned_where_the_npz_says_how_it_stood(tmp_path: Path, run: Run) -> None:
    upright = ramp(40, 50)
    stored = np.rot90(upright)  # orientation 6: turn it clockwise to see it upright
    make_sa1b_tar(tmp_path / "a.tar", ROWS, mutate=spoil_picture(turned_jpeg(stored, 6)), **SMALL)
    assert run(*converting(tmp_path / "a.tar", tmp_path / "s"))[0] == 0
    expected = np.asarray(Image.fromarray(upright).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(np.asarray(open_store(tmp_path / "s")[BAD]["image"]).astype(int) - expected).mean() < 8


@pytest.mark.parametrize("share", [0.03, 0.2, 0.41, 0.5, 0.77, 0.9])
def test_a_truncated_tar_keeps_its_whole_pairs(
    share: float, tmp_path: Path, run: Run, clean: dict[str, Record]
) -> None:
    make_sa1b_tar(tmp_path / "whole.tar", ROWS, **SMALL)
    content = (tmp_path / "whole.tar").read_bytes()
    tar = tmp_path / "a.tar"
    tar.write_bytes(content[: int(len(content) * share)])
    code, report = run(*converting(tar, tmp_path / "s", "--fields", "image,P4_S16,bboxes"))
    assert code == 1
    if "rows" not in report:
        assert report["error"] == "BadData"
        assert str(share) in ("0.03",)
        return
    assert report["rows"]["missing"] == 0
    named = " ".join([one["message"] for one in report["failures"]] + [one["message"] for one in report["problems"]])
    assert "a.tar" in named
    assert "byte" in named
    store = open_store(tmp_path / "s")
    rows = store.done_rows()
    done = range(len(store)) if rows is None else rows.tolist()
    assert len(done) == report["rows"]["done"]
    for row in done:
        kept = {name: clean[store.keys[row]][name] for name in ("image", "P4_S16", "bboxes")}
        assert_equal_records(store[row], kept)
    tar.write_bytes(content)  # the whole file came later
    code, report = run(*converting(tar, tmp_path / "s", "--fields", "image,P4_S16,bboxes"))
    assert (code, report["rows"]["done"], report["rows"]["failed"]) == (0, ROWS, 0), report


def test_unpaired_members_fail_by_name_and_the_pairs_are_kept(tmp_path: Path, run: Run) -> None:
    def mutate(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        lone = {1: ".jpg", 3: ".npz"}.get(number, "")
        return {name: content for name, content in members.items() if name.endswith(lone)}

    make_sa1b_tar(tmp_path / "a.tar", ROWS, mutate=mutate, **SMALL)
    code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
    assert (code, report["rows"]["done"], report["rows"]["failed"]) == (1, 3, 2)
    messages = {one["key"]: one["message"] for one in report["failures"]}
    assert "'sa_1.jpg' in a.tar: expected a NPZ" in messages["sa_1"]
    assert "'sa_3_features.npz' in a.tar: expected a picture" in messages["sa_3"]


def pair(number: int, seed: int) -> list[tuple[str, bytes]]:
    picture, npz, _ = make_sample(seed, key=f"sa_{number}", **SMALL)
    return [(f"sa_{number}.jpg", picture), (f"sa_{number}_features.npz", npz)]


class TestDuplicates:
    """One id, one row: the first. The same content again is nothing; other content is a failure."""

    def test_same_tar_same_content(self, tmp_path: Path, run: Run) -> None:
        write_tar(tmp_path / "a.tar", [*pair(0, 0), *pair(1, 1), *pair(0, 0)])
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
        assert (code, report["rows"]["planned"], report["rows"]["done"], report["repeated"]) == (0, 2, 2, 1)

    def test_same_tar_other_content(self, tmp_path: Path, run: Run) -> None:
        write_tar(tmp_path / "a.tar", [*pair(0, 0), *pair(1, 1), *pair(0, 5)])
        for _ in range(2):
            code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
            assert (code, report["rows"]["planned"], report["rows"]["done"], report["rows"]["failed"]) == (1, 3, 2, 1)
        (line,) = failure_lines(tmp_path / "s")
        assert "duplicate id sa_0: first in a.tar, again in a.tar with other content" in line["message"]
        assert_equal_records(open_store(tmp_path / "s")[0], _alone(tmp_path, 0, 0))

    def test_other_tar_same_content(self, tmp_path: Path, run: Run) -> None:
        write_tar(tmp_path / "a.tar", [*pair(0, 0), *pair(1, 1)])
        write_tar(tmp_path / "b.tar", [*pair(1, 1), *pair(2, 2)])
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s", "--tar-path", tmp_path / "b.tar"))
        assert (code, report["rows"]["planned"], report["rows"]["done"], report["repeated"]) == (0, 3, 3, 1)

    @pytest.mark.parametrize("at_once", [True, False])
    def test_other_tar_other_content(self, at_once: bool, tmp_path: Path, run: Run) -> None:
        write_tar(tmp_path / "a.tar", [*pair(0, 0), *pair(1, 1)])
        write_tar(tmp_path / "b.tar", [*pair(1, 7), *pair(2, 2)])
        more = ["--tar-path", tmp_path / "b.tar"]
        if not at_once:
            assert run(*converting(tmp_path / "a.tar", tmp_path / "s"))[0] == 0
            code, report = run(*converting(tmp_path / "b.tar", tmp_path / "s"))
            assert (code, report["rows"]["planned"], report["rows"]["done"], report["rows"]["failed"]) == (1, 2, 1, 1)
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s", *more))
        assert (code, report["rows"]["planned"], report["rows"]["done"], report["rows"]["failed"]) == (1, 4, 3, 1)
        (line,) = failure_lines(tmp_path / "s")
        assert "duplicate id sa_1" in line["message"]
        assert "b.tar" in line["message"]
        store = open_store(tmp_path / "s")
        assert_equal_records(store[store.find("sa_1")], _alone(tmp_path, 1, 1))

    @pytest.mark.parametrize("same", [True, False])
    def test_v1_keeps_the_first_too(self, same: bool, tmp_path: Path, run: Run) -> None:
        def whole(number: int, seed: int) -> list[tuple[str, bytes]]:
            picture, npz, _ = make_sample(seed, key=f"sa_{number}")
            return [(f"sa_{number}.jpg", picture), (f"sa_{number}_features.npz", npz)]

        write_tar(tmp_path / "a.tar", [*whole(0, 0), *whole(1, 1), *whole(0, 0 if same else 5)])
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "v", layout="v1"))
        assert (code, report["rows"]["done"], report["rows"]["failed"]) == (0, 2, 0) if same else (1, 2, 1)
        assert (tmp_path / "v" / "keys.txt").read_text() == "sa_0\nsa_1\n"
        assert (tmp_path / "v" / "masks.bin").stat().st_size == 2 * 65_536


def _alone(folder: Path, number: int, seed: int) -> Record:
    """The row of a sample that is converted by itself."""
    write_tar(folder / "alone.tar", pair(number, seed))
    output = folder / f"alone-{number}-{seed}"
    convert_sa1b_tar(ConvertConfig(tar_path=(str(folder / "alone.tar"),), output_dir=output, workers=0, image_size=32))
    return open_store(output)[0]


def data_files(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.suffix in (".bin", ".blob") or file.name == "keys.txt"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


class TestFullDisk:
    """A disk that fills up in the middle of a row stops the run; what was committed stays; the rest follows later."""

    @pytest.mark.parametrize("layout", ["store", "v1"])
    @pytest.mark.parametrize("rows_of_room", [0.0, 0.4, 1.5, 2.9])
    def test_in_the_middle_of_a_row(self, layout: str, rows_of_room: float, tmp_path: Path) -> None:
        small = SMALL if layout == "store" else {}
        make_sa1b_tar(tmp_path / "a.tar", 4, **small)
        config = ConvertConfig(
            tar_path=(str(tmp_path / "a.tar"),), output_dir=tmp_path / "clean", workers=0, durability="process",
            layout=layout, image_size=32 if layout == "store" else 1024,
        )  # fmt: skip
        row_bytes = convert_sa1b_tar(config).bytes_written // 4
        full = dataclasses.replace(config, output_dir=tmp_path / "full")
        with pytest.raises(OutputFull, match=r"no room left"):
            convert_sa1b_tar(full, disk=FullDisk(int(rows_of_room * row_bytes) + 600))
        if (tmp_path / "full" / ("store.json" if layout == "store" else "config.json")).exists():
            store = open_store(tmp_path / "full")
            rows = store.done_rows()
            clean = open_store(tmp_path / "clean")
            for row in range(len(store)) if rows is None else rows.tolist():
                assert_equal_records(store[row], clean[row])
        report = convert_sa1b_tar(full)
        assert (report.exit_code, report.done) == (0, 4)
        assert data_files(tmp_path / "full") == data_files(tmp_path / "clean")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_real_one_that_fills_up_while_a_pipe_is_read(
        self, workers: int, tmp_path: Path, small_disk: Path
    ) -> None:
        """How much is to come is not known beforehand."""
        make_sa1b_tar(tmp_path / "a.tar.gz", 60, mode="w:gz", **SMALL)
        fields = ["--json", "--fields", "image"]
        done = command(*converting(tmp_path / "a.tar.gz", small_disk / "s", *fields, workers=workers))
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        report = json.loads(done.stdout)
        assert "no room left" in report["error"] or "no room left" in report["message"]
        assert str(small_disk / "s") in done.stdout
        (small_disk / "ballast").unlink()
        done = command(*converting(tmp_path / "a.tar.gz", small_disk / "s", *fields))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rows"]["done"] == 60

    def test_a_real_one_that_others_fill_up_meanwhile(self, tmp_path: Path, small_disk: Path) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 20, **SMALL)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(200 << 10))
        config = ConvertConfig(
            tar_path=(str(tmp_path / "a.tar"),),
            output_dir=small_disk / "s",
            workers=0,
            image_size=32,
            fields=("image",),
        )

        def fill(report: object) -> None:
            if report.done == 5:  # type: ignore[attr-defined]
                free = shutil.disk_usage(small_disk).free
                with ballast.open("ab") as file:
                    file.write(bytes(free - 6000))

        with pytest.raises(OutputFull, match="no room left"):
            convert_sa1b_tar(config, on_progress=fill)
        ballast.unlink()
        report = convert_sa1b_tar(config)
        assert (report.exit_code, report.done) == (0, 20)
        clean = dataclasses.replace(config, output_dir=tmp_path / "clean")
        convert_sa1b_tar(clean)
        assert data_files(small_disk / "s") == data_files(tmp_path / "clean")

    @pytest.mark.parametrize("layout", ["store", "v1"])
    def test_what_does_not_fit_is_refused_before_anything_is_computed(
        self, layout: str, tmp_path: Path, small_disk: Path, run: Run
    ) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 60 if layout == "store" else 2, **(SMALL if layout == "store" else {}))
        code, report = run(*converting(tmp_path / "a.tar", small_disk / "s", layout=layout))
        assert (code, report["error"]) == (1, "OutputFull")
        assert str(small_disk / "s") in report["message"]
        assert re.search(r"\d+ (bytes )?are free", report["message"])


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory, for the tests that need one to be full or read-only."""
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # a map of it may still be open


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 KB, of which 500 are used by a file named ballast."""
    with mounted(tmp_path / "disk", "size=600k"):
        (tmp_path / "disk" / "ballast").write_bytes(bytes(500 << 10))
        yield tmp_path / "disk"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that cannot be written: by its rights, or (root may do anything) on a read-only file system."""
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o555)
        yield tmp_path / "locked"
    else:
        with mounted(tmp_path / "locked", "ro"):
            yield tmp_path / "locked"


def command(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The real command, in a process of its own."""
    words = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    make_sa1b_tar(tmp_path / "a.tar", ROWS, **SMALL)
    return tmp_path / "a.tar"


SCHEMA = Schema([Field(name="number", dtype="int32", shape=())])


class TestOutput:
    """An output that is something else's, or cannot be written, is refused before anything is touched: exit 2."""

    def refused(self, run: Run, arguments: list[object], output: Path, error: str, said: str) -> None:
        before = contents(output)
        code, report = run(*arguments)
        assert (code, report["status"], report["error"]) == (2, "failed", error), report
        assert str(output) in report["message"]
        assert said in report["message"]
        assert contents(output) == before

    def test_another_store(self, tmp_path: Path, tar: Path, run: Run) -> None:
        write_store(tmp_path / "s", SCHEMA, [("k", {"number": np.int32(3)})])
        self.refused(run, converting(tar, tmp_path / "s"), tmp_path / "s", "RecipeMismatch", "another schema")

    def test_a_store_of_another_recipe(self, tmp_path: Path, tar: Path, run: Run) -> None:
        assert run(*converting(tar, tmp_path / "s"))[0] == 0
        arguments = converting(tar, tmp_path / "s", "--feature-dtype", "float16")
        self.refused(run, arguments, tmp_path / "s", "RecipeMismatch", "float16")

    def test_a_folder_that_holds_something(self, tmp_path: Path, tar: Path, run: Run) -> None:
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "thesis.txt").write_text("my only copy")
        self.refused(run, converting(tar, tmp_path / "s"), tmp_path / "s", "OutputRefused", "thesis.txt")
        self.refused(run, converting(tar, tmp_path / "s", layout="v1"), tmp_path / "s", "OutputRefused", "thesis.txt")

    def test_a_file(self, tmp_path: Path, tar: Path, run: Run) -> None:
        (tmp_path / "s").write_text("a file")
        self.refused(run, converting(tar, tmp_path / "s"), tmp_path / "s", "OutputRefused", "is a file")
        self.refused(run, converting(tar, tmp_path / "s", "--dry-run"), tmp_path / "s", "OutputRefused", "is a file")

    def test_a_folder_below_a_file(self, tmp_path: Path, tar: Path, run: Run) -> None:
        (tmp_path / "f").write_text("a file")
        code, report = run(*converting(tar, tmp_path / "f" / "s"))
        assert (code, report["error"]) == (2, "OutputRefused")
        assert str(tmp_path / "f") in report["message"]

    def test_a_v1_directory_of_others_without_append(self, tmp_path: Path, run: Run) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 1)
        assert run(*converting(tmp_path / "a.tar", tmp_path / "v", layout="v1"))[0] == 0
        shutil.rmtree(tmp_path / "v" / ".penstock")
        make_sa1b_tar(tmp_path / "b.tar", 1, start=1)
        more = converting(tmp_path / "b.tar", tmp_path / "v", layout="v1")
        self.refused(run, more, tmp_path / "v", "OutputRefused", "--append")
        config = json.loads((tmp_path / "v" / "config.json").read_text())
        del config["bbox_format"]
        (tmp_path / "v" / "config.json").write_text(json.dumps(config))
        self.refused(run, [*more, "--append"], tmp_path / "v", "OutputRefused", "XYWH")

    def test_a_v1_directory_of_others_with_append(self, tmp_path: Path, run: Run) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 2)
        v1 = converting(tmp_path / "a.tar", tmp_path / "v", layout="v1")
        assert run(*v1, "--max-samples", 1)[0] == 0
        assert run(*converting(tmp_path / "a.tar", tmp_path / "clean", layout="v1"))[0] == 0
        shutil.rmtree(tmp_path / "v" / ".penstock")
        code, report = run(*v1, "--append")
        assert (code, report["rows"]["done"], report["rows"]["skipped"]) == (0, 2, 1)
        for name in (
            "images.bin",
            "features.bin",
            "masks.bin",
            "bboxes.bin",
            "metadata.bin",
            "keys.txt",
            "config.json",
        ):
            assert (tmp_path / "v" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes(), name

    def test_a_store_where_v1_is_asked_for_and_the_other_way_round(self, tmp_path: Path, tar: Path, run: Run) -> None:
        assert run(*converting(tar, tmp_path / "s"))[0] == 0
        make_sa1b_tar(tmp_path / "b.tar", 1)
        self.refused(
            run,
            converting(tmp_path / "b.tar", tmp_path / "s", layout="v1"),
            tmp_path / "s",
            "OutputRefused",
            "nothing was touched",
        )
        assert run(*converting(tmp_path / "b.tar", tmp_path / "v", layout="v1"))[0] == 0
        self.refused(run, converting(tar, tmp_path / "v"), tmp_path / "v", "OutputRefused", "nothing was touched")

    @pytest.mark.parametrize("layout", ["store", "v1"])
    def test_a_folder_that_cannot_be_written(self, layout: str, tmp_path: Path, run: Run, locked: Path) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 1, **(SMALL if layout == "store" else {}))
        for target in (locked, locked / "deeper"):
            code, report = run(*converting(tmp_path / "a.tar", target, layout=layout))
            assert (code, report["error"]) == (2, "OutputRefused"), report
            assert str(locked) in report["message"]
            assert "not writable" in report["message"] or "read-only" in report["message"]
            assert list(locked.iterdir()) == []


class TestInput:
    """Input that is not there, or is no TAR."""

    def test_a_missing_path(self, tmp_path: Path, run: Run) -> None:
        code, report = run(*converting(tmp_path / "none.tar", tmp_path / "s"))
        assert (code, report["error"]) == (2, "SourceNotFound")
        assert str(tmp_path / "none.tar") in report["message"]
        assert not (tmp_path / "s").exists()

    def test_a_folder_and_a_text(self, tmp_path: Path, run: Run) -> None:
        (tmp_path / "notes.txt").write_text("no TAR " * 200)
        for path in (tmp_path, tmp_path / "notes.txt"):
            code, report = run(*converting(path, tmp_path / "s"))
            assert (code, report["error"]) == (2, "SourceNotFound")
            assert str(path) in report["message"]

    @pytest.mark.parametrize("layout", ["store", "v1"])
    def test_a_tar_without_members(self, layout: str, tmp_path: Path, run: Run) -> None:
        write_tar(tmp_path / "a.tar", [])
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s", layout=layout))
        assert (code, report["status"]) == (1, "failed")

    def test_a_tar_of_other_things(self, tmp_path: Path, run: Run) -> None:
        write_tar(tmp_path / "a.tar", [("readme.txt", b"hello"), ("../../evil.sh", b"echo")])
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
        assert (code, report["status"]) == (1, "failed")

    def test_names_that_would_leave_the_folder_give_a_plain_id(self, tmp_path: Path, run: Run) -> None:
        picture, npz, _ = make_sample(1, **SMALL)
        write_tar(tmp_path / "a.tar", [("../../sa_1.jpg", picture), ("/etc/sa_1_features.npz", npz)])
        assert run(*converting(tmp_path / "a.tar", tmp_path / "x" / "s"))[0] == 0
        assert open_store(tmp_path / "x" / "s").keys[0] == "sa_1"
        assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "x"}

    def test_every_sample_bad(self, tmp_path: Path, run: Run) -> None:
        def mutate(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
            return {name: b"" if name.endswith("jpg") else content for name, content in members.items()}

        make_sa1b_tar(tmp_path / "a.tar", ROWS, mutate=mutate, **SMALL)
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s", "--max-failures", "100%"))
        assert (code, report["status"], report["rows"]["failed"]) == (1, "failed", ROWS)
        assert len(failure_lines(tmp_path / "s")) == ROWS

    def test_a_file_that_is_cut_while_it_is_read(self, tmp_path: Path, tar: Path) -> None:
        """The headers were read; then the file became shorter: the rows behind the cut fail, none is zeros."""
        size = tar.stat().st_size

        def cut(report: object) -> None:
            os.truncate(tar, size // 2)

        config = ConvertConfig(tar_path=(str(tar),), output_dir=tmp_path / "s", workers=0, image_size=32)
        report = convert_sa1b_tar(config, on_progress=cut)
        assert report.planned == ROWS
        assert 0 < report.failed < ROWS
        assert all("a.tar" in one.message and "expected" in one.message for one in report.failures)
        assert report.exit_code == 1


def test_bytes_of_a_picture_are_not_what_decides(tmp_path: Path, run: Run) -> None:
    """A PNG under the name of a JPEG is a picture all the same."""
    png = encode_picture(ramp(32, 32), "png")
    make_sa1b_tar(tmp_path / "a.tar", ROWS, mutate=spoil_picture(png), **SMALL)
    assert run(*converting(tmp_path / "a.tar", tmp_path / "s"))[0] == 0
    np.testing.assert_array_equal(open_store(tmp_path / "s")[BAD]["image"], ramp(32, 32))
