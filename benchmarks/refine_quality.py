"""Is a refined map better than the coarse one? Made scenes with known truth, a simulated SAM, and the classical proposer.

    python benchmarks/refine_quality.py                             # tables; some minutes
    python benchmarks/refine_quality.py --picture curve.svg         # and the dial curve
    python benchmarks/refine_quality.py --data SCENES TRUTH         # folders of scenes and of 16-bit PNG maps instead

Columns: IoU and Boundary IoU (2 % of the diagonal) are means over the objects of all frames; harm is the share of objects
whose IoU falls by more than a point; invalid the share of pixels without an id. The simulated SAM knows the truth and errs
by a dial: its figures show what the deciding makes of proposals, not what a real SAM gives. The ceiling is what the better
of coarse map and proposals allows for each object; filling gaps can go a little beyond it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from penstock.curves import curves_svg
from penstock.errors import SourceNotFound
from penstock.readers.scenes import Scenes
from penstock.refining.classical import Classical
from penstock.refining.frame import refine_frame
from penstock.refining.labels import parse
from penstock.refining.prompts import grid_points, make_prompts
from penstock.refining.proposals import joined
from penstock.refining.quality import FrameScore, Score, Void, object_ious, score_frame, total
from penstock.refining.settings import RefineSettings
from penstock.refining.types import Encoded, Frame
from penstock.testing_corruption import corrupt, make_scene
from penstock.testing_simulated import SimulatedSam, ceiling

FIRST_SEED = 1000
"""The classical proposer's knobs were chosen on made scenes 100..107: these are others."""
WAYS: Mapping[str, RefineSettings] = {
    "seed": RefineSettings(matcher="overlap", profile="seed"),
    "overlap": RefineSettings(matcher="overlap"),
    "prompt": RefineSettings(),
}
ERRORS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
HEAD = ["| way | IoU | Boundary IoU | PQ | harm | invalid |", "| --- | --- | --- | --- | --- | --- |"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A frame, its coarse ids and its truth."""

    frame: Frame
    coarse: np.ndarray
    truth: np.ndarray


def made_cases(count: int, strength: float) -> list[Case]:
    """Scenes that nothing was tuned on."""
    cases = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        image, truth = make_scene(seed)
        coarse = corrupt(truth, seed, strength=strength)
        cases.append(
            Case(frame=Frame(key=f"made/{seed}", image=image, objects=parse(coarse)), coarse=coarse, truth=truth)
        )
    return cases


def read_cases(scenes: Path, truths: Path) -> dict[str, list[Case]]:
    """Scene -> frames; the truth is TRUTHS/<scene>/<picture>.png.

    Raises:
        SourceNotFound: a frame has no truth.
    """
    cases: dict[str, list[Case]] = {}
    source = Scenes(scenes)
    for row in range(len(source)):
        record = source[row]
        scene, coarse = str(record["scene"]), np.asarray(record["ids"])
        path = truths / scene / f"{Path(str(record['path'])).name}.png"
        if not path.is_file():
            raise SourceNotFound(f"{path}: no truth for {source.keys[row]}")
        truth = np.asarray(Image.open(path)).astype(np.int64)
        frame = Frame(key=source.keys[row], image=np.asarray(record["image"]), objects=parse(coarse))
        cases.setdefault(scene, []).append(Case(frame=frame, coarse=coarse, truth=truth))
    return cases


def classical(case: Case) -> Encoded:
    """The classical proposer's view of a frame."""
    return Classical().encode([case.frame])[0]


def simulated(error: float) -> Callable[[Case], Encoded]:
    """A view of the simulated SAM."""
    return lambda case: SimulatedSam({case.frame.key: case.truth}, error=error).encode([case.frame])[0]


def scored(
    cases: Sequence[Case],
    view: Callable[[Case], Encoded] | None,
    settings: RefineSettings,
    void: Void = "excluded",
) -> list[FrameScore]:
    """Scores of all frames; of the coarse maps themselves without a view."""
    ids = [case.coarse if view is None else refine_frame(case.frame, view(case), settings).ids for case in cases]
    return [score_frame(one, case.truth, case.coarse, void=void) for one, case in zip(ids, cases, strict=True)]


def line(name: str, score: Score) -> str:
    """A row of the table."""
    shares = f"{score.harm_rate:.1%} | {score.invalid_ratio:.1%}"
    return f"| {name} | {score.mean_iou:.3f} | {score.boundary_iou:.3f} | {score.pq:.3f} | {shares} |"


def allowed(cases: Sequence[Case], error: float) -> float:
    """Mean IoU with, for each object, the better of its coarse mask and what the proposals allow."""
    best = []
    for case in cases:
        encoded = simulated(error)(case)
        prompts = make_prompts(case.frame.objects, WAYS["prompt"])
        proposals = joined([encoded.prompted(prompts), encoded.at_points(grid_points(case.truth.shape, 32))])
        best.append(np.maximum(ceiling(proposals, case.truth), object_ious(case.coarse, case.truth)[1]))
    return float(np.concatenate(best).mean())


def table(cases: Sequence[Case], error: float) -> list[str]:
    """All ways at one error."""
    rows = [line("coarse", total(scored(cases, None, WAYS["prompt"])))]
    for name, settings in WAYS.items():
        rows.append(line(f"{name}, simulated SAM", total(scored(cases, simulated(error), settings))))
    return [*HEAD, *rows, line("classical", total(scored(cases, classical, WAYS["prompt"])))]


def curve(cases: Sequence[Case]) -> dict[str, list[float]]:
    """Share of the ceiling that each way reaches, by error of the proposals; "coarse" is what there was before."""
    shares: dict[str, list[float]] = {name: [] for name in ("coarse", *WAYS)}
    for error in ERRORS:
        most = allowed(cases, error)
        shares["coarse"].append(total(scored(cases, None, WAYS["prompt"])).mean_iou / most)
        for name, settings in WAYS.items():
            shares[name].append(total(scored(cases, simulated(error), settings)).mean_iou / most)
    return shares


def drawn(shares: Mapping[str, Sequence[float]]) -> str:
    """The curve as SVG."""
    series = {
        name: [(error, 100 * share) for error, share in zip(ERRORS, values, strict=True)]
        for name, values in shares.items()
    }
    return curves_svg(series, title="IoU as a share of the ceiling", across="error of the simulated proposals", up="%")


def print_data(scenes: Path, truths: Path) -> None:
    """The classical proposer on scenes with truth; 0 in the truth counts as background, then as void."""
    rules: list[tuple[Void, str]] = [
        ("counted", "0 in the truth is background"),
        ("excluded", "0 in the truth is void"),
    ]
    for void, words in rules:
        print(f"\n{words}:\n")
        print("\n".join(HEAD))
        befores: list[FrameScore] = []
        afters: list[FrameScore] = []
        for scene, cases in read_cases(scenes, truths).items():
            before = scored(cases, None, WAYS["prompt"], void)
            after = scored(cases, classical, WAYS["prompt"], void)
            print(line(f"{scene}: coarse", total(before)))
            print(line(f"{scene}: classical", total(after)))
            befores += before
            afters += after
        print(line("all: coarse", total(befores)))
        print(line("all: classical", total(afters)))


def main() -> None:
    """Prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16, help="made scenes")
    parser.add_argument("--strength", type=float, default=0.5, help="of the damage, 0..1")
    parser.add_argument("--error", type=float, default=0.2, help="of the simulated SAM in the table, 0..1")
    parser.add_argument("--picture", type=Path, help="where the dial curve goes, as SVG")
    parser.add_argument("--data", type=Path, nargs=2, metavar=("SCENES", "TRUTH"), help="scenes and their truth")
    flags = parser.parse_args()
    if flags.data:
        print_data(*flags.data)
        return
    cases = made_cases(flags.scenes, flags.strength)
    print(
        f"{flags.scenes} made scenes from seed {FIRST_SEED}, damage {flags.strength:g}, proposals' error {flags.error:g}\n"
    )
    print("\n".join(table(cases, flags.error)))
    if flags.picture:
        shares = curve(cases)
        print("\n| error | " + " | ".join(shares) + " |\n| --- " + "| --- " * len(shares) + "|")
        for place, error in enumerate(ERRORS):
            print(f"| {error:g} | " + " | ".join(f"{values[place]:.1%}" for values in shares.values()) + " |")
        flags.picture.write_text(drawn(shares))


if __name__ == "__main__":
    main()
