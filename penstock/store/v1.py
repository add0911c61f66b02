"""Layout v1: the seed's directories (config.json and seven .bin files), opened as a store with a built-in schema."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.errors import SourceNotFound, StoreCorrupt, StoreUnsupported
from penstock.store.disk import Disk
from penstock.store.keys import Keys, line_ends
from penstock.store.layout import Layout
from penstock.store.manifest import NAME
from penstock.store.part import Part
from penstock.store.rows import KEYS, ROWS
from penstock.store.store import Store, open_parts
from penstock.store.v1_schema import V1_SCHEMA

CONFIG = "config.json"
SIDE = ".penstock"
"""Folder beside the data that holds our ledger, recipe and reports."""
RECIPE = "recipe.json"
"""In that folder: what defines the rows, compared with each run."""
REBUILDING = "rebuilding"
"""bbox_format while `penstock repair` replaces boxes and masks; such a directory is not opened."""

V1_LAYOUT = Layout.of(V1_SCHEMA)


def open_store(path: Path | str) -> Store:
    """Opens a store: penstock's own layout, or a v1 directory, whoever wrote it.

    Raises:
        SourceNotFound: the folder holds neither store.json nor config.json.
        StoreCorrupt: sizes of files and counts do not agree; the first row that is not whole is named.
        StoreUnsupported: a later format.
    """
    path = Path(path)
    if (path / NAME).exists():
        return open_parts(path)
    if (path / CONFIG).exists():
        return open_v1(path)
    raise SourceNotFound(f"{path}: holds neither {NAME} (a penstock store) nor {CONFIG} (a v1 directory)")


def open_v1(path: Path, *, exact: bool | None = None) -> Store:
    """Opens a v1 directory. Boxes are as stored: `attributes["bbox_format"]` says "xyxy" or, without our marker, "xywh".

    Args:
        path: the folder.
        exact: whether files may not be longer than the count says; None: unless our ledger is there, which says what counts.
    """
    config = read_config(path)
    rows = int(str(config["total_samples"]))
    _check_format(path, config)
    if config.get("bbox_format") == REBUILDING:
        raise StoreCorrupt(f"{path}: a repair was interrupted; run the same penstock repair again")
    ledger = path / SIDE if (path / SIDE / ROWS).exists() else None
    part = Part(path, V1_LAYOUT, rows, V1Keys(path, rows), sealed=True, whole=True, ledger=ledger)
    # A directory that others wrote must agree with itself exactly: whole records behind the last counted one mean that a
    # writer was killed, and that later appends are shifted. In ours the ledger says what counts.
    part.check_sizes(
        V1_LAYOUT.sealed_sizes(rows, {}), exact=not (path / SIDE / ROWS).exists() if exact is None else exact
    )
    attributes = {"layout": "v1", "bbox_format": "xywh", "bbox_frame": "original", **config}
    return Store(path, V1_SCHEMA, [part], attributes)


def read_config(path: Path) -> dict[str, object]:
    """config.json of a v1 directory.

    Raises:
        SourceNotFound: there is none.
        StoreCorrupt: it is not JSON, or counts no samples.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise SourceNotFound(
            f"Config not found at {file}: run penstock convert, or give the folder that holds it"
        ) from error
    except ValueError as error:
        raise StoreCorrupt(f"{file}: expected JSON: {error}") from error
    total = config.get("total_samples") if isinstance(config, dict) else None
    if not isinstance(total, int) or total < 0:
        raise StoreCorrupt(f"{file}: total_samples: expected a count, got {total!r}")
    return dict(config)


def _check_format(path: Path, config: Mapping[str, object]) -> None:
    stated = config.get("sample_sizes")
    ours = sample_sizes()
    wrong = (
        {name: size for name, size in stated.items() if ours.get(name, size) != size}
        if isinstance(stated, dict)
        else {}
    )
    if wrong or config.get("image_size", 1024) != 1024:
        found = wrong or {"image_size": config["image_size"]}
        raise StoreUnsupported(
            f"{path / CONFIG}: layout v1 has records of {ours} for 1024 x 1024 pictures, this one states {found}"
        )


def sample_sizes() -> dict[str, int]:
    """Bytes of a record in each file, under the names that config.json has for them."""
    names = {
        file.name: f"{file.name.removesuffix('.bin')}_bytes".replace("images", "image") for file in V1_LAYOUT.records
    }
    return {names[file.name]: file.record_bytes for file in V1_LAYOUT.records}


def make_config(total: int, attributes: Mapping[str, object]) -> bytes:
    """config.json for so many samples: the seed's keys in its order, then our marker of the box convention."""
    config = {
        "model_type": attributes.get("model_type", "unknown"),
        "image_size": 1024,
        "mask_size": 256,
        "total_samples": total,
        "version": "1.0",
        "description": "SA-1B distillation set, fixed-record binary layout",
        "sample_sizes": sample_sizes(),
        "interpolation_method": "cv2.INTER_AREA",
        "mask_binarization_threshold": 0.5,
        "bbox_format": "xyxy",
        "bbox_frame": "original",
        "derived_fields": attributes.get("derived_fields", []),
    }
    return (json.dumps(config, indent=2, ensure_ascii=False)).encode()


def write_config(disk: Disk, path: Path, total: int, attributes: Mapping[str, object]) -> None:
    """Replaces config.json, atomically."""
    disk.replace(path / CONFIG, make_config(total, attributes))


class V1Keys(Keys):
    """keys.txt of a v1 directory, which may lack lines: those rows are called sample_%06d, as the original does."""

    def __init__(self, folder: Path, rows: int) -> None:
        text = (folder / KEYS).read_bytes() if (folder / KEYS).exists() else b""
        self.named = min(rows, len(line_ends(text))) if text else 0
        super().__init__(folder, self.named, sealed=False)
        self.total = rows

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # rows only, as in Keys
        if self.named <= row < self.total:
            return f"sample_{row:06d}"
        return super().__getitem__(row)

    def find(self, keys: Sequence[str]) -> dict[str, int]:
        """Row of each of these keys that is here; names made up for rows without a line are found too."""
        found = super().find(keys) if self.named else {}
        for key in keys:
            number = key.removeprefix("sample_")
            if key not in found and number != key and number.isdigit() and self.named <= int(number) < self.total:
                found[key] = int(number)
        return found
