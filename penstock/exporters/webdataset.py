"""`webdataset`: TAR shards, a key per sequence. Source of the format: the WebDataset naming rule (key, first dot, rest)."""

from dataclasses import dataclass
from typing import ClassVar

import orjson

from penstock.errors import UsageError
from penstock.exporters.base import Output, Sequences
from penstock.exporters.sequences import SavedSequence
from penstock.exporters.text import tar_members
from penstock.sequence_folder import ANNOTATION_KEYS, boxes_to_json

_END = bytes(1024)


@dataclass(frozen=True, kw_only=True)
class WebDataset:
    """WebDataset: `shard-000000.tar` and so on, with members KEY.json, KEY.template_000.jpg, KEY.search_000.jpg, and
    KEY.template_000.mask.png where there are masks.

    KEY.json holds `metadata` (the nine keys), `annotations` (the four keys: XYWH with the corner from 0, in pixels of the
    picture, null for no number), `absent` (a word a frame, "" where the target is to be seen), and the saved `provenance`.
    Pictures keep their bytes. A key has no dot: one in an id becomes "-". TARs have no times and no owners.

    Args:
        shard_sequences: sequences of a shard.
    """

    name: ClassVar[str] = "webdataset"
    version: ClassVar[int] = 1
    deterministic: ClassVar[bool] = True

    shard_sequences: int = 1000

    def __post_init__(self) -> None:
        if self.shard_sequences < 1:
            raise UsageError(f"shard_sequences: expected 1 or more, got {self.shard_sequences}")

    def run(self, sequences: Sequences, out: Output) -> None:
        """See `Exporter.run`."""
        known = set(sequences.saved.names)
        count = 0
        for members in sequences.map(lambda sequence: self._members(sequence, known)):
            shard, place = divmod(count, self.shard_sequences)
            if shard and not place:
                out.append(_shard(shard - 1), _END)
            out.append(_shard(shard), members)
            count += 1
        if count:
            out.append(_shard((count - 1) // self.shard_sequences), _END)

    def _members(self, sequence: SavedSequence, known: set[str]) -> bytes:
        key = sequence.name.replace(".", "-")
        while key != sequence.name and key in known:
            key += "-"
        known.add(key)
        frames = {role: [one for one in sequence.frames if one.role == role] for role in ("template", "search")}
        boxes = [[one.box for one in role] for role in frames.values()]
        boxes += [list(steps.boxes) for steps in sequence.histories.values()]
        content = {
            "metadata": sequence.metadata,
            "annotations": {
                name: [boxes_to_json(box[None])[0] for box in listed]
                for name, listed in zip(ANNOTATION_KEYS, boxes, strict=True)
            },
            "absent": {role: [one.absent for one in listed] for role, listed in frames.items()},
            "provenance": sequence.provenance,
        }
        files = {f"{key}.json": orjson.dumps(content)}
        for frame in sequence.frames:
            stem = f"{key}.{frame.role}_{frame.number:03d}"
            if frame.picture is not None:
                files[f"{stem}.{frame.suffix}"] = frame.picture
            if frame.mask is not None:
                files[f"{stem}.mask.png"] = frame.mask
        return tar_members(files)


def _shard(number: int) -> str:
    return f"shard-{number:06d}.tar"
