"""Agreement of refined maps over the frames of a scene by the faces of its mesh: `penstock refine --consistency faces`.

SCENE/face_ids/frame_000000.jpg.npy                           the face that each pixel shows, below 0 for none (or .pth, .png)
SCENE/obj_ids_refine_agreed/frame_000000.jpg.pth              the map after the votes
SCENE/obj_ids_refine_agreed_confidence/frame_000000.jpg.png   and its confidence
ROOT/.penstock/obj_ids_refine_agreed/SCENE/000000.json        what was done in the window of frames that begins here

The maps of single frames stay as they are. A scene is cut into even windows of at most `WINDOW` frames, in which faces vote
(`penstock.refining.consistency`); one frame is in memory at once, and the votes of the window. A window is a pure function
of its files: each file is put in its place whole, and the record, which says from what, comes last. So a run that is killed
ends, run again, with the bytes of the clean run, and a window is done anew exactly where something that it votes on changed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash

from penstock.errors import BadData, SourceNotFound
from penstock.geometry.id_pngs import read_id_png, write_id_png
from penstock.jobs import Launcher
from penstock.readers.pth import load_id_file
from penstock.readers.scenes import Scenes
from penstock.refine_done import DoneFrame, done_frames, load_beside, map_of
from penstock.refine_files import Outputs
from penstock.refining.consistency import Majorities, Votes, added, agree, face_flips, majorities, votes_of
from penstock.source import Candidate
from penstock.stages.refine import IdType, encode_ids
from penstock.store import Store
from penstock.store.disk import Disk
from penstock.work import Finished, Order, Work

VERSION = 1
"""Raised whenever the same input would give other bytes than before."""
WINDOW = 64
_ADDED = 4
"""Frames whose votes are added at once."""
_COUNTS = ("frames", "without_faces", "renamed", "filled", "flips_before", "flips_after", "chances")
_SEEN = ("file_digest", "confidence_digest", "kept_existing")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A frame of a window."""

    path: str
    """Of the picture, relative to the root."""
    faces: str
    """File of its face map; empty where there is none: it takes no part, and is copied."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Neighbouring frames of a scene that vote together."""

    name: str
    """`<scene>/<number of the first frame>`."""
    key: str
    """Hash of all that its files depend on."""
    frames: tuple[Seen, ...]


