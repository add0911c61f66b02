"""Saved: what was saved is what the sampler and the crops gave; damage is found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.compat.sequence import SequenceSaver
from penstock.errors import BadData, OutputRefused, SourceNotFound, StoreCorrupt
from penstock.registry import open_source
from penstock.saved import Saved, verify_saved
from penstock.schema import Record
from penstock.sequence_config import SaveConfig, SequenceConfig
from penstock.sequence_fields import saved_record
from penstock.sequence_folder import write_folder
from penstock.sequence_save import open_tracking, save_sequences
from penstock.source import Source
from penstock.stages.sequence import CroppedSample, crop_sample
from penstock.store.disk import Disk
from penstock.testing import SourceTests, assert_equal_records
from penstock.track_samples import TrackSamples
from penstock.track_tables import track_tables
from tests.sequence_data import MaskedPictures, write_lasot
from tests.test_sequence_save import CROPS, DRAW, STAMP, config


@pytest.fixture(scope="module")
def lasot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lasot(tmp_path_factory.mktemp("data") / "lasot")


def fed(settings: SequenceConfig, sources: list[Source]) -> list[Record]:
    """The records of sampler and crops, without any file."""
    tables = track_tables(sources)
    tracking, samples = open_tracking(settings, tables, settings.weights), TrackSamples(sources, tables)
    records = []
    for step in range(settings.num_sequences):
        for retry in range(20):
            sample = samples.read(tracking.draw(step + (retry << 40)))
            cropped = crop_sample(sample, settings.crops)
            if isinstance(cropped, CroppedSample) or settings.save.pictures == "raw":
                break
        given = cropped if isinstance(cropped, CroppedSample) and settings.save.pictures != "raw" else None
        records.append(saved_record(sample, given, settings.save))
    return records


@pytest.mark.parametrize("pictures", ["crops", "raw", "both"])
@pytest.mark.parametrize("save_format", ["json", "pickle"])
def test_png_records_are_what_was_fed(lasot: Path, tmp_path: Path, pictures: str, save_format: str) -> None:
    settings = config(lasot, tmp_path, image_format="png", pictures=pictures, save_format=save_format)
    save_sequences(settings)
    saved = Saved(tmp_path)
    assert list(saved.keys) == [f"seq_{n:06d}" for n in range(1, 6)]
    for left, right in zip(saved, fed(settings, [open_source(settings.sources[0])]), strict=True):  # type: ignore[call-overload]
        assert_equal_records(left, right)
    assert verify_saved(tmp_path) == []


def test_pictures_with_masks_of_any_size(tmp_path: Path) -> None:
    source = MaskedPictures(6)
    settings = SequenceConfig(output=tmp_path, num_sequences=6, draw=DRAW, crops=CROPS,
                              save=SaveConfig(workers=0, image_format="png", pictures="both"))  # fmt: skip
    save_sequences(settings, sources=[source])
    saved = Saved(tmp_path)
    for left, right in zip(saved, fed(settings, [source]), strict=True):  # type: ignore[call-overload]
        assert_equal_records(left, right)
        assert left["template_masks"].any()  # type: ignore[union-attr]
    flips = np.stack([saved.read(n, ["joint_flip", "search_flip"])["joint_flip"] for n in range(6)])
    assert set(flips.tolist()) == {True, False}, "both sides of the mirror were tested"


def test_raw_jpegs_are_exact_and_crops_are_close(lasot: Path, tmp_path: Path) -> None:
    settings = config(lasot, tmp_path, pictures="both")
    save_sequences(settings)
    for left, right in zip(Saved(tmp_path), fed(settings, [open_source(settings.sources[0])]), strict=True):  # type: ignore[call-overload]
        for name, value in left.items():
            if name.endswith("_images"):
                assert np.abs(np.subtract(value, right[name], dtype=np.int16)).mean() < 4  # type: ignore[arg-type]
            else:
                assert_equal_records({name: value}, {name: right[name]})


def test_fields_are_chosen_and_pictures_left_alone(lasot: Path, tmp_path: Path) -> None:
    save_sequences(config(lasot, tmp_path, save_images=False))
    saved = Saved(tmp_path)
    assert "template_images" not in saved.schema
    assert set(saved[0]) == set(saved.schema)
    assert list(saved.read(-1, ["search_boxes"])) == ["search_boxes"]
    assert saved.read(2, ["sequence"])["sequence"] == saved.provenance(2)["record"]["sequence"]  # type: ignore[index]
    other = Saved(tmp_path)
    assert saved.digest() == other.digest()


class TestSavedSource(SourceTests):
    """The contract of sources."""

    @pytest.fixture(autouse=True)
    def _files(self, lasot: Path, tmp_path: Path) -> None:
        self.path = tmp_path / "saved"
        save_sequences(config(lasot, self.path, num_sequences=3, pictures="both"))

    def make_source(self) -> Source:
        """Three sequences."""
        return Saved(self.path)


def test_what_is_not_there_or_damaged_is_said(lasot: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        Saved(tmp_path / "nowhere")
    with pytest.raises(SourceNotFound, match="there are none"):
        verify_saved(tmp_path)
    out = tmp_path / "out"
    save_sequences(config(lasot, out))
    folders = sorted(out.glob("seq*"))
    picture = folders[0] / "images" / "search" / "search_000.jpg"
    picture.write_bytes(picture.read_bytes()[:-20])
    (folders[1] / "annotations.json").unlink()
    about = json.loads((folders[2] / "provenance.json").read_text())
    del about["record"]["search_boxes"]
    (folders[2] / "provenance.json").write_text(json.dumps(about))
    folders[3].rename(out / "elsewhere")
    found = {Path(problem.path).relative_to(out).as_posix(): problem.message for problem in verify_saved(out)}
    assert sorted(found) == [
        f"seq_000001_{STAMP}/images/search/search_000.jpg",
        f"seq_000002_{STAMP}/annotations.json",
        f"seq_000003_{STAMP}/provenance.json",
        f"seq_000004_{STAMP}",
    ]
    saved = Saved(out)
    with pytest.raises(BadData, match=r"search_000\.jpg"):
        saved[0]
    with pytest.raises(BadData, match="search_boxes"):
        saved[2]
    saved[3]  # the fifth: untouched
    (out / ".penstock" / "sequences.json").write_text("{")
    with pytest.raises(StoreCorrupt):
        Saved(out)


def test_a_sequence_of_another_recipe_is_found(lasot: Path, tmp_path: Path) -> None:
    settings = config(lasot, tmp_path / "a")
    save_sequences(settings)
    save_sequences(replace(settings, output=tmp_path / "b", seed=8, num_sequences=6))
    (tmp_path / "b" / f"seq_000006_{STAMP}").rename(tmp_path / "a" / f"seq_000006_{STAMP}")
    assert ["another recipe" in problem.message for problem in verify_saved(tmp_path / "a")] == [True]


def test_what_the_saver_of_the_seed_wrote_is_verified_and_not_taken_for_a_source(tmp_path: Path) -> None:
    boxes = np.array([[1.0, 2, 3, 4]])
    data = dict.fromkeys(("template_anno", "search_anno"), boxes)
    SequenceSaver(tmp_path).save_sequence_data(data, 1, save_images=False)
    assert verify_saved(tmp_path) == []
    with pytest.raises(SourceNotFound, match="load_sequence_data"):
        Saved(tmp_path)


def test_files_of_any_size_are_written(tmp_path: Path) -> None:
    """A file of whole mebibytes goes past the page cache."""
    files = {"a": b"", "b/c": bytes(1 << 20), "b/d": bytes((1 << 20) + 1)}
    assert write_folder(Disk(), tmp_path / "x", files) == (2 << 20) + 1
    assert {name: (tmp_path / "x" / name).read_bytes() for name in files} == files
    with pytest.raises(OutputRefused):
        write_folder(Disk(), tmp_path / "x", files)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
