"""How fast is the embedding cache? One thread; a table.

    python benchmarks/embed.py [--only crops] [--pictures 20] [--onnx mobilenet_v1_embed.onnx]
    python benchmarks/embed.py --only models --models openclip:ViT-B-16-SigLIP@random    # a second and more a segment
    python benchmarks/embed.py --only store --rows 1301157                               # 2 GB, minutes
    python benchmarks/search.py --rows 1300000                                           # exact top 10

crops: beside the seed's way, which blends the whole picture in float for each mask, cuts, and goes through Pillow and the
model's transform. models: end to end (decoding, cropping, the model, writing, sealing) beside the model alone, both in
batches of 16, in processor time, the model alone right before and right after. store: an output of many rows is made without
a model; then what it costs beside its payload, reading one vector, and an unchanged rerun.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import index_open
import numpy as np
import reader_data as data
import torch
from PIL import Image

from penstock import open_store
from penstock.embed import EmbedConfig, embed, open_input, plan_embed
from penstock.geometry.segment_crops import cut_segment
from penstock.models.embedders import open_embedder
from penstock.models.protocols import PictureTransform
from penstock.models.transform import picture_pixels
from penstock.report import Report
from penstock.schema import Record, Schema
from penstock.stages.embed import attributes_of
from penstock.stages.embed_pixels import FastPixels
from penstock.store.commit import Commit
from penstock.store.sink import StoreSink
from penstock.store.write import runs_of

MODELS = ["tiny:size=224,dim=768", "openclip:ViT-B-16-SigLIP@random"]
SECTIONS = ("crops", "models", "store")
BATCH, BLOCK = 16, 1 << 15
HW, COUNT, PAD, ALPHA = (480, 640), 11, 0.1, 0.3


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of COCO's usual size, and ids 1..11 of regions of many sizes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (30, 40, 3), np.uint8)
    picture = np.array(Image.fromarray(small).resize(HW[::-1], Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    far = [
        ((rows - rng.integers(HW[0])) ** 2 + (columns - rng.integers(HW[1])) ** 2) * np.exp(rng.normal(0, 1.2))
        for _ in range(COUNT)
    ]
    return picture, np.argmin(far, axis=0) + 1


def seed_way(picture: np.ndarray, ids: np.ndarray, transform: PictureTransform) -> torch.Tensor:
    """(n, 3, h, w), one segment after the other."""
    image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    found = []
    for number in np.unique(ids).tolist():
        mask = torch.from_numpy(ids == number)
        blended = torch.where(mask[None], image, image * ALPHA + 0.5 * (1 - ALPHA))
        rows, columns = torch.where(mask)
        top, bottom = int(rows.min()), int(rows.max()) + 1
        left, right = int(columns.min()), int(columns.max()) + 1
        high, wide = int(PAD * (bottom - top)), int(PAD * (right - left))
        crop = blended[:, max(0, top - high) : bottom + high, max(0, left - wide) : right + wide]
        pixels = (crop.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        found.append(torch.from_numpy(picture_pixels(Image.fromarray(pixels), transform)))
    return torch.stack(found)


def least(works: list[Callable[[], object]], repetitions: int) -> list[float]:
    """Seconds of processor time of each, the least of calls in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repetitions):
        for work, found in zip(works, times, strict=True):
            begin = time.process_time()
            work()
            found.append(time.process_time() - begin)
    return [min(found) for found in times]


def crops(repetitions: int) -> list[str]:
    """Lines about the crop path."""
    transform = PictureTransform(size_hw=(224, 224))
    fast = FastPixels(transform, ALPHA, device="cpu", count=16)
    picture, ids = scene(0)
    numbers = np.unique(ids).tolist()

    def ours() -> torch.Tensor:
        cuts = [cut_segment(picture, ids == number, PAD) for number in numbers]
        return fast([(cut.pixels, cut.inside) for cut in cuts])

    off = float((ours() - seed_way(picture, ids, transform)).abs().max() * 127.5)
    seconds = least([ours, lambda: seed_way(picture, ids, transform)], repetitions)
    rates = [len(numbers) / each for each in seconds]
    return [
        f"| crops, segments/s | {rates[0]:,.0f} |",
        f"| crops the seed's way, segments/s | {rates[1]:,.0f} |",
        f"| ratio (largest difference {off:.0f} of 255) | {rates[0] / rates[1]:.1f} |",
    ]


