"""The doctor: on a machine with nothing, with half, with all; with faults of every kind. Never a traceback."""

import json
from pathlib import Path

import numpy as np
import pytest

from penstock import doctor_machine, registry
from penstock.cli import main
from penstock.doctor import Diagnosis, examine
from penstock.settings import KEYS
from penstock.testing import encode_picture, make_sa1b_tar
from tests.readers.test_coco_instances import write_coco_instances
from tests.readers.test_openimages import write_openimages

pytestmark = pytest.mark.usefixtures("no_settings")
SHARED = Path(__file__).parents[2] / "shared" / "data"


def named(diagnosis: Diagnosis, name: str) -> list[tuple[str, str]]:
    """Status and message of what is said about something."""
    return [(one.status, one.message) for one in diagnosis.verdicts if one.name == name]


def test_nothing_is_set() -> None:
    diagnosis = examine()
    assert not diagnosis.is_sound
    assert named(diagnosis, "all") == [("fail", "no dataset is set")]
    assert named(diagnosis, "file")[0][0] == "off"
    lines = list(diagnosis.lines())
    assert lines[-1] == "not ready: all"
    assert any("docs/settings.md" in line for line in lines)


def test_an_old_local_py_is_pointed_at(tmp_path: Path) -> None:
    old = tmp_path / "work" / "lib" / "train" / "admin" / "local.py"
    old.parent.mkdir(parents=True)
    old.write_text("raise SystemExit('run')\n")
    (verdict,) = (one for one in examine().verdicts if one.name == "file")
    assert verdict.next_step == "penstock settings import lib/train/admin/local.py"


def test_half_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco_instances(tmp_path / "coco")
    write_openimages(tmp_path / "oi")
    monkeypatch.setenv("PENSTOCK_COCO_DIR", str(tmp_path / "coco"))
    monkeypatch.setenv("PENSTOCK_OPENIMAGES_DIR", str(tmp_path / "oi"))
    diagnosis = examine()
    assert [one.message for one in diagnosis.verdicts if one.status == "fail"] == []
    assert named(diagnosis, "coco_dir")[0][1].startswith("coco-instances: ")
    assert "lasot_dir" in named(diagnosis, "not set")[0][1]
    assert list(diagnosis.lines())[-1].startswith("ready")
    assert main(["doctor", "--quiet"]) == 0


def test_a_dataset_with_several_splits_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train2017", "val2017"):
        write_coco_instances(tmp_path / "coco", split=split)
    monkeypatch.setenv("PENSTOCK_COCO_DIR", str(tmp_path / "coco"))
    diagnosis = examine()
    assert diagnosis.is_sound
    ((status, message),) = named(diagnosis, "coco_dir")
    assert status == "warn"
    assert "train2017, val2017" in message
    (how,) = (one.next_step for one in diagnosis.verdicts if one.name == "coco_dir")
    assert f"penstock info 'coco-instances:{tmp_path / 'coco'}?" in how


def test_faults_are_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco_instances(tmp_path / "data" / "coco")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENSTOCK_COCO_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PENSTOCK_LASOT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PENSTOCK_SAV_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("PENSTOCK_LASOTT_DIR", "x")
    diagnosis = examine()
    assert not diagnosis.is_sound
    assert f"Did you mean {tmp_path}/data/coco?" in named(diagnosis, "coco_dir")[0][1]
    assert "no such folder" in named(diagnosis, "lasot_dir")[0][1]
    assert "it is no folder" in named(diagnosis, "sav_dir")[0][1]
    assert "PENSTOCK_LASOTT_DIR" in named(diagnosis, "variables")[0][1]
    assert all(one.next_step for one in diagnosis.verdicts if one.status == "fail")


def test_a_broken_settings_file_is_a_fault_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "work" / "penstock.toml").write_text("[paths\n")
    assert named(examine(), "file")[0][0] == "fail"


