"""The settings of `penstock refine`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from penstock.errors import OutputRefused, UsageError
from penstock.refine_files import IMAGES, Existing, Outputs
from penstock.refining.settings import Matcher, Profile, RefineSettings
from penstock.report import Budget
from penstock.stages.refine import Format, IdType

IDS = "obj_ids"
OUTPUT = "obj_ids_refine"
MODEL_CFG = "sam2_hiera_l.yaml"
FACES = "face_ids"
Consistency = Literal["none", "faces"]


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """What to refine, with which masks, and how results are stored."""

    data_root: Path
    """Folder of the scenes, or one scene."""
    ids_dir_name: str = IDS
    """Folder of the maps in each scene."""
    output_dir_name: str = OUTPUT
    """Folder that refined maps go to in each scene; `refined_ins_ids` is what the original's program wrote."""
    format: Format = "pth"
    """Of the refined maps: "pth" (a tensor), "npy", "png" (gray of 16 bits)."""
    dtype: IdType = "uint16"
    """Of the refined maps. A frame with an id that does not fit fails; nothing wraps."""
    proposer: str = "sam2"
    """Where masks come from: "sam2", "classical" (needs no weights), "folder:DIR" (saved before)."""
    model_cfg: str = MODEL_CFG
    """SAM2's architecture: name of a configuration, of a model, or a folder."""
    checkpoint: Path | None = None
    """SAM2's weights; None: model_zoo/sam/sam2_hiera_large.pt, or those of the model."""
    device: str = "auto"
    """"auto" (all GPUs, or else the CPU), "cpu", "cuda" (all), "cuda:1" (one)."""
    download: bool = False
    """Whether weights that are not on this machine may be fetched."""
    oom_to_cpu: bool = False
    """Whether SAM2 goes on on the CPU where a GPU has no memory even for one point."""
    proposal_cache: Path | None = None
    """Folder that keeps what the proposer answered, so that matching can be tuned without the model."""
    matcher: Matcher = "prompt"
    profile: Profile = "penstock"
    points_per_side: int = 32
    points_per_batch: int = 64
    """Points that SAM2 decodes at once: what to lower where memory is short."""
    pred_iou_thresh: float = 0.7
    stability_score_thresh: float = 0.5
    box_nms_thresh: float = 0.7
    min_mask_region_area: int = 100
    iou_threshold: float = 0.3
    min_pixels: int = 16
    """An object of at least so many pixels always survives."""
    invalid_ids: tuple[int, ...] = ()
    """Ids that are no object, besides 0 and below."""
    consistency: Consistency = "none"
    """"faces": maps in a folder of their own (`penstock.refine_agree`) that agree over the frames of a scene."""
    face_ids_dir_name: str = FACES
    """Folder of the face maps in each scene."""
    truth: Path | None = None
    """Folder of true id maps (`penstock.refine_truth`): how good the maps were before and are now is reported."""
    max_scenes: int | None = None
    """Take only the first so many scenes."""
    batch_size: int | None = None
    """Frames that the model looks at together; None: 4 on a GPU, 1 on a CPU."""
    processes_per_gpu: int = 1
    workers: int = -1
    """Worker processes where there is no GPU; -1 takes one per core."""
    sequential: bool = False
    """Work in this process."""
    existing: Existing = "keep"
    """What becomes of refined maps that somebody else made: "keep" those that can be read and have the frame's size, and
    count them; "replace"."""
    on_change: Literal["refuse", "recompute"] = "recompute"
    """Where the output was made with other settings: "recompute" all frames, or "refuse"."""
    max_failures: str | None = None
    """Failures that are still a success: a count ("12") or a share of the frames ("0.5%"); more stop the run."""
    retry_failed: bool = False
    """Try frames again that failed before, although their input is the same."""
    durability: Literal["power", "process"] = "power"
    """"power" flushes every commit to the disk; "process" leaves that to the system."""
    part_rows: int | None = None
    timeout_s: float | None = None
    """Seconds that one frame may take."""

    def __post_init__(self) -> None:
        positive = ("points_per_side", "points_per_batch", "min_pixels", "max_scenes", "batch_size", "processes_per_gpu",
                    "part_rows", "timeout_s")  # fmt: skip
        shares = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "iou_threshold")
        checks = [(name, getattr(self, name) is None or getattr(self, name) > 0, "more than 0") for name in positive]
        checks += [(name, 0 <= getattr(self, name) <= 1, "0..1") for name in shares]
        checks += [
            ("workers", self.workers >= -1 and self.workers != 0, "-1 (one per core) or more than 0; or --sequential"),
            ("min_mask_region_area", self.min_mask_region_area >= 0, "0 or more pixels"),
            ("matcher", self.matcher in ("prompt", "overlap"), "prompt or overlap"),
            ("profile", self.profile in ("penstock", "seed"), "penstock or seed"),
            ("on_change", self.on_change in ("refuse", "recompute"), "refuse or recompute"),
            ("existing", self.existing in ("keep", "replace"), "keep or replace"),
            ("consistency", self.consistency in ("none", "faces"), "none or faces"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise UsageError(f"{name.replace('_', '-')}: expected {expected}, got {getattr(self, name)!r}")
        if self.profile == "seed" and self.matcher != "overlap":
            raise UsageError("profile seed: the original matches automatic masks; say --matcher overlap too")
        if self.max_failures is not None:
            Budget.parse(self.max_failures)
        self._check_folders()

    def _check_folders(self) -> None:
        for flag in ("ids-dir-name", "output-dir-name", "face-ids-dir-name"):
            name = getattr(self, flag.replace("-", "_"))
            if not name or name != Path(name).name or name.startswith("."):
                raise UsageError(f"{flag}: expected the name of a folder in each scene, got {name!r}")
        ends = ("", "_confidence", *(("_agreed", "_agreed_confidence") if self.consistency != "none" else ()))
        inputs = (IMAGES, self.ids_dir_name, *((self.face_ids_dir_name,) if self.consistency != "none" else ()))
        if {f"{self.output_dir_name}{end}" for end in ends} & set(inputs):
            raise OutputRefused(
                f"output-dir-name {self.output_dir_name}: the input lies in {', '.join(inputs)}, which are never written "
                "to; give another name"
            )

    @property
    def outputs(self) -> Outputs:
        """Where files go."""
        return Outputs(self.data_root, self.output_dir_name, self.format)

    @property
    def settings(self) -> RefineSettings:
        """How proposals become a map."""
        return replace(
            RefineSettings(),
            matcher=self.matcher,
            profile=self.profile,
            points_per_side=self.points_per_side,
            iou_threshold=self.iou_threshold,
            min_pixels=self.min_pixels,
            invalid=self.invalid_ids,
        )

    def to_json(self) -> dict[str, object]:
        """Plain values, as recorded with the output."""
        paths = {"data_root": str(self.data_root), "checkpoint": self.checkpoint and str(self.checkpoint)}
        paths["proposal_cache"] = self.proposal_cache and str(self.proposal_cache)
        paths["truth"] = self.truth and str(self.truth)
        return {**asdict(self), **paths, "invalid_ids": list(self.invalid_ids)}
