"""Writes a trained student for use elsewhere, and reads every file back: it must say what the model says."""

import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penstock.errors import BadData, MissingExtra, UsageError
from penstock.models.distill_protocols import Level
from penstock.models.student_network import Student
from penstock.models.students import OpenedStudent, open_student
from penstock.models.weights_file import differences, read_torch, read_weights
from penstock.store.output import replace_file

FORMATS = ("state_dict", "onnx", "torchscript")
TOLERANCE = 1e-3
"""Largest error of a file's outputs, as a share of the largest value of that output."""
LEAST_COSINE = 0.9999
_PICTURES = 3
"""That are compared; one less is traced, so that a batch that is not free is found out."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the outputs of a file are from those of the model."""

    max_abs_error: float
    """Of the output that is furthest off, in shares of its largest value."""
    largest: float
    """Largest absolute value of that output."""
    cosine: float
    """Of the flattened outputs, the lowest."""

    @property
    def holds(self) -> bool:
        """Whether that is within `TOLERANCE` and `LEAST_COSINE`; NaN never is."""
        return self.max_abs_error <= TOLERANCE * self.largest and self.cosine >= LEAST_COSINE


def export_student(
    model: nn.Module, folder: Path, image_size: int, formats: Sequence[str] = FORMATS, *, seed: int = 0
) -> dict[str, Any]:
    """Writes the files of a student. Each is read back and compared before it takes its place.

    state_dict: `backbone.pth`, {"meta", "state_dict"} by published names (mmyolo's, timm's), of the stages that were
    trained; `student.pth`, the same of everything, which `load_student` reads. onnx: `student.onnx`; torchscript:
    `student.ts`; both take `image` (batch, 3, S, S) uint8 RGB, any batch, and give levels and edges by name. In these two
    the branches of re-parameterised networks (RepViT) are joined.

    Args:
        model: a `Student`; also one that torch.compile or DDP has wrapped. It stays as it is.
        folder: for the files; made if it is not there.
        image_size: side of the pictures, in pixels; the last two formats are for this one.
        formats: of `FORMATS`, any of them.
        seed: of the pictures that are compared.

    Returns:
        Plain values: image_size, input and outputs (shapes), files: name -> format, bytes, max_abs_error, largest, cosine.

    Raises:
        UsageError: no student, an unknown format, or a network that cannot be written as ONNX or TorchScript.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed; nothing is written then.
        BadData: a file does not say what the model says; it is not kept. NaN in the weights is one cause.
        OutputRefused, OutputFull: the folder cannot be written.
    """
    unknown = [each for each in formats if each not in FORMATS]
    if unknown or not formats:
        raise UsageError(f"export: formats: expected some of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")
    student = _still(model)
    if "onnx" in formats:
        require_onnx()
    pictures = np.random.default_rng(seed).integers(0, 256, (_PICTURES, 3, image_size, image_size), np.uint8)
    images = torch.from_numpy(pictures)
    with torch.no_grad():
        expected = student(images)
        maps = _by_stride(student, images)
        files = {}
        with tempfile.TemporaryDirectory() as aside:
            for name, (kind, save, run) in _FILES.items():
                if kind not in formats:
                    continue
                path = Path(aside) / name
                save(student if kind == "state_dict" else _joined(student), path, images[1:])
                parity = _parity(run(path, images), maps if name == BACKBONE else expected)
                if not parity.holds:
                    raise BadData(f"{folder / name}: expected what the model says, got {parity}; the file is not kept")
                replace_file(folder / name, path.read_bytes())
                files[name] = {"format": kind, "bytes": path.stat().st_size, **asdict(parity)}
    return {
        "image_size": image_size, "input": ["batch", 3, image_size, image_size],
        "outputs": {name: ["batch", *found.shape[1:]] for name, found in expected.items()}, "files": files,
    }  # fmt: skip


def load_student(path: Path) -> Student:
    """The student of a `student.pth`, on the CPU, in evaluation mode. No code in the file is run.

    Raises:
        SourceNotFound, MissingExtra: no such file, or timm is needed.
        BadData: it is damaged, or no file of `export_student`.
    """
    model = _opened(path).model
    weights = read_weights(path)
    if wrong := differences(model.state_dict(), weights):
        raise BadData(f"{path}: expected the weights that its meta describes, got others: {wrong}; export it again")
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


BACKBONE = "backbone.pth"
"""The file with the backbone alone."""


def _content(path: Path) -> Mapping[str, Any]:
    content = read_torch(path)
    if isinstance(content, Mapping) and all(isinstance(content.get(name), Mapping) for name in ("meta", "state_dict")):
        return content
    raise BadData(f"{path}: expected a file of penstock's export, got another one")


