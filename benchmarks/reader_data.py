"""Datasets in genuine layout, made from the example photos at real picture sizes: what benchmarks/readers.py reads."""

import csv
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import av
import lmdb
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))
HW = (480, 640)
HD = (720, 1280)


def pictures(count: int, hw: tuple[int, int]) -> Iterator[np.ndarray]:
    """Windows of the example photos, (H, W, 3) uint8, no two alike."""
    rng = np.random.default_rng(0)
    photos = [np.asarray(Image.open(path).convert("RGB").resize((hw[1] * 3 // 2, hw[0] * 3 // 2))) for path in PHOTOS]
    for number in range(count):
        y, x = rng.integers(0, hw[0] // 2), rng.integers(0, hw[1] // 2)
        yield photos[number % len(photos)][y : y + hw[0], x : x + hw[1]]


def jpeg(pixels: np.ndarray) -> bytes:
    """JPEG of quality 90, colours halved: what datasets are made of."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> None:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def save_png(path: Path, array: np.ndarray) -> None:
    """A PNG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def objects(number: int, hw: tuple[int, int], count: int = 8) -> list[np.ndarray]:
    """Ellipses as masks, (H, W) uint8."""
    rng = np.random.default_rng(number)
    y, x = np.ogrid[: hw[0], : hw[1]]
    found = []
    for _ in range(count):
        cy, cx = rng.uniform(0.2, 0.8, 2) * hw
        ry, rx = rng.uniform(0.05, 0.18, 2) * hw
        found.append((((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8))
    return found


def outline(mask: np.ndarray) -> list[float]:
    """A polygon of 40 corners about an ellipse's mask."""
    rows, columns = np.nonzero(mask)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = columns.mean() + np.cos(angle) * (np.ptp(columns) / 2)
    y = rows.mean() + np.sin(angle) * (np.ptp(rows) / 2)
    return [round(float(value), 2) for value in np.stack([x, y], 1).ravel()]


def rle(mask: np.ndarray) -> dict[str, object]:
    """Compressed COCO RLE with text counts."""
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box(mask: np.ndarray) -> list[float]:
    """XYWH of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]


def folder(root: Path, count: int) -> None:
    """Plain pictures."""
    for number, pixels in enumerate(pictures(count, HW)):
        write(root / f"{number:06d}.jpg", jpeg(pixels))


def coco_instances(root: Path, count: int) -> None:
    """COCO instances, eight polygons a picture."""
    images, annotations = [], []
    for number, pixels in enumerate(pictures(count, HW), 1):
        write(root / "val2017" / f"{number:012d}.jpg", jpeg(pixels))
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": HW[0], "width": HW[1]})
        for place, mask in enumerate(objects(number, HW)):
            annotations.append({"id": number * 100 + place, "image_id": number, "category_id": 1 + place % 3, "iscrowd": 0,
                                "area": int(mask.sum()), "bbox": box(mask), "segmentation": [outline(mask)]})  # fmt: skip
    categories = [{"id": number, "name": f"class {number}", "supercategory": "any"} for number in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write(root / "annotations" / "instances_val2017.json", json.dumps(content))


def coco_panoptic(root: Path, count: int) -> None:
    """COCO panoptic, up to nine segments a picture."""
    images, annotations = [], []
    for number, pixels in enumerate(pictures(count, HW), 1):
        write(root / "val2017" / f"{number:012d}.jpg", jpeg(pixels))
        ids = np.full(HW, 70_000, np.uint32)
        for place, mask in enumerate(objects(number, HW)):
            ids[mask > 0] = 70_001 + place * 300
        save_png(root / "panoptic_val2017" / f"{number:012d}.png", ids.view(np.uint8).reshape(*HW, 4)[..., :3])
        segments = []
        for segment in np.unique(ids).tolist():
            mask = ids == segment
            segments.append({"id": segment, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
                             "bbox": [int(value) for value in box(mask)]})  # fmt: skip
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": HW[0], "width": HW[1]})
        annotations.append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "thing", "supercategory": "any", "isthing": 1}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write(root / "annotations" / "panoptic_val2017.json", json.dumps(content))


def refcoco(root: Path, count: int) -> None:
    """RefCOCO in REFER's layout: two references of two sentences a picture."""
    coco_instances(root / "coco", count)
    content = json.loads((root / "coco" / "annotations" / "instances_val2017.json").read_text())
    names, refs = {}, []
    for image in content["images"]:
        names[image["id"]] = f"COCO_train2014_{image['id']:012d}.jpg"
        target = root / "images" / "mscoco" / "images" / "train2014" / names[image["id"]]
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "coco" / "val2017" / image["file_name"]).rename(target)
        image["file_name"] = names[image["id"]]
    for annotation in content["annotations"]:
        if annotation["id"] % 100 < 2:
            ref = len(refs)
            sentences = [
                {"sent_id": ref * 2 + n, "sent": f"thing {n}", "raw": f"Thing {n}", "tokens": ["thing", str(n)]}
                for n in (0, 1)
            ]
            refs.append({"ref_id": ref, "ann_id": annotation["id"], "image_id": annotation["image_id"], "split": "train",
                         "category_id": 1, "file_name": names[annotation["image_id"]], "sentences": sentences,
                         "sent_ids": [ref * 2, ref * 2 + 1]})  # fmt: skip
    write(root / "refcoco" / "instances.json", json.dumps(content))
    write(root / "refcoco" / "refs(unc).p", pickle.dumps(refs, protocol=2))


def openimages(root: Path, count: int) -> None:
    """Open Images: eight mask PNGs a picture."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        [
            "MaskPath",
            "ImageID",
            "LabelName",
            "BoxID",
            "BoxXMin",
            "BoxXMax",
            "BoxYMin",
            "BoxYMax",
            "PredictedIoU",
            "Clicks",
        ]
    )
    for number, pixels in enumerate(pictures(count, HW)):
        image = f"{number:016x}"
        write(root / "train" / f"{image}.jpg", jpeg(pixels))
        for place, mask in enumerate(objects(number, HW)):
            name = f"{image}_m01g317_{place:08x}.png"
            save_png(root / "masks" / name, mask * 255)
            x, y, w, h = box(mask)
            table.writerow(
                [
                    name,
                    image,
                    "/m/01g317",
                    f"{place:08x}",
                    x / HW[1],
                    (x + w) / HW[1],
                    y / HW[0],
                    (y + h) / HW[0],
                    0.9,
                    "",
                ]
            )
    write(root / "annotations" / "train-annotations-object-segmentation.csv", text.getvalue())
    write(root / "annotations" / "class-descriptions-boxable.csv", "/m/01g317,Person\n")


def sa1b(root: Path, count: int) -> None:
    """SA-1B: sixty masks a picture of 1500 x 2250."""
    for number, pixels in enumerate(pictures(count, (1500, 2250)), 1):
        masks = objects(number, (1500, 2250), 60)
        write(root / f"sa_{number}.jpg", jpeg(pixels))
        annotations = []
        for place, mask in enumerate(masks):
            x, y, w, h = box(mask)
            annotations.append({"id": place, "segmentation": rle(mask), "bbox": [x, y, w - 1, h - 1], "area": int(mask.sum()),
                                "predicted_iou": 0.9, "stability_score": 0.95, "point_coords": [[x, y]],
                                "crop_box": [0, 0, 2250, 1500]})  # fmt: skip
        image = {"image_id": number, "width": 2250, "height": 1500, "file_name": f"sa_{number}.jpg"}
        write(root / f"sa_{number}.json", json.dumps({"image": image, "annotations": annotations}))


def _lines(boxes: np.ndarray) -> str:
    return "".join(",".join(f"{value:.0f}" for value in row) + "\n" for row in boxes)


def _boxes(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return np.cumsum(rng.integers(-2, 3, (count, 4)), 0) + np.array([400, 300, 120, 90])


def lasot(root: Path, count: int) -> None:
    """LaSOT: two sequences of HD pictures."""
    for name in ("car-1", "dog-2"):
        sequence = root / name.partition("-")[0] / name
        for number, pixels in enumerate(pictures(count // 2, HD), 1):
            write(sequence / "img" / f"{number:08d}.jpg", jpeg(pixels))
        write(sequence / "groundtruth.txt", _lines(_boxes(count // 2)))
        for flags in ("full_occlusion", "out_of_view"):
            write(sequence / f"{flags}.txt", ",".join("0" * (count // 2)))
        write(sequence / "nlp.txt", "a thing that moves")


def lasot_lmdb(root: Path, count: int) -> None:
    """The same as LMDB."""
    lasot(root / "files", count)
    with lmdb.open(str(root / "lmdb"), map_size=1 << 32) as environment, environment.begin(write=True) as transaction:
        for path in sorted((root / "files").rglob("*")):
            if path.is_file():
                transaction.put(str(path.relative_to(root / "files")).encode(), path.read_bytes())


def got10k(root: Path, count: int) -> None:
    """GOT-10k: two sequences."""
    names = ["GOT-10k_Train_000001", "GOT-10k_Train_000002"]
    for name in names:
        for number, pixels in enumerate(pictures(count // 2, HD), 1):
            write(root / name / f"{number:08d}.jpg", jpeg(pixels))
        write(root / name / "groundtruth.txt", _lines(_boxes(count // 2)))
        write(root / name / "absence.label", "0\n" * (count // 2))
        write(root / name / "cover.label", "8\n" * (count // 2))
        write(root / name / "cut_by_image.label", "0\n" * (count // 2))
        write(root / name / "meta_info.ini", "[METAINFO]\nanno_fps: 10Hz\nobject_class: car\nmotion_class: running\n")
    write(root / "list.txt", "\n".join(names) + "\n")


def trackingnet(root: Path, count: int) -> None:
    """TrackingNet: two videos of TRAIN_0."""
    for video in ("aaaaaaaaaaa_0", "bbbbbbbbbbb_1"):
        for number, pixels in enumerate(pictures(count // 2, HD)):
            write(root / "TRAIN_0" / "frames" / video / f"{number}.jpg", jpeg(pixels))
        write(root / "TRAIN_0" / "anno" / f"{video}.txt", _lines(_boxes(count // 2)))


def imagenet_vid(root: Path, count: int) -> None:
    """ImageNet VID: two videos with one object each."""
    for video in ("ILSVRC2015_train_00000001", "ILSVRC2015_train_00000002"):
        level = Path("VID/train/ILSVRC2015_VID_train_0000") / video
        for number, (pixels, where) in enumerate(zip(pictures(count // 2, HD), _boxes(count // 2), strict=True)):
            write(root / "Data" / level / f"{number:06d}.JPEG", jpeg(pixels))
            x, y, w, h = where.tolist()
            write(root / "Annotations" / level / f"{number:06d}.xml",
                  f"<annotation><folder>{video}</folder><filename>{number:06d}</filename><size><width>{HD[1]}</width>"
                  f"<height>{HD[0]}</height></size><object><trackid>0</trackid><name>n02958343</name><bndbox><xmax>{x + w}"
                  f"</xmax><xmin>{x}</xmin><ymax>{y + h}</ymax><ymin>{y}</ymin></bndbox><occluded>0</occluded>"
                  f"<generated>0</generated></object></annotation>")  # fmt: skip


def sav(root: Path, count: int) -> None:
    """SA-V, train layout: one video of `count` frames, three masklets at every fourth."""
    name = "sav_000001"
    path = root / "sav_train" / "sav_000" / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = HD[1], HD[0], "yuv420p"
        for pixels in pictures(count, HD):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    annotated = len(range(0, count, 4))
    masklet = [[rle(mask) for mask in objects(number, HD, 3)] for number in range(annotated)]
    content = {"video_id": name, "video_duration": count / 24, "video_frame_count": count, "video_height": HD[0],
               "video_width": HD[1], "video_resolution": 0, "video_environment": "Indoor", "video_split": "train",
               "masklet": masklet, "masklet_id": [0, 1, 2], "masklet_size_rel": [0.1] * 3, "masklet_size_abs": [1.0] * 3,
               "masklet_size_bucket": ["m"] * 3, "masklet_visibility_changes": [0] * 3, "masklet_first_appeared_frame": [0.0] * 3,
               "masklet_frame_count": [annotated] * 3, "masklet_edited_frame_count": [0] * 3, "masklet_type": ["manual"] * 3,
               "masklet_stability_score": [None] * 3, "masklet_num": 3}  # fmt: skip
    write(path.with_name(f"{name}_manual.json"), json.dumps(content))


def youtube_vis(root: Path, count: int) -> None:
    """YouTube-VIS: one video with three objects."""
    names = [f"video0/{number:05d}.jpg" for number in range(count)]
    masks = [objects(number, HD, 3) for number in range(count)]
    for name, pixels in zip(names, pictures(count, HD), strict=True):
        write(root / "train" / "JPEGImages" / name, jpeg(pixels))
    annotations = [
        {"id": place + 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "height": HD[0], "width": HD[1], "length": count,
         "segmentations": [rle(each[place]) for each in masks], "bboxes": [box(each[place]) for each in masks],
         "areas": [int(each[place].sum()) for each in masks]}
        for place in range(3)
    ]  # fmt: skip
    videos = [{"id": 1, "height": HD[0], "width": HD[1], "length": count, "file_names": names}]
    content = {"videos": videos, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    write(root / "train" / "instances.json", json.dumps(content))


def davis(root: Path, count: int) -> None:
    """DAVIS 2017: one video, three ids a frame."""
    for number, pixels in enumerate(pictures(count, HD)):
        write(root / "JPEGImages" / "480p" / "bear" / f"{number:05d}.jpg", jpeg(pixels))
        ids = np.zeros(HD, np.uint8)
        for place, mask in enumerate(objects(number, HD, 3), 1):
            ids[mask > 0] = place
        picture = Image.fromarray(ids)
        picture.putpalette((np.arange(768) % 256).astype(np.uint8).tobytes())
        path = root / "Annotations" / "480p" / "bear" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def scenes(root: Path, count: int) -> None:
    """Two scenes with .pth id maps."""
    for scene in ("room_a", "room_b"):
        for number, pixels in enumerate(pictures(count // 2, (690, 920))):
            write(root / scene / "images" / f"frame_{number:06d}.jpg", jpeg(pixels))
            ids = np.zeros((690, 920), np.int64)
            for place, mask in enumerate(objects(number, (690, 920), 20), 1):
                ids[mask > 0] = place
            path = root / scene / "obj_ids" / f"frame_{number:06d}.jpg.pth"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(torch.from_numpy(ids), path)


def masklets(root: Path, count: int) -> None:
    """Pairs of 512 x 512 BGR float32 frames and masks."""
    root.mkdir(parents=True, exist_ok=True)
    found = list(pictures(count, (512, 512)))
    for number in range(count // 2):
        first, second = found[2 * number : 2 * number + 2]
        mask = objects(number, (512, 512), 1)[0].astype(np.float32) * 255
        np.savez(root / f"masklet_data_{number:05d}.npz", frame1=first[..., ::-1].astype(np.float32), mask1=mask,
                 frame2=second[..., ::-1].astype(np.float32), mask2=mask)  # fmt: skip
