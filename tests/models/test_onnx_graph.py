"""ONNX graphs: layouts, number types and batches as the graph states them; the JSON file beside; a real network."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from penstock.errors import BadData, SourceNotFound, UsageError  # noqa: E402
from penstock.models.embedders import open_embedder  # noqa: E402
from tests.models.onnx_bytes import FLOAT, HALF, INT64, UINT8, channel_means  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared"
REAL = SHARED / "weights" / "mobilenet_v1_embed.onnx"


def write(folder: Path, content: bytes, sidecar: object = None) -> str:
    path = folder / "net.onnx"
    path.write_bytes(content)
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return f"onnx:{path}"


def batch(count: int, embedder: object) -> tuple[list[Image.Image], "torch.Tensor"]:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (12, 20, 3), np.uint8)) for _ in range(count)]
    return pictures, torch.from_numpy(np.stack([embedder.prepare(each) for each in pictures]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [FLOAT, HALF, UINT8])
@pytest.mark.parametrize(
    "shape", [("n", 3, 6, 8), ("n", 6, 8, 3), (1, 3, 6, 8), (4, 6, 8, 3)], ids=["nchw", "nhwc", "one", "four"]
)
def test_layouts_types_and_batches(tmp_path: Path, kind: int, shape: Sequence["int | str"]) -> None:
    embedder = open_embedder(write(tmp_path, channel_means(shape, kind)), device="cpu")
    assert (embedder.dim, embedder.transform.size_hw) == (3, (6, 8))
    pictures, pixels = batch(7, embedder)
    resized = np.stack([np.asarray(each.resize((8, 6), Image.Resampling.BILINEAR), np.float64) for each in pictures])
    wanted = resized.mean(axis=(1, 2))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.embed(pixels).numpy(), wanted, atol=1e-3 if kind == HALF else 1e-5)


def test_the_file_beside_states_the_rest(tmp_path: Path) -> None:
    sidecar = {"size": 10, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic", "output": "b"}
    content = channel_means(("n", 3, "h", "w"), keep=True, outputs=("a", "b"))
    embedder = open_embedder(write(tmp_path, content, sidecar), device="cpu")
    assert embedder.transform.size_hw == (10, 10)
    assert embedder.identity()["output"] == "b"
    _, pixels = batch(3, embedder)
    wanted = torch.nn.functional.normalize(pixels.mean(dim=(2, 3)))
    torch.testing.assert_close(embedder.embed(pixels), wanted)


def test_the_default_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_embedder(write(tmp_path, channel_means(("n", 3, 6, 8))), device="cpu")
    assert "RGB of 0..255" in caplog.text
    assert "net.json" in caplog.text


def test_graphs_that_do_not_fit(tmp_path: Path) -> None:
    cases: list[tuple[bytes, object, type[Exception], str]] = [
        (b"nothing", None, BadData, "cannot open it"),
        (channel_means(("n", 4, 6, 8)), None, BadData, r"expected \(N, 3, h, w\)"),
        (channel_means(("n", 3, 6, 8), INT64), None, BadData, "input image: expected one of"),
        (channel_means(("n", 3, "h", "w")), {}, UsageError, "leaves the size open"),
        (channel_means(("n", 3, 6, 8), outputs=("a", "b")), None, UsageError, "which output"),
        (channel_means(("n", 3, 6, 8)), {"output": "x"}, UsageError, "which output"),
        (channel_means(("n", 3, 6, 8)), {"size": 9}, UsageError, "its JSON file says 9"),
        (channel_means(("n", 3, 6, 8)), {"means": 9}, BadData, "expected an object with some of"),
        (channel_means(("n", 3, 6, 8), UINT8), {"mean": [0, 0, 0], "std": [1, 1, 1]}, UsageError, "takes uint8"),
    ]
    for number, (content, sidecar, error, words) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(error, match=words):
            open_embedder(write(folder, content, sidecar), device="cpu")
    with pytest.raises(SourceNotFound, match="no file"):
        open_embedder(f"onnx:{tmp_path}/none.onnx")


def test_short_memory_is_known_by_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

    embedder = open_embedder(write(tmp_path, channel_means(("n", 3, 6, 8))), device="cpu", batch_size=8)
    graph = vars(embedder)["_opened"].network
    run, sizes = graph._session.run, []

    class Session:
        words = "BFCArena: Failed to allocate memory for requested buffer of size 9"
        error: type[Exception] = RuntimeException

        def run(self, outputs: object, feeds: Mapping[str, np.ndarray]) -> object:
            (pixels,) = feeds.values()
            sizes.append(len(pixels))
            if len(pixels) > 3:
                raise self.error(self.words)
            return run(outputs, feeds)

    monkeypatch.setattr(graph, "_session", Session())
    pixels = torch.rand(7, 3, 6, 8)
    assert embedder.embed(pixels).shape == (7, 3)
    assert sizes == [7, 3, 3, 1]
    monkeypatch.setattr(Session, "words", "Non-zero status code")
    monkeypatch.setattr(Session, "error", Fail)
    monkeypatch.setattr(embedder, "batch_size", 8)
    with pytest.raises(Fail, match="Non-zero"):
        embedder.embed(pixels)


def test_one_of_several_outputs_by_its_usual_name(tmp_path: Path) -> None:
    content = channel_means(("n", 3, 6, 8), outputs=("logits", "embedding"))
    assert open_embedder(write(tmp_path, content), device="cpu").identity()["output"] == "embedding"


def test_mixed_precision_is_for_torch(tmp_path: Path) -> None:
    spec = write(tmp_path, channel_means(("n", 3, 6, 8)))
    assert open_embedder(spec, device="cpu").identity()["precision"] == "graph"
    for options in ({"amp": True}, {"amp_bf16": True}, {"compile": True}):
        with pytest.raises(UsageError, match="states its own arithmetic"):
            open_embedder(spec, device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.skipif(not REAL.exists(), reason="no shared weights")
def test_a_real_network() -> None:
    import onnxruntime

    embedder = open_embedder(f"onnx:{REAL}", device="cpu")
    assert (embedder.dim, embedder.transform.size_hw) == (1024, (224, 224))
    pictures, pixels = batch(2, embedder)
    image = np.asarray(pictures[1].resize((224, 224), Image.Resampling.BILINEAR)).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(str(REAL), providers=["CPUExecutionProvider"])
    wanted = session.run(["embedding"], {"image": image.astype(np.float32)})[0][0]
    np.testing.assert_allclose(embedder.embed(pixels)[1].numpy(), wanted / np.linalg.norm(wanted), atol=1e-5)
