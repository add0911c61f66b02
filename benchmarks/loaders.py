"""The torture bench: what loaders promise of mixtures, ranks, workers, resumes and bad samples, checked by running it.

    python3.11 -m venv peers-venv && peers-venv/bin/pip install grain litdata torchdata webdataset datasets torch -e .
    python3.11 -m venv mosaic-venv && mosaic-venv/bin/pip install "numpy<2.2" mosaicml-streaming torch
    python benchmarks/loaders.py --python peers-venv/bin/python --python mosaicml-streaming=mosaic-venv/bin/python

Both environments are thrown away afterwards; penstock needs none of the others. A loader whose modules the interpreter
lacks stands as "not installed". Each loader reads two sources of 300 and 100 shuffled samples, alone and mixed three to
one, global batches of 8, on 1, 2 and 4 ranks (a process each, one after another) and 0, 1 and 2 workers. Every cell comes
from a check that ran: y it holds, p in part, n it does not. none: it has nothing that could be tried.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from loader_peers import PEERS  # noqa: E402  the folder of this file goes first
from loader_peers.base import FIRST  # noqa: E402

ROWS = {"a": 300, "b": 100}
BATCH, SAVED, STEPS = 8, 7, 20
"""Global batch; steps before a state is saved; steps compared."""
DRAWS = 4096
BAD = list(range(3, 24))
WORLDS, WORKERS = (2, 4), (1, 2)
Batches = list[list[int]]


@dataclass(frozen=True)
class Cell:
    """What a check found."""

    mark: str
    remark: str = ""


class Failed(Exception):
    """A run ended with an error of the loader."""


class Loader:
    """A loader in a process of its own, and its files."""

    def __init__(self, name: str, python: str, folder: Path, timeout_s: float) -> None:
        self.name, self.folder, self.timeout_s = name, folder, timeout_s
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        folder.mkdir(parents=True)
        self._log = (folder / "log.txt").open("wb")
        self._process = subprocess.Popen(
            [python, str(HERE / "loader_peers" / "serve.py"), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, env=environment,
        )  # fmt: skip
        self.about = self.ask("modules")
        self._known: dict[str, Batches] = {}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"do": do, "timeout_s": self.timeout_s, **arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": f"its process ended; see {self._log.name}"}

    def write(self, name: str, **options: Any) -> str:
        """A folder with both sources."""
        rows = {**ROWS, **options.pop("rows", {})}
        shutil.rmtree(self.folder / name, ignore_errors=True)
        answer = self.ask("write", folder=str(self.folder / name), rows=rows, **options)
        if "error" in answer:
            raise Failed(answer["error"])
        return str(self.folder / name)

    def run(self, steps: int | None, *, state: str = "", save: str = "", **setup: Any) -> dict[str, Any]:
        """One rank's batches.

        Raises:
            Failed: it raised, took too long or gave fewer batches.
        """
        answer = self.ask("run", setup=self.setup(**setup), steps=steps, state=state and str(self.folder / state),
                          save=save and str(self.folder / save))  # fmt: skip
        if "error" in answer:
            raise Failed(" ".join(answer["error"].split())[:300])
        if steps is not None and len(answer["batches"]) < steps:
            raise Failed(f"it ended after {len(answer['batches'])} of {steps} batches")
        return answer

    def setup(self, **options: Any) -> dict[str, Any]:
        """Of a run over sound data, unless said otherwise."""
        return {"folder": str(self.folder / "clean"), "global_batch": BATCH, **options}

    def batches(self, steps: int, **setup: Any) -> Batches:
        """One rank's batches, kept."""
        key = json.dumps([steps, setup], sort_keys=True)
        if key not in self._known:
            self._known[key] = self.run(steps, **setup)["batches"]
        return self._known[key]

    def globals(self, steps: int, world: int, **setup: Any) -> Batches:
        """Global batches of all ranks, each sorted: the order inside one is not asked for."""
        shares = [self.batches(steps, rank=rank, world=world, **setup) for rank in range(world)]
        return joined(shares)

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()


def joined(shares: Sequence[Batches]) -> Batches:
    """Batches of ranks as sorted global ones."""
    return [sorted(number for share in step for number in share) for step in zip(*shares, strict=True)]


def kinds(loader: Loader) -> list[bool]:
    """Whether mixed: alone, and mixed where it can."""
    return [False, True] if loader.about["mixes"] else [False]


def graded(results: Mapping[str, bool | str]) -> Cell:
    """y where all hold, p where some do, n where none does; the remark names those that do not, and errors."""
    bad = [
        f"{name}{f' ({result})' if isinstance(result, str) else ''}"
        for name, result in results.items()
        if result is not True
    ]
    if not bad:
        return Cell("y")
    mark = "n" if len(bad) == len(results) else "p"
    return Cell(
        mark, f"not: {'; '.join(bad)}" if mark == "p" else next((r for r in results.values() if isinstance(r, str)), "")
    )


def tried(check: Callable[[], bool]) -> bool | str:
    """Whether it holds, or the loader's error."""
    try:
        return check()
    except Failed as error:
        return str(error)[:200]


