"""The bytes of layout v1, by a reader that shares no code with penstock: every number below is of the format's description."""

import json
from pathlib import Path

import numpy as np
import pytest

from penstock.cli import main
from penstock.testing import Truth, make_sample, write_tar

SIZE_HW = (512, 1024)
"""Cells of the 256x256 masks are 2 x 4 of these pixels: averages are exact in binary."""

FILES = {
    "images": 3_145_728,
    "features": 5_242_880,
    "edge_maps": 70_656,
    "weight_maps": 172_032,
    "bboxes": 16,
    "masks": 65_536,
    "metadata": 20,
}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Truth]]:
    """A TAR of one row with a box, one without, one with three; pictures are PNG, so that pixels are known exactly."""
    path = tmp_path_factory.mktemp("shard") / "sa1b_shard_00000.tar"
    members, truths = [], []
    for number, num_boxes in enumerate((1, 0, 3)):
        picture, npz, truth = make_sample(number, size_hw=SIZE_HW, num_boxes=num_boxes, picture="png")
        members += [(f"sa_{number}.png", picture), (f"sa_{number}_features.npz", npz)]
        truths.append(truth)
    write_tar(path, members)
    return path, truths


@pytest.fixture(scope="module")
def written(shard: tuple[Path, list[Truth]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The directories that 1 and 4 workers make of it."""
    folder = tmp_path_factory.mktemp("v1")
    outputs = {}
    for workers in (1, 4):
        outputs[workers] = folder / str(workers)
        flags = ["--layout", "v1", "--quiet", "--workers", str(workers), "--output-dir", str(outputs[workers])]
        assert main(["convert", "sa1b-tar", "--tar-path", str(shard[0]), *flags]) == 0
    return outputs


def test_bytes_are_those_of_the_description(shard: tuple[Path, list[Truth]], written: dict[int, Path]) -> None:
    expected: dict[str, bytes] = dict.fromkeys(FILES, b"")
    for truth in shard[1]:
        for name, content in describe(truth).items():
            assert len(content) == FILES[name]
            expected[name] += content
    for name, content in expected.items():
        assert (written[1] / f"{name}.bin").read_bytes() == content, name
    assert (written[1] / "keys.txt").read_bytes() == b"sa_0\nsa_1\nsa_2\n"


def test_config_has_the_seeds_keys_in_its_order_and_then_our_marker(written: dict[int, Path]) -> None:
    config = json.loads((written[1] / "config.json").read_bytes())
    sizes = {f"{name.replace('images', 'image')}_bytes": size for name, size in FILES.items()}
    seed = {
        "model_type": "sam2.1_hiera_b+",
        "image_size": 1024,
        "mask_size": 256,
        "total_samples": 3,
        "version": "1.0",
        "description": config["description"],
        "sample_sizes": sizes,
        "interpolation_method": "cv2.INTER_AREA",
        "mask_binarization_threshold": 0.5,
    }
    assert list(config)[: len(seed)] == list(seed)
    assert {name: config[name] for name in seed} == seed
    assert list(config["sample_sizes"]) == list(sizes)
    assert (config["bbox_format"], config["bbox_frame"]) == ("xyxy", "original")


def test_one_and_four_workers_write_the_same_bytes(written: dict[int, Path]) -> None:
    names = [*(f"{name}.bin" for name in FILES), "keys.txt", "config.json"]
    for name in names:
        assert (written[1] / name).read_bytes() == (written[4] / name).read_bytes(), name
    for folder in written.values():
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(names)


def describe(truth: Truth) -> dict[str, bytes]:
    """One record of each file, from what the maker of the sample knows."""
    fields: dict[str, np.ndarray] = truth["fields"]  # type: ignore[assignment]  # as its docstring says
    masks, boxes = np.asarray(truth["masks"]), np.asarray(truth["boxes_xyxy"])
    box, mask = np.array([0, 0, 1, 1], "<f4"), np.zeros((256, 256), np.uint8)
    if len(boxes):
        box, mask = boxes[0], masks[0].reshape(256, 2, 256, 4).mean(axis=(1, 3)) > 0.5
    metadata = [len(boxes), int(len(boxes) > 0), *SIZE_HW, 3]
    maps = [fields[f"{kind}_map_{size}x{size}"] for size in (128, 64, 32) for kind in ("fg", "bg")]
    return {
        "images": np.asarray(truth["picture"]).tobytes(),
        "features": b"".join(fields[name].astype("<f4").tobytes() for name in ("P4_S16", "P5_S32")),
        "edge_maps": b"".join(fields[f"edge_{size}x{size}"].astype("u1").tobytes() for size in (256, 64, 32)),
        "weight_maps": b"".join(weights.astype("<f4").tobytes() for weights in maps),
        "bboxes": box.astype("<f4").tobytes(),
        "masks": mask.astype("u1").tobytes(),
        "metadata": np.array(metadata, "<i4").tobytes(),
    }
