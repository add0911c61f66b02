"""The spec's grammar, devices, precision, memory, norms and pickling, over the tiny double and fake networks."""

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from penstock import registry  # noqa: E402
from penstock.errors import MissingExtra, PenstockError, UsageError  # noqa: E402
from penstock.models.embedders import open_embedder, parse_spec  # noqa: E402
from penstock.models.opened import Opened, hash_state, torch_device  # noqa: E402
from penstock.models.protocols import BadVectors, Embedder, PictureTransform  # noqa: E402

TRANSFORM = PictureTransform(size_hw=(8, 8))


def pictures(count: int, side: int = 8) -> Any:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32))


def means(pixels: Any) -> Any:
    """A network: the mean of each channel, and a one."""
    return torch.cat([pixels.mean(dim=(2, 3)), pixels.new_ones((len(pixels), 1))], dim=1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Embedder]:
    """Opens an embedder over a function of pixels."""

    def make(network: Callable[[Any], Any], **options: Any) -> Embedder:
        class Module(torch.nn.Module):
            def forward(self, pixels: Any) -> Any:
                return network(pixels)

        def load(name: str, device: str) -> Opened:
            return Opened(
                network=Module(),
                device=torch_device(device),
                transform=TRANSFORM,
                prepare=lambda picture: np.zeros((3, 8, 8), np.float32),
                weights="none",
            )

        monkeypatch.setattr(registry, "find", lambda kind, name: load)
        return open_embedder("tiny:fake", **options)

    return make


@pytest.mark.parametrize("spec", ["ViT-B-16", "", "siglip:base", ":x", "OPENAI:ViT-B/32"])
def test_a_spec_without_a_known_type_lists_the_types(spec: str) -> None:
    with pytest.raises(UsageError, match=r"expected TYPE:NAME with TYPE one of .*onnx, openai, openclip, tiny"):
        parse_spec(spec)


def test_a_spec_is_split_at_its_first_colon() -> None:
    assert parse_spec("openclip:file:///a:b") == ("openclip", "file:///a:b")
    assert parse_spec("tiny:") == ("tiny", "")
    with pytest.raises(UsageError, match="NAME after the colon"):
        parse_spec("openclip:")


