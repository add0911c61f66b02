"""From a configuration to a trained model: datasets, limits, what is held out, where captions come from."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from penstock.draws import TrackTable  # noqa: E402
from penstock.errors import BudgetExceeded, RecipeMismatch, SourceNotFound, UsageError  # noqa: E402
from penstock.mix_rows import MixPart, PartRows  # noqa: E402
from penstock.mix_views import Views  # noqa: E402
from penstock.models.captioners import BASIC_WORDS, open_cycle  # noqa: E402
from penstock.models.cycle import CycleModel  # noqa: E402
from penstock.readers.sav import Sav  # noqa: E402
from penstock.registry import open_source  # noqa: E402
from penstock.samplers.pairs import PairRule  # noqa: E402
from penstock.schema import Field, Schema  # noqa: E402
from penstock.source import Group  # noqa: E402
from penstock.store import write_store  # noqa: E402
from penstock.track_tables import track_table  # noqa: E402
from penstock.train.checkpoint import load_checkpoint  # noqa: E402
from penstock.train.distributed import Ranks  # noqa: E402
from penstock.train.dual_loop import DualLoop, DualLoopSettings  # noqa: E402
from penstock.train.dual_loop_config import DualLoopConfig, DualLoopLines  # noqa: E402
from penstock.train.dual_loop_data import caption_cache, open_data  # noqa: E402
from penstock.train.dual_loop_run import _empty_captions, objective_of, run_dual_loop, settings_of  # noqa: E402
from penstock.train.held_out import HeldOut, Rows, split  # noqa: E402
from tests.mix.data import Pictures  # noqa: E402
from tests.readers.test_sav import write_train, write_val  # noqa: E402
from tests.train.dual_loop_data import write_all, write_pairs  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_all(tmp_path_factory.mktemp("data"))


def config_of(folders: dict[str, str], output: Path = Path("unused"), **values: Any) -> DualLoopConfig:
    known: dict[str, Any] = {"size": 32, "eval_share": 0.0, "num_workers": 1, "device": "cpu", **folders, **values}
    return DualLoopConfig(output_dir=output, **known)


def said_of(config: DualLoopConfig) -> list[str]:
    lines: list[str] = []
    open_data(config, say=lines.append)
    return lines


def test_datasets_are_said_in_the_seeds_words_and_order(folders: dict[str, str]) -> None:
    assert said_of(config_of(folders, sa1b_max_samples=2)) == [
        f"Loading SAV dataset from {folders['sav_dir']}",
        "Found 12 NPZ files",
        f"Loading SA-1B dataset from {folders['sa1b_dir']} (max_samples=2)",
        "Loading RefCOCO dataset",
        f"OpenImage directory found: {folders['openimage_dir']}",
        "Loading OpenImage dataset",
        "Total datasets: 4",
        "  Dataset 0: 12 samples",
        "  Dataset 1: 6 samples",
        "  Dataset 2: 4 samples",
        "  Dataset 3: 6 samples",
        "Dataset built: 28 total samples",
    ]


def test_a_missing_open_images_is_left_out_in_the_seeds_words(folders: dict[str, str]) -> None:
    config = config_of(folders, openimage_dir="./data/openimages")
    lines = said_of(config)
    warning = "Warning: OpenImage directory not found: ./data/openimages, skipping OpenImage dataset"
    assert warning in lines
    assert "Total datasets: 3" in lines
    data = open_data(config)
    assert data.dropped == ("openimage",)
    assert [part.name for part in data.train] == ["sav", "sa1b", "refcoco"]


def test_open_images_by_its_reader_may_be_missing_too(folders: dict[str, str]) -> None:
    config = config_of(folders, openimage_dir="openimages:./data/openimages?split=train")
    assert open_data(config).dropped == ("openimage",)
    given = config_of(folders, openimage_dir=f"openimages:{folders['openimage_dir']}?split=train")
    assert open_data(given).dropped == ()


def test_an_open_images_folder_that_holds_something_else_is_an_error(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="annotations-object-segmentation"):
        open_data(config_of(folders, openimage_dir=str(tmp_path)))


@pytest.mark.parametrize("name", ["sav_dir", "sa1b_dir", "refcoco_dir"])
def test_any_other_dataset_that_is_missing_is_an_error(folders: dict[str, str], name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="nowhere"):
        open_data(config_of({**folders, name: str(tmp_path / "nowhere")}))


def test_open_images_alone_and_missing_is_an_error() -> None:
    with pytest.raises(SourceNotFound, match="no dataset is there"):
        open_data(config_of({"openimage_dir": "./nowhere"}))


def test_limits_count_pictures_of_sa1b_and_samples_of_sav_and_repeats_multiply(folders: dict[str, str]) -> None:
    lines = said_of(config_of(folders, sa1b_max_samples=1, sav_max_samples=5, sav_repeats=2, refcoco_repeats=4))
    counts = [line.split(": ")[1] for line in lines if line.startswith("  Dataset")]
    assert counts == ["10 samples", "3 samples", "4 samples", "24 samples"]
    assert lines[-1] == "Dataset built: 41 total samples"


def test_a_dataset_may_be_a_text_with_options(folders: dict[str, str]) -> None:
    config = config_of({"refcoco_dir": f"refcoco:{folders['refcoco_dir']}?split=all"})
    assert "  Dataset 0: 11 samples" in said_of(config)


def test_sav_itself_has_pairs_by_rule(tmp_path: Path) -> None:
    write_train(tmp_path)
    part = open_data(config_of({"sav_dir": str(tmp_path)}, sav_min_gap=4, sav_max_gap=8)).train[0]
    assert part.pairs == PairRule(min_gap=4, max_gap=8)
    write_pairs(tmp_path / "npz")
    with pytest.raises(UsageError, match=r"sav_max_gap: .* holds pairs already"):
        open_data(config_of({"sav_dir": str(tmp_path / "npz")}, sav_max_gap=8))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"sav_dir": None}, "a dataset at least"),
        ({"batch_size": 0}, "batch_size"),
        ({"size": 4}, "size"),
        ({"eval_share": 1.0}, "eval_share"),
        ({"captions": "cached"}, "caption_cache"),
        ({"caption_cache": "x"}, "caption_cache"),
        ({"captions": "guess"}, "captions"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"sa1b_max_samples": 5}, "sa1b_max_samples"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"dual-loop: .*{name}"):
        DualLoopConfig(**{"sav_dir": "x", **values})


class Grouped(Pictures):
    """Pictures in groups of these sizes."""

    def __init__(self, sizes: Sequence[int], *, stored_pairs: bool = False) -> None:
        super().__init__("grouped", sum(sizes), stored_pairs=stored_pairs)
        self.ends = np.cumsum(sizes).tolist()

    @property
    def groups(self) -> Sequence[Group]:
        starts = [0, *self.ends[:-1]]
        return [Group(f"g{start}", start, stop) for start, stop in zip(starts, self.ends, strict=True)]

    def group_of(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    share=st.floats(0, 0.99),
    limit=st.none() | st.integers(1, 50),
    paired=st.booleans(),
)
def test_what_is_held_out_shares_no_group_and_nothing_is_lost(
    sizes: list[int], share: float, limit: int | None, paired: bool
) -> None:
    source = Grouped([2 * size for size in sizes] if paired else sizes, stored_pairs=paired)
    part = MixPart(name="grouped", source=source, max_rows=limit, repeats=3)
    every = [source.keys[row] for row in PartRows(part).first]
    found = split(part, share)
    sides = [found.train, *([found.held] if found.held else [])]
    drawn = [[one.source.keys[row] for row in PartRows(one).first] for one in sides]
    assert [key for side in drawn for key in side] == every
    assert [len(side) for side in drawn] == [count for count in (found.num_train, found.num_held) if count]
    groups = [{source.group_of(int(key.split("/")[1])) for key in side} for side in drawn]
    if found.held:
        assert not groups[0] & groups[1]
        assert found.held.repeats == 1
    elif share:
        assert len(groups[0]) == 1
    assert found.train.repeats == 3
    assert found.train.source.schema == source.schema


def test_rows_of_tracks_keep_their_annotations(tmp_path: Path) -> None:
    write_val(tmp_path)
    source = Sav(tmp_path, boxes="index")
    start = source.groups[1].start
    whole, rest = track_table(source), track_table(Rows(source, start, len(source)))
    assert isinstance(rest, TrackTable)
    assert rest.starts.tolist() == [value - start for value in whole.starts.tolist()[1:]]
    assert list(rest.names) == list(whole.names)[1:]
    for name in ("boxes", "valid", "visible", "frames"):
        assert np.array_equal(getattr(rest, name), getattr(whole, name)[start:], equal_nan=name == "boxes")
    view = Rows(source, start, len(source))
    assert view.keys[0] == source.keys[start]
    assert view.read(0, ["mask"]).keys() == {"mask"}
    assert np.array_equal(view[0]["mask"], source[start]["mask"])
    assert view.digest() != source.digest()


def test_captions_are_human_where_there_are_sentences_and_soft_where_there_are_none(folders: dict[str, str]) -> None:
    config = config_of(folders)
    data = open_data(config)
    words = data.words()
    assert "sign" in words
    assert words == sorted(set(words))
    assert objective_of(config, data, open_cycle(words=words)).settings.captions == "truth"
    config = config_of({"sav_dir": folders["sav_dir"]})
    data = open_data(config)
    assert data.words() == []
    assert objective_of(config, data, open_cycle()).settings.captions == "soft"


def test_words_of_held_out_sentences_are_not_learned(folders: dict[str, str]) -> None:
    config = config_of({"refcoco_dir": folders["refcoco_dir"]})
    trained = set(open_data(replace(config, eval_share=0.5)).words())
    assert trained < set(open_data(config).words())


def test_captions_that_cannot_be_are_refused_and_senseless_ones_said(
    folders: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of({"sav_dir": folders["sav_dir"]})
    data, opened = open_data(config), open_cycle()
    with pytest.raises(UsageError, match="refcoco_dir"):
        objective_of(replace(config, captions="truth"), data, opened)
    hard = replace(opened, model=torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="no gradient passes"):
        objective_of(replace(config, captions="soft"), data, hard)
    with caplog.at_level(logging.WARNING, "penstock"):
        objective_of(replace(config, captions="pseudo"), data, opened)
    assert "nothing teaches the words" in caplog.text


def test_a_model_whose_words_no_gradient_passes_says_its_own(folders: dict[str, str]) -> None:
    pytest.importorskip("transformers")
    config = config_of({"sav_dir": folders["sav_dir"]}, model="florence2:random:tiny")
    assert run_dual_loop(config, way="dry-run")["captions"] == "pseudo"


def test_cached_captions_come_by_key(folders: dict[str, str]) -> None:
    known = caption_cache(f"refcoco:{folders['refcoco_dir']}")
    assert known["2_20"] == "caf\u00e9 sign"
    assert "elsewhere" not in known
    with pytest.raises(UsageError, match="expected a field caption or sentence"):
        caption_cache(f"sa1b:{folders['sa1b_dir']}")
    cache = f"refcoco:{folders['refcoco_dir']}"
    config = config_of({"refcoco_dir": folders["refcoco_dir"]}, captions="cached", caption_cache=cache)
    data = open_data(config)
    objective = objective_of(config, data, open_cycle(words=data.words()), known)
    assert objective.cache is not None
    assert objective.cache("2_20") == "caf\u00e9 sign"
    assert objective.cache("elsewhere") == ""


def write_captions(path: Path, captions: dict[str, str]) -> str:
    schema = Schema([Field(name="caption", dtype="str", kind="text", meaning="made before")])
    write_store(path, schema, ((key, {"caption": text}) for key, text in captions.items()))
    return str(path)


def first_views(folders: dict[str, str]) -> list[str]:
    return list(open_source(f"masklets:{folders['sav_dir']}").keys)[::2]


def test_a_training_on_captions_made_before_knows_their_words_and_is_evaluated_with_them(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: set[str] = set()
    segment = CycleModel.segment

    def listen(self: CycleModel, images: Any, captions: Any, masks: Any = None) -> Any:
        heard.update(captions)
        return segment(self, images, captions, masks)

    monkeypatch.setattr(CycleModel, "segment", listen)
    texts = {key: f"square number{place}" for place, key in enumerate(first_views(folders))}
    cache = write_captions(tmp_path / "captions", texts)
    cached: dict[str, Any] = {"captions": "cached", "caption_cache": cache, "eval_share": 0.3}
    config = config_of({"sav_dir": folders["sav_dir"]}, tmp_path / "out", max_steps=3, **cached)
    found = run_dual_loop(config)
    assert found["empty_captions"] == 0
    assert heard == {*texts.values(), ""}, "no caption of the untaught captioner; the empty one is a control"
    texts[next(iter(texts))] = "square number1"
    other = write_captions(tmp_path / "others", texts)
    with pytest.raises(RecipeMismatch, match="caption_cache: expected '12 captions"):
        run_dual_loop(replace(config, caption_cache=other))


def test_captions_made_for_other_samples_are_refused_before_the_work_and_a_few_that_lack_are_said(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = first_views(folders)
    sav = {"sav_dir": folders["sav_dir"]}
    wrong = write_captions(tmp_path / "wrong", {f"other/{key}": "a square" for key in keys})
    config = config_of(sav, tmp_path / "out", captions="cached", caption_cache=wrong, max_steps=1)
    with pytest.raises(
        UsageError, match=rf"12 of 12 samples have no caption in it, the first sav: {keys[0]}; .*'other/"
    ):
        run_dual_loop(config)
    assert not (tmp_path / "out").exists()
    held = write_captions(tmp_path / "held", dict.fromkeys(keys[:6], "a square"))
    with pytest.raises(UsageError, match="6 of 12 samples have no caption"):
        run_dual_loop(replace(config, caption_cache=held, eval_share=0.5, max_empty=0.4))
    some = write_captions(tmp_path / "some", dict.fromkeys(keys[:9], "a square") | {keys[9]: " "})
    with caplog.at_level(logging.WARNING, "penstock"):
        run_dual_loop(replace(config, caption_cache=some))
    assert f"caption-cache: 3 of 12 samples have no caption in it, the first sav: {keys[9]}" in caplog.text


def test_weights_of_another_vocabulary_of_the_same_size_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    sav, keys = {"sav_dir": folders["sav_dir"]}, first_views(folders)
    configs = [
        config_of(
            sav, tmp_path / name, max_steps=1, captions="cached",
            caption_cache=write_captions(tmp_path / f"{name}.captions", dict.fromkeys(keys, text)),
        )
        for name, text in (("first", "red square"), ("second", "blue disc"))
    ]  # fmt: skip
    first = run_dual_loop(configs[0])
    with pytest.raises(RecipeMismatch, match=r"words: expected '2 words .*', got '2 words"):
        run_dual_loop(replace(configs[1], pretrained_pth=Path(first["checkpoint"])))


def test_a_run_of_other_devices_says_that_its_batch_is_another(folders: dict[str, str], tmp_path: Path) -> None:
    config = config_of({"sav_dir": folders["sav_dir"]}, tmp_path / "out", max_steps=2)
    run_dual_loop(config)
    with pytest.raises(RecipeMismatch, match=r"given\.global_batch: expected 2, got 4"):
        run_dual_loop(replace(config, gradient_accumulation_steps=2))


def test_a_report_that_a_kill_kept_from_being_written_is_written_by_the_next_run(
    folders: dict[str, str], tmp_path: Path
) -> None:
    config = config_of({"sav_dir": folders["sav_dir"]}, tmp_path / "out", max_steps=1)
    run_dual_loop(config)
    (tmp_path / "out/report.json").unlink()
    assert run_dual_loop(config)["first_step"] == 1
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert (found["first_step"], found["step"], found["empty_captions"]) == (1, 1, None)


def test_too_many_empty_captions_of_a_short_run_are_said(
    folders: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(folders, max_empty=0.4)
    loop = DualLoop(DualLoopSettings(max_empty=0.4))
    assert _empty_captions(config, Ranks(), loop) is None
    loop.heard, loop.empty = 10, 4
    with caplog.at_level(logging.WARNING, "penstock"):
        assert _empty_captions(config, Ranks(), loop) == 0.4
        assert not caplog.text
        loop.empty = 5
        assert _empty_captions(config, Ranks(), loop) == 0.5
    assert "50% of the captions were empty, more than max_empty=40%" in caplog.text


def test_the_built_in_model_has_the_words_of_the_mixture_and_the_same_weights_for_a_seed() -> None:
    one, same, other = open_cycle(words=["red", "dog"], seed=3), open_cycle(words=["dog", "red"], seed=3), open_cycle()
    assert one.identity == same.identity != other.identity
    for left, right in zip(one.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert isinstance(other.model, CycleModel)
    assert other.model.words[2:] == list(BASIC_WORDS)
    for spec, word in (("blip", "expected one of"), ("cycle:big", "takes no more")):
        with pytest.raises(UsageError, match=word):
            open_cycle(spec)


def test_steps_cover_the_epochs_and_an_epoch_ends_with_an_evaluation(folders: dict[str, str]) -> None:
    config, opened = config_of(folders, batch_size=2, num_epochs=3), open_cycle()
    settings = settings_of(config, 101, 2, opened, "cross_giou")
    assert (settings.steps, settings.eval_every, settings.accumulation) == (19, 7, 4)  # 303 and 101 samples by 16
    assert settings.learning_rate == opened.learning_rate
    assert settings_of(replace(config, max_steps=5), 101, 2, opened, "").steps == 5
    assert settings_of(replace(config, learning_rate=0.5), 101, 2, opened, "").learning_rate == 0.5


def test_what_is_evaluated_is_the_same_on_any_number_of_ranks(folders: dict[str, str]) -> None:
    data = open_data(config_of(folders, eval_share=0.5))
    held = HeldOut(data.held, Views(size=32), samples=64, batch_size=3, seed=1)
    assert held.headline == "cross_giou"
    assert held.samples == sum(one.num_held for one in data.splits)

    def seen(ranks: int) -> list[list[bytes]]:
        shares = [list(held._read(Ranks(rank=rank, world_size=ranks), [])) for rank in range(ranks)]
        batches = [[np.asarray(batch["image1"]).tobytes(), np.asarray(batch["mask2"]).tobytes()]
                   for share in shares for batch in share]  # fmt: skip
        return sorted(batches)

    assert seen(1) == seen(2) == seen(5)
    sizes = [(len(mixed), len(positions)) for mixed, positions in held._batches]
    assert all(count > 1 for rows, count in sizes if rows > 1), "a caption can be swapped"


def test_evaluated_samples_are_few_and_even(folders: dict[str, str]) -> None:
    data = open_data(config_of(folders, eval_share=0.5))
    held = HeldOut(data.held, Views(size=16), samples=8, batch_size=2, seed=1)
    assert held.samples <= 8
    assert {mixed.parts[0].name for mixed, _ in held._batches} == {"sav", "sa1b", "openimage", "refcoco"}


def test_bad_held_out_samples_are_counted_and_the_rest_is_evaluated(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_pairs(tmp_path / "npz", 4)
    (root / "masklet_data_00003.npz").write_bytes(b"torn")
    data = open_data(config_of({"sav_dir": str(root), "sa1b_dir": folders["sa1b_dir"]}, eval_share=0.3))
    held = HeldOut(data.held, Views(size=16), samples=64, batch_size=2, seed=0)
    with caplog.at_level(logging.WARNING, "penstock"):
        found = held.evaluate(open_cycle().model, Ranks())
    assert found["unreadable"] == 1
    assert 0 <= found["same_giou"] <= 1
    assert np.isnan(found["cross_giou"])
    assert "1 held-out samples cannot be evaluated; the first: sav: all 8 rows" in caplog.text


def test_a_training_leaves_its_report_its_checkpoint_and_pictures_and_is_done_when_run_again(
    folders: dict[str, str], tmp_path: Path
) -> None:
    config = config_of(
        folders, tmp_path / "out", eval_share=0.3, batch_size=2, gradient_accumulation_steps=2, log_interval=2,
        ema_decay=0.5, openimage_dir="./nowhere",
    )  # fmt: skip
    found = run_dual_loop(config)
    assert found["captions"] == "truth"
    assert found["global_batch"] == 4
    assert found["step"] == found["steps"] == -(-found["samples"] // 4)
    assert found["dropped"] == ["openimage"]
    assert sum(one["drawn"] for one in found["sources"].values()) == 4 * found["steps"]
    assert set(found["metrics"]) >= {"same_giou", "cross_giou", "shuffled_giou", "empty_giou"}
    assert json.loads((tmp_path / "out/report.json").read_text()) == found
    assert Path(found["checkpoint"]).is_file()
    assert (tmp_path / "out/best.pt").is_file()
    assert len(list((tmp_path / "out/worst").glob("*.jpg"))) == 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert steps[-1] == found["steps"]
    again = run_dual_loop(config)
    assert (again["first_step"], again["step"]) == (found["steps"], found["steps"])
    assert json.loads((tmp_path / "out/report.json").read_text()) == found, "the report of the run that got there stays"
    with pytest.raises(RecipeMismatch, match="captions"):
        run_dual_loop(replace(config, captions="pseudo"))


def test_what_can_be_refused_before_the_data_are_indexed_is(folders: dict[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"model": "blip"}, "expected one of cycle, florence2, sa2va"),
        ({"model": "sa2va:x"}, "answers here and does not learn"),
        ({"output": tmp_path / "file" / "out"}, "is a file"),
    ]
    for values, words in refused:
        with pytest.raises(UsageError, match=words):
            run_dual_loop(config_of(folders, **values), say=said.append)
    assert not said


@pytest.mark.parametrize(
    ("name", "value"),
    [("ema_decay", 1.0), ("max_grad_norm", float("nan")), ("seed", -1), ("max_empty", 0.0), ("learning_rate", 0.0)],
)
def test_a_number_out_of_range_is_named_as_its_flag(folders: dict[str, str], name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=f"dual-loop: {name}: expected"):
        config_of(folders, **given)


def test_a_pair_rule_that_allows_no_pair_is_refused(tmp_path: Path) -> None:
    write_val(tmp_path)
    far: dict[str, Any] = {"sav_min_gap": 5000, "sav_max_gap": 6000}
    with pytest.raises(UsageError, match="no two rows of a track fit"):
        open_data(config_of({"sav_dir": str(tmp_path)}, **far))
    assert open_data(config_of({"sav_dir": str(tmp_path)})).train


def test_a_bad_sample_is_replaced_and_counted(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "npz", 8)
    (root / "masklet_data_00002.npz").write_bytes(b"torn")
    found = run_dual_loop(config_of({"sav_dir": str(root)}, tmp_path / "out", batch_size=4))
    assert found["sources"]["sav"]["substituted"] >= 1
    assert found["sources"]["sav"]["failed"]["BadData"] >= 1
    assert "masklet_data_00002" in (tmp_path / "out/quarantine/rank0.jsonl").read_text()


def test_no_bad_sample_is_borne_where_none_may_be(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "npz", 8)
    (root / "masklet_data_00002.npz").write_bytes(b"torn")
    with pytest.raises(BudgetExceeded, match="sav: 1 samples needed a substitute"):
        run_dual_loop(config_of({"sav_dir": str(root)}, tmp_path / "out", max_bad=0.0))


def test_a_new_run_begins_with_given_weights(folders: dict[str, str], tmp_path: Path) -> None:
    sav = {"sav_dir": folders["sav_dir"]}
    first = run_dual_loop(config_of(sav, tmp_path / "first", max_steps=2, ema_decay=0.5))
    config = config_of(
        sav, tmp_path / "second", max_steps=1, learning_rate=1e-12, pretrained_pth=Path(first["checkpoint"])
    )
    second = load_checkpoint(Path(run_dual_loop(config)["checkpoint"]))
    average = load_checkpoint(Path(first["checkpoint"]))["ema"]
    for name, value in second["model"].items():
        assert torch.allclose(value, average[name], atol=1e-9)
    other = config_of(folders, tmp_path / "third", max_steps=1, pretrained_pth=Path(first["checkpoint"]))
    with pytest.raises(RecipeMismatch, match="weights of the same model"):
        run_dual_loop(other)


@pytest.mark.parametrize("way", ["dry-run", "overfit"])
def test_looking_first_writes_nothing(folders: dict[str, str], tmp_path: Path, way: Any) -> None:
    found = run_dual_loop(config_of(folders, tmp_path / "out", max_steps=3, batch_size=2), way=way)
    assert not (tmp_path / "out").exists()
    if way == "dry-run":
        assert found["plan"]["samples_per_rank"] == 8
        assert found["plan"]["losses"]["loss"] > 0
    else:
        assert found["first_loss"] > 0


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_real_pictures_of_four_datasets_are_trained_on_and_evaluated_across_frames(tmp_path: Path) -> None:
    config = DualLoopConfig(
        output_dir=tmp_path / "out", sav_dir=f"sav:{SHARED}/sav?split=val", sa1b_dir=f"{SHARED}/sa1b_like/sa_000900",
        refcoco_dir=f"{SHARED}/refcoco", openimage_dir=f"{SHARED}/openimages", sa1b_max_samples=2, size=64, max_steps=2,
        eval_share=0.3, eval_samples=8, device="cpu",
    )  # fmt: skip
    found = run_dual_loop(config)
    assert found["step"] == 2
    assert found["captions"] == "truth"
    assert sum(one["drawn"] for one in found["sources"].values()) == 8
    assert sum(one["substituted"] for one in found["sources"].values()) == 0
    assert 0 <= found["metrics"]["same_giou"] <= 1


def test_the_lines_are_templates_of_their_values() -> None:
    lines = DualLoopLines(found="{files} files")
    assert lines.found.format(files=3) == "3 files"
    assert lines.openimage_missing.format(openimage_dir="x").startswith("Warning: OpenImage directory not found: x")
