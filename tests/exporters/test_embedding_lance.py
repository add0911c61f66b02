"""Vectors as a Lance dataset: read back by Lance itself and by penstock, there and back through every other layout.

Lance runs in processes of its own: once imported, it warns at every fork, and other tests fork.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from penstock.cli import main
from penstock.errors import MissingExtra
from penstock.exporters.embedding_rows import open_rows
from penstock.exporters.embeddings import export_vectors
from penstock.search import neighbours
from penstock.search_vectors import Vectors
from penstock.store import open_store
from tests.exporters.test_embedding_novic import many
from tests.exporters.test_embeddings import KEYS, write_vectors

needs_lance = pytest.mark.skipif(find_spec("lance") is None, reason="needs pylance")

READ = """
import sys, lance, orjson
found = lance.dataset(sys.argv[1])
rows = found.to_table().to_pylist()
about = orjson.loads(found.schema.metadata[b"penstock"])
kinds = {one.name: str(one.type) for one in found.schema}
sys.stdout.buffer.write(orjson.dumps({"rows": rows, "about": about, "kinds": kinds}))
"""

AROUND = """
import sys
from pathlib import Path
from penstock.exporters.embeddings import export_vectors
root = Path(sys.argv[1])
export_vectors(root / "store", root / "lance", format="lance")
export_vectors(root / "lance", root / "of-lance", format="store")
for layout in ("npy", "npz", "parquet"):
    export_vectors(root / "lance", root / layout, format=layout)
    export_vectors(root / layout, root / f"{layout}-lance", format="lance")
    export_vectors(root / f"{layout}-lance", root / f"of-{layout}", format="store")
"""

INDEXED = """
import sys, lance, numpy, orjson
found = lance.dataset(sys.argv[1])
vector = numpy.array(found.take([7]).to_pylist()[0]["embedding"], numpy.float16)
found.create_index("embedding", index_type="IVF_PQ", metric="cosine", num_partitions=4, num_sub_vectors=4)
near = {"column": "embedding", "q": vector, "k": 10, "nprobes": 4, "refine_factor": 20}
table = lance.dataset(sys.argv[1]).to_table(columns=["key", "_distance"], nearest=near)
sys.stdout.buffer.write(orjson.dumps(table["key"].to_pylist()))
"""

DAMAGED = """
import sys
from pathlib import Path
from penstock.errors import BadData
from penstock.exporters.embedding_rows import open_rows
for path in Path(sys.argv[1]).rglob("*.manifest"):
    path.write_bytes(path.read_bytes()[:20])
try:
    open_rows(Path(sys.argv[1]))
except BadData as error:
    print(error)
"""


def run(script: str, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def export(source: Path, output: Path) -> None:
    """By the command, as a user would."""
    command = ["-m", "penstock", "export", str(source), "--format", "lance", "--output", str(output), "--quiet"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@needs_lance
def test_lance_reads_every_field_and_the_attributes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_vectors(tmp_path / "store")
    export(tmp_path / "store", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "vectors.lance"]
    found = json.loads(run(READ, tmp_path / "out" / "vectors.lance"))
    assert list(found["kinds"]) == ["key", "label", "embedding", "box", "category"]
    assert found["kinds"]["embedding"] == "fixed_size_list<item: halffloat>[6]"
    assert found["about"]["attributes"]["spec"] == "tiny:"
    origin = open_rows(tmp_path / "store")
    assert [row["key"] for row in found["rows"]] == list(KEYS)
    assert [row["label"] for row in found["rows"]] == origin.labels.tolist()
    assert (np.array([row["embedding"] for row in found["rows"]], np.float16) == origin.vectors()).all()
    assert [row["box"] for row in found["rows"]] == [[n + i for i in range(4)] for n in range(5)]
    assert [row["category"] for row in found["rows"]] == [f"class {n}" for n in range(5)]


@needs_lance
def test_lance_turns_into_the_others_and_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_vectors(tmp_path / "store", tuple(f"{picture:012d}_{segment}" for picture in (3, 4) for segment in (1, 2)))
    run(AROUND, tmp_path)
    origin = open_rows(tmp_path / "store")
    for name in ("lance", "npy", "npz", "parquet"):
        found = open_rows(tmp_path / f"of-{name}")
        assert found.keys == origin.keys
        assert (found.vectors() == origin.vectors()).all()
        assert found.labels.tolist() == ([-1] * 4 if name == "npy" else origin.labels.tolist())
        assert found.attributes["spec"] == "tiny:"


@needs_lance
def test_an_index_of_lance_finds_what_the_exact_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    store = many(tmp_path / "store", 1000)
    export(store, tmp_path / "out")
    found = json.loads(run(INDEXED, tmp_path / "out" / "vectors.lance"))
    vectors = Vectors(open_store(store))
    rows, _ = neighbours(vectors, vectors.unit(np.array([7])), top=10)
    exact = {vectors.store.keys[row] for row in rows[0].tolist()}
    assert found[0] == vectors.store.keys[7]
    assert len(exact & set(found)) >= 9


@needs_lance
def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_vectors(tmp_path / "store")
    export(tmp_path / "store", tmp_path / "out")
    assert "vectors.lance: expected a Lance dataset of vectors" in run(DAMAGED, tmp_path / "out")


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vectors(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(MissingExtra, match=r"pylance: pip install 'penstock\[lance\]'"):
        export_vectors(tmp_path / "store", tmp_path / "out", format="lance")
    arguments = ["export", str(tmp_path / "store"), "--format", "lance", "--output", str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 2
    assert "penstock[lance]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
