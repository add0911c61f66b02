"""The contract of exporters as a test class to inherit, and a maker of small saved sets with known truth."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadData, OutputFull, OutputRefused
from penstock.exporters.base import Exporter
from penstock.exporters.run import EXPORT, TEMPORARY, export
from penstock.report import Report
from penstock.sequence_folder import (
    METADATA,
    SIDE,
    ImageFormat,
    boxes_to_json,
    encode_mask,
    encode_pixels,
    picture_name,
    sequence_files,
    write_folder,
)
from penstock.store.disk import Disk

STAMP = "20241201_143022"
TRUTH: dict[str, list[list[float]]] = {
    "template": [[4.5, 6.25, 20.125, 10.0625], [8, 9, 10, 12]],
    "search": [[30.333333, 20.2, 15.1, 12.7], [-5.5, 3, 20, 10], [0, 0, 0, 0]],
}
"""Boxes of a sequence of `make_saved_set`: XYWH, corner from 0. The second search box crosses the border, the third frame has
none."""


def make_saved_set(
    root: Path,
    count: int = 3,
    *,
    image_format: ImageFormat = "jpg",
    search_size: int = 64,
    masks: bool = False,
    category: str = "toy car",
) -> Path:
    """A folder of saved sequences without a recipe: two templates of 48 x 64 (height x width), three searches.

    Boxes are those of `TRUTH`, moved to the right by the number of the sequence (from 0), where there is one. In the second
    sequence the second template is flagged as not visible; the last sequence is a negative.

    Args:
        root: folder; made if it is not there.
        count: sequences.
        image_format: of the pictures.
        search_size: width of the search pictures; other than 64 makes them another size than the templates.
        masks: whether each frame with a box has a mask, its box filled.
        category: class of the target.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_folder(
            Disk(flush=False),
            root / f"seq_{number + 1:06d}_{STAMP}",
            _files(
                number,
                negative=number == count - 1,
                image_format=image_format,
                widths={"template": 64, "search": search_size},
                masks=masks,
                category=category,
            ),
        )
    return root


def boxes_of(role: str, number: int) -> np.ndarray:
    """(n, 4) float64 boxes of a role of the sequence `number` (from 0) of `make_saved_set`."""
    boxes = np.array(TRUTH[role], np.float64)
    boxes[boxes[:, 2] > 0, 0] += number
    return boxes


