"""Commands about data: info, list, settings, doctor, through the real entry point."""

import json
from pathlib import Path

import numpy as np
import pytest

from penstock import registry
from penstock.cli import main
from penstock.testing import encode_picture

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encode_picture(np.zeros((4, 6 + number, 3), np.uint8), "png"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8")
    return folder


def output_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The one JSON object on stdout."""
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_info_of_a_dataset(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"folder:{pictures}", "--json"]) == 0
    found = output_of(capsys)
    assert (found["kind"], found["rows"], found["groups"]) == ("folder", 4, 1)
    assert [field["name"] for field in found["schema"]] == ["image", "path"]  # type: ignore[attr-defined]
    sample = found["sample"]
    assert isinstance(sample, dict)
    assert (sample["rows"], sample["failed"], sample["width"]) == (4, 1, [6, 8])
    assert "broken.jpg" in str(sample["failures"])
    assert main(["info", f"folder:{pictures}"]) == 0
    assert "4 rows in 1 groups" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["folder:{}/nowhere", "nothing:{}", "folder:{}?x=1", "{}/nowhere"])
def test_info_of_what_is_not_there(pictures: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name.format(pictures), "--json"]) == 2
    assert output_of(capsys)["status"] == "failed"


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("readers", "models", "exporters", "stages", "launchers"):
        assert main(["list", what, "--json"]) == 0
        assert list(output_of(capsys)[what]) == registry.names(what)  # type: ignore[call-overload]  # a mapping
    assert main(["list", "readers"]) == 0
    text = capsys.readouterr().out
    assert "coco-panoptic" in text
    assert "cannot be imported" not in text
    assert main(["list", "everything"]) == 2


def test_settings_come_in_go_out_and_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "local.py"
    old.write_text(
        "class EnvironmentSettings:\n    def __init__(self):\n"
        f"        self.lasot_dir = '{tmp_path}/lasot'\n        self.coco_dir = ''\n        self.davis_dir = find()\n"
    )
    assert main(["settings", "import", str(old), "--json"]) == 0
    found = output_of(capsys)
    assert found["status"] == "partial"
    assert "find()" in str(found["problems"])
    assert main(["settings", "import", str(old)]) == 2
    assert main(["settings", "import", str(old), "--replace"]) == 0
    capsys.readouterr()
    assert main(["settings", "show", "--json"]) == 0
    shown = output_of(capsys)["settings"]["lasot_dir"]  # type: ignore[index]  # a mapping
    assert shown == {"value": f"{tmp_path}/lasot", "origin": str(tmp_path / "work" / "penstock.toml")}
    assert main(["settings", "show"]) == 0
    assert f"{tmp_path}/lasot" in capsys.readouterr().out
    assert main(["settings", "import", str(tmp_path / "nowhere.py")]) == 2


def test_a_local_py_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    old = tmp_path / "local.py"
    old.write_text("class EnvironmentSettings:\n    def __init__(self):\n        self.lasot_dir = find()\n")
    assert main(["settings", "import", str(old)]) == 1


def test_the_doctor_with_nothing_set_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 1
    found = output_of(capsys)
    assert found["status"] == "failed"
    assert [one["name"] for one in found["checks"] if one["status"] == "fail"] == ["all"]  # type: ignore[attr-defined]
    assert main(["doctor", "--quiet"]) == 1
    text = capsys.readouterr()
    assert "PENSTOCK_LASOT_DIR" in text.out
    assert text.out.splitlines()[-1] == "not ready: all"
    assert not text.err
