"""Commands of saved sequences through the real entry point: save, verify, report, show, and their refusals."""

import json
from pathlib import Path

import pytest

from penstock.cli import main
from tests.sequence_data import write_lasot


@pytest.fixture
def saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Three sequences of a small LaSOT, saved by the command."""
    write_lasot(tmp_path / "lasot")
    assert main(save_arguments(tmp_path)) == 0
    capsys.readouterr()
    return tmp_path / "saved"


def save_arguments(folder: Path, *more: str) -> list[str]:
    arguments = ["--source", f"lasot:{folder}/lasot", "--num-sequences", "3", "--timestamp", "20260101_000000"]
    draw = ["--max-gap", "5", "--min-interval", "6", "--workers", "0", "--quiet"]
    return ["sequence", "save", *arguments, *draw, "--output", str(folder / "saved"), *more]


def output_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_saving_again_does_nothing_and_says_so(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(save_arguments(saved.parent, "--json"))
    found = output_of(capsys)
    assert found["command"] == "sequence save"
    assert found["rows"]["skipped"] == 3  # type: ignore[index]  # a mapping
    assert sorted(path.name for path in saved.glob("seq_*")) == [f"seq_00000{n}_20260101_000000" for n in (1, 2, 3)]


def test_another_configuration_is_refused_with_the_difference(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(save_arguments(saved.parent, "--seed", "9")) == 2
    assert "seed" in capsys.readouterr().err


def test_verify_finds_a_changed_file(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(saved), "--json", "--quiet"]) == 0
    assert output_of(capsys)["layout"] == "sequences"
    (saved / "seq_000002_20260101_000000" / "annotations.json").write_text("{}")
    assert main(["verify", str(saved), "--quiet"]) == 1
    assert "annotations.json" in capsys.readouterr().out


def test_a_saved_set_is_a_source(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"saved:{saved}", "--json"]) == 0
    assert output_of(capsys)["rows"] == 3


def test_report_and_picture(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sequence", "report", str(saved), "--json"]) == 0
    page = Path(str(output_of(capsys)["output"]))
    assert page.read_text(encoding="utf-8").startswith("<!")
    assert (
        main(["sequence", "report", str(saved), "--compare", str(saved), "--output", str(saved.parent / "two.html")])
        == 0
    )
    first = next(iter(saved.glob("seq_*")))
    assert main(["sequence", "show", str(first), "--output", str(saved.parent / "x.gif")]) == 0
    assert (saved.parent / "x.gif").read_bytes().startswith(b"GIF8")


def test_the_configuration_may_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lasot(tmp_path / "lasot")
    (tmp_path / "s.toml").write_text(
        f'sources = ["lasot:{tmp_path}/lasot"]\nnum_sequences = 50\noutput = "{tmp_path}/out"\n'
        "[draw]\nmax_gap = 5\n[save]\nworkers = 0\nsave_images = false\n"
    )
    monkeypatch.setenv("PENSTOCK_SEQUENCE_NUM_SEQUENCES", "2")
    assert main(["sequence", "save", "--config", str(tmp_path / "s.toml"), "--quiet"]) == 0
    assert len(list((tmp_path / "out").glob("seq_*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "lasot:{}/nowhere", "--output", "{}/out"], "nowhere"),
        (["--output", "{}/out"], "sources"),
        (["--source", "lasot:{}/lasot"], "output"),
        (["--source", "lasot:{}/lasot", "--output", "{}/out", "--weights", "1", "2"], "weights"),
        (["--source", "lasot:{}/lasot", "--output", "{}/out", "--mode", "trident"], "max_gap"),
        (["--config", "{}/none.toml", "--output", "{}/out"], "none.toml"),
        (["--source", "lasot:{}/lasot", "--output", "{}/out", "--timestamp", "now"], "YYYYmmdd_HHMMSS"),
    ],
)
def test_misuse_is_said_and_touches_nothing(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lasot(tmp_path / "lasot")
    assert main(["sequence", "save", "--workers", "0", *(word.format(tmp_path) for word in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_and_its_refusals(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = saved.parent / "mot"
    assert (
        main(["export", str(saved), "--format", "mot", "--output", str(out), "--option", "split=test", "--quiet"]) == 0
    )
    assert list((out / "test").glob("seq_000001*/gt/gt.txt"))
    for more, message in (
        (["--format", "mot", "--output", str(out)], "not empty"),
        (["--format", "mott", "--output", str(out)], "known: coco-video"),
        (["--format", "mot", "--output", str(out), "--option", "split"], "name=value"),
        (["--format", "mot", "--output", str(out), "--option", "x=1"], "no option x"),
    ):
        assert main(["export", str(saved), *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(saved.parent / "lasot"), "--format", "mot", "--output", str(saved.parent / "no")]) == 2
