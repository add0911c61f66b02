"""v1 directories written with NumPy alone, as the original converter does: the truth that check and repair are held to."""

import json
from pathlib import Path

import numpy as np

RECORD_BYTES = {
    "images.bin": 3_145_728,
    "features.bin": 5_242_880,
    "edge_maps.bin": 70_656,
    "weight_maps.bin": 172_032,
    "bboxes.bin": 16,
    "masks.bin": 65_536,
    "metadata.bin": 20,
}
SPARSE = ("images.bin", "features.bin")
"""Files of which only the size is made: zeros that take no room."""


def rectangle(row: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Height and width of the row's picture, and its one object as XYXY, on a grid that 32 x 32 cells resolve."""
    rng = np.random.default_rng([row, 11])
    size_hw = 640 + 32 * (row % 3), 960 + 32 * (row % 5)
    x1, y1 = rng.integers(12, 18, 2)
    x2, y2 = (int(low + rng.integers(5, 12)) for low in (x1, y1))
    cell_h, cell_w = size_hw[0] // 32, size_hw[1] // 32
    return size_hw, (int(x1) * cell_w, int(y1) * cell_h, x2 * cell_w, y2 * cell_h)


def cover(row: int, side: int) -> np.ndarray:
    """(side, side) uint8: the row's rectangle on the stretched picture."""
    (height, width), (x1, y1, x2, y2) = rectangle(row)
    mask = np.zeros((side, side), np.uint8)
    mask[y1 * side // height : y2 * side // height, x1 * side // width : x2 * side // width] = 1
    return mask


def records(row: int, *, boxes: str, masks: bool) -> dict[str, bytes]:
    """The bytes of one row in each file that is not sparse."""
    size_hw, (x1, y1, x2, y2) = rectangle(row)
    box = (x1, y1, x2, y2) if boxes == "xyxy" else (x1, y1, x2 - x1, y2 - y1)
    edges = b""
    for side in (256, 64, 32):
        inside = cover(row, side).astype(np.int8)
        edge = np.zeros((side, side), np.uint8)
        edge[1:] |= np.diff(inside, axis=0) != 0
        edge[:, 1:] |= np.diff(inside, axis=1) != 0
        edges += edge.tobytes()
    weights = b""
    for side in (128, 64, 32):
        inside = cover(row, side).astype(np.float32)
        weights += (inside / inside.sum()).tobytes() + ((1 - inside) / (1 - inside).sum()).tobytes()
    return {
        "edge_maps.bin": edges,
        "weight_maps.bin": weights,
        "bboxes.bin": np.array(box, "<f4").tobytes(),
        "masks.bin": (cover(row, 256) if masks else np.zeros((256, 256), np.uint8)).tobytes(),
        "metadata.bin": np.array([1, 1, *size_hw, 3], "<i4").tobytes(),
    }


def append(root: Path, start: int, stop: int, *, boxes: str = "xyxy", masks: bool = True) -> None:
    """Adds rows at the end of every file, wherever that is; config.json is left alone."""
    for name in SPARSE:
        with (root / name).open("ab") as file:
            file.truncate((root / name).stat().st_size + (stop - start) * RECORD_BYTES[name])
    handles = {name: (root / name).open("ab") for name in RECORD_BYTES if name not in SPARSE}
    for row in range(start, stop):
        for name, content in records(row, boxes=boxes, masks=masks).items():
            handles[name].write(content)
    for handle in handles.values():
        handle.close()
    with (root / "keys.txt").open("a") as file:
        file.write("".join(f"sa_{row}\n" for row in range(start, stop)))


def write_config(root: Path, total: int, *, marker: str | None = None) -> None:
    """config.json with the original's keys; `marker` is penstock's bbox_format, which the original lacks."""
    names = {name: f"{name[:-4]}_bytes" for name in RECORD_BYTES} | {"images.bin": "image_bytes"}
    config: dict[str, object] = {
        "model_type": "sam2.1_hiera_b+",
        "image_size": 1024,
        "mask_size": 256,
        "total_samples": total,
        "version": "1.0",
        "description": "by others",
        "sample_sizes": {names[name]: size for name, size in RECORD_BYTES.items()},
        "interpolation_method": "cv2.INTER_AREA",
        "mask_binarization_threshold": 0.5,
    }
    if marker:
        config["bbox_format"] = marker
    (root / "config.json").write_text(json.dumps(config, indent=2))


def write_v1(
    root: Path,
    rows: int,
    *,
    marker: str | None = None,
    boxes: str = "xywh",
    masks: bool = True,
    total: int | None = None,
) -> Path:
    """A whole directory; by default with XYWH boxes and no marker, as the original writes."""
    root.mkdir(parents=True, exist_ok=True)
    append(root, 0, rows, boxes=boxes, masks=masks)
    write_config(root, rows if total is None else total, marker=marker)
    return root


def tear(root: Path) -> dict[str, int]:
    """Cuts a directory of 61 rows to what a kill left of it (8 old rows, 53 new ones). Gives the bytes of each file."""
    sizes = {name: 61 * size for name, size in RECORD_BYTES.items()}
    sizes |= {"bboxes.bin": 8 * 16, "metadata.bin": 8 * 20}
    sizes |= {"edge_maps.bin": 60 * 70_656 + 61_952, "weight_maps.bin": 2561 * 4096}
    for name, size in sizes.items():
        with (root / name).open("r+b") as file:
            file.truncate(size)
    return sizes
