"""The seed's programs of mask refinement: their words, their profiles, their matcher."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from penstock.compat.refine import SAM2MaskMatcher, Script, ScriptConfig, lines, main, self_test, write_example
from penstock.errors import BadData, UsageError
from penstock.readers.pth import load_id_file, save_id_map
from penstock.store.manifest import Manifest
from tests.refine_data import MaskProposer

COMPAT = Path(__file__).parents[2] / "compat"
TICK, CROSS = "\u2713", "\u2717"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_example(tmp_path / "data")
    return tmp_path / "data"


def flags(root: Path, *more: str) -> list[str]:
    return ["--data_root", str(root), "--proposer", "classical", "--sequential", "--quiet", *more]


def test_the_lines_are_the_documents(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("v3", flags(scenes)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "=== \u6279\u91cfSAM2 Mask\u5339\u914d\u5904\u7406 ==="
    assert shown[1] == f"\u6570\u636e\u6839\u76ee\u5f55: {scenes}"
    assert "\u627e\u5230 2 \u4e2a\u573a\u666f" in shown
    (line,) = [one for one in shown if one.startswith(f"{TICK} scene001: 1/1 \u6210\u529f, Invalid: ")]
    assert ", SAM\u5339\u914d: " in line
    assert ", \u5408\u5e76: " in line
    at = shown.index("=== \u6279\u91cf\u5904\u7406\u5b8c\u6210 ===")
    assert shown[at + 1] == "\u6240\u6709\u573a\u666f\u5904\u7406\u5b8c\u6210\uff01"
    assert shown[at + 2] == (
        "\u8f93\u51fa\u6587\u4ef6\u4fdd\u5b58\u5728\u5404\u573a\u666f\u7684 obj_ids_refine/ \u76ee\u5f55\u4e0b"
    )


def test_a_model_and_gpus_are_said_as_in_the_document() -> None:
    config = {"proposer": "sam2", "model_cfg": "sam2_hiera_l.yaml", "checkpoint": None, "data_root": "/path/to/data/"}
    said = "\n".join(lines().start({"config": config, "gpus": 2, "scenes_found": 150})).splitlines()
    assert said[2:] == [
        "\u6a21\u578b\u914d\u7f6e: sam2_hiera_l.yaml",
        "\u6a21\u578b\u6743\u91cd: model_zoo/sam/sam2_hiera_large.pt",
        "\u4f7f\u7528\u6a21\u578b\u6587\u4ef6: model_zoo/sam/sam2_hiera_large.pt",
        "\u68c0\u6d4b\u5230 2 \u4e2aGPU",
        "\u627e\u5230 150 \u4e2a\u573a\u666f",
    ]


def test_weights_are_said_to_be_those_of_the_model() -> None:
    config = {"proposer": "sam2", "checkpoint": None, "data_root": "data"}
    known = {"configs/sam2.1/sam2.1_hiera_t.yaml": "model_zoo/sam/sam2.1_hiera_tiny.pt", "a/model": "a/model"}
    for model_cfg, weights in known.items():
        notes = {"config": {**config, "model_cfg": model_cfg}, "gpus": 0, "scenes_found": 1}
        assert weights in lines().start(notes)[3]


def test_a_stopped_run_does_not_say_that_all_is_done() -> None:
    one = {
        "scene": "a",
        "frames": 5,
        "done": 0,
        "failed": 0,
        "invalid": 0.0,
        "sam_matched": 0,
        "merged": 0,
        "objects": 0,
    }
    notes: dict[str, Any] = {"scenes": [one], "total": one, "config": {"output_dir_name": "obj_ids_refine"}}
    said = lines().finish(notes)
    assert said[0].startswith(f"{CROSS} a: 0/5")
    assert "\u5b8c\u6210\uff01" not in "".join(said)


def test_each_program_is_its_profile(scenes: Path) -> None:
    known = {}
    for script in get_args(Script):
        config = ScriptConfig(data_root=scenes).to_refine(script)
        known[script] = (config.matcher, config.profile, config.processes_per_gpu)
    assert known == {"v1": ("overlap", "seed", 1), "v2": ("overlap", "penstock", 2), "v3": ("prompt", "penstock", 1)}
    assert ScriptConfig(data_root=scenes, processes_per_gpu=3).to_refine("v1").processes_per_gpu == 3
    assert main("v1", flags(scenes)) == 0
    identity: Any = Manifest.load(scenes / ".penstock/obj_ids_refine").identity
    assert (identity["settings"]["matcher"], identity["settings"]["profile"]) == ("overlap", "seed")


def test_misuse_exits_with_2(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("v2", ["--no_such_flag"]) == 2
    assert main("v2", flags(scenes / "nowhere")) == 2
    assert main("v2", []) == 2
    capsys.readouterr()


def test_the_seeds_test_and_its_start_script_run(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert self_test() == 0
    assert "all is well" in capsys.readouterr().out
    command = ["bash", str(COMPAT / "run_batch_refining.sh")]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(scenes)}
    bare = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert bare.returncode == 2
    assert "DATA_ROOT" in bare.stderr
    done = subprocess.run([*command, *flags(scenes)[1:]], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


class TestMatcher:
    """`SAM2MaskMatcher`, as the seed's own scripts call it."""

    @pytest.fixture(autouse=True)
    def _frame(self, scenes: Path) -> None:
        self.path = scenes / "scene001/obj_ids/frame_000000.jpg.pth"
        self.picture = Image.open(scenes / "scene001/images/frame_000000.jpg").convert("RGB")
        self.matcher = SAM2MaskMatcher(
            points_per_side=8, pred_iou_thresh=0.7, iou_threshold=0.3, proposer=MaskProposer()
        )

    def test_a_record_for_each_id(self) -> None:
        ids, valid = self.matcher.load_ground_truth_masks(self.path)
        assert valid == [3, 8]
        np.testing.assert_array_equal(ids, load_id_file(self.path))
        found = self.matcher.process_image_with_ground_truth(np.asarray(self.picture), self.path)
        assert [one["ground_truth_id"] for one in found] == valid
        total = sum(one["segmentation"].astype(int) for one in found)
        assert int(total.max()) == 1
        for one in found:
            assert one["area"] == int(one["segmentation"].sum())
            assert one["is_fallback"]  # no automatic mask was proposed
            assert not one["is_merged"]
        assert self.matcher.calculate_invalid_area_ratio(found, ids) == pytest.approx(float((total == 0).mean()))
        assert self.matcher.calculate_invalid_area_ratio([], ids) == 1.0

    def test_another_size_and_crops_are_refused(self) -> None:
        with pytest.raises(BadData, match="expected a picture of"):
            self.matcher.process_image_with_ground_truth(self.picture.resize((9, 9)), self.path)
        self.path.write_bytes(save_id_map(np.zeros((72, 96), np.int32)))
        assert self.matcher.process_image_with_ground_truth(self.picture, self.path) == []
        with pytest.raises(UsageError, match="crop_n_layers"):
            SAM2MaskMatcher(crop_n_layers=1)
