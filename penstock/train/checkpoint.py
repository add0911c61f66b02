"""Checkpoints: whole or not there, read without running code, refused where they belong to another run."""

import hashlib
import os
import pickle
import random
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import torch

from penstock.errors import OutputFull, PartClaimed, RecipeMismatch, SourceNotFound, StoreCorrupt
from penstock.store.manifest import flat
from penstock.store.output import full_said, refused_if_unwritable

VERSION = 1
BEST = "best.pt"
_DAMAGED = (RuntimeError, zipfile.BadZipFile, zlib.error)
_NAME = re.compile(r"step_(\d{9})\.pt")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint: aside, flushed, then renamed, so that a kill at any moment leaves the old one or the new one.

    Raises:
        OutputFull: no room; nothing is left of it.
        OutputRefused: the folder cannot be written.
        PartClaimed: another training removed it while it was written.
    """
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with (
            refused_if_unwritable(path),
            full_said(path, "the checkpoints before this one are whole"),
            aside.open("wb") as file,
        ):
            _write({"version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OutputFull:
        aside.unlink(missing_ok=True)
        raise
    except FileNotFoundError as error:
        raise PartClaimed(
            f"{path}: {aside.name} was removed before it was whole: another training writes in this folder; end one of them"
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(content: Mapping[str, Any], file: BinaryIO) -> None:
    """As `torch.save`. Where a write fails, torch's archive fails again as it is closed, which would hide why."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path, *, identity: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Reads a checkpoint; tensors come to the CPU. No code in the file is run. Every byte is held against its checksum, which
    torch writes and does not look at.

    Args:
        path: the file.
        identity: what the checkpoint's own identity must equal; None: anything.

    Raises:
        SourceNotFound: no such file.
        StoreCorrupt: it is no checkpoint, or is damaged.
        RecipeMismatch: it is of another configuration; the differing values are named.
    """
    if not path.is_file():
        raise SourceNotFound(f"{path}: no such checkpoint")
    try:
        _check_sums(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}")
        known = content["version"] == VERSION
    except (*_DAMAGED, EOFError, KeyError, TypeError, pickle.UnpicklingError, OSError, ValueError) as error:
        raise StoreCorrupt(
            f"{path}: expected a checkpoint of penstock, got a file that is none, or is damaged ({str(error)[:200]}). If "
            "a run is to go on, remove it: it goes on from the one before, or from the start"
        ) from error
    if not known:
        raise RecipeMismatch(f"{path}: expected a checkpoint of version {VERSION}, got {content['version']!r}")
    if identity is not None:
        ours, theirs = (flat(orjson.loads(text)) for text in (orjson.dumps(dict(identity)), content["identity"]))
        names = sorted(ours.keys() | theirs.keys())
        differing = [
            f"{name}: expected {ours.get(name, 'nothing')!r}, got {theirs.get(name, 'nothing')!r}"
            for name in names
            if ours.get(name, names) != theirs.get(name, names)
        ]
        if differing:
            raise RecipeMismatch(
                f"{path}: the checkpoint is of another configuration: {'; '.join(differing)}. "
                "Train into another folder, or take the settings of the checkpoint"
            )
    return content


def _check_sums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not fit")


def step_path(folder: Path, step: int) -> Path:
    """Name of the checkpoint after so many steps."""
    return folder / f"step_{step:09d}.pt"


def latest(folder: Path) -> Path | None:
    """The checkpoint of the most steps; None where there is none. What a kill left aside has another name."""
    found = [path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: path.name, default=None)


def latest_step(folder: Path) -> int:
    """The steps of the checkpoint of the most; 0 where there is none."""
    path = latest(folder)
    return 0 if path is None else int(path.stem.rpartition("_")[2])


def remove_old(folder: Path, keep: int) -> None:
    """Keeps the `keep` checkpoints of the most steps, and the best; removes what killed runs left half written."""
    for pattern in ("step_*.tmp", "best.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    found = sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))
    for path in found[:-keep]:
        path.unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """The states of all generators of this process, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(words), following],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Takes over what `random_state` gave. States of GPUs that are not here are passed over."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of all tensors of a state dict, by name: equal weights, equal digest."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
