"""`coco-video`: COCO-video JSON, as YouTube-VIS has it. Read back by `penstock.readers.youtube_vis`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from penstock.errors import UsageError
from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import Frame, SavedSequence
from penstock.exporters.text import dump, require_folder_name
from penstock.geometry.boxes import clip_boxes_xywh, xywh_to_xyxy
from penstock.geometry.rle import encode_rle


@dataclass(frozen=True, kw_only=True)
class CocoVideo:
    """YouTube-VIS: `SPLIT/instances.json` and `SPLIT/JPEGImages/NAME/00000.jpg`.

    One video and one annotation a sequence. `bboxes` are XYWH with the corner from 0, in full precision, null where the target
    is absent. A video has one size, so that a sequence of pictures of several sizes (templates and searches as crops) becomes
    several videos, NAME-1 and so on. Pictures keep their bytes, JPEG or PNG. Each video also says `roles`, `frame_ids`
    (positions in the source's video), `source`, `source_video` and `digest`.

    Args:
        split: name of the folder.
        segmentation: "masks": RLE (lists of runs, as published) where the set has masks, null elsewhere; "boxes": also the
            rectangle of the box where there is no mask, for programs that do nothing without one.
    """

    name: ClassVar[str] = "coco-video"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    split: str = "train"
    segmentation: Literal["masks", "boxes"] = "masks"

    def __post_init__(self) -> None:
        require_folder_name("split", self.split)
        if self.segmentation not in ("masks", "boxes"):
            raise UsageError(f"segmentation: expected masks or boxes, got {self.segmentation!r}")

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        videos: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        categories: dict[str, int] = {}
        for sequence, parts in sequences.map(self._parts):
            category = categories.setdefault(sequence.category or "object", len(categories) + 1)
            for video, tracked, files in parts:
                number = len(videos) + 1
                videos.append({"id": number, **video})
                head = {"id": number, "video_id": number, "category_id": category, "iscrowd": 0}
                annotations.append({**head, **tracked})
                out.write({f"{self.split}/JPEGImages/{path}": content for path, content in files.items()})
        about = sequences.summary()
        content = {
            "info": {"description": "saved sequences, exported by penstock", **about},
            "licenses": [{"id": 1, "name": about["licence"]}],
            "videos": videos,
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
            "annotations": annotations,
        }
        out.write({f"{self.split}/instances.json": dump(content)})

    def _parts(
        self, sequence: SavedSequence
    ) -> tuple[SavedSequence, list[tuple[dict[str, object], dict[str, object], dict[str, bytes]]]]:
        """Of each video of a sequence: itself, its annotation, its pictures."""
        sequence.require_pictures()
        found = []
        for name, frames in sequence.parts().items():
            paths = [f"{name}/{number:05d}.{frame.suffix}" for number, frame in enumerate(frames)]
            height, width = frames[0].size_hw
            video: dict[str, object] = {
                "file_names": paths,
                "length": len(frames),
                "height": height,
                "width": width,
                "license": 1,
                "roles": [frame.role for frame in frames],
                "frame_ids": [frame.frame for frame in frames],
                "source": sequence.source,
                "source_video": sequence.video,
                "digest": sequence.provenance.get("digest", ""),
            }
            shapes = [self._segmentation(frame) for frame in frames]
            tracked: dict[str, object] = {
                "height": height,
                "width": width,
                "length": len(frames),
                "bboxes": [None if frame.absent else frame.box.tolist() for frame in frames],
                "segmentations": [shape for shape, _ in shapes],
                "areas": [area for _, area in shapes],
            }
            pictures = {path: frame.picture or b"" for path, frame in zip(paths, frames, strict=True)}
            found.append((video, tracked, pictures))
        return sequence, found

    def _segmentation(self, frame: Frame) -> tuple[object, float | None]:
        """The segmentation of a frame, and its area in pixels."""
        if frame.absent:
            return None, None
        mask = frame.mask_pixels()
        if mask is not None and mask.any():
            return encode_rle(mask, compressed=False), int(np.count_nonzero(mask))
        if self.segmentation == "masks":
            return None, None
        inside = clip_boxes_xywh(frame.box, frame.size_hw)
        x0, y0, x1, y1 = xywh_to_xyxy(inside).tolist()
        return [[x0, y0, x1, y0, x1, y1, x0, y1]], float(inside[2:].prod())