def pictures(root: Path, count: int) -> Path:
    """COCO panoptic of scenes, with files of the size of COCO's."""
    images, annotations = [], []
    for number in range(1, count + 1):
        picture, ids = scene(number)
        name = f"{number:012d}"
        data.write(root / "val2017" / f"{name}.jpg", data.jpeg(picture))
        maps = ids.astype(np.uint32).view(np.uint8).reshape(*HW, 4)[..., :3]
        data.save_png(root / "panoptic_val2017" / f"{name}.png", maps)
        segments = [
            {"id": one, "category_id": 1, "iscrowd": 0, "area": int((ids == one).sum()),
             "bbox": [int(value) for value in data.box(ids == one)]}
            for one in np.unique(ids).tolist()
        ]  # fmt: skip
        images.append({"id": number, "file_name": f"{name}.jpg", "height": HW[0], "width": HW[1]})
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "thing", "supercategory": "any", "isthing": 1}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    data.write(root / "annotations" / "panoptic_val2017.json", json.dumps(content))
    return root


def whole(folder: Path, spec: str, count: int) -> list[str]:
    """Lines about a whole run by a model. What comes before the end of the first batch is opening, and told apart."""
    path = pictures(folder / "coco", count) if not (folder / "coco").exists() else folder / "coco"
    config = EmbedConfig(cache_dir=folder / f"out_{len(list(folder.iterdir()))}", data_path=path, embedder_spec=spec,
                         batch_size=4, num_workers=0, device="cpu", durability="process")  # fmt: skip
    begin = time.process_time()
    embedder = open_embedder(spec, device="cpu")
    opening = time.process_time() - begin
    pixels = torch.rand((BATCH, 3, *embedder.transform.size_hw), generator=torch.Generator().manual_seed(0))
    embedder.embed(pixels)
    calls = max(1, min(20, count * COUNT // BATCH // 2))
    reached: list[tuple[float, int]] = []

    def note(report: Report) -> None:
        reached.append((time.process_time(), report.done))

    before = seconds_of(lambda: embedder.embed(pixels), calls)
    report = embed(config, on_progress=note)
    end = time.process_time()
    after = seconds_of(lambda: embedder.embed(pixels), calls)
    (first, warm), model = reached[0], 2 * BATCH / (before + after)
    run = (report.done - warm) / (end - first)
    assert not report.failed
    return [
        f"| {spec}: opened, s | {opening:.2f} |",
        f"| end to end, {report.done - warm} segments, segments/s | {run:,.2f} |",
        f"| the model alone, before and after, segments/s | {BATCH / before:,.2f}, {BATCH / after:,.2f} |",
        f"| ratio | {run / model:.2f} |",
    ]


def seconds_of(work: Callable[[], object], calls: int) -> float:
    """Seconds of processor time of a call, in the mean."""
    begin = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - begin) / calls


def store(folder: Path, rows: int) -> Iterator[str]:
    """Lines about an output of many rows."""
    coco = Path(index_open.coco_panoptic(folder / "many", -(-rows // index_open.SEGMENTS)).partition(":")[2])
    for line in json.loads((coco / "annotations" / "panoptic_train2017.json").read_text())["annotations"]:
        (coco / "panoptic_train2017" / line["file_name"]).touch()  # a rerun looks at size and time of each
        (coco / "train2017" / line["file_name"].replace(".png", ".jpg")).touch()
    config = EmbedConfig(cache_dir=folder / "vectors", data_path=coco, embedder_spec=MODELS[0], num_workers=0,
                         device="cpu", durability="process")  # fmt: skip
    fill(config)
    vectors = open_store(config.cache_dir)
    files = [(path.name, path.stat().st_size) for path in config.cache_dir.rglob("*") if path.is_file()]
    sizes: dict[str, int] = {}
    for name, size in files:
        sizes[name] = sizes.get(name, 0) + size
    fixed = [field for field in vectors.schema.fields if not field.is_variable]
    payload = len(vectors) * sum(field.numpy_dtype.itemsize * int(np.prod(field.shape)) for field in fixed)
    payload += sum(size for name, size in sizes.items() if name.endswith((".blob", "keys.txt")))
    yield f"| {len(vectors):,} rows, payload (values and keys), bytes a row | {payload / len(vectors):,.0f} |"
    for name, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        yield f"| {name}, bytes a row | {size / len(vectors):,.1f} |"
    yield f"| all that is not payload, of the payload | {sum(sizes.values()) / payload - 1:.1%} |"
    vectors.warm(["embedding"])
    places = np.random.default_rng(0).integers(0, len(vectors), 20_000).tolist()
    views = vectors.column_views("embedding")
    split = len(views[0])
    read = least([lambda: [views[row // split][row % split] for row in places]], 5)[0] / len(places)
    record = least([lambda: [vectors.read(row, ["embedding"]) for row in places]], 5)[0] / len(places)
    yield f"| one vector from the mapped column, us | {1e6 * read:.2f} |"
    yield f"| one vector by `store.read`, us | {1e6 * record:.2f} |"
    for what, work in (("unchanged rerun", lambda: embed(config)), ("dry run of it", lambda: plan_embed(config))):
        begin = time.process_time()
        seconds, found = index_open.timed(work)
        used = time.process_time() - begin
        assert not isinstance(found, Report) or found.notes["unchanged"]
        yield f"| {what}, {len(vectors):,} segments, s (of the processor) | {seconds:.1f} ({used:.1f}) |"


def fill(config: EmbedConfig) -> None:
    """The output of a finished run, with made-up vectors."""
    segments, stage = open_input(config)
    sink = StoreSink(config.cache_dir, stage.schema, identity=stage.identity(), attributes=attributes_of(stage),
                     durability="process")  # fmt: skip
    writer, rng, rest = sink.writer(), np.random.default_rng(0), blank(stage.schema)
    admissions = sink.admit(list(segments.candidates()))
    for start in range(0, len(admissions), BLOCK):
        some = admissions[start : start + BLOCK]
        tickets = [ticket for admission in some if admission.ticket and (ticket := sink.enter(admission.ticket).ticket)]
        values = rng.standard_normal((len(tickets), stage.embedder.dim), np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        encoded = [writer.encode(rest | {"embedding": value}) for value in values.astype(np.float16)]
        for run, rows in runs_of(list(zip(tickets, encoded, strict=True))):
            for ticket, written in zip(run, writer.write_rows(run[0].folder, run[0].position, rows), strict=True):
                sink.commit(Commit(ticket=ticket, written=written))
    sink.close(complete=True)


def blank(schema: Schema) -> Record:
    """A record of a schema: texts of five letters, numbers zero."""
    return {
        field.name: "thing" if field.dtype == "str" else np.zeros(field.shape, field.dtype)
        for field in schema.fields
    }  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--repetitions", type=int, default=15, help="of the crops")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--onnx", type=Path, help="a model of yours as ONNX, too")
    parser.add_argument("--pictures", type=int, default=20, help="of eleven segments each, for each model")
    parser.add_argument("--rows", type=int, default=1_301_157, help="of the store: COCO's training set")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.machine()}, one thread\n\n| what | value |\n| --- | --- |")
    specs = [*arguments.models, *([f"onnx:{arguments.onnx}"] if arguments.onnx else [])]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PENSTOCK_CACHE_DIR"] = str(Path(folder) / "cache")
        lines: dict[str, Callable[[], Iterator[str]]] = {
            "crops": lambda: iter(crops(arguments.repetitions)),
            "models": lambda: (line for spec in specs for line in whole(Path(folder), spec, arguments.pictures)),
            "store": lambda: store(Path(folder), arguments.rows),
        }
        for section in SECTIONS:
            for line in lines[section]() if section in arguments.only else ():
                print(line, flush=True)


if __name__ == "__main__":
    main()
