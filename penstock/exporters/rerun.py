"""`rerun`: a Rerun recording per sequence, to look at. Needs the extra `rerun`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import orjson

from penstock.errors import BadData, MissingExtra
from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import SavedSequence

_MEDIA = {"jpg": "image/jpeg", "png": "image/png"}


@dataclass(frozen=True, kw_only=True)
class RerunRecording:
    """Rerun: `NAME.rrd` per sequence, on a timeline `frame` (position in the source's video; order in the sequence where that
    was not saved), and a timeline `order` of templates, then searches, for pictures of one position.

    Entities: `template` and `search` (the pictures, bytes as saved), `template/target` and `search/target` (Boxes2D XYWH in
    pixels of the picture, nothing where absent), `template/mask` and `search/mask` where there are masks,
    `search/backward` and `search/forward` (the histories, in the first search picture), and `about` (text). A recording holds
    row ids made from the clock, so that its bytes differ from run to run; what it says does not.
    """

    name: ClassVar[str] = "rerun"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = False

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        try:
            import rerun
        except ImportError as error:
            raise MissingExtra("rerun-sdk", "rerun", "exporting a Rerun recording") from error
        licence = sequences.summary()["licence"]
        for name, content in sequences.map(lambda one: (one.name, _recording(rerun, one, licence))):
            out.write({f"{name}.rrd": content})


def _recording(rerun: Any, sequence: SavedSequence, licence: object) -> bytes:
    sequence.require_pictures()
    recording = rerun.RecordingStream(
        "penstock", recording_id=str(sequence.provenance.get("digest") or sequence.folder.name), send_properties=False
    )
    recording.set_log_tick_enabled(False)
    recording.set_log_time_enabled(False)
    stream = recording.binary_stream()
    about = orjson.dumps({**sequence.about(), "licence": licence}, option=orjson.OPT_INDENT_2).decode()
    recording.log("about", rerun.TextDocument(about), static=True)
    has_masks = any(frame.mask is not None for frame in sequence.frames)
    for place, frame in enumerate(sequence.frames):
        assert frame.picture is not None
        recording.set_time("frame", sequence=place if frame.frame is None else frame.frame)
        recording.set_time("order", sequence=place)
        recording.log(frame.role, rerun.EncodedImage(contents=frame.picture, media_type=_MEDIA[frame.suffix]))
        boxes = np.zeros((0, 4)) if frame.absent else frame.box[None]
        recording.log(f"{frame.role}/target", _boxes(rerun, boxes, [sequence.category or "target"][: len(boxes)]))
        if has_masks:
            mask = None if frame.absent else frame.mask_pixels()
            shown = rerun.Clear(recursive=False) if mask is None else rerun.SegmentationImage(mask)
            recording.log(f"{frame.role}/mask", shown)
    recording.reset_time()
    for name, steps in sequence.histories.items():
        for number, box in enumerate(steps.boxes):
            recording.set_time("frame", sequence=number if steps.frames is None else steps.frames[number])
            boxes = box[None] if np.isfinite(box).all() else np.zeros((0, 4))
            recording.log(f"search/{name}", _boxes(rerun, boxes, [f"{name} {number}"][: len(boxes)]))
    content = stream.read()
    recording.disconnect()
    if not content:
        raise BadData(f"{sequence.folder}: the recording is empty")
    return bytes(content)


def _boxes(rerun: Any, boxes: np.ndarray, labels: list[str]) -> Any:
    if not len(boxes):
        return rerun.Clear(recursive=False)
    return rerun.Boxes2D(array=boxes, array_format=rerun.Box2DFormat.XYWH, labels=labels)
