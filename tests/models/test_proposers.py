"""Proposers by their spec."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2")

from penstock import registry
from penstock.errors import SourceNotFound, UsageError
from penstock.models.proposers import open_proposer
from penstock.refining.classical import Classical
from penstock.refining.proposals import from_masks
from penstock.refining.saved import Caching, SavedProposals, save_proposals
from penstock.refining.types import Proposals
from tests.models.sam2_data import frame_of, picture, prompts_of


def one(size_hw: tuple[int, int]) -> Proposals:
    return from_masks(size_hw, np.ones((1, *size_hw), bool), ids=np.array([5]))


def test_classical_needs_nothing() -> None:
    found = open_proposer("classical", model_cfg="sam2_hiera_l.yaml")
    assert isinstance(found, Classical)
    assert found.device == "cpu"


def test_a_folder(tmp_path: Path) -> None:
    frame = frame_of(picture(20, 30))
    save_proposals(tmp_path, frame.key, one((20, 30)))
    found = open_proposer(f"folder:{tmp_path}", device="cpu")
    assert isinstance(found, SavedProposals)
    assert found.encode([frame])[0].prompted(prompts_of(frame)).ids.tolist() == [5]


def test_sam2_by_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from penstock.models.sam2 import Sam2Proposer

    found = open_proposer("sam2:random:tiny:4", device="cpu", box_nms_thresh=0.5, points_per_batch=9)
    assert isinstance(found, Sam2Proposer)
    assert found.points_per_batch == 9
    assert found.identity()["box_nms_thresh"] == 0.5
    assert (
        found.identity()
        == open_proposer("sam2", device="cpu", model_cfg="random:tiny:4", box_nms_thresh=0.5).identity()
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFound, match=r"model_zoo/sam/sam2_hiera_large\.pt"):
        open_proposer(device="cpu")
    with pytest.raises(UsageError, match="names another model"):
        open_proposer("sam2:t", model_cfg="random:tiny")


def test_a_cache_does_not_open_the_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from penstock.models.sam2 import Sam2Proposer

    frame = frame_of(picture(20, 30))
    for is_first in (True, False):
        found = open_proposer("sam2:random:tiny", device="cpu", cache=tmp_path / "cache")
        assert isinstance(found, Caching)
        assert isinstance(found.proposer, Sam2Proposer)
        assert len(found.encode([frame])[0].prompted(prompts_of(frame)))
        assert (found.proposer._network is not None) == is_first
    assert isinstance(open_proposer("classical", cache=tmp_path / "other"), Caching)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("sam3", {}, "proposer 'sam3': expected one of classical, folder, sam2"),
        ("classical", {"device": "cuda"}, "runs on the CPU"),
        ("classical:fast", {}, "takes no more"),
        ("classical", {"checkpoint": Path("a.pt")}, "checkpoint is for sam2"),
        ("classical", {"oom_to_cpu": True}, "oom_to_cpu is for sam2"),
        ("folder:", {}, "expected folder:DIR"),
        ("folder:/nowhere", {}, "found none"),
        ("sam2", {"model_cfg": "sam2_hiera_x.yaml"}, "model-cfg"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, options: dict[str, Any], message: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match=message):
        open_proposer(spec, **options)


def test_proposers_are_registered() -> None:
    described = registry.describe_names("proposers")
    assert sorted(described) == ["classical", "folder", "sam2"]
    assert all(described.values())
