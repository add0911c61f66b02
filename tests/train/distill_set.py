"""A small distillation set made by the real stage from pictures with masks, for the tests of training."""

from pathlib import Path
from typing import Any

from penstock.teacher import TeacherConfig, teach
from tests.readers.test_sa1b import write_sa1b

ROWS = 12


def write_set(root: Path, *, rows: int = ROWS, model_type: str = "stand-in", **values: Any) -> Path:
    """`root/set` of `root/photos`: pictures of 64 x 64 and features of 4 x 4 from the stand-in, unless told otherwise."""
    photos = write_sa1b(root / "photos", numbers=tuple(range(1, rows + 1)))
    known: dict[str, Any] = {"image_size": 64} if model_type == "stand-in" else {}
    config = TeacherConfig(
        source=f"sa1b:{photos}", output=root / "set", model_type=model_type, num_workers=0, device="cpu",
        **{**known, **values},
    )  # fmt: skip
    report = teach(config)
    assert report.done == rows
    return root / "set"
