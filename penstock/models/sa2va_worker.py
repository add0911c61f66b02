"""Runs in the environment of a model, beside penstock: reads questions from stdin, answers on stdout.

    /path/to/its/env/bin/python sa2va_worker.py --name ByteDance/Sa2VA-4B --device cuda:0

Python 3.10 or later. Imports nothing of penstock, and nothing but the standard library until it was told which model. A
frame is `MAGIC`, the length of its body (8 bytes, big-endian), and the body: the length of a JSON object (4 bytes), the
object, and one .npy file after the other for the names that its "arrays" lists. What the model's code prints goes to stderr.

    ready     {"ready": 1}, or {"error": "...", "kind": "missing"} and the end, where a package is missing
    captions  images (B, H, W, 3) uint8 RGB, masks (B, H, W) uint8 0 or 1 -> "captions": B texts
    segment   images, "captions": B texts -> masks (B, H, W) uint8 0 or 1, has_mask (B,) bool
              or {"error": "...", "kind": "failed"}, and the next question
"""

import argparse
import importlib
import io
import json
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

MAGIC = b"PENSTOCK"
HEAD = 16
"""Bytes before the body."""
MAX_BODY = 1 << 31
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a model may raise over one question and still answer the next."""
_DESCRIBE = (
    "<image>Can you provide me with a detailed description of the region in the picture marked by region1? "
    "Please answer in one sentence."
)
_LOCATE = "<image>Please segment {} in this image."
GRID = 16
"""Cells a side that Sa2VA looks at a region in: 448 pixels, patches of 14, two by two of them one."""
_MARKS = re.compile(r"\[SEG\]|</?p>|</?vp>|<[^<>\s]*>")


class Conversation:
    """Sa2VA's own `predict_forward`, one picture at a time.

    Args:
        network: what its remote code makes.
        tokenizer: likewise.
    """

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = network, tokenizer

    def captions(self, images: Any, masks: Any) -> list[str]:
        """One sentence for each mask; arrays as the question has them."""
        both = zip(images, map(on_grid, masks), strict=True)
        return [plain(str(self._said(image, _DESCRIBE, mask)["prediction"])) for image, mask in both]

    def segment(self, images: Any, captions: Sequence[str]) -> list[Any]:
        """For each caption the union of the masks of its answer, (H, W) bool; None where the answer has none."""
        import numpy as np

        found = []
        for image, caption in zip(images, captions, strict=True):
            masks = self._said(image, _LOCATE.format(caption.strip().rstrip(".")), None)["prediction_masks"]
            parts = [np.asarray(mask).reshape(image.shape[:2]) for mask in masks]
            found.append(np.any(parts, axis=0) if parts else None)
        return found

    def _said(self, image: Any, text: str, mask: Any) -> Mapping[str, Any]:
        from PIL import Image

        prompts = None if mask is None else [mask[None].astype("float32")]
        answer: Mapping[str, Any] = self.network.predict_forward(
            image=Image.fromarray(image), text=text, mask_prompts=prompts, tokenizer=self.tokenizer
        )
        return answer


def open_conversation(name: str, device: str) -> Conversation:
    """Sa2VA by its remote code: a folder, or a repository that is in the hub's cache."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    loaded: Any = AutoModel
    network = loaded.from_pretrained(name, torch_dtype=torch.bfloat16, trust_remote_code=True).eval().to(device)
    tokens: Any = AutoTokenizer
    return Conversation(network, tokens.from_pretrained(name, trust_remote_code=True, use_fast=False))


def plain(text: str) -> str:
    """An answer without its end and its marks: `<p>`, `[SEG]`, `<|im_end|>`."""
    return " ".join(_MARKS.sub(" ", text.partition("<|")[0]).split())


def on_grid(mask: Any) -> Any:
    """A mask (H, W) that Sa2VA sees something of. It takes the nearest pixel for each cell of its grid, and describes a region
    without a cell blind: there one pixel more is set, for the cell that holds the most of the mask."""
    import numpy as np

    rows, columns = ([number * side // GRID for number in range(GRID)] for side in mask.shape)
    if mask[np.ix_(rows, columns)].any() or not mask.any():
        return mask
    ys, xs = np.nonzero(mask)
    cells = np.bincount(ys * GRID // mask.shape[0] * GRID + xs * GRID // mask.shape[1])
    row, column = divmod(int(cells.argmax()), GRID)
    found = mask.copy()
    found[rows[row], columns[column]] = 1
    return found


def pack(head: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """A frame, in bytes."""
    file = io.BytesIO()
    text = json.dumps({**head, "arrays": list(arrays)}).encode()
    file.write(struct.pack(">I", len(text)) + text)
    for array in arrays.values():
        import numpy as np

        np.save(file, array, allow_pickle=False)
    body = file.getvalue()
    return MAGIC + struct.pack(">Q", len(body)) + body


def body_length(head: bytes) -> int:
    """Of the body after the first `HEAD` bytes of a frame.

    Raises:
        ValueError: they are no frame's.
    """
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if head[: len(MAGIC)] != MAGIC or length > MAX_BODY:
        raise ValueError(f"expected a frame, got {head!r}")
    return length


def unpack(body: bytes) -> "tuple[dict[str, Any], dict[str, Any]]":
    """The object and the arrays of a body.

    Raises:
        ValueError: it holds neither.
    """
    file = io.BytesIO(body)
    head = json.loads(file.read(int.from_bytes(file.read(4), "big")))
    if not isinstance(head, dict):
        raise ValueError(f"expected an object, got {str(head)[:80]}")
    arrays = {}
    for name in head.pop("arrays", ()):
        import numpy as np

        arrays[name] = np.load(file, allow_pickle=False)
    return head, arrays


def answer(model: Any, head: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """The frame that answers a question."""
    import numpy as np

    try:
        if head["ask"] == "captions":
            return pack({"captions": list(model.captions(arrays["images"], arrays["masks"]))}, {})
        found = model.segment(arrays["images"], head["captions"])
        empty = np.zeros(arrays["images"].shape[1:3], np.uint8)
        masks = np.stack([empty if mask is None else np.asarray(mask).astype(np.uint8) for mask in found])
        return pack({}, {"masks": masks, "has_mask": np.array([mask is not None for mask in found])})
    except _FAILURES as error:
        return pack({"error": f"{type(error).__name__}: {error}", "kind": "failed"}, {})


def main() -> int:
    """Loads the model, says so, and answers until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="", help="module:function (name, device) -> captions and segment")
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [
        path for path in sys.path if os.path.abspath(path) != here
    ]  # penstock's modules are not for its code
    try:
        module, _, function = given.model.partition(":")
        make = getattr(importlib.import_module(module), function) if module else open_conversation
        model = make(given.name, given.device)
    except ImportError as error:
        _send(answers, pack({"error": f"{type(error).__name__}: {error}", "kind": "missing"}, {}))
        return 3
    _send(answers, pack({"ready": 1}, {}))
    while head := sys.stdin.buffer.read(HEAD):
        _send(answers, answer(model, *unpack(sys.stdin.buffer.read(body_length(head)))))
    return 0


def _send(file: BinaryIO, frame: bytes) -> None:
    file.write(frame)
    file.flush()


if __name__ == "__main__":
    sys.exit(main())
