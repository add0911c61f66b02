"""Opens a model by its spec, `TYPE:NAME`, and turns pictures into unit vectors with it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from penstock import registry
from penstock.errors import PenstockError, UsageError
from penstock.models.opened import Opened, require_torch, versions
from penstock.models.protocols import BadVectors, Embedder, PictureTransform
from penstock.models.transform import transform_facts

if TYPE_CHECKING:
    import torch
    from PIL import Image

BATCHES = {"cpu": 16, "cuda": 256}
"""Pictures per forward pass to begin with."""

_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In what torch says where memory is short, and has no class for it: on a CPU, and in a library of the GPU's."""

Precision = Literal["fp32", "bf16", "fp16", "graph"]

_log = logging.getLogger("penstock")


def open_embedder(
    spec: str,
    *,
    device: str = "auto",
    amp: bool | None = None,
    amp_bf16: bool = False,
    compile: bool = False,  # noqa: A002  # the seed's word
    batch_size: int | None = None,
) -> Embedder:
    """Opens a model: everything that can be wrong with it is said here, before any work.

    Args:
        spec: `openclip:REPO`, `openclip:FOLDER`, `openclip:ARCH@WEIGHTS`, `openclip:ARCH@random[:SEED]`, `openai:NAME`,
            `transformers:REPO or FOLDER`, `onnx:FILE`, `tiny:[dim=64,size=32,seed=0]`. Paths may be `file:///...`.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
        amp: mixed precision. None: fp16 on a GPU, none on a CPU. True: the same on a GPU, bf16 on a CPU. False: none.
        amp_bf16: mixed precision in bf16, on any device.
        compile: torch.compile; the last batch is padded, so that one shape is compiled.
        batch_size: pictures per forward pass to begin with; halved where memory is short. None: by device.

    Raises:
        UsageError: unknown TYPE or NAME, no such device, or arguments that contradict each other.
        MissingExtra: an optional package is needed.
        SourceNotFound: the weights are not on this machine and cannot be had; the message says where to put them.
        BadData: files are there, and what they hold is not a model.
    """
    family, name = parse_spec(spec)
    if amp is False and amp_bf16:
        raise UsageError("amp_bf16 asks for mixed precision, amp=False for none")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size: expected 1 or more, got {batch_size}")
    load = registry.find("models", family)
    options = _Options(spec, name, device, amp, amp_bf16, compile, batch_size)
    return ModelEmbedder(options, cast("Callable[[str, str], Opened]", load))


def parse_spec(spec: str) -> tuple[str, str]:
    """TYPE and NAME of a spec.

    Raises:
        UsageError: no colon, a TYPE that is not known, or no NAME where one is needed.
    """
    family, colon, name = spec.partition(":")
    known = registry.names("models")
    if not colon or family not in known:
        found = f"no TYPE {family!r}" if colon else "no colon"
        raise UsageError(
            f"embedder spec {spec!r}: {found}; expected TYPE:NAME with TYPE one of {', '.join(known)}, "
            "for instance openclip:timm/ViT-B-16-SigLIP"
        )
    if not name and family != "tiny":
        raise UsageError(f"embedder spec {spec!r}: expected a NAME after the colon")
    return family, name


@dataclass(frozen=True)
class _Options:
    spec: str
    name: str
    device: str
    amp: bool | None
    amp_bf16: bool
    compile: bool
    batch_size: int | None


