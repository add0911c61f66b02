"""`penstock bench loader`: every format is measured, and what does not fit is said."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from penstock.cli import main
from penstock.convert import ConvertConfig, convert_sa1b_tar
from penstock.testing import make_sa1b_tar

TINY: dict[str, Any] = {"feature_size": 4, "channels": 8, "picture_size": 64, "size_hw": (40, 56),
                        "edge_sizes": (256,), "map_sizes": (4,)}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_sa1b_tar(tmp_path / "a.tar", 6, **TINY)
    config = ConvertConfig(tar_path=(str(tmp_path / "a.tar"),), output_dir=tmp_path / "store", image_size=64, workers=0)
    assert convert_sa1b_tar(config).done == 6
    return tmp_path / "store"


@pytest.mark.parametrize("kind", ["binary", "tar_shard"])
def test_a_set_is_measured(store: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = {"binary": ["--binary_data_path", str(store)], "tar_shard": ["--data-path", str(store.parent / "a.tar")]}[
        kind
    ]
    arguments = ["bench", "loader", *path, "--data-format", kind, "--batch-size", "2", "--seconds", "0.05"]
    assert main([*arguments, "--fields", "edges,weights,bbox", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "ok"
    assert found["samples_per_s"] > 0
    assert found["samples"] % 2 == 0
    assert found["bytes_per_sample"] == 64 * 64 * 3 + 4 * 8 * 16 + 256 * 256 + 2 * 4 * 16 + 12
    assert found["data"]["rows"] == 6
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "samples/s" in text
    assert ("warm" in text) == (kind == "binary")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--fields", "edges,depth"], "edges, weights, bbox, got depth"),
        (["--seconds", "0"], "positive"),
        (["--batch-size", "7"], "batch-size: expected at most the 6 rows of"),
        (["--batch-size", "0"], "batch-size: expected 1 or more, got 0"),
        (["--num-workers", "0"], "num-workers: expected 1 or more, got 0"),
        (["--level", "P3_S8"], "penstock teacher"),
        (["--data-format", "npz_dir"], "binary_data_path"),
    ],
)
def test_what_does_not_fit_is_said(
    store: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "loader", "--binary-data-path", str(store), *words]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "train" not in said.replace(str(store), "")
