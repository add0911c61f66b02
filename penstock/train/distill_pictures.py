"""What a student makes of the worst samples, as pictures in the run's folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from penstock.geometry.images import encode_jpeg
from penstock.models.decoders import masks_for
from penstock.models.distill_protocols import EDGE, MaskDecoder
from penstock.report import dump_json
from penstock.store.output import refused_if_unwritable, replace_file
from penstock.train.distill_contract import EDGES
from penstock.train.distill_sheets import HELD_FOLDER as HELD_FOLDER
from penstock.train.distill_sheets import INDEX, PANEL, Sample, fit_colours, sheet_of, words_of
from penstock.train.metrics import MaskScore
from penstock.train.pieces import on_device, sample_keys
from penstock.train.worst import COUNT, FOLDER

_FITTED = 8
"""Pictures that colours are fitted on."""
_QUALITY = 88


def samples_of(
    model: nn.Module, batch: Mapping[str, Any], *, level: str, decoder: MaskDecoder | None = None
) -> list[Sample]:
    """What a student makes of a batch, in eval mode and without gradients; the model's mode is put back.

    Args:
        model: a student (`penstock.models.students`); the batch is brought to its device.
        batch: image (B, 3, S, S) uint8, `level` (B, C, h, w); where they are shown key, edge_256x256, box (B, 4) XYXY in
            pixels of the square, mask (B, n, n) 0 or 1, has_box (B,).
        level: the teacher's, that is learned.
        decoder: makes masks of both features for the boxes; None: only the truth is shown.

    Returns:
        B samples. One without a box, or whose mask is empty, has no masks.
    """
    moved = on_device(batch, next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(moved["image"])
            masks = _masks(moved, outputs[level], level, decoder) if "mask" in moved else [{}] * len(moved["image"])
    finally:
        model.train(was_training)
    edges = {}
    if EDGE in outputs and EDGES in moved:
        edges = {"teacher": _array(moved[EDGES]) > 0, "student": _array(outputs[EDGE][:, 0]) > 0}
    features = {"teacher": _array(moved[level]), "student": _array(outputs[level])}
    images = moved["image"].permute(0, 2, 3, 1).cpu().numpy()
    return [
        Sample(
            key=key, image=images[number], level=level, edges={name: one[number] for name, one in edges.items()},
            **{name: one[number] for name, one in features.items()}, **masks[number],
        )
        for number, key in enumerate(sample_keys(batch))
    ]  # fmt: skip


def save_worst_pictures(
    model: nn.Module,
    batch: Mapping[str, Any],
    order: Sequence[int],
    folder: Path,
    *,
    level: str,
    decoder: MaskDecoder | None = None,
    name: str = FOLDER,
    step: int | None = None,
) -> list[np.ndarray]:
    """Writes `<name>/<n>_<key>.jpg` of the worst samples of a batch and `<name>/index.json`, in the place of what lay there.

    Colours are fitted on the teacher's features of the batch's worst samples.

    Args:
        model, batch, level, decoder: as of `samples_of`.
        order: numbers of the samples, the worst first.
        folder: of the run.
        name: `FOLDER` or `HELD_FOLDER`.
        step: that the model has made; recorded.

    Returns:
        The sheets, (H, W, 3) uint8 RGB each, the worst first.

    Raises:
        OutputRefused, OutputFull: the folder cannot be written.
    """
    shown = list(order[:COUNT])
    samples = samples_of(model, _rows(batch, shown), level=level, decoder=decoder) if shown else []
    colours = fit_colours(_array(_rows({level: batch[level]}, order[:_FITTED])[level]))
    into, listed, sheets = folder / name, [], []
    with refused_if_unwritable(into):
        into.mkdir(parents=True, exist_ok=True)
        for path in into.glob("*.jpg"):
            path.unlink()
    for place, sample in enumerate(samples):
        sheets.append(sheet_of(sample, colours))
        file = re.sub(r"[^\w.-]", "_", f"{place}_{sample.key}", flags=re.ASCII)[:120] + ".jpg"
        replace_file(into / file, encode_jpeg(sheets[-1], quality=_QUALITY))
        listed.append({"file": file, "key": sample.key, "words": words_of(sample)})
    replace_file(into / INDEX, f"{dump_json({'step': step, 'samples': listed})}\n".encode())
    return sheets


def _masks(
    moved: Mapping[str, Any], student: torch.Tensor, level: str, decoder: MaskDecoder | None
) -> list[dict[str, Any]]:
    """Masks, scores and box of each sample, where it has a box."""
    found: list[dict[str, Any]] = [{"masks": {}} for _ in moved["has_box"]]
    rows = torch.nonzero(moved["has_box"].bool() & (moved["mask"] > 0).flatten(1).any(dim=1)).flatten()
    if not len(rows):
        return found
    boxes, truth = moved["box"][rows], moved["mask"][rows]
    features = {"teacher": moved[level][rows].float(), "student": student[rows].float()}
    side = moved["image"].shape[-1]
    logits = {name: masks_for(decoder, one, boxes, side) for name, one in features.items()} if decoder else {}
    for place, number in enumerate(rows.tolist()):
        scores = {name: MaskScore() for name in logits}
        masks = {"truth": _array(truth[place]) > 0}
        for name, one in logits.items():
            scores[name].take(one[place : place + 1], truth[place : place + 1])
            size = (PANEL, PANEL)
            masks[name] = _array(F.interpolate(one[place, None, None].float(), size, mode="bilinear")[0, 0]) > 0
        ious = {name: score.giou for name, score in scores.items()}
        found[number] = {"masks": masks, "scores": ious, "box_xyxy": _array(boxes[place])}
    return found


def _rows(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {
        name: [value[row] for row in rows] if isinstance(value, list | tuple) else value[list(rows)]
        for name, value in batch.items()
    }


def _array(values: Any) -> np.ndarray:
    """As float32, wherever it lies."""
    return torch.as_tensor(values).detach().float().cpu().numpy()