def worded(is_mixed: bool) -> str:
    """For remarks."""
    return "mixed" if is_mixed else "alone"


def any_workers(loader: Loader) -> Cell:
    """The same batches, in order, with 0, 1 and 2 workers."""

    def check(mixed: bool, workers: int) -> bool:
        return loader.batches(STEPS, mixed=mixed) == loader.batches(STEPS, mixed=mixed, workers=workers)

    cases = [(mixed, workers) for mixed in kinds(loader) for workers in WORKERS]
    return with_mixture(loader, {f"{worded(m)}, {w} workers": tried(partial(check, m, w)) for m, w in cases})


def any_ranks(loader: Loader) -> Cell:
    """The same global batches, as sets, on 1, 2 and 4 ranks."""

    def check(mixed: bool, world: int) -> bool:
        return loader.globals(STEPS, 1, mixed=mixed) == loader.globals(STEPS, world, mixed=mixed)

    cases = [(mixed, world) for mixed in kinds(loader) for world in WORLDS]
    return with_mixture(loader, {f"{worded(m)}, {w} ranks": tried(partial(check, m, w)) for m, w in cases})


def with_mixture(loader: Loader, results: dict[str, bool | str]) -> Cell:
    """A loader that cannot mix holds in part at best."""
    return graded(results if loader.about["mixes"] else {**results, "mixed": "it does not mix"})


def exact_resume(loader: Loader) -> Cell:
    """Stopped after 7 steps, resumed on the same ranks and workers: the batches of the run that was not stopped."""
    if not loader.about["resumes"]:
        return Cell("none", "it has no state")

    def check(mixed: bool, workers: int) -> bool:
        setup = {"mixed": mixed, "workers": workers}
        whole = loader.batches(STEPS, **setup)
        loader.run(SAVED, save="state", **setup)
        return bool(loader.run(STEPS - SAVED, state="state", **setup)["batches"] == whole[SAVED:])

    cases = [(mixed, workers) for mixed in kinds(loader) for workers in (0, 2)]
    return with_mixture(loader, {f"{worded(m)}, {w} workers": tried(partial(check, m, w)) for m, w in cases})


def elastic_resume(loader: Loader) -> Cell:
    """A mixture on 2 ranks without workers, stopped after 7 steps, resumed on others: its global batches."""
    if not loader.about["resumes"] or not loader.about["mixes"]:
        return Cell("none", "it has no state" if loader.about["mixes"] else "it does not mix")

    def check(world: int, workers: int) -> bool:
        whole = loader.globals(STEPS, 2, mixed=True)
        for rank in range(2):
            loader.run(SAVED, save=f"state{rank}", mixed=True, rank=rank, world=2)
        shares = [
            loader.run(STEPS - SAVED, state=f"state{rank % 2}", mixed=True, rank=rank, world=world, workers=workers)
            for rank in range(world)
        ]
        return joined([share["batches"] for share in shares]) == whole[SAVED:]

    cases = ((1, 0), (4, 0), (2, 2), (4, 1))
    return graded(
        {f"{world} ranks, {workers} workers": tried(partial(check, world, workers)) for world, workers in cases}
    )


