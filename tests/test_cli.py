"""The command line as a contract: exit codes, one JSON object, flags, signals, and what a second run does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import main
from penstock.store import open_store
from penstock.testing import make_sa1b_tar, make_sample, write_tar
from tests.test_bad_input import SMALL, Run, command, contents, converting, data_files, failure_lines, run

__all__ = ["run"]  # a fixture

ROWS = 12
BAD = {3, 7}
JOB_KEYS = {
    "command", "status", "rows", "seconds", "bytes_written", "output", "report", "failures", "reasons", "problems",
    "max_failures", "interrupted", "config", "repeated", "ignored_members", "layout",
}  # fmt: skip


def spoiled(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
    return {name: b"" if number in BAD and name.endswith("jpg") else content for name, content in members.items()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good.tar, more.tar with the samples after it, and bad.tar, two of whose pictures are empty."""
    folder = tmp_path_factory.mktemp("shards")
    make_sa1b_tar(folder / "good.tar", ROWS, **SMALL)
    make_sa1b_tar(folder / "more.tar", 3, start=ROWS, **SMALL)
    make_sa1b_tar(folder / "bad.tar", ROWS, mutate=spoiled, **SMALL)
    return folder


def counts(report: dict[str, Any]) -> tuple[int, int, int, int, int]:
    rows = report["rows"]
    assert rows["planned"] == rows["done"] + rows["failed"] + rows["missing"]
    return rows["planned"], rows["done"], rows["failed"], rows["missing"], rows["skipped"]


class TestJson:
    """`--json` is exactly one JSON object on stdout."""

    def test_a_job_prints_its_report(self, shards: Path, tmp_path: Path, run: Run) -> None:
        code, report = run(*converting(shards / "bad.tar", tmp_path / "s"))
        assert code == 1
        assert set(report) == JOB_KEYS
        assert (report["command"], report["status"], report["output"]) == (
            "convert sa1b-tar",
            "partial",
            str(tmp_path / "s"),
        )
        assert counts(report) == (ROWS, ROWS - 2, 2, 0, 0)
        assert [one["key"] for one in report["failures"]] == ["sa_3", "sa_7"]
        assert set(report["failures"][0]) == {"key", "error", "message", "source", "attempt"}
        assert report["reasons"] == {"BadData": 2}
        assert report["report"] == str(tmp_path / "s" / "report.html")
        saved = json.loads((tmp_path / "s" / "report.json").read_text())
        assert saved == report
        assert "http" not in (tmp_path / "s" / "report.html").read_text().replace("http://www.w3.org", "")

    def test_only_ten_failures_are_listed_and_all_are_kept(self, tmp_path: Path, run: Run) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 20, mutate=lambda n, members: spoiled(3 if n % 20 else 0, members), **SMALL)
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
        assert (code, len(report["failures"]), report["rows"]["failed"]) == (1, 10, 19)
        assert len(failure_lines(tmp_path / "s")) == 19

    def test_progress_and_logs_go_to_stderr(self, shards: Path, tmp_path: Path) -> None:
        done = command(*converting(shards / "good.tar", tmp_path / "s", "--json"))
        assert done.returncode == 0
        assert json.loads(done.stdout)["status"] == "ok"
        assert len(done.stdout.splitlines()) == 1

    def test_a_job_says_one_line_to_people(
        self, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*map(str, converting(shards / "bad.tar", tmp_path / "s", "--quiet"))]) == 1
        printed = capsys.readouterr()
        (line,) = printed.out.splitlines()
        assert "10 of 12 rows done, 2 failed, 0 missing" in line
        assert "sa_3: BadData: picture" in printed.err

    def test_info(self, shards: Path, tmp_path: Path, run: Run) -> None:
        run(*converting(shards / "bad.tar", tmp_path / "s"))
        code, content = run("info", tmp_path / "s")
        assert code == 0
        assert {"kind", "rows", "groups", "schema", "attributes"} <= set(content)
        assert (content["kind"], content["rows"]) == ("store", ROWS)
        assert content["states"] == {"planned": ROWS, "done": ROWS - 2, "failed": 2, "missing": 0}
        assert [field["name"] for field in content["schema"]] == list(open_store(tmp_path / "s").schema)
        assert content["attributes"]["bbox_format"] == "xyxy"

    def test_verify_finds_a_changed_byte(self, shards: Path, tmp_path: Path, run: Run) -> None:
        run(*converting(shards / "good.tar", tmp_path / "s"))
        code, before = run("verify", tmp_path / "s")
        assert code == 0, before
        file = tmp_path / "s" / "part-00000" / "image.bin"
        content = bytearray(file.read_bytes())
        content[5000] ^= 1
        file.write_bytes(content)
        code, after = run("verify", tmp_path / "s")
        assert code == 1
        assert "image" in json.dumps(after)
        assert str(tmp_path / "s") in json.dumps(after) or "part-00000" in json.dumps(after)

    @pytest.mark.parametrize("name", ["info", "verify", "repair"])
    def test_a_path_that_holds_nothing(self, name: str, tmp_path: Path, run: Run) -> None:
        for path in (tmp_path / "none", tmp_path):
            code, report = run(name, path)
            assert (code, report["error"]) == (2, "SourceNotFound")
            assert str(path) in report["message"]


