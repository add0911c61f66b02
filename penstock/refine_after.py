"""What a refinement does when its frames are done: lets them agree, scores them, and says what was decided."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from penstock.errors import SourceNotFound
from penstock.launch.local import Inline, Local
from penstock.readers.scenes import Scenes
from penstock.refine_agree import Agreement, agree_scenes, require_faces
from penstock.refine_config import RefineConfig
from penstock.refine_done import decisions
from penstock.refine_files import FrameOffers, Outputs
from penstock.refine_sink import open_rows
from penstock.refine_truth import score_frames
from penstock.report import Report
from penstock.store.disk import Disk


def require_asked(config: RefineConfig, scenes: Scenes) -> None:
    """Makes sure that what a configuration asks for beside the maps can be had.

    Raises:
        SourceNotFound: there is no folder of truth, or no scene has face maps.
        OutputRefused: maps that agree would be written over the input.
    """
    if config.truth is not None and not config.truth.is_dir():
        raise SourceNotFound(f"truth {config.truth}: expected a folder of true id maps, SCENE/frame_000000.jpg.png")
    if config.consistency == "faces":
        require_faces(scenes, config.face_ids_dir_name)
        agreement_of(config).outputs.refuse_inputs(scenes)


def look_back(
    config: RefineConfig, offers: FrameOffers, report: Report, stop: Callable[[], str] = lambda: ""
) -> dict[str, object]:
    """Agreement over frames and quality beside the truth, where asked for; decisions, and the frames worth a look.

    Args:
        config: of the run.
        offers: its frames.
        report: takes what was wrong with a window of frames as a problem. Of a run that was interrupted no frames agree.
        stop: asked between windows.

    Returns:
        Notes for the report: `consistency` (`penstock.refine_agree.agree_scenes`), `quality` (`penstock.refine_truth`),
        `decisions` (`penstock.refine_done`).

    Raises:
        OutputFull, OSError: what agrees cannot be written.
    """
    store, scenes, limit = open_rows(config.outputs.store), offers.scenes, offers.limit
    notes: dict[str, object] = {}
    if config.consistency == "faces" and not report.interrupted:
        cores = config.workers if config.workers > 0 else len(os.sched_getaffinity(0))
        launcher = Inline() if config.sequential else Local(cores)
        found = agree_scenes(
            agreement_of(config), store, scenes, limit, faces=config.face_ids_dir_name, launcher=launcher, stop=stop
        )
        report.problems += found["failed"]
        report.interrupted = stop() if found["done"] + len(found["failed"]) < found["windows"] else ""
        notes["consistency"] = found
    gains = {}
    if config.truth is not None:
        quality = score_frames(store, scenes, limit, config.truth, files_of(config))
        notes["quality"], gains = quality.to_json, quality.gains
    return {**notes, "decisions": decisions(store, scenes, limit, gains).to_json()}


def agreement_of(config: RefineConfig) -> Agreement:
    """The agreement over frames, without its windows."""
    return Agreement(refined=config.outputs, dtype=config.dtype, disk=Disk(flush=config.durability == "power"))


def files_of(config: RefineConfig) -> dict[str, Callable[[str], Path]]:
    """Versions of the maps that a run leaves: from a picture's path, relative to the root, to the file of its map."""
    versions = {"after": config.outputs}
    if config.consistency != "none":
        versions["agreed"] = agreement_of(config).outputs
    return {name: partial(_place, outputs) for name, outputs in versions.items()}


def _place(outputs: Outputs, path: str) -> Path:
    return outputs.root / outputs.file(path)
