"""The Ray launcher, on a real cluster of two node processes: whatever is killed, the store ends as the clean run's."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from penstock.cli_job import run_job
from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.embed import EmbedConfig, embed
from penstock.errors import MissingExtra, PartClaimed, SourceNotFound, UsageError
from penstock.launch.ray import Ray, _FencedWriter, _read_claim
from penstock.refine import refine
from penstock.refining.classical import Classical
from penstock.report import Report
from penstock.schema import Field, Record, Schema
from penstock.sequence_sink import FolderWriter
from penstock.store import StoreSink, sink
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.testing import make_sa1b_tar
from tests.refine_data import config as refine_config
from tests.refine_data import outputs_of, write_scenes
from tests.test_bad_input import data_files
from tests.test_embed import write_coco
from tests.test_jobs import Numbers, Square, check_rows, counts, job

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "picture_size": 64,
    "feature_size": 8,
    "channels": 4,
    "edge_sizes": (64,),
    "map_sizes": (64, 32),
}

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
    # Ray leaves sockets, log files and finished processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@dataclass(frozen=True, kw_only=True)
class Slow(Square):
    """Squares that take their time, each worker leaving a file of its name in `marks`; nobody goes on before all are at it."""

    marks: str = ""
    seconds: float = 0.05
    at_it: int = 1

    def __call__(self, records: list[Record]) -> list[Record]:
        import ray

        name = f"{os.getpid()}-{ray.get_runtime_context().get_node_id()}" if ray.is_initialized() else "driver"
        (Path(self.marks) / name).touch()
        while len(workers(Path(self.marks))) < self.at_it:
            time.sleep(0.01)
        time.sleep(self.seconds)
        return super().__call__(records)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # Ray's name; else whatever else runs here comes first
    Ray()  # imports ray with our settings
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie below it
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    head = {**node, "num_gpus": 1, "include_dashboard": False, "temp_dir": folder}  # it takes our word for the GPU
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(**node)
    yield made
    made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_(cluster: Any) -> Callable[..., Ray]:
    """Makes a launcher on the cluster, which has two nodes of one CPU each."""
    if not cluster.worker_nodes:
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    return lambda **options: Ray(address=cluster.address, **options)


def workers(marks: Path) -> dict[int, str]:
    """Node by process, of the workers that have worked."""
    return {int(name.partition("-")[0]): name.partition("-")[2] for name in os.listdir(marks) if "-" in name}


def wait_until(holds: Callable[[], object], what: str, seconds: float = 300) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_converts_to_the_same_bytes_also_when_a_node_is_killed_in_mid_run(
    cluster: Any, ray_: Callable[..., Ray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths are relative: workers find them all the same
    make_sa1b_tar("a.tar", 40, **SMALL)
    config = ConvertConfig(tar_path=("a.tar",), output_dir=Path("inline"), image_size=64, workers=0, part_rows=16)
    assert convert_sa1b_tar(config).done == 40

    def on_ray(name: str, on_progress: Callable[[Report], None] = lambda report: None) -> None:
        other = dataclasses.replace(
            config, output_dir=Path(name), workers=2, launcher="ray", ray_address=cluster.address
        )
        report = convert_sa1b_tar(other, on_progress=on_progress)
        assert (counts(report), report.exit_code) == ((40, 40, 0, 0), 0)
        assert data_files(Path(name)) == data_files(Path("inline"))
        assert convert_sa1b_tar(other).skipped == 40  # and starts no worker for it

    before = signal.getsignal(signal.SIGTERM)
    on_ray("clean")
    assert signal.getsignal(signal.SIGTERM) is before
    killed_at: list[int] = []

    def kill(report: Report) -> None:
        if not killed_at:
            killed_at.append(report.done)
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    on_ray("killed", kill)
    assert killed_at[0] < 20


def test_embeds_to_the_same_bytes_also_when_a_node_is_killed_in_mid_run(
    cluster: Any, ray_: Callable[..., Ray], tmp_path: Path
) -> None:
    write_coco(tmp_path / "coco", 40)
    config = EmbedConfig(
        data_path=tmp_path / "coco", cache_dir=tmp_path / "inline", embedder_spec="tiny:dim=16", batch_size=1,
        num_workers=0, part_rows=64,
    )  # fmt: skip
    assert embed(config).done == 200
    killed_at: list[int] = []

    def kill(report: Report) -> None:
        if not killed_at:
            killed_at.append(report.done)
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    other = dataclasses.replace(config, cache_dir=tmp_path / "ray")
    report = embed(other, launcher=ray_(), on_progress=kill)
    assert (counts(report), report.exit_code) == ((200, 200, 0, 0), 0)
    assert killed_at[0] < 150
    assert data_files(tmp_path / "ray") == data_files(tmp_path / "inline")


def test_refines_to_the_same_files(ray_: Callable[..., Ray], tmp_path: Path) -> None:
    roots = [write_scenes(tmp_path / name, {"a": 3, "b": 2}) for name in ("inline", "ray")]
    for root, launcher in zip(roots, (None, ray_()), strict=True):
        report = refine(refine_config(root), proposer=Classical(), launcher=launcher)
        assert (counts(report), report.exit_code) == ((5, 5, 0, 0), 0)
    assert len(outputs_of(roots[0])) == 10
    assert outputs_of(roots[1]) == outputs_of(roots[0])
    assert data_files(roots[1] / ".penstock") == data_files(roots[0] / ".penstock")


def test_a_killed_node_loses_nothing(cluster: Any, ray_: Callable[..., Ray], tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    stage = Slow(batch_size=4, marks=str(tmp_path / "marks"), at_it=2)
    job(tmp_path / "clean", Numbers(60), Square(batch_size=4), part_rows=25).run()

    def kill(report: Report) -> None:
        if cluster.worker_nodes:
            assert len(set(workers(tmp_path / "marks").values())) == 2  # both nodes work, and one is killed
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    report = job(tmp_path / "s", Numbers(60), stage, part_rows=25, launcher=ray_(), on_progress=kill).run()
    assert not cluster.worker_nodes
    assert counts(report) == (60, 60, 0, 0)
    assert data_files(tmp_path / "s") == data_files(tmp_path / "clean")


def test_a_killed_worker_loses_nothing(
    ray_: Callable[..., Ray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "marks").mkdir()
    stage = Slow(batch_size=4, marks=str(tmp_path / "marks"), seconds=0.02)
    job(tmp_path / "clean", Numbers(80), Square(batch_size=4), part_rows=25).run()
    killed: list[int] = []

    def kill(report: Report) -> None:
        if not killed:
            killed.append(next(iter(workers(tmp_path / "marks"))))
            os.kill(killed[0], signal.SIGKILL)

    launcher = ray_(workers=1)
    report = job(tmp_path / "s", Numbers(80), stage, part_rows=25, launcher=launcher, on_progress=kill).run()
    assert killed
    assert counts(report) == (80, 80, 0, 0)
    assert len(workers(tmp_path / "marks")) == 2  # the dead one was replaced
    assert capfd.readouterr().out == ""
    assert data_files(tmp_path / "s") == data_files(tmp_path / "clean")


def test_a_row_that_kills_its_worker_is_the_only_failed_one(ray_: Callable[..., Ray], tmp_path: Path) -> None:
    stage = Square(batch_size=2, exits=frozenset({6}))
    report = job(tmp_path / "s", Numbers(10), stage, launcher=ray_(workers=2)).run()
    assert counts(report) == (10, 9, 1, 0)
    (failure,) = report.failures
    assert (failure.key, failure.error, failure.source, failure.attempt) == ("n6", "WorkerDied", "numbers", 2)
    assert failure.message == "n6: its worker died, 2 attempts"
    check_rows(tmp_path / "s", 10, {6})


def test_a_row_that_takes_too_long_is_the_only_failed_one(ray_: Callable[..., Ray], tmp_path: Path) -> None:
    stage = Square(batch_size=1, sleeps=frozenset({3}))
    report = job(tmp_path / "s", Numbers(6), stage, launcher=ray_(workers=1, timeout_s=4.0)).run()
    assert counts(report) == (6, 5, 1, 0)
    assert (report.failures[0].key, report.failures[0].error) == ("n3", "TimeoutError")
    check_rows(tmp_path / "s", 6, {3})


@dataclass(frozen=True, kw_only=True)
class OnGpu(Square):
    """Says where it was set up."""

    marks: str = ""

    def setup(self, device: str) -> None:
        (Path(self.marks) / f"{device}-{os.environ['CUDA_VISIBLE_DEVICES']}").touch()


def test_each_worker_of_a_cuda_job_has_a_gpu_of_its_own(ray_: Callable[..., Ray], tmp_path: Path) -> None:
    stage = OnGpu(marks=str(tmp_path))
    report = job(tmp_path / "s", Numbers(20), stage, launcher=ray_(), device="cuda:1").run()
    assert counts(report) == (20, 20, 0, 0)
    assert (tmp_path / "cuda-0").exists()  # the one that it sees, whatever its number on the node


def drive_slowly(address: str, folder: str) -> None:
    """What the driver that is killed does, in a process of its own."""
    sink.COMMIT_SECONDS = 0.0

    def die(report: Report) -> None:
        if report.done >= 20:
            os.kill(os.getpid(), signal.SIGKILL)

    stage = Slow(batch_size=4, marks=f"{folder}/marks", at_it=2)
    launcher = Ray(address=address)
    job(Path(folder) / "s", Numbers(100), stage, part_rows=25, launcher=launcher, on_progress=die).run()


def test_a_killed_driver_takes_its_workers_along_and_is_started_again(
    cluster: Any, ray_: Callable[..., Ray], tmp_path: Path
) -> None:
    (tmp_path / "marks").mkdir()
    job(tmp_path / "clean", Numbers(100), Square(batch_size=4), part_rows=25).run()
    script = f"from tests.launch.test_ray import drive_slowly\ndrive_slowly({cluster.address!r}, {str(tmp_path)!r})"
    driver = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, output.decode()
    killed = time.monotonic()
    old = workers(tmp_path / "marks")
    stage = Slow(batch_size=4, marks=str(tmp_path / "marks"), seconds=0.0)
    report = job(tmp_path / "s", Numbers(100), stage, part_rows=25, launcher=ray_()).run()
    assert counts(report) == (100, 100, 0, 0)
    assert 0 < report.skipped < 100
    wait_until(lambda: not any(alive(pid) for pid in old), "workers outlived their driver")
    print(f"workers gone at most {time.monotonic() - killed:.1f} s after their driver")
    assert data_files(tmp_path / "s") == data_files(tmp_path / "clean")


def drive_alone(folder: str) -> None:
    """What the driver that gets a signal does: a job on a cluster of its own, as on the command line."""
    sink.COMMIT_SECONDS = 0.1

    def run(on_progress: Callable[[Report], None], stop: Callable[[], str]) -> Report:
        stage = Slow(batch_size=4, marks=f"{folder}/marks", seconds=0.2)
        return job(Path(folder) / "s", Numbers(400), stage, launcher=Ray(2), on_progress=on_progress, stop=stop).run()

    sys.exit(run_job(run, Path(folder) / "s", quiet=True, json=True))


def session(leader: int) -> list[int]:
    """Processes of a session, the dead ones left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(sid) == leader and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cluster_of_ones_own_ends_with_its_driver(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    script = f"from tests.launch.test_ray import drive_alone\ndrive_alone({str(tmp_path)!r})"
    driver = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    wait_until(lambda: workers(tmp_path / "marks") or driver.poll() is not None, "no worker came up")
    time.sleep(1.0)
    assert len(session(driver.pid)) > 3
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)  # as a terminal does: to the driver and to what it started
    else:
        os.kill(driver.pid, number)
    output, errors = driver.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert driver.returncode == -number
        wait_until(lambda: not any(alive(pid) for pid in workers(tmp_path / "marks")), "workers outlived their driver")
        return  # Ray's agents, which do nothing for us, see after a minute that they are alone
    assert driver.returncode == 128 + number, errors.decode()
    report = json.loads(output)
    assert (report["status"], report["rows"]["failed"]) == ("partial", 0)
    assert 0 < report["rows"]["done"] < 400
    wait_until(lambda: not session(driver.pid), "processes outlived their driver")


