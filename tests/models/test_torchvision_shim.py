"""A torchvision that is whole stays as it is; one that is broken imports, and its `nms` is right."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.models.torchvision_shim import ensure_torchvision, nms  # noqa: E402


def run(code: str, path: Path | None = None) -> str:
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path or ""), str(Path(__file__).parents[2])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def make_package(folder: Path, content: bytes) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "extension.py").write_text("def _has_ops():\n    return False\n")
    (package / "_C.so").write_bytes(content)
    return folder


STATE = """
    import torch
    from penstock.models.torchvision_shim import ensure_torchvision
    shimmed = ensure_torchvision()
    import torchvision.extension
    print(shimmed, torchvision.extension._has_ops(), hasattr(torch.ops.torchvision, "nms"))
"""


def test_a_torchvision_whose_operators_load_is_left_alone(tmp_path: Path) -> None:
    library = next(Path(np.__file__).parent.joinpath("_core").glob("_multiarray_umath*.so"))
    assert run(STATE, make_package(tmp_path, library.read_bytes())) == "False False False"


def test_a_torchvision_whose_operators_do_not_load_gets_them(tmp_path: Path) -> None:
    assert run(STATE, make_package(tmp_path, b"no library")) == "True True True"


@pytest.mark.skipif(find_spec("torchvision") is None, reason="no torchvision")
def test_the_installed_torchvision_imports_and_suppresses() -> None:
    out = run("""
        from penstock.models.torchvision_shim import ensure_torchvision
        ensure_torchvision()
        import torch
        from torchvision.ops import nms
        from torchvision.transforms import Resize
        boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30.0]])
        print(nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist())
    """)
    assert out == "[1, 2]"


def test_nms_equals_the_definition(rng: np.random.Generator) -> None:
    low = rng.uniform(0, 50, (60, 2))
    boxes, scores = np.concatenate([low, low + rng.uniform(1, 30, (60, 2))], axis=1), rng.random(60)

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        both = sides.clip(0).prod()
        return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))

    kept: list[int] = []
    for row in np.argsort(-scores):
        if all(overlap(boxes[row], boxes[other]) <= 0.4 for other in kept):
            kept.append(int(row))
    assert nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4).tolist() == kept
    assert len(nms(torch.zeros((0, 4)), torch.zeros(0), 0.5)) == 0


def test_it_answers_the_same_each_time() -> None:
    assert ensure_torchvision() is ensure_torchvision()
