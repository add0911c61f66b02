"""Exported students: every file says what the model says, and a file that does not is not kept."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from penstock.errors import BadData, MissingExtra, OutputRefused, SourceNotFound, UsageError  # noqa: E402
from penstock.models.distill_protocols import EDGE, Level  # noqa: E402
from penstock.models.student_export import FORMATS, export_student, load_student  # noqa: E402
from penstock.models.student_network import Student  # noqa: E402
from penstock.models.student_weights import load_backbone  # noqa: E402
from penstock.models.students import open_backbone, open_student  # noqa: E402
from penstock.models.torchvision_shim import ensure_torchvision  # noqa: E402

SIZE = 64
LEVELS = {
    "P3_S8": Level(name="P3_S8", stride=8, channels=24, side=8),
    "P4_S16": Level(name="P4_S16", stride=16, channels=16, side=5),
}
WITHOUT_ONNX = ("state_dict", "torchscript")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def student(spec: str = "yolov8:n", *, edge_head: bool = False) -> Student:
    """With statistics as after training, so that what joins batch norms has something to join."""
    if not spec.startswith("yolov8"):
        ensure_torchvision()
        pytest.importorskip("timm")
    model = open_student(spec, levels=LEVELS, edge_head=edge_head, image_size=SIZE, seed=2).model
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model


def pictures(count: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (count, 3, SIZE, SIZE), np.uint8))


def said(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        found: dict[str, torch.Tensor] = model.eval()(images)
    return found


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-4)


def scripted(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path)


@pytest.mark.parametrize("spec", ["yolov8:n", "repvit:m0.9", "timm:resnet10t"])
def test_every_file_says_what_the_model_says(spec: str, tmp_path: Path) -> None:
    model = student(spec)
    report = export_student(model.train(), tmp_path, SIZE, WITHOUT_ONNX)
    assert model.training
    assert sorted(report["files"]) == ["backbone.pth", "student.pth", "student.ts"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report["files"])
    assert json.loads(json.dumps(report)) == report
    for name, file in report["files"].items():
        assert file["bytes"] == (tmp_path / name).stat().st_size
        assert file["max_abs_error"] <= 1e-5 * file["largest"]
        assert file["cosine"] > 1 - 1e-9
    assert report["outputs"] == {"P3_S8": ["batch", 24, 8, 8], "P4_S16": ["batch", 16, 5, 5]}
    wanted = said(model, pictures())
    same(said(load_student(tmp_path / "student.pth"), pictures()), wanted)
    same(said(scripted(tmp_path / "student.ts"), pictures()), wanted)
    same(said(scripted(tmp_path / "student.ts"), pictures().float()), wanted)
    backbone = open_backbone(spec, (8, 16), SIZE)
    load_backbone(backbone, tmp_path / "backbone.pth")
    model.backbone = backbone
    same(said(model, pictures()), wanted)


def test_the_backbone_has_the_names_of_its_family(tmp_path: Path) -> None:
    export_student(student(), tmp_path, SIZE, ("state_dict",))
    content = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert content["meta"]["student"] == "yolov8:n"
    assert content["meta"]["strides"] == [8, 16]
    assert "backbone.stage3.1.blocks.1.conv2.bn.running_var" in content["state_dict"]
    assert all(name.startswith("backbone.") for name in content["state_dict"])


def test_timm_itself_reads_the_backbone(tmp_path: Path) -> None:
    model = student("timm:resnet10t")
    timm = __import__("timm")
    export_student(model, tmp_path, SIZE, ("state_dict",))
    net = timm.create_model("resnet10t")
    names = net.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True)["state_dict"], strict=False)
    assert names.unexpected_keys == []
    assert all(name.startswith(("layer4", "fc")) for name in names.missing_keys)
    torch.testing.assert_close(net.layer3[0].conv1.weight, model.backbone.net.layer3[0].conv1.weight)


def test_branches_are_joined_in_what_is_traced(tmp_path: Path) -> None:
    model = student("repvit:m0.9")
    export_student(model, tmp_path, SIZE, ("torchscript",))

    def convolutions(module: Any) -> int:
        return sum(1 for node in module.inlined_graph.nodes() if node.kind() == "aten::_convolution")

    whole = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    blocks = sum(type(module).__name__ == "RepVggDw" for module in model.modules())
    assert blocks > 10
    assert convolutions(scripted(tmp_path / "student.ts")) == whole - blocks


def test_compiled_models_and_those_of_ranks_are_taken(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = student()
    report = export_student(Wrapped(torch.compile(model, backend="eager")), tmp_path, SIZE, ("state_dict",))
    assert not any("_orig_mod" in name for name in torch.load(tmp_path / "student.pth")["state_dict"])
    assert report == export_student(model, tmp_path, SIZE, ("state_dict",))


def test_onnx_takes_any_batch_and_says_the_same(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    model = student(edge_head=True)
    report = export_student(model, tmp_path, SIZE, ("onnx",))
    assert list(report["files"]) == ["student.onnx"]
    assert report["files"]["student.onnx"]["cosine"] > 1 - 1e-6
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("image", "tensor(uint8)", [3, SIZE, SIZE])
    assert [output.name for output in session.get_outputs()] == ["P3_S8", "P4_S16", EDGE]
    found = session.run(None, {"image": pictures().numpy()})
    for each, wanted in zip(found, said(model, pictures()).values(), strict=True):
        np.testing.assert_allclose(each, wanted.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_onnx_the_extra_is_named_and_nothing_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(__import__("sys").modules, name, None if name == package else np)
    with pytest.raises(MissingExtra, match=rf"package {package}: pip install 'penstock\[onnx\]'"):
        export_student(student(), tmp_path / "out", SIZE, FORMATS)
    assert not (tmp_path / "out").exists()


def test_a_file_that_says_something_else_is_not_kept(tmp_path: Path) -> None:
    model = student()
    export_student(model, tmp_path, SIZE, ("state_dict",))
    before = (tmp_path / "student.pth").read_bytes()
    model.mean.add_(0.5)  # which no state dict holds
    with pytest.raises(BadData, match=r"backbone\.pth: expected what the model says, got Parity"):
        export_student(model, tmp_path, SIZE, ("state_dict",))
    assert (tmp_path / "student.pth").read_bytes() == before


def test_nan_is_not_exported(tmp_path: Path) -> None:
    model = student()
    model.adapters["P4_S16"].bias.data[3] = float("nan")
    with pytest.raises(BadData, match=r"student\.ts: .*max_abs_error=nan.*not kept"):
        export_student(model, tmp_path, SIZE, ("torchscript",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formats", [(), ("onnx", "tflite")])
def test_unknown_formats_are_refused(formats: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected some of state_dict, onnx, torchscript"):
        export_student(student(), tmp_path, SIZE, formats)


def test_what_is_no_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a Student, got Linear"):
        export_student(nn.Linear(1, 1), tmp_path, SIZE)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused, match="file"):
        export_student(student(), tmp_path / "file", SIZE, ("state_dict",))


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such file"):
        load_student(tmp_path / "none.pth")
    export_student(student(), tmp_path, SIZE, ("state_dict",))
    content = torch.load(tmp_path / "student.pth", weights_only=True)
    for wrong, message in [
        (content["state_dict"], "expected a file of penstock's export"),
        ({**content, "meta": 3}, "expected a file of penstock's export"),
        ({**content, "meta": {"epoch": 3}}, "its meta lacks something: 'student'"),
        ({**content, "state_dict": {"stem": torch.ones(1)}}, "expected the weights that its meta describes"),
    ]:
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(BadData, match=message):
            load_student(tmp_path / "wrong.pth")
