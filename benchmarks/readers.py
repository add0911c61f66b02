"""Rows a second of every reader, beside the way its dataset is usually read: same rows, same pixels, one run.

    python benchmarks/readers.py [--pictures 32] [--repetitions 5] [--only lasot,sav]

Both read the same rows in the same random order, one thread, warm cache, taking turns. Before that, every row of both is
compared: pictures and masks bit for bit. `group` reads the rows of one group at once, as a job over all segments of a
picture does; the usual loader has no such call. `boxes` reads boxes without pictures.
"""

import argparse
import json
import os
import pickle
import platform
import shutil
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path

import cv2
import lmdb
import numpy as np
import reader_data as data
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from penstock.readers.base import Reader
from penstock.registry import open_source
from penstock.schema import Record

Row = tuple[np.ndarray, ...]
Usual = Callable[[Record], Row]


def pil(path: Path | str) -> np.ndarray:
    """As torchvision's default loader: Pillow, converted to RGB."""
    with open(path, "rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


def bgr(path: Path | str) -> np.ndarray:
    """As trackers read: OpenCV, channels turned round."""
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION), cv2.COLOR_BGR2RGB)


def quiet_coco(path: Path) -> COCO:
    """pycocotools without its prints."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return COCO(str(path))


def plain(root: Path) -> Usual:
    """ImageFolder."""
    return lambda row: (pil(root / str(row["path"])),)


def instances(root: Path) -> Usual:
    """torchvision's CocoDetection, one annotation of it: pycocotools and Pillow."""
    coco = quiet_coco(root / "annotations" / "instances_val2017.json")

    def read(row: Record) -> Row:
        annotation = coco.loadAnns(int(row["annotation_id"]))[0]
        image = coco.loadImgs(annotation["image_id"])[0]
        return pil(root / "val2017" / image["file_name"]), coco.annToMask(annotation)

    return read


def panoptic(root: Path) -> Usual:
    """panopticapi's rule."""

    def read(row: Record) -> Row:
        rgb = pil(root / "panoptic_val2017" / f"{row['image_id']}.png").astype(np.uint32)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256 * 256 * rgb[..., 2]
        return pil(root / "val2017" / f"{row['image_id']}.jpg"), (ids == int(row["segment_id"])).astype(np.uint8)

    return read


def referred(root: Path) -> Usual:
    """REFER with pycocotools."""
    coco = quiet_coco(root / "refcoco" / "instances.json")
    refs = {ref["ref_id"]: ref for ref in pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())}

    def read(row: Record) -> Row:
        annotation = coco.loadAnns(refs[int(row["ref_id"])]["ann_id"])[0]
        image = coco.loadImgs(annotation["image_id"])[0]
        return pil(root / "images/mscoco/images/train2014" / image["file_name"]), coco.annToMask(annotation)

    return read


def segmented(root: Path) -> Usual:
    """Open Images by Pillow: photo, and the mask stretched to it."""

    def read(row: Record) -> Row:
        image = pil(root / str(row["path"]))
        name = f"{row['image_id']}_m01g317_{row['box_id']}.png"
        mask = Image.open(root / "masks" / name).convert("L").resize(image.shape[1::-1], Image.Resampling.NEAREST)
        return image, (np.asarray(mask) > 0).astype(np.uint8)

    return read


def segment_anything(root: Path) -> Usual:
    """SA-1B as its page shows: json, OpenCV, pycocotools; the JSON parsed for every row."""

    def read(row: Record) -> Row:
        content = json.loads((root / f"{row['image_id']}.json").read_text())
        annotation = next(each for each in content["annotations"] if each["id"] == int(row["annotation_id"]))
        return bgr(root / f"{row['image_id']}.jpg"), coco_mask.decode(annotation["segmentation"])

    return read


def sequence_lasot(root: Path) -> Usual:
    """pytracking: the annotation is parsed for every sample."""

    def read(row: Record) -> Row:
        folder = root / str(row["category"]) / str(row["video"])
        boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",", dtype=np.float32)
        for flags in ("full_occlusion", "out_of_view"):
            np.loadtxt(folder / f"{flags}.txt", delimiter=",")
        frame = int(row["frame"])
        return bgr(folder / "img" / f"{frame + 1:08d}.jpg"), boxes[frame] - np.array([1, 1, 0, 0], np.float32)

    return read


