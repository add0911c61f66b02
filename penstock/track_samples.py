"""The pictures of a draw: reads a TrackSample from its sources, each picture once; boxes and flags come from the tables."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from penstock.draws import Draw, Frames, History, Steps, TrackSample, TrackTable
from penstock.errors import BadData, UsageError
from penstock.geometry.images import picture_header
from penstock.readers.files import Files
from penstock.schema import Record
from penstock.source import Source

_FIELDS = ("image", "mask", "path")


class TrackSamples:
    """Reads samples. Pickles with its sources.

    Args:
        sources: random access to the rows of each table, in the order of the tables.
        tables: their annotations, as the sampler draws from them.

    Raises:
        UsageError: a source has other rows than its table, or no pictures.
    """

    def __init__(self, sources: Sequence[Source], tables: Sequence[TrackTable]) -> None:
        for source, table in zip(sources, tables, strict=True):
            if len(source) != int(table.starts[-1]):
                raise UsageError(f"{table.name}: the table has {int(table.starts[-1])} rows, the source {len(source)}")
            if "image" not in source.schema:
                raise UsageError(
                    f"{table.name}: expected a source with the field image, got {', '.join(source.schema)}"
                )
        self.sources = list(sources)
        self.tables = list(tables)

    def read(self, draw: Draw) -> TrackSample:
        """The sample of a draw, its pictures as the source has them. A picture drawn several times is decoded once, and
        then the same array stands in several places.

        Raises:
            BadData: a picture is missing or damaged; the message names the file.
        """
        table = self.tables[draw.source]
        known: dict[tuple[int, int], Record] = {}
        template = self._frames(draw.source, draw.template_rows, known)
        search = self._frames(draw.search_source, draw.search_rows, known)
        names = {self.tables[number].name: number for number in (draw.source, draw.search_source)}
        return TrackSample(
            draw=draw,
            source=table.name,
            sequence=table.names[draw.sequence],
            category=table.categories[draw.sequence],
            is_video=table.is_video,
            template=template,
            search=search,
            backward=self._steps(draw, draw.backward),
            forward=self._steps(draw, draw.forward),
            image_hw=cast(tuple[int, int], search.images[0].shape[:2]),
            roots={name: str(getattr(self.sources[number], "root", "")) for name, number in names.items()},
        )

    def picture_file(self, source: int, path: str, size_hw: tuple[int, int]) -> bytes | None:
        """The bytes of a picture's file where that is an upright JPEG of this size; None where it is anything else (a PNG,
        a frame of a video, a turned picture)."""
        files: Files | None = getattr(self.sources[source], "files", None)
        if files is None or not path.lower().endswith((".jpg", ".jpeg")):
            return None
        content = files.read(path)
        header = picture_header(content)
        plain = header.format == "JPEG" and header.orientation == 1 and header.size_hw == tuple(size_hw)
        return content if plain else None

    def _frames(self, number: int, rows: np.ndarray, known: dict[tuple[int, int], Record]) -> Frames:
        source, table = self.sources[number], self.tables[number]
        wanted = [name for name in _FIELDS if name in source.schema]
        records = []
        for row in rows.tolist():
            if (number, row) not in known:
                known[number, row] = _read(source, row, wanted)
            records.append(known[number, row])
        images = [np.asarray(record["image"]) for record in records]
        for row, image in zip(rows.tolist(), images, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise BadData(
                    f"{table.name}: {source.keys[row]}: expected a picture (H, W, 3) uint8, got {image.shape} {image.dtype}"
                )
        empty: dict[tuple[int, int], np.ndarray] = {}
        return Frames(
            images=images,
            boxes=_boxes(table, rows),
            masks=[_mask(record, image, empty) for record, image in zip(records, images, strict=True)],
            frames=np.asarray(table.frames[rows], np.int64),
            visible=np.asarray(table.visible[rows], bool),
            valid=np.asarray(table.valid[rows], bool),
            paths=[
                str(record.get("path", source.keys[row])) for record, row in zip(records, rows.tolist(), strict=True)
            ],
        )

    def _steps(self, draw: Draw, history: History) -> Steps:
        table, rows = self.tables[draw.source], history.rows
        frames = np.asarray(table.frames[rows], np.int64)
        return Steps(
            boxes=_boxes(table, rows),
            frames=frames,
            visible=np.asarray(table.visible[rows], bool),
            valid=np.asarray(table.valid[rows], bool),
            padded=np.asarray(history.padded, bool),
            time=frames / float(table.fps[draw.sequence]),
        )


def _boxes(table: TrackTable, rows: np.ndarray) -> np.ndarray:
    """(n, 4) float64; NaN where there is no box: datasets write zeros there, or -1, or nothing."""
    is_box = np.asarray(table.valid[rows], bool)[:, None]
    return np.where(is_box, np.asarray(table.boxes[rows], np.float64), np.nan)


def _read(source: Source, row: int, fields: Sequence[str]) -> Record:
    read = getattr(source, "read", None)
    record: Record = source[row] if read is None else read(row, fields)
    return record


def _mask(record: Record, image: np.ndarray, empty: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    if "mask" in record:
        return np.asarray(record["mask"])
    size_hw = cast(tuple[int, int], image.shape[:2])
    if size_hw not in empty:
        empty[size_hw] = np.zeros(size_hw, np.uint8)
    return empty[size_hw]
