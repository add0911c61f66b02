"""The keys of the settings: their names, what each one means, which readers it serves."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from penstock.errors import UsageError

FILE_NAME = "penstock.toml"
TABLE = "paths"
"""The one table of the settings file."""
PREFIX = "PENSTOCK_"
"""Of every environment variable."""


@dataclass(frozen=True)
class Key:
    """One setting: a folder."""

    name: str
    meaning: str
    """One line: what lies in the folder."""
    readers: tuple[str, ...] = ()
    """Names of the readers that take this folder; empty where penstock only keeps the path."""

    @property
    def variable(self) -> str:
        """The environment variable that overrules the file."""
        return PREFIX + self.name.upper()


_KEYS = (
    Key("workspace_dir", "results and checkpoints of the tracking systems"),
    Key("tensorboard_dir", "TensorBoard event files"),
    Key("pretrained_networks", "downloaded weights"),
    Key("lasot_dir", "LaSOT: one folder per class, in it one per sequence", ("lasot",)),
    Key("got10k_dir", "GOT-10k: its train folder, which holds list.txt", ("got10k",)),
    Key("got10k_val_dir", "GOT-10k: its val folder, which holds list.txt", ("got10k",)),
    Key("trackingnet_dir", "TrackingNet: the folder above TRAIN_0 to TRAIN_11", ("trackingnet",)),
    Key(
        "coco_dir",
        "COCO: the folder above annotations and the pictures",
        (
            "coco-instances",
            "coco-panoptic",
        ),
    ),
    Key("imagenet_dir", "ImageNet VID: the folder above Annotations and Data", ("imagenet-vid",)),
    Key("lvis_dir", "LVIS"),
    Key("sbd_dir", "Semantic Boundaries Dataset"),
    Key("imagenetdet_dir", "ImageNet DET"),
    Key("ecssd_dir", "ECSSD saliency pictures"),
    Key("hkuis_dir", "HKU-IS saliency pictures"),
    Key("msra10k_dir", "MSRA10K saliency pictures"),
    Key("davis_dir", "DAVIS: JPEGImages and palette PNGs in Annotations", ("davis",)),
    Key("youtubevos_dir", "YouTube-VOS: JPEGImages and palette PNGs, the layout of DAVIS", ("davis",)),
    Key("lasot_lmdb_dir", "LaSOT as LMDB", ("lasot-lmdb",)),
    Key("got10k_lmdb_dir", "GOT-10k as LMDB, keys begin with train/", ("got10k-lmdb",)),
    Key("trackingnet_lmdb_dir", "TrackingNet as LMDB: seq_list.json and TRAIN_k_lmdb", ("trackingnet-lmdb",)),
    Key("coco_lmdb_dir", "COCO instances as LMDB", ("coco-lmdb",)),
    Key("imagenet_lmdb_dir", "ImageNet VID as LMDB", ("imagenet-vid-lmdb",)),
    Key("binary_data_dir", "a binary distillation set: a store, or a v1 directory with config.json"),
    Key(
        "sa1b_dir",
        "SA-1B: sa_N.jpg with sa_N.json in folders, or tars of them",
        (
            "sa1b",
            "sa1b-tar",
        ),
    ),
    Key("sav_dir", "SA-V: videos with JSON (sav_train), or frames with PNGs (sav_val)", ("sav",)),
    Key("masklets_dir", "masklet_data_*.npz pairs", ("masklets",)),
    Key("refcoco_dir", "RefCOCO: refs(...).p and instances.json", ("refcoco",)),
    Key("openimages_dir", "Open Images: segmentation and box CSV files, mask PNGs, pictures", ("openimages",)),
    Key("scenes_dir", "scenes: images and obj_ids in each", ("scenes",)),
    Key("youtube_vis_dir", "YouTube-VIS: JPEGImages and one COCO-video JSON, no palette PNGs", ("youtube-vis",)),
    Key("cache_dir", "indexes that readers keep; default: penstock in the XDG cache folder"),
)
KEYS: Mapping[str, Key] = {key.name: key for key in _KEYS}
"""Every key, in the order of the file. The names of the original `EnvironmentSettings` mean here what they mean there."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Folders by key; None where a key is not set. `KEYS` says what each one means and which readers it serves.

    Raises:
        UsageError: a value is neither a Path nor None.
    """

    workspace_dir: Path | None = None
    tensorboard_dir: Path | None = None
    pretrained_networks: Path | None = None
    lasot_dir: Path | None = None
    got10k_dir: Path | None = None
    got10k_val_dir: Path | None = None
    trackingnet_dir: Path | None = None
    coco_dir: Path | None = None
    imagenet_dir: Path | None = None
    lvis_dir: Path | None = None
    sbd_dir: Path | None = None
    imagenetdet_dir: Path | None = None
    ecssd_dir: Path | None = None
    hkuis_dir: Path | None = None
    msra10k_dir: Path | None = None
    davis_dir: Path | None = None
    youtubevos_dir: Path | None = None
    lasot_lmdb_dir: Path | None = None
    got10k_lmdb_dir: Path | None = None
    trackingnet_lmdb_dir: Path | None = None
    coco_lmdb_dir: Path | None = None
    imagenet_lmdb_dir: Path | None = None
    binary_data_dir: Path | None = None
    sa1b_dir: Path | None = None
    sav_dir: Path | None = None
    masklets_dir: Path | None = None
    refcoco_dir: Path | None = None
    openimages_dir: Path | None = None
    scenes_dir: Path | None = None
    youtube_vis_dir: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if value is not None and not isinstance(value, Path):
                raise UsageError(f"{key.name}: expected a Path or None, got {type(value).__name__} {value!r}")


def reader_path(settings: Settings, reader: str) -> Path:
    """The folder of a reader whose path was not given: that of the first key which serves it.

    Raises:
        UsageError: the key is not set, or no key serves this reader.
    """
    key = next((key for key in KEYS.values() if reader in key.readers), None)
    if key is None:
        raise UsageError(f"{reader}: no setting names a folder for this reader; give the path: {reader}:PATH")
    path: Path | None = getattr(settings, key.name)
    if path is None:
        raise UsageError(
            f"{reader}: no path given and {key.name} is not set ({key.meaning}); give {reader}:PATH, "
            f"or {key.name} in the table [{TABLE}] of {FILE_NAME}, or the variable {key.variable}"
        )
    return path


def nearest(name: str, known: Iterable[str]) -> str:
    """Words to add to a message about an unknown name: the nearest known one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
