"""Numbers, drift, sheets, overlays and the page of saved sequences: exact where they were made by hand, whole where saved for
real, and readable in a real browser."""

import json
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from penstock.compat.sequence import SequenceSaver
from penstock.draws import TrackTable
from penstock.errors import BadData, OutputRefused, SourceNotFound, StoreCorrupt, UsageError
from penstock.sequence_charts import heat_map, histogram
from penstock.sequence_config import DrawConfig, SaveConfig, SequenceConfig
from penstock.sequence_distribution import Distribution, gap_range
from penstock.sequence_drift import ALPHA, chi_squared, differences, drift, kolmogorov
from penstock.sequence_folder import ROLES, encode_pixels, picture_name, sequence_files, write_folder
from penstock.sequence_report import contact_sheet, overlay, statistics, write_report
from penstock.sequence_save import save_sequences
from penstock.sequence_sheet import FUTURE, PADDED, PAST, SEARCH
from penstock.stages.sequence_config import CropConfig, RoleCrop
from penstock.store.disk import Disk
from penstock.tracking import Tracking
from tests.sequence_data import MaskedPictures, write_lasot

STAMP = "20241201_143022"
SHARED = Path(__file__).parents[2] / "shared"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAW = DrawConfig(min_frames=5, min_interval=8, future_steps=3, num_template=2, max_gap=10)
CROPS = CropConfig(
    template=RoleCrop(factor=2, size=32), search=RoleCrop(factor=4, size=64, center_jitter=1, scale_jitter=0.1)
)


def steps(boxes: list[list[float] | None], frames: list[int], *, padded: int = 0) -> dict[str, Any]:
    """A history at 10 frames a second; None is a frame without the target."""
    return {
        "frames": frames,
        "visible": [box is not None for box in boxes],
        "valid": [box is not None for box in boxes],
        "padded": [number < padded for number in range(len(boxes))],
        "time": [frame / 10 for frame in frames],
        "boxes": [box or [None] * 4 for box in boxes],
    }


PAST_BOXES: list[list[float] | None] = [[10, 20, 20, 20], [10, 20, 20, 20], None, [20, 20, 20, 20], [40, 20, 20, 20]]
FUTURE_BOXES: list[list[float] | None] = [[60, 20, 40, 40], [100, 60, 40, 40]]


def write_one(root: Path, number: int = 1, **changes: Any) -> Path:
    """A sequence with raw pictures of 200 x 100 (width x height): template at frame 0, search at frame 4."""
    backward, forward = steps(PAST_BOXES, [0, 0, 1, 2, 3], padded=1), steps(FUTURE_BOXES, [4, 5])
    record = {
        "step": number - 1, "positive": True, "gap": 0, "attempts": 1, "is_video": True, "image_hw": [100, 200],
        "source": "lasot", "sequence": "cat-1", "category": "cat",
        "template_visible": [True], "template_valid": [True], "template_frames": [0],
        "search_visible": [True], "search_valid": [True], "search_frames": [4],
        **{f"{name}_{key}": value for name, one in (("backward", backward), ("forward", forward))
           for key, value in one.items() if key != "boxes"},
    }  # fmt: skip
    origin = {
        "source": 0, "sequence": 0, "search_source": 0, "search_sequence": 0,
        "template": {"rows": [0], "image_hw": [[100, 200]], "boxes": [[10, 20, 20, 20]]},
        "search": {"rows": [4], "image_hw": [[100, 200]], "boxes": [[60, 20, 40, 40]]},
        "backward": {"boxes": backward["boxes"]}, "forward": {"boxes": forward["boxes"]},
    }  # fmt: skip
    record |= changes.get("record", {})
    origin |= changes.get("origin", {})
    pixels = np.full((100, 200, 3), 90, np.uint8)
    files = sequence_files(
        metadata={
            "sequence_id": f"seq_{number:06d}", "timestamp": STAMP, "dataset": record["source"],
            "test_class": record["category"], "is_video_dataset": record["is_video"],
            "template_frame_ids": [0], "search_frame_ids": [4],
            "gt_frame_ids_backward": backward["frames"], "gt_frame_ids_forward": forward["frames"],
        },
        annotations={
            "template_anno": origin["template"]["boxes"], "search_anno": origin["search"]["boxes"],
            "gt_sequence_anno_backward": backward["boxes"], "gt_sequence_anno_forward": forward["boxes"],
        },
        provenance={"rejections": changes.get("rejections", []), "record": record, "origin": origin},
        pictures={picture_name(role, 0, "png"): encode_pixels(pixels, "png") for role in changes.get("roles", ROLES)},
    )  # fmt: skip
    root.mkdir(exist_ok=True)
    folder = root / f"seq_{number:06d}_{STAMP}"
    write_folder(Disk(flush=False), folder, files)
    return folder


