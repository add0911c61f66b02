"""Does training on both frames find the object in the other frame? The small cycle model on moving handwriting, both ways.

    python benchmarks/dual_loop.py [--steps 2500] [--seeds 0 1] [--picture docs/pictures/dual_loop.svg]
    python benchmarks/dual_loop.py --steps 3000 --data ../shared/data [--picture docs/pictures/dual_loop_photos.svg]

"paired" learns the mask on the second frame; "same picture" learns it on the first again, the original's fault. The captioner
learns sentences that name the place in the first frame too; the segmenter hears the captioner's own words. With --data the pairs
are windows of the photos there, each in colours of its own: see `WindowPairs`. --plain leaves the colours as they are, --without
leaves photos out.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import nn

from penstock import open_source
from penstock.curves import curves_svg
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.models.cycle import CycleModel
from penstock.source import Source
from penstock.testing_pairs import WORDS, MovingDigits, WindowPairs, WindowRule
from penstock.train.dual_loop import DualLoop, DualLoopSettings, evaluate_dual_loop
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Trainer

SIDE, BATCH = 32, 32


@dataclass(frozen=True)
class Demo:
    """What is trained on, what it is tested on, and the words of the sentences."""

    training: Mixed
    test: Mixed
    words: tuple[str, ...]
    max_words: int


def digits() -> Demo:
    """Moving handwriting."""
    return Demo(_mixed(MovingDigits(20_000, seed=1)), _mixed(MovingDigits(256, seed=2, test=True)), WORDS, 4)


def photos(folder: Path, without: Sequence[str], *, recolour: bool) -> Demo:
    """Windows of real photos, some photos left out."""
    sources = [open_source(f"sa1b:{folder}/sa1b_like/sa_000900"), open_source(f"openimages:{folder}/openimages")]
    rule = WindowRule(min_area=0.006, min_seen=0.85, min_share=0.03, max_share=0.2)
    training, test = (
        WindowPairs(sources, pairs, side=SIDE, seed=seed, test=held_out, rule=rule, without=without, recolour=recolour)
        for pairs, seed, held_out in ((20_000, 1, False), (256, 2, True))
    )
    print(f"{len(training.objects)} objects, {len(set(training.said))} words for them\n")
    return Demo(_mixed(training), _mixed(test), training.words, 5)


def _mixed(source: Source) -> Mixed:
    return Mixed([MixPart(name="pairs", source=source)], views=Views(size=SIDE))


def train(demo: Demo, steps: int, seed: int, *, same_picture: bool) -> dict[str, list[tuple[float, float]]]:
    """Scores over steps: name -> (step, gIoU)."""
    torch.manual_seed(seed)
    batches = [batch.copy() for batch in MixLoader(demo.test, batch_size=64)]
    found: dict[str, list[tuple[float, float]]] = {}
    settings = TrainSettings(
        steps=steps, learning_rate=2e-3, warmup_share=0.1, weight_decay=0.01, eval_every=max(1, steps // 6),
        log_every=50, save_every=steps, seed=seed,
    )  # fmt: skip

    def score(model: nn.Module) -> Mapping[str, float]:
        values = {name: one.giou for name, one in evaluate_dual_loop(model, batches).items()}
        for name, value in values.items():
            found.setdefault(name, []).append((trainer.step, value))
        return values

    objective = DualLoop(DualLoopSettings(same_picture=same_picture, max_empty=1.0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            CycleModel(demo.words, max_words=demo.max_words), objective,
            MixLoader(demo.training, batch_size=BATCH, output="torch"), settings, folder=Path(folder), evaluate=score,
        )  # fmt: skip
        trainer.run()
    return found


def main() -> None:
    """Prints the table, writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--without", nargs="*", default=[], help="photos left out")
    parser.add_argument("--plain", action="store_true", help="photos in their own colours")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recolour = not arguments.plain
    demo = photos(arguments.data, arguments.without, recolour=recolour) if arguments.data else digits()
    names = ("cross", "same", "shuffled", "empty")
    print(f"{date.today()}, {platform.machine()}, one thread, {arguments.steps} steps of {BATCH}\n")
    print(f"| training | seed | {' | '.join(names)} | s |\n| --- | --- | {'--- | ' * len(names)}--- |")
    curves: dict[str, list[tuple[float, float]]] = {}
    for seed in arguments.seeds:
        for way, same_picture in (("paired", False), ("same picture", True)):
            begin = time.perf_counter()
            found = train(demo, arguments.steps, seed, same_picture=same_picture)
            last = " | ".join(f"{found[name][-1][1]:.2f}" for name in names)
            print(f"| {way} | {seed} | {last} | {time.perf_counter() - begin:.0f} |", flush=True)
            if seed == arguments.seeds[0]:
                curves[f"{way}: other frame"] = found["cross"]
                curves[f"{way}: own frame"] = found["same"]
    if arguments.picture:
        picture = curves_svg(
            curves, title="Trained on both frames, or on one twice", across="steps", up="IoU", limits_up=(0.0, 1.0)
        )
        arguments.picture.write_text(picture)


if __name__ == "__main__":
    main()
