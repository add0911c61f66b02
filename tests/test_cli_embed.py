"""Commands of the embedding system through the real entry point, on a small COCO and the small double of a model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from penstock.cli import main
from penstock.store import open_store, write_store
from tests.readers.test_coco_panoptic import write_coco_panoptic


def arguments(folder: Path, *more: str) -> list[str]:
    return ["embed", "--data_path", str(folder / "coco"), "--cache_dir", str(folder / "vectors"), "--embedder_spec",
            "tiny:dim=16", "--num_workers", "0", "--quiet", *more]  # fmt: skip


def output_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    write_coco_panoptic(tmp_path / "coco")
    assert main(arguments(tmp_path)) == 0
    capsys.readouterr()
    return tmp_path / "vectors"


def test_segments_become_vectors_and_a_second_run_does_nothing(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(vectors)
    assert len(store) == 6
    assert store[0]["embedding"].shape == (16,)
    assert main(arguments(vectors.parent, "--json")) in (0, 1)
    assert output_of(capsys)["rows"]["skipped"] == 6  # type: ignore[index]  # a mapping
    assert main(arguments(vectors.parent, "--verify-sample", "3", "--json")) == 0
    text = capsys.readouterr()
    assert "3 rows computed again" in text.err
    assert json.loads(text.out)["verified"]["status"] == "ok"


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco_panoptic(tmp_path / "coco")
    assert main(arguments(tmp_path, "--dry-run", "--json")) == 0
    assert output_of(capsys)["rows"] == {"planned": 6, "to_do": 6}
    assert not (tmp_path / "vectors").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--embedder-spec", "nothing:x"], "openclip"),
        (["--embedder-spec", "onnx:/nowhere.onnx"], "nowhere.onnx"),
        (["--data-path", "/nowhere"], "nowhere"),
        (["--source", "sa1b:/nowhere"], "data"),
        (["--bg-alpha", "2"], "bg-alpha"),
        (["--ray-address", "auto"], "--launcher ray"),
        (["--launcher", "ray"], "--num-workers 0"),
        (["--device", "cuda:7"], "cuda"),
        (["--verify-sample", "-1"], "--verify-sample -1"),
        (["--devices", "2", "--device", "cpu"], "devices: expected 1 on a CPU"),
        (["--devices", "2", "--launcher", "ray"], "expected no --devices"),
    ],
)
def test_misuse_is_said_before_any_work(
    tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco_panoptic(tmp_path / "coco")
    words = arguments(tmp_path)
    if more[0] in ("--embedder-spec", "--data-path"):
        at = words.index(more[0].replace("-", "_").replace("__", "--", 1))
        words[at + 1] = more[1]
    else:
        words += more
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "vectors").exists()


def test_another_model_is_refused(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(vectors.parent)
    words[words.index("tiny:dim=16")] = "tiny:dim=16,seed=1"
    assert main(words) == 2
    assert "seed=1" in capsys.readouterr().err


def test_a_search_by_another_model_is_refused(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = next((vectors.parent / "coco" / "val2017").glob("*.jpg"))
    search = ["search", str(vectors), "--like", str(photo), "--embedder-spec"]
    assert main([*search, "tiny:dim=16,seed=1"]) == 2
    assert "made with another model, 'tiny:dim=16', now 'tiny:dim=16,seed=1'" in capsys.readouterr().err
    assert main([*search, "tiny:dim=16,seed=0"]) == 0  # other words for the same model


def test_a_search_in_vectors_of_an_unknown_model_asks_for_it(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = next((vectors.parent / "coco" / "val2017").glob("*.jpg"))
    plain = vectors.parent / "plain"
    write_store(plain, open_store(vectors).schema, zip(open_store(vectors).keys, open_store(vectors), strict=True))
    assert main(["search", str(plain), "--like", str(photo)]) == 2
    assert "does not say which model made it; say --embedder-spec" in capsys.readouterr().err
    assert main(["search", str(plain), "--like", str(photo), "--embedder-spec", "tiny:dim=16"]) == 0


def test_search_dedup_zero_shot_and_map(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = open_store(vectors).keys[0]
    page = vectors.parent / "page.html"
    source = f"coco-panoptic:{vectors.parent}/coco"
    found = ["search", str(vectors), "--like", key, "--top", "3", "--source", source, "--output", str(page), "--json"]
    assert main(found) == 0
    hits = output_of(capsys)["hits"]
    assert [len(hits), hits[0]["key"]] == [3, key]  # type: ignore[index,arg-type]  # a list of mappings
    assert page.read_text(encoding="utf-8").startswith("<!")
    assert main(["search", str(vectors), "--like", key]) == 0
    assert key in capsys.readouterr().out
    photo = next((vectors.parent / "coco" / "val2017").glob("*.jpg"))
    assert main(["search", str(vectors), "--like", f"{photo},0,0,4,6"]) == 0
    assert main(["search", str(vectors), "--like", "a cat"]) == 2
    assert main(["dedup", str(vectors), "--threshold", "0.5", "--json"]) == 0
    capsys.readouterr()
    assert main(["zero-shot", str(vectors)]) == 0
    assert "top-1" in capsys.readouterr().out
    assert main(["map", str(vectors), "--output", str(vectors.parent / "map.png")]) == 0
    assert (vectors.parent / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("layout", "index", "files"), [("npy", "inst2feat.tsv", 6), ("npz", "image_index.tsv", 3)])
def test_the_formats_of_the_seed_and_back(tmp_path: Path, layout: str, index: str, files: int) -> None:
    write_coco_panoptic(tmp_path / "coco")
    assert main(arguments(tmp_path, "--format", layout)) == 0
    assert (tmp_path / "vectors" / index).is_file()
    assert len(list((tmp_path / "vectors").glob(f"*.{layout}"))) == files
    assert main(arguments(tmp_path, "--format", layout, "--verify-sample", "2")) == 0
    assert (
        main(["export", str(tmp_path / "vectors"), "--format", "store", "--output", str(tmp_path / "back"), "--quiet"])
        == 0
    )
    assert len(open_store(tmp_path / "back")) == 6
    assert main(["export", str(tmp_path / "back"), "--format", "mot", "--output", str(tmp_path / "no")]) == 2
