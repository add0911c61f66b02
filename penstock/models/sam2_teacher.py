"""SAM2's picture encoder as a teacher: the raw features of its pyramid, as they are before anything is added to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.models.distill_protocols import STAND_IN, Level, TeacherOptions, level_name
from penstock.models.opened import require_torch, torch_device, versions
from penstock.models.sam2_config import ARCHITECTURES, config_facts, make_config, parse_model_cfg
from penstock.models.sam2_memory import in_chunks
from penstock.models.sam2_pixels import model_pixels
from penstock.models.sam2_weights import Sam2Weights, build, open_weights

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Raised whenever the same picture would give other features."""
_STRIDES = (4, 8, 16, 32)


class Sam2Teacher:
    """A `Teacher` over SAM2: levels P2_S4 to P5_S32 of the neck, without the "no memory" embedding that SAM2's predictor
    adds, and without the decoder's convolutions on the fine levels. Position embeddings are not features and are not added.

    Pickles without the weights; where it is used again it reads them, and refuses others than before.
    """

    def __init__(self, model_type: str, options: TeacherOptions) -> None:
        """Reads the weights and checks them.

        Raises:
            UsageError, SourceNotFound, BadData, MissingExtra: see `penstock.models.teachers.open_teacher`.
        """
        require_torch("transformers")
        self.name = model_type
        self.options = options
        self.device = torch_device(options.device)
        if options.precision == "bf16" and self.device == "cpu":
            raise UsageError("precision: expected fp32 on a CPU, got bf16")
        weights = self._read()
        self.image_size = int(weights.config.prompt_encoder_config.image_size)
        if options.image_size not in (None, self.image_size):
            raise UsageError(
                f"image-size {options.image_size}: {model_type} sees {self.image_size} x {self.image_size}"
            )
        channels = int(weights.config.vision_config.fpn_hidden_size)
        levels = [
            Level(name=level_name(stride), stride=stride, channels=channels, side=self.image_size // stride)
            for stride in _STRIDES
        ]
        self.levels: Mapping[str, Level] = {level.name: level for level in levels}
        self._digest = weights.digest
        self._facts = {**config_facts(weights.config), **({"random_weights": True} if weights.is_random else {})}
        self._size: int | None = None
        self._encoder: Any = build(weights).vision_encoder.to(self.device)

    def identity(self) -> dict[str, object]:
        """Hash of the weights, architecture, precision; `random_weights` where the features mean nothing."""
        return {
            "teacher": "sam2",
            "version": VERSION,
            "weights": self._digest,
            "precision": self.options.precision,
            **self._facts,
        }

    def libraries(self) -> dict[str, str]:
        """Of torch and transformers."""
        return versions(["torch", "transformers"])

    def features(self, images: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
        """The pyramid of pictures, (H, W, 3) uint8 RGB each, of any sizes: stretched to the square by SAM2's own transform.

        Returns:
            name -> (N, C, h, w) float32 on `device`. Where memory is short, fewer are looked at together.

        Raises:
            BadData: a picture is none, or does not fit into memory alone.
        """
        import torch

        def work(chunk: slice) -> "dict[str, torch.Tensor]":
            return self._pyramid(images[chunk])

        parts, size = in_chunks(len(images), self._size or len(images), work, self._refuse, "pictures")
        self._size = size if size < len(images) else self._size
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in self.levels}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_encoder": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        require_torch("transformers")  # at once: who keeps torch to one thread, does so with one that is loaded

    def _pyramid(self, images: Sequence[np.ndarray]) -> "dict[str, torch.Tensor]":
        import torch

        encoder = self._ready()
        is_half = self.options.precision == "bf16"
        half = torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=is_half)
        with torch.inference_mode(), half, torch.backends.cudnn.flags(allow_tf32=is_half):
            pixels = model_pixels(images, self.image_size, self.device)
            found, _ = encoder.neck(encoder.backbone(pixels).intermediate_hidden_states)
        by_side = {level.shape[-1]: level.float() for level in found}
        return {name: by_side[level.side] for name, level in self.levels.items()}

    def _refuse(self, chunk: slice, reason: str) -> "dict[str, torch.Tensor]":
        raise BadData(f"{self.name}: out of memory on {self.device} with one picture: free the device. {reason}")

    def _ready(self) -> Any:
        if self._encoder is None:
            weights = self._read()
            if weights.digest != self._digest:
                raise UsageError(
                    f"{self.name}: the weights have changed since it was opened: {self._digest}, now {weights.digest}"
                )
            self._encoder = build(weights).vision_encoder.to(self.device)
        return self._encoder

    def _read(self) -> Sam2Weights:
        return teacher_weights(self.name, self.options.weights, download=self.options.download)


def teacher_weights(model_type: str, weights: str | None = None, *, download: bool = False) -> Sam2Weights:
    """The weights of a SAM2 as teachers and their decoders name them.

    Args:
        model_type: as `penstock.models.sam2_weights.open_weights` takes it.
        weights: a file, a folder of transformers, or OWNER/NAME of the hub; None: the model type's own place.
        download: whether the hub may be asked for what is not on this machine.

    Raises:
        UsageError: a name that is not known, or weights of another architecture.
        SourceNotFound: no weights; the message says how to give some, and that the stand-in needs none.
        BadData, MissingExtra: as `open_weights`.
    """
    try:
        if weights is None or Path(weights).exists() or "/" not in weights or weights.endswith((".pt", ".safetensors")):
            return open_weights(model_type, None if weights is None else Path(weights), download=download)
        found = open_weights(weights, download=download)
    except SourceNotFound as error:
        raise SourceNotFound(_no_weights(model_type, weights)) from error
    except UsageError as error:
        if type(error) is not UsageError:
            raise
        words = str(error).replace("model-cfg", "model-type")
        raise UsageError(f"teacher: {words}") from error
    named = parse_model_cfg(model_type)
    if named is not None and config_facts(make_config(ARCHITECTURES[named.size])) != config_facts(found.config):
        raise UsageError(f"teacher: {weights} holds weights of another architecture than {model_type}")
    return found


def _no_weights(model_type: str, weights: str | None) -> str:
    named = parse_model_cfg(model_type)
    place = weights or (named.zoo_file if named else model_type)
    return (
        f"teacher: no weights of {model_type} at {place}: say --weights FILE (Meta's .pt, a .safetensors, a folder of "
        f"transformers) or --weights OWNER/NAME with --download; or --model-type {STAND_IN}, which needs none and is no SAM2"
    )