class ModelEmbedder:
    """An `Embedder` over what a family opened: batches, precision, memory, norm.

    Pickles without the weights; where it is used again it loads them, and refuses others than before.
    """

    def __init__(self, options: _Options, load: Callable[[str, str], Opened]) -> None:
        self.spec = options.spec
        self._options = options
        self._load = load
        self._opened: Opened | None = None
        self._network: Callable[..., object] = _not_open
        opened = self._open()
        self.device: str = opened.device
        self.transform: PictureTransform = opened.transform
        self.batch_size: int = options.batch_size or BATCHES[self.device.partition(":")[0]]
        self._facts = {**opened.facts, "weights": opened.weights}
        self._libraries = versions(opened.packages)
        self.dim: int = self._measure()

    def identity(self) -> dict[str, object]:
        """What the vectors depend on, as plain values; `random_weights` is there, and true, where they mean nothing."""
        return {
            "spec": self.spec,
            "dim": self.dim,
            "transform": transform_facts(self.transform),
            "precision": self._precision,
            **self._facts,
        }

    def libraries(self) -> dict[str, str]:
        """Versions of the libraries behind the model."""
        return dict(self._libraries)

    def prepare(self, picture: "Image.Image") -> np.ndarray:
        """The model's own transform: an RGB picture of any size to (3, h, w) float32."""
        return self._ready().prepare(picture)

    def embed(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(N, 3, h, w) float32, as `prepare` makes it, on any device, to (N, dim) float32 on `device`, rows of norm 1.

        Raises:
            UsageError: another shape or type.
            BadVectors: some vectors have no direction; `rows` says which.
            PenstockError: not even one picture fits into memory.
        """
        import torch

        self._ready()
        expected = (3, *self.transform.size_hw)
        if tuple(pixels.shape[1:]) != expected or pixels.dtype != torch.float32:
            raise UsageError(f"expected float32 pixels (N, {expected}), got {pixels.dtype} {tuple(pixels.shape)}")
        parts = [torch.empty((0, self.dim), device=self.device)]
        while len(pixels):
            parts.append(self._begin(pixels))
            pixels = pixels[len(parts[-1]) :]
        return self._unit(torch.cat(parts))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32 of norm 1. The text tower stays on the CPU, in float32.

        Raises:
            UsageError: the model has no text tower, or its tokenizer is not on this machine.
        """
        import torch

        encode = self._ready().encode_texts
        if encode is None:
            raise UsageError(
                f"{self.spec}: the model has no text tower; texts need one, for instance a CLIP or a SigLIP"
            )
        if not texts:
            return np.empty((0, self.dim), np.float32)
        with torch.inference_mode():
            return self._unit(encode(list(texts)).float()).numpy()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None, "_network": _not_open}

    def _ready(self) -> Opened:
        return self._opened or self._open()

    def _open(self) -> Opened:
        """Loads the model and readies it for its device."""
        require_torch("train")
        import torch

        options = self._options
        # Unpickled, it asks for the device it was opened on: "auto" may mean another one there.
        opened = self._load(options.name, self.__dict__.get("device", options.device))
        network = opened.network
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False).eval().to(opened.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
            self._precision = _precision(options, opened.device)
            network = cast("Callable[..., object]", torch.compile(network)) if options.compile else network
        elif options.amp or options.amp_bf16 or options.compile:
            raise UsageError(f"{self.spec}: amp and compile are for torch models; this one states its own arithmetic")
        else:
            self._precision = "graph"
        before = self.__dict__.get("_facts", {}).get("weights", opened.weights)
        if opened.weights != before:
            raise UsageError(
                f"{self.spec}: the weights have changed since it was opened: {before}, now {opened.weights}"
            )
        self._opened, self._network = opened, network
        return opened

    _precision: Precision

    def _measure(self) -> int:
        """Numbers of a vector, from one picture of zeros; also the first proof that the model runs here."""
        import torch

        vectors = self._begin(torch.zeros((1, 3, *self.transform.size_hw)))
        if vectors.ndim != 2 or len(vectors) != 1:
            raise UsageError(
                f"{self.spec}: expected one vector per picture, got {tuple(vectors.shape)} for one picture"
            )
        return int(vectors.shape[1])

    def _begin(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Vectors of the first pictures, as many as fit."""
        while True:
            chunk = pixels[: self.batch_size]
            size = self.batch_size if self._options.compile else len(chunk)
            vectors, trouble = self._attempt(chunk, size)
            if vectors is not None:
                return vectors
            self._halve(size, trouble)  # outside of the handler, whose traceback holds the memory

    def _attempt(self, pixels: "torch.Tensor", size: int) -> "tuple[torch.Tensor | None, str]":
        """One forward pass of `size` pictures: (n, D) float32; or None and the words of an error: memory is short."""
        import torch

        kind = self.device.partition(":")[0]
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._precision)
        try:
            with torch.inference_mode(), torch.autocast(kind, dtype=half, enabled=half is not None):
                batch = pixels.to(self.device, non_blocking=True)
                if size > len(pixels):
                    batch = torch.cat([batch, batch.new_zeros((size - len(pixels), *batch.shape[1:]))])
                output = self._network(batch.contiguous(memory_format=torch.channels_last))
                vectors = self._ready().vectors(output)[: len(pixels)].float()
                return vectors, ""
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _MEMORY):
                return None, str(error)
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise UsageError(f"{self.spec}: torch.compile failed; go without it: {error}") from error
            raise

    def _halve(self, count: int, trouble: str) -> None:
        """Goes on with half of a batch that did not fit.

        Raises:
            PenstockError: it was one picture.
        """
        import torch

        if self.device != "cpu":
            torch.cuda.empty_cache()
        if count == 1:
            raise PenstockError(
                f"{self.spec}: out of memory on {self.device} with a single picture: free the device (see who uses it), "
                f"use a smaller model, mixed precision (--amp-bf16) or --device cpu. {trouble}"
            )
        self.batch_size = count // 2
        _log.warning(
            "penstock: %s: out of memory with %d pictures, going on with %d", self.spec, count, self.batch_size
        )

    def _unit(self, vectors: "torch.Tensor") -> "torch.Tensor":
        """Rows divided by their norms, in float32."""
        import torch

        norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        is_bad = ~(torch.isfinite(norms) & (norms > 0))
        if bool(is_bad.any()):
            rows = is_bad.flatten().nonzero().flatten().tolist()
            advice = " fp16 may have overflowed: try --amp-bf16 or --no-amp." if self._precision == "fp16" else ""
            raise BadVectors(
                f"{self.spec}: expected finite vectors that are not all zeros; got others in rows "
                f"{', '.join(map(str, rows))} of {len(vectors)}.{advice}",
                rows,
            )
        unit: torch.Tensor = vectors / norms
        return unit


def _precision(options: _Options, device: str) -> Precision:
    if options.amp_bf16:
        return "bf16"
    is_gpu = device != "cpu"
    wanted = is_gpu if options.amp is None else options.amp
    if not wanted:
        return "fp32"
    return "fp16" if is_gpu else "bf16"  # a CPU has fast kernels for bf16 only


def _not_open(pixels: "torch.Tensor") -> object:
    raise AssertionError("the network is used before it is opened")