class TestFence:
    """A worker writes only under the claim that its order was given under."""

    schema: ClassVar[Schema] = Schema([Field(name="value", dtype="int64")])

    def test_after_another_driver_took_the_claim_nothing_is_written(self, tmp_path: Path) -> None:
        writer = _FencedWriter(StoreSink(tmp_path / "s", self.schema).writer())
        folder = tmp_path / "s" / "part"
        folder.mkdir()
        rows = [writer.encode({"value": np.int64(5)})]
        for shared in (False, True):
            ours = Claim(folder, shared=shared)
            ours.acquire()
            writer.claims = {folder: _read_claim(folder)}
            assert writer.claims[folder]
            writer.write_rows(folder, 0, rows)
            ours.release()
            theirs = Claim(folder, shared=shared)
            for after in (lambda: None, theirs.acquire):
                after()
                with pytest.raises(PartClaimed, match="nothing was written"):
                    writer.write_rows(folder, 1, rows)
            theirs.release()
            (folder / "_claim").unlink(missing_ok=True)
        assert (folder / "value.bin").stat().st_size == 8

    def test_a_writer_of_another_kind_writes_its_own_way(self, tmp_path: Path) -> None:
        writer = _FencedWriter(FolderWriter("20240101_000000", Disk()))
        writer.claims[tmp_path] = b""
        writer.write(tmp_path, 1, {"a.txt": np.frombuffer(b"text", np.uint8)})
        (found,) = tmp_path.rglob("a.txt")
        assert found.read_bytes() == b"text"

    def test_a_folder_that_is_not_on_the_node_is_no_fault_of_the_row(self, tmp_path: Path) -> None:
        writer = _FencedWriter(StoreSink(tmp_path / "s", self.schema).writer())
        with pytest.raises(SourceNotFound, match="every node mounts"):
            writer.check(tmp_path / "elsewhere")


