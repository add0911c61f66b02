"""The seed's script `build_vis_cache.py` and its test. Their command line, hence their output."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import App, Parameter

from penstock.cli_job import run_job
from penstock.compat.script import run_script
from penstock.embed import DEFAULT_SPEC, EmbedConfig
from penstock.embed_as import Format, embed_as, plan_embed_as
from penstock.exporters.embedding_rows import open_rows
from penstock.geometry.id_pngs import write_panoptic_png
from penstock.report import dump_json
from penstock.segments import Recipe
from penstock.testing import encode_picture


@dataclass(frozen=True, kw_only=True)
class ScriptConfig:
    """What the script takes as flags, with the seed's defaults."""

    data_path: Path
    """Folder of COCO panoptic: train2017, panoptic_train2017, annotations."""
    cache_dir: Path = Path("cache/vis_embed")
    """Folder that the cache goes to; again, to go on."""
    embedder_spec: str = DEFAULT_SPEC
    """The model, TYPE:NAME."""
    batch_size: int = 8
    """Pictures per batch."""
    num_workers: int = 4
    """Worker processes; 0 works in this one."""
    device: str = "cuda"
    """"cuda", "cuda:1", "cpu", or "auto"."""
    devices: int = 1
    """GPUs to share the work."""
    bg_alpha: float = 0.3
    """Share of the picture that is left outside the mask; the rest is mid-grey."""
    pad_ratio: float = 0.1
    """Padding of the box on each side, as a share of its height and width."""
    split: str = "train"
    """"train", "val" or "all"."""
    format: Format = "npy"
    """"npy": a file per segment; "npz": a file per picture; "store": one matrix."""
    recipe: Recipe = "native"
    """"legacy-640" stretches pictures to 640 x 640 before they are cut, as the original does."""
    amp: bool | None = None
    """Mixed precision; by default on a GPU only."""
    amp_bf16: Annotated[bool, Parameter(negative="")] = False
    """Mixed precision in bfloat16."""
    compile: Annotated[bool, Parameter(negative="")] = False
    """torch.compile."""
    max_segments: int | None = None
    """Take only the first so many segments."""
    max_failures: str | None = None
    """Failures that are still a success: a count (12) or a share (0.5%)."""
    retry_failed: Annotated[bool, Parameter(negative="")] = False
    """Try segments again that failed before from the same input."""
    on_change: Literal["refuse", "recompute"] = "refuse"
    """Where the cache was made with another model, alpha, padding or recipe: refuse, or compute all anew."""
    dry_run: Annotated[bool, Parameter(negative="")] = False
    """Say what would be done, and write nothing."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Print the report as JSON."""
    quiet: Annotated[bool, Parameter(negative="")] = False
    """No progress."""

    def to_embed(self) -> EmbedConfig:
        """The job's own settings."""
        own = {"format", "dry_run", "json", "quiet"}
        return EmbedConfig(**{name: value for name, value in vars(self).items() if name not in own})


def main(argv: Sequence[str]) -> int:
    """Runs `build_vis_cache.py` and gives its exit code: 0 done, 1 segments failed, 2 misuse."""
    app = App(
        name="build_vis_cache",
        help="One vector per segment of COCO panoptic.",
        result_action="return_value",
        version_flags=(),
    )

    @app.default
    def default(config: Annotated[ScriptConfig, Parameter(name="*")]) -> int:
        return _run(config)

    return run_script(app, argv)


def self_test() -> int:
    """The seed's `test_build_vis_cache.py`: every function and the script, on two small pictures, with the model `tiny:`.

    Returns:
        0, or 1 with what is wrong on the standard error.
    """
    from penstock.compat import embed

    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder, "coco"), Path(folder, "cache")
        write_example(data)
        loader = embed.create_dataloader(data, batch_size=2, num_workers=0)
        (batch,) = loader
        image_ids, segment_ids = embed.extract_image_and_segment_ids(batch, loader)
        images, targets = batch
        for image, target, image_id, ids in zip(images, targets, image_ids, segment_ids, strict=True):
            crops = embed.prep_mask_image(image, target["masks"], target["labels"], ids, 0.3, pad_ratio=0.1)
            vectors = np.eye(len(crops), 768, dtype=np.float32)
            embed.save_image_embeddings(cache / "functions", image_id, ids, vectors, target["labels"])
        faults = [] if open_rows(cache / "functions").vectors().shape == (4, 768) else ["save_image_embeddings"]
        for layout in ("npy", "npz", "store"):
            place = str(cache / layout)
            flags = ["--embedder-spec", "tiny:", "--device", "cpu", "--num-workers", "0", "--quiet"]
            code = main(["--data-path", str(data), "--cache-dir", place, "--format", layout, *flags])
            good = code == 0 and np.allclose(
                np.linalg.norm(open_rows(Path(place)).vectors().astype(np.float32), axis=1), 1, atol=2e-3
            )
            faults += [] if good else [f"build_vis_cache --format {layout}"]
    sys.stderr.writelines(f"wrong: {fault}\n" for fault in faults)
    sys.stdout.write("test_build_vis_cache: failed\n" if faults else "test_build_vis_cache: all is well\n")
    return 1 if faults else 0


EXAMPLE = (("000000397133", 15466), ("000000037777", 23456))
"""Pictures of the seed's own examples, and a segment of each."""


def write_example(root: Path, pictures: Sequence[tuple[str, int]] = EXAMPLE) -> None:
    """Writes COCO panoptic of one split, train2017, with two segments in each of some small pictures.

    Args:
        root: new folder.
        pictures: name, a number of 12 digits, and id of its first segment; the other one's is one more.
    """
    for name in ("train2017", "panoptic_train2017", "annotations"):
        (root / name).mkdir(parents=True)
    images, annotations = [], []
    for number, (name, first) in enumerate(pictures):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        ids = np.zeros((40, 50), np.uint32)
        ids[5:20, 5:30], ids[25:38, 20:45] = first, first + 1
        (root / "train2017" / f"{name}.jpg").write_bytes(encode_picture(pixels))
        (root / "panoptic_train2017" / f"{name}.png").write_bytes(write_panoptic_png(ids))
        images.append({"id": int(name), "file_name": f"{name}.jpg", "height": 40, "width": 50})
        said = [{"category_id": one, "iscrowd": 0, "area": 375, "bbox": [5, 5, 25, 15]} for one in (17, 200)]
        said = [{"id": first + place, **one} for place, one in enumerate(said)]
        annotations.append({"image_id": int(name), "file_name": f"{name}.png", "segments_info": said})
    categories = [{"id": one, "name": name, "isthing": int(one < 100)} for one, name in ((17, "cat"), (200, "rug"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))


def _run(config: ScriptConfig) -> int:
    job = config.to_embed()
    if config.dry_run:
        sys.stdout.write(dump_json(plan_embed_as(job, config.format)) + "\n")
        return 0
    return run_job(
        lambda on_progress, stop: embed_as(job, config.format, on_progress=on_progress, stop=stop),
        config.cache_dir,
        quiet=config.quiet,
        json=config.json,
    )