def sequence_lasot_lmdb(root: Path) -> Usual:
    """The same out of an LMDB."""
    copy = shutil.copytree(root, root.with_name("usual"))  # LMDB opens a folder once per process
    environment = lmdb.open(str(copy), readonly=True, lock=False, readahead=False)

    def read(row: Record) -> Row:
        folder = f"{row['category']}/{row['video']}"
        with environment.begin() as transaction:
            text = transaction.get(f"{folder}/groundtruth.txt".encode()).decode()
            content = transaction.get(f"{folder}/img/{int(row['frame']) + 1:08d}.jpg".encode())
        boxes = np.array([line.split(",") for line in text.split()], np.float32)
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), boxes[int(row["frame"])] - np.array([1, 1, 0, 0], np.float32)

    return read


def sequence_got10k(root: Path) -> Usual:
    """pytracking's reader of GOT-10k."""

    def read(row: Record) -> Row:
        folder = root / str(row["video"])
        boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",", dtype=np.float32)
        for flags in ("absence", "cover"):
            np.loadtxt(folder / f"{flags}.label")
        return bgr(folder / f"{int(row['frame']) + 1:08d}.jpg"), boxes[int(row["frame"])]

    return read


def sequence_trackingnet(root: Path) -> Usual:
    """pytracking's reader of TrackingNet."""

    def read(row: Record) -> Row:
        folder = root / "TRAIN_0"
        boxes = np.loadtxt(folder / "anno" / f"{row['video']}.txt", delimiter=",", dtype=np.float32)
        return bgr(folder / "frames" / str(row["video"]) / f"{int(row['frame'])}.jpg"), boxes[int(row["frame"])]

    return read


