"""Saved: a source over saved sequences. A row is a sequence, as the sampler and the crops gave it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from penstock.errors import BadData, SourceNotFound
from penstock.geometry.crops import CropWindow, crop_padding
from penstock.geometry.images import decode_picture
from penstock.schema import Record, Schema, Value
from penstock.sequence_check import check_folder
from penstock.sequence_folder import (
    IMAGES,
    MANIFEST,
    MASKS,
    RAW,
    RAW_MASKS,
    ROLES,
    SIDE,
    load_provenance,
    picture_name,
    read_manifest,
    record_from_json,
    require_sequences,
    saved_folders,
)
from penstock.source import Lookup, Problem, check_index


class Saved:
    """Sequences that `penstock sequence save` wrote, in order of their numbers, as records that a network can be trained on.

    With PNG a record equals what the sampler and the crops gave, field by field; with JPEG all but the pixels of crops does
    (raw pictures that were JPEGs are the source's own bytes, so they are equal too). Pixels are as fed before normalisation.

    Args:
        path: the folder.

    Attributes:
        schema: `penstock.stages.sequence_record.crop_schema` for crops; boxes in the source's pixels for raw pictures;
            `template_image_000` and so on are pictures of the source.

    Raises:
        SourceNotFound: there are none; or SequenceSaver wrote them, which keeps no schema.
        StoreCorrupt: `.penstock/sequences.json` is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.root = Path(path)
        self._names = require_sequences(self.root)
        manifest = read_manifest(self.root)
        if manifest is None:
            raise SourceNotFound(
                f"{self.root}: {len(self._names)} saved sequences, but no {SIDE}/{MANIFEST}, which says what they hold; "
                "what SequenceSaver saved is loaded by its load_sequence_data and load_sequence_images"
            )
        self.manifest = manifest
        self.schema = Schema.from_json(manifest["schema"])
        save = manifest["identity"]["save"]
        self.pictures = str(save["pictures"])
        self.image_format = str(save["image_format"])
        self.has_images = bool(save["save_images"])

    @property
    def keys(self) -> Sequence[str]:
        """Ids: "seq_000001"."""
        return Lookup(len(self), lambda index: self._names[index][: -len("_YYYYmmdd_HHMMSS")])

    def folder(self, index: int) -> Path:
        """Where a sequence lies."""
        return self.root / self._names[check_index(index, len(self))]

    def provenance(self, index: int) -> dict[str, object]:
        """What `provenance.json` of a sequence says."""
        return load_provenance(self.folder(index))

    def digest(self) -> str:
        """Identity of the recipe and of which sequences are there."""
        return xxhash.xxh3_128_hexdigest("\n".join([str(self.manifest["identity"]), *self._names]).encode())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        """The record of a sequence.

        Raises:
            IndexError: there is no such sequence.
            BadData: a file is damaged, or misses a field; it is named.
        """
        return self.read(index)

    def read(self, index: int, fields: Sequence[str] | None = None) -> Record:
        """Some fields of a sequence; a picture is decoded only if one of them is its own.

        Raises:
            IndexError, BadData: as `saved[index]`.
        """
        folder = self.folder(index)
        schema = self.schema.select(fields)
        provenance = load_provenance(folder)
        record = record_from_json(provenance["record"], schema, str(folder))
        files = provenance["files"]
        for name, field in schema.items():
            if name not in record:
                record[name] = _Pictures(self, folder, provenance, files).value(name, field.shape)
        return {name: record[name] for name in schema}


class _Pictures:
    """The pictures of one sequence as fields."""

    def __init__(self, saved: Saved, folder: Path, provenance: dict[str, object], files: dict[str, object]) -> None:
        self.saved = saved
        self.folder = folder
        self.provenance = provenance
        self.files = files

    def value(self, name: str, shape: tuple[int | None, ...]) -> Value:
        """A field: `template_images`, `template_masks`, `template_att` of crops; `template_image_000`,
        `template_mask_000` of the source's pictures."""
        role, what, *number = name.split("_")
        if role not in ROLES or what not in ("images", "masks", "att", "image", "mask"):
            raise BadData(
                f"{self.folder}: field {name}: expected a field of pictures; a later penstock may have saved it"
            )
        both = self.saved.pictures == "both"
        if what == "att":
            return self._padding(role, shape)
        if what in ("image", "mask"):
            folder = (RAW if both else IMAGES) if what == "image" else (RAW_MASKS if both else MASKS)
            return self._picture(role, int(number[0]), folder)
        folder = IMAGES if what == "images" else MASKS
        found = np.stack([self._picture(role, one, folder, shape) for one in range(shape[0] or 0)])
        if found.shape != shape:
            raise BadData(f"{self.folder}: {name}: expected pictures of {shape}, got {found.shape}")
        return found

    def _picture(self, role: str, number: int, folder: str, shape: tuple[int | None, ...] = ()) -> np.ndarray:
        if folder in (MASKS, RAW_MASKS):
            name = picture_name(role, number, "png", folder=folder)
            if name not in self.files:  # the source has none
                height, width = shape[1:3] if shape else self._size_hw(role, number)
                return np.zeros((int(height or 0), int(width or 0)), np.uint8)
            return np.asarray(self._decode(name)[..., 0] != 0, np.uint8)
        return self._decode(picture_name(role, number, self.saved.image_format, folder=folder))

    def _decode(self, name: str) -> np.ndarray:
        path = self.folder / name
        try:
            return decode_picture(path.read_bytes())
        except OSError as error:
            raise BadData(f"{path}: cannot be read: {error.strerror or error}") from error
        except BadData as error:
            raise BadData(f"{path}: {error}") from error

    def _size_hw(self, role: str, number: int) -> tuple[int, int]:
        origin = self.provenance["origin"]
        height, width = origin[role]["image_hw"][number]  # type: ignore[index]  # plain JSON
        return height, width

    def _padding(self, role: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """(n, S, S) bool: true where the crops show something outside the picture, from the crops' places."""
        record = self.provenance["record"]
        assert isinstance(record, dict)
        found = []
        for number in range(shape[0] or 0):
            x, y, side, _ = record[f"{role}_crop_box"][number]
            height, width = self._size_hw(role, number)
            left = width - x - side if record["joint_flip"] else x
            window = CropWindow(round(left), round(y), round(side), int(shape[1] or 0))
            padding = crop_padding(window, (height, width))
            found.append(padding[:, ::-1] if record[f"{role}_flip"][number] else padding)
        return np.stack(found)


def verify_saved(path: Path | str, *, on_progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Reads every file of every saved sequence once and compares it with what was written.

    Also for what SequenceSaver wrote.

    Args:
        path: the folder of the sequences.
        on_progress: told (sequences done, sequences in all).

    Returns:
        What is missing, damaged, or not of the sequence; empty if all is as it was saved.

    Raises:
        SourceNotFound: there are no saved sequences.
    """
    root = Path(path)
    names = require_sequences(root)
    problems: list[Problem] = []
    for number, name in enumerate(names, 1):
        problems += check_folder(root / name)
        if on_progress is not None:
            on_progress(number, len(names))
    manifest = read_manifest(root)
    if manifest is not None:
        recipes = {name: _recipe_of(root / name) for name in names}
        expected = max(set(recipes.values()), key=list(recipes.values()).count)
        problems += [
            Problem(str(root / name), "BadData", f"{root / name}: was saved by another recipe than the others")
            for name, recipe in recipes.items()
            if recipe not in (expected, "")
        ]
    for listing in sorted(root.glob("saved_paths_*.txt")):
        problems += _check_listing(listing)
    return problems


def _recipe_of(folder: Path) -> str:
    try:
        return str(load_provenance(folder).get("recipe", ""))
    except (SourceNotFound, BadData):
        return ""  # check_folder has said so


def _check_listing(listing: Path) -> list[Problem]:
    """Sequences that are listed and are not there."""
    there = set(saved_folders(listing.parent))
    listed = [Path(line).name for line in listing.read_text(encoding="utf-8").splitlines() if line]
    return [
        Problem(str(listing.parent / name), "SourceNotFound", f"{listing} lists {name}, which is not there")
        for name in listed
        if name not in there
    ]
