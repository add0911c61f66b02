"""The seed's programs of mask refinement, `SAM2MaskMatcher` and the words that they print. Their command line, hence their
output.

v1  batch_mask_refining.py     the original's matching (automatic masks, five passes), one process per GPU
v2  batch_mask_refining_v2.py  automatic masks with penstock's matching and its gate, two processes per GPU
v3  batch_mask_refining_v3.py  penstock's own: each object prompted for; one process per GPU
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter
from PIL import Image

from penstock.cli_refine import run_refine
from penstock.compat.script import run_script
from penstock.errors import BadData, UsageError
from penstock.readers.pth import load_id_file, save_id_map
from penstock.refine_config import MODEL_CFG, OUTPUT, RefineConfig
from penstock.refine_statistics import Lines
from penstock.refining.types import FALLBACK, LOW, MERGED, Frame, Proposer
from penstock.testing import encode_picture

Script = Literal["v1", "v2", "v3"]
_ABOUT = {
    "v1": "Refine id maps as the original does: automatic masks, five passes.",
    "v2": "Refine id maps with automatic masks; two processes per GPU.",
    "v3": "Refine id maps; each object is prompted for. Recommended.",
}
_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "v1": {"matcher": "overlap", "profile": "seed", "processes_per_gpu": 1},
    "v2": {"matcher": "overlap", "processes_per_gpu": 2},
    "v3": {"matcher": "prompt", "processes_per_gpu": 1},
}
_NAMES = {"v1": "batch_mask_refining", "v2": "batch_mask_refining_v2", "v3": "batch_mask_refining_v3"}


@dataclass(frozen=True, kw_only=True)
class ScriptConfig:
    """What the scripts take as flags, with the seed's defaults."""

    data_root: Path
    """Folder of the scenes, each with images and obj_ids; or one scene."""
    model_cfg: str = MODEL_CFG
    """SAM2's architecture."""
    checkpoint: Path | None = None
    """SAM2's weights; by default model_zoo/sam/sam2_hiera_large.pt, or those of the model."""
    max_scenes: int | None = None
    """Take only the first so many scenes."""
    sequential: Annotated[bool, Parameter(negative="")] = False
    """Work in this process."""
    processes_per_gpu: int | None = None
    """Worker processes of each GPU; by default 1, in v2 2."""
    verbose: Annotated[bool, Parameter(negative="")] = False
    """A line for each frame, with the objects that kept their mask and why."""
    proposer: str = "sam2"
    """Where masks come from: sam2, classical (needs no weights), folder:DIR. Not in the original."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1. Not in the original."""
    output_dir_name: str = OUTPUT
    """Folder of the result in each scene. Not in the original."""
    quiet: Annotated[bool, Parameter(negative="")] = False
    """No progress. Not in the original."""

    def to_refine(self, script: Script) -> RefineConfig:
        """The job's own settings."""
        own = {"processes_per_gpu", "verbose", "quiet"}
        given = {name: value for name, value in vars(self).items() if name not in own}
        settings = {**_PROFILES[script], **given}
        if not self.proposer.startswith("sam2"):
            del settings["checkpoint"], settings["model_cfg"]  # the documents' commands name both, whatever is asked
        if self.processes_per_gpu is not None:
            settings["processes_per_gpu"] = self.processes_per_gpu
        return RefineConfig(**settings)


def main(script: Script, argv: Sequence[str]) -> int:
    """Runs a script and gives its exit code: 0 done, 1 frames failed, 2 misuse."""
    app = App(name=_NAMES[script], help=_ABOUT[script], result_action="return_value", version_flags=())

    @app.default
    def default(config: Annotated[ScriptConfig, Parameter(name="*")]) -> int:
        return run_refine(config.to_refine(script), lines(), verbose=config.verbose, quiet=config.quiet)

    return run_script(app, argv)


def lines() -> Lines:
    """The seed's words."""
    return Lines(**json.loads((files("penstock.compat") / "refine_lines.json").read_text(encoding="utf-8")))


def self_test() -> int:
    """The seed's `test_batch_refining.py`: the three programs on a small scene, with masks that need no weights.

    Returns:
        0, or 1 with what is wrong on the standard error.
    """
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for script in _NAMES:
            root = Path(folder, script)
            write_example(root)
            flags = ["--data_root", str(root), "--proposer", "classical", "--device", "cpu", "--sequential", "--quiet"]
            code = main(script, flags)  # type: ignore[arg-type]  # the keys of a table of scripts
            made = root / "scene001" / OUTPUT / "frame_000000.jpg.pth"
            if code or set(np.unique(load_id_file(made)).tolist()) - {0} != {3, 8}:
                faults.append(f"{_NAMES[script]}.py")
    sys.stderr.writelines(f"wrong: {fault}\n" for fault in faults)
    sys.stdout.write("test_batch_refining: failed\n" if faults else "test_batch_refining: all is well\n")
    return 1 if faults else 0


