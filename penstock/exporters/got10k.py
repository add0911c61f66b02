"""`got10k`: folders as GOT-10k publishes them. Read back by `penstock.readers.got10k` and by its own toolkit."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import UsageError
from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import Frame, SavedSequence
from penstock.exporters.text import fixed, lines, require_quality
from penstock.geometry.boxes import box_fault, clip_boxes_xywh

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Got10kFolder:
    """GOT-10k: `SPLIT/list.txt`, `SPLIT/NAME/00000001.jpg`, groundtruth.txt, absence.label, cover.label, cut_by_image.label,
    meta_info.ini.

    Boxes XYWH with the corner from 0, four digits behind the point, zeros where there is none. `absence` is 1 where the target
    is not to be seen. `cover` is eighths of the box that lie in the picture, 1 at least, 0 where absent: an upper bound, as
    saved sequences do not say how much is covered by something. `cut_by_image` is 1 where the box crosses the border. What is
    not known (rate, motion) is "unknown". JPEGs keep their bytes; PNGs are encoded.

    Args:
        split: folder of the sequences: "train" or "val".
        jpeg_quality: 1..100, of pictures that were PNGs.
    """

    name: ClassVar[str] = "got10k"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    split: Literal["train", "val"] = "train"
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        require_quality(self.jpeg_quality)
        if self.split not in ("train", "val"):
            raise UsageError(f"split: expected train or val, got {self.split!r}")

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        names = []
        for name, files in sequences.map(lambda sequence: (sequence.name, self.files(sequence))):
            out.write({f"{self.split}/{name}/{path}": content for path, content in files.items()})
            names.append(name)
        out.write({f"{self.split}/list.txt": lines(names)})

    def files(self, sequence: SavedSequence) -> dict[str, bytes]:
        """Path in its folder to content, of one sequence.

        Raises:
            BadData: it has no pictures.
        """
        sequence.require_pictures()
        frames = sequence.frames
        files = {f"{number:08d}.jpg": frame.jpeg(self.jpeg_quality) for number, frame in enumerate(frames, 1)}
        files["groundtruth.txt"] = lines([fixed(written_box(frame)) for frame in frames])
        files["absence.label"] = lines([int(bool(frame.absent)) for frame in frames])
        files["cover.label"] = lines([cover_of(frame) for frame in frames])
        files["cut_by_image.label"] = lines([int(_is_cut(frame)) for frame in frames])
        height, width = frames[0].size_hw
        about = {
            "url": f"{sequence.source} {sequence.video}".strip(),
            "begin": UNKNOWN,
            "end": UNKNOWN,
            "anno_fps": UNKNOWN,
            "object_class": " ".join(sequence.category.split()),
            "motion_class": UNKNOWN,
            "major_class": UNKNOWN,
            "root_class": UNKNOWN,
            "motion_adverb": UNKNOWN,
            "resolution": f"({width}, {height})",
        }
        said = [f"{name}: {value or UNKNOWN}" for name, value in about.items()]
        files["meta_info.ini"] = lines(["[METAINFO]", *said])
        return files


def written_box(frame: Frame) -> np.ndarray:
    """(4,) float64 XYWH; zeros where there is no box of positive size."""
    return np.zeros(4) if box_fault(frame.box) else frame.box


def cover_of(frame: Frame) -> int:
    """Eighths of the box that lie in the picture, 1..8; 0 where the target is absent."""
    if frame.absent:
        return 0
    share = clip_boxes_xywh(frame.box, frame.size_hw)[2:].prod() / frame.box[2:].prod()
    return int(np.clip(round(8 * float(share)), 1, 8))


def _is_cut(frame: Frame) -> bool:
    return not frame.absent and bool(box_fault(frame.box, frame.size_hw, whole=True))
