"""Sa2VA as captioner and segmenter, in an environment of its own: its code is remote and pins other packages.

It answers and does not learn: no gradient crosses a process. B pictures, H x W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from penstock.errors import UsageError
from penstock.models.caption_protocols import FoundMasks
from penstock.models.sa2va_process import ModelProcess, ModelProcessError

SURE = 5.0
"""Logit of a pixel inside an answer's mask; outside it is the negative."""
_INSTEAD = (
    "Sa2VA answers here and does not learn, for it runs in a process of its own: train model florence2:NAME or cycle, on "
    "captions that Sa2VA made before (captions=cached)"
)


class Sa2va(nn.Module):
    """Sa2VA, or another model, behind a process; for making captions and for evaluation. Use it in a `with`, or close it.

    Args:
        name: folder or repository of the weights, as the model's environment knows it; nothing is downloaded.
        python: interpreter of that environment.
        device: there.
        model: `module:function` in that environment, of (name, device), giving `captions` and `segment` as
            `sa2va_worker.Conversation` has them; "": Sa2VA.
        start_s: seconds for loading the model.
        answer_s: seconds for a batch.

    Raises:
        UsageError: a time that is not above 0.
    """

    def __init__(
        self, name: str, *, python: Path, device: str = "cuda", model: str = "", start_s: float = 1800.0,
        answer_s: float = 600.0,
    ) -> None:  # fmt: skip
        super().__init__()
        arguments = ["--name", name, "--device", device, "--model", model]
        self._process = ModelProcess(python, arguments, start_s=start_s, answer_s=answer_s)
        self.here = nn.Parameter(torch.empty(0), requires_grad=False)
        """Says on which device its results lie; there is nothing to train."""

    def __enter__(self) -> "Sa2va":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def captions(self, images: torch.Tensor, masks: torch.Tensor) -> list[str]:
        """One sentence for each mask, "" for an empty one; see `Captioner`.

        Raises:
            SourceNotFound, UsageError, ModelProcessError: as `ModelProcess.ask`.
        """
        found = [""] * len(images)
        seen = [number for number in range(len(images)) if bool(masks[number].any())]
        if not seen:
            return found
        arrays = {"images": _pixels(images[seen]), "masks": (masks[seen] > 0).to(torch.uint8).cpu().numpy()}
        answer, _ = self._process.ask({"ask": "captions"}, arrays)
        texts = answer.get("captions")
        if not (isinstance(texts, list) and len(texts) == len(seen) and all(isinstance(text, str) for text in texts)):
            raise ModelProcessError(f"Sa2va: expected {len(seen)} captions, got {str(texts)[:200]}")
        for number, text in zip(seen, texts, strict=True):
            found[number] = text
        return found

    def caption_loss(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """Refused: it does not learn.

        Raises:
            UsageError: always.
        """
        raise UsageError(_INSTEAD)

    def segment(
        self, images: torch.Tensor, captions: Sequence[str] | torch.Tensor, masks: torch.Tensor | None = None
    ) -> FoundMasks:
        """Logits (B, H, W) of +-`SURE`, without a gradient.

        Raises:
            UsageError: captions are soft words, or true masks are given, which a training does.
            SourceNotFound, UsageError, ModelProcessError: as `ModelProcess.ask`.
        """
        if masks is not None or isinstance(captions, torch.Tensor):
            raise UsageError(_INSTEAD)
        if len(captions) != len(images):
            raise UsageError(f"Sa2va: expected {len(images)} captions, got {len(captions)}")
        _, arrays = self._process.ask({"ask": "segment", "captions": list(captions)}, {"images": _pixels(images)})
        inside, has_mask = (arrays.get(name, np.empty(0)) for name in ("masks", "has_mask"))
        wanted: tuple[int, ...] = (len(images), *images.shape[-2:])
        if inside.shape != wanted or has_mask.shape != wanted[:1]:
            raise ModelProcessError(f"Sa2va: expected masks of {wanted}, got {inside.shape} and {has_mask.shape}")
        logits = torch.from_numpy(inside > 0).to(self.here.device).float() * (2 * SURE) - SURE
        return FoundMasks(logits=logits, has_mask=torch.from_numpy(has_mask.astype(bool)).to(self.here.device))


def open_sa2va(text: str, words: Sequence[str], seed: int) -> NoReturn:
    """For `open_cycle`, which opens what is trained.

    Raises:
        UsageError: always; it says what to take instead.
    """
    raise UsageError(f"model sa2va:{text}: {_INSTEAD}")


def _pixels(images: torch.Tensor) -> Any:
    """(B, H, W, 3) uint8 of (B, 3, H, W) 0..1."""
    return (images * 255).round().to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()
