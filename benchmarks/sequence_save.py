"""Saving sequences: seconds for 1,000 sequences of 3 pictures each from 1280 x 720 JPEGs, crops and raw, on all cores.

    python benchmarks/sequence_save.py [--num-sequences 1000] [--workers 2] [--folder DIR]

Raw pictures as JPEG are the source's own files, copied; "raw png" has to encode them. The last lines say what
encoding a picture takes, which copying saves.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from penstock.geometry.images import decode_picture, encode_jpeg
from penstock.sequence_config import DrawConfig, SaveConfig, SequenceConfig
from penstock.sequence_save import save_sequences

SIZE_HW = (720, 1280)
SEQUENCES, FRAMES = 6, 60


def write_source(root: Path) -> Path:
    """LaSOT's layout: smooth noise with a moving target, JPEG quality 90, some 300 kB a picture."""
    height, width = SIZE_HW
    for number in range(1, SEQUENCES + 1):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (height // 6, width // 6, 3), np.uint8))
        ground = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        folder = root / "car" / f"car-{number}"
        (folder / "img").mkdir(parents=True)
        boxes = []
        for frame in range(FRAMES):
            x, y = 300 + 8 * frame, 250 + 3 * frame
            pixels = ground.copy()
            pixels[y : y + 90, x : x + 120] = (230, 40, frame)
            Image.fromarray(pixels).save(folder / "img" / f"{frame + 1:08d}.jpg", quality=90)
            boxes.append(f"{x + 1},{y + 1},120,90\n")
        (folder / "groundtruth.txt").write_text("".join(boxes))
        (folder / "full_occlusion.txt").write_text(",".join(["0"] * FRAMES) + "\n")
        (folder / "out_of_view.txt").write_text(",".join(["0"] * FRAMES) + "\n")
    return root


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    """Adds the seconds of a block to a list."""
    started = time.perf_counter()
    yield
    times.append(time.perf_counter() - started)


def main() -> None:
    """Runs all of it and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-sequences", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        source = write_source(folder / "lasot")
        files = sorted(source.rglob("*.jpg"))
        size = np.mean([path.stat().st_size for path in files]) / 1e3
        print(f"{len(files)} pictures of {SIZE_HW[1]} x {SIZE_HW[0]}, {size:.0f} kB each")
        for pictures, image_format in (
            ("crops", "jpg"),
            ("crops", "png"),
            ("raw", "jpg"),
            ("both", "jpg"),
            ("raw", "png"),
        ):
            count = (
                arguments.num_sequences if (pictures, image_format) != ("raw", "png") else arguments.num_sequences // 10
            )
            config = SequenceConfig(
                sources=(f"lasot:{source}",),
                output=folder / f"{pictures}-{image_format}",
                num_sequences=count,
                draw=DrawConfig(num_template=2),
                save=SaveConfig(pictures=pictures, image_format=image_format, workers=arguments.workers),
            )
            report = save_sequences(config)
            assert report.exit_code == 0, report.summary()
            rate = report.done / report.seconds
            print(
                f"{pictures:6} {image_format}: {report.done} sequences in {report.seconds:.1f} s, {rate:.1f}/s, "
                f"{report.bytes_written / 1e6:.0f} MB; 1,000 take {1000 / rate:.1f} s"
            )
        contents = [path.read_bytes() for path in files[:50]]
        decoding: list[float] = []
        encoding: list[float] = []
        for content in contents:
            with timed(decoding):
                pixels = decode_picture(content)
            with timed(encoding):
                encode_jpeg(pixels)
        decode_ms, encode_ms = np.median(decoding) * 1e3, np.median(encoding) * 1e3
        print(f"one picture: decoding {decode_ms:.1f} ms, encoding as JPEG 4:4:4 {encode_ms:.1f} ms,")
        print(f"so copying in place of encoding saves {np.median(encoding) * 3000:.0f} s of a core per 1,000 sequences")


if __name__ == "__main__":
    main()
