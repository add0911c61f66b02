"""Several drivers on outputs other than the plain store: what another one does at the worst moment costs no row, and whoever
may not write is told so."""

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import refine as refine_module
from penstock import sequence_sink
from penstock.check import verify
from penstock.errors import PartClaimed, RecipeMismatch
from penstock.exporters import export
from penstock.exporters import run as export_run
from penstock.exporters.embeddings import export_vectors
from penstock.exporters.mot import Mot
from penstock.refine import refine
from penstock.refine_done import done_frames
from penstock.refine_sink import RefineSink, open_rows
from penstock.repair import repair
from penstock.sequence_save import save_sequences
from penstock.source import Candidate
from penstock.store import StoreSink, open_store
from penstock.store import v1_sink as v1_module
from penstock.store.claims import Claim
from penstock.store.disk import Disk
from penstock.store.v1_sink import V1Sink
from penstock.testing_exporters import make_saved_set
from tests.exporters.test_embeddings import KEYS, write_vectors
from tests.refine_data import MaskProposer, config, outputs_of, write_scenes
from tests.sequence_data import write_lasot
from tests.store.test_drivers import ROWS, Round
from tests.test_jobs import OUT
from tests.test_sequence_save import config as sequence_config
from tests.test_sequence_save import hashes
from tests.v1_writer import write_v1