def sequence_vid(root: Path) -> Usual:
    """One XML and one picture a row."""

    def read(row: Record) -> Row:
        path = root / str(row["path"])
        xml = Path(str(path).replace("/Data/", "/Annotations/")).with_suffix(".xml")
        corners = ElementTree.parse(xml).getroot().find("object/bndbox")
        assert corners is not None
        left, top, right, bottom = (float(corners.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax"))
        return bgr(path), np.array([left, top, right - left, bottom - top], np.float32)

    return read


def video_sav(root: Path) -> Usual:
    """OpenCV's seek by frame number, and pycocotools; JSON parsed once per video."""
    content = json.loads((root / "sav_train/sav_000/sav_000001_manual.json").read_text())
    capture = cv2.VideoCapture(str(root / "sav_train/sav_000/sav_000001.mp4"))

    def read(row: Record) -> Row:
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(row["frame"]))
        _, picture = capture.read()
        encoded = content["masklet"][int(row["frame"]) // 4][int(str(row["object"]))]
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), coco_mask.decode(encoded)

    return read


def video_instances(root: Path) -> Usual:
    """YouTube-VIS: Pillow and pycocotools."""
    content = json.loads((root / "train/instances.json").read_text())
    annotations = {str(each["id"]): each for each in content["annotations"]}

    def read(row: Record) -> Row:
        frame = int(row["frame"])
        name = content["videos"][0]["file_names"][frame]
        mask = coco_mask.decode(annotations[str(row["object"])]["segmentations"][frame])
        return pil(root / "train" / "JPEGImages" / name), mask

    return read


def palettes(root: Path) -> Usual:
    """DAVIS: Pillow twice."""

    def read(row: Record) -> Row:
        path = root / str(row["path"])
        annotation = Path(str(path).replace("JPEGImages", "Annotations")).with_suffix(".png")
        return pil(path), np.asarray(Image.open(annotation))

    return read


def id_maps(root: Path) -> Usual:
    """Scenes: Pillow and torch.load."""

    def read(row: Record) -> Row:
        path = root / str(row["path"])
        ids = torch.load(path.parents[1] / "obj_ids" / f"{path.name}.pth", weights_only=True)
        return pil(path), ids.numpy()

    return read


def pairs(root: Path) -> Usual:
    """np.load of the pair; one of its views is kept."""

    def read(row: Record) -> Row:
        path, view = root / str(row["path"]), int(row["view"])
        with np.load(path) as content:
            return content[f"frame{view}"][..., ::-1].astype(np.uint8), (content[f"mask{view}"] > 127).astype(np.uint8)

    return read


CASES: dict[str, tuple[Callable[[Path, int], object], str, Callable[[Path], Usual], tuple[str, ...], str]] = {
    "folder": (data.folder, "{}", plain, ("image",), "Pillow"),
    "coco-instances": (data.coco_instances, "{}", instances, ("image", "mask"), "pycocotools + Pillow"),
    "coco-panoptic": (data.coco_panoptic, "{}", panoptic, ("image", "mask"), "panopticapi's rule + Pillow"),
    "refcoco": (data.refcoco, "{}", referred, ("image", "mask"), "REFER + pycocotools + Pillow"),
    "openimages": (data.openimages, "{}", segmented, ("image", "mask"), "Pillow"),
    "sa1b": (data.sa1b, "{}", segment_anything, ("image", "mask"), "json + OpenCV + pycocotools"),
    "sav": (data.sav, "{}", video_sav, ("image", "mask"), "OpenCV seek + pycocotools"),
    "masklets": (data.masklets, "{}", pairs, ("image", "mask"), "np.load"),
    "youtube-vis": (data.youtube_vis, "{}", video_instances, ("image", "mask"), "pycocotools + Pillow"),
    "davis": (data.davis, "{}", palettes, ("image", "ids"), "Pillow"),
    "scenes": (data.scenes, "{}", id_maps, ("image", "ids"), "Pillow + torch.load"),
    "lasot": (data.lasot, "{}", sequence_lasot, ("image", "box"), "np.loadtxt + OpenCV"),
    "lasot-lmdb": (data.lasot_lmdb, "{}/lmdb", sequence_lasot_lmdb, ("image", "box"), "lmdb + OpenCV"),
    "got10k": (data.got10k, "{}", sequence_got10k, ("image", "box"), "np.loadtxt + OpenCV"),
    "trackingnet": (data.trackingnet, "{}", sequence_trackingnet, ("image", "box"), "np.loadtxt + OpenCV"),
    "imagenet-vid": (data.imagenet_vid, "{}", sequence_vid, ("image", "box"), "ElementTree + OpenCV"),
}
"""Reader -> maker of its data, its path, the usual loader, the fields compared, the usual loader's name."""


def measure(name: str, folder: Path, pictures: int, repetitions: int) -> list[str]:
    """The cells of one reader's line."""
    make, path, usual_loader, fields, usual_name = CASES[name]
    make(folder, pictures)
    root = Path(path.format(folder))
    source = open_source(f"{name}:{root}")
    assert isinstance(source, Reader)
    pixels = [each.name for each in source.schema.fields if each.kind in ("image", "mask", "ids")]
    cheap = [each for each in source.schema if each not in pixels]
    rows = np.random.default_rng(0).permutation(len(source))[:256].tolist()
    about = {row: source.read(row, cheap) for row in rows}
    usual = usual_loader(root)
    for row in rows:
        ours = source.read(row, fields)
        for field, theirs in zip(fields, usual(about[row]), strict=True):
            np.testing.assert_array_equal(ours[field], theirs, err_msg=f"{name}: {source.keys[row]}: {field}")
    seconds: dict[str, list[float]] = {"ours": [], "usual": [], "group": [], "boxes": []}
    groups = [source.groups[source.group_of(row)] for row in rows[: max(1, len(rows) // 16)]]
    for _ in range(repetitions):
        seconds["ours"].append(timed(lambda: [source.read(row, fields) for row in rows]) / len(rows))
        seconds["usual"].append(timed(lambda: [usual(about[row]) for row in rows]) / len(rows))
        together = [list(range(group.start, min(group.stop, group.start + 64))) for group in groups]
        count = sum(map(len, together))
        seconds["group"].append(timed(lambda: [source.__getitems__(group) for group in together]) / count)  # noqa: B023
        seconds["boxes"].append(timed(lambda: [source.read(row, cheap) for row in rows]) / len(rows))
    rates = {what: 1 / float(np.median(found)) for what, found in seconds.items()}
    return [name, usual_name, f"{rates['ours']:,.0f}", f"{rates['usual']:,.0f}", f"{rates['ours'] / rates['usual']:.2f}",
            f"{rates['group']:,.0f}", f"{rates['boxes']:,.0f}"]  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    wanted = arguments.only.split(",") if arguments.only else list(CASES)
    print(
        f"{date.today()}, {platform.machine()}, one thread, {arguments.pictures} pictures, pixels compared bit for bit\n"
    )
    print("| reader | usually | rows/s | usual rows/s | ratio | rows/s by group | annotations/s |")
    print("| --- " * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PENSTOCK_CACHE_DIR"] = str(Path(folder) / "cache")
        for name in wanted:
            cells = measure(name, Path(folder) / name, arguments.pictures, arguments.repetitions)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