@pytest.mark.parametrize("name", ["dim", "dim=x", "width=3", "dim=4,dim=5", "dim=0", "size=4"])
def test_options_of_the_double(name: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        open_embedder(f"tiny:{name}")


def test_the_double_is_the_same_everywhere() -> None:
    one, other = open_embedder("tiny:", device="cpu"), open_embedder("tiny:dim=64,size=32,seed=0", device="cpu")
    assert {**one.identity(), "spec": ""} == {**other.identity(), "spec": ""}
    assert one.identity()["weights"] == "xxh3_128:b55b38e0587f1498218a3c325eacef6c"
    assert one.identity()["double"] is True
    assert one.identity()["weights"] != open_embedder("tiny:seed=1", device="cpu").identity()["weights"]
    assert one.libraries() == {"torch": torch.__version__.partition("+")[0]} or "torch" in one.libraries()


def test_pictures_that_are_alike_are_close(rng: np.random.Generator) -> None:
    embedder = open_embedder("tiny:dim=48,size=24", device="cpu")
    assert (embedder.dim, embedder.transform.size_hw) == (48, (24, 24))
    scenes = [rng.integers(0, 256, (6, 5, 3), np.uint8) for _ in range(8)]
    clean = [Image.fromarray(scene).resize((90, 70)) for scene in scenes]
    noisy = [
        Image.fromarray((np.asarray(one) + rng.normal(0, 6, (70, 90, 3))).clip(0, 255).astype(np.uint8))
        for one in clean
    ]
    first, second = (
        embedder.embed(torch.from_numpy(np.stack([embedder.prepare(one) for one in each]))) for each in (clean, noisy)
    )
    cosines = (first @ second.T).numpy()
    assert first.dtype == torch.float32
    np.testing.assert_allclose(np.linalg.norm(first.numpy(), axis=1), 1, atol=1e-6)
    assert np.diag(cosines).min() > 0.99
    assert (cosines.argmax(axis=1) == np.arange(8)).all()
    assert (cosines - np.eye(8)).max() < 0.95


def test_batches_change_nothing_but_the_last_bits() -> None:
    one, many = (open_embedder("tiny:size=8", device="cpu", batch_size=size) for size in (3, 100))
    np.testing.assert_allclose(one.embed(pictures(10)).numpy(), many.embed(pictures(10)).numpy(), atol=1e-6)
    assert one.embed(pictures(0)).shape == (0, 64)


def test_other_pixels_are_refused() -> None:
    embedder = open_embedder("tiny:size=8", device="cpu")
    for wrong in (pictures(2, 9), pictures(2).double(), pictures(2)[0]):
        with pytest.raises(UsageError, match="expected float32 pixels"):
            embedder.embed(wrong)


def test_out_of_memory_halves_the_batch_and_remembers(fake: Callable[..., Any], caplog: Any) -> None:
    seen: list[int] = []

    def network(pixels: Any) -> Any:
        seen.append(len(pixels))
        if len(pixels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return means(pixels)

    embedder = fake(network, device="cpu", batch_size=40)
    found = embedder.embed(pictures(12))
    assert seen == [1, 12, 6, 3, 3, 3, 3]
    assert embedder.batch_size == 3
    assert [record.args[1:] for record in caplog.records] == [(12, 6), (6, 3)]
    embedder.embed(pictures(4))
    assert seen[7:] == [3, 1]
    wanted = means(pictures(12))
    torch.testing.assert_close(found, wanted / wanted.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_out_of_memory_with_one_picture_is_an_error_with_advice(words: str, fake: Callable[..., Any]) -> None:
    def network(pixels: Any) -> Any:
        raise RuntimeError(words)

    with pytest.raises(PenstockError, match=rf"single picture: free the device .* {re.escape(words)}"):
        fake(network, device="cpu")


def test_other_errors_are_not_taken_for_it(fake: Callable[..., Any]) -> None:
    def network(pixels: Any) -> Any:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        fake(network, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_vectors_without_a_direction_say_their_rows(fake: Callable[..., Any], value: float) -> None:
    def network(pixels: Any) -> Any:
        vectors = means(pixels)
        vectors[pixels[:, 0, 0, 0] == 7] = value
        return vectors

    batch = pictures(9)
    batch[[2, 8], 0, 0, 0] = 7
    with pytest.raises(BadVectors, match=r"in rows 2, 8 of 9") as caught:
        fake(network, device="cpu", batch_size=4).embed(batch)
    assert caught.value.rows == pickle.loads(pickle.dumps(caught.value)).rows == (2, 8)


def test_a_network_that_gives_maps_is_refused(fake: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="expected one vector per picture"):
        fake(lambda pixels: pixels, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(device: str) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        open_embedder("tiny:", device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "cpu:0", "mps"])
def test_a_device_that_is_not_known(device: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        open_embedder("tiny:", device=device)


def test_devices_of_a_machine_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [torch_device(each) for each in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda:0", "cpu", "cuda:0", "cuda:1"]
    with pytest.raises(UsageError, match="has 2, numbered from 0"):
        torch_device("cuda:2")


def test_precision_is_what_was_asked_for_and_is_recorded() -> None:
    asked: list[dict[str, Any]] = [{}, {"amp": False}, {"amp": True}, {"amp_bf16": True}]
    opened = [open_embedder("tiny:size=16", device="cpu", **options) for options in asked]
    assert [each.identity()["precision"] for each in opened] == ["fp32", "fp32", "bf16", "bf16"]
    full, half = (each.embed(pictures(20, 16)) for each in (opened[0], opened[3]))
    cosines = (full * half).sum(dim=1)
    assert half.dtype == torch.float32
    assert 0.999 < float(cosines.min()) < 1 - 1e-8
    with pytest.raises(UsageError, match="amp=False"):
        open_embedder("tiny:", amp=False, amp_bf16=True)
    with pytest.raises(UsageError, match="1 or more"):
        open_embedder("tiny:", batch_size=0)


def test_pickles_without_its_weights_and_loads_them_again() -> None:
    embedder = open_embedder("tiny:dim=2000", device="cpu")
    content = pickle.dumps(embedder)
    assert len(content) < 4000
    again = pickle.loads(content)
    assert again.identity() == embedder.identity()
    batch = pictures(3, 32)
    assert torch.equal(again.embed(batch), embedder.embed(batch))


def test_unpickled_it_asks_for_the_device_that_it_was_opened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    opened = registry.find("models", "tiny")

    def load(name: str, device: str) -> Opened:
        asked.append(device)
        return opened(name, "cpu")  # type: ignore[operator, no-any-return]  # a family of models

    embedder = open_embedder("tiny:", device="cpu")
    vars(embedder)["_load"], vars(embedder)["_opened"] = load, None
    vars(embedder)["_options"] = replace(vars(embedder)["_options"], device="auto")
    embedder.embed(pictures(1, 32))
    assert asked == ["cpu"]  # "auto" may mean another one on the machine of a worker


def test_weights_that_changed_since_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    again = pickle.loads(pickle.dumps(open_embedder("tiny:", device="cpu")))
    again._facts["weights"] = "xxh3_128:0"
    with pytest.raises(UsageError, match="weights have changed"):
        again.embed(pictures(1, 32))


def test_the_double_knows_no_texts() -> None:
    with pytest.raises(UsageError, match="no text tower"):
        open_embedder("tiny:", device="cpu").embed_texts(["a cat"])


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"penstock\[train\]"):
        open_embedder("tiny:")


def test_the_hash_of_weights_is_of_names_types_shapes_and_bytes() -> None:
    state = {"b": torch.ones(2, 3), "a": torch.tensor(1.0), "c": torch.zeros(0)}
    found = hash_state(state)
    assert found == hash_state(dict(reversed(state.items())))
    assert found == hash_state({**state, "b": torch.ones(3, 2).T.contiguous()})
    others = [
        {**state, "b": torch.ones(3, 2)},
        {**state, "b": torch.ones(2, 3, dtype=torch.bfloat16)},
        {**state, "a": torch.tensor(2.0)},
        {"B": state["b"], "a": state["a"], "c": state["c"]},
    ]
    assert len({found, *map(hash_state, others)}) == 5


def test_compile_sees_one_shape(fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def network(pixels: Any) -> Any:
        seen.append(len(pixels))
        return means(pixels)

    monkeypatch.setattr(torch, "compile", lambda module: module)  # the compiler itself takes a quarter of a minute
    compiled = fake(network, device="cpu", compile=True, batch_size=4).embed(pictures(10))
    assert seen == [4] * 4
    torch.testing.assert_close(compiled, fake(means, device="cpu").embed(pictures(10)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_gpu_gives_the_vectors_of_the_cpu(is_compiled: bool) -> None:
    cpu = open_embedder("tiny:size=16", device="cpu")
    gpu = open_embedder("tiny:size=16", device="cuda", compile=is_compiled)
    found = gpu.embed(pictures(50, 16))
    assert (gpu.device, str(found.device), gpu.identity()["precision"]) == ("cuda:0", "cuda:0", "fp16")
    assert float((found.cpu() * cpu.embed(pictures(50, 16))).sum(dim=1).min()) > 0.999