def _opened(path: Path, weights: Path | None = None) -> OpenedStudent:
    """A student as the meta of a file describes it."""
    meta = _content(path)["meta"]
    try:
        spec, edge_head, image_size = meta["student"], meta["edge_head"], meta["image_size"]
        levels = {name: Level(**level) for name, level in meta["levels"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadData(f"{path}: expected a file of penstock's export; its meta lacks something: {error}") from error
    return open_student(spec, levels=levels, edge_head=edge_head, weights=weights, image_size=image_size)


def _still(model: nn.Module) -> Student:
    """A copy of the student inside, float32 on the CPU, in evaluation mode."""
    while not isinstance(model, Student):
        inner = getattr(model, "_orig_mod", getattr(model, "module", None))
        if not isinstance(inner, nn.Module):
            raise UsageError(f"export: expected a Student, got {type(model).__name__}")
        model = inner
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)


def _joined(student: Student) -> Student:
    found = copy.deepcopy(student)
    found.backbone.reparameterise()
    return found.eval().requires_grad_(False)


def require_onnx() -> None:
    """Imports what writing and checking ONNX needs.

    Raises:
        MissingExtra: one of the packages is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtra(name, "onnx", "exporting ONNX") from error


def _parity(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Parity:
    """Of the worst output. Names and shapes must be the same."""
    shapes = {name: tuple(each.shape) for name, each in found.items()}
    wanted = {name: tuple(each.shape) for name, each in expected.items()}
    if shapes != wanted:
        raise BadData(f"export: expected outputs {wanted}, got {shapes}")
    errors = {name: float((found[name] - each).abs().max()) for name, each in expected.items()}
    largest = {name: float(each.abs().max()) for name, each in expected.items()}
    worst = max(expected, key=lambda name: np.nan_to_num(errors[name] / (largest[name] or 1), nan=np.inf))
    cosines = [_cosine(found[name], each) for name, each in expected.items()]
    return Parity(max_abs_error=errors[worst], largest=largest[worst], cosine=float(np.min(cosines)))


def _cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    left, right = left.double().flatten(), right.double().flatten()
    norms = float(left.norm() * right.norm())
    return float(left @ right) / norms if norms else float(torch.equal(left, right))


def _by_stride(student: Student, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {str(stride): found for stride, found in student.backbone_maps(images).items()}


def _saved(student: Student, path: Path, state: Mapping[str, torch.Tensor]) -> None:
    meta = {
        "student": student.backbone.spec, "strides": list(student.backbone.channels), "image_size": student.image_size,
        "levels": {name: asdict(level) for name, level in student.levels.items()},
        "edge_head": student.edge_head is not None, "normalise": "RGB of 0..255 / 255, then ImageNet's mean and std",
    }  # fmt: skip
    torch.save({"meta": meta, "state_dict": dict(state)}, path)


def _save_backbone(student: Student, path: Path, images: torch.Tensor) -> None:
    backbone = student.backbone
    _saved(student, path, {backbone.published_name(name): value for name, value in backbone.state_dict().items()})


def _run_backbone(path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return _by_stride(_opened(path, weights=path).model.eval(), images)


def _save_student(student: Student, path: Path, images: torch.Tensor) -> None:
    _saved(student, path, student.state_dict())


def _run_student(path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return load_student(path).forward(images)


def _save_onnx(student: Student, path: Path, images: torch.Tensor) -> None:
    try:
        with _quiet():
            torch.onnx.export(
                student, (images,), path, input_names=["image"], output_names=student.outputs, dynamo=True, verbose=False,
                dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}}, external_data=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        spec = student.backbone.spec
        raise UsageError(
            f"export: {spec} cannot be written as ONNX, leave that format out: {str(error)[:500]}"
        ) from error


def _run_onnx(path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {"image": images.numpy()})
    return {name: torch.from_numpy(each) for name, each in zip(names, found, strict=True)}


def _save_script(student: Student, path: Path, images: torch.Tensor) -> None:
    try:
        with _quiet():
            traced = torch.jit.trace(student, images, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, path)
    except RuntimeError as error:
        spec = student.backbone.spec
        raise UsageError(
            f"export: {spec} cannot be written as TorchScript, leave that format out: {str(error)[:500]}"
        ) from error


def _run_script(path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with _quiet():
        found: dict[str, torch.Tensor] = torch.jit.load(path)(images)  # type: ignore[no-untyped-call]
    return found


_FILES = {
    BACKBONE: ("state_dict", _save_backbone, _run_backbone),
    "student.pth": ("state_dict", _save_student, _run_student),
    "student.onnx": ("onnx", _save_onnx, _run_onnx),
    "student.ts": ("torchscript", _save_script, _run_script),
}
"""Name -> its format, what writes it, what runs it."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own future, and of sizes that become fixed when traced: they are meant to be."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):  # type: ignore[attr-defined]  # documented by torch
            warnings.simplefilter("ignore", category)
        yield
