"""The val and test layout of SA-V: all frames as JPEG, and for every object a folder of PNGs, one for every fourth frame."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from penstock.errors import BadData
from penstock.geometry.boxes import mask_box
from penstock.geometry.id_pngs import binary_png
from penstock.readers.files import Files
from penstock.readers.sav_json import FPS
from penstock.readers.track_files import picture_numbers
from penstock.readers.tracks import Track
from penstock.source import Problem

PICTURES, MASKS = "JPEGImages_24fps", "Annotations_6fps"
"""Folders below the part: PICTURES/VIDEO/00000.jpg, MASKS/VIDEO/OBJECT/00000.png."""


def frames_stamps(files: Files, base: str, wanted: Collection[str], *, with_masks: bool) -> Iterable[object]:
    """Names and stamps of what the tracks are made from.

    Args:
        files: where the part lies.
        base: the part's folder, with a slash at its end, or "".
        wanted: names of videos; all if empty.
        with_masks: the PNGs themselves count too, not only their names.
    """
    yield files.stamp(_list_path(files, base))
    for video in _videos(files, base, wanted, []):
        yield video, files.stamp(f"{base}{PICTURES}/{video}")
        for target in files.names(f"{base}{MASKS}/{video}"):
            folder = f"{base}{MASKS}/{video}/{target}"
            yield target, files.stamp(folder)
            if with_masks:
                yield [files.stamp(f"{folder}/{name}") for name in files.names(folder)]


def frames_tracks(
    files: Files, base: str, wanted: Collection[str], problems: list[Problem], *, read_masks: bool
) -> Iterator[Track]:
    """A track per object, with a row per PNG. Boxes and areas are NaN unless the masks are read.

    Args: as `frames_stamps`; faults of whole files go to `problems`.
    """
    for video in _videos(files, base, wanted, problems):
        folder = f"{base}{PICTURES}/{video}"
        pictures = set(picture_numbers(files.names(folder), 5).tolist())
        targets = files.names(f"{base}{MASKS}/{video}")
        if not targets:
            problems.append(Problem(f"{base}{MASKS}/{video}", "BadData", "no folder of an object: no rows"))
        for target in targets:
            masks = f"{base}{MASKS}/{video}/{target}"
            names = files.names(masks)
            numbers = picture_numbers(names, 5, ".png")
            lone = len(set(numbers.tolist()) - pictures)
            if len(names) > len(numbers) or not len(numbers):
                message = f"expected masks 00000.png, 00004.png, ...: {len(names) - len(numbers)} of {len(names)} files are none"
                problems.append(Problem(masks, "BadData", f"{message}: no rows of them"))
            if lone:
                message = f"{lone} of {len(numbers)} masks have no picture in {folder}; these rows fail"
                problems.append(Problem(masks, "BadData", message))
            boxes, areas = _columns(files, masks, numbers, problems if read_masks else None)
            yield Track(
                video=video,
                target=target,
                name=f"{video}/{target}",
                fps=FPS,
                folder=folder,
                numbers=numbers,
                frames=numbers,
                boxes=boxes,
                absent=areas == 0,
                extra={"area": areas, "rle_hash": np.zeros(len(numbers))},
                about={"annotation": masks, "masklet_type": "manual", "place": 0, "size_hw": (0, 0), "fault": ""},
            )


def read_mask(files: Files, path: str) -> np.ndarray:
    """The mask of a PNG: (H, W) uint8, 0 or 1.

    Raises:
        BadData: it is missing, damaged, or holds more than one object.
    """
    content = files.read(path)
    try:
        return binary_png(content)
    except BadData as error:
        raise BadData(f"{files.root}: {path}: {error}") from error


def _list_path(files: Files, base: str) -> str:
    lists = [name for name in files.names(base) if name.startswith("sav_") and name.endswith(".txt")]
    return base + lists[0] if lists else ""


def _videos(files: Files, base: str, wanted: Collection[str], problems: list[Problem]) -> list[str]:
    """Those of the list `sav_val.txt`; without it, all folders."""
    path = _list_path(files, base)
    here = set(files.names(base + MASKS))
    listed = files.read(path).decode("utf-8-sig", "surrogateescape").split() if path else sorted(here)
    missing = [video for video in listed if video not in here]
    problems += [Problem(path, "BadData", f"{video} is listed, but not in {MASKS}: no rows") for video in missing]
    return sorted({video for video in listed if video in here and (not wanted or video in wanted)})


def _columns(
    files: Files, masks: str, numbers: np.ndarray, faults: list[Problem] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and areas (N,) of an object's PNGs; NaN where they cannot be read, or must not be (no list given)."""
    boxes, areas = np.full((len(numbers), 4), np.nan), np.full(len(numbers), np.nan)
    if faults is None:
        return boxes, areas
    for row, number in enumerate(numbers.tolist()):
        path = f"{masks}/{number:05d}.png"
        try:
            mask = read_mask(files, path)
        except BadData as error:
            faults.append(Problem(path, "BadData", f"{error}; this row fails"))
            continue
        boxes[row], areas[row] = mask_box(mask), np.count_nonzero(mask)
    return boxes, areas