@dataclass(kw_only=True)
class Agreement:
    """Votes over windows, as work for a launcher. Pickles."""

    refined: Outputs
    dtype: IdType
    windows: Sequence[Window] = ()
    disk: Disk = field(default_factory=Disk)

    @property
    def outputs(self) -> Outputs:
        """Where files go."""
        return replace(self.refined, folder=f"{self.refined.folder}_agreed")

    def set_up(self) -> None:
        """Nothing: there is no model."""

    def __call__(self, orders: Sequence[Order]) -> list[Finished]:
        """Does the window of each order's candidate; what is wrong with one is its result."""
        return [self._finished(self.windows[cast(int, order.candidate.index)]) for order in orders]

    def _finished(self, window: Window) -> Finished:
        try:
            self.run(window)
        except (BadData, SourceNotFound) as error:
            return Finished(error=type(error).__name__, message=str(error))
        except OSError as error:  # no room, or no leave to write: that is no window's fault
            return Finished(error=type(error).__name__, message=str(error), fatal=error)
        return Finished()

    def run(self, window: Window) -> None:
        """Votes, and writes the files and then the record.

        Raises:
            BadData, SourceNotFound: a map cannot be read, or a face map is not of its frame's size.
            OutputFull, OSError: it cannot be written.
        """
        elected, before = self._elect(window)
        counts = dict.fromkeys(_COUNTS, 0)
        counts["flips_before"], counts["chances"] = before.flips, before.chances
        files: dict[str, int] = {}
        after = _Flips()
        for seen in window.frames:
            ids, confidence = self._refined(seen)
            counts["frames"] += 1
            counts["without_faces"] += not seen.faces
            if seen.faces:
                faces = load_beside(Path(seen.faces), ids.shape)
                agreed = agree(ids, confidence, faces, elected)
                ids, confidence = agreed.ids, agreed.confidence
                after.add(votes_of(ids, confidence, faces))
                counts["renamed"] += agreed.renamed
                counts["filled"] += agreed.filled
            else:
                after.add(None)
            files |= self._write(seen, ids, confidence)
        counts["flips_after"] = after.flips
        content = {"key": window.key, "files": files, "counts": counts}
        self._put(self.record_path(window), json.dumps(content, indent=1).encode())

    def record_of(self, window: Window) -> dict[str, object]:
        """What was recorded when the window was done; empty where it never was."""
        return _read(self.record_path(window))

    def clear_old(self) -> None:
        """Removes what earlier runs made in the scenes of the windows and this one will not: frames that failed since, files
        of another format; last the records of windows that are no more."""
        names = {window.name for window in self.windows}
        made = {place(seen.path) for window in self.windows for seen in window.frames for place in self._places}
        records = [
            record
            for scene in sorted({name.rpartition("/")[0] for name in names})
            for record in sorted((self.outputs.store / scene).glob("*.json"))
        ]
        for record in records:
            for name in cast(dict[str, int], _read(record).get("files", {})).keys() - made:
                (self.refined.root / name).unlink(missing_ok=True)
        for record in records:
            if f"{record.parent.name}/{record.stem}" not in names:
                record.unlink()

    def is_done(self, window: Window) -> bool:
        """Whether its files are there, made from what there is now."""
        record = self.record_of(window)
        if record.get("key") != window.key:
            return False
        files = cast(dict[str, int], record["files"])
        places = [(self.refined.root / name, size) for name, size in files.items()]
        return all(place.is_file() and place.stat().st_size == size for place, size in places)

    def record_path(self, window: Window) -> Path:
        """The file of the window's record."""
        return self.outputs.store / f"{window.name}.json"

    @property
    def _places(self) -> tuple[Callable[[str], str], Callable[[str], str]]:
        """From a picture's path to its files, in the order in which they are written."""
        return self.outputs.confidence, self.outputs.file

    def _elect(self, window: Window) -> tuple[Majorities, "_Flips"]:
        """The majorities of a window, and what changes in it from frame to frame."""
        flips, whole, waiting = _Flips(), added([]), []
        for seen in window.frames:
            votes = None
            if seen.faces:
                ids, confidence = self._refined(seen)
                votes = votes_of(ids, confidence, load_beside(Path(seen.faces), ids.shape))
                waiting.append(votes)
            flips.add(votes)
            if len(waiting) == _ADDED:
                whole, waiting = added([whole, *waiting]), []
        return majorities(added([whole, *waiting])), flips

    def _refined(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """The map and the confidence of a frame; of somebody else's map, which has none, full wherever there is an id."""
        root = self.refined.root
        ids = load_id_file(root / self.refined.file(seen.path)).astype(np.int64)
        place = root / self.refined.confidence(seen.path)
        if not place.is_file():
            return ids, np.where(ids > 0, 255, 0).astype(np.uint8)
        return ids, read_id_png(place.read_bytes())

    def _write(self, seen: Seen, ids: np.ndarray, confidence: np.ndarray) -> dict[str, int]:
        contents = write_id_png(confidence), encode_ids(np.maximum(ids, 0), self.refined.format, self.dtype)
        sizes = {}
        for place, content in zip(self._places, contents, strict=True):
            self._put(self.refined.root / place(seen.path), content)
            sizes[place(seen.path)] = len(content)
        return sizes

    def _put(self, path: Path, content: bytes) -> None:
        self.disk.make_directory(path.parent)
        try:
            self.disk.replace(path, content)
        finally:
            self.disk.close()


def agree_scenes(
    work: Agreement,
    store: Store,
    scenes: Scenes,
    limit: int | None,
    *,
    faces: str,
    launcher: Launcher,
    stop: Callable[[], str] = lambda: "",
) -> dict[str, Any]:
    """Lets the frames of each scene agree; only windows that are not done yet.

    Args:
        work: where files lie and how they are stored; its windows are set here.
        store, scenes, limit: as `penstock.refine_done.done_frames`.
        faces: name of the folder of face maps in each scene.
        launcher: where windows are worked on.
        stop: asked between windows; a non-empty answer leaves the rest for another run.

    Returns:
        Plain values: windows, done (of them), computed (in this run), failed (path, error and message of each); and over all done
        windows frames, without_faces (copied), renamed (objects), filled (pixels), and faces whose id differs between
        neighbouring frames (flips_before, flips_after, of chances).

    Raises:
        OutputFull, OSError: it cannot be written.
    """
    work.windows = list(windows_of(work, store, scenes, limit, faces))
    work.clear_old()
    todo = [number for number, window in enumerate(work.windows) if not work.is_done(window)]
    orders = ([Order(candidate=Candidate(key=work.windows[n].name, index=n))] for n in todo)
    failed: list[dict[str, str]] = []
    computed = 0
    for batch, results in launcher.run(cast(Work, work), _until(orders, stop)):
        for order, result in zip(batch, results, strict=True):
            if result.fatal is not None:
                raise result.fatal
            if result.error:
                failed.append({"path": order.candidate.key, "error": result.error, "message": result.message})
            computed += not result.error
    failed.sort(key=lambda one: one["path"])
    totals = dict.fromkeys(_COUNTS, 0)
    done = [window for window in work.windows if work.is_done(window)]
    for window in done:
        for name, count in cast(dict[str, int], work.record_of(window)["counts"]).items():
            totals[name] += count
    return {"windows": len(work.windows), "done": len(done), "computed": computed, "failed": failed, **totals}


def windows_of(work: Agreement, store: Store, scenes: Scenes, limit: int | None, faces: str) -> Iterator[Window]:
    """The windows of done frames; those of a scene without a single face map are left out.

    Args:
        work: where files lie and how they are stored.
        store, scenes, limit: as `penstock.refine_done.done_frames`.
        faces: name of the folder of face maps in each scene.
    """
    refined = work.refined
    for scene, group in groupby(done_frames(store, scenes, limit, _SEEN), key=lambda frame: frame.scene):
        frames = list(group)
        seen = [_seen(frame, refined, faces) for frame in frames]
        if not any(one.faces for one in seen):
            continue
        count = -(-len(frames) // WINDOW)
        ends = [len(frames) * number // count for number in range(count + 1)]
        for first, end in pairwise(ends):
            parts = [_stamp(frame, one, refined) for frame, one in zip(frames[first:end], seen[first:end], strict=True)]
            said = json.dumps([VERSION, refined.folder, refined.format, work.dtype, parts])
            key = xxhash.xxh3_64_hexdigest(said.encode())
            yield Window(name=f"{scene}/{first:06d}", key=key, frames=tuple(seen[first:end]))


def require_faces(scenes: Scenes, faces: str) -> None:
    """Makes sure that at least one scene has a folder of face maps.

    Raises:
        SourceNotFound: none has.
    """
    folders = [_beside(scenes.root, scenes.index.text("path", group.start), faces) for group in scenes.groups]
    if not any(folder.is_dir() for folder in folders):
        raise SourceNotFound(
            f"{folders[0]}: no scene of {scenes.root} has a folder {faces} of face maps; --consistency faces needs them: "
            "for each picture the face that each pixel shows, as .npy, .pth or .png"
        )


def _seen(frame: DoneFrame, refined: Outputs, faces: str) -> Seen:
    place = map_of(_beside(refined.root, frame.path, faces), frame.path)
    return Seen(path=frame.path, faces="" if place is None else str(place))


def _beside(root: Path, path: str, folder: str) -> Path:
    """A folder beside that of a picture."""
    return (root / path).parent.parent / folder


def _stamp(frame: DoneFrame, seen: Seen, refined: Outputs) -> list[object]:
    """What a frame's part in the votes depends on. Of somebody else's map nothing but the file is known."""
    own = [int(np.asarray(frame.record[name])) for name in _SEEN]
    files = [Path(seen.faces)] if seen.faces else []
    files += [refined.root / refined.file(frame.path)] if own[2] else []
    times = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return [frame.path, own, times]


def _read(record: Path) -> dict[str, object]:
    """A record; empty where there is none that is whole."""
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.keys() >= {"key", "files", "counts"} else {}


@dataclass
class _Flips:
    """Faces whose id differs between neighbouring frames that both have votes, of those that have one in both."""

    flips: int = 0
    chances: int = 0
    last: Votes | None = None

    def add(self, votes: Votes | None) -> None:
        if self.last is not None and votes is not None:
            flips, chances = face_flips(self.last, votes)
            self.flips, self.chances = self.flips + flips, self.chances + chances
        self.last = votes


def _until(orders: Iterator[list[Order]], stop: Callable[[], str]) -> Iterator[list[Order]]:
    for order in orders:
        if stop():
            return
        yield order