class TestRefused:
    """What cannot work is said at once, and names what to do."""

    def test_without_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtra, match=r"penstock\[ray\]"):
            Ray()

    def test_a_stream(self, tmp_path: Path) -> None:
        make_sa1b_tar(tmp_path / "a.tar.gz", 2, mode="w:gz", **SMALL)
        config = ConvertConfig(
            tar_path=(str(tmp_path / "a.tar.gz"),), output_dir=tmp_path / "s", image_size=64, launcher="ray"
        )
        with pytest.raises(UsageError, match="plain TARs"):
            convert_sa1b_tar(config)
        assert not (tmp_path / "s").exists()

    def test_settings_that_contradict_each_other(self, tmp_path: Path) -> None:
        for options in ({"launcher": "ray", "workers": 0}, {"ray_address": "auto"}):
            with pytest.raises(UsageError, match=r"launcher|ray-address"):
                ConvertConfig(tar_path=("a.tar",), output_dir=tmp_path / "s", **options)  # type: ignore[arg-type]

    def test_a_device_that_no_node_has(self, ray_: Callable[..., Ray], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"each needs 1 CPU and 8 GPU, the cluster has CPU 2, GPU 1"):
            job(tmp_path / "s", Numbers(3), launcher=ray_(start_s=0.5, gpus=8), device="cuda").run()

    @pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:http"])
    def test_an_address_where_no_cluster_is(self, address: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=f"no cluster at {address}"):
            job(tmp_path / "s", Numbers(3), launcher=Ray(address=address)).run()