class TestMisuse:
    """Exit code 2: a wrong flag or value, a missing path; nothing is made."""

    @pytest.mark.parametrize(
        "flags",
        [
            ["--no-such-flag"],
            ["--layout", "v2"],
            ["--image-codec", "webp"],
            ["--workers", "-2"],
            ["--workers", "many"],
            ["--workers", "1.5"],
            ["--workers", "1.5e0"],
            ["--max-samples", "0"],
            ["--max-samples", "-1"],
            ["--max-failures", "some"],
            ["--max-failures", "101%"],
            ["--max-failures", "-1"],
            ["--part-rows", "0"],
            ["--timeout-s", "0"],
            ["--image-size", "3"],
            ["--fields", "no_such_field"],
            ["--layout", "v1", "--image-size", "512"],
            ["--layout", "v1", "--feature-dtype", "float16"],
            ["--layout", "v1", "--image-codec", "jpeg"],
            ["--layout", "v1", "--fields", "image"],
        ],
        ids=" ".join,
    )
    def test_flags(self, flags: list[str], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["convert", "sa1b-tar", "--tar-path", str(shards / "good.tar"), "--output-dir", str(tmp_path / "s")]
        assert main([*words, *flags]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert any(flag.lstrip("-") in printed.err for flag in flags)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "words",
        [["convert", "sa1b-tar"], ["convert", "nothing"], ["nothing"], ["info"], ["verify", "a", "b"]],
        ids=" ".join,
    )
    def test_commands(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 2
        assert capsys.readouterr().out == ""

    def test_with_json_the_error_is_an_object(self, tmp_path: Path, run: Run) -> None:
        code, report = run("convert", "sa1b-tar", "--tar-path", tmp_path / "none.tar", "--output-dir", tmp_path / "s")
        assert code == 2
        assert set(report) == {"command", "status", "error", "message"}
        assert (report["command"], report["status"]) == ("convert sa1b-tar", "failed")

    def test_no_arguments_show_the_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert "convert" in capsys.readouterr().out


@pytest.mark.parametrize(
    "style", ["--max_samples 4 --image_size 32", "--max-samples=4 --image-size=32", "--max_samples=4 --image-size 32"]
)
def test_underscores_and_dashes_are_the_same_in_every_flag(style: str, shards: Path, tmp_path: Path, run: Run) -> None:
    words = ["convert", "sa1b-tar", "--tar_path", shards / "good.tar", "--output_dir", tmp_path / "s_1", "--workers=0"]
    code, report = run(*words, *style.split(), "--model_type", "my_model")
    assert (code, counts(report)) == (0, (4, 4, 0, 0, 0))
    assert open_store(tmp_path / "s_1").attributes["model_type"] == "my_model"


class TestBudget:
    """`--max-failures`: a count, or a share of the samples."""

    @pytest.mark.parametrize(
        ("limit", "code"), [(None, 1), ("0", 1), ("1", 1), ("2", 0), ("50", 0), ("16%", 1), ("16.7%", 0), ("100%", 0)]
    )
    def test_decides_the_exit_code(self, limit: str | None, code: int, shards: Path, tmp_path: Path, run: Run) -> None:
        flags = [] if limit is None else ["--max-failures", limit]
        found, report = run(*converting(shards / "bad.tar", tmp_path / "s", *flags))
        assert (found, report["status"]) == (code, "partial" if code else "ok")
        done = report["rows"]["done"]
        assert done == (ROWS - 2 if limit not in ("0", "1") else {"0": 3, "1": 6}[limit])

    def test_a_spent_budget_stops_and_keeps_what_is_done(self, shards: Path, tmp_path: Path, run: Run) -> None:
        code, report = run(*converting(shards / "bad.tar", tmp_path / "s", "--max-failures", 1))
        assert code == 1
        assert report["interrupted"] == "failure budget"
        assert "2 of 12 rows failed, the budget is 1" in report["error"]
        assert counts(report) == (ROWS, 6, 2, 4, 0)
        assert open_store(tmp_path / "s").counts() == {"planned": ROWS, "done": 6, "failed": 2, "missing": 4}
        code, report = run(*converting(shards / "bad.tar", tmp_path / "s", "--max-failures", 2))
        assert (code, counts(report)) == (0, (ROWS, ROWS - 2, 2, 0, 8))


class TestAgain:
    """A second run does what is missing, adds what is new, and repeats nothing."""

    @pytest.mark.parametrize("layout", ["store", "v1"])
    def test_the_same_tar_twice_adds_nothing(self, layout: str, shards: Path, tmp_path: Path, run: Run) -> None:
        tar, rows = shards / "good.tar", ROWS
        if layout == "v1":
            tar, rows = tmp_path / "a.tar", 2
            make_sa1b_tar(tar, rows)
        assert run(*converting(tar, tmp_path / "s", layout=layout))[0] == 0
        before = data_files(tmp_path / "s")
        for more in ([], ["--tar-path", tar]):
            code, report = run(*converting(tar, tmp_path / "s", *more, layout=layout))
            assert (code, counts(report), report["bytes_written"]) == (0, (rows, rows, 0, 0, rows), 0)
        shutil.copy2(tar, tmp_path / "copy.tar")
        code, report = run(*converting(tmp_path / "copy.tar", tmp_path / "s", layout=layout))
        assert (code, report["rows"]["done"], report["bytes_written"]) == (0, rows, 0)
        assert data_files(tmp_path / "s") == before

    def test_another_tar_is_appended(self, shards: Path, tmp_path: Path, run: Run) -> None:
        assert run(*converting(shards / "good.tar", tmp_path / "s"))[0] == 0
        first = data_files(tmp_path / "s")
        code, report = run(*converting(shards / "more.tar", tmp_path / "s"))
        assert (code, counts(report)) == (0, (3, 3, 0, 0, 0))
        store = open_store(tmp_path / "s")
        assert [store.keys[row] for row in range(len(store))] == [f"sa_{n}" for n in range(ROWS + 3)]
        assert first.items() <= data_files(tmp_path / "s").items()

    def test_several_tars_in_one_flag_or_in_many(self, shards: Path, tmp_path: Path, run: Run) -> None:
        for name, more in (("one", [shards / "more.tar"]), ("many", ["--tar-path", shards / "more.tar"])):
            words = ["convert", "sa1b-tar", "--output-dir", tmp_path / name, "--workers", 0, "--image-size", 32]
            assert run(*words, "--tar-path", shards / "good.tar", *more)[0] == 0
        assert data_files(tmp_path / "one") == data_files(tmp_path / "many")

    def test_max_samples_is_exact_and_the_rest_follows(self, shards: Path, tmp_path: Path, run: Run) -> None:
        code, report = run(*converting(shards / "good.tar", tmp_path / "s", "--max-samples", 5))
        assert (code, counts(report)) == (0, (5, 5, 0, 0, 0))
        assert len(open_store(tmp_path / "s")) == 5
        code, report = run(*converting(shards / "good.tar", tmp_path / "s", "--max-samples", 5))
        assert (code, counts(report)) == (0, (5, 5, 0, 0, 5))
        code, report = run(*converting(shards / "good.tar", tmp_path / "s"))
        assert (code, counts(report)) == (0, (ROWS, ROWS, 0, 0, 5))
        store = open_store(tmp_path / "s")
        assert [store.keys[row] for row in range(len(store))] == [f"sa_{n}" for n in range(ROWS)]

    def test_failed_rows_are_tried_again_when_asked_for_or_when_their_input_changed(
        self, shards: Path, tmp_path: Path, run: Run
    ) -> None:
        tar = tmp_path / "a.tar"
        shutil.copy(shards / "bad.tar", tar)
        arguments = converting(tar, tmp_path / "s")
        assert run(*arguments)[0] == 1
        code, report = run(*arguments)
        assert (code, counts(report)) == (1, (ROWS, ROWS - 2, 2, 0, ROWS))
        assert len(failure_lines(tmp_path / "s")) == 2
        code, report = run(*arguments, "--retry-failed")
        assert (code, counts(report)) == (1, (ROWS, ROWS - 2, 2, 0, ROWS - 2))
        assert len(failure_lines(tmp_path / "s")) == 4
        shutil.copy(shards / "good.tar", tar)
        code, report = run(*arguments)
        assert (code, counts(report)) == (0, (ROWS, ROWS, 0, 0, ROWS - 2))
        assert run(*converting(tar, tmp_path / "clean"))[0] == 0
        left, right = open_store(tmp_path / "s"), open_store(tmp_path / "clean")
        assert all((left[row]["image"] == right[row]["image"]).all() for row in range(ROWS))

    def test_a_changed_sample_is_recomputed(self, tmp_path: Path, run: Run) -> None:
        tar = tmp_path / "a.tar"

        def change(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
            if number != 2:
                return members
            picture, npz, _ = make_sample(77, key="sa_2", num_boxes=2, **SMALL)
            return dict(zip(members, (picture, npz), strict=True))

        make_sa1b_tar(tar, 5, **SMALL)
        assert run(*converting(tar, tmp_path / "s"))[0] == 0
        make_sa1b_tar(tar, 5, mutate=change, **SMALL)
        code, report = run(*converting(tar, tmp_path / "s"))
        assert (code, counts(report), report["changed"]) == (0, (5, 5, 0, 0, 4), 1)
        assert run(*converting(tar, tmp_path / "clean"))[0] == 0
        left, right = open_store(tmp_path / "s"), open_store(tmp_path / "clean")
        assert len(left) == 5
        for row in range(5):
            assert all(left[row][name].tobytes() == right[row][name].tobytes() for name in left.schema)  # type: ignore[union-attr]
        assert run("verify", tmp_path / "s")[0] == 0

    def test_a_changed_sample_is_refused_by_v1_and_nothing_is_touched(self, tmp_path: Path, run: Run) -> None:
        tar = tmp_path / "a.tar"
        make_sa1b_tar(tar, 2)
        assert run(*converting(tar, tmp_path / "v", layout="v1"))[0] == 0
        before = data_files(tmp_path / "v")
        make_sa1b_tar(tar, 2, num_boxes=3)
        code, report = run(*converting(tar, tmp_path / "v", layout="v1"))
        assert (code, report["error"]) == (2, "OutputRefused")
        assert "sa_0" in report["message"]
        assert "a.tar" in report["message"]
        assert data_files(tmp_path / "v") == before

    def test_a_tar_written_again_with_the_same_content_changes_nothing(self, tmp_path: Path, run: Run) -> None:
        """Times differ, so the content is compared; once, for then the times are known."""
        import tarfile

        tar = tmp_path / "a.tar"
        make_sa1b_tar(tar, 4, **SMALL)
        assert run(*converting(tar, tmp_path / "s"))[0] == 0
        before = data_files(tmp_path / "s")
        with tarfile.open(tar) as old, tarfile.open(tmp_path / "b.tar", "w") as new:
            for member in old.getmembers():
                content = old.extractfile(member)
                member.mtime += 60
                new.addfile(member, content)
        os.replace(tmp_path / "b.tar", tar)
        code, report = run(*converting(tar, tmp_path / "s"))
        assert (code, counts(report), report["bytes_written"]) == (0, (4, 4, 0, 0, 4), 0)
        assert "changed" not in report
        assert data_files(tmp_path / "s") == before


class TestDryRun:
    """`--dry-run` says what would be done and why, and writes nothing."""

    def plan(self, run: Run, *arguments: object) -> dict[str, Any]:
        code, plan = run(*arguments, "--dry-run")
        assert code == 0
        return plan

    def test_of_a_new_output(self, shards: Path, tmp_path: Path, run: Run) -> None:
        arguments = converting(
            shards / "good.tar", tmp_path / "s", "--fields", "image,P4_S16"
        )  # blobs: not known before
        plan = self.plan(run, *arguments)
        assert list(tmp_path.iterdir()) == []
        assert (plan["dry_run"], plan["rows"]) == (True, {"planned": ROWS, "to_do": ROWS})
        assert plan["reasons"] == {"missing": ROWS}
        assert plan["seconds_estimate"] >= 0
        code, report = run(*arguments)
        assert code == 0
        assert plan["bytes_to_write"] == report["bytes_written"]

    def test_of_an_output_that_is_there(self, shards: Path, tmp_path: Path, run: Run) -> None:
        tar = tmp_path / "a.tar"
        shutil.copy(shards / "bad.tar", tar)
        assert run(*converting(tar, tmp_path / "s", "--max-samples", 9))[0] == 1
        before = contents(tmp_path / "s")
        plan = self.plan(run, *converting(tar, tmp_path / "s"))
        assert plan["reasons"] == {"done": 7, "failed before, not retried": 2, "missing": 3}
        assert plan["rows"] == {"planned": ROWS, "to_do": 3}
        plan = self.plan(run, *converting(tar, tmp_path / "s", "--retry-failed", "--max-samples", 9))
        assert plan["reasons"] == {"done": 7, "failed before": 2}
        shutil.copy(shards / "good.tar", tar)
        assert self.plan(run, *converting(tar, tmp_path / "s"))["reasons"] == {
            "done": 7,
            "changed input": 2,
            "missing": 3,
        }
        assert contents(tmp_path / "s") == before

    def test_of_v1(self, tmp_path: Path, run: Run) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 2)
        arguments = converting(tmp_path / "a.tar", tmp_path / "v", layout="v1")
        assert self.plan(run, *arguments)["bytes_to_write"] == 2 * 8_696_868
        assert not (tmp_path / "v").exists()
        assert run(*arguments)[0] == 0
        assert self.plan(run, *arguments)["reasons"] == {"done": 2}

    def test_of_an_output_that_would_be_refused(self, shards: Path, tmp_path: Path, run: Run) -> None:
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "thesis.txt").write_text("my only copy")
        (tmp_path / "f").write_text("a file")
        for layout, name in (("store", "s"), ("v1", "s"), ("store", "f"), ("v1", "f")):
            tar = shards / "good.tar"
            assert run(*converting(tar, tmp_path / name, "--dry-run", layout=layout))[0] == 2, (layout, name)


class TestPipe:
    """`--tar-path -` reads standard input."""

    def test_gives_the_bytes_of_the_file(self, shards: Path, tmp_path: Path) -> None:
        assert command(*converting(shards / "good.tar", tmp_path / "file")).returncode == 0
        for name, packed in (("pipe", []), ("packed", ["gzip", "-c"])):
            with (shards / "good.tar").open("rb") as file:
                content = subprocess.run(packed or ["cat"], stdin=file, capture_output=True, check=True).stdout
            words = [sys.executable, "-m", "penstock", *map(str, converting(Path("-"), tmp_path / name, "--json"))]
            done = subprocess.run(words, input=content, capture_output=True, timeout=300)
            assert done.returncode == 0, done.stderr
            assert counts(json.loads(done.stdout)) == (ROWS, ROWS, 0, 0, 0)
            left, right = data_files(tmp_path / name), data_files(tmp_path / "file")
            for files in (left, right):
                del files["part-00000/_rows.bin"]  # it holds the name of the file
            assert left == right

    def test_a_pipe_that_breaks_off_keeps_what_came(self, shards: Path, tmp_path: Path) -> None:
        content = (shards / "good.tar").read_bytes()
        words = [sys.executable, "-m", "penstock", *map(str, converting(Path("-"), tmp_path / "s", "--json"))]
        done = subprocess.run(words, input=content[: len(content) // 2], capture_output=True, timeout=300)
        report = json.loads(done.stdout)
        assert done.returncode == 1
        assert 0 < report["rows"]["done"] < ROWS
        assert report["problems"] or report["failures"]
        done = subprocess.run(words, input=content, capture_output=True, timeout=300)
        assert json.loads(done.stdout)["rows"]["done"] == ROWS, done.stdout
        assert done.returncode == 0

    def test_nothing_in_the_pipe(self, tmp_path: Path) -> None:
        done = command(*converting(Path("-"), tmp_path / "s", "--json"), stdin=subprocess.DEVNULL)
        assert done.returncode in (1, 2)
        assert json.loads(done.stdout)["status"] == "failed"
        assert "Traceback" not in done.stderr


MANY = 600


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TAR of many samples: the same small sample under many ids."""
    folder = tmp_path_factory.mktemp("long")
    picture, npz, _ = make_sample(1, num_boxes=1, **SMALL)
    members = [(f"sa_{n}{end}", content) for n in range(MANY) for end, content in ((".jpg", picture), (".npz", npz))]
    write_tar(folder / "long.tar", members)
    return folder / "long.tar"


HELD = """
import os, sys, time
from pathlib import Path
from penstock.cli import main
from penstock.progress import Progress

test = os.getppid()

def job(progress, report):
    while report.done and not Path(sys.argv[1]).exists() and os.getppid() == test:
        time.sleep(0.005)

Progress.job = job
sys.exit(main(sys.argv[2:]))
"""


def started(arguments: list[object], ready: Callable[[], bool], go: Path | None = None) -> "subprocess.Popen[str]":
    """The command in a process group of its own, running and past its start; after its first rows it waits for `go`."""
    words = [sys.executable, *(["-c", HELD, str(go)] if go else ["-m", "penstock"]), *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    give_up = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.005)
    return process


def members_of(group: int) -> list[bytes]:
    """Command lines of a process group; not of the dead, which stay where the first process of a container ends nobody."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state not in "ZX":
                found.append((entry / "cmdline").read_bytes())
    return found


def has_data(output: Path) -> Callable[[], bool]:
    """Whether the first row was written (its place is a hole before)."""

    def ready() -> bool:
        file = output / "part-00000" / "image.bin"
        return file.exists() and file.stat().st_blocks > 0

    return ready


class TestSignals:
    """SIGINT and SIGTERM finish the rows in hand, write the report, exit 130 or 143; a second one stops at once."""

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_one_stops_in_order_and_the_next_run_completes(
        self, number: signal.Signals, workers: int, long: Path, tmp_path: Path, run: Run
    ) -> None:
        arguments = converting(long, tmp_path / "s", "--json", "--durability", "process", workers=workers)
        process = started(arguments, has_data(tmp_path / "s"), tmp_path / "go")
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: workers get it too
        else:
            process.send_signal(number)
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 128 + number, err
        assert "Traceback" not in err
        assert "finishing the rows in hand" in err
        report = json.loads(out)
        assert report["interrupted"] == number.name
        assert report["status"] == "partial"
        planned, done, failed, missing, _ = counts(report)
        assert (planned, failed) == (MANY, 0)
        assert done > 0
        assert missing > 0
        assert open_store(tmp_path / "s").counts()["done"] == done
        assert json.loads((tmp_path / "s" / "report.json").read_text()) == report
        code, report = run(*converting(long, tmp_path / "s", "--durability", "process"))
        assert (code, counts(report)) == (0, (MANY, MANY, 0, 0, done))

    def test_a_second_one_stops_at_once_and_the_next_run_completes(self, long: Path, tmp_path: Path, run: Run) -> None:
        make_sa1b_tar(tmp_path / "a.tar", 3, **SMALL)
        arguments = converting(Path("-"), tmp_path / "s")
        words = [sys.executable, "-m", "penstock", *map(str, arguments)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stderr is not None
        content = (tmp_path / "a.tar").read_bytes()
        process.stdin.write(content[: len(content) * 3 // 4])  # then it waits for more: a row in hand that never ends
        process.stdin.flush()
        while not has_data(tmp_path / "s")():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert b"once more stops at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=200) == 130  # not when the row in hand ends: it never does
        process.stdin.close()
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()
        code, report = run(*converting(tmp_path / "a.tar", tmp_path / "s"))
        assert (code, report["rows"]["done"]) == (0, 3)

    @pytest.mark.parametrize("up", [0, 1, 2])
    def test_one_while_workers_start_fails_no_row(self, up: int, long: Path, tmp_path: Path, run: Run) -> None:
        def planned() -> bool:
            return (tmp_path / "s" / "store.json").exists()

        arguments = converting(long, tmp_path / "s", "--json", "--durability", "process", workers=2)
        process = started(arguments, planned, tmp_path / "go")
        while sum(b"spawn_main" in line for line in members_of(process.pid)) < up:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        assert json.loads(out)["rows"]["failed"] == 0, out
        code, report = run(*converting(long, tmp_path / "s", "--max-samples", 300, "--durability", "process"))
        assert (code, report["rows"]["done"]) == (0, 300)


def test_a_worker_that_dies_with_its_driver_leaves_no_process(long: Path, tmp_path: Path, run: Run) -> None:
    arguments = converting(long, tmp_path / "s", "--durability", "process", workers=2)
    process = started(arguments, has_data(tmp_path / "s"))
    process.kill()
    process.communicate(timeout=200)
    give_up = time.monotonic() + 200
    while time.monotonic() < give_up and members_of(process.pid):
        time.sleep(0.02)
    assert not members_of(process.pid)
    code, report = run(*converting(long, tmp_path / "s", "--max-samples", 300, "--durability", "process"))
    assert (code, report["rows"]["done"]) == (0, 300)