def test_rows_that_cannot_be_read_and_broken_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco_instances(tmp_path / "coco")
    for path in (tmp_path / "coco").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    monkeypatch.setenv("PENSTOCK_COCO_DIR", str(tmp_path / "coco"))
    faults = [message for status, message in named(examine(), "coco_dir") if status == "fail"]
    assert len(faults) == 1
    assert "rows read cannot be used" in faults[0]
    for path in (tmp_path / "coco" / "annotations").iterdir():
        path.write_text("{")
    assert "broken JSON" in named(examine(), "coco_dir")[0][1]


def test_swapped_channels_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for number, path in enumerate(sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((128, 128))).astype(np.float32)
        mask = np.full((128, 128), 255, np.float32)
        np.savez(tmp_path / f"masklet_data_{number:05d}.npz", frame1=pixels, mask1=mask, frame2=pixels, mask2=mask)
    monkeypatch.setenv("PENSTOCK_MASKLETS_DIR", str(tmp_path))
    found = named(examine(), "masklets_dir")
    assert any("swapped" in message for status, message in found if status == "warn"), found


def test_a_store_and_its_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sa1b_tar(tmp_path / "s.tar", 2)
    arguments = [
        "--tar-path",
        str(tmp_path / "s.tar"),
        "--output-dir",
        str(tmp_path / "set"),
        "--workers",
        "0",
        "--quiet",
    ]
    assert main(["convert", "sa1b-tar", *arguments]) == 0
    monkeypatch.setenv("PENSTOCK_BINARY_DATA_DIR", str(tmp_path / "set"))
    assert named(examine(), "binary_data_dir")[0] == ("ok", "store: 2 rows")
    monkeypatch.setenv("PENSTOCK_BINARY_DATA_DIR", str(tmp_path))
    assert named(examine(), "binary_data_dir")[0][0] == "fail"


def test_packages_missing_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"gone": ("penstock_gone", "video", "videos"), "bad": ("tests.data.broken_package", "", "nothing")}
    monkeypatch.setattr(doctor_machine, "PACKAGES", known)

    def importing(name: str) -> object:
        if name == "penstock_gone":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor_machine.importlib, "import_module", importing)
    found = {one.name: one for one in doctor_machine.check_packages()}
    assert (found["gone"].status, found["gone"].next_step) == ("off", "pip install 'penstock[video]'")
    assert found["bad"].status == "fail"
    assert "nms" in found["bad"].message


def test_a_reader_of_a_broken_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLES["readers"], "broken", "penstock.nowhere:Reader")
    assert named(examine(), "reader broken")[0][0] == "fail"


def test_disks_are_measured_and_full_paths_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "PROBE_BYTES", 8 << 20)
    found = list(doctor_machine.check_disks({"cache_dir": tmp_path / "not" / "yet"}, measure=True))
    assert [one.name for one in found] == ["cache_dir", "cache_dir speed"]
    assert "MB/s" in found[1].message


def test_plain_pictures_of_another_kind_are_no_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sa_1.jpg").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8)))
    monkeypatch.setenv("PENSTOCK_SA1B_DIR", str(tmp_path))
    assert all(status == "fail" for status, _ in named(examine(), "sa1b_dir"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not there")
def test_all_of_the_shared_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    places = {
        "lasot_dir": "lasot", "got10k_dir": "got10k/train", "coco_dir": "coco_panoptic", "refcoco_dir": "refcoco",
        "openimages_dir": "openimages", "sa1b_dir": "sa1b_like", "sav_dir": "sav", "scenes_dir": "scenes",
    }  # fmt: skip
    for name, folder in places.items():
        monkeypatch.setenv(KEYS[name].variable, str(SHARED / folder))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in places:
        assert any(one["name"] == name and one["status"] == "ok" for one in found["checks"]), name
    warned = {one["name"] for one in found["checks"] if one["status"] == "warn" and one["section"] == "datasets"}
    assert warned <= {"sa1b_dir", "sav_dir"}, (
        "photos without masks, masks without photos, a video that could not be had"
    )
