"""Students: published sizes, levels, weights by every naming, gradients, determinism."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from penstock import registry  # noqa: E402
from penstock.errors import BadData, MissingExtra, SourceNotFound, UsageError  # noqa: E402
from penstock.models.distill_protocols import EDGE, Level  # noqa: E402
from penstock.models.student_network import Backbone  # noqa: E402
from penstock.models.student_weights import load_backbone  # noqa: E402
from penstock.models.students import OpenedStudent, open_backbone, open_student  # noqa: E402
from penstock.models.torchvision_shim import ensure_torchvision  # noqa: E402
from penstock.models.weights_file import read_weights  # noqa: E402
from penstock.models.yolov8 import STRIDES, YoloV8  # noqa: E402

SIZE = 64
SPECS = ["yolov8:n", "repvit:m0.9", "timm:resnet10t"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def require_timm() -> Any:
    ensure_torchvision()
    return pytest.importorskip("timm")


def levels(*names: str, channels: int = 24, side: int | None = None) -> dict[str, Level]:
    found = {}
    for name in names:
        stride = int(name.partition("_S")[2])
        found[name] = Level(name=name, stride=stride, channels=channels, side=side or SIZE // stride)
    return found


def opened(spec: str = "yolov8:n", **options: Any) -> OpenedStudent:
    if not spec.startswith("yolov8"):
        require_timm()
    return open_student(
        spec, **{"levels": levels("P4_S16", "P5_S32"), "edge_head": False, "image_size": SIZE, **options}
    )


def pictures(size: int = SIZE, *, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8))


def shapes(found: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in found.items()}


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


YOLO_LAYERS = {
    "n": [464, 4672, 7360, 18560, 49664, 73984, 197632, 295424, 460288, 164608],
    "s": [928, 18560, 29056, 73984, 197632, 295424, 788480, 1180672, 1838080, 656896],
    "m": [1392, 41664, 111360, 166272, 813312, 664320, 3248640, 1991808, 3985920, 831168],
}
"""Parameters of the layers 0..9 as ultralytics prints them: 1.27, 5.08 and 11.86 million."""


@pytest.mark.parametrize("size", YOLO_LAYERS)
def test_yolov8_has_the_published_number_of_parameters_in_every_layer(size: str) -> None:
    model = YoloV8(size, STRIDES)
    stages = [layer for number in (1, 2, 3, 4) for layer in model.get_submodule(f"stage{number}").children()]
    assert [count(layer) for layer in [model.stem, *stages]] == YOLO_LAYERS[size]


@pytest.mark.parametrize(
    ("spec", "channels"),
    [
        ("yolov8", {4: 64, 8: 128, 16: 256, 32: 512}),
        ("yolov8:m", {4: 96, 8: 192, 16: 384, 32: 576}),
        ("repvit", {4: 48, 8: 96, 16: 192, 32: 384}),
        ("timm:resnet10t", {4: 64, 8: 128, 16: 256, 32: 512}),
    ],
)
def test_channels_and_shapes(spec: str, channels: dict[int, int]) -> None:
    student = opened(spec, levels=levels("P2_S4", "P3_S8", "P4_S16", "P5_S32"))
    assert student.model.backbone.channels == channels
    with torch.inference_mode():
        maps = student.model.eval().backbone_maps(pictures())
        found = student.model(pictures())
    assert {stride: tuple(each.shape) for stride, each in maps.items()} == {
        stride: (2, number, SIZE // stride, SIZE // stride) for stride, number in channels.items()
    }
    assert shapes(found) == {name: (2, *level.shape) for name, level in student.model.levels.items()}
    assert list(found) == student.model.outputs


def test_repvit_without_its_classifier_is_timms_network() -> None:
    timm = require_timm()
    whole = timm.create_model("repvit_m1")
    backbone = open_backbone("repvit:m1", STRIDES, SIZE)
    assert count(backbone) == count(whole) - count(whole.head) == 4_713_712


@hypothesis_settings(max_examples=6)
@given(
    size=st.integers(1, 5).map(lambda n: 32 * n),
    taken=st.sets(st.sampled_from(["P2_S4", "P3_S8", "P4_S16", "P5_S32"]), min_size=1),
    side=st.integers(1, 9),
    edges=st.booleans(),
)
def test_whatever_the_picture_the_shapes_are_the_teachers(size: int, taken: set[str], side: int, edges: bool) -> None:
    wanted = levels(*sorted(taken), side=side)
    model = opened(levels=wanted, edge_head=edges, image_size=size).model.eval()
    with torch.inference_mode():
        found = model(pictures(size, count=1))
    expected = {name: (1, *level.shape) for name, level in wanted.items()} | ({EDGE: (1, 1, 256, 256)} if edges else {})
    assert shapes(found) == expected
    assert all(bool(each.isfinite().all()) for each in found.values())


def test_uint8_is_float_of_0_to_255_and_normalised_inside() -> None:
    model = opened().model.eval()
    with torch.inference_mode():
        one, other = model(pictures()), model(pictures().float())
        pixels = (pictures().double() / 255 - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).reshape(3, 1, 1)
        by_hand = model.backbone(pixels.float())
        maps = model.backbone_maps(pictures())
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    for left, right in zip(by_hand, maps.values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_half_precision_and_pictures_with_channels_last_say_about_the_same() -> None:
    model = opened(edge_head=True).model.train()  # batch norm on the batch: features of the size they have in training
    images = pictures(count=1)
    with torch.no_grad():
        wanted = model(images)
        last = model(images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images)
    for name, each in wanted.items():
        torch.testing.assert_close(last[name], each, rtol=1e-3, atol=1e-3)
        cosine = torch.nn.functional.cosine_similarity(half[name].float().flatten(), each.flatten(), dim=0)
        assert float(cosine) > 0.98, name


def test_a_seed_gives_the_same_student_and_leaves_torchs_own_generator() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (opened(seed=seed, edge_head=True).model.state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["adapters.P4_S16.weight"], other["adapters.P4_S16.weight"])


@pytest.mark.parametrize("spec", [*SPECS, "timm:mobilenetv3_small_050"])
def test_gradients_reach_every_trained_parameter(spec: str) -> None:
    model = opened(spec, levels=levels("P4_S16"), edge_head=spec == "yolov8:n").model
    found = model(pictures(count=1 if EDGE in model.outputs else 2))
    sum((each * torch.randn_like(each)).sum() for each in found.values()).backward()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert {name for name, value in model.named_parameters() if value.grad is None} == frozen
    if not spec.startswith("timm:mobilenet"):  # of that one timm always builds the whole
        assert not frozen


def test_an_edge_head_begins_at_five_percent_and_learns_at_once() -> None:
    model = opened(edge_head=True).model
    logits = model(pictures(count=1))[EDGE]
    assert 0.03 < float(logits.detach().sigmoid().mean()) < 0.08
    logits.sum().backward()
    assert float(model.edge_head.adapter.weight.grad.abs().max()) > 0


def test_the_backbone_is_cut_after_the_last_level() -> None:
    assert count(opened(levels=levels("P3_S8")).model.backbone) == sum(YOLO_LAYERS["n"][:5])
    cut = opened("timm:resnet10t", levels=levels("P3_S8")).model.backbone
    assert not any(name.startswith("net.layer3") for name in cut.state_dict())


def test_identity_says_what_a_run_depends_on(tmp_path: Path) -> None:
    plain = opened().identity
    assert plain["student"] == "yolov8:n"
    assert plain["weights"] is None
    assert opened(seed=1).identity != plain
    torch.save(opened(seed=9).model.backbone.state_dict(), tmp_path / "weights.pt")
    loaded = opened(weights=tmp_path / "weights.pt").identity
    assert str(loaded["weights"]).startswith("xxh3_128:")
    assert loaded == opened(weights=tmp_path / "weights.pt").identity


# weights


def bare(spec: str, strides: tuple[int, ...] = (8, 16, 32), seed: int = 5) -> Backbone:
    if not spec.startswith("yolov8"):
        require_timm()
    torch.manual_seed(seed)
    found = open_backbone(spec, strides, SIZE)
    for value in found.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    return found


def ultralytics(name: str) -> str:
    """The name that ultralytics gives a weight of ours, written here once more, from its layer numbers."""
    part, _, rest = name.partition(".")
    if part == "stem":
        return f"model.0.{rest}"
    number, _, rest = rest.partition(".")
    layer = {"0": 2 * int(part[-1]) - 1, "1": 2 * int(part[-1]), "2": 9}[number]
    for ours, theirs in [
        ("main_conv", "cv1"),
        ("final_conv", "cv2"),
        ("blocks", "m"),
        ("conv1", "cv1"),
        ("conv2", "cv2"),
    ]:
        rest = rest.replace(f"{ours}.", f"{theirs}.")
    return f"model.{layer}.{rest}"


NAMINGS: dict[str, Callable[[str], str]] = {
    "own": lambda name: name,
    "mmyolo": lambda name: f"backbone.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "ranks": lambda name: f"module.backbone.{name}",
    "both": lambda name: f"module._orig_mod.backbone.{name}",
    "part compiled": lambda name: f"backbone._orig_mod.{name}",
    "ultralytics": ultralytics,
    "ultralytics whole": lambda name: f"model.{ultralytics(name)}",
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("form", ["pth", "state_dict", "model", "safetensors"])
def test_weights_come_back_whatever_they_are_called(naming: str, form: str, tmp_path: Path) -> None:
    source = bare("yolov8:n")
    state = {NAMINGS[naming](name): value for name, value in source.state_dict().items()}
    if naming.startswith("ultralytics"):  # its neck comes along
        state[NAMINGS[naming]("stem.x").replace(".0.x", ".15.cv1.conv.weight")] = torch.ones(2)
    path = save(state, tmp_path, form)
    target = opened(weights=path, levels=levels("P3_S8", "P4_S16", "P5_S32")).model.backbone
    assert equal(source, target)


def save(state: dict[str, torch.Tensor], folder: Path, form: str = "pth") -> Path:
    path = folder / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state if form == "pth" else {form: state, "meta": {"epoch": 3}}, path)
    return path


def equal(left: Backbone, right: Backbone) -> bool:
    other = right.state_dict()
    return all(torch.equal(value, other[name]) for name, value in left.state_dict().items())


@pytest.mark.parametrize("spec", SPECS)
def test_published_names_go_there_and_back(spec: str, tmp_path: Path) -> None:
    source = bare(spec)
    names = {source.published_name(name): value for name, value in source.state_dict().items()}
    assert len(names) == len(source.state_dict())
    target = bare(spec, seed=6)
    load_backbone(target, save(names, tmp_path))
    assert equal(source, target)


@pytest.mark.parametrize("spec", ["repvit_m0_9", "resnet10t"])
def test_timms_whole_file_is_taken_without_its_classifier_and_what_is_cut(spec: str, tmp_path: Path) -> None:
    timm = require_timm()
    whole = timm.create_model(spec)
    path = save(whole.state_dict(), tmp_path, "safetensors")
    target = bare(f"timm:{spec}", (8, 16))
    load_backbone(target, path)
    taken = whole.state_dict()
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, taken[target.published_name(name)], rtol=0, atol=0)


def test_half_precision_and_files_without_counters_are_taken(tmp_path: Path) -> None:
    source = bare("yolov8:n")
    state = {name: value.half() for name, value in source.state_dict().items() if not name.endswith("tracked")}
    target = bare("yolov8:n", seed=6)
    load_backbone(target, save(state, tmp_path))
    assert {value.dtype for value in target.parameters()} == {torch.float32}
    torch.testing.assert_close(target.stem.conv.weight, source.stem.conv.weight, rtol=1e-3, atol=1e-3)


def test_whole_weights_fit_a_cut_backbone_and_not_the_other_way_round(tmp_path: Path) -> None:
    whole = bare("yolov8:n", STRIDES)
    path = save(whole.state_dict(), tmp_path)
    cut = bare("yolov8:n", (16,), seed=6)
    load_backbone(cut, path)
    assert equal(cut, whole)
    save(cut.state_dict(), tmp_path)
    with pytest.raises(UsageError, match=r"35 missing.*They were cut after a lower stride"):
        load_backbone(whole, path)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ("yolov8:m", "yolov8:n", "say --backbone yolov8:m"),
        ("repvit:m0.9", "yolov8:n", "say --backbone repvit"),
        ("yolov8:n", "timm:resnet10t", "say --backbone yolov8:n"),
        ("timm:resnet10t", "yolov8:n", r"missing \(stem.conv.weight, .*not expected \("),
        ("timm:resnet10t", "repvit:m0.9", r"missing \(net.stem.conv1.c.weight, .*not expected \(bn1.bias"),
    ],
)
def test_weights_of_another_architecture_are_refused(theirs: str, ours: str, message: str, tmp_path: Path) -> None:
    source, target = bare(theirs), bare(ours)
    before = copy.deepcopy(target)
    path = save({source.published_name(name): value for name, value in source.state_dict().items()}, tmp_path)
    with pytest.raises(UsageError, match=message):
        load_backbone(target, path)
    assert equal(before, target)


def test_a_checkpoint_of_a_training_is_no_backbone(tmp_path: Path) -> None:
    of_run = {f"student.backbone.{name}": value for name, value in bare("yolov8:n").state_dict().items()}
    with pytest.raises(UsageError, match="say --pretrained-pth"):
        load_backbone(bare("yolov8:n"), save(of_run, tmp_path))


def test_what_is_left_over_is_refused(tmp_path: Path) -> None:
    state = {**bare("yolov8:n").state_dict(), "stage2.1.blocks.7.conv1.conv.weight": torch.zeros(1)}
    with pytest.raises(UsageError, match=r"1 not expected \(stage2.1.blocks.7.conv1.conv.weight\)"):
        load_backbone(bare("yolov8:n"), save(state, tmp_path))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    target, good = bare("yolov8:n"), bare("yolov8:n").state_dict()
    with pytest.raises(SourceNotFound, match="no such file"):
        read_weights(tmp_path / "none.pth")
    bad = {**good, "stem.bn.bias": torch.full((16,), float("nan"))}
    with pytest.raises(BadData, match=r"NaN or infinity in stem\.bn\.bias"):
        load_backbone(target, save(bad, tmp_path))
    with pytest.raises(BadData, match="each weight once"):
        load_backbone(target, save({**good, "_orig_mod.stem.bn.bias": good["stem.bn.bias"]}, tmp_path))
    for content in ({}, [1], {"stem": 3}):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(BadData, match=r"weights\.pth"):
            read_weights(tmp_path / "weights.pth")
    (tmp_path / "weights.pth").write_bytes(b"\x08\x0a\x12\x07pytorch")  # the beginning of an ONNX
    with pytest.raises(BadData, match="another one: Unsupported operand 8"):
        read_weights(tmp_path / "weights.pth")
    for name in ("weights.pth", "weights.safetensors"):
        path = save(good, tmp_path, "safetensors" if name.endswith("s") else "pth")
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(BadData, match="damaged"):
            read_weights(path)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"model": bare("yolov8:n")}, tmp_path / "pickled.pt")  # as ultralytics does
    with pytest.raises(BadData, match=r"save its state_dict\(\) alone"):
        read_weights(tmp_path / "pickled.pt")


# what cannot work


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("yolov8:z", {}, "expected a size of n, s, m, l, x"),
        ("yolov5", {}, "no student 'yolov5'; known: repvit, timm, yolov8"),
        ("repvit:m7", {}, "expected a size of m0.9"),
        ("timm:resnet10x", {}, "close to it: resnet10t"),
        ("timm:vit_tiny_patch16_224", {"levels": levels("P3_S8")}, r"its strides \(16\), got \[8\]"),
        ("timm:levit_128s", {"edge_head": True}, "set edge_weight to 0"),
        ("yolov8", {"levels": {"P6_S64": Level(name="P6_S64", stride=64, channels=8, side=1)}}, r"got \[64\]"),
        ("yolov8", {"levels": {}}, "got none"),
        ("yolov8", {"image_size": 100}, "expected a multiple of 32, got 100"),
        ("yolov8", {"image_size": 0}, "expected a multiple of 32, got 0"),
    ],
)
def test_what_cannot_work_is_refused(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(spec, **{"levels": levels("P4_S16"), **options})


def test_a_transformer_is_built_for_the_pictures_size() -> None:
    student = opened("timm:vit_tiny_patch16_224", levels=levels("P4_S16"))
    with torch.inference_mode():
        assert shapes(student.model.eval()(pictures())) == {"P4_S16": (2, 24, 4, 4)}


def test_features_with_channels_last_are_turned() -> None:
    require_timm()
    backbone = open_backbone("timm:swin_tiny_patch4_window7_224", (4, 8), 224)
    with torch.inference_mode():
        found = backbone.eval()(torch.zeros(1, 3, 224, 224))
    assert [tuple(each.shape) for each in found] == [(1, 96, 56, 56), (1, 192, 28, 28)]


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"penstock\[timm\]"):
        open_student("repvit", levels=levels("P4_S16"), edge_head=False, image_size=SIZE)


def test_each_student_of_the_registry_is_described() -> None:
    assert set(registry.describe_names("students")) == {"repvit", "timm", "yolov8"}
    assert all(text and "cannot be" not in text for text in registry.describe_names("students").values())
