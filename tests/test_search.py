"""Search, duplicates, zero-shot and maps against the plain way: every pair, in float64."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from penstock import Field, Schema, open_store, write_store
from penstock import search as search_module
from penstock.errors import BadData, RowFailed, SchemaError, SourceNotFound, UsageError
from penstock.schema import Record
from penstock.search import neighbours
from penstock.search_duplicates import duplicates, duplicates_cost
from penstock.search_map import map_picture, projection
from penstock.search_query import Query, crop_of, cut, hits, nearest_keys, open_picture, query_vector, read_query
from penstock.search_vectors import Vectors, unit_queries, widen
from penstock.search_zero_shot import categories_of, zero_shot
from penstock.source import Candidate
from penstock.store import Store, StoreSink
from penstock.store.commit import Commit

torch = pytest.importorskip("torch")
PHOTOS = Path(__file__).parent.parent / "examples/photos"
ENGINES = ("numpy", "torch")
NAMES = ("cat", "dog", "car")


def schema_of(dim: int, dtype: str = "float16", file: str = "") -> Schema:
    return Schema(
        [
            Field(name="embedding", dtype=dtype, shape=(dim,), kind="embedding", file=file),
            Field(name="box", dtype="float32", shape=(4,), kind="box", file="facts"),
            Field(name="category_id", dtype="int64", file="facts"),
            Field(name="category", dtype="str"),
        ]
    )


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(np.asarray(values, np.float64), axis=-1, keepdims=True)


def record(vector: np.ndarray, row: int) -> Record:
    return {
        "embedding": vector,
        "box": np.array([row, 1, 5, 6], np.float32),
        "category_id": np.int64(row % 3 + 10),
        "category": NAMES[row % 3],
    }


def make_store(
    path: Path, vectors: np.ndarray, *, dtype: str = "float16", file: str = "", part_rows: int | None = None
) -> Store:
    rows = ((f"img{n:04d}_{n}", record(vector.astype(dtype), n)) for n, vector in enumerate(vectors))
    options: dict[str, object] = {"attributes": {"spec": "tiny:test"}, "durability": "process"}
    options |= {} if part_rows is None else {"part_rows": part_rows}
    write_store(path, schema_of(vectors.shape[1], dtype, file), rows, **options)
    return open_store(path)


class MemoryStore:
    """What searching asks of a store, in memory: examples by the hundred need no disk."""

    path, attributes, schema = Path("memory"), {"spec": "tiny:test"}, Schema([])

    def __init__(self, vectors: np.ndarray, part_rows: int) -> None:
        self.views = [vectors[n : n + part_rows].astype(np.float16) for n in range(0, len(vectors), part_rows)]
        self.schema = schema_of(vectors.shape[1])
        self.keys = [f"k{n}" for n in range(len(vectors))]

    def __len__(self) -> int:
        return len(self.keys)

    def column_views(self, name: str) -> list[np.ndarray]:
        return self.views

    def done_rows(self) -> None:
        return None


def store_with_gaps(path: Path, vectors: np.ndarray, failed: set[int], missing: set[int]) -> Store:
    sink = StoreSink(path, schema_of(vectors.shape[1]), part_rows=7, durability="process")
    writer = sink.writer()
    admissions = sink.admit([Candidate(key=f"k{n}") for n in range(len(vectors))])
    for n, admission in enumerate(admissions):
        assert admission.ticket is not None
        ticket = sink.enter(admission.ticket).ticket
        if n in missing or ticket is None:
            continue
        if n in failed:
            sink.commit(Commit(ticket=ticket, error="BadData", message="bad"))
        else:
            written = writer.write(ticket.folder, ticket.position, record(vectors[n].astype(np.float16), n))
            sink.commit(Commit(ticket=ticket, written=written))
    sink.close(complete=False)
    sink.release()
    return open_store(path)


def plain_scores(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, N) float32: products in float64, each summed without rounding, to the nearest 2^-24."""
    rows, wanted = np.asarray(vectors, np.float64), unit(np.asarray(queries, np.float64))
    found = np.empty((len(wanted), len(rows)))
    for (q, query), (n, row) in itertools.product(enumerate(wanted), enumerate(rows)):
        found[q, n] = math.fsum(query * row) / math.sqrt(math.fsum(row * row))
    return (np.rint(found * 2**24) / 2**24 + 0.0).astype(np.float32)


