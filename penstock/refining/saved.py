"""Proposals on disk: those of a folder as a proposer, and a proposer that remembers what another one answered.

A folder holds `<scene>/<stem>.proposals` for each frame: proposals that were prompted for, with their ids, and those that
came from points, with id 0. A file is what `dump_proposals` makes.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import orjson
import xxhash

from penstock.errors import BadData, OutputRefused, SourceNotFound
from penstock.refining.proposals import dump_proposals, load_proposals, taken
from penstock.refining.types import Encoded, Frame, Prompts, Proposals, Proposer
from penstock.store.output import replace_file

SUFFIX = ".proposals"
_BLOCK = 1 << 20
_log = logging.getLogger("penstock")


def proposals_path(folder: Path, key: str) -> Path:
    """Where the proposals of a frame lie: `FOLDER/<key>.proposals`.

    Raises:
        BadData: the key leads out of the folder.
    """
    parts = PurePosixPath(key).parts
    if not parts or ".." in parts or PurePosixPath(key).is_absolute() or "\\" in key:
        raise BadData(f"frame {key!r}: expected a key <scene>/<stem>")
    return folder.joinpath(*parts[:-1], parts[-1] + SUFFIX)


def save_proposals(folder: Path, key: str, proposals: Proposals) -> Path:
    """Writes a frame's proposals, atomically. Gives the path.

    Raises:
        BadData: the key leads out of the folder.
        OutputRefused, OutputFull: it cannot be written there.
    """
    path = proposals_path(folder, key)
    replace_file(path, dump_proposals(proposals))
    return path


class SavedProposals:
    """Proposals from a folder: SAM2 run elsewhere, or another model. Needs no weights."""

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            SourceNotFound: no folder, or one without proposals.
        """
        if next(folder.rglob(f"*{SUFFIX}"), None) is None:
            raise SourceNotFound(f"{folder}: expected a folder of <scene>/<stem>{SUFFIX}, found none")
        self.folder = folder
        self._digest = ""

    def identity(self) -> dict[str, object]:
        """Hash of all files, names and bytes; they are read once for it."""
        self._digest = self._digest or _folder_digest(self.folder)
        return {"proposer": "folder", "files": self._digest}

    def encode(self, frames: Sequence[Frame]) -> list["SavedFrame"]:
        """Reads nothing yet, so that a damaged file fails its own frame only."""
        return [SavedFrame(self.folder, frame) for frame in frames]


class SavedFrame:
    """A frame whose proposals lie in a folder."""

    def __init__(self, folder: Path, frame: Frame) -> None:
        self._folder = folder
        self._key = frame.key
        self._size_hw = frame.objects.size_hw
        self._proposals: Proposals | None = None

    def prompted(self, prompts: Prompts) -> Proposals:
        """Those saved with one of the ids asked for.

        Raises:
            BadData: there is no file for the frame, or it is damaged, or of another size.
        """
        found = self._read()
        return taken(found, np.flatnonzero((found.ids != 0) & np.isin(found.ids, prompts.ids)))

    def at_points(self, points: np.ndarray) -> Proposals:
        """Those saved with id 0, wherever the points are; none without points.

        Raises:
            BadData: as `prompted`.
        """
        found = self._read()
        return taken(found, np.flatnonzero((found.ids == 0) & (len(points) > 0)))

    def _read(self) -> Proposals:
        if self._proposals is None:
            path = proposals_path(self._folder, self._key)
            try:
                content = path.read_bytes()
            except FileNotFoundError as error:
                raise BadData(f"{path}: no proposals were saved for the frame") from error
            self._proposals = _load(path, content, self._size_hw)
        return self._proposals


class Caching:
    """A proposer that asks another one only what it has not asked before; answers stay in a folder.

    So matching, gate and residual can be tuned again and again without the model. An answer is found again by the other
    proposer's identity, the picture, the map, and what was asked. Pictures are encoded, and a lazy model opened, at the
    first question of a batch that is new.
    """

    def __init__(self, proposer: Proposer, folder: Path) -> None:
        """
        Raises:
            OutputRefused: the folder, or the one that it would be made in, cannot be written to.
        """
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.R_OK | os.W_OK | os.X_OK):
            raise OutputRefused(
                f"{folder}: no place for a cache of proposals: {there} is no folder that can be written to"
            )
        self.proposer = proposer
        self.folder = folder
        self.device = proposer.device

    def identity(self) -> Mapping[str, object]:
        """That of the other proposer: its answers are the same."""
        return self.proposer.identity()

    def encode(self, frames: Sequence[Frame]) -> list["CachedFrame"]:
        """Encodes nothing yet."""
        batch = _Batch(self.proposer, tuple(frames))
        identity = orjson.dumps(self.identity(), option=orjson.OPT_SORT_KEYS)
        return [
            CachedFrame(self.folder, frame, identity, lambda number=number: batch.encoded(number))  # type: ignore[misc]
            for number, frame in enumerate(frames)
        ]


class CachedFrame:
    """A frame whose answers are in the cache, or will be."""

    def __init__(self, folder: Path, frame: Frame, identity: bytes, encoded: Callable[[], Encoded]) -> None:
        self._folder = folder
        self._key = frame.key
        self._size_hw = frame.objects.size_hw
        self._encoded = encoded
        self._digest = xxhash.xxh3_128(identity)
        for array in (frame.image, frame.objects.labels, frame.objects.ids):
            _add(self._digest, array)

    def prompted(self, prompts: Prompts) -> Proposals:
        """As the other proposer, or what it said when it was asked the same."""
        asked = (prompts.ids, prompts.boxes, prompts.points, prompts.point_labels, prompts.mask_logits)
        return self._answer("prompted", asked, lambda: self._encoded().prompted(prompts))

    def at_points(self, points: np.ndarray) -> Proposals:
        """As the other proposer, or what it said when it was asked the same."""
        return self._answer("points", (points,), lambda: self._encoded().at_points(points))

    def _answer(self, question: str, arrays: Sequence[np.ndarray], ask: Callable[[], Proposals]) -> Proposals:
        digest = self._digest.copy()
        digest.update(question.encode())
        for array in arrays:
            _add(digest, array)
        key = f"{self._key}.{digest.hexdigest()}"
        path = proposals_path(self._folder, key)
        try:
            return _load(path, path.read_bytes(), self._size_hw)
        except FileNotFoundError:
            pass
        except BadData as error:
            _log.warning("penstock: asked anew, the saved answer is damaged: %s", error)
        found = ask()
        save_proposals(self._folder, key, found)
        return found


class _Batch:
    """Frames that are encoded together, when one of them is needed."""

    def __init__(self, proposer: Proposer, frames: tuple[Frame, ...]) -> None:
        self._proposer = proposer
        self._frames = frames
        self._encoded: Sequence[Encoded] = ()

    def encoded(self, number: int) -> Encoded:
        """Of the frame with this number in the batch."""
        self._encoded = self._encoded or self._proposer.encode(self._frames)
        return self._encoded[number]


def _load(path: Path, content: bytes, size_hw: tuple[int, int]) -> Proposals:
    try:
        found = load_proposals(content)
    except BadData as error:
        raise BadData(f"{path}: {error}") from error
    if found.size_hw != size_hw:
        raise BadData(f"{path}: expected proposals of the frame's size {size_hw} (height, width), got {found.size_hw}")
    return found


def _add(digest: "xxhash.xxh3_128", array: np.ndarray) -> None:
    digest.update(f"{array.dtype} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data)


def _folder_digest(folder: Path) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"
