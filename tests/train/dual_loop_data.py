"""Small files of the four datasets of a dual loop, for its tests."""

from pathlib import Path

import numpy as np

from tests.readers.test_masklets import npz
from tests.readers.test_openimages import write_openimages
from tests.readers.test_refcoco import write_refcoco
from tests.readers.test_sa1b import write_sa1b

COLOURS = np.array([[230, 60, 60], [60, 200, 80], [80, 110, 240]], np.float32)


def write_pairs(root: Path, count: int = 12) -> Path:
    """Masklet files of 24 x 32: a square of one colour on noise, elsewhere in the second frame. BGR, as in the wild."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        arrays: dict[str, np.ndarray] = {}
        for view in (1, 2):
            frame = rng.integers(0, 60, (24, 32, 3)).astype(np.float32)
            mask = np.zeros((24, 32), np.float32)
            top, left = rng.integers(0, 12, 2).tolist()
            frame[top : top + 10, left : left + 10] = COLOURS[number % 3][::-1]
            mask[top : top + 10, left : left + 10] = 255
            arrays |= {f"frame{view}": frame, f"mask{view}": mask}
        (root / f"masklet_data_{number:05d}.npz").write_bytes(npz(arrays))
    return root


def write_all(root: Path) -> dict[str, str]:
    """The four datasets: flag, with underscores, -> folder."""
    return {
        "sav_dir": str(write_pairs(root / "npz")),
        "sa1b_dir": str(write_sa1b(root / "sa1b")),
        "refcoco_dir": str(write_refcoco(root / "ref_seg", mmdet=True)),
        "openimage_dir": str(write_openimages(root / "openimages")),
    }