def plain_top(scores: np.ndarray, top: int) -> np.ndarray:
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores))[:, :top]
    return np.pad(order, ((0, 0), (0, top - order.shape[1])), constant_values=-1)


def stored(store: Store) -> np.ndarray:
    return np.concatenate(store.column_views("embedding"))


def assert_exact(store: Store, queries: np.ndarray, top: int, **options: object) -> None:
    expected = plain_scores(stored(store), queries)
    rows, scores = neighbours(store, queries, top=top, **options)  # type: ignore[arg-type]
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    assert rows.tolist() == plain_top(expected, top).tolist()
    for q, n in np.argwhere(rows >= 0).tolist():
        assert scores[q, n] == expected[q, rows[q, n]]
    assert np.isnan(scores[rows < 0]).all()


def test_column_views_are_views_of_every_part(tmp_path: Path, rng: np.random.Generator) -> None:
    vectors = unit(rng.standard_normal((20, 6)))
    for file in ("", "facts"):
        store = make_store(tmp_path / f"s{file}", vectors, file=file, part_rows=8)
        views = store.column_views("embedding")
        assert [view.shape for view in views] == [(8, 6), (8, 6), (4, 6)]
        assert not any(view.flags.writeable or view.flags.owndata for view in views)
        assert np.array_equal(np.concatenate(views), vectors.astype(np.float16))
        assert np.concatenate(store.column_views("category_id")).tolist() == [n % 3 + 10 for n in range(20)]
        with pytest.raises(SchemaError, match="no fixed field"):
            store.column_views("category")
        with pytest.raises(SchemaError, match="no fixed field"):
            store.column_views("nothing")


def test_widen_is_exact_for_every_finite_half() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(1, -1)
    out = np.empty(halves.shape, np.float32)
    widen(halves, out)
    assert np.array_equal(out.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "file"), [("float16", ""), ("float16", "facts"), ("float32", "")])
def test_neighbours_are_those_of_the_plain_way(
    tmp_path: Path, rng: np.random.Generator, engine: str, dtype: str, file: str
) -> None:
    vectors = unit(rng.standard_normal((300, 24)))
    vectors[200:230] = vectors[10]  # ties, over parts and chunks
    store = make_store(tmp_path / "s", vectors, dtype=dtype, file=file, part_rows=128)
    queries = np.concatenate([vectors[[10]], rng.standard_normal((2, 24)) * 40])
    assert_exact(store, queries, 12, engine=engine, chunk_rows=37)
    assert_exact(store, np.concatenate([queries] * 3), 5, engine=engine)