def _files(
    number: int, *, negative: bool, image_format: ImageFormat, widths: dict[str, int], masks: bool, category: str
) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    record: dict[str, Any] = {"positive": not negative, "sequence": f"video-{number}", "source": "made"}
    origin: dict[str, Any] = {"backward": {"boxes": [[1, 2, 3, 4]]}, "forward": {"boxes": [[1, 2, 3, 4]]}}
    for role, width in widths.items():
        boxes = boxes_of(role, number)
        for place, box in enumerate(boxes):
            rng = np.random.default_rng([number, place, len(role)])
            pixels = rng.integers(0, 256, (6, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            pictures[picture_name(role, place, image_format)] = encode_pixels(pixels, image_format)
            if masks and box[2] > 0:
                x, y, w, h = box.clip(0).round().astype(int).tolist()
                mask = np.zeros((48, width), np.uint8)
                mask[y : y + h, x : x + w] = 1
                pictures[picture_name(role, place, "png", folder="masks")] = encode_mask(mask)
        record[f"{role}_visible"] = [not (role == "template" and number == place == 1) for place in range(len(boxes))]
        record[f"{role}_valid"] = (boxes[:, 2] > 0).tolist()
        origin[role] = {"boxes": boxes_to_json(boxes), "paths": [f"{role}/{place}.jpg" for place in range(len(boxes))]}
    for name in ("backward", "forward"):
        record |= {
            f"{name}_visible": [True],
            f"{name}_valid": [True],
            f"{name}_padded": [False],
            f"{name}_time": [None],
        }
    return sequence_files(
        metadata={
            "sequence_id": f"seq_{number + 1:06d}",
            "timestamp": STAMP,
            "dataset": "made",
            "test_class": category,
            "is_video_dataset": True,
            "template_frame_ids": [3, 5],
            "search_frame_ids": [9, 12, 15],
            "gt_frame_ids_backward": [8],
            "gt_frame_ids_forward": [9],
        },
        annotations={
            "template_anno": boxes_to_json(boxes_of("template", number)),
            "search_anno": boxes_to_json(boxes_of("search", number)),
            "gt_sequence_anno_backward": [[None, None, None, None]],
            "gt_sequence_anno_forward": [[1.5, 2.5, 3.5, 4.5]],
        },
        provenance={"pictures": "raw", "record": record, "origin": origin},
        pictures=pictures,
    )


class ExporterTests:
    """What every exporter promises. A test class inherits it and gives `make_exporter`; `make_set` where the layout needs more
    than `make_saved_set` gives."""

    def make_exporter(self) -> Exporter:
        """The exporter, anew."""
        raise NotImplementedError

    def make_set(self, root: Path) -> Path:
        """At least two saved sequences; equal bytes each time."""
        return make_saved_set(root)

    def export(self, folder: Path, **options: Any) -> Report:
        """Exports the set to `folder/out`."""
        if not (folder / "set").exists():
            self.make_set(folder / "set")
        return export(folder / "set", folder / "out", format=self.make_exporter(), **options)

    def test_every_sequence_is_exported_and_said(self) -> None:
        """Counts, and where each comes from; the set is left as it is; nothing is left beside the output."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.make_set(folder / "set")
            before = digests(folder / "set")
            report = self.export(folder, licence="CC BY 4.0")
            assert (report.done, report.planned, report.exit_code) == (len(report_names(folder)), report.done, 0)
            assert report.bytes_written > 0
            assert digests(folder / "set") == before
            assert sorted(path.name for path in folder.iterdir()) == ["out", "set"]
            about = json.loads((folder / "out" / SIDE / EXPORT).read_text())
            assert about["exporter"] == self.make_exporter().name
            assert [one["folder"] for one in about["sequences"]] == report_names(folder)
            assert all(one["digest"] and one["source"] for one in about["sequences"])
            assert about["set"]["sources"]
            assert about["set"]["licence"] == "CC BY 4.0"
            assert about["failed"] == []

    def test_equal_sets_give_equal_bytes(self) -> None:
        """Wherever they lie."""
        if not self.make_exporter().deterministic:
            return
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            self.export(Path(one))
            self.export(Path(other))
            assert digests(Path(one) / "out") == digests(Path(other) / "out")

    def test_an_output_that_holds_something_is_refused(self) -> None:
        """And left as it is."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "out").mkdir()
            (folder / "out" / "mine.txt").write_text("mine")
            assert_raises(OutputRefused, self.export, folder)
            assert digests(folder / "out").keys() == {"mine.txt"}
            assert sorted(path.name for path in folder.iterdir()) == ["out", "set"]

    def test_a_damaged_sequence_is_named_and_the_rest_exported(self) -> None:
        """None is left out in silence."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            names = report_names(folder, self.make_set(folder / "set"))
            damage(folder / "set" / names[0])
            report = self.export(folder)
            assert (report.done, report.failed, report.missing, report.exit_code) == (len(names) - 1, 1, 0, 1)
            about = json.loads((folder / "out" / SIDE / EXPORT).read_text())
            assert [one["folder"] for one in about["sequences"]] == names[1:]
            assert [one["source"] for one in about["failed"]] == [names[0]]
            assert "other bytes" in about["failed"][0]["message"]

    def test_nothing_to_export_gives_no_output(self) -> None:
        """An error that says why."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for name in report_names(folder, self.make_set(folder / "set")):
                damage(folder / "set" / name)
            assert_raises(BadData, self.export, folder)
            assert [path.name for path in folder.iterdir()] == ["set"]

    def test_a_full_disk_leaves_nothing(self) -> None:
        """No half of an export."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.make_set(folder / "set")
            assert_raises(OutputFull, self.export, folder, disk=_Full())
            assert [path.name for path in folder.iterdir()] == ["set"]

    def test_what_a_killed_run_left_is_no_part_of_the_next(self) -> None:
        """The leftover is replaced."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            left = folder / f"{TEMPORARY}out"
            (left / "train").mkdir(parents=True)
            (left / "train" / "half.jpg").write_bytes(b"half")
            self.export(folder)
            assert not list((folder / "out").rglob("half.jpg"))
            assert not left.exists()

    def test_a_stopped_run_leaves_no_output(self) -> None:
        """And says that it was stopped."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            answers = iter(["", "SIGTERM"])
            report = self.export(folder, stop=lambda: next(answers))
            assert (report.interrupted, report.done, report.exit_code) == ("SIGTERM", 0, 1)
            assert [path.name for path in folder.iterdir()] == ["set"]


class _Full(Disk):
    """Has no room for the last file that every export writes."""

    def __init__(self) -> None:
        super().__init__(flush=False)

    def write(self, path: Path, content: bytes | memoryview, offset: int) -> None:
        if path.name == EXPORT:
            raise OutputFull(28, f"{path}: no room left")
        super().write(path, content, offset)


def assert_raises(error: type[Exception], function: Any, *arguments: Any, **options: Any) -> None:
    """The call raises this error.

    Raises:
        AssertionError: it does not.
    """
    try:
        function(*arguments, **options)
    except error:
        return
    raise AssertionError(f"expected {error.__name__}")


def report_names(folder: Path, root: Path | None = None) -> list[str]:
    """Names of the folders of the sequences in `folder/set`, in order."""
    return sorted(path.name for path in (root or folder / "set").glob("seq_*"))


def damage(sequence: Path) -> None:
    """Changes one byte of the annotations of a saved sequence."""
    path = next(sequence.glob("annotations.*"), sequence / METADATA)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
