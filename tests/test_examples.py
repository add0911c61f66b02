"""The examples run as a user would run them, without a network, and say where to look."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.stem))
def test_the_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    (shown,) = re.findall(r"^Look at (.+)$", done.stdout, flags=re.M)
    assert Path(shown).stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "out"], "written beside the folder that was named"


def test_the_embedding_example_names_its_double_and_shows_crops(tmp_path: Path) -> None:
    path = next(one for one in EXAMPLES if one.stem == "03_embed")
    done = subprocess.run([sys.executable, str(path), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "tiny:, a small double of a network" in done.stdout
    assert re.search(r"^1\.0000  cat_1  cat$", done.stdout, flags=re.M)
    page = (tmp_path / "search.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12
    assert "a small double of a network" in page
    assert not re.search(r"""(?:src|href)=["']?http""", page)
