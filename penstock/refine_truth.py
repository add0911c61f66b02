"""How good refined maps are beside their truth, per scene and in all: `penstock refine --truth DIR`.

DIR/SCENE/frame_000000.jpg.png   the true ids of SCENE/images/frame_000000.jpg (or .npy, .pth; or without .jpg)

Where the root is one scene, the maps may lie in DIR itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from penstock.errors import BadData, SourceNotFound
from penstock.readers.scenes import Scenes
from penstock.refine_done import DoneFrame, done_frames, load_beside, map_of
from penstock.refining.quality import FrameScore, id_flips, score_frame, total
from penstock.store import Store

_LISTED = 10
MapFile = Callable[[str], Path]
"""From a picture's path, relative to the root, to the file of its map."""


@dataclass(kw_only=True)
class Quality:
    """What was found."""

    to_json: dict[str, object]
    """`frames` (scored), `missing`, `wrong` (unreadable, or of another size), `first` (of those, with messages), `scenes`
    and `total`: each of `before`, `after` (and `agreed`) with objects, mean_iou, boundary_iou, pq, harm_rate, invalid_ratio,
    flips and chances."""
    gains: dict[str, tuple[float, float]]
    """Key of a frame -> mean IoU before and after."""


@dataclass(kw_only=True)
class _Tally:
    """Scores of frames by version of the map, and objects that changed their id from one frame to the next."""

    scores: dict[str, list[FrameScore]] = field(default_factory=dict)
    flips: dict[str, list[int]] = field(default_factory=dict)

    def add(self, version: str, score: FrameScore, flips: tuple[int, int]) -> None:
        self.scores.setdefault(version, []).append(score)
        known = self.flips.setdefault(version, [0, 0])
        known[0] += flips[0]
        known[1] += flips[1]

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for version, scores in self.scores.items():
            numbers = {name: round(value, 6) for name, value in asdict(total(scores)).items()}
            flips, chances = self.flips[version]
            found[version] = {**numbers, "flips": flips, "chances": chances}
        return found


def score_frames(store: Store, scenes: Scenes, limit: int | None, truth: Path, files: Mapping[str, MapFile]) -> Quality:
    """Scores every done frame that has a truth.

    Args:
        store, scenes, limit: as `penstock.refine_done.done_frames`.
        truth: the folder.
        files: version of the map -> its files: "after", and others where they are there. "before" is the map that was refined.

    Returns:
        The figures. Frames without truth, or whose truth cannot be read or has another size, are counted and not scored.
    """
    by_scene: dict[str, _Tally] = {}
    everything, gains = _Tally(), {}
    missing, wrong, first = 0, 0, []
    previous: tuple[str, np.ndarray, dict[str, np.ndarray]] | None = None
    for frame in done_frames(store, scenes, limit):
        place = map_of(truth_folder(truth, frame.scene), frame.path)
        problem = "" if place is not None else f"no truth in {truth_folder(truth, frame.scene)}"
        if place is None:
            missing += 1
        else:
            try:
                true, maps = _maps(frame, scenes, place, files)
            except (BadData, SourceNotFound) as error:
                wrong, problem = wrong + 1, str(error)
        if problem or place is None:
            previous = None
            first.append({"key": frame.key, "message": problem})
            del first[_LISTED:]
            continue
        for version, ids in maps.items():
            score = score_frame(ids, true, maps["before"])
            flips = _flips(previous, frame.scene, (version, ids), true)
            for tally in (everything, by_scene.setdefault(frame.scene, _Tally())):
                tally.add(version, score, flips)
        gains[frame.key] = _gain(everything)
        previous = (frame.scene, true, maps)
    numbers = {
        "truth": str(truth),
        "frames": len(gains),
        "missing": missing,
        "wrong": wrong,
        "first": first,
        "scenes": [{"scene": name, **tally.to_json()} for name, tally in by_scene.items()],
        "total": everything.to_json(),
    }
    return Quality(to_json=numbers, gains=gains)


def truth_folder(truth: Path, scene: str) -> Path:
    """Where the truth of a scene lies: in the folder of its name, or in the root where there is none."""
    return truth / scene if (truth / scene).is_dir() else truth


def words(quality: Mapping[str, object]) -> list[str]:
    """What a run says of `Quality.to_json` to people."""
    found = quality["total"]
    assert isinstance(found, dict)
    lines = [
        f"{version}: IoU {one['mean_iou']:.3f}, Boundary IoU {one['boundary_iou']:.3f}, PQ {one['pq']:.3f}, "
        f"harmed {one['harm_rate']:.1%}, invalid {one['invalid_ratio']:.1%}, ids flipped {one['flips']} of {one['chances']}"
        for version, one in found.items()
    ]
    counted = f"truth of {quality['frames']} frames; {quality['missing']} frames without, {quality['wrong']} not usable"
    return [counted, *lines]


def _maps(
    frame: DoneFrame, scenes: Scenes, place: Path, files: Mapping[str, MapFile]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The truth, and the versions of the map, all (H, W) int64.

    Raises:
        BadData, SourceNotFound: one cannot be read, or is not of the coarse map's size.
    """
    coarse = np.asarray(scenes.read(frame.row, ["ids"])["ids"])
    found = {version: file(frame.path) for version, file in files.items()}
    there = {version: file for version, file in found.items() if version == "after" or file.is_file()}
    maps = {version: load_beside(file, coarse.shape) for version, file in there.items()}
    return load_beside(place, coarse.shape), {"before": coarse, **maps}


def _flips(
    previous: tuple[str, np.ndarray, dict[str, np.ndarray]] | None,
    scene: str,
    now: tuple[str, np.ndarray],
    true: np.ndarray,
) -> tuple[int, int]:
    version, ids = now
    if previous is None or previous[0] != scene or version not in previous[2]:
        return 0, 0
    return id_flips((previous[2][version], ids), (previous[1], true))


def _gain(tally: _Tally) -> tuple[float, float]:
    """Mean IoU before and after of the last frame."""
    before, after = (tally.scores[version][-1].ious for version in ("before", "after"))
    return (float(before.mean()), float(after.mean())) if len(before) else (1.0, 1.0)
