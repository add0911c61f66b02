"""Saved sets that the tests of exporters share: small ones with known truth, and real ones of a LaSOT tree."""

from pathlib import Path

import numpy as np

from penstock.exporters.base import Exporter
from penstock.exporters.run import export
from penstock.report import Report
from penstock.sequence_config import DrawConfig, SaveConfig, SequenceConfig
from penstock.sequence_save import save_sequences
from penstock.stages.sequence_config import CropConfig, RoleCrop
from penstock.testing_exporters import boxes_of, make_saved_set
from tests.sequence_data import write_lasot

CROPS = CropConfig(template=RoleCrop(factor=2, size=32), search=RoleCrop(factor=4, size=48, center_jitter=1))


def save_real(root: Path, count: int = 2, *, lasot: Path | None = None, **save: object) -> Path:
    """Sequences that the sampler drew from a small LaSOT (beside them, or where it is said), with their recipe."""
    lasot = lasot or root.parent / "lasot"
    if not lasot.exists():
        write_lasot(lasot)
    save_sequences(
        SequenceConfig(
            sources=(f"lasot:{lasot}",), output=root, num_sequences=count, seed=3, crops=CROPS,
            draw=DrawConfig(min_frames=5, min_interval=4, future_steps=2, num_template=2, max_gap=10),
            save=SaveConfig(workers=0, timestamp="20241201_143022", durability="process", **save),  # type: ignore[arg-type]
        )
    )  # fmt: skip
    return root


def exported(folder: Path, exporter: Exporter, **made: object) -> Path:
    """A made set, exported whole."""
    make_saved_set(folder / "set", **made)  # type: ignore[arg-type]
    report: Report = export(folder / "set", folder / "out", format=exporter)
    assert (report.done, report.failed) == (3, 0)
    return folder / "out"


def truth(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a made sequence: (5, 4) boxes of its frames, templates first, and which frames do not show the target.

    Sequence 1: the second template is hidden. Sequence 2: a negative, whose search frames have no box of the target.
    """
    boxes = np.concatenate([boxes_of("template", number), boxes_of("search", number)])
    absent = np.array([False, number == 1, False, False, True])
    if number == 2:
        boxes[2:], absent[2:] = 0, True
    return boxes, absent
