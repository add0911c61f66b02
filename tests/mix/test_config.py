"""Mixtures from TOML, and the commands over them."""

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.cli import main
from penstock.errors import SourceNotFound, UsageError
from penstock.mix_config import load_mix_config, mix_loader, open_mix
from penstock.mix_loader import read_quarantine
from penstock.mix_tally import Budget
from penstock.mix_views import Views
from penstock.samplers.pairs import PairRule
from tests.readers.test_masklets import write_masklets
from tests.readers.test_sa1b import write_sa1b
from tests.readers.test_sav import write_train

FULL = """
batch_size = 4
seed = 3
epoch_rows = 40
threads = 1
quarantine = "bad"

[views]
size = 8
grid = 2

[budget]
max_fraction = 0.5

[[source]]
name = "sav"
source = "masklets:{root}/sav"
weight = 3

[[source]]
name = "sa1b"
source = "sa1b:{root}/sa1b"
weight = 1
max_images = 2

[[source]]
name = "openimages"
source = "openimages:{root}/nowhere"
weight = 4
missing = "drop"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs, masks of photos, and a source that is not there."""
    write_masklets(tmp_path / "sav")
    write_sa1b(tmp_path / "sa1b")
    (tmp_path / "mix.toml").write_text(FULL.format(root=tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mix.toml"


def test_a_file_becomes_a_loader(config: Path) -> None:
    settings = load_mix_config(config)
    assert (settings.views, settings.budget) == (Views(size=8, grid=2), Budget(max_fraction=0.5))
    opened = open_mix(settings)
    assert [one.name for one in opened.dropped] == ["openimages"]
    assert [part.name for part in opened.mixed.parts] == ["sav", "sa1b"]
    assert opened.mixed.plan.weights == [3, 1]
    loader = mix_loader(settings, opened.mixed, rank=1, world_size=2)
    batches = list(loader)
    assert [np.asarray(batch["image1"]).shape for batch in batches] == [(2, 8, 8, 3)] * 10
    assert loader.report()["sav"]["pairs"] == loader.report()["sav"]["drawn"]


def test_a_mapping_is_a_configuration_too() -> None:
    pairs = {"min_gap": 1, "max_gap": 2, "unit": "seconds", "min_area": 9}
    settings = load_mix_config({"source": [{"name": "a", "source": "sav:x", "pairs": pairs}], "epochs": 2})
    assert settings.source[0].pairs == PairRule(min_gap=1, max_gap=2, unit="seconds", min_area=9)
    assert settings.source[0].missing == "error"


SOURCE = {"name": "a", "source": "sav:x"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "source: not given"),
        ({"source": [{"name": "a"}]}, r"source\[0\].source: not given"),
        ({"source": [SOURCE], "sed": 1}, "sed: no such key; there are source, batch_size, seed"),
        ({"source": [{**SOURCE, "wight": 1}]}, r"source\[0\].wight: no such key"),
        ({"source": [SOURCE], "seed": "x"}, "seed: expected int, got 'x'"),
        ({"source": [SOURCE], "seed": True}, "seed: expected int, got True"),
        ({"source": [SOURCE], "ends": "never"}, "ends: expected .*, got 'never'"),
        ({"source": [{**SOURCE, "missing": "skip"}]}, r"source\[0\].missing: expected .*, got 'skip'"),
        ({"source": [SOURCE], "views": {"size": 0}}, "views: Views: expected size of 1 or more"),
        ({"source": [SOURCE], "budget": {"window": 0}}, "budget: Budget"),
        ({"source": [{**SOURCE, "pairs": {"unit": "miles"}}]}, r"source\[0\].pairs.unit: expected"),
        ({"source": [{**SOURCE, "pairs": {"min_gap": 5, "max_gap": 4}}]}, r"source\[0\].pairs: PairRule"),
        ({"source": SOURCE}, "source: expected a list of tables"),
        ({"source": ["a"]}, r"source\[0\]: expected a table, got 'a'"),
        ({"source": []}, "mix: source: expected one or more"),
        ({"source": [{**SOURCE, "missing": "skip"}]}, "expected error or drop or drop-keep-shares"),
        ({"source": [{**SOURCE, "weight": float("inf")}]}, r"source\[0\]: weight: expected above 0"),
        ({"source": [{**SOURCE, "weight": float("nan")}]}, r"source\[0\].weight: expected int or float, got nan"),
        ({"source": [{**SOURCE, "weight": 0}]}, r"source\[0\]: weight: expected above 0"),
        ({"source": [SOURCE], "batch_size": 0}, "mix: batch_size: expected 1 or more, got 0"),
        ({"source": [SOURCE], "threads": 0}, "threads: expected 1 or more, got 0"),
        ({"source": [SOURCE], "epochs": 0}, "epochs: expected 1 or more, got 0"),
    ],
)
def test_what_is_wrong_is_said_by_its_key(content: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_mix_config(content)


def test_a_file_that_is_not_there_or_no_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such file"):
        load_mix_config(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("a = ")
    with pytest.raises(UsageError, match="no TOML"):
        load_mix_config(tmp_path / "x.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_mix_config(tmp_path)


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints with --json; it succeeds."""
    code = main([*words, "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    found: dict[str, Any] = json.loads(out)
    assert found["command"] == " ".join(words[:2])
    return found


def test_dry_run_plans_without_reading_a_picture(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in config.parent.rglob("*.jpg"):
        path.write_bytes(b"")
    found = json_of(capsys, "loader", "dry-run", str(config))
    drawn = open_mix(load_mix_config(config)).mixed.plan.draw(0, 40).parts.tolist()
    assert [(one["name"], one["samples"]) for one in found["sources"]] == [
        ("sav", drawn.count(0)),
        ("sa1b", drawn.count(1)),
    ]
    assert (found["samples"], found["steps"]) == (40, 10)
    assert found["dropped"][0]["name"] == "openimages"
    assert main(["loader", "dry-run", str(config)]) == 0
    text = capsys.readouterr().out
    assert "Left out: openimages" in text
    assert "Total datasets: 2" in text
    assert f"  Dataset 0: {drawn.count(0)} samples (sav: {drawn.count(0) / 40:.2%}, each of 3 rows" in text
    assert "Dataset built: 40 total samples" in text


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_videos_that_are_not_there_are_said_before_and_counted_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SA-V with 10 rows of one video, one of them hidden, and 5 of another whose MP4 is not there."""
    write_train(tmp_path)
    (tmp_path / "sav_train/sav_001/sav_001002.mp4").unlink()
    (tmp_path / "mix.toml").write_text(f'[[source]]\nname = "sav"\nsource = "sav:{tmp_path}?annotations=manual"\n')
    (said,) = json_of(capsys, "loader", "dry-run", str(tmp_path / "mix.toml"))["sources"][0]["problems"]
    assert said.startswith("sav_train/sav_001: no MP4 of sav_001002: their rows")
    assert main(["loader", "dry-run", str(tmp_path / "mix.toml")]) == 0
    assert f"    problems in its files: 1, the first: {said}" in capsys.readouterr().out
    settings = load_mix_config({
        "source": [{"name": "sav", "source": f"sav:{tmp_path}?annotations=manual"}],
        "views": {"size": 4}, "quarantine": tmp_path / "bad", "max_attempts": 100,
    })  # fmt: skip
    loader = mix_loader(settings, open_mix(settings).mixed)
    keys = {str(batch["key1"][0]) for batch in loader}
    report = loader.report()["sav"]
    assert report["substituted"] == 6  # 5 without a video, 1 whose mask is empty
    assert report["failed"] == {"BadData": sum(report["failed"].values())}
    assert {key.partition("/")[0] for key in keys} == {"sav_000001"}
    assert len(read_quarantine(tmp_path / "bad")["sav"]) == 6


def test_explain_names_the_sample_and_its_stand_ins(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "loader", "explain", str(config), "0", "39")
    mixed = open_mix(load_mix_config(config)).mixed
    assert found["positions"] == [mixed.explain(0), mixed.explain(39)]
    assert main(["loader", "explain", str(config), "5"]) == 0
    assert mixed.key(5) in capsys.readouterr().out
    assert main(["loader", "explain", str(config), "--position", "-3"]) == 2


def test_bench_reads_and_counts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "loader", "bench", str(config), "--batches", "12", "--threads", "2")
    assert sum(one["drawn"] for one in found["sources"].values()) == 48
    assert found["samples_per_s"] > 0
    assert main(["loader", "bench", str(config), "--batches", "2"]) == 0
    assert "samples/s on 1 threads" in capsys.readouterr().out
    assert main(["loader", "bench", str(config), "--batches", "0"]) == 2
    assert main(["loader", "bench", str(config), "--threads", "0"]) == 2


def test_an_iterator_that_is_closed_early_leaves_no_thread_behind(
    config: Path, loader_threads: Callable[[], list[threading.Thread]]
) -> None:
    """A thread that decodes while the interpreter ends aborts the process."""
    settings = load_mix_config(config)
    with closing(iter(mix_loader(settings, open_mix(settings).mixed))) as batches:
        next(batches)
        assert loader_threads()
    assert not loader_threads()
    assert main(["loader", "bench", str(config), "--batches", "1"]) == 0
    assert not loader_threads()


def test_a_quarantine_that_is_a_file_is_refused(config: Path) -> None:
    (config.parent / "bad").write_text("")
    settings = load_mix_config(config)
    with pytest.raises(UsageError, match="expected a folder"):
        mix_loader(settings, open_mix(settings).mixed)
    assert main(["loader", "explain", str(config), "0"]) == 2


def test_bench_of_rotten_data_fails_and_says_why(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in config.parent.rglob("*.npz"):
        path.write_bytes(b"rotten")
    assert main(["loader", "bench", str(config), "--batches", "9"]) == 1
    assert "sav: all 8 rows tried" in capsys.readouterr().err