def write_manifest(root: Path, **identity: Any) -> None:
    (root / ".penstock").mkdir()
    content = {
        "format": "penstock sequences", "version": 1, "timestamp": STAMP,
        "identity": {
            "sources": {"0": {"name": "lasot"}, "1": {"name": "got10k"}}, "shares": [3, 1],
            "draw": {"mode": "causal", "max_gap": 4, "order": "ostrack"}, **identity,
        },
        "provenance": {"sequences": {"lasot": 40}},
    }  # fmt: skip
    (root / ".penstock" / "sequences.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def lasot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lasot(tmp_path_factory.mktemp("data") / "lasot")


def save(lasot: Path, output: Path, *, count: int = 8, seed: int = 1, draw: Mapping[str, Any] = {}, **how: Any) -> Path:
    """Sequences from the real saver."""
    config = SequenceConfig(
        sources=(f"lasot:{lasot}",), output=output, num_sequences=count, seed=seed, draw=replace(DRAW, **draw), crops=CROPS,
        save=SaveConfig(workers=0, timestamp=STAMP, durability="process", **how),
    )  # fmt: skip
    save_sequences(config)
    return output


@pytest.fixture(scope="module")
def saved(lasot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(lasot, tmp_path_factory.mktemp("saved") / "first", pictures="both")


def test_numbers_of_a_sequence_made_by_hand(tmp_path: Path) -> None:
    write_one(tmp_path / "set", rejections=[{"reason": "crop side < 1"}])
    write_manifest(tmp_path / "set")
    found = statistics(tmp_path / "set")
    assert (found.folders, found.read, found.missing, found.plain) == (1, 1, 0, 0)
    assert found.requested == {"lasot": 0.75, "got10k": 0.25}
    assert found.available == {"lasot": 40}
    assert found.classes == {("lasot", "cat"): 1}
    assert found.videos == {("lasot", "cat-1"): 1}
    assert found.rejections == {"crop side < 1": 1}
    assert found.retried == 1
    keys, counts = found.gaps[0].bins()
    assert (keys.tolist(), counts.tolist()) == ([4], [1])
    assert found.gap_range(0) == (1, 3)
    assert found.beyond(0) == 1
    size = found.numbers["search size"]
    assert size.quantile(0.5) == pytest.approx(math.sqrt(1600 / 20000), rel=0.03)
    assert found.numbers["search aspect"].quantile(0.5) == pytest.approx(1)
    assert np.argwhere(found.heat["search"]).tolist() == [[6, 6]]  # centre (80, 40) of 200 x 100: 0.4, 0.4
    assert found.shares["backward steps padded"] == (1, 5)
    assert found.shares["backward steps visible, of those not padded"] == (3, 4)
    # visible neighbours: frames 2-3 (20 px in 0.1 s, box of 20), 3-4 (30, 10 px; box of 20 to 40), 4-5 (40, 40 px; box of 40)
    assert found.shares["pairs of visible steps with a known time"] == (3, 3)
    speed, change = found.numbers["speed"], found.numbers["scale change"]
    expected = [10, math.hypot(30, 10) / 20 / 0.1, math.hypot(40, 40) / 40 / 0.1]
    assert [speed.quantile(q) for q in (0.3, 0.6, 1)] == pytest.approx(sorted(expected), rel=0.03)
    assert [change.quantile(q) for q in (0.3, 0.6, 1)] == pytest.approx([0, 0, 10], abs=0.01)


def test_a_negative_and_a_picture_give_no_gaps(tmp_path: Path) -> None:
    write_one(tmp_path / "set", 1, record={"positive": False})
    write_one(tmp_path / "set", 2, record={"is_video": False})
    found = statistics(tmp_path / "set")
    assert (found.negatives, found.pictures, found.gaps) == (1, 1, {})
    assert found.numbers["search size"].count == 1
    assert found.requested == {}
    assert found.gap_range(0) is None


def table(rng: np.random.Generator) -> TrackTable:
    counts = rng.integers(30, 60, 6)
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = int(starts[-1])
    visible = rng.random(rows) < 0.8
    frames = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return TrackTable(
        name="made", starts=starts, boxes=np.tile(np.float32([10, 10, 20, 20]), (rows, 1)), valid=np.ones(rows, bool),
        visible=visible, frames=frames, fps=np.full(6, 30.0), names=[str(one) for one in range(6)], categories=[""] * 6,
    )  # fmt: skip


@pytest.mark.parametrize("order", ["ostrack", "odtrack"])
@pytest.mark.parametrize("mode", ["causal", "interval", "trident", "trident_pro", "stark"])
def test_gap_ranges_hold_for_the_sampler_and_are_reached(mode: str, order: str, rng: np.random.Generator) -> None:
    if order == "odtrack" and mode not in ("causal", "interval"):
        pytest.skip("only causal and interval sort")
    max_gap: Any = 4 if mode in ("causal", "interval") else [4, 7]
    sampler = Tracking([table(rng)], mode=mode, max_gap=max_gap, num_template=2, order=order, seed=3)
    gaps: dict[int, set[int]] = {}
    for step in range(3000):
        draw = sampler.draw(step)
        if draw.gap == 0:
            for place, row in enumerate(draw.template_rows.tolist()):
                gaps.setdefault(place, set()).update((draw.search_rows - row).tolist())
    for place, found in gaps.items():
        low, high = gap_range(mode, max_gap, place, last=len(gaps) - 1, is_sorted=order == "odtrack")
        assert low <= min(found)
        assert max(found) <= high
        if math.isfinite(low) and not (order == "odtrack" and mode == "interval"):
            assert (min(found), max(found)) == (low, high)


def test_damaged_missing_unfinished_and_failed_are_counted_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number in range(1, 5):
        write_one(root, number)
    write_manifest(root)
    (root / f"seq_000001_{STAMP}" / "metadata.json").write_text("{")
    (root / f"seq_000002_{STAMP}" / "provenance.json").unlink()
    provenance = root / f"seq_000003_{STAMP}" / "provenance.json"
    content = json.loads(provenance.read_text())
    del content["record"]["gap"]
    provenance.write_text(json.dumps(content))
    (root / ".writing-seq_000009").mkdir()
    (root / f"saved_paths_{STAMP}.txt").write_text(f"elsewhere/seq_000004_{STAMP}\nelsewhere/seq_000005_{STAMP}\n")
    lines = [{"key": f"seq_00000{n}", "error": "BadData", "message": "no picture"} for n in (4, 6, 7)]
    (root / ".penstock" / "_failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"key"')
    found = statistics(root)
    assert (found.folders, found.read, found.missing, found.unfinished) == (4, 1, 1, 1)
    assert [Path(one.path).name[:10] for one in found.problems] == [f"seq_00000{n}" for n in (1, 2, 3, 5)]
    assert "'gap'" in found.problems[2].message
    assert found.failures == {"BadData: no picture": 2}
    page = write_report(root).read_text()
    assert f"seq_000005_{STAMP}" in page
    assert "no picture" in page
    (root / ".penstock" / "_failures.jsonl").write_text("{}\n")
    with pytest.raises(StoreCorrupt, match="a line is no failure"):
        statistics(root)


@pytest.mark.parametrize("box", [[10, 20, None, 20], [10, 20, 0, 20]])
def test_a_box_without_size_is_left_out(tmp_path: Path, box: list[float]) -> None:
    search = {"rows": [4], "image_hw": [[100, 200]], "boxes": [box]}
    write_one(tmp_path / "set", origin={"search": search})
    found = statistics(tmp_path / "set")
    assert (found.read, found.numbers["search size"].count) == (1, 0)


def test_outputs_that_cannot_be_written_are_refused(saved: Path, tmp_path: Path) -> None:
    one = next(saved.glob("seq_*"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(OutputRefused, match="is a folder"):
        write_report(saved, tmp_path / "folder.gif", sheets=0)
    with pytest.raises(OutputRefused, match="not writable"):
        write_report(saved, tmp_path / "file" / "page.html", sheets=0)
    with pytest.raises(OutputRefused, match="is a folder"):
        overlay(one, tmp_path / "folder.gif")
    with pytest.raises(OutputRefused, match="not writable"):
        overlay(one, tmp_path / "file" / "one.gif")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.gif"]


def test_folders_that_hold_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        write_report(tmp_path)
    folder = write_one(tmp_path / "set")
    (folder / "provenance.json").write_text("[]")
    with pytest.raises(BadData, match="none of 1 saved sequences"):
        write_report(tmp_path / "set")
    with pytest.raises(UsageError, match="sheets"):
        write_report(tmp_path / "set", sheets=-1)


def test_sets_of_the_seeds_saver_are_reported(tmp_path: Path) -> None:
    saver = SequenceSaver(tmp_path / "set", timestamp=STAMP)
    image = np.full((64, 64, 3), 100, np.uint8)
    sample = {
        "template_images": [image], "search_images": [image], "template_anno": [[5, 5, 20, 20]],
        "search_anno": [[9, 9, 20, 20]], "gt_sequence_anno_backward": [[1, 1, 9, 9]],
        "gt_sequence_anno_forward": [[1, 1, 9, 9]], "template_frame_ids": [3], "search_frame_ids": [10],
        "gt_frame_ids_backward": [3], "gt_frame_ids_forward": [10], "dataset": "lasot", "test_class": "cat",
        "is_video_dataset": True,
    }  # fmt: skip
    folder = saver.save_sequence_data(sample, "1")
    saver.save_sequence_data(sample, "2", save_format="pickle")
    found = statistics(tmp_path / "set")
    assert (found.read, found.plain, found.sources["lasot"]) == (2, 2, 2)
    assert found.gaps[0].unit == "frames"
    assert found.gaps[0].quantile(0.5) == 7
    assert contact_sheet(folder).shape[2] == 3
    assert "not recorded" in write_report(tmp_path / "set").read_text()
    with pytest.raises(BadData, match="saved without its draw"):
        overlay(folder, tmp_path / "one.gif")


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60), st.floats(0.01, 1), st.booleans())
def test_quantiles_are_right_to_a_bin(values: list[float], share: float, log: bool) -> None:
    one = Distribution("x", "px", step=1 / 32 if log else 0.5, log=log)
    for value in values:
        one.add([value])
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    assert one.count == one.sequences == len(values) == one.bins()[1].sum()
    assert one.quantile(share) == (pytest.approx(exact, rel=0.012) if log else pytest.approx(exact, abs=0.26))


def test_memory_of_a_distribution_does_not_grow(rng: np.random.Generator) -> None:
    one = Distribution("x", "", step=0.01)
    for _ in range(100):
        one.add(rng.random(2000).tolist())
    assert len(one._waiting) < 70_000
    assert len(one.bins()[0]) <= 101


def test_tests_agree_with_tables() -> None:
    for value, freedom in [(3.841459, 1), (5.991465, 2), (16.918978, 9), (18.307038, 10), (124.342113, 100)]:
        assert chi_squared(value, freedom) == pytest.approx(0.05, rel=1e-5)
    assert chi_squared(0, 3) == 1
    many = 10**8
    for scaled, p in [(1.22385, 0.1), (1.35810, 0.05), (1.62762, 0.01), (0.1, 1)]:
        assert kolmogorov(scaled / math.sqrt(many / 2), many, many) == pytest.approx(p, rel=1e-3)


def test_sets_drawn_alike_rarely_differ_and_others_do(lasot: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"count": 60, "save_images": False}
    first = statistics(save(lasot, tmp_path / "a", **settings))
    again = statistics(save(lasot, tmp_path / "b", seed=2, **settings))
    near = statistics(save(lasot, tmp_path / "c", seed=3, draw={"max_gap": 2}, **settings))
    assert [one.name for one in drift(first, again) if one.differs] == []
    found = drift(first, near)
    assert {one.name for one in found if one.differs} == {"Gap of template 0", "Gap of template 1"}
    assert found[0].words == "differs much"
    assert all(one.p <= one.adjusted <= 1 for one in found)
    assert all((one.adjusted < ALPHA) == one.differs for one in found)
    assert differences(first.draw, near.draw) == [("max_gap", "10", "2")]
    assert all(one.distance == 0 and one.p == 1 and not one.differs for one in drift(first, first))


def test_p_of_samples_drawn_alike_is_small_as_rarely_as_it_says(rng: np.random.Generator) -> None:
    small = 0
    for _ in range(300):
        one, other = np.sort(rng.random((2, 80)))
        every = np.concatenate([one, other])
        cumulated = [np.searchsorted(each, every, "right") / 80 for each in (one, other)]
        small += kolmogorov(float(np.abs(cumulated[0] - cumulated[1]).max()), 80, 80) < 0.05
    assert 3 <= small <= 27  # 15 expected


def test_histograms_hold_all_numbers_and_mark_limits() -> None:
    one, other = Distribution("Gap", "rows"), Distribution("Gap", "rows")
    one.add([1.0, 1.0, 2.0, 9.0])
    other.add([2.0] * 4)
    chart = histogram(one, other, limits=[(1, "least"), (12, "greatest")], whole=True)
    assert [bar["label"] for bar in chart.bars] == ["1: 50.0%", "2: 25.0%", "9: 25.0%"]
    heights = [bar["height"] for bar in chart.bars]
    assert heights[0] == pytest.approx(2 * float(str(heights[1])), abs=0.2)
    assert chart.outline
    assert [text for _, text in chart.limits] == ["least", "greatest"]
    assert chart.levels[0][1] == "100%"
    assert "median 1" in chart.description
    assert len(histogram(one).ticks) > 1


def test_a_speed_of_0_is_shown_and_said() -> None:
    one = Distribution("Speed", "sides per second", step=1 / 16, log=True)
    one.add([0.0, 0.0, 1.0])
    assert one.quantile(0.5) == pytest.approx(2.0**-12)
    assert "0 counts as 0.000244" in histogram(one).note


def test_heat_map_cells_are_the_counts() -> None:
    counts = np.zeros((4, 4), np.int64)
    counts[1, 2], counts[3, 0] = 3, 1
    found = heat_map(counts, "centres")
    assert [cell[:2] for cell in found.cells] == [(2, 1), (0, 3)]
    assert found.cells[0][2] == 1
    assert "4 boxes in 2 of 16 cells" in found.description
    assert heat_map(np.zeros((4, 4), np.int64), "none").cells == []


def coloured(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(N, 2) rows and columns of the pixels near a colour."""
    return np.argwhere(np.abs(image.astype(int) - colour).max(axis=2) < 40)


def test_contact_sheet_shows_boxes_where_they_are(tmp_path: Path) -> None:
    sheet = contact_sheet(write_one(tmp_path / "set"))
    assert sheet.dtype == np.uint8
    scale = 320 / 200  # both pictures are shown 320 wide
    rows, columns = coloured(sheet, PAST).T
    assert (np.ptp(rows), np.ptp(columns)) == (pytest.approx(20 * scale, abs=3), pytest.approx(20 * scale, abs=3))
    rows, columns = coloured(sheet, SEARCH).T
    assert np.ptp(columns) == pytest.approx(40 * scale, abs=3)
    assert columns.min() == pytest.approx(8 + 320 + 8 + 60 * scale, abs=3)


def test_contact_sheet_hatches_the_absent_and_draws_without_pictures(tmp_path: Path) -> None:
    seen = contact_sheet(write_one(tmp_path / "set", 1))
    hidden = contact_sheet(write_one(tmp_path / "set", 2, record={"search_visible": [False]}))
    empty = contact_sheet(write_one(tmp_path / "set", 3, roles=()))
    assert seen.shape == hidden.shape == empty.shape
    assert len(coloured(hidden, (0, 0, 0))) > len(coloured(seen, (0, 0, 0))) + 3000
    assert len(coloured(empty, SEARCH)) == pytest.approx(len(coloured(seen, SEARCH)), rel=0.02)


def test_contact_sheet_of_a_damaged_picture_names_it(tmp_path: Path) -> None:
    folder = write_one(tmp_path / "set")
    (folder / picture_name("search", 0, "png")).write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"search_000\.png"):
        contact_sheet(folder)
    assert "search_000.png" in write_report(tmp_path / "set").read_text()


def gif_frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):  # type: ignore[attr-defined]  # a GIF has it
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
    return frames


def test_overlay_draws_past_solid_search_bold_future_dashed_absent_hatched_padded_grey(tmp_path: Path) -> None:
    output = overlay(write_one(tmp_path / "set"), tmp_path / "out" / "one.gif")
    frames = gif_frames(output)
    assert len(frames) == 5 + 1 + 2 + 1
    scale, left, top = 288 / 100, 8, 2 * 8 + 2 * 15
    pictures = [frame[top : top + 288, left : left + round(200 * scale)] for frame in frames]

    def along(picture: np.ndarray, box: list[float], colour: tuple[int, int, int]) -> tuple[float, int]:
        """Share of the box's upper edge that has the colour, and how many rows of it."""
        x, y, w, _ = (round(one * scale) for one in box)
        band = picture[max(0, y - 6) : y + 7, x + 6 : x + w - 6]
        near = np.abs(band.astype(int) - colour).max(axis=2) < 40
        return float(near.any(axis=0).mean()), int(near.any(axis=1).sum())

    assert along(pictures[0], [10, 20, 20, 20], PADDED) == (1, 2)
    assert along(pictures[1], [10, 20, 20, 20], PAST) == (1, 2)
    assert len(coloured(pictures[2], PAST)) > 5 * len(coloured(pictures[1], PAST))  # absent: hatched all over
    assert along(pictures[5], [60, 20, 40, 40], SEARCH) == (1, 4)
    share, _ = along(pictures[7], [100, 60, 40, 40], FUTURE)
    assert 0.4 < share < 0.8
    assert along(pictures[8], [60, 20, 40, 40], SEARCH)[0] == 1


def test_overlay_maps_histories_into_crops(saved: Path, tmp_path: Path) -> None:
    folder = sorted(saved.glob("seq_*"))[0]
    frames = gif_frames(overlay(folder, tmp_path / "one.gif"))
    annotations = json.loads((folder / "annotations.json").read_text())
    x, y, w, h = np.array(annotations["search_anno"][0]) * 288 / 64  # the crop is the first panel, 288 high
    panel = frames[-1][46 : 46 + 288, 8 : 8 + 288]
    rows, columns = coloured(panel, SEARCH).T
    assert columns.min() == pytest.approx(max(0, x), abs=4)
    assert rows.max() == pytest.approx(min(287, y + h), abs=4)
    assert np.ptp(columns) == pytest.approx(min(287, x + w) - max(0, x), abs=6)


def test_overlay_of_a_negative_from_another_video_draws_no_history(tmp_path: Path) -> None:
    folder = write_one(tmp_path / "set", origin={"search_sequence": 7}, record={"positive": False})
    frames = gif_frames(overlay(folder, tmp_path / "one.gif"))
    assert len(frames) == 2
    assert len(coloured(frames[-1][46:334], PAST)) == 0
    assert contact_sheet(folder).ndim == 3


def test_overlay_as_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    output = overlay(write_one(tmp_path / "set"), tmp_path / "one.mp4")
    with av.open(str(output)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9 + 12
    assert len(coloured(frames[-1], SEARCH)) > 300
    with pytest.raises(UsageError, match=r"gif or \.mp4"):
        overlay(tmp_path / "set", tmp_path / "one.avi")


def test_page_is_offline_accessible_and_escaped(tmp_path: Path) -> None:
    write_one(
        tmp_path / "set",
        1,
        record={"category": "<script>alert(1)</script>", "sequence": 'a"b'},
    )
    write_one(tmp_path / "set", 2)
    write_manifest(tmp_path / "set")
    path = write_report(tmp_path / "set")
    assert path == tmp_path / "set" / "report.html"
    page = path.read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert re.findall(r"https?://|url\(|@import|<link|<iframe", page) == []
    assert all(uri.startswith("data:image/jpeg") for uri in re.findall(r'src="([^"]*)"', page))
    charts = re.findall(r'<svg viewBox="[^"]*" role="img" aria-labelledby="(\S+) (\S+)">', page)
    assert len(charts) >= 8
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {one for pair in charts for one in pair} <= set(ids)
    assert page.count("<img ") == page.count('alt="Contact sheet') == 2
    assert "75.0%" in page  # requested of lasot
    assert "2 of 40" in page  # videos drawn
    assert "prefers-color-scheme: dark" in page
    assert not list((tmp_path / "set").glob("*.new"))


@pytest.mark.parametrize(("sheets", "expected"), [(0, 0), (1, 1), (3, 3), (24, 8)])
def test_as_many_sheets_as_asked(saved: Path, tmp_path: Path, sheets: int, expected: int) -> None:
    page = write_report(saved, tmp_path / "deep" / "page.html", sheets=sheets).read_text()
    assert page.count("<img ") == expected


def test_same_folders_give_the_same_page(saved: Path, tmp_path: Path) -> None:
    pages = [write_report(saved, tmp_path / name, sheets=2).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_pictures_and_videos_are_reported_together(lasot: Path, tmp_path: Path) -> None:
    config = SequenceConfig(
        output=tmp_path / "set", num_sequences=6, crops=CROPS, save=SaveConfig(workers=0, timestamp=STAMP), draw=DRAW
    )
    save_sequences(config, sources=[MaskedPictures()])
    found = statistics(tmp_path / "set")
    assert (found.pictures, found.gaps, found.sources) == (6, {}, Counter(pictures=6))
    page = write_report(tmp_path / "set", compare=save(lasot, tmp_path / "other", count=3)).read_text()
    assert "No video was drawn" in page
    assert "Kolmogorov-Smirnov" in page


PROBE = """<script>
addEventListener("load", () => {
  const box = one => one.getBoundingClientRect();
  const found = {
    images: [...document.images].map(one => one.naturalWidth),
    charts: [...document.querySelectorAll("svg[role=img]")].map(one => Math.min(box(one).width, box(one).height)),
    bars: [...document.querySelectorAll("svg[role=img] rect.bar")].filter(one => box(one).height > 0).length,
    outlines: document.querySelectorAll("polyline.outline").length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    loaded: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:")),
    headings: [...document.querySelectorAll("h2")].map(one => one.textContent),
  };
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify(found);
  document.body.append(probe);
});
</script>"""


def browse(page: Path, folder: Path, *arguments: str) -> str:
    """What a real browser prints."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]  # fmt: skip
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_opens_in_a_real_browser(saved: Path, lasot: Path, tmp_path: Path) -> None:
    other = save(lasot, tmp_path / "second", seed=5, count=6)
    page = write_report(saved, tmp_path / "page.html", compare=other, sheets=3)
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</html>", PROBE + "</html>"))
    dom = browse(probed, tmp_path, "--window-size=1200,900", "--dump-dom")
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert match, dom[-2000:]
    found = json.loads(match[1].replace("&amp;", "&"))
    assert len(found["images"]) == 3
    assert min(found["images"]) > 300
    assert len(found["charts"]) >= 12
    assert min(found["charts"]) > 100
    assert found["bars"] > 20
    assert found["outlines"] >= 8
    assert found["overflow"] <= 0
    assert found["loaded"] == []
    assert {"Drift", "Gaps", "Sources", "Classes", "Boxes", "Contact sheets"} <= set(found["headings"])
    shot = tmp_path / "page.png"
    browse(page, tmp_path, "--window-size=1200,2600", f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2600, 1200, 3)
    assert len(coloured(pixels, (0x2F, 0x6F, 0xB5))) > 5000


@pytest.mark.skipif(not (SHARED / "data" / "lasot").is_dir(), reason="the shared LaSOT excerpt is not on this machine")
def test_report_of_real_frames(tmp_path: Path) -> None:
    config = SequenceConfig(
        sources=(f"lasot:{SHARED / 'data' / 'lasot'}",), output=tmp_path / "set", num_sequences=4,
        draw=DrawConfig(max_gap=20, min_interval=10, future_steps=4),
        save=SaveConfig(workers=0, timestamp=STAMP, pictures="both"),
    )  # fmt: skip
    save_sequences(config)
    found = statistics(tmp_path / "set")
    assert found.read == 4
    assert found.beyond(0) <= found.grown
    assert write_report(tmp_path / "set").stat().st_size > 50_000
    folder = next((tmp_path / "set").glob("seq_*"))
    assert len(gif_frames(overlay(folder, tmp_path / "one.gif"))) >= 3
