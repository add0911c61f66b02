"""report.html of a refinement: one page that opens offline, with numbers per scene, reasons, and frames before and after."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from penstock.errors import PenstockError
from penstock.geometry.images import encode_jpeg
from penstock.readers.pth import load_id_file
from penstock.readers.scenes import Scenes
from penstock.refine import frames_of
from penstock.refine_after import files_of
from penstock.refine_config import RefineConfig
from penstock.refine_done import map_of
from penstock.refine_overlay import before_after
from penstock.refine_truth import truth_folder
from penstock.refining.quality import HARM
from penstock.report import Report
from penstock.store.output import replace_file

REPORT = "report.html"
_PANEL = 480
"""Width in pixels."""
_QUALITY = 78
_NAMES = {"before": "before", "after": "refined", "agreed": "agreed over frames", "truth": "truth"}


def write_report(config: RefineConfig, report: Report) -> Path:
    """Writes the page of a finished run beside its report.json, in place of the general one.

    Pictures are those of the frames that `penstock.refine_done.decisions` chose, at most 16, JPEG, embedded.

    Args:
        config: of the run.
        report: as `penstock.refine.refine` gives it.

    Returns:
        The path of the page.

    Raises:
        SourceNotFound: the scenes are gone.
        OutputRefused, OutputFull: the page cannot be written.
    """
    shown: dict[str, Any] = report.to_json()
    scenes, _ = frames_of(config)
    pictures = {part: list(_pictures(config, scenes, shown["decisions"][part])) for part in ("worst", "best")}
    environment = Environment(loader=PackageLoader("penstock"), autoescape=select_autoescape(), trim_blocks=True)
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["share"] = lambda value: f"{value:.3f}"
    page = environment.get_template("refine_report.html").render(
        report=shown, names=_NAMES, pictures=pictures, harm=HARM, by_scene=_quality_by_scene(shown)
    )
    target = config.outputs.store / REPORT
    replace_file(target, page.encode("utf-8", "backslashreplace"))
    return target


def _quality_by_scene(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["scene"]: one for one in shown.get("quality", {}).get("scenes", [])}


def _pictures(config: RefineConfig, scenes: Scenes, frames: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Key, words and data URI of each frame; what cannot be drawn is said in its place."""
    rows = {key: row for row, key in enumerate(scenes.keys)}
    for frame in frames:
        key, why = frame["key"], frame["why"]
        try:
            content = encode_jpeg(_drawn(config, scenes, rows[key]), quality=_QUALITY)
        except PenstockError as error:
            yield {"key": key, "why": why, "uri": "", "error": f"{type(error).__name__}: {error}"}
        else:
            uri = "data:image/jpeg;base64," + base64.b64encode(content).decode()
            yield {"key": key, "why": why, "uri": uri, "error": ""}


def _drawn(config: RefineConfig, scenes: Scenes, row: int) -> np.ndarray:
    """(h, w, 3) uint8: a frame's map before, refined, agreed where there is one, and the truth where it is known."""
    record = scenes.read(row, ["ids", "image", "path", "scene"])
    path, before = str(record["path"]), np.asarray(record["ids"])
    files = {name: place(path) for name, place in files_of(config).items()}
    maps = {"before": before} | {name: load_id_file(file) for name, file in files.items() if file.is_file()}
    true = None if config.truth is None else map_of(truth_folder(config.truth, str(record["scene"])), path)
    if true is not None:
        maps["truth"] = load_id_file(true)
    same = {_NAMES[name]: ids for name, ids in maps.items() if ids.shape == before.shape}
    return before_after(np.asarray(record["image"]), same, width=_PANEL)