def write_example(root: Path, scenes: Sequence[str] = ("scene001", "scene002"), frames: int = 1) -> None:
    """Writes scenes as the seed lays them out: a bright thing, id 8, before a wall, id 3.

    Args:
        root: new folder.
        scenes: their names.
        frames: of each.
    """
    for name in scenes:
        for folder in ("images", "obj_ids"):
            (root / name / folder).mkdir(parents=True)
        for number in range(frames):
            pixels = np.random.default_rng(number).integers(30, 60, (72, 96, 3), dtype=np.uint8)
            pixels[20:50, 30:66] += 150
            ids = np.full((72, 96), 3, np.int64)
            ids[22:52, 31:67] = 8  # the map is shifted, as such maps are
            picture = f"frame_{number:06d}.jpg"
            (root / name / "images" / picture).write_bytes(encode_picture(pixels))
            (root / name / "obj_ids" / f"{picture}.pth").write_bytes(save_id_map(ids))


class SAM2MaskMatcher:
    """The original's matcher of one frame: automatic masks, five passes, and the map's own region for who is left.

    Args:
        model_cfg: SAM2's architecture.
        checkpoint: its weights; by default model_zoo/sam/sam2_hiera_large.pt, or those of the model.
        points_per_side: of the grid of automatic points.
        points_per_batch: points that the model decodes at once.
        pred_iou_thresh, stability_score_thresh, box_nms_thresh, min_mask_region_area: of automatic masks.
        crop_n_layers: 0; masks of crops are not made.
        iou_threshold: of the first pass.
        device: "auto", "cpu", "cuda", "cuda:1".
        proposer: where masks come from instead of SAM2.

    Raises:
        UsageError, MissingExtra: wrong settings, or no weights on this machine.
    """

    def __init__(
        self,
        model_cfg: str = MODEL_CFG,
        checkpoint: Path | str | None = None,
        points_per_side: int = 32,
        *,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        min_mask_region_area: int = 100,
        iou_threshold: float = 0.5,
        device: str = "auto",
        proposer: Proposer | None = None,
    ) -> None:
        if crop_n_layers:
            raise UsageError(f"crop_n_layers: expected 0, got {crop_n_layers}: masks of crops are not made")
        config = RefineConfig(
            data_root=Path(),
            model_cfg=model_cfg,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            device=device,
            matcher="overlap",
            profile="seed",
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            box_nms_thresh=box_nms_thresh,
            min_mask_region_area=min_mask_region_area,
            iou_threshold=iou_threshold,
        )
        if proposer is None:
            from penstock.refine import open_proposer_of

            proposer = open_proposer_of(config)
        self.proposer = proposer
        self.settings = config.settings

    def process_image_with_ground_truth(
        self, image: "np.ndarray | Image.Image", mask_path: Path | str
    ) -> list[dict[str, Any]]:
        """Matches masks to the ids of a map.

        Args:
            image: RGB, (H, W, 3) uint8, or a picture of Pillow.
            mask_path: file of the id map, (H, W).

        Returns:
            For each id, rising: `ground_truth_id`, `segmentation` ((H, W) bool; no two overlap), `area`, `bbox` (XYWH,
            tight), `is_fallback`, `is_merged`, `is_low_confidence`.

        Raises:
            BadData: no id map, or of another size than the picture; labels and pictures are never resampled.
        """
        from penstock.refining.frame import refine_frame
        from penstock.refining.labels import parse

        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        ids, _ = self.load_ground_truth_masks(mask_path)
        if pixels.shape != (*ids.shape, 3):
            raise BadData(f"{mask_path}: expected a picture of {ids.shape} and RGB, got {pixels.shape}")
        objects = parse(ids)
        frame = Frame(key=Path(mask_path).stem, image=pixels, objects=objects)
        (encoded,) = self.proposer.encode([frame])
        refined = refine_frame(frame, encoded, self.settings)
        found = parse(refined.ids)
        boxes = dict(zip(found.ids.tolist(), found.boxes.tolist(), strict=True))
        return [
            {
                "ground_truth_id": number,
                "segmentation": refined.ids == number,
                "area": int(refined.areas[place]),
                "bbox": boxes.get(number, [0, 0, 0, 0]),
                "is_fallback": int(refined.how[place]) == FALLBACK,
                "is_merged": bool(refined.how[place] & MERGED),
                "is_low_confidence": bool(refined.how[place] & LOW),
            }
            for place, number in enumerate(objects.ids.tolist())
        ]

    @staticmethod
    def load_ground_truth_masks(mask_path: Path | str) -> tuple[np.ndarray, list[int]]:
        """The map of a file, (H, W) int64, and its valid ids, rising.

        Raises:
            SourceNotFound, BadData: there is none. Nothing in the file is run.
        """
        ids = load_id_file(mask_path).astype(np.int64)
        return ids, [number for number in np.unique(ids).tolist() if number > 0]

    @staticmethod
    def calculate_invalid_area_ratio(matched_masks: Sequence[Mapping[str, Any]], gt_mask_data: np.ndarray) -> float:
        """Share of the frame's pixels, 0..1, that no mask covers; `gt_mask_data` (H, W) gives the frame's size."""
        covered = np.zeros(np.shape(gt_mask_data), np.bool_)
        for one in matched_masks:
            covered |= np.asarray(one["segmentation"], np.bool_)
        return float(1 - covered.mean())