def exact_share(loader: Loader) -> Cell:
    """Of 4,096 draws (or of an epoch, where the mixture ends before) three in four come from the first source; three seeds."""
    if not loader.about["mixes"]:
        return Cell("none", "it does not mix")
    off = []
    for seed in (7, 8, 9):
        found = loader.ask("run", setup=loader.setup(mixed=True, seed=seed), steps=DRAWS // BATCH)
        if "error" in found:
            return Cell("n", found["error"])
        drawn = [number for batch in found["batches"] for number in batch]
        off.append(abs(sum(number < FIRST["b"] for number in drawn) - len(drawn) * 3 / 4))
    return Cell("y") if max(off) < 1 else Cell("n", f"up to {max(off):.0f} of {len(drawn)} draws off")


def tried_number(count: Callable[[], int]) -> int | str:
    """A number, or the loader's error."""
    try:
        return count()
    except Failed as error:
        return str(error)[:200]


def survives(loader: Loader) -> Cell:
    """21 neighbours of 300 samples are damaged: an epoch ends, and every sound sample of it came."""
    folder = loader.write("damaged", bad=BAD)
    found = tried_number(
        lambda: len({n for batch in loader.run(None, folder=folder, survive=True)["batches"] for n in batch})
    )
    if isinstance(found, str):
        return Cell("n", f"{'' if loader.about['survives'] else 'no option; '}{found}")
    least = ROWS["a"] - len(BAD) - BATCH + 1
    return Cell("y" if found >= least else "n", "" if found >= least else f"{found} of {ROWS['a'] - len(BAD)} came")


def equal_steps(loader: Loader) -> Cell:
    """The same damage on 2 ranks: both take as many steps as without it."""
    if not loader.about["survives"]:
        return Cell("none", "nothing to count: a bad sample ends the run")
    folder = loader.folder / "damaged"

    def steps(rank: int, **setup: Any) -> int:
        return len(loader.run(None, rank=rank, world=2, **setup)["batches"])

    try:
        found = [steps(rank, folder=str(folder), survive=True) for rank in range(2)]
        usual = [steps(rank) for rank in range(2)]
    except Failed as error:
        return Cell("n", str(error)[:200])
    return Cell("y") if len({*found, *usual}) == 1 else Cell("n", f"steps of the ranks: {found}; sound data: {usual}")


def refuses_changes(loader: Loader) -> Cell:
    """A state is not taken where one sample has other content, or one is gone."""
    if not loader.about["resumes"]:
        return Cell("none", "it has no state")

    def check(**options: Any) -> bool:
        folder = loader.write("subject")
        loader.run(SAVED, save="state", folder=folder)
        loader.write("subject", **options)  # at the same path
        try:
            loader.run(1, state="state", folder=folder)
        except Failed:
            return True
        return False

    found = graded({
        "one sample has other content": tried(partial(check, changed=[5])),
        "one sample is gone": tried(partial(check, rows={"a": ROWS["a"] - 1})),
    })  # fmt: skip
    too_strict = found.mark == "y" and check()
    return Cell("y", "files written again with the same content are refused too") if too_strict else found


def rebuilds(loader: Loader) -> Cell:
    """One sample of a shuffled mixture again, from its key or its place, without those before it."""
    if not loader.about["rebuilds"]:
        return Cell("none", "no key or place gives a sample of a shuffled mixture")
    wanted = loader.batches(STEPS, mixed=True)[11][5]
    answer = loader.ask("rebuild", setup=loader.setup(mixed=True), step=11, place=5)
    return Cell("y") if answer.get("number") == wanted else Cell("n", str(answer))


def state_size(loader: Loader) -> Cell:
    """Bytes of one rank's state of a mixture (pickled), without workers and with two."""
    if not loader.about["resumes"]:
        return Cell("none")
    sizes = []
    for workers in (0, 2):
        try:
            answer = loader.run(SAVED, save="state", mixed=loader.about["mixes"], workers=workers)
            sizes.append(f"{answer['state_bytes']:,}")
        except Failed as error:
            return Cell("n", str(error)[:200])
    return Cell(" / ".join(sizes))


CHECKS: dict[str, Callable[[Loader], Cell]] = {
    "same batches for any number of workers": any_workers,
    "same global batches for any number of ranks": any_ranks,
    "exact resume inside a shuffled epoch": exact_resume,
    "a weighted mixture resumes on other ranks and workers": elastic_resume,
    "exact shares": exact_share,
    "survives bad samples": survives,
    "as many steps on every rank despite them": equal_steps,
    "refuses a state of changed data": refuses_changes,
    "rebuilds one sample": rebuilds,
    "bytes of the state, 0 / 2 workers": state_size,
}


def bench(name: str, python: str, folder: Path, timeout_s: float) -> tuple[dict[str, Cell], str]:
    """All checks of one loader, and its versions."""
    loader = Loader(name, python, folder, timeout_s)
    try:
        if loader.about.get("missing") or "error" in loader.about:
            why = loader.about.get("error", "")
            return {check: Cell("not installed", why) for check in CHECKS}, ""
        loader.write("clean")
        cells = {}
        for title, check in CHECKS.items():
            started = time.perf_counter()
            try:
                cells[title] = check(loader)
            except Failed as error:
                cells[title] = Cell("n", str(error))
            print(f"{name}: {title}: {cells[title].mark} {cells[title].remark} ({time.perf_counter() - started:.0f} s)",
                  file=sys.stderr, flush=True)  # fmt: skip
        versions = ", ".join(f"{module} {version}" for module, version in loader.about["versions"].items())
        return cells, versions
    finally:
        loader.end()


def printed(table: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """The table, and the remarks below it."""
    lines = [f"| promise | {' | '.join(table)} |", f"| --- |{' --- |' * len(table)}"]
    for title in CHECKS:
        lines.append(f"| {title} | {' | '.join(cells[title].mark for cells in table.values())} |")
    remarks = [
        f"- {name}, {title}: {cell.mark}: {cell.remark}"
        for name, cells in table.items() for title, cell in cells.items()
        if cell.remark
    ]  # fmt: skip
    return [*lines, "", *remarks]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], help="interpreter of all peers, or NAME=interpreter")
    parser.add_argument("--only", action="append", choices=list(PEERS), help="this loader alone; may be repeated")
    parser.add_argument("--timeout", type=float, default=120, help="seconds that one run may take")
    options = parser.parse_args()
    named = dict(one.split("=", 1) for one in options.python if "=" in one)
    usual = next((one for one in options.python if "=" not in one), sys.executable)
    table: dict[str, dict[str, Cell]] = {}
    versions = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(options.only or PEERS):
            python = named.get(name, sys.executable if name == "penstock" else usual)
            table[name], found = bench(name, python, Path(folder) / str(number), options.timeout)
            versions += [found] if found else []
    today = time.strftime("%Y-%m-%d", time.gmtime())
    print(
        f"`benchmarks/loaders.py`, {today}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()};"
    )
    print(f"{', '.join(dict.fromkeys(', '.join(versions).split(', ')))}.\n")
    print("\n".join(printed(table)))


if __name__ == "__main__":
    main()
