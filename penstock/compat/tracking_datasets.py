"""A dataset object of the original tracking code, seen as a source and a table of tracks."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from penstock.draws import TrackTable
from penstock.errors import BadData, UsageError
from penstock.readers.fields import BOX, IMAGE, MASK, VALID, VISIBLE
from penstock.schema import Record, Schema
from penstock.source import Lookup, check_index


class TrackDataset(Protocol):
    """The part of the original interface that is used. Boxes are XYWH in pixels, tensors or arrays, one per frame."""

    def is_video_sequence(self) -> bool:
        """False: each sequence is one picture."""
        ...

    def get_name(self) -> str:
        """Of the dataset."""
        ...

    def get_num_sequences(self) -> int:
        """Sequences, from 0."""
        ...

    def get_sequence_info(self, seq_id: int, /) -> Any:
        """`bbox` (N, 4), and, where known, `valid` and `visible` (N,), `mask` (N, H, W)."""
        ...

    def get_frames(self, seq_id: int, frame_ids: list[int], anno: Any = None, /) -> Any:
        """List of (H, W, 3) uint8 RGB pictures, annotations of these frames (name -> list), and a description."""
        ...


class OriginalDataset:
    """The object as a source: a row is a frame, a group is a sequence.

    `get_sequence_info` is called once for each sequence when this is made, for boxes and flags only; for a single picture's
    mask and for `get_frames` it is called again, once per sequence in turn.

    Args:
        dataset: see `TrackDataset`. Classes come from `get_class_list` and `get_sequences_in_class` where
            `has_class_info()` says so; names of sequences from `sequence_list`, else they are numbers.

    Raises:
        UsageError: a method is missing, there is no sequence, or the annotations do not fit one another.
    """

    def __init__(self, dataset: object) -> None:
        needed = ("is_video_sequence", "get_name", "get_num_sequences", "get_sequence_info", "get_frames")
        missing = [name for name in needed if not callable(getattr(dataset, name, None))]
        if missing:
            raise UsageError(f"{type(dataset).__name__}: a tracking dataset needs {', '.join(missing)}")
        self.dataset = cast(TrackDataset, dataset)
        self.name = self.dataset.get_name()
        self._last: tuple[int, Any] | None = None
        self._table = self._build()
        has_masks = self._info(0).get("mask") is not None
        self.schema = Schema([IMAGE, BOX, VALID, VISIBLE, *([MASK] if has_masks else [])])

    def track_table(self) -> TrackTable:
        """The annotations as arrays; no rate is known."""
        return self._table

    @property
    def keys(self) -> Sequence[str]:
        """SEQUENCE/FRAME, the frame with eight digits."""
        return Lookup(len(self), self._key)

    def __len__(self) -> int:
        return int(self._table.starts[-1])

    def __getitem__(self, index: int) -> Record:
        """All fields of a row.

        Raises:
            IndexError: there is no such row.
            BadData: `get_frames` gave no picture of it.
        """
        row = check_index(index, len(self))
        sequence = self._sequence(row)
        frame = row - int(self._table.starts[sequence])
        images, annotations, _ = self.dataset.get_frames(sequence, [frame], self._info(sequence))
        if not len(images) or images[0] is None:
            raise BadData(f"{self._key(row)}: get_frames gave no picture")
        record: Record = {
            "image": np.asarray(images[0]),
            "box": np.array(self._table.boxes[row]),
            "valid": np.array(self._table.valid[row]),
            "visible": np.array(self._table.visible[row]),
        }
        if "mask" in self.schema:
            record["mask"] = (np.asarray(annotations["mask"][0]) > 0).astype(np.uint8)
        return record

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}

    def _key(self, row: int) -> str:
        sequence = self._sequence(row)
        return f"{self._table.names[sequence]}/{row - int(self._table.starts[sequence]):08d}"

    def _sequence(self, row: int) -> int:
        return int(np.searchsorted(self._table.starts, row, side="right")) - 1

    def _info(self, sequence: int) -> Any:
        last = self._last
        if last is None or last[0] != sequence:
            last = self._last = (sequence, self.dataset.get_sequence_info(sequence))
        return last[1]

    def _build(self) -> TrackTable:
        count = self.dataset.get_num_sequences()
        if not count:
            raise UsageError(f"{self.name}: a tracking dataset without sequences")
        parts = [
            _annotations(self.dataset.get_sequence_info(number), f"{self.name}: sequence {number}")
            for number in range(count)
        ]
        lengths = [len(boxes) for boxes, _, _ in parts]
        boxes, valid, visible = (np.concatenate(column) for column in zip(*parts, strict=True))
        listed = list(getattr(self.dataset, "sequence_list", None) or [])
        is_named = len(listed) == count and all(isinstance(name, str) for name in listed)
        return TrackTable(
            name=self.name,
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            boxes=boxes,
            valid=valid,
            visible=visible,
            frames=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            fps=np.full(count, np.nan),
            names=listed if is_named else [str(number) for number in range(count)],
            categories=self._categories(count),
            is_video=bool(self.dataset.is_video_sequence()),
        )

    def _categories(self, count: int) -> list[str]:
        found, dataset = [""] * count, cast(Any, self.dataset)
        if not (hasattr(dataset, "has_class_info") and dataset.has_class_info()):
            return found
        for name in dataset.get_class_list():
            for number in dataset.get_sequences_in_class(name):
                found[int(number)] = str(name)
        return found


def _annotations(info: Any, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) float32, valid and visible (N,) bool."""
    boxes = np.asarray(info["bbox"], np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UsageError(f"{where}: bbox: expected (N, 4), got {boxes.shape}")
    with np.errstate(invalid="ignore"):
        positive = (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    flags = []
    for name in ("valid", "visible"):
        given = info.get(name)
        flag = positive if given is None else positive & np.asarray(given).astype(bool).reshape(-1)
        if len(flag) != len(boxes):
            raise UsageError(f"{where}: {name}: expected {len(boxes)} values, got {len(flag)}")
        flags.append(flag)
    return boxes, flags[0], flags[0] & flags[1]
