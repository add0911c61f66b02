"""`lasot`: folders as LaSOT publishes them. Read back by `penstock.readers.lasot`."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import Frame, SavedSequence
from penstock.exporters.text import folder_text, lines, require_quality, shortest
from penstock.geometry.boxes import box_fault


@dataclass(frozen=True, kw_only=True)
class LasotFolder:
    """LaSOT: `CLASS/CLASS-N/` with `img/00000001.jpg`, groundtruth.txt, full_occlusion.txt, out_of_view.txt, nlp.txt.

    Boxes XYWH with the corner counted from 1, four digits behind the point at most; 0,0,0,0 where there is none. N counts the
    sequences of a class from 1. A frame whose target is not to be seen is `full_occlusion` where it has a box in the picture,
    else `out_of_view`: saved sequences do not say which flag the source had. `nlp.txt` is the class: no sentence is saved.
    JPEGs keep their bytes; PNGs are encoded. A class that is no name of a folder is changed to one.

    Args:
        jpeg_quality: 1..100, of pictures that were PNGs.
    """

    name: ClassVar[str] = "lasot"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        require_quality(self.jpeg_quality)

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        counts: Counter[str] = Counter()
        for sequence, files in sequences.map(lambda sequence: (sequence, self.files(sequence))):
            category = folder_text(sequence.category)
            counts[category] += 1
            folder = f"{category}/{category}-{counts[category]}"
            out.write({f"{folder}/{path}": content for path, content in files.items()})

    def files(self, sequence: SavedSequence) -> dict[str, bytes]:
        """Path in its folder to content, of one sequence.

        Raises:
            BadData: it has no pictures.
        """
        sequence.require_pictures()
        frames = sequence.frames
        files = {f"img/{number:08d}.jpg": frame.jpeg(self.jpeg_quality) for number, frame in enumerate(frames, 1)}
        files["groundtruth.txt"] = lines([lasot_line(frame) for frame in frames])
        for name, reason in (("full_occlusion", "hidden"), ("out_of_view", "outside")):
            files[f"{name}.txt"] = lines([",".join(str(int(frame.absent == reason)) for frame in frames)])
        files["nlp.txt"] = lines([" ".join(sequence.category.split())])
        return files


def lasot_line(frame: Frame) -> str:
    """The line of groundtruth.txt."""
    return "0,0,0,0" if box_fault(frame.box) else shortest(frame.box + np.array([1, 1, 0, 0]))
