"""ONNX graphs by onnxruntime. Size and layout come from the graph, the rest from a JSON file beside it.

`model.json` beside `model.onnx`, each key optional: `size` (one side or height and width, where the graph leaves them
open), `resize`, `interpolation`, `mean`, `std` (of 0..1 RGB), `output` (name of the output that holds the vectors).
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import BadData, MissingExtra, SourceNotFound, UsageError
from penstock.models.hub import local_path, read_json
from penstock.models.opened import Opened, hash_files, require_torch, torch_device
from penstock.models.protocols import PictureTransform
from penstock.models.transform import make_transform, picture_pixels

if TYPE_CHECKING:
    import torch

DEFAULTS: dict[str, object] = {
    "resize": "squash",
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1 / 255, 1 / 255, 1 / 255],
}
"""Without a JSON file: RGB of 0..255, squashed. That is right for graphs that normalise by themselves."""

_KEYS = {"size", "output", *DEFAULTS}
_OUTPUTS = ("embedding", "embeddings", "image_embeds", "pooler_output")
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}

_MEMORY = ("Failed to allocate memory", "out of memory", "bad allocation", "bad_alloc")
"""In what onnxruntime says where memory is short; it has no class for it."""

_log = logging.getLogger("penstock")


def open_onnx(name: str, device: str) -> Opened:
    """An ONNX graph: pictures in (NCHW or NHWC; float, half or uint8), one vector per picture out.

    Args:
        name: path of the graph.
        device: as asked for; "auto" is the GPU only where this onnxruntime can use it.

    Raises:
        MissingExtra: onnxruntime or torch is not installed.
        SourceNotFound: no such file.
        BadData: it is no such graph, or the JSON file is damaged.
        UsageError: the graph or the JSON file leaves something open, or this onnxruntime cannot use the device.
    """
    path = local_path(name) or Path(name)
    if not path.is_file():
        raise SourceNotFound(f"onnx:{name}: no file {path}")
    require_torch("onnx")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", "running an ONNX graph") from error
    import torch

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    settled = "cpu" if device == "auto" and not has_cuda else torch_device(device)
    if settled != "cpu" and not has_cuda:
        raise UsageError(f"onnx:{name}: device {device}: this onnxruntime has no CUDA: install onnxruntime-gpu")
    sidecar = _read_sidecar(path.with_suffix(".json"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    number = settled.partition(":")[2]
    providers = ["CPUExecutionProvider"] if settled == "cpu" else [("CUDAExecutionProvider", {"device_id": number})]
    state = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
    ) as error:
        raise BadData(f"{path}: onnxruntime cannot open it: {error}") from error
    graph = _Graph(path, session, sidecar)
    transform = graph.transform
    outside = [each for each in (Path(f"{path}.data"), Path(f"{path}_data")) if each.is_file()]
    return Opened(
        network=graph,
        device=settled,
        transform=transform,
        prepare=lambda picture: picture_pixels(picture, transform),
        weights=hash_files([path, *outside]),
        facts={"output": graph.output},
        packages=("onnxruntime", "torch"),
    )


class _Graph:
    """Calls a session as if it were a module: (N, 3, h, w) float32 to (N, D)."""

    def __init__(self, path: Path, session: Any, sidecar: dict[str, object]) -> None:
        self.path = path
        self._session = session
        if len(session.get_inputs()) != 1:
            raise BadData(f"{path}: expected one input, got {[each.name for each in session.get_inputs()]}")
        found = session.get_inputs()[0]
        self._input = str(found.name)
        if found.type not in _TYPES:
            raise BadData(f"{path}: input {found.name}: expected one of {', '.join(_TYPES)}, got {found.type}")
        self._dtype = _TYPES[found.type]
        shape = found.shape
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise BadData(f"{path}: input {found.name}: expected (N, 3, h, w) or (N, h, w, 3), got {shape}")
        self._is_channels_last = shape[1] != 3
        sides = [shape[1], shape[2]] if self._is_channels_last else [shape[2], shape[3]]
        self._batch = shape[0] if isinstance(shape[0], int) else None
        self.output = self._pick_output(sidecar)
        self.transform = _transform(path, sides, sidecar)
        plain = (self.transform.mean, self.transform.std) == ((0.0,) * 3, (1 / 255,) * 3)
        if self._dtype == "uint8" and not plain:
            raise UsageError(f"{path}: takes uint8, so its JSON file must not state mean or std")

    def _pick_output(self, sidecar: dict[str, object]) -> str:
        names = [str(each.name) for each in self._session.get_outputs()]
        stated = [str(sidecar["output"])] if "output" in sidecar else []
        known = stated or (names if len(names) == 1 else [name for name in _OUTPUTS if name in names])
        if not known or known[0] not in names:
            raise UsageError(f'{self.path}: which output? Say {{"output": NAME}} in the JSON file; there are {names}')
        return known[0]

    def __call__(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Vectors of the pictures; a graph of a fixed batch is run as often as needed, the last time padded."""
        import torch

        array = pixels.permute(0, 2, 3, 1).cpu().numpy() if self._is_channels_last else pixels.cpu().numpy()
        array = np.ascontiguousarray(np.rint(array).clip(0, 255) if self._dtype == "uint8" else array, self._dtype)
        count, step = len(array), self._batch or len(array)
        if count % step:
            array = np.concatenate([array, np.zeros((step - count % step, *array.shape[1:]), array.dtype)])
        outputs = [self._run(array[start : start + step]) for start in range(0, count, step)]
        vectors = np.concatenate(outputs).astype(np.float32)[:count]
        if len(vectors) != count or vectors.size != count * vectors.shape[1]:
            raise BadData(
                f"{self.path}: output {self.output}: expected (N, D), got {vectors.shape} for {count} pictures"
            )
        return torch.from_numpy(vectors.reshape(count, -1)).to(pixels.device)

    def _run(self, array: np.ndarray) -> np.ndarray:
        """One call of the session; short memory is said as torch says it."""
        import torch
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

        try:
            found: np.ndarray = self._session.run([self.output], {self._input: array})[0]
        except (Fail, RuntimeException) as error:
            if any(words in str(error) for words in _MEMORY):
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        return found


def _transform(path: Path, sides: list[object], sidecar: dict[str, object]) -> PictureTransform:
    size = sides if all(isinstance(side, int) for side in sides) else sidecar.get("size")
    if size is None:
        raise UsageError(
            f'{path}: leaves the size open: say {{"size": 224}}, or whatever it is, in the JSON file beside'
        )
    stated = {key: sidecar.get(key, default) for key, default in DEFAULTS.items()}
    transform = make_transform(str(path), size, **stated)
    if "size" in sidecar and size is sides and make_transform(str(path), sidecar["size"], **stated) != transform:
        raise UsageError(f"{path}: takes pictures of {sides}, its JSON file says {sidecar['size']}")
    if not {"mean", "std"} & sidecar.keys():
        _log.warning(
            "penstock: %s: no normalisation is stated in %s: feeding RGB of 0..255",
            path,
            path.with_suffix(".json").name,
        )
    return transform


def _read_sidecar(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    facts = read_json(path)
    if set(facts) - _KEYS:
        raise BadData(f"{path}: expected an object with some of {', '.join(sorted(_KEYS))}, got {facts!r}")
    return facts