@settings(max_examples=80)
@given(
    data=st.data(),
    rows=st.integers(1, 40),
    dim=st.integers(1, 9),
    top=st.integers(1, 45),
    chunk_rows=st.integers(1, 50),
    workers=st.integers(1, 3),
    engine=st.sampled_from(ENGINES),
)
def test_neighbours_are_exact_whatever_the_numbers(
    data: st.DataObject,
    rows: int,
    dim: int,
    top: int,
    chunk_rows: int,
    workers: int,
    engine: str,
) -> None:
    """Few values, so that ties and near ties are the rule."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    vectors = rng.integers(-2, 3, (rows, dim)).astype(np.float64)
    vectors[~vectors.any(axis=1), 0] = 1
    store = cast(Store, MemoryStore(unit(vectors), 16))
    queries = rng.integers(-3, 4, (data.draw(st.integers(1, 6)), dim)).astype(np.float64)
    queries[~queries.any(axis=1), 0] = 1
    assert_exact(store, queries, top, engine=engine, chunk_rows=chunk_rows, workers=workers)


@pytest.mark.parametrize("engine", ENGINES)
def test_near_ties_below_the_rounding_of_the_scan_are_ranked_exactly(tmp_path: Path, engine: str) -> None:
    """Scores a few units of float32 apart: float16 and float32 scans both see them as one."""
    rng = np.random.default_rng(3)
    base = unit(rng.standard_normal(64))
    vectors = unit(base + 3e-4 * rng.standard_normal((500, 64)))
    store = make_store(tmp_path / "s", vectors)
    assert_exact(store, base[None], 20, engine=engine, chunk_rows=50)


def test_many_equal_rows_are_settled_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_PENDING", 16)
    vectors = np.tile(unit(np.arange(1.0, 9.0)), (400, 1))
    store = make_store(tmp_path / "s", vectors)
    rows, _ = neighbours(store, vectors[:1], top=7, chunk_rows=20, engine="numpy")
    assert rows.tolist() == [list(range(7))]


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_are_not_done_and_rows_excluded_are_passed_over(
    tmp_path: Path, rng: np.random.Generator, engine: str
) -> None:
    vectors = unit(rng.standard_normal((30, 16)))
    failed, missing = {3, 20}, {0, 8, 28}
    store = store_with_gaps(tmp_path / "s", vectors, failed, missing)
    left = [n for n in range(len(store)) if n not in failed | missing]
    expected = plain_scores(stored(store)[left], vectors[[5, 6]])
    rows, scores = neighbours(store, vectors[[5, 6]], top=40, engine=engine)
    order = np.array(left)[plain_top(expected, len(left))]
    assert rows[:, : len(left)].tolist() == order.tolist()
    assert (rows[:, len(left) :] == -1).all()
    assert np.isnan(scores[:, len(left) :]).all()
    rows, _ = neighbours(store, vectors[[5, 6]], top=3, engine=engine, exclude=np.array([[5, -1], [6, 5]]))
    assert rows[0].tolist() == [n for n in order[0].tolist() if n != 5][:3]
    assert rows[1].tolist() == [n for n in order[1].tolist() if n not in (5, 6)][:3]
    with pytest.raises(RowFailed):
        query_vector(Vectors(store), read_query(store, "k3"))


def test_an_empty_store_has_no_neighbours(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", np.zeros((0, 8)))
    rows, scores = neighbours(store, np.ones(8), top=3)
    assert rows.tolist() == [[-1, -1, -1]]
    assert np.isnan(scores).all()
    assert duplicates(store).groups == ()
    assert hits(store, rows[0], scores[0]) == []
    assert duplicates_cost(store).pairs == 0
    with pytest.raises(UsageError, match="4 vectors and more"):
        projection(store)
    with pytest.raises(UsageError, match="two categories"):
        zero_shot(store)


@pytest.mark.parametrize("fault", [np.nan, np.inf, 0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_vector_that_is_no_unit_vector_is_named(
    tmp_path: Path, rng: np.random.Generator, fault: float, dtype: str
) -> None:
    vectors = unit(rng.standard_normal((50, 8)))
    vectors[[31, 40]] *= fault
    store = make_store(tmp_path / "s", vectors, dtype=dtype, part_rows=16)
    for use in (lambda: neighbours(store, vectors[0]), lambda: duplicates(store), lambda: zero_shot(store)):
        with pytest.raises(BadData, match=r"row 31 \(img0031_31\).*norm.*2 rows"):
            use()


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones(7), r"expected \(Q, 8\).*tiny:test.*got \(7,\)"),
        (np.zeros(8), "number 0.*all zeros"),
        (np.array([[1.0] * 8, [np.nan] * 8]), "number 1.*NaN"),
        (np.ones((1, 2, 8)), r"expected \(Q, 8\)"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(tmp_path: Path, queries: np.ndarray, message: str) -> None:
    store = make_store(tmp_path / "s", unit(np.ones((4, 8))))
    with pytest.raises(UsageError, match=message):
        neighbours(store, queries)


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", unit(np.ones((4, 8))))
    for options in ({"top": 0}, {"chunk_rows": 0}, {"workers": 0}, {"engine": "gpu"}, {"exclude": np.array([[4]])}):
        with pytest.raises(UsageError, match="expected"):
            neighbours(store, np.ones(8), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no field nothing"):
        Vectors(store, "nothing")
    with pytest.raises(UsageError, match="expected float16 or float32"):
        Vectors(store, "category")
    for options in ({"threshold": -1.0}, {"threshold": 1.5}, {"block_rows": 0}):
        with pytest.raises(UsageError, match="threshold"):
            duplicates(store, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"6 pairs of 4 rows, about .* s"):
        duplicates(store, max_rows=3)


def test_the_bound_holds_for_every_row(tmp_path: Path, rng: np.random.Generator) -> None:
    """What the proof rests on: fast scores of both engines differ from the true ones by at most beta."""
    vectors = unit(rng.standard_normal((400, 96)))
    store = Vectors(make_store(tmp_path / "s", vectors))
    query = unit_queries(rng.standard_normal(96), store)
    for scan in (search_module._scan, search_module._scan_half):
        best = search_module._Best(store, query[0], 400, np.zeros(0, np.int64))
        scan(store, [best], 64, 2)
        rows = np.concatenate([rows for rows, _ in best.pending])
        fast = np.concatenate([values for _, values in best.pending])
        assert sorted(rows.tolist()) == list(range(400))
        assert 0 < np.abs(fast - store.scores(rows, query[0])).max() <= best.beta < 2e-3


def test_the_box_of_a_picture_is_cropped_as_the_store_s_segments_were() -> None:
    query = Query(kind="picture", text="astronaut", path=PHOTOS / "astronaut.jpg", box=(60.0, 40.0, 50.0, 30.0))
    made = {"recipe": "native", "bg_alpha": 0.3, "pad_ratio": 0.1}
    picture = np.asarray(open_picture(replace(query, box=None)))
    crop = np.asarray(crop_of(query, made))
    assert crop.shape == (30 + 2 * 3, 50 + 2 * 5, 3)
    assert (crop[3:-3, 5:-5] == picture[40:70, 60:110]).all()
    outside = crop[0].astype(float) - (picture[37, 55:115] * 0.3 + 127.5 * 0.7)
    assert np.abs(outside).max() <= 1
    assert crop_of(query, {}).size == (50, 30)
    assert crop_of(replace(query, box=None), made).size == picture.shape[1::-1]


def test_a_query_is_a_key_a_picture_or_a_text(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", unit(np.eye(4, 8) + 0.1))
    picture = tmp_path / "a,b.png"
    Image.new("RGB", (40, 30), (255, 0, 0)).save(picture)
    assert read_query(store, "img0002_2").row == 2
    found = read_query(store, f"{picture},3,4,10.5,12")
    assert (found.kind, found.path, found.box) == ("picture", picture, (3.0, 4.0, 10.5, 12.0))
    assert open_picture(found).size == (11, 12)
    assert read_query(store, str(picture)).box is None
    assert read_query(store, "a red car, parked").kind == "text"
    for text, error, message in [
        ("", UsageError, "empty"),
        (str(tmp_path / "none.jpg"), SourceNotFound, "no such picture"),
        (f"{picture},1,2,3", UsageError, "four numbers"),
        (f"{picture},1,2,3,x", UsageError, "four numbers"),
        (f"{picture},1,2,0,3", UsageError, "positive width"),
        (f"{picture},nan,2,1,3", UsageError, "positive width"),
    ]:
        with pytest.raises(error, match=message):
            read_query(store, text)
    with pytest.raises(UsageError, match="no part inside"):
        open_picture(read_query(store, f"{picture},50,2,3,3"))
    assert cut(Image.new("RGB", (9, 9)), (-5, -5, 7, 100), "x").size == (2, 9)
    assert nearest_keys(store, "img0002_3")[0] in ("img0002_2", "img0003_3")


class RedEmbedder:
    """A model of mean colours; its words are the names of two."""

    spec, dim, device = "tiny:red", 3, "cpu"

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture.resize((4, 4)), np.float32).transpose(2, 0, 1) / 255

    def embed(self, pixels: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.normalize(pixels.mean((2, 3)), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if any(text not in ("red", "blue") for text in texts):
            raise UsageError("no such word")
        return np.array([[1, 0, 0] if text == "red" else [0, 0, 1] for text in texts], np.float32)


def test_a_picture_and_a_text_find_what_is_like_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", np.eye(3))
    vectors, model = Vectors(store), RedEmbedder()
    Image.new("RGB", (40, 30), (0, 250, 0)).save(tmp_path / "green.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def best(text: str) -> str:
        rows, scores = neighbours(vectors, query_vector(vectors, read_query(store, text), model), top=1)  # type: ignore[arg-type]
        found = hits(store, rows[0], scores[0])[0]
        assert found["score"] == 1.0
        assert found["box"] == [rows[0, 0], 1, 5, 6]
        assert found["category"] == NAMES[rows[0, 0]]
        return str(found["key"])

    assert hits(store, np.array([1, -1]), np.array([np.nan, 1], np.float32))[0]["score"] is None
    assert best("red") == "img0000_0"
    assert best("blue") == "img0002_2"
    assert best(str(tmp_path / "green.png")) == "img0001_1"
    assert best(f"{tmp_path / 'green.png'},1,1,5,5") == "img0001_1"
    assert best("img0001_1") == "img0001_1"
    for text, embedder, message in [
        ("img0001_2", None, "did you mean .*img0001_1.*tiny:test"),
        ("img0001_2", model, "did you mean .*img0001_1.*no such word"),
        (str(tmp_path / "green.png"), None, "picture, give the model"),
    ]:
        with pytest.raises(UsageError, match=message):
            query_vector(vectors, read_query(store, text), embedder)  # type: ignore[arg-type]
    with pytest.raises(BadData, match=r"broken\.png"):
        query_vector(vectors, read_query(store, str(tmp_path / "broken.png")), model)  # type: ignore[arg-type]


def plain_groups(scores: np.ndarray, threshold: float) -> tuple[list[list[int]], int]:
    near = scores >= np.float32(threshold)
    np.fill_diagonal(near, True)
    reach = near.copy()
    for middle in range(len(near)):
        reach |= reach[:, [middle]] & reach[[middle], :]
    groups = {tuple(np.flatnonzero(row).tolist()) for row in reach}
    return [list(group) for group in sorted(groups) if len(group) > 1], int(np.triu(near, 1).sum())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 20),
    rows=st.integers(1, 40),
    dim=st.integers(2, 6),
    threshold=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
    block_rows=st.integers(1, 50),
)
def test_duplicates_are_those_of_the_plain_way(
    seed: int, rows: int, dim: int, threshold: float, block_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (rows, dim)).astype(np.float64)
    vectors[~vectors.any(axis=1), 0] = 1
    store = cast(Store, MemoryStore(unit(vectors), 16))
    groups, pairs = plain_groups(plain_scores(stored(store), stored(store)), threshold)
    found = duplicates(store, threshold, block_rows=block_rows)
    assert [group.tolist() for group in found.groups] == groups
    assert found.pairs == pairs
    assert found.surplus.tolist() == sorted(row for group in groups for row in group[1:])
    assert found.to_json(store)["groups"] == [[store.keys[row] for row in group] for group in groups]


def test_a_long_chain_is_one_group(tmp_path: Path) -> None:
    angles = np.random.default_rng(0).permutation(np.arange(300)) * 0.02
    store = make_store(tmp_path / "s", np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = duplicates(store, math.cos(0.021), block_rows=64)
    assert [group.tolist() for group in found.groups] == [list(range(300))]


def test_duplicates_pass_over_rows_that_are_not_done(tmp_path: Path) -> None:
    store = store_with_gaps(tmp_path / "s", unit(np.ones((12, 4))), {0}, {5})
    found = duplicates(store)
    assert [group.tolist() for group in found.groups] == [[1, 2, 3, 4, 6, 7, 8, 9, 10, 11]]
    assert found.rows == 10


def test_zero_shot_by_means_leaves_each_row_out(tmp_path: Path, rng: np.random.Generator) -> None:
    centres = unit(rng.standard_normal((3, 16)))
    vectors = unit(centres[np.arange(61) % 3] + 0.5 * rng.standard_normal((61, 16)))
    store = make_store(tmp_path / "s", vectors, part_rows=16)
    rows = unit(stored(store))
    labels = np.arange(61) % 3
    expected = []
    for n in range(61):
        others = np.arange(61) != n
        means = [rows[others & (labels == each)].mean(0) for each in range(3)]
        expected.append(int(np.argmax([unit(mean) @ rows[n] for mean in means])))
    found = zero_shot(store)
    assert found.names == ("car", "cat", "dog")
    assert [["cat", "dog", "car"].index(found.names[n]) for n in found.predicted.tolist()] == expected
    right = np.array(expected) == labels
    assert found.top1 == right.mean()
    assert 0.5 < found.top1 < 1
    assert {one.category: one.right for one in found.categories} == {
        name: int(right[labels == n].sum()) for n, name in enumerate(["cat", "dog", "car"])
    }
    assert found.to_json()["method"] == "class means, leave one out"


def test_zero_shot_by_class_vectors_says_what_no_class_is_right_for(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", np.eye(6))
    found = zero_shot(store, np.eye(6)[[0, 1, 4]], ["cat", "dog", "bird"])
    assert found.left_out == {"car": 2}
    assert {one.category: (one.rows, one.right) for one in found.categories} == {"cat": (2, 2), "dog": (2, 1)}
    assert found.top1 == found.mean_top1 == 0.75
    assert found.predicted.tolist()[:2] == [0, 1]
    for vectors, names in [(np.eye(6)[:2], ["a"]), (np.eye(6)[:1], ["a"]), (np.eye(6)[:2], ["a", "a"]), (None, ["a"])]:
        with pytest.raises(UsageError, match="names"):
            zero_shot(store, vectors, names)
    with pytest.raises(UsageError, match="no text field box"):
        zero_shot(store, category="box")


def test_the_only_row_of_a_category_is_left_out(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", unit(np.eye(4, 8) + 0.2))  # cat, dog, car, cat
    found = zero_shot(store)
    assert found.left_out == {"dog": 1, "car": 1}
    assert [one.category for one in found.categories] == ["cat"]
    names, labels = categories_of(store, np.array([3, 1]))
    assert [names[n] for n in labels.tolist()] == ["cat", "dog"]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_keeps_groups_apart_and_repeats(tmp_path: Path, rng: np.random.Generator, method: str) -> None:
    pytest.importorskip("sklearn")
    centres = np.eye(3, 16)
    vectors = unit(centres[np.arange(60) % 3] + 0.02 * rng.standard_normal((60, 16)))
    store = make_store(tmp_path / "s", vectors)
    found = projection(store, method, max_rows=45, seed=4, perplexity=8)  # type: ignore[arg-type]
    again = projection(store, method, max_rows=45, seed=4, perplexity=8)  # type: ignore[arg-type]
    assert np.array_equal(found.points, again.points)
    assert found.points.shape == (45, 2)
    assert (np.diff(found.rows) > 0).all()
    assert "45 of 60 rows" in found.words
    labels = found.rows % 3
    middles = np.stack([found.points[labels == n].mean(0) for n in range(3)])
    nearest = np.linalg.norm(found.points[:, None] - middles, axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.95
    picture = map_picture(found, [f"class {n}" for n in labels], side=200)
    assert picture.size == (390, 200)
    assert len(picture.convert("RGB").getcolors(1 << 16) or []) > 3
    assert map_picture(found, side=200).size == (200, 200)
    with pytest.raises(UsageError, match="expected 45 labels"):
        map_picture(found, ["a"])


def test_a_map_of_equal_vectors_is_one_point(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    store = make_store(tmp_path / "s", unit(np.ones((6, 4))))
    assert not projection(store).points.any()
    assert map_picture(projection(store), ["a"] * 6).size[1] == 800
    with pytest.raises(UsageError, match="pca or tsne"):
        projection(store, "umap")  # type: ignore[arg-type]