MASKS = MaskProposer()


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something once: right before a function is called for the first time, or right after."""

    def arrange(owner: Any, name: str, act: Callable[[], object], *, after: bool = False) -> None:
        real, acts = getattr(owner, name), [act]

        def stand_in(*args: Any, **options: Any) -> Any:
            mine = acts.pop() if acts else None
            if mine is not None and not after:
                mine()
            found = real(*args, **options)
            if mine is not None and after:
                mine()
            return found

        monkeypatch.setattr(owner, name, stand_in)

    return arrange


def made_v1(path: Path, recipe: int) -> V1Sink:
    return V1Sink(path, identity={"recipe": recipe}, attributes={}, durability="process")


def test_a_v1_directory_that_was_begun_with_another_recipe_meanwhile_is_refused(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    meanwhile(Claim, "acquire", lambda: made_v1(tmp_path / "v1", 1).close(complete=True))
    with pytest.raises(RecipeMismatch, match="recipe: store 1, now 0"):
        made_v1(tmp_path / "v1", 0)


def test_a_v1_directory_that_another_driver_begins_is_claimed_and_not_called_foreign(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    others: list[V1Sink] = []
    meanwhile(v1_module, "refuse_foreign", lambda: others.append(made_v1(tmp_path / "v1", 0)))
    with pytest.raises(PartClaimed, match="is being written by process"):
        made_v1(tmp_path / "v1", 0)
    others[0].release()


def test_repair_leaves_the_claim_of_who_comes_next_where_it_is(tmp_path: Path, meanwhile: Callable[..., None]) -> None:
    path = write_v1(tmp_path / "v1", 2)
    following = Claim(path / ".penstock")
    meanwhile(Claim, "release", following.acquire, after=True)
    repair(path)
    with pytest.raises(PartClaimed, match="is being written by process"):
        Claim(path / ".penstock").acquire()
    following.release()


def test_repair_takes_the_parts_of_a_store_as_they_are_once_it_has_their_claims(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    first = Round(moved=frozenset(), bad=frozenset(), cheap=1, retry=False)
    second = Round(moved=frozenset({1, 9}), bad=frozenset(), cheap=2, retry=False)
    first.run(tmp_path, shared=False)
    meanwhile(Claim, "acquire", lambda: second.run(tmp_path, shared=False))
    report = repair(tmp_path)
    assert (report.deeds, report.remaining) == ([], [])
    store = open_store(tmp_path)
    values = {store.keys[row]: int(np.asarray(store[row]["square"])) for row in range(len(store))}
    assert values == {f"n{row}": second.expected(row) for row in range(ROWS)}
    assert verify(tmp_path).ok


def test_repair_leaves_a_part_alone_of_which_another_driver_makes_the_next_version(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    Round(moved=frozenset(), bad=frozenset(), cheap=1, retry=False).run(tmp_path, shared=False)
    other = StoreSink(tmp_path, OUT, durability="process", shared=False)
    meanwhile(Claim, "acquire", lambda: other.recompute(Candidate(key="n0", origin="numbers", cheap=2, index=0)))
    with pytest.raises(PartClaimed, match=r"part-00000\.1 is being written by process"):
        repair(tmp_path)
    other.release()


def test_two_refinements_with_other_settings_retire_the_old_rows_once(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    scenes = write_scenes(tmp_path, {"a": 2})
    refine(config(scenes), proposer=MASKS)
    computed: list[int] = []

    def again() -> None:
        report = refine(config(scenes, min_pixels=3, on_change="recompute"), proposer=MASKS)
        computed.append(report.done - report.skipped)

    other = threading.Thread(target=again)

    def begin() -> None:
        other.start()
        other.join(0.5)  # it waits for the one that retires

    meanwhile(refine_module, "_retire", begin)
    again()
    other.join()
    assert sum(computed) == 2


def test_statistics_and_frames_are_read_again_where_another_driver_replaced_their_rows(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    scenes = write_scenes(tmp_path, {"a": 2})
    settings = config(scenes)
    refine(settings, proposer=MASKS)

    def lose_and_make() -> None:
        (scenes / sorted(outputs_of(scenes))[0]).unlink()
        refine(settings, proposer=MASKS)

    meanwhile(refine_module, "statistics_of", lose_and_make)
    total: Any = refine(settings, proposer=MASKS).notes["total"]
    assert total["done"] == 2
    store = open_rows(settings.outputs.store)
    lose_and_make()
    found, _ = refine_module.frames_of(settings)
    assert [frame.key for frame in done_frames(store, found)] == ["a/frame_000000", "a/frame_000001"]


def test_a_frame_that_another_driver_begins_anew_is_left_to_it(tmp_path: Path, meanwhile: Callable[..., None]) -> None:
    scenes = write_scenes(tmp_path, {"a": 2})
    settings = config(scenes)
    refine(settings, proposer=MASKS)
    offers, stage = refine_module.open_input(settings, MASKS)
    other = refine_module._open_sink(settings, stage, None)
    one, two = offers.candidates()
    other.recompute(one)
    meanwhile(RefineSink, "_row_files", lambda: other.recompute(two))
    report = refine(settings, proposer=MASKS)
    assert (report.done, report.missing) == (0, 2)
    assert "part-00000" in str(report.notes["held"])
    other.release()
    assert refine(settings, proposer=MASKS).status == "ok"


def test_a_saved_set_that_another_configuration_began_meanwhile_is_refused(
    tmp_path: Path, meanwhile: Callable[..., None]
) -> None:
    lasot = write_lasot(tmp_path / "lasot", 1)
    other = sequence_config(lasot, tmp_path / "out", num_sequences=1, seed=2)
    meanwhile(Claim, "acquire", lambda: save_sequences(other))
    with pytest.raises(RecipeMismatch, match="seed: saved 2, now 1"):
        save_sequences(sequence_config(lasot, tmp_path / "out", num_sequences=2))
    assert len(list((tmp_path / "out").glob("seq_*"))) == 1


def test_a_saved_set_that_was_just_begun_is_not_called_foreign(tmp_path: Path, meanwhile: Callable[..., None]) -> None:
    lasot = write_lasot(tmp_path / "lasot", 1)
    same = sequence_config(lasot, tmp_path / "out", num_sequences=1)
    meanwhile(sequence_sink, "read_manifest", lambda: save_sequences(same), after=True)
    report = save_sequences(same)
    assert (report.done, report.skipped) == (1, 1)
    assert hashes(tmp_path / "out")


def test_an_export_leaves_the_folder_of_the_run_that_begins_right_after_it(tmp_path: Path) -> None:
    make_saved_set(tmp_path / "set")

    class Followed(Disk):
        def rename(self, old: Path, new: Path) -> None:
            super().rename(old, new)
            if new == tmp_path / "out":
                (old / "of-another-run").mkdir(parents=True)

    export(tmp_path / "set", tmp_path / "out", format=Mot(), disk=Followed())
    assert (tmp_path / f"{export_run.TEMPORARY}out" / "of-another-run").is_dir()


def test_a_cache_of_vectors_is_written_by_one_run(tmp_path: Path) -> None:
    write_vectors(tmp_path / "set")
    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(PartClaimed, match="another run is exporting to it"):
        export_vectors(tmp_path / "set", tmp_path / "out", format="novic")
    os.close(other)
    assert export_vectors(tmp_path / "set", tmp_path / "out", format="novic").done == len(KEYS)
