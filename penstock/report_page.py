"""report.json and report.html beside an output; the page opens offline and shows some of the rows."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image, ImageDraw

from penstock.errors import PenstockError
from penstock.report import Report, dump_json
from penstock.schema import Record
from penstock.store import Store, open_store
from penstock.store.v1 import SIDE

_SHOWN_ROWS = 6
_TILE = 192


def save_report(report: Report, output: Path) -> None:
    """Writes both files: into the store's folder, or into `.penstock` of a v1 directory. Sets `report.report`."""
    folder = output / SIDE if (output / SIDE).is_dir() else output
    if not folder.is_dir():
        return
    page = folder / "report.html"
    report.report = str(page)
    (folder / "report.json").write_text(dump_json(report.to_json()) + "\n", encoding="utf-8")
    environment = Environment(loader=PackageLoader("penstock"), autoescape=select_autoescape())
    tiles = _tiles(output)
    page.write_text(
        environment.get_template("report.html").render(report=report.to_json(), tiles=tiles), encoding="utf-8"
    )


def _tiles(output: Path) -> list[dict[str, object]]:
    try:
        store = open_store(output)
        rows = store.done_rows()
    except PenstockError:
        return []  # the report says why; a page without pictures is still the page
    chosen = range(len(store)) if rows is None else rows.tolist()
    spread = (
        sorted({chosen[i * (len(chosen) - 1) // max(1, _SHOWN_ROWS - 1)] for i in range(_SHOWN_ROWS)})
        if len(chosen)
        else []
    )
    return [{"key": store.keys[row], "row": row, "pictures": _pictures(store, row)} for row in spread]


def _pictures(store: Store, row: int) -> list[dict[str, str]]:
    record = store[row]
    found = []
    picture = _picture(record)
    if picture is not None:
        found.append(
            {
                "name": "image, boxes, masks",
                "uri": _uri(_overlay(picture, record, str(store.attributes.get("bbox_format")))),
            }
        )
    for name, field in store.schema.items():
        value = record[name]
        if isinstance(value, str):
            continue
        if field.kind == "features":
            found.append({"name": f"{name}, first three components", "uri": _uri(_components(value))})
        elif field.kind in ("map", "mask") and value.ndim == 2 and value.shape[0] >= 64:
            found.append({"name": name, "uri": _uri(_gray(value))})
    return found[:6]


def _picture(record: Record) -> np.ndarray | None:
    jpeg = record.get("image_jpeg")
    if isinstance(jpeg, np.ndarray):
        return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
    image = record.get("image")
    return image if isinstance(image, np.ndarray) else None


def _overlay(picture: np.ndarray, record: Record, bbox_format: str) -> Image.Image:
    image = Image.fromarray(picture).resize((_TILE, _TILE))
    masks, boxes, shape = (record.get(name) for name in ("masks", "bboxes", "image_shape"))
    if isinstance(masks, np.ndarray) and len(masks):
        shade = Image.fromarray((masks.max(0) * 110).astype(np.uint8)).resize((_TILE, _TILE))
        image.paste(Image.new("RGB", image.size, (0, 200, 255)), (0, 0), shade)
    draw = ImageDraw.Draw(image)
    if isinstance(boxes, np.ndarray) and isinstance(shape, np.ndarray):
        scale = np.array([shape[1], shape[0], shape[1], shape[0]], np.float64) / _TILE
        for box in boxes.astype(np.float64):
            if bbox_format != "xyxy":
                box = np.concatenate([box[:2], box[:2] + box[2:]])
            left, top, right, bottom = (box / scale).tolist()
            draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=(255, 80, 0), width=2)
    return image


def _components(features: np.ndarray) -> Image.Image:
    channels = features.reshape(features.shape[0], -1).astype(np.float32)
    centred = channels - channels.mean(1, keepdims=True)
    vectors = np.linalg.eigh(centred @ centred.T)[1][:, -3:]
    parts = (vectors.T @ centred).reshape(-1, *features.shape[1:])
    low, high = parts.min((1, 2), keepdims=True), parts.max((1, 2), keepdims=True)
    scaled = (255 * (parts - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    padded = (
        np.concatenate([scaled, np.zeros((3 - len(scaled), *scaled.shape[1:]), np.uint8)])
        if len(scaled) < 3
        else scaled
    )
    return Image.fromarray(np.ascontiguousarray(padded.transpose(1, 2, 0)))


def _gray(values: np.ndarray) -> Image.Image:
    scaled = values.astype(np.float32) / max(float(values.max()), 1e-12)
    return Image.fromarray((scaled * 255).clip(0, 255).astype(np.uint8))


def _uri(image: Image.Image) -> str:
    target = io.BytesIO()
    image.resize(
        (_TILE, _TILE), Image.Resampling.NEAREST if min(image.size) < _TILE else Image.Resampling.BILINEAR
    ).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()
