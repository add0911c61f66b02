"""Does training on both frames find the object in the other frame? The small cycle model on moving handwriting, both ways.

    python benchmarks/dual_loop.py [--steps 1500] [--seeds 0 1] [--picture docs/pictures/dual_loop.svg]
    python benchmarks/dual_loop.py --steps 300 --data ../shared/data     # the pairs of SA-V there

"paired" learns the mask on the second frame; "same picture" learns it on the first again, the original's fault. The captioner
learns sentences that name the place in the first frame too; the segmenter hears the captioner's own words. With --data there are
no sentences, and the mask loss teaches the words.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Mapping
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
from penstock.samplers.pairs import PairRule
from penstock.testing_pairs import WORDS, MovingDigits
from penstock.train.dual_loop import DualLoop, DualLoopSettings, evaluate_dual_loop
from penstock.train.settings import TrainSettings
from penstock.train.trainer import Trainer

SIDE, BATCH = 32, 32


def digits() -> tuple[Mixed, Mixed, str]:
    """Training and test of moving digits, and the mode of the captions."""
    views = Views(size=SIDE)
    train = Mixed([MixPart(name="digits", source=MovingDigits(20_000, seed=1))], views=views)
    test = Mixed([MixPart(name="digits", source=MovingDigits(256, seed=2, test=True))], views=views)
    return train, test, "pseudo"


def shared(folder: Path) -> tuple[Mixed, Mixed, str]:
    """Pairs of one real video. Few, and of one object: training and test are the same; words are free (soft)."""
    sav = open_source(f"sav:{folder}/sav?split=val&boxes=index")
    parts = [MixPart(name="sav", source=sav, pairs=PairRule(min_gap=4, max_gap=40))]
    mixed = Mixed(parts, views=Views(size=64))
    return mixed, mixed, "soft"


def train(
    data: tuple[Mixed, Mixed, str], steps: int, seed: int, *, same_picture: bool
) -> dict[str, list[tuple[float, float]]]:
    """Scores over steps: name -> (step, gIoU)."""
    torch.manual_seed(seed)
    training, test, captions = data
    batches = [batch.copy() for batch in MixLoader(test, batch_size=min(64, len(test)))]
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

    objective = DualLoop(DualLoopSettings(captions=captions, same_picture=same_picture, max_empty=1.0))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            CycleModel(WORDS), objective, MixLoader(training, batch_size=BATCH, output="torch"), settings,
            folder=Path(folder), evaluate=score,
        )  # fmt: skip
        trainer.run()
    return found


def main() -> None:
    """Prints the table, writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = shared(arguments.data) if arguments.data else digits()
    names = ("cross", "same", "shuffled", "empty")
    print(f"{date.today()}, {platform.machine()}, one thread, {arguments.steps} steps of {BATCH}\n")
    print(f"| training | seed | {' | '.join(names)} | s |\n| --- | --- | {'--- | ' * len(names)}--- |")
    curves: dict[str, list[tuple[float, float]]] = {}
    for seed in arguments.seeds:
        for way, same_picture in (("paired", False), ("same picture", True)):
            begin = time.perf_counter()
            found = train(data, arguments.steps, seed, same_picture=same_picture)
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
