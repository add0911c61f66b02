"""The configuration of `penstock teacher`. Imports nothing heavy."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from penstock.errors import UsageError
from penstock.models.distill_protocols import Precision
from penstock.models.teachers import DEFAULT_MODEL_TYPE
from penstock.report import Budget
from penstock.stages.teacher import DEFAULT_FIELDS, FIELDS
from penstock.stages.teacher_fields import STRATEGIES, Strategy

WRITES = ("store", "v1", "tar", "npz")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What to look at, with which teacher, and what to keep of it.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    source: str
    """Pictures, as `READER:PATH?option=value`: `sa1b:DIR`, `coco-instances:DIR`, `scenes:ROOT`; `folder:DIR` has no masks."""
    output: Path
    """New or empty folder, or the output of an earlier run: then only what is missing or changed is done."""
    model_type: str = DEFAULT_MODEL_TYPE
    """Recorded, and what is opened: see `penstock.models.teachers.open_teacher`."""
    weights: str | None = None
    """A file, a folder of transformers, or OWNER/NAME of the hub; None: where the model type's own lie."""
    download: bool = False
    """Whether the hub may be asked for what is not on this machine."""
    precision: Precision = "fp32"
    """Of the teacher; "bf16" is for GPUs: faster, and features with three digits."""
    image_size: int | None = None
    """Side of the square; None: the teacher's own. Only the stand-in takes another."""
    fields: tuple[str, ...] = DEFAULT_FIELDS
    """Levels (P2_S4, P3_S8, P4_S16, P5_S32) and any of edges, weights, bbox, mask. The picture is always kept."""
    feature_dtype: Literal["float16", "float32"] = "float32"
    """"float16" halves the features: four digits are kept; a number that does not fit fails its row."""
    write: Literal["store", "v1", "tar", "npz"] = "store"
    """penstock's own store; the seed's seven .bin files; its TARs of JPEG and NPZ; such files in a folder."""
    image_codec: Literal["raw", "jpeg"] | None = None
    """Of the stretched picture. None: "jpeg" in TARs and folders of files, where nothing else is, and "raw" elsewhere."""
    strategy: Strategy = "geometry-colour"
    """Which objects have a box and a mask: see `penstock.stages.teacher_fields.chosen`."""
    max_objects: int | None = None
    """Boxes of a picture, at most; None: one, but with "all" as many as there are."""
    batch_size: int = 8
    """Pictures per call of the teacher. Memory only: features do not depend on it but by rounding."""
    num_workers: int = -1
    """Worker processes, each with the model; 0 works in this process, -1 takes one per core, or four per GPU."""
    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"."""
    devices: int = 1
    """GPUs to share the work, from `device` on; not with the Ray launcher, whose workers each have a GPU of their own."""
    max_pictures: int | None = None
    """Take only the first so many pictures."""
    max_failures: str | None = None
    """Failures that are still a success: a count ("12") or a share of the pictures ("0.5%"); more stop the run."""
    retry_failed: bool = False
    """Try pictures again that failed before, although their input is the same."""
    on_change: Literal["refuse", "recompute"] = "refuse"
    """Where the store was made with another teacher, fields or strategy: "refuse", or compute all of it anew beside it, and
    take its place once that is whole."""
    durability: Literal["power", "process"] = "power"
    """"power" flushes every commit to the disk; "process" leaves that to the system."""
    part_rows: int | None = None
    """Rows of a part of the store; samples of a TAR."""
    timeout_s: float | None = None
    """Seconds that one picture may take."""

    def __post_init__(self) -> None:
        is_pairs = self.write in ("tar", "npz")
        checks = [
            ("precision", self.precision in ("fp32", "bf16"), "fp32 or bf16"),
            ("image_size", self.image_size is None or 32 <= self.image_size <= 8192, "32..8192"),
            ("fields", bool(self.fields) and set(self.fields) <= set(FIELDS), f"some of {', '.join(FIELDS)}"),
            ("fields", "mask" not in self.fields or "bbox" in self.fields, "bbox with mask: each mask has its box"),
            ("feature_dtype", self.feature_dtype in ("float16", "float32"), "float16 or float32"),
            ("write", self.write in WRITES, " or ".join(WRITES)),
            ("image_codec", self.image_codec in (None, "raw", "jpeg"), "raw or jpeg"),
            ("image_codec", not (is_pairs and self.image_codec == "raw"), f"jpeg with write {self.write}"),
            ("strategy", self.strategy in STRATEGIES, " or ".join(STRATEGIES)),
            ("max_objects", self.max_objects is None or self.max_objects > 0, "a positive number"),
            ("batch_size", self.batch_size > 0, "a positive number of pictures"),
            ("num_workers", self.num_workers >= -1, "-1 (one per core), 0 (none) or more"),
            ("devices", self.devices > 0, "a positive number"),
            ("max_pictures", self.max_pictures is None or self.max_pictures > 0, "a positive number"),
            ("on_change", self.on_change in ("refuse", "recompute"), "refuse or recompute"),
            ("on_change", self.on_change == "refuse" or self.write == "store", "refuse but for write store"),
            ("part_rows", self.part_rows is None or self.part_rows > 0, "a positive number"),
            ("timeout_s", self.timeout_s is None or self.timeout_s > 0, "a positive number of seconds"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise UsageError(f"teacher: {name.replace('_', '-')}: expected {expected}, got {getattr(self, name)!r}")
        if self.max_failures is not None:
            Budget.parse(self.max_failures)

    def to_json(self) -> dict[str, object]:
        """Plain values, as recorded with the output."""
        return {**asdict(self), "output": str(self.output)}
