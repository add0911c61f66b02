"""A page of crops: what was searched for, and what was found; one file that opens offline."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image, ImageDraw

from penstock.errors import PenstockError, UsageError
from penstock.search_query import cut
from penstock.source import Source
from penstock.store.disk import Disk

_TILE = 160
_AROUND = 0.25
_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Section:
    """A query and what was found for it; or a group of duplicates."""

    title: str
    hits: Sequence[Mapping[str, object]]
    """As `penstock.search_query.hits` gives them."""
    picture: Image.Image | None = None
    """What was searched for, where it is no row of the store."""
    note: str = ""


@dataclass(kw_only=True)
class Page:
    """All that a page shows."""

    title: str
    sections: Sequence[Section]
    facts: Mapping[str, object] = field(default_factory=dict)
    """Name and value of what was done: store, model, rows, threshold, ..."""
    picture: Image.Image | None = None
    """A picture of the whole: a map."""
    table: Sequence[Mapping[str, object]] = ()
    """Rows of a table under the facts; the keys of the first are its head."""


def write_search_page(page: Page, target: Path | str, source: Source | None = None) -> Path:
    """Writes the page, atomically.

    Args:
        page: what to show.
        target: the file.
        source: where the rows came from, with the same keys, an image and a box; None: no crops, and the page says so.

    Returns:
        The path of the page. A crop that cannot be made is replaced by the reason.
    """
    path = Path(target)
    wanted = {str(hit["key"]) for section in page.sections for hit in section.hits}
    crops = {} if source is None else _crops(source, wanted)
    environment = Environment(loader=PackageLoader("penstock"), autoescape=select_autoescape(), trim_blocks=True)
    text = environment.get_template("search.html").render(
        page=page,
        picture=None if page.picture is None else _uri(page.picture, "PNG"),
        sections=[
            {
                "section": section,
                "picture": None if section.picture is None else _uri(_tile(section.picture), "JPEG"),
                "tiles": [{"hit": hit, **crops.get(str(hit["key"]), {})} for hit in section.hits],
            }
            for section in page.sections
        ],
        has_source=source is not None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    disk = Disk()
    disk.replace(path, text.encode("utf-8", "backslashreplace"))
    disk.close()
    return path


def crop_of(source: Source, row: int) -> Image.Image:
    """The crop of a row: its box with a quarter of its size around it, the box outlined; all of the picture without a box.

    Raises:
        UsageError: the source has no image, or the box lies outside of it.
        BadData: the picture cannot be read.
    """
    images = [name for name, known in source.schema.items() if known.kind == "image"]
    if not images:
        raise UsageError("the source has no image")
    names = [images[0], *(["box"] if "box" in source.schema else [])]
    reader = getattr(source, "read", None)
    record = source[row] if reader is None else reader(row, names)
    picture = Image.fromarray(np.asarray(record[images[0]]))
    if len(names) == 1:
        return _tile(picture)
    x, y, width, height = (float(number) for number in np.asarray(record["box"]))
    margin = _AROUND * max(width, height)
    window = (x - margin, y - margin, width + 2 * margin, height + 2 * margin)
    shown = cut(picture, window, source.keys[row])
    tile = _tile(shown)
    scale = tile.width / shown.width
    left, top = max(0, int(np.floor(window[0]))), max(0, int(np.floor(window[1])))
    corners = ((x - left) * scale, (y - top) * scale, (x + width - left) * scale, (y + height - top) * scale)
    ImageDraw.Draw(tile).rectangle(corners, outline=(255, 196, 0), width=2)
    return tile


def _crops(source: Source, wanted: set[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, row in _rows(source, wanted):
        try:
            found[key] = {"uri": _uri(crop_of(source, row), "JPEG")}
        except PenstockError as error:
            found[key] = {"error": f"{type(error).__name__}: {error}"}
    missing = {key: {"error": "the source has no row of this key"} for key in wanted - set(found)}
    return found | missing


def _rows(source: Source, wanted: set[str]) -> Iterable[tuple[str, int]]:
    """Where these keys are, each once; by name where the source can tell, else by going over its keys until all are met."""
    find = getattr(source, "find", None)
    if find is not None:
        for key in sorted(wanted):
            try:
                yield key, find(key)
            except KeyError:
                continue
        return
    left = set(wanted)
    keys = source.keys
    for row in range(len(source)):
        if not left:
            return
        key = keys[row]
        if key in left:
            left.discard(key)
            yield key, row


def _tile(picture: Image.Image) -> Image.Image:
    """The picture made to fit a tile, small ones made larger."""
    scale = _TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)


def _uri(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": _QUALITY} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()
