"""`mot`: MOTChallenge folders. Source of the format: the files as published (MOT15, ten columns)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import Frame, SavedSequence
from penstock.exporters.text import lines, require_folder_name, shortest


@dataclass(frozen=True, kw_only=True)
class Mot:
    """MOTChallenge: `SPLIT/NAME/gt/gt.txt`, `img1/000001.jpg`, `seqinfo.ini`.

    Ten columns: frame from 1, id 1, left and top counted from 1, width, height, 1, -1, -1, -1; four digits behind the point at
    most. A frame in which the target is absent has no line. Pictures keep their bytes, JPEG or PNG (`imExt` says which).
    `seqinfo.ini` states one size, so that a sequence of pictures of several sizes becomes several, NAME-1 and so on.
    `frameRate` is 1: frames that were picked from a video have no rate, and the layout wants one.

    Args:
        split: name of the folder of the sequences.
    """

    name: ClassVar[str] = "mot"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    split: str = "train"

    def __post_init__(self) -> None:
        require_folder_name("split", self.split)

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        for files in sequences.map(self.files):
            out.write(files)

    def files(self, sequence: SavedSequence) -> dict[str, bytes]:
        """Path to content, of one sequence.

        Raises:
            BadData: it has no pictures.
        """
        sequence.require_pictures()
        found: dict[str, bytes] = {}
        for name, frames in sequence.parts().items():
            folder = f"{self.split}/{name}"
            for number, frame in enumerate(frames, 1):
                assert frame.picture is not None
                found[f"{folder}/img1/{number:06d}.{frame.suffix}"] = frame.picture
            found[f"{folder}/gt/gt.txt"] = lines(mot_lines(frames))
            found[f"{folder}/seqinfo.ini"] = lines(_info(name, frames))
        return found


def mot_lines(frames: list[Frame]) -> list[str]:
    """The lines of gt.txt; none for a frame in which the target is absent."""
    return [
        f"{number},1,{shortest(frame.box + np.array([1, 1, 0, 0]))},1,-1,-1,-1"
        for number, frame in enumerate(frames, 1)
        if not frame.absent
    ]


def _info(name: str, frames: list[Frame]) -> list[str]:
    height, width = frames[0].size_hw
    return [
        "[Sequence]",
        f"name={name}",
        "imDir=img1",
        "frameRate=1",
        f"seqLength={len(frames)}",
        f"imWidth={width}",
        f"imHeight={height}",
        f"imExt=.{frames[0].suffix}",
    ]
